"""Two Gaussians without a minimiser: weights that grow without bound, and Tikhonov terms that stop them.

On (−10, 10), with natural boundary values, the energy

    E(v) = ∫ ½|v′|² + ½v² − fv dx,    f chosen so that its minimiser is u = −2G′,    G(x) = exp(−x²)

is minimised over sums of two Gaussians of unit width, v = w₁ G(x − b₁) + w₂ G(x − b₂).  The quotient

    v_ε = (1/ε) [G(x − ε) − G(x + ε)]

is such a sum.  It stays bounded in H¹ and tends to u, which is none: so E has no minimiser among them, though it is
quadratic and coercive in v.  The demo shows

1. the family: ‖v_ε‖ bounded, ‖v_ε − u‖ like ε², weights 1/ε;
2. a descent by L-BFGS from separate Gaussians: they run into each other, |w| like 1/|b₁ − b₂| (slope −1), and the
   energy falls to its infimum without reaching it;
3. the same descent with λ(|w₁|² + |w₂|²) or λ/|b₁ − b₂|²: weights stay bounded, distances are kept.  As λ → 0 weights
   grow like λ^{−1/6} and distances shrink like λ^{1/6};
4. the convex way: a measure of Gaussians, with λ times its total variation.  It has a minimiser, found here up to a
   duality gap: a few Gaussians of alternate sign, with bounded weights, two more with each smaller λ or so.

    mpirun -n 1 python3 -m mpi4py demos/coercivity.py [--steps N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import mesh

import hyco_fem as hf
from hyco_fem.game.history import write_summary
from hyco_fem.ritz.coercivity import family

# λ of the runs that are drawn, and of the study.
DRAWN = 1e-3
STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def main() -> None:
    """Family, descents, strengths, measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="of the descent that nothing stops")
    parser.add_argument("--out", type=Path, default=Path("out/coercivity"))
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    line = mesh.create_interval(comm, 200, [-10.0, 10.0])
    u = hf.GaussianSlope()
    energy = hf.RitzEnergy(line, f=u.source, eta=1.0, dirichlet=lambda x: np.zeros(x.shape[1], dtype=bool), degree=8)
    infimum = energy.value(u)

    # 1. The family.
    found = family(line, [1.0, 1e-1, 1e-2, 1e-3, 1e-4], u)
    say(f"the family: ‖u‖ = {found.limit:.4f} in H¹")
    say(f"  {'ε':>8} {'weights':>10} {'‖v_ε‖':>9} {'‖v_ε − u‖':>11}")
    for row in zip(found.eps, found.weights, found.norms, found.distances, strict=True):
        say("  {:8.0e} {:10.0f} {:9.4f} {:11.2e}".format(*row))

    # 2. Nothing stops the descent.
    free = hf.minimise_pair(energy, steps=args.steps)
    say()
    say(f"descent without a term: the energy has the infimum {infimum:.6f}")
    say(f"  {'step':>6} {'E − inf E':>10} {'mean |w|':>9} {'|b₁ − b₂|':>10} {'product':>8}")
    last = len(free.energies) - 1
    for k in np.unique(np.geomspace(1, last, 9).astype(int)):
        size, distance = np.abs(free.weights[k]).mean(), free.distances[k]
        say(f"  {k:6d} {free.energies[k] - infimum:10.2e} {size:9.3f} {distance:10.4f} {size * distance:8.4f}")
    slope = free.slope(0.3)
    say(f"  slope of log |w| over log |b₁ − b₂|, below 0.3: {slope:.4f}")

    # 3. The two terms.
    say()
    say("descent with a term:      λ(|w₁|² + |w₂|²)                     λ/|b₁ − b₂|²")
    columns = f"{'|b₁ − b₂|':>10} {'E − inf E':>10}"
    say(f"  {'λ':>8} {'mean |w|':>10} {columns} {'mean |w|':>14} {columns}")
    kinds: tuple[Any, Any] = (hf.WeightTikhonov, hf.DistanceTikhonov)
    runs = {(kind, s): hf.minimise_pair(energy, kind(s), steps=400) for s in STRENGTHS for kind in kinds}
    for s in STRENGTHS:
        text = f"  {s:8.0e}"
        for kind, pad in zip(kinds, (10, 14), strict=True):
            size, distance, value = end(runs[kind, s])
            text += f" {size:{pad}.3f} {distance:10.4f} {value - infimum:10.2e}"
        say(text)
    rates = {}
    for kind in kinds:
        ends = np.array([end(runs[kind, s])[:2] for s in STRENGTHS[-3:]])
        rate = rates[kind.__name__] = np.polyfit(np.log(STRENGTHS[-3:]), np.log(ends), 1)[0].tolist()
        say(f"  rates of {kind.__name__}: |w| ~ λ^{rate[0]:.4f}, |b₁ − b₂| ~ λ^{rate[1]:.4f}")

    # 4. Measures.
    say()
    say("measures of Gaussians, λ ‖μ‖_TV:")
    say(f"  {'λ':>8} {'atoms':>6} {'‖μ‖_TV':>9} {'E − inf E':>10} {'gap':>9} {'gap over all Gaussians':>23}")
    measures = []
    for s in (1e-1, 1e-2, 1e-3):
        fit = hf.mean_field(energy, penalty_tv=s, activation="gaussian", width=1.0, dictionary=64, growth=10, moves=100)
        measures.append([s, fit.atoms, fit.tv, fit.energy - infimum, fit.gap, fit.continuous_gap])
        say("  {:8.0e} {:6d} {:9.3f} {:10.2e} {:9.1e} {:23.1e}".format(*measures[-1]))

    held = [runs[kind, DRAWN] for kind in kinds]
    picture(out, comm, [free, *held], infimum)
    summary = {
        "demo": "coercivity",
        "slope": slope,
        "rates": rates,
        "largest_weight": {"free": top(free), "weights": top(held[0]), "distance": top(held[1])},
        "family": {"weights": found.weights.tolist(), "norms": found.norms.tolist(), "limit": found.limit},
        "measures": measures,
    }
    write_summary(out, comm, summary)
    say()
    say(f"picture and summary in {out}/")


def end(run: hf.CoercivityRun) -> tuple[float, float, float]:
    """Mean weight, distance and energy at the end of a descent."""
    return float(np.abs(run.weights[-1]).mean()), float(run.distances[-1]), float(run.energies[-1])


def top(run: hf.CoercivityRun) -> float:
    """Largest weight at the end."""
    return float(np.abs(run.weights[-1]).max())


def picture(out: Path, comm: MPI.Comm, runs: list[hf.CoercivityRun], infimum: float) -> None:
    """Energies, weights and distances along the three descents."""
    names = ("no term", r"$\lambda(|w_1|^2 + |w_2|^2)$", r"$\lambda/|b_1 - b_2|^2$")
    styles: tuple[dict[str, Any], ...] = ({"color": "C3"}, {"color": "C0"}, {"color": "C2", "ls": "--"})
    panels = (
        ("energy above its infimum", lambda r: r.energies - infimum),
        (r"mean $|w_j|$", lambda r: np.abs(r.weights).mean(axis=1)),
        (r"distance $|b_1 - b_2|$", lambda r: r.distances),
    )

    def draw(figure: Any) -> None:
        longest = max(len(r.energies) for r in runs)
        for ax, (title, of) in zip(figure.subplots(1, 3), panels, strict=True):
            for run, name, style in zip(runs, names, styles, strict=True):
                y = of(run)
                ax.loglog(np.arange(1, len(y) + 1), y, label=name, **style)
                # A descent that has ended stays where it is.
                ax.loglog([len(y), longest], [y[-1], y[-1]], lw=0.8, **(style | {"ls": ":"}))
            ax.set_title(title, fontsize=11)
            ax.set_xlabel("step of L-BFGS")
            ax.grid(alpha=0.3, which="both", lw=0.4)
        figure.axes[0].legend(fontsize=9, title=rf"$\lambda = 10^{{{np.log10(DRAWN):.0f}}}$")

    hf.save_figure(comm, out / "coercivity.png", draw, size=(13, 4))


if __name__ == "__main__":
    hf.run_script(main)
