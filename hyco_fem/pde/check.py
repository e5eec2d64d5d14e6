"""Do a form, its unknown, its conditions and its coefficients fit together?  Each error names what does not."""

from __future__ import annotations

from collections.abc import Sequence

from petsc4py import PETSc

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms.analysis import extract_coefficients

from hyco_fem.pde.dirichlet import is_value_of


def is_boundary_value(bcs: Sequence[fem.DirichletBC], m: fem.Function) -> bool:
    """Whether m is the value of one of the conditions."""
    return any(is_value_of(bc, m) for bc in bcs)


def arguments(
    F: ufl.Form, u: fem.Function, bcs: Sequence[fem.DirichletBC], coefficients: Sequence[fem.Function]
) -> None:
    """Raise ValueError or TypeError where the arguments of a solver do not fit.  The same on all ranks."""
    if np.issubdtype(PETSc.ScalarType, np.complexfloating):
        raise TypeError("hyco_fem needs PETSc with real scalars; this build has complex ones")
    if not isinstance(F, ufl.Form):
        raise TypeError(f"F must be a UFL form, not {type(F).__name__}")
    V = u.function_space
    if len(F.arguments()) != 1:
        raise ValueError(
            f"F must be a residual with exactly one test function, not {len(F.arguments())} arguments; "
            "write it with the Function u, not with a TrialFunction"
        )
    if F.arguments()[0].ufl_function_space() != V:
        raise ValueError("the test function of F must come from the space of u")
    present = extract_coefficients(F)
    if u not in present:
        raise ValueError(f"the unknown '{u.name}' does not appear in F")
    for m in coefficients:
        if m is u:
            raise ValueError(f"'{m.name}' is the unknown and cannot be a coefficient too")
        if m not in present and not is_boundary_value(bcs, m):
            raise ValueError(
                f"the coefficient '{m.name}' does not appear in the form, nor as a Dirichlet value; the form has "
                f"{sorted(f.name for f in present if f is not u)}"
            )
    _measures(F)
    check_interior_facets(F, V)


def _measures(F: ufl.Form) -> None:
    """DOLFINx wants one set of tags for each kind of integral, and says so by an AssertionError."""
    for by_type in F.subdomain_data().values():
        for kind, data in by_type.items():
            if any(d is not data[0] for d in data):
                raise ValueError(
                    f"the {kind} integrals of F use different subdomain_data; use one measure for all of them, such as "
                    "dx = ufl.Measure('dx', domain=mesh, subdomain_data=tags), also over the whole mesh"
                )


def check_interior_facets(F: ufl.Form, V: fem.FunctionSpace) -> None:
    """Integrals over interior facets need the cells on the other side of the partition's borders."""
    mesh = V.mesh
    if mesh.comm.size == 1 or not any(i.integral_type() == "interior_facet" for i in F.integrals()):
        return
    ghosts = mesh.topology.index_map(mesh.topology.dim).num_ghosts
    if mesh.comm.allreduce(ghosts) == 0:
        raise ValueError(
            "there are integrals over interior facets (dS), but the mesh was distributed without ghost cells; make it "
            "with ghost_mode=dolfinx.mesh.GhostMode.shared_facet"
        )
