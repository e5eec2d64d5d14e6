"""Whether a point is a Nash equilibrium, and how far its θ can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.game.baselines import PhysicsOnly
from hyco_fem.game.gauss_newton import GaussNewton, Rows, reduced, root
from hyco_fem.game.history import write_summary
from hyco_fem.game.hyco import Hyco
from hyco_fem.game.identify import Identifiability, entry_names, identify
from hyco_fem.game.objective import Opponent, PhysicalObjective, SyntheticObjective
from hyco_fem.game.player import Player, flat, put_flat
from hyco_fem.parallel import agreed, is_distributed, sum_array


@dataclass(frozen=True)
class TrustReport:
    """What is known of a point (θ, φ).  Replicated.

    gain_physical, gain_synthetic: by which fraction each player could still lower its own J if the other stood still,
        as found by Gauss–Newton steps from here: an ε-Nash equilibrium has both below ε.  NaN for a player that is not
        there.
    nash: whether both are below `tolerance`.
    from_data: identifiability of θ from the physical player's own data, without a prior; None where it has none.
    with_network: the same with the network's values at the ghost points taken as data (weights b₁/a₁); None where the
        network has no say, or the data none.
    """

    gain_physical: float
    gain_synthetic: float
    tolerance: float
    from_data: Identifiability | None
    with_network: Identifiability | None

    @property
    def nash(self) -> bool:
        """Whether no player can gain more than `tolerance`."""
        return bool(np.nanmax([self.gain_physical, self.gain_synthetic]) <= self.tolerance)

    def __str__(self) -> str:
        verdict = "a Nash equilibrium" if self.nash else "no Nash equilibrium"
        lines = [
            f"{verdict} to {self.tolerance:g}: on its own the physical player could lower its objective by "
            f"{_percent(self.gain_physical)}, the synthetic one by {_percent(self.gain_synthetic)}"
        ]
        if self.from_data is not None:
            lines.append(str(self.from_data))
        return "\n".join(lines)

    def save(self, folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD) -> None:
        """Write summary.json into a folder.  Collective; raises OSError on all ranks."""
        entries: dict[str, Any] = {
            "nash": self.nash,
            "gain_physical": self.gain_physical,
            "gain_synthetic": self.gain_synthetic,
            "tolerance": self.tolerance,
        }
        for name in ("from_data", "with_network"):
            part = getattr(self, name)
            entries[name] = None if part is None else vars(part)
        write_summary(folder, comm, entries)


def trust_report(
    game: Hyco | PhysicsOnly, *, tolerance: float = 1e-3, steps: int = 10, confidence: float = 0.95
) -> TrustReport:
    """The report at the present (θ, φ), at the ghost points of the coming round; both are left as they are.

    Args:
        tolerance: ε.  steps: Gauss–Newton steps with which each player tries to gain.
        confidence: Of the intervals for θ.

    Raises ValueError where θ is a field.  Collective.
    """
    with agreed(game.comm):
        if not (tolerance > 0 and 0 < confidence < 1):
            raise ValueError(f"tolerance must be positive and confidence within (0, 1), not {tolerance}, {confidence}")
        for name, p in game.physical.named_parameters():
            if p.requires_grad and is_distributed(p):
                raise ValueError(f"'{name}' is a field; a trust report is for parameters by number")
    if isinstance(game, PhysicsOnly):
        objective = game.objective()
        gain = _gain(game.player, objective, steps)
        own = PhysicalObjective(game.physical, game.data, 1.0)
        return TrustReport(gain, np.nan, tolerance, _identified(own, game.data.known_noise, confidence), None)
    scene = game.scene(game.next_round)
    synthetic = game.synthetic_objective(scene)
    synthetic()
    assert synthetic.first is not None
    physical = game.physical_objective(scene, synthetic.first[2])
    gains = _gain(game.players[0], physical, steps), _gain(game.players[1], synthetic, steps)
    data, w = game.sensing.physical, scene.weights
    from_data = with_network = None
    if data is not None and w.a1 > 0:
        own = PhysicalObjective(game.physical, data, 1.0)
        from_data = _identified(own, data.known_noise, confidence)
        if w.b1 > 0:
            opponent = Opponent(scene.ghosts, synthetic.first[2])
            both = PhysicalObjective(game.physical, data, 1.0, w.b1 / w.a1, opponent)
            with_network = _identified(both, data.known_noise, confidence, data.n_found)
    return TrustReport(*gains, tolerance, from_data, with_network)


def _gain(player: Player, objective: PhysicalObjective | SyntheticObjective, steps: int) -> float:
    """The fraction by which Gauss–Newton steps lower J; the parameters are put back."""
    if not player.parameters:
        return 0.0
    before = flat(player.parameters)
    # A MultiStart has the answer whose bounds hold.
    bounds = getattr(getattr(player.answer, "answer", player.answer), "bounds", None)
    own = Player(player.name, player.named, GaussNewton(steps, bounds=bounds), player.comm)
    try:
        first = own.answer_to(objective).objective
        r = objective.residuals()
        last = float(sum_array(player.comm, np.array([r @ r]))[0])
        if objective.decay:
            last += objective.decay * float(flat(player.parameters) @ flat(player.parameters))
    finally:
        put_flat(player.parameters, before)
    return 0.0 if first == 0.0 else max(0.0, (first - last) / first)


def _identified(
    objective: PhysicalObjective, known_noise: bool, confidence: float, n: int | None = None
) -> Identifiability:
    """From rows whose squares sum to L (a mean): times √n they are in units of the noise."""
    r, J = objective.linearised()
    if n is None:
        assert objective.data is not None
        n = objective.data.n_found
    components = 1 if objective.data is None or objective.data.values.ndim == 1 else objective.data.values.shape[1]
    rows = int(sum_array(objective.comm, np.array([len(r)]))[0])
    problem = reduced(objective.comm, np.sqrt(n) * r, np.sqrt(n) * J)
    if isinstance(problem, Rows):
        J, r = problem.J, problem.r
    else:
        J, r = root(problem.G), np.full(1, np.sqrt(problem.square))
    theta = flat(objective.parameters.values())
    names = entry_names([(name, tuple(p.shape)) for name, p in objective.parameters.items()])
    return identify(names, theta, J, r, n=min(rows, n * components), known_noise=known_noise, confidence=confidence)


def _percent(value: float) -> str:
    return "nothing (it is not there)" if np.isnan(value) else f"{100 * value:.2g} %"
