"""The assembled residual r_i = F(u, m; v_i) of any field u, with its derivatives, and its dual norm.

u is a field that need not solve the problem: the interpolant of a network.  On Dirichlet dofs it takes the boundary
values, and r is zero there.  With A = ∂F/∂u at this u, and P the projection that clears Dirichlet dofs,

    tangent:     δr = P (A (P δu + δg) + Σ_k (∂F/∂m_k) δm_k)      δg: the change of boundary values that are unknown
    transpose:   ū = P Aᵀ P w,   m̄_k = (∂F/∂m_k)ᵀ P w  (and the trace of Aᵀ P w)

The dual norm ‖r‖² = rᵀ K⁻¹ r, with K the matrix of an inner product, is the norm of the functional F(u, m; ·) on the
finite element space: of the size of the error ‖u − u_h‖ in that inner product, on any mesh.  (Rojas et al., Robust
variational physics-informed neural networks, CMAME 425 (2024).)

Everything is distributed: arrays hold the owned dofs of this rank, and every method is collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc

from hyco_fem.pde.choice import Traits, check_memory, default_options
from hyco_fem.pde.linear import LinearSolver
from hyco_fem.pde.state import State
from hyco_fem.pde.steady import SteadySolver
from hyco_fem.pde.vectors import local, owned, set_owned


class Residual:
    """The residual of the problem of a solver; no solve is made, and u and the coefficients stay as they are.

    Args:
        solver: Of the problem.

    Attributes:
        state: where the last `value` was taken.
    """

    def __init__(self, solver: SteadySolver) -> None:
        self.solver, self.V, self.comm = solver, solver.V, solver.comm
        self._form = solver.compile(solver.F)
        self._r = fem.Function(self.V)
        self._state: State | None = None

    @property
    def state(self) -> State:
        """Where the last residual was taken."""
        if self._state is None:
            raise RuntimeError("no residual has been assembled yet")
        return self._state

    def value(self, u: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
        """r at owned values of u and of the coefficients, (n_owned,), zero on Dirichlet dofs; a copy."""
        solver = self.solver
        # Coefficients that are boundary values only are not in the form.
        before = [local(m).copy() for m in solver.coefficients]
        try:
            with solver.kept():
                solver.set(values)
                owned(solver.u)[:] = u
                for bc in solver.bcs:
                    bc.set(local(solver.u))
                solver.u.x.scatter_forward()
                self._state = solver.here()
                local(self._r)[:] = 0.0
                fem.assemble_vector(local(self._r), self._form)
        finally:
            for m, array in zip(solver.coefficients, before, strict=True):
                local(m)[:] = array
        return self._complete().copy()

    def _complete(self) -> np.ndarray:
        self._r.x.scatter_reverse(la.InsertMode.add)
        owned(self._r)[self.solver.fixed_owned] = 0.0
        return owned(self._r)

    def tangent(self, state: State, du: np.ndarray | None, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δr at `state` for changes of u and of the coefficients, None for zero; a copy."""
        solver, D = self.solver, self.solver.derivatives
        change = np.zeros(len(owned(solver.u))) if du is None else du.copy()
        change[solver.fixed_owned] = 0.0
        with solver.kept():
            solver.put(state)
            local(self._r)[:] = 0.0
            for k, (direction, trace) in enumerate(zip(directions, solver.traces, strict=True)):
                if direction is not None:
                    set_owned(D.directions[k], direction)
                    D.add_tangent(k, local(self._r))
                    if trace is not None:
                        trace.lift(local(D.directions[k]), change)
            set_owned(D.direction_u, change)
            D.add_lifting(local(self._r))
        return self._complete().copy()

    def transpose(
        self, state: State, w: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """ū and the m̄_k that are wanted, at `state`; copies."""
        solver, D = self.solver, self.solver.derivatives
        cleared = w.copy()
        cleared[solver.fixed_owned] = 0.0
        with solver.kept():
            solver.put(state)
            set_owned(D.multiplier, cleared)
            gu = owned(D.gradient_u()).copy()
            out: list[np.ndarray | None] = []
            for k, (trace, want) in enumerate(zip(solver.traces, solver.all(wanted), strict=True)):
                if not want:
                    out.append(None)
                    continue
                found = owned(D.gradient(k)).copy()
                if trace is not None:
                    part = fem.Function(solver.coefficients[k].function_space)
                    trace.add_transpose(gu, local(part))
                    part.x.scatter_reverse(la.InsertMode.add)
                    found += owned(part)
                out.append(found)
        gu[solver.fixed_owned] = 0.0
        return gu, out


class Riesz:
    """r ↦ K⁻¹ r, with K the matrix of an inner product on the space of a problem, factorised once.  Self-adjoint.

    Args:
        solver: Of the problem; K has ones in the rows of its Dirichlet dofs.
        form: The inner product, bilinear, symmetric and positive definite; by default `inner_product(V)`.
    """

    def __init__(self, solver: SteadySolver, form: ufl.Form | None = None) -> None:
        self._form = inner_product(solver.V) if form is None else form
        if len(self._form.arguments()) != 2:
            raise ValueError("the inner product must be a form with a test and a trial function of the space of u")
        self._solver = solver
        self._x = fem.Function(solver.V)
        self._y = fem.Function(solver.V)

    @cached_property
    def _linear(self) -> LinearSolver:
        solver = self._solver
        form = solver.compile(self._form)
        K = fem_petsc.create_matrix(form)
        fem_petsc.assemble_matrix(K, form, bcs=solver.bcs)
        K.assemble()
        traits = Traits(K.getSize()[0], solver.comm.size, solver.V.mesh.topology.dim, symmetric=True, positive=True)
        options = default_options(traits)
        check_memory(solver.comm, options, traits, "the inner product")
        linear = LinearSolver(K, options, symmetric=True, fixed=solver.fixed_owned, what="the inner product")
        linear.factorise()
        return linear

    def solve(self, r: np.ndarray) -> np.ndarray:
        """K⁻¹ r, a copy."""
        owned(self._x)[:] = r
        local(self._y)[:] = 0.0
        self._linear.solve(self._x.x.petsc_vec, self._y.x.petsc_vec)
        return owned(self._y).copy()

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        if "_linear" in self.__dict__:
            self._linear.close()


def inner_product(V: fem.FunctionSpace) -> ufl.Form:
    """H¹ on every part of the unknown but those of lower degree than the others, which have L².

    These are the pressures of stable pairs of elements, for which the residual of ∇·u = 0 is to be measured in L².
    """
    u, v = ufl.TrialFunction(V), ufl.TestFunction(V)
    if V.num_sub_spaces == 0 or V.dofmap.index_map_bs > 1:
        return (ufl.inner(u, v) + ufl.inner(ufl.grad(u), ufl.grad(v))) * ufl.dx
    degrees = [V.sub(i).element.basix_element.degree for i in range(V.num_sub_spaces)]
    total = ufl.inner(u, v) * ufl.dx
    for degree, a, b in zip(degrees, ufl.split(u), ufl.split(v), strict=True):
        if degree == max(degrees):
            total += ufl.inner(ufl.grad(a), ufl.grad(b)) * ufl.dx
    return total
