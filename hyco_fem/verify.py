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
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.parallel import is_distributed, sum_array, sum_gradients, sum_over_ranks


@dataclass(frozen=True)
class TaylorResult:
    """Remainders |J(θ + h d) − J(θ) − h J′(θ)d| for each step h, and the rates between neighbours.

    ok: the gradient is right, that is, the remainders fall at rate 2 (or are rounding errors only).
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
    model: PhysicalModel | Callable[[], Tensor],
    parameters: Iterable[nn.Parameter] | None = None,
    *,
    comm: MPI.Comm | None = None,
    steps: Sequence[float] = (1e-2, 5e-3, 2.5e-3, 1.25e-3),
    seed: int = 0,
) -> TaylorResult:
    """Taylor test of a gradient in a random direction d with |d_i| ~ max(|θ_i|, 0.1).

    Args:
        model: A physical model; a smooth functional of its solution is then tested.  Or a function without arguments
            that returns a differentiable number: this rank's summand, `sum_over_ranks` is applied here.
        parameters: θ; those of the model by default.
        comm: Communicator; that of the model by default.
        steps: Sizes h, falling.
        seed: Of the direction.

    Returns:
        The table; `ok` is True where the smallest steps have rate 2 to within 0.1.  Parameters are as before.

    Collective.
    """
    if isinstance(model, PhysicalModel):
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
    start = [p.detach().clone() for p in theta]
    directions = [_direction(p, k, seed, comm) for k, p in enumerate(theta)]
    J0, slope = _value_and_slope(objective, theta, directions, comm)
    remainders = []
    with torch.no_grad():
        try:
            for h in steps:
                for p, p0, d in zip(theta, start, directions, strict=True):
                    p.copy_(p0 + h * d)
                J = float(sum_over_ranks(objective(), comm))
                remainders.append(abs(J - J0 - h * slope))
        finally:
            for p, p0 in zip(theta, start, strict=True):
                p.copy_(p0)
    floor = 1e-13 * max(abs(J0), abs(slope) * steps[0])
    r = np.maximum(remainders, 1e-300)
    rates = np.log(r[:-1] / r[1:]) / np.log(np.asarray(steps[:-1]) / np.asarray(steps[1:]))
    # A remainder at the rounding floor has no rate; one that starts there means J is linear in θ.
    clean = [rate for rate, after in zip(rates, r[1:], strict=True) if after > 100 * floor]
    ok = bool(abs(clean[-1] - 2.0) < 0.1 or clean[-1] > 2.0) if clean else bool(r[0] <= 1e4 * floor)
    return TaylorResult(tuple(steps), tuple(remainders), tuple(float(x) for x in rates), ok)


def _value_and_slope(
    objective: Callable[[], Tensor], theta: list[nn.Parameter], directions: list[Tensor], comm: MPI.Comm
) -> tuple[float, float]:
    for p in theta:
        p.grad = None
    J = sum_over_ranks(objective(), comm)
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


def _functional(model: PhysicalModel) -> Callable[[], Tensor]:
    """½ mean_i w_i u_i² over the dofs with random w_i in (1, 2): smooth, and sensitive to every part of the solution."""
    V = model.V
    size = V.dofmap.index_map.size_global * V.dofmap.index_map_bs
    weight = torch.from_numpy(np.random.default_rng((5, model.comm.rank)).uniform(1.0, 2.0, owned_size(V))) / size
    return lambda: 0.5 * (weight * model.solve().square()).sum()


def dot_product_test(model: PhysicalModel, *, seed: int = 0) -> float:
    """|⟨T δm, w⟩ − ⟨δm, Tᵀ w⟩| relative to the larger, for random δm and w: zero up to rounding.

    T is the tangent of m ↦ u at the current θ; one forward, one tangent and one adjoint solve.  Collective.
    """
    comm = model.comm
    solver = model.solver
    rng = np.random.default_rng((seed, comm.rank))
    solver.forward([v.detach().numpy() for v in model.coefficient_values()])
    state = solver.state
    dm = [rng.standard_normal(owned_size(m.function_space)) for m in solver.coefficients]
    w = rng.standard_normal(owned_size(model.V))
    found = solver.adjoint(state, w)
    forward = float(solver.tangent(state, dm) @ w)
    backward = sum(float(g @ d) for g, d in zip(found, dm, strict=True) if g is not None)
    forward, backward = sum_array(comm, np.array([forward, backward]))
    return float(abs(forward - backward) / max(abs(forward), abs(backward), 1e-300))


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

    Collective.
    """
    found: list[dict[str, np.ndarray]] = []
    for size in range(1, comm.size + 1):
        part = comm.Split(0 if comm.rank < size else 1, comm.rank)
        numbers = None
        if comm.rank < size:
            numbers = {k: np.asarray(v, dtype=np.float64) for k, v in build(part).items()}
        found.append(comm.bcast(numbers, root=0))
        # The models built on `part` may be alive still, so the communicator is left to MPI's own clean-up.
    differences = {}
    for key, reference in found[0].items():
        scale = max(float(np.abs(reference).max(initial=0.0)), 1e-300)
        differences[key] = max(
            (float(np.abs(f[key] - reference).max(initial=0.0)) / scale for f in found[1:]), default=0.0
        )
    sizes = tuple(range(1, comm.size + 1))
    return InvarianceResult(sizes, differences, all(d <= tolerance for d in differences.values()))
