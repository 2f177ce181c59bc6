"""Work on a large tensor in pieces, and what tells whether it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_pieces", "is_batched"]

_VMAPS: list[Any] = [torch._C._parse_dispatch_key(name) for name in ("Batched", "FuncTorchBatched")]  # pyright: ignore[reportAttributeAccessIssue]


def is_batched(g: Tensor) -> bool:
    """Whether a gradient is a batch of them: of autograd's `is_grads_batched`, or torch.func's."""
    keys = torch._C._dispatch_keys(g)
    return any(map(keys.has, _VMAPS))


_PIECE = 2**17
"""Values in a piece: so few that what is made of them stays in a processor's cache."""


def in_pieces(write: Callable[..., object], *tensors: Tensor) -> None:
    """`write(*tensors)`, which writes to one of them value by value, in pieces if that is faster.

    What a CPU makes along the way then stays in its cache, and takes no fresh memory, which would
    cost as much as what is computed in it.
    """
    first = tensors[0]
    together = first.device.type == "cpu" and first.numel() > _PIECE
    if not together or any(
        is_batched(x) or x.shape != first.shape or not x.is_contiguous() for x in tensors
    ):
        write(*tensors)
        return
    flat = [x.view(-1) for x in tensors]
    for start in range(0, first.numel(), _PIECE):
        write(*(x[start : start + _PIECE] for x in flat))
