"""The reference-to-physical map of the cells of a mesh, for many (cell, point) pairs at once."""

from __future__ import annotations

import basix
import numpy as np
from dolfinx import mesh as dmesh

from hyco_fem import _compat

_NEWTON_STEPS = 20

# Rounding error of a coordinate after a few operations, relative to it.
ROUNDING = 1e-14

_REFERENCE_VOLUME = {"interval": 1.0, "triangle": 1 / 2, "quadrilateral": 1.0, "tetrahedron": 1 / 6, "hexahedron": 1.0}


class CellGeometry:
    """Geometry of the local cells (owned and ghost), affine or not.  Local to the rank.

    Raises:
        ValueError: the mesh is a surface or a curve in a higher dimension, or has cells of another type.
    """

    def __init__(self, mesh: dmesh.Mesh) -> None:
        self.gdim, self.tdim = mesh.geometry.dim, mesh.topology.dim
        self.name = mesh.topology.cell_name()
        if self.gdim != self.tdim or self.name not in _REFERENCE_VOLUME:
            raise ValueError(
                f"points need a mesh of {', '.join(_REFERENCE_VOLUME)} cells that fills its space; this one has "
                f"{self.name} cells of dimension {self.tdim} in {self.gdim}D"
            )
        self.reference_volume = _REFERENCE_VOLUME[self.name]
        self.simplex = self.name in ("interval", "triangle", "tetrahedron")
        cmap = _compat.coordinate_map(mesh)
        self._element = basix.create_element(
            basix.ElementFamily.P,
            getattr(basix.CellType, self.name),
            cmap.degree,
            basix.LagrangeVariant(int(cmap.variant)) if cmap.degree > 2 else basix.LagrangeVariant.gll_warped,
        )
        self.degree = cmap.degree
        self.affine = self.simplex and self.degree == 1
        self._x = mesh.geometry.x[:, : self.gdim]
        self._nodes = _compat.geometry_dofmap(mesh)
        imap = mesh.topology.index_map(self.tdim)
        self.n_owned = imap.size_local
        self.n_global = imap.size_global
        # Number of a cell in the file or generator: the same for any partition.
        self.original = np.asarray(mesh.topology.original_cell_index[: self.n_owned], dtype=np.int64)

        # CellGeometry keeps arrays of the mesh, not the mesh: the mesh may own it without a reference cycle.
        self.vertices = basix.geometry(getattr(basix.CellType, self.name))

    def push_forward(self, cells: np.ndarray, X: np.ndarray) -> np.ndarray:
        """x (n, d) of reference points X (n, d), one in each of the cells (n,)."""
        if len(X) == 0:  # for which basix aborts the process on some cells
            return np.empty((0, self.gdim))
        phi = self._element.tabulate(0, X)[0, :, :, 0]
        return np.einsum("pa,pai->pi", phi, self._x[self._nodes[cells]])

    def jacobian(self, cells: np.ndarray, X: np.ndarray) -> np.ndarray:
        """∂x/∂X (n, d, d) at X (n, d) in the cells (n,)."""
        if len(X) == 0:
            return np.empty((0, self.gdim, self.tdim))
        dphi = self._element.tabulate(1, X)[1:, :, :, 0]
        return np.einsum("jpa,pai->pij", dphi, self._x[self._nodes[cells]])

    def pull_back(self, cells: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Reference points X (n, d) of x (n, d) in the cells (n,); NaN where Newton's method finds none."""
        X = np.full_like(x, 1.0 / (self.tdim + 1) if self.simplex else 0.5)
        if len(x) == 0:
            return X
        with np.errstate(all="ignore"):
            for _ in range(_NEWTON_STEPS):
                residual = x - self.push_forward(cells, X)
                J = self.jacobian(cells, X)
                bad = ~(np.abs(np.linalg.det(J)) > 0.0)
                J[bad] = np.eye(self.tdim)
                step = np.linalg.solve(J, residual[..., None])[..., 0]
                step[bad] = np.nan
                # Far outside its cell a non-affine map need not be invertible: such a point is not inside.
                X = np.where(np.abs(X + step) < 1e3, X + step, np.nan)
                if self.affine or not np.any(np.abs(step) > 1e-13):
                    break
            error = np.linalg.norm(x - self.push_forward(cells, X), axis=1)
        X[~(error <= (1e-10 + self.rounding(cells, x)) * self.sizes(cells))] = np.nan
        return X

    def sizes(self, cells: np.ndarray) -> np.ndarray:
        """Longest side of the box around the nodes of each of the cells (n,)."""
        return np.ptp(self._x[self._nodes[cells]], axis=1).max(axis=1)

    def rounding(self, cells: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Rounding errors of x (n, d) over the sizes of the cells (n,): large for small cells far from the origin."""
        return ROUNDING * np.abs(x).max(axis=1) / self.sizes(cells)

    def inside(self, X: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        """Which reference points (n, d) lie in the reference cell, up to the fraction `tolerance` (n,) of its size."""
        with np.errstate(invalid="ignore"):
            ok = np.all(tolerance[:, None] + X >= 0.0, axis=1)
            upper = X.sum(axis=1) if self.simplex else X.max(axis=1)
            return ok & (upper <= 1.0 + tolerance)

    def volumes(self) -> np.ndarray:
        """Volumes of the owned cells, (n_owned,)."""
        if self.affine:
            mid = np.full((self.n_owned, self.tdim), 1.0 / (self.tdim + 1))
            return np.abs(np.linalg.det(self.jacobian(np.arange(self.n_owned), mid))) * self.reference_volume
        _, weights = self.quadrature(2 * self._element.degree * self.tdim)
        return weights.reshape(self.n_owned, -1).sum(axis=1)

    def quadrature(self, degree: int) -> tuple[np.ndarray, np.ndarray]:
        """Reference points (n_owned·q, d) and physical weights (n_owned·q,) of a rule on every owned cell."""
        X, w = basix.make_quadrature(getattr(basix.CellType, self.name), degree)
        cells = np.repeat(np.arange(self.n_owned), len(w))
        X = np.tile(X, (self.n_owned, 1))
        if len(cells) == 0:
            return X, np.empty(0)
        return X, np.tile(w, self.n_owned) * np.abs(np.linalg.det(self.jacobian(cells, X)))


def cell_geometry(mesh: dmesh.Mesh) -> CellGeometry:
    """The geometry of a mesh, made once and kept with it.  The mesh must not be moved afterwards."""
    found = getattr(mesh, "_hyco_cells", None)
    if found is None:
        found = CellGeometry(mesh)
        mesh._hyco_cells = found
    return found
