"""Maps from an unconstrained quantity to an admissible one, with their inverses."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


class Transform(torch.nn.Module):
    """A smooth monotone map of the real line onto an admissible set; units pass through unchanged."""

    def forward(self, raw: Tensor) -> Tensor:
        """The admissible value."""
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor:
        """The raw number that `forward` maps to `value`.  Raises ValueError where there is none."""
        raise NotImplementedError


class Identity(Transform):
    """No constraint."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, value: Tensor) -> Tensor:
        return value


class Positive(Transform):
    """lower + scale · softplus(raw / scale) > lower.

    Args:
        lower: Infimum, in the unit of the coefficient.
        scale: Width of the transition from flat to identity, in the same unit; choose the size of the
            coefficient's expected values where they are far from 1.
    """

    def __init__(self, lower: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        if not (0 < scale < math.inf and math.isfinite(lower)):
            raise ValueError(f"scale must be positive, and both numbers finite, not lower={lower}, scale={scale}")
        self.lower, self.scale = lower, scale

    def forward(self, raw: Tensor) -> Tensor:
        return self.lower + self.scale * functional.softplus(raw / self.scale, threshold=700.0)

    def inverse(self, value: Tensor) -> Tensor:
        y = (value - self.lower) / self.scale
        if not bool((y > 0).all()):
            raise ValueError(f"initial values must be above {self.lower}, not {float(value.min())}")
        return self.scale * (y + torch.log(-torch.expm1(-y)))


class Bounded(Transform):
    """lower + (upper − lower) · sigmoid(4 raw / (upper − lower)), slope 1 in the middle; bounds in the unit of m."""

    def __init__(self, lower: float, upper: float) -> None:
        super().__init__()
        if not -math.inf < lower < upper < math.inf:
            raise ValueError(f"bounds must be finite and ordered, not ({lower}, {upper})")
        self.lower, self.upper = lower, upper

    def forward(self, raw: Tensor) -> Tensor:
        width = self.upper - self.lower
        # Rounding must not lead beyond a bound, by however little.
        return (self.lower + width * torch.sigmoid(4.0 * raw / width)).clamp(self.lower, self.upper)

    def inverse(self, value: Tensor) -> Tensor:
        if not bool(((value > self.lower) & (value < self.upper)).all()):
            raise ValueError(f"initial values must lie strictly between {self.lower} and {self.upper}")
        width = self.upper - self.lower
        return width / 4.0 * torch.logit((value - self.lower) / width)


class Square(Transform):
    """raw² ≥ 0; the raw number has the square root of the unit of m.  Flat at zero: never start there."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.square()

    def inverse(self, value: Tensor) -> Tensor:
        if not bool((value > 0).all()):
            raise ValueError(f"initial values must be positive, not {float(value.min())}")
        return value.sqrt()
