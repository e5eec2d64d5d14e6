"""One checkpoint in a file: what is in it, how it is known to be whole, and whose it is.

The file is one of torch.save, and a line after it with the checksum of what stands before.  torch.load reads it with
weights_only=True, which runs no code.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import random
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import dolfinx
import numpy as np
import torch

from hyco_fem.files import replace_file

FORMAT = 2

_SEAL = b"\nhyco_fem checkpoint sha256 "
_TRAILER = len(_SEAL) + 64 + 1

# Longer texts of what differs say no more.
_LONGEST = 60


def versions() -> dict[str, str]:
    """Of what the numbers come from."""
    return {
        "hyco_fem": sys.modules["hyco_fem"].__version__,
        "dolfinx": dolfinx.__version__,
        "torch": str(torch.__version__),
        "petsc": ".".join(map(str, PETSc.Sys.getVersion())),
        "mpi": MPI.Get_library_version().split(",")[0].strip("\0 \n"),
        "python": platform.python_version(),
    }


# -- the file ----------------------------------------------------------------------------------------------------


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all, and onto the disk.  Local to the rank."""
    stream = io.BytesIO()
    torch.save(content, stream)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file, stream.getbuffer() as body:
            seal = _SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n"
            file.write(body)
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renamings in a folder last, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that is whole.  Local to the rank; runs no code.

    Raises:
        ValueError: it is damaged, or of another format.  OSError: it cannot be read.
    """
    data = path.read_bytes()
    body, seal = data[:-_TRAILER], data[-_TRAILER:]
    if not seal.startswith(_SEAL) or not seal.endswith(b"\n"):
        raise ValueError("it is damaged: it does not end as a checkpoint does")
    if seal[len(_SEAL) : -1].decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        raise ValueError("it is damaged: its checksum is wrong")
    content = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"it has the format {found}, and this hyco_fem reads format {FORMAT}")
    return content


# -- whose it is -------------------------------------------------------------------------------------------------


def difference(theirs: Any, own: Any, what: str = "") -> str | None:
    """The first difference of two descriptions, nested dicts and lists, in words; None where there is none."""
    if isinstance(theirs, Mapping) and isinstance(own, Mapping):
        for key in [*theirs, *(k for k in own if k not in theirs)]:
            name = f"{what}['{key}']" if what else str(key)
            if key not in own or key not in theirs:
                return f"{name} is there {'only' if key in theirs else 'not, but here'}"
            found = difference(theirs[key], own[key], name)
            if found is not None:
                return found
        # Optimisers know parameters by their order.
        return None if list(theirs) == list(own) else f"{what or 'its entries'} are in another order"
    if isinstance(theirs, float) and isinstance(own, float) and theirs != theirs and own != own:
        return None
    return None if theirs == own else f"{what} is {_short(theirs)} there, and {_short(own)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


# -- random streams ----------------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The streams that torch, numpy and Python keep for everyone.  Those of the package come from seeds."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Put the streams back, the same on all ranks."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
