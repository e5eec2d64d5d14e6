"""A run of a split game as one side sees it: what it says and hears, answers and records, and when it ends.

How a game ends: every word carries the round before which its side wants to end.  A side that finds a reason when it
has said its word of round r, has the game end before round r + s + 1: until it hears of that in word r + 1, the other
side can have answered round r + s at most.  With s = 0 the sides decide together, and end before round r.

How it is kept: at the end of a leg each side waits for the other's word of the same round.  Then both models and
methods are as they were before that round, and all earlier rounds are judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.bridge.ghosts import GhostPoints
from hyco_fem.game.history import Callback, Record
from hyco_fem.game.loop import PATIENCE, Course, Stopping, warn_of_idle_parameters
from hyco_fem.game.losses import local_interaction
from hyco_fem.game.split import Post, Split, Word
from hyco_fem.game.split_legs import Legs
from hyco_fem.game.split_sides import Side, Turn, rows_of
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.parallel import agreed, raise_together, sum_array
from hyco_fem.pde.linear import SolveError


class Match:
    """One run, as one side sees it: words said and heard, records, and when to end.

    Attributes:
        number: the round that this side is at.  end, stop: the round before which the match ends, and why.
        turns, mine, theirs: by round, what this side has evaluated, said, and heard.
        history, rolled_back: rounds that both sides have ended, also those of the course so far, and how many of them
            do not count.
        ages: of the answers that were answered.

    Args:
        first, end: The rounds before which the match begins and, at the latest, ends.
        course: What was played before; its records become the history.
        legs: Where it is kept.

    Every method is collective over the side; after `play` so is what both sides do over both.
    """

    def __init__(
        self,
        split: Split,
        side: Side,
        first: int,
        end: int,
        stopping: Stopping | None,
        callbacks: Sequence[Callback],
        course: Course,
        legs: Legs | None = None,
    ) -> None:
        self.split, self.side, self.game = split, side, side.game
        self.stopping, self.callbacks, self.legs = stopping, callbacks, legs
        self.first: int = first
        self.number: int = first
        self._complete = first
        self.end: int = end
        self.stop: str = "rounds"
        self._post = Post(split)
        self.turns: dict[int, Turn] = {}
        self.mine: dict[int, Word] = {}
        self.theirs: dict[int, Word] = {}
        self.history: list[Record] = course.records
        self.ages: list[int] = []
        self.rolled_back: int = first - course.first - len(course.records)
        self._in_a_row = 0
        self._gradient: float | None = None
        self._error: Exception | None = None

    def play(self) -> Turn:
        """All rounds; what this side has evaluated for the last look, of which both sides have heard.

        Raises what either side has raised, on both.
        """
        s = self.split.staleness
        while True:
            turn = None
            if self._error is None:
                with self._kept_for_all():
                    turn = self.side.evaluate(self.number)
            self.say(turn)
            failed = self._error is not None
            if not failed:
                self.hear(max(self.first, self.number - s))
                if self._together():
                    self.hear(self.number)
                failed = any(word.failed for word in self.theirs.values())
            if s == 0:
                # The side that has failed hears the other's word too: both judge the round before.
                self.hear(self.number)
                self._complete_records(self.split.world)
            else:
                with self._kept_for_all():
                    self._complete_records(self.split.comm)
            if failed:
                self._post.drain()
                self.number = self.split.world.allreduce(self.number, op=MPI.MAX)
                raise_together(self.split.world, self._error)
            if self._together():
                self._post.settle()
                raise_together(self.split.world, self._error)
                if self.number < self.end and self.legs is not None:
                    reason = self.legs.keep(self.number)
                    if reason is not None:
                        self.end, self.stop = self.number, reason
                if self.number == self.end:
                    assert turn is not None
                    return turn
            if self._error is None and turn is not None:
                with self._kept_for_all():
                    self._gradient = self._answer(turn)
            self.number += 1

    def _together(self) -> bool:
        """Whether both sides are at this round before either goes on."""
        return self.number == self.end or (self.legs is not None and self.number == self.legs.end)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Where θ has led to a PDE that cannot be solved, undo the step that led there."""
        try:
            yield
        except (CoefficientError, SolveError):
            self.side.player.undo()
            raise

    @contextmanager
    def _kept_for_all(self) -> Iterator[None]:
        """Keep an error, which this side's ranks agree on, until the other side has been told."""
        try:
            with self.undone_on_error():
                yield
        except Exception as error:
            self._error = error

    # -- words ---------------------------------------------------------------------------------------------

    def say(self, turn: Turn | None) -> None:
        """Say what was evaluated, or that there is an error."""
        word = Word(self.number, self.end, self.stop, self._gradient, failed=self._error is not None)
        if turn is not None:
            word = replace(
                word,
                values=turn.values,
                finite=turn.finite,
                misfit=turn.misfit,
                norm=turn.norm,
                parameters=turn.parameters,
            )
            self.turns[self.number] = turn
        self.mine[self.number] = word
        self._gradient = None
        self._post.send(word)

    def hear(self, least: int, anew: bool = False) -> None:
        """Hear what has come, and wait until the other side has said its word of round `least`, or has failed."""
        if anew:
            self.theirs.pop(least)
        with self.game.clock("wait"):
            if self.split.staleness > 0:
                self._take(self._post.hear(wait=False))
            while not any(word.failed or number >= least for number, word in self.theirs.items()):
                self._take(self._post.hear(wait=True))

    def _take(self, words: list[Word]) -> None:
        for word in words:
            self.theirs[word.round] = word
            if word.end < self.end:
                self.end, self.stop = word.end, word.stop

    # -- answers -------------------------------------------------------------------------------------------

    def _answer(self, turn: Turn) -> float | None:
        """Answer the newest word that can be answered; the norm of the gradient, or None where no step counts."""
        player, oldest = self.side.player, self.number - self.split.staleness
        if not turn.finite:
            player.take_back()
            return None
        answerable = [word.round for word in self.theirs.values() if word.finite and word.round >= oldest]
        if not answerable:
            return None
        word = self.theirs[max(answerable)]
        self.ages.append(max(0, self.number - word.round))
        with self.game.clock("answer"):
            look = player.answer_to(self.objective(turn, word))
        return look.gradient_norm if look.finite else None

    def objective(self, turn: Turn, word: Word) -> Any:
        """This side's J against a word, at the ghost points of that word."""
        ghosts = self._ghosts(word.round)
        return self.side.objective(turn, ghosts, rows_of(word, ghosts))

    def _ghosts(self, number: int) -> GhostPoints:
        """The ghost points of a round, which may be one that this side has yet to come to."""
        turn = self.turns.get(number)
        return self.game.sampler.draw(number) if turn is None else turn.ghosts

    # -- records -------------------------------------------------------------------------------------------

    def _complete_records(self, comm: MPI.Comm) -> None:
        """Judge the rounds of which both sides have told how they ended; `comm`: of those who judge together."""
        while self._complete + 1 in self.mine and self._complete + 1 in self.theirs:
            number = self._complete
            self._complete += 1
            gradients = [w[number + 1].gradient for w in (self.mine, self.theirs)]
            if not self.split.is_physical:
                gradients.reverse()
            record = None
            if gradients[0] is not None and gradients[1] is not None:
                record = self.record(number, (gradients[0], gradients[1]))
            self._forget(number)
            self._judge(record, comm)

    def _judge(self, record: Record | None, comm: MPI.Comm) -> None:
        if record is None:
            self.rolled_back += 1
            self._in_a_row += 1
            if self._in_a_row >= PATIENCE:
                raise FloatingPointError(
                    f"the objective was not finite after each of the last {PATIENCE} steps, all taken back; use a "
                    "smaller learning rate or another start"
                )
            return
        self._in_a_row = 0
        if not self.history and self.split.is_physical:
            with self._kept_for_all():  # where warnings are errors, an error of this side alone
                warn_of_idle_parameters(self.game.physical, self.split.comm)
        self.history.append(record)
        if not self.callbacks and self.stopping is None:
            return
        with agreed(comm):
            wishes = [bool(callback(record)) for callback in self.callbacks]
            reason = None if self.stopping is None else self.stopping.reason(self.history)
        reasons = comm.allgather("callback" if any(wishes) else reason)
        if any(reasons):
            s = self.split.staleness
            end = self.number if s == 0 else self.number + s + 1
            if end < self.end:
                self.end = end
                self.stop = "callback" if "callback" in reasons else next(r for r in reasons if r is not None)

    def record(self, number: int, gradients: tuple[float, float]) -> Record:
        """The state before a round, from the words of both sides."""
        turn, word = self.turns[number], self.theirs[number]
        own = self.mine[number]
        phy, syn = (own, word) if self.split.is_physical else (word, own)
        local = local_interaction(turn.at_ghosts, rows_of(word, turn.ghosts), turn.ghosts)
        interaction = float(sum_array(self.split.comm, np.array([float(local)]))[0])
        misfit_phy, misfit_syn = (0.0 if math.isnan(w.misfit) else w.misfit for w in (phy, syn))
        return Record(
            number,
            misfit_physical=phy.misfit,
            misfit_synthetic=syn.misfit,
            interaction=interaction,
            potential=turn.weights.potential(misfit_phy, misfit_syn, interaction, syn.norm, phy.norm),
            gradient_physical=gradients[0],
            gradient_synthetic=gradients[1],
            parameters=phy.parameters,
        )

    def _forget(self, number: int) -> None:
        """Drop what no later round can need."""
        newest = max(self.theirs)
        for memory in (self.turns, self.mine, self.theirs):
            for old in [r for r in memory if r <= number and r < newest - self.split.staleness]:
                del memory[old]  # type: ignore[attr-defined]
