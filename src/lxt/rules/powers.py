"""Powers: secants through the origin, as for activations, or constants.

A root and a negative power scale a norm, hence are constants (Achtibat et al. 2024, Prop. 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt.gradients import Curve, secant
from lxt.rules.elementary import constant
from lxt.rules.registry import (
    Operation,
    Refusal,
    constant_t,
    family,
    in_place,
    positive_t,
    register,
    require_constant,
    require_real,
    rule,
    sample,
    t,
)
from lxt.rules.secants import SOURCE
from lxt.rules.written import refuse_sum_of_exponentials

POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)


def check_power(x: Any, exponent: Any) -> None:
    """Refuse an exponent that carries relevance, and what would divide by a sum of exponentials."""
    require_constant(exponent=exponent)
    if not isinstance(exponent, Tensor) and exponent < 0:
        refuse_sum_of_exponentials(x, "e / e.sum(dim, keepdim=True)")


@rule(
    *POWERS,
    source=SOURCE,
    samples=[
        sample(t(3, 5), 2),
        sample(t(3, 5), 3.0),
        sample(positive_t(3, 5), 1.5),
        sample(positive_t(3, 5), -0.5),
        sample(positive_t(3, 5), constant_t(5, positive=True)),
    ],
)
@family
def power(operation: Operation, x: Any, exponent: Any) -> Tensor:
    """xᵖ = x · xᵖ⁻¹ for p ≥ 1. A root or a negative power scales a norm: a constant (Prop. 3.4)."""
    check_power(x, exponent)
    if not isinstance(x, Tensor) or not x.requires_grad:
        return operation(x, exponent)
    require_real(x)
    at_least_one = exponent >= 1
    if isinstance(at_least_one, Tensor) and at_least_one.any() != at_least_one.all():
        raise Refusal("some exponents are below 1, some are not")
    if at_least_one.all() if isinstance(at_least_one, Tensor) else at_least_one:
        return secant(
            x,
            lambda v: operation(v, exponent),
            lambda v: v ** (exponent - 1),
            Curve(gates=False),
        )
    return constant.function(operation, x, exponent)


register(
    [Tensor.pow_, Tensor.__ipow__],
    in_place(power, torch.pow),
    source=SOURCE,
    samples=[sample(t(3, 5), 2)],
)
