"""A run of an experiment: its output folder, its checkpoints, and what is written at the end.  Collective throughout.

experiment.toml      the configuration as used, all defaults written out; `hyco-fem resume` goes on from it
history.csv, .jsonl  line by line (history.csv.running and history.jsonl.running until the run has ended)
checkpoints/         see `hyco_fem.Checkpoints`; inputs.json: SHA-256 of the files that the run was started with
summary.json         parameters, losses, why the run ended, versions
fields.xdmf          u of both models and the coefficients, for ParaView; in time at the end of the interval
series.xdmf          in time: u of both models at the output times
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np

from hyco_fem.experiment.build import Built, build
from hyco_fem.experiment.configuration import as_table, digests, identity, read_experiment
from hyco_fem.experiment.output import write_results
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.experiment.toml import dump
from hyco_fem.files import output_folder, replace_file
from hyco_fem.game.history import Result
from hyco_fem.game.progress import progress
from hyco_fem.io.checkpoint import Checkpoints, Restart
from hyco_fem.io.checkpoint_file import difference
from hyco_fem.io.history import HistoryFile
from hyco_fem.models.transient import TransientModel
from hyco_fem.parallel import agreed

CONFIGURATION = "experiment.toml"
_CHECKPOINTS = "checkpoints"
_INPUTS = "inputs.json"
# What a folder without a configuration must not hold: it would be overwritten.
_RESULTS = ("summary.json", "history.csv", "history.jsonl", "fields.xdmf", _CHECKPOINTS)

Say = Callable[[str], None]


def run_experiment(
    experiment: Experiment,
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = lambda text: None,
) -> Result:
    """Build the game, play it, and write the results.  Collective.

    Args:
        experiment: From `read_experiment`.
        resume: Go on from the last checkpoint in the folder.
        overwrite: Start again where the folder holds checkpoints of the same experiment.
        say: Called on every rank with lines for a log.

    Raises:
        ConfigurationError: something does not fit, or the folder is of another experiment; nothing was written.
        OSError: the folder cannot be written.
    """
    folder = experiment.output.folder
    assert folder is not None
    own = _claim(experiment, folder, comm, resume=resume, overwrite=overwrite)
    built = build(experiment, comm)
    game, output, rounds = built.game, experiment.output, experiment.game.rounds
    say(describe(experiment, built))
    output_folder(folder, comm)  # now, so that an experiment that does not fit leaves nothing behind
    if overwrite and comm.rank == 0:
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    with Checkpoints(
        folder / _CHECKPOINTS,
        game,
        seconds=output.checkpoint_seconds,
        rounds=output.checkpoint_rounds,
        keep=output.keep,
        configuration=own,
    ) as checkpoints:
        done = None
        if resume:
            with warnings.catch_warnings(record=True) as passed_over:
                warnings.simplefilter("always")
                done = checkpoints.resume()
            for warning in passed_over:
                say(str(warning.message))
            say(_where(done))
        _write_configuration(experiment, folder, comm)
        past = [] if done is None else done.history
        left = max(0, rounds - len(past))
        with (
            HistoryFile(folder / "history.csv", comm, past=past) as table,
            HistoryFile(folder / "history.jsonl", comm, past=past) as lines,
            progress(left, comm) as shown,
        ):
            result = game.run(rounds, stopping=built.stopping, callbacks=[checkpoints, table, lines, shown])
    write_results(experiment, built, result, folder)
    built.close()
    found = ", ".join(f"{k} {np.round(v, 4).tolist()}" for k, v in result.parameters.items())
    say(f"{result.rounds} rounds, ended by {result.stop}: {found}")
    say(f"written to {folder}/" + (f"; hyco-fem resume {folder} goes on" if result.stop == "signal" else ""))
    return result


def _where(done: Restart | None) -> str:
    """Where a run goes on, in words."""
    if done is None:
        return "there is no checkpoint: starts"
    place = f"at round {done.round}" if done.warm_up is None else f"in the warm-up, after {done.warm_up} rounds"
    return f"goes on {place}, from {done.path}"


def _write_configuration(experiment: Experiment, folder: Path, comm: MPI.Comm) -> None:
    with agreed(comm):
        if comm.rank == 0:
            inputs = json.dumps(digests(experiment), indent=2) + "\n"
            replace_file(folder / _CHECKPOINTS / _INPUTS, lambda p: p.write_text(inputs, encoding="utf-8"))
            text = dump(as_table(experiment, folder))
            replace_file(folder / CONFIGURATION, lambda p: p.write_text(text, encoding="utf-8"))


def read_stored(folder: Path, settings: list[str], comm: MPI.Comm) -> Experiment:
    """The experiment of an output folder, with overrides.  Collective.

    Raises:
        ConfigurationError: the folder holds no experiment, or an override does not fit.
    """
    with agreed(comm):
        if any(setting.partition("=")[0].strip() == "output.folder" for setting in settings):
            raise ConfigurationError(f"output.folder: a run goes on in its own folder, '{folder}'; leave it out")
        if comm.rank == 0 and not (folder / CONFIGURATION).is_file():
            raise ConfigurationError(f"{folder}: no output folder of hyco-fem run, it has no {CONFIGURATION}")
    return read_experiment(folder / CONFIGURATION, settings, comm=comm, folder=folder)


def describe(experiment: Experiment, built: Built) -> str:
    """One line: what is solved, and how large it is."""
    V, comm = built.physical.V, built.physical.comm
    dofs = V.dofmap.index_map.size_global * V.dofmap.index_map_bs
    name = experiment.title or experiment.problem.name or str(experiment.problem.function)
    steps = f"{built.physical.grid.n} steps, " if isinstance(built.physical, TransientModel) else ""
    return f"{name}: {dofs} dofs, {steps}{built.data.n} sensors, {comm.size} rank(s)"


# -- the folder ------------------------------------------------------------------------------------------------


def _claim(experiment: Experiment, folder: Path, comm: MPI.Comm, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Check that the folder is free, or of this experiment.  What tells it from others, on every rank.  Collective."""
    own: dict[str, Any] = {}
    with agreed(comm):
        if comm.rank == 0:
            own = identity(experiment)
            _check_folder(experiment, folder, own, resume, overwrite)
    return comm.bcast(own)


def _check_folder(experiment: Experiment, folder: Path, own: dict[str, Any], resume: bool, overwrite: bool) -> None:
    stored = folder / CONFIGURATION
    kept = any((folder / _CHECKPOINTS).glob("round-*.pt"))
    done = [name for name in _RESULTS if name != _CHECKPOINTS and (folder / name).exists()]
    if not stored.is_file():
        held = [name for name in _RESULTS if (folder / name).exists()]
        if held:
            raise ConfigurationError(
                f"output.folder: '{folder}' holds {', '.join(held)} of something else; choose another folder"
            )
        return
    if not kept and not done:  # a run that came to nothing
        return
    try:
        there = identity(read_experiment(stored, comm=MPI.COMM_SELF, folder=folder))
    except (ConfigurationError, OSError) as error:
        raise ConfigurationError(
            f"output.folder: the experiment in '{folder}' cannot be read ({error}); choose another folder"
        ) from None
    found = difference(_json(there), _json(own))
    if found is not None:
        found = re.sub(r"\['([^']*)'\]", r".\1", found)  # keys as they are in the file
        remedy = "a run goes on with its own configuration" if resume else "choose another folder"
        raise ConfigurationError(f"output.folder: '{folder}' is of another experiment: {found}; {remedy}")
    if not overwrite:
        _check_inputs(folder, experiment)
    if kept and not resume and not overwrite:
        raise ConfigurationError(
            f"output.folder: '{folder}' holds checkpoints of this experiment: hyco-fem resume {folder} goes on, "
            "--overwrite starts again"
        )
    if not kept and not overwrite:
        raise ConfigurationError(
            f"output.folder: '{folder}' holds {', '.join(done)} of a run without its checkpoints: --overwrite starts "
            "again, and replaces them"
        )


def _check_inputs(folder: Path, experiment: Experiment) -> None:
    """Raise ConfigurationError where a file that the run in a folder was started with has another content now."""
    path = folder / _CHECKPOINTS / _INPUTS
    if not path.is_file():
        return
    try:
        then = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"output.folder: '{path}' cannot be read ({error}); choose another folder") from None
    for key, digest in digests(experiment).items():
        if then.get(key, digest) != digest:
            raise ConfigurationError(
                f"{key}: '{experiment.files()[key]}', or what it imports or refers to, has changed since the run in "
                f"'{folder}' began; put back what it was, choose another output.folder, or start again with "
                "hyco-fem run --overwrite"
            )


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
