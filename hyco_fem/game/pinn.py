"""A physics-informed network in strong form (Raissi, Perdikaris, Karniadakis, J. Comput. Phys. 378 (2019)).

Steady problems here; what is different in time is in pinn_transient.py, and `PINN(problem, …)` makes the one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem.bridge.boundary import FixedValues, NaturalPoints, natural_points, spread
from hyco_fem.bridge.ghosts import GhostPoints, Ghosts, RandomGhosts
from hyco_fem.bridge.interpolate import Interpolant, components
from hyco_fem.bridge.points import Points
from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.game.answers import AdamStep
from hyco_fem.game.data import Data
from hyco_fem.game.informed import Informed, check_weights
from hyco_fem.game.losses import network_values
from hyco_fem.game.player import Answer
from hyco_fem.models.coefficients import NodalField
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.strong import Coefficient, StrongForm, check_names, evaluate, strong_flux, strong_form
from hyco_fem.models.synthetic import HardBoundary
from hyco_fem.parallel import agreed, is_distributed, sum_array
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Condition, Problem


@dataclass(frozen=True)
class PINNWeights:
    """a = data, b = residual, c = boundary: not negative, and not all zero.  initial: e, of a transient problem.

    The defaults, all one, are for data without `noise_std`.  With it L_syn is in units of σ² and the other terms are
    not: a miss of σ costs 1 at a sensor and σ² on the boundary, so that the network fits the noise and not the PDE.
    Then take b, c and e up to 1/σ²: at σ = 0.02, with a solution of size one, 100, 1000 and 1000 find a coefficient.
    """

    data: float = 1.0
    residual: float = 1.0
    boundary: float = 1.0
    initial: float = 1.0

    def __post_init__(self) -> None:
        check_weights({name: value for name, value in vars(self).items() if name != "initial"})
        check_weights({"initial": self.initial, "residual": 1.0})


class PINN(Informed):
    """min over φ and θ of  a L_syn(φ) + b Σ_c ω_c |r(x_c; φ, θ)|² + c B(φ, θ),  with r the strong residual.

    B is the mean square by which boundary conditions are missed: |u − g|² over the Dirichlet dofs of the problem, and
    |σ n − g − h (a − u)|² over the rest of the boundary.  The part on Dirichlet dofs is left out where the network is a
    `HardBoundary` that meets them.  In 1D to 3D, on any mesh that the package takes.

    For a transient problem the network is one of (x, t), all points are in Ω × [t₀, T], and a term
    e mean |u(x, t₀) − u₀|² is added: see `TransientPINN`, which it then is.

    Args:
        problem: From the catalogue, or of your own with `strong`.
        synthetic: The network, smooth (not relu), with one output for each component: (u, p) in a flow.
        coefficients: By name: modules, whose parameters are θ; functions of x (n, d), numbers and vectors, which are
            known.  What is not named is taken from the problem where that is possible: constants, and Functions that
            are not differentiated.
        data: Sensors, or None: a forward problem.
        conditions: Those the problem was made with.  Needed where there are Flux or Robin conditions.
        collocation: Sampler of collocation points, drawn afresh every round, or fixed (`RandomGhosts(n, fixed=True)`).
        weights: a, b and c.
        answer: How φ and θ are moved.  coefficient_lr: learning rate of θ; by default that of the answer.
        strong: The strong form, where the problem is not from the catalogue.
        facet_degree: Of the quadrature rule whose points on the boundary are used.
        interval, initial, boundary_times: of a transient problem, see `TransientPINN`.

    Raises:
        ValueError: on all ranks: no strong form; a coefficient that cannot be evaluated at any point (NodalField), is
            missing or unknown; the wrong number of outputs; nothing to minimise.

    Construction and every method are collective.
    """

    def __new__(cls, problem: Any = None, *args: Any, **options: Any) -> PINN:
        """A `TransientPINN` for a transient problem."""
        if cls is PINN and isinstance(problem, TransientProblem):
            from hyco_fem.game.pinn_transient import TransientPINN

            return super().__new__(TransientPINN)
        return super().__new__(cls)

    def __init__(
        self,
        problem: Any,
        synthetic: nn.Module,
        coefficients: Mapping[str, Coefficient] | None = None,
        data: Data | None = None,
        *,
        conditions: Condition | Sequence[Condition] = (),
        collocation: Ghosts | None = None,
        weights: PINNWeights | None = None,
        answer: Answer | None = None,
        coefficient_lr: float | None = None,
        strong: StrongForm | None = None,
        facet_degree: int = 3,
        interval: Sequence[float] | None = None,
        initial: Any = None,
        boundary_times: int = 8,
    ) -> None:
        self._check_problem(problem)
        V = problem.u.function_space
        comm, d = V.mesh.comm, V.mesh.geometry.dim
        given = dict(coefficients or {})
        self.problem, self.weights = problem, weights or PINNWeights()
        with agreed(comm):
            self._check_time(interval, initial, boundary_times, data)
            self.strong = strong or self._strong_form(problem.name)
            self._check_strong()
            if data is None and self.weights.residual == 0:
                raise ValueError("there are no data and the weight of the residual is zero: nothing to minimise")
            _refuse_fields(self.strong.name, given)
        modules = {name: m for name, m in given.items() if isinstance(m, nn.Module)}
        # Values on the boundary only, or loads there, are coefficients of the problem but not of the strong form.
        self._inside = {
            n: c for n, c in given.items() if n in self.strong.coefficients or n not in problem.coefficients
        }
        self._on_points: dict[str, fem.Function] = {}
        self._complete(V)
        interpolant = Interpolant(V)
        with agreed(comm):
            check_names(self.strong, self._inside | self._on_points)
            self._try(synthetic, d, self._inside | {n: np.zeros(f.ufl_shape) for n, f in self._on_points.items()})
        self._observed = components(V, _path(problem.observed))
        self._collocation = collocation or RandomGhosts(500)
        self._sampler = self._collocation.on(self._domain(V))
        self._drawn: tuple[int, GhostPoints] | None = None
        self._modules = modules
        conditions = [conditions] if isinstance(conditions, Condition) else list(conditions)
        self._fixed = FixedValues(problem, interpolant, modules)
        self._natural = self._natural_points(interpolant, conditions, facet_degree)
        counts = [sum(len(part.x) for part in self._natural), len(self._fixed.x)]
        n_natural, n_fixed = sum_array(comm, np.array(counts))
        self._natural_somewhere = bool(n_natural)
        self._start(interpolant)
        held = nn.Module()
        held.coefficients = nn.ModuleDict({name.replace(".", "_"): m for name, m in self._modules.items()})
        super().__init__(synthetic, held, data, comm, answer or AdamStep(1e-3), coefficient_lr)
        fixed, _ = self._boundary(0)
        missed = float(sum_array(comm, np.array([float(self._missed_values(fixed).detach())]))[0])
        self._soft = bool(n_fixed) and not (isinstance(synthetic, HardBoundary) and missed < 1e-20)

    # -- what is different in time -----------------------------------------------------------------------------

    def _check_problem(self, problem: Any) -> None:
        if not isinstance(problem, Problem):
            raise TypeError(f"PINN needs a Problem, hyco_fem.catalogue.poisson(…), not {type(problem).__name__}")

    def _check_time(self, interval: Any, initial: Any, boundary_times: int, data: Data | None) -> None:
        if interval is not None or initial is not None:
            raise ValueError(
                f"{self.problem.name} is a steady problem: interval and initial are for transient ones, such as "
                "hyco_fem.catalogue.heat(…)"
            )

    def _strong_form(self, name: str) -> StrongForm:
        return strong_form(name)

    def _check_strong(self) -> None:
        pass

    def _try(self, network: nn.Module, d: int, coefficients: Mapping[str, Coefficient]) -> None:
        """Evaluate once, so that what does not fit is named at the start."""
        evaluate(self.strong, network, torch.zeros(1, d, dtype=torch.float64), coefficients)

    def _natural_points(
        self, interpolant: Interpolant, conditions: Sequence[Condition], degree: int
    ) -> list[NaturalPoints]:
        return [natural_points(self.problem, interpolant.parts[0], conditions, self._modules, degree)]

    def _start(self, interpolant: Interpolant) -> None:
        """Make ready the initial value."""

    def _domain(self, V: fem.FunctionSpace) -> Any:
        """What the sampler is bound to."""
        return V

    def _residual(self, x: Tensor, coefficients: Mapping[str, Coefficient]) -> tuple[Tensor, dict[str, Tensor]]:
        return evaluate(self.strong, self.synthetic, x, coefficients)

    def _flux(self, x: Tensor, coefficients: Mapping[str, Coefficient], part: int) -> Tensor:
        """Rows of σ that the natural conditions on one part of the unknown give."""
        return strong_flux(self.strong, self.synthetic, x, coefficients)

    def _first_of(self, part: int) -> int:
        """Number of the first component of a part that has natural conditions."""
        return 0

    def _module_at(self, name: str, x: Tensor) -> Tensor:
        return self._modules[name](x)

    def _boundary(self, number: int) -> tuple[Fixed, list[NaturalPoints]]:
        """Points on the boundary with what is asked there.  Collective."""
        return self._fixed, self._natural

    # -- coefficients ----------------------------------------------------------------------------------------

    def _complete(self, V: fem.FunctionSpace) -> None:
        """Take from the problem what the user has not given.  Collective."""
        for name in self.strong.coefficients:
            f = self.problem.coefficients.get(name)
            if name in self._inside or f is None or self._changes(f):
                continue
            size = int(np.prod(f.ufl_shape, dtype=int))
            rows = f.x.array.reshape(-1, size)
            low, high = _range(V.mesh.comm, rows)
            if np.array_equal(low, high):
                self._inside[name] = low.reshape(f.ufl_shape)
            elif name not in self.strong.inside:
                self._on_points[name] = f
        missing = [n for n in self.strong.coefficients if n not in self._inside and n not in self._on_points]
        with agreed(V.mesh.comm):
            if missing:
                raise ValueError(self._how_to_give(missing))

    def _changes(self, f: fem.Function) -> bool:
        """Whether a Function of the problem is set anew at every time."""
        return False

    def _how_to_give(self, missing: Sequence[str]) -> str:
        return (
            f"the strong form of {self.problem.name} needs {', '.join(map(repr, missing))} as functions of x: "
            f"coefficients={{{missing[0]!r}: lambda x: …}}, or a number; the problem has them as UFL "
            "expressions, or as finite element fields that cannot be differentiated.  VariationalPINN takes "
            "them as they are"
        )

    def _at(self, points: GhostPoints) -> dict[str, Coefficient]:
        """The coefficients, those known as Functions by their values at these points."""
        values: dict[str, Coefficient] = dict(self._inside)
        for name, f in self._on_points.items():
            places = points.space if isinstance(points, SpaceTimePoints) else points
            known = places.evaluate(f, f.function_space) if isinstance(places, Points) else None
            if known is None:
                raise ValueError(f"'{name}' is a Function: use collocation points that evaluate it, RandomGhosts")
            values[name] = _constant(known)
        return values

    # -- objective -------------------------------------------------------------------------------------------

    def factors(self) -> list[float]:
        """a, b and c."""
        return [self.weights.data, self.weights.residual, self.weights.boundary]

    def points(self, number: int) -> GhostPoints:
        """The collocation points of a round.  Collective."""
        if self._drawn is None or self._drawn[0] != number:
            self._drawn = number, self._sampler.draw(number)
        return self._drawn[1]

    def terms(self, number: int) -> list[Tensor]:
        """L_syn, mean |r|² and B: this rank's summands."""
        points = self.points(number)
        coefficients = self._at(points)
        fixed, natural = self._boundary(number)
        x = points.x
        zero = torch.zeros((), dtype=torch.float64)
        with agreed(self.comm):
            misfit = zero
            if self.sensors is not None:
                misfit = self.sensors.local_misfit(self._seen(network_values(self.synthetic, self.sensors.points.x)))
            r, m = self._residual(x, coefficients)
            self._refuse_negative(m, x)
            square = r.square()
            residual = points.weights @ (square if square.ndim == 1 else square.sum(1))
            boundary = zero
            if self.weights.boundary > 0:
                if self._soft:
                    boundary = boundary + self._missed_values(fixed)
                if self._natural_somewhere:
                    boundary = boundary + sum((self._missed_fluxes(at, i) for i, at in enumerate(natural)), zero)
        return [misfit, residual, boundary]

    def _seen(self, values: Tensor) -> Tensor:
        """The components that are compared with data."""
        if values.ndim == 1:
            return values
        return values[:, self._observed[0]] if len(self._observed) == 1 else values[:, self._observed]

    def _missed_values(self, fixed: Fixed) -> Tensor:
        """This rank's part of the mean |u − g|² over Dirichlet dofs."""
        if len(fixed.x) == 0:
            return torch.zeros((), dtype=torch.float64)
        u = network_values(self.synthetic, fixed.x)
        u = u if u.ndim == 1 else u[torch.arange(len(u)), fixed.columns]
        g = fixed.values
        for name, (rows, x, places) in fixed.unknown.items():
            g = g.index_put((rows,), self._module_at(name, x).reshape(-1)[places])
        return (u - g).square().sum() / fixed.n_global

    def _missed_fluxes(self, at: NaturalPoints, part: int) -> Tensor:
        """This rank's part of the mean |σ n − g − h (a − u)|² over the free part of the boundary."""
        if len(at.x) == 0:
            return torch.zeros((), dtype=torch.float64)
        # Only those in σ are looked at; the others are named for the check of the names.
        known = dict.fromkeys(self.strong.outside, 0.0) | self._inside
        flux = self._flux(at.x, known, part)
        first, k = self._first_of(part), at.free.shape[1]
        traction = (flux.reshape(len(at.x), k, -1) * at.normals[:, None]).sum(2)
        u = network_values(self.synthetic, at.x).reshape(len(at.x), -1)[:, first : first + k]
        data = {"g": at.g, "h": at.h, "a": at.a}
        for target, rows, name in at.unknown:
            values = spread(self._module_at(name, at.x[rows]), data[target][rows].shape)
            data[target] = data[target].index_put((rows,), values)
        missed = traction - data["g"] - data["h"][:, None] * (data["a"] - u)
        return at.weights @ (at.free * missed.square()).sum(1)

    def _refuse_negative(self, m: Mapping[str, Tensor], x: Tensor) -> None:
        for name in set(self.problem.positive) & set(self._modules) & set(m):
            bad = torch.nonzero(~(m[name].detach() > 0))
            if len(bad):
                row = int(bad[0, 0])
                place = ", ".join(f"{float(c):g}" for c in x[row].detach())
                value = float(m[name][row].detach())
                raise CoefficientError(
                    f"the coefficient '{name}' is not positive: {value} at ({place}); use a transform (Positive, "
                    "Bounded), a smaller learning rate, or another start"
                )


class Fixed(Protocol):
    """Points, components and values of Dirichlet conditions; see `FixedValues`."""

    x: Tensor
    columns: Tensor
    values: Tensor
    n_global: int
    unknown: dict[str, tuple[Tensor, Tensor, Tensor]]


def _path(observed: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if observed is None else (observed,) if isinstance(observed, int) else tuple(observed)


def _range(comm: MPI.Comm, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest entries of each column over all ranks."""
    low = np.min(rows, axis=0, initial=np.inf)
    high = np.max(rows, axis=0, initial=-np.inf)
    comm.Allreduce(MPI.IN_PLACE, low, op=MPI.MIN)
    comm.Allreduce(MPI.IN_PLACE, high, op=MPI.MAX)
    return low, high


def _constant(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: values


def _refuse_fields(equation: str, given: Mapping[str, Any]) -> None:
    for name, module in given.items():
        if not isinstance(module, nn.Module):
            continue
        if any(isinstance(m, NodalField) for m in module.modules()) or any(map(is_distributed, module.parameters())):
            raise ValueError(
                f"'{name}' of {equation} is a NodalField, which has values at its dofs only; a PINN evaluates "
                "coefficients anywhere: use NeuralField, GaussianBumps or SineSeries, or VariationalPINN"
            )
