"""What a model does for its training only, and must not count for relevance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lxt.engine.callsite import caller

__all__ = ["TRAINING"]

# The hooks that transformers and peft put on embeddings when checkpointing is enabled, so that
# frozen layers get gradients. The embeddings they touch are not what is explained.
_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")


def requires_grad_(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """Mark a leaf as explained, unless a hook for training asks for it."""
    if caller().f_code.co_name in _HOOKS:
        return tensor
    return tensor.requires_grad_(requires_grad)


TRAINING: dict[Any, Any] = {Tensor.requires_grad_: requires_grad_}
