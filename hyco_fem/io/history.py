"""History line by line: what was waited for is on disk, whatever happens next."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem.files import output_folder
from hyco_fem.game.history import Record
from hyco_fem.parallel import agreed


class HistoryFile:
    """Callback that appends each record to a CSV file as it comes, on rank 0; use it in a `with` block.

    The file is opened under a name of its own, `NAME.running`, so that the history of an earlier run stays until this
    one has ended; leaving the block without an error renames it.  Collective at start and end; an OSError of rank 0
    is raised on all ranks.
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
                self._file, self._writer = open(self.running, "w", newline="", encoding="utf-8"), None
        return self

    def __call__(self, record: Record) -> None:
        if self.comm.rank > 0:
            return
        if self._file is None:
            raise RuntimeError(f"the history '{self.path}' is not open: use HistoryFile in a `with` block")
        row = record.flat()
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def __exit__(self, kind: Any, *_: Any) -> None:
        file, self._file = self._file, None
        if kind is not None:
            # The error may be on this rank alone, so nothing collective; and it matters more than one of the disk.
            if file is not None:
                with suppress(OSError):
                    file.close()
            return
        with agreed(self.comm):
            if file is not None:
                file.close()
                self.running.replace(self.path)
