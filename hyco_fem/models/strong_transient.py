"""The evolution equations of the catalogue in strong form, in torch.

Each is  r = ρ ∂ₜu − a ∇·σ(u, ∇u; m) + s(u, ∇u; m) = 0,  with r the density of the catalogue's residual, explicit part
and all: F(u, ∂ₜu; v) + E(u; v) = ∫ r·v for smooth u and v that vanish on the boundary.  Where the catalogue has divided
an equation by a coefficient a, r/a is its density.  σ n is what the natural conditions (Flux, Robin) give.  A field is
a function of z = (x, t), (n, d + 1), with time in the last column.

Coefficients are functions of x alone, (n, d).  One that depends on time too is marked: `InTime(function of z)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from hyco_fem.models.strong import Coefficient, StrongForm, _diffusion, _field, _value, check_names, divergence

# Of ∂ₜu and u, (n,) or (n, k), and the coefficients by name.
_Rate: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


class InTime(nn.Module):
    """A coefficient that is a function of (x, t): of z, (n, d + 1), with time last, as the networks are.

    Args:
        function: z ↦ (n,), (n, k) or (n, d, d): a module, or any function in torch, and then known.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"InTime needs a function of (x, t), not {type(function).__name__}")
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """(n, d + 1) → (n,), (n, k) or (n, d, d)."""
        return self.function(z)


@dataclass(frozen=True)
class TransientStrongForm(StrongForm):
    """One evolution equation: a `StrongForm` in space, and the terms in ∂ₜu.

    rate: ρ ∂ₜu, (n,) or (n, k), where it is not ∂ₜu itself.
    factor: a, (n,), where it is not one: of the coefficients, which need not be differentiable then.  Not in the flux.
    natural: for each component of u the row of σ that a natural condition on it gives, or None where it has none; by
        default each its own.
    """

    rate: _Rate | None = None
    factor: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    natural: tuple[int | None, ...] | None = None


def transient_strong_form(name: str) -> TransientStrongForm:
    """The strong form of an evolution equation of the catalogue.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TRANSIENT:
        raise ValueError(
            f"there is no strong form in time of '{name}', only of {', '.join(sorted(TRANSIENT))}; VariationalPINN is "
            "for steady problems: use Hyco with a TransientModel, or pass your own form as "
            "strong=hyco_fem.TransientStrongForm(…)"
        )
    return TRANSIENT[name]


def transient_residual(
    equation: str | TransientStrongForm, network: nn.Module, z: Tensor, coefficients: Mapping[str, Coefficient]
) -> Tensor:
    """r at points z = (x, t), differentiable in the parameters of the network and of the coefficients.  Local.

    Args:
        equation: Name in the catalogue, or a `TransientStrongForm`.
        network: (n, d + 1) → (n,) or (n, k); each point by itself.
        z: Points, (n, d + 1), float64, time last.
        coefficients: All that the equation has, by name: numbers, functions of x (n, d), or `InTime`.

    Returns:
        (n,) or (n, k).

    Raises:
        ValueError: an unknown equation; a coefficient that is missing, unknown, of the wrong shape or cannot be
            evaluated; a network with the wrong number of inputs or outputs.
    """
    return evaluate_in_time(equation, network, z, coefficients)[0]


def transient_flux(
    equation: str | TransientStrongForm, network: nn.Module, z: Tensor, coefficients: Mapping[str, Coefficient]
) -> Tensor:
    """σ at points z, (n, d) or (n, k, d); arguments as for `transient_residual`."""
    form = transient_strong_form(equation) if isinstance(equation, str) else equation
    z = z.detach().requires_grad_()
    check_names(form, coefficients)
    m = {name: _at(form, name, coefficients[name], z) for name in form.inside}
    u, derivatives = _in_time(form, network, z)
    return form.flux(u, derivatives[..., :-1], m)


def evaluate_in_time(
    equation: str | TransientStrongForm, network: nn.Module, z: Tensor, coefficients: Mapping[str, Coefficient]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`transient_residual`, and the values of the coefficients that it was computed with."""
    form = transient_strong_form(equation) if isinstance(equation, str) else equation
    z = z.detach().requires_grad_()
    d = z.shape[1] - 1
    check_names(form, coefficients)
    m = {name: _at(form, name, coefficients[name], z) for name in form.coefficients}
    u, derivatives = _in_time(form, network, z)
    gradient, u_t = derivatives[..., :d], derivatives[..., d]
    rate = u_t if form.rate is None else form.rate(u_t, u, m)
    spread = divergence(form.flux(u, gradient, m), z)
    if form.factor is not None:
        spread = _scaled(form.factor(m), spread)
    r = rate - spread + form.source(u, gradient, m)
    if form.constraint is not None:
        r = torch.cat([r, form.constraint(u, gradient, m)[:, None]], dim=1)
    return r, m


def at_space_time(coefficient: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """A coefficient at points z (n, d + 1): of x alone, or `InTime`."""
    return coefficient(z) if isinstance(coefficient, InTime) else coefficient(z[:, :-1])


def _at(form: StrongForm, name: str, given: Coefficient, z: Tensor) -> Tensor:
    if not callable(given):
        return _value(form, name, given, z[:, :-1])
    # Where there are no columns to choose from, a function of x has been given z or the other way round.
    try:
        value = at_space_time(given, z)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        d = z.shape[1] - 1
        takes = (
            f"(x, t), (n, {d + 1})" if isinstance(given, InTime) else f"x, (n, {d}); mark one of (x, t) by InTime(…)"
        )
        raise ValueError(
            f"'{name}' of {form.name} cannot be evaluated: {type(error).__name__}: {error}.  It is called as a "
            f"function of {takes}"
        ) from error
    if not isinstance(value, Tensor):
        raise TypeError(f"'{name}' of {form.name} returned {type(value).__name__}, not a torch tensor")
    return _value(form, name, lambda x: value, z[:, :-1])


def _in_time(form: StrongForm, network: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """u and its derivatives by x and t, (n, d + 1) or (n, k, d + 1)."""
    return _field(form, network, z, z.shape[1] - 1)


def check_inputs(network: nn.Module, d: int) -> None:
    """Raise ValueError where a network does not take (x, t)."""
    z = torch.zeros(1, d + 1, dtype=torch.float64)
    try:
        with torch.no_grad():
            network(z)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the network of a transient problem in {d}D takes (x, t), {d + 1} columns with time last: "
            f"hyco_fem.MLP({d + 1}, …), and boxes and distances of as many; this one failed on shape (1, {d + 1}): "
            f"{error}"
        ) from error


def _scaled(a: Tensor, values: Tensor) -> Tensor:
    return a.reshape(-1, *[1] * (values.ndim - 1)) * values


# -- the equations ---------------------------------------------------------------------------------------------


def _load(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return -m["f"]


def _wave_flux(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    stress = m["c"].square()[:, None] * g[:, 0]
    return torch.stack([torch.zeros_like(stress), stress], dim=1)


def _wave_source(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([-u[:, 1], -m["f"]], dim=1)


def _two_diffusions(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([m["Du"], m["Dv"]], dim=1)[..., None] * g


def _gray_scott(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    """Pearson, Science 261 (1993): u is fed, v is fed on u and is taken away."""
    a, b = u.unbind(dim=1)
    reaction = a * b.square()
    return torch.stack([reaction - m["F"] * (1.0 - a), (m["F"] + m["k"]) * b - reaction], dim=1)


def _viscous(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    return _scaled(m["nu"], g)


def _carried_by_itself(u: Tensor, g: Tensor, m: Mapping[str, Tensor]) -> Tensor:
    if u.ndim == 1:
        return u * g[:, 0] - m["f"][:, 0]
    return torch.einsum("nij,nj->ni", g, u) - m["f"]


TRANSIENT: dict[str, TransientStrongForm] = {
    form.name: form
    for form in (
        TransientStrongForm("heat", _diffusion, _load, ("kappa",), matrices=("kappa",)),
        TransientStrongForm(
            "heat_nondivergence",
            lambda u, g, m: g,
            _load,
            (),
            ("kappa", "f"),
            factor=lambda m: m["kappa"],
        ),
        TransientStrongForm(
            "transient_advection_diffusion",
            _diffusion,
            lambda u, g, m: (m["beta"] * g).sum(1) - m["f"],
            ("kappa",),
            ("beta", "f"),
            vectors=("beta",),
        ),
        TransientStrongForm("wave", _wave_flux, _wave_source, ("c",), outputs=lambda d: 2, natural=(1, None)),
        TransientStrongForm("gray_scott", _two_diffusions, _gray_scott, ("Du", "Dv"), ("F", "k"), outputs=lambda d: 2),
        TransientStrongForm("burgers", _viscous, _carried_by_itself, ("nu",), outputs=lambda d: d, vectors=("f",)),
    )
}
