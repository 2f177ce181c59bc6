"""The zoo itself: what the battery of contracts × architectures relies on."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import zoo
from lxt.coverage.exact import ExactFloat64

if TYPE_CHECKING:
    from torch import Tensor

SLIDING = [case for case in zoo.CASES if "sliding_window" in zoo.ARCHITECTURES[case[0]].config]
FLEX = [
    name
    for name in zoo.NAMES
    if zoo.ARCHITECTURES[name].type._supports_flex_attn and not name.startswith("t5")
]


def _last(sample: zoo.Example, logits: Tensor) -> Tensor:
    """The outputs most likely to depend on everything: those of each row's last real position."""
    if sample.output_mask.ndim == 1:
        return logits
    rows, columns = sample.output_mask.nonzero(as_tuple=True)
    last = [int(columns[rows == row].max()) for row in range(len(logits))]
    return logits[torch.arange(len(logits)), last]


def _gradient(sample: zoo.Example, logits: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return torch.autograd.grad((logits * weights).sum(), sample.leaf)[0]


def _check_dependence(name: str, sample: zoo.Example, gradient: Tensor, window: int | None) -> None:
    if sample.input_mask is None:
        patches = gradient.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((1, 4, 5))
        assert (patches > 0).all()
        return
    reached = sample.input_mask.clone()
    if zoo.ARCHITECTURES[name].every_layer_slides:
        assert window is not None
        reach = 2 * (window - 1) + 1
        for row in reached:
            row[row.nonzero().flatten()[:-reach]] = False
        assert (reached != sample.input_mask).any(), "no token is out of reach: lengthen the input"
    assert torch.equal(gradient.abs().sum(-1) > 0, reached)


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_finite(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name, dtype=dtype)
    logits = zoo.example(name, model).run(model)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert logits.std() > 0.1


@pytest.mark.parametrize("name", zoo.NAMES)
def test_sizes_are_those_of_a_toy_and_options_exist(name: str) -> None:
    architecture, model = zoo.ARCHITECTURES[name], zoo.build(name)
    config = model.config
    assert config.hidden_size == 32
    assert config.num_hidden_layers in (2, 3)
    assert config.num_attention_heads == 4
    assert sum(parameter.numel() for parameter in model.parameters()) < 60_000
    source = inspect.getsource(sys.modules[architecture.type.__module__])
    known = set(type(config)().to_dict()) | set(config.attribute_map)
    assert [o for o in architecture.config if o not in known and o not in source] == []


@pytest.mark.parametrize("name", zoo.NAMES)
def test_all_parameters_are_random_and_require_grad(name: str) -> None:
    for key, parameter in zoo.build(name).named_parameters():
        assert parameter.requires_grad, key
        assert (parameter != 0).all(), key
        assert parameter.numel() == 1 or parameter.std() > 0.05, key


@pytest.mark.parametrize("name", zoo.NAMES)
def test_deterministic_and_without_trace_in_the_global_random_state(name: str) -> None:
    before = torch.get_rng_state()
    first, second, other = zoo.build(name), zoo.build(name), zoo.build(name, seed=1)
    one, two = zoo.example(name, first), zoo.example(name, second)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    third = zoo.build(name)
    torch.set_rng_state(before)
    state = first.state_dict()
    for model in (second, third):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(one.leaf, two.leaf)
    assert torch.equal(one.run(first), two.run(second))
    assert not torch.equal(one.run(first), one.run(other))


@pytest.mark.parametrize(("name", "attention"), zoo.CASES)
def test_every_input_position_matters(name: str, attention: str) -> None:
    model = zoo.build(name, attention=attention)
    sample = zoo.example(name, model)
    gradient = _gradient(sample, _last(sample, sample.run(model)))
    window = getattr(model.config, "sliding_window", None)
    _check_dependence(name, sample, gradient, window)


@pytest.mark.parametrize(("name", "padding"), zoo.PADDED)
def test_padding_does_not_matter(name: str, padding: zoo.Padding) -> None:
    for attention in zoo.ARCHITECTURES[name].attention:
        model = zoo.build(name, attention=attention)
        sample = zoo.example(name, model, batch=3, padding=padding)
        assert sample.input_mask is not None
        assert sample.input_mask.sum(1).tolist() == [8, 11, 8]
        with ExactFloat64():
            logits = sample.run(model)
            for index in range(3):
                row, one = sample.row(index), slice(index, index + 1)
                alone = row.run(model)[row.output_mask]
                in_batch = logits[one][sample.output_mask[one]]
                torch.testing.assert_close(in_batch, alone, rtol=0, atol=1e-12)
            gradient = _gradient(sample, _last(sample, logits))
        window = getattr(model.config, "sliding_window", None)
        _check_dependence(name, sample, gradient, window)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_padding_on_a_wrong_side_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can be padded on"):
        zoo.example(name, zoo.build(name), padding="left")


@pytest.mark.parametrize("name", [n for n in zoo.NAMES if len(zoo.ARCHITECTURES[n].attention) > 1])
def test_attention_implementations_agree(name: str) -> None:
    reference = zoo.build(name, attention="eager")
    model = zoo.build(name, attention="sdpa")
    sample = zoo.example(name, reference)
    with ExactFloat64():
        difference = (sample.run(reference) - sample.run(model)).abs().max().item()
    agrees = zoo.ARCHITECTURES[name].attention_agrees
    assert difference < 1e-9 if agrees else difference > 1e-3


@pytest.mark.parametrize(("name", "attention"), SLIDING)
def test_sliding_window_slides(name: str, attention: str) -> None:
    model = zoo.build(name, attention=attention)
    wide = zoo.build(name, attention=attention, sliding_window=64)
    window = model.config.sliding_window
    sample = zoo.example(name, model)
    difference = (sample.run(model) - sample.run(wide)).abs().amax((0, 2))
    assert window < len(difference)
    assert (difference[:window] < 1e-12).all()
    assert (difference[window:] > 1e-3).all()


@pytest.mark.parametrize("name", zoo.NAMES)
def test_dropout_acts_in_training_mode_only(name: str) -> None:
    model, training = zoo.build(name), zoo.build(name, training=True)
    sample = zoo.example(name, model)
    assert torch.equal(sample.run(model), sample.run(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(sample.run(training), sample.run(training))


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_are_routed_and_their_implementations_agree(name: str) -> None:
    loop = zoo.build(name, dtype=torch.float32, experts_implementation="eager")
    grouped = zoo.build(name, dtype=torch.float32)
    assert grouped.config._experts_implementation == "grouped_mm"
    sample = zoo.example(name, loop)
    torch.testing.assert_close(sample.run(loop), sample.run(grouped), rtol=1e-4, atol=1e-4)
    loop.zero_grad()
    sample.run(loop).square().sum().backward()
    gates = [p for key, p in loop.named_parameters() if "gate.weight" in key]
    assert len(gates) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates)


def test_soft_capping_caps() -> None:
    model = zoo.build("gemma2")
    sample = zoo.example("gemma2", model)
    for option in ("attn_logit_softcapping", "final_logit_softcapping"):
        off: dict[str, Any] = {option: None}
        without = zoo.build("gemma2", **off)
        assert (sample.run(model) - sample.run(without)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_leaf_in_place_of_the_embedding(name: str) -> None:
    model = zoo.build(name)
    sample = zoo.example(name, model, padding="right")
    hooked = dataclasses.replace(sample, leaf_name="embedding")
    assert torch.equal(sample.run(model), hooked.run(model))
    assert not torch.equal(sample.run(model), hooked.run(model, sample.leaf * 2))
    assert len(model.get_input_embeddings()._forward_hooks) == 0


@pytest.mark.parametrize("name", FLEX)
def test_flex_attention_on_cpu(name: str) -> None:
    reference = zoo.build(name)
    model = zoo.build(name, attention="flex_attention")
    side = zoo.ARCHITECTURES[name].padding[:1]
    for padding in (None, *side):
        sample = zoo.example(name, reference, padding=padding)
        outputs, gradients = [], []
        with ExactFloat64(), zoo.flex_attention_on_cpu():
            for each in (reference, model):
                outputs.append(sample.run(each)[sample.output_mask])
                gradients.append(_gradient(sample, outputs[-1]))
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
