"""What does a gradient through time cost, in solves of the same problem, and what memory do the steps take?

The heat equation ∂u/∂t = ∇·(κ ∇u) + f with an unknown field κ (Gaussian bumps) on a unit square of P1 triangles, by
Crank–Nicolson: one factorisation for all steps.  The value is all of it, from θ to the misfit at 100 sensors in space
and time.  For each schedule of checkpoints,

    memory, revolve, budget, disk    (value + gradient) / value
    …_kept_mb                        what the kept steps take in memory

Shortest processor times, in turn, with other parameters each time.  All gradients are checked against each other.

    python3 benchmarks/transient_cost.py [--cells 130] [--steps 200] [--snapshots 10] [--budget "2 MB"]
"""

from __future__ import annotations

import argparse
import json

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from poisson import shortest
from ufl import dx, grad, inner

import hyco_fem as hf


def model_of(cells: int, steps: int, checkpoints: object) -> tuple[hf.TransientModel, hf.Data]:
    """The model, and data at 100 sensors in space and time."""
    square = mesh.create_unit_square(MPI.COMM_SELF, cells, cells)
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


class Problem:
    """The model with one schedule: its value, and value and gradient, at ever new θ."""

    def __init__(self, cells: int, steps: int, checkpoints: object) -> None:
        self.model, self.data = model_of(cells, steps, checkpoints)
        self.theta = list(self.model.parameters())
        self._start = [p.detach().clone() for p in self.theta]
        self.kept = 0

    def move(self, k: int) -> None:
        """To another θ: at the same one the last factors would serve again."""
        with torch.no_grad():
            for p, start in zip(self.theta, self._start, strict=True):
                p.copy_(start * (1.0 + 1e-6 * k))

    def value(self) -> torch.Tensor:
        """The misfit."""
        return self.data.local_misfit(self.model(self.data.points))

    def value_and_gradient(self) -> np.ndarray:
        """∇ of the misfit by all parameters."""
        for p in self.theta:
            p.grad = None
        J = self.value()
        self.kept = max(self.kept, self.model.solver.state.storage.bytes)
        J.backward()
        return np.concatenate([p.grad.numpy().ravel() for p in self.theta])


def report(cells: int, steps: int, snapshots: int, budget: str, seconds: float) -> dict[str, object]:
    """Ratios and memory of all schedules."""
    schedules = {
        "memory": hf.InMemory(),
        "revolve": hf.Revolve(snapshots),
        "budget": hf.MemoryBudget(budget),
        "disk": hf.OnDisk(),
    }
    problems = {name: Problem(cells, steps, schedule) for name, schedule in schedules.items()}
    expected = problems["memory"].value_and_gradient()
    for problem in problems.values():  # also compiles and fills caches
        problem.value()
        np.testing.assert_allclose(problem.value_and_gradient(), expected, rtol=1e-10)
    calls = {"value": problems["memory"].value} | {n: p.value_and_gradient for n, p in problems.items()}
    time = shortest(calls, seconds, before=lambda k: [p.move(k) for p in problems.values()])
    found: dict[str, object] = {"dofs": problems["memory"].model.V.dofmap.index_map.size_global, "steps": steps}
    found["value_s"] = round(time["value"], 3)
    for name, problem in problems.items():
        found[name] = round(time[name] / time["value"], 3)
        found[f"{name}_kept_mb"] = round(problem.kept / 1e6, 2)
    found["budget_mb"] = hf.MemoryBudget(budget).bytes / 1e6
    found["budget_is"] = problems["budget"].model.solver.checkpoints.describe(problems["budget"].model.solver.size)
    found["solver"] = problems["memory"].model.description
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=130, help="squares along a side: 130 give 17 161 dofs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--snapshots", type=int, default=10, help="checkpoints of Revolve")
    parser.add_argument("--budget", default="2 MB", help="of the schedule that is chosen from it")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long to time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(report(options.cells, options.steps, options.snapshots, options.budget, options.seconds)))
