"""Each model alone, on the same data with the same kind of answers: what HYCO is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpi4py import MPI

from torch import Tensor, nn

from hyco_fem.game.answers import AdamStep
from hyco_fem.game.data import Data
from hyco_fem.game.history import Callback, Record, Result, parameter_values
from hyco_fem.game.loop import LONGEST_IN_HISTORY, Clock, Stopping, run
from hyco_fem.game.objective import PhysicalObjective, SyntheticObjective
from hyco_fem.game.player import Answer, Look, Player
from hyco_fem.game.prior import BoundPrior, Prior
from hyco_fem.game.state import Resumable
from hyco_fem.models.pde_model import CoefficientError
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed, check_replicated
from hyco_fem.pde.linear import SolveError


class _Alone(Resumable):
    """One model fitted to data by one player."""

    def __init__(self, name: str, model: nn.Module, data: Data, answer: Answer) -> None:
        self.model, self.data = model, data
        self.comm: MPI.Comm = data.points.comm
        check_replicated(model.named_parameters(), self.comm)
        with agreed(self.comm):
            self.player = Player(name, dict(model.named_parameters()), answer, self.comm)
        self.clock = Clock()
        self.next_round = 0

    def objective(self) -> Callable[[], Tensor]:
        """What is minimised in the coming round."""
        return self._objective

    def _objective(self) -> Tensor:
        raise NotImplementedError

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> Record:
        raise NotImplementedError

    def round(self, number: int) -> Record | None:
        """One answer of the player."""
        parameters = self._parameters()
        with self._undone_on_error():
            look = self.player.answer_to(self.objective())
        return self._record(number, look, parameters) if look.finite else None

    def look(self, number: int) -> Record | None:
        """The state as it is; None where it is not finite and the last step had to be taken back."""
        with self._undone_on_error():
            look = self.player.look(self.objective()())
        if not look.finite:
            self.player.take_back()
            return None
        return self._record(number, look, self._parameters())

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        """Where θ has led to a PDE that cannot be solved, undo the step that led there."""
        try:
            yield
        except (CoefficientError, SolveError):
            self.player.undo()
            raise

    def _trained(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def _movers(self) -> list[Player]:
        return [self.player]

    def _parameters(self) -> dict[str, Any]:
        """What the history keeps of the parameters: θ, but not the weights of a network."""
        return {}

    def run(
        self,
        rounds: int,
        *,
        tolerance: float | None = None,
        stopping: Stopping | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Result:
        """Play rounds; see `hyco_fem.game.loop.run`.  Collective."""
        return run(self, rounds, tolerance=tolerance, stopping=stopping, callbacks=callbacks)


class PhysicsOnly(_Alone):
    """The physical model fitted to the data alone: min_θ L_phy, with a prior where one is given.

    One solve and one adjoint for each gradient.  In the history `misfit_physical` is the whole objective.
    """

    def __init__(
        self,
        physical: PhysicalModel | TransientModel,
        data: Data,
        answer: Answer | None = None,
        *,
        prior: Prior | BoundPrior | None = None,
    ) -> None:
        super().__init__("physical", physical, data, answer or AdamStep(5e-3))
        self.physical = physical
        with agreed(self.comm):
            self.prior = prior.on(self.player.named) if isinstance(prior, Prior) else prior

    def objective(self) -> PhysicalObjective:
        """L_phy and the prior."""
        return PhysicalObjective(self.physical, self.data, 1.0, prior=self.prior)

    def _parameters(self) -> dict[str, Any]:
        return parameter_values(self.model, self.comm, LONGEST_IN_HISTORY)

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> Record:
        return Record(
            number, misfit_physical=look.objective, gradient_physical=look.gradient_norm, parameters=parameters
        )


class NetworkOnly(_Alone):
    """The synthetic model fitted to the data alone: min_φ L_syn + decay |φ|².  Also HYCO's warm-up.

    In the history `misfit_synthetic` is the whole objective.
    """

    def __init__(self, synthetic: nn.Module, data: Data, answer: Answer | None = None, *, decay: float = 0.0) -> None:
        super().__init__("synthetic", synthetic, data, answer or AdamStep(1e-3))
        with agreed(self.comm):
            if not 0 <= decay < float("inf"):
                raise ValueError(f"the weight decay must be finite and not negative, not {decay}")
        self.decay = decay

    def objective(self) -> SyntheticObjective:
        """L_syn + decay |φ|²."""
        return SyntheticObjective(self.model, self.data, 1.0, decay=self.decay, comm=self.comm)

    def _record(self, number: int, look: Look, parameters: dict[str, Any]) -> Record:
        return Record(number, misfit_synthetic=look.objective, gradient_synthetic=look.gradient_norm)
