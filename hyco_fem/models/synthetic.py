"""The synthetic model: networks for the field itself, in float64 and equal on every rank.

u_syn(x; φ); in time u_syn(x, t; φ), of d + 1 inputs, time last: `InputScaling(MLP(d + 1), bounding_box(model.domain))`.

Each network draws its weights from its own `seed`, not from torch's global stream, so all ranks start alike.  They
return (n,) for one output and (n, outputs) for more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import mesh as dmesh
from torch import Tensor, nn

from hyco_fem.bridge.spacetime import SpaceTime
from hyco_fem.pde.timegrid import start_and_end

Activation = str | Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "sin": torch.sin,
    "gaussian": lambda z: torch.exp(-z.square()),
}


def _activation(name: Activation) -> Callable[[Tensor], Tensor]:
    if callable(name):
        return name
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not among {sorted(_ACTIVATIONS)}; pass a function instead")
    return _ACTIVATIONS[name]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a stream of this seed, and leave torch's own as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _out(y: Tensor) -> Tensor:
    return y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y


def _corners(box: Any) -> np.ndarray:
    """Lower and upper corner of a box, (2, d), checked."""
    corners = np.asarray(box, dtype=np.float64)
    if corners.ndim != 2 or len(corners) != 2:
        raise ValueError(f"a box is given by its lower and upper corner, shape (2, d), not {corners.shape}")
    if not (np.isfinite(corners).all() and np.all(corners[0] < corners[1])):
        raise ValueError(f"the box must have finite corners with lower < upper, not {corners[0]} and {corners[1]}")
    return corners


def _check_dimension(x: Tensor, d: int, name: str) -> None:
    """Broadcasting would make something of points of dimension one."""
    if x.shape[1] != d:
        raise ValueError(f"{name} has dimension {d}, the points have {x.shape[1]}")


def _linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, dtype=torch.float64)


class MLP(nn.Module):
    """Fully connected network with `depth` hidden layers of `width` neurons."""

    def __init__(
        self,
        inputs: int,
        outputs: int = 1,
        *,
        width: int = 64,
        depth: int = 3,
        activation: Activation = "tanh",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, depth) < 1:
            raise ValueError("inputs, outputs, width and depth must be at least 1")
        sizes = [inputs, *[width] * depth]
        with _seeded(seed):
            self.hidden = nn.ModuleList(_linear(a, b) for a, b in pairwise(sizes))
            self.last = _linear(width, outputs)
        self._sigma = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n,) or (n, outputs)."""
        for layer in self.hidden:
            x = self._sigma(layer(x))
        return _out(self.last(x))


class ResNet(nn.Module):
    """Residual network: a first layer to `width`, then `blocks` of z ↦ z + σ(W z + b), then a linear output.

    `ResNet(2, 1, width=256, blocks=1, activation="relu")` is the 2–256–256–1 network of HYCO's first published case.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 1,
        *,
        width: int = 64,
        blocks: int = 2,
        activation: Activation = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, width, blocks) < 1:
            raise ValueError("inputs, outputs, width and blocks must be at least 1")
        with _seeded(seed):
            self.first = _linear(inputs, width)
            self.blocks = nn.ModuleList(_linear(width, width) for _ in range(blocks))
            self.last = _linear(width, outputs)
        self._sigma = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n,) or (n, outputs)."""
        z = self._sigma(self.first(x))
        for block in self.blocks:
            z = z + self._sigma(block(z))
        return _out(self.last(z))


class ShallowNet(nn.Module):
    """The K-neuron ansatz u(x) = Σ_{j≤K} w_j σ(a_j·x + b_j).

    Args:
        inputs: d.  neurons: K.
        activation: σ, "sigmoid", "tanh", "relu", …; or "gaussian" for the radial ansatz
            Σ_j w_j exp(−|x − b_j|² / s²) with centres b_j (K, d) and one fixed width s.
        box: Corners (2, d) of the region in which neurons are first spread; the unit box [−1, 1]^d by default.
        width: s, for the Gaussian ansatz; by default the spacing of K centres in the box.
        seed: Of the first draw.
    """

    def __init__(
        self,
        inputs: int,
        *,
        neurons: int,
        activation: Activation = "tanh",
        box: Any = None,
        width: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, neurons) < 1:
            raise ValueError("inputs and neurons must be at least 1")
        if width is not None and not width > 0:
            raise ValueError(f"width must be positive, not {width}")
        if width is not None and activation != "gaussian":
            raise ValueError(f"width is for activation='gaussian', and has no meaning for {activation!r}; leave it out")
        lower, upper = _corners([[-1.0] * inputs, [1.0] * inputs] if box is None else box)
        if len(lower) != inputs:
            raise ValueError(f"the box has dimension {len(lower)}, the network has {inputs} inputs")
        self.inputs = inputs
        self.radial = activation == "gaussian"
        self._sigma = _activation(activation)
        extent = float(np.prod(upper - lower) ** (1.0 / inputs))
        rng = np.random.default_rng(seed)
        centres = rng.uniform(lower, upper, size=(neurons, inputs))
        if self.radial:
            self.b = nn.Parameter(torch.from_numpy(centres))
            self.width = extent / neurons ** (1.0 / inputs) if width is None else float(width)
        else:
            # Ridge functions whose kinks a·x + b = 0 pass through points spread evenly over the box.
            a = rng.standard_normal((neurons, inputs))
            a *= 4.0 / (extent * np.linalg.norm(a, axis=1, keepdims=True))
            self.a = nn.Parameter(torch.from_numpy(a))
            self.b = nn.Parameter(torch.from_numpy(-(a * centres).sum(axis=1)))
        self.w = nn.Parameter(torch.from_numpy(rng.standard_normal(neurons) / neurons))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        _check_dimension(x, self.inputs, "the network")
        if self.radial:
            square = (x[:, None, :] - self.b[None]).square().sum(-1)
            return torch.exp(-square / self.width**2) @ self.w
        return self._sigma(x @ self.a.T + self.b) @ self.w


class FourierFeatures(nn.Module):
    """network(cos(2π B x), sin(2π B x)) with fixed Gaussian frequencies B (features, d) of standard deviation `scale`.

    Args:
        inputs: d.  features: rows of B; the network must take 2·features inputs.
        network: The network behind the features.
        scale: In cycles per length unit of x.
    """

    B: Tensor

    def __init__(self, inputs: int, network: nn.Module, *, features: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if min(inputs, features) < 1:
            raise ValueError("inputs and features must be at least 1")
        rng = np.random.default_rng(seed)
        self.register_buffer("B", torch.from_numpy(scale * rng.standard_normal((features, inputs))))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → what the network returns."""
        phase = 2.0 * np.pi * (x @ self.B.T)
        return self.network(torch.cat([torch.cos(phase), torch.sin(phase)], dim=1))


# -- around a network ------------------------------------------------------------------------------------------


def bounding_box(mesh: dmesh.Mesh | SpaceTime, interval: Sequence[float] | None = None) -> np.ndarray:
    """Lower and upper corner of a mesh, (2, d), or of a mesh and an interval of time, (2, d + 1); equal on every rank.

    Args:
        mesh: The mesh, or `model.domain` of a TransientModel, which has the interval.
        interval: (start, end), where the box is to be one of (x, t).

    Collective.
    """
    if isinstance(mesh, SpaceTime):
        if interval is not None:
            raise ValueError("the domain of a TransientModel has its interval; pass it alone")
        mesh, interval = mesh.mesh, (mesh.grid.start, mesh.grid.end)
    x = mesh.geometry.x[:, : mesh.geometry.dim]
    lower = np.min(x, axis=0, initial=np.inf)
    upper = np.max(x, axis=0, initial=-np.inf)
    mesh.comm.Allreduce(MPI.IN_PLACE, lower, op=MPI.MIN)
    mesh.comm.Allreduce(MPI.IN_PLACE, upper, op=MPI.MAX)
    box = np.array([lower, upper])
    return box if interval is None else np.column_stack([box, start_and_end(interval)])


class InputScaling(nn.Module):
    """network(x̂) with x̂ = x mapped from a box to [−1, 1]^d, each axis by itself.

    Args:
        network: The network.  box: corners (2, d): `bounding_box(mesh)`, or in time `bounding_box(model.domain)`.
    """

    middle: Tensor
    half_width: Tensor

    def __init__(self, network: nn.Module, box: Any) -> None:
        super().__init__()
        lower, upper = _corners(box)
        self.register_buffer("middle", torch.from_numpy((lower + upper) / 2))
        self.register_buffer("half_width", torch.from_numpy((upper - lower) / 2))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → what the network returns."""
        _check_dimension(x, len(self.middle), "the box")
        return self.network((x - self.middle) / self.half_width)


class HardBoundary(nn.Module):
    """g(x) + ℓ(x) network(x): exact boundary values g where ℓ vanishes.

    In time, with an interval (t₀, T):  g(x, t) + ℓ(x) network(x, t), for all times, and with an initial value u₀

        g(x, t) + u₀(x) − g(x, t₀) + (t − t₀)/(T − t₀) ℓ(x) network(x, t)

    which is u₀ at t₀, and g where ℓ vanishes if u₀ is g(·, t₀) there, as it must be for u to be continuous.

    Args:
        network: The network.
        distance: ℓ, (n, d) → (n,), zero on the Dirichlet boundary and positive inside: `box_distance` for a box,
            `mesh_distance` for any mesh; of x alone in time too.
        value: g, a number or a function (n, d) → (n,) or (n, outputs); of (x, t), (n, d + 1), in time.
        interval: (t₀, T), where the network is one of (x, t).
        initial: u₀, a number or a function of x, (n, d) → (n,) or (n, outputs).
    """

    def __init__(
        self,
        network: nn.Module,
        distance: Callable[[Tensor], Tensor],
        value: float | Callable[[Tensor], Tensor] = 0.0,
        *,
        interval: Sequence[float] | None = None,
        initial: float | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if initial is not None and interval is None:
            raise ValueError("with an initial value the network is one of (x, t): pass interval=(t0, T) too")
        self.network, self.distance, self.value, self.initial = network, distance, value, initial
        self.interval = None if interval is None else start_and_end(interval)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d), or (n, d + 1) in time → (n,) or (n, outputs)."""
        y = _out(self.network(x))
        place = x if self.interval is None else x[:, :-1]
        ell = self.distance(place)
        if ell.shape != (len(x),):
            raise ValueError(f"the distance has shape {tuple(ell.shape)} at {len(x)} points, not ({len(x)},)")
        g = _given(self.value, x, y, "boundary")
        if self.initial is not None:
            assert self.interval is not None
            start, end = self.interval
            first = torch.cat([place, torch.full_like(x[:, -1:], start)], dim=1)
            g = g + (_given(self.initial, place, y, "initial") - _given(self.value, first, y, "boundary"))
            ell = ell * (x[:, -1] - start) / (end - start)
        return g + (ell if y.ndim == 1 else ell[:, None]) * y


def _given(value: float | Callable[[Tensor], Tensor], x: Tensor, y: Tensor, what: str) -> Tensor | float:
    """Values at x in the shape of the network's y, or a number."""
    g = value(x) if callable(value) else value
    if isinstance(g, Tensor) and g.shape not in ((), y.shape):
        raise ValueError(f"the {what} values have shape {tuple(g.shape)}, the network's {tuple(y.shape)}")
    return g


def box_distance(box: Any) -> Callable[[Tensor], Tensor]:
    """ℓ(x) = Π_i 4 (x_i − l_i)(u_i − x_i) / (u_i − l_i)²: zero on the faces of a box, one in its middle."""
    lower, upper = (torch.from_numpy(c) for c in _corners(box))

    def distance(x: Tensor) -> Tensor:
        _check_dimension(x, len(lower), "the box")
        l, u = lower.to(x), upper.to(x)  # where the network is, in its dtype
        return (4.0 * (x - l) * (u - x) / (u - l).square()).prod(dim=1)

    return distance
