"""Records and results: what is kept, and what is written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from torch import nn

import hyco_fem as hf
from hyco_fem.game.history import history_csv, parameter_values
from hyco_fem.parallel import mark_distributed


def a_result() -> hf.Result:
    theta = {"kappa.centres": np.array([[0.25, 0.5]]), "κ₀": 1.0 / 3.0}
    history = [
        hf.Record(0, misfit_physical=2.0, interaction=0.1, potential=math.nan, parameters=theta),
        hf.Record(3, misfit_physical=1.0, interaction=math.inf, parameters={**theta, "κ₀": 0.5}),
    ]
    return hf.Result(theta, history, (0.5, math.nan), 1, 2, "tolerance", {"total": 0.25})


def strict_json(text: str) -> Any:
    """JSON by the standard, which knows no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_record_is_one_line_of_a_table() -> None:
    flat = a_result().history[0].flat()
    assert flat["round"] == 0
    assert (flat["kappa.centres[0,0]"], flat["kappa.centres[0,1]"], flat["κ₀"]) == (0.25, 0.5, 1.0 / 3.0)
    assert "parameters" not in flat
    assert math.isnan(flat["misfit_synthetic"]), "not a number where a player takes no part"


def test_a_result_is_saved_as_json_and_csv(comm: MPI.Comm, folder: Path) -> None:
    result = a_result()
    extra = {
        "error": np.float32(0.5),
        "n": np.int64(3),
        "table": [np.array([1.0, np.nan]), (True, None)],
        "stop": "mine",
    }
    result.save(folder / "deep" / "er", comm, extra)
    comm.Barrier()
    summary = strict_json((folder / "deep" / "er" / "summary.json").read_text(encoding="utf-8"))
    assert summary["nash_residual"] == [0.5, None], "NaN becomes null"
    assert summary["last"]["interaction"] is None
    assert summary["last"]["round"] == 3
    assert summary["parameters"] == {"kappa.centres": [[0.25, 0.5]], "κ₀": 1.0 / 3.0}
    assert (summary["rounds"], summary["rolled_back"], summary["timings"]) == (1, 2, {"total": 0.25})
    assert (summary["error"], summary["n"], summary["table"]) == (0.5, 3, [[1.0, None], [True, None]])
    assert summary["stop"] == "mine", "extra entries may replace others"
    with open(folder / "deep" / "er" / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["round"]) for r in rows] == [0, 3]
    for row, record in zip(rows, result.history, strict=True):
        np.testing.assert_array_equal([float(v) for v in row.values()], list(record.flat().values()))
        assert list(row) == list(record.flat())
    assert sorted(p.name for p in (folder / "deep" / "er").iterdir()) == ["history.csv", "summary.json"]


def test_a_result_that_cannot_be_saved_is_an_error_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    if comm.rank == 0:
        (folder / "file").write_text("here")
    comm.Barrier()
    with pytest.raises(OSError, match=r"the output folder .*file' cannot be written"):
        a_result().save(folder / "file", comm)
    with pytest.raises((TypeError, RuntimeError), match="not JSON serializable"):
        a_result().save(folder, comm, {"what": object()})
    comm.Barrier()
    assert [p.name for p in folder.iterdir()] == ["file"], "nothing half-written is left"


def test_an_empty_history_is_an_empty_table() -> None:
    assert history_csv([]) == ""
    assert hf.Result({}, [], (0.0, 0.0), 0, 0, "rounds", {}).summary()["last"] == {}


def test_parameters_are_kept_by_name(comm: MPI.Comm) -> None:
    """Long ones and distributed ones by their root mean square over all entries, frozen ones not at all."""
    model = nn.Module()
    model.coefficients = nn.ModuleDict({"kappa": nn.Module()})
    kappa = model.coefficients["kappa"]
    kappa.number = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
    kappa.vector = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    kappa.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    own = torch.full((comm.rank + 1,), float(comm.rank + 1), dtype=torch.float64)
    kappa.field = mark_distributed(nn.Parameter(own))
    triangle = sum(r + 1 for r in range(comm.size))
    rms = math.sqrt(sum((r + 1) ** 3 for r in range(comm.size)) / triangle)
    values = parameter_values(model, comm)
    assert list(values) == ["kappa.number", "kappa.vector", "kappa.field.rms"]
    assert values["kappa.number"] == 2.5
    np.testing.assert_array_equal(values["kappa.vector"], [3.0, 4.0])
    assert values["kappa.field.rms"] == pytest.approx(rms)
    short = parameter_values(model, comm, longest=1)
    assert short["kappa.vector.rms"] == pytest.approx(math.sqrt(12.5))
    kappa.vector.data.zero_()
    np.testing.assert_array_equal(values["kappa.vector"], [3.0, 4.0], "a record does not change with the model")
