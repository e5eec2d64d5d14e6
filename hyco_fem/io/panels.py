"""One field of a picture: its cells for VTK, where they are seen, and how they are drawn."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dolfinx import fem

# Pixels: the longer side of a field; around it; above it, for its name; right of it, for its colours.
_LONG, _MARGIN, _TITLE, _BAR = 460, 22, 40, 110
# Arrows along the longer side; numbers beside the colours.
_ARROWS, _LABELS = 18, 5


@dataclass(frozen=True)
class Shape:
    """Cells of VTK, (n, 1 + nodes), their type, points (m, 3), and values (m,) or (m, d), or constant in the cells."""

    cells: np.ndarray
    kind: int
    x: np.ndarray
    values: np.ndarray
    constant: bool = False


def length(values: np.ndarray) -> np.ndarray:
    """What colours show: the values of a scalar field, the lengths of a vector field."""
    return values if values.ndim == 1 else np.linalg.norm(values, axis=1)


def _corners(shape: Shape) -> Shape:
    """The same with linear cells, of which the edges are drawn; a Lagrange cell of VTK begins with its corners."""
    kind, corners = {69: (5, 3), 70: (9, 4), 71: (10, 4), 72: (12, 8)}.get(shape.kind, (shape.kind, shape.cells[0, 0]))
    cells = np.column_stack([np.full(len(shape.cells), corners), shape.cells[:, 1 : corners + 1]])
    return replace(shape, cells=cells, kind=kind)


def _moved(shape: Shape, deform: float) -> np.ndarray:
    """Points of the deformed body."""
    if shape.values.ndim == 1 or deform == 0.0:
        return shape.x
    return shape.x + deform * np.pad(shape.values, ((0, 0), (0, 3 - shape.values.shape[1])))


def _view(flat: bool) -> np.ndarray:
    """Unit vectors to the right, up, and to the eye, in rows."""
    if flat:
        return np.eye(3)
    eye = np.array([1.0, 1.0, 0.8]) / np.linalg.norm([1.0, 1.0, 0.8])
    right = np.cross([0.0, 0.0, 1.0], eye)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(eye, right), eye])


class Panel:
    """One field in its part of the window.  The projection is parallel: what is moved to the eye stays where it is."""

    def __init__(self, f: fem.Function, shape: Shape, deform: float) -> None:
        self.name, self.shape, self.deform = f.name, shape, deform if shape.values.ndim == 2 else 0.0
        self.flat = f.function_space.mesh.geometry.dim == 2
        self.curved = shape.kind not in (5, 9, 10, 12)  # linear triangles to hexahedra
        x, self.view = _moved(shape, deform), _view(self.flat)
        seen = x @ self.view.T
        self.low, self.high = seen.min(axis=0), seen.max(axis=0)
        extent = (self.high - self.low)[:2]
        sides = np.maximum(60, _LONG * extent / extent.max()).astype(int)
        self.size = (int(sides[0] + 2 * _MARGIN + _BAR), int(sides[1] + 2 * _MARGIN + _TITLE))

    def draw(
        self,
        pyvista: Any,
        plotter: Any,
        size: tuple[int, int],
        limits: tuple[float, float],
        cmap: str,
        edges: bool,
        marks: np.ndarray | None,
    ) -> None:
        """Draw into the part of the plotter that is chosen, of this size in pixels."""
        grid = vtk_grid(pyvista, self.shape, _moved(self.shape, self.deform))
        body = grid if self.flat else _opened(pyvista, grid)
        # An edge of a cell of higher degree is drawn in four pieces.
        surface = _surface(body, 2 if self.curved else 0)
        actor = plotter.add_mesh(
            surface,
            scalars="shown",
            cmap=cmap,
            clim=limits if limits[0] < limits[1] else (limits[0] - 0.5, limits[0] + 0.5),
            lighting=not self.flat,
            ambient=0.6,
            diffuse=0.4,
            nan_color="lightgrey",
            show_scalar_bar=False,
        )
        eye, depth = self.view[2], float(np.linalg.norm(self.high - self.low))
        if edges:
            plain = _corners(self.shape)
            lines = vtk_grid(pyvista, plain, _moved(self.shape, self.deform))
            lines = _surface(lines if self.flat else _opened(pyvista, lines), 0).extract_all_edges()
            lines.points += 2e-3 * depth * eye
            plotter.add_mesh(lines, color="black", line_width=0.6, opacity=0.5)
        if self.deform != 0.0:
            plotter.add_mesh(self._undeformed(pyvista), color="grey", line_width=1.0)
        elif self.flat and self.shape.values.ndim == 2:
            self._arrows(pyvista, plotter, grid)
        if marks is not None and len(marks):
            if self.flat:
                plotter.add_points(marks + 0.1 * depth * eye, color="black", point_size=9, **_DOTS)
                plotter.add_points(marks + 0.2 * depth * eye, color="white", point_size=6, **_DOTS)
            else:
                # Those in the body are seen through it.
                plotter.add_points(marks, color="orangered", point_size=10, **_DOTS)
                plotter.add_points(marks + 2 * depth * eye, color="orangered", point_size=10, opacity=0.3, **_DOTS)
        self._look(plotter.camera, size, 5 * depth)
        self._words(pyvista, plotter, size, actor.mapper)

    def _undeformed(self, pyvista: Any) -> Any:
        return pyvista.PolyData(self.shape.x).outline()

    def _arrows(self, pyvista: Any, plotter: Any, grid: Any) -> None:
        step = (self.high - self.low).max() / _ARROWS
        axes = [np.arange(a + step / 2, b, step) for a, b in zip(self.low[:2], self.high[:2], strict=True)]
        x, y = (a.ravel() for a in np.meshgrid(*axes))
        places = pyvista.PolyData(np.stack([x, y, np.zeros_like(x)], axis=1)).sample(grid)
        inside = places["vtkValidPointMask"].astype(bool)
        vectors = places["vector"][inside]
        longest = np.linalg.norm(vectors, axis=1).max(initial=0.0)
        if longest > 0.0:
            # Short arrows stand where colours are dark, so that black is seen on them.
            start = places.points[inside] + [0.0, 0.0, step]
            plotter.add_arrows(start, vectors, mag=0.9 * step / longest, color="black", lighting=False)

    def _look(self, camera: Any, size: tuple[int, int], far: float) -> None:
        """The whole field, left of its colours and below its name."""
        space = np.array(size) - 2 * _MARGIN - np.array([_BAR, _TITLE])
        unit = float(((self.high - self.low)[:2] / space).max())  # length of a pixel
        middle = (self.low + self.high) / 2
        middle[:2] += unit * np.array([_BAR, _TITLE]) / 2
        camera.parallel_projection = True
        camera.focal_point = middle @ self.view
        camera.position = middle @ self.view + far * self.view[2]
        camera.up = self.view[1]
        camera.parallel_scale = unit * size[1] / 2
        camera.clipping_range = (0.1 * far, 2 * far)

    def _words(self, pyvista: Any, plotter: Any, size: tuple[int, int], mapper: Any) -> None:
        """The name of the field, and its colours with numbers."""
        width, height = size
        place = (_MARGIN, height - _TITLE)
        plotter.add_text(self.name, position=place, font_size=10, color="black", font_file=_font())
        bar = plotter.add_scalar_bar(
            # Bars are told from each other by their titles.
            title=" " * (1 + len(plotter.scalar_bars)),
            mapper=mapper,
            vertical=True,
            n_labels=_LABELS,
            fmt="%.3g",
            color="black",
            label_font_size=14,
            position_x=1 - (_BAR + 6) / width,
            position_y=_MARGIN / height,
            width=_BAR / width,
            height=1 - (2 * _MARGIN + _TITLE) / height,
        )
        bar.SetBarRatio(0.2)
        bar.SetCustomLabels(pyvista.convert_array(_labels(*mapper.scalar_range)))
        bar.SetUseCustomLabels(True)


def _labels(low: float, high: float) -> np.ndarray:
    """Numbers beside the colours; what is zero but for a thousandth of the range is zero."""
    labels = np.linspace(low, high, _LABELS)
    labels[np.abs(labels) < 1e-3 * (high - low)] = 0.0
    return labels.clip(low, high)


_DOTS: dict[str, Any] = {"render_points_as_spheres": True, "lighting": False}


def vtk_grid(pyvista: Any, shape: Shape, x: np.ndarray) -> Any:
    """A shape for VTK, with its nodes at x (m, 3); what is shown of it, and its vectors."""
    grid = pyvista.UnstructuredGrid(shape.cells.ravel(), np.full(len(shape.cells), shape.kind, dtype=np.uint8), x)
    data = grid.cell_data if shape.constant else grid.point_data
    data["shown"] = length(shape.values)
    if shape.values.ndim == 2:
        data["vector"] = np.pad(shape.values, ((0, 0), (0, 3 - shape.values.shape[1])))
    return grid


def _surface(body: Any, subdivision: int) -> Any:
    # Later releases ask for the algorithm that earlier ones have only.
    known = "algorithm" in inspect.signature(body.extract_surface).parameters
    chosen = {"algorithm": "dataset_surface"} if known else {}
    return body.extract_surface(nonlinear_subdivision=subdivision, **chosen)


def _opened(pyvista: Any, grid: Any) -> Any:
    """The body without the eighth that faces the eye."""
    middle = grid.center
    behind, front = grid.clip("x", origin=middle, return_clipped=True)
    left, right = front.clip("y", origin=middle, return_clipped=True)
    return pyvista.merge([behind, left, right.clip("z", origin=middle)], merge_points=False)


def _font() -> str:
    """VTK's own has no Greek letters."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")
