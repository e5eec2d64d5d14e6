"""Ritz with networks against Galerkin with elements: the same energy, three kinds of trial functions.

    −Δu = f in the unit square,   u = 0 on the boundary,   u = sin πx sin 2πy + ½ sin 3πx sin πy.

u minimises  E(v) = ∫ ½|∇v|² − f v  over H¹₀, and whatever is tried instead of all of H¹₀ ends at a distance from u that
its energy tells:  ½ ‖∇(v − u)‖² = E(v) − E(u).  Three trial sets, on the same quadrature:

- P1 elements.  A vector space: the minimum is one linear solve away, there is only one, and the distance is at most
  C_h ‖f‖ with a constant that can be computed.
- K neurons, v = ℓ Σ_j w_j tanh(a_j·x + b_j), with ℓ zero on the boundary.  K(d + 2) numbers, no vector space; E is not
  convex in them.  Several starts end in several minima: their spread is part of the answer.
- The mean-field relaxation: a measure μ over neurons, in which E is convex again, with λ‖μ‖_TV for coercivity.  The
  duality gap says how far from the minimum a solution over a dictionary can be; then atoms move and are pruned.

No network has an a-priori bound.  Each gets an a-posteriori one instead: a certificate, from a flux σ with div σ = −f,

    ‖∇(u − v)‖ ≤ ‖σ − ∇v‖ + …,

which needs nothing of v but its values and slopes, and holds however v was found.  From it, h_eq: the mesh size at
which P1 is promised to be as good.

    mpirun -n 1 python3 -m mpi4py demos/ritz_vs_galerkin.py [--starts 5] [--neurons 4 8 16 32] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import mesh
from torch import Tensor

import hyco_fem as hf
from hyco_fem.game.history import write_summary

PI = math.pi


def exact(x: Tensor) -> Tensor:
    """u."""
    s = torch.sin
    return s(PI * x[:, 0]) * s(2 * PI * x[:, 1]) + 0.5 * s(3 * PI * x[:, 0]) * s(PI * x[:, 1])


def load(x: Tensor) -> Tensor:
    """f = −Δu, for networks."""
    s = torch.sin
    return 5 * PI**2 * (s(PI * x[:, 0]) * s(2 * PI * x[:, 1]) + s(3 * PI * x[:, 0]) * s(PI * x[:, 1]))


def load_on(domain: mesh.Mesh) -> Any:
    """f, for elements."""
    x, s = ufl.SpatialCoordinate(domain), ufl.sin
    return 5 * PI**2 * (s(PI * x[0]) * s(2 * PI * x[1]) + s(3 * PI * x[0]) * s(PI * x[1]))


def elements(comm: MPI.Comm, norm: float) -> list[dict[str, Any]]:
    """P1 on five meshes, each with its error, bound and certificate, all relative to ‖∇u‖."""
    found = []
    for n in (4, 8, 16, 32, 64):
        domain = mesh.create_unit_square(comm, n, n)
        start = time.process_time()
        problem = hf.catalogue.poisson(domain, f=load_on(domain))
        solver = hf.SteadySolver(problem.F, problem.u, problem.bcs)
        solver.forward([])
        solver.close()
        seconds = time.process_time() - start
        bound, certificate = hf.explicit_bound(domain), hf.certificate(problem.u, f=load_on(domain))
        found.append(
            {
                "name": f"P1, h = √2/{n}",
                "size": problem.u.function_space.dofmap.index_map.size_global,
                "error": hf.error_norms(problem.u, exact, domain).H1 / norm,
                "certificate": certificate.value / norm,
                "h_eq": certificate.equivalent_mesh_size(bound),
                "bound": bound.energy(certificate.f_norm) / norm,
                "note": f"{seconds:.2f} s",
            }
        )
    return found


def main() -> None:
    """Solve with each, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--starts", type=int, default=5, help="of each K")
    parser.add_argument("--neurons", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--cells", type=int, default=24, help="a side, of the mesh whose quadrature networks see")
    parser.add_argument("--out", type=Path, default=Path("out/ritz_vs_galerkin"))
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    # Errors of networks are integrated on a rule that they have not been trained on, twice as fine.
    domain = mesh.create_unit_square(comm, args.cells, args.cells)
    fine = hf.CellQuadrature(mesh.create_unit_square(comm, 2 * args.cells, 2 * args.cells), 8)
    norm = hf.error_norms(exact, 0.0, fine).H1
    rows = elements(comm, norm)

    # One flux serves all networks: σ does not depend on v where v meets the boundary values.
    certifier = hf.Certifier(domain, f=load_on(domain), flux_degree=3)
    bound = hf.explicit_bound(domain)
    energy = hf.RitzEnergy(domain, f=load)
    distance = hf.mesh_distance(domain)

    def measured(name: str, network: torch.nn.Module, size: int, **more: Any) -> dict[str, Any]:
        found = certifier(network)
        return {
            "name": name,
            "size": size,
            "error": hf.error_norms(network, exact, fine).H1 / norm,
            "certificate": found.value / norm,
            "h_eq": found.equivalent_mesh_size(bound),
        } | more

    spread = []
    for K in args.neurons:
        start = time.process_time()
        fits = hf.fit_shallow(energy, K, distance=distance, starts=args.starts)
        seconds = time.process_time() - start
        errors = [hf.error_norms(v, exact, fine).H1 / norm for v in fits.networks if v is not None]
        spread.append((4 * K, errors))
        middle = f"median of {len(errors)} starts {np.median(errors):.1e}, worst {np.max(errors):.1e}; {seconds:.1f} s"
        rows.append(measured(f"{K} neurons, the best start", fits.best, 4 * K, note=middle))
    for K in (64, 256):
        start = time.process_time()
        fit = hf.mean_field(energy, penalty_tv=1e-6 * certifier.f_norm, distance=distance, dictionary=K)
        note = f"gap {fit.gap:.0e}; {time.process_time() - start:.1f} s"
        rows.append(measured(f"mean field from {K}: {fit.atoms} atoms", fit.network, 4 * fit.atoms, note=note))
    certifier.close()

    if comm.rank == 0:
        print(
            f"{'relative to ‖∇u‖':32} {'unknowns':>8} {'error':>9} {'certified':>9} {'C_h ‖f‖':>9} {'h_eq':>8}   "
            "processor time"
        )
        for row in rows:
            promised = f"{row['bound']:9.2e}" if "bound" in row else " " * 9
            print(
                f"{row['name']:32} {row['size']:8d} {row['error']:9.2e} {row['certificate']:9.2e} {promised} "
                f"{row['h_eq']:8.1e}   {row.get('note', '')}",
                flush=True,
            )

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        galerkin = [row for row in rows if "bound" in row]
        sizes = [row["size"] for row in galerkin]
        ax.plot(sizes, [row["bound"] for row in galerkin], "k--", label="P1: the bound $C_h\\,\\|f\\|$, before solving")
        ax.plot(sizes, [row["certificate"] for row in galerkin], "C0+", ms=9, label="P1: certificate")
        ax.plot(sizes, [row["error"] for row in galerkin], "C0o-", label="P1")
        for size, errors in spread:
            ax.plot(
                [size] * len(errors),
                errors,
                "C1.",
                alpha=0.6,
                label="K neurons: each start" if size == spread[0][0] else None,
            )
        ax.plot([s for s, _ in spread], [np.median(e) for _, e in spread], "C1-", label="K neurons: median")
        relaxed = [row for row in rows if row["name"].startswith("mean field")]
        ax.plot([row["size"] for row in relaxed], [row["error"] for row in relaxed], "C2s", label="mean field, pruned")
        others = [row for row in rows if "bound" not in row]
        ax.plot(
            [r["size"] for r in others], [r["certificate"] for r in others], "k+", ms=9, label="networks: certificate"
        )
        ax.set(xscale="log", yscale="log", xlabel="unknowns", ylabel="relative error in the energy norm")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)

    hf.save_figure(comm, out / "ritz_vs_galerkin.png", draw, size=(7.0, 4.6))
    write_summary(out, comm, {"rows": rows, "starts": {str(size): errors for size, errors in spread}})
    if comm.rank == 0:
        print(f"\npicture and summary in {out}/", flush=True)


if __name__ == "__main__":
    hf.run_script(main)
