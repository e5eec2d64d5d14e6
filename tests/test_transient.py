"""Models in time: schemes have their orders, derivatives are exact, what cannot work is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from dolfinx import fem
from evolving import SCHEMES, UNKNOWN, at, functional, gradient, line, reaction_diffusion, space_time_points
from ufl import dx, grad, inner

import hyco_fem as hf
from hyco_fem.parallel import sum_array
from hyco_fem.pde.vectors import owned

ORDERS = {"backward Euler": 1, "theta": 1, "Crank-Nicolson": 2, "damped": 2, "BDF2": 2, "BDF3": 3}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


# -- orders ----------------------------------------------------------------------------------------------------


def steps_of(n: int, order: int, variable: bool) -> np.ndarray:
    """n steps of (0, 1), every second one longer by a quarter; before them two of n⁻² where the order asks for them."""
    pattern = np.where(np.arange(n) % 2, 1.25, 1.0) if variable else np.ones(n)
    first = np.full(2 if order == 3 else 0, n**-2.0)
    steps = np.concatenate([first, pattern * (1.0 - first.sum()) / pattern.sum()])
    steps[-1] += 1.0 - steps.sum()
    return steps


def error_of(scheme: Any, steps: Any, kind: str, comm: MPI.Comm) -> float:
    """Largest error at dofs at the end, of u = cos(2t) (1 + x²), which P2 contains: all of it comes from the steps."""
    domain = line(comm, 3)
    V = fem.functionspace(domain, ("Lagrange", 2))
    u, u_t, v, g = (fem.Function(V), fem.Function(V), ufl.TestFunction(V), fem.Function(V))
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
    exact = ufl.cos(2 * t) * (1 + x[0] ** 2)
    f = -2 * ufl.sin(2 * t) * (1 + x[0] ** 2) - 2 * ufl.cos(2 * t)
    F = u_t * v * dx + inner(grad(u), grad(v)) * dx - f * v * dx
    E = None
    if kind == "nonlinear":
        F += (u**3 - exact**3) * v * dx
    elif kind == "explicit":
        F += (exact**2 - t * exact) * v * dx
        E = (t * u - u**2) * v * dx
    bcs = [fem.dirichletbc(g, np.concatenate([at(V, 0.0), at(V, 1.0)]))]
    model = hf.TransientModel(
        F,
        u,
        u_t,
        bcs,
        t=t,
        interval=(0, 1),
        dt=steps,
        times=[1.0],
        initial=1 + x[0] ** 2,
        scheme=scheme,
        explicit=E,
        time_values={g: exact},
    )
    found = model.solve()[0].numpy()
    x_dofs = V.tabulate_dof_coordinates()[: len(found), 0]
    error = np.abs(found - np.cos(2.0) * (1 + x_dofs**2)).max(initial=0.0)
    model.close()
    return comm.allreduce(error, op=MPI.MAX)


@pytest.mark.parametrize("kind", ["linear", "nonlinear", "explicit"])
@pytest.mark.parametrize("variable", [False, True])
@each_scheme
def test_schemes_have_their_orders(scheme: str, variable: bool, kind: str, comm: MPI.Comm) -> None:
    order = ORDERS[scheme]
    coarse, fine = (error_of(SCHEMES[scheme], steps_of(n, order, variable), kind, comm) for n in (64, 128))
    # From above a second error of the other sign may come in: extrapolation and scheme.
    assert order - 0.2 < np.log2(coarse / fine) < order + 0.4


def test_space_has_its_order(comm: MPI.Comm) -> None:
    """u = e⁻ᵗ sin πx in P1: second order in L²."""
    errors = []
    for n in (6, 12, 24):
        domain = line(comm, n)
        V = fem.functionspace(domain, ("Lagrange", 1))
        u, u_t, v, g = fem.Function(V), fem.Function(V), ufl.TestFunction(V), fem.Function(V)
        t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)
        wave = ufl.sin(ufl.pi * x[0])
        F = u_t * v * dx + inner(grad(u), grad(v)) * dx - (ufl.pi**2 - 1) * ufl.exp(-t) * wave * v * dx
        bcs = [fem.dirichletbc(g, np.concatenate([at(V, 0.0), at(V, 1.0)]))]
        model = hf.TransientModel(F, u, u_t, bcs, t=t, interval=(0, 1), dt=0.02, initial=wave, scheme=hf.BDF2())
        model.solve()
        square = fem.assemble_scalar(fem.form((u - np.exp(-1.0) * wave) ** 2 * dx(degree=6)))
        errors.append(np.sqrt(comm.allreduce(square)))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, 2.0, atol=0.1)


def test_a_steady_solution_stays(comm: MPI.Comm) -> None:
    """u = x solves the equation at all times, in every scheme to rounding."""
    for scheme in SCHEMES.values():
        domain = line(comm)
        V = fem.functionspace(domain, ("Lagrange", 1))
        u, u_t, v, g = fem.Function(V), fem.Function(V), ufl.TestFunction(V), fem.Function(V)
        g.interpolate(lambda x: x[0])
        F = u_t * v * dx + inner(grad(u), grad(v)) * dx
        bcs = [fem.dirichletbc(g, np.concatenate([at(V, 0.0), at(V, 1.0)]))]
        model = hf.TransientModel(F, u, u_t, bcs, interval=(0, 1), dt=0.1, initial=g, scheme=scheme)
        found = model.solve()
        assert found.shape == (11, len(owned(g)))
        np.testing.assert_allclose(found.numpy(), np.tile(owned(g), (11, 1)), atol=1e-13)


# -- derivatives -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize(
    ("scheme", "unknown"),
    [(scheme, UNKNOWN) for scheme in SCHEMES] + [("Crank-Nicolson", (name,)) for name in UNKNOWN],
)
def test_the_gradient_is_exact(scheme: str, unknown: tuple[str, ...], cubic: bool, comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, unknown, cubic=cubic, scheme=SCHEMES[scheme])
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    if cubic:
        np.testing.assert_allclose(result.rates[-1], 2.0, atol=0.2)
    assert hf.dot_product_test(model) < 1e-11
    points = space_time_points(model.V.mesh)
    result = hf.taylor_test(lambda: functional(model, points), model.parameters(), comm=comm)
    assert result.ok, f"\n{result}"
    model.close()


@pytest.mark.parametrize("cubic", [False, True])
@each_scheme
def test_the_gradient_of_implicit_explicit_steps_is_exact(scheme: str, cubic: bool, comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, cubic=cubic, explicit=True, scheme=SCHEMES[scheme])
    assert all(stage.affine for stage in model.solver.stages), "what is explicit leaves the steps linear"
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    assert hf.dot_product_test(model) < 1e-11
    model.close()


@pytest.mark.parametrize("times", [[0.0], [1.0], [0.0, 0.35, 0.9]])
def test_the_gradient_is_exact_for_some_output_times(times: list[float], comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, times=times, scheme=hf.BDF2())
    assert model.solve().shape[0] == len(model.times) == len(times)
    np.testing.assert_allclose(model.times, times, atol=1e-12)
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    assert hf.dot_product_test(model) < 1e-11


def test_the_gradient_by_a_field_is_exact(comm: MPI.Comm) -> None:
    """A coefficient that is free at every dof, of which each rank owns a part."""
    domain = line(comm)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, u_t, v, kappa = fem.Function(V), fem.Function(V), ufl.TestFunction(V), fem.Function(V, name="kappa")
    kappa.x.array[:] = 0.5
    F = u_t * v * dx + kappa * inner(grad(u), grad(v)) * dx - v * dx
    x = ufl.SpatialCoordinate(domain)
    model = hf.TransientModel(
        F, u, u_t, [], {kappa: hf.NodalField(V, 0.5)}, interval=(0, 1), dt=0.1, initial=x[0] * (1 - x[0])
    )
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    assert hf.dot_product_test(model) < 1e-12


@pytest.mark.parametrize("cubic", [False, True])
@each_scheme
def test_the_jacobian_is_that_of_differences_and_of_both_modes(scheme: str, cubic: bool, comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, cubic=cubic, scheme=SCHEMES[scheme])
    points = space_time_points(model.V.mesh)
    J = model.jacobian(points)
    parameters = dict(model.named_parameters())
    assert J.matrix.shape == (len(points), sum(p.numel() for p in parameters.values()))
    np.testing.assert_allclose(J.values, model(points).detach().numpy(), atol=1e-13)

    rng = np.random.default_rng(5)
    d = {name: torch.from_numpy(rng.standard_normal(tuple(p.shape))) for name, p in parameters.items()}
    column = np.concatenate([d[name].numpy().ravel() for name in J.columns])
    expected = J.matrix @ column
    start = {name: p.detach().clone() for name, p in parameters.items()}

    def at_theta(theta: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, theta, (points,))

    value, pushed = torch.func.jvp(at_theta, (start,), (d,))
    np.testing.assert_allclose(value.numpy(), J.values, atol=1e-13)
    np.testing.assert_allclose(pushed.numpy(), expected, rtol=1e-9, atol=1e-11)

    h = 1e-5
    plus, minus = (at_theta({n: start[n] + s * h * d[n] for n in start}).detach().numpy() for s in (1, -1))
    np.testing.assert_allclose((plus - minus) / (2 * h), expected, atol=1e-7)

    w = torch.from_numpy(np.random.default_rng((6, comm.rank)).standard_normal(len(points)))
    pulled = gradient(model, (model(points) * w).sum(), comm)
    by_name = dict(zip(parameters, np.split(pulled, np.cumsum([p.numel() for p in parameters.values()])), strict=False))
    rows = sum_array(comm, J.matrix.T @ w.numpy())
    np.testing.assert_allclose(np.concatenate([by_name[n] for n in J.columns]), rows, rtol=1e-9, atol=1e-11)
    # The state of that solve serves again.
    again = model.jacobian(points, state=model.solver.state)
    np.testing.assert_allclose(again.matrix, J.matrix, atol=1e-13)
    model.close()


def test_second_derivatives_are_refused(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, ("coefficient",))
    with pytest.raises(RuntimeError, match="second derivatives of a transient solve"):
        torch.autograd.grad(model.solve().square().sum(), list(model.parameters()), create_graph=True)


# -- factorisations --------------------------------------------------------------------------------------------


def factorisations(model: hf.TransientModel) -> int:
    return sum(kept.linear.factorisations for stage in model.solver.stages for kept in stage._kept)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("backward Euler", 1), ("theta", 1), ("Crank-Nicolson", 1), ("damped", 2), ("BDF2", 2), ("BDF3", 3)],
)
@pytest.mark.parametrize("checkpoints", [hf.InMemory(), hf.Revolve(2)], ids=lambda c: type(c).__name__)
def test_equal_steps_are_factorised_once_for_forward_and_adjoint(
    scheme: str, expected: int, checkpoints: Any, comm: MPI.Comm
) -> None:
    model = reaction_diffusion(
        comm, ("coefficient", "initial value"), scheme=SCHEMES[scheme], dt=0.05, checkpoints=checkpoints
    )
    points = space_time_points(model.V.mesh)
    J = functional(model, points)
    assert factorisations(model) == expected
    gradient(model, J, comm, retain_graph=True)
    model.jacobian(points, state=model.solver.state)
    assert factorisations(model) == expected
    model(points)  # at the same θ
    assert factorisations(model) == expected
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    model(points)
    assert factorisations(model) == 2 * expected
    model.close()


def test_what_is_not_in_the_matrix_costs_no_factorisation(comm: MPI.Comm) -> None:
    """A `PerInterval` in the load, boundary values, the initial value: also where they change from solve to solve."""
    model = reaction_diffusion(comm, ("per interval", "boundary value", "initial value"), dt=0.05)
    points = space_time_points(model.V.mesh)
    for _ in range(3):
        gradient(model, functional(model, points), comm)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
    assert factorisations(model) == 1
    assert hf.taylor_test(model).ok


# -- nonlinear steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1.0, 1e9, 1e-9])
def test_newton_stops_in_every_unit_and_at_a_steady_state(unit: float, comm: MPI.Comm) -> None:
    """Where a step starts from its solution there is nothing left to reduce the residual by."""
    domain = line(comm)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, u_t, v = fem.Function(V), fem.Function(V), ufl.TestFunction(V)
    F = unit * (u_t * v + inner(grad(u), grad(v)) + u**3 * v - 5.0 * v) * dx
    model = hf.TransientModel(F, u, u_t, interval=(0, 20), dt=0.25, scheme=hf.BDF2())
    np.testing.assert_allclose(model.solve()[-1].numpy(), 5.0 ** (1 / 3), rtol=1e-12)


# -- the model as it is left -----------------------------------------------------------------------------------


def test_a_solve_leaves_u_at_the_end_and_the_backward_sweep_leaves_it_there(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, cubic=True, checkpoints=hf.Revolve(2))
    u = model.solve()
    np.testing.assert_array_equal(owned(model.function), u[-1].detach().numpy())
    u.square().sum().backward()
    np.testing.assert_array_equal(owned(model.function), u[-1].detach().numpy())


def test_observing_equals_interpolating_the_solution(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm)
    steps, fields = model.steps, model.solve().detach().numpy()
    at_dofs = model.V.tabulate_dof_coordinates()[: fields.shape[1]]
    whole = np.concatenate(comm.allgather(at_dofs[:, 0]))
    order = np.argsort(whole)
    table = np.concatenate(comm.allgather(fields.T))[order]
    points = space_time_points(model.V.mesh)
    found = points.gather(model(points))
    x, t = points.gather(points.x).T
    for xi, ti, value in zip(x, t, found, strict=True):
        line_at = [np.interp(xi, whole[order], table[:, n]) for n in range(len(steps))]
        assert value == pytest.approx(np.interp(ti, steps, line_at), abs=1e-13)


def test_more_ranks_give_the_same(comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        model = reaction_diffusion(part, cubic=True, scheme=hf.BDF2(), checkpoints=hf.Revolve(2))
        points = space_time_points(model.V.mesh)
        J = functional(model, points)
        return {"u": points.gather(model(points)), "gradient": gradient(model, J, part)}

    result = hf.rank_invariance(build, comm=comm)
    assert result.ok, result.differences


def test_a_model_is_described_in_a_line(comm: MPI.Comm) -> None:
    text = reaction_diffusion(comm, scheme=hf.BDF2(), checkpoints=hf.Revolve(2)).description
    assert text.startswith("BDF2, 9 steps; ")
    assert "Revolve with 2 checkpoints" in text


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"times": [0.5, 1.5]}, ValueError, "output time 1.5 .* after the end"),
        ({"times": [-0.5]}, ValueError, "output time -0.5 .* before the start"),
        ({"times": [0.33]}, ValueError, "not at the end of a step"),
        ({"dt": 0.3}, ValueError, "do not divide"),
        ({"dt": [0.5]}, ValueError, "must fill it"),
        ({"interval": (1.0, 0.0)}, ValueError, "end after it starts"),
        ({"initial": "zero"}, TypeError, "initial must be a number"),
        ({"rescue": "last.txt"}, ValueError, r"ends in \.npz"),
        ({"checkpoints": hf.MemoryBudget(100)}, ValueError, "too small for one checkpoint"),
        ({"time_values": {1: 2}}, TypeError, "keys of time_values"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: Any, error: type, message: str, comm: MPI.Comm) -> None:
    with pytest.raises(error, match=message):
        reaction_diffusion(comm, **options)


def test_a_wrong_u_t_is_refused(comm: MPI.Comm) -> None:
    domain = line(comm)
    V, W = fem.functionspace(domain, ("Lagrange", 1)), fem.functionspace(domain, ("Lagrange", 2))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    other, unused = fem.Function(W, name="rate"), fem.Function(V, name="u_t")
    diffusion = inner(grad(u), grad(v)) * dx
    options: dict[str, Any] = {"interval": (0, 1), "dt": 0.1}
    with pytest.raises(ValueError, match="'rate', which stands for ∂u/∂t in F, must be a Function of the space of 'u'"):
        hf.TransientModel(other * v * dx + diffusion, u, other, **options)
    with pytest.raises(ValueError, match=r"'u_t', which stands for ∂u/∂t, does not appear in F.*PhysicalModel"):
        hf.TransientModel(diffusion, u, unused, **options)
    F = unused * v * dx + diffusion
    with pytest.raises(ValueError, match="belongs to F, not to the explicit part"):
        hf.TransientModel(F, u, unused, explicit=unused * u * v * dx, **options)
    with pytest.raises(ValueError, match="same test function"):
        hf.TransientModel(F, u, unused, explicit=u * dx, **options)
    with pytest.raises(TypeError, match=r"t must be a dolfinx\.fem\.Constant"):
        hf.TransientModel(F, u, unused, t=0.0, **options)


def growth(comm: MPI.Comm, **options: Any) -> hf.TransientModel:
    """∂u/∂t = r u² from u = 1, with the right-hand side explicit: in finite time beyond all bounds."""
    domain = line(comm)
    V, R = fem.functionspace(domain, ("Lagrange", 1)), fem.functionspace(domain, ("DG", 0))
    u, u_t, v, r = fem.Function(V), fem.Function(V), ufl.TestFunction(V), fem.Function(R, name="r")
    r.x.array[:] = 1.0
    F = u_t * v * dx + inner(grad(u), grad(v)) * dx
    settings: dict[str, Any] = {"interval": (0, 10), "dt": 0.25, "initial": 1.0, "scheme": hf.BackwardEuler()}
    return hf.TransientModel(F, u, u_t, [], {r: hf.Scalar(1.0)}, explicit=-r * u**2 * v * dx, **{**settings, **options})


def test_a_field_that_blows_up_is_told_with_its_step_and_the_last_good_one_kept(comm: MPI.Comm, folder: Path) -> None:
    u, step = 1.0, 0
    while np.isfinite(u * u * u):  # beyond that PETSc's norm of the values is not finite
        last, step = u, step + 1
        u = u + 0.25 * u * u
    model = growth(comm, rescue=folder / "state.npz")
    before = owned(model.function).copy()
    with pytest.raises(hf.BlowUp, match=f"step {step} of 40, from t = {(step - 1) / 4:g}.*state.npz") as caught:
        model.solve()
    assert isinstance(caught.value, hf.SolveError)
    assert (caught.value.step, caught.value.time) == (step, pytest.approx((step - 1) / 4))
    np.testing.assert_array_equal(owned(model.function), before)
    with np.load(folder / "state.npz") as kept:
        np.testing.assert_allclose(kept["u"].ravel(), last, rtol=1e-6)
        np.testing.assert_allclose(np.sort(kept["x"].ravel()), np.linspace(0, 1, 7), atol=1e-14)
        assert kept["t"] == pytest.approx((step - 1) / 4)
    assert [p.name for p in folder.iterdir()] == ["state.npz"]
    # The model is as before: with another r it solves, and differentiates.
    with torch.no_grad():
        next(model.parameters()).fill_(0.05)
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"


def test_a_coefficient_that_is_not_finite_is_refused(comm: MPI.Comm) -> None:
    model = growth(comm)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(hf.CoefficientError, match="'r' is not finite"):
        model.solve()


def test_a_coefficient_per_interval_needs_a_model_in_time(comm: MPI.Comm) -> None:
    domain = line(comm)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, v, kappa = fem.Function(V), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = kappa * inner(grad(u), grad(v)) * dx + u * v * dx - v * dx
    with pytest.raises(ValueError, match=r"'kappa' changes in time .*PhysicalModel is steady"):
        hf.PhysicalModel(F, u, [], {kappa: hf.PerInterval([0.5], [hf.Scalar(1.0), hf.Scalar(2.0)])})
    with pytest.raises(ValueError, match="1 changes need 2 modules, not 1"):
        hf.PerInterval([0.5], [hf.Scalar(1.0)])


def test_a_coefficient_changes_at_the_end_of_a_step(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="not at the end of a step"):
        reaction_diffusion(comm, ("per interval",), dt=0.1)


def test_what_is_for_steady_models_says_so(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, ("coefficient",))
    data = hf.Data(space_time_points(model.V.mesh), np.zeros(12))
    for what in (
        lambda: hf.MisfitHessian(model, data),  # type: ignore[arg-type]
        lambda: hf.fit_field(model, data, hf.L2Tikhonov(model.V), weight=1.0),  # type: ignore[arg-type]
        lambda: hf.choose_weight(model, data, hf.L2Tikhonov(model.V)),  # type: ignore[arg-type]
        lambda: hf.scenario_misfit(model, []),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="is for a steady PhysicalModel"):
            what()
