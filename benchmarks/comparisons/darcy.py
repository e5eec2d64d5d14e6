"""HYCO's second published case: ten unknowns of a permeability, 50 sensors over the domain, without and with noise.

−∇·(κ∇u) = 1 in (−π, π)², u = 0 on the boundary, κ = μ₀² + softplus(Σ_{m,p=1..3} c_mp sin(π m x/4) sin(π p y/4)),
truth μ₀ = 0.5, c = (1 2 3; 4 −1 −2; −3 −4 5), start (0.1; 0.2 0.8 4; 5 −0.1 0.05; −1 −3 1).  The data come from P2
elements on a 64 × 64 grid, the inversion uses P2 on 36 × 36.  Noise is Gaussian, in multiples of max u.

What 50 such values can tell about u: with a Gaussian prior of the true size (1.74) about the start, the posterior
linearised at the truth has an expected relative L² error of 0.113 in u and 0.451 in θ at noise 0.2
(benchmarks/darcy_information.py).
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem, mesh
from torch.nn.functional import softplus

import hyco_fem as hf
from comparisons.common import NETWORK, network, network_only, relative, solves

PI = math.pi
TRUTH = np.array([0.5, 1, 2, 3, 4, -1, -2, -3, -4, 5])
START = np.array([0.1, 0.2, 0.8, 4, 5, -0.1, 0.05, -1, -3, 1])
ONE = hf.GaussNewton(steps=60, tolerance=1e-8)
# What one would say of coefficients of such a series; not tuned.
PRIOR = hf.Prior(2.0)
SIGMA = 1e-3  # declared for the discretisation where there is no noise, in units of max u


def model(comm: MPI.Comm, theta: np.ndarray, cells: int = 36) -> hf.PhysicalModel:
    """The PDE with θ = (μ₀, c)."""
    domain = mesh.create_rectangle(comm, [[-PI, -PI], [PI, PI]], [cells, cells])
    kappa = fem.Function(fem.functionspace(domain, ("Lagrange", 2)), name="kappa")
    problem = hf.catalogue.darcy(domain, degree=2, kappa=kappa, f=1.0)
    series = hf.SineSeries(theta[1:].reshape(3, 3), PI / 4, transform=softplus)
    return hf.PhysicalModel.of(problem, {"kappa": hf.Sum(hf.Scalar(theta[0] ** 2, hf.Square()), series)})


def theta_of(physical: hf.PhysicalModel) -> np.ndarray:
    """(μ₀, c)."""
    return np.concatenate([p.detach().numpy().ravel() for p in physical.parameters()])


@functools.cache
def reference() -> tuple[fem.Function, np.ndarray, np.ndarray, float]:
    """The true solution, points to compare at, its values there, and its maximum."""
    truth = model(MPI.COMM_SELF, TRUTH, 64)
    with torch.no_grad():
        truth.solve()
    points = hf.quadrature_points(truth.V.mesh, 3)
    values = points.evaluate(truth.function).numpy()
    return truth.function, points.x.numpy(), values, float(np.abs(truth.function.x.array).max())


class Setting:
    """A seed: sensors, noise, model and network."""

    def __init__(self, seed: int, comm: MPI.Comm, noise: float, cells: int = 36) -> None:
        u, _, _, largest = reference()
        rng = np.random.default_rng(seed)
        x = rng.uniform(-PI, PI, (50, 2))
        values = hf.Points(u.function_space.mesh, x).evaluate(u).numpy()
        self.noise, self.seed = noise, seed
        self.sigma = largest * (noise or SIGMA)
        self.physical = model(comm, START, cells)
        values = values + noise * largest * rng.standard_normal(50)
        self.data = hf.Data(hf.Points(self.physical.V.mesh, x), values, self.sigma)
        self.net = network(self.physical.V.mesh, seed)
        self.prior = PRIOR if noise else None

    def found(self, physical: bool = True, net: bool = True) -> dict[str, float]:
        """Errors of the models."""
        _, x, values, _ = reference()
        tag = f" ({self.noise:g})"
        out: dict[str, float] = {}
        if physical:
            with torch.no_grad():
                self.physical.solve()
            out["theta" + tag] = relative(theta_of(self.physical) - TRUTH, TRUTH)
            there = hf.Points(self.physical.V.mesh, x).evaluate(self.physical.function).numpy()
            out["u_physical" + tag] = relative(there - values, values)
            out["solves"] = solves(self.physical)
        if net:
            with torch.no_grad():
                out["u_synthetic" + tag] = relative(self.net(torch.from_numpy(x)).numpy() - values, values)
        self.physical.close()
        return out


def both(run: Any, cells: int = 36) -> Any:
    """Without noise and with noise 0.2."""

    def method(seed: int, comm: MPI.Comm) -> dict[str, float]:
        out: dict[str, float] = {}
        for noise in (0.0, 0.2):
            found = run(Setting(seed, comm, noise, cells))
            found["solves"] = found.get("solves", 0.0) + out.get("solves", 0.0)
            out |= found
        return out

    return method


def hyco(s: Setting) -> dict[str, float]:
    """Best responses; weights from the physics' own error."""
    ghosts = hf.GhostUnion([hf.RandomGhosts(200, fixed=True), hf.BoundaryGhosts(60, fixed=True)])
    weights = hf.ModelDiscrepancy(hf.Weights(decay=1e-3))
    answers = hf.Answers(ONE, NETWORK)
    hf.Hyco(s.physical, s.net, s.data, ghosts, weights=weights, answers=answers, prior=s.prior).run(2)
    return s.found()


def physics(prior: bool) -> Any:
    """Physics only."""

    def run(s: Setting) -> dict[str, float]:
        hf.PhysicsOnly(s.physical, s.data, ONE, prior=s.prior if prior else None).run(1)
        return s.found(net=False)

    return run


def network_alone(s: Setting) -> dict[str, float]:
    """The same network on the same data."""
    network_only(s.net, s.data, (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 1e-4))
    return s.found(physical=False)


def pinn(s: Setting) -> dict[str, float]:
    """Strong form, network and θ by Adam: 2,000 steps on 400 collocation points."""
    kappa = fem.Function(s.physical.V, name="kappa")
    problem = hf.catalogue.darcy(s.physical.V.mesh, degree=2, kappa=kappa, f=1.0)
    scale = float(s.sigma**2)
    hf.PINN(
        problem,
        s.net,
        dict(s.physical.coefficients),
        s.data,
        collocation=hf.RandomGhosts(400, seed=s.seed),
        weights=hf.PINNWeights(data=100.0 * scale, residual=1.0, boundary=10.0),
        answer=hf.AdamStep(3e-3),
        coefficient_lr=5e-3,
    ).run(2000)
    return s.found()


def variational(s: Setting) -> dict[str, float]:
    """The assembled residual in the dual norm instead of the strong form: 2,000 steps on 18 × 18."""
    hf.VariationalPINN(
        s.physical,
        s.net,
        s.data,
        weights=hf.VariationalWeights(data=100.0 * float(s.sigma**2)),
        answer=hf.AdamStep(3e-3),
        coefficient_lr=5e-3,
    ).run(2000)
    return s.found()


class Darcy:
    """Methods, metrics and what is good."""

    methods: ClassVar[dict[str, Any]] = {
        "HYCO": both(hyco),
        "physics only": both(physics(False)),
        "physics only, prior": both(physics(True)),
        "network only": both(network_alone),
        "PINN": both(pinn, 18),
        "variational PINN": both(variational, 18),
    }
    metrics: ClassVar[dict[str, str]] = {
        "theta (0)": "θ, no noise",
        "u_physical (0)": "u physical, no noise",
        "theta (0.2)": "θ, noise 0.2",
        "u_physical (0.2)": "u physical, noise 0.2",
        "u_synthetic (0.2)": "u synthetic, noise 0.2",
    }
    good_means = "relative error of θ below 0.01 without noise."

    def good(self, row: dict[str, Any]) -> bool:
        """The aim without noise."""
        return (row.get("theta (0)") or 1.0) < 0.01
