"""HYCO and its baselines on the same data, over seeds: a table with medians, quartiles and failures, and a picture.

    python3 benchmarks/compare.py --case helmholtz --seeds 20
    mpirun -n 4 python3 -m mpi4py benchmarks/compare.py --case imperfect --seeds 20     seeds shared out over the ranks

Each line of OUT/rows.jsonl is one method on one seed, written as soon as it is done: started again, the comparison goes
on where it was stopped.  A method that raises an error counts as a failure, with the error in its line.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from comparisons import CASES
from comparisons.common import Case

import hyco_fem as hf
from hyco_fem.files import replace_file


def main() -> None:
    """Run what is missing, then print and draw everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--methods", nargs="*", help="only these; by default all")
    parser.add_argument("--list", action="store_true", help="name the methods, and end")
    parser.add_argument("--out", type=Path, help="by default out/compare/CASE")
    args = parser.parse_args()
    comm, case = MPI.COMM_WORLD, CASES[args.case]()
    torch.set_num_threads(1)
    if args.list:
        if comm.rank == 0:
            print("\n".join(case.methods))
        return
    if args.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {args.seeds}")
    unknown = sorted(set(args.methods or ()) - set(case.methods))
    if unknown:
        raise ValueError(f"there is no method {', '.join(map(repr, unknown))}; see --list")
    out = hf.output_folder(args.out or Path("out/compare") / args.case, comm)
    methods = args.methods or list(case.methods)
    seeds = range(args.first, args.first + args.seeds)
    done = comm.bcast(read(out) if comm.rank == 0 else None)
    missing = [(m, s) for s in seeds for m in methods if (m, s) not in done]
    comm.Barrier()
    with open(out / f"rows.{comm.rank}.jsonl", "a", encoding="utf-8") as file:
        for method, seed in missing[comm.rank :: comm.size]:
            row = one(case.methods[method], method, seed)
            file.write(json.dumps(row) + "\n")
            file.flush()
            shown = "  ".join(f"{k} {row[k]:.4g}" for k in case.metrics if row.get(k) is not None)
            print(f"{method:34s} seed {seed:3d}  {row['seconds']:6.1f} s  {row.get('error') or shown}", flush=True)
    comm.Barrier()
    if comm.rank == 0:
        rows = [row for key, row in read(out).items() if key[0] in methods and key[1] in seeds]
        text = case.report(rows) if hasattr(case, "report") else table(case, rows)
        replace_file(out / "table.md", lambda p: p.write_text(text + "\n", encoding="utf-8"))
        print(text, flush=True)
        print(json.dumps({"benchmark": "compare", "case": args.case, "seeds": args.seeds, **summary(case, rows)}))
    hf.save_figure(comm, out / f"{args.case}.png", lambda figure: draw(figure, case, rows), size=(14, 6))


def read(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What is there, by method and seed; a line that was cut off counts as not done."""
    rows = {}
    for path in sorted(out.glob("rows.*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                rows[row["method"], row["seed"]] = row
            except (json.JSONDecodeError, KeyError):
                continue
    return rows


def one(run: Callable[[int, MPI.Comm], dict[str, float]], method: str, seed: int) -> dict[str, Any]:
    """One method on one seed, on this rank alone."""
    start, found, error = time.perf_counter(), {}, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(seed, MPI.COMM_SELF)
    except (ArithmeticError, ValueError, RuntimeError) as e:
        error = f"{type(e).__name__}: {str(e).splitlines()[0]}"
    seconds = time.perf_counter() - start
    numbers = {k: float(v) if math.isfinite(v) else None for k, v in found.items()}
    return {"method": method, "seed": seed, **numbers, "seconds": seconds, "error": error}


def quartiles(values: list[float]) -> str:
    """Median (quartiles); failures count as infinite."""
    if not values:
        return "–"
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    return f"{number(median)} ({number(q1)} to {number(q3)})"


def number(value: float) -> str:
    """Three digits."""
    return "∞" if math.isinf(value) else f"{value:.3g}"


def values_of(rows: list[dict[str, Any]], metric: str) -> list[float]:
    """Of all rows that have it or have failed; empty where the method does not give it."""
    if all(row.get(metric) is None for row in rows):
        return []
    return [math.inf if row["error"] or row.get(metric) is None else row[metric] for row in rows]


def table(case: Case, rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each method."""
    columns = [*case.metrics.values(), "good", "failed", "solves", "seconds"]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method in case.methods:
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        cells = [quartiles(values_of(mine, metric)) for metric in case.metrics]
        good = sum(not row["error"] and case.good(row) for row in mine)
        failed = sum(bool(row["error"]) for row in mine)
        solves = [row["solves"] for row in mine if row.get("solves")]
        cells += [f"{good} of {len(mine)}", str(failed), f"{np.median(solves):.0f}" if solves else "–"]
        cells.append(f"{np.median([row['seconds'] for row in mine]):.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Medians (quartiles); good: {case.good_means}"])


def summary(case: Case, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians for the JSON line."""
    out: dict[str, Any] = {}
    for method in case.methods:
        mine = [row for row in rows if row["method"] == method]
        if mine:
            out[method] = {
                metric: float(np.quantile(found, 0.5, method="nearest"))
                for metric in case.metrics
                if (found := values_of(mine, metric)) and not math.isinf(np.quantile(found, 0.5, method="nearest"))
            }
            out[method]["good"] = sum(not row["error"] and case.good(row) for row in mine)
    return out


def draw(figure: Any, case: Case, rows: list[dict[str, Any]]) -> None:
    """One panel for each metric: every seed a dot, the median a line."""
    axes = np.atleast_1d(figure.subplots(1, len(case.metrics), sharey=True))
    methods = [m for m in case.methods if any(row["method"] == m for row in rows)][::-1]
    for ax, (metric, label) in zip(axes, case.metrics.items(), strict=True):
        for k, method in enumerate(methods):
            found = np.array(values_of([row for row in rows if row["method"] == method], metric))
            finite = found[np.isfinite(found)]
            spread = 0.25 * (np.arange(len(finite)) / max(1, len(finite) - 1) - 0.5)
            ax.plot(finite, k + spread, "o", ms=3, alpha=0.6, color=f"C{k % 10}")
            if len(finite):
                ax.plot([np.median(finite)] * 2, [k - 0.3, k + 0.3], color="black", lw=1.5)
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        if high < 10.0 * low:  # a decade at least: within less the numbers on the axis run into each other
            middle = np.sqrt(low * high)
            ax.set_xlim(middle / np.sqrt(10.0), middle * np.sqrt(10.0))
            ax.xaxis.set_minor_formatter("")
        ax.set_xlabel(label)
        ax.set_yticks(range(len(methods)), methods, fontsize=8)
        ax.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    hf.run_script(main)
