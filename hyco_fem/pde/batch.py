"""Gradients by coefficients of several steps at once.

Σ_n (∂Gₙ/∂m)ᵀ λₙ needs every step's fields, but one assembly for a few steps costs little more than one for a single
step: most of its time goes into visiting the cells.  Where steps follow each other they share fields, too: the unknown
of one is the earlier value of the next.

Distributed; values are local ones, and contributions to ghosts are not sent here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.stage import StageSolver
from hyco_fem.pde.vectors import local

# Steps of one assembly: beyond four the gain is small, and the compiler has more to do.
_STEPS = 4


class StepBatch:
    """Collects steps of a problem with one stage, from the last to the first, and adds up their gradients.

    Args:
        stage: The stage.
        chain: Its unknown and the earlier values, newest first: in the step before, each holds what the next one holds
            now.
        changing: Other Functions of the form that change from step to step.  constants: Constants that do.
        steps: How many steps to collect.
    """

    def __init__(
        self,
        stage: StageSolver,
        chain: Sequence[fem.Function],
        changing: Sequence[fem.Function],
        constants: Sequence[fem.Constant],
        steps: int = _STEPS,
    ) -> None:
        self._stage, self._chain, self._steps = stage, list(chain), steps
        V = stage.V
        D = stage.derivatives
        self._fields = [fem.Function(V) for _ in range(steps + len(chain) - 1)]
        self._multipliers = [fem.Function(V) for _ in range(steps)]
        gradients = [D._gradients[k] for k in range(stage.n_coefficients)]
        present = [f for g in gradients if g is not None for f in (*extract_coefficients(g), *extract_constants(g))]
        self._changing = [f for f in changing if f in present]
        self._constants = [c for c in constants if c in present]
        self._copies = [[fem.Function(f.function_space) for f in self._changing] for _ in range(steps)]
        self._weights = [[fem.Constant(V.mesh, np.array(c.value)) for c in self._constants] for _ in range(steps)]
        self._forms = [None if g is None else stage.compile(self._sum(g)) for g in gradients]
        self._n = 0
        self._rows: list[np.ndarray | None] = []

    def _sum(self, gradient: ufl.Form) -> ufl.Form:
        """The gradients of all steps of a batch."""
        multiplier = self._stage.derivatives.multiplier
        total = ufl.Form([])
        for j in range(self._steps):
            changes = {multiplier: self._multipliers[j]}
            changes |= {f: self._fields[j + i] for i, f in enumerate(self._chain)}
            changes |= dict(zip(self._changing, self._copies[j], strict=True))
            changes |= dict(zip(self._constants, self._weights[j], strict=True))
            total += ufl.replace(gradient, changes)
        return total

    def add(self, rows: Sequence[np.ndarray | None]) -> None:
        """Take the step that the Functions hold, its λ included.

        Args:
            rows: For each coefficient local values to add (∂G/∂m)ᵀ λ to, sooner or later; None where not wanted.
        """
        if self._n and any(a is not b for a, b in zip(rows, self._rows, strict=True)):
            self.flush()
        j = self._n
        self._rows = list(rows)
        local(self._multipliers[j])[:] = local(self._stage.lagrange)
        for i, f in enumerate(self._chain):
            local(self._fields[j + i])[:] = local(f)
        for copy, f in zip(self._copies[j], self._changing, strict=True):
            local(copy)[:] = local(f)
        for weight, c in zip(self._weights[j], self._constants, strict=True):
            weight.value = c.value
        self._n += 1
        if self._n == self._steps:
            self.flush()

    def flush(self) -> None:
        """Assemble what has been collected."""
        if self._n == 0:
            return
        for j in range(self._n, self._steps):  # steps that are missing have no say
            local(self._multipliers[j])[:] = 0.0
            for i in range(len(self._chain)):
                if j + i >= self._n + len(self._chain) - 1:
                    local(self._fields[j + i])[:] = local(self._chain[i])
        for form, row in zip(self._forms, self._rows, strict=True):
            if form is not None and row is not None:
                fem.assemble_vector(row, form)
        self._n, self._rows = 0, []
