"""How fine must the mesh be?  The PDE of an experiment on refined meshes, and what that changes at the sensors.

Every level is the mesh before with each cell cut in 2^d.  Errors are against elements one degree higher than the
highest asked for, with coefficients one degree higher, on the finest mesh; where the degree cannot be chosen (a Python
file), against one more refinement.  All meshes are nested, and all on the polygon of the first one.

For −∇·(κ∇u) = f with u = 0 on Γ_D and no flux elsewhere there is a guaranteed bound, C_h ‖f‖; see
`hyco_fem.explicit_bound`.  It is for the PDE with κ as the level has it, interpolated.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem

from hyco_fem._compat import MeshAndTags
from hyco_fem.accuracy.errors import error_norms, mesh_size
from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.experiment.bounds import guaranteed, why_not
from hyco_fem.experiment.build import build_data, build_physical
from hyco_fem.experiment.convergence_picture import draw
from hyco_fem.experiment.convergence_table import Level, about_rates, findings_of, line_of, verdict
from hyco_fem.experiment.findings import Findings, Say, check_run_folder
from hyco_fem.experiment.physical import unknown_modules
from hyco_fem.experiment.refinement import degree_of, finer_coefficients, finer_mesh, with_degree
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, closest
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed
from hyco_fem.script import Everyone

# Cells up to which the constant of the bound is computed: its eigenvalue problem has one unknown for each of them.
_LARGEST = 40_000


@dataclass(eq=False)
class Solved:
    """A solution: the part of it that is compared with data, and its values at the sensors, replicated."""

    u: fem.Function
    at_sensors: np.ndarray
    kappa: fem.Function | None


def convergence(
    experiment: Experiment,
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    levels: int = 4,
    degrees: list[int] | None = None,
    at: Path | None = None,
    folder: Path | None = None,
    say: Say = lambda text: None,
) -> Findings:
    """Solve on all levels, and write the table.  Collective.

    Args:
        experiment: From `read_experiment`.
        levels: Meshes, the one of the experiment included.
        degrees: Of the elements; by default that of the experiment.
        at: Output folder of a run, at whose coefficients the PDE is solved; by default those of the file.
        folder: Where the results go; by default `at`, or else the output folder of the experiment.
        say: Called on every rank with lines for a log.

    Raises:
        ConfigurationError: something does not fit; nothing was written.  RuntimeError: no two levels could be solved.
        OSError: the folder cannot be written.
    """
    where = folder or at or experiment.output.folder
    assert where is not None
    if levels < 2:
        raise ConfigurationError(f"--levels: must be at least 2, not {levels}")
    if any(p < 1 for p in degrees or ()):
        raise ConfigurationError(f"--degrees: must be at least 1, not {min(degrees or ())}")
    check_run_folder(where, experiment, "--out", comm)
    values = None if at is None else parameters_of(at, experiment, comm)
    own = degree_of(experiment)
    chosen = sorted(set(degrees or ([1] if own is None else [own])))
    cases = {p: experiment if degrees is None else with_degree(experiment, p) for p in chosen}
    first = _Solver(cases[chosen[0]], values)
    _check(first, comm)
    told = [first.described(at)]
    everyone = Everyone(comm)
    meshes = _meshes(experiment, levels, comm, told, everyone)
    reference, without = _reference(experiment, values, chosen[-1], own, meshes, everyone, told, say)
    reason = why_not(experiment)
    rows = []
    for p in chosen:
        for k, mesh in enumerate(meshes):
            if (p, k) == without:
                continue
            bounded = reason is None and p == 1
            row = _level(_Solver(cases[p], values), mesh, Level(k, p), reference, bounded, told, everyone)
            rows.append(row)
            say(line_of(row))
    everyone.close()
    found = [row for row in rows if row.error is None]
    if not found:
        raise RuntimeError(f"no level could be solved: {rows[0].error}")
    told += verdict(rows, reference.known_noise)
    told += about_rates(experiment, rows)
    told.append(reason or _about_bound(experiment))
    told += [f"failed: level {row.level}, degree {row.degree}: {row.error}" for row in rows if row.error is not None]
    findings = findings_of(experiment, rows, told, reference.known_noise)
    noise = reference.known_noise
    findings.save(where, "convergence", comm, lambda figure: draw(figure, rows, noise), size=(11, 5.4))
    say(f"\n{findings}")
    say(f"written to {where}/: convergence.json, convergence.csv, convergence.png")
    return findings


# -- solving ---------------------------------------------------------------------------------------------------


class _Solver:
    """The PDE of an experiment with the coefficients `values`, by name; None: those of the file."""

    def __init__(self, experiment: Experiment, values: dict[str, Any] | None) -> None:
        self.experiment, self.values = experiment, values

    def described(self, at: Path | None) -> str:
        """Where the coefficients come from."""
        return "coefficients: " + ("the start in the file" if at is None else f"those found in {at}")

    def on(self, mesh: MeshAndTags) -> tuple[Solved, int, Any]:
        """The solution, the number of dofs, and the sensors.  Collective."""
        physical, problem = build_physical(self.experiment, mesh)
        if isinstance(physical, TransientModel):
            raise ConfigurationError("problem: a convergence study is for steady problems, not for one in time")
        try:
            _put(physical, self.values)
            data = build_data(self.experiment.sensors, physical)
            with torch.no_grad():
                values = physical(data.points)
            observed = () if problem.observed is None else problem.observed
            u = physical.function
            for i in (observed,) if isinstance(observed, int) else observed:
                u = u.sub(i)
            found = Solved(u if u is physical.function else u.collapse(), data.points.gather(values)[data.rows], None)
            kappa = problem.coefficients.get("kappa")
            found.kappa = kappa if kappa is not None and kappa.ufl_shape == () else None
            imap = physical.V.dofmap
            return found, imap.index_map.size_global * imap.index_map_bs, data
        finally:
            physical.close()


def _put(physical: PhysicalModel, values: dict[str, Any] | None) -> None:
    """Put values into the coefficients.  Raises ConfigurationError where they have another shape."""
    if values is None:
        return
    with torch.no_grad():
        for name, p in physical.coefficients.named_parameters():
            given = torch.as_tensor(values[name], dtype=torch.float64)
            if given.shape != p.shape:
                raise ConfigurationError(
                    f"--at: {name} has the shape {tuple(given.shape)} there, and {tuple(p.shape)} in the experiment"
                )
            p.copy_(given)


def parameters_of(folder: Path, experiment: Experiment, comm: MPI.Comm) -> dict[str, Any]:
    """The coefficients that a run has found, by name, from its summary.json.  Collective.

    Raises:
        ConfigurationError: the folder has none, or is of another experiment; on all ranks.
    """
    check_run_folder(folder, experiment, "--at", comm)
    found: dict[str, Any] = {}
    with agreed(comm):
        if comm.rank == 0:
            found = _summary(folder)
            fields = [name for name in found if name.endswith(".rms")]
            if fields:
                name = fields[0].removesuffix(".rms")
                raise ConfigurationError(
                    f"--at: {name} is a field or a network, of which summary.json has no numbers; leave --at out"
                )
    return comm.bcast(found)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["parameters"]
    except OSError as error:
        raise ConfigurationError(
            f"--at: '{path}' cannot be read ({error.strerror}); it is there when a run has ended"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigurationError(f"--at: '{path}' is no summary of a run") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"--at: '{path}' is no summary of a run")
    return found


def _check(solver: _Solver, comm: MPI.Comm) -> None:
    """Refuse what does not fit, before hours are spent: on the mesh of the experiment.  Collective."""
    physical, _ = build_physical(solver.experiment, finer_mesh(solver.experiment.mesh, 0, comm))
    try:
        if isinstance(physical, TransientModel):
            raise ConfigurationError("problem: a convergence study is for steady problems, not for one in time")
        build_data(solver.experiment.sensors, physical)
        own = [n for m, module in unknown_modules(physical).items() for n in _names(m, module)]
        for name in own:
            if solver.values is not None and name not in solver.values:
                raise ConfigurationError(f"--at: {name} is not among its parameters; {closest(name, solver.values)}")
        _put(physical, solver.values)
    finally:
        physical.close()


def _names(name: str, module: torch.nn.Module) -> list[str]:
    return [f"{name}.{p}" for p, _ in module.named_parameters()]


@dataclass(eq=False)
class _Reference:
    """What levels are compared with.  rule: what errors are integrated with.  sigma: (sensors,)."""

    solved: Solved
    rule: CellQuadrature
    sigma: np.ndarray
    known_noise: bool


def _meshes(
    experiment: Experiment, levels: int, comm: MPI.Comm, told: list[str], everyone: Everyone
) -> list[MeshAndTags]:
    """Those that can be made, coarse to fine; what failed is told.  Collective."""
    found = []
    for k in range(levels):
        try:
            found.append(finer_mesh(experiment.mesh, k, comm))
        except (RuntimeError, MemoryError, ValueError) as error:
            everyone.has(error)
            if k < 2:
                raise
            told.append(f"failed: there is no mesh of level {k}: {_first(error)}")
            break
    return found


def _reference(
    experiment: Experiment,
    values: dict[str, Any] | None,
    degree: int,
    own: int | None,
    meshes: list[MeshAndTags],
    everyone: Everyone,
    told: list[str],
    say: Say,
) -> tuple[_Reference, tuple[int, int] | None]:
    """What to compare with, and which (degree, level) it takes the place of.  Collective.

    degree: the highest of the table.  own: that of the experiment, None where it cannot be chosen.
    """
    last = len(meshes) - 1
    if own is None:
        better, text = experiment, f"the mesh of level {last + 1}, one more than in the table"
    else:
        better = finer_coefficients(with_degree(experiment, degree + 1))
        text = f"elements of degree {degree + 1} on the mesh of level {last}"
    error: Exception | None = None
    try:
        mesh = meshes[-1] if own is not None else finer_mesh(experiment.mesh, last + 1, meshes[0].mesh.comm)
        start = time.perf_counter()
        found = _as_reference(_Solver(better, values), mesh)
        say(f"reference: {text} ({time.perf_counter() - start:.1f} s)")
        told.append(f"errors are against {text}")
        return found, None
    except ConfigurationError:
        raise
    except (RuntimeError, MemoryError, ValueError, ArithmeticError) as e:
        everyone.has(e)
        error = e
    told.append(f"failed: {text}, as the reference: {_first(error)}")
    for k in range(last, 0, -1):
        try:
            solver = _Solver(experiment if own is None else with_degree(experiment, degree), values)
            found = _as_reference(solver, meshes[k])
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as e:
            everyone.has(e)
            error = e
            continue
        told.append(f"errors are against the solution of level {k}, which is no row: the last rates are too good")
        return found, (degree, k)
    raise RuntimeError(f"no level could be solved: {_first(error)}") from error


def _as_reference(solver: _Solver, mesh: MeshAndTags) -> _Reference:
    solved, _, data = solver.on(mesh)
    if not np.isfinite(solved.at_sensors).all():
        raise FloatingPointError("its values are not finite")
    sigma = data.points.gather(data.noise_std)[data.rows]
    # Squares of differences are polynomials of this degree on its cells, as all meshes are nested.
    return _Reference(solved, CellQuadrature(mesh.mesh, 2 * _degree(solved.u)), sigma, data.known_noise)


def _level(
    solver: _Solver,
    mesh: MeshAndTags,
    row: Level,
    reference: _Reference,
    bounded: bool,
    told: list[str],
    everyone: Everyone,
) -> Level:
    """The row of a level, or the error that it ends with; a bound that fails is told.  Collective."""
    start = time.perf_counter()
    topology = mesh.mesh.topology
    row.cells, row.h = topology.index_map(topology.dim).size_global, mesh_size(mesh.mesh)
    try:
        solved, row.dofs, _ = solver.on(mesh)
        row.seconds, row.degree = time.perf_counter() - start, _degree(solved.u)
        kappa = reference.solved.kappa
        errors = error_norms(solved.u, reference.solved.u, reference.rule, kappa=1.0 if kappa is None else kappa)
        change = (solved.at_sensors - reference.solved.at_sensors).reshape(len(reference.sigma), -1)
        ratio = np.abs(change) / reference.sigma[:, None]
        row.L2, row.H1, row.energy = errors.L2, errors.H1, errors.energy
        row.at_sensors, row.largest = float(np.sqrt(np.mean(ratio**2))), float(ratio.max())
    except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
        everyone.has(error)
        row.error = _first(error)
        return row
    if bounded and row.cells <= _LARGEST:
        try:
            row.bound = guaranteed(solver.experiment, mesh, solved.kappa)
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            everyone.has(error)
            told.append(f"failed: the bound of level {row.level}: {_first(error)}")
    return row


def _about_bound(experiment: Experiment) -> str:
    """What is guaranteed."""
    text = "bound: ‖κ^(1/2)∇(u − u_h)‖ ≤ C_h ‖f‖, guaranteed"
    kappa = experiment.coefficients.get("kappa")
    if kappa is not None and kappa.type != "scalar":
        text += " for kappa as it is interpolated on the level"
    return f"{text}; for degree 1 and up to {_LARGEST} cells"


def _degree(u: fem.Function) -> int:
    return int(u.function_space.element.basix_element.degree)


def _first(error: Exception | None) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
