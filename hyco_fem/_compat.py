"""What differs between DOLFINx 0.9, 0.10 and 0.11: the only file that knows.

Each function asks for the shape of the API, never for a version number.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem
from ufl.core.expr import Expr


class MeshAndTags(NamedTuple):
    """A mesh read from a file, with its markers.

    mesh: the distributed mesh.
    cell_tags, facet_tags: MeshTags of the physical groups.
    names: (dimension, tag) by name of the physical group; empty where the file names none.
    """

    mesh: dolfinx.mesh.Mesh
    cell_tags: dolfinx.mesh.MeshTags
    facet_tags: dolfinx.mesh.MeshTags
    names: dict[str, tuple[int, int]]

    def facets(self, name: str) -> np.ndarray:
        """Local facets (ghosts included) of the physical group of this name.  Raises ValueError where there is none."""
        return self._find(name, self.mesh.topology.dim - 1, self.facet_tags, "facets")

    def cells(self, name: str) -> np.ndarray:
        """Local cells (ghosts included) of the physical group of this name.  Raises ValueError where there is none."""
        return self._find(name, self.mesh.topology.dim, self.cell_tags, "cells")

    def _find(self, name: str, dim: int, tags: dolfinx.mesh.MeshTags, what: str) -> np.ndarray:
        groups = {key: tag for key, (group_dim, tag) in self.names.items() if group_dim == dim}
        if name not in groups:
            raise ValueError(f"the mesh has no {what} named '{name}'; there are {sorted(groups) or 'none with a name'}")
        return tags.find(groups[name])


def show_warnings() -> None:
    """Undo what importing FFCx does: from then on Python's warnings go to a logger, and are lost if nobody listens."""
    listening = [*logging.getLogger("py.warnings").handlers, *logging.getLogger().handlers]
    if all(isinstance(handler, logging.NullHandler) for handler in listening):
        logging.captureWarnings(False)


def coordinate_map(mesh: dolfinx.mesh.Mesh) -> Any:
    """The coordinate element of the (single) cell type of a mesh."""
    geometry = mesh.geometry
    return geometry.cmaps[0] if hasattr(geometry, "cmaps") else geometry.cmap


def geometry_dofmap(mesh: dolfinx.mesh.Mesh) -> np.ndarray:
    """Nodes of each local cell, (n_cells, n_nodes)."""
    geometry = mesh.geometry
    return geometry.dofmaps[0] if hasattr(geometry, "dofmaps") else geometry.dofmap


def value_shape(V: fem.FunctionSpace) -> tuple[int, ...]:
    """Value shape of a space: () for a scalar one."""
    shape = V.value_shape if hasattr(V, "value_shape") else V.element.value_shape
    return tuple(int(s) for s in shape)


def interpolation_points(V: fem.FunctionSpace) -> np.ndarray:
    """Interpolation points of the element on the reference cell, (n, tdim)."""
    points = V.element.interpolation_points
    return points() if callable(points) else points


def collapsed(V: fem.FunctionSpace) -> tuple[fem.FunctionSpace, np.ndarray]:
    """A sub-space by itself, and which dofs of the whole its local unrolled dofs are, (n,).  Collective."""
    space, dofs = V.collapse()
    # From 0.11 on a list with the dofs of each type of cells, of which there is one.
    return space, np.asarray(dofs).reshape(-1)


def expression(value: Expr, X: np.ndarray, mesh: dolfinx.mesh.Mesh) -> fem.Expression:
    """A UFL expression at points (n, tdim) of the reference cell, compiled.  Collective.

    The zero that is added holds the mesh: 0.11 refuses what has none left after differentiation, such as ∇(2x).
    """
    return fem.Expression(value + fem.Constant(mesh, np.zeros(value.ufl_shape)), X, comm=mesh.comm)


def gmsh_model_to_mesh(model: Any, comm: MPI.Comm, gdim: int) -> MeshAndTags:
    """Distribute the gmsh model of rank 0.  Collective."""
    names: dict[str, tuple[int, int]] = {}
    if comm.rank == 0:
        for dim, tag in model.getPhysicalGroups():
            name = model.getPhysicalName(dim, tag)
            if name:
                names[name] = (dim, tag)
    names = comm.bcast(names, root=0)
    try:
        from dolfinx.io import gmsh as reader
    except ImportError:
        from dolfinx.io import gmshio as reader
    read = reader.model_to_mesh(model, comm, 0, gdim=gdim)
    if hasattr(read, "mesh"):  # MeshData, from 0.10 on
        return MeshAndTags(read.mesh, read.cell_tags, read.facet_tags, names)
    mesh, cell_tags, facet_tags = read[:3]
    return MeshAndTags(mesh, cell_tags, facet_tags, names)
