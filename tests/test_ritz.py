"""The Ritz energy, and networks that minimise it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, square
from dolfinx import fem, mesh
from test_script import ROOT, mpirun
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.parallel import sum_array, sum_gradients, sum_over_ranks
from hyco_fem.ritz.deep_ritz import DeepRitz, RitzRecord
from hyco_fem.ritz.energy import RitzEnergy

PI = np.pi
UNIT = [[0.0, 0.0], [1.0, 1.0]]


def wave(x: Tensor) -> Tensor:
    """sin πx sin πy, or sin πx in 1D: −Δ of it is dπ² times itself."""
    return torch.sin(PI * x).prod(1)


def load(x: Tensor) -> Tensor:
    """−Δ wave."""
    return x.shape[1] * PI**2 * wave(x)


def hard(d: int = 2, **options: object) -> hf.HardBoundary:
    """A small smooth network that vanishes on the boundary of the unit box."""
    network = hf.MLP(d, **({"width": 8, "depth": 2, "seed": 3} | options))  # type: ignore[arg-type]
    return hf.HardBoundary(network, hf.box_distance([[0.0] * d, [1.0] * d]))


class Single(nn.Module):
    """A network in float32 that takes points in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].float()


def on_the_left(x: np.ndarray) -> np.ndarray:
    """Where x = 0."""
    return np.isclose(x[0], 0.0)


def vanishing(domain: mesh.Mesh, degree: int) -> fem.Function:
    """A rough Function of a Lagrange space, zero on the boundary, the same on any partition."""
    V = fem.functionspace(domain, ("Lagrange", degree))
    v = fem.Function(V)
    v.interpolate(lambda x: np.sin(7 * x[0] + 1) * np.cos(9 * x[1]) + x[0])
    v.x.array[boundary_dofs(V)] = 0.0
    v.x.scatter_forward()
    return v


# -- the energy ------------------------------------------------------------------------------------------------


def test_the_energy_of_the_solution_is_minus_half_the_work_of_the_load(comm: MPI.Comm) -> None:
    """E(u) = −½∫fu, of a formula, a UFL expression and a Function."""
    domain = square(comm, 6)
    x = ufl.SpatialCoordinate(domain)
    u = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
    energy = RitzEnergy(domain, f=load, degree=12)
    for field in (wave, u):
        assert energy.value(field) == pytest.approx(-(PI**2) / 4, rel=1e-10)
    uh = fem.Function(fem.functionspace(domain, ("Lagrange", 4)))
    uh.interpolate(lambda x: np.sin(PI * x[0]) * np.sin(PI * x[1]))
    assert energy.value(uh) == pytest.approx(-(PI**2) / 4, rel=1e-6)


def test_excess_energy_is_half_the_squared_distance(comm: MPI.Comm) -> None:
    """E(v) − E(u) = ½‖u − v‖_E² for P1, P2 and networks, with κ and η that vary."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)
    u = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
    kappa, eta = 1.0 + x[0] + x[1] ** 2, 2.0 + x[0]
    f = -ufl.div(kappa * ufl.grad(u)) + eta * u
    energy = RitzEnergy(domain, f=f, kappa=kappa, eta=eta, degree=12)
    for v in (vanishing(domain, 1), vanishing(domain, 2), hard()):
        excess = energy.value(v) - energy.value(u)
        assert excess > 0.1
        assert excess == pytest.approx(0.5 * energy.distance(u, v) ** 2, rel=1e-8)


def test_the_finite_element_solution_has_the_least_energy_of_its_space(comm: MPI.Comm) -> None:
    domain = square(comm, 5)
    V = fem.functionspace(domain, ("Lagrange", 2))
    u, v = fem.Function(V), ufl.TestFunction(V)
    bc = fem.dirichletbc(0.0, boundary_dofs(V), V)
    model = hf.PhysicalModel((ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx, u, [bc])
    model.solve()
    energy, least = RitzEnergy(domain), model.function
    other = vanishing(domain, 2)
    excess = energy.value(other) - energy.value(least)
    assert excess == pytest.approx(0.5 * energy.distance(other, least) ** 2, rel=1e-9)
    # A finer mesh has less energy, wherever it is integrated.
    fine = square(comm, 10)
    finer = _fem(fine, 2)
    assert energy.value(least) > RitzEnergy(fine).value(finer)
    assert 0 < energy.distance(least, finer) < 0.1 * energy.distance(least)
    assert np.isnan(energy.missed(finer))  # its values on the boundary are not known here
    model.close()


def _fem(domain: mesh.Mesh, degree: int) -> fem.Function:
    """The solution of −Δu = 1."""
    V = fem.functionspace(domain, ("Lagrange", degree))
    u, v = fem.Function(V), ufl.TestFunction(V)
    bc = fem.dirichletbc(0.0, boundary_dofs(V), V)
    model = hf.PhysicalModel((ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx, u, [bc])
    model.solve()
    found = fem.Function(model.function.function_space)
    found.interpolate(model.function)
    model.close()
    return found


def test_a_flux_and_values_that_are_not_zero(comm: MPI.Comm) -> None:
    """−u″ = sin x, u(0) = 1, u′(1) = cos 1: the excess of any v with v(0) = 1 is half the squared distance."""
    domain = mesh.create_unit_interval(comm, 6)
    energy = RitzEnergy(
        domain, f=lambda x: torch.sin(x[:, 0]), flux=np.cos(1.0), g=1.0, dirichlet=on_the_left, degree=12
    )

    def u(x: Tensor) -> Tensor:
        return 1.0 + torch.sin(x[:, 0])

    network = hf.HardBoundary(hf.MLP(1, width=5, depth=1), lambda x: x[:, 0], 1.0)
    assert energy.missed(u) == energy.missed(network) == 0.0
    assert energy.missed(lambda x: u(x) + 0.5) == pytest.approx(0.25)
    for v in (network, lambda x: 1.0 + x[:, 0] ** 3):
        assert energy.value(v) - energy.value(u) == pytest.approx(0.5 * energy.distance(u, v) ** 2, rel=1e-9)


def test_a_penalty_has_a_minimiser_of_its_own(comm: MPI.Comm) -> None:
    """−u″ = 1 on (0, 1) with u′ n = −βu: u_β = x(1 − x)/2 + 1/(2β), and E(u_β) = −½∫u_β."""
    domain = mesh.create_unit_interval(comm, 5)
    for beta in (10.0, 1000.0):
        energy = RitzEnergy(domain, penalty=beta)

        def u(x: Tensor, beta: float = beta) -> Tensor:
            return 0.5 * x[:, 0] * (1 - x[:, 0]) + 0.5 / beta

        assert energy.value(u) == pytest.approx(-0.5 * (1 / 12 + 0.5 / beta), rel=1e-12)
        network = hf.MLP(1, width=5, depth=1)
        excess = energy.value(network) - energy.value(u)
        assert excess == pytest.approx(0.5 * energy.distance(u, network) ** 2, rel=1e-6)
        assert energy.missed(u) == pytest.approx(0.25 / beta**2, rel=1e-9)


# -- gradients -------------------------------------------------------------------------------------------------


def penalised(comm: MPI.Comm) -> RitzEnergy:
    """An energy with all its terms."""
    return RitzEnergy(
        square(comm, 3),
        f=load,
        kappa=lambda x: 1.0 + x[:, 0],
        eta=2.0,
        flux=lambda x: x[:, 1],
        g=lambda x: x[:, 1] ** 2,
        penalty=50.0,
        dirichlet=on_the_left,
    )


@pytest.mark.parametrize("activation", ["tanh", lambda z: torch.relu(z) ** 3], ids=["tanh", "relu³"])
def test_the_gradient_by_the_weights_is_right(comm: MPI.Comm, activation: Callable) -> None:
    energy, network = penalised(comm), hf.MLP(2, width=6, depth=2, activation=activation)
    assert hf.taylor_test(lambda: energy.local(network), network.parameters(), comm=comm).ok
    energy, network = RitzEnergy(square(comm, 3), f=load), hard(activation=activation)
    assert hf.taylor_test(lambda: energy.local(network), network.parameters(), comm=comm).ok


def test_relu_has_an_energy_and_a_gradient(comm: MPI.Comm) -> None:
    """∇v jumps where σ kinks, which a gradient by the weights does not see; the energy still falls along it."""
    energy, network = RitzEnergy(square(comm, 4), f=load), hard(activation="relu", width=20)
    trainer = DeepRitz(energy, network, hf.AdamStep(1e-2))
    history = trainer.run(30).history
    assert history[-1].energy < history[0].energy  # type: ignore[attr-defined]


def test_the_trainer_minimises_the_energy_of_its_network(comm: MPI.Comm) -> None:
    """ℓ and g, evaluated once, give the values and gradients of the network as a whole."""
    domain = square(comm, 4)
    network = hf.HardBoundary(hf.MLP(2, width=6, depth=2), hf.mesh_distance(domain), lambda x: x[:, 0] * x[:, 1])
    energy = RitzEnergy(domain, f=load, eta=1.0, g=lambda x: x[:, 0] * x[:, 1])
    parts = []
    for local in (DeepRitz(energy, network).objective()(), energy.local(network)):
        total = sum_over_ranks(local, comm)
        network.zero_grad()
        total.backward()
        sum_gradients(network.parameters(), comm)
        parts.append([total.detach(), *[p.grad.clone() for p in network.parameters()]])  # type: ignore[union-attr]
    for a, b in zip(*parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
def test_deep_ritz_finds_the_solution(comm: MPI.Comm, d: int) -> None:
    domain = mesh.create_unit_interval(comm, 20) if d == 1 else square(comm, 7)
    energy, network = RitzEnergy(domain, f=load), hard(d)
    trainer = DeepRitz(energy, network, hf.AdamStep(1e-2))
    trainer.run(60)
    trainer.answer = hf.LBFGS(steps=80)
    result = trainer.run(2)
    last = result.history[-1]
    assert isinstance(last, RitzRecord)
    assert last.energy == pytest.approx(energy.value(network), rel=1e-12)
    assert last.boundary < 1e-28
    assert hf.relative_l2(network, wave, domain) < 2e-3
    # The excess tells the error in the energy norm.
    least = -(PI**2) * d / 4 * 0.5 ** (d - 1)
    assert last.energy - least == pytest.approx(0.5 * energy.distance(network, wave) ** 2, abs=2e-6)


@pytest.mark.slow
@pytest.mark.serial
def test_the_slit_square_to_a_percent(tmp_path: Path) -> None:
    """The demo: hard boundary values reach what is published with fewer steps; penalised ones miss by O(1/β)."""
    run = mpirun(1, ROOT / "demos" / "deep_ritz_slit.py", "--out", tmp_path, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = re.findall(r"^(hard|penalty \d+|P1).*?([\d.]+) %", run.stdout, re.MULTILINE)
    percent = {name: float(value) for name, value in rows}
    assert percent["hard"] < 1.0
    assert percent["hard"] < percent["P1"]
    assert 2.0 < percent["penalty 10"] / percent["penalty 30"] < 4.0
    assert (tmp_path / "deep_ritz_slit.png").stat().st_size > 10_000


@pytest.mark.serial
def test_fresh_points_in_each_round(comm: MPI.Comm) -> None:
    """The mean over random points is an unbiased energy, with noise; Adam finds the solution by it."""
    domain = square(comm, 4)
    kappa = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    kappa.interpolate(lambda x: 1.0 + x[0])
    energy = RitzEnergy(domain, f=load, kappa=kappa)
    sampler = hf.RandomGhosts(4000).on(kappa.function_space)
    at = [energy.at(sampler.draw(k)).value(wave) for k in range(20)]
    exact = energy.value(wave)
    spread = np.std(at, ddof=1) / np.sqrt(len(at))
    assert 0 < spread < 0.03
    assert abs(np.mean(at) - exact) < 4 * spread
    energy, network = RitzEnergy(domain, f=load), hard()
    trainer = DeepRitz(energy, network, hf.AdamStep(2e-2), points=hf.RandomGhosts(300))
    before = energy.value(network)
    history = trainer.run(150).history
    assert history[0].energy != history[1].energy  # type: ignore[attr-defined]
    least = -(PI**2) / 4
    assert energy.value(network) - least < 0.05 * (before - least)


@pytest.mark.serial
def test_a_network_exploits_a_coarse_quadrature(comm: MPI.Comm) -> None:
    """One point a cell: the sum falls below the least energy that there is, and the integral stays above it."""
    domain, least = square(comm, 3), -(PI**2) / 4
    network = hard(width=20)
    coarse, fine = RitzEnergy(domain, f=load, degree=1), RitzEnergy(square(comm, 12), f=load, degree=6)
    trainer = DeepRitz(coarse, network, hf.LBFGS(steps=150))
    trainer.run(2)
    assert coarse.value(network) < least - 0.1
    assert fine.value(network) > least


def test_networks_on_any_number_of_ranks_are_one(comm: MPI.Comm) -> None:
    def build(comm: MPI.Comm) -> dict:
        energy, network = penalised(comm), hf.MLP(2, width=6, depth=2)
        numbers: dict = {"value": energy.value(network), "missed": energy.missed(network)}
        local = energy.local(network)
        local.backward()
        sum_gradients(network.parameters(), comm)
        numbers["gradient"] = torch.cat([p.grad.reshape(-1) for p in network.parameters()]).numpy()  # type: ignore
        for points in (None, hf.RandomGhosts(50)):
            energy, network = RitzEnergy(square(comm, 3), f=load), hard()
            history = DeepRitz(energy, network, hf.AdamStep(1e-2), points=points).run(5).history
            numbers[f"history {points}"] = [r.energy for r in history]  # type: ignore[attr-defined]
            numbers[f"network {points}"] = torch.cat([p.detach().reshape(-1) for p in network.parameters()]).numpy()
        return numbers

    result = hf.rank_invariance(build, comm=comm, tolerance=1e-10)
    assert result.ok, result.differences


def test_a_rank_without_cells_takes_part(comm: MPI.Comm) -> None:
    domain = mesh.create_unit_interval(comm, 2)  # one rank of three has none
    energy, network = RitzEnergy(domain, f=load, degree=8), hard(1)
    DeepRitz(energy, network, hf.AdamStep(1e-2)).run(3)
    weights = CellQuadrature(domain, 8).weights
    assert sum_array(comm, np.array([float(weights.sum())]))[0] == pytest.approx(1.0)


# -- what does not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1.0}, "kappa must be positive"),
        ({"kappa": lambda x: x[:, 0] - 0.5}, "kappa must be positive"),
        ({"eta": -1.0}, "eta must not be negative"),
        ({"f": float("nan")}, "f is not finite"),
        ({"g": float("inf")}, "g is not finite"),
        ({"f": lambda x: x}, "f must be a scalar field"),
        ({"penalty": 0.0}, "penalty must be finite and positive"),
        ({"dirichlet": np.empty(0, dtype=np.int32)}, "nothing holds the constants"),
        ({"degree": -1}, "degree"),
    ],
)
def test_an_energy_that_is_none_is_refused(comm: MPI.Comm, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RitzEnergy(square(comm, 3), **options)


def test_a_network_that_does_not_fit_is_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    energy = RitzEnergy(domain)
    with pytest.raises(ValueError, match="HardBoundary"):
        DeepRitz(energy, hf.MLP(2))
    with pytest.raises(ValueError, match="do not vanish"):
        DeepRitz(energy, hf.HardBoundary(hf.MLP(2), hf.box_distance([[-1, 0], [1, 1]])))
    with pytest.raises(ValueError, match="miss the values"):
        DeepRitz(energy, hf.HardBoundary(hf.MLP(2), hf.box_distance(UNIT), 0.1))
    with pytest.raises(ValueError, match="scalar"):
        DeepRitz(energy, hf.MLP(2, 2))
    with pytest.raises(ValueError, match="scalar"):
        energy.value(ufl.as_vector((1.0, 2.0)))
    with pytest.raises(TypeError, match="float64"):
        DeepRitz(energy, Single())
    with pytest.raises(TypeError, match="torch module"):
        DeepRitz(energy, wave)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RandomGhosts"):
        DeepRitz(energy, hard(), points=100)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no misfit"):
        DeepRitz(energy, hard()).run(1, stopping=hf.Stopping(stagnation=0.1))


def test_expressions_have_no_values_at_random_points(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    energy = RitzEnergy(domain, f=ufl.SpatialCoordinate(domain)[0])
    with pytest.raises(ValueError, match="UFL expression"):
        DeepRitz(energy, hard(), points=hf.RandomGhosts(10)).run(1)
    V = fem.functionspace(domain, ("Lagrange", 1))
    at = RitzEnergy(domain).at(hf.RandomGhosts(10).on(V).draw(0))
    with pytest.raises(ValueError, match="networks and functions"):
        at.value(fem.Function(V))


def test_a_network_with_a_column_of_values_may_have_hard_boundary_values(comm: MPI.Comm) -> None:
    torch.manual_seed(0)
    column = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    domain = square(comm, 4)
    trainer = DeepRitz(RitzEnergy(domain), hf.HardBoundary(column, hf.mesh_distance(domain)))
    result = trainer.run(20)
    assert result.history[-1].energy < result.history[0].energy  # type: ignore[attr-defined]
