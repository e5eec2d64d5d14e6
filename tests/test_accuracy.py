"""Errors against closed forms, their rates, and the size of a mesh."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, distorted_quadrilaterals, square
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.bridge.integration import CellQuadrature

PI = np.pi


def interpolated(domain: mesh.Mesh, degree: int, f: Callable, shape: tuple[int, ...] = ()) -> fem.Function:
    """The interpolant of f in a Lagrange space."""
    uh = fem.Function(fem.functionspace(domain, ("Lagrange", degree, shape) if shape else ("Lagrange", degree)))
    uh.interpolate(f)
    return uh


def wave(domain: mesh.Mesh) -> ufl.core.expr.Expr:
    """sin πx sin πy, which vanishes on the boundary of the unit square."""
    x = ufl.SpatialCoordinate(domain)
    return ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])


# -- norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [square, distorted_quadrilaterals])
def test_norms_of_polynomials_are_exact(comm: MPI.Comm, build: Callable) -> None:
    """x + 2y against y on the unit square: ‖x + y‖² = 7/6 and |∇(x + y)|² = 2."""
    domain = build(comm)
    uh = interpolated(domain, 1, lambda x: x[0] + 2 * x[1])
    errors = hf.error_norms(uh, ufl.SpatialCoordinate(domain)[1])
    np.testing.assert_allclose([errors.L2, errors.H1], [np.sqrt(7 / 6), np.sqrt(2.0)], rtol=1e-12)
    # A Function of another space of the mesh is a reference as good.
    same = hf.error_norms(uh, interpolated(domain, 2, lambda x: x[1]))
    np.testing.assert_allclose([same.L2, same.H1], [errors.L2, errors.H1], rtol=1e-12)
    nothing = hf.error_norms(uh, uh)
    assert nothing.L2 == nothing.H1 == 0.0


def test_norms_of_vector_fields_add_their_components(comm: MPI.Comm) -> None:
    """(x, 3y) against zero: ‖·‖² = 1/3 + 3, |∇·|² = 1 + 9."""
    domain = square(comm, 3)
    uh = interpolated(domain, 1, lambda x: np.stack([x[0], 3 * x[1]]), (2,))
    errors = hf.error_norms(uh, ufl.as_vector((0.0, 0.0)))
    np.testing.assert_allclose([errors.L2, errors.H1], [np.sqrt(10 / 3), np.sqrt(10.0)], rtol=1e-12)


def test_norms_of_what_is_no_polynomial(comm: MPI.Comm) -> None:
    """‖sin πx sin πy‖ = ½ and ‖∇(sin πx sin πy)‖ = π/√2."""
    domain = square(comm, 6)
    zero = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    errors = hf.error_norms(zero, wave(domain), degree=10)
    np.testing.assert_allclose([errors.L2, errors.H1], [0.5, PI / np.sqrt(2)], rtol=1e-9)


def test_the_degree_of_the_quadrature_is_the_one_asked_for(comm: MPI.Comm) -> None:
    """The midpoint rule, of degree 0 and 1, of x² on (0, 1) in halves: (1/16 + 9/16) / 2, not 1/3."""
    domain = mesh.create_unit_interval(comm, 2)
    uh = interpolated(domain, 1, lambda x: x[0])
    zero = fem.Constant(domain, 0.0)
    np.testing.assert_allclose(hf.error_norms(uh, zero).L2 ** 2, 1 / 3, rtol=1e-12)
    for degree in (0, 1):
        np.testing.assert_allclose(hf.error_norms(uh, zero, degree=degree).L2 ** 2, 5 / 16, rtol=1e-12)


def rates(errors: list[hf.ErrorNorms], sizes: list[float]) -> tuple[float, float]:
    """Rates in L² and H¹ between the last two meshes."""
    step = np.log(sizes[-2] / sizes[-1])
    return np.log(errors[-2].L2 / errors[-1].L2) / step, np.log(errors[-2].H1 / errors[-1].H1) / step


@pytest.mark.parametrize("degree", [1, 2])
def test_interpolation_has_the_rates_of_its_degree(comm: MPI.Comm, degree: int) -> None:
    """O(h^{p+1}) in L² and O(h^p) in H¹."""
    errors, sizes = [], []
    for n in (8, 16):
        domain = square(comm, n)
        uh = interpolated(domain, degree, lambda x: np.sin(PI * x[0]) * np.sin(PI * x[1]))
        errors.append(hf.error_norms(uh, wave(domain)))
        sizes.append(hf.mesh_size(domain))
    np.testing.assert_allclose(rates(errors, sizes), [degree + 1, degree], atol=0.1)


@pytest.mark.parametrize("degree", [1, 2])
def test_solutions_have_the_rates_of_their_degree(comm: MPI.Comm, degree: int) -> None:
    """−Δu = 2π² sin πx sin πy, solved on two meshes."""
    errors, sizes = [], []
    for n in (6, 12):
        domain = square(comm, n)
        V = fem.functionspace(domain, ("Lagrange", degree))
        u, v = fem.Function(V), ufl.TestFunction(V)
        F = (ufl.inner(ufl.grad(u), ufl.grad(v)) - 2 * ufl.pi**2 * wave(domain) * v) * ufl.dx
        model = hf.PhysicalModel(F, u, [dirichlet(V)])
        model.solve()
        errors.append(hf.error_norms(model.function, wave(domain)))
        sizes.append(hf.mesh_size(domain))
        # Galerkin: no function of V has a smaller error in the H¹ seminorm, the interpolant included.
        interpolant = interpolated(domain, degree, lambda x: np.sin(PI * x[0]) * np.sin(PI * x[1]))
        assert errors[-1].H1 <= hf.error_norms(interpolant, wave(domain)).H1
        assert hf.relative_l2(u, lambda x: torch.sin(PI * x).prod(1), domain, degree=8) == pytest.approx(
            errors[-1].L2 / 0.5, rel=1e-3
        )
        model.close()
    np.testing.assert_allclose(rates(errors, sizes), [degree + 1, degree], atol=0.15)


def test_energy_and_largest_error(comm: MPI.Comm) -> None:
    """e = x on the unit square with κ = 1 + y, η = 3: ∫κ + 3/3 = 5/2; |e| < 1 inside, and nearly 1 at one point."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)
    for kappa in (1 + x[1], lambda x: 1 + x[:, 1]):
        errors = hf.error_norms(interpolated(domain, 1, lambda x: x[0]), 0.0, kappa=kappa, eta=3.0)
        assert errors.energy == pytest.approx(np.sqrt(2.5), rel=1e-12)
        assert 0.95 < errors.maximum < 1.0
    plain = hf.error_norms(interpolated(domain, 1, lambda x: x[0]), 2 * x[0])
    assert plain.energy == plain.H1 == pytest.approx(1.0)
    assert plain.relative.H1 == plain.relative.maximum == pytest.approx(0.5)
    assert plain.degree == 5


@pytest.mark.parametrize("where", ["coarse", "fine"])
def test_errors_between_meshes_that_do_not_match(comm: MPI.Comm, where: str) -> None:
    """x² in P2 on one mesh against x y in P2 on another: both exact, so the integrals are those of the polynomials."""
    coarse, fine = square(comm, 3), mesh.create_unit_square(comm, 7, 6)
    a, b = interpolated(coarse, 2, lambda x: x[0] ** 2), interpolated(fine, 2, lambda x: x[0] * x[1])
    chosen = {"coarse": coarse, "fine": fine}[where]
    errors = hf.error_norms(a, b, chosen)
    # ∫ (x² − xy)² = 1/5 − 1/4 + 1/9 and ∫ |(2x − y, −x)|² = 4/3 − 1 + 1/3 + 1/3.
    np.testing.assert_allclose([errors.L2, errors.H1], np.sqrt([11 / 180, 1.0]), rtol=1e-10)
    assert hf.error_norms(a, b).L2 == hf.error_norms(a, b, fine).L2
    assert hf.relative_l2(a, b, chosen) == pytest.approx(np.sqrt(11 / 180) * 3, rel=1e-10)


def test_errors_of_networks_and_formulas(comm: MPI.Comm) -> None:
    """x + y + 1 as a network against x in P1: e = y + 1."""
    domain = square(comm, 3)
    uh = interpolated(domain, 1, lambda x: x[0])
    for errors in (hf.error_norms(network(), uh), hf.error_norms(uh, network(), domain, degree=6)):
        np.testing.assert_allclose([errors.L2, errors.H1], np.sqrt([7 / 3, 1.0]), rtol=1e-12)
    assert hf.error_norms(network(), lambda x: x[:, 0], domain).degree == 8


def test_errors_that_cannot_be_measured_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    uh = interpolated(domain, 1, lambda x: x[0])
    with pytest.raises(ValueError, match="say on which mesh"):
        hf.error_norms(network(), 1.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        hf.error_norms(uh, lambda x: x)
    with pytest.raises(ValueError, match="kappa of an energy norm"):
        hf.error_norms(uh, 0.0, kappa=-1.0)
    with pytest.raises(ValueError, match="the approximation is not finite"):
        hf.error_norms(lambda x: x[:, 0] / 0, uh)
    with pytest.raises(ValueError, match="do not ask for"):
        hf.error_norms(uh, 0.0, CellQuadrature(domain, 3), degree=4)


# -- relative errors -------------------------------------------------------------------------------------------


def network() -> nn.Module:
    """x + y + 1 as a torch module with an output (n, 1)."""
    linear = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.fill_(1.0)
    return linear


def test_relative_errors_of_a_function_a_formula_and_a_network(comm: MPI.Comm) -> None:
    """(x + y + 1) against (x + y): 1/‖x + y‖ = √(6/7), whatever holds them."""
    domain = distorted_quadrilaterals(comm)
    points = hf.quadrature_points(domain, 6)

    def plane(x: Tensor) -> Tensor:
        return x[:, 0] + x[:, 1]

    plane_h = interpolated(domain, 1, lambda x: x[0] + x[1])
    shifted_h = interpolated(domain, 2, lambda x: x[0] + x[1] + 1.0)
    for shifted in (shifted_h, lambda x: plane(x) + 1.0, network()):
        for reference in (plane_h, plane):
            for where in (domain, points):
                found = hf.relative_l2(shifted, reference, where)
                assert found == pytest.approx(np.sqrt(6 / 7), rel=1e-12)
    assert hf.relative_l2(network(), network(), points) == 0.0
    # Relative to the reference, not to the approximation: ‖x + y + 1‖² = 7/6 + 2 + 1.
    assert hf.relative_l2(plane, network(), points) == pytest.approx(np.sqrt(6 / 25), rel=1e-12)


def test_relative_errors_of_vector_fields(comm: MPI.Comm) -> None:
    """(x, 3y) against (x, y): ‖(0, 2y)‖² / ‖(x, y)‖² = (4/3) / (2/3)."""
    domain = square(comm, 3)
    uh = interpolated(domain, 1, lambda x: np.stack([x[0], 3 * x[1]]), (2,))
    assert hf.relative_l2(uh, lambda x: x, domain) == pytest.approx(np.sqrt(2.0), rel=1e-12)


def test_values_of_different_shape_are_refused(comm: MPI.Comm) -> None:
    """Two points with two components, or one value on one rank: numbers that would broadcast."""
    two = hf.quadrature_points(mesh.create_rectangle(comm, [np.zeros(2), np.ones(2)], [1, 1]), 0)
    with pytest.raises(ValueError, match="shape"):
        hf.relative_l2(lambda x: x, lambda x: x[:, 0], two)
    many = hf.quadrature_points(square(comm, 3), 4)
    with pytest.raises(ValueError, match="shape"):
        hf.relative_l2(lambda x: x[: 1 if comm.rank == 0 else None, 0], lambda x: x[:, 0], many)


def test_there_is_no_error_relative_to_zero(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    with pytest.raises(ValueError, match="reference is zero"):
        hf.relative_l2(network(), lambda x: 0 * x[:, 0], domain)
    with pytest.raises(ValueError, match="reference is zero"):
        hf.relative_l2(network(), fem.Function(fem.functionspace(domain, ("Lagrange", 1))), domain)


def test_errors_do_not_depend_on_the_number_of_ranks() -> None:
    def build(comm: MPI.Comm) -> dict[str, float]:
        domain = distorted_quadrilaterals(comm)
        uh = interpolated(domain, 1, lambda x: np.exp(x[0]) * x[1])
        errors = hf.error_norms(uh, wave(domain))
        relative = hf.relative_l2(uh, lambda x: torch.exp(x[:, 0]) * x[:, 1], domain)
        return {"L2": errors.L2, "H1": errors.H1, "relative": relative, "h": hf.mesh_size(domain)}

    result = hf.rank_invariance(build, tolerance=1e-11)
    assert result.ok, result.differences


# -- mesh size -------------------------------------------------------------------------------------------------


def test_the_size_of_a_mesh_is_its_largest_diameter(comm: MPI.Comm) -> None:
    cube = mesh.create_unit_cube
    assert hf.mesh_size(mesh.create_unit_interval(comm, 5)) == pytest.approx(1 / 5)
    assert hf.mesh_size(square(comm, 4)) == pytest.approx(np.sqrt(2) / 4)
    assert hf.mesh_size(cube(comm, 2, 2, 2)) == pytest.approx(np.sqrt(3) / 2)
    assert hf.mesh_size(cube(comm, 2, 2, 1, mesh.CellType.hexahedron)) == pytest.approx(np.sqrt(1.5))
    # Only one cell is large, so only one rank knows.
    domain = mesh.create_unit_interval(comm, 6)
    x = domain.geometry.x
    x[:, 0] = np.where(x[:, 0] > 0.9, 7.0, x[:, 0])
    assert hf.mesh_size(domain) == pytest.approx(7.0 - 5 / 6)
