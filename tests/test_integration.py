"""Quadrature on cells and boundary: exact for polynomials, whatever holds them, on whatever mesh they live."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import distorted_quadrilaterals, square
from dolfinx import fem, mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.bridge.integration import BoundaryQuadrature, CellQuadrature


def polynomial(x: Tensor) -> Tensor:
    """x² + x y."""
    return x[:, 0].square() + x[:, 0] * x[:, 1]


def slopes(x: Tensor) -> Tensor:
    """∇(x² + x y)."""
    return torch.stack([2 * x[:, 0] + x[:, 1], x[:, 0]], dim=1)


def quadratic(domain: mesh.Mesh) -> fem.Function:
    """x² + x y in P2."""
    u = fem.Function(fem.functionspace(domain, ("Lagrange", 2)))
    u.interpolate(lambda x: x[0] ** 2 + x[0] * x[1])
    return u


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_values_and_gradients_do_not_depend_on_what_holds_the_field(comm: MPI.Comm) -> None:
    """A Function, a UFL expression, a formula, and a Function of a mesh that does not match."""
    domain = square(comm, 5)
    rule, boundary = CellQuadrature(domain, 5), BoundaryQuadrature(domain, 5)
    x = ufl.SpatialCoordinate(domain)
    other = quadratic(mesh.create_unit_square(comm, 7, 9))
    for field in (quadratic(domain), x[0] ** 2 + x[0] * x[1], polynomial, other):
        near(rule.values(field), polynomial(rule.x))
        near(rule.gradients(field), slopes(rule.x))
        if field is not other:
            near(boundary.values(field), polynomial(boundary.x))
            near(boundary.gradients(field), slopes(boundary.x))
    with pytest.raises(ValueError, match="on the mesh itself"):
        boundary.values(other)


def test_vector_fields_have_a_row_for_each_point(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    rule = CellQuadrature(domain, 3)
    expected = torch.stack([rule.x[:, 0], 3 * rule.x[:, 1]], dim=1)
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64).expand(len(rule), 2, 2)
    other = fem.Function(fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,))))
    other.interpolate(lambda x: np.stack([x[0], 3 * x[1]]))
    x = ufl.SpatialCoordinate(domain)
    for field in (other, ufl.as_vector((x[0], 3 * x[1])), lambda x: x * torch.tensor([1.0, 3.0])):
        near(rule.values(field), expected)
        near(rule.gradients(field), jacobian)


def test_numbers_and_constants_are_fields_too(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    rule = CellQuadrature(domain, 2)
    for field in (3.0, 3, fem.Constant(domain, 3.0), lambda x: torch.full((len(x), 1), 3.0, dtype=torch.float64)):
        near(rule.values(field), torch.full((len(rule),), 3.0, dtype=torch.float64))
        near(rule.gradients(field), torch.zeros(len(rule), 2, dtype=torch.float64))
    near(rule.values(ufl.as_vector((1.0, 2.0))), torch.tensor([1.0, 2.0], dtype=torch.float64).expand(len(rule), 2))


@pytest.mark.parametrize(
    "build",
    [
        square,
        distorted_quadrilaterals,
        lambda comm: mesh.create_unit_interval(comm, 5),
        lambda comm: mesh.create_unit_cube(comm, 2, 2, 2),
    ],
)
def test_the_divergence_theorem(comm: MPI.Comm, build: Callable) -> None:
    """∫ ∇·(x e₀) = ∫ x n₀ over the boundary, and ∫_Ω 1 = 1."""
    domain = build(comm)
    rule, boundary = CellQuadrature(domain, 4), BoundaryQuadrature(domain, 4)
    assert rule.integral(rule.values(1.0)) == pytest.approx(1.0, rel=1e-12)
    flux = boundary.integral(boundary.x[:, 0] * boundary.normals[:, 0])
    assert flux == pytest.approx(1.0, rel=1e-12)
    total = comm.allreduce(float(rule.by_cell(rule.values(2.0)).sum()))
    assert total == pytest.approx(2.0, rel=1e-12)


def test_facets_may_be_chosen_by_index_or_place(comm: MPI.Comm) -> None:
    """The side x = 0 has length one and the normal (−1, 0)."""
    domain = square(comm, 4)

    def left(x: np.ndarray) -> np.ndarray:
        return np.isclose(x[0], 0.0)

    for facets in (left, mesh.locate_entities_boundary(domain, 1, left)):
        side = BoundaryQuadrature(domain, 2, facets)
        assert side.integral(side.values(1.0)) == pytest.approx(1.0)
        assert side.integral(side.normals[:, 0]) == pytest.approx(-1.0)
        assert len(side.facets) == len(side.cells)


def test_a_rank_without_cells_takes_part(comm: MPI.Comm) -> None:
    """Two triangles on three ranks."""
    domain = square(comm, 1)
    boundary = BoundaryQuadrature(domain, 2)
    assert boundary.integral(boundary.values(ufl.SpatialCoordinate(domain)[0])) == pytest.approx(2.0)
    assert boundary.integral(boundary.values(hf.MLP(2)).detach() * 0 + 1) == pytest.approx(4.0)


def test_a_network_is_differentiable_in_its_weights_and_evaluated_in_pieces_without(comm: MPI.Comm) -> None:
    domain = square(comm, 60)
    rule = CellQuadrature(domain, 5)
    assert len(rule) > 1 << 14 or comm.size > 2
    net = hf.MLP(2, width=4, depth=1)
    kept = rule.gradients(net)
    assert kept.requires_grad
    with torch.no_grad():
        pieces = rule.gradients(net)
        values = rule.values(net)
    assert not pieces.requires_grad
    near(pieces, kept.detach())
    near(values, rule.values(net).detach())
    (rule.weights @ kept.square().sum(1)).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in list(net.parameters())[:2])


def test_the_space_of_values_at_the_points_fits_forms(comm: MPI.Comm) -> None:
    """∫ q v with q a Function of values at the points, in the order of the dofmap."""
    domain = square(comm, 3)
    rule = CellQuadrature(domain, 4)
    V = rule.space()
    q = fem.Function(V)
    q.x.array[V.dofmap.list[: rule.n_cells].ravel()] = rule.values(polynomial).numpy()
    q.x.scatter_forward()
    dx = ufl.Measure("dx", domain=domain, metadata={"quadrature_degree": 4})
    found = comm.allreduce(fem.assemble_scalar(fem.form(q * ufl.SpatialCoordinate(domain)[1] * dx)))
    assert found == pytest.approx(1 / 6 + 1 / 6, rel=1e-12)


def test_what_is_no_field_is_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    rule = CellQuadrature(domain, 2)
    with pytest.raises(TypeError, match="a field is a number"):
        rule.values("u")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float64"):
        rule.values(lambda x: x[:, 0].float())
    with pytest.raises(ValueError, match=r"must return \(n,\) or \(n, k\)"):
        rule.values(lambda x: x[:1, 0])
    with pytest.raises(ValueError, match=r"must return \(n,\) or \(n, k\)"):
        rule.gradients(lambda x: torch.ones((len(x), 2, 2), dtype=torch.float64))
    with pytest.raises(ValueError, match="whole number"):
        CellQuadrature(domain, -1)
    larger = CellQuadrature(mesh.create_rectangle(comm, [[0, 0], [2, 1]], [4, 4]), 2)
    with pytest.raises(ValueError, match="outside the mesh of the Function"):
        larger.values(quadratic(domain))
    with pytest.raises(ValueError, match="on another mesh"):
        larger.values(ufl.SpatialCoordinate(domain)[0])


def test_a_gradient_that_is_lost_is_not_taken_for_zero(comm: MPI.Comm) -> None:
    rule = CellQuadrature(square(comm, 3), 2)
    x = rule.x

    def detached(x: Tensor) -> Tensor:
        return polynomial(x).detach()

    for call in (lambda: rule.gradients(detached), lambda: _inferred(lambda: rule.gradients(polynomial))):
        with pytest.raises((ValueError, RuntimeError), match=r"graph|[Ii]nference"):
            call()
    near(rule.gradients(lambda x: torch.ones_like(x[:, 0])), torch.zeros_like(x))
    with pytest.raises(TypeError, match=r"call \.double\(\) on the network"):
        rule.values(torch.nn.Linear(2, 1))


def _inferred(call: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        return call()


def test_gradients_from_another_mesh_need_affine_cells(comm: MPI.Comm) -> None:
    rule = CellQuadrature(square(comm, 3), 2)
    u = fem.Function(fem.functionspace(distorted_quadrilaterals(comm), ("Lagrange", 1)))
    with pytest.raises(ValueError, match="affine simplices"):
        rule.gradients(u)
