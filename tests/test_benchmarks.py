"""The benchmarks run, agree with themselves, and print one JSON line with what they promise; how fast is not judged."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.serial]


def printed(script: str, *arguments: object) -> dict[str, Any]:
    """What `python3 benchmarks/SCRIPT …` prints: one line."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)],
        env=dict(os.environ) | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},  # without what MPI has set in here
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 1, run.stdout
    return json.loads(run.stdout)


def positive(values: Any) -> bool:
    return bool(np.all(np.isfinite(list(values))) and np.all(np.array(list(values)) > 0))


def test_gradient_cost_reports_ratios_and_solvers_for_each_size() -> None:
    found = printed("gradient_cost.py", "--cells", 5, 8, "--seconds", 0)
    numbers = {
        f"{part}_{size}" for part in ("direct", "amg", "jacobian", "value_ms", "amg_value_ms") for size in (36, 81)
    }
    solvers = {"solver_36", "solver_81", "solver_amg_36", "solver_amg_81"}
    assert found.keys() == numbers | solvers
    assert positive(found[key] for key in numbers)
    assert "81 dofs, symmetric, 1 rank(s): lu" in found["solver_81"]
    assert "81 dofs, symmetric, 1 rank(s): cg + boomeramg" in found["solver_amg_81"]


def test_scaling_starts_one_and_two_ranks_and_reports_time_and_memory() -> None:
    found = printed("scaling.py", "--cells", 8, 5, 9, "--starts", 1, "--rounds", 1)
    ratios = {"speed_up", "growth", "kB_per_dof", "speed_up_processor", "growth_processor"}
    assert found.keys() == ratios | {"seconds", "processor_seconds"}
    assert positive(found[key] for key in ratios)
    for clock in ("seconds", "processor_seconds"):
        assert found[clock].keys() == {"81_1_rank", "81_2_ranks", "36_2_ranks", "100_2_ranks"}
        assert positive(found[clock].values())


def test_peers_are_compared_where_they_are_installed_and_excused_where_not() -> None:
    found = printed("peers.py", "--cells", 5, "--seconds", 0)
    assert found.keys() == {"torch_fem_36", "jax_fem_36", "notes"}
    assert found["notes"].keys() == {"torch_fem_36", "jax_fem_36"}
    for name, module in (("torch_fem_36", "torchfem"), ("jax_fem_36", "jax_fem")):
        if importlib.util.find_spec(module) is None:
            assert found[name] is None
            assert f"No module named '{module}'" in found["notes"][name]
        else:
            assert found[name] is not None, found["notes"][name]
            assert found[name] > 0


def test_transient_cost_keeps_no_more_than_its_budget() -> None:
    found = printed(
        "transient_cost.py", "--cells", 8, "--steps", 12, "--snapshots", 3, "--budget", "5 KB", "--seconds", 0
    )
    assert (found["dofs"], found["steps"]) == (81, 12)
    schedules = ("memory", "revolve", "budget", "disk")
    assert positive(found[name] for name in schedules)
    assert found["budget_kept_mb"] <= found["budget_mb"] == 0.005
    assert found["revolve_kept_mb"] < found["memory_kept_mb"]
    assert found["disk_kept_mb"] == 0.0
    assert "Revolve with" in found["budget_is"]


def test_gray_scott_cost_reports_time_and_memory() -> None:
    found = printed("gray_scott_cost.py", "--cells", 4, "--end", 8)
    assert (found["dofs"], found["steps"]) == (182, 32 + 64 + 12)
    assert 0 < found["value_s"] < found["value_and_gradient_s"]
    assert positive([found["peak_gb"]])
