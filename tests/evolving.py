"""Small problems in time on an interval, for the tests of models in time."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.parallel import sum_gradients, sum_over_ranks

SCHEMES = {
    "backward Euler": hf.BackwardEuler(),
    "theta": hf.ThetaScheme(0.75),
    "Crank-Nicolson": hf.CrankNicolson(),
    "damped": hf.CrankNicolson(damped=2),
    "BDF2": hf.BDF2(),
    "BDF3": hf.BDF3(),
}
UNKNOWN = ("coefficient", "per interval", "initial value", "boundary value")
# Equal steps and others.
STEPS = [0.1, 0.1, 0.15, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1]


class Wave(nn.Module):
    """An initial value with two parameters, a + b sin 3x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.8, 0.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a[0] + self.a[1] * torch.sin(3 * x[:, 0])


def line(comm: MPI.Comm, n: int = 6) -> mesh.Mesh:
    return mesh.create_unit_interval(comm, n)


def at(V: fem.FunctionSpace, x0: float) -> np.ndarray:
    """Dofs at an end of the interval."""
    return fem.locate_dofs_geometrical(V, lambda x: np.isclose(x[0], x0))


def reaction_diffusion(
    comm: MPI.Comm,
    unknown: tuple[str, ...] = UNKNOWN,
    *,
    cubic: bool = False,
    explicit: bool = False,
    degree: int = 1,
    **options: Any,
) -> hf.TransientModel:
    """∂u/∂t − (κ u′)′ + u or u³ = s(t) e⁻ᵗ x, u = g at 0, sin 2t at 1, where κ, s, g and u₀ may be unknown.

    explicit: the reaction is.
    """
    domain = line(comm)
    V, R = fem.functionspace(domain, ("Lagrange", degree)), fem.functionspace(domain, ("DG", 0))
    u, u_t, v = fem.Function(V, name="u"), fem.Function(V, name="u_t"), ufl.TestFunction(V)
    kappa, s, g = fem.Function(V, name="kappa"), fem.Function(R, name="s"), fem.Function(V, name="g")
    moving = fem.Function(V, name="moving")
    kappa.x.array[:], s.x.array[:], g.x.array[:] = 0.3, 2.0, 0.7
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    reaction = (u**3 if cubic else u) * v * ufl.dx
    F = u_t * v * ufl.dx + kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    F -= s * ufl.exp(-t) * x[0] * v * ufl.dx
    modules: dict[str, tuple[fem.Function, nn.Module]] = {
        "coefficient": (kappa, hf.GaussianBumps([0.5], [[0.4]], 0.3, 0.3)),
        "per interval": (s, hf.PerInterval([0.35], [hf.Scalar(2.0), hf.Scalar(-1.0)])),
        "boundary value": (g, hf.Scalar(0.7)),
    }
    settings: dict[str, Any] = {
        "t": t,
        "interval": (0.0, 1.0),
        "dt": STEPS,
        "initial": Wave() if "initial value" in unknown else 0.8 + 0.5 * ufl.sin(3 * x[0]),
        "time_values": {moving: ufl.sin(2 * t) * x[0]},
        "explicit": reaction if explicit else None,
    }
    return hf.TransientModel(
        F if explicit else F + reaction,
        u,
        u_t,
        [fem.dirichletbc(g, at(V, 0.0)), fem.dirichletbc(moving, at(V, 1.0))],
        dict(modules[name] for name in unknown if name in modules),
        **{**settings, **options},
    )


def space_time_points(domain: mesh.Mesh, n: int = 12, end: float = 1.0) -> hf.SpaceTimePoints:
    """Anywhere, with the start and the end of the time among them."""
    rng = np.random.default_rng(3)
    t = rng.uniform(0.0, end, n)
    t[:2] = 0.0, end
    return hf.SpaceTimePoints(domain, rng.uniform(0.02, 0.98, (n, domain.geometry.dim)), t)


def functional(model: hf.TransientModel, points: hf.SpaceTimePoints) -> Tensor:
    """This rank's summand of Σ (u² + u³) at points."""
    u = model(points)
    return (u.square() + u**3).sum()


def gradient(model: nn.Module, local: Tensor, comm: MPI.Comm, **options: Any) -> np.ndarray:
    """Of a sum over ranks, by all parameters."""
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = None
    sum_over_ranks(local, comm).backward(**options)
    sum_gradients(parameters, comm)
    return np.concatenate([p.grad.numpy().ravel() for p in parameters])
