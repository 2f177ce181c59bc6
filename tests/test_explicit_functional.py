"""`lxt.explicit.functional` against LXT's own values, and against each rule written out naively."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian

import lxt.explicit.functional as lf
from lxt.errors import NonFiniteRelevance, UnknownOperation
from lxt.explicit.check import checked_relevance, conservation_check

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden" / "explicit.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def value(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Numbers away from 0 of both signs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64, generator=generator) + 0.2
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (x * sign).to(dtype)


def carrier(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return value(*shape, seed=seed, dtype=dtype).requires_grad_()


def relevance(y: Tensor, r: Tensor, *operands: Tensor) -> list[Tensor | None]:
    assert not y._is_view()  # of a custom Function, which could not be written to in place
    return list(torch.autograd.grad(y, operands, r, allow_unused=True, retain_graph=True))


def taylor(function, operands, r, epsilon, share=1) -> list[Tensor]:
    """x_i Σ_j J_ji R_j / (share · y_j + ε), by dense Jacobians and loops."""
    operands = tuple(x.detach().double() for x in operands)
    y = function(*operands)
    if y.numel() == 0:
        return [torch.zeros_like(x) for x in operands]
    jacobians = jacobian(function, operands)
    relevances = []
    for x, j in zip(operands, jacobians, strict=True):
        rows = j.reshape(y.numel(), x.numel())
        total = torch.zeros(x.numel(), dtype=torch.float64)
        for row, y_j, r_j in zip(rows, y.flatten(), r.double().flatten(), strict=True):
            total += x.flatten() * row * r_j / (share * y_j + epsilon)
        relevances.append(total.reshape(x.shape))
    return relevances


def close(ours, theirs, rtol=1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-11)


# What LXT computed


def tensors(case: dict) -> tuple[list[Tensor], dict[str, Tensor], Tensor, Tensor, list[Tensor]]:
    def convert(x):
        return torch.tensor(x, dtype=torch.float64)

    return (
        [convert(x).requires_grad_() for x in case["inputs"]],
        {name: convert(x) for name, x in case["constants"].items()},
        convert(case["output"]),
        convert(case["output_relevance"]),
        [convert(x) for x in case["relevance"]],
    )


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


FUNCTIONS = {
    "add2": (lambda a, b: lf.add2(a, b), torch.add, [(3, 4), (4,)]),
    "mul2": (lambda a, b: lf.mul2(a, b), torch.mul, [(3, 4), (4,)]),
    "matmul": (lambda a, b: lf.matmul(a, b), torch.matmul, [(3, 4), (4, 2)]),
    "linear": (
        lambda x: lf.linear_epsilon(x, value(5, 4, dtype=x.dtype), value(5, dtype=x.dtype)),
        lambda x: F.linear(x, value(5, 4, dtype=x.dtype), value(5, dtype=x.dtype)),
        [(3, 4)],
    ),
    "conv2d": (
        lambda x: lf.conv2d_epsilon(x, value(2, 2, 2, 2, dtype=x.dtype)),
        lambda x: F.conv2d(x, value(2, 2, 2, 2, dtype=x.dtype)),
        [(2, 3, 4)],
    ),
    "mean": (lambda x: lf.mean(x, (0, -1), False), lambda x: x.mean((0, -1)), [(3, 2, 4)]),
    "softmax": (lambda x: lf.softmax(x, 0), lambda x: F.softmax(x, 0), [(3, 4)]),
    "layer_norm": (
        lambda x: lf.layer_norm(x, value(4, dtype=x.dtype), value(4, dtype=x.dtype), 1e-5),
        lambda x: F.layer_norm(x, (4,), value(4, dtype=x.dtype), value(4, dtype=x.dtype)),
        [(3, 4)],
    ),
    "normalize": (lf.normalize, F.normalize, [(3, 4)]),
    "rms_norm": (
        lambda x: lf.rms_norm_identity(x, value(4, dtype=x.dtype), 1e-6),
        lambda x: value(4, dtype=x.dtype) * lf.rms_norm_identity(x, None, 1e-6),
        [(3, 4)],
    ),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def call(name: str, dtype=torch.float64):
    function, plain, shapes = FUNCTIONS[name]
    operands = [carrier(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    return function, plain, operands


@every_function
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_relevance_in_every_type(name: str, dtype) -> None:
    function, plain, operands = call(name, dtype)
    y = function(*operands)
    assert torch.equal(y, plain(*operands))
    assert y.dtype == dtype
    r = value(*y.shape, seed=9, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in operands]
    expected = relevance(function(*wide), r.double(), *wide)
    for ours, theirs, x in zip(relevance(y, r, *operands), expected, operands, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == x.shape
        # denominators near 0 magnify the rounding, of weights not of operands in low precision
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.05)
        scale = theirs.abs().max()
        assert (ours.double() - theirs).abs().max() <= tolerance * scale


@every_function
def test_a_second_backward_gives_the_same_and_writing_to_the_output_changes_nothing(
    name: str,
) -> None:
    function, _, operands = call(name)
    y = function(*operands)
    r = value(*y.shape, seed=9)
    first = relevance(y, r, *operands)
    y += 1
    y *= 2
    again = relevance(y, r, *operands)
    assert all(torch.equal(2 * a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, relevance(y, r, *operands), strict=True))


@every_function
def test_layout_and_constants(name: str) -> None:
    function, _, operands = call(name)
    y = function(*operands)
    r = value(*y.shape, seed=9)
    expected = relevance(y, r, *operands)
    strided = [x.detach().mT.contiguous().mT if x.dim() > 1 else x.detach() for x in operands]
    strided = [x.requires_grad_() for x in strided]
    r_strided = r.mT.contiguous().mT if r.dim() > 1 else r
    close(relevance(function(*strided), r_strided, *strided), expected)
    constants = function(*(x.detach() for x in operands))
    assert not constants.requires_grad
    with torch.no_grad():
        assert torch.equal(function(*operands), y)


@every_function
def test_second_derivatives_are_refused(name: str) -> None:
    function, _, operands = call(name)
    y = function(*operands)
    r = value(*y.shape).requires_grad_()
    (g,) = torch.autograd.grad(y, operands[0], r, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, inplace: lf.add2(x * 2, x * 3, inplace),
        lambda x, inplace: lf.mul2(x * 2, x * 3, inplace),
        lambda x, inplace: lf.matmul(x * 2, (x * 3).mT, inplace),
        lambda x, inplace: lf.softmax(x * 2, -1, inplace=inplace),
    ],
)
def test_inplace_changes_nothing(function) -> None:
    x = carrier(3, 4)
    y = function(x, False)
    r = value(*y.shape, seed=1)
    kept = r.clone()
    expected = relevance(y, r, x)
    y = function(x, True)
    for _ in range(2):
        assert torch.equal(relevance(y, r, x)[0], expected[0])
        assert torch.equal(r, kept)


@pytest.mark.parametrize("operation", [lf.add2, lf.mul2, lf.matmul])
def test_the_same_tensor_twice(operation) -> None:
    x = carrier(3, 3)
    a, b = (x.detach().clone().requires_grad_() for _ in range(2))
    r = value(3, 3, seed=1)
    expected = relevance(operation(a, b), r, a, b)
    close(relevance(operation(x, x), r, x)[0], sum(expected))


@pytest.mark.parametrize("operation", [lf.add2, lf.mul2])
def test_constants_and_numbers(operation) -> None:
    x, r = carrier(2, 3), value(2, 3, seed=1)
    for other in (2.5, 3, torch.tensor(2), value(3, seed=2)):
        for operands in ((x, other), (other, x)):
            y = operation(*operands)
            plain = torch.add if operation is lf.add2 else torch.mul
            assert torch.equal(y, plain(x, other))
            expected = r if operation is lf.mul2 else x * r / (x + other + 1e-8)
            close(relevance(y, r, x)[0], expected.detach())


def test_a_weight_that_requires_grad_makes_no_carrier_of_the_output() -> None:
    x, weight = value(2, 4), carrier(4, 4)
    for y in (
        lf.linear_epsilon(x, weight),
        lf.layer_norm(x, carrier(4), carrier(4), 1e-5),
        lf.rms_norm_identity(x, carrier(4), 1e-5),
        lf.conv2d_epsilon(value(1, 4, 4), carrier(1, 1, 2, 2)),
    ):
        assert not y.requires_grad


def test_stabilize_adds_epsilon_whatever_the_sign() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert lf._stabilize(x, 0.5).tolist() == [-0.5, 0.5, 1.5]
    assert x.tolist() == [-1.0, 0.0, 1.0]
    lf._stabilize(x, 0.5, inplace=True)
    assert x.tolist() == [-0.5, 0.5, 1.5]


def test_normalize_refuses_out() -> None:
    with pytest.raises(UnknownOperation, match="out"):
        lf.normalize(carrier(2, 3), out=torch.empty(2, 3))


def test_writing_to_what_a_rule_needs_is_an_error() -> None:
    x = carrier(2, 3)
    a = x * 1
    y = lf.add2(a, 1)
    a += 1
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_autocast() -> None:
    x, weight = carrier(3, 4, dtype=torch.float32), value(5, 4, dtype=torch.float32)
    r = value(3, 5, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lf.linear_epsilon(x, weight)
    assert y.dtype == torch.bfloat16
    expected = taylor(lambda x: F.linear(x, weight.double()), (x,), r.bfloat16(), 1e-6)
    close(relevance(y, r.bfloat16(), x)[0].double(), expected[0], rtol=1e-3)


# Conservation


@pytest.mark.parametrize("name", ["add2", "mul2", "matmul", "conv2d", "mean", "normalize"])
def test_without_a_bias_relevance_is_conserved(name: str) -> None:
    function, _, operands = call(name)
    y = function(*operands)
    r = value(*y.shape, seed=9)
    total = sum(part.sum() for part in relevance(y, r, *operands))
    close(total, r.sum(), rtol=1e-4)
    for epsilon in (1e-3, 1e-12):
        x = carrier(3, 4)
        y = lf.linear_epsilon(x, value(5, 4), epsilon=epsilon)
        r = value(3, 5, seed=1)
        lost = abs((relevance(y, r, x)[0].sum() - r.sum()).item())
        assert (lost < 1e-9) == (epsilon == 1e-12)


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


def test_operands_of_several_types() -> None:
    x, r = carrier(2, 4, dtype=torch.bfloat16), value(2, 4, seed=1, dtype=torch.float32)
    y = lf.rms_norm_identity(x, value(4, dtype=torch.float32), 1e-6)
    assert y.dtype == torch.float32
    assert torch.equal(relevance(y, r, x)[0], r.bfloat16())
    wide = carrier(2, 4, seed=2)
    for operation in (lf.add2, lf.mul2):
        y = operation(x, wide)
        narrow_part, wide_part = relevance(y, r.double(), x, wide)
        assert (narrow_part.dtype, wide_part.dtype) == (torch.bfloat16, torch.float64)
        # the narrow part is rounded to bfloat16
        total = narrow_part.double().sum() + wide_part.sum()
        assert abs((total - r.double().sum()).item()) < 0.02


def test_a_symbolic_trace_records_the_calls() -> None:
    traced = torch.fx.symbolic_trace(lambda x: lf.softmax(lf.add2(x, x), -1))
    names = [node.name for node in traced.graph.nodes if node.op == "call_function"]
    assert names == ["add2", "softmax"]
    x = carrier(2, 3)
    assert torch.equal(traced(x), F.softmax(x + x, -1))
