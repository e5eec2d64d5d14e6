"""Gauss–Newton answers: J = |r|² + Σ c_j φ_j² made small with the Jacobian of r, damped and within bounds.

A step solves (Jᵀ J + C + λ D²) δ = −(Jᵀ r + C φ) (Levenberg 1944, Marquardt 1963; D as in Moré 1978: the largest
column norms so far), with entries that a bound holds left out and the rest cut at the bounds.  λ follows the ratio of
actual to predicted decrease, times J over its first value, so that the last steps are Gauss–Newton ones: on a problem
with zero residual they converge quadratically (Yamashita, Fukushima 2001).

Rows are distributed over the ranks as the points are; the reduced problem (three forms, by size) is replicated.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import scipy.linalg as sl
import torch

from hyco_fem.game.identify import entry_names, identify
from hyco_fem.game.player import Look, Method, Player, flat, of_shape, put_flat
from hyco_fem.game.state import State, array_or_none, tensor_or_none
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.parallel import is_distributed, sum_array
from hyco_fem.pde.linear import SolveError

# With fewer parameters than this, rows are reduced by QR, which keeps twice the digits that JᵀJ does.
_FEW = 200

# The numbers among the state of an answer.
_NUMBERS = ("damping", "evaluations", "jacobians", "converged", "_first", "_warned")

# Trials of one step: damping then has grown by more than 2^50.
_TRIALS = 10


@dataclass(frozen=True)
class GaussNewton:
    """`steps` damped Gauss–Newton steps each round, fewer where J has stopped falling.

    For the physical player: tangent solves on data and ghost residuals together.  For a network: its Jacobian, a
    gradient for each point, and a system as large as the smaller of points and weights.

    Args:
        steps: Steps (Jacobians) a round.
        tolerance: An answer ends when a step lowers J by less than this fraction of it.
        damping: λ of the first step, relative to the squared column norms of the Jacobian.
        bounds: By name of a parameter ("kappa.amplitudes"), lower and upper bounds, numbers or arrays of its shape.
        anneal: The first answer goes through weight decays that are these multiples of the decay, largest first: a
            network that is smooth at first, and takes on detail as the data ask for it, ends in better minima.

    Raises:
        ValueError: on all ranks: a parameter that is a field, an unknown name, a start outside its bounds.
    """

    steps: int = 1
    tolerance: float = 1e-10
    damping: float = 1e-3
    bounds: Mapping[str, tuple[Any, Any]] | None = None
    anneal: Sequence[float] = ()

    def __post_init__(self) -> None:
        if int(self.steps) != self.steps or self.steps < 1:
            raise ValueError(f"an answer must have at least one step, not steps={self.steps}")
        if not (0 <= self.tolerance < 1 and 0 < self.damping < math.inf):
            raise ValueError(
                f"GaussNewton needs 0 <= tolerance < 1 and a positive damping, not {self.tolerance}, {self.damping}"
            )
        if not all(0 < factor < math.inf for factor in self.anneal):
            raise ValueError(f"anneal of GaussNewton must be positive multiples of the decay, not {self.anneal}")

    def method(self, player: Player) -> Method:
        """Fresh, with the first damping."""
        for name, p in player.named.items():
            if is_distributed(p):
                raise ValueError(
                    f"GaussNewton does not serve for '{name}', a field with a number for every dof; use AdamStep, or "
                    "hyco_fem.fit_field"
                )
        return Damped(player, self)


class Damped:
    """A `GaussNewton` at work.

    Attributes:
        evaluations, jacobians: counted.  converged: whether the last answer ended by its tolerance.
    """

    def __init__(self, player: Player, spec: GaussNewton) -> None:
        self.player, self.spec, self.damping = player, spec, spec.damping
        self.lower, self.upper = bound_arrays(player.named, spec.bounds or {})
        self.evaluations = self.jacobians = 0
        self.converged = False
        self._first: float | None = None
        self._D: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._warned = False

    def improve(self, objective: Any) -> Look:
        """Step until `steps` or the tolerance is reached.  A trial that leads to no finite J is shortened."""
        if not hasattr(objective, "linearised"):
            raise TypeError(
                f"GaussNewton needs a sum of squares with a Jacobian, which the objective of the {self.player.name} "
                "player is not; use AdamStep or LBFGS"
            )
        before = flat(self.player.parameters)
        if self._before is None and objective.decay:
            decay = objective.decay
            try:
                for factor in self.spec.anneal:
                    objective.decay = factor * decay
                    self._first = None
                    self._descend(objective)
            finally:
                objective.decay, self._first = decay, None
        look = self._descend(objective)
        if look.finite:
            self._before = before
        return look

    def _descend(self, objective: Any) -> Look:
        """Steps on one objective."""
        parameters, comm = self.player.parameters, self.player.comm
        x = flat(parameters)
        c = decay_vector(objective, len(x))
        value = self._value(objective, x, c)
        if not math.isfinite(value):
            self.player.take_back()
            return Look(value, math.nan)
        self._first = value if self._first is None else max(self._first, value)
        look: Look | None = None
        self.converged = False
        growth = 2.0
        for _ in range(self.spec.steps):
            r, J = objective.linearised()
            problem = reduced(comm, r, J)
            self.jacobians += 1
            if look is None and not self._warned:
                # Rows of sensors that are held out are zero.
                count = int(sum_array(comm, np.array([np.count_nonzero((r != 0.0) | J.any(axis=1))]))[0])
                self._warn_if_few(problem, count, objective, x)
            gradient = 2.0 * (problem.slope() + c * x)
            if look is None:
                look = Look(value, float(np.linalg.norm(gradient)))
                _leave(parameters, gradient)
            self._scale(problem, objective)
            assert self._D is not None
            free = ~(((x <= self.lower) & (gradient > 0)) | ((x >= self.upper) & (gradient < 0)))
            ended = True
            for _ in range(_TRIALS):
                damping = self.damping * min(1.0, value / self._first if self._first > 0 else 1.0)
                d = problem.step(free, x, c, np.maximum(damping, 1e-16) * self._D**2)
                d = np.clip(x + d, self.lower, self.upper) - x
                comm.Bcast(d, root=0)  # ranks on unlike processors round differently
                predicted = value - problem.value(d) - float(c @ (x + d) ** 2)
                put_flat(parameters, x + d)
                there = self._value(objective, x + d, c, start=False)
                if math.isfinite(there) and there < value and value - there > 1e-4 * predicted:
                    ratio = (value - there) / predicted if predicted > 0 else 0.0
                    self.damping *= 0.1 if ratio > 0.9 else 1 / 3 if ratio > 0.6 else 1.0 if ratio > 0.25 else 2.0
                    growth = 2.0
                    ended = value - there <= self.spec.tolerance * value
                    x, value = x + d, there
                    break
                if math.isfinite(there) and abs(predicted) <= self.spec.tolerance * value:
                    break
                self.damping, growth = min(self.damping * growth, 1e12), growth * 2.0
            if ended:
                self.converged = True
                break
        put_flat(parameters, x)
        # λ of a failed search must not burden the next round.
        self.damping = float(np.clip(self.damping, 1e-12, 1e3))
        assert look is not None
        return look

    def _warn_if_few(self, problem: Reduced, count: int, objective: Any, x: np.ndarray) -> None:
        """Warn where a PDE has more parameters than there are residuals, with the combinations that are not seen."""
        if alike(objective, len(x)).any() or not isinstance(problem, Rows) or count >= len(x):
            return
        self._warned = True
        names = entry_names([(name, tuple(p.shape)) for name, p in self.player.named.items()])
        found = identify(names, x, problem.J, problem.r)
        warnings.warn(
            f"{count} residuals for {len(x)} parameters: they do not determine θ; "
            + "; ".join(f"they do not see {text}" for text in found.unseen),
            stacklevel=4,
        )

    def undo(self) -> bool:
        """Go back to where the last answer began, with more damping."""
        if self._before is None:
            return False
        put_flat(self.player.parameters, self._before)
        self._before = None
        self.damping = max(self.damping * 10.0, self.spec.damping)
        return True

    def state(self) -> State:
        """Damping, scaling, and where the last answer began."""
        return {
            "kind": "GaussNewton",
            **{name: getattr(self, name) for name in _NUMBERS},
            "D": tensor_or_none(self._D),
            "before": tensor_or_none(self._before),
        }

    def restore(self, state: State) -> None:
        """Put a state back."""
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self._D, self._before = array_or_none(state["D"]), array_or_none(state["before"])

    def _value(self, objective: Any, x: np.ndarray, c: np.ndarray, start: bool = True) -> float:
        """J; infinite where the PDE cannot be solved at a trial."""
        self.evaluations += 1
        try:
            r = objective.residuals()
        except (CoefficientError, SolveError):
            if start:
                raise
            return math.inf
        with np.errstate(over="ignore"):
            return float(sum_array(self.player.comm, np.array([r @ r]))[0] + c @ x**2)

    def _scale(self, problem: Reduced, objective: Any) -> None:
        """D: column norms for the parameters of a PDE, which have units; their mean for the weights of a network."""
        norms = np.sqrt(problem.squares())
        weights = alike(objective, len(norms))
        if weights.any():
            norms[weights] = np.sqrt(np.mean(norms[weights] ** 2))
        # A column that is zero here may not be elsewhere.
        norms = np.maximum(norms, 1e-10 * norms.max(initial=0.0))
        norms[norms == 0.0] = 1.0
        self._D = norms if self._D is None else np.maximum(self._D, norms)


def alike(objective: Any, n: int) -> np.ndarray:
    """Which entries are weights of a network, all alike, (n,)."""
    found = getattr(objective, "weights_of_network", False)
    return np.broadcast_to(np.asarray(found, dtype=bool), (n,))


def decay_vector(objective: Any, n: int) -> np.ndarray:
    """c, (n,): the weight decay of each entry."""
    return np.where(alike(objective, n), objective.decay, 0.0) if objective.decay else np.zeros(n)


def _leave(parameters: list[Any], gradient: np.ndarray) -> None:
    """Leave the gradient where torch would."""
    start = 0
    for p in parameters:
        part = torch.from_numpy(gradient[start : start + p.numel()].copy()).view(p.shape)
        p.grad = part.to(p.device, p.dtype)
        start += p.numel()


def bound_arrays(
    named: Mapping[str, Any], given: Mapping[str, tuple[Any, Any]], *, start: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of all entries, (p,) each.

    Raises:
        ValueError: an unknown name, bounds that do not fit or are not ordered, with `start` a start outside them.
    """
    given = {name.removeprefix("coefficients."): b for name, b in given.items()}
    named = {name.removeprefix("coefficients."): p for name, p in named.items()}
    unknown = sorted(set(given) - set(named))
    if unknown:
        raise ValueError(f"bounds name {unknown}, the parameters are {sorted(named)}")
    lower, upper = [np.empty(0)], [np.empty(0)]
    for name, p in named.items():
        low, high = (of_shape(b, tuple(p.shape), f"a bound of '{name}'") for b in given.get(name, (-np.inf, np.inf)))
        value = p.detach().cpu().numpy().ravel()
        if not np.all(low < high):
            raise ValueError(f"the bounds of '{name}' must be in order, lower below upper, not {low} and {high}")
        if start and not (np.all(value >= low) and np.all(value <= high)):
            raise ValueError(f"the start of '{name}', {value}, does not lie within its bounds {low} and {high}")
        lower.append(low)
        upper.append(high)
    return np.concatenate(lower), np.concatenate(upper)


# -- the linear least-squares problem of a step ------------------------------------------------------------------


def reduced(comm: MPI.Comm, r: np.ndarray, J: np.ndarray) -> Reduced:
    """The problem min_δ |r + J δ|² of rows on all ranks as a small one, equal on all.  Collective.

    More parameters than rows: all rows.  Few parameters: the triangle of a QR factorisation, of the ranks' triangles.
    Otherwise: JᵀJ, Jᵀr and |r|².
    """
    n, p = int(sum_array(comm, np.array([len(r)]))[0]), J.shape[1]
    if n > p >= _FEW:
        return Normal(*(sum_array(comm, a) for a in (J.T @ J, J.T @ r, np.array([r @ r]))))
    rows = np.column_stack([J, r])
    if n > p and len(rows) > p + 1:
        rows = sl.qr(rows, mode="r", check_finite=False)[0][: p + 1]
    if comm.size > 1:
        rows = np.concatenate(comm.allgather(rows))
        if n > p and len(rows) > p + 1:
            rows = sl.qr(rows, mode="r", check_finite=False)[0][: p + 1]
    return Rows(np.ascontiguousarray(rows[:, :-1]), rows[:, -1].copy())


class Rows:
    """|r + J δ|² by rows."""

    def __init__(self, J: np.ndarray, r: np.ndarray) -> None:
        self.J, self.r = J, r
        self._gram: np.ndarray | None = None

    def slope(self) -> np.ndarray:
        """Jᵀ r."""
        return self.J.T @ self.r

    def squares(self) -> np.ndarray:
        """Squared column norms of J."""
        return np.einsum("ij,ij->j", self.J, self.J)

    def value(self, d: np.ndarray) -> float:
        """|r + J d|²."""
        e = self.r + self.J @ d
        return float(e @ e)

    def step(self, free: np.ndarray, x: np.ndarray, c: np.ndarray, damping: np.ndarray) -> np.ndarray:
        """The damped step in the free entries."""
        J = self.J if free.all() else self.J[:, free]
        W, Cx = (c + damping)[free], (c * x)[free]
        d = np.zeros(len(x))
        n, p = J.shape
        if n >= p:
            root = np.sqrt(W)
            rows = np.concatenate([J, np.diag(root)])
            d[free] = np.linalg.lstsq(rows, -np.concatenate([self.r, Cx / root]), rcond=None)[0]
            return d
        # (JᵀJ + W)⁻¹ through the n × n matrix S = J W⁻¹ Jᵀ + 1.
        if free.all() and W.min() == W.max():
            self._gram = J @ J.T if self._gram is None else self._gram
            S = self._gram / W[0]
        else:
            S = (J / W) @ J.T
        S = S + np.eye(n)
        y = sl.cho_solve(sl.cho_factor(S, overwrite_a=True, check_finite=False), self.r - J @ (Cx / W))
        d[free] = -(J.T @ y + Cx) / W
        return d


class Normal:
    """|r + J δ|² by the normal equations."""

    def __init__(self, G: np.ndarray, g: np.ndarray, square: np.ndarray) -> None:
        self.G, self.g, self.square = G, g, float(square[0])

    def slope(self) -> np.ndarray:
        """Jᵀ r."""
        return self.g

    def squares(self) -> np.ndarray:
        """Squared column norms of J."""
        return np.diag(self.G).copy()

    def value(self, d: np.ndarray) -> float:
        """|r + J d|²."""
        return self.square + 2.0 * float(self.g @ d) + float(d @ (self.G @ d))

    def step(self, free: np.ndarray, x: np.ndarray, c: np.ndarray, damping: np.ndarray) -> np.ndarray:
        """The damped step in the free entries."""
        d = np.zeros(len(x))
        G = self.G[np.ix_(free, free)] + np.diag((c + damping)[free])
        d[free] = -sl.solve(G, (self.g + c * x)[free], assume_a="pos")
        return d


Reduced = Rows | Normal


def root(G: np.ndarray) -> np.ndarray:
    """A matrix R with RᵀR = G, which may be singular."""
    values, Q = np.linalg.eigh(G)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * Q.T
