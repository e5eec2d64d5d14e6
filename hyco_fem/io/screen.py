"""Where VTK can draw: on a screen that is there, without one, or on an Xvfb that is started for it and ends with us.

VTK ends the whole process where it needs an X server and finds none, so this is settled before.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import functools
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def off_screen() -> Iterator[Any]:
    """Within it pyvista, which it gives, draws with off_screen=True whether there is a screen or not.

        with off_screen() as pyvista:
            plotter = pyvista.Plotter(off_screen=True)

    Where DISPLAY names an X server that answers, and where VTK can draw without one (EGL, OSMesa), nothing is done.
    Otherwise DISPLAY is set to an Xvfb, which the first call starts (0.2 s), and which ends with the process;
    one that is no longer there is started again.  Local to the rank.

    Raises:
        RuntimeError: pyvista is not installed, or an X server is needed and Xvfb is not installed or does not start.
    """
    pyvista = import_pyvista()
    if not sys.platform.startswith("linux") or _answers():
        yield pyvista
        return
    before = os.environ.pop("DISPLAY", None)
    try:
        if _needs_no_screen():
            with _silent():
                yield pyvista
        else:
            if not _runs(_server()[1]):
                _server.cache_clear()
            os.environ["DISPLAY"], _ = _server()
            yield pyvista
    finally:
        os.environ.pop("DISPLAY", None)
        if before is not None:
            os.environ["DISPLAY"] = before


def import_pyvista() -> Any:
    """pyvista.  Raises RuntimeError where it is not installed."""
    try:
        import pyvista
    except ImportError as error:
        raise RuntimeError(
            f"drawing needs pyvista ({error}): python3-pyvista (Debian), pyvista (conda-forge, PyPI)"
        ) from None
    return pyvista


def _answers() -> bool:
    """Whether DISPLAY is set and its X server there."""
    if not os.environ.get("DISPLAY"):
        return False
    name = ctypes.util.find_library("X11")
    if name is None:
        return False
    x11 = ctypes.CDLL(name)
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XCloseDisplay.argtypes = [ctypes.c_void_p]
    display = x11.XOpenDisplay(None)
    if display:
        x11.XCloseDisplay(display)
    return bool(display)


def _needs_no_screen() -> bool:
    from vtkmodules import vtkRenderingOpenGL2

    return any(hasattr(vtkRenderingOpenGL2, f"vtk{kind}RenderWindow") for kind in ("EGL", "OSOpenGL"))


@contextmanager
def _silent() -> Iterator[None]:
    """VTK tries X first, and warns that it is not there."""
    from vtkmodules.vtkCommonCore import vtkLogger

    before = vtkLogger.GetCurrentVerbosityCutoff()
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    try:
        yield
    finally:
        vtkLogger.SetStderrVerbosity(before)


@functools.cache
def _server() -> tuple[str, int]:
    """Start an Xvfb: its DISPLAY and its process.

    It is not stopped before: Xlib ends a process whose server goes away, and a window of VTK may live as long as we do.
    With setpriv the system ends it when we end, in whatever way.
    """
    if shutil.which("Xvfb") is None:
        raise RuntimeError(
            "this VTK draws through an X server only, and there is none: install Xvfb (Debian: xvfb, conda-forge: "
            "xorg-xorg-server), or set DISPLAY"
        )
    # setpriv is of util-linux.  Without it a process that is killed leaves its server behind.
    tied = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    with tempfile.TemporaryFile() as log:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)
        command = [*tied, "Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x1024x24"]
        command += ["-nolisten", "tcp", "-noreset"]
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
        ]
        # A Popen would warn when it is forgotten while its process runs.
        process = _in_a_lasting_thread(lambda: os.posix_spawnp(command[0], command, os.environ, file_actions=streams))
        os.close(writer)
        with open(reader, "rb") as answer:
            number = answer.readline().strip().decode()  # empty where it ends instead
        if not number:
            os.waitpid(process, 0)
            log.seek(0)
            raise RuntimeError(f"Xvfb did not start: {log.read().decode(errors='replace').strip()}")
    if not tied:
        atexit.register(_end, process)
    return f":{number}", process


def _in_a_lasting_thread(start: Callable[[], int]) -> int:
    """What `start` returns.  The signal of setpriv comes when the thread that started the server ends."""
    started: queue.SimpleQueue[int | OSError] = queue.SimpleQueue()

    def last() -> None:
        try:
            started.put(start())
        except OSError as error:
            started.put(error)
            return
        threading.Event().wait()

    threading.Thread(target=last, name="Xvfb", daemon=True).start()
    process = started.get()
    if isinstance(process, OSError):
        raise process
    return process


def _runs(process: int) -> bool:
    with suppress(ChildProcessError):  # where this process is a fork of the one that started it
        return os.waitpid(process, os.WNOHANG) == (0, 0)
    return os.path.exists(f"/proc/{process}")


def _end(process: int) -> None:
    """End the server, after the windows that pyvista has on it."""
    import_pyvista().close_all()
    with suppress(ChildProcessError):  # a fork leaves it to the one that started it
        if os.waitpid(process, os.WNOHANG) == (0, 0):
            os.kill(process, signal.SIGTERM)
