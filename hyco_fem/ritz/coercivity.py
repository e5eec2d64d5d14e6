"""Why minimisers need not exist in the K-neuron ansatz: two Gaussians that run into each other, and what stops them.

With G(x) = exp(−|x − c|²/s²) and a direction e,

    v_ε(x) = (1/ε) [G(x − εe) − G(x + εe)]  →  −2 ∂_e G    as ε → 0, at the rate ε² in H¹.

v_ε stays bounded in H¹ while its weights are ±1/ε, and the limit is no sum of two Gaussians: an energy that −2∂_eG
minimises has no minimiser w₁G(x − b₁) + w₂G(x − b₂), and descent makes the weights grow like 1/|b₁ − b₂|.

A Tikhonov term restores coercivity.  Near the limit the energy is above its infimum by C|b₁ − b₂|⁴, half the square of
the error ε², and both λ(|w₁|² + |w₂|²) and λ/|b₁ − b₂|² are of the order λ|b₁ − b₂|⁻²; the sum is least where

    |b₁ − b₂| ~ λ^{1/6},    |w_j| ~ λ^{−1/6},    and the energy is above its infimum by ~ λ^{2/3}.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.models.synthetic import ShallowNet
from hyco_fem.parallel import agreed, sum_over_ranks
from hyco_fem.ritz.descent import lowered
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.features import Radial, Trial


@dataclass(frozen=True)
class GaussianSlope:
    """u = −2 ∂_e G, the limit of v_ε, and the f with −Δu + u = f.

    Args:
        centre: c, (d,).  direction: e, (d,), of length one; the first axis by default.  width: s.
    """

    centre: Sequence[float] = (0.0,)
    direction: Sequence[float] | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise ValueError(f"width must be positive and finite, not {self.width}")
        if self.direction is not None:
            if len(self.direction) != len(self.centre):
                raise ValueError(f"the direction has dimension {len(self.direction)}, the centre {len(self.centre)}")
            if not math.isclose(float(np.linalg.norm(self.direction)), 1.0, rel_tol=1e-12):
                raise ValueError(f"the direction must have length one, not {np.linalg.norm(self.direction)}")

    @property
    def e(self) -> Tensor:
        """The direction."""
        first = np.eye(len(self.centre))[0]
        return torch.as_tensor(np.array(first if self.direction is None else self.direction, dtype=np.float64))

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """|x − c|²/s², e·(x − c)/s and G."""
        y = (x - torch.as_tensor(self.centre, dtype=torch.float64)) / self.width
        square = y.square().sum(1)
        return square, y @ self.e, torch.exp(-square)

    def __call__(self, x: Tensor) -> Tensor:
        """u, (n, d) → (n,)."""
        _, along, G = self._seen(x)
        return (4.0 / self.width) * along * G

    def source(self, x: Tensor) -> Tensor:
        """f = u − Δu, (n, d) → (n,)."""
        square, along, G = self._seen(x)
        d = len(self.centre)
        return (4.0 / self.width) * along * G * (1.0 + (2.0 * d + 4.0 - 4.0 * square) / self.width**2)

    def quotient(self, x: Tensor, eps: float) -> Tensor:
        """v_ε, (n, d) → (n,), without the cancellation of its two terms: (2/ε) exp(−(|y|² + ε²)/s²) sinh(2ε e·y/s²)."""
        square, along, _ = self._seen(x)
        h = eps / self.width
        t = 2.0 * h * along
        # Far from the middle one of the terms is nothing beside the other, and sinh too large a number.
        near = torch.exp(-square - h * h) * 2.0 * torch.sinh(t.clamp(-1.0, 1.0))
        far = torch.exp(-square - h * h + t) - torch.exp(-square - h * h - t)
        return torch.where(t.abs() <= 1.0, near, far) / eps


@dataclass(frozen=True)
class Family:
    """v_ε for each ε: arrays of one shape; replicated.

    eps: ε.  weights: 1/ε.  norms: ‖v_ε‖ in H¹.  distances: ‖v_ε − u‖ in H¹.  limit: ‖u‖ in H¹.
    """

    eps: np.ndarray
    weights: np.ndarray
    norms: np.ndarray
    distances: np.ndarray
    limit: float


def family(mesh: dmesh.Mesh, eps: Sequence[float], limit: GaussianSlope, *, degree: int = 8) -> Family:
    """Weights and H¹ norms of v_ε as ε → 0, by quadrature on a mesh.  Collective.

    Args:
        mesh: Ω, large enough and fine enough for the Gaussian.
        eps: Positive numbers.
        limit: −2 ∂_e G.
        degree: Of the quadrature.
    """
    sizes = np.asarray(eps, dtype=np.float64)
    with agreed(mesh.comm):
        if sizes.ndim != 1 or len(sizes) == 0 or not np.all((sizes > 0) & np.isfinite(sizes)):
            raise ValueError(f"eps must be positive finite numbers, not {eps}")
        _check_dimension(limit, mesh.geometry.dim)
    rule = CellQuadrature(mesh, degree)

    def norm(v: Any) -> float:
        with torch.no_grad():
            return math.sqrt(rule.integral(rule.values(v).square() + rule.gradients(v).square().sum(1)))

    norms = [norm(lambda x, h=h: limit.quotient(x, h)) for h in sizes]
    distances = [norm(lambda x, h=h: limit.quotient(x, h) - limit(x)) for h in sizes]
    return Family(sizes, 1.0 / sizes, np.array(norms), np.array(distances), norm(limit))


# -- a minimisation --------------------------------------------------------------------------------------------


class Tikhonov(Protocol):
    """A term of the weights w (2,) and centres b (2, d)."""

    def __call__(self, w: Tensor, b: Tensor) -> Tensor:
        """Its value."""


@dataclass(frozen=True)
class WeightTikhonov:
    """λ(|w₁|² + |w₂|²): bounds the weights."""

    strength: float

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def __call__(self, w: Tensor, b: Tensor) -> Tensor:
        """The value of the term."""
        return self.strength * w.square().sum()


@dataclass(frozen=True)
class DistanceTikhonov:
    """λ/|b₁ − b₂|²: keeps the atoms apart, and so bounds the weights."""

    strength: float

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def __call__(self, w: Tensor, b: Tensor) -> Tensor:
        """The value of the term."""
        return self.strength / (b[0] - b[1]).square().sum()


@dataclass(frozen=True)
class CoercivityRun:
    """A descent, from its start to its end, a row for each step; replicated.

    energies: E(v), without the term.  objectives: with it.  weights: (n, 2).  centres: (n, 2, d).
    distances: |b₁ − b₂|.  network: v at the end.
    """

    energies: np.ndarray
    objectives: np.ndarray
    weights: np.ndarray
    centres: np.ndarray
    distances: np.ndarray
    network: ShallowNet

    def slope(self, below: float) -> float:
        """d log |w| / d log |b₁ − b₂| over the steps with distances below a number: −1 where nothing stops them."""
        some = self.distances < below
        if np.count_nonzero(some) < 2:
            raise ValueError(
                f"fewer than two steps have a distance below {below}; the least is {self.distances.min():.3e}"
            )
        size = np.abs(self.weights[some]).mean(axis=1)
        return float(np.polyfit(np.log(self.distances[some]), np.log(size), 1)[0])


def minimise_pair(
    energy: RitzEnergy,
    tikhonov: Tikhonov | None = None,
    *,
    weights: Sequence[float] = (1.0, -0.8),
    centres: Any = ((1.5,), (-1.2,)),
    width: float = 1.0,
    steps: int = 300,
) -> CoercivityRun:
    """Minimise E(w₁G(x − b₁) + w₂G(x − b₂)) and a term over w and b, by L-BFGS.

    Args:
        energy: E, with natural boundary values or a penalty.
        tikhonov: The term: `WeightTikhonov`, `DistanceTikhonov`, or any function of (w, b); None for none.
        weights, centres: The start, (2,) and (2, d).
        width: s of both Gaussians; it stays.
        steps: At most; without a term there is no last one but by rounding.

    Raises ValueError on all ranks where the start has another shape.  Collective.
    """
    w0, b0 = np.asarray(weights, dtype=np.float64), np.asarray(centres, dtype=np.float64)
    with agreed(energy.comm):
        if w0.shape != (2,) or b0.shape != (2, energy.d):
            raise ValueError(f"a pair has weights (2,) and centres (2, {energy.d}), not {w0.shape} and {b0.shape}")
        if np.array_equal(b0[0], b0[1]):
            raise ValueError("the two centres must differ at the start: equal ones are one atom")
        if not 0 < width < math.inf:
            raise ValueError(f"width must be positive and finite, not {width}")
        if steps != int(steps) or steps < 1:
            raise ValueError(f"steps must be a whole number from 1 on, not {steps}")
    trial = Trial(energy)
    rows: list[tuple[float, float]] = []
    places = [torch.from_numpy(np.column_stack([w0, b0]))]

    def energy_at(z: Tensor) -> Tensor:
        with agreed(energy.comm):
            local = energy.of(trial.of(Radial(z[:, 1:], width), z[:, 0]))
        return sum_over_ranks(local, energy.comm)

    def term(z: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.float64) if tikhonov is None else tikhonov(z[:, 0], z[:, 1:])

    def objective(z: Tensor) -> Tensor:
        # The term is replicated: each rank has its share of the gradient, and of the value no more than it is.
        share = term(z) / energy.comm.size
        return energy_at(z) + sum_over_ranks(share, energy.comm)

    lowered(objective, places[0], energy.comm, steps=steps, tolerance=0.0, callback=places.append)
    with torch.no_grad():
        for z in places:
            value = float(energy_at(z))
            rows.append((value, value + float(term(z))))
    path = torch.stack(places).numpy()
    network = ShallowNet(energy.d, neurons=2, activation="gaussian", width=width)
    with torch.no_grad():
        network.w.copy_(places[-1][:, 0])
        network.b.copy_(places[-1][:, 1:])
    energies, objectives = np.array(rows).T
    distances = np.linalg.norm(path[:, 0, 1:] - path[:, 1, 1:], axis=1)
    return CoercivityRun(energies, objectives, path[:, :, 0], path[:, :, 1:], distances, network)


def _check_strength(strength: float) -> None:
    if not 0 < strength < math.inf:
        raise ValueError(f"the strength of a Tikhonov term must be positive and finite, not {strength}")


def _check_dimension(limit: GaussianSlope, d: int) -> None:
    if len(limit.centre) != d:
        raise ValueError(f"the Gaussian has a centre of dimension {len(limit.centre)}, the mesh has {d}")
