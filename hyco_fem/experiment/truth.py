"""The true coefficients of a synthetic experiment, in a TOML file, and how far a fit is from them.

[coefficients.K]   for each unknown coefficient K, as in the experiment, with the true numbers
refine = 1         the PDE is solved with them on the mesh refined once (0 by default: on the same mesh)
degree = 2         … and with elements of another degree
[mesh]             … or on a mesh of its own
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem

from hyco_fem.accuracy.errors import relative_l2
from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.experiment import schema
from hyco_fem.experiment.build import Built, build_physical
from hyco_fem.experiment.models import AnyCoefficient, BumpsTable, SineTable, VectorTable
from hyco_fem.experiment.refinement import finer_mesh, with_degree
from hyco_fem.experiment.tables import ConfigurationError, Count, Natural, closest, plain, read
from hyco_fem.experiment.toml import load
from hyco_fem.models.coefficients import Scalar
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import raise_together

# Of the quadrature of errors.
_DEGREE = 4


@dataclass(frozen=True, kw_only=True)
class TruthTable:
    """The file."""

    coefficients: dict[str, AnyCoefficient]
    mesh: schema.Mesh | None = None
    refine: Natural = 0
    degree: Count | None = None

    def digest(self) -> str:
        """What tells it from others."""
        return hashlib.sha256(json.dumps(plain(self), sort_keys=True).encode()).hexdigest()[:16]

    def described(self) -> str:
        """How the true solution is computed, in words."""
        where = "a mesh of its own" if self.mesh is not None else "the same mesh"
        where += f" refined {self.refine} time{'s' * (self.refine > 1)}" if self.refine else ""
        return where + (f", degree {self.degree}" if self.degree is not None else "")


def read_truth(path: Path, experiment: schema.Experiment, comm: MPI.Comm) -> TruthTable:
    """Read and check the file; rank 0 reads.  Collective.

    Raises:
        ConfigurationError: with the file and the key; on all ranks.
    """
    found, error = None, None
    if comm.rank == 0:
        try:
            found = _read(path, experiment)
        except ConfigurationError as e:
            text = str(e)
            error = e if text.startswith(str(path)) else ConfigurationError(f"{path}: {text}")
    raise_together(comm, error)
    table: TruthTable = comm.bcast(found)
    return table


def _read(path: Path, experiment: schema.Experiment) -> TruthTable:
    table = read(TruthTable, load(path))
    for name in table.coefficients:
        if name not in experiment.coefficients:
            raise ConfigurationError(
                f"coefficients.{name}: the experiment has no such unknown; {closest(name, experiment.coefficients)}"
            )
    for name in experiment.coefficients:
        if name not in table.coefficients:
            raise ConfigurationError(f"coefficients.{name}: is missing; it is unknown in the experiment")
    if table.mesh is None or table.mesh.file is None:
        return table
    file = Path(os.path.abspath(path.parent / table.mesh.file))
    if not file.is_file():
        raise ConfigurationError(f"mesh.file: the file '{file}' is not there")
    return replace(table, mesh=replace(table.mesh, file=file))


@dataclass(frozen=True, eq=False)
class Truth:
    """The true solution, the rule that errors are integrated with, and the true numbers by name, as in the fit."""

    u: fem.Function
    rule: CellQuadrature
    numbers: dict[str, torch.Tensor]

    def errors(self, built: Built, physical: bool, synthetic: bool) -> dict[str, float]:
        """Relative L² errors of u of either model, and the relative error of θ.  Collective."""
        found: dict[str, float] = {}
        if physical:
            with torch.no_grad():
                built.physical.solve()
            found["error_physical"] = relative_l2(observed(built.physical, built.part), self.u, self.rule)
            if self.numbers:
                found["parameters"] = self._parameters(built)
        if synthetic:
            found["error_synthetic"] = relative_l2(built.synthetic, self.u, self.rule)
        return found

    def _parameters(self, built: Built) -> float:
        theirs = np.concatenate([v.numpy().ravel() for v in self.numbers.values()])
        mine = np.concatenate([_number(built.physical, name).numpy().ravel() for name in self.numbers])
        size = float(np.linalg.norm(theirs))
        return float(np.linalg.norm(mine - theirs)) / (size if size > 0 else 1.0)


def solve_truth(table: TruthTable, experiment: schema.Experiment, built: Built) -> Truth:
    """Solve the PDE at the true coefficients.  Collective.

    Raises:
        ConfigurationError: the problem is one in time, or the tables do not fit it.
    """
    if isinstance(built.physical, TransientModel):
        raise ConfigurationError("--truth: is for steady problems; leave it out, and sensors left out are the judge")
    true = replace(experiment, coefficients=table.coefficients, mesh=table.mesh or experiment.mesh)
    true = true if table.degree is None else with_degree(true, table.degree)
    mesh = finer_mesh(true.mesh, table.refine, built.physical.comm)
    model, _ = build_physical(true, mesh)
    with torch.no_grad():
        model.solve()
    u = observed(model, built.part)
    numbers = _numbers(table, experiment, built, model)
    model.close()
    return Truth(u, CellQuadrature(mesh.mesh, _DEGREE), numbers)


def observed(physical: PhysicalModel, part: tuple[int, ...]) -> fem.Function:
    """The last solution, or the part of it that is compared with data.  Collective."""
    u = physical.function
    for i in part:
        u = u.sub(i)
    return u.collapse() if part else u


def _numbers(
    table: TruthTable, experiment: schema.Experiment, built: Built, model: PhysicalModel
) -> dict[str, torch.Tensor]:
    """The true value of each parameter of the fit; empty where one of them has none of its shape and meaning."""
    if not all(_alike(own, table.coefficients[name]) for name, own in experiment.coefficients.items()):
        return {}
    known = model.coefficients.state_dict()
    found = {}
    for name, p in built.physical.coefficients.named_parameters():
        if p.requires_grad:
            if name not in known or known[name].shape != p.shape:
                return {}
            found[name] = _number(model, name)
    return found


def _number(model: PhysicalModel, name: str) -> torch.Tensor:
    """A parameter of the coefficients; of a `Scalar` its value, whatever bounds it keeps."""
    parent, _, own = name.rpartition(".")
    module = model.coefficients.get_submodule(parent)
    p = module.state_dict()[own].detach()
    return module.transform(p) if isinstance(module, Scalar) else p.clone()


def why_not_compared(table: TruthTable, experiment: schema.Experiment) -> str:
    """Why there is no error of the parameters, in words."""
    bounded = [
        name
        for name, own in experiment.coefficients.items()
        if _has_bounds(own) or _has_bounds(table.coefficients[name])
    ]
    if bounded:
        return f"lower and upper change the meaning of the numbers of {', '.join(bounded)}"
    return "those of the truth are of another shape"


def _has_bounds(table: AnyCoefficient) -> bool:
    """Whether the numbers are those of a sum that a transform is applied to."""
    if isinstance(table, VectorTable):
        return any(map(_has_bounds, table.components))
    return isinstance(table, BumpsTable | SineTable) and table.lower is not None


def _alike(own: AnyCoefficient, theirs: AnyCoefficient) -> bool:
    """Whether the parameters of two tables mean the same."""
    if isinstance(own, VectorTable) and isinstance(theirs, VectorTable):
        return len(own.components) == len(theirs.components) and all(map(_alike, own.components, theirs.components))
    return (
        own.type == theirs.type
        and own.type not in ("nodal", "neural")
        and not (_has_bounds(own) or _has_bounds(theirs))
    )
