"""A physics-informed network for a transient problem: one network of (x, t), all times at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn
from ufl.algorithms.analysis import extract_coefficients, extract_constants
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.bridge.boundary import (
    NaturalPoints,
    _free_components,
    _rule,
    exterior_facets,
    named_facets,
    natural_points,
)
from hyco_fem.bridge.ghosts import DofGhosts, GhostPoints, check_whole
from hyco_fem.bridge.interpolate import Interpolant, Part
from hyco_fem.game.data import Data
from hyco_fem.game.informed import InformedRecord
from hyco_fem.game.losses import network_values
from hyco_fem.game.pinn import PINN, Fixed, is_transient
from hyco_fem.game.player import Look
from hyco_fem.models.strong import Coefficient, StrongForm
from hyco_fem.models.strong_transient import (
    TransientStrongForm,
    at_space_time,
    check_inputs,
    evaluate_in_time,
    transient_flux,
    transient_strong_form,
)
from hyco_fem.parallel import agreed, sum_array
from hyco_fem.pde.dirichlet import fixed_dofs
from hyco_fem.pde.problem import Condition, Dirichlet, Flux

# Streams of random times, beside those of the points in space.
_TIMES, _BOUNDARY_TIMES = 2, 3


@dataclass(frozen=True)
class TransientInformedRecord(InformedRecord):
    """An `InformedRecord` in time.  initial: mean square by which the initial value is missed."""

    initial: float = math.nan


class TransientPINN(PINN):
    """min over φ and θ of  a L_syn + b Σ_c ω_c |r(x_c, t_c)|² + c B + e mean |u(x, t₀) − u₀|².

    r is the strong residual in time, with derivatives by x and t of one network of (x, t).  Collocation points are
    those of the sampler, each at a time that is uniform in [t₀, T]: uniform in Ω × [t₀, T] with RandomGhosts.  The
    boundary term is that of a steady problem at `boundary_times` times, one in each of as many equal parts of [t₀, T];
    Dirichlet values, fluxes and ambient values may depend on time as those of the problem do.  The initial value is
    asked for at the dof points.  Times are drawn anew every round, unless the sampler is fixed.

    Args, beside those of `PINN`:
        problem: A TransientProblem.
        synthetic: The network, of d + 1 columns, time last: `hyco_fem.MLP(d + 1, …)`.
        coefficients: Numbers and functions of x, (n, d); one of (x, t), (n, d + 1), is marked by `InTime(…)`.
        data: At SpaceTimePoints in the interval.
        weights: `PINNWeights(initial=e)`.
        interval: (t₀, T).
        initial: u₀, where it is not the problem's own: a number, UFL expression, Function, or a function of x in torch;
            a module's parameters are unknown, and found with θ.
        boundary_times: How many times each round has on the boundary.
    """

    # -- checks ----------------------------------------------------------------------------------------------

    def _check_problem(self, problem: Any) -> None:
        if not is_transient(problem):
            raise TypeError(
                f"TransientPINN needs a TransientProblem, hyco_fem.catalogue.heat(…), not {type(problem).__name__}"
            )

    def _check_time(self, interval: Any, initial: Any, boundary_times: int, data: Data | None) -> None:
        name, d = self.problem.name, self.problem.u.function_space.mesh.geometry.dim
        if interval is None:
            raise ValueError(f"{name} is a transient problem: say from when to when, PINN(…, interval=(t0, T))")
        try:
            start, end = (float(value) for value in interval)
        except (TypeError, ValueError):
            raise TypeError(f"interval must be a pair of numbers (t0, T), not {interval!r}") from None
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(f"the interval ({start:g}, {end:g}) must be finite, and end after it starts")
        check_whole("boundary_times", boundary_times, 1)
        self.interval, self._n_times = (start, end), boundary_times
        self._initial = self.problem.initial if initial is None else initial
        if self._initial is None:
            raise ValueError(f"{name} has no initial value; pass PINN(…, initial=…)")
        if data is None:
            return
        z = data.points.x
        if z.shape[1] != d + 1:
            raise ValueError(
                f"the data of {name} are at points of {z.shape[1]} coordinates; a transient problem needs them at "
                "(x, t): hyco_fem.SpaceTimePoints(mesh, x, t)"
            )
        slack = 1e-9 * (end - start)
        late = torch.nonzero((z[:, d] < start - slack) | (z[:, d] > end + slack))
        if len(late):
            row = int(late[0, 0])
            raise ValueError(
                f"sensor {data.points.index[row]} is at time {float(z[row, d]):g}, outside the interval from "
                f"{start:g} to {end:g}"
            )

    def _strong_form(self, name: str) -> StrongForm:
        return transient_strong_form(name)

    def _check_strong(self) -> None:
        if not isinstance(self.strong, TransientStrongForm):
            raise TypeError(
                f"strong is a {type(self.strong).__name__}; a transient problem needs a TransientStrongForm, which "
                "has the terms in ∂u/∂t"
            )

    def _try(self, network: nn.Module, d: int, coefficients: Mapping[str, Coefficient]) -> None:
        check_inputs(network, d)
        z = torch.zeros(1, d + 1, dtype=torch.float64)
        z[:, d] = self.interval[0]
        evaluate_in_time(self.strong, network, z, coefficients)  # type: ignore[arg-type]

    def _changes(self, f: fem.Function) -> bool:
        return any(f is g for g in _time_values(self.problem))

    def _how_to_give(self, missing: Sequence[str]) -> str:
        return (
            f"the strong form of {self.problem.name} needs {', '.join(map(repr, missing))} as functions: "
            f"coefficients={{{missing[0]!r}: lambda x: …}}, or InTime(lambda z: …) of z = (x, t), or a number; the "
            "problem has them as UFL expressions, as Functions that are set in time, or as finite element fields that "
            "cannot be differentiated"
        )

    # -- points ----------------------------------------------------------------------------------------------

    def _round(self, number: int) -> int:
        """The round whose times are drawn: where points are fixed, the times are too."""
        return 0 if getattr(self._collocation, "fixed", False) else number

    def _places(self, points: GhostPoints, number: int) -> Tensor:
        start, end = self.interval
        seed = getattr(self._collocation, "seed", 0)
        # A time for each row of all ranks' points, so that it does not depend on who owns it.
        times = np.random.default_rng((seed, self._round(number), _TIMES)).random(points.n)[points.index]
        return _joined(points.x, torch.from_numpy(start + (end - start) * times))

    def boundary_times(self, number: int) -> np.ndarray:
        """The times of the boundary terms of a round, ascending."""
        start, end = self.interval
        k = self._n_times
        seed = getattr(self._collocation, "seed", 0)
        rng = np.random.default_rng((seed, self._round(number), _BOUNDARY_TIMES))
        return start + (end - start) * (np.arange(k) + rng.random(k)) / k

    def _natural_points(
        self, interpolant: Interpolant, conditions: Sequence[Condition], degree: int
    ) -> list[NaturalPoints]:
        """At one time.  Collective."""
        form: TransientStrongForm = self.strong  # type: ignore[assignment]
        k = interpolant.components
        rows = list(form.natural or range(k))
        self._parts = [
            p for p in interpolant.parts if any(r is not None for r in rows[p.first : p.first + p.components])
        ]
        self._rows = [rows[p.first : p.first + p.components] for p in self._parts]
        self._clock = _Clock(self.problem)
        made = []
        self._moving: list[list[_Moving]] = []
        for part, chosen in zip(self._parts, self._rows, strict=True):
            points = natural_points(self.problem, part, conditions, self._modules, degree)
            points.free *= torch.tensor([r is not None for r in chosen], dtype=torch.float64)
            made.append(points)
            self._moving.append(self._clock.moving(part, conditions, self._modules, degree))
        self._fixed_rows = _owned_fixed(self.problem)
        self._shown: tuple[int, tuple[Fixed, list[NaturalPoints]]] | None = None
        return made

    def _boundary(self, number: int) -> tuple[Fixed, list[NaturalPoints]]:
        drawn = self._round(number)
        if self._shown is None or self._shown[0] != drawn:
            self._shown = drawn, self._draw_boundary(self.boundary_times(number))
        return self._shown[1]

    def _draw_boundary(self, times: np.ndarray) -> tuple[Fixed, list[NaturalPoints]]:
        fixed, natural = self._fixed, self._natural
        values, data = [], []
        with self._clock.kept():
            for t in times:
                self._clock.set(float(t))
                values.append(self._clock.fixed(self._fixed_rows) if self._clock.values else fixed.values)
                data.append([self._at_time(at, moving) for at, moving in zip(natural, self._moving, strict=True)])
        sizes = {name: int(np.prod(self.problem.coefficients[name].ufl_shape, dtype=int)) for name in fixed.unknown}
        return _fixed_in_time(fixed, times, values, sizes), [
            _natural_in_time([at_t[i] for at_t in data], times) for i in range(len(natural))
        ]

    def _at_time(self, at: NaturalPoints, moving: Sequence[_Moving]) -> NaturalPoints:
        """What the natural conditions ask at the time that the clock shows."""
        if not moving:
            return at
        at = replace(at, **{name: getattr(at, name).clone() for name in "gha"})
        for m in moving:
            into = getattr(at, m.target)
            into[m.rows] = torch.from_numpy(m.evaluate()).reshape(into[m.rows].shape)
        return at

    # -- objective -------------------------------------------------------------------------------------------

    def _residual(self, x: Tensor, coefficients: Mapping[str, Coefficient]) -> tuple[Tensor, dict[str, Tensor]]:
        return evaluate_in_time(self.strong, self.synthetic, x, coefficients)  # type: ignore[arg-type]

    def _flux(self, x: Tensor, coefficients: Mapping[str, Coefficient], part: int) -> Tensor:
        form: TransientStrongForm = self.strong  # type: ignore[assignment]
        flux = transient_flux(form, self.synthetic, x, coefficients)
        if flux.ndim == 2:
            return flux
        return flux[:, [0 if row is None else row for row in self._rows[part]]]

    def _first_of(self, part: int) -> int:
        return self._parts[part].first

    def _module_at(self, name: str, x: Tensor) -> Tensor:
        return at_space_time(self._modules[name], x)

    def _start(self, interpolant: Interpolant) -> None:
        """Collective."""
        V, t0 = self.problem.u.function_space, self.interval[0]
        self._interpolant = interpolant
        self._z0 = _joined(interpolant.x, torch.full((len(interpolant.x),), t0, dtype=torch.float64))
        self._n_dofs = int(sum_array(V.mesh.comm, np.array([len(interpolant.rows)]))[0])
        self._u0: Tensor | None = None
        with agreed(V.mesh.comm):
            if isinstance(self._collocation, DofGhosts):
                raise ValueError("the numbers of dofs, and so their times, depend on the partition: use RandomGhosts")
        if callable(self._initial) and not isinstance(self._initial, Expr):
            if isinstance(self._initial, nn.Module):
                self._modules = self._modules | {"initial": self._initial}
            with agreed(V.mesh.comm):
                self._start_values()
            return
        with self._clock.kept():
            self._clock.set(t0)
            self._u0 = torch.from_numpy(_dof_values(self._initial, interpolant, V))

    def _start_values(self) -> Tensor:
        """u₀ at the owned dofs."""
        if self._u0 is not None:
            return self._u0
        values = self._initial(self._interpolant.x)
        k = self._interpolant.components
        n = len(self._interpolant.x)
        if tuple(values.shape) not in ((n, k), *[(n,)] * (k == 1)):
            raise ValueError(
                f"the initial value of {self.problem.name} has shape {tuple(values.shape)} at {n} points, not "
                f"({n}, {k})"
            )
        return self._interpolant(values if values.ndim == 1 or k > 1 else values[:, 0])

    def _missed_start(self) -> Tensor:
        """This rank's part of the mean |u(x, t₀) − u₀|² over the dofs."""
        u = self._interpolant(network_values(self.synthetic, self._z0))
        return (u - self._start_values()).square().sum() / self._n_dofs

    def factors(self) -> list[float]:
        """a, b, c and e."""
        return [*super().factors(), self.weights.initial]

    def terms(self, number: int) -> list[Tensor]:
        """L_syn, mean |r|², B and mean |u(x, t₀) − u₀|²: this rank's summands."""
        terms = super().terms(number)
        with agreed(self.comm):
            terms.append(self._missed_start() if self.weights.initial > 0 else 0.0 * terms[0].detach())
        return terms

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> TransientInformedRecord:
        assert self._terms is not None
        misfit, residual, boundary, start = sum_array(self.comm, np.array([float(t) for t in self._terms]))
        return TransientInformedRecord(
            number,
            misfit_synthetic=math.nan if self.sensors is None else float(misfit),
            gradient_synthetic=look.gradient_norm,
            parameters=parameters,
            residual=float(residual),
            boundary=float(boundary),
            objective=look.objective,
            initial=float(start),
        )


# -- data that depend on time ----------------------------------------------------------------------------------


@dataclass
class _FixedInTime:
    """The Dirichlet dofs at several times, one time after the other; see `FixedValues`."""

    x: Tensor
    columns: Tensor
    values: Tensor
    n_global: int
    unknown: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


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


class _Clock:
    """Sets the time of a problem, with all that it has as functions of time, and puts it back."""

    def __init__(self, problem: Any) -> None:
        self.problem, self.t = problem, problem.t
        self.values = [
            (g, fem.Expression(value, _compat.interpolation_points(g.function_space)))
            for g, value in _time_values(problem).items()
        ]

    def set(self, time: float) -> None:
        """Collective."""
        self.t.value = time
        for g, expression in self.values:
            g.interpolate(expression)
            g.x.scatter_forward()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the time back at the end."""
        time, arrays = float(self.t.value), [g.x.array.copy() for g, _ in self.values]
        try:
            yield
        finally:
            self.t.value = time
            for (g, _), array in zip(self.values, arrays, strict=True):
                g.x.array[:] = array

    def fixed(self, rows: np.ndarray) -> Tensor:
        """Dirichlet values at the owned fixed dofs."""
        u = self.problem.u.x.array.copy()
        for bc in self.problem.bcs:
            bc.set(u)
        return torch.from_numpy(u[rows])

    def depends(self, value: Any) -> bool:
        """Whether a UFL expression changes with time."""
        if not isinstance(value, Expr):
            return False
        functions = extract_coefficients(value)
        return self.t in extract_constants(value) or any(any(f is g for g, _ in self.values) for f in functions)

    def moving(self, part: Part, conditions: Sequence[Condition], unknown: Any, degree: int) -> list[_Moving]:
        """The data of the natural conditions that change, at the points of `natural_points`.  Collective."""
        chosen = []
        for c in conditions:
            if isinstance(c, Dirichlet):
                continue
            pairs = [("g", c.value)] if isinstance(c, Flux) else [("h", c.coefficient), ("a", c.ambient)]
            chosen += [(c, target, value) for target, value in pairs if self.depends(value)]
        # An unknown coefficient has its values from its module.
        chosen = [(c, at, v) for c, at, v in chosen if not (isinstance(v, fem.Function) and v.name in unknown)]
        if not chosen:
            return []
        mesh = self.problem.u.function_space.mesh
        facets, cells, numbers = exterior_facets(mesh)
        some = _free_components(self.problem, part, cells, numbers).any(axis=1)
        facets, cells, numbers = facets[some], cells[some], numbers[some]
        rule = _rule(mesh, cells, numbers, degree)
        made = []
        for c, target, value in chosen:
            rows = np.flatnonzero(np.isin(facets, named_facets(mesh, c.facets))[rule.facet])
            expression = fem.Expression(value, rule.X)
            places = cells[rule.facet[rows]].astype(np.int32)
            made.append(_Moving(target, torch.from_numpy(rows), expression, mesh, places, rule.slot[rows], len(rule.X)))
        return made


def _time_values(problem: Any) -> dict[fem.Function, Any]:
    return dict(problem.time_values or {})


def _owned_fixed(problem: Any) -> np.ndarray:
    dofmap = problem.u.function_space.dofmap
    fixed = fixed_dofs(problem.bcs)
    return fixed[fixed < dofmap.index_map.size_local * dofmap.index_map_bs]


def _joined(x: Tensor, t: Tensor) -> Tensor:
    """z = (x, t)."""
    return torch.cat([x, t[:, None]], dim=1)


def _at_times(x: Tensor, times: np.ndarray) -> Tensor:
    """All of x at the first time, then all of it at the second, …"""
    return _joined(x.repeat(len(times), 1), torch.from_numpy(times).repeat_interleave(len(x)))


def _fixed_in_time(fixed: Fixed, times: np.ndarray, values: Sequence[Tensor], sizes: Mapping[str, int]) -> _FixedInTime:
    """sizes: how many values the unknown coefficients have at a point."""
    k, n = len(times), len(fixed.x)
    unknown = {}
    for name, (rows, x, places) in fixed.unknown.items():
        steps, wide = torch.arange(k)[:, None], len(x) * sizes[name]
        unknown[name] = (rows + n * steps).ravel(), _at_times(x, times), (places + wide * steps).ravel()
    return _FixedInTime(
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


def _dof_values(initial: Any, interpolant: Interpolant, V: fem.FunctionSpace) -> np.ndarray:
    """Owned dof values of a number, Function or UFL expression, or of one of them for each component.  Collective."""
    out = fem.Function(V).x.array.copy()
    for part in interpolant.parts:
        f, k = fem.Function(part.space), part.components
        wanted = _components(initial, interpolant.components, V.mesh)[part.first : part.first + k]
        value = wanted[0] if f.ufl_shape == () else ufl.as_vector(wanted)
        f.interpolate(fem.Expression(value, _compat.interpolation_points(part.space)))
        f.x.scatter_forward()
        out[part.dofs] = f.x.array
    return out[: V.dofmap.index_map.size_local * V.dofmap.index_map_bs].copy()


def _components(initial: Any, k: int, mesh: dmesh.Mesh) -> list[Any]:
    """The k components of an initial value in UFL."""
    if isinstance(initial, Expr):
        found = [initial] if initial.ufl_shape == () else [initial[i] for i in range(initial.ufl_shape[0])]
    else:
        found = list(initial) if isinstance(initial, (Sequence, np.ndarray)) else [initial] * k
    if len(found) != k:
        raise ValueError(f"the initial value has {len(found)} component{'s' * (len(found) > 1)}, the unknown has {k}")
    return [value if isinstance(value, Expr) else fem.Constant(mesh, float(value)) for value in found]
