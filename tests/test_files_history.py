"""Histories, CSV and JSON lines: each line is on the disk when it was written, and is read again."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
from folders import names, put

import hyco_fem as hf
from hyco_fem.io.history import HistoryLog, read_history


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record(number: int) -> hf.Record:
    return hf.Record(number, misfit_physical=0.5 / (number + 1), parameters={"κ": np.array([1.0, number])})


def test_a_history_is_on_disk_line_by_line(comm: MPI.Comm, folder: Path) -> None:
    path = put(comm, folder / "history.csv", "the run before\n")
    with hf.HistoryFile(path, comm) as history:
        for k in range(3):
            assert history(record(k)) is None, "it never wishes to stop"
            if comm.rank == 0:
                assert len(rows(folder / "history.csv.running")) == k + 1
                assert path.read_text() == "the run before\n"
    comm.Barrier()
    found = rows(path)
    assert [r["round"] for r in found] == ["0", "1", "2"]
    assert [float(r["misfit_physical"]) for r in found] == [0.5, 0.25, 0.5 / 3]
    assert [r["κ[1]"] for r in found] == ["0.0", "1.0", "2.0"]
    assert names(comm, folder) == ["history.csv"]
    with history:
        history(hf.Record(7))
    comm.Barrier()
    assert [r["round"] for r in rows(path)] == ["7"], "a file may be used again, with other columns"


def test_an_error_in_the_block_leaves_the_earlier_history_and_what_was_written(comm: MPI.Comm, folder: Path) -> None:
    path = put(comm, folder / "history.csv", "the run before\n")

    def fails() -> None:
        with hf.HistoryFile(path, comm) as history:
            history(record(0))
            history(record(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert names(comm, folder) == ["history.csv", "history.csv.running"]
    assert path.read_text() == "the run before\n"
    assert len(rows(folder / "history.csv.running")) == 2


def test_a_history_that_cannot_be_written_is_an_error_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    file = put(comm, folder / "file", "")
    with pytest.raises(OSError, match="output folder"):
        hf.HistoryFile(file / "history.csv", comm)
    path = folder / "history.csv"
    history = hf.HistoryFile(path, comm)

    def blocked() -> None:
        with history:
            history(record(0))
            if comm.rank == 0:
                (path / "in the way").mkdir(parents=True)  # so the last renaming fails, on rank 0 only

    with pytest.raises(OSError, match="directory"):
        blocked()
    comm.Barrier()
    assert len(rows(folder / "history.csv.running")) == 1, "what was written stays"
    if comm.rank == 0:
        with pytest.raises(RuntimeError, match="use HistoryFile in a `with` block"):
            history(record(1))


# -- read again --------------------------------------------------------------------------------------------------


def lived() -> list[hf.Record]:
    theta = {"κ": np.array([[1.0, 2.0], [3.0, 1e-17]]), "kappa.width": 1.0 / 3.0}
    return [hf.Record(k, misfit_physical=0.1 * k, potential=math.nan, parameters=theta) for k in range(4)]


def same(found: list[hf.Record], expected: list[hf.Record]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(b)
        assert isinstance(a.round, int)
        assert a.flat().keys() == b.flat().keys()
        np.testing.assert_array_equal(list(a.flat().values()), list(b.flat().values()))
        for name, value in b.parameters.items():
            assert np.shape(a.parameters[name]) == np.shape(value)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_history_is_read_as_it_was_written(comm: MPI.Comm, folder: Path, ending: str) -> None:
    """All digits, and the shapes of parameters; on all ranks."""
    path, records = folder / f"history.{ending}", lived()
    with hf.HistoryFile(path, comm, past=records[:2]) as history:
        for k in (2, 3):
            history(records[k])
            comm.Barrier()
            same(read_history(f"{path}.running", comm), records[: k + 1])
            with pytest.raises(OSError, match=r"its run has not ended: read '.*\.running'"):
                read_history(path, comm)
    same(read_history(path, comm), records)
    assert names(comm, folder) == [path.name]


def test_lines_of_json_are_what_other_readers_take(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "history.jsonl"
    with hf.HistoryFile(path, comm) as history:
        history(hf.Record(0, misfit_physical=math.inf, parameters={"κ": np.array([1.0, math.nan]), "η": math.nan}))
    comm.Barrier()
    (line,) = path.read_text(encoding="utf-8").splitlines()
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert entry["misfit_physical"] is None
    assert entry["parameters"] == {"κ": [1.0, None], "η": None}
    (record,) = read_history(path, comm)
    assert math.isnan(record.misfit_physical)
    assert math.isnan(record.parameters["η"])
    np.testing.assert_array_equal(record.parameters["κ"], [1.0, math.nan])


def test_the_log_of_checkpoints_keeps_infinity(folder: Path, comm: MPI.Comm) -> None:
    path = folder / f"{comm.rank}.jsonl"
    log = HistoryLog(path)
    log.append([hf.Record(0, misfit_physical=math.inf)])
    log.close()
    assert HistoryLog.records(path.read_bytes())[0].misfit_physical == math.inf


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_records_of_other_games_keep_their_kind(comm: MPI.Comm, folder: Path, ending: str) -> None:
    records: list[hf.Record] = [hf.RitzRecord(k, energy=-0.5 * k, boundary=1e-9, gradient_synthetic=k) for k in (0, 5)]
    path = folder / f"history.{ending}"
    with hf.HistoryFile(path, comm, past=records):
        pass
    same(read_history(path, comm), records)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_half_a_line_at_the_end_is_left_out(comm: MPI.Comm, folder: Path, ending: str) -> None:
    path, records = folder / f"history.{ending}", lived()
    with hf.HistoryFile(path, comm, past=records):
        pass
    comm.Barrier()
    data = path.read_bytes()
    comm.Barrier()
    first = data.index(b"\n")
    for n, whole in ((len(data) - 1, 3), (len(data) - 20, 3), (first, 0), (0, 0)):
        same(read_history(put(comm, folder / f"cut.{ending}", data[:n]), comm), records[:whole])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y,value\n0,0,1\n", r"is not a table of a history: its columns are \['x', 'y', 'value'\]"),
        ("a.csv", "{}\n", r"its columns are \['{}'\]"),
        ("a.csv", "\xff\n", r"is not a table of a history"),
        ("a.jsonl", "hello\n", r"a\.jsonl', line 1: not a record of a history"),
        ("a.jsonl", '{"kind": "Record"}\n', r"line 1: not a record of a history: a record of the kind 'Record'"),
        ("a.jsonl", "[1, 2]\n", r"line 1: not a record of a history"),
        ("a.jsonl.running", "7\n", r"line 1: not a record of a history"),
    ],
)
def test_what_is_no_history_is_refused(comm: MPI.Comm, folder: Path, name: str, content: str, message: str) -> None:
    path = put(comm, folder / name, content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_history(path, comm)


def test_a_damaged_line_is_named(comm: MPI.Comm, folder: Path) -> None:
    with hf.HistoryFile(folder / "history.csv", comm, past=lived()):
        pass
    comm.Barrier()
    lines = (folder / "history.csv").read_text().splitlines(keepends=True)
    comm.Barrier()
    for wrong in ("1,2,3\n", lines[2].replace("0.1", "much")):
        path = put(comm, folder / "wrong.csv", "".join([*lines[:2], wrong, *lines[3:]]))
        with pytest.raises(ValueError, match=r"wrong\.csv', line 3: not a record of a history"):
            read_history(path, comm)
    with pytest.raises(OSError, match=r"the history '.*none\.csv' cannot be read: No such file or directory$"):
        read_history(folder / "none.csv", comm)


KILLED = """
import os, signal, sys
import hyco_fem as hf
folder = sys.argv[1]
with hf.HistoryFile(folder + "/history.csv") as table, hf.HistoryFile(folder + "/history.jsonl") as lines:
    for k in range(7):
        record = hf.Record(k, misfit_physical=1.0 / (k + 3), parameters={"a": float(k)})
        table(record), lines(record)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.serial
def test_who_is_killed_has_all_lines(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    for name in ("history.csv.running", "history.jsonl.running"):
        found = read_history(folder / name)
        assert [r.round for r in found] == list(range(7))
        assert [r.misfit_physical for r in found] == [1.0 / (k + 3) for k in range(7)]
