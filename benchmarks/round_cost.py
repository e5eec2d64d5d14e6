"""Where does a round of HYCO go?

Case 1 as published: 18 × 18 mesh, 200 random ghost points, the 2–256–256–1 network, one step of each player.  Timed
inside the rounds, where caches are as they are in use:

    solve     the physical model's value and gradient: coefficients, forward solve, adjoint, gradient by θ
    network   the network's own step: forward, backward, optimiser, and its values for the other player
    ghosts    drawing the ghost points and evaluating the solution there
    rest      what remains of the round, ghosts included, as a share

    python3 benchmarks/round_cost.py    {"round_ms": …, "solve_ms": …, "ghosts_ms": …, "network_ms": …, "rest_share": …}
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "demos"))
import helmholtz

import hyco_fem as hf
from hyco_fem.game import hyco as game_module
from hyco_fem.game import objective as objective_module

ROUNDS = 400


class Stopwatch:
    """Adds up the time of chosen calls within each round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of owner.name as `part`."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            if self.rounds:
                self.rounds[-1][part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def main() -> None:
    """Play rounds, print medians."""
    torch.set_num_threads(1)
    physical = helmholtz.physical_model(MPI.COMM_SELF, np.array([2.0, 0.5, 0.5, 2.0, 0.5, 0.4]))
    data = helmholtz.sensors(physical, np.random.default_rng(0))
    game = hf.Hyco(physical, helmholtz.network(physical, 0, False), data, hf.RandomGhosts(200), warm_up=10)
    game.run(20)
    clock = Stopwatch()
    player, network = game.players
    clock.watch(physical, "solve", "solve")
    clock.watch(player, "look", "solve")
    for module in (game_module, objective_module):
        clock.watch(module, "network_values", "network")
    clock.watch(network, "look", "network")
    clock.watch(network.method.optimiser, "step", "network")
    for _ in range(ROUNDS):
        before = dict(game.clock.seconds)
        clock.rounds.append(defaultdict(float))
        start = time.perf_counter()
        game.round(game.next_round)
        clock.rounds[-1]["round"] = time.perf_counter() - start
        clock.rounds[-1]["ghosts"] = game.clock.seconds["ghosts"] - before["ghosts"]
        game.next_round += 1
    parts = ("round", "solve", "ghosts", "network")
    report = {f"{part}_ms": round(1e3 * float(np.median([r[part] for r in clock.rounds])), 3) for part in parts}
    rest = np.median([1.0 - (r["solve"] + r["network"]) / r["round"] for r in clock.rounds])
    print(json.dumps(report | {"rest_share": round(float(rest), 3)}))


if __name__ == "__main__":
    main()
