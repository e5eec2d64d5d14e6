"""Ghost points on the boundary, and of several kinds together."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from boxes import Cell, box, left
from cases import distorted_quadrilaterals
from dolfinx import fem
from scipy import stats

import hyco_fem as hf
from hyco_fem.parallel import sum_array

CELLS = [Cell.interval, Cell.triangle, Cell.quadrilateral, Cell.tetrahedron, Cell.hexahedron]


def on_boundary(x: np.ndarray) -> np.ndarray:
    """Distance to the boundary of the unit box."""
    return np.minimum(np.abs(x), np.abs(1.0 - x)).min(axis=1)


@pytest.mark.parametrize("cell", CELLS)
def test_points_lie_on_the_boundary_and_are_uniform_there(comm: MPI.Comm, cell: Any) -> None:
    """Distances to the nearest side vanish; the count of each side is binomial."""
    domain = box(comm, cell, 3)
    V = fem.functionspace(domain, ("Lagrange", 1))
    d = domain.geometry.dim
    points = hf.BoundaryGhosts(600, seed=2).on(V).draw(0)
    x = points.gather(points.x)
    assert x.shape == (600, d)
    assert on_boundary(x).max() < 1e-14
    counts = [np.sum(np.isclose(x[:, a], side)) for a in range(d) for side in (0.0, 1.0)]
    assert stats.chisquare(counts).pvalue > 1e-4
    if d > 1:
        along = x[np.isclose(x[:, 0], 0.0)][:, 1]
        assert stats.kstest(along, "uniform").pvalue > 1e-4
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0, rel=1e-13)


def test_unequal_facets_are_drawn_by_their_length(comm: MPI.Comm) -> None:
    domain = distorted_quadrilaterals(comm, 6)
    V = fem.functionspace(domain, ("Lagrange", 1))
    points = hf.BoundaryGhosts(2000, facets=left, seed=1).on(V).draw(0)
    x = points.gather(points.x)
    assert np.abs(x[:, 0]).max() < 1e-13
    assert stats.kstest(x[:, 1], "uniform").pvalue > 1e-4


@pytest.mark.parametrize("cell", CELLS)
def test_the_draw_does_not_know_the_partition(comm: MPI.Comm, cell: Any) -> None:
    def drawn(some: MPI.Comm) -> np.ndarray:
        V = fem.functionspace(box(some, cell, 3), ("Lagrange", 1))
        union = hf.GhostUnion([hf.RandomGhosts(20), hf.BoundaryGhosts(15)], [1.0, 2.0])
        points = union.on(V).draw(3)
        u = points.evaluate(hf.as_function(V, lambda x: x.sum(1), "u"))
        return np.column_stack([points.gather(points.x), points.gather(points.weights), points.gather(u)])

    np.testing.assert_allclose(drawn(comm), drawn(MPI.COMM_SELF), atol=1e-13)


def test_a_union_is_the_sum_of_its_parts(comm: MPI.Comm) -> None:
    V = fem.functionspace(box(comm, Cell.triangle, 4), ("Lagrange", 1))
    parts = [hf.RandomGhosts(30, fixed=True), hf.BoundaryGhosts(20, fixed=True), hf.QuadratureGhosts(2)]
    sampler = hf.GhostUnion(parts, [1.0, 5.0, 0.5]).on(V)
    points = sampler.draw(0)
    assert sampler.draw(7) is points, "what is fixed stays, with its B"

    def mean(some: Any) -> float:
        return float(sum_array(comm, np.array([float(some.weights @ torch.sin(3 * some.x[:, 0]))]))[0])

    expected = sum(s * mean(p.on(V).draw(0)) for s, p in zip((1.0, 5.0, 0.5), parts, strict=True))
    assert mean(points) == pytest.approx(expected, rel=1e-12)
    assert points.n_found == points.n == 50 + parts[2].on(V).draw(0).n


def test_bad_ghosts_are_refused(comm: MPI.Comm) -> None:
    V = fem.functionspace(box(comm, Cell.triangle, 2), ("Lagrange", 1))
    with pytest.raises(ValueError, match="at least 1"):
        hf.BoundaryGhosts(0)
    with pytest.raises(ValueError, match="none of the facets lies on the boundary"):
        hf.BoundaryGhosts(5, facets=lambda x: np.isclose(x[0], 7.0)).on(V)
    with pytest.raises(ValueError, match="at least one kind"):
        hf.GhostUnion([])
    with pytest.raises(ValueError, match="as many positive shares"):
        hf.GhostUnion([hf.RandomGhosts(2)], [1.0, 2.0])
    with pytest.raises(ValueError, match="DofGhosts cannot be part"):
        hf.GhostUnion([hf.DofGhosts()]).on(V).draw(0)
