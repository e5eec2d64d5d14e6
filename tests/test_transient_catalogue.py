"""Ready problems in time: manufactured solutions at their rates, what is conserved, exact gradients, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from boxes import Cell, box, field, left, right, walls
from cases import square
from dolfinx import fem, la, mesh
from evolving import functional, gradient, space_time_points
from ufl import cos, div, dot, dx, grad, inner, sin

import hyco_fem as hf
from hyco_fem.models.strong_transient import transient_strong_form
from hyco_fem.pde.vectors import owned

C = hf.catalogue
NAMES = (
    "heat",
    "heat_nondivergence",
    "transient_advection_diffusion",
    "wave",
    "gray_scott",
    "burgers",
    "transient_navier_stokes",
)
SCHEMES: dict[str, Any] = {"gray_scott": hf.BDF2(), "burgers": hf.BDF2()}


def time_derivative(value: Any, t: fem.Constant) -> Any:
    s = ufl.variable(t)
    return ufl.diff(ufl.replace(value, {t: s}), s)


# -- manufactured solutions --------------------------------------------------------------------------------------


def all_three(domain: mesh.Mesh, u: Any, flux: Any) -> list:
    """Conditions that u satisfies: Dirichlet at x₀ = 0, its own flux at x₀ = 1, a Robin one elsewhere."""
    conditions = [hf.Dirichlet(u, left), hf.Flux(flux, right)]
    return conditions + ([hf.Robin(2.0, u + flux / 2.0, walls(domain))] if domain.geometry.dim > 1 else [])


def manufactured(
    domain: mesh.Mesh, name: str, shape: Any, pace: Any, t: fem.Constant, degree: int
) -> tuple[hf.TransientProblem, Any]:
    """A problem with loads and conditions made from an exact solution, a profile in space times a pace in time."""
    n, d, x = ufl.FacetNormal(domain), domain.geometry.dim, ufl.SpatialCoordinate(domain)
    u, kappa = pace * shape, 1.0 + x[0] / 2.0

    def start(value: Any) -> Any:
        return ufl.replace(value, {t: fem.Constant(domain, 0.0)})

    def finish(flux: Any, f: Any, initial: Any = None, **quantities: Any) -> hf.TransientProblem:
        conditions = all_three(domain, u, dot(flux, n))
        initial = start(u if initial is None else initial)
        return getattr(C, name)(domain, degree=degree, f=f, conditions=conditions, initial=initial, t=t, **quantities)

    u_t = time_derivative(u, t)
    if name == "heat":
        return finish(kappa * grad(u), u_t - div(kappa * grad(u)), kappa=kappa), u
    if name == "heat_nondivergence":
        return finish(grad(u), u_t - kappa * div(grad(u)), kappa=kappa), u
    if name == "transient_advection_diffusion":
        beta = ufl.as_vector((3.0, -2.0 + x[0])[:d])
        return finish(kappa * grad(u), u_t + dot(beta, grad(u)) - div(kappa * grad(u)), kappa=kappa, beta=beta), u
    if name == "wave":
        pair = ufl.as_vector((u, u_t))
        f = time_derivative(u_t, t) - div(kappa**2 * grad(u))
        return finish(kappa**2 * grad(u), f, initial=pair, c=kappa), pair
    if name == "burgers":
        if d > 1:
            u = ufl.as_vector((u, u**2 / pace))
            u_t = time_derivative(u, t)
        carried = u * u.dx(0) if d == 1 else dot(grad(u), u)
        return finish(grad(u) * kappa, u_t + carried - div(kappa * grad(u)), nu=kappa), u
    # There is no source to choose, but F and k, which the equations give: u, v, F are away from 1, 0, 0.
    Du, Dv, a, b = 0.2, 0.1, 0.3 + u / 4.0, 1.0 - u / 5.0
    F = (time_derivative(a, t) - Du * div(grad(a)) + a * b**2) / (1.0 - a)
    k = (Dv * div(grad(b)) + a * b**2 - time_derivative(b, t)) / b - F
    pair = ufl.as_vector((a, b))
    flux = ufl.as_vector((Du * dot(grad(a), n), Dv * dot(grad(b), n)))
    conditions = all_three(domain, pair, flux)
    problem = C.gray_scott(
        domain, degree=degree, Du=Du, Dv=Dv, F=F, k=k, initial=start(pair), conditions=conditions, t=t
    )
    return problem, pair


def error(problem: hf.TransientProblem, exact: Any, end: float, dt: float, **options: Any) -> float:
    """In L² at the end."""
    model = hf.TransientModel.of(problem, interval=(0.0, end), dt=dt, times=[end], **options)
    model.solve()
    problem.t.value = end
    found = hf.error_norms(problem.u, exact).L2
    model.close()
    return found


def last_rate(errors: list[float]) -> float:
    return float(np.log2(errors[-2] / errors[-1]))


# With these paces the schemes make no error in time: a polynomial of degree one, or, with what is treated explicitly, a
# solution that stays.
@pytest.mark.parametrize("cell", [Cell.interval, Cell.triangle], ids=lambda c: c.name)
@pytest.mark.parametrize("name", NAMES[:-1])
def test_space_has_its_order(comm: MPI.Comm, name: str, cell: Cell) -> None:
    errors = []
    for n in (8, 16) if cell == Cell.interval else (6, 12):
        domain = box(comm, cell, n)
        t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
        shape = sin(1.0 + x[0]) * (cos(x[1]) if domain.geometry.dim > 1 else 1.0)
        pace = 1.0 + 0.0 * t if name == "gray_scott" else 1.0 + t
        problem, exact = manufactured(domain, name, shape, pace, t, 1)
        scheme = {"gray_scott": hf.BDF2(), "burgers": hf.BackwardEuler()}.get(name, hf.CrankNicolson())
        errors.append(error(problem, exact, 1.0, 0.25, scheme=scheme))
    assert last_rate(errors) == pytest.approx(2.0, abs=0.25), errors


@pytest.mark.parametrize("name", NAMES[:-1])
def test_time_has_its_order(comm: MPI.Comm, name: str) -> None:
    """Two, for profiles that P2 contains; boundary values, fluxes and loads change in time."""
    errors = []
    for steps in (32, 64):
        domain = box(comm, Cell.interval, 3)
        t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
        problem, exact = manufactured(domain, name, (1.0 + x[0] ** 2) / 2.0, cos(2.0 * t), t, 2)
        errors.append(error(problem, exact, 1.0, 1.0 / steps, scheme=SCHEMES.get(name, hf.CrankNicolson())))
    assert last_rate(errors) == pytest.approx(2.0, abs=0.2), errors


def vortex(domain: mesh.Mesh, t: fem.Constant, nu: float, rho: float) -> tuple[Any, Any]:
    """Velocity and pressure of Taylor and Green's decaying vortices."""
    x, k = ufl.SpatialCoordinate(domain), 2.0
    decay = ufl.exp(-2.0 * nu * k**2 * t)
    u = decay * ufl.as_vector((-cos(k * x[0]) * sin(k * x[1]), sin(k * x[0]) * cos(k * x[1])))
    return u, -rho * decay**2 * (cos(2 * k * x[0]) + cos(2 * k * x[1])) / 4.0


def flow(comm: MPI.Comm, n: int, order: int = 2, **options: Any) -> tuple[hf.TransientProblem, Any, Any]:
    domain = square(comm, n)
    t, rho = fem.Constant(domain, 0.0), 1.5
    u, p = vortex(domain, t, 0.05, rho)
    problem = C.transient_navier_stokes(
        domain,
        mu=0.05 * rho,
        rho=rho,
        initial=u,
        initial_pressure=p,
        conditions=[hf.Dirichlet(u)],
        order=order,
        t=t,
        **options,
    )
    return problem, u, p


def test_vortices_decay_with_the_order_of_the_elements(comm: MPI.Comm) -> None:
    errors = []
    for n in (3, 6):
        problem, u, _ = flow(comm, n)
        errors.append(error(problem, u, 0.1, 0.0125))
    assert last_rate(errors) > 2.8, errors


@pytest.mark.parametrize("order", [1, 2])
def test_pressure_correction_has_its_order(comm: MPI.Comm, order: int) -> None:
    """For a flow that the elements contain: (y², x²) and a linear pressure, both changing in time."""
    errors = []
    for steps in (16, 32):
        domain = square(comm, 2)
        t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
        u, p = (1.0 + sin(3.0 * t)) * ufl.as_vector((x[1] ** 2, x[0] ** 2)), cos(t) * (x[0] + x[1])
        mu, rho = 0.3, 2.0
        f = rho * (time_derivative(u, t) + dot(grad(u), u)) - mu * div(grad(u)) + grad(p)
        problem = C.transient_navier_stokes(
            domain,
            mu=mu,
            rho=rho,
            f=f,
            initial=ufl.as_vector((x[1] ** 2, x[0] ** 2)),
            initial_pressure=x[0] + x[1],
            conditions=[hf.Dirichlet(u)],
            order=order,
            t=t,
        )
        errors.append(error(problem, u, 1.0, 1.0 / steps))
    assert order - 0.25 < last_rate(errors) < order + 1.2, errors


def test_a_pressure_that_differs_at_both_ends_drives_the_flow_of_poiseuille(comm: MPI.Comm) -> None:
    """From rest to u = (G / 2μ) y (1 − y); the pressure at the inlet rises in time to G."""
    domain = square(comm, 4)
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    problem = C.transient_navier_stokes(
        domain,
        mu=0.5,
        conditions=(hf.Dirichlet(0.0, walls(domain)), hf.Dirichlet(0.0, lambda x: right(x) | left(x), component=1)),
        pressure=(hf.Dirichlet(1.0 - ufl.exp(-20.0 * t), left), hf.Dirichlet(0.0, right)),
        t=t,
    )
    assert error(problem, ufl.as_vector((x[1] * (1.0 - x[1]), 0.0)), 4.0, 0.1) < 1e-5
    p = problem.extras["pressure"]
    assert hf.error_norms(p, 1.0 - x[0]).L2 < 1e-5


# -- waves -------------------------------------------------------------------------------------------------------


def string(comm: MPI.Comm, **options: Any) -> tuple[hf.TransientProblem, hf.TransientModel]:
    domain = box(comm, Cell.interval, 12)
    x = ufl.SpatialCoordinate(domain)
    problem = C.wave(domain, c=1.0 + x[0], initial=(sin(np.pi * x[0]), x[0] * (1.0 - x[0])))
    return problem, hf.TransientModel.of(problem, interval=(0.0, 2.0), dt=0.05, **options)


def test_a_wave_keeps_its_energy_with_crank_nicolson_and_loses_it_with_backward_euler(comm: MPI.Comm) -> None:
    def energies(scheme: Any) -> np.ndarray:
        problem, model = string(comm, scheme=scheme)
        x = ufl.SpatialCoordinate(model.V.mesh)
        u, w = problem.extras["displacement"], problem.extras["velocity"]
        energy = fem.form(0.5 * (w**2 + (1.0 + x[0]) ** 2 * inner(grad(u), grad(u))) * dx)
        found = []
        for values in model.solve().numpy():
            owned(problem.u)[:] = values
            problem.u.x.scatter_forward()
            found.append(comm.allreduce(fem.assemble_scalar(energy)))
        return np.array(found)

    kept = energies(hf.CrankNicolson())
    np.testing.assert_allclose(kept, kept[0], rtol=1e-10)
    assert energies(hf.BackwardEuler())[-1] < 0.9 * kept[0]


def test_a_wave_by_crank_nicolson_is_that_of_newmark(comm: MPI.Comm) -> None:
    """u₂ − 2u₁ + u₀ = Δt² ∇·(c² ∇(u₂ + 2u₁ + u₀)/4), the scheme with β = ¼, γ = ½, weakly."""
    problem, model = string(comm)
    fields = model.solve().numpy()[7:10]
    V = model.V.sub(0).collapse()[0]
    u0, u1, u2 = (fem.Function(V) for _ in range(3))
    for u, values in zip((u0, u1, u2), fields, strict=True):
        owned(problem.u)[:] = values
        problem.u.x.scatter_forward()
        u.interpolate(problem.u.sub(0))
    x, v = ufl.SpatialCoordinate(V.mesh), ufl.TestFunction(V)
    mean = (u2 + 2 * u1 + u0) / 4
    r = fem.Function(V)
    form = (u2 - 2 * u1 + u0) / 0.05**2 * v * dx + (1.0 + x[0]) ** 2 * inner(grad(mean), grad(v)) * dx
    fem.assemble_vector(r.x.array, fem.form(form))
    r.x.scatter_reverse(la.InsertMode.add)
    inside = np.ones(len(owned(r)), dtype=bool)
    ends = fem.locate_dofs_geometrical(V, lambda x: left(x) | right(x))
    inside[ends[ends < len(inside)]] = False
    assert np.abs(owned(r)[inside]).max(initial=0.0) < 1e-11


def test_a_wave_is_observed_by_its_displacement(comm: MPI.Comm) -> None:
    _, model = string(comm)
    points = hf.SpaceTimePoints(model.V.mesh, [[0.5], [0.25]], [0.0, 0.0])
    found = points.gather(model(points).detach())
    # P1 between nodes that are at both points.
    np.testing.assert_allclose(np.ravel(found), np.sin(np.pi * np.array([0.5, 0.25])), atol=1e-12)


def test_the_velocity_of_a_moved_end_is_the_derivative_of_its_displacement(comm: MPI.Comm) -> None:
    domain = box(comm, Cell.interval, 2)
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    problem = C.wave(domain, conditions=(hf.Dirichlet(0.0), hf.Dirichlet(x[0] * sin(3.0 * t), right)), t=t)
    model = hf.TransientModel.of(problem, interval=(0.0, 1.0), dt=0.25)
    model.solve()
    at = fem.locate_dofs_geometrical(model.V, right)
    ends = problem.u.x.array.reshape(-1, 2)[at]
    np.testing.assert_allclose(ends, np.tile([np.sin(3.0), 3.0 * np.cos(3.0)], (len(ends), 1)), atol=1e-12)


# -- what may be unknown -------------------------------------------------------------------------------------------


def inversion(comm: MPI.Comm, name: str) -> hf.TransientModel:
    """A small problem with unknown coefficients."""
    bumps = hf.GaussianBumps([0.3], [[0.4, 0.6]], 0.3, 0.4)
    options: dict[str, Any] = {"interval": (0.0, 0.4), "dt": [0.1, 0.1, 0.08, 0.12], "scheme": SCHEMES.get(name)}
    if name == "transient_navier_stokes":
        domain = square(comm, 2)
        t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
        viscosity, entry = field(domain, "mu"), field(domain, "entry", 2, 2)
        problem = C.transient_navier_stokes(
            domain,
            mu=viscosity,
            initial=ufl.as_vector((x[1] * (1 - x[1]), 0.0)),
            conditions=(
                hf.Dirichlet(0.0, walls(domain)),
                hf.Dirichlet(entry, left),
            ),
            f=ufl.as_vector((0.0, ufl.exp(-t) * x[0])),
            t=t,
        )
        return hf.TransientModel.of(problem, {"mu": bumps, "rho": hf.Scalar(1.3), "entry": Entry()}, **options)
    domain = square(comm, 3)
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    u0, moving = sin(3.0 * x[0]) * (1.0 + x[1]), hf.Dirichlet((1.0 + t) * x[1], left)
    if name == "wave":
        problem = C.wave(domain, c=field(domain, "c"), initial=(u0, x[0]), conditions=[moving], t=t)
        return hf.TransientModel.of(problem, {"c": bumps, "f": hf.Scalar(0.7)}, **options)
    if name == "gray_scott":
        problem = C.gray_scott(domain, initial=(1.0 - u0 / 3.0, u0 / 4.0))
        rates = {"Du": 0.2, "Dv": 0.08, "F": 0.3, "k": 0.1}
        return hf.TransientModel.of(problem, {n: hf.Scalar(value) for n, value in rates.items()}, **options)
    if name == "burgers":
        problem = C.burgers(domain, nu=field(domain, "nu"), initial=ufl.as_vector((u0, x[1])), conditions=())
        return hf.TransientModel.of(problem, {"nu": bumps}, **options)
    more: dict[str, Any] = {"beta": (3.0, 1.0)} if name == "transient_advection_diffusion" else {}
    problem = getattr(C, name)(domain, kappa=field(domain, "kappa"), initial=u0, conditions=[moving], t=t, **more)
    return hf.TransientModel.of(problem, {"kappa": bumps, "f": hf.Scalar(0.7)}, **options)


class Entry(torch.nn.Module):
    """A velocity at an inlet with one parameter, its size."""

    def __init__(self) -> None:
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        profile = x[:, 1] * (1 - x[:, 1])
        return torch.stack([self.size * profile, torch.zeros_like(profile)], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_by_unknown_coefficients_is_exact(comm: MPI.Comm, name: str) -> None:
    model = inversion(comm, name)
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    np.testing.assert_allclose(result.rates[-1], 2.0, atol=0.2)
    assert hf.dot_product_test(model) < 1e-11
    model.close()


@pytest.mark.parametrize("name", NAMES)
def test_more_ranks_give_the_same(comm: MPI.Comm, name: str) -> None:
    if comm.size == 1:
        pytest.skip("needs two ranks")

    def build(part: MPI.Comm) -> dict[str, Any]:
        model = inversion(part, name)
        points = space_time_points(model.V.mesh, end=0.4)
        J = functional(model, points)
        return {"u": points.gather(model(points)), "gradient": gradient(model, J, part)}

    result = hf.rank_invariance(build, comm=comm)
    assert result.ok, result.differences


def test_products_read_no_further_than_the_values(comm: MPI.Comm) -> None:
    """What lies behind a vector in memory is not a number here."""
    model = inversion(comm, "transient_navier_stokes")
    products = [(s, k, C) for s in model.solver.stages for k, C in s.factors.products.items()]
    assert products
    for stage, k, C in products:
        n_columns, n_rows = len(stage.coefficients[k].x.array), len(stage.u.x.array)
        for times, n, size in ((C.local_times, n_columns, n_rows), (C.local_transposed_times, n_rows, n_columns)):
            x = np.full(n + 100, np.nan)
            x[:n] = 1.0
            found = times(x[:n])
            assert found.shape == (size,)
            assert np.isfinite(found).all()


# -- what the problems are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[:-1])
def test_coefficients_are_those_of_the_strong_form(comm: MPI.Comm, name: str) -> None:
    more: dict[str, Any] = {"beta": (1.0, 0.0)} if "advection" in name else {}
    more |= {"initial": (1.0, 0.0)} if name == "gray_scott" else {}
    problem = getattr(C, name)(square(comm, 1), **more)
    assert set(problem.coefficients) == set(transient_strong_form(name).coefficients)
    assert problem.name == name


def test_initial_values_are_numbers_expressions_functions_pairs_and_modules(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    x, u0 = ufl.SpatialCoordinate(domain), field(domain, "u0")
    u0.interpolate(lambda x: x[0])

    def start(problem: hf.TransientProblem) -> np.ndarray:
        model = hf.TransientModel.of(problem, interval=(0.0, 1.0), dt=1.0)
        return model.solve()[0].detach().numpy()

    nodes = u0.function_space.tabulate_dof_coordinates()[: len(owned(u0))]
    np.testing.assert_allclose(start(C.heat(domain, initial=3.0, conditions=())), 3.0)
    for initial in (u0, x[0]):
        np.testing.assert_allclose(start(C.heat(domain, initial=initial)), nodes[:, 0], atol=1e-14)
    pairs = start(C.gray_scott(domain, initial=(x[0], 0.5))).reshape(-1, 2)
    np.testing.assert_allclose(pairs, np.column_stack([nodes[:, 0], np.full(len(nodes), 0.5)]), atol=1e-14)
    network = hf.MLP(2, 1, width=3, depth=1)
    model = hf.TransientModel.of(C.heat(domain, initial=network), interval=(0.0, 1.0), dt=1.0)
    assert set(network.parameters()) <= set(model.parameters())


def test_only_values_with_t_are_set_anew(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    conditions = (hf.Dirichlet(x[0], left), hf.Dirichlet(t * x[0], right))
    assert len(C.heat(domain, conditions=conditions, t=t).time_values) == 1
    assert not C.heat(domain, conditions=conditions).time_values, "t is not known to be the time"


REFUSED: dict[str, tuple[Callable[[mesh.Mesh], Any], str]] = {
    "t": (lambda m: C.heat(m, t=0.0), "t of heat must be a Constant"),
    "kappa": (lambda m: C.heat_nondivergence(m, kappa=0.0), "'kappa' of heat_nondivergence must be positive, not 0.0"),
    "matrix": (lambda m: C.heat_nondivergence(m, kappa=np.eye(2)), r"has shape \(2, 2\), not \(\)"),
    "c": (lambda m: C.wave(m, c=-1.0), "'c' of wave must be positive"),
    "component": (lambda m: C.wave(m, conditions=[hf.Dirichlet(0.0, component=1)]), "has no component 1"),
    "Du": (lambda m: C.gray_scott(m, Du=0.0, initial=(1.0, 0.0)), "'Du' of gray_scott must be positive"),
    "triple": (lambda m: C.gray_scott(m, initial=(1.0, 0.0, 0.0)), "initial value of gray_scott has 3 parts, not 2"),
    "one for two": (lambda m: C.gray_scott(m, initial=1.0), r"must have the shape \(2,\), not be a number"),
    "shape": (lambda m: C.burgers(m, initial=ufl.SpatialCoordinate(m)[0]), r"has shape \(\), not \(2,\)"),
    "kind": (lambda m: C.heat(m, initial="cold"), "the initial value of heat must be a number, a UFL expression"),
    "nan": (lambda m: C.heat(m, initial=np.nan), "the initial value of heat is not finite"),
    "order": (lambda m: C.transient_navier_stokes(m, conditions=(), order=3), "must be 1 or 2, not 3"),
    "line": (
        lambda m: C.transient_navier_stokes(box(m.comm, Cell.interval, 2), conditions=()),
        "needs a mesh of a domain in 2D or 3D",
    ),
    "pressure": (
        lambda m: C.transient_navier_stokes(m, conditions=(), pressure=hf.Flux(1.0)),  # type: ignore[arg-type]
        "takes Dirichlet conditions",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_arguments_that_do_not_fit_are_refused_by_name(comm: MPI.Comm, what: str) -> None:
    build, message = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=message):
        build(square(comm, 2))
