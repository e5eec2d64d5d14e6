"""The warm-up of a game: before the first round the network alone is fitted to the data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from torch import nn

from hyco_fem.game.baselines import NetworkOnly
from hyco_fem.game.data import Data
from hyco_fem.game.history import Record, Result
from hyco_fem.game.loop import Course
from hyco_fem.game.player import Answer
from hyco_fem.game.state import State, record_entry, record_of


class WarmUp:
    """A warm-up that can be left in the middle, and gone on with in another process.

    To its own trainer it is the `Keeper`, which asks whoever keeps the game.

    Args:
        network, data, answer: As for `NetworkOnly`.

    Attributes:
        stop: why it was left; None where it was not.

    Every method is collective.
    """

    def __init__(self, network: nn.Module, data: Data, answer: Answer) -> None:
        self.trainer = NetworkOnly(network, data, answer)
        self.stop: str | None = None
        self.course = Course(0)
        self.seconds: float = math.inf
        self.rounds: int | None = None
        self._keep: Callable[[], str | None] | None = None
        self._lines: list[str] = []

    @property
    def played(self) -> int:
        """How many rounds of it were played."""
        return self.trainer.next_round

    def play(self, steps: int, keep: Callable[[], str | None] | None = None) -> Result | None:
        """Take what is left of the steps.  Its result, over all processes; None where `keep` gave a reason to stop.

        keep: Called after each round; collective, the same on all ranks.
        """
        self._keep, self.stop = keep, None
        each = getattr(self.trainer.player.answer, "steps", 1)
        result = self.trainer.run(-(-steps // each), callbacks=[self])
        return result if self.stop is None else None

    def __call__(self, record: Record) -> None:
        """Nothing: a keeper is asked by `keep`."""

    def begin(self, trainer: object) -> None:
        """Nothing to check: it is the trainer of this warm-up."""

    def keep(self) -> str | None:
        """Let the game be kept; a reason to stop, or None."""
        self.stop = None if self._keep is None else self._keep()
        return self.stop

    def state(self) -> State:
        """All but the network.  Collective."""
        # Each record is written down once, not for each checkpoint.
        self._lines += [json.dumps(record_entry(r)) for r in self.course.records[len(self._lines) :]]
        return {"player": self.trainer.player.state(), "played": self.played, "history": "\n".join(self._lines)}

    def restore(self, state: State) -> None:
        """Put a state back, where the network has been put back already.  Collective."""
        self.trainer.player.restore(state["player"])
        self.trainer.next_round = state["played"]
        self._lines = state["history"].splitlines()
        self.course.records[:] = [record_of(json.loads(line)) for line in self._lines]
