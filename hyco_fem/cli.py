"""The command hyco-fem: run experiments that are written down in TOML files (see hyco_fem.experiment.schema).

    hyco-fem run experiment.toml --set game.rounds=50     mpirun -n 4 hyco-fem run experiment.toml
    hyco-fem run experiment.toml --dry-run
    hyco-fem resume out/experiment                        go on after a time limit, a signal or a crash
    hyco-fem run experiment.toml --resume                 the same, or start: for jobs that are put back into the queue
    hyco-fem report out/experiment                        one HTML page of what a run has left
    hyco-fem compare experiment.toml --seeds 3            HYCO against its baselines, on sensors left out
    hyco-fem convergence experiment.toml --degrees 1,2    how fine must the mesh be?
    hyco-fem verify experiment.toml                       are the gradients right, on any number of ranks?
    hyco-fem info                                         versions, MPI, threads

Exit status: 0, 1 for an error while running, 2 for a wrong command line or configuration, 75 (EX_TEMPFAIL) where a
signal has stopped a run that can go on, 130 for Ctrl-C, 141 where nobody reads the output any more.  Under mpirun the
status is mpirun's; and of a signal to mpirun itself the ranks may know for half a second only: send it to the ranks.
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
from hyco_fem.experiment.methods import METHODS
from hyco_fem.experiment.run import read_stored, run_experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.io.checkpoint_file import versions
from hyco_fem.parallel import limit_threads
from hyco_fem.script import closed_output_ends, run_script

# Its exit status, where that is not 0.
Command = Callable[[argparse.Namespace, MPI.Comm], int | None]

# EX_TEMPFAIL of sysexits.h: nothing is wrong, but it is not done.
_NOT_DONE = 75

_PACKAGES = ("mumps", "superlu_dist", "hypre", "suitesparse", "scalapack", "ptscotch", "parmetis", "ml")
_OPTIONAL = ("gmsh", "slepc4py", "matplotlib", "pyvista", "h5py", "scipy", "rich", "checkpoint_schedules")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.  Collective; ends the process with its status where that is not 0."""
    comm = MPI.COMM_WORLD
    with closed_output_ends(comm):
        options = _options(arguments, comm)
    wrong: list[ConfigurationError] = []
    status: list[int | None] = []

    def body() -> None:
        try:
            status.append(options.command(options, comm))
        except ConfigurationError as error:
            wrong.append(error)
            raise

    try:
        run_script(body, comm)
    except SystemExit as end:
        # run_script has told of the error, once for all ranks.
        sys.exit(2 if wrong and end.code == 1 else end.code)
    if status and status[0]:
        sys.exit(status[0])


def _options(arguments: Sequence[str] | None, comm: MPI.Comm) -> argparse.Namespace:
    """The command line, parsed; what argparse has to tell is told by rank 0."""
    silent = io.StringIO()
    with contextlib.ExitStack() as stack:
        if comm.rank > 0:
            stack.enter_context(contextlib.redirect_stderr(silent))
            stack.enter_context(contextlib.redirect_stdout(silent))
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help(sys.stderr)
            sys.exit(2)
        return options


def _parser() -> argparse.ArgumentParser:
    text = "Finite elements and neural networks, fitted together to sensor data."
    end = "hyco-fem COMMAND --help tells more.  mpirun -n 4 hyco-fem COMMAND … runs it on four ranks."
    parser = argparse.ArgumentParser(prog="hyco-fem", description=text, epilog=end)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="such as game.rounds=50"
    )

    def add(name: str, command: Command, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
        sub.set_defaults(command=command)
        return sub

    def experiment(sub: argparse.ArgumentParser, out: bool = True) -> argparse.ArgumentParser:
        sub.add_argument("experiment", type=Path, help="the TOML file")
        if out:
            sub.add_argument("--out", type=Path, metavar="DIR", help="by default the output folder of the experiment")
        return sub

    sub = experiment(add("run", run, "play an experiment and write its results", settings), out=False)
    sub.add_argument("--dry-run", action="store_true", help="tell sizes, memory and time, and write nothing")
    again = sub.add_mutually_exclusive_group()
    again.add_argument(
        "--overwrite",
        action="store_true",
        help="start the same experiment again, and replace its checkpoints and results",
    )
    again.add_argument("--resume", action="store_true", help="go on from the last checkpoint, where there is one")
    sub = add("resume", resume, "go on with a run from its last checkpoint", settings)
    sub.add_argument("folder", type=Path, help="the output folder")
    sub = add("report", report, "make one HTML page of what a run, or several, have left")
    sub.add_argument("folder", type=Path, help="the output folder, or one with output folders in it")
    sub.add_argument("--to", type=Path, metavar="FILE", help="by default report.html in the folder")
    sub = experiment(add("compare", compare, "judge methods by sensors left out, and by the truth", settings))
    sub.add_argument("--methods", type=_names, metavar="A,B", help=f"of {', '.join(METHODS)}; all by default")
    sub.add_argument("--seeds", type=int, default=5, metavar="N", help="of network and ghost points (5)")
    sub.add_argument("--folds", type=int, default=5, metavar="K", help="of the sensors (5); 0 with --truth alone")
    sub.add_argument("--truth", type=Path, metavar="FILE", help="a TOML file with the true coefficients")
    sub = experiment(add("convergence", convergence, "solve on finer meshes: is the mesh fine enough?", settings))
    sub.add_argument("--levels", type=int, default=4, metavar="N", help="meshes, each with cells half as large (4)")
    sub.add_argument("--degrees", type=_whole, metavar="P,Q", help="of the elements; that of the file by default")
    sub.add_argument("--at", type=Path, metavar="OUT", help="with the coefficients that a run has found")
    sub = add("verify", verify, "check the gradient of an experiment's PDE, and its numbers on 1 … N ranks", settings)
    experiment(sub, out=False)
    sub.add_argument("--tolerance", type=float, default=1e-10, help="between numbers of ranks, relative")
    add("info", info, "tell versions, PETSc packages, MPI, threads")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _whole(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers, such as 1,2, not '{text}'") from None


def _say(comm: MPI.Comm) -> Callable[[str], None]:
    def say(text: str) -> None:
        if comm.rank == 0:
            print(text, flush=True)

    return say


def run(options: argparse.Namespace, comm: MPI.Comm) -> int | None:
    """hyco-fem run."""
    limit_threads(comm)
    experiment = read_experiment(options.experiment, options.settings, comm=comm)
    if options.dry_run:
        _say(comm)(str(estimate(experiment, comm)))
        return None
    result = run_experiment(experiment, comm, resume=options.resume, overwrite=options.overwrite, say=_say(comm))
    return _NOT_DONE if result.stop == "signal" else None


def resume(options: argparse.Namespace, comm: MPI.Comm) -> int | None:
    """hyco-fem resume."""
    limit_threads(comm)
    experiment = read_stored(options.folder, options.settings, comm)
    result = run_experiment(experiment, comm, resume=True, say=_say(comm))
    return _NOT_DONE if result.stop == "signal" else None


def report(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem report."""
    from hyco_fem.experiment.report import write_report

    _say(comm)(f"written to {write_report(options.folder, comm, options.to)}")


def compare(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem compare."""
    from hyco_fem.experiment.compare import compare

    limit_threads(comm)
    experiment = read_experiment(options.experiment, options.settings, comm=comm)
    compare(
        experiment,
        comm,
        methods=options.methods,
        seeds=options.seeds,
        folds=options.folds,
        truth=options.truth,
        folder=options.out,
        say=_say(comm),
    )


def convergence(options: argparse.Namespace, comm: MPI.Comm) -> None:
    """hyco-fem convergence."""
    from hyco_fem.experiment.convergence import convergence

    limit_threads(comm)
    experiment = read_experiment(options.experiment, options.settings, comm=comm)
    convergence(
        experiment,
        comm,
        levels=options.levels,
        degrees=options.degrees,
        at=options.at,
        folder=options.out,
        say=_say(comm),
    )


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
