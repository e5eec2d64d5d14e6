"""Physics-informed networks in time: zero for solutions, the right gradient, the same on any number of ranks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import torch
import ufl
from boxes import left, right, side
from cases import square
from dolfinx import fem, mesh
from test_strong import Formula
from torch import nn

import hyco_fem as hf
from hyco_fem.game.pinn_transient import TransientPINN
from hyco_fem.models.strong_transient import TRANSIENT, InTime
from hyco_fem.parallel import sum_array, sum_over_ranks

GHOSTS = hf.RandomGhosts(60, fixed=True)


heat = hf.catalogue.heat


def objective(pinn: hf.PINN) -> float:
    return float(sum_over_ranks(pinn.objective()().detach(), pinn.comm))


def terms(pinn: hf.PINN, number: int = 0) -> np.ndarray:
    return sum_array(pinn.comm, np.array([float(t.detach()) for t in pinn.terms(number)]))


# -- the objective ---------------------------------------------------------------------------------------------


def moving_case(
    domain: mesh.Mesh, value: fem.Function | None = None
) -> tuple[hf.TransientProblem, list, Formula, dict[str, Any]]:
    """κ = 1 + x, u = (1 + t)(x² + y²): Dirichlet left, flux right and above, Robin below, all of them in time.

    value: A Function to hold the Dirichlet value, whose values in time are left to the test.
    """
    x, t = ufl.SpatialCoordinate(domain), fem.Constant(domain, 0.0)
    kappa, exact = 1 + x[0], (1 + t) * (x[0] ** 2 + x[1] ** 2)
    conditions = [
        hf.Dirichlet(exact if value is None else value, left),
        hf.Flux(2 * (1 + t) * kappa * x[0], right),
        hf.Robin(3.0 + t, exact - 2 * (1 + t) * kappa * x[1] / (3.0 + t), side(domain, 1, 0.0)),
        hf.Flux(2 * (1 + t) * kappa * x[1], side(domain, 1, 1.0)),
    ]
    start = 1.5 * (x[0] ** 2 + x[1] ** 2)
    f = x[0] ** 2 + x[1] ** 2 - (1 + t) * (4 + 6 * x[0])
    problem = heat(domain, degree=2, kappa=kappa, f=f, conditions=conditions, initial=start, t=t)
    known = {
        "kappa": Formula(lambda x, y: 1 + x),
        "f": InTime(Formula(lambda x, y, t: x**2 + y**2 - (1 + t) * (4 + 6 * x))),
    }
    return problem, conditions, Formula(lambda x, y, t: (1 + t) * (x**2 + y**2)), known


@pytest.mark.parametrize("cell", [mesh.CellType.triangle, mesh.CellType.quadrilateral])
def test_the_objective_of_a_solution_is_zero(comm: MPI.Comm, cell: mesh.CellType) -> None:
    problem, conditions, exact, known = moving_case(square(comm, 3, cell))
    options: dict[str, Any] = {"conditions": conditions, "interval": (0.5, 2.0)}
    pinn = hf.PINN(problem, exact, known, **options)
    assert isinstance(pinn, TransientPINN)
    for number in range(3):
        np.testing.assert_allclose(terms(pinn, number), 0.0, atol=1e-20)
    # Wrong only after the start, and wrong only at the start and in the equation: each term sees its own.
    late = Formula(lambda x, y, t: exact.components[0](x, y, t) + 0.1 * (t - 0.5) * x * y)
    found = terms(hf.PINN(problem, late, known, **options))
    assert found[1] > 1e-5
    assert found[2] > 1e-5
    assert found[3] < 1e-20
    early = Formula(lambda x, y, t: exact.components[0](x, y, t) + 0.1)
    found = terms(hf.PINN(problem, early, known, **options))
    assert found[1] < 1e-20
    assert found[3] == pytest.approx(0.01)


def test_the_problem_is_left_as_it_was(comm: MPI.Comm) -> None:
    problem, conditions, exact, known = moving_case(square(comm, 3))
    g = next(iter(problem.time_values))
    g.x.array[:], problem.t.value = 7.0, 0.25
    pinn = hf.PINN(problem, exact, known, conditions=conditions, interval=(0.5, 2.0))
    pinn.terms(1)
    assert float(problem.t.value) == 0.25
    assert (g.x.array == 7.0).all()


def test_boundary_values_in_time_may_be_python_functions(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    g = fem.Function(fem.functionspace(domain, ("Lagrange", 2)), name="g")
    problem, conditions, exact, known = moving_case(domain, g)
    problem.time_values[g] = lambda x, t: (1 + t) * (x[0] ** 2 + x[1] ** 2)
    pinn = hf.PINN(problem, exact, known, conditions=conditions, interval=(0.5, 2.0))
    np.testing.assert_allclose(terms(pinn), 0.0, atol=1e-20)
    problem.time_values[g] = lambda x, t: t * (x[0] ** 2 + x[1] ** 2)
    missed = terms(hf.PINN(problem, exact, known, conditions=conditions, interval=(0.5, 2.0)))
    # On the left y = 0, 1/6, …, 1: the mean of y⁴ over the seven dofs there.
    assert missed[2] == pytest.approx(((np.arange(7) / 6) ** 4).mean())
    problem.time_values[g] = 1.0
    with pytest.raises(TypeError, match=r"the value of 'g' in time must be a UFL expression with t, or a function"):
        hf.PINN(problem, exact, known, conditions=conditions, interval=(0.5, 2.0))


def test_of_a_wave_the_flux_is_that_of_the_displacement(comm: MPI.Comm) -> None:
    """u = cos πx cos πt between free ends; a field with another slope at the ends misses the condition."""
    domain = mesh.create_unit_interval(comm, 6)
    x = ufl.SpatialCoordinate(domain)[0]
    problem = hf.catalogue.wave(domain, degree=2, conditions=(), initial=(x**2 * (1 - x / 1.5), 0.0))
    pi = np.pi
    exact = (
        lambda x, t: torch.cos(pi * x) * torch.cos(pi * t),
        lambda x, t: -pi * torch.cos(pi * x) * torch.sin(pi * t),
    )
    options: dict[str, Any] = {"interval": (0.0, 1.0)}
    start = Formula(lambda x: torch.cos(pi * x), lambda x: 0 * x)
    np.testing.assert_allclose(terms(hf.PINN(problem, Formula(*exact), initial=start, **options)), 0.0, atol=1e-20)
    # The slope of the velocity is not asked for.
    free = Formula(exact[0], lambda x, t: exact[1](x, t) + x)
    assert terms(hf.PINN(problem, free, initial=start, **options))[2] < 1e-20
    fixed = Formula(lambda x, t: exact[0](x, t) + 0.1 * x, exact[1])
    assert terms(hf.PINN(problem, fixed, initial=start, **options))[2] == pytest.approx(0.01)
    # The problem's own start: both components, at the dofs of quadratic elements.
    own = Formula(lambda x, t: x**2 * (1 - x / 1.5) + 0.2, lambda x, t: 0 * x)
    assert terms(hf.PINN(problem, own, **options))[3] == pytest.approx(0.04 / 2)


def test_a_wave_between_an_end_that_moves_and_one_that_is_pulled(comm: MPI.Comm) -> None:
    """u = t² (1 + x), c = 2: u and ∂ₜu given on the left, the flux c² t² on the right."""
    domain = mesh.create_unit_interval(comm, 6)
    x, t = ufl.SpatialCoordinate(domain)[0], fem.Constant(domain, 0.0)
    conditions = [hf.Dirichlet(t**2, left), hf.Flux(4 * t**2, right)]
    problem = hf.catalogue.wave(domain, c=2.0, f=2 * (1 + x), conditions=conditions, t=t)
    options: dict[str, Any] = {
        "coefficients": {"f": lambda x: 2 * (1 + x[:, 0])},
        "conditions": conditions,
        "interval": (0.0, 1.0),
    }
    u, w = (lambda x, t: t**2 * (1 + x)), (lambda x, t: 2 * t * (1 + x))
    np.testing.assert_allclose(terms(hf.PINN(problem, Formula(u, w), **options)), 0.0, atol=1e-20)
    shifted = terms(hf.PINN(problem, Formula(u, lambda x, t: w(x, t) + 0.1), **options))
    assert shifted[2] == pytest.approx(0.01 / 2), "of the velocity the value"
    steeper = terms(hf.PINN(problem, Formula(lambda x, t: u(x, t) + 0.1 * x, w), **options))
    assert steeper[2] == pytest.approx(0.4**2), "of the displacement the flux"


def test_a_part_of_a_mixed_space_is_asked_for_its_own_flux(comm: MPI.Comm) -> None:
    """The same wave, with u and w in a mixed space."""
    domain = mesh.create_unit_interval(comm, 6)
    P = basix.ufl.element("Lagrange", "interval", 2)
    V = fem.functionspace(domain, basix.ufl.mixed_element([P, P]))
    u, u_t = fem.Function(V, name="u"), fem.Function(V)
    v = ufl.TestFunction(V)
    F = (ufl.inner(u_t, v) + u[0].dx(0) * v[1].dx(0) - u[1] * v[0]) * ufl.dx
    problem = hf.TransientProblem(
        "wave", F, u, u_t, fem.Constant(domain, 0.0), initial=(ufl.SpatialCoordinate(domain)[0] ** 2, 0.5)
    )
    net = Formula(lambda x, t: 0.1 * x, lambda x, t: 0.3 * x)
    found = terms(hf.PINN(problem, net, {"c": 1.0, "f": 0.0}, interval=(0.0, 1.0)))
    assert found[2] == pytest.approx(0.01)
    start = Formula(lambda x, t: x**2, lambda x, t: 0.4 + 0 * x)
    assert terms(hf.PINN(problem, start, {"c": 1.0, "f": 0.0}, interval=(0.0, 1.0)))[3] == pytest.approx(0.01 / 2)


def test_hard_boundary_values_are_not_asked_for_again(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    problem = heat(domain, conditions=[hf.Dirichlet(0.0)])
    distance, times = hf.box_distance(hf.bounding_box(domain)), (0.0, 1.0)
    nets = [
        hf.HardBoundary(hf.MLP(3, width=6), distance, interval=times, initial=0.0),
        hf.MLP(3, width=6),
        hf.HardBoundary(hf.MLP(3, width=6), distance, value=1.0, interval=times),
    ]
    assert terms(hf.PINN(problem, nets[0], interval=times))[3] == 0.0, "the start neither"
    boundary = [terms(hf.PINN(problem, net, interval=(0.0, 1.0)))[2] for net in nets]
    assert boundary[0] == 0.0
    assert boundary[1] > 1e-6
    assert boundary[2] == pytest.approx(1.0)


def test_unknown_boundary_values_and_starts_are_asked_of_their_modules(comm: MPI.Comm) -> None:
    """∂ₜu = u'' + 1 with u = 2 + t left, flux h right and u₀ = 2 + 3x: u = 2 + 3x + t where h is 3."""
    domain = square(comm, 3)
    V = fem.functionspace(domain, ("Lagrange", 1))
    g, h = fem.Function(V, name="g"), fem.Function(V, name="h")
    conditions = [hf.Dirichlet(g, left), hf.Flux(h, right)]
    problem = heat(domain, f=1.0, conditions=conditions)

    class Rising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.g + z[:, -1]

    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 + self.slope * x[:, 0]

    modules = {"g": InTime(Rising()), "h": hf.Scalar(3.0)}
    start = Ramp()
    exact = Formula(lambda x, y, t: 2 + 3 * x + t)
    pinn = hf.PINN(problem, exact, modules, conditions=conditions, initial=start, interval=(0.0, 1.0))
    assert objective(pinn) < 1e-20
    modules["g"].function.g.data.fill_(2.5)
    assert objective(pinn) == pytest.approx(0.25)
    modules["h"].raw.data.fill_(3.5)
    # |σ·n − h|² on the right, a third of the free boundary.
    assert objective(pinn) == pytest.approx(0.25 + 0.25 / 3)
    start.slope.data.fill_(4.0)
    theta = [p for m in (*modules.values(), start) for p in m.parameters()]
    result = hf.taylor_test(pinn.objective(), theta, comm=comm)
    assert result.ok, f"\n{result}"
    assert set(pinn.run(1).parameters) >= {"g.function.g", "initial.slope"}


def test_a_known_load_is_evaluated_where_it_is_needed(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    f = fem.Function(fem.functionspace(domain, ("Lagrange", 1)), name="f")
    f.interpolate(lambda x: 1.0 - 2.0 * x[0])
    problem = heat(domain, f=f)
    # ∂ₜu = 1 − 2x and no diffusion of what is linear in space: the residual is zero.
    pinn = hf.PINN(problem, Formula(lambda x, y, t: t * (1 - 2 * x)), interval=(0.0, 1.0))
    assert terms(pinn)[1] < 1e-20


# -- points ----------------------------------------------------------------------------------------------------


def test_points_are_uniform_in_space_and_time(comm: MPI.Comm) -> None:
    problem = heat(square(comm, 3))
    n = 4000
    pinn = hf.PINN(problem, hf.MLP(3, width=4), collocation=hf.RandomGhosts(n, seed=3), interval=(-1.0, 3.0))
    points = pinn.points(1)
    z = points.gather(points.x)
    # Each coordinate has the moments of a uniform one, and they are not correlated (five standard errors).
    scaled = (z - [0.0, 0.0, -1.0]) / [1.0, 1.0, 4.0]
    assert (scaled > 0).all()
    assert (scaled < 1).all()
    np.testing.assert_allclose(scaled.mean(axis=0), 0.5, atol=5 * np.sqrt(1 / 12 / n))
    np.testing.assert_allclose(np.cov(scaled.T) * 12, np.eye(3), atol=5 * 1.5 / np.sqrt(n))


def test_times_are_drawn_anew_unless_points_are_fixed(comm: MPI.Comm) -> None:
    problem = heat(square(comm, 3))
    for fixed in (False, True):
        pinn = hf.PINN(
            problem,
            hf.MLP(3, width=4),
            collocation=hf.RandomGhosts(9, fixed=fixed),
            interval=(0.0, 2.0),
            boundary_times=4,
        )
        first, second = (pinn.boundary_times(i) for i in (1, 2))
        assert np.array_equal(first, second) == fixed
        # One in each quarter.
        np.testing.assert_array_equal(np.floor(second / 0.5), [0, 1, 2, 3])
        places = [pinn.points(i).gather(pinn.points(i).t) for i in (1, 2)]
        assert np.array_equal(*places) == fixed


# -- training --------------------------------------------------------------------------------------------------


def rod(comm: MPI.Comm, n: int = 20) -> tuple[hf.TransientProblem, hf.Data]:
    """∂ₜu = κ u'' on a rod with κ = 0.15: u = exp(−κπ²t) sin πx, seen by six sensors at eight times with noise."""
    domain = mesh.create_unit_interval(comm, n)
    x = ufl.SpatialCoordinate(domain)
    problem = heat(domain, kappa=1.0, conditions=[hf.Dirichlet(0.0)], initial=ufl.sin(np.pi * x[0]))
    places, times = (a.ravel() for a in np.meshgrid(np.linspace(0.1, 0.9, 6), np.linspace(0.1, 1.0, 8)))
    noise = 0.02 * np.random.default_rng(1).standard_normal(len(places))
    values = np.exp(-0.15 * np.pi**2 * times) * np.sin(np.pi * places) + noise
    return problem, hf.Data(hf.SpaceTimePoints(domain, places[:, None], times), values, 0.02)


def test_a_pinn_finds_a_coefficient(comm: MPI.Comm) -> None:
    problem, data = rod(comm)
    net, kappa = hf.MLP(2, width=16, depth=2, seed=1), hf.Scalar(1.0, hf.Positive())
    began = time.perf_counter()
    pinn = hf.PINN(
        problem,
        net,
        {"kappa": kappa},
        data,
        interval=(0.0, 1.0),
        collocation=hf.RandomGhosts(150, fixed=True),
        weights=hf.PINNWeights(residual=100.0, boundary=1000.0, initial=1000.0),
        answer=hf.AdamStep(1e-2),
        coefficient_lr=3e-2,
    )
    pinn.run(200)
    pinn.answer = hf.LBFGS(700)
    result = pinn.run(1)
    print(f"κ = {kappa.value:.5f} of 0.15, {time.perf_counter() - began:.1f} s")
    assert set(result.parameters) == {"kappa.raw"}
    assert kappa.value == pytest.approx(0.15, rel=0.03)
    last = result.history[-1]
    assert last.initial < 1e-4
    total = last.misfit_synthetic + 100 * last.residual + 1000 * (last.boundary + last.initial)
    assert last.objective == pytest.approx(total)


def test_the_gradient_passes_a_taylor_test(comm: MPI.Comm) -> None:
    problem, conditions, _, known = moving_case(square(comm, 3))
    bumps = hf.GaussianBumps([0.8], [[0.4, 0.6]], 0.4, background=1.0)
    net = hf.MLP(3, width=6, depth=2, seed=2)
    options: dict[str, Any] = {"conditions": conditions, "interval": (0.0, 1.0), "collocation": GHOSTS}
    pinn = hf.PINN(problem, net, known | {"kappa": bumps}, **options)
    result = hf.taylor_test(pinn.objective(), [*net.parameters(), *bumps.parameters()], comm=comm)
    assert result.ok, f"\n{result}"


def test_the_number_of_ranks_does_not_matter(comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        problem, conditions, _, known = moving_case(square(part, 4))
        rng = np.random.default_rng(2)
        points = hf.SpaceTimePoints(
            problem.u.function_space.mesh, rng.uniform(0.1, 0.9, (9, 2)), rng.uniform(0.1, 0.9, 9)
        )
        bumps = hf.GaussianBumps([0.5], [[0.4, 0.6]], 0.4, background=1.0)
        pinn = hf.PINN(
            problem,
            hf.MLP(3, width=6, depth=2, seed=2),
            known | {"kappa": bumps},
            hf.Data(points, rng.standard_normal(9)),
            conditions=conditions,
            interval=(0.0, 1.0),
            collocation=hf.RandomGhosts(40),
            answer=hf.AdamStep(1e-2),
            coefficient_lr=2e-2,
        )
        history = pinn.run(4).history
        return {
            name: [getattr(r, name) for r in history]
            for name in ("objective", "residual", "boundary", "initial", "gradient_synthetic")
        } | {"theta": np.concatenate([p.detach().numpy().ravel() for p in bumps.parameters()])}

    result = hf.rank_invariance(build)
    assert result.ok, result.differences


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": None}, r"heat is a transient problem: say from when to when, PINN\(…, interval=\(t0, T\)\)"),
        ({"interval": (1.0, 1.0)}, r"the interval \(1, 1\) must be finite, and end after it starts"),
        ({"synthetic": hf.MLP(2)}, r"in 2D takes \(x, t\), 3 columns with time last: hyco_fem.MLP\(3"),
        ({"synthetic": hf.MLP(3, 2)}, "heat in 2D needs a network with 1 output, this one has 2"),
        (
            {"coefficients": {"kappa": hf.MLP(3)}},
            r"'kappa' of heat cannot be evaluated.*mark one of \(x, t\) by InTime",
        ),
        ({"coefficients": {"c": 1.0}}, "heat has no coefficient named 'c'"),
        ({"collocation": hf.DofGhosts()}, "DofGhosts are for steady models; use RandomGhosts"),
        ({"initial": (0.0, 1.0)}, "the initial value has 2 components, the unknown has 1"),
        ({"boundary_times": 0}, "boundary_times must be a whole number of at least 1"),
        ({"initial": lambda x: x}, r"the initial value of heat has shape \(16, 2\) at 16 points, not \(16, 1\)"),
    ],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    given = {"synthetic": hf.MLP(3), "interval": (0.0, 1.0)} | options
    with pytest.raises(ValueError, match=message):
        hf.PINN(heat(square(MPI.COMM_SELF, 3)), **given)


def test_fields_and_data_that_do_not_fit_are_named(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    problem = heat(domain)
    x = np.array([[0.2, 0.3], [0.7, 0.6]])
    options: dict[str, Any] = {"interval": (0.0, 1.0)}
    with pytest.raises(TypeError, match=r"are at Points; .* needs them at \(x, t\): hyco_fem.SpaceTimePoints"):
        hf.PINN(problem, hf.MLP(3), data=hf.Data(hf.Points(domain, x), [1.0, 2.0]), **options)
    late = hf.Data(hf.SpaceTimePoints(domain, x, np.array([0.5, 1.5])), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"sensor 1 is at time 1\.5, outside the interval from 0 to 1"):
        hf.PINN(problem, hf.MLP(3), data=late, **options)
    nodal = hf.NodalField(fem.functionspace(domain, ("Lagrange", 1)), 1.0)
    with pytest.raises(ValueError, match="'kappa' of heat is a NodalField"):
        hf.PINN(problem, hf.MLP(3), {"kappa": nodal}, **options)
    with pytest.raises(TypeError, match="strong is a StrongForm; a transient problem needs a TransientStrongForm"):
        hf.PINN(
            problem,
            hf.MLP(3),
            strong=hf.StrongForm("mine", TRANSIENT["heat"].flux, TRANSIENT["heat"].source, ()),
            **options,
        )
    moving = heat(domain, f=fem.Function(fem.functionspace(domain, ("DG", 0)), name="f"))
    moving.time_values[moving.coefficients["f"]] = moving.t * ufl.SpatialCoordinate(domain)[0]
    with pytest.raises(ValueError, match=r"heat needs 'f' as functions.*InTime\(lambda z"):
        hf.PINN(moving, hf.MLP(3), **options)


def test_a_flow_in_time_and_a_steady_problem_in_time_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    problem = heat(domain)
    flow = hf.catalogue.transient_navier_stokes(domain, conditions=[hf.Dirichlet(0.0)])
    with pytest.raises(ValueError, match=r"transient_navier_stokes is solved by a splitting.*: use Hyco with a"):
        hf.PINN(flow, hf.MLP(3, 3), interval=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"no strong form in time of 'mine', only of burgers.*pass your own"):
        hf.PINN(replace(problem, name="mine"), hf.MLP(3), interval=(0.0, 1.0))
    steady = hf.catalogue.poisson(domain)
    with pytest.raises(ValueError, match="poisson is a steady problem: interval and initial are for transient ones"):
        hf.PINN(steady, hf.MLP(2), interval=(0.0, 1.0))
    with pytest.raises(TypeError, match="TransientPINN needs a TransientProblem"):
        TransientPINN(steady, hf.MLP(3), interval=(0.0, 1.0))
    model = hf.TransientModel(problem.F, problem.u, problem.u_t, t=problem.t, interval=(0.0, 1.0), dt=0.5)
    for physical in (problem, model):
        with pytest.raises(TypeError, match=r"VariationalPINN is for steady problems: for one in time use .*PINN\("):
            hf.VariationalPINN(physical, hf.MLP(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the weight initial must be finite and not negative"):
        hf.PINNWeights(initial=-1.0)
