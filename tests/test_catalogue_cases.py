"""Every ready problem through the checks of every model, with all that may be unknown in it."""

from __future__ import annotations

from mpi4py import MPI

import torch
import ufl
from boxes import Cell, box, field, left, right, side, walls
from cases import ModelCase, square
from dolfinx import fem
from ufl import dot, grad, inner

import hyco_fem as hf

C = hf.catalogue


def bumps(d: int = 2, amplitude: float = 1.0) -> hf.GaussianBumps:
    """A bump off the centre of the unit box on a background of one."""
    return hf.GaussianBumps([amplitude], [[0.4, 0.6, 0.5][:d]], 0.4, background=1.0, trainable=("amplitudes", "widths"))


class Ramp(torch.nn.Module):
    """a (1 + 0.3 x₀ + 0.2 x_last) with unknown a: (n,) for one number, (n, m) for m."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((1.0 + 0.3 * x[:, :1] + 0.2 * x[:, -1:]) * self.values).squeeze(1)


class TestPoissonWithUnknownBoundaryValues(ModelCase):
    """Of degree 2, with the conductivity unknown too; the boundary value in a space of its own."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 3)
        g = field(domain, "g", 2)
        conditions = (hf.Dirichlet(g, left), hf.Dirichlet(0.5, right), hf.Flux(1.0, walls(domain)))
        problem = C.poisson(domain, degree=2, kappa=field(domain, "kappa"), conditions=conditions)
        return hf.PhysicalModel.of(problem, {"kappa": bumps(), "g": Ramp(2.0)})


class TestReactionDiffusion(ModelCase):
    """All that may be unknown in it, with the heat transfer coefficient, the ambient value and the flux."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 4)
        h, ambient, q = (field(domain, name) for name in ("h", "ambient", "q"))
        conditions = (hf.Robin(h, ambient, walls(domain)), hf.Flux(q, left))
        problem = C.reaction_diffusion(domain, kappa=field(domain, "kappa"), conditions=conditions)
        modules = {"h": Ramp(2.0), "ambient": Ramp(-1.0), "q": Ramp(0.7)}
        return hf.PhysicalModel.of(problem, {"kappa": bumps(), "eta": hf.Scalar(0.8), "f": hf.Scalar(3.0), **modules})


class TestDarcyOnHexahedra(ModelCase):
    """Permeability as an inclusion."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = box(comm, Cell.hexahedron, 2)
        problem = C.darcy(
            domain, kappa=field(domain, "kappa"), conditions=(hf.Dirichlet(0.0, left), hf.Dirichlet(1.0, right))
        )
        return hf.PhysicalModel.of(problem, {"kappa": bumps(3)})


class TestHelmholtzOnAnInterval(ModelCase):
    """Indefinite."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = box(comm, Cell.interval, 8)
        problem = C.helmholtz(domain, degree=2, c=field(domain, "c"), k2=100.0, conditions=hf.Dirichlet(0.0, left))
        return hf.PhysicalModel.of(problem, {"c": bumps(1), "k2": hf.Scalar(90.0)})


class TestAdvectionDiffusion(ModelCase):
    """The stabilisation depends on both unknowns; the velocity is a vector at every cell, distributed."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        problem = C.advection_diffusion(square(comm, 4), kappa=0.02, beta=(1.0, 0.5), f=1.0)
        beta = hf.NodalField(
            problem.coefficients["beta"].function_space, lambda x: torch.stack([1.0 + x[:, 1], 0.5 - x[:, 0]], 1)
        )
        return hf.PhysicalModel.of(problem, {"kappa": hf.Scalar(0.02), "beta": beta})


class TestPowerLaw(ModelCase):
    """With the exponent unknown, on quadrilaterals."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 3, Cell.quadrilateral)
        p = fem.Function(fem.functionspace(domain, ("DG", 0)), name="p")
        problem = C.power_law(domain, kappa=field(domain, "kappa"), p=p, eps=0.3, f=3.0)
        return hf.PhysicalModel.of(problem, {"kappa": bumps(), "p": hf.Scalar(3.0)})


class TestElasticity(ModelCase):
    """Young's modulus, Poisson's ratio, a traction and a displacement; one side slides."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 3)
        t, pulled = field(domain, "t", 1, 2), field(domain, "pulled", 2, 2)
        bottom, top = side(domain, 1, 0.0), side(domain, 1, 1.0)
        conditions = (hf.Dirichlet(pulled, left), hf.Dirichlet(0.0, bottom, component=1), hf.Flux(t, top))
        problem = C.elasticity(domain, degree=2, E=field(domain, "E"), f=(0.0, -0.1), conditions=conditions)
        modules = {"t": Ramp(0.2, -0.3), "pulled": Ramp(-0.1, 0.2)}
        return hf.PhysicalModel.of(problem, {"E": bumps(), "nu": hf.Scalar(0.3, hf.Bounded(0.0, 0.5)), **modules})


class TestHyperelasticity(ModelCase):
    """A block that is pulled by a third of its length."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 2)
        conditions = (hf.Dirichlet(0.0, left), hf.Flux((0.4, 0.1), right))
        problem = C.hyperelasticity(domain, E=field(domain, "E"), conditions=conditions)
        return hf.PhysicalModel.of(problem, {"E": bumps(), "nu": hf.Scalar(0.3)})


class TestStokes(ModelCase):
    """Viscosity and inflow unknown: a Dirichlet value in the velocity's own space."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 2)
        inflow = field(domain, "inflow", 2, 2)
        conditions = (hf.Dirichlet(inflow, left), hf.Dirichlet(0.0, walls(domain)))
        problem = C.stokes(domain, mu=field(domain, "mu"), f=(0.0, -1.0), conditions=conditions)
        return hf.PhysicalModel.of(problem, {"mu": bumps(), "inflow": Ramp(1.0, 0.2)})


class TestNavierStokes(ModelCase):
    """An enclosed flow with its pressure pinned."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 2)
        x = ufl.SpatialCoordinate(domain)
        lid = hf.Dirichlet(ufl.as_vector((16.0 * x[0] ** 2 * (1 - x[0]) ** 2 * x[1], 0.0)))
        problem = C.navier_stokes(domain, mu=0.02, f=field(domain, "f", 1, 2), conditions=lid, pin_pressure=True)
        return hf.PhysicalModel.of(problem, {"mu": hf.Scalar(0.02, hf.Positive(scale=0.02)), "f": Ramp(1.0, -0.5)})


class TestInteriorPenalty(ModelCase):
    """Discontinuous elements: integrals over interior facets, whose cells are on two ranks."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 3)
        V = fem.functionspace(domain, ("DG", 1))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), field(domain, "kappa")
        n, h = ufl.FacetNormal(domain), ufl.CellDiameter(domain)
        jump, avg = ufl.jump, ufl.avg
        F = kappa * inner(grad(u), grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        F -= (inner(avg(kappa * grad(u)), jump(v, n)) + inner(avg(kappa * grad(v)), jump(u, n))) * ufl.dS
        F += 20.0 / avg(h) * avg(kappa) * inner(jump(u, n), jump(v, n)) * ufl.dS
        F += kappa * (20.0 / h * u * v - dot(grad(u), n) * v - dot(grad(v), n) * u) * ufl.ds
        return hf.PhysicalModel(F, u, [], {kappa: bumps()})
