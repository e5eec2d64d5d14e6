"""Progress shown to whoever waits: a bar on a terminal, lines in a log.  Callbacks; rank 0 prints."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.game.history import Record


def _numbers(record: Record, gradients: bool = True) -> str:
    shown = {"L_phy": record.misfit_physical, "L_syn": record.misfit_synthetic, "I": record.interaction}
    if gradients:
        shown |= {"|∇θ|": record.gradient_physical, "|∇φ|": record.gradient_synthetic}
    return "  ".join(f"{k} {v:.3e}" for k, v in shown.items() if not np.isnan(v))


class TextProgress:
    """Callback that prints a line every `every` rounds, on rank 0, flushed: made for logs."""

    def __init__(self, every: int = 100, comm: MPI.Comm = MPI.COMM_WORLD, label: str = "") -> None:
        self.every, self.label = every, label
        self._root = comm.rank == 0
        self._start = time.perf_counter()

    def __enter__(self) -> TextProgress:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __call__(self, record: Record) -> None:
        if self._root and record.round % self.every == 0:
            seconds = time.perf_counter() - self._start
            print(f"{self.label}round {record.round:5d}  {_numbers(record)}  {seconds:6.1f} s", flush=True)


class BarProgress:
    """Callback that moves a bar on rank 0's terminal; use it in a `with` block."""

    def __init__(self, rounds: int, comm: MPI.Comm = MPI.COMM_WORLD, label: str = "") -> None:
        self._bar: Any = None
        if comm.rank == 0:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(label or "rounds"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[numbers]}"))
            self._task = self._bar.add_task("rounds", total=rounds, numbers="")

    def __enter__(self) -> BarProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, record: Record) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, numbers=_numbers(record, gradients=False))


def progress(
    rounds: int, comm: MPI.Comm = MPI.COMM_WORLD, label: str = "", lines: int = 6
) -> TextProgress | BarProgress:
    """A bar on a terminal, otherwise about `lines` lines of text.  Use it in a `with` block.

    Launchers of MPI show their ranks a terminal even where the output goes to a file: under one it is always text.
    """
    launched = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID"))
    if comm.size == 1 and not launched and sys.stdout.isatty():
        return BarProgress(rounds, comm, label.strip())
    return TextProgress(max(1, rounds // lines), comm, label)
