"""Norms a second time, row by row."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from naive_products import Gradients
from operations import Call


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
