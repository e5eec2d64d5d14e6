"""The equations of the catalogue in strong form, in torch: what a PINN makes small at its collocation points.

Each is  r = −∇·σ(u, ∇u; m) + s(u, ∇u; m) = 0,  with r the density of the catalogue's residual: F(u; v) = ∫ r·v for
smooth u and v that vanish on the boundary.  σ n is what the natural conditions (Flux, Robin) give.  In a flow u is
velocity and pressure together, one network output each, and −∇·u is the last component of r.

Derivatives by x are torch's, of any module that treats each point by itself; coefficients in σ are differentiated too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# A coefficient: a number, vector or matrix, or a function of x (n, d) to (n,), (n, k) or (n, d, d).
Coefficient: TypeAlias = Callable[[Tensor], Tensor] | Tensor | float | Any

# Of u (n,) or (n, k), its gradient (n, d) or (n, k, d), and the coefficients by name.
_Part: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class StrongForm:
    """One equation.

    name: of the equation.  flux: σ, (n, d) or (n, k, d).  source: s, (n,) or (n, k).
    constraint: a further component of r, (n,), or None.
    inside: the coefficients in σ, which must be functions of x or constant.  outside: those in s alone.
    outputs: how many the network needs, from the dimension.
    vectors, matrices: the coefficients that are vectors of length d, and those that may be d × d matrices.
    """

    name: str
    flux: _Part
    source: _Part
    inside: tuple[str, ...]
    outside: tuple[str, ...] = ("f",)
    constraint: _Part | None = None
    outputs: Callable[[int], int] = lambda d: 1
    vectors: tuple[str, ...] = ()
    matrices: tuple[str, ...] = ()

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The names of all coefficients."""
        return self.inside + self.outside


def strong_form(name: str) -> StrongForm:
    """The strong form of an equation of the catalogue.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in STRONG:
        raise ValueError(
            f"there is no strong form of '{name}', only of {', '.join(sorted(STRONG))}; use VariationalPINN, which "
            "takes any residual in UFL, or pass your own as strong=hyco_fem.StrongForm(…)"
        )
    return STRONG[name]


def strong_residual(
    equation: str | StrongForm, network: nn.Module, x: Tensor, coefficients: Mapping[str, Coefficient]
) -> Tensor:
    """r at points x, differentiable in the parameters of the network and of the coefficients.  Local to the rank.

    Args:
        equation: Name in the catalogue, or a `StrongForm`.
        network: (n, d) → (n,) or (n, k); each point by itself.
        x: Points, (n, d), float64.
        coefficients: All that the equation has, by name; what a function needs to be differentiable in is its x.

    Returns:
        (n,) or (n, k).

    Raises:
        ValueError: an unknown equation; a coefficient that is missing, unknown or of the wrong shape; a network with
            the wrong number of outputs.
    """
    return evaluate(equation, network, x, coefficients)[0]


def strong_flux(
    equation: str | StrongForm, network: nn.Module, x: Tensor, coefficients: Mapping[str, Coefficient]
) -> Tensor:
    """σ at points x, (n, d) or (n, k, d); arguments as for `strong_residual`."""
    form = strong_form(equation) if isinstance(equation, str) else equation
    x = x.detach().requires_grad_()
    u, gradient = _field(form, network, x, x.shape[1])
    return form.flux(u, gradient, _values(form, coefficients, x, form.inside))


def evaluate(
    equation: str | StrongForm, network: nn.Module, x: Tensor, coefficients: Mapping[str, Coefficient]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`strong_residual`, and the values of the coefficients that it was computed with."""
    form = strong_form(equation) if isinstance(equation, str) else equation
    x = x.detach().requires_grad_()
    m = _values(form, coefficients, x, form.coefficients)
    u, gradient = _field(form, network, x, x.shape[1])
    r = form.source(u, gradient, m) - divergence(form.flux(u, gradient, m), x)
    if form.constraint is not None:
        r = torch.cat([r, form.constraint(u, gradient, m)[:, None]], dim=1)
    return r, m


# -- derivatives by x ------------------------------------------------------------------------------------------


def gradient_of(field: Tensor, x: Tensor) -> Tensor:
    """∇ of values (n,) or (n, k) at x (n, d), as (n, d) or (n, k, d); each value depends on its own point only."""
    if field.ndim == 1:
        return _slopes(field, x)
    return torch.stack([_slopes(field[:, i], x) for i in range(field.shape[1])], dim=1)


def divergence(flux: Tensor, x: Tensor) -> Tensor:
    """∇· of (n, d) or, row by row, of (n, k, d)."""
    if flux.ndim == 3:
        return torch.stack([divergence(flux[:, i], x) for i in range(flux.shape[1])], dim=1)
    return torch.stack([_slopes(flux[:, i], x)[:, i] for i in range(flux.shape[1])]).sum(0)


def _slopes(values: Tensor, x: Tensor) -> Tensor:
    # A constant has no graph.
    if not values.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(values.sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _field(form: StrongForm, network: nn.Module, x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """u and its derivatives by all columns of x, of which the first d are space."""
    u = network(x)
    n, wanted = len(x), form.outputs(d)
    found = u.shape[1] if u.ndim == 2 else 1
    if u.ndim not in (1, 2) or len(u) != n:
        raise ValueError(f"the network returned shape {tuple(u.shape)} for {n} points")
    if found != wanted:
        raise ValueError(
            f"{form.name} in {d}D needs a network with {wanted} output{'s' * (wanted > 1)}, this one has {found}"
        )
    u = u.reshape(n) if wanted == 1 else u
    return u, gradient_of(u, x)


# -- coefficients ----------------------------------------------------------------------------------------------


def check_names(form: StrongForm, given: Mapping[str, Coefficient]) -> None:
    """Raise ValueError where a coefficient is missing or unknown."""
    unknown = sorted(set(given) - set(form.coefficients))
    if unknown:
        raise ValueError(
            f"{form.name} has no coefficient named {', '.join(map(repr, unknown))}; it has {sorted(form.coefficients)}"
        )
    missing = sorted(set(form.coefficients) - set(given))
    if missing:
        raise ValueError(f"the strong form of {form.name} needs {', '.join(map(repr, missing))} in coefficients={{…}}")


def _values(form: StrongForm, given: Mapping[str, Coefficient], x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    check_names(form, given)
    return {name: _value(form, name, given[name], x) for name in names}


def _value(form: StrongForm, name: str, given: Coefficient, x: Tensor) -> Tensor:
    """(n,), (n, d) or (n, d, d), from what the user gave."""
    n, d = x.shape
    value = given(x) if callable(given) else torch.as_tensor(given, dtype=torch.float64)
    if value.dtype != torch.float64:
        raise TypeError(f"'{name}' of {form.name} is {value.dtype}; hyco_fem computes in float64: call .double() on it")
    if not callable(given):
        zero = name in form.vectors and value.ndim == 0 and float(value) == 0.0  # 0 stands for a vector of zeros
        value = value.expand(n, d) if zero else value.expand(n, *value.shape)
    elif value.ndim == 2 and value.shape[1] == 1 and name not in form.vectors:
        value = value.squeeze(1)
    if name in form.vectors and value.shape == (n,) and d == 1:
        value = value[:, None]
    allowed: list[tuple[int, ...]] = [(n, d)] if name in form.vectors else [(n,)]
    allowed += [(n, d, d)] * (name in form.matrices)
    if tuple(value.shape) not in allowed:
        raise ValueError(
            f"'{name}' of {form.name} has shape {tuple(value.shape)} at {n} points in {d}D, not "
            f"{' or '.join(map(str, allowed))}"
        )
    return value


# -- the equations ---------------------------------------------------------------------------------------------


def _times(kappa: Tensor, gradient: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", kappa, gradient) if kappa.ndim == 3 else kappa[:, None] * gradient


def _diffusion(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return _times(m["kappa"], g)


def _load(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return -m["f"]


def _moduli(m: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """λ and μ, (n, 1, 1)."""
    E, nu = m["E"][:, None, None], m["nu"][:, None, None]
    return E * nu / ((1.0 + nu) * (1.0 - 2.0 * nu)), E / (2.0 * (1.0 + nu))


def _identity(g: Tensor) -> Tensor:
    return torch.eye(g.shape[-1], dtype=g.dtype)


def _trace(g: Tensor) -> Tensor:
    return g.diagonal(dim1=1, dim2=2).sum(-1)


def _hooke(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    lmbda, mu = _moduli(m)
    return lmbda * _trace(g)[:, None, None] * _identity(g) + mu * (g + g.mT)


def _neo_hooke(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    lmbda, mu = _moduli(m)
    G = _identity(g) + g
    inverse = torch.linalg.inv(G).mT
    # NaN, and not an error, where a cell is turned inside out: a step that leads there is taken back.
    return mu * (G - inverse) + lmbda * torch.log(torch.linalg.det(G))[:, None, None] * inverse


def _power(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    size = m["eps"].square() + g.square().sum(1)
    return (m["kappa"] * size ** ((m["p"] - 2.0) / 2.0))[:, None] * g


def _newton_fluid(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return m["mu"][:, None, None] * g[:, :-1] - u[:, -1, None, None] * _identity(g)


def _inertia(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return torch.einsum("nij,nj->ni", g[:, :-1], u[:, :-1]) - m["f"]


def _incompressible(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return -_trace(g[:, :-1])


def _flow(name: str, source: _Part) -> StrongForm:
    return StrongForm(
        name,
        _newton_fluid,
        source,
        ("mu",),
        constraint=_incompressible,
        outputs=lambda d: d + 1,
        vectors=("f",),
    )


def _solid(name: str, stress: _Part) -> StrongForm:
    return StrongForm(name, stress, _load, ("E", "nu"), outputs=lambda d: d, vectors=("f",))


STRONG: dict[str, StrongForm] = {
    form.name: form
    for form in (
        StrongForm("poisson", _diffusion, _load, ("kappa",), matrices=("kappa",)),
        StrongForm("darcy", _diffusion, _load, ("kappa",), matrices=("kappa",)),
        StrongForm(
            "reaction_diffusion",
            _diffusion,
            lambda u, g, m: m["eta"] * u - m["f"],
            ("kappa",),
            ("eta", "f"),
            matrices=("kappa",),
        ),
        StrongForm(
            "helmholtz",
            lambda u, g, m: m["c"].square()[:, None] * g,
            lambda u, g, m: -m["k2"] * u - m["f"],
            ("c",),
            ("k2", "f"),
        ),
        StrongForm(
            "advection_diffusion",
            _diffusion,
            lambda u, g, m: (m["beta"] * g).sum(1) - m["f"],
            ("kappa",),
            ("beta", "f"),
            vectors=("beta",),
        ),
        StrongForm("power_law", _power, _load, ("kappa", "p", "eps")),
        _solid("elasticity", _hooke),
        _solid("hyperelasticity", _neo_hooke),
        _flow("stokes", _load),
        _flow("navier_stokes", _inertia),
    )
}
