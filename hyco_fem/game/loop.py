"""Rounds: what HYCO and its baselines share — counting, stopping, callbacks, taking back."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mpi4py import MPI

import numpy as np
from torch import nn

from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.state import State
from hyco_fem.parallel import agreed, any_rank, max_over_ranks

# After so many steps in a row that had to be taken back, halving the learning rate will not help.
PATIENCE = 20

# Each has at most one last step to take back.
PLAYERS = 2

# A coefficient with more numbers than this is a field or a network: the history keeps its root mean square.
LONGEST_IN_HISTORY = 64


@dataclass(frozen=True)
class Stopping:
    """When a run may end before its rounds are over: as soon as one of the criteria that are set is met.

    gradient: each player's gradient norm is below this fraction of what it was in the first round.
    stagnation: over the last `window` rounds no loss (L_phy, L_syn, I) has moved by more than this fraction.
    discrepancy: every misfit is at most this; with known noise about 1 (for vector data the number of
        components) is all that the data can tell (Morozov).

    Raises:
        ValueError: a criterion is not positive.
    """

    gradient: float | None = None
    stagnation: float | None = None
    window: int = 5
    discrepancy: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"the stopping criterion {name} must be positive, not {value}")

    def reason(self, history: Sequence[Record]) -> str | None:
        """The criterion that is met at the end of a history, or None."""
        last = history[-1]
        if self.gradient is not None:
            first, now = (np.nan_to_num([r.gradient_physical, r.gradient_synthetic]) for r in (history[0], last))
            if np.all(now <= self.gradient * first):
                return "tolerance"
        if self.discrepancy is not None:
            misfits = np.array([last.misfit_physical, last.misfit_synthetic])
            misfits = misfits[~np.isnan(misfits)]
            if misfits.size and np.all(misfits <= self.discrepancy):
                return "discrepancy"
        if self.stagnation is not None and len(history) > self.window:
            losses = np.array(
                [[r.misfit_physical, r.misfit_synthetic, r.interaction] for r in history[-self.window - 1 :]]
            )
            losses = losses[:, ~np.isnan(losses).any(axis=0)]
            # Of a PINN without data there is no loss to watch here.
            if losses.size and np.all(np.ptp(losses, axis=0) <= self.stagnation * losses.max(axis=0)):
                return "stagnation"
        return None


class Clock:
    """Seconds by part, on this rank."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._begun[part] = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            self._begun.pop(part, None)

    def now(self) -> dict[str, float]:
        """The seconds so far, those of parts that are going on included."""
        now = time.perf_counter()
        return {part: self.seconds.get(part, 0.0) + now - start for part, start in self._begun.items()} | {
            part: seconds for part, seconds in self.seconds.items() if part not in self._begun
        }


class Trainer(Protocol):
    """What can be run in rounds."""

    comm: MPI.Comm
    clock: Clock
    model: nn.Module
    next_round: int

    def round(self, number: int) -> Record | None:
        """Play a round; its record, or None where a step was taken back."""

    def look(self, number: int) -> Record | None:
        """The record of the state as it is; None where it is not finite and the last step was taken back."""


@dataclass
class Course:
    """The rounds of a run so far, over all the processes that it went through.  Replicated.

    first: number of its first round.  records: of the rounds that count.
    """

    first: int
    records: list[Record] = field(default_factory=list)


@runtime_checkable
class Keeper(Protocol):
    """A callback that keeps a run, so that another process can go on with it.

    course: what was played before; `run` adds to its records.  seconds, rounds: from one checkpoint to the next.
    """

    course: Course
    seconds: float
    rounds: int | None

    def begin(self, trainer: Any) -> None:
        """Called before anything is played, maybe twice.  Collective; raises ValueError where this cannot keep the run.

        trainer: What is run, a `ResumableTrainer`.
        """

    def keep(self) -> str | None:
        """Called after each round that counts, when the other callbacks were: a reason to stop, or None.

        In a warm-up too, after a choice of weights, and where a split game comes together.  Collective; the same on
        all ranks.
        """


class ResumableTrainer(Protocol):
    """What has runs that can be kept.

    A state has "models": {name: {"parameters": {name: tensor}, "buffers": {…}}}, "players": {name: {"method": {"kind":
    …, …}}}, "next_round", and what else the coming rounds depend on; see `hyco_fem.game.state`.

    next_round: the number of the round to come.  warming: how many rounds of a warm-up were played, while one is under
    way; else None.
    """

    comm: MPI.Comm
    next_round: int

    @property
    def warming(self) -> int | None: ...

    def state(self) -> State:
        """All that the coming rounds depend on.  Collective."""

    def restore(self, state: State) -> None:
        """Put a state back.  Collective."""


def run(
    trainer: Trainer,
    rounds: int,
    *,
    tolerance: float | None = None,
    stopping: Stopping | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Play rounds until one of the reasons to stop.  Collective.

    Args:
        rounds: At most so many.  Where a `Keeper` is among the callbacks (`hyco_fem.Checkpoints`), those that it has
            seen before count too, and the history of the result begins with theirs.
        tolerance: Short for Stopping(gradient=tolerance).
        stopping: Criteria to end sooner.
        callbacks: Called on every rank with the record of each round; one that returns True on any rank stops the
            run.

    Raises:
        FloatingPointError: an objective is not finite at the start, or stays so after many steps were taken back.
    """
    with agreed(trainer.comm):
        stopping = checked_stopping(rounds, tolerance, stopping)
        keeper, callbacks = keeper_among(callbacks)
    if keeper is not None:
        keeper.begin(trainer)
    course = Course(trainer.next_round) if keeper is None else keeper.course
    history = course.records
    in_a_row = 0
    # A run that had come to its end has nothing to go on with.
    stop = stopping.reason(history) if stopping is not None and history else None
    with trainer.clock("total"):
        while stop is None and trainer.next_round - course.first < rounds:
            record = trainer.round(trainer.next_round)
            trainer.next_round += 1
            if record is None:
                in_a_row += 1
                if in_a_row >= PATIENCE:
                    raise FloatingPointError(
                        f"{_diverging(trainer)} diverges: the objective was not finite after each of the last "
                        f"{PATIENCE} steps, all taken back; use a smaller learning rate or another start"
                    )
                continue
            in_a_row = 0
            if not history:
                warn_of_idle_parameters(trainer.model, trainer.comm)
            history.append(record)
            if _called(trainer.comm, callbacks, record):
                stop = "callback"
            if keeper is not None:
                with trainer.clock("checkpoints"):
                    stop = keeper.keep() or stop
            if stop is None and stopping is not None:
                stop = stopping.reason(history)
        rolled_back = trainer.next_round - course.first - len(history)
        final, taken_back = _final(trainer)
    return Result(
        parameters=parameter_values(trainer.model, trainer.comm),
        history=[*history, final],
        nash_residual=(final.gradient_physical, final.gradient_synthetic),
        rounds=len(history),
        rolled_back=rolled_back + taken_back,
        stop=stop or "rounds",
        timings=dict(trainer.clock.seconds),
    )


def unplayed(trainer: Trainer, course: Course, stop: str) -> Result:
    """The result of a run that had to end before a round: its last record has the parameters and no other number.

    Collective.
    """
    number, comm = trainer.next_round, trainer.comm
    now = Record(number, parameters=parameter_values(trainer.model, comm, LONGEST_IN_HISTORY))
    return Result(
        parameters=parameter_values(trainer.model, comm),
        history=[*course.records, now],
        nash_residual=(math.nan, math.nan),
        rounds=len(course.records),
        rolled_back=number - course.first - len(course.records),
        stop=stop,
        timings=dict(trainer.clock.seconds),
    )


def keeper_among(callbacks: Sequence[Callback]) -> tuple[Keeper | None, list[Callback]]:
    """The one callback that keeps the run, and the others.

    Raises ValueError where there are several.
    """
    keepers: list[Any] = [c for c in callbacks if isinstance(c, Keeper)]
    if len(keepers) > 1:
        raise ValueError(f"a run is kept by one Checkpoints, not by {len(keepers)}")
    return keepers[0] if keepers else None, [c for c in callbacks if not isinstance(c, Keeper)]


def checked_stopping(rounds: int, tolerance: float | None, stopping: Stopping | None) -> Stopping | None:
    """The criteria of a run from its arguments; raises ValueError where these do not fit."""
    if rounds < 0 or int(rounds) != rounds:
        raise ValueError(f"rounds must be a number of rounds, not {rounds}")
    if tolerance is None:
        return stopping
    if stopping is not None:
        raise ValueError("give either tolerance or stopping, not both")
    return Stopping(gradient=tolerance)


def _diverging(trainer: Trainer) -> str:
    """The player whose steps were taken back most often, in words."""
    players = [p for p in (*getattr(trainer, "players", ()), getattr(trainer, "player", None)) if p is not None]
    return "the game" if not players else f"the {max(players, key=lambda p: p.taken_back).name} player"


def warn_of_idle_parameters(model: nn.Module, comm: MPI.Comm) -> None:
    """Warn of parameters whose gradient is missing or exactly zero after the first round: they will not move."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = max_over_ranks(comm, [0.0 if p.grad is None else float(p.grad.abs().sum()) for p in trainable.values()])
    idle = [name for name, slope in zip(trainable, sizes, strict=True) if slope == 0.0]
    if idle:
        warnings.warn(
            f"the objective does not depend on {', '.join(map(repr, idle))} at the start: the gradient is zero, and "
            "training will not move it; check the form, the start (an amplitude of zero hides its centre) and the data",
            stacklevel=3,
        )


def _final(trainer: Trainer) -> tuple[Record, int]:
    """The record of the state at the end, and how many of the last steps had to be taken back for it."""
    for taken_back in range(PLAYERS + 1):
        record = trainer.look(trainer.next_round)
        if record is not None:
            return record, taken_back
    raise FloatingPointError(
        "the objective is not finite at the end, though the last step of each player was taken back"
    )


def _called(comm: MPI.Comm, callbacks: Sequence[Callback], record: Record) -> bool:
    if not callbacks:
        return False
    with agreed(comm):
        wishes = [bool(callback(record)) for callback in callbacks]
    return any_rank(comm, any(wishes))
