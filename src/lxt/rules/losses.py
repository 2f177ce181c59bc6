"""Losses, where one is what is explained, or a model computes one on the way.

A squared difference is the square of a linear map, with the secant of a square (Achtibat et al.
2024, Eq. 9): half of autograd's gradient. An absolute one has autograd's own, and a cross-entropy
is a log-softmax, linearised at its operand (Prop. 3.1), of which one element is picked.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import carries_relevance, scale
from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Operation,
    constant_t,
    family,
    index_t,
    register,
    require_constant,
    rule,
    sample,
    t,
)

__all__ = ["classes", "mse_loss"]

SOURCE = "AttnLRP Eq. 9, Prop. 3.1"


@rule(
    F.mse_loss,
    source=SOURCE,
    samples=[sample(t(2, 3), t(2, 3)), sample(t(2, 3), constant_t(2, 3), reduction="sum")],
)
def mse_loss(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(a − b)², whose secant is half the derivative."""
    require_constant(weight=kwargs.get("weight"))
    input, target = (scale(x, 0.5) if carries_relevance(x) else x for x in (input, target))
    return F.mse_loss(input, target, *args, **kwargs)


register(
    [F.l1_loss],
    passthrough,
    source=SOURCE,
    samples=[sample(t(2, 3), t(2, 3)), sample(t(2, 3), constant_t(2, 3), reduction="sum")],
)


def check_classes(input: Tensor, target: Tensor, weight: Any = None, *_: Any, **__: Any) -> None:
    """Refuse classes, or their weights, that carry relevance: the loss would be a product."""
    require_constant(target=target, weight=weight)


@rule(
    F.cross_entropy,
    F.nll_loss,
    source=SOURCE,
    samples=[sample(t(3, 5), index_t(3, below=5))],
)
@family
def classes(operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """Log-probabilities of classes that are constants, as their weights are."""
    check_classes(*args, **kwargs)
    return operation(*args, **kwargs)
