"""Fields in XDMF, VTX and VTK files: what other programs read is what was written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import h5py
import numpy as np
import pytest
from cases import square
from dolfinx import fem, mesh
from folders import names
from vtx import read_vtx

import hyco_fem as hf
from hyco_fem.io.fields import FieldSeries


def temperature(x: np.ndarray) -> np.ndarray:
    return 1.0 + 2.0 * x[0] - 3.0 * x[0] * x[1]


def displacement(x: np.ndarray) -> np.ndarray:
    return np.stack([x[1], -(x[0] ** 2)])


def fields(comm: MPI.Comm) -> list[fem.Function]:
    domain = square(comm, 3)
    T = fem.Function(fem.functionspace(domain, ("Lagrange", 1)), name="T")
    w = fem.Function(fem.functionspace(domain, ("Lagrange", 1, (2,))), name="w")
    T.interpolate(temperature)
    w.interpolate(displacement)
    return [T, w]


def test_fields_are_written_with_their_values_at_the_nodes(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "new" / "fields.xdmf"
    assert hf.write_fields(path, fields(comm)) == path
    assert names(comm, path.parent) == ["fields.h5", "fields.xdmf"]
    text = path.read_text()
    assert "fields.h5:/Function/T/0" in text
    assert ".part" not in text, "the XDMF names the HDF5 that stands beside it"
    with h5py.File(path.with_suffix(".h5")) as file:
        x, cells = file["Mesh/mesh/geometry"][:], file["Mesh/mesh/topology"][:]
        T, w = file["Function/T/0"][:], file["Function/w/0"][:]
    comm.Barrier()
    assert x.shape == (16, 2)
    np.testing.assert_allclose(T[:, 0], temperature(x.T), atol=1e-14)
    np.testing.assert_allclose(w[:, :2], displacement(x.T).T, atol=1e-14)
    a, b, c = (x[cells[:, i]] for i in range(3))
    areas = 0.5 * np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    np.testing.assert_allclose(areas, 1.0 / 18)
    assert len(cells) == 18


def test_fields_that_cannot_be_written_leave_the_earlier_files(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "fields.xdmf"
    hf.write_fields(path, fields(comm))
    comm.Barrier()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    comm.Barrier()
    T = fields(comm)[0]
    domain = T.function_space.mesh
    P1 = basix.ufl.element("Lagrange", "triangle", 1)

    def function(*element: Any, name: str = "v") -> fem.Function:
        return fem.Function(fem.functionspace(domain, element), name=name)

    mixed = fem.Function(fem.functionspace(domain, basix.ufl.mixed_element([P1, P1])), name="m")
    refused: list[tuple[list[fem.Function], type[Exception], str]] = [
        ([], ValueError, "different names"),
        ([T, function("Lagrange", 1, name="T")], ValueError, r"different names, not \['T', 'T'\]"),
        ([T, fields(comm)[1]], ValueError, "'w' and 'T' are on different meshes"),
        ([T, function("DG", 1)], ValueError, r"'v' jumps between cells, which XDMF cannot hold: write a \.bp"),
        ([T, mixed], ValueError, r"'m' is of a mixed space: write its parts"),
        ([function("Lagrange", 1, (2,)).sub(0)], ValueError, r"is part of another Function: write its \.collapse"),
    ]
    for functions, error, message in refused:
        with pytest.raises(error, match=message):
            hf.write_fields(path, functions)
    with pytest.raises(ValueError, match=r"ends in \.xdmf, \.bp, \.pvd, not 'fields\.h5'"):
        hf.write_fields(folder / "fields.h5", [T])
    assert names(comm, folder) == ["fields.h5", "fields.xdmf"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    comm.Barrier()
    with pytest.raises(OSError, match="output folder"):
        hf.write_fields(path / "below.xdmf", [T])
    blocked = folder / "blocked.xdmf"
    if comm.rank == 0:
        (blocked / "in the way").mkdir(parents=True)
    comm.Barrier()
    with pytest.raises(OSError, match="directory"):
        hf.write_fields(blocked, [T])
    assert ".blocked.xdmf.part" not in names(comm, folder)


# -- what other programs see -------------------------------------------------------------------------------------


def square_of_x(x: np.ndarray) -> np.ndarray:
    return x[0] ** 2 - x[0] * x[1]


def swirl(x: np.ndarray) -> np.ndarray:
    return np.stack([x[1] ** 2, -x[0] * x[1]])


def quadratic(comm: MPI.Comm, cell: mesh.CellType = mesh.CellType.triangle) -> list[fem.Function]:
    """P2 scalar, P2 vector and a P1 scalar on the unit square."""
    domain = square(comm, 3, cell)
    u, w, p = (
        fem.Function(fem.functionspace(domain, element), name=name)
        for name, element in (("u", ("Lagrange", 2)), ("w", ("Lagrange", 2, (2,))), ("p", ("Lagrange", 1)))
    )
    u.interpolate(square_of_x)
    w.interpolate(swirl)
    p.interpolate(lambda x: 2.0 * x[0] - x[1])
    return [u, w, p]


@pytest.mark.parametrize("cell", [mesh.CellType.triangle, mesh.CellType.quadrilateral])
def test_vtk_reads_fields_of_degree_two_without_loss(comm: MPI.Comm, folder: Path, cell: mesh.CellType) -> None:
    """Also at points that are no nodes: VTK has the quadratic polynomials of the cells."""
    path = hf.write_fields(folder / "fields.pvd", quadratic(comm, cell))
    comm.Barrier()
    pyvista = pytest.importorskip("pyvista")
    read = pyvista.read(path).combine()
    # VTK is told which cells are another rank's.
    ghosts = np.count_nonzero(read.cell_data["vtkGhostType"]) if "vtkGhostType" in read.cell_data else 0
    assert read.n_cells - ghosts == (18 if cell == mesh.CellType.triangle else 9)
    x = read.points.T
    np.testing.assert_allclose(read["u"], square_of_x(x), atol=1e-14)
    np.testing.assert_allclose(read["w"][:, :2], swirl(x).T, atol=1e-14)
    np.testing.assert_allclose(read["p"], 2.0 * x[0] - x[1], atol=1e-14)
    if comm.size > 1:  # VTK's probe leaves out what lies in a ghost, and its extraction of the others has crashed once
        return
    inside = np.random.default_rng(0).uniform(0.01, 0.99, (20, 3)) * [1.0, 1.0, 0.0]
    probed = pyvista.PolyData(inside).sample(read)
    assert probed["vtkValidPointMask"].all()
    np.testing.assert_allclose(probed["u"], square_of_x(inside.T), atol=1e-6)


def test_vtx_holds_fields_of_degree_two_at_their_nodes(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "fields.bp"
    hf.write_fields(path, quadratic(comm))
    assert hf.write_fields(path, quadratic(comm)) == path, "a folder takes the place of another"
    assert names(comm, folder) == ["fields.bp"]
    ((time, found),) = read_vtx(path, ["geometry", "u", "w", "p"], comm.size)
    x = found["geometry"].reshape(-1, 3).T
    assert time == 0.0
    assert x.shape[1] >= 49
    np.testing.assert_allclose(found["u"], square_of_x(x), atol=1e-14)
    np.testing.assert_allclose(found["w"].reshape(-1, 3)[:, :2], swirl(x).T, atol=1e-14)
    np.testing.assert_allclose(found["p"], 2.0 * x[0] - x[1], atol=1e-14)


def test_vtk_reads_vtx_where_it_can(comm: MPI.Comm, folder: Path) -> None:
    """Debian 13's VTK cannot; newer ones are built with ADIOS2."""
    adios = pytest.importorskip("vtkmodules.vtkIOADIOS2")
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkParallelCore import vtkMultiProcessController
    from vtkmodules.vtkParallelMPI import vtkMPIController

    path = hf.write_fields(folder / "fields.bp", quadratic(comm))
    comm.Barrier()
    controller = vtkMPIController()
    controller.Initialize()
    vtkMultiProcessController.SetGlobalController(controller)
    reader = adios.vtkADIOS2VTXReader()
    reader.SetFileName(str(path))
    reader.Update()
    blocks = reader.GetOutputDataObject(0)
    iterator = blocks.NewIterator()
    count = 0
    while not iterator.IsDoneWithTraversal():
        piece = iterator.GetCurrentDataObject()
        x = vtk_to_numpy(piece.GetPoints().GetData()).T
        np.testing.assert_allclose(vtk_to_numpy(piece.GetPointData().GetArray("u")), square_of_x(x), atol=1e-14)
        count += piece.GetNumberOfCells()
        iterator.GoToNextItem()
    assert comm.allreduce(count) == 18 or comm.size > 1, "DOLFINx writes ghost cells too"
    vtkMultiProcessController.SetGlobalController(None)


def test_fields_that_jump_stay_as_they_are(comm: MPI.Comm, folder: Path) -> None:
    """Constants in the cells and Raviart–Thomas fields, beside continuous ones."""
    u, *_ = quadratic(comm)
    domain = u.function_space.mesh
    q = fem.Function(fem.functionspace(domain, ("DG", 0)), name="q")
    q.interpolate(lambda x: np.where(x[0] < 0.5, 1.0, 2.0))
    s = fem.Function(fem.functionspace(domain, ("RT", 1)), name="s")
    s.interpolate(lambda x: np.stack([1.0 + x[0], x[1]]))
    hf.write_fields(folder / "fields.bp", [u, q, s])
    ((_, found),) = read_vtx(folder / "fields.bp", ["geometry", "u", "q", "s"], comm.size)
    x = found["geometry"].reshape(-1, 3).T
    assert x.shape[1] == 18 * 6 or comm.size > 1, "no nodes are shared, but for ghosts"
    np.testing.assert_allclose(found["u"], square_of_x(x), atol=1e-14)
    np.testing.assert_allclose(found["s"].reshape(-1, 3)[:, :2], np.stack([1.0 + x[0], x[1]], axis=1), atol=1e-14)
    assert set(np.round(found["q"], 12)) == {1.0, 2.0}
    hf.write_fields(folder / "cells.xdmf", [q])
    comm.Barrier()
    with h5py.File(folder / "cells.h5") as file:
        assert sorted(set(file["Function/q/0"][:, 0])) == [1.0, 2.0]
        assert len(file["Function/q/0"]) == 18


def test_xdmf_has_fields_of_degree_two_at_the_nodes_of_the_mesh(comm: MPI.Comm, folder: Path) -> None:
    hf.write_fields(folder / "fields.xdmf", quadratic(comm))
    comm.Barrier()
    with h5py.File(folder / "fields.h5") as file:
        x = file["Mesh/mesh/geometry"][:].T
        assert x.shape[1] == 16
        np.testing.assert_allclose(file["Function/u/0"][:, 0], square_of_x(x), atol=1e-14)


def test_vtk_reads_xdmf_where_it_can(comm: MPI.Comm, folder: Path) -> None:
    """Debian 13's VTK cannot; newer ones have the reader that ParaView calls Xdmf3."""
    xdmf = pytest.importorskip("vtkmodules.vtkIOXdmf3")
    pyvista = pytest.importorskip("pyvista")
    u, *_ = quadratic(comm)
    hf.write_fields(folder / "u.xdmf", growing(u), TIMES)
    comm.Barrier()
    reader = xdmf.vtkXdmf3Reader()
    reader.SetFileName(str(folder / "u.xdmf"))
    for t in TIMES:
        reader.UpdateTimeStep(t)
        read = pyvista.wrap(reader.GetOutputDataObject(0))
        assert (read.n_cells, read.n_points) == (18, 16)
        np.testing.assert_allclose(read["u"].ravel(), (1.0 + t) * square_of_x(read.points.T), atol=1e-6)


# -- in time -----------------------------------------------------------------------------------------------------

TIMES = [0.0, 0.25, 1.0]


def growing(u: fem.Function) -> Any:
    """x² − xy times 1 + t, in the same Function."""
    start = u.x.array.copy()
    for t in TIMES:
        u.x.array[:] = (1.0 + t) * start
        yield [u]


@pytest.mark.parametrize("ending", ["xdmf", "bp", "pvd"])
def test_a_series_has_every_time(comm: MPI.Comm, folder: Path, ending: str) -> None:
    path = folder / f"u.{ending}"
    hf.write_fields(path, growing(quadratic(comm)[0]), TIMES)
    comm.Barrier()
    if ending == "xdmf":
        with h5py.File(folder / "u.h5") as file:
            x = file["Mesh/mesh/geometry"][:].T
            for name, t in (("0", 0.0), ("0_25", 0.25), ("1", 1.0)):
                np.testing.assert_allclose(
                    file[f"Function/u/{name}"][:, 0], (1.0 + t) * square_of_x(x), atol=1e-14, err_msg=str(t)
                )
        assert all(f'<Time Value="{t}" />' in path.read_text() for t in ("0", "0.25", "1"))
        comm.Barrier()
    elif ending == "bp":
        steps = read_vtx(path, ["geometry", "u"], comm.size)
        assert [t for t, _ in steps] == TIMES
        x = steps[0][1]["geometry"].reshape(-1, 3).T
        for t, found in steps:
            np.testing.assert_allclose(found["u"], (1.0 + t) * square_of_x(x), atol=1e-14)
    else:
        reader = pytest.importorskip("pyvista").get_reader(str(path))
        assert reader.time_values == TIMES
        for t in TIMES:
            reader.set_active_time_value(t)
            read = reader.read().combine()
            np.testing.assert_allclose(read["u"], (1.0 + t) * square_of_x(read.points.T), atol=1e-14)


@pytest.mark.parametrize("ending", ["xdmf", "bp", "pvd"])
def test_one_function_needs_no_list(comm: MPI.Comm, folder: Path, ending: str) -> None:
    u = quadratic(comm)[0]
    hf.write_fields(folder / f"a.{ending}", u)
    hf.write_fields(folder / f"b.{ending}", (u for _ in TIMES), TIMES)
    hf.write_fields(folder / f"c.{ending}", u, [1.0])
    with FieldSeries(folder / f"d.{ending}", u) as series:
        series.write(0.5)
    assert {f"{name}.{ending}" for name in "abcd"} <= set(names(comm, folder))


def test_a_shorter_series_leaves_nothing_of_a_longer_one(comm: MPI.Comm, folder: Path) -> None:
    u = quadratic(comm)[0]
    hf.write_fields(folder / "other" / "u.pvd", u)
    for name in ("u", "u1", "u"):
        hf.write_fields(folder / f"{name}.pvd", [[u]] * 3, TIMES)
    hf.write_fields(folder / "u.pvd", u)
    kept = [n for n in names(comm, folder) if n.startswith("u") and not n.startswith("u1")]
    assert kept == names(comm, folder / "other")
    assert sum(n.startswith("u1") for n in names(comm, folder)) == 1 + (len(kept) - 1) * 3


@pytest.mark.parametrize("ending", ["xdmf", "bp", "pvd"])
def test_files_that_name_each_other_are_replaced_together(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """An error when the last file is moved leaves all that was there, and nothing else."""
    path, u = folder / f"u.{ending}", quadratic(comm)[0]

    def content() -> dict[str, bytes]:
        comm.Barrier()
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        comm.Barrier()
        return found

    hf.write_fields(path, u)
    before, replace = content(), os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == path and ".part" in str(source) and ".before" not in str(source):
            raise PermissionError("read-only")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    u.x.array[:] += 1.0
    with pytest.raises(OSError, match="read-only"):
        hf.write_fields(path, [[u]] * 3, TIMES)
    monkeypatch.undo()
    assert content() == before
    hf.write_fields(path, u)
    assert content() != before


def test_states_may_be_functions_of_their_own(comm: MPI.Comm, folder: Path) -> None:
    states = []
    for t in TIMES:
        u = quadratic(comm)[0] if not states else fem.Function(states[0][0].function_space, name="u")
        u.interpolate(lambda x, t=t: t + square_of_x(x))
        states.append([u])
    hf.write_fields(folder / "u.bp", states, TIMES)
    for t, found in read_vtx(folder / "u.bp", ["u"], comm.size):
        assert found["u"].min() == pytest.approx(t - 0.25, abs=1e-14)
        assert found["u"].max() == pytest.approx(t + 1.0, abs=1e-14)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 0.0, 1.0], "must ascend: 0 comes after 0"),
        ([0.0, np.nan, 1.0], "must ascend: nan"),
        ([0.0, 1.0, 2.0, 3.0], "fewer states than the 4 times: none for t = 3"),
        ([0.0, 1.0], "more states than the 2 times"),
        ([], "for each of the times"),
    ],
)
def test_times_that_do_not_fit_the_states_leave_the_file_that_was_there(
    comm: MPI.Comm, folder: Path, times: list[float], message: str
) -> None:
    path = folder / "u.xdmf"
    u = quadratic(comm)[0]
    hf.write_fields(path, [u])
    comm.Barrier()
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    comm.Barrier()
    with pytest.raises(ValueError, match=message):
        hf.write_fields(path, growing(u), times)
    assert names(comm, folder) == ["u.h5", "u.xdmf"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_later_states_have_the_fields_of_the_first(comm: MPI.Comm, folder: Path) -> None:
    u, _, p = quadratic(comm)
    for later, message in (([p], r"are \['p'\], not \['u'\]"), ([quadratic(comm)[0]], "'u' is in another space")):
        with pytest.raises(ValueError, match=message):
            hf.write_fields(folder / "u.bp", [[u], later], [0.0, 1.0])
    assert names(comm, folder) == []


@pytest.mark.parametrize("ending", ["xdmf", "bp", "pvd"])
def test_a_series_that_is_not_at_its_end_is_not_there(comm: MPI.Comm, folder: Path, ending: str) -> None:
    u, *_ = quadratic(comm)
    series = FieldSeries(folder / f"u.{ending}", [u])
    with pytest.raises(RuntimeError, match="use FieldSeries in a `with` block"):
        series.write(0.0)
    with series:
        series.write(0.0)
        assert names(comm, folder) == [f".u.{ending}.part"]
    assert f"u.{ending}" in names(comm, folder)
    assert f".u.{ending}.part" not in names(comm, folder)
