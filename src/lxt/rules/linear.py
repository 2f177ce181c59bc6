"""Linear maps and sums over a dimension: the ε-rule with ε → 0, which is autograd's own gradient.

    R_i = Σ_j x_i W_ji / (Σ_k W_jk x_k + b_j) · R_j        Achtibat et al. 2024, Eq. 8

In terms of gradients, R = x · g: the weights just carry g back, and a bias absorbs its share.
Maps whose weights may carry relevance themselves stand in `bilinear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Operation,
    Sample,
    family,
    index_t,
    offsets_t,
    register,
    require_constant,
    require_own,
    sample,
    spelled,
    t,
)

SOURCE = "AttnLRP Eq. 8"


def linear(*names: str, samples: list[Sample]) -> None:
    """Register operations that are linear in their first operand."""
    register(spelled(*names), passthrough, source=SOURCE, samples=samples)


x = t(2, 3, 4)

linear("sum", "nansum", "mean", "nanmean", samples=[sample(x, -1), sample(x, (0, 1), keepdim=True)])
linear("cumsum", samples=[sample(x, 1)])
linear("diff", samples=[sample(x)])
linear("rad2deg", "deg2rad", samples=[sample(x)])
linear("sum_to_size", samples=[sample(x, 2, 1, 4)])
linear("trace", samples=[sample(t(3, 3))])
tokens, table = index_t(6, below=5), t(5, 4)


@family
def lookup(operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """Rows of a table, or sums of them: linear in the table, where that is what is explained."""
    for operand in (*args, *kwargs.values()):
        require_own(operand)
    require_constant(per_sample_weights=kwargs.get("per_sample_weights"))
    return operation(*args, **kwargs)


register([F.embedding], lookup, source=SOURCE, samples=[sample(tokens, table)])
register([torch.embedding], lookup, source=SOURCE, samples=[sample(table, tokens)])
register(
    [F.embedding_bag],
    lookup,
    source=SOURCE,
    samples=[
        sample(tokens, table, offsets_t(0, 4)),
        sample(tokens, table, offsets_t(0), mode="sum"),
    ],
)
register(
    [torch.embedding_bag],
    lookup,
    source=SOURCE,
    samples=[sample(table, tokens, offsets_t(0, 4))],
)
linear("avg_pool1d", samples=[sample(t(1, 2, 6), 2)])
linear("avg_pool2d", samples=[sample(t(1, 2, 4, 4), 2)])
linear("avg_pool3d", samples=[sample(t(1, 1, 2, 4, 4), 2)])
linear("adaptive_avg_pool1d", samples=[sample(t(1, 2, 6), 2)])
linear("adaptive_avg_pool2d", samples=[sample(t(1, 2, 4, 4), 2)])
linear("adaptive_avg_pool3d", samples=[sample(t(1, 1, 2, 4, 4), 2)])
linear("interpolate", "upsample", samples=[sample(t(1, 2, 3, 3), scale_factor=2.0)])
