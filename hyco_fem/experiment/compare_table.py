"""The table of a comparison: medians and quartiles over seeds, failures counted, and the sentences below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyco_fem.experiment.findings import Findings, shown
from hyco_fem.experiment.methods import METHODS
from hyco_fem.experiment.truth import TruthTable

# What a method is judged by, with the words for it.
METRICS = {
    "misfit_physical": "misfit physical",
    "misfit_synthetic": "misfit synthetic",
    "error_physical": "error physical",
    "error_synthetic": "error synthetic",
    "parameters": "parameters",
}


@dataclass
class Score:
    """What a method has done over its seeds.  values: by metric one number a seed, infinite where it failed."""

    method: str
    values: dict[str, list[float]] = field(default_factory=dict)
    runs: int = 0
    failed: int = 0
    solves: float = math.nan
    seconds: float = math.nan

    def quartiles(self, metric: str) -> list[float] | None:
        """First quartile, median and third quartile; None where the method does not give it."""
        found = self.values.get(metric)
        return [quantile(found, q) for q in (0.25, 0.5, 0.75)] if found else None


def quantile(values: Sequence[float] | np.ndarray, q: float) -> float:
    """Between two values the mean by distance; where some are infinite the larger one."""
    return float(np.quantile(values, q, method="linear" if np.isfinite(values).all() else "higher"))


def score(name: str, records: list[dict[str, Any]], compared: bool) -> Score:
    """The numbers of a method from its records: of all that it could have, infinite where it failed.

    compared: whether there are errors of the parameters.
    """
    method = METHODS[name]
    result = Score(name, runs=len(records), failed=sum(r["error"] is not None for r in records))
    for metric in METRICS:
        judged = [r for r in records if (r["held"] is None) != metric.startswith("misfit")]
        able = method.synthetic if metric.endswith("synthetic") else method.physical
        if not (judged and able and (compared or metric != "parameters")):
            continue
        result.values[metric] = [
            _mean([r for r in judged if r["seed"] == seed], metric) for seed in sorted({r["seed"] for r in judged})
        ]
    result.seconds = float(np.median([r["seconds"] for r in records]))
    result.solves = float(np.median([r["solves"] for r in records]))
    return result


def _mean(records: list[dict[str, Any]], metric: str) -> float:
    """Over the sensors of all folds; infinite where one of them failed."""
    if any(metric not in r for r in records):
        return math.inf
    weights = [r["held"] or 1 for r in records]
    return float(np.average([r[metric] for r in records], weights=weights))


def findings_of(title: str, scores: list[Score], notes: list[str], records: list[dict[str, Any]]) -> Findings:
    """The table with its notes."""
    metrics = [m for m in METRICS if any(m in s.values for s in scores)]
    columns = ["method", *(METRICS[m] for m in metrics), "failed", "solves", "seconds"]
    rows: list[list[Any]] = []
    for s in scores:
        cells = [_text(s.quartiles(m)) for m in metrics]
        rows.append([s.method, *cells, f"{s.failed} of {s.runs}", f"{s.solves:.0f}", f"{s.seconds:.1f}"])
    return Findings(title, columns, rows, notes, runs=records)


def _text(quartiles: list[float] | None) -> str:
    """Median (quartiles)."""
    if quartiles is None:
        return "–"
    low, middle, high = map(shown, quartiles)
    return middle if low == high else f"{middle} ({low} to {high})"


def numbers(scores: list[Score]) -> tuple[list[str], list[list[Any]]]:
    """The table for programs: quartiles in columns of their own."""
    metrics = [m for m in METRICS if any(m in s.values for s in scores)]
    names = [f"{m}_{q}" for m in metrics for q in ("q1", "median", "q3")]
    rows: list[list[Any]] = [
        [s.method, *(q for m in metrics for q in s.quartiles(m) or (None,) * 3), s.runs, s.failed, s.solves, s.seconds]
        for s in scores
    ]
    return ["method", *names, "runs", "failed", "solves", "seconds"], rows


def listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def notes_of(
    scores: list[Score],
    records: list[dict[str, Any]],
    out: dict[str, str],
    seeded: dict[str, int],
    seeds: int,
    folds: int,
    table: TruthTable | None,
    rule: str | None,
    noise: float | None,
) -> list[str]:
    """Sentences below the table.

    records: of all runs.  out: why methods are left out.  seeded: how many seeds each method was run with, of `seeds`.
    noise: the misfit that it leaves, None where it is not known.
    """
    unit = "|u − y|² (there is no noise_std)" if noise is None else f"|u − y|²/σ², {noise:g} for the noise alone"
    notes = [f"misfit: mean of {unit}, at sensors left out, in {folds} folds"] if folds else []
    if table is not None:
        notes.append(f"error: relative L² error of u, truth on {table.described()}; parameters: relative error")
    notes.append(
        f"medians (quartiles) over {seeds} seed{'s' * (seeds > 1)}, a failure is ∞; solves, seconds: of one run"
    )
    once = [name for name, n in seeded.items() if n < seeds]
    notes += [f"{', '.join(once)}: once, as no seed has a say"] if once else []
    notes += [f"{s.method}: {METHODS[s.method].text}" for s in scores]
    notes += [rule] if rule else []
    notes += [f"{name} left out: {reason}" for name, reason in out.items()]
    for r in records:
        if r["error"]:
            notes.append(f"failed: {r['method']}, seed {r['seed']}, {r['part'].partition(',')[0]}: {r['error']}")
    return notes
