"""Deep Ritz on the square with a slit, the example of E and Yu (Commun. Math. Stat. 6, 2018):

    −Δu = 1  in  Ω = (−1, 1)² without [0, 1) × {0},    u = 0  on ∂Ω, both lips of the slit included.

At the tip of the slit u behaves like r^½: P1 elements on a uniform mesh converge slowly there, and a smooth network
does not know of it either.  The network minimises

    E(v) = ∫_Ω ½|∇v|² − v dx    [+ ½β ∫_∂Ω v² ds]

on the quadrature of a uniform mesh of Ω, which has the slit in it: no other knowledge of the domain is needed.

*Hard* boundary values: v = ℓN with ℓ a smooth distance to ∂Ω (`mesh_distance`), and no penalty.
*Penalised* ones, as published: v = N.  The minimiser u_β is then at a distance of O(1/β) from u, and a large β makes
the energy stiff for the optimiser, which finds no way from a random start: each β goes on from the network of the one
before.  N is continuous across the slit and has to bend sharply along it.

Published: a relative L² error of 0.7 % to 1.0 %, with 811 parameters and β = 500 (50 000 steps of Adam).  Here: a tanh
network 2–16–16–16–1 of 609 parameters, 300 steps of Adam, then L-BFGS.  The reference is the P2 solution on a mesh
graded towards the tip; the difference of its energy on two meshes tells how exact it is.

    mpirun -n 1 python3 -m mpi4py demos/deep_ritz_slit.py [--iterations N] [--seed N] [--out FOLDER]

About a minute on one core.  Training has no long memory for rounding: on another number of ranks the last digits, and
after hundreds of iterations the first two, differ.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from torch import nn

import hyco_fem as hf

MESHES = Path(__file__).resolve().parents[1] / "meshes"
BETAS = (10.0, 30.0, 100.0, 300.0)


def graded(comm: MPI.Comm, h: float) -> dmesh.Mesh:
    """The slit square with elements of size h far from the tip and h³ at it.

    x ↦ |x|²_∞ x takes the square and the slit to themselves.
    """
    slit = hf.read_mesh(MESHES / "slit.geo", comm, mesh_size=h).mesh
    x = slit.geometry.x
    x *= np.abs(x).max(axis=1, keepdims=True) ** 2
    return slit


def galerkin(mesh: dmesh.Mesh, degree: int) -> fem.Function:
    """The finite element solution."""
    V = fem.functionspace(mesh, ("Lagrange", degree))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    mesh.topology.create_connectivity(1, 2)
    dofs = fem.locate_dofs_topological(V, 1, dmesh.exterior_facet_indices(mesh.topology))
    form = (ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
    model = hf.PhysicalModel(form, u, [fem.dirichletbc(0.0, dofs, V)])
    solution = hf.as_function(V, model.solve(), "u")
    model.close()
    return solution


def network(seed: int) -> nn.Module:
    """2–16–16–16–1 with tanh."""
    return hf.MLP(2, width=16, depth=3, seed=seed)


def train(energy: hf.RitzEnergy, v: nn.Module, adam: int, iterations: int, lr: float = 1e-2) -> None:
    """`adam` steps of Adam, then `iterations` of L-BFGS."""
    trainer = hf.DeepRitz(energy, v, hf.AdamStep(lr, steps=10))
    trainer.run(adam // 10)
    trainer.answer = hf.LBFGS(steps=20, memory=50, keep_memory=True)
    trainer.run(iterations // 20)


def main() -> None:
    """Train, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=600, help="of L-BFGS")
    parser.add_argument("--seed", type=int, default=0, help="of the network")
    parser.add_argument("--out", type=Path, default=Path("out/deep_ritz_slit"), help="output folder")
    args = parser.parse_args()

    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    # The reference: in graded coordinates u behaves like r^(3/2), and the excess of energy falls by 2³ with h.
    coarse = galerkin(graded(comm, 0.08), 2)
    reference = galerkin(graded(comm, 0.04), 2)
    finest = reference.function_space.mesh
    least, before = (hf.RitzEnergy(u.function_space.mesh).value(u) for u in (reference, coarse))
    excess = (before - least) / 7
    say(f"reference: {reference.function_space.dofmap.index_map.size_global} dofs, E = {least:.7f}, too large by about")
    say(f"{excess:.0e}: a relative error of {np.sqrt(excess / -least):.0e} in the energy norm")

    mesh = hf.read_mesh(MESHES / "slit.msh", comm).mesh
    everywhere = hf.quadrature_points(finest, 4)
    energies = {"hard": hf.RitzEnergy(mesh)} | {
        f"penalty {beta:g}": hf.RitzEnergy(mesh, penalty=beta) for beta in BETAS
    }
    rows: dict[str, dict[str, float]] = {}
    hard, soft = hf.HardBoundary(network(args.seed), hf.mesh_distance(mesh)), network(args.seed)
    raster = hf.Raster(finest, pixels=400)
    images = {"u": raster.image(reference)}
    for k, (name, energy) in enumerate(energies.items()):
        v = hard if k == 0 else soft
        start = time.perf_counter()
        if k <= 1:  # from a random start
            train(energy, v, min(300, args.iterations), args.iterations if k == 0 else args.iterations // 3)
        else:
            train(energy, v, min(100, args.iterations), args.iterations // 3, lr=1e-3)
        images[name] = raster.image(v)
        rows[name] = {
            "energy": energy.value(v),
            "boundary": energy.missed(v) ** 0.5,
            "relative_l2": hf.relative_l2(v, reference, everywhere),
            "seconds": time.perf_counter() - start,
        }
    p1 = galerkin(mesh, 1)
    on_finest = hf.RitzEnergy(finest)
    elements = np.sqrt(_square(on_finest, p1, reference) / _square(on_finest, reference, 0.0))

    say(f"\n{'':16s}{'E(v) − E(u)':>12s}  {'v on ∂Ω':>9s}  {'relative L²':>11s}  {'seconds':>7s}")
    for name, row in rows.items():
        say(
            f"{name:16s}{row['energy'] - least:12.2e}  {row['boundary']:9.1e}  {100 * row['relative_l2']:9.2f} %  "
            f"{row['seconds']:7.1f}"
        )
    dofs = p1.function_space.dofmap.index_map.size_global
    say(f"{f'P1, {dofs} dofs':16s}{hf.RitzEnergy(mesh).value(p1) - least:12.2e}  {0.0:9.1e}  {100 * elements:9.2f} %")

    points = int(comm.allreduce(len(energies["hard"].x)))
    finer = hf.RitzEnergy(mesh, degree=10).value(hard)
    gained = finer - rows["hard"]["energy"]
    say(f"\nHard: a rule of degree 10 finds an energy {gained:.1e} larger than the {points} points of the training do:")
    say("so much the network has gained between the points, most of it at the tip.")
    hf.save_figure(comm, out / "deep_ritz_slit.png", picture(raster, images), size=(15, 4))
    say(f"written to {out}/: deep_ritz_slit.png")


def _square(energy: hf.RitzEnergy, u: Any, v: Any) -> float:
    """‖u − v‖² in L²."""
    rule = energy.inside
    assert rule is not None
    return rule.integral((rule.values(u) - rule.values(v)).square())


def picture(raster: hf.Raster, images: dict[str, np.ndarray]) -> Any:
    """The hard network, its error, and that of a penalised one."""
    u = images["u"]

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 3)
        hf.show(axes[0], raster, images["hard"], "Deep Ritz, hard boundary values: v")
        for ax, name in ((axes[1], "hard"), (axes[2], "penalty 100")):
            error = images[name] - u
            limit = np.nanmax(np.abs(error))
            hf.show(ax, raster, error, f"v − u, {name}", cmap="RdBu_r", vmin=-limit, vmax=limit)

    return draw


if __name__ == "__main__":
    hf.run_script(main)
