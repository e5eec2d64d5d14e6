"""What a backward sweep through time needs of the forward one, and where it is kept.

The order of storing, recomputing and reversing is that of the package checkpoint_schedules (Dolci, Maddison, Ham et
al., J. Open Source Softw. 9 (2024)); here are its schedules as values that a user passes, and the storage.  Each rank
keeps its own local arrays; the choice of a schedule is made for all ranks together.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from mpi4py import MPI

import numpy as np

from hyco_fem.agreement import agreed

Arrays: TypeAlias = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class StepSize:
    """Bytes that a checkpoint (the earlier values a step starts from) and one step's data for the adjoint take.

    Of the rank that needs most; `steps` is the number of steps.
    """

    restart: int
    dependencies: int
    steps: int


class Checkpoints(Protocol):
    """How much of the forward sweep is kept, and where."""

    def resolve(self, size: StepSize) -> InMemory | Revolve | OnDisk: ...


@dataclass(frozen=True)
class InMemory:
    """Every step in memory: nothing is solved twice."""

    folder: ClassVar[None] = None

    def resolve(self, size: StepSize) -> InMemory:
        """Itself."""
        return self

    def schedule(self, steps: int) -> Any:
        """Of checkpoint_schedules."""
        from checkpoint_schedules import SingleMemoryStorageSchedule

        return SingleMemoryStorageSchedule()

    def describe(self, size: StepSize) -> str:
        """For people."""
        return f"all {size.steps} steps in memory, {_megabytes(size.steps * size.dependencies)} on a rank"


@dataclass(frozen=True)
class Revolve:
    """A few checkpoints, and the steps between them solved again: the fewest possible (Griewank, Walther, ACM TOMS 26
    (2000), algorithm 799).

    snapshots: Checkpoints in memory.  on_disk: more of them in files under `folder` (default: the folder for temporary
        files), which are removed when they are no longer needed.

    Raises:
        ValueError: not a single checkpoint.
    """

    snapshots: int
    on_disk: int = 0
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("snapshots", self.snapshots), ("on_disk", self.on_disk)):
            if not (isinstance(value, (int, np.integer)) and value >= 0):
                raise ValueError(f"{name} must be a whole number that is not negative, not {value!r}")
        if self.snapshots + self.on_disk < 1:
            raise ValueError("Revolve needs at least one checkpoint")

    def resolve(self, size: StepSize) -> Revolve | InMemory:
        """Itself; where there is but one step, there is nothing to keep."""
        return self if size.steps > 1 else InMemory()

    def schedule(self, steps: int) -> Any:
        """Of checkpoint_schedules."""
        from checkpoint_schedules import MultistageCheckpointSchedule

        return MultistageCheckpointSchedule(steps, self.snapshots, self.on_disk)

    def describe(self, size: StepSize) -> str:
        """For people."""
        more = f" and {self.on_disk} on disk" if self.on_disk else ""
        taken = _megabytes(min(self.snapshots, size.steps) * size.restart + size.dependencies)
        return f"Revolve with {self.snapshots} checkpoints in memory{more} for {size.steps} steps, {taken} on a rank"


@dataclass(frozen=True)
class OnDisk:
    """Every step in a file under `folder` (default: the folder for temporary files): nothing is solved twice.

    The files are numbers only (.npy), one for each rank and step, and removed when they are no longer needed.
    """

    folder: str | Path | None = None

    def resolve(self, size: StepSize) -> OnDisk:
        """Itself."""
        return self

    def schedule(self, steps: int) -> Any:
        """Of checkpoint_schedules."""
        from checkpoint_schedules import SingleDiskStorageSchedule

        return SingleDiskStorageSchedule()

    def describe(self, size: StepSize) -> str:
        """For people."""
        return f"all {size.steps} steps on disk, {_megabytes(size.steps * size.dependencies)} for a rank"


@dataclass(frozen=True)
class MemoryBudget:
    """Whatever is fastest within so much memory on each rank: all steps, or Revolve.

    size: Bytes, or a text such as "500 MB" or "2 GB".  folder: if given, what does not fit goes to disk there.

    Raises:
        ValueError: the text is no size; later, on all ranks: it is too small for one checkpoint.
    """

    size: int | str
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if self.bytes <= 0:
            raise ValueError(f"a memory budget must be positive, not {self.size}")

    @property
    def bytes(self) -> int:
        """The budget in bytes."""
        if not isinstance(self.size, str):
            if not isinstance(self.size, (int, float, np.integer)) or not np.isfinite(self.size):
                raise ValueError(f"a memory budget is a number of bytes, or such as '500 MB', not {self.size!r}")
            return int(self.size)
        number, unit = self.size.strip(), 1
        for suffix, factor in (("KB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12), ("B", 1)):
            if number.upper().endswith(suffix):
                number, unit = number[: -len(suffix)].strip(), factor
                break
        try:
            return int(float(number) * unit)
        except (ValueError, OverflowError):
            raise ValueError(f"a memory budget is a number of bytes, or such as '500 MB', not {self.size!r}") from None

    def resolve(self, size: StepSize) -> InMemory | Revolve | OnDisk:
        """What fits."""
        if size.restart + size.steps * size.dependencies <= self.bytes:
            return InMemory()
        # One step's data for the adjoint, and the values that the sweep is at.
        working = size.dependencies + size.restart
        snapshots = (self.bytes - working) // size.restart
        if self.folder is not None:
            return OnDisk(self.folder)
        if snapshots < 1:
            raise ValueError(
                f"a memory budget of {_megabytes(self.bytes)} on each rank is too small for one checkpoint: a step "
                f"needs {_megabytes(working)} and a checkpoint {_megabytes(size.restart)}; raise it, give a folder on "
                "disk, or use more ranks"
            )
        return Revolve(int(min(snapshots, size.steps - 1))).resolve(size)


def _megabytes(n: int) -> str:
    return f"{n / 1e6:.3g} MB"


class Storage:
    """Arrays by (step, kind), in memory or in files of a folder that goes when this object goes.

    kind: "restart" (what a step starts from) or "dependencies" (what the adjoint of a step needs).
    """

    def __init__(self, comm: MPI.Comm, folder: str | Path | None) -> None:
        self._memory: dict[tuple[int, str], Any] = {}
        self._parent, self._comm = folder, comm
        self._folder: Path | None = None

    def put(self, n: int, kind: str, groups: Sequence[Arrays], *, disk: bool) -> None:
        """Keep groups of arrays.  Collective where they go to disk.

        Raises:
            OSError: the disk of some rank does not take them; on all ranks.
        """
        if not disk:
            self._memory[n, kind] = tuple(groups)
            return
        with agreed(self._comm):
            try:
                self._write(n, kind, groups)
            except OSError as error:
                where = self._parent or tempfile.gettempdir()
                raise OSError(
                    f"a checkpoint of step {n} could not be written to {where} (rank {self._comm.rank}: {error}); make "
                    "room there, choose another folder, or keep fewer of them (Revolve)"
                ) from None

    def _write(self, n: int, kind: str, groups: Sequence[Arrays]) -> None:
        if self._folder is None:
            parent = None if self._parent is None else Path(self._parent)
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f"hyco_checkpoints_{self._comm.rank}_", dir=parent))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        np.save(self._path(n, kind), np.concatenate([a for group in groups for a in group]))
        self._memory[n, kind] = [[len(a) for a in group] for group in groups]

    def get(self, n: int, kind: str) -> tuple[Arrays, ...]:
        """What was kept for a step.  Collective where it is on disk.

        Raises:
            OSError: a file of some rank cannot be read any more; on all ranks.
        """
        found = self._memory[n, kind]
        if isinstance(found, tuple):
            return found
        with agreed(self._comm):
            try:
                flat = np.load(self._path(n, kind), allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise OSError(
                    f"the checkpoint of step {n} in {self._folder} cannot be read ({error}); solve again, and choose "
                    "a folder that nobody clears meanwhile"
                ) from None
        start, groups = 0, []
        for lengths in found:
            arrays = []
            for length in lengths:
                arrays.append(flat[start : start + length])
                start += length
            groups.append(tuple(arrays))
        return tuple(groups)

    def has(self, n: int, kind: str) -> bool:
        """Whether something is kept."""
        return (n, kind) in self._memory

    def drop(self, n: int, kind: str) -> None:
        """Forget it."""
        if isinstance(self._memory.pop((n, kind), None), list):
            self._path(n, kind).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all."""
        for n, kind in list(self._memory):
            self.drop(n, kind)

    def close(self) -> None:
        """Forget all and remove the folder now."""
        self._memory.clear()
        if self._folder is not None:
            self._remove()

    def _path(self, n: int, kind: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{kind}_{n}.npy"

    @property
    def bytes(self) -> int:
        """Taken in memory now, arrays that are kept twice counted once."""
        arrays = {id(a): a.nbytes for v in self._memory.values() if isinstance(v, tuple) for g in v for a in g}
        return sum(arrays.values())
