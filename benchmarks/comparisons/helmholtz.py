"""HYCO's first published case (demos/helmholtz.py has the equations): six unknowns, 25 sensors in a quadrant, no noise.

Each seed draws sensors, a start and a network.  Odd seeds start as published (A, B ~ U(1, 3), centres ~ U(0, 1)²), even
ones anywhere (A, B ~ U(0.5, 5), centres in Ω): an answer must not depend on it.  P3 elements on a 24 × 24 grid; for the
published settings P1 on 18 × 18, and for the physics-informed networks P2 on 18 × 18.

There is no noise; what remains at the sensors is the discretisation, for which σ = 1e-4 is declared.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf
from comparisons.common import NETWORK, network, network_only, relative, solves

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
import helmholtz as published

PI = math.pi
SIGMA = 1e-4
BOUNDS = {
    "kappa.amplitudes": (0.0, 10.0),
    "eta.amplitudes": (0.0, 10.0),
    "kappa.centres": (-PI, PI),
    "eta.centres": (-PI, PI),
}
# Where starts are drawn from.
BOX = BOUNDS | {"kappa.amplitudes": (0.5, 5.0), "eta.amplitudes": (0.5, 5.0)}
ONE = hf.GaussNewton(steps=60, tolerance=1e-8, bounds=BOUNDS)


def model(comm: MPI.Comm, start: np.ndarray, cells: int = 24, degree: int = 3) -> hf.PhysicalModel:
    """The PDE on a grid, θ = (A, a, B, b) at `start`; f is made from the true κ and η."""
    domain = mesh.create_rectangle(comm, [[-PI, -PI], [PI, PI]], [cells, cells])
    V = fem.functionspace(domain, ("Lagrange", degree))
    kappa, eta = (fem.Function(V, name=name) for name in ("kappa", "eta"))
    x = ufl.SpatialCoordinate(domain)
    kappa_true = 4.0 * published.gaussian(x, (-1.0, -1.0)) + 1.0
    eta_true = (published.gaussian(x, (2.0, 1.0)) + 1.0) ** 2
    f = -ufl.div(kappa_true * ufl.grad(published.exact(x))) + eta_true * published.exact(x)
    edge = hf.Dirichlet(0.0)
    problem = hf.catalogue.reaction_diffusion(domain, degree=degree, kappa=kappa, eta=eta, f=f, conditions=edge)
    A, a, B, b = start[0], start[1:3], start[3], start[4:6]
    modules = {
        "kappa": hf.GaussianBumps([A], [a], background=1.0),
        "eta": hf.GaussianBumps([B], [b], background=1.0, transform=torch.square),
    }
    return hf.PhysicalModel.of(problem, modules)


def truth(x: torch.Tensor) -> torch.Tensor:
    """u = sin x sin y."""
    return torch.sin(x[:, 0]) * torch.sin(x[:, 1])


def start_of(rng: np.random.Generator, seed: int) -> np.ndarray:
    """(A, a, B, b)."""
    amplitudes, centres = ((1.0, 3.0), (0.0, 1.0)) if seed % 2 else ((0.5, 5.0), (-PI, PI))
    draw = lambda bounds, n: rng.uniform(*bounds, n)  # noqa: E731
    return np.concatenate([draw(amplitudes, 1), draw(centres, 2), draw(amplitudes, 1), draw(centres, 2)])


class Setting:
    """A seed: model, data and network."""

    def __init__(self, seed: int, comm: MPI.Comm, cells: int = 24, degree: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.start = start_of(rng, seed)
        self.x = rng.uniform(0.0, PI, (25, 2))
        self.physical = model(comm, self.start, cells, degree)
        values = np.sin(self.x[:, 0]) * np.sin(self.x[:, 1])
        self.data = hf.Data(hf.Points(self.physical.V.mesh, self.x), values, SIGMA)
        self.net = network(self.physical.V.mesh, seed)

    def search(self) -> hf.MultiStart:
        """256 starts on a 12 × 12 grid; 24 go on there, 4 on the grid itself."""

        def coarse(comm: MPI.Comm) -> hf.PhysicalModel:
            return model(comm, self.start, 12, 2)

        quick = hf.GaussNewton(steps=12, tolerance=1e-2, damping=1e-2, bounds=BOUNDS)
        return hf.MultiStart(BOX, 256, (24, 4), [coarse, coarse], search=quick, answer=ONE, seed=self.seed)

    def found(self, physical: bool = True, net: bool = True) -> dict[str, float]:
        """Errors of the models."""
        out: dict[str, float] = {}
        points = hf.quadrature_points(self.physical.V.mesh, 4)
        if physical:
            with torch.no_grad():
                self.physical.solve()
            theta = published.theta(self.physical)
            out["theta"] = relative(theta - published.THETA, published.THETA)
            out["u_physical"] = hf.relative_l2(self.physical.function, truth, points)
            out["solves"] = solves(self.physical)
        if net:
            out["u_synthetic"] = hf.relative_l2(self.net, truth, points)
        self.physical.close()
        return out


def hyco(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """Many starts, best responses, weights from the physics' own error."""
    s = Setting(seed, comm)
    ghosts = hf.GhostUnion([hf.RandomGhosts(300, fixed=True), hf.BoundaryGhosts(80, fixed=True)])
    weights = hf.ModelDiscrepancy(hf.Weights(decay=1e-6), answer=s.search())
    hf.Hyco(s.physical, s.net, s.data, ghosts, weights=weights, answers=hf.Answers(ONE, NETWORK)).run(2)
    return s.found()


def as_published(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The paper's: P1 on 18 × 18, 2–256–256–1, 1288 rounds of single Adam steps, all weights 1."""
    s = Setting(seed, comm, 18, 1)
    data = hf.Data(s.data.points, s.data.values)
    s.net = published.network(s.physical, seed, scaled=False)
    hf.Hyco(s.physical, s.net, data, hf.RandomGhosts(200, seed=seed), warm_up=1000).run(1288)
    return s.found()


def physics(answer: Any) -> Any:
    """Physics only, with an answer made for the setting."""

    def run(seed: int, comm: MPI.Comm) -> dict[str, float]:
        s = Setting(seed, comm)
        hf.PhysicsOnly(s.physical, s.data, answer(s)).run(1)
        return s.found(net=False)

    return run


def network_alone(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The same network on the same data."""
    s = Setting(seed, comm)
    network_only(s.net, s.data, tuple(d * 1e-3 for d in (1.0, 0.1, 0.01, 0.001, 0.0001)))
    return s.found(physical=False)


def pinn(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """Strong form, network and θ by Adam: 3,000 steps on 400 collocation points."""
    s = Setting(seed, comm, 18, 2)
    modules = dict(s.physical.coefficients)
    problem = _problem(s)
    game = hf.PINN(
        problem,
        s.net,
        modules | {"f": source},
        hf.Data(s.data.points, s.data.values),
        collocation=hf.RandomGhosts(400, seed=seed),
        weights=hf.PINNWeights(data=100.0, residual=1.0, boundary=10.0),
        answer=hf.AdamStep(3e-3),
        coefficient_lr=5e-3,
    )
    game.run(3000)
    return s.found()


def variational(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The assembled residual in the dual norm instead of the strong form: 3,000 steps on P2, 18 × 18."""
    s = Setting(seed, comm, 18, 2)
    hf.VariationalPINN(
        s.physical,
        s.net,
        hf.Data(s.data.points, s.data.values),
        weights=hf.VariationalWeights(data=100.0),
        answer=hf.AdamStep(3e-3),
        coefficient_lr=5e-3,
    ).run(3000)
    return s.found()


def _problem(s: Setting) -> Any:
    domain = s.physical.V.mesh
    kappa, eta = (fem.Function(s.physical.V, name=name) for name in ("kappa", "eta"))
    edge = hf.Dirichlet(0.0)
    return hf.catalogue.reaction_diffusion(domain, degree=2, kappa=kappa, eta=eta, f=0.0, conditions=edge)


def source(x: torch.Tensor) -> torch.Tensor:
    """f = −∇·(κ∇u) + η u for the true κ, η and u, in closed form."""
    X, Y = x[:, 0], x[:, 1]
    bump = 4.0 * torch.exp(-((X + 1.0) ** 2) - (Y + 1.0) ** 2)
    u = torch.sin(X) * torch.sin(Y)
    slope = -2.0 * bump * ((X + 1.0) * torch.cos(X) * torch.sin(Y) + (Y + 1.0) * torch.sin(X) * torch.cos(Y))
    eta = (torch.exp(-((X - 2.0) ** 2) - (Y - 1.0) ** 2) + 1.0) ** 2
    return 2.0 * (bump + 1.0) * u - slope + eta * u


class Helmholtz:
    """Methods, metrics and what is good."""

    methods: ClassVar[dict[str, Any]] = {
        "HYCO": hyco,
        "HYCO as published": as_published,
        "physics only, many starts": physics(lambda s: s.search()),
        "physics only, one start": physics(lambda s: ONE),
        "physics only, Adam": physics(lambda s: hf.AdamStep(5e-3, steps=1288)),
        "network only": network_alone,
        "PINN": pinn,
        "variational PINN": variational,
    }
    metrics: ClassVar[dict[str, str]] = {
        "theta": "relative error of θ",
        "u_physical": "relative L² error, physical",
        "u_synthetic": "relative L² error, synthetic",
    }
    good_means = "relative error of θ below 0.01 and of u (physical model) below 2e-3."

    def good(self, row: dict[str, Any]) -> bool:
        """The aim."""
        return (row.get("theta") or 1.0) < 0.01 and (row.get("u_physical") or 1.0) < 2e-3
