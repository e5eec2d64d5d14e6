"""Quasi-Newton descent of an objective over a few replicated numbers: SciPy's L-BFGS-B with gradients by torch."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from hyco_fem.parallel import sum_array


def lowered(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    comm: MPI.Comm,
    *,
    steps: int,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    tolerance: float = 1e-14,
    callback: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Where at most so many steps end.  Collective.

    Args:
        objective: Of a tensor in the shape of `start`; its value is replicated, by `sum_over_ranks`, so that each rank
            has its part of the gradient.  It is evaluated on all ranks together.
        start: Replicated.
        bounds: Lower and upper bounds of a row of `start`, the same for all rows.
        tolerance: Relative decrease of the objective in a step that ends the descent; zero: when no step goes down.
        callback: Called with the point after each step.
    """
    lower, upper = (np.tile(b, len(start)) for b in bounds) if bounds else (np.full(start.numel(), -np.inf), np.inf)

    def shaped(z: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(z)).reshape(start.shape)

    def value_and_gradient(z: np.ndarray) -> tuple[float, np.ndarray]:
        x = shaped(z).requires_grad_()
        value = objective(x)
        (part,) = torch.autograd.grad(value, x)
        return float(value.detach()), sum_array(comm, part.reshape(-1).numpy())

    found = minimize(
        value_and_gradient,
        np.clip(start.detach().numpy().ravel(), lower, upper),
        jac=True,
        method="L-BFGS-B",
        bounds=None if bounds is None else np.column_stack([lower, upper]),
        callback=None if callback is None else lambda z: callback(shaped(z)),
        options={"maxiter": steps, "maxfun": 100 * steps, "maxcor": 20, "ftol": tolerance, "gtol": 0.0},
    )
    return shaped(found.x)
