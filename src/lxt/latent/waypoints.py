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
            part = flat[..., at]
            if v is not None:
                v = (v / v.norm()).to(part)
                part = (part @ v)[..., None] * v
            found[..., at] = part.where(self.tokens(unit, g.device), found[..., at])
        return self.captured.edge, found.reshape(g.shape)

    def tokens(self, unit: Unit, device: torch.device) -> Tensor:
        """The tokens at which a unit is, bool [rows, tokens, 1].

        Raises:
            InvalidTap: a row hasn't so many.

        """
        mask, position = self.passage.mask, unit.position
        if position is None:
            return torch.ones_like(mask)[..., None].to(device)
        lengths = mask.sum(1)
        least = int(lengths.min())
        if not -least <= position < least:
            raise InvalidTap(f"there is no position {position}: a row has {least} tokens")
        at = lengths + position if position < 0 else torch.full_like(lengths, position)
        return (torch.arange(mask.shape[1]) == at[:, None])[..., None].to(device)
