"""Assembled derivative matrices, applied to many columns of owned values at once."""

from __future__ import annotations

from typing import Protocol

from petsc4py import PETSc

import numpy as np
from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc

from hyco_fem.pde.vectors import local, to_local, to_owned


class Products(Protocol):
    """A matrix C that is assembled again and again.  Every method is collective."""

    def assemble(self) -> None:
        """Take the values that the Functions of the form hold now."""

    def times(self, X: np.ndarray) -> np.ndarray:
        """C X, from owned rows (n_columns_owned, k) to owned rows (n_rows_owned, k)."""

    def transposed_times(self, X: np.ndarray) -> np.ndarray:
        """Cᵀ X."""

    def local_times(self, x: np.ndarray) -> np.ndarray:
        """C x from the local values of a Function to local ones, where what belongs to others has not yet been sent."""

    def local_transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Cᵀ x, likewise."""

    def close(self) -> None:
        """Destroy what PETSc holds."""


def products(form: fem.Form, rows: fem.FunctionSpace, columns: fem.FunctionSpace) -> Products:
    """The matrix of a bilinear form with test functions in `rows` and trial functions in `columns`.  Collective."""
    if rows.dofmap.bs == columns.dofmap.bs:
        return _Local(form, rows, columns)
    return _Distributed(form)  # DOLFINx's own matrix knows no rectangular blocks


class _Local:
    """Each rank keeps what its own cells contribute, which takes half the time of a distributed assembly.

    It is applied to local values, and parts of the result that belong to others are sent to them.
    """

    def __init__(self, form: fem.Form, rows: fem.FunctionSpace, columns: fem.FunctionSpace) -> None:
        self._form = form
        self._rows, self._columns = fem.Function(rows), fem.Function(columns)
        self._matrix = fem.create_matrix(form, block_mode=la.BlockMode.expanded)
        self._scipy = self._matrix.to_scipy(ghosted=True)  # on the same memory
        self._n = len(local(self._columns))
        if self._scipy.shape[1] > self._n:
            # Entries in columns of further ghosts, always zero: let them be in a column that there is.
            C = self._scipy
            self._scipy = type(C)((C.data, np.minimum(C.indices, self._n - 1), C.indptr), shape=(C.shape[0], self._n))
            assert np.shares_memory(self._scipy.data, self._matrix.data)
        self._transposed = self._scipy.T  # likewise

    def assemble(self) -> None:
        self._matrix.data[:] = 0.0
        fem.assemble_matrix(self._matrix, self._form)

    def times(self, X: np.ndarray) -> np.ndarray:
        return to_owned(self._rows, np.asfortranarray(self._scipy @ to_local(self._columns, X)))

    def transposed_times(self, X: np.ndarray) -> np.ndarray:
        return to_owned(self._columns, np.asfortranarray(self._transposed @ to_local(self._rows, X)))

    def local_times(self, x: np.ndarray) -> np.ndarray:
        return self._scipy @ x

    def local_transposed_times(self, x: np.ndarray) -> np.ndarray:
        return self._transposed @ x

    def close(self) -> None:
        pass


class _Distributed:
    """A PETSc matrix, applied column by column."""

    def __init__(self, form: fem.Form) -> None:
        self._form = form
        self._matrix: PETSc.Mat = fem_petsc.create_matrix(form)

    def assemble(self) -> None:
        self._matrix.zeroEntries()
        fem_petsc.assemble_matrix(self._matrix, self._form)
        self._matrix.assemble()

    def times(self, X: np.ndarray) -> np.ndarray:
        right, left = self._matrix.createVecs()
        return self._columnwise(self._matrix.mult, X, right, left)

    def transposed_times(self, X: np.ndarray) -> np.ndarray:
        right, left = self._matrix.createVecs()
        return self._columnwise(self._matrix.multTranspose, X, left, right)

    def _columnwise(self, product, X: np.ndarray, source: PETSc.Vec, target: PETSc.Vec) -> np.ndarray:  # type: ignore[no-untyped-def]
        out = np.empty((target.getLocalSize(), X.shape[1]), order="F")
        for j in range(X.shape[1]):
            source.array[:] = X[:, j]
            product(source, target)
            out[:, j] = target.array_r
        source.destroy()
        target.destroy()
        return out

    def local_times(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a matrix of PETSc is applied to owned values")

    local_transposed_times = local_times

    def close(self) -> None:
        self._matrix.destroy()
