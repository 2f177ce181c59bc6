"""Element-wise functions a second time: with so many digits that no difference cancels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import torch
from mpmath import mpf
from torch import Tensor

from naive_products import Gradients
from operations import Call, base_name


def gelu(x: mpf, approximate: str = "none") -> mpf:
    if approximate == "tanh":
        inner = mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3)
        return x * (1 + mpmath.tanh(inner)) / 2
    return x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2


def softplus(x: mpf, beta: float = 1.0, threshold: float = 20.0) -> mpf:
    return x if x * beta > threshold else mpmath.log1p(mpmath.exp(beta * x)) / beta


def clamp(x: mpf, low: float | None = None, high: float | None = None) -> mpf:
    x = x if low is None else max(x, mpf(low))
    return x if high is None else min(x, mpf(high))


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-x))


def elu(x: mpf, alpha: float = 1.0) -> mpf:
    return x if x > 0 else alpha * mpmath.expm1(x)


def celu(x: mpf, alpha: float = 1.0) -> mpf:
    return x if x > 0 else alpha * mpmath.expm1(x / alpha)


def selu(x: mpf) -> mpf:
    return mpf("1.0507009873554804934193349852946") * elu(
        x, mpf("1.6732632423543772848170429916717")
    )


def hardsigmoid(x: mpf) -> mpf:
    return clamp(x + 3, 0, 6) / 6


FUNCTIONS: dict[str, Callable[..., mpf]] = {
    "relu": lambda x: max(x, mpf(0)),
    "leaky_relu": lambda x, slope=0.01: x if x > 0 else slope * x,
    "rrelu": lambda x, low=1 / 8, high=1 / 3, training=False: (
        x if x > 0 else (mpf(low) + mpf(high)) / 2 * x
    ),
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "hardswish": lambda x: x * hardsigmoid(x),
    "hardsigmoid": hardsigmoid,
    "square": lambda x: x * x,
    "abs": abs,
    "absolute": abs,
    "sigmoid": sigmoid,
    "expit": sigmoid,
    "exp": mpmath.exp,
    "exp2": lambda x: mpf(2) ** x,
    "__rpow__": lambda x, base: mpf(base) ** x,
    "cos": mpmath.cos,
    "softplus": softplus,
    "logsigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "softsign": lambda x: x / (1 + abs(x)),
    "tanhshrink": lambda x: x - mpmath.tanh(x),
    "elu": elu,
    "celu": celu,
    "selu": selu,
    "relu6": lambda x: clamp(x, 0, 6),
    "hardtanh": lambda x, low=-1.0, high=1.0: clamp(x, low, high),
    "hardshrink": lambda x, lambd=0.5: x if abs(x) > lambd else mpf(0),
    "softshrink": lambda x, lambd=0.5: max(abs(x) - lambd, mpf(0)) * mpmath.sign(x),
    "threshold": lambda x, threshold, value: x if x > threshold else mpf(value),
    "erf": mpmath.erf,
    "erfc": mpmath.erfc,
    "sin": mpmath.sin,
    "tan": mpmath.tan,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "asinh": mpmath.asinh,
    "atan": mpmath.atan,
    "asin": mpmath.asin,
    "acos": mpmath.acos,
    "atanh": mpmath.atanh,
    "erfinv": mpmath.erfinv,
    "sinc": lambda x: mpmath.sinc(mpmath.pi * x),
    "expm1": mpmath.expm1,
    "log1p": mpmath.log1p,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": lambda x, low: clamp(x, low, None),
    "clamp_max": lambda x, high: clamp(x, None, high),
    "round": mpmath.nint,  # to even, halfway
    "floor": mpmath.floor,
    "ceil": mpmath.ceil,
    "trunc": lambda x: mpmath.sign(x) * mpmath.floor(abs(x)),
    "fix": lambda x: mpmath.sign(x) * mpmath.floor(abs(x)),
    "sign": mpmath.sign,
    "sgn": mpmath.sign,
}

JUMPS_AT_0 = frozenset(FUNCTIONS[name] for name in ("floor", "ceil", "sign"))

# Lines through 0, at least where the samples are: secant and derivative are the same.
SECANT_IS_DERIVATIVE = frozenset(
    {
        "rnn_relu",
        "rnn_relu_cell",
        "relu",
        "relu6",
        "leaky_relu",
        "rrelu",
        "abs",
        "absolute",
        "hardshrink",
    }
)


def secant(f: Callable[..., mpf], x: float, *args: Any, **kwargs: Any) -> float:
    """Eq. 9: s(x) = (f(x) − f(0)) / x, with enough digits that nothing cancels; f′(0) at 0.

    Where f has a kink at 0, f′(0) is the left derivative, torch's choice; for |x| it is 0, as it is
    where f jumps.
    """
    if x == 0 and (f is abs or f in JUMPS_AT_0):
        return 0.0
    digits = 30 + 2 * (max(0, -round(math.log10(abs(x)))) if x else 400)
    with mpmath.workdps(digits):
        argument = mpf(x) if x else -(mpf(10) ** -400)
        slope = (f(argument, *args, **kwargs) - f(mpf(0), *args, **kwargs)) / argument
        return float(slope)


def elementwise(call: Call, g: list[Tensor]) -> Gradients:
    """g · s(x), number by number."""
    f = FUNCTIONS[base_name(call.operation)]
    args, kwargs = call.arguments
    (x,) = call.tensors
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    slopes = [secant(f, value, *args[1:], **kwargs) for value in x.flatten().tolist()]
    return {0: g[0] * torch.tensor(slopes, dtype=torch.float64).reshape(x.shape)}


LOGARITHMS: dict[str, Callable[[mpf], mpf]] = {
    "log": mpmath.log,
    "log2": lambda x: mpmath.log(x, 2),
    "log10": mpmath.log10,
    "logit": lambda x: mpmath.log(x / (1 - x)),
}


def logarithm(call: Call, g: list[Tensor]) -> Gradients:
    """Eq. 9 as it stands: R_x = R_y, so the slope is f(x) / x."""
    (x,) = call.tensors
    f = LOGARITHMS[base_name(call.operation)]
    slopes = [float(f(mpf(value)) / mpf(value)) for value in x.flatten().tolist()]
    return {0: g[0] * torch.tensor(slopes, dtype=torch.float64).reshape(x.shape)}


def prelu(call: Call, g: list[Tensor]) -> Gradients:
    """1, or the weight of the channel."""
    x, weight = call.tensors
    result = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        channel = weight[place[1]] if len(weight) > 1 else weight[0]
        result[place] = g[0][place] * (1 if x[place] > 0 else channel)
    return {0: result}


def polar(call: Call, g: list[Tensor]) -> Gradients:
    """r cos φ + i r sin φ: 1/N to each of the N operands that carry relevance."""
    radius, angle = call.tensors
    share = 1 / len(call.carriers())
    result = {0: torch.zeros_like(radius), 1: torch.zeros_like(angle)}
    for place in itertools.product(*map(range, radius.shape)):
        r, phi = float(radius[place]), float(angle[place])
        for part, f in enumerate((mpmath.cos, mpmath.sin)):
            upstream = share * float(g[0][(*place, part)])
            result[0][place] += upstream * float(f(phi))
            result[1][place] += upstream * r * secant(f, phi)
    return result


def power(call: Call, g: list[Tensor]) -> Gradients:
    """x · xᵖ⁻¹ for p ≥ 1; a root, or a negative power, is a constant."""
    x = call.tensors[0]
    exponents = torch.as_tensor(call.value("exponent", 1)).double().expand_as(x)
    result = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        p = exponents[place].item()
        result[place] = g[0][place] * x[place].item() ** (p - 1) if p >= 1 else 0.0
    return {0: result}
