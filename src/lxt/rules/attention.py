"""Attention as one operation, whatever kernel computes it.

softmax(q kᵀ · scale + mask) v is a product of a product: by the rules of products (Achtibat et al.
2024, Prop. 3.3) the value gets half, and query and key a quarter each. CP-LRP takes the weights as
constants, and the value gets all (Ali et al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import carries_relevance, scale, stop
from lxt.rules.elementary import composed
from lxt.rules.registry import constant_t, mask_t, register, rule, sample, t

__all__ = ["attention_shares", "attention_without_dropout", "value_only_attention"]


def attention_shares(query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> list[Any]:
    """The operands of attention, each scaled to its share in the backward pass."""
    weights_carry = any(carries_relevance(x) for x in (query, key, mask))
    to_weights = 0.5 if carries_relevance(value) else 1.0
    to_scores = to_weights / (2 if carries_relevance(query) and carries_relevance(key) else 1)
    return [
        scale(query, to_scores),
        scale(key, to_scores),
        scale(value, 0.5 if weights_carry else 1.0),
        scale(mask, to_weights) if carries_relevance(mask) else mask,
    ]


@rule(
    F.scaled_dot_product_attention,
    source="AttnLRP Prop. 3.1, 3.3",
    samples=[
        sample(t(1, 2, 3, 4), t(1, 2, 5, 4), t(1, 2, 5, 4)),
        sample(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), is_causal=True, scale=0.3),
        sample(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), attn_mask=mask_t(1, 1, 3, 3)),
        sample(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), attn_mask=constant_t(1, 1, 3, 3)),
        sample(t(1, 2, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), attn_mask=t(1, 1, 3, 3)),
        sample(t(1, 4, 3, 4), t(1, 2, 3, 4), t(1, 2, 3, 4), enable_gqa=True),
        sample(constant_t(1, 2, 3, 4), constant_t(1, 2, 3, 4), t(1, 2, 3, 4)),
        sample(t(1, 2, 3, 4), constant_t(1, 2, 3, 4), constant_t(1, 2, 3, 4)),
    ],
)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """A quarter each to query and key, half to the value; dropout is off."""
    query, key, value, attn_mask = attention_shares(query, key, value, attn_mask)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, **kwargs
    )


def attention_without_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Autograd's own gradient, for gradient × input."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, *args, **kwargs)


def value_only_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """CP-LRP: the attention weights are constants, all relevance goes to the value.

    torch takes another kernel for a mask that requires grad, so such a mask stays one.
    """
    mask = None if attn_mask is None else scale(attn_mask, 0)
    return attention_without_dropout(stop(query), stop(key), value, mask, *args, **kwargs)


# torch.nn.MultiheadAttention: projections, and attention by the kernel or written out.
_in_weight = constant_t(12, 4, positive=True)
_weights: tuple[Any, ...] = (4, 2, _in_weight, constant_t(12), None, None, False, 0.0)
_projection: tuple[Any, ...] = (constant_t(4, 4), constant_t(4))
register(
    [F.multi_head_attention_forward],
    composed,
    source="its parts",
    samples=[
        sample(*[t(3, 2, 4)] * 3, *_weights, *_projection),
        sample(*[t(3, 2, 4)] * 3, *_weights, *_projection, need_weights=False),
        sample(t(3, 2, 4), *[t(5, 2, 4)] * 2, *_weights, *_projection),
    ],
)
