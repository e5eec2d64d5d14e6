"""What does the computed constant C_h of the explicit bound take?

The unit square in right triangles of leg 1/n: two factorisations, and two sparse solves for each product of the
eigenvalue solver.  On the number of ranks that it is started with.

    mpirun -n 2 python3 -m mpi4py benchmarks/explicit_bound.py [--cells 160] [--verify]
        {"cells": …, "ranks": …, "seconds": …, "products": …, "C_h": …, "C_h_over_h": …, "verified": …}

Wall time, as ranks wait for each other; `C_h_over_h` with h the diameter of a cell, √2/n.
"""

from __future__ import annotations

import argparse
import json
import time

from mpi4py import MPI

import torch
from dolfinx import mesh

from hyco_fem.accuracy.bound import explicit_bound


def report(comm: MPI.Comm, cells: int, verify: bool) -> dict[str, float]:
    """C_h for `cells` squares along a side, each cut in two, and the seconds it took."""
    explicit_bound(mesh.create_unit_square(comm, 4, 4))  # compiles, and is not counted
    square = mesh.create_unit_square(comm, cells, cells)
    comm.Barrier()
    start = time.perf_counter()
    bound = explicit_bound(square, verify=verify)
    comm.Barrier()
    return {
        "cells": bound.cells,
        "ranks": comm.size,
        "seconds": round(time.perf_counter() - start, 2),
        "products": bound.products,
        "C_h": bound.C_h,
        "C_h_over_h": bound.per_h,
        "verified": bound.verified,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=160, help="squares along a side (160: 51,200 triangles)")
    parser.add_argument("--verify", action="store_true", help="also count the eigenvalues above")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = report(MPI.COMM_WORLD, options.cells, options.verify)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found))
