"""What is written at the end of a run.  Collective throughout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from dolfinx import fem
from torch import Tensor

from hyco_fem import _compat
from hyco_fem.bridge.dofs import as_function, owned_size
from hyco_fem.experiment.build import Built
from hyco_fem.experiment.physical import observed_space, unknown_modules
from hyco_fem.experiment.schema import Experiment
from hyco_fem.game.history import Result
from hyco_fem.io.checkpoint_file import versions
from hyco_fem.io.fields import write_fields
from hyco_fem.io.history import HistoryFile
from hyco_fem.models.pde_model import PerInterval
from hyco_fem.models.transient import TransientModel


def write_results(experiment: Experiment, built: Built, result: Result, folder: Path) -> None:
    """Summary, history and fields.  Collective."""
    comm = built.physical.comm
    extra = {"title": experiment.title, "ranks": comm.size, "sensors": built.data.n, "versions": versions()}
    if experiment.output.fields:
        if isinstance(built.physical, TransientModel):
            write_fields(folder / "series.xdmf", series(built), built.physical.times)
        write_fields(folder / "fields.xdmf", fields(built))
    with HistoryFile(folder / "history.jsonl", comm, past=result.history):
        pass  # as history.csv: the rounds, and the state at the end
    result.save(folder, comm, extra)  # the summary last: where it is, all is


def fields(built: Built) -> list[fem.Function]:
    """u of both models, in time that at the end, and the coefficients; P1 where they are of a higher degree.

    The parts of a `PerInterval` K are K_0, K_1, …  Collective.
    """
    physical = built.physical
    end = physical.grid.end if isinstance(physical, TransientModel) else None
    found = _states(built, physical.function, end, _linear(built, observed_space(physical)))
    for name, module in unknown_modules(physical).items():
        Q = built.spaces[name]
        parts = {name: module}
        if isinstance(module, PerInterval):
            parts = {f"{name}_{i}": part for i, part in enumerate(module.parts)}
        for label, part in parts.items():
            value = as_function(Q, part, label)
            found.append(as_function(_linear(built, Q), value, label) if Q.element.basix_element.degree > 1 else value)
    return found


def series(built: Built) -> Iterator[list[fem.Function]]:
    """u of both models on P1, at one output time after the other.  Collective."""
    model = built.physical
    assert isinstance(model, TransientModel)
    u, n = fem.Function(model.V), owned_size(model.V)
    P1 = _linear(built, observed_space(model))
    with torch.no_grad():
        rows = model.solve().numpy()
    for t, row in zip(model.times, rows, strict=True):
        u.x.array[:n] = row
        u.x.scatter_forward()
        yield _states(built, u, float(t), P1)


def _states(built: Built, u: fem.Function, t: float | None, P1: fem.FunctionSpace) -> list[fem.Function]:
    """A solution u, and the network at its time, in P1.  Collective."""
    for i in built.part:
        u = u.sub(i)
    u = u.collapse() if built.part else u
    network = built.synthetic

    def synthetic(x: Tensor) -> Tensor:
        return network(x if t is None else torch.cat([x, torch.full_like(x[:, :1], t)], dim=1))

    return [as_function(P1, u, "u_physical"), as_function(P1, synthetic, "u_synthetic")]


def _linear(built: Built, V: fem.FunctionSpace) -> fem.FunctionSpace:
    """P1 with values as those of V.  Collective."""
    shape = _compat.value_shape(V)
    return fem.functionspace(built.mesh.mesh, ("Lagrange", 1, shape) if shape else ("Lagrange", 1))
