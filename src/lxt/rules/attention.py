"""Attention as one operation, whatever kernel computes it.

softmax(q kᵀ · scale + mask) v is a product of a product: by the rules of products (Achtibat et al.
2024, Prop. 3.3) the value gets half, and query and key a quarter each. CP-LRP takes the weights as
constants, and the value gets all (Ali et al. 2022).

The forward pass is the kernel's that the model chose. So is the backward pass, but on a CPU where
one of our own takes less: it keeps query, key and value only, and computes what is
asked for. It is about as fast as torch's where attention is causal and long, and twice as fast
where weights are constants.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lxt.gradients import carries_relevance, differentiable_once, scale, stop
from lxt.rules.blockwise import Shares, attention_gradients, fits
from lxt.rules.elementary import composed
from lxt.rules.registry import constant_t, mask_t, register, rule, sample, t

__all__ = ["attention_without_dropout", "scaled_operands", "value_only_attention"]


def attention_shares(query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> Shares:
    """What part of autograd's own gradient each operand of attention gets; the mask as much as S.

    Where all of them carry relevance: a quarter, a quarter, and half.
    """
    weights_carry = any(carries_relevance(x) for x in (query, key, mask))
    to_weights = 0.5 if carries_relevance(value) else 1.0
    to_scores = to_weights / (2 if carries_relevance(query) and carries_relevance(key) else 1)
    return Shares(to_scores, to_scores, 0.5 if weights_carry else 1.0)


def scaled_operands(
    query: Tensor, key: Tensor, value: Tensor, mask: Any = None
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The operands of attention, each scaled to its share in the backward pass."""
    shares = attention_shares(query, key, value, mask)
    to_weights = 0.5 if carries_relevance(value) else 1.0
    return (
        scale(query, shares.query),
        scale(key, shares.key),
        scale(value, shares.value),
        scale(mask, to_weights) if carries_relevance(mask) else mask,
    )


_OWN_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SHORT = 64
"""So many tokens take torch's kernel less time than calling the operations of ours one by one."""


def has_own_backward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the backward pass in blocks takes a call: on a CPU, in one precision it knows.

    A mask that carries relevance has a gradient too, and torch takes another kernel for it.
    """
    return (
        query.device.type == "cpu"
        and query.dtype is key.dtype is value.dtype
        and query.dtype in _OWN_DTYPES
        and not carries_relevance(mask)
        and not torch.is_autocast_enabled("cpu")
        and fits(query, key, value, mask)
    )


def is_one_way(mask: Tensor | None, is_causal: bool) -> bool:
    """Whether queries don't see later keys, as the first one tells of a mask."""
    if mask is None:
        return is_causal
    if mask.dtype is not torch.bool or mask.shape[-2] == 1 or mask.shape[-1] == 1:
        return False
    return not mask[..., 0, 1:].any()


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        shares: Shares,
        options: dict[str, Any],
    ) -> Tensor:
        ctx.shares, ctx.options = shares, options
        ctx.save_for_backward(query, key, value if shares.query or shares.key else None, mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        pairs = zip(ctx.shares, ctx.needs_input_grad[:3], strict=True)
        shares = Shares(*(share if wanted else 0 for share, wanted in pairs))
        options = ctx.options
        found = attention_gradients(
            g,
            *ctx.saved_tensors,
            is_causal=options["is_causal"],
            scale=options.get("scale"),
            shares=shares,
        )
        return *found, None, None, None


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
    is_long = query.dim() > 1 and query.shape[-2] > _SHORT
    if (
        is_long
        and has_own_backward(query, key, value, attn_mask)
        and is_one_way(attn_mask, is_causal)
    ):
        shares = attention_shares(query, key, value)
        options = {"is_causal": is_causal, **kwargs}
        return _Attention.apply(query, key, value, attn_mask, shares, options)  # pyright: ignore[reportReturnType]
    query, key, value, attn_mask = scaled_operands(query, key, value, attn_mask)
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
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """CP-LRP: the attention weights are constants, all relevance goes to the value.

    torch takes another kernel for a mask that requires grad, so such a mask stays one.
    """
    query, key = stop(query), stop(key)
    if has_own_backward(query, key, value, attn_mask):
        options = {"is_causal": is_causal, **kwargs}
        return _Attention.apply(query, key, value, attn_mask, Shares(0, 0, 1), options)  # pyright: ignore[reportReturnType]
    mask = None if attn_mask is None else scale(attn_mask, 0)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, **kwargs
    )


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
