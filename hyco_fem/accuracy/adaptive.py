"""Meshes refined where the error certificate is large: solve, certify, mark, refine.

Marking is Dörfler's (SIAM J. Numer. Anal. 33, 1996): the fewest cells that hold a fraction of Σ η_K².  With it, and
indicators that are equivalent to the error, the loop converges at the best rate that refinement can give (Cascon,
Kreuzer, Nochetto, Siebert, SIAM J. Numer. Anal. 46, 2008), also where the solution is singular and uniform refinement
loses its rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from hyco_fem.accuracy.certificate import Certificate, Certifier
from hyco_fem.bridge.ghosts import check_whole
from hyco_fem.parallel import agreed, max_over_ranks, sum_array

# Indicators within this of the threshold, relative to it, are marked with it: cells that differ by rounding only, as by
# symmetry, are marked together on any partition.
_TIE = 1e-6

_BISECTIONS = 60


def dorfler(indicators: np.ndarray, comm: MPI.Comm, fraction: float = 0.5) -> np.ndarray:
    """The fewest cells with Σ η_K² over them at least `fraction` of that over all; with equals of the last one, all.

    Args:
        indicators: η_K ≥ 0 of the owned cells, (n_owned,).
        fraction: θ in (0, 1].

    Returns:
        The marked owned cells, ascending, int32.

    The threshold is found by bisection on numbers summed over the ranks: no rank holds all indicators.  Collective.
    """
    with agreed(comm):
        if not (isinstance(fraction, Real) and 0.0 < fraction <= 1.0):
            raise ValueError(f"fraction must be a number in (0, 1], not {fraction!r}")
        squares = np.square(np.asarray(indicators, dtype=np.float64))
        if squares.ndim != 1 or not np.isfinite(squares).all():
            raise ValueError("indicators must be finite numbers, one for each owned cell")
        if (np.asarray(indicators) < 0.0).any():
            raise ValueError("indicators must not be negative")
    total = float(sum_array(comm, np.array([squares.sum()]))[0])
    (high,) = max_over_ranks(comm, [squares.max(initial=0.0)])
    if total == 0.0:
        return np.empty(0, dtype=np.int32)
    if fraction == 1.0:
        return np.flatnonzero(squares > 0.0).astype(np.int32)
    # On a logarithmic scale: what lies 1e-18 below the largest is marked only where everything is.
    low, high = np.log(high) - 60.0, np.log(high)
    goal = fraction * total * (1.0 - 1e-12)

    def held(log_threshold: float) -> float:
        return float(sum_array(comm, np.array([squares[squares >= np.exp(log_threshold) * (1.0 - _TIE)].sum()]))[0])

    if held(low) < goal:
        return np.flatnonzero(squares > 0.0).astype(np.int32)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if held(middle) >= goal else (low, middle)
        if high - low < 1e-3 * _TIE:
            break
    return np.flatnonzero(squares >= np.exp(low) * (1.0 - _TIE)).astype(np.int32)


def refine_marked(mesh: dmesh.Mesh, marked: np.ndarray) -> dmesh.Mesh:
    """Bisect all edges of the marked cells, and what keeps the mesh conforming; redistributed over the ranks.

    Args:
        mesh: Triangles or tetrahedra.  marked: local cells, those owned here.

    Refinement by longest edges (Plaza, Carey 2000): angles stay bounded.  Collective.
    """
    topology = mesh.topology
    tdim = topology.dim
    with agreed(mesh.comm):
        if mesh.topology.cell_name() not in ("triangle", "tetrahedron"):
            raise ValueError(f"only triangles and tetrahedra are refined, not {mesh.topology.cell_name()} cells")
        marked = np.unique(np.asarray(marked)).astype(np.int32)
        if len(marked) and not 0 <= marked[0] <= marked[-1] < topology.index_map(tdim).size_local:
            raise ValueError(f"marked has cells {marked[0]} … {marked[-1]}, which are not all owned here")
    topology.create_entities(1)
    topology.create_connectivity(tdim, 1)
    topology.create_connectivity(1, tdim)
    edges = dmesh.compute_incident_entities(topology, marked, tdim, 1)
    found = dmesh.refine(mesh, edges)
    return found[0] if isinstance(found, tuple) else found


@dataclass(frozen=True)
class AdaptiveLevel:
    """One mesh of an adaptive computation.

    mesh, v: the mesh and the approximation on it.  cells, dofs: how many, on all ranks.  certificate: of v.
    """

    mesh: dmesh.Mesh
    v: fem.Function
    cells: int
    dofs: int
    certificate: Certificate

    def __str__(self) -> str:
        return f"{self.cells:8d} cells  {self.dofs:8d} dofs  certificate {self.certificate.value:.4e}"


def adapt(
    mesh: dmesh.Mesh,
    solve: Callable[[dmesh.Mesh], fem.Function],
    *,
    fraction: float = 0.5,
    max_cells: int = 10_000,
    tolerance: float = 0.0,
    callback: Callable[[AdaptiveLevel], None] | None = None,
    **problem: Any,
) -> list[AdaptiveLevel]:
    """Solve, certify, mark and refine, until the certificate is small enough or the mesh is large enough.

    Args:
        mesh: The first mesh.
        solve: Makes the approximation on a mesh; collective.
        fraction: θ of the marking; 1 refines wherever the indicator is not zero.
        max_cells: No mesh is made from one with this many cells or more.
        tolerance: Of the certificate.
        callback: Called with each level, on all ranks.
        problem: As for `Certifier`.  Data must not belong to one mesh: numbers, networks and formulas, and for
            `dirichlet` a function of x.  flux_degree is one more than the degree of v, by default.

    Returns:
        All levels, coarse to fine.  Collective.

    Raises:
        ValueError, TypeError: an argument that does not fit, or data that belong to a mesh; on all ranks.
    """
    with agreed(mesh.comm):
        check_whole("max_cells", max_cells, 1)
        if not (isinstance(tolerance, Real) and tolerance >= 0.0):
            raise ValueError(f"tolerance must be a number of at least 0, not {tolerance!r}")
        for name, value in problem.items():
            bound = value if isinstance(value, tuple) else (value,)
            if any(hasattr(part, "ufl_shape") for part in bound) or isinstance(value, np.ndarray):
                raise TypeError(
                    f"{name} belongs to one mesh, and adapt makes others: pass a number, a network or a formula of "
                    "coordinates, for dirichlet a function of x (3, n)"
                )
    levels: list[AdaptiveLevel] = []
    while True:
        v = solve(mesh)
        with agreed(mesh.comm):
            if not isinstance(v, fem.Function) or v.function_space.mesh is not mesh:
                raise TypeError("solve must return a Function of the mesh that it was given")
        V = v.function_space
        options = {"flux_degree": V.element.basix_element.degree + 1, **problem}
        certifier = Certifier(mesh, **options)
        try:
            certificate = certifier(v)
        finally:
            certifier.close()
        cells = mesh.topology.index_map(mesh.topology.dim).size_global
        level = AdaptiveLevel(mesh, v, cells, V.dofmap.index_map.size_global * V.dofmap.index_map_bs, certificate)
        levels.append(level)
        if callback is not None:
            callback(level)
        if certificate.value <= tolerance or cells >= max_cells:
            return levels
        mesh = refine_marked(mesh, dorfler(certificate.by_cell, mesh.comm, fraction))
