"""Sensor tables with times: what is written is read again, and becomes points in space and time."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import mesh

import hyco_fem as hf


def _rod(comm: MPI.Comm) -> mesh.Mesh:
    return mesh.create_unit_interval(comm, 8)


def test_a_table_with_times_is_read_as_it_was_written(folder: Path, comm: MPI.Comm) -> None:
    x, t, y = np.array([[0.1], [0.4], [0.1]]), np.array([0.0, 0.5, 1.0]), np.array([1.0, 2.0, 3.0])
    hf.write_sensors(folder / "s.csv", x, y, 0.1, comm=comm, t=t)
    sensors = hf.read_sensors(folder / "s.csv", comm)
    np.testing.assert_array_equal(sensors.t, t)
    np.testing.assert_array_equal(sensors.x, x)
    np.testing.assert_array_equal(sensors.values, y)
    points = sensors.on(_rod(comm)).points
    assert isinstance(points, hf.SpaceTimePoints)
    np.testing.assert_allclose(points.gather(points.x), np.column_stack([x, t]))


def test_a_sensor_that_leaves_the_mesh_is_named_with_its_line_and_its_time(folder: Path, comm: MPI.Comm) -> None:
    hf.write_sensors(folder / "s.csv", np.array([[0.9], [1.1]]), np.zeros(2), None, comm=comm, t=np.array([0.0, 0.25]))
    with pytest.raises(hf.OutsideError, match=r"line 3: \(1\.1\) at t = 0\.25"):
        hf.read_sensors(folder / "s.csv", comm).on(_rod(comm))


def test_times_of_another_length_are_refused(folder: Path, comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match=r"t \(n,\)"):
        hf.write_sensors(folder / "s.csv", np.zeros((2, 1)), np.zeros(2), None, comm=comm, t=np.zeros(3))
