"""A run that goes on from a checkpoint is the run that was never interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import WORLD, square
from evolving import reaction_diffusion, space_time_points
from hyco_games import SENSORS, network, nodal
from test_gauss_newton import START_AWAY, data_on, measured, model_at
from test_pinn import hard, inverse
from test_script import ROOT, environment, mpirun

import hyco_fem as hf
from hyco_fem.io.checkpoint import Checkpoints
from hyco_fem.ritz.deep_ritz import DeepRitz
from hyco_fem.ritz.energy import RitzEnergy

ROUNDS, EVERY, CUT = 9, 4, 6
BEST = hf.Answers(hf.GaussNewton(2), hf.GaussNewton(2), hf.GaussNewton(2))


class Killed(Exception):
    """What ends a run in the middle."""


def kill(record: hf.Record) -> None:
    """A callback: the end, after two rounds that no checkpoint has seen."""
    if record.round == CUT - 1:
        raise Killed


def hyco(comm: MPI.Comm, **options: Any) -> hf.Hyco:
    """κ with a bump, and a network, on 20 sensors."""
    model = model_at(comm, START_AWAY)
    data = data_on(model, measured(comm, 0.02), noise_std=0.02)
    return hf.Hyco(model, network(), data, hf.RandomGhosts(20), **options)


def decaying(optimiser: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)


def momentum(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-3, momentum=0.9)


def adam(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, answers=hf.Answers(hf.AdamStep(5e-2, 2), hf.AdamStep(1e-2, schedule=decaying)), warm_up=3)


def lbfgs(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, answers=hf.Answers(hf.LBFGS(2), hf.LBFGS(3, keep_memory=True)), schedule="simultaneous")


def gauss_newton(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, answers=BEST, weights=hf.Weights(decay=1e-3))


def joint(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, answers=BEST, weights=hf.Weights(decay=1e-3), schedule="joint")


def balance(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, weights=hf.GradientBalance(every=3))


def chosen(comm: MPI.Comm) -> hf.Hyco:
    candidates = [hf.Weights(b1=b) for b in (0.1, 10.0)]
    return hyco(comm, weights=hf.CrossValidation(candidates, folds=2, rounds=1))


def scheduled(comm: MPI.Comm) -> hf.Hyco:
    return hyco(comm, weights=lambda number: hf.Weights(b1=1.0 + number))


def search(comm: MPI.Comm) -> hf.PhysicsOnly:
    model = model_at(comm, START_AWAY)
    box = {"kappa.amplitudes": ([1.0], [4.0])}
    answer = hf.MultiStart(box, starts=3, keep=1, search=hf.GaussNewton(2), answer=hf.GaussNewton())
    return hf.PhysicsOnly(model, data_on(model, measured(comm, 0.02), noise_std=0.02), answer)


def network_only(comm: MPI.Comm) -> hf.NetworkOnly:
    return hf.NetworkOnly(network(), hf.Data(hf.Points(square(comm), SENSORS), SENSORS[:, 0]), hf.TorchStep(momentum))


def in_time(comm: MPI.Comm) -> hf.Hyco:
    model = reaction_diffusion(comm)
    points = space_time_points(model.V.mesh)
    data = hf.Data(points, np.linspace(0.2, 0.7, 12), 0.1)
    return hf.Hyco(model, hf.MLP(2, width=5, depth=1, seed=1), data, hf.RandomGhosts(10))


def field(comm: MPI.Comm) -> hf.Hyco:
    model = nodal(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.linspace(0.1, 0.6, 6), 0.2)
    return hf.Hyco(model, network(), data, hf.RandomGhosts(12), answers=hf.Answers(hf.AdamStep(5e-2)))


def pinn(comm: MPI.Comm) -> hf.PINN:
    problem, data, truth = inverse(comm, 4)
    kappa, points = hf.Scalar(1.0, hf.Positive()), hf.RandomGhosts(20)
    rates: dict[str, Any] = {"answer": hf.AdamStep(1e-2), "coefficient_lr": 3e-2}
    return hf.PINN(problem, hard(truth.V.mesh, 6), {"kappa": kappa}, data, collocation=points, **rates)


def variational(comm: MPI.Comm) -> hf.VariationalPINN:
    model = nodal(comm)
    data = hf.Data(hf.Points(model.V.mesh, SENSORS), np.linspace(0.1, 0.6, 6), 0.2)
    return hf.VariationalPINN(model, hard(model.V.mesh, 6), data)


def ritz(comm: MPI.Comm) -> DeepRitz:
    domain = square(comm, 3)
    return DeepRitz(RitzEnergy(domain), hard(domain, 6), hf.AdamStep(1e-2), points=hf.RandomGhosts(20))


GAMES: dict[str, Callable[[MPI.Comm], Any]] = {
    f.__name__: f
    for f in (
        adam,
        lbfgs,
        gauss_newton,
        joint,
        balance,
        chosen,
        scheduled,
        search,
        network_only,
        in_time,
        field,
        pinn,
        variational,
        ritz,
    )
}


def same(found: hf.Record, expected: hf.Record, tolerance: float = 0.0) -> None:
    """Equal in all fields; exactly, where the tolerance is zero.

    A gradient that has come to zero is rounding and nothing else, so where rounding counts it has to agree absolutely.
    """
    assert type(found) is type(expected)
    for entry in dataclasses.fields(expected):
        a, b = getattr(found, entry.name), getattr(expected, entry.name)
        pairs = [(a[name], b[name]) for name in b] if entry.name == "parameters" else [(a, b)]
        least = 1e-6 if entry.name.startswith("gradient") else 1e-13
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=0.0 if tolerance == 0 else least, err_msg=entry.name)


def values(game: Any) -> dict[str, np.ndarray]:
    """All parameters of all models, owned parts."""
    modules = game._trained()
    return {f"{m}.{n}": p.detach().numpy().copy() for m in modules for n, p in modules[m].named_parameters()}


def interrupted(build: Callable[[MPI.Comm], Any], comm: MPI.Comm, folder: Path) -> None:
    """A run that is killed at round CUT, with checkpoints every EVERY rounds."""
    game = build(comm)
    with pytest.raises(Killed), Checkpoints(folder, game, seconds=None, rounds=EVERY) as checkpoints:
        game.run(ROUNDS, callbacks=[checkpoints, kill])


# Ranks of a parallel direct solver add up in the order in which they hear from each other.
EXACT = 0.0 if WORLD.size == 1 else 1e-9


@pytest.mark.parametrize("name", GAMES)
def test_a_resumed_run_is_the_uninterrupted_one(comm: MPI.Comm, folder: Path, name: str) -> None:
    """The history, the parameters and what led to them, to the last bit."""
    build = GAMES[name]
    whole = build(comm)
    expected = whole.run(ROUNDS)
    interrupted(build, comm, folder)
    game = build(comm)
    with Checkpoints(folder, game, seconds=None, rounds=EVERY) as checkpoints:
        done = checkpoints.resume()
        assert done is not None
        assert done.round == EVERY
        assert [r.round for r in done.history] == list(range(EVERY))
        result = game.run(ROUNDS, callbacks=[checkpoints])
    assert len(result.history) == len(expected.history) == ROUNDS + 1
    for a, b in zip(result.history, expected.history, strict=True):
        same(a, b, EXACT)
    for key, value in values(whole).items():
        np.testing.assert_allclose(values(game)[key], value, rtol=EXACT, atol=0.1 * EXACT, err_msg=key)
    assert (result.rounds, result.rolled_back, result.stop) == (ROUNDS, 0, "rounds")
    if expected.choice is not None:
        assert result.choice.weights == expected.choice.weights
        np.testing.assert_allclose(result.choice.scores, expected.choice.scores, rtol=EXACT)
    if getattr(whole, "warm_up_result", None) is not None:
        assert len(game.warm_up_result.history) == len(whole.warm_up_result.history)


# -- other processes ---------------------------------------------------------------------------------------------

SCRIPT = ROOT / "benchmarks" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.serial
def test_one_rank_begins_two_go_on_and_three_end_the_run(tmp_path: Path) -> None:
    """A field and a network; the history, κ(θ) and φ as if three ranks had played from the start."""
    found, expected = tmp_path / "found", tmp_path / "expected"
    for folder, legs in ((found, [(1, 10), (2, 20), (3, 30)]), (expected, [(3, 30)])):
        folder.mkdir()
        for ranks, rounds in legs:
            run = mpirun(ranks, SCRIPT, "--play", folder, "--rounds", str(rounds), cwd=tmp_path)
            assert run.returncode == 0, run.stdout + run.stderr
    tables = [np.genfromtxt(f / "history.csv", delimiter=",", skip_header=1) for f in (found, expected)]
    assert tables[0].shape[0] == 31
    np.testing.assert_allclose(*tables, rtol=1e-10)
    with np.load(found / "end.npz") as a, np.load(expected / "end.npz") as b:
        for key in ("theta", "phi"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.serial
def test_a_run_survives_that_its_ranks_are_killed(tmp_path: Path) -> None:
    """kill -9 of one of two ranks, or of both, at random moments; HYCO_KILLS says how often."""
    kills = os.environ.get("HYCO_KILLS", "4")
    command = [sys.executable, str(SCRIPT), "--kills", kills, "--rounds", "150"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=560)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout)
    assert found["kills"] >= 1
    assert found["lines"] == found["lines_without"] == 151
    assert found["most_lines_again"] <= found["interval"]
    assert max(found["theta_error"], found["phi_error"], found["history_error"]) < 1e-8


@pytest.mark.slow
@pytest.mark.serial
def test_the_demo_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    for ranks, rounds, told in ((1, 10, "starts"), (2, 25, "goes on at round 10")):
        options = ("--rounds", str(rounds), "--cells", "5", "--out", tmp_path)
        run = mpirun(ranks, ROOT / "demos" / "restart.py", *options, cwd=tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        assert told in run.stdout
        assert f"{rounds} rounds, stopped by rounds" in run.stdout
        assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + rounds


SPLIT = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from pathlib import Path
from mpi4py import MPI
import hyco_fem as hf
from hyco_fem.game.baselines import NetworkOnly
from split_games import game_on

folder, warm_up, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
world = MPI.COMM_WORLD
game = game_on(hf.Split(world), warm_up=60)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def at(record):
    if record.round == rounds and world.rank == world.size - 1:
        kill()

if warm_up and world.rank == world.size - 1:
    play = NetworkOnly.round
    NetworkOnly.round = lambda alone, number: kill() if number == warm_up else play(alone, number)
with hf.Checkpoints(folder, game, seconds=None, rounds=7) as checkpoints:
    done = checkpoints.resume()
    if world.rank == 0:
        print("begins" if done is None else f"goes on at {done.warm_up} of the warm-up, round {done.round}", flush=True)
    result = game.run(40, callbacks=[checkpoints, at])
result.save(folder, world)
"""


@pytest.mark.slow
@pytest.mark.serial
def test_a_split_game_survives_that_a_rank_is_killed(tmp_path: Path) -> None:
    """kill -9 in the warm-up of two ranks and in a round of three; the history as if two had played from the start."""
    script = tmp_path / "play.py"
    script.write_text(SPLIT, encoding="utf-8")
    told: list[str] = []
    for folder, ranks, warm_up, rounds in (
        ("cut", 2, 33, -1),
        ("cut", 3, 0, 25),
        ("cut", 2, 0, -1),
        ("whole", 2, 0, -1),
    ):
        run = mpirun(ranks, script, tmp_path / folder, str(warm_up), str(rounds), cwd=ROOT / "tests")
        assert (run.returncode == 0) == (warm_up == 0 and rounds < 0), run.stdout + run.stderr
        told += [line for line in run.stdout.splitlines() if line.startswith(("begins", "goes on"))]
    assert told == [
        "begins",
        "goes on at 28 of the warm-up, round 0",
        "goes on at None of the warm-up, round 21",
        "begins",
    ]
    names = ("cut", "whole")
    tables = [np.genfromtxt(tmp_path / name / "history.csv", delimiter=",", skip_header=1) for name in names]
    assert tables[0].shape[0] == 41
    np.testing.assert_allclose(*tables, rtol=1e-9)
