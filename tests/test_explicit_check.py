"""The check by conservation of `lxt.explicit`."""

import pytest
import torch
from torch import Tensor

import lxt.explicit.functional as lf
from explicit_values import carrier, close, relevance, value
from lxt.errors import NonFiniteRelevance
from lxt.explicit.check import checked_relevance, conservation_check


def network(x: Tensor, product=lf.mul2) -> Tensor:
    h = lf.linear_epsilon(lf.layer_norm(x, value(4), value(4, seed=1), 1e-5), value(4, 4), value(4))
    attention = lf.softmax(lf.matmul(h, h.mT), -1)
    h = lf.add2(lf.matmul(attention, h), x)
    return lf.mean(product(h, lf.rms_norm_identity(h, value(4), 1e-5)), -1, False)


def test_the_check_conserves_if_every_operation_is_explicit() -> None:
    x = carrier(3, 4)
    y = network(x)
    r = value(3, seed=5)
    with conservation_check():
        (checked,) = relevance(y, r, x)
        with conservation_check():
            pass
        assert torch.equal(relevance(y, r, x)[0], checked)
    close(checked.sum(), r.sum(), rtol=1e-12)
    (explained,) = relevance(y, r, x)
    assert abs((explained.sum() - r.sum()).item()) > 1e-3  # biases absorbed some
    with conservation_check():
        (plain,) = relevance(network(x, torch.mul), r, x)
    assert abs((plain.sum() - r.sum()).item()) > 1e-3


def test_the_check_spreads_evenly_over_all_operands_and_ends_after_an_error() -> None:
    a, b = carrier(2, 3), carrier(3, seed=1)
    y = lf.add2(a, b)
    r = torch.ones(2, 3, dtype=torch.float64)
    with conservation_check():
        parts = relevance(y, r, a, b)
    assert all(torch.equal(part, torch.full_like(part, 6 / 9)) for part in parts)
    with pytest.raises(NonFiniteRelevance), conservation_check():
        relevance(y, r * torch.nan, a)
    assert relevance(y, r, a)[0].std() > 0.01


def test_the_check_names_the_function_where_relevance_becomes_nan() -> None:
    x = carrier(2, 3)
    y = lf.add2(x, -x.detach(), epsilon=0)
    with conservation_check(), pytest.raises(NonFiniteRelevance, match="add2_tensors_fn returned"):
        y.backward(torch.zeros_like(y))
    y = lf.softmax(x, -1)
    with conservation_check(), pytest.raises(NonFiniteRelevance, match="softmax_fn received"):
        y.backward(torch.full_like(y, torch.nan))


def test_the_check_reaches_a_function_of_ones_own() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @lf.conservation_check_wrap
        def backward(ctx, r):
            return 5 * r

    x, r = carrier(2, 3), value(2, 3, seed=1)
    y = Twice.apply(x)
    assert torch.equal(relevance(y, r, x)[0], 5 * r)
    with conservation_check():
        close(relevance(y, r, x)[0], torch.full_like(r, r.mean().item()), rtol=1e-12)
        with pytest.raises(NonFiniteRelevance, match=r"Twice received"):
            relevance(y, r * torch.nan, x)
        assert checked_relevance("nothing to give to", (None,), (None, None)) == (None, None)
