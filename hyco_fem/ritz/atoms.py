"""Atoms of the mean-field relaxation: neurons ψ = ℓφ, drawn at random, normalised in the energy norm, and searched for.

The measure μ = Σ_j c_j δ_{θ_j} stands for v = g + Σ_j c_j ψ_j/‖ψ_j‖_E, and ‖μ‖_TV = Σ_j |c_j|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyco_fem.models.synthetic import Activation, ShallowNet, _corners
from hyco_fem.parallel import agreed, sum_array, sum_over_ranks
from hyco_fem.ritz.descent import lowered
from hyco_fem.ritz.features import Radial, Ridge, Trial, gram

# Atoms whose energy norm is below this, relative to the largest, are left out: the energy does not see them.
_UNSEEN = 1e-8


@dataclass(frozen=True)
class AtomSpace:
    """The parameters θ of atoms: (a, b) of σ(a·x + b), or the centre b of exp(−|x − b|²/s²).

    Args:
        d: Dimension of x.  activation: σ, or "gaussian".
        box: Corners (2, d) of the region over which atoms are spread.
        slopes: Least and largest |a| L, with L the mean edge of the box; ridge functions change over 1/|a|.
        width: s; of Gaussians.
    """

    d: int
    activation: Activation
    box: Any
    slopes: tuple[float, float] = (1.0, 16.0)
    width: float | None = None

    def __post_init__(self) -> None:
        lower, _ = _corners(self.box)
        if len(lower) != self.d:
            raise ValueError(f"the box has dimension {len(lower)}, the mesh {self.d}")
        if not 0 < self.slopes[0] < self.slopes[1] < np.inf:
            raise ValueError(f"slopes are 0 < least < largest, not {self.slopes}")
        if self.width is not None and not 0 < self.width < np.inf:
            raise ValueError(f"width must be positive and finite, not {self.width}")
        if self.width is not None and not self.radial:
            raise ValueError(f"width is for activation='gaussian', not for {self.activation!r}; leave it out")
        if self.radial and self.slopes != AtomSpace.slopes:
            raise ValueError("slopes are of ridge functions, and Gaussians have none: give a width instead")

    @property
    def radial(self) -> bool:
        """Whether atoms are Gaussians."""
        return self.activation == "gaussian"

    @property
    def extent(self) -> float:
        """L."""
        lower, upper = _corners(self.box)
        return float(np.prod(upper - lower) ** (1.0 / self.d))

    @property
    def s(self) -> float:
        """The width of Gaussians: a quarter of L by default."""
        return self.extent / 4.0 if self.width is None else float(self.width)

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """n atoms, (n, d + 1) or (n, d): centres even over the box, directions too, and |a| even in its logarithm."""
        lower, upper = _corners(self.box)
        centres = rng.uniform(lower, upper, size=(n, self.d))
        if self.radial:
            return torch.from_numpy(centres)
        a = rng.standard_normal((n, self.d))
        least, largest = (math.log(slope) for slope in self.slopes)
        size = np.exp(rng.uniform(least, largest, size=(n, 1))) / self.extent
        a *= size / np.linalg.norm(a, axis=1, keepdims=True)
        return torch.from_numpy(np.column_stack([a, -(a * centres).sum(axis=1)]))

    def features(self, theta: Tensor) -> Ridge | Radial:
        """The functions φ."""
        if self.radial:
            return Radial(theta, self.s)
        return Ridge(theta[:, : self.d], theta[:, self.d], self.activation)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where atoms may move: |a_i| L up to the largest slope, their zero lines across the box; or a box wider by s.

        Without bounds steep atoms would exploit the quadrature.
        """
        lower, upper = _corners(self.box)
        if self.radial:
            return lower - self.s, upper + self.s
        steepest = np.full(self.d, self.slopes[1] / self.extent)
        reach = float(steepest @ np.maximum(np.abs(lower), np.abs(upper)))
        return np.append(-steepest, -reach), np.append(steepest, reach)

    def network(self, theta: Tensor, w: Tensor) -> ShallowNet:
        """Σ_j w_j φ_j; of one neuron of weight zero where there are none."""
        if len(w) == 0:
            theta, w = self.draw(1, np.random.default_rng(0)), torch.zeros(1, dtype=torch.float64)
        net = ShallowNet(
            self.d, neurons=len(w), activation=self.activation, box=self.box, width=self.s if self.radial else None
        )
        with torch.no_grad():
            net.w.copy_(w)
            net.b.copy_(theta if self.radial else theta[:, self.d])
            if not self.radial:
                net.a.copy_(theta[:, : self.d])
        return net


class Pool:
    """A growing dictionary with the Gram matrix of its normalised atoms; replicated.

    Attributes:
        theta: (K, p).  norms: ‖ψ_j‖_E.  A, b: ⟨ψ_i, ψ_j⟩_E and −dE(g)[ψ_j] of the normalised atoms.
    """

    def __init__(self, trial: Trial, space: AtomSpace) -> None:
        self.trial, self.space = trial, space
        self.theta = torch.empty((0, space.d if space.radial else space.d + 1), dtype=torch.float64)
        self.norms: np.ndarray = np.empty(0)
        self.A: np.ndarray = np.empty((0, 0))
        self.b: np.ndarray = np.empty(0)

    def __len__(self) -> int:
        """K."""
        return len(self.theta)

    def add(self, theta: Tensor) -> None:
        """Take in atoms, but for those that the energy does not see, with their products with all.  Collective."""
        p, comm = len(theta), self.trial.energy.comm
        if p == 0:
            return
        every = self.space.features(torch.cat([theta, self.theta]))
        rows: np.ndarray = np.zeros((p, every.count))
        b: np.ndarray = np.zeros((p, 1))
        with torch.no_grad(), agreed(comm):
            for R, y in self.trial.rows(every):
                rows += (R[:, :p].T @ R).numpy()
                b[:, 0] += (R[:, :p].T @ y).numpy()
            b[:, 0] += self.trial.loads(self.space.features(theta)).numpy()
        rows, b = np.split(sum_array(comm, np.column_stack([rows, b])), [every.count], axis=1)
        norms = np.sqrt(np.maximum(np.diag(rows[:, :p]), 0.0))
        seen = np.flatnonzero(norms > _UNSEEN * max(norms.max(), self.norms.max(initial=0.0)))
        norms = norms[seen]
        among = rows[np.ix_(seen, seen)] / np.outer(norms, norms)
        across = rows[seen, p:] / np.outer(norms, self.norms)
        self.A = np.block([[self.A, across.T], [across, 0.5 * (among + among.T)]])
        self.b = np.append(self.b, b[seen, 0] / norms)
        self.norms = np.append(self.norms, norms)
        self.theta = torch.cat([self.theta, theta[torch.from_numpy(seen)]])


def correlations(trial: Trial, space: AtomSpace, theta: Tensor, active: Tensor, w: Tensor) -> Tensor:
    """−dE(v)[ψ]/‖ψ‖_E of atoms θ (p, ·), at v = g + Σ w ψ over the active ones; differentiable in θ.  Collective.

    It is ⟨u − v, ψ/‖ψ‖⟩_E with the minimiser u of E.
    """
    p = len(theta)
    every = space.features(torch.cat([theta, active]))
    residual, square = (torch.zeros(p, dtype=torch.float64) for _ in range(2))
    with agreed(trial.energy.comm):
        for R, y in trial.rows(every):
            residual = residual + R[:, :p].T @ (y - R[:, p:] @ w)
            square = square + R[:, :p].square().sum(0)
        residual = residual + trial.loads(space.features(theta))
    residual, square = sum_over_ranks(torch.stack([residual, square]), trial.energy.comm)
    return residual / square.sqrt().clamp_min(1e-150)


def search(
    trial: Trial,
    space: AtomSpace,
    active: Tensor,
    w: Tensor,
    rng: np.random.Generator,
    *,
    candidates: int,
    ascents: int,
    steps: int,
) -> tuple[Tensor, float]:
    """Atoms with large |correlation|, and the largest one found: random draws, the best of them moved uphill.

    Not guaranteed to find the largest of all: the correlation is not concave in θ.  Collective.
    """
    drawn = space.draw(candidates, rng)
    with torch.no_grad():
        seen = correlations(trial, space, drawn, active, w).abs()
    start = drawn[torch.argsort(seen, descending=True, stable=True)[:ascents]]

    def steepness(theta: Tensor) -> Tensor:
        """A sum over atoms, each by its logarithm, so that none matters more."""
        return -correlations(trial, space, theta, active, w).abs().clamp_min(1e-150).log().sum()

    found = lowered(steepness, start, trial.energy.comm, steps=steps, bounds=space.bounds())
    with torch.no_grad():
        reached = correlations(trial, space, found, active, w).abs()
    return found, float(torch.cat([reached, seen]).max())


def moved(trial: Trial, space: AtomSpace, theta: Tensor, c: np.ndarray, penalty: float, steps: int) -> Tensor:
    """θ (m, ·) after L-BFGS steps down E(v) + λ Σ|c_j| in positions and weights, each weight kept to its sign.

    The sliding step of the conditional gradient method (Denoyelle, Duval, Peyré, Soubies 2020; conic particle descent,
    Chizat 2022, has the same objective).  Atoms whose weight ends at zero are left out.  Collective.
    """
    signs, comm = torch.from_numpy(np.sign(c)), trial.energy.comm
    p = theta.shape[1]

    def objective(z: Tensor) -> Tensor:
        # Sums over ranks bring each rank its part of the gradient; what is replicated is shared out.
        place, size = z[:, :p], sum_over_ranks(z[:, p] / comm.size, comm)
        q = gram(trial, space.features(place))
        w = signs * size / q.A.diagonal().sqrt()
        return q.value(w) + penalty * size.sum()

    lower, upper = space.bounds()
    start = torch.cat([theta, torch.from_numpy(np.abs(c))[:, None]], dim=1)
    bounds = np.append(lower, 0.0), np.append(upper, np.inf)
    end = lowered(objective, start, comm, steps=steps, bounds=bounds)
    return end[end[:, p] > 0, :p]
