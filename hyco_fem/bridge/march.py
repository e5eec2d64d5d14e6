"""The autograd Function around a transient solver: coefficient values in, observations of the field in time out.

Backward: one adjoint sweep through time.  Forward mode: one tangent sweep.  Second derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hyco_fem.pde.march import Source
from hyco_fem.pde.transient import TransientSolver
from hyco_fem.tensors import as_array


class Operator(Protocol):
    """An observation of a field in time; see hyco_fem.bridge.spacetime."""

    shape: Any

    def watch(self) -> Any: ...

    def source(self, gradient: Any) -> Source: ...


class _March(torch.autograd.Function):
    @staticmethod
    def forward(solver: TransientSolver, operators: Sequence[Operator], *values: Tensor) -> tuple[Tensor, ...]:
        watches = [operator.watch() for operator in operators]
        solver.forward([as_array(v) for v in values], watches)
        return tuple(torch.from_numpy(w.values) for w in watches)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.solver, ctx.operators = inputs[:2]
        ctx.state = ctx.solver.state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "second derivatives of a transient solve are not available: take the first derivative without "
                "create_graph=True"
            )
        sources = [o.source(as_array(g)) for o, g in zip(ctx.operators, gradients, strict=True)]
        found = ctx.solver.adjoint(ctx.state, sources, ctx.needs_input_grad[2:])
        return None, None, *(None if g is None else torch.from_numpy(g) for g in found)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        watches = [operator.watch() for operator in ctx.operators]
        directions = [None if t is None else as_array(t)[..., None] for t in tangents]
        ctx.solver.tangent(ctx.state, directions, watches)
        return tuple(torch.from_numpy(w.values.reshape(o.shape)) for w, o in zip(watches, ctx.operators, strict=True))


def march(solver: TransientSolver, operators: Sequence[Operator], *values: Tensor) -> tuple[Tensor, ...]:
    """Observations of the solution of a problem in time, differentiable in its coefficients.  Distributed, collective.

    Args:
        solver: The solver; its last state is that of this solve afterwards.
        operators: What to observe.
        values: Owned dof values of each coefficient, (n_owned_k,) or (parts, n_owned_k), and the initial value where
            the solver is differentiated by it; float64, on the CPU.

    Returns:
        For each operator the values that it observes on this rank.
    """
    return _March.apply(solver, tuple(operators), *values)
