"""What can be known of a matrix before the first solve: symmetry whatever its entries, sign, and rigid motions."""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from hyco_fem.pde.choice import Traits
from hyco_fem.pde.vectors import owned, set_owned

# |xᵀAy − yᵀAx| relative to its two terms' size, below which A counts as symmetric.
_SYMMETRIC = 1e-11


def traits_of(
    A: PETSc.Mat,
    J: fem.Form,
    bcs: Sequence[fem.DirichletBC],
    u: fem.Function,
    others: Sequence[fem.Function],
    constants: Sequence[fem.Constant],
    V: fem.FunctionSpace,
) -> Traits:
    """Assemble twice, and look.  Collective.

    Symmetry is asked of random values in all Functions and Constants, because a matrix may be symmetric by accident
    where an iteration starts: that of Navier–Stokes at rest is that of Stokes.  The sign of the diagonal is asked of
    the values that the Functions hold now, since random ones need not be admissible; random only in place of zeros.
    Functions and constants are as before afterwards; the entries of A are not.
    """
    mesh = V.mesh
    comm = mesh.comm
    functions = [u, *others]
    before = [f.x.array.copy() for f in functions]
    kept = [np.array(c.value, copy=True) for c in constants]
    rng = np.random.default_rng((2025, comm.rank))
    same = np.random.default_rng(2025)

    def assemble() -> None:
        A.zeroEntries()
        fem_petsc.assemble_matrix(A, J, bcs=list(bcs))
        A.assemble()

    try:
        for c in constants:
            c.value = same.uniform(0.5, 1.5, np.shape(c.value))
        for size in (1.0, 1e-3):
            for f in functions:
                set_owned(f, (size if f is u else 1.0) * rng.uniform(0.5, 1.5, len(owned(f))))
            assemble()
            if np.isfinite(A.norm()):
                break  # a large displacement turns cells inside out: then once more with a small one
        symmetric = _is_symmetric(A, rng)
        _restore(constants, kept)
        for f, array in zip(functions, before, strict=True):
            if f is u or comm.allreduce(bool(np.any(array)), op=MPI.LOR):
                f.x.array[:] = array
        assemble()
        symmetric = symmetric and _is_symmetric(A, rng)
        positive = _positive_diagonal(A)
    finally:
        for f, array in zip(functions, before, strict=True):
            f.x.array[:] = array
        _restore(constants, kept)
    return Traits(
        size=A.getSize()[0],
        ranks=comm.size,
        tdim=mesh.topology.dim,
        symmetric=symmetric,
        positive=positive,
        mixed=V.num_sub_spaces > 0 and V.dofmap.index_map_bs == 1,
        vector=V.dofmap.index_map_bs > 1,
    )


def _restore(constants: Sequence[fem.Constant], values: Sequence[np.ndarray]) -> None:
    for c, value in zip(constants, values, strict=True):
        c.value = value


def _is_symmetric(A: PETSc.Mat, rng: np.random.Generator) -> bool:
    x, y = A.createVecs()
    Ax, Ay = A.createVecs()
    x.array[:] = rng.standard_normal(x.getLocalSize())
    y.array[:] = rng.standard_normal(y.getLocalSize())
    A.mult(x, Ax)
    A.mult(y, Ay)
    difference = abs(y.dot(Ax) - x.dot(Ay))
    scale = x.norm() * Ay.norm() + y.norm() * Ax.norm()
    for v in (x, y, Ax, Ay):
        v.destroy()
    return bool(np.isfinite(scale) and difference <= _SYMMETRIC * scale)


def _positive_diagonal(A: PETSc.Mat) -> bool:
    diagonal = A.getDiagonal()
    lowest = diagonal.min()[1]
    diagonal.destroy()
    return bool(lowest > 0.0)


def near_null_space(A: PETSc.Mat, V: fem.FunctionSpace) -> None:
    """Tell algebraic multigrid the rigid motions, where u is a vector field of the space dimension.  Collective."""
    gdim = V.mesh.geometry.dim
    if gdim == 1 or V.dofmap.index_map_bs != gdim:
        return
    n = V.dofmap.index_map.size_local
    coordinates = PETSc.Vec().createWithArray(
        np.ascontiguousarray(V.tabulate_dof_coordinates()[:n, :gdim]).ravel(), bsize=gdim, comm=V.mesh.comm
    )
    space = PETSc.NullSpace().createRigidBody(coordinates)
    A.setNearNullSpace(space)
    space.destroy()
    coordinates.destroy()
