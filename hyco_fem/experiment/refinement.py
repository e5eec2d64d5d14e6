"""The same experiment on finer meshes, and with other degrees.  Everything here is collective."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import graph
from dolfinx import mesh as dmesh

from hyco_fem._compat import MeshAndTags
from hyco_fem.experiment import schema
from hyco_fem.experiment.meshes import build_mesh
from hyco_fem.experiment.tables import ConfigurationError, section
from hyco_fem.pde import catalogue


def finer_mesh(spec: schema.Mesh, times: int, comm: MPI.Comm) -> MeshAndTags:
    """The mesh of an experiment with each cell cut in 2^d, `times` times, so that the meshes are nested.  Collective.

    Raises:
        ConfigurationError: it cannot be made, or its cells are not simplices.
    """
    if spec.shape is None:
        return refined_with_groups(build_mesh(spec, comm), times)
    assert spec.cells is not None
    factor = 2**times
    cells = spec.cells * factor if isinstance(spec.cells, int) else [n * factor for n in spec.cells]
    return build_mesh(replace(spec, cells=cells), comm)


def refined_with_groups(plate: MeshAndTags, times: int = 1) -> MeshAndTags:
    """A mesh refined uniformly, with its groups of cells and facets.  Collective.

    Cells stay on the rank of the one they come from, and there are no ghost cells: groups are carried over without
    communication, which DOLFINx does for such meshes only.

    Raises:
        ConfigurationError: the cells are not intervals, triangles or tetrahedra.
    """
    for _ in range(times):
        mesh = plate.mesh
        topology, d = mesh.topology, mesh.topology.dim
        if topology.cell_name() not in ("interval", "triangle", "tetrahedron"):
            raise ConfigurationError(f"mesh.file: only simplices are refined, not {topology.cell_name()} cells")
        topology.create_entities(1)
        for pair in ((d - 1, d), (d, d - 1)):
            topology.create_connectivity(*pair)

        def stay(comm: MPI.Comm, parts: int, types: Any, cells: list[np.ndarray], corners: int = d + 1) -> Any:
            own = np.full((len(cells[0]) // corners, 1), comm.rank, dtype=np.int32)
            found = graph.adjacencylist(own)
            return getattr(found, "_cpp_object", found)  # wrapped from 0.10 on

        option = dmesh.RefinementOption.parent_cell_and_facet
        with section("mesh.file"):
            fine, parent, parent_facet = dmesh.refine(mesh, partitioner=stay, option=option)
            fine.topology.create_connectivity(d - 1, d)
            cells = dmesh.transfer_meshtag(plate.cell_tags, fine, parent)
            facets = dmesh.transfer_meshtag(plate.facet_tags, fine, parent, parent_facet)
        plate = MeshAndTags(fine, cells, facets, plate.names)
    return plate


def degree_of(experiment: schema.Experiment) -> int | None:
    """The degree of the problem's elements; None where the experiment does not say."""
    spec = experiment.problem
    if spec.name is None:
        found = spec.arguments.get("degree")
        return found if isinstance(found, int) else None
    parameter = inspect.signature(getattr(catalogue, spec.name)).parameters.get("degree")
    return None if parameter is None else int(spec.arguments.get("degree", parameter.default))


def with_degree(experiment: schema.Experiment, degree: int) -> schema.Experiment:
    """The experiment with elements of another degree.

    Raises:
        ConfigurationError: the problem takes no degree.
    """
    if degree_of(experiment) is None:
        name = experiment.problem.name or f"the function '{experiment.problem.function}'"
        raise ConfigurationError(f"problem.arguments.degree: {name} is given none, so that it cannot be another one")
    spec = experiment.problem
    return replace(experiment, problem=replace(spec, arguments=spec.arguments | {"degree": degree}))


def finer_coefficients(experiment: schema.Experiment) -> schema.Experiment:
    """The experiment with coefficients one degree higher, but for boundary values and what a Python file makes."""
    spec = experiment.problem
    if spec.name is None:
        return experiment
    own = inspect.signature(getattr(catalogue, spec.name)).parameters
    raised = {
        name: replace(chosen, degree=(1 if chosen.degree is None else chosen.degree) + 1) if name in own else chosen
        for name, chosen in experiment.coefficients.items()
    }
    return replace(experiment, coefficients=raised)
