"""Scripts that end well: one error message for all ranks, a status that is not zero, and never a hang."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpi4py import MPI

# How long a rank with an error waits for the others to have one too, in seconds.
_PATIENCE = 5.0

# What users can mend: told in one line.  Anything else is a defect, and is shown with its traceback.
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, FloatingPointError)


def run_script(main: Callable[[], object], comm: MPI.Comm = MPI.COMM_WORLD) -> None:
    """Call main() as the body of a script under mpirun.  Collective.

    An error that all ranks raise, as those of this package are, is printed once, by rank 0, and every rank exits with
    status 1.  An error on some ranks only is printed by them with its traceback, and all ranks are aborted.  Ctrl-C
    ends it in one line with status 130, an output that nobody reads any more (`| head`) quietly with 141.

    What the package has to tell (`logging.getLogger("hyco_fem")`: which solver was chosen, for instance) is printed by
    rank 0, unless the script has set up logging itself.
    """
    _show_log()
    own = comm.Dup()  # so that waiting for the others cannot meet a collective call that they are in
    try:
        with closed_output_ends(comm):
            main()
    except KeyboardInterrupt:
        if comm.rank == 0:
            print("interrupted", file=sys.stderr, flush=True)
        _end(comm, 130)
    except Exception as error:
        if not _all_here(own):
            _abort_alone(comm, error)
        if comm.rank == 0:
            text = f"error: {error}" if _expected(error) else traceback.format_exc()
            print(text, file=sys.stderr, flush=True)
        own.Barrier()
        sys.exit(1)
    own.Free()


@contextmanager
def closed_output_ends(comm: MPI.Comm = MPI.COMM_WORLD) -> Iterator[None]:
    """End the process with status 141 where the block writes to an output that was closed, as `| head` does.

    PETSc takes the signal for that, SIGPIPE, as a crash and says so at length; Python's way is to ignore it, and to
    raise BrokenPipeError.  Local to the rank; where there are others, they are aborted.
    """
    if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _closed():
            raise
        # What is left in the buffer goes nowhere when Python ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(comm, 141)


def _closed() -> bool:
    """Whether nobody reads the output any more."""
    with suppress(AttributeError, OSError, ValueError):  # where it is no file, or there is no poll
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return bool(output.poll(0))
    return False


def _end(comm: MPI.Comm, status: int) -> None:
    """End all ranks, wherever they are."""
    if comm.size > 1:
        comm.Abort(status)
    sys.exit(status)


def _expected(error: Exception) -> bool:
    """Whether a user can mend it; a TypeError that this package has not raised itself is a slip in the script."""
    if not isinstance(error, TypeError):
        return isinstance(error, _EXPECTED)
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


class _Print(logging.Handler):
    """Prints each message once: twenty models of one kind have one thing to tell."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text not in self._told:
            self._told.add(text)
            print(f"hyco_fem: {text}", flush=True)


def _show_log() -> None:
    log = logging.getLogger("hyco_fem")
    if not log.hasHandlers():
        log.addHandler(_Print())
        log.setLevel(logging.INFO)


def _abort_alone(comm: MPI.Comm, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    print(f"rank {comm.rank} alone:\n{text}", file=sys.stderr, flush=True)
    comm.Abort(1)


class Everyone:
    """Tells errors that all ranks have, which a study may go on after, from those of some ranks, which it may not.

    Collective, before there is an error.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm.Dup()

    def has(self, error: Exception) -> None:
        """Return where all ranks come here within seconds; otherwise abort all, for the others wait elsewhere."""
        if not _all_here(self._comm):
            _abort_alone(self._comm, error)

    def close(self) -> None:
        """Free the communicator.  Collective."""
        self._comm.Free()


def _all_here(comm: MPI.Comm) -> bool:
    request = comm.Ibarrier()
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if request.Test():
            return True
        time.sleep(0.01)
    return False
