"""What an experiment is: the tables and keys of its TOML file.

    [mesh]             file, gdim, mesh_size, constants, grid, names; or shape, cells, lower, upper
    [problem]          name of the catalogue, or python = "file.py" and function; arguments, conditions, petsc_options
    [time]             of a problem in time: start, end, dt; scheme = "backward_euler", "crank_nicolson", "theta",
                       "bdf2" or "bdf3"; checkpoints = "in_memory", "revolve", "on_disk" or "budget"; output
    [coefficients.K]   for each unknown coefficient K: type = "scalar", "bumps", "sine", "nodal" or "neural", its start;
                       "vector" has components, and in time "per_interval" parts; K = "initial": u at the start
    [sensors]          file; in time with a column t
    [network]          type = "mlp", "resnet", "shallow", "fourier"; hard_boundary
    [game]             rounds, schedule, warm_up; ghosts, physical, synthetic, joint, stopping
    [game.weights]     a1, b1, a2, b2, decay; rule = "given", "model_discrepancy" (factor, trusted, level),
                       "cross_validation" (candidates, folds, rounds, model, warm, seed), "discrepancy" (candidates,
                       level, rounds) or "gradient_balance" (every, memory)
    [game.prior]       std, mean
    [output]           folder, checkpoint_seconds, checkpoint_rounds, keep, fields

Names and defaults are those of the classes of hyco_fem.  Where a table has a `type` and nothing else, the text alone
will do: ghosts = "quadrature".  A condition whose value is the name of a coefficient is unknown with it:

    conditions = [{ type = "dirichlet", value = "inflow", facets = "left" }]
    coefficients.inflow = { type = "scalar", value = 1.0 }

Files are relative to the folder of the TOML file, the output folder is relative to the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from hyco_fem.experiment.game import Game
from hyco_fem.experiment.models import AnyCoefficient, FourierTable, MLPTable, ResNetTable, ShallowTable
from hyco_fem.experiment.pde import INITIAL, STEADY, TRANSIENT, ProblemTable, Time, named_values
from hyco_fem.experiment.tables import AtLeast, ConfigurationError, Count, NotNegative, Positive, closest

SHAPES = {"interval": 1, "rectangle": 2, "box": 3}


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A mesh from a file, of gmsh or XDMF, or of a box in simplices.

    Of a .geo file mesh_size and constants may be given; of XDMF the name of the grid, and names for tags, such as
    names = { left = 3 }, or [1, 3] with the dimension of the group where cells have this tag too.
    The sides of a box have names: left, right (x), bottom, top (y), front, back (z).
    """

    file: Path | None = None
    gdim: Annotated[int, AtLeast(1)] | None = None
    mesh_size: Positive | None = None
    constants: dict[str, float] = field(default_factory=dict)
    grid: str | None = None
    names: dict[str, int | list[int]] = field(default_factory=dict)
    shape: Literal["interval", "rectangle", "box"] | None = None
    cells: Annotated[int | list[int], AtLeast(1)] | None = None
    lower: list[float] | None = None
    upper: list[float] | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.shape is None):
            raise ConfigurationError("file: a mesh has either a file or a shape")
        of_files = ("gdim", "mesh_size", "constants", "grid", "names")
        only = ("cells", "lower", "upper") if self.shape is None else of_files
        for name in only:
            if getattr(self, name):
                raise ConfigurationError(f"{name}: is not for a mesh of a {'file' if self.shape is None else 'shape'}")
        for name in ("mesh_size", "constants"):
            if getattr(self, name) and self.file is not None and self.file.suffix != ".geo":
                raise ConfigurationError(f"{name}: is for a .geo file, and '{self.file}' is a mesh already")
        for name in ("grid", "names"):
            if getattr(self, name) and self.file is not None and self.file.suffix != ".xdmf":
                raise ConfigurationError(f"{name}: is for an .xdmf file, not for '{self.file}'")
        for name, tag in self.names.items():
            if isinstance(tag, list) and len(tag) != 2:
                raise ConfigurationError(f"names.{name}: must be a tag, or [dimension, tag], not {tag}")
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
    time: Time | None = None
    coefficients: dict[str, AnyCoefficient]
    sensors: Sensors
    network: MLPTable | ResNetTable | ShallowTable | FourierTable
    game: Game
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        problem = self.problem
        if problem.name in TRANSIENT and self.time is None:
            raise ConfigurationError(f"time: is missing; {problem.name} is in time, and needs end and dt")
        if problem.name in STEADY and self.time is not None:
            raise ConfigurationError(f"time: {problem.name} is steady; leave it out")
        if not self.coefficients:
            raise ConfigurationError("coefficients: is empty; at least one coefficient of the PDE must be unknown")
        for i, condition in enumerate(problem.conditions or []):
            for key, name in named_values(condition).items():
                if name == INITIAL and self.time is not None:
                    raise ConfigurationError(
                        f"problem.conditions[{i}].{key}: 'initial' is u at the start; choose another name"
                    )
                if name not in self.coefficients:
                    hint = closest(name, self.coefficients)
                    raise ConfigurationError(
                        f"problem.conditions[{i}].{key}: '{name}' has no table in coefficients; {hint}"
                    )
        names = problem.unknowns()
        for name in self.coefficients:
            if "." in name:
                raise ConfigurationError(f"coefficients.{name}: a name must not contain a dot")
            if names is None:  # only the Python file knows
                continue
            if name in problem.arguments:
                raise ConfigurationError(
                    f"problem.arguments.{name}: is unknown, with a start in coefficients; leave it out"
                )
            if name not in names:
                raise ConfigurationError(f"coefficients.{name}: {problem.name} has none; {closest(name, names)}")
        problem.check_complete(list(self.coefficients))

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
