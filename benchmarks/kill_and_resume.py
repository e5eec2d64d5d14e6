"""Does a run survive kill -9?

A game of a field and a network under mpirun, with a checkpoint every 10 rounds.  Once it is played to its end.  Then
again, and at random moments one of its ranks, or all of them, are killed; each time it goes on from its last whole
checkpoint.  Told are the most lines of the history that a restart had to play again, and the largest relative
differences between the two, in κ(θ) at 40 places, φ, and the history.

    python3 benchmarks/kill_and_resume.py [--kills 50] [--ranks 2 3 …] [--rounds 700]
                {"kills": …, "of_all_ranks": …, "interval": 10, "most_lines_again": …, "theta_error": …, …}

With several numbers of ranks the starts take turns: the differences then are those of rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf

INTERVAL = 10
PLACES = np.random.default_rng(1).uniform(0.05, 0.95, (40, 2))
OPEN_MPI = "Open MPI" in MPI.Get_library_version()


# -- the run that is killed --------------------------------------------------------------------------------------


def game_on(comm: MPI.Comm) -> hf.Hyco:
    """−∇·(κ∇u) = 10 with κ unknown at every dof, from 40 sensors."""
    V = fem.functionspace(mesh.create_unit_square(comm, 8, 8), ("Lagrange", 1))
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - 10.0 * v * ufl.dx
    V.mesh.topology.create_connectivity(1, 2)
    dofs = fem.locate_dofs_topological(V, 1, mesh.exterior_facet_indices(V.mesh.topology))
    field = hf.NodalField(V, 1.0, hf.Positive())
    model = hf.PhysicalModel(F, u, [fem.dirichletbc(0.0, dofs, V)], {kappa: field}, positive=[kappa])
    data = hf.Data(hf.Points(V.mesh, PLACES), 0.5 * np.sin(3 * PLACES[:, 0]), 0.05)
    network = hf.MLP(2, width=20, depth=2, seed=0)
    return hf.Hyco(model, network, data, hf.RandomGhosts(50), answers=hf.Answers(hf.AdamStep(1e-2), hf.AdamStep(1e-3)))


def play(folder: Path, rounds: int) -> None:
    """Go on with the run in a folder to its end, and write what came of it."""
    comm = MPI.COMM_WORLD
    torch.set_num_threads(1)
    game = game_on(comm)
    with hf.Checkpoints(folder / "checkpoints", game, seconds=None, rounds=INTERVAL) as checkpoints:
        done = checkpoints.resume()
        at = {"pid": os.getpid(), "round": done.round if done else 0}
        hf.files.replace_file(folder / f"rank-{comm.rank}.json", lambda p: p.write_text(json.dumps(at)))
        result = game.run(rounds, callbacks=[checkpoints])
    result.save(folder, comm)
    points = hf.Points(game.physical.V.mesh, PLACES)
    kappa = points.gather(points.evaluate(game.physical.coefficient_values()[0].detach(), game.physical.V))
    phi = np.concatenate([p.detach().numpy().ravel() for p in game.synthetic.parameters()])
    if comm.rank == 0:
        hf.files.replace_file(folder / "end.npz", lambda p: np.savez(p, theta=kappa, phi=phi))


# -- who kills it ------------------------------------------------------------------------------------------------


def start(folder: Path, ranks: int, rounds: int) -> subprocess.Popen:
    """The run, on so many ranks, in the background."""
    command = ["mpirun", "-n", str(ranks), *(["--oversubscribe"] if OPEN_MPI else [])]
    command += [sys.executable, "-m", "mpi4py", __file__, "--play", str(folder), "--rounds", str(rounds)]
    quiet = subprocess.DEVNULL
    inner = ("OMPI_COMM", "OMPI_UNIVERSE", "PMIX_", "PMI_")  # of an MPI that this process has started by itself
    environment = {k: v for k, v in os.environ.items() if not k.startswith(inner)}
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE, text=True, env=environment)


def ready(folder: Path, ranks: int, run: subprocess.Popen) -> list[dict]:
    """Process and first round of each rank, as soon as all are about to play."""
    files = [folder / f"rank-{k}.json" for k in range(ranks)]
    end = time.monotonic() + 120.0
    while not all(file.exists() for file in files):
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            raise RuntimeError(f"the run did not start: {run.communicate()[1]}")
        time.sleep(0.01)
    return [json.loads(file.read_text()) for file in files]


def ended(run: subprocess.Popen) -> str:
    """What mpirun had to say, once it has ended; it is not asked twice."""
    try:
        return run.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        run.kill()
        return run.communicate()[1]


def lines(folder: Path) -> int:
    """Whole lines of the history."""
    log = folder / "checkpoints" / "history.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def killed(folder: Path, ranks: list[int], rounds: int, kills: int, seconds: float) -> dict[str, int]:
    """Play to the end, with at most so many kills on the way; `seconds` is about what the run takes without."""
    rng = np.random.default_rng(0)
    counts = {"kills": 0, "of_all_ranks": 0, "most_lines_again": 0}
    seen = 0
    for n in islice(cycle(ranks), 4 * kills + 4):
        for file in folder.glob("rank-*.json"):
            file.unlink()
        run = start(folder, n, rounds)
        at = ready(folder, n, run)
        counts["most_lines_again"] = max(counts["most_lines_again"], seen - at[0]["round"])
        struck = False
        if counts["kills"] < kills:
            # Some kills before a checkpoint, some in the middle of it, some after two.
            time.sleep(rng.uniform(0.0, 3.0 * INTERVAL * seconds / rounds))
            everyone = bool(rng.integers(2))
            victims = at if everyone else [at[rng.integers(n)]]
            if run.poll() is None and not (folder / "end.npz").exists():
                for victim in victims:
                    os.kill(victim["pid"], signal.SIGKILL)
                struck = True
                counts["kills"] += 1
                counts["of_all_ranks"] += everyone
        said = run.communicate()[1] if counts["kills"] == kills and not struck else ended(run)
        seen = lines(folder)
        if (folder / "end.npz").exists():
            return counts
        if not struck:
            raise RuntimeError(f"the run failed by itself: {said}")
    raise RuntimeError("the run does not come to its end")


def outcome(folder: Path) -> dict[str, np.ndarray]:
    """Numbers at the end of a run, and its history."""
    table = np.genfromtxt(folder / "history.csv", delimiter=",", skip_header=1)
    with np.load(folder / "end.npz") as end:
        return {"theta": end["theta"], "phi": end["phi"], "history": table}


def main() -> None:
    """Play both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=700)
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play is not None:
        play(options.play, options.rounds)
        return
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name) / "whole", Path(name) / "broken"
        for folder in (whole, broken):
            folder.mkdir()
        run = start(whole, options.ranks[0], options.rounds)
        ready(whole, options.ranks[0], run)
        began = time.monotonic()
        said = run.communicate()[1]
        seconds = time.monotonic() - began
        if run.returncode:
            raise RuntimeError(said)
        counts = killed(broken, options.ranks, options.rounds, options.kills, seconds)
        expected, found = outcome(whole), outcome(broken)
    report: dict[str, float] = {"interval": INTERVAL, "seconds": round(seconds, 1), **counts}
    report |= {"lines": len(found["history"]), "lines_without": len(expected["history"])}
    for key, value in expected.items():
        scale = np.nanmax(np.abs(value), axis=0) + 1e-300
        report[f"{key}_error"] = float(np.nanmax(np.abs(found[key] - value) / scale))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
