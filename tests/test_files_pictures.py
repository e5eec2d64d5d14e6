"""Pictures by pyvista: what is seen in them, in 2D and 3D, with or without a screen, for any number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
from cases import square
from dolfinx import fem, mesh
from folders import names
from matplotlib.image import imread

import hyco_fem as hf
from hyco_fem.io import screen
from hyco_fem.io.panels import _labels
from hyco_fem.io.pictures import picture
from hyco_fem.io.screen import off_screen

pytest.importorskip("pyvista")

DARK, BRIGHT = np.array([68, 1, 84]), np.array([253, 231, 37])  # the ends of viridis


def field(domain: mesh.Mesh, element: tuple, values: Any, name: str = "u") -> fem.Function:
    f = fem.Function(fem.functionspace(domain, element), name=name)
    f.interpolate(values)
    return f


def pixels(path: Path) -> np.ndarray:
    return np.round(255 * imread(path)[:, :, :3]).astype(int)


def near(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(image - colour).max(axis=-1) < 12


# A panel: 22 pixels around a field of 460, 40 above for its name, 110 right of it for its colours.
FIELD = np.s_[62 : 62 + 460, 22 : 22 + 460]
PANEL = (22 + 460 + 22 + 40, 22 + 460 + 22 + 110)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_field_fills_its_place_in_the_colours_of_its_values(
    comm: MPI.Comm, folder: Path, degree: int, sampled: bool
) -> None:
    """u = x: dark at the left, bright at the right, the same in each row, and the same sampled or by its cells."""
    u = field(square(comm, 4), ("Lagrange", degree), lambda x: x[0])
    path = picture(folder / "u.png", u, most_cells=10 if sampled else 1000)
    comm.Barrier()
    image = pixels(path)
    assert image.shape == (*PANEL, 3)
    shown = image[FIELD]
    assert near(shown[:, 2:8], DARK).mean() > 0.95
    assert near(shown[:, -8:-2], BRIGHT).mean() > 0.95
    assert np.ptp(shown[5:-5, 5:-5], axis=0).max() <= 3
    assert (image[:20] == 255).all()
    assert (image[62 : 62 + 460, 5:18] == 255).all()
    assert names(comm, folder) == ["u.png"]


def test_quadratic_fields_are_drawn_as_such(comm: MPI.Comm, folder: Path) -> None:
    """u = 4x(1 − x) on cells of length 1: linear between vertices it would be zero, or a roof."""
    u = field(square(comm, 1), ("Lagrange", 2), lambda x: 4.0 * x[0] * (1.0 - x[0]))
    picture(folder / "u.png", u, limits=(0.0, 1.0))
    comm.Barrier()
    row = pixels(folder / "u.png")[FIELD][400]
    from matplotlib import colormaps

    x = (np.arange(460) + 0.5) / 460
    # Drawn in four pieces along an edge: below the parabola by 1/16 at most.
    for expected, slack in ((4.0 * x * (1.0 - x), 0.07), (np.minimum(2 * x, 2 - 2 * x), None)):
        candidates = (
            255 * colormaps["viridis"](np.clip(expected[:, None] + np.linspace(-0.07, 0.07, 29), 0, 1))[..., :3]
        )
        off = np.abs(candidates - row[:, None]).max(axis=-1).min(axis=-1)[5:-5]
        assert (off.max() < 8) == (slack is not None)


def test_panels_have_their_own_colours_or_common_ones(comm: MPI.Comm, folder: Path) -> None:
    domain = square(comm, 3)
    one, ten = (field(domain, ("Lagrange", 1), lambda x, s=s: s * x[0], f"{s} x") for s in (1.0, 10.0))
    right = 22 + 457
    for limits, bright in (("own", True), ("common", False), ((0.0, 100.0), False)):
        picture(folder / "u.png", [one, ten], limits=limits)
        comm.Barrier()
        image = pixels(folder / "u.png")
        assert image.shape == (PANEL[0], 2 * PANEL[1], 3)
        assert near(image[300, right], BRIGHT) == bright
        assert near(image[300, PANEL[1] + right], BRIGHT) == (limits != (0.0, 100.0))
    picture(folder / "u.png", [one, ten, one], columns=1)
    comm.Barrier()
    assert pixels(folder / "u.png").shape == (3 * PANEL[0], PANEL[1], 3)


def test_constants_in_the_cells_have_one_colour_each(comm: MPI.Comm, folder: Path) -> None:
    q = field(square(comm, 2), ("DG", 0), lambda x: np.where(x[0] < 0.5, 0.0, 1.0))
    q.name = "κ"
    for most in (1000, 1):
        picture(folder / "q.png", q, most_cells=most)
        comm.Barrier()
        shown = pixels(folder / "q.png")[FIELD]
        assert near(shown[5:-5, 5:224], DARK).all()
        assert near(shown[5:-5, 236:-5], BRIGHT).all()


def test_sensors_are_marked_where_they_are(comm: MPI.Comm, folder: Path) -> None:
    u = field(square(comm, 3), ("Lagrange", 1), lambda x: 0.0 * x[0])
    picture(folder / "u.png", u)
    picture(folder / "s.png", u, sensors=np.array([[0.25, 0.75]]))
    table = hf.Sensors(np.array([[0.25, 0.75]]), np.zeros(1), None, (1,), "s.csv")
    picture(folder / "t.png", u, sensors=table)
    comm.Barrier()
    changed = np.abs(pixels(folder / "s.png") - pixels(folder / "u.png")).max(axis=-1) > 30
    rows, columns = np.nonzero(changed)
    assert len(rows) > 20
    assert rows.mean() == pytest.approx(62 + 0.25 * 460, abs=1.5)
    assert columns.mean() == pytest.approx(22 + 0.25 * 460, abs=1.5)
    assert np.ptp(rows) < 14
    np.testing.assert_array_equal(pixels(folder / "t.png"), pixels(folder / "s.png"))


def test_a_vector_field_has_arrows_or_moves_the_mesh(comm: MPI.Comm, folder: Path) -> None:
    """Stretched by one half along x, the square is 3 by 2."""
    w = field(square(comm, 3), ("Lagrange", 2, (2,)), lambda x: np.stack([x[0], 0.0 * x[0]]), "w")
    picture(folder / "arrows.png", w)
    picture(folder / "moved.png", w, deform=0.5)
    comm.Barrier()
    assert (pixels(folder / "arrows.png")[FIELD].max(axis=-1) < 30).sum() > 100, "black arrows"
    height = int(460 / 1.5)
    assert pixels(folder / "moved.png").shape[0] == pytest.approx(22 + height + 22 + 40, abs=1)


def test_edges_are_those_of_the_cells(comm: MPI.Comm, folder: Path) -> None:
    u = field(square(comm, 2), ("Lagrange", 2), lambda x: 0.0 * x[0])
    picture(folder / "u.png", u, edges=True)
    picture(folder / "plain.png", u)
    comm.Barrier()
    darker = (pixels(folder / "plain.png") - pixels(folder / "u.png"))[FIELD].max(axis=-1) > 10
    assert darker[228:233].mean() > 0.19, "the middle line"
    assert darker[100:110, 300:310].sum() < 30, "and little in the cells"


@pytest.mark.parametrize("sampled", [False, True])
def test_a_body_is_open_to_the_eye(comm: MPI.Comm, folder: Path, sampled: bool) -> None:
    """u = max |x − ½|: on the surface ½, bright; inside, where an eighth is cut away, dark at the centre."""
    domain = mesh.create_unit_cube(comm, 6, 6, 6)
    u = field(domain, ("Lagrange", 1), lambda x: np.abs(x - 0.5).max(axis=0))
    picture(folder / "u.png", u, sensors=np.full((1, 3), 0.1), most_cells=10 if sampled else 10_000)
    comm.Barrier()
    image = pixels(folder / "u.png")
    shown = (image < 250).any(axis=-1)[62:-22, 22 : 22 + 460]
    rows, columns = np.nonzero(shown)
    assert np.ptp(columns) > 400
    assert np.ptp(rows) > 400
    middle = image[62 + (rows.min() + rows.max()) // 2, 22 + (columns.min() + columns.max()) // 2]
    blue, green = middle[2], middle[1]
    assert blue > green, "violet in the middle"


def test_pictures_do_not_depend_on_the_number_of_ranks(comm: MPI.Comm, folder: Path) -> None:
    def fields(comm: MPI.Comm) -> list[fem.Function]:
        domain = mesh.create_unit_square(comm, 7, 5)
        u = field(domain, ("Lagrange", 2), lambda x: np.sin(5 * x[0]) * x[1])
        return [u, field(domain, ("Lagrange", 1, (2,)), lambda x: np.stack([x[1], -x[0]]), "w")]

    for most in (1000, 10):
        picture(folder / "all.png", fields(comm), edges=True, most_cells=most)
        if comm.rank == 0:
            picture(folder / "one.png", fields(MPI.COMM_SELF), edges=True, most_cells=most)
        comm.Barrier()
        off = np.abs(pixels(folder / "all.png") - pixels(folder / "one.png")).max(axis=-1) > 40
        assert off.mean() < 0.01


def taylor_hood() -> Any:
    P1, P2 = (basix.ufl.element("Lagrange", "triangle", k) for k in (1, 2))
    return basix.ufl.mixed_element([basix.ufl.blocked_element(P2, shape=(2,)), P1])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (lambda u: [], {}, "nothing to draw"),
    "another picture": (lambda u: u, {"path": "u.jpg"}, r"a picture is a \.png, not 'u\.jpg'"),
    "a tensor": (
        lambda u: fem.Function(fem.functionspace(u.function_space.mesh, ("Lagrange", 1, (2, 2))), name="s"),
        {},
        r"'s' has values of shape \(2, 2\)",
    ),
    "fluxes": (
        lambda u: fem.Function(fem.functionspace(u.function_space.mesh, ("RT", 1)), name="q"),
        {},
        "'q' is not of a Lagrange space: interpolate it",
    ),
    "a mixed field": (
        lambda u: fem.Function(fem.functionspace(u.function_space.mesh, taylor_hood()), name="up"),
        {},
        r"'up' is not of a Lagrange space: interpolate it into one, or collapse\(\) it",
    ),
    "a component": (
        lambda u: fem.Function(fem.functionspace(u.function_space.mesh, ("Lagrange", 1, (2,)))).sub(0),
        {},
        r"or collapse\(\) it",
    ),
    "one dimension": (
        lambda u: fem.Function(
            fem.functionspace(mesh.create_unit_interval(u.function_space.mesh.comm, 3), ("Lagrange", 1))
        ),
        {},
        "is on a 1D mesh in 1D",
    ),
    "cells that part": (
        lambda u: fem.Function(fem.functionspace(u.function_space.mesh, ("DG", 0, (2,))), name="w"),
        {"deform": 1.0},
        "'w' is constant in the cells, which would not fit together",
    ),
    "limits": (lambda u: u, {"limits": (1.0, 0.0)}, "limits must be 'own', 'common' or"),
    "columns": (lambda u: u, {"columns": 0}, "columns = 0"),
    "sensors in 3D": (lambda u: u, {"sensors": np.zeros((4, 3))}, r"shape \(n, 2\), not \(4, 3\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_drawn_is_refused(comm: MPI.Comm, folder: Path, what: str) -> None:
    make, options, message = REFUSED[what]
    u = field(square(comm, 2), ("Lagrange", 1), lambda x: x[0])
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        picture(folder / options.pop("path", "u.png"), make(u), **options)
    assert names(comm, folder) == []


def test_nothing_finite_and_no_folder_are_errors_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    u = field(square(comm, 2), ("Lagrange", 1), lambda x: np.nan * x[0])
    with pytest.raises(ValueError, match="'u' has no finite value to show"):
        picture(folder / "u.png", u)
    u.interpolate(lambda x: x[0])
    with pytest.raises(OSError, match=r"."):
        picture(folder / "none" / "u.png", u)
    assert names(comm, folder) == []


@pytest.mark.parametrize(
    ("limits", "labels"),
    [
        ((-1.0, 1.0 - 4e-5), [-1.0, -0.5, 0.0, 0.5, 1.0 - 4e-5]),
        ((1e-6, 2e-6), np.linspace(1e-6, 2e-6, 5)),
        ((1e-9, 1.0), [1e-9, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_what_is_zero_but_for_rounding_reads_zero(limits: tuple[float, float], labels: Any) -> None:
    found = _labels(*limits)
    np.testing.assert_allclose(found, labels, rtol=1e-4)
    assert (found >= limits[0]).all()
    assert (found <= limits[1]).all()


# -- with or without a screen ------------------------------------------------------------------------------------


def test_without_xvfb_it_is_said_what_to_install(comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all ranks, and before VTK would end the process."""
    monkeypatch.setenv("DISPLAY", ":4711")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(screen, "_needs_no_screen", lambda: False)
    screen._server.cache_clear()
    u = field(square(comm, 2), ("Lagrange", 1), lambda x: x[0])
    with pytest.raises(RuntimeError, match=r"install Xvfb \(Debian: xvfb"):
        picture(folder / "u.png", u)
    assert os.environ["DISPLAY"] == ":4711", "as before"
    assert names(comm, folder) == []


def test_an_xvfb_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Xvfb").write_text("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
    (tmp_path / "Xvfb").chmod(0o755)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(screen, "_needs_no_screen", lambda: False)
    screen._server.cache_clear()
    with pytest.raises(RuntimeError, match="Xvfb did not start: no memory"), off_screen():
        pass
    assert "DISPLAY" not in os.environ


def test_without_pyvista_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvista", None)
    with pytest.raises(RuntimeError, match=r"drawing needs pyvista .*python3-pyvista"), off_screen():
        pass


ENDING = """
import os, signal, subprocess
from hyco_fem.io import screen
screen._needs_no_screen = lambda: False
os.environ.pop("DISPLAY", None)
with screen.off_screen() as pyvista:
    plotter = pyvista.Plotter(off_screen=True, window_size=(100, 80))
    plotter.add_mesh(pyvista.Sphere())
    assert plotter.screenshot().shape == (80, 100, 3)
assert "DISPLAY" not in os.environ
print(screen._server()[1], flush=True)
HOW
"""


# Drawn in a thread that ends, and again, with a server that was killed in between or not; without setpriv or with it.
AGAIN = """
import os, shutil, signal, sys, threading, time
from hyco_fem.io import screen
screen._needs_no_screen = lambda: False
os.environ.pop("DISPLAY", None)
if "without" in sys.argv:
    screen.shutil.which = lambda name, which=shutil.which: None if name == "setpriv" else which(name)

def draw():
    with screen.off_screen() as pyvista:
        plotter = pyvista.Plotter(off_screen=True, window_size=(100, 80))
        plotter.add_mesh(pyvista.Sphere())
        assert plotter.screenshot().shape == (80, 100, 3)
        plotter.close()

thread = threading.Thread(target=draw)
thread.start()
thread.join()
first = screen._server()[1]
if "killed" in sys.argv:
    os.kill(first, signal.SIGKILL)
time.sleep(0.5)
draw()
assert (screen._server()[1] == first) == ("killed" not in sys.argv)
print(screen._server()[1])
"""


def ends(process: int) -> bool:
    server = Path(f"/proc/{process}/status")
    for _ in range(50):
        if not server.exists() or "State:\tZ" in server.read_text():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.serial
@pytest.mark.parametrize("words", [[], ["without"], ["killed"], ["without", "killed"]], ids=" ".join)
def test_a_second_picture_has_a_server(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", AGAIN, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ends(int(done.stdout)), "the server is still there"


@pytest.mark.serial
@pytest.mark.parametrize("how", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_server_ends_with_us(how: str) -> None:
    """However we end; and a window that is still open does no harm."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING.replace("HOW", how)], check=False, capture_output=True, text=True
    )
    assert done.returncode == (0 if how == "pass" else -9), done.stderr
    assert ends(int(done.stdout)), "the server is still there"
