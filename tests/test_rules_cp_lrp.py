"""Where CP-LRP differs: softmax, attention, gated linear units and gates; and dropout."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import naive_attention
import operations
from lxt.composites import attnlrp, cp_lrp
from lxt.explicit import explicit_form
from lxt.rules.registry import sample, t
from operations import Call, Model, assert_close

ENTRIES = operations.all_entries()
EXPLICIT_CP_LRP = explicit_form(cp_lrp, 1e-12)


def calls(name: str) -> list[Call]:
    return operations.entry_calls(ENTRIES[name])


def test_cp_lrp_takes_softmax_as_a_constant():
    for name in ENTRIES:
        if operations.base_name(ENTRIES[name].operation) in ("softmax", "softmin"):
            (call,) = calls(name)
            model = Model(call, torch.float64)
            assert not any(y.requires_grad for y in model.under(cp_lrp))


def test_cp_lrp_hands_all_of_attention_to_the_value():
    for call in calls("torch.nn.functional.scaled_dot_product_attention"):
        model, g = Model(call, torch.float64), call.upstream()
        received = model.handed_back(model.under(cp_lrp), g)
        wanted = naive_attention.attention(call, g, weights_are_constant=True)
        for index, gradient in zip(call.carriers(), received, strict=True):
            assert_close(gradient, wanted[index], 1e-12)


def test_cp_lrp_takes_the_gate_of_a_gated_linear_unit_as_a_constant():
    for call in calls("torch.nn.functional.glu"):
        model, g = Model(call, torch.float64), call.upstream()
        (received,) = model.handed_back(model.under(cp_lrp), g)
        assert_close(received, naive_attention.glu(call, g, gate_is_constant=True)[0], 1e-12)


# A gate on its way from the non-linearity to the product, all of shape [2, 4] in the end.
WAYS = {
    "itself": lambda gate: gate,
    "view": lambda gate: gate.view(4, 2).view(2, 4),
    "transpose": lambda gate: gate.transpose(0, 1).reshape(2, 4),
    "slice": lambda gate: gate[:, :4],
    "chunk": lambda gate: gate.chunk(1, -1)[0],
    "split": lambda gate: gate.split(4, -1)[0],
    "unsqueeze": lambda gate: gate.unsqueeze(0).squeeze(0),
    "expand": lambda gate: gate[None].expand(1, 2, 4)[0],
    "cast": lambda gate: gate.float().double(),
    "contiguous": lambda gate: gate.t().contiguous().t(),
}
AFFINE = {
    "1 - gate": lambda gate: 1 - gate,
    "1 + gate": lambda gate: 1 + gate,
    "gate + 1": lambda gate: gate + 1,
    "gate - a constant": lambda gate: gate - torch.linspace(0, 1, 4, dtype=gate.dtype),
    "a constant - gate": lambda gate: torch.linspace(0, 1, 4, dtype=gate.dtype) - gate,
    "rsub": lambda gate: torch.rsub(gate, 2),
    "-gate": lambda gate: -gate,
    "gate += 1": lambda gate: gate.clone().add_(1),
    "2 * gate + 1": lambda gate: 2 * gate + 1,
}
WAYS |= AFFINE
PRODUCTS = {
    "gate * x": lambda gate, x: gate * x,
    "x * gate": lambda gate, x: x * gate,
    "mul(x, other=gate)": lambda gate, x: torch.mul(x, other=gate),
    "x.mul_(gate)": lambda gate, x: x.mul_(gate),
    "gate.mul_(x)": lambda gate, x: gate.clone().mul_(x),
}
GATES = {
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
}


@pytest.mark.parametrize("non_linearity", GATES)
@pytest.mark.parametrize("multiply", PRODUCTS)
@pytest.mark.parametrize("way", WAYS)
def test_cp_lrp_takes_a_gate_as_a_constant(non_linearity, multiply, way):
    gate_of, by, through = GATES[non_linearity], PRODUCTS[multiply], WAYS[way]
    call = Call.of(lambda x, y: by(through(gate_of(x)), y), sample(t(2, 4), t(2, 4)))
    model, g = Model(call, torch.float64), call.upstream()
    to_gate, to_other = model.handed_back(model.under(cp_lrp), g)
    gate = through(gate_of(call.tensors[0].clone()))
    assert not to_gate.any()
    assert_close(to_other, g[0] * gate, 1e-6 if way == "cast" else 1e-12)


@pytest.mark.parametrize("shift", AFFINE)
def test_explicit_cp_lrp_takes_a_shifted_gate_as_a_constant(shift):
    call = Call.of(lambda x, y: AFFINE[shift](torch.sigmoid(x)) * y, sample(t(2, 4), t(2, 4)))
    model, (g,) = Model(call, torch.float64), call.upstream()
    outputs = model.under(EXPLICIT_CP_LRP)
    to_gate, to_other = model.handed_back(outputs, [outputs[0].detach() * g])
    assert not to_gate.any()
    assert_close(to_other, outputs[0].detach() * g, 1e-12)


@pytest.mark.parametrize("non_linearity", ["silu in place", "sigmoid_"])
def test_cp_lrp_takes_a_gate_computed_in_place_as_a_constant(non_linearity):
    gate_of = {
        "silu in place": lambda x: F.silu(x, inplace=True),
        "sigmoid_": lambda x: x.sigmoid_(),
    }[non_linearity]
    call = Call.of(lambda x, y: gate_of(x) * y, sample(t(2, 4), t(2, 4)))
    model, g = Model(call, torch.float64), call.upstream()
    to_gate, to_other = model.handed_back(model.under(cp_lrp), g)
    assert not to_gate.any()
    assert_close(to_other, g[0] * gate_of(call.tensors[0].clone()), 1e-12)


def test_cp_lrp_halves_a_product_without_a_gate_and_of_two():
    for operation in (lambda x, y: (x + 1) * y, lambda x, y: F.silu(x) * torch.sigmoid(y)):
        call = Call.of(operation, sample(t(2, 4), t(2, 4)))
        model, attn = Model(call, torch.float64), Model(call, torch.float64)
        g = call.upstream()
        received = model.handed_back(model.under(cp_lrp), g)
        halves = attn.handed_back(attn.under(attnlrp), g)
        for gradient, wanted in zip(received, halves, strict=True):
            assert gradient.any()
            assert_close(gradient, wanted, 1e-12)


def test_cp_lrp_halves_a_product_with_a_gate_to_which_something_is_added():
    for shift in (lambda gate, y: gate + y, lambda gate, y: y - gate):
        call = Call.of(lambda x, y, s=shift: s(x.sigmoid(), y) * y, sample(t(2, 4), t(2, 4)))
        model, attn = Model(call, torch.float64), Model(call, torch.float64)
        g = call.upstream()
        received = model.handed_back(model.under(cp_lrp), g)
        halves = attn.handed_back(attn.under(attnlrp), g)
        for gradient, wanted in zip(received, halves, strict=True):
            assert gradient.any()
            assert_close(gradient, wanted, 1e-12)


# Products of matrices [2, 3, 4] and [2, 4, 3], as they can be written.
MATRIX_PRODUCTS = {
    "@": lambda a, b: a @ b,
    "torch.matmul": torch.matmul,
    "bmm": torch.bmm,
    "mm": lambda a, b: torch.stack([torch.mm(*pair) for pair in zip(a, b, strict=True)]),
    "einsum": lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    "baddbmm": lambda a, b: torch.baddbmm(torch.zeros(2, 3, 3, dtype=a.dtype), a, b),
    "addmm": lambda a, b: torch.stack(
        [torch.addmm(torch.zeros(3, 3, dtype=a.dtype), *p) for p in zip(a, b, strict=True)]
    ),
}


@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
@pytest.mark.parametrize("composite", [cp_lrp, EXPLICIT_CP_LRP], ids=["gradient", "explicit"])
def test_cp_lrp_takes_a_matrix_of_gates_as_a_constant(name, composite):
    by = MATRIX_PRODUCTS[name]
    call = Call.of(lambda x, y: by(torch.sigmoid(x), y), sample(t(2, 3, 4), t(2, 4, 3)))
    x, values = call.tensors
    gates = torch.sigmoid(x)
    model, (g,) = Model(call, torch.float64), call.upstream()
    outputs = model.under(composite)
    explicit = composite is EXPLICIT_CP_LRP
    to_gates, to_values = model.handed_back(outputs, [outputs[0].detach() * g if explicit else g])
    wanted = torch.zeros_like(values)
    for b, i, j, k in itertools.product(range(2), range(3), range(4), range(3)):
        wanted[b, j, k] += gates[b, i, j] * g[b, i, k]
    assert not to_gates.any()
    assert_close(to_values, wanted * values if explicit else wanted, 1e-8 if explicit else 1e-12)


@pytest.mark.parametrize("name", MATRIX_PRODUCTS)
def test_cp_lrp_halves_a_matrix_product_of_two_gates(name):
    by = MATRIX_PRODUCTS[name]
    call = Call.of(lambda x, y: by(torch.sigmoid(x), F.silu(y)), sample(t(2, 3, 4), t(2, 4, 3)))
    g = call.upstream()
    model, attn = Model(call, torch.float64), Model(call, torch.float64)
    received = model.handed_back(model.under(cp_lrp), g)
    halves = attn.handed_back(attn.under(attnlrp), g)
    for gradient, wanted in zip(received, halves, strict=True):
        assert gradient.any()
        assert_close(gradient, wanted, 1e-12)


# How a router that scores by a sigmoid makes weights [2, 2] of its scores [2, 4].
PICKED = {
    "topk": lambda scores: scores.topk(2, -1).values,
    "torch.topk": lambda scores: torch.topk(scores, 2, sorted=False)[0],
    "gather": lambda scores: scores.gather(1, (scores + 1).topk(2).indices),
    "sort": lambda scores: scores.sort(-1, descending=True).values[:, :2],
    "stable sort": lambda scores: torch.sort(scores, stable=True)[0][:, :2],
}
NORMED = {
    "as they are": lambda weights: weights,
    "over their sum": lambda weights: weights / (weights.sum(-1, keepdim=True) + 1e-20),
    "in place": lambda weights: weights.clone().div_(weights.sum(-1, keepdim=True)),
    "over a number": lambda weights: weights / 3,
    "scaled": lambda weights: 2.5 * weights,
}


def routed(picked: str, normed: str, activation=torch.sigmoid) -> Call:
    """The outputs [2, 2, 3] of two experts for two tokens, times what a router has for them."""

    def experts_sum(logits, experts):
        weights = NORMED[normed](PICKED[picked](activation(logits)))
        return (experts * weights[..., None]).sum(1)

    return Call.of(experts_sum, sample(t(2, 4), t(2, 2, 3)))


@pytest.mark.parametrize("normed", NORMED)
@pytest.mark.parametrize("picked", PICKED)
def test_cp_lrp_takes_a_router_as_a_constant(picked, normed):
    call = routed(picked, normed)
    weights = NORMED[normed](PICKED[picked](torch.sigmoid(call.tensors[0])))
    model, g = Model(call, torch.float64), call.upstream()
    to_router, to_experts = model.handed_back(model.under(cp_lrp), g)
    assert not to_router.any()
    assert_close(to_experts, weights[..., None] * g[0][:, None], 1e-12)
    model = Model(call, torch.float64)
    outputs = model.under(EXPLICIT_CP_LRP)
    relevance = [y.detach() * g_y for y, g_y in zip(outputs, g, strict=True)]
    of_router, of_experts = model.handed_back(outputs, relevance)
    assert not of_router.any()
    assert_close(of_experts, call.tensors[1] * to_experts, 1e-8)


def test_cp_lrp_halves_a_product_with_what_was_picked_from_no_gate():
    for picked, normed in itertools.product(PICKED, NORMED):
        call = routed(picked, normed, activation=lambda logits: logits + 4)
        g = call.upstream()
        model, attn = Model(call, torch.float64), Model(call, torch.float64)
        received = model.handed_back(model.under(cp_lrp), g)
        halves = attn.handed_back(attn.under(attnlrp), g)
        for gradient, wanted in zip(received, halves, strict=True):
            assert gradient.any()
            assert_close(gradient, wanted, 1e-12)


# --- training ------------------------------------------------------------------------------------


def test_dropout_is_off_in_training_mode():
    dropouts = (F.dropout, F.alpha_dropout, F.dropout1d, F.feature_alpha_dropout, torch.dropout)
    for operation in dropouts:
        model = Model(Call.of(operation, sample(t(2, 3, 4), 0.9, True)), torch.float64)
        (y,) = model.under(attnlrp)
        assert torch.equal(y, model.explained[0])
