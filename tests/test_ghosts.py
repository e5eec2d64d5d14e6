"""Ghost points: uniform where they say so, exact where they say so, and the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import distorted_quadrilaterals, square
from dolfinx import fem, mesh
from scipy import stats

import hyco_fem as hf
from hyco_fem.parallel import sum_array

# A correct sampler fails a test at this level once in 10⁴ seeds, and the seeds are fixed; a wrong density at
# thousands of points gives 1e-8 and far less.
_LEVEL = 1e-4


def graded(comm: MPI.Comm, n: int = 5) -> mesh.Mesh:
    """The unit square in triangles whose areas differ eighty-fold."""
    domain = square(comm, n)
    domain.geometry.x[:, :2] **= 2
    return domain


def coarse_quadrilaterals(comm: MPI.Comm) -> mesh.Mesh:
    """The unit square in four quadrilaterals, in two tilted layers: the Jacobian varies five-fold within a cell."""
    domain = square(comm, 2, mesh.CellType.quadrilateral)
    x, y = domain.geometry.x[:, :2].T
    y += 4 * y * (1 - y) * 0.4 * (2 * x - 1)
    return domain


def coarse_hexahedra(comm: MPI.Comm) -> mesh.Mesh:
    """The unit cube in four hexahedra, in two layers with a twisted face between them."""
    domain = mesh.create_unit_cube(comm, 1, 2, 2, mesh.CellType.hexahedron)
    x, y, z = domain.geometry.x.T
    z += 4 * z * (1 - z) * (2 * x - 1) * (0.2 + 0.2 * (2 * y - 1))
    return domain


# All fill the unit interval, square or cube, on which each coordinate of a uniform point is uniform.
MESHES: dict[str, Callable[[MPI.Comm], mesh.Mesh]] = {
    "interval": lambda comm: mesh.create_unit_interval(comm, 4),
    "triangle": graded,
    "quadrilateral": coarse_quadrilaterals,
    "tetrahedron": lambda comm: mesh.create_unit_cube(comm, 1, 1, 1),
    "hexahedron": coarse_hexahedra,
}
every_cell = pytest.mark.parametrize("cell", MESHES)


def p1(domain: mesh.Mesh) -> fem.FunctionSpace:
    """P1 on a mesh."""
    return fem.functionspace(domain, ("Lagrange", 1))


def drawn(V: fem.FunctionSpace, ghosts: hf.RandomGhosts, round: int = 0) -> np.ndarray:
    """The points of a round, replicated, in their order."""
    points = ghosts.on(V).draw(round)
    return points.gather(points.x)


# -- random ----------------------------------------------------------------------------------------------------


@every_cell
def test_random_ghosts_are_uniform_in_space(comm: MPI.Comm, cell: str) -> None:
    domain = MESHES[cell](comm)
    x = drawn(p1(domain), hf.RandomGhosts(4000, seed=5))
    assert x.shape == (4000, domain.geometry.dim)
    assert hf.Points(domain, x, missing="mark").found.all(), "the points lie in the mesh"
    for coordinate in x.T:
        assert stats.kstest(coordinate, "uniform").pvalue > _LEVEL
    # Jointly: counts in boxes that are not the cells.
    counts, _ = np.histogramdd(x, bins=3, range=[(0, 1)] * x.shape[1])
    assert stats.chisquare(counts.ravel()).pvalue > _LEVEL


def test_cells_get_points_by_their_volume(comm: MPI.Comm) -> None:
    """Against volumes by assembly, on a mesh whose cells differ eighty-fold; the points are found by search."""
    domain = graded(comm)
    Q = fem.functionspace(domain, ("DG", 0))
    n, original = Q.dofmap.index_map.size_local, domain.topology.original_cell_index
    volume = fem.assemble_vector(fem.form(ufl.TestFunction(Q) * ufl.dx)).array
    number = fem.Function(Q)
    volumes = np.zeros(Q.dofmap.index_map.size_global)
    for c in range(n):
        dof = Q.dofmap.list[c, 0]
        number.x.array[dof] = original[c]
        volumes[original[c]] = volume[dof]
    volumes = sum_array(comm, volumes)
    assert volumes.max() > 50 * volumes.min()
    found = hf.Points(domain, drawn(p1(domain), hf.RandomGhosts(20_000, seed=1)))
    cells = found.gather(found.evaluate(number)).astype(int)
    counts = np.bincount(cells, minlength=len(volumes))
    assert stats.chisquare(counts, 20_000 * volumes).pvalue > _LEVEL


@every_cell
def test_the_points_are_the_same_in_the_same_order_on_any_number_of_ranks(cell: str) -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        points = hf.RandomGhosts(60, seed=2).on(p1(MESHES[cell](comm))).draw(3)
        owners = np.bincount(np.concatenate(comm.allgather(points.index)), minlength=60)
        return {"x": points.gather(points.x), "owners": owners, "weights": points.gather(points.weights)}

    result = hf.rank_invariance(build, tolerance=1e-13)
    assert result.ok, result.differences
    alone = build(MPI.COMM_SELF)
    np.testing.assert_array_equal(alone["owners"], 1)
    np.testing.assert_allclose(alone["weights"], 1 / 60, rtol=1e-14)


def test_rounds_and_seeds_differ_and_each_can_be_drawn_again(comm: MPI.Comm) -> None:
    V = p1(distorted_quadrilaterals(comm))
    first = drawn(V, hf.RandomGhosts(20, seed=4), 7)
    sampler = hf.RandomGhosts(20, seed=4).on(V)
    sampler.draw(0)
    again = sampler.draw(7)
    np.testing.assert_array_equal(again.gather(again.x), first)
    others = [drawn(V, hf.RandomGhosts(20, seed=s), r) for s, r in ((4, 8), (5, 7), (7, 4))]
    for other in others:
        assert np.abs(other - first).max(axis=1).min() > 1e-6, "not a point in common"


def test_fixed_ghosts_are_drawn_once(comm: MPI.Comm) -> None:
    V = p1(square(comm, 3))
    sampler = hf.RandomGhosts(20, seed=4, fixed=True).on(V)
    assert sampler.draw(9) is sampler.draw(2)
    # Whichever round asks first.
    points = sampler.draw(9)
    np.testing.assert_array_equal(points.gather(points.x), drawn(V, hf.RandomGhosts(20, seed=4), 0))


def test_random_ghosts_evaluate_a_field_where_they_are(comm: MPI.Comm) -> None:
    V = fem.functionspace(distorted_quadrilaterals(comm), ("Lagrange", 2))
    f = fem.Function(V)
    f.interpolate(lambda x: x[0] * x[1] - 3 * x[1] ** 2)
    points = hf.RandomGhosts(50).on(V).draw(1)
    x, y = points.x.numpy().T
    np.testing.assert_allclose(points.evaluate(f), x * y - 3 * y**2, atol=1e-12)


# -- dofs and quadrature ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [("Lagrange", 2), ("Lagrange", 1, (2,))])
def test_dof_ghosts_see_the_dofs_themselves(comm: MPI.Comm, element: tuple) -> None:
    V = fem.functionspace(square(comm, 3), element)
    points = hf.DofGhosts().on(V).draw(5)
    f = fem.Function(V)
    f.interpolate(lambda x: x[0] * x[1] if len(element) == 2 else np.stack([x[0], 2 * x[1]]))
    u = torch.from_numpy(f.x.array[: V.dofmap.index_map.size_local * V.dofmap.index_map_bs].copy())
    x, y = points.x.T
    expected = x * y if len(element) == 2 else torch.stack([x, 2 * y], dim=1)
    torch.testing.assert_close(points.evaluate(u, V), expected, rtol=0, atol=1e-13)
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0, rel=1e-13)
    assert comm.allreduce(len(points.x)) == V.dofmap.index_map.size_global
    with pytest.raises(ValueError, match="own space"):
        points.evaluate(u, fem.functionspace(V.mesh, element))


@pytest.mark.parametrize("cell", ["interval", "triangle", "tetrahedron"])
def test_quadrature_ghosts_integrate_polynomials_exactly(comm: MPI.Comm, cell: str) -> None:
    """On the unit box the mean of x^a y^b is 1/((a+1)(b+1)): a rule of degree q has it for a + b ≤ q."""
    domain = MESHES[cell](comm)
    V, d = p1(domain), domain.geometry.dim
    for degree in (0, 1, 2, 5):
        points = hf.QuadratureGhosts(degree).on(V).draw()
        assert hf.Points(domain, points.gather(points.x), missing="mark").found.all()
        x, w = points.x.numpy(), points.weights.numpy()
        a = np.arange(degree + 1)
        b = degree - a if d > 1 else 0 * a
        means = sum_array(comm, w @ (x[:, :1] ** a * x[:, -1:] ** b))
        np.testing.assert_allclose(means, 1 / ((a + 1) * (b + 1)), rtol=1e-12)


@pytest.mark.parametrize("cell", ["quadrilateral", "hexahedron"])
def test_quadrature_ghosts_know_the_volumes_of_cells_that_are_not_affine(comm: MPI.Comm, cell: str) -> None:
    """The mean of x is exact where the Jacobian times x has the degree of the rule."""
    points = hf.QuadratureGhosts(4).on(p1(MESHES[cell](comm))).draw()
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0, rel=1e-13)
    mean = sum_array(comm, (points.weights @ points.x).numpy())
    np.testing.assert_allclose(mean, 0.5, rtol=1e-12)


@pytest.mark.parametrize("cell", [mesh.CellType.triangle, mesh.CellType.quadrilateral])
def test_the_interaction_at_quadrature_ghosts_is_the_norm_itself(comm: MPI.Comm, cell: mesh.CellType) -> None:
    """u_phy = x + 2y and u_syn = 3 − x on (0, 2) × (0, 3/2): I = ‖2x + 2y − 3‖² / |Ω|."""
    domain = mesh.create_rectangle(comm, [np.zeros(2), np.array([2.0, 1.5])], [3, 2], cell)
    V = p1(domain)
    f = fem.Function(V)
    f.interpolate(lambda x: x[0] + 2 * x[1])
    points = hf.QuadratureGhosts().on(V).draw()
    local = points.weights @ (points.evaluate(f, V) - (3.0 - points.x[:, 0])).square()
    # With X = x − 1 and Y = y − 3/4 the difference is 2X + 2Y + ½, and means of X, Y and XY vanish.
    exact = 4 * (2.0**2 / 12) + 4 * (1.5**2 / 12) + 0.25
    assert comm.allreduce(float(local)) == pytest.approx(exact, rel=1e-13)
    by_form = fem.assemble_scalar(fem.form((f - 3.0 + ufl.SpatialCoordinate(domain)[0]) ** 2 * ufl.dx))
    assert comm.allreduce(by_form) / 3.0 == pytest.approx(exact, rel=1e-13)


def test_quadrature_points_do_not_depend_on_the_number_of_ranks() -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        points = hf.quadrature_points(coarse_quadrilaterals(comm), 3)
        return {"x": points.gather(points.x), "weights": points.gather(points.weights), "n": points.n}

    result = hf.rank_invariance(build, tolerance=1e-13)
    assert result.ok, result.differences


def test_bad_counts_are_refused() -> None:
    for n in (0, -3, 2.5):
        with pytest.raises(ValueError, match="number of ghost points"):
            hf.RandomGhosts(n)  # type: ignore[arg-type]
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match="seed"):
            hf.RandomGhosts(5, seed=seed)  # type: ignore[arg-type]
    for degree in (-1, 1.5):
        with pytest.raises(ValueError, match="degree"):
            hf.QuadratureGhosts(degree)  # type: ignore[arg-type]
