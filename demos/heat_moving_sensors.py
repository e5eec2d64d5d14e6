"""Sixty sensors that drift through a quarter of a plate, and what they tell of the other three.

Heat spreads in the square (−3, 3)² until t = 1.  The temperature starts as a warm and a cold spot and is zero on the
boundary:

    ∂ₜu = κ Δu,    κ = 0.1 + A₁ exp(−|x − c₁|²) + A₂ exp(−|x − c₂|²), cut off at 2.5,

and A₁, A₂, c₁ and c₂ are unknown, six numbers: HYCO's third published case.  The sensors start on a grid over the
upper right quarter, [0, 3]², and are carried round its middle by a whirl, x′ = M (x − c).  One bump of κ, at (1, 1), is
where they are; the other one, at (−2, −2), none of them ever comes near.

    physics only    Gauss–Newton on the data from the published start.  While the first bump is not yet in its place,
                    the second one is bent to help, and withers: A₂ falls to zero, where c₂ has no effect any more
    HYCO            In the first round the PDE sees no data, only the network.  The network has seen them, and where
                    there are none it has been held to what the PDE said: the second bump has to stay while the first
                    one moves.  From then on the PDE sees the data as well

How strong the second bump is can hardly be seen in the data: A₂ = 1 instead of 2.5 changes them by 3e-6, less than the
error of the mesh.  Both therefore correct the data for what the mesh gets wrong, twice: by the difference between a
finer solution and their own at the κ found so far.  The size of that correction, frame by frame, is also how far they
trust a frame.

It works because there is no noise: the measurements come from a mesh that is finer still, and nothing else is added.

    mpirun -n 2 python3 -m mpi4py demos/heat_moving_sensors.py [--corrections N] [--seed N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from scipy.linalg import expm

import hyco_fem as hf

TRUTH = ([3.0, 2.5], [[1.0, 1.0], [-2.0, -2.0]])
START = ([1.0, 1.0], [[1.4, -1.3], [-1.8, -1.1]])
WHIRL = np.array([[-0.1, -1.0], [1.0, -0.1]])
BOUNDS = {"kappa.amplitudes": (0.0, 10.0), "kappa.centres": (-3.0, 3.0)}
ANSWER = hf.GaussNewton(steps=20, tolerance=1e-4, bounds=BOUNDS)
SIGMA = 0.01  # how well a network of this size can know u


def plate(comm: MPI.Comm, theta: Any, cells: int, steps: int, shown: np.ndarray, other: bool = False) -> Any:
    """The PDE on a grid, solved by Crank–Nicolson; `shown`: output times; other: the other diagonal in the cells."""
    diagonal = mesh.DiagonalType.left if other else mesh.DiagonalType.right
    square = mesh.create_rectangle(comm, [[-3.0, -3.0], [3.0, 3.0]], [cells, cells], diagonal=diagonal)
    kappa = fem.Function(fem.functionspace(square, ("Lagrange", 2)), name="kappa")
    kappa.x.array[:] = 1.0
    x = ufl.SpatialCoordinate(square)
    warm, cold = (ufl.exp(-((x[0] - a) ** 2) - (x[1] - a) ** 2) for a in (1.0, -1.0))
    problem = hf.catalogue.heat_nondivergence(square, degree=2, kappa=kappa, initial=warm - cold)
    # The form divides by κ: it is kept away from zero, too.
    bumps = hf.GaussianBumps(*theta, background=0.1, transform=lambda k: k.clamp(0.01, 2.5))
    return hf.TransientModel.of(problem, {"kappa": bumps}, interval=(0.0, 1.0), dt=1.0 / steps, times=shown)


def drift(times: np.ndarray, seed: int) -> np.ndarray:
    """Where 60 of 100 sensors are, (60, times, 2)."""
    line = np.linspace(0.0, 3.0, 10)
    start = np.array([(a, b) for a in line for b in line])
    start = start[np.sort(np.random.default_rng(seed).choice(100, 60, replace=False))]
    return np.stack([1.5 + (start - 1.5) @ expm(WHIRL * t).T for t in times], axis=1)


def theta_of(model: hf.TransientModel) -> tuple[np.ndarray, np.ndarray]:
    """A and c, the bump further up first."""
    A, c = (p.detach().numpy().copy() for p in model.parameters())
    order = np.argsort(-c.sum(axis=1))
    return A[order], c[order]


class Sensors:
    """What was measured, sharpened with the help of a finer mesh."""

    def __init__(self, paths: np.ndarray, times: np.ndarray, truth: hf.TransientModel, fine: hf.TransientModel) -> None:
        self.paths, self.times, self.fine = paths, times, fine
        self.values = self.seen_by(truth)

    def on(self, model: hf.TransientModel, every: int = 1) -> hf.SpaceTimePoints:
        """On a model's mesh; a sensor that is outside the plate for a while measures nothing then."""
        return hf.SpaceTimePoints.moving(model.V.mesh, self.paths[:, ::every], self.times[::every], missing="mark")

    def seen_by(self, model: hf.TransientModel) -> np.ndarray:
        """What they would measure in a model, (60, times); NaN outside."""
        points = self.on(model)
        with torch.no_grad():
            return points.gather(model(points)).reshape(len(self.paths), -1)

    def few(self, model: hf.TransientModel) -> hf.Data:
        """Every third frame, for the network."""
        return hf.Data(self.on(model, 3), np.nan_to_num(self.values[:, ::3]).ravel(), SIGMA)

    def sharp(self, model: hf.TransientModel, corrected: bool) -> hf.Data:
        """All frames.  Once corrected, a frame is trusted to a tenth of its correction."""
        for ours, theirs in zip(self.fine.parameters(), model.parameters(), strict=True):
            ours.data.copy_(theirs.data)
        error = self.seen_by(self.fine) - self.seen_by(model)
        sigma = np.sqrt(np.nanmean(error**2, axis=0)) * (0.1 if corrected else 1.0)
        values = np.nan_to_num(self.values - (error if corrected else 0.0))
        return hf.Data(self.on(model), values.ravel(), np.tile(np.maximum(sigma, 1e-7), len(values)))


def main() -> None:
    """Measure, fit twice, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=24, help="along a side, for the inversion (24)")
    parser.add_argument("--steps", type=int, default=99, help="of the inversion in time, a frame at the end of each")
    parser.add_argument("--corrections", type=int, default=2, help="of the data for the error of the mesh (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the sensors drawn and the network")
    parser.add_argument("--out", type=Path, default=Path("out/heat_moving_sensors"), help="output folder")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)
    if args.cells < 4 or args.steps < 3 or min(args.corrections, args.seed) < 0:
        raise ValueError(
            "this needs --cells of 4 or more, --steps of 3 or more, and --corrections and --seed that are not negative"
        )

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    times = np.linspace(0.0, 1.0, args.steps + 1)
    shown = times[::3]
    truth = plate(comm, TRUTH, 10 * args.cells // 3, 3 * args.steps, shown, other=True)
    fine = plate(comm, START, 2 * args.cells, 2 * args.steps, shown)
    sensors = Sensors(drift(times, args.seed), times, truth, fine)
    say(f"60 sensors, {len(times)} frames, {100 * np.isnan(sensors.values).mean():.0f} % of them outside the plate")
    rng = np.random.default_rng(1)
    z = np.column_stack([rng.uniform(-3.0, 3.0, (4000, 2)), rng.random(4000)])

    def at_z(model: hf.TransientModel) -> np.ndarray:
        points = hf.SpaceTimePoints.of_rows(model.V.mesh, z)
        with torch.no_grad():
            return points.gather(model(points))

    true = at_z(truth)
    rows: dict[str, dict[str, Any]] = {}

    def compare(name: str, model: hf.TransientModel, seconds: float) -> None:
        (A, c), (A0, c0) = theta_of(model), (np.array(part) for part in TRUTH)
        theta = np.linalg.norm(A - A0) / np.linalg.norm(A0) + np.linalg.norm(c - c0) / np.linalg.norm(c0)
        u = np.linalg.norm(at_z(model) - true) / np.linalg.norm(true)
        rows[name] = {"u": float(u), "theta": float(theta), "amplitudes": A, "centres": c, "seconds": seconds}
        where = "  ".join(f"{a:5.2f} at ({x[0]:5.2f}, {x[1]:5.2f})" for a, x in zip(A, c, strict=True))
        say(f"{name:24s}  u {u:7.4f}   θ {theta:6.3f}   bumps {where}   {seconds:5.1f} s")

    say("relative errors of u, L² in space-time, and of θ, amplitudes plus centres")
    alone = plate(comm, START, args.cells, args.steps, shown)
    compare("start", alone, 0.0)
    start = time.perf_counter()
    for k in range(1 + args.corrections):
        hf.PhysicsOnly(alone, sensors.sharp(alone, k > 0), ANSWER).run(1)
    compare("physics only", alone, time.perf_counter() - start)

    physical = plate(comm, START, args.cells, args.steps, shown)
    net = hf.InputScaling(hf.MLP(3, 1, width=24, depth=2, seed=args.seed), [[-3.0, -3.0, 0.0], [3.0, 3.0, 1.0]])
    ghosts = hf.RandomGhosts(1000, seed=args.seed, fixed=True)
    few = sensors.few(physical)
    start = time.perf_counter()

    def play(seen: hf.Data | None, tau: float, steps: int) -> hf.Result:
        """One round; the network believes the PDE up to τ."""
        return hf.Hyco(
            physical,
            net,
            hf.Sensing(seen, few),
            ghosts,
            weights=hf.Weights(a1=0.0 if seen is None else 1.0, b2=1.0 / tau**2, decay=1e-4),
            answers=hf.Answers(ANSWER, hf.GaussNewton(steps=steps, tolerance=1e-2, damping=0.03)),
        ).run(1)

    play(None, 3 * SIGMA, 40)
    compare("HYCO, after one round", physical, time.perf_counter() - start)
    for k in range(1 + args.corrections):
        result = play(sensors.sharp(physical, k > 0), SIGMA, 15)
    compare("HYCO", physical, time.perf_counter() - start)
    with torch.no_grad():
        rows["HYCO"]["u_synthetic"] = relative(net(torch.from_numpy(z)).numpy().ravel(), true)
    say(f"HYCO's synthetic model    u {rows['HYCO']['u_synthetic']:7.4f}")
    result.save(out, comm, {"demo": "heat_moving_sensors", "seed": args.seed, "table": rows})
    pictures(out, comm, sensors, shown, {"truth": truth, "physics only": alone, "HYCO": physical})
    say(f"written to {out}/: summary.json, history.csv, heat_moving_sensors.png and .gif")


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """|found − true| / |true|."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def images_of(model: hf.TransientModel, pixels: int) -> tuple[hf.Raster, np.ndarray, np.ndarray]:
    """The raster, u at the output times, and κ."""
    raster = hf.Raster(model.V.mesh, pixels)
    u = fem.Function(model.V)
    with torch.no_grad():
        states = model.solve().numpy()
    frames = []
    for state in states:
        u.x.array[: len(state)] = state
        u.x.scatter_forward()
        frames.append(raster.image(u))
    return raster, np.array(frames), raster.image(model.coefficients["kappa"])


def pictures(
    out: Path, comm: MPI.Comm, sensors: Sensors, shown: np.ndarray, models: dict[str, hf.TransientModel]
) -> None:
    """κ and u at the end, of the truth and both fits, and what is wrong with u; the same in motion, with sensors."""
    made = {name: images_of(model, 120) for name, model in models.items()}
    raster = made["truth"][0]
    inside = np.isfinite(sensors.values)
    marks = [sensors.paths[inside[:, k], k] for k in range(0, len(sensors.times), 3)]
    size = max(float(np.abs(u[-1]).max()) for _, u, _ in made.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 3)
        for column, (name, (_, u, kappa)) in zip(axes.T, made.items(), strict=True):
            hf.show(column[0], raster, kappa, f"κ, {name}", vmin=0.0, vmax=2.5)
            hf.show(column[1], raster, u[-1], f"u at t = 1, {name}", cmap="RdBu_r", vmin=-size, vmax=size)
        for path in sensors.paths:
            axes[0, 0].plot(*path.T, color="white", lw=0.6)
        axes[0, 0].scatter(*sensors.paths[:, 0].T, s=5, c="white", linewidths=0)
        axes[0, 0].set(xlim=(-3, 3), ylim=(-3, 3))

    hf.save_figure(comm, out / "heat_moving_sensors.png", draw, size=(12, 7.2))
    hf.animate_images(
        comm,
        out / "heat_moving_sensors.gif",
        raster,
        {name: u for name, (_, u, _) in made.items()},
        shown,
        sensors=marks,
        limits=dict.fromkeys(made, (-0.5, 0.5)),
        cmap="RdBu_r",
        size=(12, 4),
    )


if __name__ == "__main__":
    hf.run_script(main)
