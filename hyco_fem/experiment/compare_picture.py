"""The picture of a comparison: each seed a mark, the median a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hyco_fem.experiment.compare_table import quantile

if TYPE_CHECKING:
    from hyco_fem.experiment.compare_table import Score

# Colour-blind safe (Okabe, Ito): physical, synthetic.
_LOOK = {"physical": ("#0072B2", "o"), "synthetic": ("#D55E00", "D")}


def size_of(scores: list[Score]) -> tuple[float, float]:
    """Of the picture, in inches."""
    return 2.2 + 4.6 * len(_panels(scores, None)), 1.6 + 0.55 * len(scores)


def _panels(scores: list[Score], noise: float | None) -> dict[str, list[str]]:
    """A panel each for sensors left out, u and parameters, with their metrics."""
    misfit = "|u − y|²" if noise is None else "|u − y|²/σ² (dashed: the noise alone)"
    panels = {
        f"misfit at sensors left out, {misfit}": ["misfit_physical", "misfit_synthetic"],
        "relative L² error of u": ["error_physical", "error_synthetic"],
        "relative error of the parameters": ["parameters"],
    }
    return {title: names for title, names in panels.items() if any(n in s.values for s in scores for n in names)}


def draw(figure: Any, scores: list[Score], noise: float | None) -> None:
    """Panels side by side, a row for each method, from the top; noise: the misfit that it leaves, where known."""
    panels = _panels(scores, noise)
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    names = [s.method for s in scores]
    for ax, (title, metrics) in zip(axes, panels.items(), strict=True):
        for row, s in enumerate(scores):
            shown = [m for m in metrics if m in s.values]
            for i, metric in enumerate(shown):
                offset = (i - (len(shown) - 1) / 2) * 0.36
                _marks(ax, row + offset, np.array(s.values[metric]), metric)
        ax.set_xscale("log")
        _widen(ax)
        if noise is not None and "misfit_physical" in metrics:
            ax.axvline(noise, color="0.5", lw=0.8, ls="--", zorder=0)
        ax.set_xlabel(title)
        ax.grid(axis="x", which="major", alpha=0.3)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for ax in axes:
        for row in range(1, len(names)):
            ax.axhline(row - 0.5, color="0.85", lw=0.6, zorder=0)
    _legend(figure, scores)


def _marks(ax: Any, y: float, values: np.ndarray, metric: str) -> None:
    colour, marker = _LOOK["synthetic" if metric.endswith("synthetic") else "physical"]
    finite = values[np.isfinite(values)]
    spread = 0.1 * (np.arange(len(finite)) / max(1, len(finite) - 1) - 0.5)
    ax.plot(finite, y + spread, marker, ms=4.5, alpha=0.7, color=colour, mew=0)
    middle = quantile(values, 0.5)
    if np.isfinite(middle):
        ax.plot([middle] * 2, [y - 0.15, y + 0.15], color="black", lw=1.5, zorder=1.5)
    failed = len(values) - len(finite)
    if failed:
        ax.annotate(
            f"{failed} failed", (0.99, y), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8
        )


def _widen(ax: Any) -> None:
    """A factor of five at least, and numbers that do not run into each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_xlim()
    if high < 5.0 * low:
        middle = np.sqrt(low * high)
        low, high = middle / np.sqrt(5.0), middle * np.sqrt(5.0)
        ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, scores: list[Score]) -> None:
    from matplotlib.lines import Line2D

    kinds = [k for k in _LOOK if any(m.endswith(k) for s in scores for m in s.values)]
    handles = [Line2D([], [], color=_LOOK[k][0], marker=_LOOK[k][1], ls="", label=f"{k} model") for k in kinds]
    handles.append(Line2D([], [], color="black", lw=1.5, label="median"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
