"""Who sees what; weights and ghost points that follow a schedule; criteria that end a run."""

from __future__ import annotations

import math

from mpi4py import MPI

import numpy as np
import pytest
import torch
from test_gauss_newton import SENSORS, TRUTH, data_on, measured, model_at, theta_of

import hyco_fem as hf


def test_players_may_have_sensors_of_their_own(comm: MPI.Comm) -> None:
    """Disjoint sensors with different noise: each misfit is that of the player's own; the solver learns of the others'
    through the network."""
    model = model_at(comm, {"kappa.amplitudes": [1.0], "kappa.centres": [[0.3, 0.3]]})
    own, other = SENSORS[:3], SENSORS[3:]
    sensing = hf.Sensing(
        data_on(model, measured(comm, x=own), own, noise_std=0.01),
        data_on(model, measured(comm, x=other), other, noise_std=0.05),
    )
    net = hf.InputScaling(hf.MLP(2, 1, width=10, depth=1, seed=2), [[0, 0], [1, 1]])
    answers = hf.Answers(hf.GaussNewton(10), hf.GaussNewton(40))
    game = hf.Hyco(model, net, sensing, hf.RandomGhosts(80, fixed=True), answers=answers, weights=hf.Weights(b2=0.1))
    first = game.look(0)
    with torch.no_grad():
        expected = np.mean((SENSORS[3:, 0] * 0 + net(torch.from_numpy(other)).numpy() - measured(comm, x=other)) ** 2)
    assert first.misfit_synthetic == pytest.approx(expected / 0.05**2, rel=1e-10)
    game.run(6)
    np.testing.assert_allclose(theta_of(model), theta_of(model_at(comm, TRUTH)), rtol=0.1)


def test_a_player_without_data_has_no_misfit(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm))
    net = hf.MLP(2, 1, width=8, depth=1, seed=2)
    game = hf.Hyco(model, net, hf.Sensing(None, data), hf.RandomGhosts(30))
    result = game.run(2)
    assert all(math.isnan(r.misfit_physical) for r in result.history)
    assert not math.isnan(result.history[-1].misfit_synthetic)
    with pytest.raises(ValueError, match="neither player has data"):
        hf.Sensing(None, None)
    with pytest.raises(ValueError, match="b1 = 0"):
        hf.Hyco(model, net, hf.Sensing(None, data), weights=hf.Weights(1, 0, 1, 1))


def test_weights_and_ghost_points_may_follow_a_schedule(comm: MPI.Comm) -> None:
    """A weight of the interaction that begins at zero: the first round is each player's own."""
    model, twin = model_at(comm), model_at(comm)
    data, same = data_on(model, measured(comm)), data_on(twin, measured(comm))
    net = hf.MLP(2, 1, width=8, depth=1, seed=2)
    sizes: list[int] = []

    def count(number: int) -> int:
        sizes.append(10 + 5 * number)
        return sizes[-1]

    weights = lambda k: hf.Weights(b1=float(k > 0), b2=float(k > 0))  # noqa: E731
    game = hf.Hyco(model, net, data, hf.RandomGhosts(count), weights=weights)
    first = game.round(0)
    alone = hf.PhysicsOnly(twin, same, hf.AdamStep(5e-3))
    alone.round(0)
    np.testing.assert_allclose(theta_of(model), theta_of(twin), rtol=1e-12)
    assert math.isnan(first.potential)
    assert not math.isnan(game.round(1).potential)
    assert sizes == [10, 15]
    assert game.sampler.draw(2).n == 20


@pytest.mark.parametrize(
    ("stopping", "reason"),
    [
        (hf.Stopping(stagnation=1e-3), "stagnation"),
        (hf.Stopping(discrepancy=1.2), "discrepancy"),
        (hf.Stopping(gradient=1e-4), "tolerance"),
    ],
)
def test_a_run_says_why_it_stopped(comm: MPI.Comm, stopping: hf.Stopping, reason: str) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    result = hf.PhysicsOnly(model, data, hf.GaussNewton()).run(60, stopping=stopping)
    assert result.stop == reason
    assert result.rounds < 60
    with pytest.raises(ValueError, match="must be positive"):
        hf.Stopping(stagnation=0.0)
    with pytest.raises(ValueError, match="either tolerance or stopping"):
        hf.PhysicsOnly(model, data).run(1, tolerance=1.0, stopping=stopping)


def test_a_run_without_misfits_is_not_stopped_by_them() -> None:
    """As of a PINN without data: no loss is small, or stands still, that is not there."""
    history = [hf.Record(k) for k in range(9)]
    assert hf.Stopping(stagnation=1e-3, discrepancy=1.0).reason(history) is None
