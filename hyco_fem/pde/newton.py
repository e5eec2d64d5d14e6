"""Newton's method with line search (PETSc SNES) for a nonlinear residual.  Distributed; collective."""

from __future__ import annotations

from petsc4py import PETSc

from dolfinx import fem, la
from dolfinx.fem import petsc as fem_petsc

from hyco_fem.pde.linear import LINEAR_REASONS, Options, OptionSet, SolveError

_REASONS = {
    value: name
    for name, value in vars(PETSc.SNES.ConvergedReason).items()
    if isinstance(value, int) and not name.startswith("_")
}

_DEFAULTS: dict[str, object] = {
    "snes_type": "newtonls",
    "snes_linesearch_type": "bt",
    "snes_rtol": 1e-12,
    "snes_atol": 1e-12,
    "snes_stol": 0.0,
    "snes_max_it": 50,
}


class NewtonSolver:
    """Solve F(u) = 0 from the values that u holds.

    Args:
        F, J: Compiled residual and Jacobian.  A: matrix for J, reassembled here.  u: unknown, start and result.
        bcs: Dirichlet conditions.  b: Function of the space of u for the residual.
        options: PETSc options without prefix: of the linear solves, and of SNES where they override the defaults.
    """

    def __init__(
        self,
        F: fem.Form,
        J: fem.Form,
        A: PETSc.Mat,
        u: fem.Function,
        bcs: list[fem.DirichletBC],
        b: fem.Function,
        options: Options,
    ) -> None:
        self.u = u
        # The callbacks know forms and vectors, but neither the SNES nor this object: no reference cycle, so
        # PETSc objects never wait for the garbage collector, whose timing differs between ranks.
        x0 = u.x.petsc_vec

        def residual(_: PETSc.SNES, x: PETSc.Vec, f: PETSc.Vec) -> None:
            if x.handle != x0.handle:
                x.copy(x0)
            u.x.scatter_forward()
            b.x.array[:] = 0.0
            fem.assemble_vector(b.x.array, F)
            bv = b.x.petsc_vec
            fem_petsc.apply_lifting(bv, [J], bcs=[bcs], x0=[x0], alpha=-1.0)
            b.x.scatter_reverse(la.InsertMode.add)
            fem_petsc.set_bc(bv, bcs, x0=x0, alpha=-1.0)
            if f.handle != bv.handle:
                bv.copy(f)

        def jacobian(_: PETSc.SNES, x: PETSc.Vec, matrix: PETSc.Mat, __: PETSc.Mat) -> None:
            if x.handle != x0.handle:
                x.copy(x0)
            u.x.scatter_forward()
            matrix.zeroEntries()
            fem_petsc.assemble_matrix(matrix, J, bcs=bcs)
            matrix.assemble()

        # Work vectors of its own: SNES must not see u's vector change under it between callbacks.
        self._x, self._r = x0.duplicate(), x0.duplicate()
        self.snes = PETSc.SNES().create(A.comm)
        self.snes.setFunction(residual, self._r)
        self.snes.setJacobian(jacobian, A, A)
        self._options = OptionSet({**_DEFAULTS, **options})
        self.snes.setOptionsPrefix(self._options.prefix)
        with self._options:
            self.snes.setFromOptions()
        self.snes.setConvergenceHistory(reset=True)
        self.iterations = 0

    def solve(self) -> None:
        """Solve, starting from u.  Raises SolveError where Newton diverges."""
        x = self._x
        self.u.x.petsc_vec.copy(x)
        try:
            with self._options:  # the factors inside are set up in the first iteration, and remade in each
                self.snes.solve(None, x)
        except PETSc.Error as error:
            self._x = x.duplicate()  # the old one stays locked when SNES is left in the middle
            x.destroy()
            if isinstance(error.__cause__, KeyboardInterrupt):  # in a callback
                raise error.__cause__ from None
            raise SolveError(f"the nonlinear solve for '{self.u.name}' failed in PETSc: {error}") from error
        reason = self.snes.getConvergedReason()
        self.iterations = self.snes.getIterationNumber()
        if reason <= 0:
            linear = self.snes.ksp.getConvergedReason()
            self.snes.ksp.reset()  # MUMPS does not recover from a failed factorisation
            last = ", ".join(f"{r:.2e}" for r in self.snes.getConvergenceHistory()[0][-4:])
            raise SolveError(
                f"the nonlinear solve for '{self.u.name}' did not converge: {_REASONS.get(reason, reason)} after "
                f"{self.iterations} iterations (last residuals {last}; last linear solve: "
                f"{LINEAR_REASONS.get(linear, linear)}); start nearer (the values of '{self.u.name}' when the model is "
                "built), raise snes_max_it or change snes_linesearch_type with petsc_options"
            )
        x.copy(self.u.x.petsc_vec)

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        for obj in (self.snes, self._x, self._r):
            obj.destroy()
