"""A run in pieces: stopped by a time limit, a signal or a crash, it goes on where it was, on any number of ranks.

Heat flows through the unit square, −∇·(κ∇u) = 10 with u = 0 on the boundary.  κ = 1 + A exp(−|x − c|²/w²) is known but
for A and c.  Twenty thermometers see the truth, A = 3 and c = (0.5, 0.55), with noise of 0.01.

A checkpoint has θ, φ, the optimisers and the history.  The script that starts the run is the one that goes on with it:
`--rounds` counts all rounds, those of the processes before among them.  Try

    mpirun -n 2 python3 -m mpi4py demos/restart.py --rounds 300
    mpirun -n 3 python3 -m mpi4py demos/restart.py --rounds 600        goes on at round 300

or send SIGTERM to a rank in between: the run stops after its round, with a checkpoint.  Under Slurm that is what
docker/slurm/requeue.sbatch does before the time is over, and this demo is what it runs by default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpi4py import MPI

import numpy as np
from dolfinx import fem, mesh

import hyco_fem as hf

NOISE = 0.01


def physics(comm: MPI.Comm, cells: int, amplitude: float, centre: list[float]) -> hf.PhysicalModel:
    """The PDE with one bump of κ, as wide as 0.3."""
    square = mesh.create_unit_square(comm, cells, cells)
    kappa = fem.Function(fem.functionspace(square, ("Lagrange", 1)), name="kappa")
    kappa.x.array[:] = 1.0
    problem = hf.catalogue.poisson(square, degree=1, kappa=kappa, f=10.0)
    return hf.PhysicalModel.of(problem, {"kappa": hf.GaussianBumps([amplitude], [centre], 0.3, background=1.0)})


def main() -> None:
    """Start, or go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=600, help="in all")
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("out/restart"))
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)

    rng = np.random.default_rng(0)
    places = rng.uniform(0.05, 0.95, (20, 2))
    truth = physics(comm, 2 * options.cells, 3.0, [0.5, 0.55])
    points = hf.Points(truth.V.mesh, places)
    values = points.gather(truth(points).detach()) + NOISE * rng.standard_normal(20)

    model = physics(comm, options.cells, 2.0, [0.4, 0.6])
    data = hf.Data(hf.Points(model.V.mesh, places), values, NOISE)
    answers = hf.Answers(hf.AdamStep(2e-2), hf.AdamStep(1e-3))
    weights = hf.Weights(a1=1.0, b1=10.0, a2=1.0, b2=10.0)
    game = hf.Hyco(model, hf.MLP(2, width=32, depth=2, seed=0), data, weights=weights, answers=answers)

    with hf.Checkpoints(options.out / "checkpoints", game, configuration={"cells": options.cells}) as checkpoints:
        done = checkpoints.resume()
        if comm.rank == 0:
            print("starts" if done is None else f"goes on at round {done.round}, from {done.path}", flush=True)
        past = [] if done is None else done.history
        with hf.HistoryFile(options.out / "history.csv", comm, past=past) as table:
            result = game.run(options.rounds, callbacks=[checkpoints, table])
    if comm.rank == 0:
        theta = {name: np.round(value, 3).tolist() for name, value in result.parameters.items()}
        print(f"{result.rounds} rounds, stopped by {result.stop}: {theta}", flush=True)


if __name__ == "__main__":
    hf.run_script(main)
