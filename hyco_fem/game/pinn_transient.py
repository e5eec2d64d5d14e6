"""A physics-informed network for a transient problem: one network of (x, t), all times at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.bridge.boundary import NaturalPoints
from hyco_fem.bridge.boundary_transient import BoundaryInTime, joined
from hyco_fem.bridge.ghosts import check_whole
from hyco_fem.bridge.interpolate import Interpolant
from hyco_fem.bridge.spacetime import SpaceTime, SpaceTimePoints
from hyco_fem.game.data import Data
from hyco_fem.game.informed import InformedRecord
from hyco_fem.game.losses import network_values
from hyco_fem.game.pinn import PINN, Fixed
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
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Condition
from hyco_fem.pde.timegrid import TimeGrid, start_and_end

# A stream of random times, beside those of the ghost points.
_BOUNDARY_TIMES = 2


@dataclass(frozen=True)
class TransientInformedRecord(InformedRecord):
    """An `InformedRecord` in time.  initial: mean square by which the initial value is missed."""

    initial: float = math.nan


class TransientPINN(PINN):
    """min over φ and θ of  a L_syn + b Σ_c ω_c |r(x_c, t_c)|² + c B + e mean |u(x, t₀) − u₀|².

    r is the strong residual in time, with derivatives by x and t of one network of (x, t).  Collocation points are
    what the sampler draws for a model in time: uniform in Ω × [t₀, T] with RandomGhosts.  The boundary term is that of
    a steady problem at `boundary_times` times, one in each of as many equal parts of [t₀, T], drawn anew every round
    unless the sampler is fixed; Dirichlet values, fluxes and ambient values may depend on time as those of the problem
    do.  The initial value is asked for at the dof points.

    Args, beside those of `PINN`:
        problem: A TransientProblem.
        synthetic: The network, of d + 1 columns, time last: `hyco_fem.MLP(d + 1, …)`.
        coefficients: Numbers and functions of x, (n, d); one of (x, t), (n, d + 1), is marked by `InTime(…)`.
        data: At SpaceTimePoints in the interval.
        weights: `PINNWeights(initial=e)`.
        interval: (t₀, T).
        initial: u₀, where it is not the problem's own: a number, UFL expression, Function, or a function of x in torch;
            a module's parameters are unknown, and found with θ.
        boundary_times: How many times each round has on the boundary; QuadratureGhosts are at the ends of as many
            equal parts of the interval.
    """

    # -- checks ----------------------------------------------------------------------------------------------

    def _check_problem(self, problem: Any) -> None:
        if not isinstance(problem, TransientProblem):
            raise TypeError(
                f"TransientPINN needs a TransientProblem, hyco_fem.catalogue.heat(…), not {type(problem).__name__}"
            )

    def _check_time(self, interval: Any, initial: Any, boundary_times: int, data: Data | None) -> None:
        name = self.problem.name
        if self.problem.splitting is not None:
            raise ValueError(
                f"{name} is solved by a splitting, and its pressure, with the conditions on it, is not in the problem "
                "that a PINN sees: use Hyco with a TransientModel"
            )
        if interval is None:
            raise ValueError(f"{name} is a transient problem: say from when to when, PINN(…, interval=(t0, T))")
        start, end = self.interval = start_and_end(interval)
        check_whole("boundary_times", boundary_times, 1)
        # Its steps are the parts of the interval that have a boundary time each.
        self._grid = TimeGrid.of(self.interval, (end - start) / boundary_times)
        self._initial = self.problem.initial if initial is None else initial
        if data is None:
            return
        points = data.points
        if not isinstance(points, SpaceTimePoints):
            raise TypeError(
                f"the data of {name} are at {type(points).__name__}; a transient problem needs them at (x, t): "
                "hyco_fem.SpaceTimePoints(mesh, x, t)"
            )
        slack = 1e-9 * (end - start)
        late = torch.nonzero((points.t < start - slack) | (points.t > end + slack))
        if len(late):
            row = int(late[0, 0])
            raise ValueError(
                f"sensor {points.index[row]} is at time {float(points.t[row]):g}, outside the interval from "
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
        return f in self.problem.time_values

    def _how_to_give(self, missing: Sequence[str]) -> str:
        return (
            f"the strong form of {self.problem.name} needs {', '.join(map(repr, missing))} as functions: "
            f"coefficients={{{missing[0]!r}: lambda x: …}}, or InTime(lambda z: …) of z = (x, t), or a number; the "
            "problem has them as UFL expressions, as Functions that are set in time, or as finite element fields that "
            "cannot be differentiated"
        )

    # -- points ----------------------------------------------------------------------------------------------

    def _domain(self, V: fem.FunctionSpace) -> SpaceTime:
        return SpaceTime(V, self._grid)

    def _round(self, number: int) -> int:
        """The round whose times are drawn: where points are fixed, the times are too."""
        return 0 if getattr(self._collocation, "fixed", False) else number

    def boundary_times(self, number: int) -> np.ndarray:
        """The times of the boundary terms of a round, ascending."""
        grid, seed = self._grid, getattr(self._collocation, "seed", 0)
        rng = np.random.default_rng((seed, self._round(number), _BOUNDARY_TIMES))
        return grid.times[:-1] + grid.steps * rng.random(grid.n)

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
        chosen = [[row is not None for row in rows] for rows in self._rows]
        self._in_time = BoundaryInTime(self.problem, self._parts, chosen, conditions, self._modules, degree)
        self._shown: tuple[int, tuple[Fixed, list[NaturalPoints]]] | None = None
        return self._in_time.natural

    def _boundary(self, number: int) -> tuple[Fixed, list[NaturalPoints]]:
        drawn = self._round(number)
        if self._shown is None or self._shown[0] != drawn:
            self._shown = drawn, self._in_time.at(self._fixed, self.boundary_times(number))
        return self._shown[1]

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
        self._z0 = joined(interpolant.x, torch.full((len(interpolant.x),), t0, dtype=torch.float64))
        self._n_dofs = int(sum_array(V.mesh.comm, np.array([len(interpolant.rows)]))[0])
        self._u0: Tensor | None = None
        if callable(self._initial) and not isinstance(self._initial, Expr):
            if isinstance(self._initial, nn.Module):
                self._modules = self._modules | {"initial": self._initial}
            with agreed(V.mesh.comm):
                self._start_values()
            return
        clock = self._in_time.clock
        with clock.kept():
            clock.set(t0)
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


# -- the initial value -----------------------------------------------------------------------------------------


def _dof_values(initial: Any, interpolant: Interpolant, V: fem.FunctionSpace) -> np.ndarray:
    """Owned dof values of a number, Function or UFL expression, or of one of them for each component.  Collective."""
    out = fem.Function(V).x.array.copy()
    for part in interpolant.parts:
        f, k = fem.Function(part.space), part.components
        wanted = _components(initial, interpolant.components, V.mesh)[part.first : part.first + k]
        value = wanted[0] if f.ufl_shape == () else ufl.as_vector(wanted)
        f.interpolate(_compat.expression(value, _compat.interpolation_points(part.space), V.mesh))
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
