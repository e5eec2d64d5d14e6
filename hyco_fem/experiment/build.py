"""From an experiment to a game: mesh, PDE, coefficients, sensors, network, answers.  Everything here is collective.

What does not fit together is a ConfigurationError that begins with the key, on all ranks.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem import _compat
from hyco_fem._compat import MeshAndTags
from hyco_fem.bridge.boundary_ghosts import BoundaryGhosts, GhostUnion
from hyco_fem.bridge.dofs import dof_coordinates
from hyco_fem.bridge.ghosts import DofGhosts, Ghosts, QuadratureGhosts, RandomGhosts
from hyco_fem.experiment import models, schema
from hyco_fem.experiment.meshes import build_mesh, facets_of
from hyco_fem.experiment.tables import ConfigurationError, closest, section
from hyco_fem.game.answers import LBFGS, AdamStep, Answers
from hyco_fem.game.data import Data
from hyco_fem.game.gauss_newton import GaussNewton
from hyco_fem.game.hyco import Hyco
from hyco_fem.game.loop import Stopping
from hyco_fem.game.losses import Weights
from hyco_fem.game.multistart import MultiStart
from hyco_fem.game.rules import ModelDiscrepancy
from hyco_fem.io.sensors import read_sensors
from hyco_fem.models.coefficients import GaussianBumps, NeuralField, NodalField, Scalar, SineSeries
from hyco_fem.models.distance import mesh_distance
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.synthetic import (
    MLP,
    FourierFeatures,
    HardBoundary,
    InputScaling,
    ResNet,
    ShallowNet,
    bounding_box,
)
from hyco_fem.models.transforms import Bounded, Positive, Transform
from hyco_fem.parallel import agreed
from hyco_fem.pde import catalogue
from hyco_fem.pde.problem import Condition, Dirichlet, Facets, Flux, Problem, Robin


@dataclass(frozen=True, eq=False)
class Built:
    """An experiment, ready to be played.

    mesh: with its groups.  physical, synthetic: the models.  data: the sensors.  game: theirs.  stopping: its end.
    part: which sub-space of the unknown is compared with data, index by index.
    spaces: of the unknown coefficients, by name.
    """

    mesh: MeshAndTags
    physical: PhysicalModel
    synthetic: nn.Module
    data: Data
    game: Hyco
    stopping: Stopping | None
    part: tuple[int, ...]
    spaces: dict[str, fem.FunctionSpace]

    def close(self) -> None:
        """Destroy the PETSc solvers.  Collective."""
        self.physical.close()


def build(experiment: schema.Experiment, comm: MPI.Comm = MPI.COMM_WORLD) -> Built:
    """The game of an experiment.  Collective.

    Raises:
        ConfigurationError: on all ranks; begins with the key.
    """
    mesh = build_mesh(experiment.mesh, comm)
    physical, problem = build_physical(experiment, mesh)
    data = build_data(experiment.sensors, physical)
    synthetic = build_network(experiment, mesh, physical)
    chosen = experiment.game
    theta = [name.removeprefix("coefficients.") for name, _ in physical.named_parameters()]
    weights = _weights(chosen.weights)
    if chosen.weights.rule != "given" and not data.known_noise:
        raise ConfigurationError(
            f"game.weights.rule: '{chosen.weights.rule}' needs a column noise_std in '{experiment.sensors.file}'"
        )
    answers = Answers(
        **{
            name: _answer(getattr(chosen, name), f"game.{name}", theta if name == "physical" else None)
            for name in ("physical", "synthetic", "joint")
        }
    )
    with section("game"):
        game = Hyco(
            physical,
            synthetic,
            data,
            _ghosts(chosen.ghosts),
            weights=weights,
            answers=answers,
            schedule=chosen.schedule,
            warm_up=chosen.warm_up,
        )
    stopping = None if chosen.stopping is None else Stopping(**vars(chosen.stopping))
    observed = () if problem.observed is None else problem.observed
    part = (observed,) if isinstance(observed, int) else tuple(observed)
    spaces = {name: problem.coefficients[name].function_space for name in experiment.coefficients}
    return Built(mesh, physical, synthetic, data, game, stopping, part, spaces)


# -- the physical model ----------------------------------------------------------------------------------------


def build_physical(experiment: schema.Experiment, mesh: MeshAndTags) -> tuple[PhysicalModel, Problem]:
    """The PDE with its unknown coefficients, and what it was made of.  Collective."""
    spec = experiment.problem
    comm = mesh.mesh.comm
    if spec.name is None:
        problem = _from_python(spec, mesh)
        for name, chosen in experiment.coefficients.items():
            if chosen.degree is not None:
                raise ConfigurationError(
                    f"coefficients.{name}.degree: the Python file has made the space; leave it out"
                )
            if name not in problem.coefficients:
                hint = closest(name, problem.coefficients)
                raise ConfigurationError(f"coefficients.{name}: '{problem.name}' has none; {hint}")
    else:
        problem = _from_catalogue(spec, mesh, experiment.coefficients)
    modules = {}
    for name, chosen in experiment.coefficients.items():
        with section(f"coefficients.{name}"):
            modules[name] = _coefficient(chosen, problem.coefficients[name].function_space)
            x = dof_coordinates(problem.coefficients[name].function_space)
            with agreed(comm), torch.no_grad():
                modules[name](x)
    with section("problem"):
        physical = PhysicalModel.of(problem, modules, petsc_options=spec.petsc_options or None)
    with section("coefficients"), torch.no_grad():
        physical.coefficient_values()
    return physical, problem


def _from_catalogue(spec: schema.ProblemTable, mesh: MeshAndTags, unknown: Mapping[str, models.Coefficient]) -> Problem:
    assert spec.name is not None
    arguments: dict[str, Any] = dict(spec.arguments)
    for name, chosen in unknown.items():
        with section(f"coefficients.{name}.degree"):
            element = ("DG", 0) if chosen.degree == 0 else ("Lagrange", chosen.degree or 1)
            arguments[name] = fem.Function(fem.functionspace(mesh.mesh, element), name=name)
        arguments[name].x.array[:] = 1.0
    if spec.conditions is not None:
        arguments["conditions"] = [
            _condition(c, mesh, f"problem.conditions[{i}]") for i, c in enumerate(spec.conditions)
        ]
    with section("problem"):
        return getattr(catalogue, spec.name)(mesh.mesh, **arguments)


def _condition(spec: Any, mesh: MeshAndTags, key: str) -> Condition:
    facets = facets_of(spec.facets, mesh, f"{key}.facets")
    if isinstance(spec, schema.Dirichlet):
        return Dirichlet(spec.value, facets, spec.component)
    if isinstance(spec, schema.Flux):
        return Flux(spec.value, facets)
    return Robin(spec.coefficient, spec.ambient, facets)


def _from_python(spec: schema.ProblemTable, mesh: MeshAndTags) -> Problem:
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
    if not isinstance(problem, Problem):
        raise ConfigurationError(
            f"problem.function: '{spec.function}' of '{path}' must return a hyco_fem.Problem, not "
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


def _coefficient(spec: models.Coefficient, Q: fem.FunctionSpace) -> nn.Module:
    keep = _transform(spec)
    if isinstance(spec, models.ScalarTable):
        return Scalar(spec.value, keep)
    if isinstance(spec, models.BumpsTable):
        return GaussianBumps(
            spec.amplitudes, spec.centres, spec.widths, spec.background, trainable=spec.trainable, transform=keep
        )
    if isinstance(spec, models.SineTable):
        return SineSeries(spec.coefficients, spec.wavenumber, transform=keep)
    if isinstance(spec, models.NodalTable):
        return NodalField(Q, spec.initial, keep)
    assert isinstance(spec, models.NeuralTable)
    network = MLP(Q.mesh.geometry.dim, width=spec.width, depth=spec.depth, activation=spec.activation, seed=spec.seed)
    return NeuralField(InputScaling(network, bounding_box(Q.mesh)), keep)


def _transform(spec: models.Coefficient) -> Transform | None:
    if spec.lower is None:
        return None
    return Positive(spec.lower, spec.scale) if spec.upper is None else Bounded(spec.lower, spec.upper)


def build_data(spec: schema.Sensors, physical: PhysicalModel) -> Data:
    """The sensors on the mesh of the model.  Collective."""
    mesh = physical.V.mesh
    with section("sensors.file"):
        sensors = read_sensors(spec.file, mesh.comm)
        if sensors.t is not None:
            raise ValueError(f"'{sensors.source}' has times, and the problem is steady")
        if sensors.x.shape[1] != mesh.geometry.dim:
            raise ValueError(
                f"'{sensors.source}' has {sensors.x.shape[1]} coordinates, the mesh has {mesh.geometry.dim}"
            )
        columns = 1 if sensors.values.ndim == 1 else sensors.values.shape[1]
        if columns != components(physical):
            raise ValueError(
                f"'{sensors.source}' has {columns} value(s) a sensor, the model has {components(physical)}"
            )
        return sensors.on(mesh)


def components(physical: PhysicalModel) -> int:
    """Numbers at a point of what is compared with data."""
    return int(np.prod(_compat.value_shape(physical.observed), dtype=int))


# -- the network -----------------------------------------------------------------------------------------------


def build_network(experiment: schema.Experiment, mesh: MeshAndTags, physical: PhysicalModel) -> nn.Module:
    """The synthetic model; inputs are scaled to [−1, 1]^d.  Collective."""
    spec, d, outputs = experiment.network, mesh.mesh.geometry.dim, components(physical)
    network: nn.Module
    if isinstance(spec, models.MLPTable):
        network = MLP(d, outputs, width=spec.width, depth=spec.depth, activation=spec.activation, seed=spec.seed)
    elif isinstance(spec, models.ResNetTable):
        network = ResNet(d, outputs, width=spec.width, blocks=spec.blocks, activation=spec.activation, seed=spec.seed)
    elif isinstance(spec, models.ShallowTable):
        if outputs > 1:
            raise ConfigurationError(f"network.type: 'shallow' has one output, the model has {outputs} components")
        network = ShallowNet(d, neurons=spec.neurons, activation=spec.activation, seed=spec.seed)
    else:
        behind = MLP(
            2 * spec.features, outputs, width=spec.width, depth=spec.depth, activation=spec.activation, seed=spec.seed
        )
        network = FourierFeatures(d, behind, features=spec.features, scale=spec.scale, seed=spec.seed)
    network = InputScaling(network, bounding_box(mesh.mesh))
    return _hard(experiment.problem, network, mesh, outputs) if spec.hard_boundary else network


def _hard(spec: schema.ProblemTable, network: nn.Module, mesh: MeshAndTags, outputs: int) -> HardBoundary:
    """The network with the Dirichlet values of the conditions."""
    key = "network.hard_boundary"
    if spec.name is None or outputs > 1:
        raise ConfigurationError(f"{key}: is for problems of the catalogue with one unknown")
    by_value: dict[float, list[Facets]] = {}
    if spec.conditions is None:
        if schema.STEADY[spec.name].parameters["conditions"].default:  # u = 0 on the whole boundary
            by_value[0.0] = [None]
    else:
        for i, c in enumerate(spec.conditions):
            if isinstance(c, schema.Dirichlet):
                facets = facets_of(c.facets, mesh, f"problem.conditions[{i}].facets")
                by_value.setdefault(float(np.array(c.value).squeeze()), []).append(facets)
    if not by_value:
        raise ConfigurationError(f"{key}: the problem has no Dirichlet condition")
    with section(key):
        parts = {value: _joined(facets) for value, facets in by_value.items()}
        if len(parts) == 1:
            ((value, facets),) = parts.items()
            return HardBoundary(network, mesh_distance(mesh.mesh, facets), value)
        if any(facets is None for facets in parts.values()):
            raise ValueError("one of several Dirichlet conditions is on the whole boundary; name its groups of facets")
        whole = mesh_distance(mesh.mesh, np.unique(np.concatenate([f for f in parts.values() if f is not None])))
        size = float(np.linalg.norm(np.ptp(bounding_box(mesh.mesh), axis=0)))
        return HardBoundary(
            network, whole, Blend([mesh_distance(mesh.mesh, f) for f in parts.values()], list(parts), size)
        )


def _joined(facets: list[Facets]) -> np.ndarray | None:
    arrays = [np.asarray(f) for f in facets if f is not None]
    return None if len(arrays) < len(facets) else np.unique(np.concatenate(arrays))


class Blend(nn.Module):
    """g(x) = Σ_i g_i / ℓ_i(x) / Σ_i 1 / ℓ_i(x): the value g_i where ℓ_i vanishes, smooth between.

    Args:
        distances: ℓ_i.  values: g_i.  size: of the domain; of it a distance of 1e-12 counts as none.
    """

    def __init__(self, distances: list[nn.Module], values: list[float], size: float) -> None:
        super().__init__()
        self.distances, self.values, self.none = nn.ModuleList(distances), values, 1e-12 * size

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        weights = torch.stack([1.0 / (ell(x) + self.none) for ell in self.distances])
        g = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        return (g @ weights) / weights.sum(dim=0)


# -- the game --------------------------------------------------------------------------------------------------


def _ghosts(spec: Any) -> Ghosts:
    if isinstance(spec, schema.QuadratureTable):
        return QuadratureGhosts(spec.degree)
    if isinstance(spec, schema.DofsTable):
        return DofGhosts()
    inside = RandomGhosts(spec.points, spec.seed, spec.fixed)
    if not spec.boundary:
        return inside
    return GhostUnion([inside, BoundaryGhosts(spec.boundary, None, spec.seed, spec.fixed)])


def _weights(spec: schema.WeightsTable) -> Weights | ModelDiscrepancy:
    with section("game.weights"):
        given = {name: getattr(spec, name) for name in ("b1", "b2") if getattr(spec, name) is not None}
        weights = Weights(a1=spec.a1, a2=spec.a2, decay=spec.decay, **given)
    return weights if spec.rule == "given" else ModelDiscrepancy(weights)


def _answer(spec: Any, key: str, theta: list[str] | None) -> Any:
    if isinstance(spec, schema.AdamTable):
        return AdamStep(spec.lr, spec.steps)
    if isinstance(spec, schema.LBFGSTable):
        return LBFGS(spec.steps, spec.tolerance, spec.memory, spec.keep_memory)
    for name in spec.bounds:
        if theta is not None and name not in theta:
            raise ConfigurationError(f"{key}.bounds.{name}: no such parameter; {closest(name, theta)}")
    with section(key):
        box = {name: (np.array(low), np.array(high)) for name, (low, high) in spec.bounds.items()}
        newton = GaussNewton(spec.steps, spec.tolerance, spec.damping, box or None, tuple(spec.anneal))
        if isinstance(spec, schema.MultiStartTable):
            return MultiStart(box, starts=spec.starts, keep=spec.keep, answer=newton, seed=spec.seed)
    return newton
