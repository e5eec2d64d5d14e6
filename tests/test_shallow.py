"""The K-neuron ansatz: the quadratic form of the energy on its weights, and its fits."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import square
from dolfinx import mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.ritz import features as features_module
from hyco_fem.ritz import shallow
from hyco_fem.ritz.energy import RitzEnergy
from hyco_fem.ritz.features import Radial, Ridge, Trial, features_of, gram
from hyco_fem.ritz.shallow import ProjectedFit, fit_shallow

PI = np.pi
UNIT = [[0.0, 0.0], [1.0, 1.0]]
LEAST = -(PI**2) / 4  # E of sin πx sin πy


def wave(x: Tensor) -> Tensor:
    """sin πx sin πy, or sin πx in 1D."""
    return torch.sin(PI * x).prod(1)


def load(x: Tensor) -> Tensor:
    """−Δ wave."""
    return x.shape[1] * PI**2 * wave(x)


def square_energy(comm: MPI.Comm, n: int = 5, **options: Any) -> RitzEnergy:
    """−Δu = 2π² sin πx sin πy on the unit square."""
    return RitzEnergy(square(comm, n), f=load, **options)


def with_all_terms(comm: MPI.Comm) -> RitzEnergy:
    """κ and η that vary, a flux, and values held by a penalty on the left."""
    return RitzEnergy(
        square(comm, 3),
        f=load,
        kappa=lambda x: 1.0 + x[:, 0],
        eta=lambda x: x[:, 1],
        flux=lambda x: x[:, 1],
        g=lambda x: x[:, 1] ** 2,
        penalty=50.0,
        dirichlet=lambda x: np.isclose(x[0], 0.0),
    )


def bubble(x: Tensor) -> Tensor:
    """A distance to the boundary of the unit square."""
    return hf.box_distance(UNIT)(x)


def lifting(x: Tensor) -> Tensor:
    """Values that are not zero on the boundary."""
    return 0.3 + x[:, 0] * x[:, 1]


NETS = {
    "tanh": {"activation": "tanh"},
    "sigmoid": {"activation": "sigmoid"},
    "sin": {"activation": "sin"},
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "relu³": {"activation": lambda z: torch.relu(z) ** 3},
    "gaussian": {"activation": "gaussian", "width": 0.5},
}


def net(kind: str, K: int = 4, d: int = 2, seed: int = 1) -> hf.ShallowNet:
    """K neurons in the unit box."""
    return hf.ShallowNet(d, neurons=K, box=[[0.0] * d, [1.0] * d], seed=seed, **NETS[kind])  # type: ignore[arg-type]


# -- the quadratic form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("where", ["hard", "lifted", "free"])
def test_the_energy_is_a_quadratic_form_of_the_weights(comm: MPI.Comm, kind: str, where: str) -> None:
    """E(g + ℓ Σ w_j φ_j) = ½ wᵀA w − rᵀw + E(g), at any w."""
    energy = with_all_terms(comm) if where != "hard" else square_energy(comm, 3)
    trial = Trial(energy, None if where == "free" else bubble, lifting if where == "lifted" else 0.0)
    network = net(kind)
    form = gram(trial, features_of(network))
    assert torch.equal(form.A, form.A.T) or (form.A - form.A.T).abs().max() < 1e-12 * form.A.abs().max()
    for seed in range(3):
        w = torch.from_numpy(np.random.default_rng(seed).standard_normal(4))
        with torch.no_grad():
            network.w.copy_(w)
        E = energy.value(trial.network(network))
        assert float(form.value(w).detach()) == pytest.approx(E, rel=1e-9)
        with torch.no_grad():
            assert energy._total(energy.of(trial.of(features_of(network), w))) == pytest.approx(E, rel=1e-9)


def test_entries_are_integrals_of_two_neurons(comm: MPI.Comm) -> None:
    """A_ij = ∫∇ψ_i·∇ψ_j and r_j = ∫fψ_j, each made by itself."""
    energy, network = square_energy(comm, 3), net("tanh", K=3)
    form = gram(Trial(energy, bubble), features_of(network))
    rule = energy.inside
    assert rule is not None
    alone = []
    for j in range(3):
        single = net("tanh", K=1)
        with torch.no_grad():
            single.a.copy_(network.a[j : j + 1])
            single.b.copy_(network.b[j : j + 1])
            single.w.fill_(1.0)
        alone.append(hf.HardBoundary(single, bubble))
    for i in range(3):
        assert rule.integral(energy.f * rule.values(alone[i])) == pytest.approx(float(form.r[i].detach()), rel=1e-11)
        for j in range(3):
            product = (rule.gradients(alone[i]) * rule.gradients(alone[j])).sum(1)
            assert rule.integral(product) == pytest.approx(float(form.A[i, j].detach()), rel=1e-11)


def test_pieces_of_the_points_add_up(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    energy, network = with_all_terms(comm), net("gaussian")
    whole = gram(Trial(energy, bubble), features_of(network))
    monkeypatch.setattr(features_module, "_ENTRIES", 60)  # five points at once
    pieces = gram(Trial(energy, bubble), features_of(network))
    torch.testing.assert_close(pieces.A, whole.A, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(pieces.r, whole.r, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["tanh", "gelu", "gaussian"])
def test_the_form_is_differentiable_in_the_neurons(kind: str) -> None:
    energy, network = with_all_terms(MPI.COMM_SELF), net(kind)
    trial = Trial(energy, bubble)
    moved = [p for name, p in network.named_parameters() if name != "w"]

    def functional() -> Tensor:
        form = gram(trial, features_of(network))
        return form.A.square().sum() + form.r.sum()

    assert hf.taylor_test(functional, moved, comm=MPI.COMM_SELF).ok


def test_neurons_that_coincide_share_their_weight(comm: MPI.Comm) -> None:
    """A is singular then; the least energy is that of one neuron."""
    trial = Trial(square_energy(comm), bubble)
    a, b = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([0.3]).double()
    one, two = gram(trial, Ridge(a, b)), gram(trial, Ridge(a.repeat(2, 1), b.repeat(2)))
    w = two.least()
    assert float(two.value(w)) == pytest.approx(float(one.value(one.least())), rel=1e-10)
    torch.testing.assert_close(w[0], w[1])
    # With a Tikhonov term too.
    torch.testing.assert_close(two.least(1e-3)[0], two.least(1e-3)[1])
    assert two.least(1e-1).norm() < w.norm()


# -- variable projection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tanh", "gaussian", "gelu"])
def test_the_reduced_energy_has_the_gradient_of_the_whole(comm: MPI.Comm, kind: str) -> None:
    """∇Ê(a, b) = ∂E/∂(a, b) at w(a, b), by differences of Ê."""
    network = net(kind)
    fit = ProjectedFit(Trial(with_all_terms(comm)), network, tikhonov=1e-2)
    moved = list(fit.parameters().values())
    assert network.w not in set(moved)
    assert hf.taylor_test(fit.objective, moved, comm=comm, steps=(1e-3, 5e-4, 2.5e-4, 1.25e-4)).ok


def test_no_other_weights_have_less_energy(comm: MPI.Comm) -> None:
    energy, network = square_energy(comm), net("tanh")
    fit = ProjectedFit(Trial(energy, bubble), network)
    fit.project()
    least, w = fit.energy(), network.w.detach().clone()
    rng = np.random.default_rng(0)
    for _ in range(5):
        with torch.no_grad():
            network.w.copy_(w + 1e-3 * torch.from_numpy(rng.standard_normal(4)))
        assert fit.energy() > least


# -- fits ------------------------------------------------------------------------------------------------------


def test_a_solution_in_the_ansatz_is_found(comm: MPI.Comm) -> None:
    """u = exp(−|x − c|²/s²) with η = 1 and no boundary values but its own flux: one Gaussian neuron, at c."""
    domain = square(comm, 6)
    x, c, s = ufl.SpatialCoordinate(domain), (0.4, 0.7), 0.6
    u = ufl.exp(-((x[0] - c[0]) ** 2 + (x[1] - c[1]) ** 2) / s**2)
    # κ ∂u/∂n is −2 (x − c)·n/s² u, and n is known from the side.
    n = ufl.as_vector([ufl.conditional(ufl.lt(x[i], 1e-8), -1.0, 0.0) for i in (0, 1)]) + ufl.as_vector(
        [ufl.conditional(ufl.gt(x[i], 1 - 1e-8), 1.0, 0.0) for i in (0, 1)]
    )
    flux = ufl.dot(ufl.grad(u), n)
    nowhere = np.empty(0, dtype=np.int32)
    energy = RitzEnergy(domain, f=-ufl.div(ufl.grad(u)) + u, eta=1.0, flux=flux, dirichlet=nowhere, degree=10)
    fits = fit_shallow(energy, 1, activation="gaussian", width=s, starts=3, steps=40)
    assert isinstance(fits.best, hf.ShallowNet)
    np.testing.assert_allclose(fits.best.b.detach().numpy(), [c], atol=1e-5)
    np.testing.assert_allclose(fits.best.w.detach().numpy(), [1.0], atol=1e-5)


@pytest.mark.serial
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        pytest.param("tanh", (1, 2, 4, 8), marks=pytest.mark.slow),
        pytest.param("gaussian", (1, 2, 4, 8), marks=pytest.mark.slow),
        ("tanh", (1, 3)),
    ],
)
def test_errors_fall_with_the_number_of_neurons(comm: MPI.Comm, kind: str, sizes: tuple[int, ...]) -> None:
    """In the median over ten starts, in energy and in L²: M_K lies in M_{K+1}, if Gaussians keep their width."""
    domain = square(comm, 5)
    energy = RitzEnergy(domain, f=load, degree=8)
    points = hf.quadrature_points(domain, 6)
    excess, errors = [], []
    options: dict[str, Any] = {"activation": "gaussian", "width": 0.6} if kind == "gaussian" else {}
    for K in sizes:
        fits = fit_shallow(energy, K, distance=bubble, starts=10, steps=80 if len(sizes) > 2 else 25, **options)
        assert fits.failures == 0
        excess.append(fits.median - LEAST)
        errors.append(np.median([hf.relative_l2(v, wave, points) for v in fits.networks]))  # type: ignore[arg-type]
        low, high = fits.quartiles
        assert LEAST < low <= fits.median <= high
        assert np.nanmin(fits.energies) == pytest.approx(energy.finer().value(fits.best), rel=1e-12)
    assert all(np.diff(excess) < 0), excess
    assert all(np.diff(errors) < 0), errors


@pytest.mark.serial
def test_projection_beats_joint_training(comm: MPI.Comm) -> None:
    """With as many iterations, from the same starts."""
    energy = square_energy(comm)
    medians = [
        fit_shallow(energy, 4, distance=bubble, starts=5, steps=60, projected=projected).median
        for projected in (True, False)
    ]
    assert medians[0] - LEAST < 0.2 * (medians[1] - LEAST)


@pytest.mark.serial
def test_a_tikhonov_term_bounds_the_weights(comm: MPI.Comm) -> None:
    energy = square_energy(comm, 4)
    free, held = (
        fit_shallow(energy, 6, distance=bubble, starts=3, steps=60, tikhonov=alpha, seed=2) for alpha in (1e-12, 1e-2)
    )
    assert held.weights.max() < free.weights.min()
    # α|w|²/2 is at most what w = 0 would cost, on the quadrature of the fit.
    assert np.all(0.5 * 1e-2 * held.weights**2 <= -held.fitted)
    assert np.median(free.energies) < np.median(held.energies)


@pytest.mark.serial
def test_penalised_values_miss_by_the_inverse_of_the_penalty(comm: MPI.Comm) -> None:
    """−u″ = 1 on (0, 1): u_β − u = 1/(2β), which the fit finds."""
    domain = mesh.create_unit_interval(comm, 8)
    for beta in (10.0, 100.0, 1000.0):
        energy = RitzEnergy(domain, penalty=beta)
        fits = fit_shallow(energy, 4, starts=2, steps=80)
        shift = energy.missed(fits.best) ** 0.5
        assert shift == pytest.approx(0.5 / beta, rel=1e-2)


@pytest.mark.serial
def test_kinked_neurons_exploit_a_coarse_quadrature(comm: MPI.Comm) -> None:
    """The sum is below the least energy that there is; on a finer rule the same network is above it."""
    energy = square_energy(comm, 3, degree=2)
    fits = fit_shallow(energy, 16, activation="relu", distance=bubble, starts=2, steps=60)
    assert np.nanmin(fits.fitted) < LEAST - 0.05
    assert np.all(fits.energies > fits.fitted + 0.05)
    assert square_energy(comm, 16, degree=8).value(fits.best) > LEAST


def test_starts_that_fail_are_counted(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = square_energy(comm, 3)

    def never(z: Tensor) -> Tensor:
        return torch.tanh(z) + torch.nan

    with pytest.raises(FloatingPointError, match="none of the 2 starts"):
        fit_shallow(energy, 2, activation=never, distance=bubble, starts=2, tikhonov=1e-8)
    run, calls = ProjectedFit.run, []

    def sometimes(self: ProjectedFit, answer: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise FloatingPointError
        run(self, answer)

    monkeypatch.setattr(shallow.ProjectedFit, "run", sometimes)
    fits = fit_shallow(energy, 2, distance=bubble, starts=3, steps=5)
    assert fits.failures == 1
    assert np.isnan(fits.energies[1])
    assert np.isfinite([fits.median, *fits.quartiles, energy.value(fits.best)]).all()


@pytest.mark.parametrize("kind", ["tanh", "gaussian"])
def test_a_fit_does_not_depend_on_units_and_place(comm: MPI.Comm, kind: str) -> None:
    """−Δu = 1 in millimetres or kilometres, here or elsewhere, u in any unit: E in units of f² L^(d+2) is the same."""

    def fitted(length: float, place: float, f: float) -> np.ndarray:
        domain = square(comm, 6)
        domain.geometry.x[:] = length * domain.geometry.x
        domain.geometry.x[:, 0] += place
        distance = hf.box_distance([[place, 0.0], [place + length, length]])
        fits = fit_shallow(RitzEnergy(domain, f=f), 3, activation=kind, distance=distance, starts=2, steps=8)
        return fits.energies / (f**2 * length**4)

    expected = fitted(1.0, 0.0, 1.0)
    for length, place, f in ((1e6, 3e6, 1e-3), (1e-3, -1e-3, 1e4)):
        np.testing.assert_allclose(fitted(length, place, f), expected, rtol=1e-7)


def test_fits_on_any_number_of_ranks_are_one(comm: MPI.Comm) -> None:
    def build(comm: MPI.Comm) -> dict:
        numbers: dict = {}
        for kind in ("tanh", "gaussian"):
            network = net(kind)
            form = gram(Trial(with_all_terms(comm), bubble, lifting), features_of(network))
            numbers |= {f"A {kind}": form.A.detach().numpy(), f"r {kind}": form.r.detach().numpy()}
        fits = fit_shallow(square_energy(comm, 3), 3, distance=bubble, starts=2, steps=8, tikhonov=1e-3)
        return numbers | {"energies": fits.energies, "fitted": fits.fitted, "weights": fits.weights}

    result = hf.rank_invariance(build, comm=comm, tolerance=1e-10)
    assert result.ok, result.differences


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "neurons must be a whole number"),
        ({"starts": 0}, "starts must be a whole number"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"tikhonov": -1.0}, "tikhonov must be finite and not negative"),
        ({"activation": "step"}, "activation 'step' is not among"),
        ({"width": -1.0}, "width must be positive"),
        ({"distance": None}, "distance=hyco_fem.mesh_distance"),
        ({"g": 1.0}, "miss the values"),
    ],
)
def test_what_makes_no_fit_is_refused(comm: MPI.Comm, options: dict, message: str) -> None:
    arguments = {"neurons": 2, "distance": bubble, "starts": 1, "steps": 1} | options
    with pytest.raises(ValueError, match=message):
        fit_shallow(square_energy(comm, 2), **arguments)


def test_radial_features_are_those_of_the_network(comm: MPI.Comm) -> None:
    """The closed forms against the module and its gradient by autograd, in one to three dimensions."""
    for d in (1, 2, 3):
        for kind in NETS:
            network = net(kind, d=d)
            x = torch.from_numpy(np.random.default_rng(d).random((7, d))).requires_grad_()
            (slopes,) = torch.autograd.grad(network(x).sum(), x)
            phi = features_of(network)
            assert isinstance(phi, Radial if kind == "gaussian" else Ridge)
            values, gradients = phi.combined(x, network.w)
            each, of_each = phi.both(x)
            torch.testing.assert_close(values, network(x))
            torch.testing.assert_close(gradients, slopes)
            torch.testing.assert_close(each @ network.w, network(x))
            torch.testing.assert_close(torch.einsum("nkd,k->nd", of_each, network.w), slopes)
            torch.testing.assert_close(phi.values(x), each)


# -- regression, with the same nets ----------------------------------------------------------------------------


@pytest.mark.serial
def test_regularised_regression_with_several_starts(comm: MPI.Comm) -> None:
    """(1/N) Σ |v(x_i) − y_i|² + α|(w, a, b)|² is `NetworkOnly` with a decay: a larger α, smaller parameters."""
    domain = mesh.create_unit_interval(comm, 4)
    x = np.linspace(0.02, 0.98, 25)[:, None]
    data = hf.Data(hf.Points(domain, x), np.sin(2 * PI * x[:, 0]))
    box = {"a": (-8.0, 8.0), "b": (-8.0, 8.0), "w": (-1.0, 1.0)}
    norms, misfits = [], []
    for alpha in (1e-6, 1e-4, 1e-2):
        network = hf.ShallowNet(1, neurons=4, box=[[0.0], [1.0]])
        answer = hf.MultiStart(box, starts=4, keep=1, answer=hf.LBFGS(steps=100))
        last = hf.NetworkOnly(network, data, answer, decay=alpha).run(2).history[-1]
        norms.append(sum(float(p.detach().square().sum()) for p in network.parameters()))
        misfits.append(last.misfit_synthetic - alpha * norms[-1])
        assert last.misfit_synthetic < np.mean(np.sin(2 * PI * x) ** 2)  # what v = 0 costs
    assert norms[0] > norms[1] > norms[2]
    assert 0 <= misfits[0] < misfits[1] < misfits[2]
    assert misfits[0] < 1e-4
