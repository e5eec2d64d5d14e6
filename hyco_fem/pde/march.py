"""Through time: the steps of a problem solved one after the other, with watches looking on and checkpoints kept.

A field is observed by `Watch`es that see it once at each step, so that no more of it than they keep is ever stored;
what the adjoint needs is kept by a schedule of checkpoints.  NumPy and PETSc only.  Everything is distributed; every
method is collective.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from ufl.algorithms.analysis import extract_coefficients

from hyco_fem.pde.check import is_boundary_value
from hyco_fem.pde.checkpoints import Arrays, Checkpoints, InMemory, StepSize, Storage
from hyco_fem.pde.linear import SolveError
from hyco_fem.pde.scheme import Stage, Step, StepProblem
from hyco_fem.pde.stage import StageSolver
from hyco_fem.pde.timegrid import TimeGrid
from hyco_fem.pde.vectors import local, owned, to_local

# Sets a Function to its values at a time; collective.
SetAt: TypeAlias = Callable[[fem.Function, float], None]

Dependencies: TypeAlias = tuple[Arrays, Arrays]


class Watch(Protocol):
    """Who looks at the field, step by step."""

    def see(self, n: int, u: np.ndarray) -> None:
        """Take what is wanted of the local values (n_local,) or (n_local, p) at the end of step n; n = 0: the start."""


class Source(Protocol):
    """Who tells the gradient of a functional by the field, step by step."""

    def add_gradient(self, n: int, out: np.ndarray) -> None:
        """Add the gradient by the local values at the end of step n; contributions to ghosts are sent by the caller."""


class BlowUp(SolveError):
    """A solve in time that failed; `step`, `time`: where; `last`: local values of u before it."""

    def __init__(self, message: str, step: int = 0, time: float = 0.0, last: np.ndarray | None = None) -> None:
        super().__init__(message)
        self.step, self.time, self.last = step, time, last

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.step, self.time)


@dataclass(eq=False)
class TransientState:
    """Where a forward solve was made: what its tangents and adjoints need, as arrays.

    values: local values of the coefficients, one row for each part of the interval.  others: values of the other
    Functions and Constants.  token: equal where those of them are that the matrices depend on.  final: u at the end.
    start: earlier values at t_0.
    """

    token: int
    values: tuple[np.ndarray, ...]
    others: tuple[np.ndarray, ...]
    start: Arrays
    final: np.ndarray = field(default_factory=lambda: np.empty(0))
    storage: Any = None
    schedule: Any = None


class TimeMarch:
    """A problem in time, solved step by step from coefficients and initial value.

    Args, attributes: see `hyco_fem.pde.transient.TransientSolver`.
    """

    def __init__(
        self,
        problem: StepProblem,
        grid: TimeGrid,
        coefficients: Sequence[fem.Function] = (),
        parts: Sequence[np.ndarray | None] = (),
        *,
        initial: fem.Function | None = None,
        given: Mapping[fem.Function, SetAt] | None = None,
        checkpoints: Checkpoints | None = None,
        **options: Any,
    ) -> None:
        self.problem, self.grid = problem, grid
        self.u, self.V = problem.u, problem.u.function_space
        self.comm = self.V.mesh.comm
        self.coefficients = list(coefficients)
        self.parts = list(parts) or [None] * len(self.coefficients)
        self.initial = initial
        self._given = dict(given or {})
        self._lags = [lag for lag, _ in problem.initial]
        unknowns = [stage.u for stage in problem.stages]
        fields = [*self._lags, *unknowns, *(f for f, _ in problem.extrapolated)]
        changing = [f for f, _, _ in problem.levels] + [t for t, _ in problem.times]
        self._set_constants(0)  # the solver of a stage is chosen by what its Constants hold
        for f, g, level in problem.levels:
            self._given[g](f, self._step.at(level))
        self.stages = [
            StageSolver(
                stage,
                [m for m in self.coefficients if _is_in(m, stage)],
                [f for f in fields if f is not stage.u],
                [f for f, _, _ in problem.levels],
                **options,
            )
            for stage in problem.stages
        ]
        # Which of all coefficients are those of each stage, and which fields.
        self._own = [
            [k for k, m in enumerate(self.coefficients) if any(m is f for f in s.coefficients[: s.n_coefficients])]
            for s in self.stages
        ]
        self._fields = fields
        self._slots = [[self._slot(f) for f in s.fields] for s in self.stages]
        known = [*self.coefficients, *fields, *changing, *problem.weights]
        inputs: list = []
        for s in self.stages:
            inputs += [f for f in (*s._functions, *s._constants) if not any(f is g for g in (*known, *inputs))]
        # Dirichlet values too: steps that are solved again must find those of the solve.
        values = [_BoundaryValue.of(bc) for stage in problem.stages for bc in stage.bcs]
        inputs += [b for b in values if b is not None and not any(b.is_that_of(f) for f in (*known, *inputs))]
        self._others = inputs
        # Which of them the matrices depend on: others, loads among them, may change without a factorisation.
        of_matrices = [f for s in self.stages for f in (*s.key_functions, *s.key_constants)]
        self._in_matrix = [any(f is g for g in of_matrices) for f in (*self.coefficients, *self._others)]
        self._held: list[float | None] = [None] * len(problem.levels)
        self._token = self._tokens = 0
        self._last: TransientState | None = None
        bytes_here = [8 * sum(len(local(f)) for f in functions) for functions in (self._lags, unknowns)]
        restart, dependencies = (self.comm.allreduce(b, op=MPI.MAX) for b in bytes_here)
        self.size = StepSize(restart, dependencies, grid.n)
        self.checkpoints = (checkpoints or InMemory()).resolve(self.size)
        self.counts = {"forward": 0, "tangent": 0, "adjoint": 0}
        # The earlier value that u is shifted to.  With one stage the next step starts from all that the adjoint needs.
        self._lag_of_u = self._slot(next(older for older, newer in problem.shifts if newer is self.u))
        self._unknown_is_kept = len(unknowns) == 1

    # -- forward -------------------------------------------------------------------------------------------

    @property
    def state(self) -> TransientState:
        """The state of the last forward solve."""
        if self._last is None:
            raise RuntimeError("no forward solve has been made yet")
        return self._last

    def forward(self, values: Sequence[np.ndarray], watches: Sequence[Watch] = ()) -> None:
        """Solve, with the watches looking on.

        Args:
            values: For each coefficient its owned dof values, (n_owned_k,) or (parts, n_owned_k); then, if `initial` is
                among the arguments of the solver, those of u₀.

        Raises:
            BlowUp: a step could not be solved; it names the step and its time.  u and the coefficients are as before.
        """
        before = [local(f).copy() for f in (self.u, *self.coefficients, *self._initial_functions)]
        state: TransientState | None = None
        try:
            state = self._new_state(values)
            self._put(state)
            for watch in watches:
                watch.see(0, self._start_of_u(state))
            self._sweep_forward(state, watches)
        except BaseException:  # a full disk or Ctrl-C, too
            for f, array in zip((self.u, *self.coefficients, *self._initial_functions), before, strict=True):
                local(f)[:] = array
            if state is not None and state.storage is not None:
                state.storage.close()  # before a script that was interrupted aborts
            raise
        state.final = local(self.u).copy()
        self._last = state

    @property
    def _initial_functions(self) -> list[fem.Function]:
        return [] if self.initial is None else [self.initial]

    def _start_of_u(self, state: TransientState) -> np.ndarray:
        """u at t_0: the earlier value that u is shifted to first."""
        return state.start[self._lag_of_u]

    def _new_state(self, values: Sequence[np.ndarray]) -> TransientState:
        n = len(self.coefficients)
        rows = []
        for m, value, part in zip(self.coefficients, values[:n], self.parts, strict=True):
            table = np.asarray(value).reshape(1 if part is None else int(part.max()) + 1, -1)
            held = local(m).copy()
            rows.append(to_local(m, np.asfortranarray(table.T)).T.copy())
            local(m)[:] = held
        if self.initial is not None:
            owned(self.initial)[:] = values[n]
            self.initial.x.scatter_forward()
        start = {id(f): local(f).copy() for _, f in self.problem.initial}
        lags = tuple(start[id(f)] for _, f in self.problem.initial)
        others = tuple(np.array(_value(f), copy=True) for f in self._others)
        last, self._last = self._last, None  # its steps are not kept beside those of this solve
        same = last is not None and all(
            np.array_equal(a, b)
            for a, b, matters in zip((*rows, *others), (*last.values, *last.others), self._in_matrix, strict=True)
            if matters
        )
        same = self.comm.allreduce(same, op=MPI.LAND)
        if not same:
            self._tokens += 1
        return TransientState(self._tokens, tuple(rows), others, lags)

    def _put(self, state: TransientState) -> None:
        """Let the Functions and Constants that stay the same through time hold what they held at a state."""
        for f, value in zip(self._others, state.others, strict=True):
            _value(f)[...] = value
        self._token = state.token
        self._held = [None] * len(self.problem.levels)
        self._now = state
        self._shown = [-1] * len(self.coefficients)

    def _sweep_forward(self, state: TransientState, watches: Sequence[Watch]) -> None:
        """Go through a new schedule to the end of its first forward sweep."""
        from checkpoint_schedules import EndForward, Forward

        state.storage = Storage(self.comm, self.checkpoints.folder)
        state.schedule = schedule = self.checkpoints.schedule(self.grid.n)
        sweep = Sweep(state.storage, state.start)
        for action in schedule:
            if isinstance(action, EndForward):
                return
            assert isinstance(action, Forward)
            self._forward_action(action, sweep, watches)
            if schedule.max_n is None and action.n1 >= self.grid.n:
                schedule.finalize(self.grid.n)

    def _forward_action(self, action: Any, sweep: Sweep, watches: Sequence[Watch]) -> None:
        from checkpoint_schedules import StorageType

        end, disk = min(action.n1, self.grid.n), action.storage == StorageType.DISK
        if action.write_ics:
            sweep.storage.put(action.n0, "restart", (sweep.lags,), disk=disk)
        keep = (
            (lambda n, deps: sweep.storage.put(n, "dependencies", deps, disk=disk)) if action.write_adj_deps else None
        )
        if keep is not None and action.n0 + 1 == end and self._unknown_is_kept and sweep.after == end:
            unknown = sweep.lags_after[self._lag_of_u]
            keep(action.n0, (sweep.lags, (unknown,)))
            sweep.lags = sweep.lags_after
            return
        sweep.lags = self._advance(sweep.lags, action.n0, end, watches, keep)

    def _advance(
        self,
        lags: Arrays,
        n0: int,
        n1: int,
        watches: Sequence[Watch],
        keep: Callable[[int, Dependencies], None] | None,
    ) -> Arrays:
        """Solve the steps n0 to n1 − 1; the earlier values that step n1 starts from."""
        for n in range(n0, n1):
            step = self._begin(n)
            for f, array in zip(self._lags, lags, strict=True):
                local(f)[:] = array
            if n == 0:
                local(self.u)[:] = self._start_of_u(self._now)  # where an iteration starts from
            self._extrapolate()
            try:
                for stage in self.stages:
                    stage.solve(self._key(stage, step))
            except SolveError as error:
                raise BlowUp(
                    f"step {n + 1} of {self.grid.n}, from t = {step.at(1):g} to {step.at(0):g}, could not be solved: "
                    f"{error}; at t = {step.at(1):g} the field was still finite: take smaller steps, an implicit "
                    "scheme, or other coefficients",
                    n + 1,
                    step.at(1),
                    lags[self._lag_of_u].copy(),
                ) from error
            unknowns = tuple(local(stage.u).copy() for stage in self.problem.stages)
            if keep is not None:
                keep(n, (lags, unknowns))
            self.counts["forward"] += 1
            for watch in watches:
                watch.see(n + 1, local(self.u))
            lags = self._shifted(lags, unknowns)
        return lags

    def _shifted(self, lags: Arrays, unknowns: Arrays) -> Arrays:
        now = [*lags, *unknowns]
        for older, newer in self.problem.shifts:
            now[self._slot(older)] = now[self._slot(newer)]
        return tuple(now[: len(lags)])

    # -- one step ------------------------------------------------------------------------------------------

    _step: Step
    _now: TransientState

    def _begin(self, n: int) -> Step:
        """Set the Constants, given Functions and coefficients of a step."""
        step = self._set_constants(n)
        for i, (f, g, level) in enumerate(self.problem.levels):
            if self._held[i] != step.at(level):
                self._given[g](f, step.at(level))
                self._held[i] = step.at(level)
        for k, m in enumerate(self.coefficients):
            row = self._row(k, n)
            if self._shown[k] != row:
                local(m)[:] = self._now.values[k][row]
                self._shown[k] = row
        return step

    def _set_constants(self, n: int) -> Step:
        step = self._step = Step.of(self.grid, n)
        self.problem.begin(step)
        for t, level in self.problem.times:
            t.value = step.at(level)
        return step

    def _show(self, n: int, deps: Dependencies) -> None:
        """Let all Functions hold what they held in step n."""
        self._begin(n)
        lags, unknowns = deps
        for f, array in zip(self._fields, (*lags, *unknowns), strict=False):
            local(f)[:] = array
        self._extrapolate()

    def _extrapolate(self) -> None:
        for f, parts in self.problem.extrapolated:
            local(f)[:] = sum(float(weight.value) * local(lag) for weight, lag in parts)

    def _row(self, k: int, n: int) -> int:
        part = self.parts[k]
        return 0 if part is None else int(part[n])

    def _key(self, stage: StageSolver, step: Step) -> Hashable:
        """Equal where the matrices of a stage are; None where they never are."""
        if stage.varying:
            return None
        rows = tuple(
            self._row(k, step.n) for k, m in enumerate(self.coefficients) if any(m is f for f in stage.key_functions)
        )
        return self._token, rows, tuple(np.asarray(c.value).tobytes() for c in stage.key_constants)

    def _slot(self, f: fem.Function) -> int:
        return next(i for i, g in enumerate(self._fields) if g is f)

    @contextmanager
    def _at(self, state: TransientState) -> Iterator[None]:
        """Put the solver at a state, and the users' Functions back afterwards."""
        functions = [self.u, *self.coefficients, *self._initial_functions]
        before = [local(f).copy() for f in functions]
        others = [np.array(_value(f), copy=True) for f in self._others]
        try:
            self._put(state)
            yield
        finally:
            for f, array in zip(functions, before, strict=True):
                local(f)[:] = array
            for f, value in zip(self._others, others, strict=True):
                _value(f)[...] = value

    @property
    def description(self) -> str:
        """One line: scheme, steps, solvers, and how the steps are kept."""
        solvers = "; ".join(stage.description for stage in self.stages)
        name = self.problem.name
        return f"{name}, {self.grid.n} steps; {solvers}; {self.checkpoints.describe(self.size)}"

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together.  The solver cannot be used afterwards."""
        for stage in self.stages:
            stage.close()


@dataclass
class Sweep:
    """Where a sweep is: the earlier values of the next step; in a backward one, those of the step reversed last."""

    storage: Storage
    lags: Arrays
    after: int = -1
    lags_after: Arrays = ()


@dataclass(frozen=True, eq=False)
class _BoundaryValue:
    """View of what a Dirichlet condition takes its values from: a Function, or a Constant."""

    value: np.ndarray

    @classmethod
    def of(cls, bc: fem.DirichletBC) -> _BoundaryValue | None:
        """None where the values are numbers of the condition's own."""
        g = bc.g
        value = g.x.array if hasattr(g, "x") else getattr(g, "value", None)
        return None if value is None else cls(value)

    def is_that_of(self, f: Any) -> bool:
        """Whether a Function, a Constant, or another condition's value is the same."""
        return np.shares_memory(self.value, _value(f))


def _value(f: Any) -> np.ndarray:
    return local(f) if isinstance(f, fem.Function) else f.value


def _is_in(m: fem.Function, stage: Stage) -> bool:
    """Whether a coefficient appears in a stage, in its form or as a boundary value."""
    return m in extract_coefficients(stage.G) or is_boundary_value(stage.bcs, m)
