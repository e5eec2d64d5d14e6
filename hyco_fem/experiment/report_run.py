"""The sections of the page of one run."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hyco_fem.experiment.report_fields import pictures
from hyco_fem.experiment.report_files import FIELDS, SERIES, Run, field_files, flat, parameter_columns, sensors_of
from hyco_fem.experiment.report_html import Cell, Html, duration, figure, figures, number, paragraph, table
from hyco_fem.experiment.report_plot import STYLES, Curve, curve_plot, legend
from hyco_fem.experiment.report_tables import MOST_ROWS, plain
from hyco_fem.experiment.report_xdmf import read_fields, with_difference
from hyco_fem.io.sensors import Sensors

# What is measured in a round: symbol, and what it is.
MEASURES = {
    "misfit_physical": ("<i>L</i><sub>phy</sub>", "misfit of the physical model at the sensors"),
    "misfit_synthetic": ("<i>L</i><sub>syn</sub>", "misfit of the network at the sensors"),
    "interaction": ("<i>I</i>", "mean square of the difference of the models at the ghost points"),
    "potential": ("<i>P</i>", "potential of the game"),
    "residual": ("residual", "mean square of the residual of the PDE"),
    "boundary": ("boundary", "mean square by which boundary values are missed"),
    "initial": ("initial", "mean square by which initial values are missed"),
    "objective": ("objective", "weighted sum that is minimised"),
    "energy": ("<i>E</i>", "energy"),
    "gradient_physical": (
        "|∇<sub>θ</sub> <i>J</i><sub>phy</sub>|",
        "gradient of the physical player; at the end: Nash residual",
    ),
    "gradient_synthetic": (
        "|∇<sub>φ</sub> <i>J</i><sub>syn</sub>|",
        "gradient of the synthetic player; at the end: Nash residual",
    ),
}

# Why a run ended, as `Result.stop` has it.
_STOPS = {
    "rounds": "all rounds were played",
    "tolerance": "the gradients had become as small as was asked for",
    "stagnation": "the losses did not change any more",
    "discrepancy": "the misfits had come down to the noise",
    "callback": "a callback asked for the end",
}

_PANELS = (
    (("misfit_physical", "misfit_synthetic"), "Misfits at the sensors, in units of the noise where it is known."),
    (("interaction", "potential"), "Interaction (difference of the models at the ghost points) and potential."),
    (("gradient_physical", "gradient_synthetic"), "Gradients of the players; both are zero at a Nash equilibrium."),
    (("objective", "energy", "residual", "boundary", "initial"), "What is minimised, and its parts."),
)

_MOST_PANELS, _MOST_TIMES = 24, 6


def ending(run: Run) -> tuple[str, Html]:
    """How a run ended, in a word, and in a sentence with what to do."""
    played = run.rounds
    asked = run.experiment.game.rounds if run.experiment is not None else None
    of = "no round" if played is None else f"{played} rounds" if asked is None else f"{played} of {asked} rounds"
    resume = Html(f"<code>hyco-fem resume {html.escape(shlex.quote(str(run.folder)))}</code>")
    if run.text is None:
        resume = Html("the same script, if it keeps checkpoints,")
    if run.running:
        since = "" if run.written is None else f", the last one written on {run.written:%Y-%m-%d at %H:%M}"
        place = "" if run.checkpoint is None else f" from round {run.checkpoint}"
        return "not ended", Html(
            f"The run has not ended: {of} so far{since}. If no process is at work on it, {resume} goes on{place}."
        )
    stop = run.told("stop")
    if stop == "signal":
        return "stopped by a signal", Html(f"It was stopped by a signal after {of}; {resume} goes on.")
    if stop is None:
        return "", Html(f"{of} are in its history." if run.history else "How it ended was not written down.")
    why = _STOPS.get(stop, str(stop))
    return "finished", Html(
        f"It ended after {html.escape(of if stop != 'rounds' else f'{played} rounds')}: {html.escape(why)}."
    )


def sentence(run: Run) -> Html:
    """What was run, and how it ended."""
    parts = [f"What a script has left in <code>{html.escape(str(run.folder))}</code>."]
    if run.experiment is not None:
        e, n, listed = run.experiment, run.told("sensors"), sensors_of(run)[0]
        n = len(listed.x) if n is None and listed is not None else n
        pde = e.problem.name or f"{e.problem.function} of {Path(str(e.problem.python)).name}"
        many = "the unknown coefficient" if len(e.coefficients) == 1 else "the unknown coefficients"
        names = ", ".join(e.coefficients)
        parts = [
            f"The PDE <b>{html.escape(pde)}</b> with {many} <b>{html.escape(names)}</b> and a network "
            f"({html.escape(e.network.type)}), fitted together to {'sensors' if n is None else f'{n} sensors'}."
        ]
    parts.append(ending(run)[1])
    total = (run.told("timings") or {}).get("total")
    if isinstance(total, (int, float)):
        ranks = run.told("ranks")
        parts.append(f"It took {duration(total)}" + (f" on {ranks} rank{'s' * (ranks != 1)}." if ranks else "."))
    return Html(" ".join(parts))


# -- results ---------------------------------------------------------------------------------------------------


def result_parts(run: Run) -> list[Html]:
    """Parameters, losses, weights."""
    return [*number_parts(run), *_trust_part(run), *_choice_part(run)]


def number_parts(run: Run) -> list[Html]:
    """The tables of the unknown numbers and of the losses, beside each other."""
    tables = [*_parameters(run), *_losses(run)]
    return [Html(f'<div class="beside">{"".join(tables)}</div>')] if tables else []


def _errors(run: Run) -> tuple[dict[str, Cell], dict[str, Cell]]:
    """Standard errors and intervals by name of an entry, where the summary has them."""
    errors: dict[str, Cell] = {**flat(run.told("standard_errors") or {})}
    intervals: dict[str, Cell] = {}
    told = run.told("from_data") or {}
    columns: list[Any] = [told.get(name) for name in ("names", "standard_errors", "lower", "upper")]
    if all(isinstance(c, list) for c in columns):
        for name, error, low, high in zip(*columns, strict=False):
            shown = [plain(value) for value in (error, low, high)]
            errors[str(name)], intervals[str(name)] = shown[0], f"{number(shown[1])} … {number(shown[2])}"
    return errors, intervals


def _parameters(run: Run) -> list[Html]:
    """The table of the unknown numbers."""
    values = run.parameters
    if not values:
        return []
    errors, intervals = _errors(run)
    columns: list[Cell] = ["unknown", "start", "so far" if run.running else "found"]
    columns += ["standard error"] if errors else []
    confidence = (run.told("from_data") or {}).get("confidence")
    within = f"{confidence:.0%} interval" if isinstance(confidence, float) else "interval"
    columns += [within] if intervals else []
    rows = []
    for name, (first, last) in list(values.items())[:MOST_ROWS]:
        shown = f"{name[:-4]} (root mean square)" if name.endswith(".rms") else name
        rows.append(
            [shown, first, last, *([errors.get(name)] if errors else []), *([intervals.get(name)] if intervals else [])]
        )
    parts = [table(columns, rows, "Unknown numbers")]
    if len(values) > MOST_ROWS:
        parts.append(paragraph(f"These are the first {MOST_ROWS} of {len(values)}; summary.json has all.", "note"))
    return parts


def _losses(run: Run) -> list[Html]:
    """The table of the losses, with the Nash residual."""
    rows: list[list[Cell]] = []
    for name, (symbol, meaning) in MEASURES.items():
        first, last = measured(run, name)
        if first is not None or last is not None:
            rows.append([Html(symbol), first, last, meaning])
    if run.told("rolled_back"):
        rows.append(["steps taken back", None, run.told("rolled_back"), "because a loss was not finite"])
    return [table(["", "start", "so far" if run.running else "end", "meaning"], rows, "Losses")] if rows else []


def measured(run: Run, name: str) -> tuple[float | None, float | None]:
    """What was measured in the first round, and last; None where nothing was."""
    first, last = run.ends(name)
    if last is None:
        nash = zip(("gradient_physical", "gradient_synthetic"), run.told("nash_residual") or (), strict=False)
        last = flat(dict(nash) | (run.told("last") or {})).get(name)
    found = [None if v is None or np.isnan(v) else v for v in (first, last)]
    return found[0], found[1]


def _trust_part(run: Run) -> list[Html]:
    rows: list[list[Cell]] = []
    for name, player in (("gain_physical", "physical"), ("gain_synthetic", "synthetic")):
        if run.told(name) is not None:
            rows.append([f"what the {player} player could still gain, as a part of its objective", run.told(name)])
    if run.told("nash") is not None:
        rows.append([f"a Nash equilibrium to {number(run.told('tolerance'))}", run.told("nash")])
    return [table(["", ""], rows, "Trust report")] if rows else []


def _choice_part(run: Run) -> list[Html]:
    choice = run.told("choice")
    if choice is None or not isinstance(choice.get("weights"), dict):
        return []
    names = list(choice["weights"])
    scores, spread = choice.get("scores"), choice.get("spread")
    rows: list[list[Cell]] = [["chosen", *(plain(choice["weights"][n]) for n in names), None, None]]
    candidates = choice.get("candidates")
    for k, candidate in enumerate(candidates if isinstance(candidates, list) else []):
        score, width = (plain(v[k]) if isinstance(v, list) and k < len(v) else None for v in (scores, spread))
        found = candidate if isinstance(candidate, dict) else {}
        rows.append([f"candidate {k + 1}", *(plain(found.get(n)) for n in names), score, width])
    return [table(["", *names, "score", "spread"], rows, f"Weights, chosen by the rule {choice.get('rule')}")]


# -- curves ----------------------------------------------------------------------------------------------------


def curve_parts(run: Run) -> list[Html]:
    """Losses, interaction, gradients and parameters over the rounds."""
    rounds = run.history.get("round", np.array([]))
    if len(rounds) < 2:
        return [paragraph("There are no curves before the second round.", "note")] if run.history else []
    sensors, _ = sensors_of(run)
    noise = None
    if sensors is not None and sensors.noise_std is not None:  # a misfit is a sum over the components
        noise = 1.0 if sensors.values.ndim == 1 else float(sensors.values.shape[1])
    panels = []
    for names, caption in _PANELS:
        curves = [Curve(rounds, run.history[n], Html(MEASURES[n][0]), k) for k, n in enumerate(names) if _there(run, n)]
        if curves:
            level = noise if names[0] == "misfit_physical" else None
            panels.append(_panel(curves, caption, level))
    groups: dict[str, list[str]] = {}
    for name in parameter_columns(run):
        if _there(run, name):
            groups.setdefault(name.partition("[")[0], []).append(name)
    for group, entries in list(groups.items())[:_MOST_PANELS]:
        panels.append(_parameter_panel(run, rounds, group, entries))
    return [figures(panels)]


def _there(run: Run, name: str) -> bool:
    return name in run.history and bool(np.isfinite(run.history[name]).any())


def _panel(curves: Sequence[Curve], caption: str, level: float | None) -> Html:
    log = all(np.nanmin(c.y) >= 0 for c in curves) and any(np.nanmax(c.y) > 0 for c in curves)
    described = f"{caption.rstrip('.')}, over the rounds" + (", on a logarithmic axis" if log else "")
    told = "" if level is None else f" Dotted: {level:g}, where a misfit is as large as the noise."
    return figure(curve_plot(curves, described, log=log, level=level), caption + told, legend(curves))


def _parameter_panel(run: Run, rounds: np.ndarray, group: str, names: list[str]) -> Html:
    caption = f"{group} over the rounds."
    if len(names) > STYLES:
        change = [np.ptp(run.history[n][np.isfinite(run.history[n])]) for n in names]
        chosen = np.sort(np.argsort(change)[-STYLES:])
        caption = f"{group}: the {STYLES} of {len(names)} entries that changed most."
        names = [names[int(i)] for i in chosen]
    # The first style is the physical model's, to which they belong.
    curves = [Curve(rounds, run.history[n], n, k) for k, n in enumerate(names)]
    return figure(curve_plot(curves, caption.rstrip(".")), caption, legend(curves) if len(names) > 1 else "")


# -- fields ----------------------------------------------------------------------------------------------------


def field_parts(run: Run) -> list[Html]:
    """Pictures of fields.xdmf, or where there is none of other such files, with the sensors."""
    files, series = field_files(run), run.folder / SERIES
    if not files and not series.is_file():
        return []
    sensors, why = sensors_of(run)
    found = list(run.experiment.coefficients) if run.experiment is not None else []
    parts = []
    for path in files:
        if len(files) > 1:
            parts.append(Html(f"<h3>{html.escape(path.name)}</h3>"))
        parts.append(_drawn(path, partial(_models, run, path, sensors, found)))
    if series.is_file():
        parts.append(Html("<h3>The physical model in time</h3>"))
        parts.append(_drawn(series, partial(_in_time, series, sensors)))
    if why:
        parts.append(paragraph(why, "note"))
    if run.running:
        parts.append(paragraph("These are fields of the part that had ended before.", "note"))
    return parts


def _drawn(path: Path, draw: Callable[[], list[Html]]) -> Html:
    try:
        found = draw()
    except (ValueError, LookupError, OSError, RuntimeError, ImportError) as error:  # h5py raises any of these
        return paragraph(f"The fields are not drawn: {error}", "note")
    return figures(found) if found else paragraph(f"{path.name} holds no field.", "note")


def _models(run: Run, path: Path, sensors: Sensors | None, found: Sequence[str]) -> list[Html]:
    grid, fields = read_fields(path)
    time = run.experiment.time if run.experiment is not None else None
    if time is not None:  # the file says nothing of it
        fields = [replace(f, time=time.end) if f.name in ("u_physical", "u_synthetic") else f for f in fields]
    return pictures(grid, with_difference(fields), sensors, found)


def _in_time(path: Path, sensors: Sensors | None) -> list[Html]:
    grid, fields = read_fields(path, _MOST_TIMES)
    return pictures(grid, [f for f in fields if f.name == "u_physical"], sensors, planes=1)


def absent(run: Run) -> str:
    """A sentence on what is not in the folder, and so not on the page; empty where all is there."""
    missing = [] if run.history else ["history.csv (curves)"]
    if not field_files(run):
        off = run.experiment is not None and not run.experiment.output.fields
        why = "; output.fields is false" if off else "; it is written when the run ends" if run.running else ""
        missing.append(f"{FIELDS} (pictures{why})")
    if run.text is None:
        missing.append("experiment.toml (configuration; the folder is not one of hyco-fem run)")
    if not run.summary:
        why = "; it is written when the run ends" if run.running else ""
        missing.append(f"summary.json (how it ended, versions, times{why})")
    return f"Not in this folder: {', '.join(missing)}." if missing else ""
