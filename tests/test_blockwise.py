"""The backward pass of attention in blocks, against one that makes all scores at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import lxt
from lxt.rules import attention, blockwise
from lxt.rules.attention import attention_shares
from lxt.rules.blockwise import Shares, attention_gradients

SHARES = (Shares(0.25, 0.25, 0.5), Shares(0, 0, 1), Shares(0, 0.5, 0.5), Shares(1, 0, 0))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "_BLOCK", 3)
    monkeypatch.setattr(attention, "_SHORT", 0)


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """softmax(s · q kᵀ + mask) v; a query that sees no key has 0."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    scores = scale * query @ key.transpose(-1, -2)
    seen = torch.ones_like(scores, dtype=torch.bool)
    if is_causal:
        seen = seen.tril()
    if mask is not None and mask.dtype is torch.bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
        seen = seen & (mask > -math.inf)
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
    return weights.where(seen.any(-1, keepdim=True), 0) @ value


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    batch, heads, group = (draw(st.integers(1, 2)) for _ in range(3))
    queries, keys = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    channels, wide = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kind = draw(st.sampled_from(("none", "causal", "bool", "added", "one for all")))
    mask = None
    if kind == "bool":
        mask = numbers(batch, 1, queries, keys) > draw(st.sampled_from((-2.0, 0.0, 1.0)))
    elif kind == "added":
        mask = numbers(queries, keys)
        mask[mask > 1] = -math.inf
    elif kind == "one for all":
        mask = numbers(batch, 1, 1, keys) > 0
    g = numbers(batch, heads * group, queries, wide)
    g[:, :, draw(st.integers(0, queries)) :] = 0
    return {
        "g": g,
        "query": numbers(batch, heads * group, queries, channels),
        "key": numbers(batch, heads, keys, channels),
        "value": numbers(batch, heads, keys, wide),
        "mask": mask,
        "is_causal": kind == "causal",
        "scale": draw(st.sampled_from((0.3, 1.0))),
    }


def expected(call: dict[str, Any], shares: Shares, g: Tensor) -> list[Tensor | None]:
    operands = [call[name].clone().requires_grad_() for name in ("query", "key", "value")]
    y = dense(*operands, call["mask"], call["is_causal"], call["scale"])
    found = torch.autograd.grad(y, operands, g)
    return [share * x if share else None for share, x in zip(shares, found, strict=True)]


def assert_same(found: Any, known: list[Tensor | None]) -> None:
    for one, other in zip(found, known, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(call=calls(), shares=st.sampled_from(SHARES))
def test_blocks_are_the_whole(call: dict[str, Any], shares: Shares) -> None:
    """Of any sizes, masks and shares; with rows of upstream gradient that are 0."""
    assert_same(attention_gradients(**call, shares=shares), expected(call, shares, call["g"]))


@settings(max_examples=50, deadline=None)
@given(
    call=calls(),
    shares=st.sampled_from(SHARES),
    dtype=st.sampled_from((torch.bfloat16, torch.float16)),
)
def test_low_precision_is_rounded_once(
    call: dict[str, Any], shares: Shares, dtype: torch.dtype
) -> None:
    """All sums are taken in float32: what is off is the rounding of operands and results."""

    def rounded(value: Any, to: torch.dtype) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(to) if is_float else value

    low = {name: rounded(value, dtype) for name, value in call.items()}
    again = {name: rounded(value, torch.float64) for name, value in low.items()}
    known = expected(again, shares, again["g"])
    for one, other in zip(attention_gradients(**low, shares=shares), known, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype is dtype
            room = float(other.abs().max()) * 1e-5  # float32's, where terms cancel
            torch.testing.assert_close(
                one.double(), other, rtol=torch.finfo(dtype).eps, atol=room + 1e-7
            )


@settings(max_examples=50, deadline=None)
@given(call=calls())
def test_a_batch_of_gradients_is_each_of_them(call: dict[str, Any]) -> None:
    """Through the rule, as many targets run."""
    if not attention.is_one_way(call["mask"], call["is_causal"]):
        call |= {"mask": None, "is_causal": True}
    operands = [call[name].clone().requires_grad_() for name in ("query", "key", "value")]
    y = attention.scaled_dot_product_attention(
        *operands,
        attn_mask=call["mask"],
        is_causal=call["is_causal"],
        scale=call["scale"],
        enable_gqa=True,
    )
    assert "_Attention" in y.grad_fn.name()
    several = torch.stack((call["g"], -2 * call["g"], torch.zeros_like(call["g"])))
    found = torch.autograd.grad(y, operands, several, is_grads_batched=True)
    shares = attention_shares(*operands)
    for row, g in enumerate(several):
        assert_same([x[row] for x in found], expected(call, shares, g))


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
def test_long_and_short_sequences_agree(
    composite: lxt.Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By our own backward pass and by torch's kernel."""

    class Attention(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = x.view(1, 11, 3, 2, 4).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    model, x = Attention(), torch.randn(1, 11, 24, dtype=torch.float64)
    found = []
    for short in (0, 64):
        monkeypatch.setattr(attention, "_SHORT", short)
        leaf = x.clone().requires_grad_()
        with composite.context(model):
            y = model(leaf)
        found.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)
