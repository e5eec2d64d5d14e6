"""Everything that can interrupt the game: reasons to stop, steps that are taken back, what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, square
from dolfinx import fem
from hyco_games import LOAD, data_of, game_of, heat, network, number, theta_of
from torch import Tensor, nn

import hyco_fem as hf

# -- reasons to stop -------------------------------------------------------------------------------------------


def test_a_callback_that_is_true_on_one_rank_stops_all(comm: MPI.Comm) -> None:
    seen: list[int] = []

    def callback(record: hf.Record) -> bool:
        seen.append(record.round)
        return comm.rank == comm.size - 1 and record.round == 2

    result = game_of(heat(comm)).run(10, callbacks=[lambda record: None, callback])
    assert (result.stop, result.rounds) == ("callback", 3)
    assert seen == [0, 1, 2]


def test_an_error_in_a_callback_of_one_rank_is_raised_on_all(comm: MPI.Comm) -> None:
    def callback(record: hf.Record) -> None:
        if comm.rank == comm.size - 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        game_of(heat(comm)).run(10, callbacks=[callback])


def test_tolerance_stops_when_both_gradients_have_fallen(comm: MPI.Comm) -> None:
    def gradients(record: hf.Record) -> np.ndarray:
        return np.array([record.gradient_physical, record.gradient_synthetic])

    everything = [gradients(r) for r in game_of(heat(comm)).run(60).history[:-1]]
    fallen = [bool(np.all(g <= 0.5 * everything[0])) for g in everything]
    expected = fallen.index(True) + 1
    assert 1 < expected < 60, "the test needs a run in which they fall"
    result = game_of(heat(comm)).run(60, tolerance=0.5)
    assert (result.stop, result.rounds) == ("tolerance", expected)
    setting = heat(comm)
    alone = hf.PhysicsOnly(setting.model, data_of(setting)).run(5, tolerance=1.0)
    assert (alone.stop, alone.rounds) == ("tolerance", 1), "a player that does not take part has nothing to lower"


def test_no_rounds_tell_the_state_as_it_is(comm: MPI.Comm) -> None:
    setting = heat(comm)
    result = game_of(setting).run(0)
    assert (result.rounds, len(result.history), result.stop) == (0, 1, "rounds")
    assert theta_of(result) == pytest.approx([float(t) for t in setting.theta])
    for wrong in (-1, 1.5, math.nan):
        with pytest.raises((ValueError, RuntimeError)):
            game_of(setting).run(wrong)


# -- steps that are taken back ---------------------------------------------------------------------------------


class Cliff(nn.Module):
    """u = w, but NaN once w > edge; a step of Adam moves w by the learning rate, since the data lie far above."""

    def __init__(self, w: float = 0.0, edge: float = 0.6) -> None:
        super().__init__()
        self.w, self.edge = nn.Parameter(number(w)), edge

    def forward(self, x: Tensor) -> Tensor:
        return (self.w if self.w <= self.edge else self.w * math.nan).expand(len(x))


def cliff(comm: MPI.Comm, kind: str, **options: Any) -> tuple[Any, Cliff, Any]:
    """A trainer whose network goes over the cliff with its first step; the network, and its player."""
    net, answer = Cliff(**options), hf.AdamStep(1.0)
    setting = heat(comm, values=np.full(6, 100.0))
    if kind == "network only":
        alone = hf.NetworkOnly(net, data_of(setting), answer)
        return alone, net, alone.player
    game = game_of(setting, net=net, schedule=kind, answers=hf.Answers(hf.AdamStep(1e-3), answer))
    return game, net, game.players[1]


# In the alternating game the physical player sees the new network in the same round, in the others the next round does.
ROUNDS_OF = {"network only": [0, 2], "simultaneous": [0, 2], "alternating": [1, 2]}


@pytest.mark.parametrize("kind", ROUNDS_OF)
def test_a_step_to_a_loss_that_is_not_finite_is_taken_back(comm: MPI.Comm, kind: str) -> None:
    trainer, net, player = cliff(comm, kind)
    result = trainer.run(2)
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5
    assert (result.rounds, result.rolled_back) == (1, 1)
    assert [r.round for r in result.history] == ROUNDS_OF[kind]
    for record in result.history:
        numbers = [v for v in record.flat().values() if not math.isnan(v)]
        assert len(numbers) >= 3
        assert np.isfinite(numbers).all()
    if kind != "alternating":
        assert net.w.item() == 0.0, "as before the step"
        result = trainer.run(1)
    assert net.w.item() == pytest.approx(0.5), "half a step, by a fresh Adam, and no cliff"
    assert result.history[-1].misfit_synthetic == pytest.approx(99.5**2)


@pytest.mark.parametrize("kind", ["network only", "simultaneous"])
def test_the_last_step_of_a_run_is_taken_back_as_well(comm: MPI.Comm, kind: str) -> None:
    trainer, net, player = cliff(comm, kind)
    result = trainer.run(1)
    assert (result.rounds, result.rolled_back, net.w.item()) == (1, 1, 0.0)
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5
    # Only θ has moved since the first round, and that a little.
    assert result.nash_residual[1] == pytest.approx(result.history[0].gradient_synthetic, rel=1e-3)


@pytest.mark.parametrize("kind", ROUNDS_OF)
def test_a_start_that_is_not_finite_is_an_error(comm: MPI.Comm, kind: str) -> None:
    for rounds in (0, 3):
        trainer, net, _ = cliff(comm, kind, w=2.0)
        with pytest.raises(FloatingPointError, match="synthetic player is not finite at the start"):
            trainer.run(rounds)
        assert net.w.item() == 2.0


class Breaks(nn.Module):
    """A network that gives NaN in some calls, whatever its weight."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.w, self.bad, self.calls = nn.Parameter(number(0.0)), bad, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.w * math.nan if self.bad(self.calls - 1) else self.w).expand(len(x))


def test_twenty_steps_taken_back_in_a_row_are_enough(comm: MPI.Comm) -> None:
    net, records = Breaks(lambda call: call >= 3), []
    alone = hf.NetworkOnly(net, data_of(heat(comm)), hf.AdamStep(0.1))
    with pytest.raises(FloatingPointError, match=r"the synthetic player diverges: .* last 20 steps"):
        alone.run(100, callbacks=[records.append])
    assert [r.round for r in records] == [0, 1, 2]
    assert alone.next_round == 23
    assert alone.player.method.optimiser.param_groups[0]["lr"] == 0.1 / 2**20
    now_and_then = hf.NetworkOnly(Breaks(lambda call: call % 10 != 0), data_of(heat(comm)), hf.AdamStep(0.1))
    result = now_and_then.run(50)
    assert (result.rounds, result.rolled_back) == (5, 45), "many, but not in a row"


@pytest.mark.parametrize("kind", ["game", "physics only"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_solution_too_large_for_its_loss_is_taken_back(comm: MPI.Comm, kind: str, rounds: int) -> None:
    """The load steps to 1e152: u is finite, (u/σ)² is not.  One round: only the look at the end can see it."""
    setting = heat(comm)
    setting.model.coefficients["kappa"].requires_grad_(False)
    data, answer = data_of(setting, 1e-10), hf.AdamStep(1e152)
    if kind == "game":
        game = hf.Hyco(setting.model, network(), data, hf.RandomGhosts(10), answers=hf.Answers(physical=answer))
        result, player = game.run(rounds), game.players[0]
    else:
        alone = hf.PhysicsOnly(setting.model, data, answer)
        result, player = alone.run(rounds), alone.player
    assert (result.rounds, result.rolled_back) == (1, 1)
    assert theta_of(result) == [LOAD]
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5e152
    assert math.isfinite(result.history[-1].misfit_physical)


@pytest.mark.parametrize("kind", ["game", "physics only"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("lr", "error"), [(50.0, hf.CoefficientError), (1e160, hf.SolveError)])
def test_a_step_to_a_pde_that_cannot_be_solved_is_undone(
    comm: MPI.Comm, kind: str, rounds: int, lr: float, error: type[Exception]
) -> None:
    """κ = θ₀ becomes negative, or the load so large that u overflows."""
    setting = heat(comm, values=np.full(6, 100.0))
    unknown = "kappa" if error is hf.CoefficientError else "f"
    for name, coefficient in setting.model.coefficients.items():
        coefficient.transform = hf.Identity()
        coefficient.raw.requires_grad_(name == unknown)
    start = setting.model.coefficients[unknown].raw.item()
    answers = hf.Answers(physical=hf.AdamStep(lr))
    if kind == "game":
        trainer: Any = game_of(setting, answers=answers)
        player = trainer.players[0]
    else:
        trainer = hf.PhysicsOnly(setting.model, data_of(setting), answers.physical)
        player = trainer.player
    records: list[hf.Record] = []
    with pytest.raises(error):
        trainer.run(rounds, callbacks=[records.append])
    assert [r.round for r in records] == [0]
    assert setting.model.coefficients[unknown].raw.item() == start
    assert player.method.optimiser.param_groups[0]["lr"] == lr / 2


# -- what does not fit -----------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """A network with an error of its own on the last rank."""

    def __init__(self, comm: MPI.Comm, calls: int) -> None:
        super().__init__()
        self.net, self.comm, self.left = network(), comm, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0 and self.comm.rank == self.comm.size - 1:
            raise ValueError("not here")
        return self.net(x)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_error_of_the_network_on_one_rank_is_raised_on_all(comm: MPI.Comm, calls: int) -> None:
    with pytest.raises(ValueError, match="not here"):
        game_of(heat(comm), net=Elsewhere(comm, calls)).run(2)
    with pytest.raises(ValueError, match="not here"):
        hf.NetworkOnly(Elsewhere(comm, calls), data_of(heat(comm))).run(5)


def test_a_network_that_does_not_fit_is_an_error_that_says_why(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match=r"values of shape .*sensors"):
        game_of(heat(comm), net=network(2)).run(1)
    with pytest.raises(TypeError, match=r"float32.*\.double\(\)"):
        game_of(heat(comm), net=Single()).run(1)


class Single(nn.Module):
    """A network that answers in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].float()


def test_ranks_must_have_the_same_network(comm: MPI.Comm) -> None:
    if comm.size == 1:
        hf.NetworkOnly(network(seed=comm.rank), data_of(heat(comm)))
        return
    for build in (lambda net: game_of(heat(comm), net=net), lambda net: hf.NetworkOnly(net, data_of(heat(comm)))):
        with pytest.raises(ValueError, match="is not the same on rank 1 as on rank 0"):
            build(network(seed=comm.rank))


def test_arguments_that_mean_nothing_are_refused(comm: MPI.Comm) -> None:
    setting = heat(comm)
    with pytest.raises(ValueError, match="schedule must be"):
        game_of(setting, schedule="both")
    with pytest.raises(ValueError, match="warm_up must not be negative"):
        game_of(setting, warm_up=-1)
    for name in ("a1", "b1", "a2", "b2"):
        for wrong in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"weight {name}"):
                hf.Weights(**{name: wrong})
    assert math.isnan(hf.Weights(b1=0.0).potential(1.0, 1.0, 1.0)), "without both pulls there is no potential"


def test_a_pde_without_unknowns_takes_part_and_does_not_move(comm: MPI.Comm) -> None:
    setting = heat(comm)
    setting.model.requires_grad_(False)
    result = game_of(setting, weights=hf.Weights(b2=10.0)).run(30)
    assert result.parameters == {}
    assert result.nash_residual[0] == 0.0
    assert result.history[-1].misfit_physical == result.history[0].misfit_physical
    assert result.history[-1].interaction < 0.5 * result.history[0].interaction
    assert setting.model.coefficients["f"].value == LOAD


def test_a_parameter_without_influence_is_warned_of_and_stays(comm: MPI.Comm) -> None:
    class Idle(hf.Scalar):
        def __init__(self) -> None:
            super().__init__(2.0)
            self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: Idle()})
    data = hf.Data(hf.Points(V.mesh, [[0.3, 0.4], [0.6, 0.5]]), [0.2, 0.3])
    with pytest.warns(UserWarning, match="does not depend on 'coefficients.kappa.idle' at the start"):
        hf.PhysicsOnly(model, data).run(3)
    np.testing.assert_array_equal(model.coefficients["kappa"].idle.detach().numpy(), [1.0, 1.0])
    assert model.coefficients["kappa"].raw.item() != 2.0
