"""A soft inclusion in a loaded block, found from measured displacements, in 2D and 3D.

A block of 2 m × 1 m (× 1 m) is clamped on the left and pulled down on the right:

    −∇·σ = 0,   σ = λ tr(ε) I + 2μ ε,   u = 0 on the left,   σ n = t on the right,   σ n = 0 elsewhere,

with Poisson's ratio 0.3 and t = 1 MPa downwards.  Young's modulus, in GPa, is a background with an inclusion,

    E(x) = E₀ + A exp(−|x − c|² / w²),    unknown: E₀, A, c, w.

Sensors measure the displacement (all components) with 0.5 % noise.  The measurements come from a finer mesh than the
one that is used for the inversion.  Two ways to the answer, on the same data from the same start:

    least squares    Levenberg–Marquardt on the PDE alone: the Jacobian by all parameters costs one block of tangent
                     solves on the factors of the forward solve, and gives error bars
    HYCO             the PDE and a network with one output for each component, pulled towards each other

    mpirun -n 2 python3 -m mpi4py demos/elasticity_inclusion.py [--dim 3] [--rounds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem, mesh

import hyco_fem as hf

TRUTH = {"background": 2.0, "amplitude": -1.4, "centre": (1.1, 0.6, 0.5), "width": 0.3}
START = {"background": 1.5, "amplitude": -0.3, "centre": (0.9, 0.45, 0.45), "width": 0.4}
TRACTION, NOISE, SEED = 0.001, 0.005, 7
SENSORS = {2: 30, 3: 60}
CELLS = {2: 24, 3: 10}  # along the length, for the inversion; the data come from 1.5 times as many


def bump(parameters: dict[str, Any], dim: int) -> hf.GaussianBumps:
    """E as a module, everything in it unknown."""
    return hf.GaussianBumps(
        [parameters["amplitude"]],
        [parameters["centre"][:dim]],
        [parameters["width"]],
        background=parameters["background"],
        trainable=("background", "amplitudes", "centres", "widths"),
    )


def block(comm: MPI.Comm, dim: int, cells: int, parameters: dict[str, Any]) -> hf.PhysicalModel:
    """The PDE on P2 elements with Young's modulus at the given parameters."""
    corners = [[0.0] * dim, [2.0, *[1.0] * (dim - 1)]]
    n = [cells, *[cells // 2] * (dim - 1)]
    domain = mesh.create_rectangle(comm, corners, n) if dim == 2 else mesh.create_box(comm, corners, n)
    E = fem.Function(fem.functionspace(domain, ("Lagrange", 1)), name="E")
    traction = np.zeros(dim)
    traction[1] = -TRACTION
    problem = hf.catalogue.elasticity(
        domain,
        degree=2,
        E=E,
        nu=0.3,
        conditions=[
            hf.Dirichlet(0.0, lambda x: np.isclose(x[0], 0.0)),
            hf.Flux(traction, lambda x: np.isclose(x[0], 2.0)),
        ],
    )
    return hf.PhysicalModel.of(problem, {"E": bump(parameters, dim)})


def bounds(dim: int) -> dict[str, tuple[Any, Any]]:
    """A soft inclusion, with its centre in the block, neither a needle nor wider than the block."""
    return {
        "coefficients.E.background": (0.1, 10.0),
        "coefficients.E.amplitudes": (-10.0, 0.0),
        "coefficients.E.centres": (np.zeros(dim), np.array([2.0, *[1.0] * (dim - 1)])),
        "coefficients.E.widths": (0.1, 1.0),
    }


def measure(comm: MPI.Comm, dim: int) -> tuple[hf.PhysicalModel, np.ndarray, np.ndarray, float]:
    """The true model on a finer mesh; places (n, d), noisy displacements (n, d) and the noise's σ, replicated."""
    truth = block(comm, dim, 3 * CELLS[dim] // 2, TRUTH)
    sensors = hf.RandomGhosts(SENSORS[dim], seed=SEED).on(truth.V).draw(0)
    clean = sensors.gather(truth(sensors))
    sigma = NOISE * float(np.abs(clean).max())
    noisy = clean + sigma * np.random.default_rng(SEED).standard_normal(clean.shape)
    return truth, sensors.gather(sensors.x), noisy, sigma


def theta(module: Any) -> np.ndarray:
    """(E₀, A, c, w)."""
    parts = (module.background, module.amplitudes, module.centres, module.widths.abs())
    return np.concatenate([p.detach().numpy().ravel() for p in parts])


def main() -> None:
    """Measure, fit both ways, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--rounds", type=int, default=None, help="rounds of HYCO (400 in 2D, 150 in 3D)")
    parser.add_argument("--out", type=Path, default=None, help="output folder (out/elasticity_inclusion_DIMd)")
    args = parser.parse_args()
    comm, dim = MPI.COMM_WORLD, args.dim
    rounds = args.rounds or {2: 400, 3: 150}[dim]
    hf.limit_threads(comm)
    out = hf.output_folder(args.out or Path(f"out/elasticity_inclusion_{dim}d"), comm)

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    truth, x, y, sigma = measure(comm, dim)
    fitted = block(comm, dim, CELLS[dim], START)
    say(f"{len(x)} sensors, noise {1e3 * sigma:.3g} mm; least squares")

    start = time.perf_counter()
    data = hf.Data(hf.Points(fitted.V.mesh, x), y, sigma)

    def accepted(cost: float, solves: int) -> None:
        say(f"  solve {solves:3d}  mean square residual {cost:.6g}")

    result = hf.least_squares(fitted, data, bounds=bounds(dim), callback=accepted)
    seconds = time.perf_counter() - start
    say(f"{result}, {seconds:.1f} s")

    physical = block(comm, dim, CELLS[dim], START)
    # Clamped as the block is, and of the size of its displacements.
    scaled = hf.InputScaling(hf.MLP(dim, dim, width=64, depth=3), hf.bounding_box(physical.V.mesh))
    network = hf.HardBoundary(scaled, lambda x: 0.01 * x[:, 0])
    data = hf.Data(hf.Points(physical.V.mesh, x), y, sigma)
    weights = hf.Weights(b1=0.1 / sigma**2, b2=1.0 / sigma**2)
    answers = hf.Answers(physical=hf.AdamStep(1e-2), synthetic=hf.AdamStep(2e-3))
    game = hf.Hyco(physical, network, data, hf.RandomGhosts(200), weights=weights, answers=answers, warm_up=200)
    say("HYCO")
    with hf.HistoryFile(out / "history.csv", comm) as file, hf.progress(rounds, comm, "  ") as shown:
        played = game.run(rounds, callbacks=[file, shown])

    true = theta(truth.coefficients["E"])
    # The true displacement is known on another mesh: compare at points that are drawn uniformly in the block.
    places = hf.RandomGhosts(4000, seed=1).on(truth.V).draw(0)
    exact, at = places.gather(places.evaluate(truth.function)), places.gather(places.x)

    def u_error(values: np.ndarray) -> float:
        return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))

    rows: dict[str, tuple[float, float | None]] = {}
    for name, model in (("least squares", fitted), ("HYCO physical", physical)):
        own = hf.Points(model.V.mesh, at)
        off = np.linalg.norm(theta(model.coefficients["E"]) - true) / np.linalg.norm(true)
        rows[name] = (u_error(own.gather(own.evaluate(model.function))), float(off))
    rows["HYCO synthetic"] = (u_error(places.gather(network(places.x))), None)
    say(f"\n{'':16s}relative L² of u   parameter error   solves")
    counts = {"least squares": str(result.solves), "HYCO physical": str(physical.solver.counts["forward"])}
    for name, (off_u, error) in rows.items():
        say(f"{name:16s}{off_u:16.3g}   {'—' if error is None else f'{error:.3g}':>15s}   {counts.get(name, ''):>6s}")
    table = {k: {"relative_l2_u": a, "parameter_error": b} for k, (a, b) in rows.items()}
    fit = {"parameters": result.parameters, "standard_errors": result.standard_errors, "solves": result.solves}
    played.save(out, comm, {"table": table, "least_squares": fit, "truth": TRUTH})
    picture(out, comm, dim, truth, fitted, x, result)
    say(f"written to {out}/: summary.json, history.csv, elasticity_inclusion.png")


def picture(out: Path, comm: MPI.Comm, dim: int, truth, fitted, x: np.ndarray, result) -> None:  # type: ignore[no-untyped-def]
    """True and found modulus in the plane through the true centre, displacement, convergence and error bars."""
    nx, ny = 240, 120
    axes = np.meshgrid((np.arange(nx) + 0.5) * 2 / nx, (np.arange(ny) + 0.5) / ny)
    grid = np.stack([a.ravel() for a in axes] + [np.full(nx * ny, TRUTH["centre"][2])] * (dim - 2), axis=1)

    def image(model: hf.PhysicalModel, f: Any) -> np.ndarray:
        points = hf.Points(model.V.mesh, grid)
        return points.gather(points.evaluate(f)).reshape(ny, nx, -1)

    moduli = [image(m, m.solver.coefficients[0])[..., 0] for m in (truth, fitted)]
    moved = 1e3 * np.linalg.norm(image(truth, truth.function), axis=-1)
    error = 1e3 * np.linalg.norm(image(truth, truth.function) - image(fitted, fitted.function), axis=-1)
    true = theta(truth.coefficients["E"])
    plane = "" if dim == 2 else f" at z = {TRUTH['centre'][2]:g} m"

    def draw(figure: Any) -> None:
        axs = figure.subplots(2, 3)
        frame = {"origin": "lower", "extent": (0, 2, 0, 1)}
        tops = {"vmin": min(m.min() for m in moduli), "vmax": max(m.max() for m in moduli), "cmap": "magma"}
        for ax, field, title, options in (
            (axs[0, 0], moduli[0], f"truth: E (GPa){plane}", tops),
            (axs[0, 1], moduli[1], f"least squares: E (GPa){plane}", tops),
            (axs[1, 0], moved, "truth: |u| (mm), and the sensors", {}),
            (axs[1, 1], error, "|u − truth| of least squares (mm)", {"cmap": "Reds"}),
        ):
            drawn = ax.imshow(field, **frame, **options)
            ax.set_title(title, fontsize=10)
            figure.colorbar(drawn, ax=ax, shrink=0.8)
        axs[1, 0].scatter(x[:, 0], x[:, 1], s=9, c="white", edgecolors="black", linewidths=0.6)
        axs[0, 2].semilogy(range(len(result.history)), result.history, "o-")
        axs[0, 2].set_title("mean square residual over σ²", fontsize=10)
        axs[0, 2].set_xlabel("Levenberg–Marquardt step")
        values = np.concatenate([np.ravel(v) for v in result.parameters.values()])
        errors = np.concatenate([np.ravel(v) for v in result.standard_errors.values()])
        order = {"E.background": [0], "E.amplitudes": [1], "E.centres": range(2, 2 + dim), "E.widths": [2 + dim]}
        reference = true[[i for name in result.parameters for i in order[name]]]
        axs[1, 2].errorbar(range(len(values)), values - reference, yerr=2 * errors, fmt="o", capsize=4)
        axs[1, 2].axhline(0.0, color="black", lw=0.8)
        axs[1, 2].set_xticks(range(len(values)), [n.removeprefix("E.") for n in result.names], rotation=40, fontsize=8)
        axs[1, 2].set_title("found − truth, with two standard errors", fontsize=10)

    hf.save_figure(comm, out / "elasticity_inclusion.png", draw, size=(15, 6))


if __name__ == "__main__":
    hf.run_script(main)
