"""The demo of imperfect physics: small, serially and on two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demos" / "imperfect_physics.py"


def played(folder: Path, ranks: int, *options: str) -> dict[str, float]:
    """Errors by name."""
    out = folder / f"on_{ranks}"
    command = [sys.executable, "-m", "mpi4py", str(DEMO), "--cells", "8", "--starts", "8", "--out", str(out), *options]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (out / "imperfect_physics.png").stat().st_size > 20000
    return json.loads((out / "summary.json").read_text())["errors"]


@pytest.mark.slow
@pytest.mark.serial
def test_the_network_corrects_the_physics_on_any_ranks(folder: Path) -> None:
    one, two = played(folder, 1), played(folder, 2)
    assert one["HYCO, synthetic model"] < min(one["physics only"], one["network only"])
    # Long chains of Gauss–Newton steps make rounding grow.
    assert two == pytest.approx(one, rel=2e-2)
