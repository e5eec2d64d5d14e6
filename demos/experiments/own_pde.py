"""A PDE of one's own for own_pde.toml: heat conduction that gets better with the temperature, by radiation for example.

    −∇·((κ(x) + u²) ∇u) = q  in Ω,    u = 0 on the left and right,    (κ + u²) ∂u/∂n = 0 on top and bottom

κ is unknown.  `problem` is what own_pde.toml names; the rest makes the data for it, once:

    docker/run python3 demos/experiments/own_pde.py [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf

SENSORS = Path(__file__).parent.parent / "data" / "own_pde_sensors.csv"
SOURCE = 2.0
TRUTH = {"amplitudes": [2.0], "centres": [[1.3, 0.6]], "widths": 0.35, "background": 0.5}
N_SENSORS, NOISE, SEED = 30, 0.01, 3


def problem(plate: hf.MeshAndTags, source: float) -> hf.Problem:
    """The PDE on a mesh whose sides have the names left, right, bottom and top.

    Args:
        plate: The mesh of the experiment with its groups.
        source: q; what is in `arguments` of the TOML file.
    """
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    u, kappa = fem.Function(V, name="u"), fem.Function(V, name="kappa")
    kappa.x.array[:] = 1.0
    v = ufl.TestFunction(V)
    F = ((kappa + u**2) * ufl.inner(ufl.grad(u), ufl.grad(v)) - source * v) * ufl.dx
    cold = np.concatenate([plate.facets("left"), plate.facets("right")])
    dofs = fem.locate_dofs_topological(V, plate.mesh.topology.dim - 1, cold)
    bcs = [fem.dirichletbc(0.0, dofs, V)]
    # What may be unknown has a name: coefficients.kappa in the TOML file.
    return hf.Problem("radiating plate", F, u, bcs, {"kappa": kappa}, positive=("kappa",))


def main() -> None:
    """Solve with the true κ on a finer mesh, place the sensors, add the noise, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=SENSORS, help="the CSV file to write")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    plate = mesh.create_rectangle(comm, [[0.0, 0.0], [2.0, 1.0]], [160, 80], diagonal=mesh.DiagonalType.left)
    ends = mesh.locate_entities_boundary(plate, 1, lambda x: np.isclose(x[0], 0.0) | np.isclose(x[0], 2.0))
    sides = mesh.meshtags(plate, 1, np.sort(ends), np.full(len(ends), 1, dtype=np.int32))
    cells = mesh.meshtags(plate, 2, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
    tagged = hf.MeshAndTags(plate, cells, sides, {"left": (1, 1), "right": (1, 1)})
    model = hf.PhysicalModel.of(problem(tagged, SOURCE), {"kappa": hf.GaussianBumps(**TRUTH)})  # type: ignore[arg-type]
    sensors = hf.RandomGhosts(N_SENSORS, seed=SEED).on(model.domain).draw(0)
    with torch.no_grad():
        clean = sensors.gather(model(sensors))  # type: ignore[arg-type]
    noisy = clean + NOISE * np.random.default_rng(SEED).standard_normal(N_SENSORS)
    comment = f"u at {N_SENSORS} places; made by demos/experiments/own_pde.py; noise: Gaussian, {NOISE}"
    hf.write_sensors(args.out, sensors.gather(sensors.x), noisy, NOISE, comment, comm)
    if comm.rank == 0:
        print(f"{N_SENSORS} sensors, u between {clean.min():.3g} and {clean.max():.3g} -> {args.out}")


if __name__ == "__main__":
    hf.run_script(main)
