"""The Jacobian of observations by parameters: blocks of tangent or adjoint solves on one set of factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.parallel import agreed, is_distributed, sum_array
from hyco_fem.pde.many import adjoint_block, tangent_block
from hyco_fem.pde.state import State
from hyco_fem.pde.steady import SteadySolver

# Directions that torch pushes through a coefficient module at once.
_CHUNK = 32

# Numbers of an array that holds all directions of a chunk at all dofs.
_ENTRIES = 2_000_000


class Observed(Protocol):
    """Points that a field is observed at: `Points`, or `DofPoints`."""

    index: np.ndarray
    n_found: int

    @property
    def found(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def observation(self, V: Any) -> Any: ...


@dataclass(frozen=True)
class Jacobian:
    """∂(observations)/∂θ at one θ.

    values: the observations themselves, at the points owned here, (n_owned,) or (n_owned, components).
    matrix: (rows owned here, p), by the replicated parameters; row i·components + c is component c at owned point i.
    columns: which columns belong to which parameter, by name, in C order of its entries.
    fields: by name of each distributed parameter (a field), (n·components, entries owned here): all rows on every rank.
    method: "tangent" (a block of p tangent solves) or "adjoint" (one adjoint solve for each observation).
    """

    values: np.ndarray
    matrix: np.ndarray
    columns: dict[str, slice]
    fields: dict[str, np.ndarray]
    method: Literal["tangent", "adjoint"]


def jacobian(
    solver: SteadySolver,
    state: State,
    modules: Sequence[nn.Module],
    coordinates: Sequence[Tensor],
    parameters: dict[str, nn.Parameter],
    sets: Sequence[Observed],
    V: Any,
) -> list[Jacobian]:
    """The Jacobians of the values at points by `parameters`, at the state of a forward solve.  Collective.

    Args:
        solver, state: A `SteadySolver` and the state of the solve.
        modules, coordinates: For each coefficient its module and owned dof coordinates.
        parameters: θ by name.
        sets, V: Sets of points where, and the (sub-)space in which to observe: one Jacobian for each set, with the same
            tangent solves.
    """
    operators = [points.observation(V) for points in sets]
    replicated = {name: p for name, p in parameters.items() if not is_distributed(p)}
    columns, start = _columns(replicated)
    values = [B.apply(state.u[: B.layout.n_owned]) for B in operators]
    n_observations = sum(p.n_found * B.components for p, B in zip(sets, operators, strict=True))
    fields_wanted = len(replicated) < len(parameters)
    maps = [_Map(m, x, parameters) for m, x in zip(modules, coordinates, strict=True)]
    if fields_wanted or n_observations < start:
        parts = [
            _by_adjoints(solver, state, maps, parameters, columns, points, B)
            for points, B in zip(sets, operators, strict=True)
        ]
        return [
            Jacobian(v, matrix, columns, fields, "adjoint") for v, (matrix, fields) in zip(values, parts, strict=True)
        ]
    M = [m.dense(columns, start) for m in maps]
    if start == 0 or all(block is None for block in M):
        return [Jacobian(v, np.zeros((v.size, start)), columns, {}, "tangent") for v in values]
    moved = tangent_block(solver, state, M)
    return [
        Jacobian(v, np.stack([B.apply(column).ravel() for column in moved.T], axis=1), columns, {}, "tangent")
        for v, B in zip(values, operators, strict=True)
    ]


def parameter_maps(
    modules: Sequence[nn.Module], coordinates: Sequence[Tensor], parameters: dict[str, nn.Parameter], comm: MPI.Comm
) -> tuple[dict[str, slice], list[np.ndarray | None]]:
    """Columns of the parameters, and ∂m/∂θ of each module, (numbers it gives here, p); None where it has no parameter.

    Raises ValueError where a parameter is a field.
    """
    with agreed(comm):
        for name, p in parameters.items():
            if is_distributed(p):
                raise ValueError(
                    f"'{name}' is a field with a number for every dof, too many for a Jacobian in time; use an answer "
                    "by gradients (AdamStep, LBFGS)"
                )
    columns, start = _columns(parameters)
    return columns, [_Map(m, x, parameters).dense(columns, start) for m, x in zip(modules, coordinates, strict=True)]


def _columns(parameters: dict[str, nn.Parameter]) -> tuple[dict[str, slice], int]:
    """Which columns of a Jacobian belong to which parameter, and how many there are."""
    columns: dict[str, slice] = {}
    start = 0
    for name, p in parameters.items():
        columns[name] = slice(start, start + p.numel())
        start += p.numel()
    return columns, start


def _by_adjoints(
    solver: SteadySolver,
    state: State,
    maps: Sequence[_Map],
    parameters: dict[str, nn.Parameter],
    columns: dict[str, slice],
    points: Observed,
    B: Any,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = np.flatnonzero(points.found)
    total = len(rows) * B.components
    p = sum(s.stop - s.start for s in columns.values())
    dense = np.zeros((total, p))
    fields = {name: np.zeros((total, q.numel())) for name, q in parameters.items() if is_distributed(q)}
    # Number of each owned observation among all.
    mine = np.searchsorted(rows, points.index)
    local = np.full(total, -1)
    local[(mine[:, None] * B.components + np.arange(B.components)).ravel()] = np.arange(len(mine) * B.components)
    shape = (len(points),) if B.components == 1 else (len(points), B.components)
    for start in range(0, total, _CHUNK):
        part = range(start, min(start + _CHUNK, total))
        block = np.zeros((B.layout.n_owned, len(part)), order="F")
        for j, i in enumerate(part):
            unit = np.zeros(shape)
            if local[i] >= 0:
                unit.ravel()[local[i]] = 1.0
            block[:, j] = B.transpose(unit)
        found = adjoint_block(solver, state, block)
        for m, gradients in zip(maps, found, strict=True):
            assert gradients is not None  # all are wanted
            for name, values in m.transposed(gradients.T).items():
                if name in fields:
                    fields[name][start : start + len(part)] += values
                else:
                    dense[start : start + len(part), columns[name]] += values
    dense = sum_array(solver.comm, dense)
    return dense[local >= 0], fields


class _Map:
    """θ ↦ m of one coefficient, with its Jacobian, by whichever of the parameters it has."""

    def __init__(self, module: nn.Module, x: Tensor, parameters: dict[str, nn.Parameter]) -> None:
        names = {id(p): name for name, p in parameters.items()}
        self._own = {own: p for own, p in module.named_parameters() if id(p) in names}
        self._names = {own: names[id(p)] for own, p in self._own.items()}
        self._module, self._x = module, x
        self._values = {own: p.detach() for own, p in self._own.items()}

    def _call(self, values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self._module, values, (self._x,)).reshape(-1)

    def dense(self, columns: dict[str, slice], p: int) -> np.ndarray | None:
        """∂m/∂θ by all replicated parameters, (n_owned, p); None where there are none here."""
        sizes = {own: v.numel() for own, v in self._values.items()}
        if not sizes:
            return None
        # Of the class itself: one that inherits it may have another forward.  And it must know all parameters.
        closed_form = type(self._module).__dict__.get("parameter_jacobian")
        parts = {} if closed_form is None else closed_form(self._module, self._x)
        if parts.keys() == sizes.keys():
            out = np.zeros((len(next(iter(parts.values()))), p), order="F")
            for own, part in parts.items():
                out[:, columns[self._names[own]]] += part.reshape(len(part), -1).numpy()
            return out
        flat = torch.cat([v.reshape(-1) for v in self._values.values()])

        def along(direction: Tensor) -> Tensor:
            parts = torch.split(direction, list(sizes.values()))
            tangents = {o: t.view_as(self._values[o]) for o, t in zip(sizes, parts, strict=True)}
            return torch.func.jvp(self._call, (self._values,), (tangents,))[1]

        # On large meshes fewer directions at once: each takes some arrays of the size of the field.
        chunk = max(1, min(_CHUNK, _ENTRIES // max(1, len(self._x))))
        found = _batched(along, torch.eye(len(flat), dtype=torch.float64), chunk).numpy()
        out = np.zeros((found.shape[1], p), order="F")
        start = 0
        for own, size in sizes.items():
            out[:, columns[self._names[own]]] += found[start : start + size].T
            start += size
        return out

    def transposed(self, gradients: np.ndarray) -> dict[str, np.ndarray]:
        """(∂m/∂θ)ᵀ for many m̄, (r, n_owned): by name (r, entries), this rank's part."""
        if not self._own:
            return {}
        _, pull = torch.func.vjp(self._call, self._values)
        found = _batched(lambda g: pull(g)[0], torch.from_numpy(np.ascontiguousarray(gradients)))
        return {self._names[own]: g.reshape(len(gradients), -1).numpy() for own, g in found.items()}


def _batched(function: Callable[[Tensor], Any], batch: Tensor, chunk: int = _CHUNK) -> Any:
    """function on every row; by vmap where the user's module allows it, else one by one."""
    try:
        return torch.func.vmap(function, chunk_size=chunk)(batch)
    except RuntimeError:
        rows = [function(row) for row in batch]
    if isinstance(rows[0], dict):
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return torch.stack(rows)
