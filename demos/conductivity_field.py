"""A whole conductivity field found from the heads in two hundred wells, without saying what it looks like.

Groundwater flows through a square of 1 km × 1 km.  The head u is zero at a river on the left, water enters through the
right side and, as recharge, from above; nothing passes the other sides:

    −∇·(e^m ∇u) = 1,    u = 0 on the left,    e^m ∂u/∂n = 1 on the right,    e^m ∂u/∂n = 0 elsewhere,

in units of a reference conductivity.  The log-conductivity m is unknown at every vertex.  The truth has a tight lens
(m = −1.5) and a gravel bar (m = 1) in a uniform ground (m = 0).  Heads are measured with 1 % noise; the measurements
come from a finer mesh than the one that is used for the inversion.  The field is the minimum of

    J(m) = mean_i (u(x_i; m) − y_i)²/σ² + α R(m),

found by Gauss–Newton steps, each solved for by conjugate gradients preconditioned with R.  Two regularisers:

    BiLaplacian       a Gaussian prior: m is smooth, varies by 1 and forgets itself over 0.4 km
    total variation   m is flat, with jumps: √(|∇m|² + ε²)

For both, α is the one that leaves a misfit of one: the discrepancy principle.  For the prior, the L-curve is drawn too.

    mpirun -n 2 python3 -m mpi4py demos/conductivity_field.py [--cells N] [--out FOLDER]
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

import hyco_fem as hf

SENSORS, NOISE, SEED = 200, 0.01, 5


def true_field(x: torch.Tensor) -> torch.Tensor:
    """A round lens and a bar, with edges through no vertex: rounding, which knows the partition, must not decide."""
    lens = ((x - torch.tensor([0.62, 0.66], dtype=x.dtype)) ** 2).sum(1) < 0.2013**2
    bar = (x[:, 0] > 0.1537) & (x[:, 0] < 0.5463) & (x[:, 1] > 0.1537) & (x[:, 1] < 0.3731)
    return -1.5 * lens.double() + 1.0 * bar.double()


def ground(comm: MPI.Comm, cells: int, initial: Any) -> hf.PhysicalModel:
    """The PDE with m at every vertex of a mesh."""
    domain = mesh.create_unit_square(comm, cells, cells)
    V = fem.functionspace(domain, ("Lagrange", 1))
    u, m, v = fem.Function(V, name="u"), fem.Function(V, name="m"), ufl.TestFunction(V)
    right = mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[0], 1.0))
    inflow = ufl.Measure("ds", domain, subdomain_data=mesh.meshtags(domain, 1, right, np.ones_like(right)))
    F = (ufl.exp(m) * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx - v * inflow(1)
    river = fem.locate_dofs_geometrical(V, lambda x: np.isclose(x[0], 0.0))
    return hf.PhysicalModel(F, u, [fem.dirichletbc(0.0, river, V)], {m: hf.NodalField(V, initial)})


def measure(comm: MPI.Comm, cells: int) -> tuple[hf.PhysicalModel, np.ndarray, np.ndarray, float]:
    """The true model on a finer mesh; places (n, 2), noisy heads (n,) and the noise's σ, replicated."""
    truth = ground(comm, 3 * cells // 2, true_field)
    wells = hf.RandomGhosts(SENSORS, seed=SEED).on(truth.V).draw(0)
    clean = wells.gather(truth(wells))
    sigma = NOISE * float(np.abs(clean).max())
    return truth, wells.gather(wells.x), clean + sigma * np.random.default_rng(SEED).standard_normal(SENSORS), sigma


def main() -> None:
    """Measure, invert with both regularisers, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=40, help="along a side, for the inversion (40)")
    parser.add_argument("--out", type=Path, default=Path("out/conductivity_field"), help="output folder")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    truth, x, y, sigma = measure(comm, args.cells)
    say(f"{len(x)} wells, noise {sigma:.3g}, {args.cells}² squares, {(args.cells + 1) ** 2} unknowns")
    # The true field is known on another mesh: compare on a raster of points.
    raster = hf.Raster(truth.V.mesh, 160)
    true = raster.image(truth.solver.coefficients[0])

    def fit(name: str) -> tuple[hf.WeightChoice, np.ndarray, np.ndarray, float]:
        model = ground(comm, args.cells, 0.0)
        Q = model.solver.coefficients[0].function_space
        prior = hf.BiLaplacian.matern(Q, std=1.0, length=0.4)
        regulariser = prior if name == "BiLaplacian" else hf.TotalVariation(Q, epsilon=0.2)
        data = hf.Data(hf.Points(model.V.mesh, x), y, sigma)
        start = time.perf_counter()

        def fitted(r: hf.FieldResult) -> None:
            say(
                f"  weight {r.weight:9.3e}  misfit {r.misfit:7.4f}  R {r.penalty:8.4f}  {r.steps:3d} steps, "
                f"{r.products:4d} Hessian products"
            )

        say(f"{name}, discrepancy principle")
        choice = hf.choose_weight(
            model, data, regulariser, rule="discrepancy", weights=[1.0], tolerance=1e-3, callback=fitted
        )
        seconds = time.perf_counter() - start
        own = hf.Raster(model.V.mesh, 160)
        found = own.image(model.solver.coefficients[0])
        heads = own.image(model.function) - raster.image(truth.function)
        hf.write_fields(out / f"{name.replace(' ', '_')}.xdmf", [model.solver.coefficients[0], model.function])
        return choice, found, heads, seconds

    rows: dict[str, dict[str, Any]] = {}
    images, choices = {}, {}
    for name in ("BiLaplacian", "total variation"):
        choice, found, heads, seconds = fit(name)
        images[name], choices[name] = found, choice
        rows[name] = {
            "weight": choice.weight,
            "misfit": choice.result.misfit,
            "relative_l2_m": float(np.linalg.norm(found - true) / np.linalg.norm(true)),
            "relative_l2_u": float(np.linalg.norm(heads) / np.linalg.norm(raster.image(truth.function))),
            "solves": choice.solves,
            "products": choice.products,
            "seconds": seconds,
        }

    say("BiLaplacian, L-curve")
    model = ground(comm, args.cells, 0.0)
    prior = hf.BiLaplacian.matern(model.solver.coefficients[0].function_space, std=1.0, length=0.4)
    data = hf.Data(hf.Points(model.V.mesh, x), y, sigma)
    corner = hf.choose_weight(
        model, data, prior, rule="l_curve", weights=hf.bayesian_weight(data) * np.logspace(-2, 3, 11)
    )
    say(f"  corner at weight {corner.weight:.3e}, Bayesian weight 2/n = {hf.bayesian_weight(data):.3e}")

    say(f"\n{'':18s}weight     misfit   relative L² of m   of u      solves   Hessian products   seconds")
    for name, r in rows.items():
        say(
            f"{name:16s}{r['weight']:9.3e}  {r['misfit']:8.4f}  {r['relative_l2_m']:14.3f}  {r['relative_l2_u']:8.4f}"
            f"  {r['solves']:8d}  {r['products']:14d}  {r['seconds']:12.1f}"
        )
    summary = {
        "noise": sigma,
        "table": rows,
        "l_curve": {k: getattr(corner, k) for k in ("weight", "weights", "misfits", "penalties", "curvatures")},
    }
    choices["BiLaplacian"].save(out, comm, summary)
    picture(out, comm, raster, x, true, images, choices, corner)
    say(f"written to {out}/: summary.json, two XDMF files, conductivity_field.png")


def picture(
    out: Path,
    comm: MPI.Comm,
    raster: hf.Raster,
    x: np.ndarray,
    true: np.ndarray,
    images: Any,
    choices: Any,
    corner: hf.WeightChoice,
) -> None:
    """Truth and both fields, a cut through them, the L-curve and the convergence of Gauss–Newton."""
    span = {"vmin": -1.8, "vmax": 1.3, "cmap": "RdYlBu_r"}

    def draw(figure: Any) -> None:
        axs = figure.subplots(2, 3)
        hf.show(axs[0, 0], raster, true, "truth: log-conductivity m, and the wells", **span)
        axs[0, 0].scatter(x[:, 0], x[:, 1], s=4, c="black", linewidths=0)
        for ax, (name, image) in zip(axs[0, 1:], images.items(), strict=True):
            hf.show(ax, raster, image, f"found: {name}", **span)
        row = int(0.66 * len(true))
        along = (np.arange(true.shape[1]) + 0.5) / true.shape[1]
        for (name, image), style in zip({"truth": true, **images}.items(), ("k-", "C0-", "C3-"), strict=True):
            axs[1, 0].plot(along, image[row], style, lw=1.4, label=name)
        axs[1, 0].set_title("m along y = 0.66, through the lens", fontsize=10)
        axs[1, 0].legend(fontsize=7, loc="lower left")
        axs[1, 1].loglog(corner.misfits, corner.penalties, "o-", ms=4)
        best = int(np.flatnonzero(corner.weights == corner.weight)[0])
        axs[1, 1].loglog(corner.misfits[best], corner.penalties[best], "s", ms=9, mfc="none", label="corner")
        found = choices["BiLaplacian"].result
        axs[1, 1].loglog(found.misfit, found.penalty, "*", ms=12, label="discrepancy: misfit 1")
        axs[1, 1].set_title("L-curve of the BiLaplacian", fontsize=10)
        axs[1, 1].set_xlabel("misfit L")
        axs[1, 1].set_ylabel("R")
        axs[1, 1].legend(fontsize=8)
        for name, choice in choices.items():
            axs[1, 2].semilogy([s.gradient_norm for s in choice.result.history], "o-", ms=4, label=name)
        axs[1, 2].set_title("dual norm of the gradient, last fit", fontsize=10)
        axs[1, 2].set_xlabel("Gauss–Newton step")
        axs[1, 2].legend(fontsize=8)

    hf.save_figure(comm, out / "conductivity_field.png", draw, size=(10.0, 5.6))


if __name__ == "__main__":
    hf.run_script(main)
