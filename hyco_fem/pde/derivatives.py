"""First and second derivatives of a residual F(u, m; v), as forms that are compiled when they are first needed.

Since F is linear in v, L(u, m; λ) = F(u, m; λ) is a functional, and with it

    ∂F/∂m_k δm_k           tangent right-hand sides        (∂F/∂m_k)ᵀ λ = ∂L/∂m_k      adjoint gradients
    ∂F/∂u δu               lifting of boundary values       (∂F/∂u)ᵀ λ  = ∂L/∂u
    δ(∂L/∂u), δ(∂L/∂m_k)   along (δu, δm): second derivatives

Distributed: forms are assembled into local vectors, ghosts included and not yet exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import ufl
from dolfinx import fem, la
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_coefficients

from hyco_fem.pde.products import Products, products
from hyco_fem.pde.vectors import local

Compile = Callable[[ufl.Form], fem.Form]


class Derivatives:
    """Derivatives of F at whatever values its Functions hold.

    Args:
        F: Residual.  u: unknown.  coefficients: m_k.  compile: from UFL to a compiled form; collective.

    Attributes:
        direction_u, directions: Functions δu, δm_k that the user of this class fills in (ghosts too).
        multiplier: The Function λ, likewise.
    """

    def __init__(self, F: ufl.Form, u: fem.Function, coefficients: Sequence[fem.Function], compile: Compile) -> None:
        self.F, self.u, self.coefficients = F, u, list(coefficients)
        self._compile = compile
        V = u.function_space
        self.multiplier = fem.Function(V)
        self._L = ufl.replace(F, {F.arguments()[0]: self.multiplier})
        present = extract_coefficients(F)
        # A coefficient may enter by a boundary condition only.
        self.in_form = [m in present for m in self.coefficients]
        self._out_u = fem.Function(V)
        self._out = [fem.Function(m.function_space) for m in self.coefficients]
        self._gradient_forms: dict[int, fem.Form | None] = {}
        self._products: dict[int, Products] = {}
        self._sums: dict[tuple[int, ...], fem.Form] = {}

    # -- first derivatives ---------------------------------------------------------------------------------

    @cached_property
    def direction_u(self) -> fem.Function:
        return fem.Function(self.u.function_space)

    @cached_property
    def directions(self) -> list[fem.Function]:
        return [fem.Function(m.function_space) for m in self.coefficients]

    def gradient_form(self, k: int) -> fem.Form | None:
        """∂L/∂m_k, compiled when first asked for; None where m_k is not in the form.  Collective then."""
        if k not in self._gradient_forms:
            g = self._gradients[k]
            self._gradient_forms[k] = None if g is None else self._compile(g)
        return self._gradient_forms[k]

    @cached_property
    def _gradients(self) -> list[ufl.Form | None]:
        return [
            ufl.derivative(self._L, m, ufl.TestFunction(m.function_space)) if there else None
            for m, there in zip(self.coefficients, self.in_form, strict=True)
        ]

    @cached_property
    def _gradient_u(self) -> ufl.Form:
        return ufl.derivative(self._L, self.u, ufl.TestFunction(self.u.function_space))

    @cached_property
    def _gradient_u_form(self) -> fem.Form:
        return self._compile(self._gradient_u)

    @cached_property
    def _tangent_forms(self) -> list[fem.Form | None]:
        return [
            self._compile(ufl.derivative(self.F, m, dm)) if there else None
            for m, dm, there in zip(self.coefficients, self.directions, self.in_form, strict=True)
        ]

    @cached_property
    def _lifting_form(self) -> fem.Form:
        return self._compile(ufl.derivative(self.F, self.u, self.direction_u))

    def gradient(self, k: int) -> fem.Function:
        """(∂F/∂m_k)ᵀ λ, complete on owned dofs; a work Function.  Collective."""
        return _assembled(self.gradient_form(k), self._out[k])

    def gradient_u(self) -> fem.Function:
        """(∂F/∂u)ᵀ λ without boundary conditions, complete on owned dofs; a work Function.  Collective."""
        return _assembled(self._gradient_u_form, self._out_u)

    def add_tangent(self, k: int, out: np.ndarray) -> None:
        """Add ∂F/∂m_k δm_k to local values; contributions to ghosts not yet sent."""
        form = self._tangent_forms[k]
        if form is not None:
            fem.assemble_vector(out, form)

    def add_tangents(self, ks: tuple[int, ...], out: np.ndarray) -> None:
        """Add Σ_k ∂F/∂m_k δm_k, as `add_tangent`, in one assembly."""
        if ks not in self._sums:
            self._sums[ks] = self._compile(
                sum((ufl.derivative(self.F, self.coefficients[k], self.directions[k]) for k in ks), ufl.Form([]))
            )
        fem.assemble_vector(out, self._sums[ks])

    def add_lifting(self, out: np.ndarray) -> None:
        """Add ∂F/∂u δu, as `add_tangent`."""
        fem.assemble_vector(out, self._lifting_form)

    # -- matrices ------------------------------------------------------------------------------------------

    @cached_property
    def _matrix_forms(self) -> dict[int, fem.Form]:
        return {}

    def new_matrix(self, k: int) -> Products:
        """∂F/∂m_k as a new matrix, not yet assembled, for the caller to close; m_k is in the form.  Collective."""
        m, forms = self.coefficients[k], self._matrix_forms
        if k not in forms:
            forms[k] = self._compile(ufl.derivative(self.F, m, ufl.TrialFunction(m.function_space)))
        return products(forms[k], self.u.function_space, m.function_space)

    def matrix(self, k: int) -> Products | None:
        """∂F/∂m_k, assembled; None where m_k is not in the form.  Collective."""
        if not self.in_form[k]:
            return None
        if k not in self._products:
            self._products[k] = self.new_matrix(k)
        self._products[k].assemble()
        return self._products[k]

    @cached_property
    def _unconstrained(self) -> Products:
        V = self.u.function_space
        return products(self._compile(ufl.derivative(self.F, self.u, ufl.TrialFunction(V))), V, V)

    def matrix_u(self) -> Products:
        """∂F/∂u without boundary conditions, assembled.  Collective."""
        self._unconstrained.assemble()
        return self._unconstrained

    # -- second derivatives --------------------------------------------------------------------------------

    def _along(self, gradient: ufl.Form) -> fem.Form | None:
        """The derivative of a gradient of L along (δu, δm); None where it is zero."""
        total = ufl.derivative(gradient, self.u, self.direction_u)
        for m, dm, there in zip(self.coefficients, self.directions, self.in_form, strict=True):
            if there:
                total += ufl.derivative(gradient, m, dm)
        total = expand_derivatives(total)
        return None if total.empty() else self._compile(total)

    @cached_property
    def _second_u_form(self) -> fem.Form | None:
        return self._along(self._gradient_u)

    @cached_property
    def _second_forms(self) -> list[fem.Form | None]:
        return [None if g is None else self._along(g) for g in self._gradients]

    def second_u(self) -> fem.Function:
        """δ(∂L/∂u) along (δu, δm), complete on owned dofs; a work Function.  Collective."""
        return _assembled(self._second_u_form, self._out_u)

    def second(self, k: int) -> fem.Function:
        """δ(∂L/∂m_k) along (δu, δm), complete on owned dofs; a work Function.  Collective."""
        return _assembled(self._second_forms[k], self._out[k])

    def close(self) -> None:
        """Destroy the matrices, on all ranks together."""
        for found in (*self._products.values(), self.__dict__.pop("_unconstrained", None)):
            if found is not None:
                found.close()
        self._products.clear()


def _assembled(form: fem.Form | None, out: fem.Function) -> fem.Function:
    local(out)[:] = 0.0
    if form is not None:
        fem.assemble_vector(local(out), form)
        out.x.scatter_reverse(la.InsertMode.add)
    return out
