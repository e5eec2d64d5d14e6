"""How wrong is this solution?  A number that is never too small, for finite elements and networks alike.

    −Δu = f in Ω,  u = g on ∂Ω,      v: any approximation at all

Nobody knows u, but a flux σ with div σ = −f is enough (Prager and Synge, 1947): if v = g on the boundary, then

    ‖∇(u − v)‖² + ‖∇u − σ‖² = ‖σ − ∇v‖²,

so ‖σ − ∇v‖, which can be computed, bounds the error that cannot.  hyco_fem takes the best σ of a Raviart–Thomas space,
adds what the loads lose on the cells and what v misses on the boundary, and calls the sum the certificate of v.

First one problem with a known solution, u = sin(πx) sin(πy) on the unit square, and seven approximations: finite
elements of degree 1 and 2, a physics-informed network that has to learn the boundary values and one that has them built
in, at the start of their training and at its end, and u shifted by a constant, whose gradient is right everywhere.  For
each its certificate, its true error, their quotient (the efficiency, 1 at best), the parts of the certificate, and
h_eq: the size of the mesh for which Liu and Oishi's bound C_h ‖f‖ promises P1 to be as good.  Networks are certified by
fluxes on one mesh, factorised once, of degree 3: a good network needs a good flux.

Then the L-shape, with u = r^{2/3} sin(2θ/3): smooth but for the re-entrant corner, where ∇u is unbounded.  On uniform
meshes the error falls like N^{−1/3} only, N the number of dofs.  The certificate is a sum over cells, and says where it
comes from; cells that hold half of its square are refined, and so on.  Then N^{−1/2}, as for smooth solutions.  No
error on any mesh is above its certificate.

    mpirun -n 2 python3 -m mpi4py demos/certificates.py [--rounds N] [--cells N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.files import replace_file
from hyco_fem.parallel import agreed

MESHES = Path(__file__).parents[1] / "meshes"


def sines(x: Tensor) -> Tensor:
    """u on the square."""
    return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])


def load(x: Tensor) -> Tensor:
    """f = −Δu on the square."""
    return 2 * math.pi**2 * sines(x)


def corner(x: Tensor) -> Tensor:
    """u on the L-shape, harmonic: r^{2/3} sin(2θ/3)."""
    angle = torch.atan2(x[:, 1], x[:, 0])
    angle = torch.where(angle < -1e-12, angle + 2 * math.pi, angle)
    return x.square().sum(1) ** (1 / 3) * torch.sin(2 * angle / 3)


def energy_error(domain: mesh.Mesh, u: Callable[[Tensor], Tensor], v: Any) -> float:
    """‖∇(u − v)‖."""
    rule = hf.CellQuadrature(domain, 14)
    with torch.no_grad():
        return math.sqrt(rule.integral((rule.gradients(u) - rule.gradients(v)).square().sum(1)))


def galerkin(domain: mesh.Mesh, degree: int, f: Any, g: Callable[[Tensor], Tensor] | None = None) -> fem.Function:
    """The finite element solution of −Δu = f, u = g on the boundary (0 by default)."""
    V = fem.functionspace(domain, ("Lagrange", degree))
    uh, v, boundary = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V)
    if g is not None:
        x = hf.dof_coordinates(V)
        boundary.x.array[: len(x)] = g(x).numpy()
        boundary.x.scatter_forward()
    domain.topology.create_connectivity(1, 2)
    dofs = fem.locate_dofs_topological(V, 1, mesh.exterior_facet_indices(domain.topology))
    F = (ufl.inner(ufl.grad(uh), ufl.grad(v)) - f * v) * ufl.dx
    model = hf.PhysicalModel(F, uh, [fem.dirichletbc(boundary, dofs)])
    model.solve()
    model.close()
    return uh


# -- the square ------------------------------------------------------------------------------------------------


def network(domain: mesh.Mesh, *, hard: bool) -> nn.Module:
    """A small network; `hard`: with its boundary values built in."""
    box = hf.bounding_box(domain)
    net = hf.InputScaling(hf.MLP(2, 1, width=20, depth=2, seed=0), box)
    return hf.HardBoundary(net, hf.box_distance(box)) if hard else net


def trained(domain: mesh.Mesh, rounds: int, *, hard: bool) -> nn.Module:
    """The same network after some rounds as a physics-informed one."""
    net = network(domain, hard=hard)
    problem = hf.catalogue.poisson(domain, f=fem.Constant(domain, 1.0))  # its f is replaced by the formula
    weights = hf.PINNWeights(residual=1.0, boundary=100.0)
    collocation = hf.RandomGhosts(300, seed=1)
    hf.PINN(problem, net, {"f": load}, collocation=collocation, weights=weights, answer=hf.AdamStep(5e-3)).run(rounds)
    return net


def on_the_square(comm: MPI.Comm, cells: int, rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The table of seven approximations."""
    domain = mesh.create_unit_square(comm, cells, cells)
    x = ufl.SpatialCoordinate(domain)
    f = 2 * math.pi**2 * ufl.sin(math.pi * x[0]) * ufl.sin(math.pi * x[1])
    bound = hf.explicit_bound(domain)
    certifier = hf.Certifier(domain, f=load, flux_degree=3)
    rows = []
    say(
        "                           certificate  true error  efficiency      flux    oscill.  boundary  quadr.     h_eq"
    )

    def row(name: str, v: Any, c: hf.Certificate) -> None:
        error = energy_error(domain, sines, v)
        h = c.equivalent_mesh_size(bound)
        efficiency = c.efficiency(error) if error > 1e-12 else math.inf
        rows.append({"name": name, "certificate": c.value, "error": error, "efficiency": efficiency, "h_eq": h})
        say(
            f"{name:28s}{c.value:10.3e}  {error:10.3e}  {efficiency:10.4f}  {c.flux:8.2e}  {c.oscillation:8.2e}  "
            f"{c.boundary:8.2e}  {c.quadrature:6.0e}  {h:7.4f}"
        )

    for degree in (1, 2):
        v = galerkin(domain, degree, f)
        row(f"P{degree}, cells of {bound.h:.3f}", v, hf.certificate(v, f=load))
    for hard in (False, True):
        what = "boundary built in" if hard else "free boundary"
        row(f"network, {what}", net := network(domain, hard=hard), certifier(net))
        row("  trained", net := trained(domain, rounds, hard=hard), certifier(net))

    def shifted(x: Tensor) -> Tensor:
        return sines(x) + 0.1

    row("u + 0.1", shifted, certifier(shifted))
    certifier.close()
    return rows


# -- the L-shape -----------------------------------------------------------------------------------------------


def on_the_l_shape(
    comm: MPI.Comm, most: int, say: Callable[[str], None]
) -> dict[str, list[tuple[hf.AdaptiveLevel, float]]]:
    """Levels with true errors, uniform and adaptive."""
    found: dict[str, list[tuple[hf.AdaptiveLevel, float]]] = {}
    for name, fraction in (("uniform", 1.0), ("adaptive", 0.5)):
        first = hf.read_mesh(MESHES / "l_shape.geo", comm, mesh_size=0.7).mesh
        levels = hf.adapt(
            first, lambda m: galerkin(m, 1, fem.Constant(m, 0.0), corner), fraction=fraction,
            max_cells=most, f=0.0, g=corner,
        )  # fmt: skip
        found[name] = [(level, energy_error(level.mesh, corner, level.v)) for level in levels]
        say(f"\n{name:9s}   cells     dofs  certificate  true error  efficiency")
        for level, error in found[name]:
            c = level.certificate
            say(f"{level.cells:17d} {level.dofs:8d}   {c.value:10.3e}  {error:10.3e}  {c.efficiency(error):10.4f}")
        slopes = [rate(found[name], k) for k in (0, 1)]
        say(f"          slopes against dofs, last levels: {slopes[0]:10.3f}  {slopes[1]:10.3f}")
    return found


def rate(levels: list[tuple[hf.AdaptiveLevel, float]], which: int) -> float:
    """Slope of the certificate (0) or the error (1) against the dofs, over the finer half."""
    half = levels[len(levels) // 2 :]
    values = [(level.certificate.value, error)[which] for level, error in half]
    return float(np.polyfit(np.log([level.dofs for level, _ in half]), np.log(values), 1)[0])


def picture(comm: MPI.Comm, path: Path, found: dict[str, list[tuple[hf.AdaptiveLevel, float]]]) -> None:
    """Errors and certificates against dofs, and a mesh that the certificates made."""
    shown = next(level for level, _ in found["adaptive"] if level.cells > 400 or level is found["adaptive"][-1][0])
    domain = shown.mesh
    n = domain.topology.index_map(2).size_local
    mine = domain.geometry.x[mesh.entities_to_geometry(domain, 2, np.arange(n, dtype=np.int32))][:, :, :2]
    parts, shares = comm.gather(mine), comm.gather(shown.certificate.by_cell)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name, colour in (("uniform", "tab:orange"), ("adaptive", "tab:blue")):
            dofs = np.array([level.dofs for level, _ in found[name]], dtype=float)
            errors = [error for _, error in found[name]]
            left.loglog(dofs, [level.certificate.value for level, _ in found[name]], "o-", c=colour, mfc="white",
                        label=f"{name}: certificate")  # fmt: skip
            left.loglog(dofs, errors, ".--", c=colour, label=f"{name}: true error")
            slope = -1 / 3 if name == "uniform" else -1 / 2
            text = r"$N^{-1/3}$" if name == "uniform" else r"$N^{-1/2}$"
            left.loglog(dofs, 0.7 * errors[-1] * (dofs / dofs[-1]) ** slope, ":", c=colour, lw=1, label=text)
        left.set_xlabel("dofs N")
        left.set_ylabel(r"$\|\nabla(u - u_h)\|$ and its certificate")
        left.grid(True, which="both", lw=0.3, alpha=0.5)
        left.legend(fontsize=8)
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import LogNorm

        assert parts is not None
        assert shares is not None
        values = np.concatenate(shares)
        norm = LogNorm(max(values.max() * 1e-2, 1e-300), values.max())
        cells = PolyCollection(np.concatenate(parts), array=values, norm=norm, edgecolors="0.3", linewidths=0.4)
        right.add_collection(cells)
        right.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", title=f"adaptive: {shown.cells} cells")
        figure.colorbar(cells, ax=right, label="share of each cell in the certificate")

    hf.save_figure(comm, path, draw, size=(12, 5))


def main() -> None:
    """Both tables, the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="of training for the networks (1000)")
    parser.add_argument("--cells", type=int, default=4000, help="no L-shape is refined beyond this (4000)")
    parser.add_argument("--out", type=Path, default=Path("out/certificates"), help="output folder")
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)
    if args.rounds < 1 or args.cells < 100:
        raise ValueError("this needs --rounds of 1 or more and --cells of 100 or more")

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    rows = on_the_square(comm, 16, args.rounds, say)
    found = on_the_l_shape(comm, args.cells, say)
    summary = {
        "demo": "certificates",
        "ranks": comm.size,
        "square": rows,
        "l_shape": {
            name: [
                {"cells": level.cells, "dofs": level.dofs, "certificate": level.certificate.value, "error": error}
                for level, error in levels
            ]
            for name, levels in found.items()
        },
        "slopes": {name: {"certificate": rate(levels, 0), "error": rate(levels, 1)} for name, levels in found.items()},
    }
    with agreed(comm):
        if comm.rank == 0:
            replace_file(out / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1)))
    picture(comm, out / "certificates.png", found)
    say(f"\nwritten to {out}/: summary.json, certificates.png")


if __name__ == "__main__":
    hf.run_script(main)
