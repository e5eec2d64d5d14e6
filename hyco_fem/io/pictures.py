"""Pictures of fields in 2D and 3D, drawn by pyvista on rank 0, with or without a screen.

Each rank sends the cells it owns, with the nodes of the field in them, so that fields of any degree are drawn as they
are.  Of a mesh with too many cells a picture shows samples on a grid instead: what rank 0 holds is then bounded by the
picture, whatever the mesh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

import numpy as np
from dolfinx import fem, plot

from hyco_fem import _compat
from hyco_fem.bridge.interpolate import is_mixed
from hyco_fem.files import replace_file
from hyco_fem.io.panels import Panel, Shape, length, vtk_grid
from hyco_fem.io.screen import import_pyvista, off_screen
from hyco_fem.io.sensors import Sensors
from hyco_fem.models.synthetic import bounding_box
from hyco_fem.parallel import agreed

# Samples along the longer side where a mesh has too many cells.
_SAMPLES = {2: 500, 3: 64}


def picture(
    path: str | Path,
    functions: fem.Function | Sequence[fem.Function],
    *,
    sensors: Any = None,
    limits: Literal["own", "common"] | tuple[float, float] = "own",
    cmap: str = "viridis",
    edges: bool = False,
    deform: float = 0.0,
    columns: int | None = None,
    most_cells: int = 2_000_000,
) -> Path:
    """Draw fields side by side into a PNG, whole or not at all.

        picture("u.png", [u_phy, u_syn], sensors=read_sensors("sensors.csv"), limits="common")

    A scalar field is drawn in colours.  A vector field is drawn in the colours of its length, with arrows (2D), or on
    the deformed mesh.  From a body in 3D the eighth that faces the eye is cut away.

    Args:
        path: Ends in .png.
        functions: Of Lagrange elements of any degree, continuous or not, scalar or with a component for each dimension;
            on meshes in 2D or 3D, which may be different ones of the same ranks.  Their names stand above them.
        sensors: Positions to mark: (n, d), `Sensors`, or None.  Replicated.
        limits: Of the colours: of each field its own, those of all, or (lowest, highest).
        cmap: A colour map of matplotlib.  viridis and cividis are the same for everybody's eyes and when printed grey;
            for signed fields take coolwarm with symmetric limits.
        edges: Draw the edges of the cells.
        deform: x + deform · u is drawn for a vector field u; 0 for arrows.
        columns: Panels in a row; by default all up to three.
        most_cells: A mesh with more is sampled at 500 points along its longer side in 2D, at 64 in 3D, and its edges
            are not drawn.

    Raises:
        ValueError: no function, a kind of field that is not drawn, nothing finite, or arguments that do not fit.
        RuntimeError: pyvista is not installed, or there is nothing that it could draw on; see `off_screen`.
        OSError: not writable.  On all ranks.

    Collective.
    """
    path = Path(path)
    fields = [functions] if isinstance(functions, fem.Function) else list(functions)
    marks = _check(path, fields, sensors, limits, columns, deform)
    comm: MPI.Comm = fields[0].function_space.mesh.comm
    shapes = [_gathered(f) if _cells(f) <= most_cells else _sampled(f) for f in fields]
    with agreed(comm):
        if comm.rank == 0:
            whole = [shape for shape in shapes if shape is not None]
            ranges = _ranges(fields, whole, limits)
            columns = min(len(fields), columns or 3)
            panels = [Panel(f, shape, deform) for f, shape in zip(fields, whole, strict=True)]
            width, height = (max(panel.size[i] for panel in panels) for i in (0, 1))
            rows = math.ceil(len(fields) / columns)
            with off_screen() as pyvista:
                plotter = pyvista.Plotter(
                    off_screen=True,
                    shape=(rows, columns),
                    window_size=(columns * width, rows * height),
                    border=False,
                    line_smoothing=True,
                )
                try:
                    plotter.set_background("white")
                    for k, panel in enumerate(panels):
                        plotter.subplot(*divmod(k, columns))
                        fine = edges and _cells(fields[k]) <= most_cells
                        panel.draw(pyvista, plotter, (width, height), ranges[k], cmap, fine, marks)
                    replace_file(path, lambda p: plotter.screenshot(p))
                finally:
                    plotter.close()
    return path


# -- what is drawn -----------------------------------------------------------------------------------------------


def _check(
    path: Path, fields: Sequence[fem.Function], sensors: Any, limits: Any, columns: Any, deform: float
) -> np.ndarray | None:
    """Whether the arguments fit; the positions to mark."""
    if path.suffix != ".png":
        raise ValueError(f"a picture is a .png, not '{path.name}'")
    if not fields:
        raise ValueError("nothing to draw: there are no Functions")
    for f in fields:
        V = f.function_space
        d, shape = V.mesh.geometry.dim, _compat.value_shape(V)
        if d not in (2, 3) or V.mesh.topology.dim != d:
            raise ValueError(f"'{f.name}' is on a {V.mesh.topology.dim}D mesh in {d}D: pictures are of 2D and 3D ones")
        if d != fields[0].function_space.mesh.geometry.dim:
            raise ValueError(f"'{f.name}' and '{fields[0].name}' are not of one dimension: draw a picture for each")
        if is_mixed(V) or V.component() or V.element.basix_element.family.name != "P":
            raise ValueError(f"'{f.name}' is not of a Lagrange space: interpolate it into one, or collapse() it")
        if shape not in ((), (d,)):
            raise ValueError(f"'{f.name}' has values of shape {shape}: a picture shows scalars and vectors in {d}D")
        if deform != 0.0 and shape == (d,) and V.element.basix_element.degree == 0:
            raise ValueError(f"'{f.name}' is constant in the cells, which would not fit together: no deform for it")
    if not (limits in ("own", "common") or (isinstance(limits, tuple) and len(limits) == 2 and limits[0] < limits[1])):
        raise ValueError(f"limits must be 'own', 'common' or (lowest, highest), not {limits!r}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns = {columns}: one or more")
    if sensors is None:
        return None
    marks = np.asarray(sensors.x if isinstance(sensors, Sensors) else sensors, dtype=np.float64)
    d = fields[0].function_space.mesh.geometry.dim
    if marks.ndim != 2 or marks.shape[1] != d or not np.isfinite(marks).all():
        raise ValueError(f"sensors must be finite positions of shape (n, {d}), not {marks.shape}")
    return np.pad(marks, ((0, 0), (0, 3 - d)))


def _cells(f: fem.Function) -> int:
    topology = f.function_space.mesh.topology
    return topology.index_map(topology.dim).size_global


def _own(f: fem.Function) -> Shape:
    """The cells that this rank owns, maybe none."""
    V = f.function_space
    constant = V.element.basix_element.degree == 0
    cells, kinds, x = plot.vtk_mesh(V.mesh if constant else V)
    owned = len(kinds)
    values = f.x.array.reshape(-1, V.dofmap.bs)
    if constant:
        values = values[V.dofmap.list[:owned, 0]]
    values = values[:, 0] if V.dofmap.bs == 1 else values
    cells = cells.reshape(owned, -1).astype(np.int64) if owned else np.empty((0, 1), dtype=np.int64)
    return Shape(cells, int(kinds[0]) if owned else 0, np.array(x), values.copy(), constant)


def _gathered(f: fem.Function) -> Shape | None:
    """All cells, on rank 0.  Collective."""
    pieces = f.function_space.mesh.comm.gather(_own(f))
    if pieces is None:
        return None
    pieces = [piece for piece in pieces if len(piece.cells)]
    start = 0
    for piece in pieces:
        piece.cells[:, 1:] += start
        start += len(piece.x)
    cells, x, values = (np.concatenate([getattr(p, name) for p in pieces]) for name in ("cells", "x", "values"))
    return Shape(cells, pieces[0].kind, x, values, pieces[0].constant)


def _sampled(f: fem.Function) -> Shape | None:
    """The cells of a grid all of whose corners lie in the mesh, on rank 0; each rank probes its cells.  Collective."""
    mesh = f.function_space.mesh
    comm: MPI.Comm = mesh.comm
    lower, upper = bounding_box(mesh)
    # Points on the boundary itself may lie outside by rounding.
    lower, upper = lower + 1e-6 * (upper - lower), upper - 1e-6 * (upper - lower)
    d = len(lower)
    n = np.maximum(2, np.round(_SAMPLES[d] * (upper - lower) / (upper - lower).max())).astype(int)
    components = f.function_space.dofmap.bs
    # Sums of the values, and how many ranks have found a point: those on the border of two parts are found twice.
    found = np.zeros((int(n.prod()), components + 1))
    with agreed(comm):
        pyvista = import_pyvista()
        own = _own(f)
        if len(own.cells):
            image = pyvista.ImageData(
                dimensions=(*n, *(1,) * (3 - d)), spacing=(*((upper - lower) / (n - 1)), *(1.0,) * (3 - d))
            )
            image.origin = (*lower, *(0.0,) * (3 - d))
            probed = image.sample(vtk_grid(pyvista, own, own.x))
            inside = probed["vtkValidPointMask"].astype(bool)
            values = probed["vector"][:, :d] if own.values.ndim == 2 else probed["shown"][:, None]
            found[inside] = np.column_stack([values[inside], np.ones(inside.sum())])
    total = np.empty_like(found) if comm.rank == 0 else None
    comm.Reduce(found, total)
    if total is None:
        return None
    inside = total[:, -1] > 0
    values = total[:, :-1] / np.maximum(total[:, -1:], 1)
    # VTK counts the points along x first, and the corners of its cells counter-clockwise, below and above.
    number = np.arange(len(total)).reshape(n[::-1]).T
    corners: list[tuple[int, ...]] = [(0, 0), (1, 0), (1, 1), (0, 1)]
    around = corners if d == 2 else [(*c, k) for k in (0, 1) for c in corners]
    part = (slice(None, -1), slice(1, None))
    cells = np.stack([number[tuple(part[i] for i in corner)].ravel() for corner in around], axis=1)
    cells = cells[inside[cells].all(axis=1)]
    used, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(-1, len(around))
    cells = np.column_stack([np.full(len(cells), len(around)), cells])
    steps = np.stack(np.unravel_index(used, tuple(n[::-1])), axis=1)[:, ::-1]
    x = lower + steps * (upper - lower) / (n - 1)
    shown = values[used, 0] if components == 1 else values[used]
    return Shape(cells, 9 if d == 2 else 12, np.pad(x, ((0, 0), (0, 3 - d))), shown)


def _ranges(fields: Sequence[fem.Function], shapes: Sequence[Shape], limits: Any) -> list[tuple[float, float]]:
    if isinstance(limits, tuple):
        return [limits] * len(shapes)
    ranges = []
    for f, shape in zip(fields, shapes, strict=True):
        finite = length(shape.values)[np.isfinite(length(shape.values))]
        if finite.size == 0:
            raise ValueError(f"'{f.name}' has no finite value to show")
        low, high = float(finite.min()), float(finite.max())
        rounding = 1e-12 * max(abs(low), abs(high))
        ranges.append((0.0 if abs(low) < rounding else low, 0.0 if abs(high) < rounding else high))
    if limits == "common":
        ranges = [(min(low for low, _ in ranges), max(high for _, high in ranges))] * len(ranges)
    return ranges
