"""The ways in which a rule departs from autograd: scale, stop, or substitute the backward pass.

Every function here returns the forward value that the model would have computed, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lxt.engine.nodes import hands_on

__all__ = [
    "carries_relevance",
    "compute_dtype",
    "is_gate",
    "scale",
    "secant",
    "stop",
    "substitute",
]

Forward = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
Backward = Callable[..., Tensor]
Slope = Callable[[Tensor], Tensor]


def carries_relevance(value: Any) -> bool:
    """Whether `value` is a tensor that depends on the explained input (all else is a constant)."""
    return isinstance(value, Tensor) and value.requires_grad


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision for slopes, statistics and sums of `dtype`: float32 or more."""
    return torch.promote_types(dtype, torch.float32)


def stop(x: Tensor) -> Tensor:
    """`x` as a constant: its value, and no relevance to what it was computed from."""
    return x.detach()


def scale(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor` on the way back.

    The result is a view of `x`: hand it to an operation, never to the model, which may write to
    it in place.
    """
    return x if factor == 1 or not x.requires_grad else _Scale.apply(x, factor)  # pyright: ignore[reportReturnType]


def substitute(x: Tensor, forward: Forward, backward: Backward) -> Tensor:
    """`forward(x)` with a backward pass of its own.

    Args:
        x: the explained operand, of any shape.
        forward: maps `x` to the output and the tensors that the backward pass needs; runs without
            a graph.
        backward: maps the incoming gradient (shape of the output) and those tensors to the
            gradient of `x` (shape of `x`).

    """
    return _Substitute.apply(x, forward, backward)  # pyright: ignore[reportReturnType]


def secant(
    x: Tensor, operation: Callable[[Tensor], Tensor], slope: Slope, gates: bool = True
) -> Tensor:
    """`operation(x)`, element-wise, with the gradient g · slope(x) in place of g · operation′(x).

    Only `x` is kept for the backward pass; the slope is computed there, in float32 or more.
    `gates` marks the output for `is_gate`.
    """
    return _Secant.apply(x, operation, slope, gates)  # pyright: ignore[reportReturnType]


class _Scale(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return g * ctx.factor, None


class _Substitute(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Forward, backward: Backward) -> Tensor:
        output, saved = forward(x)
        ctx.save_for_backward(*saved)
        ctx.rule = backward
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return ctx.rule(g, *ctx.saved_tensors), None, None


class _Secant(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, operation: Callable[[Tensor], Tensor], slope: Slope, gates: bool
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        ctx.gates = gates
        version = x._version
        y = operation(x)
        if x._version != version:
            raise RuntimeError("an element-wise unit wrote to its own operand in place")
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        (x,) = ctx.saved_tensors
        slope = ctx.slope(x.to(compute_dtype(x.dtype)))
        return g * slope.to(g.dtype), None, None, None


# Nodes that hand on a value, or a part of it: looking through them finds where it was made.
_TRANSPARENT_NAMES = """
    View UnsafeView ReshapeAlias Transpose T Permute Unsqueeze Squeeze Expand ToCopy Clone
    Slice Select Index Split SplitWithSizes Unbind Alias AsStrided IndexSelect Repeat
    MaskedFill Cat
"""
_TRANSPARENT = frozenset(
    f"{name}Backward{number}" for name in _TRANSPARENT_NAMES.split() for number in range(3)
) | {"torch::autograd::CopyBackwards"}


def _scales(node: Any) -> bool:
    """Whether a node is a product, of autograd's own or of a Function that says so."""
    function = getattr(node, "_forward_cls", None)
    return node.name() == "MulBackward0" or getattr(function, "is_product", False)


def is_gate(x: Tensor) -> bool:
    """Whether `x` came straight out of a non-linearity: moved, masked or scaled at most."""
    node, output = x.grad_fn, x.output_nr
    while node is not None:
        sources = [source for source in node.next_functions if source[0] is not None]
        if hands_on(node):
            sources = [node.next_functions[output]]
        elif _scales(node):
            if len(sources) > 1:
                return False
        elif node.name() not in _TRANSPARENT:
            break
        elif len(sources) > 1 and node.name().endswith("CopyBackwards"):
            sources = sources[1:]  # what was copied, not what it was copied into
        node, output = sources[0] if sources else (None, 0)
    return isinstance(node, _Secant._backward_cls) and node.gates  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
