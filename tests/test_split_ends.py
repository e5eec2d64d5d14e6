"""How split games end: on both sides, with one story, and with nothing left under way; what is refused."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from cases import dirichlet
from dolfinx import fem
from split_games import (
    SENSORS,
    SHARES,
    VALUES,
    Breaks,
    Cliff,
    best_responses,
    game_on,
    heat,
    network,
    numbers,
    seen,
    several,
    theta,
    time_limit,  # noqa: F401
)

import hyco_fem as hf

# -- how it ends -----------------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize(("staleness", "rank"), [(0, 0), (0, -1), (1, 0), (2, -1)])
def test_a_callback_that_is_true_on_one_rank_stops_all(comm: MPI.Comm, staleness: int, rank: int) -> None:
    game, told = game_on(hf.Split(comm, 1, staleness)), []

    def callback(record: hf.Record) -> bool:
        told.append(record.round)
        return comm.rank == rank % comm.size and record.round >= 2

    result = game.run(50, callbacks=[callback])
    assert result.stop == "callback"
    assert told == list(range(result.rounds)), "each round is told once, in order, on every rank"
    assert 3 <= result.rounds <= 3 + (2 * staleness + 1) * (staleness > 0)


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_tolerance_stops_both_sides(comm: MPI.Comm, staleness: int) -> None:
    split = hf.Split(comm, 1, staleness)
    result, expected = best_responses(split).run(30, tolerance=1e-3), best_responses(split.comm).run(30, tolerance=1e-3)
    assert result.stop == expected.stop == "tolerance"
    if staleness == 0:
        assert result.rounds == expected.rounds
    assert result.rounds < 30


@several
@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("player", ["physical", "synthetic"])
def test_a_step_to_a_loss_that_is_not_finite_is_taken_back(comm: MPI.Comm, player: str, rounds: int) -> None:
    """Steps of 2 lead the network, whose data are 100, over its cliff; one of 1e152 leads (u/σ)² to overflow."""
    if player == "synthetic":
        options: dict[str, Any] = {"answers": hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(2.0))}
        options |= {"data": lambda m: seen(m, np.full(6, 100.0)), "weights": hf.Weights()}
    else:
        options = {"answers": hf.Answers(physical=hf.AdamStep(1e152)), "weights": hf.Weights()}
        options["model"] = lambda c: heat(c, kappa=hf.Scalar(2.0).requires_grad_(False))
        options["data"] = lambda m: hf.Data(hf.Points(m.V.mesh, SENSORS), VALUES, 1e-10)
    split = hf.Split(comm)
    games = [game_on(where, Cliff(), **options) for where in (split, split.comm)]
    result, expected = (game.run(rounds) for game in games)
    assert result.rolled_back == expected.rolled_back > 0
    np.testing.assert_allclose(numbers(result), numbers(expected), rtol=1e-11)
    assert np.isfinite(numbers(result)).all()


@several
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_start_that_is_not_finite_is_an_error_on_all_ranks(comm: MPI.Comm, staleness: int) -> None:
    for rounds in (0, 3):
        game = game_on(hf.Split(comm, 1, staleness), Cliff(2.0))
        with pytest.raises(FloatingPointError, match="synthetic player is not finite at the start"):
            game.run(rounds)


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_twenty_steps_taken_back_in_a_row_are_enough(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness), Breaks(3))
    with pytest.raises(FloatingPointError, match="last 20 steps"):
        game.run(100)


def message(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize(("lr", "error"), [(50.0, hf.CoefficientError), (1e160, hf.SolveError)])
def test_an_error_of_the_physical_side_ends_both(
    comm: MPI.Comm, lr: float, error: type[Exception], staleness: int, share: int
) -> None:
    """κ = θ₀ becomes negative, or the load so large that u overflows."""
    kappa, load = hf.Scalar(2.0), hf.Scalar(5.0)
    (load if error is hf.CoefficientError else kappa).requires_grad_(False)
    split, records = hf.Split(comm, share, staleness), []
    game = game_on(
        split,
        model=lambda c: heat(c, kappa, load),
        data=lambda m: seen(m, np.full(6, 100.0)),
        answers=hf.Answers(physical=hf.AdamStep(lr)),
        weights=hf.Weights(),
    )
    with pytest.raises(error) as caught:
        game.run(50, callbacks=[records.append])
    assert len(set(comm.allgather(message(caught.value)))) == 1
    assert theta(game) == [2.0, 5.0], "the step is undone"
    if staleness == 0:
        assert [r.round for r in records] == [0]
    # Nothing is left under way: the next game hears its own words.
    assert game_on(split).run(2).rounds == 2


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("last", [0, 4])
def test_an_error_of_the_network_ends_both(comm: MPI.Comm, last: int, staleness: int, share: int) -> None:
    split = hf.Split(comm, share, staleness)
    game = game_on(split, Breaks(last, RuntimeError("out of order")))
    with pytest.raises(RuntimeError, match="out of order"):
        game.run(50)
    assert game_on(split).run(2).rounds == 2


@several
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_network_that_does_not_fit_is_an_error_that_says_why(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness), network(2), data=lambda m: hf.Sensing(seen(m), None))
    with pytest.raises(ValueError, match="the models differ in shape at the ghost points") as caught:
        game.run(3)
    assert len(set(comm.allgather(message(caught.value)))) == 1


@several
@pytest.mark.parametrize(("staleness", "rank"), [(0, -1), (2, 0)])
def test_an_error_in_a_callback_of_one_rank_is_raised_on_all(comm: MPI.Comm, staleness: int, rank: int) -> None:
    split = hf.Split(comm, 1, staleness)

    def callback(record: hf.Record) -> None:
        if comm.rank == rank % comm.size and record.round == 3:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        game_on(split).run(50, callbacks=[callback])
    assert game_on(split).run(2).rounds == 2


@several
def test_a_warning_that_is_an_error_ends_both(comm: MPI.Comm) -> None:
    """Only the physical side warns of a parameter without influence; tests turn warnings into errors."""

    def bump(where: MPI.Comm) -> hf.PhysicalModel:
        return heat(where, load=hf.GaussianBumps([0.0], [[0.4, 0.6]], 0.3, background=5.0))

    split = hf.Split(comm)
    with pytest.raises(UserWarning, match=r"does not depend on '.*f\.centres' at the start"):
        game_on(split, model=bump).run(5)
    assert game_on(split).run(2).rounds == 2


# -- what is refused -------------------------------------------------------------------------------------------


def test_ranks_that_cannot_be_split_are_refused(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="at least two ranks"):
        hf.Split(MPI.COMM_SELF)
    if comm.size > 1:
        for share in (0, comm.size, 1.5):
            with pytest.raises(ValueError, match="synthetic_ranks must be between 1 and"):
                hf.Split(comm, share)
        for staleness in (-1, 0.5):
            with pytest.raises(ValueError, match="staleness must be a whole number"):
                hf.Split(comm, 1, staleness)


@several
def test_arguments_that_do_not_fit_are_refused(comm: MPI.Comm) -> None:
    split = hf.Split(comm)

    def wrong(**options: Any) -> Any:
        physical = heat(options.pop("comm", split.comm))
        data = options.pop("data", None) or seen(physical)
        return hf.SplitHyco(physical, network(), data, options.pop("ghosts", None), split=split, **options)

    with pytest.raises(ValueError, match=r"the physical model lives on .* build mesh, models and data on split.comm"):
        wrong(comm=comm)
    if split.comm.size < comm.size:
        elsewhere = seen(heat(comm))
        with pytest.raises(ValueError, match="the data lives on"):
            wrong(data=elsewhere)
    with pytest.raises(ValueError, match="DofGhosts compare the models at every dof"):
        wrong(ghosts=hf.DofGhosts())
    for rule in (hf.GradientBalance(), hf.Discrepancy([hf.Weights()])):
        with pytest.raises(ValueError, match="a split game has no"):
            wrong(weights=rule)
    with pytest.raises(ValueError, match="warm_up must not be negative"):
        wrong(warm_up=-1)
    with pytest.raises(ValueError, match="rounds must be a number"):
        wrong().run(-1)
    with pytest.raises(ValueError, match="either tolerance or stopping"):
        wrong().run(1, tolerance=0.1, stopping=hf.Stopping(gradient=0.1))


@several
def test_sides_that_differ_are_refused(comm: MPI.Comm) -> None:
    split = hf.Split(comm)
    with pytest.raises(ValueError, match="is not the same on rank"):
        game_on(split, hf.MLP(2, 1, width=6, depth=2, seed=int(split.is_physical)))
    with pytest.raises(ValueError, match="different ghost points"):
        game_on(split, ghosts=hf.RandomGhosts(10, seed=int(split.is_physical)))
    physical = heat(split.comm)
    V = physical.V
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
    field = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.NodalField(V, 1.5)})
    with pytest.raises(ValueError, match=r"'kappa\..*' is a field"):
        hf.SplitHyco(field, network(), seen(field), split=split)
