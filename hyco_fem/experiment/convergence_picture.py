"""The picture of a convergence study: errors against the size of cells, with the slopes of the theory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hyco_fem.experiment.convergence_table import Level

# Colour-blind safe (Okabe, Ito); one for each degree.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw(figure: Any, rows: list[Level], noise: bool) -> None:
    """Left the norms of the error, right the change at the sensors."""
    left, right = figure.subplots(1, 2)
    good = [row for row in rows if row.error is None]
    for i, degree in enumerate(sorted({row.degree for row in good})):
        own = [row for row in good if row.degree == degree]
        h = np.array([0.5**row.level for row in own])
        colour = _COLOURS[i % len(_COLOURS)]
        for name, label, marker, style, rate in (
            ("H1", "‖∇(u − u_h)‖", "s", "--", degree),
            ("L2", "‖u − u_h‖", "o", "-", degree + 1),
        ):
            e = np.array([getattr(row, name) for row in own])
            left.plot(h, e, style, marker=marker, color=colour, ms=5, lw=1.4, label=f"{label}, degree {degree}")
            _triangle(left, h, e, rate, colour)
        bounds = np.array([row.bound for row in own])
        if np.isfinite(bounds).any():
            left.plot(h, bounds, ":", marker="v", color="black", ms=5, label="guaranteed bound of the energy norm")
        right.plot(
            h, [row.at_sensors for row in own], "-o", color=colour, ms=5, label=f"degree {degree}, root mean square"
        )
        right.plot(h, [row.largest for row in own], ":", color=colour, label=f"degree {degree}, largest")
    if noise:
        right.axhline(1.0, color="0.4", lw=0.9, ls="--")
        right.annotate("the noise, σ", (0.02, 1.0), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("size of cells over that of the experiment")
        ax.grid(which="major", alpha=0.3)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    _ticks(left, right, sorted({row.level for row in good}))
    left.set_ylabel("error")
    right.set_ylabel("change of u at the sensors" + (" / σ" if noise else ""))


def _ticks(left: Any, right: Any, levels: list[int]) -> None:
    """The sizes themselves: a decade of them has one tick or none."""
    from matplotlib.ticker import NullFormatter, NullLocator

    for ax in (left, right):
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xticks([0.5**k for k in levels], [f"1/{2**k}" if k else "1" for k in levels])


def _triangle(ax: Any, h: np.ndarray, e: np.ndarray, rate: int, colour: str) -> None:
    """The slope of the theory below the last two points."""
    if len(h) < 2 or not (np.isfinite(e[-2:]).all() and (e[-2:] > 0).all()):
        return
    a, b = h[-1] * (h[-2] / h[-1]) ** 0.15, h[-1] * (h[-2] / h[-1]) ** 0.85
    base = 0.55 * e[-1] * (a / h[-1]) ** min(rate, np.log(e[-2] / e[-1]) / np.log(h[-2] / h[-1]))
    top = base * (b / a) ** rate
    ax.plot([a, b, b, a], [base, base, top, base], "-", color=colour, lw=0.8, alpha=0.8)
    ax.annotate(str(rate), (b, np.sqrt(base * top)), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
