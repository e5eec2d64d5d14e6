"""What the models of PDEs, steady and in time, have in common: coefficients that torch modules give."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem.bridge.dofs import dof_coordinates, owned_size
from hyco_fem.parallel import agreed, check_replicated, raise_together
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.problem import Problem
from hyco_fem.pde.timegrid import numbers
from hyco_fem.pde.vectors import set_owned
from hyco_fem.tensors import as_array


class CoefficientError(ValueError):
    """A coefficient that is not finite, or not positive where it must be."""


class PerInterval(nn.Module):
    """A coefficient that is another one in each part of a time interval, for `TransientModel`.

    Args:
        changes: Times t_1 < … < t_k at which it changes, at the ends of steps.
        modules: k + 1 modules, each as for a coefficient that does not change.  One module may come twice.

    Raises:
        ValueError: the numbers do not fit.
    """

    def __init__(self, changes: Sequence[float], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.changes = [float(t) for t in numbers(changes, "changes must be a list of times").ravel()]
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"a part of PerInterval must be a torch.nn.Module, not {module!r}; use hyco_fem.Scalar")
        if len(modules) != len(self.changes) + 1:
            raise ValueError(f"{len(self.changes)} changes need {len(self.changes) + 1} modules, not {len(modules)}")
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (k + 1, n) or (k + 1, n, value_size)."""
        return torch.stack([module(x) for module in self.parts])


class PDEModel(nn.Module):
    """Coefficients m(θ) of a form, by torch modules: the part of a model that does not solve.

    Args:
        u: The unknown.  coefficients, positive: see `PhysicalModel`.
    """

    def __init__(
        self, u: fem.Function, coefficients: Mapping[fem.Function, nn.Module] | None, positive: Collection[fem.Function]
    ) -> None:
        super().__init__()
        coefficients = {} if coefficients is None else dict(coefficients)
        comm = u.function_space.mesh.comm
        with agreed(comm):
            names = _names(coefficients)
            for m in positive:
                if not isinstance(m, fem.Function):
                    raise TypeError(f"positive=… lists Functions, the keys of coefficients=…, not {m!r}")
                if m not in coefficients:
                    raise ValueError(f"'{m.name}' is in positive=… but not in coefficients=…")
        self._check_replicated(comm, dict(zip(names, coefficients.values(), strict=True)))
        self.coefficients = nn.ModuleDict(dict(zip(names, coefficients.values(), strict=True)))
        self._functions = list(coefficients)
        self._positive = [m in positive for m in coefficients]
        self._x = [dof_coordinates(m.function_space) for m in coefficients]
        self.function = u
        self.V = u.function_space
        self._start()

    def _written(self) -> ufl.Form | None:
        """The residual, where there is one."""
        raise NotImplementedError

    def identity(self) -> str:
        """What tells this PDE from others, in words: a checkpoint of another one does not fit.  Not collective."""
        form = self._written()
        dofs = self.V.dofmap.index_map.size_global * self.V.dofmap.index_map_bs
        return f"of {dofs} dofs" + ("" if form is None else f", form {form.signature()[:16]} of UFL {ufl.__version__}")

    @staticmethod
    def _check_replicated(comm: MPI.Comm, modules: Mapping[str, nn.Module]) -> None:
        check_replicated(
            [
                (f"{name}.{p}", tensor.detach())
                for name, module in modules.items()
                for p, tensor in module.named_parameters()
                if not getattr(tensor, "hyco_distributed", False)
            ],
            comm,
        )

    @staticmethod
    def _chosen(
        problem: Problem | TransientProblem, modules: Mapping[str, nn.Module] | None
    ) -> tuple[dict[fem.Function, nn.Module], list[fem.Function]]:
        """From names to Functions: the unknown coefficients of a ready problem, and those that must stay positive.

        Raises:
            ValueError: the problem has no coefficient of that name.
        """
        modules = {} if modules is None else dict(modules)
        unknown = sorted(set(modules) - set(problem.coefficients))
        if unknown:
            raise ValueError(
                f"{problem.name} has no coefficient named {', '.join(map(repr, unknown))}; it has "
                f"{sorted(problem.coefficients)}"
            )
        positive = [problem.coefficients[name] for name in problem.positive if name in modules]
        return {problem.coefficients[name]: module for name, module in modules.items()}, positive

    def _sub_space(self, observed: int | Sequence[int] | None) -> fem.FunctionSpace:
        """The part of V that is compared with data."""
        V = self.V
        for i in [observed] if isinstance(observed, int) else observed or ():
            n = V.num_sub_spaces
            if not isinstance(i, int) or not 0 <= i < n:
                raise ValueError(
                    f"observed={observed!r}: "
                    + (
                        f"the space of '{self.function.name}' has the parts 0 to {n - 1} here"
                        if n
                        else f"the space of '{self.function.name}' has no parts here; leave it out"
                    )
                )
            V = V.sub(i)
        return V

    @property
    def comm(self) -> MPI.Comm:
        """Communicator of the mesh."""
        return self.V.mesh.comm

    def _start(self) -> None:
        """Put the values of the modules into the Functions, for the solver to be chosen by; a solve tells of errors."""
        with torch.no_grad(), suppress(Exception):
            for m, value in zip(self._functions, self.coefficient_values(), strict=True):
                set_owned(m, as_array(value if value.ndim == 1 else value[0]))

    def coefficient_values(self) -> list[Tensor]:
        """Owned dof values of each coefficient at the current θ, (n_owned_k,), checked; differentiable in θ.

        Of a `PerInterval` (parts, n_owned_k).

        Raises:
            CoefficientError: a value is not finite, or not positive where it must be; named with its place.
            ValueError, TypeError: a module returns the wrong shape or dtype.
        """
        values: list[Tensor] = []
        error: Exception | None = None
        try:
            for m, name, x, positive in zip(self._functions, self.coefficients, self._x, self._positive, strict=True):
                module = self.coefficients[name]
                parts = len(module.parts) if isinstance(module, PerInterval) else None
                values.append(checked_values(module(x), m, name, x, positive, parts))
        except Exception as e:
            error = e
        raise_together(self.comm, error)
        return values


def _names(coefficients: Mapping[fem.Function, nn.Module]) -> list[str]:
    names = []
    for m, module in coefficients.items():
        if not isinstance(m, fem.Function):
            raise TypeError(
                f"keys of coefficients must be Functions of the form, not {type(m).__name__}; for a single unknown "
                "number use a Function of ('DG', 0) with hyco_fem.Scalar"
            )
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"the coefficient '{m.name}' must be given by a torch.nn.Module, not {type(module).__name__}"
            )
        for name, p in module.named_parameters():
            if p.dtype != torch.float64:
                raise TypeError(
                    f"the parameter '{name}' of the coefficient '{m.name}' is {p.dtype}; hyco_fem computes in float64: "
                    "call .double() on the module"
                )
        names.append(m.name.replace(".", "_"))
    if len(set(names)) < len(names):
        raise ValueError(f"coefficients need different names, not {names}: pass name=… to dolfinx.fem.Function")
    return names


def checked_values(
    value: Tensor, m: fem.Function, name: str, x: Tensor, positive: bool = False, parts: int | None = None
) -> Tensor:
    """The output of a module as owned dof values of m, (n_owned,), or (parts, n_owned) of a `PerInterval`."""
    if parts is not None:
        if value.ndim < 2 or len(value) != parts:
            raise ValueError(f"'{name}' returned shape {tuple(value.shape)} for {parts} parts of the interval")
        return torch.stack([checked_values(part, m, name, x, positive) for part in value])
    n = owned_size(m.function_space)
    if value.dtype != torch.float64:
        raise TypeError(f"the module of the coefficient '{name}' returned {value.dtype}, not float64")
    if value.numel() != n or len(value) != len(x):
        raise ValueError(
            f"the module of the coefficient '{name}' returned shape {tuple(value.shape)} for {len(x)} dof points with "
            f"{n // max(len(x), 1)} values each"
        )
    array = as_array(value)
    # One reduction each in the good case: the minimum is NaN where any value is.
    low = array.min(initial=np.inf)
    if not (low > (0.0 if positive else -np.inf) and array.max(initial=-np.inf) < np.inf):
        bad = ~np.isfinite(array) | ((array <= 0) if positive else False)
        row = int(np.flatnonzero(np.asarray(bad).reshape(len(x), -1).any(axis=1))[0])
        place = ", ".join(f"{float(c):g}" for c in x[row])
        what = "finite and positive" if positive else "finite"
        raise CoefficientError(
            f"the coefficient '{name}' is not {what}: {array[row]} at ({place}); use a transform (Positive, "
            "Bounded), a smaller learning rate, or another start"
        )
    return value if value.ndim == 1 else value.reshape(-1)
