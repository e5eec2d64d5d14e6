"""The demos that fit by least squares find the truth within their error bars, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_script import ROOT, mpirun

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def run(ranks: int, name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Summary of a demo."""
    done = mpirun(ranks, ROOT / "demos" / f"{name}.py", *options, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chosen by size and symmetry" in done.stdout
    (picture,) = (folder / "out").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "out" / "summary.json").read_text())


def flat(values: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(v) for _, v in sorted(values.items())])


@pytest.mark.parametrize("dim", [2, 3])
def test_the_inclusion_is_found_within_the_error_bars(tmp_path: Path, dim: int) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    options = ("--dim", str(dim), "--rounds", "3")
    one = run(1, "elasticity_inclusion", tmp_path / "1", *options)
    fit, truth = one["least_squares"], one["truth"]
    found, errors = fit["parameters"], fit["standard_errors"]
    for name, key in (("background", "background"), ("amplitudes", "amplitude"), ("widths", "width")):
        difference = abs(np.ravel(found[f"E.{name}"])[0] - truth[key])
        assert difference < 3 * np.ravel(errors[f"E.{name}"])[0], name
    off = np.abs(np.ravel(found["E.centres"]) - truth["centre"][:dim])
    assert np.all(off < 3 * np.ravel(errors["E.centres"]))
    assert one["table"]["least squares"]["relative_l2_u"] < 0.01
    if dim == 2:
        two = run(2, "elasticity_inclusion", tmp_path / "2", *options)
        np.testing.assert_allclose(flat(two["least_squares"]["parameters"]), flat(found), rtol=1e-5)


def test_viscosity_and_inflow_are_found_within_the_error_bars(tmp_path: Path) -> None:
    summary = run(2, "navier_stokes_viscosity", tmp_path)
    for name, value in summary["truth"].items():
        assert abs(summary["found"][name] - value) < 3 * summary["errors"][name], name
    assert summary["converged"]
    assert summary["solves"] < 20
    assert summary["relative_l2_u"] < 0.02
