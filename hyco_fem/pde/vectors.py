"""Values of a Function as NumPy views, found once: DOLFINx takes microseconds for each look-up."""

from __future__ import annotations

import numpy as np
from dolfinx import fem, la


def local(f: fem.Function) -> np.ndarray:
    """View of the local values of a Function, ghosts included, blocks unrolled."""
    found = getattr(f, "_hyco_local", None)
    if found is None:
        found = f._hyco_local = f.x.array
    return found


def owned(f: fem.Function) -> np.ndarray:
    """View of the owned values of a Function, (n_owned,), blocks unrolled."""
    found = getattr(f, "_hyco_owned", None)
    if found is None:
        dofmap = f.function_space.dofmap
        found = f._hyco_owned = local(f)[: dofmap.index_map.size_local * dofmap.index_map_bs]
    return found


def to_local(f: fem.Function, columns: np.ndarray) -> np.ndarray:
    """Local values (n_local, k) from owned ones (n_owned, k), with f as work space.  Collective."""
    if f.function_space.mesh.comm.size == 1:
        return columns
    out = np.empty((len(local(f)), columns.shape[1]), order="F")
    for j in range(columns.shape[1]):
        set_owned(f, columns[:, j])
        out[:, j] = local(f)
    return out


def to_owned(f: fem.Function, columns: np.ndarray) -> np.ndarray:
    """The transpose of `to_local`: parts of ghosts are added to their owners.  Collective."""
    if f.function_space.mesh.comm.size == 1:
        return columns
    out = np.empty((len(owned(f)), columns.shape[1]), order="F")
    for j in range(columns.shape[1]):
        local(f)[:] = columns[:, j]
        f.x.scatter_reverse(la.InsertMode.add)
        out[:, j] = owned(f)
    return out


def set_owned(f: fem.Function, values: np.ndarray | float) -> None:
    """Set the owned values and update the ghosts.  Collective."""
    owned(f)[:] = values
    f.x.scatter_forward()
