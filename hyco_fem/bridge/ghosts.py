"""Ghost points: where the two models are compared.  Each sampler gives the same points on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.dofs import dof_coordinates, layout, owned_size
from hyco_fem.bridge.points import Points
from hyco_fem.bridge.spacetime import SpaceTime, SpaceTimePoints, SpaceTimeSampler, over_time
from hyco_fem.parallel import agreed, sum_array

# Candidates for each point in a cell whose map is not affine; the chance that all are refused is below 1e-9 for
# a Jacobian that varies five-fold within a cell.
_CANDIDATES = 96


def check_whole(what: str, value: int, least: int) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, not {value!r}")


class GhostPoints(Protocol):
    """What the game needs of ghost points; `Points` is one."""

    x: Tensor
    weights: Tensor
    index: np.ndarray
    n: int
    n_found: int

    @property
    def found(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def observation(self, V: Any) -> Any: ...

    def gather(self, values: Tensor | np.ndarray) -> np.ndarray: ...


class Ghosts(Protocol):
    """A sampler of ghost points."""

    def on(self, V: Any) -> Sampler: ...


class Sampler(Protocol):
    """A sampler bound to the space of the physical model."""

    def draw(self, round: int) -> GhostPoints: ...


@dataclass(frozen=True)
class RandomGhosts:
    """`n` points uniform in Ω, drawn afresh every round (or once, with `fixed`); n may be a function of the round.

    Round r draws from a stream seeded by (seed, r), so that any round can be drawn again on its own.
    """

    n: int | Callable[[int], int]
    seed: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        if not callable(self.n):
            check_whole("the number of ghost points", self.n, 1)
        check_whole("the seed of the ghost points", self.seed, 0)

    def on(self, V: fem.FunctionSpace | SpaceTime) -> Sampler:
        """Bind to the mesh of V, or to Ω × (start, end) of a model in time.  Collective."""
        found = RandomSampler(V.mesh, self)
        return SpaceTimeSampler(found, V, self.seed, self.fixed) if isinstance(V, SpaceTime) else found


class RandomSampler:
    """Draws points uniform in a mesh without searching it: a cell by its volume, then a point in the cell.

    The cells are numbered as in the mesh file.  Rank r keeps the cumulative volumes of the r-th slice of that
    numbering; a draw finds its cell in the slice that covers it, one small reduction tells all ranks the cells, and
    their owners place the points.  No rank ever holds all cells, and nothing depends on the partition.
    """

    def __init__(self, mesh: dmesh.Mesh, spec: RandomGhosts) -> None:
        self.mesh, self.spec, self.comm = mesh, spec, mesh.comm
        self._geo = cell_geometry(mesh)
        self._numbers = np.sort(self._geo.original)
        self._local = np.argsort(self._geo.original, kind="stable")
        self._cumulative, self._first, self._starts = _sliced_volumes(self.comm, self._geo)
        self._fixed: Points | None = None

    def draw(self, round: int = 0) -> Points:
        """The ghost points of a round.  Collective."""
        if self._fixed is not None:
            return self._fixed
        geo = self._geo
        n = self.spec.n
        if callable(n):
            with agreed(self.comm):
                n = n(0 if self.spec.fixed else round)
                check_whole("the number of ghost points", n, 1)
        rng = np.random.default_rng((self.spec.seed, 0 if self.spec.fixed else round))
        targets = rng.random(n) * self._starts[-1]
        columns = geo.tdim if geo.affine else _CANDIDATES * (geo.tdim + 1)
        uniforms = rng.random((n, columns))
        chosen = sum_array(self.comm, self._choose(targets))
        slot = np.minimum(np.searchsorted(self._numbers, chosen), max(len(self._numbers) - 1, 0))
        index = np.flatnonzero(self._numbers[slot] == chosen) if len(self._numbers) else np.empty(0, dtype=np.int64)
        cells = self._local[slot[index]]
        X = self._in_cells(cells, uniforms[index])
        points = Points.in_cells(self.mesh, cells, X, index, n, 1.0 / n)
        if self.spec.fixed:
            self._fixed = points
        return points

    def _choose(self, targets: np.ndarray) -> np.ndarray:
        """File numbers of the cells that this rank's slice answers for; zero elsewhere."""
        if self.comm.size == 1:
            return np.minimum(np.searchsorted(self._cumulative, targets, side="right"), len(self._cumulative) - 1)
        chosen = np.zeros(len(targets), dtype=np.int64)
        # Every rank compares with the same slice boundaries, so exactly one answers.
        answerer = np.clip(np.searchsorted(self._starts, targets, side="right") - 1, 0, self.comm.size - 1)
        mine = np.flatnonzero(answerer == self.comm.rank)
        if len(mine):
            inside = targets[mine] - self._starts[self.comm.rank]
            k = np.searchsorted(self._cumulative, inside, side="right")
            chosen[mine] = self._first + np.minimum(k, len(self._cumulative) - 1)
        return chosen

    def _in_cells(self, cells: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Reference points, uniform in the physical cells."""
        geo = self._geo
        if geo.affine:
            return in_reference(uniforms, geo.simplex)
        # Accept a candidate with probability |det J| / max |det J|: the first accepted one is uniform in the cell.
        n = len(cells)
        u = uniforms.reshape(n, _CANDIDATES, geo.tdim + 1)
        X = in_reference(u[:, :, :-1].reshape(-1, geo.tdim), geo.simplex)
        if n == 0:
            return X
        det = self._determinants(cells, X, _CANDIDATES)
        # On straight-sided quadrilaterals |det J| is linear, so its largest value is at a vertex.
        corners = self._determinants(cells, np.tile(geo.vertices, (n, 1)), len(geo.vertices))
        bound = np.maximum(det.max(axis=1), corners.max(axis=1))
        accepted = u[:, :, -1] * bound[:, None] <= det
        return X.reshape(n, _CANDIDATES, geo.tdim)[np.arange(n), accepted.argmax(axis=1)]

    def _determinants(self, cells: np.ndarray, X: np.ndarray, each: int) -> np.ndarray:
        """|det J| at `each` reference points in every cell, (n, each)."""
        return np.abs(np.linalg.det(self._geo.jacobian(np.repeat(cells, each), X))).reshape(-1, each)


def in_reference(uniforms: np.ndarray, simplex: bool) -> np.ndarray:
    """Uniform points of the reference cell: the gaps between sorted uniforms fill a simplex evenly."""
    if not simplex:
        return uniforms
    ordered = np.sort(uniforms, axis=1)
    ordered[:, 1:] -= ordered[:, :-1].copy()
    return ordered


def _sliced_volumes(comm: MPI.Comm, geo) -> tuple[np.ndarray, int, np.ndarray]:  # type: ignore[no-untyped-def]
    """Cumulative cell volumes of this rank's slice of the file numbering, its first number, the slices' starts."""
    bounds = np.array([geo.n_global * r // comm.size for r in range(comm.size + 1)], dtype=np.int64)
    to = np.searchsorted(bounds, geo.original, side="right") - 1
    volumes = geo.volumes()
    received = comm.alltoall([(geo.original[to == r], volumes[to == r]) for r in range(comm.size)])
    first = int(bounds[comm.rank])
    mine = np.zeros(int(bounds[comm.rank + 1]) - first)
    for numbers, volume in received:
        mine[numbers - first] = volume
    cumulative = np.cumsum(mine)
    totals = comm.allgather(float(cumulative[-1]) if len(cumulative) else 0.0)
    return cumulative, first, np.concatenate([[0.0], np.cumsum(totals)])


@dataclass(frozen=True)
class QuadratureGhosts:
    """The points of a quadrature rule on every cell, with its weights: I is then ‖u_phy − u_syn‖² / |Ω| itself."""

    degree: int = 2

    def __post_init__(self) -> None:
        check_whole("the degree of a quadrature rule", self.degree, 0)

    def on(self, V: fem.FunctionSpace | SpaceTime) -> FixedSampler:
        """Bind to the mesh of V; for a model in time the points at the ends of all steps, by the trapezoidal rule."""
        points = quadrature_points(V.mesh, self.degree)
        return FixedSampler(over_time(points, V) if isinstance(V, SpaceTime) else points)


def quadrature_points(mesh: dmesh.Mesh, degree: int) -> Points:
    """The quadrature points of all cells, with weights that sum to 1 over the ranks.  Collective."""
    check_whole("the degree of a quadrature rule", degree, 0)
    geo = cell_geometry(mesh)
    X, weights = geo.quadrature(degree)
    q = len(weights) // geo.n_owned if geo.n_owned else 0
    cells = np.repeat(np.arange(geo.n_owned), q)
    rows = (geo.original[:, None] * q + np.arange(q)).ravel()
    total, n = sum_array(mesh.comm, np.array([weights.sum(), float(len(weights))]))
    return Points.in_cells(mesh, cells, X, rows, int(n), weights / total)


@dataclass(frozen=True)
class DofGhosts:
    """The dof points of the physical model: its values there are its dofs, and B is the identity."""

    def on(self, V: fem.FunctionSpace | SpaceTime) -> FixedSampler:
        """Bind to V."""
        if isinstance(V, SpaceTime):
            raise ValueError("DofGhosts are for steady models; use RandomGhosts or QuadratureGhosts for one in time")
        return FixedSampler(DofPoints(V))


class DofPoints:
    """The owned dof points of V as ghost points, with equal weights.  Distributed."""

    def __init__(self, V: fem.FunctionSpace) -> None:
        self.V, self.comm = V, V.mesh.comm
        self.x = dof_coordinates(V)
        imap = V.dofmap.index_map
        self.n = imap.size_global
        self.index = np.arange(*imap.local_range)
        self.n_found = self.n
        self.weights = torch.full((len(self.x),), 1.0 / self.n, dtype=torch.float64)
        self.layout, self.components = layout(V), V.dofmap.index_map_bs

    def __len__(self) -> int:
        """Number of points owned here."""
        return len(self.x)

    @property
    def found(self) -> np.ndarray:
        """All are in the mesh, (n,)."""
        return np.ones(self.n, dtype=bool)

    def observation(self, V: fem.FunctionSpace) -> DofPoints:
        """B, which is the identity: `apply` and `transpose` only change shapes."""
        if V is not self.V:
            raise ValueError("DofGhosts compare the models at the dofs of the physical model's own space")
        return self

    def apply(self, u: np.ndarray) -> np.ndarray:
        """B u, (n_owned,) or (n_owned, components)."""
        return u.copy() if self.components == 1 else u.reshape(-1, self.components)

    def transpose(self, w: np.ndarray) -> np.ndarray:
        """Bᵀ w, owned dofs."""
        return w.reshape(-1)

    def evaluate(self, u: Tensor, V: fem.FunctionSpace) -> Tensor:
        """The dof values themselves, (n_owned,) or (n_owned, value_size)."""
        if V is not self.V or u.shape != (owned_size(V),):
            raise ValueError("DofGhosts compare the models at the dofs of the physical model's own space")
        return u if self.components == 1 else u.reshape(-1, self.components)

    def gather(self, values: Tensor | np.ndarray) -> np.ndarray:
        """Values at all points on every rank: not for dofs, of which there are too many."""
        raise ValueError("the values at DofGhosts are a field; they are not gathered: use RandomGhosts")


@dataclass(frozen=True)
class FixedSampler:
    """The same ghost points in every round."""

    points: Points | DofPoints | SpaceTimePoints

    def draw(self, round: int = 0) -> Points | DofPoints | SpaceTimePoints:
        """The points."""
        return self.points
