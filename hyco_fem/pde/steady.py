"""A steady problem F(u, m; v) = 0: forward, tangent and adjoint solves.  NumPy and PETSc only.

Forms are compiled once, when the solver is built; matrices are reassembled in place.  Everything is distributed:
arrays hold the owned dofs of this rank, and every method is collective.

With A = ∂F/∂u at the solution, rows and columns of Dirichlet dofs cleared:

    tangent:   A δu = −Σ_k (∂F/∂m_k) δm_k
    adjoint:   Aᵀ λ = ū (zero on Dirichlet dofs),   m̄_k = −(∂F/∂m_k)ᵀ λ
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.linear import LinearSolver, Options, SolveError
from hyco_fem.pde.newton import NewtonSolver

# Other ranks wait for rank 0's compiler; the default of ten seconds is too short on a loaded node.
_JIT_TIMEOUT = {"timeout": 600}


@dataclass(frozen=True)
class State:
    """Where a forward solve was made: all that its tangents and adjoints need, as arrays.

    stamp: number of the forward solve; u, functions: local (owned and ghost) values; constants: values of the
    Constants of the form.
    """

    stamp: int
    u: np.ndarray
    functions: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray, ...]


class SteadySolver:
    """Solver of F(u, m; v) = 0 for u, as a map m ↦ u with tangent and adjoint.

    Args:
        F: Residual, a UFL form with one test function v, linear in v.  Affine in u: one linear solve (KSP);
            otherwise Newton with line search (SNES).
        u: The unknown, a Function in F.  It holds the last solution, and at construction Newton's start.
        bcs: Dirichlet conditions.  Their values may change between solves; they may not be a coefficient.
        coefficients: The Functions m_k of F by which the solution is differentiated.
        petsc_options: PETSc options without prefix, by default a direct solve (and SNES defaults).
        adjoint_petsc_options: Options for the adjoint; by default the forward solver and its factors.
        warm_start: Start an iterative or Newton solve from the last solution instead of the first start.
        form_compiler_options, jit_options: Passed on to `dolfinx.fem.form`.

    Raises:
        ValueError: the form does not fit the arguments.  TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        F: ufl.Form,
        u: fem.Function,
        bcs: Sequence[fem.DirichletBC] = (),
        coefficients: Sequence[fem.Function] = (),
        *,
        petsc_options: Options | None = None,
        adjoint_petsc_options: Options | None = None,
        warm_start: bool = False,
        form_compiler_options: dict | None = None,
        jit_options: dict | None = None,
    ) -> None:
        self.F, self.u, self.V = F, u, u.function_space
        self.bcs = list(bcs)
        self.coefficients = list(coefficients)
        self.comm = self.V.mesh.comm
        self._compiler = form_compiler_options
        self._jit = {**_JIT_TIMEOUT, **(jit_options or {})}
        self._check()
        self._functions = [f for f in extract_coefficients(F) if f is not u]
        self._constants = list(extract_constants(F))
        self._start = u.x.array.copy()
        self._warm_start = warm_start

        jacobian = expand_derivatives(ufl.derivative(F, u))
        self.affine = u not in extract_coefficients(jacobian)
        self._J = self._compile(jacobian)
        A = fem_petsc.create_matrix(self._J)
        self._b, self._lambda, self._du = (fem.Function(self.V) for _ in range(3))
        # F(u) = J u + F(0) where F is affine, so the right-hand side is −F with zero put in for u.
        at_zero = expand_derivatives(ufl.replace(expand_derivatives(F), {u: ufl.zero(u.ufl_shape)}))
        self._load = _Load(self._compile(-at_zero), at_zero) if self.affine and not at_zero.empty() else None
        self.newton: NewtonSolver | None = None
        linear_options = petsc_options
        if not self.affine:
            self.newton = NewtonSolver(self._compile(F), self._J, A, u, self.bcs, self._b, petsc_options)
            linear_options = self.newton.linear_options
        self.linear = LinearSolver(A, linear_options, adjoint_petsc_options, what=u.name)
        # (∂F/∂m_k)ᵀ λ: F is linear in v, so F(u, m; λ) is a functional whose gradient in m_k is wanted.
        functional = ufl.replace(F, {F.arguments()[0]: self._lambda})
        self._adjoint_forms = [
            self._compile(ufl.derivative(functional, m, ufl.TestFunction(m.function_space))) for m in self.coefficients
        ]
        self._adjoint_out = [fem.Function(m.function_space) for m in self.coefficients]
        self._fixed = self._fixed_dofs()
        self._state: State | None = None
        self._factors_of = -1
        self._solves = 0
        self.counts = {"forward": 0, "tangent": 0, "adjoint": 0}

    # -- public --------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the last forward solve."""
        if self._state is None:
            raise RuntimeError("no forward solve has been made yet")
        return self._state

    def forward(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Solve for u at the given owned coefficient values.

        Args:
            values: One array of owned dof values for each coefficient, (n_owned_k,).

        Returns:
            Owned values of u, (n_owned,), a copy.

        Raises:
            SolveError: no convergence, or a singular matrix; u and the coefficients are as before.
        """
        before = [f.x.array.copy() for f in (self.u, *self.coefficients)]
        try:
            for m, value in zip(self.coefficients, values, strict=True):
                set_owned(m, value)
            if self.affine:
                self._solve_affine()
            else:
                self._solve_newton()
        except SolveError:
            for f, array in zip((self.u, *self.coefficients), before, strict=True):
                f.x.array[:] = array
            self._factors_of = -1
            raise
        self._solves += 1
        self.counts["forward"] += 1
        self._factors_of = self._solves if self.affine else -1
        self._state = State(
            self._solves,
            self.u.x.array.copy(),
            tuple(f.x.array.copy() for f in self._functions),
            tuple(np.array(c.value, copy=True) for c in self._constants),
        )
        return owned(self.u).copy()

    def tangent(self, state: State, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu for changes δm_k (None: zero) of the coefficients at `state`; owned values, (n_owned,)."""
        with self._at(state):
            rhs = self._b
            rhs.x.array[:] = 0.0
            for form, dm, direction in zip(self._tangent_forms, self._tangent_in, directions, strict=True):
                if direction is not None:
                    set_owned(dm, direction)
                    fem.assemble_vector(rhs.x.array, form)
            rhs.x.scatter_reverse(la.InsertMode.add)
            rhs.x.array[:] *= -1.0
            rhs.x.array[self._fixed] = 0.0
            self._du.x.array[:] = 0.0
            self.linear.solve(rhs.x.petsc_vec, self._du.x.petsc_vec)
        self.counts["tangent"] += 1
        return owned(self._du).copy()

    def adjoint(
        self, state: State, gradient: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]:
        """Gradients by the coefficients at `state` of a functional whose gradient by the owned u is given.

        Args:
            gradient: Owned values of ū, (n_owned,).
            wanted: Which coefficients; None where not wanted.

        Returns:
            For each coefficient the owned values of m̄_k.
        """
        wanted = [True] * len(self.coefficients) if wanted is None else wanted
        out: list[np.ndarray | None] = [None] * len(self.coefficients)
        with self._at(state):
            rhs = self._b
            owned(rhs)[:] = gradient
            rhs.x.array[self._fixed] = 0.0
            self._lambda.x.array[:] = 0.0
            self.linear.solve_transpose(rhs.x.petsc_vec, self._lambda.x.petsc_vec)
            self._lambda.x.scatter_forward()
            for k, (form, target) in enumerate(zip(self._adjoint_forms, self._adjoint_out, strict=True)):
                if wanted[k]:
                    target.x.array[:] = 0.0
                    fem.assemble_vector(target.x.array, form)
                    target.x.scatter_reverse(la.InsertMode.add)
                    out[k] = -owned(target)
        self.counts["adjoint"] += 1
        return out

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together.  The solver cannot be used afterwards."""
        if self.newton is not None:
            self.newton.close()
        self.linear.close()

    # -- solves --------------------------------------------------------------------------------------------

    def _assemble_matrix(self) -> None:
        A = self.linear.A
        A.zeroEntries()
        fem_petsc.assemble_matrix(A, self._J, bcs=self.bcs)
        A.assemble()

    def _solve_affine(self) -> None:
        self._assemble_matrix()
        self.linear.factorise()
        b = self._b.x.petsc_vec
        self._b.x.array[:] = 0.0 if self._load is None else self._load.assembled()
        fem_petsc.apply_lifting(b, [self._J], bcs=[self.bcs])
        self._b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(b, self.bcs)
        if not self._warm_start:
            self.u.x.array[:] = self._start
        self.linear.solve(b, self.u.x.petsc_vec)
        self.u.x.scatter_forward()

    def _solve_newton(self) -> None:
        assert self.newton is not None
        if not self._warm_start:
            self.u.x.array[:] = self._start
        self.newton.solve()
        self.u.x.scatter_forward()

    @contextmanager
    def _at(self, state: State) -> Iterator[None]:
        """Put the solver at `state`, factors included, and put the users' Functions back afterwards."""
        functions = [self.u, *self._functions]
        before = [f.x.array.copy() for f in functions]
        constants = [np.array(c.value, copy=True) for c in self._constants]
        self._put(functions, (state.u, *state.functions), state.constants)
        try:
            if self._factors_of != state.stamp:
                self._factors_of = -1
                self._assemble_matrix()
                self.linear.factorise()
                self._factors_of = state.stamp
            yield
        finally:
            self._put(functions, before, constants)

    def _put(self, functions: Sequence[fem.Function], arrays: Any, constants: Any) -> None:
        for f, array in zip(functions, arrays, strict=True):
            f.x.array[:] = array
        for c, value in zip(self._constants, constants, strict=True):
            c.value = value

    # -- set-up --------------------------------------------------------------------------------------------

    @cached_property
    def _tangent_in(self) -> list[fem.Function]:
        return [fem.Function(m.function_space) for m in self.coefficients]

    @cached_property
    def _tangent_forms(self) -> list[fem.Form]:
        # Compiled at the first tangent, which is collective: most users need adjoints only.
        return [
            self._compile(ufl.derivative(self.F, m, dm))
            for m, dm in zip(self.coefficients, self._tangent_in, strict=True)
        ]

    def _compile(self, form: ufl.Form) -> fem.Form:
        options = None if self._compiler is None else dict(self._compiler)  # DOLFINx changes the dictionary
        return fem.form(form, form_compiler_options=options, jit_options=dict(self._jit))

    def _fixed_dofs(self) -> np.ndarray:
        """Local unrolled dofs with a Dirichlet condition, ghosts included."""
        fixed = [bc.dof_indices()[0] for bc in self.bcs]
        return np.unique(np.concatenate(fixed)) if fixed else np.empty(0, dtype=np.int32)

    def _check(self) -> None:
        if np.issubdtype(PETSc.ScalarType, np.complexfloating):
            raise TypeError("hyco_fem needs PETSc with real scalars; this build has complex ones")
        if not isinstance(self.F, ufl.Form):
            raise TypeError(f"F must be a UFL form, not {type(self.F).__name__}")
        if len(self.F.arguments()) != 1:
            raise ValueError(
                f"F must be a residual with exactly one test function, not {len(self.F.arguments())} arguments; "
                "write it with the Function u, not with a TrialFunction"
            )
        if self.F.arguments()[0].ufl_function_space() != self.V:
            raise ValueError("the test function of F must come from the space of u")
        present = extract_coefficients(self.F)
        if self.u not in present:
            raise ValueError(f"the unknown '{self.u.name}' does not appear in F")
        for m in self.coefficients:
            if m is self.u:
                raise ValueError(f"'{m.name}' is the unknown and cannot be a coefficient too")
            if m not in present:
                raise ValueError(
                    f"the coefficient '{m.name}' does not appear in the form; the form has "
                    f"{sorted(f.name for f in present if f is not self.u)}"
                )
            if any(_same_values(bc, m) for bc in self.bcs):
                raise ValueError(
                    f"the coefficient '{m.name}' is a Dirichlet value; a parameter in Dirichlet data is not "
                    "supported: impose it weakly (Nitsche or Robin)"
                )


class _Load:
    """The load vector of an affine problem, assembled again only when a Function or Constant in it has changed."""

    def __init__(self, form: fem.Form, expression: ufl.Form) -> None:
        self._form = form
        self._inputs = [*extract_coefficients(expression), *extract_constants(expression)]
        self._seen: list[np.ndarray] | None = None
        self._vector = np.empty(0)

    def assembled(self) -> np.ndarray:
        """Local values, contributions to ghosts not yet sent.  Not collective: each rank looks at its own part."""
        now = [f.x.array if isinstance(f, fem.Function) else np.asarray(f.value) for f in self._inputs]
        if self._seen is None or not all(map(np.array_equal, now, self._seen)):
            self._vector = fem.assemble_vector(self._form).array.copy()
            self._seen = [a.copy() for a in now]
        return self._vector


def _same_values(bc: fem.DirichletBC, m: fem.Function) -> bool:
    """Whether a Dirichlet condition takes its values from the Function m."""
    vector = getattr(bc.g, "x", None)
    return vector is not None and np.shares_memory(np.asarray(vector.array), m.x.array)


def owned(f: fem.Function) -> np.ndarray:
    """View of the owned values of a Function, (n_owned,), blocks unrolled."""
    dofmap = f.function_space.dofmap
    return f.x.array[: dofmap.index_map.size_local * dofmap.index_map_bs]


def set_owned(f: fem.Function, values: np.ndarray) -> None:
    """Set the owned values and update the ghosts.  Collective."""
    owned(f)[:] = values
    f.x.scatter_forward()
