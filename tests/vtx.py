"""What is in a VTX file, by the C library of ADIOS2 that DOLFINx writes with: Debian's has no Python module."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

_READ, _SYNC, _STEP_READ, _OK = 2, 5, 2, 0


def _library() -> ctypes.CDLL:
    with open(f"/proc/{os.getpid()}/maps", encoding="utf-8") as maps:
        loaded = {line.split()[-1] for line in maps if "libadios2" in line and "_core" in line}
    core = sorted(loaded)[0]
    library = ctypes.CDLL(core.replace("_core_mpi.so", "_core.so").replace("_core.so", "_c.so"))
    for name in ("adios2_init_serial", "adios2_declare_io", "adios2_open", "adios2_inquire_variable"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


def read_vtx(path: Path, names: list[str], blocks: int) -> list[tuple[float, dict[str, np.ndarray]]]:
    """(time, arrays of float64 by name) of each step; those of `blocks` ranks after another.  Local to the rank.

    An array that stands in the first step only is in that only.
    """
    c = _library()
    pointer = ctypes.c_void_p
    adios = pointer(c.adios2_init_serial())
    io = pointer(c.adios2_declare_io(adios, b"reader"))
    engine = pointer(c.adios2_open(io, str(path).encode(), _READ))
    steps, status = [], ctypes.c_int()
    while c.adios2_begin_step(engine, _STEP_READ, ctypes.c_float(0.0), ctypes.byref(status)) == 0:
        if status.value != _OK:
            break
        time, found = ctypes.c_double(), {}
        assert c.adios2_get(engine, pointer(c.adios2_inquire_variable(io, b"step")), ctypes.byref(time), _SYNC) == 0
        for name in names:
            variable = pointer(c.adios2_inquire_variable(io, name.encode()))
            if not variable.value:
                continue
            parts, size = [], ctypes.c_size_t()
            for block in range(blocks):
                c.adios2_set_block_selection(variable, ctypes.c_size_t(block))
                c.adios2_selection_size(ctypes.byref(size), variable)
                part = np.empty(size.value)
                assert c.adios2_get(engine, variable, part.ctypes.data_as(pointer), _SYNC) == 0
                parts.append(part)
            found[name] = np.concatenate(parts)
        steps.append((time.value, found))
        c.adios2_end_step(engine)
    c.adios2_close(engine)
    c.adios2_finalize(adios)
    return steps
