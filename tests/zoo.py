"""Tiny random models of `transformers`, for a battery of tests run as contracts × architectures.

Adding an architecture is one entry in `ARCHITECTURES`. Nothing here needs a network, and nothing
disturbs the global random state.

>>> model = build("llama")
>>> sample = example("llama", model, padding="left")
>>> logits = sample.run(model)[sample.output_mask]
>>> (gradient,) = torch.autograd.grad(logits.sum(), sample.leaf)
"""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

from zoo_recurrent import ENTRIES

if TYPE_CHECKING:
    from collections.abc import Iterator

Padding = Literal["left", "right"]
LeafName = Literal["inputs_embeds", "embedding", "pixel_values"]

_FIRST_TOKEN = 3  # the ids below mean padding, beginning and end of sequence: never drawn as input

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What every configuration starts from; a name that a configuration lacks does no harm."""


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo: a model class of `transformers`, and the options that make it tiny.

    Attributes:
        model_class: name of the class in `transformers`; its configuration class follows from it.
        config: options on top of `_COMMON`; what is peculiar to the architecture is switched on.
        attention: the attention implementations it has, the default of `build` first.
        padding: the sides on which a batch may be padded. A classifier that reads the first
            position cannot be padded on the left.
        leaf: how the explained tensor gets in: by the argument `inputs_embeds`, by the argument
            `pixel_values`, or in place of the output of the token "embedding", for a model whose
            forward takes token ids only.
        first_position: the position id of the first token.
        every_layer_slides: whether distant tokens never meet, for want of a layer without window.
        weight_std: standard deviation of the matrices' elements.
        attention_agrees: whether `transformers` computes the same thing in all `attention`.
    """

    model_class: str
    config: dict[str, Any] = field(default_factory=dict)
    attention: tuple[str, ...] = ("sdpa", "eager")
    padding: tuple[Padding, ...] = ("left", "right")
    leaf: LeafName = "inputs_embeds"
    first_position: int = 0
    every_layer_slides: bool = False
    weight_std: float = 0.25
    attention_agrees: bool = True

    @property
    def type(self) -> type[transformers.PreTrainedModel]:
        """The model class itself."""
        return getattr(transformers, self.model_class)


@dataclass(frozen=True)
class Example:
    """An input for one model, good for any number of runs, on the original and under lxt.

    Attributes:
        leaf: the explained tensor, [batch, position, channel] or pixels
            [batch, channel, height, width]; a leaf that requires grad.
        leaf_name: how `run` hands it to the model, see `Architecture.leaf`.
        kwargs: the other arguments of the model's forward.
        input_ids: [batch, position], the tokens that `leaf` embeds; None for pixels.
        input_mask: bool [batch, position], false where a token is padding; None for pixels.
        output_mask: bool, the shape of the logits without their last axis; false where an output
            belongs to a padding token, so that nobody may rely on it.
    """

    leaf: Tensor
    leaf_name: LeafName
    kwargs: dict[str, Any]
    input_ids: Tensor | None
    input_mask: Tensor | None
    output_mask: Tensor

    def run(self, model: nn.Module, leaf: Tensor | None = None) -> Tensor:
        """Run `model`, on `leaf` if given instead of the example's own; return the logits."""
        leaf = self.leaf if leaf is None else leaf
        if self.leaf_name != "embedding":
            return model(**self.kwargs, **{self.leaf_name: leaf}).logits
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        hook = embedding.register_forward_hook(lambda *_: leaf)
        try:
            return model(**self.kwargs, input_ids=self.input_ids).logits
        finally:
            hook.remove()

    def row(self, index: int) -> Example:
        """The example's row `index` alone: a batch of one, without its padding."""
        one = slice(index, index + 1)
        kwargs = {
            name: value[one] if isinstance(value, Tensor) else value
            for name, value in self.kwargs.items()
            if name not in ("attention_mask", "position_ids")
        }
        keep = slice(None) if self.input_mask is None else self.input_mask[index]
        mask, ids, outputs = self.input_mask, self.input_ids, self.output_mask[index]
        return Example(
            leaf=self.leaf.detach()[one][:, keep].clone().requires_grad_(),
            leaf_name=self.leaf_name,
            kwargs=kwargs,
            input_ids=None if ids is None else ids[one][:, keep],
            input_mask=None if mask is None else mask[one][:, keep],
            output_mask=(outputs[outputs] if outputs.ndim else outputs)[None],
        )


def build(
    name: str,
    *,
    attention: str | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    training: bool = False,
    **config_overrides: Any,
) -> transformers.PreTrainedModel:
    """Build a tiny random model of the architecture `name`, on the CPU.

    The same seed gives the same weights for every attention implementation and, up to rounding,
    for every dtype. All parameters are random, biases and norm weights too, since their defaults
    0 and 1 hide errors. Every dropout probability of the configuration is 0.1. As after
    `from_pretrained`, parameters have `dtype` and require grad, and buffers keep their own dtype.
    In float64, experts run by the "eager" loop, since `torch._grouped_mm` has no float64.

    Args:
        name: a key of `ARCHITECTURES`.
        attention: "sdpa", "eager", "flex_attention", …; the entry's first if left out.
        dtype: floating point type of the parameters.
        seed: what the weights follow from.
        training: whether the model is left in training mode.
        config_overrides: configuration options, over those of the entry.

    Raises:
        KeyError: there is no such entry.
        ValueError: `transformers` has no such attention implementation for the model.
    """
    architecture = ARCHITECTURES[name]
    options = _COMMON | architecture.config | config_overrides
    if dtype is torch.float64:
        options.setdefault("experts_implementation", "eager")
    config = architecture.type.config_class(**options)  # type: ignore[misc]
    for option, value in config.to_dict().items():
        if "drop" in option and option not in options and isinstance(value, (int, float)):
            setattr(config, option, 0.0 if option == "layerdrop" else 0.1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        model = architecture.type._from_config(
            config, attn_implementation=attention or architecture.attention[0], dtype=dtype
        )
    _randomise(model, architecture.weight_std, torch.Generator().manual_seed(seed))
    return model.train(training)


@torch.no_grad()
def _randomise(model: nn.Module, std: float, generator: torch.Generator) -> None:
    """Draw matrices anew with standard deviation `std`; add noise to what vectors start from."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        if parameter.ndim < 2:
            parameter.copy_(parameter.double() + 0.3 * noise)
        else:
            parameter.copy_(std * noise)


def example(
    name: str,
    model: transformers.PreTrainedModel,
    *,
    batch: int = 2,
    length: int = 11,
    seed: int = 0,
    padding: Padding | None = None,
) -> Example:
    """Make an input for `model`, a model that `build(name)` made.

    Args:
        name: a key of `ARCHITECTURES`.
        model: the model; its embedding, dtype and device make the leaf.
        batch: number of rows.
        length: number of tokens in a row; pixels take the model's image size instead.
        seed: what tokens and pixels follow from.
        padding: the side on which the last row has three tokens of padding, and every second row
            before it too.

    Raises:
        ValueError: the architecture cannot be padded on that side.
    """
    architecture = ARCHITECTURES[name]
    if padding is not None and padding not in architecture.padding:
        raise ValueError(f"{name!r} can be padded on {architecture.padding}, not on {padding!r}")
    generator = torch.Generator().manual_seed(seed)
    config, device = model.config, model.device
    if architecture.leaf == "pixel_values":
        shape = (batch, config.num_channels, config.image_size, config.image_size)
        pixels = torch.randn(shape, dtype=torch.float64, generator=generator)
        leaf = pixels.to(device, model.dtype).requires_grad_()
        outputs = torch.ones(batch, dtype=torch.bool, device=device)
        return Example(leaf, "pixel_values", {}, None, None, outputs)

    def draw(tokens: int) -> Tensor:
        shape = (batch, tokens)
        ids = torch.randint(_FIRST_TOKEN, config.vocab_size, shape, generator=generator)
        return ids.to(device)

    ids, mask = draw(length), torch.ones(batch, length, dtype=torch.bool, device=device)
    kwargs: dict[str, Any] = {}
    if padding is not None:
        mask[(batch - 1) % 2 :: 2, :3] = False
        mask = mask if padding == "left" else mask.flip(1)
        ids = ids.masked_fill(~mask, config.pad_token_id)
        kwargs["attention_mask"] = mask.long()
        if "position_ids" in inspect.signature(type(model).forward).parameters:
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions + architecture.first_position
    outputs = mask
    if config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = draw(5)
        outputs = torch.ones(batch, 5, dtype=torch.bool, device=device)
    elif "SequenceClassification" in architecture.model_class:
        outputs = torch.ones(batch, dtype=torch.bool, device=device)
    leaf = model.get_input_embeddings()(ids).detach().clone().requires_grad_()
    return Example(leaf, architecture.leaf, kwargs, ids, mask, outputs)


@contextlib.contextmanager
def flex_attention_on_cpu() -> Iterator[None]:
    """Make the models' `flex_attention` run forward and backward on a CPU, in any dtype.

    torch refuses its gradient there, though the unfused implementation has one, and `transformers`
    compiles it, which takes seconds, knows no float64 and has no backward. Inside this context the
    refusal and all compilation are off. For classes with `_supports_flex_attn`; T5 only at batch 1.
    """
    from torch.nn.attention import flex_attention as flex
    from transformers.integrations.flex_attention import WrappedFlexAttention

    with (
        mock.patch.object(flex, "_validate_device", return_value=None),
        mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        mock.patch.object(WrappedFlexAttention, "__call__", return_value=flex.flex_attention),
        torch._dynamo.config.patch(disable=True),
    ):
        yield


_GROUPED = {"num_key_value_heads": 2}
_EXPERTS = _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA = _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
_ROBERTA = {"pad_token_id": 1, "bos_token_id": 0}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "pooler_hidden_size": 32,
}
_ELECTRA = {"embedding_size": 16}
_T5 = {
    "num_decoder_layers": 2,
    "d_kv": 8,
    "d_ff": 48,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
_FIRST_READ: dict[str, Any] = {"padding": ("right",)}  # the classifier reads the first position

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _GROUPED),
    "mistral": Architecture(
        "MistralForCausalLM", _GROUPED | {"sliding_window": 4}, every_layer_slides=True
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", _GROUPED),
    "qwen3": Architecture("Qwen3ForCausalLM", _GROUPED | {"head_dim": 16}),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        _EXPERTS | {"head_dim": 16, "moe_intermediate_size": 16, "norm_topk_prob": True},
    ),
    "mixtral": Architecture("MixtralForCausalLM", _EXPERTS),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
        attention=("eager",),  # SDPA has no soft-capping, so `transformers` refuses it
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": Architecture("Phi3ForCausalLM", _GROUPED),
    "olmo2": Architecture("Olmo2ForCausalLM", _GROUPED),
    "gpt2": Architecture("GPT2LMHeadModel"),
    "gpt_neox": Architecture("GPTNeoXForCausalLM"),
    "opt": Architecture("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Architecture("BloomForCausalLM", attention=("eager",)),
    "falcon": Architecture(
        "FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon_multi_query": Architecture("FalconForCausalLM"),
    # With alibi, eager attention adds the alibi twice: in the mask, and again to the scores.
    "falcon_alibi": Architecture("FalconForCausalLM", {"alibi": True}, attention_agrees=False),
    "falcon_sequential": Architecture(
        "FalconForCausalLM",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        attention_agrees=False,
    ),
    "bert": Architecture("BertForSequenceClassification", **_FIRST_READ),
    "bert_mlm": Architecture("BertForMaskedLM"),
    "roberta": Architecture(
        "RobertaForSequenceClassification", _ROBERTA, first_position=2, **_FIRST_READ
    ),
    "roberta_mlm": Architecture("RobertaForMaskedLM", _ROBERTA, first_position=2),
    "distilbert": Architecture(
        "DistilBertForSequenceClassification", {"hidden_dim": 48}, **_FIRST_READ
    ),
    "distilbert_mlm": Architecture("DistilBertForMaskedLM", {"hidden_dim": 48}),
    "deberta_v2": Architecture(
        "DebertaV2ForSequenceClassification", _DEBERTA, ("eager",), **_FIRST_READ
    ),
    "deberta_v2_mlm": Architecture("DebertaV2ForMaskedLM", _DEBERTA, ("eager",)),
    "electra": Architecture("ElectraForSequenceClassification", _ELECTRA, **_FIRST_READ),
    "electra_mlm": Architecture("ElectraForMaskedLM", _ELECTRA),
    "t5": Architecture("T5ForConditionalGeneration", _T5, weight_std=0.2),
    "t5_gated": Architecture(
        "T5ForConditionalGeneration", _T5 | {"feed_forward_proj": "gated-gelu"}, weight_std=0.2
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        {"image_size": 24, "patch_size": 8},
        leaf="pixel_values",
        padding=(),
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        _GROUPED
        | {"mamba_d_state": 4, "mamba_dt_rank": 3, "num_experts": 4, "num_experts_per_tok": 2}
        | {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "recurrent_gemma": Architecture(
        "RecurrentGemmaForCausalLM",
        {"num_hidden_layers": 3, "lru_width": 32, "use_cache": False},
        ("eager",),
        ("right",),
    ),
}

# For `pytest.mark.parametrize`: every entry, alone, with each of its attentions, and with each side
# it can be padded on.
NAMES: tuple[str, ...] = tuple(ARCHITECTURES)
CASES: tuple[tuple[str, str], ...] = tuple(
    (name, attention) for name in NAMES for attention in ARCHITECTURES[name].attention
)
PADDED: tuple[tuple[str, Padding], ...] = tuple(
    (name, side) for name in NAMES for side in ARCHITECTURES[name].padding
)

# More of them, for tests of their own: the explicit formulation's check by conservation can't know
# of padding inside a layer, Mamba's logits are float32 whatever the dtype, and xLSTM has no less.
ARCHITECTURES |= {name: Architecture(**entry) for name, entry in ENTRIES.items()}
RECURRENT: tuple[str, ...] = ("mamba", "mamba2", "qwen3_5", "rwkv")
"""Those of them that all contracts are tested on too."""
