"""Players on ranks of their own: with no staleness the simultaneous game, with some the same equilibrium; no hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from split_games import (
    SHARES,
    VALUES,
    WORLD,
    Breaks,
    Quadratic,
    alike,
    best_responses,
    game_on,
    network,
    numbers,
    phi,
    plate,
    seen,
    several,
    theta,
    time_limit,  # noqa: F401
)
from test_script import ROOT, mpirun
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.game.split import Post, Word


def quadratic_in_round(number: int) -> hf.Weights:
    return hf.Weights(1.0, 2.0 + number**2, 1.0, 10.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "Adam, ghosts drawn afresh": {"warm_up": 3},
    "Adam, several steps, quadrature": {
        "answers": hf.Answers(hf.AdamStep(5e-2, 2), hf.AdamStep(1e-2, 3)),
        "ghosts": hf.QuadratureGhosts(2),
    },
    "L-BFGS": {"answers": hf.Answers(hf.LBFGS(3), hf.LBFGS(2)), "tolerance": 1e-7},
    "Gauss–Newton, fixed ghosts": {
        "answers": hf.Answers(hf.GaussNewton(2), hf.GaussNewton(2)),
        "ghosts": hf.RandomGhosts(10, fixed=True),
        "net": lambda: Quadratic(),
        "prior": hf.Prior(0.5),  # the data tell f/κ only
        "tolerance": 1e-7,  # whether a last trial lowers J is a matter of rounding
    },
    "Gauss–Newton with a prior": {
        "answers": hf.Answers(hf.GaussNewton(), hf.AdamStep(1e-2)),
        "prior": hf.Prior(0.5),
        "tolerance": 1e-9,
    },
    "the solver sees no data": {"weights": hf.Weights(a1=0.0)},
    "weights by round": {"weights": quadratic_in_round},
    "each sees what the other does not": {
        "data": lambda m: hf.Sensing(seen(m, rows=slice(0, 4)), seen(m, 2.0 * VALUES, slice(3, 6)))
    },
    "the network sees no data": {"data": lambda m: hf.Sensing(seen(m), None)},
    "a vector field, boundary and interior": {
        "model": plate,
        "net": lambda: network(2),
        "data": lambda m: seen(m, np.stack([VALUES, -VALUES], axis=1)),
        "ghosts": hf.GhostUnion([hf.RandomGhosts(8), hf.BoundaryGhosts(4)]),
    },
}


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_staleness_it_is_the_simultaneous_game(comm: MPI.Comm, variant: str, share: int) -> None:
    options = dict(VARIANTS[variant])
    tolerance, net = options.pop("tolerance", 1e-12), options.pop("net", network)
    split = hf.Split(comm, share)
    game, reference = game_on(split, net(), **options), game_on(split.comm, net(), **options)
    start = theta(game)
    result, expected = game.run(4), reference.run(4)
    alike(result, expected, tolerance)
    assert (result.rounds, result.rolled_back, result.stop) == (4, 0, "rounds")
    assert result.nash_residual == (result.history[-1].gradient_physical, result.history[-1].gradient_synthetic)
    assert result.staleness == {"physical": (0.0, 0), "synthetic": (0.0, 0)}
    # Both sides hold both models, and the solution of the θ found.
    np.testing.assert_allclose(phi(game), phi(reference), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(theta(game), theta(reference), rtol=tolerance)
    u, v = (g.physical.function.x.array for g in (game, reference))
    np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance * np.abs(v).max())
    assert max(abs(a - b) for a, b in zip(theta(game), start, strict=True)) > 1e-3, "nothing moved"


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets a side fall asleep between saying and hearing, so that the other side is a round ahead when it wakes."""

    def sleepy(here: bool) -> None:
        send = Post.send

        def slow(post: Post, word: Word) -> None:
            send(post, word)
            time.sleep(0.03 if here else 0.0)

        monkeypatch.setattr(Post, "send", slow)

    return sleepy


@several
@pytest.mark.parametrize("side", ["physical", "synthetic"])
def test_who_is_ahead_is_answered_for_the_round_at_hand(
    comm: MPI.Comm, sleepy: Callable[[bool], None], side: str
) -> None:
    split = hf.Split(comm)
    sleepy(split.side == side)
    alike(game_on(split).run(5), game_on(split.comm).run(5), 1e-12)
    # An error that is heard of a round too early.
    records: list[hf.Record] = []
    with pytest.raises(RuntimeError, match="out of order"):
        game_on(split, Breaks(3, RuntimeError("out of order"))).run(50, callbacks=[records.append])
    assert [r.round for r in records] == [0, 1, 2]


@several
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_all_ranks_have_the_same_result(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness))
    result = game.run(5)
    mine = (numbers(result).tolist(), result.summary(), theta(game), phi(game).tolist())
    assert all(mine == theirs for theirs in comm.allgather(mine))
    assert result.timings["physical.solve"] > 0
    assert result.timings["synthetic.total"] >= result.timings["synthetic.wait"] > 0
    assert {k: len(v) for k, v in result.summary()["staleness"].items()} == {"physical": 2, "synthetic": 2}


@several
def test_a_second_run_goes_on_where_the_first_ended(comm: MPI.Comm) -> None:
    split = hf.Split(comm)
    once, twice = game_on(split, warm_up=2), game_on(split, warm_up=2)
    whole, half, rest = once.run(5), twice.run(2), twice.run(3)
    np.testing.assert_allclose(numbers(rest), numbers(whole)[2:], rtol=1e-12)
    np.testing.assert_allclose(numbers(half), numbers(whole)[:3], rtol=1e-12)


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = network(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_each_side_evaluates_its_own_model_once_a_round(comm: MPI.Comm, staleness: int) -> None:
    split, net = hf.Split(comm, 1, staleness), Counting()
    game = game_on(split, net, ghosts=hf.RandomGhosts(10, fixed=True))
    solve, solves = game.physical.solve, []
    game.physical.solve = lambda: solves.append(1) or solve()
    game.run(5)
    # Five rounds and the look at the end; the synthetic side solves once for the θ that it has been given.
    assert (len(solves), net.calls) == ((6, 0) if split.is_physical else (1, 6))


# -- staleness -------------------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize("staleness", [1, 2])
def test_stale_answers_lead_to_the_same_equilibrium(comm: MPI.Comm, staleness: int) -> None:
    """The network takes its time, so that the solver is ahead as far as it may."""
    split = hf.Split(comm, WORLD.size // 2, staleness)
    game, reference = best_responses(split, pause=5e-3), best_responses(split.comm)
    result, expected = game.run(25), reference.run(25)
    assert max(expected.nash_residual) < 1e-6
    assert result.nash_residual == pytest.approx((0.0, 0.0), abs=1e-6)
    assert theta(game) == pytest.approx(theta(reference), rel=1e-7)
    np.testing.assert_allclose(phi(game), phi(reference), rtol=1e-5, atol=1e-6)
    ages = [result.staleness[side][1] for side in ("physical", "synthetic")]
    assert 1 <= max(ages) <= staleness


@several
@pytest.mark.parametrize("staleness", [1, 3])
def test_models_are_compared_at_the_points_of_the_answer(comm: MPI.Comm, staleness: int) -> None:
    """Ghosts drawn afresh, of which there are more from round to round: answers of other rounds have other shapes."""
    game = game_on(hf.Split(comm, 1, staleness), ghosts=hf.RandomGhosts(lambda number: 5 + number))
    result = game.run(12)
    assert result.rounds == 12
    assert np.isfinite(numbers(result)).all()
    first = game_on(hf.Split(comm).comm, ghosts=hf.RandomGhosts(lambda number: 5 + number)).run(0)
    np.testing.assert_allclose(numbers(result)[0], numbers(first)[0], rtol=1e-11)


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "tests").glob("test_split*.py")))
def test_split_games_on_several_ranks(file: str, ranks: int) -> None:
    run = mpirun(ranks, "-m", "pytest", "-q", ROOT / "tests" / file, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
