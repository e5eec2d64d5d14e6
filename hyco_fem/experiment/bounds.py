"""The guaranteed bound for an experiment, where its assumptions hold, and otherwise why they do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dolfinx import fem

from hyco_fem._compat import MeshAndTags
from hyco_fem.accuracy.bound import explicit_bound
from hyco_fem.bridge.integration import CellQuadrature
from hyco_fem.experiment import pde
from hyco_fem.experiment.meshes import facets_of
from hyco_fem.experiment.schema import SHAPES, Experiment
from hyco_fem.parallel import agreed

# −∇·(κ∇u) = f.
_EQUATIONS = ("poisson", "darcy")


def why_not(experiment: Experiment) -> str | None:
    """A sentence where there is no bound; None where there is one."""
    spec = experiment.problem
    reason = None
    if spec.name not in _EQUATIONS:
        reason = f"it is for −∇·(κ∇u) = f ({', '.join(_EQUATIONS)})"
    elif experiment.mesh.shape is not None and SHAPES[experiment.mesh.shape] == 1:
        reason = "it is for triangles and tetrahedra"
    elif isinstance(spec.arguments.get("kappa", 1.0), list):
        reason = "κ is a matrix"
    elif set(experiment.coefficients) - {"kappa"}:
        reason = f"it needs the load, and {', '.join(sorted(set(experiment.coefficients) - {'kappa'}))} is unknown"
    elif getattr(experiment.coefficients.get("kappa"), "degree", None) not in (None, 0, 1):
        reason = "it needs bounds of κ on each cell, known for a coefficient of degree 0 or 1"
    else:
        reason = next(filter(None, map(_condition, range(99), spec.conditions or [])), None)
        if spec.conditions is not None and not any(isinstance(c, pde.Dirichlet) for c in spec.conditions):
            reason = "u is held nowhere"
    return None if reason is None else f"no guaranteed bound: {reason}"


def _condition(number: int, condition: Any) -> str | None:
    """Why a condition is in the way."""
    key = f"problem.conditions[{number}]"
    if isinstance(condition, pde.Robin):
        return f"{key} is a Robin condition"
    zero = not isinstance(condition.value, str) and not np.any(np.array(condition.value))
    if zero:
        return None
    if isinstance(condition, pde.Dirichlet):
        return f"{key} holds u = {condition.value}, and it is for u = 0"
    return f"{key} is a flux that is not zero"


def guaranteed(experiment: Experiment, mesh: MeshAndTags, kappa: fem.Function | None) -> float:
    """C_h ‖f‖, for the P1 solution on a mesh with κ of degree 0 or 1.  Collective.

    Raises:
        ValueError, SolveError: as `explicit_bound`.
    """
    spec = experiment.problem
    f = float(np.squeeze(spec.arguments.get("f", spec.parameters["f"].default)))
    held = None
    if spec.conditions is not None:
        parts = [
            facets_of(c.facets, mesh, f"problem.conditions[{i}].facets")
            for i, c in enumerate(spec.conditions)
            if isinstance(c, pde.Dirichlet)
        ]
        # None among them: the whole boundary.
        held = None if any(p is None for p in parts) else np.unique(np.concatenate([p for p in parts if p is not None]))
    rule = CellQuadrature(mesh.mesh, 0)
    size = rule.integral(rule.values(1.0))
    return explicit_bound(mesh.mesh, 1.0 if kappa is None else _cell_bounds(kappa), held).energy(
        abs(f) * math.sqrt(size)
    )


def _cell_bounds(kappa: fem.Function) -> tuple[fem.Function, fem.Function]:
    """The least and the largest of its dofs on each cell: of degree 0 or 1 it lies between them.  Collective."""
    V = kappa.function_space
    X = fem.functionspace(V.mesh, ("DG", 0))
    with agreed(V.mesh.comm):
        degree = V.element.basix_element.degree
        if degree > 1:
            raise ValueError(f"the bounds of a coefficient of degree {degree} on a cell are not known")
    pair = (fem.Function(X), fem.Function(X))
    n = X.dofmap.index_map.size_local
    on_cells = kappa.x.array[V.dofmap.list[:n]]
    ends = (on_cells.min(axis=1, initial=np.inf), on_cells.max(axis=1, initial=-np.inf))
    for bound, values in zip(pair, ends, strict=True):
        bound.x.array[X.dofmap.list[:n, 0]] = values
        bound.x.scatter_forward()
    return pair
