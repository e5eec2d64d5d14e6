"""HYCO against its baselines on an experiment of one's own: sensors left out are the judge, or a truth.

Each method is fitted, for each of several seeds of network and ghost points, to all sensors but those of one fold, for
each of k folds, and judged by what it says at these; with a truth also to all sensors, and judged by its error.  Every
method has the data, the PDE, the answers and the rounds of the file; weight decay and prior have all but the
physics-informed networks; see methods.py.

compare.jsonl     a line for each run, written when it is done: called again, only what is missing is run, and what
                  has failed is run again
compare.json, compare.csv, compare.png     the table, see findings.py; in the CSV quartiles by column
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch

from hyco_fem.bridge.spacetime import SpaceTimePoints
from hyco_fem.experiment.build import Built, build
from hyco_fem.experiment.compare_picture import draw, size_of
from hyco_fem.experiment.compare_table import METRICS, findings_of, listed, notes_of, numbers, score
from hyco_fem.experiment.findings import Findings, Say, check_run_folder, difference_in_words, whole_identity
from hyco_fem.experiment.methods import METHODS, Task, chosen, impossible, rule_of, without
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.experiment.truth import Truth, read_truth, solve_truth, why_not_compared
from hyco_fem.files import output_folder
from hyco_fem.game.data import Data
from hyco_fem.game.losses import network_values
from hyco_fem.game.player import flat, put_flat
from hyco_fem.parallel import agreed, sum_array
from hyco_fem.script import Everyone

LOG = "compare.jsonl"

# Of the folds, which are the same for all methods and on any partition.
_SEED = 0


@dataclass(frozen=True)
class Part:
    """What a run is fitted to and judged by.

    name: in the log.  held: which sensors are left out, (n,); None where none is, and the truth is the judge.
    """

    name: str
    held: np.ndarray | None


def compare(
    experiment: Experiment,
    comm: MPI.Comm = MPI.COMM_WORLD,
    *,
    methods: list[str] | None = None,
    seeds: int = 5,
    folds: int = 5,
    truth: Path | None = None,
    folder: Path | None = None,
    say: Say = lambda text: None,
) -> Findings:
    """Run what is missing or has failed, and write the table.  Collective.

    Args:
        experiment: From `read_experiment`.
        methods: By name, see `METHODS`; all by default.
        seeds: How many, added to those of the file.  folds: of the sensors; 0, with a truth: no sensor is left out.
        truth: A TOML file, see truth.py.
        folder: Where the results go; by default the output folder of the experiment.
        say: Called on every rank with lines for a log.

    Raises:
        ConfigurationError: something does not fit, or the folder is of another experiment; nothing was written.
        OSError: the folder cannot be written.
    """
    names, where = chosen(methods), folder or experiment.output.folder
    assert where is not None
    if seeds < 1:
        raise ConfigurationError(f"--seeds: must be at least 1, not {seeds}")
    if folds < 0 or folds == 1 or (folds == 0 and truth is None):
        more = "; 0 is for a comparison with --truth alone" if folds == 0 else ""
        raise ConfigurationError(f"--folds: must be at least 2, not {folds}{more}")
    table = None if truth is None else read_truth(truth, experiment, comm)
    check_run_folder(where, experiment, "--out", comm)
    log = Log(where / LOG, experiment, comm)
    built = build(experiment, comm)
    try:
        parts = [Part(f"fold {k + 1} of {folds}", held) for k, held in enumerate(folds_of(built.data, folds))]
        if table is not None:
            parts.append(Part(f"all sensors, truth {table.digest()}", None))
        out = {name: reason for name in names if (reason := impossible(name, experiment, built))}
        names = [name for name in names if name not in out]
        if not names:
            raise ConfigurationError(f"--methods: none of them can be run: {'; '.join(out.values())}")
        seeded = {name: seeds if METHODS[name].seeded or _has_seed(experiment) else 1 for name in names}
        last = parts[-1].name
        judged = any(not log.has(name, k, last) for name in names for k in range(seeded[name]))
        true = solve_truth(table, experiment, built) if table is not None and judged else None
        rule, data = rule_of(built), built.data
        noise = data.n_values / data.n_found if data.known_noise else None
    finally:
        built.close()
    output_folder(where, comm)
    log.begin()
    _run_missing(experiment, comm, log, seeded, parts, true, say)
    records = [log.done[name, k, part.name] for name in names for k in range(seeded[name]) for part in parts]
    compared = any("parameters" in r for r in records)
    scores = [score(name, [r for r in records if r["method"] == name], compared) for name in names]
    notes = notes_of(scores, records, out, seeded, seeds, folds, table, rule, noise)
    informed = [name for name in names if name.endswith("pinn")]
    if informed and without(experiment):
        notes.append(f"{', '.join(informed)}: without {listed(without(experiment))}")
    if table is not None and not compared and any(r["held"] is None and "error_physical" in r for r in records):
        notes.append(f"parameters: not compared, as {why_not_compared(table, experiment)}")
    title = f"{experiment.title or experiment.problem.name or experiment.problem.function}: methods compared"
    findings = findings_of(title, scores, notes, records)
    picture = partial(draw, scores=scores, noise=noise)
    findings.save(where, "compare", comm, picture, size=size_of(scores), table=numbers(scores))
    say(f"\n{findings}")
    say(f"written to {where}/: compare.json, compare.csv, compare.png, {LOG}")
    return findings


# -- runs ------------------------------------------------------------------------------------------------------


class Log:
    """compare.jsonl: whose it is, and a line for each run; rank 0 writes.  Collective.

    done: the records by method, seed and part; replicated.

    Raises:
        ConfigurationError: the file is of another experiment, or something else.
    """

    def __init__(self, path: Path, experiment: Experiment, comm: MPI.Comm) -> None:
        self.path, self.comm = path, comm
        self._own: dict[str, Any] = {}
        self.done: dict[tuple[str, int, str], dict[str, Any]] = {}
        with agreed(comm):
            if comm.rank == 0:
                self._own = whole_identity(experiment)
                if path.is_file():
                    self._read(path.read_text(encoding="utf-8").splitlines())
        self.done = comm.bcast(self.done)

    def _read(self, lines: list[str]) -> None:
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number:
                    self.done[record["method"], record["seed"], record["part"]] = record
                    continue
                theirs = record["comparison"]
            except (json.JSONDecodeError, KeyError, TypeError):
                if number:
                    continue  # cut off when a run was killed
                raise ConfigurationError(
                    f"--out: '{self.path}' is no log of hyco-fem compare; remove it, or choose another folder"
                ) from None
            found = difference_in_words(theirs, self._own)
            if found is not None:
                raise ConfigurationError(
                    f"--out: '{self.path.parent}' has a comparison of another experiment: {found}; choose another one"
                )

    def has(self, method: str, seed: int, part: str) -> bool:
        """Whether a run is done, and has not failed."""
        record = self.done.get((method, seed, part))
        return record is not None and record["error"] is None

    def begin(self) -> None:
        """Make the file, or end a line that was cut off."""
        with agreed(self.comm):
            if self.comm.rank == 0:
                before = self.path.read_bytes() if self.path.is_file() else b""
                with self.path.open("a", encoding="utf-8") as file:
                    if not before:
                        file.write(json.dumps({"comparison": self._own}) + "\n")
                    elif not before.endswith(b"\n"):
                        file.write("\n")

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record, that of rank 0, and flush it."""
        record = self.comm.bcast(record)
        with agreed(self.comm):
            if self.comm.rank == 0:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        self.done[record["method"], record["seed"], record["part"]] = record
        return record


def folds_of(data: Data, folds: int) -> list[np.ndarray]:
    """Which sensors each fold leaves out, (n,) of bool, the same on any partition; all at one place go together.

    Raises:
        ConfigurationError: there are more folds than places.  Collective.
    """
    if folds == 0:
        return []
    x = data.points.gather(data.points.x)[data.rows]
    x = x[:, :-1] if isinstance(data.points, SpaceTimePoints) else x
    _, place = np.unique(np.round(x, 12), axis=0, return_inverse=True)
    place = place.reshape(-1)
    n = int(place.max()) + 1
    if folds > n:
        raise ConfigurationError(f"--folds: {folds} folds of {n} places with sensors: one would have none; use fewer")
    order = np.random.default_rng(_SEED).permutation(n)
    found = []
    for k in range(folds):
        held = np.zeros(data.n, dtype=bool)
        held[np.flatnonzero(data.rows)] = np.isin(place, order[k::folds])
        found.append(held)
    return found


def seeded_with(experiment: Experiment, k: int) -> Experiment:
    """The experiment with k added to the seeds of network, ghost points and starts."""

    def moved(table: Any) -> Any:
        return replace(table, seed=table.seed + k) if hasattr(table, "seed") else table

    game = replace(experiment.game, ghosts=moved(experiment.game.ghosts), physical=moved(experiment.game.physical))
    return replace(experiment, network=moved(experiment.network), game=game)


def _has_seed(experiment: Experiment) -> bool:
    """Whether seeds have a say in the physical player's answers."""
    return hasattr(experiment.game.physical, "seed")


def _run_missing(
    experiment: Experiment,
    comm: MPI.Comm,
    log: Log,
    seeded: dict[str, int],
    parts: list[Part],
    true: Truth | None,
    say: Say,
) -> None:
    left = [(k, m, p) for k in range(max(seeded.values())) for m in seeded if k < seeded[m] for p in parts]
    todo = [(k, m, p) for k, m, p in left if not log.has(m, k, p.name)]
    if len(todo) < len(left):
        say(f"{len(left) - len(todo)} of {len(left)} runs are done already")
    start, seed, built, fresh = time.perf_counter(), -1, None, None
    everyone = Everyone(comm)
    try:
        for number, (k, name, part) in enumerate(todo, 1):
            if built is None or k != seed:
                if built is not None:
                    built.close()
                own = seeded_with(experiment, k)
                built, seed = build(own, comm), k
                fresh = [flat(m.parameters()) for m in (built.physical, built.synthetic)]
            for model, values in zip((built.physical, built.synthetic), fresh or [], strict=True):
                put_flat(model.parameters(), values)
            run = _one(name, own, built, part, true, everyone)
            record = log.add({"method": name, "seed": k, "part": part.name, **run})
            left_s = (time.perf_counter() - start) / number * (len(todo) - number)
            text = record["error"] or ", ".join(f"{METRICS[m]} {record[m]:.3g}" for m in METRICS if m in record)
            what = part.name.partition(",")[0]
            ahead = f"; {left_s:.0f} s left" if number < len(todo) else ""
            say(f"[{number}/{len(todo)}] {name}, seed {k}, {what}: {text} ({record['seconds']:.1f} s{ahead})")
    finally:
        if built is not None:
            built.close()
    everyone.close()


def _one(
    name: str, experiment: Experiment, built: Built, part: Part, true: Truth | None, everyone: Everyone
) -> dict[str, Any]:
    """One run; an error that it ends with is part of the record.  Collective."""
    method, comm = METHODS[name], built.physical.comm
    data = built.data if part.held is None else built.data.only(~part.held)
    before, start = _solves(built), time.perf_counter()
    found: dict[str, float] = {}
    rounds, error = 0, None
    try:
        rounds = method.run(Task(experiment, built, data)).rounds
        solves = _solves(built) - before
        if part.held is None:
            assert true is not None
            found = true.errors(built, method.physical, method.synthetic)
        else:
            found = _left_out(built, built.data.only(part.held), method.physical, method.synthetic)
        bad = [METRICS[m] for m, value in found.items() if not math.isfinite(value)]
        error = f"not finite: {', '.join(bad)}" if bad else None
    except (ArithmeticError, ValueError, RuntimeError) as e:
        everyone.has(e)
        error, solves = f"{type(e).__name__}: {str(e).splitlines()[0]}", _solves(built) - before
    seconds = time.perf_counter() - start
    held = None if part.held is None else int(part.held.sum())
    own = {} if error else found
    return {**own, "held": held, "rounds": rounds, "solves": solves, "seconds": seconds, "ranks": comm.size} | {
        "error": error
    }


def _solves(built: Built) -> int:
    """PDE solves so far: forward, tangent and adjoint; in time, steps."""
    return sum(built.physical.solver.counts.values())


def _left_out(built: Built, held: Data, physical: bool, synthetic: bool) -> dict[str, float]:
    """mean |u − y|²/σ² at the sensors left out."""
    found = {}
    with torch.no_grad():
        if physical:
            found["misfit_physical"] = held.local_misfit(built.physical.observe([held.points])[0])
        if synthetic:
            found["misfit_synthetic"] = held.local_misfit(network_values(built.synthetic, held.points.x))
    comm = built.physical.comm
    return {name: float(sum_array(comm, np.atleast_1d(float(local)))[0]) for name, local in found.items()}
