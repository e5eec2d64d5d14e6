"""Meshes from gmsh and XDMF files, with their groups; XDMF is written, and read on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mpi4py import MPI

import h5py
import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from folders import MESHES, names, put

import hyco_fem as hf
from hyco_fem.io.meshes import read_mesh, write_mesh
from hyco_fem.parallel import sum_array


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


# -- XDMF --------------------------------------------------------------------------------------------------------

PLATE = {"plate": (2, 1), "left": (1, 2), "right": (1, 3), "insulated": (1, 4), "hole": (1, 5)}


def plate(comm: MPI.Comm) -> hf.MeshAndTags:
    return read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=0.2)


def boxes(comm: MPI.Comm, cell: mesh.CellType) -> mesh.Mesh:
    if cell in (mesh.CellType.triangle, mesh.CellType.quadrilateral):
        return mesh.create_unit_square(comm, 3, 3, cell)
    return mesh.create_unit_cube(comm, 2, 2, 2, cell)


def halves(domain: mesh.Mesh) -> hf.MeshAndTags:
    """Cells left of x = 1/2 have the tag 1, the others 2; facets at x = 0 the tag 1, at x = 1 the tag 7."""
    dim = domain.topology.dim
    n = domain.topology.index_map(dim).size_local
    cells = np.arange(n, dtype=np.int32)
    side = 1 + (mesh.compute_midpoints(domain, dim, cells)[:, 0] > 0.5).astype(np.int32)
    domain.topology.create_connectivity(dim - 1, dim)
    facets = mesh.exterior_facet_indices(domain.topology)
    x = mesh.compute_midpoints(domain, dim - 1, facets)[:, 0]
    at = (np.abs(x) < 1e-12) | (np.abs(x - 1.0) < 1e-12)
    ends = mesh.meshtags(domain, dim - 1, facets[at], np.where(x[at] < 0.5, 1, 7).astype(np.int32))
    return hf.MeshAndTags(domain, mesh.meshtags(domain, dim, cells, side), ends, {"warm": (dim - 1, 7)})


def test_a_mesh_is_written_and_read_with_its_groups(comm: MPI.Comm, folder: Path) -> None:
    own = plate(comm)
    before = own.cell_tags.name, own.facet_tags.name
    assert write_mesh(folder / "new" / "plate.xdmf", own) == folder / "new" / "plate.xdmf"
    assert names(comm, folder / "new") == ["plate.h5", "plate.xdmf"]
    assert (own.cell_tags.name, own.facet_tags.name) == before
    read = read_mesh(folder / "new" / "plate.xdmf", comm)
    assert read.names == PLATE
    assert read.mesh.topology.index_map(2).size_global == own.mesh.topology.index_map(2).size_global
    found, expected = measures(read), measures(own)
    assert found == pytest.approx(expected, rel=1e-13)
    x = mesh.compute_midpoints(read.mesh, 1, read.facets("right"))
    np.testing.assert_allclose(x[:, 0], 2.0, atol=1e-12)
    text = (folder / "new" / "plate.xdmf").read_text()
    assert "plate.h5:/Mesh" in text
    assert ".part" not in text


def test_a_mesh_may_be_read_on_another_number_of_ranks(comm: MPI.Comm, folder: Path) -> None:
    """Written on all, read on one; written on one, read on all."""
    write_mesh(folder / "all.xdmf", plate(comm))
    comm.Barrier()
    alone = read_mesh(folder / "all.xdmf", MPI.COMM_SELF)
    expected = measures(alone)
    if comm.rank == 0:
        write_mesh(folder / "one.xdmf", alone)
    comm.Barrier()
    again = read_mesh(folder / "one.xdmf", comm)
    assert again.names == PLATE
    assert measures(again) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("cell", ["triangle", "quadrilateral", "tetrahedron", "hexahedron"])
def test_tags_of_any_cells_come_back_at_their_places(comm: MPI.Comm, folder: Path, cell: str) -> None:
    domain = boxes(comm, mesh.CellType[cell])
    dim = domain.topology.dim
    write_mesh(folder / "box.xdmf", halves(domain))
    read = read_mesh(folder / "box.xdmf", comm, gdim=dim, names={"start": (dim - 1, 1)})
    assert read.names == {"warm": (dim - 1, 7), "start": (dim - 1, 1), "cells 1": (dim, 1), "2": (dim, 2)}
    assert read.mesh.topology.cell_type == domain.topology.cell_type
    for name, what, low, high in (
        ("warm", read.facets, 1.0, 1.0),
        ("start", read.facets, 0.0, 0.0),
        ("cells 1", read.cells, 0.0, 0.5),
        ("2", read.cells, 0.5, 1.0),
    ):
        at = what(name)
        x = mesh.compute_midpoints(read.mesh, read.names[name][0], at)[:, 0]
        assert comm.allreduce(len(at)) > 0
        assert (low - 1e-12 <= x).all()
        assert (x <= high + 1e-12).all()


def test_a_mesh_without_tags_has_none(comm: MPI.Comm, folder: Path) -> None:
    write_mesh(folder / "box.xdmf", boxes(comm, mesh.CellType.triangle))
    read = read_mesh(folder / "box.xdmf", comm)
    assert read.names == {}
    assert len(read.cell_tags.values) == len(read.facet_tags.values) == 0
    with pytest.raises(ValueError, match="the mesh has no facets named 'left'; there are none with a name"):
        read.facets("left")
    with pytest.raises(ValueError, match=r"has no group with the tag 3, for 'left'; it has the tags {'cells': \[\]"):
        read_mesh(folder / "box.xdmf", comm, names={"left": 3})


def by_hand(comm: MPI.Comm, folder: Path, change: Any = None) -> Path:
    """Two triangles as meshio writes them: one grid with a tag in it, arrays named data0, data1, …"""
    text = """<Xdmf Version="3.0"><Domain><Grid Name="Grid">
      <Geometry GeometryType="XY"><DataItem DataType="Float" Dimensions="4 2" Format="HDF" Precision="8">
      m.h5:/data0</DataItem></Geometry>
      <Topology TopologyType="Triangle" NumberOfElements="2" NodesPerElement="3"><DataItem DataType="Int"
      Dimensions="2 3" Format="HDF" Precision="8">m.h5:/data1</DataItem></Topology>
      <Attribute Name="gmsh" AttributeType="Scalar" Center="Cell"><DataItem DataType="Int" Dimensions="2"
      Format="HDF" Precision="4">m.h5:/data2</DataItem></Attribute></Grid></Domain></Xdmf>"""
    arrays: dict[str, np.ndarray] = {
        "data0": np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        "data1": np.array([[0, 1, 2], [0, 2, 3]]),
        "data2": np.array([4, 9], dtype=np.int32),
    }
    text = text if change is None else (change(text, arrays) or text)
    if comm.rank == 0:
        with h5py.File(folder / "m.h5", "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return put(comm, folder / "m.xdmf", text)


def test_tags_in_the_grid_of_the_mesh_are_those_of_cells(comm: MPI.Comm, folder: Path) -> None:
    read = read_mesh(by_hand(comm, folder), comm, names={"lower": 4})
    assert read.names == {"lower": (2, 4), "9": (2, 9)}
    areas = measures(read)
    assert areas == pytest.approx({"lower": 0.5, "9": 0.5})


def missing(text: str, arrays: dict[str, np.ndarray]) -> None:
    del arrays["data1"]


def shorter(text: str, arrays: dict[str, np.ndarray]) -> None:
    arrays["data0"] = arrays["data0"][:3]


def wild(text: str, arrays: dict[str, np.ndarray]) -> None:
    arrays["data1"][1, 2] = 4


def nowhere(text: str, arrays: dict[str, np.ndarray]) -> None:
    arrays["data0"][0, 0] = np.nan


def cut(text: str, arrays: dict[str, np.ndarray]) -> str:
    return text[: len(text) // 2]


BAD_FILES: dict[str, tuple[Any, str]] = {
    "array missing": (missing, r"is damaged: 'm\.h5' has no array '/data1'"),
    "array shorter": (shorter, r"the array '/data0' of 'm\.h5' has the shape \(3, 2\), not \(4, 2\)"),
    "node that is not there": (wild, r"has cells with nodes that there are not: there are 4"),
    "node nowhere": (nowhere, r"has nodes with coordinates that are not finite"),
    "half a file": (cut, r"is not an XDMF file, or is damaged"),
    "no grid": (lambda text, _: "<Xdmf><Domain/></Xdmf>", r"has no mesh; the grids that are one: none"),
    "a group without tag": (
        lambda text, _: text.replace(
            "<Domain>", '<Domain><Information Name="hyco_fem groups" Value="{&quot;a&quot;: 1}"/>'
        ),
        r"is not an XDMF file, or is damaged",
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_damaged_xdmf_file_is_refused(comm: MPI.Comm, folder: Path, what: str) -> None:
    change, message = BAD_FILES[what]
    path = by_hand(comm, folder, change)
    with pytest.raises(ValueError, match=message):
        read_mesh(path, comm)


def test_an_hdf5_file_that_is_damaged_or_not_there_is_named(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "plate.xdmf"
    write_mesh(path, plate(comm))
    comm.Barrier()
    data = path.with_suffix(".h5").read_bytes()
    comm.Barrier()
    put(comm, path.with_suffix(".h5"), data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"plate\.h5', which '.*plate\.xdmf' has its arrays in, is damaged"):
        read_mesh(path, comm)
    if comm.rank == 0:
        path.with_suffix(".h5").unlink()
    comm.Barrier()
    with pytest.raises(OSError, match=r"has its arrays in 'plate\.h5', which is not there"):
        read_mesh(path, comm)
    with pytest.raises(OSError, match=r"the mesh file '.*none\.xdmf' is not there"):
        read_mesh(folder / "none.xdmf", comm)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"grid": "fine"}, r"has no mesh named 'fine'; the grids that are one: \['mesh'\]"),
        ({"gdim": 3}, r"the mesh 'mesh' of '.*' is in 2D, not in 3D"),
        (
            {"names": {"x": 12}},
            r"no group with the tag 12, for 'x'; it has the tags {'cells': \[1, 2\], 'facets': \[1, 7\]}",
        ),
        ({"names": {"x": (1, 2)}}, r"no group with the tag \(1, 2\), for 'x'"),
        ({"names": {"x": (0, 1)}}, r"no group with the tag \(0, 1\), for 'x'"),
        ({"names": {"x": 1}}, r"both cells and facets of '.*' have the tag 1: say \(2, 1\) or \(1, 1\) for 'x'"),
        ({"mesh_size": 0.1}, "mesh_size is the mesh size of a .geo file"),
    ],
)
def test_what_an_xdmf_file_has_not_is_refused(
    comm: MPI.Comm, folder: Path, asked: dict[str, Any], message: str
) -> None:
    write_mesh(folder / "box.xdmf", halves(boxes(comm, mesh.CellType.triangle)))
    with pytest.raises(ValueError, match=message):
        read_mesh(folder / "box.xdmf", comm, **asked)


def test_tags_of_another_mesh_are_refused(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "box.xdmf"
    write_mesh(path, halves(boxes(comm, mesh.CellType.triangle)))
    comm.Barrier()
    if comm.rank == 0:
        with h5py.File(path.with_suffix(".h5"), "r+") as file:
            file["MeshTags/facet_tags/topology"][0] = [0, 15]  # no edge
    comm.Barrier()
    with pytest.raises(ValueError, match=r"1 of the 6 entities of dimension 1 in the grid 'facet_tags' are not in"):
        read_mesh(path, comm)


def test_a_mesh_that_cannot_be_written_leaves_the_earlier_one(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "box.xdmf"
    box = halves(boxes(comm, mesh.CellType.triangle))
    write_mesh(path, box)
    with pytest.raises(ValueError, match=r"ends in \.xdmf, not 'box\.msh'"):
        write_mesh(folder / "box.msh", box)
    with pytest.raises(ValueError, match="XDMF has no meshes in 1D"):
        write_mesh(path, mesh.create_unit_interval(comm, 6))
    with pytest.raises(OSError, match="output folder"):
        write_mesh(path / "below.xdmf", box)
    assert names(comm, folder) == ["box.h5", "box.xdmf"]
    with pytest.raises(ValueError, match=r"grid and names are for an XDMF file; 'plate_with_hole\.msh' is gmsh's"):
        read_mesh(MESHES / "plate_with_hole.msh", comm, names={"left": 2})
