"""Sensor tables: CSV with a header, one line a sensor, or HDF5 with a dataset for each column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import mesh as dmesh

from hyco_fem.bridge.points import OutsideError, Points
from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.files import output_folder, replace_file
from hyco_fem.game.data import Data
from hyco_fem.parallel import agreed, raise_together

_COORDINATES = ("x", "y", "z")
_HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Sensors:
    """A table of sensors, replicated.

    x: coordinates (n, d).  values: (n,), or (n, k) where there are columns value_0, value_1, ….  noise_std: (n,), or
    None where the file has no such column.  lines: line of the file of each sensor.  source: name of the file.
    t: times (n,), or None where the file has no column t: a sensor that moves has a line for each time.
    line: what a line is called: "line" of a CSV, counted from 1, "row" of an HDF5 file, counted from 0.
    """

    x: np.ndarray
    values: np.ndarray
    noise_std: np.ndarray | None
    lines: tuple[int, ...]
    source: str
    t: np.ndarray | None = None
    line: str = "line"

    def on(self, mesh: dmesh.Mesh) -> Data:
        """The data at points of a mesh, in space and time where there are times.  Collective.

        Raises:
            OutsideError: a sensor lies outside; named by its line in the file and its coordinates.
        """
        try:
            points = Points(mesh, self.x) if self.t is None else SpaceTimePoints(mesh, self.x, self.t)
        except OutsideError as error:
            listed = "; ".join(
                f"{self.line} {self.lines[i]}: ({', '.join(f'{c:g}' for c in self.x[i])})"
                + ("" if self.t is None else f" at t = {self.t[i]:g}")
                for i in error.indices[:5]
            )
            raise OutsideError(
                f"{self.source}: {len(error.indices)} of {len(self.x)} sensors lie outside the mesh: {listed}"
                f"{'; …' if len(error.indices) > 5 else ''}; correct or delete these {self.line}s",
                error.indices,
            ) from None
        return Data(points, self.values, self.noise_std)


def read_sensors(path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> Sensors:
    """Read a table with the columns x[, y[, z]][, t], value (or value_0, value_1, …) and, if known, noise_std.

    A .csv has them in lines below a header; lines that start with # are comments.  A .h5 has a dataset of n numbers at
    its root for each, of the same name; other datasets and all attributes (units, say) are passed over.

    Rank 0 reads; every rank gets the table.  Collective.

    Raises:
        OSError: the file cannot be read.  ValueError: a column is missing or an entry is not a finite number (with line
            and column), or a noise_std is not positive.  RuntimeError: a .h5 without h5py.  On all ranks.
    """
    table: Sensors | None = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            path = Path(path)
            table = _read_hdf5(path) if path.suffix in _HDF5 else _read_csv(path)
        except Exception as e:
            error = e
    raise_together(comm, error)
    return comm.bcast(table, root=0)


def _read_csv(path: Path) -> Sensors:
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
    wanted = _wanted(header, path, "the header needs")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column stands twice in the header {header}")
    rows = []
    for number, line in kept[1:]:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number}: {len(cells)} entries for {len(header)} columns")
        rows.append([_number(cells[header.index(c)], path, number, c) for c in wanted])
    columns = dict(zip(wanted, np.ascontiguousarray(np.transpose(rows)), strict=True))
    return _table(columns, tuple(n for n, _ in kept[1:]), path, "line")


def _read_hdf5(path: Path) -> Sensors:
    h5py = _h5py(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if not path.is_file():
            raise OSError(f"the sensor file '{path}' cannot be read: {error.strerror or error}") from None
        raise ValueError(f"'{path}' is not an HDF5 file, or is damaged: {error}") from None
    with file:
        datasets = [name for name in file if isinstance(file.get(name), h5py.Dataset)]
        wanted = _wanted(datasets, path, "datasets at the root must be")
        shapes = {c: file[c].shape for c in wanted}
        if len(set(shapes.values())) > 1 or len(shapes["x"]) != 1:
            raise ValueError(f"{path}: the datasets must be of one length, (n,); their shapes are {shapes}")
        if shapes["x"] == (0,):
            raise ValueError(f"{path} has no sensors: its datasets are empty")
        for c in wanted:
            if file[c].dtype.kind not in "fiu":
                raise ValueError(f"{path}, dataset '{c}' is of {file[c].dtype}, not of numbers")
        columns = {c: np.asarray(file[c], dtype=np.float64) for c in wanted}
    for c, column in columns.items():
        if not np.isfinite(column).all():
            i = int(np.argmin(np.isfinite(column)))
            raise ValueError(f"{path}, row {i}, column '{c}': {column[i]} is not finite")
    return _table(columns, tuple(range(len(columns["x"]))), path, "row")


def _wanted(header: list[str], path: Path, needs: str) -> list[str]:
    """The columns to read: coordinates, values, noise, times."""
    coordinates = [c for c in _COORDINATES if c in header]
    components = sum(c.startswith("value_") for c in header)
    values = ["value"] if "value" in header else [f"value_{i}" for i in range(components)]
    wanted = [*_COORDINATES[: len(coordinates)], *values]
    if not coordinates or not values or not set(wanted) <= set(header):
        raise ValueError(f"{path}: {needs} x[, y[, z]][, t] and value (or value_0, value_1, …), it has {header}")
    return wanted + [c for c in ("noise_std", "t") if c in header]


def _table(columns: dict[str, np.ndarray], lines: tuple[int, ...], path: Path, line: str) -> Sensors:
    noise = columns.get("noise_std")
    if noise is not None and (noise <= 0).any():
        i = int(np.argmax(noise <= 0))
        raise ValueError(f"{path}, {line} {lines[i]}, column 'noise_std': {noise[i]:g} is not positive")
    x = np.stack([columns[c] for c in _COORDINATES if c in columns], axis=1)
    values = [column for name, column in columns.items() if name.startswith("value")]
    y = columns["value"] if "value" in columns else np.stack(values, axis=1)
    return Sensors(x, y, noise, lines, str(path), columns.get("t"), line)


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise RuntimeError(
            f"'{path}' needs h5py ({error}): python3-h5py (Debian) or h5py (conda-forge, PyPI)"
        ) from None
    return h5py


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
    values: Any = None,
    noise_std: Any = None,
    comment: str = "",
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    t: Any = None,
) -> None:
    """Write a table that `read_sensors` reads: a .csv, or a .h5, both with all digits.  Collective.

    Args:
        path: The file; .h5 and .hdf5 are HDF5, all others CSV.  Its folder is made where it is not there.
        x: (n, d), or `Sensors`, which bring values, noise and times along.
        values: (n,) or (n, k).  noise_std: (n,) or a number; None where there is none.
        t: Times, (n,), or None.
        comment: Lines for the head of the file; in HDF5 its attribute "comment".

    Raises:
        ValueError: the shapes do not fit, or `read_sensors` would refuse the table.  OSError: not writable.
        RuntimeError: a .h5 without h5py.  On all ranks.
    """
    path = Path(path)
    with agreed(comm):
        if comm.rank == 0:
            if isinstance(x, Sensors):
                if values is not None or noise_std is not None or t is not None:
                    raise ValueError("Sensors have values, noise and times: give none besides")
                x, values, noise_std, t = x.x, x.values, x.noise_std, x.t
            columns = _columns(x, values, noise_std, t)
            write = _hdf5_writer(path, columns, comment) if path.suffix in _HDF5 else _csv_writer(columns, comment)
    output_folder(path.parent, comm)
    with agreed(comm):
        if comm.rank == 0:
            try:
                replace_file(path, write)
            except OSError as error:
                raise OSError(f"the sensor file '{path}' cannot be written: {error.strerror or error}") from None


def _columns(x: Any, values: Any, noise_std: Any, t: Any) -> dict[str, np.ndarray]:
    """The columns by name, in the order of the file."""
    x, values = np.asarray(x, dtype=np.float64), np.asarray(values)
    noise = None if noise_std is None else np.asarray(noise_std)
    if (
        x.ndim != 2
        or not 1 <= x.shape[1] <= 3
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
            raise ValueError(f"{what} has entries that are not finite, which read_sensors refuses: leave them out")
    if len(x) == 0 or values.shape[1:] == (0,):
        raise ValueError("there is no sensor, or no value, to write, which read_sensors refuses")
    if noise is not None and (noise <= 0).any():
        raise ValueError(
            f"noise_std must be positive, its smallest is {noise.min():g}: give None where it is not known"
        )
    columns = dict(zip(_COORDINATES, x.T, strict=False))
    if t is not None:
        columns["t"] = np.asarray(t)
    columns |= {"value": values} if values.ndim == 1 else {f"value_{i}": v for i, v in enumerate(values.T)}
    if noise is not None:
        columns["noise_std"] = np.broadcast_to(noise, len(x))
    return columns


def _csv_writer(columns: dict[str, np.ndarray], comment: str) -> Callable[[Path], object]:
    out = io.StringIO()
    for line in comment.splitlines():
        out.write(f"# {line}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([repr(float(entry)) for entry in row] for row in zip(*columns.values(), strict=True))
    return lambda path: path.write_text(out.getvalue(), encoding="utf-8")


def _hdf5_writer(path: Path, columns: dict[str, np.ndarray], comment: str) -> Callable[[Path], object]:
    h5py = _h5py(path)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, column in columns.items():
                file.create_dataset(name, data=np.asarray(column, dtype=np.float64))
            if comment:
                file.attrs["comment"] = comment

    return write
