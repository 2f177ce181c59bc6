"""Sites that relevance must go through, and what goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt.errors import InvalidTap
from lxt.latent.probes import Captured, Passage
from lxt.latent.units import Unit

__all__ = ["Waypoint"]


@dataclass(frozen=True)
class Waypoint:
    """A site that relevance must go through, and what of it counts.

    Attributes:
        captured: the place in the graph.
        units: of which relevance goes on.
        passage: what passes in the forward pass.
        explicit: whether backward passes return relevance.

    """

    captured: Captured
    units: Sequence[Unit]
    passage: Passage
    explicit: bool

    def onward(self, g: Tensor) -> tuple[Any, Tensor]:
        """Where a backward pass goes on, with what of a gradient [targets, *shape] at the site."""
        rows, tokens = self.passage.rows, self.passage.tokens
        flat = g.reshape(len(g), rows, tokens, -1)
        found = torch.zeros_like(flat)
        for unit in self.units:
            at, v = unit.channels(flat.shape[-1]), unit.direction
            places = self.places(unit)
            part = flat[:, :, places, at]
            if v is not None:
                v = (v / v.norm()).to(part)
                part = (part @ v)[..., None] * v
            found[:, :, places, at] = part
        return self.captured.edge, found.reshape(g.shape)

    def places(self, unit: Unit) -> slice:
        """The tokens at which a unit is.

        Raises:
            InvalidTap: there aren't so many.

        """
        tokens = self.passage.tokens
        if unit.position is None:
            return slice(0, tokens)
        if not -tokens <= unit.position < tokens:
            raise InvalidTap(f"there is no position {unit.position}: there are {tokens} tokens")
        return slice(unit.position % tokens, unit.position % tokens + 1)
