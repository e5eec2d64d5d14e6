"""The largest eigenvalue of a symmetric operator that is known by its products only (SLEPc)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from hyco_fem.pde.linear import SolveError

_MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Eigenpair:
    """λ, its vector (owned entries, of norm one), ‖A x − λ x‖, and the number of products made."""

    value: float
    vector: np.ndarray
    residual: float
    products: int


class _Operator:
    """What PETSc calls: y = A x on owned entries."""

    def __init__(self, apply: Callable[[np.ndarray], np.ndarray]) -> None:
        self.apply, self.products = apply, 0

    def mult(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self.products += 1
        y.array[:] = self.apply(x.array_r)


def largest_eigenvalue(
    comm: MPI.Comm, apply: Callable[[np.ndarray], np.ndarray], start: np.ndarray, tolerance: float
) -> Eigenpair:
    """Largest eigenvalue of a symmetric operator, by the Krylov–Schur method.  Collective.

    Args:
        apply: x ↦ A x on the owned entries; collective.
        start: Owned entries of the first vector: with a part along all that may be wanted, the same for any partition.
        tolerance: ‖A x − λ x‖ ≤ tolerance · λ.

    Raises:
        SolveError: no convergence.
    """
    from slepc4py import SLEPc  # only here: the rest of the package does without SLEPc

    operator = _Operator(apply)
    sizes = (len(start), None)
    A = PETSc.Mat().createPython((sizes, sizes), operator, comm=comm)
    A.setUp()
    x, y = A.createVecs()
    x.array[:] = start
    eps = SLEPc.EPS().create(comm)
    try:
        eps.setOperators(A)
        eps.setProblemType(SLEPc.EPS.ProblemType.HEP)
        eps.setType(SLEPc.EPS.Type.KRYLOVSCHUR)
        eps.setWhichEigenpairs(SLEPc.EPS.Which.LARGEST_REAL)
        eps.setDimensions(1)
        eps.setTolerances(0.5 * tolerance, _MAX_ITERATIONS)
        eps.setInitialSpace(x)
        eps.solve()
        if eps.getConverged() < 1:
            raise SolveError(
                f"the largest eigenvalue was not found to {tolerance:.1e} in {eps.getIterationNumber()} restarts; "
                "ask for a larger tolerance"
            )
        value = float(eps.getEigenpair(0, x).real)
        x.scale(1.0 / x.norm())
        A.mult(x, y)
        y.axpy(-value, x)
        residual = float(y.norm())
        vector = x.array_r.copy()
    finally:
        for made in (eps, A, x, y):
            made.destroy()
    if not residual <= tolerance * abs(value):
        raise SolveError(
            f"the largest eigenvalue {value:.6e} has a residual of {residual:.1e}: rounding errors of the solves do "
            f"not allow a tolerance of {tolerance:.1e}"
        )
    return Eigenpair(value, vector, residual, operator.products)
