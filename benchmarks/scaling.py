"""How do time and memory grow with ranks and dofs?

Value and gradient (coefficients, assembly, one forward and one adjoint solve) by the four parameters of a Gaussian
conductivity, Poisson, P1 triangles, conjugate gradients with algebraic multigrid:

    speed_up        263 k dofs: time on one rank over time on two
    growth          two ranks: time per dof at a million dofs over that at 66 k
    kB_per_dof      a million dofs on two ranks: peak memory over dofs, in 1000 bytes

Times are the shortest of some rounds, each that of the slowest rank; one and two ranks are started in turn, several
times, to share the machine's moods.  On a machine that others use too look at `speed_up_processor` and
`growth_processor`: the same in processor time, which leaves out the wait for a core, but not all of the wait for the
other rank, so that the speed-up is rather too small.

Memory is the growth of the peak resident set (getrusage, ru_maxrss) from after the imports to after the first value
and gradient, summed over the ranks: mesh, form compilation if it is not cached, matrices, multigrid, sensors, and all
that is freed again in between; pages that the ranks share through MPI count for each.

    python3 benchmarks/scaling.py            {"speed_up": …, "growth": …, "kB_per_dof": …, …}
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from poisson import AMG, Poisson, label, last_line, run_again

from hyco_fem.parallel import max_over_ranks

COMM = MPI.COMM_WORLD


def timed(problem: Poisson, k: int) -> np.ndarray:
    """Seconds, and seconds of processor time, of the slowest rank for a value and gradient, started together."""
    problem.move(k)
    COMM.Barrier()
    start = np.array([time.perf_counter(), time.process_time()])
    problem.value_and_gradient()
    return max_over_ranks(COMM, np.array([time.perf_counter(), time.process_time()]) - start)


def peak() -> float:
    """Largest resident memory of this process so far, in bytes (Linux)."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def on_these_ranks(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Times of all sizes in turn, and the memory that the first one takes."""
    before = peak()
    problems = [Poisson(COMM, sizes[0], petsc_options=AMG)]
    problems[0].value_and_gradient()
    memory = COMM.allreduce(peak() - before)
    for cells in sizes[1:]:
        problems.append(Poisson(COMM, cells, petsc_options=AMG))
        problems[-1].value_and_gradient()
    seconds = np.min([[timed(p, k) for p in problems] for k in range(rounds)], axis=0)
    return {"dofs": [p.dofs for p in problems], "seconds": seconds.tolist(), "memory": memory}


def measure(middle: int, small: int, large: int, starts: int, rounds: int) -> dict[str, Any]:
    """Start the ranks and put the answers together."""
    shortest = {1: np.full(2, np.inf), 2: np.full(2, np.inf)}
    for _ in range(starts):
        for ranks in shortest:
            found = last_line(run_again(__file__, "--ranks-of", middle, "--rounds", rounds, ranks=ranks))
            shortest[ranks] = np.minimum(shortest[ranks], found["seconds"][0])
    last = last_line(run_again(__file__, "--ranks-of", large, small, "--rounds", rounds, ranks=2))
    per_dof = np.array(last["seconds"]) / np.array(last["dofs"])[:, None]
    speed_up, growth = shortest[1] / shortest[2], per_dof[0] / per_dof[1]
    names = [label(found["dofs"][0]) + ending for ending in ("_1_rank", "_2_ranks")]
    names += [label(dofs) + "_2_ranks" for dofs in last["dofs"]]
    seconds = [shortest[1], shortest[2], *last["seconds"]]
    return {
        "speed_up": round(speed_up[0], 3),
        "growth": round(growth[0], 3),
        "kB_per_dof": round(last["memory"] / last["dofs"][0] / 1e3, 3),
        "speed_up_processor": round(speed_up[1], 3),
        "growth_processor": round(growth[1], 3),
        "seconds": {name: round(s[0], 4) for name, s in zip(names, seconds, strict=True)},
        "processor_seconds": {name: round(s[1], 4) for name, s in zip(names, seconds, strict=True)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cells", type=int, nargs=3, default=[512, 256, 1000], help="squares along a side (speed-up; growth from, to)"
    )
    parser.add_argument("--starts", type=int, default=3, help="how often one and two ranks are started")
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds after each start")
    parser.add_argument("--ranks-of", type=int, nargs="+", help="(internal) measure on the ranks of this mpirun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.ranks_of:
        report = on_these_ranks(options.ranks_of, options.rounds)
    elif COMM.size > 1:
        parser.error("start it without mpirun: it starts its own")
    else:
        report = measure(*options.cells, options.starts, options.rounds)
    if COMM.rank == 0:
        print(json.dumps(report))
