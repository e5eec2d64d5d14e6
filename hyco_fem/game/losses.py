"""What the two players minimise (Liverani, Steynberg, Zuazua, arXiv 2509.14123).

J_phy(θ; φ) = a₁ L_phy(θ) + b₁ I(θ, φ)  [+ c₁ |(θ − mean)/std|² / n, where there is a prior; n sensors]
J_syn(φ; θ) = a₂ L_syn(φ) + b₂ I(θ, φ) + c |φ|²
L_m = mean_i |u_m(x_i) − y_i|² / σ_i²,   I = Σ_g ω_g |u_phy(g) − u_syn(g)|²,  Σ ω_g = 1
P   = (a₁/b₁) L_phy + (a₂/b₂) L_syn + (c/b₂) |φ|² + I      the potential of the game
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hyco_fem.bridge.ghosts import GhostPoints
from hyco_fem.bridge.points import Points
from hyco_fem.game.data import Data
from hyco_fem.models.experiments import Scenario
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import check_steady
from hyco_fem.parallel import agreed


@dataclass(frozen=True)
class Weights:
    """a₁, b₁ of the physical and a₂, b₂ of the synthetic player; c = decay, the weight decay of the network.

    Not negative.  a₁ = 0: the solver sees no data.  prior: c₁, which has a say only where the game has a `Prior`.

    Raises:
        ValueError: a weight is negative or not finite, or a player would have nothing to minimise.
    """

    a1: float = 1.0
    b1: float = 1.0
    a2: float = 1.0
    b2: float = 1.0
    decay: float = 0.0
    prior: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"the weight {name} must be finite and not negative, not {value}")
        if self.a1 == self.b1 == self.a2 == self.b2 == 0:
            raise ValueError("all weights are zero: there is nothing to minimise")
        if self.a1 == self.b1 == 0:
            raise ValueError("a1 and b1 are both zero: the physical player has nothing to minimise")
        if self.a2 == self.b2 == 0:
            raise ValueError("a2 and b2 are both zero: the synthetic player has nothing to minimise")

    @property
    def has_potential(self) -> bool:
        """Whether both players see each other: only then is there a potential."""
        return self.b1 > 0 and self.b2 > 0

    def potential(
        self,
        misfit_physical: float,
        misfit_synthetic: float,
        interaction: float,
        norm: float = 0.0,
        surprise: float = 0.0,
    ) -> float:
        """P at given losses, |φ|² and |(θ − mean)/std|²/n; NaN where b₁ or b₂ is zero: there is then no potential."""
        if not self.has_potential:
            return math.nan
        own = self.a1 / self.b1 * misfit_physical + self.a2 / self.b2 * misfit_synthetic
        return own + interaction + self.decay / self.b2 * norm + self.prior / self.b1 * surprise

    def joint(self) -> Weights:
        """Weights that make the sum J = a₁ L_phy + a₂ L_syn + I + c |φ|² the potential itself.

        Raises ValueError where there is none.
        """
        if not self.has_potential:
            raise ValueError(f"there is no potential with b1={self.b1} and b2={self.b2}; both must be positive")
        return replace(
            self,
            a1=self.a1 / self.b1,
            b1=1.0,
            a2=self.a2 / self.b2,
            b2=1.0,
            decay=self.decay / self.b2,
            prior=self.prior / self.b1,
        )


def network_values(network: nn.Module, x: Tensor) -> Tensor:
    """Values of the synthetic model at x (n, d), checked: (n,) or (n, outputs) in float64.

    Raises:
        TypeError, ValueError: the network does not fit.
    """
    values = network(x)
    if values.dtype != torch.float64:
        raise TypeError(
            f"the synthetic model returned {values.dtype}; hyco_fem computes in float64: call .double() on it"
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if len(values) != len(x):
        raise ValueError(f"the synthetic model returned shape {tuple(values.shape)} for {len(x)} points")
    return values


def local_interaction(physical: Tensor, synthetic: Tensor, ghosts: GhostPoints | Points) -> Tensor:
    """This rank's summand of I, from both models' values at the ghost points owned here."""
    if physical.shape != synthetic.shape:
        raise ValueError(
            f"the models differ in shape at the ghost points: physical {tuple(physical.shape)}, synthetic "
            f"{tuple(synthetic.shape)}; give the network as many outputs as the field has components"
        )
    square = (physical - synthetic).square()
    return ghosts.weights @ (square if square.ndim == 1 else square.sum(1))


def scenario_misfit(physical: PhysicalModel, scenarios: Sequence[Scenario]) -> Tensor:
    """This rank's summand of Σ_s L_s(θ): the misfits of several experiments on one θ.  Collective.

    Raises:
        ValueError: a scenario without data; on all ranks.
    """
    with agreed(physical.comm):
        check_steady(physical, "a misfit of scenarios")
        for number, scenario in enumerate(scenarios):
            if not isinstance(scenario.data, Data):
                raise ValueError(f"scenario {number} has no data to be fitted to; pass data=hyco_fem.Data(…)")
    u = physical.solve_scenarios(scenarios)
    parts = [
        s.data.local_misfit(s.data.points.evaluate(row, physical.observed)) for s, row in zip(scenarios, u, strict=True)
    ]
    return torch.stack(parts).sum()
