"""Integrals over the cells and the boundary of a mesh, of whatever is given: a number, a UFL expression, a Function of
this mesh or of another, a network or formula.

    rule = CellQuadrature(mesh, degree=6)
    rule.integral((rule.gradients(network) - rule.gradients(uh)).square().sum(1))      # ‖∇(network − uh)‖²

The points lie in the owned cells: values are distributed, an integral is a sum over ranks.  `CellQuadrature.values`
and `gradients` are differentiable in the parameters of a module; under `torch.no_grad()` they go through the points in
pieces, so that a large mesh does not need the memory of a large network at all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from mpi4py import MPI

import basix
import basix.ufl
import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn
from ufl.core.expr import Expr
from ufl.domain import extract_domains

from hyco_fem import _compat
from hyco_fem.bridge.boundary import exterior_facets, facet_rule, named_facets
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.dofs import check_lagrange
from hyco_fem.bridge.ghosts import check_whole
from hyco_fem.parallel import agreed, any_rank, sum_array

# A field: a number, a UFL expression (a Function included, also of another mesh), or a network or formula of
# coordinates (n, d) → (n,) or (n, k).
Field: TypeAlias = float | Expr | nn.Module | Callable[[Tensor], Tensor]

# Points at which a network is evaluated at once where no graph is kept.
_PIECE = 1 << 14

# How far outside the other mesh a point may lie, relative to its cells: rounding.
_PADDING = 1e-8


class _Quadrature:
    """Points with physical weights, and the values there of a field.

    Attributes:
        x: (n, d), float64.  weights: (n,).  mesh, comm, degree: as given.
    """

    mesh: dmesh.Mesh
    comm: MPI.Comm
    degree: int
    x: Tensor
    weights: Tensor

    def __len__(self) -> int:
        """Number of points on this rank."""
        return len(self.x)

    def values(self, field: Field) -> Tensor:
        """A field at the points, (n,) or (n, k).  Collective.

        Raises:
            ValueError: what a network or formula returns does not fit the points, or the points lie outside the mesh of
                a Function; on all ranks.
            TypeError: it is not a field, or not in float64; on all ranks.
        """
        if isinstance(field, fem.Function) and field.function_space.mesh is not self.mesh:
            return self._elsewhere(field)
        if isinstance(field, Expr):
            return self._expression(field)
        if callable(field):
            with agreed(self.comm):
                return self._piecewise(lambda x: self._checked(called(field, x), x))
        with agreed(self.comm):
            try:
                value = torch.as_tensor(field, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(
                    "a field is a number, a UFL expression, a Function, or a function of coordinates (n, d), not "
                    f"{type(field).__name__}"
                ) from None
        return value.expand(len(self.x), *value.shape)

    def gradients(self, field: Field) -> Tensor:
        """∇ of a field at the points, (n, d) or (n, k, d).  Collective.

        A network must treat each point by itself.  Raises as `values`.
        """
        if isinstance(field, fem.Function) and field.function_space.mesh is not self.mesh:
            return self._elsewhere(_gradient(field))
        if isinstance(field, Expr):
            if not extract_domains(field):  # of numbers alone, whose gradient UFL does not know
                return torch.zeros((len(self.x), *field.ufl_shape, self.x.shape[1]), dtype=torch.float64)
            return self._expression(ufl.grad(field))
        if callable(field):
            with agreed(self.comm):
                return self._piecewise(lambda x: self._slopes(field, x))
        value = self.values(field)
        return torch.zeros((*value.shape, self.x.shape[1]), dtype=torch.float64)

    def integral(self, values: Tensor) -> float:
        """Σ weights · values over all ranks, of values (n,) at the points.  Collective."""
        return float(sum_array(self.comm, np.array([float(self.weights @ values.detach())]))[0])

    # -- modules and formulas --------------------------------------------------------------------------------

    def _piecewise(self, evaluate: Callable[[Tensor], Tensor]) -> Tensor:
        if torch.is_grad_enabled() or len(self.x) <= _PIECE:
            return evaluate(self.x)
        return torch.cat([evaluate(x) for x in self.x.split(_PIECE)])

    def _checked(self, values: Tensor, x: Tensor) -> Tensor:
        if not isinstance(values, Tensor) or values.ndim not in (1, 2) or len(values) != len(x):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"a field must return (n,) or (n, k) at n = {len(x)} points, not {got}")
        if values.dtype != torch.float64:
            raise TypeError(f"a field returned {values.dtype}; hyco_fem computes in float64: call .double() on it")
        return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values

    def _slopes(self, field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = self._checked(called(field, x), x)
            check_graph(values)
            parts = [values] if values.ndim == 1 else list(values.unbind(1))
            slopes = []
            for part in parts:
                found = None
                if part.requires_grad:
                    (found,) = torch.autograd.grad(
                        part.sum(), x, create_graph=keep, retain_graph=True, allow_unused=True
                    )
                slopes.append(torch.zeros_like(x) if found is None else found)
        out = slopes[0] if values.ndim == 1 else torch.stack(slopes, dim=1)
        return out if keep else out.detach()

    # -- UFL and Functions -----------------------------------------------------------------------------------

    def _expression(self, expression: Expr) -> Tensor:
        """Values of a UFL expression on this mesh."""
        with agreed(self.comm):
            domains = {domain.ufl_cargo() for domain in extract_domains(expression)}
            if any(cargo not in (None, self.mesh._cpp_object, self.mesh) for cargo in domains):
                raise ValueError(
                    "the expression is on another mesh; a Function of another mesh may be given by itself, and is then "
                    "evaluated here"
                )
        found = np.asarray(self._evaluated(expression), dtype=np.float64)
        return torch.from_numpy(np.ascontiguousarray(found.reshape(len(self.x), *expression.ufl_shape)))

    def _evaluated(self, expression: Expr) -> np.ndarray:
        raise NotImplementedError

    def _elsewhere(self, u: fem.Function) -> Tensor:
        """Values of a Function of another mesh."""
        raise NotImplementedError


def called(field: Callable[[Tensor], Any], x: Tensor) -> Any:
    """field(x), where another dtype is told as what it is."""
    try:
        return field(x)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise TypeError(
            f"a field cannot take coordinates in float64 ({str(error).splitlines()[0]}): call .double() on the network"
        ) from error


def check_graph(values: Tensor) -> None:
    """Raise ValueError where values that vary with x do not know it, so that their gradient would be zero."""
    if values.requires_grad or len(values) < 2:
        return
    flat = values.detach().reshape(len(values), -1)
    if bool((flat.amax(0) > flat.amin(0)).any()):
        raise ValueError(
            "a field has lost its graph, and its gradient with it: it must be made of torch operations on x, without "
            "detach(), numpy(), torch.no_grad() or torch.inference_mode() in it or around it"
        )


class CellQuadrature(_Quadrature):
    """A quadrature rule on every cell.

    Args:
        mesh: The mesh.
        degree: Of the polynomials that it integrates exactly on an affine cell.

    Attributes:
        x: The points of the owned cells, cell by cell, (n_cells·q, d).
        weights: (n_cells·q,), which sum to |Ω| over the ranks.
        n_cells: owned cells.  q: points in each.
        X, reference_weights: the rule on the reference cell, (q, d) and (q,).

    Construction and `values`, `gradients`, `integral` are collective.
    """

    def __init__(self, mesh: dmesh.Mesh, degree: int) -> None:
        with agreed(mesh.comm):
            check_whole("the degree of a quadrature rule", degree, 0)
        geo = cell_geometry(mesh)
        self.mesh, self.comm, self.degree = mesh, mesh.comm, int(degree)
        self.X, self.reference_weights = basix.make_quadrature(getattr(basix.CellType, geo.name), self.degree)
        self.n_cells, self.q = geo.n_owned, len(self.reference_weights)
        X, weights = geo.quadrature(self.degree)
        self.x = torch.from_numpy(geo.push_forward(np.repeat(np.arange(self.n_cells), self.q), X))
        self.weights = torch.from_numpy(weights)
        # Where these points lie in other meshes: found once for each.
        self._others: list[tuple[dmesh.Mesh, Any]] = []

    def by_cell(self, values: Tensor) -> np.ndarray:
        """Σ weights · values on each owned cell, (n_cells,), of values (n,) at the points.  Local."""
        return (self.weights * values.detach()).reshape(self.n_cells, self.q).sum(1).numpy()

    def space(self, shape: tuple[int, ...] = ()) -> fem.FunctionSpace:
        """The space of values at these points, for use in UFL forms with `metadata`; see `into`."""
        element = basix.ufl.quadrature_element(
            self.mesh.topology.cell_name(), value_shape=shape, points=self.X, weights=self.reference_weights
        )
        return fem.functionspace(self.mesh, element)

    def _evaluated(self, expression: Expr) -> np.ndarray:
        cells = np.arange(self.n_cells, dtype=np.int32)
        return _compat.expression(expression, self.X, self.mesh).eval(self.mesh, cells)

    def _elsewhere(self, u: fem.Function) -> Tensor:
        check_lagrange(u.function_space)
        shape = _compat.value_shape(u.function_space)
        V = self.space(shape)
        cells = np.arange(self.n_cells, dtype=np.int32)
        found = fem.Function(V)
        found.interpolate_nonmatching(u, cells, self._found_in(u.function_space.mesh))
        k = int(np.prod(shape, dtype=int))
        dofs = V.dofmap.list[: self.n_cells, :, None] * k + np.arange(k)
        return torch.from_numpy(found.x.array[dofs].reshape(len(self.x), *shape))

    def _found_in(self, mesh: dmesh.Mesh) -> Any:
        """Where the points lie in another mesh; ValueError on all ranks where some do not."""
        for other, data in self._others:
            if other is mesh:
                return data
        V, constants = self.space(), fem.functionspace(mesh, ("DG", 0))
        cells = np.arange(self.n_cells, dtype=np.int32)
        data = fem.create_interpolation_data(V, constants, cells, padding=_PADDING)
        one, inside = fem.Function(constants), fem.Function(V)
        one.x.array[:] = 1.0
        inside.interpolate_nonmatching(one, cells, data)
        missed = np.flatnonzero(inside.x.array[V.dofmap.list[: self.n_cells]].ravel() != 1.0)
        if any_rank(self.comm, len(missed) > 0):
            n = int(sum_array(self.comm, np.array([len(missed)]))[0])
            with agreed(self.comm):
                if len(missed):
                    raise ValueError(
                        f"{n} of the quadrature points lie outside the mesh of the Function, one at "
                        f"{tuple(float(c) for c in self.x[missed[0]])}; integrate over the smaller domain"
                    )
        self._others.append((mesh, data))
        return data


class BoundaryQuadrature(_Quadrature):
    """A quadrature rule on exterior facets.

    Args:
        mesh: The mesh.  degree: as for `CellQuadrature`.
        facets: Local facets (ghosts or not; only exterior ones owned here count), a function of x (3, n) that is True
            on them, or None for the whole boundary.

    Attributes:
        x, normals: (n, d), the outer unit normals.  weights: (n,), lengths or areas.
        facets, cells: owned facets with their cells, (n_facets,).  facet: which of them each point is on, (n,).

    Construction and `values`, `gradients`, `integral` are collective.
    """

    def __init__(self, mesh: dmesh.Mesh, degree: int, facets: Any = None) -> None:
        with agreed(mesh.comm):
            check_whole("the degree of a quadrature rule", degree, 0)
        self.mesh, self.comm, self.degree = mesh, mesh.comm, int(degree)
        self.facets, self.cells, numbers = exterior_facets(mesh)
        if facets is not None:
            some = np.isin(self.facets, named_facets(mesh, facets))
            self.facets, self.cells, numbers = self.facets[some], self.cells[some], numbers[some]
        rule = facet_rule(mesh, self.cells, numbers, self.degree)
        self.facet, self._rule = rule.facet, rule
        self.x, self.normals = torch.from_numpy(rule.x), torch.from_numpy(rule.normals)
        self.weights = torch.from_numpy(rule.weights)

    def _evaluated(self, expression: Expr) -> np.ndarray:
        # At the points of all facets of each cell, so that every rank compiles the same expression.
        cells = self.cells[self.facet].astype(np.int32)
        found = _compat.expression(expression, self._rule.X, self.mesh).eval(self.mesh, cells)
        size = int(np.prod(expression.ufl_shape, dtype=int))
        rows = np.asarray(found).reshape(len(self.x), len(self._rule.X), size)
        return rows[np.arange(len(self.x)), self._rule.slot]

    def _elsewhere(self, u: fem.Function) -> Tensor:
        raise ValueError("on the boundary a Function must be on the mesh itself")


def _gradient(u: fem.Function) -> fem.Function:
    """∇u as a Function of the same mesh: exact for Lagrange elements on affine cells.  Collective."""
    V = u.function_space
    check_lagrange(V)
    mesh, degree = V.mesh, V.element.basix_element.degree
    with agreed(mesh.comm):
        if not cell_geometry(mesh).affine:
            raise ValueError(
                "the gradient of a Function of another mesh needs affine simplices; integrate on its own mesh instead"
            )
    gradient = ufl.grad(u)
    W = fem.functionspace(mesh, ("DG", max(0, degree - 1), gradient.ufl_shape))
    found = fem.Function(W)
    found.interpolate(_compat.expression(gradient, _compat.interpolation_points(W), mesh))
    return found
