"""History line by line: what was waited for is on disk, whatever happens next."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem.files import output_folder
from hyco_fem.game.history import Record
from hyco_fem.parallel import agreed


class HistoryFile:
    """Callback that appends each record to a CSV file as it comes, on rank 0; use it in a `with` block.

    The file is opened under a name of its own, `NAME.running`, so that the history of an earlier run stays until this
    one has ended; leaving the block without an error renames it.  Collective at start and end.
    """

    def __init__(self, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
        self.path, self.comm = Path(path), comm
        self.running = self.path.with_name(self.path.name + ".running")
        output_folder(self.path.parent, comm)
        self._file: Any = None
        self._writer: csv.DictWriter | None = None

    def __enter__(self) -> HistoryFile:
        with agreed(self.comm):
            if self.comm.rank == 0:
                self._file = open(self.running, "w", newline="")
        return self

    def __call__(self, record: Record) -> None:
        if self._file is None:
            return
        row = record.flat()
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                self.running.replace(self.path)
