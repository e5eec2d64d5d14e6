"""Many starts: the first answer is searched for from many places on a coarse mesh, the best few are polished on finer
ones.

With more ranks than one solve needs, the ranks form groups, each with a model of its own, and share the starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from scipy.stats import qmc

from hyco_fem.game.answers import refuse_fields
from hyco_fem.game.gauss_newton import GaussNewton, bound_arrays
from hyco_fem.game.groups import shared_out
from hyco_fem.game.player import Answer, Look, Method, Player, flat, of_shape, put_flat
from hyco_fem.game.state import State, array_or_none, method_state, tensor_or_none
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, sum_array
from hyco_fem.pde.linear import SolveError

Draw = Callable[[np.random.Generator], Mapping[str, Any]]
Box = Mapping[str, tuple[Any, Any]]

# Two answers closer than this, relative to their size, are one.
_SAME = 1e-3


@dataclass(frozen=True)
class MultiStart:
    """The first answer from the best of many starts; later ones by `answer` from there.

    Args:
        draw: Where starts come from: by name of a parameter ("kappa.amplitudes") lower and upper values, between which
            a scrambled Sobol sequence is spread; or a function that draws one start, values by name, from a numpy
            generator.  Parameters that it does not name keep their values.
        starts: How many, the present values among them.
        keep: How many different ones go on from each level; a number, or one for each level.
        levels: Coarse models, coarsest first: functions of a communicator that build the same PDE on a coarser mesh,
            with the same parameters.  Points outside a coarse mesh are left out there.
        search: The answer from each start on the levels; by default `answer`.
        answer: That on the player's own model.
        seed: Of the draws.
        ranks_each: Ranks that one model of a level needs: the others work on other starts.
    """

    draw: Draw | Box
    starts: int = 32
    keep: int | Sequence[int] = 3
    levels: Sequence[Callable[[MPI.Comm], PhysicalModel | TransientModel]] = ()
    search: Answer | None = None
    answer: Answer = field(default_factory=lambda: GaussNewton(steps=30))
    seed: int = 0
    ranks_each: int = 1

    def __post_init__(self) -> None:
        keep = [self.keep] if isinstance(self.keep, int) else list(self.keep)
        for name, values in (("starts", [self.starts]), ("keep", keep), ("ranks_each", [self.ranks_each])):
            for value in values:
                if int(value) != value or value < 1:
                    raise ValueError(f"{name} of MultiStart must be a whole number of at least 1, not {value}")
        if not isinstance(self.keep, int) and len(keep) != max(1, len(self.levels)):
            raise ValueError(f"MultiStart has {len(self.levels)} levels, but keep={self.keep}")

    @property
    def kept(self) -> list[int]:
        """How many go on from each level."""
        n = max(1, len(self.levels))
        return [self.keep] * n if isinstance(self.keep, int) else list(self.keep)

    def method(self, player: Player) -> Method:
        """With no start tried yet."""
        refuse_fields("MultiStart", player)
        return Search(player, self)


@dataclass(frozen=True)
class Found:
    """What came of a start: J at the end (infinite where it failed), and the parameters there, (p,)."""

    start: int
    value: float
    theta: np.ndarray


class Search:
    """A `MultiStart` at work.

    Attributes:
        found: After the first answer, for each level and then for the player's own model, what came of each start,
            best first.
    """

    def __init__(self, player: Player, spec: MultiStart) -> None:
        self.player, self.spec = player, spec
        self.inner = spec.answer.method(player)
        self.found: list[list[Found]] = []
        self._before: np.ndarray | None = None

    def improve(self, objective: Any) -> Look:
        """Search at first, answer afterwards."""
        if self.found:
            return self.inner.improve(objective)
        parameters = self.player.parameters
        if self.spec.levels and not hasattr(objective, "portable"):
            raise TypeError(
                f"the objective of the {self.player.name} player cannot be taken to the levels of a MultiStart; leave "
                "out levels"
            )
        look = self.player.look(objective())
        if not look.finite:
            self.player.take_back()
            return look
        self._before = flat(parameters)
        best = self._before
        try:
            best = self._best(objective, look.objective)
        except BaseException:
            self.found = []
            raise
        finally:
            put_flat(parameters, best)
        return look

    def _best(self, objective: Any, value: float) -> np.ndarray:
        """The best end of all starts, or the present values where they are better than that."""
        assert self._before is not None
        candidates = [Found(k, math.inf, theta) for k, theta in enumerate(self._starts())]
        search = self.spec.search or self.spec.answer
        if self.spec.levels:
            portable = objective.portable()
            for build, keep in zip(self.spec.levels, self.spec.kept, strict=True):
                candidates = self._level(build, portable, candidates, search)[:keep]
        else:
            tried = [self._tried(objective, c, search) for c in candidates]
            candidates = self._sorted(tried)[: self.spec.kept[0]]
        last = self._sorted([self._tried(objective, c, self.spec.answer) for c in candidates])
        # The present values may be better than all that was found on coarser meshes.
        return self._before if not last or last[0].value >= value else last[0].theta

    def undo(self) -> bool:
        """Undo the last answer; where that was the search, go back to where it began."""
        if self.inner.undo():
            return True
        if self._before is None:
            return False
        put_flat(self.player.parameters, self._before)
        self._before, self.found = None, []
        return True

    def state(self) -> State:
        """What was found, where the search began, and the state of the answers that follow it."""
        inner = method_state(self.inner, self.player.name, self.spec.answer)
        return {
            "kind": f"MultiStart, then {inner['kind']}",
            "inner": inner,
            "found": [[[f.start, f.value, tensor_or_none(f.theta)] for f in level] for level in self.found],
            "before": tensor_or_none(self._before),
        }

    def restore(self, state: State) -> None:
        """Put a state back."""
        self.inner.restore(state["inner"])  # type: ignore[attr-defined]
        self.found = [[Found(start, value, theta.numpy().copy()) for start, value, theta in f] for f in state["found"]]
        self._before = array_or_none(state["before"])

    def _starts(self) -> list[np.ndarray]:
        """The present values, and drawn ones."""
        named = self.player.named
        starts = [flat(self.player.parameters)]
        with agreed(self.player.comm):
            for drawn in self._drawn(self.spec.starts - 1):
                drawn = {n.removeprefix("coefficients."): v for n, v in drawn.items()}
                unknown = sorted(set(drawn) - set(named))
                if unknown:
                    raise ValueError(f"a start of MultiStart names {unknown}; there is {sorted(named)}")
                parts = []
                for name, p in named.items():
                    value = np.asarray(drawn.get(name, p.detach().cpu().numpy()), dtype=np.float64)
                    if value.size != p.numel():
                        raise ValueError(f"a start of '{name}' has shape {value.shape}, not {tuple(p.shape)}")
                    parts.append(value.ravel())
                starts.append(np.concatenate(parts))
        return starts

    def _drawn(self, n: int) -> list[Mapping[str, Any]]:
        """n starts by name."""
        draw = self.spec.draw
        if callable(draw):
            rng = np.random.default_rng(self.spec.seed)
            return [draw(rng) for _ in range(n)]
        named = self.player.named
        box = {name.removeprefix("coefficients."): corners for name, corners in draw.items()}
        shapes = {name: tuple(named[name].shape) if name in named else np.shape(box[name][0]) for name in box}
        low, high = (
            np.concatenate([np.empty(0), *(of_shape(box[n][k], shapes[n], f"the box of '{n}'") for n in box)])
            for k in (0, 1)
        )
        if len(low) == 0 or not np.all(low < high):
            raise ValueError(f"MultiStart draws from a box, lower corners below upper ones, not from {dict(draw)}")
        sobol = qmc.Sobol(len(low), rng=self.spec.seed)
        # Sobol points are balanced in powers of two.
        points = qmc.scale(sobol.random_base2(max(0, math.ceil(math.log2(max(1, n)))))[:n], low, high)
        ends = np.cumsum([int(np.prod(shapes[name], dtype=int)) for name in box])[:-1]
        return [
            {name: part.reshape(shapes[name]) for name, part in zip(box, np.split(row, ends), strict=True)}
            for row in points
        ]

    def _level(self, build: Any, portable: Any, candidates: list[Found], search: Answer) -> list[Found]:
        """All candidates on the models of one level, shared out over groups of ranks."""

        def prepare(comm: MPI.Comm) -> tuple[PhysicalModel | TransientModel, Any, Player]:
            model = build(comm)
            objective = portable.on(model)
            player = Player(self.player.name, objective.parameters, search, comm)
            with agreed(comm):
                own, theirs = ([(n, tuple(p.shape)) for n, p in q.named.items()] for q in (self.player, player))
                if own != theirs:
                    raise ValueError(
                        f"a level of MultiStart must have the parameters {own}, in this order, not {theirs}"
                    )
            return model, objective, player

        def work(made: tuple[PhysicalModel | TransientModel, Any, Player], candidate: Found) -> Found:
            _, objective, player = made
            return _tried(objective, player, candidate, search)

        found = shared_out(
            self.player.comm, candidates, prepare, work, ranks_each=self.spec.ranks_each, close=lambda m: m[0].close()
        )
        return self._sorted(found)

    def _tried(self, objective: Any, candidate: Found, answer: Answer) -> Found:
        return _tried(objective, self.player, candidate, answer)

    def _sorted(self, found: list[Found]) -> list[Found]:
        """Best first; of those that are the same only the best, and no failed ones but in the records."""
        ordered = sorted(found, key=lambda f: (f.value, f.start))
        self.found.append(ordered)
        kept: list[Found] = []
        for f in ordered:
            near = (np.linalg.norm(f.theta - k.theta) <= _SAME * np.linalg.norm(k.theta) for k in kept)
            if math.isfinite(f.value) and not any(near):
                kept.append(f)
        return kept


def _value(objective: Any, comm: MPI.Comm) -> float:
    with torch.no_grad():
        return float(sum_array(comm, np.atleast_1d(float(objective())))[0])


def _tried(objective: Any, player: Player, candidate: Found, answer: Answer) -> Found:
    """Answer from a candidate; J infinite where the PDE cannot be solved there."""
    theta = candidate.theta
    bounds = getattr(answer, "bounds", None)
    if bounds:  # the search before may have been free to leave them
        theta = np.clip(theta, *bound_arrays(player.named, bounds, start=False))
    put_flat(player.parameters, theta)
    try:
        answer.method(player).improve(objective)
        value, theta = _value(objective, player.comm), flat(player.parameters)
    except (CoefficientError, SolveError, FloatingPointError):
        return Found(candidate.start, math.inf, candidate.theta)
    return Found(candidate.start, value if math.isfinite(value) else math.inf, theta)
