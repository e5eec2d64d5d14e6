"""Values of a Function as NumPy views, found once: DOLFINx takes microseconds for each look-up."""

from __future__ import annotations

import numpy as np
from dolfinx import fem


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


def set_owned(f: fem.Function, values: np.ndarray | float) -> None:
    """Set the owned values and update the ghosts.  Collective."""
    owned(f)[:] = values
    f.x.scatter_forward()
