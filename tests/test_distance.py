"""The distance to a boundary: zero on it, of slope one, the same however the boundary is cut and distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from boxes import Cell, box, side
from dolfinx import fem, mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.models import distance as module
from hyco_fem.parallel import sum_array

PLATE = "meshes/plate_with_hole.msh"
CELLS = [Cell.interval, Cell.triangle, Cell.quadrilateral, Cell.tetrahedron, Cell.hexahedron]
DIMENSION = dict(zip(CELLS, (1, 2, 2, 3, 3), strict=True))

rng = np.random.default_rng(1)
INSIDE = {d: torch.from_numpy(rng.uniform(0.02, 0.98, (40, d))) for d in (1, 2, 3)}


def values_and_gradients(ell: Callable[[Tensor], Tensor], x: Any) -> tuple[np.ndarray, np.ndarray]:
    x = torch.as_tensor(x).clone().requires_grad_()
    value = ell(x)
    return value.detach().numpy(), torch.autograd.grad(value.sum(), x)[0].numpy()


def boundary_points(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the faces of the unit box, away from its edges, with their inner normals."""
    points, normals = [], []
    for axis in range(d):
        for end in (0.0, 1.0):
            x = np.random.default_rng(axis).uniform(0.2, 0.8, (7, d))
            x[:, axis] = end
            normal = np.zeros((7, d))
            normal[:, axis] = 1.0 - 2.0 * end
            points.append(x)
            normals.append(normal)
    return np.concatenate(points), np.concatenate(normals)


def ends(domain: mesh.Mesh, facets: np.ndarray) -> np.ndarray:
    """Vertices of facets, (n, d, d); DOLFINx aborts the process for none."""
    d = domain.topology.dim
    if len(facets) == 0:
        return np.empty((0, d, d))
    return domain.geometry.x[mesh.entities_to_geometry(domain, d - 1, facets), :d]


# -- the unit box ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_on_the_boundary_it_is_zero_with_the_inner_normal_as_gradient(comm: MPI.Comm, cell: Cell) -> None:
    d = DIMENSION[cell]
    ell = hf.mesh_distance(box(comm, cell, 3))
    x, normals = boundary_points(d)
    value, gradient = values_and_gradients(ell, x)
    assert np.abs(value).max() < 1e-12
    np.testing.assert_allclose(gradient, normals, atol=1e-10)
    # Also where rounding has put the points beside it; and it grows with slope one from there.
    for shift in (-1e-14, 1e-14):
        np.testing.assert_allclose(values_and_gradients(ell, x + shift * normals)[1], normals, atol=1e-8)
    step = 1e-4
    np.testing.assert_allclose(ell(torch.from_numpy(x + step * normals)) / step, 1.0, rtol=1e-3)
    assert float(ell(torch.from_numpy(np.eye(d)[:1])).abs().max()) < 1e-12, "a vertex is on the boundary too"


@pytest.mark.parametrize("cell", CELLS)
def test_inside_it_is_positive_and_below_the_distance_and_the_cap(comm: MPI.Comm, cell: Cell) -> None:
    """A plane sees its points under half of all angles: in a convex domain the other faces add to 1/ℓ."""
    d = DIMENSION[cell]
    x = INSIDE[d]
    nearest = torch.minimum(x, 1.0 - x).amin(dim=1)
    for cap in (math.inf, 0.1):
        ell = hf.mesh_distance(box(comm, cell, 2), cap=cap)(x)
        assert float(ell.min()) > 0.0
        assert (ell <= nearest).all()
        assert float(ell.max()) < cap


def test_in_an_interval_it_is_a_parabola(comm: MPI.Comm) -> None:
    x = INSIDE[1][:, 0]
    domain = box(comm, Cell.interval, 4)
    np.testing.assert_allclose(hf.mesh_distance(domain, cap=math.inf)(x[:, None]), x * (1 - x), rtol=1e-14)
    left = hf.mesh_distance(domain, side(domain, 0, 0.0), cap=0.5)
    np.testing.assert_allclose(left(x[:, None]), x / (1 + x / 0.5), rtol=1e-14)


@pytest.mark.parametrize("cell", [Cell.triangle, Cell.tetrahedron, Cell.hexahedron])
def test_it_is_the_integral_over_the_boundary(comm: MPI.Comm, cell: Cell) -> None:
    """1/ℓ = (1/c_d) ∫_Γ dS(y)/|x − y|^d on one face of the box, by a Gauss rule."""
    d = DIMENSION[cell]
    domain = box(comm, cell, 2)
    ell = hf.mesh_distance(domain, side(domain, 1, 0.0), cap=math.inf)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    grid = np.stack(np.meshgrid(*[(nodes + 1) / 2] * (d - 1), indexing="ij"), axis=-1).reshape(-1, d - 1)
    y = np.insert(grid, 1, 0.0, axis=1)
    w = np.prod(np.stack(np.meshgrid(*[weights / 2] * (d - 1), indexing="ij"), axis=-1).reshape(-1, d - 1), axis=1)
    x = INSIDE[d].numpy()
    x = x[x[:, 1] > 0.2]
    integral = (w / np.linalg.norm(x[:, None] - y, axis=2) ** d).sum(axis=1)
    np.testing.assert_allclose(ell(torch.from_numpy(x)), {2: np.pi, 3: 2 * np.pi}[d] / integral, rtol=1e-10)


@pytest.mark.parametrize("cells", [(Cell.triangle, Cell.quadrilateral), (Cell.tetrahedron, Cell.hexahedron)])
def test_it_does_not_depend_on_how_the_boundary_is_cut(comm: MPI.Comm, cells: tuple[Cell, Cell]) -> None:
    x = INSIDE[DIMENSION[cells[0]]]
    reference = hf.mesh_distance(box(comm, cells[0], 2))(x)
    for cell, n in ((cells[0], 5), (cells[1], 3)):
        np.testing.assert_allclose(hf.mesh_distance(box(comm, cell, n))(x), reference, rtol=1e-12)
    if x.shape[1] == 2:
        assert len(hf.mesh_distance(box(comm, cells[0], 7)).facets) == 4, "the sides of a square are four segments"


@pytest.mark.serial
@pytest.mark.parametrize("cell", [Cell.interval, Cell.triangle, Cell.tetrahedron])
def test_it_is_smooth_where_a_facet_is_seen_edge_on(cell: Cell) -> None:
    """On the line or plane of a facet, outside it, no formula divides by zero; nor does one where the series begins."""
    d = DIMENSION[cell]
    domain = box(MPI.COMM_SELF, cell, 2)
    half = mesh.locate_entities_boundary(domain, d - 1, lambda x: (x[0] < 1e-9) & (x[d - 1] < 0.5 + 1e-9))
    ell = hf.mesh_distance(domain, half)
    x = torch.full((3, d), 0.9, dtype=torch.float64)
    if d > 1:
        x[:, 0] = torch.tensor([0.0, 1e-9, 0.04])
    x.requires_grad_()
    assert torch.autograd.gradcheck(ell, x)
    assert torch.autograd.gradgradcheck(ell, x)


# -- a plate with a hole ---------------------------------------------------------------------------------------


def test_on_a_plate_with_a_hole(comm: MPI.Comm) -> None:
    plate = hf.read_mesh(PLATE, comm)
    facets = np.concatenate([plate.facets("left"), plate.facets("hole")])
    ell = hf.mesh_distance(plate.mesh, facets)
    assert len(ell.facets) < 80, "the left side is one segment"
    x = plate.mesh.geometry.x[:, :2].copy()
    p, q = ends(plate.mesh, facets).transpose(1, 0, 2)
    for t in (0.0, 0.3, 0.5, 1.0):
        on = torch.from_numpy((1 - t) * p + t * q)
        assert float(ell(on).abs().amax() if len(on) else 0.0) < 1e-12
    value, gradient = values_and_gradients(ell, x)
    radius = np.linalg.norm(x - [0.7, 0.5], axis=1)
    nearest = np.minimum(x[:, 0], radius - 0.2)
    inside = nearest > 1e-6
    assert (value[inside] > 0).all()
    assert value.max(initial=0.0) < math.sqrt(5.0)
    assert np.isfinite(gradient).all()
    # Near the left side, away from its ends: one line, seen whole.
    near = inside & (x[:, 0] < 0.03) & (np.abs(x[:, 1] - 0.5) < 0.4)
    np.testing.assert_allclose(np.linalg.norm(gradient[near], axis=1), 1.0, atol=0.1)
    np.testing.assert_allclose(value[near], nearest[near], rtol=0.1)
    assert sum_array(comm, np.array([near.sum()]))[0] > 10
    # Near the circle, which is not a line: slope one on it.
    close = inside & (radius < 0.225)
    np.testing.assert_allclose(np.linalg.norm(gradient[close], axis=1), 1.0, atol=0.25)
    assert sum_array(comm, np.array([close.sum()]))[0] > 10


def test_a_network_takes_the_boundary_values_exactly(comm: MPI.Comm) -> None:
    plate = hf.read_mesh(PLATE, comm)
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    facets = plate.facets("hole")
    u = hf.HardBoundary(hf.MLP(2, width=4), hf.mesh_distance(V, facets), lambda x: x[:, 0])
    x = torch.from_numpy(ends(plate.mesh, facets).reshape(-1, 2))
    np.testing.assert_allclose(u(x).detach(), x[:, 0], rtol=0, atol=1e-15)
    assert all(p.requires_grad for p in u.parameters())
    assert len(list(u.parameters())) == len(list(u.network.parameters())), "the distance has nothing to learn"


def test_the_number_of_ranks_does_not_matter(comm: MPI.Comm) -> None:
    x = torch.from_numpy(np.random.default_rng(3).uniform([0, 0], [2, 1], (50, 2)))

    def build(part: MPI.Comm) -> dict:
        plate = hf.read_mesh(PLATE, part)
        ell = hf.mesh_distance(plate.mesh, plate.facets("hole"))
        cube = mesh.create_unit_cube(part, 3, 3, 3)
        solid = hf.mesh_distance(cube, side(cube, 2, 1.0))
        value, gradient = values_and_gradients(ell, x)
        return {
            "facets": ell.facets.numpy(),
            "value": value,
            "gradient": gradient,
            "all": hf.mesh_distance(plate.mesh)(x).numpy(),
            "3D": solid(INSIDE[3]).numpy(),
        }

    result = hf.rank_invariance(build, tolerance=1e-13)
    assert result.ok, result.differences


@pytest.mark.serial
def test_many_points_are_worked_on_in_chunks_with_the_same_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    ell = hf.mesh_distance(box(MPI.COMM_SELF, Cell.triangle, 2))
    x = INSIDE[2].clone().requires_grad_()

    def all_at_once() -> tuple[Tensor, Tensor, Tensor]:
        value = ell(x)
        gradient = torch.autograd.grad(value.sum(), x, create_graph=True)[0]
        return value, gradient, torch.autograd.grad(gradient.square().sum(), x)[0]

    expected = all_at_once()
    monkeypatch.setattr(module, "_PAIRS", 28)  # seven points each
    for found, given in zip(all_at_once(), expected, strict=True):
        np.testing.assert_array_equal(found.detach(), given.detach())
    np.testing.assert_array_equal(ell(x.detach()), expected[0].detach())
    by_transform = torch.func.grad(lambda x: ell(x).sum())(x.detach())
    np.testing.assert_array_equal(by_transform, expected[1].detach())
    assert ell(x[:0]).shape == (0,)
    ell(x[:0]).sum().backward()


@pytest.mark.serial
@pytest.mark.filterwarnings("error")
def test_derivatives_by_many_weights_are_batched_through_it() -> None:
    """vmap over points and jacrev over weights or coordinates, as Gauss–Newton answers and PINNs take them."""
    ell = hf.mesh_distance(box(MPI.COMM_SELF, Cell.triangle, 2))
    network = hf.HardBoundary(hf.OnDevice(hf.NeuralODE(2, width=3, layers=2, augment=1), "cpu"), ell)
    x = INSIDE[2][:5]
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def at(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        return torch.func.functional_call(network, weights, (point[None],))[0]

    by_weights, by_x = torch.func.vmap(torch.func.jacrev(at, argnums=(0, 1)), in_dims=(None, 0))(weights, x)
    parameters, z = list(network.parameters()), x.clone().requires_grad_()
    for k in range(5):
        *expected, expected_x = torch.autograd.grad(network(z)[k], [*parameters, z])
        np.testing.assert_allclose(by_x[k], expected_x[k], rtol=1e-11, atol=1e-13)
        for found, gradient in zip(by_weights.values(), expected, strict=True):
            np.testing.assert_allclose(found[k], gradient, rtol=1e-11, atol=1e-13)


# -- bad arguments ---------------------------------------------------------------------------------------------


def no_facets_anywhere(comm: MPI.Comm) -> Any:
    return hf.mesh_distance(box(comm, Cell.triangle, 2), np.empty(0, dtype=np.int32))


def a_wrong_index_on_one_rank(comm: MPI.Comm) -> Any:
    domain = box(comm, Cell.triangle, 2)
    return hf.mesh_distance(domain, np.array([10**6] if comm.rank == comm.size - 1 else [], dtype=np.int32))


def coordinates(comm: MPI.Comm) -> Any:
    return hf.mesh_distance(box(comm, Cell.triangle, 2), np.array([0.5]))


def a_surface(comm: MPI.Comm) -> Any:
    import basix.ufl
    import ufl

    element = ufl.Mesh(basix.ufl.element("Lagrange", "triangle", 1, shape=(3,)))
    x = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    cells = np.array([[0, 1, 2], [1, 2, 3]], dtype=np.int64)
    mine = slice(None) if comm.rank == 0 else slice(0)
    return hf.mesh_distance(mesh.create_mesh(comm, cells=cells[mine], x=x[mine], e=element))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (no_facets_anywhere, "no facets to measure the distance to, on any rank; check the marker"),
        (a_wrong_index_on_one_rank, "facets must be local indices of facets, whole numbers from 0 to"),
        (coordinates, "facets must be local indices of facets"),
        (a_surface, "has degree 1 and dimension 2 in 3D"),
        (lambda comm: hf.mesh_distance(box(comm, Cell.triangle, 2), cap=0.0), "cap of a distance must be positive"),
        (lambda comm: hf.mesh_distance(box(comm, Cell.triangle, 2))(INSIDE[3]), "has dimension 2, the points have 3"),
    ],
)
def test_what_has_no_distance_is_refused_by_name(comm: MPI.Comm, build: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(comm)


def test_warped_facets_are_refused(comm: MPI.Comm) -> None:
    domain = box(comm, Cell.hexahedron, 2)
    domain.geometry.x[:, 2] += 0.1 * domain.geometry.x[:, 0] * domain.geometry.x[:, 1]
    with pytest.raises(ValueError, match="plane facets; this mesh has warped ones"):
        hf.mesh_distance(domain)
