"""The physical model in time: a PDE with unknown coefficients and initial value as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ufl
from dolfinx import fem
from torch import Tensor, nn
from ufl.algorithms.analysis import extract_coefficients

from hyco_fem import _compat
from hyco_fem.bridge.dofs import check_point_evaluation, dof_coordinates, owned_size
from hyco_fem.bridge.jacobian import Jacobian, parameter_maps
from hyco_fem.bridge.march import march
from hyco_fem.bridge.spacetime import Snapshots, SpaceTime, SpaceTimeObservation, SpaceTimePoints
from hyco_fem.files import replace_file
from hyco_fem.models.pde_model import PDEModel, PerInterval, checked_values
from hyco_fem.parallel import agreed, raise_together, sum_array
from hyco_fem.pde.checkpoints import Checkpoints
from hyco_fem.pde.evolution import TransientProblem, setters
from hyco_fem.pde.linear import Options
from hyco_fem.pde.march import BlowUp, TransientState
from hyco_fem.pde.scheme import CrankNicolson, Equation, Scheme, check_equation
from hyco_fem.pde.timegrid import TimeGrid
from hyco_fem.pde.transient import TransientSolver
from hyco_fem.pde.vectors import local


class TransientModel(PDEModel):
    """A PDE in time F(u, ∂u/∂t, t, m(θ); v) = 0 with coefficients m, and perhaps the initial value, given by modules.

        u_t, t = fem.Function(V), fem.Constant(mesh, 0.0)
        F = u_t*v*dx + kappa*inner(grad(u), grad(v))*dx - exp(-t)*v*dx
        model = TransientModel(F, u, u_t, [bc], {kappa: hf.Scalar(1.0)}, t=t, interval=(0, 1), dt=0.01)

    Args:
        F: Residual in UFL, linear in the test function, with the Function `u_t` for ∂u/∂t.
        u: The unknown, a Function; it holds the last solution at the end of the interval.
        u_t: A Function of the same space that stands for ∂u/∂t.
        bcs: Dirichlet conditions.  coefficients, positive, observed: as for `PhysicalModel`; a coefficient may be a
            `PerInterval`.
        t: The Constant that stands for time in F, `explicit` and `time_values`; needed where they depend on time.
        interval: (start, end).  dt: the length of a step, or those of all steps.
        times: Output times of `solve`, at ends of steps; all of them by default.
        initial: u at the start: a number, a UFL expression, a Function, or a torch module of x, whose parameters are
            then unknown too: (n, d) ↦ (n,) or (n, value_size).
        scheme: `CrankNicolson()` by default; `BackwardEuler`, `ThetaScheme`, `BDF2`, `BDF3`.
        explicit: A further residual E(u, t; v) that is treated explicitly (reaction, advection).
        time_values: Functions (Dirichlet values, loads) with what they are in time: a UFL expression with t, or a
            Python function of x (3, n) and the time.
        checkpoints: What is kept for gradients: `InMemory()` by default; `Revolve`, `OnDisk`, `MemoryBudget`.
        rescue: A file (.npz) to which the last good values are written where a step cannot be solved.
        petsc_options, adjoint_petsc_options, form_compiler_options, jit_options: as for `PhysicalModel`.

    Attributes:
        steps: the ends of all steps, (n_steps + 1,).  times: the output times, (n_times,).
        observed: V, or the part of it that is compared with data, in time: what `SpaceTimePoints` observe.

    Raises:
        ValueError, TypeError: an argument does not fit; on all ranks.

    Construction and every method are collective.
    """

    def __init__(
        self,
        F: ufl.Form | None,
        u: fem.Function,
        u_t: fem.Function,
        bcs: Sequence[fem.DirichletBC] = (),
        coefficients: Mapping[fem.Function, nn.Module] | None = None,
        *,
        t: fem.Constant | None = None,
        interval: Sequence[float],
        dt: float | Sequence[float],
        times: Sequence[float] | None = None,
        initial: Any = 0.0,
        scheme: Scheme | None = None,
        explicit: ufl.Form | None = None,
        time_values: Mapping[fem.Function, Any] | None = None,
        positive: Collection[fem.Function] = (),
        observed: int | Sequence[int] | None = None,
        checkpoints: Checkpoints | None = None,
        rescue: str | Path | None = None,
        petsc_options: Options | None = None,
        adjoint_petsc_options: Options | None = None,
        form_compiler_options: dict | None = None,
        jit_options: dict | None = None,
        splitting: Any = None,
    ) -> None:
        super().__init__(u, coefficients, positive)
        self._residual = F
        V, mesh = self.V, self.V.mesh
        t = fem.Constant(mesh, 0.0) if t is None else t
        self._u0 = fem.Function(V, name="initial_value")
        self.initial = initial if isinstance(initial, nn.Module) else None
        with agreed(self.comm):
            if scheme is not None and splitting is not None:
                raise ValueError(f"this problem has a scheme of its own (a splitting); leave out scheme={scheme.name}")
            _check_settings(u, bcs, scheme, checkpoints)
            scheme = scheme or CrankNicolson()
            self.grid = TimeGrid.of(interval, dt)
            self._rows = np.arange(self.grid.n + 1) if times is None else self.grid.indices(times)
            parts = [
                self.grid.intervals(m.changes) if isinstance(m, PerInterval) else None
                for m in self.coefficients.values()
            ]
            given = setters(time_values or {}, t, [u, u_t, *self._functions])
            if splitting is None:
                equation = Equation(F, u, u_t, t, self._u0, list(bcs), explicit, list(given))  # type: ignore[arg-type]
                check_equation(equation)
                scheme.check(self.grid, explicit is not None)
            if rescue is not None and not isinstance(rescue, (str, Path)):
                raise TypeError(f"rescue must be the name of a file, not {rescue!r}")
            if rescue is not None and Path(rescue).suffix != ".npz":
                raise ValueError(f"the name of a rescue file ends in .npz, not '{Path(rescue).name}'")
            if self.initial is not None:
                check_point_evaluation(V)
            else:
                _check_initial(initial, V)
            problem = splitting(self._u0) if splitting is not None else scheme.problem(equation)
        if self.initial is not None:
            self._x0 = dof_coordinates(V)
            self._check_replicated(self.comm, {"initial": self.initial})
        else:
            _interpolate(self._u0, initial)
            with agreed(self.comm):
                if not np.isfinite(local(self._u0)).all():
                    raise ValueError("the initial value is not finite everywhere; correct initial=…")
        self.rescue = None if rescue is None else Path(rescue)
        self.solver = TransientSolver(
            problem,
            self.grid,
            self._functions,
            parts,
            initial=None if self.initial is None else self._u0,
            given=given,
            checkpoints=checkpoints,
            petsc_options=petsc_options,
            adjoint_petsc_options=adjoint_petsc_options,
            form_compiler_options=form_compiler_options,
            jit_options=jit_options,
        )
        self.observed = SpaceTime(self._sub_space(observed), self.grid)

    @classmethod
    def of(
        cls, problem: TransientProblem, modules: Mapping[str, nn.Module] | None = None, **options: Any
    ) -> TransientModel:
        """The model of a ready problem (`hyco_fem.catalogue`).

        Args:
            problem: The problem.
            modules: For each coefficient that is unknown, by its name in `problem.coefficients`, the module that gives
                its values.  The others keep the values they hold.
            options: Keyword arguments of `TransientModel`: `interval` and `dt` are needed; by default `initial`,
                `positive`, `observed`, and what is treated explicitly, are the problem's.

        Raises:
            ValueError: the problem has no coefficient of that name.  Otherwise as `TransientModel`.
        """
        coefficients, positive = cls._chosen(problem, modules)
        defaults = {
            "positive": positive,
            "observed": problem.observed,
            "initial": problem.initial,
            "explicit": problem.explicit,
            "time_values": problem.time_values,
            "splitting": problem.splitting,
            "t": problem.t,
        }
        return cls(problem.F, problem.u, problem.u_t, problem.bcs, coefficients, **{**defaults, **options})

    def _written(self) -> ufl.Form | None:
        return self._residual

    def identity(self) -> str:
        """As of any PDE, and its time: interval and steps."""
        t = self.grid.times
        return f"{super().identity()}, {self.grid.n} steps from {t[0]:.6g} to {t[-1]:.6g}"

    @property
    def domain(self) -> SpaceTime:
        """What samplers of ghost points are bound to."""
        return self.observed

    @property
    def steps(self) -> np.ndarray:
        """The ends of all steps, the start included, (n_steps + 1,)."""
        return self.grid.times

    @property
    def times(self) -> np.ndarray:
        """The output times, (n_times,)."""
        return self.grid.times[self._rows]

    def inputs(self) -> list[Tensor]:
        """What the solver is differentiated by: values of the coefficients, and the initial value where it is unknown.

        Checked, and differentiable in θ, as `coefficient_values`.
        """
        values = self.coefficient_values()
        if self.initial is not None:
            error: Exception | None = None
            try:
                values.append(checked_values(self.initial(self._x0), self._u0, "initial", self._x0))
            except Exception as e:
                error = e
            raise_together(self.comm, error)
        return values

    def _march(self, operators: Sequence[Any]) -> list[Tensor]:
        try:
            return list(march(self.solver, operators, *self.inputs()))
        except BlowUp as error:
            if self.rescue is not None:
                try:
                    self._write_rescue(error)
                    hint = f"the field is in {self.rescue}"
                except OSError as failed:
                    hint = f"the field could not be written to {self.rescue} ({failed.strerror or failed})"
                raise BlowUp(f"{error}; {hint}", error.step, error.time, error.last) from None
            hint = "pass rescue='….npz' to have the field before it on disk"
            raise BlowUp(f"{error}; {hint}", error.step, error.time, error.last) from None

    def solve(self) -> Tensor:
        """Solve the PDE at the current θ.

        Returns:
            Owned dof values of u at the output times, (n_times, n_owned), differentiable in θ (vjp: one adjoint sweep
            through time; jvp: one tangent sweep), once.

        Raises:
            CoefficientError: see `coefficient_values`.  BlowUp (a SolveError): a step that cannot be solved, named with
                its time.  Both on all ranks; u is as before.
        """
        return self._march([Snapshots(self._rows, owned_size(self.V))])[0]

    def _operators(self, sets: Sequence[SpaceTimePoints]) -> list[SpaceTimeObservation]:
        if isinstance(sets, SpaceTimePoints):
            raise TypeError("observe takes a list of SpaceTimePoints; for one set call the model: model(points)")
        for points in sets:
            if not isinstance(points, SpaceTimePoints):
                raise TypeError(
                    f"a TransientModel is observed in time: use SpaceTimePoints, not {type(points).__name__}; "
                    "a table of sensors needs a column t"
                )
        return [points.observation(self.observed) for points in sets]

    def observe(self, sets: Sequence[SpaceTimePoints]) -> list[Tensor]:
        """Solve once, and evaluate at several sets of points in space and time.

        No field is stored but what the checkpoints keep.

        Returns:
            For each set the values at the points owned here, (n,) or (n, value_size); differentiable in θ, once.

        Raises:
            As `solve`; ValueError: a time outside the interval.  TypeError: points without a time.
        """
        return self._march(self._operators(sets))

    def solution(self, sets: Sequence[SpaceTimePoints]) -> tuple[list[Tensor], Callable[[SpaceTimePoints], Tensor]]:
        """`observe`, and what gives the values at other points, for which it solves again."""
        return self.observe(sets), lambda points: self.observe([points])[0]

    def forward(self, points: SpaceTimePoints) -> Tensor:
        """As `observe`, for one set of points."""
        return self.observe([points])[0]

    def jacobian(self, points: SpaceTimePoints, *, state: TransientState | None = None) -> Jacobian:
        """Solve, and differentiate the values at points by all parameters θ: one sweep for all of them.  Collective.

        With `state`, that of a solve made at this θ (`model.solver.state`), no step is solved anew that was kept.

        Raises:
            ValueError: a parameter is a field.
        """
        return self.jacobians([points], state=state)[0]

    def jacobians(self, sets: Sequence[SpaceTimePoints], *, state: TransientState | None = None) -> list[Jacobian]:
        """One `jacobian` for each of several sets of points, in the same sweep."""
        if state is None:
            with torch.no_grad():
                self._march([])
            state = self.solver.state
        operators = self._operators(sets)
        trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        modules, places = list(self.coefficients.values()), list(self._x)
        if self.initial is not None:
            modules, places = [*modules, self.initial], [*places, self._x0]
        columns, blocks = parameter_maps(modules, places, trainable, self.comm)
        p = sum(s.stop - s.start for s in columns.values())
        primal = [operator.watch() for operator in operators]
        if p == 0 or all(block is None for block in blocks):
            self.solver.look(state, primal)
            return [Jacobian(w.values, np.zeros((w.values.size, p)), columns, {}, "tangent") for w in primal]
        moved = [operator.watch() for operator in operators]
        self.solver.tangent(state, self._directions(blocks, p), moved, primal)
        return [
            Jacobian(w.values, m.values.reshape(w.values.size, p), columns, {}, "tangent")
            for w, m in zip(primal, moved, strict=True)
        ]

    def _directions(self, blocks: Sequence[np.ndarray | None], p: int) -> list[np.ndarray | None]:
        """Rows of a `PerInterval` are its parts, one after the other."""
        found: list[np.ndarray | None] = []
        for module, block in zip([*self.coefficients.values(), self.initial], [*blocks, None], strict=False):
            if block is not None and isinstance(module, PerInterval):
                block = np.ascontiguousarray(block).reshape(len(module.parts), -1, p)
            found.append(block)
        return found[: len(self.coefficients) + (self.initial is not None)]

    def _write_rescue(self, error: BlowUp) -> None:
        """Coordinates of the dof points and the values at the last good time, of all ranks, whole or not at all."""

        assert error.last is not None
        V = self.V
        n, bs = V.dofmap.index_map.size_local, V.dofmap.index_map_bs
        x = np.zeros((V.dofmap.index_map.size_global, V.mesh.geometry.dim))
        values = np.zeros((len(x), bs))
        here = slice(*V.dofmap.index_map.local_range)
        try:
            x[here] = V.tabulate_dof_coordinates()[:n, : x.shape[1]]
        except RuntimeError:  # a mixed space has no points of its own
            x[here] = np.nan
        values[here] = error.last[: n * bs].reshape(n, bs)
        x, values = sum_array(self.comm, x), sum_array(self.comm, values)
        with agreed(self.comm):
            if self.comm.rank == 0:
                assert self.rescue is not None
                self.rescue.parent.mkdir(parents=True, exist_ok=True)
                replace_file(self.rescue, lambda path: np.savez(path, x=x, u=values, t=error.time))

    @property
    def description(self) -> str:
        """One line: scheme, steps, solvers, and how the steps are kept."""
        return self.solver.description

    def close(self) -> None:
        """Destroy the PETSc solvers now, on all ranks together, instead of when Python gets to it."""
        self.solver.close()


def check_steady(model: Any, what: str) -> None:
    """Raise TypeError where a model is one in time, and `what` is for steady ones."""
    if isinstance(model, TransientModel):
        raise TypeError(
            f"{what} is for a steady PhysicalModel; for a model in time use Hyco, PhysicsOnly or least_squares, with a "
            "Prior where the data do not tell enough"
        )


def _check_settings(u: fem.Function, bcs: Any, scheme: Any, checkpoints: Any) -> None:
    """Raise TypeError where an argument is of another kind, such as a class instead of an object."""
    for what, value, method, example in (
        ("scheme", scheme, "problem", "hyco_fem.BDF2()"),
        ("checkpoints", checkpoints, "resolve", "hyco_fem.Revolve(10)"),
    ):
        if value is not None and (isinstance(value, type) or not hasattr(value, method)):
            raise TypeError(f"{what} must be an object such as {example}, not {value!r}")
    if not isinstance(bcs, (list, tuple)) or not all(isinstance(bc, fem.DirichletBC) for bc in bcs):
        raise TypeError(f"bcs must be a list of dolfinx.fem.DirichletBC, not {bcs!r}")


def _check_initial(initial: Any, V: fem.FunctionSpace) -> None:
    """Raise TypeError or ValueError where it cannot be put into V."""
    if isinstance(initial, Real):
        return
    if not isinstance(initial, (fem.Function, ufl.core.expr.Expr)):
        raise TypeError(
            f"initial must be a number, a UFL expression, a Function or a torch module, not {type(initial).__name__}"
        )
    shape = ufl.FunctionSpace(V.mesh.ufl_domain(), V.ufl_element()).value_shape
    if initial.ufl_shape != shape:
        raise ValueError(f"initial has shape {initial.ufl_shape}, the unknown {shape}")
    for f in extract_coefficients(initial):
        if f.function_space.mesh is not V.mesh and f.function_space.mesh != V.mesh:
            raise ValueError(f"'{f.name}' in initial is a Function on another mesh; interpolate it to this one first")
    if not isinstance(initial, fem.Function) and V.num_sub_spaces and V.dofmap.bs == 1:
        raise ValueError(
            "an expression cannot be the initial value in a mixed space: pass a Function, and interpolate into each "
            "part, u0.sub(0).interpolate(…)"
        )


def _interpolate(u0: fem.Function, initial: Any) -> None:
    """A number, expression or Function as the initial value.  Collective."""
    if isinstance(initial, Real):
        local(u0)[:] = float(initial)
    elif isinstance(initial, fem.Function):
        if initial.function_space is u0.function_space:
            local(u0)[:] = local(initial)
        else:
            u0.interpolate(initial)
    else:
        V = u0.function_space
        u0.interpolate(_compat.expression(initial, _compat.interpolation_points(V), V.mesh))
    u0.x.scatter_forward()
