"""Two Gaussians: bounded functions with unbounded weights, descent without a minimiser, terms that bring one back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from dolfinx import mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.ritz.coercivity import (
    CoercivityRun,
    DistanceTikhonov,
    GaussianSlope,
    WeightTikhonov,
    family,
    minimise_pair,
)
from hyco_fem.ritz.energy import RitzEnergy

SLOPE = GaussianSlope()
DEMO = Path(__file__).parents[1] / "demos" / "coercivity.py"


def line(comm: MPI.Comm) -> mesh.Mesh:
    """(−8, 8): Gaussians of width one end before it does."""
    return mesh.create_interval(comm, 120, [-8.0, 8.0])


def energy(comm: MPI.Comm, slope: GaussianSlope = SLOPE, domain: mesh.Mesh | None = None) -> RitzEnergy:
    """½∫|v′|² + v² − fv with natural boundary values, whose minimiser is −2G′."""
    return RitzEnergy(
        line(comm) if domain is None else domain,
        f=slope.source,
        eta=1.0,
        dirichlet=lambda x: np.zeros(x.shape[1], dtype=bool),
        degree=8,
    )


# -- the family ------------------------------------------------------------------------------------------------


def test_the_family_stays_bounded_while_its_weights_grow(comm: MPI.Comm) -> None:
    found = family(line(comm), 10.0 ** -np.arange(5.0), SLOPE)
    np.testing.assert_allclose(found.weights, 10.0 ** np.arange(5.0))
    assert np.all(found.norms < 1.01 * found.limit)


def test_the_norm_of_the_limit_is_that_of_the_closed_form(comm: MPI.Comm) -> None:
    # ∫ 16 y² exp(−2y²) = 2 √(2π), ∫ (4 (1 − 2y²))² exp(−2y²) = 6 √(2π)
    found = family(line(comm), [1.0], SLOPE)
    assert found.limit == pytest.approx(np.sqrt(8.0 * np.sqrt(2.0 * np.pi)), rel=1e-10)


def test_the_family_comes_near_its_limit_at_rate_two(comm: MPI.Comm) -> None:
    found = family(line(comm), 10.0 ** -np.arange(1.0, 5.0), SLOPE)
    rates = -np.diff(np.log10(found.distances))
    np.testing.assert_allclose(rates, 2.0, atol=0.01)


def test_the_quotient_is_that_of_the_two_gaussians() -> None:
    x = torch.linspace(-40.0, 40.0, 401, dtype=torch.float64)[:, None]
    slope = GaussianSlope((0.3,), width=0.7)
    for eps in (0.02, 1.0, 20.0):
        plain = sum(s / eps * torch.exp(-(((x[:, 0] - 0.3 - s * eps) / 0.7) ** 2)) for s in (1.0, -1.0))
        assert isinstance(plain, Tensor)
        torch.testing.assert_close(slope.quotient(x, eps), plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("direction", [None, (0.6, 0.8)])
def test_the_source_is_that_of_the_limit(comm: MPI.Comm, direction: Any) -> None:
    """E(v) − E(u) is half the squared distance for any v only if u minimises E."""
    slope = GaussianSlope((0.2, -0.1), direction, width=0.8)
    domain = mesh.create_rectangle(comm, [[-4.0, -4.0], [4.0, 4.0]], [24, 24])
    E = energy(comm, slope, domain)

    def other(x: Tensor) -> Tensor:
        return torch.exp(-x.square().sum(1)) * (1.0 + x[:, 0])

    half = 0.5 * E.distance(other, slope) ** 2
    assert E.value(other) - E.value(slope) == pytest.approx(half, rel=1e-6)


# -- descent ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def free() -> CoercivityRun:
    return minimise_pair(energy(MPI.COMM_WORLD), steps=300)


def test_without_a_term_weights_grow_like_one_over_the_distance(free: CoercivityRun) -> None:
    assert np.abs(free.weights[-1]).min() > 20.0
    assert free.distances[-1] < 0.1
    assert abs(free.slope(0.3) + 1.0) < 0.01
    # w₁(b₁ − b₂) tends to 2: the sum is 2 (G(x − b₁) − G(x − b₂))/(b₁ − b₂).
    assert np.abs(free.weights[-1]) @ [0.5, 0.5] * free.distances[-1] == pytest.approx(2.0, rel=5e-3)


def test_without_a_term_the_energy_falls_to_its_infimum_like_the_fourth_power(
    comm: MPI.Comm, free: CoercivityRun
) -> None:
    above = free.energies - energy(comm).value(SLOPE)
    assert np.all(above > 0)
    assert above[-1] < 1e-5
    assert np.all(np.diff(free.objectives) <= 1e-12)
    late = free.distances < 0.2
    assert np.polyfit(np.log(free.distances[late]), np.log(above[late]), 1)[0] == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("kind", [WeightTikhonov, DistanceTikhonov])
def test_a_term_bounds_weights_and_keeps_distances(comm: MPI.Comm, kind: Any) -> None:
    """More steps change nothing: there is a minimiser."""
    E = energy(comm)
    some, more = (minimise_pair(E, kind(1e-3), steps=n) for n in (60, 300))
    assert np.abs(more.weights[-1]).max() < 6.0
    assert more.distances[-1] > 0.3
    assert more.distances[-1] == pytest.approx(some.distances[-1], rel=1e-4)
    np.testing.assert_allclose(more.weights[-1], some.weights[-1], rtol=1e-4)


@pytest.mark.parametrize("kind", [WeightTikhonov, DistanceTikhonov])
def test_as_the_term_vanishes_weights_grow_at_the_rate_one_sixth(comm: MPI.Comm, kind: Any) -> None:
    E = energy(comm)
    strengths = np.array([1e-5, 1e-6, 1e-7])
    runs = [minimise_pair(E, kind(s), steps=400) for s in strengths]
    weights = [np.abs(r.weights[-1]).mean() for r in runs]
    distances = [r.distances[-1] for r in runs]
    assert np.polyfit(np.log(strengths), np.log(weights), 1)[0] == pytest.approx(-1 / 6, abs=0.005)
    assert np.polyfit(np.log(strengths), np.log(distances), 1)[0] == pytest.approx(1 / 6, abs=0.005)


def test_in_two_dimensions_too(comm: MPI.Comm) -> None:
    slope = GaussianSlope((0.0, 0.0), (0.6, 0.8))
    domain = mesh.create_rectangle(comm, [[-4.0, -4.0], [4.0, 4.0]], [16, 16])
    E = energy(comm, slope, domain)
    start: dict[str, Any] = {"centres": ((1.0, 0.3), (-0.8, -1.0))}
    free = minimise_pair(E, steps=120, **start)
    held = minimise_pair(E, WeightTikhonov(1e-2), steps=120, **start)
    assert abs(free.slope(0.5) + 1.0) < 0.05
    assert np.abs(free.weights[-1]).mean() > 3.0 * np.abs(held.weights[-1]).mean()
    along = free.centres[-1, 0] - free.centres[-1, 1]
    np.testing.assert_allclose(along / np.linalg.norm(along), [0.6, 0.8], atol=0.01)


def test_the_network_is_the_last_pair(comm: MPI.Comm) -> None:
    E = energy(comm)
    run = minimise_pair(E, WeightTikhonov(1e-2), steps=20)
    assert E.value(run.network) == pytest.approx(run.energies[-1], rel=1e-12)
    x = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)[:, None]
    gaussians = torch.exp(-(x - torch.from_numpy(run.centres[-1, :, 0])).square())
    torch.testing.assert_close(run.network(x).detach(), gaussians @ torch.from_numpy(run.weights[-1]))


def test_the_number_of_ranks_does_not_matter() -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        held = minimise_pair(energy(comm), WeightTikhonov(1e-2), steps=8)
        found = family(line(comm), [0.1, 1e-3], SLOPE)
        return {"J": held.objectives, "w": held.weights, "b": held.centres, "norms": found.norms}

    result = hf.rank_invariance(build, tolerance=1e-9)
    assert result.ok, result.differences


# -- the demo --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_demo_shows_weights_with_and_without_bounds(folder: Path, ranks: int) -> None:
    command = ["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    command += [sys.executable, "-m", "mpi4py", str(DEMO), "--steps", "200", "--out", str(folder / "out")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / "out" / "coercivity.png").stat().st_size > 20000
    found = json.loads((folder / "out" / "summary.json").read_text())
    assert found["slope"] == pytest.approx(-1.0, abs=0.05)
    largest = found["largest_weight"]
    assert largest["free"] > 3.0 * max(largest["weights"], largest["distance"])
    for rate in found["rates"].values():
        assert rate == pytest.approx([-1 / 6, 1 / 6], abs=5e-3)
    gaps = np.array([row[4:] for row in found["measures"]])
    assert gaps[:, 0].max() <= 1e-6
    assert gaps[:, 1].max() <= 1e-4


# -- bad input -------------------------------------------------------------------------------------------------


def test_bad_input_is_refused(comm: MPI.Comm) -> None:
    E = energy(comm)
    for kind in (WeightTikhonov, DistanceTikhonov):
        for strength in (0.0, -1.0, np.inf):
            with pytest.raises(ValueError, match="strength"):
                kind(strength)
    with pytest.raises(ValueError, match="two centres must differ"):
        minimise_pair(E, centres=((1.0,), (1.0,)))
    with pytest.raises(ValueError, match=r"centres \(2, 1\)"):
        minimise_pair(E, centres=((1.0, 0.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="steps"):
        minimise_pair(E, steps=0)
    with pytest.raises(ValueError, match="width"):
        minimise_pair(E, width=-1.0)
    with pytest.raises(ValueError, match="eps must be positive"):
        family(line(comm), [0.1, 0.0], SLOPE)
    with pytest.raises(ValueError, match="dimension 2"):
        family(line(comm), [0.1], GaussianSlope((0.0, 0.0)))
    with pytest.raises(ValueError, match="length one"):
        GaussianSlope((0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="fewer than two steps"):
        minimise_pair(E, WeightTikhonov(1.0), steps=3).slope(1e-3)
