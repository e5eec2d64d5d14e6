"""Weights that are chosen, and how far a result can be trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from hyco_games import SENSORS as PLACES
from hyco_games import data_of, heat
from scipy import optimize
from test_gauss_newton import NAMES, SENSORS, TRUTH, data_on, measured, model_at, theta_of
from torch import nn

import hyco_fem as hf
from hyco_fem.game.groups import shared_out
from hyco_fem.game.identify import identify
from hyco_fem.game.player import flat, put_flat

START = {"kappa.amplitudes": [2.0], "kappa.centres": [[0.45, 0.6]]}
WEIGHTS = [hf.Weights(b1=1e-2, b2=b2, decay=1e-4) for b2 in (0.01, 1.0, 100.0, 10000.0)]
ANSWERS = hf.Answers(hf.GaussNewton(5), hf.GaussNewton(15))


def game_on(comm: MPI.Comm, weights: Any = None, noise: float = 0.02, values: np.ndarray | None = None) -> hf.Hyco:
    model = model_at(comm, START)
    data = data_on(model, measured(comm, noise) if values is None else values, noise_std=0.02)
    net = hf.InputScaling(hf.MLP(2, 1, width=8, depth=1, seed=2), [[0, 0], [1, 1]])
    return hf.Hyco(model, net, data, hf.RandomGhosts(40, fixed=True), weights=weights, answers=ANSWERS)


def state_of(game: hf.Hyco) -> np.ndarray:
    return np.concatenate([flat(game.physical.parameters()), flat(game.synthetic.parameters())])


# -- cross-validation ------------------------------------------------------------------------------------------


def test_folds_part_the_sensors(comm: MPI.Comm) -> None:
    """Every sensor is held out once, and never seen in the fold that holds it out."""
    model = model_at(comm)
    x = np.concatenate([SENSORS, [[5.0, 5.0]]])
    data = hf.Data(hf.Points(model.V.mesh, x, missing="mark"), np.append(measured(comm), 0.0))
    rule = hf.CrossValidation(WEIGHTS, folds=3)
    times = np.zeros(data.n, dtype=int)
    for k in range(3):
        kept, held = rule.parted(data, k)
        assert not (kept.rows & held.rows).any()
        np.testing.assert_array_equal(kept.rows | held.rows, data.rows)
        assert kept.n_found + held.n_found == len(SENSORS)
        times += held.rows
    np.testing.assert_array_equal(times, data.rows)


def test_a_score_is_the_error_at_sensors_that_the_game_did_not_see(comm: MPI.Comm) -> None:
    rule = hf.CrossValidation([WEIGHTS[1]], folds=4, rounds=2)
    game = game_on(comm, rule)
    before = state_of(game)
    choice = rule.choose(game)
    np.testing.assert_array_equal(state_of(game), before)
    errors = []
    for k in range(4):
        order = np.random.default_rng(0).permutation(len(SENSORS))
        held = np.isin(np.arange(len(SENSORS)), order[k::4])
        twin = game_on(comm, WEIGHTS[1])
        x, y = SENSORS[~held], measured(comm, 0.02)
        twin = hf.Hyco(
            twin.physical,
            twin.synthetic,
            data_on(twin.physical, y[~held], x, noise_std=0.02),
            hf.RandomGhosts(40, fixed=True),
            weights=WEIGHTS[1],
            answers=ANSWERS,
        )
        twin.run(2)
        with torch.no_grad():
            at = twin.synthetic(torch.from_numpy(SENSORS[held])).numpy()
        errors.append(np.mean((at - y[held]) ** 2) / 0.02**2)
    assert choice.scores[0] == pytest.approx(np.mean(errors), rel=1e-6)
    assert choice.spread[0] == pytest.approx(np.std(errors, ddof=1) / 2, rel=1e-5)


def test_a_game_with_a_rule_plays_with_the_best_weights_and_tells_the_curve(comm: MPI.Comm, folder: Path) -> None:
    game = game_on(comm, hf.CrossValidation(WEIGHTS, folds=4, rounds=2))
    result = game.run(3)
    choice = result.choice
    assert len(choice.scores) == len(WEIGHTS)
    assert choice.weights is WEIGHTS[int(np.argmin(choice.scores))]
    assert game.weights is choice.weights
    assert choice.weights != WEIGHTS[0], "the physics is right: the network is to follow it"
    assert "→" in str(choice)
    result.save(folder, comm)
    if comm.rank == 0:
        told = json.loads((folder / "summary.json").read_text())["choice"]
        np.testing.assert_allclose(told["scores"], choice.scores)
        assert told["weights"]["b2"] == choice.weights.b2


def test_folds_are_shared_out_over_groups_of_ranks(comm: MPI.Comm) -> None:
    """With a game built in each group the scores are those of one group."""
    rule = hf.CrossValidation(WEIGHTS[1:3], folds=3, rounds=1)
    alone = rule.choose(game_on(comm, rule))
    shared = hf.CrossValidation(WEIGHTS[1:3], folds=3, rounds=1, build=lambda some: game_on(some, rule))
    np.testing.assert_allclose(shared.choose(game_on(comm, shared)).scores, alone.scores, rtol=1e-5)


def test_the_physical_model_may_be_the_judge(comm: MPI.Comm) -> None:
    choice = hf.CrossValidation(WEIGHTS[1:3], folds=3, rounds=2, model="physical").choose(game_on(comm))
    assert np.all(choice.scores < 5.0), "at the true κ the error at new sensors is the noise"


# -- discrepancy and balance -------------------------------------------------------------------------------------


def test_discrepancy_leaves_the_misfit_at_the_noise(comm: MPI.Comm) -> None:
    """With a wrong physics the network leaves its data, the more the heavier the interaction."""
    model = model_at(comm, TRUTH)
    wrong = measured(comm, 0.02) + 0.15 * np.sin(7 * SENSORS[:, 0])
    candidates = [hf.Weights(b1=1e-6, b2=10.0**k, decay=1e-7) for k in range(6)]
    game = game_on(comm, hf.Discrepancy(candidates), values=wrong)
    result = game.run(3)
    scores = result.choice.scores
    assert np.all(np.diff(scores[-2:]) > 0)
    assert scores[-1] >= 1.0 > scores[0]
    assert 0.1 < result.history[-1].misfit_synthetic < 10.0
    unknown = hf.Data(game.sensing.synthetic.points, wrong)
    blind = hf.Hyco(model, game.synthetic, unknown, weights=hf.Discrepancy(candidates))
    with pytest.raises(ValueError, match="known noise_std"):
        blind.run(1)


def test_balanced_gradients_are_equal(comm: MPI.Comm) -> None:
    """b |∇I| = a |∇L| for both players, measured afresh here."""
    game = game_on(comm, hf.GradientBalance(hf.Weights(a1=0.7, a2=2.0), every=3))
    scene = game.scene(0)
    w = scene.weights
    L, I, M, K = game._gradient_norms(scene)
    assert w.b1 * I == pytest.approx(w.a1 * L, rel=1e-12)
    assert w.b2 * K == pytest.approx(w.a2 * M, rel=1e-12)
    assert (w.a1, w.a2) == (0.7, 2.0)
    after = [game.scene(k).weights for k in (1, 2, 3)]
    assert after[0] == after[1] == w
    assert game.run(4).rounds == 4


def test_leaving_out_by_the_hat_matrix_is_leaving_out(comm: MPI.Comm) -> None:
    """On a model that is linear in θ (an unknown load) against a fit without each sensor in turn."""
    setting = heat(comm, values=0.05 + 0.02 * np.sin(9.0 * PLACES[:, 0]))
    setting.model.coefficients["kappa"].raw.requires_grad_(False)
    data = data_of(setting, noise_std=0.01)
    game = hf.Hyco(setting.model, hf.MLP(2), data, answers=hf.Answers(hf.GaussNewton(5)))
    rule = hf.ModelDiscrepancy(hf.Weights(a1=0.5, a2=2.0), factor=1.5)
    choice = rule.choose(game)
    squares = []
    with torch.no_grad():
        U = data.points.gather(setting.model(data.points)) / setting.model.coefficients["f"].raw.item()
    for i in range(len(U)):
        rest = np.arange(len(U)) != i
        f = U[rest] @ setting.values[rest] / (U[rest] @ U[rest])
        squares.append((f * U[i] - setting.values[i]) ** 2)
    assert choice.scores[0] == pytest.approx(np.mean(squares) / 0.01**2, rel=1e-8)
    tau2 = 1.5**2 * (np.mean(squares) - 0.01**2)
    w = choice.weights
    assert (w.b1, w.b2) == pytest.approx((0.5 / tau2, 2.0 / tau2), rel=1e-8)
    assert "does not pass" in choice.rule


def test_physics_that_is_right_is_trusted(comm: MPI.Comm) -> None:
    game = game_on(comm, hf.ModelDiscrepancy(hf.Weights(decay=1e-3)))
    result = game.run(2)
    w = result.choice.weights
    assert w.b2 == pytest.approx(1.0 / (0.1 * 0.02) ** 2)
    assert w.decay == 1e-3
    assert "passes" in str(result.choice)
    plain = data_on(game.physical, measured(comm))
    blind = hf.Hyco(game.physical, game.synthetic, plain, weights=hf.ModelDiscrepancy())
    with pytest.raises(ValueError, match="known noise_std"):
        blind.run(1)


def test_the_decay_of_a_network_alone_is_chosen_by_held_out_sensors(comm: MPI.Comm) -> None:
    """A line with noise: heavy decay misses it, none is fine; the network comes back as it was."""
    net = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.fill_(0.1), net.bias.fill_(0.0)
    model = model_at(comm)
    data = data_on(model, 1.0 + 3.0 * SENSORS[:, 0], noise_std=0.1)
    choice = hf.choose_decay(net, data, [1e4, 1e2, 1e-6], hf.GaussNewton(20), folds=4)
    assert choice.weights.decay == 1e-6
    assert np.all(np.diff(choice.scores) < 0)
    assert flat(net.parameters()).tolist() == [0.1, 0.1, 0.0]


# -- groups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks_each", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_tasks_are_done_once_and_told_to_all(comm: MPI.Comm, n: int, ranks_each: int) -> None:
    closed: list[int] = []
    found = shared_out(
        comm,
        list(range(n)),
        lambda part: part.size,
        lambda size, task: (task, size),
        ranks_each=ranks_each,
        close=closed.append,
    )
    assert [task for task, _ in found] == list(range(n))
    assert len(closed) == 1
    assert all(size >= min(ranks_each, comm.size) for _, size in found)


def test_an_error_of_one_group_is_raised_on_all(comm: MPI.Comm) -> None:
    def work(_: Any, task: int) -> int:
        if task == 0:
            raise ValueError("task 0 cannot be done")
        return task

    with pytest.raises(ValueError, match="task 0 cannot be done"):
        shared_out(comm, [0, 1, 2, 3], lambda part: None, work)


# -- trust -----------------------------------------------------------------------------------------------------


def test_the_report_knows_a_nash_equilibrium(comm: MPI.Comm) -> None:
    """No such point at the start; after best responses neither player can gain, and the report moves nothing."""
    game = game_on(comm, hf.Weights(a1=0.02, b1=1.0, a2=0.02, b2=1.0, decay=1e-5))
    before = hf.trust_report(game)
    assert not before.nash
    assert before.gain_physical > 0.1
    game.answers = hf.Answers(hf.GaussNewton(10), hf.GaussNewton(60))
    game._seat()
    game.run(25)
    there = state_of(game)
    report = hf.trust_report(game, tolerance=0.02)
    np.testing.assert_array_equal(state_of(game), there)
    assert report.nash, str(report)
    assert "a Nash equilibrium to 0.02" in str(report)


def test_laplace_error_bars_cover_the_truth(comm: MPI.Comm) -> None:
    """The error in units of the error bar over draws of the noise: mean square about one."""
    truth = theta_of(model_at(comm, TRUTH))
    clean, squares = measured(comm), []
    model = model_at(comm, TRUTH)
    for seed in range(30):
        noisy = clean + 0.01 * np.random.default_rng(seed).standard_normal(len(clean))
        alone = hf.PhysicsOnly(model, data_on(model, noisy, noise_std=0.01), hf.GaussNewton(8))
        alone.run(1)
        found = hf.trust_report(alone).from_data
        squares.append((theta_of(model) - truth) ** 2 / found.standard_errors**2)
        assert np.all(found.lower < found.theta)
    assert 0.6 < np.mean(squares) < 1.5, np.mean(squares, axis=0)
    assert found.names == [NAMES[0] + "[0]", NAMES[1] + "[0,0]", NAMES[1] + "[0,1]"]


@pytest.mark.parametrize("known", [True, False])
def test_identifiability_of_a_line_is_that_of_regression(known: bool) -> None:
    """y = θ₀ + θ₁ x: standard errors and Student's intervals as in any textbook."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 12)
    J = np.column_stack([np.ones(12), x]) / (0.1 if known else 1.0)
    y = 1.0 + 2.0 * x + 0.1 * rng.standard_normal(12)
    theta = np.linalg.lstsq(np.column_stack([np.ones(12), x]), y, rcond=None)[0]
    r = (theta[0] + theta[1] * x - y) / (0.1 if known else 1.0)
    found = identify(["a", "b"], theta, J, r, known_noise=known)
    sigma2 = 1.0 if known else r @ r / 10
    expected = np.sqrt(np.diag(sigma2 * np.linalg.inv(J.T @ J)))
    np.testing.assert_allclose(found.standard_errors, expected, rtol=1e-10)
    width = 1.959964 if known else 2.228139
    np.testing.assert_allclose((found.upper - found.lower) / 2, width * expected, rtol=1e-6)
    assert found.unseen == []


def test_combinations_that_the_sensors_do_not_see_are_named() -> None:
    """r depends on a·b alone: at a = 2, b = 0.5 relative changes of opposite sign go unseen."""
    J = np.array([[0.5, 2.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 50.0]])
    found = identify(["a", "b", "c"], np.array([2.0, 0.5, 1.0]), J, np.zeros(3))
    assert found.unseen == ["0.71 a -0.71 b (in units of |θ|)"] or found.unseen == ["0.71 b -0.71 a (in units of |θ|)"]
    assert np.isinf(found.standard_errors[:2]).all()
    assert found.standard_errors[2] == pytest.approx(0.02)
    assert "do not see" in str(found)


def test_fewer_residuals_than_parameters_are_warned_of(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm)[:2], SENSORS[:2])
    alone = hf.PhysicsOnly(model, data, hf.GaussNewton(3))
    with pytest.warns(UserWarning, match="2 residuals for 3 parameters.*do not see"):
        alone.run(1)


# -- what cannot be ----------------------------------------------------------------------------------------------


def test_bad_rules_are_refused(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match=r"at least one hyco_fem\.Weights"):
        hf.CrossValidation([])
    with pytest.raises(ValueError, match="at least 2 folds"):
        hf.CrossValidation(WEIGHTS, folds=1)
    with pytest.raises(ValueError, match="'synthetic' or 'physical'"):
        hf.CrossValidation(WEIGHTS, model="both")
    with pytest.raises(ValueError, match="positive level"):
        hf.Discrepancy(WEIGHTS, level=0.0)
    with pytest.raises(ValueError, match="memory"):
        hf.GradientBalance(memory=1.0)
    with pytest.raises(ValueError, match="25 folds of 20 sensors: a fold would have no sensor"):
        game_on(comm, hf.CrossValidation(WEIGHTS, folds=25)).run(1)
    with pytest.raises(ValueError, match="must be positive and confidence"):
        hf.trust_report(game_on(comm), tolerance=0.0)
    model = model_at(comm)
    data = data_on(model, measured(comm))
    with pytest.raises(ValueError, match="none of the 0 sensors"):
        data.only(np.zeros(data.n, dtype=bool))
    with pytest.raises(ValueError, match="bool for each of the 20 sensors"):
        data.only(np.ones(3, dtype=bool))
    with pytest.raises(TypeError, match="schedule of weights returned float"):
        hf.Hyco(model, hf.MLP(2), data, weights=lambda k: 1.0).run(1)
    assert math.isnan(hf.Weights(b1=0).potential(1, 1, 1))


# -- prior -----------------------------------------------------------------------------------------------------


def test_the_prior_is_a_regularised_least_squares_problem(comm: MPI.Comm) -> None:
    """Against scipy on the stacked residuals, for physics only and for a game that hardly listens to its network."""
    model = model_at(comm, START)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    std = {"kappa.amplitudes": 0.05, "kappa.centres": 0.01}
    mean = theta_of(model)
    size = np.array([0.05, 0.01, 0.01])
    points = data.points

    def put(theta: np.ndarray) -> None:
        put_flat(model.parameters(), theta)

    def rows(theta: np.ndarray) -> np.ndarray:
        put(theta)
        with torch.no_grad():
            return np.concatenate([data.residuals(model(points)), (theta - mean) / size])

    expected = optimize.least_squares(rows, mean, xtol=1e-12, ftol=1e-12).x
    put(mean)
    hf.PhysicsOnly(model, data, hf.GaussNewton(20), prior=hf.Prior(std)).run(1)
    np.testing.assert_allclose(theta_of(model), expected, rtol=1e-6)
    put(mean)
    net = hf.MLP(2, 1, width=8, depth=1, seed=2)
    answers = hf.Answers(hf.GaussNewton(20), hf.GaussNewton(5))
    weights = hf.Weights(b1=1e-9, b2=1.0)
    game = hf.Hyco(model, net, data, hf.RandomGhosts(20), answers=answers, prior=hf.Prior(std), weights=weights)
    game.run(2)
    np.testing.assert_allclose(theta_of(model), expected, rtol=1e-5)
    record = game.look(0)
    rest = np.sum(((theta_of(model) - mean) / size) ** 2) / len(SENSORS)
    plain = weights.potential(record.misfit_physical, record.misfit_synthetic, record.interaction)
    assert record.potential == pytest.approx(plain + rest / 1e-9, rel=1e-9)
    report = hf.trust_report(game).from_data
    assert np.all(np.isfinite(report.standard_errors))


def test_bad_priors_are_refused(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm))
    for std, message in (({"eta": 1.0}, "a prior names"), (0.0, "positive std"), ({"kappa.centres": -1.0}, "positive")):
        with pytest.raises(ValueError, match=message):
            hf.PhysicsOnly(model, data, prior=hf.Prior(std))
