"""Tests run serially and under mpirun (`mpirun -n 3 python3 -m mpi4py -m pytest`): the same tests, on all ranks."""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc  # noqa: F401

import pytest
import torch

torch.set_num_threads(1)
WORLD = MPI.COMM_WORLD


@pytest.hookimpl(trylast=True)  # after pytest has made its reporter
def pytest_configure(config: pytest.Config) -> None:
    """Under mpirun only rank 0 reports as usual, without colours; the others say only what failed."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None:
        return
    if WORLD.size > 1:
        reporter._tw.hasmarkup = False  # mpirun gives its ranks a terminal, whatever it writes to
    if WORLD.rank > 0:
        config.pluginmanager.unregister(reporter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure on a rank that does not report is told all the same."""
    if WORLD.rank > 0 and report.failed:
        print(f"[rank {WORLD.rank}] {report.nodeid} failed:\n{report.longreprtext}", file=sys.stderr, flush=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what is for one rank only."""
    if WORLD.size > 1 and item.get_closest_marker("serial"):
        pytest.skip("for one rank: starts its own processes, or needs no second one")


def pytest_collection_finish() -> None:
    """What was imported stays: not looking through it makes each collection a hundred thousand times shorter."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def collect_together() -> Iterator[None]:
    """Collect cyclic garbage at the same place on all ranks: destroying a PETSc object is collective."""
    if WORLD.size > 1:
        gc.disable()
    yield
    if WORLD.size > 1:
        gc.collect()


@pytest.fixture
def comm() -> MPI.Comm:
    """All ranks."""
    return WORLD


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, the same on all ranks."""
    path = Path(WORLD.bcast(tempfile.mkdtemp() if WORLD.rank == 0 else None, root=0))
    yield path
    WORLD.Barrier()
    if WORLD.rank == 0:
        shutil.rmtree(path, ignore_errors=True)
