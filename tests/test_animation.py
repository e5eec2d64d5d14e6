"""Animations: every frame is there and shows its time, the colour scales stand still, and no half file is left."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from cases import square
from PIL import Image

import hyco_fem as hf
from hyco_fem.io.animation import animate_images, save_animation

TIMES = np.linspace(0.0, 0.5, 6)


def bar(figure: Any) -> Callable[[int], None]:
    """A black bar on the whole of the figure: of six frames, frame k is black up to k / 6 of the width."""
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    (patch,) = ax.barh([0.5], [0.0], height=1.0, color="black")
    ax.set_xlim(0, 6)
    ax.set_ylim(0, 1)
    return patch.set_width


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        read = []
        for k in range(gif.n_frames):
            gif.seek(k)
            read.append(np.asarray(gif.convert("RGB")).astype(int))
        return read


def moving(raster: hf.Raster) -> np.ndarray:
    """x + t, with a pixel left out."""
    images = np.stack([np.linspace(0.0, 1.0, raster.shape[1]) + t + np.zeros(raster.shape) for t in TIMES])
    images[:, 0, 0] = np.nan
    return images


@pytest.fixture
def raster(comm: MPI.Comm) -> hf.Raster:
    return hf.Raster(square(comm, 2), 20)


def test_a_gif_has_every_frame_in_its_place(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "bar.gif"
    save_animation(comm, path, bar, 6, size=(1.2, 0.5), fps=20, dpi=100)
    comm.Barrier()
    frames = pictures(path)
    assert [f.shape for f in frames] == [(50, 120, 3)] * 6
    for k, frame in enumerate(frames):
        black = (frame[25] < 128).all(axis=1).sum()
        assert abs(black - 20 * k) <= 1
        assert (frame[25, 20 * k + 1 :] == 255).all(), "the paper is white"
    with Image.open(path) as gif:
        assert gif.info["duration"] == 50
        assert gif.info["loop"] == 0, "for ever"
    assert [p.name for p in folder.iterdir()] == ["bar.gif"]


def test_pyplot_is_not_touched_and_only_rank_0_draws(comm: MPI.Comm, folder: Path) -> None:
    calls = []

    def draw(figure: Any) -> Callable[[int], None]:
        calls.append(figure)
        return bar(figure)

    before = "matplotlib.pyplot" in sys.modules
    save_animation(comm, folder / "bar.gif", draw, 2, size=(1.0, 1.0))
    assert len(calls) == (1 if comm.rank == 0 else 0)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_images_are_shown_in_one_scale_for_all_times(comm: MPI.Comm, folder: Path, raster: hf.Raster) -> None:
    """The same value has the same colour in the first frame and in the last, in each panel by its own scale."""
    images = moving(raster)
    path = folder / "u.gif"
    sensors = [np.array([[0.5, t]]) for t in TIMES]
    animate_images(comm, path, raster, {"u": images, "10 u": 10.0 * images}, TIMES, unit="s")
    animate_images(
        comm, folder / "marks.gif", raster, {"u": images, "10 u": 10.0 * images}, TIMES, sensors=sensors, unit="s"
    )
    comm.Barrier()
    frames = pictures(path)
    assert len(frames) == len(TIMES)
    assert len({f.shape for f in frames}) == 1
    # Only the first frame has the smallest value, in viridis' darkest colour, and only the last the largest.
    dark, bright = np.array([68, 1, 84]), np.array([253, 231, 37])

    def pixels(frame: np.ndarray, colour: np.ndarray) -> int:
        first = frame[:, : frame.shape[1] // 2]  # with its colour bar, which is the same in all frames
        return int((np.abs(first - colour).max(axis=-1) < 8).sum())

    assert pixels(frames[0], dark) > pixels(frames[-1], dark) + 100
    assert pixels(frames[-1], bright) > pixels(frames[0], bright) + 100
    # The time above the panels changes, the axes below it do not.
    top, bottom = frames[0][:18], frames[0][-12:]
    assert all((f[:18] != top).any() and (f[-12:] == bottom).all() for f in frames[1:])
    # The marks are moved.
    differences = [
        np.argwhere(np.abs(a - b).max(axis=-1) > 100)
        for a, b in zip(frames, pictures(folder / "marks.gif"), strict=True)
    ]
    heights = [d[:, 0].mean() for d in differences]
    assert all(a > b + 5 for a, b in itertools.pairwise(heights)), "upwards with t"


def test_limits_that_are_given_are_kept(comm: MPI.Comm, folder: Path, raster: hf.Raster) -> None:
    """Far inside its limits a panel has one colour."""
    animate_images(comm, folder / "u.gif", raster, {"u": moving(raster)}, TIMES, limits={"u": (-1e6, 1e6)})
    comm.Barrier()
    frame = pictures(folder / "u.gif")[0]
    middle = frame[frame.shape[0] // 2, 60:160]
    assert np.ptp(middle, axis=0).max() == 0
    with pytest.raises(ValueError, match=r"limits names \['v'\]"):
        animate_images(comm, folder / "u.gif", raster, {"u": moving(raster)}, TIMES, limits={"v": (0.0, 1.0)})


def test_sixty_frames_of_three_fields_are_about_a_megabyte(comm: MPI.Comm, folder: Path) -> None:
    raster = hf.Raster(square(comm, 2), 200)
    x, y = np.meshgrid(*2 * [np.linspace(0.0, 1.0, 200)])
    times = np.linspace(0.0, 1.0, 60)
    u = [np.exp(-40.0 * ((x - 0.2 - 0.6 * t) ** 2 + (y - 0.5) ** 2)) for t in times]
    animate_images(comm, folder / "u.gif", raster, {"a": u, "b": u, "c": u}, times)
    comm.Barrier()
    assert (folder / "u.gif").stat().st_size < 2e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panels": {"u": np.zeros((5, 20, 20))}}, r"panel 'u' has 5 images for 6 times"),
        ({"panels": {"u": np.zeros((6, 20, 20)), "v": np.zeros((6, 19, 20))}}, r"image 0 of panel 'v'.*\(19, 20\)"),
        ({"panels": {"u": np.full((6, 20, 20), np.nan)}}, "panel 'u' has no finite value"),
        ({"panels": {}}, "nothing to animate"),
        ({"sensors": [np.zeros((3, 2))] * 5}, "positions for 5 times, not for 6"),
        ({"sensors": np.zeros((6, 3))}, r"shape \(6, 3\), not \(n, 2\)"),
        ({"path": "u.avi"}, "'u.avi' is neither .gif nor .mp4"),
        ({"path": "u"}, "neither .gif nor .mp4"),
        ({"fps": 0.0}, "fps = 0.0"),
        ({"fps": 100.0}, "at most 50"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    comm: MPI.Comm, folder: Path, raster: hf.Raster, change: dict[str, Any], message: str
) -> None:
    arguments = {"path": "u.gif", "panels": {"u": moving(raster)}, "sensors": None, "fps": 10.0} | change
    path = folder / arguments.pop("path")
    with pytest.raises(ValueError, match=message):
        animate_images(comm, path, raster, arguments.pop("panels"), TIMES, **arguments)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_before_anything_is_drawn(comm: MPI.Comm, folder: Path) -> None:
    def draw(figure: Any) -> Callable[[int], None]:
        raise AssertionError("drawn")

    with pytest.raises(FileNotFoundError, match=r"'.*none' for 'bar\.gif' does not exist"):
        save_animation(comm, folder / "none" / "bar.gif", draw, 3, size=(1.0, 1.0))


@pytest.mark.parametrize("at", ["draw", "update"])
def test_an_error_while_drawing_leaves_the_file_that_was_there(comm: MPI.Comm, folder: Path, at: str) -> None:
    path = folder / "bar.gif"
    save_animation(comm, path, bar, 2, size=(1.0, 1.0))
    comm.Barrier()
    before = path.read_bytes()

    def draw(figure: Any) -> Callable[[int], None]:
        if at == "draw":
            raise ValueError("no frame")

        def update(k: int) -> None:
            if k == 3:
                raise ValueError("no frame")

        return update

    with pytest.raises(ValueError, match="no frame"):
        save_animation(comm, path, draw, 5, size=(1.0, 1.0))
    assert path.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["bar.gif"]
    with pytest.raises(TypeError, match="let it return update"):
        save_animation(comm, path, lambda figure: None, 5, size=(1.0, 1.0))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="one frame or more"):
        save_animation(comm, path, bar, 0, size=(1.0, 1.0))


def test_mp4_without_ffmpeg_says_what_to_do(comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "nothing"))
    with pytest.raises(RuntimeError, match=r"needs ffmpeg, which is not on the PATH: install it, or write a \.gif"):
        save_animation(comm, folder / "bar.mp4", bar, 3, size=(1.0, 1.0))


def stand_in(comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """An ffmpeg that is a Python program."""
    bin_folder = folder / "bin"
    if comm.rank == 0:
        bin_folder.mkdir()
        program = bin_folder / "ffmpeg"
        program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        program.chmod(0o755)
    comm.Barrier()
    monkeypatch.setenv("PATH", str(bin_folder))


def test_mp4_gets_every_frame_with_even_sides(comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(comm, folder, monkeypatch, "open(sys.argv[-1], 'wb').write(sys.stdin.buffer.read())\nprint(sys.argv)")
    save_animation(comm, folder / "bar.mp4", bar, 6, size=(1.21, 0.51), dpi=100)
    comm.Barrier()
    frames = np.fromfile(folder / "bar.mp4", dtype=np.uint8).reshape(6, 50, 120, 3)
    black = (frames[:, 25] < 128).all(axis=-1).sum(axis=-1)
    assert (np.abs(black - 121 / 6 * np.arange(6)) <= 1).all()


def test_a_failing_ffmpeg_says_why_and_leaves_nothing(
    comm: MPI.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(comm, folder, monkeypatch, "open(sys.argv[-1], 'w').write('half')\nsys.exit('no such codec')")
    with pytest.raises(RuntimeError, match=r"no such codec.*write a \.gif"):
        save_animation(comm, folder / "bar.mp4", bar, 60, size=(4.0, 4.0))
    assert [p.name for p in folder.iterdir()] == ["bin"]
