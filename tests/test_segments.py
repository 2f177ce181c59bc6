"""`checkpoint=`: the same relevance, to the bit, however layers are made and called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import lxt
import zoo
from layered import Layer, Recorded, Stack, gradient, leaf, llama, of_stack
from lxt.engine.segments import layers_of
from lxt.explicit.composites import attnlrp as explicit_attnlrp

LENGTHS = (1, 2, "sqrt")
over_lengths = pytest.mark.parametrize("length", LENGTHS)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


@pytest.fixture
def x() -> Tensor:
    return leaf()


# --- the same relevance --------------------------------------------------------------------------

# As they come, with the cache that some make by themselves. Layers' types are a list in some.
_FOUR: dict[str, Any] = {"num_hidden_layers": 4}
_ALIKE = [
    *("llama", "gpt2", "bert", "qwen3_moe", "t5", "t5_gated", "vit", "falcon", "bloom"),
    *("falcon_sequential", "deberta_v2", "mamba", "opt", "gpt_neox"),
]
OPTIONS: dict[str, dict[str, Any]] = {name: {"num_hidden_layers": 5} for name in _ALIKE} | {
    "gemma3": _FOUR | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3_5": _FOUR | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": _FOUR,
    "recurrent_gemma": {},  # of three
}


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
@pytest.mark.parametrize("name", OPTIONS)
def test_relevance_is_what_it_is_without(
    name: str, composite: lxt.Composite, recorded: Recorded
) -> None:
    """Bit by bit, since the same kernels run on the same values."""
    model = zoo.build(name, **OPTIONS[name])
    of = zoo.example(name, model)
    expected = gradient(model, of, composite=composite)
    assert not recorded.lengths()
    for length in LENGTHS:
        assert torch.equal(gradient(model, of, length, composite), expected)
        lengths = recorded.lengths()
        assert sum(lengths) >= 2
        assert max(lengths) == (1 if length == 1 else 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_in_other_types(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name, dtype=dtype, num_hidden_layers=4)
    of = zoo.example(name, model)
    assert torch.equal(gradient(model, of, 2), gradient(model, of))


@over_lengths
def test_the_explicit_formulation(length: Any) -> None:
    model, of = llama()
    expected = gradient(model, of, composite=explicit_attnlrp)
    assert torch.equal(gradient(model, of, length, explicit_attnlrp), expected)


@over_lengths
def test_layers_that_are_run_through_again_and_again(length: Any, recorded: Recorded) -> None:
    """ALBERT has one layer; the segments get longer as it is called."""
    config = transformers.AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=48,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.AlbertForMaskedLM(config).double().eval()
        x = torch.randn(1, 7, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for checkpoint in (None, length):
        with lxt.attnlrp.context(model, checkpoint=checkpoint):
            logits = model(inputs_embeds=x).logits
        results.append(torch.autograd.grad(logits[0, 2].max(), x)[0])
    assert torch.equal(*results)
    expected = {1: [1] * 12, 2: [2] * 6, "sqrt": [1, 1, 2, 2, 3, 3]}
    assert recorded.lengths() == expected[length]


def test_under_autocast() -> None:
    model, of = llama(dtype=torch.float32)

    def run(checkpoint: Any) -> Tensor:
        with (
            torch.autocast("cpu", torch.bfloat16),
            lxt.attnlrp.context(model, checkpoint=checkpoint),
        ):
            logits = of.run(model)
        return torch.autograd.grad(logits.float().square().sum(), of.leaf)[0]

    expected = run(None)
    assert not torch.equal(gradient(model, of), expected)
    for length in LENGTHS:
        assert torch.equal(run(length), expected)


def test_several_backward_passes_of_one_forward() -> None:
    model, of = llama()
    runs = []
    for checkpoint in (None, 2):
        with lxt.attnlrp.context(model, checkpoint=checkpoint):
            runs.append(of.run(model))
    seeds = torch.zeros(3, *runs[0].shape, dtype=torch.float64)
    for index in range(3):
        seeds[index, 0, index - 3, index] = 1
    for _ in range(2):
        alone = [
            [torch.autograd.grad(y, of.leaf, seed, retain_graph=True)[0] for seed in seeds]
            for y in runs
        ]
        assert all(map(torch.equal, *alone))
        batched = [
            torch.autograd.grad(y, of.leaf, seeds, is_grads_batched=True, retain_graph=True)[0]
            for y in runs
        ]
        assert torch.equal(*batched)
        assert torch.allclose(batched[0], torch.stack(alone[0]), rtol=1e-12, atol=1e-12)


@over_lengths
def test_backward_from_within(length: Any) -> None:
    """From the third layer's output, while the layers after it are there and when they are not."""
    model, of = llama()
    for alive in (True, False):
        results = []
        for checkpoint in (None, length):
            states: list[Tensor] = []
            hook = model.model.layers[2].register_forward_hook(
                lambda m, i, o, s=states: s.append(o)
            )
            with lxt.attnlrp.context(model, checkpoint=checkpoint):
                logits = of.run(model) if alive else of.run(model).detach()
            hook.remove()
            results.append(torch.autograd.grad(states[0].square().sum(), of.leaf)[0])
            del logits
        assert torch.equal(*results)


# --- what happens between layers, and around them ------------------------------------------------


def changed_between(layers: nn.ModuleList, x: Tensor) -> Tensor:
    x = layers[1](layers[0](x)) * 1.5
    x = layers[2](x)
    x += 1.0  # the same tensor, and another value
    return layers[4](layers[3](x))


def out_of_order(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for index in (4, 1, 1, 0):
        x = layers[index](x)
    return x


def skips(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """As in a U-net."""
    a = layers[0](x)
    b = layers[1](a)
    c = layers[2](b)
    return layers[4](layers[3](c) + b) + a


def branches(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return sum(F.silu(layer(x)) for layer in layers)  # type: ignore[return-value]


def early_exit(layers: nn.ModuleList, x: Tensor) -> Tensor:
    side = []
    for layer in layers[:3]:
        x = layer(x)
        side.append(x)
    layers[3](x)  # for nothing
    return side[0] * 2 + side[2]


ROUTES = {
    changed_between: [2, 1, 2],
    out_of_order: [2, 2],
    skips: [2, 2, 1],
    branches: [1] * 6,
    early_exit: [2, 2],
}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
def test_layers_need_not_be_called_in_a_row(route: Any, x: Tensor, recorded: Recorded) -> None:
    model = Stack(route=route)
    expected = of_stack(model, x)
    for length in (1, 2, 100):
        assert torch.equal(of_stack(model, x, length), expected)
        lengths = recorded.lengths()
        if length == 2:
            assert lengths == ROUTES[route]


class Several(nn.Module):
    """Takes and returns more than one tensor, in dicts and tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, state: dict[str, Any], *, bias: Tensor, rest: Any = None) -> Any:
        x, old = state["now"]
        y = torch.tanh(self.linear(x)) + old * bias
        return {"now": (y, x)}, y.mean()


def with_several(layers: nn.ModuleList, x: Tensor) -> Tensor:
    state, total = {"now": (x, x.sin())}, x.new_zeros(())
    bias = x.detach().exp()
    for layer in layers:
        state, mean = layer(state, bias=bias, rest=[None, "a"])
        total = total + mean.square()
    return state["now"][0] + total


def test_operands_and_results_within_others(x: Tensor, recorded: Recorded) -> None:
    model = Stack([Several() for _ in range(6)], with_several)
    expected = of_stack(model, x)
    for length in (1, 2, 3):
        assert torch.equal(of_stack(model, x, length), expected)
        assert recorded.lengths() == [length] * (6 // length)


def test_hooks_on_layers() -> None:
    """Theirs is not the layer's forward; what they return is another tensor."""
    model, of = llama()
    model.model.layers[2].register_forward_hook(lambda m, i, o: o * 1.5)
    model.model.layers[3].register_full_backward_hook(lambda m, gi, go: None)
    seen: list[Any] = []
    model.model.layers[4].register_forward_pre_hook(
        lambda m, i: (seen.append(m), (i[0] + 1, *i[1:]))[1]
    )
    expected = gradient(model, of)
    for length in (*LENGTHS, 5):
        seen.clear()
        assert torch.equal(gradient(model, of, length), expected)
        assert len(seen) == 1


def test_layers_that_are_targets_themselves(x: Tensor) -> None:

    def plain(module: Layer, x: Tensor) -> Tensor:
        return x + F.silu(module.linear(x))

    model = Stack()
    by_rules = of_stack(model, x)
    results = []
    for checkpoint in (None, 1, 3):
        with (lxt.attnlrp | {Layer: plain}).context(model, checkpoint=checkpoint):
            y = model(x)
        results.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert all(torch.equal(results[0], one) for one in results[1:])
    assert not torch.equal(results[0], by_rules)


def test_true_is_the_root(recorded: Recorded) -> None:
    model, of = llama(9)
    gradient(model, of, True)
    assert recorded.lengths() == [3, 3, 3]


# --- which modules are layers --------------------------------------------------------------------


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(depth))


class Sides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = Layer(), nn.LayerNorm(4), Layer()


def test_layers_are_told_by_structure() -> None:
    def lengths(model: nn.Module) -> list[int]:
        return [len(stack) for stack in layers_of(model)]

    assert lengths(zoo.build("t5")) == [2, 2]
    assert lengths(zoo.build("llama", num_hidden_layers=7)) == [7]
    assert lengths(nn.ModuleList([Stage(2), Stage(6), Stage(2)])) == [2, 6, 2]
    assert lengths(nn.ModuleList([Stage(3), Stage(3)])) == [2]  # experts, for one
    assert lengths(nn.Sequential(nn.Linear(4, 4), Layer(), Layer(), nn.LayerNorm(4))) == [2]
    assert lengths(nn.Sequential(Layer(), Stack())) == [6]
    assert lengths(Sides()) == [2]
    shared = Layer()
    assert lengths(nn.ModuleList([shared, Layer(), shared])) == [2]
