"""A smooth approximate distance to part of the boundary of a mesh, for `HardBoundary` on any domain.

1/ℓ(x) = (1/c_d) ∫_Γ dS(y) / |x − y|^d + 1/R,    c₁ = 1, c₂ = π, c₃ = 2π

over the facets Γ, with a cap R: zero on Γ alone, below R, analytic away from Γ, and ∂ℓ/∂n = 1 on Γ where Γ is smooth,
since the integral over a whole line (d = 2) or plane (d = 3) at distance r is c_d/r.  Facets are joined as in the
R-equivalence of Sukumar and Srivastava (2022), 1/ℓ = Σ_i 1/ℓ_i, but each ℓ_i is an integral over its facet, so that ℓ
depends on the set Γ and not on how it is cut into facets; the Lp distance fields of Belyaev, Fayolle and Pasko (2013)
are double-layer integrals of the same kind.  The integrals are elementary: over a segment seen from x under the angle
ω, or a triangle seen under the solid angle ω (Van Oosterom and Strackee 1983), at the distance r of its line or plane,
the integral is ω/r.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyco_fem import _compat
from hyco_fem.models.synthetic import _check_dimension, bounding_box
from hyco_fem.parallel import agreed

# Pairs of a point and a facet that are worked on at once: some 20 arrays of 4 MB (d = 2).
_PAIRS = 1 << 19

# Below this ratio a series replaces arctan(s)/s, whose derivatives are lost to rounding; its first missing term is
# s^16/17 ~ 1e-17.
_SMALL = 0.1

# Relative to the size of Γ: points as far behind a facet count as on it; lines as far apart count as one.
_ROUNDING = 1e-12


class MeshDistance(nn.Module):
    """ℓ for simplices of dimension d − 1 in d dimensions; made by `mesh_distance`.

    Args:
        facets: (n_facets, d, d), the vertices of each.
        side: (n_facets,), ±1: the sign of det(v₁ − x, …, v_d − x) for x inside.
        cap: R; math.inf for none.

    Every rank holds all facets and evaluates its own points.
    """

    facets: Tensor
    side: Tensor
    measure: Tensor

    def __init__(self, facets: Any, side: Any, cap: float = math.inf) -> None:
        super().__init__()
        if not cap > 0:
            raise ValueError(f"the cap of a distance must be positive, not {cap}")
        self.register_buffer("facets", torch.as_tensor(np.array(facets, dtype=np.float64)))
        self.register_buffer("side", torch.as_tensor(np.array(side, dtype=np.float64)))
        edges = self.facets[:, 1:] - self.facets[:, :1]
        # |f| measure = |det|, f the distance to the line or plane: the length, twice the area.
        self.register_buffer("measure", torch.linalg.det(edges @ edges.mT).sqrt())
        self.cap = float(cap)
        self._rounding = _ROUNDING * float(self.facets.abs().max())

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,).  Time grows like points times facets; memory does not (but does inside torch.func)."""
        _check_dimension(x, self.facets.shape[2], "the boundary")
        chunk = max(1, _PAIRS // len(self.facets))
        if len(x) <= chunk:
            return self._distance(x)
        parts = torch.split(x, chunk)
        # Autograd would keep the arrays of all chunks: it keeps the points instead, and computes again.  The transforms
        # of torch.func know no checkpoints, and keep the arrays.
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if x.requires_grad and torch.is_grad_enabled() and not transformed:
            return torch.cat([checkpoint(self._distance, part, use_reentrant=False) for part in parts])
        return torch.cat([self._distance(part) for part in parts])

    def _distance(self, x: Tensor) -> Tensor:
        ell = self._to_each(x)
        # 1/Σ 1/ℓ_i as ℓ_min / Σ ℓ_min/ℓ_i, which is finite with its derivatives where ℓ_min = 0.  Where another is zero
        # too, at a vertex on Γ, ℓ is zero and has no gradient.
        least, where = ell.min(dim=1, keepdim=True)
        others = torch.ones_like(ell).scatter(1, where, 0.0)
        total = 1.0 + (others * least / torch.where(ell > 0, ell, 1.0)).sum(dim=1) + least[:, 0] / self.cap
        return least[:, 0] / total

    def _to_each(self, x: Tensor) -> Tensor:
        """ℓ_i = c_d / ∫ dS/|x − y|^d over facet i, (n, n_facets)."""
        facets, side, measure = (t.to(x) for t in (self.facets, self.side, self.measure))
        v = (facets - x[:, None, None]).unbind(dim=2)  # vertices seen from x, each (n, n_facets, d)
        if len(v) == 1:
            return self._magnitude(side * v[0][..., 0])
        if len(v) == 2:
            p, q = v
            det = p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]
            return math.pi * self._over_angle(side * det, _dot(p, q), measure)
        p, q, r = v
        a, b, c = (torch.linalg.vector_norm(w, dim=-1) for w in v)
        det = _dot(p, torch.linalg.cross(q, r))
        # tan(ω/2) = |det| / D
        D = a * b * c + _dot(p, q) * c + _dot(q, r) * a + _dot(r, p) * b
        return math.pi * self._over_angle(side * det, D, measure)

    def _over_angle(self, det: Tensor, D: Tensor, measure: Tensor) -> Tensor:
        """|f| / arg(D + i |det|), f = det/measure: smooth where f = 0 too, unless that is on the facet, where D < 0."""
        flat = (D > 0) & (det.abs() < _SMALL * D)
        D_flat = torch.where(flat, D, 1.0)
        s2 = (torch.where(flat, det, 0.0) / D_flat).square()
        series = torch.zeros_like(s2)  # arctan(s)/s
        for k in range(7, -1, -1):
            series = (-1.0) ** k / (2 * k + 1) + s2 * series
        f = self._magnitude(torch.where(flat, 1.0, det / measure))
        # At a vertex the angle is any: f is zero there.
        D = torch.where(flat | ((D == 0) & (det == 0)), -1.0, D)
        return torch.where(flat, D_flat / measure / series, f / torch.atan2(f * measure, D))

    def _magnitude(self, f: Tensor) -> Tensor:
        """|f|, with the derivative from inside, f > 0, where f is zero up to rounding."""
        return torch.where(f >= -self._rounding, f + (f.abs() - f).detach(), -f)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def mesh_distance(
    mesh: dmesh.Mesh | fem.FunctionSpace, facets: np.ndarray | None = None, *, cap: float | None = None
) -> MeshDistance:
    """ℓ(x), zero on facets of a mesh and positive elsewhere, with slope one on them: see the head of this file.

    `HardBoundary(network, mesh_distance(mesh, facets), g)` takes the values g there exactly.

    Every rank holds all facets; segments that lie on one line are joined first, since the time of a call is points
    times facets (a hundred points and a hundred segments: about a millisecond).

    Args:
        mesh: The mesh, or a space on it; 1D to 3D, with straight cells.
        facets: Local indices of the Dirichlet facets, such as `plate.facets("left")`, ghosts included or not; by
            default the whole boundary.
        cap: R > ℓ; by default the diagonal of the bounding box.  Without it (math.inf), ℓ grows like r^d far from a
            small Γ.

    Returns:
        A torch module, (n, d) → (n,), smooth at any order away from Γ; the same on any number of ranks.  On Γ its
        gradient is the inner normal, except at vertices and edges, where it has none.

    Raises:
        ValueError: there are no facets on any rank, or what was given are no facets, or the mesh has curved cells; on
            all ranks.

    Collective.
    """
    mesh = mesh.mesh if isinstance(mesh, fem.FunctionSpace) else mesh
    tdim, comm = mesh.topology.dim, mesh.comm
    for pair in ((tdim - 1, tdim), (tdim, tdim - 1), (tdim - 1, 0)):
        mesh.topology.create_connectivity(*pair)
    if facets is None:
        facets = dmesh.exterior_facet_indices(mesh.topology)
    with agreed(comm):
        own = _simplices(mesh, np.asarray(facets))
    # A facet that ranks share comes from each.  In this order, nothing depends on the partition.
    rows = np.unique(np.concatenate(comm.allgather(own)), axis=0)
    if len(rows) == 0:
        raise ValueError(
            "there are no facets to measure the distance to, on any rank; check the marker that they come from"
        )
    rows = rows[np.unique(rows[:, :-1], axis=0, return_index=True)[1]]
    lower, upper = bounding_box(mesh)
    diagonal = float(np.linalg.norm(upper - lower))
    if tdim == 2:
        rows = _joined(rows, diagonal)
    return MeshDistance(rows[:, :-1].reshape(-1, tdim, tdim), rows[:, -1], diagonal if cap is None else cap)


def _simplices(mesh: dmesh.Mesh, facets: np.ndarray) -> np.ndarray:
    """Vertices of facets, in lexicographic order, and the side on which their cell is: (n, d² + 1).  Local."""
    d = mesh.topology.dim
    if mesh.geometry.dim != d or _compat.coordinate_map(mesh).degree > 1:
        raise ValueError(
            "a distance needs a mesh of straight cells that fills its space; this one has degree "
            f"{_compat.coordinate_map(mesh).degree} and dimension {d} in {mesh.geometry.dim}D"
        )
    imap = mesh.topology.index_map(d - 1)
    n = imap.size_local + imap.num_ghosts
    if len(facets) == 0:
        return np.empty((0, d * d + 1))
    if facets.ndim != 1 or facets.dtype.kind not in "iu" or facets.min() < 0 or facets.max() >= n:
        raise ValueError(f"facets must be local indices of facets, whole numbers from 0 to {n - 1}")
    x = mesh.geometry.x[:, :d]
    v = x[dmesh.entities_to_geometry(mesh, d - 1, facets.astype(np.int32))]  # (n, vertices, d)
    to_cell = mesh.topology.connectivity(d - 1, d)
    cells = to_cell.array[to_cell.offsets[facets]]
    inside = x[_compat.geometry_dofmap(mesh)[cells]].mean(axis=1)
    if v.shape[1] == 4:
        v, inside = _halves(v), np.tile(inside, (2, 1))
    v = np.take_along_axis(v, _lexicographic(v)[..., None], axis=1)
    side = np.sign(np.linalg.det(v - inside[:, None]))
    return np.column_stack([v.reshape(len(v), -1), side])


def _lexicographic(v: np.ndarray) -> np.ndarray:
    """The order of vertices (n, k, d) within each facet, (n, k)."""
    return np.lexsort([v[..., axis] for axis in reversed(range(v.shape[2]))], axis=-1)


def _halves(v: np.ndarray) -> np.ndarray:
    """Quadrilaterals (n, 4, 3), cut along the diagonal through their first vertex: triangles (2 n, 3, 3)."""
    normal = np.cross(v[:, 1] - v[:, 0], v[:, 2] - v[:, 0])
    height = np.abs(np.einsum("ni,ni->n", normal, v[:, 3] - v[:, 0]))
    if np.any(height > 1e-8 * np.linalg.norm(normal, axis=1) ** 1.5):
        raise ValueError("a distance needs plane facets; this mesh has warped ones: use tetrahedra")
    first = _lexicographic(v)[:, 0]
    # Vertices are numbered as on a tensor product: the opposite of k is 3 − k.
    ends = np.stack([first, 3 - first], axis=1)
    others = np.stack([np.where((first == 0) | (first == 3), 1, 0), np.where((first == 0) | (first == 3), 2, 3)])
    corners = np.concatenate([np.column_stack([ends, other]) for other in others])
    return np.take_along_axis(np.tile(v, (2, 1, 1)), corners[..., None], axis=1)


def _joined(rows: np.ndarray, size: float) -> np.ndarray:
    """Segments (p, q, side) with p < q, where neighbours on one line with one side are made one."""
    p, q, side = rows[:, :2], rows[:, 2:4], rows[:, 4]
    t = (q - p) / np.linalg.norm(q - p, axis=1, keepdims=True)
    offset = (t[:, 0] * p[:, 1] - t[:, 1] * p[:, 0]) / size
    line = np.unique(np.round(np.column_stack([t, offset, side]) / _ROUNDING), axis=0, return_inverse=True)[1].ravel()
    start = np.einsum("ni,ni->n", t, p)
    order = np.lexsort([start, line])
    p, q, side, line = p[order], q[order], side[order], line[order]
    goes_on = (line[1:] == line[:-1]) & (np.abs(p[1:] - q[:-1]).max(axis=1) <= _ROUNDING * size)
    breaks = np.flatnonzero(~goes_on)
    first, last = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(p) - 1]])
    return np.column_stack([p[first], q[last], side[first]])
