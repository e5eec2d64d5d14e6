"""Pictures: fields on a raster of pixels, so that their cost does not grow with the mesh, drawn by rank 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn

from hyco_fem.bridge.points import Points
from hyco_fem.files import replace_file
from hyco_fem.models.synthetic import bounding_box
from hyco_fem.parallel import agreed


class Raster:
    """Pixel centres over the bounding box of a 2D mesh; pixels outside the mesh stay empty.

    Args:
        mesh: A 2D mesh.  pixels: along the longer side.

    Attributes:
        extent: (left, right, bottom, top), for matplotlib's imshow.

    Collective.
    """

    def __init__(self, mesh: dmesh.Mesh, pixels: int = 300) -> None:
        if mesh.geometry.dim != 2:
            raise ValueError(f"a raster needs a 2D mesh, not a {mesh.geometry.dim}D one")
        lower, upper = bounding_box(mesh)
        nx, ny = np.maximum(2, np.round(pixels * (upper - lower) / (upper - lower).max())).astype(int)
        axes = [lower[i] + (np.arange(n) + 0.5) * (upper - lower)[i] / n for i, n in enumerate((nx, ny))]
        grid = np.stack(np.meshgrid(*axes), axis=-1)
        self.shape = grid.shape[:2]
        self.extent = (lower[0], upper[0], lower[1], upper[1])
        self.points = Points(mesh, grid.reshape(-1, 2), missing="mark")

    def image(self, field: fem.Function | nn.Module | Callable[[Tensor], Tensor]) -> np.ndarray:
        """Values of a scalar field as an image (ny, nx), bottom row first, NaN outside; replicated.  Collective."""
        values = self.points.evaluate(field) if isinstance(field, fem.Function) else None
        with torch.no_grad(), agreed(self.points.comm):
            if values is None:
                values = field(self.points.x)
            if values.numel() != len(self.points):
                raise ValueError(
                    f"a picture shows a scalar field, not one with values of shape {tuple(values.shape[1:])}"
                )
        return self.points.gather(values.reshape(-1)).reshape(self.shape)


def show(ax: Any, raster: Raster, image: np.ndarray, title: str, *, cmap: str = "viridis", **kwargs: Any) -> None:
    """Draw an image with its colour bar and title on a matplotlib axis."""
    drawn = ax.imshow(image, origin="lower", extent=raster.extent, cmap=cmap, interpolation="nearest", **kwargs)
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=7)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.0, 0.04, 1.0)))  # as high as the picture
    bar.ax.tick_params(labelsize=7)


def save_figure(comm: Any, path: str | Path, draw: Callable[[Any], None], *, size: tuple[float, float]) -> None:
    """Draw on rank 0 with draw(figure), and write a PNG, whole or not at all.  Collective.

    The figure needs no display: it is rendered by matplotlib's Agg canvas, and pyplot is not touched.
    """
    with agreed(comm):
        if comm.rank == 0:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure)
            replace_file(path, lambda p: figure.savefig(p, dpi=130))
