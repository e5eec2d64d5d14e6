"""The game with best responses in unusual company: vector fields, sensors outside, frozen parameters, no data."""

from __future__ import annotations

import math
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from hyco_games import KAPPA, plate
from hyco_games import SENSORS as PLACES
from test_gauss_newton import SENSORS, START_AWAY, TRUTH, data_on, measured, model_at, theta_of

import hyco_fem as hf
from hyco_fem.game.player import flat

BEST = hf.Answers(hf.GaussNewton(8), hf.GaussNewton(20), hf.GaussNewton(8))


def vector_game(comm: MPI.Comm, schedule: Any) -> tuple[hf.Hyco, hf.PhysicalModel]:
    """An unknown modulus E; data from E = 1.5 κ: u = U/E is a vector field."""
    setting = plate(comm)
    points = hf.Points(setting.model.V.mesh, PLACES)
    U = points.evaluate(setting.model.solve().detach(), setting.model.V) * KAPPA
    data = hf.Data(points, points.gather(U) / (1.5 * KAPPA), noise_std=1e-3)
    net = hf.InputScaling(hf.MLP(2, 2, width=8, depth=1, seed=1), [[0, 0], [1, 1]])
    ghosts = hf.GhostUnion([hf.RandomGhosts(25, fixed=True), hf.BoundaryGhosts(10, fixed=True)])
    weights = hf.Weights(b1=1.0, b2=1e3, decay=1e-4)
    return hf.Hyco(setting.model, net, data, ghosts, answers=BEST, weights=weights, schedule=schedule), setting.model


@pytest.mark.parametrize("schedule", ["alternating", "joint"])
def test_a_vector_field(comm: MPI.Comm, schedule: Any) -> None:
    game, model = vector_game(comm, schedule)
    last = game.run(2).history[-1]
    alone, own = vector_game(MPI.COMM_SELF, schedule)
    expected = alone.run(2).history[-1]
    np.testing.assert_allclose(theta_of(model), theta_of(own), rtol=1e-8)
    assert last.potential == pytest.approx(expected.potential, rel=1e-7)
    np.testing.assert_allclose(theta_of(model), 1.5 * KAPPA, rtol=1e-2)


def test_sensors_outside_the_mesh_take_no_part(comm: MPI.Comm) -> None:
    """The same answers, weights and folds as without them."""

    def play(x: np.ndarray, y: np.ndarray, rule: Any) -> tuple[np.ndarray, Any]:
        model = model_at(comm, START_AWAY)
        data = hf.Data(hf.Points(model.V.mesh, x, missing="mark"), y, noise_std=0.02)
        net = hf.InputScaling(hf.MLP(2, 1, width=6, depth=1, seed=2), [[0, 0], [1, 1]])
        game = hf.Hyco(model, net, data, hf.RandomGhosts(20, fixed=True), answers=BEST, weights=rule)
        choice = game.run(1).choice
        return theta_of(model), choice

    y = measured(comm, 0.02)
    x = np.concatenate([SENSORS[:5], [[3.0, 3.0]], SENSORS[5:]])
    more = np.concatenate([y[:5], [7.0], y[5:]])
    candidates = [hf.Weights(b1=0.1, b2=b2, decay=1e-4) for b2 in (1.0, 100.0)]
    for rule in (hf.ModelDiscrepancy(hf.Weights(decay=1e-3)), hf.CrossValidation(candidates, folds=4, rounds=1)):
        (theta, choice), (expected, reference) = play(x, more, rule), play(SENSORS, y, rule)
        np.testing.assert_allclose(choice.scores, reference.scores, rtol=1e-6)
        np.testing.assert_allclose(theta, expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["alternating", "simultaneous", "joint"])
def test_frozen_parameters_stay(comm: MPI.Comm, schedule: Any) -> None:
    """The centre of the bump is known, and the first layer of the network is fixed."""
    model = model_at(comm, TRUTH | {"kappa.amplitudes": [1.0]})
    model.coefficients["kappa"].centres.requires_grad_(False)
    net = hf.MLP(2, 1, width=8, depth=2, seed=2)
    fixed = next(iter(net.parameters()))
    fixed.requires_grad_(False)
    before = fixed.detach().clone()
    data = data_on(model, measured(comm))
    weights = hf.Weights(b1=1e-3, b2=1.0, decay=1e-6)
    hf.Hyco(model, net, data, hf.RandomGhosts(30), answers=BEST, weights=weights, schedule=schedule).run(3)
    np.testing.assert_allclose(theta_of(model), theta_of(model_at(comm, TRUTH)), rtol=1e-2)
    assert fixed.equal(before)
    report = hf.trust_report(hf.PhysicsOnly(model, data, hf.GaussNewton(3)))
    assert report.from_data.names == ["kappa.amplitudes[0]"]


@pytest.mark.parametrize("schedule", ["alternating", "joint"])
@pytest.mark.parametrize("blind", ["a1 = 0", "no data"])
def test_a_solver_that_sees_only_the_network(comm: MPI.Comm, schedule: Any, blind: str) -> None:
    """It learns κ through the network all the same, from dense data."""
    model = model_at(comm, START_AWAY)
    x = np.random.default_rng(3).uniform(0.02, 0.98, (60, 2))
    data = data_on(model, measured(comm, x=x), x, noise_std=1e-2)
    net = hf.HardBoundary(hf.MLP(2, 1, width=16, depth=1, seed=2), hf.box_distance([[0, 0], [1, 1]]))
    given = hf.Sensing(None, data) if blind == "no data" else data
    weights = hf.Weights(a1=0.0 if blind == "a1 = 0" else 1.0, b1=1.0, a2=1.0, b2=1.0, decay=1e-6)
    game = hf.Hyco(model, net, given, hf.DofGhosts(), answers=BEST, weights=weights, schedule=schedule)
    result = game.run(8)
    assert math.isnan(result.history[-1].misfit_physical) == (blind == "no data")
    # As well as a smooth network can follow a field that is linear on 5 × 5 cells; the start is one away.
    amplitude, *centre = theta_of(model)
    assert amplitude == pytest.approx(3.0, abs=0.8)
    np.testing.assert_allclose(centre, [0.5, 0.55], atol=0.03)
    assert np.isfinite(flat(net.parameters())).all()


# -- what a rule, a search or a schedule must not do ---------------------------------------------------------------


def test_a_discrepancy_whose_first_game_fails_goes_on(comm: MPI.Comm) -> None:
    """The first candidate's data weight is so large that J overflows."""
    model = model_at(comm, START_AWAY)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    net = hf.InputScaling(hf.MLP(2, 1, width=6, depth=1, seed=2), [[0, 0], [1, 1]])
    candidates = [hf.Weights(a1=1e308, a2=1e308), hf.Weights(b2=1.0, decay=1e-4), hf.Weights(b2=10.0, decay=1e-4)]
    game = hf.Hyco(
        model, net, data, hf.RandomGhosts(20, fixed=True), answers=BEST, weights=hf.Discrepancy(candidates, rounds=1)
    )
    choice = game.run(1).choice
    assert math.isinf(choice.scores[0])
    assert choice.weights in candidates[1:]


def test_a_search_beyond_the_bounds_of_the_answer_is_cut_at_them(comm: MPI.Comm) -> None:
    model = model_at(comm, TRUTH | {"kappa.amplitudes": [2.0]})
    bounds = {"kappa.amplitudes": (1.5, 2.5)}
    search = hf.MultiStart(
        {"kappa.amplitudes": (0.5, 5.0)}, 6, search=hf.GaussNewton(10), answer=hf.GaussNewton(10, bounds=bounds)
    )
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), search)
    before = alone.look(0)
    record = alone.round(0)
    assert (record.misfit_physical, record.gradient_physical) == (before.misfit_physical, before.gradient_physical)
    assert theta_of(model)[0] == pytest.approx(2.5)


def test_a_report_on_many_parameters(comm: MPI.Comm) -> None:
    """More than the QR takes: 240 amplitudes, of which the 20 sensors see few."""
    model = model_at(comm, START_AWAY)
    rng = np.random.default_rng(0)
    many = hf.GaussianBumps(np.full(240, 0.01), rng.uniform(0, 1, (240, 2)), 0.2, 1.0, trainable=("amplitudes",))
    model.coefficients["kappa"] = many
    x = rng.uniform(0.05, 0.95, (300, 2))
    data = data_on(model, 0.5 * np.ones(300), x, noise_std=0.1)
    found = hf.trust_report(hf.PhysicsOnly(model, data), steps=1).from_data
    assert len(found.singular_values) == 240
    assert len(found.unseen) > 200


def test_a_prior_on_nothing_costs_nothing(comm: MPI.Comm) -> None:
    model = model_at(comm)
    for p in model.parameters():
        p.requires_grad_(False)
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), prior=hf.Prior(1.0))
    assert alone.run(1).rounds == 1
