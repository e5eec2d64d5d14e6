"""Guaranteed error bounds for any approximation v ∈ H¹ of

    −∇·(κ∇u) + ηu = f in Ω,    u = g on Γ_D,    κ∇u·n = a number on Γ_N = ∂Ω \\ Γ_D,

whatever made v: finite elements, a network, either model of a cooperation.  Nothing of u is used.  With the energy norm
‖w‖_E² = ‖κ^{1/2}∇w‖² + ‖η^{1/2}w‖² and any w ∈ H¹ that is g − v on Γ_D,

    ‖u − v‖_E² ≤ Σ_K E_K² + ‖w‖_E².

1. Let w* have the least energy among all such w, so that a(w*, z) = 0 for all z that vanish on Γ_D.  Then e₀ =
   u − v − w* is such a z, and ‖u − v‖_E² = ‖e₀‖_E² + ‖w*‖_E²: what v misses on the boundary adds to the rest as
   squares add (Bartels, Carstensen, Dolzmann, Numer. Math. 99, 2004).
2. For such z, and any σ ∈ H(div) with σ·n = κ∇u·n on Γ_N (Prager, Synge, Q. Appl. Math. 5, 1947; Repin, Math. Comp.
   69, 2000),

       a(e₀, z) = a(u − v, z) = (σ − κ∇v, ∇z) + (R, z),    R = f + div σ − ηv.

3. On a cell K, with m_K = diam K/(π √κ_K), κ_K ≤ κ on K, and j₁,₁ = 3.83… for π on triangles (Payne, Weinberger 1960;
   Bebendorf 2003; Laugesen, Siudeja 2010): if R has mean zero on K (Ern, Vohralík, SIAM J. Numer. Anal. 53, 2015), or
   if η > 0 on K, the right side on K is at most E_K ‖z‖_{E,K} with

       E_K = ‖κ^{−1/2}(σ − κ∇v)‖_K + m_K ‖R‖_K,    or    E_K² = ‖κ^{−1/2}(σ − κ∇v)‖_K² + ‖η^{−1/2}R‖_K².

   z = e₀ gives the bound.

σ comes from a Raviart–Thomas space (flux.py): equilibrated, so that R has means zero and both E_K hold, and where η > 0
everywhere also by least squares, which is the sharper one for large η.  The smaller bound is reported.  For η = 0,
R = 0 and v = g on Γ_D its square exceeds that of the error by exactly ‖κ^{−1/2}(κ∇u − σ)‖² (Prager, Synge): what the
best flux in the space misses, for whatever v.  w is that of lifting.py.

What has to hold: Ω is the mesh, of straight triangles or tetrahedra; v, f, κ, η and g are what was passed, v is
continuous, and κ is constant on each cell or `kappa_bounds` are bounds of it (else the least and largest values at the
quadrature points stand for them, as for η in ‖w‖).  Integrals are by quadrature: exact where all data are piecewise
polynomials of moderate degree; for a network, by how much the value moves under a finer rule is said (`quadrature`).
Rounding is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from scipy.special import jn_zeros
from torch import Tensor
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.accuracy.domain import check_simplices, dirichlet_facets
from hyco_fem.accuracy.flux import EquilibratedFlux, FluxAtPoints, LeastSquaresFlux
from hyco_fem.accuracy.lifting import Mismatch
from hyco_fem.bridge.boundary import FacetRule, facet_rule
from hyco_fem.bridge.dofs import check_lagrange
from hyco_fem.bridge.ghosts import check_whole
from hyco_fem.bridge.integration import CellQuadrature, Field, called
from hyco_fem.parallel import agreed, max_over_ranks, sum_array

# Points at which a network is evaluated at once.
_PIECE = 1 << 14

# By how much the degree of the finer quadrature is higher.
_FINER = 4

_HEADER = "certificate        flux  oscillation    boundary  quadrature  by"


class _Bound(Protocol):
    """What `explicit_bound` returns."""

    @property
    def C_h(self) -> float: ...

    @property
    def h(self) -> float: ...


@dataclass(frozen=True)
class Certificate:
    """A bound of the energy norm of u − v.  Replicated, but for `by_cell`.

    value: ≥ (‖κ^{1/2}∇(u − v)‖² + ‖η^{1/2}(u − v)‖²)^{1/2}.
    flux: ‖κ^{−1/2}(σ − κ∇v)‖.  oscillation: of m_K ‖R‖_K or ‖η^{−1/2}R‖_K, over all K.  boundary: ‖w‖_E, from boundary
    values that v misses.  flux² + oscillation² ≤ value² − boundary² ≤ (flux + oscillation)².
    quadrature: an estimate of what quadrature misses, the one part without a guarantee: the relative change of the
        value under a finer rule, or, for a network or formula, by how much ∫_K ∇v and ∮_∂K v n differ, over the value,
        where that is more: a slope that no point of the rule has met is seen on the other side of the cell.
    equilibrated: whether σ is the equilibrated flux, or else that of least squares.
    by_cell: contributions of the owned cells, (n_owned_cells,), whose squares sum to value²: error indicators.
    f_norm: ‖f‖ in L².
    """

    value: float
    flux: float
    oscillation: float
    boundary: float
    quadrature: float
    equilibrated: bool
    f_norm: float
    by_cell: np.ndarray = field(repr=False, compare=False)

    def efficiency(self, true_error: float) -> float:
        """value / true error, ≥ 1."""
        if not true_error > 0.0:
            raise ValueError(f"the efficiency needs a positive true error, not {true_error!r}")
        return self.value / true_error

    def equivalent_mesh_size(self, bound: _Bound) -> float:
        """h_eq = value / (C_h/h · ‖f‖): the mesh size (diameter) at which P1 is promised to be as good as v.

        Args:
            bound: `explicit_bound` of a mesh of this domain, for the same κ and η = 0.
        """
        if not self.f_norm > 0.0:
            raise ValueError("f is zero: the bound C_h ‖f‖ promises nothing to compare with")
        return self.value * bound.h / (bound.C_h * self.f_norm)

    def __str__(self) -> str:
        by = "equilibration" if self.equilibrated else "least squares"
        parts = (self.value, self.flux, self.oscillation, self.boundary)
        return f"{_HEADER}\n" + "  ".join(f"{part:10.4e}" for part in parts) + f"  {self.quadrature:10.1e}  {by}"


class _Rule:
    """A quadrature rule with all data at its points, and what each E_K needs."""

    def __init__(
        self, mesh: dmesh.Mesh, degree: int, f: Field, kappa: Field, eta: Field, bounds: tuple[Field, Field] | None
    ) -> None:
        self.rule = rule = CellQuadrature(mesh, degree)
        with torch.no_grad():
            self.f, self.kappa, self.eta = (rule.values(given) for given in (f, kappa, eta))
            found = [rule.values(bound) for bound in bounds] if bounds else [self.kappa, self.kappa]
        with agreed(mesh.comm):
            for name, values in (("f", self.f), ("kappa", self.kappa), ("eta", self.eta), *zip(_BOUNDS, found)):  # noqa: B905
                if values.shape != (len(rule),):
                    raise ValueError(f"{name} must be a scalar, not a field of shape {tuple(values.shape[1:])}")
                if not values.isfinite().all():
                    raise ValueError(f"{name} is not finite everywhere")
            if len(rule):
                if not self.kappa.min() > 0.0:
                    raise ValueError(f"kappa must be positive; it has the value {float(self.kappa.min()):g}")
                if not self.eta.min() >= 0.0:
                    raise ValueError(f"eta must not be negative; it has the value {float(self.eta.min()):g}")
                lower, upper = found
                if bounds and not ((lower > 0.0) & (lower <= self.kappa) & (self.kappa <= upper)).all():
                    raise ValueError("kappa_bounds must be 0 < κ⁻ ≤ κ ≤ κ⁺; here kappa lies outside them")
        shape = (rule.n_cells, rule.q)
        self.kappa_least, self.kappa_most = found[0].reshape(shape).amin(1), found[1].reshape(shape).amax(1)
        self.eta_least = self.eta.reshape(shape).amin(1)
        tdim = mesh.topology.dim
        cells = np.arange(rule.n_cells, dtype=np.int32)
        diameters = torch.from_numpy(mesh.h(tdim, cells) if rule.n_cells else np.empty(0))
        self.poincare = diameters / ((jn_zeros(1, 1)[0] if tdim == 2 else math.pi) * self.kappa_least.sqrt())

    def of(self, v: Field, comm: Any) -> tuple[Tensor, Tensor]:
        """v and ∇v at the points."""
        with torch.no_grad():
            values, gradients = self.rule.values(v), self.rule.gradients(v)
        with agreed(comm):
            if values.shape != (len(self.rule),):
                raise ValueError(f"v must be a scalar, not a field of shape {tuple(values.shape[1:])}")
            if not (values.isfinite().all() and gradients.isfinite().all()):
                raise ValueError("v or its gradient is not finite everywhere")
        return values, gradients

    def parts(self, v: tuple[Tensor, Tensor], flux: tuple[Tensor, Tensor], means_vanish: bool) -> np.ndarray:
        """On each owned cell the squares of E_K, of what σ misses of κ∇v, and of what R adds, (n_cells, 3)."""
        values, gradients = v
        sigma, divergence = flux
        difference = (sigma - self.kappa[:, None] * gradients).square().sum(1) / self.kappa
        R = self.f + divergence - self.eta * values
        a = self.rule.by_cell(difference)
        r = np.full_like(a, np.inf)
        some = (self.eta_least > 0.0).numpy()
        if some.any():
            by_eta = torch.where(self.eta > 0.0, R.square() / self.eta, torch.zeros_like(R))
            r[some] = self.rule.by_cell(by_eta)[some]
        E = a + r
        if means_vanish:
            m = self.poincare.numpy() * np.sqrt(self.rule.by_cell(R.square()))
            by_mean = np.square(np.sqrt(a) + m)
            E, r = np.minimum(E, by_mean), np.where(by_mean < E, np.square(m), r)
        return np.column_stack([E, a, r])


_BOUNDS = ("the lower bound of kappa", "the upper bound of kappa")


class Certifier:
    """Certificates for approximations v of one problem: all factors made once, then one v after the other.

    Args:
        mesh: Straight triangles or tetrahedra, on which fluxes are computed; v may live elsewhere.
        f, kappa, eta: The data: numbers, UFL expressions and Functions, networks or formulas of coordinates (n, d).
        g: Boundary values on Γ_D; only its values there are used.
        dirichlet: Γ_D: local facets, or a function of x (3, n) that says which are on it; by default all of ∂Ω.
        flux: κ∇u·n on Γ_N, a number.
        flux_degree: k of RT_k, in the numbering of basix (RT_1 is the lowest order).  For P_p take p + 1.  Where v is
            better than the best flux, the certificate tells of the flux: then raise k, or refine the mesh.
        degree: Of the quadrature; by default 2 k + 6.
        kappa_bounds: (κ⁻, κ⁺), fields that bound κ on each cell, where it is not constant on cells.

    Raises:
        ValueError, TypeError: data that do not fit, on all ranks.
        SolveError: the factors need more memory than there is.

    Construction and every method are collective.  `close` it when done.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        *,
        f: Field = 1.0,
        kappa: Field = 1.0,
        eta: Field = 0.0,
        g: Field = 0.0,
        dirichlet: Any = None,
        flux: float = 0.0,
        flux_degree: int = 2,
        degree: int | None = None,
        kappa_bounds: tuple[Field, Field] | None = None,
    ) -> None:
        check_simplices(mesh, "a certificate")
        self.mesh, self.comm = mesh, mesh.comm
        with agreed(self.comm):
            check_whole("flux_degree", flux_degree, 1)
            degree = 2 * flux_degree + 6 if degree is None else degree
            check_whole("the degree of the quadrature", degree, 2 * flux_degree)
            _check_flux(flux)
            if kappa_bounds is not None and not (isinstance(kappa_bounds, tuple) and len(kappa_bounds) == 2):
                raise TypeError("kappa_bounds must be a pair (κ⁻, κ⁺)")
        on, off = _boundary(mesh, dirichlet)
        self._rules = [_Rule(mesh, degree + more, f, kappa, eta, kappa_bounds) for more in (0, _FINER)]
        data = self._rules[0]
        n_on, n_zero = sum_array(self.comm, np.array([float(len(on)), float((data.eta_least <= 0.0).sum())]))
        if n_on == 0.0 and n_zero > 0.0:
            raise ValueError(
                "dirichlet is empty and eta is not positive everywhere: there is no unique solution; give a Γ_D"
            )
        self.f_norm = math.sqrt(data.rule.integral(data.f.square()))
        self._fluxes: list[tuple[EquilibratedFlux | LeastSquaresFlux, list[FluxAtPoints]]] = []
        self._mismatch = None
        self._sides: FacetRule | None = None
        if n_on > 0.0:
            self._add(EquilibratedFlux(data.rule, flux_degree, data.kappa, off, float(flux)))
            fine, degrees = self._rules[1], (degree, degree + _FINER)
            most = fine.kappa_most.numpy()
            self._mismatch = Mismatch(fine.rule, on, g, fine.kappa, fine.eta, most, degrees)
        if n_zero == 0.0:
            self._add(LeastSquaresFlux(data.rule, flux_degree, data.kappa, data.eta, off, float(flux)))

    def _add(self, flux: EquilibratedFlux | LeastSquaresFlux) -> None:
        self._fluxes.append((flux, [FluxAtPoints(flux, data.rule) for data in self._rules]))

    def __enter__(self) -> Certifier:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __call__(self, v: Field) -> Certificate:
        """The certificate of v: a Function (of this mesh or another), a UFL expression, a network or formula.

        Raises:
            ValueError: v is not a continuous scalar, or not finite; on all ranks.
        """
        with agreed(self.comm):
            if not self._fluxes:
                raise ValueError("this Certifier has been closed; make another one")
            _check_continuous(v)
        there = [data.of(v, self.comm) for data in self._rules]
        missed = [np.zeros(self._rules[0].rule.n_cells)] * 2
        if self._mismatch is not None:
            (scale,) = max_over_ranks(self.comm, [max((float(u.abs().max()) for u, _ in there if len(u)), default=0.0)])
            found = self._mismatch(v, scale)
            missed = missed if found is None else [np.square(bound) for bound in found]
        data, (values, gradients) = self._rules[0], there[0]
        best: tuple[np.ndarray, np.ndarray, bool] | None = None
        for flux, evaluators in self._fluxes:
            flux.solve(gradients, data.eta * values - data.f)
            equilibrated = isinstance(flux, EquilibratedFlux)
            parts, again = (
                rule.parts(u, at(), equilibrated) for rule, u, at in zip(self._rules, there, evaluators, strict=True)
            )
            sums = sum_array(self.comm, np.array([*parts.sum(0), again[:, 0].sum(), *(m.sum() for m in missed)]))
            if best is None or sums[0] < best[0][0]:
                best = sums, parts[:, 0], equilibrated
        assert best is not None
        (square, flux_square, rest, again_square, boundary, again_boundary), by_cell, equilibrated = best
        value = math.sqrt(square + boundary)
        unseen = self._unseen(v, gradients)
        return Certificate(
            value=value,
            flux=math.sqrt(flux_square),
            oscillation=math.sqrt(rest),
            boundary=math.sqrt(boundary),
            quadrature=(
                max(abs(math.sqrt(again_square + again_boundary) / value - 1.0), unseen / value) if value > 0.0 else 0.0
            ),
            equilibrated=equilibrated,
            f_norm=self.f_norm,
            by_cell=np.sqrt(by_cell + missed[0]),
        )

    def _unseen(self, v: Field, gradients: Tensor) -> float:
        """(Σ_K κ_K |∫_K ∇v − ∮_∂K v n|² / |K|)^{1/2}, at most ‖κ^{1/2}∇v‖ for exact integrals of the second kind."""
        if isinstance(v, Expr) or not callable(v):
            return 0.0
        data, mesh = self._rules[0], self.mesh
        rule, per_cell = data.rule, mesh.topology.dim + 1
        if self._sides is None:
            cells = np.repeat(np.arange(rule.n_cells), per_cell)
            self._sides = facet_rule(mesh, cells, np.tile(np.arange(per_cell), rule.n_cells), rule.degree)
        sides = self._sides
        with agreed(self.comm), torch.no_grad():
            parts = [called(v, x).reshape(len(x)) for x in torch.from_numpy(sides.x).split(_PIECE)]
        values = torch.cat(parts).numpy() * sides.weights if parts else np.empty(0)
        square = np.zeros(rule.n_cells)
        for k in range(mesh.geometry.dim):
            around = np.bincount(sides.facet // per_cell, values * sides.normals[:, k], minlength=rule.n_cells)
            square += (rule.by_cell(gradients[:, k]) - around) ** 2
        volumes = rule.by_cell(torch.ones_like(data.kappa))
        local = (square * rule.by_cell(data.kappa) / volumes**2).sum()
        return math.sqrt(float(sum_array(self.comm, np.array([local]))[0]))

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        for flux, _ in self._fluxes:
            flux.close()
        self._fluxes = []
        if self._mismatch is not None:
            self._mismatch.close()
            self._mismatch = None


def certificate(v: Field, mesh: dmesh.Mesh | None = None, **problem: Any) -> Certificate:
    """The certificate of one v; `Certifier` takes many.  Collective.

    Args:
        v: The approximation.  mesh: by default that of the Function v.
        problem: As for `Certifier`; flux_degree is one more than the degree of a Function v, by default.
    """
    if mesh is None:
        if not isinstance(v, fem.Function):
            raise TypeError(f"the certificate of a {type(v).__name__} needs a mesh, on which fluxes are computed")
        mesh = v.function_space.mesh
    if isinstance(v, fem.Function) and v.function_space.num_sub_spaces == 0:
        problem.setdefault("flux_degree", v.function_space.element.basix_element.degree + 1)
    certifier = Certifier(mesh, **problem)
    try:
        return certifier(v)
    finally:
        certifier.close()


# -- arguments -------------------------------------------------------------------------------------------------


def _check_flux(flux: Any) -> None:
    if not isinstance(flux, Real) or not math.isfinite(flux):
        raise TypeError(f"flux must be a finite number, which Raviart–Thomas fluxes match exactly, not {flux!r}")


def _check_continuous(v: Any) -> None:
    if not isinstance(v, fem.Function):
        return
    V = v.function_space
    check_lagrange(V)
    if _compat.value_shape(V) != ():
        raise ValueError(f"v must be a scalar, not a Function of shape {_compat.value_shape(V)}")
    if V.element.basix_element.discontinuous:
        raise ValueError("v must be continuous: interpolate the Function into a ('Lagrange', p) space")


def _boundary(mesh: dmesh.Mesh, dirichlet: Any) -> tuple[np.ndarray, np.ndarray]:
    """Owned facets of Γ_D and of Γ_N.  Collective."""
    named = dirichlet_facets(mesh, dirichlet)
    exterior = np.asarray(dmesh.exterior_facet_indices(mesh.topology))
    some = np.isin(exterior, named)
    return exterior[some].astype(np.int32), exterior[~some].astype(np.int32)
