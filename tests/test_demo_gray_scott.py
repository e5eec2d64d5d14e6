"""The Gray–Scott demo, short, on one rank and two; and the symmetries and the reference of the comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from dolfinx import fem
from test_script import ROOT, mpirun

import hyco_fem as hf

sys.path[:0] = [str(ROOT / "demos"), str(ROOT / "benchmarks")]
import gray_scott as demo  # noqa: E402

COMM = MPI.COMM_WORLD


@pytest.mark.parametrize("cells", [1, 2, 5, 6])
def test_the_eighth_is_half_of_the_quarter(cells: int) -> None:
    domain = demo.eighth(COMM, cells)
    area = COMM.allreduce(fem.assemble_scalar(fem.form(fem.Constant(domain, 1.0) * ufl.dx)))
    assert area == pytest.approx(demo.HALF**2 / 2)
    assert domain.topology.index_map(2).size_global == cells**2


def test_the_network_has_the_symmetries_of_the_start() -> None:
    net = demo.network(100.0, 8)
    x = torch.from_numpy(np.random.default_rng(0).uniform(-50.0, 50.0, (20, 3))).abs()
    there = net(x)
    for image in (x * torch.tensor([-1.0, 1.0, 1.0]), x * torch.tensor([1.0, -1.0, 1.0]), x[:, [1, 0, 2]]):
        torch.testing.assert_close(net(image), there)
    folded = torch.from_numpy(np.column_stack([demo.fold(-x[:, :2].numpy()), x[:, 2].numpy()]))
    torch.testing.assert_close(net(folded), there)


def test_steps_are_graded_and_end_at_the_end() -> None:
    for end, step in ((60.0, 1.0), (400.0, 0.5), (2000.0, 1.0)):
        steps = np.array(demo.graded(end, step))
        assert steps.sum() == pytest.approx(end)
        assert np.all(np.diff(steps) >= 0)
        assert (steps[0], steps[-1]) == (step / 32, step)


def test_ghosts_are_on_frames_and_fresh() -> None:
    model = demo.reactor(COMM, demo.diffusivities(*demo.GUESS), 60.0, cells=4)
    ghosts = demo.FrameGhosts(200, 20.0).on(model.domain)
    first, second = ghosts.draw(0), ghosts.draw(1)
    times = first.gather(first.t)
    assert set(times) == {20.0, 40.0, 60.0}
    assert not np.array_equal(times, second.gather(second.t))
    np.testing.assert_array_equal(times, first.gather(ghosts.draw(0).t))
    model.close()


@pytest.mark.serial
def test_the_reference_is_of_fourth_order_in_time_and_solves_the_same_equations() -> None:
    from comparisons import gray_scott as case

    coarse, middle, fine, best = (case.spectral(24, dt, 40.0)[1] for dt in (1.0, 0.5, 0.25, 0.0625))
    errors = [np.abs(c - best).max() for c in (coarse, middle, fine)]
    assert errors[0] / errors[1] > 10
    assert errors[1] / errors[2] > 10
    half = case.evaluate(np.stack([case.disc(128)] * 2), np.array([[demo.RADIUS, 0.0], [0.0, 0.0], [30.0, 20.0]]))
    np.testing.assert_allclose(half[:, 0], [0.5, 1.0, 0.0], atol=0.1)
    # The same start for both: the disc on the elements' side is blurred, so compare a fine solution of each.
    model = demo.reactor(MPI.COMM_SELF, demo.diffusivities(*demo.TRUE), 60.0, cells=32, degree=3, start=case.sharp)
    points = hf.SpaceTimePoints(model.V.mesh, demo.fold(np.random.default_rng(0).uniform(-50, 50, (300, 2))), 40.0)
    with torch.no_grad():
        found = model(points)
    real = case.evaluate(case.spectral(128, 0.5, 40.0)[1], points.x[:, :2].numpy())
    assert np.linalg.norm(found.numpy() - real) < 0.02 * np.linalg.norm(real)
    model.close()


def played(ranks: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    small = ("--cells", "10", "--end", "60", "--steps", "60", "--rounds", "2")
    done = mpirun(ranks, ROOT / "demos" / "gray_scott.py", *small, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out" / "gray_scott.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out" / "gray_scott.gif").read_bytes().startswith(b"GIF8")
    return json.loads((folder / "out" / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.serial
def test_the_game_is_the_same_on_any_ranks_and_better_than_the_network(tmp_path: Path) -> None:
    one, two = (played(ranks, tmp_path / str(ranks)) for ranks in (1, 2))
    assert one["errors"]["HYCO: network"] < one["errors"]["network alone"]
    assert one["errors"]["HYCO: solver"] < one["errors"]["network alone"]
    for name, found in one["diffusivities"].items():
        assert two["diffusivities"][name] == pytest.approx(found, rel=1e-3), name
