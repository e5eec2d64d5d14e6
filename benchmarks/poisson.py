"""What the benchmarks share: a problem, a way to time several things in turn, and processes of their own.

The problem: −∇·(κ∇u) = 10 on the unit square, u = 0 on the boundary, P1 on triangles, κ = 1 + Gaussian bumps.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.parallel import sum_gradients, sum_over_ranks

# What the default would be for a larger problem in 2D.
AMG = {
    "ksp_type": "cg",
    "ksp_rtol": 1e-10,
    "pc_type": "hypre",
    "pc_hypre_type": "boomeramg",
    "pc_hypre_boomeramg_strong_threshold": 0.25,
}

CENTRES = [[0.4, 0.6], [0.7, 0.3], [0.2, 0.2]]


class Poisson:
    """The problem with `cells` × `cells` squares, each cut in two triangles, and the data of fifty sensors."""

    def __init__(
        self,
        comm: MPI.Comm,
        cells: int,
        bumps: int = 1,
        trainable: tuple[str, ...] = ("amplitudes", "centres", "widths"),
        petsc_options: Mapping[str, object] | None = None,
    ) -> None:
        self.mesh = mesh.create_unit_square(comm, cells, cells)
        self.V = fem.functionspace(self.mesh, ("Lagrange", 1))
        u, kappa, v = fem.Function(self.V, name="u"), fem.Function(self.V, name="kappa"), ufl.TestFunction(self.V)
        F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        self.mesh.topology.create_connectivity(1, 2)
        self.boundary = fem.locate_dofs_topological(self.V, 1, mesh.exterior_facet_indices(self.mesh.topology))
        self.bumps = hf.GaussianBumps([2.0] * bumps, CENTRES[:bumps], 0.3, background=1.0, trainable=trainable)
        self.model = hf.PhysicalModel(
            F,
            u,
            [fem.dirichletbc(0.0, self.boundary, self.V)],
            {kappa: self.bumps},
            positive=[kappa],
            petsc_options=petsc_options,
        )

    @cached_property
    def data(self) -> hf.Data:
        points = hf.Points(self.mesh, np.random.default_rng(0).uniform(0.1, 0.9, (50, 2)))
        return hf.Data(points, np.full(50, 0.3))

    @property
    def dofs(self) -> int:
        """Number of dofs on all ranks."""
        return self.V.dofmap.index_map.size_global

    def move(self, k: int) -> None:
        """Change θ, so that no call finds its work done."""
        with torch.no_grad():
            self.bumps.amplitudes[0] = 2.0 + 0.01 * k

    def value(self) -> float:
        """Coefficients, forward solve, misfit; nothing is kept for a gradient."""
        with torch.no_grad():
            return float(sum_over_ranks(self.data.local_misfit(self.model(self.data.points)), self.model.comm))

    def value_and_gradient(self) -> np.ndarray:
        """The same, and the gradient of the misfit by θ, flat."""
        self.bumps.zero_grad()
        sum_over_ranks(self.data.local_misfit(self.model(self.data.points)), self.model.comm).backward()
        sum_gradients(self.bumps.parameters(), self.model.comm)
        return np.concatenate([p.grad.numpy().ravel() for p in self.bumps.parameters()])


def shortest(
    calls: Mapping[str, Callable[[], Any]], seconds: float, before: Callable[[int], None] = lambda k: None
) -> dict[str, float]:
    """Shortest time of each call, in seconds, over rounds of all calls in turn, two rounds at least.

    Processor time, of all threads together: waiting for a core on a machine that others use too is left out.
    The shortest is what the work takes when nothing else disturbs it.

    Args:
        seconds: How long to go on.
        before: Called with a new number before each call, to change what it works with; not timed.
    """
    found = dict.fromkeys(calls, np.inf)
    number, end = itertools.count(), time.process_time() + seconds
    for k in itertools.count():
        if k >= 2 and time.process_time() >= end:
            return found
        # Every other round backwards, so that none always profits from what its neighbour left in the caches.
        for name in list(calls)[:: 1 if k % 2 else -1]:
            before(next(number))
            start = time.process_time()
            calls[name]()
            found[name] = min(found[name], time.process_time() - start)
    raise AssertionError


def label(dofs: int) -> str:
    """4096 ↦ "4k", 1002001 ↦ "1M"."""
    if dofs >= 1e6:
        return f"{dofs / 1e6:.0f}M"
    return f"{dofs / 1e3:.0f}k" if dofs >= 1e3 else str(dofs)


def run_again(script: str, *arguments: object, ranks: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, or in as many as there are to be ranks; what it prints is captured."""
    python = [sys.executable, "-m", "mpi4py", script, *map(str, arguments)]
    command = python if ranks is None else ["mpirun", "-n", str(ranks), *python]
    return subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)


def last_line(run: subprocess.CompletedProcess[str]) -> Any:
    """What a script printed last, JSON."""
    if run.returncode != 0 or not run.stdout.strip():
        raise SystemExit(f"{' '.join(run.args)} failed with status {run.returncode}:\n{run.stdout}{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """Our variables without what an mpirun around us tells its ranks, which would take the new processes for those.

    MPI has set more of them in this process, which Python does not show, and must not be inherited either.
    """
    kept = dict(os.environ)
    if {"PMIX_RANK", "PMI_RANK"} & set(kept):
        told = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDRA_")
        mapping = ("PRTE_MCA_rmaps_default_mapping_policy", "PRTE_MCA_mapby")  # Open MPI 5 and 6
        settings = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_btl", *mapping)
        kept = {k: v for k, v in kept.items() if not k.startswith(told) or k.startswith(settings)}
    # For Open MPI on a machine that others use too: a rank that waits gives way, and goes where there is room.
    return {"OMPI_MCA_mpi_yield_when_idle": "1", "PRTE_MCA_hwloc_default_binding_policy": "none"} | kept
