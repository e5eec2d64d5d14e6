"""One solve of a step in time: a steady problem that is solved again and again with other right-hand sides.

What the matrix of an affine problem depends on changes rarely: matrix and factors are kept for each set of such values
(a `key`, told by the caller), for the steps forward and for the adjoint.  Earlier values of the field enter by
matrices of their own, assembled with it, wherever they can: a step is then a product, a solve, and the load.

Distributed; every method is collective.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.linear import LinearSolver
from hyco_fem.pde.products import Products
from hyco_fem.pde.scheme import Stage
from hyco_fem.pde.steady import SteadySolver
from hyco_fem.pde.vectors import local, owned

# A step starts near its solution, so that residuals are small from the first one on: the last correction counts.
_NEWTON = {"snes_atol": 1e-30, "snes_stol": 1e-12}

# Matrices with factors that are kept.  A scheme has two when its first step is another than the rest, and a backward
# sweep that starts anew from checkpoints needs both again and again.
_KEPT = 3


@dataclass
class Factors:
    """One matrix with its factors, and the matrices of earlier values: all that belongs to one key."""

    linear: LinearSolver
    products: dict[int, Products]
    key: Hashable = None


class StageSolver(SteadySolver):
    """The solver of one stage.

    Args:
        stage: G, u, and boundary conditions.
        coefficients: The unknown coefficients m_k of G.
        fields: Functions of G that hold earlier values, or unknowns of earlier stages.
        changing: Functions of G, other than coefficients and fields, that change from step to step.
        others: As for `SteadySolver`.

    Attributes:
        varying: whether the matrix of an affine problem depends on what changes in every step, or the problem is not
            affine: then there is no key.
        key_functions, key_constants: Functions and Constants on which the matrices depend.
    """

    _compiles_gradients = False  # of which only some are needed

    def __init__(
        self,
        stage: Stage,
        coefficients: Sequence[fem.Function],
        fields: Sequence[fem.Function],
        changing: Sequence[fem.Function],
        **options: Any,
    ) -> None:
        options["petsc_options"] = _NEWTON | dict(options.get("petsc_options") or {})
        G, u = stage.G, stage.u
        present = extract_coefficients(G)
        self.fields = [f for f in fields if f in present]
        moving = [u, *self.fields, *changing]
        by_matrix = [f for f in self.fields if _has_matrix(G, f, u, moving)]
        super().__init__(G, u, stage.bcs, [*coefficients, *self.fields], by_matrix=by_matrix, **options)
        self.n_coefficients = len(coefficients)
        self._by_matrix = [k for k, m in enumerate(self.coefficients) if m in by_matrix]
        inputs = list(self.matrix_inputs)
        for k in self._by_matrix:
            form = expand_derivatives(ufl.derivative(self.F, self.coefficients[k]))
            inputs += [*extract_coefficients(form), *extract_constants(form)]
        self.varying = not self.affine or any(f in self.matrix_inputs for f in moving)
        self.key_functions = list(dict.fromkeys(f for f in inputs if isinstance(f, fem.Function)))
        self.key_constants = list(dict.fromkeys(c for c in inputs if isinstance(c, fem.Constant)))
        self._kept = [Factors(self.linear, self._new_products())]
        self._lifted: tuple[Hashable, np.ndarray, np.ndarray] | None = None
        self._lifting = fem.Function(self.V)
        self._g = np.zeros(len(local(u)))

    def _new_products(self) -> dict[int, Products]:
        return {k: self.derivatives.new_matrix(k) for k in self._by_matrix}

    @property
    def factors(self) -> Factors:
        """Those in use."""
        return self._kept[0]

    def use(self, key: Hashable) -> None:
        """Have matrix and factors for the values that coefficients and Constants hold now, known under `key`.

        None is the key of values that will not come again.
        """
        for i, found in enumerate(self._kept):
            if key is not None and found.key == key:
                self._kept.insert(0, self._kept.pop(i))
                self.linear = found.linear
                return
        if key is not None and self._kept[0].key is not None:
            if len(self._kept) < _KEPT:
                A = fem_petsc.create_matrix(self._J)
                fresh = Factors(self.linear_solver(A), self._new_products())
            else:
                fresh = self._kept.pop()
            self._kept.insert(0, fresh)
            self.linear = fresh.linear
        self.factors.key = None  # until the factorisation has succeeded
        for product in self.factors.products.values():
            product.assemble()
        self.new_matrix()
        self.factors.key = key

    # -- forward -------------------------------------------------------------------------------------------

    def solve(self, key: Hashable) -> None:
        """Solve for u, from the value that it holds where the solver starts from one.

        Raises:
            SolveError: no convergence, or a singular matrix.
        """
        if self.newton is not None:
            self.newton.solve()
        else:
            self.use(key)
            rhs = self._right_hand_side(key)
            self.linear.solve(rhs.x.petsc_vec, self.u.x.petsc_vec)
        self.u.x.scatter_forward()
        self.counts["forward"] += 1

    def _right_hand_side(self, key: Hashable) -> fem.Function:
        b = self._b
        into = local(b)
        into[:] = 0.0 if self._load is None else self._load.assembled()
        for k, product in self.factors.products.items():
            into -= product.local_times(local(self.coefficients[k]))
        if self.bcs:
            into += self._boundary_lifting(key)
        b.x.scatter_reverse(la.InsertMode.add)
        owned(b)[self.fixed_owned] = self._g[self.fixed_owned]
        return b

    def _boundary_lifting(self, key: Hashable) -> np.ndarray:
        """What the boundary values add to the right-hand side; local values, kept while nothing changes."""
        for bc in self.bcs:
            bc.set(self._g)
        if self._lifted is not None and key is not None:
            at, g, found = self._lifted
            if at == key and np.array_equal(g, self._g):
                return found
        work = self._lifting
        local(work)[:] = 0.0
        if self._g.any():  # on some ranks only, perhaps: nothing here may be collective
            fem.apply_lifting(local(work), [self._J], bcs=[self.bcs])
        self._lifted = key, self._g.copy(), local(work).copy()
        return self._lifted[2]

    # -- derivatives at the values that the Functions hold now ----------------------------------------------

    def ready(self, key: Hashable) -> None:
        """Have the factors of ∂G/∂u for derivatives here."""
        self.use(None if self.varying else key)

    def add_to_coefficients(self, out: Sequence[np.ndarray | None]) -> None:
        """Add (∂G/∂m_k)ᵀ λ to local values of each coefficient, where wanted; contributions to ghosts are not sent."""
        D = self.derivatives
        local(D.multiplier)[:] = local(self.lagrange)
        for k, row in enumerate(out):
            form = None if row is None else D.gradient_form(k)
            if form is not None:
                fem.assemble_vector(row, form)

    def add_to_fields(self, out: Sequence[fem.Function]) -> None:
        """Subtract (∂G/∂f)ᵀ λ from local values of each of `fields`; contributions to ghosts are not yet sent."""
        D = self.derivatives
        local(D.multiplier)[:] = local(self.lagrange)
        for i, f in enumerate(out):
            k = self.n_coefficients + i
            product = self.factors.products.get(k)
            if product is not None:
                local(f)[:] -= product.local_transposed_times(local(self.lagrange))
            else:
                form = D.gradient_form(k)
                if form is not None:
                    work = self._field_work(i)
                    work[:] = 0.0
                    fem.assemble_vector(work, form)
                    local(f)[:] -= work

    def _field_work(self, i: int) -> np.ndarray:
        return local(self.derivatives._out[self.n_coefficients + i])

    @property
    def assembled(self) -> dict[int, Products]:
        """∂G/∂f of earlier values, assembled with the matrix in use."""
        return self.factors.products

    def close(self) -> None:
        """Destroy what PETSc holds, on all ranks together."""
        for kept in self._kept[1:]:
            kept.linear.close()
        for kept in self._kept:
            for product in kept.products.values():
                product.close()
        self.linear = self._kept[0].linear
        super().close()


def _has_matrix(G: ufl.Form, f: fem.Function, u: fem.Function, moving: Sequence[fem.Function]) -> bool:
    """Whether ∂G/∂f is a matrix that stays the same while fields and loads move."""
    if f.function_space.dofmap.bs != u.function_space.dofmap.bs:
        return False  # a matrix with rectangular blocks is applied column by column, more slowly than a form
    found = extract_coefficients(expand_derivatives(ufl.derivative(G, f)))
    return not any(g in found for g in moving)
