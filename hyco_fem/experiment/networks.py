"""The synthetic model of an experiment.  Everything here is collective."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyco_fem import _compat
from hyco_fem._compat import MeshAndTags
from hyco_fem.experiment import models, pde
from hyco_fem.experiment.meshes import facets_of
from hyco_fem.experiment.physical import AnyModel, observed_space
from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import ConfigurationError, section
from hyco_fem.models.distance import mesh_distance
from hyco_fem.models.synthetic import (
    MLP,
    FourierFeatures,
    HardBoundary,
    InputScaling,
    ResNet,
    ShallowNet,
    bounding_box,
)
from hyco_fem.models.transient import TransientModel
from hyco_fem.pde.problem import Facets


def components(physical: AnyModel) -> int:
    """Numbers at a point of what is compared with data."""
    return int(np.prod(_compat.value_shape(observed_space(physical)), dtype=int))


def build_network(experiment: Experiment, mesh: MeshAndTags, physical: AnyModel) -> nn.Module:
    """The synthetic model of x, in time of (x, t); inputs are scaled to [−1, 1] each.  Collective."""
    spec, outputs = experiment.network, components(physical)
    box = bounding_box(physical.domain if isinstance(physical, TransientModel) else mesh.mesh)
    d = box.shape[1]
    options: dict[str, Any] = {k: v for k, v in vars(spec).items() if k not in ("type", "hard_boundary")}
    network: nn.Module
    if isinstance(spec, models.ShallowTable):
        if outputs > 1:
            raise ConfigurationError(f"network.type: 'shallow' has one output, the model has {outputs} components")
        network = ShallowNet(d, **options)
    elif isinstance(spec, models.FourierTable):
        features = {name: options.pop(name) for name in ("features", "scale")}
        network = FourierFeatures(d, MLP(2 * spec.features, outputs, **options), **features, seed=spec.seed)
    else:
        network = (MLP if isinstance(spec, models.MLPTable) else ResNet)(d, outputs, **options)
    network = InputScaling(network, box)
    return _hard(experiment, network, mesh, outputs) if spec.hard_boundary else network


def _hard(experiment: Experiment, network: nn.Module, mesh: MeshAndTags, outputs: int) -> HardBoundary:
    """The network with the Dirichlet values of the conditions, in time for all times."""
    key, spec, time = "network.hard_boundary", experiment.problem, experiment.time
    if spec.name is None or outputs > 1:
        raise ConfigurationError(f"{key}: is for problems of the catalogue with one unknown")
    by_value: dict[float, list[Facets]] = {}
    if spec.conditions is None:
        if spec.parameters["conditions"].default:  # u = 0 on the whole boundary
            by_value[0.0] = [None]
    else:
        for i, c in enumerate(spec.conditions):
            if isinstance(c, pde.Dirichlet):
                if isinstance(c.value, str):
                    raise ConfigurationError(f"{key}: the value '{c.value}' of problem.conditions[{i}] is unknown")
                facets = facets_of(c.facets, mesh, f"problem.conditions[{i}].facets")
                by_value.setdefault(float(np.array(c.value).squeeze()), []).append(facets)
    if not by_value:
        raise ConfigurationError(f"{key}: the problem has no Dirichlet condition")
    with section(key):
        interval = None if time is None else (time.start, time.end)
        parts = {value: _joined(facets) for value, facets in by_value.items()}
        if len(parts) == 1:
            ((value, facets),) = parts.items()
            return HardBoundary(network, mesh_distance(mesh.mesh, facets), value, interval=interval)
        if any(facets is None for facets in parts.values()):
            raise ValueError("one of several Dirichlet conditions is on the whole boundary; name its groups of facets")
        whole = mesh_distance(mesh.mesh, np.unique(np.concatenate([f for f in parts.values() if f is not None])))
        distances = [mesh_distance(mesh.mesh, f) for f in parts.values()]
        return HardBoundary(network, whole, Blend(distances, list(parts), bounding_box(mesh.mesh)), interval=interval)


def _joined(facets: list[Facets]) -> np.ndarray | None:
    arrays = [np.asarray(f) for f in facets if f is not None]
    return None if len(arrays) < len(facets) else np.unique(np.concatenate(arrays))


class Blend(nn.Module):
    """g(x) = Σ_i g_i / ℓ_i(x) / Σ_i 1 / ℓ_i(x): the value g_i where ℓ_i vanishes, smooth between; for all times.

    Args:
        distances: ℓ_i.  values: g_i.  box: of the domain; of its diagonal a distance of 1e-12 counts as none.
    """

    def __init__(self, distances: list[nn.Module], values: list[float], box: np.ndarray) -> None:
        super().__init__()
        self.distances, self.values, self.d = nn.ModuleList(distances), values, box.shape[1]
        self.none = 1e-12 * float(np.linalg.norm(np.ptp(box, axis=0)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d), or (n, d + 1) in time → (n,)."""
        place = x[:, : self.d]
        weights = torch.stack([1.0 / (ell(place) + self.none) for ell in self.distances])
        g = torch.tensor(self.values, dtype=x.dtype, device=x.device)
        return (g @ weights) / weights.sum(dim=0)
