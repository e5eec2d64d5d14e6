"""Players: a model's parameters, with the method by which they answer.

Roll-back: a method remembers its parameters (and optimiser) as they were before its last step.  When the next look at
the objective finds a number that is not finite, the step is taken back and the learning rate halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.game.state import State, method_state
from hyco_fem.parallel import gradient_norm, sum_gradients, sum_over_ranks

# J as a function of the player's parameters: this rank's summand.  `objective.Objective` is one, with more to it.
Summand = Callable[[], Tensor]


@dataclass(frozen=True)
class Look:
    """What a player saw when it evaluated its objective: the value, and the norm of its gradient.  Replicated."""

    objective: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether a step from here makes sense."""
        return bool(np.isfinite(self.objective) and np.isfinite(self.gradient_norm))


class Method(Protocol):
    """An answer at work, with the state that it needs from round to round.  Every method is collective."""

    def improve(self, objective: Any) -> Look:
        """Move the parameters so that J falls; the first look, or the first that is not finite."""

    def undo(self) -> bool:
        """Undo the last step and be more careful next time; False where there is none to undo."""


class Answer(Protocol):
    """How a player answers: makes the method for a player.

    Raises ValueError where it does not fit the player's parameters.
    """

    def method(self, player: Player) -> Method: ...


class Player:
    """A model's parameters with the method by which they answer.

    Args:
        name: For messages.
        parameters: Those to train, by name, or without names.
        answer: How.
        comm: Over which gradients are summed.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter] | Iterable[nn.Parameter],
        answer: Answer,
        comm: MPI.Comm,
    ) -> None:
        self.name, self.comm, self.answer = name, comm, answer
        named = parameters if isinstance(parameters, Mapping) else {str(k): p for k, p in enumerate(parameters)}
        self.named = {n.removeprefix("coefficients."): p for n, p in named.items() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.taken_back = 0
        # A player with nothing to learn (all coefficients known) takes part, but never moves.
        self.method = answer.method(self) if self.parameters else None

    def look(self, local_objective: Tensor) -> Look:
        """Objective (summed over ranks) and gradient (left in .grad) from this rank's summand.  Collective.

        An objective that is not finite has no gradient: an adjoint solve would fail on it.
        """
        total = sum_over_ranks(local_objective, self.comm)
        for p in self.parameters:
            p.grad = None
        value = float(total.detach())
        if not math.isfinite(value):
            return Look(value, math.nan)
        if self.parameters and total.requires_grad:
            total.backward(inputs=self.parameters)
        sum_gradients(self.parameters, self.comm)
        return Look(value, gradient_norm(self.parameters, self.comm))

    def gradient_norm_of(self, local: Tensor) -> float:
        """Norm of the gradient of a sum over ranks, from this rank's summand, whose graph is kept.  Collective."""
        for p in self.parameters:
            p.grad = None
        if self.parameters and local.requires_grad:
            local.backward(inputs=self.parameters, retain_graph=True)
        sum_gradients(self.parameters, self.comm)
        return gradient_norm(self.parameters, self.comm)

    def answer_to(self, objective: Summand) -> Look:
        """Answer; the first look, or the first that is not finite.  Collective.

        Raises:
            FloatingPointError: J is not finite, and there is no step to take back.
        """
        if self.method is None:
            look = self.look(objective())
            if not look.finite:
                self.take_back()
            return look
        return self.method.improve(objective)

    def take_back(self) -> None:
        """Undo the last step, because it led to an objective that is not finite; counted in `taken_back`.

        Raises:
            FloatingPointError: there is no step to undo.
        """
        self.taken_back += 1
        if not self.undo():
            raise FloatingPointError(
                f"the objective of the {self.name} player is not finite at the start; check the data, the weights and "
                "the starting values"
            )

    def undo(self) -> bool:
        """Undo the last step; False where there is none to undo."""
        return self.method is not None and self.method.undo()

    def state(self) -> State:
        """All but the parameters.  Raises ValueError where the method has no state to give."""
        method = None if self.method is None else method_state(self.method, self.name, self.answer)
        return {"taken_back": self.taken_back, "method": method}

    def restore(self, state: State) -> None:
        """Put a state back."""
        self.taken_back = state["taken_back"]
        if self.method is not None:
            self.method.restore(state["method"])  # type: ignore[attr-defined]


def of_shape(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A number or an array as an array of a shape, one after the other in C order.

    Raises ValueError where it does not fit.
    """
    array = np.asarray(value, dtype=np.float64)
    try:
        return np.broadcast_to(array, shape).ravel()
    except ValueError:
        raise ValueError(f"{what} must be a number or have shape {shape}, not {array.shape}") from None


# -- parameters as one vector ----------------------------------------------------------------------------------


def flat(parameters: Iterable[Tensor]) -> np.ndarray:
    """The values of replicated parameters one after the other, (p,), a copy."""
    parts = [p.detach().reshape(-1).cpu().double() for p in parameters]
    return torch.cat(parts).numpy().copy() if parts else np.empty(0)


def put_flat(parameters: Iterable[Tensor], values: np.ndarray) -> None:
    """Put values (p,) into parameters, in place."""
    start = 0
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.from_numpy(values[start : start + p.numel()].copy()).view(p.shape))
            start += p.numel()
