"""Unit boxes, their sides, and fields on them, for the tests of ready problems."""

from __future__ import annotations

from mpi4py import MPI

import numpy as np
from cases import square
from dolfinx import fem, mesh

Cell = mesh.CellType


def box(comm: MPI.Comm, cell: Cell, n: int) -> mesh.Mesh:
    """The unit interval, square or cube."""
    if cell == Cell.interval:
        return mesh.create_unit_interval(comm, n)
    if cell in (Cell.triangle, Cell.quadrilateral):
        return square(comm, n, cell)
    return mesh.create_unit_cube(comm, n, n, n, cell)


def side(domain: mesh.Mesh, axis: int, value: float) -> np.ndarray:
    """Facets of the unit box on x_axis = value."""
    return mesh.locate_entities_boundary(domain, domain.topology.dim - 1, lambda x: np.isclose(x[axis], value))


def left(x: np.ndarray) -> np.ndarray:
    return np.isclose(x[0], 0.0)


def right(x: np.ndarray) -> np.ndarray:
    return np.isclose(x[0], 1.0)


def walls(domain: mesh.Mesh) -> np.ndarray:
    """Facets of the unit box on all sides but x₀ = 0 and x₀ = 1."""
    return np.concatenate([side(domain, a, v) for a in range(1, domain.topology.dim) for v in (0.0, 1.0)])


def field(domain: mesh.Mesh, name: str, degree: int = 1, *shape: int) -> fem.Function:
    return fem.Function(
        fem.functionspace(domain, ("Lagrange", degree, shape) if shape else ("Lagrange", degree)), name=name
    )
