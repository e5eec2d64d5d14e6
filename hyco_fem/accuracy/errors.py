"""Errors of approximations against a reference, whatever made them: a Function, a formula, or a network.

Everything is integrated by quadrature on the cells of one mesh.  Between two Functions of different meshes that is by
default the mesh with more cells, on which the coarser one is smooth inside each cell if the meshes are nested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import Tensor

from hyco_fem.bridge.integration import CellQuadrature, Field
from hyco_fem.bridge.points import Points
from hyco_fem.parallel import agreed, max_over_ranks, sum_array

# Of the quadrature where neither side says how smooth it is.
_DEGREE = 8


@dataclass(frozen=True)
class ErrorNorms:
    """Norms of an error e on Ω.  Replicated.

    L2: ‖e‖.  H1: ‖∇e‖, the seminorm.  energy: (‖κ^{1/2}∇e‖² + ‖η^{1/2}e‖²)^{1/2}; that of H1 where κ = 1 and η = 0.
    maximum: the largest |e| at a quadrature point.
    reference: the same norms of the reference, (L2, H1, energy, maximum).
    degree: of the quadrature that they were integrated with.
    """

    L2: float
    H1: float
    energy: float = math.nan
    maximum: float = math.nan
    reference: tuple[float, float, float, float] = field(default=(math.nan,) * 4, repr=False)
    degree: int = 0

    @property
    def relative(self) -> ErrorNorms:
        """Each norm over that of the reference; NaN or infinite where that is zero."""
        with np.errstate(all="ignore"):
            parts = np.array([self.L2, self.H1, self.energy, self.maximum]) / np.array(self.reference)
        L2, H1, energy, maximum = (float(part) for part in parts)
        return ErrorNorms(L2, H1, energy, maximum, (1.0,) * 4, self.degree)


def error_norms(
    approximation: Field,
    reference: Field,
    mesh: dmesh.Mesh | CellQuadrature | None = None,
    *,
    kappa: Field = 1.0,
    eta: Field = 0.0,
    degree: int | None = None,
) -> ErrorNorms:
    """Norms of approximation − reference.  Collective.

    Args:
        approximation, reference: A Function (of this mesh or another), a UFL expression on this mesh, a network or
            formula of coordinates (n, d) → (n,) or (n, k), or a number.
        mesh: On whose cells to integrate, or a rule to use many times; by default the mesh of the Function that is
            given, of two the one with more cells.
        kappa, eta: Of the energy norm.
        degree: Of the quadrature; by default three more than twice the degree of the Functions, and at least 8 where
            one side is a network or formula.

    Raises:
        ValueError: no mesh is known; shapes differ; values are not finite; κ or η is negative; on all ranks.
    """
    rule = _rule(approximation, reference, mesh, degree)
    with torch.no_grad():
        v, u = rule.values(approximation), rule.values(reference)
        k, h = rule.values(kappa), rule.values(eta)
        with agreed(rule.comm):
            if v.shape != u.shape:
                raise ValueError(
                    f"values of shape {tuple(v.shape[1:])} and {tuple(u.shape[1:])} at a point cannot be compared"
                )
            for name, values in (("kappa", k), ("eta", h)):
                if values.shape != (len(rule),) or bool((values < 0).any()):
                    raise ValueError(f"{name} of an energy norm must be a number, or a field, that is not negative")
        grad_v, grad_u = rule.gradients(approximation), rule.gradients(reference)
        with agreed(rule.comm):
            for what, values in (("the approximation", v), ("the reference", u), ("the gradient", grad_v - grad_u)):
                if not bool(torch.isfinite(values).all()):
                    raise ValueError(f"{what} is not finite everywhere")
        e, slope = v - u, grad_v - grad_u
        sums = torch.stack(
            [
                rule.weights @ part
                for value, gradient in ((e, slope), (u, grad_u))
                for part in (_square(value), _square(gradient), k * _square(gradient) + h * _square(value))
            ]
        )
        found = np.sqrt(np.maximum(sum_array(rule.comm, sums.numpy()), 0.0))
        largest = max_over_ranks(rule.comm, [float(_square(w).max()) if len(rule) else 0.0 for w in (e, u)]) ** 0.5
    L2, H1, energy, *norms = (float(n) for n in found)
    return ErrorNorms(L2, H1, energy, float(largest[0]), (norms[0], norms[1], norms[2], float(largest[1])), rule.degree)


def _rule(
    approximation: Field, reference: Field, mesh: dmesh.Mesh | CellQuadrature | None, degree: int | None
) -> CellQuadrature:
    if isinstance(mesh, CellQuadrature):
        if degree is not None and degree != mesh.degree:
            raise ValueError(f"the rule has degree {mesh.degree}; do not ask for {degree} as well")
        return mesh
    spaces = [f.function_space for f in (approximation, reference) if isinstance(f, fem.Function)]
    if mesh is None:
        if not spaces:
            raise ValueError("neither side is a Function: say on which mesh to integrate, mesh=…")
        mesh = max((V.mesh for V in spaces), key=_n_cells)
    if degree is None:
        formula = any(callable(f) and not hasattr(f, "ufl_shape") for f in (approximation, reference))
        degree = max(
            [_DEGREE if formula or not spaces else 0, *(2 * V.element.basix_element.degree + 3 for V in spaces)]
        )
    return CellQuadrature(mesh, degree)


def _n_cells(mesh: dmesh.Mesh) -> int:
    return int(mesh.topology.index_map(mesh.topology.dim).size_global)


def relative_l2(
    approximation: Field, reference: Field, mesh: dmesh.Mesh | CellQuadrature | Points, *, degree: int = 4
) -> float:
    """‖approximation − reference‖ / ‖reference‖ in L²(Ω), by quadrature on the cells of a mesh.  Collective.

    Args:
        approximation, reference: As for `error_norms`.
        mesh: The mesh, or the points of its quadrature (`quadrature_points`, `CellQuadrature`), to use them many times.
        degree: Exactness of the quadrature on each cell.
    """
    points = CellQuadrature(mesh, degree) if isinstance(mesh, dmesh.Mesh) else mesh
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


def _values(field: Field, points: CellQuadrature | Points) -> Tensor:
    if isinstance(points, CellQuadrature):
        return points.values(field)
    if isinstance(field, fem.Function):
        return points.evaluate(field)
    with agreed(points.comm):
        values: Any = field(points.x)  # type: ignore[operator]
    return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def _square(values: Tensor) -> Tensor:
    return values.square() if values.ndim == 1 else values.square().flatten(1).sum(1)


def mesh_size(mesh: dmesh.Mesh) -> float:
    """Largest diameter of a cell, over all ranks.  Collective."""
    tdim = mesh.topology.dim
    n = mesh.topology.index_map(tdim).size_local
    h = mesh.h(tdim, np.arange(n, dtype=np.int32)) if n else np.zeros(1)
    return float(mesh.comm.allreduce(float(h.max()), op=MPI.MAX))
