"""Points in a mesh: which rank owns which, and the observation operator B with its transpose.

`Points` holds scattered points.  A point belongs to exactly one rank: the owner of the lowest-numbered cell, in the
numbering of the mesh file, that contains it, so the choice does not depend on the partition.  B is a sparse matrix,
rows distributed with the points and columns with the dofs; B and Bᵀ each cost one ghost exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
import scipy.sparse as sp
import torch
from dolfinx import fem, geometry
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem import _compat
from hyco_fem.bridge.cells import ROUNDING, CellGeometry, cell_geometry
from hyco_fem.bridge.dofs import DofLayout, check_lagrange, layout
from hyco_fem.parallel import agreed, sum_array
from hyco_fem.tensors import as_array

# Fraction of a cell by which a point may lie outside: rounding of a text file, not a modelling tolerance.
_TOLERANCE = 1e-9


class OutsideError(ValueError):
    """Points that lie outside the mesh; `indices` are their rows."""

    def __init__(self, message: str, indices: list[int] | None = None) -> None:
        super().__init__(message)
        self.indices = indices or []

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.indices)


class Points:
    """Points of a mesh, distributed.

    Args:
        mesh: The mesh.
        x: The same points (n, d) on every rank, in any order, repeated or not; n may be 0.
        missing: What to do with a point outside the mesh: "raise", or "mark": leave it out, see `found`.

    Attributes:
        x: Coordinates of the points owned here, (n_owned, d), float64.
        index: Their rows in the x that was given, ascending, (n_owned,).
        weights: Their weights in a mean over all points, (n_owned,); 1/n_found unless a sampler set others.
        n: Number of points on all ranks; found: which rows lie in the mesh, (n,), replicated; n_found: how many.

    Raises:
        OutsideError: points outside the mesh, named by row and coordinates.
        ValueError: x has a wrong shape, is not finite, or differs between ranks.

    Collective.
    """

    def __init__(self, mesh: dmesh.Mesh, x: Any, *, missing: Literal["raise", "mark"] = "raise") -> None:
        comm: MPI.Comm = mesh.comm
        cells = cell_geometry(mesh)
        with agreed(comm):
            x = _checked(x, cells.gdim)
            if missing not in ("raise", "mark"):
                raise ValueError(f"missing must be 'raise' or 'mark', not {missing!r}")
        if comm.size > 1:
            reference = comm.bcast(x if comm.rank == 0 else None, root=0)
            with agreed(comm):
                if not np.array_equal(x, reference):
                    raise ValueError("the points differ between ranks; pass the same x on every rank")
        cell, X, original = _locate(mesh, cells, x)
        best = np.empty_like(original)
        comm.Allreduce(original, best, op=MPI.MIN)
        if cells.degree > 1 and (best == cells.n_global).any():
            # A curved cell may bulge out of the box around its nodes, by less than half its size.
            again = np.flatnonzero(best == cells.n_global)
            cell[again], X[again], original[again] = _locate(mesh, cells, x[again], bulge=0.5)
            comm.Allreduce(original, best, op=MPI.MIN)
        found = best < cells.n_global
        if missing == "raise" and not found.all():
            rows = np.flatnonzero(~found)
            listed = ", ".join(f"{i}: {_text(x[i])}" for i in rows[:5]) + (", …" if len(rows) > 5 else "")
            raise OutsideError(
                f"{len(rows)} of {len(x)} points lie outside the mesh (row: coordinates): {listed}; move or remove "
                "them, or pass missing='mark'",
                [int(i) for i in rows],
            )
        mine = np.flatnonzero(found & (original == best))
        n_found = int(found.sum())
        self._set(mesh, x[mine], cell[mine], X[mine], mine, len(x), 1.0 / max(1, n_found))
        self._found, self.n_found = found, n_found

    @classmethod
    def of_rows(cls, mesh: dmesh.Mesh, inputs: np.ndarray, *, missing: Literal["raise", "mark"] = "raise") -> Points:
        """From what a network sees of them, which here is x itself; see `SpaceTimePoints.of_rows`."""
        return cls(mesh, inputs, missing=missing)

    @classmethod
    def in_cells(
        cls,
        mesh: dmesh.Mesh,
        cells: np.ndarray,
        X: np.ndarray,
        index: np.ndarray,
        n: int,
        weights: np.ndarray | float,
    ) -> Points:
        """Points whose owned cells and reference coordinates are known: no search, no communication.

        Args:
            cells, X, index: For each point owned here its local cell, reference coordinates and global row.
            n: Number of points on all ranks.  weights: in a mean over all points.
        """
        self = cls.__new__(cls)
        geo = cell_geometry(mesh)
        x = geo.push_forward(cells, X) if len(cells) else np.empty((0, geo.gdim))
        self._set(mesh, x, cells, X, index, n, weights)
        self._found, self.n_found = None, n
        return self

    @classmethod
    def union(cls, parts: Sequence[Points], shares: Sequence[float]) -> Points:
        """Points of several sets, one after the other, with weights times the share of each set."""
        self = cls.__new__(cls)
        offsets = np.cumsum([0, *(p.n for p in parts)])
        x = np.concatenate([p.x.numpy() for p in parts])
        index = np.concatenate([p.index + start for p, start in zip(parts, offsets[:-1], strict=True)])
        weights = np.concatenate([share * p.weights.numpy() for p, share in zip(parts, shares, strict=True)])
        cells, X = (np.concatenate([getattr(p, name) for p in parts]) for name in ("_cells", "_X"))
        self._set(parts[0].mesh, x, cells, X, index, int(offsets[-1]), weights)
        self._found = None if all(p._found is None for p in parts) else np.concatenate([p.found for p in parts])
        self.n_found = sum(p.n_found for p in parts)
        return self

    _found: np.ndarray | None
    n_found: int

    def _set(self, mesh: dmesh.Mesh, x: np.ndarray, cells: Any, X: Any, index: Any, n: int, weights: Any) -> None:
        self.mesh, self.comm = mesh, mesh.comm
        self.x = torch.from_numpy(x)
        self.index, self.n = index, n
        self.weights = torch.from_numpy(np.full(len(x), weights) if np.isscalar(weights) else np.asarray(weights))
        self._cells, self._X = cells, X
        self._observations: list[tuple[fem.FunctionSpace, Observation]] = []

    def __len__(self) -> int:
        """Number of points owned here."""
        return len(self.x)

    @property
    def found(self) -> np.ndarray:
        """Which of the n points lie in the mesh, (n,); replicated."""
        return np.ones(self.n, dtype=bool) if self._found is None else self._found

    def observation(self, V: fem.FunctionSpace) -> Observation:
        """The operator B from owned dofs of V to the points owned here; made once for each space.  Collective."""
        for space, found in self._observations:
            if space is V:
                return found
        if V.mesh is not self.mesh:
            raise ValueError("the space is on another mesh than the points")
        made = Observation(V, self._cells, self._X)
        self._observations.append((V, made))
        return made

    def evaluate(self, u: Tensor | fem.Function, V: fem.FunctionSpace | None = None) -> Tensor:
        """Values of a field at the points owned here; differentiable in u.  Collective.

        Args:
            u: Owned dof values (n_dofs_owned,) of V, or a Function (then V is not needed).

        Returns:
            (n_owned,), or (n_owned, value_size) for a vector field.

        Raises:
            ValueError, TypeError: V is no Lagrange space of this mesh, or u does not fit it; on all ranks.
        """
        if isinstance(u, fem.Function):
            V = u.function_space
            n = V.dofmap.index_map.size_local * V.dofmap.index_map_bs
            u = torch.from_numpy(u.x.array[:n].copy())
        if V is None:
            raise ValueError("evaluate(u, V) needs the space of the dof values")
        B = self.observation(V)
        with agreed(self.comm):
            if u.dtype != torch.float64:
                raise TypeError(f"dof values are {u.dtype}; hyco_fem computes in float64")
            if u.shape != (B.layout.n_owned,):
                raise ValueError(
                    f"dof values of shape {tuple(u.shape)} do not fit the space, which owns {B.layout.n_owned} here"
                )
        return _Observe.apply(u, B)

    def gather(self, values: Tensor | np.ndarray) -> np.ndarray:
        """Values at all n points, replicated, from those at the owned ones; NaN where not found.  Collective."""
        values = np.asarray(values.detach() if isinstance(values, Tensor) else values)
        with agreed(self.comm):
            if len(values) != len(self):
                raise ValueError(f"{len(values)} values do not fit the {len(self)} points owned here")
        out = np.zeros((self.n, *values.shape[1:]))
        out[self.index] = values
        out = sum_array(self.comm, out)
        if self.n_found < self.n:
            out[~self.found] = np.nan
        return out


class Observation:
    """B: owned dofs → values at points.  `apply` and `transpose` are each other's adjoints.  Collective.

    Args:
        V: A Lagrange space, or a Lagrange sub-space of a mixed or vector one (`W.sub(0)`): the dofs are then those of
            the whole space.
        cells, X: local cell and reference coordinates of each point.
    """

    def __init__(self, V: fem.FunctionSpace, cells: np.ndarray, X: np.ndarray) -> None:
        check_lagrange(V)
        self.layout: DofLayout = layout(V)
        imap, bs = V.dofmap.index_map, V.dofmap.index_map_bs
        self.n_local = (imap.size_local + imap.num_ghosts) * bs
        # Every row has the same number of entries, those of a cell: two rectangular arrays hold the sparse matrix.
        element = V.element.basix_element
        # basix aborts the process for no points on intervals, quadrilaterals and hexahedra.
        self.values = element.tabulate(0, X)[0, :, :, 0] if len(X) else np.empty((0, element.dim))
        self.components = int(np.prod(_compat.value_shape(V), dtype=int))
        # Unrolled local dofs of each point, node and component: a sub-space has unrolled ones already.
        dofs = V.dofmap.list[cells]
        if V.dofmap.bs > 1:
            dofs = dofs[:, :, None] * V.dofmap.bs + np.arange(V.dofmap.bs, dtype=np.int32)
        self.dofs = dofs.reshape(len(cells), self.values.shape[1], self.components)
        if self.components == 1:
            self.dofs = self.dofs[:, :, 0]

    @property
    def matrix(self) -> sp.csr_array:
        """B on this rank, for inspection: points (times components) by local (owned and ghost) dofs."""
        n, k = self.values.shape
        values = np.repeat(self.values[:, None, :], self.components, axis=1).ravel()
        dofs = (self.dofs if self.components == 1 else self.dofs.transpose(0, 2, 1)).ravel()
        rows = np.arange(0, n * self.components * k + 1, k)
        return sp.csr_array((values, dofs, rows), shape=(n * self.components, self.n_local))

    def apply(self, u: np.ndarray) -> np.ndarray:
        """B u, (n,) or (n, components), from the owned dofs (n_owned,)."""
        local = self.layout.to_local(u)
        return np.einsum("pk,pk...->p...", self.values, local[self.dofs])

    def transpose(self, w: np.ndarray) -> np.ndarray:
        """Bᵀ w, owned dofs, from values at the points."""
        weighted = self.values * w[:, None] if self.components == 1 else self.values[:, :, None] * w[:, None, :]
        return self.layout.to_owned(np.bincount(self.dofs.ravel(), weighted.ravel(), minlength=self.n_local))


class _Observe(torch.autograd.Function):
    """B u.  Its backward is `_ObserveTranspose`, whose backward is this: differentiable any number of times."""

    @staticmethod
    def forward(u: Tensor, observation: Observation) -> Tensor:
        return torch.from_numpy(observation.apply(as_array(u)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.observation = inputs[1]

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple:  # type: ignore[override]
        if not torch.is_grad_enabled():
            return torch.from_numpy(ctx.observation.transpose(as_array(w))), None
        return _ObserveTranspose.apply(w, ctx.observation), None

    @staticmethod
    def jvp(ctx: Any, du: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(ctx.observation.apply(as_array(du)))


class _ObserveTranspose(torch.autograd.Function):
    """Bᵀ w."""

    @staticmethod
    def forward(w: Tensor, observation: Observation) -> Tensor:
        return torch.from_numpy(observation.transpose(as_array(w)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.observation = inputs[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:  # type: ignore[override]
        return _Observe.apply(u, ctx.observation), None

    @staticmethod
    def jvp(ctx: Any, dw: Tensor, _: None) -> Tensor:  # type: ignore[override]
        return torch.from_numpy(ctx.observation.transpose(as_array(dw)))


def _checked(x: Any, gdim: int) -> np.ndarray:
    x = np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != gdim:
        raise ValueError(f"points must have shape (n, {gdim}) on this mesh, not {x.shape}")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(f"point {bad[0]} has coordinates {_text(x[bad[0]])}, which are not finite")
    return np.ascontiguousarray(x)


def _text(x: np.ndarray) -> str:
    return "(" + ", ".join(f"{float(c):g}" for c in x) + ")"


def _locate(
    mesh: dmesh.Mesh, geo: CellGeometry, x: np.ndarray, bulge: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each point the lowest-numbered owned cell that contains it: local cell, X, and its file number.

    Cells are looked for in boxes around their nodes, enlarged by the fraction `bulge` of the largest cell.
    """
    n = len(x)
    cell, X = np.zeros(n, dtype=np.int32), np.zeros((n, geo.tdim))
    original = np.full(n, geo.n_global, dtype=np.int64)
    if n == 0 or geo.n_owned == 0:
        return cell, X, original
    x3 = np.zeros((n, 3))
    x3[:, : geo.gdim] = x
    owned = np.arange(geo.n_owned, dtype=np.int32)
    size = geo.sizes(owned).max()
    padding = (bulge + _TOLERANCE) * size + ROUNDING * np.abs(x).max()
    tree = geometry.bb_tree(mesh, geo.tdim, padding=padding, entities=owned)
    hits = geometry.compute_collisions_points(tree, x3)
    cells = np.asarray(hits.array)
    points = np.repeat(np.arange(n), np.diff(hits.offsets))
    candidates = geo.pull_back(cells, x[points])
    ok = geo.inside(candidates, _TOLERANCE + geo.rounding(cells, x[points]))
    cells, points, candidates = cells[ok], points[ok], candidates[ok]
    # Highest file number first, so that the lowest is written last and stays.
    order = np.argsort(-geo.original[cells], kind="stable")
    cells, points, candidates = cells[order], points[order], candidates[order]
    cell[points], X[points], original[points] = cells, candidates, geo.original[cells]
    return cell, X, original
