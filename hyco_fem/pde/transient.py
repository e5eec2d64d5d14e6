"""A problem in time, solved step by step: forward, tangent and adjoint in time.  NumPy and PETSc only.

With the step n as the map that its stages G(u; u₁, u₂, m, …) = 0 define, K_f = ∂G/∂f for an earlier value f, A = ∂G/∂u:

    tangent, forwards:    A δu = −Σ_f K_f δf − Σ_k (∂G/∂m_k) δm_k
    adjoint, backwards:   Aᵀ λ = ū,   f̄ −= K_fᵀ λ,   m̄_k −= (∂G/∂m_k)ᵀ λ

with ū from the observations at the end of the step, and from the steps after it.

Everything is distributed; every method is collective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from dolfinx import fem, la

from hyco_fem.pde.batch import StepBatch
from hyco_fem.pde.checkpoints import OnDisk
from hyco_fem.pde.many import tangent_columns
from hyco_fem.pde.march import Dependencies, Source, Sweep, TimeMarch, TransientState, Watch
from hyco_fem.pde.stage import StageSolver
from hyco_fem.pde.vectors import local, owned, to_local


class TransientSolver(TimeMarch):
    """Solver of a problem in time as a map from coefficients, and the initial value, to the field at all times.

    Args:
        problem: One step.  grid: the steps.
        coefficients: The Functions m_k by which the solution is differentiated.
        parts: For each coefficient the number of its row for each step, (N,); None where it is constant in time.
        initial: The Function u₀ if the solution is differentiated by it: it is then the last of the values.
        given: For Functions that are functions of time, what sets them.
        checkpoints: How much of the forward sweep is kept.
        petsc_options, adjoint_petsc_options, form_compiler_options, jit_options: see `SteadySolver`.

    Attributes:
        counts: steps solved, by kind: forward (those solved again included), tangent, adjoint.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        problem = self.problem
        self._bars = [fem.Function(f.function_space) for f in self._fields]
        self._batch: StepBatch | None = None
        if self._unknown_is_kept and self._own[0]:
            constants = [*problem.weights, *(t for t, _ in problem.times)]
            self._batch = StepBatch(
                self.stages[0], self._chain(), [f for f, *_ in (*problem.levels, *problem.extrapolated)], constants
            )

    def _chain(self) -> list[fem.Function]:
        """The unknown and its earlier values, newest first."""
        chain = [self.u]
        while (older := next((a for a, b in self.problem.shifts if b is chain[-1]), None)) is not None:
            chain.append(older)
        return chain

    def tangent(
        self,
        state: TransientState,
        directions: Sequence[np.ndarray | None],
        watches: Sequence[Watch],
        primal: Sequence[Watch] = (),
    ) -> None:
        """δu for p changes of the coefficients (and of u₀), the watches looking on.

        Args:
            directions: As the values of `forward`, each with one axis more at the end, (n_owned_k, p) or
                (parts, n_owned_k, p); None for zero, but not all.  A watch sees (n_local, p).
            primal: These look at u itself.
        """
        p = next(d.shape[-1] for d in directions if d is not None)
        n = len(self.coefficients)
        changes = [
            None if d is None else d.reshape(1 if part is None else int(part.max()) + 1, -1, p)
            for d, part in zip(directions[:n], self.parts, strict=True)
        ]
        start = directions[n] if self.initial is not None else None
        zero = [np.zeros((len(owned(f)), p), order="F") for f in self._fields]
        moved = list(zero)
        for lag, f in self.problem.initial:
            if start is not None and f is self.initial:
                moved[self._slot(lag)] = np.asfortranarray(start)
        with self._at(state):
            of_u = self._bars[self._slot(self.u)]
            for watch in watches:
                watch.see(0, to_local(of_u, moved[self._lag_of_u]))
            for watch in primal:
                watch.see(0, self._start_of_u(state))
            for number, _ in self._trajectory(state):
                for f, summands in self.problem.extrapolated:
                    moved[self._slot(f)] = np.sum(
                        [float(c.value) * moved[self._slot(lag)] for c, lag in summands], axis=0
                    )
                for s, stage in enumerate(self.stages):
                    along = [None if changes[k] is None else changes[k][self._row(k, number)] for k in self._own[s]]  # type: ignore[index]
                    along += [moved[i] if moved[i] is not zero[i] else None for i in self._slots[s]]
                    slot = self._slot(stage.u)
                    if any(d is not None for d in along):
                        stage.ready(self._key(stage, self._step))
                        moved[slot] = tangent_columns(stage, along)
                    else:
                        moved[slot] = zero[slot]
                for watch in primal:
                    watch.see(number + 1, local(self.u))
                for watch in watches:
                    watch.see(number + 1, to_local(of_u, moved[self._slot(self.u)]))
                for older, newer in self.problem.shifts:
                    moved[self._slot(older)] = moved[self._slot(newer)]
                self.counts["tangent"] += 1

    def look(self, state: TransientState, watches: Sequence[Watch]) -> None:
        """Let watches look at u once more."""
        with self._at(state):
            for watch in watches:
                watch.see(0, self._start_of_u(state))
            for number, _ in self._trajectory(state):
                for watch in watches:
                    watch.see(number + 1, local(self.u))

    def _trajectory(self, state: TransientState) -> Iterator[tuple[int, Dependencies]]:
        """All steps, with the Functions holding what they held there: from storage, or solved anew."""
        lags = state.start
        for n in range(self.grid.n):
            if state.storage.has(n, "dependencies"):
                deps = state.storage.get(n, "dependencies")
                self._show(n, deps)
            else:
                self._advance(lags, n, n + 1, (), None)
                deps = lags, tuple(local(stage.u).copy() for stage in self.problem.stages)
            yield n, deps
            lags = self._shifted(*deps)

    def adjoint(
        self, state: TransientState, sources: Sequence[Source], wanted: Sequence[bool] | None = None
    ) -> list[np.ndarray | None]:
        """Gradients of a functional whose gradients by the field at each step the sources tell.

        Args:
            wanted: Of which coefficients, and of u₀.

        Returns:
            For each coefficient the owned values of m̄_k, (n_owned_k,) or (parts, n_owned_k), and ū₀.
        """
        n = len(self.coefficients)
        wanted = [True] * (n + len(self._initial_functions)) if wanted is None else list(wanted)
        sums = [np.zeros_like(rows) if w else None for rows, w in zip(state.values, wanted[:n], strict=True)]
        with self._at(state):
            for bar in self._bars:
                local(bar)[:] = 0.0
            self._views: dict[tuple[int, int], np.ndarray] = {}
            self._sweep_back(state, sources, sums)
            if self._batch is not None:
                self._batch.flush()
            out: list[np.ndarray | None] = []
            for m, rows, part in zip(self.coefficients, sums, self.parts, strict=True):
                if rows is None:
                    out.append(None)
                    continue
                total = np.stack([_sent(m, -row) for row in rows])
                out.append(total[0] if part is None else total)
            if self.initial is not None:
                bar = fem.Function(self.V)
                for source in sources:
                    source.add_gradient(0, local(bar))
                bar.x.scatter_reverse(la.InsertMode.add)
                found = owned(bar).copy()
                for lag, f in self.problem.initial:
                    if f is self.initial:
                        found += owned(self._bars[self._slot(lag)])
                out.append(found if wanted[n] else None)
        return out

    def _sweep_back(self, state: TransientState, sources: Sequence[Source], sums: list[np.ndarray | None]) -> None:
        from checkpoint_schedules import Copy, EndReverse, Forward, Move, Reverse, StorageType

        if state.schedule is None or state.schedule.is_exhausted:
            # Once more from the start: this schedule allows one backward sweep, and there has been one.
            self._sweep_forward(state, ())
        # Where this sweep ends by an error, another one must start anew.
        schedule, state.schedule = state.schedule, None
        storage = state.storage
        sweep = Sweep(storage, ())
        for action in schedule:
            if isinstance(action, EndReverse):
                break
            if isinstance(action, Forward):
                self._forward_action(action, sweep, ())
            elif isinstance(action, (Copy, Move)):
                if action.to_storage == StorageType.WORK and storage.has(action.n, "restart"):
                    (sweep.lags,) = storage.get(action.n, "restart")
                if isinstance(action, Move) and storage.has(action.n, "restart"):
                    storage.drop(action.n, "restart")
            elif isinstance(action, Reverse):
                for n in action:
                    deps = storage.get(n, "dependencies")
                    self._show(n, deps)
                    self._reverse(n, sources, sums)
                    sweep.after, sweep.lags_after = n, deps[0]
                    if len(action) == 1 and action.clear_adj_deps and not isinstance(self.checkpoints, OnDisk):
                        storage.drop(n, "dependencies")  # else they serve another backward sweep
        state.schedule = schedule
        if schedule.is_exhausted:
            storage.clear()

    def _reverse(self, n: int, sources: Sequence[Source], sums: list[np.ndarray | None]) -> None:
        """The adjoint of step n, at the values that the Functions hold."""
        for older, newer in reversed(self.problem.shifts):
            a, b = self._bars[self._slot(newer)], self._bars[self._slot(older)]
            owned(a)[:] += owned(b)
            owned(b)[:] = 0.0
        bar = self._bars[self._slot(self.u)]
        for source in sources:
            source.add_gradient(n + 1, local(bar))
        self._send(bar)
        for s in reversed(range(len(self.stages))):
            stage = self.stages[s]
            bar = self._bars[self._slot(stage.u)]
            gradient = owned(bar).copy()
            stage.ready(self._key(stage, self._step))
            stage.multiplier(gradient)
            local(bar)[:] = 0.0
            rows = [self._sum_of(sums, k, n) for k in self._own[s]]
            if self._batch is None:
                stage.add_to_coefficients(rows)
            else:
                self._batch.add(rows)
            self._add_traces(stage, gradient, rows)
            into = [self._bars[i] for i in self._slots[s]]
            stage.add_to_fields(into)
            for f in into:
                self._send(f)
        for f, summands in self.problem.extrapolated:
            bar = self._bars[self._slot(f)]
            for weight, lag in summands:
                owned(self._bars[self._slot(lag)])[:] += float(weight.value) * owned(bar)
            local(bar)[:] = 0.0
        self.counts["adjoint"] += 1

    def _sum_of(self, sums: Sequence[np.ndarray | None], k: int, n: int) -> np.ndarray | None:
        """Where the gradient by coefficient k in step n is added up: the same object for steps with the same row."""
        table = sums[k]
        if table is None:
            return None
        key = k, self._row(k, n)
        if key not in self._views:
            self._views[key] = table[key[1]]
        return self._views[key]

    def _add_traces(self, stage: StageSolver, gradient: np.ndarray, rows: Sequence[np.ndarray | None]) -> None:
        """The part of coefficients that are boundary values: (ū − (∂G/∂u)ᵀ λ) on them, with the sign of the sums."""
        rest: np.ndarray | None = None
        for trace, row in zip(stage.traces, rows, strict=False):
            if trace is None or row is None:
                continue
            if rest is None:
                local(stage.derivatives.multiplier)[:] = local(stage.lagrange)
                rest = gradient - owned(stage.derivatives.gradient_u())
            trace.add_transpose(-rest, row)

    def _send(self, f: fem.Function) -> None:
        """Send what ghosts hold to their owners."""
        if self.comm.size > 1:
            f.x.scatter_reverse(la.InsertMode.add)
            local(f)[len(owned(f)) :] = 0.0


def _sent(m: fem.Function, values: np.ndarray) -> np.ndarray:
    """Owned values, from local ones of which what ghosts hold is still to be sent."""
    part = fem.Function(m.function_space)
    local(part)[:] = values
    part.x.scatter_reverse(la.InsertMode.add)
    return owned(part).copy()
