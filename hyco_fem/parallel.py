"""Communicators: sums that autograd understands, errors that all ranks agree on, replicated checks.

The rule of the package: network weights and PDE parameters are *replicated* (equal on every rank), fields are
*distributed* (each rank holds its owned dofs), and a loss is a sum over what each rank owns.  After `backward()`
a rank holds its part of the gradient of a replicated parameter; `sum_gradients` adds the parts.  A parameter that
is itself a field is marked by `mark_distributed` and is never summed or compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor

from hyco_fem.agreement import agreed, any_rank, raise_together
from hyco_fem.tensors import as_array

__all__ = [
    "agreed",
    "any_rank",
    "check_replicated",
    "gradient_norm",
    "is_distributed",
    "limit_threads",
    "local_rank",
    "mark_distributed",
    "max_over_ranks",
    "raise_together",
    "sum_array",
    "sum_gradients",
    "sum_over_ranks",
    "sum_tensors",
]


def sum_array(comm: MPI.Comm, values: np.ndarray) -> np.ndarray:
    """Sum of `values` over the ranks, the same on each.  Collective."""
    if comm.size == 1:
        return values
    out = np.empty_like(values)
    comm.Allreduce(np.ascontiguousarray(values), out, op=MPI.SUM)
    return out


def max_over_ranks(comm: MPI.Comm, values: Sequence[float]) -> np.ndarray:
    """Largest of each of a few numbers over the ranks, the same on each.  Collective."""
    out = np.array(values, dtype=np.float64)
    comm.Allreduce(MPI.IN_PLACE, out, op=MPI.MAX)
    return out


class _SumOverRanks(torch.autograd.Function):
    """Forward: sum over ranks.  Backward: the identity, so that each rank keeps its own part of the gradient."""

    @staticmethod
    def forward(local: Tensor, comm: MPI.Comm) -> Tensor:
        return _summed(local, comm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        return _Replicate.apply(grad, ctx.comm), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return _summed(tangent, ctx.comm)


class _Replicate(torch.autograd.Function):
    """The transpose of the sum, for second derivatives: forward the identity, backward the sum over ranks."""

    @staticmethod
    def forward(replicated: Tensor, comm: MPI.Comm) -> Tensor:
        return replicated.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        return _SumOverRanks.apply(grad, ctx.comm), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return tangent.clone()


def _summed(local: Tensor, comm: MPI.Comm) -> Tensor:
    total = torch.from_numpy(sum_array(comm, np.atleast_1d(as_array(local.cpu())))).reshape(local.shape)
    return total.to(local.device, copy=True)


def sum_over_ranks(local: Tensor, comm: MPI.Comm) -> Tensor:
    """The sum of a small tensor over the ranks, equal on each; differentiable.  Collective.

    `backward()` through it leaves on each rank the gradient of that rank's summand.
    """
    return local if comm.size == 1 else _SumOverRanks.apply(local, comm)


# -- parameters ------------------------------------------------------------------------------------------------


def mark_distributed(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """Say that each rank holds its own owned part of this parameter (a field), not a copy."""
    parameter.hyco_distributed = True  # type: ignore[attr-defined]
    return parameter


def is_distributed(parameter: Tensor) -> bool:
    """Whether the parameter is a field, of which each rank holds its owned part."""
    return getattr(parameter, "hyco_distributed", False)


def sum_gradients(parameters: Iterable[torch.nn.Parameter], comm: MPI.Comm) -> None:
    """Add up the gradients of replicated parameters over the ranks, in place, in one reduction.  Collective.

    A parameter without a gradient on this rank counts as zero: another rank may have one.  Where none has, there is
    none afterwards either, as in serial: an optimiser passes over such a parameter.
    """
    if comm.size == 1:
        return
    replicated = [p for p in parameters if p.requires_grad and not is_distributed(p)]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in replicated]
    parts.append(torch.tensor([p.grad is not None for p in replicated], dtype=torch.float64))
    *totals, ranks = sum_tensors(parts, [True] * len(parts), comm)
    for p, total, n in zip(replicated, totals, ranks, strict=True):
        if n > 0:
            p.grad = total if p.grad is None else p.grad.copy_(total)


def sum_tensors(tensors: Sequence[Tensor], replicated: Sequence[bool], comm: MPI.Comm) -> list[Tensor]:
    """Add up over the ranks those tensors that belong to replicated parameters, in one reduction.  Collective.

    Tensors may live on any device and differ in dtype: each sum is where, and what, its summand is.
    """
    if comm.size == 1:
        return list(tensors)
    chosen = [t.reshape(-1) for t, r in zip(tensors, replicated, strict=True) if r]
    total = torch.from_numpy(sum_array(comm, _on_cpu(chosen).numpy())) if chosen else torch.empty(0)
    parts = iter(torch.split(total, [len(t) for t in chosen]))
    return [next(parts).view_as(t).to(t, copy=True) if r else t for t, r in zip(tensors, replicated, strict=True)]


def _on_cpu(flat: Sequence[Tensor]) -> Tensor:
    """One vector of all entries, copied once from each device rather than once for each tensor."""
    runs = [torch.cat(list(run)).detach().cpu() for _, run in groupby(flat, key=lambda t: t.device)]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def gradient_norm(parameters: Iterable[torch.nn.Parameter], comm: MPI.Comm) -> float:
    """Euclidean norm of the (already summed) gradient, equal on every rank.  Collective."""
    replicated: list[Tensor] = []
    distributed: list[Tensor] = []
    for p in parameters:
        if p.grad is not None:
            (distributed if is_distributed(p) else replicated).append(p.grad)
    square = _square(replicated)
    if any_rank(comm, bool(distributed)):
        square += float(sum_array(comm, np.array([_square(distributed)]))[0])
    return float(np.sqrt(square))


def _square(tensors: list[Tensor]) -> float:
    # From 0.0: the sum of nothing must be a float too, for the ranks that have nothing.
    return sum((float(torch.linalg.vector_norm(t)) ** 2 for t in tensors), 0.0)


def check_replicated(named: Iterable[tuple[str, Tensor]], comm: MPI.Comm) -> None:
    """Raise ValueError on all ranks if a replicated tensor differs from rank 0's.  Collective."""
    if comm.size == 1:
        return
    mine = [(name, tensor.detach().cpu().numpy()) for name, tensor in named if not is_distributed(tensor)]
    reference = comm.bcast(mine if comm.rank == 0 else None, root=0)
    with agreed(comm):
        if [name for name, _ in mine] != [name for name, _ in reference]:
            raise ValueError(
                f"the parameters on rank {comm.rank} have other names or another order than those on rank 0; build "
                "the same models on every rank"
            )
        for (name, values), (_, theirs) in zip(mine, reference, strict=True):
            if not np.array_equal(values, theirs, equal_nan=True):
                raise ValueError(
                    f"parameter '{name}' is not the same on rank {comm.rank} as on rank 0; give every rank the same "
                    "seed (seed=… of the hyco_fem networks, torch.manual_seed before building your own)"
                )


# -- nodes -----------------------------------------------------------------------------------------------------


def local_rank(comm: MPI.Comm) -> int:
    """The number of this rank among those of `comm` on the same node.  Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    rank = node.rank
    node.Free()
    return rank


def limit_threads(comm: MPI.Comm = MPI.COMM_WORLD) -> int:
    """Give torch the cores of the node divided by the ranks on it, and return that number.  Collective.

    Ranks × torch threads beyond the cores make small networks many times slower.  Does nothing where
    OMP_NUM_THREADS is set: then the user has chosen.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // node.size))
        node.Free()
    return torch.get_num_threads()
