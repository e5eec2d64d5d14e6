"""Refinement driven by certificates: the rate that a corner takes away comes back, and every certificate holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, square
from dolfinx import fem, mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.accuracy.adaptive import AdaptiveLevel, adapt, dorfler, refine_marked
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.dofs import dof_coordinates
from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.parallel import sum_array

# ‖∇u‖² for −Δu = 1 on the L-shape, u = 0 on its boundary.  It is between ‖∇u_h‖² and ‖∇u_h‖² plus the square of a
# certificate: 0.21407578 and 0.21407581 for P3 on an adapted mesh of 1,118 cells.
L_SHAPE_ENERGY = 0.2140758


def l_shape(comm: MPI.Comm, n: int = 1) -> mesh.Mesh:
    """(−1, 1)² without (0, 1) × (−1, 0), in squares of side 1/n cut in two."""
    k = 2 * n + 1
    cells = [
        triangle
        for j in range(2 * n)
        for i in range(2 * n)
        if i < n or j >= n
        for a in [j * k + i]
        for triangle in ([a, a + 1, a + k + 1], [a, a + k, a + k + 1])
    ]
    used, numbered = np.unique(np.array(cells), return_inverse=True)
    x = np.column_stack([used % k, used // k]) / n - 1.0
    mine = numbered.reshape(-1, 3).astype(np.int64) if comm.rank == 0 else np.empty((0, 3), dtype=np.int64)
    element = basix.ufl.element("Lagrange", "triangle", 1, shape=(2,))
    return mesh.create_mesh(comm, mine, x=x if comm.rank == 0 else np.empty((0, 2)), e=element)


def corner(x: Tensor) -> Tensor:
    """r^{2/3} sin(2θ/3): harmonic, zero on both sides of the re-entrant corner, with ∇u unbounded there."""
    angle = torch.atan2(x[:, 1], x[:, 0])
    angle = torch.where(angle < -1e-12, angle + 2 * math.pi, angle)
    return x.square().sum(1) ** (1 / 3) * torch.sin(2 * angle / 3)


def poisson(f: float, g: Callable[[Tensor], Tensor] | None = None, degree: int = 1) -> Callable[[mesh.Mesh], Any]:
    """A solver of −Δu = f, u = g on the boundary, on a mesh that it is given."""

    def solve(domain: mesh.Mesh) -> fem.Function:
        V = fem.functionspace(domain, ("Lagrange", degree))
        uh, v, boundary = fem.Function(V), ufl.TestFunction(V), fem.Function(V)
        if g is not None:
            boundary.x.array[: len(dof_coordinates(V))] = g(dof_coordinates(V)).numpy()
            boundary.x.scatter_forward()
        F = ufl.inner(ufl.grad(uh), ufl.grad(v)) * ufl.dx - fem.Constant(domain, f) * v * ufl.dx
        model = hf.PhysicalModel(F, uh, [fem.dirichletbc(boundary, boundary_dofs(V))])
        model.solve()
        model.close()
        return uh

    return solve


def energy_error(level: AdaptiveLevel, u: Callable[[Tensor], Tensor]) -> float:
    """‖∇(u − v)‖."""
    rule = CellQuadrature(level.mesh, 14)
    return math.sqrt(rule.integral((rule.gradients(u) - rule.gradients(level.v)).square().sum(1)))


def slope(levels: list[AdaptiveLevel], values: list[float], last: int) -> float:
    """Of log value against log dofs, over the last levels."""
    return float(np.polyfit(np.log([level.dofs for level in levels[-last:]]), np.log(values[-last:]), 1)[0])


# -- marking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_marking_takes_the_fewest_cells_that_hold_the_fraction(comm: MPI.Comm, fraction: float) -> None:
    rng = np.random.default_rng(0)
    whole = np.exp(rng.normal(0.0, 2.0, 400))
    mine = np.arange(comm.rank, 400, comm.size)
    marked = mine[dorfler(whole[mine], comm, fraction)]
    everyone = np.sort(np.concatenate(comm.allgather(marked)))
    order = np.argsort(-whole)
    held = np.cumsum(whole[order] ** 2)
    least = int(np.searchsorted(held, fraction * held[-1])) + 1
    np.testing.assert_array_equal(everyone, np.sort(order[:least]))


def test_equals_are_marked_together(comm: MPI.Comm) -> None:
    mine = np.full(3, 2.0) * (1 + 1e-13 * comm.rank)
    np.testing.assert_array_equal(dorfler(mine, comm, 0.2), [0, 1, 2])
    np.testing.assert_array_equal(dorfler(np.array([1.0, 0.0]), comm, 1.0), [0])
    assert len(dorfler(np.zeros(4), comm)) == 0
    # A rank without cells, or without any of the error.
    some = np.array([3.0, 0.1]) if comm.rank == 0 else np.empty(0)
    np.testing.assert_array_equal(dorfler(some, comm), [0] if comm.rank == 0 else [])


@pytest.mark.parametrize(
    ("indicators", "fraction", "words"),
    [
        (np.ones(2), 0.0, "fraction must be a number in"),
        (np.ones(2), 1.5, "fraction must be a number in"),
        (-np.ones(2), 0.5, "must not be negative"),
        (np.full(2, np.nan), 0.5, "must be finite"),
        (np.ones((2, 2)), 0.5, "one for each owned cell"),
    ],
)
def test_marking_refuses_what_is_no_indicator(
    comm: MPI.Comm, indicators: np.ndarray, fraction: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dorfler(indicators, comm, fraction)


# -- refining --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
def test_refinement_fills_the_same_domain_with_smaller_cells_where_marked(comm: MPI.Comm, d: int) -> None:
    domain = square(comm, 4) if d == 2 else mesh.create_unit_cube(comm, 4, 4, 4)
    n = domain.topology.index_map(d).size_local
    middles = mesh.compute_midpoints(domain, d, np.arange(n, dtype=np.int32))
    finer = refine_marked(domain, np.flatnonzero(np.linalg.norm(middles, axis=1) < 0.5))
    geo = cell_geometry(finer)
    volumes = geo.volumes()
    assert float(sum_array(comm, np.array([volumes.sum()]))[0]) == pytest.approx(1.0, rel=1e-12)
    assert geo.n_global > domain.topology.index_map(d).size_global
    # Conforming: a hanging node would make exterior facets inside.
    assert hf.mesh_size(finer) <= hf.mesh_size(domain) * (1 + 1e-12)
    finer.topology.create_connectivity(d - 1, d)
    outside = mesh.exterior_facet_indices(finer.topology)
    x = mesh.compute_midpoints(finer, d - 1, outside)[:, :d]
    assert (np.minimum(x, 1 - x).min(axis=1) < 1e-12).all()
    # Every marked cell is gone: it would be the largest there.
    near = mesh.compute_midpoints(finer, d, np.arange(geo.n_owned, dtype=np.int32))
    some = volumes[np.linalg.norm(near, axis=1) < 0.2]
    coarse = cell_geometry(domain).volumes().max(initial=0.0)
    assert comm.allreduce(some.max(initial=0.0), op=MPI.MAX) < 0.6 * comm.allreduce(coarse, op=MPI.MAX)


def test_refinement_refuses_cells_that_it_cannot_bisect(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="only triangles and tetrahedra"):
        refine_marked(square(comm, 2, mesh.CellType.quadrilateral), np.array([0]))
    with pytest.raises(ValueError, match="not all owned here"):
        refine_marked(square(comm, 2), np.array([1000]))


# -- the loop --------------------------------------------------------------------------------------------------


def test_on_the_l_shape_refinement_by_certificates_has_the_rate_of_smooth_solutions(comm: MPI.Comm) -> None:
    """‖∇e‖ ~ N^{−1/3} on uniform meshes, N^{−1/2} on adaptive ones; no error above its certificate on either."""
    rates = {}
    for fraction, last in ((1.0, 3), (0.5, 5)):
        levels = adapt(l_shape(comm), poisson(0.0, corner), fraction=fraction, max_cells=700, f=0.0, g=corner)
        errors = [energy_error(level, corner) for level in levels]
        for level, error in zip(levels, errors, strict=True):
            assert error <= level.certificate.value <= 1.3 * error
        rates[fraction] = slope(levels, errors, last), slope(levels, [x.certificate.value for x in levels], last)
    assert all(-0.36 < rate < -0.28 for rate in rates[1.0]), rates
    assert all(rate < -0.45 for rate in rates[0.5]), rates


def test_with_a_load_on_the_l_shape(comm: MPI.Comm) -> None:
    """−Δu = 1: by orthogonality ‖∇(u − u_h)‖² = ‖∇u‖² − ‖∇u_h‖², and ‖∇u‖² is known."""
    levels = adapt(l_shape(comm), poisson(1.0), max_cells=900)
    for level in levels:
        rule = CellQuadrature(level.mesh, 2)
        error = math.sqrt(L_SHAPE_ENERGY - rule.integral(rule.gradients(level.v).square().sum(1)))
        assert error <= level.certificate.value * (1 + 1e-4)  # the energy is known to seven digits
        assert level.certificate.efficiency(error) < 1.3
    assert slope(levels, [level.certificate.value for level in levels], 5) < -0.45


def test_the_loop_stops_at_its_tolerance_and_tells_of_each_level(comm: MPI.Comm) -> None:
    told: list[AdaptiveLevel] = []
    levels = adapt(square(comm, 2), poisson(1.0, degree=2), tolerance=0.02, callback=told.append)
    assert levels == told
    values = [level.certificate.value for level in levels]
    assert values[-1] <= 0.02 < values[-2]
    assert all(a.cells < b.cells for a, b in pairwise(levels))
    assert str(levels[-1].cells) in str(levels[-1])
    assert len(adapt(square(comm, 2), poisson(1.0), max_cells=8)) == 1


def test_adaptive_meshes_do_not_depend_on_the_number_of_ranks() -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        levels = adapt(l_shape(comm), poisson(1.0), max_cells=60)
        return {
            "cells": [level.cells for level in levels],
            "dofs": [level.dofs for level in levels],
            "values": [level.certificate.value for level in levels],
        }

    result = hf.rank_invariance(build, tolerance=1e-10)
    assert result.ok, result.differences


def test_data_of_one_mesh_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    f = fem.Function(fem.functionspace(domain, ("DG", 0)))
    with pytest.raises(TypeError, match="f belongs to one mesh"):
        adapt(domain, poisson(1.0), f=f)
    with pytest.raises(TypeError, match="dirichlet belongs to one mesh"):
        adapt(domain, poisson(1.0), dirichlet=np.array([0], dtype=np.int32))
    with pytest.raises(TypeError, match="solve must return a Function"):
        adapt(square(comm, 2), lambda _: f)
    for options, words in (({"tolerance": -1.0}, "tolerance must be"), ({"max_cells": 0}, "max_cells must be")):
        with pytest.raises(ValueError, match=words):
            adapt(domain, poisson(1.0), **options)
