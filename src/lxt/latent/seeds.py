"""Units as targets: what is explained of the values of a site."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt.errors import InactiveFeatureWarning
from lxt.explained import ExplainedTarget
from lxt.latent.inside import Inside
from lxt.latent.units import Unit
from lxt.targets import Readout

__all__ = ["UnitSeed"]


@dataclass(frozen=True)
class UnitSeed:
    """The weights of a unit in what passes its site.

    A neuron or feature counts as it is, a direction by the projection onto it. Several channels, as
    those of a head, by their Euclidean norm ‖x‖ = Σ x · x / ‖x‖, of which x / ‖x‖ are constants.
    """

    unit: Unit
    inside: Inside

    @property
    def position(self) -> int | None:
        """The position asked for."""
        return self.unit.position

    def weights(self, values: Tensor) -> Tensor:
        """The weight of each value, for values [channels of all sites] of one row."""
        at = self.inside.channels(self.unit)
        weights = torch.zeros_like(values)
        here = weights[at]
        if self.unit.direction is not None:
            direction = self.unit.direction.detach().to(values)
            here += direction / direction.norm()
        elif self.unit.neuron is not None or self.unit.feature is not None:
            here += 1
        else:
            x = values[at]
            here += x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
        return weights

    def explained(self, values: Tensor, readout: Readout, position: int | None) -> ExplainedTarget:
        """What was explained."""
        value = float((self.weights(values) * values).sum())
        if self.unit.feature is not None and value == 0:
            at = "" if position is None else f" at position {position}"
            warnings.warn(
                f"{self.unit.name} is 0{at}, so nothing made it fire: its relevance is 0",
                InactiveFeatureWarning,
                stacklevel=2,
            )
        return ExplainedTarget("unit", self.unit.name, value, position, "")
