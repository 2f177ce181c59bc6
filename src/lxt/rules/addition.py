"""Sums of two operands: each gets the relevance of the part that it contributed.

Addition is linear, so autograd's own gradient is the rule (Achtibat et al. 2024, Eq. 8). A constant
summand, a bias or a position embedding, absorbs its share.
"""

from __future__ import annotations

from torch import Tensor

from lxt.rules.elementary import passthrough
from lxt.rules.registry import constant_t, register, sample, spelled, t

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
