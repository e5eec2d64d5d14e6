"""Pieces of a page: text that is escaped, numbers as people read them, tables, figures, the page itself."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from hyco_fem.experiment.report_style import STYLE


class Html(str):
    """Text that is HTML already.  Every other str is escaped when it is put into a page."""

    __slots__ = ()


# Numbers and None are formatted, str is escaped.
Cell: TypeAlias = str | float | int | bool | None

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_DIGITS = 5

# Words in a cell get room in lines of a readable length from so many letters on.
_LONG = 24


def text(value: Cell) -> Html:
    """A cell as HTML; a number keeps all its digits in the attribute of `<data>`."""
    if isinstance(value, Html):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return Html(f'<data value="{value!r}">{number(value)}</data>')
    return Html(html.escape(number(value)))


def number(value: Cell, digits: int = _DIGITS) -> str:
    """A number in so many digits: 0.012346, 1.2346 × 10⁻⁷; a dash where there is none; other text as it is."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) and abs(value) < 10**9:
        return str(value).replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if value == 0 or -4 < power < 6:
        return _short(f"{value:.{max(0, digits - 1 - power)}f}")
    return f"{_short(mantissa)} × 10{superscript(power)}"


def superscript(power: int) -> str:
    """An exponent as raised digits."""
    return str(power).translate(_SUPERSCRIPTS)


def _short(decimals: str) -> str:
    """Without zeros at the end, with a true minus sign."""
    return (decimals.rstrip("0").rstrip(".") if "." in decimals else decimals).replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in words: 0.35 s, 15 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def paragraph(content: Cell, kind: str = "") -> Html:
    """A paragraph, of a class."""
    return Html(f'<p class="{kind}">{text(content)}</p>' if kind else f"<p>{text(content)}</p>")


def table(
    columns: Sequence[Cell],
    rows: Iterable[Sequence[Cell]],
    caption: str,
    *,
    foot: Iterable[Sequence[Cell]] = (),
) -> Html:
    """A table in a box that scrolls sideways where it is too wide; the first entry of a row is its heading.

    Where no column has a name there is no line for them.
    """
    head = "".join(f'<th scope="col">{text(c)}</th>' for c in columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = "".join(map(_row, rows))
    below = "".join(map(_row, foot))
    return Html(
        f'<div class="wide" role="region" aria-label="{html.escape(caption)}" tabindex="0"><table>'
        f"<caption>{html.escape(caption)}</caption>{head}<tbody>{body}</tbody>"
        + (f"<tfoot>{below}</tfoot>" if below else "")
        + "</table></div>"
    )


def _row(row: Sequence[Cell]) -> str:
    return f'<tr><th scope="row">{text(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>'


def _cell(cell: Cell) -> str:
    kind = "num" if not isinstance(cell, str) else "long" if len(cell) > _LONG else ""
    return f'<td class="{kind}">{text(cell)}</td>' if kind else f"<td>{text(cell)}</td>"


def figure(picture: Html, caption: Cell, legend: Html | str = "") -> Html:
    """A picture with what one sees in it."""
    return Html(f"<figure>{picture}{legend}<figcaption>{text(caption)}</figcaption></figure>")


def figures(parts: Iterable[Html]) -> Html:
    """Pictures side by side, as many as fit."""
    return Html(f'<div class="figures">{"".join(parts)}</div>')


# -- the page --------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page in sections, with a list of them at its top.

    title: of the page.  lead: what it is about, in a sentence.  badge: in a word, how it ended.  note: below them.
    """

    title: str
    lead: Html
    badge: str = ""
    note: str = ""
    _sections: list[tuple[str, str, Html]] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def anchor(self, name: str) -> str:
        """A name for an id that no other part of the page has."""
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"
        found, n = base, 1
        while found in self._names:
            n += 1
            found = f"{base}-{n}"
        self._names.add(found)
        return found

    def add(self, heading: str, *parts: Html) -> None:
        """A section; without parts there is none."""
        if parts:
            self._sections.append((self.anchor(heading), heading, Html("\n".join(parts))))

    def html(self, footer: Cell) -> str:
        """The whole page.  It needs nothing from elsewhere, and its policy forbids it."""
        badge = f' <span class="badge">{html.escape(self.badge)}</span>' if self.badge else ""
        listed = "".join(f'<li><a href="#{a}">{html.escape(h)}</a></li>' for a, h, _ in self._sections)
        sections = "\n".join(
            f'<section aria-labelledby="{a}">\n<h2 id="{a}">{html.escape(h)}</h2>\n{body}\n</section>'
            for a, h, body in self._sections
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(self.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{html.escape(self.title)}{badge}</h1>
<p class="lead">{self.lead}</p>
{paragraph(self.note, "note") if self.note else ""}
<nav aria-label="Contents"><ul>{listed}</ul></nav>
</header>
<main>
{sections}
</main>
<footer><p>{text(footer)}</p></footer>
</body>
</html>
"""
