"""Reports: what the files say is on the page, the page needs nothing else, and what is wrong is said in a sentence."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem
from dolfinx import mesh as dmesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.image import imread
from test_experiment import TABLE, changed, frozen, written

import hyco_fem as hf
from hyco_fem.experiment.configuration import read_experiment
from hyco_fem.experiment.report import report_page, write_report
from hyco_fem.experiment.report_files import KINDS
from hyco_fem.experiment.report_html import duration, number
from hyco_fem.experiment.report_plot import labels, scale, thinned
from hyco_fem.experiment.report_raster import averaged
from hyco_fem.experiment.run import run_experiment
from hyco_fem.experiment.tables import ConfigurationError

WORLD = MPI.COMM_WORLD

_VOID = {"meta", "br", "img"}


class Parsed(HTMLParser):
    """A page, of which every tag is closed, with its ids, references, headings and rows of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.unnamed: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.exact: list[float] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs)
        assert not any(name.startswith("on") for name in found)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += [found[name] or "" for name in ("href", "src", "action", "data", "srcset") if name in found]
        if (tag == "img" and not found.get("alt")) or (
            tag == "svg" and not found.get("aria-label") and found.get("aria-hidden") != "true"
        ):
            self.unnamed.append(tag)
        if tag == "th":
            assert found.get("scope") in ("col", "row")
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "data":
            self.exact.append(float(found["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The first row with this heading."""
        return next(row for row in self.rows if row[0] == name)


def checked(page: str) -> Parsed:
    """The page, when it is whole and needs nothing from elsewhere."""
    assert page.startswith("<!DOCTYPE html>")
    parsed = Parsed(page)
    assert "script" not in re.findall(r"<(\w+)", page)
    assert not re.search(r"url\(|@import|<link|<base", page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    for reference in parsed.references:
        assert reference.startswith("data:image/") or reference[0] == "#", reference
        assert not reference.startswith("#") or reference[1:] in parsed.ids
    assert parsed.unnamed == []
    return parsed


def report(folder: Path, **arguments: Any) -> Parsed:
    """The page of a folder, written by all ranks."""
    return checked(write_report(folder, WORLD, **arguments).read_text(encoding="utf-8"))


def on_root(work: Callable[[], object]) -> None:
    """Do something on rank 0, before the others go on."""
    if WORLD.rank == 0:
        work()
    WORLD.Barrier()


def played(folder: Path, name: str = "out", table: dict[str, Any] = TABLE, rounds: int = 4, **more: Any) -> Path:
    """A run of the small experiment; its output folder."""
    path = written(folder, copy.deepcopy(table) | more)
    run_experiment(read_experiment(path, [f"game.rounds={rounds}"], folder=folder / name), WORLD)
    WORLD.Barrier()
    return folder / name


SUMMARY: dict[str, Any] = {
    "stop": "rounds",
    "rounds": 2,
    "parameters": {"k.a": [1.25, 1e-7], "k.b": None},
    "last": {"misfit_physical": 0.5},
    "timings": {"total": 75.0, "solve": 25.0},
}
HISTORY = 'round,misfit_physical,interaction,"k.a[0]","k.a[1]"\n0,2,1,1,0\n1,1,0.5,1.125,0\n2,0.5,0.25,1.25,1e-7\n'


def left(folder: Path, summary: dict[str, Any] | None = SUMMARY, history: str | None = HISTORY) -> Path:
    """What a script leaves, written on rank 0."""

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        if history is not None:
            (folder / "history.csv").write_text(history, encoding="utf-8")

    on_root(write)
    return folder


# -- a run -----------------------------------------------------------------------------------------------------


def test_a_run_is_on_its_page_with_the_numbers_of_its_summary(folder: Path) -> None:
    out = played(folder, title="Heat & <script>alert('x')</script>")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    page = report(out)
    assert page.headings == ["Results", "Curves", "Fields", "Configuration", "Environment"]
    assert "Heat & <script>alert('x')</script>" in page.text
    assert "ended after 4 rounds: all rounds were played" in page.text
    for name in ("kappa.amplitudes[0]", "kappa.centres[0,0]", "kappa.centres[0,1]"):
        assert summary["last"][name] in page.exact
        assert page.row(name)[2] == number(summary["last"][name])
    assert page.row("kappa.amplitudes[0]")[1] == "1"
    assert page.row("Lphy")[2] == number(summary["last"]["misfit_physical"])
    nash = [page.row(name)[2] for name in ("|∇θ Jphy|", "|∇φ Jsyn|")]
    assert nash == [number(value) for value in summary["nash_residual"]]
    assert page.row("dolfinx")[1] == summary["versions"]["dolfinx"]
    assert page.row("ranks")[1] == str(WORLD.size)
    assert sum(r.startswith("data:") for r in page.references) == 8  # four fields, each with its bar of colours


def test_what_was_chosen_is_told_from_the_defaults(folder: Path) -> None:
    text = write_report(played(folder), WORLD).read_text(encoding="utf-8")
    assert "<b>width = 4</b>" in text
    assert '<span class="default">activation = &quot;tanh&quot;</span>' in text
    assert "<b>b1 = 2.0</b>" in text
    assert '<span class="default">a1 = 1.0</span>' in text
    assert "<b>value = 0.0</b>" in text  # of a list of tables
    assert '<span class="default">lr = 0.001</span>' in text  # of a table that is a default as a whole


def test_the_page_goes_where_it_is_asked_for_and_replaces_an_earlier_one(folder: Path) -> None:
    out = left(folder / "out")
    assert write_report(out, WORLD) == out / "report.html"
    path = folder / "deep" / "page.html"
    assert write_report(out, WORLD, path) == path
    on_root(lambda: path.write_text("old", encoding="utf-8"))
    checked(write_report(out, WORLD, path).read_text(encoding="utf-8"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["page.html"]


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(folder: Path) -> None:
    """Its last line is half written, its summary that of an earlier part."""
    out = played(folder)

    def go_on() -> None:
        lines = (out / "history.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (out / "history.csv.running").write_text("".join(lines[:4]) + lines[4][:20], encoding="utf-8")

    on_root(go_on)
    page = report(out)
    assert "The run has not ended: 3 of 4 rounds so far" in page.text
    assert f"hyco-fem resume {out} goes on from round 4" in page.text
    assert "fields of the part that had ended before" in page.text
    column = [line.split(",")[1] for line in (out / "history.csv").read_text(encoding="utf-8").splitlines()]
    assert page.row("Lphy")[2] == number(float(column[3]))


def test_a_run_that_was_killed_before_its_first_round_has_a_page(folder: Path) -> None:
    out = played(folder)
    on_root(lambda: [(out / n).unlink() for n in ("summary.json", "history.csv", "fields.xdmf")])
    on_root(lambda: (out / "history.csv.running").write_text("round,misf", encoding="utf-8"))
    page = report(out)
    assert "The run has not ended: no round so far" in page.text
    assert page.headings == ["Configuration"]
    assert (
        "Not in this folder: history.csv (curves), fields.xdmf (pictures; it is written when the run ends)" in page.text
    )


def test_a_run_that_a_signal_has_stopped_says_how_it_goes_on(folder: Path) -> None:
    out = played(folder)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    WORLD.Barrier()
    left(out, summary | {"stop": "signal", "rounds": 3}, None)
    assert f"stopped by a signal after 3 of 4 rounds; hyco-fem resume {out} goes on" in report(out).text


def test_a_folder_of_a_script_has_a_page_without_a_configuration(folder: Path) -> None:
    table = {"HYCO": {"error": 0.0123456789, "note": None}, "physics <b>only</b>": {"error": 1.5}}
    more = {
        "table": table,
        "seed": 7,
        "path": [1, 2.5],
        "demo": "plate",
        "fit": {"cg": 3, "steps": [{"step": "first", "J": 2.5}]},
    }
    page = report(left(folder, SUMMARY | more))
    assert "Not in this folder: fields.xdmf (pictures), experiment.toml (configuration; the folder" in page.text
    assert page.headings == ["Results", "Curves", "Further results", "Environment"]
    assert page.row("k.a[0]")[1:] == ["1", "1.25"]
    assert page.row("k.a[1]")[1:] == ["0", "1 × 10⁻⁷"]
    assert page.row("k.b")[1:] == ["—", "—"]
    assert page.row("HYCO")[1:] == ["0.012346", "—"]
    assert page.row("physics <b>only</b>")[1] == "1.5"
    assert page.row("seed")[1] == "7"
    assert page.row("path")[1] == "1, 2.5"
    assert page.row("cg")[1] == "3"
    assert page.row("first")[1] == "2.5"
    assert page.row("solve")[1:] == ["25", "33%"]
    assert "It took 1 min 15 s" in page.text


def test_error_bars_weights_and_trust_are_shown_where_they_are(folder: Path) -> None:
    identified = {"names": ["k.a[0]"], "standard_errors": [0.25], "lower": [1.0], "upper": [1.5], "confidence": 0.9}
    weights = {"b1": 2.0, "b2": 3.0}
    more: dict[str, Any] = {
        "from_data": identified,
        "choice": {
            "rule": "ModelDiscrepancy",
            "weights": weights,
            "candidates": [weights],
            "scores": [0.75],
            "spread": None,
        },
        "nash": True,
        "gain_physical": 2e-4,
        "tolerance": 1e-3,
    }
    page = report(left(folder, SUMMARY | more))
    assert page.row("unknown")[-2:] == ["standard error", "90% interval"]
    assert page.row("k.a[0]")[-2:] == ["0.25", "1 … 1.5"]
    assert page.row("candidate 1")[1:] == ["2", "3", "0.75", "—"]
    assert page.row("a Nash equilibrium to 0.001")[1] == "yes"
    assert page.row("what the physical player could still gain, as a part of its objective")[1] == "2 × 10⁻⁴"


def test_many_unknown_numbers_are_shown_in_part(folder: Path) -> None:
    names = ",".join(f'"k.c[{i}]"' for i in range(100))
    history = f"round,{names}\n" + "".join(f"{r}," + ",".join(str(i * r) for i in range(100)) + "\n" for r in (0, 1))
    page = report(left(folder, None, history))
    assert "These are the first 60 of 100" in page.text
    assert "k.c: the 8 of 100 entries that changed most" in page.text


# -- fields ----------------------------------------------------------------------------------------------------


def fields_of(mesh: dmesh.Mesh, folder: Path, shape: tuple[int, ...] = ()) -> None:
    """u_physical = x₀, u_synthetic = x₀ / 2, kappa = 1 + x₀ in cells."""
    V = fem.functionspace(mesh, ("Lagrange", 1, shape) if shape else ("Lagrange", 1))
    found = []
    for name, factor in (("u_physical", 1.0), ("u_synthetic", 0.5)):
        u = fem.Function(V, name=name)
        u.interpolate(lambda x, c=factor: c * (np.tile(x[0], (shape[0], 1)) if shape else x[0]))  # type: ignore[misc]
        found.append(u)
    kappa = fem.Function(fem.functionspace(mesh, ("DG", 0)), name="kappa")
    kappa.interpolate(lambda x: 1.0 + x[0])
    hf.write_fields(folder / "fields.xdmf", [*found, kappa])
    WORLD.Barrier()


def images(page: Parsed) -> list[np.ndarray]:
    """The pictures of a page, without the bars of colours."""
    found = [
        imread(io.BytesIO(base64.b64decode(r.partition(",")[2]))) for r in page.references if r.startswith("data:")
    ]
    return [image for image in found if image.shape[1] > 1]


MESHES: dict[str, Callable[[], dmesh.Mesh]] = {
    "triangles": lambda: dmesh.create_unit_square(WORLD, 4, 3),
    "quadrilaterals": lambda: dmesh.create_unit_square(WORLD, 4, 3, dmesh.CellType.quadrilateral),
    "tetrahedra": lambda: dmesh.create_unit_cube(WORLD, 4, 4, 4),
    "hexahedra": lambda: dmesh.create_unit_cube(WORLD, 4, 3, 3, dmesh.CellType.hexahedron),
}


@pytest.mark.parametrize("cells", MESHES)
def test_colours_are_those_of_the_fields(folder: Path, cells: str) -> None:
    """u = x₀ grows from left to right, on planes across x₀ = 0.5 it is the same everywhere."""
    viridis = colormaps["viridis"]
    solid = cells in ("tetrahedra", "hexahedra")
    if solid:
        pytest.importorskip("pyvista")
    fields_of(MESHES[cells](), folder)
    page = report(folder)
    assert "red: the physical model is larger" in page.text
    assert "kappa" in page.text
    pictures = images(page)
    assert len(pictures) == (12 if solid else 4)
    for image in pictures[: 2 if solid else 1]:
        middle, n = image[len(image) // 2, :, :3], image.shape[1]
        for column, value in ((1, 0.0), (n // 2, 0.5), (n - 2, 1.0)):
            np.testing.assert_allclose(middle[column], viridis(value)[:3], atol=0.03)
        assert (image[5:-5, 5:-5, 3] == 1.0).all()  # no holes
    if solid:
        np.testing.assert_allclose(np.ptp(pictures[2][5:-5, 5:-5], axis=(0, 1)), 0.0, atol=0.02)
        assert " at x = 0.5" in page.text


def test_a_vector_is_shown_by_its_size(folder: Path) -> None:
    fields_of(MESHES["triangles"](), folder, shape=(2,))
    page = report(folder)
    assert "|u_physical|, the physical model" in page.text
    assert f"From 0 to {number(np.sqrt(2.0), 4)}" in page.text


def test_on_an_interval_fields_are_curves(folder: Path) -> None:
    mesh = dmesh.create_interval(WORLD, 7, [0.0, 2.0])
    fields_of(mesh, folder)
    page = report(folder)
    assert images(page) == []
    assert "Both models over x." in page.text
    assert "kappa. From 1.143 to 2.857" in page.text  # in the first and the last cell


HEAT: dict[str, Any] = {
    "problem": {
        "name": "heat",
        "arguments": {"f": 1.0},
        "conditions": [{"type": "dirichlet", "value": 0.0, "facets": "left"}],
    },
    "time": {"end": 0.4, "dt": 0.1, "output": [0.0, 0.2, 0.4]},
}


def test_a_problem_in_time_is_shown_at_some_times_with_what_was_measured_then(folder: Path) -> None:
    def measure() -> None:
        lines = [f"{x},0.5,{t},0.1,0.1" for x in (0.5, 1.5) for t in (0.1, 0.2, 0.3)]
        (folder / "sensors.csv").write_text("\n".join(["x,y,t,value,noise_std", *lines, "1.0,0.2,0.4,0.1,0.1"]))

    path = written(folder, copy.deepcopy(TABLE) | HEAT)
    on_root(measure)
    run_experiment(read_experiment(path, ["game.rounds=1"], folder=folder / "out"), WORLD)
    text = write_report(folder / "out", WORLD).read_text(encoding="utf-8")
    page = checked(text)
    assert "The physical model in time" in page.text
    for t in ("0", "0.2", "0.4"):
        assert f"u_physical at t = {t}, the physical model" in page.text
    assert "u_synthetic at t = 0.4, the synthetic model" in page.text
    first, second, last = re.findall(r"<figure>(?:(?!</figure>).)*at t = .*?</figure>", text, re.S)[-3:]
    assert [part.count("<circle") for part in (first, second, last)] == [0, 4, 2]
    assert "Circles: sensors, in the colour of what they measured" in second


def test_a_series_on_an_interval_is_one_picture(folder: Path) -> None:
    mesh = dmesh.create_interval(WORLD, 5, [0.0, 1.0])
    u = fem.Function(fem.functionspace(mesh, ("Lagrange", 1)), name="u_physical")
    times = np.linspace(0.0, 2.0, 21)
    hf.write_fields(folder / "series.xdmf", ([u] for _ in times), times)
    left(folder)
    page = report(folder)
    shown = re.findall(r"u_physical at t = ([\d.]+)", page.text)
    assert shown == ["0", "0.4", "0.8", "1.2", "1.6", "2"]


def test_small_cells_become_pixels_with_their_means() -> None:
    n = 400
    t = (np.arange(n) + 0.5) / n
    centre = np.stack(np.meshgrid(t, t), axis=-1).reshape(-1, 2)
    offsets = np.array([[-0.5, -0.5], [0.5, -0.5], [0.0, 0.5]]) / n
    x = (centre[:, None] + offsets).reshape(-1, 2)
    triangles = np.vstack([np.arange(3 * n * n).reshape(-1, 3), [[0, 3 * n - 2, 3 * n * n - 1]]])
    values = np.append(centre[:, 0], 9.0)
    image, small = averaged(x, triangles, values, (np.zeros(2), np.ones(2)), np.array([100, 50]))
    assert small[:-1].all()
    assert not small[-1]
    expected = np.broadcast_to((np.arange(100) + 0.5) / 100, (50, 100))
    np.testing.assert_allclose(image, expected, atol=1e-12)


def test_large_files_are_drawn_from_pixels_and_look_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields_of(dmesh.create_unit_square(WORLD, 120, 120), folder)
    whole = images(report(folder))[0]
    monkeypatch.setattr("hyco_fem.experiment.report_raster._MANY_NODES", 1000)
    monkeypatch.setattr("hyco_fem.experiment.report_raster._FEW_PIXELS", 50)
    few = images(report(folder))[0]
    assert few.shape == (50, 50, 4)
    n = len(whole) // 50
    averaged = whole.reshape(50, n, 50, n, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(few, averaged, atol=0.03)


def test_fields_that_cannot_be_read_are_a_note(folder: Path) -> None:
    fields_of(MESHES["triangles"](), folder)
    on_root(lambda: (folder / "fields.h5").write_bytes(b"no HDF5"))
    assert "The fields are not drawn: " in report(folder).text
    on_root(lambda: (folder / "fields.xdmf").write_text("<Xdmf", encoding="utf-8"))
    assert "The fields are not drawn: 'fields.xdmf' is damaged" in report(folder).text


def test_sensors_whose_file_is_gone_are_a_note(folder: Path) -> None:
    out = played(folder)
    text = (out / "report.html").as_posix()
    circles = write_report(out, WORLD).read_text(encoding="utf-8").count("<circle")
    assert circles == 2 * 2 * 3 + 2 * 3, text  # twice for each of three sensors on u, once on the others
    on_root(lambda: (folder / "sensors.csv").unlink())
    assert "The sensors are not drawn: the sensor file" in report(out).text


def test_the_level_of_the_noise_is_the_number_of_components(folder: Path) -> None:
    """A misfit is a sum over them; here the file of the sensors is another one when the page is written."""
    out = played(folder)
    lines = {1: "x,y,value,noise_std\n0.3,0.4,0.1,0.1\n", 2: "x,y,value_0,value_1,noise_std\n0.3,0.4,0.1,0.2,0.1\n"}
    for components, text in lines.items():
        on_root(lambda text=text: (folder / "sensors.csv").write_text(text, encoding="utf-8"))
        assert f"Dotted: {components}, where a misfit is as large as the noise." in report(out).text


def test_sensors_that_cannot_be_read_without_a_package_are_a_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("sensors.h5 needs h5py")

    out = played(folder)
    monkeypatch.setattr("hyco_fem.experiment.report_files.read_sensors", fails)
    assert "The sensors are not drawn: sensors.h5 needs h5py" in report(out).text


def test_titles_that_are_lists_are_shown(folder: Path) -> None:
    for name in ("1", "2"):
        left(folder / name)
        on_root(lambda name=name: (folder / name / "experiment.toml").write_text('title = ["a"]\n', encoding="utf-8"))
    assert "['a']" in report(folder).text


# -- many runs -------------------------------------------------------------------------------------------------


def array(folder: Path) -> Path:
    """Three runs with different ends."""
    for k, (name, value) in enumerate((("2", 1.0), ("10", 2.0), ("x y", 4.0))):
        history = HISTORY.replace("1.25,", f"{value},") + ("3,0.5,0.25,1,1\n" if k == 2 else "")
        left(folder / name, SUMMARY | {"parameters": {"k.a": [value, 0.0]}, "title": "Seeds"}, history)
    return folder


def test_runs_beside_each_other_have_medians_and_quartiles(folder: Path) -> None:
    page = report(array(folder))
    assert page.headings == ["Comparison of the runs", "Curves of all runs", "Each run"]
    assert "3 runs beside each other: 3 finished" in page.text
    column = page.row("run").index("k.a[0]")
    assert [page.row(name)[column] for name in ("2", "10", "x y")] == ["1", "2", "4"]
    assert [page.row(q)[column] for q in ("median", "lower quartile", "upper quartile")] == ["2", "1.5", "3"]
    assert [row[0] for row in page.rows[1:4]] == ["2", "10", "x y"]
    assert {"#run-2", "#run-10", "#run-x-y"} <= set(page.references)
    left(folder / "stopped", SUMMARY | {"stop": "signal", "parameters": {"k.a": [9.0, 0.0]}})
    assert report(folder).row("median")[column] == "2"


def test_a_damaged_run_among_others_is_named_and_one_that_goes_on_does_not_count(folder: Path) -> None:
    array(folder)
    on_root(lambda: (folder / "2" / "summary.json").write_text("{", encoding="utf-8"))
    on_root(lambda: (folder / "10" / "history.csv").rename(folder / "10" / "history.csv.running"))
    page = report(folder)
    assert "3 runs beside each other: 1 not ended, 1 finished, 1 damaged" in page.text
    assert "2/summary.json' is damaged" in page.text
    assert not any(row[0] == "median" for row in page.rows)


def test_configurations_are_compared_where_they_differ(folder: Path) -> None:
    for seed in (0, 1):
        played(
            folder, f"{seed}", changed(network={"type": "mlp", "width": 4, "depth": 1, "seed": seed}), rounds=2 + seed
        )
    page = report(folder)
    head = page.row("run")
    assert head[2:4] == ["network.seed", "rounds"]
    assert [page.row(f"{seed}")[2:4] for seed in (0, 1)] == [["0", "2"], ["1", "3"]]


PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_tables_of_other_commands_are_shown(folder: Path) -> None:
    table = {
        "title": "Rates & errors",
        "columns": ["h", "error"],
        "rows": [[0.5, 0.123456789], ["rate", None]],
        "notes": ["P1 <b>triangles</b>"],
        "pictures": ["x.png", "../gone.png"],
    }

    def write() -> None:
        for name in ("convergence.json", "mine.json"):
            (folder / name).write_text(json.dumps(table), encoding="utf-8")
        (folder / "other.json").write_text("{not JSON", encoding="utf-8")
        (folder / "x.png").write_bytes(PICTURE)

    on_root(write)
    page = report(folder)
    assert page.headings == ["Rates & errors"] * 2
    assert page.row("0.5")[1] == "0.12346"
    assert page.row("rate")[1] == "—"
    assert "P1 <b>triangles</b>" in page.text
    assert "The picture gone.png is not there" in page.text
    left(folder / "run")
    assert report(folder).headings[:3] == ["Rates & errors", "Rates & errors", "Comparison of the runs"]


# -- what is wrong ---------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, str, str]] = {
    "half a summary": ("summary.json", '{"stop": "rou', "summary.json' is damaged: "),
    "a summary that is a list": ("summary.json", "[1]", "summary.json' is damaged: it holds no table"),
    "a word in the history": (
        "history.csv",
        "round,a\n0,1\n1,x\n",
        "history.csv' is damaged, line 3: could not convert",
    ),
    "a short line": ("history.csv", "round,a\n0,1\n1\n", "history.csv' is damaged, line 3: it has 1 entries"),
    "no header": ("history.csv", "0,1\n1,2\n", "history.csv' is damaged: its first line"),
    "a half line that is not the last": ("history.csv.running", "round,a\n0\n1,2\n", "running' is damaged, line 2"),
    "half a configuration": ("experiment.toml", "[mesh", "experiment.toml' is damaged: "),
    "half a table": ("compare.json", '{"columns": [', "compare.json' is damaged: "),
    "a ragged table": ("compare.json", '{"columns": ["a"], "rows": [[1, 2]]}', "compare.json' is damaged: it has no"),
}


def test_runs_of_which_none_can_be_read_are_refused_and_below_a_run_they_are_named(folder: Path) -> None:
    left(folder / "a", None, "0,1\n")
    with pytest.raises(ValueError, match=r"a/history.csv' is damaged: its first line"):
        write_report(folder, WORLD)
    left(folder)
    page = report(folder)
    assert "a/history.csv' is damaged: its first line" in page.text
    assert page.headings[0] == "Results"


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_file_is_named_on_all_ranks_and_no_page_is_written(folder: Path, what: str) -> None:
    name, content, message = WRONG[what]
    left(folder)
    on_root(lambda: (folder / name).write_text(content, encoding="utf-8"))
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(folder, WORLD)
    WORLD.Barrier()
    assert not (folder / "report.html").exists()


def test_a_folder_without_a_run_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere: there is no such folder; give the output folder"):
        write_report(folder / "nowhere", WORLD)
    with pytest.raises(ConfigurationError, match=r"there is no run in it, nor in its sub-folders"):
        write_report(folder, WORLD)


def test_a_page_that_cannot_be_written_is_refused(folder: Path) -> None:
    out = left(folder / "out")
    with pytest.raises(OSError, match=r"the report '.*out' cannot be written \(Is a directory\); choose another name"):
        write_report(out, WORLD, out)
    with pytest.raises(OSError, match=r"summary.json' cannot be written"):
        write_report(out, WORLD, out / "summary.json" / "page.html")
    WORLD.Barrier()
    assert sorted(p.name for p in out.iterdir()) == ["history.csv", "summary.json"]


_INNER = st.sampled_from(
    [
        "names",
        "standard_errors",
        "lower",
        "upper",
        "confidence",
        "weights",
        "candidates",
        "scores",
        "total",
        "interaction",
    ]
)
_ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_INNER | st.text(max_size=3), inner, max_size=4),
    max_leaves=6,
)
_NAMES = st.sampled_from([*KINDS, "rows", "other <i>"])


@frozen
@pytest.mark.serial
@settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(_NAMES, _ENTRIES, max_size=6))
def test_any_summary_gives_a_whole_page(folder: Path, summary: dict[str, Any]) -> None:
    left(folder, summary)
    checked(report_page(folder))


# -- pieces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123456789, "0.012346"),
        (1.5, "1.5"),
        (-2.0, "−2"),
        (1200, "1200"),
        (123456.7, "123457"),
        (1.5e-7, "1.5 × 10⁻⁷"),
        (-2.34567891e12, "−2.3457 × 10¹²"),
        (0.0, "0"),
        (99999.96, "100000"),
        (float("nan"), "—"),
        (float("-inf"), "−∞"),
        (None, "—"),
        (True, "yes"),
        (10**12, "1 × 10¹²"),
        ("text", "text"),
    ],
)
def test_numbers_are_as_people_read_them(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_durations_are_in_words() -> None:
    assert [duration(s) for s in (0.123, 9.96, 59.4, 75.0, 3599.7, 7300.0)] == [
        *("0.12 s", "10 s", "59 s", "1 min 15 s", "1 h 0 min", "2 h 1 min")
    ]


def test_ticks_are_round_numbers_within_the_axis() -> None:
    cases = (([0.0, 1.0], False), ([0.12, 0.13], False), ([1e-9, 1e3], True), ([2.0, 2.0], True), ([3.0], False))
    for values, log in cases:
        axis = scale([np.array(values)], 0.0, 100.0, log=log)
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 8
        assert len(set(labels(ticks, log)[0])) == len(ticks)
        places = axis(np.array(ticks))
        assert ((places > -1e-6) & (places < 100.0 + 1e-6)).all()


@pytest.mark.parametrize(
    ("ticks", "log", "shown"),
    [
        ([-1.0, -0.5, 0.0], False, (["−1", "−0.5", "0"], "")),
        ([0.0, 5e-7, 1e-6], False, (["0", "0.5", "1"], "× 10⁻⁶")),
        ([20000.0, 40000.0], False, (["20000", "40000"], "")),
        ([0.0, 2e7], False, (["0", "2"], "× 10⁷")),
        ([4600000.0, 4600000.5], False, (["0", "0.5"], "+ 4600000")),
        ([500200.0, 500400.0], False, (["5.002", "5.004"], "× 10⁵")),
        ([1e-4, 0.01, 1.0], True, (["10⁻⁴", "10⁻²", "10⁰"], "")),
        ([0.01, 0.03, 0.1], True, (["0.01", "0.03", "0.1"], "")),
        ([3e-5, 1e-4], True, (["3 × 10⁻⁵", "10⁻⁴"], "")),
    ],
)
def test_ticks_are_short(ticks: list[float], log: bool, shown: tuple[list[str], str]) -> None:
    assert labels(ticks, log) == shown


def test_a_curve_with_fewer_points_keeps_its_ends_and_peaks() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 700.0)
    y[4321] = 5.0
    few_x, few_y = thinned(x, y)
    assert len(few_x) < 400
    assert few_x[0] == 0.0
    assert few_x[-1] == 9999.0
    assert few_y.max() == 5.0
    assert few_y.min() == y.min()
    assert (np.diff(few_x) > 0).all()
