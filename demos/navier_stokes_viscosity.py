"""Viscosity and inflow of a steady flow around a cylinder, from velocity sensors.

The channel and cylinder of Schäfer and Turek (Notes on Numerical Fluid Mechanics 52, 1996), read from a gmsh mesh:

    −∇·(μ ∇u) + (u·∇)u + ∇p = 0,   ∇·u = 0,   u = g on the inlet,   u = 0 on walls and cylinder,   outflow free,

density 1 kg/m³, lengths in metres.  Unknown are the viscosity μ (m²/s) and two numbers of the inflow, which is
Dirichlet data: its peak speed U (m/s) and its skewness s, 0 for the parabola,

    g(y) = 4 U η (1 − η) (1 + s (2η − 1)),   η = y / 0.41 m.

Forty sensors measure both components of the velocity with 2 % noise.  The measurements come from a finer mesh.  The
start has a sixth of the Reynolds number; Levenberg–Marquardt steps lead from there to the answer, each with one Newton
solve from the last solution and one block of tangent solves.

    mpirun -n 2 python3 -m mpi4py demos/navier_stokes_viscosity.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from dolfinx import fem

import hyco_fem as hf

MESHES = Path(__file__).parent.parent / "meshes"
HEIGHT, DIAMETER = 0.41, 0.1
TRUTH = {"mu": 1e-3, "U": 0.3, "s": 0.4}
START = {"mu": 4e-3, "U": 0.2, "s": 0.0}
N_SENSORS, NOISE, SEED = 40, 0.02, 3


class Inflow(torch.nn.Module):
    """g: (n, 2) velocities at x (n, 2), of which only the trace on the inlet is used."""

    def __init__(self, U: float, s: float) -> None:
        super().__init__()
        self.U = torch.nn.Parameter(torch.tensor(U, dtype=torch.float64))
        self.s = torch.nn.Parameter(torch.tensor(s, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eta = x[:, 1] / HEIGHT
        speed = 4.0 * self.U * eta * (1.0 - eta) * (1.0 + self.s * (2.0 * eta - 1.0))
        return torch.stack([speed, torch.zeros_like(speed)], dim=1)


def flow(channel: hf.MeshAndTags, mu: float, U: float, s: float) -> hf.PhysicalModel:
    """The flow with viscosity and inflow as modules; Newton starts from the last solution."""
    velocities = fem.functionspace(channel.mesh, ("Lagrange", 2, (2,)))
    g = fem.Function(velocities, name="inflow")
    problem = hf.catalogue.navier_stokes(
        channel.mesh,
        mu=mu,
        conditions=[
            hf.Dirichlet(g, channel.facets("inlet")),
            hf.Dirichlet(0.0, channel.facets("walls")),
            hf.Dirichlet(0.0, channel.facets("cylinder")),
        ],
    )
    modules = {"mu": hf.Scalar(mu, hf.Positive(scale=1e-3)), "inflow": Inflow(U, s)}
    return hf.PhysicalModel.of(problem, modules, warm_start=True)


def numbers(physical: hf.PhysicalModel) -> dict[str, float]:
    """μ, U, s."""
    inflow = physical.coefficients["inflow"]
    return {"mu": physical.coefficients["mu"].value, "U": float(inflow.U), "s": float(inflow.s)}


def reynolds(found: dict[str, float]) -> float:
    """With the mean inflow, 2U/3, and the diameter of the cylinder."""
    return 2.0 / 3.0 * found["U"] * DIAMETER / found["mu"]


def velocity(physical: hf.PhysicalModel) -> fem.Function:
    """The velocity of the last solution as a Function of its own."""
    return physical.function.sub(0).collapse()


def sensors(truth: hf.PhysicalModel) -> tuple[np.ndarray, np.ndarray, float]:
    """Places (n, 2) around the cylinder and in its wake, noisy velocities (n, 2), the noise's σ; replicated."""
    rng = np.random.default_rng(SEED)
    x = rng.uniform([0.02, 0.02], [1.2, HEIGHT - 0.02], (2 * N_SENSORS, 2))
    x = x[hf.Points(truth.V.mesh, x, missing="mark").found][:N_SENSORS]
    points = hf.Points(truth.V.mesh, x)
    clean = points.gather(points.evaluate(velocity(truth)))
    sigma = NOISE * float(np.abs(clean).max())
    return x, clean + sigma * rng.standard_normal(clean.shape), sigma


def main() -> None:
    """Make the data, fit, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mesh", type=Path, default=MESHES / "channel_with_cylinder.msh")
    parser.add_argument("--out", type=Path, default=Path("out/navier_stokes_viscosity"), help="output folder")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    fine = hf.read_mesh(MESHES / "channel_with_cylinder.geo", comm, mesh_size=0.022)
    truth = flow(fine, **TRUTH)
    with torch.no_grad():
        truth.solve()
    x, y, sigma = sensors(truth)
    say(f"{len(x)} sensors in a flow with Re = {reynolds(TRUTH):.1f}")

    channel = hf.read_mesh(args.mesh, comm)
    physical = flow(channel, **START)
    say(f"least squares from Re = {reynolds(START):.1f}")
    data = hf.Data(hf.Points(channel.mesh, x), y, sigma)
    path: list[dict[str, float]] = []

    def accepted(cost: float, solves: int) -> None:
        path.append(numbers(physical) | {"cost": cost})
        shown = ", ".join(f"{k} {v:.5g}" for k, v in numbers(physical).items())
        say(f"  solve {solves:3d}  mean square residual {cost:10.4f}   {shown}   Re {reynolds(path[-1]):.1f}")

    start = time.perf_counter()
    result = hf.least_squares(physical, data, callback=accepted)
    seconds = time.perf_counter() - start
    found = numbers(physical)
    say(f"least squares: {result.solves} solves, {result.jacobians} Jacobians, {seconds:.1f} s; {result.stop}")
    # The standard error of μ from that of its raw number, by the slope of the transform.
    mu = physical.coefficients["mu"]
    slope = float(torch.autograd.grad(mu.transform(mu.raw), mu.raw)[0])
    errors = {
        "mu": slope * result.standard_errors["mu.raw"],
        "U": result.standard_errors["inflow.U"],
        "s": result.standard_errors["inflow.s"],
    }
    say(f"\n{'':4s}{'truth':>12s}{'found':>12s}{'± 1 σ':>12s}")
    for name in TRUTH:
        say(f"{name:4s}{TRUTH[name]:12.6g}{found[name]:12.6g}{errors[name]:12.2g}")

    raster, other = hf.Raster(channel.mesh, pixels=700), hf.Raster(fine.mesh, pixels=700)
    speeds = [
        np.stack([r.image(velocity(m).sub(i).collapse()) for i in (0, 1)])
        for r, m in ((raster, physical), (other, truth))
    ]
    both = np.isfinite(speeds[0] + speeds[1]).all(axis=0)
    off = float(np.linalg.norm((speeds[0] - speeds[1])[:, both]) / np.linalg.norm(speeds[1][:, both]))
    say(f"relative L² error of the velocity: {off:.3g}")
    result.save(out, comm, {"truth": TRUTH, "found": found, "errors": errors, "relative_l2_u": off, "path": path})
    picture(out, comm, raster, speeds, x, path, found, errors)
    say(f"written to {out}/: summary.json, navier_stokes_viscosity.png")


def picture(out, comm, raster, speeds, x, path, found, errors) -> None:  # type: ignore[no-untyped-def]
    """Speed of truth and fit, their difference, and the unknowns on the way."""
    magnitude = [np.linalg.norm(s, axis=0) for s in speeds]
    difference = np.linalg.norm(speeds[0] - speeds[1], axis=0)

    def draw(figure: Any) -> None:
        grid = figure.add_gridspec(4, 3)
        top = float(np.nanmax(magnitude[1]))
        for row, (image, title, options) in enumerate(
            (
                (magnitude[1], "truth: speed (m/s), and the sensors", {"vmin": 0, "vmax": top}),
                (magnitude[0], "found: speed (m/s)", {"vmin": 0, "vmax": top}),
                (difference, "|difference| (m/s)", {"cmap": "Reds"}),
            )
        ):
            ax = figure.add_subplot(grid[row, :])
            hf.show(ax, raster, image, title, **options)
            if row == 0:
                ax.scatter(*x.T, s=9, c="white", edgecolors="black", linewidths=0.6)
        for column, (name, label) in enumerate((("mu", "μ (m²/s)"), ("U", "U (m/s)"), ("s", "s"))):
            ax = figure.add_subplot(grid[3, column])
            ax.plot([p[name] for p in path], "o-", ms=3)
            ax.axhline(TRUTH[name], color="black", ls=":", lw=1)
            ax.errorbar([len(path) - 1], [found[name]], yerr=[2 * errors[name]], capsize=4, color="tab:red")
            ax.set_title(f"{label} (dotted: truth; bar: two standard errors)", fontsize=8)
            ax.set_xlabel("Levenberg–Marquardt step", fontsize=8)

    hf.save_figure(comm, out / "navier_stokes_viscosity.png", draw, size=(12, 9))


if __name__ == "__main__":
    hf.run_script(main)
