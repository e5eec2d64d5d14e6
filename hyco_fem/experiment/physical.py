"""The physical model of an experiment: the PDE with its unknown coefficients.  Everything here is collective."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem import _compat
from hyco_fem._compat import MeshAndTags
from hyco_fem.bridge.dofs import dof_coordinates
from hyco_fem.experiment import models, pde
from hyco_fem.experiment.meshes import facets_of
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, closest, section
from hyco_fem.models.coefficients import GaussianBumps, NeuralField, NodalField, Scalar, SineSeries
from hyco_fem.models.pde_model import PerInterval
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.synthetic import MLP, InputScaling, bounding_box
from hyco_fem.models.transforms import Bounded, Positive, Transform
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed
from hyco_fem.pde import catalogue
from hyco_fem.pde.checkpoints import Checkpoints, InMemory, MemoryBudget, OnDisk, Revolve, StepSize
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Condition, Dirichlet, Flux, Problem, Robin
from hyco_fem.pde.scheme import BDF2, BDF3, BackwardEuler, CrankNicolson, Scheme, ThetaScheme
from hyco_fem.pde.timegrid import TimeGrid

AnyModel: TypeAlias = PhysicalModel | TransientModel
AnyProblem: TypeAlias = Problem | TransientProblem

_SCHEMES: dict[str, Any] = {
    "backward_euler": BackwardEuler,
    "bdf2": BDF2,
    "bdf3": BDF3,
    "crank_nicolson": CrankNicolson,
    "theta": ThetaScheme,
}
_CHECKPOINTS: dict[str, Any] = {"in_memory": InMemory, "revolve": Revolve, "on_disk": OnDisk, "budget": MemoryBudget}


def build_physical(experiment: Experiment, mesh: MeshAndTags) -> tuple[AnyModel, AnyProblem]:
    """The PDE with its unknown coefficients, and what it was made of.  Collective."""
    spec, unknown = experiment.problem, experiment.coefficients
    if spec.name is None:
        problem = _from_python(spec, mesh)
        timed = isinstance(problem, TransientProblem)
        if timed != (experiment.time is not None):
            raise ConfigurationError(
                f"time: is missing; '{problem.name}' of '{spec.python}' is in time, and needs end and dt"
                if timed
                else f"time: '{problem.name}' of '{spec.python}' is steady; leave it out"
            )
        for name, chosen in unknown.items():
            if chosen.degree is not None:
                raise ConfigurationError(
                    f"coefficients.{name}.degree: the Python file has made the space; leave it out"
                )
            if name in problem.coefficients:
                problem.coefficients[name].name = name  # by which models know it
    else:
        problem = _from_catalogue(spec, mesh, unknown)
    modules = {}
    for name, chosen in unknown.items():
        Q = space_of(name, problem)
        in_time = isinstance(problem, TransientProblem) and name in problem.coefficients
        if isinstance(chosen, models.PerIntervalTable) and not in_time:
            raise ConfigurationError(f"coefficients.{name}.type: 'per_interval' is for coefficients of a PDE in time")
        with section(f"coefficients.{name}"):
            modules[name] = _module(chosen, Q)
            with agreed(mesh.mesh.comm), torch.no_grad():
                modules[name](dof_coordinates(Q))
    if isinstance(problem, TransientProblem):
        assert experiment.time is not None
        model: AnyModel = _in_time(experiment.time, spec, problem, modules)
        check = model.inputs
    else:
        with section("problem"):
            model = PhysicalModel.of(problem, modules, petsc_options=spec.petsc_options or None)
        check = model.coefficient_values
    with section("coefficients"), torch.no_grad():
        check()
    return model, problem


def space_of(name: str, problem: AnyProblem) -> fem.FunctionSpace:
    """The space of an unknown coefficient.

    Raises:
        ConfigurationError: the problem has none of this name.
    """
    if name in problem.coefficients:
        return problem.coefficients[name].function_space
    in_time = isinstance(problem, TransientProblem)
    if in_time and name == pde.INITIAL:
        return problem.u.function_space
    hint = closest(name, [*problem.coefficients, *([pde.INITIAL] if in_time else [])])
    raise ConfigurationError(f"coefficients.{name}: '{problem.name}' has none; {hint}")


def observed_space(model: AnyModel) -> fem.FunctionSpace:
    """The space, or part of it, that is compared with data; in time at one time."""
    return model.observed.V if isinstance(model, TransientModel) else model.observed


def unknown_modules(model: AnyModel) -> dict[str, nn.Module]:
    """The modules of the unknown coefficients, and of the initial value, by name."""
    found = dict(model.coefficients.items())
    initial = getattr(model, pde.INITIAL, None)
    return found if initial is None else found | {pde.INITIAL: initial}


# -- in time ---------------------------------------------------------------------------------------------------


def _in_time(
    spec: pde.Time, table: pde.ProblemTable, problem: TransientProblem, modules: dict[str, nn.Module]
) -> TransientModel:
    with section("time.dt"):
        grid = TimeGrid.of((spec.start, spec.end), spec.dt)
    with section("time.output"):
        if isinstance(spec.output, int):
            rows = np.unique(np.linspace(0, grid.n, spec.output).round().astype(int)) if spec.output > 1 else [grid.n]
            output = grid.times[rows]
        else:
            output = grid.times[grid.indices(spec.output)]
    scheme: Scheme | None = None
    if spec.scheme is not None:
        if problem.splitting is not None:
            raise ConfigurationError(f"time.scheme: {problem.name} has one of its own; leave it out")
        with section("time.scheme"):
            chosen: Scheme = _made(_SCHEMES, spec.scheme)
            chosen.check(grid, problem.explicit is not None)
        scheme = chosen
    with section("time.checkpoints"):
        checkpoints = _Kept(_made(_CHECKPOINTS, spec.checkpoints))
    for name, module in modules.items():
        if isinstance(module, PerInterval):
            with section(f"coefficients.{name}.changes"):
                grid.intervals(module.changes)
    options: dict[str, Any] = {}
    if pde.INITIAL in modules and pde.INITIAL not in problem.coefficients:
        options[pde.INITIAL] = modules.pop(pde.INITIAL)
    with section("problem"):
        return TransientModel.of(
            problem,
            modules,
            interval=(spec.start, spec.end),
            dt=spec.dt,
            times=output,
            scheme=scheme,
            checkpoints=checkpoints,
            petsc_options=table.petsc_options or None,
            **options,
        )


class _Kept:
    """Checkpoints whose errors have their key: whether they fit is found out late."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def resolve(self, size: StepSize) -> Any:
        """As that of the checkpoints."""
        with section("time.checkpoints"):
            return self._checkpoints.resolve(size)


def _made(kinds: Mapping[str, Any], spec: Any) -> Any:
    """The object of a table."""
    return kinds[spec.type](**{f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "type"})


# -- the catalogue ---------------------------------------------------------------------------------------------


def _from_catalogue(
    spec: pde.ProblemTable, mesh: MeshAndTags, unknown: Mapping[str, models.AnyCoefficient]
) -> AnyProblem:
    """The problem with Functions for what is unknown; their spaces are read off one in which all is known."""
    assert spec.name is not None
    make = getattr(catalogue, spec.name)
    known = dict(spec.arguments)
    for name, parameter in spec.parameters.items():
        if name in unknown and parameter.default is parameter.empty:
            known[name] = 0.0 if name == pde.INITIAL else np.zeros(mesh.mesh.geometry.dim)
    with section("problem"):
        first = make(mesh.mesh, **known, **_conditions(spec, mesh, {}))
    quantities = spec.quantities
    shapes = {
        name: _compat.value_shape(first.coefficients[name].function_space) if name in first.coefficients else ()
        for name in unknown
        if name in quantities
    }
    functions: dict[str, fem.Function] = {}
    for name, chosen in unknown.items():
        if name == pde.INITIAL and name in quantities:
            if chosen.degree is not None:
                raise ConfigurationError(f"coefficients.{name}.degree: its space is that of u; leave it out")
            continue
        with section(f"coefficients.{name}.degree"):
            V = shapes[name] if name in shapes else _boundary_space(name, spec, first)
            if isinstance(V, fem.FunctionSpace):
                if chosen.degree is not None:
                    raise ValueError("a Dirichlet value has the space of u; leave it out")
            else:
                element = ("DG", 0) if chosen.degree == 0 else ("Lagrange", chosen.degree or 1)
                V = fem.functionspace(mesh.mesh, (*element, V) if V else element)
        functions[name] = fem.Function(V, name=name)
        functions[name].x.array[:] = 1.0
    arguments = known | {name: f for name, f in functions.items() if name in quantities}
    with section("problem"):
        return make(mesh.mesh, **arguments, **_conditions(spec, mesh, functions))


def _boundary_space(name: str, spec: pde.ProblemTable, first: AnyProblem) -> fem.FunctionSpace | tuple[int, ...]:
    """What an unknown value of a condition must be: a Function of this space, or any one of this shape."""
    V = first.u.function_space
    for i in [first.observed] if isinstance(first.observed, int) else first.observed or ():
        V = V.sub(i)
    shape: tuple[int, ...] = ()
    for c in spec.conditions or []:
        for key, given in pde.named_values(c).items():
            if given != name:
                continue
            if isinstance(c, pde.Dirichlet):
                space = V if c.component is None else V.sub(c.component)
                return _compat.collapsed(space)[0] if len(space.component()) > 0 else space
            shape = () if key == "coefficient" else _compat.value_shape(V)
    return shape


def _conditions(spec: pde.ProblemTable, mesh: MeshAndTags, unknown: Mapping[str, fem.Function]) -> dict[str, Any]:
    """The argument `conditions` where they are given; unknown values are zero where they have no Function."""
    if spec.conditions is None:
        return {}
    made = [_condition(c, mesh, unknown, f"problem.conditions[{i}]") for i, c in enumerate(spec.conditions)]
    return {"conditions": made}


def _condition(spec: Any, mesh: MeshAndTags, unknown: Mapping[str, fem.Function], key: str) -> Condition:
    facets = facets_of(spec.facets, mesh, f"{key}.facets")

    def value(given: Any) -> Any:
        return unknown.get(given, 0.0) if isinstance(given, str) else given

    if isinstance(spec, pde.Dirichlet):
        return Dirichlet(value(spec.value), facets, spec.component)
    if isinstance(spec, pde.Flux):
        return Flux(value(spec.value), facets)
    return Robin(value(spec.coefficient), value(spec.ambient), facets)


# -- a Python file ---------------------------------------------------------------------------------------------


def _from_python(spec: pde.ProblemTable, mesh: MeshAndTags) -> AnyProblem:
    """What the function of a Python file returns.  Errors in it are told with file and line."""
    path = spec.python
    assert path is not None
    sys.path.insert(0, str(path.parent))  # for what it imports from its own folder
    try:
        loader = importlib.util.spec_from_file_location(path.stem, path)
        if loader is None or loader.loader is None:
            raise ConfigurationError(f"problem.python: '{path}' is no Python file")
        module = importlib.util.module_from_spec(loader)
        with _told(path):
            loader.loader.exec_module(module)
        function = getattr(module, spec.function, None)
        if not callable(function):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise ConfigurationError(
                f"problem.function: '{path}' has no function '{spec.function}'; {closest(spec.function, names)}"
            )
        with _told(path):
            problem = function(mesh, **spec.arguments)
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(problem, AnyProblem):
        raise ConfigurationError(
            f"problem.function: '{spec.function}' of '{path}' must return a hyco_fem.Problem or TransientProblem, not "
            f"{type(problem).__name__}"
        )
    return problem


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        lines = lines or ([error.lineno] if isinstance(error, SyntaxError) else [])
        where = f"'{path}'" + (f", line {lines[-1]}" if lines else "")
        raise ConfigurationError(f"problem.python: {where}: {type(error).__name__}: {error}") from error


# -- coefficients ----------------------------------------------------------------------------------------------


class Components(nn.Module):
    """A vector from one module for each of its components."""

    def __init__(self, components: list[nn.Module]) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n, k)."""
        return torch.stack([component(x) for component in self.components], dim=1)


def _module(spec: models.AnyCoefficient, Q: fem.FunctionSpace) -> nn.Module:
    """The module of a coefficient with values in Q."""
    size = int(np.prod(_compat.value_shape(Q), dtype=int))
    if isinstance(spec, models.PerIntervalTable):
        return PerInterval(spec.changes, [_module(part, Q) for part in spec.parts])
    if isinstance(spec, models.NodalTable):
        return NodalField(Q, spec.initial, _transform(spec))
    if isinstance(spec, models.VectorTable):
        if len(spec.components) != size:
            raise ValueError(f"there are {len(spec.components)} components, and it needs {size}")
        return Components([_scalar(component, Q) for component in spec.components])
    if size > 1:
        raise ValueError(
            f"it is a vector of {size} components: type = 'vector' has a table for each, and 'nodal' needs none"
        )
    return _scalar(spec, Q)


def _scalar(spec: models.Coefficient, Q: fem.FunctionSpace) -> nn.Module:
    keep = _transform(spec)
    if isinstance(spec, models.ScalarTable):
        return Scalar(spec.value, keep)
    if isinstance(spec, models.BumpsTable):
        return GaussianBumps(
            spec.amplitudes, spec.centres, spec.widths, spec.background, trainable=spec.trainable, transform=keep
        )
    if isinstance(spec, models.SineTable):
        return SineSeries(spec.coefficients, spec.wavenumber, transform=keep)
    assert isinstance(spec, models.NeuralTable)
    network = MLP(Q.mesh.geometry.dim, width=spec.width, depth=spec.depth, activation=spec.activation, seed=spec.seed)
    return NeuralField(InputScaling(network, bounding_box(Q.mesh)), keep)


def _transform(spec: models.Coefficient) -> Transform | None:
    if spec.lower is None:
        return None
    return Positive(spec.lower, spec.scale) if spec.upper is None else Bounded(spec.lower, spec.upper)
