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
from functools import cached_property, partial

from petsc4py import PETSc

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
from hyco_fem.pde.products import Products
from hyco_fem.pde.quadrature import fixed_quadrature
from hyco_fem.pde.state import Load, State
from hyco_fem.pde.traits import near_null_space, traits_of
from hyco_fem.pde.vectors import local, owned, set_owned

# Other ranks wait for rank 0's compiler; the default of ten seconds is too short on a loaded node.
_JIT_TIMEOUT = {"timeout": 600}

Values = Sequence[np.ndarray]


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
        by_matrix: Coefficients that a subclass treats by their matrix ∂F/∂m_k, which depends neither on u nor on them:
            the load is without them, and their gradient is not compiled.
        form_compiler_options, jit_options: Passed on to `dolfinx.fem.form`.

    Attributes:
        affine: whether F is affine in u.  traits: of the matrix.  description: one line that names the solver.
        counts: solves made, by kind.  states: of the last solves for several experiments (many.py).
        compile: from UFL to a compiled form, with the options of this solver; collective.

    Raises:
        ValueError: the form does not fit the arguments.  TypeError: an argument of the wrong kind.
        SolveError: a direct solve needs more memory than there is.
    """

    _compiles_gradients = True

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
        by_matrix: Sequence[fem.Function] = (),
        form_compiler_options: dict | None = None,
        jit_options: dict | None = None,
    ) -> None:
        self.bcs = list(bcs)
        self.coefficients = list(coefficients)
        self.comm = u.function_space.mesh.comm
        # Not a method: whoever keeps it must not keep the solver, since a cycle would wait for the collector.
        self.compile = compiled = partial(_compiled, form_compiler_options, {**_JIT_TIMEOUT, **(jit_options or {})})
        check.arguments(F, u, self.bcs, self.coefficients)
        F = fixed_quadrature(F)
        self.F, self.u, self.V = F, u, u.function_space
        self._functions = [f for f in extract_coefficients(F) if f is not u]
        self._constants = list(extract_constants(F))
        self._start = local(u).copy()
        self._fixed = fixed_dofs(self.bcs)
        self.warm_start = warm_start

        jacobian = expand_derivatives(ufl.derivative(F, u))
        matrix_inputs = extract_coefficients(jacobian)
        self.affine = u not in matrix_inputs
        self.matrix_inputs = [*matrix_inputs, *extract_constants(jacobian)]
        self._J = compiled(jacobian)
        A = fem_petsc.create_matrix(self._J)
        self._b, self.lagrange, self._du = (fem.Function(self.V) for _ in range(3))
        # F(u) = J u + F(0) where F is affine, so the right-hand side is −F with zero put in for u.
        without = {f: ufl.zero(f.ufl_shape) for f in (u, *by_matrix)}
        at_zero = expand_derivatives(ufl.replace(expand_derivatives(F), without))
        self._load = Load(compiled(-at_zero), at_zero) if self.affine and not at_zero.empty() else None

        self.traits = traits_of(A, self._J, self.bcs, u, self._functions, self._constants, self.V)
        given = dict(petsc_options or {})
        linear = {k: v for k, v in given.items() if not k.startswith("snes_")}
        chosen = {} if {"ksp_type", "pc_type"} & linear.keys() else default_options(self.traits)
        options = {**chosen, **linear}
        self.description = describe(options, self.traits, u.name, chosen=bool(chosen))
        announce(self.comm, self.description)
        check_memory(self.comm, options, self.traits, u.name)
        near_null_space(A, self.V)
        self._options = options, adjoint_petsc_options
        self.linear = self.linear_solver(A)
        self.newton: NewtonSolver | None = None
        if not self.affine:
            newton = {k: v for k, v in given.items() if k.startswith("snes_")}
            self.newton = NewtonSolver(compiled(F), self._J, A, u, self.bcs, self._b, {**options, **newton})

        self.derivatives = Derivatives(F, u, self.coefficients, compiled)
        for k, m in enumerate(self.coefficients):
            if m not in by_matrix and self._compiles_gradients:
                self.derivatives.gradient_form(k)  # compiled now: whoever has coefficients wants adjoints
        self.traces = [
            Trace(m, self.V, self.bcs) if check.is_boundary_value(self.bcs, m) else None for m in coefficients
        ]
        self._state: State | None = None
        self.states: list[State] = []
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
        with self.restored_on_error():
            self.set(values)
            if self.newton is None:
                self.new_matrix()
                self._restart()
                self.linear.solve(self.assemble_load().x.petsc_vec, self.u.x.petsc_vec)
            else:
                self._restart()
                self._matrices += 1
                self._factors_of = -1  # Newton leaves the matrix of its last but one iterate
                try:
                    self.newton.solve()
                except SolveError:
                    self._restart()
                    self.new_matrix()  # if the matrix is singular, that is the error to tell
                    raise
            self.u.x.scatter_forward()
        self.counts["forward"] += 1
        self._state = self.here()
        return owned(self.u).copy()

    # -- first derivatives ---------------------------------------------------------------------------------

    def tangent(self, state: State, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu for changes δm_k (None: zero) of the coefficients at `state`; owned values, (n_owned,)."""
        with self.at(state):
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
        with self.at(state):
            self.multiplier(gradient)
            return self.gradients(gradient, self.all(wanted))

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
        wanted = self.all(wanted)
        D = self.derivatives
        with self.at(state):
            self.multiplier(gradient)
            set_owned(D.multiplier, owned(self.lagrange))
            self._put_directions(directions)
            du = self._tangent(directions).copy()
            set_owned(D.direction_u, du)
            rest = -owned(D.second_u())
            if gradient_direction is not None:
                rest += gradient_direction
            parts = [owned(D.second(k)).copy() if wanted[k] else None for k in range(len(wanted))]
            self.multiplier(rest)
            found = self.gradients(rest, wanted)
            out = [None if g is None or part is None else g - part for g, part in zip(found, parts, strict=True)]
        return du, out

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together.  The solver cannot be used afterwards."""
        if self.newton is not None:
            self.newton.close()
        self.derivatives.close()
        self.linear.close()

    # -- parts of a solve, for many.py -----------------------------------------------------------------------

    def _restart(self) -> None:
        if not self.warm_start:
            local(self.u)[:] = self._start

    def set(self, values: Values) -> None:
        """Put owned values into the coefficients."""
        for m, value in zip(self.coefficients, values, strict=True):
            set_owned(m, value)

    def new_matrix(self) -> None:
        """Assemble and factorise at what the Functions hold now."""
        self._factors_of = -1
        A = self.linear.A
        A.zeroEntries()
        fem_petsc.assemble_matrix(A, self._J, bcs=self.bcs)
        A.assemble()
        self.linear.factorise()
        self._matrices += 1
        self._factors_of = self._matrices

    def assemble_load(self) -> fem.Function:
        """The right-hand side of an affine problem, boundary values included; a work Function."""
        b = self._b.x.petsc_vec
        local(self._b)[:] = 0.0 if self._load is None else self._load.assembled()
        fem_petsc.apply_lifting(b, [self._J], bcs=[self.bcs])
        self._b.x.scatter_reverse(la.InsertMode.add)
        fem_petsc.set_bc(b, self.bcs)
        return self._b

    def _put_directions(self, directions: Sequence[np.ndarray | None]) -> None:
        for dm, direction in zip(self.derivatives.directions, directions, strict=True):
            set_owned(dm, 0.0 if direction is None else direction)

    def _tangent(self, directions: Sequence[np.ndarray | None]) -> np.ndarray:
        """δu at the directions put in; a view of a work Function."""
        D, rhs = self.derivatives, self._b
        local(rhs)[:] = 0.0
        boundary = np.zeros(len(owned(self.u)))
        moved = False
        for k, direction in enumerate(directions):
            if direction is not None:
                D.add_tangent(k, local(rhs))
                trace = self.traces[k]
                if trace is not None:
                    trace.lift(local(D.directions[k]), boundary)
        if any(trace is not None and d is not None for trace, d in zip(self.traces, directions, strict=True)):
            moved = True
            set_owned(D.direction_u, boundary)
            D.add_lifting(local(rhs))
        rhs.x.scatter_reverse(la.InsertMode.add)
        owned(rhs)[:] *= -1.0
        owned(rhs)[self.fixed_owned] = boundary[self.fixed_owned] if moved else 0.0
        if not self.warm_start:
            local(self._du)[:] = 0.0
        self.linear.solve(rhs.x.petsc_vec, self._du.x.petsc_vec)
        self.counts["tangent"] += 1
        return owned(self._du)

    def multiplier(self, gradient: np.ndarray) -> None:
        """λ for a gradient ū, ghosts included."""
        rhs = self._b
        owned(rhs)[:] = gradient
        owned(rhs)[self.fixed_owned] = 0.0
        if not self.warm_start:
            local(self.lagrange)[:] = 0.0
        self.linear.solve_transpose(rhs.x.petsc_vec, self.lagrange.x.petsc_vec)
        self.lagrange.x.scatter_forward()
        self.counts["adjoint"] += 1

    def gradients(self, gradient: np.ndarray, wanted: Sequence[bool]) -> list[np.ndarray | None]:
        """m̄_k at the λ at hand."""
        D = self.derivatives
        local(D.multiplier)[:] = local(self.lagrange)
        out: list[np.ndarray | None] = [None] * len(wanted)
        rest: np.ndarray | None = None
        for k, trace in enumerate(self.traces):
            if not wanted[k]:
                continue
            found = -owned(D.gradient(k))
            if trace is not None:
                if rest is None:
                    rest = gradient - owned(D.gradient_u())
                part = fem.Function(self.coefficients[k].function_space)
                trace.add_transpose(rest, local(part))
                part.x.scatter_reverse(la.InsertMode.add)
                found += owned(part)
            out[k] = found
        return out

    @property
    def assembled(self) -> dict[int, Products]:
        """Matrices ∂F/∂m_k that are at hand, by number of the coefficient: here none."""
        return {}

    def all(self, wanted: Sequence[bool] | None) -> Sequence[bool]:
        """Which coefficients are wanted: all of them by default."""
        return [True] * len(self.coefficients) if wanted is None else wanted

    # -- states --------------------------------------------------------------------------------------------

    def here(self) -> State:
        """What the Functions and Constants hold now."""
        return State(
            self._matrices,
            local(self.u).copy(),
            tuple(local(f).copy() for f in self._functions),
            tuple(np.array(c.value, copy=True) for c in self._constants),
        )

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """u and the coefficients are as before where a solve fails."""
        touched = [self.u, *self.coefficients]
        before = [local(f).copy() for f in touched]
        try:
            yield
        except SolveError:
            for f, array in zip(touched, before, strict=True):
                local(f)[:] = array
            self._factors_of = -1
            raise

    @contextmanager
    def at(self, state: State) -> Iterator[None]:
        """Put the solver at `state`, factors included, and put the users' Functions back afterwards."""
        functions = [self.u, *self._functions]
        if self._factors_of == state.matrix and self._holds(functions, state):
            yield
            return
        with self.kept():
            self.put(state)
            if self._factors_of != state.matrix:
                stamp = self._matrices
                self.new_matrix()
                self._matrices, self._factors_of = stamp, state.matrix
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the users' Functions and Constants back at the end.  Factors are left as they are."""
        before = self.here()
        try:
            yield
        finally:
            self.put(before)

    def _holds(self, functions: Sequence[fem.Function], state: State) -> bool:
        """Whether Functions and Constants are those of the state, as they are in a backward right after its forward."""
        here = (*(local(f) for f in functions), *(c.value for c in self._constants))
        there = (state.u, *state.functions, *state.constants)
        return all(map(np.array_equal, here, there))

    def put(self, state: State) -> None:
        """Let Functions and Constants hold what they held at `state`; without its factors."""
        for f, array in zip((self.u, *self._functions), (state.u, *state.functions), strict=True):
            local(f)[:] = array
        for c, value in zip(self._constants, state.constants, strict=True):
            c.value = value

    # -- set-up --------------------------------------------------------------------------------------------

    def linear_solver(self, A: PETSc.Mat) -> LinearSolver:
        """A solver for a matrix of this problem, which is kept there.  Collective."""
        options, transposed = self._options
        return LinearSolver(
            A,
            options,
            transposed,
            symmetric=self.traits.symmetric,
            warm_start=self.warm_start,
            fixed=self.fixed_owned,
            what=self.u.name,
        )

    @cached_property
    def fixed_owned(self) -> np.ndarray:
        """Owned unrolled dofs with a Dirichlet condition."""
        return self._fixed[self._fixed < len(owned(self.u))]


def _compiled(options: dict | None, jit: dict, form: ufl.Form) -> fem.Form:
    # Copies, because DOLFINx changes the dictionaries.
    return fem.form(form, form_compiler_options=None if options is None else dict(options), jit_options=dict(jit))
