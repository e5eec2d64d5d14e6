"""Runs of experiments and what they write; the command hyco-fem: what it prints, and its status."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from test_experiment import TABLE, changed, frozen, mutated, mutations, written
from test_script import environment, mpirun

import hyco_fem as hf
from hyco_fem import cli
from hyco_fem.cli import main
from hyco_fem.experiment.configuration import read_experiment
from hyco_fem.experiment.run import read_stored, run_experiment
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.models.pde_model import CoefficientError

WORLD = MPI.COMM_WORLD


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A script sets up the log of the package, which lasts as long as its process."""
    log = logging.getLogger("hyco_fem")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:], log.level = handlers, level


def history(folder: Path) -> list[list[str]]:
    """Lines and columns of the history in an output folder."""
    return list(csv.reader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))


def status(*arguments: str | Path) -> int:
    """How the command ends in this process."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def test_a_run_and_its_resumption(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = written(folder), folder / "out"
    assert status("run", path, "--set", "game.rounds=2", "--set", f"output.folder={out}") == 0
    assert status("resume", out, "--set", "game.rounds=3") == 0
    WORLD.Barrier()
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rounds"], summary["ranks"]) == (3, WORLD.size)
    said, errors = capfd.readouterr()
    assert errors == ""
    if WORLD.rank == 0:
        assert re.search(r"poisson: 20 dofs, 3 sensors", said)
        assert re.search(r"goes on at round 2", said)
        assert re.search(r"3 rounds, ended by rounds: kappa.amplitudes \[", said)
    else:
        assert said == ""


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("run", "FILE", "--set", "game.ruonds=3"), 2, "error: game.ruonds: no such key; did you mean 'rounds'?"),
        (("run", "nowhere.toml"), 2, "error: nowhere.toml: the experiment cannot be read"),
        (("resume", "nowhere"), 2, "error: nowhere: no output folder of hyco-fem run"),
        (("verify", "FILE", "--set", "sensors.file=none.csv"), 2, "error: sensors.file: the file"),
        (("run",), 2, "the following arguments are required: experiment"),
        (("rnu", "FILE"), 2, "invalid choice: 'rnu'"),
        (("run", "FILE", "--set", "output.folder=FILE"), 1, "error: the output folder 'FILE' cannot be written"),
    ],
)
def test_errors_are_one_message_and_a_status(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, part: str
) -> None:
    path = str(written(folder))
    assert status(*(a.replace("FILE", path) for a in arguments)) == code
    _, errors = capfd.readouterr()
    assert "Traceback" not in errors
    if WORLD.rank == 0:
        assert part.replace("FILE", path) in errors
    else:
        assert errors == ""


@frozen
@pytest.mark.serial
@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@mutations
def test_a_mutated_configuration_is_run_or_refused_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], at: tuple[Any, ...], how: str, value: Any
) -> None:
    path = written(folder, mutated(at, how, value)[0])
    ended = status("run", path, "--set", f"output.folder={folder / 'out'}")
    _, errors = capfd.readouterr()
    assert ended in (0, 2), errors
    assert errors.count("\n") == (ended > 0), errors
    shutil.rmtree(folder / "out", ignore_errors=True)


def test_without_a_command_there_is_help_and_status_two(capfd: pytest.CaptureFixture[str]) -> None:
    assert status() == 2
    said, errors = capfd.readouterr()
    assert said == ""
    if WORLD.rank == 0:
        names = re.findall(r"^    (\w+) ", errors, re.M)
        assert names == ["run", "resume", "report", "compare", "convergence", "verify", "info"]
        assert all(f"hyco-fem {name} " in (cli.__doc__ or "") or name == "info" for name in names)
    else:
        assert errors == ""


def test_a_report_is_made_and_its_path_told(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = written(folder), folder / "out"
    assert status("run", path, "--set", "game.rounds=1", "--set", f"output.folder={out}") == 0
    capfd.readouterr()
    assert status("report", out, "--to", folder / "page.html") == 0
    said, errors = capfd.readouterr()
    assert errors == ""
    assert (folder / "page.html").stat().st_size > 1000
    assert said == (f"written to {folder / 'page.html'}\n" if WORLD.rank == 0 else "")
    assert status("report", folder / "nowhere") in (1, 2)
    _, errors = capfd.readouterr()
    assert "Traceback" not in errors


@pytest.mark.serial
def test_an_output_that_was_closed_ends_the_command_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hyco_fem.cli info | head -2; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (141, "")
    assert run.stdout.count("\n") == 2


def test_verify_shows_the_rates_and_a_dry_run_the_sizes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = written(folder)
    assert status("verify", path) == 0
    assert status("run", path, "--dry-run", "--set", f"output.folder={folder / 'out'}") == 0
    said, _ = capfd.readouterr()
    assert not (folder / "out").exists()
    if WORLD.rank == 0:
        assert re.search(r"e-03 +[0-9.]+e-\d+ +(1\.9|2\.0)", said), said
        assert re.search(r"physical +20 dofs, 3 unknown numbers", said)
        assert re.search(r"time .* for 4 rounds", said)


def test_a_gradient_that_is_wrong_is_status_one(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyco_fem.experiment.check.dot_product_test", lambda model: 1e-3)
    assert status("verify", written(folder)) == 1
    _, errors = capfd.readouterr()
    if WORLD.rank == 0:
        assert errors == "error: the adjoint is not the transpose of the tangent\n"


def test_info_names_what_the_numbers_come_from(capfd: pytest.CaptureFixture[str]) -> None:
    assert status("info") == 0
    said, _ = capfd.readouterr()
    if WORLD.rank == 0:
        for name in ("dolfinx", "petsc", "torch", "mpi", "PETSc packages", "threads", "gmsh"):
            assert re.search(rf"^{name} +\S", said, re.M)
        assert re.search(rf"^ranks +{WORLD.size}$", said, re.M)


@pytest.mark.serial
def test_the_module_is_the_command(tmp_path: Path) -> None:
    path = written(tmp_path, changed())
    command = [sys.executable, "-m", "hyco_fem.cli", "run", str(path), "--set", "game.rounds=no"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: game.rounds: must be a whole number, not 'no'\n"


@pytest.mark.serial
def test_two_ranks_write_what_one_does_and_go_on_with_it(tmp_path: Path) -> None:
    path = written(tmp_path, TABLE)
    one = mpirun(1, "-m", "hyco_fem.cli", "run", path, "--set", "output.folder=one", cwd=tmp_path, module=())
    part = ("--set", "output.folder=two", "--set", "game.rounds=2")
    two = mpirun(2, "-m", "hyco_fem.cli", "run", path, *part, cwd=tmp_path, module=())
    more = mpirun(1, "-m", "hyco_fem.cli", "resume", "two", "--set", "game.rounds=4", cwd=tmp_path, module=())
    for run in (one, two, more):
        assert run.returncode == 0, run.stderr
    one_table, two_table = history(tmp_path / "one"), history(tmp_path / "two")
    assert two_table[0] == one_table[0]
    np.testing.assert_allclose(np.array(two_table[1:], float), np.array(one_table[1:], float), rtol=1e-8)


@pytest.mark.serial
def test_a_signal_is_status_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """What a job that is put back into the queue relies on."""
    written(tmp_path)
    command = [sys.executable, "-m", "hyco_fem.cli", "run", "small.toml", "--set", "output.folder=out", "--resume"]
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "text": True, "stdout": subprocess.PIPE}
    with subprocess.Popen([*command, "--set", "game.rounds=1000000"], **options) as first:
        lines = tmp_path / "out" / "history.jsonl.running"
        end = time.monotonic() + 120.0
        while not (lines.is_file() and lines.stat().st_size > 2000) and time.monotonic() < end:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        told, _ = first.communicate(timeout=120)
    assert first.returncode == 75, told
    assert "there is no checkpoint: starts" in told
    assert "ended by signal" in told
    done = int(re.search(r"(\d+) rounds, ended", told)[1])  # type: ignore[index]
    again = subprocess.run([*command, "--set", f"game.rounds={done + 2}"], **options, timeout=120, check=False)
    assert again.returncode == 0, again.stdout
    assert f"goes on at round {done}" in again.stdout, again.stdout
    assert [row[0] for row in history(tmp_path / "out")[1:]] == [str(k) for k in range(done + 3)]  # and the end
    records = hf.read_history(tmp_path / "out" / "history.jsonl")
    assert [record.round for record in records] == list(range(done + 3))


@pytest.mark.serial
def test_two_ranks_tell_of_an_error_once(tmp_path: Path) -> None:
    path = written(tmp_path, TABLE)
    run = mpirun(2, "-m", "hyco_fem.cli", "run", path, "--set", "game.rnds=2", cwd=tmp_path, module=())
    assert run.returncode == 2
    assert run.stderr.count("error: game.rnds: no such key") == 1
    assert "Traceback" not in run.stderr


# -- runs ------------------------------------------------------------------------------------------------------


def stored(folder: Path, *changes: str) -> Experiment:
    """The small experiment, with its results in `folder`/out."""
    return read_experiment(folder / "small.toml", changes, folder=folder / "out")


def contents(folder: Path) -> dict[str, bytes]:
    WORLD.Barrier()
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_that_is_resumed_ends_as_one_that_was_not(folder: Path) -> None:
    written(folder)
    whole = run_experiment(read_experiment(folder / "small.toml", folder=folder / "whole"))
    said: list[str] = []
    run_experiment(stored(folder, "game.rounds=2"), say=said.append)
    result = run_experiment(read_stored(folder / "out", ["game.rounds=4"], WORLD), resume=True, say=said.append)
    assert any("goes on at round 2" in text for text in said)
    for key, value in whole.parameters.items():
        np.testing.assert_allclose(result.parameters[key], value, rtol=1e-10)  # partitions may differ from run to run
    WORLD.Barrier()
    rows, expected = history(folder / "out"), history(folder / "whole")
    assert rows[0] == expected[0]
    np.testing.assert_allclose(np.array(rows[1:], float), np.array(expected[1:], float), rtol=1e-8, atol=1e-12)
    names = {
        "experiment.toml",
        "history.csv",
        "history.jsonl",
        "summary.json",
        "fields.xdmf",
        "fields.h5",
        "checkpoints",
    }
    assert {p.name for p in (folder / "out").iterdir()} == names
    assert tomllib.loads((folder / "out" / "experiment.toml").read_text(encoding="utf-8"))["game"]["rounds"] == 4


def test_a_folder_of_another_experiment_is_refused_and_stays_as_it_is(folder: Path) -> None:
    written(folder)
    run_experiment(stored(folder, "game.rounds=1"))
    before = contents(folder / "out")
    with pytest.raises(ConfigurationError, match=r"output.folder: .* game.weights.b1 is 2.0 there, and 3.0 here"):
        run_experiment(stored(folder, "game.weights.b1=3.0"))
    with pytest.raises(ConfigurationError, match=r"network.seed is 0 there, and 1 here; a run goes on with its own"):
        run_experiment(stored(folder, "network.seed=1"), resume=True)
    with pytest.raises(ConfigurationError, match=r"holds checkpoints of this experiment: hyco-fem resume .*overwrite"):
        run_experiment(stored(folder))
    assert contents(folder / "out") == before
    result = run_experiment(stored(folder, "game.rounds=2"), overwrite=True)
    assert [record.round for record in result.history] == [0, 1, 2]


def test_a_configuration_that_does_not_fit_leaves_nothing_behind(folder: Path) -> None:
    written(folder)
    with pytest.raises(ConfigurationError, match=r"coefficients.kappa: centres have 1"):
        run_experiment(stored(folder, "coefficients.kappa.centres=[[1.0]]"))
    WORLD.Barrier()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", ["elasticity", "stokes"])
def test_vector_problems_are_run_and_their_fields_written(folder: Path, name: str) -> None:
    """A body or fluid in the unit square, held on the left; the unknown is its stiffness or viscosity."""
    unknown = {"elasticity": "E", "stokes": "mu"}[name]
    table = changed(
        mesh={"shape": "rectangle", "cells": 3},
        problem={
            "name": name,
            "arguments": {"f": [0.0, -1.0]},
            "conditions": [{"type": "dirichlet", "value": 0.0, "facets": "left"}],
        },
        coefficients={unknown: {"type": "scalar", "value": 2.0, "lower": 0.0}},
        game={"rounds": 2, "ghosts": {"type": "random", "points": 4}},
    )
    sensors = "x,y,value_0,value_1\n0.5,0.5,0.1,-0.2\n0.8,0.2,0.0,-0.3\n"
    written(folder, table, sensors)
    result = run_experiment(stored(folder))
    assert np.isfinite(result.history[-1].interaction)
    WORLD.Barrier()
    text = (folder / "out" / "fields.xdmf").read_text(encoding="utf-8")
    for field in ("u_physical", "u_synthetic", unknown):
        assert f'Name="{field}"' in text


def test_a_folder_with_results_and_no_checkpoints_is_not_overwritten(folder: Path) -> None:
    written(folder)
    run_experiment(stored(folder, "game.rounds=2"))
    WORLD.Barrier()
    if WORLD.rank == 0:
        shutil.rmtree(folder / "out" / "checkpoints")
    WORLD.Barrier()
    before = contents(folder / "out")
    for resume in (False, True):
        with pytest.raises(ConfigurationError, match=r"holds summary.json, .* of a run without its checkpoints"):
            run_experiment(stored(folder), resume=resume)
    assert contents(folder / "out") == before
    assert run_experiment(stored(folder, "game.rounds=1"), overwrite=True).rounds == 1


def test_a_run_that_came_to_nothing_does_not_hold_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder)

    def fails(*_: Any, **__: Any) -> None:
        raise CoefficientError("'kappa' is not positive")

    with monkeypatch.context() as patch:
        patch.setattr(hf.Hyco, "run", fails)
        with pytest.raises(CoefficientError):
            run_experiment(stored(folder, "game.weights.b1=3.0"))
    WORLD.Barrier()
    assert (folder / "out" / "experiment.toml").is_file()
    assert run_experiment(stored(folder, "game.rounds=1")).rounds == 1


def test_a_run_goes_on_in_its_own_folder(folder: Path) -> None:
    written(folder)
    run_experiment(stored(folder, "game.rounds=1"))
    with pytest.raises(ConfigurationError, match=r"output.folder: a run goes on in its own folder"):
        read_stored(folder / "out", ["output.folder=elsewhere"], WORLD)
