"""How errors fall: tables with rates, uniformly refined meshes, and reference solutions on them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from dolfinx import mesh as dmesh

from hyco_fem.accuracy.errors import ErrorNorms, error_norms
from hyco_fem.files import output_folder, replace_file
from hyco_fem.parallel import agreed
from hyco_fem.pde.problem import Problem
from hyco_fem.pde.steady import SteadySolver


class ConvergenceTable:
    """Errors by name against a size (h, or a number of dofs, neurons or steps), with the rates between the rows.

        table = ConvergenceTable("h", ["L2", "H1"])
        table.add(h, errors.L2, errors.H1)
        print(table)

    Args:
        size: Name of the first column.  names: of the errors.

    A plain object without communication: errors are replicated, so the table is the same on every rank.
    """

    def __init__(self, size: str, names: Sequence[str]) -> None:
        self.size, self.names = size, list(names)
        self._rows: list[tuple[float, ...]] = []

    def add(self, size: float, *errors: float) -> None:
        """One more row.

        Raises:
            ValueError: the wrong number of errors; a size that is not positive and finite, or not another than before.
        """
        if len(errors) != len(self.names):
            raise ValueError(f"a row has {len(self.names)} errors ({', '.join(self.names)}), not {len(errors)}")
        if not (0 < size < math.inf) or (self._rows and size == self._rows[-1][0]):
            raise ValueError(f"the size {self.size} must be positive, finite and another than in the last row: {size}")
        self._rows.append((float(size), *(float(e) for e in errors)))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def sizes(self) -> np.ndarray:
        """The first column, (rows,)."""
        return np.array([row[0] for row in self._rows])

    def column(self, name: str) -> np.ndarray:
        """The errors of one name, (rows,)."""
        if name not in self.names:
            raise ValueError(f"the table has no column '{name}', only {', '.join(self.names)}")
        return np.array([row[1 + self.names.index(name)] for row in self._rows])

    def rates(self, name: str) -> np.ndarray:
        """p between successive rows, error ~ size^p, (rows,); NaN in the first row and where an error is zero."""
        out = np.full(len(self._rows), np.nan)
        e, h = self.column(name), self.sizes
        with np.errstate(all="ignore"):
            out[1:] = np.log(e[1:] / e[:-1]) / np.log(h[1:] / h[:-1])
        out[~np.isfinite(out)] = np.nan
        return out

    def rate(self, name: str, last: int = 3) -> float:
        """The slope of a straight line through the last rows in log–log scale."""
        e, h = self.column(name)[-last:], self.sizes[-last:]
        if len(e) < 2 or not np.all(e > 0):
            raise ValueError(f"a rate of '{name}' needs at least two rows with positive errors")
        return float(np.polyfit(np.log(h), np.log(e), 1)[0])

    def __str__(self) -> str:
        """The table as text, a rate beside each error."""
        head = f"{self.size:>10} " + " ".join(f"{name:>11} {'rate':>6}" for name in self.names)
        rates = {name: self.rates(name) for name in self.names}
        lines = [head]
        for i, row in enumerate(self._rows):
            cells = [
                f"{e:11.4e} " + (f"{rates[name][i]:6.2f}" if math.isfinite(rates[name][i]) else " " * 6)
                for name, e in zip(self.names, row[1:], strict=True)
            ]
            lines.append(f"{row[0]:10.4g} " + " ".join(cells))
        return "\n".join(lines)

    def save(self, path: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
        """Write the rows as CSV, without rates; rank 0 writes.  Collective.

        Raises:
            OSError: the file cannot be written; on all ranks.
        """
        path = Path(path)
        output_folder(path.parent, comm)
        with agreed(comm):
            if comm.rank == 0:
                replace_file(path, self._write)

    def _write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([self.size, *self.names])
            writer.writerows(self._rows)


# -- reference solutions -----------------------------------------------------------------------------------------


def refined(mesh: dmesh.Mesh, times: int = 1) -> dmesh.Mesh:
    """A mesh refined uniformly: each triangle in four, each tetrahedron in eight, so that spaces are nested.

    Markers are not carried over; a boundary is found again by its coordinates.  The refined mesh has no ghost cells.

    Raises:
        ValueError: the cells are not intervals, triangles or tetrahedra.  Collective.
    """
    if mesh.topology.cell_name() not in ("interval", "triangle", "tetrahedron"):
        raise ValueError(f"only simplices are refined, not {mesh.topology.cell_name()} cells; make a finer mesh")
    for _ in range(times):
        mesh.topology.create_entities(1)
        mesh = dmesh.refine(mesh)[0]
    return mesh


@dataclass(frozen=True, eq=False)
class ReferenceSolution:
    """A solution that others are compared with.

    u: on the refined mesh.
    estimate: the norms of its difference from that on the mesh one refinement coarser.  Where errors fall at the rate
    p, its own error is at most about estimate / (2^p − 1); in the energy norm of a symmetric problem, where the
    difference is orthogonal to the error (Galerkin), it is estimate / √(4^p − 1).
    """

    u: fem.Function
    estimate: ErrorNorms


def reference_solution(
    build: Callable[[dmesh.Mesh], Problem], mesh: dmesh.Mesh, refinements: int = 2, **solver_options: Any
) -> ReferenceSolution:
    """Solve a problem on a mesh refined uniformly, and once less, to see how good it is.

    Args:
        build: From a mesh to the problem, of a degree higher than what it is to judge:
            `lambda mesh: hf.catalogue.poisson(mesh, degree=2, f=…)`.
        mesh: The mesh of the approximations.
        refinements: How often each cell is refined, at least once.
        solver_options: As `petsc_options` of `SteadySolver`.

    Raises:
        ValueError: no refinement.  SolveError: it cannot be solved.  On all ranks.  Collective.
    """
    if refinements < 1:
        raise ValueError(f"a reference needs at least one refinement, not {refinements}")
    coarse = refined(mesh, refinements - 1)
    fine = refined(coarse)
    found = []
    for level in (coarse, fine):
        problem = build(level)
        solver = SteadySolver(problem.F, problem.u, problem.bcs, **solver_options)
        try:
            solver.forward([])
        finally:
            solver.close()
        found.append(problem.u)
    return ReferenceSolution(found[1], error_norms(found[0], found[1], fine))
