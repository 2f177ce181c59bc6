"""Softmax, what is made of it, and attention a second time: loops over Python numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from mpmath import mpf
from torch import Tensor

from lxt.rules.registry import sample, t
from naive_functions import secant, sigmoid
from naive_products import Gradients
from operations import Call, base_name


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
