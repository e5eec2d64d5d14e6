"""Experiments in TOML: what is written is what is built, and what does not fit is named by its key."""

from __future__ import annotations

import copy
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
import ufl
from dolfinx import fem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hyco_fem as hf
from hyco_fem.experiment.build import build
from hyco_fem.experiment.check import check
from hyco_fem.experiment.configuration import as_table, identity, read_experiment
from hyco_fem.experiment.estimate import estimate
from hyco_fem.experiment.meshes import build_mesh
from hyco_fem.experiment.schema import Mesh
from hyco_fem.experiment.tables import ConfigurationError
from hyco_fem.experiment.toml import dump, overridden
from hyco_fem.io.meshes import write_mesh

WORLD = MPI.COMM_WORLD
DEMOS = Path(__file__).parent.parent / "demos"

TABLE: dict[str, Any] = {
    "mesh": {"shape": "rectangle", "cells": [4, 3], "lower": [0.0, 0.0], "upper": [2.0, 1.0]},
    "problem": {
        "name": "poisson",
        "arguments": {"f": 4.0},
        "conditions": [
            {"type": "dirichlet", "value": 0.0, "facets": "left"},
            {"type": "dirichlet", "value": 1.0, "facets": ["right"]},
            {"type": "robin", "coefficient": 0.5, "ambient": 0.2, "facets": "top"},
        ],
    },
    "coefficients": {"kappa": {"type": "bumps", "amplitudes": [1.0], "centres": [[1.2, 0.4]], "background": 1.0}},
    "sensors": {"file": "sensors.csv"},
    "network": {"type": "mlp", "width": 4, "depth": 1},
    "game": {
        "rounds": 4,
        "ghosts": {"type": "random", "points": 5},
        "weights": {"b1": 2.0},
        "physical": {"type": "gauss_newton", "bounds": {"kappa.amplitudes": [0.1, 3.0]}},
    },
}
SENSORS = "x,y,value,noise_std\n0.5,0.5,0.6,0.1\n1.2,0.4,0.9,0.1\n1.6,0.7,1.0,0.1\n"


def written(folder: Path, table: dict[str, Any] = TABLE, sensors: str = SENSORS) -> Path:
    """The files of an experiment."""
    if WORLD.rank == 0:
        (folder / "sensors.csv").write_text(sensors, encoding="utf-8")
        (folder / "small.toml").write_text(dump(table), encoding="utf-8")
    WORLD.Barrier()
    return folder / "small.toml"


def changed(**tables: Any) -> dict[str, Any]:
    """The table with other sections."""
    return copy.deepcopy(TABLE) | tables


def wrong(path: Path, *changes: str) -> str:
    """What is said of an experiment with overrides, when it is read or built."""
    with pytest.raises(ConfigurationError) as found:
        build(read_experiment(path, changes))
    return str(found.value)


# -- text ------------------------------------------------------------------------------------------------------

_SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
_NAMES = st.text(min_size=1, max_size=6)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=8
)


# conftest.py freezes what is there, among it the stream of hypothesis, whose referrers hypothesis then does not find.
frozen = pytest.mark.filterwarnings("ignore:It looks like .register_random.:hypothesis.errors.HypothesisWarning")


@frozen
@pytest.mark.serial
@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_what_is_dumped_is_read_as_the_same_table(table: dict[str, Any]) -> None:
    assert tomllib.loads(dump(table)) == table


def test_overrides_are_values_of_toml_or_texts() -> None:
    table = {"game": {"rounds": 5}}
    found = overridden(
        table, ["game.rounds=50", "game.schedule=joint", 'game.bounds."kappa.widths"=[0.1, 1]', "a.b=true"]
    )
    assert found == {
        "game": {"rounds": 50, "schedule": "joint", "bounds": {"kappa.widths": [0.1, 1]}},
        "a": {"b": True},
    }
    assert table == {"game": {"rounds": 5}}
    for setting in ("game.rounds", "=3", "game.rounds.more=3", "a b=3"):
        with pytest.raises(ConfigurationError, match=f"--set {re.escape(setting)}"):
            overridden(table, [setting])


def test_the_configuration_as_used_is_the_same_experiment(folder: Path) -> None:
    experiment = read_experiment(written(folder))
    if WORLD.rank == 0:
        (folder / "deeper").mkdir()
        (folder / "deeper" / "used.toml").write_text(dump(as_table(experiment, folder / "deeper")), encoding="utf-8")
    again = read_experiment(folder / "deeper" / "used.toml", folder=experiment.output.folder)
    assert again == experiment
    assert identity(again) == identity(experiment)


def test_the_length_of_a_run_is_no_part_of_what_it_is(folder: Path) -> None:
    path = written(folder)
    own = identity(read_experiment(path))
    assert identity(read_experiment(path, ["game.rounds=99", "title=other", "output.keep=1"])) == own
    assert identity(read_experiment(path, ["network.seed=1"])) != own
    WORLD.Barrier()
    written(folder, sensors=SENSORS.replace("0.9", "0.8"))
    assert identity(read_experiment(path)) != own


def test_what_a_file_imports_or_refers_to_is_part_of_it(folder: Path, comm: MPI.Comm) -> None:
    square = build_mesh(Mesh(shape="rectangle", cells=3, upper=[2.0, 1.0]), comm)
    write_mesh(folder / "square.xdmf", square)
    problem = {"python": "mine.py", "function": "reaction", "arguments": {"rate": 2.0}}
    path = written(folder, changed(mesh={"file": "square.xdmf"}, problem=problem))
    if comm.rank == 0:
        (folder / "mine.py").write_text("from own_rates import RATE\nimport numpy\n" + PYTHON, encoding="utf-8")
        (folder / "own_rates.py").write_text("RATE = 2.0\n", encoding="utf-8")
    comm.Barrier()
    experiment = read_experiment(path)
    build(experiment).close()
    own = identity(experiment)
    comm.Barrier()
    if comm.rank == 0:
        (folder / "own_rates.py").write_text("RATE = 3.0\n", encoding="utf-8")
    write_mesh(folder / "square.xdmf", build_mesh(Mesh(shape="rectangle", cells=3, upper=[1.0, 2.0]), comm))
    then = identity(experiment)
    assert then["problem"]["python"] != own["problem"]["python"]
    assert then["mesh"]["file"] != own["mesh"]["file"]
    named = read_experiment(path, ["mesh.names={links=[1, 1]}"])
    assert build_mesh(named.mesh, comm).facets("links").dtype == np.int32
    assert wrong(path, "mesh.names={links=77}").startswith("mesh.file: ")
    assert wrong(path, "mesh.names={links=[1]}").startswith("mesh.names.links: must be a tag, or [dimension, tag]")
    assert wrong(path, "mesh.mesh_size=0.1").startswith("mesh.mesh_size: is for a .geo file")
    with pytest.raises(ConfigurationError, match=r"grid: is for an .xdmf file"):
        Mesh(file=Path("plate.msh"), grid="mesh")


# -- what does not fit -----------------------------------------------------------------------------------------

WRONG = {
    "game.ruonds=3": "game.ruonds: no such key; did you mean 'rounds'?",
    "gmae.rounds=3": "gmae: no such key; did you mean 'game'?",
    "game.rounds=0": "game.rounds: must be at least 1, not 0",
    "game.rounds=2.5": "game.rounds: must be a whole number, not 2.5",
    "game.rounds=true": "game.rounds: must be a whole number, not True",
    "game.schedule=jiont": "game.schedule: 'jiont' is not among its values; did you mean 'joint'?",
    "game.physical.type=adm": "game.physical.type: there is no 'adm'; did you mean 'adam'?",
    'game.physical.bounds."kappa.width"=[1, 2]': "game.physical.bounds.kappa.width: no such parameter; there are",
    'game.physical.bounds."kappa.amplitudes"=[1]': "game.physical.bounds.kappa.amplitudes: must be two entries",
    'game.physical.bounds."kappa.amplitudes"=[2, 3]': "game: ",
    'game.synthetic={type="adam", lr=-1}': "game.synthetic.lr: must be positive, not -1",
    "game.weights.a1=-1": "game.weights.a1: must be at least 0, not -1",
    "game.weights.rule=model_discrepancy": "game.weights.b1: is chosen by the rule",
    "game.stopping={gradient=0}": "game.stopping.gradient: must be positive",
    "mesh.file=nowhere.msh": "mesh.file: a mesh has either a file or a shape",
    "mesh.cells=[4]": "mesh.cells: must have 2 entries for the shape 'rectangle', not 1",
    "mesh.cells=many": "mesh.cells: must be a whole number or a list, not 'many'",
    "mesh.upper=[2, 0]": "mesh.upper: must be above lower, not 0 where lower is 0",
    "problem.name=posson": "problem.name: 'posson' is no problem of the catalogue; did you mean 'poisson'?",
    "problem.name=heat": "time: is missing; heat is in time, and needs end and dt",
    "problem.arguments.kappa=1": "problem.arguments.kappa: is unknown, with a start in coefficients; leave it out",
    "problem.arguments.g=1": "problem.arguments.g: poisson takes no such argument",
    "problem.arguments.f=nan": "problem.arguments.f: must be a finite number, or an array of them, not nan",
    "problem.arguments.degree=0": "problem: the degree of poisson must be a whole number from 1 on, not 0",
    "problem.conditions=[{type='flux', value=1, facets='lfet'}]": "problem.conditions[0].facets: the mesh has no",
    "problem.conditions=[{type='flux', valeu=1}]": "problem.conditions[0].valeu: no such key; did you mean 'value'?",
    "problem.name=advection_diffusion": "problem.arguments.beta: is missing; advection_diffusion needs it",
    "coefficients={kapa={type='scalar', value=1}}": "coefficients.kapa: poisson has none; did you mean 'kappa'?",
    "coefficients={}": "coefficients: is empty",
    "coefficients.kappa.centres=[[1]]": "coefficients.kappa: centres have 1 coordinates, the mesh has 2",
    "coefficients.kappa.background=-5": "coefficients: the coefficient 'kappa' is not finite and positive",
    "coefficients.kappa.upper=3": "coefficients.kappa.lower: is missing where upper is given",
    "coefficients.kappa.trainable=['widht']": "coefficients.kappa.trainable[0]: 'widht' is not among",
    "sensors.file=nowhere.csv": "sensors.file: the file ",
    "sensors.file=small.toml": "sensors.file: ",
    "network.type=mpl": "network.type: there is no 'mpl'; did you mean 'mlp'?",
    "network.width=wide": "network.width: must be a whole number, not 'wide'",
    "network=3": "network: must be a table, not 3",
    "output.keep=0": "output.keep: must be at least 1, not 0",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_does_not_fit_is_named_by_its_key(folder: Path, change: str) -> None:
    assert wrong(written(folder), change).startswith(WRONG[change])


def test_a_key_that_is_missing_is_named(folder: Path) -> None:
    for section, key in (("game", "rounds"), ("problem", "name"), ("mesh", "cells"), ("sensors", "file")):
        table = changed()
        del table[section][key]
        assert wrong(written(folder, table)).startswith(f"{section}.{key}: ")
        WORLD.Barrier()
    assert wrong(written(folder, changed(network={"width": 3}))).startswith("network.type: is missing")


def test_sensors_that_do_not_fit_the_model_are_refused(folder: Path) -> None:
    cases = {
        "x,value\n0.5,1.0\n": "has 1 coordinates, the mesh has 2",
        "x,y,value_0,value_1\n0.5,0.5,1.0,2.0\n": "has 2 value(s) a sensor, the model has 1",
        "x,y,t,value\n0.5,0.5,1.0,2.0\n": "has times, and the problem is steady",
        "x,y,value\n5.0,0.5,1.0\n": "1 of 1 sensors lie outside the mesh: line 2",
    }
    for sensors, part in cases.items():
        said = wrong(written(folder, sensors=sensors))
        assert said.startswith("sensors.file: ")
        assert part in said
        WORLD.Barrier()
    rule = changed(game={"rounds": 1, "weights": {"rule": "model_discrepancy"}})
    assert "noise_std" in wrong(written(folder, rule, "x,y,value\n0.5,0.5,1.0\n"))


def test_a_text_that_is_no_toml_is_refused_with_its_place(folder: Path) -> None:
    path = folder / "small.toml"
    if WORLD.rank == 0:
        path.write_text("[mesh\n", encoding="utf-8")
    WORLD.Barrier()
    assert "small.toml: not TOML" in wrong(path)
    assert "cannot be read" in wrong(folder / "nowhere.toml")


def places(table: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value may be changed."""
    entries = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    return [p for key, value in entries for p in ((*at, key), *places(value, (*at, key)))]


STRANGE: list[Any] = [
    -1,
    0,
    2,
    1.5,
    float("nan"),
    float("inf"),
    True,
    "",
    "text",
    [],
    [1.0],
    [[0.5, 0.5]],
    {},
    {"a": 1},
]
SECTIONS = "mesh|problem|time|coefficients|sensors|network|game|output|title"


mutations = given(
    st.sampled_from(places(TABLE)), st.sampled_from(["rename", "remove", "replace"]), st.sampled_from(STRANGE)
)


def mutated(at: tuple[Any, ...], how: str, value: Any, table: dict[str, Any] = TABLE) -> tuple[dict[str, Any], bool]:
    """A table with one entry renamed, removed or replaced, and whether a key was renamed."""
    table = copy.deepcopy(table)
    place: Any = table
    for key in at[:-1]:
        place = place[key]
    if how == "rename" and isinstance(place, dict):
        place[f"{at[-1]}_"] = place.pop(at[-1])
    elif how == "replace":
        place[at[-1]] = value
    else:
        del place[at[-1]]
    return table, how == "rename" and isinstance(place, dict)


@frozen
@pytest.mark.serial
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@mutations
def test_mutated_configurations_end_in_a_named_key(folder: Path, at: tuple[Any, ...], how: str, value: Any) -> None:
    check_named(*mutated(at, how, value), folder)


def check_named(table: dict[str, Any], renamed: bool, folder: Path, sensors: str = SENSORS) -> None:
    """What is said of a table begins with a key, and something is said where a key was renamed."""
    said = None
    try:
        build(read_experiment(written(folder, table, sensors))).close()
    except ConfigurationError as error:
        said = str(error)
    if said is not None:
        assert re.match(rf"({SECTIONS})[\w.\[\]]*: ", said), said
    assert said is not None or not renamed, "no name is free"


# -- what is built ---------------------------------------------------------------------------------------------


def test_the_plate_of_the_file_is_the_plate_of_the_demo(comm: MPI.Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DEMOS))
    import plate_with_hole as demo

    built = build(read_experiment(DEMOS / "experiments" / "plate.toml", comm=comm))
    plate = hf.read_mesh(demo.MESH, comm)
    theirs = demo.physical_model(plate)
    places = hf.read_sensors(demo.SENSORS, comm).x
    found, wanted = (
        points.gather(model(points).detach())
        for model, points in ((built.physical, built.data.points), (theirs, hf.Points(plate.mesh, places)))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-11)
    x = torch.rand(7, 2, dtype=torch.float64)
    torch.testing.assert_close(built.synthetic(x), demo.network(plate.mesh)(x), rtol=0, atol=0)
    sigma = hf.read_sensors(demo.SENSORS, comm).noise_std
    assert sigma is not None
    assert built.game.weights.b2 == pytest.approx(1.0 / np.mean(sigma**2), rel=1e-3)
    built.close(), theirs.close()


def test_a_geo_file_is_meshed_with_its_constants(comm: MPI.Comm) -> None:
    """Half the mesh size, four times the cells, less near the hole, where they were small before."""
    geo = DEMOS.parent / "meshes" / "plate_with_hole.geo"
    coarse, fine = (build_mesh(Mesh(file=geo, mesh_size=h), comm).mesh.topology.index_map(2) for h in (0.3, 0.15))
    assert fine.size_global > 2 * coarse.size_global
    with pytest.raises(ConfigurationError, match=r"mesh.file: .*no constant named 'q'"):
        build_mesh(Mesh(file=geo, constants={"q": 1.0}), comm)
    with pytest.raises(ConfigurationError, match=r"mesh_size: is for a .geo file"):
        Mesh(file=geo.with_suffix(".msh"), mesh_size=0.3)


@pytest.mark.parametrize(("shape", "sides"), [("interval", 2), ("rectangle", 4), ("box", 6)])
def test_the_sides_of_a_box_have_names_and_areas(comm: MPI.Comm, shape: str, sides: int) -> None:
    d = sides // 2
    lengths = np.array([2.0, 3.0, 0.5])[:d]
    plate = build_mesh(Mesh(shape=shape, cells=2, lower=[0.0] * d, upper=list(lengths)), comm)
    names = ["left", "right", "bottom", "top", "front", "back"][:sides]
    ds = ufl.Measure("ds", domain=plate.mesh, subdomain_data=plate.facet_tags)
    x = ufl.SpatialCoordinate(plate.mesh)
    for k, name in enumerate(names):
        where = ds(plate.names[name][1])
        area = comm.allreduce(fem.assemble_scalar(fem.form(fem.Constant(plate.mesh, 1.0) * where)))
        moment = comm.allreduce(fem.assemble_scalar(fem.form(x[k // 2] * where)))
        assert area == pytest.approx(np.prod(np.delete(lengths, k // 2)))
        assert moment == pytest.approx(area * (lengths[k // 2] if k % 2 else 0.0))


def test_a_hard_boundary_has_the_values_of_each_condition(folder: Path, comm: MPI.Comm) -> None:
    built = build(read_experiment(written(folder), ["network.hard_boundary=true"]))
    y = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for x, value in ((0.0, 0.0), (2.0, 1.0)):
        points = torch.stack([torch.full_like(y, x), y], dim=1)
        np.testing.assert_allclose(built.synthetic(points).detach(), value, atol=1e-9)
    built.close()
    path = written(folder, changed(problem={"name": "poisson"}))
    built = build(read_experiment(path, ["network.hard_boundary=true"]))
    corner = torch.tensor([[0.0, 0.3], [1.0, 1.0]], dtype=torch.float64)
    np.testing.assert_allclose(built.synthetic(corner).detach(), 0.0, atol=1e-12)
    built.close()


COEFFICIENTS = {
    "scalar": {"type": "scalar", "value": 2.0, "lower": 0.0, "degree": 0},
    "sine": {"type": "sine", "coefficients": [[0.3, 0.1]], "wavenumber": 1.5, "lower": 0.5, "upper": 2.0},
    "nodal": {"type": "nodal", "initial": 1.5, "lower": 0.0},
    "neural": {"type": "neural", "width": 3, "depth": 1, "lower": 0.1},
}
NETWORKS = {
    "resnet": {"type": "resnet", "width": 4, "blocks": 1},
    "shallow": {"type": "shallow", "neurons": 5, "activation": "gaussian"},
    "fourier": {"type": "fourier", "features": 3, "width": 4, "depth": 1},
    "hard": {"type": "mlp", "width": 4, "depth": 1, "hard_boundary": True},
}
GAMES: list[dict[str, Any]] = [
    {"rounds": 1, "ghosts": {"type": "quadrature"}, "synthetic": {"type": "lbfgs", "steps": 2}},
    {"rounds": 1, "ghosts": {"type": "dofs"}, "warm_up": 2},
    {"rounds": 1, "ghosts": {"type": "random", "points": 4, "boundary": 3, "fixed": True}, "schedule": "simultaneous"},
    {"rounds": 1, "stopping": {"stagnation": 0.5, "window": 1}, "synthetic": {"type": "gauss_newton"}},
]


@pytest.mark.parametrize(("coefficient", "network", "game"), list(zip(COEFFICIENTS, NETWORKS, GAMES, strict=True)))
def test_every_kind_of_table_makes_a_game(folder: Path, coefficient: str, network: str, game: dict[str, Any]) -> None:
    table = changed(coefficients={"kappa": COEFFICIENTS[coefficient]}, network=NETWORKS[network], game=game)
    built = build(read_experiment(written(folder, table)))
    result = built.game.run(1, stopping=built.stopping)
    assert np.isfinite([result.history[-1].misfit_physical, result.history[-1].interaction]).all()
    built.close()


def test_the_best_of_many_starts_and_weights_from_the_data(folder: Path) -> None:
    bounds = {"kappa.amplitudes": [0.1, 3.0], "kappa.centres": [[[0.0, 0.0]], [[2.0, 1.0]]]}
    physical = {"type": "multi_start", "starts": 3, "steps": 3, "keep": 1, "bounds": bounds}
    game = {"rounds": 1, "physical": physical, "weights": {"rule": "model_discrepancy", "decay": 0.1}}
    sensors = "x,y,value,noise_std\n" + "".join(
        f"{x},{y},{x / 2 + y / 9},0.1\n" for x in (0.3, 0.9, 1.7) for y in (0.2, 0.7)
    )
    built = build(read_experiment(written(folder, changed(game=game), sensors)))
    result = built.game.run(1)
    assert result.choice is not None
    assert 0.1 <= result.parameters["kappa.amplitudes"][0] <= 3.0
    built.close()


PYTHON = """
import ufl
from dolfinx import fem
import hyco_fem as hf

def reaction(plate, rate):
    V = fem.functionspace(plate.mesh, ("Lagrange", 1))
    kappa = fem.Function(V, name="kappa")
    kappa.x.array[:] = 1.0
    conditions = [hf.Dirichlet(0.0, plate.facets("left"))]
    return hf.catalogue.reaction_diffusion(plate.mesh, kappa=kappa, eta=rate, conditions=conditions)

def nothing(plate, rate):
    pass
"""


def test_a_problem_of_a_python_file_is_solved_and_its_errors_have_a_line(folder: Path) -> None:
    problem = {"python": "mine.py", "function": "reaction", "arguments": {"rate": 2.0}}
    path = written(folder, changed(problem=problem))
    if WORLD.rank == 0:
        (folder / "mine.py").write_text(PYTHON, encoding="utf-8")
    WORLD.Barrier()
    before = list(sys.path)
    built = build(read_experiment(path))
    assert sys.path == before
    x = hf.Points(built.mesh.mesh, [[2.0, 0.5]])
    assert float(np.squeeze(x.gather(built.physical(x).detach()))) > 0.1
    built.close()
    assert "did you mean 'reaction'?" in wrong(path, "problem.function=raection")
    assert "must return a hyco_fem.Problem or TransientProblem, not NoneType" in wrong(path, "problem.function=nothing")
    assert re.match(r"problem.python: .*mine.py': TypeError", wrong(path, "problem.arguments={}"))
    assert re.match(r"problem.python: .*mine.py', line 11: TypeError", wrong(path, "problem.arguments.rate=fast"))
    assert wrong(path, "coefficients.kappa.degree=1").startswith("coefficients.kappa.degree: the Python file")
    assert wrong(path, "coefficients={k={type='scalar', value=1}}").startswith("coefficients.k: ")


def test_an_experiment_gives_the_same_numbers_on_any_ranks(folder: Path, comm: MPI.Comm) -> None:
    checks = check(read_experiment(written(folder), comm=comm), comm)
    assert not checks.failed, str(checks)
    assert checks.ranks.sizes == tuple(range(1, comm.size + 1))


def test_an_estimate_counts_what_is_there_and_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder)
    before = sorted(p.name for p in folder.iterdir())
    found = estimate(read_experiment(path, ["game.warm_up=3", f"output.folder={folder / 'out'}"]))
    assert (found.cells, found.dofs, found.theta, found.phi, found.sensors) == (24, 20, 3, 17, 3)
    assert found.rounds == 4
    assert found.seconds >= found.first + 3 * found.each
    assert sorted(p.name for p in folder.iterdir()) == before
    field = changed(coefficients={"kappa": COEFFICIENTS["nodal"]}, game={"rounds": 1})
    assert estimate(read_experiment(written(folder, field))).theta == 20
