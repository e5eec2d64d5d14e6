"""The game where numbers are easily wrong: components, priors, held-out sensors, residuals of zero, failed games."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, square
from dolfinx import fem
from hyco_games import KAPPA, data_of, heat, network, plate
from test_gauss_newton import BOX, SENSORS, START_AWAY, TRUTH, data_on, measured, model_at, theta_of, value_of
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.game.gauss_newton import root
from hyco_fem.game.identify import identify
from hyco_fem.game.player import Player, flat, put_flat
from hyco_fem.parallel import sum_array
from hyco_fem.pde.linear import SolveError

FITS = hf.Answers(hf.GaussNewton(3), hf.GaussNewton(4), hf.GaussNewton(3))


def small(seed: int = 2) -> hf.MLP:
    return hf.MLP(2, 1, width=4, depth=1, seed=seed)


def state_of(game: hf.Hyco) -> np.ndarray:
    return np.concatenate([flat(game.physical.parameters()), flat(game.synthetic.parameters())])


def noisy_plate(comm: MPI.Comm, n: int = 40) -> tuple[hf.PhysicalModel, hf.Data]:
    """A vector field at n sensors, with noise of a known size; the physics is right."""
    model = plate(comm).model
    rng = np.random.default_rng(0)
    points = hf.Points(model.V.mesh, rng.uniform(0.1, 0.9, (n, 2)))
    with torch.no_grad():
        values = points.gather(model(points))
    sigma = 0.01 * np.abs(values).max()
    return model, hf.Data(points, values + sigma * rng.standard_normal(values.shape), sigma)


# -- priors ----------------------------------------------------------------------------------------------------


def test_the_joint_objective_has_the_prior(comm: MPI.Comm) -> None:
    """As a number, as rows and in the record: all are the potential; its gradient moves θ towards the mean."""
    model = model_at(comm, START_AWAY)
    prior = hf.Prior(0.05, {"kappa.amplitudes": 1.0})
    data = data_on(model, measured(comm), noise_std=0.02)
    answers = hf.Answers(joint=hf.AdamStep(1e-3))
    ghosts = hf.RandomGhosts(20, fixed=True)
    game = hf.Hyco(model, small(), data, ghosts, schedule="joint", prior=prior, answers=answers)
    seen: list[Any] = []
    answer_to = game.together.answer_to
    game.together.answer_to = lambda objective: (seen.append(objective), answer_to(objective))[1]
    before = state_of(game)
    record = game.round(0)
    put_flat(game.together.parameters, before)
    r = seen[0].residuals()
    assert record.potential > (2.0 - 1.0) ** 2 / 0.05**2 / len(SENSORS)
    assert value_of(seen[0]) == pytest.approx(record.potential, rel=1e-12)
    assert float(sum_array(comm, np.array([r @ r]))[0]) == pytest.approx(record.potential, rel=1e-12)


def test_the_estimate_from_vector_data_is_the_maximum_a_posteriori(comm: MPI.Comm) -> None:
    """u = U/E: Σ |U/E − y|²/σ² + (E − m)²/s² has a derivative of zero, components counted once each."""
    setting = plate(comm)
    data = data_of(setting, 0.01)
    with torch.no_grad():
        U = data.points.gather(setting.model(data.points)) * KAPPA
    hf.PhysicsOnly(setting.model, data, hf.GaussNewton(30), prior=hf.Prior(0.3)).run(1)
    (E,) = theta_of(setting.model)
    data_slope = 2.0 * np.sum((U / E - setting.values) * (-U / E**2)) / 0.01**2
    prior_slope = 2.0 * (E - KAPPA) / 0.3**2
    assert abs(prior_slope) > 1.0
    assert data_slope + prior_slope == pytest.approx(0.0, abs=1e-3 * abs(prior_slope))


def test_a_prior_may_have_nothing_to_hold(comm: MPI.Comm) -> None:
    setting = heat(comm)
    setting.model.requires_grad_(False)
    game = hf.Hyco(setting.model, network(), data_of(setting, 0.02), hf.RandomGhosts(5), prior=hf.Prior(1.0))
    assert game.run(1).rounds == 1


def test_priors_bounds_and_boxes_that_do_not_fit_are_named(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm))
    for prior, message in (
        (
            hf.Prior(1.0, {"kappa.centres": [1, 2, 3]}),
            r"mean of 'kappa.centres' must be .* shape \(1, 2\)",
        ),
        (hf.Prior({"kappa.centres": [1, 2, 3]}), r"std of 'kappa.centres' must be .* shape \(1, 2\)"),
        (hf.Prior(1.0, {"kappa.centres": np.nan}), "mean of 'kappa.centres' must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.PhysicsOnly(model, data, prior=prior)
    for bounds, message in (
        ({"kappa.centres": ([0, 0, 0], 1)}, r"a bound of 'kappa.centres' must be a number or have shape \(1, 2\)"),
        ({"kappa.centres": (1, 0)}, "bounds of 'kappa.centres' must be in order"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.PhysicsOnly(model, data, hf.GaussNewton(bounds=bounds))
    for box in ({}, {"kappa.amplitudes": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="lower corners below upper ones"):
            hf.PhysicsOnly(model, data, hf.MultiStart(box, 4)).run(1)


# -- weights by rules --------------------------------------------------------------------------------------------


def test_noise_in_every_component_is_no_error_of_the_physics(comm: MPI.Comm) -> None:
    """χ² of 80 values at 40 sensors is about 80; b/a is then 1/(trusted σ)²."""
    model, data = noisy_plate(comm)
    game = hf.Hyco(model, network(2), data, answers=FITS)
    choice = hf.ModelDiscrepancy().choose(game)
    assert "passes" in choice.rule
    sigma = float(data.noise_std[0]) if len(data.points) else np.nan
    sigma = comm.allreduce(sigma if len(data.points) else 0.0, op=MPI.MAX)
    assert choice.weights.b2 == pytest.approx(1.0 / (0.1 * sigma) ** 2)


def test_a_strong_prior_takes_no_degrees_of_freedom(comm: MPI.Comm) -> None:
    """With θ held fast, all n values are free to differ from the model; without a prior n − p are."""
    degrees = []
    for prior in (None, hf.Prior(1e-6)):
        model = model_at(comm, TRUTH)
        data = data_on(model, measured(comm, 0.02), noise_std=0.02)
        game = hf.Hyco(model, small(), data, answers=FITS, prior=prior)
        degrees.append(hf.ModelDiscrepancy().choose(game).rule.split(", ")[-1])
    assert degrees == ["17 degrees)", "20 degrees)"]


def test_held_out_values_have_no_say_through_the_other_player(comm: MPI.Comm) -> None:
    """Each player has its own part of the sensors and its own noise; what is held out may be anything."""

    def fold(y: np.ndarray) -> tuple[list[float], np.ndarray]:
        model = model_at(comm, START_AWAY)
        all_of_them = data_on(model, y, noise_std=0.02)
        some = data_on(model, y[:12], SENSORS[:12], noise_std=0.05)
        game = hf.Hyco(model, small(), hf.Sensing(some, all_of_them), hf.RandomGhosts(20), answers=FITS)
        states: list[np.ndarray] = []
        trial = game.trial

        def watched(*arguments: Any) -> hf.Hyco:
            twin = trial(*arguments)
            run = twin.run

            def run_and_see(rounds: int) -> hf.Result:
                result = run(rounds)
                states.append(state_of(game))
                return result

            twin.run = run_and_see
            return twin

        game.trial = watched
        return rule.errors(game, 0), states[0]

    rule = hf.CrossValidation([hf.Weights()], folds=4, rounds=1)
    model = model_at(comm)
    y = measured(comm, 0.02)
    held = rule.parted(data_on(model, y), 0)[1].rows
    assert held[:12].any(), "else the other player sees none of them"
    (one,), here = fold(y)
    (other,), there = fold(np.where(held, y + 1.0, y))
    np.testing.assert_allclose(here, there, rtol=1e-9)
    assert other > 100.0 * one


def test_a_player_all_of_whose_sensors_are_held_out_is_told(comm: MPI.Comm) -> None:
    model = model_at(comm)
    rule = hf.CrossValidation([hf.Weights()], folds=4, rounds=1)
    data = data_on(model, measured(comm), noise_std=0.02)
    held = rule.parted(data, 0)[1]
    game = hf.Hyco(model, small(), hf.Sensing(data.only(held.rows), data), hf.RandomGhosts(20), answers=FITS)
    with pytest.raises(ValueError, match="use more folds"):
        rule.choose(game)


def test_a_discrepancy_game_that_fails_is_left_out(comm: MPI.Comm) -> None:
    """Neither is its candidate chosen, nor are those after it left untried; the models are as before."""
    model = model_at(comm, TRUTH)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    candidates = [hf.Weights(b1=1e-6, b2=10.0**k) for k in range(3)]
    game = hf.Hyco(model, small(), data, hf.RandomGhosts(20), answers=FITS)
    trial = game.trial

    def failing(weights: hf.Weights, *rest: Any) -> hf.Hyco:
        if weights is candidates[0]:
            raise SolveError("no convergence")
        return trial(weights, *rest)

    class Failing:
        def __init__(self, weights: hf.Weights, *rest: Any) -> None:
            self.arguments = weights, *rest

        def run(self, rounds: int) -> Any:
            return failing(*self.arguments).run(rounds)

    game.trial = Failing
    before = state_of(game)
    choice = hf.Discrepancy(candidates, rounds=1).choose(game)
    np.testing.assert_array_equal(state_of(game), before)
    assert np.isinf(choice.scores[0])
    assert len(choice.scores) > 1
    assert choice.weights is not candidates[0]


def test_the_discrepancy_of_vector_data_is_that_of_all_components(comm: MPI.Comm) -> None:
    """L adds components up: with two of them the noise alone leaves L = 2, which is level 1."""
    model, data = noisy_plate(comm)
    game = hf.Hyco(model, network(2), data, hf.RandomGhosts(20), answers=FITS)
    misfits = iter([1.4, 1.9, 2.3, 5.0])

    class Played:
        def __init__(self, *_: Any) -> None: ...

        def run(self, _: int) -> Any:
            return type("Result", (), {"history": [hf.Record(0, misfit_synthetic=next(misfits))]})

    game.trial = Played
    candidates = [hf.Weights(b2=b2) for b2 in (1.0, 2.0, 3.0, 4.0)]
    choice = hf.Discrepancy(candidates).choose(game)
    np.testing.assert_array_equal(choice.scores, [1.4, 1.9, 2.3])
    assert choice.weights is candidates[1]


def test_a_candidate_that_makes_no_game_is_refused_at_once(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm))
    rule = hf.CrossValidation([hf.Weights(), hf.Weights(b1=0)], folds=2)
    with pytest.raises(ValueError, match="no potential"):
        hf.Hyco(model, small(), data, weights=rule, schedule="joint")
    with pytest.raises(ValueError, match="physical player sees no data"):
        hf.Hyco(model, small(), hf.Sensing(None, data), weights=rule)


@pytest.mark.parametrize("kind", ["cross", "discrepancy"])
def test_an_error_while_weights_are_chosen_leaves_the_models_as_they_were(comm: MPI.Comm, kind: str) -> None:
    model = model_at(comm, START_AWAY)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    candidates = [hf.Weights(b2=1e-3), hf.Weights(b2=2e-3)]
    rule: Any = hf.Discrepancy(candidates, level=1e6, rounds=1)
    if kind == "cross":
        rule = hf.CrossValidation(candidates, folds=2, rounds=1)
    game = hf.Hyco(model, small(), data, hf.RandomGhosts(20), answers=FITS, weights=rule)
    before, trial = state_of(game), game.trial

    def spoilt(weights: hf.Weights, *rest: Any) -> hf.Hyco:
        if weights is candidates[1]:
            assert np.any(state_of(game) != before)
            raise RuntimeError("out of luck")
        return trial(weights, *rest)

    game.trial = spoilt
    with pytest.raises(RuntimeError, match="out of luck"):
        game.run(1)
    np.testing.assert_array_equal(state_of(game), before)


def test_games_of_groups_of_ranks_start_from_the_state_of_the_game(comm: MPI.Comm) -> None:
    def build(some: MPI.Comm) -> hf.Hyco:
        model = model_at(some, START_AWAY)
        data = data_on(model, measured(some, 0.02), noise_std=0.02)
        return hf.Hyco(model, small(), data, hf.RandomGhosts(20, fixed=True), answers=FITS, warm_up=8)

    scores = []
    for builder in (None, build):
        game = build(comm)
        game.weights = hf.CrossValidation([hf.Weights(b1=1e-3)], folds=2, rounds=1, build=builder)
        scores.append(game.run(1).choice.scores)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)


# -- error bars ------------------------------------------------------------------------------------------------


def test_a_perfect_fit_has_no_errors_and_one_without_a_spare_residual_says_nothing() -> None:
    J = np.array([[50.0, 10.0], [10.0, 90.0], [20.0, 20.0]])
    theta = np.array([1.0, 2.0])
    perfect = identify(["a", "b"], theta, J, np.zeros(3), known_noise=False)
    np.testing.assert_array_equal(perfect.standard_errors, 0.0)
    assert perfect.unseen == []
    square_one = identify(["a", "b"], theta, J[:2], np.array([1e-12, 0.0]), known_noise=False)
    assert np.isinf(square_one.standard_errors).all()
    assert np.isinf(square_one.noise_std)
    blind = identify(["a", "b"], theta, np.array([[1.0, 0.0]] * 3), np.zeros(3), known_noise=False)
    np.testing.assert_array_equal(blind.standard_errors, [0.0, np.inf])


def test_a_report_of_the_data_has_no_prior_in_it(comm: MPI.Comm) -> None:
    model = model_at(comm, TRUTH)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    with_prior, without = (
        hf.trust_report(hf.PhysicsOnly(model, data, hf.GaussNewton(2), prior=prior)).from_data
        for prior in (hf.Prior(1e-4), None)
    )
    np.testing.assert_allclose(with_prior.standard_errors, without.standard_errors, rtol=1e-10)


def test_a_report_passes_over_a_field_that_is_known(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    f = fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="f")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    known = hf.NodalField(V, 1.0).requires_grad_(False)
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: known, f: hf.Scalar(5.0)})
    alone = hf.PhysicsOnly(model, data_on(model, np.full(20, 0.3), noise_std=0.02), hf.GaussNewton(2))
    alone.run(1)
    report = hf.trust_report(alone)
    assert report.nash
    assert report.from_data.names == ["f.raw"]


def test_the_root_of_a_singular_matrix() -> None:
    J = np.random.default_rng(0).standard_normal((3, 5))
    R = root(J.T @ J)
    np.testing.assert_allclose(R.T @ R, J.T @ J, atol=1e-13)


def test_sensors_that_are_held_out_are_no_residuals(comm: MPI.Comm) -> None:
    model = model_at(comm)
    few = data_on(model, measured(comm)).only(np.arange(20) < 2)
    with pytest.warns(UserWarning, match="2 residuals for 3 parameters"):
        hf.PhysicsOnly(model, few, hf.GaussNewton(2)).run(1)


# -- many starts, and steps ----------------------------------------------------------------------------------------


def test_the_first_look_of_many_starts_is_where_the_player_was(comm: MPI.Comm) -> None:
    """Value and gradient: a tolerance relative to the gradient at the end would never be met."""
    model = model_at(comm, START_AWAY)
    answer = hf.GaussNewton(20, bounds=BOX)
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), hf.MultiStart(BOX, 4, answer=answer))
    start = alone.look(0)
    result = alone.run(5, tolerance=1e-6)
    first = result.history[0]
    assert first.misfit_physical == pytest.approx(start.misfit_physical, rel=1e-10)
    assert first.gradient_physical == pytest.approx(start.gradient_physical, rel=1e-8)
    assert result.stop == "tolerance"
    assert result.rounds == 2


def test_what_a_search_finds_out_of_bounds_is_brought_back(comm: MPI.Comm) -> None:
    """The truth, 3, lies outside: the end is on the bound."""
    model = model_at(comm, START_AWAY)
    answer = hf.GaussNewton(20, bounds={"kappa.amplitudes": (1.5, 2.5)})
    search = hf.MultiStart(BOX, 4, search=hf.GaussNewton(5), answer=answer)
    hf.PhysicsOnly(model, data_on(model, measured(comm)), search).run(1)
    assert theta_of(model)[0] == pytest.approx(2.5)


def two_numbers(comm: MPI.Comm, names: str) -> hf.PhysicalModel:
    """−κ Δu + u = f with κ and f unknown, as coefficients in this order."""
    V = fem.functionspace(square(comm, 3), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    c = {name: fem.Function(Q, name=name) for name in ("k", "f")}
    F = (c["k"] * ufl.inner(ufl.grad(u), ufl.grad(v)) + u * v - c["f"] * v) * ufl.dx
    start = {"k": 1.0, "f": 5.0}
    return hf.PhysicalModel(F, u, [dirichlet(V)], {c[name]: hf.Scalar(start[name]) for name in names})


def test_a_level_must_have_its_parameters_in_order(comm: MPI.Comm) -> None:
    """θ goes to the levels as one vector; after an error it is what it was."""
    model = two_numbers(comm, "kf")
    search = hf.MultiStart({"k.raw": (0.5, 2.0), "f.raw": (3.0, 9.0)}, 4, levels=[lambda some: two_numbers(some, "fk")])
    alone = hf.PhysicsOnly(model, data_on(model, np.full(20, 0.3), noise_std=0.02), search)
    with pytest.raises(ValueError, match="in this order"):
        alone.run(1)
    np.testing.assert_array_equal(theta_of(model), [1.0, 5.0])
    assert alone.player.method.found == []


def test_levels_are_for_the_physical_player(comm: MPI.Comm) -> None:
    model = model_at(comm)
    search = hf.MultiStart({"model.0.bias": (0.0, 1.0)}, 2, levels=[model_at])
    alone = hf.NetworkOnly(small(), data_on(model, measured(comm)), search)
    with pytest.raises(TypeError, match="leave out levels"):
        alone.run(1)


def test_a_start_that_is_not_finite_is_told(comm: MPI.Comm) -> None:
    p = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def objective() -> Tensor:
        return (p - 3.0).square() / (p > 1.0).double() / comm.size

    player = Player("cliff", {"x": p}, hf.MultiStart({"x": (0.0, 4.0)}, 4, answer=hf.LBFGS(5)), comm)
    with pytest.raises(FloatingPointError, match="cliff player is not finite at the start"):
        player.answer_to(objective)


def test_a_halved_learning_rate_stays_halved_under_a_schedule(comm: MPI.Comm) -> None:
    """LambdaLR makes each rate from the first one."""
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    answer = hf.AdamStep(0.1, schedule=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 0.9**k))
    player = Player("test", [p], answer, comm)

    def rate_after_a_round() -> float:
        player.answer_to(lambda: p.square().sum() / comm.size)
        return player.method.optimiser.param_groups[0]["lr"]

    assert rate_after_a_round() == pytest.approx(0.09)
    assert player.undo()
    assert rate_after_a_round() == pytest.approx(0.05 * 0.9**2)
