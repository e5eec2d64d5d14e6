"""Fields in files that do not depend on the partition.

Points of dofs are put in the order of the first cell that has them, in the numbering of the mesh file, and in that cell
in the order of the element.  Values travel through rank 0 in slices of this order: no rank holds a whole field.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from mpi4py import MPI

import numpy as np
from dolfinx import fem

from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.dofs import dof_coordinates
from hyco_fem.parallel import agreed, raise_together, sum_array

# So many (cell, dof) pairs a slice: 8 MB of values, at most, of each column.
SLICE = 2**20

_BLOCK = 2**22


class DofOrder:
    """The order of the dof points of a space.  Collective.

    Attributes:
        keys: Of the owned points, ascending.  rows: their local numbers, in that order.
        total: Number of points on all ranks.
    """

    def __init__(self, Q: fem.FunctionSpace) -> None:
        mesh = Q.mesh
        self.comm: MPI.Comm = mesh.comm
        geometry = cell_geometry(mesh)
        dofs = Q.dofmap.list[: geometry.n_owned]
        each = Q.dofmap.list.shape[1]
        imap = Q.dofmap.index_map
        self.total = imap.size_global
        self._end = geometry.n_global * each
        pairs = geometry.original[:, None] * each + np.arange(each)
        least = np.full(imap.size_local + imap.num_ghosts, self._end, dtype=np.int64)
        np.minimum.at(least, dofs.ravel(), pairs.ravel())
        keys = least[: imap.size_local]
        self._hear_of_ghosts(imap, keys, least[imap.size_local :])
        self.rows = np.argsort(keys, kind="stable")
        self.keys = keys[self.rows]
        # The same for the same mesh and element, to rounding.
        x = dof_coordinates(Q).numpy()[self.rows]
        waves = np.cos(self.keys.astype(np.float64))[:, None] * x
        local = np.concatenate([[np.abs(x).sum()], waves.sum(axis=0), np.abs(waves).sum(axis=0)])
        self.fingerprint = [float(self.total), float(self._end), *map(float, sum_array(self.comm, local))]

    def _hear_of_ghosts(self, imap: object, keys: np.ndarray, ghosts: np.ndarray) -> None:
        """Owners take the least of what is known of their dofs elsewhere."""
        comm = self.comm
        if comm.size == 1:
            return
        start = imap.local_range[0]  # type: ignore[attr-defined]
        owners, numbers = np.asarray(imap.owners), np.asarray(imap.ghosts)  # type: ignore[attr-defined]
        sent = [(numbers[owners == r], ghosts[owners == r]) for r in range(comm.size)]
        for theirs, values in comm.alltoall(sent):
            np.minimum.at(keys, theirs - start, values)

    def differs(self, fingerprint: list[float]) -> bool:
        """Whether a fingerprint is that of another mesh or element."""
        own, theirs = np.array(self.fingerprint), np.array(fingerprint)
        return own.shape != theirs.shape or bool(np.any(np.abs(own - theirs) > 1e-9 * max(1e-300, own[2:].max())))

    def slices(self) -> Iterator[slice]:
        """The owned points of one slice after the other; the same number of slices on all ranks."""
        ends = np.searchsorted(self.keys, np.arange(0, self._end + SLICE, SLICE))
        return (slice(a, b) for a, b in pairwise(ends))


def write_fields(path: Path, fields: list[tuple[DofOrder, np.ndarray]], comm: MPI.Comm) -> str:
    """Write values at the owned dofs, (n_owned, columns) in the order of the dofs, of one space after the other.

    The file is whole or not there.  Returns its checksum, on all ranks.  Collective; an OSError of rank 0 is raised on
    all.
    """
    file = _File(path) if comm.rank == 0 else None
    for order, values in fields:
        for part in order.slices():
            rows = np.ascontiguousarray(values[order.rows[part]], dtype="<f8")
            whole = _gathered(comm, order.keys[part], rows)
            if file is not None and whole is not None:
                file.write(whole.tobytes())
    error = None if file is None else file.close()
    raise_together(comm, error)
    return comm.bcast("" if file is None else file.digest.hexdigest())


class _File:
    """A file that remembers its first error, while the other ranks go on sending, and has its name when all is well."""

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, hashlib.sha256()
        self._temporary = temporary_name(path)
        self._file: BinaryIO | None = None
        self._error: OSError | None = None
        try:
            self._file = open(self._temporary, "wb")  # noqa: SIM115
        except OSError as error:
            self._error = error

    def write(self, data: bytes) -> None:
        """Append."""
        if self._file is None or self._error is not None:
            return
        self.digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error

    def close(self) -> OSError | None:
        """Put it in its place; or what went wrong."""
        if self._file is None:
            return self._error
        try:
            with self._file:
                if self._error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if self._error is None:
                os.replace(self._temporary, self.path)
        except OSError as error:
            self._error = self._error or error
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        return self._error


def temporary_name(path: Path) -> Path:
    """The name under which a file is written: hidden, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _gathered(comm: MPI.Comm, keys: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """The rows of all ranks in the order of their keys, on rank 0."""
    found = _keys_on_root(comm, keys)
    columns = rows.shape[1]
    if found is None:
        comm.Gatherv(rows, None)
        return None
    counts, order = found
    whole = np.empty((sum(counts), columns))
    comm.Gatherv(rows, [whole, [n * columns for n in counts], MPI.DOUBLE])
    return whole[order]


def _keys_on_root(comm: MPI.Comm, keys: np.ndarray) -> tuple[list[int], np.ndarray] | None:
    """On rank 0, how many keys each rank has, and what sorts all of them."""
    counts = comm.gather(len(keys))
    if counts is None:
        comm.Gatherv(keys, None)
        return None
    every = np.empty(sum(counts), dtype=np.int64)
    comm.Gatherv(keys, [every, counts, MPI.INT64_T])
    return counts, np.argsort(every, kind="stable")


def read_fields(path: Path, orders: list[tuple[DofOrder, int]], comm: MPI.Comm) -> list[np.ndarray]:
    """Read what `write_fields` has written: for each order and number of columns (n_owned, columns).  Collective.

    Raises:
        OSError: the file cannot be read, or is too short; on all ranks.
    """
    file: BinaryIO | None = None
    with agreed(comm):
        if comm.rank == 0:
            file = open(path, "rb")  # noqa: SIM115
            size = 8 * sum(order.total * columns for order, columns in orders)
            found = path.stat().st_size
            if found != size:
                file.close()
                raise OSError(f"'{path}' has {found} bytes, not {size}")
    error: Exception | None = None
    fields = []
    for order, columns in orders:
        values = np.empty((len(order.keys), columns))
        for part in order.slices():
            own = np.empty((part.stop - part.start, columns))
            keys = _keys_on_root(comm, order.keys[part])
            if keys is None:
                comm.Scatterv(None, own)
            else:
                assert file is not None
                counts, sort = keys
                whole = np.full((sum(counts), columns), np.nan)
                try:
                    data = np.frombuffer(file.read(whole.nbytes), dtype="<f8")
                    whole[sort] = data.reshape(whole.shape)
                except (OSError, ValueError) as e:
                    error = error or OSError(f"'{path}' cannot be read: {e}")
                comm.Scatterv([whole, [n * columns for n in counts], MPI.DOUBLE], own)
            values[order.rows[part]] = own
        fields.append(values)
    if file is not None:
        file.close()
    raise_together(comm, error)
    return fields


def file_digest(path: Path) -> str:
    """The checksum of a file.  Local to the rank."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
