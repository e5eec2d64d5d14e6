"""The tables of the PDE: which one it is, its conditions on the boundary, and its steps in time."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hyco_fem.experiment.tables import (
    Above,
    AtLeast,
    ConfigurationError,
    Count,
    Natural,
    Numbers,
    closest,
    value_of,
)
from hyco_fem.pde import catalogue
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Problem

# What a problem of the catalogue takes that has a table of its own here, or none.
_NOT_ARGUMENTS = ("mesh", "conditions", "pressure", "t")

# The unknown of a problem in time at its start, as an unknown coefficient.
INITIAL = "initial"


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """u = value on groups of facets of the mesh; without `facets` on the whole boundary.

    Of every condition: a value may be the name of a table in [coefficients], and is unknown then.
    """

    type: Literal["dirichlet"]
    value: Numbers | str
    facets: str | list[str] | None = None
    component: Natural | None = None


@dataclass(frozen=True, kw_only=True)
class Flux:
    """The natural condition."""

    type: Literal["flux"]
    value: Numbers | str
    facets: str | list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Robin:
    """coefficient · (ambient − u) flows in."""

    type: Literal["robin"]
    coefficient: Numbers | str
    ambient: Numbers | str
    facets: str | list[str] | None = None


def named_values(condition: Dirichlet | Flux | Robin) -> dict[str, str]:
    """The keys of a condition whose value is unknown, with the name of the coefficient."""
    found = {key: getattr(condition, key, None) for key in ("value", "coefficient", "ambient")}
    return {key: name for key, name in found.items() if isinstance(name, str)}


def _ready(kind: type) -> dict[str, inspect.Signature]:
    """The problems of the catalogue that are of a kind, with what they take."""
    found = {name: inspect.signature(getattr(catalogue, name)) for name in catalogue.__all__}
    return {name: s for name, s in found.items() if s.return_annotation in (kind, kind.__name__)}


STEADY, TRANSIENT = _ready(Problem), _ready(TransientProblem)


@dataclass(frozen=True, kw_only=True)
class ProblemTable:
    """A PDE of `hyco_fem.catalogue` by its name, or what a function of a Python file returns: a `Problem`, or a
    `TransientProblem`, which needs [time].

    The function is called with the `MeshAndTags` and the arguments as keywords.
    """

    name: str | None = None
    python: Path | None = None
    function: str = "problem"
    arguments: dict[str, Any] = field(default_factory=dict)
    conditions: list[Dirichlet | Flux | Robin] | None = None
    petsc_options: dict[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.name is None) == (self.python is None):
            raise ConfigurationError("name: a problem has either a name of the catalogue or a file, python = …")
        if self.name is None:
            if self.conditions is not None:
                raise ConfigurationError("conditions: are for the function of the Python file to set")
            return
        if self.name not in STEADY | TRANSIENT:
            hint = closest(self.name, STEADY | TRANSIENT)
            raise ConfigurationError(f"name: '{self.name}' is no problem of the catalogue; {hint}")
        parameters = self.parameters
        for name, value in self.arguments.items():
            names = [n for n in parameters if n not in _NOT_ARGUMENTS]
            if name not in names:
                raise ConfigurationError(
                    f"arguments.{name}: {self.name} takes no such argument; {closest(name, names)}"
                )
            kind = {"int": int, "bool": bool, "float": float}.get(parameters[name].annotation, Numbers)
            value_of(kind, value, f"arguments.{name}")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What the problem of the catalogue takes."""
        assert self.name is not None
        return dict((STEADY | TRANSIENT)[self.name].parameters)

    @property
    def quantities(self) -> list[str]:
        """What of it may be unknown: the coefficients, and the initial value."""
        return [n for n, p in self.parameters.items() if p.annotation == "Any" and n != "initial_pressure"]

    def check_complete(self, unknown: list[str]) -> None:
        """Raise ConfigurationError where the catalogue needs more than is given here and unknown."""
        if self.name is None:
            return
        for name, parameter in self.parameters.items():
            given = name in [*self.arguments, *unknown, "mesh"] or (
                name == "conditions" and self.conditions is not None
            )
            if parameter.default is inspect.Parameter.empty and not given:
                where = name if name == "conditions" else f"arguments.{name}"
                raise ConfigurationError(f"problem.{where}: is missing; {self.name} needs it")

    def unknowns(self) -> list[str] | None:
        """Names that coefficients may have; None where only the Python file knows."""
        if self.name is None:
            return None
        named = [name for c in self.conditions or [] for name in named_values(c).values()]
        return list(dict.fromkeys([*self.quantities, *named]))


# -- time ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepsTable:
    """`BackwardEuler`, `BDF2`, `BDF3`."""

    type: Literal["backward_euler", "bdf2", "bdf3"]


@dataclass(frozen=True, kw_only=True)
class CrankNicolsonTable:
    """`CrankNicolson`."""

    type: Literal["crank_nicolson"]
    damped: Natural = 0


@dataclass(frozen=True, kw_only=True)
class ThetaTable:
    """`ThetaScheme`."""

    type: Literal["theta"]
    theta: Annotated[float, AtLeast(0.5)]
    damped: Natural = 0

    def __post_init__(self) -> None:
        if self.theta > 1.0:
            raise ConfigurationError(f"theta: must be at most 1, backward Euler, not {self.theta:g}")


@dataclass(frozen=True, kw_only=True)
class InMemoryTable:
    """`InMemory`."""

    type: Literal["in_memory"]


@dataclass(frozen=True, kw_only=True)
class RevolveTable:
    """`Revolve`; like the output folder, `folder` is relative to the current one, here and below."""

    type: Literal["revolve"]
    snapshots: Natural
    on_disk: Natural = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.snapshots + self.on_disk < 1:
            raise ConfigurationError("snapshots: at least one is needed, here or on disk")


@dataclass(frozen=True, kw_only=True)
class OnDiskTable:
    """`OnDisk`."""

    type: Literal["on_disk"]
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetTable:
    """`MemoryBudget`: size = "1 GB" on each rank."""

    type: Literal["budget"]
    size: str
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Time:
    """The steps of a problem in time.

    dt: the length of a step, or those of all steps.  scheme: by default that of `TransientModel`.
    checkpoints: what is kept for gradients.
    output: times for the fields, at the ends of steps; or so many of them, spread evenly from start to end.
    """

    start: float = 0.0
    end: float
    dt: Annotated[float | list[float], Above(0)]
    scheme: StepsTable | CrankNicolsonTable | ThetaTable | None = None
    checkpoints: InMemoryTable | RevolveTable | OnDiskTable | BudgetTable = field(
        default_factory=lambda: InMemoryTable(type="in_memory")
    )
    output: Count | list[float] = 11

    def __post_init__(self) -> None:
        if not self.end > self.start:
            raise ConfigurationError(f"end: must be after the start, {self.start:g}, not {self.end:g}")
