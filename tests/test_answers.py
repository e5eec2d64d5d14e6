"""Players: steps, what they see, and that a step taken back leaves nothing behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.game.player import Player
from hyco_fem.parallel import mark_distributed

ANSWERS: dict[str, Callable[[int], Any]] = {
    "Adam": lambda steps: hf.AdamStep(0.1, steps, betas=(0.8, 0.95)),
    "SGD with momentum": lambda steps: hf.TorchStep(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), steps),
    "RMSprop": lambda steps: hf.TorchStep(lambda p: torch.optim.RMSprop(p, 0.1), steps),
}
PLAIN: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.95)),
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1),
}
TARGET = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.ones(2, 2, dtype=torch.float64))]


def objective(p: list[nn.Parameter]) -> Tensor:
    """Not quadratic, so that every step has another gradient."""
    return (p[0] - TARGET).pow(4).sum() + (p[1].sum() - 3.0 * p[0][0]) ** 2


def shares(comm: MPI.Comm, p: list[nn.Parameter]) -> Callable[[], Tensor]:
    """Each rank's summand: unequal parts of the whole."""
    return lambda: objective(p) * (comm.rank + 1) / (comm.size * (comm.size + 1) / 2)


def numbers(p: list[nn.Parameter]) -> np.ndarray:
    return torch.cat([q.detach().reshape(-1) for q in p]).numpy().copy()


def state(optimiser: torch.optim.Optimizer) -> list[np.ndarray]:
    """Every tensor of an optimiser's state, in the order of the parameters."""
    entries = (optimiser.state.get(q, {}) for group in optimiser.param_groups for q in group["params"])
    return [entry[k].clone().numpy() for entry in entries for k in sorted(entry) if isinstance(entry[k], Tensor)]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_so_many_steps_on_the_sum_over_ranks(comm: MPI.Comm, name: str) -> None:
    mine, plain = parameters(), parameters()
    player = Player("test", mine, ANSWERS[name](3), comm)
    optimiser = PLAIN[name](plain)
    for _ in range(2):
        look = player.answer_to(shares(comm, mine))
        first = None
        for _ in range(3):
            J = objective(plain)
            optimiser.zero_grad()
            J.backward()
            first = first or (J.item(), math.sqrt(sum(float(p.grad.square().sum()) for p in plain)))
            optimiser.step()
        assert (look.objective, look.gradient_norm) == pytest.approx(first, rel=1e-12), "the first look is told"
        np.testing.assert_allclose(numbers(mine), numbers(plain), rtol=1e-12)


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_step_taken_back_leaves_nothing_behind(comm: MPI.Comm, name: str, before: int) -> None:
    """Parameters and the memory of the optimiser are as they were; it goes on from there, at half the rate."""
    mine, twins = parameters(), parameters()
    player, twin = Player("test", mine, ANSWERS[name](1), comm), Player("twin", twins, ANSWERS[name](1), comm)
    for _ in range(before):
        player.answer_to(shares(comm, mine))
        twin.answer_to(shares(comm, twins))
    there, memory = numbers(mine), state(player.method.optimiser)
    for _ in range(2):  # the second time from the copies that the first has used
        player.answer_to(shares(comm, mine))
        assert not np.array_equal(numbers(mine), there)
        player.take_back()
        np.testing.assert_array_equal(numbers(mine), there)
        for kept, now in zip(memory, state(player.method.optimiser), strict=True):
            np.testing.assert_array_equal(now, kept)
    twin.method.optimiser.param_groups[0]["lr"] = 0.1 / 4
    for _ in range(3):
        player.answer_to(shares(comm, mine))
        twin.answer_to(shares(comm, twins))
    np.testing.assert_array_equal(numbers(mine), numbers(twins))


def test_a_step_that_brought_new_memory_can_be_taken_back(comm: MPI.Comm) -> None:
    """A parameter that gets its first gradient late: the optimiser then holds tensors that it did not hold before."""
    late, early = nn.Parameter(torch.ones(5, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    player = Player("test", [late, early], hf.AdamStep(0.1), MPI.COMM_SELF)
    player.answer_to(lambda: early.square().sum())
    there = numbers([late, early])
    player.answer_to(lambda: early.square().sum() + late.sum())
    assert not np.array_equal(numbers([late]), there[:5])
    player.take_back()
    np.testing.assert_array_equal(numbers([late, early]), there)
    player.answer_to(lambda: early.square().sum() + late.sum())
    np.testing.assert_allclose(numbers([late, early]), there - 0.05, atol=1e-8)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_learning_rate_may_follow_a_schedule(comm: MPI.Comm, kind: str) -> None:
    """Stepped once a round, whatever the number of steps in it; against torch by hand."""

    def halving(optimiser: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)

    make = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[kind]
    answer: Any = (
        hf.AdamStep(0.1, 2, schedule=halving)
        if kind == "Adam"
        else hf.TorchStep(lambda p: torch.optim.AdamW(p, 0.1), 2, schedule=halving)
    )
    mine, plain = parameters(), parameters()
    player, optimiser = Player("test", mine, answer, comm), make(plain, 0.1)
    for k in range(3):
        player.answer_to(shares(comm, mine))
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * 0.5**k
        for _ in range(2):
            optimiser.zero_grad()
            objective(plain).backward()
            optimiser.step()
    np.testing.assert_allclose(numbers(mine), numbers(plain), rtol=1e-12)


def test_a_look_that_is_not_finite_ends_the_answer(comm: MPI.Comm) -> None:
    """The second of four steps leads to infinity: it is taken back, the first stays."""
    p = [nn.Parameter(torch.zeros((), dtype=torch.float64))]
    player = Player("test", p, hf.TorchStep(lambda q: torch.optim.SGD(q, 1.0), 4), comm)
    looks: list[float] = []

    def local() -> Tensor:
        looks.append(p[0].item())
        bad = p[0].item() > 1.5 and comm.rank == comm.size - 1
        return -p[0] / comm.size * (math.inf if bad else 1.0)

    look = player.answer_to(local)
    assert not look.finite
    assert looks == [0.0, 1.0, 2.0]
    assert p[0].item() == 1.0
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5


def test_what_was_never_done_cannot_be_taken_back(comm: MPI.Comm) -> None:
    player = Player("curious", parameters(), hf.AdamStep(), comm)
    assert player.undo() is False
    with pytest.raises(FloatingPointError, match="objective of the curious player is not finite at the start"):
        player.take_back()


def test_an_infinite_objective_has_no_gradient(comm: MPI.Comm) -> None:
    """On one rank it is infinite; all learn of it, and none goes backward through it."""
    p = parameters()
    player = Player("test", p, hf.AdamStep(), comm)
    look = player.look(objective(p) * (math.inf if comm.rank == comm.size - 1 else 1.0))
    assert look.objective == math.inf
    assert math.isnan(look.gradient_norm)
    assert not look.finite
    assert all(q.grad is None for q in p)


def test_the_gradient_of_a_distributed_parameter_is_counted_once_for_each_rank(comm: MPI.Comm) -> None:
    """J = Σ_r [Σ (field_r)² / 2 + (r + 1) p]: the norm is that of the whole vector, and fields are not summed."""
    own = torch.arange(1.0, 3.0, dtype=torch.float64) + comm.rank
    field = mark_distributed(nn.Parameter(own.clone()))
    p = nn.Parameter(torch.zeros((), dtype=torch.float64))
    player = Player("test", [field, p], hf.AdamStep(), comm)
    look = player.look(field.square().sum() / 2 + (comm.rank + 1) * p)
    triangle = comm.size * (comm.size + 1) / 2
    whole = [*(float(r + k) for r in range(comm.size) for k in (1, 2)), triangle]
    assert look.gradient_norm == pytest.approx(np.linalg.norm(whole))
    np.testing.assert_array_equal(field.grad.numpy(), own.numpy())
    assert p.grad.item() == triangle


def test_a_player_with_nothing_to_learn_looks_and_does_not_move(comm: MPI.Comm) -> None:
    frozen = [nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)]
    player = Player("idle", frozen, hf.AdamStep(), comm)
    look = player.answer_to(lambda: frozen[0].sum())
    assert (look.objective, look.gradient_norm) == (2.0 * comm.size, 0.0)
    np.testing.assert_array_equal(numbers(frozen), [1.0, 1.0])


def test_answers_that_mean_nothing_are_refused() -> None:
    for lr in (0.0, -1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning rate"):
            hf.AdamStep(lr)
    for steps in (0, -1, 1.5):
        with pytest.raises(ValueError, match="at least one step"):
            hf.AdamStep(1e-3, steps)
        with pytest.raises(ValueError, match="at least one step"):
            hf.TorchStep(torch.optim.SGD, steps)
    with pytest.raises(TypeError, match="first-order torch optimiser, not LBFGS"):
        Player("test", parameters(), hf.TorchStep(torch.optim.LBFGS), MPI.COMM_SELF)
    with pytest.raises(TypeError, match="not NoneType"):
        Player("test", parameters(), hf.TorchStep(lambda p: None), MPI.COMM_SELF)


def test_the_published_learning_rates_are_the_default() -> None:
    answers = hf.Answers()
    assert (answers.physical, answers.synthetic) == (hf.AdamStep(5e-3, 1), hf.AdamStep(1e-3, 1))
    assert copy.copy(answers) == answers
