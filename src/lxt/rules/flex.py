"""The operator of `torch.nn.attention.flex_attention`: attention with a user's function on scores.

Its kernel differentiates that function itself, so no rule reaches what is inside. Masks and biases
are linear and need none; soft-capping is not, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lxt.gradients import stop
from lxt.rules.attention import scaled_operands
from lxt.rules.bilinear import product, quotient
from lxt.rules.elementary import passthrough
from lxt.rules.registry import REGISTRY, Operation, Refusal, family, operation_name

__all__ = ["flex_attention", "value_only_flex_attention"]


class _LinearityProbe(TorchFunctionMode):
    """Refuses functions of a score that are not linear in it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.grad_fn is not None:
            entry = REGISTRY.get(func)
            if entry is None or entry.rule not in (passthrough, product, quotient):
                raise Refusal(
                    f"its score_mod is not linear in the score ({operation_name(func)}); load the "
                    'model with attn_implementation="eager"'
                )
        return result


def require_linear(score_mod: Callable[..., Tensor], query: Tensor) -> None:
    """Try `score_mod` on one score, and refuse it if it is not linear there."""
    index = torch.zeros((), dtype=torch.int32, device=query.device)
    score = torch.zeros((), dtype=query.dtype, device=query.device, requires_grad=True)
    with _LinearityProbe():
        score_mod(score, index, index, index, index)


@family
def flex_attention(
    operation: Operation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    *rest: Any,
) -> Any:
    """A quarter each to query and key, half to the value, as for any attention."""
    if query.requires_grad or key.requires_grad:
        require_linear(score_mod, query)
    query, key, value, _ = scaled_operands(query, key, value)
    return operation(query, key, value, score_mod, *rest)


@family
def value_only_flex_attention(
    operation: Operation, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> Any:
    """CP-LRP: the attention weights are constants, all relevance goes to the value."""
    return operation(stop(query), stop(key), value, *rest)
