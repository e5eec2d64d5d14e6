"""An unknown inclusion in a plate with a hole, found from forty thermometers: the main job.

The plate (see plate_problem.py) is read from a gmsh mesh, the measurements from a CSV file.  Four things are fitted to
them, with the same data and the same number of steps:

    physics only     the PDE alone, min_θ L_phy
    network only     the network alone, min_φ L_syn
    HYCO             both, pulled towards each other at 200 ghost points drawn afresh each round:
                     its physical model (a conductivity and a temperature) and its synthetic one (a network)

The misfits are scaled by the noise, so L ≈ 1 where a model fits as well as the truth does.  For the network the weight
of the interaction is b₂ = 1/σ²: a difference from the PDE at a ghost point counts as much as one from a measurement.
The PDE, with five unknowns, trusts the measurements more: b₁ = 0.1/σ².

    mpirun -n 2 python3 -m mpi4py demos/plate_with_hole.py [--rounds N] [--out FOLDER]

Results: summary.json, history.csv, fields.xdmf (for ParaView) and plate_with_hole.png in the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem
from plate_problem import MESH, SENSORS, TRUTH, problem, true_conductivity, true_solution

import hyco_fem as hf

# Start: no inclusion to speak of, in the middle of the right half, and a background that is off by half.
START = {"background": 1.5, "amplitudes": [0.5], "centres": [[1.2, 0.4]], "widths": [0.35]}


def physical_model(plate: hf.MeshAndTags) -> hf.PhysicalModel:
    """The PDE on P1 elements with the unknown conductivity at its start."""
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    u, kappa = fem.Function(V, name="u"), fem.Function(V, name="kappa")
    F, bcs = problem(plate, kappa, u)
    bump = hf.GaussianBumps(**START, trainable=("background", "amplitudes", "centres", "widths"))
    return hf.PhysicalModel(F, u, bcs, {kappa: bump}, positive=[kappa])


def network(mesh: Any) -> hf.InputScaling:
    """Three hidden layers of 64 neurons, inputs scaled to [−1, 1]²."""
    return hf.InputScaling(hf.MLP(2, 1, width=64, depth=3, activation="tanh"), hf.bounding_box(mesh))


def parameter_error(physical: hf.PhysicalModel) -> float:
    """Relative Euclidean error of (κ₀, A, c, w)."""
    bump = physical.coefficients["kappa"]
    parts = (bump.background, bump.amplitudes, bump.centres, bump.widths.abs())
    found = np.concatenate([p.detach().numpy().ravel() for p in parts])
    truth = np.array([TRUTH["background"], TRUTH["amplitude"], *TRUTH["centre"], TRUTH["width"]])
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def main() -> None:
    """Fit, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1200, help="rounds of HYCO, and steps of each baseline")
    parser.add_argument("--out", type=Path, default=Path("out/plate_with_hole"), help="output folder")
    parser.add_argument("--sensors", type=Path, default=SENSORS, help="CSV with x, y, value, noise_std")
    parser.add_argument("--mesh", type=Path, default=MESH, help="gmsh file with the groups of plate_with_hole.geo")
    args = parser.parse_args()

    comm = MPI.COMM_WORLD
    threads = hf.limit_threads(comm)
    out = hf.output_folder(args.out, comm)
    plate = hf.read_mesh(args.mesh, comm)
    sensors = hf.read_sensors(args.sensors, comm)
    if sensors.noise_std is None:
        raise ValueError(f"{sensors.source} needs a column noise_std: the weights are scaled by the noise")
    data = sensors.on(plate.mesh)
    vertices = plate.mesh.geometry.index_map().size_global

    def say(text: str = "") -> None:
        if comm.rank == 0:
            print(text, flush=True)

    say(f"plate with a hole: {vertices} vertices, {data.n} sensors; {comm.size} rank(s), {threads} thread(s) each")
    variance = np.mean(sensors.noise_std**2)
    weights = hf.Weights(b1=0.1 / variance, b2=1.0 / variance)
    answers = hf.Answers(physical=hf.AdamStep(1e-2), synthetic=hf.AdamStep(2e-3))
    physics, alone = physical_model(plate), network(plate.mesh)
    say("physics only")
    with hf.progress(args.rounds, comm, "  ") as shown:
        hf.PhysicsOnly(physics, data, answers.physical).run(args.rounds, callbacks=[shown])
    say("network only")
    with hf.progress(args.rounds, comm, "  ") as shown:
        hf.NetworkOnly(alone, data, answers.synthetic).run(args.rounds, callbacks=[shown])
    say("HYCO")
    physical, synthetic = physical_model(plate), network(plate.mesh)
    game = hf.Hyco(physical, synthetic, data, hf.RandomGhosts(200), weights=weights, answers=answers, warm_up=200)
    with hf.HistoryFile(out / "history.csv", comm) as file, hf.progress(args.rounds, comm, "  ") as shown:
        result = game.run(args.rounds, callbacks=[file, shown])

    # Errors against the P3 solution with the true conductivity on this mesh: its own error is far below all others.
    truth = true_solution(plate, degree=3)
    points = hf.quadrature_points(plate.mesh, 4)
    rows = {
        "HYCO physical": (hf.relative_l2(physical.function, truth, points), parameter_error(physical)),
        "HYCO synthetic": (hf.relative_l2(synthetic, truth, points), None),
        "physics only": (hf.relative_l2(physics.function, truth, points), parameter_error(physics)),
        "network only": (hf.relative_l2(alone, truth, points), None),
    }
    say(f"\n{'':16s}relative L² of u   parameter error")
    for name, (u_error, theta_error) in rows.items():
        say(f"{name:16s}{u_error:16.6g}   {'—' if theta_error is None else f'{theta_error:.6g}':>15s}")
    found = ", ".join(f"{k.removeprefix('kappa.')} {np.round(v, 4).tolist()}" for k, v in result.parameters.items())
    say(f"HYCO found {found}; truth {TRUTH}")

    write(out, comm, plate, physical, synthetic, truth, sensors, result, rows)
    say(f"written to {out}/: summary.json, history.csv, fields.xdmf, plate_with_hole.png")


def write(out, comm, plate, physical, synthetic, truth, sensors, result, rows) -> None:  # type: ignore[no-untyped-def]
    """Table, history, fields and picture."""
    result.save(out, comm, {"table": {k: {"relative_l2_u": a, "parameter_error": b} for k, (a, b) in rows.items()}})
    V = physical.V
    u_true = hf.as_function(V, truth, "u_true")
    u_phy = hf.as_function(V, physical.function, "u_physical")
    u_syn = hf.as_function(V, synthetic, "u_synthetic")
    kappa_true = hf.as_function(V, true_conductivity(plate.mesh), "kappa_true")
    kappa = hf.as_function(V, physical.coefficients["kappa"], "kappa")
    hf.write_fields(out / "fields.xdmf", [u_true, u_phy, u_syn, kappa_true, kappa])

    raster = hf.Raster(plate.mesh, pixels=400)
    images = {f.name: raster.image(f) for f in (u_true, u_phy, u_syn, kappa_true, kappa)}
    difference = images["u_physical"] - images["u_synthetic"]

    def draw(figure: Any) -> None:
        axes = figure.subplots(2, 4)
        u_range = {"vmin": np.nanmin(images["u_true"]), "vmax": np.nanmax(images["u_true"])}
        k_range = {"vmin": 0.9, "vmax": np.nanmax(images["kappa_true"]), "cmap": "magma"}
        hf.show(axes[0, 0], raster, images["u_true"], "truth: u (K), and the sensors", **u_range)
        hf.show(axes[0, 1], raster, images["u_physical"], "HYCO physical model: u (K)", **u_range)
        hf.show(axes[0, 2], raster, images["u_synthetic"], "HYCO synthetic model: u (K)", **u_range)
        limit = np.nanmax(np.abs(difference))
        hf.show(axes[0, 3], raster, difference, "physical − synthetic (K)", cmap="RdBu_r", vmin=-limit, vmax=limit)
        hf.show(axes[1, 0], raster, images["kappa_true"], "truth: κ (W/m/K)", **k_range)
        hf.show(axes[1, 1], raster, images["kappa"], "HYCO: κ (W/m/K)", **k_range)
        for ax in (axes[0, 0], axes[0, 3]):
            ax.scatter(*sensors.x.T, s=9, c="white", edgecolors="black", linewidths=0.6)
        losses(axes[1, 2], result)
        unknowns(axes[1, 3], result)

    hf.save_figure(comm, out / "plate_with_hole.png", draw, size=(17, 5.4))


def losses(ax: Any, result: hf.Result) -> None:
    """L_phy, L_syn and I over the rounds."""
    rounds = [r.round for r in result.history]
    ax.semilogy(rounds, [r.misfit_physical for r in result.history], label="$L_{phy}$")
    ax.semilogy(rounds, [r.misfit_synthetic for r in result.history], label="$L_{syn}$")
    ax.semilogy(rounds, [r.interaction for r in result.history], label="$I$ (K²)", lw=0.7)
    ax.set_title("losses", fontsize=10)
    ax.set_xlabel("round")
    ax.legend(fontsize=8)


def unknowns(ax: Any, result: hf.Result) -> None:
    """Unknown numbers over the rounds, with their true values dotted."""
    rounds = [r.round for r in result.history]
    truth = [TRUTH["background"], TRUTH["amplitude"], *TRUTH["centre"], TRUTH["width"]]
    table = [r.flat() for r in result.history]
    names = [k for k in table[0] if k.startswith("kappa.")]
    labels = {"background": "κ₀", "amplitudes[0]": "A", "centres[0,0]": "c₁", "centres[0,1]": "c₂", "widths[0]": "w"}
    order = list(labels)
    for name in sorted(names, key=lambda n: order.index(n.removeprefix("kappa."))):
        key = name.removeprefix("kappa.")
        (line,) = ax.plot(rounds, [row[name] for row in table], label=labels[key])
        ax.axhline(truth[order.index(key)], color=line.get_color(), ls=":", lw=1)
    ax.set_title("unknowns (dotted: truth)", fontsize=10)
    ax.set_xlabel("round")
    ax.legend(fontsize=8, ncols=2)


if __name__ == "__main__":
    hf.run_script(main)
