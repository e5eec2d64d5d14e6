"""The documentation says what is there: names, commands, files, keys.  Without Sphinx, which `docs/build` runs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hyco_fem

pytestmark = pytest.mark.serial

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = sorted(p for kind in ("md", "rst") for p in DOCS.rglob(f"*.{kind}") if "_build" not in p.parts)
MARKDOWN = [p for p in PAGES if p.suffix == ".md"]

sys.path.append(str(DOCS / "extensions"))


def names_of(page: Path) -> list[str]:
    """What `names` directives without a module of their own document on a page of the API."""
    blocks = re.findall(r"^\.\. names::\n((?:   .*\n|\n)*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [word for block in blocks if ":module:" not in block for word in block.split()]


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of the fenced blocks of a page."""
    for fence, language, code in re.findall(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL):
        if fence == "```":
            yield language.strip(), textwrap.dedent(code)


def python_of(page: Path) -> list[str]:
    """The Python of a page, of cells too, without their tags and magics."""
    out = []
    for language, code in fenced(page.read_text(encoding="utf-8")):
        if language == "python" or (language.startswith("{code-cell}") and "%%bash" not in code):
            out.append("\n".join(line for line in code.splitlines() if not re.match(r"[%!]|:\w+: ", line)))
    return out


def wrong_names(code: str) -> list[str]:
    """Names of hyco_fem in a piece of code that there are not."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hyco_fem"):
            module = importlib.import_module(node.module or "")
            wrong += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
        elif isinstance(node, ast.Attribute):
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path, inner = [inner.attr, *path], inner.value
            if isinstance(inner, ast.Name) and inner.id == "hf" and not _there(path):
                wrong.append("hf." + ".".join(path))
    return wrong


def _there(path: list[str]) -> bool:
    found: Any = hyco_fem
    for part in path:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return path[0] in hyco_fem.__all__


def test_each_public_name_is_in_the_api_once() -> None:
    counts = Counter(name for page in (DOCS / "api").glob("*.rst") for name in names_of(page))
    assert {name: n for name, n in counts.items() if n > 1} == {}
    assert sorted(counts) == sorted(hyco_fem.__all__)


def test_each_problem_of_the_catalogue_is_in_the_api() -> None:
    text = (DOCS / "api" / "pde.rst").read_text(encoding="utf-8")
    documented = text.split(":module: hyco_fem.pde.catalogue")[1].split()
    assert sorted(documented) == sorted(hyco_fem.catalogue.__all__)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: str(p.relative_to(DOCS)))
def test_python_compiles_and_its_names_are_there(page: Path) -> None:
    for code in python_of(page):
        compile(code, str(page), "exec")
        assert wrong_names(code) == []


def test_pages_have_code_to_check_and_the_check_can_fail() -> None:
    assert sum(len(python_of(page)) for page in MARKDOWN) > 40
    assert wrong_names("import hyco_fem as hf\nhf.Hyko(hf.catalogue.poison(), hf.Points)") == [
        "hf.Hyko",
        "hf.catalogue.poison",
    ]
    assert wrong_names("from hyco_fem.parallel import sum_grads") == ["hyco_fem.parallel.sum_grads"]


def test_toml_on_pages_can_be_read() -> None:
    for page in MARKDOWN:
        for language, code in fenced(page.read_text(encoding="utf-8")):
            if language == "toml":
                tomllib.loads(code)


def test_files_that_pages_name_are_there() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w./])((?:demos|docker|benchmarks|meshes|tests|hyco_fem)/[\w./-]*\w)", text)
        missing += [f"{page.name}: {n}" for n in named if not ((CHECKOUT / n).exists() or (DOCS / f"{n}.md").exists())]
        own = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
        own += re.findall(r"^```\{(?:literalinclude|include|figure)\} (\S+)", text, re.MULTILINE)
        own += re.findall(r"^:img-(?:top|bottom): (\S+)", text, re.MULTILINE)
        own += [f"{link}.md" for link in re.findall(r"^:link: (\S+)", text, re.MULTILINE)]
        missing += [f"{page.name}: {name}" for name in own if not (page.parent / name).exists()]
    assert missing == []


def test_each_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index"}
    for page in MARKDOWN:
        for language, code in fenced(page.read_text(encoding="utf-8")):
            if language.startswith("{toctree}"):
                entries = [line for line in code.splitlines() if line and not line.startswith(":")]
                listed |= {(page.parent / entry).resolve() for entry in entries}
    assert {p.with_suffix("") for p in PAGES} == listed


def test_each_demo_has_a_page() -> None:
    helpers = {"make_plate_data", "plate_problem"}
    demos = {p.stem for p in (CHECKOUT / "demos").glob("*.py")} - helpers
    assert demos == {p.stem for p in (DOCS / "demos").glob("*.md")} - {"index"}


def test_the_commands_on_pages_are_commands() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "hyco_fem.cli", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    there = set(re.findall(r"^ {2,6}([a-z_-]+)(?: |$)", run.stdout, re.MULTILINE))
    used = set()
    for page in MARKDOWN:
        used |= set(re.findall(r"hyco-fem ([a-z]+)\b(?= |`|$)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert used - {"behind", "is", "has"} <= there
    assert {"run", "resume", "verify", "info"} <= used


def test_the_table_of_keys_has_the_keys_of_an_experiment() -> None:
    keys = importlib.import_module("keys")
    found = {f"{t.name}.{k.name}".lstrip(".") for t in keys.tables() for k in t.keys}
    text = (CHECKOUT / "demos" / "experiments" / "plate.toml").read_text(encoding="utf-8")

    def flat(table: dict[str, Any], name: str = "") -> Iterator[str]:
        for key, value in table.items():
            below = f"{name}.{key}".lstrip(".")
            if name == "coefficients":
                below = "coefficients.NAME"
            # What is under arguments is named by the problem, and `type` stands in the title of its table.
            if isinstance(value, dict) and key != "arguments":
                yield from flat(value, below)
            elif key != "type":
                yield below

    assert set(flat(tomllib.loads(text))) <= found
    rounds = next(k for t in keys.tables() if t.name == "game" for k in t.keys if k.name == "rounds")
    assert (rounds.kind, rounds.default) == ("whole number, ≥ 1", None)


def test_defaults_are_written_as_toml() -> None:
    toml = importlib.import_module("keys").toml
    for value in (True, 3, 0.25, 1e-12, "a", ["x", "y"], [1.0, 2.0], {"a": 1}):
        assert tomllib.loads(f"k = {toml(value)}")["k"] == value
