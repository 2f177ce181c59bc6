"""Multi-head attention by CP-LRP, as a function of tensors and two projections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from lxt.errors import InvalidInput
from lxt.explicit.rules import epsilon_lrp

__all__ = ["multi_head_attention_cp"]

Projection = Callable[[Tensor], Tensor]


def multi_head_attention_cp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch_first: bool,
    num_heads: int,
    head_dim: int,
    q_proj_weight: Tensor,
    bias_q: Tensor | None,
    k_proj_weight: Tensor,
    bias_k: Tensor | None,
    v_proj: Projection,
    out_proj: Projection,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attention whose weights are constants (CP-LRP, Ali et al. 2022): values get all relevance.

    Achtibat et al. 2024 (appendix A.2.3) recommend it for vision transformers. The weighted sum of
    the values has the ε-rule with ε = 10⁻⁶; `v_proj` and `out_proj` propagate by their own rules.

    Args:
        query: of shape [queries, batch, embed], [batch, queries, embed] if `batch_first`, or
            [queries, embed] without a batch. Gets no relevance.
        key: the same with [keys, key embed]. Gets no relevance.
        value: the same with [keys, value embed].
        batch_first: the order of the first two dimensions.
        num_heads: the number of heads.
        head_dim: the size of each; `num_heads * head_dim` is the width of the projections.
        q_proj_weight: of shape [width, embed].
        bias_q: of shape [width], or None.
        k_proj_weight: of shape [width, key embed].
        bias_k: of shape [width], or None.
        v_proj: from the value embedding to the width.
        out_proj: from the width to the embedding.
        key_padding_mask: of shape [batch, keys], or [keys] without a batch; True, or −∞ to be
            added, where a key is left out.
        need_weights: whether the attention weights are returned, too.
        attn_mask: of shape [queries, keys] or [batch * heads, queries, keys]; as above.
        average_attn_weights: over the heads.

    Returns:
        The output, in the layout of the query; and the weights [batch, queries, keys], or [batch,
        heads, queries, keys] if not averaged, without batch if there is none; or None.

    Raises:
        InvalidInput: a mask does not have one of these shapes.

    """
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    elif not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(-1, (num_heads, head_dim)).transpose(1, 2)

    with torch.no_grad():
        q = by_head(F.linear(query, q_proj_weight, bias_q))
        k = by_head(F.linear(key, k_proj_weight, bias_k))
        logits = (q / math.sqrt(head_dim)) @ k.mT
        if attn_mask is not None:
            logits = logits + _prepare_attn_mask(attn_mask, logits)
        if key_padding_mask is not None:
            logits = logits + _prepare_key_padding_mask(key_padding_mask, attn_mask, logits)
        attention = torch.softmax(logits, -1)
        if not need_weights:  # torch then gives 0, not NaN, to a query that sees no key
            attention = attention.masked_fill((logits == -math.inf).all(-1, keepdim=True), 0)

    v = by_head(v_proj(value))
    out = out_proj(epsilon_lrp(torch.matmul, 1e-6, attention, v).transpose(1, 2).flatten(2))
    if average_attn_weights:
        attention = attention.mean(1)
    if not batched:
        out, attention = out.squeeze(0), attention.squeeze(0)
    elif not batch_first:
        out = out.transpose(0, 1)
    return out, attention if need_weights else None


torch.fx.wrap("multi_head_attention_cp")


@torch.no_grad()
def _prepare_key_padding_mask(mask: Tensor, attn_mask: Tensor | None, query: Tensor) -> Tensor:
    """A mask [batch, keys] as what is added to logits [batch, heads, queries, keys].

    `query` stands for the type, and for the shape if it is four-dimensional.
    """
    if mask.dim() == 2:
        if query.dim() == 4 and mask.shape[0] != query.shape[0]:
            raise InvalidInput(
                f"key_padding_mask {list(mask.shape)} must be [batch, keys], and the batch is "
                f"{query.shape[0]}"
            )
        mask = mask[:, None, None, :]
    elif mask.dim() != 4:
        raise InvalidInput(f"key_padding_mask {list(mask.shape)} must be [batch, keys]")
    return _additive(mask, query.dtype)


@torch.no_grad()
def _prepare_attn_mask(mask: Tensor, query: Tensor) -> Tensor:
    """A mask [queries, keys] or [batch * heads, queries, keys] as what is added to logits.

    `query` is [batch, heads, queries, …].
    """
    if mask.dim() == 3:
        batch, heads = query.shape[:2]
        if mask.shape[0] != batch * heads:
            raise InvalidInput(
                f"attn_mask {list(mask.shape)} must be [queries, keys] or [batch * heads, queries, "
                f"keys], and batch * heads is {batch * heads}"
            )
        mask = mask.unflatten(0, (batch, heads))
    elif mask.dim() not in (2, 4):
        raise InvalidInput(
            f"attn_mask {list(mask.shape)} must be [queries, keys] or [batch * heads, queries, "
            "keys]"
        )
    return _additive(mask, query.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is False and −∞ where it's True; a mask of numbers as it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise InvalidInput(f"a mask holds booleans or what is to be added, not {mask.dtype}")
    return mask.to(dtype)
