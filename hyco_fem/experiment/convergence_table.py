"""The table of a convergence study: errors with rates, and what they mean at the sensors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from hyco_fem.experiment.findings import Findings
from hyco_fem.experiment.schema import Experiment

# Below this part of the noise the discretisation is no matter at the sensors.
ENOUGH = 0.1

# By how much a rate may fall short of the theory before it is spoken of.
_SLACK = 0.2


@dataclass
class Level:
    """One mesh and degree.  at_sensors, largest: change of u at the sensors over σ, root mean square and largest.

    energy: ‖κ^{1/2}∇(u − u_h)‖.  bound: of it, guaranteed.  error: why there are no numbers.
    """

    level: int
    degree: int
    cells: int = 0
    dofs: int = 0
    h: float = math.nan
    L2: float = math.nan
    H1: float = math.nan
    at_sensors: float = math.nan
    largest: float = math.nan
    energy: float = math.nan
    bound: float = math.nan
    seconds: float = math.nan
    error: str | None = None


def line_of(row: Level) -> str:
    """A level for the log."""
    if row.error is not None:
        return f"level {row.level}, degree {row.degree}: {row.error}"
    return f"level {row.level}, degree {row.degree}: {row.dofs} dofs, L² {row.L2:.3g} ({row.seconds:.1f} s)"


def verdict(rows: list[Level], noise: bool) -> list[str]:
    """Is the mesh of the experiment fine enough?"""
    if not noise:
        return ["the table of sensors has no noise_std: at the sensors the change of u itself is shown"]
    told = []
    for row in rows:
        if row.level or row.error is not None:
            continue
        fine = [r for r in rows if r.degree == row.degree and r.error is None and r.at_sensors <= ENOUGH]
        text = f"degree {row.degree}: discretisation error at the sensors is {row.at_sensors:.2g} σ"
        text += f", {row.largest:.2g} σ at most"
        if row.at_sensors <= ENOUGH:
            told.append(f"{text}: the mesh of the experiment is fine enough")
        elif fine:
            told.append(f"{text}: too coarse; below {ENOUGH:g} σ from level {fine[0].level} on ({fine[0].dofs} dofs)")
        else:
            told.append(f"{text}: too coarse, and so are all levels; more levels, or a higher degree")
    return told


def about_rates(experiment: Experiment, rows: list[Level]) -> list[str]:
    """What may be behind rates that are lower than those of the theory."""
    low = [
        row.degree
        for row, slope, gradient in zip(rows, rates(rows, "L2"), rates(rows, "H1"), strict=True)
        if slope < row.degree + 1 - _SLACK or gradient < row.degree - _SLACK
    ]
    if not low:
        return []
    given = experiment.coefficients.items()
    names = [n for n, c in given if experiment.problem.name and (1 if c.degree is None else c.degree) < max(low)]
    cause = "corners of the domain, among them those of a polygon in place of a curve, lower the rates"
    if names:
        cause += f"; so does interpolating {', '.join(names)} in a lower degree than u (coefficients.*.degree)"
    return [cause]


def rates(rows: list[Level], name: str) -> list[float]:
    """p between a level and the one before it, error ~ 2^(−p level), as a level halves the cells; NaN without one."""
    found = [math.nan]
    for a, b in itertools.pairwise(rows):
        e, f = getattr(a, name), getattr(b, name)
        good = a.degree == b.degree and e > 0 and f > 0
        found.append(math.log2(e / f) / (b.level - a.level) if good else math.nan)
    return found


def findings_of(experiment: Experiment, rows: list[Level], notes: list[str], noise: bool) -> Findings:
    """The table with its notes."""
    over = " / σ" if noise else ""
    columns = ["degree", "level", "cells", "dofs", "h", "L²", "rate", "H¹", "rate"]
    columns += [f"at sensors{over}", f"largest{over}"]
    bounded = any(math.isfinite(row.bound) for row in rows)
    columns += ["energy", "bound"] if bounded else []
    cells: list[list[Any]] = []
    for row, r2, r1 in zip(rows, rates(rows, "L2"), rates(rows, "H1"), strict=True):
        line = [row.degree, row.level, row.cells, row.dofs or None, row.h, row.L2, r2, row.H1, r1]
        line += [row.at_sensors, row.largest]
        cells.append(line + ([row.energy, row.bound] if bounded else []))
    name = experiment.title or experiment.problem.name or experiment.problem.function
    return Findings(f"{name}: how fine must the mesh be?", columns, cells, notes, runs=[vars(row) for row in rows])
