"""The plate with a hole: the problem shared by the demo and by the script that makes its data.

Steady heat conduction in a plate of 2 m × 1 m, one metre deep, with a hole of radius 0.2 m:

    −∇·(κ ∇u) = f  in Ω,    u = 0 K on the left, u = 1 K on the right,    κ ∂u/∂n = q on the hole,
                            κ ∂u/∂n = 0 on top and bottom,

with f = 4 W/m³ and q = 0.5 W/m².  The conductivity, in W/(m K), is a background with an inclusion:

    κ(x) = κ₀ + A exp(−|x − c|² / w²),    unknown: κ₀, A, c, w
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ufl
from dolfinx import fem

import hyco_fem as hf

HERE = Path(__file__).parent
MESH_GEO = HERE.parent / "meshes" / "plate_with_hole.geo"
MESH = HERE.parent / "meshes" / "plate_with_hole.msh"
SENSORS = HERE / "data" / "plate_sensors.csv"

TRUTH = {"background": 1.0, "amplitude": 3.0, "centre": (1.45, 0.6), "width": 0.25}
SOURCE, FLUX = 4.0, 0.5


def true_conductivity(mesh: Any) -> Any:
    """κ of the truth as a UFL expression."""
    x = ufl.SpatialCoordinate(mesh)
    cx, cy = TRUTH["centre"]
    square = (x[0] - cx) ** 2 + (x[1] - cy) ** 2
    return TRUTH["background"] + TRUTH["amplitude"] * ufl.exp(-square / TRUTH["width"] ** 2)


def problem(plate: hf.MeshAndTags, kappa: Any, u: fem.Function) -> tuple[ufl.Form, list[fem.DirichletBC]]:
    """Residual and boundary conditions on a mesh with the physical groups of plate_with_hole.geo."""
    mesh, _, facets, names = plate
    V = u.function_space
    v = ufl.TestFunction(V)
    tag = {name: number for name, (_, number) in names.items()}
    missing = {"left", "right", "hole"} - set(tag)
    if missing:
        raise ValueError(
            f"the mesh has no physical groups {sorted(missing)}, only {sorted(tag)}: see plate_with_hole.geo"
        )
    ds = ufl.Measure("ds", domain=mesh, subdomain_data=facets)
    f, q = fem.Constant(mesh, SOURCE), fem.Constant(mesh, FLUX)
    F = ufl.inner(kappa * ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx - q * v * ds(tag["hole"])
    bcs = []
    for side, value in (("left", 0.0), ("right", 1.0)):
        dofs = fem.locate_dofs_topological(V, mesh.topology.dim - 1, facets.find(tag[side]))
        bcs.append(fem.dirichletbc(value, dofs, V))
    return F, bcs


def true_solution(plate: hf.MeshAndTags, degree: int) -> fem.Function:
    """u of the true conductivity, Lagrange of the given degree.  Collective."""
    u = fem.Function(fem.functionspace(plate.mesh, ("Lagrange", degree)), name="u_true")
    F, bcs = problem(plate, true_conductivity(plate.mesh), u)
    physical = hf.PhysicalModel(F, u, bcs)
    physical.solve()
    physical.close()
    return u
