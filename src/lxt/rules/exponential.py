"""Exponentials and logarithms, and what they make of softmax where a model writes it out.

An exponential has the secant from f(0) = 1, which absorbs; the exponential of a log-probability is
a probability, and has the rule of softmax (Achtibat et al. 2024, Prop. 3.1).

A logarithm has no value at 0 that could absorb. It has the identity rule as Eq. 9 states it for any
element-wise function, R_x = R_y, from the slope log(x)/x: all that it puts out is its operand's.
The logarithm of a probability is a log-probability, linearised at its operand as softmax is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lxt.gradients import carries_relevance
from lxt.rules.elementary import constant, passthrough
from lxt.rules.registry import (
    Operation,
    family,
    in_place,
    positive_t,
    register,
    rule,
    sample,
    spelled,
    t,
)
from lxt.rules.secants import Elementwise, at_origin, curve, replaced
from lxt.rules.written import (
    is_log_probability,
    is_probability,
    refuse_exponential,
    refuse_exponential_of_logsumexp,
    refuse_sum_of_exponentials,
)

__all__ = [
    "EXPONENTIALS_WITHOUT_SOFTMAX",
    "check_logarithm",
    "exponential",
    "log1p",
    "logarithm",
]

SOURCE = "AttnLRP Eq. 9, Prop. 3.1"

Slope = Callable[..., Tensor]


def exp_slope(x: Tensor) -> Tensor:
    """exp(x) − 1 = expm1(x)."""
    return torch.where(at_origin(x), 1.0, x.expm1() / x)


def exp2_slope(x: Tensor) -> Tensor:
    """2ˣ − 1 = expm1(x · ln 2)."""
    return torch.where(at_origin(x), math.log(2), (x * math.log(2)).expm1() / x)


def rpow_slope(x: Tensor, base: float) -> Tensor:
    """bˣ − 1 = expm1(x · ln b)."""
    log_base = math.log(base)
    return torch.where(at_origin(x), log_base, (x * log_base).expm1() / x)


def exponential(slope: Slope, *, of_probability: Slope | None) -> Elementwise:
    """The rule of an exponential with the secant `slope`.

    `of_probability` is the slope where it makes a probability of its logarithm; None says that a
    softmax is a constant.
    """

    def apply(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not carries_relevance(x) or not is_log_probability(x):
            refuse_exponential_of_logsumexp(x)
            return replaced(slope, operation, x, args, kwargs, gates=False)
        if of_probability is None:
            return constant.function(operation, x, *args, **kwargs)
        return replaced(of_probability, operation, x, args, kwargs, gates=False)

    return Elementwise(apply, "exponential", gates=False)


def exp_derivative(x: Tensor) -> Tensor:
    """The derivative of exp."""
    return x.exp()


def exp2_derivative(x: Tensor) -> Tensor:
    """The derivative of 2ˣ."""
    return x.exp2() * math.log(2)


def rpow_derivative(x: Tensor, base: float) -> Tensor:
    """The derivative of bˣ."""
    return base**x * math.log(base)


EXPONENTIALS_WITHOUT_SOFTMAX: dict[Operation, Any] = {}
"""The exponentials in CP-LRP, where a softmax is a constant."""


def _register(name: str, slope: Slope, derivative: Slope) -> None:
    attention = exponential(slope, of_probability=derivative)
    constant_weights = exponential(slope, of_probability=None)
    (operation, *others) = spelled(name)
    operations, twins = (operation, *others), tuple(spelled(f"{name}_"))
    samples = [sample(t(3, 5))]
    register(operations, attention, source=SOURCE, samples=samples)
    register(twins, in_place(attention, operation), source=SOURCE, samples=samples)
    EXPONENTIALS_WITHOUT_SOFTMAX.update(
        {
            **dict.fromkeys(operations, constant_weights),
            **dict.fromkeys(twins, in_place(constant_weights, operation)),
        }
    )


_register("exp", exp_slope, exp_derivative)
_register("exp2", exp2_slope, exp2_derivative)
register(
    [Tensor.__rpow__],
    exponential(rpow_slope, of_probability=rpow_derivative),
    source=SOURCE,
    samples=[sample(t(3, 5), 2.0)],
)
EXPONENTIALS_WITHOUT_SOFTMAX[Tensor.__rpow__] = exponential(rpow_slope, of_probability=None)


def check_logarithm(x: Any) -> None:
    """Refuse the logarithm of what is made of exponentials: together they are another function.

    Raises:
        Refusal: `x` is a sum of exponentials, or one of them, shifted or scaled at most.
    """
    refuse_sum_of_exponentials(x, "torch.logsumexp")
    refuse_exponential(x, "torch.nn.functional.softplus, or torch.logsumexp for a sum")


def logarithm(of_probability: Slope | None = None) -> Elementwise:
    """The rule of a logarithm, by its values; `of_probability` is the slope at a probability."""

    def apply(operation: Operation, x: Tensor) -> Tensor:
        if not carries_relevance(x):
            return operation(x)
        check_logarithm(x)
        slope = of_probability or (lambda v: derivative(operation, v))
        if not is_probability(x):
            slope = lambda v: operation(v) / v  # noqa: E731
        return replaced(slope, operation, x, (), {}, gates=False)

    return Elementwise(apply, "logarithm", gates=False)


def derivative(operation: Operation, x: Tensor) -> Tensor:
    """The derivative of an element-wise operation."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (result,) = torch.autograd.grad(operation(leaf).sum(), leaf)
    return result


for _name in ("log", "log2", "log10"):
    (_operation, *_others) = spelled(_name)
    _rule, _samples = logarithm(), [sample(positive_t(3, 5))]
    register((_operation, *_others), _rule, source=SOURCE, samples=_samples)
    register(spelled(f"{_name}_"), in_place(_rule, _operation), source=SOURCE, samples=_samples)


def _log1p(operation: Operation, x: Tensor) -> Tensor:
    check_logarithm(x)
    return curve.function(operation, x)


log1p = Elementwise(_log1p, "log1p", gates=False)
"""log(1 + x), by its secant; that of an exponential is a softplus, written out."""

register(spelled("log1p"), log1p, source="AttnLRP Eq. 9", samples=[sample(positive_t(3, 5))])
register(
    spelled("log1p_"),
    in_place(log1p, torch.log1p),
    source="AttnLRP Eq. 9",
    samples=[sample(positive_t(3, 5))],
)


@rule(*spelled("logit"), source=SOURCE, samples=[sample(positive_t(3, 5))])
@family
def logit(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log(x / (1 − x)), with the slope from its values as for a logarithm."""
    return replaced(lambda v, *a, **k: operation(v, *a, **k) / v, operation, x, args, kwargs, False)


# Linearised at its operand, with the entropy as an absorbing bias: Σ_j s_j x_j is what flows.
register(
    spelled("logsumexp"),
    passthrough,
    source="AttnLRP Prop. 3.1",
    samples=[sample(t(2, 5), -1), sample(t(2, 5), dim=0, keepdim=True)],
)
register(
    spelled("logcumsumexp"), passthrough, source="AttnLRP Prop. 3.1", samples=[sample(t(2, 5), 1)]
)
