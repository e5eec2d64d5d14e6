"""The tables of both models: unknown coefficients, and networks; with names and defaults of hyco_fem's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from hyco_fem.experiment.tables import Above, ConfigurationError, Count, Natural, Numbers, Positive

Activation: TypeAlias = Literal["tanh", "relu", "sigmoid", "gelu", "silu", "sin", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """Of every unknown coefficient: degree of its Lagrange space (0: constant in cells), and bounds that it keeps.

    The degree is 1 by default; where the space is given, by a Python file or as that of u (Dirichlet values, the
    initial value), it is left out.
    With `lower` alone it stays above, with both between: `Positive` and `Bounded`, with the transition `scale`.
    """

    degree: Natural | None = None
    lower: float | None = None
    upper: float | None = None
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        if self.upper is not None and self.lower is None:
            raise ConfigurationError("lower: is missing where upper is given")
        if self.upper is not None and self.lower is not None and not self.lower < self.upper:
            raise ConfigurationError(f"upper: must be above lower, {self.lower:g}, not {self.upper:g}")


@dataclass(frozen=True, kw_only=True)
class ScalarTable(Coefficient):
    """`Scalar`: one number."""

    type: Literal["scalar"]
    value: float


@dataclass(frozen=True, kw_only=True)
class BumpsTable(Coefficient):
    """`GaussianBumps`."""

    type: Literal["bumps"]
    amplitudes: list[float]
    centres: list[list[float]]
    widths: Annotated[float | list[float], Above(0)] = 1.0
    background: float = 0.0
    trainable: list[Literal["background", "amplitudes", "centres", "widths"]] = field(
        default_factory=lambda: ["amplitudes", "centres"]
    )


@dataclass(frozen=True, kw_only=True)
class SineTable(Coefficient):
    """`SineSeries`."""

    type: Literal["sine"]
    coefficients: Numbers
    wavenumber: float | list[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class NodalTable(Coefficient):
    """`NodalField`: a number for each dof."""

    type: Literal["nodal"]
    initial: float = 1.0


@dataclass(frozen=True, kw_only=True)
class NeuralTable(Coefficient):
    """`NeuralField` of an MLP."""

    type: Literal["neural"]
    width: Count = 16
    depth: Count = 2
    activation: Activation = "tanh"
    seed: Natural = 1


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """A vector: one of the tables above for each component, without its degree.

    A nodal coefficient that is a vector needs none: `NodalField` has all its components.
    """

    type: Literal["vector"]
    components: list[ScalarTable | BumpsTable | SineTable | NeuralTable]
    degree: Natural | None = None

    def __post_init__(self) -> None:
        _check_degrees("components", self.components)


@dataclass(frozen=True, kw_only=True)
class PerIntervalTable:
    """`PerInterval`: in a problem in time another one, of the tables above, from each of some times on."""

    type: Literal["per_interval"]
    changes: list[float]
    parts: list[ScalarTable | BumpsTable | SineTable | NodalTable | NeuralTable | VectorTable]
    degree: Natural | None = None

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.changes) + 1:
            raise ConfigurationError(
                f"parts: {len(self.changes)} changes need {len(self.changes) + 1} of them, not {len(self.parts)}"
            )
        _check_degrees("parts", self.parts)


def _check_degrees(key: str, inner: Sequence[Coefficient | VectorTable]) -> None:
    for i, table in enumerate(inner):
        if table.degree is not None:
            raise ConfigurationError(f"{key}[{i}].degree: is that of the whole coefficient; put it there")


AnyCoefficient: TypeAlias = (
    ScalarTable | BumpsTable | SineTable | NodalTable | NeuralTable | VectorTable | PerIntervalTable
)


# -- networks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Network:
    """Of every network: seed, and whether the Dirichlet values of a problem of the catalogue are built into it."""

    seed: Natural = 0
    hard_boundary: bool = False


@dataclass(frozen=True, kw_only=True)
class MLPTable(Network):
    """`MLP`."""

    type: Literal["mlp"]
    width: Count = 64
    depth: Count = 3
    activation: Activation = "tanh"


@dataclass(frozen=True, kw_only=True)
class ResNetTable(Network):
    """`ResNet`."""

    type: Literal["resnet"]
    width: Count = 64
    blocks: Count = 2
    activation: Activation = "relu"


@dataclass(frozen=True, kw_only=True)
class ShallowTable(Network):
    """`ShallowNet`."""

    type: Literal["shallow"]
    neurons: Count
    activation: Activation = "tanh"


@dataclass(frozen=True, kw_only=True)
class FourierTable(Network):
    """`FourierFeatures` before an MLP; scale in cycles per half of the bounding box."""

    type: Literal["fourier"]
    features: Count
    scale: Positive = 1.0
    width: Count = 64
    depth: Count = 3
    activation: Activation = "tanh"
