"""Models to audit, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import lxt
import zoo


class Net(nn.Module):
    """Two layers around a function."""

    def __init__(self, function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.function = function
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 6, dtype=dtype), nn.Linear(6, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def kinds(report: lxt.Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def example(name: str, **options: Any) -> tuple[Any, zoo.Example]:
    model = zoo.build(name, dtype=torch.float32)
    return model, zoo.example(name, model, **options)
