"""The explicit composites against the efficient ones: each formulation is the other's proof."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import operations
import zoo
from lxt.coverage.exact import ExactFloat64
from lxt.entries import rule_name
from lxt.errors import InvalidComposite, UnknownOperation
from lxt.explicit import explicit_form
from lxt.explicit.check import conservation_check
from lxt.explicit.composites import moves, not_in_place
from lxt.rules.registry import REGISTRY
from operations import Call, Model

TINY = 1e-12
EFFICIENT = {"attnlrp": lxt.attnlrp, "cp_lrp": lxt.cp_lrp}
EXPLICIT = {name: explicit_form(composite, TINY) for name, composite in EFFICIENT.items()}

SKIPPED = {
    "torch.Tensor.cuda",  # needs a GPU
    "torch.embedding_bag",  # refused: it returns four tensors
}

over_composites = pytest.mark.parametrize("composite", EFFICIENT)
over_cases = pytest.mark.parametrize(("name", "attention"), zoo.CASES)


def explained(logits: Tensor, example: zoo.Example) -> Tensor:
    """The highest logit of each output, which no rule of the model is involved in choosing."""
    return logits[example.output_mask].amax(-1)


def efficient_relevance(model: nn.Module, example: zoo.Example, composite: str) -> Tensor:
    with EFFICIENT[composite].context(model), ExactFloat64():
        value = explained(example.run(model), example)
    (gradient,) = torch.autograd.grad(value.sum(), example.leaf)
    return (example.leaf * gradient).detach()


def explicit_relevance(
    model: nn.Module, example: zoo.Example, composite: lxt.Composite
) -> tuple[Tensor, Tensor]:
    with ExactFloat64(), composite.context(model):
        value = explained(example.run(model), example)
        (relevance,) = torch.autograd.grad(value, example.leaf, value.detach())
    return relevance, value.detach()


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@over_composites
@over_cases
def test_both_formulations_agree(name: str, attention: str, composite: str) -> None:
    """To 1e-8. What is left is ε: denominators are y + 1e-12."""
    model = zoo.build(name, attention=attention)
    example = zoo.example(name, model)
    expected = efficient_relevance(model, example, composite)
    relevance, _ = explicit_relevance(model, example, EXPLICIT[composite])
    assert difference(relevance, expected) <= 1e-8


def random_call(call: Call) -> Call:
    """The call with no number of its result at zero, where relevance would say nothing."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        x + 1e-3 * torch.rand(x.shape, dtype=x.dtype, generator=generator)
        if x.is_floating_point()
        else x
        for x in call.tensors
    ]
    return Call(call.operation, call.arguments, tuple(tensors), call.carries)


def relevances(call: Call, composite: str, in_slice: bool = False) -> list[tuple[Tensor, Tensor]]:
    """What each operand gets in both formulations, for outputs with any relevance."""
    efficient, explicit = (
        Model(call, call.precise, in_slice=in_slice) for _ in ("efficient", "explicit")
    )
    outputs = efficient.under(EFFICIENT[composite])
    again = explicit.under(EXPLICIT[composite])
    for y, z in zip(outputs, again, strict=True):
        # Written to a slice, the result was computed beside it, by another kernel perhaps.
        assert torch.allclose(y, z, rtol=1e-14) if in_slice else torch.equal(y, z)
    g = [torch.randn(y.shape, dtype=y.dtype) for y in outputs]
    gradients = efficient.handed_back(outputs, g)
    expected = [
        by_parts(x.detach(), gradient)
        for x, gradient in zip(efficient.explained, gradients, strict=True)
    ]
    seeds = [y.detach() * g_y for y, g_y in zip(outputs, g, strict=True)]
    return list(zip(explicit.handed_back(again, seeds), expected, strict=True))


def by_parts(x: Tensor, gradient: Tensor) -> Tensor:
    """Input x gradient; the relevance of a complex number is that of each of its parts."""
    if not x.is_complex():
        return x * gradient
    return torch.complex(x.real * gradient.real, x.imag * gradient.imag)


def writes_what_carries(name: str) -> bool:
    """Whether an operation writes to a view; constants may not be written to one."""
    entry = operations.all_entries()[name]
    is_constant = operations.base_name(entry.operation) in ("sqrt", "rsqrt", "reciprocal")
    return not_in_place(entry.operation) is not None and not is_constant


@over_composites
@pytest.mark.parametrize("name", sorted(set(operations.all_entries()) - SKIPPED))
@pytest.mark.filterwarnings("ignore::lxt.errors.UnusedCompositeWarning")
def test_every_operation_agrees(name: str, composite: str) -> None:
    torch.manual_seed(0)
    for call in map(random_call, operations.entry_calls(operations.all_entries()[name])):
        for in_slice in (False, True) if writes_what_carries(name) else (False,):
            pairs = relevances(call, composite, in_slice)
            with torch.no_grad():
                coarse = any(y.dtype.itemsize < 8 for y in call(*call.copies(call.precise)))
            for actual, expected in pairs:
                assert actual.isfinite().all()
                operations.assert_close(actual, expected, 1e-2 if coarse else 1e-8)


def test_most_operations_have_an_explicit_rule_of_their_own() -> None:
    """And not the linearisation that the gradient's rule makes: that would prove little."""
    derived = {
        operations.base_name(operation)
        for operation in REGISTRY
        if rule_name(EXPLICIT["attnlrp"][operation]) == "linearised"
    }
    assert derived == {
        *("addmm", "addbmm", "baddbmm", "addmv", "addr", "addcmul", "bilinear"),
        *("glu", "group_norm", "instance_norm", "batch_norm", "local_response_norm"),
        *("embedding", "embedding_bag", "rrelu", "grid_sample", "scatter_reduce", "logit"),
        *("prod", "cumprod", "multi_dot", "chain_matmul", "cosine_similarity", "solve_triangular"),
        *("gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lerp"),
    }


@over_composites
@pytest.mark.parametrize("name", zoo.NAMES)
def test_conservation_check_passes_on_every_model(name: str, composite: str) -> None:
    """Each operation on the path of relevance has an explicit rule."""
    model = zoo.build(name)
    example = zoo.example(name, model)
    with conservation_check():
        relevance, value = explicit_relevance(model, example, EXPLICIT[composite])
    # A class token is a constant that takes up one of ten positions.
    expected = float(value.sum()) * (0.9 if name == "vit" else 1)
    assert float(relevance.sum()) == pytest.approx(expected, rel=1e-9)
    if composite == "attnlrp":  # without the check softmax absorbs, and biases do
        relevance, value = explicit_relevance(model, example, EXPLICIT[composite])
        assert float(relevance.sum()) != pytest.approx(float(value.sum()), rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert", "t5", "vit"])
def test_bit_identical_in_low_precision_and_checkpointed(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = zoo.build(name, dtype=dtype)
        example = zoo.example(name, model)
        model.requires_grad_(False)
        plain = example.run(model)
        with lxt.explicit.attnlrp.context(model):
            assert torch.equal(example.run(model), plain)
    model = zoo.build(name)
    example = zoo.example(name, model)

    def relevance() -> Tensor:
        with lxt.explicit.attnlrp.context(model):
            value = explained(example.run(model), example)
        return torch.autograd.grad(value, example.leaf, value.detach())[0]

    expected = relevance()
    model.train()
    model.gradient_checkpointing_enable()
    assert difference(relevance(), expected) <= 1e-12


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gets_nothing(side: zoo.Padding) -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model, padding=side)
    assert example.input_mask is not None
    relevance, _ = explicit_relevance(model, example, EXPLICIT["attnlrp"])
    assert relevance.isfinite().all()
    assert not relevance[~example.input_mask].any()
    expected = efficient_relevance(model, example, "attnlrp")
    assert difference(relevance, expected) <= 1e-8


def test_a_rule_of_ones_own_becomes_explicit() -> None:
    def half(input: Tensor, inplace: bool = False) -> Tensor:
        return input * torch.sigmoid(input).detach() * 0.5 + F.silu(input).detach() * 0.5

    efficient = lxt.attnlrp | {F.silu: half, nn.LayerNorm: lxt.rules.constant}
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    with efficient.context(model), ExactFloat64():
        value = explained(example.run(model), example)
    expected = example.leaf * torch.autograd.grad(value.sum(), example.leaf)[0]
    relevance, _ = explicit_relevance(model, example, explicit_form(efficient, TINY))
    assert difference(relevance, expected.detach()) <= 1e-8
    assert difference(relevance, efficient_relevance(model, example, "attnlrp")) > 1e-3


def test_formulations_dont_mix() -> None:
    with pytest.raises(InvalidComposite, match="'attnlrp' hand back gradient and those of"):
        lxt.attnlrp | lxt.explicit.attnlrp
    with pytest.raises(InvalidComposite, match="explicit form already"):
        explicit_form(lxt.explicit.attnlrp)
    with pytest.raises(InvalidComposite, match='formulation is "gradient" or "relevance"'):
        lxt.Composite({}, formulation="explicit")  # type: ignore[arg-type]
    assert (lxt.explicit.attnlrp | {F.silu: lxt.rules.constant}).formulation == "relevance"
    assert lxt.explicit.attnlrp.without(F.silu).formulation == "relevance"


def test_flex_attention_is_refused() -> None:
    model = zoo.build("llama", attention="flex_attention")
    example = zoo.example("llama", model)
    refused = pytest.raises(UnknownOperation, match="nothing shows the scores.*eager")
    with zoo.flex_attention_on_cpu(), refused, lxt.explicit.attnlrp.context(model):
        example.run(model)


def test_what_only_moves_keeps_its_rule() -> None:
    assert moves(Tensor.view)
    assert moves(torch.cat)
    assert not moves(torch.add)
    assert not moves(Tensor.index_add_)
    assert not_in_place(Tensor.add_) is torch.add
    assert not_in_place(Tensor.__ipow__) is torch.pow
    assert not_in_place(torch.add) is None


@pytest.mark.parametrize("composite", EFFICIENT)
def test_explain_takes_an_explicit_composite(composite: str) -> None:
    model = zoo.build("llama")
    ids = torch.arange(3, 14)
    for target in (None, lxt.Contrast(5, 9), lxt.Contrast(None)):
        expected = lxt.explain(model, ids, target=target, composite=EFFICIENT[composite])
        result = lxt.explain(model, ids, target=target, composite=EXPLICIT[composite])
        assert result.target == expected.target
        assert difference(result.relevance, expected.relevance) <= 1e-6  # the model's float32 parts
    half = zoo.build("llama", dtype=torch.float16)
    result = lxt.explain(half, ids, composite=lxt.explicit.attnlrp)
    assert result.relevance.isfinite().all()
