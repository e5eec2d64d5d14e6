"""Meshes from gmsh files."""

from __future__ import annotations

import math
from pathlib import Path

from mpi4py import MPI

from hyco_fem._compat import MeshAndTags, gmsh_model_to_mesh
from hyco_fem.parallel import agreed


def read_mesh(
    path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, *, gdim: int = 2, mesh_size: float | None = None
) -> MeshAndTags:
    """Read a gmsh .msh file with its physical groups, or mesh a .geo file; distribute it over `comm`.

    Args:
        path: The file; rank 0 reads it.
        gdim: Geometric dimension of the mesh.
        mesh_size: For a .geo file: its constant `h`, in the length unit of the file; the file's own by default.

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
                size = [] if mesh_size is None else ["gmsh", "-setnumber", "h", repr(float(mesh_size))]
                gmsh.initialize(size, interruptible=False)
                gmsh.option.setNumber("General.Terminal", 0)
                try:
                    gmsh.open(str(path))
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
