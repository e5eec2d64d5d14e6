"""Symmetric positive definite matrices of a space, and the Riesz map between gradients and fields.

The gradient of a number by the dof values of a field is a *dual* vector: entry i is the derivative along basis function
φ_i, and its size depends on the mesh.  Its Riesz representative v in an inner product,

    (v, w) = g(w)   for all w of the space,

is a field, and does not.  Steps along representatives need as many iterations on fine meshes as on coarse ones.
Everything is distributed: arrays hold the owned dofs of this rank, and every method is collective.
"""

from __future__ import annotations

import math

import numpy as np
import ufl
from dolfinx import fem
from dolfinx.fem import petsc as fem_petsc

from hyco_fem.pde.choice import Traits, check_memory, default_options
from hyco_fem.pde.linear import LinearSolver, Options

# Other ranks wait for rank 0's compiler; the default of ten seconds is too short on a loaded node.
_JIT = {"timeout": 600}


def compiled(form: ufl.Form) -> fem.Form:
    """A DOLFINx form.  Collective."""
    return fem.form(form, jit_options=dict(_JIT))


def measure(Q: fem.FunctionSpace) -> float:
    """Length, area or volume of the mesh of Q.  Collective."""
    one = fem.Constant(Q.mesh, 1.0)
    return float(Q.mesh.comm.allreduce(fem.assemble_scalar(compiled(one * ufl.dx(Q.mesh)))))


class SymmetricMatrix:
    """The matrix of a symmetric positive definite form on Q, assembled in place, factorised when first solved with.

    Args:
        form: Bilinear in a test and a trial function of Q.
        Q: Its space.
        what: A name for error messages.
        petsc_options: Options of the solver; by default chosen by size.
    """

    def __init__(self, form: ufl.Form, Q: fem.FunctionSpace, what: str, petsc_options: Options | None = None) -> None:
        self._form = compiled(form)
        self.matrix = fem_petsc.create_matrix(self._form)
        comm = Q.mesh.comm
        traits = Traits(self.matrix.getSize()[0], comm.size, Q.mesh.topology.dim, symmetric=True, positive=True)
        options = dict(petsc_options or default_options(traits))
        check_memory(comm, options, traits, what)
        self._solver = LinearSolver(self.matrix, options, symmetric=True, what=what)
        self._x, self._y = self.matrix.createVecs()
        self._stale = True
        self.assemble()

    def assemble(self) -> None:
        """Take the values that the Functions and Constants of the form hold now."""
        self.matrix.zeroEntries()
        fem_petsc.assemble_matrix(self.matrix, self._form)
        self.matrix.assemble()
        self._stale = True

    def times(self, x: np.ndarray) -> np.ndarray:
        """A x, a new array."""
        self._x.array[:] = x
        self.matrix.mult(self._x, self._y)
        return self._y.array_r.copy()

    def solve(self, b: np.ndarray) -> np.ndarray:
        """A⁻¹ b, a new array.  Raises SolveError."""
        if self._stale:
            self._solver.factorise()
            self._stale = False
        self._x.array[:] = b
        self._y.set(0.0)
        self._solver.solve(self._x, self._y)
        return self._y.array_r.copy()

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        self._x.destroy()
        self._y.destroy()
        self._solver.close()


class RieszMap:
    """The Riesz map of the inner product (v, w) = ∫ v·w + ℓ² ∫ ∇v·∇w of a space.

    Args:
        Q: A scalar or vector space; continuous, unless ℓ = 0.
        length: ℓ ≥ 0, in the length unit of the mesh; zero gives the inner product of L².

    Raises:
        ValueError: ℓ is negative, or not zero on a discontinuous space.

    Construction and every method are collective; arrays are owned dofs, (n_owned,).
    """

    def __init__(self, Q: fem.FunctionSpace, length: float) -> None:
        if not (math.isfinite(length) and length >= 0):
            raise ValueError(f"the length of a Riesz map must be finite and not negative, not {length}")
        if length > 0:
            check_continuous(Q, "the inner product of H¹", "take length=0 (L²)")
        self.Q, self.length = Q, float(length)
        v, w = ufl.TestFunction(Q), ufl.TrialFunction(Q)
        form = ufl.inner(v, w) * ufl.dx
        if length > 0:
            form += fem.Constant(Q.mesh, float(length) ** 2) * ufl.inner(ufl.grad(v), ufl.grad(w)) * ufl.dx
        self._matrix = SymmetricMatrix(form, Q, "the Riesz map")

    def representative(self, gradient: np.ndarray) -> np.ndarray:
        """The field v with (v, w) = g(w) for all w."""
        return self._matrix.solve(gradient)

    def dual(self, field: np.ndarray) -> np.ndarray:
        """The inverse: g = (v, ·)."""
        return self._matrix.times(field)

    def norm(self, gradient: np.ndarray) -> float:
        """The dual norm of g, which is the norm of its representative."""
        return math.sqrt(max(dot(self.Q, gradient, self.representative(gradient)), 0.0))

    def close(self) -> None:
        """Destroy the PETSc objects now, on all ranks together."""
        self._matrix.close()


def check_continuous(Q: fem.FunctionSpace, what: str, remedy: str) -> None:
    """Raise ValueError where the functions of Q jump between cells.  Local."""
    if Q.element.basix_element.discontinuous:
        raise ValueError(f"{what} needs a continuous space, not a discontinuous one; {remedy}")


def dot(Q: fem.FunctionSpace, x: np.ndarray, y: np.ndarray) -> float:
    """Σ x_i y_i over the dofs of all ranks.  Collective."""
    return float(Q.mesh.comm.allreduce(float(x @ y)))
