"""The three rules that a model's own code can be written with, in gradient × input.

Relevance is activation · gradient (Arras et al. 2025), so a rule is a change of the gradient. A
model under a composite of this library needs none of them: they are for code that spells its rules
out, and for `lxt.efficient.patches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lxt.gradients import compute_dtype, stop

__all__ = [
    "divide_gradient",
    "divide_gradient_fn",
    "identity_rule_implicit",
    "identity_rule_implicit_fn",
    "stop_gradient",
]


def identity_rule_implicit(fn: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """`fn(input)` with the gradient g · fn(x) / x: all relevance goes to the operand.

    The identity rule, Achtibat et al. 2024, Eq. 9. As in LXT the quotient is fn(x) / (x + 1e-10);
    where x is too small for that, which LXT divides by all the same, it is the derivative fn′(0).

    Args:
        fn: an element-wise function.
        input: its operand, of any shape.

    """
    return identity_rule_implicit_fn.apply(fn, input)  # pyright: ignore[reportReturnType]


def divide_gradient(input: Tensor, factor: float = 2) -> Tensor:
    """`input` with its gradient divided by `factor`.

    The uniform rule for a product of `factor` operands, Achtibat et al. 2024, Eq. 7: put it on the
    result, or on each operand.
    """
    return divide_gradient_fn.apply(input, factor)  # pyright: ignore[reportReturnType]


def stop_gradient(input: Tensor) -> Tensor:
    """`input` as a constant, as attention weights and gates are in CP-LRP (Ali et al. 2022)."""
    return stop(input)


class identity_rule_implicit_fn(Function):  # noqa: N801 - LXT's name
    """The autograd Function of `identity_rule_implicit`."""

    @staticmethod
    def forward(
        ctx: Any, fn: Callable[[Tensor], Tensor], input: Tensor, epsilon: float = 1e-10
    ) -> Tensor:
        """Keep x and fn(x); x may be written to no more."""
        output = fn(input.clone())  # which it may write to, as in-place activations do
        ctx.save_for_backward(input, output)
        ctx.fn, ctx.epsilon = fn, epsilon
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient g · fn(x) / (x + ε)."""
        (g,) = gradients
        input, output = ctx.saved_tensors
        x = input.to(compute_dtype(input.dtype))
        near = x.abs() <= 100 * ctx.epsilon
        slope = output / torch.where(near, 1.0, x + ctx.epsilon)
        if near.any():
            with torch.enable_grad():
                origin = torch.zeros_like(input).requires_grad_()
                (derivative,) = torch.autograd.grad(ctx.fn(origin.clone()).sum(), origin)
            slope = torch.where(near, derivative, slope)
        gradient = g.to(slope.dtype) * slope
        if g.dtype is not slope.dtype:  # whose range the quotient leaves for a small x
            limit = torch.finfo(g.dtype).max
            gradient = torch.where(gradient.isfinite(), gradient.clamp(-limit, limit), gradient).to(
                g.dtype
            )
        return None, gradient, None


class divide_gradient_fn(Function):  # noqa: N801 - LXT's name
    """The autograd Function of `divide_gradient`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, factor: float = 2) -> Tensor:
        """A copy, which a model may write to."""
        ctx.factor = factor
        return input.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient g / factor."""
        (g,) = gradients
        return g / ctx.factor, None
