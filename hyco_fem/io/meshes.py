"""Meshes from gmsh files."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem._compat import MeshAndTags, gmsh_model_to_mesh
from hyco_fem.parallel import agreed


def read_mesh(
    path: str | Path,
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    gdim: int = 2,
    mesh_size: float | None = None,
    constants: Mapping[str, float] | None = None,
) -> MeshAndTags:
    """Read a gmsh .msh file with its physical groups, or mesh a .geo file; distribute it over `comm`.

    Args:
        path: The file; rank 0 reads it.
        gdim: Geometric dimension of the mesh.
        mesh_size: For a .geo file: its constant `h`, in the length unit of the file; the file's own by default.
        constants: For a .geo file: any of its constants (DefineConstant) by name, such as {"grading": 10}.

    Returns:
        Mesh, cell tags, facet tags, and (dimension, tag) by name of the physical group.

    Raises:
        OSError: the file is not there.  ValueError: gmsh cannot read it, or it has no physical groups.
        ModuleNotFoundError: the gmsh package is not installed.  On all ranks.

    Collective.
    """
    path = Path(path)
    with agreed(comm):
        if comm.rank == 0 and not path.is_file():
            raise OSError(f"the mesh file '{path}' is not there")
        if mesh_size is not None and not (path.suffix == ".geo" and 0 < mesh_size < math.inf):
            raise ValueError(
                f"mesh_size is the mesh size of a .geo file, a positive length; got {mesh_size} for '{path}'"
            )
        given = dict(constants or {}) | ({} if mesh_size is None else {"h": mesh_size})
        if comm.rank == 0:
            _check_constants(path, given)
        try:
            import gmsh
        except ImportError as error:
            raise RuntimeError(
                f"reading '{path}' needs gmsh's Python module ({error}): python3-gmsh (Debian), python-gmsh "
                "(conda-forge) or gmsh (PyPI)"
            ) from None
    model = None
    try:
        with agreed(comm):
            if comm.rank == 0:
                gmsh.initialize(interruptible=False)
                gmsh.option.setNumber("General.Terminal", 0)
                try:
                    _open(gmsh, path, given)
                    if path.suffix == ".geo":
                        gmsh.model.mesh.generate(gdim)
                except Exception as error:
                    raise ValueError(f"gmsh cannot read '{path}': {error}") from None
                model = gmsh.model
                if model.getDimension() > gdim:
                    raise ValueError(f"'{path}' is a {model.getDimension()}D mesh: pass gdim={model.getDimension()}")
                tags = model.mesh.getNodes()[0]
                if len(tags) and (tags.max() != len(tags) or tags.min() != 1):
                    model.mesh.renumberNodes()  # DOLFINx wants no gaps
                if not model.getPhysicalGroups(gdim):
                    raise ValueError(
                        f"'{path}' has no physical group of dimension {gdim}; name the domain in the .geo file "
                        '(Physical Surface("domain") = {…};)'
                    )
        return gmsh_model_to_mesh(model, comm, gdim)
    finally:
        if comm.rank == 0 and gmsh.isInitialized():
            gmsh.finalize()


def _check_constants(path: Path, constants: Mapping[str, float]) -> None:
    if constants and path.suffix != ".geo":
        raise ValueError(f"only a .geo file has constants; '{path}' is a mesh already")
    text = path.read_text(encoding="utf-8", errors="replace") if constants else ""
    for name, value in constants.items():
        if not (re.fullmatch(r"[A-Za-z_]\w*", name) and re.search(rf"\b{name}\b", text)):
            raise ValueError(f"'{path}' has no constant named {name!r}, DefineConstant[ {name} = … ]")
        if not math.isfinite(value):
            raise ValueError(f"the constant {name} of '{path}' must be a finite number, not {value}")


def _open(gmsh: Any, path: Path, constants: Mapping[str, float]) -> None:
    """Open a file with some constants defined before it, and only for it, as `-setnumber` would not."""
    if not constants:
        gmsh.open(str(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{name} = {float(value)!r};" for name, value in constants.items()]
        whole = Path(folder) / path.name
        whole.write_text("\n".join([*lines, f'Include "{path.resolve()}";', ""]), encoding="utf-8")
        gmsh.open(str(whole))
