"""How strongly to regularise: the discrepancy principle and the L-curve.

Discrepancy (Morozov): with σ known, the true field has L ≈ 1 (the number of components, for vector data).  The weight
is the one at which the minimum of L + α R has that misfit: smaller ones fit the noise.  L grows with α, and log α is
found by Brent's method.

L-curve (Hansen 1992): (log L, log R) over α bends where more regularisation begins to cost data and less begins to cost
smoothness.  The weight is the one of largest curvature on a grid; it needs no σ, and is a heuristic.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
from scipy import optimize

from hyco_fem.game.data import Data
from hyco_fem.game.field import FieldResult, bayesian_weight, field_parameter, fit_field
from hyco_fem.game.history import write_summary
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.parallel import agreed
from hyco_fem.pde.regularisers import Regulariser

log = logging.getLogger("hyco_fem")

Rule = Literal["discrepancy", "l_curve"]

# Decades from the first weight in which the discrepancy principle looks for its own, and the relative change of the
# misfit over one of them below which further ones are of no use.
_DECADES, _STUCK = 8, 0.01

# |d log R / d log α| above which R counts as falling like 1/α².
_LIKE_SQUARE = 1.5


@dataclass(frozen=True)
class WeightChoice:
    """The outcome of `choose_weight`.  Replicated.

    weight: the chosen α.  rule.  result: of the fit at α, which the model holds.
    weights, misfits, penalties: α, L and R of all fits made, by rising α.
    curvatures: of the L-curve at each of them, NaN at the ends; empty for the other rule.
    solves: forward solves of all fits; products: Hessian products.
    """

    weight: float
    rule: str
    result: FieldResult
    weights: np.ndarray
    misfits: np.ndarray
    penalties: np.ndarray
    curvatures: np.ndarray
    solves: int
    products: int

    def save(self, folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, extra: dict[str, Any] | None = None) -> None:
        """Write summary.json, with the entries of `extra`, into a folder.  Collective; raises OSError on all ranks."""
        own = {name: getattr(self, name) for name in vars(self) if name != "result"}
        write_summary(folder, comm, own | {"result": self.result.summary()} | (extra or {}))


def choose_weight(
    physical: PhysicalModel,
    data: Data,
    regulariser: Regulariser,
    *,
    rule: Rule = "discrepancy",
    weights: Sequence[float] | np.ndarray | None = None,
    target: float | None = None,
    misfit_tolerance: float = 0.01,
    callback: Callable[[FieldResult], object] | None = None,
    **options: Any,
) -> WeightChoice:
    """Fit the field at several weights, each from the last one's field, and keep the best by a rule.

    Args:
        physical, data, regulariser: As for `fit_field`; the parameter holds the chosen field afterwards.
        rule: "discrepancy" or "l_curve"; see the module.
        weights: "l_curve": the grid, five or more.  "discrepancy": only the first is used, as the weight to start
            from.  By default around `bayesian_weight(data)`.
        target: "discrepancy": the misfit to reach; by default the number of components of the data (1 for scalars).
        misfit_tolerance: "discrepancy": relative, of the misfit.
        callback: Called on every rank after each fit.
        options: Of `fit_field`.

    Raises:
        ValueError: an unknown rule, unusable weights, a noise that is not known, a misfit that no weight reaches; on
            all ranks.  Otherwise as `fit_field`.

    Collective.
    """
    comm = physical.comm
    with agreed(comm):
        if rule not in ("discrepancy", "l_curve"):
            raise ValueError(f"rule must be 'discrepancy' or 'l_curve', not {rule!r}")
        field_parameter(physical, regulariser)
        grid = _grid(rule, weights, bayesian_weight(data))
        if rule == "discrepancy" and target is None and not data.known_noise:
            raise ValueError(
                "the discrepancy principle compares the misfit with the noise, which is not known: pass noise_std=… to "
                "hyco_fem.Data, or use rule='l_curve'"
            )
        aim = float(data.values.shape[1] if data.values.ndim == 2 else 1) if target is None else float(target)
        if not (math.isfinite(aim) and aim > 0 and 0 < misfit_tolerance < 1):
            raise ValueError(
                f"target must be positive and misfit_tolerance between 0 and 1, not {target} and {misfit_tolerance}"
            )
    path = _Path(physical, data, regulariser, callback, options)
    try:
        if rule == "discrepancy":
            best = _discrepancy(path, float(grid[0]), aim, misfit_tolerance)
            curvatures = np.empty(0)
        else:
            # From strong to weak: each field is a good start for the next one.
            for weight in grid[::-1]:
                path.fit(float(weight))
            curvatures = _curvatures(*path.curve())
            best = float(path.curve()[0][int(np.nanargmax(curvatures))])
    except BaseException:
        path.put(path.start)
        raise
    fits = [path.fits[w] for w in sorted(path.fits)]
    path.put(path.fields[best])
    # Also u is that of the chosen field.
    physical.solve()
    return WeightChoice(
        weight=best,
        rule=rule,
        result=path.fits[best],
        weights=np.array([f.weight for f in fits]),
        misfits=np.array([f.misfit for f in fits]),
        penalties=np.array([f.penalty for f in fits]),
        curvatures=curvatures,
        solves=sum(f.solves for f in fits),
        products=sum(f.products for f in fits),
    )


def _grid(rule: str, weights: Sequence[float] | np.ndarray | None, middle: float) -> np.ndarray:
    if weights is None:
        return np.array([middle]) if rule == "discrepancy" else middle * np.logspace(-3, 3, 13)
    grid = np.atleast_1d(np.asarray(weights, dtype=np.float64))
    if not (len(grid) and np.all(np.isfinite(grid)) and np.all(grid > 0)):
        raise ValueError(f"weights must be finite and positive, not {weights}")
    if rule == "l_curve":
        grid = np.unique(grid)
        if len(grid) < 5:
            raise ValueError(f"the curvature of an L-curve needs at least five weights, not {len(grid)}")
    return grid


class _Path:
    """Fits by weight, each started from the field of the nearest weight so far."""

    def __init__(
        self,
        physical: PhysicalModel,
        data: Data,
        regulariser: Regulariser,
        callback: Callable[[FieldResult], object] | None,
        options: dict[str, Any],
    ) -> None:
        self._arguments = physical, data, regulariser
        self._callback, self._options = callback, options
        self._comm = physical.comm
        self._parameter = field_parameter(physical, regulariser)[1]
        self.start = self._parameter.detach().clone()
        self.fits: dict[float, FieldResult] = {}
        self.fields: dict[float, Any] = {}

    def put(self, field: Any) -> None:
        self._parameter.data.copy_(field)

    def fit(self, weight: float) -> FieldResult:
        if weight in self.fits:
            return self.fits[weight]
        if self.fields:
            self.put(self.fields[min(self.fields, key=lambda w: abs(math.log(w / weight)))])
        found = fit_field(*self._arguments, weight=weight, **self._options)
        self.fits[weight] = found
        self.fields[weight] = self._parameter.detach().clone()
        if not found.converged and self._comm.rank == 0:
            log.warning("the fit at weight %.3g did not converge: %s", weight, found.stop)
        if self._callback is not None:
            with agreed(self._comm):
                self._callback(found)
        return found

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """α, L, R by rising α."""
        fits = [self.fits[w] for w in sorted(self.fits)]
        return tuple(np.array([getattr(f, name) for f in fits]) for name in ("weight", "misfit", "penalty"))  # type: ignore[return-value]


def _discrepancy(path: _Path, first: float, target: float, tolerance: float) -> float:
    """The weight at which L = target, up to the tolerance."""

    def excess(log_weight: float) -> float:
        off = math.log(path.fit(math.exp(log_weight)).misfit / target)
        return 0.0 if abs(off) <= tolerance else off  # Brent's method ends at a zero

    near = math.log(first)
    f_near = excess(near)
    if f_near == 0.0:
        return math.exp(near)
    step = -math.copysign(math.log(10.0), f_near)  # a misfit too large asks for less weight
    for _ in range(_DECADES):
        far = near + step
        f_far = excess(far)
        if f_far == 0.0:
            return math.exp(far)
        if f_far * f_near < 0.0:
            break
        stuck = abs(f_far - f_near) < _STUCK and (_near_reference(path, near, far) != (f_near > 0.0))
        near, f_near = far, f_far
        if stuck:
            break
    if f_far * f_near > 0.0:
        side, how = ("above", "small") if f_near > 0 else ("below", "large")
        advice = (
            "the noise is larger than noise_std says, or the model is wrong"
            if f_near > 0
            else "the data do not ask for any regularisation, or noise_std is too large"
        )
        raise ValueError(
            f"the misfit stays {side} {target:g} however {how} the weight ({math.exp(near):.1e}): {advice}"
        )
    low, high = min(near, far), max(near, far)
    root = optimize.brentq(excess, low, high, xtol=1e-6)
    return math.exp(root)


def _near_reference(path: _Path, one: float, other: float) -> bool:
    """Whether R falls like 1/α² between two log α a decade apart, as it does where m hardly leaves its reference.

    There a constant misfit says that more weight is of no use, elsewhere that less is.
    """
    a, b = (math.log(max(path.fit(math.exp(t)).penalty, 1e-300)) for t in (one, other))
    return abs(a - b) > _LIKE_SQUARE * abs(one - other)


def _curvatures(weights: np.ndarray, misfits: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Of (log L, log R) as a curve over log α, positive where it bends like an L; NaN at the ends."""
    t, x, y = np.log(weights), np.log(misfits), np.log(np.maximum(penalties, 1e-300))
    dx, dy = np.gradient(x, t), np.gradient(y, t)
    ddx, ddy = np.gradient(dx, t), np.gradient(dy, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        curvature = (dx * ddy - dy * ddx) / (dx**2 + dy**2) ** 1.5
    curvature[[0, -1]] = np.nan
    return curvature
