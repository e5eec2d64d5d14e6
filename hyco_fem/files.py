"""Files that are whole or not there: written under another name, then renamed.  Rank 0 writes, all ranks learn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

from hyco_fem.parallel import agreed


def output_folder(path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> Path:
    """Make a folder and check that it can be written to, before hours are spent.  Collective.

    Raises:
        OSError: it cannot be made or written; on all ranks.
    """
    folder = Path(path)
    with agreed(comm):
        if comm.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                file = isinstance(error, (FileExistsError, NotADirectoryError))
                why = "it is a file, or in one" if file else error.strerror or error
                raise OSError(f"the output folder '{folder}' cannot be written ({why}); choose another one") from None
    return folder


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path in the same folder) and rename to `path`; earlier content stays if it fails.

    Local to the rank that calls it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
