"""What bounds and certificates ask of Ω and Γ_D."""

from __future__ import annotations

from typing import Any

import numpy as np
from dolfinx import mesh as dmesh

from hyco_fem import _compat
from hyco_fem.parallel import agreed


def check_simplices(mesh: Any, what: str) -> None:
    """Raise TypeError unless this is a mesh, ValueError unless it is one of straight simplices that fill its space."""
    if not isinstance(mesh, dmesh.Mesh):
        raise TypeError(f"{what} needs a mesh, not {type(mesh).__name__}")
    cell, degree = mesh.topology.cell_name(), _compat.coordinate_map(mesh).degree
    if cell not in ("triangle", "tetrahedron") or mesh.geometry.dim != mesh.topology.dim or degree != 1:
        raise ValueError(
            f"{what} holds on straight triangles in 2D and tetrahedra in 3D; these are {cell} cells of degree "
            f"{degree} in {mesh.geometry.dim}D: make a mesh of simplices (order 1 in gmsh)"
        )


def dirichlet_facets(mesh: dmesh.Mesh, dirichlet: Any) -> np.ndarray:
    """Γ_D as local facets, ascending, int32: given as such, as a function of x (3, n), or None for the whole boundary.

    Raises ValueError on all ranks where they are not on the boundary.  Collective.
    """
    topology, fdim = mesh.topology, mesh.topology.dim - 1
    topology.create_entities(fdim)
    topology.create_connectivity(fdim, fdim + 1)
    exterior = np.asarray(dmesh.exterior_facet_indices(topology))
    if dirichlet is None:
        facets = exterior
    elif callable(dirichlet):
        facets = np.asarray(dmesh.locate_entities_boundary(mesh, fdim, dirichlet))
    else:
        facets = np.asarray(dirichlet)
    imap = topology.index_map(fdim)
    with agreed(mesh.comm):
        if facets.size and (facets.ndim != 1 or facets.dtype.kind not in "iu"):
            raise ValueError(
                f"dirichlet must be local facets, whole numbers (n,), not {facets.dtype} of shape {facets.shape}"
            )
        facets = np.unique(facets).astype(np.int32)
        if len(facets) and not 0 <= facets[0] <= facets[-1] < imap.size_local + imap.num_ghosts:
            raise ValueError(f"dirichlet has facets {facets[0]} … {facets[-1]}, which are not all on this rank's mesh")
        inside = np.setdiff1d(facets[facets < imap.size_local], exterior)
        if len(inside):
            raise ValueError(
                f"dirichlet has facets inside the domain, not on the boundary, facet {inside[0]} for one: give "
                "those of the boundary"
            )
    return facets
