"""What does PhysicalModel cost over the same work written by hand?

Value and gradient by θ of a data misfit, Poisson with a Gaussian conductivity on P1 triangles: through PhysicalModel,
Points and torch, and directly, with the same assembly and the same PETSc solver, in petsc4py and NumPy.  Both are
checked against each other, then timed in turn; the overhead is the ratio of the shortest processor times, less one: the
shortest is what the work takes when nothing else disturbs the machine.

    python3 benchmarks/bridge_overhead.py        {"overhead_4k": …, "overhead_66k": …}
"""

import json
import time

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from dolfinx.fem import petsc as fem_petsc

import hyco_fem as hf
from hyco_fem.pde.choice import Traits, default_options
from hyco_fem.pde.linear import OptionSet

A0, C0, W0 = 2.0, np.array([0.4, 0.6]), 0.3


class Problem:
    """The common part: mesh, form, sensors."""

    def __init__(self, cells: int) -> None:
        self.mesh = mesh.create_unit_square(MPI.COMM_SELF, cells, cells)
        self.V = fem.functionspace(self.mesh, ("Lagrange", 1))
        self.u, self.kappa = fem.Function(self.V, name="u"), fem.Function(self.V, name="kappa")
        v = ufl.TestFunction(self.V)
        self.F = ufl.inner(self.kappa * ufl.grad(self.u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        self.mesh.topology.create_connectivity(1, 2)
        dofs = fem.locate_dofs_topological(self.V, 1, mesh.exterior_facet_indices(self.mesh.topology))
        self.bcs = [fem.dirichletbc(0.0, dofs, self.V)]
        self.dofs = dofs
        self.points = hf.Points(self.mesh, np.random.default_rng(0).uniform(0.1, 0.9, (50, 2)))
        self.y = np.full(50, 0.3)


class Direct:
    """By hand: petsc4py, DOLFINx and NumPy."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        u, v = ufl.TrialFunction(p.V), ufl.TestFunction(p.V)
        self.a = fem.form(ufl.inner(p.kappa * ufl.grad(u), ufl.grad(v)) * ufl.dx)
        self.L = fem.form(10.0 * v * ufl.dx)
        self.adjoint = fem.Function(p.V)
        self.g = fem.form(v * ufl.inner(ufl.grad(p.u), ufl.grad(self.adjoint)) * ufl.dx)
        self.A = fem_petsc.create_matrix(self.a)
        self.b, self.dk = fem.Function(p.V), fem.Function(p.V)
        self.A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        n = p.V.dofmap.index_map.size_global
        options = OptionSet(default_options(Traits(n, ranks=1, tdim=2, symmetric=True, positive=True)))
        self.ksp = PETSc.KSP().create(MPI.COMM_SELF)
        self.ksp.setOptionsPrefix(options.prefix)
        self.ksp.setOperators(self.A)
        with options:
            self.ksp.setFromOptions()
        self.x = p.V.tabulate_dof_coordinates()[:, :2]
        self.B = p.points.observation(p.V).matrix
        self.load = fem.assemble_vector(self.L).array.copy()  # constant: assembled once, as in the package

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        p = self.p
        d = self.x - theta[1:3]
        e = np.exp(-(d**2).sum(1) / theta[3] ** 2)
        p.kappa.x.array[:] = 1.0 + theta[0] * e
        self.A.zeroEntries()
        fem_petsc.assemble_matrix(self.A, self.a, bcs=p.bcs)
        self.A.assemble()
        self.ksp.setOperators(self.A)
        b = self.b.x.petsc_vec
        self.b.x.array[:] = self.load
        fem_petsc.apply_lifting(b, [self.a], bcs=[p.bcs])
        fem_petsc.set_bc(b, p.bcs)
        self.ksp.solve(b, p.u.x.petsc_vec)
        r = self.B @ p.u.x.array - p.y
        self.b.x.array[:] = self.B.T @ (2.0 * r / len(r))
        self.b.x.array[p.dofs] = 0.0
        self.ksp.solve(b, self.adjoint.x.petsc_vec)  # A is symmetric
        self.dk.x.array[:] = 0.0
        fem_petsc.assemble_vector(self.dk.x.petsc_vec, self.g)
        m = -self.dk.x.array * e
        s = theta[0] * m
        gradient = np.array([m.sum(), *(2 * s @ d / theta[3] ** 2), 2 * s @ (d**2).sum(1) / theta[3] ** 3])
        return float(r @ r / len(r)), gradient


class Bridged:
    """Through the package."""

    def __init__(self, p: Problem) -> None:
        self.bump = hf.GaussianBumps([A0], [C0], W0, background=1.0, trainable=("amplitudes", "centres", "widths"))
        self.model = hf.PhysicalModel(p.F, p.u, p.bcs, {p.kappa: self.bump}, positive=[p.kappa])
        self.data = hf.Data(p.points, p.y)
        self.parts = (self.bump.amplitudes, self.bump.centres, self.bump.widths)
        self.values = [part.detach().numpy() for part in self.parts]  # the parameters' own memory

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        for values, part in zip(self.values, (theta[0], theta[1:3], theta[3]), strict=True):
            values[...] = part
        for p in self.parts:
            p.grad = None
        J = self.data.local_misfit(self.model(self.data.points))
        J.backward()
        return float(J.detach()), np.concatenate([p.grad.numpy().ravel() for p in self.parts])


def overhead(cells: int, pairs: int) -> float:
    """Shortest time through the bridge over shortest time by hand, less one."""
    problem = Problem(cells)
    direct, bridged = Direct(problem), Bridged(problem)
    theta = np.array([A0, *C0, W0])
    (J0, g0), (J1, g1) = direct.value_and_gradient(theta), bridged.value_and_gradient(theta)
    np.testing.assert_allclose(J1, J0, rtol=1e-9)
    np.testing.assert_allclose(g1, g0, rtol=1e-7)
    shortest = {direct: np.inf, bridged: np.inf}
    for k in range(pairs):
        theta = np.array([A0 + 0.01 * (k % 7), *C0, W0])
        # Either goes first in turn, so that neither profits from what the other left in the caches.
        for side in (direct, bridged) if k % 2 else (bridged, direct):
            start = time.process_time()
            side.value_and_gradient(theta)
            shortest[side] = min(shortest[side], time.process_time() - start)
    return shortest[bridged] / shortest[direct] - 1.0


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"overhead_4k": round(overhead(63, 300), 4), "overhead_66k": round(overhead(256, 8), 4)}))
