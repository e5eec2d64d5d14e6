"""Errors that all ranks agree on before any of them raises.  MPI and NumPy only: for every room of the package."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from mpi4py import MPI

import numpy as np


def raise_together(comm: MPI.Comm, error: Exception | None) -> None:
    """Raise on every rank if any rank brings an error.  Collective.

    Every rank raises the error of the lowest rank that has one, so that all ranks tell the same story and none
    is left waiting in a collective call.
    """
    if comm.size == 1:
        if error is not None:
            raise error
        return
    if any_rank(comm, error is not None):
        errors = comm.allgather(_portable(error))
        # Where a rank has an error of its own, its traceback is shown too.
        raise next(e for e in errors if e is not None) from error


def _portable(error: Exception | None) -> Exception | None:
    """The error itself where it survives pickling, else a RuntimeError that says the same."""
    if error is None:
        return None
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # whatever the constructor of an unknown type raises
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def agreed(comm: MPI.Comm) -> Iterator[None]:
    """Collect an exception of the block and raise it on all ranks together.  Collective at exit.

    The block itself must not contain collective calls: a rank that fails half-way leaves the block at once.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as e:
        error = e
    raise_together(comm, error)


def any_rank(comm: MPI.Comm, flag: bool) -> bool:
    """True on every rank if `flag` is true on one.  Collective."""
    if comm.size == 1:
        return bool(flag)
    out = np.empty(1, dtype=np.int8)
    comm.Allreduce(np.array([flag], dtype=np.int8), out, op=MPI.MAX)
    return bool(out[0])
