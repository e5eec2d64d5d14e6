"""One page of HTML about a run, or about many runs beside each other; it needs nothing but itself.

    write_report(Path("out/experiments/plate"))     out/experiments/plate/report.html

The folder is one of `hyco-fem run`, or holds what `Result.save`, `HistoryFile` and `write_fields` have left, or has
such folders in it, or what `hyco-fem compare` and `hyco-fem convergence` have left.
"""

from __future__ import annotations

import html
from datetime import datetime
from pathlib import Path

from mpi4py import MPI

from hyco_fem.experiment.report_array import Runs, add_runs, array_sentence
from hyco_fem.experiment.report_files import Run, Table, is_run, read_run, read_tables
from hyco_fem.experiment.report_html import Html, Page
from hyco_fem.experiment.report_run import absent, curve_parts, ending, field_parts, result_parts, sentence
from hyco_fem.experiment.report_setup import configuration_parts, environment_parts
from hyco_fem.experiment.report_tables import further_parts, study_parts
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.files import output_folder, replace_file
from hyco_fem.parallel import agreed


def write_report(folder: str | Path, comm: MPI.Comm = MPI.COMM_WORLD, out: str | Path | None = None) -> Path:
    """Write the page of a folder; rank 0 reads the files, whole fields too, and writes.  Collective.

    Args:
        folder: Of a run, or with the folders of runs in it.
        out: The page, `folder`/report.html by default; an earlier one is replaced.

    Returns:
        The path of the page.

    Raises:
        ConfigurationError: the folder is not there, or no run is in it.
        ValueError: a summary, history or table is damaged.
        OSError: a file cannot be read, or the page cannot be written.
        ImportError: matplotlib is not there.
    """
    folder = Path(folder)
    path = folder / "report.html" if out is None else Path(out)
    page = ""
    with agreed(comm):
        if comm.rank == 0:
            page = report_page(folder)
    output_folder(path.parent, comm)
    with agreed(comm):
        if comm.rank == 0:
            try:
                replace_file(path, lambda p: p.write_bytes(page.encode("utf-8", "replace")))
            except OSError as error:
                why = error.strerror or error
                raise OSError(f"the report '{path}' cannot be written ({why}); choose another name") from None
    return path


def report_page(folder: Path) -> str:
    """The page of a folder as HTML.  Local to the rank; raises as `write_report`."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("a report needs matplotlib: pip install matplotlib") from None
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder; give the output folder of a run")
    below = sorted(p for p in folder.iterdir() if p.is_dir() and is_run(p))
    tables = read_tables(folder)
    if is_run(folder):
        run = read_run(folder)
        page = Page(run.title, sentence(run), ending(run)[0], absent(run))
        _add_run(page, run, tables)
        if below:
            add_runs(page, Runs.read(below))
    elif below:
        runs = Runs.read(below)
        if not runs.runs:
            raise ValueError(next(iter(runs.damaged.values())))
        page = Page(runs.title or folder.resolve().name, array_sentence(runs))
        _add_tables(page, tables)
        add_runs(page, runs)
    elif tables:
        names = ", ".join(study.name for study in tables)
        page = Page(folder.resolve().name, Html(f"What other commands have left in the folder: {html.escape(names)}."))
        _add_tables(page, tables)
    else:
        raise ConfigurationError(
            f"{folder}: there is no run in it, nor in its sub-folders; give the output folder of hyco-fem run, "
            "Result.save or HistoryFile"
        )
    now = datetime.now().strftime("%Y-%m-%d %H:%M")
    return page.html(f"Made by hyco_fem from the files in {folder}, {now}.")


def _add_run(page: Page, run: Run, tables: list[Table]) -> None:
    page.add("Results", *result_parts(run))
    page.add("Curves", *curve_parts(run))
    page.add("Fields", *field_parts(run))
    page.add("Further results", *further_parts(run))
    _add_tables(page, tables)
    page.add("Configuration", *configuration_parts(run))
    page.add("Environment", *environment_parts(run))


def _add_tables(page: Page, tables: list[Table]) -> None:
    for study in tables:
        page.add(study.title, *study_parts(study))
