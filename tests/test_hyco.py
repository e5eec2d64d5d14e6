"""The game against the paper's loop written down plainly, and everything that can interrupt it.

The reference knows no PDE: problems are chosen whose solution is u = s(θ) U with U fixed and s in closed form, so
neither the adjoint nor the reductions of the package have a part in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, poisson, square
from dolfinx import fem
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.parallel import is_distributed, sum_array

SENSORS = np.array([[0.31, 0.42], [0.7, 0.25], [0.55, 0.81], [0.12, 0.63], [0.88, 0.9], [0.47, 0.11]])
KAPPA, LOAD = 2.0, 5.0


@dataclass
class Setting:
    """A physical model with u = s(θ) U, its θ as the reference has it, U (owned dofs), and values at SENSORS."""

    model: hf.PhysicalModel
    theta: list[Tensor]
    scale: Callable[[list[Tensor]], Tensor]
    U: Tensor
    values: np.ndarray


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def heat(comm: MPI.Comm, values: np.ndarray | None = None) -> Setting:
    """−∇·(κ∇u) = f, u = 0 on the boundary, with κ = softplus(θ₀) and f = θ₁ unknown: u = f/κ U."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    kappa, f = fem.Function(Q, name="kappa"), fem.Function(Q, name="f")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    coefficients = {kappa: hf.Scalar(KAPPA, hf.Positive()), f: hf.Scalar(LOAD)}
    model = hf.PhysicalModel(F, u, [dirichlet(V)], coefficients, positive=[kappa])
    theta = [number(math.log(math.expm1(KAPPA))), number(LOAD)]
    given = np.array([0.4, 0.1, 0.2, 0.3, 0.05, 0.15]) if values is None else values
    return Setting(
        model, theta, lambda t: t[1] / nn.functional.softplus(t[0]), model.solve().detach() * KAPPA / LOAD, given
    )


def plate(comm: MPI.Comm) -> Setting:
    """Plane strain with an unknown modulus E = θ₀ everywhere and a given load: u = U/E, a vector field."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    u, v, E = (
        fem.Function(V, name="u"),
        ufl.TestFunction(V),
        fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="E"),
    )
    eps = ufl.sym(ufl.grad(u))
    sigma = E * (ufl.tr(eps) * ufl.Identity(2) + 2.0 * eps)
    F = ufl.inner(sigma, ufl.grad(v)) * ufl.dx - ufl.inner(ufl.as_vector((1.0, -2.0)), v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(KAPPA)})
    values = 0.05 * np.stack([np.cos(3 * SENSORS[:, 0]), np.sin(2 * SENSORS[:, 1])], axis=1)
    return Setting(model, [number(KAPPA)], lambda t: 1.0 / t[0], model.solve().detach() * KAPPA, values)


def network(outputs: int = 1, seed: int = 3) -> hf.MLP:
    return hf.MLP(2, outputs, width=6, depth=2, seed=seed)


def data_of(setting: Setting, noise_std: Any = None) -> hf.Data:
    return hf.Data(hf.Points(setting.model.V.mesh, SENSORS), setting.values, noise_std)


def paper_loop(
    setting: Setting,
    net: nn.Module,
    sigma: np.ndarray,
    ghosts: list[tuple[Tensor, Tensor, Tensor]],
    weights: tuple[float, float, float, float],
    U: Tensor,
    *,
    schedule: str = "alternating",
    warm_up: int = 0,
    steps: tuple[int, int] = (1, 1),
    rates: tuple[float, float] = (5e-2, 1e-2),
) -> list[dict[str, Any]]:
    """Rounds of the published loop in plain torch, on one process; a row before each round, and one at the end."""
    a1, b1, a2, b2 = weights
    x, y, noise = torch.from_numpy(SENSORS), torch.from_numpy(setting.values), torch.from_numpy(sigma)
    theta = [t.clone().requires_grad_() for t in setting.theta]

    def square(e: Tensor) -> Tensor:
        return (e**2).reshape(len(e), -1).sum(1)

    def misfit(at_sensors: Tensor) -> Tensor:
        return (square(at_sensors - y) / noise**2).mean()

    def step(optimiser: torch.optim.Optimizer, J: Tensor, move: bool = True) -> float:
        optimiser.zero_grad()
        J.backward()
        gradient = [p.grad for group in optimiser.param_groups for p in group["params"]]
        if move:
            optimiser.step()
        return math.sqrt(sum(float((g.clone() ** 2).sum()) for g in gradient))

    alone = torch.optim.Adam(net.parameters(), rates[1])
    for _ in range(warm_up):
        step(alone, misfit(net(x)))
    phy, syn = torch.optim.Adam(theta, rates[0]), torch.optim.Adam(net.parameters(), rates[1])
    rows = []
    for r, (xg, Ug, w) in enumerate(ghosts):
        last = r == len(ghosts) - 1
        s = setting.scale(theta).detach()
        with torch.no_grad():
            row = {
                "theta": [float(t) for t in theta],
                "L_phy": float(misfit(s * U)),
                "L_syn": float(misfit(net(x))),
                "I": float((w * square(s * Ug - net(xg))).sum()),
            }
            before = net(xg)
        moves = [
            step(syn, a2 * misfit(net(x)) + b2 * (w * square(s * Ug - net(xg))).sum(), not last)
            for _ in range(1 if last else steps[1])
        ]
        answered = net(xg).detach() if schedule == "alternating" and not last else before
        answers = []
        for _ in range(1 if last else steps[0]):
            u, ug = setting.scale(theta) * U, setting.scale(theta) * Ug
            answers.append(step(phy, a1 * misfit(u) + b1 * (w * square(ug - answered)).sum(), not last))
        rows.append(row | {"G_phy": answers[0], "G_syn": moves[0]})
    return rows


WEIGHTS = (0.7, 3.0, 2.0, 40.0)
NOISE = np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.5])
VARIANTS: dict[str, dict[str, Any]] = {
    "the published loop": {"warm_up": 3},
    "simultaneous answers": {"schedule": "simultaneous"},
    "several steps each round": {"steps": (2, 3), "warm_up": 3},
    "quadrature, noise unknown": {"ghosts": hf.QuadratureGhosts(2), "noise": None},
    "a vector field": {"build": plate},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_game_is_the_loop_of_the_paper(comm: MPI.Comm, variant: str) -> None:
    options = dict(VARIANTS[variant])
    setting = options.pop("build", heat)(comm)
    noise, steps = options.pop("noise", NOISE), options.get("steps", (1, 1))
    sampler = options.pop("ghosts", hf.RandomGhosts(15, seed=5))
    net = network(2 if setting.values.ndim == 2 else 1)
    twin, rounds = copy.deepcopy(net), 4
    data, V = data_of(setting, noise), setting.model.V
    game = hf.Hyco(
        setting.model,
        net,
        data,
        sampler,
        weights=hf.Weights(*WEIGHTS),
        answers=hf.Answers(hf.AdamStep(5e-2, steps[0]), hf.AdamStep(1e-2, steps[1])),
        schedule=options.get("schedule", "alternating"),
        warm_up=options.get("warm_up", 0),
    )

    def everywhere(values: Tensor, points: hf.Points) -> Tensor:
        return torch.from_numpy(points.gather(values))

    drawn = [game.sampler.draw(r) for r in range(rounds + 1)]
    ghosts = [tuple(everywhere(v, p) for v in (p.x, p.evaluate(setting.U, V), p.weights)) for p in drawn]
    U = everywhere(data.points.evaluate(setting.U, V), data.points)
    rows = paper_loop(setting, twin, np.ones(6) if noise is None else noise, ghosts, WEIGHTS, U, **options)

    result = game.run(rounds)
    assert [r.round for r in result.history] == list(range(rounds + 1))
    assert (result.rounds, result.rolled_back, result.stop) == (rounds, 0, "rounds")
    a1, b1, a2, b2 = WEIGHTS
    for record, row in zip(result.history, rows, strict=True):
        found = [
            *record.parameters.values(),
            record.misfit_physical,
            record.misfit_synthetic,
            record.interaction,
            record.gradient_physical,
            record.gradient_synthetic,
            record.potential,
        ]
        P = a1 / b1 * row["L_phy"] + a2 / b2 * row["L_syn"] + row["I"]
        expected = [*row["theta"], row["L_phy"], row["L_syn"], row["I"], row["G_phy"], row["G_syn"], P]
        np.testing.assert_allclose(found, expected, rtol=1e-11)
    assert result.nash_residual == pytest.approx((rows[-1]["G_phy"], rows[-1]["G_syn"]), rel=1e-11)
    assert list(result.parameters.values()) == list(result.history[-1].parameters.values())
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-12)
    assert max(abs(r["theta"][0] - rows[0]["theta"][0]) for r in rows) > 0.01, "nothing moved: nothing was compared"


def nodal(comm: MPI.Comm) -> hf.PhysicalModel:
    """−∇·(κ∇u) = 10 with κ unknown at every dof, a distributed parameter, plus an unknown number, a replicated one."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    field = hf.NodalField(V, lambda x: 1.0 + 0.5 * x[:, 0], hf.Positive())
    return hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.Sum(field, hf.Scalar(0.5))}, positive=[kappa])


def test_a_distributed_field_is_answered_dof_by_dof(comm: MPI.Comm) -> None:
    """Against a loop over physical.solve() with an Adam on every rank, sums over ranks written out."""
    twin, other, rounds, w = nodal(comm), network(), 3, hf.Weights(*WEIGHTS)
    data = hf.Data(hf.Points(twin.V.mesh, SENSORS), np.linspace(0.1, 0.6, 6), 0.2)
    phy, syn = torch.optim.Adam(twin.parameters(), 5e-2), torch.optim.Adam(other.parameters(), 1e-2)

    def step(optimiser: torch.optim.Optimizer, local: Tensor) -> float:
        optimiser.zero_grad()
        local.backward()
        square = 0.0
        for p in optimiser.param_groups[0]["params"]:
            if not is_distributed(p):
                comm.Allreduce(MPI.IN_PLACE, p.grad.numpy())
            part = float(p.grad.square().sum())
            square += comm.allreduce(part) if is_distributed(p) else part
        optimiser.step()
        return math.sqrt(square)

    model, net = nodal(comm), network()
    points = hf.Points(model.V.mesh, SENSORS)
    game = hf.Hyco(
        model,
        net,
        hf.Data(points, np.linspace(0.1, 0.6, 6), 0.2),
        hf.RandomGhosts(12),
        weights=w,
        answers=hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2)),
    )
    result = game.run(rounds)
    for r in range(rounds):
        ghosts, u = game.sampler.draw(r), twin.solve()
        # Both meshes are alike, and so are their points and dofs.
        at_sensors, there = data.points.evaluate(u, twin.V), ghosts.evaluate(u, model.V)
        misfit = ((other(data.points.x) - data.values) ** 2 / (6 * 0.04)).sum()
        g_syn = step(syn, w.a2 * misfit + w.b2 * ((other(ghosts.x) - there.detach()) ** 2 / 12).sum())
        misfit = ((at_sensors - data.values) ** 2 / (6 * 0.04)).sum()
        g_phy = step(phy, w.a1 * misfit + w.b1 * ((there - other(ghosts.x).detach()) ** 2 / 12).sum())
        record = result.history[r]
        assert (record.gradient_physical, record.gradient_synthetic) == pytest.approx((g_phy, g_syn), rel=1e-10)
    raw, start = (m.coefficients["kappa"].terms[0].raw.detach().numpy() for m in (model, nodal(comm)))
    np.testing.assert_allclose(raw, twin.coefficients["kappa"].terms[0].raw.detach().numpy(), rtol=1e-10)
    total = sum_array(comm, np.array([np.sum(raw**2), float(len(raw)), np.sum(np.abs(raw - start))]))
    assert total[2] > 0.1, "the field moved"
    assert result.parameters["kappa.terms.0.raw.rms"] == pytest.approx(math.sqrt(total[0] / total[1]))
    assert "kappa.terms.0.raw.rms" in result.history[0].parameters
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ghosts", [hf.RandomGhosts(20), hf.DofGhosts(), hf.QuadratureGhosts(2)], ids=repr)
@pytest.mark.parametrize("build", [poisson, nodal])
def test_the_number_of_ranks_does_not_matter(ghosts: Any, build: Callable[[MPI.Comm], hf.PhysicalModel]) -> None:
    def numbers(comm: MPI.Comm) -> dict[str, Any]:
        model, net = build(comm), network()
        data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.linspace(0.1, 0.6, 6), 0.1)
        answers = hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2))
        result = hf.Hyco(model, net, data, ghosts, answers=answers, warm_up=2).run(5)
        first, last = result.history[0].flat(), result.history[-1].flat()
        assert last["interaction"] != first["interaction"]
        theta = {f"first {k}": v for k, v in first.items()} | result.parameters
        return theta | last | {"φ": torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()}

    result = hf.rank_invariance(numbers, tolerance=1e-10)
    assert result.ok, result.differences


def game_of(setting: Setting, **options: Any) -> hf.Hyco:
    """A small game with steps large enough to see."""
    answers = options.pop("answers", hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2)))
    ghosts = options.pop("ghosts", hf.RandomGhosts(10))
    net = options.pop("net", None) or network()
    return hf.Hyco(setting.model, net, data_of(setting), ghosts, answers=answers, **options)


def theta_of(result: hf.Result) -> list[float]:
    return [float(v) for v in result.parameters.values()]


def test_with_a1_zero_the_solver_never_sees_the_data(comm: MPI.Comm) -> None:
    """The network, which could tell it, does not look at the data either."""

    def after(factor: float, **weights: float) -> list[float]:
        setting = heat(comm)
        setting.values = factor * setting.values
        return theta_of(game_of(setting, weights=hf.Weights(a2=0.0, **weights)).run(3))

    assert after(1.0, a1=0.0) == after(-2.0, a1=0.0)
    assert after(1.0, a1=0.5) != after(-2.0, a1=0.5)


def test_a_second_run_goes_on_where_the_first_ended(comm: MPI.Comm) -> None:
    once, twice = game_of(heat(comm), warm_up=2), game_of(heat(comm), warm_up=2)
    whole, half, rest = once.run(6), twice.run(3), twice.run(3)
    assert theta_of(rest) == pytest.approx(theta_of(whole), rel=1e-12)
    assert [r.round for r in half.history + rest.history] == [0, 1, 2, 3, 3, 4, 5, 6]
    for mine, other in zip(half.history[:-1] + rest.history, whole.history, strict=True):
        assert list(mine.flat().values()) == pytest.approx(list(other.flat().values()), rel=1e-11)


def test_seeds_reproduce_a_game(comm: MPI.Comm) -> None:
    one, same = (theta_of(game_of(heat(comm)).run(3)) for _ in range(2))
    assert one == same
    assert theta_of(game_of(heat(comm), ghosts=hf.RandomGhosts(10, seed=1)).run(3)) != one
    assert theta_of(game_of(heat(comm), net=network(seed=4)).run(3)) != one


def test_a_few_sensors_tell_an_unknown_conductivity(comm: MPI.Comm) -> None:
    setting = heat(comm)
    setting.model.coefficients["f"].raw.requires_grad_(False)
    truth = 3.0
    points = hf.Points(setting.model.V.mesh, SENSORS)
    exact = points.gather(points.evaluate(LOAD / truth * setting.U, setting.model.V))
    answers, weights = hf.Answers(hf.AdamStep(0.1), hf.AdamStep(2e-2)), hf.Weights(b1=0.1)
    game = hf.Hyco(
        setting.model, network(), hf.Data(points, exact, 0.01), hf.RandomGhosts(30), weights=weights, answers=answers
    )
    result = game.run(80)
    assert setting.model.coefficients["kappa"].value == pytest.approx(truth, rel=5e-3)
    first, last = result.history[0], result.history[-1]
    assert list(result.parameters) == ["kappa.raw"]
    assert last.misfit_synthetic < 0.05 * first.misfit_synthetic
    assert last.interaction < 0.05 * first.interaction


# -- baselines -------------------------------------------------------------------------------------------------


def test_physics_only_is_adam_on_the_misfit(comm: MPI.Comm) -> None:
    setting = heat(comm)
    data = data_of(setting, NOISE)
    U = torch.from_numpy(data.points.gather(data.points.evaluate(setting.U, setting.model.V)))
    none = torch.from_numpy(SENSORS), U, torch.zeros(6)  # ghost points that count for nothing
    rows = paper_loop(setting, network(), NOISE, [none] * 4, (1.0, 0.0, 1.0, 0.0), U)
    result = hf.PhysicsOnly(setting.model, data, hf.AdamStep(5e-2)).run(3)
    for record, row in zip(result.history, rows, strict=True):
        found = [*record.parameters.values(), record.misfit_physical, record.gradient_physical]
        np.testing.assert_allclose(found, [*row["theta"], row["L_phy"], row["G_phy"]], rtol=1e-11)
        assert np.isnan([record.misfit_synthetic, record.interaction, record.gradient_synthetic]).all()
    assert result.nash_residual[0] == pytest.approx(rows[-1]["G_phy"], rel=1e-11)


def test_network_only_is_adam_on_the_misfit(comm: MPI.Comm) -> None:
    setting, net, twin = heat(comm), network(), network()
    x, y = torch.from_numpy(SENSORS), torch.from_numpy(setting.values)
    optimiser, rows = torch.optim.SGD(twin.parameters(), 0.02, momentum=0.9), []
    for _ in range(4):
        L = ((twin(x) - y) ** 2 / torch.from_numpy(NOISE) ** 2).mean()
        optimiser.zero_grad()
        L.backward()
        rows.append([float(L.detach()), math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters()))])
        optimiser.step()
    answer = hf.TorchStep(lambda p: torch.optim.SGD(p, 0.02, momentum=0.9))
    result = hf.NetworkOnly(net, data_of(setting, NOISE), answer).run(3)
    found = [[r.misfit_synthetic, r.gradient_synthetic] for r in result.history]
    np.testing.assert_allclose(found, rows, rtol=1e-11)
    assert result.history[0].parameters == {}, "the weights of a network are not history"
    assert list(result.parameters) == [name for name, _ in net.named_parameters()]


# -- reasons to stop -------------------------------------------------------------------------------------------


def test_a_callback_that_is_true_on_one_rank_stops_all(comm: MPI.Comm) -> None:
    seen: list[int] = []

    def callback(record: hf.Record) -> bool:
        seen.append(record.round)
        return comm.rank == comm.size - 1 and record.round == 2

    result = game_of(heat(comm)).run(10, callbacks=[lambda record: None, callback])
    assert (result.stop, result.rounds) == ("callback", 3)
    assert seen == [0, 1, 2]


def test_an_error_in_a_callback_of_one_rank_is_raised_on_all(comm: MPI.Comm) -> None:
    def callback(record: hf.Record) -> None:
        if comm.rank == comm.size - 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        game_of(heat(comm)).run(10, callbacks=[callback])


def test_tolerance_stops_when_both_gradients_have_fallen(comm: MPI.Comm) -> None:
    def gradients(record: hf.Record) -> np.ndarray:
        return np.array([record.gradient_physical, record.gradient_synthetic])

    everything = [gradients(r) for r in game_of(heat(comm)).run(60).history[:-1]]
    fallen = [bool(np.all(g <= 0.5 * everything[0])) for g in everything]
    expected = fallen.index(True) + 1
    assert 1 < expected < 60, "the test needs a run in which they fall"
    result = game_of(heat(comm)).run(60, tolerance=0.5)
    assert (result.stop, result.rounds) == ("tolerance", expected)
    setting = heat(comm)
    alone = hf.PhysicsOnly(setting.model, data_of(setting)).run(5, tolerance=1.0)
    assert (alone.stop, alone.rounds) == ("tolerance", 1), "a player that does not take part has nothing to lower"


def test_no_rounds_tell_the_state_as_it_is(comm: MPI.Comm) -> None:
    setting = heat(comm)
    result = game_of(setting).run(0)
    assert (result.rounds, len(result.history), result.stop) == (0, 1, "rounds")
    assert theta_of(result) == pytest.approx([float(t) for t in setting.theta])
    for wrong in (-1, 1.5, math.nan):
        with pytest.raises((ValueError, RuntimeError)):
            game_of(setting).run(wrong)


# -- steps that are taken back ---------------------------------------------------------------------------------


class Cliff(nn.Module):
    """u = w, but NaN once w > edge; a step of Adam moves w by the learning rate, since the data lie far above."""

    def __init__(self, w: float = 0.0, edge: float = 0.6) -> None:
        super().__init__()
        self.w, self.edge = nn.Parameter(number(w)), edge

    def forward(self, x: Tensor) -> Tensor:
        return (self.w if self.w <= self.edge else self.w * math.nan).expand(len(x))


def cliff(comm: MPI.Comm, kind: str, **options: Any) -> tuple[Any, Cliff, Any]:
    """A trainer whose network goes over the cliff with its first step; the network, and its player."""
    net, answer = Cliff(**options), hf.AdamStep(1.0)
    setting = heat(comm, values=np.full(6, 100.0))
    if kind == "network only":
        alone = hf.NetworkOnly(net, data_of(setting), answer)
        return alone, net, alone.player
    game = game_of(setting, net=net, schedule=kind, answers=hf.Answers(hf.AdamStep(1e-3), answer))
    return game, net, game.players[1]


# In the alternating game the physical player sees the new network in the same round, in the others the next round does.
ROUNDS_OF = {"network only": [0, 2], "simultaneous": [0, 2], "alternating": [1, 2]}


@pytest.mark.parametrize("kind", ROUNDS_OF)
def test_a_step_to_a_loss_that_is_not_finite_is_taken_back(comm: MPI.Comm, kind: str) -> None:
    trainer, net, player = cliff(comm, kind)
    result = trainer.run(2)
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5
    assert (result.rounds, result.rolled_back) == (1, 1)
    assert [r.round for r in result.history] == ROUNDS_OF[kind]
    for record in result.history:
        numbers = [v for v in record.flat().values() if not math.isnan(v)]
        assert len(numbers) >= 3
        assert np.isfinite(numbers).all()
    if kind != "alternating":
        assert net.w.item() == 0.0, "as before the step"
        result = trainer.run(1)
    assert net.w.item() == pytest.approx(0.5), "half a step, by a fresh Adam, and no cliff"
    assert result.history[-1].misfit_synthetic == pytest.approx(99.5**2)


@pytest.mark.parametrize("kind", ["network only", "simultaneous"])
def test_the_last_step_of_a_run_is_taken_back_as_well(comm: MPI.Comm, kind: str) -> None:
    trainer, net, player = cliff(comm, kind)
    result = trainer.run(1)
    assert (result.rounds, result.rolled_back, net.w.item()) == (1, 1, 0.0)
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5
    # Only θ has moved since the first round, and that a little.
    assert result.nash_residual[1] == pytest.approx(result.history[0].gradient_synthetic, rel=1e-3)


@pytest.mark.parametrize("kind", ROUNDS_OF)
def test_a_start_that_is_not_finite_is_an_error(comm: MPI.Comm, kind: str) -> None:
    for rounds in (0, 3):
        trainer, net, _ = cliff(comm, kind, w=2.0)
        with pytest.raises(FloatingPointError, match="synthetic player is not finite at the start"):
            trainer.run(rounds)
        assert net.w.item() == 2.0


class Breaks(nn.Module):
    """A network that gives NaN in some calls, whatever its weight."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.w, self.bad, self.calls = nn.Parameter(number(0.0)), bad, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.w * math.nan if self.bad(self.calls - 1) else self.w).expand(len(x))


def test_twenty_steps_taken_back_in_a_row_are_enough(comm: MPI.Comm) -> None:
    net, records = Breaks(lambda call: call >= 3), []
    alone = hf.NetworkOnly(net, data_of(heat(comm)), hf.AdamStep(0.1))
    with pytest.raises(FloatingPointError, match=r"the synthetic player diverges: .* last 20 steps"):
        alone.run(100, callbacks=[records.append])
    assert [r.round for r in records] == [0, 1, 2]
    assert alone.next_round == 23
    assert alone.player.method.optimiser.param_groups[0]["lr"] == 0.1 / 2**20
    now_and_then = hf.NetworkOnly(Breaks(lambda call: call % 10 != 0), data_of(heat(comm)), hf.AdamStep(0.1))
    result = now_and_then.run(50)
    assert (result.rounds, result.rolled_back) == (5, 45), "many, but not in a row"


@pytest.mark.parametrize("kind", ["game", "physics only"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_solution_too_large_for_its_loss_is_taken_back(comm: MPI.Comm, kind: str, rounds: int) -> None:
    """The load steps to 1e152: u is finite, (u/σ)² is not.  One round: only the look at the end can see it."""
    setting = heat(comm)
    setting.model.coefficients["kappa"].requires_grad_(False)
    data, answer = data_of(setting, 1e-10), hf.AdamStep(1e152)
    if kind == "game":
        game = hf.Hyco(setting.model, network(), data, hf.RandomGhosts(10), answers=hf.Answers(physical=answer))
        result, player = game.run(rounds), game.players[0]
    else:
        alone = hf.PhysicsOnly(setting.model, data, answer)
        result, player = alone.run(rounds), alone.player
    assert (result.rounds, result.rolled_back) == (1, 1)
    assert theta_of(result) == [LOAD]
    assert player.method.optimiser.param_groups[0]["lr"] == 0.5e152
    assert math.isfinite(result.history[-1].misfit_physical)


@pytest.mark.parametrize("kind", ["game", "physics only"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("lr", "error"), [(50.0, hf.CoefficientError), (1e160, hf.SolveError)])
def test_a_step_to_a_pde_that_cannot_be_solved_is_undone(
    comm: MPI.Comm, kind: str, rounds: int, lr: float, error: type[Exception]
) -> None:
    """κ = θ₀ becomes negative, or the load so large that u overflows."""
    setting = heat(comm, values=np.full(6, 100.0))
    unknown = "kappa" if error is hf.CoefficientError else "f"
    for name, coefficient in setting.model.coefficients.items():
        coefficient.transform = hf.Identity()
        coefficient.raw.requires_grad_(name == unknown)
    start = setting.model.coefficients[unknown].raw.item()
    answers = hf.Answers(physical=hf.AdamStep(lr))
    if kind == "game":
        trainer: Any = game_of(setting, answers=answers)
        player = trainer.players[0]
    else:
        trainer = hf.PhysicsOnly(setting.model, data_of(setting), answers.physical)
        player = trainer.player
    records: list[hf.Record] = []
    with pytest.raises(error):
        trainer.run(rounds, callbacks=[records.append])
    assert [r.round for r in records] == [0]
    assert setting.model.coefficients[unknown].raw.item() == start
    assert player.method.optimiser.param_groups[0]["lr"] == lr / 2


# -- what does not fit -----------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """A network with an error of its own on the last rank."""

    def __init__(self, comm: MPI.Comm, calls: int) -> None:
        super().__init__()
        self.net, self.comm, self.left = network(), comm, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0 and self.comm.rank == self.comm.size - 1:
            raise ValueError("not here")
        return self.net(x)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_error_of_the_network_on_one_rank_is_raised_on_all(comm: MPI.Comm, calls: int) -> None:
    with pytest.raises(ValueError, match="not here"):
        game_of(heat(comm), net=Elsewhere(comm, calls)).run(2)
    with pytest.raises(ValueError, match="not here"):
        hf.NetworkOnly(Elsewhere(comm, calls), data_of(heat(comm))).run(5)


def test_a_network_that_does_not_fit_is_an_error_that_says_why(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match=r"values of shape .*sensors"):
        game_of(heat(comm), net=network(2)).run(1)
    with pytest.raises(TypeError, match=r"float32.*\.double\(\)"):
        game_of(heat(comm), net=Single()).run(1)


class Single(nn.Module):
    """A network that answers in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].float()


def test_ranks_must_have_the_same_network(comm: MPI.Comm) -> None:
    if comm.size == 1:
        hf.NetworkOnly(network(seed=comm.rank), data_of(heat(comm)))
        return
    for build in (lambda net: game_of(heat(comm), net=net), lambda net: hf.NetworkOnly(net, data_of(heat(comm)))):
        with pytest.raises(ValueError, match="is not the same on rank 1 as on rank 0"):
            build(network(seed=comm.rank))


def test_arguments_that_mean_nothing_are_refused(comm: MPI.Comm) -> None:
    setting = heat(comm)
    with pytest.raises(ValueError, match="schedule must be"):
        game_of(setting, schedule="both")
    with pytest.raises(ValueError, match="warm_up must not be negative"):
        game_of(setting, warm_up=-1)
    for name in ("a1", "b1", "a2", "b2"):
        for wrong in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"weight {name}"):
                hf.Weights(**{name: wrong})
    assert math.isnan(hf.Weights(b1=0.0).potential(1.0, 1.0, 1.0)), "without both pulls there is no potential"


def test_a_pde_without_unknowns_takes_part_and_does_not_move(comm: MPI.Comm) -> None:
    setting = heat(comm)
    setting.model.requires_grad_(False)
    result = game_of(setting, weights=hf.Weights(b2=10.0)).run(30)
    assert result.parameters == {}
    assert result.nash_residual[0] == 0.0
    assert result.history[-1].misfit_physical == result.history[0].misfit_physical
    assert result.history[-1].interaction < 0.5 * result.history[0].interaction
    assert setting.model.coefficients["f"].value == LOAD


def test_a_parameter_without_influence_is_warned_of_and_stays(comm: MPI.Comm) -> None:
    class Idle(hf.Scalar):
        def __init__(self) -> None:
            super().__init__(2.0)
            self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

    V = fem.functionspace(square(comm), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    model = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: Idle()})
    data = hf.Data(hf.Points(V.mesh, [[0.3, 0.4], [0.6, 0.5]]), [0.2, 0.3])
    with pytest.warns(UserWarning, match="does not depend on 'coefficients.kappa.idle' at the start"):
        hf.PhysicsOnly(model, data).run(3)
    np.testing.assert_array_equal(model.coefficients["kappa"].idle.detach().numpy(), [1.0, 1.0])
    assert model.coefficients["kappa"].raw.item() != 2.0
