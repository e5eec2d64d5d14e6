"""Sensor data: the misfit, and what is no data."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import square

import hyco_fem as hf

X = np.array([[0.2, 0.3], [0.9, 0.5], [0.4, 0.75], [0.5, 0.5]])
Y = np.array([1.0, -2.0, 0.5, 3.0])


def points(comm: MPI.Comm, x: np.ndarray = X, **options: Any) -> hf.Points:
    return hf.Points(square(comm, 3), x, **options)


def misfit(data: hf.Data, model: np.ndarray) -> float:
    """L for a model's values at all sensors, summed over ranks."""
    return data.points.comm.allreduce(float(data.local_misfit(torch.from_numpy(model[data.points.index]))))


@pytest.mark.parametrize("noise", [None, 0.5, np.array([0.1, 0.2, 0.3, 0.4])], ids=["none", "one", "each"])
@pytest.mark.parametrize("components", [0, 2])
def test_the_misfit_is_a_mean_of_squares_over_the_noise(comm: MPI.Comm, noise: Any, components: int) -> None:
    y = Y if components == 0 else np.stack([Y, Y**2], axis=1)
    model = y + np.random.default_rng(0).standard_normal(y.shape)
    sigma = np.ones(4) if noise is None else np.broadcast_to(noise, 4)
    expected = sum(np.sum((model[i] - y[i]) ** 2) / sigma[i] ** 2 for i in range(4)) / 4
    data = hf.Data(points(comm), y, noise)
    assert misfit(data, model) == pytest.approx(expected, rel=1e-13)
    assert misfit(data, y) == 0.0
    assert data.n == 4
    np.testing.assert_array_equal(data.values.numpy(), y[data.points.index])
    np.testing.assert_array_equal(data.noise_std.numpy(), sigma[data.points.index])
    assert comm.allreduce(len(data.values)) == 4


def test_lists_and_tensors_serve_as_values(comm: MPI.Comm) -> None:
    expected = misfit(hf.Data(points(comm), Y, 0.5), np.zeros(4))
    assert misfit(hf.Data(points(comm), Y.tolist(), [0.5] * 4), np.zeros(4)) == expected
    assert misfit(hf.Data(points(comm), torch.from_numpy(Y).requires_grad_(), 0.5), np.zeros(4)) == expected


def test_sensors_left_out_take_no_part_in_the_mean(comm: MPI.Comm) -> None:
    x = np.concatenate([X[:2], [[5.0, 5.0]], X[2:]])
    y = np.concatenate([Y[:2], [1e6], Y[2:]])
    data = hf.Data(points(comm, x, missing="mark"), y, 0.5)
    model = np.zeros(5)
    assert misfit(data, model) == pytest.approx(np.mean(Y**2) / 0.25, rel=1e-13)
    with pytest.raises(ValueError, match="none of the 2 sensors lies in the mesh"):
        hf.Data(points(comm, X[:2] + 7.0, missing="mark"), Y[:2])


@pytest.mark.parametrize(
    ("values", "noise", "message"),
    [
        (Y[:3], None, r"4 sensors need values of shape \(4,\) or \(4, k\), not \(3,\)"),
        (np.zeros((4, 2, 2)), None, r"not \(4, 2, 2\)"),
        (1.0, None, r"not \(\)"),
        ([1.0, 2.0, np.nan, 4.0], None, r"value of sensor 2 is nan"),
        ([[1, 1], [1, np.inf], [1, 1], [1, 1]], None, r"value of sensor 1 is \[ 1. inf\]"),
        (Y, np.ones(3), r"noise_std must be a number or have shape \(4,\), not \(3,\)"),
        (Y, 0.0, r"noise_std of sensor 0 is 0.0; it must be positive"),
        (Y, [1.0, 1.0, 1.0, -0.5], r"noise_std of sensor 3 is -0.5"),
        (Y, [1.0, np.nan, 1.0, 1.0], r"noise_std of sensor 1 is nan"),
        (Y, np.inf, r"noise_std of sensor 0 is inf"),
    ],
)
def test_what_is_no_data_is_refused_by_name(comm: MPI.Comm, values: Any, noise: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.Data(points(comm), values, noise)


def test_what_is_no_data_on_one_rank_is_refused_by_all(comm: MPI.Comm) -> None:
    y = np.where(np.arange(4) == 2, np.nan, Y) if comm.rank == comm.size - 1 else Y
    with pytest.raises(ValueError, match="value of sensor 2 is nan"):
        hf.Data(points(comm), y)


def test_no_sensors_are_no_data(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="there are no sensors"):
        hf.Data(points(comm, np.empty((0, 2))), np.empty(0))


def test_a_model_of_another_shape_is_refused(comm: MPI.Comm) -> None:
    data = hf.Data(points(comm), Y)
    with pytest.raises(ValueError, match=r"a model has values of shape .* at sensors with data of shape"):
        data.local_misfit(torch.zeros(len(data.points), 2, dtype=torch.float64))
