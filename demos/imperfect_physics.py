"""Where the physics is wrong: a source that the model does not know, and a network that learns what the PDE misses.

The model, HYCO's first published case, on (−π, π)²:

    −∇·(κ∇u) + η u = f,    u = 0 on the boundary,
    κ = A exp(−|x − a|²) + 1,    η = (B exp(−|x − b|²) + 1)²,    six unknown numbers,

with f known.  The truth has one more source, s = 1.25 exp(−|x − (−1.5, 1)|²), that nobody told the model of.  50
sensors measure u with 2 % noise.  Three fits of the same data:

    physics only    the best of 48 starts, by Gauss–Newton.  The six numbers bend to explain the source, and cannot
    network only    a small tanh network, its weight decay chosen by five-fold cross-validation
    HYCO            both together.  The weights come from the data: the residuals that the fitted PDE leaves at sensors
                    that it has not seen tell how wrong the physics is, τ; the network is then held to the PDE with
                    weight 1/(2τ)² at 150 ghost points, and on the boundary, where the PDE is right, more strongly

HYCO's synthetic model is then what the PDE says, corrected where the sensors contradict it.  Its correction
u_syn − u_phy shows where the physics is wrong.  A χ² test tells from the data alone that it is.

A fair word: the solution is smooth, and a network that has the boundary values built in does about as well here without
any PDE (`--hard`; benchmarks/compare.py --case imperfect has the numbers over 20 seeds, and a case with fine structure,
where it does not).

    mpirun -n 1 python3 -m mpi4py demos/imperfect_physics.py [--seed N] [--hard] [--right] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf

PI = math.pi
SOURCE, PLACE = 1.25, (-1.5, 1.0)
BOUNDS = {
    "kappa.amplitudes": (0.0, 10.0),
    "eta.amplitudes": (0.0, 10.0),
    "kappa.centres": (-PI, PI),
    "eta.centres": (-PI, PI),
}
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def bump(x: Any, c: tuple[float, float]) -> Any:
    """exp(−|x − c|²), as UFL."""
    return ufl.exp(-((x[0] - c[0]) ** 2) - (x[1] - c[1]) ** 2)


def model(comm: MPI.Comm, cells: int, start: np.ndarray, unmodelled: float = 0.0) -> hf.PhysicalModel:
    """The PDE with θ = (A, a, B, b) at `start`; at the true θ, without the source, u = sin x sin y."""
    square = mesh.create_rectangle(comm, [[-PI, -PI], [PI, PI]], [cells, cells])
    V = fem.functionspace(square, ("Lagrange", 2))
    kappa, eta = (fem.Function(V, name=name) for name in ("kappa", "eta"))
    x = ufl.SpatialCoordinate(square)
    u = ufl.sin(x[0]) * ufl.sin(x[1])
    f = -ufl.div((4.0 * bump(x, (-1.0, -1.0)) + 1.0) * ufl.grad(u)) + (bump(x, (2.0, 1.0)) + 1.0) ** 2 * u
    f += unmodelled * bump(x, PLACE)
    problem = hf.catalogue.reaction_diffusion(square, degree=2, kappa=kappa, eta=eta, f=f, conditions=hf.Dirichlet(0.0))
    A, a, B, b = start[0], start[1:3], start[3], start[4:6]
    modules = {
        "kappa": hf.GaussianBumps([A], [a], background=1.0),
        "eta": hf.GaussianBumps([B], [b], background=1.0, transform=torch.square),
    }
    return hf.PhysicalModel.of(problem, modules)


def main() -> None:
    """Measure, fit three times, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of sensors, noise, start and network")
    parser.add_argument("--cells", type=int, default=16, help="of the inversion's grid, along a side")
    parser.add_argument("--starts", type=int, default=48)
    parser.add_argument("--hard", action="store_true", help="build the boundary values into the network")
    parser.add_argument("--right", action="store_true", help="a truth without the unmodelled source")
    parser.add_argument("--out", type=Path, default=Path("out/imperfect_physics"))
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    def say(text: str) -> None:
        if comm.rank == 0:
            print(text, flush=True)

    # The truth, on a finer grid, and what the sensors measure of it.
    theta = np.array([4.0, -1.0, -1.0, 1.0, 2.0, 1.0])
    truth = model(comm, 3 * args.cells, theta, 0.0 if args.right else SOURCE)
    with torch.no_grad():
        truth.solve()
    rng = np.random.default_rng(args.seed)
    x = rng.uniform(-PI, PI, (50, 2))
    at_sensors = hf.Points(truth.V.mesh, x)
    sigma = 0.02
    values = at_sensors.gather(at_sensors.evaluate(truth.function)) + sigma * rng.standard_normal(50)

    # Physics only: many starts on a coarse grid, the best three on the grid itself.
    start = np.concatenate([rng.uniform(0.5, 5, 1), rng.uniform(-PI, PI, 2)] * 2)
    physical = model(comm, args.cells, start)
    square = physical.V.mesh
    data = hf.Data(hf.Points(square, x), values, sigma)
    answer = hf.GaussNewton(steps=40, tolerance=1e-6, bounds=BOUNDS)
    search = hf.MultiStart(
        BOUNDS | {"kappa.amplitudes": (0.5, 5.0), "eta.amplitudes": (0.5, 5.0)},
        args.starts,
        3,
        [lambda some: model(some, args.cells // 2, start)],
        search=hf.GaussNewton(steps=15, tolerance=1e-3, bounds=BOUNDS),
        answer=answer,
        seed=args.seed,
    )
    alone = hf.PhysicsOnly(physical, data, search)
    alone.run(1)
    points = hf.quadrature_points(square, 4)
    reference = hf.as_function(physical.V, lambda y: at(truth, y), "u_true")
    errors = {"physics only": hf.relative_l2(physical.function, reference, points)}
    u_physics = hf.as_function(physical.V, physical.solve().detach(), "u_physics_only")
    report = hf.trust_report(alone)
    say(f"physics only: misfit {alone.look(1).misfit_physical:.3g} (1 is the noise)")
    say(str(report.from_data))

    # Network only.
    def network() -> torch.nn.Module:
        box = hf.bounding_box(square)
        net = hf.InputScaling(hf.MLP(2, 1, width=24, depth=2, seed=args.seed), box)
        return hf.HardBoundary(net, hf.box_distance(box)) if args.hard else net

    net_alone = network()
    step = hf.GaussNewton(steps=40, tolerance=1e-4, damping=0.03)
    choice = hf.choose_decay(net_alone, data, DECAYS, step)
    for decay in DECAYS[: DECAYS.index(choice.weights.decay) + 1]:
        hf.NetworkOnly(net_alone, data, step, decay=decay).run(1)
    errors["network only"] = hf.relative_l2(net_alone, reference, points)

    # HYCO.
    net = network()
    ghosts: Any = hf.RandomGhosts(150, fixed=True)
    if not args.hard:
        ghosts = hf.GhostUnion([ghosts, hf.BoundaryGhosts(60, fixed=True)], [1.0, 30.0])
    network_answer = hf.GaussNewton(steps=60, tolerance=1e-5, damping=0.03, anneal=(10.0, 3.0))
    game = hf.Hyco(
        physical,
        net,
        data,
        ghosts,
        weights=hf.ModelDiscrepancy(hf.Weights(decay=0.1)),
        answers=hf.Answers(answer, network_answer),
    )
    result = game.run(3, stopping=hf.Stopping(stagnation=1e-3, window=1))
    errors["HYCO, physical model"] = hf.relative_l2(physical.function, reference, points)
    errors["HYCO, synthetic model"] = hf.relative_l2(net, reference, points)
    say("")
    say(str(result.choice))
    say(f"the game ended after {result.rounds} rounds: {result.stop}")
    say("")
    say("relative L² error of u")
    for name, error in errors.items():
        say(f"  {name:24s} {error:.4f}")
    result.save(out, comm, {"demo": "imperfect_physics", "seed": args.seed, "errors": errors})
    picture(out, comm, x, reference, u_physics, net_alone, physical, net, args.right)
    say(f"picture, summary and history in {out}/")


def at(truth: hf.PhysicalModel, y: torch.Tensor) -> torch.Tensor:
    """The true solution at points that each rank asks for: those of all ranks are looked up together."""
    comm = truth.comm
    asked = comm.allgather(y.numpy())
    points = hf.Points(truth.V.mesh, np.concatenate(asked))
    found = points.gather(points.evaluate(truth.function))
    first = sum(len(a) for a in asked[: comm.rank])
    return torch.from_numpy(found[first : first + len(y)])


def picture(
    out: Path,
    comm: MPI.Comm,
    x: np.ndarray,
    reference: fem.Function,
    u_physics: fem.Function,
    net_alone: torch.nn.Module,
    physical: hf.PhysicalModel,
    net: torch.nn.Module,
    right: bool,
) -> None:
    """The truth and what each fit misses of it; HYCO's correction, and the correction that would be right."""
    raster = hf.Raster(physical.V.mesh, pixels=220)
    true, phy, alone, phy_hyco, syn = (
        raster.image(f) for f in (reference, u_physics, net_alone, physical.function, net)
    )

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 3)
        hf.show(axes[0, 0], raster, true, "truth u, and the sensors")
        axes[0, 0].scatter(*x.T, s=9, c="white", edgecolors="black", linewidths=0.6)
        errors = (
            (axes[0, 1], phy - true, "physics only − truth"),
            (axes[0, 2], alone - true, "network only − truth"),
            (axes[1, 0], syn - true, "HYCO's synthetic model − truth"),
            (axes[1, 1], syn - phy_hyco, "HYCO's correction, $u_{syn} − u_{phy}$"),
            (axes[1, 2], true - phy_hyco, "what the correction should be"),
        )
        for ax, values, title in errors:
            hf.show(ax, raster, values, title, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
        if not right:
            for ax in (axes[1, 1], axes[1, 2]):
                ax.add_patch(_circle(PLACE))

    hf.save_figure(comm, out / "imperfect_physics.png", draw, size=(13, 7.5))


def _circle(centre: tuple[float, float]) -> Any:
    from matplotlib.patches import Circle

    return Circle(centre, 1.0, fill=False, ls=":", lw=1.2, color="black")


if __name__ == "__main__":
    hf.run_script(main)
