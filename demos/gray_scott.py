"""Two diffusivities found from scattered glimpses of a pattern that grows, spreads and splits.

Gray–Scott: a substance v feeds on u, which is supplied everywhere,

    ∂ₜu = D_u Δu − u v² + f (1 − u),    ∂ₜv = D_v Δv + u v² − (f + k) v,    f = 0.018, k = 0.051,

on the square (−50, 50)², periodic.  At the start u = 1 and v = 0, but for a disc of radius 10 in the middle with
u = v = 0.5, whose rim is blurred over two units.  D_u = 0.20 and D_v = 0.08 are unknown; the first guess is half.

The start is even about both axes and about the diagonals, and so is the solution at all times.  This is known
beforehand, and used three times: the PDE is solved on an eighth of the square, 0 < y < x < 50, with no flux through its
sides; sensors are folded onto that eighth; and the network is one of max(|x|, |y|), min(|x|, |y|) and t.

Both models are compared at ghost points in space and time.  As published, only the network sees the data: the solver
learns D_u and D_v from the network alone (a₁ = 0), which in turn listens to the solver.  First, over a short horizon,
the solver answers a network that was fitted to the data alone; there a poor guess of D cannot do much harm.  Then the
game is played over the whole time.  Data come from smaller cells and steps than those of the inversion, which bound
what can be found: fitted to all data directly, with 32 cells, the solver is off by 0.2 % in D_u and by 2 % in D_v.

    mpirun -n 2 python3 -m mpi4py demos/gray_scott.py [--cells N] [--end T] [--rounds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import torch
import ufl
from dolfinx import mesh

import hyco_fem as hf

HALF, RADIUS, RIM = 50.0, 10.0, 1.0
TRUE, GUESS = (0.20, 0.08), (0.10, 0.05)
FRAME, SENSORS, GHOSTS = 20.0, 150, 4000


def fold(x: np.ndarray) -> np.ndarray:
    """Onto the eighth 0 ≤ y ≤ x, by the symmetries of the start."""
    return np.sort(np.abs(x), axis=1)[:, ::-1]


class Even(torch.nn.Module):
    """A network of (x, y, t) with the symmetries of the start, and outputs of the size of (u, v)."""

    def __init__(self, network: torch.nn.Module, end: float) -> None:
        super().__init__()
        self.network = hf.InputScaling(network, [[0.0, 0.0, 0.0], [HALF, HALF, end]])
        self.register_buffer("middle", torch.tensor([0.7, 0.1], dtype=torch.float64))
        self.register_buffer("size", torch.tensor([0.25, 0.12], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3) → (n, 2)."""
        place = x[:, :2].abs()
        folded = torch.stack([place.amax(1), place.amin(1), x[:, 2]], dim=1)
        return self.middle + self.size * self.network(folded)


def network(end: float, width: int, seed: int = 0) -> Even:
    """Random Fourier features, then three hidden layers."""
    mlp = hf.MLP(2 * width, 2, width=width, depth=3, activation="tanh", seed=seed)
    return Even(hf.FourierFeatures(3, mlp, features=width, scale=0.5, seed=seed), end)


def eighth(comm: MPI.Comm, cells: int) -> mesh.Mesh:
    """The triangle 0 < y < x < 50, as half of cells × cells squares, each cut in two, with alternating diagonals."""
    n = cells + 1
    nodes = HALF / cells * np.array([(i, j) for i in range(n) for j in range(n)], dtype=np.float64)
    triangles = []
    for i in range(cells):
        for j in range(i + 1):
            a, b, c, d = i * n + j, (i + 1) * n + j, (i + 1) * n + j + 1, i * n + j + 1
            both = [(a, b, c), (a, c, d)] if (i + j) % 2 == 0 else [(a, b, d), (b, c, d)]
            triangles += both[: 1 if i == j else 2]  # squares on the diagonal are cut along it
    used, numbers = np.unique(np.array(triangles, dtype=np.int64), return_inverse=True)
    numbers = numbers.reshape(-1, 3)
    here = comm.rank == 0
    shape = basix.ufl.element("Lagrange", "triangle", 1, shape=(2,))
    return mesh.create_mesh(
        comm, cells=numbers[slice(None) if here else slice(0)], x=nodes[used if here else []], e=shape
    )


def graded(end: float, step: float) -> list[float]:
    """Steps: short ones while the pattern ignites, `step` from t = 40 on."""
    steps: list[float] = []
    start = 0.0
    for until, length in ((1.0, step / 32), (5.0, step / 16), (40.0, step / 4), (end, step)):
        until = min(until, end)
        steps += [length] * round((until - start) / length)
        start = until
    return steps


def blurred(domain: mesh.Mesh) -> Any:
    """(u, v) at the start."""
    x = ufl.SpatialCoordinate(domain)
    inside = 0.5 * (1.0 - ufl.tanh((ufl.sqrt(ufl.dot(x, x) + 1e-12) - RADIUS) / RIM))
    return ufl.as_vector([1.0 - 0.5 * inside, 0.5 * inside])


def diffusivities(Du: float, Dv: float) -> dict[str, hf.Scalar]:
    """Two positive numbers."""
    return {"Du": hf.Scalar(Du, hf.Positive(scale=0.1)), "Dv": hf.Scalar(Dv, hf.Positive(scale=0.1))}


def values(modules: dict[str, hf.Scalar]) -> tuple[float, float]:
    """(D_u, D_v)."""
    return modules["Du"].value, modules["Dv"].value


def reactor(
    comm: MPI.Comm,
    modules: dict[str, hf.Scalar],
    end: float,
    *,
    cells: int,
    degree: int = 2,
    step: float = 1.0,
    start: Any = blurred,
    **options: Any,
) -> hf.TransientModel:
    """The PDE on Lagrange elements; diffusion implicit, reaction explicit: all steps of one length share one matrix."""
    domain = eighth(comm, cells)
    problem = hf.catalogue.gray_scott(domain, degree=degree, F=0.018, k=0.051, initial=start(domain))
    assert problem.explicit is not None
    # For P2, six points in a cell serve the reaction; the exact sixteen take most of the time of a step.
    E = [
        part.reconstruct(metadata={**part.metadata(), "quadrature_degree": 2 * degree})
        for part in problem.explicit.integrals()
    ]
    return hf.TransientModel.of(
        problem,
        dict(modules),
        interval=(0.0, end),
        dt=graded(end, step),
        scheme=hf.BDF3(),
        explicit=ufl.Form(E),
        **options,
    )


@dataclass(frozen=True)
class FrameGhosts:
    """`n` ghost points, fresh in every round, uniform in space and over frames `every` time units apart.

    Frame 0, the start, is left out: it is known.
    """

    n: int
    every: float
    seed: int = 0

    def on(self, where: hf.SpaceTime) -> BoundGhosts:
        """For a model in time."""
        return BoundGhosts(self, where)


@dataclass(frozen=True)
class BoundGhosts:
    """`FrameGhosts` of a model."""

    spec: FrameGhosts
    where: hf.SpaceTime

    def draw(self, round: int = 0) -> hf.SpaceTimePoints:
        """Those of a round.  Collective."""
        spec, rng = self.spec, np.random.default_rng((self.spec.seed, round))
        frames = rng.integers(1, round_down(self.where.grid.end, spec.every) + 1, spec.n)
        x = fold(rng.uniform(-HALF, HALF, (spec.n, 2)))
        return hf.SpaceTimePoints(self.where.mesh, x, spec.every * frames)


def round_down(end: float, every: float) -> int:
    """Number of the last frame."""
    return int(end / every + 1e-9)


def short_fit(physical: hf.TransientModel, net: torch.nn.Module, every: float, n: int, steps: int = 6) -> hf.Result:
    """The solver's answer to a network, over the model's horizon: no data, no interaction back."""
    ghosts = FrameGhosts(n, every, seed=99).on(physical.domain).draw()
    with torch.no_grad():
        seen = ghosts.gather(net(ghosts.x))
    answer = hf.GaussNewton(steps=steps, tolerance=1e-3)
    return hf.PhysicsOnly(physical, hf.Data(ghosts, seen), answer).run(1)


def measure(comm: MPI.Comm, end: float, cells: int) -> tuple[hf.TransientModel, np.ndarray, np.ndarray, np.ndarray]:
    """The true model on smaller cells and steps; places on the whole square (n, 2), times (n,) and values (n, 2)."""
    truth = reactor(comm, diffusivities(*TRUE), end, cells=3 * cells // 2, step=0.5, times=frames(end))
    rng, last = np.random.default_rng(3), round_down(end, FRAME)
    x, t = rng.uniform(-HALF, HALF, (SENSORS * last, 2)), FRAME * rng.integers(1, last + 1, SENSORS * last)
    points = hf.SpaceTimePoints(truth.V.mesh, fold(x), t)
    with torch.no_grad():
        return truth, x, t, points.gather(truth(points))


def frames(end: float) -> list[float]:
    """Their times, the start included."""
    return [FRAME * k for k in range(round_down(end, FRAME) + 1)]


class Pictures:
    """v on a raster of the whole square, from the eighth."""

    def __init__(self, pixels: int = 120) -> None:
        line = (np.arange(pixels) + 0.5) * (2 * HALF / pixels) - HALF
        self.x = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
        self.pixels = pixels

    def of(self, model: hf.TransientModel | torch.nn.Module, domain: mesh.Mesh, times: Sequence[float]) -> np.ndarray:
        """(n_times, pixels, pixels); replicated.  Collective."""
        sets = [hf.SpaceTimePoints(domain, fold(self.x), t) for t in times]
        with torch.no_grad():
            found = model.observe(sets) if isinstance(model, hf.TransientModel) else [model(s.x) for s in sets]
        return np.stack([s.gather(f)[:, 1].reshape(self.pixels, -1) for s, f in zip(sets, found, strict=True)])


def main() -> None:
    """Measure, play, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=32, help="squares along 50 units, for the inversion (32)")
    parser.add_argument("--end", type=float, default=400.0, help="time at the end, a multiple of 20, above 40 (400)")
    parser.add_argument("--steps", type=int, default=1500, help="of Adam, for the network before the game (1500)")
    parser.add_argument("--rounds", type=int, default=3, help="of the game (3)")
    parser.add_argument("--out", type=Path, default=Path("out/gray_scott"), help="output folder")
    args = parser.parse_args()
    if args.cells < 2 or args.end <= 40.0 or args.end % FRAME:
        raise ValueError("--cells must be at least 2, and --end a multiple of 20 above 40")
    if args.steps < 1 or args.rounds < 1:
        raise ValueError("--steps and --rounds must be at least 1")
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)
    begun = time.perf_counter()

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    def told(name: str) -> dict[str, float]:
        Du, Dv = values(modules)
        off = [100.0 * (found / true - 1.0) for found, true in zip((Du, Dv), TRUE, strict=True)]
        seconds = time.perf_counter() - begun
        say(f"{name:24s} D_u {Du:.5f} ({off[0]:+.2f} %)  D_v {Dv:.5f} ({off[1]:+.2f} %)  {seconds:6.0f} s")
        return {"Du": Du, "Dv": Dv}

    truth, x, t, y = measure(comm, args.end, args.cells)
    say(f"{len(x)} glimpses in {round_down(args.end, FRAME)} frames, {time.perf_counter() - begun:.0f} s")

    modules, horizon = diffusivities(*GUESS), min(args.end, 120.0)
    table = {"first guess": told("first guess")}
    short = reactor(comm, modules, horizon, cells=args.cells)
    whole = reactor(comm, modules, args.end, cells=args.cells)
    net = network(args.end, 48)
    data = hf.Data(hf.SpaceTimePoints(whole.V.mesh, fold(x), t), y)
    decreasing = lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)  # noqa: E731
    # Ten answers, so that the rate falls between them.
    hf.NetworkOnly(net, data, hf.AdamStep(3e-3, steps=max(1, args.steps // 10), schedule=decreasing)).run(10)
    say(f"network fitted to the data alone, {time.perf_counter() - begun:.0f} s")
    pictures, shown = Pictures(), frames(args.end)[1:]
    real = pictures.of(truth, truth.V.mesh, shown)
    images = {"truth": real, "network alone": pictures.of(net, whole.V.mesh, shown)}

    short_fit(short, net, FRAME, GHOSTS)
    table[f"answer to it, t < {horizon:g}"] = told(f"answer to it, t < {horizon:g}")
    answers = hf.Answers(
        hf.GaussNewton(steps=1), hf.AdamStep(1e-3, steps=max(1, args.steps // 10), schedule=decreasing)
    )
    game = hf.Hyco(whole, net, data, FrameGhosts(GHOSTS, FRAME), weights=hf.Weights(a1=0.0), answers=answers)

    def after(record: hf.Record) -> None:
        path.append(told(f"HYCO, round {record.round}"))

    path = list(table.values())
    result = game.run(args.rounds, callbacks=[after])
    table["HYCO"] = path[-1]

    images["HYCO: solver"] = pictures.of(whole, whole.V.mesh, shown)
    images["HYCO: network"] = pictures.of(net, whole.V.mesh, shown)
    errors = {
        name: float(np.linalg.norm(v - real) / np.linalg.norm(real)) for name, v in images.items() if name != "truth"
    }
    say("\nrelative L² error of v over all frames")
    for name, error in errors.items():
        say(f"  {name:16s}{error:8.4f}")
    result.save(out, comm, {"diffusivities": table, "errors": errors})
    raster = hf.Raster(square(comm), pictures.pixels)
    here = [x[t == when] for when in shown]
    scale = dict.fromkeys(images, (0.0, 0.5))
    hf.animate_images(comm, out / "gray_scott.gif", raster, images, shown, sensors=here, limits=scale, fps=4.0)
    draw(out, comm, raster, images, shown, here, path)
    say(f"written to {out}/: summary.json, history.csv, gray_scott.gif, gray_scott.png")


def square(comm: MPI.Comm) -> mesh.Mesh:
    """The whole square, for pictures."""
    return mesh.create_rectangle(comm, [[-HALF, -HALF], [HALF, HALF]], [8, 8])


def draw(
    out: Path, comm: MPI.Comm, raster: hf.Raster, images: Any, shown: Any, here: Any, path: list[dict[str, float]]
) -> None:
    """Three frames of everything, and D_u, D_v: guess, answer over the short horizon, rounds."""
    chosen = [len(shown) // 4, len(shown) // 2, len(shown) - 1]

    def paint(figure: Any) -> None:
        axs = figure.subplots(3, len(images) + 1)
        for row, k in zip(axs, chosen, strict=True):
            for ax, (name, stack) in zip(row, images.items(), strict=False):
                hf.show(ax, raster, stack[k], f"v, {name}, t = {shown[k]:g}", vmin=0.0, vmax=0.5)
            row[0].scatter(*here[k].T, s=5, c="white", edgecolors="black", linewidths=0.4)
        for ax, name, true in zip(axs[:2, -1], ("Du", "Dv"), TRUE, strict=True):
            ax.plot([D[name] for D in path], "o-", ms=4)
            ax.axhline(true, color="black", lw=0.8)
            ax.set_title(f"{name}: guess, short answer, rounds", fontsize=9)
        axs[2, -1].axis("off")

    hf.save_figure(comm, out / "gray_scott.png", paint, size=(3.3 * (len(images) + 1), 8.6))


if __name__ == "__main__":
    hf.run_script(main)
