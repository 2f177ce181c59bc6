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


class Cube(torch.autograd.Function):
    """A gate that no torch function shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(x)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def audited(function: Callable[..., Tensor], composite: Any = None) -> lxt.Report:
    return lxt.audit(Net(function), X, composite=composite)


def kinds(report: lxt.Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def example(name: str, **options: Any) -> tuple[Any, zoo.Example]:
    model = zoo.build(name, dtype=torch.float32)
    return model, zoo.example(name, model, **options)
