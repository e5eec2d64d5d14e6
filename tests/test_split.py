"""Players on ranks of their own: with no staleness the simultaneous game, with some the same equilibrium; no hangs."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from cases import dirichlet, square
from dolfinx import fem
from test_script import ROOT, mpirun
from torch import Tensor, nn

import hyco_fem as hf
from hyco_fem.game.split import Post, Word

WORLD = MPI.COMM_WORLD
SENSORS = np.array([[0.31, 0.42], [0.7, 0.25], [0.55, 0.81], [0.12, 0.63], [0.88, 0.9], [0.47, 0.11]])
VALUES = np.array([0.4, 0.1, 0.2, 0.3, 0.05, 0.15])
WEIGHTS = hf.Weights(0.7, 3.0, 2.0, 40.0, decay=1e-3)
ADAM = hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(1e-2))

several = pytest.mark.skipif(WORLD.size < 2, reason="a split game needs two ranks")
# 1 + 2 and 2 + 1 on three ranks.
SHARES = range(1, WORLD.size) if WORLD.size > 1 else [1]


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A hang ends the program and shows where it was."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def heat(comm: MPI.Comm, kappa: nn.Module | None = None, load: nn.Module | None = None) -> hf.PhysicalModel:
    """−∇·(κ∇u) = f, u = 0 on the boundary; by default κ and f are unknown numbers."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1))
    Q = fem.functionspace(V.mesh, ("DG", 0))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    k, f = fem.Function(Q, name="kappa"), fem.Function(Q, name="f")
    F = k * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx - f * v * ufl.dx
    modules = {k: kappa or hf.Scalar(2.0, hf.Positive()), f: load or hf.Scalar(5.0)}
    return hf.PhysicalModel(F, u, [dirichlet(V)], modules, positive=[k])


def plate(comm: MPI.Comm) -> hf.PhysicalModel:
    """Plane strain with an unknown modulus, a vector field."""
    V = fem.functionspace(square(comm, 4), ("Lagrange", 1, (2,)))
    u, v = fem.Function(V, name="u"), ufl.TestFunction(V)
    E = fem.Function(fem.functionspace(V.mesh, ("DG", 0)), name="E")
    F = E * ufl.inner(ufl.sym(ufl.grad(u)), ufl.sym(ufl.grad(v))) * ufl.dx - (v[0] - 2.0 * v[1]) * ufl.dx
    return hf.PhysicalModel(F, u, [dirichlet(V)], {E: hf.Scalar(2.0)})


def network(outputs: int = 1) -> nn.Module:
    return hf.MLP(2, outputs, width=6, depth=2, seed=3)


def seen(model: hf.PhysicalModel, values: np.ndarray = VALUES, rows: slice = slice(None)) -> hf.Data:
    return hf.Data(hf.Points(model.V.mesh, SENSORS[rows]), values[rows], 0.2)


def game_on(
    where: hf.Split | MPI.Comm,
    net: nn.Module | None = None,
    *,
    model: Callable[[MPI.Comm], hf.PhysicalModel] = heat,
    data: Callable[[hf.PhysicalModel], Any] = seen,
    ghosts: Any = None,
    **options: Any,
) -> Any:
    """The same game split, or simultaneous on a communicator."""
    split = isinstance(where, hf.Split)
    physical = model(where.comm if split else where)
    options = {"answers": ADAM, "weights": WEIGHTS} | options
    arguments = (physical, network() if net is None else net, data(physical), ghosts or hf.RandomGhosts(10, seed=5))
    if split:
        return hf.SplitHyco(*arguments, split=where, **options)
    return hf.Hyco(*arguments, schedule="simultaneous", **options)


def numbers(result: hf.Result) -> np.ndarray:
    return np.array([list(record.flat().values()) for record in result.history])


def alike(found: hf.Result, expected: hf.Result, tolerance: float) -> None:
    """Histories that are equal, relative to the largest entry of each column: gradients end near zero."""
    a, b = numbers(found), numbers(expected)
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    np.testing.assert_array_less(np.abs(a - b) / np.maximum(np.abs(b).max(axis=0), 1e-300), tolerance)


def phi(game: Any) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in game.synthetic.parameters()]).numpy()


def theta(game: Any) -> list[float]:
    return [float(p) for p in game.physical.parameters()]


def quadratic_in_round(number: int) -> hf.Weights:
    return hf.Weights(1.0, 2.0 + number**2, 1.0, 10.0)


VARIANTS: dict[str, dict[str, Any]] = {
    "Adam, ghosts drawn afresh": {"warm_up": 3},
    "Adam, several steps, quadrature": {
        "answers": hf.Answers(hf.AdamStep(5e-2, 2), hf.AdamStep(1e-2, 3)),
        "ghosts": hf.QuadratureGhosts(2),
    },
    "L-BFGS": {"answers": hf.Answers(hf.LBFGS(3), hf.LBFGS(2)), "tolerance": 1e-7},
    "Gauss–Newton, fixed ghosts": {
        "answers": hf.Answers(hf.GaussNewton(2), hf.GaussNewton(2)),
        "ghosts": hf.RandomGhosts(10, fixed=True),
        "net": lambda: Quadratic(),
        "prior": hf.Prior(0.5),  # the data tell f/κ only
        "tolerance": 1e-7,  # whether a last trial lowers J is a matter of rounding
    },
    "Gauss–Newton with a prior": {
        "answers": hf.Answers(hf.GaussNewton(), hf.AdamStep(1e-2)),
        "prior": hf.Prior(0.5),
        "tolerance": 1e-9,
    },
    "the solver sees no data": {"weights": hf.Weights(a1=0.0)},
    "weights by round": {"weights": quadratic_in_round},
    "each sees what the other does not": {
        "data": lambda m: hf.Sensing(seen(m, rows=slice(0, 4)), seen(m, 2.0 * VALUES, slice(3, 6)))
    },
    "the network sees no data": {"data": lambda m: hf.Sensing(seen(m), None)},
    "a vector field, boundary and interior": {
        "model": plate,
        "net": lambda: network(2),
        "data": lambda m: seen(m, np.stack([VALUES, -VALUES], axis=1)),
        "ghosts": hf.GhostUnion([hf.RandomGhosts(8), hf.BoundaryGhosts(4)]),
    },
}


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_staleness_it_is_the_simultaneous_game(comm: MPI.Comm, variant: str, share: int) -> None:
    options = dict(VARIANTS[variant])
    tolerance, net = options.pop("tolerance", 1e-12), options.pop("net", network)
    split = hf.Split(comm, share)
    game, reference = game_on(split, net(), **options), game_on(split.comm, net(), **options)
    start = theta(game)
    result, expected = game.run(4), reference.run(4)
    alike(result, expected, tolerance)
    assert (result.rounds, result.rolled_back, result.stop) == (4, 0, "rounds")
    assert result.nash_residual == (result.history[-1].gradient_physical, result.history[-1].gradient_synthetic)
    assert result.staleness == {"physical": (0.0, 0), "synthetic": (0.0, 0)}
    # Both sides hold both models, and the solution of the θ found.
    np.testing.assert_allclose(phi(game), phi(reference), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(theta(game), theta(reference), rtol=tolerance)
    u, v = (g.physical.function.x.array for g in (game, reference))
    np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance * np.abs(v).max())
    assert max(abs(a - b) for a, b in zip(theta(game), start, strict=True)) > 1e-3, "nothing moved"


@pytest.fixture
def sleepy(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets a side fall asleep between saying and hearing, so that the other side is a round ahead when it wakes."""

    def sleepy(here: bool) -> None:
        send = Post.send

        def slow(post: Post, word: Word) -> None:
            send(post, word)
            time.sleep(0.03 if here else 0.0)

        monkeypatch.setattr(Post, "send", slow)

    return sleepy


@several
@pytest.mark.parametrize("side", ["physical", "synthetic"])
def test_who_is_ahead_is_answered_for_the_round_at_hand(
    comm: MPI.Comm, sleepy: Callable[[bool], None], side: str
) -> None:
    split = hf.Split(comm)
    sleepy(split.side == side)
    alike(game_on(split).run(5), game_on(split.comm).run(5), 1e-12)
    # An error that is heard of a round too early.
    records: list[hf.Record] = []
    with pytest.raises(RuntimeError, match="out of order"):
        game_on(split, Breaks(3, RuntimeError("out of order"))).run(50, callbacks=[records.append])
    assert [r.round for r in records] == [0, 1, 2]


@several
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_all_ranks_have_the_same_result(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness))
    result = game.run(5)
    mine = (numbers(result).tolist(), result.summary(), theta(game), phi(game).tolist())
    assert all(mine == theirs for theirs in comm.allgather(mine))
    assert result.timings["physical.solve"] > 0
    assert result.timings["synthetic.total"] >= result.timings["synthetic.wait"] > 0
    assert {k: len(v) for k, v in result.summary()["staleness"].items()} == {"physical": 2, "synthetic": 2}


@several
def test_a_second_run_goes_on_where_the_first_ended(comm: MPI.Comm) -> None:
    split = hf.Split(comm)
    once, twice = game_on(split, warm_up=2), game_on(split, warm_up=2)
    whole, half, rest = once.run(5), twice.run(2), twice.run(3)
    np.testing.assert_allclose(numbers(rest), numbers(whole)[2:], rtol=1e-12)
    np.testing.assert_allclose(numbers(half), numbers(whole)[:3], rtol=1e-12)


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = network(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_each_side_evaluates_its_own_model_once_a_round(comm: MPI.Comm, staleness: int) -> None:
    split, net = hf.Split(comm, 1, staleness), Counting()
    game = game_on(split, net, ghosts=hf.RandomGhosts(10, fixed=True))
    solve, solves = game.physical.solve, []
    game.physical.solve = lambda: solves.append(1) or solve()
    game.run(5)
    # Five rounds and the look at the end; the synthetic side solves once for the θ that it has been given.
    assert (len(solves), net.calls) == ((6, 0) if split.is_physical else (1, 6))


# -- staleness -------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """w · (1, x, y, x², xy, y²): a network for which J_syn has one minimum.  It may take its time."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.w, self.pause = nn.Parameter(torch.zeros(6, dtype=torch.float64)), pause

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        a, b = x[:, 0], x[:, 1]
        return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], dim=1) @ self.w


def best_responses(where: Any, **options: Any) -> Any:
    """Exact answers of two players whose objectives are quadratic, on fixed ghost points."""
    net = Quadratic(options.pop("pause", 0.0))
    return game_on(
        where,
        net,
        model=lambda comm: heat(comm, kappa=hf.Scalar(2.0).requires_grad_(False)),
        ghosts=hf.RandomGhosts(12, fixed=True),
        weights=hf.Weights(1.0, 10.0, 1.0, 10.0),
        answers=hf.Answers(hf.GaussNewton(3), hf.GaussNewton(3)),
        **options,
    )


@several
@pytest.mark.parametrize("staleness", [1, 2])
def test_stale_answers_lead_to_the_same_equilibrium(comm: MPI.Comm, staleness: int) -> None:
    """The network takes its time, so that the solver is ahead as far as it may."""
    split = hf.Split(comm, WORLD.size // 2, staleness)
    game, reference = best_responses(split, pause=5e-3), best_responses(split.comm)
    result, expected = game.run(25), reference.run(25)
    assert max(expected.nash_residual) < 1e-6
    assert result.nash_residual == pytest.approx((0.0, 0.0), abs=1e-6)
    assert theta(game) == pytest.approx(theta(reference), rel=1e-7)
    np.testing.assert_allclose(phi(game), phi(reference), rtol=1e-5, atol=1e-6)
    ages = [result.staleness[side][1] for side in ("physical", "synthetic")]
    assert 1 <= max(ages) <= staleness


@several
@pytest.mark.parametrize("staleness", [1, 3])
def test_models_are_compared_at_the_points_of_the_answer(comm: MPI.Comm, staleness: int) -> None:
    """Ghosts drawn afresh, of which there are more from round to round: answers of other rounds have other shapes."""
    game = game_on(hf.Split(comm, 1, staleness), ghosts=hf.RandomGhosts(lambda number: 5 + number))
    result = game.run(12)
    assert result.rounds == 12
    assert np.isfinite(numbers(result)).all()
    first = game_on(hf.Split(comm).comm, ghosts=hf.RandomGhosts(lambda number: 5 + number)).run(0)
    np.testing.assert_allclose(numbers(result)[0], numbers(first)[0], rtol=1e-11)


# -- how it ends -----------------------------------------------------------------------------------------------


@several
@pytest.mark.parametrize(("staleness", "rank"), [(0, 0), (0, -1), (1, 0), (2, -1)])
def test_a_callback_that_is_true_on_one_rank_stops_all(comm: MPI.Comm, staleness: int, rank: int) -> None:
    game, told = game_on(hf.Split(comm, 1, staleness)), []

    def callback(record: hf.Record) -> bool:
        told.append(record.round)
        return comm.rank == rank % comm.size and record.round >= 2

    result = game.run(50, callbacks=[callback])
    assert result.stop == "callback"
    assert told == list(range(result.rounds)), "each round is told once, in order, on every rank"
    assert 3 <= result.rounds <= 3 + (2 * staleness + 1) * (staleness > 0)


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_tolerance_stops_both_sides(comm: MPI.Comm, staleness: int) -> None:
    split = hf.Split(comm, 1, staleness)
    result, expected = best_responses(split).run(30, tolerance=1e-3), best_responses(split.comm).run(30, tolerance=1e-3)
    assert result.stop == expected.stop == "tolerance"
    if staleness == 0:
        assert result.rounds == expected.rounds
    assert result.rounds < 30


class Cliff(nn.Module):
    """The same w everywhere, and no finite value beyond w = 1.5."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w if float(self.w) <= 1.5 else self.w * math.nan) + torch.zeros(len(x), dtype=torch.float64)


@several
@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("player", ["physical", "synthetic"])
def test_a_step_to_a_loss_that_is_not_finite_is_taken_back(comm: MPI.Comm, player: str, rounds: int) -> None:
    """Steps of 2 lead the network, whose data are 100, over its cliff; one of 1e152 leads (u/σ)² to overflow."""
    if player == "synthetic":
        options: dict[str, Any] = {"answers": hf.Answers(hf.AdamStep(5e-2), hf.AdamStep(2.0))}
        options |= {"data": lambda m: seen(m, np.full(6, 100.0)), "weights": hf.Weights()}
    else:
        options = {"answers": hf.Answers(physical=hf.AdamStep(1e152)), "weights": hf.Weights()}
        options["model"] = lambda c: heat(c, kappa=hf.Scalar(2.0).requires_grad_(False))
        options["data"] = lambda m: hf.Data(hf.Points(m.V.mesh, SENSORS), VALUES, 1e-10)
    split = hf.Split(comm)
    games = [game_on(where, Cliff(), **options) for where in (split, split.comm)]
    result, expected = (game.run(rounds) for game in games)
    assert result.rolled_back == expected.rolled_back > 0
    np.testing.assert_allclose(numbers(result), numbers(expected), rtol=1e-11)
    assert np.isfinite(numbers(result)).all()


@several
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_start_that_is_not_finite_is_an_error_on_all_ranks(comm: MPI.Comm, staleness: int) -> None:
    for rounds in (0, 3):
        game = game_on(hf.Split(comm, 1, staleness), Cliff(2.0))
        with pytest.raises(FloatingPointError, match="synthetic player is not finite at the start"):
            game.run(rounds)


class Breaks(nn.Module):
    """A network that gives NaN, or raises, from some call on."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        super().__init__()
        self.w, self.last, self.calls, self.error = nn.Parameter(torch.zeros((), dtype=torch.float64)), last, 0, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.last:
            return self.w.expand(len(x))
        if self.error is not None:
            raise self.error
        return (self.w * math.nan).expand(len(x))


@several
@pytest.mark.parametrize("staleness", [0, 1])
def test_twenty_steps_taken_back_in_a_row_are_enough(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness), Breaks(3))
    with pytest.raises(FloatingPointError, match="last 20 steps"):
        game.run(100)


def message(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize(("lr", "error"), [(50.0, hf.CoefficientError), (1e160, hf.SolveError)])
def test_an_error_of_the_physical_side_ends_both(
    comm: MPI.Comm, lr: float, error: type[Exception], staleness: int, share: int
) -> None:
    """κ = θ₀ becomes negative, or the load so large that u overflows."""
    kappa, load = hf.Scalar(2.0), hf.Scalar(5.0)
    (load if error is hf.CoefficientError else kappa).requires_grad_(False)
    split, records = hf.Split(comm, share, staleness), []
    game = game_on(
        split,
        model=lambda c: heat(c, kappa, load),
        data=lambda m: seen(m, np.full(6, 100.0)),
        answers=hf.Answers(physical=hf.AdamStep(lr)),
        weights=hf.Weights(),
    )
    with pytest.raises(error) as caught:
        game.run(50, callbacks=[records.append])
    assert len(set(comm.allgather(message(caught.value)))) == 1
    assert theta(game) == [2.0, 5.0], "the step is undone"
    if staleness == 0:
        assert [r.round for r in records] == [0]
    # Nothing is left under way: the next game hears its own words.
    assert game_on(split).run(2).rounds == 2


@several
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("last", [0, 4])
def test_an_error_of_the_network_ends_both(comm: MPI.Comm, last: int, staleness: int, share: int) -> None:
    split = hf.Split(comm, share, staleness)
    game = game_on(split, Breaks(last, RuntimeError("out of order")))
    with pytest.raises(RuntimeError, match="out of order"):
        game.run(50)
    assert game_on(split).run(2).rounds == 2


@several
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_network_that_does_not_fit_is_an_error_that_says_why(comm: MPI.Comm, staleness: int) -> None:
    game = game_on(hf.Split(comm, 1, staleness), network(2), data=lambda m: hf.Sensing(seen(m), None))
    with pytest.raises(ValueError, match="the models differ in shape at the ghost points") as caught:
        game.run(3)
    assert len(set(comm.allgather(message(caught.value)))) == 1


@several
@pytest.mark.parametrize(("staleness", "rank"), [(0, -1), (2, 0)])
def test_an_error_in_a_callback_of_one_rank_is_raised_on_all(comm: MPI.Comm, staleness: int, rank: int) -> None:
    split = hf.Split(comm, 1, staleness)

    def callback(record: hf.Record) -> None:
        if comm.rank == rank % comm.size and record.round == 3:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        game_on(split).run(50, callbacks=[callback])
    assert game_on(split).run(2).rounds == 2


@several
def test_a_warning_that_is_an_error_ends_both(comm: MPI.Comm) -> None:
    """Only the physical side warns of a parameter without influence; tests turn warnings into errors."""

    def bump(where: MPI.Comm) -> hf.PhysicalModel:
        return heat(where, load=hf.GaussianBumps([0.0], [[0.4, 0.6]], 0.3, background=5.0))

    split = hf.Split(comm)
    with pytest.raises(UserWarning, match=r"does not depend on '.*f\.centres' at the start"):
        game_on(split, model=bump).run(5)
    assert game_on(split).run(2).rounds == 2


# -- what is refused -------------------------------------------------------------------------------------------


def test_ranks_that_cannot_be_split_are_refused(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="at least two ranks"):
        hf.Split(MPI.COMM_SELF)
    if comm.size > 1:
        for share in (0, comm.size, 1.5):
            with pytest.raises(ValueError, match="synthetic_ranks must be between 1 and"):
                hf.Split(comm, share)
        for staleness in (-1, 0.5):
            with pytest.raises(ValueError, match="staleness must be a whole number"):
                hf.Split(comm, 1, staleness)


@several
def test_arguments_that_do_not_fit_are_refused(comm: MPI.Comm) -> None:
    split = hf.Split(comm)

    def wrong(**options: Any) -> Any:
        physical = heat(options.pop("comm", split.comm))
        data = options.pop("data", None) or seen(physical)
        return hf.SplitHyco(physical, network(), data, options.pop("ghosts", None), split=split, **options)

    with pytest.raises(ValueError, match=r"the physical model lives on .* build mesh, models and data on split.comm"):
        wrong(comm=comm)
    if split.comm.size < comm.size:
        elsewhere = seen(heat(comm))
        with pytest.raises(ValueError, match="the data lives on"):
            wrong(data=elsewhere)
    with pytest.raises(ValueError, match="DofGhosts compare the models at every dof"):
        wrong(ghosts=hf.DofGhosts())
    for rule in (hf.GradientBalance(), hf.Discrepancy([hf.Weights()])):
        with pytest.raises(ValueError, match="a split game has no"):
            wrong(weights=rule)
    with pytest.raises(ValueError, match="warm_up must not be negative"):
        wrong(warm_up=-1)
    with pytest.raises(ValueError, match="rounds must be a number"):
        wrong().run(-1)
    with pytest.raises(ValueError, match="either tolerance or stopping"):
        wrong().run(1, tolerance=0.1, stopping=hf.Stopping(gradient=0.1))


@several
def test_sides_that_differ_are_refused(comm: MPI.Comm) -> None:
    split = hf.Split(comm)
    with pytest.raises(ValueError, match="is not the same on rank"):
        game_on(split, hf.MLP(2, 1, width=6, depth=2, seed=int(split.is_physical)))
    with pytest.raises(ValueError, match="different ghost points"):
        game_on(split, ghosts=hf.RandomGhosts(10, seed=int(split.is_physical)))
    physical = heat(split.comm)
    V = physical.V
    u, v, kappa = fem.Function(V, name="u"), ufl.TestFunction(V), fem.Function(V, name="kappa")
    F = (kappa * ufl.inner(ufl.grad(u), ufl.grad(v)) - v) * ufl.dx
    field = hf.PhysicalModel(F, u, [dirichlet(V)], {kappa: hf.NodalField(V, 1.5)})
    with pytest.raises(ValueError, match=r"'kappa\..*' is a field"):
        hf.SplitHyco(field, network(), seen(field), split=split)


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_tests_of_this_file_on_several_ranks(tmp_path: Path, ranks: int) -> None:
    run = mpirun(ranks, "-m", "pytest", "-q", ROOT / "tests" / "test_split.py", cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
