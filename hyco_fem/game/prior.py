"""What is known of θ before the data: a Gaussian for each entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.game.player import of_shape
from hyco_fem.parallel import is_distributed


@dataclass(frozen=True)
class Prior:
    """θ ~ N(mean, std²), entry by entry: J_phy gets Σ ((θ − mean)/std)² / n, n the number of the player's sensors.

    With a₁ = 1 and known noise the minimum is then the maximum a posteriori estimate.

    Args:
        std: One number, or by name of a parameter ("kappa.amplitudes") numbers or arrays of its shape; a parameter that
            is not named has no prior.  In the unit of the parameter.
        mean: By name likewise; what is not named has the value that it holds when the game is made.
    """

    std: float | Mapping[str, Any]
    mean: Mapping[str, Any] | None = None

    def on(self, named: Mapping[str, nn.Parameter]) -> BoundPrior:
        """For parameters by name.

        Raises:
            ValueError: an unknown name, a std that is not positive, a parameter that is a field.
        """
        named = {n.removeprefix("coefficients."): p for n, p in named.items()}
        stds = dict.fromkeys(named, self.std) if not isinstance(self.std, Mapping) else _short(self.std)
        means = _short(self.mean or {})
        unknown = sorted((set(stds) | set(means)) - set(named))
        if unknown:
            raise ValueError(f"a prior names {unknown}; the parameters are {sorted(named)}")
        mean: list[np.ndarray] = [np.empty(0)]
        precision: list[np.ndarray] = [np.empty(0)]
        for name, p in named.items():
            if name in stds and is_distributed(p):
                raise ValueError(
                    f"a Prior is for parameters by number, and '{name}' is a field; see hyco_fem.fit_field"
                )
            shape = tuple(p.shape)
            s = of_shape(stds.get(name, np.inf), shape, f"the std of '{name}'")
            if not np.all(s > 0):
                raise ValueError(f"the prior of '{name}' must have a positive std, not {stds[name]}")
            m = of_shape(means.get(name, p.detach().numpy()), shape, f"the mean of '{name}'")
            if not np.all(np.isfinite(m)):
                raise ValueError(f"the mean of '{name}' must be finite, not {m}")
            mean.append(m.copy())
            precision.append(np.asarray(1.0 / s, dtype=np.float64))
        return BoundPrior(np.concatenate(mean), np.concatenate(precision))


def _short(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("coefficients."): value for name, value in given.items()}


@dataclass(frozen=True)
class BoundPrior:
    """mean and 1/std of all entries of θ, (p,); replicated."""

    mean: np.ndarray
    precision: np.ndarray

    def rows(self, theta: np.ndarray) -> np.ndarray:
        """(θ − mean)/std."""
        return (theta - self.mean) * self.precision

    def square(self, parameters: list[Tensor]) -> Tensor:
        """|(θ − mean)/std|², differentiable."""
        if not parameters:
            return torch.zeros((), dtype=torch.float64)
        theta = torch.cat([p.reshape(-1) for p in parameters])
        return ((theta - torch.from_numpy(self.mean)) * torch.from_numpy(self.precision)).square().sum()
