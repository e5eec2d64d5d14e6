"""Products with the Hessian of a data misfit, Gauss–Newton or full, without forming a matrix.

With L(θ) = Σ_i w_i |(B u(m(θ)))_i − y_i|², r the residuals and J = B u′(m) m′(θ):

    Gauss–Newton   2 Jᵀ W J v                                    one tangent and one adjoint solve
    full           2 Jᵀ W J v + 2 Σ_i w_i r_i ∂²(B u)_i/∂θ² v      one tangent and two adjoint solves

on the factors of the forward solve at θ, which is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hyco_fem.game.data import Data
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import check_steady
from hyco_fem.parallel import agreed, is_distributed, sum_array, sum_tensors


class MisfitHessian:
    """The Hessian of L_phy at the current θ, as an operator on directions.

    Args:
        physical: The model; its trainable parameters are θ, at the values that they have now.
        data: The sensor data.
        kind: "gauss_newton" (positive semi-definite) or "full".

    Attributes:
        value: L.  gradient: ∂L/∂θ, one tensor for each parameter (replicated ones summed over the ranks).

    Construction (one forward and one adjoint solve) and `product` are collective.
    """

    def __init__(
        self, physical: PhysicalModel, data: Data, kind: Literal["gauss_newton", "full"] = "gauss_newton"
    ) -> None:
        with agreed(physical.comm):
            check_steady(physical, "MisfitHessian")
            if kind not in ("gauss_newton", "full"):
                raise ValueError(f"kind must be 'gauss_newton' or 'full', not {kind!r}")
        self.physical, self.data, self.kind = physical, data, kind
        self.parameters = [p for p in physical.parameters() if p.requires_grad]
        self._solver = physical.solver
        # The graph of θ ↦ m is kept: products go through it forwards and backwards.
        self._m = physical.coefficient_values()
        u = self._solver.forward([m.detach().numpy() for m in self._m])
        self._state = self._solver.state
        self._B: Any = data.points.observation(physical.observed)
        at_points = torch.from_numpy(self._B.apply(u)).requires_grad_()
        local = data.local_misfit(at_points)
        (residual,) = torch.autograd.grad(local, at_points, create_graph=True)
        self._at_points, self._slope = at_points, residual
        self.value = float(sum_array(physical.comm, np.atleast_1d(float(local.detach())))[0])
        self._u_gradient = self._B.transpose(residual.detach().numpy())
        found = self._solver.adjoint(self._state, self._u_gradient)
        self._m_gradient = [torch.from_numpy(g) for g in found]
        self.gradient = self._pulled_back(self._m_gradient)

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """H v for v given as one tensor for each parameter, in the order of `parameters`."""
        direction = self._checked(direction)
        dm = self._pushed_forward(direction)
        if self.kind == "gauss_newton":
            du = self._solver.tangent(self._state, dm)
            found = self._solver.adjoint(self._state, self._weighted(du))
            return self._pulled_back([torch.from_numpy(g) for g in found])
        du = self._solver.tangent(self._state, dm)
        _, second = self._solver.second(self._state, self._u_gradient, dm, self._weighted(du))
        return self._pulled_back([torch.from_numpy(g) for g in second], direction)

    def _weighted(self, du: np.ndarray) -> np.ndarray:
        """Bᵀ (∂²L/∂(Bu)²) B δu."""
        moved = torch.from_numpy(self._B.apply(du))
        (bent,) = torch.autograd.grad(self._slope, self._at_points, moved, retain_graph=True)
        return self._B.transpose(bent.numpy())

    def _pushed_forward(self, direction: Sequence[Tensor]) -> list[np.ndarray]:
        """m′(θ) v for each coefficient: backwards twice through θ ↦ m, which has no forward mode of its own here."""
        out = []
        for m in self._m:
            if not m.requires_grad:
                out.append(np.zeros(len(m)))
                continue
            dual = torch.zeros_like(m, requires_grad=True)
            pulled = torch.autograd.grad(m, self.parameters, dual, create_graph=True, allow_unused=True)
            pairs = [(g, v) for g, v in zip(pulled, direction, strict=True) if g is not None]
            total = sum((g * v).sum() for g, v in pairs)
            (moved,) = torch.autograd.grad(total, dual, retain_graph=True)
            out.append(moved.numpy())
        return out

    def _pulled_back(self, m_gradient: Sequence[Tensor], direction: Sequence[Tensor] | None = None) -> list[Tensor]:
        """m′(θ)ᵀ m̄, and with a direction v also the part of H v that comes from the curvature of θ ↦ m."""
        out = [torch.zeros_like(p) for p in self.parameters]
        for m, g, slope in zip(self._m, m_gradient, self._m_gradient, strict=True):
            if not m.requires_grad:
                continue
            _add(out, torch.autograd.grad(m, self.parameters, g, retain_graph=True, allow_unused=True))
            if direction is None:
                continue
            first = torch.autograd.grad(m, self.parameters, slope, create_graph=True, allow_unused=True)
            pairs = [(h, v) for h, v in zip(first, direction, strict=True) if h is not None and h.requires_grad]
            if pairs:
                total = sum((h * v).sum() for h, v in pairs)
                _add(out, torch.autograd.grad(total, self.parameters, retain_graph=True, allow_unused=True))
        return sum_tensors(out, [not is_distributed(p) for p in self.parameters], self.physical.comm)

    def _checked(self, direction: Sequence[Tensor]) -> list[Tensor]:
        with agreed(self.physical.comm):
            shapes = [tuple(p.shape) for p in self.parameters]
            if [tuple(v.shape) for v in direction] != shapes:
                raise ValueError(
                    f"a direction needs one tensor for each parameter, of shapes {shapes}, not "
                    f"{[tuple(v.shape) for v in direction]}"
                )
        return [v.detach().to(torch.float64) for v in direction]


def _add(out: list[Tensor], parts: Sequence[Tensor | None]) -> None:
    for total, part in zip(out, parts, strict=True):
        if part is not None:
            total += part.detach()
