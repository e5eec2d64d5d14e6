"""What does a gradient through time cost, in solves of the same problem, and what memory do the steps take?

The heat equation ∂u/∂t = ∇·(κ ∇u) + f with an unknown field κ (Gaussian bumps) on a unit square of P1 triangles, by
Crank–Nicolson: one factorisation for all steps.  For each schedule of checkpoints the ratio (value + gradient) / value
is told, both of the misfit at sensors in space and time, and the bytes that the kept steps take.

    python3 benchmarks/transient_cost.py [--cells 130] [--steps 200] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from ufl import dx, grad, inner

import hyco_fem as hf


def model_of(cells: int, steps: int, checkpoints: object) -> tuple[hf.TransientModel, hf.Data]:
    """The model, and data at 100 sensors in space and time."""
    square = mesh.create_unit_square(MPI.COMM_WORLD, cells, cells)
    V = fem.functionspace(square, ("Lagrange", 1))
    u, u_t, v = fem.Function(V, name="u"), fem.Function(V, name="u_t"), ufl.TestFunction(V)
    kappa = fem.Function(V, name="kappa")
    square.topology.create_connectivity(1, 2)
    rim = fem.locate_dofs_topological(V, 1, mesh.exterior_facet_indices(square.topology))
    bc = fem.dirichletbc(0.0, rim, V)
    F = u_t * v * dx + kappa * inner(grad(u), grad(v)) * dx - v * dx
    module = hf.GaussianBumps([1.0, 0.5], [[0.3, 0.3], [0.7, 0.6]], 0.3, background=0.5)
    model = hf.TransientModel(
        F, u, u_t, [bc], {kappa: module}, interval=(0.0, 1.0), dt=1.0 / steps, checkpoints=checkpoints
    )
    rng = np.random.default_rng(0)
    points = hf.SpaceTimePoints(square, rng.random((100, 2)), rng.random(100))
    return model, hf.Data(points, np.zeros(100))


def seconds(job: Callable[[], object], comm: MPI.Comm) -> float:
    """Of the slowest rank."""
    comm.Barrier()
    start = time.perf_counter()
    job()
    return comm.allreduce(time.perf_counter() - start, op=MPI.MAX)


def measure(cells: int, steps: int, checkpoints: object, repeats: int) -> dict[str, object]:
    """Ratio and memory for one schedule."""
    model, data = model_of(cells, steps, checkpoints)
    theta = list(model.parameters())

    def move() -> None:
        # Another θ each time, or the factors of the last one would serve.
        with torch.no_grad():
            for p in theta:
                p.mul_(1.0 + 1e-6)

    def value() -> torch.Tensor:
        return data.local_misfit(model(data.points))

    kept = 0

    def value_and_gradient() -> None:
        nonlocal kept
        J = value()
        kept = max(kept, model.solver.state.storage.bytes)
        J.backward()
        hf.parallel.sum_gradients(theta, model.comm)

    value_and_gradient()  # compiles, and fills caches
    ratios, times = [], []
    for _ in range(repeats):
        move()
        alone = seconds(value, model.comm)
        move()
        both = seconds(value_and_gradient, model.comm)
        ratios.append(both / alone)
        times.append(alone)
    index_map = model.V.dofmap.index_map
    result = {
        "benchmark": "transient_cost",
        "dofs": index_map.size_global,
        "steps": steps,
        "ranks": model.comm.size,
        "checkpoints": type(model.solver.checkpoints).__name__,
        "snapshots": getattr(model.solver.checkpoints, "snapshots", steps),
        "value_s": round(statistics.median(times), 4),
        "ratio": round(statistics.median(ratios), 3),
        "kept_mb": round(kept / 1e6, 2),
    }
    if isinstance(checkpoints, hf.MemoryBudget):
        result["budget_mb"] = checkpoints.bytes / 1e6
    model.close()
    return result


def main() -> None:
    """All schedules, one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=130, help="along each side: 130 give 17 161 dofs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    hf.limit_threads()
    for checkpoints in (hf.InMemory(), hf.Revolve(10), hf.MemoryBudget("2 MB"), hf.OnDisk()):
        line = measure(arguments.cells, arguments.steps, checkpoints, arguments.repeats)
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
