"""Each model alone, on the same data with the same kind of answers: what HYCO is measured against."""

from __future__ import annotations

from collections.abc import Sequence

from mpi4py import MPI

from torch import Tensor, nn

from hyco_fem.game.answers import AdamStep, Answer, Look, Player
from hyco_fem.game.data import Data
from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.loop import LONGEST_IN_HISTORY, Clock, run
from hyco_fem.game.objective import network_values
from hyco_fem.models.physical import CoefficientError, PhysicalModel
from hyco_fem.parallel import check_replicated
from hyco_fem.pde.linear import SolveError


class _Alone:
    """One model fitted to data by one player."""

    def __init__(self, name: str, model: nn.Module, data: Data, answer: Answer) -> None:
        self.model, self.data = model, data
        self.comm: MPI.Comm = data.points.comm
        check_replicated(model.named_parameters(), self.comm)
        self.player = Player(name, model.parameters(), answer, self.comm)
        self.clock = Clock()
        self.next_round = 0

    def _objective(self) -> Tensor:
        raise NotImplementedError

    def _record(self, number: int, look: Look) -> Record:
        raise NotImplementedError

    def round(self, number: int) -> Record | None:
        """One answer of the player."""
        record_parameters = parameter_values(self.model, self.comm, LONGEST_IN_HISTORY)
        try:
            look = self.player.answer_to(self._objective)
        except (CoefficientError, SolveError):
            self.player.undo()
            raise
        return self._with(self._record(number, look), record_parameters) if look.finite else None

    def look(self, number: int) -> Record:
        """The state as it is."""
        look = self.player.look(self._objective())
        return self._with(self._record(number, look), parameter_values(self.model, self.comm, LONGEST_IN_HISTORY))

    def _with(self, record: Record, parameters: dict) -> Record:
        return Record(**{**vars(record), "parameters": parameters if isinstance(self, PhysicsOnly) else {}})

    def run(self, rounds: int, *, tolerance: float | None = None, callbacks: Sequence[Callback] = ()) -> Result:
        """Play rounds; see `hyco_fem.game.loop.run`.  Collective."""
        return run(self, rounds, tolerance=tolerance, callbacks=callbacks)


class PhysicsOnly(_Alone):
    """The physical model fitted to the data alone: min_θ L_phy.  One solve and one adjoint for each step."""

    def __init__(self, physical: PhysicalModel, data: Data, answer: Answer | None = None) -> None:
        super().__init__("physical", physical, data, answer or AdamStep(5e-3))
        self.physical = physical

    def _objective(self) -> Tensor:
        return self.data.local_misfit(self.physical(self.data.points))

    def _record(self, number: int, look: Look) -> Record:
        return Record(number, misfit_physical=look.objective, gradient_physical=look.gradient_norm)


class NetworkOnly(_Alone):
    """The synthetic model fitted to the data alone: min_φ L_syn.  Also HYCO's warm-up."""

    def __init__(self, synthetic: nn.Module, data: Data, answer: Answer | None = None) -> None:
        super().__init__("synthetic", synthetic, data, answer or AdamStep(1e-3))

    def _objective(self) -> Tensor:
        return self.data.local_misfit(network_values(self.model, self.data.points.x))

    def _record(self, number: int, look: Look) -> Record:
        return Record(number, misfit_synthetic=look.objective, gradient_synthetic=look.gradient_norm)
