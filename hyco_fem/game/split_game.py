"""HYCO with each player on ranks of its own, both at work at once.

A round of a side: evaluate the model, say so to the other side, hear what has come from there, answer the newest of it.
The sides may be apart by the staleness s: a side answers its round r as soon as it has heard of round r − s or a later
one, and compares the models at the ghost points of the round that it has heard of.  With s = 0 both answer the same
round, which is the simultaneous game.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from torch import nn

from hyco_fem.bridge.ghosts import DofGhosts, Ghosts
from hyco_fem.game.answers import Answers
from hyco_fem.game.data import Data, Sensing
from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.hyco import Hyco
from hyco_fem.game.loop import (
    LONGEST_IN_HISTORY,
    PLAYERS,
    Clock,
    Course,
    Keeper,
    Stopping,
    checked_stopping,
    keeper_among,
)
from hyco_fem.game.losses import Weights
from hyco_fem.game.prior import Prior
from hyco_fem.game.rules import Rule
from hyco_fem.game.split import Split
from hyco_fem.game.split_legs import Legs
from hyco_fem.game.split_match import Match
from hyco_fem.game.split_sides import PhysicalSide, Side, SyntheticSide, Turn
from hyco_fem.game.state import State, module_state, plain, restore_module, result_of, result_text
from hyco_fem.game.warm_up import WarmUp
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, check_replicated, is_distributed, raise_together

_SIDES = ("physical", "synthetic")


@dataclass
class SplitResult(Result):
    """The outcome of a split game.  Replicated over both sides.

    staleness: for each player, mean and largest age in rounds of the answers that it answered in this call of run().
    timings: seconds on the first rank of each side, by side and part ("physical.solve", "synthetic.wait").
    """

    staleness: dict[str, tuple[float, int]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What goes into summary.json; NaN becomes null."""
        return super().summary() | {"staleness": {name: list(ages) for name, ages in self.staleness.items()}}


class SplitHyco:
    """The game of `Hyco`, with the physical player on some ranks and the synthetic player on others.

    Only values at ghost points cross, and a few numbers.  Both models exist on both sides, and are equal before the
    first round and after the last; in between each side has its own.

    Args:
        physical, synthetic, data, weights, answers, prior, warm_up: As for `Hyco`; all built on `split.comm`.
        ghosts: `RandomGhosts`, `QuadratureGhosts`, `BoundaryGhosts` or a `GhostUnion`.
        split: Who works where, and how stale an answer may be.

    Raises:
        ValueError: a model or data on other ranks than split.comm; models or meshes that differ between the sides;
            DofGhosts; a rule that chooses the weights; a NodalField; on all ranks.

    Construction and every method are collective over `split.world`.
    """

    def __init__(
        self,
        physical: PhysicalModel | TransientModel,
        synthetic: nn.Module,
        data: Data | Sensing,
        ghosts: Ghosts | None = None,
        *,
        split: Split,
        weights: Weights | Callable[[int], Weights] | None = None,
        answers: Answers | None = None,
        prior: Prior | None = None,
        warm_up: int = 0,
    ) -> None:
        self.split, self.comm = split, split.world
        self.physical, self.synthetic, self.data = physical, synthetic, data
        with agreed(self.comm):
            _check_arguments(split, physical, data, ghosts, weights)
        check_replicated([*physical.named_parameters(), *synthetic.named_parameters()], self.comm)
        with self._raised_on_all_ranks():
            # The same game on this side's ranks, of which this side's player is the one that moves.
            self._game = Hyco(
                physical,
                synthetic,
                data,
                ghosts,
                weights=weights,
                answers=answers,
                schedule="simultaneous",
                prior=prior,
            )
            if warm_up < 0:
                raise ValueError(f"warm_up must not be negative, it is {warm_up}")
            if warm_up and self._game.sensing.synthetic is None:
                raise ValueError("there is no warm-up for a network that sees no data")
        self._check_ghosts()
        self.side: Side = PhysicalSide(self._game) if split.is_physical else SyntheticSide(self._game)
        self.clock: Clock = self._game.clock
        self.warm_up = warm_up
        self.warm_up_result: Result | None = None
        self._warm_up_text: str | None = None
        # How far the warm-up is, known on both sides; the warm-up itself, on its own.
        self.warming: int | None = None
        self._warming: WarmUp | None = None
        self.next_round = 0

    def _check_ghosts(self) -> None:
        with self._raised_on_all_ranks():
            points = self._game.sampler.draw(0)
            x = points.gather(points.x)
        theirs = self.comm.bcast(x, root=0)
        with agreed(self.comm):
            if x.shape != theirs.shape or np.abs(x - theirs).max(initial=0.0) > 1e-9 * np.abs(theirs).max(initial=1.0):
                raise ValueError(
                    "the two sides have different ghost points: build the same mesh and the same ghosts on both"
                )

    @contextmanager
    def _raised_on_all_ranks(self) -> Iterator[None]:
        """Raise on both sides what all ranks of one have raised.  Collective."""
        error: Exception | None = None
        try:
            yield
        except Exception as e:
            error = e
        raise_together(self.comm, error)

    def run(
        self,
        rounds: int,
        *,
        tolerance: float | None = None,
        stopping: Stopping | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> SplitResult:
        """Warm up if that was not done yet, and play rounds; a second call goes on from where the first ended.

        Args, raises: As `Hyco.run`; after an error each side holds what it has found itself.  A callback is called on
        both sides, with equal records; of the models only that of its own side is up to date.  With a staleness s > 0
        each side calls it in its own time, so that it must not communicate with the other side; and a game that stops
        before its rounds are over plays up to 2 s + 1 rounds more.

        With `Checkpoints` among the callbacks the game is played in legs.  With s = 0 a leg is a round, and the history
        is that of the game without them, also when it goes on in another process; but not for a network that draws
        random numbers or keeps statistics, which is then evaluated once more.  With s > 0 the sides wait for each other
        at the end of a leg, and begin the next one with answers that are not stale.
        """
        with agreed(self.comm):
            stopping = checked_stopping(rounds, tolerance, stopping)
            keeper, callbacks = keeper_among(callbacks)
        if keeper is not None:
            keeper.begin(self)
        course = Course(self.next_round) if keeper is None else keeper.course
        stop = self._warm_up(keeper)
        if stop is not None:
            self._share_models()
            return self._unplayed(course, stop)
        first, end = self.next_round, max(self.next_round, course.first + int(rounds))
        # A run that had come to its end has nothing to go on with.
        met = stopping.reason(course.records) if stopping is not None and course.records else None
        met = self.comm.bcast(met, root=0)
        with self.clock("total"):
            legs = None if keeper is None else Legs(self, keeper)
            match = Match(self.split, self.side, first, end, stopping, callbacks, course, legs)
            if met is not None:
                match.end, match.stop = first, met
            try:
                turn = match.play()
            finally:
                self.next_round = match.number
            final = self._final(match, turn)
            self._share_models()
            if legs is not None:
                match.stop = legs.keep(match.number) or match.stop
        return self._result([*match.history, final], match.rolled_back, match.stop, match.ages)

    def _warm_up(self, keeper: Keeper | None) -> str | None:
        """Warm up where that was not done yet; why the run has to end there, or None."""
        data, root = self._game.sensing.synthetic, self.split.roots[1]
        if data is None or (self.warming is None and (self.warm_up_result is not None or not self.warm_up)):
            return None
        result: Result | None = None
        error: Exception | None = None
        stop: str | None = None

        def keep(played: int) -> None:
            """Collective over both sides, and so is an error of it."""
            nonlocal error, stop
            assert keeper is not None
            self.warming = played
            try:
                stop = keeper.keep()
            except Exception as e:
                error, stop = e, "error"

        if self.split.is_physical:
            while (played := self.comm.bcast(None, root=root)) is not None:
                keep(played)
        else:
            try:
                warm_up = self._warming = self._warming or self._alone()

                def tell_and_keep() -> str | None:
                    keep(self.comm.bcast(warm_up.played, root=root))
                    return stop

                with self.clock("warm_up"):
                    result = warm_up.play(self.warm_up, None if keeper is None else tell_and_keep)
            except Exception as e:
                error = e
            self.comm.bcast(None, root=root)
        raise_together(self.comm, error)
        if stop is None:
            self.warm_up_result = self.comm.bcast(result, root=root)
            self.warming = self._warming = None
        return stop

    def _alone(self) -> WarmUp:
        """A warm-up on the ranks of this side."""
        data = self._game.sensing.synthetic
        assert data is not None
        return WarmUp(self.synthetic, data, self._game.answers.synthetic)

    def _final(self, match: Match, turn: Turn) -> Record:
        """The state at the end, with both gradients at the same (θ, φ); steps that led to nothing finite taken back."""
        for _ in range(PLAYERS + 1):
            word, gradient = match.theirs[match.end], None
            with self._raised_on_all_ranks(), match.undone_on_error():
                if turn.finite and word.finite:
                    look = self.side.player.look(match.objective(turn, word)())
                    gradient = look.gradient_norm if look.finite else None
                if not turn.finite or (word.finite and gradient is None):
                    self.side.player.take_back()
            gradients = [self.comm.bcast(gradient, root=r) for r in self.split.roots]
            if None not in gradients:
                with self._raised_on_all_ranks():
                    return match.record(match.end, (gradients[0], gradients[1]))
            match.rolled_back += 1
            with self._raised_on_all_ranks(), match.undone_on_error():
                turn = self.side.evaluate(match.end)
            match.say(turn)
            match.hear(match.end, anew=True)
        raise FloatingPointError(
            "the objective is not finite at the end, though the last step of each player was taken back"
        )

    def _share_models(self) -> None:
        """Both sides hold what each has found; the solution on the synthetic side is that of the θ found."""
        for model, root in zip((self.physical, self.synthetic), self.split.roots, strict=True):
            tensors = [p.detach() for p in (*model.parameters(), *model.buffers()) if not is_distributed(p)]
            found = self.comm.bcast([t.cpu() for t in tensors] if self.comm.rank == root else None, root=root)
            for mine, theirs in zip(tensors, found, strict=True):
                mine.copy_(theirs)
        with self._raised_on_all_ranks(), torch.no_grad():
            if not self.split.is_physical:
                self.physical.solve()

    def _unplayed(self, course: Course, stop: str) -> SplitResult:
        """The result of a run that had to end before a round: its last record has no numbers but the parameters."""
        with self._raised_on_all_ranks():
            parameters = parameter_values(self.physical, self._game.comm, LONGEST_IN_HISTORY)
        now = Record(self.next_round, parameters=parameters)
        return self._result([*course.records, now], self.next_round - course.first - len(course.records), stop, [])

    def _result(self, history: list[Record], rolled_back: int, stop: str, ages: list[int]) -> SplitResult:
        mine = (float(np.mean(ages)) if ages else 0.0, max(ages, default=0))
        told = self.comm.allgather((self.split.side, dict(self.clock.seconds), mine))
        history, stop = self.comm.bcast((history, stop), root=0)
        with self._raised_on_all_ranks():
            parameters = parameter_values(self.physical, self._game.comm)
        firsts = [told[r] for r in self.split.roots]
        return SplitResult(
            parameters=self.comm.bcast(parameters, root=0),
            history=history,
            nash_residual=(history[-1].gradient_physical, history[-1].gradient_synthetic),
            rounds=len(history) - 1,
            rolled_back=rolled_back,
            stop=stop,
            timings={f"{side}.{part}": t for side, seconds, _ in firsts for part, t in seconds.items()},
            staleness={side: age for side, _, age in firsts},
        )

    # -- state -----------------------------------------------------------------------------------------------

    def _trained(self) -> dict[str, nn.Module]:
        return {"physical": self.physical, "synthetic": self.synthetic}

    def state(self) -> State:
        """What each side has found, on both: see `ResumableTrainer`.  Collective over both sides, at the same round.

        Raises:
            ValueError: an answer has no state to give; on all ranks.
        """
        name, comm = self.split.side, self.split.comm
        with self._raised_on_all_ranks():
            mine = plain(
                {
                    "model": module_state(self._trained()[name], comm),
                    "player": self.side.player.state(),
                    "warming": None if self._warming is None else self._warming.state(),
                }
            )
        sides = [self.comm.bcast(mine if self.comm.rank == root else None, root=root) for root in self.split.roots]
        if self.warm_up_result is not None and self._warm_up_text is None:
            self._warm_up_text = result_text(self.warm_up_result)
        return {
            "models": {name: side["model"] for name, side in zip(_SIDES, sides, strict=True)},
            "players": {name: side["player"] for name, side in zip(_SIDES, sides, strict=True)},
            "next_round": self.next_round,
            "warm_up": self._warm_up_text,
            "warming": sides[1]["warming"],
        }

    def restore(self, state: State) -> None:
        """Put a state back, in place: that of the same game, on any number of ranks.  Collective over both sides."""
        with self._raised_on_all_ranks():
            for name, module in self._trained().items():
                restore_module(module, state["models"][name], self.split.comm)
            self.side.player.restore(state["players"][self.split.side])
            self._warming, self.warming = None, None
            if state["warming"] is not None:
                self.warming = state["warming"]["played"]
                if not self.split.is_physical:
                    self._warming = self._alone()
                    self._warming.restore(state["warming"])
        self._warm_up_text = state["warm_up"]
        self.warm_up_result = None if self._warm_up_text is None else result_of(self._warm_up_text)
        self.next_round = state["next_round"]


def _check_arguments(
    split: Split, physical: PhysicalModel | TransientModel, data: Data | Sensing, ghosts: Ghosts | None, weights: Any
) -> None:
    alike = (MPI.IDENT, MPI.CONGRUENT)
    sensing = data if isinstance(data, Sensing) else Sensing(data, data)
    given = [("physical model", physical.comm)]
    given += [("data", d.points.comm) for d in (sensing.physical, sensing.synthetic) if d is not None]
    for what, comm in given:
        if MPI.Comm.Compare(comm, split.comm) not in alike:
            raise ValueError(
                f"the {what} lives on {comm.size} rank(s), which are not those of split.comm ({split.comm.size}, the "
                f"{split.side} side); build mesh, models and data on split.comm"
            )
    if isinstance(ghosts, DofGhosts):
        raise ValueError(
            "DofGhosts compare the models at every dof, and a field does not cross between the sides of a split game; "
            "use RandomGhosts or QuadratureGhosts"
        )
    if isinstance(weights, Rule):
        raise ValueError(
            f"a split game has no {type(weights).__name__}: choose the weights in a game with "
            "schedule='simultaneous', and pass hyco_fem.Weights"
        )
    for name, p in physical.named_parameters():
        if is_distributed(p):
            raise ValueError(
                f"'{name.removeprefix('coefficients.')}' is a field, distributed over the ranks of one side, and does "
                "not cross to the other; use schedule='simultaneous'"
            )
