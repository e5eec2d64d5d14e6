"""Communicators: errors that all ranks agree on, sums that autograd understands, replicated parameters, threads."""

from __future__ import annotations

import os

from mpi4py import MPI

import numpy as np
import pytest
import torch
from torch import nn

import hyco_fem as hf
from hyco_fem import parallel
from hyco_fem.parallel import agreed, check_replicated, gradient_norm, raise_together, sum_gradients, sum_over_ranks


class OddError(ValueError):
    """An error that pickle cannot make again: its constructor takes other arguments than it passes on."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(f"{what} at {where}")


def parameter(*values: float) -> nn.Parameter:
    """A parameter in float64."""
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("name"),
        FileNotFoundError(2, "No such file or directory", "sensors.csv"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        hf.OutsideError("outside", [3]),
    ],
)
def test_an_error_of_one_rank_is_the_error_of_all(comm: MPI.Comm, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raise_together(comm, error if comm.rank == comm.size - 1 else None)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    if isinstance(error, hf.OutsideError):
        assert caught.value.indices == [3]


@pytest.mark.parametrize("error", [OddError("odd", 4), ValueError("holds a function", lambda: None)])
def test_an_error_that_cannot_travel_is_told_all_the_same(comm: MPI.Comm, error: Exception) -> None:
    text = "odd at 4" if isinstance(error, OddError) else "holds a function"
    with pytest.raises((ValueError, RuntimeError), match=text):
        raise_together(comm, error if comm.rank == 0 else None)


def test_the_lowest_rank_with_an_error_is_heard(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match=f"rank {min(1, comm.size - 1)}"):
        raise_together(comm, ValueError(f"rank {comm.rank}") if comm.rank > 0 or comm.size == 1 else None)


def test_no_error_is_no_error(comm: MPI.Comm) -> None:
    raise_together(comm, None)
    with agreed(comm):
        pass


def test_a_block_that_fails_on_one_rank_fails_on_all(comm: MPI.Comm) -> None:
    found: dict[str, int] = {} if comm.rank == comm.size - 1 else {"missing": 1}
    with pytest.raises(KeyError, match="missing"), agreed(comm):
        found["missing"]
    # The ranks are in step afterwards.
    assert comm.allreduce(1) == comm.size


def test_one_flag_is_enough(comm: MPI.Comm) -> None:
    assert parallel.any_rank(comm, comm.rank == comm.size - 1) is True
    assert parallel.any_rank(comm, False) is False


# -- sums ------------------------------------------------------------------------------------------------------


def test_a_sum_over_ranks_leaves_to_each_its_part_of_the_gradient(comm: MPI.Comm) -> None:
    theta = parameter(2.0, 3.0)
    factor = torch.tensor([1.0, 10.0], dtype=torch.float64) * (comm.rank + 1)
    total = sum_over_ranks((factor * theta.square()).sum(), comm)
    ranks = comm.size * (comm.size + 1) / 2
    assert float(total.detach()) == pytest.approx(ranks * (4.0 + 90.0), rel=1e-14)
    total.backward()
    np.testing.assert_allclose(theta.grad, (comm.rank + 1) * np.array([4.0, 60.0]), rtol=1e-14)
    sum_gradients([theta], comm)
    np.testing.assert_allclose(theta.grad, ranks * np.array([4.0, 60.0]), rtol=1e-14)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_a_sum_over_ranks_has_a_tangent(comm: MPI.Comm, shape: tuple) -> None:
    x = torch.full(shape, 1.0 + comm.rank, dtype=torch.float64)
    dx = torch.full(shape, 0.5 * (1 + comm.rank), dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        y = sum_over_ranks(torch.autograd.forward_ad.make_dual(x, dx).square(), comm)
        value, tangent = torch.autograd.forward_ad.unpack_dual(y)
    squares = sum((r + 1) ** 2 for r in range(comm.size))
    assert value.shape == tangent.shape == shape
    np.testing.assert_allclose(value, squares)
    np.testing.assert_allclose(tangent, squares)


def test_sums_do_not_change_what_they_add(comm: MPI.Comm) -> None:
    a = np.array([1.0, comm.rank])
    total = parallel.sum_array(comm, a)
    np.testing.assert_array_equal(total, [comm.size, comm.size * (comm.size - 1) / 2])
    np.testing.assert_array_equal(a, [1.0, comm.rank])
    # Not only of contiguous arrays.
    np.testing.assert_array_equal(parallel.sum_array(comm, np.arange(6)[::2]), comm.size * np.array([0, 2, 4]))


def test_the_largest_of_each_number(comm: MPI.Comm) -> None:
    np.testing.assert_array_equal(parallel.max_over_ranks(comm, [comm.rank, -comm.rank]), [comm.size - 1, 0])


# -- gradients -------------------------------------------------------------------------------------------------


def test_a_gradient_that_some_ranks_lack_counts_as_zero_there(comm: MPI.Comm) -> None:
    everywhere, somewhere, nowhere, frozen = parameter(1.0), parameter(1.0, 2.0), parameter(1.0), parameter(1.0)
    frozen.requires_grad_(False)
    everywhere.grad = torch.tensor([1.0], dtype=torch.float64)
    if comm.rank == comm.size - 1:
        somewhere.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    sum_gradients([everywhere, somewhere, nowhere, frozen], comm)
    np.testing.assert_array_equal(everywhere.grad, [comm.size])
    np.testing.assert_array_equal(somewhere.grad, [3.0, -4.0])
    # As in serial: an optimiser with momentum or weight decay moves a parameter whose gradient is zero.
    assert nowhere.grad is None
    assert frozen.grad is None


def test_gradients_are_added_in_place(comm: MPI.Comm) -> None:
    p = parameter(1.0)
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    kept = p.grad
    sum_gradients([p], comm)
    assert p.grad is kept
    assert float(kept) == 2.0 * comm.size


def test_distributed_parameters_are_left_alone(comm: MPI.Comm) -> None:
    field = parallel.mark_distributed(nn.Parameter(torch.full((comm.rank + 1,), 1.0 + comm.rank, dtype=torch.float64)))
    field.grad = torch.full((comm.rank + 1,), 2.0, dtype=torch.float64)
    shared = parameter(1.0)
    shared.grad = torch.tensor([1.0], dtype=torch.float64)
    assert parallel.is_distributed(field)
    assert not parallel.is_distributed(shared)
    sum_gradients([field, shared], comm)
    np.testing.assert_array_equal(field.grad, np.full(comm.rank + 1, 2.0))
    np.testing.assert_array_equal(shared.grad, [comm.size])
    check_replicated([("field", field)], comm)


def test_the_norm_of_a_gradient_counts_replicated_parts_once_and_owned_parts_each(comm: MPI.Comm) -> None:
    shared, silent = parameter(1.0, 1.0), parameter(1.0)
    shared.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert gradient_norm([shared, silent], comm) == pytest.approx(5.0, rel=1e-14)
    # Rank r owns r + 1 entries of a field; only the last has a gradient at all.
    field = parallel.mark_distributed(nn.Parameter(torch.zeros(comm.rank + 1, dtype=torch.float64)))
    if comm.rank == comm.size - 1:
        field.grad = torch.full((comm.size,), 12.0, dtype=torch.float64)
    assert gradient_norm([shared, field], comm) == pytest.approx(np.sqrt(25.0 + 144.0 * comm.size), rel=1e-14)
    field.grad = torch.full((comm.rank + 1,), 2.0, dtype=torch.float64)
    owned = comm.size * (comm.size + 1) / 2
    assert gradient_norm([field, shared], comm) == pytest.approx(np.sqrt(25.0 + 4.0 * owned), rel=1e-14)
    assert gradient_norm([], comm) == 0.0


# -- replicated parameters -------------------------------------------------------------------------------------


def test_equal_parameters_are_replicated(comm: MPI.Comm) -> None:
    check_replicated([("w", parameter(1.0, float("nan"))), ("b", parameter())], comm)
    check_replicated([], comm)


def test_what_differs_is_named_with_its_rank(comm: MPI.Comm) -> None:
    if comm.size == 1:
        check_replicated([("w", parameter(1.0))], comm)
        return
    last = comm.size - 1
    named = [("w", parameter(1.0)), ("layer.b", parameter(2.0 + 1e-15 * (comm.rank == last)))]
    with pytest.raises(ValueError, match=rf"'layer\.b' is not the same on rank {last} as on rank 0"):
        check_replicated(named, comm)
    with pytest.raises(ValueError, match=rf"'w' is not the same on rank {last}"):
        check_replicated([("w", parameter(*[1.0] * (1 + (comm.rank == last))))], comm)


def test_models_with_different_parameters_do_not_wait_for_each_other(comm: MPI.Comm) -> None:
    if comm.size == 1:
        return
    a, b = ("a", parameter(1.0)), ("b", parameter(1.0))
    for mine in ([a, b], []):
        with pytest.raises(ValueError, match="other names"):
            check_replicated(mine if comm.rank == comm.size - 1 else [a], comm)


# -- threads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def threads_restored():
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_restored")
class TestThreads:
    """Ranks times threads do not exceed the cores, unless the user says so."""

    def test_the_choice_of_the_user_stands(self, comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(2)
        assert hf.limit_threads(comm) == 2
        assert torch.get_num_threads() == 2

    @pytest.mark.parametrize("cores", [1, 7, 12])
    def test_the_cores_are_shared_by_the_ranks(
        self, comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch, cores: int
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        torch.set_num_threads(2)
        # All ranks of a test run on one machine.
        expected = max(1, cores // comm.size)
        assert hf.limit_threads(comm) == expected
        assert torch.get_num_threads() == expected
