"""What the two kinds of physics-informed networks share: one player for φ and θ together, and its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
from torch import Tensor, nn

from hyco_fem.game.answers import AdamStep, Steps, TorchStep
from hyco_fem.game.baselines import _Alone
from hyco_fem.game.data import Data
from hyco_fem.game.history import Record, parameter_values
from hyco_fem.game.loop import LONGEST_IN_HISTORY, Clock
from hyco_fem.game.player import Answer, Look, Method, Player
from hyco_fem.parallel import agreed, check_replicated, sum_array


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError where a weight is negative or not finite, or all of them are zero."""
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the weight {name} must be finite and not negative, not {value}")
    if not any(weights.values()):
        raise ValueError(f"the weights {', '.join(weights)} are all zero: there is nothing to minimise")


@dataclass(frozen=True)
class InformedRecord(Record):
    """A `Record` of a physics-informed network.  Replicated.

    misfit_synthetic: L_syn.  residual: mean square of the strong residual, or square of the dual norm of the assembled
    one.  boundary: mean square by which boundary conditions are missed.  objective: their weighted sum.
    gradient_synthetic: the norm of its gradient by φ and θ together.
    """

    residual: float = math.nan
    boundary: float = math.nan
    objective: float = math.nan


@dataclass(frozen=True)
class _TwoRates:
    """An answer with a learning rate of their own for some of the parameters."""

    answer: AdamStep | TorchStep
    slow: frozenset[str]
    lr: float

    def method(self, player: Player) -> Method:
        optimiser = self.answer.method(player).optimiser  # type: ignore[attr-defined]
        others = [p for name, p in player.named.items() if name in self.slow]
        chosen = {id(p) for p in others}
        for group in optimiser.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
        optimiser.add_param_group({"params": others, "lr": self.lr})
        return Steps(player, optimiser, self.answer.steps, self.answer.schedule)


class Informed(_Alone):
    """A network, and unknown coefficients, fitted to data and to a PDE by one player.

    Args:
        network: φ.  coefficients: a module whose parameters are θ.  data: or None.
        answer: how to answer.  coefficient_lr: learning rate of θ; by default that of the answer.
    """

    def __init__(
        self,
        network: nn.Module,
        coefficients: nn.Module,
        data: Data | None,
        comm: MPI.Comm,
        answer: Answer,
        coefficient_lr: float | None,
    ) -> None:
        # The model of a run is that of θ: a result names coefficients, not the weights of the network.
        self.synthetic, self.model, self.comm = network, coefficients, comm
        self.sensors = data
        with agreed(comm):
            if coefficient_lr is not None and not 0 < coefficient_lr < math.inf:
                raise ValueError(f"coefficient_lr must be finite and positive, not {coefficient_lr}")
            if coefficient_lr is not None and not isinstance(answer, (AdamStep, TorchStep)):
                raise ValueError(
                    f"coefficient_lr is for AdamStep and TorchStep; {type(answer).__name__} has no learning rates"
                )
        self._coefficient_lr = coefficient_lr
        self._named = {f"synthetic.{n}": p for n, p in network.named_parameters()}
        self._named |= dict(coefficients.named_parameters())
        check_replicated(self._named.items(), comm)
        self.clock, self.next_round = Clock(), 0
        self._terms: list[Tensor] | None = None
        self._number = 0
        self.answer = answer

    @property
    def answer(self) -> Answer:
        """How it answers.  To go on with another answer, Adam first and then L-BFGS, assign it between two runs.

        `coefficient_lr` has a say only where an answer has learning rates.
        """
        return self._answer

    @answer.setter
    def answer(self, answer: Answer) -> None:
        used: Answer = answer
        theta = frozenset(n.removeprefix("coefficients.") for n, p in self.model.named_parameters() if p.requires_grad)
        if self._coefficient_lr is not None and theta and isinstance(answer, (AdamStep, TorchStep)):
            used = _TwoRates(answer, theta, self._coefficient_lr)
        with agreed(self.comm):
            self.player = Player("physics-informed", self._named, used, self.comm)
        self._answer = answer

    def terms(self, number: int) -> list[Tensor]:
        """This rank's summands of misfit, residual and boundary term, not weighted.  Collective."""
        raise NotImplementedError

    def factors(self) -> list[float]:
        """Weights of the three."""
        raise NotImplementedError

    def objective(self) -> Callable[[], Tensor]:
        """The weighted sum at the points of the coming round."""
        self._terms = None
        self._number = self.next_round
        return self._objective

    def _objective(self) -> Tensor:
        terms = self.terms(self._number)
        if self._terms is None:
            self._terms = [t.detach() for t in terms]
        return sum((f * t for f, t in zip(self.factors(), terms, strict=True) if f > 0), 0.0 * terms[0].detach())

    def _trained(self) -> dict[str, nn.Module]:
        return {"synthetic": self.synthetic, "model": self.model}

    def _parameters(self) -> dict[str, Any]:
        return parameter_values(self.model, self.comm, LONGEST_IN_HISTORY)

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> Record:
        assert self._terms is not None
        misfit, residual, boundary = sum_array(self.comm, np.array([float(t) for t in self._terms]))
        return InformedRecord(
            number,
            misfit_synthetic=math.nan if self.sensors is None else float(misfit),
            gradient_synthetic=look.gradient_norm,
            parameters=parameters,
            residual=float(residual),
            boundary=float(boundary),
            objective=look.objective,
        )
