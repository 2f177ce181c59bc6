"""What a fused unit is: a rule for one kind of module, and the calls that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.opaque import is_transforming
from lxt.fusion.proof import Run

__all__ = ["FusedUnit"]


@dataclass(frozen=True)
class FusedUnit:
    """A rule for modules of one structure.

    Attributes:
        name: what it is called in reports: "gated MLP", "RMS norm".
        run: computes the module's output from the module and its one operand.
        dtype: that it was proven in.
        thrifty: whether it keeps less for the backward pass, and computes more there.

    """

    name: str
    run: Run
    dtype: torch.dtype
    thrifty: bool = False

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run in place of the module's forward."""
        return self.run(module, x, self.thrifty)

    def takes(self, args: tuple[Any, ...], kwargs: Any) -> bool:
        """Whether a call is one that the proof was about: one operand that carries relevance."""
        if kwargs or len(args) != 1:
            return False
        (x,) = args
        return (
            type(x) is Tensor
            and x.requires_grad
            and x.dtype is self.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and not is_transforming()
        )
