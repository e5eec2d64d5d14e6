"""Physics-informed networks: what they minimise is zero for solutions, has the right gradient, and finds the truth."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from boxes import left, right, side
from cases import dirichlet, square
from dolfinx import fem, mesh
from test_strong import Formula
from torch import nn

import hyco_fem as hf
from hyco_fem.bridge.interpolate import Interpolant, components
from hyco_fem.bridge.residual import assemble_residual, dual_square
from hyco_fem.parallel import sum_array, sum_over_ranks
from hyco_fem.pde.residual import Residual, Riesz
from hyco_fem.pde.vectors import owned

PLACES = np.random.default_rng(3).uniform(0.1, 0.9, (20, 2))
GHOSTS = hf.RandomGhosts(60, fixed=True)


def network(outputs: int = 1, width: int = 8, seed: int = 2) -> hf.MLP:
    return hf.MLP(2, outputs, width=width, depth=2, seed=seed)


def scaled(domain: mesh.Mesh, width: int = 20) -> nn.Module:
    return hf.InputScaling(network(width=width), hf.bounding_box(domain))


def hard(domain: mesh.Mesh, width: int = 20) -> nn.Module:
    return hf.HardBoundary(scaled(domain, width), hf.box_distance(hf.bounding_box(domain)))


def objective(pinn: hf.PINN | hf.VariationalPINN) -> float:
    return float(sum_over_ranks(pinn.objective()().detach(), pinn.comm))


# -- PINN: the objective ---------------------------------------------------------------------------------------


def poisson_case(domain: mesh.Mesh) -> tuple[hf.Problem, list, Formula, dict[str, Any]]:
    """κ = 1 + x, u = x² + y²: Dirichlet on the left, a flux on the right, Robin below, zero flux nowhere."""
    x = ufl.SpatialCoordinate(domain)
    kappa = 1 + x[0]
    exact = x[0] ** 2 + x[1] ** 2
    conditions = [
        hf.Dirichlet(exact, left),
        hf.Flux(2 * kappa * x[0], right),
        hf.Robin(3.0, exact - 2 * kappa * x[1] / 3.0, side(domain, 1, 0.0)),
        hf.Flux(2 * kappa * x[1], side(domain, 1, 1.0)),
    ]
    problem = hf.catalogue.poisson(domain, degree=2, kappa=kappa, f=-4 - 6 * x[0], conditions=conditions)
    known = {"kappa": Formula(lambda x, y: 1 + x), "f": Formula(lambda x, y: -4 - 6 * x)}
    return problem, conditions, Formula(lambda x, y: x**2 + y**2), known


def elasticity_case(domain: mesh.Mesh) -> tuple[hf.Problem, list, Formula, dict[str, Any]]:
    """u = (xy, y²/2): a roller on the left, traction elsewhere."""
    E, nu = 2.0, 0.25
    lmbda, mu = E * nu / ((1 + nu) * (1 - 2 * nu)), E / (2 * (1 + nu))
    x = ufl.SpatialCoordinate(domain)
    u = ufl.as_vector([x[0] * x[1], x[1] ** 2 / 2])
    strain = ufl.sym(ufl.grad(u))
    stress = lmbda * ufl.tr(strain) * ufl.Identity(2) + 2 * mu * strain
    tractions = [
        hf.Flux(ufl.dot(stress, ufl.as_vector(normal)), side(domain, axis, value))
        for axis, value, normal in ((0, 1.0, (1.0, 0.0)), (1, 0.0, (0.0, -1.0)), (1, 1.0, (0.0, 1.0)))
    ]
    shear = hf.Flux(ufl.dot(stress, ufl.as_vector((-1.0, 0.0))), left)
    conditions = [hf.Dirichlet(0.0, left, component=0), *tractions, shear]
    f = -ufl.div(stress)
    problem = hf.catalogue.elasticity(domain, degree=2, E=E, nu=nu, f=f, conditions=conditions)
    known = {"f": [0.0, -(2 * lmbda + 3 * mu)]}
    return problem, conditions, Formula(lambda x, y: x * y, lambda x, y: y**2 / 2), known


def poiseuille_case(domain: mesh.Mesh) -> tuple[hf.Problem, list, Formula, dict[str, Any]]:
    """u = (y(1 − y), 0), p = 2μ(1 − x): at the outflow μ ∂u/∂n − p n = 0."""
    x = ufl.SpatialCoordinate(domain)
    inflow = ufl.as_vector([x[1] * (1 - x[1]), 0 * x[0]])
    walls = np.concatenate([side(domain, 1, 0.0), side(domain, 1, 1.0)])
    conditions = [hf.Dirichlet(inflow, left), hf.Dirichlet(0.0, walls)]
    problem = hf.catalogue.stokes(domain, mu=0.5, conditions=conditions)
    return problem, [], Formula(lambda x, y: y * (1 - y), lambda x, y: 0 * x, lambda x, y: 1 - x), {}


CASES = {"poisson": poisson_case, "elasticity": elasticity_case, "stokes": poiseuille_case}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cell", [mesh.CellType.triangle, mesh.CellType.quadrilateral])
def test_the_objective_of_a_solution_is_zero(comm: MPI.Comm, name: str, cell: mesh.CellType) -> None:
    problem, conditions, exact, known = CASES[name](square(comm, 4, cell))
    pinn = hf.PINN(problem, exact, known, conditions=conditions, collocation=GHOSTS)
    assert objective(pinn) < 1e-20
    # A wrong field misses each term by itself.
    for wrong in (lambda x, y: torch.sin(3 * x) * x, lambda x, y: 0.1 * x * y):
        other = Formula(*(lambda x, y, f=f, w=wrong: f(x, y) + w(x, y) for f in exact.components))
        pinn = hf.PINN(problem, other, known, conditions=conditions, collocation=GHOSTS)
        terms = sum_array(comm, np.array([float(t.detach()) for t in pinn.terms(0)]))
        assert terms[1] > 1e-4
        assert terms[2] > 1e-4


@pytest.mark.parametrize("fixed", [0.0, 1.0])
def test_the_objective_of_a_solution_on_an_interval_is_zero(comm: MPI.Comm, fixed: float) -> None:
    """κ = 1 + x, u = x² + x: its flux to the outside is −1 on the left and 6 on the right."""
    domain = mesh.create_unit_interval(comm, 5)
    x = ufl.SpatialCoordinate(domain)[0]
    ends = [mesh.locate_entities_boundary(domain, 0, lambda x, e=e: np.isclose(x[0], e)) for e in (0.0, 1.0)]
    fixed_end, free_end = (ends[int(fixed)], ends[1 - int(fixed)])
    exact = Formula(lambda x: x**2 + x)
    known = {"kappa": Formula(lambda x: 1 + x), "f": Formula(lambda x: -3 - 4 * x)}
    flux = {0.0: 6.0, 1.0: -1.0}[fixed]
    value = {0.0: 2.0, 1.0: 0.0}[fixed]
    for natural in (hf.Flux(flux, free_end), hf.Robin(2.0, value + flux / 2.0, free_end)):
        conditions = [hf.Dirichlet(x**2 + x, fixed_end), natural]
        problem = hf.catalogue.poisson(domain, degree=2, kappa=1 + x, f=-3 - 4 * x, conditions=conditions)
        options: dict[str, Any] = {"conditions": conditions, "collocation": GHOSTS}
        assert objective(hf.PINN(problem, exact, known, **options)) < 1e-20
        # Raised by 0.1 the field misses the value, and of the natural conditions that of Robin by 0.2.
        higher = Formula(lambda x: x**2 + x + 0.1)
        missed = 0.01 + 0.04 * isinstance(natural, hf.Robin)
        assert objective(hf.PINN(problem, higher, known, **options)) == pytest.approx(missed)


def test_without_a_condition_the_flux_is_zero(comm: MPI.Comm) -> None:
    """u = x solves −Δu = 0 with u given left and right, and its flux through the other sides is zero; u = x + y not."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)
    for slope in (0.0, 1.0):
        u = x[0] + slope * x[1]
        problem = hf.catalogue.poisson(domain, f=0.0, conditions=[hf.Dirichlet(u, left), hf.Dirichlet(u, right)])
        pinn = hf.PINN(problem, Formula(lambda x, y, s=slope: x + s * y))
        # Half of the boundary is free: the mean of |∂u/∂n|² over it.
        assert objective(pinn) == pytest.approx(slope**2, rel=1e-12, abs=1e-20)


def test_hard_boundary_values_are_not_asked_for_again(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    problem = hf.catalogue.poisson(domain)
    exact, soft = hf.PINN(problem, hard(domain)), hf.PINN(problem, scaled(domain))
    wrong = hf.PINN(problem, hf.HardBoundary(network(), hf.box_distance(hf.bounding_box(domain)), value=1.0))
    boundary = [float(sum_array(comm, np.array([float(p.terms(0)[2].detach())]))[0]) for p in (exact, soft, wrong)]
    assert boundary[0] == 0.0
    assert boundary[1] > 1e-6
    assert boundary[2] == pytest.approx(1.0)


def test_unknown_boundary_values_and_fluxes_are_asked_of_their_modules(comm: MPI.Comm) -> None:
    """−u'' = 0 with u = g left and flux h right: u = g + h x."""
    domain = square(comm, 4)
    V = fem.functionspace(domain, ("Lagrange", 1))
    g, h = fem.Function(V, name="g"), fem.Function(V, name="h")
    conditions = [hf.Dirichlet(g, left), hf.Flux(h, right)]
    problem = hf.catalogue.poisson(domain, f=0.0, conditions=conditions)
    modules = {"g": hf.Scalar(2.0), "h": hf.Scalar(3.0)}
    exact = Formula(lambda x, y: 2 + 3 * x)
    pinn = hf.PINN(problem, exact, modules, conditions=conditions)
    assert objective(pinn) < 1e-20
    modules["g"].raw.data.fill_(2.5)
    assert objective(pinn) == pytest.approx(0.25)
    result = hf.taylor_test(pinn.objective(), [m.raw for m in modules.values()], comm=comm)
    assert result.ok, f"\n{result}"


def test_a_known_load_is_evaluated_where_it_is_needed(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    f = fem.Function(fem.functionspace(domain, ("Lagrange", 1)), name="f")
    f.interpolate(lambda x: -4.0 - 6.0 * x[0])
    u = ufl.SpatialCoordinate(domain)
    kappa = hf.GaussianBumps([0.0], [[0.5, 0.5]], 1.0, background=1.0)
    problem = hf.catalogue.poisson(domain, kappa=1.0, f=f, conditions=[hf.Dirichlet(u[0] ** 2 + u[0] ** 3)])
    # −Δu = −2 − 6x, so that the residual is 2 everywhere.
    pinn = hf.PINN(problem, Formula(lambda x, y: x**2 + x**3), {"kappa": kappa}, weights=hf.PINNWeights(0.0, 1.0, 0.0))
    assert objective(pinn) == pytest.approx(4.0)


# -- PINN: training --------------------------------------------------------------------------------------------


def inverse(comm: MPI.Comm, n: int = 12) -> tuple[hf.Problem, hf.Data, hf.PhysicalModel]:
    """−κΔu = 10 with κ = 2, to be found from values of u at 20 places."""
    domain = square(comm, n)
    problem = hf.catalogue.poisson(domain, degree=2, kappa=2.0, f=10.0)
    truth = hf.PhysicalModel.of(problem)
    points = hf.Points(domain, PLACES)
    data = hf.Data(points, points.gather(truth(points)), 0.01)
    return problem, data, truth


def test_a_pinn_solves_a_forward_problem(comm: MPI.Comm) -> None:
    """−Δu = 2π² sin πx sin πy, with boundary values in the network and with boundary values to be learnt."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)
    load = 2 * np.pi**2 * ufl.sin(np.pi * x[0]) * ufl.sin(np.pi * x[1])
    problem = hf.catalogue.poisson(domain, degree=2, f=load)
    exact = Formula(lambda x, y: torch.sin(np.pi * x) * torch.sin(np.pi * y))
    f = Formula(lambda x, y: 2 * np.pi**2 * torch.sin(np.pi * x) * torch.sin(np.pi * y))
    for net in (hard(domain), scaled(domain)):
        points, weights = hf.RandomGhosts(150, fixed=True), hf.PINNWeights(boundary=100.0)
        pinn = hf.PINN(problem, net, {"f": f}, collocation=points, weights=weights, answer=hf.AdamStep(1e-2))
        first = pinn.run(50).history[0]
        pinn.answer = hf.LBFGS(200)
        last = pinn.run(1).history[-1]
        assert last.objective < 1e-3 * first.objective
        assert hf.relative_l2(net, exact, domain) < 0.02


def test_a_pinn_finds_a_coefficient(comm: MPI.Comm) -> None:
    problem, data, truth = inverse(comm)
    net, kappa = hard(truth.V.mesh), hf.Scalar(1.0, hf.Positive())
    pinn = hf.PINN(
        problem, net, {"kappa": kappa}, data, collocation=GHOSTS, answer=hf.AdamStep(1e-2), coefficient_lr=3e-2
    )
    pinn.run(50)
    pinn.answer = hf.LBFGS(150)
    result = pinn.run(1)
    assert set(result.parameters) == {"kappa.raw"}
    assert kappa.value == pytest.approx(2.0, rel=0.03)
    assert result.history[-1].misfit_synthetic < 1.0


def test_coefficients_have_a_learning_rate_of_their_own(comm: MPI.Comm) -> None:
    """The first step of Adam is the learning rate, whatever the gradient."""
    problem, data, truth = inverse(comm, 4)
    kappa, net = hf.Scalar(1.0), hard(truth.V.mesh)
    before = [p.detach().clone() for p in net.parameters()]
    hf.PINN(problem, net, {"kappa": kappa}, data, answer=hf.AdamStep(1e-3), coefficient_lr=0.2).run(1)
    assert abs(kappa.value - 1.0) == pytest.approx(0.2, rel=1e-4)
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(net.parameters(), before, strict=True))
    assert moved == pytest.approx(1e-3, rel=1e-4)


def test_a_coefficient_that_becomes_negative_is_named(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 4)
    with pytest.raises(hf.CoefficientError, match="the coefficient 'kappa' is not positive"):
        hf.PINN(problem, network(), {"kappa": hf.Scalar(-1.0)}, data).run(1)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_pinn_passes_a_taylor_test(comm: MPI.Comm, name: str) -> None:
    problem, conditions, exact, known = CASES[name](square(comm, 3))
    unknown = {"poisson": "kappa", "elasticity": "E", "stokes": "mu"}[name]
    bumps = hf.GaussianBumps([0.8], [[0.4, 0.6]], 0.4, background=1.0)
    net = network(len(exact.components))
    pinn = hf.PINN(problem, net, known | {unknown: bumps}, conditions=conditions, collocation=GHOSTS)
    result = hf.taylor_test(pinn.objective(), [*net.parameters(), *bumps.parameters()], comm=comm)
    assert result.ok, f"\n{result}"


@pytest.mark.parametrize("kind", ["strong", "variational"])
def test_the_number_of_ranks_does_not_matter(comm: MPI.Comm, kind: str) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        problem, data, truth = inverse(part, 6)
        domain = truth.V.mesh
        net, kappa = scaled(domain, 6), hf.GaussianBumps([0.5], [[0.4, 0.6]], 0.4, background=1.0)
        options: dict[str, Any] = {"answer": hf.AdamStep(1e-2), "coefficient_lr": 2e-2}
        if kind == "strong":
            pinn: Any = hf.PINN(problem, net, {"kappa": kappa}, data, collocation=hf.RandomGhosts(40), **options)
        else:
            pinn = hf.VariationalPINN(hf.PhysicalModel.of(problem, {"kappa": kappa}), net, data, **options)
        history = pinn.run(4).history
        return {
            "objective": [r.objective for r in history],
            "boundary": [r.boundary for r in history],
            "gradient": [r.gradient_synthetic for r in history],
            "theta": np.concatenate([p.detach().numpy().ravel() for p in kappa.parameters()]),
        }

    result = hf.rank_invariance(build)
    assert result.ok, result.differences


# -- the assembled residual ------------------------------------------------------------------------------------


def nonlinear(comm: MPI.Comm) -> hf.PhysicalModel:
    """−∇·((κ + u²)∇u) = f with κ, and the boundary value g, unknown."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 2))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    kappa, g = fem.Function(V, name="kappa"), fem.Function(V, name="g")
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    bc = fem.dirichletbc(g, dirichlet(V).dof_indices()[0])
    bump = hf.GaussianBumps([2.0], [[0.4, 0.6]], 0.3, background=1.0)
    return hf.PhysicalModel(F, u, [bc], {kappa: bump, g: hf.Scalar(0.3)})


def flow(comm: MPI.Comm) -> hf.PhysicalModel:
    domain = square(comm, 3)
    problem = hf.catalogue.navier_stokes(domain, f=[1.0, 0.0], conditions=[hf.Dirichlet(0.0, left)])
    return hf.PhysicalModel.of(problem, {"mu": hf.Scalar(0.7)})


def solid(comm: MPI.Comm) -> hf.PhysicalModel:
    problem = hf.catalogue.hyperelasticity(square(comm, 3), f=[0.0, -0.1], conditions=[hf.Dirichlet(0.0, left)])
    return hf.PhysicalModel.of(problem, {"E": hf.Scalar(2.0)})


MODELS = {"nonlinear": nonlinear, "flow": flow, "solid": solid}


@pytest.mark.parametrize("name", MODELS)
def test_the_residual_of_the_solution_is_zero(comm: MPI.Comm, name: str) -> None:
    model = MODELS[name](comm)
    u = model.solve().detach()
    before = model.function.x.array.copy(), [f.x.array.copy() for f in model.solver.coefficients]
    residual = Residual(model.solver)
    values = model.coefficient_values()
    scale = dual_square(assemble_residual(residual, 1.1 * u, values), Riesz(model.solver)).detach()
    found = dual_square(assemble_residual(residual, u, values), Riesz(model.solver)).detach()
    scale, found = (float(sum_over_ranks(s, comm)) for s in (scale, found))
    assert 0 <= found < 1e-12 * scale
    np.testing.assert_array_equal(model.function.x.array, before[0])
    for f, array in zip(model.solver.coefficients, before[1], strict=True):
        np.testing.assert_array_equal(f.x.array, array)


@pytest.mark.parametrize("name", MODELS)
def test_the_transpose_is_that_of_the_tangent(comm: MPI.Comm, name: str) -> None:
    model = MODELS[name](comm)
    residual = Residual(model.solver)
    rng = np.random.default_rng((1, comm.rank))
    n = len(owned(model.function))
    values = [v.detach().numpy() for v in model.coefficient_values()]
    r = residual.value(0.01 * rng.standard_normal(n), values)
    state = residual.state
    residual.value(0.02 * rng.standard_normal(n), values)  # another one in between changes nothing
    assert np.all(r[model.solver.fixed_owned] == 0)
    du, dm, w = rng.standard_normal(n), [rng.standard_normal(len(v)) for v in values], rng.standard_normal(n)
    gu, gm = residual.transpose(state, w)
    dr = residual.tangent(state, du, dm)
    backward = float(gu @ du) + sum(float(g @ d) for g, d in zip(gm, dm, strict=True))
    forward, backward, size = sum_array(comm, np.array([float(dr @ w), backward, float(np.abs(dr * w).sum())]))
    assert size > 0
    assert abs(forward - backward) < 1e-12 * size


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inner", [None, "l2"])
def test_the_gradient_of_a_variational_pinn_passes_a_taylor_test(comm: MPI.Comm, name: str, inner: str | None) -> None:
    model = MODELS[name](comm)
    net = network({"nonlinear": 1, "flow": 3, "solid": 2}[name])
    k = {"nonlinear": 1, "flow": 2, "solid": 2}[name]
    data = hf.Data(hf.Points(model.V.mesh, PLACES), np.full((20, k) if k > 1 else 20, 0.2), 0.5)
    pinn = hf.VariationalPINN(model, net, data, inner=inner)
    result = hf.taylor_test(pinn.objective(), [*net.parameters(), *model.parameters()], comm=comm)
    assert result.ok, f"\n{result}"


def test_forward_mode_is_the_tangent(comm: MPI.Comm) -> None:
    model = nonlinear(comm)
    residual, riesz = Residual(model.solver), Riesz(model.solver)
    values = [v.detach() for v in model.coefficient_values()]
    rng = np.random.default_rng((7, comm.rank))
    u, du = (torch.from_numpy(rng.standard_normal(len(owned(model.function)))) for _ in range(2))

    def J(u: torch.Tensor) -> torch.Tensor:
        return dual_square(assemble_residual(residual, u, values), riesz)

    _, slope = torch.func.jvp(J, (u,), (du,))
    h = 1e-5
    with torch.no_grad():
        difference = (J(u + h * du) - J(u - h * du)) / (2 * h)
    slope, difference = (float(sum_over_ranks(s.detach(), comm)) for s in (slope, difference))
    assert slope == pytest.approx(difference, rel=1e-6)


def test_the_dual_norm_is_the_error_in_the_energy(comm: MPI.Comm) -> None:
    """−Δu + u = f: the Riesz representative of the residual of w is w − u_h, so the dual norm is ‖w − u_h‖_{H¹}."""
    problem = hf.catalogue.reaction_diffusion(square(comm, 5), f=3.0, conditions=[hf.Dirichlet(0.0)])
    model = hf.PhysicalModel.of(problem)
    model.solve()
    other = fem.Function(model.V)
    other.interpolate(lambda x: np.sin(np.pi * x[0]) * x[1] * (1 - x[1]))
    r = assemble_residual(Residual(model.solver), torch.from_numpy(owned(other).copy()), [])
    found = float(sum_over_ranks(dual_square(r, Riesz(model.solver)), comm))
    e = other - model.function
    expected = comm.allreduce(fem.assemble_scalar(fem.form((ufl.inner(ufl.grad(e), ufl.grad(e)) + e**2) * ufl.dx)))
    assert found == pytest.approx(expected, rel=1e-10)


def test_the_interpolant_of_a_formula_is_that_of_dolfinx(comm: MPI.Comm) -> None:
    W = flow(comm).V
    interpolant = Interpolant(W)
    u = Formula(lambda x, y: x * y, lambda x, y: x - y**2, lambda x, y: 3 * x)
    expected = fem.Function(W)
    expected.sub(0).interpolate(lambda x: np.stack([x[0] * x[1], x[0] - x[1] ** 2]))
    expected.sub(1).interpolate(lambda x: 3 * x[0])
    np.testing.assert_allclose(interpolant(u(interpolant.x)).numpy(), owned(expected), atol=1e-14)
    assert components(W, ()) == [0, 1, 2]
    assert components(W, (0,)) == [0, 1]
    assert components(W, (0, 1)) == [1]
    assert components(W, (1,)) == [2]


def test_a_variational_pinn_solves_a_forward_problem(comm: MPI.Comm) -> None:
    _, _, truth = inverse(comm, 8)
    truth.solve()
    net = scaled(truth.V.mesh)
    pinn = hf.VariationalPINN(truth, net, answer=hf.LBFGS(250))
    pinn.run(1)
    assert hf.relative_l2(net, truth.function, truth.V.mesh) < 0.02


def test_a_variational_pinn_finds_a_coefficient(comm: MPI.Comm) -> None:
    problem, data, truth = inverse(comm, 8)
    kappa = hf.Scalar(1.0, hf.Positive())
    model = hf.PhysicalModel.of(problem, {"kappa": kappa})
    pinn = hf.VariationalPINN(
        model, hard(truth.V.mesh), data, answer=hf.LBFGS(150), weights=hf.VariationalWeights(0.1, 10.0)
    )
    result = pinn.run(1)
    assert list(result.parameters) == ["kappa.raw"]
    assert kappa.value == pytest.approx(2.0, rel=0.03)


def test_a_field_at_the_dofs_serves_in_the_variational_form(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 4)
    Q = problem.coefficients["kappa"].function_space
    field = hf.NodalField(Q, 1.0, hf.Positive())
    pinn = hf.VariationalPINN(hf.PhysicalModel.of(problem, {"kappa": field}), network(), data)
    result = hf.taylor_test(pinn.objective(), [field.raw], comm=comm)
    assert result.ok, f"\n{result}"
    history = pinn.run(5).history
    assert history[-1].objective < history[0].objective


# -- bad input -------------------------------------------------------------------------------------------------


def test_what_has_no_strong_form_is_named_with_the_remedy(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 3)
    own = hf.Problem("heat_of_mine", problem.F, problem.u, problem.bcs)
    with pytest.raises(ValueError, match=r"no strong form of 'heat_of_mine'.*VariationalPINN"):
        hf.PINN(own, network(), {}, data)
    with pytest.raises(TypeError, match=r"PINN needs a Problem.*not PhysicalModel"):
        hf.PINN(hf.PhysicalModel.of(problem), network())  # type: ignore[arg-type]


def test_a_strong_form_of_ones_own_serves(comm: MPI.Comm) -> None:
    """−Δu + u³ = f, which the catalogue does not have."""
    problem, _, _ = inverse(comm, 3)
    mine = hf.Problem("cubic", problem.F, problem.u, problem.bcs)
    form = hf.StrongForm("cubic", lambda u, g, m: g, lambda u, g, m: u**3 - m["f"], inside=())
    exact = Formula(lambda x, y: x * (1 - x) * y * (1 - y))
    f = Formula(lambda x, y: 2 * (x * (1 - x) + y * (1 - y)) + (x * (1 - x) * y * (1 - y)) ** 3)
    assert objective(hf.PINN(mine, exact, {"f": f}, strong=form)) < 1e-20


def test_a_field_at_the_dofs_is_refused(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 3)
    field = hf.NodalField(problem.coefficients["kappa"].function_space, 1.0)
    for module in (field, hf.Sum(hf.Scalar(1.0), field)):
        with pytest.raises(ValueError, match=r"'kappa' of poisson is a NodalField.*use NeuralField.*VariationalPINN"):
            hf.PINN(problem, network(), {"kappa": module}, data)


def test_the_network_must_give_the_whole_unknown(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 3)
    with pytest.raises(ValueError, match="needs a network with 1 output, this one has 2"):
        hf.PINN(problem, network(2), {}, data)
    with pytest.raises(ValueError, match=r"3 components at a point \(in a flow, .*the network has 2 outputs"):
        hf.VariationalPINN(flow(comm), network(2))


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="the weight residual must be finite and not negative, not -1"):
        hf.PINNWeights(residual=-1.0)
    with pytest.raises(ValueError, match="data, residual, boundary are all zero"):
        hf.PINNWeights(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="data, residual are all zero"):
        hf.VariationalWeights(0.0, 0.0)


def test_nothing_to_minimise_is_refused(comm: MPI.Comm) -> None:
    problem, _, truth = inverse(comm, 3)
    with pytest.raises(ValueError, match="there are no data and the weight of the residual is zero"):
        hf.PINN(problem, network(), weights=hf.PINNWeights(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="there are no data and the weight of the residual is zero"):
        hf.VariationalPINN(truth, network(), weights=hf.VariationalWeights(1.0, 0.0))


def test_coefficients_are_checked(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    x = ufl.SpatialCoordinate(domain)
    expression = hf.catalogue.poisson(domain, kappa=1 + x[0])
    with pytest.raises(ValueError, match="the strong form of poisson needs 'kappa' as functions of x"):
        hf.PINN(expression, network())
    with pytest.raises(ValueError, match="poisson has no coefficient named 'k'; it has"):
        hf.PINN(hf.catalogue.poisson(domain), network(), {"k": 1.0})
    with pytest.raises(ValueError, match="power_law needs 'p', 'eps'"):
        hf.PINN(hf.catalogue.power_law(domain), network())


def test_conditions_on_the_flux_must_be_given_again(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    problem = hf.catalogue.poisson(domain, conditions=[hf.Dirichlet(0.0, left), hf.Flux(1.0, right)])
    with pytest.raises(ValueError, match="integrals over the boundary, which a strong form does not see"):
        hf.PINN(problem, network())


def test_learning_rates_are_checked(comm: MPI.Comm) -> None:
    problem, data, _ = inverse(comm, 3)
    kappa = {"kappa": hf.Scalar(1.0)}
    with pytest.raises(ValueError, match="coefficient_lr must be finite and positive, not 0"):
        hf.PINN(problem, network(), kappa, data, coefficient_lr=0.0)
    with pytest.raises(ValueError, match="LBFGS has no learning rates"):
        hf.PINN(problem, network(), kappa, data, coefficient_lr=1e-2, answer=hf.LBFGS())
    with pytest.raises(ValueError, match="inner must be a bilinear form, 'l2' or None, not 'h2'"):
        hf.VariationalPINN(hf.PhysicalModel.of(problem), network(), data, inner="h2")
