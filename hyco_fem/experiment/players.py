"""From the tables of a game to what it takes: ghost points, weights and their rules, a prior, answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hyco_fem.bridge.boundary_ghosts import BoundaryGhosts, GhostUnion
from hyco_fem.bridge.ghosts import DofGhosts, Ghosts, QuadratureGhosts, RandomGhosts
from hyco_fem.experiment import game
from hyco_fem.experiment.tables import ConfigurationError, closest, section
from hyco_fem.game.answers import LBFGS, AdamStep, Answers
from hyco_fem.game.gauss_newton import GaussNewton
from hyco_fem.game.losses import Weights
from hyco_fem.game.multistart import MultiStart
from hyco_fem.game.prior import Prior
from hyco_fem.game.rules import CrossValidation, Discrepancy, GradientBalance, ModelDiscrepancy, Rule


def ghosts_of(spec: Any) -> Ghosts:
    """The sampler of ghost points."""
    if isinstance(spec, game.QuadratureTable):
        return QuadratureGhosts(spec.degree)
    if isinstance(spec, game.DofsTable):
        return DofGhosts()
    inside = RandomGhosts(spec.points, spec.seed, spec.fixed)
    if not spec.boundary:
        return inside
    return GhostUnion([inside, BoundaryGhosts(spec.boundary, None, spec.seed, spec.fixed)])


def weights_of(spec: game.WeightsTable) -> Weights | Rule:
    """The weights, or the rule that chooses them."""
    with section("game.weights"):
        base = Weights(a1=spec.a1, a2=spec.a2, decay=spec.decay, **_given(spec, ("b1", "b2")))
        options = _given(spec, game.RULES[spec.rule])
        if "candidates" in options:
            names = ("a1", "b1", "a2", "b2", "decay")
            options["candidates"] = [replace(base, **_given(c, names)) for c in options["candidates"]]
        if spec.rule == "cross_validation":
            return CrossValidation(**options)
        if spec.rule == "discrepancy":
            return Discrepancy(**options)
        if spec.rule == "gradient_balance":
            return GradientBalance(base, **options)
        return ModelDiscrepancy(base, **options) if spec.rule == "model_discrepancy" else base


def _given(spec: Any, names: Iterable[str]) -> dict[str, Any]:
    """The keys of a table that are there."""
    return {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}


def prior_of(spec: game.PriorTable | None, theta: list[str]) -> Prior | None:
    """What is known of θ beforehand; `theta` are the names of its parameters."""
    if spec is None:
        return None
    if isinstance(spec.std, dict):
        _check_names(spec.std, theta, "game.prior.std")
    _check_names(spec.mean, theta, "game.prior.mean")
    return Prior(spec.std, spec.mean or None)


def answers_of(spec: game.Game, theta: list[str]) -> Answers:
    """How each player answers."""
    return Answers(
        physical=_answer(spec.physical, "game.physical", theta),
        synthetic=_answer(spec.synthetic, "game.synthetic", None),
        joint=_answer(spec.joint, "game.joint", None),
    )


def _answer(spec: game.Answer, key: str, theta: list[str] | None) -> Any:
    if isinstance(spec, game.AdamTable):
        return AdamStep(spec.lr, spec.steps)
    if isinstance(spec, game.LBFGSTable):
        return LBFGS(spec.steps, spec.tolerance, spec.memory, spec.keep_memory)
    if theta is not None:
        _check_names(spec.bounds, theta, f"{key}.bounds")
    with section(key):
        box = {name: (np.array(low), np.array(high)) for name, (low, high) in spec.bounds.items()}
        newton = GaussNewton(spec.steps, spec.tolerance, spec.damping, box or None, tuple(spec.anneal))
        if isinstance(spec, game.MultiStartTable):
            return MultiStart(box, starts=spec.starts, keep=spec.keep, answer=newton, seed=spec.seed)
    return newton


def _check_names(names: Iterable[str], theta: list[str], key: str) -> None:
    for name in names:
        if name not in theta:
            raise ConfigurationError(f"{key}.{name}: no such parameter; {closest(name, theta)}")
