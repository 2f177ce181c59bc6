"""Products of N factors that are parts of a tensor, and of normalised ones.

Each factor gets 1/N (Achtibat et al. 2024, Prop. 3.3); norms are constants (Prop. 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import carries_relevance, scale, surrogate
from lxt.rules.bilinear import PRODUCT, product, share
from lxt.rules.registry import Operation, family, register, rule, sample, spelled, t


@rule(*spelled("prod"), source=PRODUCT, samples=[sample(t(3, 2)), sample(t(3, 2), 1, keepdim=True)])
@family
def product_over(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The product over all of a tensor, or over a dimension of length N: 1/N to each factor."""
    dim = args[0] if args and isinstance(args[0], int) else kwargs.get("dim")
    factors = x.numel() if dim is None else x.shape[dim]
    return operation(scale(x, 1 / max(factors, 1)), *args, **kwargs)


@rule(*spelled("cumprod"), source=PRODUCT, samples=[sample(t(3, 2), 0), sample(t(3, 2), dim=-1)])
@family
def cumulative_product(
    operation: Operation, x: Tensor, dim: int, *args: Any, **kwargs: Any
) -> Tensor:
    """Products of the first 1, 2, … N elements: 1/n to each of n factors."""
    if not carries_relevance(x):
        return operation(x, dim, *args, **kwargs)

    def value(v: Tensor) -> Tensor:
        return operation(v, dim, *args, **kwargs)

    def stand_in(v: Tensor) -> Tensor:
        shape = [-1 if n == dim % v.dim() else 1 for n in range(v.dim())]
        count = torch.arange(1, v.shape[dim] + 1, dtype=v.dtype, device=v.device).reshape(shape)
        y = value(v)
        return y / count + (y - y / count).detach()

    return surrogate(value, stand_in, [x])


_chain = (t(2, 3), t(3, 4), t(4, 2))


@rule(torch.chain_matmul, source=PRODUCT, samples=[sample(*_chain)])
@rule(torch.linalg.multi_dot, source=PRODUCT, samples=[sample([*_chain])])
@family
def chain(operation: Operation, *matrices: Any, **kwargs: Any) -> Tensor:
    """A product of N matrices, given one by one or in a list."""
    if len(matrices) == 1:
        return operation(share(matrices[0]), **kwargs)
    return operation(*share(matrices), **kwargs)


register(spelled("cross"), product, source=PRODUCT, samples=[sample(t(2, 3), t(2, 3), dim=1)])
register(spelled("vdot"), product, source=PRODUCT, samples=[sample(t(3), t(3))])


@rule(
    F.cosine_similarity,
    source="AttnLRP Prop. 3.3, 3.4",
    samples=[sample(t(3, 4), t(3, 4)), sample(t(3, 4), t(1, 4), dim=-1)],
)
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """A product of two vectors, half to each, over their norms, which are constants."""
    n = sum(map(carries_relevance, (x1, x2)))

    def value(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a, b, dim, eps)

    def stand_in(a: Tensor, b: Tensor) -> Tensor:
        norms = [x.detach().norm(2, dim, keepdim=True).clamp_min(eps) for x in (a, b)]
        return (scale(a, 1 / n) / norms[0] * scale(b, 1 / n) / norms[1]).sum(dim)

    return surrogate(value, stand_in, (x1, x2)) if n else value(x1, x2)
