"""What users get wrong about models in time: one error that names it, on every rank, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from evolving import UNKNOWN, at, functional, gradient, line, reaction_diffusion, space_time_points
from test_transient import growth
from ufl import dx, grad, inner

import hyco_fem as hf
from hyco_fem.pde.vectors import owned


def heat(comm: MPI.Comm, element: Any = ("Lagrange", 1), **options: Any) -> hf.TransientModel:
    domain = line(comm)
    V = fem.functionspace(domain, element)
    u, u_t, v = fem.Function(V, name="u"), fem.Function(V, name="u_t"), ufl.TestFunction(V)
    settings: dict[str, Any] = {"interval": (0, 1), "dt": 0.25}
    return hf.TransientModel(inner(u_t, v) * dx + inner(grad(u), grad(v)) * dx, u, u_t, **{**settings, **options})


@pytest.mark.parametrize("checkpoints", [hf.InMemory(), hf.Revolve(1)])
@pytest.mark.parametrize("changed", ["Function", "Constant", "load"])
@pytest.mark.parametrize("cubic", [False, True])
def test_a_gradient_is_that_of_the_solve_whatever_changed_since(
    cubic: bool, changed: str, checkpoints: Any, comm: MPI.Comm
) -> None:
    """Boundary values that stand in no form, too: steps that are solved again need them as they were."""
    domain = line(comm)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, u_t, v = fem.Function(V, name="u"), fem.Function(V, name="u_t"), ufl.TestFunction(V)
    kappa, g, f = (fem.Function(V, name=name) for name in ("kappa", "g", "f"))
    c = fem.Constant(domain, 0.4)
    kappa.x.array[:], g.x.array[:], f.x.array[:] = 1.0, 0.3, 2.0
    F = u_t * v * dx + kappa * inner(grad(u), grad(v)) * dx + (u**3 if cubic else u) * v * dx - f * v * dx
    bcs = [fem.dirichletbc(g, at(V, 0.0)), fem.dirichletbc(c, at(V, 1.0), V)]
    model = hf.TransientModel(
        F, u, u_t, bcs, {kappa: hf.Scalar(0.6)}, interval=(0, 1), dt=0.25, initial=1.0, checkpoints=checkpoints
    )
    points = space_time_points(domain)
    right = gradient(model, functional(model, points), comm)
    late = functional(model, points)
    for name, values in (("Function", g.x.array), ("Constant", c.value), ("load", f.x.array)):
        values[...] = 9.0 if name == changed else values
    np.testing.assert_allclose(gradient(model, late, comm), right, rtol=1e-12)
    values = {"Function": g.x.array, "Constant": c.value, "load": f.x.array}[changed]
    assert np.all(values == 9.0)


@pytest.mark.parametrize("unknown", [UNKNOWN, ("coefficient",)])
def test_boundary_values_in_time_are_right_when_steps_are_solved_again(unknown: Any, comm: MPI.Comm) -> None:
    found = []
    for checkpoints in (hf.InMemory(), hf.Revolve(1)):
        model = reaction_diffusion(comm, unknown, checkpoints=checkpoints)
        found.append(gradient(model, functional(model, space_time_points(model.V.mesh)), comm))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheme": hf.BDF2}, TypeError, r"scheme must be an object such as hyco_fem\.BDF2\(\)"),
        ({"scheme": "BDF2"}, TypeError, "scheme must be an object .* not 'BDF2'"),
        ({"checkpoints": hf.Revolve}, TypeError, "checkpoints must be an object"),
        ({"checkpoints": "memory"}, TypeError, "checkpoints must be an object"),
        ({"bcs": None}, TypeError, "bcs must be a list"),
        ({"bcs": [3]}, TypeError, "bcs must be a list"),
        ({"dt": "a"}, TypeError, "dt must be a number, or a list of steps, not 'a'"),
        ({"dt": None}, TypeError, "dt must be a number, or a list of steps, not None"),
        ({"dt": [[0.1], [0.2, 0.7]]}, TypeError, "dt must be a number, or a list of steps"),
        ({"dt": 1e-300}, ValueError, "too many"),
        ({"times": "ab"}, TypeError, "output times must be a list of numbers, not 'ab'"),
        ({"times": [np.nan]}, ValueError, r"is nan \(number 0\), which is not finite"),
        ({"initial": np.nan}, ValueError, "the initial value is not finite"),
        ({"initial": ufl.as_vector([1.0, 2.0])}, ValueError, r"initial has shape \(2,\), the unknown \(\)"),
        ({"rescue": 3}, TypeError, "rescue must be the name of a file"),
        ({"observed": 0}, ValueError, "has no parts"),
        ({"positive": ["kappa"]}, TypeError, "lists Functions"),
        ({"time_values": [1]}, TypeError, "time_values must be a dict"),
    ],
)
def test_arguments_of_another_kind_are_refused(options: Any, error: type, message: str, comm: MPI.Comm) -> None:
    with pytest.raises(error, match=message):
        heat(comm, **options)


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)])
def test_an_initial_number_of_any_kind_fills_every_component(number: Any, comm: MPI.Comm) -> None:
    model = heat(comm, ("Lagrange", 1, (2,)), initial=number)
    np.testing.assert_allclose(model.solve().numpy(), 2.0)


def test_an_initial_value_must_fit_the_space(comm: MPI.Comm) -> None:
    other = fem.Function(fem.functionspace(line(comm, 3), ("Lagrange", 1)), name="u0")
    for initial in (other, 2.0 * other):
        with pytest.raises(ValueError, match="'u0' in initial is a Function on another mesh"):
            heat(comm, initial=initial)
    P1 = basix.ufl.element("Lagrange", "interval", 1)
    with pytest.raises(ValueError, match=r"mixed space: pass a Function.*sub\(0\)"):
        heat(comm, basix.ufl.mixed_element([P1, P1]), initial=ufl.as_vector([1.0, 2.0]))
    with pytest.raises(ValueError, match="has the parts 0 to 1"):
        heat(comm, ("Lagrange", 1, (2,)), observed=5)


def test_the_rate_is_a_function_of_its_own(comm: MPI.Comm) -> None:
    V = fem.functionspace(line(comm), ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    with pytest.raises(ValueError, match="u_t must be a Function of its own"):
        hf.TransientModel(u * v * dx, u, u, interval=(0, 1), dt=0.5)
    with pytest.raises(TypeError, match="F must be a UFL form, not NoneType"):
        hf.TransientModel(None, u, fem.Function(V), interval=(0, 1), dt=0.5)


def loaded(comm: MPI.Comm, values: Callable[..., dict], **options: Any) -> hf.TransientModel:
    """∂u/∂t − (κ u′)′ = g + h, where g and h may be given in time: values(u, kappa, g, h, t, x)."""
    domain = line(comm)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, u_t, v, kappa, g, h = (
        fem.Function(V, name="u"),
        fem.Function(V, name="u_t"),
        ufl.TestFunction(V),
        *(fem.Function(V, name=name) for name in ("kappa", "g", "h")),
    )
    t, x = fem.Constant(domain, 0.0), ufl.SpatialCoordinate(domain)[0]
    F = u_t * v * dx + kappa * inner(grad(u), grad(v)) * dx - (g + h) * v * dx
    given = values(u, kappa, g, h, t, x)
    return hf.TransientModel(
        F, u, u_t, [], {kappa: hf.Scalar(1.0)}, t=t, interval=(0, 1), dt=0.25, time_values=given, **options
    )


def test_what_would_be_taken_at_another_time_is_refused(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="'g' in time depends on 'u'"):
        loaded(comm, lambda u, kappa, g, h, t, x: {g: t * u})
    with pytest.raises(ValueError, match="'h' in time contains 'g', which is itself in time_values"):
        loaded(comm, lambda u, kappa, g, h, t, x: {g: t * x, h: 2 * g})
    with pytest.raises(ValueError, match="'u' cannot be given in time_values"):
        loaded(comm, lambda u, kappa, g, h, t, x: {u: t * x})
    with pytest.raises(ValueError, match=r"'kappa' cannot be given in time_values.*PerInterval"):
        loaded(comm, lambda u, kappa, g, h, t, x: {kappa: t * x})


def test_a_users_function_that_fails_fails_on_all_ranks(comm: MPI.Comm) -> None:
    last = comm.rank == comm.size - 1

    def failing(x: np.ndarray, time: float) -> np.ndarray:
        if last and time > 0.3:
            raise ZeroDivisionError("in my function")
        return x[0]

    with pytest.raises(ZeroDivisionError, match="in my function"):
        loaded(comm, lambda u, kappa, g, h, t, x: {g: failing}).solve()
    with pytest.raises(ValueError, match=r"'g' in time_values returned shape \(\) .* must return \(n,\)"):
        loaded(comm, lambda u, kappa, g, h, t, x: {g: lambda x, time: 3.0}).solve()


def test_an_interrupted_solve_leaves_u_as_it_was(comm: MPI.Comm) -> None:
    """Ctrl-C in the middle, or a full disk."""
    stop = [9.0]

    def load(x: np.ndarray, time: float) -> np.ndarray:
        if time > stop[0]:
            raise KeyboardInterrupt
        return 1.0 + x[0]

    model = loaded(comm, lambda u, kappa, g, h, t, x: {g: load})
    right = model.solve().detach().numpy()
    before = owned(model.function).copy()
    stop[0] = 0.6
    with pytest.raises(KeyboardInterrupt):
        model.solve()
    np.testing.assert_array_equal(owned(model.function), before)
    stop[0] = 9.0
    np.testing.assert_array_equal(model.solve().detach().numpy(), right)


def test_ctrl_c_in_newtons_method_is_no_divergence(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reaction_diffusion(comm, cubic=True)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hyco_fem.pde.newton.fem_petsc.assemble_matrix", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.solve()
    assert np.isfinite(model.solve().detach().numpy()).all()


def test_a_rescue_that_fails_does_not_hide_the_blow_up(comm: MPI.Comm, folder: Path) -> None:
    if comm.rank == 0:
        (folder / "taken").write_text("")
        (folder / "taken.npz").mkdir()
    comm.Barrier()
    for path in (folder / "taken" / "last.npz", folder / "taken.npz"):
        with pytest.raises(hf.BlowUp, match=r"step \d+ of 40.*could not be written to"):
            growth(comm, rescue=path).solve()
    assert sorted(p.name for p in folder.iterdir()) == ["taken", "taken.npz"]


def test_parts_of_an_interval_are_checked(comm: MPI.Comm) -> None:
    one = hf.Scalar(1.0)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not 2.0; use hyco_fem\.Scalar"):
        hf.PerInterval([0.5], [one, 2.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="changes must be a list of times"):
        hf.PerInterval(["a"], [one, one])  # type: ignore[list-item]
    grid = heat(comm).grid
    for changes in ([0.5, 0.25], [0.5, 0.5]):
        with pytest.raises(ValueError, match="changes must ascend"):
            grid.intervals(changes)
    with pytest.raises(ValueError, match=r"the change 0\.3 is not at the end of a step.* divides it$"):
        grid.intervals([0.3])


@pytest.mark.parametrize("size", [np.nan, np.inf, "inf", "nan", None])
def test_a_memory_budget_is_a_number_of_bytes(size: Any) -> None:
    with pytest.raises(ValueError, match="a memory budget is a number of bytes"):
        hf.MemoryBudget(size)


def test_points_that_differ_between_ranks_are_refused_and_hang_nothing(comm: MPI.Comm) -> None:
    """Many of them: a message of that size waits for who receives it."""
    domain = mesh.create_unit_square(comm, 2, 2)
    x, t = np.full((100_000, 2), 0.5), np.full(100_000, 0.1)
    wrong = t.copy()
    wrong[5] = np.nan
    with pytest.raises(ValueError, match="the time of point 5 is nan"):
        hf.SpaceTimePoints(domain, x, wrong if comm.rank == comm.size - 1 else t)
    with pytest.raises(ValueError, match=r"points must have shape \(n, 2\)"):
        hf.SpaceTimePoints(domain, 0.5, 0.1)
    model = heat(comm)
    points = space_time_points(model.V.mesh)
    with pytest.raises(TypeError, match=r"observe takes a list .*model\(points\)"):
        model.observe(points)  # type: ignore[arg-type]


def test_a_checkpoint_that_is_gone_from_one_rank_is_told_on_all(comm: MPI.Comm, folder: Path) -> None:
    model = reaction_diffusion(comm, ("coefficient",), checkpoints=hf.OnDisk(folder))
    points = space_time_points(model.V.mesh)
    value = functional(model, points)
    comm.Barrier()
    if comm.rank == 0:
        for file in folder.glob(f"*_{comm.size - 1}_*/*.npy"):
            file.unlink()
    comm.Barrier()
    with pytest.raises(OSError, match=r"the checkpoint of step 8 in .* cannot be read .*solve again"):
        value.backward()
    # The model is as before.
    assert np.isfinite(gradient(model, functional(model, points), comm)).all()


def test_an_interrupted_solve_leaves_no_files(comm: MPI.Comm, folder: Path) -> None:
    def load(x: np.ndarray, time: float) -> np.ndarray:
        if time > 0.6:
            raise KeyboardInterrupt
        return 1.0 + x[0]

    model = loaded(comm, lambda u, kappa, g, h, t, x: {g: load}, checkpoints=hf.OnDisk(folder))
    with pytest.raises(KeyboardInterrupt) as caught:  # whose traceback holds on to all there is
        model.solve()
    comm.Barrier()
    assert not list(folder.iterdir())
    assert caught.value is not None


def test_a_table_without_times_is_told_what_it_needs(comm: MPI.Comm, folder: Path) -> None:
    model = heat(comm)
    hf.write_sensors(folder / "s.csv", [[0.5]], [1.0], None, comm=comm)
    data = hf.read_sensors(folder / "s.csv", comm).on(model.V.mesh)
    with pytest.raises(TypeError, match="a table of sensors needs a column t"):
        model(data.points)


def test_a_table_of_sensors_is_written_so_that_it_can_be_read(comm: MPI.Comm, folder: Path) -> None:
    with pytest.raises(ValueError, match="t has entries that are not finite"):
        hf.write_sensors(folder / "s.csv", [[0.5]], [1.0], None, comm=comm, t=[np.nan])
    with pytest.raises(ValueError, match="values has entries that are not finite"):
        hf.write_sensors(folder / "s.csv", [[0.5]], [np.nan], None, comm=comm)
    assert not list(folder.iterdir())
    hf.write_sensors(folder / "new" / "s.csv", [[0.5]], [1.0], None, comm=comm, t=[0.5])
    assert hf.read_sensors(folder / "new" / "s.csv", comm).t.tolist() == [0.5]
