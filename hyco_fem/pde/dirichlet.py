"""Dirichlet conditions: which dofs they fix, and how a coefficient enters as a boundary value.

A coefficient g that is the value of a Dirichlet condition takes part in the derivatives by its trace.  With K = ∂F/∂u
before the conditions are built in, Γ the fixed dofs of g and λ the adjoint (zero on fixed dofs):

    tangent:   δu = δg on Γ, and the right-hand side of the other rows gets −K δu_Γ
    adjoint:   ḡ = (ū − Kᵀ λ) on Γ
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dolfinx import fem


def fixed_dofs(bcs: Sequence[fem.DirichletBC]) -> np.ndarray:
    """Local unrolled dofs with a Dirichlet condition, ghosts included."""
    fixed = [bc.dof_indices()[0] for bc in bcs]
    return np.unique(np.concatenate(fixed)) if fixed else np.empty(0, dtype=np.int32)


def is_value_of(bc: fem.DirichletBC, m: fem.Function) -> bool:
    """Whether a Dirichlet condition takes its values from the Function m."""
    vector = getattr(bc.g, "x", None)
    return vector is not None and np.shares_memory(np.asarray(vector.array), m.x.array)


class Trace:
    """Where the dofs of a Function m are boundary values of u: u[rows] = m[columns], local dofs, owned rows only.

    Args:
        m: The Function; V: the space of u; bcs: all conditions, the last one winning where they overlap.

    Collective.
    """

    def __init__(self, m: fem.Function, V: fem.FunctionSpace, bcs: Sequence[fem.DirichletBC]) -> None:
        dofmap = V.dofmap
        bs = dofmap.index_map_bs
        n_owned = dofmap.index_map.size_local * bs
        n_local = n_owned + dofmap.index_map.num_ghosts * bs
        self.m = m
        kept = m.x.array.copy()
        # Let the conditions themselves carry the numbers of the dofs of m to those of u.
        m.x.array[:] = np.arange(len(kept), dtype=np.float64)
        source = np.full(n_local, -1.0)
        for bc in bcs:
            if is_value_of(bc, m):
                bc.set(source)
            else:
                source[bc.dof_indices()[0]] = -1.0
        m.x.array[:] = kept
        self.rows = np.flatnonzero(source[:n_owned] >= 0)
        self.columns = source[self.rows].astype(np.int64)

    def lift(self, dm: np.ndarray, du: np.ndarray) -> None:
        """Write the trace of local values dm of m into local (or owned) values du of u."""
        du[self.rows] = dm[self.columns]

    def add_transpose(self, du: np.ndarray, dm: np.ndarray) -> None:
        """Add values of u on Γ to the local values dm of m; contributions to ghosts are still to be sent."""
        np.add.at(dm, self.columns, du[self.rows])
