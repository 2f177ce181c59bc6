"""The explicit rules of operations that are several in one, such as attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lxt.explicit import functional as lf
from lxt.explicit.check import checked_relevance, is_checking
from lxt.explicit.operations import epsilon, identity, opened, uniform
from lxt.gradients import compute_dtype
from lxt.rules.bilinear import constant_if_carrying
from lxt.rules.registry import Operation, require_constant

__all__ = ["attention", "explained", "layer_norm", "polar", "squared_difference"]


class explained_fn(Function):  # noqa: N801 - named as the other Functions
    """apply(value, explicit, *operands): the value of one function, the relevance by another.

    Both take the operands and have the same value; the second is made of explicit functions.
    """

    @staticmethod
    def forward(ctx: Any, value: Any, explicit: Any, *operands: Any) -> Tensor:
        """Keep the operands only: the explicit functions run in the backward pass."""
        ctx.explicit = explicit
        ctx.save_for_backward(*operands)
        return value(*operands)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The relevance that the explicit functions hand back."""
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        if is_checking():  # as a whole: its own constants, masked scores, are on no path
            shares = checked_relevance("explained_fn", out_relevance, leaves)
            return None, None, *shares
        with torch.enable_grad():
            y = ctx.explicit(*leaves)
        relevances = torch.autograd.grad(y, leaves, out_relevance, allow_unused=True)
        return None, None, *relevances


def explained(
    operation: Operation,
    explicit: Callable[..., Tensor],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Any:
    """The value of `operation`, and the relevance that `explicit`, of the same call, hands back."""
    call, carriers = opened(operation, args, kwargs)
    if not carriers:
        return operation(*args, **kwargs)
    # Constants may be parameters, which require grad again when the backward pass runs.
    args = [x.detach() if isinstance(x, Tensor) and not x.requires_grad else x for x in args]
    return explained_fn.apply(call, opened(explicit, args, kwargs)[0], *carriers)


def attention(eps: float, weights_are_constant: bool = False) -> Callable[..., Tensor]:
    """Scaled dot-product attention as softmax(q kᵀ · scale + mask) v, part by part.

    In CP-LRP the attention weights are constants (Ali et al. 2022).
    """

    def explicit(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        wide = compute_dtype(query.dtype)
        query, key, value = (x.to(wide) for x in (query, key, value))
        scores = lf.mul2(lf.matmul(query, key.mT, epsilon=eps), factor)
        if is_causal:
            attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            mask = attn_mask.detach() if weights_are_constant else attn_mask
            scores = lf.add2(scores, mask.to(wide), epsilon=eps)
        # A query that sees no key has no weights at all.
        blind = scores.isneginf().all(-1, keepdim=True)
        weights = lf.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
        return lf.matmul(weights, value, epsilon=eps)

    def rule(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        if weights_are_constant:  # the mask as well, but torch has another kernel for a constant
            query, key = map(constant_if_carrying, (query, key))
        operands = [query, key, value, attn_mask]
        named = {"is_causal": is_causal, **kwargs}
        dtype = query.dtype

        def in_its_dtype(*args: Any, **kwargs: Any) -> Tensor:
            return explicit(*args, **kwargs).to(dtype)

        return explained(
            lambda q, k, v, mask, **named: F.scaled_dot_product_attention(q, k, v, mask, **named),
            in_its_dtype,
            operands,
            named,
        )

    return rule


def layer_norm(epsilon: float) -> Callable[..., Tensor]:
    """Layer norm by `functional.layer_norm`, over however many dimensions."""

    def rule(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *rest: Any,
    ) -> Tensor:
        require_constant(weight=weight, bias=bias)
        if not input.requires_grad:
            return F.layer_norm(input, normalized_shape, weight, bias, eps)
        dims = len(normalized_shape)
        flat_weight, flat_bias = (None if p is None else p.flatten() for p in (weight, bias))
        return lf.layer_norm_grad_fn.apply(
            input.clone().flatten(-dims), flat_weight, flat_bias, eps, epsilon
        ).unflatten(-1, tuple(normalized_shape))

    return rule


def squared_difference(eps: float) -> Callable[..., Tensor]:
    """The mean (or sum) of (a − b)²: the ε-rule, the identity rule for squares, the ε-rule."""
    linear, squares = epsilon(eps).function, identity(eps, gates=False).function

    def explicit(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        each = squares(torch.square, linear(torch.sub, input, target))
        return linear(F.l1_loss, each, torch.zeros_like(each), *args, **kwargs)  # a plain mean

    def rule(*operands: Any, **named: Any) -> Tensor:
        return explained(F.mse_loss, explicit, operands, named)

    return rule


def polar(eps: float) -> Callable[..., Tensor]:
    """A complex number r cos φ + i r sin φ: the identity rule, and the uniform one for products."""
    curve, product = identity(eps, gates=False).function, uniform.function

    def explicit(abs: Tensor, angle: Tensor) -> Tensor:
        parts = (product(torch.mul, abs, curve(f, angle)) for f in (torch.cos, torch.sin))
        return torch.complex(*parts)

    def rule(*operands: Any, **named: Any) -> Tensor:
        return explained(torch.polar, explicit, operands, named)

    return rule
