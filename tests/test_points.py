"""Points of a mesh: exact interpolation, one owner for each point, B and its transpose, and what is refused."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import torch
from cases import distorted_quadrilaterals, square
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.parallel import sum_array


def distorted_hexahedra(comm: MPI.Comm) -> mesh.Mesh:
    """The unit cube in hexahedra whose faces are not plane."""
    domain = mesh.create_unit_cube(comm, 2, 2, 2, mesh.CellType.hexahedron)
    x = domain.geometry.x
    bubble = np.prod(x * (1 - x), axis=1)
    x += bubble[:, None] * [6.0, -5.0, 4.0]
    # Each coordinate also slides within the boundary, by an amount that depends on another one.
    x += 0.3 * x * (1 - x) * np.roll(x, 1, axis=1)
    return domain


MESHES: dict[str, Callable[[MPI.Comm], mesh.Mesh]] = {
    "interval": lambda comm: mesh.create_unit_interval(comm, 7),
    "triangle": lambda comm: square(comm, 4),
    "quadrilateral": distorted_quadrilaterals,
    "tetrahedron": lambda comm: mesh.create_unit_cube(comm, 2, 2, 2),
    "hexahedron": distorted_hexahedra,
}
Get = Callable[[str], mesh.Mesh]
every_cell = pytest.mark.parametrize("cell", MESHES)


@pytest.fixture(scope="module")
def on_all() -> Iterator[Get]:
    """The mesh of a kind of cell on all ranks, made once for all tests."""
    made: dict[str, mesh.Mesh] = {}

    def get(cell: str) -> mesh.Mesh:
        if cell not in made:
            made[cell] = MESHES[cell](MPI.COMM_WORLD)
        return made[cell]

    yield get
    made.clear()


def scattered(domain: mesh.Mesh, n: int = 40) -> np.ndarray:
    """Points of the unit box: scattered ones, all vertices, edge midpoints of a grid, and repetitions; shuffled."""
    d = domain.geometry.dim
    rng = np.random.default_rng(3)
    imap = domain.geometry.index_map()
    local = domain.geometry.x[: imap.size_local, :d]
    vertices = np.concatenate(domain.comm.allgather(local))
    # A partition orders the vertices as it likes; the points must be the same in any order of the ranks.
    vertices = vertices[np.lexsort(np.round(vertices, 10).T)]
    grid = np.array(list(itertools.product(*[np.linspace(0, 1, 9)] * min(d, 2))))
    grid = np.hstack([grid, np.full((len(grid), d - grid.shape[1]), 0.25)])
    x = np.concatenate([rng.random((n, d)), vertices, grid])
    x = np.concatenate([x, x[::5]])
    return x[rng.permutation(len(x))]


def polynomial(d: int, degree: int, seed: int) -> Callable:
    """A full polynomial of total degree `degree` in d variables, of x (d or 3, n)."""
    exponents = [e for e in itertools.product(range(degree + 1), repeat=d) if sum(e) <= degree]
    a = np.random.default_rng((seed, degree)).standard_normal(len(exponents))
    return lambda x: sum(
        c * np.prod([x[i] ** k for i, k in enumerate(e)], axis=0) for c, e in zip(a, exponents, strict=True)
    )


def owned(f: fem.Function) -> torch.Tensor:
    """The owned dof values of a Function."""
    V = f.function_space
    return torch.from_numpy(f.x.array[: V.dofmap.index_map.size_local * V.dofmap.index_map_bs].copy())


def random_dofs(V: fem.FunctionSpace, seed: int) -> torch.Tensor:
    """Random owned dof values, different on every rank."""
    n = V.dofmap.index_map.size_local * V.dofmap.index_map_bs
    return torch.from_numpy(np.random.default_rng((seed, V.mesh.comm.rank)).standard_normal(n))


# -- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3])
@every_cell
def test_polynomials_of_the_degree_of_the_space_are_exact(comm: MPI.Comm, on_all: Get, cell: str, degree: int) -> None:
    domain = on_all(cell)
    d = domain.geometry.dim
    points = hf.Points(domain, scattered(domain))
    assert comm.allreduce(len(points)) == points.n
    p = [polynomial(d, degree, seed) for seed in range(2)]
    scalar = fem.Function(fem.functionspace(domain, ("Lagrange", degree)))
    scalar.interpolate(p[0])
    at = points.x.numpy().T
    np.testing.assert_allclose(points.evaluate(scalar).numpy(), p[0](at), atol=1e-11)

    vector = fem.Function(fem.functionspace(domain, ("Lagrange", degree, (2,))))
    vector.interpolate(lambda x: np.stack([q(x) for q in p]))
    values = points.evaluate(owned(vector), vector.function_space)
    assert values.shape == (len(points), 2)
    np.testing.assert_allclose(values.numpy(), np.stack([q(at) for q in p], axis=1), atol=1e-11)


def test_a_sub_space_of_a_mixed_space_is_evaluated_from_the_dofs_of_the_whole(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    taylor_hood = basix.ufl.mixed_element(
        [basix.ufl.element("Lagrange", "triangle", 2, shape=(2,)), basix.ufl.element("Lagrange", "triangle", 1)]
    )
    W = fem.functionspace(domain, taylor_hood)
    w = fem.Function(W)
    w.sub(0).interpolate(lambda x: np.stack([x[0] * x[1], 1.0 - x[1] ** 2]))
    w.sub(1).interpolate(lambda x: 3.0 * x[0] - 1.0)
    w.x.scatter_forward()
    points = hf.Points(domain, scattered(domain))
    x, y = points.x.numpy().T
    np.testing.assert_allclose(points.evaluate(owned(w), W.sub(0)), np.stack([x * y, 1 - y**2], axis=1), atol=1e-12)
    np.testing.assert_allclose(points.evaluate(owned(w), W.sub(1)), 3 * x - 1, atol=1e-12)


def test_points_in_the_bulge_of_a_curved_cell_are_found(comm: MPI.Comm) -> None:
    """A side through (0, 0), (½, −0.1), (1, −0.08) is lowest between its nodes, outside the box around them."""
    nodes = np.array([[0.0, 0.0], [1.0, -0.08], [0.0, 1.0], [0.5, 0.46], [0.0, 0.5], [0.5, -0.1]])
    cells = np.arange(6, dtype=np.int64)[None, :]
    here = slice(None) if comm.rank == 0 else slice(0, 0)
    element = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
    domain = mesh.create_mesh(comm, cells=cells[here], x=nodes[here], e=element)
    t = np.linspace(0.0, 1.0, 13)
    side = np.stack([t, -0.32 * t + 0.24 * t**2], axis=1)
    assert side[:, 1].min() < nodes[:, 1].min()
    points = hf.Points(domain, side)
    # Isoparametric: the coordinate itself lies in the space.
    f = fem.Function(fem.functionspace(domain, ("Lagrange", 2)))
    f.interpolate(lambda x: x[1])
    np.testing.assert_allclose(points.gather(points.evaluate(f)), side[:, 1], atol=1e-10)
    with pytest.raises(hf.OutsideError):
        hf.Points(domain, side - [0.0, 1e-6])


@every_cell
def test_a_mesh_far_from_the_origin_loses_no_points(comm: MPI.Comm, cell: str) -> None:
    """Coordinates of a map projection in metres, cells of a few metres."""
    domain = MESHES[cell](comm)
    x = scattered(domain)
    d = x.shape[1]
    offset = np.array([5.6e6, 5.0e5, 0.0])[:d]
    domain.geometry.x[:, :d] = 10.0 * domain.geometry.x[:, :d] + offset
    points = hf.Points(domain, 10.0 * x + offset)
    f = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    f.interpolate(lambda y: (y[0] - offset[0]) / 10.0)
    np.testing.assert_allclose(points.gather(points.evaluate(f)), x[:, 0], atol=1e-8)


# -- owners ----------------------------------------------------------------------------------------------------


@every_cell
def test_every_point_has_one_owner(comm: MPI.Comm, on_all: Get, cell: str) -> None:
    domain = on_all(cell)
    x = scattered(domain)
    points = hf.Points(domain, x)
    owners = np.bincount(np.concatenate(comm.allgather(points.index)), minlength=len(x))
    np.testing.assert_array_equal(owners, 1)
    assert np.all(np.diff(points.index) > 0)
    np.testing.assert_array_equal(points.x.numpy(), x[points.index])
    assert points.x.dtype == torch.float64
    assert points.n == len(x)
    assert points.found.all()
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0, rel=1e-13)


def cell_numbers(domain: mesh.Mesh) -> fem.Function:
    """The DG0 field whose value in a cell is the number of the cell in the file or generator."""
    V = fem.functionspace(domain, ("DG", 0))
    f = fem.Function(V)
    n = domain.topology.index_map(domain.topology.dim).size_local
    f.x.array[V.dofmap.list[:n, 0]] = domain.topology.original_cell_index[:n]
    f.x.scatter_forward()
    return f


def test_a_point_of_several_cells_belongs_to_the_lowest_numbered_one(comm: MPI.Comm) -> None:
    """Against all cells of a mesh that is not distributed, by barycentric coordinates."""
    domain, alone = square(comm, 4), square(MPI.COMM_SELF, 4)
    x = scattered(domain)
    vertices = alone.geometry.x[alone.geometry.dofmap, :2]
    homogeneous = np.concatenate([vertices, np.ones((*vertices.shape[:2], 1))], axis=2)
    bary = np.einsum("cij,nj->cni", np.linalg.inv(homogeneous.transpose(0, 2, 1)), np.c_[x, np.ones(len(x))])
    contains = (bary > -1e-9).all(axis=2)
    assert (contains.sum(axis=0) > 1).sum() > 20, "the test needs points that cells share"
    numbers = np.asarray(alone.topology.original_cell_index)[:, None]
    expected = np.where(contains, numbers, len(numbers)).min(axis=0)
    points = hf.Points(domain, x)
    np.testing.assert_array_equal(points.gather(points.evaluate(cell_numbers(domain))), expected)


def test_no_points_are_points_too(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    points = hf.Points(domain, np.empty((0, 2)))
    V = fem.functionspace(domain, ("Lagrange", 1, (2,)))
    u = random_dofs(V, 0).requires_grad_()
    values = points.evaluate(u, V)
    assert (points.n, len(points), tuple(values.shape)) == (0, 0, (0, 2))
    values.sum().backward()
    assert torch.count_nonzero(u.grad) == 0
    assert points.gather(values).shape == (0, 2)


def test_more_ranks_than_cells(comm: MPI.Comm) -> None:
    """With three ranks or more one of them owns no cell of this mesh."""
    domain = square(comm, 1)
    points = hf.Points(domain, [[0.2, 0.1], [0.9, 0.9], [0.5, 0.5]])
    f = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    f.interpolate(lambda x: x[0] - 2 * x[1])
    np.testing.assert_allclose(points.gather(points.evaluate(f)), [0.0, -0.9, -0.5], atol=1e-14)


def test_gather_restores_the_given_order(on_all: Get) -> None:
    domain = on_all("quadrilateral")
    x = scattered(domain)
    points = hf.Points(domain, x)
    np.testing.assert_array_equal(points.gather(points.x), x)
    np.testing.assert_array_equal(points.gather(points.x.numpy()[:, 1]), x[:, 1])


# -- the operator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "element"),
    [
        ("triangle", ("Lagrange", 1)),
        ("triangle", ("Lagrange", 2, (2,))),
        ("quadrilateral", ("Lagrange", 2)),
        ("tetrahedron", ("Lagrange", 1, (3,))),
    ],
)
class TestObservation:
    """B from dofs to values at points, and everything that differentiates through it."""

    def test_the_transpose_is_the_transpose(self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple) -> None:
        V, points = self.setting(on_all, cell, element)
        B = points.observation(V)
        u = random_dofs(V, 1).numpy()
        value = B.apply(u)
        w = np.random.default_rng((2, comm.rank)).standard_normal(value.shape)
        forward, backward = sum_array(comm, np.array([np.sum(value * w), u @ B.transpose(w)]))
        assert abs(forward) > 1e-2
        assert backward == pytest.approx(forward, rel=1e-12)

    def test_the_gradient_is_the_transpose(self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple) -> None:
        V, points = self.setting(on_all, cell, element)
        u, du = random_dofs(V, 1).requires_grad_(), random_dofs(V, 2)
        value = points.evaluate(u, V)
        w = torch.from_numpy(np.random.default_rng((3, comm.rank)).standard_normal(tuple(value.shape)))
        (w * value).sum().backward()
        # B is linear, so the directional derivative is the difference itself.
        difference = (w * (points.evaluate(u.detach() + du, V) - value.detach())).sum()
        by_gradient, exact = sum_array(comm, np.array([float(u.grad @ du), float(difference)]))
        assert by_gradient == pytest.approx(exact, rel=1e-11)

    def test_the_tangent_in_forward_mode_is_b_itself(
        self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple
    ) -> None:
        V, points = self.setting(on_all, cell, element)
        u, du = random_dofs(V, 1), random_dofs(V, 2)
        with torch.autograd.forward_ad.dual_level():
            value = points.evaluate(torch.autograd.forward_ad.make_dual(u, du), V)
            tangent = torch.autograd.forward_ad.unpack_dual(value).tangent
        torch.testing.assert_close(tangent, points.evaluate(du, V), rtol=0, atol=1e-14)
        _, tangent = torch.func.jvp(lambda v: points.evaluate(v, V), (u,), (du,))
        torch.testing.assert_close(tangent, points.evaluate(du, V), rtol=0, atol=1e-14)

    def test_the_second_derivative_of_a_square_is_twice_b_transposed_b(
        self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple
    ) -> None:
        V, points = self.setting(on_all, cell, element)
        B = points.observation(V)
        u, du = random_dofs(V, 1).requires_grad_(), random_dofs(V, 2)
        (g,) = torch.autograd.grad(points.evaluate(u, V).square().sum(), u, create_graph=True)
        (product,) = torch.autograd.grad(g @ du, u)
        np.testing.assert_allclose(product, 2 * B.transpose(B.apply(du.numpy())), rtol=0, atol=1e-12)

    def test_the_matrix_is_the_operator(self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple) -> None:
        V, points = self.setting(on_all, cell, element)
        B = points.observation(V)
        f = fem.Function(V)
        u = random_dofs(V, 1)
        f.x.array[: len(u)] = u
        f.x.scatter_forward()
        assert B.matrix.shape == (points.evaluate(f).numel(), len(f.x.array))
        np.testing.assert_allclose(B.matrix @ f.x.array, B.apply(u.numpy()).ravel(), rtol=0, atol=1e-13)
        # The basis functions sum to one.
        ones = np.asarray(B.matrix.sum(axis=1)).ravel()
        np.testing.assert_allclose(ones, 1.0, atol=1e-12)

    def test_the_operator_is_made_once_for_each_space(
        self, comm: MPI.Comm, on_all: Get, cell: str, element: tuple
    ) -> None:
        V, points = self.setting(on_all, cell, element)
        assert points.observation(V) is points.observation(V)

    @staticmethod
    def setting(on_all: Get, cell: str, element: tuple) -> tuple[fem.FunctionSpace, hf.Points]:
        """A space and points, some of them shared by cells of several ranks."""
        domain = on_all(cell)
        return fem.functionspace(domain, element), hf.Points(domain, scattered(domain, 25))


@every_cell
def test_the_number_of_ranks_does_not_matter(cell: str) -> None:
    x = scattered(MESHES[cell](MPI.COMM_SELF))

    def build(comm: MPI.Comm) -> dict[str, np.ndarray]:
        domain = MESHES[cell](comm)
        V = fem.functionspace(domain, ("Lagrange", 2))
        f = fem.Function(V)
        f.interpolate(lambda y: np.sin(5 * y[0]) + np.cos(3 * y[1]))
        points = hf.Points(domain, x)
        u = owned(f).requires_grad_()
        values = points.evaluate(u, V)
        (points.weights @ values.square()).backward()
        g = u.grad.numpy()
        moments = hf.dof_coordinates(V).numpy().T @ g
        return {
            "values": points.gather(values),
            # The two sides of a jump: which cell a point belongs to must not depend on the partition.
            "cells": points.gather(points.evaluate(cell_numbers(domain))),
            "gradient": sum_array(comm, np.array([g @ g, g.sum(), *moments])),
        }

    result = hf.rank_invariance(build, tolerance=1e-12)
    assert result.ok, result.differences


# -- what is refused -------------------------------------------------------------------------------------------


def test_points_outside_are_named(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    x = np.array([[0.5, 0.5], [1.25, 0.5], [0.1, 0.9], [0.3, -2.0], [1.0, 1.0]])
    with pytest.raises(hf.OutsideError, match=r"2 of 5 .*1: \(1\.25, 0\.5\), 3: \(0\.3, -2\)") as caught:
        hf.Points(domain, x)
    assert caught.value.indices == [1, 3]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.indices) == (str(caught.value), [1, 3])
    with pytest.raises(hf.OutsideError, match="…"):
        hf.Points(domain, np.full((7, 2), 3.0))


def test_points_outside_are_marked_where_asked(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    x = np.array([[0.5, 0.5], [1.25, 0.5], [0.1, 0.9], [0.3, -2.0], [1.0, 1.0]])
    points = hf.Points(domain, x, missing="mark")
    np.testing.assert_array_equal(points.found, [True, False, True, False, True])
    assert points.n == 5
    assert sorted(np.concatenate(comm.allgather(points.index))) == [0, 2, 4]
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0, rel=1e-13)
    np.testing.assert_array_equal(points.gather(points.x), np.where(points.found[:, None], x, np.nan))
    nowhere = hf.Points(domain, x + 10.0, missing="mark")
    assert not nowhere.found.any()
    assert len(nowhere) == 0


@pytest.mark.parametrize("distance", [1e-12, 1e-4])
def test_only_rounding_lies_in_the_mesh(comm: MPI.Comm, distance: float) -> None:
    points = hf.Points(square(comm, 3), [[1.0 + distance, 0.4], [0.4, -distance]], missing="mark")
    assert points.found.tolist() == [distance < 1e-9] * 2


@pytest.mark.parametrize("x", [np.zeros((4, 3)), np.zeros(2), np.zeros((2, 2, 2)), [], [["a", "b"]]])
def test_a_wrong_shape_is_refused(comm: MPI.Comm, x: np.ndarray) -> None:
    with pytest.raises(ValueError):
        hf.Points(square(comm, 2), x)


def test_what_one_rank_gets_wrong_is_refused_on_all(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    good = np.array([[0.2, 0.3], [0.7, 0.6]])
    last = comm.rank == comm.size - 1
    with pytest.raises(ValueError, match=r"point 1 has coordinates \(nan, 0\.6\)"):
        hf.Points(domain, np.array([[0.2, 0.3], [np.nan, 0.6]]) if last else good)
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        hf.Points(domain, good[:, :1] if last else good)
    with pytest.raises(ValueError, match="missing"):
        hf.Points(domain, good, missing="forget" if last else "mark")  # type: ignore[arg-type]
    points = hf.Points(domain, good)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u = random_dofs(V, 0)
    with pytest.raises(ValueError, match="dof values of shape"):
        points.evaluate(torch.cat([u, u]) if last else u, V)
    with pytest.raises(TypeError, match="float32"):
        points.evaluate(u.float() if last else u, V)
    with pytest.raises(ValueError, match="values"):
        points.gather(np.zeros(len(points) + 1 if last else len(points)))


def test_points_that_differ_between_ranks_are_refused(comm: MPI.Comm) -> None:
    domain, x = square(comm, 2), np.array([[0.2, 0.3], [0.7, 0.6]])
    if comm.size == 1:
        assert len(hf.Points(domain, x + 0.1 * comm.rank)) == 2
        return
    with pytest.raises(ValueError, match="differ between ranks"):
        hf.Points(domain, x + 1e-9 * comm.rank)
    with pytest.raises(ValueError, match="differ between ranks"):
        hf.Points(domain, x[: 2 - (comm.rank > 0)])


def test_a_field_that_has_no_values_at_points_of_this_mesh_is_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    points = hf.Points(domain, [[0.2, 0.3]])
    with pytest.raises(ValueError, match="needs the space"):
        points.evaluate(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="Lagrange"):
        points.evaluate(fem.Function(fem.functionspace(domain, ("RT", 1))))
    with pytest.raises(ValueError, match="another mesh"):
        points.evaluate(fem.Function(fem.functionspace(square(comm, 2), ("Lagrange", 1))))


def test_a_mesh_that_does_not_fill_its_space_is_refused(comm: MPI.Comm) -> None:
    nodes, cells = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]]), np.array([[0, 1, 2], [1, 2, 3]])
    here = slice(None) if comm.rank == 0 else slice(0, 0)
    surface = mesh.create_mesh(
        comm, cells=cells[here], x=nodes[here], e=basix.ufl.element("Lagrange", "triangle", 1, shape=(3,))
    )
    with pytest.raises(ValueError, match="fills its space"):
        hf.Points(surface, [[0.1, 0.1, 0.0]])
