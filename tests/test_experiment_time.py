"""Experiments in time: what is written is solved step by step, and what does not fit is named by its key."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_experiment import STRANGE, check_named, frozen, mutated, places, written, wrong
from test_script import environment

import hyco_fem as hf
from hyco_fem.experiment.build import build
from hyco_fem.experiment.check import check
from hyco_fem.experiment.configuration import as_table, identity, read_experiment
from hyco_fem.experiment.estimate import estimate
from hyco_fem.experiment.output import fields, series
from hyco_fem.experiment.run import read_stored, run_experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.experiment.toml import dump

WORLD = MPI.COMM_WORLD
DEMOS = Path(__file__).parent.parent / "demos"

SENSORS = "x,y,t,value,noise_std\n0.3,0.4,0.1,0.6,0.1\n0.3,0.4,0.4,0.4,0.1\n0.6,0.7,0.25,0.5,0.1\n0.5,0.3,0.4,0.3,0.1\n"
TIMED: dict[str, Any] = {
    "mesh": {"shape": "rectangle", "cells": 4},
    "problem": {
        "name": "heat",
        "arguments": {"f": 1.0},
        "conditions": [{"type": "dirichlet", "value": "wall", "facets": "left"}],
    },
    "time": {
        "end": 0.4,
        "dt": 0.05,
        "scheme": {"type": "crank_nicolson", "damped": 2},
        "checkpoints": {"type": "revolve", "snapshots": 3},
        "output": [0.0, 0.2, 0.4],
    },
    "coefficients": {
        "kappa": {"type": "scalar", "value": 0.5},
        "wall": {"type": "scalar", "value": 0.2},
        "initial": {"type": "bumps", "amplitudes": [1.0], "centres": [[0.4, 0.5]], "widths": 0.4},
    },
    "sensors": {"file": "sensors.csv"},
    "network": {"type": "mlp", "width": 4, "depth": 1},
    "game": {
        "rounds": 3,
        "ghosts": {"type": "random", "points": 6, "boundary": 3},
        "weights": {"rule": "gradient_balance", "every": 2, "memory": 0.5, "b1": 2.0},
        "prior": {"std": {"kappa.raw": 0.5}, "mean": {"kappa.raw": 0.4}},
        "physical": {"type": "gauss_newton", "bounds": {"kappa.raw": [0.1, 3.0]}},
    },
}


def timed(folder: Path, sensors: str = SENSORS, **tables: Any) -> Path:
    """The files of the experiment with other tables."""
    return written(folder, copy.deepcopy(TIMED) | tables, sensors)


# -- what is built ---------------------------------------------------------------------------------------------


def test_the_heat_of_the_file_is_that_of_a_script(folder: Path, comm: MPI.Comm) -> None:
    built = build(read_experiment(timed(folder)))
    square = built.mesh
    wall = hf.Scalar(0.2)
    spot = hf.GaussianBumps([1.0], [[0.4, 0.5]], 0.4)
    cold = hf.Dirichlet(0.2, square.facets("left"))
    problem = hf.catalogue.heat(square.mesh, kappa=0.5, f=1.0, initial=spot, conditions=[cold])
    model = hf.TransientModel.of(problem, interval=(0.0, 0.4), dt=0.05, scheme=hf.CrankNicolson(2))
    points = hf.read_sensors(folder / "sensors.csv", comm).on(square.mesh).points
    found, wanted = (points.gather(m(points).detach()) for m in (built.physical, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-11)
    assert "Revolve with 3 checkpoints" in built.physical.description
    theta = {name.removeprefix("coefficients.") for name, _ in built.physical.named_parameters()}
    assert theta == {"kappa.raw", "wall.raw", "initial.amplitudes", "initial.centres"}
    assert wall.value == 0.2
    x = torch.rand(5, 3, dtype=torch.float64)
    network = hf.InputScaling(hf.MLP(3, width=4, depth=1), [[0.0, 0.0, 0.0], [1.0, 1.0, 0.4]])
    torch.testing.assert_close(built.synthetic(x), network(x), rtol=0, atol=0)
    built.close()
    model.close()


def test_u_at_the_output_times_is_in_the_series_and_its_end_in_the_fields(folder: Path, comm: MPI.Comm) -> None:
    path = timed(folder)
    experiment = read_experiment(path, ["game.rounds=2"], folder=folder / "out")
    run_experiment(experiment)
    WORLD.Barrier()
    built = build(experiment)
    states = list(series(built))
    np.testing.assert_allclose(built.physical.times, [0.0, 0.2, 0.4])
    assert [f.name for f in states[0]] == ["u_physical", "u_synthetic"]
    end = torch.tensor([[0.0, 0.0, 0.4]], dtype=torch.float64)
    corner = np.all(states[2][1].function_space.tabulate_dof_coordinates()[:, :2] == 0.0, axis=1)
    np.testing.assert_allclose(states[2][1].x.array[corner], float(built.synthetic(end).detach()), rtol=1e-12)
    built.close()
    if comm.rank == 0:
        with h5py.File(folder / "out" / "series.h5") as whole, h5py.File(folder / "out" / "fields.h5") as last:
            assert {n: len(f) for n, f in whole["Function"].items()} == {"u_physical": 3, "u_synthetic": 3}
            assert set(last["Function"]) == {"u_physical", "u_synthetic", "kappa", "wall", "initial"}
            for name in ("u_physical", "u_synthetic"):
                np.testing.assert_allclose(whole["Function"][name]["0_40000000000000002"], last["Function"][name]["0"])
    WORLD.Barrier()


@pytest.mark.parametrize(
    ("given", "times"),
    [("1", [0.4]), ("3", [0.0, 0.2, 0.4]), ("99", np.linspace(0.0, 0.4, 9)), ("[0.05]", [0.05])],
)
def test_output_times_are_a_list_or_so_many_of_them(folder: Path, given: str, times: Any) -> None:
    built = build(read_experiment(timed(folder), [f"time.output={given}"]))
    np.testing.assert_allclose(built.physical.times, times)
    built.close()


SCHEMES = {
    "backward_euler": "backward Euler",
    "bdf2": "BDF2",
    "bdf3": "BDF3",
    "{type='theta', theta=0.75}": "θ = 0.75",
    "crank_nicolson": "Crank–Nicolson",
}
KEPT = {
    "in_memory": "all 8 steps in memory",
    "on_disk": "all 8 steps on disk",
    "{type='budget', size='1 MB'}": "all 8 steps in memory",
    "{type='revolve', snapshots=1, on_disk=1}": "Revolve with 1 checkpoints in memory and 1 on disk",
}


@pytest.mark.parametrize(("scheme", "kept"), list(zip(SCHEMES, [*KEPT, "in_memory"], strict=True)))
def test_every_scheme_and_every_way_to_keep_the_steps(folder: Path, scheme: str, kept: str) -> None:
    built = build(read_experiment(timed(folder), [f"time.scheme={scheme}", f"time.checkpoints={kept}"]))
    assert SCHEMES[scheme] in built.physical.description
    assert KEPT[kept] in built.physical.description
    assert np.isfinite(built.game.run(1).history[0].gradient_physical)
    built.close()


def test_a_hard_boundary_holds_at_all_times(folder: Path) -> None:
    conditions = [{"type": "dirichlet", "value": v, "facets": s} for v, s in ((0.3, "left"), (0.7, "right"))]
    coefficients = {"kappa": TIMED["coefficients"]["kappa"]}
    game = {"rounds": 1}
    for problem, values in (
        ({"name": "heat", "conditions": conditions}, (0.3, 0.7)),
        ({"name": "heat", "conditions": conditions[:1]}, (0.3, None)),
        ({"name": "heat"}, (0.0, 0.0)),
    ):
        path = timed(folder, problem=problem, coefficients=coefficients, game=game)
        built = build(read_experiment(path, ["network.hard_boundary=true"]))
        t = torch.linspace(0.0, 0.4, 5, dtype=torch.float64)
        for x, value in zip((0.0, 1.0), values, strict=True):
            at = torch.stack([torch.full_like(t, x), 0.3 + t, t], dim=1)
            if value is not None:
                np.testing.assert_allclose(built.synthetic(at).detach(), value, atol=1e-9)
        built.close()
        WORLD.Barrier()


def test_a_coefficient_may_change_in_time(folder: Path) -> None:
    """Without walls that let heat through, u = ∫ f: here 0.1 after the first half, and −0.3 more after the second."""
    parts = [{"type": "scalar", "value": 0.5}, {"type": "scalar", "value": -1.5}]
    coefficients = {"f": {"type": "per_interval", "changes": [0.2], "parts": parts, "degree": 0}}
    path = timed(folder, problem={"name": "heat", "conditions": []}, coefficients=coefficients, game={"rounds": 1})
    built = build(read_experiment(path))
    points = hf.SpaceTimePoints.snapshots(built.mesh.mesh, [[0.3, 0.6]], [0.2, 0.4])
    np.testing.assert_allclose(points.gather(built.physical(points).detach()), [0.1, -0.2], rtol=1e-9)
    assert built.game.run(1).parameters.keys() == {"f.parts.0.raw", "f.parts.1.raw"}
    assert [f.name for f in fields(built)] == ["u_physical", "u_synthetic", "f_0", "f_1"]
    built.close()
    for change, said in {
        "coefficients.f.changes=[0.21]": "coefficients.f.changes: the change 0.21 is not at the end of a step",
        "coefficients.f.changes=[0.1, 0.2]": "coefficients.f.parts: 2 changes need 3 of them, not 2",
        "coefficients.f.parts=[{type='scalar', value=1, degree=1}, {type='nodal'}]": "coefficients.f.parts[0].degree: ",
        "coefficients.initial={type='per_interval', changes=[], parts=['nodal']}": "coefficients.initial.type: ",
    }.items():
        assert wrong(path, change).startswith(said)


PYTHON = """
import ufl
from dolfinx import fem
import hyco_fem as hf

def cooling(plate, rate):
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    u, u_t, eta = (fem.Function(V, name=name) for name in ("u", "u_t", "eta"))
    v, t = ufl.TestFunction(V), fem.Constant(plate.mesh, 0.0)
    F = (u_t * v + eta * u**3 * v - rate * t * v) * ufl.dx
    return hf.TransientProblem("cooling", F, u, u_t, t, initial=1.0, coefficients={"eta": eta})

def steady(plate, rate):
    return hf.catalogue.poisson(plate.mesh)
"""


def test_a_problem_in_time_of_a_python_file(folder: Path) -> None:
    """u′ = t − u³ / 2 has no derivative in space: it is the same everywhere."""
    problem = {"python": "mine.py", "function": "cooling", "arguments": {"rate": 1.0}}
    coefficients = {"eta": {"type": "scalar", "value": 0.5}}
    game = {"rounds": 2, "ghosts": {"type": "quadrature", "degree": 1}}
    path = timed(folder, problem=problem, coefficients=coefficients, game=game)
    if WORLD.rank == 0:
        (folder / "mine.py").write_text(PYTHON, encoding="utf-8")
    WORLD.Barrier()
    built = build(read_experiment(path, ["time.dt=0.01"]))
    u, t = 1.0, 0.0
    for _ in range(4000):
        middle = u + 5e-5 * (t - 0.5 * u**3)
        u, t = u + 1e-4 * (t + 5e-5 - 0.5 * middle**3), t + 1e-4
    points = hf.SpaceTimePoints(built.mesh.mesh, [[0.2, 0.3]], 0.4)
    assert float(points.gather(built.physical(points).detach())[0]) == pytest.approx(u, rel=3e-4)
    built.close()
    assert "time: 'poisson' of " in wrong(path, "problem.function=steady")
    assert "coefficients.beta: 'cooling' has none; did you mean 'eta'?" in wrong(
        path, "coefficients={beta={type='scalar', value=1}}"
    )
    half = "{type='scalar', value=0.5}"
    halves = f"coefficients.eta={{type='per_interval', changes=[0.2], parts=[{half}, {half}]}}"
    unknown = build(read_experiment(path, ["coefficients.initial={type='scalar', value=0.7}", halves]))
    assert {"initial.raw", "coefficients.eta.parts.1.raw"} <= dict(unknown.physical.named_parameters()).keys()
    unknown.close()
    WORLD.Barrier()
    table = copy.deepcopy(TIMED) | {"problem": problem, "coefficients": coefficients, "game": game}
    del table["time"]
    assert "is in time, and needs end and dt" in wrong(written(folder, table, SENSORS))


# -- what does not fit -----------------------------------------------------------------------------------------

WRONG = {
    "time.dt=0.15": "time.dt: steps of 0.15 do not divide the interval",
    "time.dt=0": "time.dt: must be positive, not 0",
    "time.dt=[0.2, 0.1]": "time.dt: the 2 steps end at t = 0.3",
    "time.dt=short": "time.dt: must be a finite number or a list, not 'short'",
    "time.end=-1": "time.end: must be after the start, 0, not -1",
    "time.start=0.5": "time.end: must be after the start",
    "time.output=[0.01]": "time.output: the output time 0.01 is not at the end of a step",
    "time.output=0": "time.output: must be",
    "time.scheme=bdf4": "time.scheme.type: there is no 'bdf4'; did you mean 'bdf",
    "time.scheme={type='theta', theta=0.3}": "time.scheme.theta: must be at least 0.5, not 0.3",
    "time.scheme={type='theta', theta=3}": "time.scheme.theta: must be at most 1",
    "time.scheme={type='bdf2', damped=2}": "time.scheme.damped: no such key",
    "time.checkpoints=revolve": "time.checkpoints.snapshots: is missing",
    "time.checkpoints={type='revolve', snapshots=0}": "time.checkpoints.snapshots: at least one is needed",
    "time.checkpoints={type='budget', size='much'}": "time.checkpoints: a memory budget is a number of bytes",
    "time.checkpoints={type='budget', size='1 B'}": "time.checkpoints: a memory budget of 1e-06 MB on each rank is too",
    "time.chekpoints=on_disk": "time.chekpoints: no such key; did you mean 'checkpoints'?",
    "time=3": "time: must be a table, not 3",
    "problem.name=poisson": "time: poisson is steady; leave it out",
    "problem.name=haet": "problem.name: 'haet' is no problem of the catalogue; did you mean 'heat'?",
    "problem.arguments.initial=1": "problem.arguments.initial: is unknown, with a start in coefficients",
    "problem.arguments.t=1": "problem.arguments.t: heat takes no such argument",
    "problem.conditions=[{type='dirichlet', value='wal'}]": "problem.conditions[0].value: 'wal' has no table in "
    "coefficients; did you mean 'wall'?",
    "problem.conditions=[{type='dirichlet', value='initial'}]": "problem.conditions[0].value: 'initial' is u at the",
    "coefficients.initial.degree=1": "coefficients.initial.degree: its space is that of u; leave it out",
    "coefficients.wall.degree=1": "coefficients.wall.degree: a Dirichlet value has the space of u; leave it out",
    "coefficients.intial={type='scalar', value=1}": "coefficients.intial: heat has none; did you mean 'initial'?",
    "game.ghosts=dofs": "game.ghosts.type: 'dofs' is for steady problems",
    "network.hard_boundary=true": "network.hard_boundary: the value 'wall' of problem.conditions[0] is unknown",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_does_not_fit_is_named_by_its_key(folder: Path, change: str) -> None:
    assert wrong(timed(folder), change).startswith(WRONG[change])


def test_sensors_need_times_within_the_interval(folder: Path) -> None:
    assert "it needs a column t" in wrong(timed(folder, "x,y,value\n0.5,0.5,1.0\n"))
    WORLD.Barrier()
    said = wrong(timed(folder, SENSORS + "0.1,0.1,0.5,1.0,0.1\n"))
    assert said.startswith("sensors.file: a time of ")
    assert "0.5 (number 4) is after the end of the interval from 0 to 0.4" in said


@frozen
@pytest.mark.serial
@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(places(TIMED)),
    st.sampled_from(["rename", "remove", "replace"]),
    st.sampled_from([*STRANGE, "kappa", 0.25, [0.1, 0.3], [1.0, 2.0]]),
)
def test_mutated_configurations_end_in_a_named_key(folder: Path, at: tuple[Any, ...], how: str, value: Any) -> None:
    check_named(*mutated(at, how, value, TIMED), folder, SENSORS)


# -- runs ------------------------------------------------------------------------------------------------------


def test_what_is_kept_and_written_is_no_part_of_what_it_is(folder: Path) -> None:
    path = timed(folder)
    own = identity(read_experiment(path))
    assert identity(read_experiment(path, ["time.checkpoints=on_disk", "time.output=2", "game.rounds=9"])) == own
    assert identity(read_experiment(path, ["time.dt=0.1"])) != own
    experiment = read_experiment(path, folder=folder)
    if WORLD.rank == 0:
        (folder / "used.toml").write_text(dump(as_table(experiment, folder)), encoding="utf-8")
    WORLD.Barrier()
    assert read_experiment(folder / "used.toml", folder=folder) == experiment


def test_gradient_and_ranks_are_verified_and_the_time_is_estimated(folder: Path, comm: MPI.Comm) -> None:
    experiment = read_experiment(timed(folder))
    checks = check(experiment, comm)
    assert not checks.failed, str(checks)
    found = estimate(experiment)
    assert (found.dofs, found.theta, found.sensors) == (25, 5, 4)
    assert "Crank–Nicolson, 8 steps" in str(found)


def test_a_run_that_is_resumed_ends_as_one_that_was_not(folder: Path) -> None:
    path = timed(folder)
    whole = run_experiment(read_experiment(path, folder=folder / "whole"))
    run_experiment(read_experiment(path, ["game.rounds=1"], folder=folder / "parts"))
    again = ["game.rounds=3", "time.checkpoints=in_memory", "output.fields=false"]
    parts = run_experiment(read_stored(folder / "parts", again, WORLD), resume=True)
    assert parts.rounds == 3
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(parts.parameters[name], value, rtol=1e-9)


def test_a_run_of_one_rank_goes_on_on_all_of_them(folder: Path, comm: MPI.Comm) -> None:
    path = timed(folder)
    ends: list[Any] = [None]
    if comm.rank == 0:
        alone = MPI.COMM_SELF
        run_experiment(read_experiment(path, ["game.rounds=1"], comm=alone, folder=folder / "parts"), alone)
        ends[0] = run_experiment(read_experiment(path, comm=alone, folder=folder / "whole"), alone).parameters
    comm.Barrier()
    whole = comm.bcast(ends[0])
    parts = run_experiment(read_stored(folder / "parts", ["game.rounds=3"], comm), comm, resume=True)
    for name, value in whole.items():
        np.testing.assert_allclose(parts.parameters[name], value, rtol=1e-8)


def test_changed_files_are_named_when_a_run_goes_on(folder: Path) -> None:
    path = timed(folder)
    run_experiment(read_experiment(path, ["game.rounds=1"], folder=folder / "out"))
    WORLD.Barrier()
    timed(folder, SENSORS.replace("0.6,0.1", "0.7,0.1"))
    for resume in (True, False):
        with pytest.raises(
            ConfigurationError, match=r"sensors.file: '.*sensors.csv', or .*, has changed since the run in "
        ):
            run_experiment(read_experiment(path, folder=folder / "out"), resume=resume)
    with pytest.raises(ConfigurationError, match=r"another experiment: time.dt is 0.05 there, and 0.1 here"):
        run_experiment(read_experiment(path, ["time.dt=0.1"], folder=folder / "out"), resume=True)
    run_experiment(read_experiment(path, ["game.rounds=1"], folder=folder / "out"), overwrite=True)


@pytest.mark.slow
@pytest.mark.serial
def test_the_heat_experiment_goes_on_after_it_was_killed(folder: Path) -> None:
    path = DEMOS / "experiments" / "heat.toml"
    small = ["mesh.cells=10", "time.dt=0.05", "time.output=2", "game.rounds=6", "game.synthetic.steps=4"]
    keep = [*small, "output.checkpoint_rounds=1"]
    options = [f"--set={setting}" for setting in keep]
    command = [
        sys.executable,
        "-m",
        "hyco_fem.cli",
        "run",
        str(path),
        *options,
        f"--set=output.folder={folder / 'out'}",
    ]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    kept = folder / "out" / "checkpoints" / "round-00000002.pt"
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert kept.exists()
    whole = run_experiment(read_experiment(path, small, folder=folder / "whole"))
    said: list[str] = []
    parts = run_experiment(read_stored(folder / "out", [], WORLD), resume=True, say=said.append)
    assert any("goes on at round" in text for text in said)
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(parts.parameters[name], value, rtol=1e-12)


@pytest.mark.slow
def test_the_spot_of_the_heat_experiment_is_found(folder: Path) -> None:
    """Within three standard errors, of 0.05 K of noise at 160 measurements, of what the data were made with."""
    fast = ["game.rounds=3", "output.fields=false"]
    result = run_experiment(read_experiment(DEMOS / "experiments" / "heat.toml", fast, folder=folder / "out"))
    for name, true, tolerance in (
        ("kappa.raw", 0.05, 0.003),
        ("initial.amplitudes", 5.0, 0.2),
        ("initial.widths", 0.2, 0.01),
        ("initial.centres", [[0.3, 0.65]], 0.01),
    ):
        np.testing.assert_allclose(result.parameters[name], true, atol=tolerance)
