"""A problem in time as one object: what `TransientModel.of` takes, and what the catalogue makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from ufl.core.expr import Expr

from hyco_fem import _compat
from hyco_fem.agreement import agreed
from hyco_fem.pde.march import SetAt
from hyco_fem.pde.scheme import StepProblem


@dataclass(frozen=True, eq=False)
class TransientProblem:
    """A PDE in time, ready for `TransientModel.of`, or by parts for `TransientModel`.

    name: of the equation.  u: the unknown.  u_t: stands for ∂u/∂t in F.  t: the Constant that stands for time.
    F: the residual F(u, u_t, t; v); None for a splitting.  explicit: what may be treated explicitly, E(u, t; v).
    bcs: Dirichlet conditions.  initial: u at the start: a number, UFL expression or Function.
    time_values: Functions (boundary values, loads) that are expressions in t, set anew at every time.
    coefficients: by name, the Functions that may be made unknown; each holds the value it was given.
    observed: the sub-space that is compared with data.  positive: coefficients that must stay positive.
    extras: UFL expressions that go with the solution, by name.
    splitting: where a step is several solves: from the Function that holds the initial value to the problem of a step.
    """

    name: str
    F: ufl.Form | None
    u: fem.Function
    u_t: fem.Function
    t: fem.Constant
    bcs: list[fem.DirichletBC] = field(default_factory=list)
    initial: Any = 0.0
    explicit: ufl.Form | None = None
    time_values: dict[fem.Function, Expr] = field(default_factory=dict)
    coefficients: dict[str, fem.Function] = field(default_factory=dict)
    observed: int | tuple[int, ...] | None = None
    positive: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
    splitting: Callable[[fem.Function], StepProblem] | None = None


def setters(
    values: Mapping[fem.Function, Any], t: fem.Constant, fixed: Sequence[fem.Function] = ()
) -> dict[fem.Function, SetAt]:
    """What sets Functions as functions of time.

    Args:
        values: For each Function a UFL expression that contains the Constant t, or a Python function of x (3, n) and
            the time, to values (n,) or (components, n), as for `Function.interpolate`.
        fixed: Functions that an expression must not contain, since gradients by them would miss it, and that cannot be
            given in time themselves: the unknown, and coefficients.

    Raises:
        TypeError, ValueError: a value that is neither, of another shape, or with one of `fixed`.

    Collective.
    """
    found: dict[fem.Function, SetAt] = {}
    if not isinstance(values, Mapping):
        raise TypeError(f"time_values must be a dict {{Function: UFL expression in t}}, not {type(values).__name__}")
    for g, value in values.items():
        if not isinstance(g, fem.Function):
            raise TypeError(f"keys of time_values must be Functions, not {type(g).__name__}")
        if any(g is m for m in fixed):
            raise ValueError(
                f"'{g.name}' cannot be given in time_values: it is the unknown or a coefficient; use another Function, "
                "or PerInterval for a coefficient that changes in time"
            )
        if isinstance(value, Expr):
            if value.ufl_shape != g.ufl_shape:
                raise ValueError(f"the value of '{g.name}' in time has shape {value.ufl_shape}, not {g.ufl_shape}")
            contained = ufl.algorithms.extract_coefficients(value)
            for m in fixed:
                if m in contained:
                    raise ValueError(
                        f"the value of '{g.name}' in time depends on '{m.name}', and gradients would miss that: write "
                        "the dependence into the form, or make the boundary value itself a coefficient"
                    )
            for other in values:
                if other in contained:
                    raise ValueError(
                        f"the value of '{g.name}' in time contains '{other.name}', which is itself in time_values, and "
                        "would be taken at another time: write out what it is"
                    )
            found[g] = _from_expression(g, value, t)
        elif callable(value):
            found[g] = _from_callable(value)
        else:
            raise TypeError(
                f"the value of '{g.name}' in time must be a UFL expression with t, or a function of (x, t), not "
                f"{type(value).__name__}"
            )
    return found


def _from_expression(g: fem.Function, value: Expr, t: fem.Constant) -> SetAt:
    V = g.function_space
    expression = _compat.expression(value, _compat.interpolation_points(V), V.mesh)

    def set_at(f: fem.Function, time: float) -> None:
        before = float(t.value)
        t.value = time
        f.interpolate(expression)
        f.x.scatter_forward()
        t.value = before

    return set_at


def _from_callable(value: Callable) -> SetAt:
    def set_at(f: fem.Function, time: float) -> None:
        def at_points(x: np.ndarray) -> np.ndarray:
            # A user's own code, which may fail on one rank, or where a rank has no points.
            with agreed(f.function_space.mesh.comm):
                found = np.asarray(value(x, time))
                size = int(np.prod(f.ufl_shape))
                if found.shape not in ([(x.shape[1],), (1, x.shape[1])] if size == 1 else [(size, x.shape[1])]):
                    wanted = "(n,)" if size == 1 else f"({size}, n)"
                    raise ValueError(
                        f"the function for '{f.name}' in time_values returned shape {found.shape} at n = {x.shape[1]} "
                        f"points; it must return {wanted}"
                    )
            return found

        f.interpolate(at_points)
        f.x.scatter_forward()

    return set_at
