"""What does the same gradient cost in torch-fem and in JAX-FEM?

Poisson, −∇·(κ∇u) = 10 on the unit square, u = 0 on the boundary, P1 on the same triangles; κ a Gaussian bump on a
background of one, taken at the nodes; J = mean over the nodes of (u − 0.3)².  Timed: J and its gradient by the four
parameters of the bump (amplitude, centre, width), our time over theirs, so that below one we are faster.

Everybody works in double precision, on one core, with a solver as exact as ours: all gradients agree to 1e-8, or there
is no number.  hyco_fem uses the solver it chooses by itself (sparse Cholesky at these sizes), torch-fem its own choice
too (SciPy's sparse LU below ten thousand dofs, conjugate gradients with multigrid beyond).  JAX-FEM's own choice,
BiCGSTAB with Jacobi, is not up to the larger meshes; it gets PETSc's GMRES with multigrid, the fastest of its solvers
that we found.  Matrices are assembled and factorised in each call; compiling and other work done once is left out.

Shortest processor times, in turn, in a process for each peer and size.  A call that takes more than a minute is given
up.  What is missing, given up or wrong is null, with the reason under "notes".  Nothing else needs the peers.  They are
installed next to DOLFINx and torch, in a virtual environment made with --system-site-packages, by

    pip install "torch-fem>=0.14" "jax-fem==0.0.11" jax meshio pyfiglet

JAX-FEM names no dependencies itself; its version 0.0.12 needs a newer petsc4py than that of Debian 13.

    python3 benchmarks/peers.py      {"torch_fem_4k": …, "jax_fem_4k": …, …, "notes": {…}}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import torch
from poisson import Poisson, label, last_line, run_again, shortest

# Seconds of processor time after which a call is given up.
LIMIT = 60
TOO_LONG = f"one value and gradient takes more than {LIMIT} s"

# How far gradients may differ, relative to the largest entry.
AGREEMENT = 1e-8

# Of JAX-FEM's forward and adjoint solves; it reads the tolerance from PETSc's options, which we use with a prefix only.
JAX_LINEAR = {"petsc_solver": {"ksp_type": "gmres", "pc_type": "hypre"}}
JAX_RTOL = 1e-10

START = np.array([2.0, 0.4, 0.6, 0.3])


class Ours:
    """hyco_fem."""

    def __init__(self, problem: Poisson) -> None:
        self.problem = problem

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        bumps = self.problem.bumps
        with torch.no_grad():
            bumps.amplitudes[0], bumps.widths[0] = float(theta[0]), float(theta[3])
            bumps.centres[0] = torch.from_numpy(theta[1:3])
        bumps.zero_grad()
        (self.problem.model.solve() - 0.3).square().mean().backward()
        return np.concatenate([p.grad.numpy().ravel() for p in (bumps.amplitudes, bumps.centres, bumps.widths)])


class Triangles:
    """The mesh as arrays: nodes (n, 2), counter-clockwise triangles (m, 3), which nodes are on the boundary (n,)."""

    def __init__(self, problem: Poisson) -> None:
        self.x = problem.V.tabulate_dof_coordinates()[:, :2].copy()
        cells = problem.V.dofmap.list.copy()
        a, b = self.x[cells[:, 1]] - self.x[cells[:, 0]], self.x[cells[:, 2]] - self.x[cells[:, 0]]
        clockwise = a[:, 0] * b[:, 1] < a[:, 1] * b[:, 0]
        cells[clockwise] = cells[clockwise][:, [0, 2, 1]]
        self.cells = cells
        self.boundary = np.zeros(len(self.x), dtype=bool)
        self.boundary[problem.boundary] = True


class TorchFEM:
    """torch-fem: stationary heat conduction.  κ is the mean of its nodes on each triangle, as exact as ours."""

    module = "torchfem"

    def __init__(self, mesh: Triangles) -> None:
        from torchfem import PlanarHeat
        from torchfem.materials import IsotropicConductivity2D

        torch.set_default_dtype(torch.float64)  # it has no other way to ask for double precision
        self.material = IsotropicConductivity2D
        self.x, self.cells = torch.from_numpy(mesh.x), torch.from_numpy(mesh.cells).long()
        self.model = PlanarHeat(self.x, self.cells, IsotropicConductivity2D(torch.ones(len(self.cells))))
        self.model.heat_flux = self.model.integrate_body_load(10.0)
        self.model.constraints = torch.from_numpy(mesh.boundary)[:, None]

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        t = torch.from_numpy(theta).requires_grad_()
        bump = t[0] * torch.exp(-(self.x - t[1:3]).square().sum(1) / t[3].square())
        kappa = (1.0 + bump)[self.cells].mean(1)
        self.model.material = self.material(kappa)
        u = self.model.solve(differentiable_parameters=kappa)[0]
        (u - 0.3).square().mean().backward()
        return t.grad.numpy()


class JaxFEM:
    """JAX-FEM: a user's Problem with κ at the one quadrature point of each triangle."""

    module = "jax_fem"

    def __init__(self, mesh: Triangles) -> None:
        import jax
        import jax.numpy as jnp
        from jax_fem.generate_mesh import Mesh
        from jax_fem.problem import Problem
        from jax_fem.solver import ad_wrapper

        PETSc.Options()["ksp_rtol"] = JAX_RTOL
        logging.getLogger("jax_fem").setLevel(logging.ERROR)
        x, cells = jnp.asarray(mesh.x), jnp.asarray(mesh.cells)

        class Conduction(Problem):
            def get_tensor_map(self) -> Callable:
                return lambda grad, kappa: kappa * grad

            def get_mass_map(self) -> Callable:
                return lambda u, x, kappa: -10.0 * jnp.ones_like(u)

            def set_params(self, theta: Any) -> None:
                bump = theta[0] * jnp.exp(-((x - theta[1:3]) ** 2).sum(1) / theta[3] ** 2)
                self.internal_vars = [(1.0 + bump)[cells].mean(1)[:, None]]

        def at_edge(p: Any) -> Any:
            return jnp.any(jnp.isclose(p, 0.0) | jnp.isclose(p, 1.0))

        dirichlet = [[at_edge], [0], [lambda p: 0.0]]
        problem = Conduction(Mesh(mesh.x, mesh.cells), vec=1, dim=2, ele_type="TRI3", dirichlet_bc_info=dirichlet)
        solve = ad_wrapper(problem, dict(JAX_LINEAR), dict(JAX_LINEAR))
        self.value_and_grad = jax.value_and_grad(lambda theta: ((solve(theta)[0] - 0.3) ** 2).mean())

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        return np.asarray(self.value_and_grad(theta)[1])


PEERS = {"torch_fem": TorchFEM, "jax_fem": JaxFEM}


def against(name: str, cells: int, seconds: float) -> dict[str, Any]:
    """Our time over that of one peer, in this process."""
    with contextlib.redirect_stdout(sys.stderr):  # the peers talk
        problem = Poisson(MPI.COMM_SELF, cells)
        ours, theirs = Ours(problem), PEERS[name](Triangles(problem))
        expected = ours(START)
        # Without a handler the signal ends this process, whatever library it is in.
        signal.alarm(5 * LIMIT)
        start = time.process_time()
        found = theirs(START)
        signal.alarm(0)
        if time.process_time() - start > LIMIT:
            raise TimeoutError(TOO_LONG)
        difference = float(abs(found - expected).max() / abs(expected).max())
        theta = START.copy()

        def move(k: int) -> None:
            theta[0] = START[0] + 0.01 * k

        took = shortest({"ours": lambda: ours(theta), "theirs": lambda: theirs(theta)}, seconds, before=move)
    return {"ratio": took["ours"] / took["theirs"], "difference": difference, **took}


def compare(name: str, cells: int, seconds: float) -> tuple[float | None, str]:
    """Our time over theirs and a remark, measured in another process."""
    run = run_again(__file__, "--against", name, "--cells", cells, "--seconds", seconds)
    if run.returncode == -signal.SIGALRM:
        return None, TOO_LONG
    if run.returncode != 0:
        return None, _error(run.stderr)
    found = last_line(run)
    if not found["difference"] < AGREEMENT:
        return None, f"its gradient differs from ours by {found['difference']:.1e}"
    return round(found["ratio"], 4), f"{1e3 * found['ours']:.1f} ms over {1e3 * found['theirs']:.1f} ms"


def missing(module: str) -> str | None:
    """Why a module cannot be imported."""
    run = run_again("-c", f"import {module}")
    return None if run.returncode == 0 else _error(run.stderr)


def _error(stderr: str) -> str:
    """The line of a traceback that says what is wrong."""
    lines = stderr.strip().splitlines() or ["it fails without a word"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[63, 256, 512], help="squares along a side")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time each peer at each size")
    parser.add_argument("--against", choices=PEERS, help="(internal) measure one peer in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    if options.against:
        if hasattr(os, "sched_setaffinity"):  # one core for all the threads of everybody
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        report = against(options.against, *options.cells, options.seconds)
    else:
        notes = {}
        for name, peer in PEERS.items():
            why = missing(peer.module)
            for cells in options.cells:
                key = f"{name}_{label((cells + 1) ** 2)}"
                report[key], notes[key] = (None, why) if why else compare(name, cells, options.seconds)
        report["notes"] = notes
    print(json.dumps(report, ensure_ascii=False))
