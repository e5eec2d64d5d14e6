"""A variational PINN: the residual is the assembled one, so that any PDE in UFL serves as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import ufl
from torch import Tensor, nn

from hyco_fem.bridge.interpolate import Interpolant, components
from hyco_fem.bridge.residual import assemble_residual, dual_square
from hyco_fem.game.answers import AdamStep
from hyco_fem.game.data import Data
from hyco_fem.game.informed import Informed, check_weights
from hyco_fem.game.losses import network_values
from hyco_fem.game.player import Answer
from hyco_fem.models.physical import PhysicalModel
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed
from hyco_fem.pde.evolution import TransientProblem
from hyco_fem.pde.residual import Residual, Riesz


@dataclass(frozen=True)
class VariationalWeights:
    """a = data, b = residual: not negative, and not both zero."""

    data: float = 1.0
    residual: float = 1.0

    def __post_init__(self) -> None:
        check_weights(vars(self))


class VariationalPINN(Informed):
    """min over φ and θ of  a L_syn(φ) + b ‖F(I_h u_syn(φ), m(θ); ·)‖²_{V'}:  no solve, and no strong form.

    The network is interpolated at the dofs of the physical model, Dirichlet dofs take their values, and the residual is
    measured in the dual norm of H¹ (rᵀ K⁻¹ r, K factorised once).  The minimum over all dof vectors, at given θ, is the
    finite element solution.  One assembly of F, one of each derivative and two triangular solves for a gradient.

    Args:
        physical: The PDE with its coefficients, whose parameters are θ; NodalField serves too.
        synthetic: The network, with one output for each component of the whole unknown: (u, p) in a flow.
        data: Sensors, or None: a forward problem.
        weights: a and b.
        answer: How φ and θ are moved.  coefficient_lr: learning rate of θ; by default that of the answer.
        inner: An inner product of the space, a bilinear form; by default H¹ (L² for pressures); "l2": the plain sum of
            squares Σ r_i², whose size and conditioning depend on the mesh.

    Raises:
        ValueError: no data and no weight on the residual; the wrong number of outputs; on all ranks.
        TypeError: a model in time.

    Construction and every method are collective.
    """

    def __init__(
        self,
        physical: PhysicalModel,
        synthetic: nn.Module,
        data: Data | None = None,
        *,
        weights: VariationalWeights | None = None,
        answer: Answer | None = None,
        coefficient_lr: float | None = None,
        inner: ufl.Form | str | None = None,
    ) -> None:
        if isinstance(physical, (TransientModel, TransientProblem)):
            raise TypeError(
                "VariationalPINN is for steady problems: for one in time use hyco_fem.PINN(problem, network, "
                "interval=(t0, T)), or Hyco with the TransientModel"
            )
        self.physical = physical
        self.weights = weights or VariationalWeights()
        self.interpolant = Interpolant(physical.V)
        self._observed = components(physical.V, physical.observed.component())
        with agreed(physical.comm):
            if data is None and self.weights.residual == 0:
                raise ValueError("there are no data and the weight of the residual is zero: nothing to minimise")
            if isinstance(inner, str) and inner != "l2":
                raise ValueError(f"inner must be a bilinear form, 'l2' or None, not {inner!r}")
            _check_outputs(synthetic, self.interpolant)
        self.residual = Residual(physical.solver)
        self.riesz = None if isinstance(inner, str) else Riesz(physical.solver, inner)
        super().__init__(synthetic, physical, data, physical.comm, answer or AdamStep(1e-3), coefficient_lr)

    def factors(self) -> list[float]:
        """a, b, and nothing for the boundary, where the interpolant is exact."""
        return [self.weights.data, self.weights.residual, 0.0]

    def terms(self, number: int) -> list[Tensor]:
        """L_syn and ‖r‖², this rank's summands."""
        zero = torch.zeros((), dtype=torch.float64)
        x = self.interpolant.x
        n_sensors = 0
        if self.sensors is not None:
            n_sensors = len(self.sensors.points)
            x = torch.cat([self.sensors.points.x, x])
        with agreed(self.comm):
            values = network_values(self.synthetic, x)
            misfit = zero if self.sensors is None else self.sensors.local_misfit(self._seen(values[:n_sensors]))
            u = self.interpolant(values[n_sensors:])
        r = assemble_residual(self.residual, u, self.physical.coefficient_values())
        return [misfit, dual_square(r, self.riesz), zero]

    def _seen(self, values: Tensor) -> Tensor:
        """The components that are compared with data."""
        if values.ndim == 1:
            return values
        return values[:, self._observed[0]] if len(self._observed) == 1 else values[:, self._observed]

    def close(self) -> None:
        """Destroy the PETSc objects of the inner product now, on all ranks together."""
        if self.riesz is not None:
            self.riesz.close()


def _check_outputs(network: nn.Module, interpolant: Interpolant) -> None:
    with torch.no_grad():
        values = network_values(network, torch.zeros(1, interpolant.x.shape[1], dtype=torch.float64))
    found, wanted = 1 if values.ndim == 1 else values.shape[1], interpolant.components
    if found != wanted:
        raise ValueError(
            f"the unknown has {wanted} component{'s' * (wanted > 1)} at a point (in a flow, velocity and pressure), "
            f"the network has {found} output{'s' * (found > 1)}; give it as many"
        )
