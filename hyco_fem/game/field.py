"""A whole coefficient field found from data: min over the field of L_phy + α R.

    J(m) = L(u(m)) + α R(m),     L = mean_i |u(x_i) − y_i|² / σ_i²

m is the *raw* field of a `NodalField`, what its transform is applied to (or the form itself: κ = exp(m)), and R a
regulariser of it (`hyco_fem.pde.regularisers`).  Where R is −log of a Gaussian prior, and σ the noise, the posterior is
proportional to exp(−(n/2) L − R), n the number of sensors: its mode is the minimum at α = 2/n (`bayesian_weight`).

Gradients and Hessians of L come from adjoint and tangent solves (`MisfitHessian`), and steps are taken in the inner
product of R, so that their number does not grow with the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor

from hyco_fem.game.curvature import MisfitHessian
from hyco_fem.game.data import Data
from hyco_fem.game.history import write_summary
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import check_steady
from hyco_fem.parallel import agreed, is_distributed, max_over_ranks, sum_array
from hyco_fem.pde.inner import RieszMap
from hyco_fem.pde.linear import SolveError
from hyco_fem.pde.minimise import Method, Step, minimise
from hyco_fem.pde.regularisers import Regulariser
from hyco_fem.tensors import as_array

Inner = RieszMap | Literal["regulariser", "euclidean"]


@dataclass(frozen=True)
class FieldStep:
    """The state after a step, the first that at the start.

    objective: J.  misfit: L.  penalty: R.  gradient_norm: of J, in the dual norm of the regulariser.
    cg: iterations of conjugate gradients that the step took, each a tangent and an adjoint solve.
    """

    objective: float
    misfit: float
    penalty: float
    gradient_norm: float
    cg: int


@dataclass(frozen=True)
class FieldResult:
    """The outcome of `fit_field`; the field itself is in the model's parameter.  Replicated.

    parameter: its name.  weight: α.  method.
    objective, misfit, penalty: J, L and R at the end.  minimum, mean, maximum, rms: of the raw field's dof values.
    history: the state after each step.  cg: conjugate gradient iterations of all steps.
    solves: forward solves, each with a factorisation; products: with the Hessian (Newton's methods).
    converged, stop: whether and why it ended.
    """

    parameter: str
    weight: float
    method: str
    objective: float
    misfit: float
    penalty: float
    minimum: float
    mean: float
    maximum: float
    rms: float
    history: list[FieldStep]
    cg: int
    solves: int
    products: int
    converged: bool
    stop: str

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.history) - 1

    def summary(self) -> dict[str, Any]:
        """What goes into summary.json."""
        return asdict(self) | {"steps": self.steps}

    def save(self, folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, extra: dict[str, Any] | None = None) -> None:
        """Write summary.json, with the entries of `extra`, into a folder.  Collective; raises OSError on all ranks."""
        write_summary(folder, comm, self.summary() | (extra or {}))

    def __str__(self) -> str:
        head = "step      objective         misfit        penalty  |gradient|   cg"
        rows = [
            f"{k:4d}  {s.objective:13.6g}  {s.misfit:13.6g}  {s.penalty:13.6g}  {s.gradient_norm:10.2e}  {s.cg:3d}"
            for k, s in enumerate(self.history)
        ]
        return "\n".join([head, *rows, f"{self.solves} solves, {self.products} Hessian products: {self.stop}"])


def bayesian_weight(data: Data) -> float:
    """α = 2/n, at which J is 2/n times −log of the posterior density, n being the number of sensors in the mesh."""
    return 2.0 / data.n_found


def fit_field(
    physical: PhysicalModel,
    data: Data,
    regulariser: Regulariser,
    *,
    weight: float,
    method: Method = "gauss_newton_cg",
    inner: Inner = "regulariser",
    tolerance: float = 1e-4,
    max_iterations: int = 100,
    callback: Callable[[FieldStep], object] | None = None,
) -> FieldResult:
    """Minimise L + α R over the field; the parameter holds the best values, and the model its solution, afterwards.

    Args:
        physical: The model, with one trainable parameter: that of a `NodalField`, whose values are the start.
        data: Sensors, with their noise.
        regulariser: R, of the space of the field's Function.
        weight: α > 0; see `choose_weight`, `bayesian_weight`.
        method: "gauss_newton_cg"; "newton_cg", with the full Hessian of the misfit (close to a minimum); "lbfgs",
            without Hessian products.
        inner: L-BFGS only: where its first inverse Hessian is from.  "regulariser": (α P)⁻¹; a `RieszMap`; "euclidean":
            the identity, scaled, with which the number of steps grows with the mesh.
        tolerance: The end is where ‖g‖_* ≤ tolerance · √(2 J): where the Hessian is that of Gauss and Newton, J is
            then within tolerance² · J of the minimum.  Below about 1e-6 rounding errors of J stop the line search.
        max_iterations: Most steps.
        callback: Called on every rank after each step.

    Raises:
        ValueError: no parameter, one that is not a field, several; a weight that is not positive; a regulariser of
            another space; on all ranks.
        SolveError, CoefficientError: at the start.  A trial step that leads to one is shortened.

    Collective.
    """
    comm = physical.comm
    with agreed(comm):
        name, parameter = field_parameter(physical, regulariser)
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of the regulariser must be finite and positive, not {weight}")
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {get_args(Method)}, not {method!r}")
        if not (isinstance(inner, RieszMap) or inner in ("regulariser", "euclidean")):
            raise ValueError(f"inner must be 'regulariser', 'euclidean' or a RieszMap, not {inner!r}")
        if not (math.isfinite(tolerance) and tolerance > 0 and max_iterations > 0):
            raise ValueError(f"tolerance and max_iterations must be positive, not {tolerance} and {max_iterations}")
    kind: Literal["gauss_newton", "full"] = "full" if method == "newton_cg" else "gauss_newton"
    J = _Misfit(physical, data, regulariser, parameter, weight, kind)
    start = J.values()
    history: list[FieldStep] = []

    def stepped(step: Step) -> None:
        misfit, penalty = J.parts
        history.append(FieldStep(step.objective, misfit, penalty, step.gradient_norm, step.cg))
        if callback is not None:
            with agreed(comm):
                callback(history[-1])

    try:
        J.first(start)
        initial: Callable[[np.ndarray], np.ndarray] | None = None
        if isinstance(inner, RieszMap):
            initial = inner.representative
        elif inner == "euclidean":
            initial = np.array
        found = minimise(
            J,
            start,
            method,
            tolerance=tolerance,
            max_iterations=max_iterations,
            initial=initial,
            callback=stepped,
        )
        J.first(found.x)  # the last trial may have been another one
    except BaseException:
        J.put(start)
        raise
    misfit, penalty = J.parts
    low, high, mean, rms = _statistics(found.x, comm)
    return FieldResult(
        parameter=name.removeprefix("coefficients."),
        weight=float(weight),
        method=method,
        objective=misfit + weight * penalty,
        misfit=misfit,
        penalty=penalty,
        minimum=low,
        mean=mean,
        maximum=high,
        rms=rms,
        history=history,
        cg=sum(step.cg for step in history),
        solves=J.solves,
        products=J.products,
        converged=found.converged,
        stop=found.stop,
    )


def field_parameter(physical: PhysicalModel, regulariser: Regulariser) -> tuple[str, torch.nn.Parameter]:
    """The one trainable parameter of the model, with its name.  Raises ValueError unless it is a field in Q.  Local.

    Also TypeError for a model in time.
    """
    check_steady(physical, "fit_field")
    trainable = {n: p for n, p in physical.named_parameters() if p.requires_grad}
    if len(trainable) != 1:
        raise ValueError(
            f"fit_field needs a model with one trainable parameter, not {sorted(trainable)}; freeze the others with "
            "requires_grad_(False)"
        )
    ((name, parameter),) = trainable.items()
    if not is_distributed(parameter):
        raise ValueError(
            f"'{name}' is not a field: fit_field is for a hyco_fem.NodalField; for a few numbers use "
            "hyco_fem.least_squares"
        )
    for m, module in zip(physical.solver.coefficients, physical.coefficients.values(), strict=True):
        if any(p is parameter for p in module.parameters()) and m.function_space != regulariser.Q:
            raise ValueError(
                f"the regulariser has another space than the coefficient '{m.name}'; build it on that Function's "
                "own, m.function_space"
            )
    return name, parameter


def _statistics(x: np.ndarray, comm: MPI.Comm) -> tuple[float, float, float, float]:
    high, low = max_over_ranks(comm, [x.max(initial=-np.inf), -x.min(initial=np.inf)])
    total, square, n = sum_array(comm, np.array([x.sum(), (x**2).sum(), float(len(x))]))
    return -float(low), float(high), float(total / n), float(np.sqrt(square / n))


class _Misfit:
    """J with its derivatives, of which those of the misfit are computed together and kept for the last field."""

    def __init__(
        self,
        physical: PhysicalModel,
        data: Data,
        regulariser: Regulariser,
        parameter: torch.nn.Parameter,
        weight: float,
        kind: Literal["gauss_newton", "full"],
    ) -> None:
        self.physical, self.data, self.R = physical, data, regulariser
        self.parameter, self.weight, self.kind = parameter, weight, kind
        self.comm = physical.comm
        self.solves = self.products = 0
        self._at: np.ndarray | None = None
        self._hessian: MisfitHessian | None = None
        self._penalty = math.nan
        self._linear: np.ndarray | None = None  # where the regulariser has been linearised

    def values(self) -> np.ndarray:
        return as_array(self.parameter).ravel().copy()

    def put(self, x: np.ndarray) -> None:
        with torch.no_grad():
            self.parameter.copy_(self._tensor(x))

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy()).view_as(self.parameter)

    def first(self, x: np.ndarray) -> MisfitHessian:
        """The misfit at x, by a forward and an adjoint solve unless it was the last one.

        Raises SolveError, CoefficientError.
        """
        same = self._at is not None and np.array_equal(self._at, x)
        if not self._everywhere(same):
            self._hessian = self._at = None
            self.put(x)
            self.solves += 1
            self._hessian = MisfitHessian(self.physical, self.data, self.kind)
            self._penalty = self.R.value(x)
            self._at = x.copy()
        assert self._hessian is not None
        return self._hessian

    def _everywhere(self, same: bool) -> bool:
        return bool(sum_array(self.comm, np.array([0.0 if same else 1.0]))[0] == 0.0)

    @property
    def parts(self) -> tuple[float, float]:
        """L and R at the last field."""
        return (math.nan, math.nan) if self._hessian is None else (self._hessian.value, self._penalty)

    def value(self, x: np.ndarray) -> float:
        try:
            return self.first(x).value + self.weight * self._penalty
        except (SolveError, CoefficientError):
            return math.inf

    def gradient(self, x: np.ndarray) -> np.ndarray:
        (gradient,) = self.first(x).gradient
        self._linearise(x)
        return as_array(gradient).ravel() + self.weight * self.R.gradient(x)

    def _linearise(self, x: np.ndarray) -> None:
        if not self._everywhere(self._linear is not None and np.array_equal(self._linear, x)):
            self.R.linearise(x)
            self._linear = x.copy()

    def linearise(self, x: np.ndarray) -> None:
        self.first(x)
        self._linearise(x)

    def product(self, v: np.ndarray) -> np.ndarray:
        assert self._hessian is not None
        self.products += 1
        (moved,) = self._hessian.product([self._tensor(v)])
        return as_array(moved).ravel() + self.weight * self.R.product(v)

    def precondition(self, g: np.ndarray) -> np.ndarray:
        return self.R.precondition(g) / self.weight
