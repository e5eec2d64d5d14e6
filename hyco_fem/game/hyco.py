"""Hybrid-cooperative learning: the game of the physical and the synthetic player, in rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.bridge.ghosts import GhostPoints, Ghosts, RandomGhosts
from hyco_fem.game.answers import Answers
from hyco_fem.game.data import Data, Sensing
from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.loop import (
    LONGEST_IN_HISTORY,
    Clock,
    Course,
    Keeper,
    Stopping,
    checked_stopping,
    keeper_among,
    run,
    unplayed,
)
from hyco_fem.game.losses import Weights, local_interaction, network_values
from hyco_fem.game.objective import (
    JointObjective,
    Opponent,
    PhysicalObjective,
    SyntheticObjective,
    squared_norm,
)
from hyco_fem.game.player import Player, flat
from hyco_fem.game.prior import Prior
from hyco_fem.game.rules import Choice, CrossValidation, Discrepancy, GradientBalance, ModelDiscrepancy, Rule
from hyco_fem.game.state import Resumable, State, result_of, result_text
from hyco_fem.game.warm_up import WarmUp
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, any_rank, check_replicated, sum_array
from hyco_fem.pde.linear import SolveError

Schedule = Literal["alternating", "simultaneous", "joint"]
_SCHEDULES = ("alternating", "simultaneous", "joint")


@dataclass
class Scene:
    """One round before anyone answers: ghost points, weights, and the solution at sensors, there, and elsewhere."""

    ghosts: GhostPoints
    at_sensors: Tensor | None
    at_ghosts: Tensor
    misfit: Tensor
    weights: Weights
    elsewhere: Callable[[Any], Tensor]


class Hyco(Resumable):
    """The game (Liverani, Steynberg, Zuazua, arXiv 2509.14123).

    A round: one solve of the PDE; fresh ghost points, the same for both players; the synthetic player answers the
    solution; then the physical player answers the *updated* network ("alternating"), or the one before
    ("simultaneous").  With one step an answer that is one forward and one adjoint solve a round.  "joint": both move
    together on the potential P.

    Args:
        physical: The PDE with unknown coefficients θ.
        synthetic: Any torch module (n, d) ↦ (n,) or (n, components), float64, equal on every rank.
        data: Sensor data, seen by both players; or `Sensing`: what each of them sees.
        ghosts: Where the models are compared: `RandomGhosts`, `QuadratureGhosts`, `DofGhosts`.
        weights: a₁, b₁, a₂, b₂ and the weight decay; or a function of the number of the round that gives them; or a
            rule that chooses them: `ModelDiscrepancy`, `CrossValidation`, `Discrepancy`, `GradientBalance`.
        answers: How each player answers.
        schedule: "alternating" (the paper's: Gauss–Seidel), "simultaneous" (Jacobi) or "joint".
        prior: What is known of θ beforehand.
        warm_up: Steps in which the network alone is fitted to the data, before the first round.

    Construction and every method are collective; results are replicated.
    """

    def __init__(
        self,
        physical: PhysicalModel | TransientModel,
        synthetic: nn.Module,
        data: Data | Sensing,
        ghosts: Ghosts | None = None,
        *,
        weights: Weights | Callable[[int], Weights] | Rule | None = None,
        answers: Answers | None = None,
        schedule: Schedule = "alternating",
        prior: Prior | None = None,
        warm_up: int = 0,
    ) -> None:
        self.comm: MPI.Comm = physical.comm
        self.weights = weights or Weights()
        self.sensing = data if isinstance(data, Sensing) else Sensing(data, data)
        with agreed(self.comm):
            if schedule not in _SCHEDULES:
                raise ValueError(f"schedule must be one of {', '.join(map(repr, _SCHEDULES))}, not {schedule!r}")
            if warm_up < 0:
                raise ValueError(f"warm_up must not be negative, it is {warm_up}")
            if warm_up and self.sensing.synthetic is None:
                raise ValueError("there is no warm-up for a network that sees no data")
            # Those of a rule must make a game as well; GradientBalance makes its own.
            given = [self.weights] if isinstance(self.weights, Weights) else getattr(self.weights, "candidates", [])
            for w in given:
                self._check_weights(w, schedule)
        check_replicated(((f"synthetic.{n}", p) for n, p in synthetic.named_parameters()), self.comm)
        self.physical, self.synthetic, self.data = physical, synthetic, data
        self.model = physical
        self.answers = answers or Answers()
        self.schedule = schedule
        self.warm_up = warm_up
        self.sampler = (ghosts or RandomGhosts(200)).on(physical.domain)
        self.clock = Clock()
        self.next_round = 0
        self.warm_up_result: Result | None = None
        self._warm_up_text: str | None = None
        self._warming: WarmUp | None = None
        self.choice: Choice | None = None
        with agreed(self.comm):
            theta = {n: p for n, p in physical.named_parameters() if p.requires_grad}
            self.prior = None if prior is None else prior.on(theta)
        self._seat()

    def _seat(self) -> None:
        """Players with fresh methods."""
        theta, phi = dict(self.physical.named_parameters()), dict(self.synthetic.named_parameters())
        with agreed(self.comm):
            self.players = (
                Player("physical", theta, self.answers.physical, self.comm),
                Player("synthetic", phi, self.answers.synthetic, self.comm),
            )
            self.together: Player | None = None
            if self.schedule == "joint":
                both = {f"physical.{n.removeprefix('coefficients.')}": p for n, p in theta.items()}
                both |= {f"synthetic.{n}": p for n, p in phi.items()}
                self.together = Player("joint", both, self.answers.joint, self.comm)

    def _check_weights(self, weights: Weights, schedule: str) -> None:
        if schedule == "joint":
            weights.joint()
        if self.sensing.physical is None and weights.b1 == 0:
            raise ValueError("the physical player sees no data and has b1 = 0: it has nothing to minimise")
        if self.sensing.synthetic is None and weights.b2 == 0:
            raise ValueError("the synthetic player sees no data and has b2 = 0: it has nothing to minimise")

    def run(
        self,
        rounds: int,
        *,
        tolerance: float | None = None,
        stopping: Stopping | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Result:
        """Warm up if that was not done yet, and play rounds; a second call goes on from where the first ended.

        Args, raises: see `hyco_fem.game.loop.run`; also CoefficientError and SolveError of the physical model, after
        which θ is what it was before the step that led there.

        Where a signal to `Checkpoints` ends the run before its first round, the one record of the result has the
        parameters and no other number.
        """
        with agreed(self.comm):
            stopping = checked_stopping(rounds, tolerance, stopping)
            keeper, _ = keeper_among(callbacks)
        if keeper is not None:
            keeper.begin(self)
        with self.clock("total"):
            stop = self._prepare(keeper)
        if stop is None:
            result = run(self, rounds, stopping=stopping, callbacks=callbacks)
        else:
            result = unplayed(self, Course(self.next_round) if keeper is None else keeper.course, stop)
        result.choice = self.choice
        return result

    def _prepare(self, keeper: Keeper | None) -> str | None:
        """Warm up and choose the weights, where that was not done yet; why the run has to end there, or None."""
        data = self.sensing.synthetic
        if self._warming is None and self.warm_up and self.warm_up_result is None and data is not None:
            self._warming = WarmUp(self.synthetic, data, self.answers.synthetic)
        if self._warming is not None:
            with self.clock("warm_up"):
                self.warm_up_result = self._warming.play(self.warm_up, None if keeper is None else keeper.keep)
            if self.warm_up_result is None:
                return self._warming.stop
            self._warming = None
        if isinstance(self.weights, (CrossValidation, Discrepancy, ModelDiscrepancy)):
            with self.clock("weights"):
                self.choice = self.weights.choose(self)
            self.weights = self.choice.weights
            return None if keeper is None else keeper.keep()
        return None

    def trial(self, weights: Weights, answers: Answers, sensing: Sensing) -> Hyco:
        """The same models in a game of its own: other weights, answers or sensors.  Collective."""
        twin = copy.copy(self)
        twin.weights, twin.answers, twin.sensing, twin.data = weights, answers, sensing, sensing
        twin.clock, twin.choice = Clock(), None
        twin.warm_up, twin._warming, twin._warm_up_text = 0, None, None
        twin._seat()
        return twin

    # -- state -----------------------------------------------------------------------------------------------

    def _trained(self) -> dict[str, nn.Module]:
        return {"physical": self.physical, "synthetic": self.synthetic}

    def _movers(self) -> list[Player]:
        return [*self.players, *([] if self.together is None else [self.together])]

    @property
    def warming(self) -> int | None:
        """How many rounds of the warm-up were played, while it is under way; else None."""
        return None if self._warming is None else self._warming.played

    def _own_state(self) -> State:
        if self.warm_up_result is not None and self._warm_up_text is None:
            self._warm_up_text = result_text(self.warm_up_result)  # made once, not for each checkpoint
        return {
            "warm_up": self._warm_up_text,
            "warming": None if self._warming is None else self._warming.state(),
            "choice": None if self.choice is None else self.choice.state(),
            "balance": self.weights.state() if isinstance(self.weights, GradientBalance) else None,
        }

    def _restore_own(self, state: State) -> None:
        self._warm_up_text = state["warm_up"]
        self.warm_up_result = None if self._warm_up_text is None else result_of(self._warm_up_text)
        self._warming = None
        if state["warming"] is not None:
            assert self.sensing.synthetic is not None, "a checkpoint of other data is refused"
            self._warming = WarmUp(self.synthetic, self.sensing.synthetic, self.answers.synthetic)
            self._warming.restore(state["warming"])
        if state["choice"] is not None:
            self.choice = Choice.of(state["choice"])
            self.weights = self.choice.weights
        if isinstance(self.weights, GradientBalance):
            self.weights.restore(state["balance"])

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
            self._mover(0).undo()
            raise

    def _mover(self, which: int) -> Player:
        """Who has moved θ (0) or φ (1)."""
        return self.players[which] if self.together is None else self.together

    def _round(self, number: int) -> Record | None:
        phy, syn = self.players
        parameters = parameter_values(self.physical, self.comm, LONGEST_IN_HISTORY)
        norm = self._norm()
        scene = self.scene(number)
        if self._overflows(scene):
            self._mover(0).take_back()
            return None
        if self.together is not None:
            return self._joint_round(number, scene, norm, parameters)
        facing = self.synthetic_objective(scene)
        with self.clock("network"):
            syn_look = syn.answer_to(facing)
            if not syn_look.finite:
                return None
            misfit, interaction, before = facing.seen
            if self.schedule == "simultaneous":
                answered = before
            else:
                with torch.no_grad(), agreed(self.comm):
                    answered = network_values(self.synthetic, scene.ghosts.x)
        if any_rank(self.comm, not math.isfinite(float(answered.detach().sum()))):
            syn.take_back()
            return None
        with self.clock("solve"):
            phy_look = phy.answer_to(self.physical_objective(scene, answered))
        if not phy_look.finite:
            return None
        gradients = phy_look.gradient_norm, syn_look.gradient_norm
        return self._record(number, scene, misfit, interaction, norm, gradients, parameters)

    def _joint_round(self, number: int, scene: Scene, norm: tuple[float, float], parameters: dict) -> Record | None:
        """An answer of both together on P; both gradients told are that of P by (θ, φ)."""
        assert self.together is not None
        w = scene.weights.joint()
        nothing = Opponent(scene.ghosts, torch.zeros_like(scene.at_ghosts.detach()))
        own = scene.at_sensors if w.a1 > 0 else None
        objective = JointObjective(
            PhysicalObjective(
                self.physical,
                self.sensing.physical,
                w.a1,
                1.0,
                nothing,
                prior=self.prior,
                c=w.prior,
                at_hand=(own, scene.at_ghosts),
            ),
            SyntheticObjective(
                self.synthetic, self.sensing.synthetic, w.a2, 1.0, nothing, decay=w.decay, comm=self.comm
            ),
        )
        with torch.no_grad():
            facing = self.synthetic_objective(scene)
            facing()
        with self.clock("joint"):
            look = self.together.answer_to(objective)
        if not look.finite:
            return None
        gradients = look.gradient_norm, look.gradient_norm
        misfit, interaction, _ = facing.seen
        return self._record(number, scene, misfit, interaction, norm, gradients, parameters)

    def _look(self, number: int) -> Record | None:
        phy, syn = self.players
        scene = self.scene(number)
        if self._overflows(scene):
            self._mover(0).take_back()
            return None
        facing = self.synthetic_objective(scene)
        syn_look = syn.look(facing())
        if not syn_look.finite:
            self._mover(1).take_back()
            return None
        misfit, interaction, values = facing.seen
        phy_look = phy.look(self.physical_objective(scene, values)())
        if not phy_look.finite:
            self._mover(0).take_back()
            return None
        parameters = parameter_values(self.physical, self.comm, LONGEST_IN_HISTORY)
        gradients = phy_look.gradient_norm, syn_look.gradient_norm
        return self._record(number, scene, misfit, interaction, self._norm(), gradients, parameters)

    def _overflows(self, scene: Scene) -> bool:
        """Whether the solution is too large to be compared with anything: then the network is not to blame."""
        size = float(scene.misfit) + float(scene.at_ghosts.detach().square().sum())
        return any_rank(self.comm, not math.isfinite(size))

    def _weights_of(self, number: int, scene: Scene) -> Weights:
        if isinstance(self.weights, Weights):
            return self.weights
        if isinstance(self.weights, GradientBalance):
            return (
                self.weights.at(number, *self._gradient_norms(scene)) if self.weights.due(number) else self.weights.now
            )
        with agreed(self.comm):
            if isinstance(self.weights, Rule):
                raise ValueError(f"{type(self.weights).__name__} chooses weights in run(); call that first")
            found = self.weights(number)
            if not isinstance(found, Weights):
                raise TypeError(f"the schedule of weights returned {type(found).__name__}, not hyco_fem.Weights")
            self._check_weights(found, self.schedule)
        return found

    def _gradient_norms(self, scene: Scene) -> list[float]:
        """|∇_θ L_phy|, |∇_θ I|, |∇_φ L_syn|, |∇_φ I|, with a backward pass for each."""
        phy, syn = self.players
        with agreed(self.comm):
            values = network_values(self.synthetic, scene.ghosts.x)
        norms = []
        for player, data in ((phy, self.sensing.physical), (syn, self.sensing.synthetic)):
            if player is phy:
                at_sensors, there, fixed = scene.at_sensors, scene.at_ghosts, values.detach()
            else:
                at_sensors = None if data is None else network_values(self.synthetic, data.points.x)
                there, fixed = values, scene.at_ghosts.detach()
            misfit = None if data is None or at_sensors is None else data.local_misfit(at_sensors)
            for part in (misfit, local_interaction(there, fixed, scene.ghosts)):
                norms.append(0.0 if part is None else player.gradient_norm_of(part))
        return norms

    def scene(self, number: int) -> Scene:
        """The solution at the current θ, at the sensors and at the ghost points of a round.  Collective."""
        with self.clock("ghosts"):
            ghosts = self.sampler.draw(number)
        data, at_sensors, misfit = self.sensing.physical, None, torch.zeros((), dtype=torch.float64)
        with self.clock("solve"):
            sets: list[Any] = [ghosts, *([] if data is None else [data.points])]
            (at_ghosts, *others), elsewhere = self.physical.solution(sets)
        if data is not None:
            (at_sensors,) = others
            with torch.no_grad():
                misfit = data.local_misfit(at_sensors)
        scene = Scene(ghosts, at_sensors, at_ghosts, misfit, Weights(), elsewhere)
        scene.weights = self._weights_of(number, scene)
        return scene

    def synthetic_objective(self, scene: Scene) -> SyntheticObjective:
        """What the synthetic player minimises there."""
        w = scene.weights
        opponent = Opponent(scene.ghosts, scene.at_ghosts.detach())
        return SyntheticObjective(
            self.synthetic, self.sensing.synthetic, w.a2, w.b2, opponent, decay=w.decay, comm=self.comm
        )

    def physical_objective(self, scene: Scene, answered: Tensor) -> PhysicalObjective:
        """What the physical player minimises there, against values of the network at the ghost points owned here."""
        w = scene.weights
        own = scene.at_sensors if w.a1 > 0 else None
        there = scene.at_ghosts if w.b1 > 0 else None
        opponent = Opponent(scene.ghosts, answered)
        return PhysicalObjective(
            self.physical,
            self.sensing.physical,
            w.a1,
            w.b1,
            opponent,
            prior=self.prior,
            c=w.prior,
            at_hand=(own, there),
        )

    def _norm(self) -> tuple[float, float]:
        """|φ|² and |(θ − mean)/std|²/n, where the potential may have a use for them."""
        decay, surprise = 0.0, 0.0
        if not isinstance(self.weights, Weights) or self.weights.decay > 0:
            with torch.no_grad():
                decay = float(squared_norm(p for p in self.synthetic.parameters() if p.requires_grad))
        if self.prior is not None:
            rows = self.prior.rows(flat(self.players[0].parameters))
            data = self.sensing.physical
            surprise = float(rows @ rows) / (1 if data is None else data.n_found)
        return decay, surprise

    def _record(
        self,
        number: int,
        scene: Scene,
        misfit: Tensor,
        interaction: Tensor,
        norm: tuple[float, float],
        gradients: tuple[float, float],
        parameters: dict,
    ) -> Record:
        local = np.array([float(scene.misfit), float(misfit), float(interaction)])
        misfit_phy, misfit_syn, total = (float(v) for v in sum_array(self.comm, local))
        return Record(
            number,
            misfit_physical=math.nan if self.sensing.physical is None else misfit_phy,
            misfit_synthetic=math.nan if self.sensing.synthetic is None else misfit_syn,
            interaction=total,
            potential=scene.weights.potential(misfit_phy, misfit_syn, total, *norm),
            gradient_physical=gradients[0],
            gradient_synthetic=gradients[1],
            parameters=parameters,
        )
