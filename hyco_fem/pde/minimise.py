"""Minimisation over a field by PETSc's TAO: Newton–CG and L-BFGS in the inner product of the field.

Newton–CG: each step solves H s = −g by conjugate gradients, preconditioned with P, only as exactly as it is worth: the
forcing terms of Eisenstat and Walker (1996, choice 2) fall with the gradient.  L-BFGS starts from P as its Hessian.
Both shorten steps that do not decrease the objective enough (Armijo).

Gradients are measured in the dual norm ‖g‖_* = √(gᵀ P⁻¹ g).  Where H ≥ P, as for a least-squares misfit plus
regulariser, J(m) − min J is about ½ ‖g‖_*² or less, and the iteration ends when ‖g‖_* ≤ tolerance · √(2 J).

NumPy and PETSc only; arrays are owned dofs, every function is collective.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mpi4py import MPI
from petsc4py import PETSc

import numpy as np

from hyco_fem.pde.linear import OptionSet

Method = Literal["gauss_newton_cg", "newton_cg", "lbfgs"]

# The first forcing term, and bounds of the later ones.
_FORCING_FIRST, _FORCING_MOST, _FORCING_LEAST = 0.1, 0.5, 1e-6

_STOPS = {
    PETSc.TAO.ConvergedReason.CONVERGED_USER: "the gradient is small enough",
    PETSc.TAO.ConvergedReason.DIVERGED_MAXITS: "max_iterations reached",
    PETSc.TAO.ConvergedReason.DIVERGED_MAXFCN: "too many shortened steps",
    PETSc.TAO.ConvergedReason.DIVERGED_LS_FAILURE: "no shorter step decreases the objective",
    PETSc.TAO.ConvergedReason.DIVERGED_NAN: "the objective is not finite",
}


class Objective(Protocol):
    """J on a field.  Each method is collective."""

    comm: MPI.Comm

    def value(self, x: np.ndarray) -> float:
        """J(x), equal on all ranks; infinite where x is not admissible."""

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """J′(x), a dual vector."""

    def linearise(self, x: np.ndarray) -> None:
        """Make `product` that at x."""

    def product(self, v: np.ndarray) -> np.ndarray:
        """H v, a dual vector."""

    def precondition(self, g: np.ndarray) -> np.ndarray:
        """P⁻¹ g at the x of the last gradient."""


@dataclass(frozen=True)
class Step:
    """The state after a step (the first: at the start).  cg: conjugate gradient iterations of the step."""

    objective: float
    gradient_norm: float
    cg: int


@dataclass(frozen=True)
class Minimum:
    """x: where the iteration ended, owned values.  steps: its history.  converged, stop: whether and why it ended."""

    x: np.ndarray
    steps: list[Step]
    converged: bool
    stop: str


def minimise(
    objective: Objective,
    start: np.ndarray,
    method: Method,
    *,
    tolerance: float,
    max_iterations: int,
    initial: Callable[[np.ndarray], np.ndarray] | None = None,
    memory: int = 20,
    callback: Callable[[Step], None] | None = None,
) -> Minimum:
    """Minimise J from `start`.

    Args:
        objective: J.
        start: Where J is finite; not changed.
        method: Names are those of the Hessian of `objective`: "gauss_newton_cg" and "newton_cg" are the same here.
        tolerance: See the module.
        max_iterations: Most steps.
        initial: L-BFGS only: the inverse of its first Hessian, a dual vector to a field; by default P⁻¹.
        memory: L-BFGS only: steps that it remembers.
        callback: Called on every rank after each step.
    """
    run = _Run(objective, start, method, tolerance, max_iterations, initial, memory, callback)
    try:
        return run.go()
    finally:
        run.close()


class _Shell:
    """An operator for PETSc, as matrix (`mult`) or preconditioner (`apply`), from a function of owned arrays."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], guard: Callable[[], Any]) -> None:
        self._function, self._guard = function, guard
        self._shift = 0.0

    def mult(self, _: Any, x: PETSc.Vec, y: PETSc.Vec) -> None:
        with self._guard():
            y.array[:] = self._function(x.array_r.copy())
        if self._shift:
            y.axpy(self._shift, x)

    apply = mult

    def shift(self, _: Any, by: float) -> None:
        """TAO adds to a Hessian that is not positive."""
        self._shift += by

    def reset(self) -> None:
        self._shift = 0.0


class _Run:
    """One TAO solver, from creation to destruction."""

    def __init__(
        self,
        objective: Objective,
        start: np.ndarray,
        method: Method,
        tolerance: float,
        max_iterations: int,
        initial: Callable[[np.ndarray], np.ndarray] | None,
        memory: int,
        callback: Callable[[Step], None] | None,
    ) -> None:
        self.J, self.tolerance, self.max_iterations, self.callback = objective, tolerance, max_iterations, callback
        self.steps: list[Step] = []
        self._error: BaseException | None = None
        self._owned: list[Any] = []
        comm = objective.comm
        n = len(start)
        self.x = self._keep(PETSc.Vec().createMPI((n, None), comm=comm))
        self.x.array[:] = start
        gradient = self._keep(self.x.duplicate())
        self.tao = self._keep(PETSc.TAO().create(comm))
        options: dict[str, object] = {"tao_ls_type": "armijo"}
        newton = method != "lbfgs"
        if newton:
            options |= {
                "tao_nls_init_type": "constant",
                "tao_nls_ksp_type": "stcg",
                # ½‖x − start‖² in P is bounded by J at the start, for a regulariser with its reference there.
                "tao_nls_max_radius": 10.0 * math.sqrt(2.0 * max(objective.value(start), 1e-300)),
            }
        else:
            options |= {"tao_lmvm_mat_lmvm_hist_size": memory, "tao_lmvm_mat_lmvm_num_vecs": memory}
        self.tao.setType("nls" if newton else "lmvm")
        self.tao.setObjective(self._value)
        self.tao.setGradient(self._gradient, gradient)
        self.tao.setGradientNorm(self._matrix(lambda g: self.J.precondition(g)))
        self.tao.setMaximumIterations(max_iterations)
        self.tao.setMaximumFunctionEvaluations(20 * (max_iterations + 1))
        self.tao.setConvergenceTest(self._test)
        self.tao.setMonitor(self._monitor)
        if newton:
            self._shell = _Shell(self.J.product, self._guard)
            self.H = self._keep(PETSc.Mat().createPython(((n, None), (n, None)), self._shell, comm=comm))
            self.H.setUp()
            self.tao.setHessian(self._hessian, self.H)
            self._eta = _FORCING_FIRST
            self.tao.setUpdate(self._force)
        self._set = OptionSet(options)
        self.tao.setOptionsPrefix(self._set.prefix)
        with self._set:
            self.tao.setFromOptions()
        if newton:
            # In PETSc's default, the Euclidean norm of P⁻¹r, the exactness of a step would depend on the mesh.
            self.tao.getKSP().setNormType(PETSc.KSP.NormType.NATURAL)
            self._precondition(self.tao.getKSP(), self.J.precondition)
        else:
            self.tao.setSolution(self.x)
            self.tao.setUp()
            self._inverse = initial or self.J.precondition
            # Found when TAO asks for the first direction, and again with each new pair of differences.
            self._scale = 0.0
            self._last: tuple[np.ndarray, np.ndarray] | None = None
            self.tao.setUpdate(self._rescale)
            scaled = self._scaled_inverse
            self.tao.setLMVMH0(self._matrix(scaled))
            ksp = self.tao.getLMVMH0KSP()
            ksp.setType("preonly")
            self._precondition(ksp, scaled)

    def _keep(self, made: Any) -> Any:
        self._owned.append(made)
        return made

    def _matrix(self, function: Callable[[np.ndarray], np.ndarray]) -> PETSc.Mat:
        n = self.x.getLocalSize()
        A = self._keep(
            PETSc.Mat().createPython(((n, None), (n, None)), _Shell(function, self._guard), comm=self.J.comm)
        )
        A.setUp()
        return A

    def _precondition(self, ksp: PETSc.KSP, inverse: Callable[[np.ndarray], np.ndarray]) -> None:
        pc = ksp.getPC()
        pc.setType("python")
        pc.setPythonContext(_Shell(inverse, self._guard))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Keep an error of ours, which PETSc would pass on as its own."""
        try:
            yield
        except BaseException as error:
            self._error = error
            raise

    def go(self) -> Minimum:
        try:
            with self._set:
                self.tao.solve(self.x)
        except PETSc.Error:
            if self._error is not None:
                raise self._error from None
            raise
        reason = self.tao.getConvergedReason()
        return Minimum(
            self.x.array_r.copy(), self.steps, reason > 0, _STOPS.get(reason, f"TAO's reason {reason} for stopping")
        )

    def close(self) -> None:
        for made in reversed(self._owned):
            made.destroy()

    # -- called by TAO -------------------------------------------------------------------------------------

    def _value(self, _: PETSc.TAO, x: PETSc.Vec) -> float:
        with self._guard():
            return self.J.value(x.array_r.copy())

    def _gradient(self, _: PETSc.TAO, x: PETSc.Vec, g: PETSc.Vec) -> None:
        with self._guard():
            g.array[:] = self.J.gradient(x.array_r.copy())

    def _hessian(self, _: PETSc.TAO, x: PETSc.Vec, H: PETSc.Mat, __: PETSc.Mat) -> None:
        with self._guard():
            self.J.linearise(x.array_r.copy())
        self._shell.reset()

    def _force(self, tao: PETSc.TAO, _: int) -> None:
        """Eisenstat–Walker, with their safeguard against a forcing term that falls too fast."""
        if len(self.steps) < 2:
            eta = _FORCING_FIRST
        else:
            ratio = self.steps[-1].gradient_norm / self.steps[-2].gradient_norm
            eta, before = 0.9 * ratio**2, 0.9 * self._eta**2
            eta = max(eta, before) if before > 0.1 else eta
        last = self.steps[-1]
        # Not more exactly than the end of the iteration asks for.
        enough = 0.5 * self.tolerance * math.sqrt(2.0 * max(last.objective, 0.0)) / max(last.gradient_norm, 1e-300)
        self._eta = min(max(eta, enough, _FORCING_LEAST), _FORCING_MOST)
        tao.getKSP().setTolerances(rtol=self._eta, atol=0.0, max_it=1000)

    def _scaled_inverse(self, g: np.ndarray) -> np.ndarray:
        return self._scale * self._inverse(g)

    def _rescale(self, tao: PETSc.TAO, _: int) -> None:
        """H₀⁻¹ = γ B⁻¹, with γ = sᵀy / yᵀB⁻¹y from the last step, as is usual where B is the identity (Nocedal).

        The first is that of Polyak's step, 2J/‖g‖², which leads to the minimum of a quadratic along its gradient where
        that minimum is zero.
        """
        x, g = tao.getSolution().array_r.copy(), tao.getGradient()[0].array_r.copy()
        with self._guard():
            if self._last is None:
                over, under = 2.0 * self.steps[-1].objective, self._dot(g, self._inverse(g))
            else:
                y = g - self._last[1]
                over, under = self._dot(x - self._last[0], y), self._dot(y, self._inverse(y))
        if over > 0.0 and under > 0.0:
            self._scale = over / under
        self._last = x, g

    def _dot(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(self.J.comm.allreduce(float(a @ b)))

    def _test(self, tao: PETSc.TAO) -> None:
        its, objective, norm = tao.getSolutionStatus()[:3]
        reasons = PETSc.TAO.ConvergedReason
        if not (math.isfinite(objective) and math.isfinite(norm)):
            tao.setConvergedReason(reasons.DIVERGED_NAN)
        elif norm <= self.tolerance * math.sqrt(2.0 * max(objective, 0.0)):
            tao.setConvergedReason(reasons.CONVERGED_USER)
        elif its >= self.max_iterations:
            tao.setConvergedReason(reasons.DIVERGED_MAXITS)

    def _monitor(self, tao: PETSc.TAO) -> None:
        its, objective, norm = tao.getSolutionStatus()[:3]
        if its < len(self.steps):
            return  # TAO tells some states twice
        cg = tao.getKSP().getIterationNumber() if its and hasattr(self, "H") else 0
        self.steps.append(Step(float(objective), float(norm), int(cg)))
        if self.callback is not None:
            with self._guard():
                self.callback(self.steps[-1])
