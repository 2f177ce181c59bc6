"""The rules a second time: slow, plain and obviously correct, in float64.

What a rule hands to the operands of y = f(x₁ … xₙ), given the gradient g of y, is written here from
the equations: Jacobians are finite differences of the plain operation, the rest are loops over
Python numbers. Differences are exact, because what they are taken of is linear in each operand by
itself, and all samples are multiples of 1/64.

>>> call = Call.of(torch.mul, sample(t(2, 3), t(3)))
>>> gradients(call, call.upstream())  # what each operand that carries relevance must receive
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from mpmath import mpf
from torch import Tensor

import naive_recurrent
from lxt.rules.registry import sample, t
from operations import Call, base_name

# --- what a rule hands back ----------------------------------------------------------------------

Gradients = dict[int, Tensor]


def jacobian_product(call: Call, g: list[Tensor], step: float = 1.0) -> Gradients:
    """Jᵀ g, with each column of J the difference that one step of one number makes."""
    before = call(*call.copies(call.precise))
    result = {}
    for index in call.carriers():
        gradient = torch.zeros_like(call.tensors[index])
        for place in itertools.product(*map(range, gradient.shape)):
            # the gradient of a complex number is that of its real part and, times i, of the other
            for unit in (1, 1j) if gradient.is_complex() else (1,):
                moved = call.copies(call.precise)
                moved[index].data[place] += step * unit
                after = call(*moved)
                gradient[place] += unit * sum(
                    ((y.double() - y0.double()) / step * g_y.double()).sum()
                    for y, y0, g_y in zip(after, before, g, strict=True)
                )
        result[index] = gradient
    return result


def linear(call: Call, g: list[Tensor]) -> Gradients:
    """Eq. 8 with ε → 0: R_i = x_i Σ_j J_ji g_j."""
    return jacobian_product(call, g)


def picks(call: Call, g: list[Tensor]) -> Gradients:
    """As linear, but a step must not change which value is picked."""
    return jacobian_product(call, g, step=2**-8)


def product(call: Call, g: list[Tensor]) -> Gradients:
    """Prop. 3.3: 1/N of the relevance to each of the N factors that carry any."""
    factors = len(call.carriers())
    return {i: gradient / factors for i, gradient in jacobian_product(call, g).items()}


def sum_with_product(call: Call, g: list[Tensor]) -> Gradients:
    """total + a · b: the sum is linear, the product's factors share."""
    total = call.slot(0)
    factors = len([i for i in call.carriers() if i != total])
    plain = jacobian_product(call, g)
    return {i: gradient if i == total else gradient / factors for i, gradient in plain.items()}


def quotient(call: Call, g: list[Tensor], denominator: int = 1) -> Gradients:
    """Prop. 3.4: the denominator is a constant, all else linear."""
    constant = call.slot(denominator)
    carries = tuple(c and i != constant for i, c in enumerate(call.carries))
    return nothing(call, g) | jacobian_product(replace(call, carries=carries), g)


def sum_with_quotient(call: Call, g: list[Tensor]) -> Gradients:
    """total + value · a / b."""
    return quotient(call, g, denominator=2)


def nothing(call: Call, g: list[Tensor]) -> Gradients:
    """A constant: zero."""
    return {i: torch.zeros_like(call.tensors[i]) for i in call.carriers()}


def places_are_constant(call: Call, g: list[Tensor]) -> Gradients:
    """Linear in the first operand; the second says where, and is a constant."""
    return quotient(call, g)


def product_over(call: Call, g: list[Tensor]) -> Gradients:
    """1/N of what a plain product hands to each of N factors."""
    (x,) = call.tensors
    dim = call.value("dim", 1)
    factors = x.numel() if dim is None else x.shape[dim]
    return {0: jacobian_product(call, g)[0] / factors}


def cumulative_product(call: Call, g: list[Tensor]) -> Gradients:
    """y_i = x_0 … x_i hands g_i y_i / x_j / (i + 1) to each x_j of its i + 1 factors."""
    (x,) = call.tensors
    dim = call.value("dim", 1)
    rows, upstream = x.movedim(dim, -1), g[0].movedim(dim, -1)
    result = torch.zeros_like(rows)
    for place in itertools.product(*map(range, rows.shape[:-1])):
        row = rows[place].tolist()
        for i, j in itertools.product(range(len(row)), repeat=2):
            if j <= i:
                others = math.prod(row[:j]) * math.prod(row[j + 1 : i + 1])
                result[(*place, j)] += upstream[(*place, i)] * others / (i + 1)
    return {0: result.movedim(-1, dim)}


def cosine_similarity(call: Call, g: list[Tensor]) -> Gradients:
    """Σ a b / (‖a‖ ‖b‖) with constant norms: half of the product to each; the samples' last dim."""
    a, b = torch.broadcast_tensors(*call.tensors)
    to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
    for place in itertools.product(*map(range, a.shape[:-1])):
        norms = [math.sqrt(math.fsum(v * v for v in x[place].tolist())) for x in (a, b)]
        for n in range(a.shape[-1]):
            share = g[0][place] / (2 * norms[0] * norms[1])
            to_a[(*place, n)] = share * b[(*place, n)]
            to_b[(*place, n)] = share * a[(*place, n)]
    return {0: to_a.sum_to_size(call.tensors[0].shape), 1: to_b.sum_to_size(call.tensors[1].shape)}


# --- element-wise --------------------------------------------------------------------------------


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
}

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

    Where f has a kink at 0, f′(0) is the left derivative, torch's choice; for |x| it is 0.
    """
    if f is abs and x == 0:
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


def power(call: Call, g: list[Tensor]) -> Gradients:
    """x · xᵖ⁻¹ for p ≥ 1; a root, or a negative power, is a constant."""
    x = call.tensors[0]
    exponents = torch.as_tensor(call.value("exponent", 1)).double().expand_as(x)
    result = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        p = exponents[place].item()
        result[place] = g[0][place] * x[place].item() ** (p - 1) if p >= 1 else 0.0
    return {0: result}


# --- softmax and attention -----------------------------------------------------------------------


def softmax_row(x: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(x)) for value in x]
    return [e / math.fsum(exponentials) for e in exponentials]


def softmax_row_gradient(x: list[float], g: list[float], log: bool = False) -> list[float]:
    """Prop. 3.1: the Jacobian is s_i (δ_ij − s_j); that of the logarithm is δ_ij − s_j."""
    s = softmax_row(x)
    return [
        math.fsum((1 if log else s[i]) * ((i == j) - s[j]) * g[i] for i in range(len(x)))
        for j in range(len(x))
    ]


def softmax(call: Call, g: list[Tensor]) -> Gradients:
    """The Taylor expansion at x, row by row."""
    dim = call.value("dim", 1)
    sign = -1 if base_name(call.operation) == "softmin" else 1
    log = base_name(call.operation) == "log_softmax"
    x = sign * call.tensors[0].movedim(dim, -1)
    rows = zip(
        x.reshape(-1, x.shape[-1]).tolist(),
        g[0].movedim(dim, -1).reshape(-1, x.shape[-1]).tolist(),
        strict=True,
    )
    result = torch.tensor([softmax_row_gradient(x, g, log) for x, g in rows], dtype=torch.float64)
    return {0: sign * result.reshape(x.shape).movedim(-1, dim)}


def logsumexp(call: Call, g: list[Tensor]) -> Gradients:
    """Linearised at x, where the gradient is the softmax s of the row."""
    (x,) = call.tensors
    dim = call.value("dim", 1)
    upstream = g[0] if call.value("keepdim", 2, False) else g[0].unsqueeze(dim)
    result = torch.zeros_like(x).movedim(dim, -1)
    for place in itertools.product(*map(range, result.shape[:-1])):
        row = softmax_row(x.movedim(dim, -1)[place].tolist())
        result[place] = torch.tensor(row, dtype=x.dtype) * upstream.movedim(dim, -1)[place]
    return {0: result.movedim(-1, dim)}


def logcumsumexp(call: Call, g: list[Tensor]) -> Gradients:
    """The same for the first 1, 2, … N elements of a row."""
    (x,) = call.tensors
    rows, upstream = x.movedim(call.value("dim", 1), -1), g[0].movedim(call.value("dim", 1), -1)
    result = torch.zeros_like(rows)
    for place in itertools.product(*map(range, rows.shape[:-1])):
        row = rows[place].tolist()
        for i in range(len(row)):
            for j, weight in enumerate(softmax_row(row[: i + 1])):
                result[(*place, j)] += upstream[(*place, i)] * weight
    return {0: result.movedim(-1, call.value("dim", 1))}


def attention(
    call: Call,
    g: list[Tensor],
    weights_are_constant: bool = False,
    g_weights: Tensor | None = None,
) -> Gradients:
    """softmax(q kᵀ · scale + mask) v by the rules of its parts, query by query.

    `g_weights` is the gradient of the attention weights [batch, head, query, key] themselves, where
    these are put out too.
    """
    names = ("query", "key", "value", "attn_mask")
    slots = {name: call.slot(n) for n, name in enumerate(names)}
    slots["attn_mask"] = getattr(call.arguments[1].get("attn_mask"), "index", None)
    carries = {name: slot is not None and call.carries[slot] for name, slot in slots.items()}
    q, k, v = call.tensors[:3]
    mask = None if slots["attn_mask"] is None else call.tensors[slots["attn_mask"]]
    is_causal = call.arguments[1].get("is_causal", False)
    scale = call.arguments[1].get("scale") or q.shape[-1] ** -0.5
    result = {name: torch.zeros_like(x) for name, x in zip(names, (q, k, v, mask), strict=False)
              if x is not None and x.is_floating_point()}  # fmt: skip

    to_weights = carries["query"] or carries["key"] or carries["attn_mask"]
    share = 0.5 if to_weights and carries["value"] else 1.0  # of the product of weights and values
    inner_share = 0.5 if carries["query"] and carries["key"] else 1.0  # of that of query and key
    if weights_are_constant:
        share = 1.0

    def mask_place(b: int, h: int, i: int, j: int) -> tuple[int, ...]:
        assert mask is not None
        return tuple(min(n, size - 1) for n, size in zip((b, h, i, j), mask.shape, strict=True))

    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        h_kv = h // (q.shape[1] // k.shape[1])
        scores = []
        for j in range(k.shape[2]):
            score = math.fsum((q[b, h, i] * k[b, h_kv, j]).tolist()) * scale
            if mask is not None and mask.dtype == torch.bool:
                score = score if mask[mask_place(b, h, i, j)] else -math.inf
            elif mask is not None:
                score += mask[mask_place(b, h, i, j)].item()
            scores.append(-math.inf if is_causal and j > i else score)
        weights = softmax_row(scores)
        upstream = g[0][b, h, i]
        to_weight = [share * math.fsum((upstream * v_j).tolist()) for v_j in v[b, h_kv]]
        if g_weights is not None:
            to_weight = [a + b for a, b in zip(to_weight, g_weights[b, h, i].tolist(), strict=True)]
        to_scores = softmax_row_gradient(scores, to_weight)
        for j, (weight, to_score) in enumerate(zip(weights, to_scores, strict=True)):
            result["value"][b, h_kv, j] += share * weight * upstream
            if weights_are_constant:
                continue
            result["query"][b, h, i] += inner_share * to_score * scale * k[b, h_kv, j]
            result["key"][b, h_kv, j] += inner_share * to_score * scale * q[b, h, i]
            if "attn_mask" in result:
                result["attn_mask"][mask_place(b, h, i, j)] += to_score
    return {slot: result[name] for name, slot in slots.items() if carries[name]}


def multi_head(call: Call, g: list[Tensor]) -> Gradients:
    """Projections by Eq. 8 around attention; tensors are [token, batch, channel]."""
    query, key, value, weight, bias, out_weight, _ = call.tensors
    heads = call.arguments[0][4]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)

    def joined(x: Tensor) -> Tensor:
        return x.permute(2, 0, 1, 3).flatten(-2)

    matrices, biases = weight.chunk(3), bias.chunk(3)
    projected = [
        split(x @ matrix.T + b)
        for x, matrix, b in zip((query, key, value), matrices, biases, strict=True)
    ]
    inner = Call.of(F.scaled_dot_product_attention, sample(*[t(*x.shape) for x in projected]))
    inner = replace(inner, tensors=tuple(projected))
    g_weights = None if len(g) == 1 else (g[1] / heads)[:, None].expand(-1, heads, -1, -1)
    received = attention(inner, [split(g[0] @ out_weight)], g_weights=g_weights)
    return {n: joined(received[n]) @ matrices[n] for n in range(3)}


def glu(call: Call, g: list[Tensor], gate_is_constant: bool = False) -> Gradients:
    """a · σ(b): half to each factor, with the secant of σ; or all to a."""
    (x,) = call.tensors
    dim = call.value("dim", 1, -1)
    a, b = x.chunk(2, dim)
    to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
    for place in itertools.product(*map(range, a.shape)):
        gate = float(sigmoid(mpf(b[place].item())))
        slope = secant(sigmoid, b[place].item())
        to_a[place] = g[0][place] * gate * (1 if gate_is_constant else 0.5)
        to_b[place] = 0 if gate_is_constant else g[0][place] * a[place] * slope / 2
    return {0: torch.cat((to_a, to_b), dim)}


# --- norms ---------------------------------------------------------------------------------------


def normalized_row(x: list[float], g: list[float], eps: float, centred: bool) -> list[float]:
    """What (x − μ(x)) · r hands back, with r = 1/√(mean square + ε) constant (Prop. 3.4)."""
    n = len(x)
    mean = math.fsum(x) / n if centred else 0.0
    r = 1 / math.sqrt(math.fsum((value - mean) ** 2 for value in x) / n + eps)
    to_mean = math.fsum(g) / n if centred else 0.0
    return [(value - to_mean) * r for value in g]


def normalized(x: Tensor, g: Tensor, length: int, eps: float, centred: bool) -> Tensor:
    """`normalized_row` for rows of `length` numbers that follow each other."""
    rows = zip(x.reshape(-1, length).tolist(), g.reshape(-1, length).tolist(), strict=True)
    result = [normalized_row(*row, eps=eps, centred=centred) for row in rows]
    return torch.tensor(result, dtype=torch.float64).reshape(x.shape)


def layer_norm(call: Call, g: list[Tensor]) -> Gradients:
    length = math.prod(call.value("normalized_shape", 1))
    weight = call.value("weight", 2)
    upstream = g[0] if weight is None else g[0] * weight
    eps = call.value("eps", 4, 1e-5)
    return {0: normalized(call.tensors[0], upstream, length, eps, centred=True)}


def rms_norm(call: Call, g: list[Tensor]) -> Gradients:
    length = math.prod(call.value("normalized_shape", 1))
    weight = call.value("weight", 2)
    upstream = g[0] if weight is None else g[0] * weight
    eps = call.value("eps", 3, 2.0**-52)
    return {0: normalized(call.tensors[0], upstream, length, eps, centred=False)}


def per_channel(g: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return g
    return torch.stack([g[:, c] * weight[c] for c in range(g.shape[1])], 1)


def group_norm(call: Call, g: list[Tensor]) -> Gradients:
    x = call.tensors[0]
    length = x[0].numel() // call.value("num_groups", 1)
    upstream = per_channel(g[0], call.value("weight", 2))
    return {0: normalized(x, upstream, length, call.value("eps", 4, 1e-5), centred=True)}


def running_norm(call: Call, g: list[Tensor]) -> Gradients:
    """(x − μ) / √(σ² + ε) · w + b with running statistics: linear."""
    scale = 1 / torch.sqrt(call.value("running_var", 2) + 1e-5)
    weight = call.value("weight", 3)
    return {0: per_channel(g[0], scale if weight is None else scale * weight)}


def instance_norm(call: Call, g: list[Tensor]) -> Gradients:
    if not call.value("use_input_stats", 5, True):
        return running_norm(call, g)
    x = call.tensors[0]
    upstream = per_channel(g[0], call.value("weight", 3))
    return {0: normalized(x, upstream, x[0, 0].numel(), 1e-5, centred=True)}


def normalize(call: Call, g: list[Tensor]) -> Gradients:
    """x / max(‖x‖, ε) with a constant norm."""
    (x,) = call.tensors
    p, dim = call.value("p", 1, 2.0), call.value("dim", 2, 1)
    result = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        line = x.select(1 - dim, place[1 - dim])  # the samples are matrices
        norm = math.fsum(abs(value) ** p for value in line.tolist()) ** (1 / p)
        result[place] = g[0][place] / max(norm, 1e-12)
    return {0: result}


def spread_and_mean(call: Call, g: list[Tensor]) -> Gradients:
    """The spread is a constant; the mean hands 1/n of its gradient to each of n elements."""
    (x,) = call.tensors
    dim = call.value("dim", 1)
    to_mean = g[1] if call.arguments[1].get("keepdim") else g[1].unsqueeze(dim)
    return {0: to_mean.expand_as(x) / x.shape[dim]}


def local_response_norm(call: Call, g: list[Tensor]) -> Gradients:
    """x_c / (k + α · mean square of the channels c − ⌊n/2⌋ … c + ⌊(n−1)/2⌋)^β."""
    (x,) = call.tensors
    size, alpha = call.value("size", 1), call.value("alpha", 2, 1e-4)
    beta, k = call.value("beta", 3, 0.75), call.value("k", 4, 1.0)
    result = torch.zeros_like(x)
    for batch, c, *rest in itertools.product(*map(range, x.shape)):
        near = range(max(0, c - size // 2), min(x.shape[1], c + (size - 1) // 2 + 1))
        energy = math.fsum(x[(batch, n, *rest)].item() ** 2 for n in near) / size
        place = (batch, c, *rest)
        result[place] = g[0][place] / (k + alpha * energy) ** beta
    return {0: result}


# --- the table -----------------------------------------------------------------------------------

Reference = Callable[[Call, list[Tensor]], Gradients]


def _table(**families: str) -> dict[str, Reference]:
    return {
        name: globals()[reference]
        for reference, names in families.items()
        for name in names.split()
    }


REFERENCES: dict[str, Reference] = {
    **_table(
        linear="""
            add sub subtract rsub __rsub__ neg negative positive
            sum nansum mean nanmean cumsum diff trace embedding embedding_bag
            avg_pool1d avg_pool2d avg_pool3d
            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample
            view reshape view_as reshape_as expand_as flatten ravel contiguous clone cpu cuda
            unflatten transpose swapaxes swapdims permute movedim moveaxis t adjoint squeeze
            unsqueeze expand broadcast_to broadcast_tensors repeat tile repeat_interleave narrow
            select diagonal chunk tensor_split split split_with_sizes unbind hsplit cat concat
            concatenate stack hstack vstack dstack atleast_2d block_diag diag diag_embed tril triu
            pad constant_pad_nd unfold fold as_strided pixel_shuffle pixel_unshuffle to type_as
            float double half bfloat16 type copy resolve_conj resolve_neg T mT H mH
            __getitem__ __setitem__ gather take_along_dim take index_select masked_select
            masked_fill where roll flip rot90 fliplr flipud scatter scatter_add index_add index_copy
            index_fill masked_scatter index_put fill zero
            dropout alpha_dropout feature_dropout feature_alpha_dropout
            dropout1d dropout2d dropout3d
            rad2deg deg2rad sum_to_size atleast_1d atleast_3d meshgrid column_stack dsplit vsplit
            unsafe_chunk unsafe_split channel_shuffle select_scatter slice_scatter nan_to_num
            fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn
            fftshift ifftshift stft istft view_as_complex view_as_real complex conj conj_physical
            real imag solve_triangular lerp
        """,
        picks="""
            topk sort msort max min amax amin maximum minimum fmax fmin cummax cummin kthvalue
            max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d
            median nanmedian quantile nanquantile aminmax scatter_reduce
        """,
        product="""
            mul multiply matmul mm spmm bmm __rmatmul__ mv dot inner outer ger tensordot kron linear
            conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d einsum bilinear
            _grouped_mm grouped_mm cross vdot multi_dot chain_matmul
        """,
        sum_with_product="addmm baddbmm addbmm addmv addr addcmul",
        quotient="div divide true_divide",
        sum_with_quotient="addcdiv",
        nothing="""
            rsqrt sqrt reciprocal __rdiv__ __rtruediv__ __rfloordiv__ var std norm vector_norm
            hypot cdist pairwise_distance
        """,
        power="pow __pow__ __ipow__",
        prelu="prelu",
        softmax="softmax log_softmax softmin",
        attention="scaled_dot_product_attention",
        multi_head="multi_head_attention_forward",
        glu="glu",
        places_are_constant="grid_sample",
        product_over="prod",
        cumulative_product="cumprod",
        cosine_similarity="cosine_similarity",
        logarithm="log log2 log10 logit",
        logsumexp="logsumexp",
        logcumsumexp="logcumsumexp",
        spread_and_mean="var_mean std_mean",
        layer_norm="layer_norm",
        rms_norm="rms_norm",
        group_norm="group_norm",
        instance_norm="instance_norm",
        running_norm="batch_norm",
        normalize="normalize",
        local_response_norm="local_response_norm",
    ),
    **dict.fromkeys(FUNCTIONS, elementwise),
    **dict.fromkeys(naive_recurrent.NETWORKS, naive_recurrent.recurrent),
}


@torch.no_grad()
def gradients(call: Call, g: list[Tensor]) -> list[Tensor]:
    """What each operand of the call that carries relevance must receive, by its rule."""
    result = REFERENCES[base_name(call.operation)](call, g)
    return [result[index] for index in call.carriers()]


def departs(call: Call) -> bool:
    """Whether the rule of this call differs from autograd's gradient."""
    name = base_name(call.operation)
    reference = REFERENCES[name]
    if reference is product:
        return len(call.carriers()) > 1
    if reference is sum_with_product:
        return len([i for i in call.carriers() if i != call.slot(0)]) > 1
    if reference in (quotient, sum_with_quotient, places_are_constant):
        denominator = call.slot(2 if reference is sum_with_quotient else 1)
        return denominator is not None and call.carries[denominator]
    if reference is attention:
        return len(call.carriers()) > 1
    if reference is instance_norm:
        return call.value("use_input_stats", 5, True)
    as_autograd = (linear, picks, softmax, logsumexp, logcumsumexp, running_norm, prelu)
    return reference not in as_autograd and (name not in SECANT_IS_DERIVATIVE)
