"""Errors of approximations against a reference, whatever made them: a Function, a formula, or a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor, nn

from hyco_fem.bridge.ghosts import quadrature_points
from hyco_fem.bridge.points import Points
from hyco_fem.parallel import agreed, sum_array

# A field: a Function of the same mesh, or a network or formula of coordinates (n, d) → (n,) or (n, value_size).
Field: TypeAlias = fem.Function | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ErrorNorms:
    """‖e‖ in L² and ‖∇e‖ in L² (the H¹ seminorm); replicated."""

    L2: float
    H1: float


def error_norms(uh: fem.Function, u_exact: Any, *, degree: int | None = None) -> ErrorNorms:
    """Norms of uh − u_exact over the mesh of uh.  Collective.

    Args:
        uh: A Function.
        u_exact: A UFL expression or a Function on the same mesh.
        degree: Of the quadrature; by default three more than twice the degree of uh.
    """
    mesh = uh.function_space.mesh
    p = uh.function_space.element.basix_element.degree
    dx = ufl.Measure("dx", domain=mesh, metadata={"quadrature_degree": 2 * p + 3 if degree is None else degree})
    e = uh - u_exact
    forms = (ufl.inner(e, e) * dx, ufl.inner(ufl.grad(e), ufl.grad(e)) * dx)
    local = np.array([fem.assemble_scalar(fem.form(form)) for form in forms])
    L2, H1 = np.sqrt(np.maximum(sum_array(mesh.comm, local), 0.0))
    return ErrorNorms(float(L2), float(H1))


def relative_l2(approximation: Field, reference: Field, mesh: dmesh.Mesh | Points, *, degree: int = 4) -> float:
    """‖approximation − reference‖ / ‖reference‖ in L²(Ω), by quadrature on the cells of a mesh.  Collective.

    Args:
        approximation, reference: A Function on this mesh, or a network or formula of coordinates.
        mesh: The mesh, or the points of its quadrature (`quadrature_points`), to use them many times.
        degree: Exactness of the quadrature on each cell.
    """
    points = mesh if isinstance(mesh, Points) else quadrature_points(mesh, degree)
    with torch.no_grad():
        v, u = _values(approximation, points), _values(reference, points)
        with agreed(points.comm):
            if not len(points) == len(v) == len(u) or v.shape != u.shape:
                raise ValueError(
                    f"values of shape {tuple(v.shape)} and {tuple(u.shape)} at {len(points)} points cannot be compared"
                )
        local = torch.stack([points.weights @ _square(v - u), points.weights @ _square(u)])
    error, norm = sum_array(points.comm, local.numpy())
    if norm == 0.0:
        raise ValueError("the reference is zero: there is no relative error")
    return float(np.sqrt(error / norm))


def _values(field: Field, points: Points) -> Tensor:
    if isinstance(field, fem.Function):
        return points.evaluate(field)
    with agreed(points.comm):
        values = field(points.x)
    return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def _square(values: Tensor) -> Tensor:
    return values.square() if values.ndim == 1 else values.square().sum(1)


def mesh_size(mesh: dmesh.Mesh) -> float:
    """Largest diameter of a cell, over all ranks.  Collective."""
    tdim = mesh.topology.dim
    n = mesh.topology.index_map(tdim).size_local
    h = mesh.h(tdim, np.arange(n, dtype=np.int32)) if n else np.zeros(1)
    return float(mesh.comm.allreduce(float(h.max()), op=MPI.MAX))
