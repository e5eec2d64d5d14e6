"""Make demos/data/heat_sensors.csv: what thirteen thermometers saw of a hot spot that spreads in a plate.

Ten of them stay where they are and measure at ten times; three are carried round on circles and measure at twenty.  The
temperature is that of heat.toml with the true numbers below, on a mesh and with steps of its own, both finer than those
of the experiment, so that it cannot profit from making the same errors.  The noise is Gaussian.

    docker/run python3 demos/experiments/make_heat_data.py [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import mesh

import hyco_fem as hf

SENSORS = Path(__file__).parent.parent / "data" / "heat_sensors.csv"
KAPPA = 0.05  # m²/s
SPOT = {"amplitudes": [5.0], "centres": [[0.3, 0.65]], "widths": 0.2}  # K, m, m
NOISE, SEED = 0.05, 7  # K


def main() -> None:
    """Solve, place the sensors, add the noise, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=SENSORS, help="the CSV file to write")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    square = mesh.create_unit_square(comm, 48, 48, diagonal=mesh.DiagonalType.left)
    cold = hf.Dirichlet(0.0, lambda x: np.isclose(x[1], 0.0))
    spot = hf.GaussianBumps(**SPOT, trainable=())  # type: ignore[arg-type]
    problem = hf.catalogue.heat(square, degree=2, kappa=KAPPA, initial=spot, conditions=[cold])
    model = hf.TransientModel.of(problem, {}, interval=(0.0, 1.0), dt=0.005, scheme=hf.CrankNicolson(damped=2))

    rng = np.random.default_rng(SEED)
    x = np.repeat(rng.uniform(0.05, 0.95, (10, 2)), 10, axis=0)
    t = np.tile(np.linspace(0.1, 1.0, 10), 10)
    times = np.linspace(0.05, 1.0, 20)
    for phase in 2.0 * np.pi * np.arange(3) / 3:
        angle = phase + 2.0 * np.pi * times
        x = np.concatenate([x, 0.5 + 0.3 * np.column_stack([np.cos(angle), np.sin(angle)])])
        t = np.concatenate([t, times])
    points = hf.SpaceTimePoints(square, x, t)
    with torch.no_grad():
        clean = points.gather(model(points))
    noisy = clean + NOISE * rng.standard_normal(len(clean))
    comment = (
        "Temperatures (K) at places (m) and times (s) in a plate; made by demos/experiments/make_heat_data.py\n"
        f"ten thermometers that stay, three on circles; noise: Gaussian, {NOISE} K"
    )
    hf.write_sensors(args.out, x, noisy, NOISE, comment, comm, t=t)
    if comm.rank == 0:
        print(f"{len(x)} measurements between {clean.min():.3g} and {clean.max():.3g} K -> {args.out}")


if __name__ == "__main__":
    hf.run_script(main)
