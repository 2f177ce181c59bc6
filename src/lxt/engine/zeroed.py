"""What an operation puts out for operands that are 0: what of its result is no operand's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt.engine.opaque import tensors_in

__all__ = ["values_at_zero"]


def values_at_zero(
    operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[list[Tensor]]:
    """What an operation puts out if its operands that carry relevance are 0.

    Where that is not finite, as for 0/0, also what it does if all but the last are, or the first.
    """
    count = sum(t.requires_grad for t in (*tensors_in(args), *tensors_in(kwargs)))
    for zeros in sorted({count, max(count - 1, 1), 1}, reverse=True):
        zero = _Zero(args[0] if args else None, zeros)
        try:
            with torch.no_grad():
                zeroed = [zero(value) for value in args]
                result = operation(*zeroed, **{name: zero(v) for name, v in kwargs.items()})
        except Exception:  # a model's code may raise whatever it likes for values it never met
            return
        tensors = list(tensors_in(result)) or list(tensors_in(zeroed[:1]))
        yield tensors
        if all(tensor.isfinite().all() for tensor in tensors):
            return


@dataclass
class _Zero:
    """Makes the first operands that carry relevance 0."""

    written: Any  # what the operation writes to, if it writes
    left: int  # how many are still to be made 0

    def __call__(self, value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(self, value))
        if not isinstance(value, Tensor):
            return value
        if value.requires_grad and self.left:
            self.left -= 1
            return torch.zeros_like(value.detach())
        return value.detach().clone() if value is self.written else value.detach()
