"""Operations whose result counts as a constant: no relevance flows into it.

A denominator, the root in a norm, the deviation in a layer norm: Achtibat et al. 2024, Prop. 3.4.
They run without a graph, so that nothing behind them is kept for the backward pass.
"""

from __future__ import annotations

import torch

from lxt.rules.elementary import constant
from lxt.rules.registry import in_place, positive_t, register, sample, spelled, t

SOURCE = "AttnLRP Prop. 3.4"

for _operation in (torch.rsqrt, torch.sqrt, torch.reciprocal):
    _name = _operation.__name__
    _samples = [sample(positive_t(2, 3))]
    register(spelled(_name), constant, source=SOURCE, samples=_samples)
    # The operand itself becomes a constant: without a graph, it would keep its earlier gradient.
    register(spelled(f"{_name}_"), in_place(constant, _operation), source=SOURCE, samples=_samples)
register(
    [torch.Tensor.__rdiv__, torch.Tensor.__rfloordiv__],  # pyright: ignore[reportAttributeAccessIssue]
    constant,
    source=SOURCE,
    samples=[sample(positive_t(2, 3), 2.0)],
)
register(
    spelled("var", "std", "norm", "vector_norm"),
    constant,
    source=SOURCE,
    samples=[sample(t(2, 3), dim=-1, keepdim=True)],
)
