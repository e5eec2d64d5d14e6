"""Sensor tables, CSV and HDF5: what is written is read again, what is wrong is named by line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

import h5py
import numpy as np
import pytest
import torch
from cases import square
from folders import names, put

import hyco_fem as hf


def test_a_sensor_table_is_read_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    text = "\ufeff# by hand\n\nx, y ,value,noise_std,name\n0.25,0.5, 1e-1,0.02,north\n# spare\n0.75,0.125,-2,0.5,east\n"
    sensors = hf.read_sensors(put(comm, folder / "s.csv", text), comm)
    np.testing.assert_array_equal(sensors.x, [[0.25, 0.5], [0.75, 0.125]])
    np.testing.assert_array_equal(sensors.values, [0.1, -2.0])
    np.testing.assert_array_equal(sensors.noise_std, [0.02, 0.5])
    assert sensors.lines == (4, 6)
    data = sensors.on(square(comm, 2))
    np.testing.assert_array_equal(data.points.gather(data.values), sensors.values)
    np.testing.assert_array_equal(data.points.gather(data.noise_std), sensors.noise_std)
    np.testing.assert_array_equal(data.points.gather(data.points.x), sensors.x)


def test_columns_may_stand_in_any_order_and_hold_vectors_in_space(comm: MPI.Comm, folder: Path) -> None:
    header = ",".join(f"value_{i}" for i in range(10, -1, -1)) + ",z,x,y\n"
    row = ",".join(str(i) for i in range(10, -1, -1)) + ",3,1,2\r\n"
    sensors = hf.read_sensors(put(comm, folder / "s.csv", header + row), comm)
    np.testing.assert_array_equal(sensors.x, [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(sensors.values, [np.arange(11.0)])
    assert sensors.noise_std is None
    sensors = hf.read_sensors(put(comm, folder / "t.csv", "value,x\n5,1\n"), comm)
    np.testing.assert_array_equal(sensors.x, [[1.0]])
    np.testing.assert_array_equal(sensors.values, [5.0])


BAD_TABLES: dict[str, tuple[str | bytes, str]] = {
    "NaN": ("x,y,value\n0,0,1\n0,0,nan\n", r"s\.csv, line 3, column 'value': nan is not finite"),
    "infinite": ("# c\nx,y,value\n0,inf,1\n", r"line 3, column 'y': inf is not finite"),
    "text": ("x,y,value\n0,0,1\n\n0,zero,1\n", r"line 4, column 'y': 'zero' is not a number"),
    "nothing": ("x,y,value\n0,,1\n", r"line 2, column 'y': '' is not a number"),
    "decimal comma": ("x,y,value\n0,5,0,5,1\n", r"line 2: 5 entries for 3 columns"),
    "short row": ("x,y,value,noise_std\n0,0,1,1\n0,0,1\n", r"line 3: 3 entries for 4 columns"),
    "zero noise": ("x,y,value,noise_std\n0,0,1,1\n#\n0,0,1,0\n", r"line 4, column 'noise_std': 0 is not positive"),
    "negative noise": ("x,y,value,noise_std\n0,0,1,-2\n", r"line 2, column 'noise_std': -2 is not positive"),
    "NaN noise": ("x,y,value,noise_std\n0,0,1,NaN\n", r"line 2, column 'noise_std': NaN is not finite"),
    "no value": ("x,y,temperature\n0,0,1\n", r"the header needs .* it has \['x', 'y', 'temperature'\]"),
    "no x": ("y,value\n0,1\n", r"the header needs x"),
    "z without y": ("x,z,value\n0,0,1\n", r"the header needs x"),
    "components from one": ("x,y,value_1,value_2\n0,0,1,1\n", r"the header needs .*value_0, value_1, …"),
    "not a component": ("x,y,value_0,value_std\n0,0,1,1\n", r"the header needs .*value_0, value_1, …"),
    "semicolons": ("x;y;value\n0;0;1\n", r"it has \['x;y;value'\]"),
    "no header": ("0.1,0.2,1.0\n0.3,0.4,1.0\n", r"the header needs"),
    "twice": ("x,y,value,y\n0,0,1,0\n", r"a column stands twice"),
    "header only": ("x,y,value\n", r"has no sensors: it needs a header line and one line a sensor"),
    "empty": ("", r"s\.csv has no sensors"),
    "comments only": ("# x\n# y\n# z\n", r"has no sensors"),
    "not UTF-8": ("# Wärme\nx,y,value\n0,0,1\n".encode("latin-1"), r"s\.csv is not a text file in UTF-8"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_sensor_table_is_refused_by_line_and_column(comm: MPI.Comm, folder: Path, what: str) -> None:
    content, message = BAD_TABLES[what]
    path = put(comm, folder / "s.csv", content)
    with pytest.raises(ValueError, match=message):
        hf.read_sensors(path, comm)


def test_a_sensor_file_that_is_not_there_is_an_error_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    for path in (folder / "none.csv", folder):
        with pytest.raises(OSError, match=r"the sensor file '.*' cannot be read: .*directory"):
            hf.read_sensors(path, comm)


def test_sensors_outside_the_mesh_are_named_by_line_and_place(comm: MPI.Comm, folder: Path) -> None:
    rows = "".join(f"{0.5 if i % 2 else 2 + i},0.25,1\n" for i in range(14))
    sensors = hf.read_sensors(put(comm, folder / "s.csv", "# head\nx,y,value\n" + rows), comm)
    with pytest.raises(hf.OutsideError) as caught:
        sensors.on(square(comm, 2))
    text = str(caught.value)
    assert text.startswith(f"{folder / 's.csv'}: 7 of 14 sensors lie outside the mesh: line 3: (2, 0.25); line 5: (4, ")
    assert "line 11: (10, 0.25); …; correct or delete" in text, "five are enough"
    assert caught.value.indices == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("noise", [None, 0.125, np.linspace(1e-12, 2.0, 5)], ids=["no noise", "one", "each"])
def test_a_written_table_is_read_again(comm: MPI.Comm, folder: Path, components: int, noise: Any) -> None:
    rng = np.random.default_rng(0)
    d = 3 if components else 2
    x, y = rng.standard_normal((5, d)), 1e7 * rng.standard_normal((5, components) if components else 5)
    path = folder / "s.csv"
    hf.write_sensors(path, torch.from_numpy(x), y, noise, "κ in W/(m K)\nsecond line", comm)
    sensors = hf.read_sensors(path, comm)
    np.testing.assert_allclose(sensors.x, x, rtol=1e-9)
    np.testing.assert_allclose(sensors.values, y, rtol=1e-9)
    if noise is None:
        assert sensors.noise_std is None
    else:
        np.testing.assert_allclose(sensors.noise_std, np.broadcast_to(noise, 5), rtol=1e-9)
    assert path.read_text(encoding="utf-8").startswith("# κ in W/(m K)\n# second line\nx,y")
    assert sensors.lines == (4, 5, 6, 7, 8)
    for wrong in ((x[:4], y, 1.0), (x, y[:4], noise), (x, y, [1.0, 2.0]), (x[:, 0], y, 1.0)):
        with pytest.raises(ValueError, match=r"x must be \(n, d\), values .* shapes are \("):
            hf.write_sensors(path, *wrong, comm=comm)
    assert names(comm, folder) == ["s.csv"]
    np.testing.assert_array_equal(hf.read_sensors(path, comm).values, sensors.values)


@pytest.mark.parametrize(
    ("x", "values", "noise", "message"),
    [
        ([[0.5]], [1.0], 0.0, "noise_std must be positive, its smallest is 0"),
        ([[0.5], [0.6]], [1.0, 1.0], [1.0, -2.0], "its smallest is -2"),
        (np.empty((0, 2)), np.empty(0), None, "there is no sensor"),
        ([[0.5]], np.empty((1, 0)), None, "no value"),
    ],
)
def test_what_would_not_be_read_is_not_written(
    comm: MPI.Comm, folder: Path, x: Any, values: Any, noise: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hf.write_sensors(folder / "new" / "s.csv", x, values, noise, comm=comm)
    assert names(comm, folder) == []


# -- HDF5 --------------------------------------------------------------------------------------------------------


def put_datasets(comm: MPI.Comm, path: Path, datasets: dict[str, Any]) -> Path:
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file.create_dataset(name, data=values)
            if "x" in file:
                file["x"].attrs["unit"] = "m"
    comm.Barrier()
    return path


@pytest.mark.parametrize("ending", ["csv", "h5", "hdf5"])
@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("timed", [False, True])
def test_sensors_are_written_and_read_again(
    comm: MPI.Comm, folder: Path, ending: str, components: int, timed: bool
) -> None:
    """With all digits."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, components) if components else 12)
    noise, t = rng.uniform(0.1, 1.0, 12), np.linspace(0.0, 1.0, 12) if timed else None
    first, second = folder / f"a.{ending}", folder / f"b.{ending}"
    hf.write_sensors(first, x, y, noise, "K, by hand", comm, t=t)
    sensors = hf.read_sensors(first, comm)
    np.testing.assert_array_equal(sensors.x, x)
    np.testing.assert_array_equal(sensors.values, y)
    np.testing.assert_array_equal(sensors.noise_std, noise)
    assert (sensors.t is not None) == timed
    hf.write_sensors(second, sensors, comm=comm)
    again = hf.read_sensors(second, comm)
    for name in ("x", "values", "noise_std", "t"):
        np.testing.assert_array_equal(getattr(again, name), getattr(sensors, name))
    assert names(comm, folder) == [first.name, second.name]
    if ending == "h5":
        with h5py.File(first) as file:
            assert file.attrs["comment"] == "K, by hand"
            assert file["x"].shape == (12,)
    with pytest.raises(ValueError, match="give none besides"):
        hf.write_sensors(second, sensors, y, comm=comm)


def test_more_than_the_columns_is_passed_over_and_integers_are_numbers(comm: MPI.Comm, folder: Path) -> None:
    given = {"x": [0, 1], "value": np.array([1.5, 2.5], dtype=np.float32), "name": [b"north", b"east"], "log/a": [1.0]}
    sensors = hf.read_sensors(put_datasets(comm, folder / "s.h5", given), comm)
    np.testing.assert_array_equal(sensors.x, [[0.0], [1.0]])
    np.testing.assert_array_equal(sensors.values, [1.5, 2.5])
    assert sensors.values.dtype == np.float64
    assert sensors.noise_std is None


def test_a_sensor_of_an_hdf5_file_is_named_by_its_row(comm: MPI.Comm, folder: Path) -> None:
    given = {"x": [0.5, 2.0], "y": [0.5, 0.25], "value": [1.0, 1.0]}
    sensors = hf.read_sensors(put_datasets(comm, folder / "s.h5", given), comm)
    with pytest.raises(hf.OutsideError, match=r"outside the mesh: row 1: \(2, 0\.25\); correct or delete these rows"):
        sensors.on(square(comm, 2))


BAD_DATASETS: dict[str, tuple[dict[str, Any], str]] = {
    "no value": ({"x": [0.0], "y": [0.0]}, r"datasets at the root must be x\[, y.* it has \['x', 'y'\]"),
    "no x": ({"value": [0.0]}, r"must be x"),
    "z without y": ({"x": [0.0], "z": [0.0], "value": [0.0]}, r"must be x"),
    "components from one": ({"x": [0.0], "value_1": [0.0]}, r"value_0, value_1, …"),
    "lengths": ({"x": [0.0, 1.0], "value": [0.0]}, r"of one length, \(n,\); their shapes are .*'value': \(1,\)"),
    "a matrix": ({"x": np.zeros((2, 2)), "value": np.zeros((2, 2))}, r"of one length, \(n,\)"),
    "a number": ({"x": 0.0, "value": 0.0}, r"of one length, \(n,\)"),
    "nothing": ({"x": np.empty(0), "value": np.empty(0)}, r"has no sensors: its datasets are empty"),
    "NaN": ({"x": [0.0, 1.0], "value": [0.0, np.nan]}, r"s\.h5, row 1, column 'value': nan is not finite"),
    "infinite noise": ({"x": [0.0], "value": [0.0], "noise_std": [np.inf]}, r"row 0, column 'noise_std': inf"),
    "zero noise": ({"x": [0.0], "value": [0.0], "noise_std": [0.0]}, r"row 0, column 'noise_std': 0 is not positive"),
    "text": ({"x": [0.0], "value": [b"warm"]}, r"dataset 'value' is of .*, not of numbers"),
}


@pytest.mark.parametrize("what", BAD_DATASETS)
def test_bad_datasets_are_refused_by_row_and_column(comm: MPI.Comm, folder: Path, what: str) -> None:
    datasets, message = BAD_DATASETS[what]
    path = put_datasets(comm, folder / "s.h5", datasets)
    with pytest.raises(ValueError, match=message):
        hf.read_sensors(path, comm)


def test_what_is_not_hdf5_is_refused(comm: MPI.Comm, folder: Path) -> None:
    text = put(comm, folder / "text.h5", "x,y,value\n0,0,1\n")
    whole = put_datasets(comm, folder / "whole.h5", {"x": np.zeros(5000), "value": np.zeros(5000)})
    half = put(comm, folder / "half.h5", whole.read_bytes()[:40000])
    for path in (text, half):
        with pytest.raises(ValueError, match=r"\.h5' is not an HDF5 file, or is damaged"):
            hf.read_sensors(path, comm)
    with pytest.raises(OSError, match=r"the sensor file '.*none\.h5' cannot be read"):
        hf.read_sensors(folder / "none.h5", comm)
    with pytest.raises(OSError, match=r"the output folder '.*text\.h5' cannot be written"):
        hf.write_sensors(text / "s.h5", [[0.5]], [1.0], None, comm=comm)
    hf.write_sensors(folder / "new" / "s.h5", [[0.5]], [1.0], None, comm=comm)
    assert names(comm, folder / "new") == ["s.h5"]
