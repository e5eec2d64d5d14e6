"""Is the gradient of an experiment's PDE right, and does the number of ranks change its numbers?"""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

import numpy as np

from hyco_fem.experiment.build import build
from hyco_fem.experiment.estimate import simplified
from hyco_fem.experiment.schema import Experiment
from hyco_fem.verify import InvarianceResult, TaylorResult, dot_product_test, rank_invariance, taylor_test

# |⟨T δm, w⟩ − ⟨δm, Tᵀ w⟩|, relative: rounding, and the tolerance of iterative solves.
_TRANSPOSE = 1e-7


@dataclass(frozen=True)
class Checks:
    """taylor: of the gradient.  transpose: relative defect of ⟨T δm, w⟩ = ⟨δm, Tᵀ w⟩.  ranks: on 1 … N ranks."""

    taylor: TaylorResult
    transpose: float
    ranks: InvarianceResult

    @property
    def failed(self) -> list[str]:
        """What is wrong, in words."""
        return [
            text
            for ok, text in (
                (self.taylor.ok, "the gradient is not that of the PDE"),
                (self.transpose <= _TRANSPOSE, "the adjoint is not the transpose of the tangent"),
                (self.ranks.ok, "the number of ranks changes the numbers"),
            )
            if not ok
        ]

    def __str__(self) -> str:
        n = self.ranks.sizes[-1]
        worst = max(self.ranks.differences.values())
        ranks = f"1 to {n} ranks differ by {worst:.1e} at most" if n > 1 else "on one rank there is nothing to compare"
        lines = ["gradient (Taylor test)", str(self.taylor), f"adjoint and tangent differ by {self.transpose:.1e}"]
        return "\n".join([*lines, f"losses and gradients: {ranks}"])


def check(experiment: Experiment, comm: MPI.Comm = MPI.COMM_WORLD, *, tolerance: float = 1e-10) -> Checks:
    """Taylor test, dot product test, and the first round on 1 … N ranks of `comm`.  Collective.

    Raises:
        As `build`.
    """
    experiment = simplified(experiment)
    built = build(experiment, comm)
    taylor, transpose = taylor_test(built.physical), dot_product_test(built.physical)
    built.close()

    def numbers(part: MPI.Comm) -> dict[str, float]:
        game = build(experiment, part)
        row = game.game.run(1).history[0].flat()
        game.close()
        return {name: float(value) for name, value in row.items() if not np.isnan(value)}

    return Checks(taylor, transpose, rank_invariance(numbers, comm=comm, tolerance=tolerance))
