"""An a-priori error bound with a number in it: ‖κ^{1/2}∇(u − u_h)‖ ≤ C_h ‖f‖ and ‖u − u_h‖ ≤ C_h² ‖f‖ for every f ∈ L².

−∇·(κ∇u) = f in a polygon or polyhedron Ω, u = 0 on Γ_D, κ ∂u/∂n = 0 on the rest of ∂Ω; u_h is its P1 Galerkin solution.
C_h is computed from mesh and κ (Liu, Oishi, SIAM J. Numer. Anal. 51, 2013, for κ = 1), with no regularity assumed, so
corners and slits are allowed: C_h² = C₀² + κ_h².

With numbers 0 < κ⁻ ≤ κ ≤ κ⁺ known on each cell (equal, where κ is constant on cells), and f_h the cell means of f:

1. ũ solves for f_h in place of f.  (f − f_h, w) = Σ_K (f − f_h, w − mean_K w), and on a convex K Poincaré's constant is
   at most diam(K)/π (Payne, Weinberger 1960; Bebendorf 2003), so ‖κ^{1/2}∇(u − ũ)‖ ≤ C₀ ‖f − f_h‖ with
   C₀ = max_K diam(K) / (π √κ⁻_K).  For triangles j₁,₁ = 3.83… may stand for π (Laugesen, Siudeja 2010): sharpen=True.
2. p is the least of ‖(κ⁻)^{−1/2}p‖ over RT₀ with div p = −f_h, p·n = 0 off Γ_D, and v the P1 solution for f_h and κ⁺.
   Then (p, ∇v) = (f_h, v) = ‖(κ⁺)^{1/2}∇v‖², for which v = 0 on Γ_D is enough, and Prager–Synge's
   ‖κ^{1/2}∇(ũ − v)‖² ≤ ‖κ^{−1/2}(p − κ∇v)‖² = ‖κ^{−1/2}p‖² − 2(p, ∇v) + ‖κ^{1/2}∇v‖² is at most
   ‖(κ⁻)^{−1/2}p‖² − ‖(κ⁺)^{1/2}∇v‖².  κ_h² is the largest this can be for ‖f_h‖ = 1: an eigenvalue of size #cells.
3. u_h is the best of V_h in the energy norm, v is in V_h, and ‖f − f_h‖² + ‖f_h‖² = ‖f‖²: the first bound.  The second
   is Aubin and Nitsche's duality, with the first for the load u − u_h.

What has to hold: κ between the bounds given; Ω is the mesh (a curved boundary is replaced by its polygon); u = 0 on
Γ_D (other values are not covered); u_h solved exactly, with exact integrals of κ and f.  What is not proven in the
last digit: rounding errors, and that the eigenvalue solver has not passed over a larger eigenvalue, unless verify=True.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh
from scipy.special import jn_zeros

from hyco_fem.accuracy.domain import check_simplices, dirichlet_facets
from hyco_fem.accuracy.errors import mesh_size
from hyco_fem.accuracy.mixed import MixedResponse, Response, cell_volumes, count_above
from hyco_fem.accuracy.spectrum import largest_eigenvalue
from hyco_fem.parallel import agreed, any_rank
from hyco_fem.pde.linear import SolveError

# κ: a number or a DG0 Function; of these a pair, where only bounds are known.
Kappa: TypeAlias = Any
# Γ_D: local facets, or which x (3, n) are on it; None for the whole boundary.
Boundary: TypeAlias = "np.ndarray | Callable[[np.ndarray], np.ndarray] | None"


@dataclass(frozen=True)
class ExplicitBound:
    """The computed constant of one mesh; replicated.

    C0: of the load's cell means.  kappa_h: of the two discrete solutions.  C_h: √(C0² + kappa_h²).
    h: largest diameter of a cell (√2 times the legs of right isosceles triangles).  cells: how many.
    verified: no eigenvalue above kappa_h² exists, by a count (`verify=True`).
    products: with the operator, two sparse solves each.
    """

    C0: float
    kappa_h: float
    h: float
    cells: int
    verified: bool = False
    products: int = 0

    @property
    def C_h(self) -> float:
        """√(C₀² + κ_h²)."""
        return math.hypot(self.C0, self.kappa_h)

    @property
    def per_h(self) -> float:
        """C_h / h, with h the largest diameter."""
        return self.C_h / self.h

    def energy(self, f_norm: float) -> float:
        """Bound of ‖κ^{1/2}∇(u − u_h)‖ for a load with this norm ‖f‖ in L²."""
        return self.C_h * f_norm

    def L2(self, f_norm: float) -> float:
        """Bound of ‖u − u_h‖ for a load with this norm ‖f‖ in L²."""
        return self.C_h**2 * f_norm

    def __str__(self) -> str:
        return (
            f"{self.cells:8d}  {self.h:9.4g}  {self.C0:9.4g}  {self.kappa_h:9.4g}  {self.C_h:9.4g}  {self.per_h:7.4f}"
        )


_HEADER = "   cells     h=diam         C0    kappa_h        C_h    C_h/h"


def explicit_bound(
    where: dmesh.Mesh | fem.FunctionSpace,
    kappa: Kappa = 1.0,
    dirichlet: Boundary = None,
    *,
    sharpen: bool = False,
    tolerance: float = 1e-8,
    verify: bool = False,
) -> ExplicitBound:
    """The constant C_h of the bounds ‖κ^{1/2}∇(u − u_h)‖ ≤ C_h ‖f‖, ‖u − u_h‖ ≤ C_h² ‖f‖ for P1.  Collective.

    Args:
        where: A mesh of straight-sided triangles or tetrahedra, or its P1 space.
        kappa: A number, a ("DG", 0) Function, or a pair of these, κ⁻ ≤ κ ≤ κ⁺ on each cell: C_h then holds for every κ
            in between.  That they are bounds of your κ is yours to know: sampling κ at points proves nothing.  The
            price of a pair: κ⁺ − κ⁻ enters κ_h² as it is, so that C_h falls like the root of h where κ varies inside
            cells; the values at midpoints, as a ("DG", 0) Function, give the constant of the problem with that κ.
        dirichlet: Γ_D, where u = 0: local facets, with or without ghosts, or a function of x (3, n) that says which
            are on it (as for `dolfinx.mesh.locate_entities_boundary`).  The whole boundary by default.
        sharpen: Poincaré's constant diam/j₁,₁ instead of diam/π; triangles only.
        tolerance: Relative residual of the eigenvalue; κ_h² is what was found, times 1 + tolerance.
        verify: Also count the eigenvalues above κ_h², by a factorisation with the size of a mixed problem (needs MUMPS,
            and the most memory of all): there are none then, up to rounding.

    Raises:
        ValueError: another kind of mesh or space, κ that is not positive or whose bounds cross, facets inside Ω, no
            facets at all.  TypeError: κ of another kind.  SolveError: the eigenvalue was not found, or not verified.
    """
    mesh = _mesh_of(where, sharpen)
    with agreed(mesh.comm):
        if not (isinstance(tolerance, Real) and 1e-13 <= tolerance < 1.0):
            raise ValueError(f"tolerance must be a number between 1e-13 and 1, not {tolerance!r}")
    facets = held_facets(mesh, dirichlet)
    X = fem.functionspace(mesh, ("DG", 0))
    lower, upper = kappa_bounds(X, kappa)
    C0, h = poincare_constant(lower, sharpen=sharpen), mesh_size(mesh)
    volumes = cell_volumes(X)
    root = np.sqrt(volumes)
    # As wild as noise, so with a part along every eigenvector, but the same on any partition.
    noise = np.sin(X.tabulate_dof_coordinates()[: len(volumes)] @ [17.3203, 23.1661, 29.4709] / h)
    with ExitStack() as stack:
        mixed = MixedResponse(mesh, lower, facets)
        stack.callback(mixed.close)
        galerkin = Response(fem.functionspace(mesh, ("Lagrange", 1)), upper, facets)
        stack.callback(galerkin.close)

        def apply(x: np.ndarray) -> np.ndarray:
            f = x / root
            return (mixed.solve(f) - galerkin.solve(f)) / root

        pair = largest_eigenvalue(mesh.comm, apply, noise, tolerance)
        # An eigenvalue lies within the residual of the value found: with it, this is no lower estimate of that one.
        square = pair.value * (1.0 + tolerance)
        if verify:
            _verify(mixed, galerkin, volumes, square)
    return ExplicitBound(C0, math.sqrt(square), h, X.dofmap.index_map.size_global, verify, pair.products)


def poincare_constant(kappa: fem.Function, *, sharpen: bool = False) -> float:
    """C₀ = max_K diam(K) / (π √κ_K) for κ in DG0; with j₁,₁ for π, on triangles, if sharpened.  Collective."""
    X = kappa.function_space
    mesh = X.mesh
    n = mesh.topology.index_map(mesh.topology.dim).size_local
    diameters = mesh.h(mesh.topology.dim, np.arange(n, dtype=np.int32)) if n else np.empty(0)
    local = (diameters / np.sqrt(kappa.x.array[X.dofmap.list[:n, 0]])).max(initial=0.0)
    return float(mesh.comm.allreduce(float(local), op=MPI.MAX)) / (float(jn_zeros(1, 1)[0]) if sharpen else math.pi)


def _verify(mixed: MixedResponse, galerkin: Response, volumes: np.ndarray, square: float) -> None:
    if not PETSc.Sys.hasExternalPackage("mumps"):
        raise SolveError("verify=True needs a PETSc with MUMPS, which counts eigenvalues")
    above = count_above(mixed, galerkin, volumes, square)
    if above != 0:
        raise SolveError(
            f"{above} eigenvalue(s) lie above the κ_h² = {square:.8e} that was found; a larger tolerance gives the "
            "count more room for rounding errors, a smaller one the search more steps"
        )


# -- arguments -------------------------------------------------------------------------------------------------


def _mesh_of(where: dmesh.Mesh | fem.FunctionSpace, sharpen: bool) -> dmesh.Mesh:
    mesh = where.mesh if isinstance(where, fem.FunctionSpace) else where
    if not isinstance(mesh, dmesh.Mesh):
        raise TypeError(f"the bound needs a mesh or its P1 space, not {type(where).__name__}")
    check_simplices(mesh, "the bound")
    cell = mesh.topology.cell_name()
    if sharpen and cell != "triangle":
        raise ValueError(f"sharpen=True is proven for triangles only, not for {cell} cells: leave it out")
    if isinstance(where, fem.FunctionSpace):
        with agreed(mesh.comm):
            if where.ufl_element() != fem.functionspace(mesh, ("Lagrange", 1)).ufl_element():
                raise ValueError("the bound is for P1 solutions: pass the mesh or its ('Lagrange', 1) space")
    return mesh


def held_facets(mesh: dmesh.Mesh, dirichlet: Boundary) -> np.ndarray:
    """Γ_D as local facets; ValueError on all ranks where there are none.  Collective."""
    facets = dirichlet_facets(mesh, dirichlet)
    if not any_rank(mesh.comm, len(facets) > 0):
        raise ValueError("dirichlet is empty: without u = 0 on a part of the boundary there is no unique solution")
    return facets


def kappa_bounds(X: fem.FunctionSpace, kappa: Kappa) -> tuple[fem.Function, fem.Function]:
    """κ⁻ and κ⁺ as Functions of the DG0 space X; the same one twice where κ is known.  Collective."""
    pair = kappa if isinstance(kappa, (tuple, list)) else (kappa,)
    comm, made = X.mesh.comm, []
    with agreed(comm):
        if len(pair) not in (1, 2):
            raise ValueError(f"kappa is one κ, or a pair of bounds (κ⁻, κ⁺), not {len(pair)} of them")
        for given in pair:
            k = fem.Function(X)
            if isinstance(given, fem.Function):
                V = given.function_space
                if V.mesh is not X.mesh or V.ufl_element() != X.ufl_element():
                    raise ValueError("kappa must be a Function of the ('DG', 0) space of the same mesh")
                k.x.array[X.dofmap.list[:, 0]] = given.x.array[V.dofmap.list[:, 0]]
            elif isinstance(given, Real):
                k.x.array[:] = float(given)
            else:
                raise TypeError(
                    f"kappa must be a number, a ('DG', 0) Function, or a pair of these, not {type(given).__name__}; "
                    "for other κ give bounds on each cell, (κ⁻, κ⁺)"
                )
            n = X.dofmap.index_map.size_local
            bad = ~((k.x.array[:n] > 0.0) & np.isfinite(k.x.array[:n]))
            if bad.any():
                raise ValueError(f"kappa must be positive and finite; it has the value {k.x.array[:n][bad][0]:g}")
            made.append(k)
        lower, upper = made[0], made[-1]
        if (lower.x.array[:n] > upper.x.array[:n]).any():
            raise ValueError("the bounds of kappa are a pair (κ⁻, κ⁺) with κ⁻ ≤ κ⁺ on each cell; here they cross")
    for k in made:
        k.x.scatter_forward()
    return lower, upper


# -- tables ----------------------------------------------------------------------------------------------------


def bound_table(meshes: Mapping[str, Sequence[dmesh.Mesh]], **options: Any) -> str:
    """C₀, κ_h, C_h and C_h/h of several meshes of several domains, with the rates of C_h.  Collective.

    Args:
        meshes: For each domain its meshes, coarse to fine.
        options: Passed on to `explicit_bound`.

    h is the largest diameter of a cell.
    """
    return "\n".join(table_of({name: [explicit_bound(m, **options) for m in ms] for name, ms in meshes.items()}))


def table_of(bounds: Mapping[str, Sequence[ExplicitBound]]) -> list[str]:
    """The lines of `bound_table`, of bounds at hand."""
    width = max(map(len, bounds), default=0)
    lines = [f"{'':{width}s}  {_HEADER}   rate"]
    for name, row in bounds.items():
        rates = ["", *(f"{rate(a, b):7.3f}" for a, b in itertools.pairwise(row))]
        lines += [
            f"{name if k == 0 else '':{width}s}  {bound}{text}"
            for k, (bound, text) in enumerate(zip(row, rates, strict=True))
        ]
    return lines


def rate(coarse: ExplicitBound, fine: ExplicitBound) -> float:
    """r of C_h ~ h^r between two meshes."""
    return math.log(coarse.C_h / fine.C_h) / math.log(coarse.h / fine.h)
