"""Experiments on disk: read with overrides, written as used, and told from others."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, plain, read
from hyco_fem.experiment.toml import load, overridden
from hyco_fem.parallel import raise_together


def read_experiment(
    path: str | Path, settings: Iterable[str] = (), *, comm: MPI.Comm = MPI.COMM_WORLD, folder: Path | None = None
) -> Experiment:
    """Read a TOML file with its overrides, and check it.  Rank 0 reads, every rank gets it.  Collective.

    Args:
        path: The file.  settings: overrides, "game.rounds=50".
        folder: The output folder, whatever the file says.

    Raises:
        ConfigurationError: with the key, and what to put there; on all ranks.
    """
    found, error = None, None
    if comm.rank == 0:
        try:
            found = _read(Path(path), list(settings), folder)
        except Exception as e:
            error = e
    raise_together(comm, error)
    experiment: Experiment = comm.bcast(found)
    return experiment


def _read(path: Path, settings: list[str], folder: Path | None) -> Experiment:
    experiment = read(Experiment, overridden(load(path), settings))
    experiment = experiment.with_files(lambda file: Path(os.path.abspath(path.parent / file)))
    for key, file in experiment.files().items():
        if not file.is_file():
            raise ConfigurationError(f"{key}: the file '{file}' is not there")
    where = folder or experiment.output.folder or Path("out") / path.stem
    return replace(experiment, output=replace(experiment.output, folder=where))


def as_table(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The table of the experiment as used, for a file in a folder: all defaults written out, files relative to it."""
    found = plain(experiment.with_files(lambda file: Path(os.path.relpath(file, folder))))
    del found["output"]["folder"]
    return found


def identity(experiment: Experiment) -> dict[str, Any]:
    """What tells an experiment from others, of files the content; not how long it is played, nor what is written.

    Local to the rank; reads the files.
    """
    found = plain(experiment)
    for key in ("constants", "arguments", "petsc_options"):  # of which the order says nothing
        for section in (found["mesh"], found["problem"]):
            if key in section:
                section[key] = dict(sorted(section[key].items()))
    for key in ("output", "title"):
        found.pop(key, None)
    for key in ("rounds", "stopping"):
        found["game"].pop(key, None)
    for key in ("checkpoints", "output"):
        found.get("time", {}).pop(key, None)
    for key, digest in digests(experiment).items():
        place, name = key.split(".")
        found[place][name] = digest
    return found


def digests(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of each file that the experiment is made of, with those that belong to it, by key.  Local to the rank."""
    found = {}
    for key, file in experiment.files().items():
        digest = hashlib.sha256()
        for part in _parts(file):
            digest.update(part.read_bytes())
        found[key] = digest.hexdigest()
    return found


def _parts(file: Path) -> list[Path]:
    """A file and what belongs to it: to XDMF its HDF5, to a Python file the modules beside it that it imports."""
    found = [file]
    if file.suffix == ".xdmf" and file.with_suffix(".h5").is_file():
        found.append(file.with_suffix(".h5"))
    for path in found:  # of which there may be more in the meantime
        if path.suffix == ".py":
            found += [module for module in _imported(path) if module not in found]
    return found


def _imported(path: Path) -> list[Path]:
    """The modules in the folder of a Python file that it imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # which is told where it is run
        return []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    beside = [path.parent / f"{name.partition('.')[0]}.py" for name in sorted(names)]
    return [module for module in beside if module.is_file()]
