"""Curves as SVG: text stays text, and colours are those of the page, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hyco_fem.experiment.report_html import Cell, Html, number, superscript, text

# In units of the drawing, which is shown a little smaller or larger.
WIDTH, HEIGHT = 400.0, 235.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 17.0, 34.0

# Dashes tell curves apart where colours do not.
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 1 2 1 2")
STYLES = len(_DASHES)

# Of a letter on an axis: about its width.  From so many steps from zero on, ticks are told by what they have more.
_LETTER, _FAR = 6.5, 1e4

# A curve keeps the least and the largest of its values in so many parts.
_PARTS = 180


@dataclass(frozen=True, eq=False)
class Curve:
    """y over x, both (n,); style: colour and dashes, by number; thin: one of many."""

    x: np.ndarray
    y: np.ndarray
    label: Cell = ""
    style: int = 0
    thin: bool = False


@dataclass(frozen=True)
class Scale:
    """From numbers to places on the drawing.  low, high: ends of the axis.  start, end: where they are drawn."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: Any) -> np.ndarray:
        """Places of values."""
        v, low, high = (np.asarray(e, float) for e in (values, self.low, self.high))
        part = np.log(v / low) / np.log(high / low) if self.log else (v - low) / (high - low)
        return self.start + part * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers on the axis."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        found = np.array([])
        if self.log:
            for subs in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
                found = np.asarray(LogLocator(subs=subs, numticks=most + 1).tick_values(self.low, self.high))
                found = found[(found >= self.low) & (found <= self.high)]
                if len(found) > 2:
                    return list(found)
        if len(found) < 2:
            found = np.asarray(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high))
        slack = 1e-9 * (self.high - self.low)
        return [t for t in found if self.low - slack <= t <= self.high + slack]


def scale(values: Sequence[np.ndarray], start: float, end: float, *, log: bool = False, margin: float = 0.04) -> Scale:
    """An axis for all finite (on a log axis: positive) values, with a margin."""
    every = np.concatenate([np.ravel(v) for v in values]) if values else np.array([])
    every = every[np.isfinite(every) & ((every > 0) | (not log))]
    low, high = (float(every.min()), float(every.max())) if len(every) else (1.0, 10.0)
    if log:
        if high < 1.5 * low:
            low, high = low / 2.0, high * 2.0
        grow = (high / low) ** margin
        return Scale(low / grow, high * grow, start, end, True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        size = 0.5 * abs(low) or 0.5
        return Scale(low - size, high + size, start, end)
    size = margin * (high - low)
    return Scale(low - size, high + size, start, end)


def labels(ticks: Sequence[float], log: bool = False) -> tuple[list[str], str]:
    """Ticks as short texts, and what all of them are to be multiplied by, or have to be added.

    On a log axis all are powers of ten, or none is.
    """
    if log:
        shown = [number(float(t), 3) for t in ticks]
        return ([_power(t) for t in ticks] if any("×" in text for text in shown) else shown), ""
    step = min((b - a for a, b in pairwise(ticks)), default=0.0)
    largest = max(map(abs, ticks), default=0.0)
    if not step > 0 or not largest > 0:
        return [number(float(t), 3) for t in ticks], ""
    if largest > _FAR * step:
        return labels([t - ticks[0] for t in ticks])[0], f"+ {ticks[0]:.12g}"
    power = math.floor(math.log10(largest))
    unit, note = (1.0, "") if -3 <= power < 5 else (10.0**power, f"× 10{superscript(power)}")
    digits = 2 + max(0, math.ceil(math.log10(largest / step)))
    # A sum of steps may miss zero by rounding.
    return [number(0.0 if abs(t) < 1e-9 * largest else float(t) / unit, digits) for t in ticks], note


def _power(value: float) -> str:
    power = math.floor(math.log10(value) + 1e-9)
    factor = number(value / 10.0**power, 3)
    return f"{'' if factor == '1' else f'{factor} × '}10{superscript(power)}"


def _fitting(axis: Scale, sideways: bool) -> tuple[list[float], list[str], str]:
    """Ticks with their labels, as many as have room."""
    length = abs(axis.end - axis.start)
    for most in (5, 4, 3, 2, 1):
        ticks = axis.ticks(most)
        names, note = labels(ticks, axis.log)
        each = _LETTER * max(map(len, names), default=0) + 8.0 if sideways else 24.0
        if len(ticks) * each <= length + 0.5 * each:
            break
    return ticks, names, note


def axes(x: Scale, y: Scale, x_label: str = "", y_label: str = "") -> str:
    """Frame, ticks and labels; y.end is the upper end."""
    lines, words = [], []
    ticks, names, note = _fitting(x, True)
    for t, name in zip(ticks, names, strict=True):
        place = float(x(t))
        lines.append(f"M{place:.1f} {y.start:.1f}v4")
        words.append(f'<text x="{place:.1f}" y="{y.start + 17:.1f}" text-anchor="middle">{name}</text>')
    middle = 0.5 * (x.start + x.end)
    words.append(
        f'<text x="{middle:.1f}" y="{y.start + 31:.1f}" text-anchor="middle">{html.escape(_with(x_label, note))}</text>'
    )
    ticks, names, note = _fitting(y, False)
    for t, name in zip(ticks, names, strict=True):
        place = float(y(t))
        lines.append(f"M{x.start:.1f} {place:.1f}h-4")
        words.append(f'<text x="{x.start - 7:.1f}" y="{place + 4:.1f}" text-anchor="end">{name}</text>')
    if y_label or note:
        turned = f"translate(12 {0.5 * (y.start + y.end):.1f}) rotate(-90)"
        words.append(f'<text transform="{turned}" text-anchor="middle">{html.escape(_with(y_label, note))}</text>')
    box = f'<rect class="frame" x="{x.start:.1f}" y="{y.end:.1f}" width="{x.end - x.start:.1f}"'
    box += f' height="{y.start - y.end:.1f}"/>'
    return f'{box}<path class="frame" d="{"".join(lines)}"/>{"".join(words)}'


def _with(label: str, note: str) -> str:
    return f"{label} ({note})" if label and note else label or note


def colour_axis(bar: Scale, left: float) -> str:
    """Ticks to the right of a bar of colours."""
    ticks, names, note = _fitting(bar, False)
    words = [
        f'<text x="{left:.1f}" y="{float(bar(t)) + 4:.1f}">{name}</text>' for t, name in zip(ticks, names, strict=True)
    ]
    if note:
        words.append(f'<text x="{left - 16:.1f}" y="{bar.end - 8:.1f}">{note}</text>')
    return "".join(words)


def drawing(content: str, describe: str, height: float = HEIGHT) -> Html:
    """An SVG that says in words what it shows."""
    return Html(
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{html.escape(describe)}">{content}</svg>'
    )


def curve_plot(
    curves: Sequence[Curve],
    describe: str,
    *,
    x_label: str = "round",
    log: bool = False,
    level: float | None = None,
    points: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
) -> Html:
    """Curves in one frame.

    Args:
        log: y on a log axis, where what is not positive is left out.
        level: A dotted line at this y.
        points: x, y and, or None, half the length of their error bars.
    """
    kept = [c if not log else Curve(c.x[c.y > 0], c.y[c.y > 0], c.label, c.style, c.thin) for c in curves]
    all_x, all_y = [c.x for c in kept], [c.y for c in kept]
    if points is not None:
        px, py, bar = points
        all_x, all_y = [*all_x, px], [*all_y, py if bar is None else np.concatenate([py - bar, py + bar])]
    if level is not None:
        all_y.append(np.array([level]))
    x = scale(all_x, LEFT, WIDTH - RIGHT, margin=0.0)
    y = scale(all_y, HEIGHT - BOTTOM, TOP, log=log)
    parts = [axes(x, y, x_label)]
    if level is not None:
        parts.append(f'<path class="level" d="M{x.start:.1f} {float(y(level)):.1f}H{x.end:.1f}"/>')
    parts += [_path(c, x, y) for c in kept]
    if points is not None:
        parts += [_with_bar(*place) for place in zip(x(px), y(py), *_ends(y, py, bar), strict=True)]
    return drawing("".join(parts), describe)


def _ends(y: Scale, py: np.ndarray, bar: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    half = np.zeros_like(py) if bar is None else bar
    return y(py - half), y(py + half)


def _with_bar(x: float, y: float, low: float, high: float) -> str:
    bar = f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}"/>' if low - high > 0.5 else ""
    return f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="var(--ink)"/>'


def _path(curve: Curve, x: Scale, y: Scale) -> str:
    good = np.isfinite(curve.x) & np.isfinite(curve.y)
    px, py = thinned(x(curve.x[good]), y(curve.y[good]))
    if len(px) == 1:
        return f'<circle cx="{px[0]:.1f}" cy="{py[0]:.1f}" r="3" fill="var(--c{curve.style % STYLES})"/>'
    places = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, py, strict=True))
    return f'<path class="curve{" thin" if curve.thin else ""}" {_stroke(curve)} d="M{places}"/>' if len(px) else ""


def _stroke(curve: Curve) -> str:
    k = curve.style % STYLES
    dashes = f' stroke-dasharray="{_DASHES[k]}"' if _DASHES[k] and not curve.thin else ""
    return f'stroke="var(--c{k})"{dashes}'


def thinned(x: np.ndarray, y: np.ndarray, parts: int = _PARTS) -> tuple[np.ndarray, np.ndarray]:
    """A curve with fewer points that looks the same: first and last, least and largest of each part."""
    n = len(x)
    if n <= 2 * parts + 2:
        return x, y
    edges = np.linspace(0, n, parts + 1).astype(int)
    kept = [0, n - 1]
    for a, b in pairwise(edges):
        kept += [a + int(np.argmin(y[a:b])), a + int(np.argmax(y[a:b]))]
    chosen = np.unique(kept)
    return x[chosen], y[chosen]


def legend(curves: Sequence[Curve]) -> Html:
    """The names of curves with a piece of each."""
    items = "".join(
        f'<li><svg viewBox="0 0 32 11" aria-hidden="true"><path class="curve" {_stroke(c)} d="M0 6H32"/></svg>'
        f"{text(c.label)}</li>"
        for c in curves
    )
    return Html(f'<ul class="legend">{items}</ul>')
