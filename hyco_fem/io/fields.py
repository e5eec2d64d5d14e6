"""Fields on disk, for ParaView and whatever else reads VTK's formats."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mpi4py import MPI

import dolfinx
import numpy as np
from dolfinx import fem, io

from hyco_fem import _compat
from hyco_fem.bridge.interpolate import is_mixed
from hyco_fem.files import output_folder
from hyco_fem.parallel import agreed

_ENDINGS = (".xdmf", ".bp", ".pvd")


def write_fields(
    path: str | Path,
    functions: fem.Function | Sequence[fem.Function] | Iterable[fem.Function | Sequence[fem.Function]],
    times: Sequence[float] | np.ndarray | None = None,
) -> Path:
    """Write Functions of one mesh to a file; earlier files stay until the new ones are whole.

        write_fields("out/u.bp", [u, kappa])
        write_fields("out/u.bp", ([u] for u in states), times)

    The ending chooses the format:

    .xdmf   XDMF with its HDF5 beside it, all ranks into one file.  Values stand at the nodes of the mesh: other fields
            are interpolated to its degree, and those that jump, but for cellwise constants, are refused.  ParaView
            opens it by its Xdmf3 readers; the older one crashes on DOLFINx's files.
    .bp     VTX, a folder of ADIOS2 (BP4).  Lagrange of any degree without loss; ParaView opens it, and VTK where it is
            built with ADIOS2, which Debian 13's is not.
    .pvd    VTK's own XML files, one for each rank and time.  Lagrange of any degree; every VTK opens it.

    In .bp and .pvd all fields have one element: that of the highest degree among them, discontinuous if one of them
    is; into it the others are interpolated, without loss.

    Args:
        path: Its ending chooses the format.
        functions: One, or some with different names on one mesh.  With times: for each of them the same Functions,
            or others of the same names and spaces, in the same order; one time after the other is asked for.
        times: Ascending.

    Raises:
        ValueError: another ending, no function, a repeated name, two meshes, a field that the format cannot hold, or
            states that do not fit the times.  OSError: not writable.  On all ranks.

    Collective.
    """
    path = Path(path)
    if times is None:
        with FieldSeries(path, functions) as series:  # type: ignore[arg-type]
            series.write()
        return path
    states = iter([functions] if isinstance(functions, fem.Function) else functions)
    first = next(states, None)
    if first is None or len(times) == 0:
        raise ValueError("write_fields needs a list of Functions for each of the times, one or more")
    with FieldSeries(path, first) as series:
        series.write(times[0])
        for t in times[1:]:
            state = next(states, None)
            if state is None:
                raise ValueError(f"there are fewer states than the {len(times)} times: none for t = {t:g}")
            series.take(state)
            series.write(t)
        if next(states, None) is not None:
            raise ValueError(f"there are more states than the {len(times)} times")
    return path


class FieldSeries:
    """A file of fields that grows with the time; use it in a `with` block.

        with FieldSeries("out/u.bp", [u]) as series:
            for t in times:
                …
                series.write(t)

    It is written under another name and is in its place when the block has ended without an error: what a killed run
    leaves, `.NAME.part`, does not look whole.

    Args:
        path, functions: As in `write_fields`.

    Collective.
    """

    def __init__(self, path: str | Path, functions: fem.Function | Sequence[fem.Function]) -> None:
        self.path, self.functions = Path(path), _listed(functions)
        _check(self.path, self.functions)
        self.comm: MPI.Comm = self.functions[0].function_space.mesh.comm
        self._shown = _shown(self.functions, self.path.suffix)
        self._stack: ExitStack | None = None
        self._writer: Any = None
        self._time: float | None = None

    def __enter__(self) -> FieldSeries:
        with ExitStack() as stack:
            part = stack.enter_context(replace_together(self.path, self.comm))
            self._writer = _WRITERS[self.path.suffix](part / self.path.name, self._shown)
            stack.callback(self._writer.close)
            self._stack, self._time = stack.pop_all(), None
        return self

    def take(self, functions: fem.Function | Sequence[fem.Function]) -> None:
        """The values of other Functions from now on, of the same names and spaces.

        Raises:
            ValueError: they do not fit.
        """
        functions = _listed(functions)
        names = [f.name for f in functions]
        if names != [f.name for f in self.functions]:
            raise ValueError(f"the fields of a later time are {names}, not {[f.name for f in self.functions]}")
        for new, old in zip(functions, self.functions, strict=True):
            if new.function_space != old.function_space:
                raise ValueError(f"'{new.name}' is in another space than it was at the first time")
        self._shown = [
            new if shown is old else shown
            for new, old, shown in zip(functions, self.functions, self._shown, strict=True)
        ]
        self.functions = functions

    def write(self, t: float = 0.0) -> None:
        """The fields as they are now, at the time t.  Collective.

        Raises:
            ValueError: t is not after the time before.
        """
        if self._writer is None:
            raise RuntimeError(f"'{self.path}' is not open: use FieldSeries in a `with` block")
        if not np.isfinite(t) or (self._time is not None and t <= self._time):
            raise ValueError(f"the times of '{self.path}' must ascend: {t:g} comes after {self._time}")
        self._time = float(t)
        for source, shown in zip(self.functions, self._shown, strict=True):
            if shown is not source:
                shown.interpolate(source)
        self._writer.write(self._shown, self._time)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stack, self._stack, self._writer = self._stack, None, None
        assert stack is not None
        stack.__exit__(kind, error, at)


@contextmanager
def replace_together(path: Path, comm: MPI.Comm) -> Iterator[Path]:
    """A folder beside `path` to write into, whose content takes its place there when the block has ended.

    Files may name each other, so they have their own names in the folder.  That of `path` is moved last.  After an
    error what was there is there again.  Of an earlier .pvd with more times no files are left.  Collective.

    Raises:
        OSError: not writable; on all ranks.
    """
    folder = output_folder(path.parent, comm)
    part = folder / f".{path.stem}{path.suffix}.part"
    with agreed(comm):
        if comm.rank == 0:
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            part.mkdir()
    try:
        yield part
        comm.Barrier()
        with agreed(comm):
            if comm.rank == 0:
                _move(part, folder, path.name)
    finally:
        if comm.rank == 0:
            shutil.rmtree(part, ignore_errors=True)


def _move(part: Path, folder: Path, last: str) -> None:
    """Move the content of `part` to `folder`, all of it or nothing; what it replaces is then in `part`."""
    made = sorted(part.iterdir(), key=lambda p: (p.name == last, p.name))
    old = _older(folder, last) - {p.name for p in made}
    before = part / ".before"
    before.mkdir()
    with ExitStack() as undo:
        for new in made:
            target, kept = folder / new.name, before / new.name
            # A folder does not give way to a file, nor a file to a folder: that is an error below.
            if target.exists() and target.is_dir() == new.is_dir():
                _keep(target, kept)
                undo.callback(os.replace, kept, target)
            os.replace(new, target)
            undo.callback(os.replace, target, new)
        for name in sorted(old):
            os.replace(folder / name, before / name)
            undo.callback(os.replace, before / name, folder / name)
        undo.pop_all()


def _older(folder: Path, name: str) -> set[str]:
    """The files that a .pvd of this name has in the folder, for all ranks and times."""
    stem, ending = os.path.splitext(name)
    pattern = re.compile(re.escape(stem) + r"(_p\d+_)?\d{6}\.p?vtu")
    return {p.name for p in folder.iterdir() if pattern.fullmatch(p.name)} if ending == ".pvd" else set()


def _keep(target: Path, kept: Path) -> None:
    try:
        os.link(target, kept)  # the file is then there at every moment
    except OSError:  # a folder, or a file system without links
        os.replace(target, kept)


# -- what a format can hold ------------------------------------------------------------------------------------


def _listed(functions: fem.Function | Sequence[fem.Function]) -> list[fem.Function]:
    return [functions] if isinstance(functions, fem.Function) else list(functions)


def _check(path: Path, functions: Sequence[fem.Function]) -> None:
    names = [f.name for f in functions]
    if path.suffix not in _ENDINGS:
        raise ValueError(f"the name of a file of fields ends in {', '.join(_ENDINGS)}, not '{path.name}'")
    if path.suffix == ".bp" and not dolfinx.has_adios2:
        raise ValueError(f"'{path.name}' needs a DOLFINx with ADIOS2, which this one is without: write .pvd or .xdmf")
    if not functions or len(set(names)) < len(names):
        raise ValueError(f"write_fields needs Functions with different names, not {names}")
    mesh = functions[0].function_space.mesh
    for f in functions:
        if f.function_space.mesh is not mesh:
            raise ValueError(f"'{f.name}' and '{functions[0].name}' are on different meshes: write a file for each")
        if is_mixed(f.function_space):
            raise ValueError(f"'{f.name}' is of a mixed space: write its parts, '{f.name}'.sub(i).collapse()")
        if f.function_space.component():
            raise ValueError(f"'{f.name}' is part of another Function: write its .collapse()")


def _degree(f: fem.Function) -> int:
    """Of the Lagrange element that holds it."""
    element = f.function_space.element.basix_element
    return int(element.degree if element.family.name == "P" else element.embedded_superdegree)


def _jumps(f: fem.Function) -> bool:
    """Whether it is not continuous: discontinuous Lagrange, Raviart–Thomas, Nédélec."""
    element = f.function_space.element.basix_element
    return bool(element.discontinuous) or element.family.name != "P"


def _interpolated(f: fem.Function, family: str, degree: int) -> fem.Function:
    """A Function for what is written of f, or f itself where it has this element."""
    V = f.function_space
    if V.element.basix_element.family.name == "P" and (_degree(f), _jumps(f)) == (degree, family == "DG"):
        return f
    return fem.Function(fem.functionspace(V.mesh, (family, degree, _compat.value_shape(V))), name=f.name)


def _shown(functions: Sequence[fem.Function], ending: str) -> list[fem.Function]:
    """For each Function what is written of it: itself where it can be, or else one of another element."""
    if ending != ".xdmf":
        jumps = any(_jumps(f) for f in functions)
        degree = max(_degree(f) for f in functions)
        # Simplices need no more; an element of two degrees, of which one is constant in the cells, is P1 at least.
        same = {(_degree(f), _jumps(f)) for f in functions}
        degree = degree if len(same) == 1 else max(1, degree)
        return [_interpolated(f, "DG" if jumps else "Lagrange", degree) for f in functions]
    nodes = _compat.coordinate_map(functions[0].function_space.mesh).degree
    shown = []
    for f in functions:
        constant = _degree(f) == 0
        if _jumps(f) and not constant:
            raise ValueError(f"'{f.name}' jumps between cells, which XDMF cannot hold: write a .bp or a .pvd")
        shown.append(f if constant else _interpolated(f, "Lagrange", nodes))
    return shown


# -- writers: write(functions, t) and close() ---------------------------------------------------------------------


class _XDMF:
    def __init__(self, path: Path, functions: Sequence[fem.Function]) -> None:
        mesh = functions[0].function_space.mesh
        self._file = io.XDMFFile(mesh.comm, path, "w")
        self._file.write_mesh(mesh)

    def write(self, functions: Sequence[fem.Function], t: float) -> None:
        for f in functions:
            self._file.write_function(f, t)

    def close(self) -> None:
        self._file.close()


class _VTX:
    def __init__(self, path: Path, functions: Sequence[fem.Function]) -> None:
        # The writer is bound to its Functions: it has some of its own, which take the values of others.
        self._own = [fem.Function(f.function_space, name=f.name) for f in functions]
        self._file = io.VTXWriter(functions[0].function_space.mesh.comm, path, self._own, "BP4", io.VTXMeshPolicy.reuse)

    def write(self, functions: Sequence[fem.Function], t: float) -> None:
        for own, f in zip(self._own, functions, strict=True):
            own.x.array[:] = f.x.array
        self._file.write(t)

    def close(self) -> None:
        self._file.close()


class _VTK:
    def __init__(self, path: Path, functions: Sequence[fem.Function]) -> None:
        self._file = io.VTKFile(functions[0].function_space.mesh.comm, path, "w")

    def write(self, functions: Sequence[fem.Function], t: float) -> None:
        self._file.write_function(list(functions), t)

    def close(self) -> None:
        self._file.close()


_WRITERS: dict[str, Any] = {".xdmf": _XDMF, ".bp": _VTX, ".pvd": _VTK}
