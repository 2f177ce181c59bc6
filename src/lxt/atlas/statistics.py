"""What is counted of each unit of a site, over all tokens of a corpus."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt.atlas.held import Held

__all__ = ["EDGES", "Statistics"]

_LEAST, _MOST = -10, 10
EDGES = [2.0**exponent for exponent in range(_LEAST, _MOST + 1)]
"""Sizes at which bins of the histogram begin: one below the first, then one from each on; for
negative values the same, so there are `2 * len(EDGES) + 1`, from the most negative on."""


class Statistics(Held):
    """Moments, extremes and a histogram.

    Attributes:
        tokens: how many tokens counted, int64 [1].
        mean: float64 [units].
        squares: the sum of squared distances from the mean, float64 [units].
        least, most: float32 [units].
        active: how often the activation was above 0, int64 [units].
        relevance: the sum of relevance, float64 [units].
        absolute: the sum of |relevance|, float64 [units].
        histogram: int64 [units, bins], of one token of each row, which the row's number picks.

    """

    NAMES = (
        *("tokens", "mean", "squares", "least", "most", "active"),
        *("relevance", "absolute", "histogram"),
    )

    def __init__(self, units: int) -> None:
        self.tokens = torch.zeros(1, dtype=torch.int64)
        self.mean = torch.zeros(units, dtype=torch.float64)
        self.squares = torch.zeros(units, dtype=torch.float64)
        self.least = torch.full((units,), torch.inf)
        self.most = torch.full((units,), -torch.inf)
        self.active = torch.zeros(units, dtype=torch.int64)
        self.relevance = torch.zeros(units, dtype=torch.float64)
        self.absolute = torch.zeros(units, dtype=torch.float64)
        self.histogram = torch.zeros(units, 2 * len(EDGES) + 1, dtype=torch.int64)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation, of all tokens, float64 [units]."""
        return (self.squares / self.tokens.clamp(min=1)).sqrt()

    def add(
        self, activation: Tensor, relevance: Tensor | None, counted: Tensor, numbers: Tensor
    ) -> None:
        """Count a batch: activation and relevance [rows, tokens, units], counted [rows, tokens]."""
        counted = counted.to(activation.device)
        x = activation[counted]
        count = len(x)
        variance, mean = (part.double().cpu() for part in torch.var_mean(x, 0, correction=0))
        before, after = self.tokens, self.tokens + count
        apart = mean - self.mean  # Chan et al. 1979: moments of two parts put together
        self.squares = self.squares + variance * count + apart**2 * (before * count / after)
        self.mean = self.mean + apart * (count / after)
        self.tokens = after
        self.least = self.least.minimum(x.amin(0).float().cpu())
        self.most = self.most.maximum(x.amax(0).float().cpu())
        self.active = self.active + (x > 0).sum(0).cpu()
        if relevance is not None:
            r = relevance[counted]
            self.relevance = self.relevance + r.sum(0).double().cpu()
            self.absolute = self.absolute + r.abs().sum(0).double().cpu()
        self._bin(activation, counted, numbers)

    def _bin(self, activation: Tensor, counted: Tensor, numbers: Tensor) -> None:
        first = counted.int().argmax(1)  # those that count stand side by side
        chosen = first + numbers.to(first) * 7919 % counted.sum(1)
        x = activation[torch.arange(len(chosen), device=chosen.device), chosen].float().cpu()
        exponent = torch.frexp(x).exponent.clamp(_LEAST, _MOST + 1)  # |x| < 2 ** exponent
        exponent = exponent.where(x != 0, _LEAST)
        size = exponent - _LEAST
        bins = len(EDGES) + torch.where(x < 0, -size, size).long()
        self.histogram.scatter_add_(1, bins.T, torch.ones_like(bins.T))
