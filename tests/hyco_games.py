"""Small games whose solution is u = s(θ) U with U fixed and s in closed form, and one with a field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from cases import dirichlet, square
from dolfinx import fem
from torch import Tensor, nn

import hyco_fem as hf

SENSORS = np.array([[0.31, 0.42], [0.7, 0.25], [0.55, 0.81], [0.12, 0.63], [0.88, 0.9], [0.47, 0.11]])
KAPPA, LOAD = 2.0, 5.0


@dataclass
class Setting:
    """A physical model with u = s(θ) U, its θ as the reference has it, U (owned dofs), and values at SENSORS."""

    model: hf.PhysicalModel
    theta: list[Tensor]
    scale: Callable[[list[Tensor]], Tensor]
    U: Tensor
    values: np.ndarray


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def heat(comm: MPI.Comm, values: np.ndarray | None = None) -> Setting:
    """−∇·(κ∇u) = f, u = 0 on the boundary, with κ = softplus(θ₀) and f = θ₁ unknown: u = f/κ U."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    kappa, f = fem.Function(Q, name="kappa"), fem.Function(Q, name="f")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    coefficients = {kappa: hf.Scalar(KAPPA, hf.Positive()), f: hf.Scalar(LOAD)}
    model = hf.PhysicalModel(F, u, [dirichlet(V)], coefficients, positive=[kappa])
    theta = [number(math.log(math.expm1(KAPPA))), number(LOAD)]
    given = np.array([0.4, 0.1, 0.2, 0.3, 0.05, 0.15]) if values is None else values
    return Setting(
        model, theta, lambda t: t[1] / nn.functional.softplus(t[0]), model.solve().detach() * KAPPA / LOAD, given
    )


def plate(comm: MPI.Comm) -> Setting:
    """Plane strain with an unknown modulus E = θ₀ everywhere and a given load: u = U/E, a vector field."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    u, v, E = (
        fem.Function(V, name="u"),
        ufl.TestFunction(V),
        fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="E"),
    )
    eps = ufl.sym(ufl.grad(u))
    sigma = E * (ufl.tr(eps) * ufl.Identity(2) + 2.0 * eps)
    F = ufl.inner(sigma, ufl.grad(v)) * ufl.dx - ufl.inner(ufl.as_vector((1.0, -2.0)), v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(KAPPA)})
    values = 0.05 * np.stack([np.cos(3 * SENSORS[:, 0]), np.sin(2 * SENSORS[:, 1])], axis=1)
    return Setting(model, [number(KAPPA)], lambda t: 1.0 / t[0], model.solve().detach() * KAPPA, values)


def network(outputs: int = 1, seed: int = 3) -> hf.MLP:
    return hf.MLP(2, outputs, width=6, depth=2, seed=seed)


def data_of(setting: Setting, noise_std: Any = None) -> hf.Data:
    return hf.Data(hf.Points(setting.model.V.mesh, SENSORS), setting.values, noise_std)


def nodal(comm: MPI.Comm) -> hf.PhysicalModel:
    """−∇·(κ∇u) = 10 with κ unknown at every dof, a distributed parameter, plus an unknown number, a replicated one."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    field = hf.NodalField(V, lambda x: 1.0 + 0.5 * x[:, 0], hf.Positive())
    return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Sum(field, hf.Scalar(0.5))}, positive=[kappa])


def game_of(setting: Setting, **options: Any) -> hf.Hyco:
    """A small game with steps large enough to see."""
    answers = options.pop("answers", hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2)))
    ghosts = options.pop("ghosts", hf.RandomGhosts(10))
    net = options.pop("net", None) or network()
    return hf.Hyco(setting.model, net, data_of(setting), ghosts, answers=answers, **options)


def theta_of(result: hf.Result) -> list[float]:
    return [float(v) for v in result.parameters.values()]
