"""Strong forms: zero for solutions in closed form, and the density of the catalogue's own residual for any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import square
from dolfinx import fem, la, mesh
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.models.strong import STRONG, strong_flux
from hyco_fem.pde.dirichlet import fixed_dofs
from hyco_fem.pde.vectors import owned

RNG = np.random.default_rng(4)
X2 = torch.from_numpy(RNG.uniform(0.1, 0.9, (7, 2)))
KAPPA, MU, LAMBDA = 0.4, 0.05, 1.7


class Formula(nn.Module):
    """A field in closed form, (n, d) → (n,) or (n, k)."""

    def __init__(self, *components: Callable[..., Any]) -> None:
        super().__init__()
        self.components = components

    def forward(self, x: Tensor) -> Tensor:
        values = [f(*x.T) + torch.zeros(len(x), dtype=x.dtype) for f in self.components]
        return values[0] if len(values) == 1 else torch.stack(values, dim=1)


# -- solutions in closed form ----------------------------------------------------------------------------------

# Kovasznay, Proc. Camb. Phil. Soc. 44 (1948), with density one and viscosity MU.
_K = 1 / (2 * MU) - np.sqrt(1 / (4 * MU**2) + 4 * np.pi**2)
KOVASZNAY = (
    lambda x, y: 1 - torch.exp(_K * x) * torch.cos(2 * np.pi * y),
    lambda x, y: _K / (2 * np.pi) * torch.exp(_K * x) * torch.sin(2 * np.pi * y),
    lambda x, y: -torch.exp(2 * _K * x) / 2,
)
_E, _NU = MU * (3 * LAMBDA + 2 * MU) / (LAMBDA + MU), LAMBDA / (2 * (LAMBDA + MU))
SOLUTIONS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "poisson": (
        (lambda x, y: x**2 + y**2,),
        {"kappa": Formula(lambda x, y: 1 + x), "f": Formula(lambda x, y: -4 - 6 * x)},
    ),
    "darcy": ((lambda x, y: x * y + x**2,), {"kappa": [[2.0, 0.5], [0.5, 1.0]], "f": -5.0}),
    "reaction_diffusion": (
        (lambda x, y: torch.exp(x),),
        {"kappa": KAPPA, "eta": Formula(lambda x, y: KAPPA + y), "f": Formula(lambda x, y: y * torch.exp(x))},
    ),
    "helmholtz": ((lambda x, y: torch.cos(3 * x - 2 * y),), {"c": 2.0, "k2": 52.0, "f": 0.0}),
    "advection_diffusion": (
        (lambda x, y: torch.exp((x - 0.5 * y) / KAPPA),),
        {"kappa": KAPPA, "beta": [1.0, -0.5], "f": 0.0},
    ),
    "power_law": (
        (lambda x, y: x**2 / 2,),
        {"kappa": 1.0, "p": 4.0, "eps": 0.3, "f": Formula(lambda x, y: -0.09 - 3 * x**2)},
    ),
    "elasticity": (
        (lambda x, y: x**2, lambda x, y: x * y),
        {"E": _E, "nu": _NU, "f": [-3 * LAMBDA - 5 * MU, 0.0]},
    ),
    "hyperelasticity": ((lambda x, y: 0.3 * x - 0.1 * y, lambda x, y: 0.2 * y), {"E": 2.0, "nu": 0.3, "f": 0.0}),
    "stokes": ((lambda x, y: y * (1 - y), lambda x, y: 0 * x, lambda x, y: -2 * MU * x), {"mu": MU, "f": 0.0}),
    "navier_stokes": (KOVASZNAY, {"mu": MU, "f": 0.0}),
}


@pytest.mark.parametrize("name", sorted(STRONG))
def test_the_residual_of_a_solution_is_zero(name: str) -> None:
    solution, coefficients = SOLUTIONS[name]
    r = hf.strong_residual(name, Formula(*solution), X2, coefficients)
    assert r.shape == ((7,) if len(solution) == 1 else (7, len(solution)))
    assert float(r.detach().abs().max()) < 1e-12 * (100 if name == "navier_stokes" else 10)
    if not name.startswith("hyper"):  # a homogeneous deformation with other moduli is a solution too
        other = Formula(*(lambda x, y, f=f: 1.1 * f(x, y) + 0.1 * x * y**2 for f in solution))
        assert float(hf.strong_residual(name, other, X2, coefficients).detach().abs().max()) > 1e-3


# -- any network -----------------------------------------------------------------------------------------------


def network(d: int, k: int) -> hf.MLP:
    return hf.MLP(d, k, width=4, depth=2, seed=5)


def in_ufl(net: hf.MLP, x: Any, d: int) -> Any:
    """The same network as a UFL expression."""
    z = [x[i] for i in range(d)]
    for layer in net.hidden:
        W, b = (p.detach().numpy() for p in (layer.weight, layer.bias))
        z = [
            ufl.tanh(sum(float(w) * v for w, v in zip(row, z, strict=True)) + float(c))
            for row, c in zip(W, b, strict=True)
        ]
    W, b = (p.detach().numpy() for p in (net.last.weight, net.last.bias))
    out = [sum(float(w) * v for w, v in zip(row, z, strict=True)) + float(c) for row, c in zip(W, b, strict=True)]
    return out[0] if len(out) == 1 else ufl.as_vector(out)


def _wave(lib: Any, X: Any, a: float, b: float) -> Any:
    return a + 0.2 * lib.sin(2 * X[0] + b * X[1])


# The coefficients of each equation: in UFL and in torch by one formula.  Vectors: two formulas.
FIELDS: dict[str, dict[str, Any]] = {
    "poisson": {"kappa": (1.0, 3.0), "f": (2.0, 1.0)},
    "darcy": {"kappa": (0.7, 2.0), "f": (1.0, -1.0)},
    "reaction_diffusion": {"kappa": (1.0, 3.0), "eta": (0.5, 1.0), "f": (2.0, 1.0)},
    "helmholtz": {"c": (1.2, 1.0), "k2": (8.0, 1.0), "f": (2.0, 1.0)},
    "power_law": {"kappa": (1.0, 3.0), "f": (2.0, 1.0)},
    "elasticity": {"E": (2.0, 1.0), "nu": (0.25, 0.3), "f": ((1.0, 1.0), (-1.0, 2.0), (0.5, 1.0))},
    "hyperelasticity": {"E": (2.0, 1.0), "nu": (0.25, 0.3), "f": ((1.0, 1.0), (-1.0, 2.0), (0.5, 1.0))},
    "stokes": {"mu": (1.0, 2.0), "f": ((1.0, 1.0), (-1.0, 2.0), (0.5, 1.0))},
    "navier_stokes": {"mu": (1.0, 2.0), "f": ((1.0, 1.0), (-1.0, 2.0), (0.5, 1.0))},
}


def fields(name: str, domain: mesh.Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    x, d = ufl.SpatialCoordinate(domain), domain.geometry.dim
    in_form, in_torch = {}, {}
    for key, spec in FIELDS[name].items():
        if isinstance(spec[0], tuple):
            in_form[key] = ufl.as_vector([_wave(ufl, x, *s) for s in spec[:d]])
            in_torch[key] = Formula(*(lambda *X, s=s: _wave(torch, X, *s) for s in spec[:d]))
        else:
            in_form[key] = _wave(ufl, x, *spec)
            in_torch[key] = Formula(lambda *X, spec=spec: _wave(torch, X, *spec))
    return in_form, in_torch


def of_degree(F: ufl.Form, degree: int) -> ufl.Form:
    return ufl.Form([i.reconstruct(metadata={"quadrature_degree": degree}) for i in F.integrals()])


def in_mean(points: hf.Points, V: fem.FunctionSpace, r: Tensor) -> np.ndarray:
    """∫ r·v_i for the owned dofs of V, by the points' rule."""
    w = points.weights.numpy()
    r = r.detach().numpy()
    if V.num_sub_spaces == 0 or V.dofmap.index_map_bs > 1:
        return points.observation(V).transpose(w * r if r.ndim == 1 else w[:, None] * r)
    velocity = points.observation(V.sub(0)).transpose(w[:, None] * r[:, :-1])
    return velocity + points.observation(V.sub(1)).transpose(w * r[:, -1])


@pytest.mark.parametrize(
    ("name", "dim"), [*((name, 2) for name in FIELDS), ("elasticity", 3), ("navier_stokes", 3), ("poisson", 1)]
)
def test_it_is_the_density_of_the_residual_of_the_catalogue(comm: MPI.Comm, name: str, dim: int) -> None:
    """F(u; v) = ∫ r·v for a random network and all v that vanish on the boundary, by quadrature of high degree."""
    degree = 12 if dim < 3 else 8
    domain = {
        1: lambda: mesh.create_unit_interval(comm, 8),
        2: lambda: square(comm, 4),
        3: lambda: mesh.create_unit_cube(comm, 2, 2, 2),
    }[dim]()
    if dim == 1:
        in_form: dict[str, Any] = {"kappa": 1 + ufl.SpatialCoordinate(domain)[0] ** 2, "f": 3.0}
        in_torch: dict[str, Any] = {"kappa": Formula(lambda x: 1 + x**2), "f": 3.0}
    else:
        in_form, in_torch = fields(name, domain)
    options = {"pin_pressure": True} if "stokes" in name else {}
    problem = getattr(hf.catalogue, name)(domain, **in_form, conditions=[hf.Dirichlet(0.0)], **options)
    if name == "power_law":
        in_torch |= {"p": 3.0, "eps": 1e-2}
    net = network(dim, STRONG[name].outputs(dim))
    expression = in_ufl(net, ufl.SpatialCoordinate(domain), dim)
    assembled = fem.Function(problem.u.function_space)
    F = ufl.replace(problem.F, {problem.u: expression})
    fem.assemble_vector(assembled.x.array, fem.form(of_degree(F, degree)))
    assembled.x.scatter_reverse(la.InsertMode.add)
    points = hf.quadrature_points(domain, degree)
    found = in_mean(points, problem.u.function_space, hf.strong_residual(name, net, points.x, in_torch))
    free = np.ones(len(found), dtype=bool)
    fixed = fixed_dofs(problem.bcs)
    # A pinned pressure is a test function like any other.
    fixed = fixed if "stokes" not in name else fixed_dofs(problem.bcs[:1])
    free[fixed[fixed < len(found)]] = False
    scale = comm.allreduce(float(np.abs(found[free]).max(initial=0.0)), op=MPI.MAX)
    assert scale > 1e-4
    np.testing.assert_allclose(found[free], owned(assembled)[free], rtol=0, atol=scale * (1e-8 if dim < 3 else 1e-5))


def test_it_is_the_strong_form_of_advection_in_ufl(comm: MPI.Comm) -> None:
    """Point by point: the catalogue's form has the stabilisation in it, so its density is another."""
    domain = square(comm, 4)
    x = ufl.SpatialCoordinate(domain)
    net = network(2, 1)
    u = in_ufl(net, x, 2)
    kappa, beta = 1 + x[0] * x[1], ufl.as_vector([2.0 + x[1], -1.0])
    strong = -ufl.div(kappa * ufl.grad(u)) + ufl.dot(beta, ufl.grad(u)) - ufl.sin(x[0])
    points = hf.Points(domain, X2)
    found = hf.strong_residual(
        "advection_diffusion",
        net,
        X2,
        {
            "kappa": Formula(lambda x, y: 1 + x * y),
            "beta": Formula(lambda x, y: 2 + y, lambda x, y: -1.0),
            "f": Formula(lambda x, y: torch.sin(x)),
        },
    )
    values = np.full(len(points), np.nan)
    for i, (cell, at) in enumerate(zip(points._cells, points._X, strict=True)):
        # Each rank has points of its own.
        expression = fem.Expression(strong, at[None], comm=MPI.COMM_SELF)
        values[i] = expression.eval(domain, np.array([cell], dtype=np.int32)).item()
    np.testing.assert_allclose(found.detach().numpy()[points.index], values, rtol=1e-10)


def test_the_flux_is_what_the_natural_conditions_mean() -> None:
    """Poiseuille: μ ∂u/∂n − p n; a matrix κ: n·κ∇u."""
    solution, coefficients = SOLUTIONS["stokes"]
    flux = strong_flux("stokes", Formula(*solution), X2, coefficients)
    x, y = X2.T
    expected = torch.stack([2 * MU * x, MU * (1 - 2 * y), 0 * x, 2 * MU * x], dim=1).reshape(-1, 2, 2)
    torch.testing.assert_close(flux, expected, rtol=0, atol=1e-14)
    flux = strong_flux("darcy", Formula(lambda x, y: x), X2, SOLUTIONS["darcy"][1])
    torch.testing.assert_close(flux, torch.tensor([[2.0, 0.5]], dtype=torch.float64).expand(7, 2))


# -- derivatives by θ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson", "hyperelasticity", "navier_stokes"])
def test_it_is_differentiable_in_the_network_and_the_coefficients_at_rate_two(name: str) -> None:
    net = network(2, STRONG[name].outputs(2))
    first = {"poisson": "kappa", "hyperelasticity": "E", "navier_stokes": "mu"}[name]
    bumps = hf.GaussianBumps([0.8], [[0.4, 0.6]], 0.4, background=1.0)
    coefficients = {first: bumps, "f": hf.Scalar(1.5), "nu": 0.3} if name == "poisson" else {first: bumps, "f": 0.0}
    coefficients = {k: v for k, v in (coefficients | {"nu": 0.3}).items() if k in STRONG[name].coefficients}
    theta = [*net.parameters(), *(p for m in coefficients.values() if isinstance(m, nn.Module) for p in m.parameters())]
    result = hf.taylor_test(
        lambda: hf.strong_residual(name, net, X2, coefficients).square().mean(), theta, comm=MPI.COMM_SELF
    )
    assert result.ok, f"\n{result}"


def test_no_points_are_no_residuals() -> None:
    empty = torch.empty((0, 2), dtype=torch.float64)
    assert hf.strong_residual("poisson", network(2, 1), empty, {"kappa": 1.0, "f": 1.0}).shape == (0,)
    assert hf.strong_residual("stokes", network(2, 3), empty, {"mu": 1.0, "f": 0.0}).shape == (0, 3)


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outputs", "coefficients", "message"),
    [
        ("heat", 1, {}, "no strong form of 'heat'.*VariationalPINN"),
        ("stokes", 2, {"mu": 1.0, "f": 0.0}, "stokes in 2D needs a network with 3 outputs, this one has 2"),
        ("poisson", 2, {"kappa": 1.0, "f": 0.0}, "needs a network with 1 output, this one has 2"),
        ("poisson", 1, {"kappa": 1.0}, "the strong form of poisson needs 'f'"),
        ("poisson", 1, {"kappa": 1.0, "f": 0.0, "k": 1.0}, "no coefficient named 'k'; it has"),
        ("poisson", 1, {"kappa": [1.0, 2.0], "f": 0.0}, "'kappa' of poisson has shape"),
        ("elasticity", 2, {"E": 1.0, "nu": 0.3, "f": 1.0}, r"'f' of elasticity has shape \(7,\).*not \(7, 2\)"),
        ("helmholtz", 1, {"c": [[1.0, 0.0], [0.0, 1.0]], "k2": 1.0, "f": 0.0}, "'c' of helmholtz has shape"),
    ],
)
def test_bad_input_is_named(name: str, outputs: int, coefficients: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.strong_residual(name, network(2, outputs), X2, coefficients)


def test_single_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'kappa' of poisson is torch.float32.*call .double\(\)"):
        hf.strong_residual("poisson", network(2, 1), X2, {"kappa": lambda x: x[:, 0].float(), "f": 0.0})
