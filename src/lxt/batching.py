"""Work in pieces: what fits into memory at once, and smaller pieces where it doesn't after all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lxt.errors import InvalidInput
from lxt.heads import output_embeddings
from lxt.inputs import input_embeddings

__all__ = [
    "Footprint",
    "Halving",
    "as_batch_size",
    "rows_of_like_length",
    "tokens_at_once",
]

# Beyond so many tokens at once, matrix products get no faster for each of them.
_ENOUGH_TOKENS = {"cpu": 4096}
_ENOUGH_ON_ACCELERATORS = 65536


def as_batch_size(size: Any) -> int | None:
    """The number of rows at a time, or None.

    Raises:
        InvalidInput: it is no positive integer.

    """
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return size
    raise InvalidInput(f"batch_size is {size!r}: give a positive integer, or None")


def tokens_at_once(device: torch.device) -> int:
    """How many tokens a pass may hold before more of them save no time."""
    return _ENOUGH_TOKENS.get(device.type, _ENOUGH_ON_ACCELERATORS)


class Footprint:
    """An estimate of the bytes that a model's passes take, from the shapes of its weights.

    A forward pass saves about what all linear layers put out: one number for each row of each
    weight matrix. A backward pass holds a few gradients of the widest layer at a time.

    Attributes:
        saved: the bytes that a forward pass keeps for each token.
        gradients: the bytes that the backward pass of one target takes for each token.
        logits: the bytes of the logits of one position, in float32, with their gradient and seed.

    """

    def __init__(self, model: nn.Module) -> None:
        embedding, head = input_embeddings(model), output_embeddings(model)
        ends = {id(embedding.weight), id(getattr(head, "weight", None))}
        weights = [p for p in model.parameters() if not is_lazy(p) and id(p) not in ends]
        shapes = [weight.shape for weight in weights if weight.dim() >= 2]
        itemsize = embedding.weight.element_size()
        # [out, in], or [in, out]: which, no shape tells; [experts, out, in] is one of them.
        outputs = [max(shape[-2:]) for shape in shapes] or [embedding.weight.shape[-1]]
        self.saved = sum(outputs) * itemsize
        self.gradients = _GRADIENTS_AT_ONCE * max(outputs) * itemsize
        size = getattr(getattr(head, "weight", None), "shape", (embedding.weight.shape[0],))[0]
        self.logits = 3 * 4 * size


_GRADIENTS_AT_ONCE = 12
"""Of the widest layer, for each target: 8 to 11 were measured on SmolLM2-135M at 256 tokens."""


def rows_of_like_length(
    lengths: Sequence[int], batch_size: int | None, most_tokens: int
) -> list[list[int]]:
    """Rows in groups of similar length, the shortest first.

    A group has up to `batch_size` rows; without one, as many as make up to `most_tokens` tokens,
    padding included.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        group = groups[-1] if groups else []
        if batch_size is None:
            fits = (len(group) + 1) * lengths[row] <= most_tokens
        else:
            fits = len(group) < batch_size
        if group and fits:
            group.append(row)
        else:
            groups.append([row])
    return groups


class Halving:
    """Does work piece by piece; where an accelerator's memory doesn't suffice, in halves since."""

    def __init__(self) -> None:
        self._limit: int | None = None

    def __call__(
        self, pieces: Sequence[Sequence[int]], work: Callable[[Sequence[int]], None]
    ) -> None:
        """Do `work` on each piece, whole or in parts.

        Raises:
            torch.OutOfMemoryError: memory doesn't suffice for a piece of one.

        """
        pending = list(reversed(pieces))
        while pending:
            piece = pending.pop()
            if self._limit is not None and len(piece) > self._limit:
                pending += [piece[self._limit :], piece[: self._limit]]
                continue
            try:
                work(piece)
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
            else:
                continue
            # Here nothing of the failed attempt is held by its error any more.
            self._limit = (len(piece) + 1) // 2
            pending.append(piece)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
