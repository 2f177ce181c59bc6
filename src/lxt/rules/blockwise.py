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
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lxt.gradients import is_batched

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


@dataclass(frozen=True)
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

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Blocks of queries: start, end, and how many keys any of them sees."""
        queries, keys = self.query.shape[3], self.key.shape[2]
        last: list[int] | None = None
        if self.mask is not None and self.mask.dtype is torch.bool:
            places = torch.arange(1, keys + 1, device=self.mask.device)
            seen = self.mask.flatten(0, 2).any(0)
            last = (seen * places).amax(-1).tolist()
        for start in range(0, queries, _BLOCK):
            end = min(start + _BLOCK, queries)
            visible = keys
            if self.is_causal:
                visible = min(end, keys)
            elif last is not None:
                visible = max(1, *last[start:end])
            yield start, end, visible

    def softmax(self, place: tuple[Any, ...], scores: Tensor, start: int) -> Tensor:
        """P of a block of queries from `start` on, written over its scores where there is no mask.

        `place` says of which heads: an index into the first dimensions of the mask.
        """
        by_head = scores.unflatten(-2, (self.query.shape[2], -1))
        count, keys = by_head.shape[-2:]
        if self.mask is not None:
            mask = self.mask[place][..., start : start + count, :keys]
            if mask.dtype is torch.bool:
                by_head.masked_fill_(~mask, -math.inf)
            else:
                by_head.add_(mask)
            return torch._safe_softmax(scores, -1)  # rows without any key: 0, as the kernels say
        if self.is_causal and start < keys:
            later = torch.ones(count, keys - start, dtype=torch.bool, device=scores.device)
            by_head[..., start:].masked_fill_(later.triu(1), -math.inf)
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
    (batch, heads, keys, _), queries = key.shape, query.shape[2]
    groups = (batch, heads, query.shape[1] // heads)
    if mask is not None:
        mask = mask.expand(batch, query.shape[1], queries, keys).unflatten(1, groups[1:])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    call = _Call(query.unflatten(1, groups[1:]), key, value, mask, is_causal, scale)
    g = g.reshape(*groups, queries, -1)
    compute = _batched if is_batched(g) else _head_by_head
    dq, dk, dv = compute(g, call, shares)
    return None if dq is None else dq.reshape(query.shape), dk, dv


Found = tuple[Tensor | None, Tensor | None, Tensor | None]


def _head_by_head(g: Tensor, call: _Call, shares: Shares) -> Found:
    """Each group of heads by itself: its scores are one matrix, which all cores work on."""
    batch, heads, group, _, channels = call.query.shape
    dq = torch.empty_like(call.query) if shares.query else None
    dk = torch.zeros_like(call.key) if shares.key else None
    dv = g.new_zeros((*call.key.shape[:3], g.shape[-1])) if shares.value else None
    blocks = list(call.blocks())
    for place in product(range(batch), range(heads)):
        key = call.key[place]
        value = None if call.value is None else call.value[place]
        to_query = key * (call.scale * shares.query) if shares.query else key
        # Written over by each block: fresh memory costs as much as what is computed in it.
        space = [g.new_empty(group * _BLOCK * key.shape[0]) for _ in range(2)]
        for start, end, seen in blocks:
            upstream = g[place][:, start:end].reshape(-1, g.shape[-1])
            # Tokens after what is explained hand nothing back; one channel mostly tells.
            if not (upstream[:, 0].any() or upstream.any()):
                if dq is not None:
                    dq[place][:, start:end] = 0
                continue
            rows = (call.query[place][:, start:end] * call.scale).reshape(-1, channels)
            size = (rows.shape[0], seen)
            scores, d = (each[: size[0] * seen].view(size) for each in space)
            torch.mm(rows, key[:seen].t(), out=scores)
            weights = call.softmax(place, scores, start)
            if dv is not None:
                dv[place][:seen].addmm_(weights.t(), upstream, alpha=shares.value)
            if value is None or (dq is None and dk is None):
                continue
            torch.mm(upstream, value[:seen].t(), out=d)
            torch._softmax_backward_data(d, weights, -1, weights.dtype, grad_input=d)
            if dq is not None:
                dq[place][:, start:end] = torch.mm(d, to_query[:seen]).view(group, -1, channels)
            if dk is not None:
                dk[place][:seen].addmm_(d.t(), rows, alpha=shares.key)
    return dq, dk, dv


def _batched(g: Tensor, call: _Call, shares: Shares) -> Found:
    """All heads at a time, for a batch of gradients, with operations that a vmap knows."""
    dq: list[Tensor] = []
    dk = g.new_zeros(call.key.shape) if shares.key else None
    dv = g.new_zeros((*call.key.shape[:3], g.shape[-1])) if shares.value else None
    for start, end, seen in call.blocks():
        rows = (call.query[:, :, :, start:end] * call.scale).flatten(2, 3)
        scores = torch.matmul(rows, call.key[:, :, :seen].transpose(-1, -2))
        weights = call.softmax((), scores, start)
        upstream = g.narrow(3, start, end - start).reshape(*rows.shape[:3], g.shape[-1])
        if dv is not None:
            dv.narrow(2, 0, seen).add_(torch.matmul(weights.transpose(-1, -2), upstream))
        if call.value is None or not (shares.query or shares.key):
            continue
        d = torch.matmul(upstream, call.value[:, :, :seen].transpose(-1, -2))
        d = torch._softmax_backward_data(d, weights, -1, weights.dtype)
        if shares.query:
            part = torch.matmul(d, call.key[:, :, :seen])
            dq.append(part.reshape(*call.query.shape[:3], end - start, part.shape[-1]))
        if dk is not None:
            dk.narrow(2, 0, seen).add_(torch.matmul(d.transpose(-1, -2), rows))
    return (
        torch.cat(dq, 3).mul_(call.scale * shares.query) if dq else None,
        None if dk is None else dk.mul_(shares.key),
        None if dv is None else dv.mul_(shares.value),
    )
