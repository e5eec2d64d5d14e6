"""Sensor data: where, what was measured, and how noisy it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem.bridge.points import Points
from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.parallel import agreed


class Data:
    """Values measured at points.

    Args:
        points: The sensors.
        values: y, replicated, (n,) or (n, value_size), in the unit of u, in the order of the points' x.
        noise_std: σ, the standard deviation of the noise in the same unit: a number, or one for each sensor (n,).
            None where there is no noise or it is unknown: the misfit is then not scaled (σ = 1).

    Attributes:
        points, n; values, noise_std: the parts at the points owned here.
        n_found: sensors that count: in the mesh, and not held out; n_values: their values, components counted.

    Raises:
        ValueError: wrong shape, a value that is not finite, a noise that is not positive; on all ranks, with the row.

    Collective.
    """

    def __init__(self, points: Points | SpaceTimePoints, values: Any, noise_std: Any = None) -> None:
        with agreed(points.comm):
            y = np.asarray(values.detach() if isinstance(values, Tensor) else values, dtype=np.float64)
            if len(y.shape) not in (1, 2) or len(y) != points.n:
                raise ValueError(
                    f"{points.n} sensors need values of shape ({points.n},) or ({points.n}, k), not {y.shape}"
                )
            if points.n == 0:
                raise ValueError("there are no sensors")
            if not points.found.any():
                raise ValueError(f"none of the {points.n} sensors lies in the mesh")
            bad = np.flatnonzero(~np.isfinite(y).reshape(len(y), -1).all(axis=1))
            if len(bad):
                raise ValueError(f"the value of sensor {bad[0]} is {y[bad[0]]}, which is not finite")
            sigma = np.asarray(1.0 if noise_std is None else noise_std, dtype=np.float64)
            if sigma.shape not in ((), (points.n,)):
                raise ValueError(f"noise_std must be a number or have shape ({points.n},), not {sigma.shape}")
            sigma = np.broadcast_to(sigma, (points.n,))
            bad = np.flatnonzero(~(np.isfinite(sigma) & (sigma > 0)))
            if len(bad):
                raise ValueError(
                    f"noise_std of sensor {bad[0]} is {sigma[bad[0]]}; it must be positive, or None for no noise"
                )
        self.points: Any = points
        self.n = points.n
        # Sensors that `Points` left out as outside the mesh take no part in the mean.
        self.values = torch.from_numpy(y[points.index])
        self.noise_std = torch.from_numpy(sigma[points.index].copy())
        self.known_noise = noise_std is not None
        # To six digits, and nothing cancels: what was computed on another number of ranks differs by rounding.
        size = np.abs(y)
        sums = (size.sum(), np.arange(1.0, points.n + 1.0) @ size.reshape(points.n, -1).sum(1), sigma.sum())
        positive = np.maximum(y, 0.0).sum() / (size.sum() or 1.0)
        self._sums = " ".join(f"{a:.6g}" for a in sums) + f", {100.0 * positive:.4f} % positive"
        self._count(points.found)

    def identity(self) -> str:
        """What tells these data from others, in words."""
        return f"{self.n_found} of {self.n} sensors, sums {self._sums}"

    def _count(self, rows: np.ndarray) -> None:
        """Let the sensors `rows` (n,) count, and no others."""
        self.rows = rows
        self.n_found = int(rows.sum())
        self.n_values = self.n_found * (self.values.shape[1] if self.values.ndim == 2 else 1)
        counts = torch.from_numpy(rows[self.points.index].astype(np.float64))
        self.weights = counts / (self.noise_std.square() * max(1, self.n_found))

    def only(self, rows: np.ndarray) -> Data:
        """The same sensors of which only `rows`, (n,) of bool, replicated, count: the others are held out.

        Raises ValueError where none of them lies in the mesh.
        """
        with agreed(self.points.comm):
            rows = np.asarray(rows)
            if rows.dtype != bool or rows.shape != (self.n,):
                raise ValueError(f"rows must be a bool for each of the {self.n} sensors, not {rows.dtype} {rows.shape}")
            if not (rows & self.rows).any():
                raise ValueError(f"none of the {int(rows.sum())} sensors that are to count lies in the mesh")
        part = copy.copy(self)
        part._count(rows & self.rows)
        return part

    def table(self) -> SensorTable:
        """The sensors that count, replicated: for another mesh or another communicator.  Collective."""
        x, y, sigma = (self.points.gather(a)[self.rows] for a in (self.points.x, self.values, self.noise_std))
        return SensorTable(x, y, sigma if self.known_noise else None, type(self.points))

    def local_misfit(self, at_points: Tensor) -> Tensor:
        """This rank's summand of L = mean_i |u(x_i) − y_i|² / σ_i²."""
        if at_points.shape != self.values.shape:
            raise ValueError(
                f"a model has values of shape {tuple(at_points.shape)} at sensors with data of shape "
                f"{tuple(self.values.shape)}"
            )
        square = (at_points - self.values).square()
        return self.weights @ (square if square.ndim == 1 else square.sum(1))

    def residuals(self, at_points: Tensor) -> np.ndarray:
        """(u(x_i) − y_i) / σ_i at all sensors that count, (n_found,) or (n_found, k); replicated.  Collective."""
        scaled = (at_points - self.values).detach().numpy().T / self.noise_std.numpy()
        return self.points.gather(scaled.T)[self.rows]


@dataclass(frozen=True)
class SensorTable:
    """Sensors as replicated arrays: x (n, d) or (n, d + 1) with time, values (n,) or (n, k), noise_std (n,) or None."""

    x: np.ndarray
    values: np.ndarray
    noise_std: np.ndarray | None
    kind: type[Points] | type[SpaceTimePoints] = Points

    def on(self, mesh: dmesh.Mesh) -> Data:
        """The same sensors on another mesh; those outside it are left out.  Collective."""
        return Data(self.kind.of_rows(mesh, self.x, missing="mark"), self.values, self.noise_std)


@dataclass(frozen=True)
class Sensing:
    """Who sees what: the sensors of each player, which may differ, with their own noise; None where it sees none.

    Raises:
        ValueError: neither player sees any data.
    """

    physical: Data | None
    synthetic: Data | None

    def __post_init__(self) -> None:
        if self.physical is None and self.synthetic is None:
            raise ValueError("neither player has data")
        for player, data in (("physical", self.physical), ("synthetic", self.synthetic)):
            if not (data is None or isinstance(data, Data)):
                raise TypeError(f"the data of the {player} player must be hyco_fem.Data or None, not {type(data)}")

    def identity(self) -> str:
        """What tells these data from others, in words."""
        words = [f"{name}: {data.identity()}" for name, data in vars(self).items() if data is not None]
        return "; ".join(words)
