"""How exact is each way to solve the same PDE?  Errors against unknowns and seconds, on one axis, with the O(h) bound.

−Δu = f, u = 0 on the boundary, on

    square     the unit square, with a smooth f for which u is known
    l_shape    (−1, 1)² without a quadrant, f = 1: a corner where u is not in H².  The reference is P2 on a mesh that is
               graded towards the corner, finer than anything here

solved by P1 and P2 elements, Deep Ritz, K neurons (variable projection, the best of several starts), the mean-field
relaxation, a PINN, and HYCO, which does not know κ = 1 and has 50 sensors without noise instead.  All networks meet the
boundary values (ℓ N with the distance ℓ), and know f.  Each line is one solution:

    method, size (dofs, or numbers that are trained), neurons, seed, seconds, L2, energy (true errors, relative),
    certificate (guaranteed bound of the energy error, relative; of elements on their own mesh),
    h_eq (mesh size at which P1 is promised as much)

and the bound C_h ‖f‖ of each P1 mesh stands beside its error.  Seconds are processor time (of rank 0) for the solution
alone: forms are compiled before, meshes and distances are there.

    python3 benchmarks/accuracy_map.py [--case square] [--seeds 3] [--quick] [--out out/accuracy_map]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix
import numpy as np
import torch
import ufl
from dolfinx import fem, mesh
from torch import Tensor, nn

import hyco_fem as hf

TOP = Path(__file__).parents[1]
PI = math.pi


# -- the problems --------------------------------------------------------------------------------------------------


def smooth_solution(x: Tensor) -> Tensor:
    """sin πx sin 2πy + ½ sin 3πx sin πy."""
    s = torch.sin
    return s(PI * x[:, 0]) * s(2 * PI * x[:, 1]) + 0.5 * s(3 * PI * x[:, 0]) * s(PI * x[:, 1])


def smooth_load(x: Tensor) -> Tensor:
    """−Δ of it."""
    s = torch.sin
    first, second = s(PI * x[:, 0]) * s(2 * PI * x[:, 1]), s(3 * PI * x[:, 0]) * s(PI * x[:, 1])
    return 5 * PI**2 * (first + second)


def smooth_load_ufl(domain: mesh.Mesh) -> Any:
    """The same in UFL."""
    x, s = ufl.SpatialCoordinate(domain), ufl.sin
    return 5 * PI**2 * (s(PI * x[0]) * s(2 * PI * x[1]) + s(3 * PI * x[0]) * s(PI * x[1]))


@dataclass
class Case:
    """A domain with a load.  meshes: of P1 and P2, coarse to fine.  trial: on which networks are trained."""

    comm: MPI.Comm
    name: str
    meshes: list[mesh.Mesh]
    trial: mesh.Mesh
    flux: mesh.Mesh
    f: Any  # a number or a formula
    f_on: Callable[[mesh.Mesh], Any]
    exact: Any
    errors_on: Any  # where errors of networks are integrated
    distance: Any = field(init=False)

    def __post_init__(self) -> None:
        self.distance = hf.mesh_distance(self.trial)
        with torch.no_grad():
            self.norms = hf.error_norms(self.exact, 0.0, self.errors_on)

    @cached_property
    def certifier(self) -> hf.Certifier:
        """Fluxes of RT_3 on a fine mesh: one factorisation for all."""
        return hf.Certifier(self.flux, f=self.f_on(self.flux), flux_degree=3)

    @cached_property
    def bound(self) -> hf.ExplicitBound:
        """C_h of the mesh of the networks; C_h/h of it for h_eq."""
        return hf.explicit_bound(self.trial)

    def measured(self, v: Any) -> dict[str, float]:
        """Relative errors and certificate of a network, or of a Function, which has kinks only where its cells end."""
        if isinstance(v, fem.Function):
            mine = v.function_space.mesh
            errors = hf.error_norms(v, self.exact, self.errors_on if self.name == "l_shape" else mine)
            found = hf.certificate(v, f=self.f_on(mine))
        else:
            errors, found = hf.error_norms(v, self.exact, self.errors_on), self.certifier(v)
        return {
            "L2": errors.L2 / self.norms.L2,
            "energy": errors.H1 / self.norms.H1,
            "certificate": found.value / self.norms.H1,
            "h_eq": found.equivalent_mesh_size(self.bound),
            "quadrature": found.quadrature,
        }


def square(comm: MPI.Comm, quick: bool) -> Case:
    """The unit square."""
    ns = (4, 8, 16) if quick else (4, 8, 16, 32, 64, 128)
    meshes = [mesh.create_unit_square(comm, n, n) for n in ns]
    trial = mesh.create_unit_square(comm, 12 if quick else 24, 12 if quick else 24)
    flux = mesh.create_unit_square(comm, 12 if quick else 48, 12 if quick else 48)
    # A gradient of a formula is torch's: exact.
    on = hf.CellQuadrature(mesh.create_unit_square(comm, 40, 40), 8)
    return Case(comm, "square", meshes, trial, flux, smooth_load, smooth_load_ufl, smooth_solution, on)


def l_shape(comm: MPI.Comm, quick: bool) -> Case:
    """(−1, 1)² without a quadrant."""
    sizes = (0.5, 0.25, 0.125) if quick else (0.5, 0.25, 0.125, 0.0625, 0.03125)
    path = TOP / "meshes/l_shape.geo"
    meshes = [hf.read_mesh(path, comm, mesh_size=h).mesh for h in sizes]
    trial = hf.read_mesh(path, comm, mesh_size=0.12 if quick else 0.08).mesh
    solve = lambda level: solved(hf.catalogue.poisson(level, degree=1))  # noqa: E731
    graded = hf.adapt(trial, solve, f=1.0, max_cells=1500 if quick else 12_000, tolerance=0.0)[-1].mesh
    reference = solved(hf.catalogue.poisson(hf.refined(graded), degree=2))
    on = hf.CellQuadrature(reference.function_space.mesh, 6)
    return Case(comm, "l_shape", meshes, trial, graded, 1.0, lambda domain: 1.0, reference, on)


CASES = {"square": square, "l_shape": l_shape}


# -- the methods ---------------------------------------------------------------------------------------------------


def solved(problem: hf.Problem) -> fem.Function:
    """The finite element solution."""
    solver = hf.SteadySolver(problem.F, problem.u, problem.bcs)
    solver.forward([])
    solver.close()
    return problem.u


def trained(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def elements(case: Case, degree: int) -> Iterator[dict[str, Any]]:
    """P1 or P2 on every mesh that does not take too long."""
    for domain in case.meshes[: None if degree == 1 else -1]:
        solved(hf.catalogue.poisson(domain, degree=degree, f=case.f_on(domain)))  # compiles
        start = time.process_time()
        u = solved(hf.catalogue.poisson(domain, degree=degree, f=case.f_on(domain)))
        seconds = time.process_time() - start
        row = {"size": u.function_space.dofmap.index_map.size_global, "seconds": seconds}
        row |= case.measured(u)
        if degree == 1:
            bound = hf.explicit_bound(domain)
            row |= {"h": bound.h, "bound": bound.energy(case.certifier.f_norm) / case.norms.H1}
        yield row


def hard(case: Case, network: nn.Module) -> hf.HardBoundary:
    """ℓ N."""
    return hf.HardBoundary(network, case.distance)


def scaled(case: Case, width: int, seed: int) -> nn.Module:
    """An MLP of two hidden layers on inputs in [−1, 1]²."""
    return hf.InputScaling(hf.MLP(2, width=width, depth=2, seed=seed), hf.bounding_box(case.trial))


def deep_ritz(case: Case, width: int, seed: int, steps: int) -> nn.Module:
    """Adam, then L-BFGS, on the quadrature of the trial mesh."""
    network = hard(case, scaled(case, width, seed))
    trainer = hf.DeepRitz(hf.RitzEnergy(case.trial, f=case.f), network, hf.AdamStep(3e-3, steps=steps))
    trainer.run(1)
    trainer.answer = hf.LBFGS(steps=steps)
    trainer.run(1)
    return network


def pinn(case: Case, width: int, seed: int, steps: int) -> nn.Module:
    """The same network and the same steps on the strong residual, 1000 fresh points each."""
    network = hard(case, scaled(case, width, seed))
    problem = hf.catalogue.poisson(case.trial, f=1.0)
    ghosts = hf.RandomGhosts(1000, seed=seed)
    trainer = hf.PINN(problem, network, {"f": case.f}, None, collocation=ghosts, answer=hf.AdamStep(3e-3))
    trainer.run(steps)
    trainer.answer = hf.LBFGS(steps=steps)
    trainer.run(1)
    return network


def neurons(case: Case, K: int, seed: int, starts: int, steps: int) -> nn.Module:
    """K neurons, the best of the starts by its energy."""
    # On few points many neurons become steep between them: take twenty for each unknown.
    n = case.trial.topology.index_map(2).size_global
    degree = next(d for d in (4, 6, 8, 10, 12) if d == 12 or n * points_of(d) >= 20 * 4 * K)
    energy = hf.RitzEnergy(case.trial, f=case.f, degree=degree)
    fits = hf.fit_shallow(energy, K, distance=case.distance, starts=starts, steps=steps, seed=seed)
    return fits.best


def points_of(degree: int) -> int:
    """Of the quadrature on a triangle."""
    return len(basix.make_quadrature(basix.CellType.triangle, degree)[1])


def mean_field(case: Case, K: int, seed: int) -> Any:
    """The relaxation over K candidate neurons, then moved and pruned."""
    energy = hf.RitzEnergy(case.trial, f=case.f)
    penalty = 1e-6 * case.certifier.f_norm
    return hf.mean_field(energy, penalty_tv=penalty, distance=case.distance, dictionary=K, seed=seed)


def hyco(case: Case, width: int, seed: int, rounds: int) -> tuple[hf.PhysicalModel, nn.Module]:
    """κ unknown, from 1/2; 50 sensors; both players answer in every round."""
    domain = case.trial
    problem = hf.catalogue.poisson(domain, kappa=0.5, f=case.f_on(domain))
    physical = hf.PhysicalModel.of(problem, {"kappa": hf.Scalar(0.5, transform=hf.Positive())})
    network = hard(case, scaled(case, width, seed))
    inside = hf.RandomGhosts(50, seed=10_000 + seed).on(physical.domain).draw(0)
    x = inside.gather(inside.x)
    points = hf.Points(domain, x)
    if isinstance(case.exact, fem.Function):
        there = hf.Points(case.exact.function_space.mesh, x)
        y = there.gather(there.evaluate(case.exact))
    else:
        y = points.gather(case.exact(points.x))
    answers = hf.Answers(hf.GaussNewton(steps=2), hf.AdamStep(3e-3, steps=20))
    game = hf.Hyco(physical, network, hf.Data(points, y), hf.RandomGhosts(1000, seed=seed), answers=answers)
    game.run(rounds)
    return physical, network


def rows(case: Case, seeds: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Every method, coarse to fine."""
    for degree in (1, 2):
        for row in elements(case, degree):
            yield {"method": f"P{degree}"} | row
    widths, steps = ((6,), 20) if quick else ((8, 16, 32), 400)
    Ks = (4, 8) if quick else (4, 8, 16, 32, 64, 128, 256)
    for seed in range(seeds):
        for name, method in (("Deep Ritz", deep_ritz), ("PINN", pinn)):
            for width in widths:
                network, seconds = timed(lambda m=method, w=width: m(case, w, seed, steps))  # noqa: B023
                yield of_network(case, name, network, seconds, seed, neurons=2 * width)
        for K in Ks:
            starts, iterations = (2, 10) if quick else (5 if K <= 64 else 2, 200)
            network, seconds = timed(lambda k=K, s=starts, i=iterations: neurons(case, k, seed, s, i))  # noqa: B023
            yield of_network(case, "K neurons", network, seconds, seed, neurons=K)
        for K in Ks[-2:] if quick else (16, 64, 256, 1024):
            fit, seconds = timed(lambda k=K: mean_field(case, k, seed))  # noqa: B023
            row = of_network(case, "mean field", fit.network, seconds, seed, neurons=fit.atoms)
            yield row | {"size": 4 * fit.atoms, "gap": fit.gap, "dictionary": K}
        width = widths[-1]
        (physical, network), seconds = timed(lambda w=width: hyco(case, w, seed, 5 if quick else 60))  # noqa: B023
        found = case.measured(physical.function)
        kappa = float(physical.coefficients["kappa"](torch.zeros((1, 2), dtype=torch.float64))[0])
        size = physical.V.dofmap.index_map.size_global
        yield {"method": "HYCO, physical", "size": size, "seconds": seconds, "seed": seed, "kappa": kappa} | found
        yield of_network(case, "HYCO, synthetic", network, seconds, seed, neurons=2 * width)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds of processor time."""
    start = time.process_time()
    return run(), time.process_time() - start


def of_network(case: Case, name: str, network: nn.Module, seconds: float, seed: int, **more: Any) -> dict[str, Any]:
    """A row."""
    size = trained(network)
    return {"method": name, "size": size, "seconds": seconds, "seed": seed} | more | case.measured(network)


# -- the outcome ---------------------------------------------------------------------------------------------------


def medians(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: the median of each number, with the quartiles of the energy error."""
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in found:
        key = row["method"], row.get("dictionary", row.get("neurons", row["size"]))
        groups.setdefault(key, []).append(row)
    out = []
    for (name, _), group in groups.items():
        numbers = {k: float(np.median([row[k] for row in group])) for k in group[0] if k not in ("method", "seed")}
        low, high = np.percentile([row["energy"] for row in group], [25, 75])
        out.append({"method": name, "seeds": len(group), "low": float(low), "high": float(high)} | numbers)
    return out


def table(found: list[dict[str, Any]]) -> str:
    """The medians as text."""
    lines = [
        f"{'method':16} {'unknowns':>9} {'seconds':>8} {'L2':>9} {'energy':>9} {'certified':>9} {'h_eq':>8}  bound"
    ]
    for row in found:
        bound = f"{row['bound']:.2e}" if "bound" in row else ""
        lines.append(
            f"{row['method']:16} {row['size']:9.0f} {row['seconds']:8.2f} {row['L2']:9.2e} {row['energy']:9.2e} "
            f"{row['certificate']:9.2e} {row['h_eq']:8.2e}  {bound}"
        )
    return "\n".join(lines)


def draw(figure: Any, found: list[dict[str, Any]], title: str) -> None:
    """Energy errors against unknowns and seconds, with the bound."""
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["method"] for row in found))
    for name, marker in zip(names, "os^vDPX*<>", strict=False):
        group = [row for row in found if row["method"] == name]
        y = np.array([row["energy"] for row in group])
        bars = np.abs(np.array([[row["low"] for row in group], [row["high"] for row in group]]) - y)
        for ax, x in ((left, "size"), (right, "seconds")):
            ax.errorbar([row[x] for row in group], y, yerr=bars, marker=marker, ms=5, lw=1.2, label=name)
    bounded = [row for row in found if "bound" in row]
    for ax, x, label in ((left, "size", "unknowns"), (right, "seconds", "seconds")):
        ax.plot(
            [row[x] for row in bounded], [row["bound"] for row in bounded], "k--", lw=1, label="$C_h\\,\\|f\\|$, P1"
        )
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.grid(alpha=0.3)
    left.set_ylabel("relative error in the energy norm")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(title, fontsize=10)


def main() -> None:
    """Solve, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=sorted(CASES), default="square")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few and small, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy_map"))
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    if args.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {args.seeds}")
    out = hf.output_folder(args.out, comm)
    case = CASES[args.case](comm, args.quick)
    found = []
    file = open(out / f"{args.case}.jsonl", "w", encoding="utf-8") if comm.rank == 0 else None  # noqa: SIM115
    for row in rows(case, args.seeds, args.quick):
        found.append(row)
        if file is not None:
            file.write(json.dumps(row) + "\n")
            file.flush()
    if file is not None:
        file.close()
    middle = medians(found)
    title = f"−Δu = f on the {args.case.replace('_', '-')}: medians and quartiles over {args.seeds} seeds"
    hf.save_figure(comm, out / f"{args.case}.png", lambda figure: draw(figure, middle, title), size=(11.0, 4.6))
    case.certifier.close()
    if comm.rank == 0:
        print(table(middle), flush=True)


if __name__ == "__main__":
    hf.run_script(main)
