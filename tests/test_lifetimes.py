"""Long runs: memory stays flat, and nothing waits for the garbage collector, whose timing differs between ranks."""

from __future__ import annotations

import gc
import resource
import weakref
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
import ufl
from cases import dirichlet, poisson, square
from dolfinx import fem

import hyco_fem as hf

PLACES = np.random.default_rng(0).uniform(0.1, 0.9, (10, 2))


def resident() -> float:
    """Resident memory of this rank in bytes."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth(comm: MPI.Comm, work: Callable[[], object], warm_up: int, times: int) -> float:
    """Bytes that `times` repetitions of work add, on the rank where it is most."""
    for _ in range(warm_up):
        work()
    gc.collect()
    before = resident()
    for _ in range(times):
        work()
    gc.collect()
    return comm.allreduce(resident() - before, op=MPI.MAX)


@pytest.mark.slow
def test_memory_is_flat_over_2000_rounds(comm: MPI.Comm) -> None:
    physical = poisson(comm)
    data = hf.Data(hf.Points(physical.V.mesh, PLACES), np.full(10, 0.1))
    game = hf.Hyco(physical, hf.MLP(2, width=8, depth=1), data, hf.RandomGhosts(20))
    one = growth(comm, lambda: game.round(game.next_round), 200, 2000)
    assert one < 2e6, f"{one / 2000:.0f} bytes a round"


@pytest.mark.slow
def test_memory_is_flat_over_newton_solves_blocks_and_hessians(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 12), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - 5.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.GaussianBumps([2.0], [[0.4, 0.6]], background=1.0)})
    points = hf.Points(V.mesh, PLACES)
    data = hf.Data(points, np.full(10, 0.1))

    def work() -> None:
        model(points).square().sum().backward()
        model.jacobian(points)
        hessian = hf.MisfitHessian(model, data, "full")
        hessian.product(hessian.gradient)

    assert growth(comm, work, 30, 150) < 2e6


@pytest.mark.slow
def test_memory_is_flat_over_models_that_are_closed(comm: MPI.Comm) -> None:
    domain = square(comm, 16)
    V = fem.functionspace(domain, ("Lagrange", 1))

    def work() -> None:
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
        F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
        model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Scalar(2.0)})
        model.solve().sum().backward()
        model.close()

    assert growth(comm, work, 20, 100) < 4e6


def test_a_model_is_gone_when_its_last_name_is_without_the_collector(comm: MPI.Comm) -> None:
    """No reference cycle keeps PETSc objects alive until a collection that ranks would make at different times."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - 5.0 * v) * ufl.dx
    gc.collect()
    gc.disable()
    try:
        model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Scalar(2.0)})
        J = model.solve().sum()
        J.backward()
        gone = [weakref.ref(model), weakref.ref(model.solver), weakref.ref(model.solver.newton)]
        del J, model
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_a_closed_model_can_be_closed_again_and_leaves_no_options(comm: MPI.Comm) -> None:
    before = PETSc.Options().getAll()
    model = poisson(comm)
    model.solve()
    model.close()
    model.close()
    assert PETSc.Options().getAll() == before
