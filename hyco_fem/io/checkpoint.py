"""Restart: a run is written down at intervals, and goes on in another process, on another number of ranks.

Same ranks, direct solvers: the history is the same to the last bit.  Other ranks: to rounding.  With solves that start
from the last solution (warm_start=True): to their tolerance.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.files import output_folder
from hyco_fem.game.history import Record
from hyco_fem.game.loop import Course, ResumableTrainer
from hyco_fem.game.state import State, plain
from hyco_fem.io.checkpoint_fields import Fields
from hyco_fem.io.checkpoint_file import (
    FORMAT,
    difference,
    random_state,
    read_sealed,
    restore_random,
    sync_folder,
    versions,
    write_sealed,
)
from hyco_fem.io.checkpoint_identity import comparable, identity
from hyco_fem.io.history import HistoryLog
from hyco_fem.io.nodal import file_digest
from hyco_fem.parallel import agreed, raise_together

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_NAME = re.compile(r"round-(\d{8,})(?:-warm-up-(\d{8,}))?\.pt")
_LOG = "history.jsonl"

# How far a run is: the round to come, and how many of a warm-up were played, or infinity where none is under way.
Place = tuple[int, float]


@dataclass(frozen=True)
class Restart:
    """Where a run goes on.

    path: of the checkpoint.  round: the next one.  history: of the rounds before.  configuration, versions: as they
    were when the checkpoint was written.  warm_up: in the middle of a warm-up, how many rounds of it were played.
    """

    path: Path
    round: int
    history: list[Record]
    configuration: dict[str, Any]
    versions: dict[str, str]
    warm_up: int | None = None


class Checkpoints:
    """Callback that keeps a run: checkpoints at intervals and on signals, and a way back to them.

        with hf.Checkpoints("out/checkpoints", game) as checkpoints:
            checkpoints.resume()
            result = game.run(1000, callbacks=[checkpoints])

    The same script starts the run and goes on with it: `rounds` counts those of the processes before too, and the
    history of the result begins with theirs.  The script builds the game, with the options of its answers, and the
    state of the checkpoint is put into it: a learning rate, for instance, goes on where it was.

    SIGTERM: after the round a checkpoint is written and the run stops, `Result.stop == "signal"`.  SIGUSR1: one is
    written, and the run goes on.  One rank has to get the signal.

    So it is in a warm-up too, whose rounds have no lines in the history.  During a choice of weights nothing is
    written, and a run that is killed there chooses again from the start; a signal is obeyed when the choice is made.
    In a `SplitHyco` with a staleness a checkpoint is written, and a signal obeyed, where the sides come together: about
    ten times from one checkpoint to the next, and no more than some 5 seconds, or a round, apart.

    Args:
        folder: For `round-00001234.pt` and, where parameters are fields, `.fields`; in a warm-up
            `round-00000000-warm-up-00000567.pt`; and `history.jsonl`.
        game: `Hyco`, `SplitHyco`, `PhysicsOnly`, `NetworkOnly`, a PINN, `DeepRitz`: what is run in rounds.
        seconds: From one checkpoint to the next; None: not by time.
        rounds: So many rounds, or rounds of the warm-up, from one to the next; None: not by rounds.
        keep: The last so many are kept.
        configuration: What else tells this run from others, as JSON knows it; a checkpoint with another one is refused.
            Without it, one of other modules, activations, residuals, time steps or sensor values is.

    Raises:
        ValueError: the game, an answer of it, or an argument does not fit; on all ranks.
        OSError: the folder cannot be written; in a `with` block, another process is at work in it; on all ranks.

    Construction and every method are collective.
    """

    def __init__(
        self,
        folder: str | Path,
        game: ResumableTrainer,
        *,
        seconds: float | None = 60.0,
        rounds: int | None = None,
        keep: int = 3,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        if not (hasattr(game, "state") and hasattr(game, "restore") and hasattr(game, "comm")):
            raise ValueError(f"{type(game).__name__} cannot be kept: it has no state() and restore(state)")
        self.trainer, self.comm = game, game.comm
        with agreed(self.comm):
            if keep < 1 or int(keep) != keep:
                raise ValueError(f"keep must be a number of checkpoints of at least 1, not {keep}")
            if seconds is not None and not seconds >= 0:
                raise ValueError(f"seconds must not be negative, it is {seconds}")
            if rounds is not None and (rounds < 1 or int(rounds) != rounds):
                raise ValueError(f"rounds must be a number of rounds of at least 1, not {rounds}")
            self.configuration = _as_json(configuration or {})
        self.seconds, self.rounds, self.kept = math.inf if seconds is None else seconds, rounds, keep
        self.course = Course(game.next_round)
        self._fields = Fields(game, plain(game.state()))
        self.folder = output_folder(folder, self.comm)
        self._log: HistoryLog | None = None
        self._logged = 0
        self._written = self._place()
        self._last = time.monotonic()
        self._inside = self._begun = False
        self._signals: set[int] = set()
        self._handlers: dict[int, Any] = {}
        self._lock: int | None = None

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Checkpoints:
        with agreed(self.comm):
            if self.comm.rank == 0:
                self._lock = _locked(self.folder)
        self._inside, self._last = True, time.monotonic()
        if self.comm.rank == 0:
            for leftover in self.folder.glob(".round-*.part*"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            # An error may be on this rank alone, so nothing collective.
            if kind is None and self._begun and self._place() != self._written:
                self.write()
        finally:
            self._inside = False
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._handlers = {}
            if self._log is not None:
                self._log.close()
                self._log = None
            if self._lock is not None:
                os.close(self._lock)  # which unlocks it
                self._lock = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def __call__(self, record: Record) -> None:
        """Not for use: what plays rounds calls `keep`."""
        raise TypeError("Checkpoints serve what is run in rounds by hyco_fem.game.loop.run, and this run is not")

    def begin(self, trainer: Any) -> None:
        """Check that this is the run to be kept, before anything is played.

        Raises ValueError on all ranks where it is not, or where the folder holds checkpoints of a run before.
        """
        with agreed(self.comm):
            if trainer is not self.trainer:
                raise ValueError("these Checkpoints were made for another game; make them for the one that is run")
            if not self._inside:
                raise ValueError(f"the checkpoints in '{self.folder}' are not open: use Checkpoints in a `with` block")
            if self.comm.rank == 0 and not self._begun and (found := _found(self.folder)):
                raise ValueError(
                    f"'{self.folder}' holds checkpoints of an earlier run, the last one '{found[0].name}': call "
                    "resume() to go on with it, or choose another folder"
                )
            if not self._begun:  # rounds may have been played since these were made
                self.course.first, self._written = trainer.next_round, self._place()
        self._begun = True

    def keep(self) -> str | None:
        """Write what was recorded to the log, and a checkpoint where one is due; "signal" where the run has to stop."""
        error = self._append()
        noted = set(self._signals)
        self._signals -= noted
        late = self.comm.rank == 0 and time.monotonic() - self._last >= self.seconds
        flags = np.array([signal.SIGTERM in noted, signal.SIGUSR1 in noted, late, error is not None], dtype=np.int8)
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, flags, op=MPI.MAX)
        if flags[3]:
            raise_together(self.comm, error)
        if flags[:3].any() or (self.rounds is not None and self.rounds_since() >= self.rounds):
            self.write()
        return "signal" if flags[0] else None

    def _place(self) -> Place:
        played = self.trainer.warming
        return self.trainer.next_round, math.inf if played is None else played

    def rounds_since(self) -> float:
        """Rounds since the last checkpoint: of the warm-up while it is under way, of the game after it."""
        (number, played), (written, before) = self._place(), self._written
        if played == math.inf:
            return number - written
        return played if before == math.inf else played - before

    def _append(self) -> Exception | None:
        """New records to the log, on rank 0; what went wrong."""
        if self.comm.rank > 0:
            return None
        records = self.course.records
        try:
            if self._log is None:
                self._log, self._logged = HistoryLog(self.folder / _LOG), 0
            self._log.append(records[self._logged :])
        except OSError as error:
            return OSError(_cannot_write(self.folder / _LOG, error, self.folder))
        self._logged = len(records)
        return None

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self) -> Path:
        """Write a checkpoint now.  Returns its path.

        Raises:
            ValueError: see `begin`.
            OSError: it cannot be written; on all ranks.  Those before are as they were.
        """
        self.begin(self.trainer)
        raise_together(self.comm, self._append())
        self._last = time.monotonic()
        number, played = place = self._place()
        warming = "" if played == math.inf else f"-warm-up-{int(played):08d}"
        path = self.folder / f"round-{number:08d}{warming}.pt"
        state = plain(self.trainer.state())
        try:
            rest, fields = self._fields.write(path.with_suffix(".fields"), state)
            with agreed(self.comm):
                if self.comm.rank == 0:
                    assert self._log is not None
                    content = {
                        "format": FORMAT,
                        "versions": versions(),
                        "configuration": self.configuration,
                        "description": self._description(state),
                        "first": self.course.first,
                        "round": number,
                        "warm_up": self.trainer.warming,
                        "history": self._log.mark(),
                        "fields": fields,
                        "state": rest,
                        "random": random_state(),
                    }
                    write_sealed(path, content)
                    self._prune(place)
        except OSError as error:
            text = self.comm.bcast(_cannot_write(path, error, self.folder) if self.comm.rank == 0 else "")
            raise OSError(text) from None
        self._written = place
        return path

    def _description(self, state: State) -> dict[str, Any]:
        """What a checkpoint is known by."""
        answers = {name: (p["method"] or {}).get("kind") for name, p in state.get("players", {}).items()}
        weights = "chosen or given" if state.get("balance") is None else "GradientBalance"
        shapes = self._fields.shapes(state)
        return {
            "game": type(self.trainer).__name__,
            "parameters": shapes,
            "answers": answers,
            "weights": weights,
            "identity": identity(self.trainer),
        }

    def _prune(self, place: Place) -> None:
        """Remove all but the last few up to this round; what is of later rounds is not of this run."""
        for path in [p for p in _found(self.folder) if _place_of(p) <= place][self.kept :]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob("round-*.fields"):
            if not path.with_suffix(".pt").exists():
                path.unlink(missing_ok=True)
        sync_folder(self.folder)

    # -- going on ------------------------------------------------------------------------------------------------

    def resume(self) -> Restart | None:
        """Put the newest checkpoint that is whole, and of this run, into the game.

        Returns:
            Where the run goes on; None where the folder has no checkpoint.

        Raises:
            ValueError: there are checkpoints, and none of them will do; on all ranks.

        Warns where a checkpoint is passed over.
        """
        names: list[str] = self.comm.bcast([p.name for p in _found(self.folder)] if self.comm.rank == 0 else [])
        # Rounding may depend on the rank, and the decision must not.
        own = self.comm.bcast(self._description(plain(self.trainer.state()))) if names else {}
        refused: list[str] = []
        for path in (self.folder / name for name in names):
            content, log, reason = self.comm.bcast(self._read(path) if self.comm.rank == 0 else None)
            if reason is None:
                reason = self._foreign(content, own)
            if reason is None:
                for text in refused:
                    warnings.warn(f"passed over {text}; the run goes on from '{path}'", stacklevel=2)
                return self._go_on(path, content, log)
            refused.append(f"the checkpoint '{path}': {reason}")
        if refused:
            raise ValueError(
                f"no checkpoint will do: {'; '.join(refused)}.  Put the files back, choose another folder, or start "
                "again without these (hyco-fem run --overwrite)"
            )
        return None

    def _read(self, path: Path) -> tuple[dict[str, Any], bytes, str | None]:
        """Content and history of a checkpoint, or why it will not do.  Local to the rank."""
        try:
            content = read_sealed(path)
            log = HistoryLog.read(self.folder / _LOG, content["history"])
            fields = content["fields"]
            if fields["entries"] and file_digest(self.folder / fields["file"]) != fields["sha256"]:
                raise ValueError(f"its fields, '{fields['file']}', are damaged")
        except Exception as error:  # whatever reading a damaged file leads to
            return {}, b"", str(error) or type(error).__name__
        return content, log, None

    def _foreign(self, content: dict[str, Any], own: dict[str, Any]) -> str | None:
        """Why a checkpoint is not of this run."""
        theirs = content["description"]
        reason = difference(content["configuration"], self.configuration, "configuration")
        if reason is None:
            made, own_made = comparable(theirs["identity"], own["identity"])
            reason = difference(theirs | {"identity": made}, own | {"identity": own_made})
            if reason is not None and theirs["answers"] != own["answers"]:
                reason += "; build the game with the answer that it had then (`game.answer = …` before resume())"
        if reason is None:
            reason = self._fields.difference(content["fields"])
        return None if reason is None else f"it is of another run: {reason}"

    def _go_on(self, path: Path, content: dict[str, Any], log: bytes) -> Restart:
        """Put a checkpoint into the game."""
        self.trainer.restore(self._fields.read(self.folder, content["fields"], content["state"]))
        restore_random(content["random"])
        records = HistoryLog.records(log)
        self.course = Course(content["first"], records)
        self._logged, self._written, self._last = len(records), self._place(), time.monotonic()
        with agreed(self.comm):
            if self.comm.rank == 0:
                if self._log is not None:
                    self._log.close()
                self._log = HistoryLog(self.folder / _LOG, log)
        self._begun = True
        return Restart(
            path,
            content["round"],
            list(records),
            content["configuration"],
            content["versions"],
            content["warm_up"],
        )


def _locked(folder: Path) -> int | None:
    """A lock on the folder for as long as the process lives, or until the descriptor returned is closed.

    None where the file system has no locks.  Raises OSError where another process has it.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(
            f"another process is at work in '{folder}', and both would write its history: wait for it, end it, or "
            "choose another folder"
        ) from None
    except OSError:
        os.close(lock)
        return None
    return lock


def _place_of(path: Path) -> Place:
    """How far the run of a checkpoint was."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), math.inf if found[2] is None else int(found[2])


def _found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=_place_of, reverse=True)


def _cannot_write(path: Path, error: OSError, folder: Path) -> str:
    last = "there is no checkpoint yet"
    with suppress(OSError):
        last = f"the last whole checkpoint is '{_found(folder)[0]}'" if _found(folder) else last
    return f"'{path}' cannot be written ({error.strerror or error}); {last}"


def _as_json(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a configuration when JSON has written and read it."""
    try:
        return json.loads(json.dumps(dict(configuration)))
    except TypeError as error:
        raise TypeError(f"the configuration of a checkpoint must be what JSON can hold: {error}") from None
