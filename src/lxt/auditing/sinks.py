"""Where relevance gathers for no reason of the text: the first token, special tokens, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Sinks", "sinks_of"]


@dataclass(frozen=True)
class Sinks:
    """Shares of Σ|R| over the tokens, the mean of the rows.

    Attributes:
        first: on the first token of each row.
        special: on special tokens of the tokenizer; None if there is no tokenizer.
        padding: Σ|R| on padding, which must be 0.
    """

    first: float
    special: float | None
    padding: float


def sinks_of(relevance: Tensor, ids: Tensor, kept: Tensor, tokenizer: Any) -> Sinks:
    """Where the relevance [batch, tokens] of rows padded on the right lies.

    `ids` [batch, tokens] are the tokens and `kept` is false at padding.
    """
    size = relevance.abs()
    total = (size * kept).sum(-1).clamp_min(1e-30)
    special = None
    if tokenizer is not None and getattr(tokenizer, "all_special_ids", None):
        is_special = ids.new_tensor(tokenizer.all_special_ids)
        where = (ids[..., None] == is_special).any(-1) & kept
        special = ((size * where).sum(-1) / total).mean().item()
    return Sinks((size[:, 0] / total).mean().item(), special, (size * ~kept).sum().item())
