"""Heads and neurons as anybody may write them, and what looks like them but isn't."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt.latent.anatomy import Layer, anatomy_of
from lxt.latent.units import Site

# --- look-alikes, one by one ----------------------------------------------------------------------


class Block(nn.Module):
    """A layer that adds what a function of it and of its input makes."""

    def __init__(self, function: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.norm, self.filter = nn.LayerNorm(8), nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(self, x)


def found_in(function: Callable[[Block, Tensor], Tensor]) -> Layer:
    model = nn.Sequential(Block(function), Block(function))
    first, second = anatomy_of(model, lambda: model(torch.randn(2, 5, 8))).layers
    assert [s.module[2:] for s in second.neurons] == [s.module[2:] for s in first.neurons]
    return first


def swept(m: Block, x: Tensor) -> Tensor:
    state, steps = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = state * m.a(x[:, t]).sigmoid() + m.b(x[:, t])
        steps.append(state.tanh())
    return torch.stack(steps, 1)


def written(m: Block, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        y[:, t] = m.a(x[:, t]).tanh()
    return y


def unseen(m: Block, x: Tensor) -> Tensor:
    """What a kernel fills that torch knows nothing of."""
    y = torch.empty(x.shape)
    y.numpy()[:] = x.detach().numpy().cumsum(1)
    return m.c(y * m.a(x).sigmoid())


def routed(m: Block, x: Tensor) -> Tensor:
    """Tokens in the order of a router's, as for experts one after another."""
    rows = x.flatten(0, 1)
    order = m.a(rows).sum(-1).argsort()
    return torch.zeros_like(rows).index_add(0, order, m.c(m.b(rows[order]).relu())).view(x.shape)


LOOK_ALIKES: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "a norm between two projections": lambda m, x: m.b(m.norm(m.a(x))),
    "no non-linearity between two projections": lambda m, x: m.b(m.a(x) * 2 + 1),
    "a gate on the residual stream": lambda m, x: m.b(x * m.a(x).sigmoid()),
    "a gate on what was projected": lambda m, x: m.a(x).sigmoid() * m.b(x),
    "a product of two projections": lambda m, x: m.c(m.a(x) * m.b(x)),
    "a function of a norm": lambda m, x: m.b(F.silu(m.norm(x))),
    "a statistic": lambda m, x: m.b(m.a(x) * m.c(x).pow(2).mean(-1, keepdim=True).rsqrt()),
    "a router": lambda m, x: m.c(m.a(x).softmax(-1) * m.b(x)),
    "a gated convolution": lambda m, x: m.c(m.filter((m.a(x) * m.b(x).relu()).mT).mT * m.b(x)),
    "two maps of the same activations": lambda m, x: m.b(h := m.a(x).relu()) + m.c(h),
    "a scan of activations": lambda m, x: m.c(swept(m, x)),
    "a buffer written step by step": lambda m, x: m.c(written(m, x)),
    "activations that something else uses": lambda m, x: m.b(h := m.a(x).relu()) * h.cumsum(1),
    "tokens for one expert": routed,
    "a gate on what an unseen kernel made": unseen,
    "a weight that no module is called with": lambda m, x: m.a(x).relu() @ m.b.weight,
}

MLPS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "plain": lambda m, x: m.b(m.a(x).relu()),
    "gated": lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)),
    "a gate that is clamped": lambda m, x: m.c(m.a(x).clamp(max=7) * m.b(x).sigmoid() + m.b(x)),
    "written GELU": lambda m, x: m.b(
        (h := m.a(x)) * 0.5 * (1 + torch.tanh(0.8 * (h + 0.044715 * h.pow(3))))
    ),
    "written SiLU": lambda m, x: m.b((h := m.a(x)) / (1 + torch.exp(-h))),
    "a cube": lambda m, x: m.b((h := m.a(x)) * h * h),
    "a norm after": lambda m, x: m.b(m.norm(m.a(x).relu())),
    "dropout and a cast": lambda m, x: m.b(F.dropout(m.a(x).relu().double().float(), 0.1)),
    "in place": lambda m, x: m.b(m.a(x).relu_().mul_(2)),
    "in one axis": lambda m, x: m.b(F.gelu(m.a(x)).flatten(0, 1)).view(x.shape),
    "a convolution before": lambda m, x: m.b(m.filter(m.a(x).mT).mT.relu()),
    "parameters of its own": lambda m, x: m.b(F.linear(x, m.a.weight).relu()),
    "written into an empty tensor": lambda m, x: m.b(torch.empty_like(x).copy_(m.a(x).relu())),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_are_not_found(name: str) -> None:
    layer = found_in(LOOK_ALIKES[name])
    assert layer == Layer("0")


@pytest.mark.parametrize("name", MLPS)
def test_mlps_in_many_spellings(name: str) -> None:
    (site,) = found_in(MLPS[name]).neurons
    assert site.module in ("0.b", "0.c")


def attended(m: Block, x: Tensor) -> Tensor:
    """[batch, tokens, 2 heads, 4 channels]."""
    q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (m.a, m.b, m.a))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2)


def in_batches(m: Block, x: Tensor) -> Tensor:
    """Heads among the rows, and never an axis of their own after."""
    q, k, v = (part(x).transpose(0, 1).reshape(5, 4, 4).transpose(0, 1) for part in (m.a, m.b, m.a))
    return ((q @ k.mT).softmax(-1) @ v).transpose(0, 1).reshape(5, 2, 8).transpose(0, 1)


def one_by_one(m: Block, x: Tensor) -> Tensor:
    scores = m.a(x) @ m.b(x).mT
    return torch.cat([scores.softmax(-1) @ v for v in m.b(x).chunk(2, -1)], -1)


HEADS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "plain": lambda m, x: m.c(attended(m, x).flatten(2)),
    "a gate": lambda m, x: m.c(attended(m, x).flatten(2) * m.b(x).sigmoid()),
    "a gate for each head": lambda m, x: m.c(
        (attended(m, x) * m.b(x)[..., :2, None].sigmoid()).flatten(2)
    ),
    "a norm": lambda m, x: m.c(m.norm(attended(m, x).flatten(2))),
    "dropout": lambda m, x: m.c(F.dropout(attended(m, x).flatten(2), 0.1)),
    "among the rows": lambda m, x: m.c(in_batches(m, x)),
    "side by side": lambda m, x: m.c(one_by_one(m, x)),
    "groups": lambda m, x: m.c(attended(m, x).unflatten(2, (1, 2)).flatten(3).flatten(2)),
    "written piece by piece": lambda m, x: m.c(
        torch.zeros(2, 5, 2, 4).index_put_((torch.arange(2),), attended(m, x)).flatten(2)
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_in_many_spellings(name: str) -> None:
    assert found_in(HEADS[name]) == Layer("0", (Site("0.c", end="input", heads=2),))


NO_HEADS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "another linear map first": lambda m, x: m.c(m.b(attended(m, x).flatten(2))),
    "added to the stream": lambda m, x: m.c(attended(m, x).flatten(2) + x),
    "used twice": lambda m, x: m.c(h := attended(m, x).flatten(2)) + m.b(h),
    "no softmax": lambda m, x: m.c((m.a(x) @ m.b(x).mT) @ m.a(x)),
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_is_not_heads(name: str) -> None:
    layer = found_in(NO_HEADS[name])
    assert Site("0.c", end="input", heads=2) not in layer.attentions
    assert not layer.neurons
