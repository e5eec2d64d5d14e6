"""Fields on triangles as pixels."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyco_fem.experiment.report_xdmf import Field

# Pixels along the longer side of a picture, fewer where points are many, or pictures.
_PIXELS, _FEW_PIXELS, _MANY_NODES = 600, 360, 200_000


@dataclass(frozen=True, eq=False)
class Plane:
    """What is drawn in colours: fields on triangles (m, 3) of points x (n, 2).

    across: None, or the axis that the plane cuts, and where.
    """

    x: np.ndarray
    triangles: np.ndarray
    fields: list[Field]
    names: tuple[str, str] = ("x", "y")
    across: tuple[int, float] | None = None


def image(content: bytes, x: float, y: float, width: float, height: float) -> str:
    """A PNG at a place in an SVG."""
    data = base64.b64encode(content).decode()
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
        f' href="data:image/png;base64,{data}"/>'
    )


def png(colours: np.ndarray) -> bytes:
    """A PNG of colours (rows, columns, 4)."""
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, colours, format="png")
    return out.getvalue()


def raster(
    plane: Plane, field: Field, limits: tuple[float, float], colours: Any, corners: tuple[np.ndarray, np.ndarray]
) -> bytes:
    """A PNG of the rectangle between two corners, clear where there is no mesh."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.tri import Triangulation

    low, high = corners
    many = len(plane.x) > _MANY_NODES
    one_of_many = plane.across is not None or field.time is not None
    size = (high - low) / (high - low).max() * (_FEW_PIXELS if many or one_of_many else _PIXELS)
    drawing = Figure(figsize=np.maximum(size, 8) / 100, dpi=100)
    FigureCanvasAgg(drawing)
    ax = drawing.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    values, triangles = field.scalar, plane.triangles
    if many:
        shape = np.maximum(size.astype(int), 8)
        means, small = averaged(
            plane.x, triangles, values if field.cells else values[triangles].mean(axis=1), corners, shape
        )
        extent = (low[0], high[0], low[1], high[1])
        ax.imshow(means, origin="lower", extent=extent, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        triangles = triangles[~small]
        values = values[~small] if field.cells else values
    if len(triangles):
        ax.tripcolor(
            Triangulation(*plane.x.T, triangles),
            values,
            shading="flat" if field.cells else "gouraud",
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
        )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    out = io.BytesIO()
    drawing.savefig(out, format="png", transparent=True)
    return out.getvalue()


def averaged(
    x: np.ndarray, triangles: np.ndarray, values: np.ndarray, corners: tuple[np.ndarray, np.ndarray], shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means over the pixels of triangles smaller than half a pixel, (ny, nx), and which triangles these are."""
    low, high = corners
    points = (x[triangles] - low) / (high - low) * shape
    small = np.ptp(points, axis=1).max(axis=1) < 0.5
    column, row = np.minimum(points[small].mean(axis=1).astype(int), shape - 1).T
    pixel = row * shape[0] + column
    n = np.bincount(pixel, minlength=shape.prod())
    with np.errstate(invalid="ignore"):
        means = np.bincount(pixel, values[small], minlength=shape.prod()) / n
    return means.reshape(shape[1], shape[0]), small
