"""When the two sides of a split game come together so that it can be kept."""

from __future__ import annotations

import time
from typing import Any

from hyco_fem.parallel import max_over_ranks

# So much of the time from one checkpoint to the next may pass until the keeper is asked, and so many seconds at most:
# it has to notice signals too.
SHARE, LONGEST = 0.1, 5.0


class Legs:
    """The rounds of a split game in legs, at whose ends the keeper is asked.

    Without staleness the sides are at the same round anyway, and a leg is one round.  With staleness the end of a leg
    lets the sides wait for each other, so it has as many rounds as the keeper's times allow.

    Args:
        game: A `SplitHyco`.
        keeper: The `Checkpoints` that keep it.

    Attributes:
        end: the round before which the sides come together next.  Replicated over both sides.
    """

    def __init__(self, game: Any, keeper: Any) -> None:
        self._game, self._keeper = game, keeper
        self._begun: int = game.next_round
        self._start = time.monotonic()
        self.end: int = self._begun + 1

    def keep(self, number: int) -> str | None:
        """Let the game be kept, both sides being before round `number`; a reason to stop, or None.

        Collective over both sides.
        """
        self._game.next_round = number
        with self._game.clock("checkpoints"):
            reason: str | None = self._keeper.keep()
        self.end = number + self._length(number)
        return reason

    def _length(self, number: int) -> int:
        """How many rounds the next leg has."""
        if self._game.split.staleness == 0:
            return 1
        played, now = number - self._begun, time.monotonic()
        slowest = float(max_over_ranks(self._game.comm, [now - self._start])[0])
        self._begun, self._start = number, now
        # The first rounds may be slow ones, so a leg grows to its length by and by.
        length = 2 * max(played, 1)
        aim = min(SHARE * self._keeper.seconds, LONGEST)
        if slowest > 0:
            length = min(length, int(aim * played / slowest))
        if self._keeper.rounds is not None:
            # From the last checkpoint, which may be one for a signal, or by the time.
            length = min(length, int(self._keeper.rounds - self._keeper.rounds_since()))
        return max(length, 1)
