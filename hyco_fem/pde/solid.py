"""Ready problems: solids.  The unknown is the displacement u; see catalogue.py for how quantities may be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import grad, inner

from hyco_fem.pde.problem import Condition, Dirichlet, Draft, Problem


def elasticity(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    E: Any = 1.0,
    nu: Any = 0.3,
    f: Any = 0.0,
    conditions: Sequence[Condition] = (Dirichlet(0.0),),
) -> Problem:
    """−∇·σ = f, σ = λ tr(ε) I + 2μ ε, ε = (∇u + ∇uᵀ)/2: small deformations; plane strain in 2D.

        λ = E ν / ((1 + ν)(1 − 2ν)),   μ = E / (2 (1 + ν))

    Vector Lagrange elements; near ν = 1/2 those of degree 1 lock, use degree 2.

    Args:
        degree: Of the elements.
        E: Coefficient, Young's modulus > 0.
        nu: Coefficient, Poisson's ratio, between −1 and 1/2.
        f: Coefficient, the force per volume, a vector (or 0).
        conditions: Natural: the traction σ n, a vector; `component` fixes one displacement only.

    Returns:
        The problem; `extras["stress"]` is σ.
    """
    draft = Draft("elasticity", mesh, conditions)
    lmbda, mu, f = _moduli(draft, E, nu, f)
    u, v = _displacement(draft, degree)
    strain = ufl.sym(grad(u))
    stress = lmbda * ufl.tr(strain) * ufl.Identity(draft.gdim) + 2.0 * mu * strain
    F = inner(stress, ufl.sym(grad(v))) * draft.dx - inner(f, v) * draft.dx + draft.natural(u, v)
    return draft.problem(F, u, draft.essential(u.function_space), stress=stress)


def hyperelasticity(
    mesh: dmesh.Mesh,
    *,
    degree: int = 1,
    E: Any = 1.0,
    nu: Any = 0.3,
    f: Any = 0.0,
    conditions: Sequence[Condition] = (Dirichlet(0.0),),
) -> Problem:
    """−∇·P = f, P = ∂ψ/∂G: large deformations of a compressible neo-Hookean body; plane strain in 2D.

        ψ = μ/2 (tr GᵀG − d) − μ ln J + λ/2 (ln J)²,   G = I + ∇u,  J = det G,   λ and μ as in `elasticity`

    All in the reference configuration: forces are per reference volume and area, and keep their direction.  Bonet &
    Wood, Nonlinear Continuum Mechanics for Finite Element Analysis (2008), section 6.4.3.  For small loads it is
    `elasticity`.  Newton fails where a load step turns a cell inside out: start nearer.

    Args:
        degree: Of the vector Lagrange elements.
        E, nu, f: As for `elasticity`.
        conditions: Natural: the traction P n, a vector.

    Returns:
        The problem; `extras["stress"]` is P, the first Piola–Kirchhoff stress.
    """
    draft = Draft("hyperelasticity", mesh, conditions)
    lmbda, mu, f = _moduli(draft, E, nu, f)
    u, v = _displacement(draft, degree)
    G = ufl.Identity(draft.gdim) + grad(u)
    inverse = ufl.inv(G).T
    stress = mu * (G - inverse) + lmbda * ufl.ln(ufl.det(G)) * inverse
    F = inner(stress, grad(v)) * draft.dx - inner(f, v) * draft.dx + draft.natural(u, v)
    return draft.problem(F, u, draft.essential(u.function_space), stress=stress)


def _moduli(draft: Draft, E: Any, nu: Any, f: Any) -> tuple[Any, Any, Any]:
    """λ, μ and the body force, checked."""
    draft.check_plane_or_space()
    E, nu = draft.quantity("E", E, above=0.0), draft.quantity("nu", nu, above=-1.0, below=0.5)
    f = draft.quantity("f", f, (draft.gdim,))
    return E * nu / ((1.0 + nu) * (1.0 - 2.0 * nu)), E / (2.0 * (1.0 + nu)), f


def _displacement(draft: Draft, degree: int) -> tuple[fem.Function, ufl.Argument]:
    V = draft.space(degree, draft.gdim)
    return fem.Function(V, name="u"), ufl.TestFunction(V)
