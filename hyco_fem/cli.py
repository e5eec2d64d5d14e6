"""The command hyco-fem: run experiments that are written down in TOML files (see hyco_fem.experiment.schema).

    hyco-fem run experiment.toml --set game.rounds=50     mpirun -n 4 hyco-fem run experiment.toml
    hyco-fem run experiment.toml --dry-run
    hyco-fem resume out/experiment
    hyco-fem verify experiment.toml
    hyco-fem info

Exit status: 0, 1 for an error while running, 2 for a wrong command line or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

import torch

from hyco_fem.experiment.check import check
from hyco_fem.experiment.configuration import read_experiment
from hyco_fem.experiment.estimate import estimate
from hyco_fem.experiment.run import read_stored, run_experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.io.checkpoint_file import versions
from hyco_fem.parallel import limit_threads
from hyco_fem.script import run_script

Command = Callable[[argparse.Namespace, MPI.Comm], None]

_PACKAGES = ("mumps", "superlu_dist", "hypre", "suitesparse", "scalapack", "ptscotch", "parmetis", "ml")
_OPTIONAL = ("gmsh", "slepc4py", "matplotlib", "scipy", "rich", "checkpoint_schedules")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.  Collective; ends the process with its status where that is not 0."""
    comm = MPI.COMM_WORLD
    options = _options(arguments, comm)
    wrong: list[ConfigurationError] = []

    def body() -> None:
        try:
            options.command(options, comm)
        except ConfigurationError as error:
            wrong.append(error)
            raise

    try:
        run_script(body, comm)
    except SystemExit as end:
        # run_script has told of the error, once for all ranks.
        sys.exit(2 if wrong and end.code == 1 else end.code)


def _options(arguments: Sequence[str] | None, comm: MPI.Comm) -> argparse.Namespace:
    """The command line, parsed; what argparse has to tell is told by rank 0."""
    silent = io.StringIO()
    with contextlib.ExitStack() as stack:
        if comm.rank > 0:
            stack.enter_context(contextlib.redirect_stderr(silent))
            stack.enter_context(contextlib.redirect_stdout(silent))
        return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    text = "Finite elements and neural networks, fitted together to sensor data."
    parser = argparse.ArgumentParser(prog="hyco-fem", description=text)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="such as game.rounds=50"
    )

    def add(name: str, command: Command, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=parents)
        sub.set_defaults(command=command)
        return sub

    sub = add("run", run, "play an experiment and write its results", settings)
    sub.add_argument("experiment", type=Path, help="the TOML file")
    sub.add_argument("--dry-run", action="store_true", help="tell sizes, memory and time, and write nothing")
    sub.add_argument("--overwrite", action="store_true", help="start again, whatever checkpoints there are")
    sub = add("resume", resume, "go on with a run from its last checkpoint", settings)
    sub.add_argument("folder", type=Path, help="the output folder")
    sub = add("verify", verify, "check the gradient of an experiment's PDE, and its numbers on 1 … N ranks", settings)
    sub.add_argument("experiment", type=Path, help="the TOML file")
    sub.add_argument("--tolerance", type=float, default=1e-10, help="between numbers of ranks, relative")
    add("info", info, "versions, PETSc packages, MPI, threads")
    return parser


def _say(comm: MPI.Comm) -> Callable[[str], None]:
    def say(text: str) -> None:
        if comm.rank == 0:
            print(text, flush=True)

    return say


def run(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem run."""
    limit_threads(comm)
    experiment = read_experiment(options.experiment, options.settings, comm=comm)
    if options.dry_run:
        _say(comm)(str(estimate(experiment, comm)))
    else:
        run_experiment(experiment, comm, overwrite=options.overwrite, say=_say(comm))


def resume(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem resume."""
    limit_threads(comm)
    experiment = read_stored(options.folder, options.settings, comm)
    run_experiment(experiment, comm, resume=True, say=_say(comm))


def verify(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem verify."""
    limit_threads(comm)
    checks = check(read_experiment(options.experiment, options.settings, comm=comm), comm, tolerance=options.tolerance)
    _say(comm)(str(checks))
    if checks.failed:
        raise RuntimeError("; ".join(checks.failed))


def info(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem info."""
    say, threads = _say(comm), limit_threads(comm)
    for name, version in versions().items():
        say(f"{name:24s}{version}")
    for name in _OPTIONAL:
        say(f"{name:24s}{_version(name)}")
    there = [name for name in _PACKAGES if PETSc.Sys.hasExternalPackage(name)]
    say(f"{'PETSc packages':24s}{', '.join(there) or 'none'}")
    say(f"{'PETSc scalars':24s}{PETSc.ScalarType.__name__}, {8 * PETSc.IntType().itemsize}-bit indices")
    say(f"{'ranks':24s}{comm.size}")
    chosen, cores = os.environ.get("OMP_NUM_THREADS", "not set"), len(os.sched_getaffinity(0))
    say(f"{'threads':24s}{threads} a rank, OMP_NUM_THREADS={chosen}, {cores} cores")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    say(f"{'GPUs':24s}{', '.join(devices) or 'none'}")


def _version(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return "not there"
    return str(getattr(module, "__version__", "there"))


if __name__ == "__main__":
    main()
