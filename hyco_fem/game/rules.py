"""Weights that are chosen: by held-out sensors, by the noise, or by the size of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mpi4py import MPI

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from hyco_fem.game.answers import Answers
from hyco_fem.game.baselines import NetworkOnly, PhysicsOnly
from hyco_fem.game.data import Data, Sensing
from hyco_fem.game.gauss_newton import Rows, reduced, root
from hyco_fem.game.groups import shared_out
from hyco_fem.game.losses import Weights, network_values
from hyco_fem.game.player import Answer, flat, put_flat
from hyco_fem.game.state import State, tensor_or_none
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.parallel import agreed, any_rank, is_distributed, sum_array
from hyco_fem.pde.linear import SolveError

if TYPE_CHECKING:
    from hyco_fem.game.hyco import Hyco


@dataclass(frozen=True)
class Choice:
    """Weights that a rule has chosen, with its curve.  Replicated.

    weights: chosen.  candidates: all that were tried.  scores: of each, the smaller the better (cross-validation: mean
    squared error at held-out sensors, in units of σ²; discrepancy: L_syn), infinite where the game failed.
    spread: standard errors of the scores over the folds; zero where there are none.  rule: its name.
    """

    weights: Weights
    candidates: list[Weights]
    scores: np.ndarray
    spread: np.ndarray
    rule: str

    def summary(self) -> dict[str, Any]:
        """What goes into summary.json."""
        return {
            "rule": self.rule,
            "weights": vars(self.weights),
            "candidates": [vars(w) for w in self.candidates],
            "scores": self.scores,
            "spread": self.spread,
        }

    def state(self) -> State:
        """As plain values."""
        return {
            "weights": vars(self.weights),
            "candidates": [vars(w) for w in self.candidates],
            "scores": tensor_or_none(self.scores),
            "spread": tensor_or_none(self.spread),
            "rule": self.rule,
        }

    @classmethod
    def of(cls, state: State) -> Choice:
        """The choice with a state."""
        candidates = [Weights(**w) for w in state["candidates"]]
        scores, spread = (state[name].numpy().copy() for name in ("scores", "spread"))
        return cls(Weights(**state["weights"]), candidates, scores, spread, state["rule"])

    def __str__(self) -> str:
        rows = [
            f"{'→' if w == self.weights else ' '} b1/a1 {_ratio(w.b1, w.a1):9.3g}  b2/a2 {_ratio(w.b2, w.a2):9.3g}  "
            f"decay/a2 {_ratio(w.decay, w.a2):9.3g}  score {s:.4g} ± {e:.2g}"
            for w, s, e in zip(self.candidates, self.scores, self.spread, strict=True)
        ]
        return "\n".join([f"weights by {self.rule}", *rows])


def _ratio(b: float, a: float) -> float:
    return b / a if a > 0 else math.inf


@dataclass(frozen=True)
class CrossValidation:
    """Weights with the smallest error at held-out sensors, over k folds (Stone 1974).

    The folds are of the sensors of the model that is judged.  For each the game is played without its sensors, and
    without those of the other player at the same places, from the models' present state, once for each candidate, each
    going on from where the one before ended: put neighbours next to each other.  Afterwards the models are as before.

    Args:
        candidates: Weights to try.
        folds: k.  rounds: of each game.
        answers: Those of the games; by default the game's own.
        model: Whose error at the held-out sensors counts, "synthetic" or "physical".
        warm: Whether a candidate goes on from where the one before it ended, or from the present state.
        seed: Of the folds, which do not depend on the partition.
        build: Builds the game on a communicator; then the ranks form groups, and share the folds.  The models take
            the state that the game is in; where one has a field, they must come out in it.
        ranks_each: Ranks that one game needs, with `build`.

    Raises:
        ValueError: fewer sensors than folds: a fold would have no sensor; no candidate.
    """

    candidates: Sequence[Weights]
    folds: int = 5
    rounds: int = 3
    answers: Answers | None = None
    model: Literal["synthetic", "physical"] = "synthetic"
    warm: bool = True
    seed: int = 0
    build: Callable[[MPI.Comm], Hyco] | None = None
    ranks_each: int = 1

    def __post_init__(self) -> None:
        _check_candidates(self.candidates)
        if self.folds < 2 or self.rounds < 1:
            raise ValueError(f"cross-validation needs at least 2 folds and 1 round, not {self.folds}, {self.rounds}")
        if self.model not in ("synthetic", "physical"):
            raise ValueError(f"model must be 'synthetic' or 'physical', not {self.model!r}")

    def choose(self, game: Hyco) -> Choice:
        """Play the games.  Collective."""
        self.check(self._judge(game))
        folds = list(range(self.folds))
        if self.build is None:
            rows = [self.errors(game, k) for k in folds]
        else:
            rows = shared_out(game.comm, folds, self._builder(game), self.errors, ranks_each=self.ranks_each)
        return self.best(rows)

    def _builder(self, game: Hyco) -> Callable[[MPI.Comm], Hyco]:
        """`build`, and the state that the game is in."""
        assert self.build is not None
        build, state = self.build, _state(game)
        models = (game.physical, game.synthetic)
        fields = any_rank(game.comm, any(is_distributed(p) for m in models for p in m.parameters()))

        def made(comm: MPI.Comm) -> Hyco:
            twin = build(comm)
            if not fields:
                _restore(twin, state)
            return twin

        return made

    def check(self, data: Data) -> None:
        """Raise ValueError, on all ranks, where there are more folds than sensors."""
        with agreed(data.points.comm):
            if data.n_found < self.folds:
                raise ValueError(
                    f"{self.folds} folds of {data.n_found} sensors: a fold would have no sensor; use fewer folds"
                )

    def best(self, rows: Sequence[Sequence[float]]) -> Choice:
        """The choice from the errors of each fold with each candidate, (folds, candidates)."""
        table = np.array(rows)
        scores = table.mean(axis=0)
        if not np.isfinite(scores).any():
            raise ValueError("cross-validation: the fit failed with every candidate; see the models alone first")
        with np.errstate(invalid="ignore"):
            spread = table.std(axis=0, ddof=1) / math.sqrt(self.folds)
        best = int(np.argmin(scores))
        return Choice(
            self.candidates[best], list(self.candidates), scores, spread, f"{self.folds}-fold cross-validation"
        )

    def errors(self, game: Hyco, fold: int) -> list[float]:
        """Mean square error at the sensors of a fold, for each candidate.  Collective on the game's ranks."""
        data = self._judge(game)
        rest, held = self.parted(data, fold)

        def kept(own: Data | None) -> Data | None:
            return rest if own is data else None if own is None else without(own, held)

        sensing = Sensing(kept(game.sensing.physical), kept(game.sensing.synthetic))
        before = _state(game)
        errors = []
        try:
            for weights in self.candidates:
                if not self.warm:
                    _restore(game, before)
                errors.append(self._error(game, weights, sensing, held))
                if not math.isfinite(errors[-1]):
                    _restore(game, before)
        finally:
            _restore(game, before)
        return errors

    def _judge(self, game: Hyco) -> Data:
        """The data of the model that is judged; the other's where it has none."""
        data = game.sensing.synthetic if self.model == "synthetic" else game.sensing.physical
        return data or game.sensing.physical or game.sensing.synthetic  # type: ignore[return-value]

    def _error(self, game: Hyco, weights: Weights, sensing: Sensing, judge: Data) -> float:
        trial = game.trial(weights, self.answers or game.answers, sensing)
        try:
            trial.run(self.rounds)
            with torch.no_grad():
                if self.model == "synthetic":
                    values = network_values(game.synthetic, judge.points.x)
                else:
                    values = game.physical(judge.points)
        except (CoefficientError, SolveError, FloatingPointError):
            return math.inf
        total = float(sum_array(game.comm, np.atleast_1d(float(judge.local_misfit(values))))[0])
        return total if math.isfinite(total) else math.inf

    def parted(self, data: Data, fold: int) -> tuple[Data, Data]:
        """The sensors without a fold, and those of the fold."""
        rows = np.flatnonzero(data.rows)
        order = np.random.default_rng(self.seed).permutation(len(rows))
        held = np.zeros(data.n, dtype=bool)
        held[rows[order[fold :: self.folds]]] = True
        return data.only(~held), data.only(held)


def without(data: Data, held: Data) -> Data:
    """The sensors that are not where a held-out one is: noise aside, those would tell its value.  Collective.

    Raises ValueError where none is left.
    """
    x, there = (d.points.gather(d.points.x)[d.rows] for d in (data, held))
    reach = 1e-9 * float(np.ptp(np.concatenate([x, there]), axis=0).max()) + np.finfo(float).tiny
    rows = np.zeros(data.n, dtype=bool)
    rows[data.rows] = np.isinf(cKDTree(there).query(x, distance_upper_bound=reach)[0])
    with agreed(data.points.comm):
        if not rows.any():
            raise ValueError(
                "all sensors of a player are at the places of one fold: it would see no data; use more folds"
            )
    return data.only(rows)


@dataclass(frozen=True)
class Discrepancy:
    """The candidate with which the network fits its data as well as the noise allows: L_syn ≈ level.

    (Morozov 1966.)  Put them in the order of growing interaction b₂/a₂: the network leaves the data for the physics
    more and more, until the misfit is that of the noise.  Of the candidates before and after that the nearer one; where
    the misfit never gets there, the nearer one of the last two.  A candidate with which the game fails is left out.

    Args:
        candidates: In order.  level: of the mean over sensors and components; 1 where σ is known.
        rounds, answers: Of the games.
    """

    candidates: Sequence[Weights]
    level: float = 1.0
    rounds: int = 3
    answers: Answers | None = None

    def __post_init__(self) -> None:
        _check_candidates(self.candidates)
        if not self.level > 0 or self.rounds < 1:
            raise ValueError(f"Discrepancy needs a positive level and a round, not {self.level}, {self.rounds}")

    def choose(self, game: Hyco) -> Choice:
        """Play the games, each from where the last one ended; afterwards the models are as before.  Collective."""
        data = game.sensing.synthetic
        with agreed(game.comm):
            if data is None or not data.known_noise:
                raise ValueError("the discrepancy principle needs data for the network with a known noise_std")
        level = self.level * (data.n_values / data.n_found)  # L adds components up
        before = _state(game)
        scores: list[float] = []
        try:
            for weights in self.candidates:
                trial = game.trial(weights, self.answers or game.answers, game.sensing)
                try:
                    scores.append(trial.run(self.rounds).history[-1].misfit_synthetic)
                except (CoefficientError, SolveError, FloatingPointError):
                    scores.append(math.inf)
                    _restore(game, before)
                if level <= scores[-1] < math.inf:
                    break
        finally:
            _restore(game, before)
        tried = list(self.candidates[: len(scores)])
        finite = [k for k, s in enumerate(scores) if math.isfinite(s)]
        if not finite:
            raise ValueError("the discrepancy principle: the game failed with every candidate")
        # Of the two around the level the nearer one.
        best = min(finite[-2:], key=lambda k: abs(math.log(max(scores[k], 1e-300) / level)))
        return Choice(tried[best], tried, np.array(scores), np.zeros(len(tried)), "discrepancy")


@dataclass(frozen=True)
class ModelDiscrepancy:
    """b₁/a₁ = b₂/a₂ = 1/(c τ)²: the physics is trusted as far as it has been seen to be right.

    τ² is the variance of the physics' own error, of each component (Kennedy, O'Hagan 2001): the mean square of the
    residuals that the physical model alone, fitted to its data, leaves at sensors that are left out, less that of the
    noise.  Leaving out costs nothing: (u(x_i) − y_i)/(1 − h_i), with h the diagonal of the hat matrix of the Jacobian.
    Where a χ² test finds nothing wrong with the physics, the network follows it closely: c τ = trusted · σ.

    Args:
        base: a₁, a₂ and the decay.
        factor: c; above 1, since an error is larger between sensors than a fit to them shows.
        trusted: See above.  level: standard deviations of χ² up to which the physics passes.
        answer: That of the fit of the physical model; by default the game's own.  The game starts from that fit.
    """

    base: Weights = field(default_factory=Weights)
    factor: float = 2.0
    trusted: float = 0.1
    level: float = 2.0
    answer: Answer | None = None

    def __post_init__(self) -> None:
        if not (self.factor > 0 and self.trusted > 0 and self.level > 0):
            raise ValueError("factor, trusted and level of ModelDiscrepancy must be positive")

    def choose(self, game: Hyco) -> Choice:
        """Fit the physical model alone, and look at what it leaves.  Collective."""
        data = game.sensing.physical
        with agreed(game.comm):
            if data is None or not data.known_noise:
                raise ValueError("ModelDiscrepancy needs data for the physical player with a known noise_std")
        alone = PhysicsOnly(game.physical, data, self.answer or game.answers.physical, prior=game.prior)
        alone.run(1)
        r, J = alone.objective().linearised()
        problem = reduced(game.comm, r, J)
        # Leverages of this rank's rows; those of a prior, first on rank 0, are no sensors.
        _, s, Vt = np.linalg.svd(problem.J if isinstance(problem, Rows) else root(problem.G), full_matrices=False)
        components = data.n_values // data.n_found
        own = len(r) - len(data.points) * components
        kept = s > 1e-10 * s.max(initial=0.0)
        leverage = np.square((J[own:] @ Vt[kept].T) / s[kept]).sum(axis=1)
        out = r[own:] / np.maximum(1.0 - leverage, 1e-3)
        # In units of σ²: L, a mean over sensors, and its rows are.
        sums = np.array([out @ out, data.n_found * (r[own:] @ r[own:]), leverage.sum()])
        left_out, chi2, p = sum_array(game.comm, sums)
        variance = float(np.exp(2.0 * sum_array(game.comm, _log_noise(data))[0] / data.n_found))
        freedom = max(1.0, data.n_values - float(p))  # less than all of θ where a prior has a say
        right = bool(chi2 <= freedom + self.level * math.sqrt(2.0 * freedom))
        floor = self.trusted**2
        tau2 = variance * (floor if right else max(floor, self.factor**2 * (float(left_out) / components - 1.0)))
        w = replace(self.base, b1=self.base.a1 / tau2, b2=self.base.a2 / tau2)
        verdict = "passes" if right else "does not pass"
        degrees = f"χ² {chi2:.3g}, {freedom:.4g} degrees"
        told = f"model discrepancy: c τ = {math.sqrt(tau2):.3g}; the physics {verdict} ({degrees})"
        return Choice(w, [w], np.array([float(left_out)]), np.zeros(1), told)


def _log_noise(data: Data) -> np.ndarray:
    """Σ log σ of the sensors owned here that count."""
    return np.atleast_1d(np.log(data.noise_std.numpy()[data.rows[data.points.index]]).sum())


def choose_decay(
    synthetic: nn.Module,
    data: Data,
    decays: Sequence[float],
    answer: Answer,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Choice:
    """The weight decay of a network alone, by cross-validation: the baseline gets the care that the game gets.

    Args:
        decays: To try, each going on from where the one before ended: largest first.
        answer: One answer for each.  folds, seed: as in `CrossValidation`.

    The network is as before afterwards.  Raises ValueError where a fold would have no sensor.  Collective.
    """
    rule = CrossValidation([Weights(decay=decay) for decay in decays], folds=folds, seed=seed)
    rule.check(data)
    before = flat(synthetic.parameters())
    table = []
    try:
        for k in range(folds):
            kept, held = rule.parted(data, k)
            put_flat(synthetic.parameters(), before)
            row = []
            for decay in decays:
                NetworkOnly(synthetic, kept, answer, decay=decay).run(1)
                with torch.no_grad():
                    values = network_values(synthetic, held.points.x)
                row.append(float(sum_array(data.points.comm, np.atleast_1d(float(held.local_misfit(values))))[0]))
            table.append(row)
    finally:
        put_flat(synthetic.parameters(), before)
    return rule.best(table)


@dataclass
class GradientBalance:
    """b₁ and b₂ such that misfit and interaction pull equally hard: b |∇I| = a |∇L| for each player.

    (Wang, Teng, Perdikaris 2021, for PINNs.)  Measured every so many rounds, with a moving average.

    Args:
        start: Weights to begin with; a₁, a₂ and the decay stay.
        every: Rounds between measurements; each costs two more adjoint solves.
        memory: Of the moving average, within [0, 1).
    """

    start: Weights = field(default_factory=Weights)
    every: int = 10
    memory: float = 0.9

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.memory < 1:
            raise ValueError(f"GradientBalance needs every >= 1 and 0 <= memory < 1, not {self.every}, {self.memory}")
        self.now = self.start
        self._measured = -1

    def state(self) -> State:
        """The weights now, and when they were measured last."""
        return {"now": vars(self.now), "measured": self._measured}

    def restore(self, state: State) -> None:
        """Put a state back."""
        self.now, self._measured = Weights(**state["now"]), state["measured"]

    def due(self, number: int) -> bool:
        """Whether the weights are to be measured in this round."""
        return number % self.every == 0 and number != self._measured

    def at(self, number: int, own_phy: float, joint_phy: float, own_syn: float, joint_syn: float) -> Weights:
        """New weights from |∇_θ L_phy|, |∇_θ I|, |∇_φ L_syn|, |∇_φ I|."""
        w = self.now
        memory = self.memory if self._measured >= 0 else 0.0
        self._measured = number
        b1 = _mixed(w.a1, w.b1, own_phy, joint_phy, memory)
        b2 = _mixed(w.a2, w.b2, own_syn, joint_syn, memory)
        self.now = replace(w, b1=b1, b2=b2)
        return self.now


def _mixed(a: float, b: float, own: float, interaction: float, memory: float) -> float:
    if not (0 < own < math.inf and 0 < interaction < math.inf and a > 0):
        return b
    return memory * b + (1.0 - memory) * a * own / interaction


Rule = CrossValidation | Discrepancy | GradientBalance | ModelDiscrepancy


def _check_candidates(candidates: Sequence[Weights]) -> None:
    if not candidates or not all(isinstance(w, Weights) for w in candidates):
        raise ValueError("candidates must be a list of at least one hyco_fem.Weights")


def _state(game: Hyco) -> tuple[np.ndarray, np.ndarray]:
    return flat(game.physical.parameters()), flat(game.synthetic.parameters())


def _restore(game: Hyco, state: tuple[np.ndarray, np.ndarray]) -> None:
    put_flat(game.physical.parameters(), state[0])
    put_flat(game.synthetic.parameters(), state[1])
