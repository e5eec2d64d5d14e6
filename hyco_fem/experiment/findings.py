"""What a study of an experiment leaves: a table for the terminal, and NAME.json, NAME.csv and NAME.png in a folder.

The JSON has {"title", "columns", "rows", "notes", "pictures", "runs"}: a table to be shown as it is, sentences below
it, pictures beside it, and what single runs gave, for programs.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem.experiment.configuration import identity, read_experiment
from hyco_fem.experiment.run import CONFIGURATION
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, plain
from hyco_fem.files import output_folder, replace_file
from hyco_fem.io.checkpoint_file import difference
from hyco_fem.io.plots import save_figure
from hyco_fem.parallel import agreed

Say = Callable[[str], None]


@dataclass
class Findings:
    """A table with what belongs to it.  Replicated.

    title: one line.  columns, rows: texts, numbers, or None where there is nothing to tell.  notes: sentences.
    pictures: files beside it.  runs: a record of each run.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        """The table in columns, and the notes below it."""
        cells = [self.columns, *([shown(value) for value in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        left = [any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if start else cell.rjust(width)
                for cell, width, start in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in cells
        ]
        return "\n".join([self.title, "", *lines, "", *self.notes])

    def save(
        self,
        folder: Path,
        name: str,
        comm: MPI.Comm,
        draw: Callable[[Any], None],
        *,
        size: tuple[float, float],
        table: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None,
    ) -> None:
        """Write NAME.png by draw(figure), NAME.csv and NAME.json, each whole or not at all.  Collective.

        table: columns and rows of the CSV, where they are others than those to be shown.

        Raises:
            OSError: the folder cannot be written; on all ranks.
        """
        output_folder(folder, comm)
        save_figure(comm, folder / f"{name}.png", draw, size=size)
        self.pictures = [f"{name}.png"]
        columns, rows = table or (self.columns, self.rows)
        with agreed(comm):
            if comm.rank == 0:
                text = json.dumps(_finite(vars(self)), indent=2, ensure_ascii=False) + "\n"
                replace_file(folder / f"{name}.csv", lambda p: _write_csv(p, columns, rows))
                replace_file(folder / f"{name}.json", lambda p: p.write_text(text, encoding="utf-8"))


def shown(value: Any) -> str:
    """A cell as text: three digits, a dash where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:.3g}"
    return str(value)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- whose folder it is ----------------------------------------------------------------------------------------


def whole_identity(experiment: Experiment) -> dict[str, Any]:
    """What tells an experiment from others, and how long it is played.  Local to the rank; reads the files."""
    found = identity(experiment)
    found["game"]["rounds"] = experiment.game.rounds
    if experiment.game.stopping is not None:
        found["game"]["stopping"] = plain(experiment.game.stopping)
    as_json: dict[str, Any] = json.loads(json.dumps(found))
    return as_json


def difference_in_words(theirs: Any, own: Any) -> str | None:
    """The first difference of two identities, with keys as they are in the file; None where there is none."""
    found = difference(theirs, own)
    return None if found is None else re.sub(r"\['([^']*)'\]", r".\1", found)


def check_run_folder(folder: Path, experiment: Experiment, what: str, comm: MPI.Comm) -> None:
    """Raise ConfigurationError, on all ranks, where a folder holds a run of another experiment.  Collective."""
    with agreed(comm):
        if comm.rank == 0 and (folder / CONFIGURATION).is_file():
            there = read_experiment(folder / CONFIGURATION, comm=MPI.COMM_SELF, folder=folder)
            found = difference_in_words(*(json.loads(json.dumps(identity(e))) for e in (there, experiment)))
            if found is not None:
                raise ConfigurationError(f"{what}: '{folder}' is of another experiment: {found}; choose another folder")
