"""Rules that need no mathematics: autograd's own gradient, none at all, and those of the parts."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch

from lxt.rules.registry import Operation, family

__all__ = ["Unfolded", "composed", "constant", "passthrough"]


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


class Unfolded:
    """A torch function that is written in Python, as the operations that it calls.

    Called under a function mode it doesn't hand itself to the mode, and each operation within does.
    """

    def __init__(self, operation: Operation) -> None:
        if not isinstance(operation, FunctionType):
            raise TypeError(f"{operation!r} is not written in Python: it has no parts to see")
        overrides = [
            name for name in operation.__globals__ if name.startswith("has_torch_function")
        ]
        self._function = FunctionType(
            operation.__code__,
            {**operation.__globals__, **dict.fromkeys(overrides, _never)},
            operation.__name__,
            operation.__defaults__,
            operation.__closure__,
        )
        self._function.__kwdefaults__ = operation.__kwdefaults__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, its parts in the open."""
        return self._function(*args, **kwargs)


def _never(*_: Any) -> bool:
    return False


@family
def composed(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """The rules of the operations that a torch function written in Python calls."""
    return Unfolded(operation)(*args, **kwargs)
