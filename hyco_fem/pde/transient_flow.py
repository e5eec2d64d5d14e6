"""Ready problems in time: incompressible flow, by pressure correction.

Velocity u in continuous elements of degree 2, pressure p of degree 1.  A step is three solves, the incremental scheme
(Goda, J. Comput. Phys. 30 (1979); Guermond, Minev, Shen, CMAME 195 (2006)).  With d = c₀ ũ + c₁ u₁ + c₂ u₂ for
∂u/∂t, by BDF1 or BDF2, and to the same order the velocity that carries, u° = e₁ u₁ + e₂ u₂,

    ρ (d + (u°·∇) ũ + ½ (∇·u°) ũ) − ∇·(μ ∇ũ) + ∇p₁ = f     the velocity before correction, ũ,
    ∇·(ρ⁻¹ ∇(p − p₁)) = c₀ ∇·ũ                             the pressure,
    c₀ (u − ũ) + ρ⁻¹ ∇(p − p₁) = 0                         the velocity.

∇·u° is small and not zero; its term keeps the transport from making energy (Temam, 1968).  All three are linear, and
differentiated as they are.  The pressure has a Dirichlet condition of its own wherever the fluid can flow out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import div, dot, grad, inner
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.flow import lowest_vertex
from hyco_fem.pde.problem import Condition, Dirichlet, Draft
from hyco_fem.pde.scheme import BDF, Stage, StepProblem
from hyco_fem.pde.transient_catalogue import initial_value


def transient_navier_stokes(
    mesh: dmesh.Mesh,
    *,
    mu: Any = 1.0,
    rho: Any = 1.0,
    f: Any = 0.0,
    initial: Any = 0.0,
    initial_pressure: Any = 0.0,
    conditions: Sequence[Condition],
    pressure: Dirichlet | Sequence[Dirichlet] | None = None,
    order: int = 2,
    t: fem.Constant | None = None,
) -> TransientProblem:
    """ρ (∂u/∂t + (u·∇)u) − ∇·(μ ∇u) + ∇p = f, ∇·u = 0.

    The splitting is a scheme in time of its own: that of the model is not used.

    Args:
        mu: Coefficient, the viscosity > 0.
        rho: Coefficient, the density > 0.
        f: Coefficient, the force per volume, a vector (or 0).
        initial: u at the start.
        initial_pressure: p at the start, a number, expression or Function; a wrong one spoils the first steps.
        conditions: On the velocity.  Natural: μ ∂u/∂n, a vector.
        pressure: Conditions on p, Dirichlet.  By default p = 0 wherever nothing of the velocity is given; if it is
            given on the whole boundary, p = 0 at one vertex, the lowest one by its coordinates.
        order: In time, 1 or 2.
        t: Stands for time in what is given.

    Returns:
        The problem; its unknown is the velocity.  `extras` has "velocity", "pressure" (a Function, that of the last
        step solved) and "viscosity".
    """
    name = "transient_navier_stokes"
    draft = Draft(name, mesh, conditions, t)
    draft.check_plane_or_space()
    if order not in (1, 2):
        raise ValueError(f"the order of {name} must be 1 or 2, not {order!r}")
    mu, rho = draft.quantity("mu", mu, above=0.0), draft.quantity("rho", rho, above=0.0)
    f = draft.quantity("f", f, (draft.gdim,))
    t = fem.Constant(mesh, 0.0) if t is None else t
    V, Q = draft.space(2, draft.gdim), draft.space(1)
    u, p = fem.Function(V, name="velocity"), fem.Function(Q, name="pressure")
    v, q = ufl.TestFunction(V), ufl.TestFunction(Q)
    p_bcs = _pressure_conditions(draft, Q, pressure)
    bcs = draft.essential(V)
    p0 = fem.Function(Q, name="initial_pressure")
    _interpolate(p0, initial_value(draft, initial_pressure, ()))
    time_values = draft.time_values

    def splitting(u0: fem.Function) -> StepProblem:
        before = fem.Function(V, name="uncorrected_velocity")
        u1, u2 = fem.Function(V, name="velocity_1"), fem.Function(V, name="velocity_2")
        p1 = fem.Function(Q, name="pressure_1")
        c = [fem.Constant(mesh, value) for value in (1.0, -1.0, 0.0)[: order + 1]]
        e = [fem.Constant(mesh, value) for value in (1.0, 0.0)[:order]]
        earlier = [u1, u2][:order]
        rate = c[0] * before + sum(a * w for a, w in zip(c[1:], earlier, strict=True))
        carrier = sum(a * w for a, w in zip(e, earlier, strict=True))
        transport = dot(grad(before), carrier) + 0.5 * div(carrier) * before
        G1 = (rho * inner(rate + transport, v) + mu * inner(grad(before), grad(v))) * draft.dx
        G1 += inner(grad(p1) - f, v) * draft.dx + draft.natural(before, v)
        correction = grad(p - p1) / rho
        G2 = (inner(correction, grad(q)) + c[0] * div(before) * q) * draft.dx
        G3 = inner(c[0] * (u - before) + correction, v) * draft.dx
        return StepProblem(
            stages=(Stage(G1, before, bcs), Stage(G2, p, p_bcs), Stage(G3, u, bcs)),
            u=u,
            shifts=[*zip(reversed(earlier), [*reversed(earlier[:-1]), u], strict=True), (p1, p)],
            initial=[*((w, u0) for w in earlier), (p1, p0)],
            begin=BDF(order).begin(c, e),
            weights=[*c, *e],
            levels=[(g, g, 0) for g in time_values],
            times=[(t, 0)],
            name=f"pressure correction of order {order}",
        )

    return TransientProblem(
        name,
        None,
        u,
        fem.Function(V, name="u_t"),
        t,
        bcs,
        initial_value(draft, initial, (draft.gdim,)),
        time_values=time_values,
        coefficients=draft.coefficients,
        positive=tuple(draft.positive),
        extras={"velocity": u, "pressure": p, "viscosity": mu},
        splitting=splitting,
    )


def _pressure_conditions(
    draft: Draft, Q: fem.FunctionSpace, given: Dirichlet | Sequence[Dirichlet] | None
) -> list[fem.DirichletBC]:
    if given is None and not draft.open:
        dofs = fem.locate_dofs_topological(Q, 0, lowest_vertex(draft.mesh))
        return [fem.dirichletbc(fem.Function(Q, name="pinned_pressure"), dofs)]
    if given is None:
        given = Dirichlet(0.0, draft.outflow)
    given = list(given) if isinstance(given, Sequence) else [given]
    if not given or not all(isinstance(c, Dirichlet) for c in given):
        raise TypeError(f"the pressure of {draft.name} takes Dirichlet conditions, at least one")
    own = Draft(f"the pressure of {draft.name}", draft.mesh, given, draft.t)
    bcs = own.essential(Q)
    draft.time_values.update(own.time_values)
    for name, g in own.coefficients.items():
        draft.register(name, g)
    return bcs


def _interpolate(g: fem.Function, value: Any) -> None:
    if isinstance(value, fem.Function):
        g.interpolate(value)
    elif isinstance(value, Expr):
        g.interpolate(_compat.expression(value, _compat.interpolation_points(g.function_space), g.function_space.mesh))
    elif isinstance(value, float):
        g.x.array[:] = value
    else:
        raise TypeError(f"'{g.name}' must be a number, an expression or a Function, not {type(value).__name__}")
    g.x.scatter_forward()
