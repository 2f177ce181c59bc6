"""The backward pass of softmax attention, in blocks of queries: nothing of the size T × T is made.

With S = s · q kᵀ + mask, P = softmax(S), y = P v and the gradient g of y:

    ∂v = Pᵀ g,   ∂P = g vᵀ,   ∂S = P ⊙ (∂P − rowsum(P ⊙ ∂P)),   ∂q = s · ∂S k,   ∂k = s · ∂Sᵀ q

P is computed again from q, k and the mask, so that of all this only q, k and v need to be kept
(Dao et al. 2022, https://arxiv.org/abs/2205.14135); y need not be kept either, since the sum over a
row is at hand. Where a causal or boolean mask hides all keys behind some position from a whole
block, nothing is computed for them. With constant weights, ∂v is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Shares", "attention_gradients", "fits"]

_BLOCK = 64
"""Queries in a block: so few that its scores stay in a processor's cache."""


class Shares(NamedTuple):
    """What part of autograd's own gradient each operand of attention gets; 0 for a constant."""

    query: float
    key: float
    value: float


def fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether operands are [batch, heads, tokens, channels], with heads in equal groups."""
    if not query.dim() == key.dim() == value.dim() == 4 or not query.numel() or not key.numel():
        return False
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        return False
    if key.shape[1] != value.shape[1] or query.shape[1] % key.shape[1]:
        return False
    if key.shape[2] != value.shape[2]:
        return False
    return mask is None or mask.dim() in (2, 4)


@dataclass(frozen=True)
class _Scores:
    """The attention weights of a block of queries, computed when they are asked for.

    Heads that share their keys are rows of one matrix: [batch, key heads, group · queries, keys].
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float

    def weights(self, start: int, end: int, keys: int) -> Tensor:
        batch, heads, _, _ = self.key.shape
        rows = grouped(self.query[:, :, start:end], heads)
        scores = torch.matmul(rows, self.key[:, :, :keys].transpose(-1, -2)).mul_(self.scale)
        by_head = scores.view(batch, -1, end - start, keys)
        if self.mask is not None:
            mask = self.mask[..., start:end, :keys] if self.mask.shape[-2] > 1 else self.mask
            mask = mask[..., :keys]
            if mask.dtype is torch.bool:
                by_head.masked_fill_(~mask, -math.inf)
            else:
                by_head.add_(mask)
            return torch._safe_softmax(scores, -1)  # rows without any key: 0, as the kernels say
        if self.is_causal:
            later = torch.ones(end - start, keys - start, dtype=torch.bool, device=scores.device)
            by_head[..., start:].masked_fill_(later.triu(1), -math.inf)
        return torch.softmax(scores, -1, out=scores)


def grouped(x: Tensor, heads: int) -> Tensor:
    """[batch, query heads, tokens, channels] as [batch, key heads, group · tokens, channels]."""
    return x.reshape(x.shape[0], heads, -1, x.shape[-1])


def _blocks(scores: _Scores) -> Iterator[tuple[int, int, int]]:
    """Blocks of queries: start, end, and how many keys any of them sees."""
    queries, keys = scores.query.shape[2], scores.key.shape[2]
    last: list[int] | None = None
    mask = scores.mask
    if mask is not None and mask.dtype is torch.bool and mask.shape[-2:] == (queries, keys):
        seen = mask.flatten(0, -3).any(0) if mask.dim() > 2 else mask
        places = torch.arange(1, keys + 1, device=mask.device)
        last = (seen * places).amax(-1).tolist()
    for start in range(0, queries, _BLOCK):
        end = min(start + _BLOCK, queries)
        visible = keys
        if scores.is_causal:
            visible = min(end, keys)
        elif last is not None:
            visible = max(1, *last[start:end])
        yield start, end, visible


def attention_gradients(
    g: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    shares: Shares,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of query, key and value, each times its share.

    Args:
        g: that of the output, [batch, heads, queries, channels of values].
        query: [batch, heads, queries, channels].
        key: [batch, key heads, keys, channels]; heads are a multiple of key heads.
        value: [batch, key heads, keys, channels of values]; not needed if query and key have no
            share.
        mask: additive, or true where a query sees a key; broadcasts to [batch, heads, queries,
            keys].
        is_causal: whether query i sees the keys up to i only.
        scale: of the scores; 1/√channels if None.
        shares: those that are 0 are not computed.

    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _Scores(query, key, mask, is_causal, scale)
    heads = key.shape[1]
    to_weights = bool(shares.query or shares.key)
    dq: list[Tensor] = []
    dk = g.new_zeros(key.shape) if shares.key else None
    dv = g.new_zeros((*key.shape[:3], g.shape[-1])) if shares.value else None
    for start, end, keys in _blocks(scores):
        weights = scores.weights(start, end, keys)
        upstream = grouped(g.narrow(2, start, end - start), heads)
        if dv is not None:
            dv.narrow(2, 0, keys).add_(torch.matmul(weights.transpose(-1, -2), upstream))
        if not to_weights or value is None:
            continue
        d_weights = torch.matmul(upstream, value[:, :, :keys].transpose(-1, -2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        if shares.query:
            part = torch.matmul(d_scores, key[:, :, :keys])
            dq.append(part.reshape(*query.shape[:2], end - start, query.shape[-1]))
        if dk is not None:
            rows = grouped(query[:, :, start:end], heads)
            dk.narrow(2, 0, keys).add_(torch.matmul(d_scores.transpose(-1, -2), rows))
    return (
        torch.cat(dq, 2).mul_(scale * shares.query) if dq else None,
        None if dk is None else dk.mul_(scale * shares.key),
        None if dv is None else dv.mul_(shares.value),
    )
