"""How what passes a site is told in numbers: by token, head or channel, summed up or the strongest.

Parts take values x [batch, tokens, channels] and their relevance r, of the same shape, and return
both in the units that they are about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lxt.errors import InvalidTap
from lxt.gradients import compute_dtype
from lxt.pieces import is_batched

__all__ = ["Kind", "Parts", "by_tokens"]

Kind = Literal["tokens", "heads", "neurons", "experts", "features"]


@dataclass(frozen=True)
class Parts:
    """What is told of each token, and of all of them.

    Attributes:
        kind: `"tokens"`, the sum of relevance over all values, and their Euclidean norm;
            `"heads"`, the same for the values of each head; else each value, and what they are.
        heads: how many heads the channels are divided into.
        summed: whether both are summed over tokens.
        top: how many are kept, those of the largest |relevance| of a row.

    """

    kind: Kind
    heads: int | None = None
    summed: bool = False
    top: int | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether less is told than what each unit of each token is."""
        return self.summed or self.top is not None

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of what is told, after that of rows."""
        if self.top is not None:
            return ("top",)
        units = () if self.kind == "tokens" else (self.kind,)
        return units if self.summed else ("tokens", *units)

    def activation(self, x: Tensor, mask: Tensor) -> Tensor:
        """[batch, tokens, units], or without tokens if they are summed, in float32 or more.

        `mask` [batch, tokens] says which are no padding.
        """
        wide = x.to(compute_dtype(x.dtype))
        if self.kind == "tokens":
            wide = wide.norm(dim=-1)
        elif self.kind == "heads":
            wide = self._by_head(wide).norm(dim=-1)
        if not self.summed:
            return wide
        kept = mask.to(wide).reshape(*mask.shape, *(1 for _ in wide.shape[2:]))
        return (wide * kept).sum(1)

    def relevance(self, r: Tensor) -> Tensor:
        """The same of relevance."""
        if self.kind == "tokens":
            r = r.sum(-1)
        elif self.kind == "heads":
            r = self._by_head(r).sum(-1)
        return r.sum(1) if self.summed else r

    def units(self, x: Tensor) -> int:
        """How many units a token has."""
        return {"tokens": 1, "heads": self.heads or 1}.get(self.kind, x.shape[-1])

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of what `told` returns."""
        rows, tokens, _ = x.shape
        units = self.units(x)
        if self.top is not None:
            return rows, min(self.top, units if self.summed else units * tokens), 3
        last = () if self.kind == "tokens" else (units,)
        return (rows, *last) if self.summed else (rows, tokens, *last)

    def told(self, r: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Relevance, or of the strongest [batch, top, 3]: relevance, index, activation.

        An index counts what is told of a row, in order.
        """
        found = self.relevance(r)
        if self.top is None:
            return found
        flat = found.reshape(len(x), -1)
        index = flat.abs().topk(self.shape(x)[1], dim=-1).indices
        activation = self.activation(x, mask).reshape(len(x), -1)
        if is_batched(flat):  # then each of them has to be
            activation = activation + torch.zeros_like(flat)
        strongest = (flat.gather(1, index), index, activation.gather(1, index))
        return torch.stack([one.double() for one in strongest], -1)

    def scaled(self, told: Tensor, factor: float) -> Tensor:
        """What `told` returned, with relevance times a factor."""
        if factor == 1:
            return told
        if self.top is None:
            return told * factor
        return told * told.new_tensor([factor, 1, 1])

    def _by_head(self, x: Tensor) -> Tensor:
        rows, tokens, channels = x.shape
        heads = self.heads or 1
        if channels % heads:
            raise InvalidTap(f"{channels} channels can't be divided among {heads} heads")
        return x.reshape(rows, tokens, heads, channels // heads)


def by_tokens(x: Tensor, rows: int, tokens: int, site: str) -> Tensor:
    """A tensor as [rows, tokens, channels], which may have rows and tokens in one axis.

    Raises:
        InvalidTap: neither is there.

    """
    # Of two axes [batch, channels], channels may happen to be as many as tokens.
    by_row = x.dim() > 2 and x.shape[:2] == (rows, tokens)
    if by_row or (x.dim() and x.shape[0] == rows * tokens):
        return x.reshape(rows, tokens, -1)
    raise InvalidTap(
        f"what passes {site} has the shape {list(x.shape)}, and [batch, tokens, channels] is "
        f"taken, here [{rows}, {tokens}, …]"
    )
