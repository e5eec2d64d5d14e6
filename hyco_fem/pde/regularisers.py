"""Regularisers R(m) of a coefficient field m: what is preferred among the fields that explain the data equally well.

    L2Tikhonov       R = ½ ∫ (m − m₀)²                                     small
    H1Tikhonov       R = ½ ∫ |∇(m − m₀)|² + ½ c ∫ (m − m₀)²                smooth
    BiLaplacian      R = ½ (m − m₀)ᵀ A M⁻¹ A (m − m₀)                      a Gaussian prior with Matérn covariance
    TotalVariation   R = ∫ √(|∇m|² + ε²)                                   flat, with jumps

Each knows its value, gradient (a dual vector: the assembled linear form R′(m; ·)), Hessian, and a symmetric positive
definite preconditioner P close to the Hessian, whose factors are made once, or, where it changes with m, once for each
`linearise`.  P is also the inner product in which gradients are measured and steps are taken.

Forms are compiled once and assembled in place.  Everything is distributed: arrays hold the owned dofs of this rank,
(n_owned,), blocks unrolled; construction and every method are collective.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, TypeAlias

import numpy as np
import ufl
from dolfinx import fem, la

from hyco_fem import _compat
from hyco_fem.pde.check import check_interior_facets
from hyco_fem.pde.inner import SymmetricMatrix, check_continuous, compiled, dot, measure
from hyco_fem.pde.vectors import local, owned, set_owned

Reference: TypeAlias = float | fem.Function


class Regulariser(Protocol):
    """What an inversion asks of a regulariser.  Q: the space of m, the same object as that of its Function."""

    Q: fem.FunctionSpace

    def value(self, m: np.ndarray) -> float:
        """R(m), equal on all ranks."""

    def gradient(self, m: np.ndarray) -> np.ndarray:
        """R′(m; φ_i), a dual vector."""

    def linearise(self, m: np.ndarray) -> None:
        """Make `product` and `precondition` those at m; they serve before it too, then at the reference."""

    def product(self, v: np.ndarray) -> np.ndarray:
        """R″ v, a dual vector."""

    def precondition(self, g: np.ndarray) -> np.ndarray:
        """P⁻¹ g, a field."""

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""


class _Quadratic:
    """½ (m − m₀)ᵀ H (m − m₀): what these have in common."""

    def __init__(self, Q: fem.FunctionSpace, reference: Reference) -> None:
        self.Q = Q
        self._reference = _field(Q, reference)

    def value(self, m: np.ndarray) -> float:
        d = m - self._reference
        return 0.5 * dot(self.Q, d, self.product(d))

    def gradient(self, m: np.ndarray) -> np.ndarray:
        return self.product(m - self._reference)

    def linearise(self, m: np.ndarray) -> None:
        """Nothing to do: the Hessian is the same everywhere."""

    def product(self, v: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class _Tikhonov(_Quadratic):
    """H is one matrix, its own preconditioner."""

    _matrix: SymmetricMatrix

    def product(self, v: np.ndarray) -> np.ndarray:
        return self._matrix.times(v)

    def precondition(self, g: np.ndarray) -> np.ndarray:
        return self._matrix.solve(g)

    def close(self) -> None:
        self._matrix.close()


class L2Tikhonov(_Tikhonov):
    """½ ∫ (m − m₀)².

    Args:
        Q: Any Lagrange space, discontinuous ones included.
        reference: m₀, a number or a Function of Q.

    Raises:
        ValueError: the reference is not finite or not of Q.
    """

    def __init__(self, Q: fem.FunctionSpace, reference: Reference = 0.0) -> None:
        super().__init__(Q, reference)
        v, w = ufl.TestFunction(Q), ufl.TrialFunction(Q)
        self._matrix = SymmetricMatrix(ufl.inner(v, w) * ufl.dx, Q, "the L² regulariser")


class H1Tikhonov(_Tikhonov):
    """½ ∫ |∇(m − m₀)|² + ½ c ∫ (m − m₀)².

    Args:
        Q: A continuous Lagrange space.
        reference: m₀, a number or a Function of Q.
        mass: c > 0, in 1/length², without which constants would cost nothing and R had no inverse; by default 0.01/L²,
            where L^d is the measure of the mesh.

    Raises:
        ValueError: a discontinuous space, c not positive, a reference that does not fit.
    """

    def __init__(self, Q: fem.FunctionSpace, reference: Reference = 0.0, *, mass: float | None = None) -> None:
        check_continuous(Q, "H1Tikhonov", "use TotalVariation or L2Tikhonov")
        super().__init__(Q, reference)
        self.mass = 0.01 / _extent(Q) ** 2 if mass is None else _positive(mass, "the mass of H1Tikhonov")
        v, w = ufl.TestFunction(Q), ufl.TrialFunction(Q)
        c = fem.Constant(Q.mesh, self.mass)
        form = (ufl.inner(ufl.grad(v), ufl.grad(w)) + c * ufl.inner(v, w)) * ufl.dx
        self._matrix = SymmetricMatrix(form, Q, "the H¹ regulariser")


class BiLaplacian(_Quadratic):
    """½ (m − m₀)ᵀ A M⁻¹ A (m − m₀) with A = γ K + δ M + β M_∂: −log of a Gaussian density with Matérn covariance.

    K and M are the stiffness and the (consistent) mass matrix, M_∂ the mass matrix of the boundary.  The covariance
    A⁻¹ M A⁻¹ discretises that of (−γΔ + δ)⁻² (Lindgren, Rue, Lindström 2011; Bui-Thanh, Ghattas, Martin, Stadler 2013;
    hIPPYlib).  Away from the boundary, in dimension d, with κ² = δ/γ and ν = 2 − d/2,

        correlation length (where the correlation is about 0.1)   ρ = √(8ν) / κ
        variance                                                  σ² = Γ(ν) / (Γ(2) (4π)^{d/2} κ^{2ν} γ²)

    so σ² = 1/(4πγδ) in 2D, 1/(8π γ^{3/2} δ^{1/2}) in 3D, γ^{-1/2} δ^{-3/2}/4 in 1D.  Natural conditions on the boundary
    raise the variance there; the Robin term γ ∂m/∂n + β m = 0, with β = √(γδ)/1.42, takes most of that away.

    Args:
        Q: A continuous Lagrange space.
        gamma, delta: γ, δ > 0.
        reference: m₀, the mean of the prior.
        robin: Whether A has the Robin term.

    Attributes:
        std, length: σ and ρ.

    Raises:
        ValueError: a discontinuous space, γ or δ not positive, a reference that does not fit.
    """

    def __init__(
        self, Q: fem.FunctionSpace, gamma: float, delta: float, reference: Reference = 0.0, *, robin: bool = True
    ) -> None:
        check_continuous(Q, "BiLaplacian", "use TotalVariation or L2Tikhonov")
        self.gamma, self.delta = _positive(gamma, "gamma of BiLaplacian"), _positive(delta, "delta of BiLaplacian")
        super().__init__(Q, reference)
        nu, kappa = _nu(Q), math.sqrt(self.delta / self.gamma)
        self.length = math.sqrt(8 * nu) / kappa
        self.std = math.sqrt(_variance_factor(Q)) / (kappa**nu * self.gamma)
        v, w = ufl.TestFunction(Q), ufl.TrialFunction(Q)
        g, d = fem.Constant(Q.mesh, self.gamma), fem.Constant(Q.mesh, self.delta)
        form = (g * ufl.inner(ufl.grad(v), ufl.grad(w)) + d * ufl.inner(v, w)) * ufl.dx
        if robin:
            form += fem.Constant(Q.mesh, math.sqrt(self.gamma * self.delta) / 1.42) * ufl.inner(v, w) * ufl.ds
        self._A = SymmetricMatrix(form, Q, "the bi-Laplacian regulariser")
        self._M = SymmetricMatrix(ufl.inner(v, w) * ufl.dx, Q, "the mass matrix of the bi-Laplacian regulariser")

    @classmethod
    def matern(
        cls, Q: fem.FunctionSpace, std: float, length: float, reference: Reference = 0.0, *, robin: bool = True
    ) -> BiLaplacian:
        """The one with marginal standard deviation σ and correlation length ρ (in the length unit of the mesh)."""
        std, length = _positive(std, "the standard deviation"), _positive(length, "the correlation length")
        nu = _nu(Q)
        kappa = math.sqrt(8 * nu) / length
        gamma = math.sqrt(_variance_factor(Q)) / (kappa**nu * std)
        return cls(Q, gamma, gamma * kappa**2, reference, robin=robin)

    def product(self, v: np.ndarray) -> np.ndarray:
        """A M⁻¹ A v."""
        return self._A.times(self._M.solve(self._A.times(v)))

    def precondition(self, g: np.ndarray) -> np.ndarray:
        """A⁻¹ M A⁻¹ g: the covariance, the exact inverse of `product`."""
        return self._A.solve(self._M.times(self._A.solve(g)))

    def close(self) -> None:
        self._A.close()
        self._M.close()


class TotalVariation:
    """∫ √(|∇m|² + ε²) − ε, and where m is constant on each cell Σ_facets ∫ √(⟦m⟧² + (εh)²) − εh.

    Args:
        Q: A continuous Lagrange space, or DG of degree 0 (h: mean diameter of the two cells of a facet).
        epsilon: ε > 0, in the unit of m over length: gradients far below it are smoothed, far above it are edges.
        hessian: "full": R″, which is positive semi-definite, since R is convex; or "lagged": that of the quadratic form
            ½ ∫ |∇v|²/√(|∇m|² + ε²), the lagged diffusivity of Vogel and Oman (1996), which is never less than R″: its
            steps need no shortening, but are two to four times as many.

    R does not see constants; P is the Hessian plus a small mass, 0.01/(ε L²), where L^d is the measure of the mesh.

    Raises:
        ValueError: another space, ε not positive, another kind of Hessian.
    """

    def __init__(self, Q: fem.FunctionSpace, epsilon: float, *, hessian: Literal["full", "lagged"] = "full") -> None:
        element = Q.element.basix_element
        if element.discontinuous and element.degree > 0:
            raise ValueError(f"TotalVariation needs a continuous space or DG 0, not DG of degree {element.degree}")
        if hessian not in ("lagged", "full"):
            raise ValueError(f"hessian must be 'full' or 'lagged', not {hessian!r}")
        self.epsilon = _positive(epsilon, "epsilon of TotalVariation")
        self.Q = Q
        self._m = fem.Function(Q)
        self._dual = fem.Function(Q)
        e = fem.Constant(Q.mesh, self.epsilon)
        v, w = ufl.TestFunction(Q), ufl.TrialFunction(Q)
        if element.degree == 0:
            e, dV, D = e * ufl.avg(ufl.CellDiameter(Q.mesh)), ufl.dS(metadata={"quadrature_degree": 0}), ufl.jump
        else:
            # The gradient of P1 fields is constant on a simplex.
            degree = 0 if element.degree == 1 and _affine(Q) else 2 * element.degree
            dV, D = ufl.dx(metadata={"quadrature_degree": degree}), ufl.grad
        size = ufl.sqrt(ufl.inner(D(self._m), D(self._m)) + e**2)
        R = (size - e) * dV
        check_interior_facets(R, Q)
        gradient = ufl.derivative(R, self._m, v)
        H = ufl.derivative(gradient, self._m, w) if hessian == "full" else ufl.inner(D(v), D(w)) / size * dV
        self._value, self._gradient = compiled(R), compiled(gradient)
        self._hessian = SymmetricMatrix(H, Q, "the total variation")
        c = fem.Constant(Q.mesh, 0.01 / (self.epsilon * _extent(Q) ** 2))
        self._P = SymmetricMatrix(H + c * ufl.inner(v, w) * ufl.dx, Q, "the preconditioner of the total variation")

    def value(self, m: np.ndarray) -> float:
        set_owned(self._m, m)
        return float(self.Q.mesh.comm.allreduce(fem.assemble_scalar(self._value)))

    def gradient(self, m: np.ndarray) -> np.ndarray:
        set_owned(self._m, m)
        local(self._dual)[:] = 0.0
        fem.assemble_vector(local(self._dual), self._gradient)
        self._dual.x.scatter_reverse(la.InsertMode.add)
        return owned(self._dual).copy()

    def linearise(self, m: np.ndarray) -> None:
        """Assemble the Hessian and P at m."""
        set_owned(self._m, m)
        self._hessian.assemble()
        self._P.assemble()

    def product(self, v: np.ndarray) -> np.ndarray:
        return self._hessian.times(v)

    def precondition(self, g: np.ndarray) -> np.ndarray:
        return self._P.solve(g)

    def close(self) -> None:
        self._hessian.close()
        self._P.close()


def _field(Q: fem.FunctionSpace, reference: Reference) -> np.ndarray:
    """Owned values of m₀."""
    if isinstance(reference, fem.Function):
        if reference.function_space != Q:
            raise ValueError(f"the reference '{reference.name}' must be a Function of the regulariser's own space")
        return owned(reference).copy()
    if not math.isfinite(reference):
        raise ValueError(f"the reference of a regulariser must be finite, not {reference}")
    return np.full(len(owned(fem.Function(Q))), float(reference))


def _positive(value: float, what: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be finite and positive, not {value}")
    return float(value)


def _extent(Q: fem.FunctionSpace) -> float:
    """L, the side of a cube as large as the mesh."""
    return measure(Q) ** (1.0 / Q.mesh.topology.dim)


def _affine(Q: fem.FunctionSpace) -> bool:
    """Whether the cells are simplices with straight sides."""
    straight = _compat.coordinate_map(Q.mesh).degree == 1
    return straight and Q.mesh.topology.cell_name() in ("interval", "triangle", "tetrahedron")


def _nu(Q: fem.FunctionSpace) -> float:
    return 2.0 - Q.mesh.topology.dim / 2


def _variance_factor(Q: fem.FunctionSpace) -> float:
    """σ² κ^{2ν} γ²; Γ(ν + d/2) = Γ(2) = 1."""
    return math.gamma(_nu(Q)) / (4 * math.pi) ** (Q.mesh.topology.dim / 2)
