"""The steps of an interval fill it, equal ones to the last bit; times are found among their ends or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hyco_fem as hf

GRID = hf.TimeGrid.of((0.0, 1.0), 0.1)


@pytest.mark.parametrize(("interval", "dt", "n"), [((0, 1), 0.1, 10), ((-1, 2), 1 / 7, 21), ((5.0, 5.3), 0.1, 3)])
def test_equal_steps_fill_the_interval_and_are_equal_to_the_last_bit(interval: Any, dt: float, n: int) -> None:
    grid = hf.TimeGrid.of(interval, dt)
    assert (grid.n, len(grid.times), len(grid.steps)) == (n, n + 1, n)
    assert (grid.start, grid.end) == interval
    assert np.unique(grid.steps).size == 1
    np.testing.assert_allclose(np.diff(grid.times), grid.steps, rtol=1e-12, atol=1e-14)


def test_given_steps_are_kept() -> None:
    steps = [0.1, 0.2, 0.3, 0.4]
    grid = hf.TimeGrid.of((1.0, 2.0), steps)
    np.testing.assert_array_equal(grid.steps, steps)
    np.testing.assert_allclose(grid.times, [1.0, 1.1, 1.3, 1.6, 2.0])
    assert grid.end == 2.0
    assert hf.TimeGrid.of((0.0, 0.5), [0.5]).n == 1


@pytest.mark.parametrize(
    ("interval", "dt", "message"),
    [
        ((0.0, 1.0), 0.3, "steps of 0.3 do not divide the interval from 0 to 1: 3.33333 of them; take dt=0.333333"),
        ((0.0, 1.0), 2.0, "do not divide"),
        ((0.0, 1.0), -0.1, "steps must be positive; dt has -0.1 at position 0"),
        ((0.0, 1.0), 0.0, "positive"),
        ((0.0, 1.0), np.nan, "positive"),
        ((0.0, 1.0), [0.5, 0.0, 0.5], "dt has 0 at position 1"),
        ((0.0, 1.0), [0.5, 0.4], "the 2 steps end at t = 0.9, and the interval at 1"),
        ((0.0, 1.0), [], "dt must be"),
        ((0.0, 1.0), [[0.5, 0.5]], "shape"),
        ((1.0, 1.0), 0.1, "end after it starts"),
        ((0.0, np.inf), 0.1, "finite"),
    ],
)
def test_steps_that_do_not_fill_the_interval_are_refused(interval: Any, dt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.TimeGrid.of(interval, dt)


@pytest.mark.parametrize("interval", [1.0, (0.0,), (0, 1, 2), ("a", "b"), None])
def test_an_interval_is_a_pair_of_numbers(interval: Any) -> None:
    with pytest.raises(TypeError, match=r"pair of numbers \(start, end\)"):
        hf.TimeGrid.of(interval, 0.1)


def test_times_are_found_among_the_ends_of_steps() -> None:
    np.testing.assert_array_equal(GRID.indices([0.0, 0.1, 0.3, 1.0]), [0, 1, 3, 10])
    # Rounding of the times is not an error: 0.1 + 0.2 is 0.3.
    np.testing.assert_array_equal(GRID.indices([0.1 + 0.2, 7 * 0.1, 1.0 - 1e-12]), [3, 7, 10])
    np.testing.assert_array_equal(GRID.indices(0.5), [5])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5, 1.2], r"the output time 1.2 \(number 1\) is after the end of the interval from 0 to 1"),
        ([-0.1], r"the output time -0.1 \(number 0\) is before the start"),
        ([0.25], "the output time 0.25 is not at the end of a step: the steps nearest to it end at 0.2 and 0.3"),
        ([0.5, 0.4], "ascend"),
        ([0.5, 0.5], "ascend"),
        ([], "at least one"),
        ([np.nan], "nan"),
    ],
)
def test_other_times_are_refused_by_name(times: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRID.indices(times)


def test_parts_of_the_interval_are_numbered_step_by_step() -> None:
    np.testing.assert_array_equal(GRID.intervals([]), np.zeros(10))
    np.testing.assert_array_equal(GRID.intervals([0.2, 0.7]), [0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    for ends in ([0.0, 0.5], [1.0]):
        with pytest.raises(ValueError, match="inside the interval"):
            GRID.intervals(ends)
    with pytest.raises(ValueError, match="not at the end of a step"):
        GRID.intervals([0.55])


@pytest.mark.parametrize(("scheme", "limit"), [(hf.BDF2(), 2.414), (hf.BDF3(), 1.534)])
def test_steps_that_grow_again_and_again_are_refused_by_name(scheme: hf.BDF, limit: float) -> None:
    steps = np.array([1.0, limit + 0.1, (limit + 0.1) ** 2, 1.0])
    bad = hf.TimeGrid.of((0.0, float(steps.sum())), steps)
    with pytest.raises(ValueError, match=f"steps 1 to 3 of dt grow.*{scheme.name} is unstable"):
        scheme.check(bad, False)
    once = hf.TimeGrid.of((0.0, 12.0), [1.0, 1.0, 5.0, 5.0])
    scheme.check(once, False)
    hf.BDF(1).check(bad, False)
    hf.CrankNicolson().check(bad, False)


def test_schemes_outside_their_range_are_refused() -> None:
    for theta in (0.4, 1.1):
        with pytest.raises(ValueError, match="theta must be between"):
            hf.ThetaScheme(theta)
    with pytest.raises(ValueError, match="number of steps"):
        hf.CrankNicolson(damped=-1)
    with pytest.raises(ValueError, match="order of BDF"):
        hf.BDF(4)
