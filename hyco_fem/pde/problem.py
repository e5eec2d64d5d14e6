"""A PDE as one object: residual, unknown, boundary conditions, and the coefficients that may be unknown.

    problem = hf.catalogue.poisson(mesh, kappa=2.0, conditions=(hf.Dirichlet(0.0, left), hf.Flux(1.0, right)))
    physical = hf.PhysicalModel.of(problem, {"kappa": hf.GaussianBumps(…)})

A condition names the facets it holds on: local facet indices (those of a MeshTags, or `MeshAndTags.facets(name)`), a
function of x (3, n) that is True on them, or None for the whole exterior boundary.  Its values may be

    a number or vector      known
    a UFL expression        known; interpolated where it is a Dirichlet value, used as it is elsewhere; in a problem in
                            time it may contain the Constant t
    a fem.Function          used as it is, and one of the problem's coefficients under its own name: it may be unknown

Everything here is distributed; making a problem is collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl.algorithms import expand_derivatives
from ufl.algorithms.analysis import extract_constants
from ufl.algorithms.transformer import strip_variables
from ufl.core.expr import Expr

from hyco_fem import _compat

Facets: TypeAlias = np.ndarray | Callable[[np.ndarray], np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Dirichlet:
    """u = value on some facets; where several hold, the last one counts.

    value: A number (for a vector unknown only zero), a vector, a UFL expression, or a Function of the space of u: in a
        flow of the velocity's own space, `fem.functionspace(mesh, ("Lagrange", 2, (d,)))`, with a component of that of
        one component.  facets: see above; also interior facets.  component: of a vector unknown, to fix it alone.
    """

    value: Any
    facets: Facets = None
    component: int | None = None


@dataclass(frozen=True, eq=False)
class Flux:
    """The natural condition: κ ∂u/∂n = value (what flows in), or the traction in solids and flows.  None means zero."""

    value: Any
    facets: Facets = None


@dataclass(frozen=True, eq=False)
class Robin:
    """κ ∂u/∂n (or the traction) = coefficient · (ambient − u): heat transfer, or springs."""

    coefficient: Any
    ambient: Any
    facets: Facets = None


Condition: TypeAlias = Dirichlet | Flux | Robin


@dataclass(frozen=True, eq=False)
class Problem:
    """A steady PDE, ready for `PhysicalModel.of`, or by parts for `PhysicalModel` and `SteadySolver`.

    name: of the equation.  F: residual.  u: unknown.  bcs: Dirichlet conditions.
    coefficients: by name, the Functions that may be made unknown; each holds the value it was given.
    observed: the sub-space that is compared with data: 0, the velocity, in a flow.
    positive: names of coefficients that must stay positive.
    extras: UFL expressions that go with the solution, by name: fluxes, stresses, the parts of a mixed unknown.
    """

    name: str
    F: ufl.Form
    u: fem.Function
    bcs: list[fem.DirichletBC]
    coefficients: dict[str, fem.Function] = field(default_factory=dict)
    observed: int | tuple[int, ...] | None = None
    positive: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)


class Draft:
    """A problem in the making: what a user gave becomes Functions, boundary integrals and Dirichlet conditions.

    Args:
        name: Of the equation, for error messages.
        mesh: The mesh.
        conditions: Boundary conditions; the natural ones (Flux, Robin) must not overlap.
        t: The Constant that stands for time, where there is time.

    Attributes:
        coefficients, positive: as in `Problem`, so far.
        time_values: Functions that hold Dirichlet values, with the expressions in t that they are.
        closed: all of u is fixed on the whole boundary.  open: nothing of u is fixed on some part of it, the owned
            facets `outflow`.

    Raises:
        ValueError, TypeError: a condition that does not fit; on all ranks.  Construction is collective.
    """

    def __init__(
        self, name: str, mesh: dmesh.Mesh, conditions: Sequence[Condition], t: fem.Constant | None = None
    ) -> None:
        if not isinstance(mesh, dmesh.Mesh):
            raise TypeError(f"{name} needs a dolfinx mesh, not {type(mesh).__name__}")
        self.name, self.mesh, self.gdim = name, mesh, mesh.geometry.dim
        if not (t is None or (isinstance(t, fem.Constant) and t.ufl_shape == ())):
            raise TypeError(f"t of {name} must be a Constant, fem.Constant(mesh, 0.0), not {type(t).__name__}")
        self.t = t
        self.time_values: dict[fem.Function, Expr] = {}
        self.coefficients: dict[str, fem.Function] = {}
        self.positive: list[str] = []
        self.dx = ufl.Measure("dx", domain=mesh)
        if isinstance(conditions, (Dirichlet, Flux, Robin)):
            conditions = (conditions,)
        for c in conditions:
            if not isinstance(c, (Dirichlet, Flux, Robin)):
                raise TypeError(f"conditions of {name} are Dirichlet, Flux or Robin, not {type(c).__name__}")
        self._conditions = list(conditions)
        self._labels = [f"condition {i} of {name} ({type(c).__name__})" for i, c in enumerate(conditions)]
        self._facets, self.closed, self.open = self._located()

    # -- quantities ------------------------------------------------------------------------------------------

    def quantity(
        self,
        name: str,
        value: Any,
        *shapes: tuple[int, ...],
        above: float = -np.inf,
        below: float = np.inf,
    ) -> Any:
        """A quantity of the equation for use in the form; unless it is an expression, one of the coefficients.

        Args:
            shapes: Those it may have; a scalar by default.
            above, below: Bounds of a number (of the eigenvalues of a matrix), both excluded.
        """
        what = f"'{name}' of {self.name}"
        shapes = shapes or ((),)
        if isinstance(value, Expr):
            self._check_expression(what, value, shapes)
            if not isinstance(value, fem.Function):
                return value
            f = value
        else:
            array = _numbers(what, value, shapes)
            entries = np.linalg.eigvalsh((array + array.T) / 2) if array.ndim == 2 else array
            if not (np.all(entries > above) and np.all(entries < below)):
                raise ValueError(f"{what} must be {_between(above, below)}, not {value}")
            Q = fem.functionspace(self.mesh, ("DG", 0, array.shape) if array.shape else ("DG", 0))
            f = fem.Function(Q, name=name)
            f.x.array.reshape(-1, array.size)[:] = array.ravel()
        self.register(name, f)
        if above == 0.0 and len(f.ufl_shape) == 0:
            self.positive.append(name)
        return f

    def register(self, name: str, f: fem.Function) -> None:
        """Make a Function one of the coefficients, under a name."""
        if any(f is known for known in self.coefficients.values()):
            return
        if name in self.coefficients:
            raise ValueError(
                f"{self.name} would have two coefficients named '{name}'; give the Function another name, "
                "fem.Function(Q, name=…)"
            )
        self.coefficients[name] = f

    def _check_expression(self, what: str, value: Expr, shapes: Sequence[tuple[int, ...]]) -> None:
        if value.ufl_shape not in shapes:
            raise ValueError(f"{what} has shape {value.ufl_shape}, not {' or '.join(map(str, shapes))}")
        if isinstance(value, fem.Function) and value.function_space.mesh.ufl_domain() != self.mesh.ufl_domain():
            raise ValueError(f"{what}, '{value.name}', lives on another mesh")

    # -- conditions ------------------------------------------------------------------------------------------

    def natural(self, u: Any, v: Any) -> ufl.Form:
        """The boundary integrals of the Flux and Robin conditions, to be added to the residual."""
        total = ufl.Form([])
        chosen = [i for i, c in enumerate(self._conditions) if not isinstance(c, Dirichlet)]
        if not chosen:
            return total
        # One set of tags for all: DOLFINx takes no more for each kind of integral.
        facets = np.concatenate([self._facets[i] for i in chosen])
        values = np.concatenate([np.full(len(self._facets[i]), i, dtype=np.int32) for i in chosen])
        order = np.argsort(facets)
        tags = dmesh.meshtags(self.mesh, self.mesh.topology.dim - 1, facets[order], values[order])
        ds = ufl.Measure("ds", domain=self.mesh, subdomain_data=tags)
        for i in chosen:
            c, label = self._conditions[i], self._labels[i]
            if isinstance(c, Flux):
                total -= ufl.inner(self._datum(f"the value of {label}", c.value, u.ufl_shape), v) * ds(i)
            elif isinstance(c, Robin):
                h = self._datum(f"the coefficient of {label}", c.coefficient, (), least=0.0)
                ambient = self._datum(f"the ambient value of {label}", c.ambient, u.ufl_shape)
                total += h * ufl.inner(u - ambient, v) * ds(i)
        return total

    def _datum(self, what: str, value: Any, shape: tuple[int, ...], least: float = -np.inf) -> Any:
        if isinstance(value, Expr):
            self._check_expression(what, value, [shape])
            if isinstance(value, fem.Function):
                self.register(value.name, value)
            return value
        array = _numbers(what, value, [shape])
        if np.any(array < least):
            raise ValueError(f"{what} must be at least {least:g}, not {value}")
        return fem.Constant(self.mesh, array)

    def essential(self, V: fem.FunctionSpace, *, rate: bool = False) -> list[fem.DirichletBC]:
        """The Dirichlet conditions on the unknown, in its space or sub-space V; with `rate` those on ∂u/∂t."""
        bcs = []
        for c, label, facets in zip(self._conditions, self._labels, self._facets, strict=True):
            if not isinstance(c, Dirichlet):
                continue
            space = V
            if c.component is not None:
                shape = _compat.value_shape(V)
                if len(shape) != 1 or not 0 <= c.component < shape[0]:
                    raise ValueError(f"{label}: an unknown of shape {shape} has no component {c.component}")
                space = V.sub(c.component)
            own = space.collapse()[0] if len(space.component()) > 0 else space
            value = self._rate(c.value) if rate else c.value
            g = self._boundary_value(f"the value of {label}", value, own)
            # Pairs of dofs: g may live in a space that was made apart from that of u.
            dofs = fem.locate_dofs_topological((space, g.function_space), self.mesh.topology.dim - 1, facets)
            bcs.append(fem.dirichletbc(g, dofs, space))
        return bcs

    def _boundary_value(self, what: str, value: Any, V: fem.FunctionSpace) -> fem.Function:
        shape = _compat.value_shape(V)
        if isinstance(value, Expr):
            self._check_expression(what, value, [shape])
        if isinstance(value, fem.Function):
            if value.function_space.ufl_element() != V.ufl_element():
                kind = ("Lagrange", V.element.basix_element.degree, *((shape,) if shape else ()))
                raise ValueError(f"{what}, '{value.name}', must be a Function of fem.functionspace(mesh, {kind})")
            self.register(value.name, value)
            return value
        g = fem.Function(V, name="boundary_value")
        if isinstance(value, Expr):
            g.interpolate(_compat.expression(value, _compat.interpolation_points(V), self.mesh))
            g.x.scatter_forward()
            if self.t is not None and self.t in extract_constants(value):
                self.time_values[g] = value
        else:
            array = _numbers(what, value, [shape])
            g.x.array.reshape(-1, array.size)[:] = array.ravel()
        return g

    def _rate(self, value: Any) -> Any:
        """∂/∂t of a boundary value."""
        if self.t is None or not isinstance(value, Expr) or self.t not in extract_constants(value):
            return 0.0
        time = ufl.variable(self.t)
        return strip_variables(expand_derivatives(ufl.diff(ufl.replace(value, {self.t: time}), time)))

    # -- facets ----------------------------------------------------------------------------------------------

    def _located(self) -> tuple[list[np.ndarray], bool, bool]:
        """Local facets of each condition; whether the boundary is closed, and whether it is open."""
        mesh, conditions = self.mesh, self._conditions
        n, fdim = len(conditions), mesh.topology.dim - 1
        mesh.topology.create_entities(fdim)
        mesh.topology.create_connectivity(fdim, fdim + 1)
        index_map = mesh.topology.index_map(fdim)
        n_owned, n_local = index_map.size_local, index_map.size_local + index_map.num_ghosts
        exterior = np.zeros(n_owned, dtype=bool)
        exterior[dmesh.exterior_facet_indices(mesh.topology)] = True
        natural = np.array([not isinstance(c, Dirichlet) for c in conditions], dtype=bool)
        whole = np.array([isinstance(c, Dirichlet) and c.component is None for c in conditions], dtype=bool)

        found, masks = [], np.zeros((n, n_owned), dtype=bool)
        strange, interior = np.zeros((2, n), dtype=np.int64)
        for i, c in enumerate(conditions):
            if c.facets is None:
                facets = np.flatnonzero(exterior)
            elif callable(c.facets):
                facets = dmesh.locate_entities_boundary(mesh, fdim, c.facets)
            else:
                given = np.asarray(c.facets)
                # A mask is not a list of indices.
                given = np.full(1, -1.0) if given.dtype == bool else np.unique(given.astype(np.float64))
                good = (given >= 0) & (given < n_local) & (given == np.floor(given))
                strange[i] = np.count_nonzero(~good)
                facets = given[good]
            facets = facets.astype(np.int32)
            found.append(facets)
            masks[i, facets[facets < n_owned]] = True
            interior[i] = np.count_nonzero(masks[i] & ~exterior)
        overlaps = masks.astype(np.int64) @ masks.T.astype(np.int64)
        self.outflow = np.flatnonzero(exterior & ~masks[~natural].any(axis=0)).astype(np.int32)
        bare = len(self.outflow)
        free = np.count_nonzero(exterior & ~masks[whole].any(axis=0))
        # One sum for all counts, so that all ranks come to the same verdict.
        local = np.concatenate([strange, interior, overlaps.ravel(), [bare, free]])
        counts = mesh.comm.allreduce(local)
        strange, interior, overlaps = counts[:n], counts[n : 2 * n], counts[2 * n : -2].reshape(n, n)
        self._refuse_facets(strange, np.where(natural, interior, 0), overlaps, natural, whole)
        return found, counts[-1] == 0, counts[-2] > 0

    def _refuse_facets(
        self, strange: np.ndarray, interior: np.ndarray, overlaps: np.ndarray, natural: np.ndarray, whole: np.ndarray
    ) -> None:
        for i, label in enumerate(self._labels):
            if strange[i] > 0:
                raise ValueError(f"{label} names facets that the mesh does not have: give local indices, whole numbers")
            if interior[i] > 0:
                raise ValueError(f"{label} names {interior[i]} facets that are not on the boundary")
            if overlaps[i, i] == 0:
                raise ValueError(f"{label} holds on no facet")
        for i, j in zip(*np.nonzero(np.triu(overlaps, 1)), strict=True):
            if natural[i] and natural[j]:
                raise ValueError(f"{self._labels[i]} and {self._labels[j]} hold on the same facets; keep them apart")
            if (natural[i] and whole[j]) or (natural[j] and whole[i]):
                raise ValueError(
                    f"{self._labels[i]} and {self._labels[j]} hold on the same facets, where u is fixed and a flux has "
                    "no effect; keep them apart"
                )

    # -- the end ---------------------------------------------------------------------------------------------

    def space(self, degree: int, *shape: int) -> fem.FunctionSpace:
        """Lagrange elements of a degree, scalar or with values of a shape."""
        self.check_degree(degree)
        return fem.functionspace(self.mesh, ("Lagrange", degree, shape) if shape else ("Lagrange", degree))

    def check_degree(self, degree: int) -> None:
        """Raise ValueError unless degree is 1, 2, …"""
        if isinstance(degree, bool) or not isinstance(degree, (int, np.integer)) or degree < 1:
            raise ValueError(f"the degree of {self.name} must be a whole number from 1 on, not {degree}")

    def check_plane_or_space(self) -> None:
        """Raise ValueError unless the mesh fills the plane or space."""
        if self.gdim not in (2, 3) or self.mesh.topology.dim != self.gdim:
            raise ValueError(
                f"{self.name} needs a mesh of a domain in 2D or 3D, not cells of dimension {self.mesh.topology.dim} in "
                f"{self.gdim}D"
            )

    def problem(
        self, F: ufl.Form, u: fem.Function, bcs: Sequence[fem.DirichletBC], observed: int | None = None, **extras: Any
    ) -> Problem:
        """The finished problem."""
        return Problem(self.name, F, u, list(bcs), self.coefficients, observed, tuple(self.positive), extras)


def _numbers(what: str, value: Any, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """An array of one of the shapes from numbers; 0 stands for zeros, and a number for a vector of length one."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} must be a number, an array, a UFL expression or a Function, not {type(value).__name__}"
        ) from None
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{what} is not finite: {value}")
    if array.shape in shapes:
        return array
    if array.shape == () and (array == 0.0 or shapes[0] == (1,)):
        return np.full(shapes[0], float(array))
    raise ValueError(f"{what} has shape {array.shape}, not {' or '.join(map(str, shapes))}")


def _between(above: float, below: float) -> str:
    if below == np.inf:
        return "positive" if above == 0.0 else f"above {above:g}"
    return f"between {above:g} and {below:g}"
