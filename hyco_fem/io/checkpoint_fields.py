"""The distributed tensors of a state, fields and the moments of their optimisers, in a file beside the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor

from hyco_fem.game.loop import ResumableTrainer
from hyco_fem.game.state import Part, State
from hyco_fem.io.nodal import DofOrder, read_fields, write_fields
from hyco_fem.models.pde_model import PDEModel
from hyco_fem.parallel import agreed

# Stands in a state where a distributed tensor was.
_FIELD = "__field__"


class Fields:
    """The distributed parameters of a game, and what is distributed like them.  Collective.

    Raises:
        ValueError: a distributed parameter is no coefficient of a PDE; on all ranks.
    """

    def __init__(self, game: ResumableTrainer, state: State) -> None:
        self.comm: MPI.Comm = game.comm
        spaces = _spaces(game)
        orders: dict[int, DofOrder] = {}
        self.orders: dict[str, DofOrder] = {}
        self._names: dict[int, str] = {}
        for name, value in parameters_of(state).items():
            if not isinstance(value, Part):
                continue
            p = value.parameter
            if id(p) not in spaces:
                raise ValueError(f"the field '{name}' cannot be kept: it is no coefficient of a PDE model")
            Q = spaces[id(p)]
            if id(Q) not in orders:
                orders[id(Q)] = DofOrder(Q)
            self.orders[name], self._names[id(p)] = orders[id(Q)], name
        with agreed(self.comm):
            for name, value in parameters_of(state).items():
                if name in self.orders and len(value.values) != len(self.orders[name].keys):
                    raise ValueError(f"the field '{name}' has not one value for each dof point of its space")

    def shapes(self, state: State) -> dict[str, list[Any]]:
        """Of all parameters, on all ranks together."""
        found: dict[str, list[Any]] = {}
        for name, value in parameters_of(state).items():
            if isinstance(value, Part):
                found[name] = [f"{self.orders[name].total} dofs", *value.values.shape[1:]]
            else:
                found[name] = list(value.shape)
        return found

    def write(self, path: Path, state: State) -> tuple[State, dict[str, Any]]:
        """Write the distributed tensors of a state to a file, where there are any.

        Returns the state without them, and what has to be known to read them.  Collective.
        """
        parts = list(_parts(state, "state"))
        with agreed(self.comm):
            entries: list[dict[str, Any]] = []
            for where, part in parts:
                if id(part.parameter) not in self._names:
                    raise ValueError(f"{where} belongs to a field that the game did not have at the start")
                tail = list(part.values.shape[1:])
                dtype = str(part.values.dtype).removeprefix("torch.")
                entries.append({"of": self._names[id(part.parameter)], "where": where, "tail": tail, "dtype": dtype})
        theirs = self.comm.bcast(entries)
        with agreed(self.comm):
            if entries != theirs:
                raise ValueError("the state does not have the same fields on all ranks, and cannot be kept")
        if not entries:
            return state, {"entries": [], "orders": {}}
        columns = [_columns(part.values, entry) for (_, part), entry in zip(parts, entries, strict=True)]
        groups = [(order, np.concatenate([columns[k] for k in ks], axis=1)) for order, ks in self._groups(entries)]
        digest = write_fields(path, groups, self.comm)
        orders = {name: self.orders[name].fingerprint for name in {e["of"]: None for e in entries}}
        numbers = iter(range(len(parts)))
        return _without(state, numbers), {"entries": entries, "orders": orders, "file": path.name, "sha256": digest}

    def read(self, folder: Path, known: dict[str, Any], state: State) -> State:
        """The state with the owned parts of its distributed tensors.  Collective.

        Raises OSError on all ranks where the file cannot be read.
        """
        entries = known["entries"]
        if not entries:
            return state
        groups = self._groups(entries)
        wanted = [(order, sum(_width(entries[k]) for k in ks)) for order, ks in groups]
        tensors: dict[int, Tensor] = {}
        for (_, ks), values in zip(groups, read_fields(folder / known["file"], wanted, self.comm), strict=True):
            ends = np.cumsum([_width(entries[k]) for k in ks])[:-1]
            for k, part in zip(ks, np.split(values, ends, axis=1), strict=True):
                tensor = torch.from_numpy(np.ascontiguousarray(part)).reshape(len(part), *entries[k]["tail"])
                tensors[k] = tensor.to(getattr(torch, entries[k]["dtype"]))
        return _with(state, tensors)

    def difference(self, known: dict[str, Any]) -> str | None:
        """Why fields that were written are not of these meshes."""
        for name, fingerprint in known["orders"].items():
            if self.orders[name].differs(fingerprint):
                return f"the mesh, or the element, of the field '{name}' is another one"
        return None

    def _groups(self, entries: list[dict[str, Any]]) -> list[tuple[DofOrder, list[int]]]:
        """Numbers of the entries by the order of their dofs: what travels together."""
        groups: dict[int, tuple[DofOrder, list[int]]] = {}
        for k, entry in enumerate(entries):
            order = self.orders[entry["of"]]
            groups.setdefault(id(order), (order, []))[1].append(k)
        return list(groups.values())


def _width(entry: dict[str, Any]) -> int:
    return math.prod(entry["tail"])


def _columns(values: Tensor, entry: dict[str, Any]) -> np.ndarray:
    """(n_owned, columns)."""
    return values.detach().cpu().double().numpy().reshape(len(values), _width(entry))


def parameters_of(state: State) -> dict[str, Any]:
    """The parameters of all models in a state, by the names of both."""
    models = state.get("models", {})
    return {f"{m}.{n}": value for m, entry in models.items() for n, value in entry["parameters"].items()}


def _spaces(game: ResumableTrainer) -> dict[int, fem.FunctionSpace]:
    """The space of the coefficient to which a parameter belongs, by the id of the parameter."""
    models = [value for value in vars(game).values() if isinstance(value, PDEModel)]
    return {
        id(p): m.function_space
        for model in models
        for m, module in zip(model._functions, model.coefficients.values(), strict=True)
        for p in module.parameters()
    }


def _parts(value: Any, where: str) -> Iterator[tuple[str, Part]]:
    if isinstance(value, Part):
        yield where, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _parts(entry, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for k, entry in enumerate(value):
            yield from _parts(entry, f"{where}.{k}")


def _without(value: Any, numbers: Iterator[int]) -> Any:
    """A state with numbers in the place of its parts, in the order of `_parts`."""
    if isinstance(value, Part):
        return {_FIELD: next(numbers)}
    if isinstance(value, dict):
        return {key: _without(entry, numbers) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_without(entry, numbers) for entry in value])
    return value


def _with(value: Any, tensors: dict[int, Tensor]) -> Any:
    """A state with tensors in the place of those numbers."""
    if isinstance(value, dict):
        if set(value) == {_FIELD}:
            return tensors[value[_FIELD]]
        return {key: _with(entry, tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_with(entry, tensors) for entry in value])
    return value
