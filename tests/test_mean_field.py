"""The convex problem over measures: its duality gap is a bound, and growing, moving and pruning keep their promises."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import square
from dolfinx import mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.ritz.atoms import AtomSpace, Pool, correlations, moved, search
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.features import Trial, gram
from hyco_fem.ritz.lasso import Sparse, certified, lasso, lasso_on_all
from hyco_fem.ritz.mean_field import MeanFieldFit, mean_field

BOX = np.array([[0.0, 0.0], [1.0, 1.0]])
LAMBDA = 1e-3


def exact(x: Tensor) -> Tensor:
    """sin πx sin πy, of energy norm π/√2."""
    return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])


def energy(comm: MPI.Comm, n: int = 6, degree: int = 6, **options: Any) -> RitzEnergy:
    """That of −Δu = 2π² u with u = 0 on the boundary of the unit square."""
    return RitzEnergy(square(comm, n), f=lambda x: 2.0 * math.pi**2 * exact(x), degree=degree, **options)


def fit(comm: MPI.Comm, **options: Any) -> MeanFieldFit:
    """A small one with hard boundary values."""
    settings: dict[str, Any] = {"penalty_tv": LAMBDA, "distance": hf.box_distance(BOX), "dictionary": 32, "growth": 0}
    return mean_field(energy(comm), **(settings | options))


def error(E: RitzEnergy, found: MeanFieldFit) -> float:
    """Relative, in the energy norm."""
    return E.distance(exact, found.network) / E.distance(exact)


def problem(K: int, seed: int = 0, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A and b of K unit columns in a space of a dimension, and of a function in their span."""
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((K if rank is None else rank, K))
    columns /= np.linalg.norm(columns, axis=0)
    return columns.T @ columns, columns.T @ (columns @ rng.standard_normal(K))


def least(A: np.ndarray, b: np.ndarray, penalty: float) -> float:
    """min P by all patterns of signs."""
    best = 0.0
    for pattern in product((-1.0, 0.0, 1.0), repeat=len(b)):
        signs = np.array(pattern)
        S = np.flatnonzero(signs)
        if len(S):
            c = np.zeros(len(b))
            c[S] = np.linalg.lstsq(A[np.ix_(S, S)], b[S] - penalty * signs[S])[0]
            best = min(best, P(A, b, penalty, c))
    return best


def P(A: np.ndarray, b: np.ndarray, penalty: float, c: np.ndarray) -> float:
    return float(0.5 * c @ A @ c - b @ c + penalty * np.abs(c).sum())


# -- the convex problem ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [5, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_solution_is_the_least_over_all_patterns_of_signs(seed: int, rank: int) -> None:
    A, b = problem(5, seed, rank)
    for penalty in (0.01, 0.1, 0.5):
        found = lasso(A, b, penalty)
        assert found.objective == pytest.approx(least(A, b, penalty), rel=1e-10, abs=1e-14)
        assert found.objective == pytest.approx(P(A, b, penalty, found.c), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("rank", [5, 3])
def test_the_gap_bounds_what_any_weights_are_above_the_least(rank: int) -> None:
    A, b = problem(5, 1, rank)
    rng = np.random.default_rng(2)
    penalty, solution = 0.1, lasso(A, b, 0.1).c
    for distance in (1.0, 1e-1, 1e-2, 1e-4, 1e-6):
        for _ in range(20):
            c = solution + distance * rng.standard_normal(5)
            above = P(A, b, penalty, c) - least(A, b, penalty)
            bound = certified(A, b, penalty, c).gap * abs(P(A, b, penalty, c))
            assert -1e-14 <= above <= bound + 1e-14
            # And not idly: it goes to zero with the distance.
            assert bound <= 50.0 * distance


def test_the_conditions_of_optimality_hold() -> None:
    A, b = problem(60, 3, rank=25)
    penalty = 0.05
    found = lasso(A, b, penalty)
    rho, S = b - A @ found.c, found.support
    assert 0 < len(S) <= 25
    np.testing.assert_allclose(rho[S], penalty * np.sign(found.c[S]), rtol=1e-8)
    assert np.abs(rho).max() <= penalty * (1.0 + 1e-8)
    assert found.gap < 1e-9


def test_no_atom_is_let_in_from_some_penalty_on() -> None:
    A, b = problem(20, 4)
    most = np.abs(b).max()
    for factor in (1.0, 3.0):
        found = lasso(A, b, factor * most)
        assert len(found.support) == 0
        assert (found.objective, found.tv, found.gap) == (0.0, 0.0, 0.0)
    assert len(lasso(A, b, 0.999 * most).support) == 1


def test_the_total_variation_falls_as_the_penalty_grows() -> None:
    A, b = problem(40, 5, rank=20)
    tv = [lasso(A, b, penalty).tv for penalty in np.geomspace(1e-4, 0.99, 12) * np.abs(b).max()]
    assert np.all(np.diff(tv) < 0)


@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
@pytest.mark.parametrize("share", [1e-1, 1e-3, 1e-5])
def test_the_gap_is_small_on_dictionaries_that_are_singular_to_rounding(
    comm: MPI.Comm, activation: str, share: float
) -> None:
    space = AtomSpace(2, activation, BOX)
    pool = Pool(Trial(energy(comm), hf.box_distance(BOX)), space)
    pool.add(space.draw(200, np.random.default_rng(0)))
    assert np.linalg.cond(pool.A) > 1e14
    found = lasso_on_all(comm, lambda: lasso(pool.A, pool.b, share * np.abs(pool.b).max()))
    assert found.gap < 1e-9


def test_bad_problems_are_refused() -> None:
    A, b = problem(4)
    with pytest.raises(ValueError, match="penalty must be finite and positive"):
        lasso(A, b, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        lasso(A, b[:3], 0.1)
    with pytest.raises(ValueError, match="not finite"):
        lasso(A, b * np.nan, 0.1)
    with pytest.raises(ValueError, match="positive diagonal"):
        lasso(A - np.diag(np.diag(A)), b, 0.1)
    with pytest.raises(ValueError, match="not in their span"):
        lasso(np.ones((2, 2)), np.array([1.0, -1.0]), 0.1)
    with pytest.raises(ValueError, match="tolerance"):
        lasso(A, b, 0.1, tolerance=2.0)


def test_an_error_of_the_solver_is_raised_on_all_ranks(comm: MPI.Comm) -> None:
    def fails() -> Sparse:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lasso_on_all(comm, fails)


# -- atoms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
def test_a_pool_has_the_gram_matrix_of_unit_atoms_whatever_the_order(comm: MPI.Comm, activation: str) -> None:
    trial, space = Trial(energy(comm), hf.box_distance(BOX)), AtomSpace(2, activation, BOX)
    theta = space.draw(9, np.random.default_rng(1))
    pool = Pool(trial, space)
    for part in theta.split([4, 2, 3]):
        pool.add(part)
    whole = gram(trial, space.features(pool.theta))
    norms = whole.A.diagonal().sqrt()
    np.testing.assert_allclose(pool.norms, norms.numpy(), rtol=1e-12)
    np.testing.assert_allclose(pool.A, (whole.A / torch.outer(norms, norms)).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(pool.b, (whole.r / norms).numpy(), rtol=0, atol=1e-12)


def test_atoms_that_the_energy_does_not_see_are_left_out(comm: MPI.Comm) -> None:
    """A Gaussian far outside the mesh."""
    space = AtomSpace(2, "gaussian", BOX)
    pool = Pool(Trial(energy(comm), hf.box_distance(BOX)), space)
    pool.add(torch.tensor([[0.5, 0.5], [9.0, 9.0]], dtype=torch.float64))
    assert len(pool) == 1


@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
def test_correlations_are_the_slopes_of_the_energy(comm: MPI.Comm, activation: str) -> None:
    trial, space = Trial(energy(comm), hf.box_distance(BOX)), AtomSpace(2, activation, BOX)
    rng = np.random.default_rng(2)
    active, new = space.draw(3, rng), space.draw(2, rng)
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    found = correlations(trial, space, new, active, w)
    for j in range(2):
        every = space.features(torch.cat([active, new[j : j + 1]]))
        slope = [
            trial.energy._total(trial.energy.of(trial.of(every, torch.cat([w, torch.tensor([h]).double()]))))
            for h in (1e-3, -1e-3)
        ]
        norm = float(gram(trial, space.features(new[j : j + 1])).A.sqrt())
        assert float(found[j]) == pytest.approx(-(slope[0] - slope[1]) / 2e-3 / norm, rel=1e-7)


def test_a_search_finds_more_than_its_random_draws(comm: MPI.Comm) -> None:
    trial, space = Trial(energy(comm), hf.box_distance(BOX)), AtomSpace(2, "tanh", BOX)
    theta, w = space.draw(1, np.random.default_rng(3)), torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        drawn = correlations(trial, space, space.draw(50, np.random.default_rng(4)), theta, w).abs().max()
    found, largest = search(trial, space, theta, w, np.random.default_rng(4), candidates=50, ascents=3, steps=20)
    assert found.shape == (3, 3)
    assert largest > 1.01 * float(drawn)
    with torch.no_grad():
        assert float(correlations(trial, space, found, theta, w).abs().max()) == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
def test_moved_atoms_lower_the_objective(comm: MPI.Comm, activation: str) -> None:
    trial, space = Trial(energy(comm), hf.box_distance(BOX)), AtomSpace(2, activation, BOX)
    pool = Pool(trial, space)
    pool.add(space.draw(20, np.random.default_rng(5)))
    before = lasso_on_all(comm, lambda: lasso(pool.A, pool.b, LAMBDA))
    after = Pool(trial, space)
    S = before.support
    after.add(moved(trial, space, pool.theta[torch.from_numpy(S)], before.c[S], LAMBDA, 20))
    now = lasso_on_all(comm, lambda: lasso(after.A, after.b, LAMBDA))
    assert now.objective < before.objective - 1e-4


# -- the whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "gaussian", "sigmoid"])
def test_growing_and_moving_never_raise_the_objective(comm: MPI.Comm, activation: str) -> None:
    found = fit(comm, activation=activation, growth=2, moves=15)
    steps = [s.step for s in found.history]
    assert steps == ["dictionary", "grown", "moved", "grown", "moved", "pruned"]
    objective = np.array([s.objective for s in found.history])
    gain = trial_energy(comm) - objective[-1]
    assert np.all(np.diff(objective[:-1]) <= 1e-9 * gain)
    assert objective[-2] < objective[0] - 1e-5
    # Pruning may cost what the tolerance allows.
    assert objective[-1] - objective[-2] <= 1e-6 * gain
    assert all(s.gap <= 1e-6 for s in found.history)


def trial_energy(comm: MPI.Comm) -> float:
    """E(0)."""
    return energy(comm).value(0.0)


def test_the_numbers_are_those_of_the_network(comm: MPI.Comm) -> None:
    E, found = energy(comm), fit(comm, growth=1, moves=10)
    assert isinstance(found.network, hf.HardBoundary)
    assert isinstance(found.network.network, hf.ShallowNet)
    assert E.value(found.network) == pytest.approx(found.energy, rel=1e-10)
    assert found.objective == pytest.approx(found.energy + LAMBDA * found.tv, rel=1e-12)
    assert found.tv == pytest.approx(np.abs(found.weights).sum(), rel=1e-12)
    assert found.atoms == len(found.weights) == len(found.network.network.w)
    # ‖v‖_E ≤ ‖μ‖_TV, and E(v) − E(u) is half a square.
    assert E.distance(found.network) <= found.tv
    finer = energy(comm, degree=14)
    above = finer.value(found.network) - finer.value(exact)
    assert above == pytest.approx(0.5 * finer.distance(exact, found.network) ** 2, rel=1e-2)


def test_pruned_atoms_do_not_change_the_field(comm: MPI.Comm) -> None:
    """Twins that differ by rounding are made one, in a field as near as the gap says."""
    from hyco_fem.ritz.mean_field import _Run

    trial, space = Trial(energy(comm), hf.box_distance(BOX)), AtomSpace(2, "gaussian", BOX)
    run = _Run(Pool(trial, space), LAMBDA, 1e-6)
    theta = space.draw(20, np.random.default_rng(6))
    run.take("dictionary", torch.cat([theta, theta + 1e-7]))
    c = np.where(np.arange(40) < 20, 0.5, 0.5) * np.tile(run.now.c[:20] + run.now.c[20:], 2)
    run.now = certified(run.pool.A, run.pool.b, LAMBDA, c)
    before, many = space.network(*run.active()), len(run.now.support)
    run.prune()
    after = space.network(*run.active())
    assert len(run.now.support) == many // 2
    ell = hf.box_distance(BOX)
    E = trial.energy
    moved_by = E.distance(lambda x: ell(x) * before(x), lambda x: ell(x) * after(x))
    assert moved_by <= 2.0 * math.sqrt(2e-6 * abs(run.now.objective))


def test_a_large_penalty_leaves_nothing(comm: MPI.Comm) -> None:
    found = fit(comm, penalty_tv=10.0, growth=1)
    assert (found.atoms, found.tv, found.gap, found.energy) == (0, 0.0, 0.0, 0.0)
    assert found.continuous_gap == 0.0
    assert found.network(torch.full((3, 2), 0.4, dtype=torch.float64)).abs().max().item() == 0.0


def test_the_field_nears_the_solution_as_the_penalty_vanishes(comm: MPI.Comm) -> None:
    E = energy(comm)
    fits = [fit(comm, penalty_tv=penalty, dictionary=128) for penalty in (1e-1, 1e-2, 1e-3)]
    errors = [error(E, f) for f in fits]
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]
    assert np.all(np.diff([f.tv for f in fits]) > 0)


def test_two_atoms_are_found_again(comm: MPI.Comm) -> None:
    """u = G(x + 1) − 2 G(x − 1) on the line, G(x) = exp(−x²), ‖v‖² = ∫|v′|² + v².

    ⟨G(· − p), G(· − q)⟩ = √(π/2) (2 − t²) exp(−t²/2) with t = p − q is stationary at t = 2, so the places stay, and
    the conditions of optimality give the weights: each is nearer to zero by λ/(‖G‖ (1 + e⁻²)).
    """
    domain = mesh.create_interval(comm, 60, [-6.0, 6.0])

    def source(x: Tensor) -> Tensor:
        """f = u − u″."""
        y = x[:, :1] - torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return ((3.0 - 4.0 * y.square()) * torch.exp(-y.square())) @ torch.tensor([1.0, -2.0], dtype=torch.float64)

    E = RitzEnergy(domain, f=source, eta=1.0, dirichlet=lambda x: np.zeros(x.shape[1], dtype=bool), degree=10)
    penalty = 1e-2
    found = mean_field(
        E, penalty_tv=penalty, activation="gaussian", width=1.0, dictionary=30, growth=8, moves=100, tolerance=1e-8
    )
    assert found.continuous_gap < 1e-8
    assert found.atoms == 2
    assert isinstance(found.network, hf.ShallowNet)
    places, weights = (p.detach().numpy().ravel() for p in (found.network.b, found.network.w))
    order = np.argsort(places)
    np.testing.assert_allclose(places[order], [-1.0, 1.0], atol=1e-4)
    less = penalty / (math.sqrt(2.0 * math.sqrt(math.pi / 2.0)) * (1.0 + math.exp(-2.0)))
    np.testing.assert_allclose(weights[order], [1.0 - less, less - 2.0], atol=1e-5)


def medians(comm: MPI.Comm, sizes: tuple[int, ...], **options: Any) -> np.ndarray:
    """Median errors over ten starts for each size of the dictionary."""
    E = energy(comm)
    settings: dict[str, Any] = {"moves": 0, "candidates": 8, "ascents": 1} | options
    errors = [[error(E, fit(comm, dictionary=K, seed=s, **settings)) for s in range(10)] for K in sizes]
    return np.median(errors, axis=1)


@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
def test_the_median_error_falls_with_the_dictionary(comm: MPI.Comm, activation: str) -> None:
    found = medians(comm, (4, 16, 64), activation=activation)
    assert np.all(found[1:] < 0.7 * found[:-1]), found


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "gaussian"])
def test_the_median_error_of_moved_atoms_falls_with_the_dictionary(comm: MPI.Comm, activation: str) -> None:
    found = medians(comm, (4, 16, 64), activation=activation, growth=1, moves=20, candidates=64, ascents=4)
    assert np.all(found[1:] < 0.7 * found[:-1]), found


def test_a_penalty_on_the_boundary_serves_too(comm: MPI.Comm) -> None:
    """Without ℓ: u = 0 weakly, with β = 10³."""
    E = energy(comm, penalty=1e3)
    found = mean_field(E, penalty_tv=1e-2, dictionary=128, growth=0)
    assert isinstance(found.network, hf.ShallowNet)
    assert E.missed(found.network) < 1e-3
    assert E.value(found.network) == pytest.approx(found.energy, rel=1e-9)


def test_boundary_values_that_are_not_zero(comm: MPI.Comm) -> None:
    E = RitzEnergy(square(comm, 6), f=lambda x: 2.0 * math.pi**2 * exact(x), g=2.0, degree=6)
    found = mean_field(E, penalty_tv=LAMBDA, distance=hf.box_distance(BOX), g=2.0, dictionary=64, growth=0)
    assert E.missed(found.network) < 1e-28
    assert E.distance(found.network, lambda x: 2.0 + exact(x)) < 0.02 * E.distance(exact)


def test_the_number_of_ranks_does_not_matter() -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        still = fit(comm, dictionary=24, penalty_tv=1e-2)
        x = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, (5, 2)))
        return {
            "gain": still.objective,
            "tv": still.tv,
            "E": still.energy,
            "v": still.network(x).detach().numpy(),
        }

    result = hf.rank_invariance(build, tolerance=1e-9)
    assert result.ok, result.differences


def test_nor_does_it_for_moved_atoms() -> None:
    """A few steps: later ones magnify rounding, as any descent does."""

    def build(comm: MPI.Comm) -> dict[str, Any]:
        found = fit(comm, dictionary=24, penalty_tv=1e-2, growth=1, moves=4, candidates=16, ascents=2)
        return {"objective": [s.objective for s in found.history], "largest": found.largest}

    result = hf.rank_invariance(build, tolerance=1e-7)
    assert result.ok, result.differences


def test_bad_input_is_refused(comm: MPI.Comm) -> None:
    for name, value in (("dictionary", 0), ("growth", -1), ("moves", 1.5), ("candidates", 0), ("ascents", 0)):
        with pytest.raises(ValueError, match=name):
            fit(comm, **{name: value})
    with pytest.raises(ValueError, match="penalty_tv must be positive"):
        fit(comm, penalty_tv=0.0)
    with pytest.raises(ValueError, match="tolerance"):
        fit(comm, tolerance=0.0)
    with pytest.raises(ValueError, match="dimension 1"):
        fit(comm, box=[[0.0], [1.0]])
    with pytest.raises(ValueError, match="slopes"):
        fit(comm, slopes=(2.0, 1.0))
    with pytest.raises(ValueError, match="width"):
        fit(comm, activation="gaussian", width=0.0)
    with pytest.raises(ValueError, match="width is for activation='gaussian'"):
        fit(comm, width=0.2)
    with pytest.raises(ValueError, match="slopes are of ridge functions"):
        fit(comm, activation="gaussian", slopes=(1.0, 4.0))
    with pytest.raises(ValueError, match="do not vanish"):
        fit(comm, distance=None)
    with pytest.raises(ValueError, match="activation"):
        fit(comm, activation="tan")
