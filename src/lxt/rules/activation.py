"""Element-wise non-linearities: the secant through the origin stands in for the derivative.

Where f(x) − f(0) has a closed form it is used, so that nothing is divided by a small number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.rules.registry import (
    Family,
    Operation,
    Refusal,
    Sample,
    constant_t,
    family,
    in_place,
    positive_t,
    register,
    sample,
    spelled,
    t,
)
from lxt.rules.secants import SOURCE, at_origin, curve, elementwise, ratio

__all__ = ["activation", "gelu_slope", "tanh_gelu_slope"]

DEFAULT_SAMPLES = (sample(t(3, 5)),)


def activation(
    *names: str,
    samples: Sequence[Sample] = DEFAULT_SAMPLES,
    rule: Family | None = None,
    gates: bool = True,
):
    """Register these operations and their in-place twins with `rule`, or with a decorated slope."""

    def decorate(slope: Callable[..., Tensor]) -> Callable[..., Tensor]:
        add(elementwise(slope, gates))
        return slope

    def add(rule: Family) -> None:
        for name in names:
            operations = list(spelled(name))
            register(operations, rule, source=SOURCE, samples=samples)
            twins = spelled(f"{name}_")
            register(twins, in_place(rule, operations[0]), source=SOURCE, samples=samples)

    if rule:
        add(rule)
    return decorate


# --- closed forms: f(x) = x · s(x) ---------------------------------------------------------------


@activation("relu")
def relu_slope(x: Tensor) -> Tensor:
    """ReLU: the step function."""
    return (x > 0).to(x.dtype)


@activation("leaky_relu", samples=(sample(t(3, 5), 0.2),))
def leaky_relu_slope(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """LeakyReLU: 1 or the negative slope."""
    return torch.where(x > 0, torch.ones_like(x), negative_slope)


@activation("prelu", samples=(sample(t(3, 5), constant_t(5)), sample(t(2, 3, 2), constant_t(1))))
def prelu_slope(x: Tensor, weight: Tensor) -> Tensor:
    """PReLU: 1 or the weight, which is one number or one for each channel, in dimension 1."""
    if weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x > 0, torch.ones_like(x), weight.to(x.dtype))


@activation("silu")
def silu_slope(x: Tensor) -> Tensor:
    """SiLU = x · σ(x)."""
    return x.sigmoid()


@activation("gelu", samples=(sample(t(3, 5)), sample(t(3, 5), approximate="tanh")))
def gelu_slope(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU = x · Φ(x), with Φ exact or approximated by tanh."""
    if approximate == "tanh":
        return tanh_gelu_slope(x)
    return (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)


def tanh_gelu_slope(x: Tensor) -> Tensor:
    """½ (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    inner = (x * x).mul_(0.044715).add_(1).mul_(x).mul_(math.sqrt(2 / math.pi))
    return inner.tanh_().add_(1).mul_(0.5)


@activation("mish")
def mish_slope(x: Tensor) -> Tensor:
    """Mish = x · tanh(softplus(x))."""
    return torch.tanh(F.softplus(x))


@activation("hardswish")
def hardswish_slope(x: Tensor) -> Tensor:
    """Hardswish = x · ReLU6(x + 3) / 6."""
    return F.relu6(x + 3) / 6


@activation("hardsigmoid")
def hardsigmoid_slope(x: Tensor) -> Tensor:
    """f(x) − f(0) = clamp(x/6, ±½)."""
    return torch.where(at_origin(x), 1 / 6, (x / 6).clamp(-0.5, 0.5) / x)


@activation("square", gates=False)
def square_slope(x: Tensor) -> Tensor:
    """x² = x · x."""
    return x


@activation("abs", "absolute", gates=False)
def abs_slope(x: Tensor) -> Tensor:
    """|x| = x · sign(x)."""
    return x.sign()


# --- closed forms of f(x) − f(0) for f(0) ≠ 0, which would cancel near 0 --------------------------


@activation("sigmoid", "expit")
def sigmoid_slope(x: Tensor) -> Tensor:
    """σ(x) − ½ = tanh(x/2) / 2."""
    return torch.where(at_origin(x), 0.25, (x / 2).tanh() / (2 * x))


@activation("cos", gates=False)
def cos_slope(x: Tensor) -> Tensor:
    """cos(x) − 1 = −2 sin²(x/2)."""
    half = x / 2
    return torch.where(at_origin(x), -half, -half.sin() * (half.sin() / half))


@activation("sinc", gates=False)
def sinc_slope(x: Tensor) -> Tensor:
    """sin(z)/z − 1 at z = πx, by its series near 0."""
    z = math.pi * x
    square = z * z
    series = 1 - square / 20 * (1 - square / 42 * (1 - square / 72))
    near = z.abs() < 0.1
    ratio = (torch.sinc(x) - 1) / torch.where(near, 1.0, x)
    return torch.where(near, -(math.pi**2) / 6 * x * series, ratio)


def softplus_difference(x: Tensor) -> Tensor:
    """log(1 + eˣ) − log 2 = log(1 + (eˣ − 1)/2), without overflow."""
    return torch.where(x > 20, x - math.log(2), torch.log1p(x.clamp(max=20).expm1() / 2))


@activation("softplus", samples=(sample(t(3, 5)), sample(t(3, 5), 2.0, 1.0)))
def softplus_slope(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """softplus(x) − softplus(0); over the threshold torch takes x for softplus(x)."""
    difference = softplus_difference(beta * x)
    difference = torch.where(beta * x > threshold, beta * x - math.log(2), difference)
    return torch.where(at_origin(x), 0.5, difference / (beta * x))


@activation("logsigmoid")
def logsigmoid_slope(x: Tensor) -> Tensor:
    """Log σ(x) = −softplus(−x)."""
    return softplus_slope(-x)


# --- no closed form: from the values -------------------------------------------------------------


@family
def random_slope(
    operation: Operation,
    x: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """RReLU, which in training mode draws its slopes anew in each call."""
    if training and x.requires_grad:
        raise Refusal("in training mode its slopes are random; call model.eval() first")
    return ratio.function(operation, x, lower, upper, training, *args, **kwargs)


activation("tanh", "softsign", "tanhshrink", "elu", "selu", "celu", "relu6", rule=ratio)
activation("hardtanh", "hardshrink", "softshrink", rule=ratio)
activation("threshold", samples=[sample(t(3, 5), 0.1, 0.5)], rule=ratio)
activation("rrelu", samples=[sample(t(3, 5), 0.1, 0.3, False)], rule=random_slope)
activation("erf", "erfc", "expm1", rule=curve)
activation("sin", "tan", "sinh", "cosh", "asinh", "atan", rule=curve)
activation("asin", "acos", "atanh", samples=[sample(positive_t(3, 5))], rule=curve)
activation("erfinv", samples=[sample(positive_t(3, 5))], rule=curve)
activation("clamp", "clip", samples=[sample(t(3, 5), -0.5, 0.7), sample(t(3, 5), 0.3)], rule=curve)
activation("clamp_min", "clamp_max", samples=[sample(t(3, 5), 0.2)], rule=curve)

# --- steps: autograd's gradient is 0, but a secant needs no derivative ----------------------------

activation("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", rule=curve)
