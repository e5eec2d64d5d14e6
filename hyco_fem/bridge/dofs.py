"""Dofs as torch sees them: where they are, which are owned, and how owned values become local ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import ufl
from dolfinx import fem, la
from torch import Tensor, nn

from hyco_fem import _compat


def block_size(V: fem.FunctionSpace) -> int:
    """Number of values at each dof point: 1 for a scalar space, d for a vector one."""
    return V.dofmap.index_map_bs


def owned_size(V: fem.FunctionSpace) -> int:
    """Number of owned dof values of this rank, blocks unrolled."""
    return V.dofmap.index_map.size_local * block_size(V)


def dof_coordinates(V: fem.FunctionSpace) -> Tensor:
    """Coordinates of the owned dof points, (n_owned_points, d).  Distributed.

    Raises:
        ValueError: the space is not a point-evaluation one (Lagrange of any degree, continuous or not).
    """
    check_point_evaluation(V)
    mesh = V.mesh
    n = V.dofmap.index_map.size_local
    return torch.from_numpy(V.tabulate_dof_coordinates()[:n, : mesh.geometry.dim].astype(np.float64))


def check_point_evaluation(V: fem.FunctionSpace) -> None:
    """Raise ValueError unless all dofs of V are values at points: a Lagrange space that is no sub-space."""
    check_lagrange(V)
    if len(V.component()) > 0:
        raise ValueError(
            "a sub-space shares its dofs with the whole space; use its collapsed space, V.sub(i).collapse()[0]"
        )


def check_lagrange(V: fem.FunctionSpace) -> None:
    """Raise ValueError unless V, or the sub-space V of a mixed or vector one, has Lagrange elements."""
    try:
        family = V.element.basix_element.family.name
    except RuntimeError:
        family = "mixed"
    shape = _compat.value_shape(V)
    components = int(np.prod(shape, dtype=int))
    if family != "P" or V.dofmap.list.shape[1] * V.dofmap.bs != components * V.element.basix_element.dim:
        raise ValueError(
            f"a space of '{family}' elements with value shape {shape} has dofs that are not values at points; "
            "use Lagrange elements, or a sub-space V.sub(i) of a mixed one"
        )


def as_function(
    V: fem.FunctionSpace,
    field: Tensor | fem.Function | nn.Module | Callable[[Tensor], Tensor] | ufl.core.expr.Expr,
    name: str,
) -> fem.Function:
    """A Function of V from owned dof values, a network or formula of coordinates, a Function or a UFL expression.

    Args:
        V: A Lagrange space.
        field: Values (n_owned,); a module or function (n, d) → (n,); or something UFL on the same mesh, interpolated.
        name: Of the Function.

    Collective.
    """
    f = fem.Function(V, name=name)
    if isinstance(field, fem.Function):
        f.interpolate(field)
    elif isinstance(field, ufl.core.expr.Expr):
        f.interpolate(_compat.expression(field, _compat.interpolation_points(V), V.mesh))
    else:
        with torch.no_grad():
            values = field if isinstance(field, Tensor) else field(dof_coordinates(V))
        f.x.array[: owned_size(V)] = values.detach().numpy().reshape(-1)
    f.x.scatter_forward()
    return f


class DofLayout:
    """Owned ⇄ local (owned and ghost) values of one space, with one reusable work vector."""

    def __init__(self, V: fem.FunctionSpace) -> None:
        dofmap = V.dofmap
        self.bs = dofmap.index_map_bs
        self.n_owned = dofmap.index_map.size_local * self.bs
        self._serial = V.mesh.comm.size == 1
        self._work = la.vector(dofmap.index_map, self.bs, dtype=np.float64)

    def to_local(self, owned_values: np.ndarray) -> np.ndarray:
        """Local values from owned ones; a view of a work array, good until the next call.  Collective."""
        if self._serial:
            return owned_values
        self._work.array[: self.n_owned] = owned_values
        self._work.scatter_forward()
        return self._work.array

    def to_owned(self, local_values: np.ndarray) -> np.ndarray:
        """The transpose of `to_local`: ghost parts are added to their owner.  Collective."""
        if self._serial:
            return local_values
        self._work.array[:] = local_values
        self._work.scatter_reverse(la.InsertMode.add)
        return self._work.array[: self.n_owned].copy()


def layout(V: fem.FunctionSpace) -> DofLayout:
    """The layout of V, made once and kept with V: its scatter costs communication to set up.  Collective."""
    found = getattr(V, "_hyco_layout", None)
    if found is None:
        found = V._hyco_layout = DofLayout(V)
    return found
