"""Ritz against Galerkin, and all methods on one map: small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.serial]


def run(ranks: int, script: str, *arguments: object) -> str:
    """What a script prints."""
    command = [sys.executable, "-m", "mpi4py", str(TOP / script), *map(str, arguments)]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_tells_the_same_on_any_ranks_and_promises_hold(folder: Path) -> None:
    found: list[dict[str, Any]] = []
    for ranks in (1, 2):
        out = folder / f"on_{ranks}"
        run(ranks, "demos/ritz_vs_galerkin.py", "--neurons", 4, "--starts", 2, "--cells", 8, "--out", out)
        assert (out / "ritz_vs_galerkin.png").stat().st_size > 20000
        found.append(json.loads((out / "summary.json").read_text()))
    one, two = (summary["rows"] for summary in found)
    assert [row["name"] for row in one][:2] == ["P1, h = √2/4", "P1, h = √2/8"]
    for row, again in zip(one[:6], two[:6], strict=True):  # elements, and the best of the starts
        assert again["error"] == pytest.approx(row["error"], rel=1e-3)
    for row in one:
        # A certificate is above the true error, but for the quadrature of eight cells a side.
        assert row["error"] <= row["certificate"] * 1.02
        assert row.get("bound", 1e9) >= row["certificate"]
    errors = [row["error"] for row in one if "bound" in row]
    assert errors[-1] < 0.07 * errors[0]


def test_the_map_has_every_method(folder: Path) -> None:
    printed = run(1, "benchmarks/accuracy_map.py", "--quick", "--seeds", 1, "--out", folder)
    assert (folder / "square.png").stat().st_size > 20000
    rows = [json.loads(line) for line in (folder / "square.jsonl").read_text().splitlines()]
    methods = {row["method"] for row in rows}
    assert methods == {
        "P1",
        "P2",
        "Deep Ritz",
        "PINN",
        "K neurons",
        "mean field",
        "HYCO, physical",
        "HYCO, synthetic",
    }
    assert all(name in printed for name in methods)
    for row in rows:
        assert row["energy"] <= row["certificate"] * 1.01
    assert all(row["gap"] < 1e-6 for row in rows if row["method"] == "mean field")
    assert all(row["energy"] < row["bound"] for row in rows if row["method"] == "P1")
