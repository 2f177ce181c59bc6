"""RMS norms that are written out: y = w · x · r with r = 1/√(mean(x²) + ε), a constant.

    ∂x = g · w · r                                         Achtibat et al. 2024, Prop. 3.4

Only r, one number for each token, is kept. Models differ in where they round to their own precision
and in whether the weight stands for w or for w − 1; which it is, the proof tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lxt.fusion.affine import is_plain_tensor
from lxt.fusion.proof import Run
from lxt.gradients import compute_dtype, differentiable_once
from lxt.rules.normalization import normalized_gradient

__all__ = ["NAME", "norm_candidates", "norm_width"]

NAME = "RMS norm"

Scaled = Callable[[Tensor, Tensor, torch.dtype], Tensor]


def _small(module: nn.Module) -> list[str]:
    """The attributes of a module that may be its ε."""
    return [name for name, v in module.__dict__.items() if isinstance(v, float) and 0 < v < 0.1]


def norm_width(module: nn.Module) -> int | None:
    """The number of channels that a module may be the RMS norm of: it holds one vector."""
    parameters = module._parameters
    if module._modules or module._buffers or len(parameters) != 1 or not _small(module):
        return None
    (weight,) = parameters.values()
    if not is_plain_tensor(weight) or weight is None or weight.dim() != 1:
        return None
    return weight.shape[0]


def _rounded_first(normed: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    normed = normed.to(dtype)
    return normed.mul_(weight) if weight.dtype is dtype else normed * weight


def _rounded_last(normed: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (normed * weight).to(dtype)


def _one_more(normed: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return normed.mul_(1.0 + weight.to(normed.dtype)).to(dtype)


def _reciprocal_root(x: Tensor) -> Tensor:
    return 1 / torch.sqrt(x)


_WEIGHTED: tuple[tuple[Scaled, int], ...] = (
    (_rounded_first, 0),
    (_one_more, 1),
    (_rounded_last, 0),
)


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        eps: float,
        invert: Callable[[Tensor], Tensor],
        scaled: Scaled,
        added: int,
    ) -> Tensor:
        with torch._C.DisableTorchFunction():
            wide = x.to(compute_dtype(x.dtype))
            r = invert(wide.pow(2).mean(-1, keepdim=True).add_(eps))
            ctx.save_for_backward(r, weight)
            ctx.added = added
            return scaled(wide * r, weight, x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        r, weight = ctx.saved_tensors
        weight = weight + ctx.added if ctx.added else weight
        found = normalized_gradient(g, r, weight, (-1,), centred=False)
        return found, None, None, None, None, None


def norm_candidates(module: nn.Module) -> Iterator[Run]:
    """What a module of this structure may compute."""
    (name,) = module._parameters
    for eps, invert, (scaled, added) in product(
        _small(module), (torch.rsqrt, _reciprocal_root), _WEIGHTED
    ):

        def run(
            module: nn.Module,
            x: Tensor,
            thrifty: bool,
            eps: str = eps,
            invert: Callable[[Tensor], Tensor] = invert,
            scaled: Scaled = scaled,
            added: int = added,
        ) -> Tensor:
            weight = module._parameters[name]
            return _Norm.apply(x, weight, module.__dict__[eps], invert, scaled, added)  # pyright: ignore[reportReturnType]

        yield run
