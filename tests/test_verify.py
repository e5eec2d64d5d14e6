"""The checks themselves: they pass what is right and fail what is wrong, by one per cent or by one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, poisson, square
from dolfinx import fem
from evolving import UNKNOWN, reaction_diffusion
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.parallel import mark_distributed


class Scaled(torch.autograd.Function):
    """The identity with a gradient that is wrong by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        return ctx.factor * gradient, None


def parameter(*values: float) -> nn.Parameter:
    """A parameter in float64."""
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


# -- Taylor test -----------------------------------------------------------------------------------------------


def test_a_right_gradient_has_rate_two(comm: MPI.Comm) -> None:
    theta = parameter(0.7, -1.3, 0.0)
    result = hf.taylor_test(lambda: torch.exp(theta).prod() + torch.sin(theta).sum(), [theta])
    assert result.ok
    np.testing.assert_allclose(result.rates, 2.0, atol=0.05)
    assert len(result.remainders) == len(result.steps) == len(result.rates) + 1
    assert str(result).splitlines()[-1] == "ok"
    # The table is replicated.
    assert comm.allgather(result) == [result] * comm.size


@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 0.0])
def test_a_wrong_gradient_fails(factor: float) -> None:
    theta = parameter(0.7, -1.3, 0.4)
    result = hf.taylor_test(lambda: torch.exp(Scaled.apply(theta, factor)).sum(), [theta])
    assert not result.ok
    assert str(result).splitlines()[-1].startswith("FAILED")
    assert result.rates[-1] == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("q", [0.02, 0.3, 0.65, 0.9, 1.25, 4 / 3, 30.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gradient_wrong_by_one_per_cent_is_not_hidden_by_curvature(comm: MPI.Comm, q: float, sign: float) -> None:
    """J = a t + t² with 1 % too much gradient: the remainder is h²d² − 0.01 a h d, of which q is the ratio of the terms
    at the smallest step.  They may nearly cancel, and their sum fall faster than h² (q < 1), or as h² (q = 4/3)."""
    theta = parameter(1.0)

    def J(a: float, factor: float) -> Callable[[], Tensor]:
        def summand() -> Tensor:
            t = Scaled.apply(theta, factor) - 1.0
            return (a * t + t.square()).sum() / comm.size

        return summand

    plain = hf.taylor_test(J(0.0, 1.0), [theta])
    d, h = np.sqrt(plain.remainders[-1]) / plain.steps[-1], plain.steps[-1]
    a = sign * q * d * h / 0.01
    assert hf.taylor_test(J(a, 1.0), [theta]).ok
    result = hf.taylor_test(J(a, 1.01), [theta])
    assert not result.ok, f"\n{result}"


def test_a_functional_linear_in_the_parameter_is_fine(comm: MPI.Comm) -> None:
    theta = parameter(2.0, -1.0)
    slope = torch.tensor([3.0, -2.0], dtype=torch.float64)
    assert hf.taylor_test(lambda: slope @ theta + 100.0, [theta]).ok
    assert not hf.taylor_test(lambda: slope @ Scaled.apply(theta, 1.01) + 100.0, [theta]).ok
    # Constant in θ: the derivative is zero, and autograd knows of none.
    assert hf.taylor_test(lambda: torch.ones((), dtype=torch.float64), [theta]).ok
    # Not constant, but cut from the graph.
    assert not hf.taylor_test(lambda: theta.detach().square().sum(), [theta]).ok


@pytest.mark.parametrize("power", [3, 4])
def test_without_curvature_the_remainder_falls_faster(power: int) -> None:
    theta = parameter(0.0)
    result = hf.taylor_test(lambda: (theta**power + theta).sum(), [theta])
    assert result.ok
    np.testing.assert_allclose(result.rates[0], power, atol=0.01)


def test_ranks_add_their_summands_and_fields_have_directions_of_their_own(comm: MPI.Comm) -> None:
    """A replicated parameter, a field of which each rank owns another part, and a rank that has nothing to say."""
    theta = parameter(0.5, 2.0)
    field = mark_distributed(nn.Parameter(torch.linspace(1, 2, comm.rank + 1, dtype=torch.float64)))
    silent = comm.size > 1 and comm.rank == 0

    def summand() -> Tensor:
        if silent:
            return torch.zeros((), dtype=torch.float64)
        return (comm.rank + 1) * (theta.prod() * field.square().sum()).exp().log1p()

    assert hf.taylor_test(summand, [theta, field]).ok
    assert not hf.taylor_test(lambda: summand() + 10 * Scaled.apply(field, 1.01).sum(), [theta, field]).ok


def test_a_function_may_differentiate_on_its_own(comm: MPI.Comm) -> None:
    """∫ (∂f/∂x − 1)² for a network f, as in a residual of a differential equation."""
    network = hf.MLP(1, 1, width=4, depth=1)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None].requires_grad_()

    def residual() -> Tensor:
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        return (slope - 1.0).square().mean() / comm.size

    assert hf.taylor_test(residual, network.parameters()).ok


def test_parameters_are_as_before(comm: MPI.Comm) -> None:
    theta, frozen = parameter(0.1, 1e-9, 3.3), parameter(4.0)
    frozen.requires_grad_(False)
    before = theta.detach().clone()
    hf.taylor_test(lambda: (theta.square() * frozen).sum(), [theta, frozen])
    assert torch.equal(theta.detach(), before)
    assert float(frozen) == 4.0
    assert theta.grad is None

    calls: list[int] = []

    def fails() -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the third time")
        return theta.square().sum()

    with pytest.raises(RuntimeError, match="the third time"):
        hf.taylor_test(fails, [theta])
    assert torch.equal(theta.detach(), before)


def test_what_cannot_be_tested_is_refused(comm: MPI.Comm) -> None:
    theta, frozen = parameter(1.0), parameter(1.0)
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match="needs its parameters"):
        hf.taylor_test(lambda: theta.sum())
    for none in ([], [frozen]):
        with pytest.raises(ValueError, match="no parameter"):
            hf.taylor_test(lambda: theta.sum(), none)
    for steps in ((), (1e-2,), (1e-3, 1e-2), (1e-2, 0.0)):
        with pytest.raises(ValueError, match="steps"):
            hf.taylor_test(lambda: theta.sum(), [theta], steps=steps)
    V = fem.functionspace(square(comm, 2), ("Lagrange", 1))
    u, v = fem.Function(V), ufl.TestFunction(V)
    known = hf.PhysicalModel((ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx, u, [dirichlet(V)])
    with pytest.raises(ValueError, match="no parameter"):
        hf.taylor_test(known)
    with pytest.raises(ValueError, match="no coefficient"):
        hf.dot_product_test(known)


# -- models ----------------------------------------------------------------------------------------------------


def test_a_right_model_passes(comm: MPI.Comm) -> None:
    model = poisson(comm)
    assert hf.taylor_test(model).ok
    assert hf.dot_product_test(model) < 1e-12


def test_a_wrong_adjoint_fails_both_tests(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = poisson(comm)
    right = model.solver.adjoint
    monkeypatch.setattr(
        model.solver, "adjoint", lambda *args, **kw: [None if g is None else 1.01 * g for g in right(*args, **kw)]
    )
    assert hf.dot_product_test(model) == pytest.approx(0.01 / 1.01, rel=1e-8)
    result = hf.taylor_test(model)
    assert not result.ok, f"\n{result}"


def test_a_wrong_tangent_fails_the_dot_product_test(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = poisson(comm)
    right = model.solver.tangent
    # Wrong on one rank only: the test adds up over ranks.
    factor = 1.5 if comm.rank == comm.size - 1 else 1.0
    monkeypatch.setattr(model.solver, "tangent", lambda *args: factor * right(*args))
    assert hf.dot_product_test(model) > 1e-3


def test_models_in_time_pass_both_tests(comm: MPI.Comm) -> None:
    for options in ({}, {"times": [0.1, 1.0]}, {"cubic": True, "checkpoints": hf.Revolve(2)}):
        model = reaction_diffusion(comm, **options)
        result = hf.taylor_test(model)
        assert result.ok, f"\n{result}"
        assert hf.dot_product_test(model) < 1e-12
    initial_value_alone = reaction_diffusion(comm, ("initial value",))
    assert hf.taylor_test(initial_value_alone).ok
    assert hf.dot_product_test(initial_value_alone) < 1e-12
    with pytest.raises(ValueError, match="no coefficient"):
        hf.dot_product_test(reaction_diffusion(comm, ()))


@pytest.mark.parametrize("part", range(4))
def test_a_wrong_adjoint_in_time_fails_both_tests(part: int, comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong in one of the coefficients, or in the initial value, by one per cent."""
    model = reaction_diffusion(comm, (UNKNOWN[part],))
    right = model.solver.adjoint
    monkeypatch.setattr(
        model.solver, "adjoint", lambda *args, **kw: [None if g is None else 1.01 * g for g in right(*args, **kw)]
    )
    assert hf.dot_product_test(model) == pytest.approx(0.01 / 1.01, rel=1e-8)
    result = hf.taylor_test(model)
    assert not result.ok, f"\n{result}"


def test_a_wrong_tangent_in_time_fails_the_dot_product_test(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reaction_diffusion(comm)
    right = model.solver.tangent

    def wrong(state: Any, directions: list[np.ndarray], *args: Any) -> None:
        right(state, [directions[0] * 1.01, *directions[1:]], *args)

    monkeypatch.setattr(model.solver, "tangent", wrong)
    assert hf.dot_product_test(model) > 1e-5


# -- rank invariance -------------------------------------------------------------------------------------------


def test_a_number_that_depends_on_the_ranks_is_found(comm: MPI.Comm) -> None:
    seen: list[int] = []

    def build(part: MPI.Comm) -> dict[str, Any]:
        seen.append(part.size)
        x = np.array([1.0, -4.0])
        return {
            "same": 1e6 * x,
            "rounding": x * (1 + 1e-12 * part.size),
            "ranks": [4.0, float(part.size)],
            "empty": [],
            "zero": 0.0,
        }

    result = hf.rank_invariance(build, comm=comm)
    sizes = tuple(range(1, comm.size + 1))
    assert result.sizes == sizes
    assert seen == [s for s in sizes if s > comm.rank], "1 … N ranks of the communicator"
    assert result.differences["same"] == result.differences["empty"] == result.differences["zero"] == 0.0
    assert result.differences["rounding"] == pytest.approx(1e-12 * (comm.size - 1), abs=1e-15)
    # Relative to the largest entry.
    assert result.differences["ranks"] == pytest.approx((comm.size - 1) / 4)
    assert result.ok is (comm.size == 1)
    assert comm.allgather(result) == [result] * comm.size
    assert hf.rank_invariance(build, comm=comm, tolerance=1.0).ok


def test_on_one_rank_there_is_nothing_to_compare() -> None:
    result = hf.rank_invariance(lambda part: {"x": float(part.size)}, comm=MPI.COMM_SELF)
    assert result.sizes == (1,)
    assert result.ok


@pytest.mark.parametrize("wrong", [np.nan, np.inf, np.zeros(2), np.zeros((1, 1))])
def test_what_is_no_number_on_more_ranks_is_a_difference(comm: MPI.Comm, wrong: Any) -> None:
    if comm.size == 1:
        return
    for size in (2, comm.size):
        with np.errstate(invalid="ignore"):
            result = hf.rank_invariance(lambda part, s=size: {"x": wrong if part.size == s else 0.0}, comm=comm)
        assert not result.ok


def test_an_error_of_one_build_is_the_error_of_all(comm: MPI.Comm) -> None:
    for size in range(1, comm.size + 1):

        def build(part: MPI.Comm, size: int = size) -> dict[str, float]:
            if part.size == size and part.rank == size - 1:
                raise FloatingPointError(f"on {size}")
            return {"x": 1.0}

        with pytest.raises(FloatingPointError, match=f"on {size}"):
            hf.rank_invariance(build, comm=comm)
