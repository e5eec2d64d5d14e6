"""What an experiment is: the tables and keys of its TOML file.

    [mesh]             file, gdim, mesh_size, constants; or shape, cells, lower, upper
    [problem]          name of the catalogue, or python = "file.py" and function; arguments, conditions, petsc_options
    [coefficients.K]   for each unknown coefficient K: type = "scalar", "bumps", "sine", "nodal" or "neural", its start
    [sensors]          file
    [network]          type = "mlp", "resnet", "shallow", "fourier"; hard_boundary
    [game]             rounds, schedule, warm_up; ghosts, weights, physical, synthetic, joint, stopping
    [output]           folder, checkpoint_seconds, checkpoint_rounds, keep, fields

Names and defaults are those of the classes of hyco_fem.  Files are relative to the folder of the TOML file, the output
folder is relative to the current one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from hyco_fem.experiment.models import (
    BumpsTable,
    FourierTable,
    MLPTable,
    NeuralTable,
    NodalTable,
    ResNetTable,
    ScalarTable,
    ShallowTable,
    SineTable,
)
from hyco_fem.experiment.tables import (
    Above,
    AtLeast,
    ConfigurationError,
    Count,
    Natural,
    NotNegative,
    Numbers,
    Positive,
    closest,
    value_of,
)
from hyco_fem.pde import catalogue
from hyco_fem.pde.problem import Problem

SHAPES = {"interval": 1, "rectangle": 2, "box": 3}


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A mesh from a file of gmsh, or of a box in simplices.

    The sides of a box have names: left, right (x), bottom, top (y), front, back (z).
    """

    file: Path | None = None
    gdim: Annotated[int, AtLeast(1)] | None = None
    mesh_size: Positive | None = None
    constants: dict[str, float] = field(default_factory=dict)
    shape: Literal["interval", "rectangle", "box"] | None = None
    cells: Annotated[int | list[int], AtLeast(1)] | None = None
    lower: list[float] | None = None
    upper: list[float] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.shape is None):
            raise ConfigurationError("file: a mesh has either a file or a shape")
        only = ("cells", "lower", "upper") if self.shape is None else ("gdim", "mesh_size", "constants")
        for name in only:
            if getattr(self, name):
                raise ConfigurationError(f"{name}: is not for a mesh of a {'file' if self.shape is None else 'shape'}")
        for name in ("mesh_size", "constants"):
            if getattr(self, name) and self.file is not None and self.file.suffix != ".geo":
                raise ConfigurationError(f"{name}: is for a .geo file, and '{self.file}' is a mesh already")
        if self.gdim is not None and self.gdim > 3:
            raise ConfigurationError(f"gdim: must be 1, 2 or 3, not {self.gdim}")
        if self.shape is not None:
            self._check_box(SHAPES[self.shape])

    def _check_box(self, d: int) -> None:
        if self.cells is None:
            raise ConfigurationError("cells: is missing; how many there are along each axis")
        for name in ("cells", "lower", "upper"):
            given = getattr(self, name)
            if isinstance(given, list) and len(given) != d:
                raise ConfigurationError(
                    f"{name}: must have {d} entries for the shape '{self.shape}', not {len(given)}"
                )
        for low, high in zip(self.lower or [0.0] * d, self.upper or [1.0] * d, strict=True):
            if not low < high:
                raise ConfigurationError(f"upper: must be above lower, not {high:g} where lower is {low:g}")


# -- the PDE ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """u = value on groups of facets of the mesh; without `facets` on the whole boundary."""

    type: Literal["dirichlet"]
    value: Numbers
    facets: str | list[str] | None = None
    component: Natural | None = None


@dataclass(frozen=True, kw_only=True)
class Flux:
    """The natural condition."""

    type: Literal["flux"]
    value: Numbers
    facets: str | list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Robin:
    """coefficient · (ambient − u) flows in."""

    type: Literal["robin"]
    coefficient: Numbers
    ambient: Numbers
    facets: str | list[str] | None = None


def _steady() -> dict[str, inspect.Signature]:
    """The ready problems that are steady, with what they take."""
    found = {}
    for name in catalogue.__all__:
        signature = inspect.signature(getattr(catalogue, name))
        if signature.return_annotation in (Problem, Problem.__name__):
            found[name] = signature
    return found


STEADY = _steady()


@dataclass(frozen=True, kw_only=True)
class ProblemTable:
    """A steady PDE of `hyco_fem.catalogue` by its name, or the `Problem` that a function of a Python file returns.

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
        if self.name not in STEADY:
            if self.name in catalogue.__all__:
                raise ConfigurationError(f"name: only steady problems are run, not '{self.name}': {', '.join(STEADY)}")
            hint = closest(self.name, STEADY)
            raise ConfigurationError(f"name: '{self.name}' is no problem of the catalogue; {hint}")
        parameters = STEADY[self.name].parameters
        for name, value in self.arguments.items():
            names = [n for n in parameters if n not in ("mesh", "conditions")]
            if name not in names:
                raise ConfigurationError(
                    f"arguments.{name}: {self.name} takes no such argument; {closest(name, names)}"
                )
            kind = {"int": int, "bool": bool, "float": float}.get(parameters[name].annotation, Numbers)
            value_of(kind, value, f"arguments.{name}")
        for name, parameter in parameters.items():
            given = name in self.arguments or name == "mesh" or (name == "conditions" and self.conditions is not None)
            if parameter.default is inspect.Parameter.empty and not given:
                where = name if name == "conditions" else f"arguments.{name}"
                raise ConfigurationError(f"{where}: is missing; {self.name} needs it")

    def unknowns(self) -> list[str] | None:
        """Names that coefficients may have; None where only the Python file knows."""
        if self.name is None:
            return None
        return [n for n, p in STEADY[self.name].parameters.items() if p.annotation == "Any"]


# -- the game --------------------------------------------------------------------------------------------------


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
    """`DofGhosts`."""

    type: Literal["dofs"]


@dataclass(frozen=True, kw_only=True)
class WeightsTable:
    """`Weights`; with rule = "model_discrepancy" b1 and b2 come from the data."""

    rule: Literal["given", "model_discrepancy"] = "given"
    a1: NotNegative = 1.0
    b1: NotNegative | None = None
    a2: NotNegative = 1.0
    b2: NotNegative | None = None
    decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if self.rule != "given" and getattr(self, name) is not None:
                raise ConfigurationError(f"{name}: is chosen by the rule '{self.rule}'; leave it out")


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
    physical: Answer = field(default_factory=lambda: AdamTable(type="adam", lr=5e-3))
    synthetic: Answer = field(default_factory=lambda: AdamTable(type="adam"))
    joint: Answer = field(default_factory=lambda: GaussNewtonTable(type="gauss_newton", steps=5))
    stopping: StoppingTable | None = None

    def __post_init__(self) -> None:
        if isinstance(self.synthetic, MultiStartTable):
            raise ConfigurationError("synthetic.type: 'multi_start' is for the physical player")


# -- the whole -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """A table of sensors, as `read_sensors` reads it."""

    file: Path


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go, by default out/NAME for NAME.toml, and how often a checkpoint is written."""

    folder: Path | None = None
    checkpoint_seconds: NotNegative = 60.0
    checkpoint_rounds: Count | None = None
    keep: Count = 3
    fields: bool = True


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole experiment, checked as far as can be without a mesh; files are absolute and there."""

    title: str | None = None
    mesh: Mesh
    problem: ProblemTable
    coefficients: dict[str, ScalarTable | BumpsTable | SineTable | NodalTable | NeuralTable]
    sensors: Sensors
    network: MLPTable | ResNetTable | ShallowTable | FourierTable
    game: Game
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if not self.coefficients:
            raise ConfigurationError("coefficients: is empty; at least one coefficient of the PDE must be unknown")
        names = self.problem.unknowns()
        for name in self.coefficients:
            if name in self.problem.arguments and names is not None:
                raise ConfigurationError(
                    f"problem.arguments.{name}: is unknown, with a start in coefficients; leave it out"
                )
            if names is not None and name not in names:
                raise ConfigurationError(f"coefficients.{name}: {self.problem.name} has none; {closest(name, names)}")

    def files(self) -> dict[str, Path]:
        """The files it is made of, by key."""
        found = {"mesh.file": self.mesh.file, "problem.python": self.problem.python, "sensors.file": self.sensors.file}
        return {key: path for key, path in found.items() if path is not None}

    def with_files(self, change: Callable[[Path], Path]) -> Experiment:
        """The same with other names of its files."""
        mesh, problem = self.mesh, self.problem
        return replace(
            self,
            mesh=mesh if mesh.file is None else replace(mesh, file=change(mesh.file)),
            problem=problem if problem.python is None else replace(problem, python=change(problem.python)),
            sensors=Sensors(file=change(self.sensors.file)),
        )
