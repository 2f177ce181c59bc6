"""Linear maps, products and quotients a second time: Jacobians by finite differences.

The differences are exact, because what they are taken of is linear in each operand by itself, and
all samples are multiples of 1/64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from operations import Call

Gradients = dict[int, Tensor]
"""What each operand receives, by its number in the call."""


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
