"""Which linear solver, when the user does not say: by size, dimension, symmetry and the number of ranks.

Measured on P1 triangles and tetrahedra: below some thousand dofs PETSc's own LU is fastest, then a sparse direct
solver (MUMPS; Cholesky where the matrix is symmetric), and for large problems a Krylov method with algebraic multigrid
needs less memory, and less time in 3D much earlier than in 2D.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

from hyco_fem.pde.linear import Options, SolveError

log = logging.getLogger("hyco_fem")

# Up to this many dofs on one rank PETSc's sequential LU is faster than MUMPS.
_SMALL = 2000

# Up to this many dofs a direct solve, by dimension of the mesh; beyond it, Krylov and multigrid.
_DIRECT = {1: 10_000_000, 2: 400_000, 3: 40_000}

# Iterative solves must not blur the gradient: Taylor tests see a relative residual of 1e-8, but not this one.
_RTOL = 1e-10

# Share of the free memory that a factorisation may be expected to take.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Traits:
    """What is known of a matrix before it is solved with.

    size: rows on all ranks.  ranks; tdim: dimension of the mesh.  symmetric: for any values of the coefficients.
    positive: its diagonal is positive.  mixed: several fields with constraints among them (Stokes), of which algebraic
    multigrid knows nothing.  vector: it acts on vectors with one component for each space dimension.
    """

    size: int
    ranks: int
    tdim: int
    symmetric: bool
    positive: bool
    mixed: bool = False
    vector: bool = False


def default_options(traits: Traits) -> dict[str, object]:
    """PETSc options, without prefix, for a matrix with these traits."""
    if traits.mixed or traits.size <= _DIRECT[traits.tdim]:
        return direct_options(traits)
    if traits.symmetric and traits.positive:
        krylov: dict[str, object] = {"ksp_type": "cg"}
    else:
        krylov = {"ksp_type": "gmres", "ksp_gmres_restart": 100}
    krylov |= {"ksp_rtol": _RTOL, "ksp_max_it": 1000}
    if not traits.vector and PETSc.Sys.hasExternalPackage("hypre"):
        strong = 0.25 if traits.tdim < 3 else 0.5
        return krylov | {
            "pc_type": "hypre",
            "pc_hypre_type": "boomeramg",
            "pc_hypre_boomeramg_strong_threshold": strong,
        }
    return krylov | {"pc_type": "gamg", "pc_gamg_agg_nsmooths": 1}


def direct_options(traits: Traits) -> dict[str, object]:
    """A sparse direct solve: MUMPS, or SuperLU_DIST where that is missing; PETSc's LU for what is small and simple.

    PETSc's own LU does not pivot, so it is for matrices with a positive diagonal only.
    """
    if traits.ranks == 1 and traits.size <= _SMALL and traits.positive and not traits.mixed:
        # PETSc's threshold for pivots is absolute, and would refuse small units; singular matrices are found otherwise.
        return {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_zeropivot": 1e-200}
    if PETSc.Sys.hasExternalPackage("mumps"):
        # With 50 % more workspace than MUMPS estimates: its default of 20 % can be too little in parallel.
        kind = "cholesky" if traits.symmetric else "lu"
        return {
            "ksp_type": "preonly",
            "pc_type": kind,
            "pc_factor_mat_solver_type": "mumps",
            "mat_mumps_icntl_14": 50,
        }
    package = {"pc_factor_mat_solver_type": "superlu_dist"} if PETSc.Sys.hasExternalPackage("superlu_dist") else {}
    if traits.ranks > 1 and not package:
        raise SolveError("this PETSc has no parallel direct solver (MUMPS, SuperLU_DIST); choose with petsc_options")
    return {"ksp_type": "preonly", "pc_type": "lu", **package}


def describe(options: Options, traits: Traits, what: str, chosen: bool) -> str:
    """One line for a log: what is solved, and how."""
    solver = options.get("ksp_type", "PETSc's default")
    pc = options.get("pc_hypre_type") or options.get("pc_type", "PETSc's default")
    package = options.get("pc_factor_mat_solver_type", "PETSc" if solver == "preonly" else None)
    method = (
        f"{pc} ({package})" if solver == "preonly" else f"{solver} + {pc}, rtol {options.get('ksp_rtol', 'default')}"
    )
    kind = "symmetric" if traits.symmetric else "not symmetric"
    why = "chosen by size and symmetry, petsc_options override it" if chosen else "as asked"
    return f"'{what}': {traits.size} dofs, {kind}, {traits.ranks} rank(s): {method} ({why})"


def announce(comm: MPI.Comm, text: str) -> None:
    """Say it once, on rank 0, in the log of the package (`logging.getLogger("hyco_fem")`, level INFO)."""
    if comm.rank == 0:
        log.info(text)


# -- memory ----------------------------------------------------------------------------------------------------


def factor_bytes(traits: Traits) -> float:
    """Memory that the factors of a direct solve will take on all ranks together.

    Nested dissection of a mesh with n vertices fills O(n log n) entries in 2D and O(n^{4/3}) in 3D (George 1973); the
    constants were measured with MUMPS on P1 and P2 meshes of triangles and tetrahedra, and hold within 20 %.
    """
    n = float(max(traits.size, 2))
    by_dimension = {1: 300.0 * n, 2: 40.0 * n * math.log2(n), 3: 115.0 * n ** (4 / 3)}
    return by_dimension[traits.tdim] * (1.0 if traits.symmetric else 1.7)


def free_memory() -> float:
    """Bytes that this node (or the job's control group on it) can still give; infinite where nobody says."""
    free = float("inf")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024.0 * float(line.split()[1])
        group = Path("/proc/self/cgroup").read_text().strip().split("::")[-1].lstrip("/")
    except (OSError, ValueError, IndexError):
        return free
    # A limit may be set on any group above, as batch systems do.
    folder = Path("/sys/fs/cgroup") / group
    for level in (folder, *folder.parents):
        try:
            limit = (level / "memory.max").read_text().strip()
            if limit != "max":
                used = float((level / "memory.current").read_text())
                stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
                # What the group holds of files can be given up.
                free = min(free, float(limit) - used + float(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
    return free


def check_memory(comm: MPI.Comm, options: Options, traits: Traits, what: str) -> None:
    """Refuse a factorisation that would take more than 80 % of the free memory of a node.  Collective.

    Raises:
        SolveError: on all ranks; names both numbers, and the iterative solver to use.
    """
    if options.get("ksp_type") != "preonly" or options.get("pc_type") not in ("lu", "cholesky"):
        return
    needed = factor_bytes(traits)
    if needed < 1e9:
        return  # not worth a look
    # Factors are spread evenly over ranks; those on one node share its memory.
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    share = needed * node.size / comm.size
    node.Free()
    free = comm.allreduce(free_memory(), op=MPI.MIN)
    worst = comm.allreduce(share, op=MPI.MAX)
    if worst > _MEMORY_SHARE * free:
        raise SolveError(
            f"factorising the matrix for '{what}' ({traits.size} dofs) will take about {worst / 1e9:.1f} GB on a node "
            f"with {free / 1e9:.1f} GB free; use an iterative solver, petsc_options={{'ksp_type': "
            f"'{'cg' if traits.symmetric else 'gmres'}', 'pc_type': 'gamg', 'ksp_rtol': 1e-10}}, or more nodes"
        )
