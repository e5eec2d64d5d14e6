"""Experiments whose unknown is a vector, or a value on the boundary; rules for weights, and priors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_experiment import STRANGE, changed, check_named, frozen, mutated, places, written, wrong

import hyco_fem as hf
from hyco_fem.experiment.build import Built, build
from hyco_fem.experiment.check import check
from hyco_fem.experiment.configuration import as_table, identity, read_experiment
from hyco_fem.experiment.estimate import estimate, simplified
from hyco_fem.experiment.output import fields
from hyco_fem.experiment.run import run_experiment
from hyco_fem.experiment.toml import dump

WORLD = MPI.COMM_WORLD
DEMOS = Path(__file__).parent.parent / "demos"

# -- boundary values and vectors -------------------------------------------------------------------------------

SQUARE = {"shape": "rectangle", "cells": 3}
NUMBERS = "x,y,value,noise_std\n" + "".join(f"{x},{y},{x + y},0.1\n" for x in (0.2, 0.5, 0.8) for y in (0.3, 0.7))
VECTORS = "x,y,value_0,value_1,noise_std\n" + "".join(f"{x},{y},{x},{-y},0.1\n" for x in (0.3, 0.8) for y in (0.4, 0.6))


def scalar(value: float) -> dict[str, Any]:
    """A table of one number."""
    return {"type": "scalar", "value": value}


def on(kind: str, side: str, **values: Any) -> dict[str, Any]:
    """A condition on a side of the square."""
    return {"type": kind, "facets": side, **values}


def game(**tables: Any) -> dict[str, Any]:
    """A short one."""
    return {"rounds": 2, "ghosts": {"type": "random", "points": 5}, **tables}


def built_of(folder: Path, sensors: str, **tables: Any) -> Built:
    """An experiment on the unit square."""
    table = changed(**({"mesh": SQUARE, "game": game(physical="gauss_newton")} | tables))
    return build(read_experiment(written(folder, table, sensors)))


def value_at(built: Built, x: list[float]) -> np.ndarray:
    """u of the physical model at a place."""
    points = hf.Points(built.mesh.mesh, [x])
    return np.asarray(points.gather(built.physical(points).detach()))[0]


def test_values_of_conditions_are_unknown_by_the_name_of_a_coefficient(folder: Path) -> None:
    """Without a source and with κ = 1, u = g + q x: g on the left, the flux q on the right."""
    conditions = [on("dirichlet", "left", value="g"), on("flux", "right", value="q")]
    problem = {"name": "poisson", "arguments": {"f": 0.0}, "conditions": conditions}
    built = built_of(folder, NUMBERS, problem=problem, coefficients={"g": scalar(0.7), "q": scalar(2.0)})
    assert value_at(built, [0.5, 0.3]) == pytest.approx(0.7 + 2.0 * 0.5)
    assert [(f.name, f.function_space.element.basix_element.degree) for f in fields(built)[2:]] == [("g", 1), ("q", 1)]
    assert built.game.run(1).parameters.keys() == {"g.raw", "q.raw"}
    built.close()
    # With heat transfer q = h (a − u) at x = 1: u = g + q x, where q = h (a − g − q).
    conditions[1] = on("robin", "right", coefficient="h", ambient="a")
    coefficients = {"g": scalar(0.7), "h": {**scalar(1.0), "degree": 0}, "a": scalar(2.7)}
    built = built_of(folder, NUMBERS, problem=problem, coefficients=coefficients)
    assert value_at(built, [0.5, 0.3]) == pytest.approx(0.7 + 1.0 * 0.5)
    built.close()


def test_vectors_have_a_table_for_each_component(folder: Path, comm: MPI.Comm) -> None:
    """A fluid that comes in on the left with a speed of (1, 0) goes through a channel without walls as it came."""
    inflow = {"type": "vector", "components": [scalar(1.0), scalar(0.0)]}
    problem = {"name": "stokes", "conditions": [on("dirichlet", "left", value="inflow")]}
    built = built_of(folder, VECTORS, problem=problem, coefficients={"inflow": inflow})
    np.testing.assert_allclose(value_at(built, [0.5, 0.3]), [1.0, 0.0], atol=1e-9)
    result = built.game.run(1)
    assert result.parameters.keys() == {"inflow.components.0.raw", "inflow.components.1.raw"}
    assert fields(built)[-1].ufl_shape == (2,)
    built.close()
    WORLD.Barrier()
    # A force as the only load, one component of the displacement given, and a traction.
    conditions = [on("dirichlet", "left", value=0.0), on("dirichlet", "right", value="push", component=0)]
    traction = {"type": "vector", "components": [scalar(0.0), {"type": "sine", "coefficients": [[0.1]]}]}
    coefficients = {"f": {"type": "nodal", "initial": 0.1}, "push": scalar(0.1), "traction": traction}
    problem = {"name": "elasticity", "conditions": [*conditions, on("flux", "top", value="traction")]}
    table = changed(mesh=SQUARE, problem=problem, coefficients=coefficients, game=game())
    experiment = read_experiment(written(folder, table, VECTORS))
    checks = check(experiment, comm)
    assert not checks.failed, str(checks)
    assert estimate(experiment).theta == 2 * 16 + 3


PYTHON = """
from dolfinx import fem
import hyco_fem as hf

def blown(plate):
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    g = fem.Function(V, name="warmth")
    beta = fem.Function(fem.functionspace(plate.mesh, ("Lagrange", 1, (2,))), name="beta")
    conditions = [hf.Dirichlet(g, plate.facets("left"))]
    problem = hf.catalogue.advection_diffusion(plate.mesh, beta=beta, conditions=conditions)
    problem.coefficients["g"] = problem.coefficients.pop("warmth")
    return problem
"""


def test_a_python_file_may_have_vectors_and_boundary_values_too(folder: Path) -> None:
    if WORLD.rank == 0:
        (folder / "mine.py").write_text(PYTHON, encoding="utf-8")
    WORLD.Barrier()
    beta = {"type": "vector", "components": [scalar(1.0), scalar(0.5)]}
    problem = {"python": "mine.py", "function": "blown"}
    built = built_of(folder, NUMBERS, problem=problem, coefficients={"g": scalar(0.6), "beta": beta})
    assert value_at(built, [0.5, 0.5]) == pytest.approx(0.6)
    assert np.isfinite(built.game.run(2).history[-1].interaction)
    assert [f.name for f in fields(built)[2:]] == ["g", "beta"]
    built.close()


TABLE: dict[str, Any] = changed(
    mesh=SQUARE,
    problem={
        "name": "advection_diffusion",
        "conditions": [on("dirichlet", "left", value="g"), on("flux", "right", value=0.1)],
    },
    coefficients={
        "g": {
            "type": "bumps",
            "amplitudes": [0.3],
            "centres": [[0.0, 0.4]],
            "widths": 0.5,
            "trainable": ["amplitudes"],
        },
        "beta": {
            "type": "vector",
            "components": [scalar(1.0), {"type": "bumps", "amplitudes": [0.5], "centres": [[0.4, 0.6]]}],
        },
    },
    game=game(
        weights={
            "rule": "cross_validation",
            "candidates": [{"b1": 1.0, "b2": 2.0}, {"decay": 0.1}],
            "folds": 2,
            "rounds": 1,
            "model": "physical",
            "warm": False,
            "seed": 1,
        },
        prior={"std": {"g.amplitudes": 0.5, "beta.components.0.raw": 2.0}, "mean": {"g.amplitudes": [0.1]}},
        physical="gauss_newton",
    ),
)

WRONG = {
    "coefficients.'g.h'={type='scalar', value=1}": "coefficients.g.h: a name must not contain a dot",
    "coefficients.g.degree=1": "coefficients.g.degree: a Dirichlet value has the space of u; leave it out",
    "coefficients.g.type=vector": "coefficients.g.",
    "coefficients.g={type='vector', components=[]}": "coefficients.g: there are 0 components, and it needs 1",
    "coefficients.beta={type='scalar', value=1}": "coefficients.beta: it is a vector of 2 components: type = 'vector'",
    "coefficients.beta.components=[{type='scalar', value=1}]": "coefficients.beta: there are 1 components, and it",
    "coefficients.beta.components=[{type='nodal'}, {type='scalar', value=1}]": "coefficients.beta.components[0].type: ",
    "coefficients.beta.components=[{type='scalar', value=1, degree=2}]": "coefficients.beta.components[0].degree: ",
    "coefficients={g={type='scalar', value=1}}": "problem.arguments.beta: is missing; advection_diffusion needs it",
    "problem.conditions=[{type='flux', value='h'}]": "problem.conditions[0].value: 'h' has no table in coefficients",
    "problem.conditions=[{type='robin', coefficient='g', ambient=''}]": "problem.conditions[0].ambient: must be",
    "game.prior={}": "game.prior.std: is missing; a finite number or a table belongs here",
    "game.prior.std=0": "game.prior.std: must be positive, not 0",
    "game.prior.std={'g.amplitudes'=[-1]}": "game.prior.std: must be positive",
    "game.prior.std={'g.amplitude'=1}": "game.prior.std.g.amplitude: no such parameter; did you mean 'g.amp",
    "game.prior.std={'g.amplitudes'=[1, 2]}": "game.prior: the std of 'g.amplitudes'",
    "game.prior.std={'g.amplitudes'='wide'}": "game.prior.std.g.amplitudes: must be a finite number",
    "game.prior.mean={'b'=1}": "game.prior.mean.b: no such parameter; there are",
    "game.schedule=split": "game.schedule: 'split' is not among its values; there are alternating, joint, simultaneous",
    "game.weights.rule=cross_valdation": "game.weights.rule: 'cross_valdation' is not among its values; did you mean",
    "game.weights.rule=discrepancy": "game.weights.folds: is for the rule 'cross_validation', not for 'discrepancy'",
    "game.weights.folds=1": "game.weights.folds: must be at least 2, not 1",
    "game.weights.candidates=[]": "game.weights.candidates: is missing; 'cross_validation' chooses among some",
    "game.weights.candidates=[{b=1}]": "game.weights.candidates[0].b: no such key; did you mean 'b",
    "game.weights={rule='gradient_balance', memory=1}": "game.weights.memory: must be less than 1, not 1",
    "game.weights={every=3}": "game.weights.every: is for the rule 'gradient_balance', not for 'given'",
    "game.weights={rule='model_discrepancy', b2=1}": "game.weights.b2: is chosen by the rule",
    "game.weights={rule='model_discrepancy', level=0}": "game.weights.level: must be positive, not 0",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_does_not_fit_is_named_by_its_key(folder: Path, change: str) -> None:
    assert wrong(written(folder, TABLE, NUMBERS), change).startswith(WRONG[change])


@frozen
@pytest.mark.serial
@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(places(TABLE)),
    st.sampled_from(["rename", "remove", "replace"]),
    st.sampled_from([*STRANGE, "g", "vector", {"type": "scalar", "value": 1.0}]),
)
def test_mutated_configurations_end_in_a_named_key(folder: Path, at: tuple[Any, ...], how: str, value: Any) -> None:
    check_named(*mutated(at, how, value, TABLE), folder, NUMBERS)


# -- weights and priors ----------------------------------------------------------------------------------------

RULES: dict[str, dict[str, Any]] = {
    "5-fold": {"rule": "cross_validation", "candidates": [{"b1": 1.0}, {"b1": 2.0}], "folds": 5, "rounds": 1},
    "discrepancy": {"rule": "discrepancy", "candidates": [{"b2": 1.0}, {"b2": 9.0}], "level": 1.5, "rounds": 1},
    "model discrepancy": {"rule": "model_discrepancy", "factor": 3.0, "trusted": 0.2, "level": 1.0, "decay": 0.1},
}


@pytest.mark.parametrize("name", RULES)
def test_rules_choose_weights_as_they_do_in_python(folder: Path, name: str) -> None:
    coefficients = {"kappa": scalar(1.0)}
    problem = {"name": "poisson"}
    tables = {"problem": problem, "coefficients": coefficients}
    built = built_of(folder, NUMBERS, **tables, game=game(weights=RULES[name], physical="gauss_newton"))
    choice = built.game.run(1).choice
    built.close()
    base = hf.Weights(decay=0.1)
    rule: Any = {
        "5-fold": hf.CrossValidation([hf.Weights(b1=1.0), hf.Weights(b1=2.0)], folds=5, rounds=1),
        "discrepancy": hf.Discrepancy([hf.Weights(b2=1.0), hf.Weights(b2=9.0)], level=1.5, rounds=1),
        "model discrepancy": hf.ModelDiscrepancy(base, factor=3.0, trusted=0.2, level=1.0),
    }[name]
    again = built_of(folder, NUMBERS, **tables, game=game(physical="gauss_newton"))
    ghosts, answers = hf.RandomGhosts(5), hf.Answers(hf.GaussNewton())
    wanted = hf.Hyco(again.physical, again.synthetic, again.data, ghosts, weights=rule, answers=answers).run(1).choice
    assert choice is not None
    assert wanted is not None
    assert choice.rule.startswith(name)
    np.testing.assert_allclose(choice.scores, wanted.scores, rtol=1e-9)
    assert choice.weights.b2 == pytest.approx(wanted.weights.b2, rel=1e-9)
    again.close()


def test_balanced_gradients_change_the_weights_as_they_go(folder: Path) -> None:
    weights = {"rule": "gradient_balance", "every": 1, "memory": 0.0, "b1": 3.0}
    built = built_of(
        folder, NUMBERS, problem={"name": "poisson"}, coefficients={"kappa": scalar(1.0)}, game=game(weights=weights)
    )
    rule = built.game.weights
    assert isinstance(rule, hf.GradientBalance)
    assert (rule.start.b1, rule.every, rule.memory) == (3.0, 1, 0.0)
    built.game.run(2)
    assert rule.now.b1 != 3.0
    built.close()


def test_a_prior_holds_what_the_data_do_not_tell(folder: Path) -> None:
    """With one narrow prior the parameter stays at its mean; the other one is free."""
    problem = {"name": "poisson", "arguments": {"f": 1.0}, "conditions": [on("dirichlet", "left", value="g")]}
    tables = {"problem": problem, "coefficients": {"g": scalar(0.2), "kappa": scalar(1.0)}}
    answer = {"type": "gauss_newton", "steps": 30}
    for prior, held in ((None, False), ({"std": {"g.raw": 1e-6}, "mean": {"g.raw": 0.3}}, True)):
        tables["game"] = game(physical=answer, weights={"b1": 0.0}) | ({} if prior is None else {"prior": prior})
        built = built_of(folder, NUMBERS, **tables)
        found = built.game.run(2).parameters
        assert (abs(found["g.raw"] - 0.3) < 1e-4) == held
        assert abs(found["kappa.raw"] - 1.0) > 0.05
        built.close()
        WORLD.Barrier()


def test_defaults_are_no_part_of_what_an_experiment_is_and_estimates_leave_rules_out(folder: Path) -> None:
    experiment = read_experiment(written(folder, TABLE, NUMBERS), ["game.physical=adam"], folder=folder)
    assert simplified(experiment).game.weights.rule == "given"
    assert simplified(experiment).game.weights.candidates is None
    assert estimate(experiment).theta == 1 + 1 + 3
    if WORLD.rank == 0:
        (folder / "used.toml").write_text(dump(as_table(experiment, folder)), encoding="utf-8")
    WORLD.Barrier()
    again = read_experiment(folder / "used.toml", folder=folder)
    assert again == experiment
    assert "every" not in identity(again)["game"]["weights"]


@pytest.mark.slow
def test_a_pde_of_ones_own_is_found(folder: Path) -> None:
    """The background to a few per cent, and where the bump is; its height is hardly seen through u²."""
    fast = ["game.rounds=1", "game.physical.starts=4", "output.fields=false"]
    path = DEMOS / "experiments" / "own_pde.toml"
    result = run_experiment(read_experiment(path, fast, folder=folder / "out"))
    assert result.parameters["kappa.background"] == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(result.parameters["kappa.centres"], [[1.3, 0.6]], atol=0.08)
