"""Checks of gradients, transposes and rank invariance, for the package's models and for users' own.

hf.taylor_test(physical)                  # is the adjoint the gradient?  rate 2
hf.dot_product_test(physical)             # is the adjoint the transpose of the tangent?
hf.rank_invariance(build)                 # does the number of ranks change the answer?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.bridge.dofs import owned_size
from hyco_fem.bridge.spacetime import Snapshots
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import is_distributed, raise_together, sum_array, sum_gradients, sum_over_ranks

# A linear term of the remainder that makes a gradient wrong, relative to the derivative along the direction.
_LINEAR = 1e-3


@dataclass(frozen=True)
class TaylorResult:
    """Remainders |J(θ + h d) − J(θ) − h J′(θ)d| for each step h, and the rates between neighbours.

    ok: the gradient is right, that is, the remainders have no term linear in h.  The rates are then 2, more where J has
    no second derivative along d, and anything where J is linear and the remainders are rounding errors.
    """

    steps: tuple[float, ...]
    remainders: tuple[float, ...]
    rates: tuple[float, ...]
    ok: bool

    def __str__(self) -> str:
        lines = ["        h   remainder   rate"]
        for h, r, rate in zip(self.steps, self.remainders, ("", *(f"{x:6.3f}" for x in self.rates)), strict=True):
            lines.append(f"{h:9.2e}   {r:9.3e} {rate}")
        return "\n".join([*lines, "ok" if self.ok else "FAILED: the gradient does not fit the function"])


def taylor_test(
    model: PhysicalModel | TransientModel | Callable[[], Tensor],
    parameters: Iterable[nn.Parameter] | None = None,
    *,
    comm: MPI.Comm | None = None,
    steps: Sequence[float] = (1e-2, 5e-3, 2.5e-3, 1.25e-3),
    seed: int = 0,
) -> TaylorResult:
    """Taylor test of a gradient in a random direction d with |d_i| ~ max(|θ_i|, 0.1).

    Args:
        model: A physical model, steady or in time; a smooth functional of its solution is then tested.  Or a function
            without arguments that returns a differentiable number: this rank's summand, `sum_over_ranks` is applied.
        parameters: θ; those of the model by default.
        comm: Communicator; that of the model by default.
        steps: Sizes h, falling.
        seed: Of the direction.

    Returns:
        The table; `ok` is True where J′(θ)d is right to 0.1 %.  Parameters are as before.

    Collective.
    """
    if isinstance(model, (PhysicalModel, TransientModel)):
        parameters = model.parameters() if parameters is None else parameters
        comm = model.comm if comm is None else comm
        objective = _functional(model)
    else:
        objective = model
        comm = MPI.COMM_WORLD if comm is None else comm
    if parameters is None:
        raise ValueError("taylor_test of a function needs its parameters")
    theta = [p for p in parameters if p.requires_grad]
    if not theta:
        raise ValueError("there is no parameter to differentiate by")
    if len(steps) < 2 or np.any(np.diff(steps) >= 0) or steps[-1] <= 0:
        raise ValueError(f"steps must be two or more falling positive numbers, not {tuple(steps)}")
    start = [p.detach().clone() for p in theta]
    directions = [_direction(p, k, seed, comm) for k, p in enumerate(theta)]
    J0, slope = _value_and_slope(objective, theta, directions, comm)
    signed = []
    try:
        for h in steps:
            _set(theta, [p0 + h * d for p0, d in zip(start, directions, strict=True)])
            # Not under no_grad: the function may differentiate on its own, a network by its inputs for example.
            signed.append(float(sum_over_ranks(objective().detach(), comm)) - J0 - h * slope)
    finally:
        _set(theta, start)
    remainders = np.abs(signed)
    r = np.maximum(remainders, 1e-300)
    rates = np.log(r[:-1] / r[1:]) / np.log(np.asarray(steps[:-1]) / np.asarray(steps[1:]))
    rounding = 1e-13 * max(abs(J0), abs(slope) * steps[0])
    # Where the slope vanishes along d, the remainder itself says how large derivatives are.
    size = max(abs(slope), remainders[-1] / steps[-1])
    ok = bool(abs(_linear_term(steps, signed)) <= _LINEAR * size + 4 * rounding / steps[-1])
    return TaylorResult(tuple(steps), tuple(map(float, remainders)), tuple(map(float, rates)), ok)


def _linear_term(steps: Sequence[float], remainders: Sequence[float]) -> float:
    """a of the remainder a h + b h² + …, by extrapolation of remainder / h to h = 0 with all steps.

    A rate alone is no proof: where a h and b h² nearly cancel, the remainder falls as fast as h² or faster.
    """
    h = np.asarray(steps)
    weights = [np.prod([k / (k - hi) for k in h if k != hi]) for hi in h]
    return float(weights @ (np.asarray(remainders) / h))


def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


def _value_and_slope(
    objective: Callable[[], Tensor], theta: list[nn.Parameter], directions: list[Tensor], comm: MPI.Comm
) -> tuple[float, float]:
    for p in theta:
        p.grad = None
    J = sum_over_ranks(objective(), comm)
    # A rank whose summand is a constant, for want of points for example, has nothing to differentiate.
    if J.requires_grad:
        J.backward()
    sum_gradients(theta, comm)
    local = {True: 0.0, False: 0.0}
    for p, d in zip(theta, directions, strict=True):
        if p.grad is not None:
            local[is_distributed(p)] += float((p.grad * d).sum())
        p.grad = None
    return float(J.detach()), local[False] + float(sum_array(comm, np.array([local[True]]))[0])


def _direction(p: nn.Parameter, k: int, seed: int, comm: MPI.Comm) -> Tensor:
    """A random direction scaled like the parameter: the same on all ranks unless the parameter is a field."""
    stream = (seed, k, comm.rank) if is_distributed(p) else (seed, k)
    d = torch.from_numpy(np.random.default_rng(stream).standard_normal(tuple(p.shape)))
    return d * p.detach().abs().clamp(min=0.1)


def _functional(model: PhysicalModel | TransientModel) -> Callable[[], Tensor]:
    """½ mean_i w_i u_i² over the dofs with random w_i in (1, 2): smooth, sensitive to all of the solution.

    Of a model in time, the mean over its output times too.
    """
    V = model.V
    size = V.dofmap.index_map.size_global * V.dofmap.index_map_bs
    if isinstance(model, TransientModel):
        size *= len(model.times)
    weight = torch.from_numpy(np.random.default_rng((5, model.comm.rank)).uniform(1.0, 2.0, owned_size(V))) / size
    return lambda: 0.5 * (weight * model.solve().square()).sum()


def dot_product_test(model: PhysicalModel | TransientModel, *, seed: int = 0) -> float:
    """|⟨T δm, w⟩ − ⟨δm, Tᵀ w⟩| relative to the larger, for random δm and w: zero up to rounding.

    T is the tangent of m ↦ u at the current θ; one forward, one tangent and one adjoint solve.  For a model in time, u
    is that at all output times, and m has the initial value in it where that is unknown.  Collective.

    Raises:
        ValueError: the model has no coefficient (and no unknown initial value).
    """
    comm, solver = model.comm, model.solver
    if not solver.coefficients and getattr(solver, "initial", None) is None:
        raise ValueError("the model has no coefficient, so there is no tangent to test")
    rng = np.random.default_rng((seed, comm.rank))
    pairing = _pairing_in_time if isinstance(model, TransientModel) else _pairing
    forward, backward = sum_array(comm, np.array(pairing(model, rng)))  # type: ignore[operator]
    return float(abs(forward - backward) / max(abs(forward), abs(backward), 1e-300))


def _pairing(model: PhysicalModel, rng: np.random.Generator) -> tuple[float, float]:
    """⟨T δm, w⟩ and ⟨δm, Tᵀ w⟩, this rank's summands."""
    solver = model.solver
    solver.forward([v.detach().numpy() for v in model.coefficient_values()])
    dm = [rng.standard_normal(owned_size(m.function_space)) for m in solver.coefficients]
    w = rng.standard_normal(owned_size(model.V))
    found = solver.adjoint(solver.state, w)
    forward = float(solver.tangent(solver.state, dm) @ w)
    return forward, sum(float(g @ d) for g, d in zip(found, dm, strict=True) if g is not None)


def _pairing_in_time(model: TransientModel, rng: np.random.Generator) -> tuple[float, float]:
    """The same through time, for the field at the output times."""
    solver = model.solver
    field = Snapshots(np.searchsorted(model.steps, model.times), owned_size(model.V))
    values = [v.detach().numpy() for v in model.inputs()]
    solver.forward(values)
    dm = [rng.standard_normal(v.shape) for v in values]
    w, moved = rng.standard_normal(field.shape), field.watch()
    found = solver.adjoint(solver.state, [field.source(w)])
    solver.tangent(solver.state, [d[..., None] for d in dm], [moved])
    forward = float((moved.values * w).sum())
    return forward, sum(float((g * d).sum()) for g, d in zip(found, dm, strict=True) if g is not None)


@dataclass(frozen=True)
class InvarianceResult:
    """Largest relative difference of each number between the rank counts in `sizes`; ok: all below the tolerance."""

    sizes: tuple[int, ...]
    differences: dict[str, float]
    ok: bool


def rank_invariance(
    build: Callable[[MPI.Comm], Mapping[str, float | Sequence[float] | np.ndarray]],
    *,
    comm: MPI.Comm = MPI.COMM_WORLD,
    tolerance: float = 1e-10,
) -> InvarianceResult:
    """Compute the same numbers on 1, 2, … ranks of `comm` and compare them.

    Args:
        build: Given a communicator, builds mesh and model on it and returns replicated numbers by name.
        comm: Run under `mpirun -n N` to compare 1 … N ranks; on one rank there is nothing to compare with, and the
            result says so: `sizes` is (1,).
        tolerance: Relative to the largest entry of each number.

    Raises:
        What `build` raises on any of the communicators, on all ranks.

    Collective.
    """
    found: list[dict[str, np.ndarray]] = []
    for size in range(1, comm.size + 1):
        part = comm.Split(0 if comm.rank < size else 1, comm.rank)
        numbers, error = None, None
        try:
            if comm.rank < size:
                numbers = {k: np.asarray(v, dtype=np.float64) for k, v in build(part).items()}
        except Exception as e:
            error = e
        raise_together(comm, error)
        found.append(comm.bcast(numbers, root=0))
        # The models built on `part` may be alive still, so the communicator is left to MPI's own clean-up.
    # np.max and not max: a NaN is a difference.
    differences = {
        key: float(np.max([_difference(f[key], reference) for f in found])) for key, reference in found[0].items()
    }
    sizes = tuple(range(1, comm.size + 1))
    return InvarianceResult(sizes, differences, all(d <= tolerance for d in differences.values()))


def _difference(found: np.ndarray, reference: np.ndarray) -> float:
    if found.shape != reference.shape:
        return float("inf")
    scale = max(float(np.abs(reference).max(initial=0.0)), 1e-300)
    return float(np.abs(found - reference).max(initial=0.0)) / scale
