"""One quadrature for a residual and all its derivatives.

UFL chooses the degree of a quadrature anew for each form, from the integrand.  Where the integrand is not a polynomial
of that degree (powers, exponentials, cells that are not affine), the derivative of a form is then integrated by another
rule than the form, and is not the derivative of what the solver solves: gradients are wrong by the quadrature error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ufl
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.algorithms.apply_geometry_lowering import apply_geometry_lowering
from ufl.algorithms.estimate_degrees import estimate_total_polynomial_degree
from ufl.classes import JacobianDeterminant, Sum
from ufl.core.expr import Expr


def fixed_quadrature(F: ufl.Form) -> ufl.Form:
    """F with the degree that UFL chooses for each of its terms written down, for its derivatives to inherit.

    Degrees that the user has set stay.  Each term of a sum has its own, so that a load of high degree does not make the
    matrix expensive.
    """
    integrals = []
    for integral in F.integrals():
        metadata = integral.metadata()
        if metadata.get("quadrature_degree", -1) >= 0:
            integrals.append(integral)
            continue
        scale = _degree(apply_geometry_lowering(JacobianDeterminant(integral.ufl_domain())))
        for term in _terms(integral.integrand()):
            degree = scale + _degree(apply_derivatives(apply_algebra_lowering(term)))
            integrals.append(integral.reconstruct(integrand=term, metadata={**metadata, "quadrature_degree": degree}))
    return ufl.Form(integrals)


def _terms(expression: Expr) -> Iterator[Expr]:
    if isinstance(expression, Sum):
        for operand in expression.ufl_operands:
            yield from _terms(operand)
    else:
        yield expression


def _degree(expression: Expr) -> int:
    return int(np.max(estimate_total_polynomial_degree(expression)))
