"""The neural ordinary differential equation: a network whose depth is time.

x′(t) = W(t) σ(A(t) x(t) + b(t)),  0 < t < T,   u_syn = R x(T) + r

(Chen, Rubanova, Bettencourt, Duvenaud 2018), with controls W, A, b that are piecewise constant in time, as in the
constructions of Ruiz-Balet and Zuazua (2023, "Neural ODE control for classification, approximation, and transport").
With W = I/Δt, Euler's method turns it into a ResNet, x ↦ x + σ(A x + b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hyco_fem.models.synthetic import Activation, _activation, _check_dimension, _linear, _out, _seeded

Method = Literal["euler", "midpoint", "rk4"]

# Explicit Runge–Kutta methods of order 1, 2 and 4.  Each stage builds on the one before it alone: how far it goes, as a
# fraction of the step, and with what weight each stage enters the step.  Within a time slice the field is autonomous.
_METHODS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": ((0.5,), (0.0, 1.0)),
    "rk4": ((0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class NeuralODE(nn.Module):
    """R x(T) + r, where x flows by x′ = W(t) σ(A(t) x + b(t)) from x(0) = (x, 0).

    The weights depend on the sizes and the seed, not on `steps` or `method`: the same flow can be integrated more
    finely.  Gradients are those of the discrete flow (discretise, then optimise), exact to rounding; their memory
    grows with the number of stages.  A state of few components has few weights: Adam wants a larger learning rate
    than for an MLP, 5e-3 to 2e-2.

    Args:
        inputs: d.  outputs: numbers a point.
        width: Neurons of the field: A(t) is (width, D), W(t) is (D, width), with D = inputs + augment.
        layers: Time slices of equal length, each with its own W, A, b.
        steps: Time steps on [0, horizon], a multiple of `layers`: a step across a jump of the field would lose the
            order of the method.  By default one each slice.
        activation: σ; the order of the method is that of a smooth σ.
        seed: Of the first draw.
        horizon: T.
        augment: Further components of the state, zero at first: a flow in d dimensions cannot cross its own paths,
            one in more can (Dupont, Doucet, Teh 2019).
        method: "euler", "midpoint" or "rk4", of order 1, 2 and 4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 1,
        *,
        width: int = 32,
        layers: int = 4,
        steps: int | None = None,
        activation: Activation = "tanh",
        seed: int = 0,
        horizon: float = 1.0,
        augment: int = 0,
        method: Method = "rk4",
    ) -> None:
        super().__init__()
        steps = layers if steps is None else steps
        if min(inputs, outputs, width, layers, steps) < 1:
            raise ValueError("inputs, outputs, width, layers and steps must be at least 1")
        if augment < 0:
            raise ValueError(f"augment must not be negative, it is {augment}")
        if steps % layers:
            raise ValueError(
                f"steps={steps} is not a multiple of layers={layers}: a time step must not cross from one slice to "
                f"the next; take steps={layers * -(-steps // layers)}"
            )
        if not 0 < horizon < math.inf:
            raise ValueError(f"the horizon must be finite and positive, not {horizon}")
        if method not in _METHODS:
            raise ValueError(f"method {method!r} is not among {sorted(_METHODS)}")
        self.inputs, self.augment = inputs, augment
        self.layers, self.steps, self.horizon, self.method = layers, steps, float(horizon), method
        self._sigma = _activation(activation)
        state = inputs + augment
        with _seeded(seed):
            inner = [_linear(state, width) for _ in range(layers)]
            outer = [_linear(width, state) for _ in range(layers)]
            self.last = _linear(state, outputs)
        self.A = nn.Parameter(torch.stack([layer.weight.detach() for layer in inner]))
        self.b = nn.Parameter(torch.stack([layer.bias.detach() for layer in inner]))
        self.W = nn.Parameter(torch.stack([layer.weight.detach() for layer in outer]))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n,) or (n, outputs)."""
        return _out(self.last(self.flow(self.lift(x))))

    def lift(self, x: Tensor) -> Tensor:
        """The state (x, 0) at time 0: (n, inputs) → (n, inputs + augment)."""
        _check_dimension(x, self.inputs, "the network")
        return nn.functional.pad(x, (0, self.augment)) if self.augment else x

    def flow(self, z: Tensor, *, backwards: bool = False) -> Tensor:
        """The state at time T from that at time 0, or the other way round: (n, D) → (n, D)."""
        dt = self.horizon / self.steps * (-1.0 if backwards else 1.0)
        for k in range(self.steps):
            z = self._step(z, (self.steps - 1 - k if backwards else k) * self.layers // self.steps, dt)
        return z

    def _step(self, z: Tensor, layer: int, dt: float) -> Tensor:
        field = self._field(layer)
        reaches, weights = _METHODS[self.method]
        velocity = field(z)
        change = weights[0] * velocity
        for reach, weight in zip(reaches, weights[1:], strict=True):
            velocity = field(z + reach * dt * velocity)
            change = change + weight * velocity
        return z + dt * change

    def _field(self, layer: int) -> Callable[[Tensor], Tensor]:
        A, b, W = self.A[layer], self.b[layer], self.W[layer]
        return lambda z: self._sigma(nn.functional.linear(z, A, b)) @ W.T
