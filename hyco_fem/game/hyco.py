"""Hybrid-cooperative learning: the game of the physical and the synthetic player, in rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.bridge.ghosts import GhostPoints, Ghosts, RandomGhosts
from hyco_fem.game.answers import Answers, Player
from hyco_fem.game.baselines import NetworkOnly
from hyco_fem.game.data import Data
from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.loop import LONGEST_IN_HISTORY, Clock, run
from hyco_fem.game.objective import Weights, local_interaction, network_values
from hyco_fem.models.physical import CoefficientError, PhysicalModel
from hyco_fem.parallel import agreed, any_rank, check_replicated, sum_array
from hyco_fem.pde.linear import SolveError

Schedule = Literal["alternating", "simultaneous"]


class Hyco:
    """The game (Liverani, Steynberg, Zuazua, arXiv 2509.14123).

    A round: one solve of the PDE; fresh ghost points, the same for both players; the synthetic player answers the
    solution; then the physical player answers the *updated* network ("alternating"), or the one before
    ("simultaneous").  With one step an answer that is one forward and one adjoint solve a round.

    Args:
        physical: The PDE with unknown coefficients θ.
        synthetic: Any torch module (n, d) ↦ (n,) or (n, components), float64, equal on every rank.
        data: Sensor data, seen by both players.
        ghosts: Where the models are compared: `RandomGhosts`, `QuadratureGhosts`, `DofGhosts`.
        weights: a₁, b₁, a₂, b₂.
        answers: How each player answers.
        schedule: "alternating" (the paper's) or "simultaneous".
        warm_up: Steps in which the network alone is fitted to the data, before the first round.

    Construction and every method are collective; results are replicated.
    """

    def __init__(
        self,
        physical: PhysicalModel,
        synthetic: nn.Module,
        data: Data,
        ghosts: Ghosts | None = None,
        *,
        weights: Weights | None = None,
        answers: Answers | None = None,
        schedule: Schedule = "alternating",
        warm_up: int = 0,
    ) -> None:
        self.comm: MPI.Comm = physical.comm
        with agreed(self.comm):
            if schedule not in ("alternating", "simultaneous"):
                raise ValueError(f"schedule must be 'alternating' or 'simultaneous', not {schedule!r}")
            if warm_up < 0:
                raise ValueError(f"warm_up must not be negative, it is {warm_up}")
        check_replicated(((f"synthetic.{n}", p) for n, p in synthetic.named_parameters()), self.comm)
        self.physical, self.synthetic, self.data = physical, synthetic, data
        self.model = physical
        self.weights = weights or Weights()
        self.answers = answers or Answers()
        self.schedule = schedule
        self.warm_up = warm_up
        self.sampler = (ghosts or RandomGhosts(200)).on(physical.V)
        self.players = (
            Player("physical", physical.parameters(), self.answers.physical, self.comm),
            Player("synthetic", synthetic.parameters(), self.answers.synthetic, self.comm),
        )
        self.clock = Clock()
        self.next_round = 0
        self.warm_up_result: Result | None = None

    def run(self, rounds: int, *, tolerance: float | None = None, callbacks: Sequence[Callback] = ()) -> Result:
        """Warm up if that was not done yet, and play rounds; a second call goes on from where the first ended.

        Args, raises: see `hyco_fem.game.loop.run`; also CoefficientError and SolveError of the physical model, after
        which θ is what it was before the step that led there.
        """
        if self.warm_up_result is None and self.warm_up:
            with self.clock("warm_up"):
                alone = NetworkOnly(self.synthetic, self.data, self.answers.synthetic)
                self.warm_up_result = alone.run(-(-self.warm_up // self.answers.synthetic.steps))
        return run(self, rounds, tolerance=tolerance, callbacks=callbacks)

    # -- one round -----------------------------------------------------------------------------------------

    def round(self, number: int) -> Record | None:
        """One round; None where a step had to be taken back."""
        with self._undone_on_error():
            return self._round(number)

    def look(self, number: int) -> Record | None:
        """The state as it is, with both gradients at the same (θ, φ): their norms are the Nash residual.

        None where it is not finite and the last step had to be taken back.
        """
        with self._undone_on_error():
            return self._look(number)

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Where θ has led to a PDE that cannot be solved, undo the step that led there."""
        try:
            yield
        except (CoefficientError, SolveError):
            self.players[0].undo()
            raise

    def _round(self, number: int) -> Record | None:
        phy, syn = self.players
        parameters = parameter_values(self.physical, self.comm, LONGEST_IN_HISTORY)
        ghosts, at_sensors, at_ghosts = self._solve(number)
        misfit_phy = self.data.local_misfit(at_sensors)
        x = torch.cat([self.data.points.x, ghosts.x])
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        fixed = at_ghosts.detach()

        def synthetic_objective() -> Tensor:
            misfit, interaction, values = self._synthetic(x, fixed, ghosts)
            seen.append((misfit.detach(), interaction.detach(), values.detach()))
            return self.weights.a2 * misfit + self.weights.b2 * interaction

        if self._overflows(misfit_phy, at_ghosts):
            phy.take_back()
            return None
        with self.clock("network"):
            syn_look = syn.answer_to(synthetic_objective)
            if not syn_look.finite:
                return None
            if self.schedule == "simultaneous":
                answered = seen[0][2]
            else:
                with torch.no_grad(), agreed(self.comm):
                    answered = network_values(self.synthetic, ghosts.x)
        if any_rank(self.comm, not math.isfinite(float(answered.sum()))):
            syn.take_back()
            return None

        physical_objective = self._physical_objective(ghosts, answered, misfit_phy, at_ghosts)
        with self.clock("solve"):
            phy_look = phy.answer_to(physical_objective)
        if not phy_look.finite:
            return None
        losses = torch.stack([misfit_phy.detach(), seen[0][0], seen[0][1]])
        return self._record(number, losses, phy_look.gradient_norm, syn_look.gradient_norm, parameters)

    def _look(self, number: int) -> Record | None:
        phy, syn = self.players
        ghosts, at_sensors, at_ghosts = self._solve(number)
        misfit_phy = self.data.local_misfit(at_sensors)
        x = torch.cat([self.data.points.x, ghosts.x])
        if self._overflows(misfit_phy, at_ghosts):
            phy.take_back()
            return None
        misfit_syn, interaction, values = self._synthetic(x, at_ghosts.detach(), ghosts)
        syn_look = syn.look(self.weights.a2 * misfit_syn + self.weights.b2 * interaction)
        if not syn_look.finite:
            syn.take_back()
            return None
        phy_look = phy.look(self._physical_objective(ghosts, values.detach(), misfit_phy, at_ghosts)())
        if not phy_look.finite:
            phy.take_back()
            return None
        losses = torch.stack([misfit_phy.detach(), misfit_syn.detach(), interaction.detach()])
        parameters = parameter_values(self.physical, self.comm, LONGEST_IN_HISTORY)
        return self._record(number, losses, phy_look.gradient_norm, syn_look.gradient_norm, parameters)

    def _overflows(self, misfit: Tensor, at_ghosts: Tensor) -> bool:
        """Whether the solution is too large to be compared with anything: then the network is not to blame."""
        size = float(misfit.detach()) + float(at_ghosts.detach().square().sum())
        return any_rank(self.comm, not math.isfinite(size))

    def _solve(self, number: int) -> tuple[GhostPoints, Tensor, Tensor]:
        """The solution at the current θ, at the sensors and at this round's ghost points."""
        with self.clock("solve"):
            u = self.physical.solve()
        with self.clock("ghosts"):
            ghosts = self.sampler.draw(number)
            at_ghosts = ghosts.evaluate(u, self.physical.observed)
        return ghosts, self.data.points.evaluate(u, self.physical.observed), at_ghosts

    def _synthetic(self, x: Tensor, at_ghosts: Tensor, ghosts: GhostPoints) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's L_syn and I, and the network's values at the ghost points: one pass of the network."""
        n = len(self.data.points)
        with agreed(self.comm):
            values = network_values(self.synthetic, x)
            misfit = self.data.local_misfit(values[:n])
            interaction = local_interaction(at_ghosts, values[n:], ghosts)
        return misfit, interaction, values[n:]

    def _physical_objective(
        self, ghosts: GhostPoints, answered: Tensor, misfit: Tensor, at_ghosts: Tensor
    ) -> Callable[[], Tensor]:
        """J_phy as a function of θ; its first evaluation uses the solve of this round that is there already."""
        at_hand = [(misfit, at_ghosts)]

        def objective() -> Tensor:
            if at_hand:
                own, there = at_hand.pop()
            else:
                u = self.physical.solve()
                own = self.data.local_misfit(self.data.points.evaluate(u, self.physical.observed))
                there = ghosts.evaluate(u, self.physical.observed)
            return self.weights.a1 * own + self.weights.b1 * local_interaction(there, answered, ghosts)

        return objective

    def _record(
        self, number: int, local_losses: Tensor, gradient_phy: float, gradient_syn: float, parameters: dict
    ) -> Record:
        losses = [float(v) for v in sum_array(self.comm, local_losses.numpy().astype(np.float64))]
        return Record(
            number,
            misfit_physical=losses[0],
            misfit_synthetic=losses[1],
            interaction=losses[2],
            potential=self.weights.potential(*losses),
            gradient_physical=gradient_phy,
            gradient_synthetic=gradient_syn,
            parameters=parameters,
        )
