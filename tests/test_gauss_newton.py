"""Best responses: Gauss–Newton, L-BFGS, many starts, the joint game; on problems whose answer is known."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import poisson
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.game.gauss_newton import reduced
from hyco_fem.game.objective import JointObjective, Opponent, PhysicalObjective, SyntheticObjective
from hyco_fem.game.player import Player, flat, put_flat
from hyco_fem.parallel import sum_array, sum_gradients, sum_over_ranks

RNG = np.random.default_rng(7)
SENSORS = RNG.uniform(0.05, 0.95, (20, 2))
NAMES = ("kappa.amplitudes", "kappa.centres")
TRUTH = {"kappa.amplitudes": [3.0], "kappa.centres": [[0.5, 0.55]]}
START_AWAY = {"kappa.amplitudes": [2.0], "kappa.centres": [[0.45, 0.6]]}


def model_at(comm: MPI.Comm, values: dict[str, Any] | None = None) -> hf.PhysicalModel:
    model = poisson(comm)
    bumps = model.coefficients["kappa"]
    with torch.no_grad():
        for name, value in (values or {}).items():
            getattr(bumps, name.split(".")[1]).copy_(torch.tensor(value, dtype=torch.float64))
    return model


def measured(comm: MPI.Comm, noise: float = 0.0, x: np.ndarray = SENSORS) -> np.ndarray:
    """The model's own values at the true κ, and noise: without it the residual at the truth is zero."""
    model = model_at(comm, TRUTH)
    points = hf.Points(model.V.mesh, x)
    with torch.no_grad():
        values = points.gather(model(points))
    return values + noise * np.random.default_rng(1).standard_normal(len(values))


def data_on(model: hf.PhysicalModel, values: np.ndarray, x: np.ndarray = SENSORS, **options: Any) -> hf.Data:
    return hf.Data(hf.Points(model.V.mesh, x), values, **options)


def theta_of(model: hf.PhysicalModel) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def value_of(objective: Any) -> float:
    with torch.no_grad():
        return float(sum_over_ranks(objective(), objective.comm))


# -- Gauss–Newton ----------------------------------------------------------------------------------------------


def test_gauss_newton_converges_quadratically_where_the_residual_is_zero(comm: MPI.Comm) -> None:
    model = model_at(comm, {"kappa.amplitudes": [2.0], "kappa.centres": [[0.42, 0.6]]})
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), hf.GaussNewton())
    truth = theta_of(model_at(comm, TRUTH))
    errors = []
    for k in range(9):
        errors.append(np.linalg.norm(theta_of(model) - truth))
        alone.round(k)
    errors = np.array(errors)
    last = np.flatnonzero(errors > 1e-11)[-1]
    near = [k for k in range(1, last + 1) if errors[k - 1] < 0.3]
    assert errors[last] < 1e-5, errors
    orders = [math.log(errors[k]) / math.log(errors[k - 1]) for k in near if errors[k] > 1e-11]
    assert max(orders) > 1.7, (errors, orders)
    assert errors.min() < 1e-9


def dense(r: np.ndarray, J: np.ndarray, c: np.ndarray, x: np.ndarray, W: np.ndarray) -> np.ndarray:
    return -np.linalg.solve(J.T @ J + np.diag(c + W), J.T @ r + c * x)


@pytest.mark.parametrize(("n", "p"), [(40, 6), (12, 30), (400, 230)], ids=["QR", "dual", "normal"])
def test_the_three_forms_of_a_step_are_one(comm: MPI.Comm, n: int, p: int) -> None:
    """Rows spread unevenly over the ranks; with decay, damping, and some entries held."""
    rng = np.random.default_rng(3)
    r, J, x = rng.standard_normal(n), rng.standard_normal((n, p)), rng.standard_normal(p)
    c, W, free = rng.uniform(0, 1, p), rng.uniform(0.1, 1, p), rng.random(p) < 0.7
    ends = [0] + [min(n, 3 + 2 * k * n // comm.size) for k in range(comm.size - 1)] + [n]
    mine = slice(ends[comm.rank], ends[comm.rank + 1])
    problem = reduced(comm, r[mine], J[mine])
    d = rng.standard_normal(p)
    e = r + J @ d
    assert problem.value(d) == pytest.approx(e @ e, rel=1e-11)
    np.testing.assert_allclose(problem.slope(), J.T @ r, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(problem.squares(), (J**2).sum(axis=0), rtol=1e-11)
    for W_, c_, free_ in ((W, c, free), (W, c, np.ones(p, dtype=bool)), (np.full(p, 0.3), np.zeros(p), free | True)):
        expected = np.zeros(p)
        expected[free_] = dense(r, J[:, free_], c_[free_], x[free_], W_[free_])
        np.testing.assert_allclose(problem.step(free_, x, c_, W_), expected, rtol=1e-8, atol=1e-10)


def test_bounds_hold_and_the_end_is_a_constrained_minimum(comm: MPI.Comm) -> None:
    """The true amplitude 3 lies outside: it ends on the bound, the others where their gradient is zero."""
    model = model_at(comm)
    bounds = {"kappa.amplitudes": (0.5, 2.5), "kappa.centres": (0.0, 1.0)}
    data = data_on(model, measured(comm))
    alone = hf.PhysicsOnly(model, data, hf.GaussNewton(40, bounds=bounds))
    alone.run(1)
    amplitude, centres = (p.detach().numpy() for p in model.parameters())
    assert amplitude == pytest.approx([2.5], abs=1e-14)
    look = alone.player.look(alone.objective()())
    gradients = [p.grad.numpy() for p in alone.player.parameters]
    assert gradients[0] < 0, "J still falls beyond the bound"
    assert np.abs(gradients[1]).max() < 1e-5 * abs(gradients[0][0]), look
    assert np.all((centres > 0) & (centres < 1))


def test_gauss_newton_on_a_linear_network_is_ridge_regression(comm: MPI.Comm) -> None:
    """u = w·x + b with decay c on both: closed form; in one step but for the damping."""
    net = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.fill_(0.3), net.bias.fill_(-0.2)
    model = poisson(comm)
    y = np.sin(3 * SENSORS[:, 0]) + SENSORS[:, 1]
    data = data_on(model, y)
    alone = hf.NetworkOnly(net, data, hf.GaussNewton(30, damping=1e-6), decay=0.01)
    alone.run(1)
    A = np.column_stack([SENSORS, np.ones(len(y))])
    expected = np.linalg.solve(A.T @ A / len(y) + 0.01 * np.eye(3), A.T @ y / len(y))
    np.testing.assert_allclose(flat(net.parameters()), expected, rtol=1e-9)


class NoBatch(nn.Module):
    """A network that vmap cannot batch: it asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = hf.MLP(2, 1, width=4, depth=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1.0 if float(x.sum()) > -1e9 else 2.0)


@pytest.mark.parametrize("net", [hf.MLP(2, 1, width=5, depth=2), hf.MLP(2, 3, width=4, depth=1), NoBatch()])
def test_rows_are_the_objective_and_their_jacobian_is_its_gradient(comm: MPI.Comm, net: nn.Module) -> None:
    model = poisson(comm)
    outputs = 3 if isinstance(net, hf.MLP) and net(torch.zeros(1, 2, dtype=torch.float64)).ndim == 2 else 1
    y = np.random.default_rng(0).standard_normal((len(SENSORS), outputs)).squeeze()
    data = data_on(model, y, noise_std=np.linspace(0.5, 1.5, len(y)))
    ghosts = hf.RandomGhosts(9).on(model.V).draw(0)
    values = torch.cos(ghosts.x @ torch.ones(2, outputs, dtype=torch.float64)).squeeze(1)
    objective = SyntheticObjective(net, data, 0.7, 2.0, Opponent(ghosts, values), decay=0.0, comm=comm)
    r, J = objective.linearised()
    local = objective()
    assert float(local.detach()) == pytest.approx(r @ r, rel=1e-13)
    np.testing.assert_allclose(r, objective.residuals(), rtol=1e-13)
    for p in net.parameters():
        p.grad = None
    if local.requires_grad:
        local.backward()
    sum_gradients(net.parameters(), comm)
    gradient = np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
    np.testing.assert_allclose(sum_array(comm, 2.0 * J.T @ r), gradient, rtol=1e-10, atol=1e-12)


def test_rows_of_the_physical_player_fit_its_gradient(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm), noise_std=0.1)
    for ghosts in (hf.RandomGhosts(9), hf.QuadratureGhosts(1), hf.DofGhosts()):
        points = ghosts.on(model.V).draw(0)
        objective = PhysicalObjective(model, data, 0.5, 3.0, Opponent(points, torch.sin(points.x[:, 0])))
        r, J = objective.linearised()
        local = objective()
        assert float(local.detach()) == pytest.approx(r @ r, rel=1e-12)
        model.zero_grad()
        local.backward()
        sum_gradients(model.parameters(), comm)
        gradient = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
        np.testing.assert_allclose(sum_array(comm, 2.0 * J.T @ r), gradient, rtol=1e-9, atol=1e-12)


# -- the game with best responses --------------------------------------------------------------------------------


def best_responses(comm: MPI.Comm, noise: float = 0.02, **options: Any) -> tuple[hf.Hyco, nn.Module]:
    model = model_at(comm)
    data = data_on(model, measured(comm, noise), noise_std=0.02)
    net = hf.InputScaling(hf.MLP(2, 1, width=8, depth=1, seed=2), [[0, 0], [1, 1]])
    answers = hf.Answers(hf.GaussNewton(30), hf.GaussNewton(80), hf.GaussNewton(30))
    options.setdefault("weights", hf.Weights(a1=0.02, b1=5.0, a2=0.02, b2=20.0, decay=1e-5))
    game = hf.Hyco(model, net, data, hf.RandomGhosts(60, fixed=True), answers=answers, **options)
    return game, net


def test_the_potential_falls_with_every_exact_answer(comm: MPI.Comm) -> None:
    """Alternating best responses at fixed ghost points are block-coordinate descent on P."""
    game, _ = best_responses(comm)
    result = game.run(6)
    P = np.array([r.potential for r in result.history])
    assert np.all(np.diff(P) <= 1e-12 * P[0]), P
    assert P[-1] < 0.2 * P[0]


def test_the_joint_minimiser_is_a_fixed_point_of_both_players(comm: MPI.Comm) -> None:
    game, net = best_responses(comm, schedule="joint")
    result = game.run(12)
    P = np.array([r.potential for r in result.history])
    assert np.all(np.diff(P) <= 1e-12 * P[0]), P
    there = theta_of(game.physical), flat(net.parameters())
    alternating = hf.Hyco(
        game.physical,
        net,
        game.data,
        hf.RandomGhosts(60, fixed=True),
        answers=hf.Answers(hf.GaussNewton(5), hf.GaussNewton(5)),
        weights=game.weights,
    )
    after = alternating.run(2).history[-1]
    assert after.potential == pytest.approx(P[-1], rel=1e-6)
    np.testing.assert_allclose(theta_of(game.physical), there[0], rtol=2e-4)
    # In directions that P hardly feels the weights may move a little; what the network says must not.
    x = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    now = net(x).detach().clone()
    put_flat(net.parameters(), there[1])
    np.testing.assert_allclose(now, net(x).detach(), atol=2e-3 * float(now.abs().max()))


def test_alternating_best_responses_come_to_the_joint_minimum(comm: MPI.Comm) -> None:
    joint, _ = best_responses(comm, schedule="joint")
    alternating, _ = best_responses(comm)
    P = joint.run(15).history[-1].potential
    Q = alternating.run(25).history[-1].potential
    assert pytest.approx(P, rel=0.05) == Q


@pytest.mark.parametrize("schedule", ["alternating", "simultaneous", "joint"])
def test_best_responses_are_the_same_on_any_ranks(comm: MPI.Comm, schedule: str) -> None:
    """Two rounds on all ranks and on each rank alone."""

    def play(some: MPI.Comm) -> np.ndarray:
        game, _ = best_responses(some, schedule=schedule)
        game.answers = None  # not used after the construction
        for player in (*game.players, game.together):
            if player is not None:
                player.method.spec = hf.GaussNewton(2)
        last = game.run(2).history[-1]
        return np.array([last.misfit_physical, last.misfit_synthetic, last.interaction, *theta_of(game.physical)])

    np.testing.assert_allclose(play(comm), play(MPI.COMM_SELF), rtol=1e-8)


def test_a_joint_objective_is_the_potential(comm: MPI.Comm) -> None:
    game, net = best_responses(comm, schedule="joint")
    record = copy.copy(game.look(0))
    w = game.weights.joint()
    points = game.sampler.draw(0)
    nothing = Opponent(points, torch.zeros(len(points), dtype=torch.float64))
    joint = JointObjective(
        PhysicalObjective(game.physical, game.data, w.a1, 1.0, nothing),
        SyntheticObjective(net, game.data, w.a2, 1.0, nothing, decay=w.decay, comm=comm),
    )
    assert value_of(joint) == pytest.approx(record.potential, rel=1e-12)
    r, J = joint.linearised()
    decay = w.decay * float(sum(p.detach().square().sum() for p in net.parameters()))
    assert float(sum_array(comm, np.array([r @ r]))[0]) + decay == pytest.approx(record.potential, rel=1e-12)
    parameters = list(joint.parameters.values())
    look = Player("joint", parameters, hf.AdamStep(), comm).look(joint())
    gradient = np.concatenate([p.grad.numpy().ravel() for p in parameters])
    expected = sum_array(comm, 2.0 * J.T @ r)
    expected[len(theta_of(game.physical)) :] += 2.0 * w.decay * flat(net.parameters())
    np.testing.assert_allclose(expected, gradient, rtol=1e-9, atol=1e-12)
    assert look.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-12)


# -- L-BFGS ----------------------------------------------------------------------------------------------------


def test_lbfgs_finds_the_minimum_of_a_misfit(comm: MPI.Comm) -> None:
    model = model_at(comm)
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), hf.LBFGS(60))
    first = alone.run(1)
    np.testing.assert_allclose(theta_of(model), theta_of(model_at(comm, TRUTH)), rtol=2e-3)
    assert first.history[-1].misfit_physical < 1e-6 * first.history[0].misfit_physical


def test_lbfgs_that_leaves_the_domain_keeps_its_best_point(comm: MPI.Comm) -> None:
    """J = x − log-like cliff: infinite for x > 1; the search must end at a finite point, not higher than the start."""
    p = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    player = Player("cliff", [p], hf.LBFGS(20), comm)

    def objective() -> Tensor:
        return (p - 3.0).square() / (p < 1.0).double() / comm.size

    first = player.answer_to(objective)
    assert first.objective == pytest.approx(9.0)
    assert 0.0 <= p.item() < 1.0
    assert player.undo()
    assert p.item() == 0.0
    assert not player.undo()


# -- many starts -----------------------------------------------------------------------------------------------

BOX = {"kappa.amplitudes": (0.5, 5.0), "kappa.centres": (0.0, 1.0)}


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_many_starts_on_coarse_models_and_the_own_one(comm: MPI.Comm, levels: int) -> None:
    """All that is found on each level, best first; the best of the last is polished to the truth."""
    start = {"kappa.amplitudes": [0.6], "kappa.centres": [[0.02, 0.03]]}
    model = model_at(comm, start)
    answer = hf.GaussNewton(30, bounds=BOX)
    build = [lambda some: model_at(some, start)] * levels
    search = hf.MultiStart(BOX, 12, 3, build, search=hf.GaussNewton(12, bounds=BOX), answer=answer, seed=4)
    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), search)
    alone.run(1)
    np.testing.assert_allclose(theta_of(model), theta_of(model_at(comm, TRUTH)), rtol=1e-5)
    found = alone.player.method.found
    assert len(found) == max(1, levels) + 1
    assert len(found[0]) == 12
    assert 1 <= len(found[1]) <= 3
    assert [f.value for f in found[0]] == sorted(f.value for f in found[0])


def test_many_starts_find_the_lower_of_two_wells(comm: MPI.Comm) -> None:
    """J = (x² − 1)² + 0.3 x: from x = 1 every descent stays there, though the minimum is near −1."""

    def wells() -> tuple[nn.Parameter, Any]:
        p = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        return p, lambda: ((p.square() - 1.0).square() + 0.3 * p) / comm.size

    lowest = min(np.roots([4.0, 0.0, -4.0, 0.3]).real)
    p, J = wells()
    Player("one", {"x": p}, hf.LBFGS(50), comm).answer_to(J)
    assert p.item() > 0.9
    p, J = wells()
    first = Player("many", {"x": p}, hf.MultiStart({"x": (-2.0, 2.0)}, 8, answer=hf.LBFGS(50)), comm).answer_to(J)
    assert first.objective == pytest.approx(0.3), "the first look is where the player was"
    assert p.item() == pytest.approx(lowest, abs=1e-6)


def test_starts_that_fail_are_left_out(comm: MPI.Comm) -> None:
    model = model_at(comm)

    def draw(rng: np.random.Generator) -> dict[str, Any]:
        return {"kappa.amplitudes": [rng.choice([-20.0, 2.5])], "kappa.centres": [[0.5, 0.5]]}

    alone = hf.PhysicsOnly(model, data_on(model, measured(comm)), hf.MultiStart(draw, 8, seed=1))
    alone.run(1)
    values = np.array([f.value for f in alone.player.method.found[0]])
    assert np.isinf(values).any()
    assert np.isfinite(values[0])
    np.testing.assert_allclose(theta_of(model), theta_of(model_at(comm, TRUTH)), rtol=1e-5)


def test_many_starts_in_the_game_go_on_with_the_answer_itself(comm: MPI.Comm) -> None:
    """Ghost residuals go along to the levels."""
    model = model_at(comm, {"kappa.amplitudes": [0.6], "kappa.centres": [[0.02, 0.03]]})
    data = data_on(model, measured(comm))
    net = hf.MLP(2, 1, width=8, depth=1, seed=2)
    answer = hf.GaussNewton(10, bounds=BOX)
    search = hf.MultiStart(BOX, 6, 2, [lambda some: model_at(some)], answer=answer)
    answers = hf.Answers(search, hf.GaussNewton(20))
    game = hf.Hyco(model, net, data, hf.RandomGhosts(40), answers=answers, weights=hf.Weights(1.0, 1e-3, 1.0, 1.0))
    result = game.run(4)
    assert result.history[-1].misfit_physical < 1e-3 * result.history[0].misfit_physical
    assert len(game.players[0].method.found) == 2


# -- what cannot be ----------------------------------------------------------------------------------------------


def test_bad_answers_are_refused(comm: MPI.Comm) -> None:
    model = model_at(comm)
    data = data_on(model, measured(comm))
    with pytest.raises(ValueError, match="at least one step"):
        hf.GaussNewton(0)
    with pytest.raises(ValueError, match="positive damping"):
        hf.GaussNewton(damping=0.0)
    with pytest.raises(ValueError, match=r"start of 'kappa.amplitudes'.*does not lie within its bounds"):
        hf.PhysicsOnly(model, data, hf.GaussNewton(bounds={"kappa.amplitudes": (3.0, 4.0)}))
    with pytest.raises(ValueError, match=r"bounds name \['nothing'\]"):
        hf.PhysicsOnly(model, data, hf.GaussNewton(bounds={"nothing": (3.0, 4.0)}))
    with pytest.raises(ValueError, match="whole number of at least 1"):
        hf.MultiStart(BOX, 0)
    with pytest.raises(ValueError, match="2 levels, but keep"):
        hf.MultiStart(BOX, 5, (3,), [model_at, model_at])
    with pytest.raises(ValueError, match=r"start of MultiStart names \['missing'\]"):
        hf.PhysicsOnly(model, data, hf.MultiStart({"missing": (0, 1)})).run(1)
    with pytest.raises(TypeError, match="sum of squares"):
        Player("plain", model.parameters(), hf.GaussNewton(), comm).answer_to(lambda: torch.zeros(()))
    field = hf.NodalField(model.V)
    for answer in (hf.GaussNewton(), hf.LBFGS(), hf.MultiStart(BOX)):
        with pytest.raises(ValueError, match="a field with a number for every dof"):
            Player("field", dict(field.named_parameters()), answer, comm)


@pytest.mark.parametrize("which", ["a1", "b1", "a2", "b2", "decay"])
def test_weights_must_make_a_game(which: str) -> None:
    with pytest.raises(ValueError, match=f"the weight {which} must be finite and not negative"):
        hf.Weights(**{which: -1.0})
    with pytest.raises(ValueError, match="all weights are zero"):
        hf.Weights(0, 0, 0, 0)
    with pytest.raises(ValueError, match="physical player has nothing"):
        hf.Weights(0, 0, 1, 1)
    with pytest.raises(ValueError, match="synthetic player has nothing"):
        hf.Weights(1, 1, 0, 0)
    with pytest.raises(ValueError, match="no potential"):
        hf.Weights(1, 0, 1, 1).joint()


@pytest.mark.slow
@pytest.mark.serial
def test_four_ranks_play_as_one() -> None:
    """The tests of invariance and of many starts above, on four ranks."""
    command = ["mpirun", "--oversubscribe", "-n", "4", sys.executable, "-m", "mpi4py", "-m", "pytest", "-q", __file__]
    chosen = ["-k", "same_on_any_ranks or three_forms"]
    run = subprocess.run(command + chosen, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "passed" in run.stdout
