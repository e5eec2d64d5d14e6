"""The physical model: a PDE with unknown coefficients as a torch module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import ufl
from dolfinx import fem
from torch import Tensor, nn

from hyco_fem.bridge.jacobian import Jacobian, Observed, jacobian
from hyco_fem.bridge.points import Points
from hyco_fem.bridge.solve import solve, solve_many
from hyco_fem.models.experiments import Scenario, batch_item, batch_size
from hyco_fem.models.pde_model import PDEModel, PerInterval
from hyco_fem.parallel import agreed, max_over_ranks
from hyco_fem.pde.linear import Options
from hyco_fem.pde.problem import Problem
from hyco_fem.pde.state import State
from hyco_fem.pde.steady import SteadySolver


class PhysicalModel(PDEModel):
    """A steady PDE F(u, m(θ); v) = 0 with coefficients m given by torch modules.

    Args:
        F: Residual in UFL, linear in the test function; affine in u (one linear solve) or not (Newton).
        u: The unknown, a Function; it holds the last solution.
        bcs: Dirichlet conditions.
        coefficients: For each unknown coefficient, a Function of F, the module that gives its values: dof
            coordinates (n, d) ↦ (n,) or (n, value_size), float64.  Its parameters are θ.  They must be equal on all
            ranks, except those of a `NodalField`.
        positive: Functions among the keys of `coefficients` that must stay positive.
        observed: Which part of a mixed or vector unknown is compared with data and network: the index of a sub-space,
            or several (W.sub(0).sub(1): (0, 1)).  By default the whole field.
        petsc_options: PETSc options without prefix; by default a solver chosen by size, dimension and symmetry: direct,
            or for large problems a Krylov method with algebraic multigrid.  `description` names it.
        adjoint_petsc_options: Options of the adjoint solve; by default the forward solver and its factors.
        warm_start: Start iterative and Newton solves from the last solution.
        form_compiler_options, jit_options: As for `dolfinx.fem.form`.

    Raises:
        ValueError, TypeError: an argument does not fit; on all ranks.

    Construction and every method are collective.
    """

    def __init__(
        self,
        F: ufl.Form,
        u: fem.Function,
        bcs: Sequence[fem.DirichletBC] = (),
        coefficients: Mapping[fem.Function, nn.Module] | None = None,
        *,
        positive: Collection[fem.Function] = (),
        observed: int | Sequence[int] | None = None,
        petsc_options: Options | None = None,
        adjoint_petsc_options: Options | None = None,
        warm_start: bool = False,
        form_compiler_options: dict | None = None,
        jit_options: dict | None = None,
    ) -> None:
        super().__init__(u, coefficients, positive)
        with agreed(self.comm):
            for name, module in self.coefficients.items():
                if isinstance(module, PerInterval):
                    raise ValueError(f"'{name}' changes in time (PerInterval), and a PhysicalModel is steady")
        self.solver = SteadySolver(
            F,
            u,
            bcs,
            self._functions,
            petsc_options=petsc_options,
            adjoint_petsc_options=adjoint_petsc_options,
            warm_start=warm_start,
            form_compiler_options=form_compiler_options,
            jit_options=jit_options,
        )
        self.observed = self._sub_space(observed)

    @classmethod
    def of(cls, problem: Problem, modules: Mapping[str, nn.Module] | None = None, **options: Any) -> PhysicalModel:
        """The model of a ready problem (`hyco_fem.catalogue`).

        Args:
            problem: The problem.
            modules: For each coefficient that is unknown, by its name in `problem.coefficients`, the module that gives
                its values.  The others keep the values they hold.
            options: Keyword arguments of `PhysicalModel`; by default `positive` and `observed` are the problem's.

        Raises:
            ValueError: the problem has no coefficient of that name.  Otherwise as `PhysicalModel`.
        """
        coefficients, positive = cls._chosen(problem, modules)
        options.setdefault("positive", positive)
        options.setdefault("observed", problem.observed)
        return cls(problem.F, problem.u, problem.bcs, coefficients, **options)

    def _written(self) -> ufl.Form | None:
        return self.solver.F

    @property
    def domain(self) -> fem.FunctionSpace:
        """What samplers of ghost points are bound to: V."""
        return self.V

    def solve(self) -> Tensor:
        """Solve the PDE at the current θ.

        Returns:
            Owned dof values of u, (n_owned,), differentiable in θ (vjp: one adjoint solve; jvp: one tangent solve; a
            second time: one tangent and two adjoint solves).

        Raises:
            CoefficientError: see `coefficient_values`.  SolveError: no convergence.  Both on all ranks; u is as before.
        """
        return solve(self.solver, *self.coefficient_values())

    def forward(self, points: Points) -> Tensor:
        """Solve, and evaluate at points: values at the points owned here, (n,) or (n, value_size)."""
        return points.evaluate(self.solve(), self.observed)

    def observe(self, sets: Sequence[Any]) -> list[Tensor]:
        """Solve once, and evaluate at several sets of points, as `forward`.  Differentiable in θ."""
        return self.solution(sets)[0]

    def solution(self, sets: Sequence[Any]) -> tuple[list[Tensor], Callable[[Any], Tensor]]:
        """`observe`, and what gives the values of the same solution at other points."""
        u = self.solve()
        return [points.evaluate(u, self.observed) for points in sets], lambda points: points.evaluate(u, self.observed)

    def solve_batch(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Solve at many θ.

        Args:
            theta: Parameters by their names in `named_parameters()`, each with a leading batch dimension,
                (batch, *shape).  A parameter that is not named keeps its value.  Differentiable in them.

        Returns:
            (batch, n_owned).

        Raises:
            ValueError: an unknown name, a wrong shape, or batches of different lengths; on all ranks.
        """
        with agreed(self.comm):
            n = batch_size(theta, dict(self.named_parameters()))
        return torch.stack([torch.func.functional_call(_Solve(self), batch_item(theta, k), ()) for k in range(n)])

    def solve_scenarios(self, scenarios: Sequence[Scenario]) -> Tensor:
        """Solve at one θ for several loads and boundary values; see `Scenario`.

        Returns:
            (n_scenarios, n_owned), differentiable once in θ.  Where no scenario changes the operator (an affine
            problem), it is factorised once, and all scenarios are solved for together, forward and adjoint.
        """
        with agreed(self.comm):
            if not scenarios:
                raise ValueError("there is no scenario to solve for")
            settings = [scenario.settings(self._functions) for scenario in scenarios]
        return solve_many(self.solver, settings, *self.coefficient_values())

    def jacobian(self, points: Points, *, state: State | None = None) -> Jacobian:
        """Solve, and differentiate the values at points by all parameters θ; no graph is kept.  Collective.

        With `state`, that of a solve made at this θ (`model.solver.state`), there is no new solve, and its factors are
        used where they are still the last ones.

        By a block of tangent solves for all parameters at once, or by adjoints where there are fewer observations than
        parameters, or where a parameter is a field; `Jacobian.method` says which.  A parameter that the observations do
        not depend on has a column of zeros, and a warning.
        """
        (found,) = self.jacobians([points], state=state)
        scale = max_over_ranks(
            self.comm, [float(np.abs(found.matrix[:, s]).max(initial=0.0)) for s in found.columns.values()]
        )
        for name, largest in zip(found.columns, scale, strict=True):
            if largest == 0.0:
                warnings.warn(f"the observations do not depend on the parameter '{name}'", stacklevel=2)
        return found

    def jacobians(self, sets: Sequence[Observed], *, state: State | None = None) -> list[Jacobian]:
        """One `jacobian` for each of several sets of points, with the same tangent solves; without a warning."""
        if state is None:
            with torch.no_grad():
                self.solve()
            state = self.solver.state
        trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        modules = list(self.coefficients.values())
        return jacobian(self.solver, state, modules, self._x, trainable, sets, self.observed)

    @property
    def description(self) -> str:
        """One line: size, symmetry, and the solver in use."""
        return self.solver.description

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together, instead of when Python gets to it."""
        self.solver.close()


class _Solve(nn.Module):
    """model.solve() as the forward of a module with the model's parameters under their own names."""

    def __init__(self, model: PhysicalModel) -> None:
        super().__init__()
        self.coefficients = model.coefficients
        # Not as a sub-module, which would give the parameters second names.
        object.__setattr__(self, "_model", model)

    def forward(self) -> Tensor:
        return self._model.solve()  # type: ignore[operator, union-attr]
