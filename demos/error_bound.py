"""How wrong can a finite element solution be?  A bound with a number in it, and how close true errors come.

    −Δu = f in Ω,  u = 0 on ∂Ω,      u_h: P1 on triangles of diameter at most h

Textbooks say ‖∇(u − u_h)‖ ≤ C h ‖f‖, and leave C open.  Liu and Oishi (2013) compute it, as an eigenvalue:

    ‖∇(u − u_h)‖ ≤ C_h ‖f‖,      ‖u − u_h‖ ≤ C_h² ‖f‖      for every f in L², on any polygon.

First C_h itself, on four domains.  On the square C_h/h hardly changes: the bound is of order h.  At a re-entrant corner
u need not be in H², however smooth f is, and C_h knows: it tends to decay like h^{2/3} on the L-shape and like h^{1/2}
with a slit.  The hole of the plate is a polygon, whose many corners are hardly more than 180°: nearly order h.  The
bound is for the polygon; what cutting off the circle costs is another question.

Then the same f on finer and finer meshes of the square and the L-shape.  A bound for all f is not sharp for each: f = 1
stays at half of it, in energy, while noise, which the solution hardly sees, is far below.  The worst f of all is found
as an eigenvector: none comes closer to the bound.  And how far C_h is from the least constant that could stand in its
place is known too, from below (the worst f) and from above (the same proof, with the flux on a finer mesh).

True errors are not guessed: the load is constant on the cells of a mesh refined twice, and the energy of u lies
between that of its P2 and of its RT₀ solution there.  The lower value is shown; the upper one is in summary.json.  The
L² errors are those against the P2 solution.

    mpirun -n 2 python3 -m mpi4py demos/error_bound.py [--cells N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import mesh

import hyco_fem as hf
from hyco_fem.accuracy.bound import table_of
from hyco_fem.files import replace_file
from hyco_fem.parallel import agreed

MESHES = Path(__file__).parents[1] / "meshes"
NOISE = np.random.default_rng(0).standard_normal((32, 32))
STYLES = {"f = 1": "o", "wave": "s", "step": "^", "noise": "v", "worst": "*"}


def loads(x: np.ndarray) -> dict[str, np.ndarray]:
    """f at points x (n, d): the same functions on every mesh of a domain."""
    unit = (x - x.min(axis=0)) / np.ptp(x, axis=0)
    boxes = np.minimum((unit * 32).astype(int), 31)
    return {
        "f = 1": np.ones(len(x)),
        "wave": np.sin(2 * np.pi * unit[:, 0]) * np.sin(np.pi * unit[:, 1]),
        "step": np.where(unit[:, 0] + 0.5 * unit[:, 1] < 0.7, 1.0, -1.0),
        "noise": NOISE[boxes[:, 0], boxes[:, 1]],
    }


def refined(domain: mesh.Mesh, times: int) -> list[mesh.Mesh]:
    """The mesh, and finer ones in which each triangle is cut in four."""
    out = [domain]
    for _ in range(times):
        out.append(hf.refined(out[-1]))
    return out


def measure(domain: mesh.Mesh, bound: hf.ExplicitBound) -> dict[str, dict[str, float]]:
    """For each load the bounds, the true errors and their ratios."""
    errors = hf.TrueErrors(domain)
    rows = {}
    least, most = errors.best_constant(1e-4)
    for name, f in {**loads(errors.x), "worst": errors.worst(1e-4)[0]}.items():
        norm, (low, high), L2 = errors.norm(f), errors.energy(f), errors.L2(f)
        rows[name] = {
            "energy": low / norm,
            "energy_upper": high / norm,
            "energy_bound": bound.C_h,
            "L2": L2 / norm,
            "L2_bound": bound.C_h**2,
            "energy_ratio": low / bound.energy(norm),
            "L2_ratio": L2 / bound.L2(norm),
        }
    rows["worst"] |= {"least_constant": least, "least_constant_upper": most}
    errors.close()
    return rows


def main() -> None:
    """Tables of C_h, true errors next to it, a picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cells", type=int, default=16, help="of the finest square with true errors, along a side (16)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/error_bound"), help="output folder")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)
    if args.cells < 8 or args.cells % 4:
        raise ValueError("this needs --cells of 8 or more, a multiple of 4")

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    def read(name: str, size: float) -> mesh.Mesh:
        return hf.read_mesh(MESHES / f"{name}.geo", comm, mesh_size=size).mesh

    coarse = 4.0 / args.cells
    family = {
        "square": [mesh.create_unit_square(comm, args.cells * k // 4, args.cells * k // 4) for k in (1, 2, 4, 8)],
        "L-shape": refined(read("l_shape", 1.6 * coarse), 3),
        "plate with hole": [read("plate_with_hole", size * coarse) for size in (0.8, 0.4, 0.2)],
        "slit square": refined(read("slit", 1.6 * coarse), 3),
    }
    bounds = {name: [hf.explicit_bound(domain) for domain in domains] for name, domains in family.items()}
    say("The constant C_h, with h the largest diameter of a cell (on the square √2 legs), u = 0 on the whole boundary")
    say("\n".join(table_of(bounds)))

    tables: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name in ("square", "L-shape"):
        tables[name] = [measure(*pair) for pair in zip(family[name][:3], bounds[name][:3], strict=True)]
        say(f"\n{name}: true errors over ‖f‖, and over their bounds")
        say("              h   load      energy     bound    ratio   rate         L²     bound    ratio   rate")
        for load in STYLES:
            for k, rows in enumerate(tables[name]):
                row, before = rows[load], tables[name][k - 1][load] if k else None
                step = math.log(bounds[name][k - 1].h / bounds[name][k].h) if k else 0.0
                text = f"  {bounds[name][k].h:13.4f}   {load if k == 0 else '':6s}"
                for kind in ("energy", "L2"):
                    rate = f"{math.log(before[kind] / row[kind]) / step:5.2f}" if before else ""
                    text += f"  {row[kind]:9.3e} {row[f'{kind}_bound']:9.3e}  {row[f'{kind}_ratio']:6.3f}  {rate:5s}"
                say(text)
        last = tables[name][-1]["worst"]
        C_h = bounds[name][2].C_h
        say(
            f"  the least constant that holds for all f is between {last['least_constant'] / C_h:.3f} and "
            f"{last['least_constant_upper'] / C_h:.3f} C_h"
        )

    with agreed(comm):
        if comm.rank == 0:
            constants = {
                name: [{"h": b.h, "C_h": b.C_h, "cells": b.cells} for b in row] for name, row in bounds.items()
            }
            summary = {"demo": "error_bound", "ranks": comm.size, "constants": constants, "errors": tables}
            replace_file(out / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1)))
    picture(comm, out / "error_bound.png", bounds, tables)
    say(f"\nwritten to {out}/: summary.json, error_bound.png")


def picture(
    comm: MPI.Comm, path: Path, bounds: dict[str, list[hf.ExplicitBound]], tables: dict[str, list[Any]]
) -> None:
    """Errors and bounds against h: a column for each domain, energy above L²."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, len(tables), sharex="col", sharey="row")
        for column, (name, rows) in enumerate(tables.items()):
            h = np.array([b.h for b in bounds[name]])
            C = np.array([b.C_h for b in bounds[name]])
            for ax, kind, values in ((axes[0, column], "energy", C), (axes[1, column], "L2", C**2)):
                ax.loglog(h, values, "k-", lw=2, label="bound")
                for load, marker in STYLES.items():
                    ax.loglog(h[: len(rows)], [row[load][kind] for row in rows], marker=marker, lw=1, ms=6, label=load)
                order = {"energy": 1, "L2": 2}[kind]
                ax.loglog(h, 1.6 * values[0] * (h / h[0]) ** order, ":", color="0.5", label=f"slope {order}")
                ax.grid(True, which="both", lw=0.3, alpha=0.5)
                ax.set_xticks(h, [f"{size:.3f}" for size in h])
                ax.set_xticks([], minor=True)
            axes[0, column].set_title(name)
            axes[1, column].set_xlabel("h, largest diameter of a cell")
        axes[0, 0].set_ylabel(r"$\|\nabla(u - u_h)\| \, / \, \|f\|$")
        axes[1, 0].set_ylabel(r"$\|u - u_h\| \, / \, \|f\|$")
        for ax in axes[:, -1]:
            ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    hf.save_figure(comm, path, draw, size=(11, 7.5))


if __name__ == "__main__":
    hf.run_script(main)
