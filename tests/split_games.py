"""Small games that are split, or simultaneous on one communicator, and networks that go wrong."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, square
from dolfinx import fem
from torch import Tensor, nn

import hyco_fem as hf

WORLD = MPI.COMM_WORLD
SENSORS = np.array([[0.31, 0.42], [0.7, 0.25], [0.55, 0.81], [0.12, 0.63], [0.88, 0.9], [0.47, 0.11]])
VALUES = np.array([0.4, 0.1, 0.2, 0.3, 0.05, 0.15])
WEIGHTS = hf.Weights(0.7, 3.0, 2.0, 40.0, decay=1e-3)
ADAM = hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2))

several = pytest.mark.skipif(WORLD.size < 2, reason="a split game needs two ranks")
# 1 + 2 and 2 + 1 on three ranks.
SHARES = range(1, WORLD.size) if WORLD.size > 1 else [1]


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A hang ends the program and shows where it was."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def heat(comm: MPI.Comm, kappa: nn.Module | None = None, load: nn.Module | None = None) -> hf.PhysicalModel:
    """−∇·(κ∇u) = f, u = 0 on the boundary; by default κ and f are unknown numbers."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    k, f = fem.Function(Q, name="kappa"), fem.Function(Q, name="f")
    F = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    modules = {k: kappa or hf.Scalar(2.0, hf.Positive()), f: load or hf.Scalar(5.0)}
    return hf.PhysicalModel(F, u, [dirichlet(V)], modules, positive=[k])


def plate(comm: MPI.Comm) -> hf.PhysicalModel:
    """Plane strain with an unknown modulus, a vector field."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    E = fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="E")
    F = E * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx - (v[0] - 2.0 * v[1]) * ufl.dx
    return hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(2.0)})


def network(outputs: int = 1) -> nn.Module:
    return hf.MLP(2, outputs, width=6, depth=2, seed=3)


def seen(model: hf.PhysicalModel, values: np.ndarray = VALUES, rows: slice = slice(None)) -> hf.Data:
    return hf.Data(hf.Points(model.V.mesh, SENSORS[rows]), values[rows], 0.2)


def game_on(
    where: hf.Split | MPI.Comm,
    net: nn.Module | None = None,
    *,
    model: Callable[[MPI.Comm], hf.PhysicalModel] = heat,
    data: Callable[[hf.PhysicalModel], Any] = seen,
    ghosts: Any = None,
    **options: Any,
) -> Any:
    """The same game split, or simultaneous on a communicator."""
    split = isinstance(where, hf.Split)
    physical = model(where.comm if split else where)
    options = {"answers": ADAM, "weights": WEIGHTS} | options
    arguments = (physical, network() if net is None else net, data(physical), ghosts or hf.RandomGhosts(10, seed=5))
    if split:
        return hf.SplitHyco(*arguments, split=where, **options)
    return hf.Hyco(*arguments, schedule="simultaneous", **options)


def numbers(result: hf.Result) -> np.ndarray:
    return np.array([list(record.flat().values()) for record in result.history])


def alike(found: hf.Result, expected: hf.Result, tolerance: float) -> None:
    """Histories that are equal, relative to the largest entry of each column: gradients end near zero."""
    a, b = numbers(found), numbers(expected)
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    np.testing.assert_array_less(np.abs(a - b) / np.maximum(np.abs(b).max(axis=0), 1e-300), tolerance)


def phi(game: Any) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in game.synthetic.parameters()]).numpy()


def theta(game: Any) -> list[float]:
    return [float(p.detach()) for p in game.physical.parameters()]


class Quadratic(nn.Module):
    """w · (1, x, y, x², xy, y²): a network for which J_syn has one minimum.  It may take its time."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.w, self.pause = nn.Parameter(torch.zeros(6, dtype=torch.float64)), pause

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        a, b = x[:, 0], x[:, 1]
        return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], dim=1) @ self.w


def best_responses(where: Any, **options: Any) -> Any:
    """Exact answers of two players whose objectives are quadratic, on fixed ghost points."""
    net = Quadratic(options.pop("pause", 0.0))
    return game_on(
        where,
        net,
        model=lambda comm: heat(comm, kappa=hf.Scalar(2.0).requires_grad_(False)),
        ghosts=hf.RandomGhosts(12, fixed=True),
        weights=hf.Weights(1.0, 10.0, 1.0, 10.0),
        answers=hf.Answers(hf.GaussNewton(3), hf.GaussNewton(3)),
        **options,
    )


class Cliff(nn.Module):
    """The same w everywhere, and no finite value beyond w = 1.5."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w if self.w.item() <= 1.5 else self.w * math.nan) + torch.zeros(len(x), dtype=torch.float64)


class Breaks(nn.Module):
    """A network that gives NaN, or raises, from some call on."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        super().__init__()
        self.w, self.last, self.calls, self.error = nn.Parameter(torch.zeros((), dtype=torch.float64)), last, 0, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.last:
            return self.w.expand(len(x))
        if self.error is not None:
            raise self.error
        return (self.w * math.nan).expand(len(x))
