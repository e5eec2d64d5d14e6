"""What does a gradient cost, and a Jacobian, in units of the value?

Poisson with a conductivity of three Gaussian bumps (ten parameters: background, amplitudes, centres) on P1 triangles,
misfit at fifty sensors.  The value is all of it: coefficients, assembly, forward solve, misfit.  Through PhysicalModel,

    direct     (value + gradient) / value, with the solver that is the default at these sizes: it factorises
    amg        the same with conjugate gradients and algebraic multigrid, where the adjoint solve iterates as well
    jacobian   PhysicalModel.jacobian, which includes the solve, / value; direct

Shortest processor times, in turn, with other parameters each time.  The gradient is checked against the Jacobian.

    python3 benchmarks/gradient_cost.py      {"direct_4k": …, "amg_4k": …, "jacobian_4k": …, …, "solver_4k": …}
"""

import argparse
import json
from typing import Any

from mpi4py import MPI

import numpy as np
import torch
from poisson import AMG, Poisson, label, shortest

TRAINABLE = ("background", "amplitudes", "centres")


def ratios(cells: int, seconds: float) -> dict[str, Any]:
    """The ratios at one size."""
    direct = Poisson(MPI.COMM_SELF, cells, 3, TRAINABLE)
    amg = Poisson(MPI.COMM_SELF, cells, 3, TRAINABLE, AMG)
    points, data = direct.data.points, direct.data
    # The first calls set up what later ones find; they are not timed, but checked.
    J = direct.model.jacobian(points)
    expected = 2.0 / data.n * (J.values - data.values.numpy()) @ J.matrix
    names = [f"coefficients.kappa.{name}" for name, _ in direct.bumps.named_parameters()]
    expected = np.concatenate([expected[J.columns[name]] for name in names])
    for problem in (direct, amg):
        np.testing.assert_allclose(problem.value_and_gradient(), expected, rtol=1e-6, atol=1e-8 * abs(expected).max())
        problem.value()
    time = shortest(
        {
            "value": direct.value,
            "direct": direct.value_and_gradient,
            "jacobian": lambda: direct.model.jacobian(points),
            "amg_value": amg.value,
            "amg": amg.value_and_gradient,
        },
        seconds,
        before=lambda k: (direct.move(k), amg.move(k)),
    )
    size = label(direct.dofs)
    return {
        f"direct_{size}": round(time["direct"] / time["value"], 3),
        f"amg_{size}": round(time["amg"] / time["amg_value"], 3),
        f"jacobian_{size}": round(time["jacobian"] / time["value"], 3),
        f"value_ms_{size}": round(1e3 * time["value"], 2),
        f"amg_value_ms_{size}": round(1e3 * time["amg_value"], 2),
        f"solver_{size}": direct.model.description,
        f"solver_amg_{size}": amg.model.description,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[63, 256, 512], help="squares along a side")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for cells in options.cells:
        report |= ratios(cells, options.seconds)
    print(json.dumps(report, ensure_ascii=False))
