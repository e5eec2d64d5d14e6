"""Ready problems: incompressible flows.  The unknown w is velocity and pressure together, in Taylor–Hood elements.

Velocity continuous of degree 2, pressure continuous of degree 1 (Taylor & Hood, Computers & Fluids 1 (1973)), on
triangles, quadrilaterals, tetrahedra and hexahedra.  Dirichlet conditions are on the velocity.  Where there is none,
the natural condition μ ∂u/∂n − p n = 0 lets the flow out ("do nothing"; Heywood, Rannacher & Turek, IJNMF 22 (1996)).
See catalogue.py for how quantities may be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import basix.ufl
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from ufl import div, dot, grad, inner

from hyco_fem.pde.linear import SolveError
from hyco_fem.pde.problem import Condition, Draft, Problem
from hyco_fem.pde.vectors import owned, set_owned


def stokes(
    mesh: dmesh.Mesh,
    *,
    mu: Any = 1.0,
    f: Any = 0.0,
    conditions: Sequence[Condition],
    pin_pressure: bool = False,
) -> Problem:
    """−∇·(μ ∇u) + ∇p = f, ∇·u = 0: slow flow.

    Args:
        mu: Coefficient, the viscosity > 0.
        f: Coefficient, the force per volume, a vector (or 0).
        conditions: On the velocity.  Natural: μ ∂u/∂n − p n, a vector.
        pin_pressure: p = 0 at one vertex, the lowest one by its coordinates.  Needed where the velocity is given on the
            whole boundary: then p is determined up to a constant only.

    Returns:
        The problem; `observed` is the velocity; `extras` has "velocity", "pressure" and "viscosity".
    """
    return _flow("stokes", mesh, mu, f, conditions, pin_pressure, inertia=False)


def navier_stokes(
    mesh: dmesh.Mesh,
    *,
    mu: Any = 1.0,
    f: Any = 0.0,
    conditions: Sequence[Condition],
    pin_pressure: bool = False,
) -> Problem:
    """−∇·(μ ∇u) + (u·∇)u + ∇p = f, ∇·u = 0: steady flow with inertia, density one, convective form.

    With speeds and lengths of size one the Reynolds number is 1/μ.  No stabilisation: cells must be small enough for
    the boundary layers.  Newton from rest converges up to some tens; beyond, see `continuation`.

    Args:
        mu: Coefficient, the viscosity over the density > 0.
        f, conditions, pin_pressure: As for `stokes`.

    Returns:
        As for `stokes`.
    """
    return _flow("navier_stokes", mesh, mu, f, conditions, pin_pressure, inertia=True)


def continuation(model: Any, problem: Problem, reynolds: Sequence[float]) -> None:
    """Solve for rising Reynolds numbers, μ = 1/Re, each from the solution before.

    Args:
        model: A `PhysicalModel` (at its present θ) or a `SteadySolver` of the problem, made with warm_start=True, which
            has the next solve start from the last solution.
        problem: The `navier_stokes` problem.  Its μ must be a number, a Constant or a Function, and may be unknown.
        reynolds: Rising; the last one is the one wanted.

    Raises:
        SolveError: no convergence, with the Reynolds number that was reached; u and μ are as before the call.
        ValueError: the arguments do not fit.

    Afterwards u is the last solution, and μ, unless a module gives it, is 1/Re of it.  Collective.
    """
    solver = getattr(model, "solver", model)
    mu = problem.extras.get("viscosity")
    numbers = np.asarray(reynolds, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or not (numbers[0] > 0 and np.all(np.diff(numbers) > 0)):
        raise ValueError(f"the Reynolds numbers must be positive and rising, not {reynolds}")
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"the Reynolds numbers must be finite, not {reynolds}")
    if solver.u is not problem.u:
        raise ValueError("the model was not made from this problem")
    if not isinstance(mu, (fem.Function, fem.Constant)):
        raise ValueError(f"{problem.name} was made with an expression for its viscosity; give 'mu' as a number")
    if not solver.warm_start:
        raise ValueError("continuation needs a model that starts from its last solution: warm_start=True")
    if solver is model:
        values = [owned(m).copy() for m in solver.coefficients]
    else:
        values = [np.array(value.detach()) for value in model.coefficient_values()]
    before = problem.u.x.array.copy(), _copy(mu)
    reached = "none"
    for Re in numbers:
        _set(mu, 1.0 / Re)
        values = [np.full_like(v, 1.0 / Re) if m is mu else v for m, v in zip(solver.coefficients, values, strict=True)]
        try:
            solver.forward(values)
        except SolveError as error:
            problem.u.x.array[:] = before[0]
            _set(mu, before[1])
            raise SolveError(
                f"the continuation of {problem.name} failed at Re = {Re:g} (reached: {reached}); put Reynolds numbers "
                f"in between, or refine the mesh.  {error}"
            ) from error
        reached = f"{Re:g}"


def _copy(f: fem.Function | fem.Constant) -> np.ndarray:
    return owned(f).copy() if isinstance(f, fem.Function) else np.array(f.value, copy=True)


def _set(f: fem.Function | fem.Constant, value: Any) -> None:
    if isinstance(f, fem.Function):
        set_owned(f, value)
    else:
        f.value = value


def _flow(
    name: str,
    mesh: dmesh.Mesh,
    mu: Any,
    f: Any,
    conditions: Sequence[Condition],
    pin_pressure: bool,
    inertia: bool,
) -> Problem:
    draft = Draft(name, mesh, conditions)
    draft.check_plane_or_space()
    mu, f = draft.quantity("mu", mu, above=0.0), draft.quantity("f", f, (draft.gdim,))
    if draft.closed and not pin_pressure:
        raise ValueError(
            f"the velocity of {name} is given on the whole boundary, so that the pressure is determined up to a "
            "constant only; use pin_pressure=True, or leave an outflow without a Dirichlet condition"
        )
    if draft.open and pin_pressure:
        raise ValueError(f"the outflow of {name} determines the pressure already; use pin_pressure=False")
    cell = mesh.basix_cell()
    velocity = basix.ufl.element("Lagrange", cell, 2, shape=(draft.gdim,))
    pressure = basix.ufl.element("Lagrange", cell, 1)
    W = fem.functionspace(mesh, basix.ufl.mixed_element([velocity, pressure]))
    w = fem.Function(W, name="velocity_pressure")
    u, p = ufl.split(w)
    v, q = ufl.TestFunctions(W)
    # The sign of the second equation makes the matrix of Stokes symmetric.
    F = (mu * inner(grad(u), grad(v)) - p * div(v) - q * div(u) - inner(f, v)) * draft.dx
    if inertia:
        F += inner(dot(grad(u), u), v) * draft.dx
    F += draft.natural(u, v)
    bcs = draft.essential(W.sub(0))
    if pin_pressure:
        bcs.append(_pinned(W.sub(1)))
    return draft.problem(F, w, bcs, 0, velocity=u, pressure=p, viscosity=mu)


def _pinned(space: fem.FunctionSpace) -> fem.DirichletBC:
    """p = 0 at the vertex with the lowest coordinates."""
    Q = space.collapse()[0]
    dofs = fem.locate_dofs_topological((space, Q), 0, lowest_vertex(space.mesh))
    return fem.dirichletbc(fem.Function(Q, name="pinned_pressure"), dofs, space)


def lowest_vertex(mesh: dmesh.Mesh) -> np.ndarray:
    """The vertex with the lowest coordinates, in the order of x, y, z, where it is here: the same for any partition."""
    n = mesh.topology.index_map(0).size_local + mesh.topology.index_map(0).num_ghosts
    mesh.topology.create_connectivity(0, mesh.topology.dim)
    vertices = np.arange(n, dtype=np.int32)
    # Coordinates as they were read, not computed from those of a cell: equal to the last bit on all ranks.
    x = mesh.geometry.x[dmesh.entities_to_geometry(mesh, 0, vertices).reshape(n)]
    mine = x[np.lexsort(x.T[::-1])[0]] if n else np.full(3, np.inf)
    lowest = min(tuple(row.tolist()) for row in mesh.comm.allgather(mine))
    return vertices[np.all(x == np.array(lowest), axis=1)]
