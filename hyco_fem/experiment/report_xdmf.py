"""Fields of an XDMF file with its HDF5, whole, on the rank that reads."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

_CORNERS = {"PolyLine": 2, "Triangle": 3, "Quadrilateral": 4, "Tetrahedron": 4, "Hexahedron": 8}
_MOST_FIELDS = 12


@dataclass(frozen=True, eq=False)
class Field:
    """values: at the nodes (n, k), or, where `cells`, in the cells (m, k).  time: of the values, or None."""

    name: str
    values: np.ndarray
    cells: bool = False
    time: float | None = None

    @property
    def scalar(self) -> np.ndarray:
        """The values, or their Euclidean norms."""
        return self.values[:, 0] if self.values.shape[1] == 1 else np.linalg.norm(self.values, axis=1)

    @property
    def symbol(self) -> str:
        """What is drawn."""
        return self.name if self.values.shape[1] == 1 else f"|{self.name}|"


@dataclass(frozen=True, eq=False)
class Grid:
    """A mesh.  x: nodes (n, d).  cells: corners (m, c) of the kind of XDMF."""

    x: np.ndarray
    cells: np.ndarray
    kind: str


def read_fields(path: Path, times: int = 1) -> tuple[Grid, list[Field]]:
    """The mesh, and the fields at their last time, or at so many of their times, of a file of `write_fields`.

    Raises:
        ValueError: it is damaged, or of another kind.  OSError: it, or its HDF5, cannot be read.
        ImportError: h5py is not there.
    """
    import h5py

    try:
        domain = ElementTree.parse(path).getroot().find("Domain")
    except ElementTree.ParseError as error:
        raise ValueError(f"'{path.name}' is damaged: {error}") from None
    topology, geometry = (None if domain is None else domain.find(f".//{tag}") for tag in ("Topology", "Geometry"))
    if domain is None or topology is None or geometry is None:
        raise ValueError(f"'{path.name}' holds no mesh")
    kind = topology.get("TopologyType", "").split("_")[0]
    if kind not in _CORNERS:
        raise ValueError(f"'{path.name}' has cells of the kind '{kind}', which are not drawn")
    files: dict[str, Any] = {}

    def array(parent: ElementTree.Element) -> np.ndarray:
        name, _, place = (parent.findtext("DataItem") or "").strip().partition(":")
        if name not in files:
            files[name] = h5py.File(path.with_name(Path(name).name), "r")
        return np.asarray(files[name][place])

    try:
        grid = Grid(array(geometry), array(topology)[:, : _CORNERS[kind]].astype(np.int64), kind)
        fields = []
        for collection in domain.findall("Grid[@GridType='Collection']")[:_MOST_FIELDS]:
            steps = collection.findall("Grid")
            chosen = np.linspace(len(steps) - 1, 0, min(times, len(steps))).round().astype(int)[::-1]
            for step in (steps[k] for k in chosen):
                time, attribute = step.find("Time"), step.find("Attribute")
                if attribute is not None:
                    values = array(attribute)
                    at = None if time is None or len(steps) == 1 else float(time.get("Value", 0.0))
                    cells = attribute.get("Center") == "Cell"
                    fields.append(Field(attribute.get("Name", "?"), values.reshape(len(values), -1), cells, at))
    except (KeyError, IndexError) as error:
        raise ValueError(f"'{path.name}' and its HDF5 do not go together: {error}") from None
    finally:
        for file in files.values():
            file.close()
    return grid, fields


def with_difference(fields: Sequence[Field]) -> list[Field]:
    """The two models and their difference first, then the other fields."""
    named = {f.name: f for f in fields}
    pair = [named.pop(name) for name in ("u_physical", "u_synthetic") if name in named]
    if len(pair) == 2 and pair[0].values.shape == pair[1].values.shape:
        pair.append(replace(pair[0], name="u_physical − u_synthetic", values=pair[0].values - pair[1].values))
    return [*pair, *named.values()]
