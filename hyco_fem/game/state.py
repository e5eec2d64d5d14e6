"""The state of a run as plain values, dictionaries and lists of tensors, numbers and strings: what a checkpoint holds.

A `Trainer` gives it by `state()` and takes it by `restore(state)`.  Of a tensor that is distributed like a parameter (a
field, or a moment of its optimiser) the state holds this rank's `Part`; what is restored from has in its place the
tensor of the owned values, whatever the partition.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem.game.history import Record, Result
from hyco_fem.parallel import is_distributed

State = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Values at the dofs that this rank owns, one or several for each: those of `parameter`, or like it."""

    parameter: nn.Parameter
    values: Tensor


def held(values: Tensor, parameter: nn.Parameter) -> Tensor | Part:
    """A tensor that belongs to a parameter, as a state holds it.

    Raises:
        ValueError: the parameter is a field, and the tensor neither has its shape nor is it a number.
    """
    values = values.detach()
    if not is_distributed(parameter):
        return values
    if values.shape == parameter.shape:
        return Part(parameter, values)
    if values.ndim == 0:
        return values
    raise ValueError(
        f"a tensor of shape {tuple(values.shape)} that belongs to a field of {len(parameter)} dofs on this rank cannot "
        "be kept: it is not known how the partition divides it"
    )


def plain(value: Any, where: str = "state") -> Any:
    """A state with nothing in it but dicts, lists, tuples, tensors, `Part`s, numbers and strings.

    Tensors come to the CPU, alone in their storage, but are not copied where they are that already.

    Raises:
        TypeError: something else is in it, named with its place.
    """
    if value is None or isinstance(value, (bool, int, float, str, Part)):
        # A float64 of numpy is a float, but not one that is read back without running code.
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if alone else tensor.clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{where} has the key {key!r}, which a checkpoint cannot hold")
        return {key: plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [plain(entry, f"{where}[{k}]") for k, entry in enumerate(value)]
        return tuple(entries) if isinstance(value, tuple) else entries
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


class Resumable:
    """What is played in rounds and can be gone on with elsewhere: see `hyco_fem.game.loop.Trainer`."""

    comm: MPI.Comm
    clock: Any
    next_round: int

    @property
    def warming(self) -> int | None:
        """How many rounds of a warm-up were played, while one is under way; else None."""
        return None

    def _trained(self) -> dict[str, nn.Module]:
        """What holds the parameters."""
        raise NotImplementedError

    def _movers(self) -> list[Any]:
        """The players."""
        raise NotImplementedError

    def _own_state(self) -> State:
        """What else there is."""
        return {}

    def _restore_own(self, state: State) -> None:
        """Put back what else there is."""

    def state(self) -> State:
        """All that the coming rounds depend on, as far as it changes from round to round.  Collective.

        Raises:
            ValueError: an answer has no state to give; on all ranks.
        """
        return {
            "models": {name: module_state(module, self.comm) for name, module in self._trained().items()},
            "players": {player.name: player.state() for player in self._movers()},
            "next_round": self.next_round,
            "seconds": self.clock.now(),
            **self._own_state(),
        }

    def restore(self, state: State) -> None:
        """Put a state back, in place: that of the same game, on any number of ranks.  Collective."""
        for name, module in self._trained().items():
            restore_module(module, state["models"][name], self.comm)
        for player in self._movers():
            player.restore(state["players"][player.name])
        self.next_round = state["next_round"]
        self.clock.seconds = dict(state["seconds"])
        self._restore_own(state)


# -- modules and optimisers --------------------------------------------------------------------------------------


def module_state(module: nn.Module, comm: MPI.Comm) -> State:
    """Parameters of a module, and those of its buffers that are the same on all ranks.  Collective."""
    parameters = {name: held(p, p) for name, p in module.named_parameters()}
    return {"parameters": parameters, "buffers": _replicated_buffers(module, comm)}


def restore_module(module: nn.Module, state: State, comm: MPI.Comm) -> None:
    """Put the state of a module back, in place.  Collective."""
    buffers = _replicated_buffers(module, comm)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(state["parameters"][name])
        for name, value in state["buffers"].items():
            # What is distributed on this number of ranks comes from how the module was built.
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)


def _replicated_buffers(module: nn.Module, comm: MPI.Comm) -> dict[str, Tensor]:
    kept = set(module.state_dict(keep_vars=True))
    buffers = {name: b for name, b in module.named_buffers() if name in kept}
    if comm.size == 1 or not buffers:
        return buffers
    sums = np.array([zlib.crc32(b.detach().cpu().contiguous().numpy().tobytes()) for b in buffers.values()])
    least, most = np.empty_like(sums), np.empty_like(sums)
    comm.Allreduce(sums, least, op=MPI.MIN)
    comm.Allreduce(sums, most, op=MPI.MAX)
    return {name: b for (name, b), same in zip(buffers.items(), least == most, strict=True) if same}


def optimiser_state(optimiser: torch.optim.Optimizer) -> State:
    """state_dict() of an optimiser, moments of fields as `Part`s."""
    state = optimiser.state_dict()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {
        k: {name: held(e, parameters[k]) if isinstance(e, Tensor) else e for name, e in entries.items()}
        for k, entries in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def kind_of(optimiser: torch.optim.Optimizer, scheduler: Any = None) -> str:
    """An optimiser in words: two of a kind can take each other's state."""
    counts = " + ".join(str(len(group["params"])) for group in optimiser.param_groups)
    schedule = "" if scheduler is None else f", {type(scheduler).__name__}"
    return f"{type(optimiser).__name__} of {counts} parameters{schedule}"


def method_state(method: Any, player: str, answer: Any) -> State:
    """The state of an answer at work.

    Raises:
        ValueError: it has none to give.
    """
    if not (hasattr(method, "state") and hasattr(method, "restore")):
        raise ValueError(
            f"the answer of the {player} player, {type(answer).__name__}, cannot be kept in checkpoints: its method "
            f"{type(method).__name__} has no state() and restore(state)"
        )
    return method.state()


def tensor_or_none(array: np.ndarray | None) -> Tensor | None:
    """A copy of an array as a tensor."""
    return None if array is None else torch.from_numpy(array.copy())


def array_or_none(tensor: Tensor | None) -> np.ndarray | None:
    """A copy of a tensor as an array."""
    return None if tensor is None else tensor.numpy().copy()


# -- records and results -----------------------------------------------------------------------------------------


def record_entry(record: Record) -> dict[str, Any]:
    """A record as what JSON holds; a float is written with all its digits."""
    entry = {"kind": type(record).__name__, **vars(record)}
    entry["parameters"] = _lists(record.parameters)
    return entry


def record_of(entry: Mapping[str, Any]) -> Record:
    """The record of an entry.

    Raises:
        ValueError: it is of a kind that is not imported, or has other fields.
    """
    entry = dict(entry)
    kind = entry.pop("kind", None)
    found = next((c for c in _kinds(Record) if c.__name__ == kind), None)
    if found is None or set(entry) != {f.name for f in dataclasses.fields(found)}:
        raise ValueError(f"a record of the kind {kind!r} with {sorted(entry)} is not known here")
    entry["parameters"] = _arrays(entry["parameters"])
    return found(**entry)


def _kinds(kind: type[Record]) -> list[type[Record]]:
    return [kind, *(c for sub in kind.__subclasses__() for c in _kinds(sub))]


def result_text(result: Result) -> str:
    """A result, but for how its weights were chosen, as JSON."""
    entry = vars(result) | {
        "parameters": _lists(result.parameters),
        "history": [record_entry(record) for record in result.history],
    }
    entry.pop("choice")
    return json.dumps(entry)


def result_of(text: str) -> Result:
    """The result that a text tells of."""
    entry = json.loads(text)
    entry["parameters"] = _arrays(entry["parameters"])
    entry["history"] = [record_of(e) for e in entry["history"]]
    first, second = entry["nash_residual"]
    entry["nash_residual"] = (first, second)
    return Result(**entry)


def _lists(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for name, v in parameters.items()}


def _arrays(parameters: Mapping[str, float | Sequence]) -> dict[str, Any]:
    return {name: np.array(v, dtype=np.float64) if isinstance(v, list) else v for name, v in parameters.items()}
