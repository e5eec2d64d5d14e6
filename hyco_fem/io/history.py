"""History line by line: what was waited for is on disk, whatever happens next."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.files import output_folder
from hyco_fem.game.history import Record
from hyco_fem.game.state import record_entry, record_of
from hyco_fem.parallel import agreed, raise_together

_RUNNING = ".running"


class HistoryFile:
    """Callback that appends each record to a file as it comes, on rank 0; use it in a `with` block.

    A name that ends in .jsonl makes a line of JSON for each record, with all digits, the parameters as nested lists,
    and null for what is not a finite number; every other name a CSV with a column for each number.  `read_history`
    reads both.  A line is on its way to the disk when the call returns: who is killed then has it.

    The file is opened under a name of its own, `NAME.running`, so that the history of an earlier run stays until this
    one has ended; leaving the block without an error renames it.  Collective at start and end; an OSError of rank 0
    is raised on all ranks.

    Args:
        path: Of the file.
        past: Records that it begins with, those of a run that goes on: `Restart.history`.
    """

    def __init__(self, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, *, past: Sequence[Record] = ()) -> None:
        self.path, self.comm, self.past = Path(path), comm, past
        self.running = self.path.with_name(self.path.name + _RUNNING)
        output_folder(self.path.parent, comm)
        self._lines: _Table | HistoryLog | None = None

    def __enter__(self) -> HistoryFile:
        with agreed(self.comm):
            if self.comm.rank == 0:
                json_lines = self.path.suffix == ".jsonl"
                self._lines = HistoryLog(self.running, strict=True) if json_lines else _Table(self.running)
                self._lines.append(self.past)
        return self

    def __call__(self, record: Record) -> None:
        if self.comm.rank > 0:
            return
        if self._lines is None:
            raise RuntimeError(f"the history '{self.path}' is not open: use HistoryFile in a `with` block")
        self._lines.append([record])

    def __exit__(self, kind: Any, *_: Any) -> None:
        lines, self._lines = self._lines, None
        if kind is not None:
            # The error may be on this rank alone, so nothing collective; and it matters more than one of the disk.
            if lines is not None:
                with suppress(OSError):
                    lines.close()
            return
        with agreed(self.comm):
            if lines is not None:
                lines.close()
                self.running.replace(self.path)


class _Table:
    """A CSV with the columns of its first record.  Local to the rank that writes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer: csv.DictWriter | None = None

    def append(self, records: Sequence[Record]) -> None:
        for record in records:
            row = record.flat()
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, fieldnames=list(row), lineterminator="\n")
                self._writer.writeheader()
            self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class HistoryLog:
    """The history that goes with checkpoints, a line of JSON for each record.  Local to the rank that writes.

    A line is on its way to the disk as soon as it is appended.  A checkpoint keeps the `mark` of the log at its time,
    and a run that goes on from there cuts off what came later: the history is written once, not once a checkpoint.
    """

    def __init__(self, path: Path, past: bytes = b"", *, strict: bool = False) -> None:
        """A log that begins with what is in the file already, as far as `past` goes.

        strict: null for what is not finite, as other readers of JSON want it, instead of NaN and ±Infinity.
        """
        self.path, self.strict = path, strict
        self._digest, self._bytes = hashlib.sha256(past), len(past)
        # Not buffered: what fails, fails where it is written.
        self._file = open(path, "r+b" if past else "wb", buffering=0)  # noqa: SIM115
        self._file.truncate(len(past))
        self._file.seek(len(past))

    def append(self, records: Sequence[Record]) -> None:
        """Write the next lines: all of them, or, with an OSError, none."""
        entries = [record_entry(record) for record in records]
        data = "".join(json.dumps(_nulls(e) if self.strict else e) + "\n" for e in entries).encode()
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
        """The records of the lines of a log; null is NaN."""
        return [record_of(_numbers(json.loads(line))) for line in data.splitlines()]


def _nulls(value: Any) -> Any:
    """None for each float that is not finite."""
    if isinstance(value, dict):
        return {name: _nulls(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_nulls(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    """NaN for each None."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return math.nan if value is None else value


# -- reading -----------------------------------------------------------------------------------------------------


def read_history(path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> list[Record]:
    """The records of a .jsonl or .csv file of `HistoryFile`, or of one that still grows or was left, `NAME.running`.

    A last line that is only half there is left out.  Rank 0 reads; every rank gets the records.  Collective.

    Args:
        path: The file.  A CSV does not tell of what kind its records were: it is the one whose numbers are its columns.

    Raises:
        OSError: it cannot be read.  ValueError: it is no history, or is damaged, with the line.  On all ranks.
    """
    records: list[Record] = []
    error: Exception | None = None
    if comm.rank == 0:
        try:
            records = _read(Path(path))
        except Exception as e:
            error = e
    raise_together(comm, error)
    return comm.bcast(records)


def _read(path: Path) -> list[Record]:
    try:
        data = path.read_bytes()
    except OSError as error:
        running = path.with_name(path.name + _RUNNING)
        hint = f"; its run has not ended: read '{running}'" if running.is_file() else ""
        raise OSError(f"the history '{path}' cannot be read: {error.strerror or error}{hint}") from None
    whole = data[: data.rfind(b"\n") + 1]
    if Path(path.name.removesuffix(_RUNNING)).suffix != ".jsonl":
        return _table_records(path, whole)
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            records += HistoryLog.records(line)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"'{path}', line {number}: not a record of a history: {error}") from None
    return records


def _table_records(path: Path, data: bytes) -> list[Record]:
    try:
        header, *rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""))) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is not a table of a history: {error}") from None
    if not header:
        return []
    kinds = [kind for kind in _kinds(Record) if _numbers_of(kind) <= set(header)]
    if not kinds:
        raise ValueError(f"'{path}' is not a table of a history: its columns are {header}")
    kind = max(kinds, key=lambda k: len(_numbers_of(k)))
    records = []
    for number, row in enumerate(rows, 2):
        try:
            entries = dict(zip(header, map(float, row), strict=True))
        except ValueError as error:
            raise ValueError(f"'{path}', line {number}: not a record of a history: {error}") from None
        own: dict[str, Any] = {name: entries.pop(name) for name in _numbers_of(kind)}
        records.append(kind(**own | {"round": int(own["round"]), "parameters": _gathered(entries)}))
    return records


def _kinds(kind: type[Record]) -> list[type[Record]]:
    return [kind, *(c for sub in kind.__subclasses__() for c in _kinds(sub))]


def _numbers_of(kind: type[Record]) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)} - {"parameters"}


def _gathered(columns: dict[str, float]) -> dict[str, Any]:
    """Parameters from the columns of their entries, NAME or NAME[i,j]."""
    found: dict[str, Any] = {}
    for column, value in columns.items():
        entry = re.fullmatch(r"(.*)\[(\d+(?:,\d+)*)\]", column)
        if entry is None:
            found[column] = value
        else:
            found.setdefault(entry[1], {})[tuple(map(int, entry[2].split(",")))] = value
    return {name: _array(value) if isinstance(value, dict) else value for name, value in found.items()}


def _array(entries: dict[tuple[int, ...], float]) -> np.ndarray:
    array = np.full([1 + max(axis) for axis in zip(*entries, strict=True)], np.nan)
    for where, value in entries.items():
        array[where] = value
    return array
