"""Recurrent layers: the rules against naive references, in layers and whole models."""

import sys

import pytest
import torch
from torch import Tensor, nn

import lxt
import naive_mixers as naive
import zoo
from lxt.coverage.exact import ExactFloat64
from lxt.explicit import explicit_form
from mixers import difference, random, relevance

COMPOSITES = {"attnlrp": lxt.attnlrp, "cp_lrp": lxt.cp_lrp}
LENGTH = 9  # two chunks of 4 and a rest

# Name in the zoo → the layer within its model, and the reference.
LAYERS = {
    "mamba": ("backbone.layers.0.mixer", naive.mamba),
    "falcon_mamba": (
        "backbone.layers.0.mixer",
        lambda mixer, x, rules: naive.mamba(mixer, x, rules, norm_eps=mixer.rms_eps),
    ),
    "mamba2": ("backbone.layers.0.mixer", naive.mamba2),
    "qwen3_next": ("model.layers.0.linear_attn", naive.gated_delta_net),
    "kimi_linear": ("model.layers.0.self_attn", naive.kimi_delta_attention),
    "minimax": ("model.layers.0.self_attn", naive.lightning_attention),
    "rwkv": ("rwkv.blocks.0.attention", naive.rwkv),
    "xlstm": ("backbone.blocks.0.mlstm_layer", naive.mlstm),
    "recurrent_gemma": ("model.layers.0.temporal_block", naive.griffin),
    "lfm2": ("model.layers.0.conv", naive.short_convolution),
}
MODELS = (
    *("mamba", "falcon_mamba", "jamba", "zamba", "mamba2", "zamba2", "bamba", "falcon_h1"),
    *("nemotron_h", "granitemoehybrid", "qwen3_next", "qwen3_5", "olmo_hybrid", "kimi_linear"),
    *("minimax", "rwkv", "xlstm", "recurrent_gemma", "lfm2"),
)

over_composites = pytest.mark.parametrize("composite", COMPOSITES)
over_layers = pytest.mark.parametrize("name", LAYERS)
over_models = pytest.mark.parametrize("name", MODELS)


def layer_of(name: str) -> nn.Module:
    return zoo.build(name).get_submodule(LAYERS[name][0])


def called(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    arguments = {
        "recurrent_gemma": (torch.arange(x.shape[1])[None], None, False),
        "minimax": (None, None),
    }
    y = layer(x, *arguments.get(name, ()))
    return y[0] if isinstance(y, tuple) else y


@over_composites
@over_layers
def test_a_layer_agrees_with_its_reference(name: str, composite: str) -> None:
    layer = layer_of(name)
    x = random(2, LENGTH, 32).requires_grad_()
    with COMPOSITES[composite].context(layer), ExactFloat64():
        y = called(name, layer, x)
    g = random(*y.shape, seed=1)
    expected_y = LAYERS[name][1](layer, x, naive.Rules(composite == "cp_lrp"))
    assert difference(y.detach(), expected_y.detach()) <= 1e-9
    assert difference(relevance(y, x, g), relevance(expected_y, x, g)) <= 1e-9


def explained(model: nn.Module, example: zoo.Example, composite: lxt.Composite) -> Tensor:
    """The logits at the last position that counts, under rules, summed."""
    with composite.context(model), ExactFloat64():
        logits = example.run(model)
    return logits[:, -1].amax(-1)


@over_models
def test_relevance_is_conserved_under_cp_lrp(name: str) -> None:
    """All of it, once nothing is left that absorbs: biases. Decays and gates absorb nothing."""
    model = zoo.build(name)
    kept = ("dt_bias", "dt_proj.bias", "dt_proj_bias", "gate_bias", "gate_preact.bias")
    for path, parameter in model.named_parameters():
        if path.endswith("bias") and not path.endswith(kept):
            nn.init.zeros_(parameter)
    example = zoo.example(name, model)
    value = explained(model, example, lxt.cp_lrp)
    total = relevance(value, example.leaf, torch.ones_like(value)).sum((1, 2))
    torch.testing.assert_close(total, value.detach(), rtol=1e-8, atol=0)


@over_composites
@over_models
def test_both_formulations_agree(name: str, composite: str) -> None:
    """To 1e-8. What is left is ε: denominators are y + 1e-14."""
    model = zoo.build(name)
    example = zoo.example(name, model)
    value = explained(model, example, COMPOSITES[composite])
    expected = relevance(value, example.leaf, torch.ones_like(value))
    value = explained(model, example, explicit_form(COMPOSITES[composite], 1e-14))
    (actual,) = torch.autograd.grad(value, example.leaf, value.detach())
    assert difference(actual, expected) <= 1e-8


@over_models
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_is_bit_identical(name: str, dtype: torch.dtype) -> None:
    if name == "xlstm" and dtype is torch.bfloat16:
        pytest.skip("the model itself mixes float32 and bfloat16, and fails")
    model = zoo.build(name, dtype=dtype)
    model.requires_grad_(False)
    example = zoo.example(name, model)
    before = {path: dict(module.__dict__) for path, module in model.named_modules()}
    plain = example.run(model)
    for composite in (*COMPOSITES.values(), lxt.explicit.attnlrp):
        with composite.context(model):
            assert torch.equal(example.run(model), plain)
    for path, module in model.named_modules():
        assert module.__dict__.keys() == before[path].keys()
        assert "forward" not in module.__dict__


# --- implementations -----------------------------------------------------------------------------


@over_composites
def test_chunks_of_any_size_agree(composite: str) -> None:
    relevances = []
    for chunk_size in (2, 4, 64):
        model = zoo.build("mamba2", chunk_size=chunk_size)
        example = zoo.example("mamba2", model)
        value = explained(model, example, COMPOSITES[composite])
        relevances.append(relevance(value, example.leaf, torch.ones_like(value)))
    for other in relevances[1:]:
        assert difference(other, relevances[0]) <= 1e-9


@over_composites
@pytest.mark.parametrize(
    ("name", "chunked", "stepwise"),
    [
        ("qwen3_next", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"),
        ("kimi_linear", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"),
    ],
)
def test_chunks_agree_with_a_loop_over_time(
    name: str, chunked: str, stepwise: str, composite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.build(name)
    example = zoo.example(name, model)
    value = explained(model, example, COMPOSITES[composite])
    expected = relevance(value, example.leaf, torch.ones_like(value))
    file = sys.modules[type(model).__module__]
    monkeypatch.setattr(file, chunked, getattr(file, stepwise))
    value = explained(model, example, COMPOSITES[composite])
    actual = relevance(value, example.leaf, torch.ones_like(value))
    assert difference(actual, expected) <= 1e-9


@pytest.mark.parametrize("name", ["mamba", "mamba2", "qwen3_5"])
def test_a_step_with_a_cache_agrees_with_the_whole(name: str) -> None:
    """The last token alone, after the others: what it gets is the same."""
    model = zoo.build(name)
    example = zoo.example(name, model)
    before, last = example.leaf[:, :-1].detach(), example.leaf[:, -1:].detach().requires_grad_()
    value = explained(model, example, lxt.cp_lrp)
    expected = relevance(value, example.leaf, torch.ones_like(value))[:, -1:]
    with ExactFloat64():
        with torch.no_grad():
            cache = model(inputs_embeds=before, use_cache=True)
        state = cache.get("past_key_values", cache.get("cache_params"))
        key = "past_key_values" if "past_key_values" in cache else "cache_params"
        with lxt.cp_lrp.context(model):
            value = model(inputs_embeds=last, use_cache=True, **{key: state}).logits[:, -1].amax(-1)
    actual = relevance(value, last, torch.ones_like(value))
    assert difference(actual, expected) <= 1e-9
