"""Points in space and time, ghosts among them, and the game on a model in time."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import poisson, square
from dolfinx import fem
from evolving import reaction_diffusion, space_time_points

import hyco_fem as hf
from hyco_fem.parallel import sum_array, sum_over_ranks

GRID = hf.TimeGrid.of((0.0, 1.0), [0.25, 0.25, 0.1, 0.4])


def field_in_time(comm: MPI.Comm, *shape: int) -> hf.SpaceTime:
    V = fem.functionspace(square(comm, 4), ("Lagrange", 2, shape) if shape else ("Lagrange", 2))
    return hf.SpaceTime(V, GRID)


def local_values(V: fem.FunctionSpace, f: Any) -> np.ndarray:
    u = fem.Function(V)
    u.interpolate(f)
    u.x.scatter_forward()
    return u.x.array.copy()


def read(points: hf.SpaceTimePoints, where: hf.SpaceTime, f: Any) -> np.ndarray:
    """What points see of a field f(x, t) that is given at the ends of all steps; replicated."""
    watch = points.observation(where).watch()
    for n, t in enumerate(GRID.times):
        watch.see(n, local_values(where.V, lambda x, t=t: f(x, t)))
    return points.gather(watch.values)


# -- points ----------------------------------------------------------------------------------------------------


def test_a_field_linear_in_time_and_quadratic_in_space_is_seen_exactly(comm: MPI.Comm) -> None:
    where = field_in_time(comm)
    points = space_time_points(where.mesh, 30)

    def f(x: Any, t: Any) -> Any:
        return (1 + 2 * t) * (x[0] ** 2 - x[0] * x[1]) + t

    x, y, t = points.gather(points.x).T
    np.testing.assert_allclose(read(points, where, f), f((x, y), t), atol=1e-13)
    assert points.x.shape == (len(points), 3)
    torch.testing.assert_close(points.x[:, -1], points.t, rtol=0, atol=0)
    assert comm.allreduce(len(points)) == points.n == points.n_found == 30
    assert comm.allreduce(float(points.weights.sum())) == pytest.approx(1.0)


def test_between_two_steps_a_field_is_interpolated_linearly(comm: MPI.Comm) -> None:
    where = field_in_time(comm)
    times = np.array([0.0, 0.1, 0.25, 0.5, 0.55, 0.6, 0.99, 1.0])
    points = hf.SpaceTimePoints.snapshots(where.mesh, [[0.3, 0.4], [0.9, 0.1]], times)
    found = read(points, where, lambda x, t: np.sin(3 * t) + 0 * x[0])
    np.testing.assert_allclose(found, np.tile(np.interp(times, GRID.times, np.sin(3 * GRID.times)), 2), atol=1e-13)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_source_is_the_transpose_of_the_reading(shape: tuple[int, ...], comm: MPI.Comm) -> None:
    """⟨B u, w⟩ = ⟨u, Bᵀ w⟩ with u at the ends of all steps."""
    where = field_in_time(comm, *shape)
    points = space_time_points(where.mesh, 25)
    B = points.observation(where)
    rng = np.random.default_rng((1, comm.rank))
    w = rng.standard_normal(B.shape)
    reading, source = B.watch(), B.source(w)
    other = 0.0
    for n in range(GRID.n + 1):
        u = fem.Function(where.V)
        u.x.array[:] = rng.standard_normal(len(u.x.array))
        u.x.scatter_forward()
        reading.see(n, u.x.array)
        bar = np.zeros(len(u.x.array))
        source.add_gradient(n, bar)
        other += float(bar @ u.x.array)
    one, other = sum_array(comm, np.array([float((reading.values * w).sum()), other]))
    assert one == pytest.approx(other, rel=1e-12)


def test_snapshots_and_moving_sensors_are_rows_sensor_by_sensor(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    times = np.array([0.1, 0.5, 0.9])
    x = np.array([[0.2, 0.3], [0.7, 0.6]])
    still = hf.SpaceTimePoints.snapshots(domain, x, times)
    expected = np.array([[*place, t] for place in x for t in times])
    np.testing.assert_allclose(still.gather(still.x), expected, atol=1e-15)
    paths = x[:, None, :] + 0.1 * times[None, :, None]
    moving = hf.SpaceTimePoints.moving(domain, paths, times)
    expected = np.array([[*paths[i, j], times[j]] for i in range(2) for j in range(3)])
    np.testing.assert_allclose(moving.gather(moving.x), expected, atol=1e-15)
    rows = hf.SpaceTimePoints.of_rows(domain, expected)
    np.testing.assert_array_equal(rows.gather(rows.x), moving.gather(moving.x))
    one_time = hf.SpaceTimePoints(domain, x, 0.5)
    np.testing.assert_array_equal(one_time.gather(one_time.x)[:, -1], 0.5)


def test_a_sensor_that_leaves_the_mesh_is_named_with_the_time(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    times = np.array([0.0, 0.5, 1.0])
    paths = np.array([[[0.1, 0.1]] * 3, [[0.5, 0.5], [0.9, 0.5], [1.3, 0.5]]])
    with pytest.raises(hf.OutsideError, match=r"1 of 2 sensors leave.*sensor 1 at t = 1, when it is at \(1.3, 0.5\)"):
        hf.SpaceTimePoints.moving(domain, paths, times)
    marked = hf.SpaceTimePoints.moving(domain, paths, times, missing="mark")
    assert (marked.n, marked.n_found) == (6, 5)
    np.testing.assert_array_equal(marked.found, [True] * 5 + [False])


def test_times_that_do_not_fit_are_refused(comm: MPI.Comm) -> None:
    where = field_in_time(comm)
    x = [[0.2, 0.3], [0.7, 0.6]]
    for t, side in ((-0.1, "before the start"), (1.2, "after the end")):
        points = hf.SpaceTimePoints(where.mesh, x, [0.5, t])
        with pytest.raises(ValueError, match=rf"the time of a point, {t:g} \(number 1\) is {side} of the interval"):
            points.observation(where)
    with pytest.raises(ValueError, match="2 points need one time"):
        hf.SpaceTimePoints(where.mesh, x, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="time of point 1 is nan"):
        hf.SpaceTimePoints(where.mesh, x, [0.1, np.nan])
    with pytest.raises(ValueError, match="must ascend"):
        hf.SpaceTimePoints.moving(where.mesh, np.full((1, 2, 2), 0.5), [0.5, 0.1])
    with pytest.raises(ValueError, match=r"paths must have shape"):
        hf.SpaceTimePoints.moving(where.mesh, np.full((1, 3, 2), 0.5), [0.1, 0.5])
    with pytest.raises(hf.OutsideError):
        hf.SpaceTimePoints(where.mesh, [[2.0, 0.5]], 0.5)


def test_each_model_asks_for_its_own_points(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, ())
    places = hf.Points(model.V.mesh, [[0.3], [0.7]])
    with pytest.raises(TypeError, match=r"in time.*SpaceTimePoints"):
        model(places)
    with pytest.raises(TypeError, match=r"in time.*SpaceTimePoints"):
        model.jacobian(places)
    steady = poisson(comm)
    timed = hf.SpaceTimePoints(steady.V.mesh, [[0.3, 0.4], [0.7, 0.2]], 0.5)
    with pytest.raises(TypeError, match=r"TransientModel; use hyco_fem\.Points for a steady one"):
        steady(timed)


# -- ghosts ----------------------------------------------------------------------------------------------------

BOUND = {
    "RandomGhosts": hf.RandomGhosts(40, seed=3),
    "fixed": hf.RandomGhosts(40, seed=3, fixed=True),
    "BoundaryGhosts": hf.BoundaryGhosts(30, seed=1),
    "QuadratureGhosts": hf.QuadratureGhosts(2),
    "GhostUnion": hf.GhostUnion([hf.RandomGhosts(20), hf.BoundaryGhosts(10)], [3.0, 1.0]),
}


@pytest.mark.parametrize("ghosts", BOUND)
def test_ghosts_are_the_same_on_any_number_of_ranks(ghosts: str, comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        sampler = BOUND[ghosts].on(field_in_time(part))
        drawn = [sampler.draw(r) for r in (0, 1)]
        return {
            name: value
            for r, points in enumerate(drawn)
            for name, value in ((f"x{r}", points.gather(points.x)), (f"weights{r}", points.gather(points.weights)))
        }

    result = hf.rank_invariance(build, comm=comm, tolerance=1e-13)
    assert result.ok, result.differences
    numbers = build(comm)
    assert numbers["weights0"].sum() == pytest.approx(4.0 if ghosts == "GhostUnion" else 1.0)
    t = numbers["x0"][:, -1]
    assert t.min() >= 0.0
    assert t.max() <= 1.0
    again = np.array_equal(numbers["x0"], numbers["x1"])
    assert again is (ghosts in ("fixed", "QuadratureGhosts"))


def mean(points: hf.SpaceTimePoints, comm: MPI.Comm) -> float:
    """Of (x + y²) 2t."""
    x, y, t = points.x.T
    return float(sum_over_ranks((points.weights * (x + y**2) * 2 * t).sum(), comm))


def test_means_over_ghosts_are_means_over_space_and_time(comm: MPI.Comm) -> None:
    """1/2 + 1/3: exactly by quadrature, and as the number of random points grows."""
    where = field_in_time(comm)
    assert mean(hf.QuadratureGhosts(2).on(where).draw(0), comm) == pytest.approx(5 / 6, rel=1e-12)
    # The standard deviation of (x + y²) 2t is about 0.66.
    assert mean(hf.RandomGhosts(20_000).on(where).draw(0), comm) == pytest.approx(5 / 6, abs=4 * 0.7 / 20_000**0.5)
    # Of x + y² on the left, right, lower and upper side.
    on_sides = ((0 + 1 / 3) + (1 + 1 / 3) + 1 / 2 + (1 / 2 + 1)) / 4
    found = mean(hf.BoundaryGhosts(20_000).on(where).draw(0), comm)
    assert found == pytest.approx(on_sides, abs=4 * 0.8 / 20_000**0.5)


def test_times_are_independent_of_places(comm: MPI.Comm) -> None:
    """Also on the boundary, where a side must not always be seen at the same time."""
    for ghosts in (hf.RandomGhosts(4000, seed=5), hf.BoundaryGhosts(4000, seed=5)):
        points = ghosts.on(field_in_time(comm)).draw(2)
        x, y, t = points.gather(points.x).T
        for other in (x, y, np.arctan2(y - 0.5, x - 0.5)):
            assert abs(np.corrcoef(other, t)[0, 1]) < 0.08


def test_shares_of_a_union_are_those_asked_for(comm: MPI.Comm) -> None:
    points = BOUND["GhostUnion"].on(field_in_time(comm)).draw(0)
    weights = points.gather(points.weights)
    np.testing.assert_allclose([weights[:20].sum(), weights[20:].sum()], [3.0, 1.0])


def test_dof_ghosts_are_for_steady_models(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="steady models; use RandomGhosts"):
        hf.DofGhosts().on(field_in_time(comm))


# -- the game --------------------------------------------------------------------------------------------------

THETA = ("coefficient", "initial value")


def model_and_data(comm: MPI.Comm, noise: float = 0.01) -> tuple[hf.TransientModel, hf.Data]:
    """Data of the model itself; then it is put elsewhere."""
    model = reaction_diffusion(comm, THETA)
    points = space_time_points(model.V.mesh, 30)
    with torch.no_grad():
        values = points.gather(model(points)) + noise * np.random.default_rng(2).standard_normal(30)
        for p in model.parameters():
            p.mul_(1.3)
    return model, hf.Data(points, values, noise or None)


def network() -> hf.MLP:
    torch.manual_seed(3)
    return hf.MLP(2, 1, width=5, depth=1)


def theta(model: hf.TransientModel) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


ANSWERS = {
    "Adam": None,
    "Gauss-Newton": hf.Answers(physical=hf.GaussNewton(1)),
    "both": hf.Answers(physical=hf.GaussNewton(1), synthetic=hf.GaussNewton(1)),
}


@pytest.mark.parametrize("answers", ANSWERS)
def test_the_game_is_the_same_on_any_number_of_ranks(answers: str, comm: MPI.Comm) -> None:
    def build(part: MPI.Comm) -> dict[str, Any]:
        model, data = model_and_data(part)
        game = hf.Hyco(model, network(), data, hf.RandomGhosts(25), answers=ANSWERS[answers])
        result = game.run(3)
        return {"theta": theta(model), "misfits": [r.misfit_physical for r in result.history]}

    result = hf.rank_invariance(build, comm=comm, tolerance=1e-8)
    assert result.ok, result.differences
    numbers = build(comm)
    assert np.isfinite(numbers["misfits"]).all()
    assert numbers["misfits"][-1] < numbers["misfits"][0]


@pytest.mark.parametrize("schedule", ["simultaneous", "joint"])
def test_the_other_schedules_run_too(schedule: Any, comm: MPI.Comm) -> None:
    model, data = model_and_data(comm)
    before = theta(model)
    ghosts = hf.GhostUnion([hf.RandomGhosts(10), hf.BoundaryGhosts(5), hf.QuadratureGhosts(1)])
    hf.Hyco(model, network(), data, ghosts, schedule=schedule).run(2)
    assert np.isfinite(theta(model)).all()
    assert not np.array_equal(theta(model), before)


def test_each_model_alone_is_fitted(comm: MPI.Comm) -> None:
    model, data = model_and_data(comm)
    result = hf.PhysicsOnly(model, data, answer=hf.GaussNewton(1)).run(6)
    assert result.history[-1].misfit_physical < 2.0, "the mean square residual in units of the noise"
    net = network()
    result = hf.NetworkOnly(net, data).run(20)
    assert result.history[-1].misfit_synthetic < result.history[0].misfit_synthetic


def test_least_squares_finds_the_parameters_with_error_bars(comm: MPI.Comm) -> None:
    model, data = model_and_data(comm, noise=1e-6)
    truth = theta(model) / 1.3
    result = hf.least_squares(model, data)
    assert result.converged
    np.testing.assert_allclose(theta(model), truth, rtol=1e-2)
    assert 0.2 < result.cost < 2.0


def test_many_starts_find_them_from_afar(comm: MPI.Comm) -> None:
    model, data = model_and_data(comm, noise=1e-6)
    truth = theta(model) / 1.3
    starts = hf.MultiStart({"kappa.centres": (0.1, 0.9)}, starts=4, seed=1, answer=hf.GaussNewton(15))
    hf.PhysicsOnly(model, data, answer=starts).run(1)
    np.testing.assert_allclose(theta(model), truth, rtol=5e-2)


def test_a_trust_report_tells_what_the_data_say(comm: MPI.Comm) -> None:
    model, data = model_and_data(comm)
    hf.PhysicsOnly(model, data, answer=hf.GaussNewton(10)).run(1)
    report = hf.trust_report(hf.PhysicsOnly(model, data))
    assert isinstance(report.from_data, hf.Identifiability)
    assert report.gain_physical < 1e-3
    assert report.from_data.residuals == 30
    report = hf.trust_report(hf.Hyco(model, network(), data, hf.RandomGhosts(20)))
    assert report.from_data is not None
    assert report.with_network is not None
    assert np.isfinite(report.from_data.standard_errors).all()


def test_data_outside_the_time_of_the_model_are_refused(comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, THETA)
    for t, side in ((-0.5, "before the start"), (1.5, "after the end")):
        data = hf.Data(hf.SpaceTimePoints(model.V.mesh, [[0.5], [0.6]], [0.5, t]), [1.0, 2.0])
        with pytest.raises(ValueError, match=f"time of a point, {t:g} .*{side}"):
            hf.Hyco(model, network(), data, hf.RandomGhosts(5)).run(1)
    data = hf.Data(hf.Points(model.V.mesh, [[0.5]]), [1.0])
    with pytest.raises(TypeError, match=r"in time.*SpaceTimePoints"):
        hf.PhysicsOnly(model, data).run(1)
