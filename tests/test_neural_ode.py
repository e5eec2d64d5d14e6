"""The neural ODE against its equation: orders in time, invertibility, the ResNet that is its Euler method, fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import hyco_fem as hf

X = torch.from_numpy(np.random.default_rng(0).uniform(-1.0, 1.0, (9, 2)))
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}

# Where there is no mesh and no communicator, each rank would do the same once more.
local = pytest.mark.serial


def network(method: str = "rk4", steps: int = 4, layers: int = 2, **options: Any) -> hf.NeuralODE:
    """Fields large enough for the flow to bend, and a state of three components."""
    ode = hf.NeuralODE(2, width=6, layers=layers, steps=steps, augment=1, seed=3, method=method, **options)
    with torch.no_grad():
        ode.W.mul_(4.0)
        ode.A.mul_(2.0)
    return ode


def rates(errors: list[float]) -> np.ndarray:
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@local
@pytest.mark.parametrize("method", ORDERS)
def test_the_flow_converges_to_the_solution_of_the_equation_with_the_order_of_the_method(method: str) -> None:
    """Against SciPy's eighth-order integrator, slice by slice."""
    ode = network(horizon=1.5)
    A, b, W = (p.detach().numpy() for p in (ode.A, ode.b, ode.W))
    z0 = np.pad(X.numpy(), ((0, 0), (0, 1)))
    z = z0.ravel()

    def field(t: float, z: np.ndarray, k: int) -> np.ndarray:
        return (np.tanh(z.reshape(9, 3) @ A[k].T + b[k]) @ W[k].T).ravel()

    for k in range(2):
        z = solve_ivp(field, (0.0, 0.75), z, method="DOP853", rtol=1e-12, atol=1e-13, args=(k,)).y[:, -1]
    exact = torch.from_numpy(z.reshape(9, 3))
    assert float((exact - torch.from_numpy(z0)).abs().max()) > 1.0, "the flow hardly moves: nothing is tested"
    steps = [16, 32, 64] if method == "rk4" else [128, 256, 512]
    flows = [network(method, n, horizon=1.5) for n in steps]
    errors = [float((f.flow(f.lift(X)) - exact).detach().abs().max()) for f in flows]
    np.testing.assert_allclose(rates(errors), ORDERS[method], atol=0.15)
    values = ode.last(exact)[:, 0]
    assert float((flows[-1](X) - values).detach().abs().max()) < 3 * errors[-1]


@local
@pytest.mark.parametrize("method", ORDERS)
def test_the_flow_backwards_returns_to_the_start_to_the_order(method: str) -> None:
    errors = []
    for n in (64, 128, 256):
        ode = network(method, n)
        z = ode.lift(X)
        errors.append(float((ode.flow(ode.flow(z), backwards=True) - z).detach().abs().max()))
        assert float((ode.flow(z) - z).detach().abs().max()) > 0.5
    # A method and its reverse cancel the leading error where the order is even: one order more is allowed.
    assert (rates(errors) > ORDERS[method] - 0.2).all(), errors


@local
def test_a_resnet_is_the_euler_method_of_a_neural_ode() -> None:
    """z + σ(B z + c) = z + Δt W σ(A z + b) with A = B, b = c, W = I/Δt."""
    resnet = hf.ResNet(2, 3, width=5, blocks=4, activation="tanh", seed=1)
    ode = hf.NeuralODE(5, 3, width=5, layers=4, horizon=2.0, method="euler")
    with torch.no_grad():
        for k, block in enumerate(resnet.blocks):
            ode.A[k], ode.b[k], ode.W[k] = block.weight, block.bias, torch.eye(5) / 0.5
    ode.last = resnet.last
    np.testing.assert_allclose(ode(torch.tanh(resnet.first(X))).detach(), resnet(X).detach(), rtol=1e-13, atol=1e-14)


@local
@pytest.mark.parametrize("method", ORDERS)
def test_derivatives_by_weights_and_coordinates_are_right_to_second_order(method: str) -> None:
    ode = hf.NeuralODE(2, 2, width=3, layers=2, steps=4, augment=1, seed=1, method=method)
    names, values = zip(*ode.named_parameters(), strict=True)

    def f(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(ode, dict(zip(names, given, strict=True)), (x,))

    inputs = (X[:2].clone().requires_grad_(), *(v.detach().clone().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@local
def test_shapes_are_those_of_any_synthetic_model() -> None:
    for outputs in (1, 3):
        ode = hf.NeuralODE(2, outputs, width=4, layers=2)
        for n in (9, 1, 0):  # a rank may own one point, or none
            values = ode(X[:n])
            assert values.shape == ((n,) if outputs == 1 else (n, outputs))
            assert values.dtype == torch.float64
    assert {name for name, _ in ode.named_parameters()} == {"A", "b", "W", "last.weight", "last.bias"}
    assert (ode.steps, ode.method) == (2, "rk4")


def test_weights_depend_on_the_seed_alone_and_are_equal_on_every_rank(comm: MPI.Comm) -> None:
    torch.manual_seed(100 + comm.rank)  # ranks whose own random streams differ
    stream = torch.get_rng_state()

    def numbers(**options: Any) -> np.ndarray:
        state = hf.NeuralODE(2, width=4, layers=2, **options).state_dict()
        return np.concatenate([t.numpy().ravel() for t in state.values()])

    weights = numbers(seed=3)
    assert all(np.array_equal(weights, other) for other in comm.allgather(weights))
    np.testing.assert_array_equal(numbers(seed=3, steps=8, method="euler"), weights)
    assert not np.isclose(numbers(seed=4), weights).all()
    assert torch.equal(torch.get_rng_state(), stream), "building a network must not draw from the user's stream"


@local
def test_a_neural_ode_fits_a_smooth_field() -> None:
    """sin x sin y at 200 points of (0, π)², by L-BFGS; and between them."""
    x = torch.from_numpy(np.random.default_rng(5).uniform(0.0, math.pi, (400, 2)))
    y = torch.sin(x).prod(dim=1)
    ode = hf.InputScaling(hf.NeuralODE(2, width=10, layers=3, augment=1, seed=0), [[0.0, 0.0], [math.pi, math.pi]])
    optimiser = torch.optim.LBFGS(ode.parameters(), max_iter=150, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (ode(x[:200]) - y[:200]).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    errors = (ode(x) - y).detach().square()
    assert float(errors[:200].mean().sqrt()) < 1e-2
    assert float(errors[200:].mean().sqrt()) < 2e-2


@local
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hf.NeuralODE(0), "inputs, outputs, width, layers and steps must be at least 1"),
        (lambda: hf.NeuralODE(2, steps=0), "layers and steps must be at least 1"),
        (lambda: hf.NeuralODE(2, layers=3, steps=7), r"steps=7 is not a multiple of layers=3.*take steps=9"),
        (lambda: hf.NeuralODE(2, augment=-1), "augment must not be negative, it is -1"),
        (lambda: hf.NeuralODE(2, horizon=0.0), "horizon must be finite and positive, not 0.0"),
        (lambda: hf.NeuralODE(2, horizon=math.inf), "horizon must be finite and positive, not inf"),
        (lambda: hf.NeuralODE(2, method="rk5"), r"method 'rk5' is not among \['euler', 'midpoint', 'rk4'\]"),
        (lambda: hf.NeuralODE(2, activation="tahn"), "activation 'tahn' is not among"),
        (lambda: hf.NeuralODE(3)(X), "the network has dimension 3, the points have 2"),
    ],
)
def test_what_is_no_neural_ode_is_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
