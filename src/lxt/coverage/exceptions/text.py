"""Exceptions for model types whose input is text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lxt.coverage.exceptions import Tweak

if TYPE_CHECKING:
    from lxt.coverage.making import Making


def _patch_ids(making: Making) -> torch.Tensor:
    """Which of four patches each byte belongs to."""
    size = making.size
    return (torch.arange(size.tokens) * 4 // size.tokens).expand(size.batch, -1)


def _shared_states(making: Making) -> dict[str, Any]:
    """Keys and values that an assistant takes over from the model it drafts for."""
    text, size = making.text_config, making.size
    states = {}
    for kind in dict.fromkeys(text.layer_types):
        full = kind == "full_attention"
        heads = (
            full and getattr(text, "num_global_key_value_heads", None)
        ) or text.num_key_value_heads
        width = text.global_head_dim if full else text.head_dim
        shape = (size.batch, heads, size.tokens, width)
        states[kind] = (making.floats(*shape), making.floats(*shape))
    return states


_ASSISTANT_REASON = (
    "all layers take keys and values from another model, which the configuration demands "
    "(`num_kv_shared_layers == num_hidden_layers`) and transformers 5.23's "
    "`kv_sharing_modes` refuses"
)

_ASSISTANT: dict[str, Any] = {
    "init": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "enable_moe_block": False,
            "use_double_wide_mlp": False,
            "num_kv_shared_layers": 30,
            "num_hidden_layers": 30,
        }
    },
    "leaves": {
        "inputs_embeds": lambda m: (m.size.batch, m.size.tokens, 2 * m.config.backbone_hidden_size)
    },
    "kwargs": {
        "input_ids": None,
        "shared_kv_states": _shared_states,
        "position_ids": lambda m: torch.arange(m.size.tokens)[None],
    },
}

TWEAKS: dict[str, Tweak] = {
    "mra": Tweak(
        "without its CUDA kernel its attention puts out zeros that require grad",
        unbuildable=True,
    ),
    "bamba": Tweak("its default has no attention layer", config={"attn_layer_indices": [1]}),
    "big_bird": Tweak(
        "short texts get full attention instead of blocks",
        config={"block_size": 2, "num_random_blocks": 1},
        kwargs={"input_ids": lambda m: m.ids(max(16, 2 * m.size.tokens))},
    ),
    "bigbird_pegasus": Tweak(
        "short texts get full attention instead of blocks",
        config={"block_size": 2, "num_random_blocks": 1},
        kwargs={"input_ids": lambda m: m.ids(max(16, 2 * m.size.tokens))},
    ),
    "blt": Tweak(
        "patches of bytes are cut by a second model, from ids",
        config={
            "encoder_hash_byte_group_vocab": 64,
            "encoder_config.hidden_size_global": lambda size: 2 * size.hidden,
            "decoder_config.hidden_size_global": lambda size: 2 * size.hidden,
            "global_config.hidden_size": lambda size: 2 * size.hidden,
            "global_config.head_dim": lambda size: 2 * size.head,
        },
        by_ids=True,
        embedding="model.local_encoder.embed_tokens",
    ),
    "blt_patcher": Tweak(
        "its first output, the entropy of its predictions, is a constant where softmax is",
        output="2",
    ),
    "blt_local_encoder": Tweak(
        "is told where patches begin",
        config={"hidden_size_global": lambda size: 2 * size.hidden},
        kwargs={"num_patches": 4, "patch_ids": _patch_ids},
        output="1",
    ),
    "canine": Tweak(
        "characters are embedded by hashes; a molecule is 4 characters",
        embedding="canine.char_embeddings",
    ),
    "cohere_compass_text": Tweak(
        "its default has no rotary parameters for its kinds of layer",
        config={
            "rope_parameters": {
                "full_attention": None,
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                },
            },
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "cpmant": Tweak("a learned prompt goes before the text", embedding="cpmant.input_embedding"),
    "dbrx": Tweak(
        "its default lacks the base of the rotary angles",
        config={"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    ),
    "deepseek_v2": Tweak(
        "its default lacks the number of active experts",
        config={
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v4": Tweak("hash routing reads token ids", by_ids=True),
    "dots1": Tweak(
        "its default has no number of experts",
        config={
            "n_routed_experts": lambda size: size.experts,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "ernie4_5_vl_moe_text": Tweak(
        "rotates heights and widths in equal parts",
        config={
            "rope_parameters.mrope_section": lambda size: [size.head // 8] * 2 + [size.head // 4]
        },
    ),
    "esm": Tweak(
        "its default has no vocabulary",
        config={"vocab_size": lambda size: size.vocabulary, "pad_token_id": 1, "mask_token_id": 2},
    ),
    "gemma4_assistant": Tweak(_ASSISTANT_REASON, **_ASSISTANT),
    "gemma4_unified_assistant": Tweak(_ASSISTANT_REASON, **_ASSISTANT),
    "gemma4_text": Tweak(
        "its default has no experts, and no layer that takes over keys and values; embeddings per "
        "layer are looked up by id",
        config={
            "enable_moe_block": True,
            "num_experts": lambda size: size.experts,
            "top_k_experts": 2,
            "moe_intermediate_size": lambda size: size.intermediate,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
        },
        by_ids=True,
    ),
    "granitemoehybrid": Tweak(
        "its default has no attention layer",
        config={
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": lambda size: size.experts,
            "num_experts_per_tok": 2,
        },
    ),
    "hunyuan_v1_moe": Tweak(
        "its default has one expert",
        config={"num_experts": lambda size: size.experts, "moe_topk": 2},
    ),
    "ibert": Tweak(
        "its embedding returns a scale with the vectors",
        embedding="ibert.embeddings.word_embeddings",
    ),
    "lfm2": Tweak(
        "its default has no convolution",
        config={"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    ),
    "lfm2_moe": Tweak(
        "its default has no kinds of layer",
        config={
            "layer_types": ["conv", "full_attention", "conv"],
            "num_hidden_layers": 3,
            "num_dense_layers": 1,
        },
    ),
    "llama4_text": Tweak(
        "its default has no dense layer",
        config={
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "moe_layers": [1],
            "num_hidden_layers": 2,
        },
    ),
    "lilt": Tweak(
        "six embeddings of a box share the width",
        config={"hidden_size": lambda size: 24 * size.heads},
    ),
    "mobilebert": Tweak(
        "the bottleneck is narrower than the stream",
        config={
            "true_hidden_size": lambda size: size.hidden // 2,
            "intra_bottleneck_size": lambda size: size.hidden // 2,
        },
    ),
    "mpnet": Tweak("special ids", config={"relative_attention_num_buckets": 32}),
    "neomme": Tweak(
        "takes the patches of all images as vectors; rows and columns turn a pair of channels each",
        config={"head_dim": lambda size: 2 * size.head},
        leaves={"pixel_values": lambda m: (4 * m.size.batch, m.config.patch_dim)},
    ),
    "perceiver": Tweak(
        "text comes in through a preprocessor", embedding="perceiver.input_preprocessor.embeddings"
    ),
    "qwen4_exp_text": Tweak(
        "its default has no indexer, which its layers need",
        config={
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": lambda size: size.head,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
        },
    ),
    "recurrent_gemma": Tweak(
        "its pattern has three layers", config={"block_types": ["recurrent", "attention"]}
    ),
    "reformer": Tweak(
        "axial positions factor the width and the length; its backward pass wants training mode",
        config={
            "axial_pos_embds_dim": lambda size: (size.hidden // 4, size.hidden * 3 // 4),
            "axial_pos_shape": (4, 4),
            "num_buckets": 4,
            "hash_seed": 0,
        },
        kwargs={"input_ids": lambda m: m.ids(16)},
        training=True,
    ),
    "t5gemma2_encoder": Tweak(
        "its default lacks a rate",
        config={"*.dropout_rate": 0.0, "dropout_rate": 0.0, "text_config.dropout_rate": 0.0},
    ),
    "xmod": Tweak("adapters are chosen by language", config={"default_language": "en_XX"}),
    "zamba": Tweak(
        "weights are shared between hybrid layers, of which it wants two",
        config={
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
            "num_hidden_layers": 3,
            "attention_hidden_size": lambda size: 2 * size.hidden,
            "attention_head_dim": lambda size: 2 * size.head,
        },
    ),
    "zamba2": Tweak(
        "weights are shared between hybrid layers, of which it wants two",
        config={
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
            "hybrid_layer_ids": [1, 2],
            "num_hidden_layers": 3,
            "attention_hidden_size": lambda size: 2 * size.hidden,
            "attention_head_dim": lambda size: 2 * size.head,
        },
    ),
}
