"""Many runs beside each other, such as those of a job array over seeds."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyco_fem.experiment.report_files import Run, read_run
from hyco_fem.experiment.report_html import Cell, Html, Page, figure, figures, paragraph, table
from hyco_fem.experiment.report_plot import Curve, curve_plot, legend
from hyco_fem.experiment.report_run import MEASURES, ending, measured, number_parts
from hyco_fem.experiment.report_tables import plain

# Columns of the comparison.
_COMPARED = ("misfit_physical", "misfit_synthetic", "interaction", "objective", "energy")
# What a configuration says beside the experiment itself: the rounds have a column of their own.
_ASIDE = ("title", "game.rounds")
_MOST_KEYS, _MOST_PARAMETERS, _MOST_PANELS = 4, 12, 9


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs by the names of their folders, and why others cannot be read."""

    runs: dict[str, Run]
    damaged: dict[str, str]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Runs:
        """The runs of folders."""
        runs, damaged = {}, {}
        for folder in sorted(folders, key=_order):
            try:
                runs[folder.name] = read_run(folder)
            except (ValueError, OSError) as error:
                damaged[folder.name] = str(error)
        return cls(runs, damaged)

    @property
    def title(self) -> str | None:
        """That of all of them, if they have one."""
        titles = {str(run.table.get("title") or run.told("title") or "") for run in self.runs.values()}
        (title,) = titles if len(titles) == 1 else ("",)
        return title or None


def _order(folder: Path) -> tuple[int, int, str]:
    """2 before 10, then names."""
    return (0, int(folder.name), "") if folder.name.isdecimal() else (1, 0, folder.name)


def array_sentence(runs: Runs) -> Html:
    """How many runs there are, and how they stand."""
    words: dict[str, int] = {}
    for run in runs.runs.values():
        word = ending(run)[0] or "without a note of their end"
        words[word] = words.get(word, 0) + 1
    if runs.damaged:
        words["damaged"] = len(runs.damaged)
    counted = ", ".join(f"{n} {word}" for word, n in words.items())
    return Html(f"{len(runs.runs) + len(runs.damaged)} runs beside each other: {html.escape(counted)}.")


def add_runs(page: Page, runs: Runs) -> None:
    """The sections about many runs: the comparison, curves of all runs, and the numbers of each."""
    anchors = {name: page.anchor(f"run {name}") for name in runs.runs}
    notes = ["Medians and quartiles are of the runs that have finished."]
    notes += [f"{name}: {why}" for name, why in runs.damaged.items()]
    page.add("Comparison of the runs", _comparison(runs, anchors), *(paragraph(note, "note") for note in notes))
    drawn = _curves(runs)
    if drawn:
        note = "Thin: each run. Thick: their median, as far as at least half of them have come."
        page.add("Curves of all runs", paragraph(note, "note"), figures(drawn))
    parts: list[Html] = []
    for name, run in runs.runs.items():
        parts.append(Html(f'<h3 id="{anchors[name]}">Run {html.escape(name)}</h3>'))
        parts += [paragraph(ending(run)[1]), *number_parts(run)]
    page.add("Each run", *parts)


def _comparison(runs: Runs, anchors: dict[str, str]) -> Html:
    every = list(runs.runs.values())
    keys = list(_differing([run.table for run in every]))[:_MOST_KEYS]
    measures = [name for name in _COMPARED if any(measured(run, name)[1] is not None for run in every)]
    parameters = list(dict.fromkeys(name for run in every for name in run.parameters))[:_MOST_PARAMETERS]
    columns: list[Cell] = [
        "run",
        "state",
        *keys,
        "rounds",
        *(Html(MEASURES[n][0]) for n in measures),
        *parameters,
        "seconds",
    ]
    rows, numbers = [], []
    for name, run in runs.runs.items():
        total = (run.told("timings") or {}).get("total")
        values = [measured(run, n)[1] for n in measures] + [run.parameters.get(n, (None, None))[1] for n in parameters]
        chosen = [plain(_entry(run.table, key)) for key in keys]
        link = Html(f'<a href="#{anchors[name]}">{html.escape(name)}</a>')
        rows.append([link, ending(run)[0] or None, *chosen, run.rounds, *values, total])
        if not run.running and run.told("stop") != "signal":
            numbers.append([run.rounds, *values, total])
    table_of_numbers = np.array(numbers, dtype=float).reshape(len(numbers), len(measures) + len(parameters) + 2)
    foot: list[list[Cell]] = []
    if len(numbers) > 1:
        for label, q in (("median", 50), ("lower quartile", 25), ("upper quartile", 75)):
            found = [
                float(np.percentile(c[np.isfinite(c)], q)) if np.isfinite(c).any() else None for c in table_of_numbers.T
            ]
            foot.append([label, "", *("" for _ in keys), *found])
    return table(columns, rows, "All runs: state, losses and unknown numbers at the end", foot=foot)


def _flat(table: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value


def _differing(tables: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Keys of configurations that are not the same in all of them."""
    flat = [dict(_flat(t)) for t in tables if t]
    for key in dict.fromkeys(key for f in flat for key in f):
        if key not in _ASIDE and not key.startswith("output.") and any(f.get(key) != flat[0].get(key) for f in flat):
            yield key


def _entry(table: dict[str, Any], key: str) -> Any:
    return dict(_flat(table)).get(key)


def _curves(runs: Runs) -> list[Html]:
    """Each run a thin line, their median a thick one."""
    every = [run for run in runs.runs.values() if len(run.history.get("round", ())) > 1]
    if len(every) < 2:
        return []
    names = [n for n in _COMPARED if any(n in run.history for run in every)]
    names += dict.fromkeys(n for run in every for n in run.history if n not in MEASURES and n != "round")
    drawn: list[Html] = []
    for name in names:
        curves = [Curve(r.history["round"], r.history[name], style=7, thin=True) for r in every if name in r.history]
        curves = [c for c in curves if np.isfinite(c.y).any()]
        if not curves or len(drawn) == _MOST_PANELS:
            continue
        rounds, middle = _median(curves)
        shown = Curve(rounds, middle, "median")
        label = Html(MEASURES[name][0]) if name in MEASURES else name
        log = name in MEASURES and all(np.nanmin(c.y) > 0 for c in curves)
        caption = Html(
            f"{label if isinstance(label, Html) else html.escape(label)} over the rounds, of {len(curves)} runs."
        )
        one = Curve(rounds, middle, "each run", 7, thin=True)
        picture = curve_plot([*curves, shown], f"{name} of all runs over the rounds", log=log)
        drawn.append(figure(picture, caption, legend([one, shown])))
    return drawn


def _median(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The median over the curves of each round that at least half of them have reached."""
    rounds = np.concatenate([c.x for c in curves]).astype(int)
    values = np.concatenate([c.y for c in curves])
    order = np.argsort(rounds, kind="stable")
    found, start, n = np.unique(rounds[order], return_index=True, return_counts=True)
    parts = np.split(values[order], start[1:])
    enough = 2 * n >= len(curves)
    return found[enough].astype(float), np.array([np.median(p) for p, e in zip(parts, enough, strict=True) if e])
