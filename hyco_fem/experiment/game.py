"""The tables of the game: ghost points, weights, prior, answers, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from hyco_fem.experiment.tables import (
    Above,
    AtLeast,
    ConfigurationError,
    Count,
    Natural,
    NotNegative,
    Numbers,
    Positive,
)


@dataclass(frozen=True, kw_only=True)
class RandomTable:
    """`RandomGhosts`, and `boundary` points of `BoundaryGhosts` with them."""

    type: Literal["random"]
    points: Count = 200
    boundary: Natural = 0
    seed: Natural = 0
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class QuadratureTable:
    """`QuadratureGhosts`."""

    type: Literal["quadrature"]
    degree: Natural = 2


@dataclass(frozen=True, kw_only=True)
class DofsTable:
    """`DofGhosts`; for steady problems."""

    type: Literal["dofs"]


# -- weights ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights that a rule tries; those left out are as in the table around it."""

    a1: NotNegative | None = None
    b1: NotNegative | None = None
    a2: NotNegative | None = None
    b2: NotNegative | None = None
    decay: NotNegative | None = None


# The keys of each rule beside those of `Weights`.
RULES: dict[str, tuple[str, ...]] = {
    "given": (),
    "model_discrepancy": ("factor", "trusted", "level"),
    "cross_validation": ("candidates", "folds", "rounds", "model", "warm", "seed"),
    "discrepancy": ("candidates", "level", "rounds"),
    "gradient_balance": ("every", "memory"),
}


@dataclass(frozen=True, kw_only=True)
class WeightsTable:
    """`Weights`, and how they are chosen: `ModelDiscrepancy` (b1 and b2 from the data), `CrossValidation`,
    `Discrepancy`, `GradientBalance`, each with the keys that it has in Python.

    candidates: for the rules that try some, such as [{ b1 = 1, b2 = 10 }, { b1 = 1, b2 = 100 }].
    """

    rule: Literal["given", "model_discrepancy", "cross_validation", "discrepancy", "gradient_balance"] = "given"
    a1: NotNegative = 1.0
    b1: NotNegative | None = None
    a2: NotNegative = 1.0
    b2: NotNegative | None = None
    decay: NotNegative = 0.0
    factor: Positive | None = None
    trusted: Positive | None = None
    level: Positive | None = None
    candidates: list[Candidate] | None = None
    folds: Annotated[int, AtLeast(2)] | None = None
    rounds: Count | None = None
    model: Literal["synthetic", "physical"] | None = None
    warm: bool | None = None
    seed: Natural | None = None
    every: Count | None = None
    memory: NotNegative | None = None

    def __post_init__(self) -> None:
        own = RULES[self.rule]
        for name in dict.fromkeys(n for names in RULES.values() for n in names):
            if name not in own and getattr(self, name) is not None:
                rules = " and ".join(f"'{rule}'" for rule, names in RULES.items() if name in names)
                raise ConfigurationError(f"{name}: is for the rule {rules}, not for '{self.rule}'; leave it out")
        for name in ("b1", "b2"):
            if self.rule == "model_discrepancy" and getattr(self, name) is not None:
                raise ConfigurationError(f"{name}: is chosen by the rule '{self.rule}'; leave it out")
        if "candidates" in own and not self.candidates:
            raise ConfigurationError(f"candidates: is missing; '{self.rule}' chooses among some weights")
        if self.memory is not None and not self.memory < 1.0:
            raise ConfigurationError(f"memory: must be less than 1, not {self.memory:g}")

    @property
    def needs_noise(self) -> bool:
        """Whether the noise of the data must be known."""
        return self.rule in ("model_discrepancy", "discrepancy")


@dataclass(frozen=True, kw_only=True)
class PriorTable:
    """`Prior`: std, and mean where it is not the start, by name of a parameter: "kappa.amplitudes" = 0.5.

    One number as std is that of all parameters.
    """

    std: Annotated[float | dict[str, Numbers], Above(0)]
    mean: dict[str, Numbers] = field(default_factory=dict)


# -- answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdamTable:
    """`AdamStep`."""

    type: Literal["adam"]
    lr: Positive = 1e-3
    steps: Count = 1


@dataclass(frozen=True, kw_only=True)
class LBFGSTable:
    """`LBFGS`."""

    type: Literal["lbfgs"]
    steps: Count = 20
    tolerance: Positive = 1e-12
    memory: Count = 20
    keep_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class GaussNewtonTable:
    """`GaussNewton`; bounds: lower and upper by name of a parameter, "kappa.amplitudes" = [0.1, 8.0]."""

    type: Literal["gauss_newton"]
    steps: Count = 1
    tolerance: NotNegative = 1e-10
    damping: Positive = 1e-3
    anneal: Annotated[list[float], Above(0)] = field(default_factory=list)
    bounds: dict[str, list[Numbers]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, pair in self.bounds.items():
            if len(pair) != 2:
                raise ConfigurationError(f"bounds.{name}: must be two entries, lower and upper, not {len(pair)}")


@dataclass(frozen=True, kw_only=True)
class MultiStartTable(GaussNewtonTable):
    """`MultiStart` within the bounds, each start followed by Gauss–Newton."""

    type: Literal["multi_start"]  # type: ignore[assignment]
    steps: Count = 30
    starts: Count = 16
    keep: Count = 3
    seed: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bounds:
            raise ConfigurationError("bounds: is missing; starts are drawn between them")


Answer: TypeAlias = AdamTable | LBFGSTable | GaussNewtonTable | MultiStartTable


@dataclass(frozen=True, kw_only=True)
class StoppingTable:
    """`Stopping`."""

    gradient: Positive | None = None
    stagnation: Positive | None = None
    window: Count = 5
    discrepancy: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Game:
    """`Hyco`, and how long it is played."""

    rounds: Count
    schedule: Literal["alternating", "simultaneous", "joint"] = "alternating"
    warm_up: Natural = 0
    ghosts: RandomTable | QuadratureTable | DofsTable = field(default_factory=lambda: RandomTable(type="random"))
    weights: WeightsTable = field(default_factory=WeightsTable)
    prior: PriorTable | None = None
    physical: Answer = field(default_factory=lambda: AdamTable(type="adam", lr=5e-3))
    synthetic: Answer = field(default_factory=lambda: AdamTable(type="adam"))
    joint: Answer = field(default_factory=lambda: GaussNewtonTable(type="gauss_newton", steps=5))
    stopping: StoppingTable | None = None

    def __post_init__(self) -> None:
        if isinstance(self.synthetic, MultiStartTable):
            raise ConfigurationError("synthetic.type: 'multi_start' is for the physical player")
