"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest

TOP = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def run(block: str) -> dict:
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_first_script_runs(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(TOP)
    assert "rounds=1000" in BLOCKS[0]
    names = run(BLOCKS[0].replace("rounds=1000", "rounds=3").replace("warm_up=200", "warm_up=2"))
    assert names["result"].rounds == 3
    assert "kappa.amplitudes" in capsys.readouterr().out


def test_a_pde_of_ones_own_is_checked(comm: MPI.Comm, capsys: pytest.CaptureFixture) -> None:
    names = run(BLOCKS[1])
    printed = capsys.readouterr().out
    assert "rate" in printed
    assert "ok" in printed
    jacobian = names["physical"].jacobian(names["points"])
    assert jacobian.matrix.shape == (len(names["points"]), 3)
    assert comm.allreduce(float(np.abs(jacobian.matrix).sum())) > 0
    assert names["physical"].coefficients["kappa"].amplitudes.grad is not None


def test_best_responses_tell_how_far_they_can_be_trusted(
    comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(TOP)
    names = run(BLOCKS[2].replace("starts=16", "starts=3").replace("rounds=5", "rounds=2"))
    printed = capsys.readouterr().out
    assert "the physics passes" in printed
    assert "Nash equilibrium" in printed
    assert "95% in [" in printed
    assert names["result"].history[-1].misfit_physical < 2.0


def test_a_pde_in_time_is_played_like_any_other(comm: MPI.Comm, capsys: pytest.CaptureFixture) -> None:
    names = run(BLOCKS[3].replace("rounds=20", "rounds=2"))
    assert "Crank–Nicolson, 50 steps" in capsys.readouterr().out
    assert names["result"].rounds == 2
    assert names["sensors"].n == 44


def test_bounds_and_certificates_are_numbers(comm: MPI.Comm, capsys: pytest.CaptureFixture) -> None:
    names = run(BLOCKS[4].replace("steps=200", "steps=20"))
    bound, found = names["bound"], names["certify"](names["problem"].u)
    assert found.value < bound.energy(1.0)
    assert len(capsys.readouterr().out.splitlines()) == 3
