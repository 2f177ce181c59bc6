"""`lxt.explicit.functional` against LXT's own values, and against each rule written out naively."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import lxt.explicit.functional as lf
from explicit_values import CASES, carrier, close, relevance, taylor, tensors, value

GOLDEN_CALLS = {
    "linear_epsilon": lambda x, **kept: lf.linear_epsilon(x, kept["W"], kept["b"]),
    "linear_epsilon_nobias": lambda x, **kept: lf.linear_epsilon(x, kept["W"]),
    "add2": lf.add2,
    "mul2": lf.mul2,
    "matmul": lf.matmul,
    "softmax": lambda x: lf.softmax(x, -1),
    "softmax_T2": lambda x: lf.softmax(x, -1, temperature=2),
    "mean": lambda x: lf.mean(x, -1, True),
    "rms_norm_identity": lambda x, g: lf.rms_norm_identity(x, g, 1e-6),
    "layer_norm": lambda x, g, be: lf.layer_norm(x, g, be, 1e-6),
    "normalize": lf.normalize,
}


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_golden(name: str) -> None:
    inputs, constants, output, r, relevances = tensors(CASES[name])
    y = GOLDEN_CALLS[name](*inputs, **constants)
    # LXT takes the root mean square in float32 whatever its input; we don't leave float64
    close(y.detach(), output, rtol=1e-6 if name == "rms_norm_identity" else 1e-12)
    close(relevance(y, r, *inputs), relevances)


# Each rule, written a second time


SHAPES = [
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((1,), (2, 3)),
    ((2, 1, 3), (4, 1)),
    ((), (2, 2)),
    ((0, 3), (3,)),
    ((), ()),
]
broadcast = st.sampled_from(SHAPES) | st.sampled_from([(b, a) for a, b in SHAPES])
quick = settings(max_examples=25, deadline=None)


@quick
@given(broadcast, st.integers(0, 99))
def test_add2_is_the_epsilon_rule(shapes, seed: int) -> None:
    a, b = carrier(*shapes[0], seed=seed), carrier(*shapes[1], seed=seed + 100)
    y = lf.add2(a, b, epsilon=1e-3)
    r = value(*y.shape, seed=seed + 200)
    assert torch.equal(y, a + b)
    close(relevance(y, r, a, b), taylor(torch.add, (a, b), r, 1e-3), rtol=1e-8)


@quick
@given(broadcast, st.integers(0, 99))
def test_mul2_is_the_uniform_rule(shapes, seed: int) -> None:
    a, b = carrier(*shapes[0], seed=seed), carrier(*shapes[1], seed=seed + 100)
    y = lf.mul2(a, b)
    r = value(*y.shape, seed=seed + 200)
    assert torch.equal(y, a * b)
    expected = [torch.zeros_like(x) for x in (a, b)]
    for i in product(*map(range, y.shape)):
        for x, total in zip((a, b), expected, strict=True):
            own = i[y.dim() - x.dim() :]
            index = [n if size > 1 else 0 for n, size in zip(own, x.shape, strict=True)]
            total[tuple(index)] += r[i] / 2
    close(relevance(y, r, a, b), expected)


MATRICES = [
    ((2, 3), (3, 4)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((3,), (3,)),
    ((2, 2, 3), (3, 2)),
    ((2, 1, 2, 3), (2, 3, 2)),
    ((3,), (2, 3, 2)),
    ((2, 2, 3), (3,)),
    ((0, 2, 3), (3, 2)),
    ((2, 0), (0, 2)),
]


@pytest.mark.parametrize("shapes", MATRICES)
@pytest.mark.parametrize("constant", [None, 0, 1])
def test_matmul_is_the_epsilon_and_the_uniform_rule(shapes, constant) -> None:
    a, b = (carrier(*shape, seed=i) for i, shape in enumerate(shapes))
    operands = [x.detach() if i == constant else x for i, x in enumerate((a, b))]
    y = lf.matmul(*operands, epsilon=1e-3)
    assert torch.equal(y, torch.matmul(*operands))
    r = value(*y.shape, seed=2)
    expected = taylor(torch.matmul, (a, b), r, 1e-3, share=2 if constant is None else 1)
    for i, x in enumerate(operands):
        if i != constant:
            close(relevance(y, r, x)[0], expected[i])


@pytest.mark.parametrize(("shape", "with_bias"), [((4, 3), False), ((4, 3), True), ((3,), False)])
@pytest.mark.parametrize("leading", [(), (2,), (2, 0), (2, 3)])
def test_linear_is_the_epsilon_rule(shape, leading, with_bias: bool) -> None:
    x, weight = carrier(*leading, 3), carrier(*shape, seed=1)
    bias = carrier(*shape[:-1], seed=2) if with_bias else None
    y = lf.linear_epsilon(x, weight, bias, 1e-3)
    assert torch.equal(y, F.linear(x, weight, bias))
    r = value(*y.shape, seed=3)
    close(relevance(y, r, x), taylor(lambda x: F.linear(x, weight, bias), (x,), r, 1e-3))
    assert relevance(y, r, weight) == [None]


@pytest.mark.parametrize(
    ("channels", "settings"),
    [
        (2, {}),
        (2, {"stride": 2, "padding": 1}),
        (2, {"padding": "same", "dilation": 2}),
        (1, {"groups": 2, "stride": (1, 2), "padding": (0, 1)}),
    ],
)
@pytest.mark.parametrize("leading", [(), (2,), (0,)])
def test_conv2d_is_the_epsilon_rule(channels, settings, leading) -> None:
    x, weight, bias = carrier(*leading, 2, 4, 5), carrier(4, channels, 2, 3), carrier(4, seed=2)
    y = lf.conv2d_epsilon(x, weight, bias, epsilon=1e-3, **settings)
    assert torch.equal(y, F.conv2d(x, weight, bias, **settings))
    r = value(*y.shape, seed=3)
    expected = taylor(lambda x: F.conv2d(x, weight, bias, **settings), (x,), r, 1e-3)
    close(relevance(y, r, x), expected)
    assert relevance(y, r, weight, bias) == [None, None]


@pytest.mark.parametrize("dim", [0, -1, 1, (0, 2), (-1, -3), (), None])
@pytest.mark.parametrize("keep_dim", [False, True])
def test_mean_is_the_epsilon_rule(dim, keep_dim: bool) -> None:
    x = carrier(2, 3, 4)
    y = lf.mean(x, dim, keep_dim=keep_dim, epsilon=1e-3)
    assert torch.equal(y, x.mean(dim, keep_dim))
    r = value(*y.shape, seed=1)
    terms = x.numel() // y.numel()  # ε is added to the sum
    close(relevance(y, r, x), taylor(lambda x: x.mean(dim, keep_dim), (x,), r, 1e-3 / terms))


@quick
@given(
    st.sampled_from([(3,), (2, 3), (2, 3, 4), (0, 2)]),
    st.integers(-1, 0),
    st.sampled_from([1.0, 0.5, 3.0]),
    st.integers(0, 99),
)
def test_softmax_is_its_taylor_expansion(shape, dim: int, temperature: float, seed: int) -> None:
    x = carrier(*shape, seed=seed)
    y = lf.softmax(x, dim, temperature=temperature)
    r = value(*shape, seed=seed + 1)
    assert torch.equal(y, F.softmax(x / temperature, dim))
    z = x.detach() / temperature
    close(relevance(y, r, x), taylor(lambda z: F.softmax(z, dim), (z,), r, 0))


def test_softmax_converts_first_and_gives_nothing_to_what_is_masked() -> None:
    x = value(3, 4, dtype=torch.bfloat16)
    x[0, 1] = x[1, 0] = -torch.inf
    x[2] = -torch.inf
    x.requires_grad_()
    y = lf.softmax(x, -1, dtype=torch.float64)
    assert y[2].isnan().all()
    assert torch.equal(y[:2], F.softmax(x[:2], -1, dtype=torch.float64))
    (r,) = relevance(y, value(3, 4, seed=1), x)
    assert r.dtype == torch.bfloat16
    assert (r[x.isneginf()] == 0).all()
    assert r[:2].isfinite().all()
    assert r[:2].abs().sum() > 0


@pytest.mark.parametrize("weight", [None, value(4, seed=1)])
@pytest.mark.parametrize("bias", [None, value(4, seed=2)])
@pytest.mark.parametrize("leading", [(3,), (), (0,), (2, 3)])
def test_layer_norm(weight, bias, leading) -> None:
    x = carrier(*leading, 4)
    y = lf.layer_norm(x, weight, bias, 1e-3)
    assert torch.equal(y, F.layer_norm(x, (4,), weight, bias, 1e-3))
    r = value(*y.shape, seed=3)
    variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    scale = (variance + 1e-3).rsqrt().detach()

    def fixed(x: Tensor) -> Tensor:
        centred = (x - x.mean(-1, keepdim=True)) * scale
        return centred * (1 if weight is None else weight) + (0 if bias is None else bias)

    close(relevance(y, r, x), taylor(fixed, (x,), r, 1e-6))
    slower = lf._layer_norm_slower(x, weight, bias, 1e-3)
    close(slower, y)
    # its quotients of quotients lose some digits
    close(relevance(slower, r, x), relevance(y, r, x), rtol=1e-8)


def test_layer_norm_normalises_the_dimensions_of_its_weight() -> None:
    x, weight = carrier(2, 3, 4), value(3, 4, seed=1)
    y = lf.layer_norm(x, weight, None, 1e-5)
    assert torch.equal(y, F.layer_norm(x, (3, 4), weight, None, 1e-5))
    flat = x.detach().flatten(1).requires_grad_()
    r = value(2, 3, 4, seed=2)
    (expected,) = relevance(lf.layer_norm(flat, weight.flatten(), None, 1e-5), r.flatten(1), flat)
    close(relevance(y, r, x)[0].flatten(1), expected)


def test_identities_hand_on_all() -> None:
    x, r = carrier(2, 3, 4), value(2, 3, 4, seed=1)
    for y, plain in (
        (lf.normalize(x), F.normalize(x)),
        (lf.normalize(x, 1.0, -1, 1e-3), F.normalize(x, 1.0, -1, 1e-3)),
        (lf.rms_norm_identity(x, value(4), 1e-3), F.rms_norm(x, (4,), value(4), 1e-3)),
        (lf.rms_norm_identity(x, None, 1e-3), F.rms_norm(x, (4,), None, 1e-3)),
    ):
        close(y, plain, rtol=1e-12)
        assert torch.equal(relevance(y, r, x)[0], r)
    assert torch.equal(lf.normalize(x), F.normalize(x))


def test_rms_norm_is_that_of_llama_in_low_precision() -> None:
    x, weight = value(2, 8, dtype=torch.bfloat16), value(8, seed=1, dtype=torch.bfloat16)
    wide = x.float()
    expected = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(lf.rms_norm_identity(x, weight, 1e-6), expected)


# What holds for every function
