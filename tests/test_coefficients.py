"""Coefficients against their formulas, their derivatives, and the maps that keep them admissible."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import square
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.bridge.dofs import owned_size
from hyco_fem.parallel import is_distributed

X = np.random.default_rng(0).uniform(-1.0, 2.0, (7, 2))
A, C, W = np.array([2.0, -0.7]), np.array([[0.4, 0.6], [-0.3, 1.1]]), np.array([0.5, 1.3])
SINES = np.array([[0.3, 0.2, -0.5], [0.1, 0.7, 0.4]])
CUBE = np.arange(1.0, 9.0).reshape(2, 2, 2)

# Where there is no mesh, each rank would do the same once more.
local = pytest.mark.serial

Formula = Callable[[np.ndarray], np.ndarray]


def bumps(x: np.ndarray, a: Any, c: Any, w: Any, background: float = 0.0) -> np.ndarray:
    """c + Σ_k A_k exp(−|x − x_k|² / w_k²), point by point."""
    return np.array(
        [background + sum(a[k] * np.exp(-sum((p - c[k]) ** 2) / w[k] ** 2) for k in range(len(a))) for p in x]
    )


def sines(x: np.ndarray, c: np.ndarray, k: Any) -> np.ndarray:
    """Σ_m c_m Π_i sin(m_i k_i x_i), term by term."""
    k = np.broadcast_to(k, c.ndim)
    total = np.zeros(len(x))
    for m, value in np.ndenumerate(c):
        total += value * np.prod([np.sin((m[i] + 1) * k[i] * x[:, i]) for i in range(c.ndim)], axis=0)
    return total


def softplus(raw: Any) -> Any:
    return np.log1p(np.exp(raw))


ALL = ("background", "amplitudes", "centres", "widths")
CASES: dict[str, tuple[Callable[[], nn.Module], Formula]] = {
    "scalar": (lambda: hf.Scalar(-1.5), lambda x: np.full(len(x), -1.5)),
    "positive scalar": (lambda: hf.Scalar(0.3, hf.Positive(0.1, 2.0)), lambda x: np.full(len(x), 0.3)),
    "bumps": (lambda: hf.GaussianBumps(A, C, W, 0.5, trainable=ALL), lambda x: bumps(x, A, C, W, 0.5)),
    "bumps of one width": (lambda: hf.GaussianBumps(A, C, 0.8), lambda x: bumps(x, A, C, [0.8, 0.8])),
    "one squared bump": (
        lambda: hf.GaussianBumps(2.0, [0.4, 0.6], background=1.0, transform=torch.square),
        lambda x: bumps(x, [2.0], C[:1], [1.0], 1.0) ** 2,
    ),
    "bumps on a line": (
        lambda: hf.GaussianBumps(A, [[0.1], [0.9]], W),
        lambda x: bumps(x, A, np.array([[0.1], [0.9]]), W),
    ),
    "sines": (lambda: hf.SineSeries(SINES, [0.7, 2.0]), lambda x: sines(x, SINES, [0.7, 2.0])),
    "exponential of sines": (
        lambda: hf.SineSeries(SINES, 2.0, transform=torch.exp),
        lambda x: np.exp(sines(x, SINES, 2.0)),
    ),
    "sines on a line": (lambda: hf.SineSeries([0.5, 0.0, 2.0]), lambda x: sines(x, np.array([0.5, 0.0, 2.0]), 1.0)),
    "sines in space": (lambda: hf.SineSeries(CUBE, 0.9), lambda x: sines(x, CUBE, 0.9)),
    "sum": (
        lambda: hf.Sum(hf.Scalar(2.0, hf.Positive()), hf.SineSeries(SINES), hf.GaussianBumps(A, C, W)),
        lambda x: 2.0 + sines(x, SINES, 1.0) + bumps(x, A, C, W),
    ),
}


def points(module: nn.Module) -> np.ndarray:
    """X, in as many dimensions as the module has."""
    if isinstance(module, hf.GaussianBumps):
        return X[:, : module.centres.shape[1]]
    if isinstance(module, hf.SineSeries) and module.coefficients.ndim != 2:
        return np.random.default_rng(1).uniform(-1.0, 2.0, (7, module.coefficients.ndim))
    return X


def check_derivatives(module: nn.Module, x: Tensor) -> None:
    """First and second derivatives by all parameters, against differences."""
    names = [name for name, _ in module.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in module.parameters())

    def f(*given: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, values)
    assert torch.autograd.gradgradcheck(f, values)


@local
@pytest.mark.parametrize("case", CASES)
def test_a_coefficient_is_its_formula(case: str) -> None:
    build, formula = CASES[case]
    module = build()
    x = points(module)
    values = module(torch.from_numpy(x))
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.detach().numpy(), formula(x), rtol=1e-13, atol=1e-13)
    assert module(torch.from_numpy(x[:0])).shape == (0,), "a rank may own no dof"


@local
@pytest.mark.parametrize("case", CASES)
def test_a_coefficient_is_differentiated_rightly_by_its_parameters(case: str) -> None:
    module = CASES[case][0]()
    check_derivatives(module, torch.from_numpy(points(module)[:4]))


@local
def test_a_field_can_be_a_network() -> None:
    network = hf.MLP(2, 1, width=4, depth=1, seed=3)
    raw = network(torch.from_numpy(X)).detach().numpy()
    field = hf.NeuralField(network, hf.Positive(0.1))
    np.testing.assert_allclose(field(torch.from_numpy(X)).detach().numpy(), 0.1 + softplus(raw), rtol=1e-13)
    column = nn.Linear(2, 1, dtype=torch.float64)  # (n, 1)
    np.testing.assert_array_equal(
        hf.NeuralField(column)(torch.from_numpy(X)).detach(), column(torch.from_numpy(X)).detach()[:, 0]
    )
    assert hf.NeuralField(column)(torch.from_numpy(X[:1])).shape == (1,)
    check_derivatives(field, torch.from_numpy(X[:3]))


@local
def test_only_what_is_trainable_is_a_parameter() -> None:
    def names(module: nn.Module) -> set[str]:
        return {name for name, _ in module.named_parameters()}

    assert names(hf.GaussianBumps(A, C, W)) == {"amplitudes", "centres"}
    fixed = hf.GaussianBumps(A, C, W, trainable=("widths",))
    assert names(fixed) == {"widths"}
    assert set(fixed.state_dict()) == set(ALL), "what is known is saved with the rest"
    assert not names(hf.GaussianBumps(A, C, W, trainable=()))


@local
def test_arguments_are_copied() -> None:
    a = A.copy()
    module = hf.GaussianBumps(a, C, W)
    a[:] = 100.0
    np.testing.assert_array_equal(module.amplitudes.detach(), A)


@local
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hf.GaussianBumps(A, C[:1]), r"2 amplitudes need centres of shape \(2, d\), not \(1, 2\)"),
        (lambda: hf.GaussianBumps(A, [C, C]), r"need centres of shape \(2, d\), not \(2, 2, 2\)"),
        (lambda: hf.GaussianBumps([A, A], C), r"amplitudes must have shape \(K,\) .* not \[\(2, 2\)"),
        (lambda: hf.GaussianBumps(A, C, background=[1.0, 2.0]), r"background be a number, not .* \(2,\)\]"),
        (lambda: hf.GaussianBumps(A, C, [0.1, 0.2, 0.3]), r"widths must be a number or have shape \(2,\), not \(3,\)"),
        (lambda: hf.GaussianBumps(A, C, [0.1, 0.0]), "widths must be positive"),
        (lambda: hf.GaussianBumps(A, C, np.nan), "widths must be positive"),
        (lambda: hf.GaussianBumps(A, C, trainable=("amplitude",)), r"trainable names \['amplitude'\], .*'amplitudes'"),
        (lambda: hf.GaussianBumps(A, C)(torch.zeros(3, 3)), "centres have 2 coordinates, the mesh has 3"),
        (lambda: hf.SineSeries(2.0), "one axis for each dimension"),
        (lambda: hf.SineSeries(SINES, [1.0, 2.0, 3.0]), r"wavenumber must be a number or have shape \(2,\), not"),
        (lambda: hf.SineSeries(SINES)(torch.zeros(3, 1)), "coefficients have 2 axes, the mesh has dimension 1"),
        (lambda: hf.Sum(), "a Sum needs at least one coefficient"),
        (lambda: hf.Positive(scale=0.0), "scale must be positive"),
        (lambda: hf.Positive(scale=np.inf), "finite, not lower=0.0, scale=inf"),
        (lambda: hf.Positive(np.nan), "finite, not lower=nan"),
        (lambda: hf.Bounded(1.0, 1.0), r"bounds must be finite and ordered, not \(1.0, 1.0\)"),
        (lambda: hf.Bounded(0.0, np.inf), r"bounds must be finite and ordered, not \(0.0, inf\)"),
        (lambda: hf.Bounded(np.nan, 1.0), "bounds must be finite and ordered"),
        (lambda: hf.Scalar(0.0, hf.Positive()), "initial values must be above 0.0, not 0.0"),
        (lambda: hf.Scalar(np.nan, hf.Positive()), "initial values must be above 0.0, not nan"),
        (lambda: hf.Scalar(3.0, hf.Bounded(1.0, 3.0)), "must lie strictly between 1.0 and 3.0"),
        (lambda: hf.Scalar(np.nan, hf.Bounded(1.0, 3.0)), "must lie strictly between"),
        (lambda: hf.Scalar(0.0, hf.Square()), "initial values must be positive, not 0.0"),
    ],
)  # fmt: skip
def test_what_is_no_coefficient_is_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# -- transforms ------------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, tuple[hf.Transform, Callable[[Any], Any], np.ndarray]] = {
    "identity": (hf.Identity(), lambda r: r, np.array([-1e9, -0.1, 0.0, 3.0])),
    "positive": (hf.Positive(), softplus, np.array([1e-300, 1e-12, 0.1, 0.6931, 2.0, 21.0, 40.0, 800.0, 1e9])),
    "positive, shifted and wide": (
        hf.Positive(-2.0, 1e3),
        lambda r: -2.0 + 1e3 * softplus(r / 1e3),
        np.array([-1.999, 0.0, 5.0, 1e3, 1e7]),
    ),
    "bounded": (
        hf.Bounded(-1.0, 2.0),
        lambda r: -1.0 + 3.0 / (1.0 + np.exp(-4.0 * r / 3.0)),
        np.array([-0.999999, -0.5, 0.5, 1.9, 1.999999]),
    ),
    "square": (hf.Square(), np.square, np.array([1e-12, 0.5, 2.0, 1e9])),
}


@local
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_its_formula_and_undoes_its_inverse(name: str) -> None:
    transform, formula, values = TRANSFORMS[name]
    raw = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    np.testing.assert_allclose(transform(raw).numpy(), formula(raw.numpy()), rtol=1e-13, atol=1e-15)
    given = torch.from_numpy(values)
    np.testing.assert_allclose(
        transform(transform.inverse(given)).numpy(), values, rtol=1e-13, atol=1e-15 * np.ptp(values)
    )
    assert torch.autograd.gradcheck(transform, (raw.requires_grad_(),))
    assert torch.autograd.gradgradcheck(transform, (raw,))


@local
@pytest.mark.parametrize("name", ["identity", "positive", "positive, shifted and wide", "bounded"])
def test_a_transform_is_monotone_with_slope_at_most_one(name: str) -> None:
    transform = TRANSFORMS[name][0]
    scale = getattr(transform, "scale", 1.0)
    raw = scale * torch.linspace(-20.0, 20.0, 401, dtype=torch.float64)
    steps = np.diff(transform(raw).numpy())
    assert (steps > 0).all()
    assert (steps <= 0.1 * scale * (1 + 1e-12)).all()


@local
def test_bounds_hold_for_any_argument() -> None:
    rng = np.random.default_rng(2)
    raw = torch.tensor([-1e300, -1e4, -30.0, 0.0, 30.0, 1e4, 1e300], dtype=torch.float64)
    for _ in range(200):
        lower, upper = np.sort(rng.standard_normal(2) * 10 ** rng.uniform(-3, 3))
        values = hf.Bounded(lower, upper)(raw)
        assert lower <= float(values.min())
        assert float(values.max()) <= upper
        assert float(values[3]) == pytest.approx((lower + upper) / 2, rel=1e-12, abs=1e-12 * (upper - lower))
        assert float(hf.Positive(lower, upper - lower)(raw).min()) >= lower


@local
def test_large_arguments_are_neither_lost_nor_overflow() -> None:
    raw = torch.tensor([-800.0, -700.0, 36.0, 699.0, 701.0, 1e300], dtype=torch.float64, requires_grad=True)
    values = hf.Positive()(raw)
    np.testing.assert_allclose(values.detach()[1:], [np.exp(-700.0), 36.0, 699.0, 701.0, 1e300], rtol=1e-15)
    (slope,) = torch.autograd.grad(values.sum(), raw)
    np.testing.assert_allclose(slope, [0.0, np.exp(-700.0), 1.0, 1.0, 1.0, 1.0], rtol=1e-12, atol=1e-320)
    (slope,) = torch.autograd.grad(hf.Bounded(-1.0, 2.0)(raw).sum(), raw)
    assert torch.isfinite(slope).all()


@local
def test_a_scalar_starts_and_is_reported_in_the_unit_of_the_coefficient() -> None:
    for value, transform in ((0.3, hf.Positive()), (-0.2, hf.Bounded(-1.0, 2.0)), (7.0, hf.Square()), (-4.0, None)):
        scalar = hf.Scalar(value, transform)
        assert scalar.value == pytest.approx(value, rel=1e-14)
        assert scalar.raw.shape == ()


# -- fields with a value at every dof ----------------------------------------------------------------------------


def space(comm: MPI.Comm, kind: str) -> fem.FunctionSpace:
    domain = square(comm, 4)
    if kind == "interval":
        return fem.functionspace(mesh.create_unit_interval(comm, 6), ("Lagrange", 2))
    return fem.functionspace(domain, {"P1": ("Lagrange", 1), "DG0": ("DG", 0), "vector": ("Lagrange", 1, (2,))}[kind])


@pytest.mark.parametrize("kind", ["P1", "DG0", "interval", "vector"])
def test_a_nodal_field_holds_each_dof_on_the_rank_that_owns_it(comm: MPI.Comm, kind: str) -> None:
    Q = space(comm, kind)
    wave = lambda x: 2.0 + torch.sin(3.0 * x[:, 0])  # noqa: E731
    initial = wave if kind != "vector" else lambda x: torch.stack([wave(x), 5.0 + x[:, 1]], dim=1)
    field = hf.NodalField(Q, initial, hf.Positive())
    assert [name for name, _ in field.named_parameters()] == ["raw"]
    assert is_distributed(field.raw)
    assert field.raw.numel() == owned_size(Q)
    assert comm.allreduce(field.raw.numel()) == Q.dofmap.index_map.size_global * Q.dofmap.index_map_bs
    x = hf.dof_coordinates(Q)
    values = field(x)
    assert values.shape == initial(x).shape
    np.testing.assert_allclose(values.detach(), initial(x), rtol=1e-13)
    np.testing.assert_allclose(field.raw.detach(), np.log(np.expm1(initial(x))), rtol=1e-12)
    np.testing.assert_allclose(hf.NodalField(Q, 0.7)(x).detach(), np.full(values.shape, 0.7))


def test_a_copy_of_a_nodal_field_is_distributed_too(comm: MPI.Comm) -> None:
    field = hf.NodalField(space(comm, "P1"), 2.0, hf.Positive())
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field)), copy.deepcopy(hf.Sum(field)).terms[0]):
        assert is_distributed(other.raw)
        assert other.raw is not field.raw
        np.testing.assert_array_equal(other.raw.detach(), field.raw.detach())


def test_a_sum_may_have_a_distributed_term(comm: MPI.Comm) -> None:
    Q = space(comm, "P1")
    both = hf.Sum(hf.NodalField(Q, lambda x: x[:, 1]), hf.GaussianBumps(A, C, W))
    x = hf.dof_coordinates(Q)
    np.testing.assert_allclose(both(x).detach(), x[:, 1] + bumps(x.numpy(), A, C, W), rtol=1e-13)
    assert [name for name, p in both.named_parameters() if is_distributed(p)] == ["terms.0.raw"]


def test_a_nodal_field_is_for_the_dofs_of_its_own_space(comm: MPI.Comm) -> None:
    field = hf.NodalField(space(comm, "P1"), 1.0)
    n = len(field.raw)
    with pytest.raises(ValueError, match=rf"values at the {n} dofs of its space, not at {n + 3} points"):
        field(torch.zeros(n + 3, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kind", "initial", "message"),
    [
        # Wrong at one corner only, which belongs to one rank: all ranks must hear of it.
        ("P1", lambda x: 1.0 - ((x - 1.0).abs().sum(1) < 1e-9).double(), "initial values must be above 0.0, not 0.0"),
        ("P1", lambda x: torch.ones(len(x) + 1), r"initial values of a NodalField have shape \(\d+,\), not \(\d+,\)"),
        ("vector", lambda x: torch.ones(len(x)), r"have shape \(\d+,\), not \(\d+, 2\)"),
        ("P1", -1.0, "initial values must be above 0.0, not -1.0"),
    ],
)
def test_a_nodal_field_with_a_wrong_start_is_refused_on_all_ranks(
    comm: MPI.Comm, kind: str, initial: Any, message: str
) -> None:
    Q = space(comm, kind)
    with pytest.raises(ValueError, match=message) as caught:
        hf.NodalField(Q, initial, hf.Positive())
    assert len(set(comm.allgather(str(caught.value)))) == 1


def test_a_nodal_field_needs_dofs_that_are_values_at_points(comm: MPI.Comm) -> None:
    Q = fem.functionspace(square(comm, 3), ("Raviart-Thomas", 1))
    with pytest.raises(ValueError, match="dofs that are not values at points"):
        hf.NodalField(Q)


@pytest.mark.serial
@pytest.mark.parametrize("transform", [None, torch.exp, hf.Positive(0.1)], ids=["none", "exp", "positive"])
def test_the_closed_form_of_the_jacobian_of_bumps_is_what_autograd_finds(transform: Any) -> None:
    every = ("background", "amplitudes", "centres", "widths")
    bumps = hf.GaussianBumps(
        [1.2, -0.4], [[0.3, 0.5], [0.8, 0.1]], [0.4, 0.7], 0.2, trainable=every, transform=transform
    )
    x = torch.from_numpy(np.random.default_rng(0).uniform(size=(7, 2)))
    theta = {name: p.detach() for name, p in bumps.named_parameters()}
    expected = torch.func.jacrev(lambda t: torch.func.functional_call(bumps, t, (x,)))(theta)
    found = bumps.parameter_jacobian(x)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name].numpy(), expected[name].numpy(), atol=1e-13)
    some = hf.GaussianBumps([1.0], [[0.3, 0.5]], trainable=("widths",))
    assert list(some.parameter_jacobian(x)) == ["widths"]
