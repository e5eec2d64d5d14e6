"""Ready problems in time.  Flows are in transient_flow.py; all are under `hyco_fem.catalogue`.

    t = fem.Constant(mesh, 0.0)
    problem = hf.catalogue.heat(mesh, f=ufl.sin(t), conditions=hf.Dirichlet(t * x[0]), initial=0.0, t=t)
    model = hf.TransientModel.of(problem, {"kappa": module}, interval=(0.0, 1.0), dt=0.01)

Quantities and conditions are given as for the steady problems (catalogue.py), with two things more: every UFL
expression may contain the Constant t, and a Dirichlet value that does is set anew at every time; and each problem has
its `initial` value, a number, a UFL expression, a Function or a torch module of x, which makes it unknown.  Of two
unknowns it may be a pair, of numbers or expressions.

The strong forms in models/strong_transient.py are of the same equations, coefficients and natural conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import div, dot, grad, inner
from ufl.core.expr import Expr

from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Condition, Dirichlet, Draft

_ZERO = (Dirichlet(0.0),)


def heat(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    f: Any = 0.0,
    initial: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂u/∂t = ∇·(κ ∇u) + f.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0, a number or a symmetric positive definite matrix.
        f: Coefficient, the source.
        initial: u at the start.
        conditions: Natural: κ ∂u/∂n.
        t: Stands for time in what is given.
    """
    draft = Draft("heat", mesh, conditions, t)
    kappa, f = draft.quantity("kappa", kappa, (), (draft.gdim, draft.gdim), above=0.0), draft.quantity("f", f)
    u, u_t, v = _unknown(draft, degree)
    flux = dot(kappa, grad(u)) if len(kappa.ufl_shape) == 2 else kappa * grad(u)
    G = u_t * v * draft.dx + inner(flux, grad(v)) * draft.dx - f * v * draft.dx
    return _problem(draft, G + draft.natural(u, v), u, u_t, draft.essential(u.function_space), initial)


def heat_nondivergence(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    f: Any = 0.0,
    initial: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂u/∂t = κ Δu + f, with κ outside the divergence, as in case 3 of the HYCO paper.

    Divided by κ the form is symmetric, and needs no derivative of κ:

        ∫ (∂u/∂t) v / κ + ∇u·∇v − f v / κ.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0.
        f: Coefficient, the source.
        initial: u at the start.
        conditions: Natural: ∂u/∂n, without κ.
        t: Stands for time in what is given.
    """
    draft = Draft("heat_nondivergence", mesh, conditions, t)
    kappa, f = draft.quantity("kappa", kappa, above=0.0), draft.quantity("f", f)
    u, u_t, v = _unknown(draft, degree)
    G = u_t / kappa * v * draft.dx + inner(grad(u), grad(v)) * draft.dx - f / kappa * v * draft.dx
    return _problem(draft, G + draft.natural(u, v), u, u_t, draft.essential(u.function_space), initial)


def transient_advection_diffusion(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    kappa: Any = 1.0,
    beta: Any,
    f: Any = 0.0,
    initial: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂u/∂t + β·∇u = ∇·(κ ∇u) + f, stabilised by streamline upwinding (SUPG), for β of any size.

    As `advection_diffusion`, with ∂u/∂t in the residual that the stabilisation weighs, and the same τ, that of the
    steady problem, whatever the step.

    Args:
        degree: Of the Lagrange elements.
        kappa: Coefficient κ > 0.
        beta: Coefficient, the velocity, a vector (in 1D also a number).
        f: Coefficient, the source.
        initial: u at the start.
        conditions: Natural: κ ∂u/∂n; zero at an outflow lets u out.
        t: Stands for time in what is given.
    """
    draft = Draft("transient_advection_diffusion", mesh, conditions, t)
    kappa, f = draft.quantity("kappa", kappa, above=0.0), draft.quantity("f", f)
    beta = draft.quantity("beta", beta, (draft.gdim,))
    u, u_t, v = _unknown(draft, degree)
    h = ufl.CellDiameter(mesh) / degree
    tau = 1.0 / ufl.sqrt(dot(beta, beta) * (2.0 / h) ** 2 + 9.0 * (4.0 * kappa / h**2) ** 2)
    strong = u_t - div(kappa * grad(u)) + dot(beta, grad(u)) - f
    G = (u_t * v + kappa * inner(grad(u), grad(v)) + dot(beta, grad(u)) * v - f * v) * draft.dx
    G += tau * dot(beta, grad(v)) * strong * draft.dx
    return _problem(draft, G + draft.natural(u, v), u, u_t, draft.essential(u.function_space), initial)


def wave(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    c: Any = 1.0,
    f: Any = 0.0,
    initial: Any = (0.0, 0.0),
    conditions: Sequence[Condition] = _ZERO,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂²u/∂t² = ∇·(c² ∇u) + f, as ∂u/∂t = w, ∂w/∂t = ∇·(c² ∇u) + f for the pair (u, w).

    With Crank–Nicolson it conserves the energy ½ ∫ w² + c² |∇u|², and is Newmark's scheme with β = ¼, γ = ½.  The other
    schemes take energy away.

    Args:
        degree: Of the Lagrange elements for u and w.
        c: Coefficient c > 0, the speed of waves.
        f: Coefficient, the source.
        initial: (u, w) at the start.
        conditions: On u, a scalar.  A Dirichlet value with t gives that of w by its derivative; others stay the same in
            time.  Natural: c² ∂u/∂n.
        t: Stands for time in what is given.

    Returns:
        The problem; `observed` is u; `extras` has "displacement" and "velocity".
    """
    draft = Draft("wave", mesh, conditions, t)
    c, f = draft.quantity("c", c, above=0.0), draft.quantity("f", f)
    y, y_t, z = _unknown(draft, degree, 2)
    (u, w), (u_t, w_t), (q, v) = ufl.split(y), ufl.split(y_t), ufl.split(z)
    G = (u_t - w) * q * draft.dx + (w_t * v + c**2 * inner(grad(u), grad(v)) - f * v) * draft.dx
    V = y.function_space
    bcs = [*draft.essential(V.sub(0)), *draft.essential(V.sub(1), rate=True)]
    return _problem(draft, G + draft.natural(u, v), y, y_t, bcs, initial, observed=0, displacement=u, velocity=w)


def gray_scott(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    Du: Any = 0.2,
    Dv: Any = 0.08,
    F: Any = 0.018,
    k: Any = 0.051,
    initial: Any,
    conditions: Sequence[Condition] = (),
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂u/∂t = ∇·(D_u ∇u) − u v² + F (1 − u), ∂v/∂t = ∇·(D_v ∇v) + u v² − (F + k) v, for the pair (u, v).

    The reaction is treated explicitly: with `BDF2`, or `BackwardEuler`, each step is a linear solve with the same
    matrix.  Pearson, Science 261 (1993); Ruuth, J. Math. Biol. 34 (1995) on such schemes for patterns.

    Args:
        degree: Of the Lagrange elements for u and v.
        Du, Dv: Coefficients > 0, the diffusivities.
        F, k: Coefficients, the rates of feed and removal.
        initial: (u, v) at the start.
        conditions: On the pair; `component` for one of them.  Natural: D_u ∂u/∂n and D_v ∂v/∂n, by default zero on the
            whole boundary, which a pattern that is even about all walls of a periodic box satisfies.
        t: Stands for time in what is given.
    """
    draft = Draft("gray_scott", mesh, conditions, t)
    Du, Dv = draft.quantity("Du", Du, above=0.0), draft.quantity("Dv", Dv, above=0.0)
    F, k = draft.quantity("F", F), draft.quantity("k", k)
    y, y_t, z = _unknown(draft, degree, 2)
    (u, v), (p, q) = ufl.split(y), ufl.split(z)
    G = inner(y_t, z) * draft.dx + (Du * inner(grad(u), grad(p)) + Dv * inner(grad(v), grad(q))) * draft.dx
    reaction = u * v**2
    E = (reaction - F * (1.0 - u)) * p * draft.dx + ((F + k) * v - reaction) * q * draft.dx
    bcs = draft.essential(y.function_space)
    return _problem(draft, G + draft.natural(y, z), y, y_t, bcs, initial, explicit=E)


def burgers(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    nu: Any = 0.01,
    f: Any = 0.0,
    initial: Any = 0.0,
    conditions: Sequence[Condition] = _ZERO,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """∂u/∂t + (u·∇)u = ∇·(ν ∇u) + f; u is a vector, in 1D a scalar.  All of it is implicit, by Newton's method.

    No stabilisation: cells must be small enough for layers of width ν / |u|.

    Args:
        degree: Of the Lagrange elements.
        nu: Coefficient ν > 0, the viscosity.
        f: Coefficient, the force, a vector (or 0).
        initial: u at the start.
        conditions: Natural: ν ∂u/∂n.
        t: Stands for time in what is given.
    """
    draft = Draft("burgers", mesh, conditions, t)
    nu, d = draft.quantity("nu", nu, above=0.0), draft.gdim
    f = draft.quantity("f", f, *([(), (1,)] if d == 1 else [(d,)]))
    u, u_t, v = _unknown(draft, degree, *([] if d == 1 else [d]))
    if d == 1:
        f = f[0] if f.ufl_shape == (1,) else f
        carried = u * u.dx(0)
    else:
        carried = dot(grad(u), u)
    G = (inner(u_t + carried, v) + nu * inner(grad(u), grad(v)) - inner(f, v)) * draft.dx
    return _problem(draft, G + draft.natural(u, v), u, u_t, draft.essential(u.function_space), initial)


def _unknown(draft: Draft, degree: int, *shape: int) -> tuple[fem.Function, fem.Function, ufl.Argument]:
    V = draft.space(degree, *shape)
    return fem.Function(V, name="u"), fem.Function(V, name="u_t"), ufl.TestFunction(V)


def _problem(
    draft: Draft,
    G: ufl.Form,
    u: fem.Function,
    u_t: fem.Function,
    bcs: list[fem.DirichletBC],
    initial: Any,
    *,
    explicit: ufl.Form | None = None,
    observed: int | None = None,
    **extras: Any,
) -> TransientProblem:
    return TransientProblem(
        draft.name,
        G,
        u,
        u_t,
        fem.Constant(draft.mesh, 0.0) if draft.t is None else draft.t,
        bcs,
        initial_value(draft, initial, u.ufl_shape),
        explicit,
        draft.time_values,
        draft.coefficients,
        observed,
        tuple(draft.positive),
        extras,
    )


def initial_value(draft: Draft, given: Any, shape: tuple[int, ...]) -> Any:
    """The initial value of an unknown of a shape: a number, a UFL expression or Function, or what is a module.

    Raises:
        ValueError, TypeError: the shape is another, or it is no value.
    """
    what = f"the initial value of {draft.name}"
    if isinstance(given, Sequence) and shape:
        if len(given) != shape[0]:
            raise ValueError(f"{what} has {len(given)} parts, not {shape[0]}")
        given = ufl.as_vector([g if isinstance(g, Expr) else _constant(draft, what, g) for g in given])
    if isinstance(given, Expr):
        if given.ufl_shape != shape:
            raise ValueError(f"{what} has shape {given.ufl_shape}, not {shape}")
        return given
    if callable(given):  # a torch module: TransientModel and PINN check it
        return given
    array = np.asarray(given)
    if array.shape == shape and shape:
        return fem.Constant(draft.mesh, array.astype(np.float64))
    if shape and array.shape == () and array != 0:
        raise ValueError(f"{what} must have the shape {shape}, not be a number")
    return _number(what, given)


def _constant(draft: Draft, what: str, given: Any) -> fem.Constant:
    return fem.Constant(draft.mesh, _number(what, given))


def _number(what: str, given: Any) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} must be a number, a UFL expression, a Function or a torch module, not {type(given).__name__}"
        ) from None
    if not np.isfinite(number):
        raise ValueError(f"{what} is not finite: {number}")
    return number
