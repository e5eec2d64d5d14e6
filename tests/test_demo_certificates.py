"""The demo of certificates: small, serially and on two ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[1] / "demos" / "certificates.py"


def played(folder: Path, ranks: int) -> dict[str, Any]:
    """What the demo has saved."""
    out = folder / f"on_{ranks}"
    command = [sys.executable, "-m", "mpi4py", str(DEMO), "--rounds", "30", "--cells", "300", "--out", str(out)]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (out / "certificates.png").stat().st_size > 20000
    return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.serial
def test_every_certificate_of_the_demo_holds_on_any_ranks(folder: Path) -> None:
    one, two = played(folder, 1), played(folder, 2)
    assert len(one["square"]) == 7
    levels = [*one["l_shape"]["uniform"], *one["l_shape"]["adaptive"]]
    for row in (*one["square"], *levels):
        assert row["error"] <= row["certificate"]
    for row, again in zip(one["square"], two["square"], strict=True):
        assert again["certificate"] == pytest.approx(row["certificate"], rel=1e-6)
    for level, again in zip(levels, [*two["l_shape"]["uniform"], *two["l_shape"]["adaptive"]], strict=True):
        assert again == pytest.approx(level, rel=1e-6)
    assert one["slopes"]["adaptive"]["error"] < one["slopes"]["uniform"]["error"] < -0.28
