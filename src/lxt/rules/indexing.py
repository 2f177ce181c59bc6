"""Operations that pick values by place or by size, and write values to a place.

What is picked is a matter of indices and masks, which are constants; the picking is linear, so
autograd's own gradient is the rule (Achtibat et al. 2024, Eq. 8). A maximum hands its relevance to
the winner.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import carries_relevance
from lxt.rules.bilinear import constant_if_carrying
from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Operation,
    Refusal,
    Sample,
    constant_t,
    family,
    index_t,
    made_constant,
    mask_t,
    register,
    rule,
    sample,
    spelled,
    t,
)


def picks(*names: str, samples: list[Sample]) -> None:
    """Register operations that pick values or write them to a place."""
    register(spelled(*names), passthrough, source="picks values", samples=samples)


x = t(3, 4)
rows = index_t(2, below=3)

register(
    [Tensor.__getitem__],
    passthrough,
    source="picks values",
    samples=[sample(x, (slice(None), 1)), sample(x, rows), sample(x, (..., None, 2))],
)
register(
    [Tensor.__setitem__],
    passthrough,
    source="picks values",
    samples=[
        sample(x, (slice(None), 1), t(3)),
        sample(x, mask_t(3, 4), 0.5),
        sample(constant_t(3, 4), rows, t(2, 4)),
    ],
)

picks("gather", samples=[sample(x, 1, index_t(3, 2, below=4))])
picks("take_along_dim", samples=[sample(x, index_t(3, 2, below=4), 1)])
picks("take", samples=[sample(x, index_t(5, below=12))])
picks("index_select", samples=[sample(x, 0, rows)])
picks("masked_select", samples=[sample(x, mask_t(3, 4))])
picks("masked_fill", samples=[sample(x, mask_t(3, 4), -3.0)])
register(
    [torch.where],
    passthrough,
    source="picks values",
    samples=[sample(mask_t(3, 4), x, x), sample(mask_t(3, 4), x, constant_t(3, 4))],
)
register(
    [Tensor.where],
    passthrough,
    source="picks values",
    samples=[sample(x, mask_t(3, 4), x), sample(x, mask_t(3, 4), 0.5)],
)
picks("roll", samples=[sample(x, 1, 0)])
picks("flip", samples=[sample(x, (0,))])
picks("rot90", "fliplr", "flipud", samples=[sample(x)])
picks("scatter", samples=[sample(x, 1, index_t(3, 1, below=4), t(3, 1))])
picks("scatter_add", samples=[sample(x, 1, index_t(3, 2, below=4), t(3, 2))])
picks("index_add", "index_copy", samples=[sample(x, 0, index_t(1, below=3), t(1, 4))])
picks("index_fill", samples=[sample(x, 0, rows, 0.5)])
picks("masked_scatter", samples=[sample(x, mask_t(3, 4), t(12))])
picks("index_put", samples=[sample(x, (index_t(1, below=3),), t(1, 4))])
picks("select_scatter", samples=[sample(x, t(3), 1, 2)])
picks("slice_scatter", samples=[sample(x, t(3, 2), 1, 0, 2)])
picks("nan_to_num", "nan_to_num_", samples=[sample(x)])
picks("masked_fill_", samples=[sample(x, mask_t(3, 4), -3.0)])
picks("scatter_", samples=[sample(x, 1, index_t(3, 1, below=4), t(3, 1))])
picks("scatter_add_", samples=[sample(x, 1, index_t(3, 2, below=4), t(3, 2))])
picks("index_add_", "index_copy_", samples=[sample(x, 0, index_t(1, below=3), t(1, 4))])
picks("index_fill_", samples=[sample(x, 0, rows, 0.5)])
picks("masked_scatter_", samples=[sample(x, mask_t(3, 4), t(12))])
picks("index_put_", samples=[sample(x, (index_t(1, below=3),), t(1, 4), accumulate=True)])


@family
def overwrite(operation: Operation, x: Tensor, *args: Any) -> Tensor:
    """Write constants over all of `x`, which then is a constant; over a part of it, as autograd."""
    result = operation(x, *args)
    value_carries = any(map(carries_relevance, args))
    return result if value_carries or x._is_view() else made_constant(result)


register(spelled("fill_"), overwrite, source="writes constants", samples=[sample(x, 0.5)])
register(spelled("zero_"), overwrite, source="writes constants", samples=[sample(x)])

# The winner takes all: linear in the values that win.
picks("topk", samples=[sample(x, 2)])
picks("sort", "msort", samples=[sample(x)])
picks("max", "min", samples=[sample(x), sample(x, 1), sample(x, t(3, 4))])
picks("amax", "amin", samples=[sample(x, (1,))])
picks("maximum", "minimum", "fmax", "fmin", samples=[sample(x, t(3, 4))])
picks("cummax", "cummin", samples=[sample(x, 1)])
picks("median", "nanmedian", samples=[sample(x), sample(x, 1)])
picks("quantile", "nanquantile", samples=[sample(x, 0.25, dim=1)])
picks("aminmax", samples=[sample(x, dim=1)])
picks("kthvalue", samples=[sample(x, 2)])
picks("max_pool1d", samples=[sample(t(1, 2, 6), 2)])
picks("max_pool3d", samples=[sample(t(1, 2, 2, 4, 4), 2)])
picks("max_pool2d", samples=[sample(t(1, 2, 4, 4), 2)])
picks("adaptive_max_pool1d", samples=[sample(t(1, 2, 6), 2)])
picks("adaptive_max_pool2d", samples=[sample(t(1, 2, 4, 4), 2)])


@family
def reduce_at(
    operation: Operation, x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, **kw: Any
) -> Tensor:
    """Write sums, means, maxima or minima to places; a product is none of these."""
    if reduce == "prod" and any(map(carries_relevance, (x, src))):
        raise Refusal("it multiplies what it writes, and no rule says by how many factors")
    return operation(x, dim, index, src, reduce, **kw)


register(
    spelled("scatter_reduce", "scatter_reduce_"),
    reduce_at,
    source="picks values",
    samples=[
        sample(x, 1, index_t(3, 2, below=4), t(3, 2), "mean"),
        sample(x, 1, index_t(3, 2, below=4), src=t(3, 2), reduce="amax", include_self=False),
    ],
)


@rule(
    F.grid_sample,
    source="AttnLRP Eq. 8",
    samples=[
        sample(t(1, 2, 3, 3), constant_t(1, 2, 2, 2), align_corners=False),
        sample(t(1, 2, 3, 3), t(1, 2, 2, 2), align_corners=True),
    ],
)
def grid_sample(input: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Interpolated values at places: linear in the values; where to look is a matter of places.

    So the grid is a constant, as an index is, also where a model computes it (deformable
    attention), and all relevance goes to what is seen there.
    """
    return F.grid_sample(input, constant_if_carrying(grid), *args, **kwargs)
