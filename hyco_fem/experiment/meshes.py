"""The mesh of an experiment, with groups of facets by name.  Everything here is collective."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

import numpy as np
from dolfinx import mesh as dmesh

from hyco_fem._compat import MeshAndTags
from hyco_fem.experiment import schema
from hyco_fem.experiment.tables import section
from hyco_fem.io.meshes import read_mesh
from hyco_fem.pde.problem import Facets

# Sides of a box by name: axis, and whether it is the upper one.
_SIDES = {"left": (0, 0), "right": (0, 1), "bottom": (1, 0), "top": (1, 1), "front": (2, 0), "back": (2, 1)}


def build_mesh(spec: schema.Mesh, comm: MPI.Comm) -> MeshAndTags:
    """The mesh with its groups of facets.  Collective."""
    if spec.shape is None:
        assert spec.file is not None
        names = {name: (tag[0], tag[1]) if isinstance(tag, list) else tag for name, tag in spec.names.items()}
        with section("mesh.file"):
            return read_mesh(
                spec.file,
                comm,
                gdim=spec.gdim,
                mesh_size=spec.mesh_size,
                constants=spec.constants or None,
                grid=spec.grid,
                names=names or None,
            )
    d = schema.SHAPES[spec.shape]
    cells = [spec.cells] * d if isinstance(spec.cells, int) else list(spec.cells or [])
    corners = np.array([spec.lower or [0.0] * d, spec.upper or [1.0] * d])
    with section("mesh.cells"):
        if d == 1:
            mesh = dmesh.create_interval(comm, cells[0], corners[:, 0])
        elif d == 2:
            mesh = dmesh.create_rectangle(comm, corners, cells)
        else:
            mesh = dmesh.create_box(comm, corners, cells)
    return _with_sides(mesh, corners)


def _with_sides(mesh: dmesh.Mesh, corners: np.ndarray) -> MeshAndTags:
    """A box with its sides by name."""
    d = mesh.topology.dim
    names, facets, tags = {}, [], []
    for tag, (name, (axis, end)) in enumerate(_SIDES.items(), 1):
        if axis < d:
            found = dmesh.locate_entities_boundary(mesh, d - 1, _on_side(axis, corners[end, axis], np.ptp(corners)))
            names[name] = (d - 1, tag)
            facets.append(found)
            tags.append(np.full(len(found), tag, dtype=np.int32))
    entities, values = np.concatenate(facets), np.concatenate(tags)
    order = np.argsort(entities)
    marked = dmesh.meshtags(mesh, d - 1, entities[order], values[order])
    imap = mesh.topology.index_map(d)
    cells = np.arange(imap.size_local + imap.num_ghosts, dtype=np.int32)
    domain = dmesh.meshtags(mesh, d, cells, np.full(len(cells), 1, dtype=np.int32))
    return MeshAndTags(mesh, domain, marked, names | {"domain": (d, 1)})


def _on_side(axis: int, value: float, size: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.abs(x[axis] - value) < 1e-10 * size


def facets_of(names: str | list[str] | None, mesh: MeshAndTags, key: str) -> Facets:
    """Local facets of groups, None for the whole boundary."""
    if names is None:
        return None
    with section(key):
        return np.unique(np.concatenate([mesh.facets(name) for name in ([names] if isinstance(names, str) else names)]))
