"""Linear layers as what they hold: a weight, and perhaps a bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Affine", "is_bare", "is_plain_tensor", "kind_of_affine"]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer of GPT-2, whose weight is [in, out]."""
    rows = x.view(-1, x.shape[-1])
    flat = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    return flat.view(*x.shape[:-1], weight.shape[-1])


_KINDS: dict[str, Callable[..., Tensor]] = {
    "torch.nn.modules.linear.Linear": _linear,
    "transformers.pytorch_utils.Conv1D": _transposed,
}


def kind_of_affine(module: nn.Module) -> Callable[..., Tensor] | None:
    """How a module computes, if it is a linear layer and nothing else."""
    cls = type(module)
    compute = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
    if compute is None or module._parameters.get("weight") is None:
        return None  # such as one whose weight is computed, as when it is pruned
    return compute


@dataclass(frozen=True)
class Affine:
    """y = W x + b, with W as [out, in] whatever the layer keeps."""

    compute: Callable[..., Tensor]
    held: Tensor
    bias: Tensor | None

    @staticmethod
    def of(module: nn.Module) -> Affine:
        """Read a linear layer."""
        compute = kind_of_affine(module)
        assert compute is not None, "its kind was looked at before"
        parameters: dict[str, Any] = module._parameters
        return Affine(compute, parameters["weight"], parameters.get("bias"))

    @property
    def weight(self) -> Tensor:
        """[out, in]."""
        return self.held if self.compute is _linear else self.held.t()

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """What `torch.nn.functional.linear` takes beside x."""
        return self.weight, self.bias

    def split(self, split: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Affine]:
        """Two layers that together put out what this one does; `split` takes that apart."""
        weights = split(self.weight.t())
        biases = (None, None) if self.bias is None else split(self.bias)
        return [Affine(_linear, w.t(), b) for w, b in zip(weights, biases, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """[…, in] → […, out], as the layer computes it."""
        return self.compute(x, self.held, self.bias)


def is_plain_tensor(x: Any) -> bool:
    """Whether a parameter is a tensor of numbers: not quantised, not on the device meta."""
    return type(x) in (Tensor, nn.Parameter) and x.is_floating_point() and not x.is_meta


def is_bare(module: nn.Module) -> bool:
    """Whether nobody looks at what goes through a module, or has put a forward of theirs on it."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
