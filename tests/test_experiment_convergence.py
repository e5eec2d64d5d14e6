"""hyco-fem convergence: rates of the theory, what the mesh changes at the sensors, and the guaranteed bound."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from test_cli import log_as_before, status  # noqa: F401
from test_experiment import changed, written
from test_script import mpirun

import hyco_fem as hf
from hyco_fem.experiment import convergence as module
from hyco_fem.experiment.configuration import read_experiment
from hyco_fem.experiment.convergence import convergence
from hyco_fem.experiment.refinement import refined_with_groups
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.parallel import sum_array

WORLD = MPI.COMM_WORLD
MESHES = Path(__file__).parents[1] / "meshes"

WALLS: dict[str, Any] = {"name": "poisson", "arguments": {"f": 3.0}}
SQUARE: dict[str, Any] = {"shape": "rectangle", "cells": 6}
CONSTANT: dict[str, Any] = {"kappa": {"type": "scalar", "value": 2.0, "degree": 0}}
SENSORS = "x,y,value,noise_std\n0.5,0.5,0.1,0.01\n0.2,0.7,0.05,0.02\n"


def square(folder: Path, sensors: str = SENSORS, **tables: Any) -> Path:
    """−2 Δu = 3 on the unit square, u = 0 on its boundary."""
    base = changed(mesh=SQUARE, problem=WALLS, coefficients=CONSTANT, game={"rounds": 1})
    return written(folder, base | tables, sensors)


def table_of(folder: Path) -> dict[str, Any]:
    """convergence.json."""
    WORLD.Barrier()
    found: dict[str, Any] = json.loads((folder / "convergence.json").read_text(encoding="utf-8"))
    return found


def test_p1_and_p2_have_the_rates_of_the_theory(folder: Path) -> None:
    """On the square: 2 and 1 for P1, 3 and 2 for P2 (the corners of a square cost P2 a little)."""
    convergence(read_experiment(square(folder)), levels=3, degrees=[1, 2], folder=folder / "out")
    found = table_of(folder / "out")
    assert [(r["degree"], r["level"]) for r in found["runs"]] == [(p, k) for p in (1, 2) for k in range(3)]
    rate = [i for i, name in enumerate(found["columns"]) if name == "rate"]
    for degree, first in ((1, 0), (2, 3)):
        last = found["rows"][first + 2]
        assert last[rate[0]] == pytest.approx(degree + 1, abs=0.25)
        assert last[rate[1]] == pytest.approx(degree, abs=0.25)
        assert found["rows"][first][rate[0]] is None
    assert [r["dofs"] for r in found["runs"]] == [49, 169, 625, 169, 625, 2401]
    assert "errors are against elements of degree 3 on the mesh of level 2" in found["notes"]
    assert (folder / "out" / "convergence.png").stat().st_size > 5000
    with (folder / "out" / "convergence.csv").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 7


def test_errors_are_those_of_the_exact_solution(folder: Path, comm: MPI.Comm) -> None:
    """The problem in a Python file: u = sin πx sin πy, P1, and κ = 1 unknown."""
    path = square(
        folder,
        problem={"python": "mine.py", "function": "wave"},
        coefficients={"kappa": {"type": "scalar", "value": 1.0}},
    )
    if WORLD.rank == 0:
        (folder / "mine.py").write_text(WAVE, encoding="utf-8")
    WORLD.Barrier()
    convergence(read_experiment(path), levels=3, folder=folder / "out")
    found = table_of(folder / "out")
    assert any("the mesh of level 3, one more than in the table" in note for note in found["notes"])
    (first, *_) = found["runs"]
    plate = mesh.create_rectangle(comm, [[0.0, 0.0], [1.0, 1.0]], [6, 6])
    x = ufl.SpatialCoordinate(plate)
    u = ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
    problem = hf.catalogue.poisson(plate, f=2 * ufl.pi**2 * u)
    hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
    exact = hf.error_norms(problem.u, u, degree=10)
    # The reference, P1 on cells an eighth as large, is off by 1/64 in L², and is orthogonal to the rest in H¹.
    assert first["L2"] == pytest.approx(exact.L2, rel=0.04)
    assert first["H1"] == pytest.approx(exact.H1, rel=0.02)


WAVE = """
import ufl
from dolfinx import fem
import hyco_fem as hf

def wave(plate):
    x = ufl.SpatialCoordinate(plate.mesh)
    f = 2 * ufl.pi**2 * ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
    kappa = fem.Function(fem.functionspace(plate.mesh, ("DG", 0)), name="kappa")
    kappa.x.array[:] = 1.0
    return hf.catalogue.poisson(plate.mesh, kappa=kappa, f=f)
"""


def test_the_change_at_the_sensors_is_told_in_units_of_the_noise(folder: Path, comm: MPI.Comm) -> None:
    """By hand: u of the first level and of the reference at two sensors with noise of their own."""
    convergence(read_experiment(square(folder)), levels=2, folder=folder / "out")
    found = table_of(folder / "out")
    values = []
    for cells, degree in ((6, 1), (12, 2)):
        plate = mesh.create_rectangle(comm, [[0.0, 0.0], [1.0, 1.0]], [cells, cells])
        problem = hf.catalogue.poisson(plate, degree=degree, kappa=2.0, f=3.0)
        hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
        points = hf.Points(plate, [[0.5, 0.5], [0.2, 0.7]])
        values.append(points.gather(points.evaluate(problem.u)))
    ratio = np.abs(values[1] - values[0]) / np.array([0.01, 0.02])
    assert found["runs"][0]["at_sensors"] == pytest.approx(np.sqrt(np.mean(ratio**2)), rel=1e-8)
    assert found["runs"][0]["largest"] == pytest.approx(ratio.max(), rel=1e-8)
    said = next(note for note in found["notes"] if note.startswith("degree 1: discretisation error"))
    assert said.endswith("σ at most: too coarse; below 0.1 σ from level 1 on (169 dofs)")


def test_the_bound_is_above_the_error(folder: Path) -> None:
    """C_h ‖f‖ with f = 3 on the unit square, for a constant κ, and for one that varies inside cells."""
    convergence(read_experiment(square(folder)), levels=2, folder=folder / "out")
    bump = {"kappa": {"type": "bumps", "amplitudes": [2.0], "centres": [[0.4, 0.6]], "widths": 0.4, "background": 1.0}}
    convergence(read_experiment(square(folder, coefficients=bump)), levels=2, folder=folder / "bump")
    for out, factor in ((folder / "out", 3.0), (folder / "bump", 10.0)):
        found = table_of(out)
        assert found["columns"][-2:] == ["energy", "bound"]
        for run in found["runs"]:
            assert run["energy"] < run["bound"] < factor * run["energy"]
    domain = mesh.create_rectangle(WORLD, [[0.0, 0.0], [1.0, 1.0]], [6, 6])
    assert table_of(folder / "out")["runs"][0]["bound"] == pytest.approx(
        hf.explicit_bound(domain, 2.0).energy(3.0), rel=1e-6
    )


@pytest.mark.parametrize(
    ("tables", "part"),
    [
        ({}, None),
        ({"problem": WALLS | {"conditions": [{"type": "dirichlet", "value": 1.0}]}}, "conditions[0] holds u = 1.0"),
        (
            {
                "problem": WALLS
                | {
                    "conditions": [
                        {"type": "dirichlet", "value": 0.0, "facets": "left"},
                        {"type": "flux", "value": 2.0, "facets": "top"},
                    ]
                }
            },
            "conditions[1] is a flux that is not zero",
        ),
        (
            {
                "problem": WALLS
                | {
                    "conditions": [
                        {"type": "dirichlet", "value": 0.0, "facets": "left"},
                        {"type": "robin", "coefficient": 2.0, "ambient": 0.0, "facets": "top"},
                    ]
                }
            },
            "conditions[1] is a Robin condition",
        ),
        ({"problem": {"name": "reaction_diffusion", "arguments": {"eta": 1.0, "f": 1.0}}}, "it is for −∇·(κ∇u) = f"),
        (
            {"coefficients": {"kappa": {"type": "scalar", "value": 1.0, "degree": 2}}},
            "for a coefficient of degree 0 or 1",
        ),
        ({"coefficients": {"f": {"type": "scalar", "value": 1.0}}, "problem": {"name": "poisson"}}, "and f is unknown"),
    ],
)
def test_without_its_assumptions_there_is_a_sentence_and_no_bound(
    folder: Path, tables: dict[str, Any], part: str | None
) -> None:
    convergence(read_experiment(square(folder, **tables)), levels=2, folder=folder / "out")
    found = table_of(folder / "out")
    told = [note for note in found["notes"] if note.startswith("no guaranteed bound: ")]
    assert ("bound" in found["columns"]) == (part is None)
    assert (not told) if part is None else part in told[0]


def test_a_mesh_of_a_file_is_refined_with_its_groups(comm: MPI.Comm) -> None:
    """Lengths and areas of the groups stay; four times the cells each time."""
    plate = hf.read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=0.2)

    def sizes(now: hf.MeshAndTags) -> dict[str, float]:
        found = {}
        for name, (dim, tag) in now.names.items():
            kind, tags = ("dx", now.cell_tags) if dim == 2 else ("ds", now.facet_tags)
            one = fem.Constant(now.mesh, 1.0) * ufl.Measure(kind, domain=now.mesh, subdomain_data=tags)(tag)
            found[name] = float(sum_array(comm, np.array([fem.assemble_scalar(fem.form(one))]))[0])
        return found

    fine = refined_with_groups(plate, 2)
    before, after = sizes(plate), sizes(fine)
    assert set(before) == {"left", "right", "insulated", "hole", "plate"}
    assert after == pytest.approx(before)
    n, m = (p.mesh.topology.index_map(2).size_global for p in (plate, fine))
    assert m == 16 * n


def test_a_file_and_a_run_are_studied_at_what_was_found(folder: Path) -> None:
    """--at: the numbers in summary.json; with them in the file itself the table is the same."""
    path, out = (
        square(folder, mesh={"file": str(MESHES / "l_shape.geo"), "mesh_size": 0.4}, sensors=INSIDE),
        folder / "run",
    )
    assert status("run", path, "--set", f"output.folder={out}") == 0
    WORLD.Barrier()
    found = json.loads((out / "summary.json").read_text(encoding="utf-8"))["parameters"]["kappa.raw"]
    assert found != 2.0
    assert status("convergence", path, "--levels", "2", "--at", out) == 0
    there = table_of(out)
    assert f"coefficients: those found in {out}" in there["notes"]
    again = f"coefficients.kappa.value={found}"
    assert status("convergence", path, "--levels", "2", "--set", again, "--out", folder / "own") == 0
    own = table_of(folder / "own")
    assert [r["L2"] for r in own["runs"]] == pytest.approx([r["L2"] for r in there["runs"]], rel=1e-9)
    assert status("convergence", path, "--levels", "2", "--at", out, "--set", again) == 2, "another experiment"


INSIDE = "x,y,value,noise_std\n-0.5,0.5,0.1,0.01\n0.5,0.7,0.05,0.02\n"


def test_levels_that_fail_are_named_and_the_others_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference fails, and then one level: the finest one that is left stands in for the reference."""
    real = module._Solver.on

    def fails(self: Any, mesh: Any) -> Any:
        cells = mesh.mesh.topology.index_map(2).size_global
        if self.experiment.problem.arguments.get("degree") == 2 or cells == 288:
            raise hf.SolveError("no convergence\nand more")
        return real(self, mesh)

    monkeypatch.setattr(module._Solver, "on", fails)
    convergence(read_experiment(square(folder)), levels=3, folder=folder / "out")
    found = table_of(folder / "out")
    assert [r["error"] for r in found["runs"]] == [None, "SolveError: no convergence"]
    assert any("against the solution of level 2, which is no row" in note for note in found["notes"])
    assert "failed: level 1, degree 1: SolveError: no convergence" in found["notes"]
    assert found["runs"][0]["L2"] > 0


def test_a_bound_that_fails_leaves_its_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> float:
        raise hf.SolveError("no eigenvalue")

    monkeypatch.setattr(module, "guaranteed", fails)
    convergence(read_experiment(square(folder)), levels=2, folder=folder / "out")
    found = table_of(folder / "out")
    assert [r["error"] for r in found["runs"]] == [None, None]
    assert "bound" not in found["columns"]
    assert "failed: the bound of level 1: SolveError: no eigenvalue" in found["notes"]


def test_without_any_level_there_is_an_error_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, mesh: Any) -> Any:
        raise hf.SolveError("no convergence")

    monkeypatch.setattr(module._Solver, "on", fails)
    with pytest.raises(RuntimeError, match="no level could be solved: SolveError: no convergence"):
        convergence(read_experiment(square(folder)), levels=2, folder=folder / "none")
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--levels", "1"), "error: --levels: must be at least 2, not 1"),
        (("--degrees", "0"), "error: --degrees: must be at least 1, not 0"),
        (("--degrees", "one"), "argument --degrees: must be whole numbers, such as 1,2, not 'one'"),
        (("--at", "nowhere"), "summary.json' cannot be read (No such file or directory); it is there when a run has"),
        (("--set", "sensors.file=none.csv"), "error: sensors.file: the file"),
    ],
)
def test_what_does_not_fit_is_one_message(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    assert status("convergence", square(folder), "--out", folder / "out", *arguments) == 2
    _, errors = capfd.readouterr()
    assert not (folder / "out").exists()
    assert (part in errors) if WORLD.rank == 0 else errors == ""


def test_a_degree_that_cannot_be_chosen_and_a_field_are_refused(folder: Path) -> None:
    path = square(folder, problem={"python": "mine.py", "function": "wave"}, coefficients={"kappa": {"type": "nodal"}})
    if WORLD.rank == 0:
        (folder / "mine.py").write_text(WAVE, encoding="utf-8")
        (folder / "run").mkdir()
        (folder / "run" / "summary.json").write_text('{"parameters": {"kappa.values.rms": 1.0}}', encoding="utf-8")
        (folder / "broken").mkdir()
        (folder / "broken" / "summary.json").write_text("{", encoding="utf-8")
    WORLD.Barrier()
    experiment = read_experiment(path)
    with pytest.raises(ConfigurationError, match=r"problem.arguments.degree: the function 'wave' is given none"):
        convergence(experiment, degrees=[2], folder=folder / "out")
    with pytest.raises(ConfigurationError, match=r"--at: kappa.values is a field or a network"):
        convergence(experiment, at=folder / "run", folder=folder / "out")
    with pytest.raises(ConfigurationError, match=r"is no summary of a run"):
        convergence(experiment, at=folder / "broken", folder=folder / "out")


@pytest.mark.slow
@pytest.mark.serial
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    path = square(tmp_path, mesh={"file": str(MESHES / "l_shape.geo"), "mesh_size": 0.4}, sensors=INSIDE)
    tables = []
    for n in (1, 2):
        run = mpirun(
            n, "-m", "hyco_fem.cli", "convergence", path, "--levels", "2", "--out", f"r{n}", cwd=tmp_path, module=()
        )
        assert run.returncode == 0, run.stderr
        runs = table_of(tmp_path / f"r{n}")["runs"]
        tables.append([[r[m] for m in ("L2", "H1", "at_sensors", "largest", "energy", "bound")] for r in runs])
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-6)
