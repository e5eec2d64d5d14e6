"""The K-neuron ansatz: the energy minimised over  M_K = {g + ℓ Σ_{j≤K} w_j φ_j},  of dimension K(d + 2).

M_K is no vector space, and E on it is not convex: a fit is the best of several starts, and the spread belongs to it.
But E is quadratic in the weights w.  By variable projection (Golub, Pereyra, SIAM J. Numer. Anal. 10 (1973)) they are
eliminated, w(a, b) = (A + αI)⁻¹ r, and the reduced energy

    Ê(a, b) = min_w E(g + Σ_j w_j ψ_j) + ½α|w|²,     ∇Ê(a, b) = ∂E/∂(a, b) at w = w(a, b),

is minimised by L-BFGS.  ∂w/∂(a, b) is not needed, since ∂/∂w vanishes at w(a, b).  α > 0 makes up for what the ansatz
lacks: two neurons that run into each other have weights that grow without bound while E falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.game.answers import LBFGS
from hyco_fem.game.player import Answer, Player
from hyco_fem.models.synthetic import Activation, HardBoundary, ShallowNet, bounding_box
from hyco_fem.parallel import agreed
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.features import Features, Quadratic, Radial, Ridge, Trial, features_of, gram

# α relative to the mean diagonal of A, where the user gives none: it bounds the condition, and costs E no digit that
# the quadrature would have.
_RELATIVE = 1e-10


@dataclass(frozen=True)
class ShallowFits:
    """What came of each start.  Replicated.

    energies: E at the end, (starts,), without the Tikhonov term, on a quadrature finer than that of the fit; NaN where
        a start failed.
    fitted: the same on the quadrature of the fit: lower where neurons have become steep between its points.
    weights: |w| there, (starts,).  networks: a module each, or None where it failed.
    tikhonov: α.
    """

    energies: np.ndarray
    fitted: np.ndarray
    weights: np.ndarray
    networks: list[ShallowNet | HardBoundary | None]
    tikhonov: float

    @property
    def best(self) -> ShallowNet | HardBoundary:
        """The network of least energy."""
        found = self.networks[int(np.nanargmin(self.energies))]
        assert found is not None
        return found

    @property
    def failures(self) -> int:
        """Starts that led to no finite energy."""
        return sum(network is None for network in self.networks)

    @property
    def median(self) -> float:
        """The median of the energies."""
        return float(np.nanmedian(self.energies))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the energies."""
        low, high = np.nanpercentile(self.energies, [25, 75])
        return float(low), float(high)


def fit_shallow(
    energy: RitzEnergy,
    neurons: int,
    *,
    activation: Activation = "tanh",
    distance: Callable[[Tensor], Tensor] | None = None,
    g: float | Callable[[Tensor], Tensor] = 0.0,
    starts: int = 10,
    steps: int = 200,
    tikhonov: float | None = None,
    width: float | None = None,
    box: np.ndarray | None = None,
    seed: int = 0,
    projected: bool = True,
    answer: Answer | None = None,
) -> ShallowFits:
    """Minimise E over K neurons, from several starts.  Collective.

    Args:
        energy: E.
        neurons: K.
        activation: As for `ShallowNet`: "gaussian" is the radial ansatz, with the width s = `width` of all neurons.  By
            default s is the spacing of K centres, and M_K does not lie in M_{K+1}: to compare different K, give one.
        distance, g: The trial functions are g + ℓN, see `HardBoundary`.  With distance=None and g = 0 they are N, and
            the energy needs a penalty where it has a Γ_D.
        starts: How many, drawn from `seed` in `box`, by default that of the mesh.
        steps: Iterations of L-BFGS, each with one evaluation of A or a few.
        tikhonov: α; by default 1e-10 of the mean diagonal of A at the first start.
        projected: Whether w is eliminated.  False: (a, b, w) are moved together, as for any network, for comparison.
        answer: By which the parameters are moved, in the place of L-BFGS.

    Raises:
        ValueError: arguments that do not fit; trial functions that miss the values on Γ_D; on all ranks.
        FloatingPointError: every start failed.
    """
    comm = energy.comm
    with agreed(comm):
        for name, value, least in (("neurons", neurons, 1), ("starts", starts, 1), ("steps", steps, 1)):
            if int(value) != value or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")
        if tikhonov is not None and not 0 <= tikhonov < float("inf"):
            raise ValueError(f"tikhonov must be finite and not negative, not {tikhonov}")
    trial = Trial(energy, distance, g)
    box = bounding_box(energy.mesh) if box is None else box
    with agreed(comm):
        networks = [
            ShallowNet(energy.d, neurons=int(neurons), activation=activation, box=box, width=width, seed=s)
            for s in _seeds(seed, int(starts))
        ]
    if tikhonov is None:
        with torch.no_grad():
            tikhonov = _RELATIVE * float(gram(trial, features_of(networks[0])).A.diagonal().mean())
    answer = answer or LBFGS(steps=int(steps), memory=50)
    energies, fitted, weights = np.full((3, len(networks)), np.nan)
    finer = energy.finer()
    found: list[ShallowNet | HardBoundary | None] = []
    for k, network in enumerate(networks):
        fit = ProjectedFit(trial, network, tikhonov, projected)
        try:
            fit.run(answer)
        except FloatingPointError:  # on all ranks, which have the same numbers
            found.append(None)
            continue
        fitted[k], weights[k] = fit.energy(), float(network.w.detach().norm())
        made = trial.network(network) if np.isfinite(fitted[k]) else None
        if made is not None:
            energies[k] = finer.value(made)
        found.append(made)
    if all(network is None for network in found):
        raise FloatingPointError(
            f"none of the {len(found)} starts led to a finite energy; check the energy and the box"
        )
    return ShallowFits(energies, fitted, weights, found, tikhonov)


class ProjectedFit:
    """The reduced energy of one network, and its minimisation.

    What is moved has no unit: with x = c + L x̂, c the centre and L the mean edge of the mesh's box, the parameters are
    those of neurons of x̂, and the objective is divided by what the start gains over g.  So a fit does not depend on the
    unit of length, nor on that of u.

    Args:
        trial: g and ℓ.  network: whose a, b and w are moved, in place, when `run` has ended.  tikhonov: α.
        projected: Whether w follows a and b.
    """

    def __init__(self, trial: Trial, network: ShallowNet, tikhonov: float = 0.0, projected: bool = True) -> None:
        self.trial, self.network, self.tikhonov, self.projected = trial, network, tikhonov, projected
        lower, upper = bounding_box(trial.energy.mesh)
        self._centre = torch.from_numpy((lower + upper) / 2.0)
        self._extent = float(np.prod(upper - lower) ** (1.0 / len(lower)))
        self._unit = 1.0
        with torch.no_grad():
            if network.radial:
                moved = {"b": (network.b - self._centre) / self._extent}
            else:
                moved = {"a": network.a * self._extent, "b": network.b + network.a @ self._centre}
        self._moved = {name: nn.Parameter(value) for name, value in moved.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that are moved: a and b of x̂, and w where it is not eliminated."""
        return self._moved if self.projected else {**self._moved, "w": self.network.w}

    def features(self) -> Features:
        """The neurons as they are now, functions of x; differentiable in the parameters."""
        if self.network.radial:
            return Radial(self._centre + self._extent * self._moved["b"], self.network.width)
        a = self._moved["a"] / self._extent
        return Ridge(a, self._moved["b"] - a @ self._centre, self.network._sigma)

    def objective(self) -> Tensor:
        """This rank's summand of Ê(a, b), or of E + ½α|w|², in units of what the start gains.  Collective."""
        if self.projected:
            self.project()
        w = self.network.w.detach() if self.projected else self.network.w
        comm = self.trial.energy.comm
        local = self.trial.energy.of(self.trial.of(self.features(), w))
        if comm.rank == 0:
            local = local + 0.5 * self.tikhonov * w.square().sum()
        return local / self._unit

    def project(self) -> None:
        """Set w to the minimiser w(a, b).  Collective."""
        comm = self.trial.energy.comm
        with torch.no_grad():
            form = gram(self.trial, self.features())
            self.network.w.copy_(_least(form, self.tikhonov))
            # One rank's numbers: an eigensolver need not round alike on another processor.
            if comm.size > 1:
                comm.Bcast(self.network.w.detach().numpy(), root=0)

    def run(self, answer: Answer) -> None:
        """Move the parameters.  Raises FloatingPointError where E is not finite.  Collective."""
        with torch.no_grad():
            form = gram(self.trial, self.features())
            gain = form.constant - form.value(_least(form, self.tikhonov))
        # One rank's number, for the same reason.
        gain = float(self.trial.energy.comm.bcast(float(gain)))
        self._unit = gain if 0.0 < gain < math.inf else 1.0
        Player("neurons", self.parameters(), answer, self.trial.energy.comm).answer_to(self.objective)
        if self.projected:
            self.project()
        found = self.features()
        with torch.no_grad():
            for name in self._moved:
                getattr(self.network, name).copy_(getattr(found, name))

    def energy(self) -> float:
        """E, without the Tikhonov term.  Collective."""
        energy = self.trial.energy
        with torch.no_grad():
            return energy._total(energy.of(self.trial.of(self.features(), self.network.w)))


def _least(form: Quadratic, tikhonov: float) -> Tensor:
    """w, NaN where the form is not finite."""
    if not bool(torch.isfinite(form.A).all() and torch.isfinite(form.r).all()):
        return torch.full_like(form.r, torch.nan)
    return form.least(tikhonov)


def _seeds(seed: int, n: int) -> list[int]:
    """A seed for each start."""
    return [int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(n)]
