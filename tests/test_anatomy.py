"""Where heads, neurons and experts are: against what models' configurations say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from lxt.coverage import Size, build, example
from lxt.engine.segments import layers_of
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.units import Site
from plain_models import MODELS, TOKENS, WIDTH

ALL = tuple(
    (name, attention)
    for name, architecture in zoo.ARCHITECTURES.items()
    for attention in architecture.attention
)


def scanned(name: str, attention: str | None = None, **options: Any) -> tuple[Any, Anatomy]:
    model = zoo.build(name, attention=attention, dtype=torch.float32, **options)
    of = zoo.example(name, model, length=7)
    with zoo.flex_attention_on_cpu() if attention == "flex_attention" else nullcontext():
        return model, anatomy_of(model, lambda: of.run(model))


# --- every architecture of the zoo, against its configuration -------------------------------------

# Which layers have attention and a dense MLP, where not all have both.
NO_ATTENTION = {
    "jamba": {0}, "recurrent_gemma": {0, 1}, "mamba": {0, 1}, "mamba2": {0, 1}, "qwen3_5": {0},
    "rwkv": {0, 1}, "xlstm": {0, 1}, "falcon_mamba": {0, 1}, "zamba": {0, 2}, "zamba2": {0, 2},
    "bamba": {0}, "nemotron_h": {0}, "granitemoehybrid": {0}, "qwen3_next": {0},
    "olmo_hybrid": {0}, "kimi_linear": {0}, "minimax": {0}, "lfm2": {0},
}  # fmt: skip
"""Layers of linear attention, of state spaces and of recurrences, which have no heads."""
NO_MLP = {
    "mamba": {0, 1}, "mamba2": {0, 1}, "falcon_mamba": {0, 1}, "nemotron_h": {0, 1},
    "zamba": {0, 2}, "zamba2": {0, 2},
    "qwen3_moe": {0, 1}, "mixtral": {0, 1}, "minimax": {0, 1}, "jamba": {1},
}  # fmt: skip
"""Layers that are a mixer alone, or whose MLP is routed experts."""
EXPERTS = {
    "qwen3_moe": {0, 1}, "mixtral": {0, 1}, "jamba": {1}, "granitemoehybrid": {0, 1},
    "qwen3_next": {0, 1}, "minimax": {0, 1},
}  # fmt: skip


def mlp_width(name: str, config: Any) -> int:
    """How many neurons a dense MLP has, by the configuration and what its model makes of it."""
    match name:
        case "gpt2":
            return config.n_inner or 4 * config.hidden_size
        case "bloom":
            return 4 * config.hidden_size
        case "falcon" | "falcon_multi_query" | "falcon_alibi" | "falcon_sequential":
            return config.ffn_hidden_size
        case "opt":
            return config.ffn_dim
        case "distilbert" | "distilbert_mlm":
            return config.hidden_dim
        case "t5" | "t5_gated":
            return config.d_ff
        case "recurrent_gemma":
            return config.intermediate_size // 2
        case "granitemoehybrid":
            return config.shared_intermediate_size
        case "qwen3_next":
            return config.shared_expert_intermediate_size
        case "xlstm":
            exact = config.ffn_proj_factor * config.hidden_size
            return -int(-exact // config.ffn_round_up_to_multiple_of) * (
                config.ffn_round_up_to_multiple_of
            )
        case "lfm2":
            multiple = config.block_multiple_of
            return -(-int(2 * config.intermediate_size / 3) // multiple) * multiple
        case _:
            return config.intermediate_size


@pytest.mark.parametrize(("name", "attention"), ALL)
def test_it_finds_what_the_configuration_says(name: str, attention: str) -> None:
    model, anatomy = scanned(name, attention)
    config = model.config
    stacks = layers_of(model)
    paths = {module: path for path, module in model.named_modules()}
    assert [[paths[m] for m in stack] for stack in stacks] == [
        [layer.path for layer in stack] for stack in anatomy.stacks
    ]
    for stack in anatomy.stacks:
        for index, layer in enumerate(stack):
            heads = [site.heads for site in layer.attentions]
            is_decoder = name.startswith("t5") and "decoder" in layer.path
            count = 0 if index in NO_ATTENTION.get(name, ()) else 2 if is_decoder else 1
            assert heads == [config.num_attention_heads] * count, layer
            assert layer.heads == (layer.attentions[0] if count else None)
            count = 0 if index in NO_MLP.get(name, ()) else 1
            assert layer.widths == (mlp_width(name, config),) * count, layer
            assert len(layer.neurons) == count
            assert (layer.experts is not None) == (index in EXPERTS.get(name, ())), layer
            if layer.experts is not None:
                assert layer.experts.count == 4
                keys = layer.experts.hidden, layer.experts.indices, layer.experts.weights
                assert keys == (0, 1, 2)
            for site in (*layer.attentions, *layer.neurons):
                assert site.module.startswith(f"{layer.path}.")
                assert site.end == "input"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "vit"])
def test_flex_attention(name: str) -> None:
    _, anatomy = scanned(name, "flex_attention")
    _, eager = scanned(name, "eager")
    assert anatomy == eager
    assert all(layer.heads is not None for layer in anatomy.layers)


def test_the_default_model(smollm2: Any) -> None:
    model = smollm2.model
    anatomy = anatomy_of(model, lambda: model(input_ids=torch.arange(5, 13)[None]))
    assert len(anatomy.layers) == 30
    assert all(
        layer.heads == Site(f"{layer.path}.self_attn.o_proj", end="input", heads=9)
        and layer.neurons == (Site(f"{layer.path}.mlp.down_proj", end="input"),)
        and layer.widths == (1536,)
        for layer in anatomy.layers
    )


# --- more of transformers, with what tempts one ---------------------------------------------------

Row = tuple[int | None, tuple[int, ...], int | None]

# Heads, widths of dense MLPs, and experts, of each layer; tiny models of `lxt.coverage` have 4
# heads, an intermediate size of 48 and 4 experts.
MORE: dict[str, Sequence[Row]] = {
    # Latent attention: what comes out of a norm, and of q_a_proj, is no neuron.
    "deepseek_v2": [(4, (48,), None), (4, (96,), 4)],  # two shared experts in one
    "deepseek_v32": [(4, (48,), None), (4, (48,), 4)],
    "minicpm3": [(4, (48,), None)] * 2,
    # Several residual streams to a layer.
    "deepseek_v4": [(None, (48,), 4)] * 3,  # its output projection is in groups of heads
    # Two attentions, two dense MLPs and routed experts in one layer.
    "longcat_flash": [(4, (48, 48), 6)] * 2,
    # Sinks beside the scores, or as a gate.
    "gpt_oss": [(4, (), 4)] * 2,
    "granite_swa": [(4, (48,), None)] * 2 + [(None, (), None)],  # its rotary tables are a stack
    # Einsums that leave axes of 1 behind, and windows put together from pieces.
    "funnel": [(4, (48,), None)] * 8,
    "longformer": [(4, (48,), None)] * 2,
    "big_bird": [(4, (48,), None)] * 2,
    # Differences of attentions, and norms of their output.
    "diffllama": [(4, (48,), None)] * 2,
    "bitnet": [(4, (48,), None)] * 2,
    # Products of two linear maps that are no neurons, a convolution among them.
    "convbert": [(4, (48,), None)] * 2,
    # One layer used again and again.
    "albert": [(4, (48,), None)],
    # Neither attention nor a matrix product of its own: a Fourier transform.
    "fnet": [(None, (48,), None)] * 2,
    # Scores of more than one kind of attention; several MLPs to a layer.
    "bart": [(4, (48,), None)] * 4,
    "mobilebert": [(4, (48, 48, 48, 48), None)] * 2,
    "phi4_multimodal_audio": [(4, (48, 48), None)] * 2,
    # A convolution between the two projections of its MLP; attention over fewer tokens.
    "pvt": [(None, (), None)] * 4
    + [(1, (64,), None)] * 2
    + [(2, (128,), None)] * 2
    + [(4, (160,), None)] * 2
    + [(4, (256,), None)] * 2,
    # Rows come after tokens where it projects, so these are not [batch, tokens, channels].
    "mlcd": [(None, (48,), None)] * 2,
    # A convolution of the values is added to the heads.
    "nystromformer": [(4, (48,), None)] * 2,
    # A softmax of several parts, by way of its logarithm; a part of the values taken away again.
    "reformer": [(None, (512,), None)] * 2,
    "neomme": [(None, (48,), None)] * 3,
    # A bilinear look-up of each layer's own embeddings is an MLP of its own.
    "gemma4_text": [(4, (48, 32), 4)] * 4,
    # All experts take all tokens, and no indices: its shared expert is found alone.
    "llama4_text": [(4, (48,), None)] * 2,
    # Parameters that hold all experts in one axis, or heads that are routed: not told apart.
    "dbrx": [(4, (), None)] * 2,
    "jetmoe": [(None, (), None)] * 2,
    # torch's attention computes with its output projection's weights, and calls no module.
    "wavlm": [(None, (), None)] * 7 + [(None, (48,), None)] * 2,  # and seven convolutions
    # It computes with integers.
    "ibert": [(None, (), None)] * 2,
}


def of_coverage(name: str) -> Anatomy:
    size = Size()
    model = build(name, size)
    of = example(model, name, size)
    return anatomy_of(model, lambda: model(**of.kwargs, **of.leaves))


@pytest.mark.parametrize("name", MORE)
def test_more_architectures(name: str) -> None:
    found: list[Row] = [
        (
            layer.heads.heads if layer.heads else None,
            layer.widths,
            layer.experts.count if layer.experts else None,
        )
        for layer in of_coverage(name).layers
    ]
    assert found == MORE[name]


PLAIN = {
    # Of these the output projection is a module: heads, and the neurons of the GLU's.
    "rotary, GLU": (4, (32,)),
    "written RMS norm": (4, (32,)),
    "written layer norm, ALiBi": (4, (32,)),
    "written softmax": (4, (32,)),
    "scale norm, talking heads": (4, (32,)),
    "parallel, no positions": (4, (32,)),
    # torch's attention calls no module for its output projection.
    "encoder, norm last": (None, (24,)),
    "encoder, norm first, GELU": (None, (24,)),
    "encoder and decoder": (None, (24,)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_models_without_a_library(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = MODELS[name]().eval()
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs = (x, x[:, 1:]) if "decoder" in name else (x,)
    layers = anatomy_of(model, lambda: model(*inputs)).layers
    assert layers
    for layer in layers:
        assert (layer.heads.heads if layer.heads else None, layer.widths) == PLAIN[name]


# --- the tensors at the sites ---------------------------------------------------------------------


def values_of(name: str, model: Any, run: Callable[[], Any]) -> Tensor:
    """The values of the first layer, [batch, tokens, heads, channels], from their projection."""
    paths = {
        "llama": "model.layers.0.self_attn.v_proj",
        "gpt2": "transformer.h.0.attn.c_attn",
        "bert_mlm": "bert.encoder.layer.0.attention.self.value",
    }
    found: list[Tensor] = []
    part = model.get_submodule(paths[name])
    handle = part.register_forward_hook(lambda *given: found.append(given[2]))
    run()
    handle.remove()
    out = found[0][..., -model.config.hidden_size :].unflatten(-1, (-1, 8))
    return out.repeat_interleave(4 // out.shape[2], 2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm"])
def test_blocks_of_the_last_axis_are_the_heads(name: str) -> None:
    """Each is a head's weights times its values, as each model's own parts tell."""
    model = zoo.build(name, attention="eager", dtype=torch.float64)
    of = zoo.example(name, model, length=7)
    site = anatomy_of(model, lambda: of.run(model)).layers[0].heads
    assert site is not None
    assert site.heads == 4
    found: list[Tensor] = []
    handle = site.the_module(model).register_forward_pre_hook(lambda _, x: found.append(x[0]))
    with torch.no_grad():
        weights = model(inputs_embeds=of.leaf, output_attentions=True).attentions[0]
        handle.remove()
        values = values_of(name, model, lambda: of.run(model))
    expected = torch.einsum("bhij,bjhd->bihd", weights, values)
    assert torch.allclose(found[0].unflatten(-1, (site.heads, -1)), expected, atol=1e-12)


def test_experts_by_what_they_are_called_with() -> None:
    model, anatomy = scanned("qwen3_moe")
    experts = anatomy.layers[0].experts
    assert experts is not None
    calls: list[Any] = []
    model.get_submodule(experts.path).register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    zoo.example("qwen3_moe", model, length=7).run(model)
    hidden, indices, weights = experts.of(*calls[0])
    assert hidden.shape == (14, 32)
    assert indices.shape == weights.shape == (14, 2)
    assert indices.dtype == torch.int64
    assert torch.allclose(weights.sum(-1), torch.ones(14))
