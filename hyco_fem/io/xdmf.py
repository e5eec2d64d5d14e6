"""Meshes in XDMF files with their HDF5: what is in one, whether it is whole, and the names of groups.

XDMF has no names for the tags of cells and facets.  `write_xdmf` puts them into an <Information>, as JSON: the
dimension and the tag by name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mpi4py import MPI

import numpy as np
from dolfinx import io
from dolfinx import mesh as dmesh

from hyco_fem._compat import MeshAndTags
from hyco_fem.io.fields import replace_together
from hyco_fem.parallel import agreed, sum_array

_GROUPS = "hyco_fem groups"

# What the names of cells begin with, in lower case; the rest of them tells the degree.
_DIMENSIONS = {"polyvertex": 0, "polyline": 1, "edge": 1, "tri": 2, "quad": 2, "tet": 3, "hex": 3, "wedge": 3}


@dataclass(frozen=True)
class _Item:
    """An array of an HDF5 file.  file, dataset: where.  shape: as the XDMF file has it."""

    file: str
    dataset: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Grid:
    """A grid: its name, the dimension of its cells, how many, its arrays, and whether cells have values (tags)."""

    name: str
    dim: int
    cells: int
    topology: _Item | None
    geometry: _Item | None
    gdim: int
    tagged: bool


# -- reading -----------------------------------------------------------------------------------------------------


def read_xdmf(
    path: Path, comm: MPI.Comm, gdim: int | None, grid: str | None, names: Mapping[str, int | tuple[int, int]]
) -> MeshAndTags:
    """See `read_mesh`.  Collective."""
    found = None
    with agreed(comm):
        if comm.rank == 0:
            found = _describe(path, gdim, grid)
    mesh_grid, tag_grids, groups = comm.bcast(found)
    with agreed(comm):
        _check_arrays(path, comm, mesh_grid)
    try:
        with io.XDMFFile(comm, path, "r") as file:
            mesh = file.read_mesh(name=mesh_grid.name)
            tdim = mesh.topology.dim
            mesh.topology.create_connectivity(tdim - 1, tdim)
            tags = {dim: _read_tags(file, mesh, tag_grids.get(dim), dim) for dim in (tdim, tdim - 1)}
    except RuntimeError as error:
        raise ValueError(f"DOLFINx cannot read '{path}': {error}") from None
    present = {dim: _values(comm, tags[dim]) for dim in tags}
    for dim, tag_grid in tag_grids.items():
        there = _count(mesh, tags[dim])
        if there < tag_grid.cells:
            raise ValueError(
                f"'{path}': {tag_grid.cells - there} of the {tag_grid.cells} entities of dimension {dim} in the grid "
                f"'{tag_grid.name}' are not in the mesh '{mesh_grid.name}', or stand there twice"
            )
    return MeshAndTags(mesh, tags[tdim], tags[tdim - 1], _named(path, present, groups, names))


def _describe(
    path: Path, gdim: int | None, grid: str | None
) -> tuple[_Grid, dict[int, _Grid], dict[str, tuple[int, int]]]:
    """The grid of the mesh, those of tags by dimension, and the names of groups.  Local to the rank."""
    try:
        domain = ElementTree.parse(path).getroot().find("Domain")
        grids = [] if domain is None else [g for e in domain.findall("Grid") if (g := _grid(e)) is not None]
        information = None if domain is None else domain.find(f"Information[@Name='{_GROUPS}']")
        told = {} if information is None else json.loads(information.get("Value", ""))
        groups = {str(name): (int(dim), int(tag)) for name, (dim, tag) in told.items()}
    except (ElementTree.ParseError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"'{path}' is not an XDMF file, or is damaged: {error}") from None
    meshes = [g for g in grids if g.geometry is not None and (grid is None or g.name == grid)]
    if not meshes:
        listed = [g.name for g in grids if g.geometry is not None] or "none with an HDF5 file"
        wanted = "no mesh" if grid is None else f"no mesh named '{grid}'"
        raise ValueError(f"'{path}' has {wanted}; the grids that are one: {listed}")
    chosen = meshes[0]
    if gdim is not None and chosen.gdim != gdim:
        raise ValueError(f"the mesh '{chosen.name}' of '{path}' is in {chosen.gdim}D, not in {gdim}D")
    tags: dict[int, _Grid] = {}
    for g in grids:
        if g.tagged and g.dim in (chosen.dim, chosen.dim - 1):
            tags.setdefault(g.dim, g)
    _check_files(path, [chosen, *tags.values()])
    return chosen, tags, groups


def _grid(element: ElementTree.Element) -> _Grid | None:
    topology, geometry = element.find("Topology"), element.find("Geometry")
    if topology is None:
        return None  # a collection, of fields in time
    kind = (topology.get("TopologyType") or topology.get("Type") or "").lower()
    dim = next((d for name, d in _DIMENSIONS.items() if kind.startswith(name)), -1)
    item = _item(topology)
    cells = item.shape[0] if item is not None else int(topology.get("NumberOfElements", 0))
    x = None if geometry is None else _item(geometry)
    attributes = [a for a in element.findall("Attribute") if a.get("Center", "Cell") == "Cell"]
    return _Grid(element.get("Name", ""), dim, cells, item, x, x.shape[-1] if x else 0, bool(attributes))


def _item(element: ElementTree.Element) -> _Item | None:
    data = element.find("DataItem")
    if data is None or data.get("Format", "").upper() != "HDF":
        return None
    file, _, dataset = (data.text or "").strip().partition(":")
    return _Item(file, dataset, tuple(int(n) for n in data.get("Dimensions", "").split()))


def _check_files(path: Path, grids: list[_Grid]) -> None:
    """Whether the HDF5 files can be opened and hold the arrays.  Local to the rank."""
    for item in [i for g in grids for i in (g.topology, g.geometry) if i is not None]:
        with _opened(path, item) as data:
            if data.shape != item.shape:
                raise ValueError(
                    f"'{path}' is damaged: the array '{item.dataset}' of '{item.file}' has the shape {data.shape}, not "
                    f"{item.shape}"
                )


@contextmanager
def _opened(path: Path, item: _Item) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise RuntimeError(
            f"reading '{path}' needs h5py ({error}): python3-h5py (Debian) or h5py (conda-forge, PyPI)"
        ) from None
    beside = path.parent / item.file
    if not beside.is_file():
        raise OSError(f"'{path}' has its arrays in '{item.file}', which is not there")
    try:
        file = h5py.File(beside, "r")
    except OSError as error:
        raise ValueError(f"'{beside}', which '{path}' has its arrays in, is damaged: {error}") from None
    with file:
        if not isinstance(file.get(item.dataset), h5py.Dataset):
            raise ValueError(f"'{path}' is damaged: '{item.file}' has no array '{item.dataset}'")
        yield file[item.dataset]


def _check_arrays(path: Path, comm: MPI.Comm, grid: _Grid) -> None:
    """Whether nodes are finite and cells have nodes that there are: DOLFINx does not ask.  Each rank reads a part."""
    assert grid.geometry is not None
    nodes = grid.geometry.shape[0]
    for item in (grid.geometry, grid.topology):
        if item is None:
            continue
        low, high = (item.shape[0] * (comm.rank + k) // comm.size for k in (0, 1))
        with _opened(path, item) as data:
            part = data[low:high]
        if item is grid.geometry and not np.isfinite(part).all():
            raise ValueError(f"'{path}' has nodes with coordinates that are not finite")
        if item is grid.topology and part.size and (part.min() < 0 or part.max() >= nodes):
            raise ValueError(f"'{path}' has cells with nodes that there are not: there are {nodes}")


def _read_tags(file: io.XDMFFile, mesh: dmesh.Mesh, grid: _Grid | None, dim: int) -> dmesh.MeshTags:
    if grid is None:
        none = np.empty(0, dtype=np.int32)
        return dmesh.meshtags(mesh, dim, none, none)
    mesh.topology.create_entities(dim)
    return file.read_meshtags(mesh, name=grid.name)


def _count(mesh: dmesh.Mesh, tags: dmesh.MeshTags) -> int:
    """How many entities have a tag, on all ranks together.  Collective."""
    owned = mesh.topology.index_map(tags.dim).size_local
    return int(sum_array(mesh.comm, np.array([np.count_nonzero(tags.indices < owned)]))[0])


def _values(comm: MPI.Comm, tags: dmesh.MeshTags) -> list[int]:
    """The different tags, the same on all ranks.  Collective."""
    return sorted(int(v) for v in set().union(*comm.allgather(set(np.unique(tags.values)))))


def _named(
    path: Path,
    present: dict[int, list[int]],
    groups: dict[str, tuple[int, int]],
    wanted: Mapping[str, int | tuple[int, int]],
) -> dict[str, tuple[int, int]]:
    """(dimension, tag) by name: of the file, as wanted, and of what has no name otherwise by number."""
    found = dict(groups)
    have = {"cells": present[max(present)], "facets": present[min(present)]}
    for name, tag in wanted.items():
        asked = [(dim, tag) for dim in present] if isinstance(tag, int) else [tag]
        places = [(dim, t) for dim, t in asked if t in present.get(dim, [])]
        if not places:
            raise ValueError(f"names: '{path}' has no group with the tag {tag}, for '{name}'; it has the tags {have}")
        if len(places) > 1:
            dims = " or ".join(f"({dim}, {tag})" for dim, _ in places)
            raise ValueError(f"names: both cells and facets of '{path}' have the tag {tag}: say {dims} for '{name}'")
        found[name] = places[0]
    counts = Counter(tag for tags in present.values() for tag in tags)
    for dim, tags in present.items():
        kind = "cells" if dim == max(present) else "facets"
        for tag in tags:
            if (dim, tag) not in found.values():
                found[str(tag) if counts[tag] == 1 else f"{kind} {tag}"] = (dim, tag)
    return found


# -- writing -----------------------------------------------------------------------------------------------------


def write_xdmf(path: Path, mesh: MeshAndTags | dmesh.Mesh) -> Path:
    """See `write_mesh`.  Collective."""
    if path.suffix != ".xdmf":
        raise ValueError(f"the name of an XDMF file ends in .xdmf, not '{path.name}'")
    domain, tagged, names = (mesh, (), {}) if isinstance(mesh, dmesh.Mesh) else (mesh.mesh, mesh[1:3], mesh.names)
    comm, tdim = domain.comm, domain.topology.dim
    if domain.geometry.dim == 1:
        raise ValueError("XDMF has no meshes in 1D: DOLFINx would give this one a second coordinate")
    domain.topology.create_connectivity(tdim - 1, tdim)
    geometry = f"/Xdmf/Domain/Grid[@Name='{domain.name}']/Geometry"
    with replace_together(path, comm) as part, io.XDMFFile(comm, part / path.name, "w") as file:
        file.write_mesh(domain)
        file.write_information(_GROUPS, json.dumps(names))
        for tags in tagged:
            if _count(domain, tags) == 0:
                continue  # HDF5 has no arrays without entries
            own, tags.name = tags.name, "cell_tags" if tags.dim == tdim else "facet_tags"
            try:
                file.write_meshtags(tags, domain.geometry, geometry)
            finally:
                tags.name = own
    return path
