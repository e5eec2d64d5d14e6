"""Answers by gradients: steps of torch's optimisers.  `GaussNewton` and `MultiStart` have files of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hyco_fem.game.gauss_newton import GaussNewton
from hyco_fem.game.player import Answer, Look, Method, Player, Summand
from hyco_fem.game.state import State, held, kind_of, optimiser_state
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.parallel import any_rank, is_distributed
from hyco_fem.pde.linear import SolveError

Scheduler = Callable[[torch.optim.Optimizer], Any]


@dataclass(frozen=True)
class AdamStep:
    """`steps` steps of Adam each round (Kingma, Ba 2015).

    schedule: makes a torch learning-rate scheduler for the optimiser, stepped once a round.
    """

    lr: float = 1e-3
    steps: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Scheduler | None = None

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf):
            raise ValueError(f"the learning rate of AdamStep must be finite and positive, not {self.lr}")
        check_steps(self.steps)

    def method(self, player: Player) -> Method:
        """A fresh Adam, as one fused kernel."""
        optimiser = torch.optim.Adam(player.parameters, lr=self.lr, betas=self.betas, fused=True)
        return Steps(player, optimiser, self.steps, self.schedule)


@dataclass(frozen=True)
class TorchStep:
    """`steps` steps each round of any first-order torch optimiser, made by `factory(parameters)`.

    Optimisers that need a closure do not fit here; for L-BFGS there is `LBFGS`.  Of the optimiser's state, tensors are
    taken back with a step, plain numbers are not.  schedule: as in `AdamStep`.
    """

    factory: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 1
    schedule: Scheduler | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def method(self, player: Player) -> Method:
        """What the factory makes."""
        optimiser = self.factory(player.parameters)
        if not isinstance(optimiser, torch.optim.Optimizer) or isinstance(optimiser, torch.optim.LBFGS):
            raise TypeError(f"TorchStep needs a first-order torch optimiser, not {type(optimiser).__name__}")
        return Steps(player, optimiser, self.steps, self.schedule)


@dataclass(frozen=True)
class LBFGS:
    """`steps` iterations of L-BFGS each round with a strong-Wolfe line search (torch.optim.LBFGS).

    Its memory of curvature is kept from round to round with `keep_memory`: right where the objective changes little
    between rounds (fixed ghost points), wrong where it changes much.

    Args:
        steps: Iterations a round.  tolerance: of the largest entry of the gradient.
        memory: Pairs remembered.  keep_memory: see above.
    """

    steps: int = 20
    tolerance: float = 1e-12
    memory: int = 20
    keep_memory: bool = False

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_steps(self.memory, "memory")

    def method(self, player: Player) -> Method:
        """A fresh L-BFGS."""
        refuse_fields("LBFGS", player)
        optimiser = torch.optim.LBFGS(
            player.parameters,
            lr=1.0,
            max_iter=self.steps,
            tolerance_grad=self.tolerance,
            tolerance_change=0.0,
            history_size=self.memory,
            line_search_fn="strong_wolfe",
        )
        return LineSearches(player, optimiser, self.keep_memory)


def check_steps(steps: int, name: str = "steps") -> None:
    """Raise ValueError unless `steps` is a whole number of at least one."""
    if int(steps) != steps or steps < 1:
        raise ValueError(f"an answer must have at least one step, not {name}={steps}")


def refuse_fields(answer: str, player: Player) -> None:
    """Raise ValueError where a parameter is distributed: torch's dot products know one rank's part only."""
    for name, p in player.named.items():
        if is_distributed(p):
            raise ValueError(
                f"{answer} does not serve for '{name}', a field with a number for every dof; use AdamStep, or "
                "hyco_fem.fit_field"
            )


@dataclass(frozen=True)
class Answers:
    """The answers of the two players; by default single steps with the published learning rates 5e-3 and 1e-3.

    joint: that of the joint schedule, for (θ, φ) together.
    """

    physical: Answer = field(default_factory=lambda: AdamStep(5e-3))
    synthetic: Answer = field(default_factory=lambda: AdamStep(1e-3))
    joint: Answer = field(default_factory=lambda: GaussNewton(steps=5))


class Steps:
    """Steps of a first-order optimiser."""

    def __init__(
        self, player: Player, optimiser: torch.optim.Optimizer, steps: int, schedule: Scheduler | None = None
    ) -> None:
        self.player, self.optimiser, self.steps = player, optimiser, steps
        self.scheduler: Any = None if schedule is None else schedule(optimiser)
        self._memory: _Memory | None = None

    def improve(self, objective: Summand) -> Look:
        """Look and step, `steps` times.  A look that is not finite takes back the step before it, and ends it."""
        first = look = self.player.look(objective())
        for k in range(self.steps):
            if k > 0:
                look = self.player.look(objective())
            if not look.finite:
                self.player.take_back()
                return look
            self._remember()
            self.optimiser.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return first

    def undo(self) -> bool:
        """Undo the last step and halve the learning rate."""
        if self._memory is None:
            return False
        self._memory.restore(self.player.parameters, self.optimiser)
        for group in self.optimiser.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] / 2
        if hasattr(self.scheduler, "base_lrs"):  # of which some schedules make the next rate
            self.scheduler.base_lrs = [rate / 2 for rate in self.scheduler.base_lrs]
        return True

    def state(self) -> State:
        """Optimiser, scheduler, and what a step is taken back to."""
        return {
            "kind": kind_of(self.optimiser, self.scheduler),
            "optimiser": optimiser_state(self.optimiser),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "memory": None if self._memory is None else self._memory.state(self.player.parameters),
        }

    def restore(self, state: State) -> None:
        """Put a state back."""
        self.optimiser.load_state_dict({key: state["optimiser"][key] for key in ("state", "param_groups")})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._memory = None if state["memory"] is None else _Memory.of(state["memory"], self.player.parameters)

    def _remember(self) -> None:
        if self._memory is None or not self._memory.update(self.player.parameters, self.optimiser):
            self._memory = _Memory(self.player.parameters, self.optimiser)


class _NotFinite(Exception):
    """Ends a line search that has left the domain of the objective."""


class LineSearches:
    """Iterations of L-BFGS.  Where its line search leaves the domain of the objective, it starts afresh from the best
    point so far, with a shorter first step."""

    def __init__(self, player: Player, optimiser: torch.optim.LBFGS, keep_memory: bool) -> None:
        self.player, self.optimiser, self.keep_memory = player, optimiser, keep_memory
        self._before: list[Tensor] | None = None

    def improve(self, objective: Summand) -> Look:
        """Iterate."""
        looks: list[Look] = []
        parameters = self.player.parameters
        best = [p.detach().clone() for p in parameters]

        def closure() -> float:
            try:
                look = self.player.look(objective())
            except (CoefficientError, SolveError):
                if not looks:
                    raise
                raise _NotFinite from None
            if not look.finite:
                raise _NotFinite if looks else FloatingPointError
            if not looks or look.objective < min(seen.objective for seen in looks):
                torch._foreach_copy_(best, [p.detach() for p in parameters])
            looks.append(look)
            return look.objective

        if not self.keep_memory:
            self.optimiser.state.clear()
        start = [p.detach().clone() for p in parameters]
        try:
            self.optimiser.step(closure)
        except FloatingPointError:
            self.player.take_back()
            return Look(math.nan, math.nan)
        except _NotFinite:
            torch._foreach_copy_([p.detach() for p in parameters], best)
            self.optimiser.state.clear()
            for group in self.optimiser.param_groups:
                group["lr"] = group["lr"] / 2
        else:
            # A direction that is not finite leads nowhere.
            worse = any_rank(self.player.comm, not all(bool(torch.isfinite(p).all()) for p in parameters))
            if worse:
                torch._foreach_copy_([p.detach() for p in parameters], best)
                self.optimiser.state.clear()
        self._before = start
        return looks[0]

    def undo(self) -> bool:
        """Go back to where the last answer began, and forget the curvature."""
        if self._before is None:
            return False
        torch._foreach_copy_([p.detach() for p in self.player.parameters], self._before)
        self._before = None
        self.optimiser.state.clear()
        return True

    def state(self) -> State:
        """The memory of curvature where it is kept from round to round, and where the last answer began."""
        optimiser = self.optimiser.state_dict()
        if not self.keep_memory:
            optimiser = optimiser | {"state": {}}
        return {"kind": kind_of(self.optimiser), "optimiser": optimiser, "before": self._before}

    def restore(self, state: State) -> None:
        """Put a state back."""
        self.optimiser.load_state_dict(state["optimiser"])
        before = state["before"]
        self._before = None if before is None else _beside(before, self.player.parameters)


class _Memory:
    """Copies of parameters and of the tensors of an optimiser's state, in arrays that are used again each round."""

    def __init__(self, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        self._keys = _tensors(parameters, optimiser)[0]
        self._copies = [t.clone() for t in _tensors(parameters, optimiser)[1]]

    def state(self, parameters: list[nn.Parameter]) -> State:
        """Names and copies."""
        keys = [list(key) if isinstance(key, tuple) else [key] for key in self._keys]
        return {"keys": keys, "copies": [held(t, parameters[k[0]]) for k, t in zip(keys, self._copies, strict=True)]}

    @classmethod
    def of(cls, state: State, parameters: list[nn.Parameter]) -> _Memory:
        """The memory with a state."""
        memory = cls.__new__(cls)
        memory._keys = [tuple(key) if len(key) > 1 else key[0] for key in state["keys"]]
        memory._copies = _beside(state["copies"], [parameters[key[0]] for key in state["keys"]])
        return memory

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


def _beside(tensors: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copies of tensors, each on the device of its parameter."""
    return [t.to(p.device, copy=True) for t, p in zip(tensors, parameters, strict=True)]


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
