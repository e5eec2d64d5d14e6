"""What an experiment will take, from a few rounds of it: nothing is written."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.experiment.build import build
from hyco_fem.experiment.game import RULES, GaussNewtonTable, MultiStartTable
from hyco_fem.experiment.schema import Experiment
from hyco_fem.game.baselines import NetworkOnly
from hyco_fem.parallel import is_distributed, max_over_ranks, sum_array
from hyco_fem.pde.choice import free_memory

# Rounds that are timed after the first one, where that is long, and where it is not; what is long, in seconds.
_FEW, _MANY, _LONG = 2, 10, 1.0


@dataclass(frozen=True)
class Estimate:
    """Sizes, and what was measured.  Replicated.

    cells, dofs, theta, phi, sensors: sizes of the whole problem; theta and phi are the unknown numbers of either model.
    solver: how the PDE is solved; in time with the number of steps, and how they are kept for gradients.
    memory: bytes at the peak of the first rounds, on all ranks.  free: on the fullest node.
    first, each: seconds of the first round, and of one after it.  warm_up: seconds before the first round.
    rounds: to be played.  starts: of a search before the first round, each at most as long as it.
    rule: by which weights are chosen before it, which is not timed; None where they are given.
    """

    cells: int
    dofs: int
    theta: int
    phi: int
    sensors: int
    memory: float
    free: float
    first: float
    each: float
    warm_up: float
    rounds: int
    starts: int
    solver: str
    rule: str | None = None

    @property
    def seconds(self) -> float:
        """Of all rounds, if they are like those that were timed."""
        return self.warm_up + self.first * (1 + self.starts) + self.each * (self.rounds - 1)

    def __str__(self) -> str:
        lines = [
            f"mesh      {self.cells} cells",
            f"physical  {self.dofs} dofs, {self.theta} unknown numbers",
            f"solver    {self.solver}",
            f"network   {self.phi} weights",
            f"data      {self.sensors} sensors",
            f"memory    {self.memory / 1e9:.2f} GB on all ranks at the peak, {self.free / 1e9:.2f} GB free",
            f"time      {_duration(self.each)} a round, {_duration(self.seconds)} for {self.rounds} rounds",
        ]
        if self.warm_up:
            lines[-1] += f", {_duration(self.warm_up)} of them for the warm-up"
        if self.starts:
            lines[-1] += f", a search of {self.starts} starts among them"
        if self.rule is not None:
            lines[-1] += f", without the choice of weights ({self.rule})"
        return "\n".join(lines)


def simplified(experiment: Experiment) -> Experiment:
    """The same game from its first round on: no warm-up, no choice of weights, no search for a start."""
    game = experiment.game
    without: dict[str, Any] = dict.fromkeys(RULES[game.weights.rule])
    weights = replace(game.weights, rule="given", **without)
    physical = game.physical
    if isinstance(physical, MultiStartTable):
        names = ("steps", "tolerance", "damping", "anneal", "bounds")
        physical = GaussNewtonTable(type="gauss_newton", **{n: getattr(physical, n) for n in names})
    return replace(experiment, game=replace(game, warm_up=0, weights=weights, physical=physical))


def estimate(experiment: Experiment, comm: MPI.Comm = MPI.COMM_WORLD) -> Estimate:
    """Build the game, and play a few rounds.  Collective.

    Raises:
        As `build`, and as the game.
    """
    built = build(simplified(experiment), comm)
    game, physical = built.game, built.physical
    first = _seconds(comm, lambda: game.run(1))
    timed = _FEW if first > _LONG else _MANY
    each = _seconds(comm, lambda: game.run(timed)) / timed
    warm_up = 0.0
    if experiment.game.warm_up:
        answer = game.answers.synthetic
        alone = NetworkOnly(built.synthetic, built.data, answer)
        answers = -(-experiment.game.warm_up // getattr(answer, "steps", 1))
        warm_up = answers * _seconds(comm, lambda: alone.run(timed)) / timed
    starts = experiment.game.physical.starts if isinstance(experiment.game.physical, MultiStartTable) else 0
    mesh = physical.V.mesh
    imap = physical.V.dofmap
    # On Linux in kB, elsewhere in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
    own = [p.numel() for p in physical.parameters() if p.requires_grad and is_distributed(p)]
    shared = sum(p.numel() for p in physical.parameters() if p.requires_grad and not is_distributed(p))
    memory, fields = sum_array(comm, np.array([peak, float(sum(own))]))
    found = Estimate(
        cells=mesh.topology.index_map(mesh.topology.dim).size_global,
        dofs=imap.index_map.size_global * imap.index_map_bs,
        theta=shared + int(fields),
        phi=sum(p.numel() for p in built.synthetic.parameters() if p.requires_grad),
        sensors=built.data.n,
        memory=float(memory),
        free=comm.allreduce(free_memory(), op=MPI.MIN),
        first=first,
        each=each,
        warm_up=warm_up,
        rounds=experiment.game.rounds,
        starts=starts,
        solver=physical.description,
        rule=None if experiment.game.weights.rule in ("given", "gradient_balance") else experiment.game.weights.rule,
    )
    built.close()
    return found


def _seconds(comm: MPI.Comm, work: Callable[[], object]) -> float:
    comm.Barrier()
    start = time.perf_counter()
    work()
    return float(max_over_ranks(comm, [time.perf_counter() - start])[0])


def _duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(math.ceil(seconds / 60.0), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
