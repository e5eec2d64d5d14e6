"""Owned values of a Function."""

from __future__ import annotations

import numpy as np
from dolfinx import fem


def owned(f: fem.Function) -> np.ndarray:
    """View of the owned values of a Function, (n_owned,), blocks unrolled."""
    dofmap = f.function_space.dofmap
    return f.x.array[: dofmap.index_map.size_local * dofmap.index_map_bs]


def set_owned(f: fem.Function, values: np.ndarray | float) -> None:
    """Set the owned values and update the ghosts.  Collective."""
    owned(f)[:] = values
    f.x.scatter_forward()
