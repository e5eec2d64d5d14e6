"""I_h: from the values of a network at points to the dofs of a space, for vector and mixed spaces too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from dolfinx import fem
from torch import Tensor

from hyco_fem import _compat
from hyco_fem.bridge.dofs import block_size, dof_coordinates, owned_size


@dataclass(frozen=True)
class Part:
    """One Lagrange part of a space.

    space: it, by itself.  dofs: its local unrolled dofs as dofs of the whole space.  first: number of its first
    component among those of the whole.
    """

    space: fem.FunctionSpace
    dofs: np.ndarray
    first: int

    @property
    def components(self) -> int:
        """How many values it has at a point."""
        return int(np.prod(_compat.value_shape(self.space), dtype=int))


def is_mixed(V: fem.FunctionSpace) -> bool:
    """Whether V is made of several elements."""
    return V.num_sub_spaces > 0 and V.dofmap.index_map_bs == 1


def parts(V: fem.FunctionSpace) -> list[Part]:
    """The Lagrange parts of a space, in the order of its components; V itself where it is not mixed.  Collective.

    Raises:
        ValueError: a part does not have Lagrange elements.
    """
    return list(_parts(V, np.arange(_n_local(V)), 0))


def _n_local(V: fem.FunctionSpace) -> int:
    imap = V.dofmap.index_map
    return (imap.size_local + imap.num_ghosts) * V.dofmap.index_map_bs


def _parts(V: fem.FunctionSpace, dofs: np.ndarray, first: int) -> Iterator[Part]:
    if not is_mixed(V):
        yield Part(V, dofs, first)
        return
    for i in range(V.num_sub_spaces):
        sub, inside = _compat.collapsed(V.sub(i))
        for part in _parts(sub, dofs[inside], first):
            yield part
            first = part.first + part.components


def components(V: fem.FunctionSpace, path: Sequence[int]) -> list[int]:
    """The components of the sub-space V.sub(path[0]).sub(path[1])… among those of V, counted from 0.  Collective."""
    start = 0
    for i in path:
        if not is_mixed(V):
            return [start + i]
        sizes = [int(np.prod(_compat.value_shape(V.sub(k)), dtype=int)) for k in range(i + 1)]
        start += sum(sizes[:-1])
        V = V.sub(i).collapse()[0]
    return list(range(start, start + int(np.prod(_compat.value_shape(V), dtype=int))))


class Interpolant:
    """The owned dofs of V from values at its dof points.

    Attributes:
        x: The dof points of all parts, one part after the other, (n, d).  components: values at each.
        parts: of the space.  rows, columns: the point and the component of each owned dof, (n_owned,).

    Construction is collective, the rest local.
    """

    def __init__(self, V: fem.FunctionSpace) -> None:
        self.parts = parts(V)
        self.components = sum(part.components for part in self.parts)
        rows, columns = np.full((2, owned_size(V)), -1)
        points, start = [], 0
        for part in self.parts:
            x, bs = dof_coordinates(part.space), block_size(part.space)
            dofs = part.dofs[: len(x) * bs].reshape(len(x), bs)
            rows[dofs] = start + np.arange(len(x))[:, None]
            columns[dofs] = part.first + np.arange(bs)
            points.append(x)
            start += len(x)
        assert (rows >= 0).all()
        self.x = torch.cat(points)
        self.rows, self.columns = torch.from_numpy(rows), torch.from_numpy(columns)

    def __call__(self, values: Tensor) -> Tensor:
        """(n_owned,) from values (n,) or (n, components) at x; differentiable."""
        if values.ndim == 1:
            return values[self.rows]
        return values[self.rows, self.columns]
