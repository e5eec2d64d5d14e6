"""Split games in checkpoints: what is gone on with is the game that was never interrupted; both sides come together."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from split_games import (
    ADAM,
    SHARES,
    VALUES,
    WORLD,
    Breaks,
    best_responses,
    game_on,
    phi,
    seen,
    several,
    theta,
    time_limit,  # noqa: F401
)
from test_checkpoint_files import Stateless, kept, names, on_root
from test_restart import Killed, same

import hyco_fem as hf
from hyco_fem.game import split_legs
from hyco_fem.game.baselines import NetworkOnly
from hyco_fem.game.loop import Clock
from hyco_fem.game.split_legs import Legs
from hyco_fem.io import checkpoint_file
from hyco_fem.io.checkpoint import Checkpoints

ROUNDS, EVERY, CUT = 9, 4, 6

# Serial sides with a direct solver; the ranks of a parallel one add up in the order in which they hear from each other.
EXACT = 0.0 if WORLD.size <= 2 else 1e-9
ANSWERS = {
    "Adam": {"answers": ADAM, "warm_up": 3},
    "L-BFGS": {"answers": hf.Answers(hf.LBFGS(3), hf.LBFGS(2, keep_memory=True))},
    "Gauss–Newton": {"answers": hf.Answers(hf.GaussNewton(2), hf.GaussNewton(2)), "prior": hf.Prior(0.5)},
}


def kill(record: hf.Record) -> None:
    if record.round == CUT - 1:
        raise Killed


def interrupted(game: Any, folder: Path, callback: Callable = kill) -> None:
    """Checkpoints every few rounds, and two rounds that no checkpoint has seen."""
    with pytest.raises(Killed), Checkpoints(folder, game, seconds=None, rounds=EVERY) as checkpoints:
        game.run(ROUNDS, callbacks=[checkpoints, callback])


def alike(found: hf.Result, expected: hf.Result, tolerance: float) -> None:
    assert (found.rounds, found.rolled_back, found.stop) == (expected.rounds, expected.rolled_back, expected.stop)
    assert len(found.history) == len(expected.history)
    for a, b in zip(found.history, expected.history, strict=True):
        same(a, b, tolerance)


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_resumed_game_is_the_uninterrupted_one(comm: MPI.Comm, folder: Path, name: str, share: int) -> None:
    """Whose history is that of a game without checkpoints, all to the last bit."""
    split = hf.Split(comm, share)
    whole, watched = (game_on(split, **ANSWERS[name]) for _ in range(2))
    expected = whole.run(ROUNDS)
    alike(kept(folder / "whole", watched, ROUNDS)[1], expected, EXACT)
    interrupted(game_on(split, **ANSWERS[name]), folder / "cut")
    game = game_on(split, **ANSWERS[name])
    done, result = kept(folder / "cut", game, ROUNDS)
    assert (done.round, [r.round for r in done.history]) == (EVERY, list(range(EVERY)))
    alike(result, expected, EXACT)
    np.testing.assert_allclose(theta(game), theta(whole), rtol=EXACT)
    np.testing.assert_allclose(phi(game), phi(whole), rtol=EXACT, atol=0.1 * EXACT)
    if whole.warm_up_result is not None:
        alike(game.warm_up_result, whole.warm_up_result, EXACT)
    mine = (result.summary(), theta(game), phi(game).tolist())
    assert all(mine == theirs for theirs in comm.allgather(mine))


@pytest.mark.skipif(WORLD.size < 3, reason="2 + 1 and 1 + 2 ranks, and 1 + 1")
@pytest.mark.parametrize(("before", "after"), [((2, 1), (3, 1)), ((3, 1), (2, 1)), ((3, 2), (3, 1))])
def test_a_game_goes_on_with_other_ranks(
    comm: MPI.Comm, folder: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """(ranks, of which for the network).  Those that are left over wait."""

    def on(where: tuple[int, int], play: Callable[[hf.Split], None]) -> None:
        ranks, share = where
        world = comm.Split(int(comm.rank >= ranks), comm.rank)
        if comm.rank < ranks:
            play(hf.Split(world, share))
        comm.Barrier()

    expected = game_on(hf.Split(comm), **ANSWERS["Adam"]).run(ROUNDS)

    def go_on(split: hf.Split) -> None:
        done, result = kept(folder, game_on(split, **ANSWERS["Adam"]), ROUNDS)
        assert done.round == EVERY
        alike(result, expected, 1e-9)

    on(before, lambda split: interrupted(game_on(split, **ANSWERS["Adam"]), folder))
    on(after, go_on)


# -- warm-up ---------------------------------------------------------------------------------------------------


class Interrupting:
    """Something happens before a round of the next warm-up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
        play = NetworkOnly.round

        def played(alone: NetworkOnly, at: int) -> hf.Record | None:
            if at == number:
                monkeypatch.setattr(NetworkOnly, "round", play)
                action()
            return play(alone, at)

        monkeypatch.setattr(NetworkOnly, "round", played)


@several
@pytest.mark.parametrize("share", SHARES)
def test_a_warm_up_goes_on_where_it_was(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    split, options = hf.Split(comm, share), {"warm_up": ROUNDS}
    whole = game_on(split, **options)
    expected = whole.run(2)

    def killed() -> None:
        raise Killed

    Interrupting(monkeypatch, CUT, killed)
    interrupted(game_on(split, **options), folder)
    assert names(comm, folder) == ["history.jsonl", "round-00000000-warm-up-00000004.pt"]
    game = game_on(split, **options)
    done, result = kept(folder, game, 2)
    assert (done.warm_up, done.history) == (EVERY, [])
    alike(result, expected, EXACT)
    alike(game.warm_up_result, whole.warm_up_result, EXACT)


@several
@pytest.mark.parametrize("side", ["physical", "synthetic"])
def test_sigterm_ends_a_warm_up(comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """Whichever side it comes to; later the game goes on, here or elsewhere."""
    split = hf.Split(comm)
    expected = game_on(split, warm_up=5).run(2)
    game = game_on(split, warm_up=5)
    with Checkpoints(folder, game, seconds=None) as checkpoints:
        if side == "physical":
            if split.is_physical:
                signal.raise_signal(signal.SIGTERM)
        else:
            Interrupting(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGTERM))
        result = game.run(2, callbacks=[checkpoints])
        assert (result.stop, result.rounds, game.warming) == ("signal", 0, 1)
        assert np.isnan(result.nash_residual).all()
        mine = (theta(game), phi(game).tolist())
        assert all(mine == theirs for theirs in comm.allgather(mine)), "both sides have the network as it is"
        assert names(comm, folder) == ["history.jsonl", "round-00000000-warm-up-00000001.pt"]
        alike(game.run(2, callbacks=[checkpoints]), expected, EXACT)
    comm.Barrier()
    on_root(comm, lambda: (folder / "round-00000002.pt").unlink())
    done, result = kept(folder, game_on(split, warm_up=5), 2)
    assert done.warm_up == 1
    alike(result, expected, EXACT)


# -- when, and how it ends -------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize(("staleness", "rank"), [(0, 0), (0, -1), (2, 0), (2, -1)])
def test_sigterm_on_one_rank_ends_the_game_with_a_checkpoint(
    comm: MPI.Comm, folder: Path, staleness: int, rank: int
) -> None:
    split = hf.Split(comm, 1, staleness)

    def terminate(record: hf.Record) -> None:
        if record.round == 3 and comm.rank == rank % comm.size:
            signal.raise_signal(signal.SIGTERM)

    game = game_on(split)
    with Checkpoints(folder, game) as checkpoints:
        result = game.run(200, callbacks=[checkpoints, terminate])
    assert result.stop == "signal"
    assert 4 <= result.rounds < (200 if staleness else 5), "with staleness at the end of a leg"
    assert f"round-{result.rounds:08d}.pt" in names(comm, folder)
    done, more = kept(folder, game_on(split), result.rounds + 3)
    assert (done.round, more.rounds, more.stop) == (result.rounds, result.rounds + 3, "rounds")


@several
@pytest.mark.parametrize("staleness", [1, 3])
def test_with_staleness_the_sides_come_together_for_a_checkpoint(comm: MPI.Comm, folder: Path, staleness: int) -> None:
    """Every so many rounds; each record comes to the callbacks once, in order."""
    split = hf.Split(comm, 1, staleness)
    told: list[int] = []
    game = game_on(split)
    with pytest.raises(Killed), Checkpoints(folder, game, seconds=None, rounds=5) as checkpoints:
        game.run(12, callbacks=[checkpoints, lambda r: told.append(r.round), kill])
    assert told[:5] == list(range(5))
    assert names(comm, folder) == ["history.jsonl", "round-00000005.pt"]
    told.clear()
    game = game_on(split)
    with Checkpoints(folder, game, seconds=None, rounds=5) as checkpoints:
        assert checkpoints.resume().round == 5
        result = game.run(12, callbacks=[checkpoints, lambda r: told.append(r.round)])
    assert told == list(range(5, 12))
    assert names(comm, folder) == ["history.jsonl", *(f"round-{k:08d}.pt" for k in (5, 10, 12))]
    assert [r.round for r in result.history] == list(range(13))
    assert (result.rounds, result.rolled_back, result.stop) == (12, 0, "rounds")
    assert len((folder / "history.jsonl").read_text().splitlines()) == 12


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_other_reasons_to_stop_end_a_game_that_is_kept(comm: MPI.Comm, folder: Path, staleness: int) -> None:
    """A callback, over legs; and a criterion, which a game that met it does not leave behind."""
    split = hf.Split(comm, 1, staleness)
    game = game_on(split)
    with Checkpoints(folder / "callback", game, seconds=None, rounds=2) as checkpoints:
        result = game.run(50, callbacks=[checkpoints, lambda record: comm.rank == 0 and record.round >= 6])
    assert result.stop == "callback"
    assert 7 <= result.rounds == game.next_round <= 7 + (2 * staleness + 1) * (staleness > 0)
    stopping = hf.Stopping(discrepancy=1e6)
    for _ in range(2):
        game = best_responses(split)
        with Checkpoints(folder / "met", game) as checkpoints:
            checkpoints.resume()
            result = game.run(50, stopping=stopping, callbacks=[checkpoints])
        assert result.stop == "discrepancy"
        assert (result.rounds, len(result.history)) == (game.next_round, game.next_round + 1)
    assert result.rounds <= 2 + 2 * staleness


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_disk_that_is_read_only_ends_both_sides(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    """In the warm-up, and in the game; what was written is whole, and nothing is left under way."""
    split = hf.Split(comm, 1, staleness)
    denied = PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    def refuse(record: hf.Record | None = None) -> None:
        if record is None or record.round == 2:
            monkeypatch.setattr(checkpoint_file.os, "replace", lambda *_: (_ for _ in ()).throw(denied))

    told = r"round-00000000-warm-up-00000002\.pt' cannot be written \(Read-only.*there is no checkpoint yet"
    game = game_on(split, warm_up=4)
    refuse()
    with pytest.raises(OSError, match=told), Checkpoints(folder / "warm", game, rounds=2) as checkpoints:
        game.run(8, callbacks=[checkpoints])
    monkeypatch.undo()
    assert names(comm, folder / "warm") == ["history.jsonl"]
    game = game_on(split)
    told = r"round-00000004\.pt' cannot be written \(Read-only.*last whole checkpoint is .*00000002\.pt"
    with pytest.raises(OSError, match=told), Checkpoints(folder / "game", game, rounds=2) as checkpoints:
        game.run(8, callbacks=[checkpoints, refuse])
    monkeypatch.undo()
    comm.Barrier()
    assert kept(folder / "game", game_on(split), 5)[1].rounds == 5


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_an_error_in_the_game_leaves_the_last_checkpoint(comm: MPI.Comm, folder: Path, staleness: int) -> None:
    split = hf.Split(comm, 1, staleness)
    game = game_on(split, Breaks(6, RuntimeError("out of order")))
    with pytest.raises(RuntimeError, match="out of order"), Checkpoints(folder, game, rounds=1) as checkpoints:
        game.run(50, callbacks=[checkpoints])
    last = names(comm, folder)[-1]
    assert last in {"round-00000004.pt", "round-00000005.pt"}
    done, result = kept(folder, game_on(split, Breaks(99)), 8)
    assert (done.path.name, result.rounds) == (last, 8)


@pytest.mark.parametrize(
    ("seconds", "rounds", "each", "asked", "lengths"),
    [
        (40.0, None, 0.5, None, [2, 4, 8, 8, 8]),  # four seconds
        (np.inf, None, 1.0, None, [2, 4, 5, 5]),  # five, to notice a signal
        (0.0, None, 0.5, None, [1, 1, 1]),
        (np.inf, 10, 1e-3, None, [2, 4, 3, 6, 4, 8, 2, 4]),
        (np.inf, 10, 1e-3, 107, [2, 4, 8, 2, 4, 6, 10]),  # a checkpoint for a signal, and ten rounds from there
        (60.0, None, 9.0, None, [1, 1]),
    ],
)
def test_a_leg_is_as_long_as_the_time_allows(
    comm: MPI.Comm,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    rounds: int | None,
    each: float,
    asked: int | None,
    lengths: list[int],
) -> None:
    """It grows from one round by and by; never beyond a tenth of the seconds, or the round of a checkpoint."""
    now = [0.0]
    monkeypatch.setattr(split_legs.time, "monotonic", lambda: now[0])
    game = SimpleNamespace(split=SimpleNamespace(staleness=1), comm=comm, clock=Clock(), next_round=100)
    written = [game.next_round]

    def since() -> int:
        return game.next_round - written[-1]

    def keep() -> None:
        if game.next_round == asked or (rounds is not None and since() >= rounds):
            written.append(game.next_round)

    keeper = SimpleNamespace(seconds=seconds, rounds=rounds, keep=keep, rounds_since=since)
    legs, number = Legs(game, keeper), 101
    assert legs.end == number
    found = []
    for _ in lengths:
        now[0] += each * (number - game.next_round)
        legs.keep(number)
        found.append(legs.end - number)
        number = legs.end
    assert found == lengths
    assert rounds is None or max(np.diff(written)) <= rounds


# -- what does not fit -----------------------------------------------------------------------------------------


@several
def test_a_split_game_and_another_do_not_go_on_with_each_other(comm: MPI.Comm, folder: Path) -> None:
    split = hf.Split(comm)
    kept(folder / "split", game_on(split), 2)
    kept(folder / "whole", game_on(comm), 2)
    for name, game, told in (
        ("split", game_on(comm), "game is 'SplitHyco' there, and 'Hyco' here"),
        ("whole", game_on(split), "game is 'Hyco' there, and 'SplitHyco' here"),
    ):
        with Checkpoints(folder / name, game) as checkpoints, pytest.raises(ValueError, match=told):
            checkpoints.resume()


@several
@pytest.mark.parametrize("player", ["physical", "synthetic"])
def test_an_answer_without_a_state_is_refused_on_both_sides(comm: MPI.Comm, folder: Path, player: str) -> None:
    answers = hf.Answers(**{player: Stateless()})
    with pytest.raises(ValueError, match=f"the answer of the {player} player, Stateless, cannot be kept"):
        Checkpoints(folder, game_on(hf.Split(comm), answers=answers))


@several
def test_a_game_with_other_data_is_refused(comm: MPI.Comm, folder: Path) -> None:
    split = hf.Split(comm)
    kept(folder, game_on(split), 2)
    game = game_on(split, data=lambda model: seen(model, 2.0 * VALUES))
    with Checkpoints(folder, game) as checkpoints, pytest.raises(ValueError, match=r"identity\['data'\] is"):
        checkpoints.resume()
