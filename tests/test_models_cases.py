"""Every kind of problem through the same checks: Taylor, transposes, tangents, two forwards, ranks."""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import ModelCase, boundary_dofs, dirichlet, distorted_quadrilaterals, poisson, square
from dolfinx import fem, mesh

import hyco_fem as hf


def bumps(amplitude: float = 2.0, d: int = 2) -> hf.GaussianBumps:
    """A bump off the centre of the unit box on a background of one."""
    return hf.GaussianBumps([amplitude], [[0.4, 0.6, 0.5][:d]], 0.4, background=1.0, trainable=("amplitudes", "widths"))


class TestPoisson(ModelCase):
    """P1 on triangles."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        return poisson(comm)


class TestNeumannRobinDirichlet(ModelCase):
    """P2, non-zero Dirichlet on the left, flux on the right, a Robin term with an unknown coefficient elsewhere."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 4)
        domain.topology.create_connectivity(1, 2)
        facets = mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[0], 1.0))
        others = mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[1], 0.0) | np.isclose(x[1], 1.0))
        order = np.argsort(np.concatenate([facets, others]))
        entities = np.concatenate([facets, others])[order]
        values = np.concatenate([np.full(len(facets), 1), np.full(len(others), 2)])[order].astype(np.int32)
        ds = ufl.Measure("ds", domain, subdomain_data=mesh.meshtags(domain, 1, entities, values))
        V, Q = fem.functionspace(domain, ("Lagrange", 2)), fem.functionspace(domain, ("Lagrange", 1))
        u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
        kappa, h = fem.Function(Q, name="kappa"), fem.Function(Q, name="h")
        F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - v * ds(1) + h * (u - 0.5) * v * ds(2)
        left = fem.locate_dofs_topological(
            V, 1, mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[0], 0.0))
        )
        g = fem.Function(V)
        g.interpolate(lambda x: 1.0 + x[1])
        return hf.PhysicalModel(F, u, [fem.dirichletbc(g, left)], {kappa: bumps(), h: hf.Scalar(2.0, hf.Positive())})


class TestQuadrilaterals(ModelCase):
    """Q2 on quadrilaterals that are no parallelograms."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(distorted_quadrilaterals(comm), ("Lagrange", 2))
        u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
        kappa = fem.Function(fem.functionspace(V.mesh, ("Lagrange", 1)), name="kappa")
        F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        return hf.PhysicalModel(
            F, u, [dirichlet(V)], {kappa: hf.SineSeries([[0.3, 0.2], [0.1, 0.1]], 2.0, transform=torch.exp)}
        )


class TestTetrahedra(ModelCase):
    """P1 on tetrahedra."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(mesh.create_unit_cube(comm, 3, 3, 3), ("Lagrange", 1))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
        F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: bumps(d=3)})


class TestElasticity(ModelCase):
    """Vector P1, plane strain, Young's modulus at every dof (a distributed parameter)."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
        Q = fem.functionspace(V.mesh, ("Lagrange", 1))
        u, v, E = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(Q, name="E")
        eps = ufl.sym(ufl.grad(u))
        sigma = E * (ufl.tr(eps) * ufl.Identity(2) + 2.0 * eps)
        F = ufl.inner(sigma, ufl.sym(ufl.grad(v))) * ufl.dx - ufl.inner(ufl.as_vector((0.0, -1.0)), v) * ufl.dx
        facets = mesh.locate_entities_boundary(V.mesh, 1, lambda x: np.isclose(x[0], 0.0))
        fixed = fem.locate_dofs_topological(V, 1, facets)
        field = hf.NodalField(Q, lambda x: 1.0 + 0.3 * torch.sin(3 * x[:, 0]), hf.Positive())
        return hf.PhysicalModel(F, u, [fem.dirichletbc(np.zeros(2), fixed, V)], {E: field})


class TestNonlinear(ModelCase):
    """−∇·((κ + u²)∇u) + u³ = 5 with non-zero Dirichlet values, by Newton."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(square(comm), ("Lagrange", 1))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
        F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) + u**3 * v - 5.0 * v) * ufl.dx
        model = hf.PhysicalModel(F, u, [dirichlet(V, lambda x: x[0])], {kappa: bumps()})
        assert not model.solver.affine
        return model


class TestAdvectionDiffusion(ModelCase):
    """A matrix that is not symmetric."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(square(comm), ("Lagrange", 1))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
        b = ufl.as_vector((3.0, -2.0))
        F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) + ufl.dot(b, ufl.grad(u)) * v - v) * ufl.dx
        return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: bumps()})


class TestSubdomains(ModelCase):
    """Tagged cells, a DG0 coefficient in one of them, and no load: boundary values drive the solution."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        domain = square(comm, 4)
        cells = mesh.locate_entities(domain, 2, lambda x: x[0] < 0.51)
        dx = ufl.Measure(
            "dx", domain, subdomain_data=mesh.meshtags(domain, 2, cells, np.full(len(cells), 7, dtype=np.int32))
        )
        V, Q = fem.functionspace(domain, ("Lagrange", 1)), fem.functionspace(domain, ("DG", 0))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(Q, name="kappa")
        F = ufl.inner(ufl.grad(u), ufl.grad(v)) * dx + kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * dx(7)
        return hf.PhysicalModel(
            F, u, [dirichlet(V, lambda x: x[0] ** 2)], {kappa: hf.Scalar(3.0, hf.Bounded(0.0, 10.0))}
        )


class TestNeuralField(ModelCase):
    """A network as the coefficient."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        V = fem.functionspace(square(comm), ("Lagrange", 1))
        u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
        F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
        return hf.PhysicalModel(
            F, u, [dirichlet(V)], {kappa: hf.NeuralField(hf.MLP(2, 1, width=5, depth=1), hf.Positive(0.1))}
        )


class TestIterativeSolvers(ModelCase):
    """Conjugate gradients forward, another preconditioner for the adjoint."""

    rank_tolerance = 1e-8
    solve_tolerance = 1e-8

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        options = {"ksp_type": "cg", "pc_type": "gamg", "ksp_rtol": 1e-13}
        return poisson(comm, petsc_options=options, adjoint_petsc_options={**options, "pc_type": "jacobi"})


def test_what_changes_between_forward_and_backward_does_not_change_the_gradient(comm: MPI.Comm) -> None:
    """Constants and Functions of the form that are not coefficients are part of the state of a solve."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa, f = (
        fem.Function(V, name="u"),
        ufl.TestFunction(V),
        fem.Function(V, name="kappa"),
        fem.Function(V, name="f"),
    )
    c = fem.Constant(V.mesh, 2.0)
    f.x.array[:] = 1.0
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) + c * u * v - f * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: bumps()})
    amplitude = model.coefficients["kappa"].amplitudes

    def gradient_of(J: torch.Tensor) -> float:
        amplitude.grad = None
        J.backward()
        return comm.allreduce(float(amplitude.grad))

    expected = gradient_of(model.solve().square().sum())
    J = model.solve().square().sum()
    c.value, f.x.array[:] = 50.0, 7.0
    assert gradient_of(J) == pytest.approx(expected, rel=1e-12)
    assert float(c.value) == 50.0
    assert np.all(f.x.array == 7.0)
    J = model.solve().square().sum()
    assert gradient_of(J) != pytest.approx(expected, rel=1e-2), "the next solve must see the new load"


def test_boundary_values_may_change_between_solves(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, g = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V)
    F = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(g, boundary_dofs(V))])
    for slope in (1.0, -2.0):
        g.interpolate(lambda x, s=slope: s * x[0] + 1.0)
        np.testing.assert_allclose(model.solve().numpy(), 1.0 + slope * hf.dof_coordinates(V)[:, 0].numpy(), atol=1e-12)


def test_functions_of_one_form_differ_from_their_solver_only_where_asked(comm: MPI.Comm) -> None:
    """petsc_options leave nothing in PETSc's global table."""
    from petsc4py import PETSc

    before = PETSc.Options().getAll()
    model = poisson(comm, petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-12})
    model.solve()
    assert model.solver.linear.ksp.getType() == "cg"
    assert PETSc.Options().getAll() == before
