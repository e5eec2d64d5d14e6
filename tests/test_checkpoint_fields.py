"""Fields in checkpoints do not depend on the partition: what some ranks have written, others read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
from cases import distorted_quadrilaterals, square
from dolfinx import fem, mesh
from test_checkpoint_files import kept
from test_restart import EVERY, GAMES, ROUNDS, interrupted, same

import hyco_fem as hf
from hyco_fem.io import nodal as nodal_module
from hyco_fem.io.checkpoint import Checkpoints
from hyco_fem.io.nodal import DofOrder, read_fields, write_fields

SPACES: dict[str, tuple[Callable[[MPI.Comm], mesh.Mesh], tuple]] = {
    "P1": (lambda c: square(c, 4), ("Lagrange", 1)),
    "P3": (lambda c: square(c, 3), ("Lagrange", 3)),
    "DG1": (lambda c: square(c, 3), ("DG", 1)),
    "Q2": (lambda c: distorted_quadrilaterals(c, 4), ("Lagrange", 2)),
    "vector": (lambda c: square(c, 3), ("Lagrange", 2, (2,))),
    "P3 in 3D": (lambda c: mesh.create_unit_cube(c, 2, 2, 2), ("Lagrange", 3)),
    "two cells": (lambda c: mesh.create_unit_interval(c, 2), ("Lagrange", 4)),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("slice_", [7, 2**20], ids=["many slices", "one slice"])
def test_a_field_in_a_file_does_not_depend_on_the_partition(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, slice_: int
) -> None:
    """Written by all ranks, read by one, and the other way round: a dof has the value that belongs to its place."""
    monkeypatch.setattr(nodal_module, "SLICE", slice_)
    build, element = SPACES[name]

    def made(c: MPI.Comm) -> tuple[DofOrder, np.ndarray]:
        V = fem.functionspace(build(c), element)
        x = hf.dof_coordinates(V).numpy()
        places = np.stack([np.sin(7 * x.sum(axis=1)), *x.T], axis=1)
        return DofOrder(V), places

    (order, expected), (alone, whole) = made(comm), made(MPI.COMM_SELF)
    own = folder / f"own-{comm.rank}"
    write_fields(folder / "all", [(order, expected), (order, -expected)], comm)
    write_fields(own, [(alone, whole), (alone, -whole)], MPI.COMM_SELF)
    comm.Barrier()
    columns = expected.shape[1]
    for path in (own, folder / "all"):
        for found, value in zip(read_fields(path, [(alone, columns)] * 2, MPI.COMM_SELF), (whole, -whole), strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-14)
    for path in (folder / "own-0", folder / "all"):
        for found, value in zip(read_fields(path, [(order, columns)] * 2, comm), (expected, -expected), strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-14)
    assert not order.differs(alone.fingerprint)
    with pytest.raises(OSError, match=r"has \d+ bytes, not \d+"):
        read_fields(folder / "all", [(order, columns)], comm)


@pytest.mark.parametrize("name", ["field", "variational", "adam", "balance"])
def test_a_run_goes_on_with_another_number_of_ranks(comm: MPI.Comm, folder: Path, name: str) -> None:
    """Begun by all ranks and ended by each alone; moments of the field and what steps are taken back to come along."""
    whole = GAMES[name](comm)
    expected = whole.run(ROUNDS)
    interrupted(GAMES[name], comm, folder / "run")
    comm.Barrier()
    own = folder / f"own-{comm.rank}"
    shutil.copytree(folder / "run", own)
    game = GAMES[name](MPI.COMM_SELF)
    done, result = kept(own, game, ROUNDS)
    assert done.round == EVERY
    for a, b in zip(result.history, expected.history, strict=True):
        same(a, b, 1e-10)
    comm.Barrier()


def test_a_field_on_another_mesh_is_refused(comm: MPI.Comm, folder: Path) -> None:
    """As many dofs and cells, elsewhere."""

    def build(move: float) -> hf.Hyco:
        game = GAMES["field"](comm)
        game.physical.V.mesh.geometry.x[:, 0] += move
        return game

    kept(folder, build(0.0), 2)
    with Checkpoints(folder, build(1e-3)) as checkpoints, pytest.raises(ValueError, match="the mesh, or the element"):
        checkpoints.resume()
