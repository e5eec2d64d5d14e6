"""The demo that finds a whole field: the same numbers on any number of ranks, and a misfit of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_script import ROOT, mpirun

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def run(ranks: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    done = mpirun(ranks, ROOT / "demos" / "conductivity_field.py", "--cells", "16", "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out" / "conductivity_field.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out" / "total_variation.xdmf").exists()
    return json.loads((folder / "out" / "summary.json").read_text())


def test_both_regularisers_explain_the_data_and_see_the_field(tmp_path: Path) -> None:
    one, two = (run(ranks, tmp_path / str(ranks)) for ranks in (1, 2))
    for name, row in one["table"].items():
        assert row["misfit"] == pytest.approx(1.0, abs=0.011), name
        assert row["relative_l2_m"] < 0.75, name
        assert row["relative_l2_u"] < 0.02, name
        for key in ("weight", "misfit", "relative_l2_m", "relative_l2_u"):
            assert two["table"][name][key] == pytest.approx(row[key], rel=1e-3), (name, key)
    assert one["l_curve"]["weight"] == two["l_curve"]["weight"]
