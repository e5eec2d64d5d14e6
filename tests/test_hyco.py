"""The game against the paper's loop written down plainly, and everything that can interrupt it.

The reference knows no PDE: problems are chosen whose solution is u = s(θ) U with U fixed and s in closed form, so
neither the adjoint nor the reductions of the package have a part in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import poisson
from hyco_games import LOAD, SENSORS, Setting, data_of, game_of, heat, network, nodal, plate, theta_of
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.parallel import is_distributed, sum_array


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
