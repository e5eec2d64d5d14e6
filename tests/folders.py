"""Folders and files that all ranks see, for tests of what is read and written."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

MESHES = Path(__file__).parents[1] / "meshes"


def put(comm: MPI.Comm, path: Path, content: str | bytes) -> Path:
    """Rank 0 writes a file; it is there on all ranks afterwards."""
    if comm.rank == 0:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    comm.Barrier()
    return path


def names(comm: MPI.Comm, folder: Path) -> list[str]:
    """What is in a folder, when all ranks are here."""
    comm.Barrier()
    found = sorted(p.name for p in folder.iterdir())
    comm.Barrier()
    return found
