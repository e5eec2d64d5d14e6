"""Independent tasks shared out over groups of ranks, each with a model of its own: many starts, folds, seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mpi4py import MPI

from hyco_fem.parallel import raise_together

Made = TypeVar("Made")
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def shared_out(
    comm: MPI.Comm,
    tasks: Sequence[Task],
    prepare: Callable[[MPI.Comm], Made],
    work: Callable[[Made, Task], Outcome],
    *,
    ranks_each: int = 1,
    close: Callable[[Made], object] | None = None,
) -> list[Outcome]:
    """The outcome of each task, in order, on every rank.  Collective.

    Args:
        comm: The ranks.  tasks: replicated.
        prepare: On the communicator of a group: builds what the group works with, once.
        work: Does one task with that; what it returns must be picklable and equal on the ranks of the group.
        ranks_each: Ranks of a group; what is left over joins the last one.
        close: Ends what `prepare` made.

    Raises:
        What prepare or work raise, on all ranks, after every group is done.
    """
    groups = max(1, min(comm.size // min(ranks_each, comm.size), len(tasks)))
    # Neighbouring ranks together: they are likely to share a node.
    group = min(comm.rank * groups // comm.size, groups - 1)
    part = comm.Split(group, comm.rank)
    done: dict[int, Outcome] = {}
    error: Exception | None = None
    made: Made | None = None
    try:
        made = prepare(part)
        for k in range(group, len(tasks), groups):
            done[k] = work(made, tasks[k])
    except Exception as e:  # raised together below; within a group all ranks have it
        error = e
    if made is not None and close is not None:
        close(made)
    everyone = comm.allgather(done if part.rank == 0 else {})
    part.Free()
    raise_together(comm, error)
    outcomes = {k: outcome for some in everyone for k, outcome in some.items()}
    return [outcomes[k] for k in range(len(tasks))]
