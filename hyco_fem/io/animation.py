"""Animations: frames drawn by matplotlib on rank 0, written as .gif by Pillow or as .mp4 by ffmpeg.

A GIF has 256 colours and stores of each frame what has changed.  All frames share one palette and nothing is
dithered, so that what stands still costs nothing: 60 frames of three fields take about one megabyte.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from hyco_fem.files import replace_file
from hyco_fem.io.plots import Raster, show
from hyco_fem.parallel import agreed

DPI = 80
PALETTE_FRAMES = 8
"""Frames that the palette is made from, spread over the animation."""


def save_animation(
    comm: Any,
    path: str | Path,
    draw: Callable[[Any], Callable[[int], Any]],
    frames: int,
    *,
    size: tuple[float, float],
    fps: float = 10.0,
    dpi: int = DPI,
) -> None:
    """Draw on rank 0 and write a .gif, or a .mp4 where ffmpeg is installed, whole or not at all.  Collective.

    The figure needs no display: it is rendered by matplotlib's Agg canvas, and pyplot is not touched.

        def draw(figure):
            (line,) = figure.subplots().plot(x, u[0])
            return lambda k: line.set_ydata(u[k])

    Args:
        draw: draw(figure) draws frame 0 and returns update(k), which changes the figure to frame k, in any order.
            Where things are is settled by frame 0, so that nothing moves that should not.
        frames: How many.  In a GIF equal neighbours become one frame that lasts longer.
        size: Of the figure, in inches.  dpi: pixels an inch.
        fps: Frames a second, at most 50 in a GIF.

    Raises:
        ValueError: the suffix is neither .gif nor .mp4, or there are no frames, or fps does not serve.
        FileNotFoundError: the folder does not exist.
        RuntimeError: .mp4 without ffmpeg, or ffmpeg failed.
    """
    with agreed(comm):
        if comm.rank == 0:
            path = Path(path)
            _check(path, frames, fps)
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure(figsize=size, dpi=dpi, layout="constrained")
            canvas = FigureCanvasAgg(figure)
            update = draw(figure)
            if not callable(update):
                raise TypeError(f"draw(figure) returned {update!r}; let it return update(k), which draws frame k")
            canvas.draw()
            figure.set_layout_engine("none")

            def frame(k: int) -> np.ndarray:
                update(k)
                canvas.draw()
                return np.array(canvas.buffer_rgba())[:, :, :3]

            write = _write_gif if path.suffix == ".gif" else _write_mp4
            replace_file(path, lambda p: write(p, frame, frames, fps))


def animate_images(
    comm: Any,
    path: str | Path,
    raster: Raster,
    panels: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    times: Sequence[float] | np.ndarray,
    *,
    sensors: np.ndarray | Sequence[np.ndarray] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    unit: str = "",
    cmap: str = "viridis",
    size: tuple[float, float] | None = None,
    fps: float = 10.0,
    dpi: int = DPI,
) -> None:
    """Animate fields side by side, each in one colour scale for all times, the time above them.  Collective.

        images = [raster.image(u) for u in states]
        animate_images(comm, "u.gif", raster, {"u": images, "u_syn": network_images}, times, unit="s")

    Args:
        raster: What made the images.
        panels: Title → images (n_times, ny, nx), NaN where nothing is drawn.  Only those of rank 0 are looked at.
        times: (n_times,).  unit: of the times, behind them in the title.
        sensors: Positions to mark: (n, 2) at all times, or a sequence of n_times arrays (n_k, 2).
        limits: Title → (lowest, highest) of the colour scale; otherwise those of the images over all times.
        size: Of the figure, in inches; by default as wide as the panels need.
        fps, dpi: as in save_animation.

    Raises:
        ValueError: images, times or sensors do not fit together, or as save_animation.
    """
    with agreed(comm):
        if comm.rank == 0:
            times = np.asarray(times, dtype=float).reshape(-1)
            images = {title: _stack(title, stack, raster, len(times)) for title, stack in panels.items()}
            if not images:
                raise ValueError("nothing to animate: panels is empty")
            marks = _positions(sensors, len(times))
            scales = {title: _limits(title, stack, (limits or {}).get(title)) for title, stack in images.items()}
            if unknown := (limits or {}).keys() - images.keys():
                raise ValueError(f"limits names {sorted(unknown)}, but the panels are {list(images)}")
            labels = [f"t = {label} {unit}".rstrip() for label in _labels(times)]

    def draw(figure: Any) -> Callable[[int], None]:
        axes = figure.subplots(1, len(images), squeeze=False)[0]
        for ax, (title, stack) in zip(axes, images.items(), strict=True):
            low, high = scales[title]
            show(ax, raster, stack[0], title, cmap=cmap, vmin=low, vmax=high)
        dots = []
        if marks:
            dots = [ax.scatter(*marks[0].T, s=20, c="white", edgecolors="black", linewidths=0.8) for ax in axes]
        time = figure.suptitle(labels[0], fontsize=10)

        def update(k: int) -> None:
            for ax, stack in zip(axes, images.values(), strict=True):
                ax.images[0].set_data(stack[k])
            for scatter in dots:
                scatter.set_offsets(marks[k])
            time.set_text(labels[k])

        return update

    if size is None:
        left, right, bottom, top = raster.extent
        height = 2.6 * (top - bottom) / (right - left)
        size = (3.4 * max(1, len(panels)), min(max(height, 1.0), 6.0) + 0.8)
    save_animation(comm, path, draw, len(times), size=size, fps=fps, dpi=dpi)


def _check(path: Path, frames: int, fps: float) -> None:
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"'{path.name}' is neither .gif nor .mp4, which is what an animation is written as")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise RuntimeError(f"'{path.name}' needs ffmpeg, which is not on the PATH: install it, or write a .gif")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder '{path.parent}' for '{path.name}' does not exist; make it first")
    if frames < 1:
        raise ValueError(f"an animation needs one frame or more, not {frames}")
    if not 0.0 < fps < np.inf or (path.suffix == ".gif" and fps > 50.0):
        raise ValueError(f"fps = {fps}: give a positive number, for a .gif at most 50, which is what it can hold")


def _write_gif(path: Path, frame: Callable[[int], np.ndarray], frames: int, fps: float) -> None:
    from PIL import Image

    palette = _palette([frame(k) for k in np.unique(np.linspace(0, frames - 1, PALETTE_FRAMES).astype(int))])
    nearest = KDTree(palette)

    def picture(k: int) -> Any:
        colours, which = _colours(frame(k))
        indexed = Image.fromarray(nearest.query(colours)[1].astype(np.uint8)[which])
        indexed.putpalette(palette.astype(np.uint8).tobytes())
        return indexed

    first, *others = (picture(k) for k in range(frames))
    first.save(path, save_all=True, append_images=others, duration=round(1000.0 / fps), loop=0)


def _colours(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different colours (n, 3) of an image (ny, nx, 3), and which of them each pixel has (ny, nx)."""
    codes = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    different, which = np.unique(codes, return_inverse=True)
    return np.stack([different >> 16, different >> 8 & 255, different & 255], axis=1), which.reshape(codes.shape)


def _palette(samples: Sequence[np.ndarray]) -> np.ndarray:
    """At most 256 colours (n, 3) for all frames.

    What is seen most, such as the white of the paper, is kept exactly.  Among the rest a colour counts by the
    logarithm of its pixels: the dot of a sensor is as much worth seeing as a large patch.
    """
    from PIL import Image

    colours, which = _colours(np.concatenate(samples))
    counts = np.bincount(which.ravel())
    if len(colours) <= 256:
        return colours
    most = np.argsort(-counts, kind="stable")[:16]
    weighted = np.repeat(colours, 1 + np.log2(counts).astype(int), axis=0).astype(np.uint8)
    rest = Image.fromarray(weighted[None]).quantize(240, method=Image.Quantize.MEDIANCUT, kmeans=1)
    return np.concatenate([colours[most], np.reshape(rest.getpalette() or [], (-1, 3))])


def _write_mp4(path: Path, frame: Callable[[int], np.ndarray], frames: int, fps: float) -> None:
    height, width = (n - n % 2 for n in frame(0).shape[:2])  # yuv420p, which every player knows, halves both
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(fps), "-i", "-", "-an", "-pix_fmt", "yuv420p", str(path)]
    # Not through a pipe: when ffmpeg gives up, PETSc's handler of SIGPIPE would end the program.
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        for k in range(frames):
            raw.write(frame(k)[:height, :width].tobytes())
        raw.seek(0)
        done = subprocess.run(command, stdin=raw, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"ffmpeg could not write the animation ({done.stderr.strip() or done.returncode}); write a .gif"
        )


def _stack(title: str, images: np.ndarray | Sequence[np.ndarray], raster: Raster, n: int) -> np.ndarray:
    if len(images) != n:
        raise ValueError(f"panel '{title}' has {len(images)} images for {n} times; give one for each time")
    for k, image in enumerate(images):
        if np.shape(image) != raster.shape:
            raise ValueError(f"image {k} of panel '{title}' has shape {np.shape(image)}, the raster {raster.shape}")
    return np.asarray(images, dtype=float)


def _limits(title: str, images: np.ndarray, given: tuple[float, float] | None) -> tuple[float, float]:
    if given is not None:
        return given
    finite = images[np.isfinite(images)]
    if finite.size == 0:
        raise ValueError(f"panel '{title}' has no finite value to show")
    return float(finite.min()), float(finite.max())


def _positions(sensors: np.ndarray | Sequence[np.ndarray] | None, n: int) -> list[np.ndarray]:
    if sensors is None:
        return []
    fixed = isinstance(sensors, np.ndarray) and sensors.ndim == 2
    marks = [np.asarray(x, dtype=float) for x in ([sensors] * n if fixed else sensors)]
    if len(marks) != n:
        raise ValueError(f"sensors has positions for {len(marks)} times, not for {n}; give (n, 2) or one for each")
    for k, x in enumerate(marks):
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"the positions of the sensors at time {k} have shape {x.shape}, not (n, 2)")
    return marks


def _labels(times: np.ndarray) -> list[str]:
    """The times with as many decimals as tell them apart, the same for all."""
    step = np.diff(np.unique(times)).min() if len(np.unique(times)) > 1 else 1.0
    decimals = next((d for d in range(9) if np.abs(np.round(times, d) - times).max() < 0.05 * step), 9)
    return [f"{t:.{decimals}f}" for t in times]
