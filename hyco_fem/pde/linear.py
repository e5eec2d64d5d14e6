"""One matrix, its factors, and solves with it and with its transpose.  Distributed; every method is collective."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from petsc4py import PETSc

import numpy as np

Options = Mapping[str, object]

# Prefixes must be equal on all ranks, so they come from a counter and not from id().
_prefixes = itertools.count()

# Below this many dofs PETSc's own sequential LU is faster than MUMPS.
_SMALL = 2000

# ‖A x‖ / (‖A‖ ‖x‖) under which A counts as singular: rounding gives 1e-16 for a null vector, while a
# regular Poisson matrix with a million dofs and a contrast of 10⁶ stays above 1e-13.
_SINGULAR = 1e-14

_REASONS = {
    value: name
    for name, value in vars(PETSc.KSP.ConvergedReason).items()
    if isinstance(value, int) and not name.startswith("_")
}


class SolveError(RuntimeError):
    """A solve that did not converge, or a matrix that cannot be solved with."""


def default_options(size: int, ranks: int) -> dict[str, object]:
    """Options of a direct solve for a matrix of `size` rows on `ranks` ranks."""
    options: dict[str, object] = {"ksp_type": "preonly", "pc_type": "lu"}
    if ranks > 1 or size > _SMALL:
        # 50 % more workspace than MUMPS estimates: its default of 20 % can be too little in parallel.
        options |= {"pc_factor_mat_solver_type": "mumps", "mat_mumps_icntl_14": 50}
    return options


class OptionSet:
    """PETSc options under a prefix of their own, in PETSc's global table only while a `with` block runs.

    Some are read when an object is created, others when it is first set up or used (those of MUMPS, say): whoever owns
    the object does each of these in a `with` block.
    """

    def __init__(self, options: Options) -> None:
        self.prefix = f"hyco_{next(_prefixes)}_"
        self._options = dict(options)

    def __enter__(self) -> OptionSet:
        table = PETSc.Options()
        for key, value in self._options.items():
            table[self.prefix + key] = value
        return self

    def __exit__(self, *_: object) -> None:
        table = PETSc.Options()
        for key in self._options:
            table.delValue(self.prefix + key)


class LinearSolver:
    """Solves with one matrix and its transpose, refactorised only when told that the entries changed.

    Args:
        A: Assembled-in-place square matrix.  Kept, and destroyed by `close`.
        options: PETSc options of the solver, without prefix; by default a direct solve.
        transpose_options: Options for solves with the transpose; by default the same solver and factors.
        what: A name for error messages.
    """

    def __init__(
        self, A: PETSc.Mat, options: Options | None, transpose_options: Options | None = None, what: str = "u"
    ) -> None:
        self.A = A
        self.what = what
        size = A.getSize()[0]
        chosen = default_options(size, A.comm.size) if options is None else dict(options)
        self._options = OptionSet(chosen)
        self.ksp = self._create(self._options)
        self._transposed = self.ksp
        self._transpose_options = self._options
        if transpose_options is not None:
            self._transpose_options = OptionSet(transpose_options)
            self._transposed = self._create(self._transpose_options)
        self._checked = False
        self.factorisations = 0

    def _create(self, options: OptionSet) -> PETSc.KSP:
        ksp = PETSc.KSP().create(self.A.comm)
        ksp.setOperators(self.A)
        ksp.setOptionsPrefix(options.prefix)
        with options:
            ksp.setFromOptions()
        return ksp

    def factorise(self) -> None:
        """Take the entries of A as they are now.  On first use, refuse a matrix that is singular.

        Raises:
            SolveError: the factorisation failed, or A has a null vector.
        """
        self.ksp.setOperators(self.A)
        if self._transposed is not self.ksp:
            self._transposed.setOperators(self.A)
        self.factorisations += 1
        try:
            if self._checked:
                self.ksp.setUp()
            else:
                with self._options:
                    self.ksp.setUp()
        except PETSc.Error as error:
            raise SolveError(self._singular_message("its factorisation failed")) from error
        if not self._checked:
            self._refuse_singular()
            self._checked = True
            if self._transposed is not self.ksp:
                with self._transpose_options:
                    self._transposed.setUp()

    def solve(self, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """x = A⁻¹ b, with x as the initial guess where the solver uses one.

        Raises:
            SolveError: no convergence; the message has PETSc's reason.
        """
        self._run(self.ksp, self.ksp.solve, b, x)

    def solve_transpose(self, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """x = A⁻ᵀ b, on the factors of the forward solve.  Raises as `solve`."""
        self._run(self._transposed, self._transposed.solveTranspose, b, x)

    def _run(self, ksp: PETSc.KSP, solve, b: PETSc.Vec, x: PETSc.Vec) -> None:  # type: ignore[no-untyped-def]
        try:
            solve(b, x)
        except PETSc.Error as error:
            raise SolveError(f"the linear solve for '{self.what}' failed in PETSc: {error}") from error
        reason = ksp.getConvergedReason()
        if reason <= 0:
            raise SolveError(
                f"the linear solve for '{self.what}' did not converge: {_REASONS.get(reason, reason)} after "
                f"{ksp.getIterationNumber()} iterations (residual {ksp.getResidualNorm():.2e}); raise ksp_max_it, "
                "loosen ksp_rtol or choose another solver with petsc_options"
            )
        if not np.isfinite(x.norm()):
            raise SolveError(f"the linear solve for '{self.what}' gave a solution that is not finite")

    def _refuse_singular(self) -> None:
        """Look for a null vector: the constants always, and one inverse iteration where the solver is direct."""
        x, y = self.A.createVecs()
        norm_A = self.A.norm(PETSc.NormType.NORM_INFINITY)
        try:
            if not np.isfinite(norm_A):
                raise SolveError(f"the matrix for '{self.what}' has entries that are not finite")
            blocks = self.A.getBlockSize()
            for component in range(blocks):
                x.set(0.0)
                x.array[component::blocks] = 1.0
                self._check_vector(x, y, norm_A)
            if self.ksp.getType() == "preonly":
                x.set(1.0)
                for _ in range(2):
                    self.ksp.solve(x, y)
                    norm = y.norm()
                    if self.ksp.getConvergedReason() <= 0 or not np.isfinite(norm) or norm == 0.0:
                        raise SolveError(self._singular_message("its factorisation failed"))
                    y.copy(x)
                    x.scale(1.0 / norm)
                self._check_vector(x, y, norm_A)
        finally:
            x.destroy()
            y.destroy()

    def _check_vector(self, x: PETSc.Vec, y: PETSc.Vec, norm_A: float) -> None:
        self.A.mult(x, y)
        if y.norm() <= _SINGULAR * norm_A * x.norm():
            raise SolveError(self._singular_message("it has a null vector"))

    def _singular_message(self, why: str) -> str:
        return (
            f"the matrix for '{self.what}' is singular ({why}): the form and its boundary conditions do not fix "
            "the solution; add a Dirichlet condition (bcs=[…]), a Robin term, or a reaction term"
        )

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        if self._transposed is not self.ksp:
            self._transposed.destroy()
        self.ksp.destroy()
        self.A.destroy()
