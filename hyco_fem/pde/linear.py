"""One matrix, its factors, and solves with it and with its transpose.  Distributed; every method is collective."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from petsc4py import PETSc

import numpy as np

Options = Mapping[str, object]

# Prefixes must be equal on all ranks, so they come from a counter and not from id().
_prefixes = itertools.count()

# ‖A x‖ / (‖A‖ ‖x‖) under which A counts as singular: rounding gives 1e-16 for a null vector, while a
# regular Poisson matrix with a million dofs and a contrast of 10⁶ stays above 1e-13.
_SINGULAR = 1e-14

_CURE = (
    "add a Dirichlet condition (bcs=[…]), a Robin term, or a reaction term (for the pressure of a flow enclosed by "
    "walls: fix it at one point)"
)

# Right-hand sides that are solved for at once: enough for the BLAS, few enough for the memory.
_BLOCK = 32

LINEAR_REASONS = {
    value: name
    for name, value in vars(PETSc.KSP.ConvergedReason).items()
    if isinstance(value, int) and not name.startswith("_")
}


class SolveError(RuntimeError):
    """A solve that did not converge, or a matrix that cannot be solved with."""


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
        options: PETSc options of the solver, without prefix.
        transpose_options: Options for solves with the transpose; by default the same solver and factors.
        symmetric: Whether A is symmetric whatever its entries; solves with the transpose are then solves with A.
        warm_start: Whether iterative solves start from what the solution vector holds.
        fixed: Owned rows with Dirichlet conditions: ones on the diagonal, whatever the size of the other entries.
        what: A name for error messages.
    """

    def __init__(
        self,
        A: PETSc.Mat,
        options: Options,
        transpose_options: Options | None = None,
        *,
        symmetric: bool = False,
        warm_start: bool = False,
        fixed: np.ndarray | None = None,
        what: str = "u",
    ) -> None:
        self.A = A
        self.what = what
        self.symmetric = symmetric
        if symmetric:
            A.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        self._warm_start = warm_start
        self._options = OptionSet(options)
        self.ksp = self._create(self._options)
        self._failed = False
        self._transposed = self.ksp
        self._transpose_options = self._options
        if transpose_options is not None:
            self._transpose_options = OptionSet(transpose_options)
            self._transposed = self._create(self._transpose_options)
        self._checked = False
        self._fixed = np.empty(0, dtype=np.int32) if fixed is None else fixed
        self._scale = 0.0  # of the entries of A in rows that are not fixed
        self.factorisations = 0

    def _create(self, options: OptionSet) -> PETSc.KSP:
        ksp = PETSc.KSP().create(self.A.comm)
        ksp.setOperators(self.A)
        ksp.setOptionsPrefix(options.prefix)
        with options:
            ksp.setFromOptions()
        if self._warm_start and ksp.getType() != "preonly":
            ksp.setInitialGuessNonzero(True)
        return ksp

    @property
    def direct(self) -> bool:
        """Whether a solve is one pair of triangular solves."""
        return self.ksp.getType() == "preonly"

    def factorise(self) -> None:
        """Take the entries of A as they are now.  On first use, refuse a matrix that is singular.

        Raises:
            SolveError: the factorisation failed, or A has a null vector.
        """
        if self._failed:
            # MUMPS does not recover from a failed factorisation: start anew, reading the options again.
            self.ksp.reset()
            self._transposed.reset()
            self._checked = self._failed = False
        self.ksp.setOperators(self.A)
        if self._transposed is not self.ksp:
            self._transposed.setOperators(self.A)
        self.factorisations += 1
        self._scale = self._size_of_entries()
        try:
            if self._checked:
                self.ksp.setUp()
            else:
                with self._options:
                    self.ksp.setUp()
                if self._transposed is not self.ksp:
                    with self._transpose_options:
                        self._transposed.setUp()
        except PETSc.Error as error:
            self._failed = True
            raise SolveError(self._factor_message(str(error))) from error
        if not self._checked:
            try:
                self._refuse_singular()
            except SolveError:
                self._failed = True
                raise
            self._checked = True

    def _size_of_entries(self) -> float:
        """Largest entry of the diagonal in rows without a Dirichlet condition."""
        diagonal = self.A.getDiagonal()
        diagonal.array[self._fixed] = 0.0
        size = diagonal.norm(PETSc.NormType.NORM_INFINITY)
        diagonal.destroy()
        return float(size)

    # -- one right-hand side -------------------------------------------------------------------------------

    def solve(self, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """x = A⁻¹ b, with x as the initial guess where the solver uses one.

        Raises:
            SolveError: no convergence; the message has PETSc's reason.
        """
        self._run(self.ksp, self.ksp.solve, b, x)

    def solve_transpose(self, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """x = A⁻ᵀ b, on the factors of the forward solve.  Raises as `solve`."""
        ksp = self._transposed
        self._run(ksp, ksp.solve if self.symmetric else ksp.solveTranspose, b, x)

    def _run(self, ksp: PETSc.KSP, solve: Callable[[PETSc.Vec, PETSc.Vec], None], b: PETSc.Vec, x: PETSc.Vec) -> None:
        try:
            solve(b, x)
        except PETSc.Error as error:
            raise SolveError(f"the linear solve for '{self.what}' failed in PETSc: {error}") from error
        reason = ksp.getConvergedReason()
        if reason <= 0:
            self._failed = True
            raise SolveError(
                f"the linear solve for '{self.what}' did not converge: {LINEAR_REASONS.get(reason, reason)} after "
                f"{ksp.getIterationNumber()} iterations (residual {ksp.getResidualNorm():.2e}); {_remedy(reason)}"
            )
        size = x.norm()
        if not np.isfinite(size):
            raise SolveError(f"the linear solve for '{self.what}' gave a solution that is not finite")
        b.stateIncrease()  # its values were set in NumPy, and PETSc may remember the norm of others
        if size > 0.0 and ksp.getType() == "preonly" and b.norm() <= _SINGULAR * self._scale * size:
            raise SolveError(self._singular_message("its solution is as large as only rounding errors make it"))

    # -- many right-hand sides -----------------------------------------------------------------------------

    def solve_block(self, b: np.ndarray, *, transpose: bool = False) -> np.ndarray:
        """A⁻¹ b (or A⁻ᵀ b) for all columns of b at once, on the factors at hand.

        Args:
            b: Owned rows, (n_owned, k); k is the same on every rank.

        Returns:
            Owned rows of the solutions, (n_owned, k).

        Raises:
            SolveError: as `solve`.
        """
        out = np.empty_like(b, order="F")
        # PETSc has no block solve with the transpose of factors, only with those of a symmetric matrix themselves.
        if self.direct and (not transpose or (self.symmetric and self._transposed is self.ksp)):
            for start in range(0, b.shape[1], _BLOCK):
                part = slice(start, start + _BLOCK)
                out[:, part] = self._matrix_solve(b[:, part])
            return out
        rhs, x = self.A.createVecs()
        try:
            for k in range(b.shape[1]):
                rhs.array[:] = b[:, k]
                x.set(0.0)
                (self.solve_transpose if transpose else self.solve)(rhs, x)
                out[:, k] = x.array_r
        finally:
            rhs.destroy()
            x.destroy()
        return out

    def _matrix_solve(self, b: np.ndarray) -> np.ndarray:
        rows, columns = self.A.getSizes()[0], (None, b.shape[1])
        B = PETSc.Mat().createDense((rows, columns), array=np.asfortranarray(b), comm=self.A.comm)
        X = PETSc.Mat().createDense((rows, columns), comm=self.A.comm)
        try:
            X.setUp()
            B.assemble()
            X.assemble()
            self.ksp.matSolve(B, X)
            found = np.array(X.getDenseArray(readonly=True), order="F")
        except PETSc.Error as error:
            raise SolveError(f"the linear solves for '{self.what}' failed in PETSc: {error}") from error
        finally:
            B.destroy()
            X.destroy()
        # The sum is NaN on all ranks or on none.
        if not np.isfinite(self.A.comm.tompi4py().allreduce(float(found.sum()))):
            raise SolveError(f"the linear solves for '{self.what}' gave solutions that are not finite")
        return found

    # -- singular matrices ---------------------------------------------------------------------------------

    def _refuse_singular(self) -> None:
        """Look for a null vector: constants and rigid motions, and by inverse iteration where the solver is direct."""
        x, y = self.A.createVecs()
        norm_A = self._scale
        try:
            if not np.isfinite(self.A.norm()):
                raise SolveError(f"the matrix for '{self.what}' has entries that are not finite")
            blocks = self.A.getBlockSize()
            for component in range(blocks):
                x.set(0.0)
                x.array[component::blocks] = 1.0
                self._check_vector(x, y, norm_A)
            near = self.A.getNearNullSpace()  # the rigid motions of a body that nothing holds
            for mode in near.getVecs() if near.handle else ():
                self._check_vector(mode, y, norm_A)
            if self.direct:
                x.set(1.0)
                for _ in range(2):
                    self.ksp.solve(x, y)
                    norm = y.norm()
                    if self.ksp.getConvergedReason() <= 0 or not np.isfinite(norm) or norm == 0.0:
                        raise SolveError(self._factor_message(""))
                    y.copy(x)
                    x.scale(1.0 / norm)
                self._check_vector(x, y, norm_A)
        finally:
            x.destroy()
            y.destroy()

    def _check_vector(self, x: PETSc.Vec, y: PETSc.Vec, norm_A: float) -> None:
        """Refuse x as a null vector in the dofs that no Dirichlet condition fixes; x is not changed."""
        free = x.copy()
        free.array[self._fixed] = 0.0
        self.A.mult(free, y)
        y.array[self._fixed] = 0.0
        size = free.norm()
        free.destroy()
        if size > 0.0 and y.norm() <= _SINGULAR * norm_A * size:
            raise SolveError(self._singular_message("it has a null vector"))

    def _factor_message(self, detail: str) -> str:
        """PETSc's own factorisations do not pivot: then that may be the reason."""
        pc = self.ksp.getPC()
        if pc.getType() in ("cholesky", "icc", "lu", "ilu") and pc.getFactorSolverType() == "petsc":
            return (
                f"PETSc's {pc.getType()} factorisation of the matrix for '{self.what}' met a zero pivot: the matrix is "
                "indefinite, or singular; an indefinite one needs pivoting, petsc_options={'ksp_type': 'preonly', "
                "'pc_type': 'lu', 'pc_factor_mat_solver_type': 'mumps'}; for a singular one " + _CURE
            )
        return self._singular_message(f"its factorisation failed{': ' + detail if detail else ''}")

    def _singular_message(self, why: str) -> str:
        return (
            f"the matrix for '{self.what}' is singular ({why}): the form and its boundary conditions do not fix "
            f"the solution; {_CURE}"
        )

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        if self._transposed is not self.ksp:
            self._transposed.destroy()
        self.ksp.destroy()
        self.A.destroy()


def _remedy(reason: int) -> str:
    kinds = PETSc.KSP.ConvergedReason
    if reason in (kinds.DIVERGED_INDEFINITE_MAT, kinds.DIVERGED_INDEFINITE_PC):
        return (
            "the matrix or the preconditioner is indefinite, which this method does not allow; use petsc_options="
            "{'ksp_type': 'minres', …} with a definite preconditioner, 'gmres', or a direct solve ({'ksp_type': "
            "'preonly', 'pc_type': 'lu'})"
        )
    if reason == kinds.DIVERGED_PCSETUP_FAILED:
        return (
            "the preconditioner or factorisation could not be set up: the matrix is singular, or indefinite under a "
            "Cholesky factorisation; use petsc_options={'ksp_type': 'preonly', 'pc_type': 'lu'}, or add what fixes "
            "the solution (bcs=[…], a reaction term)"
        )
    return "raise ksp_max_it, loosen ksp_rtol or choose another solver with petsc_options"
