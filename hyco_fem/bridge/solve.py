"""One autograd Function around a PDE solver: coefficient values in, solution values out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Solver(Protocol):
    """What a solver offers the bridge; `hyco_fem.pde.steady.SteadySolver` is one."""

    @property
    def state(self) -> Any: ...

    def forward(self, values: Sequence[np.ndarray]) -> np.ndarray: ...

    def tangent(self, state: Any, directions: Sequence[np.ndarray | None]) -> np.ndarray: ...

    def adjoint(
        self, state: Any, gradient: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]: ...


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(solver: Solver, *values: Tensor) -> Tensor:
        return torch.from_numpy(solver.forward([_array(v) for v in values]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        # The state of *this* solve, as arrays: a later forward must not change what this backward sees.
        ctx.solver = inputs[0]
        ctx.state = ctx.solver.state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        found = ctx.solver.adjoint(ctx.state, _array(gradient), ctx.needs_input_grad[1:])
        return None, *(None if g is None else torch.from_numpy(g) for g in found)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(ctx.solver.tangent(ctx.state, [None if t is None else _array(t) for t in tangents]))


def solve(solver: Solver, *values: Tensor) -> Tensor:
    """Solution of a PDE as a differentiable function of its coefficients.  Distributed, collective.

    Args:
        solver: The solver; its last state is that of this solve afterwards.
        values: Owned dof values of each coefficient, (n_owned_k,), float64, on the CPU.

    Returns:
        Owned dof values of the solution, (n_owned,).  First derivatives only, backward (one adjoint solve) and
        forward (one tangent solve).
    """
    return _Solve.apply(solver, *values)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())
