"""The assembled residual and its dual norm as functions of torch: values of u and of the coefficients in, a number out.

First derivatives, backward and forward; second ones are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyco_fem.pde.residual import Residual, Riesz
from hyco_fem.tensors import as_array


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(residual: Residual, u: Tensor, *values: Tensor) -> Tensor:
        return torch.from_numpy(residual.value(as_array(u), [as_array(v) for v in values]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.residual = inputs[0]
        ctx.state = ctx.residual.state

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives of a residual are not available: leave out create_graph=True")
        gu, found = ctx.residual.transpose(ctx.state, as_array(w), ctx.needs_input_grad[2:])
        return None, torch.from_numpy(gu), *(None if g is None else torch.from_numpy(g) for g in found)

    @staticmethod
    def jvp(ctx: Any, _: None, du: Tensor | None, *directions: Tensor | None) -> Tensor:  # type: ignore[override]
        arrays = [None if t is None else as_array(t) for t in (du, *directions)]
        return torch.from_numpy(ctx.residual.tangent(ctx.state, arrays[0], arrays[1:]))


class _Represent(torch.autograd.Function):
    """K⁻¹ r; self-adjoint, so that its backward is itself."""

    @staticmethod
    def forward(r: Tensor, riesz: Riesz) -> Tensor:
        return torch.from_numpy(riesz.solve(as_array(r)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.riesz = inputs[1]

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple:  # type: ignore[override]
        return _Represent.apply(w, ctx.riesz), None

    @staticmethod
    def jvp(ctx: Any, dr: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(ctx.riesz.solve(as_array(dr)))


def assemble_residual(residual: Residual, u: Tensor, values: Sequence[Tensor]) -> Tensor:
    """r at owned dof values of u and of the coefficients, (n_owned,).  Distributed, collective."""
    return _Assemble.apply(residual, u, *values)


def dual_square(r: Tensor, riesz: Riesz | None) -> Tensor:
    """This rank's summand of ‖r‖² = rᵀ K⁻¹ r, or of rᵀ r where there is no Riesz map.  Collective."""
    return (r * (r if riesz is None else _Represent.apply(r, riesz))).sum()
