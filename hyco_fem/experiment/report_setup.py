"""The configuration of a run, and what it ran on."""

from __future__ import annotations

import dataclasses
import html
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from hyco_fem.experiment.report_files import Run
from hyco_fem.experiment.report_html import Cell, Html, paragraph, table


def configuration_parts(run: Run) -> list[Html]:
    """experiment.toml, with what was chosen told from the defaults."""
    if run.text is None:
        return []
    note = "It is not an experiment of this version of hyco_fem, so defaults are not told apart."
    default: set[tuple[str | int, ...]] = set()
    if run.experiment is not None:
        note = "Bold: what was chosen. Grey: defaults."
        default = set(_defaults(run.experiment, ()))
    lines = [html.escape(line) for line in run.text.splitlines()]
    if run.experiment is not None:
        lines = list(_marked(run.text, default))
    # Tables stay whole where the text is set in columns.
    blocks = [f'<span class="block">{block}\n\n</span>' for block in "\n".join(lines).strip().split("\n\n")]
    return [paragraph(note, "note"), Html(f"<pre><code>{''.join(blocks)}</code></pre>")]


def _defaults(value: Any, path: tuple[str | int, ...], inherited: bool = False) -> Iterable[tuple[str | int, ...]]:
    """Paths of the entries of dataclasses that are as they are by default."""
    if inherited:
        yield path
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            entry = getattr(value, f.name)
            own = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            yield from _defaults(entry, (*path, f.name), inherited or (own is not dataclasses.MISSING and entry == own))
    elif isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _defaults(entry, (*path, key), inherited)


def _marked(written: str, default: set[tuple[str | int, ...]]) -> Iterable[str]:
    """The lines of a TOML text: entries that are defaults are grey, others bold."""
    place: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    for line in written.splitlines():
        shown = html.escape(line)
        try:
            keys = _keys(tomllib.loads(line))
        except tomllib.TOMLDecodeError:  # a part of a value
            keys = ()
        if line.startswith("[["):
            counts[keys] = counts.get(keys, -1) + 1
            place = (*keys, counts[keys])
            yield shown
        elif line.startswith("["):
            place = keys
            yield shown
        elif keys and not line.lstrip().startswith("#"):
            yield f'<span class="default">{shown}</span>' if (*place, keys[0]) in default else f"<b>{shown}</b>"
        else:
            yield shown


def _keys(table: Any) -> tuple[str, ...]:
    """The keys that lead into a table of one entry after the other."""
    keys: list[str] = []
    while isinstance(table, (dict, list)) and len(table) == 1:
        if isinstance(table, dict):
            ((key, table),) = table.items()
            keys.append(key)
        else:
            (table,) = table
    return tuple(keys)


def environment_parts(run: Run) -> list[Html]:
    """Versions, ranks, and where the time went."""
    rows: list[Sequence[Cell]] = []
    rows += [[name, str(version)] for name, version in (run.told("versions") or {}).items()]
    rows += [[name, run.told(name)] for name in ("ranks", "sensors") if run.told(name) is not None]
    parts = [table(["", ""], rows, "Versions and sizes")] if rows else []
    timings = {k: v for k, v in (run.told("timings") or {}).items() if isinstance(v, (int, float))}
    if timings:
        total = timings.get("total")
        columns: list[Cell] = ["part", "seconds", *(["share"] if total else [])]
        times = [[name, s, *([f"{s / total:.0%}"] if total else [])] for name, s in timings.items()]
        parts.append(table(columns, times, "Time on rank 0"))
    return [Html(f'<div class="beside">{"".join(parts)}</div>')] if parts else []
