"""From an experiment to a game: mesh, PDE, coefficients, sensors, network, answers.  Everything here is collective.

What does not fit together is a ConfigurationError that begins with the key, on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

from dolfinx import fem
from torch import nn

from hyco_fem._compat import MeshAndTags
from hyco_fem.experiment.game import DofsTable
from hyco_fem.experiment.meshes import build_mesh
from hyco_fem.experiment.networks import build_network, components
from hyco_fem.experiment.physical import AnyModel, build_physical, space_of
from hyco_fem.experiment.players import answers_of, ghosts_of, prior_of, weights_of
from hyco_fem.experiment.schema import Experiment, Sensors
from hyco_fem.experiment.tables import ConfigurationError, section
from hyco_fem.game.data import Data
from hyco_fem.game.hyco import Hyco
from hyco_fem.game.loop import Stopping
from hyco_fem.io.sensors import read_sensors
from hyco_fem.models.transient import TransientModel

__all__ = ["Built", "build", "build_data", "build_network", "build_physical", "components"]


@dataclass(frozen=True, eq=False)
class Built:
    """An experiment, ready to be played.

    mesh: with its groups.  physical, synthetic: the models.  data: the sensors.  game: theirs.  stopping: its end.
    part: which sub-space of the unknown is compared with data, index by index.
    spaces: of the unknown coefficients, by name; of the initial value, where it is unknown, under "initial".
    """

    mesh: MeshAndTags
    physical: AnyModel
    synthetic: nn.Module
    data: Data
    game: Hyco
    stopping: Stopping | None
    part: tuple[int, ...]
    spaces: dict[str, fem.FunctionSpace]

    def close(self) -> None:
        """Destroy the PETSc solvers.  Collective."""
        self.physical.close()


def build(experiment: Experiment, comm: MPI.Comm = MPI.COMM_WORLD) -> Built:
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
    if chosen.weights.needs_noise and not data.known_noise:
        raise ConfigurationError(
            f"game.weights.rule: '{chosen.weights.rule}' needs a column noise_std in '{experiment.sensors.file}'"
        )
    if isinstance(chosen.ghosts, DofsTable) and isinstance(physical, TransientModel):
        raise ConfigurationError("game.ghosts.type: 'dofs' is for steady problems; use 'random' or 'quadrature'")
    weights, prior, answers = weights_of(chosen.weights), prior_of(chosen.prior, theta), answers_of(chosen, theta)
    if prior is not None:
        with section("game.prior"):
            prior.on({name: p for name, p in physical.named_parameters() if p.requires_grad})
    with section("game"):
        game = Hyco(
            physical,
            synthetic,
            data,
            ghosts_of(chosen.ghosts),
            weights=weights,
            answers=answers,
            schedule=chosen.schedule,
            prior=prior,
            warm_up=chosen.warm_up,
        )
    stopping = None if chosen.stopping is None else Stopping(**vars(chosen.stopping))
    observed = () if problem.observed is None else problem.observed
    part = (observed,) if isinstance(observed, int) else tuple(observed)
    spaces = {name: space_of(name, problem) for name in experiment.coefficients}
    return Built(mesh, physical, synthetic, data, game, stopping, part, spaces)


def build_data(spec: Sensors, physical: AnyModel) -> Data:
    """The sensors on the mesh of the model, and within its interval where it is one in time.  Collective."""
    mesh, in_time = physical.V.mesh, isinstance(physical, TransientModel)
    with section("sensors.file"):
        sensors = read_sensors(spec.file, mesh.comm)
        if in_time != (sensors.t is not None):
            raise ValueError(
                f"'{sensors.source}' has no times, and the problem is in time: it needs a column t"
                if in_time
                else f"'{sensors.source}' has times, and the problem is steady"
            )
        if sensors.x.shape[1] != mesh.geometry.dim:
            raise ValueError(
                f"'{sensors.source}' has {sensors.x.shape[1]} coordinates, the mesh has {mesh.geometry.dim}"
            )
        columns = 1 if sensors.values.ndim == 1 else sensors.values.shape[1]
        if columns != components(physical):
            raise ValueError(
                f"'{sensors.source}' has {columns} value(s) a sensor, the model has {components(physical)}"
            )
        if isinstance(physical, TransientModel) and sensors.t is not None:
            physical.grid.check_inside(sensors.t, f"a time of '{sensors.source}',")
        return sensors.on(mesh)
