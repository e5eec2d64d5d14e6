"""Sensor data: where, what was measured, and how noisy it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyco_fem.bridge.points import Points
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

    Raises:
        ValueError: wrong shape, a value that is not finite, a noise that is not positive; on all ranks, with the row.

    Collective.
    """

    def __init__(self, points: Points, values: Any, noise_std: Any = None) -> None:
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
        self.points = points
        self.n = points.n
        # Sensors that `Points` left out as outside the mesh take no part in the mean.
        self.values = torch.from_numpy(y[points.index])
        self.noise_std = torch.from_numpy(sigma[points.index].copy())
        self.n_found = int(points.found.sum())
        self._weights = 1.0 / (self.noise_std.square() * self.n_found)

    def local_misfit(self, at_points: Tensor) -> Tensor:
        """This rank's summand of L = mean_i |u(x_i) − y_i|² / σ_i²."""
        if at_points.shape != self.values.shape:
            raise ValueError(
                f"a model has values of shape {tuple(at_points.shape)} at sensors with data of shape "
                f"{tuple(self.values.shape)}"
            )
        square = (at_points - self.values).square()
        return self._weights @ (square if square.ndim == 1 else square.sum(1))

    def residuals(self, at_points: Tensor) -> np.ndarray:
        """(u(x_i) − y_i) / σ_i at all sensors in the mesh, (n_found,) or (n_found, k); replicated.  Collective."""
        scaled = (at_points - self.values).detach().numpy().T / self.noise_std.numpy()
        return self.points.gather(scaled.T)[self.points.found]
