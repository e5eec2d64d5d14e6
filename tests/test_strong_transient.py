"""Strong forms in time: zero for solutions in closed form, differentiable, and clear about what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import square
from dolfinx import fem, la, mesh
from test_strong import Formula, in_mean, in_ufl, of_degree
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem import _compat
from hyco_fem.models.strong_transient import (
    TRANSIENT,
    InTime,
    TransientStrongForm,
    transient_flux,
    transient_residual,
)
from hyco_fem.pde.vectors import owned

RNG = np.random.default_rng(5)
Z1, Z2, Z3 = (torch.from_numpy(RNG.uniform(0.1, 0.9, (7, d + 1))) for d in (1, 2, 3))
D, NU = 0.3, 0.05
S = math.sqrt(2 * D)


def front(x: Any, t: Any) -> Any:
    """The front of v_t = D Δv + v² (1 − v), of speed √(D/2) (Zeldovich)."""
    return 1 / (1 + torch.exp((x - math.sqrt(D / 2) * t) / S))


def kink(x: Any, y: Any, t: Any) -> Any:
    """Fletcher's solution of the Burgers equation in the plane, Int. J. Numer. Meth. Fluids 3 (1983)."""
    return 1 / (4 * (1 + torch.exp((4 * y - 4 * x - t) / (32 * NU))))


# name: equation, points, solution, coefficients.
SOLUTIONS: dict[str, tuple[str, Tensor, tuple[Callable, ...], dict[str, Any]]] = {
    "heat, a decaying mode": (
        "heat",
        Z2,
        (lambda x, y, t: torch.exp(-5 * D * t) * torch.sin(x) * torch.cos(2 * y),),
        {"kappa": D, "f": 0.0},
    ),
    "heat, κ(x)": (
        "heat",
        Z2,
        (lambda x, y, t: x**2 + y**2 + t,),
        {"kappa": Formula(lambda x, y: 1 + x), "f": Formula(lambda x, y: -3 - 6 * x)},
    ),
    "heat, a matrix κ, in space": (
        "heat",
        Z3,
        (lambda x, y, z, t: t * x * y + z**2,),
        {
            "kappa": [[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]],
            "f": InTime(Formula(lambda x, y, z, t: x * y - t - 6)),
        },
    ),
    "heat, κ(x, t)": (
        "heat",
        Z1,
        (lambda x, t: x**2 * t,),
        {
            "kappa": InTime(Formula(lambda x, t: 1 + x * t)),
            "f": InTime(lambda z: z[:, 0] ** 2 - 2 * z[:, 1] - 4 * z[:, 0] * z[:, 1] ** 2),
        },
    ),
    "heat_nondivergence, a κ with a kink": (
        "heat_nondivergence",
        Z2,
        (lambda x, y, t: x**2 + y**2 + t,),
        {"kappa": Formula(lambda x, y: (x - 0.5).abs()), "f": Formula(lambda x, y: 1 - 4 * (x - 0.5).abs())},
    ),
    "transient_advection_diffusion, a mode that is carried along": (
        "transient_advection_diffusion",
        Z2,
        (lambda x, y, t: torch.exp(-13 * D * t) * torch.sin(3 * (x - t) - 2 * (y + 0.5 * t)),),
        {"kappa": D, "beta": [1.0, -0.5], "f": 0.0},
    ),
    "wave, plane": (
        "wave",
        Z2,
        (
            lambda x, y, t: torch.sin(3 * x - 2 * y - 2 * math.sqrt(13) * t),
            lambda x, y, t: -2 * math.sqrt(13) * torch.cos(3 * x - 2 * y - 2 * math.sqrt(13) * t),
        ),
        {"c": 2.0, "f": 0.0},
    ),
    "wave, c(x)": (
        "wave",
        Z1,
        (lambda x, t: x**2 / 2 * t, lambda x, t: x**2 / 2),
        {"c": Formula(lambda x: 1 + x), "f": InTime(Formula(lambda x, t: -t * ((1 + x) ** 2 + 2 * x * (1 + x))))},
    ),
    "gray_scott, a front without feed": (
        "gray_scott",
        Z1,
        (lambda x, t: 1 - front(x, t), front),
        {"Du": D, "Dv": D, "F": 0.0, "k": 0.0},
    ),
    "gray_scott, feed alone": (
        "gray_scott",
        Z2,
        (lambda x, y, t: 1 - torch.exp(-(0.2 + 4 * D) * t) * torch.sin(2 * x), lambda x, y, t: 0 * x),
        {"Du": D, "Dv": 0.1, "F": 0.2, "k": 0.06},
    ),
    "gray_scott, decay alone": (
        "gray_scott",
        Z2,
        (lambda x, y, t: 0 * x, lambda x, y, t: torch.exp(-(0.06 + 9 * D) * t) * torch.sin(3 * y)),
        {"Du": 0.1, "Dv": D, "F": 0.0, "k": 0.06},
    ),
    "burgers, a shock that travels": (
        "burgers",
        Z1,
        (lambda x, t: 0.5 - 0.4 * torch.tanh(0.4 * (x - 0.5 * t) / (2 * NU)),),
        {"nu": NU, "f": 0.0},
    ),
    "burgers, in the plane": (
        "burgers",
        Z2,
        (lambda x, y, t: 0.75 - kink(x, y, t), lambda x, y, t: 0.75 + kink(x, y, t)),
        {"nu": NU, "f": 0.0},
    ),
}


def test_every_equation_has_a_solution_here() -> None:
    assert {equation for equation, *_ in SOLUTIONS.values()} == set(TRANSIENT)


@pytest.mark.parametrize("case", SOLUTIONS)
def test_the_residual_of_a_solution_is_zero(case: str) -> None:
    equation, z, solution, coefficients = SOLUTIONS[case]
    r = transient_residual(equation, Formula(*solution), z, coefficients)
    assert r.shape == ((7,) if len(solution) == 1 else (7, len(solution)))
    assert float(r.detach().abs().max()) < 1e-11
    # Each component by itself makes a difference, in time as in space.
    for i in range(len(solution)):
        for wrong in (lambda *z: 0.1 * z[-1], lambda *z: 0.1 * z[0] ** 2):
            other = [lambda *z, f=f, on=k == i, w=wrong: f(*z) + on * w(*z) for k, f in enumerate(solution)]
            assert float(transient_residual(equation, Formula(*other), z, coefficients).detach().abs().max()) > 1e-3


# -- against the catalogue -------------------------------------------------------------------------------------


def ripple(lib: Any, X: Any, a: float, b: float) -> Any:
    """In UFL and in torch."""
    return a + 0.2 * lib.sin(2 * X[0] + b * X[1])


# The coefficients of each equation, as a and b of the ripple.  Vectors: several.
FIELDS: dict[str, dict[str, Any]] = {
    "heat": {"kappa": (1.0, 3.0), "f": (2.0, 1.0)},
    "heat_nondivergence": {"kappa": (1.0, 3.0), "f": (2.0, 1.0)},
    "wave": {"c": (1.2, 1.0), "f": (2.0, 1.0)},
    "gray_scott": {"Du": (0.5, 1.0), "Dv": (0.3, 2.0), "F": (0.4, 1.0), "k": (0.6, 3.0)},
    "burgers": {"nu": (0.5, 1.0), "f": ((1.0, 1.0), (-1.0, 2.0))},
}


@pytest.mark.parametrize(
    ("name", "d"), [*((name, 2) for name in FIELDS), ("heat", 1), ("heat_nondivergence", 1), ("burgers", 1)]
)
def test_it_is_the_density_of_the_residual_of_the_catalogue(comm: MPI.Comm, name: str, d: int) -> None:
    """F(u, ∂ₜu; v) + E(u; v) = ∫ r·v for a random network and all v that vanish on the boundary."""
    domain = square(comm, 4) if d == 2 else mesh.create_unit_interval(comm, 8)
    x, time, degree = ufl.SpatialCoordinate(domain), 0.7, 12
    # Nothing varies with y where there is none.
    place = [x[i] for i in range(d)] + [0.0] * (2 - d)
    in_form, in_torch = {}, {}
    for key, spec in FIELDS[name].items():
        many = isinstance(spec[0], tuple)
        specs = spec[:d] if many else [spec]
        values = [ripple(ufl, place, *s) for s in specs]
        in_form[key] = ufl.as_vector(values) if many and not (name == "burgers" and d == 1) else values[0]
        in_torch[key] = Formula(*(lambda *X, s=s: ripple(torch, (*X, torch.zeros(())), *s) for s in specs))
    options = {"initial": (1.0, 0.0)} if name == "gray_scott" else {}
    problem = getattr(hf.catalogue, name)(domain, **in_form, **options)
    V, t = problem.u.function_space, ufl.variable(problem.t)
    net = hf.MLP(d + 1, TRANSIENT[name].outputs(d), width=4, depth=2, seed=5)
    u = in_ufl(net, [*place[:d], t], d + 1)
    F = problem.F if problem.explicit is None else problem.F + problem.explicit
    F = ufl.replace(F, {problem.u: u, problem.u_t: ufl.diff(u, t)})
    problem.t.value = time
    assembled = fem.Function(V)
    fem.assemble_vector(assembled.x.array, fem.form(of_degree(F, degree)))
    assembled.x.scatter_reverse(la.InsertMode.add)
    points = hf.quadrature_points(domain, degree)
    z = torch.nn.functional.pad(points.x, (0, 1), value=time)
    r = transient_residual(name, net, z, in_torch)
    if name == "heat_nondivergence":
        r = r / in_torch["kappa"](points.x)
    found = in_mean(points, V, r)
    domain.topology.create_connectivity(d - 1, d)
    outer = fem.locate_dofs_topological(V, d - 1, mesh.exterior_facet_indices(domain.topology))
    inside = np.setdiff1d(np.arange(len(found) // V.dofmap.index_map_bs), outer)
    found, expected = (a.reshape(-1, V.dofmap.index_map_bs)[inside] for a in (found, owned(assembled)))
    scale = np.abs(found).max(axis=0, initial=0.0)
    comm.Allreduce(MPI.IN_PLACE, scale, op=MPI.MAX)
    assert (scale > 1e-4).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * scale.max())


def test_it_is_the_strong_form_of_advection_in_ufl(comm: MPI.Comm) -> None:
    """Point by point: the catalogue's form has the stabilisation in it, so its density is another."""
    domain = square(comm, 4)
    x, t = ufl.SpatialCoordinate(domain), ufl.variable(fem.Constant(domain, 0.7))
    net = hf.MLP(3, width=4, depth=2, seed=5)
    u = in_ufl(net, [*x, t], 3)
    kappa, beta = 1 + x[0] * x[1], ufl.as_vector([2.0 + x[1], -1.0])
    strong = ufl.diff(u, t) - ufl.div(kappa * ufl.grad(u)) + ufl.dot(beta, ufl.grad(u)) - ufl.sin(x[0])
    W = fem.functionspace(domain, ("DG", 2))
    expected = fem.Function(W)
    expected.interpolate(fem.Expression(strong, _compat.interpolation_points(W)))
    z = torch.nn.functional.pad(torch.from_numpy(W.tabulate_dof_coordinates()[:, :2].copy()), (0, 1), value=0.7)
    found = transient_residual(
        "transient_advection_diffusion",
        net,
        z,
        {
            "kappa": Formula(lambda x, y: 1 + x * y),
            "beta": Formula(lambda x, y: 2 + y, lambda x, y: -1.0),
            "f": Formula(lambda x, y: torch.sin(x)),
        },
    )
    np.testing.assert_allclose(found.detach(), expected.x.array, rtol=0, atol=1e-11)


def test_the_flux_is_that_of_the_natural_conditions() -> None:
    """κ∇u; ∇u where the equation is not in divergence form; of a wave c²∇u, in the second equation."""
    u = Formula(lambda x, y, t: x * t + 2 * y)
    kappa = Formula(lambda x, y: 1 + x)
    gradient = torch.stack([Z2[:, 2], 2 + 0 * Z2[:, 2]], dim=1)
    for name, factor in (("heat", 1 + Z2[:, :1]), ("heat_nondivergence", 1.0)):
        found = transient_flux(name, u, Z2, {"kappa": kappa, "f": 0.0}).detach()
        torch.testing.assert_close(found, factor * gradient)
    wave = Formula(*u.components, lambda x, y, t: x)
    flux = transient_flux("wave", wave, Z2, {"c": 3.0, "f": 0.0}).detach()
    assert float(flux[:, 0].abs().max()) == 0.0
    torch.testing.assert_close(flux[:, 1], 9.0 * gradient)


def test_a_heat_capacity_is_a_rate_of_your_own() -> None:
    """ρ ∂ₜu = Δu with u = exp(−t/ρ) sin x."""
    heat = TRANSIENT["heat"]
    form = TransientStrongForm(
        "heat with a capacity",
        heat.flux,
        heat.source,
        ("kappa",),
        ("f", "rho"),
        rate=lambda u_t, u, m: m["rho"] * u_t,
    )
    u = Formula(lambda x, t: torch.exp(-t / 4) * torch.sin(x))
    r = transient_residual(form, u, Z1, {"kappa": 1.0, "f": 0.0, "rho": 4.0})
    assert float(r.detach().abs().max()) < 1e-14


# -- derivatives by the parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TRANSIENT))
def test_its_derivatives_by_all_parameters_are_those_of_differences(name: str) -> None:
    form = TRANSIENT[name]
    net = hf.MLP(3, form.outputs(2), width=3, depth=1, seed=5)
    coefficients: dict[str, Any] = {
        n: hf.GaussianBumps([0.8], [[0.4, 0.6]], 0.4, background=1.0)
        for n in form.coefficients
        if n not in form.vectors
    }
    coefficients |= {n: [0.3, -0.2] for n in form.vectors}
    held = nn.ModuleDict({"net": net} | {n: m for n, m in coefficients.items() if isinstance(m, nn.Module)})
    names = [n for n, _ in held.named_parameters()]

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = held

        def forward(self) -> Tensor:
            return transient_residual(name, net, Z2[:3], coefficients)

    module = Residual()

    def residual(*values: Tensor) -> Tensor:
        swapped = {f"held.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(module, swapped, ())

    assert torch.autograd.gradcheck(residual, tuple(p.detach().clone().requires_grad_() for p in held.parameters()))


def test_no_points_are_no_residuals() -> None:
    empty = torch.empty((0, 3), dtype=torch.float64)
    net = hf.MLP(3, 1, width=3)
    assert transient_residual("heat", net, empty, {"kappa": 1.0, "f": 1.0}).shape == (0,)


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outputs", "coefficients", "message"),
    [
        (
            "transient_navier_stokes",
            3,
            {},
            "no strong form in time of 'transient_navier_stokes'.*VariationalPINN is for",
        ),
        ("poisson", 1, {}, "no strong form in time of 'poisson'"),
        ("wave", 1, {"c": 1.0, "f": 0.0}, "wave in 2D needs a network with 2 outputs, this one has 1"),
        ("heat", 2, {"kappa": 1.0, "f": 0.0}, "heat in 2D needs a network with 1 output, this one has 2"),
        ("heat", 1, {"kappa": 1.0}, "the strong form of heat needs 'f'"),
        ("heat", 1, {"kappa": 1.0, "f": 0.0, "c": 1.0}, "no coefficient named 'c'; it has"),
        ("heat", 1, {"kappa": hf.MLP(3), "f": 0.0}, r"'kappa' of heat cannot be evaluated.*a function of x, \(n, 2\)"),
        (
            "heat",
            1,
            {"kappa": InTime(hf.MLP(2)), "f": 0.0},
            r"'kappa' of heat cannot.*a function of \(x, t\), \(n, 3\)",
        ),
        ("burgers", 2, {"nu": 1.0, "f": 1.0}, r"'f' of burgers has shape \(7,\).*not \(7, 2\)"),
    ],
)
def test_bad_input_is_named(name: str, outputs: int, coefficients: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transient_residual(name, hf.MLP(3, outputs, width=3), Z2, coefficients)


def test_what_is_no_tensor_or_no_function_is_refused() -> None:
    net = hf.MLP(3, 1, width=3)
    with pytest.raises(TypeError, match="'kappa' of heat returned float, not a torch tensor"):
        transient_residual("heat", net, Z2, {"kappa": lambda x: 1.0, "f": 0.0})
    with pytest.raises(TypeError, match="InTime needs a function"):
        InTime(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'kappa' of heat is torch.float32.*call .double\(\)"):
        transient_residual("heat", net, Z2, {"kappa": lambda x: x[:, 0].float(), "f": 0.0})


def test_the_result_is_the_same_on_every_rank(comm: MPI.Comm) -> None:
    r = transient_residual("heat", hf.MLP(3, 1, width=3), Z2, {"kappa": 1.0, "f": 0.0}).detach().numpy()
    np.testing.assert_array_equal(comm.bcast(r), r)
