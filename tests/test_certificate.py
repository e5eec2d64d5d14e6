"""Certificates are never below the true error, whatever v is, and seldom far above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, distorted_quadrilaterals, square
from dolfinx import fem, mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem import _compat
from hyco_fem.accuracy.certificate import Certificate, Certifier, certificate
from hyco_fem.accuracy.flux import AtPoints, EquilibratedFlux, FluxAtPoints, normal_trace
from hyco_fem.accuracy.lifting import Mismatch
from hyco_fem.bridge.integration import BoundaryQuadrature, CellQuadrature
from hyco_fem.parallel import sum_array, sum_gradients

# Rounding in value and error.
SLACK = 1e-12


def sines(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])


def energy_error(domain: mesh.Mesh, u: Any, v: Any, kappa: Any = 1.0, eta: Any = 0.0, degree: int = 16) -> float:
    """‖u − v‖ in the energy norm."""
    rule = CellQuadrature(domain, degree)
    with torch.no_grad():
        squares = rule.values(kappa) * (rule.gradients(u) - rule.gradients(v)).square().sum(1)
        squares = squares + rule.values(eta) * (rule.values(u) - rule.values(v)).square()
    return math.sqrt(rule.integral(squares))


def interpolated(domain: mesh.Mesh, degree: int, u: Callable[[Tensor], Tensor]) -> fem.Function:
    """u at the nodes of P_degree."""
    V = fem.functionspace(domain, ("Lagrange", degree))
    v = fem.Function(V)
    v.x.array[:] = u(torch.from_numpy(V.tabulate_dof_coordinates()[:, : domain.geometry.dim].copy())).numpy()
    return v


def noise(x: Tensor) -> Tensor:
    """Without any order, yet the same on any partition."""
    z = 100.0 * torch.sin(x @ torch.tensor([12.9898, 78.233, 37.719], dtype=torch.float64)[: x.shape[1]])
    return z - z.floor() - 0.5


def rough(domain: mesh.Mesh, degree: int = 1) -> fem.Function:
    """Random nodal values, zero on the boundary."""
    v = interpolated(domain, degree, noise)
    v.x.array[boundary_dofs(v.function_space)] = 0.0
    return v


def hard(seed: int = 0) -> torch.nn.Module:
    """A network that is zero on the boundary of the unit square."""
    return hf.HardBoundary(hf.MLP(2, 1, width=12, depth=2, seed=seed), hf.box_distance([[0.0, 0.0], [1.0, 1.0]]))


def trained(network: torch.nn.Module, domain: mesh.Mesh, f: Callable[[Tensor], Tensor], steps: int) -> torch.nn.Module:
    """Some steps down the Ritz energy ½‖∇v‖² − (f, v)."""
    rule = CellQuadrature(domain, 4)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        energy = 0.5 * rule.gradients(network).square().sum(1) - f(rule.x) * rule.values(network)
        (rule.weights @ energy).backward()
        sum_gradients(network.parameters(), domain.comm)
        optimiser.step()
    return network


def galerkin(domain: mesh.Mesh, degree: int, f: float) -> fem.Function:
    """−Δu = f, u = 0 on the boundary."""
    V = fem.functionspace(domain, ("Lagrange", degree))
    uh, v = fem.Function(V), ufl.TestFunction(V)
    F = ufl.inner(ufl.grad(uh), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    model = hf.PhysicalModel(F, uh, [fem.dirichletbc(0.0, boundary_dofs(V), V)])
    model.solve()
    model.close()
    return uh


# -- guaranteed ------------------------------------------------------------------------------------------------


def approximations(domain: mesh.Mesh) -> dict[str, Any]:
    """Good and bad approximations of sines, some of which miss its boundary values."""
    return {
        "P1": interpolated(domain, 1, sines),
        "P2": interpolated(domain, 2, sines),
        "rough P1": rough(domain),
        "rough P2": rough(domain, 2),
        "zero": 0.0,
        "another network": hf.MLP(2, 1, width=12, depth=2, seed=3),
        "relu network": hf.MLP(2, 1, width=6, depth=2, activation="relu", seed=3),
        "network with boundary values": hard(),
        "trained network": trained(hard(1), domain, lambda x: 2 * math.pi**2 * sines(x), 60),
        "shifted": lambda x: sines(x) + 0.3,
        "wrong on the boundary": lambda x: sines(x) + 0.05 * torch.cos(5.0 * x[:, 0]),
        "UFL": ufl.SpatialCoordinate(domain)[0] ** 2,
    }


@pytest.mark.parametrize("eta", [0.0, 1e-3, 1.0, 1e4])
def test_no_error_exceeds_its_certificate(comm: MPI.Comm, eta: float) -> None:
    domain = square(comm, 8)
    certifier = Certifier(domain, f=lambda x: (2 * math.pi**2 + eta) * sines(x), eta=eta)
    for name, v in approximations(domain).items():
        c, error = certifier(v), energy_error(domain, sines, v, eta=eta)
        assert c.value >= (1 - SLACK) * error, name
        if name not in ("P2", "shifted"):  # of a P2 solution, fluxes of RT_2 are no better than itself
            assert c.value <= 1.15 * error, name
    certifier.close()


@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_coefficients_may_jump(comm: MPI.Comm, eta: float) -> None:
    """κ jumps at x = 1/2 and u = w(x) sin(πy)/κ, with w(1/2) = 0, has a continuous normal flux."""
    domain = square(comm, 8)
    kappa = fem.Function(fem.functionspace(domain, ("DG", 0)))
    kappa.interpolate(lambda x: np.where(x[0] < 0.5, 1.0, 20.0))

    def k(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 0.5, 1.0, 20.0).double()

    def w(x: Tensor) -> Tensor:
        return x[:, 0] * (x[:, 0] - 0.5) * (x[:, 0] - 1)

    def u(x: Tensor) -> Tensor:
        return w(x) * torch.sin(math.pi * x[:, 1]) / k(x)

    def f(x: Tensor) -> Tensor:
        return (math.pi**2 * w(x) - 6 * x[:, 0] + 3) * torch.sin(math.pi * x[:, 1]) + eta * u(x)

    certifier = Certifier(domain, f=f, kappa=kappa, eta=eta)
    for v in (interpolated(domain, 1, u), hard(), rough(domain), lambda x: u(x) + 0.02 * torch.exp(x[:, 0] + x[:, 1])):
        c, error = certifier(v), energy_error(domain, u, v, kappa, eta)
        assert (1 - SLACK) * error <= c.value <= 1.2 * error
    certifier.close()


def test_bounds_of_a_varying_coefficient_make_its_certificate_safe(comm: MPI.Comm) -> None:
    domain = square(comm, 6)

    def kappa(x: Tensor) -> Tensor:
        return 1.0 + x[:, 0]

    def f(x: Tensor) -> Tensor:  # −∇·(κ∇u)
        slope = math.pi * torch.cos(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])
        return 2 * math.pi**2 * kappa(x) * sines(x) - slope

    h = 1 / 6
    bounds = (lambda x: kappa(x) - h, lambda x: kappa(x) + h)
    for v in (interpolated(domain, 1, sines), hard(), hf.MLP(2, 1, width=8, depth=2)):
        c, error = certificate(v, domain, f=f, kappa=kappa, kappa_bounds=bounds), energy_error(domain, sines, v, kappa)
        assert (1 - SLACK) * error <= c.value <= 1.15 * error
        sampled = certificate(v, domain, f=f, kappa=kappa, flux_degree=2)
        assert sampled.value <= c.value


def test_natural_conditions(comm: MPI.Comm) -> None:
    """u = 3y + sin(πx) cos(πy) has κ∂u/∂n = −3 at y = 0, and values on the rest of the boundary."""
    domain = square(comm, 8)

    def u(x: Tensor) -> Tensor:
        return 3 * x[:, 1] + torch.sin(math.pi * x[:, 0]) * torch.cos(math.pi * x[:, 1])

    certifier = Certifier(
        domain,
        f=lambda x: 2 * math.pi**2 * (u(x) - 3 * x[:, 1]),
        g=u,
        flux=-3.0,
        dirichlet=lambda x: (x[1] > 0.99) | (x[0] < 0.01) | (x[0] > 0.99),
    )
    for v in (
        interpolated(domain, 1, u),
        hf.MLP(2, 1, width=8, depth=2),
        lambda x: u(x) + 0.1 * torch.cos(3 * x[:, 1]),
    ):
        c, error = certifier(v), energy_error(domain, u, v)
        assert (1 - SLACK) * error <= c.value <= 1.1 * error
    certifier.close()


def test_without_a_dirichlet_boundary(comm: MPI.Comm) -> None:
    domain = square(comm, 8)

    def u(x: Tensor) -> Tensor:
        return torch.cos(math.pi * x[:, 0]) * torch.cos(math.pi * x[:, 1])

    nowhere = np.empty(0, dtype=np.int32)
    for v in (interpolated(domain, 1, u), hf.MLP(2, 1, width=8, depth=2)):
        c = certificate(v, domain, f=lambda x: (2 * math.pi**2 + 3) * u(x), eta=3.0, dirichlet=nowhere)
        error = energy_error(domain, u, v, eta=3.0)
        assert (1 - SLACK) * error <= c.value <= 1.1 * error
        assert not c.equilibrated
        assert c.boundary == 0.0


def test_in_3d(comm: MPI.Comm) -> None:
    """Tetrahedra, with boundary values that are missed on faces and edges alike."""

    def u(x: Tensor) -> Tensor:
        return torch.sin(2 * x[:, 0]) * torch.exp(x[:, 1]) * (1 + x[:, 2])

    domain = mesh.create_unit_cube(comm, 3, 3, 3)
    certifier = Certifier(domain, f=lambda x: 3.0 * u(x), g=u)
    for v in (interpolated(domain, 1, u), hf.MLP(3, 1, width=8, depth=2), lambda x: u(x) + torch.cos(4 * x[:, 0])):
        c, error = certifier(v), energy_error(domain, u, v, degree=12)
        assert (1 - SLACK) * error <= c.value <= 1.2 * error
        assert c.boundary > 0.0
    certifier.close()


# -- sharp -----------------------------------------------------------------------------------------------------


def test_the_efficiency_of_p1_tends_to_one(comm: MPI.Comm) -> None:
    """Fluxes of one degree more converge at a higher rate."""
    efficiencies = []
    for n in (4, 8, 16):
        domain = square(comm, n)
        v = interpolated(domain, 1, sines)
        c = certificate(v, f=lambda x: 2 * math.pi**2 * sines(x))
        efficiencies.append(c.efficiency(energy_error(domain, sines, v)))
    excess = np.array(efficiencies) - 1.0
    assert (excess > 0).all()
    assert efficiencies[0] < 1.05
    assert (np.log2(excess[:-1] / excess[1:]) > 1.8).all()


def test_the_efficiency_of_p2_with_fluxes_of_degree_three(comm: MPI.Comm) -> None:
    domain = square(comm, 8)
    v = interpolated(domain, 2, sines)
    c = certificate(v, f=lambda x: 2 * math.pi**2 * sines(x))
    assert 1.0 <= c.efficiency(energy_error(domain, sines, v)) < 1.05


def test_prager_and_synge(comm: MPI.Comm) -> None:
    """f ∈ DG_1: with div σ = −f exactly, ‖∇(u − v)‖² + ‖∇u − σ‖² = ‖σ − ∇v‖² for every v that is u on the boundary."""
    domain = square(comm, 4)
    rule = CellQuadrature(domain, 14)

    def u(x: Tensor) -> Tensor:
        return x[:, 0] ** 3 + x[:, 0] * x[:, 1]

    def v(x: Tensor) -> Tensor:
        return u(x) + sines(x)

    flux = EquilibratedFlux(rule, 2, torch.ones(len(rule), dtype=torch.float64), np.empty(0, dtype=np.int32), 0.0)
    flux.solve(rule.gradients(v), 6.0 * rule.x[:, 0])
    sigma, divergence = FluxAtPoints(flux, rule)()
    np.testing.assert_allclose(divergence.numpy(), 6.0 * rule.x[:, 0].numpy(), atol=1e-10)
    du, dv = rule.gradients(u), rule.gradients(v)
    error, missed, known = (rule.integral(d.square().sum(1)) for d in (du - dv, du - sigma, sigma - dv))
    assert missed > 1e-6
    assert error + missed == pytest.approx(known, rel=1e-12)
    c = certificate(v, domain, f=lambda x: -6.0 * x[:, 0], g=u, degree=14)
    assert c.value**2 == pytest.approx(known, rel=1e-12)
    assert c.oscillation == pytest.approx(0.0, abs=1e-12)
    flux.close()


def test_the_best_flux_is_the_same_for_all_that_meet_the_boundary_values(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    rule = CellQuadrature(domain, 10)
    flux = EquilibratedFlux(rule, 2, torch.ones(len(rule), dtype=torch.float64), np.empty(0, dtype=np.int32), 0.0)
    at = FluxAtPoints(flux, rule)
    found = []
    for v in (rough(domain), sines, 0.0):
        flux.solve(rule.gradients(v), -sines(rule.x))
        found.append(at()[0].clone())
    for sigma in found[1:]:
        np.testing.assert_allclose(sigma.numpy(), found[0].numpy(), atol=1e-8)
    flux.close()


# -- boundary values -------------------------------------------------------------------------------------------


def test_a_shift_has_no_energy(comm: MPI.Comm) -> None:
    """u + c misses the boundary values, by a function whose energy is zero."""
    domain = square(comm, 8)
    exact, shifted = (
        certificate(v, domain, f=lambda x: 2 * math.pi**2 * sines(x)) for v in (sines, lambda x: sines(x) + 7.0)
    )
    assert exact.boundary == 0.0
    assert shifted.boundary < 1e-11
    assert shifted.value == pytest.approx(exact.value, rel=1e-6)


@pytest.mark.parametrize(("d", "n", "loose"), [(2, 6, 1.002), (3, 3, 1.03)])
def test_what_is_missed_on_the_boundary_costs_its_harmonic_extension(
    comm: MPI.Comm, d: int, n: int, loose: float
) -> None:
    """v = −w with w harmonic, g = 0, f = 0: the error is ‖∇w‖, all of it from the boundary."""
    domain = square(comm, n) if d == 2 else mesh.create_unit_cube(comm, n, n, n)

    def w(x: Tensor) -> Tensor:
        return torch.exp(2 * x[:, 0]) * torch.cos(2 * x[:, 1:] / math.sqrt(d - 1)).prod(1)

    def quadratic(x: Tensor) -> Tensor:
        return x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 0] * x[:, 1]

    for extension, most in ((w, loose), (quadratic, 1 + 1e-10)):
        c, error = certificate(extension, domain, f=0.0), energy_error(domain, extension, 0.0, degree=12)
        assert (1 - SLACK) * error <= c.boundary <= most * error
        assert (1 - SLACK) * error <= c.value <= most * error


@pytest.mark.parametrize("d", [2, 3])
def test_the_lifting_is_continuous_and_has_the_trace(comm: MPI.Comm, d: int) -> None:
    """Σ_S c_S φ t(π) on a part Γ_D of the boundary, for a t that is zero at vertices: t there, and single-valued."""
    n = 3
    domain = square(comm, n) if d == 2 else mesh.create_unit_cube(comm, n, n, n)
    rule = CellQuadrature(domain, 2)
    one = torch.ones(len(rule), dtype=torch.float64)
    domain.topology.create_connectivity(d - 1, d)
    part = mesh.locate_entities_boundary(domain, d - 1, lambda x: (x[0] < 0.01) | (x[d - 1] > 0.99))
    exterior = mesh.exterior_facet_indices(domain.topology)
    part = np.intersect1d(part, exterior)
    lifting = Mismatch(rule, part, 0.0, one, one, np.ones(rule.n_cells), (2, 3))

    def t(x: np.ndarray) -> np.ndarray:
        return np.sin(n * math.pi * x) @ (1.0 + np.arange(d))

    corners = domain.geometry.x[_compat.geometry_dofmap(domain)[: rule.n_cells]][:, :, :d]
    rng = np.random.default_rng(0)
    by_place: dict[tuple[float, ...], list[float]] = {}
    weights = np.sort(rng.uniform(0.1, 1.0, d))
    weights /= weights.sum()
    domain.topology.create_connectivity(d, d - 1)
    of_cell = domain.topology.connectivity(d, d - 1).array.reshape(-1, d + 1)
    n_on = 0
    for j, face in enumerate(basix.topology(basix.CellType.triangle if d == 2 else basix.CellType.tetrahedron)[d - 1]):
        # The same point of a face from both of its cells: weights go by the coordinates of its vertices.
        order = np.array([sorted(face, key=lambda i, K=K: tuple(K[i].round(9))) for K in corners]).reshape(-1, d)
        barycentric = np.zeros((len(corners), d + 1))
        np.put_along_axis(barycentric, order, np.tile(weights, (len(corners), 1)), axis=1)
        x = np.einsum("ni,nid->nd", barycentric, corners)
        w = np.zeros(len(corners))
        for piece in lifting._pieces[0]:
            phi = barycentric[piece.cells][:, piece.vertices]
            inside = phi.sum(1) > 0
            K, factor, phi = piece.cells[inside], piece.factor[inside], phi[inside]
            share = phi / phi.sum(1, keepdims=True)
            w[K] += factor * phi.sum(1) * t(np.einsum("ni,nid->nd", share, corners[K][:, piece.vertices]))
        on = np.isin(of_cell[: len(corners), j], part)
        n_on += int(on.sum())
        np.testing.assert_allclose(w[on], t(x[on]), atol=1e-12)
        for place, value in zip(x[~on].round(9).tolist(), w[~on], strict=True):
            by_place.setdefault(tuple(place), []).append(float(value))
    assert comm.allreduce(n_on) == comm.allreduce(len(part)) > 0
    for values in by_place.values():
        assert max(values) - min(values) < 1e-12
    largest = comm.allreduce(max((max(map(abs, values)) for values in by_place.values()), default=0.0), op=MPI.MAX)
    assert (largest > 0.1) == (d == 3), "in 2D it is zero on all other edges, in 3D not on faces with an edge on Γ_D"
    lifting.close()


def test_only_the_values_on_the_boundary_count(comm: MPI.Comm) -> None:
    """Boundary data may be continued into the domain in any way."""
    domain = square(comm, 8)

    def cut(x: Tensor) -> Tensor:
        return (x * (1 - x)).prod(1)

    v = hf.MLP(2, 1, width=8, depth=2)
    one, other = (
        certificate(v, domain, f=1.0, g=g)
        for g in (lambda x: x[:, 0] ** 3, lambda x: x[:, 0] ** 3 + 50.0 * cut(x) * torch.cos(9.0 * x[:, 1]))
    )
    assert other.boundary == pytest.approx(one.boundary, rel=1e-10)
    assert other.value == pytest.approx(one.value, rel=1e-10)


def test_boundary_data_may_be_of_any_kind(comm: MPI.Comm) -> None:
    """A polynomial as a formula, in UFL, and in the P3 space."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)

    def g(x: Tensor) -> Tensor:
        return x[:, 0] ** 3 - 2 * x[:, 0] * x[:, 1] ** 2

    found = [
        certificate(v, domain, f=1.0, g=given)
        for v in (lambda x: torch.sin(3 * x[:, 0]), interpolated(domain, 2, g))
        for given in (g, x[0] ** 3 - 2 * x[0] * x[1] ** 2, interpolated(domain, 3, g))
    ]
    for k in (0, 3):
        assert found[k].boundary > 0.0
        for c in found[k + 1 : k + 3]:
            assert c.boundary == pytest.approx(found[k].boundary, rel=1e-10)
            assert c.value == pytest.approx(found[k].value, rel=1e-10)


# -- parts and forms -------------------------------------------------------------------------------------------


def test_values_at_points_are_integrated_where_they_were_put(comm: MPI.Comm) -> None:
    """The dofs of a quadrature element are in the order of the points of the rule."""
    for domain in (square(comm, 3), mesh.create_unit_cube(comm, 2, 2, 2)):
        rule = CellQuadrature(domain, 6)
        x, d = ufl.SpatialCoordinate(domain), domain.geometry.dim
        dx = ufl.dx(domain, metadata={"quadrature_degree": 6, "quadrature_rule": "default"})
        scalar, vector = AtPoints(rule), AtPoints(rule, (d,))
        scalar.set(rule.x[:, 0] ** 2)
        vector.set(torch.stack([(k + 1) * rule.x[:, k] ** 3 for k in range(d)], dim=1))
        test = ufl.as_vector([x[k] * x[0] for k in range(d)])
        local = [
            fem.assemble_scalar(fem.form(scalar.function * x[0] ** 3 * x[1] * dx)),
            fem.assemble_scalar(fem.form(ufl.inner(vector.function, test) * dx)),
        ]
        expected = [1 / 12, 1 / 6 + sum((k + 1) / 10 for k in range(1, d))]
        np.testing.assert_allclose(sum_array(comm, np.array(local)), expected, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 5.0])
def test_the_flux_is_in_equilibrium_and_given_on_the_natural_boundary(comm: MPI.Comm, eta: float) -> None:
    domain = square(comm, 4)
    rule = CellQuadrature(domain, 10)
    side = mesh.locate_entities_boundary(domain, 1, lambda x: x[0] > 0.99)
    kappa = 1.0 + rule.x[:, 0]
    flux = EquilibratedFlux(rule, 2, kappa, side, 1.5)
    v = hard()
    source = eta * rule.values(v).detach() - torch.exp(rule.x[:, 0])
    flux.solve(rule.gradients(v).detach(), source)
    _, divergence = FluxAtPoints(flux, rule)()
    means = rule.by_cell(divergence - source)
    assert np.abs(means).max(initial=0.0) < 1e-13
    around = BoundaryQuadrature(domain, 4, side)
    outflow = (around.values(flux.scale * flux.sigma) * around.normals).sum(1).numpy()
    np.testing.assert_allclose(outflow, 1.5, rtol=1e-12)
    flux.close()


def test_normal_traces_of_an_oblique_boundary(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    x = domain.geometry.x
    x[:, 0], x[:, 1] = x[:, 0] + 0.3 * x[:, 1], x[:, 1] + 0.2 * x[:, 0] ** 2
    domain.topology.create_connectivity(1, 2)
    sigma = normal_trace(fem.functionspace(domain, ("RT", 3)), mesh.exterior_facet_indices(domain.topology), -2.0)
    around = BoundaryQuadrature(domain, 4)
    np.testing.assert_allclose((around.values(sigma) * around.normals).sum(1).numpy(), -2.0, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0, 1e3])
def test_the_parts_add_up(comm: MPI.Comm, eta: float) -> None:
    domain = square(comm, 4)
    for v in (hf.MLP(2, 1, width=8, depth=2), hard()):
        c = certificate(v, domain, eta=eta)
        assert len(c.by_cell) == domain.topology.index_map(2).size_local
        total = float(sum_array(comm, np.array([np.square(c.by_cell).sum()]))[0])
        assert total == pytest.approx(c.value**2, rel=1e-12)
        least, most = c.flux**2 + c.oscillation**2, (c.flux + c.oscillation) ** 2
        assert (1 - SLACK) * least <= c.value**2 - c.boundary**2 <= (1 + SLACK) * most
        if not c.equilibrated:
            assert c.value**2 - c.boundary**2 == pytest.approx(least, rel=1e-12)
        assert c.f_norm == pytest.approx(1.0, rel=1e-12)
        assert f"{c.value:.4e}" in str(c)


def test_the_quadrature_of_polynomials_is_exact_and_that_of_a_rough_field_is_not(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    assert certificate(rough(domain)).quadrature < 1e-12
    assert certificate(lambda x: sines(8.0 * x), domain).quadrature > 1e-6


def test_units_do_not_matter(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    v = hf.MLP(2, 1, width=8, depth=2)
    values = [
        certificate(v, domain, f=k, kappa=k, eta=eta * k).value / math.sqrt(k)
        for eta in (0.0, 10.0)
        for k in (1.0, 1e-13, 1e13)
    ]
    np.testing.assert_allclose(values[:3], values[0], rtol=1e-9)
    np.testing.assert_allclose(values[3:], values[3], rtol=1e-9)


def test_p1_is_certified_as_good_as_p1_on_its_mesh(comm: MPI.Comm) -> None:
    """The a-priori bound holds for the Galerkin solution, so h_eq is at most h, up to the efficiency."""

    @dataclass
    class Bound:
        """Of a square of right triangles (Liu, Oishi 2013): C_h/h ≤ 0.5 with h the diameter."""

        h: float
        C_h: float

    h = math.sqrt(2) / 8
    bound = Bound(h, 0.5 * h)
    good, bad = galerkin(square(comm, 8), 1, 1.0), hf.MLP(2, 1, width=8, depth=2)
    assert certificate(good).equivalent_mesh_size(bound) < 1.02 * h
    assert certificate(bad, square(comm, 8)).equivalent_mesh_size(bound) > 2 * h
    with pytest.raises(ValueError, match="f is zero"):
        certificate(good, f=0.0).equivalent_mesh_size(bound)


def test_a_function_of_a_coarser_mesh_is_certified_as_itself(comm: MPI.Comm) -> None:
    """P1 on a mesh is in P1 of its refinement."""
    coarse, fine = square(comm, 3), square(comm, 6)
    v = interpolated(coarse, 1, lambda x: sines(x) + x[:, 0] * x[:, 1])
    same = fem.Function(fem.functionspace(fine, ("Lagrange", 1)))
    cells = np.arange(fine.topology.index_map(2).size_local, dtype=np.int32)
    data = fem.create_interpolation_data(same.function_space, v.function_space, cells, padding=1e-8)
    same.interpolate_nonmatching(v, cells, data)
    same.x.scatter_forward()
    certifier = Certifier(fine, f=lambda x: 2 * math.pi**2 * sines(x))
    one, other = certifier(v), certifier(same)
    assert one.boundary > 0.1
    for part in ("value", "flux", "oscillation", "boundary"):
        assert getattr(one, part) == pytest.approx(getattr(other, part), rel=1e-9)
    certifier.close()


def test_certificates_do_not_depend_on_the_number_of_ranks() -> None:
    def numbers(c: Certificate, comm: MPI.Comm) -> list[float]:
        cells = sum_array(comm, np.array([(c.by_cell**4).sum()]))
        return [c.value, c.flux, c.oscillation, c.boundary, c.f_norm, float(cells[0])]

    def build(comm: MPI.Comm) -> dict[str, list[float]]:
        flat, solid = square(comm, 3), mesh.create_unit_cube(comm, 2, 2, 1)
        found = {}
        for name, domain, eta in (("flat", flat, 0.0), ("reaction", flat, 50.0), ("solid", solid, 1.0)):
            d = domain.geometry.dim
            certifier = Certifier(domain, f=1.0, eta=eta, flux=0.5, dirichlet=lambda x: x[0] < 0.01)
            for kind, v in (("network", hf.MLP(d, 1, width=8, depth=2)), ("rough", interpolated(domain, 1, noise))):
                found[f"{name} {kind}"] = numbers(certifier(v), comm)
            certifier.close()
        pair = square(comm, 1)  # two cells: a third rank has none
        found["two cells"] = numbers(certificate(hf.MLP(2, 1, width=8, depth=2), pair, eta=2.0), comm)
        return found

    result = hf.rank_invariance(build, tolerance=1e-10)
    assert result.ok, result.differences


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kappa": 0.0}, ValueError, "kappa must be positive"),
        ({"kappa": lambda x: x[:, 0] - 0.5}, ValueError, "kappa must be positive"),
        ({"eta": -1.0}, ValueError, "eta must not be negative"),
        ({"f": lambda x: x}, ValueError, "f must be a scalar"),
        ({"f": float("nan")}, ValueError, "f is not finite"),
        ({"g": lambda x: 1.0 / x[:, 0] / 0.0}, ValueError, "g must be a scalar, finite"),
        ({"flux": "much"}, TypeError, "flux must be a finite number"),
        ({"flux_degree": 0}, ValueError, "flux_degree must be a whole number of at least 1"),
        ({"degree": 1}, ValueError, "degree of the quadrature"),
        ({"dirichlet": np.empty(0, dtype=np.int32)}, ValueError, "dirichlet is empty and eta is not positive"),
        ({"dirichlet": np.array([0.5])}, ValueError, "local facets"),
        ({"kappa_bounds": (1.5, 2.0)}, ValueError, "kappa lies outside them"),
        ({"kappa_bounds": 1.0}, TypeError, "must be a pair"),
    ],
)
def test_data_that_do_not_fit_are_refused(comm: MPI.Comm, options: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        Certifier(square(comm, 3), **options)


def test_facets_inside_the_domain_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    domain.topology.create_connectivity(1, 2)
    inside = np.setdiff1d(
        np.arange(domain.topology.index_map(1).size_local), mesh.exterior_facet_indices(domain.topology)
    )
    with pytest.raises(ValueError, match="not on the boundary"):
        Certifier(domain, dirichlet=inside)


def test_meshes_that_are_not_of_straight_simplices_are_refused(comm: MPI.Comm) -> None:
    for domain in (distorted_quadrilaterals(comm), mesh.create_unit_interval(comm, 4)):
        with pytest.raises(ValueError, match="straight triangles in 2D and tetrahedra"):
            Certifier(domain)
    with pytest.raises(TypeError, match="needs a mesh, not str"):
        Certifier("square")
    with pytest.raises(TypeError, match="needs a mesh, on which"):
        certificate(lambda x: x[:, 0])


def test_approximations_that_are_none_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    certifier = Certifier(domain)
    for v, words in (
        (fem.Function(fem.functionspace(domain, ("DG", 1))), "must be continuous"),
        (fem.Function(fem.functionspace(domain, ("Lagrange", 1, (2,)))), "must be a scalar"),
        (fem.Function(fem.functionspace(domain, ("CR", 1))), "not values at points"),
        (lambda x: x, "must be a scalar"),
        (lambda x: torch.log(x[:, 0] - 0.5), "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            certifier(v)
    assert certifier(0.0).value > 0.0, "it can be used afterwards"
    with pytest.raises(ValueError, match="positive true error"):
        certifier(0.0).efficiency(0.0)
    certifier.close()


def test_what_no_point_of_the_rule_has_met_is_told(comm: MPI.Comm) -> None:
    """A layer of width 1e-5 inside cells: the certificate is far below the error, and says that it may be."""
    domain = square(comm, 8)

    def wave(x: Tensor) -> Tensor:
        return torch.sin(math.pi * x).prod(1)

    def layered(x: Tensor) -> Tensor:
        return wave(x) * (1.0 + 0.1 * torch.tanh(1e5 * (x[:, 0] - 0.5013)))

    with Certifier(domain, f=lambda x: 2 * math.pi**2 * wave(x)) as certifier:
        assert certifier(lambda x: 0.9 * wave(x)).quadrature < 1e-4
        assert certifier(layered).quadrature > 1.0
    with pytest.raises(ValueError, match="has been closed"):
        certifier(wave)
