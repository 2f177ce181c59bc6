"""Operations whose result counts as a constant: no relevance flows into it.

A denominator, the root in a norm, the deviation in a layer norm: Achtibat et al. 2024, Prop. 3.4.
They run without a graph, so that nothing behind them is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt.rules.elementary import constant
from lxt.rules.registry import (
    Operation,
    family,
    in_place,
    positive_t,
    register,
    sample,
    spelled,
    t,
)
from lxt.rules.written import refuse_exponential, refuse_sum_of_exponentials

SOURCE = "AttnLRP Prop. 3.4"


@family
def inverse(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One over the operand, as a constant; but not over a sum of exponentials, half a softmax."""
    refuse_sum_of_exponentials(x, "e / e.sum(dim, keepdim=True)")
    return constant.function(operation, x, *args, **kwargs)


@family
def norm(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A norm as a constant; but not one that sums exponentials up, half a softmax."""
    order = args[0] if args else kwargs.get("p", kwargs.get("ord"))
    if order == 1:
        refuse_exponential(x, "e / e.sum(dim, keepdim=True)")
    return constant.function(operation, x, *args, **kwargs)


for _operation, _rule in (
    (torch.rsqrt, constant),
    (torch.sqrt, constant),
    (torch.reciprocal, inverse),
):
    _name = _operation.__name__
    _samples = [sample(positive_t(2, 3))]
    register(spelled(_name), _rule, source=SOURCE, samples=_samples)
    # The operand itself becomes a constant: without a graph, it would keep its earlier gradient.
    register(spelled(f"{_name}_"), in_place(_rule, _operation), source=SOURCE, samples=_samples)
register(
    [torch.Tensor.__rdiv__, torch.Tensor.__rfloordiv__],  # pyright: ignore[reportAttributeAccessIssue]
    inverse,
    source=SOURCE,
    samples=[sample(positive_t(2, 3), 2.0)],
)
register(
    spelled("var", "std"),
    constant,
    source=SOURCE,
    samples=[sample(t(2, 3), dim=-1, keepdim=True)],
)
register(
    [*spelled("hypot"), torch.cdist, torch.pairwise_distance],
    constant,
    source=SOURCE,
    samples=[sample(t(2, 3), t(2, 3))],
)
register(
    spelled("norm", "vector_norm"),
    norm,
    source=SOURCE,
    samples=[sample(t(2, 3), dim=-1, keepdim=True), sample(t(2, 3), 1)],
)
