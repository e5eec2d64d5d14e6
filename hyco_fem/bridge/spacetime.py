"""Points in space and time: moving sensors, snapshots, ghost points; and the operator that observes a field there.

Between the ends of a step a field is interpolated linearly: the error, dt²/8 max |∂²u/∂t²|, is of second order, as that
of most schemes is.  In `x` time is the last column, which is how networks of (x, t) see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem.bridge.dofs import DofLayout
from hyco_fem.bridge.points import Observation, OutsideError, Points
from hyco_fem.parallel import agreed
from hyco_fem.pde.timegrid import TimeGrid

_STEADY = "points in space and time observe a TransientModel; use hyco_fem.Points for a steady one"


@dataclass(frozen=True, eq=False)
class SpaceTime:
    """Where a transient field lives: the (sub-)space V of its values at one time, and the steps."""

    V: fem.FunctionSpace
    grid: TimeGrid

    @property
    def mesh(self) -> dmesh.Mesh:
        """Of V."""
        return self.V.mesh

    def component(self) -> Any:
        """Of V, if it is a sub-space."""
        return self.V.component()


class SpaceTimePoints:
    """Points (x, t), distributed as `Points` are: by where they are in space.

    Args:
        mesh: The mesh.
        x: The same places (n, d) on every rank.
        t: Their times, (n,), or one for all.
        missing: As for `Points`.

    Attributes:
        x: Of the points owned here, (n_owned, d + 1), time last.  t: their times, (n_owned,).
        index, weights, n, n_found: as in `Points`.  space: the places, as `Points`.

    Raises:
        OutsideError, ValueError: as `Points`; also for times that are not finite or not n.

    Collective.
    """

    def __init__(self, mesh: dmesh.Mesh, x: Any, t: Any, *, missing: Literal["raise", "mark"] = "raise") -> None:
        with agreed(mesh.comm):
            n = len(x) if np.ndim(x) else 1
            times = np.asarray(t.detach() if isinstance(t, Tensor) else t, dtype=np.float64)
            if times.shape not in ((), (n,)):
                raise ValueError(f"{n} points need one time, or times of shape ({n},), not {times.shape}")
            times = np.broadcast_to(times, (n,))
            bad = np.flatnonzero(~np.isfinite(times))
            if len(bad):
                raise ValueError(f"the time of point {bad[0]} is {times[bad[0]]}, which is not finite")
        if mesh.comm.size > 1:
            reference = mesh.comm.bcast(times, root=0)
            with agreed(mesh.comm):
                if not np.array_equal(times, reference):
                    raise ValueError("the times of the points differ between ranks; pass the same on every rank")
        self._set(Points(mesh, x, missing=missing), times)

    @classmethod
    def of(cls, space: Points, times: np.ndarray) -> SpaceTimePoints:
        """From points in space and the times of all n of them, replicated."""
        self = cls.__new__(cls)
        self._set(space, times)
        return self

    @classmethod
    def of_rows(
        cls, mesh: dmesh.Mesh, inputs: np.ndarray, *, missing: Literal["raise", "mark"] = "raise"
    ) -> SpaceTimePoints:
        """From rows (x, t), (n, d + 1), replicated."""
        return cls(mesh, inputs[:, :-1], inputs[:, -1], missing=missing)

    @classmethod
    def snapshots(cls, mesh: dmesh.Mesh, x: Any, times: Any) -> SpaceTimePoints:
        """Sensors that stay at x (n, d), and all measure at each of k times; row i·k + j: sensor i, time j."""
        x, times = np.asarray(x, dtype=np.float64), np.atleast_1d(np.asarray(times, dtype=np.float64))
        return cls(mesh, np.repeat(x, len(times), axis=0), np.tile(times, len(x)))

    @classmethod
    def moving(
        cls, mesh: dmesh.Mesh, paths: Any, times: Any, *, missing: Literal["raise", "mark"] = "raise"
    ) -> SpaceTimePoints:
        """Sensors that move: paths (n, k, d), where each is at each of k times; row i·k + j: sensor i, time j.

        Raises:
            OutsideError: a sensor leaves the mesh; it is named with the time and the place.
        """
        with agreed(mesh.comm):
            paths, times = np.asarray(paths, dtype=np.float64), np.atleast_1d(np.asarray(times, dtype=np.float64))
            if paths.ndim != 3 or paths.shape[1] != len(times) or times.ndim != 1:
                raise ValueError(
                    f"paths must have shape (sensors, times, d), here (n, {len(times)}, {mesh.geometry.dim}), not "
                    f"{paths.shape}"
                )
            if np.any(np.diff(times) <= 0):
                raise ValueError("the times of moving sensors must ascend")
        n, k, d = paths.shape
        try:
            return cls(mesh, paths.reshape(n * k, d), np.tile(times, n), missing=missing)
        except OutsideError as error:
            sensors, first = np.unique(np.array(error.indices) // k, return_index=True)
            when = [error.indices[i] % k for i in first]
            listed = "; ".join(
                f"sensor {s} at t = {times[j]:g}, when it is at ({', '.join(f'{float(c):g}' for c in paths[s, j])})"
                for s, j in list(zip(sensors, when, strict=True))[:5]
            )
            more = ", …" if len(sensors) > 5 else ""
            raise OutsideError(
                f"{len(sensors)} of {n} sensors leave the mesh on their way: {listed}{more}; shorten their paths, "
                "leave them out, or pass missing='mark' to leave out what they would have measured outside",
                error.indices,
            ) from None

    @classmethod
    def union(cls, parts: Sequence[SpaceTimePoints], shares: Sequence[float]) -> SpaceTimePoints:
        """As `Points.union`."""
        return cls.of(Points.union([p.space for p in parts], shares), np.concatenate([p._times for p in parts]))

    def _set(self, space: Points, times: np.ndarray) -> None:
        self.space, self._times = space, np.array(times)
        self.mesh, self.comm = space.mesh, space.comm
        self.index, self.n, self.n_found = space.index, space.n, space.n_found
        self.t = torch.from_numpy(self._times[space.index])
        self.x = torch.cat([space.x, self.t[:, None]], dim=1)
        self._observations: list[tuple[SpaceTime, SpaceTimeObservation]] = []

    @property
    def weights(self) -> Tensor:
        """In a mean over all points, (n_owned,)."""
        return self.space.weights

    @weights.setter
    def weights(self, values: Tensor) -> None:
        self.space.weights = values

    def __len__(self) -> int:
        """Number of points owned here."""
        return len(self.t)

    @property
    def found(self) -> np.ndarray:
        """Which of the n points lie in the mesh, (n,); replicated."""
        return self.space.found

    def gather(self, values: Tensor | np.ndarray) -> np.ndarray:
        """As `Points.gather`.  Collective."""
        return self.space.gather(values)

    def observation(self, where: SpaceTime) -> SpaceTimeObservation:
        """The operator from a field in time to its values here; made once for each model.  Collective.

        Raises:
            ValueError: a time outside the interval, named; the field is steady, or on another mesh.
        """
        for known, found in self._observations:
            if known is where:
                return found
        with agreed(self.comm):
            if not isinstance(where, SpaceTime):
                raise TypeError(_STEADY)
            where.grid.check_inside(self._times, "the time of a point,")
        made = SpaceTimeObservation(self.space.observation(where.V), self.t.numpy(), where.grid)
        self._observations.append((where, made))
        return made

    def evaluate(self, u: Tensor, V: Any) -> Tensor:
        """Raises TypeError: a field at one time has no values at other times."""
        raise TypeError(_STEADY)


class SpaceTimeObservation:
    """The values of a field at points, each between two steps.

    Args:
        B: The operator at the places.  t: times, (n_owned,).  grid: the steps.
    """

    def __init__(self, B: Observation, t: np.ndarray, grid: TimeGrid) -> None:
        self.B, self.n = B, len(t)
        self.layout: DofLayout = B.layout
        self.components = B.components
        left = np.clip(np.searchsorted(grid.times, t, side="right") - 1, 0, grid.n - 1)
        share = np.clip((t - grid.times[left]) / grid.steps[left], 0.0, 1.0)
        share[np.abs(share) < 1e-9] = 0.0
        share[np.abs(share - 1.0) < 1e-9] = 1.0
        rows = np.concatenate([np.arange(self.n)] * 2)
        ends = np.concatenate([left, left + 1])
        weights = np.concatenate([1.0 - share, share])
        kept = weights > 0.0
        rows, ends, weights = rows[kept], ends[kept], weights[kept]
        order = np.argsort(ends, kind="stable")
        self._rows = rows[order]
        self._starts = np.searchsorted(ends[order], np.arange(grid.n + 2))
        self._values = B.values[self._rows] * weights[order][:, None]
        self._dofs = B.dofs[self._rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values at the points owned here."""
        return (self.n,) if self.components == 1 else (self.n, self.components)

    def watch(self) -> Reading:
        """To look on in a forward or tangent sweep."""
        return Reading(self)

    def source(self, gradient: np.ndarray) -> PointSource:
        """To tell the gradient in a backward sweep."""
        return PointSource(self, gradient)

    def at(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At the end of step n: rows, and for each of them weights and dofs of its cell."""
        part = slice(self._starts[n], self._starts[n + 1])
        return self._rows[part], self._values[part], self._dofs[part]


class Reading:
    """Values at points, filled as a sweep goes by; `values` (n, …), or (n, …, p) of p tangents."""

    def __init__(self, operator: SpaceTimeObservation) -> None:
        self._operator = operator
        self.values = np.zeros(operator.shape)

    def see(self, n: int, u: np.ndarray) -> None:
        """Take the share of the values at the end of step n."""
        if u.ndim == 2 and self.values.ndim == len(self._operator.shape):
            self.values = np.zeros((*self._operator.shape, u.shape[1]))
        rows, values, dofs = self._operator.at(n)
        if len(rows):
            self.values[rows] += np.einsum("pk,pk...->p...", values, u[dofs])


class PointSource:
    """A gradient by the values at points, told step by step."""

    def __init__(self, operator: SpaceTimeObservation, gradient: np.ndarray) -> None:
        self._operator, self._gradient = operator, gradient

    def add_gradient(self, n: int, out: np.ndarray) -> None:
        """Add Bᵀ of the gradient at the end of step n."""
        rows, values, dofs = self._operator.at(n)
        if len(rows):
            w = self._gradient[rows]
            weighted = values * w[:, None] if w.ndim == 1 else values[:, :, None] * w[:, None, :]
            out += np.bincount(dofs.ravel(), weighted.ravel(), minlength=len(out))


class Snapshots:
    """The whole field at the ends of some steps: the operator of `TransientModel.solve`, owned values (k, n_owned)."""

    def __init__(self, steps: np.ndarray, n_owned: int) -> None:
        self.row = {int(n): i for i, n in enumerate(steps)}
        self.shape = (len(steps), n_owned)

    def watch(self) -> _Rows:
        """As for `SpaceTimeObservation`."""
        return _Rows(self, np.zeros(self.shape))

    def source(self, gradient: np.ndarray) -> _Rows:
        """As for `SpaceTimeObservation`."""
        return _Rows(self, gradient)


class _Rows:
    def __init__(self, operator: Snapshots, values: np.ndarray) -> None:
        self._operator, self.values = operator, values

    def see(self, n: int, u: np.ndarray) -> None:
        row = self._operator.row.get(n)
        if row is not None:
            self.values[row] = (u if u.ndim == 1 else u[:, 0])[: self._operator.shape[1]]

    def add_gradient(self, n: int, out: np.ndarray) -> None:
        row = self._operator.row.get(n)
        if row is not None:
            out[: self._operator.shape[1]] += self.values[row]


class SpaceTimeSampler:
    """Ghost points in space and time: those of a sampler in space, with times uniform in the interval.

    The times of round r come from a stream seeded by (seed, r, 2), which no sampler in space uses; they go with the
    rows of the points, and so do not know the partition.
    """

    def __init__(self, space: Any, where: SpaceTime, seed: int, fixed: bool) -> None:
        self.space, self.where, self.seed, self.fixed = space, where, seed, fixed
        self._fixed: SpaceTimePoints | None = None

    def draw(self, round: int = 0) -> SpaceTimePoints:
        """The ghost points of a round.  Collective."""
        if self._fixed is not None:
            return self._fixed
        points = self.space.draw(round)
        rng = np.random.default_rng((self.seed, 0 if self.fixed else round, 2))
        grid = self.where.grid
        drawn = SpaceTimePoints.of(points, rng.uniform(grid.start, grid.end, points.n))
        if self.fixed:
            self._fixed = drawn
        return drawn


def over_time(points: Points, where: SpaceTime) -> SpaceTimePoints:
    """Points with weights at the ends of all steps, weighted by the trapezoidal rule.  Collective."""
    grid = where.grid
    k = grid.n + 1
    trapezoid = np.zeros(k)
    trapezoid[:-1] += grid.steps / 2.0
    trapezoid[1:] += grid.steps / 2.0
    trapezoid /= grid.end - grid.start
    m = len(points)
    lifted = Points.in_cells(
        points.mesh,
        np.repeat(points._cells, k),
        np.repeat(points._X, k, axis=0),
        (points.index[:, None] * k + np.arange(k)).ravel(),
        points.n * k,
        (points.weights.numpy()[:, None] * trapezoid).ravel() if m else np.empty(0),
    )
    return SpaceTimePoints.of(lifted, np.tile(grid.times, points.n))
