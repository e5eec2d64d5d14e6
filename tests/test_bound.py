"""The explicit O(h) bound: published numbers, the algebra it rests on, and many loads that do not exceed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from cases import distorted_quadrilaterals, square
from dolfinx import fem, mesh

import hyco_fem as hf
from hyco_fem.accuracy.bound import bound_table, dirichlet_facets, explicit_bound, kappa_bounds, rate
from hyco_fem.accuracy.mixed import MixedResponse, Response, cell_volumes, count_above
from hyco_fem.accuracy.sharpness import Sharpness, TrueErrors, random_loads, sharpness
from hyco_fem.accuracy.spectrum import largest_eigenvalue
from hyco_fem.parallel import sum_array

MESHES = Path(__file__).parents[1] / "meshes"
TORSION = 0.0351442537  # (1, u) for −Δu = 1 on the unit square, a quarter of its torsion constant 0.1405770150


def domain_of(name: str, comm: MPI.Comm, size: float) -> mesh.Mesh:
    """A mesh of meshes/."""
    return hf.read_mesh(MESHES / f"{name}.geo", comm, mesh_size=size).mesh


def cellwise(domain: mesh.Mesh, formula: Callable) -> fem.Function:
    """Values of a formula of x (3, n) at the midpoints of cells."""
    k = fem.Function(fem.functionspace(domain, ("DG", 0)))
    k.interpolate(formula)
    return k


def left(x: np.ndarray) -> np.ndarray:
    """Γ_D: the side x = 0."""
    return np.isclose(x[0], 0.0)


def jumping(x: np.ndarray) -> np.ndarray:
    """κ = 10 in a disc, 1/2 beside it; of x (d, n)."""
    return np.where((x[0] - 0.6) ** 2 + (x[1] - 0.4) ** 2 < 0.1, 10.0, 0.5)


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 16, 32, pytest.param(64, marks=pytest.mark.slow)])
def test_the_square_has_the_known_constants(comm: MPI.Comm, n: int) -> None:
    """κ_h/h and C_h/h, h the leg, as a prototype with a saddle point and ARPACK found them."""
    bound = explicit_bound(square(comm, n))
    known = {8: 0.458, 16: 0.479, 32: 0.490, 64: 0.495}
    assert bound.kappa_h * n == pytest.approx(known[n], abs=6e-4)
    assert pytest.approx(np.sqrt(2) / (np.pi * n)) == bound.C0
    assert pytest.approx(np.hypot(bound.C0, bound.kappa_h)) == bound.C_h
    assert bound.h == pytest.approx(np.sqrt(2) / n)
    assert bound.cells == 2 * n**2
    # h is the diameter; a right isosceles triangle has legs of diameter/√2.
    assert bound.per_h * np.sqrt(2) == pytest.approx({8: 0.642, 16: 0.6575, 32: 0.665, 64: 0.669}[n], abs=6e-4)


@pytest.mark.slow
def test_the_constant_of_a_convex_domain_is_proportional_to_h(comm: MPI.Comm) -> None:
    """C_h/h within 5 % over four meshes, each with cells of half the size."""
    found = [explicit_bound(square(comm, n)).per_h for n in (8, 16, 32, 64)]
    assert max(found) < 1.05 * min(found)


def test_at_a_re_entrant_corner_the_constant_decays_slower(comm: MPI.Comm) -> None:
    """As the singularity r^{2/3} of the L-shape: h^{2/3}, and not h; with a slit, r^{1/2}, h^{1/2}."""
    for name, least, most in (("l_shape", 0.60, 0.75), ("slit", 0.45, 0.58)):
        coarse = domain_of(name, comm, 0.25)
        fine = coarse
        for _ in range(2):
            coarse = fine
            fine.topology.create_entities(1)
            fine = mesh.refine(fine)[0]
        bounds = [explicit_bound(m) for m in (coarse, fine)]
        assert bounds[1].h == pytest.approx(bounds[0].h / 2)
        found = np.log2(bounds[0].kappa_h / bounds[1].kappa_h)
        assert least < found < most, found
        assert least < rate(*bounds) < 0.9


def test_finer_cells_at_the_corner_bring_the_constant_down(comm: MPI.Comm) -> None:
    """The constant is that of its worst place, so a few small cells are worth more than many."""
    coarse = domain_of("l_shape", comm, 0.25)
    before = explicit_bound(coarse)
    finer = coarse
    for _ in range(2):
        finer.topology.create_entities(1)
        near = mesh.locate_entities(finer, 1, lambda x: np.hypot(x[0], x[1]) < 0.5)
        finer = mesh.refine(finer, near)[0]
    after = explicit_bound(finer)
    assert after.kappa_h < 0.8 * before.kappa_h


def test_kappa_scales_as_it_must(comm: MPI.Comm) -> None:
    """Four times κ halves the constant of the energy, and Cₕ² with it: −∇·(4κ∇(u/4)) is −∇·(κ∇u)."""
    domain = square(comm, 6)
    one, four = explicit_bound(domain), explicit_bound(domain, 4.0)
    np.testing.assert_allclose([four.C0, four.kappa_h], [one.C0 / 2, one.kappa_h / 2], rtol=1e-9)
    assert four.L2(3.0) == pytest.approx(one.L2(3.0) / 4)
    assert four.energy(3.0) == pytest.approx(one.energy(3.0) / 2)
    # A Function, a pair and a number that say the same give the same; a space is as good as its mesh.
    V = fem.functionspace(domain, ("Lagrange", 1))
    for kappa in (
        cellwise(domain, lambda x: 4.0 + 0 * x[0]),
        (4.0, 4.0),
        (4, cellwise(domain, lambda x: 4 + 0 * x[0])),
    ):
        assert explicit_bound(V, kappa).C_h == pytest.approx(four.C_h, rel=1e-9)


def test_wider_bounds_of_kappa_give_a_larger_constant(comm: MPI.Comm) -> None:
    domain = square(comm, 5)
    known = explicit_bound(domain, cellwise(domain, jumping))
    wide = explicit_bound(domain, tuple(cellwise(domain, lambda x, s=s: s * jumping(x)) for s in (0.9, 1.1)))
    assert pytest.approx(known.C0 / np.sqrt(0.9)) == wide.C0
    assert wide.kappa_h > known.kappa_h


def test_triangles_have_a_smaller_poincare_constant(comm: MPI.Comm) -> None:
    """diam/j₁,₁ instead of diam/π."""
    usual, sharp = explicit_bound(square(comm, 5)), explicit_bound(square(comm, 5), sharpen=True)
    assert pytest.approx(3.8317059702 / np.pi) == usual.C0 / sharp.C0
    assert sharp.kappa_h == pytest.approx(usual.kappa_h, rel=1e-9)


# -- the algebra -------------------------------------------------------------------------------------------------


def responses(domain: mesh.Mesh, kappa: Any, dirichlet: Any) -> tuple[MixedResponse, Response]:
    """Of the mixed problem with κ⁻, and of P1 with κ⁺."""
    facets = dirichlet_facets(domain, dirichlet)
    lower, upper = kappa_bounds(fem.functionspace(domain, ("DG", 0)), kappa)
    return MixedResponse(domain, lower, facets), Response(fem.functionspace(domain, ("Lagrange", 1)), upper, facets)


@pytest.mark.parametrize("dirichlet", [None, left])
def test_flux_and_gradient_make_a_right_angle(comm: MPI.Comm, dirichlet: Any) -> None:
    """(p, ∇u_h) = ‖κ^{1/2}∇u_h‖², also with a natural boundary; the energies are those of the responses."""
    domain = square(comm, 5)
    mixed, galerkin = responses(domain, cellwise(domain, jumping), dirichlet)
    kappa = mixed.kappa
    f = cellwise(domain, lambda x: np.sin(7 * x[0]) - x[1])
    n = len(mixed.local)
    energies = [s.solve(f.x.array[:n]) @ f.x.array[:n] for s in (mixed, galerkin)]
    centre = fem.Function(fem.functionspace(domain, ("DG", 0, (2,))))
    centre.interpolate(lambda x: x[:2])
    p = mixed.flux() - f / 2 * (ufl.SpatialCoordinate(domain) - centre)
    u_h = galerkin.u
    grad = ufl.grad(u_h)
    forms = [ufl.inner(p, grad), kappa * ufl.inner(grad, grad), ufl.inner(p, p) / kappa, (ufl.div(p) + f) ** 2, f * u_h]
    numbers = [fem.assemble_scalar(fem.form(form * ufl.dx)) for form in forms]
    angle, square_u, square_p, divergence, load = sum_array(comm, np.array(numbers))
    energy_p, energy_u = sum_array(comm, np.array(energies))
    np.testing.assert_allclose([angle, load, energy_u], square_u, rtol=1e-11)
    np.testing.assert_allclose(energy_p, square_p, rtol=1e-11)
    assert divergence < 1e-20
    assert square_p > square_u
    for response in (mixed, galerkin):
        response.close()


def saddle_point(domain: mesh.Mesh, kappa: fem.Function, dirichlet: Any) -> np.ndarray:
    """‖κ^{−1/2}p‖² as a matrix on cell values, from RT₀ × P0 with no short cut.  One rank."""
    V, X = fem.functionspace(domain, ("RT", 1)), kappa.function_space
    p, q, w = ufl.TrialFunction(V), ufl.TestFunction(V), ufl.TestFunction(X)
    M, B = (fem.assemble_matrix(fem.form(a * ufl.dx)).to_dense() for a in (ufl.inner(p, q) / kappa, ufl.div(p) * w))
    natural = np.setdiff1d(dirichlet_facets(domain, None), dirichlet_facets(domain, dirichlet)).astype(np.int32)
    free = np.setdiff1d(np.arange(len(M)), fem.locate_dofs_topological(V, 1, natural))
    M, B = M[np.ix_(free, free)], B[:, free]
    area = np.diag(cell_volumes(X))
    # div p = −f with the least pᵀMp: p = M⁻¹Bᵀ(B M⁻¹Bᵀ)⁻¹(−|K| f)
    return area @ np.linalg.inv(B @ np.linalg.solve(M, B.T)) @ area


@pytest.mark.serial
@pytest.mark.parametrize("dirichlet", [None, left])
def test_the_eigenvalue_is_that_of_the_dense_saddle_point(dirichlet: Any) -> None:
    """Crouzeix–Raviart with Marini's correction is the RT₀ solution; SLEPc finds LAPACK's eigenvalue, and the count."""
    domain = square(MPI.COMM_SELF, 4)
    lower, upper = cellwise(domain, jumping), cellwise(domain, lambda x: 1.3 * jumping(x))
    mixed, galerkin = responses(domain, (lower, upper), dirichlet)
    volumes = cell_volumes(mixed.kappa.function_space)
    unit = np.eye(len(volumes))
    P = np.array([mixed.solve(f) for f in unit])
    np.testing.assert_allclose(P, saddle_point(domain, lower, dirichlet), rtol=0, atol=1e-12 * np.abs(P).max())
    root = np.sqrt(volumes)
    values = np.linalg.eigvalsh((P - np.array([galerkin.solve(f) for f in unit])) / root / root[:, None])
    assert values[0] > 0
    bound = explicit_bound(domain, (lower, upper), dirichlet, verify=True)
    assert bound.kappa_h**2 == pytest.approx(values[-1], rel=2e-8)
    assert bound.kappa_h**2 > values[-1]
    assert bound.verified
    for k in (1, 2, 7):
        middle = (values[-k] + values[-k - 1]) / 2
        assert count_above(mixed, galerkin, volumes, middle) == k
    for response in (mixed, galerkin):
        response.close()


def test_no_eigenvalue_is_missed(comm: MPI.Comm) -> None:
    """The count of eigenvalues above κ_h², in parallel too; it does see those below."""
    domain = square(comm, 6)
    bound = explicit_bound(domain, verify=True)
    assert bound.verified
    mixed, galerkin = responses(domain, 1.0, None)
    volumes = cell_volumes(mixed.kappa.function_space)
    assert count_above(mixed, galerkin, volumes, bound.kappa_h**2) == 0
    assert count_above(mixed, galerkin, volumes, 0.999 * bound.kappa_h**2) > 0
    assert count_above(mixed, galerkin, volumes, 0.0) == bound.cells
    for response in (mixed, galerkin):
        response.close()


def test_the_largest_eigenvalue_of_a_diagonal(comm: MPI.Comm) -> None:
    """1, …, n, spread over the ranks."""
    mine = np.arange(comm.rank, 50, comm.size) + 1.0
    pair = largest_eigenvalue(comm, lambda x: mine * x, np.ones(len(mine)), 1e-10)
    assert pair.value == pytest.approx(50.0, rel=1e-12)
    assert pair.residual <= 1e-10 * 50
    np.testing.assert_allclose(np.abs(pair.vector), mine == 50, atol=1e-8)


# -- loads -------------------------------------------------------------------------------------------------------


def holds(domain: mesh.Mesh, loads: int, bound: Any = None, **problem: Any) -> Sharpness:
    """No load of a few kinds has a true error above its bound; the worst one reaches a good part of it."""
    found = sharpness(domain, bound, loads=loads, **problem)
    assert found.violations == 0, str(found)
    for kind, low in found.energy.items():
        assert 0 < low <= found.energy_upper[kind] <= 1.0
        assert found.L2[kind] <= found.energy_upper[kind]  # ‖e‖ ≤ C_h ‖κ^{1/2}∇e‖
        assert low <= found.worst
    assert 0.3 < found.worst_on_cells <= found.worst * (1 + 1e-6)
    assert found.worst <= found.best <= 1.0
    return found


@pytest.mark.parametrize("dirichlet", [None, left])
def test_no_load_exceeds_the_bound(comm: MPI.Comm, dirichlet: Any) -> None:
    """Smooth, rough, discontinuous, and the worst one; u = 0 all round, or on one side only."""
    holds(square(comm, 4), 6, dirichlet=dirichlet, refinements=1)


def test_no_load_exceeds_the_bound_where_kappa_is_known_by_bounds_only(comm: MPI.Comm) -> None:
    """κ varies within cells; κ⁻ and κ⁺ are its extremes over each."""
    domain = square(comm, 4)

    def wavy(x: np.ndarray) -> np.ndarray:  # (n, d)
        return jumping(x.T) * (1.0 + 0.5 * np.sin(20 * x[:, 0]) * np.cos(15 * x[:, 1]))

    errors = TrueErrors(domain, wavy, refinements=1)  # κ at the midpoints of four parts of each cell
    points = hf.Points(domain, errors.x)
    X = fem.functionspace(domain, ("DG", 0))
    cells, values = points._cells, errors.kappa[points.index]
    bounds = []
    for extreme, start in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        local = np.full(len(X.dofmap.list), start)
        extreme.at(local, cells, values)
        k = fem.Function(X)
        k.x.array[X.dofmap.list[:, 0]] = local
        k.x.scatter_forward()
        bounds.append(k)
    errors.close()
    holds(domain, 6, explicit_bound(domain, tuple(bounds)), kappa=wavy, refinements=1)
    # With κ constant on cells nothing is lost: the bound is closer.
    holds(domain, 3, kappa=cellwise(domain, jumping), refinements=1)


@pytest.mark.parametrize("name", ["l_shape", "slit"])
def test_no_load_exceeds_the_bound_at_corners(comm: MPI.Comm, name: str) -> None:
    holds(domain_of(name, comm, 0.5), 6, refinements=1)


def test_no_load_exceeds_the_bound_on_tetrahedra(comm: MPI.Comm) -> None:
    holds(mesh.create_unit_cube(comm, 2, 2, 2), 3, refinements=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["square", "l_shape", "slit"])
def test_none_of_a_hundred_loads_exceeds_the_bound(comm: MPI.Comm, name: str) -> None:
    domain = square(comm, 8) if name == "square" else domain_of(name, comm, 0.25)
    found = holds(domain, 100)
    assert found.loads == 100
    assert found.worst > 0.55


def test_true_errors_lie_between_their_bounds(comm: MPI.Comm) -> None:
    """f = 1 on the square, whose energy is known: TORSION − (1, u_h)."""
    errors = TrueErrors(square(comm, 4), refinements=1)
    f = np.ones(len(errors.x))
    low, high = errors.energy(f)
    u_h = errors._galerkin.u
    energy = sum_array(comm, np.array([fem.assemble_scalar(fem.form(u_h * ufl.dx))]))[0]
    true = np.sqrt(TORSION - energy)
    assert low < true < high
    assert high - low < 0.1 * true
    assert errors.norm(f) == pytest.approx(1.0)
    # Twice the load, twice the error.
    np.testing.assert_allclose(errors.energy(2 * f), [2 * low, 2 * high], rtol=1e-9)
    assert errors.L2(2 * f) == pytest.approx(2 * errors.L2(f))
    errors.close()


def test_the_worst_load_has_the_error_it_claims(comm: MPI.Comm) -> None:
    errors = TrueErrors(square(comm, 4), refinements=1)
    f, error = errors.worst()
    assert errors.norm(f) == pytest.approx(1.0)
    assert errors.energy(f)[0] == pytest.approx(error, rel=1e-6)
    for _, other in random_loads(errors.x, 3, seed=5):
        assert errors.energy(other)[0] < error * errors.norm(other)
    errors.close()


def test_the_least_constant_is_enclosed_closer_by_finer_meshes(comm: MPI.Comm) -> None:
    """From below by loads, from above by the bound's own proof on a finer mesh; below C_h itself."""
    domain = square(comm, 3)
    enclosures = []
    for refinements in (1, 2):
        errors = TrueErrors(domain, refinements=refinements)
        enclosures.append(errors.best_constant())
        errors.close()
    (low_1, high_1), (low_2, high_2) = enclosures
    assert low_1 < low_2 < high_2 < high_1 < explicit_bound(domain).C_h
    assert high_2 < 1.06 * low_2


# -- parallel ----------------------------------------------------------------------------------------------------


def test_bounds_do_not_depend_on_the_number_of_ranks() -> None:
    def build(comm: MPI.Comm) -> dict[str, Any]:
        domain = square(comm, 6)
        kappa = cellwise(domain, jumping)
        pair = explicit_bound(domain, (kappa, 12.0), left)
        found = sharpness(domain, kappa=kappa, dirichlet=left, loads=3, refinements=1)
        return {
            "bound": [found.bound.C0, found.bound.kappa_h, found.bound.h, found.bound.cells],
            "pair": [pair.C0, pair.kappa_h],
            "loads": [v for part in (found.energy, found.energy_upper, found.L2) for v in part.values()],
            "worst": [found.worst, found.worst_on_cells, found.best],
        }

    result = hf.rank_invariance(build, tolerance=1e-10)
    assert result.ok, result.differences


def test_two_cells_are_enough_for_any_number_of_ranks(comm: MPI.Comm) -> None:
    """No inner vertex, so u_h = 0; some ranks own nothing."""
    bound = explicit_bound(square(comm, 1))
    assert pytest.approx(np.sqrt(2) / np.pi) == bound.C0
    assert 0.2 < bound.kappa_h < 0.5


# -- tables and meshes -------------------------------------------------------------------------------------------


def test_tables_have_a_line_for_each_mesh(comm: MPI.Comm) -> None:
    table = bound_table({"square": [square(comm, n) for n in (2, 4)], "other": [square(comm, 3)]}).splitlines()
    assert len(table) == 4
    assert table[0].split() == ["cells", "h=diam", "C0", "kappa_h", "C_h", "C_h/h", "rate"]
    assert [line.split()[0] for line in table[1:]] == ["square", "32", "other"]
    assert float(table[2].split()[-1]) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("suffix", ["geo", "msh"])
def test_the_slit_is_one(comm: MPI.Comm, suffix: str) -> None:
    """Two dofs where one place is on both sides, and one at the tip; both sides are boundary."""
    path = MESHES / f"slit.{suffix}"
    read = hf.read_mesh(path, comm, **({"mesh_size": 0.2} if suffix == "geo" else {}))
    V = fem.functionspace(read.mesh, ("Lagrange", 1))
    n = V.dofmap.index_map.size_local
    x = np.concatenate(comm.allgather(V.tabulate_dof_coordinates()[:n]))
    on = x[(np.abs(x[:, 1]) < 1e-12) & (x[:, 0] > -1e-12)]
    places, copies = np.unique(np.round(on[:, 0], 9), return_counts=True)
    assert places[0] == 0.0
    assert copies.tolist() == [1, *[2] * (len(places) - 1)]
    n_facets = read.mesh.topology.index_map(1).size_local
    facets = [f[f < n_facets] for f in (read.facets("slit"), dirichlet_facets(read.mesh, None), read.facets("outer"))]
    sides, every, outer = (comm.allreduce(len(f)) for f in facets)
    assert sides == 2 * (len(places) - 1)
    assert every == sides + outer


def test_the_l_shape_is_one(comm: MPI.Comm) -> None:
    read = hf.read_mesh(MESHES / "l_shape.msh", comm)
    area = fem.assemble_scalar(fem.form(fem.Constant(read.mesh, 1.0) * ufl.dx))
    assert comm.allreduce(area) == pytest.approx(3.0)
    assert hf.mesh_size(read.mesh) == pytest.approx(0.08, rel=0.3)


# -- bad input ---------------------------------------------------------------------------------------------------


def test_what_the_proof_does_not_cover_is_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    with pytest.raises(ValueError, match="quadrilateral cells"):
        explicit_bound(distorted_quadrilaterals(comm))
    with pytest.raises(ValueError, match="interval cells"):
        explicit_bound(mesh.create_unit_interval(comm, 8))
    with pytest.raises(ValueError, match=r"pass the mesh or its \('Lagrange', 1\) space"):
        explicit_bound(fem.functionspace(domain, ("Lagrange", 2)))
    with pytest.raises(TypeError, match="a mesh or its P1 space, not str"):
        explicit_bound("domain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="triangles only"):
        explicit_bound(mesh.create_unit_cube(comm, 2, 2, 2), sharpen=True)
    with pytest.raises(ValueError, match="tolerance"):
        explicit_bound(domain, tolerance=0.0)


def test_impossible_coefficients_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    for kappa in (0.0, -1.0, np.nan, cellwise(domain, lambda x: x[0] - 0.9)):
        with pytest.raises(ValueError, match="kappa must be positive"):
            explicit_bound(domain, kappa)
    with pytest.raises(ValueError, match="cross"):
        explicit_bound(domain, (2.0, cellwise(domain, lambda x: 1 + 2 * (x[0] < 0.5))))
    with pytest.raises(ValueError, match="a pair of bounds"):
        explicit_bound(domain, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"\('DG', 0\) space of the same mesh"):
        explicit_bound(domain, fem.Function(fem.functionspace(domain, ("Lagrange", 1))))
    with pytest.raises(ValueError, match=r"\('DG', 0\) space of the same mesh"):
        explicit_bound(domain, cellwise(square(comm, 3), lambda x: 1 + x[0]))
    with pytest.raises(TypeError, match="kappa must be a number"):
        explicit_bound(domain, "large")
    with pytest.raises(ValueError, match="one value at each"):
        TrueErrors(domain, lambda x: x[:, 0] - 0.5, refinements=1)
    with pytest.raises(TypeError, match="not a pair"):
        TrueErrors(domain, (1.0, 2.0), refinements=1)  # type: ignore[arg-type]


def test_impossible_boundaries_are_refused(comm: MPI.Comm) -> None:
    domain = square(comm, 3)
    with pytest.raises(ValueError, match="dirichlet is empty"):
        explicit_bound(domain, dirichlet=np.empty(0, dtype=np.int32))
    with pytest.raises(ValueError, match="dirichlet is empty"):
        explicit_bound(domain, dirichlet=lambda x: x[0] > 2)
    domain.topology.create_connectivity(1, 2)
    every = np.arange(domain.topology.index_map(1).size_local, dtype=np.int32)
    with pytest.raises(ValueError, match="facets inside the domain"):
        explicit_bound(domain, dirichlet=every)
    with pytest.raises(ValueError, match="not all on this rank"):
        explicit_bound(domain, dirichlet=np.array([10**6] if comm.rank == 0 else [], dtype=np.int64))
    with pytest.raises(ValueError, match="whole numbers"):
        explicit_bound(domain, dirichlet=np.array([0.5]))
    with pytest.raises(TypeError, match="a function of x"):
        TrueErrors(domain, dirichlet=every)  # type: ignore[arg-type]


def test_facets_may_include_ghosts_or_not(comm: MPI.Comm) -> None:
    domain = square(comm, 4)
    facets = mesh.locate_entities_boundary(domain, 1, left)
    owned = facets[facets < domain.topology.index_map(1).size_local]
    expected = explicit_bound(domain, dirichlet=left).C_h
    for given in (facets, owned):
        assert explicit_bound(domain, dirichlet=given).C_h == pytest.approx(expected, rel=1e-10)
    # A side without u = 0 makes more room for errors.
    assert expected > explicit_bound(domain).C_h


def part(domain: mesh.Mesh, inside: Callable) -> mesh.Mesh:
    """The cells of which all vertices are inside."""
    return mesh.create_submesh(domain, 2, mesh.locate_entities(domain, 2, inside))[0]


def test_every_part_of_the_domain_touches_the_boundary(comm: MPI.Comm) -> None:
    """A part of a mesh is a mesh: the L-shape out of a square; two columns without a connection need u = 0 on both."""
    l_shape = part(square(comm, 6), lambda x: np.minimum(x[0], x[1]) < 0.51)
    whole = explicit_bound(l_shape, verify=True)
    assert whole.cells == 54
    assert whole.kappa_h > explicit_bound(square(comm, 6)).kappa_h
    two = part(square(comm, 6), lambda x: np.abs(x[0] - 0.5) > 0.16)
    assert explicit_bound(two).cells == 48
    with pytest.raises(hf.SolveError, match="every part of the domain has to touch"):
        explicit_bound(two, dirichlet=left)


def test_impossible_loads_are_refused(comm: MPI.Comm) -> None:
    errors = TrueErrors(square(comm, 2), refinements=1)
    with pytest.raises(ValueError, match="a finite value in each of the 32 cells"):
        errors.energy(np.ones(3))
    with pytest.raises(ValueError, match="a finite value"):
        errors.L2(np.full(32, np.nan))
    errors.close()


# -- scripts -----------------------------------------------------------------------------------------------------


def run(script: str, ranks: int, *options: object) -> str:
    """What a script of the repository prints on rank 0."""
    command = [sys.executable, "-m", "mpi4py", str(MESHES.parent / script), *map(str, options)]
    if ranks > 1:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(MESHES.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.serial
def test_the_demo_tells_the_same_on_any_number_of_ranks(folder: Path) -> None:
    found = []
    for ranks in (1, 2):
        out = folder / str(ranks)
        assert "the least constant that holds" in run("demos/error_bound.py", ranks, "--cells", 8, "--out", out)
        assert (out / "error_bound.png").stat().st_size > 20000
        found.append(json.loads((out / "summary.json").read_text()))
    for name, rows in found[0]["errors"].items():
        for row, other in zip(rows, found[1]["errors"][name], strict=True):
            for load, numbers in row.items():
                assert numbers == pytest.approx(other[load], rel=1e-6)
                assert 0 < numbers["L2_ratio"] < numbers["energy_ratio"] < 1
                assert numbers["energy_ratio"] <= row["worst"]["energy_ratio"] * (1 + 1e-3)
    # O(h) on the square; at the re-entrant corner the rates of the constant fall below one.
    square_C, l_shape_C = ([b["C_h"] for b in found[0]["constants"][name]] for name in ("square", "L-shape"))
    assert square_C[-2] / square_C[-1] > 1.9 > 1.8 > l_shape_C[-2] / l_shape_C[-1]


@pytest.mark.slow
@pytest.mark.serial
def test_the_benchmark_prints_one_line() -> None:
    lines = run("benchmarks/explicit_bound.py", 2, "--cells", 8).splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert (found["cells"], found["ranks"], found["verified"]) == (128, 2, False)
    assert found["C_h_over_h"] == pytest.approx(0.642 / np.sqrt(2), abs=1e-3)
    assert found["seconds"] > 0
