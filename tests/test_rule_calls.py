"""The ways to call an operation: by name, as an operator, broadcast, in place on a part."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import lxt
import naive
import operations
from lxt.composites import attnlrp
from lxt.rules.registry import TensorSpec, constant_t, positive_t, sample, t
from operations import Call, Model, assert_close

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

a, b, row, positive = t(3, 3), t(3, 3), t(3), positive_t(3, 3)
BY_NAME = [
    (torch.mul, {"input": a, "other": b}),
    (torch.matmul, {"input": a, "other": b}),
    (torch.mm, {"input": a, "mat2": b}),
    (torch.bmm, {"input": t(1, 2, 3), "mat2": t(1, 3, 2)}),
    (torch.mv, {"input": a, "vec": row}),
    (torch.dot, {"input": row, "tensor": t(3)}),
    (torch.outer, {"input": row, "vec2": t(2)}),
    (torch.div, {"input": a, "other": b}),
    (torch.pow, {"input": a, "exponent": 2}),
    (torch.rsqrt, {"input": positive}),
    (torch.addmm, {"input": a, "mat1": a, "mat2": b}),
    (torch.baddbmm, {"input": t(1, 2, 2), "batch1": t(1, 2, 3), "batch2": t(1, 3, 2)}),
    (torch.addcmul, {"input": a, "tensor1": a, "tensor2": b}),
    (torch.addcdiv, {"input": a, "tensor1": a, "tensor2": b}),
    (F.silu, {"input": a}),
    (F.prelu, {"input": a, "weight": constant_t(3)}),
    (F.softmax, {"input": a, "dim": 0}),
    (F.glu, {"input": t(2, 4), "dim": 1}),
    (F.linear, {"input": a, "weight": constant_t(2, 3), "bias": constant_t(2)}),
    (F.conv1d, {"input": t(1, 2, 4), "weight": t(3, 2, 2)}),
    (F.bilinear, {"input1": a, "input2": b, "weight": constant_t(2, 3, 3)}),
    (F.layer_norm, {"input": a, "normalized_shape": (3,), "weight": constant_t(3)}),
    (F.normalize, {"input": a, "p": 2.0, "dim": 0}),
    (F.embedding, {"input": TensorSpec((2,), constant=True, integers_below=3), "weight": a}),
    (F.dropout, {"input": a, "p": 0.5, "training": False}),
    (
        F.scaled_dot_product_attention,
        {"query": t(1, 1, 2, 3), "key": t(1, 1, 2, 3), "value": t(1, 1, 2, 3)},
    ),
]


@pytest.mark.parametrize(
    ("operation", "operands"), BY_NAME, ids=[operations.operation_name(op) for op, _ in BY_NAME]
)
def test_operands_given_by_name(operation, operands):
    by_position = Call.of(operation, sample(*operands.values()))
    if operation is torch.addmm or operation in (torch.addcdiv, torch.addcmul, torch.baddbmm):
        assert len(by_position.carriers()) == 3
    g = by_position.upstream()
    model = Model(Call.of(operation, sample(**operands)), torch.float64)
    received = model.handed_back(model.under(attnlrp), g)
    for gradient, wanted in zip(received, naive.gradients(by_position, g), strict=True):
        assert_close(gradient, wanted, 1e-12)


OPERATORS = {
    "x * y": (lambda x, y: x * y, torch.mul, (a, b)),
    "2 * x": (lambda x: 2 * x, torch.mul, (a, 2)),
    "x + y": (lambda x, y: x + y, torch.add, (a, b)),
    "x - y": (lambda x, y: x - y, torch.sub, (a, b)),
    "1 - x": (lambda x: 1 - x, Tensor.__rsub__, (a, 1)),
    "x / y": (lambda x, y: x / y, torch.div, (a, b)),
    "2 / x": (lambda x: 2 / x, Tensor.__rdiv__, (a, 2)),
    "x @ y": (lambda x, y: x @ y, torch.matmul, (a, b)),
    "x ** 2": (lambda x: x**2, torch.pow, (a, 2)),
    "x ** -0.5": (lambda x: x**-0.5, torch.pow, (positive, -0.5)),
    "2 ** x": (lambda x: 2**x, Tensor.__rpow__, (a, 2)),
    "-x": (lambda x: -x, torch.neg, (a,)),
    "abs(x)": (lambda x: abs(x), torch.abs, (a,)),
    "x *= y": (operator.imul, torch.mul, (a, b)),
    "x += y": (operator.iadd, torch.add, (a, b)),
    "x -= y": (operator.isub, torch.sub, (a, b)),
    "x /= y": (operator.itruediv, torch.div, (a, b)),
    "x **= 2": (lambda x: operator.ipow(x, 2), torch.pow, (a, 2)),
    "x[1:]": (lambda x: x[1:], Tensor.__getitem__, (a, slice(1, None))),
    "x.T": (lambda x: x.T, torch.t, (a,)),
}


@pytest.mark.parametrize("expression", OPERATORS)
def test_operators_of_python(expression):
    written, operation, operands = OPERATORS[expression]
    call = Call.of(operation, sample(*operands))
    tensors = tuple(operations.Slot(n) for n in range(len(call.tensors)))
    g = call.upstream()
    model = Model(replace(call, operation=written, arguments=(tensors, {})), torch.float64)
    received = model.handed_back(model.under(attnlrp), g)
    for gradient, wanted in zip(received, naive.gradients(call, g), strict=True):
        assert_close(gradient, wanted, 1e-12)


@st.composite
def broadcast_pairs(draw):
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    other = [draw(st.sampled_from((n, 1))) for n in shape][draw(st.integers(0, len(shape) - 1)) :]
    shapes = (tuple(shape), tuple(other))
    return draw(st.permutations(shapes)), draw(st.sampled_from(DTYPES))


def _check(call: Call, dtype: torch.dtype) -> None:
    model, g = Model(call, dtype), call.upstream()
    outputs = model.under(attnlrp)
    plain = call(*[x.detach() for x in call.copies(dtype)])
    assert all(map(torch.equal, outputs, plain))
    tolerance = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
    for x, gradient, wanted in zip(
        model.explained, model.handed_back(outputs, g), naive.gradients(call, g), strict=True
    ):
        assert gradient.dtype == x.dtype
        # What broadcasting repeats is summed, where numbers may cancel.
        assert_close(gradient, wanted, tolerance * max(1, g[0].numel() ** 0.5))


@settings(max_examples=60, deadline=None)
@given(broadcast_pairs(), st.sampled_from((torch.mul, torch.add, torch.sub, torch.div)))
def test_broadcasting(pair, operation):
    (first, second), dtype = pair
    _check(Call.of(operation, sample(t(*first), t(*second))), dtype)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2), *[st.integers(1, 3)] * 3)
def test_matmul_broadcasts_its_batches(batch, dropped, n, m, k):
    other = t(*[1 if i == 0 else size for i, size in enumerate(batch)][dropped:], m, k)
    _check(Call.of(torch.matmul, sample(t(*batch, n, m), other)), torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_einsum_of_any_number_of_factors(subscripts, data):
    subscripts = ["".join(dict.fromkeys(letters)) for letters in subscripts]
    used = sorted({letter for letters in subscripts for letter in letters})
    kept = "".join(letter for letter in used if data.draw(st.booleans(), label=letter))
    equation = f"{','.join(subscripts)}->{kept}"
    operands = [t(*(1 + "abc".index(letter) for letter in letters)) for letters in subscripts]
    _check(Call.of(torch.einsum, sample(equation, *operands)), torch.float64)


@pytest.mark.parametrize("composite", [attnlrp, lxt.explicit.attnlrp], ids=lambda c: c.formulation)
@pytest.mark.parametrize(
    "write",
    [torch.sigmoid_, functools.partial(F.silu, inplace=True), torch.exp_, torch.relu_],
    ids=["sigmoid", "silu", "exp", "relu"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writing_to_many_numbers_of_a_slice_rounds_as_the_plain_model(write, composite, dtype):
    """Kernels for numbers that lie apart round some sigmoids another way."""
    values = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    call = replace(Call.of(write, sample(t(64, 64))), tensors=(values,))
    model = Model(call, dtype, in_slice=True)
    (plain,) = model(*model.explained)
    assert torch.equal(model.under(composite)[0], plain)
