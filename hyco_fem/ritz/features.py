"""Neurons as trial functions, v = g + Σ_j w_j ψ_j with ψ_j = ℓ φ_j, and the quadratic form that E is on their weights.

    φ_j(x) = σ(a_j·x + b_j)  (`Ridge`)   or   φ_j(x) = exp(−|x − b_j|²/s²)  (`Radial`)

    E(g + Σ_j w_j ψ_j) = ½ wᵀA w − rᵀw + E(g)

ℓ vanishes on Γ_D, or is one.  Derivatives are closed forms: A costs one evaluation of the neurons at the points.

    trial = Trial(energy, distance=hf.mesh_distance(mesh))
    A, r, constant = gram(trial, Ridge(a, b, "tanh"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hyco_fem.models.synthetic import Activation, HardBoundary, ShallowNet, _activation
from hyco_fem.parallel import agreed, sum_over_ranks
from hyco_fem.ritz.energy import Jet, RitzEnergy, _scalar, value_and_gradient

# Numbers in an array of values of all neurons at some of the points: 16 MB.
_ENTRIES = 1 << 21


class Features(Protocol):
    """K functions φ_j with their gradients."""

    @property
    def count(self) -> int:
        """K."""

    def values(self, x: Tensor) -> Tensor:
        """(n, d) → (n, K)."""

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n, K) and gradients (n, K, d)."""

    def combined(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j w_j φ_j, (n,), and its gradient (n, d), without the gradients of each."""


def derivative(activation: Activation) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """z ↦ (σ(z), σ′(z)); in closed form for tanh, sigmoid, sin and relu, by autograd for others."""
    sigma = _activation(activation)  # a network knows its function, not the name of it
    if sigma is torch.tanh:
        return lambda z: ((s := torch.tanh(z)), 1.0 - s.square())
    if sigma is torch.sigmoid:
        return lambda z: ((s := torch.sigmoid(z)), s * (1.0 - s))
    if sigma is torch.sin:
        return lambda z: (torch.sin(z), torch.cos(z))
    if sigma is torch.relu:
        return lambda z: (torch.relu(z), (z > 0).to(z))

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad and keep else z.detach().requires_grad_()
            s = sigma(z)
            (slope,) = torch.autograd.grad(s.sum(), z, create_graph=keep)
        return (s, slope) if keep else (s.detach(), slope)

    return both


@dataclass(frozen=True)
class Ridge:
    """σ(a_j·x + b_j) with a (K, d), b (K,); differentiable in both."""

    a: Tensor
    b: Tensor
    activation: Activation = "tanh"

    @property
    def count(self) -> int:
        """K."""
        return len(self.b)

    def values(self, x: Tensor) -> Tensor:
        """(n, d) → (n, K)."""
        return _activation(self.activation)(x @ self.a.T + self.b)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n, K) and gradients σ′ a_j, (n, K, d)."""
        s, slope = derivative(self.activation)(x @ self.a.T + self.b)
        return s, slope[..., None] * self.a

    def combined(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j w_j φ_j, (n,), and its gradient (n, d)."""
        s, slope = derivative(self.activation)(x @ self.a.T + self.b)
        return s @ w, slope @ (w[:, None] * self.a)


@dataclass(frozen=True)
class Radial:
    """exp(−|x − b_j|²/s²) with centres b (K, d) and one width s; differentiable in b."""

    b: Tensor
    width: float

    @property
    def count(self) -> int:
        """K."""
        return len(self.b)

    def values(self, x: Tensor) -> Tensor:
        """(n, d) → (n, K)."""
        return torch.exp(-(x[:, None, :] - self.b).square().sum(-1) / self.width**2)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n, K) and gradients −2 (x − b_j)/s² φ_j, (n, K, d)."""
        G = self.values(x)
        return G, (-2.0 / self.width**2) * (x[:, None, :] - self.b) * G[..., None]

    def combined(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j w_j φ_j, (n,), and its gradient (n, d)."""
        G = self.values(x)
        v = G @ w
        return v, (-2.0 / self.width**2) * (x * v[:, None] - G @ (w[:, None] * self.b))


def features_of(network: ShallowNet) -> Ridge | Radial:
    """The neurons of a network."""
    if network.radial:
        return Radial(network.b, network.width)
    return Ridge(network.a, network.b, network._sigma)


class Quadratic(NamedTuple):
    """½ wᵀA w − rᵀw + constant; replicated."""

    A: Tensor
    r: Tensor
    constant: float

    def value(self, w: Tensor) -> Tensor:
        """At weights w (K,)."""
        return 0.5 * w @ (self.A @ w) - self.r @ w + self.constant

    def least(self, tikhonov: float = 0.0) -> Tensor:
        """The w that minimises value(w) + ½ tikhonov |w|²; by Cholesky, or least squares where A is singular."""
        A = self.A + tikhonov * torch.eye(len(self.r), dtype=self.A.dtype)
        L, info = torch.linalg.cholesky_ex(A)
        if int(info) == 0:
            return torch.cholesky_solve(self.r[:, None], L)[:, 0]
        # Singular up to rounding: leave out the directions that the energy does not see.
        values, vectors = torch.linalg.eigh(A)
        kept = values > len(values) * torch.finfo(A.dtype).eps * values[-1]
        vectors = vectors[:, kept]
        return vectors @ ((vectors.T @ self.r) / values[kept])


class Trial:
    """The trial functions g + ℓ N, with ℓ and g and their gradients at the points of an energy, once.

    Args:
        energy: E.
        distance: ℓ, (n, d) → (n,), zero on Γ_D: `mesh_distance(mesh)`; None for one.
        value: g, a number or a function of coordinates, as for `HardBoundary`.

    Raises:
        ValueError: without a penalty, functions of this form do not meet the values on Γ_D; on all ranks.

    Collective.
    """

    def __init__(
        self,
        energy: RitzEnergy,
        distance: Callable[[Tensor], Tensor] | None = None,
        value: float | Callable[[Tensor], Tensor] = 0.0,
    ) -> None:
        self.energy, self.distance, self.value = energy, distance, value
        with torch.no_grad():
            self.lift = _of_number(energy, value) if not callable(value) else energy.jet(value).detach()
            self.ell = None if distance is None else energy.jet(distance).detach()
        self.constant = energy._total(energy.of(self.lift))
        if energy.penalty is None and energy.fixed_area > 0:
            self._check_values()

    def _check_values(self) -> None:
        energy = self.energy
        there = torch.ones_like(energy.g) if self.ell is None else self.ell.fixed
        square = energy._total(energy.fixed.weights @ there.square()) / energy.fixed_area
        size = 1.0 if self.ell is None else energy._total(energy.weights @ self.ell.values.square()) / energy.volume
        missed, scale = energy.missed(self.lift), 1.0 + energy._total(energy.fixed.weights @ energy.g.square())
        with agreed(energy.comm):
            if square > 1e-12 * size:
                raise ValueError(
                    "these trial functions do not vanish on Γ_D, where the energy has no penalty: pass "
                    "distance=hyco_fem.mesh_distance(mesh, facets), or give the energy a penalty"
                )
            if missed > 1e-12 * scale:
                raise ValueError(
                    f"the trial functions miss the values g of the energy on Γ_D by {missed**0.5:.2e} in the mean "
                    "square: pass the same g to both, or give the energy a penalty"
                )

    def lifted(self, N: Jet) -> Jet:
        """g + ℓ N, from the jet of N."""
        g, ell = self.lift, self.ell
        if ell is None:
            return Jet(g.values + N.values, g.gradients + N.gradients, g.natural + N.natural, g.fixed + N.fixed)
        return Jet(
            g.values + ell.values * N.values,
            g.gradients + ell.values[:, None] * N.gradients + N.values[:, None] * ell.gradients,
            g.natural + ell.natural * N.natural,
            g.fixed + ell.fixed * N.fixed,
        )

    def of(self, features: Features, w: Tensor) -> Jet:
        """g + Σ_j w_j ψ_j; differentiable in w and in the parameters of the features.  Local."""
        values, gradients = features.combined(self.energy.x, w)
        natural, fixed = (features.values(rule.x) @ w for rule in (self.energy.natural, self.energy.fixed))
        return self.lifted(Jet(values, gradients, natural, fixed))

    def network(self, network: ShallowNet) -> ShallowNet | HardBoundary:
        """g + ℓ N as a module."""
        if self.distance is None and self.value == 0.0:
            return network
        return HardBoundary(network, self.distance or _one, self.value)

    def rows(self, features: Features) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of (R, y) with A = Σ RᵀR and r = Σ Rᵀy; √κ ∂_kψ, √η ψ, √β ψ on Γ_D are rows of R.  Local.

        What has no square in the energy, fv and hv, is in `_loads`.
        """
        energy, ell, g = self.energy, self.ell, self.lift
        chunk = max(1, _ENTRIES // (features.count * (energy.d + 1)))
        some_eta = bool((energy.eta > 0).any())
        for rows in torch.arange(len(energy.x)).split(chunk):
            psi, slopes = features.both(energy.x[rows])
            if ell is not None:
                slopes = ell.values[rows, None, None] * slopes + psi[..., None] * ell.gradients[rows, None, :]
                psi = ell.values[rows, None] * psi
            root = (energy.weights[rows] * energy.kappa[rows]).sqrt()
            for k in range(energy.d):
                yield root[:, None] * slopes[..., k], -root * g.gradients[rows, k]
            if some_eta:
                root = (energy.weights[rows] * energy.eta[rows]).sqrt()
                yield root[:, None] * psi, -root * g.values[rows]
        if energy.penalty is not None:
            for rows in torch.arange(len(energy.fixed)).split(chunk):
                psi = features.values(energy.fixed.x[rows])
                psi = psi if ell is None else ell.fixed[rows, None] * psi
                root = (energy.penalty * energy.fixed.weights[rows]).sqrt()
                yield root[:, None] * psi, root * (energy.g[rows] - g.fixed[rows])

    def loads(self, features: Features) -> Tensor:
        """∫ fψ_j dx + ∫_{Γ_N} hψ_j ds, (K,): this rank's summand."""
        energy, ell = self.energy, self.ell
        total = torch.zeros(features.count, dtype=torch.float64)
        inside, natural = energy.weights * energy.f, energy.natural.weights * energy.flux
        if ell is not None:
            inside, natural = inside * ell.values, natural * ell.natural
        chunk = max(1, _ENTRIES // features.count)
        for x, load in ((energy.x, inside), (energy.natural.x, natural)):
            for piece, part in zip(x.split(chunk), load.split(chunk), strict=True):
                total = total + part @ features.values(piece)
        return total


def gram(trial: Trial, features: Features) -> Quadratic:
    """A (K, K), r (K,) and E(g), replicated, in one reduction.  Collective.

    Points are gone through in pieces, so that memory does not grow with the mesh, unless a graph is kept: A and r are
    differentiable in the parameters of the features, and each rank gets its part of a gradient.
    """
    K = features.count
    A, r = torch.zeros(K, K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)
    with agreed(trial.energy.comm):
        for R, y in trial.rows(features):
            A, r = A + R.T @ R, r + R.T @ y
        r = r + trial.loads(features)
    packed = sum_over_ranks(torch.cat([A.reshape(-1), r]), trial.energy.comm)
    return Quadratic(packed[: K * K].reshape(K, K), packed[K * K :], trial.constant)


def trial_of(energy: RitzEnergy, network: HardBoundary) -> Trial:
    """The trial functions of a network with hard boundary values.  Collective."""
    return Trial(energy, network.distance, network.value)


def _of_number(energy: RitzEnergy, value: float) -> Jet:
    """The jet of a constant."""
    return Jet(
        torch.full_like(energy.f, float(value)),
        torch.zeros_like(energy.x),
        torch.full_like(energy.flux, float(value)),
        torch.full_like(energy.g, float(value)),
    )


def _one(x: Tensor) -> Tensor:
    return torch.ones_like(x[:, 0])


def inner_jet(trial: Trial, network: Callable[[Tensor], Tensor]) -> Jet:
    """The jet of N, at the points of the trial's energy.  Local."""
    energy = trial.energy
    values, gradients = value_and_gradient(network, energy.x)
    natural, fixed = (_scalar(network(rule.x), rule.x) for rule in (energy.natural, energy.fixed))
    return Jet(values, gradients, natural, fixed)
