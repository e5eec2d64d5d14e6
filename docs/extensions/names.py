"""The API: `names`, a directive that documents public names, and docstrings as reStructuredText.

    .. names::
       Hyco
       Answers

writes a table of these names of hyco_fem with what each is, and then the documentation of each.  The docstrings of
the package are plain text with `names` in backticks and equations that are indented; a hook turns them into
reStructuredText: names of the package become links, other backticks code, equations literal blocks.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from contextlib import suppress
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

import hyco_fem

# Of other packages: their documentation is not here to be linked to, and a build needs no network.
_FOREIGN = re.compile(
    r"(torch|nn|dolfinx|dmesh|fem|ufl|basix|numpy|np|scipy|mpi4py|MPI|petsc4py|PETSc|matplotlib|rich)\b"
)
_BUILTIN = re.compile(r"(collections|typing|pathlib|builtins|types|dataclasses|logging)\b")

_HEADING = re.compile(r"^(Args|Returns|Raises|Attributes|Yields)(, [^:]*)?:$")
_FIELD = r"[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*"


class Names(SphinxDirective):
    """A table of names of hyco_fem, one a line, and the documentation of each."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"module": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module = self.options.get("module", "hyco_fem")
        names = [line.strip() for line in self.content if line.strip()]
        text = [".. list-table::", "   :class: names", "   :widths: 30 70", ""]
        for name in names:
            text += [f"   * - :py:obj:`~{module}.{name}`", f"     - {_first_line(_get(module, name))}"]
        text += [""]
        for name in names:
            found = _get(module, name)
            if inspect.ismodule(found):
                continue
            text += [f".. {_kind(found)}:: {module}.{name}"]
            if inspect.isclass(found):
                text += ["   :members:"]
            text += [""]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def _get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _kind(found: Any) -> str:
    if inspect.isclass(found):
        return "autoexception" if issubclass(found, BaseException) else "autoclass"
    return "autofunction" if callable(found) else "autodata"


def _first_line(found: Any) -> str:
    first = (inspect.getdoc(found) or "").split("\n\n")[0]
    sentence = re.split(r"(?<=[.:]) +(?=[A-Z])|\.\n", " ".join(first.split("\n")) + " ")[0].strip()
    sentence = re.sub(r"  Collective\.?$|:$", "", sentence)
    return _inline(sentence) or " "


# -- docstrings ------------------------------------------------------------------------------------------------


def _inline(line: str) -> str:
    """A line of a docstring with its `code` as roles, and what only looks like markup escaped."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    return "".join(_code(part.strip("`")) if part.startswith("`") else _escaped(part) for part in parts)


def _code(text: str) -> str:
    name = text.removeprefix("hyco_fem.").removeprefix("hf.")
    head = re.match(r"\w+", name)
    if head and head[0] in hyco_fem.__all__ and re.fullmatch(r"\w+(\.\w+)*", name) and _attribute(name):
        return f":py:obj:`{name} <hyco_fem.{name}>`\\ "
    return f"``{text}``\\ "


def _attribute(name: str) -> bool:
    """Whether a dotted name of the package is documented: a name of its own, or a method of one."""
    found: Any = hyco_fem
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    return "." not in name or callable(found) or isinstance(found, property)


def _escaped(text: str) -> str:
    parts = re.split(r"((?<![\w*])\*\w[^*]*\w\*(?![\w*]))", text.replace("\\", "\\\\").replace("|", "\\|"))
    parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]  # the others are *emphasis*
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", "".join(parts))


def _docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Autodoc's docstrings: sections as fields, indented blocks as literal ones."""
    fields = _parameters(found)
    owned = set(getattr(found, "__dataclass_fields__", ()))
    out: list[str] = []
    section = ""
    outer = 0  # the indentation of the last line of text
    literal = table = False
    for number, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        after_blank = number > 0 and not lines[number - 1].strip()
        if not text:
            out.append("")
            section = "" if section == "fields" else section
            table = False
            continue
        if table:
            out.append(f"    {line}")
            continue
        if literal and indent > outer:
            out.append(line)
            continue
        literal = False
        if match := _HEADING.match(line):
            section, outer = match[1], indent
            out += [] if after_blank else [""]
            continue
        if after_blank and indent > outer and not (section and indent == 4):
            literal = True
            out += [*_literal(lines[number:], outer), line]
            continue
        if indent == 0 and section != "fields":
            out += [] if after_blank or not section else [""]
            section = ""
        first = re.match(rf"({_FIELD}): ", line)
        if indent == 0 and not section and first and set(first[1].split(", ")) <= owned:
            section = "fields"
            out += [] if after_blank else [""]
        if (
            indent == 0 and after_blank and not section and any(_paragraph(lines[number:], 1))
        ):  # columns, held together by indentation
            table = True
            out += [*_literal(lines[number:], 0), f"    {line}"]
            continue
        outer = indent
        if section:
            out += _fields(section, line, fields, new=not out or not out[-1].strip())
        else:
            out.append(" " * indent + _inline(text))
    lines[:] = out


def _literal(lines: list[str], outer: int) -> list[str]:
    """The head of a literal block of what these lines begin with, deeper than `outer`: Python, or text."""
    block = textwrap.dedent("\n".join(itertools.takewhile(lambda x: not x.strip() or x[: outer + 1].isspace(), lines)))
    try:
        language = "python" if block.strip() and ast.parse(block) else "text"
    except SyntaxError:
        language = "text"
    return [" " * outer + f".. code-block:: {language}", ""]


def _paragraph(lines: list[str], start: int) -> list[bool]:
    """Of the lines of a paragraph after its first, whether they are indented."""
    rest = itertools.takewhile(lambda x: x.strip(), lines[start:])
    return [line[0].isspace() for line in rest]


def _parameters(found: Any) -> set[str]:
    """The names that the docstring of a function or class explains: parameters, and fields of a dataclass."""
    names = set(getattr(found, "__dataclass_fields__", ()))
    with suppress(TypeError, ValueError):
        names |= set(inspect.signature(found).parameters)
    return names


def _fields(section: str, line: str, names: set[str], *, new: bool) -> list[str]:
    """A line of a section as lines of reStructuredText fields; new: where no field is open yet."""
    text = line.strip()
    if section in ("Returns", "Yields"):
        return [f":{section.lower()}: {_inline(text)}" if new else f"    {_inline(text)}"]
    starts = [(m.start(1), m[1]) for m in re.finditer(rf"(?:^|(?<=[.)])  )({_FIELD}): ", text)]
    if section == "Raises":
        starts = [(at, name) for at, name in starts if name[0].isupper()]
    elif section != "Attributes":
        starts = [(at, name) for at, name in starts if set(name.split(", ")) <= names]
    ends = [at for at, _ in starts] + [len(text)]
    out = []
    if ends[0] > 0:
        rest = _inline(text[: ends[0]].rstrip())
        out.append(f":{section.lower()}: {rest}" if new and section == "Raises" else f"    {rest}")
    role = {"Args": "param", "Raises": "raises"}.get(section, "ivar")
    for (at, name), end in zip(starts, ends[1:], strict=True):
        said = _inline(text[at + len(name) + 2 : end].rstrip())
        if section == "Raises":
            out.append(f":raises {name}: {said}")
        else:
            *others, last = name.split(", ")
            out += [f":{role} {other}: see {last}" for other in others]
            out.append(f":{role} {last}: {said}")
    return out


class Links(SphinxTransform):
    """Public names in code on any page become links to where they are documented."""

    default_priority = 10

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            name = text.removeprefix("hf.").split("(")[0]
            whole = text.startswith("hf.") or name == text
            if not whole or name.split(".")[0] not in hyco_fem.__all__ or not re.fullmatch(r"\w+(\.\w+)*", name):
                continue
            if not _attribute(name) or isinstance(node.parent, (nodes.reference, pending_xref, nodes.title)):
                continue
            if _within(node, "keys"):  # those of a TOML file
                continue
            target = {"refdomain": "py", "reftype": "obj", "reftarget": f"hyco_fem.{name}", "refexplicit": True}
            link = pending_xref("", node.deepcopy(), refdoc=self.env.docname, **target)
            node.replace_self(link)


def _within(node: nodes.Node, name: str) -> bool:
    """Whether a node is in a table of this class."""
    while (node := node.parent) is not None:
        if isinstance(node, nodes.table) and name in node["classes"]:
            return True
    return False


# -- references ------------------------------------------------------------------------------------------------


def _missing(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Types in signatures: public names, by where they are defined; foreign and internal ones are left plain."""
    target = node.get("reftarget", "")
    last = target.rsplit(".", 1)[-1]
    if node.get("refdomain") != "py":
        return None
    if last in hyco_fem.__all__ and target != f"hyco_fem.{last}" and (target == last or target.startswith("hyco_fem.")):
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"hyco_fem.{last}", node, contnode)
    if _FOREIGN.match(target) or _BUILTIN.match(target) or _internal(target):
        return contnode
    return None


def _internal(target: str) -> bool:
    """Whether a name of a signature is there at all, though not public."""
    module, _, name = target.rpartition(".")
    if module.startswith("hyco_fem"):
        try:
            return hasattr(importlib.import_module(module), name)
        except ImportError:
            return False
    return bool(re.fullmatch(r"[A-Z]\w*|[a-z]\w*", target)) and not module


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the hooks."""
    app.add_directive("names", Names)
    app.add_transform(Links)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("missing-reference", _missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
