"""What does one value and gradient of case 4 take: seconds on one core, and memory?

Gray–Scott over T = 2000 as benchmarks/comparisons/gray_scott.py inverts it (P3 on 48 cells of an eighth of the square,
BDF3 with graded steps, all steps in memory): the mean square at 5000 places and times, and its gradient by D_u and D_v.

    python3 benchmarks/gray_scott_cost.py [--cells 48] [--degree 3] [--end 2000]
        {"dofs": …, "steps": …, "value_s": …, "value_and_gradient_s": …, "peak_gb": …}

Processor time; peak_gb is the largest resident size of the process, with everything that it imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from mpi4py import MPI

import numpy as np
import torch
from comparisons.gray_scott import CELLS, DEGREE, END, demo, sharp

import hyco_fem as hf


def report(cells: int, degree: int, end: float) -> dict[str, float]:
    """One value and gradient, at the true D."""
    modules = demo.diffusivities(*demo.TRUE)
    model = demo.reactor(MPI.COMM_SELF, modules, end, cells=cells, degree=degree, start=sharp)
    rng = np.random.default_rng(0)
    places = demo.fold(rng.uniform(-demo.HALF, demo.HALF, (5000, 2)))
    points = hf.SpaceTimePoints(model.V.mesh, places, rng.uniform(0.0, end, 5000))
    model.observe([])  # compiles, and is not counted
    start = time.process_time()
    J = model(points).square().mean()
    value = time.process_time() - start
    J.backward()
    both = time.process_time() - start
    return {
        "dofs": 2 * model.V.dofmap.index_map.size_global,
        "steps": model.grid.n,
        "value_s": round(value, 2),
        "value_and_gradient_s": round(both, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--degree", type=int, default=DEGREE)
    parser.add_argument("--end", type=float, default=END)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(report(options.cells, options.degree, options.end)))
