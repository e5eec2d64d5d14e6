"""How much of a forward sweep is kept changes what a gradient costs, but not what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from evolving import SCHEMES, UNKNOWN, functional, reaction_diffusion, space_time_points

import hyco_fem as hf
from hyco_fem.parallel import sum_array, sum_over_ranks
from hyco_fem.pde.checkpoints import StepSize, Storage

# A field has at most seven values of eight bytes, and there are nine steps.
SCHEDULES = {
    "Revolve(3)": hf.Revolve(3),
    "Revolve(1, on_disk=2)": hf.Revolve(1, on_disk=2),
    "Revolve(1)": hf.Revolve(1),
    "OnDisk": hf.OnDisk(),
    "MemoryBudget, all": hf.MemoryBudget("1 MB"),
    "MemoryBudget, some": hf.MemoryBudget(400),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def value_and_gradients(checkpoints: Any, scheme: str, cubic: bool, comm: MPI.Comm) -> np.ndarray:
    """Rows: the gradient; that of a second backward sweep; that after a solve at another θ, and of that solve."""
    model = reaction_diffusion(comm, cubic=cubic, scheme=SCHEMES[scheme], checkpoints=checkpoints)
    points = space_time_points(model.V.mesh)
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    moved = {name: (1.2 * p).detach().requires_grad_() for name, p in theta.items()}

    def J(at: dict[str, torch.Tensor]) -> torch.Tensor:
        u = torch.func.functional_call(model, at, (points,))
        return (u.square() + u**3).sum()

    def slope(value: torch.Tensor, at: dict[str, torch.Tensor], **options: Any) -> np.ndarray:
        found = torch.autograd.grad(sum_over_ranks(value, comm), list(at.values()), **options)
        return sum_array(comm, np.concatenate([g.numpy().ravel() for g in found]))

    once = J(theta)
    rows = [slope(once, theta, retain_graph=True), slope(once, theta)]
    first, second = J(theta), J(moved)
    rows += [slope(first, theta), slope(second, moved)]
    model.close()
    return np.stack(rows)


@pytest.mark.parametrize(
    ("scheme", "cubic"), [(scheme, False) for scheme in SCHEMES] + [("Crank-Nicolson", True), ("BDF3", True)]
)
def test_gradients_are_the_same_for_all_schedules(scheme: str, cubic: bool, comm: MPI.Comm) -> None:
    """Also of a second backward sweep, and where another solve came between the solve and its gradient."""
    expected = value_and_gradients(hf.InMemory(), scheme, cubic, comm)
    once, twice, late, elsewhere = expected
    scale = np.abs(once).max()
    for again in (twice, late):
        np.testing.assert_allclose(again, once, rtol=0, atol=1e-12 * scale)
    assert np.abs(elsewhere - once).max() > 1e-2 * scale
    for schedule in SCHEDULES.values():
        found = value_and_gradients(schedule, scheme, cubic, comm)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@each_schedule
def test_gradients_and_tangents_fit_each_other(schedule: str, comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, cubic=True, scheme=hf.BDF2(), checkpoints=SCHEDULES[schedule])
    result = hf.taylor_test(model)
    assert result.ok, f"\n{result}"
    assert hf.dot_product_test(model) < 1e-11
    other = reaction_diffusion(comm, cubic=True, scheme=hf.BDF2())
    expected, found = (m.jacobian(space_time_points(m.V.mesh)) for m in (other, model))
    np.testing.assert_allclose(found.values, expected.values, atol=1e-12)
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-11)


@pytest.mark.parametrize(("snapshots", "disk"), [(1, 0), (2, 0), (1, 2), (4, 1)])
def test_revolve_keeps_no_more_than_it_says_and_solves_what_it_must(snapshots: int, disk: int, comm: MPI.Comm) -> None:
    """With s checkpoints a gradient of N steps takes as many solves as Griewank's optimum says."""
    model = reaction_diffusion(comm, UNKNOWN[:1], dt=0.05, checkpoints=hf.Revolve(snapshots, on_disk=disk))
    points = space_time_points(model.V.mesh)
    functional(model, points).backward()
    counts, n, s = model.solver.counts, 20, snapshots + disk
    assert counts["adjoint"] == n
    # Solves beyond the first sweep: t(N, s) of Griewank, Walther (2000); each step's own solve included.
    optimum = next(
        r * n - _binomial(s + r, r - 1) for r in range(1, 30) if _binomial(s + r - 1, s) < n <= _binomial(s + r, s)
    )
    assert counts["forward"] <= n + optimum


def _binomial(n: int, k: int) -> int:
    from math import comb

    return comb(n, k) if k >= 0 else 0


@pytest.mark.parametrize("checkpoints", [hf.InMemory(), hf.OnDisk()], ids=["InMemory", "OnDisk"])
def test_what_keeps_all_steps_solves_nothing_twice(checkpoints: Any, comm: MPI.Comm) -> None:
    model = reaction_diffusion(comm, dt=0.05, checkpoints=checkpoints)
    points = space_time_points(model.V.mesh)
    J = functional(model, points)
    J.backward(retain_graph=True)
    J.backward()
    model.jacobian(points, state=model.solver.state)
    assert model.solver.counts["forward"] == 20
    assert model.solver.counts["adjoint"] == 40


@pytest.mark.parametrize("steps", [3, 5, 9, 20])
def test_a_budget_is_kept(steps: int, comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored stays within it at any time, on each rank; the larger it is, the fewer steps are solved twice."""
    most = 0
    put = Storage.put

    def watched(self: Storage, *args: Any, **options: Any) -> None:
        nonlocal most
        put(self, *args, **options)
        most = max(most, self.bytes)

    monkeypatch.setattr(Storage, "put", watched)
    dt = 1.0 / steps
    whole = reaction_diffusion(comm, UNKNOWN[:1], dt=dt, scheme=hf.BDF2()).solver.size
    solves = []
    for share in (0.3, 0.6, 1.0):
        all_of_it = whole.restart + steps * whole.dependencies
        budget = max(int(share * all_of_it), whole.dependencies + 2 * whole.restart)
        most = 0
        model = reaction_diffusion(comm, UNKNOWN[:1], dt=dt, scheme=hf.BDF2(), checkpoints=hf.MemoryBudget(budget))
        functional(model, space_time_points(model.V.mesh)).backward()
        assert 0 < comm.allreduce(most, op=MPI.MAX) <= budget
        solves.append(model.solver.counts["forward"])
    assert solves == sorted(solves, reverse=True)
    assert solves[-1] == steps


def test_files_of_checkpoints_are_under_the_folder_and_go_with_the_solve(comm: MPI.Comm, folder: Path) -> None:
    model = reaction_diffusion(comm, UNKNOWN[:1], checkpoints=hf.OnDisk(folder / "kept"))
    J = functional(model, space_time_points(model.V.mesh))
    comm.Barrier()
    kept = sorted((folder / "kept").rglob("*.npy"))
    assert len(kept) == 9 * comm.size, "one for each rank and step"
    assert model.solver.state.storage.bytes == 0, "and nothing in memory"
    comm.Barrier()
    J.backward()
    model.solver._last = None
    del J, model
    import gc

    gc.collect()
    comm.Barrier()
    assert not list((folder / "kept").rglob("*.npy"))


def test_a_budget_chooses_what_is_fastest() -> None:
    size = StepSize(restart=100, dependencies=200, steps=50)
    assert hf.MemoryBudget(10_100).resolve(size) == hf.InMemory()
    assert hf.MemoryBudget(10_099).resolve(size) == hf.Revolve(49)
    assert hf.MemoryBudget(1_300).resolve(size) == hf.Revolve(10)
    assert hf.MemoryBudget(1_300, "there").resolve(size) == hf.OnDisk("there")
    assert hf.Revolve(3).resolve(StepSize(100, 200, 1)) == hf.InMemory()
    with pytest.raises(ValueError, match=r"0.000399 MB on each rank is too small for one checkpoint: .* on disk"):
        hf.MemoryBudget(399).resolve(size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5, 5), ("7", 7), ("7 B", 7), ("2 kb", 2000), ("1.5MB", 1_500_000), ("2 GB", 2 * 10**9), ("1 TB", 10**12)],
)
def test_sizes_are_read(text: Any, expected: int) -> None:
    assert hf.MemoryBudget(text).bytes == expected


def test_what_is_no_schedule_is_refused() -> None:
    for size in ("much", "5 parsec", "MB"):
        with pytest.raises(ValueError, match="such as '500 MB'"):
            hf.MemoryBudget(size)
    for size in (0, -1, "-2 MB"):
        with pytest.raises(ValueError, match="must be positive"):
            hf.MemoryBudget(size)
    with pytest.raises(ValueError, match="at least one checkpoint"):
        hf.Revolve(0)
    for snapshots, disk in ((-1, 2), (1.5, 0), (1, -1)):
        with pytest.raises(ValueError, match="whole number"):
            hf.Revolve(snapshots, disk)  # type: ignore[arg-type]
