"""The convex problem of the mean-field relaxation: a quadratic energy with an ℓ¹ term, to a guaranteed duality gap.

    min_c P(c) = ½ cᵀA c − bᵀc + λ|c|₁,    A positive semidefinite, often of numerical rank far below its size

*Dual.*  ½cᵀAc = max_z (zᵀAc − ½zᵀAz), at z = c; the minimum over c of zᵀAc − bᵀc + λ|c|₁ is zero where |b − Az|_∞ ≤ λ,
and −∞ elsewhere (Fenchel–Rockafellar).  So

    P(c) ≥ D(z) = −½ zᵀA z   for every c, and every z with |b − A z|_∞ ≤ λ,   with equality at the solution, c = z.

*A dual point* from any c: with p = c₀ − c, where c₀ solves A c₀ = b up to ε = |b − A c₀|_∞ < λ, take z = c + t p with
the least t ∈ [0, 1] that makes it feasible,

    |b − A z|_∞ ≤ (1 − t)|ρ|_∞ + tε ≤ λ,    ρ = b − A c,    t = max(0, (|ρ|_∞ − λ)/(|ρ|_∞ − ε)).

It is the scaled residual of the usual lasso, in terms of the Gram matrix.  Where c solves the problem, t = 0, and

    P(c) − D(z) = λ|c|₁ − cᵀρ + t pᵀA c + ½t² pᵀA p

has no difference of large numbers.  So the gap holds up to rounding, whatever made c.

*Solver.*  The dual asks for the point nearest to zero in a polyhedron (least distance programming), which Lawson and
Hanson (Solving Least Squares Problems, 1974, chapter 23) turn into non-negative least squares, here SciPy's `nnls`.
With A = RᵀR (up to 10⁻¹³), c = c⁺ − c⁻, x = (c⁺, c⁻) ≥ 0 and h = (b − λ, −b − λ),

    min_{u ≥ 0} |R(u⁺ − u⁻)|² + (hᵀu − 1)²,    x = u/(1 − hᵀu):

the conditions of optimality are the same, Qx − h ≥ 0, x ≥ 0, xᵀ(Qx − h) = 0 with Q = [R, −R]ᵀ[R, −R].  It is a method
of active sets, which ends at the solution.  Then A c = b − λ sign c is solved again on the support.  On dictionaries
of tanh neurons, of condition 10¹⁶, the gaps are near 10⁻¹³ down to λ = 10⁻⁶ |b|_∞.  PETSc's TAO was tried on min P with
bounds: `bnls` gets there for λ ≥ 10⁻⁴ |b|_∞, in more time, and not below; `blmvm` and `bqnls` stop at gaps between 10⁻³
and 10⁻⁶, and `bqpip` fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mpi4py import MPI

import numpy as np
import scipy.linalg
from scipy.optimize import nnls

# Columns that enter the working set at once.
_ENTERING = 64


@dataclass(frozen=True)
class Sparse:
    """A solution.

    Attributes:
        c: (K,).  objective: P(c).  tv: |c|₁.
        gap: P(c) − D(z) relative to |P(c)|: no c' has P(c') < P(c) − gap·|P(c)|, up to rounding.
        support: where c is not zero.
    """

    c: np.ndarray
    objective: float
    tv: float
    gap: float
    support: np.ndarray


class LassoError(RuntimeError):
    """The duality gap stays above the tolerance."""


def lasso(A: np.ndarray, b: np.ndarray, penalty: float, *, tolerance: float = 1e-6) -> Sparse:
    """Minimise ½cᵀAc − bᵀc + λ|c|₁.  Local: on several ranks see `lasso_on_all`.

    Args:
        A: (K, K), symmetric, positive semidefinite up to rounding, with a positive diagonal.  b: (K,), in its range.
        penalty: λ > 0.
        tolerance: Relative duality gap.

    Raises:
        ValueError: the shapes do not fit, numbers are not finite, λ is not positive, or b is not in the range of A.
        LassoError: the gap was not reached: λ is so small that the numbers do not tell the columns apart.
    """
    A, b = np.asarray(A, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _check(A, b, penalty, tolerance)
    if np.abs(b).max() <= penalty:  # zero is the solution: −λ ≤ b ≤ λ is the condition of optimality there
        return Sparse(np.zeros(len(b)), 0.0, 0.0, 0.0, np.empty(0, dtype=int))
    dual = _feasible(A, b, penalty)
    c = _working_set(A, b, penalty, float(np.sqrt(b @ dual)))
    found = certified(A, b, penalty, c, dual)
    if not found.gap <= tolerance:
        raise LassoError(
            f"the relative duality gap stays at {found.gap:.1e} > {tolerance:.1e}: give a larger penalty than "
            f"{penalty:.2e}, or a larger tolerance"
        )
    return found


def lasso_on_all(comm: MPI.Comm, solve: Callable[[], Sparse]) -> Sparse:
    """What `solve` returns on rank 0, on all ranks; its error is raised on all.  Collective."""
    found: Sparse | Exception | None = None
    if comm.rank == 0:
        try:
            found = solve()
        except Exception as error:
            found = error
    found = comm.bcast(found, root=0)
    if isinstance(found, Exception):
        raise found
    assert found is not None
    return found


def certified(A: np.ndarray, b: np.ndarray, penalty: float, c: np.ndarray, c0: np.ndarray | None = None) -> Sparse:
    """Any c with its duality gap: see the head of this file.  c0: with |b − A c₀|_∞ < λ, found where not given."""
    c0 = _feasible(A, b, penalty) if c0 is None else c0
    Ac = A @ c
    rho, tv = b - Ac, float(np.abs(c).sum())
    largest = float(np.abs(rho).max())
    t, p = 0.0, c0 - c
    if largest > penalty:
        t = (largest - penalty) / (largest - float(np.abs(b - A @ c0).max()))
    gap = penalty * tv - c @ rho + t * (p @ Ac) + 0.5 * t * t * (p @ (A @ p))
    objective = float(0.5 * c @ Ac - b @ c + penalty * tv)
    relative = max(float(gap), 0.0) / abs(objective) if objective != 0.0 else (0.0 if gap <= 0.0 else math.inf)
    return Sparse(c, objective, tv, relative, np.flatnonzero(c))


def _check(A: np.ndarray, b: np.ndarray, penalty: float, tolerance: float) -> None:
    if b.ndim != 1 or len(b) == 0 or A.shape != (len(b), len(b)):
        raise ValueError(f"A and b must have shapes (K, K) and (K,), K > 0, not {A.shape} and {b.shape}")
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        raise ValueError("A or b has entries that are not finite")
    if not np.all(np.diag(A) > 0):
        raise ValueError("A must have a positive diagonal: leave out atoms that the energy does not see")
    if not 0 < penalty < math.inf:
        raise ValueError(f"the penalty must be finite and positive, not {penalty}; without one solve A c = b")
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance is a relative gap between 0 and 1, not {tolerance}")


def _shifted(A: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of A + δ with δ = 10ᵏ max A_jj, the least that rounding allows.

    Without δ `nnls` stops early where the support reaches the rank of A.
    """
    size = float(np.diag(A).max())
    for power in range(-13, 1):
        try:
            factor: np.ndarray = scipy.linalg.cholesky(A + 10.0**power * size * np.eye(len(A)))
            return factor
        except np.linalg.LinAlgError:
            continue
    raise ValueError("A is not positive semidefinite")


def _feasible(A: np.ndarray, b: np.ndarray, penalty: float) -> np.ndarray:
    """c₀ with |b − A c₀|_∞ < λ, for a dual point: (A + δ)c₀ = b."""
    c0: np.ndarray = scipy.linalg.cho_solve((_shifted(A), False), b)
    if not np.abs(b - A @ c0).max() < 0.5 * penalty:
        raise ValueError(
            "no combination of the columns of A comes near b: b is not in their span, so that P has no minimum, or the "
            f"penalty {penalty:.2e} is below rounding"
        )
    return c0


def _working_set(A: np.ndarray, b: np.ndarray, penalty: float, size: float) -> np.ndarray:
    """c, from the support and those columns with |ρ_j| > λ, the most violated first, until there are none.

    P falls from round to round, so that no working set comes again; where rounding ends that, it ends.
    """
    c, objective = np.zeros(len(b)), math.inf
    while True:
        rho = np.abs(b - A @ c)
        violated = np.flatnonzero((rho > penalty * (1.0 + 1e-12)) & (c == 0))
        now = float(0.5 * c @ (A @ c) - b @ c + penalty * np.abs(c).sum())
        if len(violated) == 0 or now >= objective:
            return c
        objective = now
        entering = violated[np.argsort(-rho[violated], kind="stable")][:_ENTERING]
        working = np.union1d(np.flatnonzero(c), entering)
        inner = A[np.ix_(working, working)], b[working]
        c = np.zeros(len(b))
        c[working] = _polished(*inner, penalty, _active_set(*inner, penalty, size))


def _active_set(A: np.ndarray, b: np.ndarray, penalty: float, size: float) -> np.ndarray:
    """c by non-negative least squares; size: that of (cᵀAc)^½, so that the two terms are alike."""
    R = _shifted(A)
    h = np.concatenate([b - penalty, -b - penalty]) / size
    E = np.vstack([np.hstack([R, -R]), h])
    try:
        u, _ = nnls(E, np.append(np.zeros(len(b)), 1.0), maxiter=100 * len(b))
    except RuntimeError:
        raise LassoError(f"non-negative least squares did not end: give a larger penalty than {penalty:.2e}") from None
    x = size * u / (1.0 - h @ u)
    c: np.ndarray = x[: len(b)] - x[len(b) :]
    return c


def _polished(A: np.ndarray, b: np.ndarray, penalty: float, c: np.ndarray) -> np.ndarray:
    """c with the conditions A c = b − λ sign c met on its support, where that keeps the signs and lowers P."""
    S = np.flatnonzero(np.abs(c) > 1e-12 * np.abs(c).max(initial=0.0))
    if len(S) == 0:
        return c
    signs = np.sign(c[S])
    better = np.zeros_like(c)
    better[S] = scipy.linalg.lstsq(A[np.ix_(S, S)], b[S] - penalty * signs, cond=1e-15)[0]
    if np.any(better[S] * signs < 0):
        better = np.where(np.isin(np.arange(len(c)), S), c, 0.0)

    def worst(c: np.ndarray) -> float:
        """How far the conditions of optimality are from holding."""
        rho = b - A @ c
        on = np.abs(rho - penalty * np.sign(c))[c != 0].max(initial=0.0)
        return float(max(on, (np.abs(rho) - penalty).max(initial=0.0)))

    return better if worst(better) <= worst(c) else c
