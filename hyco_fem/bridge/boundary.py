"""Boundary conditions at points, for models that are evaluated there: a network in strong form.

Dirichlet conditions are read from the problem, dof by dof.  The natural ones (Flux, Robin) are not kept by a problem,
so they are given again; on what is left of the boundary the flux is zero, as in the weak form.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import basix
import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.interpolate import Interpolant, Part
from hyco_fem.parallel import agreed, sum_array
from hyco_fem.pde.dirichlet import Trace, fixed_dofs, is_value_of
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Condition, Dirichlet, Flux, Problem, Robin


class FixedValues:
    """The dofs that Dirichlet conditions fix, as points, components and values.  Distributed.

    Args:
        problem: The problem.  interpolant: of its space.
        unknown: Names of coefficients that are unknown; where they are boundary values, `unknown` says so.

    Attributes:
        x: Points, (n, d).  columns: the component fixed at each, (n,).  values: (n,).  n_global: over all ranks.
        unknown: By name, rows that take their value from an unknown coefficient: (rows, dof points of it (m, d), the
            places of the rows' values among those of the coefficient at these points, unrolled).

    Collective.
    """

    def __init__(self, problem: Problem | TransientProblem, interpolant: Interpolant, unknown: Collection[str]) -> None:
        V = problem.u.function_space
        n_owned = len(interpolant.rows)
        u = problem.u.x.array.copy()
        for bc in problem.bcs:
            bc.set(u)
        fixed = fixed_dofs(problem.bcs)
        fixed = fixed[fixed < n_owned]
        self.x = interpolant.x[interpolant.rows[fixed]]
        self.columns = interpolant.columns[fixed]
        self.values = torch.from_numpy(u[fixed])
        self.n_global = int(sum_array(V.mesh.comm, np.array([len(fixed)]))[0])
        self.unknown: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name in unknown:
            m = problem.coefficients.get(name)
            if m is None or not any(is_value_of(bc, m) for bc in problem.bcs):
                continue
            trace = Trace(m, V, problem.bcs)
            # A dof on the border of two ranks may take its value from a ghost of the coefficient: its point is needed.
            x = torch.from_numpy(m.function_space.tabulate_dof_coordinates()[:, : V.mesh.geometry.dim].copy())
            rows = torch.from_numpy(np.searchsorted(fixed, trace.rows))
            self.unknown[name] = rows, x, torch.from_numpy(trace.columns)


@dataclass
class NaturalPoints:
    """Points on the part of the boundary where u is free, with what the natural conditions ask there.  Distributed.

    σ n = g + h (a − u)

    x, normals: (n, d).  weights: (n,), in a mean over the boundary points of all ranks.
    free: 1 where a component is free, (n, k).  g, a: (n, k).  h: (n,).
    unknown: (which of "g", "h", "a", rows, name of the coefficient) where an unknown coefficient gives the values.
    """

    x: Tensor
    normals: Tensor
    weights: Tensor
    free: Tensor
    g: Tensor
    h: Tensor
    a: Tensor
    unknown: list[tuple[str, Tensor, str]] = field(default_factory=list)


def natural_points(
    problem: Problem | TransientProblem,
    part: Part,
    conditions: Sequence[Condition],
    unknown: Collection[str],
    degree: int,
) -> NaturalPoints:
    """The points of a quadrature rule on the boundary facets on which something of u is free.

    Args:
        problem: The problem.  part: that part of its unknown which has a flux.
        conditions: Those that the problem was made with; Dirichlet ones are read from the problem itself.
        unknown: Names of coefficients that are unknown.  degree: of the rule.

    Raises:
        ValueError: the problem has natural conditions, and `conditions` has none; on all ranks.

    Collective.
    """
    mesh, k = problem.u.function_space.mesh, part.components
    with agreed(mesh.comm):
        natural = [c for c in conditions if not isinstance(c, Dirichlet)]
        for c in natural:
            if not isinstance(c, (Flux, Robin)):
                raise TypeError(f"conditions are Dirichlet, Flux or Robin, not {type(c).__name__}")
        forms = [form for form in (problem.F, getattr(problem, "explicit", None)) if form is not None]
        if not natural and any(i.integral_type() == "exterior_facet" for form in forms for i in form.integrals()):
            raise ValueError(
                f"the {problem.name} problem has integrals over the boundary, which a strong form does not see: pass "
                "the same conditions=… that it was made with"
                f"{', or use VariationalPINN' if isinstance(problem, Problem) else ''}"
            )
    facets, cells, numbers = exterior_facets(mesh)
    free = free_components(problem, part, cells, numbers)
    some = free.any(axis=1)
    facets, cells, numbers, free = facets[some], cells[some], numbers[some], free[some]
    rule = facet_rule(mesh, cells, numbers, degree)
    total = float(sum_array(mesh.comm, np.array([rule.weights.sum()]))[0])
    n = len(rule.x)
    made = NaturalPoints(
        torch.from_numpy(rule.x),
        torch.from_numpy(rule.normals),
        torch.from_numpy(rule.weights / (total or 1.0)),
        torch.from_numpy(free[rule.facet].astype(np.float64).reshape(n, k)),
        *(torch.zeros(shape, dtype=torch.float64) for shape in ((n, k), (n,), (n, k))),
    )
    for c in natural:
        rows = np.flatnonzero(np.isin(facets, named_facets(mesh, c.facets))[rule.facet])
        parts = [("g", c.value)] if isinstance(c, Flux) else [("h", c.coefficient), ("a", c.ambient)]
        for target, value in parts:
            name = value.name if isinstance(value, fem.Function) else None
            if name in unknown:
                made.unknown.append((target, torch.from_numpy(rows), str(name)))
                continue
            into = getattr(made, target)
            into[rows] = spread(torch.from_numpy(_at(value, mesh, cells, rule, rows)), into[rows].shape)
    return made


def spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Data at n points in the shape (n,) or (n, k); a scalar stands for every component."""
    if len(shape) == 1 or values.numel() == 0:
        return values.reshape(*shape)
    return (values[:, None] if values.ndim == 1 else values).expand(*shape)


def exterior_facets(mesh: dmesh.Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owned exterior facets, their cells, and which facet of its cell each is."""
    tdim = mesh.topology.dim
    mesh.topology.create_connectivity(tdim - 1, tdim)
    mesh.topology.create_connectivity(tdim, tdim - 1)
    facets = np.asarray(dmesh.exterior_facet_indices(mesh.topology))
    to_cell = mesh.topology.connectivity(tdim - 1, tdim)
    cells = np.asarray(to_cell.array)[np.asarray(to_cell.offsets)[facets]]
    to_facets = mesh.topology.connectivity(tdim, tdim - 1)
    per_cell = len(basix.topology(getattr(basix.CellType, mesh.topology.cell_name()))[tdim - 1])
    of_cell = np.asarray(to_facets.array).reshape(-1, per_cell)[cells]  # of a rank without cells too
    return facets, cells, np.argmax(of_cell == facets[:, None], axis=1)


def free_components(
    problem: Problem | TransientProblem, part: Part, cells: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """Which components are not fixed on all of each facet, (n_facets, k)."""
    n_local = len(problem.u.x.array)
    fixed = np.zeros(n_local, dtype=bool)
    fixed[fixed_dofs(problem.bcs)] = True
    bs = part.space.dofmap.index_map_bs
    of_part = fixed[part.dofs].reshape(-1, bs)
    tdim = part.space.mesh.topology.dim
    free = np.zeros((len(cells), bs), dtype=bool)
    for local in np.unique(numbers):
        rows = np.flatnonzero(numbers == local)
        closure = part.space.dofmap.dof_layout.entity_closure_dofs(tdim - 1, int(local))
        free[rows] = ~of_part[part.space.dofmap.list[cells[rows]][:, closure]].all(axis=1)
    return free


@dataclass(frozen=True)
class FacetRule:
    """A quadrature rule on some facets.

    X: its reference points on all facets of the reference cell, one facet after the other, (n_facets q, d).
    slot: for each point its row in X, (n,).  facet: the facet of each, (n,).
    x, normals: (n, d).  weights: (n,), lengths or areas.
    """

    X: np.ndarray
    slot: np.ndarray
    facet: np.ndarray
    x: np.ndarray
    normals: np.ndarray
    weights: np.ndarray


def facet_rule(mesh: dmesh.Mesh, cells: np.ndarray, numbers: np.ndarray, degree: int) -> FacetRule:
    """A rule on the facets with these numbers in these cells."""
    geo = cell_geometry(mesh)
    kind, d = getattr(basix.CellType, geo.name), geo.tdim
    corners, facets = basix.geometry(kind), basix.topology(kind)[d - 1]
    # basix has no Jacobians of points.
    jacobians = basix.cell.facet_jacobians(kind) if d > 1 else np.empty((2, 1, 0))
    tangents = np.asarray(jacobians).reshape(len(facets), d, d - 1)
    if d == 1:
        s, w = np.zeros((1, 0)), np.ones(1)
    else:
        s, w = basix.make_quadrature(basix.cell.subentity_types(kind)[d - 1][0], degree)
    first = corners[[vertices[0] for vertices in facets]]
    X = (first[:, None] + np.einsum("qj,fij->fqi", s, tangents)).reshape(-1, d)
    q, n = len(w), len(cells)
    which, slot = np.repeat(np.arange(n), q), (numbers[:, None] * q + np.arange(q)).ravel()
    J = geo.jacobian(cells[which], X[slot])
    number = numbers[which]
    outer = np.linalg.solve(J.transpose(0, 2, 1), basix.cell.facet_outward_normals(kind)[number][..., None])[..., 0]
    tangent = J @ tangents[number]
    return FacetRule(
        X,
        slot,
        which,
        geo.push_forward(cells[which], X[slot]),
        outer / np.linalg.norm(outer, axis=1, keepdims=True),
        np.tile(w, n) * np.sqrt(np.linalg.det(tangent.transpose(0, 2, 1) @ tangent)),
    )


def named_facets(mesh: dmesh.Mesh, facets: Any) -> np.ndarray:
    """Local facets as a condition names them: indices, a function of x (3, n), or None for the whole boundary."""
    if facets is None:
        return np.asarray(dmesh.exterior_facet_indices(mesh.topology))
    if callable(facets):
        return np.asarray(dmesh.locate_entities_boundary(mesh, mesh.topology.dim - 1, facets))
    return np.unique(np.asarray(facets).astype(np.int64))


def _at(value: Any, mesh: dmesh.Mesh, cells: np.ndarray, rule: FacetRule, rows: np.ndarray) -> np.ndarray:
    """A number, vector or UFL expression at some points of a rule, (n, size).  Collective."""
    if not isinstance(value, Expr):
        return np.tile(np.asarray(value, dtype=np.float64).reshape(1, -1), (len(rows), 1))
    # At the points of all facets of each cell, so that every rank compiles the same expression.
    found = _compat.expression(value, rule.X, mesh).eval(mesh, cells[rule.facet[rows]].astype(np.int32))
    size = int(np.prod(value.ufl_shape, dtype=int))
    return np.asarray(found).reshape(len(rows), len(rule.X), size)[np.arange(len(rows)), rule.slot[rows]]
