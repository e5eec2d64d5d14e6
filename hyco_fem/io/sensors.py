"""Sensor tables: CSV with a header, one line a sensor."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import mesh as dmesh

from hyco_fem.bridge.points import OutsideError, Points
from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.files import replace_file
from hyco_fem.game.data import Data
from hyco_fem.parallel import agreed, raise_together

_COORDINATES = ("x", "y", "z")


@dataclass(frozen=True)
class Sensors:
    """A table of sensors, replicated.

    x: coordinates (n, d).  values: (n,), or (n, k) where there are columns value_0, value_1, ….  noise_std: (n,), or
    None where the file has no such column.  lines: line of the file of each sensor.  source: name of the file.
    t: times (n,), or None where the file has no column t: a sensor that moves has a line for each time.
    """

    x: np.ndarray
    values: np.ndarray
    noise_std: np.ndarray | None
    lines: tuple[int, ...]
    source: str
    t: np.ndarray | None = None

    def on(self, mesh: dmesh.Mesh) -> Data:
        """The data at points of a mesh, in space and time where there are times.  Collective.

        Raises:
            OutsideError: a sensor lies outside; named by its line in the file and its coordinates.
        """
        try:
            points = Points(mesh, self.x) if self.t is None else SpaceTimePoints(mesh, self.x, self.t)
        except OutsideError as error:
            listed = "; ".join(
                f"line {self.lines[i]}: ({', '.join(f'{c:g}' for c in self.x[i])})"
                + ("" if self.t is None else f" at t = {self.t[i]:g}")
                for i in error.indices[:5]
            )
            raise OutsideError(
                f"{self.source}: {len(error.indices)} of {len(self.x)} sensors lie outside the mesh: {listed}"
                f"{'; …' if len(error.indices) > 5 else ''}; correct or delete these lines",
                error.indices,
            ) from None
        return Data(points, self.values, self.noise_std)


def read_sensors(path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> Sensors:
    """Read a CSV with the columns x[, y[, z]][, t], value (or value_0, value_1, …) and, if known, noise_std.

    Rank 0 reads; every rank gets the table.  Lines that start with # are comments.  Collective.

    Raises:
        OSError: the file cannot be read.  ValueError: a column is missing or an entry is not a finite number (with line
            and column), or a noise_std is not positive.  On all ranks.
    """
    table: Sensors | None = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            table = _parse(Path(path))
        except Exception as e:
            error = e
    raise_together(comm, error)
    return comm.bcast(table, root=0)


def _parse(path: Path) -> Sensors:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OSError(f"the sensor file '{path}' cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    kept = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if len(kept) < 2:
        raise ValueError(f"{path} has no sensors: it needs a header line and one line a sensor")
    header = [name.strip() for name in next(csv.reader([kept[0][1]]))]
    coordinates = [c for c in _COORDINATES if c in header]
    components = sum(c.startswith("value_") for c in header)
    values = ["value"] if "value" in header else [f"value_{i}" for i in range(components)]
    timed = ["t"] if "t" in header else []
    wanted = [*_COORDINATES[: len(coordinates)], *values]
    if not coordinates or not values or not set(wanted) <= set(header):
        raise ValueError(
            f"{path}: the header needs x[, y[, z]][, t] and value (or value_0, value_1, …), it has {header}"
        )
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column stands twice in the header {header}")
    wanted += ["noise_std"] if "noise_std" in header else []
    wanted += timed
    rows = []
    for number, line in kept[1:]:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number}: {len(cells)} entries for {len(header)} columns")
        rows.append([_number(cells[header.index(c)], path, number, c) for c in wanted])
    array = np.array(rows)
    d, k = len(coordinates), len(values)
    noise = array[:, d + k] if "noise_std" in wanted else None
    if noise is not None and (noise <= 0).any():
        i = int(np.argmax(noise <= 0))
        raise ValueError(f"{path}, line {kept[1 + i][0]}, column 'noise_std': {noise[i]:g} is not positive")
    y = array[:, d] if values == ["value"] else array[:, d : d + k]
    t = array[:, -1].copy() if timed else None
    return Sensors(array[:, :d].copy(), y.copy(), noise, tuple(n for n, _ in kept[1:]), str(path), t)


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{path}, line {line}, column '{column}': '{text.strip()}' is not a number") from None
    if not np.isfinite(number):
        raise ValueError(f"{path}, line {line}, column '{column}': {text.strip()} is not finite")
    return number


def write_sensors(
    path: str | Path,
    x: Any,
    values: Any,
    noise_std: Any,
    comment: str = "",
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    t: Any = None,
) -> None:
    """Write a table that `read_sensors` reads, with ten digits.  Collective.

    Args:
        path: The CSV file.
        x: (n, d).  values: (n,) or (n, k).  noise_std: (n,) or a number; None where there is none.
        t: Times, (n,), or None.
        comment: Lines for the head of the file.

    Raises:
        ValueError: the shapes do not fit.  OSError: not writable.  On all ranks.
    """
    with agreed(comm):
        if comm.rank == 0:
            x, values = np.asarray(x), np.asarray(values)
            noise = None if noise_std is None else np.asarray(noise_std)
            if (
                x.ndim != 2
                or values.ndim not in (1, 2)
                or len(values) != len(x)
                or (noise is not None and noise.shape not in ((), (len(x),)))
                or (t is not None and np.shape(t) != (len(x),))
            ):
                raise ValueError(
                    f"x must be (n, d), values (n,) or (n, k), noise_std a number or (n,), t (n,); their shapes are "
                    f"{x.shape}, {values.shape}, {np.shape(noise_std)}, {np.shape(t)}"
                )
            for what, given in (("x", x), ("values", values), ("noise_std", noise), ("t", t)):
                if given is not None and not np.isfinite(given).all():
                    raise ValueError(
                        f"{what} has entries that are not finite, which read_sensors refuses: leave them out"
                    )
            names = ["value"] if values.ndim == 1 else [f"value_{i}" for i in range(values.shape[1])]
            timed = [] if t is None else [np.asarray(t)]
            columns = [*x.T, *timed, *np.atleast_2d(values.T)]
            if noise is not None:
                names.append("noise_std")
                columns.append(np.broadcast_to(noise, len(x)))
            out = io.StringIO()
            for line in comment.splitlines():
                out.write(f"# {line}\n")
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow([*_COORDINATES[: x.shape[1]], *("t" for _ in timed), *names])
            writer.writerows([f"{entry:.10g}" for entry in row] for row in zip(*columns, strict=True))
            try:
                replace_file(path, lambda p: p.write_text(out.getvalue(), encoding="utf-8"))
            except OSError as error:
                raise OSError(f"the sensor file '{path}' cannot be written: {error.strerror or error}") from None
