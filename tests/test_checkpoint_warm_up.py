"""A warm-up that is killed, or ended by a signal, goes on where it was; signals in a choice of weights are obeyed."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from test_checkpoint_files import cut, kept, names, on_root
from test_restart import BEST, EXACT, Killed, chosen, decaying, field, hyco, same, values

import hyco_fem as hf
from hyco_fem.io.checkpoint import Checkpoints

ROUNDS, WARM_UP, EVERY, CUT = 4, 9, 4, 6
ANSWERS: dict[str, hf.Answers] = {
    "Adam": hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2, schedule=decaying)),
    "Adam, two steps": hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2, 2)),
    "L-BFGS": hf.Answers(hf.LBFGS(2), hf.LBFGS(1, keep_memory=True)),
    "Gauss–Newton": BEST,
}


def warm(comm: MPI.Comm, name: str = "Adam", **options: Any) -> hf.Hyco:
    """A game whose warm-up has nine rounds."""
    answers = ANSWERS[name]
    steps = WARM_UP * answers.synthetic.steps
    options = {"answers": answers, "warm_up": steps, "weights": hf.Weights(decay=1e-3)} | options
    return hyco(comm, **options)


def at_round(game: hf.Hyco, number: int, action: Callable[[], None]) -> None:
    """Do something in the warm-up of a game, when so many rounds of it were played."""
    make = game.answers.synthetic.method

    class Answer:
        """The answer of the game, to which something happens."""

        steps = game.answers.synthetic.steps

        def method(self, player: Any) -> Any:
            method = make(player)
            improve, left = method.improve, [number]

            def counted(objective: Any) -> Any:
                left[0] -= 1
                if left[0] == -1:
                    action()
                return improve(objective)

            method.improve = counted
            return method

    game.answers = hf.Answers(game.answers.physical, Answer(), game.answers.joint)


def killed(comm: MPI.Comm, folder: Path, name: str = "Adam") -> None:
    """A run that ends in the middle of its warm-up, two rounds after its only checkpoint."""

    def kill() -> None:
        raise Killed

    game = warm(comm, name)
    at_round(game, CUT, kill)
    with pytest.raises(Killed), Checkpoints(folder, game, seconds=None, rounds=EVERY) as checkpoints:
        game.run(ROUNDS, callbacks=[checkpoints])
    assert names(comm, folder) == ["history.jsonl", "round-00000000-warm-up-00000004.pt"]


def alike(found: hf.Result, expected: hf.Result, tolerance: float) -> None:
    assert (found.rounds, found.rolled_back, found.stop) == (expected.rounds, expected.rolled_back, expected.stop)
    assert len(found.history) == len(expected.history)
    for a, b in zip(found.history, expected.history, strict=True):
        same(a, b, tolerance)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_warm_up_goes_on_where_it_was(comm: MPI.Comm, folder: Path, name: str) -> None:
    """To the last bit; and the history of the warm-up is that of all of it."""
    whole = warm(comm, name)
    expected = whole.run(ROUNDS)
    killed(comm, folder, name)
    game = warm(comm, name)
    with Checkpoints(folder, game, seconds=None, rounds=EVERY) as checkpoints:
        done = checkpoints.resume()
        assert (done.round, done.warm_up, done.history) == (0, EVERY, [])
        assert game.warming == EVERY
        result = game.run(ROUNDS, callbacks=[checkpoints])
    alike(result, expected, EXACT)
    alike(game.warm_up_result, whole.warm_up_result, EXACT)
    assert (game.warm_up_result.rounds, game.warming) == (WARM_UP, None)
    for key, value in values(whole).items():
        np.testing.assert_allclose(values(game)[key], value, rtol=EXACT, atol=0.1 * EXACT, err_msg=key)
    files = [f"round-00000000-warm-up-0000000{k}.pt" for k in (4, 8)]
    assert names(comm, folder) == ["history.jsonl", *files, "round-00000004.pt"]
    assert len((folder / "history.jsonl").read_text().splitlines()) == ROUNDS, "a warm-up has no lines there"


def test_a_warm_up_goes_on_with_another_number_of_ranks(comm: MPI.Comm, folder: Path) -> None:
    expected = warm(comm).run(ROUNDS)
    killed(comm, folder / "run")
    comm.Barrier()
    own = folder / f"own-{comm.rank}"
    shutil.copytree(folder / "run", own)
    done, result = kept(own, warm(MPI.COMM_SELF), ROUNDS)
    assert done.warm_up == EVERY
    alike(result, expected, 1e-9)
    comm.Barrier()


def test_the_last_few_checkpoints_of_a_warm_up_are_kept_too(comm: MPI.Comm, folder: Path) -> None:
    """By time; a damaged one is passed over."""

    def kill() -> None:
        raise Killed

    game = warm(comm)
    at_round(game, CUT, kill)
    with pytest.raises(Killed), Checkpoints(folder, game, seconds=0.0, keep=2) as checkpoints:
        game.run(ROUNDS, callbacks=[checkpoints])
    files = [f"round-00000000-warm-up-0000000{k}.pt" for k in (5, 6)]
    assert names(comm, folder) == ["history.jsonl", *files]
    on_root(comm, lambda: cut(folder / files[-1], 77))
    game = warm(comm)
    with Checkpoints(folder, game) as checkpoints:
        with pytest.warns(UserWarning, match="passed over"):
            done = checkpoints.resume()
        assert done.warm_up == 5
        assert game.run(ROUNDS, callbacks=[checkpoints]).rounds == ROUNDS


def test_a_warm_up_with_a_field_is_kept(comm: MPI.Comm, folder: Path) -> None:
    """The field does not move in it, but is in the checkpoint."""

    def build() -> hf.Hyco:
        game = field(comm)
        game.warm_up = 3
        return game

    expected = build().run(2)
    game = build()
    at_round(game, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with Checkpoints(folder, game) as checkpoints:
        assert game.run(2, callbacks=[checkpoints]).stop == "signal"
    done, result = kept(folder, build(), 2)
    assert done.warm_up == 3, "the signal came in the last round"
    alike(result, expected, EXACT)


def test_sigterm_ends_a_run_in_its_warm_up(comm: MPI.Comm, folder: Path) -> None:
    """On one rank; the result says so, and a second run goes on, here or in another process."""

    def terminate() -> None:
        if comm.rank == comm.size - 1:
            signal.raise_signal(signal.SIGTERM)

    expected = warm(comm).run(ROUNDS)
    game = warm(comm)
    at_round(game, CUT, terminate)
    records: list[hf.Record] = []
    with Checkpoints(folder, game) as checkpoints:
        result = game.run(ROUNDS, callbacks=[checkpoints, records.append])
        assert names(comm, folder) == ["history.jsonl", "round-00000000-warm-up-00000007.pt"]
        assert (result.stop, result.rounds, result.rolled_back, records) == ("signal", 0, 0, [])
        assert game.warm_up_result is None
        (last,) = result.history
        assert (last.round, list(last.parameters)) == (0, list(expected.history[0].parameters))
        assert math.isnan(last.misfit_physical)
        assert all(map(math.isnan, result.nash_residual))
        assert result.summary()["stop"] == "signal"
        here = game.run(ROUNDS, callbacks=[checkpoints])
    alike(here, expected, EXACT)
    comm.Barrier()
    on_root(comm, lambda: (folder / "round-00000004.pt").unlink())
    done, there = kept(folder, warm(comm), ROUNDS)
    assert done.warm_up == 7
    alike(there, expected, EXACT)


def test_a_signal_in_a_choice_of_weights_is_obeyed_after_it(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is in the checkpoint, and is not chosen again."""
    expected = chosen(comm).run(ROUNDS)
    choose, choices = hf.CrossValidation.choose, []

    def interrupted(rule: Any, game: hf.Hyco) -> Any:
        if not choices:
            signal.raise_signal(signal.SIGTERM)
        choices.append(rule)
        return choose(rule, game)

    monkeypatch.setattr(hf.CrossValidation, "choose", interrupted)
    game = chosen(comm)
    with Checkpoints(folder, game) as checkpoints:
        result = game.run(ROUNDS, callbacks=[checkpoints])
    assert (result.stop, result.rounds, len(choices)) == ("signal", 0, 1)
    assert result.choice.weights == expected.choice.weights
    assert names(comm, folder) == ["history.jsonl", "round-00000000.pt"]
    done, result = kept(folder, chosen(comm), ROUNDS)
    assert (done.round, done.warm_up, len(choices)) == (0, None, 1)
    alike(result, expected, EXACT)


def test_a_warm_up_is_as_long_as_the_script_says(comm: MPI.Comm, folder: Path) -> None:
    """One that had more steps already, is over."""
    killed(comm, folder)
    game = warm(comm, warm_up=2)
    done, result = kept(folder, game, ROUNDS)
    assert done.warm_up == EVERY
    assert (game.warm_up_result.rounds, result.rounds) == (EVERY, ROUNDS)
