"""Every function of `lxt.explicit.functional`, called in every way: types, layouts, constants."""

import pytest
import torch
import torch.nn.functional as F

import lxt.explicit.functional as lf
from explicit_values import carrier, close, relevance, taylor, value
from lxt.errors import UnknownOperation

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
