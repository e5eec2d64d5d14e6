"""Fields on disk, for ParaView."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dolfinx import fem, io

from hyco_fem.files import output_folder
from hyco_fem.parallel import agreed


def write_fields(path: str | Path, functions: Sequence[fem.Function]) -> Path:
    """Write Functions of one mesh to an XDMF file with its HDF5; earlier files stay until the new ones are whole.

    Args:
        path: Ends in .xdmf; the HDF5 file stands beside it.
        functions: With different names, on one mesh, of degree one (XDMF can hold no other): interpolate others first.

    Raises:
        ValueError: another ending, no function, a repeated name, two meshes, or a degree that XDMF cannot hold.
        OSError: not writable.

    Collective.
    """
    path = Path(path)
    names = [f.name for f in functions]
    if path.suffix != ".xdmf":
        raise ValueError(f"the name of an XDMF file ends in .xdmf, not '{path.name}'")
    if not functions or len(set(names)) < len(names):
        raise ValueError(f"write_fields needs Functions with different names, not {names}")
    mesh = functions[0].function_space.mesh
    for f in functions:
        if f.function_space.mesh is not mesh:
            raise ValueError(f"'{f.name}' and '{functions[0].name}' are on different meshes: write a file for each")
        if f.function_space.element.basix_element.degree > 1:
            raise ValueError(f"XDMF holds P1 fields; interpolate '{f.name}' into ('Lagrange', 1) first")
    folder = output_folder(path.parent, mesh.comm)
    # The XDMF names its HDF5 file, so both are written under their own names in another folder, then moved.
    part = folder / f".{path.stem}.part"
    output_folder(part, mesh.comm)
    try:
        with io.XDMFFile(mesh.comm, part / path.name, "w") as file:
            file.write_mesh(mesh)
            for f in functions:
                file.write_function(f)
        mesh.comm.Barrier()
        with agreed(mesh.comm):
            if mesh.comm.rank == 0:
                for name in (path.with_suffix(".h5").name, path.name):
                    os.replace(part / name, folder / name)
    finally:
        if mesh.comm.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
    return path
