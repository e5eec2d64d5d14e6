"""The demo with moving sensors: small, serially and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_script import ROOT, errors, mpirun

pytestmark = [pytest.mark.serial, pytest.mark.slow]

DEMO = ROOT / "demos" / "heat_moving_sensors.py"


def table(folder: Path, ranks: int) -> dict[str, Any]:
    folder.mkdir()
    run = mpirun(
        ranks, DEMO, "--cells", "8", "--steps", "24", "--corrections", "1", "--out", "out", cwd=folder, timeout=600.0
    )
    assert run.returncode == 0, run.stdout + run.stderr
    out = folder / "out"
    assert (out / "heat_moving_sensors.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "heat_moving_sensors.gif").read_bytes().startswith(b"GIF89a")
    return json.loads((out / "summary.json").read_text())["table"]


def test_the_network_keeps_the_bump_that_no_sensor_sees(tmp_path: Path) -> None:
    one, two = (table(tmp_path / str(ranks), ranks) for ranks in (1, 2))
    for found in (one, two):
        # The bump among the sensors is found by both; the other one only by HYCO.
        for name in ("physics only", "HYCO"):
            np.testing.assert_allclose(found[name]["amplitudes"][0], 3.0, rtol=0.02)
            np.testing.assert_allclose(found[name]["centres"][0], [1.0, 1.0], atol=0.02)
        assert found["HYCO, after one round"]["u"] < 0.7 * found["physics only"]["u"]
        assert found["HYCO"]["u"] < 0.5 * found["physics only"]["u"]
        assert found["HYCO"]["theta"] < 0.8
    # The first answer has not had the time to make rounding grow.
    assert two["start"]["u"] == pytest.approx(one["start"]["u"], rel=1e-8)
    assert two["HYCO, after one round"]["u"] == pytest.approx(one["HYCO, after one round"]["u"], rel=2e-2)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    run = mpirun(1, DEMO, "--cells", "2", cwd=tmp_path)
    assert run.returncode != 0
    assert "--cells of 4 or more" in errors(run)[0]
