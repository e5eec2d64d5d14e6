"""The physical model fitted to data by nonlinear least squares, with the Jacobian of tangent or adjoint solves.

r_i(θ) = (u(x_i; θ) − y_i) / σ_i is made small by scipy's trust-region reflective method (Branch, Coleman, Li 1999), a
Levenberg–Marquardt method that knows bounds.  Where the noise is Gaussian with standard deviation σ_i, the inverse of
JᵀJ at the minimum estimates the covariance of θ (Laplace approximation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from scipy import optimize

from hyco_fem.game.data import Data
from hyco_fem.game.gauss_newton import bound_arrays
from hyco_fem.game.history import write_summary
from hyco_fem.game.identify import entry_names, standard_errors
from hyco_fem.game.player import flat, put_flat
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, is_distributed
from hyco_fem.pde.linear import SolveError


@dataclass(frozen=True)
class LeastSquaresResult:
    """The outcome of `least_squares`.  Replicated.

    parameters: θ by name.  standard_errors: by name, of the same shapes; infinite where the data say nothing.
    names: of the entries of the flattened θ, in the order of the columns of `jacobian`.
    residuals: r at the end, (n·components,).  jacobian: ∂r/∂θ at the end, (n·components, p).
    singular_values: of the Jacobian, falling; a small one is a combination of parameters that the sensors do not see,
        the same row of `directions`, (p, p).
    cost: mean of r², so about 1 where the model is right and σ known.  history: cost after each accepted step.
    solves: values computed; jacobians: Jacobians computed.  converged, stop: whether and why it ended.
    """

    parameters: dict[str, Any]
    standard_errors: dict[str, Any]
    names: list[str]
    residuals: np.ndarray
    jacobian: np.ndarray
    singular_values: np.ndarray
    directions: np.ndarray
    cost: float
    history: list[float]
    solves: int
    jacobians: int
    converged: bool
    stop: str

    def save(self, folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, extra: dict[str, Any] | None = None) -> None:
        """Write summary.json, with the entries of `extra`, into a folder.  Collective; raises OSError on all ranks."""
        kept = ("parameters", "standard_errors", "singular_values", "cost", "history", "solves", "converged", "stop")
        write_summary(folder, comm, {name: getattr(self, name) for name in kept} | (extra or {}))

    def __str__(self) -> str:
        width = max(map(len, self.names))
        errors = np.concatenate([np.ravel(e) for e in self.standard_errors.values()])
        values = np.concatenate([np.ravel(v) for v in self.parameters.values()])
        rows = [f"{n:{width}s}  {v:12.6g} ± {e:.2g}" for n, v, e in zip(self.names, values, errors, strict=True)]
        return "\n".join([*rows, f"mean square residual {self.cost:.4g} after {self.solves} solves: {self.stop}"])


def least_squares(
    physical: PhysicalModel | TransientModel,
    data: Data,
    *,
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    tolerance: float = 1e-8,
    max_solves: int = 100,
    callback: Callable[[float, int], object] | None = None,
) -> LeastSquaresResult:
    """Fit θ to the data by Levenberg–Marquardt steps; θ holds the best values afterwards.

    Args:
        physical: The model; θ starts from the values that its parameters hold.
        data: Sensors, with their noise.
        bounds: By name of a parameter, its lower and upper bounds, numbers or arrays of its shape.
        tolerance: Of relative changes of the cost and of θ.
        max_solves: Most values to compute.
        callback: Called on every rank with the cost and the number of solves after each accepted step.

    Raises:
        ValueError: a parameter that is a field (use gradients: `PhysicsOnly`), an unknown name in bounds, a start
            outside the bounds; on all ranks.
        SolveError, CoefficientError: at the start.  A trial step that leads to one is shortened.

    Collective.
    """
    fit = _Fit(physical, data, bounds, callback)
    start = fit.theta()
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # scipy divides by residuals, which may be zero
            found = optimize.least_squares(
                fit.residuals,
                start,
                fit.jacobian,
                bounds=fit.bounds,
                method="trf",
                x_scale="jac",
                ftol=tolerance,
                xtol=tolerance,
                gtol=None,  # not relative to anything
                max_nfev=max_solves,
            )
    except Exception:
        fit.put(start)
        raise
    fit.put(found.x)
    r, J = found.fun, found.jac
    _, s, Vt = np.linalg.svd(J, full_matrices=False)
    return LeastSquaresResult(
        parameters=fit.by_name(found.x),
        standard_errors=fit.by_name(standard_errors(s, Vt)),
        names=entry_names([(n.removeprefix("coefficients."), tuple(p.shape)) for n, p in fit.parameters.items()]),
        residuals=r,
        jacobian=J,
        singular_values=s,
        directions=Vt,
        cost=float(np.mean(r**2)),
        history=fit.history,
        solves=fit.solves,
        jacobians=fit.jacobians,
        converged=found.status > 0,
        stop=found.message.rstrip("."),
    )


class _Fit:
    """θ as one array; residuals and Jacobian as arrays that are equal on all ranks."""

    def __init__(
        self,
        physical: PhysicalModel | TransientModel,
        data: Data,
        bounds: Mapping[str, tuple[Any, Any]] | None,
        callback: Callable[[float, int], object] | None,
    ) -> None:
        self.physical, self.data, self.callback = physical, data, callback
        self.parameters = {n: p for n, p in physical.named_parameters() if p.requires_grad}
        with agreed(physical.comm):
            if not self.parameters:
                raise ValueError("there is no parameter to fit")
            for name, p in self.parameters.items():
                if is_distributed(p):
                    raise ValueError(
                        f"'{name}' is a field with a number for every dof, too many for a Jacobian; fit it by "
                        "gradients (hyco_fem.PhysicsOnly)"
                    )
            self.bounds = bound_arrays(self.parameters, bounds or {})
        self.history: list[float] = []
        self.solves = self.jacobians = 0
        self._solved: tuple[np.ndarray, Any, np.ndarray] | None = None  # θ, state and r of the last solve

    def theta(self) -> np.ndarray:
        return flat(self.parameters.values())

    def put(self, theta: np.ndarray) -> None:
        put_flat(self.parameters.values(), theta)

    def by_name(self, theta: np.ndarray) -> dict[str, Any]:
        out, start = {}, 0
        for name, p in self.parameters.items():
            part = theta[start : start + p.numel()].reshape(tuple(p.shape))
            out[name.removeprefix("coefficients.")] = float(part) if part.ndim == 0 else part.copy()
            start += p.numel()
        return out

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """r, NaN where the PDE cannot be solved: the trust region is then made smaller."""
        self.put(theta)
        self.solves += 1
        try:
            with torch.no_grad():
                values = self.physical(self.data.points)
        except (CoefficientError, SolveError):
            if self._solved is None:
                raise
            return np.full_like(self._solved[2], np.nan)
        r = self.data.residuals(values).ravel()
        self._solved = theta.copy(), self.physical.solver.state, r
        return r

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """∂r/∂θ, on the factors of the solve at θ where that was the last one."""
        if self._solved is None or not np.array_equal(self._solved[0], theta):
            self.residuals(theta)
        assert self._solved is not None
        self.put(theta)
        _, state, r = self._solved
        self.jacobians += 1
        data = self.data
        rows = self.physical.jacobian(data.points, state=state).matrix
        # As many components at each sensor as there are residuals for one.
        shape = len(data.points), len(r) // data.n_found, rows.shape[1]
        scaled = rows.reshape(shape) / data.noise_std.numpy()[:, None, None]
        self.history.append(float(np.mean(r**2)))
        if self.callback is not None:
            with agreed(self.physical.comm):
                self.callback(self.history[-1], self.solves)
        return data.points.gather(scaled)[data.rows].reshape(len(r), rows.shape[1])
