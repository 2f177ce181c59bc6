"""Sums of two operands: each gets the relevance of the part that it contributed.

Addition is linear, so autograd's own gradient is the rule (Achtibat et al. 2024, Eq. 8). A constant
summand, a bias or a position embedding, absorbs its share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Operation,
    constant_t,
    family,
    register,
    require_constant,
    rule,
    sample,
    spelled,
    t,
)

SOURCE = "AttnLRP Eq. 8"
x = t(2, 3)

register(
    spelled("add", "sub", "subtract", "rsub"),
    passthrough,
    source=SOURCE,
    samples=[sample(x, t(2, 3)), sample(x, t(3), alpha=0.5), sample(x, constant_t(2, 3))],
)
register(
    [Tensor.__rsub__], passthrough, source=SOURCE, samples=[sample(x, 1.0), sample(x, t(2, 3))]
)
register(spelled("neg", "negative", "positive"), passthrough, source=SOURCE, samples=[sample(x)])
register(
    spelled("add_", "sub_", "subtract_"),
    passthrough,
    source=SOURCE,
    samples=[sample(x, t(2, 3)), sample(x, t(3), alpha=0.5), sample(x, constant_t(2, 3))],
)
register(spelled("neg_", "negative_"), passthrough, source=SOURCE, samples=[sample(x)])


@rule(
    *spelled("lerp", "lerp_"),
    source=SOURCE,
    samples=[sample(x, t(2, 3), 0.25), sample(x, t(2, 3), constant_t(2, 3))],
)
@family
def interpolation(operation: Operation, start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """The sum (1 − w) start + w end, with a weight that is a constant."""
    require_constant(weight=weight)
    return operation(start, end, weight)
