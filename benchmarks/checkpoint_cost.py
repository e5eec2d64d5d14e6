"""What do checkpoints cost at their default interval?

Two games: case 1 as published (18 × 18 mesh, 200 random ghost points, the 2–256–256–1 network), and a field with a
number for each of 66 049 dofs, with Adam.  The share of a run is that of each round, in which a line of the history is
written and the ranks agree on what is due, and that of a checkpoint each 60 seconds.

    python3 benchmarks/checkpoint_cost.py    {"case1_share": …, "case1_write_ms": …, "case1_bytes": …, "field_share": …}
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

sys.path.insert(0, str(Path(__file__).parent.parent / "demos"))
import helmholtz

import hyco_fem as hf

WRITES = 15
SECONDS = inspect.signature(hf.Checkpoints).parameters["seconds"].default


def case1(comm: MPI.Comm) -> hf.Hyco:
    """As in round_cost.py."""
    physical = helmholtz.physical_model(comm, np.array([2.0, 0.5, 0.5, 2.0, 0.5, 0.4]))
    data = helmholtz.sensors(physical, np.random.default_rng(0))
    return hf.Hyco(physical, helmholtz.network(physical, 0, False), data, hf.RandomGhosts(200))


def field(comm: MPI.Comm, cells: int) -> hf.Hyco:
    """−∇·(κ∇u) = 10 with κ unknown at every dof."""
    V = fem.functionspace(mesh.create_unit_square(comm, cells, cells), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    V.mesh.topology.create_connectivity(1, 2)
    dofs = fem.locate_dofs_topological(V, 1, mesh.exterior_facet_indices(V.mesh.topology))
    module = hf.NodalField(V, 1.0, hf.Positive())
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(0.0, dofs, V)], {kappa: module}, positive=[kappa])
    places = np.random.default_rng(1).uniform(0.05, 0.95, (100, 2))
    data = hf.Data(hf.Points(V.mesh, places), 0.5 * np.sin(3 * places[:, 0]), 0.05)
    return hf.Hyco(model, hf.MLP(2, width=256, depth=2, seed=0), data, hf.RandomGhosts(200))


def cost(game: Any, rounds: int, folder: Path) -> dict[str, float]:
    """Share of the time of a run, and seconds and bytes of a checkpoint."""
    game.run(3)
    before = dict(game.clock.seconds)
    with hf.Checkpoints(folder, game) as checkpoints:
        game.run(rounds, callbacks=[checkpoints])
        each, total = (game.clock.seconds[part] - before.get(part, 0.0) for part in ("checkpoints", "total"))
        times = []
        for _ in range(WRITES):
            start = time.perf_counter()
            path = checkpoints.write()
            times.append(time.perf_counter() - start)
    size = sum(p.stat().st_size for p in (path, path.with_suffix(".fields")) if p.exists())
    write = float(np.median(times))
    return {"share": round(each / total + write / SECONDS, 5), "write_ms": round(1e3 * write, 2), "bytes": size}


def main() -> None:
    """Measure both games, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--cells", type=int, default=256, help="of the mesh of the field, along each side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comm, report = MPI.COMM_WORLD, {}
    with tempfile.TemporaryDirectory() as name:
        name = comm.bcast(name)
        games = {
            "case1": (case1(comm), options.rounds),
            "field": (field(comm, options.cells), -(-options.rounds // 40)),
        }
        for key, (game, rounds) in games.items():
            report |= {f"{key}_{k}": value for k, value in cost(game, rounds, Path(name) / key).items()}
        comm.Barrier()
    if comm.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
