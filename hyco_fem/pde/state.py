"""Where a solve was made, and the loads it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.vectors import local

# What a form depends on and a user may change.
Input: TypeAlias = fem.Function | fem.Constant


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


class Load:
    """The load vector of an affine problem, assembled again only when a Function or Constant in it has changed."""

    def __init__(self, form: fem.Form, expression: ufl.Form) -> None:
        self._form = form
        self._inputs: list[Input] = [*extract_coefficients(expression), *extract_constants(expression)]
        self._seen: list[np.ndarray] | None = None
        self._vector = np.empty(0)

    def assembled(self) -> np.ndarray:
        """Local values, contributions to ghosts not yet sent.  Not collective: each rank looks at its own part."""
        now = [input_values(f) for f in self._inputs]
        if self._seen is None or not all(map(np.array_equal, now, self._seen)):
            self._vector = fem.assemble_vector(self._form).array.copy()
            self._seen = [a.copy() for a in now]
        return self._vector


def input_values(f: Input) -> np.ndarray:
    """The array in which a Function (local values) or Constant keeps its values."""
    return local(f) if isinstance(f, fem.Function) else f.value
