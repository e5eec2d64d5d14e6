"""The autograd Functions around a PDE solver: coefficient values in, solution values out.

`_Solve` is the map m ↦ u; its backward is `_Adjoint`, (ū, m) ↦ m̄, which is differentiable itself: gradients of
gradients (Hessian-vector products) cost one tangent and two adjoint solves.  Third derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hyco_fem.pde.many import Setting, adjoint_many, forward_many
from hyco_fem.pde.steady import SteadySolver
from hyco_fem.tensors import as_array


class Solver(Protocol):
    """What a solver offers the bridge; `hyco_fem.pde.steady.SteadySolver` is one."""

    @property
    def state(self) -> Any: ...

    def forward(self, values: Sequence[np.ndarray]) -> np.ndarray: ...

    def tangent(self, state: Any, directions: Sequence[np.ndarray | None]) -> np.ndarray: ...

    def adjoint(
        self, state: Any, gradient: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]: ...

    def second(
        self,
        state: Any,
        gradient: np.ndarray,
        directions: Sequence[np.ndarray | None],
        gradient_direction: np.ndarray | None = None,
        wanted: Sequence[bool] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray | None]]: ...


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(solver: Solver, *values: Tensor) -> Tensor:
        return torch.from_numpy(solver.forward([as_array(v) for v in values]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        # The state of *this* solve, as arrays: a later forward must not change what this backward sees.
        ctx.solver = inputs[0]
        ctx.state = ctx.solver.state
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        wanted = tuple(ctx.needs_input_grad[1:])
        if not torch.is_grad_enabled():  # no graph of this backward is wanted, so none of its cost
            return None, *_tensors(ctx.solver.adjoint(ctx.state, as_array(gradient), wanted))
        found = iter(_Adjoint.apply(ctx.solver, ctx.state, wanted, gradient, *ctx.saved_tensors))
        return None, *(next(found) if w else None for w in wanted)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(ctx.solver.tangent(ctx.state, _arrays(tangents)))


class _Adjoint(torch.autograd.Function):
    """(ū, m) ↦ the wanted m̄_k, at the state of a solve made at m."""

    @staticmethod
    def forward(solver: Solver, state: Any, wanted: tuple[bool, ...], gradient: Tensor, *values: Tensor) -> tuple:
        found = solver.adjoint(state, as_array(gradient), wanted)
        return tuple(torch.from_numpy(g) for g in found if g is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.solver, ctx.state, ctx.wanted, gradient = inputs[:4]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient)
        ctx.save_for_forward(gradient)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        _refuse_graph("third derivatives of a PDE solve are", "second")
        # Σ_k ⟨μ_k, m̄_k⟩ = ⟨ū, u′(m) μ⟩: its gradient by ū is the tangent along μ, by m the second derivative along μ.
        given = iter(cotangents)
        directions = _arrays([next(given) if w else None for w in ctx.wanted])
        du, dm = ctx.solver.second(
            ctx.state, as_array(ctx.saved_tensors[0]), directions, None, ctx.needs_input_grad[4:]
        )
        return None, None, None, torch.from_numpy(du), *_tensors(dm)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, ___: None, dgradient: Tensor | None, *tangents: Tensor | None) -> tuple:  # type: ignore[override]
        change = None if dgradient is None else as_array(dgradient)
        gradient = as_array(ctx.saved_tensors[0])
        _u, dm = ctx.solver.second(ctx.state, gradient, _arrays(tangents), change, ctx.wanted)
        return tuple(torch.from_numpy(g) for g in dm if g is not None)


class _SolveMany(torch.autograd.Function):
    @staticmethod
    def forward(solver: SteadySolver, settings: Sequence[Setting], *values: Tensor) -> Tensor:
        return torch.from_numpy(forward_many(solver, [as_array(v) for v in values], settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.solver = inputs[0]
        ctx.states = ctx.solver.states

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple:  # type: ignore[override]
        _refuse_graph("second derivatives of solves for several scenarios are", "first")
        found = adjoint_many(ctx.solver, ctx.states, as_array(gradients), ctx.needs_input_grad[2:])
        return None, None, *_tensors(found)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        directions = _arrays(tangents)
        return torch.from_numpy(np.stack([ctx.solver.tangent(state, directions) for state in ctx.states]))


def solve(solver: Solver, *values: Tensor) -> Tensor:
    """Solution of a PDE as a differentiable function of its coefficients.  Distributed, collective.

    Args:
        solver: The solver; its last state is that of this solve afterwards.
        values: Owned dof values of each coefficient, (n_owned_k,), float64, on the CPU.

    Returns:
        Owned dof values of the solution, (n_owned,).  Derivatives: backward (one adjoint solve), forward mode (one
        tangent solve), and of those once more, in either mode.
    """
    return _Solve.apply(solver, *values)


def solve_many(solver: SteadySolver, settings: Sequence[Setting], *values: Tensor) -> Tensor:
    """Solutions (n_settings, n_owned) for several loads and boundary values; see `hyco_fem.pde.many.forward_many`.

    First derivatives only.  Distributed, collective.
    """
    return _SolveMany.apply(solver, settings, *values)


def _refuse_graph(what: str, last: str) -> None:
    """Raise where a graph of this backward is asked for: torch's once_differentiable would miss some of these cases.

    Its check looks at the incoming gradients only, but the result depends on the state of the solve too.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{what} not available: take the {last} derivative without create_graph=True")


def _arrays(tensors: Sequence[Tensor | None]) -> list[np.ndarray | None]:
    return [None if t is None else as_array(t) for t in tensors]


def _tensors(arrays: Sequence[np.ndarray | None]) -> list[Tensor | None]:
    return [None if a is None else torch.from_numpy(a) for a in arrays]
