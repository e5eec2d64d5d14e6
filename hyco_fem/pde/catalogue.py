"""Ready problems.  Steady scalar equations here; under the same name solids are in solid.py, flows in flow.py, and
problems in time in transient_catalogue.py and transient_flow.py.

Every quantity of an equation may be given as

    a number, vector or matrix    known, but one of the problem's coefficients: a ("DG", 0) Function that holds it
    a fem.Function                the coefficient itself, whatever it holds
    a UFL expression              known

under the argument's name: `hf.PhysicalModel.of(problem, {"kappa": module})` makes κ unknown.  `conditions` are those
of problem.py; where none is given on a part of the boundary, the natural condition with zero flux holds.
All numbers are in units of the user's choice that fit together.  Making a problem is collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import dot, grad, inner

from hyco_fem.pde.flow import continuation, navier_stokes, stokes
from hyco_fem.pde.problem import Condition, Dirichlet, Draft, Problem
from hyco_fem.pde.solid import elasticity, hyperelasticity
from hyco_fem.pde.transient_catalogue import (
    burgers,
    gray_scott,
    heat,
    heat_nondivergence,
    transient_advection_diffusion,
    wave,
)
from hyco_fem.pde.transient_flow import transient_navier_stokes

__all__ = [
    "advection_diffusion",
    "burgers",
    "continuation",
    "darcy",
    "elasticity",
    "gray_scott",
    "heat",
    "heat_nondivergence",
    "helmholtz",
    "hyperelasticity",
    "navier_stokes",
    "poisson",
    "power_law",
    "reaction_diffusion",
    "stokes",
    "transient_advection_diffusion",
    "transient_navier_stokes",
    "wave",
]

_ZERO = (Dirichlet(0.0),)


def poisson(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    f: Any = 1.0,
    conditions: Sequence[Condition] = _ZERO,
) -> Problem:
    """−∇·(κ ∇u) = f, for any dimension: heat conduction, electrostatics, membranes.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0, a number or a symmetric positive definite matrix.
        f: Coefficient, the source.
        conditions: Natural: κ ∂u/∂n.
    """
    draft = Draft("poisson", mesh, conditions)
    kappa, f = _diffusivity(draft, "kappa", kappa), draft.quantity("f", f)
    u, v = _unknown(draft, degree, "u")
    F = inner(_times(kappa, grad(u)), grad(v)) * draft.dx - f * v * draft.dx
    return _scalar(draft, F, u, v)


def darcy(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    f: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
) -> Problem:
    """q = −κ ∇p, ∇·q = f: the pressure p of a flow through a porous medium.

    Args:
        degree: Of the Lagrange elements for p.
        kappa: Coefficient κ > 0, permeability over viscosity, a number or a symmetric positive definite matrix.
        f: Coefficient, sources and wells.
        conditions: Natural: κ ∂p/∂n = −q·n, what flows in.

    Returns:
        The problem; `extras["flux"]` is q.
    """
    draft = Draft("darcy", mesh, conditions)
    kappa, f = _diffusivity(draft, "kappa", kappa), draft.quantity("f", f)
    p, v = _unknown(draft, degree, "p")
    flux = -_times(kappa, grad(p))
    F = -inner(flux, grad(v)) * draft.dx - f * v * draft.dx
    return _scalar(draft, F, p, v, flux=flux)


def reaction_diffusion(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    eta: Any = 1.0,
    f: Any = 1.0,
    conditions: Sequence[Condition] = (),
) -> Problem:
    """−∇·(κ ∇u) + η u = f.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0, a number or a symmetric positive definite matrix.
        eta: Coefficient, the rate of decay; the problem is coercive where it is not negative.
        f: Coefficient, the source.
        conditions: Natural: κ ∂u/∂n; by default zero on the whole boundary.
    """
    draft = Draft("reaction_diffusion", mesh, conditions)
    kappa, eta, f = _diffusivity(draft, "kappa", kappa), draft.quantity("eta", eta), draft.quantity("f", f)
    u, v = _unknown(draft, degree, "u")
    F = inner(_times(kappa, grad(u)), grad(v)) * draft.dx + eta * u * v * draft.dx - f * v * draft.dx
    return _scalar(draft, F, u, v)


def helmholtz(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    c: Any = 1.0,
    k2: Any = 1.0,
    f: Any = 1.0,
    conditions: Sequence[Condition] = _ZERO,
) -> Problem:
    """−∇·(c² ∇u) − k² u = f: standing waves.  Symmetric and indefinite for large k²; singular at eigenvalues.

    Args:
        degree: Of the Lagrange elements; waves of length 2πc/k need about ten dofs each.
        c: Coefficient c > 0, the speed of waves.
        k2: Coefficient k², the square of the frequency.
        f: Coefficient, the source.
        conditions: Natural: c² ∂u/∂n.
    """
    draft = Draft("helmholtz", mesh, conditions)
    c, k2, f = draft.quantity("c", c, above=0.0), draft.quantity("k2", k2), draft.quantity("f", f)
    u, v = _unknown(draft, degree, "u")
    F = c**2 * inner(grad(u), grad(v)) * draft.dx - k2 * u * v * draft.dx - f * v * draft.dx
    return _scalar(draft, F, u, v)


def advection_diffusion(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    beta: Any,
    f: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
) -> Problem:
    """−∇·(κ ∇u) + β·∇u = f, stabilised by streamline upwinding (SUPG) for β of any size.

    To the Galerkin form Σ_K ∫ τ (β·∇v) (−∇·(κ ∇u) + β·∇u − f) is added, which vanishes for the exact solution.  With
    the cell Péclet number Pe = |β| h / (2 κ), h the diameter of a cell over the degree,

        τ = h / (2 |β|) · (1 + 9 / Pe²)^(−1/2),

    written such that it is smooth at β = 0.  Brooks & Hughes, CMAME 32 (1982); Shakib, Hughes & Johan, CMAME 89 (1991).

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0.
        beta: Coefficient, the velocity, a vector (in 1D also a number).
        f: Coefficient, the source.
        conditions: Natural: κ ∂u/∂n; zero at an outflow lets u out.
    """
    draft = Draft("advection_diffusion", mesh, conditions)
    kappa, f = draft.quantity("kappa", kappa, above=0.0), draft.quantity("f", f)
    beta = draft.quantity("beta", beta, (draft.gdim,))
    u, v = _unknown(draft, degree, "u")
    h = ufl.CellDiameter(mesh) / degree
    tau = 1.0 / ufl.sqrt(dot(beta, beta) * (2.0 / h) ** 2 + 9.0 * (4.0 * kappa / h**2) ** 2)
    strong = -ufl.div(kappa * grad(u)) + dot(beta, grad(u)) - f
    F = (kappa * inner(grad(u), grad(v)) + dot(beta, grad(u)) * v - f * v) * draft.dx
    return _scalar(draft, F + tau * dot(beta, grad(v)) * strong * draft.dx, u, v)


def power_law(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    p: Any = 3.0,
    eps: float = 1e-2,
    f: Any = 1.0,
    conditions: Sequence[Condition] = _ZERO,
) -> Problem:
    """−∇·(κ (ε² + |∇u|²)^((p−2)/2) ∇u) = f, the regularised p-Laplacian.

    Conduction that depends on the gradient, power-law fluids in pipes (u the speed along the pipe), ice.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0.
        p: Exponent > 1; a coefficient where it is a Function, otherwise known.
        eps: ε > 0 (0 only for p = 2), the size of a gradient that counts as none; the smaller, the harder for Newton.
        f: Coefficient, the source.
        conditions: Natural: κ (ε² + |∇u|²)^((p−2)/2) ∂u/∂n.
    """
    draft = Draft("power_law", mesh, conditions)
    if isinstance(p, (int, float)):
        if not 1.0 < p < np.inf:
            raise ValueError(f"'p' of power_law must be above 1, not {p}")
        p = float(p)
    else:
        p = draft.quantity("p", p, above=1.0)
    if not (0.0 < eps < np.inf or (eps == 0.0 and p == 2.0)):
        raise ValueError(f"'eps' of power_law must be positive, not {eps}")
    kappa, f = draft.quantity("kappa", kappa, above=0.0), draft.quantity("f", f)
    u, v = _unknown(draft, degree, "u")
    flux = kappa * (eps**2 + inner(grad(u), grad(u))) ** ((p - 2.0) / 2.0) * grad(u)
    return _scalar(draft, inner(flux, grad(v)) * draft.dx - f * v * draft.dx, u, v, flux=-flux)


def _diffusivity(draft: Draft, name: str, value: Any) -> Any:
    return draft.quantity(name, value, (), (draft.gdim, draft.gdim), above=0.0)


def _times(kappa: Any, gradient: Any) -> Any:
    return dot(kappa, gradient) if len(kappa.ufl_shape) == 2 else kappa * gradient


def _unknown(draft: Draft, degree: int, name: str) -> tuple[fem.Function, ufl.Argument]:
    V = draft.space(degree)
    return fem.Function(V, name=name), ufl.TestFunction(V)


def _scalar(draft: Draft, F: ufl.Form, u: fem.Function, v: ufl.Argument, **extras: Any) -> Problem:
    return draft.problem(F + draft.natural(u, v), u, draft.essential(u.function_space), **extras)
