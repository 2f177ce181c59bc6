"""One forward pass of a model, ready for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Case", "Change", "Pass"]

Change = Callable[[Tensor], Tensor]
"""Makes other values of a leaf, of the same shape."""


@dataclass(frozen=True)
class Pass:
    """What a forward pass put out.

    Attributes:
        output: what is explained, of any shape.
        seed: its gradient, where the backward pass starts: the explained number is Σ seed · output.
        leaves: what relevance flows to, by name.

    """

    output: Tensor
    seed: Tensor
    leaves: dict[str, Tensor]


class Case(Protocol):
    """A model, an input and what is explained, to be run any number of times."""

    model: nn.Module

    def on(self, model: nn.Module) -> Case:
        """The same case of another instance of the same architecture."""
        ...

    def forward(self, change: Change | None = None) -> Pass:
        """Run the model once, under whatever composite is on it, on leaves that `change` made."""
        ...
