"""Where does a round of HYCO go?

Case 1 as published: 18 × 18 mesh, 200 random ghost points, the 2–256–256–1 network, one step of each player.  The
network's own step (forward, backward, Adam, on the same points) and the solves (forward and adjoint) are also timed by
themselves; what a round takes beyond these two is the cost of the game, ghost points included.

    python3 benchmarks/round_cost.py    {"round_ms": …, "solve_ms": …, "ghosts_ms": …, "network_ms": …, "rest_share": …}
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "demos"))
import helmholtz

import hyco_fem as hf


def alone(step: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Time blocks of each in turn, report medians."""
    torch.set_num_threads(1)
    comm = MPI.COMM_SELF
    start = np.array([2.0, 0.5, 0.5, 2.0, 0.5, 0.4])
    physical = helmholtz.physical_model(comm, start)
    data = helmholtz.sensors(physical, np.random.default_rng(0))
    game = hf.Hyco(physical, helmholtz.network(physical, 0, False), data, hf.RandomGhosts(200), warm_up=10)
    game.run(10)

    net = helmholtz.network(physical, 1, False)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    x = torch.rand(225, 2, dtype=torch.float64)
    solver = physical.solver
    values = [v.detach().numpy() for v in physical.coefficient_values()]
    ghosts = game.sampler

    def network_step() -> None:
        adam.zero_grad()
        net(x).square().mean().backward()
        adam.step()

    def solves() -> None:
        u = solver.forward(values)
        solver.adjoint(solver.state, u)

    def draw() -> None:
        points = ghosts.draw(game.next_round)
        points.evaluate(physical.function)

    rows = []
    for _ in range(300):
        round_ms = alone(lambda: game.round(game.next_round))
        game.next_round += 1
        rows.append((round_ms, alone(solves), alone(draw), alone(network_step)))
    round_ms, solve_ms, ghosts_ms, network_ms = np.median(rows, axis=0)
    rest = np.median([(r - s - n) / r for r, s, _, n in rows])
    names = {"round_ms": round_ms, "solve_ms": solve_ms, "ghosts_ms": ghosts_ms, "network_ms": network_ms}
    print(json.dumps({k: round(float(v), 3) for k, v in names.items()} | {"rest_share": round(float(rest), 3)}))


if __name__ == "__main__":
    main()
