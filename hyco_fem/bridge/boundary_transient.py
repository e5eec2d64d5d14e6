"""Boundary conditions at points and at several times: those of boundary.py, with what in them depends on time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor
from ufl.algorithms.analysis import extract_coefficients, extract_constants
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.bridge.boundary import (
    FixedValues,
    NaturalPoints,
    exterior_facets,
    facet_rule,
    free_components,
    named_facets,
    natural_points,
    spread,
)
from hyco_fem.bridge.interpolate import Part
from hyco_fem.parallel import agreed
from hyco_fem.pde.dirichlet import fixed_dofs
from hyco_fem.pde.evolution import TransientProblem, setters
from hyco_fem.pde.problem import Condition, Dirichlet, Flux


class Clock:
    """Sets the time of a problem, with all that it has as functions of time.  Construction is collective."""

    def __init__(self, problem: TransientProblem) -> None:
        self.t = problem.t
        with agreed(problem.u.function_space.mesh.comm):
            self._setters = setters(problem.time_values, problem.t)

    def set(self, time: float) -> None:
        """Collective."""
        self.t.value = time
        for g, set_at in self._setters.items():
            set_at(g, time)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put back the time, and what depends on it, at the end."""
        time, arrays = float(self.t.value), [g.x.array.copy() for g in self._setters]
        try:
            yield
        finally:
            self.t.value = time
            for g, array in zip(self._setters, arrays, strict=True):
                g.x.array[:] = array

    def depends(self, value: Any) -> bool:
        """Whether a UFL expression changes with time."""
        if not isinstance(value, Expr):
            return False
        return self.t in extract_constants(value) or any(f in self._setters for f in extract_coefficients(value))


@dataclass
class FixedInTime:
    """The Dirichlet dofs at several times, one time after the other; see `FixedValues`."""

    x: Tensor
    columns: Tensor
    values: Tensor
    n_global: int
    unknown: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


class BoundaryInTime:
    """The boundary conditions of a transient problem, to be had at several times together.

    Args:
        problem: The problem.  parts: those of its unknown that have a flux.
        chosen: Which components of each part a natural condition is looked at for.
        conditions, unknown, degree: As for `natural_points`.

    Attributes:
        natural: Of each part, `NaturalPoints` at the time that the problem shows.  clock: sets its time.

    Raises:
        ValueError, TypeError: As `natural_points` and `pde.evolution.setters`; on all ranks.

    Collective.
    """

    def __init__(
        self,
        problem: TransientProblem,
        parts: Sequence[Part],
        chosen: Sequence[Sequence[bool]],
        conditions: Sequence[Condition],
        unknown: Collection[str],
        degree: int,
    ) -> None:
        self.problem, self.clock = problem, Clock(problem)
        self.natural: list[NaturalPoints] = []
        self._moving: list[list[_Moving]] = []
        for part, some in zip(parts, chosen, strict=True):
            points = natural_points(problem, part, conditions, unknown, degree)
            points.free *= torch.tensor(list(some), dtype=torch.float64)
            self.natural.append(points)
            self._moving.append(_moving(self.clock, problem, part, conditions, unknown, degree))
        dofmap, fixed = problem.u.function_space.dofmap, fixed_dofs(problem.bcs)
        self._fixed_rows = fixed[fixed < dofmap.index_map.size_local * dofmap.index_map_bs]

    def at(self, fixed: FixedValues, times: np.ndarray) -> tuple[FixedInTime, list[NaturalPoints]]:
        """All Dirichlet dofs and all natural points at these times; the problem is left as it was.  Collective.

        fixed: those of the problem at one time.
        """
        values, data = [], []
        with self.clock.kept():
            for t in times:
                self.clock.set(float(t))
                values.append(self._fixed_values())
                data.append([_at_time(at, moving) for at, moving in zip(self.natural, self._moving, strict=True)])
        sizes = {name: int(np.prod(self.problem.coefficients[name].ufl_shape, dtype=int)) for name in fixed.unknown}
        return _fixed_in_time(fixed, times, values, sizes), [
            _natural_in_time([at_t[i] for at_t in data], times) for i in range(len(self.natural))
        ]

    def _fixed_values(self) -> Tensor:
        """Dirichlet values at the owned fixed dofs, at the time that the clock shows."""
        u = self.problem.u.x.array.copy()
        for bc in self.problem.bcs:
            bc.set(u)
        return torch.from_numpy(u[self._fixed_rows])


def joined(x: Tensor, t: Tensor) -> Tensor:
    """z = (x, t), (n, d + 1)."""
    return torch.cat([x, t[:, None]], dim=1)


# -- natural conditions that depend on time ------------------------------------------------------------------------


@dataclass
class _Moving:
    """A datum of a natural condition that depends on time, at some rows of the points."""

    target: str
    rows: Tensor
    expression: fem.Expression
    mesh: dmesh.Mesh
    cells: np.ndarray
    slots: np.ndarray
    n_points: int

    def evaluate(self) -> np.ndarray:
        """At the time that the clock shows."""
        n = len(self.cells)
        if n == 0:
            return np.empty(0)
        found = np.asarray(self.expression.eval(self.mesh, self.cells))
        return found.reshape(n, self.n_points, -1)[np.arange(n), self.slots]


def _moving(
    clock: Clock,
    problem: TransientProblem,
    part: Part,
    conditions: Sequence[Condition],
    unknown: Collection[str],
    degree: int,
) -> list[_Moving]:
    """The data of the natural conditions that change, at the points of `natural_points`.  Collective."""
    chosen: list[tuple[Condition, str, Any]] = []
    for c in conditions:
        if isinstance(c, Dirichlet):
            continue
        pairs = [("g", c.value)] if isinstance(c, Flux) else [("h", c.coefficient), ("a", c.ambient)]
        # An unknown coefficient has its values from its module.
        chosen += [
            (c, target, value)
            for target, value in pairs
            if clock.depends(value) and not (isinstance(value, fem.Function) and value.name in unknown)
        ]
    if not chosen:
        return []
    mesh = problem.u.function_space.mesh
    facets, cells, numbers = exterior_facets(mesh)
    some = free_components(problem, part, cells, numbers).any(axis=1)
    facets, cells, numbers = facets[some], cells[some], numbers[some]
    rule = facet_rule(mesh, cells, numbers, degree)
    made = []
    for c, target, value in chosen:
        rows = np.flatnonzero(np.isin(facets, named_facets(mesh, c.facets))[rule.facet])
        places = cells[rule.facet[rows]].astype(np.int32)
        expression = _compat.expression(value, rule.X, mesh)
        made.append(_Moving(target, torch.from_numpy(rows), expression, mesh, places, rule.slot[rows], len(rule.X)))
    return made


def _at_time(at: NaturalPoints, moving: Sequence[_Moving]) -> NaturalPoints:
    """What the natural conditions ask at the time that the clock shows."""
    if not moving:
        return at
    at = replace(at, g=at.g.clone(), h=at.h.clone(), a=at.a.clone())
    for m in moving:
        into = getattr(at, m.target)
        into[m.rows] = spread(torch.from_numpy(m.evaluate()), into[m.rows].shape)
    return at


# -- several times together ----------------------------------------------------------------------------------------


def _at_times(x: Tensor, times: np.ndarray) -> Tensor:
    """All of x at the first time, then all of it at the second, …"""
    return joined(x.repeat(len(times), 1), torch.from_numpy(times).repeat_interleave(len(x)))


def _fixed_in_time(
    fixed: FixedValues, times: np.ndarray, values: Sequence[Tensor], sizes: Mapping[str, int]
) -> FixedInTime:
    """sizes: how many values the unknown coefficients have at a point."""
    k, n = len(times), len(fixed.x)
    unknown = {}
    for name, (rows, x, places) in fixed.unknown.items():
        steps, wide = torch.arange(k)[:, None], len(x) * sizes[name]
        unknown[name] = (rows + n * steps).ravel(), _at_times(x, times), (places + wide * steps).ravel()
    return FixedInTime(
        _at_times(fixed.x, times), fixed.columns.repeat(k), torch.cat(list(values)), fixed.n_global * k, unknown
    )


def _natural_in_time(at: Sequence[NaturalPoints], times: np.ndarray) -> NaturalPoints:
    first, k = at[0], len(times)
    n = len(first.x)
    return NaturalPoints(
        _at_times(first.x, times),
        first.normals.repeat(k, 1),
        first.weights.repeat(k) / k,
        first.free.repeat(k, 1),
        torch.cat([a.g for a in at]),
        torch.cat([a.h for a in at]),
        torch.cat([a.a for a in at]),
        [(target, (rows + n * torch.arange(k)[:, None]).ravel(), name) for target, rows, name in first.unknown],
    )
