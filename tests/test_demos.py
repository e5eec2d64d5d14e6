"""The demos as a user runs them: the same table on any number of ranks, and one clear error for bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_script import ROOT, errors, mpirun, tracebacks

pytestmark = [pytest.mark.serial, pytest.mark.slow]

PLATE = ROOT / "demos" / "plate_with_hole.py"
SENSORS = ROOT / "demos" / "data" / "plate_sensors.csv"
FILES = {"summary.json", "history.csv", "fields.xdmf", "fields.h5", "plate_with_hole.png"}


def table(out: str) -> list[str]:
    """The lines of the table that plate_with_hole.py prints."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if "relative L²" in line)
    return lines[start : start + 5]


def numbers(value: Any) -> list[float]:
    """All numbers in nested lists and dictionaries but for timings, in order."""
    if isinstance(value, dict):
        return [x for k, v in sorted(value.items()) if k not in ("timings", "seconds") for x in numbers(v)]
    if isinstance(value, list):
        return [x for v in value for x in numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def history(folder: Path) -> np.ndarray:
    with open(folder / "history.csv", newline="") as file:
        return np.array([[float(x) for x in row] for row in list(csv.reader(file))[1:]])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# -- the plate with a hole -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Output folder and table of a short run on one rank."""
    folder = tmp_path_factory.mktemp("plate")
    run = mpirun(1, PLATE, "--rounds", "5", "--out", folder / "out", cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "out", table(run.stdout)


def test_the_plate_demo_writes_its_files(earlier: tuple[Path, list[str]]) -> None:
    out, lines = earlier
    assert {p.name for p in out.iterdir()} == FILES
    assert (out / "plate_with_hole.png").read_bytes().startswith(b"\x89PNG")
    rounds = history(out)
    assert rounds.shape[0] == 6, "a line for each round and one for the final state"
    np.testing.assert_array_equal(rounds[:, 0], range(6))
    fields = re.findall(r'Attribute Name="(\w+)"', (out / "fields.xdmf").read_text())
    assert fields == ["u_true", "u_physical", "u_synthetic", "kappa_true", "kappa"]
    # The table on the screen is that of the file.
    saved = summary(out)["table"]
    for line in lines[1:]:
        name, u_error = line[:16].strip(), float(line[16:].split()[0])
        assert u_error == pytest.approx(saved[name]["relative_l2_u"], rel=1e-5)
        assert 0.0 < u_error < 1.0
    assert len(saved) == len(lines) - 1 == 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_plate_demo_prints_the_same_table_on_more_ranks(
    earlier: tuple[Path, list[str]], tmp_path: Path, ranks: int
) -> None:
    out, lines = earlier
    run = mpirun(ranks, PLATE, "--rounds", "5", "--out", "out", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{ranks} rank(s)" in run.stdout
    assert table(run.stdout) == lines
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    np.testing.assert_allclose(numbers(summary(tmp_path / "out")), numbers(summary(out)), rtol=1e-8)
    np.testing.assert_allclose(history(tmp_path / "out"), history(out), rtol=1e-8)


def changed(line: int, text: str) -> str:
    """The sensor file with another line, counted from 1."""
    lines = SENSORS.read_text().splitlines()
    lines[line - 1] = text
    return "\n".join([*lines, ""])


NO_HOLE = """\
SetFactory("OpenCASCADE");
Rectangle(1) = {0, 0, 0, 2, 1};
MeshSize{ : } = 0.5;
Physical Surface("domain") = {1};
Physical Curve("left") = {4};
"""

BAD_FILES = {
    "text in the sensor file": (
        "sensors.csv",
        changed(5, "0.5,warm,1.0,0.05"),
        ["sensors.csv, line 5, column 'y': 'warm' is not a number"],
    ),
    "NaN in the sensor file": (
        "sensors.csv",
        changed(7, "0.5,0.5,nan,0.05"),
        ["sensors.csv, line 7, column 'value': nan is not finite"],
    ),
    "a sensor in the hole": (
        "sensors.csv",
        changed(9, "0.6,0.5,1.0,0.05"),
        ["1 of 40 sensors lie outside the mesh: line 9: (0.6, 0.5)", "correct or delete"],
    ),
    "no noise in the sensor file": ("sensors.csv", "x,y,value\n0.1,0.2,3\n", ["sensors.csv needs a column noise_std"]),
    "no such sensor file": ("sensors.csv", None, ["the sensor file", "sensors.csv", "cannot be read: No such file"]),
    "no such mesh": ("mesh.msh", None, ["the mesh file", "mesh.msh", "is not there"]),
    "a mesh file that is no mesh": ("mesh.msh", "warm\n", ["mesh.msh"]),
    "a mesh without its groups": ("mesh.geo", NO_HOLE, ["no physical groups ['hole', 'right']"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_end_the_plate_demo_with_one_error_and_leave_earlier_output(
    earlier: tuple[Path, list[str]], tmp_path: Path, case: str
) -> None:
    name, text, parts = BAD_FILES[case]
    if text is not None:
        (tmp_path / name).write_text(text)
    shutil.copytree(earlier[0], tmp_path / "out")
    before = contents(tmp_path / "out")
    option = "--sensors" if name.endswith(".csv") else "--mesh"
    run = mpirun(2, PLATE, "--rounds", "5", "--out", "out", option, name, cwd=tmp_path)
    one_clear_error(run, *parts)
    assert contents(tmp_path / "out") == before


def one_clear_error(run: Any, *parts: str) -> None:
    assert run.returncode != 0
    assert tracebacks(run) == 0, run.stderr
    told = errors(run)
    assert len(told) == 1, run.stderr
    for part in parts:
        assert part in told[0]
    assert "written to" not in run.stdout


def test_an_output_path_that_is_a_file_ends_the_plate_demo_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder\n")
    run = mpirun(3, PLATE, "--rounds", "5", "--out", "out/deeper", cwd=tmp_path)
    one_clear_error(run, "the output folder 'out/deeper' cannot be written", "choose another one")
    assert "physics only" not in run.stdout, "before any work"
    assert contents(tmp_path) == {"out": b"a file, not a folder\n"}


def test_a_number_of_rounds_that_is_none_ends_the_plate_demo_with_one_error(tmp_path: Path) -> None:
    one_clear_error(mpirun(2, PLATE, "--rounds", "-1", cwd=tmp_path), "rounds must be a number of rounds, not -1")


def test_the_sensors_of_the_plate_are_what_their_script_makes(tmp_path: Path) -> None:
    gmsh = pytest.importorskip("gmsh")
    if not gmsh.GMSH_API_VERSION.startswith("4.13"):
        pytest.skip("another version of gmsh makes another mesh")
    run = mpirun(1, ROOT / "demos" / "make_plate_data.py", "--out", "made.csv", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    made, kept = (np.genfromtxt(path, delimiter=",", skip_header=3) for path in (tmp_path / "made.csv", SENSORS))
    assert kept.shape == (40, 4)
    np.testing.assert_allclose(made, kept, rtol=1e-7)


# -- Helmholtz -------------------------------------------------------------------------------------------------


def test_the_helmholtz_demo_gives_the_same_numbers_on_one_and_two_ranks(tmp_path: Path) -> None:
    script = ROOT / "demos" / "helmholtz.py"
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        run = mpirun(ranks, script, "--seeds", "1", "--rounds", "4", "--warm-up", "3", "--out", out, cwd=tmp_path)
        assert run.returncode == 0, run.stdout + run.stderr
        assert {p.name for p in out.iterdir()} == {"summary.json", "history.csv", "helmholtz.png"}
        assert history(out).shape[0] == 5
        found.append(summary(out))
        printed = next(line for line in run.stdout.splitlines() if line.startswith("seed   0"))
        (row,) = found[-1]["rows"]
        columns = ("hyco_parameters", "physics_parameters", "hyco_physical_u", "hyco_synthetic_u", "physics_u")
        assert [float(x) for x in printed.split()[2:7]] == pytest.approx([row[c] for c in columns], abs=6e-5)
    np.testing.assert_allclose(numbers(found[1]), numbers(found[0]), rtol=1e-8)
    one_clear_error(mpirun(2, script, "--seeds", "0", cwd=tmp_path), "--seeds must be at least 1, not 0")
