"""How much can 50 noisy values tell about case 2?  The linearised posterior: a yardstick for compare.py --case darcy.

With a Gaussian prior of standard deviation s for each of the ten unknowns and noise 0.2 max u, the posterior linearised
at the truth has covariance Γ = (JᵀJ + s⁻²)⁻¹, J in units of the noise.  Expected relative errors: √tr Γ / |θ| and
√(mean of the variance of u) / (root mean square of u), medians over the sensors of 20 seeds.

    python3 benchmarks/darcy_information.py    {"prior_std": …, "theta": …, "u": …}
"""

from __future__ import annotations

import json

from mpi4py import MPI

import numpy as np
import torch
from comparisons.darcy import PI, START, TRUTH, model, reference

import hyco_fem as hf

NOISE = 0.2


def main() -> None:
    """The prior of the true size: the root mean square of truth − start."""
    std = float(np.sqrt(np.mean((TRUTH - START) ** 2)))
    _, x, values, largest = reference()
    physical = model(MPI.COMM_SELF, TRUTH, 28)
    with torch.no_grad():
        physical.solve()
    everywhere = physical.jacobian(hf.Points(physical.V.mesh, x[::7])).matrix
    rows = []
    for seed in range(20):
        sensors = np.random.default_rng(seed).uniform(-PI, PI, (50, 2))
        J = physical.jacobian(hf.Points(physical.V.mesh, sensors)).matrix / (NOISE * largest)
        posterior = np.linalg.inv(J.T @ J + np.eye(len(TRUTH)) / std**2)
        variance = np.einsum("ij,jk,ik->i", everywhere, posterior, everywhere).mean()
        rows.append([np.sqrt(np.trace(posterior)) / np.linalg.norm(TRUTH), np.sqrt(variance / np.mean(values**2))])
    theta, u = np.median(rows, axis=0)
    print(json.dumps({"prior_std": round(std, 3), "theta": round(float(theta), 3), "u": round(float(u), 3)}))


if __name__ == "__main__":
    main()
