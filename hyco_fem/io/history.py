"""History line by line: what was waited for is on disk, whatever happens next."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem.files import output_folder
from hyco_fem.game.history import Record
from hyco_fem.game.state import record_entry, record_of
from hyco_fem.parallel import agreed


class HistoryFile:
    """Callback that appends each record to a CSV file as it comes, on rank 0; use it in a `with` block.

    The file is opened under a name of its own, `NAME.running`, so that the history of an earlier run stays until this
    one has ended; leaving the block without an error renames it.  Collective at start and end; an OSError of rank 0
    is raised on all ranks.

    Args:
        path: Of the file.
        past: Records that it begins with, those of a run that goes on: `Restart.history`.
    """

    def __init__(self, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, *, past: Sequence[Record] = ()) -> None:
        self.path, self.comm, self.past = Path(path), comm, past
        self.running = self.path.with_name(self.path.name + ".running")
        output_folder(self.path.parent, comm)
        self._file: Any = None
        self._writer: csv.DictWriter | None = None

    def __enter__(self) -> HistoryFile:
        with agreed(self.comm):
            if self.comm.rank == 0:
                self._file, self._writer = open(self.running, "w", newline="", encoding="utf-8"), None
                for record in self.past:
                    self._add(record)
                self._file.flush()
        return self

    def __call__(self, record: Record) -> None:
        if self.comm.rank > 0:
            return
        if self._file is None:
            raise RuntimeError(f"the history '{self.path}' is not open: use HistoryFile in a `with` block")
        self._add(record)
        self._file.flush()

    def _add(self, record: Record) -> None:
        row = record.flat()
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)

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


class HistoryLog:
    """The history that goes with checkpoints, a line of JSON for each record.  Local to the rank that writes.

    A line is on its way to the disk as soon as it is appended.  A checkpoint keeps the `mark` of the log at its time,
    and a run that goes on from there cuts off what came later: the history is written once, not once a checkpoint.
    """

    def __init__(self, path: Path, past: bytes = b"") -> None:
        """A log that begins with what is in the file already, as far as `past` goes."""
        self.path = path
        self._digest, self._bytes = hashlib.sha256(past), len(past)
        # Not buffered: what fails, fails where it is written.
        self._file = open(path, "r+b" if past else "wb", buffering=0)  # noqa: SIM115
        self._file.truncate(len(past))
        self._file.seek(len(past))

    def append(self, records: Sequence[Record]) -> None:
        """Write the next lines: all of them, or, with an OSError, none."""
        data = "".join(json.dumps(record_entry(record)) + "\n" for record in records).encode()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._bytes)
                self._file.seek(self._bytes)
            raise
        self._digest.update(data)
        self._bytes += len(data)

    def mark(self) -> dict[str, Any]:
        """Length and checksum of what was written, which is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()

    @staticmethod
    def read(path: Path, mark: dict[str, Any]) -> bytes:
        """The part of a log up to a mark.

        Raises:
            ValueError: it is not what was written.  OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            data = file.read(mark["bytes"])
        if len(data) != mark["bytes"] or hashlib.sha256(data).hexdigest() != mark["sha256"]:
            raise ValueError(f"its history, '{path.name}', is damaged")
        return data

    @staticmethod
    def records(data: bytes) -> list[Record]:
        """The records of the lines of a log."""
        return [record_of(json.loads(line)) for line in data.splitlines()]
