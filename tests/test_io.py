"""Files: what is read is checked by name, what is written is whole or not there, and all ranks hear of errors."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

from mpi4py import MPI

import h5py
import numpy as np
import pytest
import torch
import ufl
from cases import square
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.files import replace_file
from hyco_fem.parallel import sum_array

MESHES = Path(__file__).parents[1] / "meshes"


def put(comm: MPI.Comm, path: Path, content: str | bytes) -> Path:
    """Rank 0 writes a file; it is there on all ranks afterwards."""
    if comm.rank == 0:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    comm.Barrier()
    return path


def names(comm: MPI.Comm, folder: Path) -> list[str]:
    """What is in a folder, when all ranks are here."""
    comm.Barrier()
    found = sorted(p.name for p in folder.iterdir())
    comm.Barrier()
    return found


# -- whole or not there ----------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(comm: MPI.Comm, folder: Path) -> None:
    own = folder / f"{comm.rank}"
    own.mkdir()
    path = own / "result.txt"
    replace_file(path, lambda p: p.write_text("first"))
    assert path.read_text() == "first"

    def fails(part: Path) -> None:
        assert part.suffix == ".txt", "writers choose the format by the ending"
        part.write_text("hal")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        replace_file(path, fails)
    assert path.read_text() == "first"
    replace_file(path, lambda p: p.write_text("second"))
    assert path.read_text() == "second"
    assert [p.name for p in own.iterdir()] == ["result.txt"]


def test_an_output_folder_is_made_or_refused_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    made = hf.output_folder(folder / "a" / "b", comm)
    comm.Barrier()
    assert made.is_dir()
    assert hf.output_folder(str(made), comm) == made, "once more does no harm"
    assert names(comm, made) == []
    file = put(comm, folder / "file", "")
    for taken in (file, file / "below"):
        with pytest.raises(OSError, match=r"output folder '.*file.*' cannot be written \(.+\); choose another one"):
            hf.output_folder(taken, comm)


# -- sensors ---------------------------------------------------------------------------------------------------


def test_a_sensor_table_is_read_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    text = "\ufeff# by hand\n\nx, y ,value,noise_std,name\n0.25,0.5, 1e-1,0.02,north\n# spare\n0.75,0.125,-2,0.5,east\n"
    sensors = hf.read_sensors(put(comm, folder / "s.csv", text), comm)
    np.testing.assert_array_equal(sensors.x, [[0.25, 0.5], [0.75, 0.125]])
    np.testing.assert_array_equal(sensors.values, [0.1, -2.0])
    np.testing.assert_array_equal(sensors.noise_std, [0.02, 0.5])
    assert sensors.lines == (4, 6)
    data = sensors.on(square(comm, 2))
    np.testing.assert_array_equal(data.points.gather(data.values), sensors.values)
    np.testing.assert_array_equal(data.points.gather(data.noise_std), sensors.noise_std)
    np.testing.assert_array_equal(data.points.gather(data.points.x), sensors.x)


def test_columns_may_stand_in_any_order_and_hold_vectors_in_space(comm: MPI.Comm, folder: Path) -> None:
    header = ",".join(f"value_{i}" for i in range(10, -1, -1)) + ",z,x,y\n"
    row = ",".join(str(i) for i in range(10, -1, -1)) + ",3,1,2\r\n"
    sensors = hf.read_sensors(put(comm, folder / "s.csv", header + row), comm)
    np.testing.assert_array_equal(sensors.x, [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(sensors.values, [np.arange(11.0)])
    assert sensors.noise_std is None
    sensors = hf.read_sensors(put(comm, folder / "t.csv", "value,x\n5,1\n"), comm)
    np.testing.assert_array_equal(sensors.x, [[1.0]])
    np.testing.assert_array_equal(sensors.values, [5.0])


BAD_TABLES: dict[str, tuple[str | bytes, str]] = {
    "NaN": ("x,y,value\n0,0,1\n0,0,nan\n", r"s\.csv, line 3, column 'value': nan is not finite"),
    "infinite": ("# c\nx,y,value\n0,inf,1\n", r"line 3, column 'y': inf is not finite"),
    "text": ("x,y,value\n0,0,1\n\n0,zero,1\n", r"line 4, column 'y': 'zero' is not a number"),
    "nothing": ("x,y,value\n0,,1\n", r"line 2, column 'y': '' is not a number"),
    "decimal comma": ("x,y,value\n0,5,0,5,1\n", r"line 2: 5 entries for 3 columns"),
    "short row": ("x,y,value,noise_std\n0,0,1,1\n0,0,1\n", r"line 3: 3 entries for 4 columns"),
    "zero noise": ("x,y,value,noise_std\n0,0,1,1\n#\n0,0,1,0\n", r"line 4, column 'noise_std': 0 is not positive"),
    "negative noise": ("x,y,value,noise_std\n0,0,1,-2\n", r"line 2, column 'noise_std': -2 is not positive"),
    "NaN noise": ("x,y,value,noise_std\n0,0,1,NaN\n", r"line 2, column 'noise_std': NaN is not finite"),
    "no value": ("x,y,temperature\n0,0,1\n", r"the header needs .* it has \['x', 'y', 'temperature'\]"),
    "no x": ("y,value\n0,1\n", r"the header needs x"),
    "z without y": ("x,z,value\n0,0,1\n", r"the header needs x"),
    "components from one": ("x,y,value_1,value_2\n0,0,1,1\n", r"the header needs .*value_0, value_1, …"),
    "not a component": ("x,y,value_0,value_std\n0,0,1,1\n", r"the header needs .*value_0, value_1, …"),
    "semicolons": ("x;y;value\n0;0;1\n", r"it has \['x;y;value'\]"),
    "no header": ("0.1,0.2,1.0\n0.3,0.4,1.0\n", r"the header needs"),
    "twice": ("x,y,value,y\n0,0,1,0\n", r"a column stands twice"),
    "header only": ("x,y,value\n", r"has no sensors: it needs a header line and one line a sensor"),
    "empty": ("", r"s\.csv has no sensors"),
    "comments only": ("# x\n# y\n# z\n", r"has no sensors"),
    "not UTF-8": ("# Wärme\nx,y,value\n0,0,1\n".encode("latin-1"), r"s\.csv is not a text file in UTF-8"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_bad_sensor_table_is_refused_by_line_and_column(comm: MPI.Comm, folder: Path, what: str) -> None:
    content, message = BAD_TABLES[what]
    path = put(comm, folder / "s.csv", content)
    with pytest.raises(ValueError, match=message):
        hf.read_sensors(path, comm)


def test_a_sensor_file_that_is_not_there_is_an_error_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    for path in (folder / "none.csv", folder):
        with pytest.raises(OSError, match=r"the sensor file '.*' cannot be read: .*directory"):
            hf.read_sensors(path, comm)


def test_sensors_outside_the_mesh_are_named_by_line_and_place(comm: MPI.Comm, folder: Path) -> None:
    rows = "".join(f"{0.5 if i % 2 else 2 + i},0.25,1\n" for i in range(14))
    sensors = hf.read_sensors(put(comm, folder / "s.csv", "# head\nx,y,value\n" + rows), comm)
    with pytest.raises(hf.OutsideError) as caught:
        sensors.on(square(comm, 2))
    text = str(caught.value)
    assert text.startswith(f"{folder / 's.csv'}: 7 of 14 sensors lie outside the mesh: line 3: (2, 0.25); line 5: (4, ")
    assert "line 11: (10, 0.25); …; correct or delete" in text, "five are enough"
    assert caught.value.indices == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("noise", [None, 0.125, np.linspace(1e-12, 2.0, 5)], ids=["no noise", "one", "each"])
def test_a_written_table_is_read_again(comm: MPI.Comm, folder: Path, components: int, noise: Any) -> None:
    rng = np.random.default_rng(0)
    d = 3 if components else 2
    x, y = rng.standard_normal((5, d)), 1e7 * rng.standard_normal((5, components) if components else 5)
    path = folder / "s.csv"
    hf.write_sensors(path, torch.from_numpy(x), y, noise, "κ in W/(m K)\nsecond line", comm)
    sensors = hf.read_sensors(path, comm)
    np.testing.assert_allclose(sensors.x, x, rtol=1e-9)
    np.testing.assert_allclose(sensors.values, y, rtol=1e-9)
    if noise is None:
        assert sensors.noise_std is None
    else:
        np.testing.assert_allclose(sensors.noise_std, np.broadcast_to(noise, 5), rtol=1e-9)
    assert path.read_text(encoding="utf-8").startswith("# κ in W/(m K)\n# second line\nx,y")
    assert sensors.lines == (4, 5, 6, 7, 8)
    for wrong in ((x[:4], y, 1.0), (x, y[:4], noise), (x, y, [1.0, 2.0]), (x[:, 0], y, 1.0)):
        with pytest.raises(ValueError, match=r"x must be \(n, d\), values .* shapes are \("):
            hf.write_sensors(path, *wrong, comm=comm)
    assert names(comm, folder) == ["s.csv"]
    np.testing.assert_array_equal(hf.read_sensors(path, comm).values, sensors.values)


# -- history ---------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record(number: int) -> hf.Record:
    return hf.Record(number, misfit_physical=0.5 / (number + 1), parameters={"κ": np.array([1.0, number])})


def test_a_history_is_on_disk_line_by_line(comm: MPI.Comm, folder: Path) -> None:
    path = put(comm, folder / "history.csv", "the run before\n")
    with hf.HistoryFile(path, comm) as history:
        for k in range(3):
            assert history(record(k)) is None, "it never wishes to stop"
            if comm.rank == 0:
                assert len(rows(folder / "history.csv.running")) == k + 1
                assert path.read_text() == "the run before\n"
    comm.Barrier()
    found = rows(path)
    assert [r["round"] for r in found] == ["0", "1", "2"]
    assert [float(r["misfit_physical"]) for r in found] == [0.5, 0.25, 0.5 / 3]
    assert [r["κ[1]"] for r in found] == ["0.0", "1.0", "2.0"]
    assert names(comm, folder) == ["history.csv"]
    with history:
        history(hf.Record(7))
    comm.Barrier()
    assert [r["round"] for r in rows(path)] == ["7"], "a file may be used again, with other columns"


def test_an_error_in_the_block_leaves_the_earlier_history_and_what_was_written(comm: MPI.Comm, folder: Path) -> None:
    path = put(comm, folder / "history.csv", "the run before\n")

    def fails() -> None:
        with hf.HistoryFile(path, comm) as history:
            history(record(0))
            history(record(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert names(comm, folder) == ["history.csv", "history.csv.running"]
    assert path.read_text() == "the run before\n"
    assert len(rows(folder / "history.csv.running")) == 2


def test_a_history_that_cannot_be_written_is_an_error_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    file = put(comm, folder / "file", "")
    with pytest.raises(OSError, match="output folder"):
        hf.HistoryFile(file / "history.csv", comm)
    path = folder / "history.csv"
    history = hf.HistoryFile(path, comm)

    def blocked() -> None:
        with history:
            history(record(0))
            if comm.rank == 0:
                (path / "in the way").mkdir(parents=True)  # so the last renaming fails, on rank 0 only

    with pytest.raises(OSError, match="directory"):
        blocked()
    comm.Barrier()
    assert len(rows(folder / "history.csv.running")) == 1, "what was written stays"
    if comm.rank == 0:
        with pytest.raises(RuntimeError, match="use HistoryFile in a `with` block"):
            history(record(1))


# -- progress --------------------------------------------------------------------------------------------------


def test_progress_in_a_log_is_a_line_now_and_then(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    with hf.TextProgress(2, comm, "> ") as shown:
        for k in range(4):
            assert shown(hf.Record(k, misfit_physical=10.0**k, gradient_physical=0.25)) is None
    out = capsys.readouterr().out
    if comm.rank > 0:
        assert out == ""
        return
    first, second = out.splitlines()
    assert first.startswith("> round     0  L_phy 1.000e+00  |∇θ| 2.500e-01  ")
    assert second.startswith("> round     2  L_phy 1.000e+02  |∇θ| 2.500e-01  ")
    assert second.endswith(" s")
    assert "L_syn" not in out, "what is not a number is not shown"


def test_progress_on_a_terminal_is_a_bar_of_rank_zero(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    with hf.BarProgress(3, comm, "fitting") as shown:
        for k in range(3):
            assert shown(hf.Record(k, misfit_synthetic=0.5, interaction=0.125 * k, gradient_synthetic=1.0)) is None
    out = capsys.readouterr().out
    if comm.rank > 0:
        assert out == ""
        return
    for part in ("fitting", "3/3", "L_syn 5.000e-01", "I 2.500e-01"):
        assert part in out
    assert "∇" not in out


def test_progress_is_a_bar_only_for_who_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID")
    for name in launchers:
        monkeypatch.delenv(name, raising=False)
    alone = MPI.COMM_SELF
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(hf.progress(10, alone), hf.BarProgress)
    for name in launchers:
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert isinstance(hf.progress(10, alone), hf.TextProgress), f"under a launcher ({name})"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    shown = hf.progress(1200, alone, lines=6)
    assert isinstance(shown, hf.TextProgress)
    assert shown.every == 200
    assert hf.progress(3, alone).every == 1


# -- meshes ----------------------------------------------------------------------------------------------------


def measures(read: hf.MeshAndTags) -> dict[str, float]:
    """Area or length of every physical group."""
    found = {}
    for name, (dim, tag) in read.names.items():
        kind, tags = ("dx", read.cell_tags) if dim == 2 else ("ds", read.facet_tags)
        one = fem.Constant(read.mesh, 1.0)
        local = fem.assemble_scalar(fem.form(one * ufl.Measure(kind, read.mesh, subdomain_data=tags)(tag)))
        found[name] = float(sum_array(read.mesh.comm, np.array([local]))[0])
    return found


@pytest.mark.parametrize("coarse", [False, True])
def test_a_gmsh_file_is_read_with_its_physical_groups(comm: MPI.Comm, coarse: bool) -> None:
    """The plate is 2 × 1; its hole is a regular polygon in a circle of radius 0.2."""
    if coarse:
        read = hf.read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=0.2)
        assert 0.1 < hf.mesh_size(read.mesh) < 0.35
    else:
        read = hf.read_mesh(str(MESHES / "plate_with_hole.msh"), comm)
        assert read.mesh.geometry.index_map().size_global == 5425
    assert (read.mesh.geometry.dim, read.mesh.topology.dim, read.mesh.comm.size) == (2, 2, comm.size)
    assert read.names == {"plate": (2, 1), "left": (1, 2), "right": (1, 3), "insulated": (1, 4), "hole": (1, 5)}
    found = measures(read)
    edges = read.facet_tags.find(read.names["hole"][1])
    n = comm.allreduce(int(np.sum(edges < read.mesh.topology.index_map(1).size_local)))
    assert (10 if coarse else 40) < n < (20 if coarse else 80)
    assert [found[k] for k in ("left", "right", "insulated")] == pytest.approx([1.0, 1.0, 4.0], rel=1e-12)
    assert found["hole"] == pytest.approx(n * 0.4 * math.sin(math.pi / n), rel=1e-6)
    assert found["plate"] == pytest.approx(2.0 - n * 0.02 * math.sin(2 * math.pi / n), rel=1e-6)
    x = mesh.compute_midpoints(read.mesh, 1, read.facet_tags.find(read.names["right"][1]))
    np.testing.assert_allclose(x[:, 0], 2.0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.msh", "hello\n", r"gmsh cannot read '.*a\.msh': .*syntax error"),
        ("a.msh", "$MeshFormat\n4.1 0 8\n$EndMeshFormat\n$Nodes\n", r"gmsh cannot read '.*a\.msh': "),
        ("a.geo", "Rectangle(1) = ;", r"gmsh cannot read '.*a\.geo': .*syntax error"),
        ("a.msh", "", r"'.*a\.msh' has no physical group of dimension 2; name the domain"),
        ("a.geo", "Point(1) = {0, 0, 0, 1};", r"'.*a\.geo' has no physical group of dimension 2"),
    ],
)
def test_a_file_that_is_no_mesh_is_an_error_on_all_ranks(
    comm: MPI.Comm, folder: Path, name: str, content: str, message: str
) -> None:
    path = put(comm, folder / name, content)
    with pytest.raises(ValueError, match=message):
        hf.read_mesh(path, comm)


def test_a_mesh_that_is_not_there_or_a_size_that_is_none_is_refused(comm: MPI.Comm, folder: Path) -> None:
    for path in (folder / "none.msh", folder):
        with pytest.raises(OSError, match=r"the mesh file '.*' is not there"):
            hf.read_mesh(path, comm)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="a positive length"):
            hf.read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=wrong)
    with pytest.raises(ValueError, match=r"mesh size of a \.geo file"):
        hf.read_mesh(MESHES / "plate_with_hole.msh", comm, mesh_size=0.3)
    with pytest.raises(ValueError, match="no constant named 'grade'"):
        hf.read_mesh(MESHES / "l_shape.geo", comm, constants={"grade": 2.0})
    with pytest.raises(ValueError, match="must be a finite number"):
        hf.read_mesh(MESHES / "l_shape.geo", comm, constants={"grading": float("nan")})


def test_constants_of_a_geo_file_hold_for_one_reading(comm: MPI.Comm) -> None:
    """Ten times finer at the corner; and the next reading has the file's own again."""

    def cells(**given: Any) -> int:
        return hf.read_mesh(MESHES / "l_shape.geo", comm, **given).mesh.topology.index_map(2).size_global

    own = cells()
    assert cells(mesh_size=0.3) < own / 4
    assert cells(mesh_size=0.3, constants={"grading": 10.0}) > 1.5 * cells(mesh_size=0.3)
    assert cells() == own


# -- fields ----------------------------------------------------------------------------------------------------


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

    def function(*element: Any, name: str = "v") -> fem.Function:
        return fem.Function(fem.functionspace(domain, element), name=name)

    refused: list[tuple[list[fem.Function], type[Exception], str]] = [
        ([T, function("Lagrange", 2)], ValueError, r"interpolate 'v' into \('Lagrange', 1\) first"),
        ([], ValueError, "different names"),
        ([T, function("Lagrange", 1, name="T")], ValueError, r"different names, not \['T', 'T'\]"),
        ([T, fields(comm)[1]], ValueError, "'w' and 'T' are on different meshes"),
        ([T, function("DG", 1)], RuntimeError, "."),  # refused by DOLFINx, when T is in the new file already
    ]
    for functions, error, message in refused:
        with pytest.raises(error, match=message):
            hf.write_fields(path, functions)
    with pytest.raises(ValueError, match=r"ends in \.xdmf, not 'fields\.h5'"):
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
    assert ".blocked.part" not in names(comm, folder)


# -- pictures --------------------------------------------------------------------------------------------------


def test_a_raster_shows_the_field_at_the_centres_of_its_pixels(comm: MPI.Comm) -> None:
    domain = mesh.create_rectangle(comm, [[-1.0, 0.0], [3.0, 2.0]], [4, 3])
    raster = hf.Raster(domain, 20)
    assert raster.shape == (10, 20)
    assert raster.extent == (-1.0, 3.0, 0.0, 2.0)
    column, row = np.meshgrid(np.arange(20), np.arange(10))
    expected = (-1.0 + (column + 0.5) * 0.2) - 2.0 * (row + 0.5) * 0.2
    u = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    u.interpolate(lambda x: x[0] - 2.0 * x[1])
    np.testing.assert_allclose(raster.image(u), expected, atol=1e-13)
    np.testing.assert_allclose(raster.image(lambda x: x[:, 0] - 2.0 * x[:, 1]), expected, atol=1e-13)
    net = hf.MLP(2, 1, width=3, depth=1)
    centres = torch.from_numpy(np.stack([-1.0 + (column + 0.5) * 0.2, (row + 0.5) * 0.2], axis=-1).reshape(-1, 2))
    np.testing.assert_allclose(raster.image(net).ravel(), net(centres).detach().numpy(), atol=1e-13)


def test_pixels_outside_the_mesh_are_empty(comm: MPI.Comm) -> None:
    plate = hf.read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=0.2).mesh
    raster = hf.Raster(plate, 40)
    image = raster.image(lambda x: x[:, 0])
    column, row = np.meshgrid(np.arange(40), np.arange(20))
    distance = np.hypot((column + 0.5) * 0.05 - 0.7, (row + 0.5) * 0.05 - 0.5)
    assert np.isnan(image[distance < 0.19]).all()
    assert np.isfinite(image[distance > 0.2]).all()


def test_a_raster_takes_scalar_fields_on_meshes_of_the_plane(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    raster = hf.Raster(domain, 4)
    vector = fem.Function(fem.functionspace(domain, ("Lagrange", 1, (2,))))
    for field in (vector, hf.MLP(2, 2, width=3, depth=1)):
        with pytest.raises(ValueError, match=r"a picture shows a scalar field, not one with values of shape \(2,\)"):
            raster.image(field)
    with pytest.raises(ValueError, match="2D mesh, not a 3D one"):
        hf.Raster(mesh.create_unit_cube(comm, 1, 1, 1))

    def fails(x: torch.Tensor) -> torch.Tensor:
        if comm.rank == comm.size - 1:
            raise ValueError("not here")
        return x[:, 0]

    with pytest.raises(ValueError, match="not here"):
        raster.image(fails)


def test_a_figure_is_a_png_or_is_not_there(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "picture.png"
    raster = hf.Raster(square(comm, 2), 4)
    image = raster.image(lambda x: x[:, 0] + 10.0 * x[:, 1])
    drawn: list[Any] = []

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        hf.show(ax, raster, image, "κ", vmax=20.0)
        drawn.append(ax)

    hf.save_figure(comm, path, draw, size=(3.0, 2.0))
    comm.Barrier()
    assert len(drawn) == (1 if comm.rank == 0 else 0)
    if comm.rank == 0:
        from matplotlib.image import imread

        assert imread(path).shape == (260, 390, 4), "130 pixels an inch"
        shown = drawn[0].images[0]
        np.testing.assert_array_equal(shown.get_array(), image)
        assert tuple(shown.get_extent()) == (0.0, 1.0, 0.0, 1.0)
        assert (shown.origin, drawn[0].get_title()) == ("lower", "κ")
        assert shown.get_clim() == (image.min(), 20.0)
    before = path.read_bytes()

    def fails(figure: Any) -> None:
        raise ValueError("nothing to draw")

    with pytest.raises(ValueError, match="nothing to draw"):
        hf.save_figure(comm, path, fails, size=(3.0, 2.0))
    with pytest.raises(OSError, match=r"."):
        hf.save_figure(comm, folder / "none" / "picture.png", draw, size=(1.0, 1.0))
    assert path.read_bytes() == before
    assert names(comm, folder) == ["picture.png"]
