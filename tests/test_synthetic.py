"""Networks against their formulas: shapes, seeds, derivatives, scaling and hard boundary values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import distorted_quadrilaterals
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf

X = torch.from_numpy(np.random.default_rng(0).uniform(-1.0, 2.0, (7, 2)))
BOX = np.array([[-1.0, 0.5], [2.0, 4.0]])

# Where there is no mesh and no communicator, each rank would do the same once more.
local = pytest.mark.serial

SIGMA: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0.0),
    "sigmoid": lambda z: 1.0 / (1.0 + np.exp(-z)),
    "gelu": lambda z: 0.5 * z * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0))),
    "silu": lambda z: z / (1.0 + np.exp(-z)),
    "sin": np.sin,
    "gaussian": lambda z: np.exp(-(z**2)),
}

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": lambda seed: hf.MLP(2, 1, width=5, depth=3, seed=seed),
    "MLP with two outputs": lambda seed: hf.MLP(2, 2, width=5, depth=1, seed=seed),
    "ResNet": lambda seed: hf.ResNet(2, 1, width=6, blocks=2, activation="tanh", seed=seed),
    "ResNet with three outputs": lambda seed: hf.ResNet(2, 3, width=6, blocks=1, seed=seed),
    "ShallowNet": lambda seed: hf.ShallowNet(2, neurons=5, seed=seed),
    "ShallowNet, radial": lambda seed: hf.ShallowNet(2, neurons=5, activation="gaussian", seed=seed),
    "FourierFeatures": lambda seed: hf.FourierFeatures(
        2, hf.MLP(6, 1, width=4, depth=1), features=3, scale=0.5, seed=seed
    ),
}
OUTPUTS = {"MLP with two outputs": 2, "ResNet with three outputs": 3}


def numbers(network: nn.Module) -> np.ndarray:
    """All weights and fixed numbers of a network."""
    return np.concatenate([t.detach().numpy().ravel() for t in network.state_dict().values()])


def affine(layer: nn.Linear, z: np.ndarray) -> np.ndarray:
    return z @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def check_derivatives(network: nn.Module, x: Tensor) -> None:
    """First and second derivatives by the weights and by x, against differences."""
    names = [name for name, _ in network.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in network.parameters()]

    def f(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, given, strict=True)), (x,))

    inputs = (x.detach().clone().requires_grad_(), *values)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


# -- what holds for all ----------------------------------------------------------------------------------------


@local
@pytest.mark.parametrize("name", NETWORKS)
def test_one_output_is_a_vector_and_more_are_columns_in_float64(name: str) -> None:
    network = NETWORKS[name](0)
    for n in (7, 1, 0):  # a rank may own one point, or none
        values = network(X[:n])
        assert values.dtype == torch.float64
        assert values.shape == ((n, OUTPUTS[name]) if name in OUTPUTS else (n,))
    assert {t.dtype for t in network.state_dict().values()} == {torch.float64}
    assert all(p.requires_grad for p in network.parameters())


def test_a_network_depends_on_its_seed_alone_and_is_equal_on_every_rank(comm: MPI.Comm) -> None:
    torch.manual_seed(100 + comm.rank)  # ranks whose own random streams differ
    stream = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    for name, build in NETWORKS.items():
        weights = numbers(build(3))
        assert all(np.array_equal(weights, other) for other in comm.allgather(weights)), name
        np.testing.assert_array_equal(numbers(build(3)), weights, err_msg=name)
        assert not np.isclose(numbers(build(4)), weights).all(), name
    assert torch.equal(torch.get_rng_state(), stream), "building a network must not draw from the user's stream"
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


@local
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "ResNet with three outputs"])  # relu has kinks
def test_a_network_is_differentiated_rightly_by_weights_and_coordinates(name: str) -> None:
    check_derivatives(NETWORKS[name](1), X[:2])


# -- formulas --------------------------------------------------------------------------------------------------


@local
@pytest.mark.parametrize("activation", SIGMA)
def test_networks_are_their_formulas(activation: str) -> None:
    sigma, x = SIGMA[activation], X.numpy()
    mlp = hf.MLP(2, 2, width=4, depth=3, activation=activation, seed=1)
    z = x
    for layer in mlp.hidden:
        z = sigma(affine(layer, z))
    assert len(mlp.hidden) == 3
    np.testing.assert_allclose(mlp(X).detach(), affine(mlp.last, z), rtol=1e-12, atol=1e-14)

    resnet = hf.ResNet(2, 1, width=5, blocks=2, activation=activation, seed=2)
    z = sigma(affine(resnet.first, x))
    for block in resnet.blocks:
        z = z + sigma(affine(block, z))
    assert len(resnet.blocks) == 2
    np.testing.assert_allclose(resnet(X).detach(), affine(resnet.last, z)[:, 0], rtol=1e-12, atol=1e-14)

    shallow = hf.ShallowNet(2, neurons=6, activation=activation, seed=3)
    w, b = shallow.w.detach().numpy(), shallow.b.detach().numpy()
    if activation == "gaussian":
        expected = [sum(w[j] * np.exp(-sum((p - b[j]) ** 2) / shallow.width**2) for j in range(6)) for p in x]
    else:
        a = shallow.a.detach().numpy()
        expected = [sum(w[j] * sigma(a[j] @ p + b[j]) for j in range(6)) for p in x]
    np.testing.assert_allclose(shallow(X).detach(), expected, rtol=1e-12, atol=1e-14)


@local
def test_an_activation_may_be_any_function() -> None:
    by_name, by_function = (hf.MLP(2, activation=sigma, width=4) for sigma in ("tanh", torch.tanh))
    assert torch.equal(by_name(X), by_function(X))


@local
def test_fourier_features_are_cosines_and_sines() -> None:
    network = hf.FourierFeatures(2, nn.Identity(), features=2000, scale=0.5, seed=1)
    B = network.B.numpy()
    assert B.shape == (2000, 2)
    assert not list(network.parameters()), "the frequencies are fixed"
    assert np.std(B) == pytest.approx(0.5, rel=0.05)
    phase = 2 * np.pi * X.numpy() @ B.T
    np.testing.assert_allclose(network(X), np.hstack([np.cos(phase), np.sin(phase)]), atol=1e-12)


@local
def test_shallow_networks_start_spread_over_the_box() -> None:
    ridge = hf.ShallowNet(2, neurons=400, box=BOX)
    extent = math.sqrt(3.0 * 3.5)  # the side of a square as large as BOX
    a, b = ridge.a.detach().numpy(), ridge.b.detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 4.0 / extent, rtol=1e-12)
    # Every kink a·x + b = 0 meets the box: a·x + b takes both signs on its corners.
    corners = np.array([[x, y] for x in BOX[:, 0] for y in BOX[:, 1]]) @ a.T + b
    assert (corners.min(axis=0) < 0).all()
    assert (corners.max(axis=0) > 0).all()

    radial = hf.ShallowNet(2, neurons=400, activation="gaussian", box=BOX)
    centres = radial.b.detach().numpy()
    assert centres.shape == (400, 2)
    assert (centres > BOX[0]).all()
    assert (centres < BOX[1]).all()
    np.testing.assert_allclose(centres.mean(axis=0), BOX.mean(axis=0), atol=0.2)
    assert radial.width == pytest.approx(extent / 20.0)
    assert hf.ShallowNet(2, neurons=4, activation="gaussian", width=0.7).width == 0.7
    assert {name for name, _ in radial.named_parameters()} == {"w", "b"}, "the width is fixed"


# -- around a network ------------------------------------------------------------------------------------------


@local
def test_scaling_maps_the_corners_of_the_box_to_plus_and_minus_one() -> None:
    scaled = hf.InputScaling(nn.Identity(), BOX)
    corners = torch.tensor([[-1.0, 0.5], [2.0, 4.0], [-1.0, 4.0], [0.5, 2.25]], dtype=torch.float64)
    np.testing.assert_allclose(scaled(corners), [[-1, -1], [1, 1], [-1, 1], [0, 0]], atol=1e-15)
    network = hf.MLP(2, 1, width=4)
    np.testing.assert_allclose(
        hf.InputScaling(network, BOX)(X).detach(), network((X - X.new([0.5, 2.25])) / X.new([1.5, 1.75])).detach()
    )
    assert not list(scaled.parameters())
    assert set(scaled.state_dict()) == {"middle", "half_width"}, "a saved network remembers its box"


def test_the_bounding_box_of_a_mesh_is_that_of_all_ranks(comm: MPI.Comm) -> None:
    rectangle = mesh.create_rectangle(comm, BOX.tolist(), [7, 2])
    np.testing.assert_array_equal(hf.bounding_box(rectangle), BOX)
    cuboid = mesh.create_box(comm, [[-1.0, 0.0, 2.0], [1.0, 5.0, 7.0]], [2, 2, 2])
    np.testing.assert_array_equal(hf.bounding_box(cuboid), [[-1.0, 0.0, 2.0], [1.0, 5.0, 7.0]])
    np.testing.assert_array_equal(hf.bounding_box(mesh.create_interval(comm, 5, [2.0, 3.0])), [[2.0], [3.0]])
    np.testing.assert_allclose(hf.bounding_box(distorted_quadrilaterals(comm)), [[0.0, 0.0], [1.0, 1.0]], atol=1e-15)


@local
def test_the_distance_is_zero_on_the_faces_of_the_box_and_one_in_its_middle() -> None:
    distance = hf.box_distance(BOX)
    faces = torch.tensor([[-1.0, 1.1], [2.0, 3.9], [0.3, 0.5], [0.7, 4.0]], dtype=torch.float64)
    assert torch.equal(distance(faces), torch.zeros(4, dtype=torch.float64)), "exactly"
    assert float(distance(torch.tensor([[0.5, 2.25]]).double())) == 1.0
    inside = np.random.default_rng(1).uniform(BOX[0], BOX[1], (50, 2))
    (x, y), values = inside.T, distance(torch.from_numpy(inside)).numpy()
    np.testing.assert_allclose(values, 16 * (x + 1) * (2 - x) * (y - 0.5) * (4 - y) / (3.0**2 * 3.5**2), rtol=1e-12)
    assert (values > 0).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_hard_boundary_values_are_exact_at_the_boundary_of_a_mesh(comm: MPI.Comm, outputs: int) -> None:
    domain = mesh.create_rectangle(comm, BOX.tolist(), [5, 4])
    x = torch.from_numpy(domain.geometry.x[:, :2].copy())
    network = hf.MLP(2, outputs, width=8, seed=5)
    formula = lambda x: x[:, 0] * x[:, 1] + 3.0  # noqa: E731
    g = formula if outputs == 1 else lambda x: torch.stack([formula(x), -formula(x)], dim=1)
    on = ((x == torch.from_numpy(BOX[0])) | (x == torch.from_numpy(BOX[1]))).any(dim=1)
    assert comm.allreduce(int(on.sum())) >= 18
    for value, expected in ((g, g(x)), (-2.0, torch.full_like(g(x), -2.0)), (0.0, torch.zeros_like(g(x)))):
        u = hf.HardBoundary(network, hf.box_distance(BOX), value)(x).detach()
        assert torch.equal(u[on], expected[on])
        ell = hf.box_distance(BOX)(x)
        np.testing.assert_allclose(
            u, expected + ((ell if outputs == 1 else ell[:, None]) * network(x)).detach(), rtol=1e-13, atol=1e-13
        )
        assert not (u[~on] == expected[~on]).any(), "the network must matter inside"


@local
def test_hard_boundary_values_can_be_trained_and_take_a_column() -> None:
    check_derivatives(hf.HardBoundary(hf.MLP(2, 2, width=3, depth=1), hf.box_distance(BOX), -1.0), X[:2])
    column = nn.Linear(2, 1, dtype=torch.float64)  # (n, 1)
    u = hf.HardBoundary(column, hf.box_distance(BOX), lambda x: x[:, 0])
    expected = X[:, 0] + hf.box_distance(BOX)(X) * column(X)[:, 0]
    for n in (7, 1):
        np.testing.assert_allclose(u(X[:n]).detach(), expected[:n].detach(), rtol=1e-14)


# -- in time ---------------------------------------------------------------------------------------------------

TIMES = (0.5, 2.5)
BOX_IN_TIME = np.column_stack([BOX, TIMES])


def in_time(comm: MPI.Comm) -> hf.TransientModel:
    """The heat equation on BOX from 0.5 to 2.5."""
    domain = mesh.create_rectangle(comm, BOX.tolist(), [5, 4])
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, u_t, v = fem.Function(V), fem.Function(V), ufl.TestFunction(V)
    F = u_t * v * ufl.dx + ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    return hf.TransientModel(F, u, u_t, interval=TIMES, dt=0.25, initial=1.0)


def test_the_box_of_a_model_in_time_is_that_of_its_mesh_and_its_interval(comm: MPI.Comm) -> None:
    model = in_time(comm)
    np.testing.assert_array_equal(hf.bounding_box(model.domain), BOX_IN_TIME)
    np.testing.assert_array_equal(hf.bounding_box(model.V.mesh, TIMES), BOX_IN_TIME)
    scaled = hf.InputScaling(nn.Identity(), hf.bounding_box(model.domain))
    z = hf.RandomGhosts(500, seed=1).on(model.domain).draw(1)
    found = z.gather(scaled(z.x))
    assert (np.abs(found) <= 1).all()
    # Each column, time too, is uniform in [−1, 1]: five standard errors.
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=5 / np.sqrt(3 * 500))
    np.testing.assert_allclose((found**2).mean(axis=0), 1 / 3, atol=5 * np.sqrt(4 / 45 / 500))


NETWORKS_IN_TIME: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: hf.MLP(3, width=16, depth=2),
    "ResNet": lambda: hf.ResNet(3, width=16, blocks=1, activation="tanh"),
    "ShallowNet": lambda: hf.ShallowNet(3, neurons=40),
    "ShallowNet, radial": lambda: hf.ShallowNet(3, neurons=40, activation="gaussian"),
    "FourierFeatures": lambda: hf.FourierFeatures(3, hf.MLP(32, width=8, depth=1), features=16, scale=0.2),
    "NeuralODE": lambda: hf.NeuralODE(3, width=8, layers=2, augment=2),
}


@local
@pytest.mark.parametrize("name", NETWORKS_IN_TIME)
def test_a_network_of_space_and_time_learns_a_field_that_moves(comm: MPI.Comm, name: str) -> None:
    """A wave that runs through BOX, of root mean square 0.7, from its values at 150 points (x, t)."""
    domain = in_time(comm).domain
    network = hf.InputScaling(NETWORKS_IN_TIME[name](), hf.bounding_box(domain))
    points = hf.RandomGhosts(150, seed=2).on(domain).draw(1)
    truth = lambda z: torch.sin(z[:, 0] + 0.5 * z[:, 1] - z[:, 2])  # noqa: E731
    data = hf.Data(points, points.gather(truth(points.x)))
    alone = hf.NetworkOnly(network, data, answer=hf.LBFGS(60))
    alone.run(1)
    unseen = hf.RandomGhosts(200, seed=3).on(domain).draw(1)
    missed = unseen.gather(network(unseen.x).detach() - truth(unseen.x))
    assert np.sqrt((missed**2).mean()) < 0.1


@pytest.mark.parametrize("outputs", [1, 2])
def test_hard_values_in_time_are_exact_at_the_boundary_at_all_times_and_at_the_start(outputs: int) -> None:
    """g(x, t) = t + x y on the boundary, and u₀ equal to it there and 1 larger in the middle."""
    columns = (lambda c: c) if outputs == 1 else (lambda c: torch.stack([c, -c], dim=1))
    bump = lambda x: hf.box_distance(BOX)(x[:, :2])  # noqa: E731
    g = lambda z: columns(z[:, 2] + z[:, 0] * z[:, 1])  # noqa: E731
    u0 = lambda x: columns(TIMES[0] + x[:, 0] * x[:, 1] + bump(x))  # noqa: E731
    network = hf.MLP(3, outputs, width=6)
    rng = np.random.default_rng(7)
    z = torch.from_numpy(rng.uniform(BOX_IN_TIME[0], BOX_IN_TIME[1], (40, 3)))
    on = z.clone()
    on[:, 0] = BOX[0, 0]
    first = z.clone()
    first[:, 2] = TIMES[0]
    for distance in (
        hf.box_distance(BOX),
        hf.mesh_distance(mesh.create_rectangle(MPI.COMM_SELF, BOX.tolist(), [3, 2])),
    ):
        free = hf.HardBoundary(network, distance, g, interval=TIMES)
        held = hf.HardBoundary(network, distance, g, interval=TIMES, initial=u0)
        for u in (free, held):
            np.testing.assert_allclose(u(on).detach(), g(on), rtol=0, atol=1e-13)
        np.testing.assert_allclose(held(first).detach(), u0(first[:, :2]), rtol=0, atol=1e-13)
        # Inside, the network is heard.
        for u, what in ((free, g(first)), (held, g(z) + columns(bump(z)))):
            assert float((u(first if u is free else z).detach() - what).abs().min()) > 1e-6
    zero = hf.HardBoundary(network, hf.box_distance(BOX), interval=TIMES, initial=0.0)
    assert float(zero(torch.cat([on, first])).detach().abs().max()) == 0.0


@local
def test_hard_values_in_time_can_be_trained() -> None:
    network = hf.HardBoundary(
        hf.MLP(3, width=3, depth=1),
        hf.box_distance(BOX),
        lambda z: z[:, 0] * z[:, 2],
        interval=TIMES,
        initial=hf.MLP(2, width=2, depth=1),
    )
    check_derivatives(network, torch.from_numpy(np.random.default_rng(1).uniform(*BOX_IN_TIME, (2, 3))))
    assert any(name.startswith("initial.") for name, _ in network.named_parameters()), "an unknown start is trained too"


# -- bad arguments ---------------------------------------------------------------------------------------------


def boundary(distance: Callable | None = None, value: Any = 0.0, outputs: int = 1) -> Tensor:
    return hf.HardBoundary(hf.MLP(2, outputs, width=2, depth=1), distance or hf.box_distance(BOX), value)(X)


@local
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hf.MLP(2, 0), "inputs, outputs, width and depth must be at least 1"),
        (lambda: hf.MLP(2, depth=0), "depth must be at least 1"),
        (lambda: hf.ResNet(2, width=0), "inputs, outputs, width and blocks must be at least 1"),
        (lambda: hf.ResNet(2, blocks=0), "blocks must be at least 1"),
        (lambda: hf.ShallowNet(2, neurons=0), "inputs and neurons must be at least 1"),
        (lambda: hf.ShallowNet(2, neurons=3, box=[[0.0], [1.0]]), "box has dimension 1, the network has 2 inputs"),
        (lambda: hf.ShallowNet(2, neurons=3, box=BOX[::-1]), "corners with lower < upper"),
        (lambda: hf.ShallowNet(2, neurons=3, activation="gaussian", width=0.0), "width must be positive, not 0.0"),
        (lambda: hf.ShallowNet(2, neurons=3, width=0.5), "width is for activation='gaussian'"),
        (lambda: hf.ShallowNet(2, neurons=3)(X[:, :1]), "the network has dimension 2, the points have 1"),
        (lambda: hf.MLP(2, activation="tahn"), r"activation 'tahn' is not among \[.*'tanh'.*\]; pass a function"),
        (lambda: hf.ResNet(2, activation="tahn"), "activation 'tahn' is not among"),
        (lambda: hf.ShallowNet(2, neurons=3, activation="tahn"), "activation 'tahn' is not among"),
        (lambda: hf.FourierFeatures(2, nn.Identity(), features=0), "inputs and features must be at least 1"),
        (lambda: hf.InputScaling(nn.Identity(), [1.0, 2.0]), r"lower and upper corner, shape \(2, d\), not \(2,\)"),
        (lambda: hf.InputScaling(nn.Identity(), np.zeros((3, 2))), r"shape \(2, d\), not \(3, 2\)"),
        (lambda: hf.InputScaling(nn.Identity(), [[0.0, 1.0], [1.0, 1.0]]), "corners with lower < upper"),
        (lambda: hf.InputScaling(nn.Identity(), [[0.0, 0.0], [1.0, np.nan]]), "finite corners"),
        (lambda: hf.InputScaling(nn.Identity(), BOX)(X[:, :1]), "the box has dimension 2, the points have 1"),
        (lambda: hf.box_distance(BOX)(X[:, :1]), "the box has dimension 2, the points have 1"),
        (lambda: hf.box_distance(BOX[::-1]), "corners with lower < upper"),
        (lambda: boundary(lambda x: x), r"the distance has shape \(7, 2\) at 7 points, not \(7,\)"),
        (lambda: boundary(lambda x: x[:, :1]), r"the distance has shape \(7, 1\)"),
        (lambda: boundary(value=lambda x: x[:, :1]), r"boundary values have shape \(7, 1\), the network's \(7,\)"),
        (lambda: boundary(value=lambda x: x[:, 0], outputs=2), r"have shape \(7,\), the network's \(7, 2\)"),
        (
            lambda: hf.HardBoundary(hf.MLP(3), hf.box_distance(BOX), initial=0.0),
            r"of \(x, t\): pass interval=\(t0, T\)",
        ),
        (
            lambda: hf.HardBoundary(hf.MLP(3), hf.box_distance(BOX), interval=(1.0, 1.0)),
            "must be finite, and end after",
        ),
        (
            lambda: hf.HardBoundary(hf.MLP(2), hf.box_distance(BOX), interval=TIMES)(X),
            "the box has dimension 2, the points have 1",
        ),
        (
            lambda: hf.HardBoundary(hf.MLP(2), lambda x: x[:, 0], interval=TIMES, initial=lambda x: x)(X),
            r"the initial values have shape \(7, 1\), the network's \(7,\)",
        ),
    ],
)
def test_what_is_no_network_is_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
