"""Losses a second time, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpmath import mpf
from torch import Tensor

from naive_attention import softmax_row_gradient
from naive_functions import FUNCTIONS, secant
from naive_products import Gradients
from operations import Call


def difference_loss(call: Call, g: list[Tensor], f: Callable[..., mpf]) -> Gradients:
    """The sum or mean of f(a − b): the secant of f for the difference, which is linear (Eq. 9)."""
    a, b = call.tensors
    each = g[0] / (a.numel() if call.value("reduction", 4, "mean") == "mean" else 1)
    slopes = [secant(f, value) for value in (a - b).flatten().tolist()]
    to_a = each * torch.tensor(slopes, dtype=torch.float64).reshape(a.shape)
    return {0: to_a, 1: -to_a}


def mse_loss(call: Call, g: list[Tensor]) -> Gradients:
    return difference_loss(call, g, FUNCTIONS["square"])


def l1_loss(call: Call, g: list[Tensor]) -> Gradients:
    return difference_loss(call, g, abs)


def cross_entropy(call: Call, g: list[Tensor]) -> Gradients:
    """The mean over rows of −log s[class], linearised at x (Prop. 3.1)."""
    x, classes = call.tensors
    rows = []
    for row, wanted in zip(x.tolist(), classes.tolist(), strict=True):
        picked = [-float(g[0]) / len(x) if n == wanted else 0.0 for n in range(len(row))]
        rows.append(softmax_row_gradient(row, picked, log=True))
    return {0: torch.tensor(rows, dtype=torch.float64)}
