"""Schemes in time: from F(u, ∂u/∂t, t; v) = 0 to the problem of one step.

A step has the unknown u = uⁿ⁺¹ and the earlier values u₁ = uⁿ, u₂ = uⁿ⁻¹, … as Functions.  With the difference
d = c₀ u + c₁ u₁ + c₂ u₂ + … for ∂u/∂t, it is one residual,

    G = w₀ F(u, d, tⁿ⁺¹) + w₁ F(u₁, d, tⁿ) + E(u*, t*),    w₀ + w₁ = 1,    u* = e₁ u₁ + e₂ u₂ + …,

with E what is treated explicitly, at a value u* extrapolated to tⁿ⁺¹ (to the middle of the step by Crank–Nicolson), so
that it is evaluated once.  The weights are Constants: one compiled form serves all steps.  A scheme of several
solves a step (a splitting) is a list of `Stage`s.  Weights for variable steps: Hairer, Nørsett, Wanner, Solving ODEs
I, III.5; for implicit-explicit steps: Ascher, Ruuth, Wetton, SIAM J. Numer. Anal. 32 (1995); Wang, Ruuth, J. Comput.
Math. 26 (2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms.analysis import extract_coefficients, extract_constants

from hyco_fem.pde.timegrid import TimeGrid

# Above this ratio of each step to the one before, again and again, the formulas of second and third order are unstable
# whatever the equation (Hairer, Nørsett, Wanner, III.5; Calvo, Grande, Grigorieff, Numer. Math. 57 (1990)).
_LARGEST_RATIO = {2: 1.0 + 2.0**0.5, 3: 1.534}


@dataclass(frozen=True)
class Step:
    """Step n; times: tⁿ⁺¹, tⁿ, tⁿ⁻¹, …, as many as there are, at most four; lengths: of the steps between them."""

    n: int
    times: tuple[float, ...]
    lengths: tuple[float, ...]

    @classmethod
    def of(cls, grid: TimeGrid, n: int) -> Step:
        """Step n of a grid."""
        first = max(0, n - 2)
        times, lengths = grid.times[first : n + 2][::-1], grid.steps[first : n + 1][::-1]
        return cls(n, tuple(float(t) for t in times), tuple(float(dt) for dt in lengths))

    @property
    def dt(self) -> float:
        """Its length."""
        return self.lengths[0]

    def at(self, level: float) -> float:
        """tⁿ⁺¹ (level 0), tⁿ (1), or between them."""
        return self.times[0] if level == 0 else self.times[1] if level == 1 else self.times[0] - level * self.dt


@dataclass(frozen=True, eq=False)
class Stage:
    """One solve of a step: G(u; v) = 0 for u, where G may contain earlier values and unknowns of earlier stages."""

    G: ufl.Form
    u: fem.Function
    bcs: Sequence[fem.DirichletBC] = ()


@dataclass(frozen=True, eq=False)
class StepProblem:
    """One step in time.

    stages: solved one after the other.  u: the unknown that is observed, that of one of the stages.
    shifts: (older, newer) pairs of Functions: at the end of a step, in this order, older ← newer.
    initial: what the earlier values hold before the first step: (earlier value, Function with its start).
    extrapolated: (Function, [(weight, earlier value), …]): what is set to a sum of earlier values before the stages.
    levels: for Functions that a user gave as functions of time, stand-ins at tⁿ⁺¹, tⁿ, …: (Function, given, level).
    begin: sets the Constants of a step, `weights`.
    times: Constants that hold tⁿ⁺¹, tⁿ, …, with their level.
    """

    stages: Sequence[Stage]
    u: fem.Function
    shifts: Sequence[tuple[fem.Function, fem.Function]]
    initial: Sequence[tuple[fem.Function, fem.Function]]
    begin: Callable[[Step], None]
    weights: Sequence[fem.Constant] = ()
    levels: Sequence[tuple[fem.Function, fem.Function, float]] = ()
    times: Sequence[tuple[fem.Constant, float]] = ()
    extrapolated: Sequence[tuple[fem.Function, Sequence[tuple[fem.Constant, fem.Function]]]] = ()
    name: str = ""


class Scheme(Protocol):
    """How to go through time."""

    @property
    def name(self) -> str: ...

    def check(self, grid: TimeGrid, explicit: bool) -> None: ...

    def problem(self, equation: Equation) -> StepProblem: ...


@dataclass(frozen=True, eq=False)
class Equation:
    """F(u, u_t, t; v) + E(u, t; v) = 0 with its boundary values.

    u0: Function that holds the initial value.  given: Functions that are set as functions of time.
    """

    F: ufl.Form
    u: fem.Function
    u_t: fem.Function
    t: fem.Constant
    u0: fem.Function
    bcs: Sequence[fem.DirichletBC] = ()
    explicit: ufl.Form | None = None
    given: Sequence[fem.Function] = ()


@dataclass(frozen=True)
class ThetaScheme:
    """The θ-scheme: 1 backward Euler (first order), ½ Crank–Nicolson (second order); between them, damped.

    theta: ½ to 1.  damped: so many first steps by backward Euler, against the oscillations that Crank–Nicolson keeps of
        rough initial values (Rannacher, Numer. Math. 43 (1984)); two keep the order.

    An explicit part is taken at u₁ (θ = 1), or extrapolated from two steps to the middle of the step.

    Raises:
        ValueError: θ below ½, where no step size is stable for diffusion, or above 1.
    """

    theta: float = 0.5
    damped: int = 0

    def __post_init__(self) -> None:
        if not 0.5 <= self.theta <= 1.0:
            raise ValueError(f"theta must be between 0.5 (Crank–Nicolson) and 1 (backward Euler), not {self.theta}")
        if not (isinstance(self.damped, int) and self.damped >= 0):
            raise ValueError(f"damped must be a number of steps, not {self.damped!r}")

    @property
    def name(self) -> str:
        """For people."""
        known = {0.5: "Crank–Nicolson", 1.0: "backward Euler"}
        return known.get(self.theta, f"the θ-scheme with θ = {self.theta:g}")

    def check(self, grid: TimeGrid, explicit: bool) -> None:
        """Every grid will do."""

    def problem(self, equation: Equation) -> StepProblem:
        """The problem of one step."""
        one_step = self.theta == 1.0
        extrapolated = equation.explicit is not None and not one_step
        draft = _Draft(equation, 2 if extrapolated else 1)
        G = draft.implicit(0) if one_step else draft.w[0] * draft.implicit(0) + draft.w[1] * draft.implicit(1)
        if equation.explicit is not None:
            G += draft.explicit(0 if one_step else 0.5)
        theta, damped, c, w, e = self.theta, self.damped, draft.c, draft.w, draft.e

        def begin(step: Step) -> None:
            c[0].value, c[1].value = 1.0 / step.dt, -1.0 / step.dt
            now = 1.0 if step.n < damped else theta
            w[0].value, w[1].value = now, 1.0 - now
            if extrapolated:
                r = 0.0 if step.n == 0 or now == 1.0 else 0.5 * step.dt / step.lengths[1]
                e[0].value, e[1].value = 1.0 + r, -r

        return draft.finished(G, begin, self.name)


class BackwardEuler(ThetaScheme):
    """Backward Euler, first order: the θ-scheme with θ = 1."""

    def __init__(self) -> None:
        super().__init__(1.0)


class CrankNicolson(ThetaScheme):
    """Crank–Nicolson, second order: the θ-scheme with θ = ½.  damped: see `ThetaScheme`."""

    def __init__(self, damped: int = 0) -> None:
        super().__init__(0.5, damped)


@dataclass(frozen=True)
class BDF:
    """The backward differentiation formula of an order from 1 to 3, for variable steps.

    The first steps are of lower order, since there is nothing yet to reach back to: let them be short where the third
    order is wanted.  An explicit part is extrapolated to the same order (SBDF: the schemes of choice for reaction and
    diffusion).

    Raises:
        ValueError: another order; later, steps that grow so fast, again and again, that the formula is unstable.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"the order of BDF must be 1, 2 or 3, not {self.order!r}")

    @property
    def name(self) -> str:
        """For people."""
        return f"BDF{self.order}"

    def check(self, grid: TimeGrid, explicit: bool) -> None:
        """Raise ValueError where two steps one after the other grow too fast."""
        limit = _LARGEST_RATIO.get(self.order, np.inf)
        ratios = grid.steps[1:] / grid.steps[:-1]
        bad = np.flatnonzero((ratios[1:] >= limit) & (ratios[:-1] >= limit))
        if len(bad):
            raise ValueError(
                f"steps {bad[0] + 1} to {bad[0] + 3} of dt grow by {ratios[bad[0]]:.3g} and {ratios[bad[0] + 1]:.3g}; "
                f"{self.name} is unstable where steps grow by {limit:.3g} again and again: let them grow more slowly, "
                "or use CrankNicolson"
            )

    def problem(self, equation: Equation) -> StepProblem:
        """The problem of one step."""
        draft = _Draft(equation, self.order)
        G = draft.implicit(0)
        if equation.explicit is not None:
            G += draft.explicit(0)
        return draft.finished(G, self.begin(draft.c, draft.e), self.name)

    def begin(self, c: Sequence[fem.Constant], e: Sequence[fem.Constant]) -> Callable[[Step], None]:
        """What sets, for each step, the weights c of the difference d and e of the extrapolation."""
        order = self.order

        def begin(step: Step) -> None:
            k = min(order, step.n + 1)
            nodes = -np.concatenate([[0.0], np.cumsum(step.lengths[:k])]) / step.dt
            slopes = np.zeros(order + 1)
            slopes[: k + 1] = _weights(nodes, 1) / step.dt
            values = np.zeros(order)
            values[:k] = _weights(nodes[1:], 0)
            for constant, value in zip((*c, *e), (*slopes, *values), strict=True):
                constant.value = value

        return begin


class BDF2(BDF):
    """The backward differentiation formula of second order."""

    def __init__(self) -> None:
        super().__init__(2)


class BDF3(BDF):
    """The backward differentiation formula of third order."""

    def __init__(self) -> None:
        super().__init__(3)


def _weights(nodes: np.ndarray, derivative: int) -> np.ndarray:
    """Weights that give a polynomial's value or derivative at zero from its values at the nodes."""
    right = np.zeros(len(nodes))
    right[derivative] = 1.0
    return np.linalg.solve(np.vander(nodes, increasing=True).T, right)


@dataclass
class _Draft:
    """A step in the making, that reaches back to `reach` earlier values."""

    equation: Equation
    reach: int
    levels: list[tuple[fem.Function, fem.Function, float]] = field(default_factory=list)
    times: list[tuple[fem.Constant, float]] = field(default_factory=list)
    extrapolated: list[tuple[fem.Function, list[tuple[fem.Constant, fem.Function]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        eq = self.equation
        V, mesh = eq.u.function_space, eq.u.function_space.mesh
        numbers = range(1, self.reach + 1)
        self.earlier = [fem.Function(V, name=f"{eq.u.name}_{i}") for i in numbers]
        self.c = [fem.Constant(mesh, value) for value in (1.0, -1.0, *[0.0 for _ in numbers][1:])]
        self.w = [fem.Constant(mesh, value) for value in (1.0, 0.0)]
        self.e = [fem.Constant(mesh, value) for value in (1.0, *[0.0 for _ in numbers][1:])]
        self.values = [eq.u, *self.earlier]
        self.rate = sum((c * f for c, f in zip(self.c[1:], self.earlier, strict=True)), self.c[0] * eq.u)
        self.times = [(eq.t, 0)]
        self.levels = [(g, g, 0) for g in eq.given]

    def implicit(self, level: int) -> ufl.Form:
        """F at a time level, with d for ∂u/∂t."""
        return ufl.replace(self._at(self.equation.F, level, self.values[level]), {self.equation.u_t: self.rate})

    def explicit(self, level: float) -> ufl.Form:
        """E at an extrapolated value."""
        eq = self.equation
        assert eq.explicit is not None
        found = fem.Function(eq.u.function_space, name=f"{eq.u.name}_extrapolated")
        self.extrapolated.append((found, list(zip(self.e, self.earlier, strict=True))))
        return self._at(eq.explicit, level, found)

    def _at(self, form: ufl.Form, level: float, u: fem.Function) -> ufl.Form:
        """A form with another u, and t and all that is given as a function of time at a time level."""
        eq = self.equation
        changes: dict = {} if u is eq.u else {eq.u: u}
        if level == 0:
            return ufl.replace(form, changes) if changes else form
        if eq.t in extract_constants(form):
            changes[eq.t] = self._time(level)
        present = extract_coefficients(form)
        for g in eq.given:
            if g in present:
                changes[g] = self._stand_in(g, level)
        return ufl.replace(form, changes)

    def _time(self, level: float) -> fem.Constant:
        for constant, at in self.times:
            if at == level:
                return constant
        constant = fem.Constant(self.equation.u.function_space.mesh, 0.0)
        self.times.append((constant, level))
        return constant

    def _stand_in(self, g: fem.Function, level: float) -> fem.Function:
        for f, given, at in self.levels:
            if given is g and at == level:
                return f
        f = fem.Function(g.function_space, name=f"{g.name}_{level}")
        self.levels.append((f, g, level))
        return f

    def finished(self, G: ufl.Form, begin: Callable[[Step], None], name: str) -> StepProblem:
        """The problem, where the unknown of a first step is the initial value."""
        eq = self.equation
        shifts = list(zip(reversed(self.earlier), [*reversed(self.earlier[:-1]), eq.u], strict=True))
        initial = [(f, eq.u0) for f in self.earlier]
        stages, weights = (Stage(G, eq.u, eq.bcs),), [*self.c, *self.w, *self.e]
        return StepProblem(
            stages, eq.u, shifts, initial, begin, weights, self.levels, self.times, self.extrapolated, name
        )


def check_equation(equation: Equation) -> None:
    """Raise ValueError or TypeError where F, E and u_t do not fit together.  The same on all ranks."""
    F, E, u, u_t = equation.F, equation.explicit, equation.u, equation.u_t
    for what, form in (("F", F), ("explicit", E)):
        if (form is not None or what == "F") and not isinstance(form, ufl.Form):
            raise TypeError(f"{what} must be a UFL form, not {type(form).__name__}")
    if u_t is u:
        raise ValueError(f"u_t must be a Function of its own, that stands for ∂u/∂t in F, not '{u.name}' itself")
    if u_t.function_space is not u.function_space and u_t.function_space != u.function_space:
        raise ValueError(f"'{u_t.name}', which stands for ∂u/∂t in F, must be a Function of the space of '{u.name}'")
    if u_t not in extract_coefficients(F):
        raise ValueError(
            f"'{u_t.name}', which stands for ∂u/∂t, does not appear in F; write the residual with it, such as "
            "F = u_t*v*dx + inner(grad(u), grad(v))*dx, or use PhysicalModel for a steady problem"
        )
    if E is not None:
        present = extract_coefficients(E)
        if u_t in present:
            raise ValueError(f"'{u_t.name}', which stands for ∂u/∂t, belongs to F, not to the explicit part")
        if len(E.arguments()) != 1 or E.arguments()[0] != F.arguments()[0]:
            raise ValueError("the explicit part must be a residual with the same test function as F")
    if not isinstance(equation.t, fem.Constant):
        raise TypeError(f"t must be a dolfinx.fem.Constant, not {type(equation.t).__name__}")
