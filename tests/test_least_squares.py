"""Levenberg–Marquardt steps on the physical model: exact where the data are, honest about what they do not say."""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from cases import dirichlet, square
from dolfinx import fem

import hyco_fem as hf

PLACES = np.random.default_rng(11).uniform(0.05, 0.95, (25, 2))
TRUTH = {"kappa.amplitudes": [2.0], "kappa.centres": [[0.4, 0.6]], "eta.raw": 2.0}


def model_on(comm: MPI.Comm, start: bool = True) -> hf.PhysicalModel:
    V = fem.functionspace(square(comm, 8), ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    kappa, eta = fem.Function(V, name="kappa"), fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="eta")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) + eta * u * v - 10.0 * v) * ufl.dx
    amplitude, centre, reaction = ([1.2], [[0.5, 0.5]], 3.0) if start else TRUTH.values()
    bump = hf.GaussianBumps(amplitude, centre, 0.3, background=1.0)
    return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: bump, eta: hf.Scalar(reaction)}, positive=[kappa])


def measured(comm: MPI.Comm, noise: float = 0.0) -> np.ndarray:
    truth = model_on(comm, start=False)
    points = hf.Points(truth.V.mesh, PLACES)
    return points.gather(truth(points)) + noise * np.random.default_rng(3).standard_normal(len(PLACES))


def test_the_truth_is_found_to_rounding_in_a_few_solves(comm: MPI.Comm) -> None:
    model = model_on(comm)
    data = hf.Data(hf.Points(model.V.mesh, PLACES), measured(comm), 0.01)
    seen: list[float] = []
    result = hf.least_squares(model, data, tolerance=1e-12, callback=lambda cost, solves: seen.append(cost))
    assert result.converged
    for name, value in TRUTH.items():
        np.testing.assert_allclose(result.parameters[name], value, atol=1e-6)
    assert result.cost < 1e-14
    assert result.solves < 20
    assert result.history == seen
    # Quadratic convergence on a zero-residual problem: the last steps square the error (the cost is its square).
    falls = np.log10(np.maximum(seen, 1e-28))
    assert falls[-2] - falls[-1] > 2.5 or falls[-1] < -20
    assert model.coefficients["kappa"].amplitudes.item() == result.parameters["kappa.amplitudes"][0]


def test_standard_errors_are_those_of_the_linearised_problem(comm: MPI.Comm) -> None:
    model = model_on(comm)
    sigma = 0.002
    result = hf.least_squares(model, hf.Data(hf.Points(model.V.mesh, PLACES), measured(comm, sigma), sigma))
    covariance = np.linalg.inv(result.jacobian.T @ result.jacobian)
    expected = np.sqrt(np.diag(covariance))
    found = np.concatenate([np.ravel(v) for v in result.standard_errors.values()])
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert 0.3 < result.cost < 2.0
    truth = np.concatenate([np.ravel(v) for v in TRUTH.values()])
    values = np.concatenate([np.ravel(v) for v in result.parameters.values()])
    assert np.all(np.abs(values - truth) < 5 * expected)
    assert "±" in str(result)
    assert len(str(result).splitlines()) == 5


def test_what_the_sensors_do_not_see_has_an_infinite_error(comm: MPI.Comm) -> None:
    """−∇·(a b ∇u) = 1: the data determine a b only."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v, a, b = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(Q, name="a"), fem.Function(Q, name="b")
    F = (a * b * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {a: hf.Scalar(1.0), b: hf.Scalar(1.0)})
    points = hf.Points(V.mesh, PLACES)
    result = hf.least_squares(model, hf.Data(points, 0.5 * points.gather(model(points)) + 1e-4 * PLACES[:, 0], 1e-3))
    assert result.parameters["a.raw"] * result.parameters["b.raw"] == pytest.approx(2.0, rel=1e-2)
    assert result.standard_errors == {"a.raw": np.inf, "b.raw": np.inf}
    assert result.singular_values[1] < 1e-10 * result.singular_values[0]


def test_bounds_hold_and_are_checked(comm: MPI.Comm) -> None:
    model = model_on(comm)
    data = hf.Data(hf.Points(model.V.mesh, PLACES), measured(comm), 0.01)
    name = "coefficients.eta.raw"
    result = hf.least_squares(model, data, bounds={name: (2.5, 4.0)})
    assert 2.5 <= result.parameters["eta.raw"] < 2.6
    with pytest.raises(ValueError, match=r"the start of 'eta.raw'.*does not lie within its bounds"):
        hf.least_squares(model_on(comm), data, bounds={name: (5.0, 6.0)})
    with pytest.raises(ValueError, match="bounds name"):
        hf.least_squares(model, data, bounds={"eta": (0.0, 1.0)})


def test_a_trial_step_out_of_the_admissible_set_is_shortened(comm: MPI.Comm) -> None:
    """−κΔu = 10 from κ = 5, truth 0.5: the full step leads to 2·5 − 5²/0.5 = −40, and κ must stay positive."""
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Scalar(5.0)}, positive=[kappa])
    points = hf.Points(V.mesh, PLACES)
    data = hf.Data(points, 10.0 * points.gather(model(points)), 0.01)
    refused = []
    solve = model.solve
    model.solve = lambda: refused.append(float(model.coefficients["kappa"].raw)) or solve()
    result = hf.least_squares(model, data, tolerance=1e-12)
    assert min(refused) <= 0.0, "no trial step left the admissible set, so this test shows nothing"
    assert result.parameters["kappa.raw"] == pytest.approx(0.5, rel=1e-8)


def test_a_field_is_refused(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.NodalField(V, 1.5)})
    with pytest.raises(ValueError, match="is a field with a number for every dof"):
        hf.least_squares(model, hf.Data(hf.Points(V.mesh, PLACES), np.zeros(25)))


def test_vector_data_enter_with_every_component(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v, E = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(Q, name="E")
    F = E * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx - v[1] * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(2.0)})
    points = hf.Points(V.mesh, PLACES)
    y = 0.4 * points.gather(model(points))
    result = hf.least_squares(model, hf.Data(points, y, np.linspace(1e-3, 2e-3, 25)), tolerance=1e-12)
    assert result.parameters["E.raw"] == pytest.approx(5.0, rel=1e-7)
    assert result.residuals.shape == (50,)
    assert result.jacobian.shape == (50, 1)


def test_the_number_of_ranks_does_not_matter(comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict:
        model = model_on(part)
        data = hf.Data(hf.Points(model.V.mesh, PLACES), measured(part, 0.002), 0.002)
        result = hf.least_squares(model, data)
        values = np.concatenate([np.ravel(v) for v in result.parameters.values()])
        return {"theta": values, "cost": result.cost, "singular": result.singular_values}

    result = hf.rank_invariance(build, tolerance=1e-7)
    assert result.ok, result.differences


def test_ranks_without_a_sensor_take_part(comm: MPI.Comm) -> None:
    model = model_on(comm)
    places = 0.05 + 0.1 * np.random.default_rng(2).uniform(size=(12, 2))  # all in one corner
    truth = model_on(comm, start=False)
    points = hf.Points(truth.V.mesh, places)
    y = points.gather(truth(points))
    result = hf.least_squares(model, hf.Data(hf.Points(model.V.mesh, places), y, 1e-6), tolerance=1e-12)
    assert result.residuals.shape == (12,)
    assert result.history[-1] < 1e-3 * result.history[0]
