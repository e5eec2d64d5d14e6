"""Ghost points on the boundary, and ghost points of several kinds together.

On a Dirichlet boundary the physical model is exact, whatever else is wrong with it: there the network learns most from
it, and random points of Ω never lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import basix
import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from hyco_fem.bridge.boundary import exterior_facets, named_facets
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.ghosts import Ghosts, Sampler, check_whole, in_reference
from hyco_fem.bridge.points import Points
from hyco_fem.bridge.spacetime import SpaceTime, SpaceTimePoints, SpaceTimeSampler
from hyco_fem.parallel import agreed
from hyco_fem.pde.problem import Facets


@dataclass(frozen=True, eq=False)
class BoundaryGhosts:
    """`n` points uniform on the boundary, or on some facets of it, drawn afresh every round (or once, with `fixed`).

    facets: local facet indices, a function of x (3, n), or None for the whole boundary.
    """

    n: int
    facets: Facets = None
    seed: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        check_whole("the number of ghost points", self.n, 1)
        check_whole("the seed of the ghost points", self.seed, 0)

    def on(self, V: fem.FunctionSpace | SpaceTime) -> Sampler:
        """Bind to the mesh of V, or to ∂Ω × (start, end) of a model in time.  Collective."""
        found = BoundarySampler(V.mesh, self)
        return SpaceTimeSampler(found, V, self.seed, self.fixed) if isinstance(V, SpaceTime) else found


class BoundarySampler:
    """Draws a facet by its area, then a point of it.

    Every rank holds number and area of all boundary facets of the mesh (of which there are few), in an order that does
    not depend on the partition; the owner of a facet places its points.  On curved facets the density is only nearly
    uniform.
    """

    def __init__(self, mesh: dmesh.Mesh, spec: BoundaryGhosts) -> None:
        self.mesh, self.spec = mesh, spec
        geo = self._geo = cell_geometry(mesh)
        facets, cells, numbers = exterior_facets(mesh)
        with agreed(mesh.comm):
            some = np.isin(facets, named_facets(mesh, spec.facets))
        self._cells, self._numbers = cells[some], numbers[some]
        self._kind = getattr(basix.CellType, geo.name)
        self._each = len(basix.topology(self._kind)[geo.tdim - 1])
        self._keys = geo.original[self._cells] * self._each + self._numbers
        keys = np.concatenate(mesh.comm.allgather(self._keys))
        areas = np.concatenate(mesh.comm.allgather(self._areas()))
        order = np.argsort(keys)
        with agreed(mesh.comm):
            if len(keys) == 0:
                raise ValueError("BoundaryGhosts: none of the facets lies on the boundary")
        self._all, self._cumulative = keys[order], np.cumsum(areas[order])
        self._fixed: Points | None = None

    def draw(self, round: int = 0) -> Points:
        """The ghost points of a round.  Collective."""
        if self._fixed is not None:
            return self._fixed
        n, geo = self.spec.n, self._geo
        rng = np.random.default_rng((self.spec.seed, 0 if self.spec.fixed else round, 1))
        targets = rng.random(n) * self._cumulative[-1]
        uniforms = rng.random((n, max(0, geo.tdim - 1)))
        chosen = self._all[np.minimum(np.searchsorted(self._cumulative, targets, side="right"), len(self._all) - 1)]
        # Where each of this rank's facets was drawn.
        own = np.argsort(self._keys)
        slot = np.minimum(np.searchsorted(self._keys[own], chosen), max(len(own) - 1, 0))
        index = np.flatnonzero(self._keys[own][slot] == chosen) if len(own) else np.empty(0, dtype=np.int64)
        which = own[slot[index]]
        X = self._on_facets(self._numbers[which], uniforms[index])
        points = Points.in_cells(self.mesh, self._cells[which], X, index, n, 1.0 / n)
        if self.spec.fixed:
            self._fixed = points
        return points

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """First vertex of each facet of the reference cell, (k, tdim), and edges from there, (k, tdim, tdim − 1)."""
        corners, facets = basix.geometry(self._kind), basix.topology(self._kind)[self._geo.tdim - 1]
        first = np.array([corners[f[0]] for f in facets])
        # Vertices of quadrilaterals are in tensor order: the second and third are the neighbours of the first.
        edges = [[corners[f[k]] - corners[f[0]] for k in range(1, self._geo.tdim)] for f in facets]
        return first, np.array(edges).reshape(len(facets), self._geo.tdim - 1, self._geo.tdim).transpose(0, 2, 1)

    def _on_facets(self, numbers: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Reference points in the cells, from uniforms (n, tdim − 1)."""
        first, edges = self._edges()
        inside = in_reference(uniforms, self._geo.simplex) if self._geo.tdim > 2 else uniforms
        return first[numbers] + np.einsum("nij,nj->ni", edges[numbers], inside)

    def _areas(self) -> np.ndarray:
        """Areas of this rank's facets (up to one factor), from the map at their middles."""
        geo = self._geo
        if geo.tdim == 1 or len(self._cells) == 0:
            return np.ones(len(self._cells))
        middle = np.full((len(self._cells), geo.tdim - 1), 1.0 / geo.tdim if geo.simplex else 0.5)
        tangents = geo.jacobian(self._cells, self._on_facets(self._numbers, middle)) @ self._edges()[1][self._numbers]
        return np.sqrt(np.linalg.det(tangents.transpose(0, 2, 1) @ tangents))


@dataclass(frozen=True, eq=False)
class GhostUnion:
    """Ghost points of several kinds: I = Σ_k share_k I_k.

    parts: `RandomGhosts`, `BoundaryGhosts`, `QuadratureGhosts`.  shares: one for each, positive; by default 1.
    """

    parts: Sequence[Ghosts]
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a GhostUnion needs at least one kind of ghost points")
        if self.shares is not None and (
            len(self.shares) != len(self.parts) or not all(0 < share < np.inf for share in self.shares)
        ):
            raise ValueError(
                f"a GhostUnion of {len(self.parts)} parts needs as many positive shares, not {self.shares}"
            )

    def on(self, V: fem.FunctionSpace | SpaceTime) -> Sampler:
        """Bind each part."""
        return UnionSampler([part.on(V) for part in self.parts], self.shares or [1.0] * len(self.parts))


class UnionSampler:
    """Draws from each part."""

    def __init__(self, samplers: Sequence[Sampler], shares: Sequence[float]) -> None:
        self._samplers, self._shares = samplers, shares
        self._seen: tuple[list[Any], Any] | None = None

    def draw(self, round: int = 0) -> Any:
        """The ghost points of a round.  Collective."""
        drawn: list[Any] = []
        for sampler in self._samplers:
            points = sampler.draw(round)
            if not isinstance(points, (Points, SpaceTimePoints)):
                raise ValueError("DofGhosts cannot be part of a GhostUnion; use QuadratureGhosts")
            drawn.append(points)
        if self._seen is not None and all(a is b for a, b in zip(self._seen[0], drawn, strict=True)):
            return self._seen[1]  # all fixed: B is kept with the points
        union = type(drawn[0]).union(drawn, self._shares)
        self._seen = drawn, union
        return union
