"""What a missed boundary value costs: a w ∈ H¹ with exactly the trace of g − v on Γ_D, and its energy, cell by cell.

w = w_h + Σ_S c_S w_S.  w_h is the P2 function of least energy with the values of g − v at the P2 nodes of Γ_D.  It
leaves t = g − v − w_h on Γ_D, zero at vertices; what v or g do inside Ω is another matter.  Each facet S of a cell K on
Γ_D carries t into K along the rays to the opposite vertex.  With the barycentric coordinates λ_i of K,

    φ = Σ_{i∈S} λ_i,    π(x) = Σ_{i∈S} (λ_i/φ) a_i ∈ S,    w_S = φ t(π),
    ∇w_S = t(π) ∇φ + Σ_{i∈S} ((a_i − π)·∇t(π)) ∇λ_i,

where only derivatives of t along S enter.  In 3D t is not zero on edges, so each edge S of K on Γ_D gets the same, with
c_S = 1 − (number of facets of K on Γ_D that hold the edge), and facets have c_S = 1.  Then the sum is t on Γ_D, and on
any other face of a cell that of φ t(π) over the edges of the face on Γ_D: the same from both cells.

π is uniform on S where x is uniform on K, and independent of φ, so that with s = dim S

    ∫_K |∇w_S|² = |K| mean_S |∇w_S|²,    ∫_K w_S² = |K| (s + 1)(s + 2)/((d + 1)(d + 2)) mean_S t².
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import basix
import basix.ufl
import numpy as np
import torch
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from dolfinx.fem import petsc as fem_petsc
from torch import Tensor

from hyco_fem import _compat
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.dofs import as_function
from hyco_fem.bridge.integration import CellQuadrature, Field
from hyco_fem.parallel import agreed, max_over_ranks
from hyco_fem.pde.choice import Traits, check_memory, direct_options
from hyco_fem.pde.linear import LinearSolver
from hyco_fem.pde.vectors import local

_JIT = {"timeout": 600}

# A mismatch below this, relative to v and g, is rounding.
_ROUNDING = 1e-12

_PADDING = 1e-8


class SomeCells(CellQuadrature):
    """Points X of the reference cell in some owned cells: a rule without weights, for the values of fields.

    A Lagrange Function is tabulated.  Other UFL expressions are compiled, which takes a second: `compiled` may be set
    to the points of many rules and the slice of them that is X, so that all share one compilation.
    """

    def __init__(self, mesh: dmesh.Mesh, cells: np.ndarray, X: np.ndarray) -> None:
        geo = cell_geometry(mesh)
        self.mesh, self.comm, self.degree = mesh, mesh.comm, 0
        self.X, self.reference_weights = X, np.full(len(X), 1.0 / len(X))
        self.cells, self.n_cells, self.q = cells.astype(np.int32), len(cells), len(X)
        self.x = torch.from_numpy(geo.push_forward(np.repeat(cells, self.q), np.tile(X, (self.n_cells, 1))))
        self.compiled = X, slice(len(X))

    def trace(self, field: Field) -> tuple[Tensor, Tensor]:
        """A field and its gradient at the points.  Collective."""
        if not isinstance(field, fem.Function) or field.function_space.mesh is not self.mesh:
            return self.values(field), self.gradients(field)
        V, d = field.function_space, self.x.shape[1]
        table = V.element.basix_element.tabulate(1, self.X)[:, :, :, 0]  # (1 + d, q, dofs)
        at_dofs = local(field)[V.dofmap.list[self.cells]]
        J = cell_geometry(self.mesh).jacobian(self.cells, np.repeat(self.X[:1], self.n_cells, axis=0))
        slopes = np.einsum("jqa,na,nji->nqi", table[1:], at_dofs, np.linalg.inv(J))
        return torch.from_numpy((at_dofs @ table[0].T).ravel()), torch.from_numpy(slopes.reshape(-1, d))

    def _evaluated(self, expression: Any) -> np.ndarray:
        X, part = self.compiled
        found = np.asarray(_compat.expression(expression, X, self.mesh).eval(self.mesh, self.cells))
        return found.reshape(self.n_cells, len(X), int(np.prod(expression.ufl_shape, dtype=int)))[:, part]

    def _elsewhere(self, u: fem.Function) -> Tensor:
        shape = _compat.value_shape(u.function_space)
        V = self.space(shape)
        found = fem.Function(V)
        data = fem.create_interpolation_data(V, u.function_space, self.cells, padding=_PADDING)
        found.interpolate_nonmatching(u, self.cells, data)
        k = int(np.prod(shape, dtype=int))
        dofs = V.dofmap.list[self.cells][:, :, None] * k + np.arange(k)
        return torch.from_numpy(found.x.array[dofs].reshape(len(self.x), *shape))


class Piece:
    """The sub-simplices S of one local number (a facet, or an edge in 3D) of those cells that have it on Γ_D.

    vertices: of S in the reference cell.  cells: local.  factor: c_S of each.
    """

    def __init__(
        self, mesh: dmesh.Mesh, vertices: list[int], cells: np.ndarray, factor: np.ndarray, degree: int
    ) -> None:
        d, s = mesh.topology.dim, len(vertices) - 1
        self.vertices, self.cells, self.factor = vertices, cells, factor
        kind = basix.CellType.interval if s == 1 else basix.CellType.triangle
        Y, self._weights = basix.make_quadrature(kind, degree)
        self._weights = self._weights / self._weights.sum()
        inside = np.column_stack([1.0 - Y.sum(1), Y])  # barycentric coordinates in S, (q, s + 1)
        corners = basix.geometry(getattr(basix.CellType, mesh.topology.cell_name()))[vertices]
        self.points = SomeCells(mesh, cells, inside @ corners)
        a = mesh.geometry.x[_compat.geometry_dofmap(mesh)[cells]][:, :, :d]
        slopes = np.linalg.inv(np.concatenate([np.ones((*a.shape[:2], 1)), a], axis=2))[:, 1:, vertices]
        self._slopes = np.moveaxis(slopes, 1, 2)  # ∇λ_i, i ∈ S: (n, s + 1, d)
        a = a[:, vertices]
        self._rays = a[:, None] - np.einsum("qi,nid->nqd", inside, a)[:, :, None]  # a_i − π: (n, q, s + 1, d)
        self._moment = (s + 1) * (s + 2) / ((d + 1) * (d + 2))

    def means(self, t: Tensor, slope: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Means over each K of |∇(c w_S)|² and (c w_S)², (n_cells,), from t (n q,) and ∇t (n q, d) at the points."""
        n, q = len(self.cells), len(self._weights)
        values, gradients = t.numpy().reshape(n, q), slope.numpy().reshape(n, q, self._rays.shape[3])
        along = np.einsum("nqid,nqd->nqi", self._rays, gradients)
        w = values[:, :, None] * self._slopes.sum(1)[:, None] + np.einsum("nqi,nid->nqd", along, self._slopes)
        squares = self.factor**2
        energy = squares * (np.square(w).sum(2) @ self._weights)
        return energy, squares * self._moment * (np.square(values) @ self._weights)


class Mismatch:
    """v ↦ a bound of ‖w‖ in the energy norm on each owned cell.

    Args:
        rule: A quadrature rule of the cells.  dirichlet: Γ_D, owned facets.  g: the boundary values.
        kappa, eta: κ and η at the points of the rule.  kappa_most: (n_cells,), upper bounds of κ on the owned cells.
        degrees: of the rules on Γ_D, one bound for each.

    Construction and call are collective.
    """

    def __init__(
        self,
        rule: CellQuadrature,
        dirichlet: np.ndarray,
        g: Field,
        kappa: Tensor,
        eta: Tensor,
        kappa_most: np.ndarray,
        degrees: tuple[int, int],
    ) -> None:
        mesh = rule.mesh
        self._rule, self._g, self._kappa, self._eta, self._kappa_most = rule, g, kappa, eta, kappa_most
        self._facets = dirichlet
        self._eta_most = eta.reshape(rule.n_cells, rule.q).numpy().max(axis=1, initial=0.0)
        self._volumes = rule.by_cell(torch.ones_like(rule.weights))
        self._V = fem.functionspace(mesh, ("Lagrange", 2))
        mesh.topology.create_connectivity(mesh.topology.dim - 1, mesh.topology.dim)
        self._dofs = fem.locate_dofs_topological(self._V, mesh.topology.dim - 1, dirichlet)
        self._pieces = [self._cut(degree) for degree in degrees]
        points = [piece.points for piece in chain(*self._pieces)]
        X, ends = np.concatenate([p.X for p in points]), np.cumsum([len(p.X) for p in points])
        for p, end in zip(points, ends, strict=True):
            p.compiled = X, slice(end - len(p.X), end)
        with torch.no_grad():
            self._g_there = [[piece.points.trace(g) for piece in pieces] for pieces in self._pieces]
        with agreed(mesh.comm):
            for values, slopes in chain(*self._g_there):
                if values.ndim != 1 or not (values.isfinite().all() and slopes.isfinite().all()):
                    raise ValueError("g must be a scalar, finite with its derivatives along the boundary Γ_D")
        self._most = max((float(g.abs().max()) for g, _ in chain(*self._g_there) if len(g)), default=0.0)
        self._solver: LinearSolver | None = None

    def __call__(self, v: Field, scale: float) -> list[np.ndarray] | None:
        """Bounds of ‖w‖ on the owned cells, (n_cells,), by each of the rules; None where v = g on Γ_D to rounding.

        Args:
            v: The approximation.  scale: its size.
        """
        with torch.no_grad():
            there = [[piece.points.trace(v) for piece in pieces] for pieces in self._pieces]
        with agreed(self._rule.comm):
            if not all(u.isfinite().all() and du.isfinite().all() for u, du in chain(*there)):
                raise ValueError("v or its gradient is not finite on the boundary")
        pairs = zip(chain(*self._g_there), chain(*there), strict=True)
        worst = max((float((g - u).abs().max()) for (g, _), (u, _) in pairs if len(g)), default=0.0)
        worst, most = max_over_ranks(self._rule.comm, [worst, max(self._most, scale)])
        if worst <= _ROUNDING * most:
            return None
        w = self._discrete(v)
        rule = self._rule
        squares = self._kappa * rule.gradients(w).square().sum(1) + self._eta * rule.values(w).square()
        discrete = np.sqrt(rule.by_cell(squares))
        bounds = []
        for pieces, g_there, v_there in zip(self._pieces, self._g_there, there, strict=True):
            bound = discrete.copy()
            for piece, (g, dg), (u, du) in zip(pieces, g_there, v_there, strict=True):
                wh, dwh = piece.points.trace(w)
                energy, mass = piece.means(g - u - wh, dg - du - dwh)
                K = piece.cells
                bound[K] += np.sqrt(self._volumes[K] * (self._kappa_most[K] * energy + self._eta_most[K] * mass))
            bounds.append(bound)
        return bounds

    def _discrete(self, v: Field) -> fem.Function:
        """w_h for v."""
        if self._solver is None:
            self._factorise()
        assert self._solver is not None
        values = local(self._boundary)
        values[:] = 0.0
        for sign, field in ((1.0, self._g), (-1.0, v)):
            values[self._dofs] += sign * self._interpolated(field)[self._dofs]
        b = self._work
        local(b)[:] = 0.0
        fem_petsc.apply_lifting(b.x.petsc_vec, [self._a], bcs=[[self._bc]])
        b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(b.x.petsc_vec, [self._bc])
        w = fem.Function(self._V)
        self._solver.solve(b.x.petsc_vec, w.x.petsc_vec)
        w.x.scatter_forward()
        return w

    def _interpolated(self, field: Field) -> np.ndarray:
        """Local values of a field at the P2 nodes."""
        V = self._V
        if isinstance(field, fem.Function) and field.function_space.mesh is not V.mesh:
            found = fem.Function(V)
            cells = np.arange(self._rule.n_cells, dtype=np.int32)
            found.interpolate_nonmatching(
                field, cells, fem.create_interpolation_data(V, field.function_space, cells, padding=_PADDING)
            )
            found.x.scatter_forward()
            return local(found)
        if not isinstance(field, ufl.core.expr.Expr) and not callable(field):
            return np.full(len(local(self._boundary)), float(field))
        return local(as_function(V, field, "boundary values"))

    def _factorise(self) -> None:
        V, rule = self._V, self._rule
        coefficients = []
        for values in (self._kappa, self._eta):
            mean = fem.Function(fem.functionspace(V.mesh, ("DG", 0)))
            local(mean)[mean.function_space.dofmap.list[: rule.n_cells, 0]] = rule.by_cell(values) / self._volumes
            coefficients.append(mean)
        u, z = ufl.TrialFunction(V), ufl.TestFunction(V)
        kappa, eta = coefficients
        form = (kappa * ufl.inner(ufl.grad(u), ufl.grad(z)) + eta * u * z) * ufl.dx
        self._a = fem.form(form, jit_options=dict(_JIT))
        self._boundary, self._work = fem.Function(V), fem.Function(V)
        self._bc = fem.dirichletbc(self._boundary, self._dofs)
        A = fem_petsc.create_matrix(self._a)
        fem_petsc.assemble_matrix(A, self._a, bcs=[self._bc])
        A.assemble()
        imap = V.dofmap.index_map
        traits = Traits(imap.size_global, rule.comm.size, V.mesh.topology.dim, True, True)
        options, what = direct_options(traits), "the boundary mismatch"
        check_memory(rule.comm, options, traits, what)
        fixed = self._dofs[self._dofs < imap.size_local]
        self._solver = LinearSolver(A, options, symmetric=True, fixed=fixed, what=what)
        self._solver.factorise()

    def _cut(self, degree: int) -> list[Piece]:
        """The pieces of this mesh."""
        mesh, V = self._rule.mesh, self._V
        d = mesh.topology.dim
        mesh.topology.create_connectivity(d, d - 1)
        facets = mesh.topology.connectivity(d, d - 1).array.reshape(-1, d + 1)[: self._rule.n_cells]
        cells, numbers = np.nonzero(np.isin(facets, self._facets))
        topology = basix.topology(getattr(basix.CellType, mesh.topology.cell_name()))
        pieces = []
        holds = np.zeros((self._rule.n_cells, len(topology[1])), dtype=int)  # facets on Γ_D at each edge of each cell
        for j, vertices in enumerate(topology[d - 1]):
            mine = cells[numbers == j]
            pieces.append(Piece(mesh, vertices, mine, np.ones(len(mine)), degree))
            for e, edge in enumerate(topology[1]):
                holds[mine, e] += set(edge) <= set(vertices)
        if d == 3:
            on = np.zeros(len(fem.Function(V).x.array), dtype=bool)
            on[self._dofs] = True
            of_cell = V.dofmap.list[: self._rule.n_cells]
            dofs = V.element.basix_element.entity_dofs[1]
            for e, edge in enumerate(topology[1]):
                mine = np.flatnonzero(on[of_cell[:, dofs[e][0]]] & (holds[:, e] != 1))
                pieces.append(Piece(mesh, edge, mine, 1.0 - holds[mine, e], degree))
        return pieces

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        if self._solver is not None:
            self._solver.close()
