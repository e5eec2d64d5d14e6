"""Objectives: what a player minimises, as a function of its own parameters, everything else held fixed.

Each is a number (this rank's summand, differentiable) and, seen as a sum of squares, has rows: residuals r with
J = Σ |r|² + c |φ|² over all ranks, and their Jacobian.  The formulas are in losses.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.bridge.ghosts import GhostPoints
from hyco_fem.bridge.points import Points
from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.game.data import Data, SensorTable
from hyco_fem.game.losses import local_interaction, network_values
from hyco_fem.game.player import flat
from hyco_fem.game.prior import BoundPrior
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, is_distributed
from hyco_fem.tensors import as_array

# Points at which the gradients by the weights of a network are computed at once: memory is points × weights.
_CHUNK = 512


@dataclass(frozen=True)
class Opponent:
    """What the other player says: its values at the ghost points owned here, held fixed."""

    ghosts: GhostPoints
    values: Tensor


class Objective(Protocol):
    """J as a function of one player's own parameters.  Every method is collective."""

    comm: MPI.Comm
    parameters: dict[str, nn.Parameter]
    decay: float
    # Which entries of the parameters, one after the other, are weights of a network; decay is for them alone.
    weights_of_network: bool | np.ndarray

    def __call__(self) -> Tensor:
        """This rank's summand of J, differentiable."""

    def residuals(self) -> np.ndarray:
        """This rank's rows r."""

    def linearised(self) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows r and ∂r/∂(parameters), (n, p); parameters one after the other, each in C order."""


def _rows(weights: Tensor, difference: np.ndarray) -> np.ndarray:
    """√w_i d_i, components one after the other."""
    root = np.sqrt(weights.numpy())
    return (difference * root if difference.ndim == 1 else difference * root[:, None]).ravel()


def _scaled(weights: Tensor, matrix: np.ndarray, components: int) -> np.ndarray:
    return matrix * np.repeat(np.sqrt(weights.numpy()), components)[:, None]


class PhysicalObjective:
    """a L_phy(θ) + b I(θ, fixed values of the network) + c |(θ − mean)/std|² / n.

    Args:
        physical: The model.  data: what it sees of the data, or None.  a, b: weights.
        opponent: The network's answer, or None: then b has no say.
        prior, c: what is known of θ, and its weight; n is the number of sensors that count.
        at_hand: Values at the sensors and at the ghost points of a solve just made at this θ, with their graph: the
            first evaluation uses them.
    """

    decay = 0.0
    weights_of_network: bool | np.ndarray = False

    def __init__(
        self,
        physical: PhysicalModel | TransientModel,
        data: Data | None,
        a: float,
        b: float = 0.0,
        opponent: Opponent | None = None,
        prior: BoundPrior | None = None,
        c: float = 1.0,
        at_hand: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> None:
        self.physical, self.data, self.a, self.b = physical, data if a > 0 else None, a, b
        self.opponent = opponent if b > 0 else None
        self.comm = physical.comm
        n = 1 if data is None else data.n_found  # L is a mean over sensors, their components added up
        self.prior: BoundPrior | None = prior if c > 0 else None
        self.c = c / n
        self.parameters = {
            name.removeprefix("coefficients."): p for name, p in physical.named_parameters() if p.requires_grad
        }
        self._at_hand = at_hand
        # Where the last solve was made: θ, values at sensors and ghosts, and the state of the solver.
        self._solved: tuple[list[Tensor], Tensor | None, Tensor | None, Any] | None = None

    def __call__(self) -> Tensor:
        """This rank's summand."""
        return self._value(*self.values())

    def values(self) -> tuple[Tensor | None, Tensor | None]:
        """The field at the sensors and at the ghost points."""
        if self._at_hand is not None:
            found, self._at_hand = self._at_hand, None
        else:
            sets: list[Any] = [] if self.data is None else [self.data.points]
            sets += [] if self.opponent is None else [self.opponent.ghosts]
            values = iter(self.physical.observe(sets))
            found = (
                None if self.data is None else next(values),
                None if self.opponent is None else next(values),
            )
        kept = [None if v is None else v.detach() for v in found]
        theta = [p.detach().clone() for p in self.parameters.values()]
        self._solved = theta, kept[0], kept[1], self.physical.solver.state
        return found

    def _value(self, at_sensors: Tensor | None, at_ghosts: Tensor | None) -> Tensor:
        parts = [torch.zeros((), dtype=torch.float64)]
        with agreed(self.comm):
            if self.data is not None and at_sensors is not None:
                parts.append(self.a * self.data.local_misfit(at_sensors))
            if self.opponent is not None and at_ghosts is not None:
                parts.append(self.b * local_interaction(at_ghosts, self.opponent.values, self.opponent.ghosts))
        if self.prior is not None:
            # θ is replicated: each rank brings its share.
            parts.append(self.c / self.comm.size * self.prior.square(list(self.parameters.values())))
        return torch.stack(parts).sum()

    def residuals(self) -> np.ndarray:
        """√(a w_i) (u(x_i) − y_i), then √(b ω_g) (u(g) − u_syn(g))."""
        with torch.no_grad():
            return self._residuals(*self.values())

    def _residuals(self, at_sensors: Tensor | None, at_ghosts: Tensor | None) -> np.ndarray:
        parts = []
        if self.data is not None and at_sensors is not None:
            parts.append(_rows(self.a * self.data.weights, as_array(at_sensors.detach() - self.data.values)))
        if self.opponent is not None and at_ghosts is not None:
            difference = as_array(at_ghosts.detach() - self.opponent.values)
            parts.append(_rows(self.b * self.opponent.ghosts.weights, difference))
        if self.prior is not None and self.comm.rank == 0:
            parts.insert(0, np.sqrt(self.c) * self.prior.rows(flat(self.parameters.values())))
        return np.concatenate(parts) if parts else np.empty(0)

    def linearised(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and Jacobian, with tangent solves on the factors of the last solve where it was made at this θ.

        Raises ValueError where a parameter is a field.
        """
        with agreed(self.comm):
            for name, p in self.parameters.items():
                if is_distributed(p):
                    raise ValueError(
                        f"'{name}' is a field with a number for every dof, too many for a Jacobian; use an answer by "
                        "gradients (AdamStep), or hyco_fem.fit_field"
                    )
        here = self._solved
        if here is None or not all(map(torch.equal, here[0], self.parameters.values())):
            with torch.no_grad():
                self.values()
            here = self._solved
        assert here is not None
        sets: list[Any] = [self.data.points] if self.data is not None else []
        sets += [self.opponent.ghosts] if self.opponent is not None else []
        found = self.physical.jacobians(sets, state=here[3])
        weights = [self.a * self.data.weights] if self.data is not None else []
        weights += [self.b * self.opponent.ghosts.weights] if self.opponent is not None else []
        rows = [
            _scaled(w, J.matrix, 1 if J.values.ndim == 1 else J.values.shape[1])
            for w, J in zip(weights, found, strict=True)
        ]
        if self.prior is not None and self.comm.rank == 0:
            rows.insert(0, np.sqrt(self.c) * np.diag(self.prior.precision))
        return self._residuals(here[1], here[2]), np.concatenate(rows)

    def portable(self) -> PortableObjective:
        """The same objective for a model on another mesh or communicator.  Collective."""
        table = None if self.data is None else self.data.table()
        ghosts = None
        if self.opponent is not None:
            g = self.opponent.ghosts
            found = g.found
            ghosts = tuple(g.gather(v)[found] for v in (g.x, self.opponent.values, g.weights))
        in_time = self.opponent is not None and isinstance(self.opponent.ghosts, SpaceTimePoints)
        kind = SpaceTimePoints if in_time else Points
        return PortableObjective(self.a, self.b, table, ghosts, self.prior, self.c, kind)


@dataclass(frozen=True)
class PortableObjective:
    """A physical objective as replicated arrays: sensors, and ghost points with values and weights."""

    a: float
    b: float
    sensors: SensorTable | None
    ghosts: tuple[np.ndarray, ...] | None
    prior: BoundPrior | None
    c: float
    kind: type[Points] | type[SpaceTimePoints] = Points

    def on(self, physical: PhysicalModel | TransientModel) -> PhysicalObjective:
        """For another model; points outside its mesh are left out.  Collective on the communicator of that model."""
        mesh = physical.V.mesh
        data = None if self.sensors is None else self.sensors.on(mesh)
        opponent = None
        if self.ghosts is not None:
            x, values, weights = self.ghosts
            points = self.kind.of_rows(mesh, x, missing="mark")
            points.weights = torch.from_numpy(weights[points.index].copy())
            opponent = Opponent(points, torch.from_numpy(values[points.index].copy()))
        n = 1 if data is None else data.n_found
        return PhysicalObjective(physical, data, self.a, self.b, opponent, prior=self.prior, c=self.c * n)


class SyntheticObjective:
    """a L_syn(φ) + b I(φ, fixed values of the solution) + c |φ|².

    Args:
        network: The synthetic model.  data: what it sees, or None.  a, b, decay: weights.
        opponent: The solution at the ghost points, or None.
        comm: The communicator of the points.

    Attributes:
        first: At the first evaluation this rank's L_syn and I, and the values at the ghost points, all detached.
    """

    weights_of_network: bool | np.ndarray = True

    def __init__(
        self,
        network: nn.Module,
        data: Data | None,
        a: float,
        b: float = 0.0,
        opponent: Opponent | None = None,
        *,
        decay: float = 0.0,
        comm: MPI.Comm,
    ) -> None:
        self.network, self.data, self.opponent = network, data, opponent
        self.a, self.b, self.decay, self.comm = a, b, decay, comm
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        sensors = [] if data is None else [data.points.x]
        self.n_sensors = 0 if data is None else len(data.points)
        self.x = torch.cat(sensors + ([] if opponent is None else [opponent.ghosts.x]))
        self.first: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self) -> Tensor:
        """This rank's summand."""
        with agreed(self.comm):
            misfit, interaction = self._losses(network_values(self.network, self.x))
        total = self.a * misfit + self.b * interaction
        if self.decay > 0:
            # |φ|² is replicated: each rank brings its share of it.
            total = total + self.decay / self.comm.size * squared_norm(self.parameters.values())
        return total

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """`first`, once there is one."""
        assert self.first is not None
        return self.first

    def residuals(self) -> np.ndarray:
        """√(a w_i) (u_syn(x_i) − y_i), then √(b ω_g) (u_syn(g) − u(g)); the decay is not among them."""
        with torch.no_grad(), agreed(self.comm):
            values = network_values(self.network, self.x)
            self._losses(values)
            return self._residuals(values)

    def _losses(self, values: Tensor) -> tuple[Tensor, Tensor]:
        misfit = interaction = torch.zeros((), dtype=torch.float64)
        if self.data is not None:
            misfit = self.data.local_misfit(values[: self.n_sensors])
        if self.opponent is not None:
            interaction = local_interaction(self.opponent.values, values[self.n_sensors :], self.opponent.ghosts)
        if self.first is None:
            # A copy: a network may return a view of its parameters, which are about to move.
            self.first = misfit.detach(), interaction.detach(), values[self.n_sensors :].detach().clone()
        return misfit, interaction

    def _residuals(self, values: Tensor) -> np.ndarray:
        parts = []
        if self.data is not None:
            parts.append(_rows(self.a * self.data.weights, as_array(values[: self.n_sensors] - self.data.values)))
        if self.opponent is not None:
            difference = as_array(values[self.n_sensors :] - self.opponent.values)
            parts.append(_rows(self.b * self.opponent.ghosts.weights, difference))
        return np.concatenate(parts)

    def linearised(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and Jacobian, by one backward pass for each point, all at once."""
        with agreed(self.comm):
            values, J = network_jacobian(self.network, self.x)
            weights = [self.a * self.data.weights] if self.data is not None else []
            weights += [self.b * self.opponent.ghosts.weights] if self.opponent is not None else []
            components = 1 if values.ndim == 1 else values.shape[1]
            return self._residuals(values), _scaled(torch.cat(weights), J, components)


def squared_norm(parameters: Iterable[Tensor]) -> Tensor:
    """|φ|² of several tensors, on the CPU."""
    parts = [p.square().sum().to("cpu", torch.float64) for p in parameters]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


def network_jacobian(network: nn.Module, x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Values at x, and their derivatives by the trainable weights, (n·components, p).  No graph is kept."""
    trainable = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        values = network_values(network, x)
    components = 1 if values.ndim == 1 else values.shape[1]
    sizes = [p.numel() for p in trainable.values()]
    if len(x) == 0:
        return values, np.zeros((0, sum(sizes)))

    def at(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        return torch.func.functional_call(network, parameters, (point[None],)).reshape(components)

    per_point = torch.func.vmap(torch.func.jacrev(at), in_dims=(None, 0), chunk_size=_CHUNK)
    try:
        found = per_point(trainable, x)
    except RuntimeError:  # a module that vmap cannot batch
        rows = [torch.func.jacrev(at)(trainable, point) for point in x]
        found = {name: torch.stack([row[name] for row in rows]) for name in trainable}
    n = len(x) * components
    return values, np.concatenate([g.reshape(n, -1).detach().cpu().double().numpy() for g in found.values()], axis=1)


class JointObjective:
    """a₁ L_phy(θ) + a₂ L_syn(φ) + I(θ, φ) + c |φ|² and the prior, in (θ, φ) together: the potential P, with
    `Weights.joint()`.

    Args:
        physical, synthetic: Objectives with b = 1 whose opponents say zero at the same ghost points: their rows there
            are then the values themselves.
    """

    def __init__(self, physical: PhysicalObjective, synthetic: SyntheticObjective) -> None:
        self.physical, self.synthetic = physical, synthetic
        self.comm, self.decay = physical.comm, synthetic.decay
        theta = {f"physical.{n}": p for n, p in physical.parameters.items()}
        self.parameters = theta | {f"synthetic.{n}": p for n, p in synthetic.parameters.items()}
        self.weights_of_network = np.repeat([False, True], [_size(physical.parameters), _size(synthetic.parameters)])

    def __call__(self) -> Tensor:
        """This rank's summand."""
        phy, syn = self.physical, self.synthetic
        at_sensors, at_ghosts = phy.values()
        with agreed(self.comm):
            values, n = network_values(syn.network, syn.x), syn.n_sensors
            assert syn.opponent is not None
            assert at_ghosts is not None
            total = local_interaction(at_ghosts, values[n:], syn.opponent.ghosts)
            if phy.data is not None:
                total = total + phy.a * phy.data.local_misfit(at_sensors)
            if phy.prior is not None:
                total = total + phy.c / self.comm.size * phy.prior.square(list(phy.parameters.values()))
            if syn.data is not None:
                total = total + syn.a * syn.data.local_misfit(values[:n])
        if self.decay > 0:
            total = total + self.decay / self.comm.size * squared_norm(syn.parameters.values())
        return total

    def residuals(self) -> np.ndarray:
        """Rows of the physical model at its sensors, of the network at its own, and of both at the ghost points."""
        return self._stacked(self.physical.residuals(), self.synthetic.residuals())

    def _stacked(self, phy: np.ndarray, syn: np.ndarray) -> np.ndarray:
        (own, at_ghosts), (other, there) = _split(phy, self._ghost_rows()), _split(syn, self._ghost_rows())
        return np.concatenate([own, other, at_ghosts - there])

    def linearised(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and Jacobian by (θ, φ)."""
        (r, J), (s, K) = self.physical.linearised(), self.synthetic.linearised()
        m = self._ghost_rows()
        (own, at_ghosts), (other, there) = _split(J, m), _split(K, m)
        matrix = np.block(
            [
                [own, np.zeros((len(own), K.shape[1]))],
                [np.zeros((len(other), J.shape[1])), other],
                [at_ghosts, -there],
            ]
        )
        return self._stacked(r, s), matrix

    def _ghost_rows(self) -> int:
        assert self.physical.opponent is not None
        return self.physical.opponent.values.numel()


def _split(rows: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    return rows[: len(rows) - last], rows[len(rows) - last :]


def _size(parameters: dict[str, nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters.values())
