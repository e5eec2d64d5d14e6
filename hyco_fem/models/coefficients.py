"""Coefficients: torch modules from dof coordinates (n, d) to values (n,) of a field of the PDE.

Their parameters θ are replicated, except those of `NodalField`, which are distributed like the dofs they are.
Any torch module with the same call serves as well.  Every class takes a `transform`, applied last, that keeps the
field admissible.  Numbers are in the units of the mesh (lengths) and of the coefficient (values).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem.bridge.dofs import block_size, dof_coordinates
from hyco_fem.models.transforms import Identity, Transform
from hyco_fem.parallel import agreed, mark_distributed


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(np.asarray(value, dtype=np.float64)).clone()


def _broadcast(value: Any, n: int, name: str) -> Tensor:
    """(n,) from one number or n of them."""
    tensor = _tensor(value)
    if tensor.shape not in ((), (n,)):
        raise ValueError(f"{name} must be a number or have shape ({n},), not {tuple(tensor.shape)}")
    return tensor.expand(n).clone()


class Scalar(nn.Module):
    """The same unknown number everywhere.

    Args:
        value: Start, in the unit of the coefficient.
        transform: Keeps it admissible; it must have an inverse, since `value` is what comes out of it.
    """

    def __init__(self, value: float, transform: Transform | None = None) -> None:
        super().__init__()
        self.transform = transform or Identity()
        self.raw = nn.Parameter(self.transform.inverse(_tensor(float(value))))

    @property
    def value(self) -> float:
        """The number, in the unit of the coefficient."""
        return float(self.transform(self.raw.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        return self.transform(self.raw).expand(len(x))


class GaussianBumps(nn.Module):
    """transform(c + Σ_k A_k exp(−|x − x_k|² / w_k²)).

    Args:
        amplitudes: A_k, (K,), in the unit of the coefficient (of its transform's argument, if there is one).
        centres: x_k, (K, d), in the length unit of the mesh.
        widths: w_k > 0, (K,) or one number, in the length unit of the mesh.
        background: c.
        trainable: Which of "background", "amplitudes", "centres", "widths" are unknown.
        transform: Applied to the sum.
    """

    def __init__(
        self,
        amplitudes: Any,
        centres: Any,
        widths: Any = 1.0,
        background: float = 0.0,
        *,
        trainable: Collection[str] = ("amplitudes", "centres"),
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        values = {
            "background": _tensor(background),
            "amplitudes": torch.atleast_1d(_tensor(amplitudes)),
            "centres": torch.atleast_2d(_tensor(centres)),
        }
        n = len(values["amplitudes"])
        if values["amplitudes"].ndim != 1 or values["background"].ndim != 0:
            shapes = [tuple(values[name].shape) for name in ("amplitudes", "background")]
            raise ValueError(f"amplitudes must have shape (K,) and the background be a number, not {shapes}")
        values["widths"] = _broadcast(widths, n, "widths")
        if values["centres"].ndim != 2 or len(values["centres"]) != n:
            raise ValueError(f"{n} amplitudes need centres of shape ({n}, d), not {tuple(values['centres'].shape)}")
        if not bool((values["widths"] > 0).all()):
            raise ValueError("widths must be positive")
        unknown = set(trainable) - set(values)
        if unknown:
            raise ValueError(f"trainable names {sorted(unknown)}, which are not among {sorted(values)}")
        for name, value in values.items():
            if name in trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        if x.shape[1] != self.centres.shape[1]:
            raise ValueError(f"centres have {self.centres.shape[1]} coordinates, the mesh has {x.shape[1]}")
        field = self.background + torch.exp(-self._square(x) / self.widths.square()) @ self.amplitudes
        return field if self.transform is None else self.transform(field)

    def _square(self, x: Tensor) -> Tensor:
        """|x − x_k|², (n, K); axis by axis, since reductions over an axis of length d are slow."""
        square = (x[:, 0, None] - self.centres[:, 0]).square()
        for i in range(1, x.shape[1]):
            square = square + (x[:, i, None] - self.centres[:, i]).square()
        return square

    def parameter_jacobian(self, x: Tensor) -> dict[str, Tensor]:
        """∂(forward(x))/∂p for each trainable parameter p, (n, *p.shape), in closed form; no graph."""
        x = x.detach()
        with torch.no_grad():
            square, w = self._square(x), self.widths
            bump = torch.exp(-square / w.square())
            weighted = bump * self.amplitudes
            parts = {
                "background": torch.ones(len(x), dtype=x.dtype),
                "amplitudes": bump,
                "centres": (2.0 * weighted / w.square())[:, :, None] * (x[:, None, :] - self.centres),
                "widths": 2.0 * weighted * square / w**3,
            }
            field = self.background + bump @ self.amplitudes
        found = {name: parts[name] for name, p in self.named_parameters(recurse=False) if p.requires_grad}
        if self.transform is None:
            return found
        field = field.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.transform(field).sum(), field)  # the transform acts entry by entry
        return {name: slope.reshape(-1, *[1] * (part.ndim - 1)) * part for name, part in found.items()}


class SineSeries(nn.Module):
    """transform(Σ_m c_m Π_i sin(m_i k_i x_i)), m_i = 1, 2, …

    Args:
        coefficients: c, one axis for each dimension, (M₁, …, M_d).
        wavenumber: k, one number or (d,), in radians per length unit of the mesh.
        transform: Applied to the sum.
    """

    wavenumber: Tensor

    def __init__(
        self, coefficients: Any, wavenumber: Any = 1.0, *, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(_tensor(coefficients))
        if self.coefficients.ndim == 0:
            raise ValueError("coefficients need one axis for each dimension of the mesh")
        self.register_buffer("wavenumber", _broadcast(wavenumber, self.coefficients.ndim, "wavenumber"))
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        c = self.coefficients
        if x.shape[1] != c.ndim:
            raise ValueError(f"coefficients have {c.ndim} axes, the mesh has dimension {x.shape[1]}")
        field = c.expand(len(x), *c.shape)
        for axis in range(c.ndim):
            modes = torch.arange(1, c.shape[axis] + 1, dtype=torch.float64)
            sines = torch.sin(x[:, axis, None] * (modes * self.wavenumber[axis]))
            # Contract the first remaining axis; the next one then takes its place.
            field = torch.einsum("nm...,nm->n...", field, sines)
        return field if self.transform is None else self.transform(field)


class Sum(nn.Module):
    """The sum of coefficients, each with its own parameters and transform."""

    def __init__(self, *terms: nn.Module) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a Sum needs at least one coefficient")
        self.terms = nn.ModuleList(terms)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        return torch.stack([term(x) for term in self.terms]).sum(0)


class NodalField(nn.Module):
    """Every dof value of the coefficient is unknown.  Its parameter is *distributed*: the owned dofs of this rank.

    Args:
        Q: Space of the coefficient, the same object as that of its Function.
        initial: A number, or a function of the owned dof coordinates (n, d) → (n,), for a vector space (n, value_size);
            in the unit of the coefficient.
        transform: Keeps the values admissible; it must have an inverse.

    Raises:
        ValueError: `initial` has the wrong shape, or values that the transform does not reach; on all ranks.

    Construction is collective.
    """

    def __init__(
        self,
        Q: fem.FunctionSpace,
        initial: float | Callable[[Tensor], Tensor] = 1.0,
        transform: Transform | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform or Identity()
        x, bs = dof_coordinates(Q), block_size(Q)
        shape = (len(x),) if bs == 1 else (len(x), bs)
        with agreed(Q.mesh.comm):
            values = _tensor(initial(x).detach()) if callable(initial) else _tensor(np.full(shape, float(initial)))
            if values.shape not in (shape, (len(x), bs)):
                raise ValueError(f"the initial values of a NodalField have shape {tuple(values.shape)}, not {shape}")
            raw = self.transform.inverse(values.reshape(shape))
        self.raw = mark_distributed(nn.Parameter(raw))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled fields are distributed too; torch forgets attributes of a parameter."""
        super().__setstate__(state)
        mark_distributed(self.raw)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,), at the owned dofs of Q only."""
        if len(x) != len(self.raw):
            raise ValueError(
                f"a NodalField has values at the {len(self.raw)} dofs of its space, not at {len(x)} points"
            )
        return self.transform(self.raw)


class NeuralField(nn.Module):
    """transform(network(x)): the coefficient is a network of its own.

    Args:
        network: Any torch module (n, d) → (n,) or (n, 1), in float64, with the same weights on every rank; wrap it in
            `InputScaling` where the mesh is far from the unit box.
        transform: Keeps the values admissible, for instance `Positive()`.
    """

    def __init__(self, network: nn.Module, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) → (n,)."""
        field = self.network(x)
        field = field.squeeze(-1) if field.ndim == 2 and field.shape[1] == 1 else field
        return field if self.transform is None else self.transform(field)
