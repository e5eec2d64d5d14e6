"""Pictures of the fields of an XDMF file: lines in 1D, colours in 2D, and in 3D on planes through the middle.

Rank 0 reads whole fields here: this is for files, when the run is over.  Colours are a PNG of some hundred pixels in an
SVG with axes and sensors, whatever the size of the mesh: of many small cells only what a pixel can show is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hyco_fem.experiment.report_html import Html, figure, number
from hyco_fem.experiment.report_plot import (
    BOTTOM,
    LEFT,
    TOP,
    Curve,
    Scale,
    axes,
    colour_axis,
    curve_plot,
    drawing,
    legend,
)
from hyco_fem.experiment.report_raster import Plane, image, png, raster
from hyco_fem.experiment.report_xdmf import Field, Grid
from hyco_fem.io.sensors import Sensors

# Of a picture: its largest size in the drawing.
_WIDE, _HIGH = 262.0, 290.0

# Sensors are drawn on a plane when they are nearer than this part of the size of the body.
_NEAR = 0.05
_MOST_SENSORS = 600

# Sensors in time are drawn with a field when they have measured within this part of the time from it.
_SOON = 0.02

# How far from the middle a body is cut, as a part of its size.
_ASIDE = 1e-4

_BAR = 110  # colours in the bar beside a picture

_SPLIT = {"Triangle": [[0, 1, 2]], "Quadrilateral": [[0, 1, 2], [0, 2, 3]]}
_VTK = {"Tetrahedron": 10, "Hexahedron": 12}


# -- pictures --------------------------------------------------------------------------------------------------


def pictures(
    grid: Grid, shown: Sequence[Field], sensors: Sensors | None, found: Sequence[str] = (), planes: int = 3
) -> list[Html]:
    """A figure for each field, in 3D for each field and plane; in 1D both models are in one.

    Args:
        sensors: Drawn on top.  found: names of coefficients.  planes: in 3D, how many.

    Raises:
        ValueError: there are no pictures of such a mesh.  ImportError: what draws is not there.
    """
    if grid.kind == "PolyLine" and not grid.x[:, 1:].any():  # XDMF has no points with one coordinate
        grid = replace(grid, x=grid.x[:, :1])
    d = grid.x.shape[1]
    if sensors is not None and sensors.x.shape[1] != d:
        sensors = None
    if grid.kind == "PolyLine" and d == 1:
        return _lines(grid, shown, sensors, found)
    if grid.kind in _SPLIT and d == 2:
        corners = _SPLIT[grid.kind]
        triangles = np.concatenate([grid.cells[:, c] for c in corners])
        split = [replace(f, values=np.tile(f.values, (len(corners), 1))) if f.cells else f for f in shown]
        cuts = [Plane(grid.x, triangles, split)]
    elif grid.kind in _VTK and d == 3:
        cuts = _cuts(grid, shown)[:planes]
    else:
        raise ValueError(f"there are no pictures of a mesh of the kind '{grid.kind}' in {d}D")
    norms = _norms(shown)
    return [_coloured(plane, plane.fields[k], norms[k], sensors, found) for k in range(len(shown)) for plane in cuts]


def _is_difference(field: Field) -> bool:
    return "−" in field.name


def _norms(fields: Sequence[Field]) -> list[tuple[float, float]]:
    """Least and largest colour of each field: the same for fields of one letter, such as u_physical and u_synthetic."""
    ranges: dict[str, tuple[float, float]] = {}
    for f in fields:
        low, high = float(np.nanmin(f.scalar)), float(np.nanmax(f.scalar))
        if _is_difference(f):
            size = max(abs(low), abs(high))
            low, high = (-size, size) if f.values.shape[1] == 1 else (0.0, size)
        before = ranges.get(_letter(f))
        ranges[_letter(f)] = (low, high) if before is None else (min(low, before[0]), max(high, before[1]))
    return [_spread(*ranges[_letter(f)]) for f in fields]


def _letter(field: Field) -> str:
    return field.name if _is_difference(field) else field.name.split("_")[0]


def _spread(low: float, high: float) -> tuple[float, float]:
    """Ends that differ, by more than rounding."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    size = 0.1 * abs(high) or 1.0
    return low - size, high + size


def _cuts(grid: Grid, fields: Sequence[Field]) -> list[Plane]:
    """Planes through the middle, one across each axis."""
    try:
        import pyvista
    except ImportError:
        raise ImportError("pictures of 3D fields need pyvista") from None
    body = pyvista.UnstructuredGrid({_VTK[grid.kind]: grid.cells}, np.ascontiguousarray(grid.x, dtype=np.float64))
    for k, f in enumerate(fields):
        (body.cell_data if f.cells else body.point_data)[str(k)] = f.values
    low, high = grid.x.min(axis=0), grid.x.max(axis=0)
    planes = []
    for axis in (2, 1, 0):
        # Not quite the middle, where many meshes have faces in the plane.
        place = low + (0.5 + _ASIDE) * (high - low)
        cut = body.slice(normal=np.eye(3)[axis], origin=place).triangulate()
        if not cut.n_cells:
            continue
        a, b = (i for i in range(3) if i != axis)
        x = np.asarray(cut.points, dtype=np.float64)[:, [a, b]]
        triangles = np.asarray(cut.faces).reshape(-1, 4)[:, 1:]
        # Slivers, which that leaves, are too thin to be seen, but not too thin to be drawn badly.
        thick = _heights(x[triangles]) > 4 * _ASIDE * (high - low).max()
        shown = []
        for k, f in enumerate(fields):
            values = np.asarray((cut.cell_data if f.cells else cut.point_data)[str(k)]).reshape(-1, f.values.shape[1])
            shown.append(replace(f, values=values[thick] if f.cells else values))
        names = ("xyz"[a], "xyz"[b])
        planes.append(Plane(x, triangles[thick], shown, names, (axis, float(place[axis]))))
    return planes


def _heights(corners: np.ndarray) -> np.ndarray:
    """The least height of each triangle, (n,), from its corners (n, 3, 2)."""
    edges = corners - np.roll(corners, 1, axis=1)
    (ax, ay), (bx, by) = edges[:, 0].T, edges[:, 1].T
    longest = np.linalg.norm(edges, axis=2).max(axis=1)
    return np.abs(ax * by - ay * bx) / np.where(longest > 0, longest, 1.0)


def _caption(field: Field, found: Sequence[str], where: str = "") -> str:
    values = field.scalar
    at = "" if field.time is None else f" at t = {number(field.time, 4)}"
    what = {
        "u_physical": "the physical model: the PDE solved with what was found",
        "u_synthetic": "the synthetic model: the network",
    }.get(field.name, "the coefficient as it was found" if field.name in found else "")
    if _is_difference(field):
        what = "the difference of the two models"
        if field.values.shape[1] == 1:
            what += "; red: the physical model is larger, blue: the synthetic one"
    head = f"{field.symbol}{where}{at}" + (f", {what}" if what else "")
    ends = np.array([np.nanmin(values), np.nanmax(values)])
    low, high = (number(float(v), 4) for v in np.where(np.abs(ends) > 1e-9 * np.abs(ends).max(), ends, 0.0))
    return f"{head}. {low} everywhere." if low == high else f"{head}. From {low} to {high}."


# -- 1D --------------------------------------------------------------------------------------------------------


def _lines(grid: Grid, fields: Sequence[Field], sensors: Sensors | None, found: Sequence[str]) -> list[Html]:
    pair = [f for f in fields if f.name in ("u_physical", "u_synthetic")]
    drawn: list[Html] = []
    if pair:
        series = len({f.time for f in pair}) > 1
        names = [f"{f.symbol}{f' at t = {number(f.time, 4)}' if series else ''}" for f in pair]
        curves = [Curve(*_graph(grid, f), name, k) for k, (f, name) in enumerate(zip(pair, names, strict=True))]
        points, told = None, ""
        sensors = None if series else _measured_then(sensors, pair[0])
        if sensors is not None and sensors.values.ndim == 1 and len(sensors.x):
            points = sensors.x[:, 0], sensors.values, sensors.noise_std
            told = " Dots: sensors" + (
                ", with one standard deviation of the noise." if sensors.noise_std is not None else "."
            )
        what = f"{pair[0].symbol} over x" if len({f.name for f in pair}) == 1 else "Both models over x"
        at = "" if series or pair[0].time is None else f" at t = {number(pair[0].time, 4)}"
        picture = curve_plot(curves, what, x_label="x", points=points)
        drawn.append(figure(picture, f"{what}{at}.{told}", legend(curves)))
    for f in fields:
        if f not in pair:
            picture = curve_plot([Curve(*_graph(grid, f))], f"{f.name} over x", x_label="x")
            drawn.append(figure(picture, _caption(f, found)))
    return drawn


def _graph(grid: Grid, field: Field) -> tuple[np.ndarray, np.ndarray]:
    """x and values along the interval; of a field in cells, both ends of each."""
    if not field.cells:
        order = np.argsort(grid.x[:, 0])
        return grid.x[order, 0], field.scalar[order]
    ends = np.sort(grid.x[grid.cells, 0], axis=1)
    order = np.argsort(ends[:, 0])
    return ends[order].ravel(), np.repeat(field.scalar[order], 2)


# -- colours ---------------------------------------------------------------------------------------------------


def _coloured(
    plane: Plane, field: Field, limits: tuple[float, float], sensors: Sensors | None, found: Sequence[str]
) -> Html:
    from matplotlib import colormaps

    signed = _is_difference(field) and field.values.shape[1] == 1
    colours = colormaps["RdBu_r" if signed else "viridis"]
    low, high = plane.x.min(axis=0), plane.x.max(axis=0)
    zoom = min(_WIDE / (high - low)[0], _HIGH / (high - low)[1])
    width, height = zoom * (high - low)
    x = Scale(low[0], high[0], LEFT, LEFT + width)
    y = Scale(low[1], high[1], TOP + height, TOP)
    bar = Scale(*limits, TOP + height, TOP)
    left = LEFT + width + 14
    parts = [
        image(raster(plane, field, limits, colours, (low, high)), LEFT, TOP, width, height),
        axes(x, y, *plane.names),
        image(png(colours(np.linspace(1, 0, _BAR))[:, None, :]), left, TOP, 12, height),
        f'<rect class="frame" x="{left:.1f}" y="{TOP:.1f}" width="12" height="{height:.1f}"/>',
        colour_axis(bar, left + 16),
    ]
    told = ""
    sensors = _measured_then(sensors, field)
    if sensors is not None:
        filled = field.name in ("u_physical", "u_synthetic") and (sensors.t is None or field.time is not None)
        dots = _dots(
            plane, sensors, x, y, (lambda v: colours((v - limits[0]) / (limits[1] - limits[0]))) if filled else None
        )
        parts += dots
        if dots:
            told = " Circles: sensors, in the colour of what they measured." if filled else " Dots: sensors."
    where = "" if plane.across is None else f" at {'xyz'[plane.across[0]]} = {number(plane.across[1], 3)}"
    if plane.across is not None and told:
        told = told[:-1].replace("sensors", "sensors near the plane") + "."
    describe = f"{field.name}{where} in colours, from {number(limits[0], 3)} to {number(limits[1], 3)}"
    return figure(drawing("".join(parts), describe, TOP + height + BOTTOM), _caption(field, found, where) + told)


def _measured_then(sensors: Sensors | None, field: Field) -> Sensors | None:
    """What was measured at the time of a field; where either has none, all sensors."""
    if sensors is None or sensors.t is None or field.time is None:
        return sensors
    then = np.abs(sensors.t - field.time) <= _SOON * max(np.ptp(sensors.t), abs(field.time))
    noise = None if sensors.noise_std is None else sensors.noise_std[then]
    return replace(sensors, x=sensors.x[then], values=sensors.values[then], noise_std=noise, t=sensors.t[then])


def _dots(plane: Plane, sensors: Sensors, x: Scale, y: Scale, colour: Any) -> list[str]:
    places, values = sensors.x, sensors.values
    values = values if values.ndim == 1 else np.linalg.norm(values, axis=1)
    if plane.across is not None:
        axis, at = plane.across
        near = np.abs(places[:, axis] - at) <= _NEAR * np.ptp(plane.x, axis=0).max()
        places, values = places[near][:, [i for i in range(3) if i != axis]], values[near]
    step = -(-len(places) // _MOST_SENSORS) or 1
    drawn = []
    for px, py, value in zip(x(places[::step, 0]), y(places[::step, 1]), values[::step], strict=True):
        where = f'cx="{px:.1f}" cy="{py:.1f}"'
        if colour is None:
            drawn.append(f'<circle class="sensor" {where} r="2.2" fill="#000"/>')
        else:
            drawn.append(f'<circle {where} r="5" fill="#000"/>')
            drawn.append(f'<circle class="sensor" {where} r="3.8" fill="{_hex(colour(value))}"/>')
    return drawn


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour[:3])
