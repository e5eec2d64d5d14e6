"""Jacobians, Hessian products, several experiments and batches, against differences and against each other."""

from __future__ import annotations

import warnings
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, dirichlet, square
from dolfinx import fem
from torch import Tensor

import hyco_fem as hf
from hyco_fem.bridge.solve import solve_many
from hyco_fem.parallel import is_distributed, sum_gradients, sum_over_ranks

PLACES = np.random.default_rng(7).uniform(0.05, 0.95, (9, 2))


def model_on(comm: MPI.Comm, kappa: torch.nn.Module | None = None, **options: Any) -> hf.PhysicalModel:
    """−∇·(κ∇u) + ηu = f with seven parameters in κ and one in η; f and a boundary value g may be set by scenarios."""
    V = fem.functionspace(square(comm, 6), ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    k, eta, f = (fem.Function(V, name=name) for name in ("kappa", "eta", "f"))
    f.x.array[:] = 10.0
    F = (k * ufl.inner(ufl.grad(u), ufl.grad(v)) + eta * u * v - f * v) * ufl.dx
    bumps = hf.GaussianBumps(
        [2.0, -0.4],
        [[0.4, 0.6], [0.7, 0.2]],
        [0.3, 0.4],
        background=1.0,
        trainable=("background", "amplitudes", "centres"),
    )
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {k: kappa or bumps, eta: hf.Scalar(2.0, hf.Positive())}, **options)
    model.load = f
    return model


def differences(model: hf.PhysicalModel, points: hf.Points, h: float = 1e-5) -> np.ndarray:
    """∂(values at points)/∂θ by central differences, at the points owned here."""
    columns = []
    with torch.no_grad():
        for p in model.parameters():
            for i in np.ndindex(tuple(p.shape)):
                kept = float(p[i])
                p[i] = kept + h
                plus = model(points).numpy().ravel()
                p[i] = kept - h
                minus = model(points).numpy().ravel()
                p[i] = kept
                columns.append((plus - minus) / (2 * h))
    return np.stack(columns, axis=1)


# -- the Jacobian ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "method"), [(9, "tangent"), (3, "adjoint")])
def test_the_jacobian_is_the_derivative_of_the_observations(comm: MPI.Comm, n: int, method: str) -> None:
    model = model_on(comm)
    points = hf.Points(model.V.mesh, PLACES[:n])
    found = model.jacobian(points)
    assert found.method == method
    assert list(found.columns) == [name for name, _ in model.named_parameters()]
    np.testing.assert_allclose(found.matrix, differences(model, points), atol=1e-7)
    np.testing.assert_allclose(found.values, model(points).detach().numpy(), rtol=1e-12)


def test_the_jacobian_by_tangents_and_by_adjoints_is_one(comm: MPI.Comm) -> None:
    model = model_on(comm)
    many, few = hf.Points(model.V.mesh, PLACES), hf.Points(model.V.mesh, PLACES[:4])
    tangent, adjoint = model.jacobian(many), model.jacobian(few)
    assert (tangent.method, adjoint.method) == ("tangent", "adjoint")
    whole = many.gather(tangent.matrix)
    np.testing.assert_allclose(few.gather(adjoint.matrix), whole[:4], rtol=1e-9, atol=1e-12)


def test_the_jacobian_of_a_vector_field_has_a_row_for_each_component(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    u, v, E = (
        fem.Function(V, name="u"),
        ufl.TestFunction(V),
        fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="E"),
    )
    F = E * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx - v[1] * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(2.0)})
    points = hf.Points(V.mesh, PLACES)
    found = model.jacobian(points)
    # u is proportional to 1/E.
    np.testing.assert_allclose(found.matrix[:, 0], -found.values.ravel() / 2.0, rtol=1e-10)
    assert found.matrix.shape == (2 * len(points), 1)


def test_the_jacobian_by_a_field_is_its_gradient_row_by_row(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 5), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.NodalField(V, 1.5, hf.Positive())})
    points = hf.Points(V.mesh, PLACES[:5])
    found = model.jacobian(points)
    assert found.method == "adjoint"
    (name,) = found.fields
    raw = dict(model.named_parameters())[name]
    for row in range(5):
        raw.grad = None
        model(points)[torch.from_numpy(points.index == row)].sum().backward()
        np.testing.assert_allclose(found.fields[name][row], raw.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_a_module_that_vmap_does_not_take_has_the_same_jacobian(comm: MPI.Comm) -> None:
    class Branching(torch.nn.Module):
        """Looks at the value of its parameter, which vmap forbids."""

        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            wave = torch.sin(3 * x[:, 0])
            field = self.a[0] + self.a[1].square() * x[:, 0] + self.a[2] * wave
            return field * 1.0 if bool((field.detach() > 0).all()) else field

    model = model_on(comm, Branching())
    points = hf.Points(model.V.mesh, PLACES)
    np.testing.assert_allclose(model.jacobian(points).matrix, differences(model, points), atol=1e-7)


def test_the_closed_form_of_a_class_is_not_used_for_another_forward(comm: MPI.Comm) -> None:
    class Squared(hf.GaussianBumps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    class Slope(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, field: Tensor) -> Tensor:
            return self.a * field

    for module in (
        Squared([1.0], [[0.4, 0.6]], 0.4, background=1.0),
        hf.GaussianBumps([1.0], [[0.4, 0.6]], 0.4, background=1.0, transform=Slope()),
    ):
        model = model_on(comm, module)
        points = hf.Points(model.V.mesh, PLACES)
        np.testing.assert_allclose(model.jacobian(points).matrix, differences(model, points), atol=1e-7)


def test_a_parameter_without_influence_has_zeros_and_a_warning(comm: MPI.Comm) -> None:
    class Idle(hf.Scalar):
        def __init__(self) -> None:
            super().__init__(1.5)
            self.idle = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    model = model_on(comm, Idle())
    points = hf.Points(model.V.mesh, PLACES)
    with pytest.warns(UserWarning, match="do not depend on the parameter 'coefficients.kappa.idle'"):
        found = model.jacobian(points)
    assert np.all(found.matrix[:, found.columns["coefficients.kappa.idle"]] == 0.0)
    assert comm.allreduce(float(np.abs(found.matrix[:, found.columns["coefficients.kappa.raw"]]).sum())) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = model.jacobian(hf.Points(model.V.mesh, PLACES[:2]))
    assert few.method == "adjoint"
    assert np.all(few.matrix[:, few.columns["coefficients.kappa.idle"]] == 0.0)


def test_the_number_of_ranks_does_not_change_jacobian_and_hessian(comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        model = model_on(part)
        points = hf.Points(model.V.mesh, PLACES)
        hessian = hf.MisfitHessian(model, hf.Data(points, np.linspace(0.1, 0.5, 9)), "full")
        rows = points.gather(model.jacobian(points).matrix)
        direction = [torch.ones_like(p) for p in model.parameters()]
        product = torch.cat([h.reshape(-1) for h in hessian.product(direction)])
        gradient = torch.cat([g.reshape(-1) for g in hessian.gradient])
        return {"jacobian": rows, "product": product.numpy(), "gradient": gradient.numpy(), "value": hessian.value}

    result = hf.rank_invariance(build, tolerance=1e-9)
    assert result.ok, result.differences


# -- Hessians --------------------------------------------------------------------------------------------------


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def basis(model: hf.PhysicalModel) -> list[list[Tensor]]:
    """Unit directions of all parameters."""
    shapes = [p for p in model.parameters() if p.requires_grad]
    n = sum(p.numel() for p in shapes)
    return [
        [t.view_as(p) for t, p in zip(torch.split(row, [p.numel() for p in shapes]), shapes, strict=True)]
        for row in torch.eye(n, dtype=torch.float64)
    ]


@pytest.mark.parametrize("kappa", [None, "network"])
def test_hessian_products_of_a_misfit_are_those_of_autograd_and_of_the_jacobian(
    comm: MPI.Comm, kappa: str | None
) -> None:
    module = None if kappa is None else hf.NeuralField(hf.MLP(2, 1, width=2, depth=1, seed=3), hf.Positive(0.5))
    model = model_on(comm, module)
    points = hf.Points(model.V.mesh, PLACES)
    data = hf.Data(points, np.linspace(0.1, 0.5, 9), noise_std=np.linspace(0.1, 0.3, 9))
    gauss_newton, full = hf.MisfitHessian(model, data), hf.MisfitHessian(model, data, "full")
    parameters = full.parameters

    L = sum_over_ranks(data.local_misfit(model(points)), comm)
    assert full.value == pytest.approx(float(L.detach()), rel=1e-12)
    g = torch.autograd.grad(L, parameters, create_graph=True)
    rows = []
    for v in basis(model):
        slope = sum((a * b).sum() for a, b in zip(g, v, strict=True))
        rows.append(flat(torch.autograd.grad(slope, parameters, retain_graph=True)))
    by_autograd = comm.allreduce(np.stack(rows))
    H = np.stack([flat(full.product(v)) for v in basis(model)])
    np.testing.assert_allclose(H, by_autograd, rtol=1e-8, atol=1e-9 * np.abs(H).max())
    np.testing.assert_allclose(H, H.T, atol=1e-9 * np.abs(H).max())
    np.testing.assert_allclose(flat(full.gradient), comm.allreduce(flat(g)), rtol=1e-8)

    J = model.jacobian(points).matrix / data.noise_std.numpy()[:, None]
    JtJ = comm.allreduce(2.0 / data.n * J.T @ J)
    G = np.stack([flat(gauss_newton.product(v)) for v in basis(model)])
    np.testing.assert_allclose(G, JtJ, rtol=1e-8, atol=1e-9 * np.abs(G).max())


def test_the_full_hessian_passes_a_taylor_test_on_a_nonlinear_problem_with_a_field(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - 5.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.NodalField(V, 1.5, hf.Positive())})
    data = hf.Data(hf.Points(V.mesh, PLACES), np.linspace(0.1, 0.5, 9))
    (raw,) = model.parameters()
    assert is_distributed(raw)
    start = raw.detach().clone()
    d = torch.from_numpy(np.random.default_rng((1, comm.rank)).standard_normal(tuple(raw.shape)))
    here = hf.MisfitHessian(model, data, "full")
    (Hd,) = here.product([d])
    remainders = []
    for h in (0.04, 0.02, 0.01):
        with torch.no_grad():
            raw.copy_(start + h * d)
        rest = hf.MisfitHessian(model, data, "full").gradient[0] - here.gradient[0] - h * Hd
        remainders.append(np.sqrt(comm.allreduce(float(rest.square().sum()))))
    rates = np.log2(np.array(remainders[:-1]) / np.array(remainders[1:]))
    assert abs(rates[-1] - 2.0) < 0.1, (remainders, rates)


def test_directions_of_the_wrong_shape_are_refused(comm: MPI.Comm) -> None:
    model = model_on(comm)
    hessian = hf.MisfitHessian(model, hf.Data(hf.Points(model.V.mesh, PLACES), np.zeros(9)))
    with pytest.raises(ValueError, match="one tensor for each parameter"):
        hessian.product([torch.zeros(3)])


def test_forward_mode_goes_through_the_whole_model(comm: MPI.Comm) -> None:
    """torch.func.jvp of θ ↦ observations equals the Jacobian times the direction, and so does vjp its transpose."""
    model = model_on(comm)
    points = hf.Points(model.V.mesh, PLACES)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    direction = {name: torch.full_like(p, 0.3) for name, p in theta.items()}
    jacobian = model.jacobian(points).matrix

    def observe(t: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, t, (points,))

    values, moved = torch.func.jvp(observe, (theta,), (direction,))
    np.testing.assert_allclose(moved.numpy(), jacobian @ np.full(jacobian.shape[1], 0.3), rtol=1e-9, atol=1e-12)
    _, pull = torch.func.vjp(observe, theta)
    (found,) = pull(torch.ones_like(values))
    np.testing.assert_allclose(
        comm.allreduce(flat(found.values())), comm.allreduce(jacobian.sum(axis=0)), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(RuntimeError, match="solve_batch"):
        torch.func.vmap(lambda s: observe({k: v * s for k, v in theta.items()}))(torch.ones(2, dtype=torch.float64))


# -- several experiments ---------------------------------------------------------------------------------------


def loads(model: hf.PhysicalModel) -> list[hf.Scenario]:
    f = model.load
    bent = fem.Function(f.function_space)
    bent.interpolate(lambda x: 30.0 * x[0])
    points = hf.Points(model.V.mesh, PLACES)
    return [
        hf.Scenario({f: 5.0}, hf.Data(points, np.full(9, 0.2))),
        hf.Scenario({f: bent}, hf.Data(hf.Points(model.V.mesh, PLACES[:4]), np.full(4, 0.4), 0.5)),
        hf.Scenario({}, hf.Data(points, np.full(9, 0.1))),
    ]


def one_by_one(model: hf.PhysicalModel, scenarios: list[hf.Scenario]) -> tuple[float, list[np.ndarray]]:
    """The same misfit and gradient by a solve for each scenario."""
    total = 0.0
    for p in model.parameters():
        p.grad = None
    before = {f: f.x.array.copy() for s in scenarios for f in s.inputs}
    for s in scenarios:
        for f, array in before.items():
            f.x.array[:] = array
        for f, value in s.inputs.items():
            f.x.array[:] = value.x.array if isinstance(value, fem.Function) else value
        L = sum_over_ranks(s.data.local_misfit(model(s.data.points)), model.comm)
        L.backward()
        total += float(L.detach())
    for f, array in before.items():
        f.x.array[:] = array
    sum_gradients(model.parameters(), model.comm)
    return total, [p.grad.numpy().copy() for p in model.parameters()]


def test_scenarios_share_one_factorisation_and_give_what_single_solves_give(comm: MPI.Comm) -> None:
    model = model_on(comm)
    scenarios = loads(model)
    expected, slopes = one_by_one(model, scenarios)
    before = model.solver.linear.factorisations
    for p in model.parameters():
        p.grad = None
    L = sum_over_ranks(hf.scenario_misfit(model, scenarios), comm)
    L.backward()
    assert model.solver.linear.factorisations == before + 1, "one matrix for all loads, forward and adjoint"
    sum_gradients(model.parameters(), comm)
    assert float(L.detach()) == pytest.approx(expected, rel=1e-10)
    for p, g in zip(model.parameters(), slopes, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g, rtol=1e-8, atol=1e-12)
    assert np.all(model.load.x.array == 10.0), "the loads are as before"


def test_scenarios_of_boundary_values_and_constants(comm: MPI.Comm) -> None:
    """−Δu = 0 with u = g: each scenario's solution is its g; a Constant in the operator means a matrix each."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, g = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="g")
    c = fem.Constant(V.mesh, 0.0)
    F = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx + c * (u - 1.0) * v * ufl.dx
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(g, boundary_dofs(V))])
    x0 = hf.dof_coordinates(V)[:, 0].numpy()
    found = model.solve_scenarios([hf.Scenario({g: x0}), hf.Scenario({g: 1.0}), hf.Scenario({g: 1.0, c: 7.0})]).numpy()
    np.testing.assert_allclose(found, np.stack([x0, np.ones_like(x0), np.ones_like(x0)]), atol=1e-12)
    assert float(c) == 0.0
    assert np.all(g.x.array == 0.0)


def test_scenarios_of_a_nonlinear_problem(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa, f = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa"), fem.Function(V)
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - f * v) * ufl.dx
    f.x.array[:] = 1.0
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Scalar(2.0)})
    model.load = f
    scenarios = loads(model)
    expected, slopes = one_by_one(model, scenarios)
    (p,) = model.parameters()
    p.grad = None
    L = sum_over_ranks(hf.scenario_misfit(model, scenarios), comm)
    L.backward()
    sum_gradients([p], comm)
    assert float(L.detach()) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(p.grad.numpy(), slopes[0], rtol=1e-8)


def test_scenarios_have_a_forward_mode_and_refuse_second_derivatives(comm: MPI.Comm) -> None:
    model = model_on(comm)
    settings = [s.settings(model.solver.coefficients) for s in loads(model)]
    values = tuple(v.detach().clone() for v in model.coefficient_values())
    directions = tuple(0.3 * v for v in values)
    _, moved = torch.func.jvp(lambda *m: solve_many(model.solver, settings, *m), values, directions)
    h = 1e-5
    plus, minus = (solve_many(model.solver, settings, *(v + s * h * 0.3 * v for v in values)) for s in (1, -1))
    np.testing.assert_allclose(moved.numpy(), ((plus - minus) / (2 * h)).numpy(), atol=1e-8)
    assert moved.shape[0] == 3
    with pytest.raises(RuntimeError, match="second derivatives of solves for several scenarios are not available"):
        torch.autograd.grad(hf.scenario_misfit(model, loads(model)), list(model.parameters()), create_graph=True)


def test_bad_scenarios_are_refused(comm: MPI.Comm) -> None:
    model = model_on(comm)
    f, kappa = model.load, model.solver.coefficients[0]
    with pytest.raises(ValueError, match="no scenario"):
        model.solve_scenarios([])
    with pytest.raises(ValueError, match="'kappa' is a coefficient with parameters"):
        model.solve_scenarios([hf.Scenario({kappa: 1.0})])
    with pytest.raises(ValueError, match=r"value of 'f' in a scenario has shape \(3, 3\)"):
        model.solve_scenarios([hf.Scenario({f: np.zeros((3, 3))})])
    with pytest.raises(ValueError, match="scenario 0 has no data"):
        hf.scenario_misfit(model, [hf.Scenario({f: 1.0})])


# -- batches ---------------------------------------------------------------------------------------------------


def test_a_batch_is_solved_as_its_members_are_and_differentiated(comm: MPI.Comm) -> None:
    model = model_on(comm)
    name = "coefficients.kappa.amplitudes"
    batch = torch.tensor([[2.0, -0.4], [1.0, 0.3], [3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = model.solve_batch({name: batch})
    amplitudes = dict(model.named_parameters())[name]
    kept = amplitudes.detach().clone()
    found.square().sum().backward()
    for row, u, slope in zip(batch.detach(), found.detach(), batch.grad, strict=True):
        with torch.no_grad():
            amplitudes.copy_(row)
        amplitudes.grad = None
        alone = model.solve()
        alone.square().sum().backward()
        np.testing.assert_allclose(u.numpy(), alone.detach().numpy(), rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(slope.numpy(), amplitudes.grad.numpy(), rtol=1e-9, atol=1e-13)
    with torch.no_grad():
        amplitudes.copy_(kept)


def test_bad_batches_are_refused(comm: MPI.Comm) -> None:
    model = model_on(comm)
    with pytest.raises(ValueError, match=r"needs the shape \(batch, 2\), not \(3, 3\)"):
        model.solve_batch({"coefficients.kappa.amplitudes": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="there is no parameter 'amplitude'"):
        model.solve_batch({"amplitude": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="one length for all parameters"):
        model.solve_batch({"coefficients.kappa.amplitudes": torch.zeros(3, 2), "coefficients.eta.raw": torch.zeros(2)})
