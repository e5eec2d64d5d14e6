"""Tables of errors know their rates, and reference solutions how good they are."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest
import ufl
from cases import square
from dolfinx import mesh

import hyco_fem as hf
from hyco_fem.accuracy.convergence import ConvergenceTable, reference_solution, refined

MESHES = Path(__file__).parents[1] / "meshes"


def made() -> ConvergenceTable:
    """3 h² and 5 h."""
    table = ConvergenceTable("h", ["L2", "H1"])
    for h in (0.4, 0.2, 0.05):
        table.add(h, 3 * h**2, 5 * h)
    return table


def test_rates_are_slopes_in_log_log_scale() -> None:
    table = made()
    np.testing.assert_allclose(table.rates("L2")[1:], 2.0)
    assert np.isnan(table.rates("L2")[0])
    assert table.rate("H1") == pytest.approx(1.0)
    assert table.rate("L2", last=2) == pytest.approx(2.0)
    assert len(table) == 3
    lines = str(table).splitlines()
    assert lines[0].split() == ["h", "L2", "rate", "H1", "rate"]
    assert lines[1].split() == ["0.4", "4.8000e-01", "2.0000e+00"]
    assert lines[3].split() == ["0.05", "7.5000e-03", "2.00", "2.5000e-01", "1.00"]


def test_a_table_is_written_as_csv(comm: MPI.Comm, folder: Path) -> None:
    made().save(folder / "sub" / "errors.csv", comm)
    found = np.genfromtxt(folder / "sub" / "errors.csv", delimiter=",", names=True)
    np.testing.assert_allclose(found["H1"], made().column("H1"))
    assert found.dtype.names == ("h", "L2", "H1")


def test_rows_that_do_not_fit_are_refused() -> None:
    table = made()
    with pytest.raises(ValueError, match=r"2 errors \(L2, H1\), not 1"):
        table.add(0.01, 1.0)
    with pytest.raises(ValueError, match="another than in the last row"):
        table.add(0.05, 1.0, 1.0)
    with pytest.raises(ValueError, match="positive"):
        table.add(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no column 'max'"):
        table.column("max")
    table.add(0.01, 0.0, 1.0)
    assert np.isnan(table.rates("L2")[-1])
    with pytest.raises(ValueError, match="positive errors"):
        table.rate("L2")


@pytest.mark.parametrize(
    ("domain", "factor"),
    [
        (lambda comm: mesh.create_unit_interval(comm, 5), 2),
        (lambda comm: square(comm, 3), 4),
        (lambda comm: mesh.create_unit_cube(comm, 2, 2, 2), 8),
    ],
)
def test_refined_meshes_are_nested(comm: MPI.Comm, domain: object, factor: int) -> None:
    """Half the size, 2^d times the cells; a P1 function is one of the refined space too."""
    coarse = domain(comm)  # type: ignore[operator]
    fine = refined(coarse)
    d = coarse.topology.dim
    assert fine.topology.index_map(d).size_global == factor * coarse.topology.index_map(d).size_global
    problem = hf.catalogue.poisson(coarse)
    hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
    errors = hf.error_norms(problem.u, problem.u, fine)
    assert errors.L2 == errors.H1 == 0.0


def test_quadrilaterals_are_not_refined(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="only simplices"):
        refined(square(comm, 2, mesh.CellType.quadrilateral))


def test_a_reference_knows_how_good_it_is(comm: MPI.Comm) -> None:
    """−Δu = 2π² sin πx sin πy with P2: the estimate, divided by √(4² − 1) in H¹, is the true error within 3 %."""

    def build(domain: mesh.Mesh) -> object:
        x = ufl.SpatialCoordinate(domain)
        return hf.catalogue.poisson(domain, degree=2, f=2 * ufl.pi**2 * ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1]))

    coarse = square(comm, 4)
    reference = reference_solution(build, coarse, refinements=2)  # type: ignore[arg-type]
    x = ufl.SpatialCoordinate(reference.u.function_space.mesh)
    true = hf.error_norms(reference.u, ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1]))
    np.testing.assert_allclose(true.H1, reference.estimate.H1 / np.sqrt(15), rtol=0.03)
    assert true.L2 < reference.estimate.L2
    # P1 on the coarse mesh, against it: far above its own error.
    problem = hf.catalogue.poisson(coarse, f=2 * ufl.pi**2 * _wave(coarse))
    hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
    found, exact = hf.error_norms(problem.u, reference.u), hf.error_norms(problem.u, _wave(coarse), degree=12)
    np.testing.assert_allclose([found.H1, found.L2], [exact.H1, exact.L2], rtol=2e-3)


def test_p1_has_the_rates_of_the_theory_on_the_square(comm: MPI.Comm) -> None:
    """One in H¹, two in L², and each error below the bound that was there before it."""
    table = ConvergenceTable("h", ["H1", "L2"])
    for n in (8, 16, 32, 64):
        domain = square(comm, n)
        problem = hf.catalogue.poisson(domain, f=2 * ufl.pi**2 * _wave(domain))
        hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
        errors = hf.error_norms(problem.u, _wave(domain), degree=8)
        table.add(hf.mesh_size(domain), errors.H1, errors.L2)
        if n < 32:
            assert hf.explicit_bound(domain).energy(np.pi**2) >= errors.H1  # ‖f‖ = 2π²/2
            assert hf.explicit_bound(domain).L2(np.pi**2) >= errors.L2
    assert table.rate("H1") == pytest.approx(1.0, abs=0.05)
    assert table.rate("L2") == pytest.approx(2.0, abs=0.1)


def test_p1_loses_a_third_at_a_corner(comm: MPI.Comm) -> None:
    """u = r^{2/3} sin(2θ/3) on the L-shape, which is in H^{5/3} only: 2/3 in H¹ and, by duality, 4/3 in L²."""
    table = ConvergenceTable("h", ["H1", "L2"])
    domain = hf.read_mesh(MESHES / "l_shape.geo", comm, mesh_size=0.35).mesh
    for _ in range(4):
        x = ufl.SpatialCoordinate(domain)
        # The angle from the positive x-axis, 0 … 3π/2, with its cut along the diagonal of the missing quadrant.
        angle = ufl.atan2(-x[0] - x[1], x[1] - x[0]) + 3 * ufl.pi / 4
        u = (ufl.dot(x, x) + 1e-30) ** (1 / 3) * ufl.sin(2 / 3 * angle)
        problem = hf.catalogue.poisson(domain, f=0.0, conditions=[hf.Dirichlet(u)])
        hf.SteadySolver(problem.F, problem.u, problem.bcs).forward([])
        errors = hf.error_norms(problem.u, u, degree=12)
        table.add(hf.mesh_size(domain), errors.H1, errors.L2)
        domain = refined(domain)
    assert table.rate("H1") == pytest.approx(2 / 3, abs=0.05)
    assert table.rate("L2") == pytest.approx(4 / 3, abs=0.1)


def _wave(domain: mesh.Mesh) -> ufl.core.expr.Expr:
    x = ufl.SpatialCoordinate(domain)
    return ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])


def test_a_reference_needs_a_refinement(comm: MPI.Comm) -> None:
    with pytest.raises(ValueError, match="at least one refinement"):
        reference_solution(hf.catalogue.poisson, square(comm, 2), refinements=0)
