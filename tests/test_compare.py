"""The comparison over seeds: resumed where it stopped, failures counted, quartiles right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

pytestmark = pytest.mark.serial


class Toy:
    """Errors that are known."""

    metrics = {"u": "error of u"}  # noqa: RUF012
    good_means = "below 0.5."

    def __init__(self) -> None:
        self.methods = {"ours": lambda seed, comm: {"u": 0.1 * (seed + 1), "solves": 3.0}, "fails": self.fails}

    @staticmethod
    def fails(seed: int, comm: Any) -> dict[str, float]:
        if seed % 2:
            raise ValueError("no convergence\nand more")
        return {"u": 1.0}

    def good(self, row: dict[str, Any]) -> bool:
        return row["u"] < 0.5


def test_a_table_counts_failures_as_infinite() -> None:
    import compare

    case = Toy()
    rows = [compare.one(run, name, seed) for name, run in case.methods.items() for seed in range(5)]
    text = compare.table(case, rows)
    assert "| ours | 0.3 (0.2 to 0.4) | 4 of 5 | 0 | 3 |" in text
    assert "| fails | 1 (1 to ∞) | 0 of 5 | 2 | – |" in text
    assert rows[6]["error"] == "ValueError: no convergence"
    assert compare.summary(case, rows)["ours"] == {"u": pytest.approx(0.3), "good": 4}


def test_rows_on_disk_are_read_again_and_a_cut_line_is_not(folder: Path) -> None:
    import compare

    rows = [{"method": "ours", "seed": s, "u": 0.1, "seconds": 1.0, "error": None} for s in range(2)]
    (folder / "rows.0.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:20])
    (folder / "rows.1.jsonl").write_text(json.dumps(rows[1] | {"seed": 7}) + "\n")
    assert sorted(compare.read(folder)) == [("ours", 0), ("ours", 7)]


def test_gains_are_by_seed() -> None:
    from comparisons.imperfect import _gain

    assert _gain(np.array([0.5, 0.8, 2.0]), np.ones(3)) == "20 % (2 of 3)"
    assert _gain(np.array([0.5, np.nan, np.nan]), np.ones(3)).startswith("-inf")


def test_sensors_are_carried_round_the_centre_of_their_grid() -> None:
    from comparisons.heat import AREAS, FRAMES, M, paths

    for area, low in AREAS.items():
        x = paths(area)
        middle = np.full(2, (low + 3.0) / 2)
        np.testing.assert_allclose(x.mean(axis=0), np.tile(middle, (100, 1)), atol=1e-12)
        # The distance from the centre shrinks like exp(−t/10), the symmetric part of M; the angle grows like t.
        offset = (x - middle) @ np.array([1.0, 1j])
        np.testing.assert_allclose(offset, offset[:, :1] * np.exp((-0.1 + 1j) * FRAMES), atol=1e-12)
        velocity = np.gradient(x, FRAMES, axis=1, edge_order=2)
        np.testing.assert_allclose(velocity, (x - middle) @ M.T, atol=2e-3)


def test_the_error_of_theta_does_not_depend_on_the_order_of_the_bumps() -> None:
    from comparisons.heat import TRUTH, bumps, theta_error

    A, c = TRUTH
    assert theta_error(bumps(TRUTH)) == 0.0
    assert theta_error(bumps((A[::-1].copy(), c[::-1].copy()))) == 0.0
    moved = np.array([[0.0, 0.0], [0.5, 0.0]]) * np.linalg.norm(c)
    off = bumps((A + np.array([0.0, np.linalg.norm(A)]), c + moved))
    assert theta_error(off) == pytest.approx(1.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "methods"),
    [
        ("darcy", ["physics only, prior"]),
        ("imperfect", ["right: physics only", "right: network only", "right: HYCO"]),
        ("helmholtz", ["physics only, one start"]),
        ("heat", ["physics only"]),
    ],
)
def test_compare_runs_and_goes_on(folder: Path, case: str, methods: list[str]) -> None:
    """The second call has nothing left to do, and prints the same table."""
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--case", case, "--seeds", "1", "--out", str(folder)]
    command += ["--methods", *methods]
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=240) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    table = (folder / "table.md").read_text()
    assert table.strip() in first.stdout
    assert table.strip() in second.stdout
    assert all(f"{m:34s} seed   0" in first.stdout for m in methods)
    assert "seed   0" not in second.stdout
    found = json.loads(first.stdout.splitlines()[-1])
    assert found["case"] == case
    assert (folder / f"{case}.png").stat().st_size > 5000


def test_a_method_that_is_not_there_is_named(folder: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--case", "darcy", "--out", str(folder)]
    found = subprocess.run([*command, "--methods", "magic"], capture_output=True, text=True, timeout=120)
    assert found.returncode != 0
    assert "there is no method 'magic'; see --list" in found.stdout + found.stderr
    assert "Traceback" not in found.stdout + found.stderr
