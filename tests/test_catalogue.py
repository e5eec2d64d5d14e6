"""Ready problems: manufactured solutions at their rates, what the problems are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from boxes import Cell, box, field, left, right, side, walls
from cases import square
from dolfinx import fem, mesh
from ufl import cos, dot, exp, grad, inner, sin

import hyco_fem as hf
from hyco_fem.pde.quadrature import fixed_quadrature

C = hf.catalogue
PLATE = Path(__file__).parent.parent / "meshes" / "plate_with_hole.geo"


# -- manufactured solutions --------------------------------------------------------------------------------------


def all_three(domain: mesh.Mesh, u: Any, flux: Any) -> list:
    """Conditions that the exact u satisfies: Dirichlet at x₀ = 0, its own flux at x₀ = 1, a Robin one elsewhere."""
    h = 2.0
    conditions = [hf.Dirichlet(u, left), hf.Flux(flux, right)]
    return conditions + ([hf.Robin(h, u + flux / h, walls(domain))] if domain.topology.dim > 1 else [])


def manufactured(domain: mesh.Mesh, name: str, degree: int) -> tuple[hf.Problem, Any]:
    """A problem of the catalogue with loads and conditions made from an exact solution, and that solution."""
    x, n, d = ufl.SpatialCoordinate(domain), ufl.FacetNormal(domain), domain.geometry.dim
    u = sin(1.0 + x[0]) * (cos(x[1]) if d > 1 else 1.0) * (exp(x[2] / 2.0) if d > 2 else 1.0)
    kappa = 1.0 + x[0] / 2.0

    def finish(flux: Any, rest: Any = 0.0, **quantities: Any) -> tuple[hf.Problem, Any]:
        conditions = all_three(domain, u, dot(flux, n))
        f = -ufl.div(flux) + rest
        return getattr(C, name)(domain, degree=degree, f=f, conditions=conditions, **quantities), u

    if name == "darcy":
        K = np.array([[2.0, 0.5], [0.5, 1.0]])
        return finish(dot(ufl.as_matrix(K.tolist()), grad(u)), kappa=K)
    if name == "reaction_diffusion":
        return finish(kappa * grad(u), 3.0 * u, kappa=kappa, eta=3.0)
    if name == "helmholtz":
        return finish(kappa**2 * grad(u), -12.0 * u, c=kappa, k2=12.0)
    if name == "advection_diffusion":
        beta = ufl.as_vector((1.0 + x[1], -0.5))
        return finish(kappa * grad(u), dot(beta, grad(u)), kappa=kappa, beta=beta)
    if name == "power_law":
        return finish(kappa * (0.25 + dot(grad(u), grad(u))) ** 0.75 * grad(u), kappa=kappa, p=3.5, eps=0.5)
    if name == "poisson":
        return finish(kappa * grad(u), kappa=kappa)

    u = 0.2 * ufl.as_vector((sin(x[0] + x[1]), cos(x[0]) * x[1], *((x[2] * x[0],) if d > 2 else ())))
    E, nu = 1.0 + x[0] / 2.0, 0.25
    mu, lmbda = E / (2 * (1 + nu)), E * nu / ((1 + nu) * (1 - 2 * nu))
    if name == "elasticity":
        eps = ufl.sym(grad(u))
        stress = 2 * mu * eps + lmbda * ufl.tr(eps) * ufl.Identity(d)
    else:
        # ∂ψ/∂G by UFL from the energy, not by the formula of the catalogue.
        G = ufl.variable(ufl.Identity(d) + grad(u))
        J = ufl.det(G)
        psi = mu / 2 * (inner(G, G) - d - 2 * ufl.ln(J)) + lmbda / 2 * ufl.ln(J) ** 2
        stress = ufl.diff(psi, G)
    conditions = all_three(domain, u, dot(stress, n))
    return getattr(C, name)(domain, degree=degree, E=E, nu=nu, f=-ufl.div(stress), conditions=conditions), u


def rates(errors: list) -> np.ndarray:
    """The rate of each column over the last of the halvings of the mesh size."""
    e = np.array(errors)
    return np.log2(e[-2] / e[-1])


def check_rates(comm: MPI.Comm, name: str, cell: Cell, degree: int, sizes: tuple[int, ...]) -> None:
    errors = []
    for n in sizes:
        problem, exact = manufactured(box(comm, cell, n), name, degree)
        model = hf.PhysicalModel.of(problem)
        model.solve()
        found = hf.error_norms(problem.u, exact)
        errors.append((found.L2, found.H1))
        model.close()
    assert rates(errors) == pytest.approx([degree + 1, degree], abs=0.15), errors


@pytest.mark.parametrize(
    "degree", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("cell", [Cell.interval, Cell.triangle, Cell.quadrilateral], ids=lambda c: c.name)
def test_poisson_converges_at_the_rates_of_its_elements(comm: MPI.Comm, cell: Cell, degree: int) -> None:
    check_rates(comm, "poisson", cell, degree, (4, 8, 16) if degree == 1 else (2, 4, 8))


@pytest.mark.slow
@pytest.mark.parametrize("cell", [Cell.tetrahedron, Cell.hexahedron], ids=lambda c: c.name)
@pytest.mark.parametrize(("name", "degree"), [("poisson", 1), ("poisson", 2), ("elasticity", 1)])
def test_problems_in_space_converge_at_the_rates_of_their_elements(
    comm: MPI.Comm, name: str, cell: Cell, degree: int
) -> None:
    check_rates(comm, name, cell, degree, (3, 6, 12) if degree == 1 else (2, 4, 8))


@pytest.mark.parametrize("degree", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    ["darcy", "reaction_diffusion", "helmholtz", "advection_diffusion", "power_law", "elasticity", "hyperelasticity"],
)
def test_problems_converge_at_the_rates_of_their_elements(comm: MPI.Comm, name: str, degree: int) -> None:
    check_rates(comm, name, Cell.triangle, degree, (4, 8, 16) if degree == 1 else (3, 6, 12))


@pytest.mark.parametrize("name", ["stokes", "navier_stokes"])
@pytest.mark.parametrize("pinned", [False, True], ids=["outflow", "enclosed"])
def test_flows_converge_at_the_rates_of_taylor_hood(comm: MPI.Comm, name: str, pinned: bool) -> None:
    errors = []
    for n in (3, 6, 12):
        domain = square(comm, n)
        x, normal = ufl.SpatialCoordinate(domain), ufl.FacetNormal(domain)
        u = ufl.perp(grad(sin(x[0] + 0.5) * cos(x[1] - 0.3)))
        p, mu = sin(2.0 * x[0] + x[1]), 0.5 + 0.1 * x[0]
        stress = mu * grad(u) - p * ufl.Identity(2)
        f = -ufl.div(stress) + (dot(grad(u), u) if name == "navier_stokes" else 0.0 * u)
        sides = np.concatenate([side(domain, 0, 0.0), walls(domain)])
        open_end = (hf.Dirichlet(u, sides), hf.Flux(dot(stress, normal), right))
        conditions = hf.Dirichlet(u) if pinned else open_end
        problem = getattr(C, name)(domain, mu=mu, f=f, conditions=conditions, pin_pressure=pinned)
        model = hf.PhysicalModel.of(problem)
        model.solve()
        velocity, pressure = problem.extras["velocity"], problem.extras["pressure"]

        def integral(g: Any) -> float:
            return comm.allreduce(fem.assemble_scalar(fem.form(g * ufl.dx(metadata={"quadrature_degree": 8}))))

        shift = integral(pressure - p) if pinned else 0.0
        e = velocity - u
        errors.append([integral(inner(e, e)) ** 0.5, integral((pressure - p - shift) ** 2) ** 0.5])
        model.close()
    assert rates(errors) == pytest.approx([3.0, 2.0], abs=0.2), errors


# -- what the problems are -----------------------------------------------------------------------------------------


def test_upwinding_keeps_sharp_layers_from_oscillating(comm: MPI.Comm) -> None:
    """At a cell Péclet number of 4000, the exact solution is in [0, 1]; Galerkin's leaves it by far."""
    domain = square(comm, 16)
    inflow = np.concatenate([side(domain, 0, 0.0), side(domain, 1, 0.0)])
    conditions = (
        hf.Dirichlet(0.0, np.concatenate([side(domain, 0, 1.0), side(domain, 1, 1.0)])),
        hf.Dirichlet(1.0, inflow),
    )
    problem = C.advection_diffusion(domain, kappa=1e-5, beta=(1.0, 0.6), conditions=conditions)
    v = ufl.TestFunction(problem.u.function_space)
    u = problem.u
    plain = 1e-5 * inner(grad(u), grad(v)) * ufl.dx + dot(ufl.as_vector((1.0, 0.6)), grad(u)) * v * ufl.dx

    def overshoot(model: hf.PhysicalModel) -> float:
        values = model.solve()
        return comm.allreduce(float(torch.maximum(values - 1.0, -values).max()) if len(values) else 0.0, op=MPI.MAX)

    assert overshoot(hf.PhysicalModel.of(problem)) < 0.3
    assert overshoot(hf.PhysicalModel(plain, u, problem.bcs)) > 1.0


def at(model: hf.PhysicalModel, points: Any, space: fem.FunctionSpace | None = None) -> np.ndarray:
    """Values of the solution at points, on all ranks."""
    where = hf.Points(model.V.mesh, points)
    return where.gather(where.evaluate(model.solve().detach(), space or model.observed))


@pytest.mark.parametrize("cell", [Cell.triangle, Cell.quadrilateral, Cell.tetrahedron], ids=lambda c: c.name)
def test_a_pressure_is_pinned_where_coordinates_are_lowest(comm: MPI.Comm, cell: Cell) -> None:
    """Water at rest in a box: u = 0 and p = −depth, if p = 0 at the origin."""
    domain = box(comm, cell, 2)
    d = domain.geometry.dim
    domain.geometry.x[:, :d] = 1.0 - domain.geometry.x[:, d - 1 :: -1]  # turned over: another vertex comes first
    weight = np.eye(d)[-1]
    model = hf.PhysicalModel.of(C.stokes(domain, f=-weight, conditions=hf.Dirichlet(0.0), pin_pressure=True))
    x = np.array([[0.0, 0.0, 0.0], [0.3, 0.4, 0.2], [1.0, 1.0, 1.0]])[:, :d]
    np.testing.assert_allclose(at(model, x, model.V.sub(1)).ravel(), -x[:, -1], atol=1e-10)
    np.testing.assert_allclose(at(model, x), np.zeros((3, d)), atol=1e-10)


def test_of_several_dirichlet_conditions_the_last_one_counts(comm: MPI.Comm) -> None:
    conditions = (hf.Dirichlet(5.0), hf.Dirichlet(1.0, left), hf.Dirichlet(2.0, right))
    model = hf.PhysicalModel.of(C.poisson(square(comm, 4), f=0.0, conditions=conditions))
    corners_and_more = [[0.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.5, 1.0]]
    np.testing.assert_allclose(at(model, corners_and_more).ravel(), [1.0, 1.0, 2.0, 5.0], atol=1e-12)


def test_coefficients_hold_what_was_given_and_expressions_stay_known(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    u_in = field(domain, "u_in")
    conditions = (hf.Dirichlet(u_in, left), hf.Robin(2.0, 1.0, right))
    problem = C.poisson(domain, kappa=3.0, f=ufl.SpatialCoordinate(domain)[0], conditions=conditions)
    assert set(problem.coefficients) == {"kappa", "u_in"}
    assert problem.coefficients["u_in"] is u_in
    assert np.all(problem.coefficients["kappa"].x.array == 3.0)
    tensor = C.darcy(domain, kappa=[[2.0, 1.0], [1.0, 3.0]]).coefficients["kappa"]
    np.testing.assert_array_equal(
        tensor.x.array.reshape(-1, 4), np.tile([2.0, 1.0, 1.0, 3.0], (len(tensor.x.array) // 4, 1))
    )


def test_a_model_of_a_problem_knows_what_is_positive_and_what_is_observed(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    channel = (hf.Dirichlet((1.0, 0.0), left), hf.Dirichlet(0.0, walls(domain)))
    flow = hf.PhysicalModel.of(C.stokes(domain, conditions=channel))
    assert at(flow, [[0.5, 0.5]]).shape == (1, 2)
    assert at(hf.PhysicalModel.of(C.stokes(domain, conditions=channel), observed=(0, 1)), [[0.5, 0.5]]).size == 1
    problem = C.poisson(domain)
    with pytest.raises(hf.CoefficientError, match="'kappa' is not finite and positive"):
        hf.PhysicalModel.of(problem, {"kappa": hf.Scalar(-1.0)}).solve()
    with pytest.raises(ValueError, match=r"poisson has no coefficient named 'eta'; it has \['f', 'kappa'\]"):
        hf.PhysicalModel.of(problem, {"eta": hf.Scalar(1.0)})


def test_the_flux_of_darcy_balances_the_sources(comm: MPI.Comm) -> None:
    """In and out by Dirichlet conditions on opposite sides, κ = 2: q = (−2, 0)."""
    domain = square(comm, 3)
    problem = C.darcy(domain, kappa=2.0, conditions=(hf.Dirichlet(0.0, left), hf.Dirichlet(1.0, right)))
    hf.PhysicalModel.of(problem).solve()
    through = dot(problem.extras["flux"], ufl.as_vector((1.0, 0.0))) * ufl.dx
    assert comm.allreduce(fem.assemble_scalar(fem.form(through))) == pytest.approx(-2.0, rel=1e-12)


def test_facets_and_cells_are_found_by_the_names_of_the_mesh(comm: MPI.Comm) -> None:
    plate = hf.read_mesh(PLATE, comm, mesh_size=0.1)
    v = ufl.TestFunction(fem.functionspace(plate.mesh, ("Lagrange", 1)))

    def length(name: str) -> float:
        F = C.poisson(plate.mesh, f=0.0, conditions=hf.Flux(1.0, plate.facets(name))).F
        return -comm.allreduce(
            float(fem.assemble_vector(fem.form(ufl.replace(F, {F.coefficients()[0]: 0 * v}))).array.sum())
        )

    assert length("left") == pytest.approx(1.0)
    assert length("hole") == pytest.approx(0.4 * np.pi, rel=0.02)
    tdim = plate.mesh.topology.dim
    assert (
        len(plate.cells("plate"))
        == plate.mesh.topology.index_map(tdim).size_local + plate.mesh.topology.index_map(tdim).num_ghosts
    )
    with pytest.raises(ValueError, match=r"no facets named 'lid'; there are \['hole', 'insulated', 'left', 'right'\]"):
        plate.facets("lid")
    with pytest.raises(ValueError, match=r"no cells named 'left'; there are \['plate'\]"):
        plate.cells("left")


def test_each_term_has_one_quadrature_for_itself_and_its_derivatives(comm: MPI.Comm) -> None:
    """A degree that the user has set stays; the others are those that UFL chooses, term by term."""
    V = fem.functionspace(square(comm, 2), ("Lagrange", 1))
    u, v = fem.Function(V), ufl.TestFunction(V)
    F = fixed_quadrature((u * v + exp(u) * v) * ufl.dx + sin(u) * v * ufl.dx(metadata={"quadrature_degree": 7}))

    def degrees(form: ufl.Form) -> list[int]:
        return sorted(i.metadata()["quadrature_degree"] for i in form.integrals())

    assert degrees(F) == [2, 4, 7]
    assert degrees(ufl.algorithms.expand_derivatives(ufl.derivative(F, u))) == [2, 4, 7]


# -- rising Reynolds numbers ---------------------------------------------------------------------------------------


def cavity(comm: MPI.Comm, mu: Any = 1.0) -> hf.Problem:
    """The lid-driven cavity; mu a number, or a function of the mesh."""
    domain = square(comm, 4)
    sides = np.concatenate([side(domain, 0, 0.0), side(domain, 0, 1.0), side(domain, 1, 0.0)])
    conditions = (hf.Dirichlet((1.0, 0.0), side(domain, 1, 1.0)), hf.Dirichlet(0.0, sides))
    mu = mu(domain) if callable(mu) else mu
    return C.navier_stokes(domain, mu=mu, conditions=conditions, pin_pressure=True)


@pytest.mark.parametrize("viscosity", ["number", "constant"])
def test_continuation_leads_to_the_solution_at_the_last_reynolds_number(comm: MPI.Comm, viscosity: str) -> None:
    problem = cavity(comm, 1.0 if viscosity == "number" else lambda domain: fem.Constant(domain, 1.0))
    if viscosity == "number":
        solver = hf.PhysicalModel.of(problem, warm_start=True)
    else:
        solver = hf.SteadySolver(problem.F, problem.u, problem.bcs, warm_start=True)
    C.continuation(solver, problem, [1, 20, 100])
    mu = problem.extras["viscosity"]
    assert np.all((mu.x.array if viscosity == "number" else mu.value) == 0.01)
    direct = cavity(comm, 0.01)
    hf.PhysicalModel.of(direct).solve()
    np.testing.assert_allclose(problem.u.x.array, direct.u.x.array, atol=1e-9)


def test_continuation_brings_an_unknown_viscosity_near_its_solution(comm: MPI.Comm) -> None:
    problem = cavity(comm)
    model = hf.PhysicalModel.of(problem, {"mu": hf.Scalar(1 / 80)}, warm_start=True)
    C.continuation(model, problem, [5, 80])
    model.solve()
    assert model.solver.newton.iterations == 0


def test_a_continuation_that_fails_names_the_number_reached_and_restores_all(comm: MPI.Comm) -> None:
    problem = cavity(comm, 0.7)
    model = hf.PhysicalModel.of(problem, warm_start=True, petsc_options={"snes_max_it": 3})
    problem.u.x.array[:] = 0.25
    with pytest.raises(hf.SolveError, match=r"navier_stokes failed at Re = 1e\+06 \(reached: 1\)"):
        C.continuation(model, problem, [1.0, 1e6])
    assert np.all(problem.u.x.array == 0.25)
    assert np.all(problem.coefficients["mu"].x.array == 0.7)


def test_continuation_refuses_what_it_cannot_do(comm: MPI.Comm) -> None:
    problem = cavity(comm)
    with pytest.raises(ValueError, match="warm_start=True"):
        C.continuation(hf.PhysicalModel.of(problem), problem, [1, 2])
    model = hf.PhysicalModel.of(problem, warm_start=True)
    with pytest.raises(ValueError, match="positive and rising"):
        C.continuation(model, problem, [10, 1])
    with pytest.raises(ValueError, match="not made from this problem"):
        C.continuation(model, cavity(comm), [1, 2])


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[mesh.Mesh], Any], str]] = {
    "negative": (lambda m: C.poisson(m, kappa=-1.0), "'kappa' of poisson must be positive, not -1.0"),
    "indefinite": (lambda m: C.darcy(m, kappa=[[1.0, 2.0], [2.0, 1.0]]), "'kappa' of darcy must be positive"),
    "nan": (lambda m: C.helmholtz(m, k2=np.nan), "'k2' of helmholtz is not finite"),
    "kind": (lambda m: C.poisson(m, kappa="steel"), "'kappa' of poisson must be a number, an array"),
    "shape": (lambda m: C.poisson(m, f=(1.0, 2.0)), r"'f' of poisson has shape \(2,\), not \(\)"),
    "expression": (lambda m: C.poisson(m, f=ufl.SpatialCoordinate(m)), r"'f' of poisson has shape \(2,\)"),
    "velocity": (
        lambda m: C.advection_diffusion(m, beta=1.0),
        r"'beta' of advection_diffusion has shape \(\), not \(2,\)",
    ),
    "degree": (lambda m: C.poisson(m, degree=0), "the degree of poisson must be a whole number from 1 on, not 0"),
    "half": (lambda m: C.poisson(m, degree=1.5), "whole number"),
    "nu": (lambda m: C.elasticity(m, nu=0.5), "'nu' of elasticity must be between -1 and 0.5"),
    "E": (lambda m: C.hyperelasticity(m, E=0.0), "'E' of hyperelasticity must be positive"),
    "line": (lambda m: C.elasticity(box(m.comm, Cell.interval, 2)), "elasticity needs a mesh of a domain in 2D or 3D"),
    "p": (lambda m: C.power_law(m, p=1.0), "'p' of power_law must be above 1"),
    "eps": (lambda m: C.power_law(m, eps=0.0), "'eps' of power_law must be positive"),
    "mu": (lambda m: C.stokes(m, mu=0.0, conditions=()), "'mu' of stokes must be positive"),
    "closed": (lambda m: C.stokes(m, conditions=hf.Dirichlet(0.0)), "use pin_pressure=True"),
    "open": (lambda m: C.stokes(m, conditions=hf.Dirichlet(0.0, left), pin_pressure=True), "use pin_pressure=False"),
    "mesh": (lambda m: C.poisson("plate.msh"), "poisson needs a dolfinx mesh, not str"),
    "other mesh": (lambda m: C.poisson(m, kappa=field(square(m.comm, 2), "k")), "'k', lives on another mesh"),
    "condition": (
        lambda m: C.poisson(m, conditions=[0.0]),
        "conditions of poisson are Dirichlet, Flux or Robin, not float",
    ),
    "scalar": (
        lambda m: C.elasticity(m, conditions=hf.Dirichlet(1.0)),
        r"condition 0 of elasticity \(Dirichlet\) has shape",
    ),
    "component": (lambda m: C.poisson(m, conditions=hf.Dirichlet(1.0, component=0)), "has no component 0"),
    "third": (lambda m: C.elasticity(m, conditions=hf.Dirichlet(0.0, component=2)), "has no component 2"),
    "space": (
        lambda m: C.stokes(m, conditions=hf.Dirichlet(field(m, "g", 1, 2), left)),
        r"'g', must be a Function of fem.functionspace\(mesh, \('Lagrange', 2, \(2,\)\)\)",
    ),
    "nowhere": (lambda m: C.poisson(m, conditions=hf.Flux(1.0, lambda x: x[0] > 7)), r"\(Flux\) holds on no facet"),
    "far": (
        lambda m: C.poisson(m, conditions=hf.Dirichlet(1.0, np.array([10**6]))),
        "facets that the mesh does not have",
    ),
    "halves": (
        lambda m: C.poisson(m, conditions=hf.Dirichlet(1.0, np.array([0.5]))),
        "facets that the mesh does not have",
    ),
    "mask": (
        lambda m: C.poisson(m, conditions=hf.Dirichlet(1.0, np.array([True]))),
        "facets that the mesh does not have",
    ),
    "interior": (lambda m: C.poisson(m, conditions=hf.Flux(1.0, np.arange(9))), "facets that are not on the boundary"),
    "overlap": (
        lambda m: C.poisson(m, conditions=(hf.Flux(1.0, left), hf.Robin(1.0, 0.0))),
        r"condition 0 of poisson \(Flux\) and condition 1 of poisson \(Robin\) hold on the same facets",
    ),
    "no effect": (lambda m: C.poisson(m, conditions=(hf.Dirichlet(0.0), hf.Flux(1.0, left))), "a flux has no effect"),
    "Robin": (lambda m: C.poisson(m, conditions=hf.Robin(-1.0, 0.0)), r"the coefficient of .* must be at least 0"),
    "names": (
        lambda m: C.poisson(m, f=field(m, "a"), conditions=hf.Robin(1.0, field(m, "f"))),
        "poisson would have two coefficients named 'f'",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_arguments_that_do_not_fit_are_refused_by_name(comm: MPI.Comm, what: str) -> None:
    build, message = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=message):
        build(square(comm, 3))
