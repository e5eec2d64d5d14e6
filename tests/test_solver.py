"""The solver behind the physical model: which one is chosen, what it refuses, and what it leaves as it was."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, dirichlet, poisson, square
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.pde import choice
from hyco_fem.pde.choice import Traits, default_options, direct_options
from hyco_fem.pde.linear import LinearSolver

PLANE = Traits(size=10_000, ranks=1, tdim=2, symmetric=True, positive=True)


def helmholtz(comm: MPI.Comm, k: float, **options: object) -> hf.PhysicalModel:
    """−Δu − k²u = 1: symmetric and indefinite for large k."""
    V = fem.functionspace(square(comm, 8), ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    F = (ufl.inner(ufl.grad(u), ufl.grad(v)) - k**2 * u * v - v) * ufl.dx
    return hf.PhysicalModel(F, u, [dirichlet(V)], petsc_options=options or None)


# -- the choice ------------------------------------------------------------------------------------------------


def test_the_default_goes_by_size_symmetry_dimension_and_ranks() -> None:
    small = default_options(replace(PLANE, size=500))
    assert (small["ksp_type"], small["pc_type"]) == ("preonly", "lu")
    assert "pc_factor_mat_solver_type" not in small
    assert direct_options(PLANE)["pc_type"] == "cholesky"
    assert direct_options(replace(PLANE, symmetric=False))["pc_type"] == "lu"
    assert default_options(replace(PLANE, size=500, positive=False))["pc_factor_mat_solver_type"] == "mumps"
    assert default_options(replace(PLANE, size=500, ranks=2))["pc_factor_mat_solver_type"] == "mumps"
    large = default_options(replace(PLANE, size=2_000_000))
    assert (large["ksp_type"], large["pc_type"]) == ("cg", "hypre")
    assert default_options(replace(PLANE, size=2_000_000, symmetric=False))["ksp_type"] == "gmres"
    assert default_options(replace(PLANE, size=2_000_000, positive=False))["ksp_type"] == "gmres"
    assert default_options(replace(PLANE, size=2_000_000, vector=True))["pc_type"] == "gamg"
    assert default_options(replace(PLANE, size=2_000_000, mixed=True))["ksp_type"] == "preonly"
    assert default_options(replace(PLANE, size=100_000))["ksp_type"] == "preonly"
    assert default_options(replace(PLANE, size=100_000, tdim=3))["ksp_type"] == "cg"


def test_symmetry_is_seen_for_any_coefficients_not_at_the_start_only(comm: MPI.Comm) -> None:
    """The operator of Navier–Stokes, or of advection with a velocity that starts at zero, is not symmetric."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, speed = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Constant(V.mesh, 0.0)
    diffusion = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    assert hf.SteadySolver(diffusion, u, [dirichlet(V)]).traits.symmetric
    assert not hf.SteadySolver(diffusion + speed * u.dx(0) * v * ufl.dx, u, [dirichlet(V)]).traits.symmetric
    assert float(speed) == 0.0
    assert not hf.SteadySolver(diffusion + u * u.dx(0) * v * ufl.dx, u, [dirichlet(V)]).traits.symmetric
    assert np.all(u.x.array == 0.0)


def test_the_sign_of_the_diagonal_is_asked_of_the_values_at_hand(comm: MPI.Comm) -> None:
    """Poisson's ratio is 0.3 by its module, and a random one above 1/2 would make elasticity indefinite."""
    problem = hf.catalogue.elasticity(square(comm), nu=0.2)
    problem.coefficients["nu"].x.array[:] = 0.0
    model = hf.PhysicalModel.of(problem, {"nu": hf.Scalar(0.3)})
    assert model.solver.traits.positive
    assert model.solver.traits.symmetric
    np.testing.assert_array_equal(problem.coefficients["nu"].x.array, 0.3)
    assert not hf.PhysicalModel.of(
        hf.catalogue.stokes(square(comm), conditions=[hf.Dirichlet(0.0)], pin_pressure=True)
    ).solver.traits.positive


def test_the_choice_is_said_once_and_can_be_overridden(comm: MPI.Comm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hyco_fem"):
        model = poisson(comm)
        model.solve()
        model.solve()
    said = [r.message for r in caplog.records if r.name == "hyco_fem"]
    assert said == ([model.description] if comm.rank == 0 else [])
    assert "36 dofs, symmetric" in model.description
    other = poisson(comm, petsc_options={"ksp_type": "gmres", "pc_type": "jacobi", "ksp_rtol": 1e-12})
    assert "gmres + jacobi" in other.description
    assert other.solver.linear.ksp.getType() == "gmres"
    np.testing.assert_allclose(other.solve().detach().numpy(), model.solve().detach().numpy(), atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"ksp_type": "cg", "pc_type": "hypre", "ksp_rtol": 1e-12},
        {"ksp_type": "gmres", "pc_type": "gamg", "ksp_rtol": 1e-12},
        direct_options(PLANE),
        direct_options(replace(PLANE, symmetric=False)),
        {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "superlu_dist"},
    ],
    ids=lambda o: f"{o['ksp_type']}-{o['pc_type']}-{o.get('pc_factor_mat_solver_type', '')}",
)
def test_all_solvers_agree_on_value_gradient_and_jacobian(comm: MPI.Comm, options: dict) -> None:
    points = np.random.default_rng(0).uniform(0.1, 0.9, (7, 2))

    def numbers(model: hf.PhysicalModel) -> tuple[np.ndarray, list[float], np.ndarray]:
        at = hf.Points(model.V.mesh, points)
        J = model(at).square().sum()
        for p in model.parameters():
            p.grad = None
        J.backward()
        gradient = [comm.allreduce(float(g)) for p in model.parameters() for g in p.grad.ravel()]
        return at.gather(model(at)), gradient, comm.allreduce(np.abs(model.jacobian(at).matrix).sum(0))

    for found, expected in zip(numbers(poisson(comm, petsc_options=options)), numbers(poisson(comm)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_multigrid_for_elasticity_knows_the_rigid_motions(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 24), ("Lagrange", 1, (2,)))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    eps, sym = ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))
    F = ufl.inner(eps, sym) * ufl.dx + 50.0 * ufl.div(u) * ufl.div(v) * ufl.dx - v[1] * ufl.dx
    left = fem.locate_dofs_topological(V, 1, mesh.locate_entities_boundary(V.mesh, 1, lambda x: np.isclose(x[0], 0)))
    bcs = [fem.dirichletbc(np.zeros(2), left, V)]

    def iterations(rigid: bool) -> int:
        solver = hf.SteadySolver(F, u, bcs, petsc_options={"ksp_type": "cg", "pc_type": "gamg", "ksp_rtol": 1e-10})
        if not rigid:
            constants = PETSc.NullSpace().create(constant=True, comm=comm)
            solver.linear.A.setNearNullSpace(constants)
        solver.forward([])
        return solver.linear.ksp.getIterationNumber()

    assert iterations(rigid=True) < iterations(rigid=False)


def test_a_warm_start_saves_iterations(comm: MPI.Comm) -> None:
    options = {"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-10, "ksp_norm_type": "unpreconditioned"}
    cold, warm = poisson(comm, petsc_options=options), poisson(comm, petsc_options=options, warm_start=True)
    counts = []
    for model in (cold, warm):
        model.solve()
        model.solve()
        counts.append(model.solver.linear.ksp.getIterationNumber())
    assert counts[1] < counts[0]
    assert counts[1] <= 1


def test_newton_starts_from_the_last_solution_where_asked(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    iterations = []
    for warm in (False, True):
        u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
        F = ((1 + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - 20.0 * v) * ufl.dx
        model = hf.PhysicalModel(F, u, [dirichlet(V)], warm_start=warm)
        model.solve()
        model.solve()
        iterations.append(model.solver.newton.iterations)
    assert iterations[1] <= 1 < iterations[0]


# -- refusals --------------------------------------------------------------------------------------------------


def test_conjugate_gradients_name_an_indefinite_operator(comm: MPI.Comm) -> None:
    model = helmholtz(comm, 20.0, ksp_type="cg", pc_type="none", ksp_rtol=1e-10)
    with pytest.raises(hf.SolveError, match=r"INDEFINITE.*'ksp_type': 'minres'"):
        model.solve()


@pytest.mark.serial
def test_a_cholesky_factorisation_names_an_indefinite_operator() -> None:
    """A zero on the diagonal stops a factorisation that does not pivot, though the matrix is regular."""
    domain = square(MPI.COMM_SELF, 8)
    W = fem.functionspace(domain, ("Lagrange", 1, (2,)))
    u, v = fem.Function(W, name="pair"), ufl.TestFunction(W)
    F = (u[0] * v[1] + u[1] * v[0] - v[0]) * ufl.dx
    good = hf.PhysicalModel(F, u).solve()
    np.testing.assert_allclose(good.reshape(-1, 2).numpy(), np.tile([0.0, 1.0], (len(good) // 2, 1)), atol=1e-12)
    model = hf.PhysicalModel(F, u, petsc_options={"ksp_type": "preonly", "pc_type": "cholesky"})
    with pytest.raises(hf.SolveError, match=r"indefinite, or singular.*'mumps'"):
        model.solve()


def test_an_incomplete_cholesky_that_breaks_down_is_named(comm: MPI.Comm) -> None:
    A = PETSc.Mat().createAIJ((2 if comm.size == 1 else 2 * comm.size,) * 2, nnz=2, comm=comm)
    start, end = A.getOwnershipRange()
    for i in range(start, end):
        A.setValue(i, i, 0.0 if i % 2 else 1.0)
    A.assemble()
    options = {"ksp_type": "preonly", "pc_type": "bjacobi", "sub_pc_type": "cholesky"}
    if comm.size == 1:
        options = {"ksp_type": "preonly", "pc_type": "cholesky"}
    solver = LinearSolver(A, options, symmetric=True, what="p")
    with pytest.raises(hf.SolveError, match=r"'p'.*(indefinite|singular)"):
        solver.factorise()
    solver.close()


def test_the_default_solves_an_indefinite_problem(comm: MPI.Comm) -> None:
    model = helmholtz(comm, 20.0)
    dense = helmholtz(MPI.COMM_SELF, 20.0, ksp_type="preonly", pc_type="lu").solve()
    here = comm.allreduce(float(model.solve().square().sum()))
    assert here == pytest.approx(float(dense.square().sum()), rel=1e-9)


def test_a_factorisation_that_will_not_fit_is_refused_before_it_starts(
    comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "free_memory", lambda: 0.5e9)
    big = Traits(size=20_000_000, ranks=comm.size, tdim=2, symmetric=True, positive=True)
    with pytest.raises(hf.SolveError, match=r"about \d+\.\d GB on a node with 0\.5 GB free.*'ksp_type': 'cg'"):
        choice.check_memory(comm, direct_options(big), big, "u")
    choice.check_memory(comm, {"ksp_type": "cg", "pc_type": "gamg"}, big, "u")
    choice.check_memory(comm, direct_options(PLANE), PLANE, "u")


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize(("tdim", "n"), [(2, 180), (3, 24)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_estimate_of_the_memory_of_factors_is_near_what_mumps_takes(tdim: int, n: int, symmetric: bool) -> None:
    domain = (
        mesh.create_unit_square(MPI.COMM_SELF, n, n) if tdim == 2 else mesh.create_unit_cube(MPI.COMM_SELF, n, n, n)
    )
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    F = (ufl.inner(ufl.grad(u), ufl.grad(v)) + u * v - v) * ufl.dx
    if not symmetric:
        F += u.dx(0) * v * ufl.dx
    solver = hf.SteadySolver(F, u)
    assert solver.traits.symmetric is symmetric
    solver.forward([])
    megabytes = solver.linear.ksp.getPC().getFactorMatrix().getMumpsInfog(22)
    assert 0.7 < choice.factor_bytes(solver.traits) / (1e6 * megabytes) < 1.5


@pytest.mark.parametrize("kappa", [1e-15, 1e-6, 1e9, 1e18])
@pytest.mark.parametrize("n", [8, 60])
def test_the_size_of_the_units_does_not_matter(comm: MPI.Comm, kappa: float, n: int) -> None:
    """Dirichlet rows hold ones, the others κ: neither is a null vector."""
    domain = square(comm, n)  # one mesh for both: two need not be cut alike
    u = hf.PhysicalModel.of(hf.catalogue.poisson(domain, kappa=kappa)).solve()
    one = hf.PhysicalModel.of(hf.catalogue.poisson(domain)).solve()
    np.testing.assert_allclose(kappa * u.numpy(), one.numpy(), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("options", [None, direct_options(PLANE), direct_options(replace(PLANE, symmetric=False))])
def test_a_matrix_that_becomes_singular_is_refused_and_what_follows_is_solved(comm: MPI.Comm, options: Any) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, eta = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="eta")
    F = (ufl.inner(ufl.grad(u), ufl.grad(v)) + eta * u * v - v) * ufl.dx
    model = hf.PhysicalModel(F, u, coefficients={eta: hf.Scalar(2.0)}, petsc_options=options)
    np.testing.assert_allclose(model.solve().detach().numpy(), 0.5, rtol=1e-10)
    raw = model.coefficients["eta"].raw
    for value in (0.0, 4.0, 0.0, 5.0):
        with torch.no_grad():
            raw.fill_(value)
        if value == 0.0:
            with pytest.raises(hf.SolveError, match="singular"):
                model.solve()
        else:
            np.testing.assert_allclose(model.solve().detach().numpy(), 1.0 / value, rtol=1e-10)


def test_a_single_option_is_added_to_the_choice(comm: MPI.Comm) -> None:
    model = poisson(comm, petsc_options={"ksp_rtol": 1e-9})
    assert model.solver.linear.direct
    assert "chosen by size and symmetry" in model.description


def test_a_diverged_newton_solve_tells_its_last_residuals(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v = fem.Function(V, name="temperature"), ufl.TestFunction(V)
    F = (ufl.inner(ufl.grad(u), ufl.grad(v)) - 100.0 * ufl.exp(u) * v) * ufl.dx  # no solution: the load grows too fast
    model = hf.PhysicalModel(F, u, [dirichlet(V)])
    with pytest.raises(hf.SolveError, match="'temperature' did not converge") as caught:
        model.solve()
    assert re.search(r"last residuals \d\.\d\de", str(caught.value))
    assert np.all(u.x.array == 0.0), "u is as before"


def test_measures_with_different_tags_are_refused_by_name(comm: MPI.Comm) -> None:
    domain = square(comm)
    cells = mesh.locate_entities(domain, 2, lambda x: x[0] < 0.51)
    tags = mesh.meshtags(domain, 2, cells, np.full(len(cells), 7, dtype=np.int32))
    dx = ufl.Measure("dx", domain, subdomain_data=tags)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    with pytest.raises(ValueError, match="use one measure for all"):
        hf.PhysicalModel(u * v * ufl.dx + u * v * dx(7), u)


def test_facet_integrals_without_ghost_cells_are_refused(comm: MPI.Comm) -> None:
    domain = mesh.create_unit_square(comm, 4, 4, ghost_mode=mesh.GhostMode.none)
    V = fem.functionspace(domain, ("DG", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    F = u * v * ufl.dx + ufl.jump(u) * ufl.jump(v) * ufl.dS
    if comm.size == 1:
        hf.PhysicalModel(F, u).solve()
    else:
        with pytest.raises(ValueError, match="without ghost cells"):
            hf.PhysicalModel(F, u)


# -- state -----------------------------------------------------------------------------------------------------


def test_third_derivatives_are_refused(comm: MPI.Comm) -> None:
    model = poisson(comm)
    amplitude = model.coefficients["kappa"].amplitudes
    J = model.solve().pow(3).sum()
    (g,) = torch.autograd.grad(J, amplitude, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives of a PDE solve are not available"):
        torch.autograd.grad(g.sum(), amplitude, create_graph=True)


def test_a_coefficient_that_is_a_boundary_value_is_differentiated(comm: MPI.Comm) -> None:
    """u = g on the boundary and −Δu = 0: for linear g the solution is g, so ∂u/∂slope = x₀ everywhere."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, g = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="g")

    class Slope(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.slope * x[:, 0]

    F = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(g, boundary_dofs(V))], {g: Slope()})
    x0 = hf.dof_coordinates(V)[:, 0]
    found = model.solve()
    np.testing.assert_allclose(found.detach().numpy(), 2.0 * x0.numpy(), atol=1e-12)
    (found * x0).sum().backward()
    gradient = comm.allreduce(float(model.coefficients["g"].slope.grad))
    assert gradient == pytest.approx(comm.allreduce(float((x0 * x0).sum())), rel=1e-12)
    jacobian = model.jacobian(hf.Points(V.mesh, [[0.3, 0.7], [0.9, 0.2]]))
    np.testing.assert_allclose(jacobian.matrix[:, 0], jacobian.values / 2.0, atol=1e-12)
