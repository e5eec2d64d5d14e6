"""Whatever a JSON file holds, as tables."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hyco_fem.experiment.report_files import KINDS, Run, Table
from hyco_fem.experiment.report_html import Cell, Html, figure, number, paragraph, table, text

# Rows of a table, numbers of a list that are told one by one, letters of what is neither.
MOST_ROWS, _MOST_NUMBERS, _MOST_LETTERS = 60, 8, 120

# Pictures that other commands leave, and up to which size they are put into the page.
_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
_LARGEST = 2_000_000


def further_parts(run: Run) -> list[Html]:
    """What a summary holds beside what the page knows."""
    rest = {n: v for n, v in run.summary.items() if not (n in KINDS and isinstance(v, KINDS[n]))}
    return list(_tables("Values", rest, ""))


def _tables(caption: str, values: dict[str, Any], path: str) -> Iterable[Html]:
    """A table of the single values, then one for each of the others, those that are in others too."""
    nested = {name: value for name, value in values.items() if _is_nested(value)}
    singles = [[name, plain(value)] for name, value in values.items() if name not in nested]
    if singles:
        yield from _limited(["", ""], singles, caption)
    for name, value in nested.items():
        rows = list(value.values()) if isinstance(value, dict) else value
        if not all(isinstance(row, dict) and not any(map(_is_nested, row.values())) for row in rows):
            yield from _tables(path + name, value if isinstance(value, dict) else _numbered(value), f"{path}{name}.")
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        body = [[plain(row.get(c)) for c in columns] for row in rows]
        if isinstance(value, dict):
            columns, body = ["", *columns], [[key, *cells] for key, cells in zip(value, body, strict=True)]
        yield from _limited(columns, body, path + name)


def _is_nested(value: Any) -> bool:
    """Whether a value is a table, or a list of tables."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(entry, dict) and entry for entry in value)
    return isinstance(value, dict) and bool(value)


def _numbered(rows: list[Any]) -> dict[str, Any]:
    return {str(k): row for k, row in enumerate(rows, 1)}


def _limited(columns: list[str], rows: list[list[Cell]], caption: str) -> Iterable[Html]:
    yield table(columns, rows[:MOST_ROWS], caption)
    if len(rows) > MOST_ROWS:
        yield paragraph(f"These are the first {MOST_ROWS} of {len(rows)} rows; the file has all.", "note")


def plain(value: Any) -> Cell:
    """Any value of JSON as a cell."""
    if isinstance(value, list) and value and all(v is None or isinstance(v, (int, float)) for v in value):
        if len(value) <= _MOST_NUMBERS:
            return ", ".join(number(v) for v in value)
        there = [v for v in value if v is not None] or [None]
        return f"{len(value)} numbers from {number(min(there))} to {number(max(there))}"
    if value in ([], {}):
        return None
    if isinstance(value, (list, dict)):
        written = json.dumps(value, ensure_ascii=False)
        return written if len(written) <= _MOST_LETTERS else written[: _MOST_LETTERS - 1] + "…"
    return value


# -- of other commands -------------------------------------------------------------------------------------------


def study_parts(study: Table) -> list[Html]:
    """A table that another command has left, with its notes and pictures."""
    rows = [[plain(value) for value in row] for row in study.rows]
    notes = "".join(f"<li>{text(note)}</li>" for note in study.notes)
    listed = [Html(f'<ul class="note">{notes}</ul>')] if notes else []
    drawn = [_picture(p, study.title) for p in study.pictures]
    return [table([plain(c) for c in study.columns], rows, study.name), *listed, *drawn]


def _picture(path: Path, title: str) -> Html:
    kind = _PICTURES.get(path.suffix.lower())
    if kind is None or not path.is_file():
        return paragraph(f"The picture {path.name} is not there, or no PNG, JPEG, GIF or WebP.", "note")
    data = path.read_bytes()
    if len(data) > _LARGEST:
        return paragraph(f"The picture {path.name} has {len(data) / 1e6:.1f} MB, too many for this page.", "note")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return figure(Html(f'<img class="whole" src="{source}" alt="{text(f"{title}: {path.stem}")}">'), path.name)
