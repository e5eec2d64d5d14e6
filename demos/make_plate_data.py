"""Make demos/data/plate_sensors.csv: what 40 thermometers on the plate with a hole would read.

The temperature comes from P2 elements on a mesh of its own, finer than the one that the demo uses (plate_with_hole.geo
meshed with h = 0.013 m), so that the inversion cannot profit from making the same discretisation error.  The places
are uniform in the plate, the noise is Gaussian with 2 % of the largest temperature.

    python3 demos/make_plate_data.py [--out FILE]
"""

import argparse
from pathlib import Path

from mpi4py import MPI

import numpy as np
from plate_problem import MESH_GEO, SENSORS, true_solution

import hyco_fem as hf

N_SENSORS, NOISE, SEED = 40, 0.02, 2026


def main() -> None:
    """Solve, place the sensors, add the noise, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=SENSORS, help="the CSV file to write")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    plate = hf.read_mesh(MESH_GEO, comm, mesh_size=0.013)
    u = true_solution(plate, degree=2)
    sensors = hf.RandomGhosts(N_SENSORS, seed=SEED).on(u.function_space).draw(0)
    clean = sensors.gather(sensors.evaluate(u))
    x = sensors.gather(sensors.x)
    sigma = NOISE * float(comm.allreduce(u.x.array.max(), op=MPI.MAX))
    noisy = clean + sigma * np.random.default_rng(SEED).standard_normal(N_SENSORS)
    comment = (
        "Temperatures (K) at 40 places (m) of the plate with a hole; made by demos/make_plate_data.py\n"
        f"noise: Gaussian, {NOISE:.0%} of the largest temperature"
    )
    hf.write_sensors(args.out, x, noisy, sigma, comment, comm)
    if comm.rank == 0:
        vertices = plate.mesh.geometry.index_map().size_global
        print(f"{N_SENSORS} sensors, noise {sigma:.4g} K, mesh of {vertices} vertices, P2 -> {args.out}")


if __name__ == "__main__":
    hf.run_script(main)
