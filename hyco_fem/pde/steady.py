"""A steady problem F(u, m; v) = 0: forward, tangent, adjoint and second-order solves.  NumPy and PETSc only.

Forms are compiled once; matrices are reassembled in place.  Everything is distributed: arrays hold the owned dofs of
this rank, and every method is collective.

With A = ∂F/∂u at the solution, rows and columns of Dirichlet dofs cleared:

    tangent:        A δu = −Σ_k (∂F/∂m_k) δm_k
    adjoint:        Aᵀ λ = ū (zero on Dirichlet dofs),   m̄_k = −(∂F/∂m_k)ᵀ λ
    second order:   the adjoint equations once more, differentiated along (δm, δu):
                    Aᵀ δλ = δū − δ(∂L/∂u),   δm̄_k = −(∂F/∂m_k)ᵀ δλ − δ(∂L/∂m_k)      (derivatives.py)

Coefficients may be boundary values too (dirichlet.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde import check
from hyco_fem.pde.choice import announce, check_memory, default_options, describe
from hyco_fem.pde.derivatives import Derivatives
from hyco_fem.pde.dirichlet import Trace, fixed_dofs
from hyco_fem.pde.linear import LinearSolver, Options, SolveError
from hyco_fem.pde.newton import NewtonSolver
from hyco_fem.pde.traits import near_null_space, traits_of
from hyco_fem.pde.vectors import owned, set_owned

# Other ranks wait for rank 0's compiler; the default of ten seconds is too short on a loaded node.
_JIT_TIMEOUT = {"timeout": 600}

Values = Sequence[np.ndarray]
Input = fem.Function | fem.Constant


@dataclass(frozen=True)
class State:
    """Where a forward solve was made: all that its tangents and adjoints need, as arrays.

    matrix: number of the matrix of this solve; solves with the same number share its factors.  u, functions: local
    (owned and ghost) values; constants: values of the Constants of the form.
    """

    matrix: int
    u: np.ndarray
    functions: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray, ...]


class SteadySolver:
    """Solver of F(u, m; v) = 0 for u, as a map m ↦ u with tangent, adjoint and second derivative.

    Args:
        F: Residual, a UFL form with one test function v, linear in v.  Affine in u: one linear solve (KSP);
            otherwise Newton with line search (SNES).
        u: The unknown, a Function in F.  It holds the last solution, and at construction Newton's start.
        bcs: Dirichlet conditions.  Their values may change between solves.
        coefficients: The Functions m_k by which the solution is differentiated: of F, or values of `bcs`.
        petsc_options: PETSc options without prefix; by default a solver chosen by size and symmetry.
        adjoint_petsc_options: Options for the adjoint; by default the forward solver and its factors.
        warm_start: Start an iterative or Newton solve from the last solution instead of the first start.
        form_compiler_options, jit_options: Passed on to `dolfinx.fem.form`.

    Attributes:
        affine: whether F is affine in u.  traits: of the matrix.  description: one line that names the solver.
        counts: solves made, by kind.

    Raises:
        ValueError: the form does not fit the arguments.  TypeError: an argument of the wrong kind.
        SolveError: a direct solve needs more memory than there is.
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
        check.arguments(F, u, self.bcs, self.coefficients)
        self._functions = [f for f in extract_coefficients(F) if f is not u]
        self._constants = list(extract_constants(F))
        self._start = u.x.array.copy()
        self._warm_start = warm_start

        jacobian = expand_derivatives(ufl.derivative(F, u))
        matrix_inputs = extract_coefficients(jacobian)
        self.affine = u not in matrix_inputs
        self._matrix_inputs = [*matrix_inputs, *extract_constants(jacobian)]
        self._J = self._compile(jacobian)
        A = fem_petsc.create_matrix(self._J)
        self._b, self._lambda, self._du = (fem.Function(self.V) for _ in range(3))
        # F(u) = J u + F(0) where F is affine, so the right-hand side is −F with zero put in for u.
        at_zero = expand_derivatives(ufl.replace(expand_derivatives(F), {u: ufl.zero(u.ufl_shape)}))
        self._load = _Load(self._compile(-at_zero), at_zero) if self.affine and not at_zero.empty() else None

        self.traits = traits_of(A, self._J, self.bcs, [u, *self._functions], self._constants, self.V)
        given = dict(petsc_options or {})
        linear = {k: v for k, v in given.items() if not k.startswith("snes_")}
        options = linear or default_options(self.traits)
        self.description = describe(options, self.traits, u.name, chosen=not linear)
        announce(self.comm, self.description)
        check_memory(self.comm, options, self.traits, u.name)
        near_null_space(A, self.V)
        self.linear = LinearSolver(
            A,
            options,
            adjoint_petsc_options,
            symmetric=self.traits.symmetric,
            warm_start=warm_start,
            what=u.name,
        )
        self.newton: NewtonSolver | None = None
        if not self.affine:
            newton = {k: v for k, v in given.items() if k.startswith("snes_")}
            self.newton = NewtonSolver(self._compile(F), self._J, A, u, self.bcs, self._b, {**options, **newton})

        self.derivatives = Derivatives(F, u, self.coefficients, self._compile)
        if self.coefficients:
            _ = self.derivatives.gradient_forms  # compiled now: whoever has coefficients wants adjoints
        self._traces = [
            Trace(m, self.V, self.bcs) if check.is_boundary_value(self.bcs, m) else None for m in coefficients
        ]
        self._fixed = fixed_dofs(self.bcs)
        self._state: State | None = None
        self._factors_of = -1
        self._matrices = 0
        self.counts = {"forward": 0, "tangent": 0, "adjoint": 0}

    # -- forward -------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the last forward solve."""
        if self._state is None:
            raise RuntimeError("no forward solve has been made yet")
        return self._state

    def forward(self, values: Values) -> np.ndarray:
        """Solve for u at the given owned coefficient values.

        Args:
            values: One array of owned dof values for each coefficient, (n_owned_k,).

        Returns:
            Owned values of u, (n_owned,), a copy.

        Raises:
            SolveError: no convergence, or a singular matrix; u and the coefficients are as before.
        """
        with self._restored_on_error():
            self._set(values)
            if self.newton is None:
                self._new_matrix()
                self._assemble_load()
                if not self._warm_start:
                    self.u.x.array[:] = self._start
                self.linear.solve(self._b.x.petsc_vec, self.u.x.petsc_vec)
            else:
                if not self._warm_start:
                    self.u.x.array[:] = self._start
                self._matrices += 1
                self._factors_of = -1  # Newton leaves the matrix of its last but one iterate
                self.newton.solve()
            self.u.x.scatter_forward()
        self.counts["forward"] += 1
        self._state = self._here()
        return owned(self.u).copy()

    def forward_many(
        self, values: Values, scenarios: Sequence[Sequence[tuple[Input, Any]]]
    ) -> tuple[np.ndarray, list[State]]:
        """Solve for several settings of loads and boundary values at the same coefficient values.

        Args:
            values: As for `forward`.
            scenarios: For each scenario, pairs (Function or Constant, owned or constant values) to put in; what a
                scenario does not name keeps its present value.  Where none of them enters the matrix it is factorised
                once, and all right-hand sides are solved for together.

        Returns:
            Owned solutions (n_scenarios, n_owned), and the state of each.

        Collective.  The named Functions and Constants are as before afterwards; u holds the last solution.
        """
        inputs = list({id(f): f for scenario in scenarios for f, _ in scenario}.values())
        before = [_values(f).copy() for f in inputs]
        shared = self.affine and not any(f is g for f in inputs for g in self._matrix_inputs)
        try:
            if not shared:
                rows, states = [], []
                for scenario in scenarios:
                    self._put_inputs(inputs, before, scenario)
                    rows.append(self.forward(values))
                    states.append(self.state)
                return np.stack(rows), states
            with self._restored_on_error():
                self._set(values)
                self._new_matrix()
                loads = np.empty((len(owned(self._b)), len(scenarios)), order="F")
                kept = []
                for s, scenario in enumerate(scenarios):
                    self._put_inputs(inputs, before, scenario)
                    self._assemble_load()
                    loads[:, s] = owned(self._b)
                    kept.append(self._here())
                solutions = self.linear.solve_block(loads)
                states = []
                for s, state in enumerate(kept):
                    set_owned(self.u, solutions[:, s])
                    states.append(State(state.matrix, self.u.x.array.copy(), state.functions, state.constants))
            self.counts["forward"] += len(scenarios)
            self._state = states[-1]
            return np.ascontiguousarray(solutions.T), states
        finally:
            self._put_inputs(inputs, before, ())

    # -- first derivatives ---------------------------------------------------------------------------------

    def tangent(self, state: State, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu for changes δm_k (None: zero) of the coefficients at `state`; owned values, (n_owned,)."""
        with self._at(state):
            self._put_directions(directions)
            return self._tangent(directions).copy()

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
        with self._at(state):
            self._adjoint(gradient)
            return self._gradients(gradient, self._all(wanted))

    def adjoint_many(
        self, states: Sequence[State], gradients: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]:
        """The sum over states of `adjoint(states[s], gradients[s])`; one block of solves where they share a matrix.

        Args:
            gradients: (n_states, n_owned).
        """
        wanted = self._all(wanted)
        total: list[np.ndarray | None] = [None] * len(wanted)
        shared = len({state.matrix for state in states}) == 1 < len(states)
        multipliers = None
        if shared:
            with self._at(states[0]):
                rhs = np.asfortranarray(gradients.T)
                rhs[self._fixed_owned] = 0.0
                multipliers = self.linear.solve_block(rhs, transpose=True)
                self.counts["adjoint"] += len(states)
        for s, state in enumerate(states):
            with self._at(state):
                if multipliers is None:
                    self._adjoint(gradients[s])
                else:
                    set_owned(self._lambda, multipliers[:, s])
                for k, part in enumerate(self._gradients(gradients[s], wanted)):
                    if part is not None:
                        total[k] = part if total[k] is None else total[k] + part
        return total

    # -- blocks of first derivatives -----------------------------------------------------------------------

    def tangent_block(self, state: State, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu for many directions at once, (n_owned, p): `directions[k]` holds p changes of m_k, (n_owned_k, p)."""
        p = next(d.shape[1] for d in directions if d is not None)
        with self._at(state):
            rhs = np.zeros((len(owned(self._b)), p), order="F")
            lifted = np.zeros_like(rhs)
            for k, (trace, M) in enumerate(zip(self._traces, directions, strict=True)):
                if M is None:
                    continue
                C = self.derivatives.matrix(k)
                if C is not None:
                    _subtract_products(C, M, rhs)
                if trace is not None:
                    dm = fem.Function(self.coefficients[k].function_space)
                    for j in range(p):
                        set_owned(dm, M[:, j])
                        trace.lift(dm.x.array, lifted[:, j])
            if any(trace is not None for trace in self._traces):
                _subtract_products(self.derivatives.matrix_u(), lifted, rhs)
            rhs[self._fixed_owned] = lifted[self._fixed_owned]
            found = self.linear.solve_block(rhs)
        self.counts["tangent"] += p
        return found

    def adjoint_block(
        self, state: State, gradients: np.ndarray, wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]:
        """`adjoint` for many functionals at once: gradients (n_owned, r) ↦ for each coefficient (n_owned_k, r)."""
        wanted = self._all(wanted)
        out: list[np.ndarray | None] = [None] * len(wanted)
        with self._at(state):
            rhs = np.array(gradients, order="F")
            rhs[self._fixed_owned] = 0.0
            multipliers = self.linear.solve_block(rhs, transpose=True)
            self.counts["adjoint"] += gradients.shape[1]
            for k, m in enumerate(self.coefficients):
                if not wanted[k]:
                    continue
                found = np.zeros((len(owned(m)), gradients.shape[1]), order="F")
                C = self.derivatives.matrix(k)
                if C is not None:
                    _subtract_products(C, multipliers, found, transpose=True)
                trace = self._traces[k]
                if trace is not None:
                    rest = np.array(gradients, order="F")
                    _subtract_products(self.derivatives.matrix_u(), multipliers, rest, transpose=True)
                    part = fem.Function(m.function_space)
                    for j in range(gradients.shape[1]):
                        part.x.array[:] = 0.0
                        trace.add_transpose(rest[:, j], part.x.array)
                        part.x.scatter_reverse(la.InsertMode.add)
                        found[:, j] += owned(part)
                out[k] = found
        return out

    # -- second derivatives --------------------------------------------------------------------------------

    def second(
        self,
        state: State,
        gradient: np.ndarray,
        directions: Sequence[np.ndarray | None],
        gradient_direction: np.ndarray | None = None,
        wanted: Sequence[bool] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """The derivative of `adjoint(state, ū)` along changes δm of the coefficients and δū of the gradient.

        Args:
            gradient: ū, (n_owned,).  directions: δm_k, None for zero.  gradient_direction: δū, None for zero.
            wanted: Of which coefficients.

        Returns:
            δu, (n_owned,), and δm̄_k for each coefficient.  One tangent and two adjoint solves.
        """
        wanted = self._all(wanted)
        D = self.derivatives
        with self._at(state):
            self._adjoint(gradient)
            set_owned(D.multiplier, owned(self._lambda))
            self._put_directions(directions)
            du = self._tangent(directions).copy()
            set_owned(D.direction_u, du)
            rest = -owned(D.second_u())
            if gradient_direction is not None:
                rest += gradient_direction
            parts = [owned(D.second(k)).copy() if wanted[k] else None for k in range(len(wanted))]
            self._adjoint(rest)
            found = self._gradients(rest, wanted)
            out = [None if g is None or part is None else g - part for g, part in zip(found, parts, strict=True)]
        return du, out

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together.  The solver cannot be used afterwards."""
        if self.newton is not None:
            self.newton.close()
        self.derivatives.close()
        self.linear.close()

    # -- parts of a solve ----------------------------------------------------------------------------------

    def _set(self, values: Values) -> None:
        for m, value in zip(self.coefficients, values, strict=True):
            set_owned(m, value)

    def _new_matrix(self) -> None:
        """Assemble and factorise at what the Functions hold now."""
        self._factors_of = -1
        A = self.linear.A
        A.zeroEntries()
        fem_petsc.assemble_matrix(A, self._J, bcs=self.bcs)
        A.assemble()
        self.linear.factorise()
        self._matrices += 1
        self._factors_of = self._matrices

    def _assemble_load(self) -> None:
        b = self._b.x.petsc_vec
        self._b.x.array[:] = 0.0 if self._load is None else self._load.assembled()
        fem_petsc.apply_lifting(b, [self._J], bcs=[self.bcs])
        self._b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(b, self.bcs)

    def _put_directions(self, directions: Sequence[np.ndarray | None]) -> None:
        for dm, direction in zip(self.derivatives.directions, directions, strict=True):
            set_owned(dm, 0.0 if direction is None else direction)

    def _tangent(self, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu at the directions put in; a view of a work Function."""
        D, rhs = self.derivatives, self._b
        rhs.x.array[:] = 0.0
        boundary = np.zeros(len(owned(self.u)))
        moved = False
        for k, direction in enumerate(directions):
            if direction is not None:
                D.add_tangent(k, rhs.x.array)
                trace = self._traces[k]
                if trace is not None:
                    trace.lift(D.directions[k].x.array, boundary)
        if any(trace is not None and d is not None for trace, d in zip(self._traces, directions, strict=True)):
            moved = True
            set_owned(D.direction_u, boundary)
            D.add_lifting(rhs.x.array)
        rhs.x.scatter_reverse(la.InsertMode.add)
        owned(rhs)[:] *= -1.0
        owned(rhs)[self._fixed_owned] = boundary[self._fixed_owned] if moved else 0.0
        if not self._warm_start:
            self._du.x.array[:] = 0.0
        self.linear.solve(rhs.x.petsc_vec, self._du.x.petsc_vec)
        self.counts["tangent"] += 1
        return owned(self._du)

    def _adjoint(self, gradient: np.ndarray) -> None:
        """λ for a gradient ū, ghosts included."""
        rhs = self._b
        owned(rhs)[:] = gradient
        owned(rhs)[self._fixed_owned] = 0.0
        if not self._warm_start:
            self._lambda.x.array[:] = 0.0
        self.linear.solve_transpose(rhs.x.petsc_vec, self._lambda.x.petsc_vec)
        self._lambda.x.scatter_forward()
        self.counts["adjoint"] += 1

    def _gradients(self, gradient: np.ndarray, wanted: Sequence[bool]) -> list[np.ndarray | None]:
        """m̄_k at the λ at hand."""
        D = self.derivatives
        D.multiplier.x.array[:] = self._lambda.x.array
        out: list[np.ndarray | None] = [None] * len(wanted)
        rest: np.ndarray | None = None
        for k, trace in enumerate(self._traces):
            if not wanted[k]:
                continue
            found = -owned(D.gradient(k))
            if trace is not None:
                if rest is None:
                    rest = gradient - owned(D.gradient_u())
                part = fem.Function(self.coefficients[k].function_space)
                trace.add_transpose(rest, part.x.array)
                part.x.scatter_reverse(la.InsertMode.add)
                found += owned(part)
            out[k] = found
        return out

    def _all(self, wanted: Sequence[bool] | None) -> Sequence[bool]:
        return [True] * len(self.coefficients) if wanted is None else wanted

    # -- states --------------------------------------------------------------------------------------------

    def _here(self) -> State:
        return State(
            self._matrices,
            self.u.x.array.copy(),
            tuple(f.x.array.copy() for f in self._functions),
            tuple(np.array(c.value, copy=True) for c in self._constants),
        )

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        touched = [self.u, *self.coefficients]
        before = [f.x.array.copy() for f in touched]
        try:
            yield
        except SolveError:
            for f, array in zip(touched, before, strict=True):
                f.x.array[:] = array
            self._factors_of = -1
            raise

    @contextmanager
    def _at(self, state: State) -> Iterator[None]:
        """Put the solver at `state`, factors included, and put the users' Functions back afterwards."""
        functions = [self.u, *self._functions]
        before = [f.x.array.copy() for f in functions]
        constants = [np.array(c.value, copy=True) for c in self._constants]
        self._put(functions, (state.u, *state.functions), state.constants)
        try:
            if self._factors_of != state.matrix:
                stamp = self._matrices
                self._new_matrix()
                self._matrices, self._factors_of = stamp, state.matrix
            yield
        finally:
            self._put(functions, before, constants)

    def _put(self, functions: Sequence[fem.Function], arrays: Any, constants: Any) -> None:
        for f, array in zip(functions, arrays, strict=True):
            f.x.array[:] = array
        for c, value in zip(self._constants, constants, strict=True):
            c.value = value

    def _put_inputs(self, inputs: Sequence[Input], before: Values, scenario: Sequence[tuple[Input, Any]]) -> None:
        for f, value in zip(inputs, before, strict=True):
            _values(f)[...] = value
        for f, value in scenario:
            if isinstance(f, fem.Function):
                set_owned(f, value)
            else:
                f.value[...] = value

    # -- set-up --------------------------------------------------------------------------------------------

    @cached_property
    def _fixed_owned(self) -> np.ndarray:
        """Owned unrolled dofs with a Dirichlet condition."""
        return self._fixed[self._fixed < len(owned(self.u))]

    def _compile(self, form: ufl.Form) -> fem.Form:
        options = None if self._compiler is None else dict(self._compiler)  # DOLFINx changes the dictionary
        return fem.form(form, form_compiler_options=options, jit_options=dict(self._jit))


class _Load:
    """The load vector of an affine problem, assembled again only when a Function or Constant in it has changed."""

    def __init__(self, form: fem.Form, expression: ufl.Form) -> None:
        self._form = form
        self._inputs: list[Input] = [*extract_coefficients(expression), *extract_constants(expression)]
        self._seen: list[np.ndarray] | None = None
        self._vector = np.empty(0)

    def assembled(self) -> np.ndarray:
        """Local values, contributions to ghosts not yet sent.  Not collective: each rank looks at its own part."""
        now = [_values(f) for f in self._inputs]
        if self._seen is None or not all(map(np.array_equal, now, self._seen)):
            self._vector = fem.assemble_vector(self._form).array.copy()
            self._seen = [a.copy() for a in now]
        return self._vector


def _values(f: Input) -> np.ndarray:
    """The array in which a Function (local values) or Constant keeps its values."""
    return f.x.array if isinstance(f, fem.Function) else f.value


def _subtract_products(C: Any, X: np.ndarray, out: np.ndarray, *, transpose: bool = False) -> None:
    """out −= C X (or Cᵀ X), column by column, owned rows."""
    right, left = C.createVecs()
    source, target = (left, right) if transpose else (right, left)
    for j in range(X.shape[1]):
        source.array[:] = X[:, j]
        (C.multTranspose if transpose else C.mult)(source, target)
        out[:, j] -= target.array_r
    source.destroy()
    target.destroy()
