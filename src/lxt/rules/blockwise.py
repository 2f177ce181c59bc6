"""The backward pass of softmax attention, in blocks of queries: nothing of the size T × T is made.

With S = s · q kᵀ + mask, P = softmax(S), y = P v and the gradient g of y:

    ∂v = Pᵀ g,   ∂P = g vᵀ,   ∂S = P ⊙ (∂P − rowsum(P ⊙ ∂P)),   ∂q = s · ∂S k,   ∂k = s · ∂Sᵀ q

P is computed again from q, k and the mask, so that of all this only q, k and v need to be kept
(Dao et al. 2022, https://arxiv.org/abs/2205.14135); y need not be kept either, since the sum over a
row is at hand. Where a causal or boolean mask hides all keys behind some position from a whole
block, nothing is computed for them. With constant weights, ∂v is all there is. What has less than
float32 is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lxt.gradients import compute_dtype
from lxt.pieces import is_batched

aten = torch.ops.aten

__all__ = ["Shares", "attention_gradients", "fits"]

_BLOCK = 128
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


@dataclass
class _Call:
    """What attention was called with; heads that share their keys are rows of one matrix.

    Attributes:
        query: [batch, key heads, group, queries, channels].
        key: [batch, key heads, keys, channels].
        value: [batch, key heads, keys, channels of values], or None if only ∂v is asked for.
        mask: None, or [batch, key heads, group, queries, keys], expanded.
        is_causal: whether query i sees the keys up to i only.
        scale: of the scores.

    """

    query: Tensor
    key: Tensor
    value: Tensor | None
    mask: Tensor | None
    is_causal: bool
    scale: float

    @cached_property
    def hidden(self) -> Tensor:
        """What hides later keys from the queries of a block, added to its last scores."""
        hidden = self.query.new_full((_BLOCK, _BLOCK), -math.inf)
        return hidden.triu_(1)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Blocks of queries, the last first: start, end, and how many keys any of them sees."""
        queries, keys = self.query.shape[3], self.key.shape[2]
        last: list[int] | None = None
        if self.mask is not None and self.mask.dtype is torch.bool:
            places = torch.arange(1, keys + 1, device=self.mask.device)
            seen = self.mask.flatten(0, 2).any(0)
            last = (seen * places).amax(-1).tolist()
        for start in reversed(range(0, queries, _BLOCK)):
            end = min(start + _BLOCK, queries)
            visible = keys
            if self.is_causal:
                visible = min(end, keys)
            elif last is not None:
                visible = max(1, *last[start:end])
            yield start, end, visible

    def softmax(self, scores: Tensor, start: int) -> Tensor:
        """P of a block of queries from `start` on, written over its scores where there is no mask.

        Scores are [batch, key heads, group · queries, keys].
        """
        by_head = scores.unflatten(-2, (self.query.shape[2], -1))
        count, keys = by_head.shape[-2:]
        if self.mask is not None:
            mask = self.mask[..., start : start + count, :keys]
            if mask.dtype is torch.bool:
                by_head.masked_fill_(~mask, -math.inf)
            else:
                by_head.add_(mask)
            return aten._safe_softmax(scores, -1)  # rows without any key: 0, as the kernels say
        if self.is_causal and start < keys:
            by_head[..., start:].add_(self.hidden[:count, : keys - start])
        return torch.softmax(scores, -1, out=scores)


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
        g: that of the output, [batch, heads, queries, channels of values]; it may be a batch of
            gradients, in a vmap.
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
    narrow, wide = g.dtype, compute_dtype(g.dtype)
    g, query, key = g.to(wide), query.to(wide), key.to(wide)
    value = None if value is None else value.to(wide)
    (batch, heads, keys, _), queries = key.shape, query.shape[2]
    groups = (batch, heads, query.shape[1] // heads)
    if mask is not None:
        mask = mask.expand(batch, query.shape[1], queries, keys).unflatten(1, groups[1:])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    call = _Call(query.unflatten(1, groups[1:]), key, value, mask, is_causal, scale)
    g = g.reshape(*groups, queries, -1)
    compute = _batched if is_batched(g) else _written_over
    dq, dk, dv = compute(g, call, shares)
    dq = None if dq is None else dq.reshape(query.shape)
    dq, dk, dv = (None if found is None else found.to(narrow) for found in (dq, dk, dv))
    return dq, dk, dv


Found = tuple[Tensor | None, Tensor | None, Tensor | None]


def _written_over(g: Tensor, call: _Call, shares: Shares) -> Found:
    """All heads at a time, each with a copy of its keys; blocks are written over one another."""
    batch, heads, group, queries, channels = call.query.shape
    keys, count = call.key.shape[2], batch * heads * group

    def by_head(x: Tensor) -> Tensor:
        """[batch, key heads, tokens, channels] → [batch · heads, tokens, channels]."""
        x = x.unsqueeze(2).expand(-1, -1, group, -1, -1)
        return x.reshape(count, keys, x.shape[-1])

    key = by_head(call.key)
    value = None if call.value is None else by_head(call.value)
    query = (call.query * call.scale).reshape(count, queries, channels)
    g = g.reshape(count, queries, g.shape[-1])
    # Tokens before heads, as in the linear layers that it goes back to.
    dq = None
    if shares.query:
        dq = query.new_empty(batch, queries, heads * group, channels).transpose(1, 2)
    dk: Tensor | None = None
    dv: Tensor | None = None
    # Fresh memory costs as much as what is computed in it.
    nothing = query.new_zeros(())
    space = [g.new_empty(count * min(_BLOCK, queries) * keys) for _ in range(2)]
    for start, end, seen in call.blocks():
        upstream, rows = g[:, start:end], query[:, start:end]
        if not (upstream[..., 0].any() or upstream.any()):
            if dq is not None:  # tokens after what is explained hand nothing back
                dq[:, :, start:end] = 0
            continue
        size = (count, end - start, seen)
        scores, d = (each[: math.prod(size)].view(size) for each in space)
        torch.bmm(rows, key[:, :seen].transpose(1, 2), out=scores)
        weights = call.softmax(scores.view(batch, heads, -1, seen), start).view(size)
        if shares.value:
            dv = _added(dv, torch.bmm(weights.transpose(1, 2), upstream), keys)
        if value is None or not (shares.query or shares.key):
            continue
        torch.bmm(upstream, value[:, :seen].transpose(1, 2), out=d)
        aten._softmax_backward_data(d, weights, -1, weights.dtype, grad_input=d)
        if dq is not None:
            part = torch.baddbmm(nothing, d, key[:, :seen], beta=0, alpha=call.scale * shares.query)
            dq[:, :, start:end] = part.view(batch, -1, end - start, channels)
        if shares.key:
            dk = _added(dk, torch.bmm(d.transpose(1, 2), rows), keys)

    def summed(x: Tensor | None, share: float, width: int) -> Tensor | None:
        """Over the heads that share their keys."""
        if not share:
            return None
        if x is None:
            return g.new_zeros(batch, heads, keys, width)
        x = x.view(batch, heads, group, keys, width)
        return (x.sum(2) if group > 1 else x.squeeze(2)).mul_(share)

    return dq, summed(dk, shares.key, channels), summed(dv, shares.value, g.shape[-1])


def _added(total: Tensor | None, part: Tensor, keys: int) -> Tensor:
    """The sum over blocks of what goes to the keys; a part goes to the first of them."""
    count, seen, width = part.shape
    if total is None:
        if seen == keys:
            return part
        total = part.new_zeros(count, keys, width)
    total[:, :seen].add_(part)
    return total


def _batched(g: Tensor, call: _Call, shares: Shares) -> Found:
    """All heads at a time, for a batch of gradients, with operations that a vmap knows."""
    dq: list[Tensor] = []
    dk = g.new_zeros(call.key.shape) if shares.key else None
    dv = g.new_zeros((*call.key.shape[:3], g.shape[-1])) if shares.value else None
    for start, end, seen in call.blocks():
        rows = (call.query[:, :, :, start:end] * call.scale).flatten(2, 3)
        scores = torch.matmul(rows, call.key[:, :, :seen].transpose(-1, -2))
        weights = call.softmax(scores, start)
        upstream = g.narrow(3, start, end - start).reshape(*rows.shape[:3], g.shape[-1])
        if dv is not None:
            dv.narrow(2, 0, seen).add_(torch.matmul(weights.transpose(-1, -2), upstream))
        if call.value is None or not (shares.query or shares.key):
            continue
        d = torch.matmul(upstream, call.value[:, :, :seen].transpose(-1, -2))
        d = aten._softmax_backward_data(d, weights, -1, weights.dtype)
        if shares.query:
            part = torch.matmul(d, call.key[:, :, :seen])
            dq.append(part.reshape(*call.query.shape[:3], end - start, part.shape[-1]))
        if dk is not None:
            dk.narrow(2, 0, seen).add_(torch.matmul(d.transpose(-1, -2), rows))
    return (
        torch.cat(dq[::-1], 3).mul_(call.scale * shares.query) if dq else None,
        None if dk is None else dk.mul_(shares.key),
        None if dv is None else dv.mul_(shares.value),
    )
