"""HYCO and what it is measured against, each made from the same experiment: the same data, PDE, answers and care.

hyco               the game of the file
physics            the PDE alone: min_θ a₁ L_phy and the prior, as in the game, by the physical player's answers
network            the network alone: min_φ a₂ L_syn + decay |φ|², as many answers as in the game, the warm-up included
no_interaction     the network alone, and then the PDE fitted to it at ghost points drawn afresh: nothing goes back
pinn               network and coefficients together on the data and the strong residual at collocation points
variational_pinn   the same with the assembled residual in its dual norm

The physics-informed networks are moved by the answers of the synthetic player, with the learning rate of the physical
one for the coefficients, as often as the network is in the game.  They make 100 |u − y|² + |r|² small, in the units of
the file, plus 10 times the square of what is missed at the boundary, as in benchmarks/comparisons; they have neither
the prior nor the weight decay nor the bounds of the file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyco_fem.bridge.ghosts import RandomGhosts
from hyco_fem.experiment import pde
from hyco_fem.experiment.build import Built, build_physical
from hyco_fem.experiment.game import RandomTable
from hyco_fem.experiment.meshes import facets_of
from hyco_fem.experiment.physical import AnyProblem
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, closest
from hyco_fem.game.answers import LBFGS, AdamStep
from hyco_fem.game.baselines import NetworkOnly, PhysicsOnly
from hyco_fem.game.data import Data, Sensing
from hyco_fem.game.history import Result
from hyco_fem.game.losses import Weights
from hyco_fem.game.pinn import PINN, PINNWeights
from hyco_fem.game.player import Answer
from hyco_fem.game.rules import ModelDiscrepancy
from hyco_fem.game.vpinn import VariationalPINN, VariationalWeights
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import sum_array
from hyco_fem.pde.problem import Condition, Flux, Robin

# Weights of the data and of the boundary over that of the residual, in units of σ² where σ is known.
_DATA, _BOUNDARY = 100.0, 10.0


@dataclass(frozen=True, eq=False)
class Task:
    """What a method is to be fitted to: the models of `built` at their start, and the sensors `data` of them."""

    experiment: Experiment
    built: Built
    data: Data

    @property
    def rounds(self) -> int:
        """Rounds of the game, and answers of the physical model."""
        return self.experiment.game.rounds

    @property
    def network_rounds(self) -> int:
        """Answers of the network in the game, its warm-up included."""
        steps = getattr(self.answers[1], "steps", 1)
        return self.rounds + -(-self.experiment.game.warm_up // steps)

    @property
    def answers(self) -> tuple[Answer, Answer]:
        """Of the physical and of the synthetic player; where they move together, what moves them."""
        given = self.built.game.answers
        return (given.joint, given.joint) if self.built.game.schedule == "joint" else (given.physical, given.synthetic)

    @property
    def base(self) -> Weights:
        """The weights of the file; those that a rule begins with where one chooses them."""
        given: Any = self.built.game.weights
        if isinstance(given, Weights):
            return given
        first = getattr(given, "candidates", None) or [Weights()]
        return getattr(given, "base", None) or getattr(given, "start", None) or first[0]

    def beside_data(self, weight: float, a: float) -> float:
        """The weight of a prior or a decay beside data of weight 1, where the game has data of weight a."""
        return weight / a if a > 0 else weight

    def variance(self) -> float:
        """The mean of σ², 1 where it is not known.  Collective."""
        sums = np.array([float(self.data.noise_std.square().sum()), float(len(self.data.noise_std))])
        total, n = sum_array(self.built.physical.comm, sums)
        return float(total / n)

    def run(self, trainer: Any, rounds: int) -> Result:
        """Play with the stopping criteria of the file.  Collective."""
        found: Result = trainer.run(rounds, stopping=self.built.stopping)
        return found


@dataclass(frozen=True)
class Method:
    """One way to fit the models.

    text: what it is.  physical, synthetic: which models it leaves behind.
    run: fits them, collective.  seeded: whether seeds have a say, whatever the experiment.
    """

    text: str
    physical: bool
    synthetic: bool
    run: Callable[[Task], Result]
    seeded: bool = True


def _hyco(task: Task) -> Result:
    game = task.built.game
    own = game.trial(copy.deepcopy(game.weights), game.answers, Sensing(task.data, task.data))  # type: ignore[arg-type]
    own.warm_up, own.warm_up_result = game.warm_up, None
    return task.run(own, task.rounds)


def _physics(task: Task) -> Result:
    prior = task.built.game.prior
    if prior is not None:
        weight = task.beside_data(task.base.prior, task.base.a1)
        prior = replace(prior, precision=prior.precision * np.sqrt(weight))
    alone = PhysicsOnly(task.built.physical, task.data, task.answers[0], prior=prior)
    return task.run(alone, task.rounds)


def _network(task: Task) -> Result:
    decay = task.beside_data(task.base.decay, task.base.a2)
    alone = NetworkOnly(task.built.synthetic, task.data, task.answers[1], decay=decay)
    return task.run(alone, task.network_rounds)


def _no_interaction(task: Task) -> Result:
    _network(task)
    game, network = copy.copy(task.built.game), task.built.synthetic
    trainable = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trainable:  # a player with nothing to move
            p.requires_grad_(False)
        game.schedule = "alternating"
        # What the network says counts as a measurement does, for the sake of a prior.
        prior = task.beside_data(task.base.prior, task.base.a1)
        weights = Weights(a1=0.0, b1=1.0 / task.variance(), a2=1.0, b2=0.0, prior=prior)
        answers = replace(game.answers, physical=task.answers[0])
        return task.run(game.trial(weights, answers, Sensing(task.data, task.data)), task.rounds)
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _pinn(task: Task) -> Result:
    physical, problem = build_physical(task.experiment, task.built.mesh)
    physical.close()
    scale = task.variance()
    trainer = PINN(
        problem,
        task.built.synthetic,
        dict(task.built.physical.coefficients),
        task.data,
        conditions=_natural(task, problem),
        collocation=_collocation(task.experiment),
        weights=PINNWeights(data=_DATA * scale, residual=1.0, boundary=_BOUNDARY),
        **_moves(task),
    )
    return task.run(trainer, task.network_rounds)


def _variational_pinn(task: Task) -> Result:
    weights = VariationalWeights(data=_DATA * task.variance())
    trainer = VariationalPINN(task.built.physical, task.built.synthetic, task.data, weights=weights, **_moves(task))
    try:
        return task.run(trainer, task.network_rounds)
    finally:
        trainer.close()


def _moves(task: Task) -> dict[str, Any]:
    """How a physics-informed network is moved: by first derivatives, where the answers are Gauss–Newton by L-BFGS."""
    physical, synthetic = task.answers
    if isinstance(synthetic, AdamStep):
        rate = physical.lr if isinstance(physical, AdamStep) else None
        return {"answer": synthetic, "coefficient_lr": rate}
    return {"answer": synthetic if isinstance(synthetic, LBFGS) else LBFGS(getattr(synthetic, "steps", 20))}


def _collocation(experiment: Experiment) -> RandomGhosts:
    """As many points, as often afresh, as there are ghost points where these are random."""
    spec = experiment.game.ghosts
    if isinstance(spec, RandomTable):
        return RandomGhosts(spec.points, spec.seed, spec.fixed)
    return RandomGhosts(500)


def _natural(task: Task, problem: AnyProblem) -> list[Condition]:
    """The natural conditions of the file, which a strong form does not know from the weak one."""
    found: list[Condition] = []

    def value(given: Any) -> Any:
        return problem.coefficients[given] if isinstance(given, str) else given

    for i, c in enumerate(task.experiment.problem.conditions or []):
        if not isinstance(c, pde.Dirichlet):
            facets = facets_of(c.facets, task.built.mesh, f"problem.conditions[{i}].facets")
            if isinstance(c, pde.Flux):
                found.append(Flux(value(c.value), facets))
            else:
                found.append(Robin(value(c.coefficient), value(c.ambient), facets))
    return found


METHODS = {
    "hyco": Method("the game of the file", True, True, _hyco),
    "physics": Method("the PDE alone on the data", True, False, _physics, seeded=False),
    "network": Method("the network alone on the data, as many answers as in the game", False, True, _network),
    "no_interaction": Method("the network alone, then the PDE fitted to it", True, True, _no_interaction),
    "pinn": Method("data and strong residual, one player for network and coefficients", True, True, _pinn),
    "variational_pinn": Method("the same with the residual in its dual norm", True, True, _variational_pinn),
}


def chosen(names: list[str] | None) -> list[str]:
    """Methods by name, in the order of METHODS; all by default.

    Raises:
        ConfigurationError: there is no such method.
    """
    if names == []:
        raise ConfigurationError(f"--methods: names none; there are {', '.join(METHODS)}")
    for name in names or ():
        if name not in METHODS:
            raise ConfigurationError(f"--methods: there is no '{name}'; {closest(name, METHODS)}")
    return [name for name in METHODS if names is None or name in names]


def impossible(name: str, experiment: Experiment, built: Built) -> str | None:
    """Why a method is not for an experiment, in a sentence; None where it is.  Collective."""
    if not name.endswith("pinn"):
        return None
    if isinstance(built.physical, TransientModel):
        return "there is none for experiments in time"
    if name == "pinn" and experiment.problem.name is None:
        return "what a Python file returns has no strong form with its boundary conditions"
    if name == "pinn" and getattr(experiment.network, "activation", None) == "relu":
        return "the strong residual needs second derivatives, and a network of 'relu' has none"
    try:  # it is made, and does not play
        METHODS[name].run(Task(_without_rounds(experiment), built, built.data))
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _without_rounds(experiment: Experiment) -> Experiment:
    return replace(experiment, game=replace(experiment.game, rounds=0, warm_up=0))


def without(experiment: Experiment) -> list[str]:
    """What the experiment has and the physics-informed networks have not, in words."""
    game = experiment.game
    answer = game.joint if game.schedule == "joint" else game.physical
    decays = [game.weights.decay, *(c.decay or 0.0 for c in game.weights.candidates or ())]
    found = {
        "prior": game.prior is not None,
        "weight decay": any(decay > 0 for decay in decays),
        "bounds": bool(getattr(answer, "bounds", None)),
        "several starts": answer.type == "multi_start",
    }
    return [name for name, there in found.items() if there]


def rule_of(built: Built) -> str | None:
    """A sentence where a rule chooses the weights."""
    rule = built.game.weights
    if isinstance(rule, Weights):
        return None
    fitted = " from the sensors that a run sees" if isinstance(rule, ModelDiscrepancy) else ""
    return f"weights of hyco: {type(rule).__name__}{fitted}"
