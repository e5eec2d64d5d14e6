"""The two sides of a split game: each evaluates one model, and answers what the other said at some ghost points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hyco_fem.bridge.ghosts import GhostPoints
from hyco_fem.game.history import parameter_values
from hyco_fem.game.hyco import Hyco, Scene
from hyco_fem.game.loop import LONGEST_IN_HISTORY
from hyco_fem.game.losses import Weights, network_values
from hyco_fem.game.objective import Opponent, SyntheticObjective
from hyco_fem.game.player import Player, Summand
from hyco_fem.game.split import Word
from hyco_fem.parallel import agreed, sum_array


@dataclass(frozen=True)
class Turn:
    """One side's model evaluated for a round.

    ghosts, at_ghosts: the points owned here, and the model's values there, detached.  values: those at all points.
    finite, misfit, norm, parameters: as in `Word`.  kept: what the answer needs, with its graph.
    """

    ghosts: GhostPoints
    at_ghosts: Tensor
    values: np.ndarray
    finite: bool
    misfit: float
    weights: Weights
    norm: float
    kept: Any
    parameters: dict[str, Any] = field(default_factory=dict)


class Side(Protocol):
    """What plays on the ranks of one side.  Every method is collective over them."""

    game: Hyco
    player: Player

    def evaluate(self, number: int) -> Turn:
        """The model at its present parameters, at the sensors and at the ghost points of a round."""

    def objective(self, turn: Turn, ghosts: GhostPoints, values: Tensor) -> Summand:
        """J against the other model's values at ghost points; what `turn` has evaluated is not evaluated again."""


class PhysicalSide:
    """Solves the PDE."""

    def __init__(self, game: Hyco) -> None:
        self.game, self.player = game, game.players[0]

    def evaluate(self, number: int) -> Turn:
        """One solve."""
        game = self.game
        parameters = parameter_values(game.physical, game.comm, LONGEST_IN_HISTORY)
        scene = game.scene(number)
        misfit = float(sum_array(game.comm, np.array([float(scene.misfit)]))[0])
        there = scene.at_ghosts.detach()
        values = scene.ghosts.gather(there)
        seen = math.nan if game.sensing.physical is None else misfit
        finite = _comparable(misfit, values)
        return Turn(scene.ghosts, there, values, finite, seen, scene.weights, game._norm()[1], scene, parameters)

    def objective(self, turn: Turn, ghosts: GhostPoints, values: Tensor) -> Summand:
        """J_phy."""
        scene: Scene = turn.kept
        if ghosts is not scene.ghosts:
            scene = replace(scene, ghosts=ghosts, at_ghosts=scene.elsewhere(ghosts))
        return self.game.physical_objective(scene, values)


class SyntheticSide:
    """Evaluates the network."""

    def __init__(self, game: Hyco) -> None:
        self.game, self.player = game, game.players[1]

    def evaluate(self, number: int) -> Turn:
        """One forward pass, of which the graph is kept."""
        game, data = self.game, self.game.sensing.synthetic
        # Looks at the scene for one rule only, which a split game refuses.
        weights = game._weights_of(number, None)  # type: ignore[arg-type]
        with game.clock("ghosts"):
            ghosts = game.sampler.draw(number)
        local = torch.zeros((), dtype=torch.float64)
        with game.clock("network"), agreed(game.comm):
            x = ghosts.x if data is None else torch.cat([data.points.x, ghosts.x])
            outputs = network_values(game.synthetic, x)
            there = outputs.detach()[len(x) - len(ghosts) :]
            if data is not None:
                local = data.local_misfit(outputs.detach()[: len(data.points)])
        misfit = float(sum_array(game.comm, np.array([float(local)]))[0])
        values = ghosts.gather(there)
        seen = math.nan if data is None else misfit
        finite = _comparable(misfit, values)
        return Turn(ghosts, there, values, finite, seen, weights, game._norm()[0], outputs)

    def objective(self, turn: Turn, ghosts: GhostPoints, values: Tensor) -> Summand:
        """J_syn."""
        game, w = self.game, turn.weights
        return _Evaluated(
            game.synthetic,
            game.sensing.synthetic,
            w.a2,
            w.b2,
            Opponent(ghosts, values),
            decay=w.decay,
            comm=game.comm,
            at_hand=turn.kept if ghosts is turn.ghosts else None,
        )


class _Evaluated(SyntheticObjective):
    """A synthetic objective whose first value is that of a forward pass just made at this φ, with its graph."""

    def __init__(self, *arguments: Any, at_hand: Tensor | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._network, self._at_hand = self.network, at_hand

    def __call__(self) -> Tensor:
        return self._with_values_at_hand(super().__call__)

    def residuals(self) -> np.ndarray:
        return self._with_values_at_hand(super().residuals)

    def _with_values_at_hand(self, evaluate: Callable[[], Any]) -> Any:
        values, self._at_hand = self._at_hand, None
        if values is None:
            return evaluate()
        self.network = lambda _: values  # type: ignore[assignment]
        try:
            return evaluate()
        finally:
            self.network = self._network


def rows_of(word: Word, ghosts: GhostPoints) -> Tensor:
    """The values of a word at the ghost points owned here."""
    assert word.values is not None
    return torch.from_numpy(word.values[ghosts.index])


def _comparable(misfit: float, values: np.ndarray) -> bool:
    """Whether squares of the values are finite; NumPy would warn of those that are not."""
    return math.isfinite(misfit + float(torch.from_numpy(values).square().sum()))
