"""What an output folder holds, read without running anything.  Local to the rank that reads."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, read
from hyco_fem.io.sensors import Sensors, read_sensors

SUMMARY, HISTORY, RUNNING, CONFIGURATION = "summary.json", "history.csv", "history.csv.running", "experiment.toml"
FIELDS, SERIES = "fields.xdmf", "series.xdmf"
# Left by hyco-fem compare and hyco-fem convergence: these must be what they should be.
TABLES = ("compare.json", "convergence.json")

_CHECKPOINT = re.compile(r"round-(\d{8,})(?:-warm-up-\d{8,})?\.pt")


@dataclass(frozen=True, eq=False)
class Run:
    """A run as its folder shows it.

    summary: of summary.json, {} without.  history: columns by name, (rounds,) each, {} without.
    text: of experiment.toml, None without.  experiment: what it says, None where it is not of this version.
    running: whether the run has not ended.  written: when its last line was written.
    checkpoint: the round of the last checkpoint, or None.
    """

    folder: Path
    summary: dict[str, Any]
    history: dict[str, np.ndarray]
    text: str | None
    table: dict[str, Any]
    experiment: Experiment | None
    running: bool
    written: datetime | None
    checkpoint: int | None

    @property
    def title(self) -> str:
        """What the run calls itself, or its folder."""
        names = (self.table.get("title"), self.told("title"), self.told("demo"), self.told("case"))
        return next((str(name) for name in names if name), self.folder.resolve().name)

    def told(self, name: str) -> Any:
        """An entry of the summary, or None: where it is not there or of another kind, and while the run goes on."""
        value = self.summary.get(name)
        return value if isinstance(value, KINDS[name]) and (not self.running or KINDS[name] is str) else None

    @property
    def rounds(self) -> int | None:
        """Rounds that were played."""
        counted = self.history.get("round", np.array([]))
        if self.told("rounds") is not None or not len(counted):
            return self.told("rounds")
        # The last record of a run that has ended is of the state after its rounds.
        return int(counted[-1]) + self.running

    @property
    def parameters(self) -> dict[str, tuple[float | None, float | None]]:
        """Start and end of each unknown number, by name."""
        last = flat(self.told("parameters") or {})
        found: dict[str, tuple[float | None, float | None]] = {}
        for name in dict.fromkeys([*parameter_columns(self), *last]):
            first, end = self.ends(name)
            found[name] = first, last.get(name, end)
        return found

    def ends(self, name: str) -> tuple[float | None, float | None]:
        """First and last number of a column of the history."""
        column = self.history.get(name, np.array([]))
        return (float(column[0]), float(column[-1])) if len(column) else (None, None)


# What the entries of a summary are, as far as the page knows them; one of another kind is told among others.
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("title", "demo", "case", "stop"), str),
    **dict.fromkeys(("rounds", "rolled_back", "ranks", "sensors"), int),
    **dict.fromkeys(("gain_physical", "gain_synthetic", "tolerance"), (int, float)),
    **dict.fromkeys(("parameters", "standard_errors", "last", "timings", "versions", "choice", "from_data"), dict),
    "nash_residual": list,
    "nash": bool,
}

# Columns of a history that are no parameters.
MEASURES = (
    "misfit_physical",
    "misfit_synthetic",
    "interaction",
    "potential",
    "gradient_physical",
    "gradient_synthetic",
    "residual",
    "boundary",
    "initial",
    "objective",
    "energy",
)


def parameter_columns(run: Run) -> list[str]:
    """Columns of the history that are unknown numbers, in their order."""
    return [name for name in run.history if name not in MEASURES and name != "round"]


def flat(parameters: dict[str, Any]) -> dict[str, float | None]:
    """Numbers by name as the columns of a history name them: an entry of an array is NAME[0,1]."""
    found: dict[str, float | None] = {}
    for name, value in parameters.items():
        for i, entry in np.ndenumerate(np.array(value, dtype=object)):
            if entry is None or isinstance(entry, (int, float)):
                found[f"{name}[{','.join(map(str, i))}]" if i else name] = entry
    return found


def field_files(run: Run) -> list[Path]:
    """The file of a run's fields, or where it has none of that name, all XDMF files in its folder."""
    path = run.folder / FIELDS
    return [path] if path.is_file() else sorted(p for p in run.folder.glob("*.xdmf") if p.name != SERIES)


def is_run(folder: Path) -> bool:
    """Whether a run has left something in a folder."""
    return any((folder / name).is_file() for name in (SUMMARY, HISTORY, RUNNING, CONFIGURATION, FIELDS))


def read_run(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        ValueError: a file is damaged.  OSError: one cannot be read.
    """
    running = (folder / RUNNING).is_file()
    source = folder / (RUNNING if running else HISTORY)
    text = _text(folder / CONFIGURATION) if (folder / CONFIGURATION).is_file() else None
    rounds = [int(m[1]) for p in folder.glob("checkpoints/round-*.pt") if (m := _CHECKPOINT.fullmatch(p.name))]
    table: dict[str, Any] = {}
    if text is not None:
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"'{folder / CONFIGURATION}' is damaged: {error}") from None
    return Run(
        folder=folder,
        summary=read_object(folder / SUMMARY) if (folder / SUMMARY).is_file() else {},
        history=_history(source, growing=running) if source.is_file() else {},
        text=text,
        table=table,
        experiment=_experiment(table),
        running=running or (text is not None and not (folder / SUMMARY).is_file()),
        written=datetime.fromtimestamp(source.stat().st_mtime) if source.is_file() else None,
        checkpoint=max(rounds, default=None),
    )


def _experiment(table: dict[str, Any]) -> Experiment | None:
    try:
        return read(Experiment, table) if table else None
    except ConfigurationError:  # of another version, or from another program
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is damaged: it is no text in UTF-8") from None
    except OSError as error:
        raise OSError(f"'{path}' cannot be read: {error.strerror or error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ValueError: it holds none.  OSError: it cannot be read.
    """
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is damaged: {error}; delete it, or run again") from None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is damaged: it holds no table of names and values; delete it, or run again")
    return found


def _history(path: Path, *, growing: bool) -> dict[str, np.ndarray]:
    """Columns of a CSV file by name.  Of one that grows, the last line counts when it is whole."""
    text = _text(path)
    if growing and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    lines = csv.reader(text.splitlines())
    header = next(lines, None)
    if header is None:
        return {}
    if "round" not in header or len(set(header)) < len(header):
        raise ValueError(f"'{path}' is damaged: its first line is not that of a history; delete it, or run again")
    rows = []
    for line in lines:
        try:
            row = [float(entry) for entry in line]
        except ValueError as error:
            raise ValueError(f"'{path}' is damaged, line {lines.line_num}: {error}") from None
        if len(row) != len(header):
            raise ValueError(
                f"'{path}' is damaged, line {lines.line_num}: it has {len(row)} entries, and the header {len(header)}"
            )
        rows.append(row)
    table = np.array(rows).reshape(len(rows), len(header))
    return dict(zip(header, table.T, strict=True))


@dataclass(frozen=True, eq=False)
class Table:
    """A table that another command has left, with pictures in its folder.  name: of its file."""

    name: str
    title: str
    columns: list[Any]
    rows: list[list[Any]]
    notes: list[str]
    pictures: list[Path]


def read_tables(folder: Path) -> list[Table]:
    """The tables in a folder: JSON objects with columns and rows.

    Raises:
        ValueError: compare.json or convergence.json is damaged.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == SUMMARY:
            continue
        try:
            entries = read_object(path)
        except ValueError:
            if path.name in TABLES:
                raise
            continue  # of somebody else
        columns, rows = entries.get("columns"), entries.get("rows")
        if isinstance(columns, list) and isinstance(rows, list) and all(_of_length(row, len(columns)) for row in rows):
            pictures = [folder / Path(str(name)).name for name in entries.get("pictures") or []]
            notes = [str(note) for note in entries.get("notes") or []]
            found.append(Table(path.name, str(entries.get("title") or path.stem), columns, rows, notes, pictures))
        elif path.name in TABLES:
            raise ValueError(f"'{path}' is damaged: it has no columns, or rows of another length; write it again")
    return found


def _of_length(row: Any, n: int) -> bool:
    return isinstance(row, list) and len(row) == n


def sensors_of(run: Run) -> tuple[Sensors | None, str]:
    """The sensors of the configuration, where their file is still there; otherwise why not."""
    if run.experiment is None:
        return None, ""
    path = run.folder / run.experiment.sensors.file
    try:
        return read_sensors(path, MPI.COMM_SELF), ""
    except (OSError, ValueError, RuntimeError) as error:  # the last of a .h5 without h5py
        return None, f"The sensors are not drawn: {error}"
