"""Many right-hand sides on the factors of one matrix: blocks of tangents and adjoints, and several experiments.

Every function is collective and works on arrays of owned values, as the methods of `SteadySolver` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dolfinx import fem, la

from hyco_fem.pde.state import Input, State, input_values
from hyco_fem.pde.steady import SteadySolver
from hyco_fem.pde.vectors import local, owned, set_owned

# Up to so many tangents at once, derivatives are applied by assembling the products; for more, by matrices.
_FEW = 4

Setting = Sequence[tuple[Input, Any]]

# -- derivatives at one state ----------------------------------------------------------------------------------


def tangent_block(solver: SteadySolver, state: State, directions: Sequence[np.ndarray | None]) -> np.ndarray:
    """δu for p directions at once.

    Args:
        directions: For each coefficient p changes of it, (n_owned_k, p); None for zero, but not all.

    Returns:
        (n_owned, p).
    """
    with solver.at(state):
        return tangent_columns(solver, directions)


def tangent_columns(solver: SteadySolver, directions: Sequence[np.ndarray | None]) -> np.ndarray:
    """`tangent_block` at the values that the Functions hold now, on the factors at hand."""
    p = next(d.shape[1] for d in directions if d is not None)
    D, at_hand = solver.derivatives, solver.assembled
    rhs = np.zeros((len(owned(solver.u)), p), order="F")
    lifted = np.zeros_like(rhs)
    column_by_column: list[int] = []
    for k, (trace, changes) in enumerate(zip(solver.traces, directions, strict=True)):
        if changes is None:
            continue
        C = at_hand.get(k) or (D.matrix(k) if p > _FEW else None)
        if C is not None:
            rhs -= C.times(changes)
        elif D.in_form[k]:
            column_by_column.append(k)
        if trace is not None:
            for j in range(p):
                set_owned(D.directions[k], changes[:, j])
                trace.lift(local(D.directions[k]), lifted[:, j])
    if column_by_column:
        work = fem.Function(solver.V)
        for j in range(p):
            for k in column_by_column:
                set_owned(D.directions[k], directions[k][:, j])  # type: ignore[index]
            local(work)[:] = 0.0
            D.add_tangents(tuple(column_by_column), local(work))
            work.x.scatter_reverse(la.InsertMode.add)
            rhs[:, j] -= owned(work)
    if any(t is not None and d is not None for t, d in zip(solver.traces, directions, strict=True)):
        rhs -= D.matrix_u().times(lifted)
    rhs[solver.fixed_owned] = lifted[solver.fixed_owned]
    solver.counts["tangent"] += p
    return solver.linear.solve_block(rhs)


def adjoint_block(
    solver: SteadySolver, state: State, gradients: np.ndarray, wanted: Sequence[bool] | None = None
) -> list[np.ndarray | None]:
    """`SteadySolver.adjoint` for r functionals: gradients (n_owned, r) ↦ (n_owned_k, r) for each coefficient."""
    wanted = solver.all(wanted)
    out: list[np.ndarray | None] = [None] * len(wanted)
    D = solver.derivatives
    with solver.at(state):
        multipliers = _multipliers(solver, gradients)
        for k, m in enumerate(solver.coefficients):
            if not wanted[k]:
                continue
            found = np.zeros((len(owned(m)), gradients.shape[1]), order="F")
            C = D.matrix(k)
            if C is not None:
                found -= C.transposed_times(multipliers)
            trace = solver.traces[k]
            if trace is not None:
                rest = gradients - D.matrix_u().transposed_times(multipliers)
                part = fem.Function(m.function_space)
                for j in range(gradients.shape[1]):
                    local(part)[:] = 0.0
                    trace.add_transpose(rest[:, j], local(part))
                    part.x.scatter_reverse(la.InsertMode.add)
                    found[:, j] += owned(part)
            out[k] = found
    return out


def _multipliers(solver: SteadySolver, gradients: np.ndarray) -> np.ndarray:
    """λ for each column of gradients."""
    rhs = np.array(gradients, order="F")
    rhs[solver.fixed_owned] = 0.0
    solver.counts["adjoint"] += gradients.shape[1]
    return solver.linear.solve_block(rhs, transpose=True)


# -- several experiments ---------------------------------------------------------------------------------------


def forward_many(solver: SteadySolver, values: Sequence[np.ndarray], settings: Sequence[Setting]) -> np.ndarray:
    """Solve for several settings of loads and boundary values at the same coefficient values.

    Args:
        values: As for `SteadySolver.forward`.
        settings: For each experiment, pairs (Function or Constant, owned or constant values) to put in; what a setting
            does not name keeps its present value.  Where none of them enters the matrix of an affine problem it is
            factorised once, and all right-hand sides are solved for together.

    Returns:
        Owned solutions (n_settings, n_owned); `solver.states` has the state of each.

    The named Functions and Constants are as before afterwards; u holds the last solution.
    """
    inputs = list({id(f): f for setting in settings for f, _ in setting}.values())
    before = [input_values(f).copy() for f in inputs]
    shared = solver.affine and not any(f is g for f in inputs for g in solver.matrix_inputs)
    try:
        if shared:
            return _forward_shared(solver, values, settings, inputs, before)
        rows, states = [], []
        for setting in settings:
            _put(inputs, before, setting)
            rows.append(solver.forward(values))
            states.append(solver.state)
        solver.states = states
        return np.stack(rows)
    finally:
        _put(inputs, before, ())


def _forward_shared(
    solver: SteadySolver,
    values: Sequence[np.ndarray],
    settings: Sequence[Setting],
    inputs: Sequence[Input],
    before: Sequence[np.ndarray],
) -> np.ndarray:
    loads = np.empty((len(owned(solver.u)), len(settings)), order="F")
    states = []
    with solver.restored_on_error():
        solver.set(values)
        solver.new_matrix()
        for s, setting in enumerate(settings):
            _put(inputs, before, setting)
            loads[:, s] = owned(solver.assemble_load())
            states.append(solver.here())
        solutions = solver.linear.solve_block(loads)
    for s, state in enumerate(states):
        set_owned(solver.u, solutions[:, s])
        states[s] = State(state.matrix, local(solver.u).copy(), state.functions, state.constants)
    solver.counts["forward"] += len(settings)
    solver.states = states
    return np.ascontiguousarray(solutions.T)


def adjoint_many(
    solver: SteadySolver, states: Sequence[State], gradients: np.ndarray, wanted: Sequence[bool] | None = None
) -> list[np.ndarray | None]:
    """The sum over states of `solver.adjoint(states[s], gradients[s])`; one block of solves where they share a matrix.

    Args:
        gradients: (n_states, n_owned).
    """
    wanted = solver.all(wanted)
    total: list[np.ndarray | None] = [None] * len(wanted)
    multipliers = None
    if len({state.matrix for state in states}) == 1:
        with solver.at(states[0]):
            multipliers = _multipliers(solver, gradients.T)
    for s, state in enumerate(states):
        with solver.at(state):
            if multipliers is None:
                solver.multiplier(gradients[s])
            else:
                set_owned(solver.lagrange, multipliers[:, s])
            for k, part in enumerate(solver.gradients(gradients[s], wanted)):
                if part is not None:
                    total[k] = part if total[k] is None else total[k] + part
    return total


def _put(inputs: Sequence[Input], before: Sequence[np.ndarray], setting: Setting) -> None:
    for f, value in zip(inputs, before, strict=True):
        input_values(f)[...] = value
    for f, value in setting:
        if isinstance(f, fem.Function):
            set_owned(f, value)
        else:
            f.value[...] = value
