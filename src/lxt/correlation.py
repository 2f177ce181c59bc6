"""Correlations of two lists of numbers, of any scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pearson", "spearman"]


def pearson(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of two vectors, from -1 to 1; NaN where one of them is constant."""
    one, other = _centred(one), _centred(other)
    product = math.sqrt(one.square().sum().item() * other.square().sum().item())
    if not product:
        return math.nan
    return min(max((one * other).sum().item() / product, -1.0), 1.0)


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation: Pearson's of ranks, of which equals share the mean."""
    return pearson(_ranks(one), _ranks(other))


def _centred(values: Tensor) -> Tensor:
    """Return deviations from the mean, with the largest as 1: no scale is too large to square."""
    if not len(values) or (values == values[0]).all():
        return torch.zeros_like(values)  # the mean, rounded, may differ from what all values are
    values = values / values.abs().max()
    values = values - values.mean()
    return values / values.abs().max()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]
