"""Checkpoints as files: whole or not there, known by whose they are, written in time, and read without running code."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import square
from hyco_games import SENSORS, network
from test_benchmarks import positive, printed
from test_restart import EVERY, GAMES, ROUNDS, interrupted, same, values
from torch import Tensor

import hyco_fem as hf
from hyco_fem.game.answers import Steps
from hyco_fem.io import checkpoint_file
from hyco_fem.io.checkpoint import Checkpoints, Restart
from hyco_fem.io.checkpoint_file import FORMAT


def fit(comm: MPI.Comm, answer: Any = None, seed: int = 3) -> hf.NetworkOnly:
    """A network on six sensors: the smallest game there is."""
    data = hf.Data(hf.Points(square(comm, 2), SENSORS), SENSORS[:, 0])
    return hf.NetworkOnly(network(seed=seed), data, answer)


def names(comm: MPI.Comm, folder: Path) -> list[str]:
    """What is in a folder, when all ranks are here."""
    comm.Barrier()
    found = sorted(p.name for p in folder.iterdir())
    comm.Barrier()
    return found


def kept(folder: Path, game: Any, last: int, **options: Any) -> tuple[Restart | None, hf.Result]:
    """Go on with a run, where there is something to go on with, and play."""
    with Checkpoints(folder, game, **({"seconds": None, "rounds": 2} | options)) as checkpoints:
        return checkpoints.resume(), game.run(last, callbacks=[checkpoints])


def on_root(comm: MPI.Comm, action: Callable[[], object]) -> None:
    """Done by rank 0, for all."""
    comm.Barrier()
    if comm.rank == 0:
        action()
    comm.Barrier()


# -- what is written, and when -----------------------------------------------------------------------------------


def test_the_last_few_are_kept_and_torch_reads_them_without_running_code(comm: MPI.Comm, folder: Path) -> None:
    _, result = kept(folder, fit(comm), 9, keep=2, configuration={"mesh": 2, "box": (0.0, 1.0)})
    assert names(comm, folder) == ["history.jsonl", "round-00000008.pt", "round-00000009.pt"], "and one at the end"
    content = torch.load(folder / "round-00000008.pt", weights_only=True)
    assert (content["format"], content["round"], content["first"]) == (FORMAT, 8, 0)
    assert content["configuration"] == {"mesh": 2, "box": [0.0, 1.0]}
    assert {"hyco_fem", "dolfinx", "torch", "petsc", "python"} <= set(content["versions"])
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [r["misfit_synthetic"] for r in found] == [r.misfit_synthetic for r in result.history[:-1]], "all digits"


def test_time_makes_a_checkpoint_due(comm: MPI.Comm, folder: Path) -> None:
    kept(folder / "always", fit(comm), 3, seconds=0.0, rounds=None, keep=9)
    assert names(comm, folder / "always") == ["history.jsonl", *(f"round-0000000{k}.pt" for k in (1, 2, 3))]
    kept(folder / "later", fit(comm), 3, seconds=1e6, rounds=None)
    assert names(comm, folder / "later") == ["history.jsonl", "round-00000003.pt"], "at the end in any case"


def test_rounds_are_counted_over_all_processes(comm: MPI.Comm, folder: Path) -> None:
    """The same script again: 5 rounds, 8 rounds in all, and then there is nothing left to do."""
    done, result = kept(folder, fit(comm), 5)
    assert done is None
    assert result.rounds == 5
    done, result = kept(folder, fit(comm), 8)
    assert (done.round, result.rounds, len(result.history)) == (5, 8, 9)
    done, again = kept(folder, fit(comm), 8)
    assert (done.round, again.rounds, len(again.history)) == (8, 8, 9)
    same(again.history[-1], result.history[-1], 0.0 if comm.size == 1 else 1e-12)
    expected = fit(comm).run(8)
    for a, b in zip(result.history, expected.history, strict=True):
        same(a, b, 0.0 if comm.size == 1 else 1e-12)


def test_a_run_that_met_its_criterion_does_not_go_on(comm: MPI.Comm, folder: Path) -> None:
    met = hf.Stopping(discrepancy=1e6)
    with Checkpoints(folder, fit(comm)) as checkpoints:
        assert fit(comm) is not checkpoints.trainer
        assert checkpoints.trainer.run(5, stopping=met, callbacks=[checkpoints]).rounds == 1
    game = fit(comm)
    with Checkpoints(folder, game) as checkpoints:
        checkpoints.resume()
        result = game.run(5, stopping=met, callbacks=[checkpoints])
    assert (result.rounds, result.stop) == (1, "discrepancy")


def test_steps_are_taken_back_over_a_restart(comm: MPI.Comm, folder: Path) -> None:
    """The first objective after it is not finite: the step before it is undone, and the rate halved."""

    class Poisoned(hf.NetworkOnly):
        def _objective(self) -> Tensor:
            return super().objective()() * (float("nan") if self.next_round == poison[0] else 1.0)

        def objective(self) -> Any:
            return self._objective

    def build() -> Poisoned:
        return Poisoned(network(), hf.Data(hf.Points(square(comm, 2), SENSORS), SENSORS[:, 0]))

    poison = [4]
    expected = build().run(7)
    poison[0] = 99
    kept(folder, build(), 4)
    poison[0] = 4
    assert names(comm, folder)[-1] == "round-00000004.pt"
    _, result = kept(folder, game := build(), 7)
    assert (result.rolled_back, expected.rolled_back) == (1, 1)
    assert [r.round for r in result.history] == [0, 1, 2, 3, 5, 6, 7]
    assert game.player.method.optimiser.param_groups[0]["lr"] == 0.5e-3
    for a, b in zip(result.history, expected.history, strict=True):
        same(a, b, 0.0 if comm.size == 1 else 1e-12)


def test_random_streams_go_on(comm: MPI.Comm, folder: Path) -> None:
    """Those that torch, numpy and Python keep for everyone."""

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.random()), __import__("random").random()]  # noqa: NPY002

    torch.manual_seed(5)
    kept(folder, fit(comm), 2)
    with Checkpoints(folder, fit(comm)) as checkpoints:
        checkpoints.resume()
        expected = draw()
        draw()
        checkpoints.resume()
        assert draw() == expected


# -- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("all_ranks", [True, False], ids=["all ranks", "one rank"])
def test_signals_write_a_checkpoint_and_sigterm_ends_the_run(comm: MPI.Comm, folder: Path, all_ranks: bool) -> None:
    def send(record: hf.Record) -> None:
        if all_ranks or comm.rank == comm.size - 1:
            for number, at in ((signal.SIGUSR1, 1), (signal.SIGTERM, 3)):
                if record.round == at:
                    signal.raise_signal(number)

    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]
    game = fit(comm)
    with Checkpoints(folder, game) as checkpoints:
        result = game.run(9, callbacks=[checkpoints, send])
        assert (result.stop, result.rounds) == ("signal", 4)
    assert names(comm, folder) == ["history.jsonl", "round-00000002.pt", "round-00000004.pt"]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)] == before
    done, result = kept(folder, fit(comm), 9)
    assert (done.round, result.stop, len(result.history)) == (4, "rounds", 10)


# -- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0x10
    path.write_bytes(data)


def cut(path: Path, place: int) -> None:
    os.truncate(path, place % path.stat().st_size)


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_passed_over(comm: MPI.Comm, folder: Path, damage: Callable) -> None:
    """Wherever a bit is flipped or the file cut off; the one before it is used, and the warning says so."""
    kept(folder / "run", fit(comm), 4)
    for place in map(int, np.random.default_rng(0).integers(0, 2**20, 8)):
        on_root(comm, lambda: shutil.copytree(folder / "run", folder / "copy", dirs_exist_ok=True))
        on_root(comm, lambda p=place: damage(folder / "copy" / "round-00000004.pt", p))
        told = r"passed over .*round-00000004\.pt': it is damaged.*round-00000002\.pt"
        with Checkpoints(folder / "copy", fit(comm)) as checkpoints, pytest.warns(UserWarning, match=told):
            assert checkpoints.resume().round == 2
    on_root(comm, lambda: damage(folder / "copy" / "round-00000002.pt", 7))
    with (
        Checkpoints(folder / "copy", fit(comm)) as checkpoints,
        pytest.raises(ValueError, match=r"no checkpoint will do: .*00000004\.pt'.*damaged.*00000002\.pt'.*damaged"),
    ):
        checkpoints.resume()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("history.jsonl", "its history, 'history.jsonl', is damaged"),
        ("round-00000004.fields", "its fields, 'round-00000004.fields', are damaged"),
    ],
)
def test_what_belongs_to_a_checkpoint_is_checked_too(comm: MPI.Comm, folder: Path, file: str, reason: str) -> None:
    game = GAMES["field"](comm)
    kept(folder, game, 4)
    on_root(comm, lambda: flip(folder / file, -9))
    with Checkpoints(folder, GAMES["field"](comm)) as checkpoints, pytest.warns(UserWarning, match=reason):
        assert checkpoints.resume().round == 2


def test_a_pickle_that_runs_code_is_refused(comm: MPI.Comm, folder: Path) -> None:
    """A checkpoint with a valid seal, and a call in it."""

    class Call:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(folder / "called"),)

    def forge() -> None:
        checkpoint_file.write_sealed(folder / "round-00000001.pt", {"format": FORMAT, "state": Call()})

    on_root(comm, forge)
    with Checkpoints(folder, fit(comm)) as checkpoints, pytest.raises(ValueError, match="no checkpoint will do"):
        checkpoints.resume()
    assert not (folder / "called").exists()


# -- whose it is -------------------------------------------------------------------------------------------------


def wider(comm: MPI.Comm) -> hf.NetworkOnly:
    data = hf.Data(hf.Points(square(comm, 2), SENSORS), SENSORS[:, 0])
    return hf.NetworkOnly(hf.MLP(2, 1, width=7, depth=2), data)


def fit_of(activation: str = "tanh", value: float = 0.0, sign: float = 1.0) -> Callable[[MPI.Comm], hf.NetworkOnly]:
    def build(comm: MPI.Comm) -> hf.NetworkOnly:
        data = hf.Data(hf.Points(square(comm, 2), SENSORS), sign * SENSORS[:, 0] + value)
        return hf.NetworkOnly(hf.MLP(2, width=6, depth=2, activation=activation, seed=3), data)

    return build


OTHERS: dict[str, tuple[Callable[[MPI.Comm], Any], dict[str, Any], str]] = {
    "shape": (wider, {}, r"parameters\['model\..*'\] is \[6, 2\] there, and \[7, 2\] here"),
    "answer": (lambda c: fit(c, hf.LBFGS()), {}, r"answers\['synthetic'\] is 'Adam of .*' there, and 'LBFGS of"),
    "activation": (
        fit_of("relu"),
        {},
        r"identity\['model'\] is 'MLP\(_sigma=tanh\)' there, and 'MLP\(_sigma=relu\)' here",
    ),
    "data": (fit_of(value=0.1), {}, r"identity\['data'\] is '6 of 6 sensors, sums .*' there"),
    "sign": (fit_of(sign=-1.0), {}, r"identity\['data'\] is '6 of 6 sensors, sums .* 100.0000 % positive' there"),
    "game": (GAMES["ritz"], {}, r"game is 'NetworkOnly' there, and 'DeepRitz' here"),
    "configuration": (fit, {"configuration": {"n": 4}}, r"configuration\['n'\] is 3 there, and 4 here"),
    "more": (fit, {"configuration": {"n": 3, "m": 1}}, r"configuration\['m'\] is there not, but here"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_with_the_difference(comm: MPI.Comm, folder: Path, what: str) -> None:
    build, options, message = OTHERS[what]
    kept(folder, fit(comm), 2, configuration={"n": 3})
    game = build(comm)
    with Checkpoints(folder, game, **({"configuration": {"n": 3}} | options)) as checkpoints:
        before = values(game)
        with pytest.raises(ValueError, match=r"round-00000002\.pt': it is of another run: " + message):
            checkpoints.resume()
    for name, value in values(game).items():
        np.testing.assert_array_equal(value, before[name], "nothing of it was taken")
    assert "round-00000002.pt" in names(comm, folder), "it is somebody's"


def test_an_earlier_run_is_not_overwritten(comm: MPI.Comm, folder: Path) -> None:
    kept(folder, fit(comm), 4)
    game = fit(comm)
    told = r"holds checkpoints of an earlier run, the last one 'round-00000004.pt'"
    with Checkpoints(folder, game) as checkpoints, pytest.raises(ValueError, match=told):
        game.run(3, callbacks=[checkpoints])
    assert game.next_round == 0, "not a round was played"
    assert kept(folder, fit(comm), 4)[0].round == 4


# -- what does not fit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stateless:
    """An answer of a user, whose method has no state to give."""

    def method(self, player: Any) -> Any:
        class Plain:
            improve, undo = Steps.improve, Steps.undo

        return Plain()


def test_what_cannot_be_kept_is_refused_at_the_start(comm: MPI.Comm, folder: Path) -> None:
    with pytest.raises(ValueError, match="the answer of the synthetic player, Stateless, cannot be kept"):
        Checkpoints(folder, fit(comm, Stateless()))
    thing: Any = type("object", (), {"comm": comm})()
    with pytest.raises(ValueError, match="object cannot be kept"):
        Checkpoints(folder, thing)
    for options, message in (
        ({"keep": 0}, "keep must be"),
        ({"seconds": -1.0}, "seconds must not be negative"),
        ({"rounds": 0}, "rounds must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(folder, fit(comm), **options)
    with pytest.raises(TypeError, match="configuration of a checkpoint must be what JSON can hold"):
        Checkpoints(folder, fit(comm), configuration={"f": print})
    game = fit(comm)
    checkpoints = Checkpoints(folder, game)
    with pytest.raises(ValueError, match="are not open: use Checkpoints in a `with` block"):
        game.run(1, callbacks=[checkpoints])
    with checkpoints, pytest.raises(ValueError, match="made for another game"):
        fit(comm).run(1, callbacks=[checkpoints])
    with checkpoints, pytest.raises(ValueError, match="kept by one Checkpoints, not by 2"):
        game.run(1, callbacks=[checkpoints, checkpoints])
    assert names(comm, folder) == []


# -- disks -------------------------------------------------------------------------------------------------------


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond a size: to a program, a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("name", "room"), [("adam", 700), ("field", 100), ("field", 2500)])
def test_a_full_disk_ends_the_run_with_a_message_and_a_whole_checkpoint(
    comm: MPI.Comm, folder: Path, name: str, room: int
) -> None:
    """Whether there is no room for the next line of the history, or for the next checkpoint."""
    expected = GAMES[name](comm).run(ROUNDS)
    interrupted(GAMES[name], comm, folder)
    game = GAMES[name](comm)
    size = (folder / "history.jsonl").stat().st_size
    comm.Barrier()
    told = r"cannot be written \(.*too large.*\); the last whole checkpoint is .*00004\.pt'"
    with small_files(size + room), pytest.raises(OSError, match=told):
        kept(folder, game, ROUNDS, rounds=1)
    assert [n for n in names(comm, folder) if n.startswith(".")] == [], "nothing half-written is left"
    done, result = kept(folder, GAMES[name](comm), ROUNDS)
    assert done.round == EVERY
    same(result.history[-1], expected.history[-1], 1e-9)


@pytest.mark.parametrize("build", [fit, GAMES["field"]])
def test_a_folder_that_is_read_only_ends_the_run(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, build: Callable
) -> None:
    """Before it begins, and in the middle of it."""
    on_root(comm, lambda: (folder / "file").write_text(""))
    with pytest.raises(OSError, match=r"the output folder .*file' cannot be written"):
        Checkpoints(folder / "file", fit(comm))
    game = build(comm)

    def refuse(record: hf.Record) -> None:
        if record.round == 2:
            denied = PermissionError(errno.EROFS, os.strerror(errno.EROFS))
            monkeypatch.setattr(checkpoint_file.os, "replace", lambda *_: (_ for _ in ()).throw(denied))

    told = r"round-00000004\.pt' cannot be written \(Read-only.*last whole.*00000002\.pt'"
    with (
        pytest.raises(OSError, match=told),
        Checkpoints(folder / "run", game, seconds=None, rounds=2) as checkpoints,
    ):
        game.run(5, callbacks=[checkpoints, refuse])
    monkeypatch.undo()
    assert {"00000002"} == {n[6:14] for n in names(comm, folder / "run") if n != "history.jsonl"}
    assert kept(folder / "run", build(comm), 5)[0].round == 2


def test_what_a_killed_process_has_left_is_removed(comm: MPI.Comm, folder: Path) -> None:
    leftover = folder / ".round-00000007.pt.4711.part.pt"
    on_root(comm, lambda: leftover.write_bytes(b"hal"))
    kept(folder, fit(comm), 2)
    assert names(comm, folder) == ["history.jsonl", "round-00000002.pt"]


# -- the history as a table --------------------------------------------------------------------------------------


def test_a_table_of_the_history_goes_on(comm: MPI.Comm, folder: Path) -> None:
    """HistoryFile begins with the past of the run."""
    for rounds in (3, 5):
        game = fit(comm)
        with Checkpoints(folder / "run", game) as checkpoints:
            done = checkpoints.resume()
            past = done.history if done else []
            with hf.HistoryFile(folder / "history.csv", comm, past=past) as table:
                result = game.run(rounds, callbacks=[checkpoints, table])
    comm.Barrier()
    lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 5
    assert [float(line.split(",")[2]) for line in lines[1:]] == [r.misfit_synthetic for r in result.history[:-1]]


@pytest.mark.slow
@pytest.mark.serial
def test_what_checkpoints_cost_is_reported_for_a_network_and_a_field() -> None:
    found = printed("checkpoint_cost.py", "--rounds", 3, "--cells", 8)
    assert found.keys() == {f"{game}_{key}" for game in ("case1", "field") for key in ("share", "write_ms", "bytes")}
    assert positive(found.values())


def test_two_processes_do_not_keep_their_runs_in_one_folder(comm: MPI.Comm, folder: Path) -> None:
    """A lock of another open file counts like one of another process."""
    kept(folder, fit(comm), 2)
    with Checkpoints(folder, fit(comm)) as first:
        first.resume()
        with pytest.raises(OSError, match="another process is at work in"), Checkpoints(folder, fit(comm)):
            pass
    assert kept(folder, fit(comm), 3)[0].round == 2, "and a lock ends with its block"


def test_seconds_are_those_of_all_processes(comm: MPI.Comm, folder: Path) -> None:
    _, first = kept(folder, fit(comm), 2)
    _, both = kept(folder, fit(comm), 3)
    assert both.timings["total"] > 0.5 * first.timings["total"]
    game = fit(comm)
    with Checkpoints(folder, game) as checkpoints:
        checkpoints.resume()
        assert game.clock.seconds["total"] > 0.0
