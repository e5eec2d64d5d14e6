"""What the sensors tell about θ: singular values of the Jacobian, combinations that they do not see, error bars.

With r_i = (u(x_i; θ) − y_i)/σ_i and J = ∂r/∂θ at the estimate, the posterior of θ under Gaussian noise and a flat prior
is near a Gaussian with covariance (JᵀJ)⁻¹ (Laplace approximation).  Where σ is not known it is estimated from the
residuals, σ̂² = |r|²/(n − p); with no more residuals than parameters they say nothing of it, nor of the errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Entries of a combination below this fraction of its largest are not told.
_MINOR = 0.1


@dataclass(frozen=True)
class Identifiability:
    """How well the data determine θ.  Replicated.

    names: of the entries of θ.  theta: their values, (p,).
    standard_errors: (p,), infinite where the data say nothing.  lower, upper: the interval at `confidence`.
    singular_values: of J with its columns scaled by |θ|, falling, (p,): the inverse is the relative standard error of
        the combination in the same row of `directions`, (p, p).
    unseen: combinations with a relative standard error above one, in words.
    residuals: n.  noise_std: 1 where σ was given, else its estimate, infinite for n ≤ p.
    """

    names: list[str]
    theta: np.ndarray
    standard_errors: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    confidence: float
    singular_values: np.ndarray
    directions: np.ndarray
    unseen: list[str]
    residuals: int
    noise_std: float

    def __str__(self) -> str:
        width = max(map(len, self.names), default=1)
        rows = [
            f"{name:{width}s}  {v:12.6g} ± {e:<10.2g} {self.confidence:.0%} in [{lo:.6g}, {hi:.6g}]"
            for name, v, e, lo, hi in zip(
                self.names, self.theta, self.standard_errors, self.lower, self.upper, strict=True
            )
        ]
        values = ", ".join(f"{s:.3g}" for s in self.singular_values)
        rows.append(f"singular values (columns in units of |θ|): {values}")
        rows += [f"the sensors do not see {text}" for text in self.unseen]
        return "\n".join(rows)


def identify(
    names: Sequence[str],
    theta: np.ndarray,
    J: np.ndarray,
    r: np.ndarray,
    *,
    n: int | None = None,
    known_noise: bool = True,
    confidence: float = 0.95,
) -> Identifiability:
    """Identifiability from J (rows, p) and r (rows,), or from the triangle of their QR factorisation.

    Args:
        n: Number of residuals, where the rows are a triangle.
        known_noise: Whether r is in units of the noise.
    """
    n, p = len(r) if n is None else n, len(theta)
    noise = 1.0
    if not known_noise:
        noise = float(np.sqrt(r @ r / (n - p))) if n > p else np.inf
    # A parameter that happens to be zero still has a size: that of its step, or that of the others.
    size = np.maximum(np.abs(theta), 1e-3 * np.abs(theta).max(initial=0.0))
    size[size == 0.0] = 1.0
    _, s, Vt = np.linalg.svd(np.pad(J * size, ((0, max(0, p - len(J))), (0, 0))), full_matrices=False)
    errors = size * standard_errors(s, Vt)
    # Without any residual there are no errors, but where the data say nothing.
    errors[np.isfinite(errors)] *= noise
    s = s / max(noise, 1e-150)
    known = known_noise or n <= p
    quantile = stats.norm.ppf(0.5 + confidence / 2) if known else stats.t.ppf(0.5 + confidence / 2, n - p)
    unseen = [_combination(names, v) for value, v in zip(s, Vt, strict=True) if value < 1.0]
    return Identifiability(
        list(names),
        theta,
        errors,
        theta - quantile * errors,
        theta + quantile * errors,
        confidence,
        s,
        Vt,
        unseen,
        n,
        noise,
    )


def standard_errors(s: np.ndarray, Vt: np.ndarray) -> np.ndarray:
    """Square roots of the diagonal of (JᵀJ)⁻¹, from the singular values and right singular vectors of J."""
    seen = s > s.max(initial=0.0) * np.finfo(float).eps * max(Vt.shape)
    errors = np.sqrt(((Vt[seen] / s[seen, None]) ** 2).sum(axis=0))
    if seen.all() and len(s) == Vt.shape[1]:
        return errors
    # What the seen directions do not span is not determined.
    hidden = 1.0 - (Vt[seen] ** 2).sum(axis=0)
    return np.where(hidden > 1e-12, np.inf, errors)


def _combination(names: Sequence[str], v: np.ndarray) -> str:
    """A direction in words, largest entry first and positive."""
    order = [i for i in np.argsort(-np.abs(v), kind="stable") if abs(v[i]) >= _MINOR * np.abs(v).max()]
    sign = np.sign(v[order[0]])
    parts = [f"{sign * v[i]:+.2f} {names[i]}" for i in order]
    return " ".join(parts).removeprefix("+") + " (in units of |θ|)"


def entry_names(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[str]:
    """A name for each entry of parameters given by name and shape: kappa.centres[0,1]."""
    out = []
    for name, shape in shapes:
        out += [name if not shape else f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(shape)]
    return out
