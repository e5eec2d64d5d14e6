"""Loads that are constant on each cell, and what they do: Galerkin solutions, mixed solutions, their energies.

−∇·(κ∇u) = f in Ω, u = 0 on Γ_D, κ ∂u/∂n = 0 on the rest, with f in X_h (a constant on each cell):

- `Response(V, κ, Γ_D)`: f ↦ u_V, the Galerkin solution in a space V.  ‖κ^{1/2}∇u_V‖² = (f, u_V).
- `MixedResponse(mesh, κ, Γ_D)`: f ↦ z_h, the multiplier of the least p_h in RT₀ with div p_h = −f and p_h·n = 0 off
  Γ_D.  ‖κ^{−1/2}p_h‖² = (f, z_h).

The mixed solution is not solved for as a saddle point.  Marini (SIAM J. Numer. Anal. 22, 1985): with u_c the solution
in the Crouzeix–Raviart space and κ constant on each cell K with centre x_K, in d dimensions

    p_h = κ∇u_c − (f/d)(x − x_K),    z_h = mean_K u_c + s_K f,    s_K = mean_K |x − x_K|² / (d² κ_K),

one symmetric positive definite system instead of an indefinite one of twice the size.
"""

from __future__ import annotations

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc

from hyco_fem import _compat
from hyco_fem.pde.choice import Traits, check_memory, direct_options
from hyco_fem.pde.linear import LinearSolver, SolveError

_JIT = {"timeout": 600}


class Response:
    """f ∈ X_h ↦ the Galerkin solution u in V, by factors made once.  Distributed; every method is collective.

    Args:
        V: A scalar space on a mesh of simplices: Lagrange, or Crouzeix–Raviart.
        kappa: κ, a DG0 Function on the same mesh.
        facets: Γ_D, local facets.

    Attributes:
        u: the last solution.  A: the stiffness matrix, Dirichlet rows and columns cleared.
        B: (B u)_K = ∫_K u, Dirichlet columns cleared; rows are cells, columns dofs.  factors: of A.

    Raises:
        SolveError: A is singular: a part of the domain does not touch Γ_D.
    """

    def __init__(self, V: fem.FunctionSpace, kappa: fem.Function, facets: np.ndarray) -> None:
        mesh = V.mesh
        self.V, self.kappa = V, kappa
        u, v = ufl.TrialFunction(V), ufl.TestFunction(V)
        dofs = fem.locate_dofs_topological(V, mesh.topology.dim - 1, facets)
        bc = fem.dirichletbc(0.0, dofs, V)
        a = fem.form(kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx, jit_options=dict(_JIT))
        b = fem.form(ufl.inner(u, ufl.TestFunction(kappa.function_space)) * ufl.dx, jit_options=dict(_JIT))
        self.A, self.B = (fem_petsc.create_matrix(form) for form in (a, b))
        for M, form in ((self.A, a), (self.B, b)):
            fem_petsc.assemble_matrix(M, form, bcs=[bc])
            M.assemble()
        n_owned = V.dofmap.index_map.size_local
        traits = Traits(V.dofmap.index_map.size_global, mesh.comm.size, mesh.topology.dim, True, True)
        options, name = direct_options(traits), f"{V.ufl_element().family_name} solution"
        check_memory(mesh.comm, options, traits, name)
        self._fixed = dofs[dofs < n_owned]
        self.factors = LinearSolver(self.A, options, symmetric=True, fixed=self._fixed, what=name)
        self.u, self._load = fem.Function(V), fem.Function(V)
        self._f, self._means = self.B.createVecLeft(), self.B.createVecLeft()
        try:
            self.factors.factorise()
        except SolveError as error:
            Response.close(self)
            raise SolveError(f"{error}; every part of the domain has to touch Γ_D, where u = 0") from error

    def solve(self, f: np.ndarray) -> np.ndarray:
        """∫_K u for each owned cell, from f on the owned cells; u holds the solution.  The sum of f ∫_K u is (f, u)."""
        self._f.array[:] = f
        self.B.multTranspose(self._f, self._load.x.petsc_vec)
        return self.solve_load()

    def solve_load(self, load: np.ndarray | None = None) -> np.ndarray:
        """The same for a load (f, φ_i) on the owned dofs, f any function; by default the load at hand."""
        if load is not None:
            self._load.x.petsc_vec.array[:] = load
            self._load.x.petsc_vec.array[self._fixed] = 0.0
        if self._load.x.petsc_vec.norm() == 0.0:
            self.u.x.array[:] = 0.0
        else:
            self.factors.solve(self._load.x.petsc_vec, self.u.x.petsc_vec)
            self.u.x.scatter_forward()
        self.B.mult(self.u.x.petsc_vec, self._means)
        return self._means.array_r.copy()

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        self.factors.close()  # and A with it
        for made in (self.B, self._f, self._means):
            made.destroy()


class MixedResponse(Response):
    """f ∈ X_h ↦ ∫_K z_h of the mixed solution in RT₀ × X_h; the sum of f ∫_K z_h is ‖κ^{−1/2}p_h‖².

    Attributes:
        local: s_K |K| for each owned cell.  u: the Crouzeix–Raviart solution.
    """

    def __init__(self, mesh: dmesh.Mesh, kappa: fem.Function, facets: np.ndarray) -> None:
        super().__init__(fem.functionspace(mesh, ("CR", 1)), kappa, facets)
        d = mesh.topology.dim
        X = kappa.function_space
        n = X.dofmap.index_map.size_local
        # ∫_K |x − x_K|² = |K| Σ_i |x_i − x_K|² / ((d + 1)(d + 2)) over the vertices x_i of a simplex
        x = mesh.geometry.x[_compat.geometry_dofmap(mesh)[:n]]
        self.local = np.empty(n)
        self.local[X.dofmap.list[:n, 0]] = np.square(x - x.mean(axis=1, keepdims=True)).sum(axis=(1, 2))
        self.local *= cell_volumes(X) / ((d + 1) * (d + 2) * d**2 * kappa.x.array[:n])

    def solve(self, f: np.ndarray) -> np.ndarray:
        """∫_K z_h for each owned cell, from f on the owned cells."""
        return super().solve(f) + self.local * f

    def flux(self) -> ufl.core.expr.Expr:
        """κ∇u_c of the last solution; p_h is this minus (f/d)(x − x_K)."""
        return self.kappa * ufl.grad(self.u)


def cell_volumes(X: fem.FunctionSpace) -> np.ndarray:
    """|K| of the owned cells, (n_owned,), in the order of the dofs of the DG0 space X."""
    form = fem.form(ufl.TestFunction(X) * ufl.dx, jit_options=dict(_JIT))
    return fem.assemble_vector(form).array[: X.dofmap.index_map.size_local].copy()


# -- eigenvalues -----------------------------------------------------------------------------------------------


def count_above(mixed: MixedResponse, galerkin: Response, volumes: np.ndarray, mu: float) -> int:
    """How many f ∈ X_h, independent of each other, have ‖p_h‖² − ‖∇u_h‖² > μ‖f‖² (norms weighted by κ).  Collective.

    By Sylvester's law of inertia, from one LDLᵀ factorisation (MUMPS).  The number is that of negative eigenvalues of
    μ − M^{−1/2}(D + B_c A_c⁻¹ B_cᵀ − B_p A_p⁻¹ B_pᵀ)M^{−1/2}, a Schur complement of the sparse

        [ A_c                B_cᵀ   ]
        [       −A_p         B_pᵀ   ]        B scaled by M^{−1/2} here, D = diag(s_K |K|), M = diag |K|:
        [ B_c    B_p    μ − M⁻¹D    ]

    A_c adds none, −A_p all of its own.  No iteration, no start vector: nothing is missed, rounding errors apart.
    """
    comm = mixed.A.comm
    scale, diagonal = mixed.B.createVecLeft(), mixed.B.createVecLeft()
    scale.array[:] = 1.0 / np.sqrt(volumes)
    diagonal.array[:] = mu - mixed.local / volumes
    scaled = [M.copy() for M in (mixed.B, galerkin.B)]
    for M in scaled:
        M.diagonalScale(L=scale)
    transposed = [M.transpose(PETSc.Mat()) for M in scaled]
    minus = galerkin.A.copy()
    minus.scale(-1.0)
    corner = PETSc.Mat().createAIJ((diagonal.getSizes(), diagonal.getSizes()), nnz=1, comm=comm)
    corner.setDiagonal(diagonal)
    corner.assemble()
    nest = PETSc.Mat().createNest(
        [[mixed.A, None, transposed[0]], [None, minus, transposed[1]], [scaled[0], scaled[1], corner]], comm=comm
    )
    whole = PETSc.Mat()
    nest.convert("aij", whole)
    whole.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    pc = PETSc.PC().create(comm)
    try:
        pc.setOperators(whole)
        pc.setType("cholesky")
        pc.setFactorSolverType("mumps")
        pc.setFactorSetUpSolverType()
        # Null pivots told; no ScaLAPACK, which does not count; more workspace, as indefinite matrices need for pivots.
        for option, value in ((24, 1), (13, 1), (14, 100)):
            pc.getFactorMatrix().setMumpsIcntl(option, value)
        pc.setUp()
        negative, zero, _ = pc.getFactorMatrix().getInertia()
    finally:
        for made in (pc, whole, nest, corner, minus, *transposed, *scaled, scale, diagonal):
            made.destroy()
    return int(negative + zero) - galerkin.A.getSize()[0]
