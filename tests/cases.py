"""A test case class that puts every physical model through the same checks, and builders that tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.bridge.solve import solve
from hyco_fem.parallel import is_distributed, sum_array, sum_gradients, sum_over_ranks
from hyco_fem.pde.many import adjoint_block, tangent_block
from hyco_fem.pde.vectors import owned

WORLD = MPI.COMM_WORLD


def square(comm: MPI.Comm, n: int = 5, cell: mesh.CellType = mesh.CellType.triangle) -> mesh.Mesh:
    """The unit square."""
    return mesh.create_unit_square(comm, n, n, cell)


def distorted_quadrilaterals(comm: MPI.Comm, n: int = 4) -> mesh.Mesh:
    """The unit square in quadrilaterals that are not parallelograms."""
    domain = square(comm, n, mesh.CellType.quadrilateral)
    x = domain.geometry.x
    x[:, 0], x[:, 1] = (
        x[:, 0] + 0.12 * x[:, 1] * x[:, 0] * (1 - x[:, 0]),
        x[:, 1] ** 1.5 * (1 - 0.3 * x[:, 0]) + 0.3 * x[:, 0] * x[:, 1],
    )
    return domain


def boundary_dofs(V: fem.FunctionSpace) -> np.ndarray:
    """Dofs on the whole boundary."""
    domain = V.mesh
    facets = domain.topology.dim - 1
    domain.topology.create_connectivity(facets, facets + 1)
    return fem.locate_dofs_topological(V, facets, mesh.exterior_facet_indices(domain.topology))


def dirichlet(V: fem.FunctionSpace, value: Callable | float = 0.0) -> fem.DirichletBC:
    """u = value on the whole boundary; value a number, or a function of x (3, n)."""
    g = fem.Function(V)
    if callable(value):
        g.interpolate(value)
    else:
        g.x.array[:] = value
    return fem.dirichletbc(g, boundary_dofs(V))


def poisson(comm: MPI.Comm, **options: Any) -> hf.PhysicalModel:
    """−∇·(κ∇u) = 10 with a Gaussian κ, P1 on triangles."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, kappa, v = fem.Function(V, name="u"), fem.Function(V, name="kappa"), ufl.TestFunction(V)
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    bumps = hf.GaussianBumps([2.0], [[0.4, 0.6]], 0.3, background=1.0)
    return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: bumps}, positive=[kappa], **options)


def functional(model: hf.PhysicalModel) -> Tensor:
    """This rank's summand of Σ_i (1 + x_i) u_i² over the dofs, differentiable in θ."""
    return weighted(model, model.solve())


def weighted(model: hf.PhysicalModel, u: Tensor) -> Tensor:
    """Σ (1 + x) u² over owned dofs; without the factor where dofs are not values at points (mixed spaces)."""
    if model.V.num_sub_spaces > 0 and model.V.dofmap.index_map_bs == 1:
        return u.square().sum()
    x = hf.dof_coordinates(model.V)[:, 0]
    bs = len(u) // len(x) if len(x) else 1
    return ((1.0 + x.repeat_interleave(bs)) * u.square()).sum()


def gradients(model: hf.PhysicalModel, local: Tensor) -> list[np.ndarray]:
    """Gradients of a sum over ranks by the trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    sum_over_ranks(local, model.comm).backward()
    sum_gradients(parameters, model.comm)
    return [p.grad.detach().numpy().copy() for p in parameters]


def cubic(model: hf.PhysicalModel, u: Tensor) -> Tensor:
    """A functional whose second derivative varies: Σ (u² + u³)."""
    return (u.square() + u**3).sum()


def norm(parts: Any) -> float:
    """Euclidean norm over parts and ranks."""
    return float(np.sqrt(sum_array(WORLD, np.array([sum(float(p.detach().square().sum()) for p in parts)]))[0]))


def dot(a: list[np.ndarray], b: Any) -> float:
    """This rank's part of the scalar product."""
    return sum(float(x @ y) for x, y in zip(a, b, strict=True))


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal relative to the largest entry on all ranks."""
    scale = WORLD.allreduce(float(np.abs(expected).max(initial=0.0)), op=MPI.MAX)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(scale, 1e-300))


class ModelCase:
    """What every physical model must satisfy.  A subclass says how to build it on a communicator."""

    def build(self, comm: MPI.Comm) -> hf.PhysicalModel:
        """A new model, all of whose parameters matter to the solution."""
        raise NotImplementedError

    def test_the_gradient_passes_a_taylor_test_at_rate_two(self) -> None:
        result = hf.taylor_test(self.build(WORLD))
        assert result.ok, f"\n{result}"

    def test_the_adjoint_is_the_transpose_of_the_tangent(self) -> None:
        assert hf.dot_product_test(self.build(WORLD)) < 1e-10

    def test_the_tangent_is_the_derivative_in_forward_mode(self) -> None:
        model = self.build(WORLD)
        values = [v.detach().clone() for v in model.coefficient_values()]
        rng = np.random.default_rng((1, WORLD.rank))
        directions = [torch.from_numpy(rng.standard_normal(len(v))) * v for v in values]
        _, tangent = torch.func.jvp(lambda *m: solve(model.solver, *m), tuple(values), tuple(directions))
        h = 1e-5
        plus = solve(model.solver, *(v + h * d for v, d in zip(values, directions, strict=True)))
        minus = solve(model.solver, *(v - h * d for v, d in zip(values, directions, strict=True)))
        difference = (plus - minus) / (2 * h)
        error, size = sum_array(
            WORLD, np.array([float((tangent - difference).square().sum()), float(tangent.square().sum())])
        )
        assert size > 0
        assert np.sqrt(error / size) < 1e-6

    def test_blocks_of_solves_equal_single_solves(self) -> None:
        model = self.build(WORLD)
        solver = model.solver
        solver.forward([v.detach().numpy() for v in model.coefficient_values()])
        rng = np.random.default_rng((2, WORLD.rank))
        sizes = [len(v) for v in model.coefficient_values()]
        directions = [rng.standard_normal((n, 3)) for n in sizes]
        found = tangent_block(solver, solver.state, directions)
        single = [solver.tangent(solver.state, [np.ascontiguousarray(d[:, j]) for d in directions]) for j in range(3)]
        close(found, np.stack(single, axis=1), self.solve_tolerance)
        gradients = rng.standard_normal((len(single[0]), 3))
        block = adjoint_block(solver, solver.state, gradients)
        for j in range(3):
            for whole, alone in zip(block, solver.adjoint(solver.state, gradients[:, j].copy()), strict=True):
                close(whole[:, j], alone, self.solve_tolerance)

    def test_the_gradient_is_differentiated_at_rate_two(self) -> None:
        """Backward twice: the remainders of the gradient's first-order expansion fall like h²."""
        model = self.build(WORLD)
        leaves = [v.detach().clone().requires_grad_() for v in model.coefficient_values()]
        rng = np.random.default_rng((3, WORLD.rank))
        directions = [torch.from_numpy(rng.standard_normal(len(v))) * v.detach() for v in leaves]

        def gradient(values: list[Tensor], graph: bool = False) -> list[Tensor]:
            return list(torch.autograd.grad(cubic(model, solve(model.solver, *values)), values, create_graph=graph))

        here = gradient(leaves, graph=True)
        slope = sum((g * d).sum() for g, d in zip(here, directions, strict=True))
        curvature = torch.autograd.grad(slope, leaves)
        remainders = []
        for h in (0.02, 0.01, 0.005):
            moved = [(v + h * d).detach().requires_grad_() for v, d in zip(leaves, directions, strict=True)]
            rest = [g - g0.detach() - h * c for g, g0, c in zip(gradient(moved), here, curvature, strict=True)]
            remainders.append(norm(rest))
        rates = np.log2(np.array(remainders[:-1]) / np.array(remainders[1:]))
        assert norm(curvature) > 0
        assert rates[-1] > 1.9 or remainders[-1] < 1e-9 * norm(here), (remainders, rates)

    def test_the_hessian_is_symmetric(self) -> None:
        model = self.build(WORLD)
        solver = model.solver
        solver.forward([v.detach().numpy() for v in model.coefficient_values()])
        rng = np.random.default_rng((4, WORLD.rank))
        a, b = ([rng.standard_normal(len(v)) for v in model.coefficient_values()] for _ in range(2))
        w = rng.standard_normal(len(owned(model.function)))
        Ha, Hb = solver.second(solver.state, w, a)[1], solver.second(solver.state, w, b)[1]
        bHa, aHb, size = sum_array(
            WORLD,
            np.array([dot(b, Ha), dot(a, Hb), sum(float(np.abs(x * y).sum()) for x, y in zip(b, Ha, strict=True))]),
        )
        assert abs(bHa - aHb) <= 10 * self.solve_tolerance * max(size, 1e-300)

    def test_two_forwards_before_one_backward(self) -> None:
        model = self.build(WORLD)
        here = [v.detach() for v in model.coefficient_values()]
        there = [v * (1.1 + 0.1 * torch.sin(torch.arange(len(v), dtype=torch.float64))) for v in here]

        def alone(values: list[Tensor], factor: float) -> list[Tensor]:
            leaves = [v.clone().requires_grad_() for v in values]
            (factor * weighted(model, solve(model.solver, *leaves))).backward()
            return [leaf.grad for leaf in leaves]

        expected = alone(here, 1.0) + alone(there, 3.0)
        leaves = [v.clone().requires_grad_() for v in (*here, *there)]
        one = weighted(model, solve(model.solver, *leaves[: len(here)]))
        other = weighted(model, solve(model.solver, *leaves[len(here) :]))
        (one + 3.0 * other).backward()
        for leaf, g in zip(leaves, expected, strict=True):
            scale = WORLD.allreduce(float(g.abs().max()) if len(g) else 0.0, op=MPI.MAX)
            assert scale > 0
            np.testing.assert_allclose(leaf.grad.numpy(), g.numpy(), rtol=0, atol=1e-9 * scale)

    def test_solving_again_changes_nothing(self) -> None:
        model = self.build(WORLD)
        once, again = model.solve().detach(), model.solve().detach()
        np.testing.assert_allclose(again.numpy(), once.numpy(), rtol=1e-9, atol=1e-12)

    def test_the_number_of_ranks_does_not_matter(self) -> None:
        def build(comm: MPI.Comm) -> dict[str, Any]:
            model = self.build(comm)
            J = functional(model)
            numbers: dict[str, Any] = {"J": float(sum_over_ranks(J.detach(), comm))}
            for (name, p), g in zip(model.named_parameters(), gradients(model, J), strict=True):
                # The parts of a distributed gradient are compared by their norm.
                numbers[name] = np.sqrt(sum_array(comm, np.array([np.sum(g**2)]))) if is_distributed(p) else g
            return numbers

        result = hf.rank_invariance(build, tolerance=self.rank_tolerance)
        assert result.ok, result.differences

    rank_tolerance = 1e-10
    solve_tolerance = 1e-10

    def test_it_can_be_closed(self) -> None:
        model = self.build(WORLD)
        model.solve()
        model.close()
