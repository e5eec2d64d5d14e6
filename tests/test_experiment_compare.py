"""hyco-fem compare: the same sensors left out for all, honest baselines, nothing run twice."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from test_cli import log_as_before, status  # noqa: F401
from test_experiment import changed, written
from test_script import mpirun

import hyco_fem as hf
from hyco_fem.experiment.build import build
from hyco_fem.experiment.compare import compare, folds_of, seeded_with
from hyco_fem.experiment.compare_table import quantile
from hyco_fem.experiment.configuration import read_experiment
from hyco_fem.experiment.methods import METHODS, without
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.experiment.toml import dump

WORLD = MPI.COMM_WORLD

SENSORS = "x,y,value,noise_std\n" + "".join(
    f"{x},{y},{x / 2 + y / 9:.3f},0.1\n" for x in (0.3, 0.9, 1.3, 1.7) for y in (0.2, 0.7)
)
GAME: dict[str, Any] = {
    "rounds": 3,
    "warm_up": 2,
    "ghosts": {"type": "random", "points": 6},
    "weights": {"b1": 0.5, "b2": 2.0, "decay": 1e-3},
    "physical": {"type": "adam", "lr": 0.05},
    "synthetic": {"type": "adam", "lr": 0.01},
}
TRUTH: dict[str, Any] = {
    "coefficients": {
        "kappa": {"type": "bumps", "amplitudes": [2.0], "centres": [[1.0, 0.5]], "background": 1.0},
    }
}


def small(folder: Path, sensors: str = SENSORS, **tables: Any) -> Path:
    """A game of three rounds on eight sensors."""
    return written(folder, changed(game=copy.deepcopy(GAME)) | tables, sensors)


def truth(folder: Path, table: dict[str, Any]) -> Path:
    """The file of a truth."""
    path = folder / "truth.toml"
    if WORLD.rank == 0:
        path.write_text(dump(table), encoding="utf-8")
    WORLD.Barrier()
    return path


def table_of(folder: Path) -> dict[str, Any]:
    """compare.json."""
    WORLD.Barrier()
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return found


def test_a_comparison_has_all_methods_and_is_not_run_twice(folder: Path) -> None:
    experiment, said = read_experiment(small(folder)), []
    true = truth(folder, TRUTH)
    out = folder / "out"
    compare(experiment, folds=2, seeds=2, truth=true, folder=out, say=said.append)
    found = table_of(out)
    assert set(found) == {"title", "columns", "rows", "notes", "pictures", "runs"}
    assert [row[0] for row in found["rows"]] == list(METHODS)
    assert found["columns"][:3] == ["method", "misfit physical", "misfit synthetic"]
    assert all(run["error"] is None for run in found["runs"])
    # Two folds and the truth, for two seeds; the physics has none.
    assert len(found["runs"]) == 3 * (2 * 5 + 1)
    assert (out / "compare.png").stat().st_size > 5000
    with (out / "compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[2]["misfit_physical_median"] == "", "a network leaves no physical model"
    assert "pinn, variational_pinn: without weight decay" in found["notes"]
    before = (out / "compare.jsonl").read_text(encoding="utf-8")
    again: list[str] = []
    WORLD.Barrier()
    compare(experiment, folds=2, seeds=2, truth=true, folder=out, say=again.append)
    assert not any(text.startswith("[") for text in again)
    assert (out / "compare.jsonl").read_text(encoding="utf-8") == before
    assert table_of(out) == found
    assert said[-2] == again[-2], "the same table"


def test_physics_only_is_what_one_would_do_by_hand(folder: Path, comm: MPI.Comm) -> None:
    """Its misfit over two folds, and its errors from the truth, from the classes of hyco_fem."""
    experiment = read_experiment(small(folder))
    compare(experiment, folds=2, seeds=1, methods=["physics"], truth=truth(folder, TRUTH), folder=folder / "out")
    (row,) = table_of(folder / "out")["rows"]
    total, wanted = 0.0, {}
    for k in range(3):
        built = build(experiment, comm)
        folds = folds_of(built.data, 2)
        kept = built.data if k == 2 else built.data.only(~folds[k])
        hf.PhysicsOnly(built.physical, kept, hf.AdamStep(0.05)).run(3)  # type: ignore[arg-type]
        if k < 2:
            r = built.data.only(folds[k]).residuals(built.physical(built.data.points))
            total += float((r**2).sum())
        else:
            exact = build(experiment, comm)
            kappa = exact.physical.coefficients["kappa"]
            with torch.no_grad():
                kappa.amplitudes[:], kappa.centres[:] = 2.0, torch.tensor([[1.0, 0.5]], dtype=torch.float64)
                for model in (exact, built):
                    model.physical.solve()
            wanted["u"] = hf.relative_l2(built.physical.function, exact.physical.function, exact.mesh.mesh)  # type: ignore[union-attr]
            found = built.physical.coefficients["kappa"]
            theta = np.concatenate([found.amplitudes.detach().numpy(), found.centres.detach().numpy().ravel()])
            wanted["theta"] = float(np.linalg.norm(theta - [2.0, 1.0, 0.5]) / np.linalg.norm([2.0, 1.0, 0.5]))
            exact.close()
        built.close()
    (first, *_), runs = table_of(folder / "out")["runs"], table_of(folder / "out")["runs"]
    assert first["held"] == 4
    mean = np.mean([run["misfit_physical"] for run in runs[:2]])
    assert mean == pytest.approx(total / 8, rel=1e-9)
    assert float(row[1]) == pytest.approx(total / 8, rel=5e-3)
    assert runs[2]["error_physical"] == pytest.approx(wanted["u"], rel=1e-8)
    assert runs[2]["parameters"] == pytest.approx(wanted["theta"], rel=1e-9)


def test_every_seed_and_fold_starts_from_the_file(folder: Path, comm: MPI.Comm) -> None:
    """Methods and folds do not go on from where the one before has ended: HYCO on one fold alone."""
    experiment = read_experiment(small(folder))
    compare(experiment, folds=2, seeds=2, methods=["physics", "network", "hyco"], folder=folder / "out")
    run = next(
        r for r in table_of(folder / "out")["runs"] if (r["method"], r["seed"], r["part"]) == ("hyco", 1, "fold 2 of 2")
    )
    built = build(seeded_with(experiment, 1), comm)
    held = folds_of(built.data, 2)[1]
    game = hf.Hyco(
        built.physical,
        built.synthetic,
        built.data.only(~held),
        hf.RandomGhosts(6, seed=1),
        weights=built.game.weights,
        answers=built.game.answers,
        warm_up=2,
    )
    game.run(3)
    judge = built.data.only(held)
    physical, synthetic = (
        float(np.mean(judge.residuals(values) ** 2))
        for values in (built.physical(built.data.points), built.synthetic(built.data.points.x))
    )
    built.close()
    assert run["misfit_physical"] == pytest.approx(physical, rel=1e-8)
    assert run["misfit_synthetic"] == pytest.approx(synthetic, rel=1e-8)


def test_no_interaction_goes_one_way(folder: Path, comm: MPI.Comm) -> None:
    """Its network is that of the network alone, with as many answers as in the game, and learns on afterwards."""
    experiment = read_experiment(small(folder))
    compare(experiment, folds=2, seeds=1, methods=["network", "no_interaction"], folder=folder / "out")
    runs = table_of(folder / "out")["runs"]
    assert [r["misfit_synthetic"] for r in runs[:2]] == [r["misfit_synthetic"] for r in runs[2:]]
    assert [r["rounds"] for r in runs] == [5, 5, 3, 3]
    assert all(r["solves"] > 0 for r in runs[2:])


def test_folds_leave_out_every_place_once(folder: Path, comm: MPI.Comm) -> None:
    """Two sensors at one place go together; what is left out does not depend on the partition."""
    sensors = SENSORS + "0.3,0.2,0.2,0.1\n"
    built = build(read_experiment(small(folder, sensors)), comm)
    folds = folds_of(built.data, 3)
    built.close()
    np.testing.assert_array_equal(np.sum(folds, axis=0), 1)
    assert all(fold[0] == fold[-1] for fold in folds)
    assert comm.allgather(np.array(folds).tolist()) == [np.array(folds).tolist()] * comm.size
    with pytest.raises(ConfigurationError, match="--folds: 9 folds of 8 places"):
        folds_of(built.data, 9)


def test_a_method_that_fails_is_counted_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hf.NetworkOnly.run

    def fails(self: Any, rounds: int, **options: Any) -> Any:
        if rounds == 5 and self.data.n_found == 4 and bool(self.data.rows[0]):
            raise FloatingPointError("diverges\nand more")
        return real(self, rounds, **options)

    monkeypatch.setattr("hyco_fem.game.baselines.NetworkOnly.run", fails)
    experiment = read_experiment(small(folder))
    compare(experiment, folds=2, seeds=1, methods=["physics", "network"], folder=folder / "out")
    found = table_of(folder / "out")
    assert found["rows"][1][2] == "∞"
    assert found["rows"][1][3] == "1 of 2"
    assert [n for n in found["notes"] if n.startswith("failed: network, seed 0, fold")] != []
    assert "FloatingPointError: diverges" in found["notes"][-1]


def test_a_method_that_always_fails_has_its_columns_and_is_run_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, rounds: int, **options: Any) -> Any:
        raise FloatingPointError("diverges")

    experiment, out = read_experiment(small(folder)), folder / "out"
    given: dict[str, Any] = {"folds": 2, "seeds": 1, "truth": truth(folder, TRUTH), "folder": out}
    with monkeypatch.context() as patch:
        patch.setattr("hyco_fem.game.baselines.PhysicsOnly.run", fails)
        compare(experiment, methods=["physics", "network"], **given)
    found = table_of(out)
    assert found["columns"][1:5] == ["misfit physical", "misfit synthetic", "error physical", "error synthetic"]
    assert [found["rows"][0][i] for i in range(1, 6)] == ["∞", "–", "∞", "–", "3 of 3"]
    assert not any(note.startswith("parameters: not compared") for note in found["notes"])
    said: list[str] = []
    WORLD.Barrier()
    compare(experiment, methods=["physics", "network"], say=said.append, **given)
    assert said[0] == "3 of 6 runs are done already"
    found = table_of(out)
    assert found["columns"][5] == "parameters"
    assert found["rows"][0][6] == "0 of 3"
    assert not any(note.startswith("failed: ") for note in found["notes"])


def test_medians_lie_between_two_values() -> None:
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert [quantile([1.0, 2.0, np.inf, np.inf], q) for q in (0.25, 0.5)] == [2.0, np.inf]


def test_decay_and_prior_are_beside_the_data_as_in_the_game(folder: Path) -> None:
    """Twice the weight of the data is half the decay, and a prior with √2 times the std."""
    found = []
    for name, a, decay, std in (("twice", 2.0, 4.0, 0.1), ("once", 1.0, 2.0, 0.1 * np.sqrt(2.0))):
        prior = {"std": float(std), "mean": {"kappa.amplitudes": [3.0]}}
        game = GAME | {"weights": {"a1": a, "a2": a, "decay": decay}, "prior": prior}
        experiment = read_experiment(small(folder, game=game))
        compare(experiment, folds=2, seeds=1, methods=["physics", "network"], folder=folder / name)
        found.append([r.get("misfit_physical", r.get("misfit_synthetic")) for r in table_of(folder / name)["runs"]])
        assert without(experiment) == ["prior", "weight decay"]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_number_with_bounds_is_compared_by_its_value(folder: Path) -> None:
    """κ = 1.5 that does not move, and 2 in truth; what has bounds and is no number is not compared."""
    kappa = {"type": "scalar", "value": 1.5, "lower": 0.1}
    game = GAME | {"physical": {"type": "adam", "lr": 1e-12}}
    experiment = read_experiment(small(folder, coefficients={"kappa": kappa}, game=game))
    true = truth(folder, {"coefficients": {"kappa": {"type": "scalar", "value": 2.0}}})
    compare(experiment, folds=0, seeds=1, methods=["physics"], truth=true, folder=folder / "out")
    assert table_of(folder / "out")["runs"][0]["parameters"] == pytest.approx(0.25, rel=1e-9)
    bumps = {"kappa": TRUTH["coefficients"]["kappa"] | {"lower": 0.1}}
    experiment = read_experiment(small(folder, coefficients=bumps))
    true = truth(folder, TRUTH)
    compare(experiment, folds=0, seeds=1, methods=["physics"], truth=true, folder=folder / "bumps")
    wanted = "parameters: not compared, as lower and upper change the meaning of the numbers of kappa"
    assert wanted in table_of(folder / "bumps")["notes"]


def test_what_a_method_cannot_do_is_a_sentence(folder: Path) -> None:
    relu = read_experiment(small(folder, network={"type": "mlp", "width": 4, "depth": 1, "activation": "relu"}))
    compare(relu, folds=2, seeds=1, methods=["pinn", "network"], folder=folder / "out")
    found = table_of(folder / "out")
    assert [row[0] for row in found["rows"]] == ["network"]
    assert any(note.startswith("pinn left out: the strong residual needs second") for note in found["notes"])
    with pytest.raises(ConfigurationError, match="--methods: none of them can be run"):
        compare(relu, folds=2, seeds=1, methods=["pinn"], folder=folder / "other")
    field = {"kappa": {"type": "nodal", "initial": 1.5, "lower": 0.1}}
    nodal = read_experiment(small(folder, coefficients=field))
    compare(nodal, folds=2, seeds=1, methods=["pinn", "variational_pinn"], folder=folder / "nodal")
    found = table_of(folder / "nodal")
    assert [row[0] for row in found["rows"]] == ["variational_pinn"]
    assert any("pinn left out: 'kappa' of poisson is a NodalField" in note for note in found["notes"])


def test_a_truth_of_another_shape_judges_u_alone(folder: Path) -> None:
    experiment = read_experiment(small(folder))
    table = {"refine": 1, "coefficients": {"kappa": {"type": "scalar", "value": 2.0}}}
    compare(experiment, folds=0, seeds=1, methods=["physics"], truth=truth(folder, table), folder=folder / "out")
    found = table_of(folder / "out")
    assert found["columns"][:2] == ["method", "error physical"]
    assert any("refined 1 time;" in note for note in found["notes"])
    assert any(note.startswith("parameters: not compared") for note in found["notes"])


def test_rules_and_best_responses_are_compared_too(folder: Path) -> None:
    """Weights by the data, Gauss–Newton for both, the joint schedule."""
    newton = {"type": "gauss_newton", "steps": 2}
    game = {
        "rounds": 1,
        "physical": newton,
        "synthetic": newton,
        "weights": {"rule": "model_discrepancy", "decay": 0.1},
    }
    experiment = read_experiment(small(folder, game=game))
    compare(experiment, folds=2, seeds=1, folder=folder / "out")
    found = table_of(folder / "out")
    assert [row[0] for row in found["rows"]] == list(METHODS)
    assert all(run["error"] is None for run in found["runs"]), found["notes"]
    assert "weights of hyco: ModelDiscrepancy from the sensors that a run sees" in found["notes"]
    joint = read_experiment(small(folder, game={"rounds": 1, "schedule": "joint", "joint": newton}))
    compare(joint, folds=2, seeds=1, methods=["hyco", "no_interaction"], folder=folder / "joint")
    assert all(run["error"] is None for run in table_of(folder / "joint")["runs"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--methods", "hyco,phsyics"), "error: --methods: there is no 'phsyics'; did you mean 'physics'?"),
        (("--methods", ","), "error: --methods: names none; there are hyco, physics, network, "),
        (("--folds", "9"), "error: --folds: 9 folds of 8 places with sensors: one would have none"),
        (("--folds", "1"), "error: --folds: must be at least 2, not 1"),
        (("--folds", "0"), "error: --folds: must be at least 2, not 0; 0 is for a comparison with --truth alone"),
        (("--seeds", "0"), "error: --seeds: must be at least 1, not 0"),
        (("--truth", "nowhere.toml"), "error: nowhere.toml: the experiment cannot be read"),
        (
            ("--truth", "TRUTH"),
            "truth.toml: coefficients.kapa: the experiment has no such unknown; did you mean 'kappa'?",
        ),
        (("--seeds", "few"), "argument --seeds: invalid int value: 'few'"),
    ],
)
def test_what_does_not_fit_is_one_message(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    path = small(folder)
    true = truth(folder, {"coefficients": {"kapa": {"type": "scalar", "value": 1.0}}})
    out = folder / "out"
    given = [a.replace("TRUTH", str(true)) for a in arguments]
    assert status("compare", path, "--out", out, *given) == 2
    _, errors = capfd.readouterr()
    assert not out.exists()
    assert (part in errors) if WORLD.rank == 0 else errors == ""


def test_a_folder_of_another_experiment_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = small(folder), folder / "out"
    own = ("--out", out, "--folds", "2", "--seeds", "1", "--methods", "network")
    assert status("compare", path, *own) == 0
    WORLD.Barrier()
    before = (out / "compare.json").read_text(encoding="utf-8")
    assert status("compare", path, *own, "--set", "game.rounds=4") == 2
    assert status("compare", path, *own, "--set", "network.width=5") == 2
    assert (out / "compare.json").read_text(encoding="utf-8") == before
    run = folder / "run"
    assert status("run", path, "--set", f"output.folder={run}") == 0
    assert status("compare", path, "--out", run, "--set", "game.weights.b1=3.0") == 2
    _, errors = capfd.readouterr()
    if WORLD.rank == 0:
        assert "has a comparison of another experiment: game.rounds is 3 there, and 4 here" in errors
        assert "network.width is 4 there, and 5 here" in errors
        assert f"error: --out: '{run}' is of another experiment: game.weights.b1 is 0.5 there, and 3.0 here" in errors
    WORLD.Barrier()
    if WORLD.rank == 0:
        (out / "compare.jsonl").write_text("no log\n", encoding="utf-8")
    WORLD.Barrier()
    with pytest.raises(ConfigurationError, match="is no log of hyco-fem compare"):
        compare(read_experiment(path), folds=2, folder=out)


def test_a_line_that_was_cut_off_is_run_again(folder: Path) -> None:
    experiment, out = read_experiment(small(folder)), folder / "out"
    compare(experiment, folds=2, seeds=1, methods=["network"], folder=out)
    WORLD.Barrier()
    log = out / "compare.jsonl"
    whole = log.read_text(encoding="utf-8")
    WORLD.Barrier()
    if WORLD.rank == 0:
        log.write_text(whole[:-40], encoding="utf-8")
    WORLD.Barrier()
    said: list[str] = []
    compare(experiment, folds=2, seeds=1, methods=["network"], folder=out, say=said.append)
    assert said[0] == "1 of 2 runs are done already"
    assert sum(text.startswith("[") for text in said) == 1
    runs = [json.loads(line) for line in whole.splitlines()[1:]]
    for own, first in zip(table_of(out)["runs"], runs, strict=True):
        assert own["misfit_synthetic"] == pytest.approx(first["misfit_synthetic"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.serial
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    path = small(tmp_path)
    true = truth(tmp_path, TRUTH)
    own = ("--folds", "2", "--seeds", "1", "--truth", true)
    numbers = []
    for n in (1, 2):
        run = mpirun(n, "-m", "hyco_fem.cli", "compare", path, "--out", f"r{n}", *own, cwd=tmp_path, module=())
        assert run.returncode == 0, run.stderr
        numbers.append(
            [
                [r.get(m) for m in ("misfit_physical", "error_synthetic", "parameters")]
                for r in table_of(tmp_path / f"r{n}")["runs"]
            ]
        )
    one, two = (np.array(table, dtype=float) for table in numbers)
    np.testing.assert_allclose(two, one, rtol=1e-7)
