"""What cases share: errors, counts, and the networks' settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mpi4py import MPI

import numpy as np
import torch

import hyco_fem as hf

Method = Callable[[int, MPI.Comm], dict[str, float]]

# A network's best response: damped Gauss–Newton, smooth at first.
NETWORK = hf.GaussNewton(steps=60, tolerance=1e-5, damping=0.03, anneal=(10.0, 3.0))
# What cross-validation tries for a network alone, largest first, in units of the misfit scaled by σ².
DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


class Case(Protocol):
    """Methods by name, each a function of a seed and a communicator that returns metrics and `solves`."""

    methods: dict[str, Method]
    metrics: dict[str, str]
    good_means: str

    def good(self, row: dict[str, Any]) -> bool:
        """Whether a seed counts as a success."""


def network(mesh: Any, seed: int, width: int = 24) -> torch.nn.Module:
    """tanh, d–width–width–1, the mesh's box mapped to [−1, 1]^d."""
    net = hf.MLP(mesh.geometry.dim, 1, width=width, depth=2, activation="tanh", seed=seed)
    return hf.InputScaling(net, hf.bounding_box(mesh))


def network_only(net: torch.nn.Module, data: hf.Data, decays: tuple[float, ...] = DECAYS) -> torch.nn.Module:
    """Fitted to the data alone, its weight decay chosen by five-fold cross-validation."""
    answer = hf.GaussNewton(steps=40, tolerance=1e-4, damping=0.03)
    choice = hf.choose_decay(net, data, decays, answer)
    for decay in decays:  # the path by which the choice was made
        hf.NetworkOnly(net, data, answer, decay=decay).run(1)
        if decay == choice.weights.decay:
            break
    return net


def solves(*models: hf.PhysicalModel) -> float:
    """PDE solves so far: forward, tangent and adjoint."""
    return float(sum(sum(m.solver.counts.values()) for m in models))


def relative(error: np.ndarray, size: np.ndarray) -> float:
    """|error| / |size|."""
    return float(np.linalg.norm(error) / np.linalg.norm(size))
