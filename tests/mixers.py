"""A selective state space in a few lines, for tests of how its recurrence is found."""

# ruff: noqa: N803, N806 - A, B, C and D are what scans call their arguments

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mixer", "difference", "random", "relevance", "scan"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relevance(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    return (x * torch.autograd.grad(y, x, g, retain_graph=True)[0]).detach()


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """A selective scan as anybody writes it. Shapes: x [position, channel], B and C [position]."""
    state, outputs = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        state = torch.exp(delta[t] * A) * state + delta[t] * B[t] * x[t]
        outputs.append(C[t] * state + D * x[t])
    return torch.stack(outputs)


class Mixer(nn.Module):
    """A selective state space with one number for state, that finds its scan as told."""

    A_log: nn.Parameter
    D: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in ("A_log", "D"):
            values = torch.randn(4, dtype=torch.float64, generator=generator)
            self.register_parameter(name, nn.Parameter(values))
        self.to_delta = nn.Linear(4, 4, dtype=torch.float64)
        self.to_bc = nn.Linear(4, 2, dtype=torch.float64)
        self.calls = 0

    def operands(self, x: Tensor) -> tuple[Tensor, ...]:
        B, C = self.to_bc(x).unbind(-1)
        return x, F.softplus(self.to_delta(x)), -self.A_log.exp(), B, C, self.D

    def expected(self, x: Tensor) -> Tensor:
        x, *others = self.operands(x)
        return scan(x, *(other.detach() for other in others))
