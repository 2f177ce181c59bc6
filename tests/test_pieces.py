"""Slopes that are computed in pieces: the same as at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import lxt
from lxt import pieces
from lxt.pieces import in_pieces

WIDTH, INNER = 6, 10


class Gated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Alone(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x.transpose(0, 2).contiguous() * 1.5)


def found(model: nn.Module, x: Tensor, fuse: bool, upstream: Tensor, many: bool) -> Tensor:
    leaf = x.clone().requires_grad_()
    with lxt.attnlrp.context(model, fuse=fuse):
        y = model(leaf)
    if many:
        upstream = torch.stack((upstream, 2 * upstream))
    return torch.autograd.grad(y, leaf, upstream, is_grads_batched=many)[0]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", [F.silu, F.gelu, torch.relu, torch.sigmoid, nn.PReLU(4)])
@pytest.mark.parametrize("make", [Gated, Alone])
def test_relevance_in_pieces_is_the_same(
    make: Callable[..., nn.Module],
    activation: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    fuse: bool,
    many: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(activation).to(dtype).eval()
    x = torch.randn(5, 4, WIDTH, dtype=dtype)
    upstream = torch.randn_like(model(x))
    whole = found(model, x, fuse, upstream, many)
    monkeypatch.setattr(pieces, "_PIECE", 7)
    split = found(model, x, fuse, upstream, many)
    # The last values of a piece are computed one by one, by another function of the C library.
    torch.testing.assert_close(split, whole, rtol=4 * torch.finfo(dtype).eps, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=3),
    piece=st.integers(1, 9),
    turned=st.booleans(),
)
def test_every_value_is_written_once(shape: list[int], piece: int, turned: bool) -> None:
    """In any shape and layout."""
    found, x = torch.zeros(shape), torch.randn(shape)
    if turned:
        x = x.t() if x.dim() == 2 else x
        found = torch.zeros_like(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PIECE", piece)
        in_pieces(lambda found, x: found.add_(2 * x), found, x)
    assert torch.equal(found, 2 * x)
