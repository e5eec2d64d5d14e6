"""Ranks for the physical player and ranks for the synthetic player, and the words that pass between them.

The two sides hold the same mesh, data and ghost points, each distributed over its own ranks: draws do not know the
partition.  So only values at ghost points cross, and a few numbers, from the root of one side to the root of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from mpi4py import MPI

import numpy as np

from hyco_fem.parallel import agreed

_TAG = 17


class Split:
    """The ranks of a communicator in two: the first for the physical player, the last for the synthetic one.

    Args:
        world: All ranks of the game.
        synthetic_ranks: How many of them are for the synthetic player.
        staleness: How many rounds old an answer of the other player may be before a player waits for a newer one.
            0: both answer the same round, as in the simultaneous game.

    Attributes:
        comm: The ranks of this rank's side: build mesh, models and data on it, on both sides.
        side: "physical" or "synthetic".  world: a duplicate of the communicator given.
        roots: The first ranks of the two sides, numbered as in `world`.

    Raises:
        ValueError: fewer than two ranks, or a side without a rank; a negative staleness; on all ranks.

    Collective.
    """

    def __init__(self, world: MPI.Comm = MPI.COMM_WORLD, synthetic_ranks: int = 1, staleness: int = 0) -> None:
        with agreed(world):
            if world.size < 2:
                raise ValueError(
                    "a split game needs at least two ranks, one for each player: start it with mpirun -n 2, or use "
                    "schedule='simultaneous'"
                )
            if not isinstance(synthetic_ranks, Integral) or not 1 <= synthetic_ranks < world.size:
                raise ValueError(
                    f"of {world.size} ranks, synthetic_ranks must be between 1 and {world.size - 1}, so that each "
                    f"player has one; it is {synthetic_ranks!r}"
                )
            if not isinstance(staleness, Integral) or staleness < 0:
                raise ValueError(f"staleness must be a whole number of rounds, not negative; it is {staleness!r}")
        first = world.size - int(synthetic_ranks)
        self.world: MPI.Comm = world.Dup()
        self.roots: tuple[int, int] = (0, first)
        self.side: Literal["physical", "synthetic"] = "physical" if world.rank < first else "synthetic"
        self.comm: MPI.Comm = self.world.Split(int(world.rank >= first), world.rank)
        self.staleness: int = int(staleness)

    @property
    def is_physical(self) -> bool:
        """Whether this rank works for the physical player."""
        return self.side == "physical"

    def close(self) -> None:
        """Free both communicators, once nothing lives on `comm` any more.  Collective."""
        self.comm.Free()
        self.world.Free()


@dataclass(frozen=True)
class Word:
    """What a side says when it has evaluated its model for a round.

    round.  values: at all ghost points of the round, in the order of the draw, (n,) or (n, components); None where the
    model could not be evaluated.  finite: whether they, and the misfit, are small enough to be compared with anything.
    misfit: L of this model.  norm: |φ|², or the surprise of the prior.  parameters: θ, for the record.
    gradient: norm of the gradient in the round before, or None where there was no step.
    end, stop: the round before which the game ends, as far as this side knows, and why.
    failed: this side has an error to raise.
    """

    round: int
    end: int
    stop: str
    gradient: float | None = None
    failed: bool = False
    values: np.ndarray | None = None
    finite: bool = False
    misfit: float = np.nan
    norm: float = 0.0
    parameters: dict[str, Any] = field(default_factory=dict)


class Post:
    """Carries words between the roots, in order and none lost; all ranks of a side hear the same.

    Every method is collective over the side; `drain` is collective over both.
    """

    def __init__(self, split: Split) -> None:
        self._world, self._comm = split.world, split.comm
        self._other = split.roots[1 if split.is_physical else 0]
        self._sent = self._heard = 0
        self._requests: list[MPI.Request] = []

    def send(self, word: Word) -> None:
        """Send, without waiting."""
        self._sent += 1
        if self._comm.rank == 0:
            self._requests = [r for r in self._requests if not r.Test()]
            self._requests.append(self._world.isend(word, self._other, _TAG))

    def hear(self, wait: bool) -> list[Word]:
        """All that has arrived since; with `wait` the next word, and no more: the other side may be one round ahead."""
        words: list[Word] = []
        if self._comm.rank == 0:
            if wait:
                words.append(self._world.recv(None, self._other, _TAG))
            else:
                while (message := self._world.improbe(self._other, _TAG)) is not None:
                    words.append(message.recv())
        if self._comm.size > 1:
            words = self._comm.bcast(words, root=0)
        self._heard += len(words)
        return words

    def drain(self) -> None:
        """Hear, and forget, what the other side has sent so far: afterwards nothing is under way."""
        sent = self._world.allgather(self._sent)[self._other]
        while self._heard < sent:
            self.hear(wait=True)
        self.settle()

    def settle(self) -> None:
        """Wait until what was sent has gone: the other side hears it, or has heard it already."""
        MPI.Request.Waitall(self._requests)
        self._requests = []
