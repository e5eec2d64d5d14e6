"""The energy whose minimiser solves −∇·(κ∇u) + ηu = f, of whatever is given: a Function, a network, a formula.

    E(v) = ∫_Ω ½κ|∇v|² + ½ηv² − fv dx − ∫_{Γ_N} hv ds  [+ ½β ∫_{Γ_D} (v − g)² ds]

with u = g on Γ_D and κ ∂u/∂n = h on Γ_N = ∂Ω \\ Γ_D (Ritz 1909).  For the minimiser u, E(v) − E(u) = ½‖v − u‖_E² with
‖w‖_E² = ∫κ|∇w|² + ηw², for every v with v = g on Γ_D.  With a penalty β the minimiser is another: κ ∂u/∂n = β(g − u) on
Γ_D, at a distance of O(1/β) from u.

The integrals are sums over the points of a quadrature, which a network may exploit: see `DeepRitz`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn
from ufl.core.expr import Expr

from hyco_fem.bridge.integration import BoundaryQuadrature, CellQuadrature, Field, called, check_graph
from hyco_fem.bridge.points import Points
from hyco_fem.parallel import agreed, sum_array


@dataclass(frozen=True)
class Jet:
    """What an energy sees of a field: its values (n,) and gradients (n, d) in Ω, and its values on Γ_N and Γ_D.

    Of K fields at once, a column each: (n, K), (n, K, d), (n_N, K), (n_D, K).
    """

    values: Tensor
    gradients: Tensor
    natural: Tensor
    fixed: Tensor

    def __sub__(self, other: Jet) -> Jet:
        return Jet(
            self.values - other.values,
            self.gradients - other.gradients,
            self.natural - other.natural,
            self.fixed - other.fixed,
        )

    def detach(self) -> Jet:
        """The same without a graph."""
        return Jet(self.values.detach(), self.gradients.detach(), self.natural.detach(), self.fixed.detach())


class RitzEnergy:
    """E(v) on the quadrature of a mesh.

    Args:
        mesh: Ω; 1D to 3D.
        f, kappa, eta: Numbers, UFL expressions, Functions, or functions of coordinates (n, d); κ > 0 and η ≥ 0.
        flux: h on Γ_N.  g: the values on Γ_D.
        penalty: β; None where the trial functions meet g themselves, such as a `HardBoundary`.
        dirichlet: Γ_D: local facets, or a function of x (3, n) that is True on them, as in `BoundaryQuadrature`; by
            default the whole boundary.
        degree: Of the quadrature.

    Attributes:
        x, weights: the points in Ω owned here, (n, d) and (n,); kappa, eta, f: the coefficients there.
        natural, fixed: the rules on Γ_N and Γ_D.  comm: that of the mesh.

    Raises:
        ValueError: a coefficient is not finite, κ is not positive, η is negative, or nothing holds the constants (no
            Γ_D and η = 0); on all ranks.

    Construction and all methods are collective.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        f: Field = 1.0,
        kappa: Field = 1.0,
        eta: Field = 0.0,
        flux: Field = 0.0,
        g: Field = 0.0,
        *,
        penalty: float | None = None,
        dirichlet: Any = None,
        degree: int = 4,
    ) -> None:
        self.mesh, self.comm = mesh, mesh.comm
        with agreed(self.comm):
            if penalty is not None and not 0 < penalty < math.inf:
                raise ValueError(f"the penalty must be finite and positive, or None, not {penalty}")
        self.penalty = penalty
        self._arguments = dict(f=f, kappa=kappa, eta=eta, flux=flux, g=g, penalty=penalty, dirichlet=dirichlet)
        self._degree = degree
        self.inside: CellQuadrature | None = CellQuadrature(mesh, degree)
        self.fixed = BoundaryQuadrature(mesh, degree, dirichlet)
        boundary = BoundaryQuadrature(mesh, degree)
        self.natural = BoundaryQuadrature(mesh, degree, np.setdiff1d(boundary.facets, self.fixed.facets))
        self.x, self.weights = self.inside.x, self.inside.weights
        self.kappa, self.eta, self.f = (self.inside.values(c) for c in (kappa, eta, f))
        self.flux, self.g = self.natural.values(flux), self.fixed.values(g)
        self._given = {"kappa": kappa, "eta": eta, "f": f}
        self._check()
        parts = (self.weights, self.fixed.weights, self.eta, self.flux.abs())
        sums = [float(part.sum()) for part in parts]
        inside = [float(self.weights @ c) for c in (self.kappa, self.eta, self.f.abs(), self.f.square())]
        around = [float(self.natural.weights @ self.flux.square()), float(self.fixed.weights @ self.g.square())]
        totals = [float(total) for total in sum_array(self.comm, np.array([*sums, *inside, *around]))]
        self.volume, self.fixed_area, held, load, *self._integrals = totals
        self._loaded = load > 0
        with agreed(self.comm):
            if self.fixed_area == 0 and held == 0:
                raise ValueError(
                    "nothing holds the constants: give values on a part of the boundary (dirichlet=), or η > 0"
                )

    def _check(self) -> None:
        given = {"kappa": self.kappa, "eta": self.eta, "f": self.f, "flux": self.flux, "g": self.g}
        with agreed(self.comm):
            for name, values in given.items():
                if values.ndim != 1:
                    raise ValueError(f"{name} must be a scalar field, not one of shape {tuple(values.shape[1:])}")
                if not bool(torch.isfinite(values).all()):
                    raise ValueError(f"{name} is not finite at a point of the quadrature")
            if bool((self.kappa <= 0).any()):
                raise ValueError(f"kappa must be positive; it is {float(self.kappa.min())} at a point")
            if bool((self.eta < 0).any()):
                raise ValueError(f"eta must not be negative; it is {float(self.eta.min())} at a point")

    def identity(self) -> str:
        """What tells this energy from others, in words.  Not collective."""
        names = ("kappa", "eta", "|f|", "f²", "flux²", "g²")
        integrals = ", ".join(f"{name} {value:.6g}" for name, value in zip(names, self._integrals, strict=True))
        return f"integrals of {integrals}; volume {self.volume:.6g}, penalty {self.penalty}, degree {self._degree}"

    @property
    def d(self) -> int:
        """The geometric dimension."""
        return self.x.shape[1]

    def finer(self, more: int = 4) -> RitzEnergy:
        """The same energy on a quadrature of a degree that is higher by `more`.

        Of a network that was trained on this one: where the two differ, it has found its way between the points.
        """
        return RitzEnergy(self.mesh, **self._arguments, degree=self._degree + more)

    def at(self, points: Points) -> RitzEnergy:
        """The same energy with Ω integrated by the mean over points, such as those that `RandomGhosts` draws.

        Raises ValueError where a coefficient is a UFL expression, which has values on quadrature points only.
        """
        other = copy.copy(self)
        other.inside, other.x, other.weights = None, points.x, self.volume * points.weights
        for name, given in self._given.items():
            setattr(other, name, self._value_at(points, name, given))
        other._check()
        return other

    def _value_at(self, points: Points, name: str, given: Field) -> Tensor:
        if isinstance(given, fem.Function) and given.function_space.mesh is self.mesh:
            return points.evaluate(given).detach()
        with agreed(self.comm):
            if isinstance(given, Expr):
                raise ValueError(
                    f"{name} is a UFL expression, which random points cannot evaluate: give a number, a Function of "
                    "this mesh, or a function of coordinates"
                )
            if callable(given):
                with torch.no_grad():
                    return _scalar(given(points.x), points.x)
        return torch.full((len(points.x),), float(given), dtype=torch.float64)

    # -- fields ------------------------------------------------------------------------------------------------

    def jet(self, v: Field) -> Jet:
        """Values and gradients of a scalar field; differentiable in the parameters of a module."""
        formula = v if callable(v) and not isinstance(v, Expr) else None
        # Where no graph is kept, a quadrature goes through its points in pieces.
        if formula is not None and (self.inside is None or torch.is_grad_enabled()):
            with agreed(self.comm):
                values, gradients = value_and_gradient(formula, self.x)
                natural, fixed = (_scalar(formula(rule.x), rule.x) for rule in (self.natural, self.fixed))
            return Jet(values, gradients, natural, fixed)
        inside = self.inside
        if inside is None:
            raise ValueError("at random points an energy takes networks and functions of coordinates only")
        natural, fixed = (
            torch.full_like(rule.weights, torch.nan) if self._elsewhere(v) and not used else rule.values(v)
            for rule, used in ((self.natural, self._loaded), (self.fixed, self.penalty is not None))
        )
        found = Jet(inside.values(v), inside.gradients(v), natural, fixed)
        with agreed(self.comm):
            if found.values.ndim != 1:
                raise ValueError(f"the energy is one of scalar fields, not of shape {tuple(found.values.shape[1:])}")
        return found

    def _elsewhere(self, v: Field) -> bool:
        """Whether this is a Function of another mesh, of which the boundary may lie elsewhere."""
        return isinstance(v, fem.Function) and v.function_space.mesh is not self.mesh

    def of(self, v: Jet) -> Tensor:
        """This rank's summand of E(v)."""
        density = 0.5 * self.kappa * v.gradients.square().sum(1) + (0.5 * self.eta * v.values - self.f) * v.values
        local = self.weights @ density
        if self._loaded:
            local = local - self.natural.weights @ (self.flux * v.natural)
        if self.penalty is not None:
            local = local + 0.5 * self.penalty * (self.fixed.weights @ (v.fixed - self.g).square())
        return local

    def local(self, v: Field) -> Tensor:
        """This rank's summand of E(v), differentiable in the parameters of a module."""
        return self.of(self.jet(v))

    def value(self, v: Field) -> float:
        """E(v), replicated."""
        return self._total(self.of(self._seen(v)))

    def distance(self, u: Field, v: Field = 0.0) -> float:
        """‖u − v‖_E = (∫κ|∇(u − v)|² + η(u − v)²  [+ β ∫_{Γ_D} (u − v)²])^½, replicated."""
        e = self._seen(u) - self._seen(v)
        square = self.weights @ (self.kappa * e.gradients.square().sum(1) + self.eta * e.values.square())
        if self.penalty is not None:
            square = square + self.penalty * (self.fixed.weights @ e.fixed.square())
        return math.sqrt(self._total(square))

    def missed(self, v: Field | Jet) -> float:
        """The mean square of v − g over Γ_D, replicated; zero where there is no Γ_D.

        NaN for a Function of another mesh, which is evaluated in Ω only.
        """
        values = v.fixed if isinstance(v, Jet) else self._seen(v).fixed
        missed = self._total(self.fixed.weights @ (values.detach() - self.g).square())
        return missed / self.fixed_area if self.fixed_area > 0 else 0.0

    def _seen(self, v: Field) -> Jet:
        """The jet of a field without a graph."""
        with torch.no_grad():
            return self.jet(v).detach()

    def _total(self, local: Tensor) -> float:
        return float(sum_array(self.comm, np.array([float(local)]))[0])


def value_and_gradient(v: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """v (n,) and ∇v (n, d) of a scalar function that treats each point by itself, in one pass.  Local."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = _scalar(called(v, x), x)
        check_graph(values)
        slopes = None
        if values.requires_grad:
            (slopes,) = torch.autograd.grad(values.sum(), x, create_graph=keep, allow_unused=True)
    return values, torch.zeros_like(x) if slopes is None else slopes


def _scalar(values: Tensor, x: Tensor) -> Tensor:
    """The values of a scalar field, (n,), checked."""
    if not isinstance(values, Tensor):
        raise TypeError(f"a field must return a tensor, not {type(values).__name__}")
    values = values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (len(x),):
        raise ValueError(
            f"the energy is one of scalar fields: a network with one output, not values of shape {tuple(values.shape)} "
            f"at {len(x)} points"
        )
    if values.dtype != torch.float64:
        raise TypeError(f"a field returned {values.dtype}; hyco_fem computes in float64: call .double() on it")
    return values
