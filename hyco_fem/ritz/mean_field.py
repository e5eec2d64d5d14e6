"""The mean-field relaxation of the K-neuron ansatz: a convex problem over measures on the parameters of a neuron.

    v_μ = g + ∫ ψ_θ/‖ψ_θ‖_E dμ(θ),    min_μ E(v_μ) + λ‖μ‖_TV

v_μ is linear in μ, so the problem is convex, which it is not in the weights and places of K neurons; λ gives it the
coercivity that the ansatz lacks (`coercivity.py`).  Atoms are normalised in the energy norm, so that ‖μ‖_TV bounds
‖v_μ − g‖_E, and λ has the unit of an energy norm.  No λ ≥ max_θ |dE(g)[ψ_θ]|/‖ψ_θ‖ lets any atom in.

1. A dictionary of random atoms: the problem over its weights is solved to a guaranteed duality gap (`lasso.py`).
2. Growing, as in the conditional gradient method: atoms where |dE(v)[ψ]|/‖ψ‖ > λ, from a random search and local
   ascent, enter the dictionary, and it is solved again.
3. Moving: places and weights together go down the same objective; the moved atoms enter, and it is solved again.
4. Pruning: atoms without weight go, and near ones are made one where that keeps the gap.

All atoms are kept in the dictionary, so that the objective never rises, and the gap at the end is one over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyco_fem.models.synthetic import Activation, HardBoundary, ShallowNet, bounding_box
from hyco_fem.parallel import agreed
from hyco_fem.ritz.atoms import AtomSpace, Pool, moved, search
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.features import Trial
from hyco_fem.ritz.lasso import LassoError, Sparse, certified, lasso, lasso_on_all

# Atoms nearer than this in the energy norm (of unit atoms) are tried as one, then those nearer than a tenth of it, …
_NEAR = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Stage:
    """One solution on the way.

    step: "dictionary", "grown", "moved" or "pruned".  dictionary: atoms to choose from; atoms: with weight.
    tv: ‖μ‖_TV.  energy: E(v).  objective: E(v) + λ‖μ‖_TV.  gap: E(v) + λ‖μ‖_TV less at most this, relative to what the
    measure gains, E(g) − E(v) − λ‖μ‖_TV, is the least over the dictionary.
    """

    step: str
    dictionary: int
    atoms: int
    tv: float
    energy: float
    objective: float
    gap: float


@dataclass(frozen=True)
class MeanFieldFit:
    """A measure and its field; replicated.

    Attributes:
        network: v as a module: a ShallowNet of the atoms, in a HardBoundary where ℓ or g were given.
        gap: Relative duality gap over all atoms of the dictionary, guaranteed up to rounding.
        continuous_gap: The same over all atoms there are, if the largest correlation that the last search found is the
            largest of all, which is not guaranteed; second-order terms are estimated by the dictionary.
        largest: That correlation relative to λ: one at a solution.
        atoms, tv, energy, objective: as in `Stage`, at the end.
        checked: E(v) on a finer quadrature; above `energy` where atoms are too steep for that of the fit.
        weights: c, (atoms,), Σ|c| = tv.  history: one row for each stage.
    """

    network: ShallowNet | HardBoundary
    gap: float
    continuous_gap: float
    largest: float
    atoms: int
    tv: float
    energy: float
    checked: float
    objective: float
    weights: np.ndarray
    history: list[Stage]


def mean_field(
    energy: RitzEnergy,
    *,
    penalty_tv: float,
    activation: Activation = "tanh",
    distance: Callable[[Tensor], Tensor] | None = None,
    g: float | Callable[[Tensor], Tensor] = 0.0,
    dictionary: int = 256,
    growth: int = 2,
    moves: int = 50,
    candidates: int = 256,
    ascents: int = 8,
    seed: int = 0,
    box: Any = None,
    slopes: tuple[float, float] = (1.0, 16.0),
    width: float | None = None,
    tolerance: float = 1e-6,
) -> MeanFieldFit:
    """Minimise E(v_μ) + λ‖μ‖_TV.

    Args:
        energy: E.
        penalty_tv: λ, in the unit of an energy norm: v is then further from the minimiser of E, the larger it is.
        activation: σ of the ridge functions, or "gaussian" for radial ones.
        distance, g: ℓ and g, as for `HardBoundary`; without ℓ the energy needs a penalty, or no Γ_D.
        dictionary: Random atoms to begin with.
        growth: At most so many rounds of growing and moving, which end where `continuous_gap` is below the tolerance;
            none: the dictionary alone.
        moves: Steps of L-BFGS in each round; none: atoms stay where they are.
        candidates, ascents: Random draws in each search, and how many of them are moved uphill.
        seed: Of all draws.
        box, slopes, width: Of the atoms, see `AtomSpace`; the box is that of the mesh by default.
        tolerance: Relative duality gap, also of what pruning may cost.

    Raises:
        ValueError: a number is out of its range, or the atoms do not meet the values on Γ_D; on all ranks.
        LassoError: the gap was not reached; on all ranks.

    Collective.
    """
    counts = {"dictionary": (dictionary, 1), "growth": (growth, 0), "moves": (moves, 0), "candidates": (candidates, 1)}
    corners = bounding_box(energy.mesh) if box is None else box
    with agreed(energy.comm):
        for name, (count, least) in (counts | {"ascents": (ascents, 1)}).items():
            if count != int(count) or count < least:
                raise ValueError(f"{name} must be a whole number from {least} on, not {count}")
        if not 0 < penalty_tv < math.inf:
            raise ValueError(
                f"penalty_tv must be positive and finite, not {penalty_tv}: without it nothing bounds the measure"
            )
        if not 0 < tolerance < 1:
            raise ValueError(f"the tolerance is a relative gap between 0 and 1, not {tolerance}")
        space = AtomSpace(energy.d, activation, corners, slopes, width)
    trial = Trial(energy, distance, g)
    run = _Run(Pool(trial, space), penalty_tv, tolerance)
    rng = np.random.default_rng(seed)
    run.take("dictionary", space.draw(dictionary, rng))

    def look() -> tuple[Tensor, float]:
        return search(trial, space, *run.active(), rng, candidates=candidates, ascents=ascents, steps=max(10, moves))

    found, largest = look()
    for _ in range(growth):
        if run.continuous(largest) <= tolerance:
            break
        run.take("grown", found)
        if moves > 0 and len(run.now.support):
            run.take("moved", moved(trial, space, *run.few(), penalty_tv, moves))
        found, largest = look()
    if run.prune():
        _, largest = look()
    return run.result(largest)


class _Run:
    """The dictionary and the present solution on it."""

    def __init__(self, pool: Pool, penalty: float, tolerance: float) -> None:
        self.pool, self.penalty, self.tolerance = pool, penalty, tolerance
        self.comm = pool.trial.energy.comm
        self.history: list[Stage] = []
        self.now = Sparse(np.empty(0), 0.0, 0.0, 0.0, np.empty(0, dtype=int))

    def take(self, step: str, theta: Tensor) -> None:
        """Add atoms and solve.  Collective."""
        self.pool.add(theta)
        A, b = self.pool.A, self.pool.b
        self.now = lasso_on_all(self.comm, lambda: lasso(A, b, self.penalty, tolerance=self.tolerance))
        self._tell(step)

    def active(self) -> tuple[Tensor, Tensor]:
        """Atoms with weight, and the weights w of the neurons."""
        S = self.now.support
        return self.pool.theta[torch.from_numpy(S)], torch.from_numpy(self.now.c[S] / self.pool.norms[S])

    def few(self) -> tuple[Tensor, np.ndarray]:
        """Atoms, with their weights, of a solution that is pruned: twins would move together.  Collective."""
        few = lasso_on_all(self.comm, self._pruned)
        return self.pool.theta[torch.from_numpy(few.support)], few.c[few.support]

    def prune(self) -> bool:
        """Fewer atoms, where that keeps the gap over the dictionary within the tolerance; whether so.  Collective."""
        before = len(self.now.support)
        self.now = lasso_on_all(self.comm, self._pruned)
        self._tell("pruned")
        return len(self.now.support) < before

    def _pruned(self) -> Sparse:
        A, b, now = self.pool.A, self.pool.b, self.now
        for near in _NEAR:
            S = _merged(A, now.c, now.support, near)
            if len(S) == len(now.support):
                continue
            c = np.zeros(len(b))
            try:
                c[S] = lasso(A[np.ix_(S, S)], b[S], self.penalty, tolerance=self.tolerance).c
            except (LassoError, ValueError):  # b is not in the span of so few
                continue
            found = certified(A, b, self.penalty, c)
            if found.gap <= self.tolerance:
                return found
        return now

    def result(self, largest: float) -> MeanFieldFit:
        """At the end; `largest`: of the correlations that a search has found."""
        pool, last = self.pool, self.history[-1]
        network = pool.trial.network(pool.space.network(*self.active()))
        c = self.now.c[self.now.support]
        return MeanFieldFit(
            network,
            last.gap,
            self.continuous(largest),
            largest / self.penalty,
            last.atoms,
            last.tv,
            last.energy,
            pool.trial.energy.finer().value(network),
            last.objective,
            c,
            self.history,
        )

    def continuous(self, largest: float) -> float:
        """The gap by the dual point s(u − v), s = λ/largest, with ‖u − v‖² from the dictionary.

        λ|c|₁ − cᵀρ + (1 − s) cᵀρ + ½(1 − s)²‖u − v‖²: as in `lasso.py`, with t = 1 − s and the minimiser u for c₀.
        """
        A, b, c, penalty = self.pool.A, self.pool.b, self.now.c, self.penalty
        Ac = A @ c
        largest = max(largest, float(np.abs(b - Ac).max()))
        if self.now.objective == 0.0:
            return 0.0 if largest <= penalty else math.inf
        t = max(0.0, 1.0 - penalty / largest)
        least = np.linalg.lstsq(A, b, rcond=1e-13)[0]
        distance = max(float(b @ least - 2.0 * (b @ c) + c @ Ac), 0.0)
        gap = penalty * self.now.tv - c @ (b - Ac) + t * (c @ (b - Ac)) + 0.5 * t * t * distance
        return max(float(gap), 0.0) / abs(self.now.objective)

    def _tell(self, step: str) -> None:
        now, constant = self.now, self.pool.trial.constant
        energy = constant + now.objective - self.penalty * now.tv
        self.history.append(
            Stage(step, len(self.pool), len(now.support), now.tv, energy, constant + now.objective, now.gap)
        )


def _merged(A: np.ndarray, c: np.ndarray, support: np.ndarray, near: float) -> np.ndarray:
    """The support without atoms that are near another one of more weight, up to sign."""
    order = support[np.argsort(-np.abs(c[support]), kind="stable")]
    kept: list[int] = []
    for j in order:
        if not kept or 2.0 - 2.0 * np.abs(A[j, kept]).max() > near**2:
            kept.append(int(j))
    return np.sort(np.array(kept, dtype=int))
