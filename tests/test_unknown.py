"""An operation without a rule is never passed over: it raises, unless told to take the gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import operations
from lxt.composites import attnlrp
from lxt.errors import InvalidComposite, ReentrantCheckpoint, UnknownOperation
from lxt.rules import unit
from lxt.rules.registry import constant_t, sample, t
from naive_functions import FUNCTIONS, secant
from operations import Call, Model

ENTRIES = operations.all_entries()

NEEDS_A_GPU = {"torch.Tensor.cuda"}
# Written in Python as calls of other operations, which are what torch shows.
SHOWN_AS_OTHERS = {
    "torch.nn.functional.sigmoid",
    "torch.nn.functional.tanh",
    "torch.nn.functional.upsample",
    "torch.nn.functional.grouped_mm",
}


def autograd(call: Call, dtype: torch.dtype, g: list[Tensor]) -> list[Tensor]:
    model = Model(call, dtype).requires_grad_(False)
    return model.handed_back(model(*model.explained), g)


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - NEEDS_A_GPU - SHOWN_AS_OTHERS))
def test_a_rule_left_out_is_noticed(name):
    entry = ENTRIES[name]
    call = operations.entry_calls(entry)[0]
    composite = attnlrp.without(entry.operation)
    model = Model(call, call.precise)
    try:
        wanted = autograd(call, call.precise, call.upstream())
    except (NotImplementedError, RuntimeError):  # autograd has no derivative: nothing flows
        wanted = None
    with pytest.raises(UnknownOperation) as raised:
        model.under(composite)
    message = str(raised.value)
    assert operations.operation_name(entry.operation) in message
    assert "(Model)" in message
    assert "test_unknown" in message or "operations.py" in message
    if wanted is not None:
        outputs = model.under(composite, on_unknown="gradient")
        received = model.handed_back(outputs, call.upstream())
        assert all(map(torch.equal, received, wanted))


REPRESENTATIVE = [F.silu, torch.matmul, torch.softmax, F.layer_norm, F.linear, torch.rsqrt]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(REPRESENTATIVE), unique=True, min_size=1),
    st.permutations(REPRESENTATIVE[:3]),
)
def test_the_first_of_several_operations_left_out_is_named(left_out, order):
    calls = {
        F.silu: F.silu,
        torch.matmul: lambda x: torch.matmul(x, x),
        torch.softmax: lambda x: torch.softmax(x, -1),
    }

    class Chain(nn.Module):
        def forward(self, x):
            for operation in order:
                x = calls[operation](x)
            return x

    x = torch.randn(3, 3, requires_grad=True)
    first = next((operation for operation in order if operation in left_out), None)
    with attnlrp.without(*left_out).context(model := Chain()):
        if first is None:
            model(x)
        else:
            with pytest.raises(
                UnknownOperation, match=rf"{operations.operation_name(first)} has no"
            ):
                model(x)


@pytest.mark.parametrize("operation", REPRESENTATIVE)
def test_constants_may_run_anything(operation):
    (call, *_) = operations.entry_calls(ENTRIES[operations.operation_name(operation)])
    model = Model(call, torch.float64)
    with attnlrp.without(operation).context(model):
        y = model(*[x.detach() for x in model.explained])
    assert not any(tensor.requires_grad for tensor in y)


def test_only_rules_that_are_there_can_be_left_out():
    with pytest.raises(InvalidComposite, match=r"no rule for torch.special.zeta"):
        attnlrp.without(torch.special.zeta)


# --- calls that a rule does not cover ------------------------------------------------------------

REFUSED = {
    "batch norm in training": (
        lambda x: F.batch_norm(x, None, None, training=True),
        (t(4, 3),),
        "mixes the rows",
    ),
    "exponents on both sides of 1": (
        lambda x: x ** torch.tensor([0.5, 2.0, 3.0]),
        (t(2, 3),),
        "some exponents are below 1",
    ),
    "an exponent that carries relevance": (torch.pow, (t(2, 3), t(2, 3)), "'exponent' depends"),
    "a norm's weight that carries relevance": (
        F.layer_norm,
        (t(2, 3), (3,), t(3)),
        "'weight' depends",
    ),
    "a bound that carries relevance": (torch.clamp, (t(2, 3), t(2, 3)), "depends"),
    "a slope that carries relevance": (F.prelu, (t(2, 3), t(3)), "depends"),
    "a product that is scattered": (
        lambda x: x.scatter_reduce(1, torch.tensor([[0, 1], [2, 0]]), x[:, 1:] + 1, "prod"),
        (t(2, 3),),
        "by how many factors",
    ),
    "an interpolation's weight": (torch.lerp, (t(2, 3), t(2, 3), t(2, 3)), "'weight' depends"),
    "a packed sequence": (
        lambda x, *weights: torch.gru(
            x, torch.tensor([2, 1]), torch.zeros(1, 2, 2).to(x), weights, True, 1, 0.0, False, False
        )[0],
        (t(3, 3), constant_t(6, 3), constant_t(6, 2), constant_t(6), constant_t(6)),
        "packed",
    ),
    "a bilinear map that carries relevance": (
        F.bilinear,
        (t(2, 3), t(2, 3), t(1, 3, 3)),
        "'weight' depends",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_a_rule_does_not_cover(case):
    operation, operands, reason = REFUSED[case]
    call = Call.of(operation, sample(*operands))
    model = Model(call, torch.float64)
    with pytest.raises(UnknownOperation, match="does not cover this call") as raised:
        model.under(attnlrp)
    assert reason in str(raised.value)
    g = call.upstream()
    received = model.handed_back(model.under(attnlrp, on_unknown="gradient"), g)
    for gradient, wanted in zip(received, autograd(call, torch.float64, g), strict=True):
        assert torch.equal(gradient.nan_to_num(), wanted.nan_to_num())


# --- what no torch function shows ----------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        return gradients[0] * 3 * x**2


@torch.jit.script
def scripted_cube(x: Tensor) -> Tensor:
    return x * x * x


class Opaque(nn.Module):
    """Calls a function, and goes on with it if there is `more` to do."""

    def __init__(self, function, more=False):
        super().__init__()
        self.function = function
        self.more = more

    def forward(self, x):
        y = self.function(x)
        return y + 1 if self.more else y


OPAQUE = {
    "an autograd Function": (Cube.apply, "Cube"),
    "scripted code": (scripted_cube, "DifferentiableGraph|Mul"),
}


@pytest.mark.parametrize("more", [False, True], ids=["last", "in between"])
@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_operations_raise(kind, more):
    function, node = OPAQUE[kind]
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    for model in (Opaque(function, more), nn.Sequential(Opaque(function, more), nn.Identity())):
        with attnlrp.context(model), pytest.raises(UnknownOperation, match=node):
            model(x.clone())
        with attnlrp.context(model, on_unknown="gradient"):
            y = model(x.clone())
        assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], 3 * x**2)
        with attnlrp.context(model), torch.no_grad():
            model(x)


@pytest.mark.parametrize("more", [False, True], ids=["last", "in between"])
@pytest.mark.parametrize("kind", OPAQUE)
def test_a_rule_for_the_module_covers_an_opaque_operation(kind, more):
    function, _ = OPAQUE[kind]
    x = torch.tensor([0.5, -2.0, 1e-5, 0.0], dtype=torch.float64, requires_grad=True)
    model = nn.Sequential(Opaque(function, more), nn.Identity())
    with (attnlrp | {Opaque: unit}).context(model):
        y = model(x.clone())
    # x² is the secant slope of x³; 1e-11: see numeric_slope, where f(0) = 1.
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], x**2, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp:FutureWarning")
def test_reentrant_checkpoints_raise_and_others_do_not():
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    for function in (torch.tanh, torch.sigmoid):
        reentrant = Opaque(lambda v, f=function: checkpoint(f, v, use_reentrant=True))
        with attnlrp.context(reentrant), pytest.raises(ReentrantCheckpoint, match="use_reentrant"):
            reentrant(x.clone())
        other = Opaque(lambda v, f=function: checkpoint(f, v, use_reentrant=False))
        with attnlrp.context(other):
            y = other(x.clone())
        (gradient,) = torch.autograd.grad(y.sum(), x)
        name = function.__name__
        wanted = [secant(FUNCTIONS[name], value) for value in x.tolist()]
        assert gradient.tolist() == pytest.approx(wanted, rel=1e-12)


def test_the_message_says_where_and_what_to_write():
    call = Call.of(torch.special.zeta, sample(constant_t(2), t(2)))
    inner = Opaque(lambda x: torch.special.i0(x) + call.carries[0])
    model = nn.Sequential(nn.Identity(), inner)
    with attnlrp.context(model), pytest.raises(UnknownOperation) as raised:
        model(torch.ones(2, requires_grad=True).clone())
    message = str(raised.value)
    for part in ("i0 has no rule in composite 'attnlrp'", "'1' (Opaque)", "test_unknown.py:"):
        assert part in message
    assert "lxt.rules.unit}" in message
