"""The two rules that need no mathematics: autograd's own gradient, and none at all."""

from __future__ import annotations

from typing import Any

import torch

from lxt.rules.registry import Operation, family

__all__ = ["constant", "passthrough"]


@family
def passthrough(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """Autograd's own gradient: right for an operation that is linear in what carries relevance.

    It is the ε-rule with ε → 0 (Achtibat et al. 2024, Eq. 8).
    """
    return operation(*args, **kwargs)


@family
def constant(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """The value as it is: no relevance to any operand, and nothing kept for the backward pass."""
    with torch.no_grad():
        return operation(*args, **kwargs)
