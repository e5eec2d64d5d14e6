"""What happened: a record for each round, and the result with what led to it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from torch import nn

from hyco_fem.files import output_folder, replace_file
from hyco_fem.parallel import agreed, is_distributed, sum_array


@dataclass(frozen=True)
class Record:
    """The state before round `round` (the last record: the final state).  Replicated.

    misfit_physical, misfit_synthetic: L_phy, L_syn.  interaction: I, at the ghost points of this round.
    potential: P.  gradient_physical, gradient_synthetic: |∇_θ J_phy|, |∇_φ J_syn|.
    parameters: θ by name, large ones by their root mean square.  NaN where a player does not take part.
    """

    round: int
    misfit_physical: float = math.nan
    misfit_synthetic: float = math.nan
    interaction: float = math.nan
    potential: float = math.nan
    gradient_physical: float = math.nan
    gradient_synthetic: float = math.nan
    parameters: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, float | int]:
        """Names and numbers of one line of a table."""
        row: dict[str, float | int] = {k: v for k, v in vars(self).items() if k != "parameters"}
        for name, value in self.parameters.items():
            entries = np.asarray(value)
            if entries.ndim == 0:
                row[name] = float(entries)
            else:
                row.update({f"{name}[{','.join(map(str, i))}]": float(v) for i, v in np.ndenumerate(entries)})
        return row


# True: stop the run.
Callback = Callable[[Record], bool | None]


@dataclass
class Result:
    """The outcome of a run.  Replicated.

    parameters: θ by name at the end.  history: a record for each round and one for the final state.
    nash_residual: (|∇_θ J_phy|, |∇_φ J_syn|) at the final state; zero at a Nash equilibrium.
    rounds: rounds that count.  rolled_back: steps that were taken back.  stop: why the run ended.
    timings: seconds on this rank by part.
    choice: how the weights were chosen, with the curve, where a rule chose them.
    """

    parameters: dict[str, Any]
    history: list[Record]
    nash_residual: tuple[float, float]
    rounds: int
    rolled_back: int
    stop: str
    timings: dict[str, float]
    choice: Any = None

    def summary(self) -> dict[str, Any]:
        """What goes into summary.json; NaN becomes null."""
        last = self.history[-1].flat() if self.history else {}
        chosen = {} if self.choice is None else {"choice": self.choice.summary()}
        return _plain(
            chosen
            | {
                "stop": self.stop,
                "rounds": self.rounds,
                "rolled_back": self.rolled_back,
                "nash_residual": list(self.nash_residual),
                "parameters": self.parameters,
                "last": last,
                "timings": self.timings,
            }
        )

    def save(self, folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, extra: dict[str, Any] | None = None) -> None:
        """Write summary.json (with the entries of `extra`) and history.csv into a folder, each whole or not at all.

        Collective.  Raises OSError on all ranks where the folder cannot be written.
        """
        write_summary(folder, comm, self.summary() | (extra or {}))
        folder = Path(folder)
        with agreed(comm):
            if comm.rank == 0:
                table = history_csv(self.history)
                replace_file(folder / "history.csv", lambda p: p.write_text(table, encoding="utf-8"))


def write_summary(folder: str | Path, comm: MPI.Comm, entries: dict[str, Any]) -> None:
    """Write summary.json into a folder, whole or not at all; NaN becomes null, arrays lists.

    Collective.  Raises OSError on all ranks where the folder cannot be written.
    """
    folder = output_folder(folder, comm)
    with agreed(comm):
        if comm.rank == 0:
            text = json.dumps(_plain(entries), indent=2) + "\n"
            replace_file(folder / "summary.json", lambda p: p.write_text(text, encoding="utf-8"))


def history_csv(history: list[Record]) -> str:
    """A history as CSV text with a header."""
    out = io.StringIO()
    if history:
        writer = csv.DictWriter(out, fieldnames=list(history[0].flat()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.flat() for record in history)
    return out.getvalue()


def parameter_values(model: nn.Module, comm: MPI.Comm, longest: float = math.inf) -> dict[str, Any]:
    """Trainable parameters by name as floats or arrays.  Collective.

    A distributed one, or one with more than `longest` numbers, is given by its root mean square (name + ".rms").
    """
    values: dict[str, Any] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        name = name.removeprefix("coefficients.")
        array = p.detach().numpy()
        if not is_distributed(p) and array.size > longest:
            values[name + ".rms"] = float(np.sqrt(np.mean(array**2)))
        elif is_distributed(p):
            square, n = sum_array(comm, np.array([np.sum(array**2), float(array.size)]))
            values[name + ".rms"] = float(np.sqrt(square / n))
        else:
            values[name] = float(array) if array.ndim == 0 else array.copy()
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
