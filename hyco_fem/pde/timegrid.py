"""The steps of a time interval, and which of their ends are asked for.  Replicated; nothing here is collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Fraction of the smallest step by which two times may differ and still count as one: rounding, not modelling.
ROUNDING = 1e-6

# More than this is a slip: a unit, or an exponent.
_MOST_STEPS = 10**8


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Times t_0 < t_1 < … < t_N of the steps, (N + 1,), and their lengths, (N,).

    Equal steps have equal lengths to the last bit, which differences of times have not: by that it is known that a
    matrix is the same again.
    """

    times: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, interval: Sequence[float], dt: Any) -> TimeGrid:
        """Steps of length dt, or of the lengths dt = (dt_1, …, dt_N), over an interval (start, end).

        Raises:
            ValueError, TypeError: the steps do not fill the interval.
        """
        start, end = start_and_end(interval)
        steps = numbers(dt, "dt must be a number, or a list of steps")
        if steps.ndim > 1 or steps.size == 0:
            raise ValueError(f"dt must be a number, or a list of steps, not an array of shape {steps.shape}")
        bad = np.flatnonzero(~(np.isfinite(steps.ravel()) & (steps.ravel() > 0)))
        if len(bad):
            raise ValueError(f"steps must be positive; dt has {steps.ravel()[bad[0]]:g} at position {bad[0]}")
        length = end - start
        if steps.ndim == 0:
            n = max(1, round(length / float(steps)))
            if n > _MOST_STEPS:
                raise ValueError(f"steps of {float(steps):g} are {n:.3g} from {start:g} to {end:g}: too many; raise dt")
            if abs(n * float(steps) - length) > ROUNDING * float(steps):
                raise ValueError(
                    f"steps of {float(steps):g} do not divide the interval from {start:g} to {end:g}: "
                    f"{length / float(steps):g} of them; take dt={length / n:g}, or give the steps one by one"
                )
            return cls(start + length * np.arange(n + 1) / n, np.full(n, length / n))
        if abs(steps.sum() - length) > ROUNDING * steps.min():
            raise ValueError(
                f"the {len(steps)} steps end at t = {start + steps.sum():g}, and the interval at {end:g}; the steps "
                "must fill it"
            )
        times = start + np.concatenate([[0.0], np.cumsum(steps)])
        times[-1] = end
        return cls(times, steps)

    @property
    def n(self) -> int:
        """Number of steps, N."""
        return len(self.times) - 1

    @property
    def start(self) -> float:
        """t_0."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """t_N."""
        return float(self.times[-1])

    def indices(self, wanted: Sequence[float] | np.ndarray, what: str = "output time") -> np.ndarray:
        """Numbers of the given times, `what` they are for people, among those of the steps.

        Raises:
            ValueError: a time that is outside the interval, or not at the end of a step; the times do not ascend.
        """
        wanted = np.atleast_1d(numbers(wanted, f"{what}s must be a list of numbers"))
        if wanted.ndim != 1 or len(wanted) == 0:
            raise ValueError(f"{what}s must be a list of at least one number")
        self.check_inside(wanted, f"the {what}")
        slack = ROUNDING * self.steps.min()
        index = np.searchsorted(self.times, wanted - slack)
        index = np.minimum(index, self.n)
        off = np.flatnonzero(np.abs(self.times[index] - wanted) > slack)
        if len(off):
            t, k = float(wanted[off[0]]), int(index[off[0]])
            raise ValueError(
                f"the {what} {t:g} is not at the end of a step: the steps nearest to it end at "
                f"{self.times[max(0, k - 1)]:g} and {self.times[k]:g}; choose a dt that divides it"
                + (
                    ", or observe the field there with SpaceTimePoints, which interpolate"
                    if what == "output time"
                    else ""
                )
            )
        if np.any(np.diff(index) <= 0):
            raise ValueError(f"{what}s must ascend, each one once")
        return index

    def check_inside(self, times: np.ndarray, what: str) -> None:
        """Raise ValueError where a time lies outside the interval."""
        slack = ROUNDING * self.steps.min()
        bad = np.flatnonzero(~((times >= self.start - slack) & (times <= self.end + slack)))
        if len(bad):
            t = float(times[bad[0]])
            if not np.isfinite(t):
                raise ValueError(f"{what} is {t} (number {bad[0]}), which is not finite")
            side = "before the start" if t < self.start else "after the end"
            raise ValueError(
                f"{what} {t:g} (number {bad[0]}) is {side} of the interval from {self.start:g} to {self.end:g}"
            )

    def intervals(self, ends: Sequence[float] | np.ndarray) -> np.ndarray:
        """For each step the number of the part of the interval that it is in, where parts change at `ends`.

        Raises:
            ValueError: a change that is not at the end of a step inside the interval.
        """
        ends = np.asarray(ends, dtype=np.float64)
        if len(ends) == 0:
            return np.zeros(self.n, dtype=np.int64)
        index = self.indices(ends, "change")
        if index[0] == 0 or index[-1] == self.n:
            raise ValueError("a coefficient changes inside the interval, not at its ends: leave those out")
        return np.searchsorted(index, np.arange(self.n), side="right")


def numbers(values: Any, rule: str) -> np.ndarray:
    """As float64.

    Raises:
        TypeError: they are not numbers; it tells the rule.
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind in "iuf":
            return found.astype(np.float64)
    except ValueError:  # rows of different lengths
        pass
    if isinstance(values, (list, tuple)) and not values:
        return np.empty(0)
    raise TypeError(f"{rule}, not {values!r}")


def start_and_end(interval: Sequence[float]) -> tuple[float, float]:
    """An interval, checked.

    Raises:
        TypeError: it is not a pair of numbers.  ValueError: it is empty, or not finite.
    """
    try:
        start, end = (float(value) for value in interval)
    except (TypeError, ValueError):
        raise TypeError(f"the interval must be a pair of numbers (start, end), not {interval!r}") from None
    if not (np.isfinite(start) and np.isfinite(end) and start < end):
        raise ValueError(f"the interval ({start:g}, {end:g}) must be finite, and end after it starts")
    return start, end
