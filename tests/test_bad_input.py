"""Bad input: one clear error, the same on all ranks, that names what is wrong and what to do, and nothing changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import torch
import ufl
from cases import boundary_dofs, dirichlet, square
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf

SENSORS = np.array([[0.3, 0.4], [0.7, 0.2], [0.5, 0.8]])


@contextmanager
def refused(comm: MPI.Comm, kind: type[Exception], *parts: str) -> Iterator[None]:
    """All ranks raise `kind` with one and the same message, which matches all `parts` in this order."""
    found: Exception | None = None
    try:
        yield
    except Exception as error:
        found = error
    everywhere = comm.allgather(f"{type(found).__name__}: {found}")
    assert len(set(everywhere)) == 1, everywhere
    assert isinstance(found, kind), everywhere[0]
    assert re.search(".*".join(parts), str(found), re.DOTALL), str(found)


def poisson(
    comm: MPI.Comm, kappa: nn.Module | None = None, *, positive: bool = True, **options: Any
) -> hf.PhysicalModel:
    """−∇·(κ∇u) = 10 in the unit square, u = 0 on its boundary."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    u, k, v = fem.Function(V, name="u"), fem.Function(V, name="kappa"), ufl.TestFunction(V)
    F = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    coefficients = {k: hf.Scalar(2.0) if kappa is None else kappa}
    return hf.PhysicalModel(F, u, [dirichlet(V)], coefficients, positive=[k] if positive else [], **options)


def everything(*modules: nn.Module) -> list[np.ndarray]:
    """Copies of all parameters, and of the last solution of a physical model."""
    kept = [p.detach().numpy().copy() for module in modules for p in module.parameters()]
    return kept + [m.function.x.array.copy() for m in modules if isinstance(m, hf.PhysicalModel)]


def as_before(kept: list[np.ndarray], *modules: nn.Module) -> None:
    for before, now in zip(kept, everything(*modules), strict=True):
        np.testing.assert_array_equal(now, before)


def write(comm: MPI.Comm, path: Path, text: str) -> Path:
    if comm.rank == 0:
        path.write_text(text, encoding="utf-8")
    comm.Barrier()
    return path


# -- data ------------------------------------------------------------------------------------------------------


def test_a_sensor_outside_the_mesh_is_named_by_row_and_coordinates(comm: MPI.Comm, folder: Path) -> None:
    domain = square(comm, 3)
    with refused(comm, hf.OutsideError, "1 of 3 points", r"1: \(0.5, 1.25\)", "move or remove"):
        hf.Points(domain, np.array([[0.1, 0.1], [0.5, 1.25], [0.9, 0.9]]))
    path = write(comm, folder / "s.csv", "# a comment\nx,y,value,noise_std\n0.1,0.1,1,0.1\n0.5,1.25,2,0.1\n")
    with refused(comm, hf.OutsideError, "s.csv: 1 of 2 sensors", r"line 4: \(0.5, 1.25\)", "correct or delete"):
        hf.read_sensors(path, comm).on(domain)


def test_an_entry_that_is_no_number_is_named_by_line_and_column(comm: MPI.Comm, folder: Path) -> None:
    for line, *parts in (
        ("0.2,0.3,nan,0.1", "s.csv, line 3, column 'value'", "nan is not finite"),
        ("0.2,inf,1.0,0.1", "s.csv, line 3, column 'y'", "inf is not finite"),
        ("0.2,0.3,warm,0.1", "s.csv, line 3, column 'value'", "'warm' is not a number"),
        ("0.2,,1.0,0.1", "s.csv, line 3, column 'y'", "'' is not a number"),
        ("0.2,0.3,1.0,0.0", "s.csv, line 3, column 'noise_std'", "0 is not positive"),
        ("0.2,0.3,1.0", "s.csv, line 3", "3 entries for 4 columns"),
    ):
        path = write(comm, folder / "s.csv", f"x,y,value,noise_std\n0.1,0.1,1,0.1\n{line}\n")
        with refused(comm, ValueError, *parts):
            hf.read_sensors(path, comm)


def test_wrong_shapes_of_points_and_values_are_named(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    with refused(comm, ValueError, r"\(3, 3\)"):
        hf.Points(domain, np.zeros((3, 3)))
    points = hf.Points(domain, SENSORS)
    with refused(comm, ValueError, r"3 sensors need values of shape \(3,\) or \(3, k\), not \(2,\)"):
        hf.Data(points, [1.0, 2.0])
    with refused(comm, ValueError, r"noise_std must be a number or have shape \(3,\), not \(2,\)"):
        hf.Data(points, np.ones(3), [0.1, 0.1])


# -- modules ---------------------------------------------------------------------------------------------------


class Returns(nn.Module):
    """A module that returns what a function makes of x."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def at_one_corner(value: float) -> Callable[[Tensor], Tensor]:
    """One, but for the dof at (1, 1), which belongs to one rank."""
    return lambda x: torch.where((x > 0.99).all(dim=1), value, 1.0).double()


@pytest.mark.parametrize(
    ("returned", "kind", "parts"),
    [
        (lambda x: torch.ones(len(x) + 1).double(), ValueError, (r"coefficient 'kappa' returned shape \(\d+,\)",)),
        (lambda x: torch.ones(len(x), 2).double(), ValueError, (r"returned shape \(\d+, 2\) for \d+ dof points",)),
        (lambda x: torch.ones(len(x)), TypeError, ("coefficient 'kappa' returned torch.float32, not float64",)),
        (at_one_corner(np.inf), hf.CoefficientError, ("'kappa' is not finite and positive: inf", r"at \(1, 1\)")),
        (at_one_corner(np.nan), hf.CoefficientError, ("'kappa' is not finite and positive: nan", r"at \(1, 1\)")),
        (at_one_corner(0.0), hf.CoefficientError, (r"positive: 0.0 at \(1, 1\)", "use a transform", "learning rate")),
    ],
    ids=["too many values", "two columns", "float32", "infinite", "NaN", "zero"],
)
def test_a_coefficient_that_does_not_fit_is_named(
    comm: MPI.Comm, returned: Callable, kind: type[Exception], parts: tuple[str, ...]
) -> None:
    switch = {"on": False}
    model = poisson(comm, Returns(lambda x: returned(x) if switch["on"] else torch.ones(len(x)).double()))
    u = model.solve()
    kept = everything(model)
    switch["on"] = True
    with refused(comm, kind, *parts):
        model.solve()
    as_before(kept, model)
    switch["on"] = False
    np.testing.assert_allclose(model.solve(), u, rtol=1e-12)


def test_an_error_on_one_rank_is_raised_on_all(comm: MPI.Comm) -> None:
    def only_here(x: Tensor) -> Tensor:
        if comm.rank == comm.size - 1:
            raise ValueError("the table of conductivities ends here")
        return torch.ones(len(x)).double()

    with refused(comm, ValueError, "the table of conductivities ends here"):
        poisson(comm, Returns(only_here)).solve()
    data = hf.Data(hf.Points(square(comm, 4), SENSORS), np.ones(3))
    with refused(comm, ValueError, "the table of conductivities ends here"):
        hf.NetworkOnly(Returns(only_here), data).run(1)


def test_modules_in_single_precision_are_refused_with_the_remedy(comm: MPI.Comm) -> None:
    parts = ("parameter '.*' of the coefficient 'kappa' is torch.float32", r"call .double\(\) on the module")
    with refused(comm, TypeError, *parts):
        poisson(comm, hf.NeuralField(nn.Linear(2, 1)))
    model = poisson(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.ones(3))
    single = Returns(lambda x: x[:, 0].float())
    kept = everything(model)
    for trainer in (hf.Hyco(model, single, data, hf.RandomGhosts(5)), hf.NetworkOnly(single, data)):
        with refused(comm, TypeError, "the synthetic model returned torch.float32", r"call .double\(\) on it"):
            trainer.run(1)
    as_before(kept[:1], model.coefficients)


def test_a_network_with_the_wrong_number_of_outputs_is_refused(comm: MPI.Comm) -> None:
    model = poisson(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.ones(3))
    with refused(comm, ValueError, r"values of shape \(\d, 2\) at sensors with data of shape"):
        hf.Hyco(model, hf.MLP(2, 2, width=3), data, hf.RandomGhosts(5)).run(1)
    with refused(comm, ValueError, r"the synthetic model returned shape \(\d+,\) for \d+ points"):
        hf.NetworkOnly(Returns(lambda x: torch.ones(len(x) + 1).double()), data).run(1)


@pytest.mark.parametrize("part", ["coefficient", "network"])
def test_weights_that_differ_between_ranks_are_refused(comm: MPI.Comm, part: str) -> None:
    if comm.size == 1:
        pytest.skip("one rank cannot differ from itself")
    different = hf.MLP(2, width=3, depth=1, seed=comm.rank)
    remedy = "is not the same on rank 1 as on rank 0; give every rank the same seed"
    if part == "coefficient":
        with refused(comm, ValueError, "parameter 'kappa.network.hidden.0.weight'", remedy):
            poisson(comm, hf.NeuralField(different, hf.Positive()))
        return
    model = poisson(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.ones(3))
    with refused(comm, ValueError, "parameter 'synthetic.hidden.0.weight'", remedy):
        hf.Hyco(model, different, data)
    with refused(comm, ValueError, "parameter 'hidden.0.weight'", remedy):
        hf.NetworkOnly(different, data)


# -- forms -----------------------------------------------------------------------------------------------------


Refusal = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]


def forms(comm: MPI.Comm) -> dict[str, Refusal]:
    """Arguments of PhysicalModel that do not fit together, with what is said about each."""
    domain = square(comm, 2)
    V, W = (fem.functionspace(domain, ("Lagrange", degree)) for degree in (1, 2))
    u, k, g = (fem.Function(V, name=name) for name in ("u", "kappa", "g"))
    v, w, trial = ufl.TestFunction(V), ufl.TestFunction(W), ufl.TrialFunction(V)
    F = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - v * ufl.dx
    one, bcs = hf.Scalar(1.0), [dirichlet(V)]
    twice = fem.Function(V, name="kappa")
    return {
        "a coefficient that the form does not contain": (
            lambda: hf.PhysicalModel(F, u, bcs, {k: one, g: hf.Scalar(2.0)}),
            ValueError,
            ("the coefficient 'g' does not appear in the form", r"the form has \['kappa'\]"),
        ),
        "a trial function": (
            lambda: hf.PhysicalModel(ufl.inner(ufl.grad(trial), ufl.grad(v)) * ufl.dx, u, bcs),
            ValueError,
            ("exactly one test function, not 2 arguments", "not with a TrialFunction"),
        ),
        "no test function": (
            lambda: hf.PhysicalModel(u**2 * ufl.dx, u, bcs),
            ValueError,
            ("exactly one test function, not 0 arguments",),
        ),
        "no unknown": (
            lambda: hf.PhysicalModel(F, g, bcs, {k: one}),
            ValueError,
            ("the unknown 'g' does not appear in F",),
        ),
        "a test function of another space": (
            lambda: hf.PhysicalModel(u * w * ufl.dx, u, bcs),
            ValueError,
            ("the test function of F must come from the space of u",),
        ),
        "an expression": (lambda: hf.PhysicalModel(u * v, u, bcs), TypeError, ("F must be a UFL form",)),
        "the unknown as a coefficient": (
            lambda: hf.PhysicalModel(F, u, bcs, {u: one}),
            ValueError,
            ("'u' is the unknown and cannot be a coefficient too",),
        ),
        "a number for a coefficient": (
            lambda: hf.PhysicalModel(F, u, bcs, {k: 3.0}),
            TypeError,
            ("coefficient 'kappa' must be given by a torch.nn.Module, not float",),
        ),
        "a Constant as a coefficient": (
            lambda: hf.PhysicalModel(F, u, bcs, {fem.Constant(domain, 1.0): one}),
            TypeError,
            ("must be Functions of the form, not Constant", "hyco_fem.Scalar"),
        ),
        "two coefficients of one name": (
            lambda: hf.PhysicalModel(F + twice * v * ufl.dx, u, bcs, {k: one, twice: hf.Scalar(2.0)}),
            ValueError,
            ("coefficients need different names", "pass name="),
        ),
        "positive, but no coefficient": (
            lambda: hf.PhysicalModel(F, u, bcs, {k: one}, positive=[g]),
            ValueError,
            ("'g' is in positive=… but not in coefficients",),
        ),
    }


def test_a_form_that_does_not_fit_its_arguments_is_refused(comm: MPI.Comm) -> None:
    for build, kind, parts in forms(comm).values():
        with refused(comm, kind, *parts):
            build()


def test_a_coefficient_that_is_a_dirichlet_value_is_no_bad_input(comm: MPI.Comm) -> None:
    """−Δu = 0 with u = c on the boundary has the solution c, so d/dc Σ_i u_i² = 2 N c."""
    V = fem.functionspace(square(comm, 3), ("Lagrange", 1))
    u, g, v = fem.Function(V, name="u"), fem.Function(V, name="g"), ufl.TestFunction(V)
    F = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(g, boundary_dofs(V))], {g: hf.Scalar(3.0)})
    solution = model.solve()
    np.testing.assert_allclose(solution.detach(), 3.0, rtol=1e-12)
    solution.square().sum().backward()
    slope = comm.allreduce(float(model.coefficients["g"].raw.grad))
    assert slope == pytest.approx(2 * V.dofmap.index_map.size_global * 3.0, rel=1e-12)


# -- solves ----------------------------------------------------------------------------------------------------


def elasticity(comm: MPI.Comm, pinned: bool, d: int = 2) -> tuple[ufl.Form, fem.Function, list]:
    """Free to move, or pinned at one corner and free to turn about it."""
    domain = square(comm, 3) if d == 2 else mesh.create_unit_cube(comm, 2, 2, 2)
    V = fem.functionspace(domain, ("Lagrange", 1, (d,)))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    eps = ufl.sym(ufl.grad(u))
    F = ufl.inner(2.0 * eps + ufl.tr(eps) * ufl.Identity(d), ufl.sym(ufl.grad(v))) * ufl.dx
    F -= ufl.inner(ufl.as_vector((1.0,) + (0.0,) * (d - 1)), v) * ufl.dx
    corner = fem.locate_dofs_geometrical(V, lambda x: np.isclose(x[:d], 0.0).all(axis=0))
    return F, u, [fem.dirichletbc(np.zeros(d), corner, V)] if pinned else []


def scalar(comm: MPI.Comm, nonlinear: bool = False) -> tuple[ufl.Form, fem.Function, list]:
    V = fem.functionspace(square(comm, 3), ("Lagrange", 1))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    factor = 1.0 + ufl.inner(ufl.grad(u), ufl.grad(u)) if nonlinear else 1.0
    return factor * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - v * ufl.dx, u, []


def mixed(comm: MPI.Comm) -> tuple[ufl.Form, fem.Function, list]:
    """Two Poisson problems, of which only the first has boundary values."""
    domain = square(comm, 3)
    P = basix.ufl.element("Lagrange", "triangle", 1)
    W = fem.functionspace(domain, basix.ufl.mixed_element([P, P]))
    w = fem.Function(W, name="w")
    F = ufl.inner(ufl.grad(w), ufl.grad(ufl.TestFunction(W))) * ufl.dx - ufl.TestFunctions(W)[1] * ufl.dx
    V, _ = W.sub(0).collapse()
    domain.topology.create_connectivity(1, 2)
    facets = mesh.exterior_facet_indices(domain.topology)
    dofs = fem.locate_dofs_topological((W.sub(0), V), 1, facets)
    return F, w, [fem.dirichletbc(fem.Function(V), dofs, W.sub(0))]


CG = {"ksp_type": "cg", "pc_type": "jacobi"}
LU = {"ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps"}
SINGULAR: dict[str, tuple[Callable[[MPI.Comm], tuple], dict | None]] = {
    "Poisson": (scalar, None),
    "Poisson by conjugate gradients": (scalar, CG),
    "Poisson by MUMPS": (scalar, LU),
    "elasticity": (lambda comm: elasticity(comm, pinned=False), None),
    "elasticity by conjugate gradients": (lambda comm: elasticity(comm, pinned=False), CG),
    "elasticity that can turn": (lambda comm: elasticity(comm, pinned=True), None),
    "elasticity that can turn, by MUMPS": (lambda comm: elasticity(comm, pinned=True), LU),
    "elasticity in space": (lambda comm: elasticity(comm, pinned=False, d=3), None),
    "elasticity in space that can turn": (lambda comm: elasticity(comm, pinned=True, d=3), None),
    "mixed, in one component": (mixed, None),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_a_form_that_does_not_fix_its_solution_is_refused(comm: MPI.Comm, case: str) -> None:
    build, options = SINGULAR[case]
    F, u, bcs = build(comm)
    u.x.array[:] = 0.25
    model = hf.PhysicalModel(F, u, bcs, petsc_options=options)
    with refused(comm, hf.SolveError, f"the matrix for '{u.name}'", "singular", r"add a Dirichlet condition \(bcs="):
        model.solve()
    assert (u.x.array == 0.25).all()


def test_a_body_that_can_turn_is_not_given_some_solution_by_conjugate_gradients(comm: MPI.Comm) -> None:
    """Loads that would turn it have no equilibrium, which an iterative solver may notice before anyone else."""
    F, u, bcs = elasticity(comm, pinned=True)
    model = hf.PhysicalModel(F, u, bcs, petsc_options=CG)
    with refused(comm, hf.SolveError, "'u'", "singular|did not converge", "bcs=|petsc_options"):
        model.solve()
    assert (u.x.array == 0.0).all()


def test_a_nonlinear_form_that_does_not_fix_its_solution_is_refused(comm: MPI.Comm) -> None:
    F, u, bcs = scalar(comm, nonlinear=True)
    u.x.array[:] = 0.25
    model = hf.PhysicalModel(F, u, bcs)
    with refused(comm, hf.SolveError, "the matrix for 'u' is singular"):
        model.solve()
    assert (u.x.array == 0.25).all()


def test_a_linear_solver_that_does_not_converge_says_so_and_changes_nothing(comm: MPI.Comm) -> None:
    parts = ("the linear solve for 'u' did not converge: DIVERGED_MAX_IT after 1 iterations", "raise ksp_max_it")
    once = {**CG, "ksp_max_it": 1, "ksp_rtol": 1e-12}
    bump = hf.GaussianBumps([2.0], [[0.3, 0.6]], 0.4, background=1.0)
    model = poisson(comm, bump, petsc_options=once)
    model.function.x.array[:] = 0.25
    kept = everything(model)
    with refused(comm, hf.SolveError, *parts):
        model.solve()
    as_before(kept, model)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.ones(3))
    with refused(comm, hf.SolveError, *parts):
        hf.Hyco(model, hf.MLP(2, width=3), data, hf.RandomGhosts(5)).run(3)
    as_before(kept, model)


def test_an_adjoint_solver_that_does_not_converge_says_so_and_changes_nothing(comm: MPI.Comm) -> None:
    bump = hf.GaussianBumps([2.0], [[0.3, 0.6]], 0.4, background=1.0)
    once = {**CG, "ksp_max_it": 1, "ksp_rtol": 1e-12}
    model = poisson(comm, bump, adjoint_petsc_options=once)
    u = model.solve()
    kept = everything(model)
    with refused(comm, hf.SolveError, "did not converge: DIVERGED_MAX_IT after 1 iterations"):
        u.square().sum().backward()
    as_before(kept, model)
    assert bump.amplitudes.grad is None
    np.testing.assert_allclose(model.solve().detach(), u.detach(), rtol=1e-12)


def test_newton_that_does_not_converge_says_so_and_changes_nothing(comm: MPI.Comm) -> None:
    V = fem.functionspace(square(comm, 3), ("Lagrange", 1))
    u, k, v = fem.Function(V, name="u"), fem.Function(V, name="kappa"), ufl.TestFunction(V)
    F = (k + 10 * u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 30.0 * v * ufl.dx
    u.x.array[:] = 0.25
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {k: hf.Scalar(1.0)}, petsc_options={"snes_max_it": 1})
    kept = everything(model)
    with refused(comm, hf.SolveError, "nonlinear solve for 'u' did not converge: DIVERGED_MAX_IT", "raise snes_max_it"):
        model.solve()
    as_before(kept, model)


# -- training --------------------------------------------------------------------------------------------------


def descent(lr: float) -> hf.TorchStep:
    return hf.TorchStep(lambda parameters: torch.optim.SGD(parameters, lr=lr))


@pytest.mark.parametrize("player", ["physics only", "alternating", "simultaneous"])
@pytest.mark.parametrize(
    ("answer", "positive", "parts"),
    [
        (hf.AdamStep(100.0), True, ("the coefficient 'kappa' is not finite and positive: -9", "smaller learning rate")),
        (descent(1e308), False, ("the coefficient 'kappa' is not finite: -?inf at", "smaller learning rate")),
    ],
    ids=["negative", "infinite"],
)
def test_a_step_to_a_coefficient_that_is_not_admissible_is_undone(
    comm: MPI.Comm, folder: Path, player: str, answer: Any, positive: bool, parts: tuple[str, ...]
) -> None:
    model = poisson(comm, positive=positive)
    # Data a hundred times the solution: the first step makes κ much smaller.
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.full(3, 30.0))
    history = write(comm, folder / "history.csv", "of an earlier run\n")
    model.solve()
    kept = everything(model)
    if player == "physics only":
        trainer: Any = hf.PhysicsOnly(model, data, answer)
    else:
        answers = hf.Answers(answer, hf.AdamStep(1e-3))
        trainer = hf.Hyco(model, hf.MLP(2, width=3), data, hf.RandomGhosts(5), answers=answers, schedule=player)
    with refused(comm, hf.CoefficientError, *parts), hf.HistoryFile(history, comm) as file:
        trainer.run(3, callbacks=[file])
    as_before(kept, model)
    comm.Barrier()
    assert history.read_text() == "of an earlier run\n"


def test_data_that_overflow_are_refused_at_the_start(comm: MPI.Comm) -> None:
    model = poisson(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.full(3, 1e200))
    kept = everything(model.coefficients)
    with refused(comm, FloatingPointError, "objective of the physical player is not finite at the start", "check"):
        hf.PhysicsOnly(model, data).run(3)
    as_before(kept, model.coefficients)


# -- files -----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_no_mesh_is_named(comm: MPI.Comm, folder: Path) -> None:
    with refused(comm, OSError, "the sensor file '.*nowhere.csv' cannot be read: No such file"):
        hf.read_sensors(folder / "nowhere.csv", comm)
    pytest.importorskip("gmsh")
    with refused(comm, OSError, "the mesh file '.*nowhere.msh' is not there"):
        hf.read_mesh(folder / "nowhere.msh", comm)
    path = write(comm, folder / "text.msh", "this is no mesh\n")
    with refused(comm, ValueError, "text.msh"):
        hf.read_mesh(path, comm)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(
    comm: MPI.Comm, folder: Path, below: str
) -> None:
    file = write(comm, folder / "results", "a file, not a folder\n")
    out = file / below if below else file
    parts = ("the output folder '.*results.*' cannot be written", "choose another one")
    with refused(comm, OSError, *parts):
        hf.output_folder(out, comm)
    model = poisson(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.ones(3))
    result = hf.PhysicsOnly(model, data).run(1)
    with refused(comm, OSError, *parts):
        result.save(out, comm)
    with refused(comm, OSError, *parts):
        hf.HistoryFile(out / "history.csv", comm)
    with refused(comm, OSError, *parts):
        hf.write_fields(out / "fields.xdmf", [model.function])
    comm.Barrier()
    assert file.read_text() == "a file, not a folder\n"
    assert [p.name for p in folder.iterdir()] == ["results"], "nothing is left behind"
