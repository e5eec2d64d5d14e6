"""How sharp the explicit bound is: true errors of P1 solutions, for random loads and for the worst one.

The load f is constant on the cells of a finer mesh, so that nothing is lost to quadrature.  As u_h is a Galerkin
solution, ‖κ^{1/2}∇(u − u_h)‖² = ‖κ^{1/2}∇u‖² − ‖κ^{1/2}∇u_h‖², and on the finer mesh the energy of u lies between that
of its P2 solution and that of the RT₀ flux p (Prager–Synge):

    (f, u₂) − (f, u_h)  ≤  ‖κ^{1/2}∇(u − u_h)‖²  ≤  ‖κ^{−1/2}p‖² − (f, u_h).

So no true error is claimed that is not known: each comes as a lower and an upper value.  Both are quadratic in f; the
worst load is an eigenvector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from hyco_fem.accuracy.bound import ExplicitBound, explicit_bound, held_facets, kappa_bounds, poincare_constant
from hyco_fem.accuracy.convergence import refined
from hyco_fem.accuracy.mixed import MixedResponse, Response
from hyco_fem.accuracy.spectrum import Eigenpair, largest_eigenvalue
from hyco_fem.bridge.cells import cell_geometry
from hyco_fem.bridge.ghosts import check_whole
from hyco_fem.bridge.points import Observation, Points
from hyco_fem.parallel import agreed, sum_array

# A function of x (n, d) with values (n,).
Formula = Callable[[np.ndarray], np.ndarray]

# Which x (3, n) on the boundary are on Γ_D, as in dolfinx.mesh.locate_entities_boundary; None for all.
Marker = Callable[[np.ndarray], np.ndarray]

# Numbering by position must not depend on the last digits: places are compared on a grid of 3·10⁸ steps, which being
# no simple fraction leaves no midpoint of a regular mesh half-way between two.
_GRID = 1e9 / math.pi


@dataclass(frozen=True)
class _Rule:
    """A quadrature rule on the owned cells of the finer mesh; all its points in the mesh; the row of our first one."""

    cells: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    points: Points
    start: int


class TrueErrors:
    """True errors of the P1 solutions on a mesh, for loads that are constant on the cells of a finer one.

    Args:
        mesh: Triangles or tetrahedra.
        kappa: A number, a ("DG", 0) Function on the mesh, or a function of x (n, d), of which the value at the midpoint
            of each cell of the finer mesh is taken: that is then κ, for u and for u_h.
        dirichlet: Which x (3, n) on the boundary are on Γ_D; the whole boundary by default.
        refinements: How often the mesh is refined for loads and reference solutions.

    Attributes:
        x: midpoints of the cells of the finer mesh, (n, d), numbered by position.  volumes: of these cells, (n,).
        mesh, fine: the two meshes.  kappa: on the finer one, (n,).

    Loads, x, volumes and kappa are replicated: meant for studies on small meshes.  Collective throughout.
    """

    def __init__(
        self,
        mesh: dmesh.Mesh,
        kappa: float | fem.Function | Formula = 1.0,
        dirichlet: Marker | None = None,
        *,
        refinements: int = 2,
    ) -> None:
        check_whole("refinements", refinements, 1)
        if dirichlet is not None and not callable(dirichlet):
            raise TypeError(
                "dirichlet must be a function of x (3, n) here, not facets: the finer mesh has facets of its own"
            )
        self.mesh, self.comm = mesh, mesh.comm
        self.fine = refined(mesh, refinements)
        geometry = cell_geometry(self.fine)
        owned = np.arange(geometry.n_owned)
        X = np.full((len(owned), geometry.tdim), 1.0 / (geometry.tdim + 1))
        mine = geometry.push_forward(owned, X)
        parts = self.comm.allgather(mine)
        start = sum(map(len, parts[: self.comm.rank]))
        every = np.concatenate(parts)
        low = every.min(axis=0)
        order = np.lexsort(np.round((every - low) / np.ptp(every, axis=0).max() * _GRID).T)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self._index = place[start : start + len(mine)]  # of the owned cells of the finer mesh
        self.x = every[order]
        self._n = len(order)
        self.volumes = self._replicated(geometry.volumes())
        self._points = Points(mesh, self.x)

        coarse, fine = (fem.functionspace(m, ("DG", 0)) for m in (mesh, self.fine))
        self._dofs = fine.dofmap.list[: len(owned), 0]
        self.kappa = self._values_of(kappa, coarse)
        # ∇u_h is constant on a cell of the mesh, so only the mean of κ over it counts.
        means = self._points.observation(coarse)
        w = self.volumes[self._points.index]
        mean = fem.Function(coarse)
        n = coarse.dofmap.index_map.size_local
        mean.x.array[:n] = means.transpose(w * self.kappa[self._points.index]) / means.transpose(w)
        mean.x.scatter_forward()
        k = fem.Function(fine)
        k.x.array[self._dofs] = self.kappa[self._index]
        k.x.scatter_forward()
        self._C0 = poincare_constant(k)
        self._P1 = fem.functionspace(mesh, ("Lagrange", 1))
        facets = held_facets(self.fine, dirichlet)
        self._galerkin = Response(self._P1, mean, held_facets(mesh, dirichlet))
        self._lower = Response(fem.functionspace(self.fine, ("Lagrange", 2)), k, facets)
        self._upper = MixedResponse(self.fine, k, facets)
        self._rule: _Rule | None = None

    def _values_of(self, kappa: float | fem.Function | Formula, coarse: fem.FunctionSpace) -> np.ndarray:
        if callable(kappa) and not isinstance(kappa, fem.Function):
            with agreed(self.comm):
                values = np.asarray(kappa(self.x), dtype=np.float64)
                if values.shape != (self._n,) or not (np.isfinite(values) & (values > 0.0)).all():
                    raise ValueError(f"kappa must be positive, with one value at each of the {self._n} points x (n, d)")
            return values
        if isinstance(kappa, (tuple, list)):
            raise TypeError("kappa must be one κ here, not a pair of bounds: true errors are those of one problem")
        return self._points.gather(self._points.evaluate(kappa_bounds(coarse, kappa)[0]))

    def _replicated(self, mine: np.ndarray) -> np.ndarray:
        """Values of the owned cells of the finer mesh, on all ranks."""
        out = np.zeros(self._n)
        out[self._index] = mine
        return sum_array(self.comm, out)

    # -- errors --------------------------------------------------------------------------------------------------

    def norm(self, f: np.ndarray) -> float:
        """‖f‖ in L²."""
        return math.sqrt(float(self.volumes @ f**2))

    def energy(self, f: np.ndarray) -> tuple[float, float]:
        """‖κ^{1/2}∇(u − u_h)‖ for a load f (n,): a lower and an upper value."""
        f = self._load(f)
        u_h = self._means_coarse(f)
        lower, upper = (float(f @ (self._means_fine(s, f) - u_h)) for s in (self._lower, self._upper))
        return math.sqrt(max(0.0, lower)), math.sqrt(max(0.0, upper))

    def L2(self, f: np.ndarray) -> float:
        """‖u₂ − u_h‖ in L², with u₂ the P2 solution on the finer mesh; its own error is not known."""
        f = self._load(f)
        self._means_coarse(f)
        self._means_fine(self._lower, f)
        rule = self._quadrature()
        u_2 = Observation(self._lower.V, rule.cells, rule.X).apply(
            self._lower.u.x.array[: self._lower.V.dofmap.index_map.size_local]
        )
        u_h = rule.points.gather(rule.points.evaluate(self._galerkin.u))[rule.start : rule.start + len(u_2)]
        return math.sqrt(float(sum_array(self.comm, np.array([rule.weights @ (u_2 - u_h) ** 2]))[0]))

    def worst(self, tolerance: float = 1e-6, *, on_cells: bool = False) -> tuple[np.ndarray, float]:
        """The load of norm one with the largest lower value of the energy error, and that value.

        Args:
            tolerance: Relative residual of the eigenvalue.
            on_cells: Among the loads that are constant on the cells of the mesh itself.
        """
        pair = self._largest(self._lower, tolerance, self._cell_means if on_cells else None)
        return self._replicated(pair.vector) / np.sqrt(self.volumes), math.sqrt(max(0.0, pair.value))

    def best_constant(self, tolerance: float = 1e-6) -> tuple[float, float]:
        """Between what lies C*, the least constant with ‖κ^{1/2}∇(u − u_h)‖ ≤ C* ‖f‖ for every f ∈ L².

        From below the error of the worst load.  From above by the proof of C_h, with f_h and p on the finer mesh and v
        still on the mesh: a constant as rigorous as C_h, sharper the more refinements, at the cost of the finer mesh.
        """
        upper = self._largest(self._upper, tolerance).value * (1.0 + tolerance)
        return self.worst(tolerance)[1], math.sqrt(self._C0**2 + upper)

    def _largest(self, response: Response, tolerance: float, project: Formula | None = None) -> Eigenpair:
        """Of f ↦ (f, u) − (f, u_h) over ‖f‖², u by `response`; f among the images of the projection."""
        root = np.sqrt(self.volumes)
        project = project or (lambda f: f)

        def apply(x: np.ndarray) -> np.ndarray:
            f = project(self._replicated(x) / root)
            error = (self._means_fine(response, f) - self._means_coarse(f)) / self.volumes
            return (project(error) * root)[self._index]

        noise = np.random.default_rng(0).standard_normal(self._n)
        return largest_eigenvalue(self.comm, apply, (project(noise) * root)[self._index], tolerance)

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        for response in (self._galerkin, self._lower, self._upper):
            response.close()

    # -- the two meshes ------------------------------------------------------------------------------------------

    def _load(self, f: np.ndarray) -> np.ndarray:
        with agreed(self.comm):
            f = np.asarray(f, dtype=np.float64)
            if f.shape != (self._n,) or not np.isfinite(f).all():
                raise ValueError(f"a load has a finite value in each of the {self._n} cells of the finer mesh")
        return f

    def _means_fine(self, response: Response, f: np.ndarray) -> np.ndarray:
        """∫ u over each cell of the finer mesh, (n,), for a solution on it."""
        own = np.empty(len(self._index))
        own[self._dofs] = f[self._index]
        return self._replicated(response.solve(own)[self._dofs])

    def _means_coarse(self, f: np.ndarray) -> np.ndarray:
        """The same for u_h.  Affine on each cell, its integral is volume times value at the midpoint."""
        B, index = self._points.observation(self._P1), self._points.index
        self._galerkin.solve_load(B.transpose((self.volumes * f)[index]))
        return self.volumes * self._points.gather(self._points.evaluate(self._galerkin.u))

    def _cell_means(self, f: np.ndarray) -> np.ndarray:
        """Means over the cells of the mesh, (n,)."""
        B, index = self._points.observation(self._galerkin.kappa.function_space), self._points.index
        w = self.volumes[index]
        return self._points.gather(B.apply(B.transpose(w * f[index]) / B.transpose(w)))

    def _quadrature(self) -> _Rule:
        """Of degree 4, which is exact; made at first use."""
        if self._rule is None:
            geometry = cell_geometry(self.fine)
            X, weights = geometry.quadrature(4)
            n = geometry.n_owned
            cells = np.repeat(np.arange(n), len(weights) // n if n else 0)
            parts = self.comm.allgather(geometry.push_forward(cells, X))
            start = sum(map(len, parts[: self.comm.rank]))
            self._rule = _Rule(cells, X, weights, Points(self.mesh, np.concatenate(parts)), start)
        return self._rule


# -- loads -----------------------------------------------------------------------------------------------------

KINDS = ("smooth", "rough", "discontinuous")


def random_loads(x: np.ndarray, n: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """n random loads at the points x (m, d), of the three kinds in turn: (kind, values (m,)).

    smooth: sines with up to three waves across the domain.  rough: white noise.  discontinuous: signs of three random
    half-spaces, weighted.
    """
    rng = np.random.default_rng(seed)
    d, low, size = x.shape[1], x.min(axis=0), np.ptp(x, axis=0)
    unit = (x - low) / size
    for k in range(n):
        kind = KINDS[k % len(KINDS)]
        if kind == "smooth":
            waves, phase, a = rng.uniform(-3.0, 3.0, (5, d)), rng.uniform(0.0, 1.0, 5), rng.standard_normal(5)
            values = np.sin(2 * np.pi * (unit @ waves.T + phase)) @ a
        elif kind == "rough":
            values = rng.standard_normal(len(x))
        else:
            normals, through, a = rng.standard_normal((3, d)), rng.uniform(0.0, 1.0, (3, d)), rng.standard_normal(3)
            values = np.sign(((unit[:, None, :] - through) * normals).sum(axis=2)) @ a
        yield kind, values


@dataclass(frozen=True)
class Sharpness:
    """True errors over their bounds, for many loads; replicated.

    bound: C_h.  energy: for each kind of load the largest (lower value of the error) / (C_h ‖f‖).
    energy_upper: the same with the upper value.  L2: the largest ‖u₂ − u_h‖ / (C_h² ‖f‖).
    worst: the ratio for the worst load there is on the finer mesh; worst_on_cells: on the mesh itself.
    best: C*, the least constant that holds for every f, over C_h is between `worst` and this.
    loads: how many were drawn.  violations: for how many the lower value, or the L² error, was above its bound.
    """

    bound: ExplicitBound
    energy: dict[str, float]
    energy_upper: dict[str, float]
    L2: dict[str, float]
    worst: float
    worst_on_cells: float
    best: float
    loads: int
    violations: int

    def __str__(self) -> str:
        lines = [f"{self.loads} loads, {self.violations} above the bound; largest true error / bound:"]
        for kind, low in self.energy.items():
            lines.append(f"  {kind:14s} energy {low:.3f} … {self.energy_upper[kind]:.3f}   L² {self.L2[kind]:.3f}")
        lines.append(f"  {'worst there is':14s} energy {self.worst:.3f}, constant on cells {self.worst_on_cells:.3f}")
        lines.append(
            f"  the least constant that holds for every load is between {self.worst:.3f} and {self.best:.3f} C_h"
        )
        return "\n".join(lines)


def sharpness(
    mesh: dmesh.Mesh,
    bound: ExplicitBound | None = None,
    *,
    kappa: float | fem.Function | Formula = 1.0,
    dirichlet: Marker | None = None,
    loads: int = 99,
    seed: int = 0,
    refinements: int = 2,
) -> Sharpness:
    """Compare the bound with true errors, over random loads and for the worst one.  Collective.

    Args:
        mesh, kappa, dirichlet, refinements: As for `TrueErrors`.
        bound: Of this mesh; computed by default, for which κ must be a number or a DG0 Function.
        loads: How many; smooth, rough and discontinuous in turn.  seed: of these.
    """
    check_whole("the number of loads", loads, 1)
    if bound is None:
        bound = explicit_bound(mesh, kappa, dirichlet)
    errors = TrueErrors(mesh, kappa, dirichlet, refinements=refinements)
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    try:
        for kind, f in random_loads(errors.x, loads, seed):
            norm = errors.norm(f)
            low, high = errors.energy(f)
            row = (low / bound.energy(norm), high / bound.energy(norm), errors.L2(f) / bound.L2(norm))
            ratios.setdefault(kind, []).append(row)
        on_cells = errors.worst(on_cells=True)[1] / bound.C_h
        worst, best = (C / bound.C_h for C in errors.best_constant())
    finally:
        errors.close()
    largest = {kind: np.max(rows, axis=0) for kind, rows in ratios.items()}
    every = np.concatenate([np.array(rows) for rows in ratios.values()])
    violations = int(np.sum((every[:, 0] > 1.0) | (every[:, 2] > 1.0)))
    energy, upper, L2 = ({kind: float(row[k]) for kind, row in largest.items()} for k in range(3))
    return Sharpness(bound, energy, upper, L2, worst, on_cells, best, loads, violations)
