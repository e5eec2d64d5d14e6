"""What _compat gives is the same in each release of DOLFINx."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from cases import square
from dolfinx import fem

from hyco_fem import _compat

X = np.array([[0.2, 0.3], [0.5, 0.1]])


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (lambda x, c: ufl.grad(2 * x[0]), [2.0, 0.0]),
        (lambda x, c: ufl.grad(x), [[1.0, 0.0], [0.0, 1.0]]),
        (lambda x, c: ufl.grad(c), [0.0, 0.0]),
        (lambda x, c: 0 * c, 0.0),
        (lambda x, c: ufl.as_ufl(3), 3.0),
        (lambda x, c: c, 5.0),
    ],
)
def test_an_expression_that_is_the_same_everywhere_has_its_value_at_every_point(
    comm: MPI.Comm, formula: Any, expected: Any
) -> None:
    mesh = square(comm, 3)
    value = formula(ufl.SpatialCoordinate(mesh), fem.Constant(mesh, 5.0))
    cells = np.arange(mesh.topology.index_map(2).size_local, dtype=np.int32)
    found = np.asarray(_compat.expression(value, X, mesh).eval(mesh, cells))
    assert np.array_equal(found.ravel(), np.tile(np.ravel(expected), len(cells) * len(X)))


def test_a_constant_gradient_is_interpolated(comm: MPI.Comm) -> None:
    mesh = square(comm, 3)
    V = fem.functionspace(mesh, ("DG", 0, (2,)))
    f, gradient = fem.Function(V), ufl.grad(2 * ufl.SpatialCoordinate(mesh)[0])
    f.interpolate(_compat.expression(gradient, _compat.interpolation_points(V), mesh))
    assert np.array_equal(f.x.array, np.tile([2.0, 0.0], len(f.x.array) // 2))


def test_a_collapsed_space_says_which_dofs_of_the_whole_its_own_are(comm: MPI.Comm) -> None:
    """The points of the dofs agree, ghosts included."""
    mesh = square(comm, 4)
    vector, scalar = (basix.ufl.element("Lagrange", "triangle", 1, shape=shape) for shape in ((2,), ()))
    W = fem.functionspace(mesh, basix.ufl.mixed_element([vector, scalar]))
    whole = fem.Function(W)
    for i, f in enumerate([lambda x: x[:2] + 1, lambda x: x[0] - x[1] + 5]):
        whole.sub(i).interpolate(f)
        V, dofs = _compat.collapsed(W.sub(i))
        part = fem.Function(V)
        part.interpolate(f)
        assert dofs.shape == part.x.array.shape
        np.testing.assert_allclose(whole.x.array[dofs], part.x.array, rtol=1e-14)


@pytest.mark.serial
def test_warnings_are_seen() -> None:
    """Importing FFCx gives them to a logger without a listener."""
    code = "import hyco_fem, warnings; warnings.warn('look here')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "look here" in run.stderr
