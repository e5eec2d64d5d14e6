"""A network on another device: what crosses the border, in which dtype, and who takes which device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import poisson
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.models import device as module
from hyco_fem.parallel import check_replicated, gradient_norm, local_rank, sum_gradients, sum_over_ranks, sum_tensors

X = torch.from_numpy(np.random.default_rng(0).uniform(-1.0, 1.0, (7, 2)))

# Every device that is here; on the CPU the same road is taken, without a move.
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Witness(nn.Module):
    """Sees where its input and its weight are, and answers from the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.seen: list[tuple[torch.device, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen += [(t.device, t.dtype) for t in (x, self.weight)]
        return torch.zeros(len(x), dtype=self.weight.dtype)


# -- the border ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVICES)
def test_in_float64_nothing_but_the_place_changes(name: str) -> None:
    network = hf.InputScaling(hf.MLP(2, 2, width=8, seed=1), [[-1.0, -1.0], [1.0, 2.0]])
    x = X.clone().requires_grad_()
    expected = network(x)
    parts = torch.autograd.grad(expected.square().sum(), [x, *network.parameters()])
    moved = hf.OnDevice(network, name)
    found = moved(x)
    assert (found.device.type, found.dtype) == ("cpu", torch.float64)
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-12, atol=1e-13)
    for a, b in zip(torch.autograd.grad(found.square().sum(), [x, *moved.parameters()]), parts, strict=True):
        np.testing.assert_allclose(a.cpu(), b, rtol=1e-11, atol=1e-12)
    # By forward mode, and twice: a PINN differentiates by x and then by φ.
    direction = torch.ones_like(X)
    tangent = torch.func.jvp(moved, (X,), (direction,))[1]
    gradient = torch.autograd.grad(moved(x).sum(), x, create_graph=True)[0]
    np.testing.assert_allclose(tangent.sum().item(), gradient.sum().item(), rtol=1e-11)
    gradient.square().sum().backward()
    # The last bias does not enter the derivative.
    grads = {name: p.grad for name, p in moved.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None] in ([], ["network.network.last.bias"])
    assert all(grad is None or grad.device == moved.device for grad in grads.values())


@pytest.mark.parametrize("name", DEVICES)
def test_in_float32_values_are_float64_at_the_border_with_seven_digits(name: str) -> None:
    network = hf.HardBoundary(hf.MLP(2, width=16, seed=1), hf.box_distance([[-1.0, -1.0], [1.0, 1.0]]), 1.0)
    x = X.clone().requires_grad_()
    expected = network(x)
    by_x = torch.autograd.grad(expected.sum(), x)[0]
    moved = hf.OnDevice(network, name, torch.float32)
    assert {p.dtype for p in moved.parameters()} == {torch.float32}
    found = moved(x)
    assert found.dtype == torch.float64
    assert 1e-12 < float((found - expected).detach().abs().max()) < 1e-5
    found.sum().backward()
    assert {p.grad.dtype for p in moved.parameters()} == {torch.float32}
    assert x.grad.dtype == torch.float64
    np.testing.assert_allclose(x.grad, by_x, atol=1e-5)


def test_the_network_and_its_input_are_on_the_device() -> None:
    """With torch's device without memory in the place of a GPU."""
    witness = Witness()
    moved = hf.OnDevice(witness, "meta", torch.float32)
    values = moved(X)
    assert values.dtype == torch.float64
    assert witness.seen == [(torch.device("meta"), torch.float32)] * 2
    assert [p.device.type for p in moved.parameters()] == ["meta"]
    assert moved(X[:0]).shape == (0,)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_game_takes_it_as_any_network(comm: MPI.Comm, name: str, dtype: torch.dtype) -> None:
    results = []
    for wrapped in (False, True):
        network: nn.Module = hf.MLP(2, width=8, depth=2, seed=4)
        network = hf.OnDevice(network, name, dtype) if wrapped else network
        model = poisson(comm)
        points = hf.Points(model.V.mesh, np.random.default_rng(2).uniform(0.1, 0.9, (12, 2)))
        data = hf.Data(points, 0.5 * points.gather(model(points)), 0.01)
        result = hf.Hyco(model, network, data, hf.RandomGhosts(20)).run(3)
        results.append([result.history[-1].misfit_synthetic, result.history[-1].interaction])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9 if dtype == torch.float64 else 1e-3)


# -- which device ----------------------------------------------------------------------------------------------


def test_ranks_take_the_devices_of_their_node_in_turn(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    # All ranks of a test run on one machine.
    assert comm.allgather(local_rank(comm)) == list(range(comm.size))
    monkeypatch.setattr(module, "_count", lambda kind: 2 if kind == "cuda" else 0)
    monkeypatch.setattr(module, "_check_usable", lambda device, dtype: None)
    monkeypatch.setattr(Witness, "to", lambda self, *where: self)
    assert hf.OnDevice(Witness(), "cuda", comm=comm).device == torch.device("cuda", comm.rank % 2)
    assert hf.OnDevice(Witness(), "cuda:1", comm=comm).device == torch.device("cuda", 1)
    assert hf.OnDevice(Witness(), torch.device("cpu"), comm=comm).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: hf.OnDevice(Witness(), "cuda:63"),
            r"cannot compute in float64 on the device 'cuda:63'.*are cpu",
        ),
        (lambda: hf.OnDevice(Witness(), "gpu"), r"'gpu' is no device of torch; there are cpu"),
        (lambda: hf.OnDevice(Witness(), "cpu", torch.float16), "torch.float64 or torch.float32, not in torch.float16"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"cannot compute in float64 on the device 'cuda' .*; there are cpu$"):
        hf.OnDevice(Witness(), "cuda")


def test_a_device_that_one_rank_lacks_is_an_error_on_all(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="'gpu' is no device"):
        hf.OnDevice(Witness(), "gpu" if comm.rank == comm.size - 1 else "cpu", comm=comm)


# -- parameters on devices, in sums over ranks -----------------------------------------------------------------


def test_gradients_of_any_dtype_are_added_and_stay_what_they_are(comm: MPI.Comm) -> None:
    dtypes = [torch.float32, torch.float64, torch.float32]
    single, double, silent = (nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in dtypes)
    single.grad, double.grad = torch.full_like(single, 0.5), torch.full_like(double, 1.0 / 3.0)
    if comm.rank == 0:
        silent.grad = torch.ones_like(silent)  # the others have none
    sum_gradients([single, double, silent], comm)
    assert [p.grad.dtype for p in (single, double, silent)] == dtypes
    np.testing.assert_array_equal(single.grad, np.full(2, 0.5 * comm.size))
    np.testing.assert_allclose(double.grad, comm.size / 3.0, rtol=1e-15)
    np.testing.assert_array_equal(silent.grad, np.ones(2))
    check_replicated([("single", single), ("double", double)], comm)


class Elsewhere(Tensor):
    """A tensor whose numbers NumPy sees only after a copy to the CPU, as on a GPU."""

    def numpy(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("can't convert a tensor that is elsewhere to numpy")

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor)


def test_numbers_are_fetched_before_mpi_sees_them(comm: MPI.Comm) -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.float64).as_subclass(Elsewhere))
    with pytest.raises(TypeError, match="elsewhere"):
        p.detach().numpy()
    p.grad = torch.full((3,), 2.0, dtype=torch.float64).as_subclass(Elsewhere)
    kept = p.grad
    sum_gradients([p], comm)
    assert p.grad is kept
    np.testing.assert_array_equal(kept.cpu(), np.full(3, 2.0 * comm.size))
    assert gradient_norm([p], comm) == pytest.approx(2.0 * comm.size * np.sqrt(3.0), rel=1e-14)
    check_replicated([("p", p)], comm)
    np.testing.assert_array_equal(sum_over_ranks(kept, comm).cpu(), np.full(3, 2.0 * comm.size**2))


@cuda
def test_sums_over_ranks_return_to_the_gpu(comm: MPI.Comm) -> None:
    here, there = (nn.Parameter(torch.ones(3, dtype=torch.float64, device=d)) for d in ("cpu", "cuda"))
    here.grad, there.grad = torch.full_like(here, 2.0), torch.full_like(there, 3.0)
    sum_gradients([there, here], comm)
    assert there.grad.device == there.device
    np.testing.assert_array_equal(there.grad.cpu(), np.full(3, 3.0 * comm.size))
    np.testing.assert_array_equal(here.grad, np.full(3, 2.0 * comm.size))
    assert gradient_norm([there, here], comm) == pytest.approx(comm.size * np.sqrt(3 * 13.0), rel=1e-14)
    check_replicated([("there", there)], comm)
    total = sum_over_ranks(there.sum(), comm)
    assert total.device == there.device
    assert [t.device for t in sum_tensors([there, here], [True, True], comm)] == [there.device, here.device]
