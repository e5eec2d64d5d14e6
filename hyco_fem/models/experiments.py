"""Several experiments on one θ, and several θ at once: what `PhysicalModel` solves for besides a single problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dolfinx import fem
from torch import Tensor

from hyco_fem.bridge.dofs import owned_size


@dataclass(frozen=True)
class Scenario:
    """One experiment: values of loads and boundary data that differ from those of other experiments on the same θ.

    inputs: for Functions and Constants of the form, and Functions that are Dirichlet values, the values to put in: a
        Function of the same space, owned dof values, or a number (or an array of a Constant's shape).
    data: what was measured in this experiment, if it is to be fitted (`hyco_fem.scenario_misfit`).
    """

    inputs: Mapping[fem.Function | fem.Constant, Any]
    data: Any = None

    def settings(self, coefficients: Sequence[fem.Function]) -> list[tuple[Any, np.ndarray]]:
        """Inputs with their values as arrays, checked."""
        found = []
        for f, value in self.inputs.items():
            if not isinstance(f, (fem.Function, fem.Constant)):
                raise TypeError(f"a scenario sets Functions and Constants, not {type(f).__name__}")
            name = getattr(f, "name", "a Constant")
            if any(f is m for m in coefficients):
                raise ValueError(f"'{name}' is a coefficient with parameters; a scenario cannot set it")
            if isinstance(f, fem.Function):
                n = owned_size(f.function_space)
                array = value.x.array[:n] if isinstance(value, fem.Function) else np.asarray(value, dtype=np.float64)
                shapes: tuple = ((), (n,))
            else:
                array = np.asarray(value, dtype=np.float64)
                shapes = (np.shape(f.value),)
            if array.shape not in shapes:
                raise ValueError(f"the value of '{name}' in a scenario has shape {array.shape}, not {shapes[-1]}")
            found.append((f, np.array(array)))
        return found


def batch_size(theta: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> int:
    """Length of a batch of parameters, checked against the shapes of the parameters."""
    for name, values in theta.items():
        if name not in parameters:
            raise ValueError(f"there is no parameter '{name}'; the model has {sorted(parameters)}")
        shape = tuple(parameters[name].shape)
        if values.ndim != len(shape) + 1 or tuple(values.shape[1:]) != shape:
            wanted = ", ".join(["batch", *map(str, shape)])
            raise ValueError(f"a batch of '{name}' needs the shape ({wanted}), not {tuple(values.shape)}")
    lengths = {name: len(values) for name, values in theta.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a batch needs one length for all parameters, not {lengths or 'none'}")
    return next(iter(lengths.values()))


def batch_item(theta: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The k-th θ."""
    return {name: values[k] for name, values in theta.items()}
