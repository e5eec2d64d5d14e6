"""Gradients by coefficients of several steps at once.

Σ_n (∂Gₙ/∂m)ᵀ λₙ needs every step's fields, but one assembly for a few steps costs little more than one for a single
step: most of its time goes into visiting the cells.  Where steps follow each other they share fields, too: the unknown
of one is the earlier value of the next.

Distributed; values are local ones, and contributions to ghosts are not sent here.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI

import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.stage import StageSolver
from hyco_fem.pde.vectors import local

# Steps of one assembly: what a step gains from more is small, and the compiler has more to do.
_STEPS = 8


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
        self._fields = _Columns(V, steps + len(chain) - 1 + steps)  # fields, then multipliers
        # Terms without the coefficient go before the compiler sees them.
        found = [D._gradients[k] for k in range(stage.n_coefficients)]
        gradients = [None if g is None else expand_derivatives(g) for g in found]
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
            changes = {multiplier: self._fields.symbols[-1 - j]}
            changes |= {f: self._fields.symbols[j + i] for i, f in enumerate(self._chain)}
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
        self._fields.put(-1 - j, local(self._stage.lagrange))
        for i, f in enumerate(self._chain):
            if j == 0 or i == len(self._chain) - 1:  # the others are in place already
                self._fields.put(j + i, local(f))
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
            self._fields.put(-1 - j, np.zeros(1))
            self._fields.put(j + len(self._chain) - 1, local(self._chain[-1]))
        for form, row in zip(self._forms, self._rows, strict=True):
            if form is not None and row is not None:
                fem.assemble_vector(row, form)
        self._n, self._rows = 0, []


class _Columns:
    """Several fields of one space, and the UFL symbols that stand for them.

    They are the components of one Function where the space allows it: then they are read together, once for each cell.
    """

    def __init__(self, V: fem.FunctionSpace, size: int) -> None:
        self._bs = V.dofmap.bs
        self._together = _together(V, size)
        if self._together is None:
            self._apart = [fem.Function(V) for _ in range(size)]
            self.symbols = list(self._apart)
            return
        U = self._together
        self._table = local(U).reshape(-1, size * self._bs)
        if V.ufl_element().reference_value_shape == ():
            self.symbols = [U[j] for j in range(size)]
        else:
            parts = range(self._bs)
            self.symbols = [ufl.as_vector([U[j * self._bs + i] for i in parts]) for j in range(size)]

    def put(self, j: int, values: np.ndarray) -> None:
        """Local values of field j; one value for all of them."""
        if self._together is None:
            local(self._apart[j])[:] = values
            return
        start = (j % (self._table.shape[1] // self._bs)) * self._bs
        self._table[:, start : start + self._bs] = values.reshape(-1, self._bs) if len(values) > 1 else values


def _together(V: fem.FunctionSpace, size: int) -> fem.Function | None:
    """A Function with `size` fields of V as its components; None where V is no Lagrange space of scalars or vectors."""
    element = V.ufl_element()
    shape = element.reference_value_shape
    scalar = element
    if len(shape) == 1 and V.dofmap.bs == shape[0] > 1:
        scalar = element.sub_elements[0]
    elif shape != ():
        return None
    W = fem.functionspace(V.mesh, basix.ufl.blocked_element(scalar, shape=(size * V.dofmap.bs,)))
    same = np.array_equal(W.dofmap.list, V.dofmap.list) and W.dofmap.bs == size * V.dofmap.bs
    return fem.Function(W) if V.mesh.comm.allreduce(same, op=MPI.LAND) else None
