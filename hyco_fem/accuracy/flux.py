"""Fluxes in Raviart–Thomas spaces, the best partners of a given approximation v in an error certificate.

−∇·(κ∇u) + ηu = f; σ stands for κ∇u.  RT_k is numbered as in basix: RT_1 is the lowest order (RT₀ in most papers),
normal components and divergences of RT_k are of degree k − 1, and it holds all vector fields of degree k − 1.

- Equilibrated: the least ‖κ^{−1/2}(σ − κ∇v)‖ under (div σ, q) = (ηv − f, q) for all q ∈ DG_{k−1}; a saddle point,

      (κ⁻¹σ, τ) + (λ, div τ) = (∇v, τ),    (div σ, q) = (ηv − f, q).

- Least squares, where η > 0: the least ‖κ^{−1/2}(σ − κ∇v)‖² + ‖η^{−1/2}(f + div σ − ηv)‖²; positive definite,

      (κ⁻¹σ, τ) + (η⁻¹ div σ, div τ) = (∇v, τ) + (v − f/η, div τ).

Both are one problem on the whole mesh.  Equilibration by small problems around vertices is cheaper, but for Galerkin
solutions only: their residual vanishes on hat functions, that of a network does not.

σ·n is given on Γ_N, and free on Γ_D.  v, f, κ and η are known by their values at the points of a quadrature rule,
whatever they are, so that forms are compiled once; each matrix is factorised once, and a new v costs one pair of
triangular solves.  What is solved for is σ/κ₀, with κ₀ the mean of κ, so that units do not matter.
"""

from __future__ import annotations

import basix.ufl
import numpy as np
import torch
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc
from torch import Tensor

from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.pde.choice import Traits, check_memory, direct_options
from hyco_fem.pde.dirichlet import fixed_dofs
from hyco_fem.pde.linear import LinearSolver
from hyco_fem.pde.vectors import local

_JIT = {"timeout": 600}

# MUMPS foresees the workspace of an indefinite matrix badly: percent to add.
_WORKSPACE = 200


class AtPoints:
    """A Function with values at the points of a rule, for use in forms that are integrated by this rule.

    Args:
        rule: The rule.  shape: () for a scalar, (d,) for a vector.
    """

    def __init__(self, rule: CellQuadrature, shape: tuple[int, ...] = ()) -> None:
        V = rule.space(shape)
        self.function = fem.Function(V)
        size = int(np.prod(shape, dtype=int))
        dofs = V.dofmap.list[: rule.n_cells].reshape(-1, 1)
        self._dofs = (dofs * size + np.arange(size)).ravel()

    def set(self, values: Tensor) -> None:
        """Values (n,) or (n, d) at the points of the owned cells.  Forms are integrated on these only."""
        local(self.function)[self._dofs] = values.detach().numpy().reshape(-1)


class _Flux:
    """What both kinds have in common: one linear system for σ/κ₀, factorised once.

    Args:
        rule: By which forms are integrated.  V: the space of the unknown.  a, L: the forms.  bcs: σ·n/κ₀ on Γ_N.
        definite: whether the matrix is positive definite.  what: a name for messages.
    """

    sigma: ufl.core.expr.Expr
    scale: float

    def __init__(
        self,
        rule: CellQuadrature,
        V: fem.FunctionSpace,
        a: ufl.Form,
        L: ufl.Form,
        bcs: list[fem.DirichletBC],
        *,
        definite: bool,
        what: str,
    ) -> None:
        self._bcs = bcs
        self._a, self._L = (fem.form(form, jit_options=dict(_JIT)) for form in (a, L))
        self.solution, self._b = fem.Function(V), fem.Function(V)
        imap = V.dofmap.index_map
        traits = Traits(imap.size_global, rule.comm.size, rule.mesh.topology.dim, True, definite, not definite)
        options = direct_options(traits)
        if "mat_mumps_icntl_14" in options:
            options |= {"mat_mumps_icntl_14": _WORKSPACE}
        check_memory(rule.comm, options, traits, what)
        A = fem_petsc.create_matrix(self._a)
        fem_petsc.assemble_matrix(A, self._a, bcs=bcs)
        A.assemble()
        fixed = fixed_dofs(bcs)
        self._solver = LinearSolver(A, options, symmetric=True, fixed=fixed[fixed < imap.size_local], what=what)
        self._solver.factorise()

    def _solve(self) -> None:
        local(self._b)[:] = 0.0
        fem.assemble_vector(local(self._b), self._L)
        fem_petsc.apply_lifting(self._b.x.petsc_vec, [self._a], bcs=[self._bcs])
        self._b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(self._b.x.petsc_vec, self._bcs)
        self._solver.solve(self._b.x.petsc_vec, self.solution.x.petsc_vec)
        self.solution.x.scatter_forward()

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        self._solver.close()


class EquilibratedFlux(_Flux):
    """div σ = the projection of ηv − f on DG_{k−1}, and σ − κ∇v as small as that allows.

    Args:
        rule: Quadrature of the data.  degree: k.
        kappa: κ at its points.  facets: Γ_N, owned facets.  outflow: σ·n there, a number.

    Attributes:
        sigma: σ/κ₀ of the last solution, in UFL.  scale: κ₀.

    Raises:
        SolveError: the factors need more memory than there is.

    Construction and every method are collective.
    """

    def __init__(self, rule: CellQuadrature, degree: int, kappa: Tensor, facets: np.ndarray, outflow: float) -> None:
        mesh = rule.mesh
        mesh.topology.create_connectivity(mesh.topology.dim - 1, mesh.topology.dim)
        cell = mesh.topology.cell_name()
        element = basix.ufl.mixed_element(
            [basix.ufl.element("RT", cell, degree), basix.ufl.element("DG", cell, degree - 1)]
        )
        W = fem.functionspace(mesh, element)
        (s, l), (t, q) = ufl.TrialFunctions(W), ufl.TestFunctions(W)
        self.scale = _mean(rule, kappa)
        inverse = AtPoints(rule)
        inverse.set(self.scale / kappa)
        self._gradient, self._source = AtPoints(rule, (mesh.geometry.dim,)), AtPoints(rule)
        dx = _measure(rule)
        a = (inverse.function * ufl.inner(s, t) + l * ufl.div(t) + ufl.div(s) * q) * dx
        L = ufl.inner(self._gradient.function, t) * dx + self._source.function * q * dx
        V, _ = W.sub(0).collapse()
        given = normal_trace(V, facets, outflow / self.scale)
        dofs = fem.locate_dofs_topological((W.sub(0), V), mesh.topology.dim - 1, facets)
        bcs = [fem.dirichletbc(given, dofs, W.sub(0))]
        super().__init__(rule, W, a, L, bcs, definite=False, what="the equilibrated flux")
        self.sigma = ufl.split(self.solution)[0]

    def solve(self, gradient: Tensor, source: Tensor) -> None:
        """σ for ∇v (n, d) and ηv − f (n,) at the points of the rule."""
        self._gradient.set(gradient)
        self._source.set(source / self.scale)
        self._solve()


class LeastSquaresFlux(_Flux):
    """σ − κ∇v and f + div σ − ηv small together.  For η > 0 everywhere.

    Args, attributes and errors as for `EquilibratedFlux`.  eta: η at the points of the rule.
    """

    def __init__(
        self, rule: CellQuadrature, degree: int, kappa: Tensor, eta: Tensor, facets: np.ndarray, outflow: float
    ) -> None:
        mesh = rule.mesh
        mesh.topology.create_connectivity(mesh.topology.dim - 1, mesh.topology.dim)
        V = fem.functionspace(mesh, ("RT", degree))
        s, t = ufl.TrialFunction(V), ufl.TestFunction(V)
        self.scale = _mean(rule, kappa)
        weights = AtPoints(rule), AtPoints(rule)
        for weight, values in zip(weights, (kappa, eta), strict=True):
            weight.set(self.scale / values)
        self._gradient, self._source, self._eta = AtPoints(rule, (mesh.geometry.dim,)), AtPoints(rule), eta
        dx = _measure(rule)
        a = (weights[0].function * ufl.inner(s, t) + weights[1].function * ufl.div(s) * ufl.div(t)) * dx
        L = (ufl.inner(self._gradient.function, t) + self._source.function * ufl.div(t)) * dx
        given = normal_trace(V, facets, outflow / self.scale)
        bc = fem.dirichletbc(given, fem.locate_dofs_topological(V, mesh.topology.dim - 1, facets))
        super().__init__(rule, V, a, L, [bc], definite=True, what="the least-squares flux")
        self.sigma = self.solution

    def solve(self, gradient: Tensor, source: Tensor) -> None:
        """σ for ∇v (n, d) and ηv − f (n,) at the points of the rule."""
        self._gradient.set(gradient)
        self._source.set(source / self._eta)
        self._solve()


def normal_trace(V: fem.FunctionSpace, facets: np.ndarray, value: float) -> fem.Function:
    """A Function of a Raviart–Thomas space with σ·n = value on some boundary facets, all other dofs zero.  Collective.

    A constant is in the space of normal traces, so this is exact: a mass matrix of the facets, one block for each.
    """
    mesh = V.mesh
    found = fem.Function(V)
    if value == 0.0:
        return found
    fdim = mesh.topology.dim - 1
    tags = dmesh.meshtags(mesh, fdim, np.sort(facets).astype(np.int32), np.ones(len(facets), dtype=np.int32))
    ds = ufl.Measure("ds", domain=mesh, subdomain_data=tags, subdomain_id=1)
    s, t, n = ufl.TrialFunction(V), ufl.TestFunction(V), ufl.FacetNormal(mesh)
    on_facets = np.zeros(len(found.x.array), dtype=bool)
    on_facets[fem.locate_dofs_topological(V, fdim, facets)] = True
    others = np.flatnonzero(~on_facets).astype(np.int32)
    bc = fem.dirichletbc(fem.Function(V), others)
    # The zero term makes room on the diagonal for the rows that are fixed.
    zero = fem.Constant(mesh, 0.0)
    a = fem.form(ufl.inner(s, n) * ufl.inner(t, n) * ds + zero * ufl.inner(s, t) * ufl.dx, jit_options=dict(_JIT))
    L = fem.form(fem.Constant(mesh, float(value)) * ufl.inner(t, n) * ds, jit_options=dict(_JIT))
    A = fem_petsc.create_matrix(a)
    fem_petsc.assemble_matrix(A, a, bcs=[bc])
    A.assemble()
    imap = V.dofmap.index_map
    options = direct_options(Traits(imap.size_global, mesh.comm.size, mesh.topology.dim, True, True))
    solver = LinearSolver(A, options, symmetric=True, fixed=others[others < imap.size_local], what="the outflow")
    b = fem.Function(V)
    try:
        solver.factorise()
        fem.assemble_vector(b.x.array, L)
        b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(b.x.petsc_vec, [bc])
        solver.solve(b.x.petsc_vec, found.x.petsc_vec)
    finally:
        solver.close()
    found.x.scatter_forward()
    return found


class FluxAtPoints:
    """σ and div σ of a flux at the points of a rule; the expression is compiled once."""

    def __init__(self, flux: EquilibratedFlux | LeastSquaresFlux, rule: CellQuadrature) -> None:
        d = rule.mesh.geometry.dim
        components = [*(flux.sigma[i] for i in range(d)), ufl.div(flux.sigma)]
        self._expression = fem.Expression(ufl.as_vector(components), rule.X, comm=rule.comm)
        self._rule, self._scale, self._shape = rule, flux.scale, (len(rule), d + 1)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """σ (n, d) and div σ (n,) of the last solution."""
        cells = np.arange(self._rule.n_cells, dtype=np.int32)
        found = np.asarray(self._expression.eval(self._rule.mesh, cells)).reshape(self._shape)
        values = torch.from_numpy(self._scale * found)
        return values[:, :-1], values[:, -1]


def _mean(rule: CellQuadrature, values: Tensor) -> float:
    return rule.integral(values) / rule.integral(torch.ones_like(values))


def _measure(rule: CellQuadrature) -> ufl.Measure:
    """dx by the rule, point for point."""
    return ufl.Measure(
        "dx", domain=rule.mesh, metadata={"quadrature_degree": rule.degree, "quadrature_rule": "default"}
    )
