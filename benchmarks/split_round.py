"""What is gained when each player has a rank of its own?

Poisson with a Gaussian conductivity on triangles, 200 random ghost points, single Adam steps, and a network whose width
is chosen so that the two players cost about the same:

    ratio, ratio_stale  time of a round of the split game on two ranks, with a staleness of 0 and of 1, over that of an
                        alternating round on one rank: medians, the variants in turn
    ratio_processor     ratio in processor time, of the busier rank, without that spent waiting for the other
    physical, synthetic shares of the alternating round: solve, adjoint and step; network, its gradient and step
    busy_ms             processor time of a split round on each side, without waiting

    two_at_once         how much longer a loop of additions takes on both ranks at once than on one: 1 where each has a
                        core to itself, 2 where they share one.  Then `ratio` says more about the machine than about us

While rank 0 plays alone, rank 1 sleeps; one thread a rank.

    mpirun -n 2 python3 -m mpi4py benchmarks/split_round.py    {"ratio": …, "ratio_stale": …, "physical": …, …}
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.game.loop import Clock

COMM = MPI.COMM_WORLD
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
SENSORS = np.random.default_rng(0).uniform(0.05, 0.95, (40, 2))


def game_on(where: hf.Split | MPI.Comm, cells: int, width: int) -> Any:
    """The game, split, or alternating on a communicator."""
    comm = where.comm if isinstance(where, hf.Split) else where
    V = fem.functionspace(mesh.create_unit_square(comm, cells, cells), ("Lagrange", 1))
    V.mesh.topology.create_connectivity(1, 2)
    u, kappa, v = fem.Function(V, name="u"), fem.Function(V, name="kappa"), ufl.TestFunction(V)
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - 10.0 * v) * ufl.dx
    boundary = fem.locate_dofs_topological(V, 1, mesh.exterior_facet_indices(V.mesh.topology))
    bumps = hf.GaussianBumps([2.0], [[0.4, 0.6]], 0.3, background=1.0)
    physical = hf.PhysicalModel(F, u, [fem.dirichletbc(0.0, boundary, V)], {kappa: bumps})
    data = hf.Data(hf.Points(V.mesh, SENSORS), np.sin(np.pi * SENSORS).prod(axis=1), 0.01)
    arguments = (physical, hf.MLP(2, width=width, depth=4), data, hf.RandomGhosts(200))
    if not isinstance(where, hf.Split):
        game: Any = hf.Hyco(*arguments)
        game.clock = ProcessorClock()
        return game
    game = hf.SplitHyco(*arguments, split=where)
    game.clock = game._game.clock = ProcessorClock()
    return game


class ProcessorClock(Clock):
    """Processor seconds by part, on this rank."""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start


def seconds(game: Any, rounds: int) -> np.ndarray:
    """A burst of rounds, for each: wall time, processor time; that of solving, of the network, of waiting.

    From record to record, without the start and the look at the end.
    """
    clock = game.clock
    marks: list[list[float]] = []

    def mark(_: hf.Record) -> None:
        parts = [clock.seconds.get(part, 0.0) for part in ("solve", "network", "wait")]
        marks.append([time.perf_counter(), time.process_time(), *parts])

    game.run(rounds + 1, callbacks=[mark])
    return (np.array(marks[-1]) - np.array(marks[0])) / rounds


def sleep_until(request: MPI.Request) -> None:
    """Wait for the others without taking a core from them."""
    while not request.Test():
        time.sleep(0.01)


def burn() -> float:
    """Seconds for a loop that does nothing of interest."""
    start = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return time.perf_counter() - start


def alone(game: Any, rounds: int) -> np.ndarray:
    """`seconds` on rank 0, while rank 1 sleeps."""
    found = seconds(game, rounds) if COMM.rank == 0 else np.empty(0)
    sleep_until(COMM.Ibarrier())
    return COMM.bcast(found, root=0)


def balanced_width(cells: int) -> int:
    """The width at which the network costs what the solver does."""
    width = WIDTHS[0]
    if COMM.rank == 0:
        off = []
        for candidate in WIDTHS:
            game = game_on(MPI.COMM_SELF, cells, candidate)
            seconds(game, 3)
            solving, network = np.median([seconds(game, 5) for _ in range(3)], axis=0)[2:4]
            off.append(abs(np.log(network / solving)))
            if network > 2 * solving:
                break
        width = WIDTHS[int(np.argmin(off))]
    sleep_until(COMM.Ibarrier())
    return COMM.bcast(width, root=0)


def main() -> None:
    """Play in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=64, help="along each side of the square")
    parser.add_argument("--rounds", type=int, default=20, help="in a burst")
    parser.add_argument("--bursts", type=int, default=15)
    options = parser.parse_args()
    if COMM.size != 2:
        raise SystemExit("start it on two ranks: mpirun -n 2 python3 -m mpi4py benchmarks/split_round.py")
    torch.set_num_threads(1)
    width = balanced_width(options.cells)
    splits = [game_on(hf.Split(COMM, 1, staleness), options.cells, width) for staleness in (0, 1)]
    single = game_on(MPI.COMM_SELF, options.cells, width) if COMM.rank == 0 else None
    found: list[list[np.ndarray]] = []
    crowded: list[float] = []
    for burst in range(options.bursts + 1):
        one = burn() if COMM.rank == 0 else 0.0
        sleep_until(COMM.Ibarrier())
        crowd = burn() / COMM.bcast(one, root=0)
        row = [alone(single, options.rounds), *(seconds(game, options.rounds) for game in splits)]
        if burst > 0:  # the first one warms up
            found.append(row)
            crowded.append(crowd)
    times = np.array(found)  # (bursts, variants, what)
    busy = np.stack(COMM.allgather(times[:, 1, 1] - times[:, 1, 4]))
    wall, alone_cpu = times[:, :, 0], times[:, 0, 1]

    def middle(values: np.ndarray, digits: int = 3) -> float:
        return round(float(np.median(values)), digits)

    report = {
        "ratio": middle(wall[:, 1] / wall[:, 0]),
        "ratio_stale": middle(wall[:, 2] / wall[:, 0]),
        "ratio_processor": middle(busy.max(axis=0) / alone_cpu),
        "physical": middle(times[:, 0, 2] / alone_cpu),
        "synthetic": middle(times[:, 0, 3] / alone_cpu),
        "busy_ms": [middle(1e3 * side, 2) for side in busy],
        "alternating_ms": middle(1e3 * wall[:, 0], 2),
        "split_ms": middle(1e3 * wall[:, 1], 2),
        "stale_ms": middle(1e3 * wall[:, 2], 2),
        "two_at_once": middle(np.array(crowded)),
        "cells": options.cells,
        "width": width,
    }
    if COMM.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
