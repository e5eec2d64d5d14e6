"""Deep Ritz: the energy of a PDE minimised over a network (E, Yu, Commun. Math. Stat. 6 (2018))."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hyco_fem.bridge.ghosts import RandomGhosts, RandomSampler
from hyco_fem.game.answers import AdamStep
from hyco_fem.game.baselines import _Alone
from hyco_fem.game.history import Callback, Record, Result
from hyco_fem.game.loop import Clock, Stopping
from hyco_fem.game.player import Answer, Look, Player
from hyco_fem.models.synthetic import HardBoundary
from hyco_fem.parallel import agreed, check_replicated
from hyco_fem.ritz.energy import Jet, RitzEnergy
from hyco_fem.ritz.features import Trial, inner_jet, trial_of


@dataclass(frozen=True)
class RitzRecord(Record):
    """A `Record` of Deep Ritz.  Replicated.

    energy: E(v), penalty included, at the points of the round.  boundary: the mean square of v − g over Γ_D.
    gradient_synthetic: the norm of the gradient of E by the parameters.
    """

    energy: float = math.nan
    boundary: float = math.nan


class DeepRitz(_Alone):
    """min E(v) over the parameters of a network v.

    The boundary values are hard, v = g + ℓN, where the network is a `HardBoundary`; otherwise the energy needs a
    penalty.  ℓ, g and their gradients are evaluated once.

    On the fixed quadrature of the energy a network with many parameters may lower the sum and not the integral, by
    steep gradients between the points.  Compare with the energy of the same network on a rule of higher degree; what
    helps is a finer mesh, a higher degree, or fresh points in each round: points=RandomGhosts(n).  Those are for Adam:
    a line search, as in L-BFGS, answers one draw exactly.

    Args:
        energy: E.
        network: v, with one output, and differentiable in x: not constant in pieces.
        answer: How the parameters are moved; by default single Adam steps.  Assign another between two runs to go on
            with it: Adam first, then L-BFGS.
        points: None for the quadrature of the energy, or points drawn uniformly in Ω in each round.

    Raises:
        ValueError: the network does not meet the values on Γ_D and there is no penalty; more than one output; on all
            ranks.

    Construction and `run` are collective.
    """

    def __init__(
        self,
        energy: RitzEnergy,
        network: nn.Module,
        answer: Answer | None = None,
        *,
        points: RandomGhosts | None = None,
    ) -> None:
        self.energy, self.model, self.comm = energy, network, energy.comm
        with agreed(self.comm):
            if not isinstance(network, nn.Module):
                raise TypeError(f"DeepRitz trains a torch module, not {type(network).__name__}")
            if points is not None and not isinstance(points, RandomGhosts):
                raise TypeError(f"points must be a RandomGhosts, or None, not {type(points).__name__}")
        check_replicated(network.named_parameters(), self.comm)
        self._sampler = None if points is None else RandomSampler(energy.mesh, points)
        self._hard = isinstance(network, HardBoundary) and network.interval is None and _is_fixed(network)
        self._trial: Trial | None = trial_of(energy, network) if self._hard else None  # type: ignore[arg-type]
        self._check_values()
        self._drawn: tuple[int, RitzEnergy, Trial | None] | None = None
        self._first: Jet | None = None
        self.clock, self.next_round = Clock(), 0
        self.answer = answer or AdamStep(1e-3)

    def _check_values(self) -> None:
        energy = self.energy
        seen = energy._seen(self.model)  # and whether it is a scalar field at all
        if energy.penalty is not None or self._hard:
            return
        missed = energy.missed(seen)
        scale = 1.0 + energy._total(energy.fixed.weights @ energy.g.square())
        with agreed(self.comm):
            if missed > 1e-12 * scale:
                raise ValueError(
                    f"the network misses the values on Γ_D by {missed**0.5:.2e} in the mean square, and the energy has "
                    "no penalty: wrap it, hyco_fem.HardBoundary(network, hyco_fem.mesh_distance(mesh, facets), g), or "
                    "make the energy with a penalty"
                )

    @property
    def answer(self) -> Answer:
        """How it answers."""
        return self._answer

    @answer.setter
    def answer(self, answer: Answer) -> None:
        with agreed(self.comm):
            self.player = Player("Ritz", dict(self.model.named_parameters()), answer, self.comm)
        self._answer = answer

    def run(
        self,
        rounds: int,
        *,
        tolerance: float | None = None,
        stopping: Stopping | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Result:
        """Play rounds; see `hyco_fem.game.loop.run`.  Of the criteria to stop only `gradient` makes sense."""
        with agreed(self.comm):
            if stopping is not None and (stopping.stagnation is not None or stopping.discrepancy is not None):
                raise ValueError("an energy has no misfit to watch: stop by Stopping(gradient=…) or by a callback")
        return super().run(rounds, tolerance=tolerance, stopping=stopping, callbacks=callbacks)

    def objective(self) -> Callable[[], Tensor]:
        """E at the points of the coming round."""
        energy, trial = self._at(self.next_round)
        self._first = None

        def local() -> Tensor:
            if trial is None:
                v = energy.jet(self.model)
            else:
                with agreed(self.comm):
                    v = trial.lifted(inner_jet(trial, self.model.network))  # type: ignore[union-attr]
            if self._first is None:
                self._first = v.detach()
            return energy.of(v)

        return local

    def _at(self, number: int) -> tuple[RitzEnergy, Trial | None]:
        """The energy at the points of a round, with ℓ and g there."""
        if self._sampler is None:
            return self.energy, self._trial
        if self._drawn is None or self._drawn[0] != number:
            energy = self.energy.at(self._sampler.draw(number))
            trial = trial_of(energy, self.model) if self._hard else None  # type: ignore[arg-type]
            self._drawn = number, energy, trial
        return self._drawn[1:]

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> RitzRecord:
        assert self._first is not None
        return RitzRecord(
            number,
            gradient_synthetic=look.gradient_norm,
            parameters=parameters,
            energy=look.objective,
            boundary=self.energy.missed(self._first),
        )


def _is_fixed(network: HardBoundary) -> bool:
    """Whether ℓ and g have no parameters that training could move."""
    parts = (part for part in (network.distance, network.value) if isinstance(part, nn.Module))
    return not any(p.requires_grad for part in parts for p in part.parameters())
