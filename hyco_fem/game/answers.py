"""How a player answers: an `Answer` describes it, a `Player` carries it out with the state that it needs.

Roll-back: a player remembers its parameters and optimiser as they were before its last step.  When the next look at
its objective finds a number that is not finite, the step is taken back and the learning rate halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.parallel import gradient_norm, sum_gradients, sum_over_ranks


@dataclass(frozen=True)
class Look:
    """What a player saw when it evaluated its objective: the value, and the norm of its gradient.  Replicated."""

    objective: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether a step from here makes sense."""
        return bool(np.isfinite(self.objective) and np.isfinite(self.gradient_norm))


class Answer(Protocol):
    """A way to answer: makes the optimiser of a player and says how many steps it takes each round."""

    @property
    def steps(self) -> int: ...

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class AdamStep:
    """`steps` steps of Adam each round (Kingma, Ba 2015)."""

    lr: float = 1e-3
    steps: int = 1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf):
            raise ValueError(f"the learning rate of AdamStep must be finite and positive, not {self.lr}")
        _check_steps(self.steps)

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh Adam, as one fused kernel."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=True)


@dataclass(frozen=True)
class TorchStep:
    """`steps` steps each round of any first-order torch optimiser, made by `factory(parameters)`.

    Optimisers that need a closure (L-BFGS) do not fit here.  Of the optimiser's state, tensors are taken back with a
    step, plain numbers are not.
    """

    factory: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 1

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """What the factory makes."""
        optimiser = self.factory(parameters)
        if not isinstance(optimiser, torch.optim.Optimizer) or isinstance(optimiser, torch.optim.LBFGS):
            raise TypeError(f"TorchStep needs a first-order torch optimiser, not {type(optimiser).__name__}")
        return optimiser


def _check_steps(steps: int) -> None:
    if int(steps) != steps or steps < 1:
        raise ValueError(f"an answer must have at least one step, not steps={steps}")


@dataclass(frozen=True)
class Answers:
    """The answers of the two players; by default the published learning rates 5e-3 and 1e-3."""

    physical: Answer = field(default_factory=lambda: AdamStep(5e-3))
    synthetic: Answer = field(default_factory=lambda: AdamStep(1e-3))


class Player:
    """A model's parameters with their optimiser.

    Args:
        name: For messages.  parameters: those to train.  answer: how.  comm: over which gradients are summed.
    """

    def __init__(self, name: str, parameters: Iterable[nn.Parameter], answer: Answer, comm: MPI.Comm) -> None:
        self.name, self.comm, self.answer = name, comm, answer
        self.parameters = [p for p in parameters if p.requires_grad]
        # A player with nothing to learn (all coefficients known) takes part, but never moves.
        self.optimiser = answer.optimiser(self.parameters) if self.parameters else None
        self._memory: _Memory | None = None

    def look(self, local_objective: Tensor) -> Look:
        """Objective (summed over ranks) and gradient (left in .grad) from this rank's summand.  Collective.

        An objective that is not finite has no gradient: an adjoint solve would fail on it.
        """
        total = sum_over_ranks(local_objective, self.comm)
        for p in self.parameters:
            p.grad = None
        if not math.isfinite(float(total.detach())):
            return Look(float(total.detach()), math.nan)
        if self.parameters and total.requires_grad:
            total.backward(inputs=self.parameters)
        sum_gradients(self.parameters, self.comm)
        return Look(float(total.detach()), gradient_norm(self.parameters, self.comm))

    def step(self) -> None:
        """One step of the optimiser with the gradients at hand; can be taken back."""
        if self.optimiser is not None:
            self._remember()
            self.optimiser.step()

    def answer_to(self, objective: Callable[[], Tensor]) -> Look:
        """Look and step, `answer.steps` times; the first look, or the first that is not finite.  Collective.

        A look that is not finite takes back the step before it and ends the answer.
        """
        first = look = self.look(objective())
        for k in range(self.answer.steps):
            if k > 0:
                look = self.look(objective())
            if not look.finite:
                self.take_back()
                return look
            self.step()
        return first

    def take_back(self) -> None:
        """Undo the last step, because it led to an objective that is not finite, and halve the learning rate.

        Raises:
            FloatingPointError: there is no step to undo.
        """
        if not self.undo():
            raise FloatingPointError(
                f"the objective of the {self.name} player is not finite at the start; check the data, the weights and "
                "the starting values"
            )

    def undo(self) -> bool:
        """Undo the last step and halve the learning rate; False where there is no step to undo."""
        if self._memory is None or self.optimiser is None:
            return False
        self._memory.restore(self.parameters, self.optimiser)
        for group in self.optimiser.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] / 2
        return True

    def _remember(self) -> None:
        assert self.optimiser is not None
        if self._memory is None or not self._memory.update(self.parameters, self.optimiser):
            self._memory = _Memory(self.parameters, self.optimiser)


class _Memory:
    """Copies of parameters and of the tensors of an optimiser's state, in arrays that are used again each round."""

    def __init__(self, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        self._keys = _tensors(parameters, optimiser)[0]
        self._copies = [t.clone() for t in _tensors(parameters, optimiser)[1]]

    def update(self, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> bool:
        """Copy what is there now; False where the optimiser has come to hold other tensors than before."""
        keys, live = _tensors(parameters, optimiser)
        if keys != self._keys:
            return False
        torch._foreach_copy_(self._copies, live)
        return True

    def restore(self, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        """Put the copies back; an optimiser whose state had other tensors then, or none, starts afresh."""
        keys, live = _tensors(parameters, optimiser)
        n = len(live)
        if keys != self._keys:
            optimiser.state.clear()
            n = len(parameters)
        torch._foreach_copy_(live[:n], self._copies[:n])


def _tensors(parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> tuple[list[Any], list[Tensor]]:
    """Parameters first, then the tensors of the optimiser's state, each with a name."""
    keys: list[Any] = list(range(len(parameters)))
    live = [p.detach() for p in parameters]
    for k, p in enumerate(parameters):
        for name, entry in optimiser.state.get(p, {}).items():
            if isinstance(entry, Tensor):
                keys.append((k, name))
                live.append(entry)
    return keys, live
