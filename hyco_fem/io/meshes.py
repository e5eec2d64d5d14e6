"""Meshes from and to files: gmsh and XDMF."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpi4py import MPI

from dolfinx import mesh as dmesh

from hyco_fem._compat import MeshAndTags, gmsh_model_to_mesh
from hyco_fem.io.xdmf import read_xdmf, write_xdmf
from hyco_fem.parallel import agreed


def read_mesh(
    path: str | Path,
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    gdim: int | None = None,
    mesh_size: float | None = None,
    constants: Mapping[str, float] | None = None,
    grid: str | None = None,
    names: Mapping[str, int | tuple[int, int]] | None = None,
) -> MeshAndTags:
    """Read a mesh with its groups from an XDMF or a gmsh .msh file, or mesh a .geo file; distribute it over `comm`.

    Physical groups of gmsh have names.  So have the groups of an XDMF file of `write_mesh`; those of another are named
    by their tags, "1", "2", …, where a tag of both cells and facets is "cells 1" and "facets 1".

    Args:
        path: The file; rank 0 reads one of gmsh, all ranks read an XDMF file.
        gdim: Geometric dimension of the mesh; for gmsh 2 by default, for XDMF that of the file.
        mesh_size: For a .geo file: its constant `h`, in the length unit of the file; the file's own by default.
        constants: For a .geo file: any of its constants (DefineConstant) by name, such as {"grading": 10}.
        grid: For XDMF: the name of the mesh in the file; by default the first one.
        names: For XDMF: names for tags, such as {"left": 3}, or {"left": (1, 3)} with the dimension of the group where
            both cells and facets have this tag.

    Returns:
        Mesh, cell tags, facet tags (empty where the file has none), and (dimension, tag) by name of the group.

    Raises:
        OSError: the file is not there, or not the HDF5 file beside an XDMF file.
        ValueError: it cannot be read, is damaged or of another dimension; gmsh's has no physical groups; XDMF has not
            the grid or the tags that are asked for.
        RuntimeError: the gmsh package (h5py, for XDMF) is not installed.  On all ranks.

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
        if path.suffix != ".xdmf" and (grid is not None or names is not None):
            raise ValueError(f"grid and names are for an XDMF file; '{path.name}' is gmsh's, which names its groups")
    if path.suffix == ".xdmf":
        return read_xdmf(path, comm, gdim, grid, names or {})
    return _read_gmsh(path, comm, 2 if gdim is None else gdim, given)


def write_mesh(path: str | Path, mesh: MeshAndTags | dmesh.Mesh) -> Path:
    """Write a mesh with its tags and the names of its groups to an XDMF file with its HDF5, which `read_mesh` reads.

    On any number of ranks; it may be read on another.  The names stand in the XDMF file, in an <Information> that other
    programs pass over.  Earlier files stay until the new ones are whole.

    Args:
        path: Ends in .xdmf; the HDF5 file stands beside it.

    Raises:
        ValueError: another ending, or a mesh in 1D, which XDMF does not have.  OSError: not writable.  On all ranks.

    Collective.
    """
    return write_xdmf(Path(path), mesh)


def _read_gmsh(path: Path, comm: MPI.Comm, gdim: int, given: Mapping[str, float]) -> MeshAndTags:
    with agreed(comm):
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
