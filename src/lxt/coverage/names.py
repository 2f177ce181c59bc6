"""What an attribute's name says about its size: the rules that make a configuration tiny."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lxt.coverage.layers import is_depth
from lxt.coverage.stages import stage_heads, stage_width

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lxt.coverage.size import Size

    Part = Mapping[str, Any]
    Rule = Callable[[Part, int, Size], Any]

_WIDTH = re.compile(
    r"(hidden_size|d_model|dim|embed_dim|n_embd|embedding_size|emb_dim|embedding_dim|model_dim|"
    r"hidden_dim|hidden_channels|width|project_dim|projection_dim|d_embed|d_inner_model|"
    r"lru_width|classifier_proj_size|word_embed_proj_dim|attention_hidden_size|hidden_act_size|"
    r"(\w+_)?(hidden_size|hidden_dim|embed_dim|d_model|embedding_size|projection_dim|"
    r"proj_dim|projection_size|output_dim|out_dim|hidden_channels|hidden_units)|"
    r"hidden_size_\w+|d_embed|input_embed_dim|pooler_output_size|latent_hidden_dim)"
)
_INSIDE = re.compile(
    r"(dff|d_inner|intermediate_size_mlp|intermediate_size|ffn_dim|n_inner|d_ff|ff_dim|mlp_dim|ffn_hidden_size|inner_dim|dim_ff|"
    r"(\w+_)?(intermediate_size|intermediate_dim|ffn_dim|mlp_dim|feed_forward_hidden_size|"
    r"mlp_hidden_size|mlp_size|feedforward_dim|linear_units|inner_hidden_size|ff_dim|d_ff))"
)
_HEADS = re.compile(
    r"(num_attention_heads|n_heads?|num_heads|attention_heads|heads|n_attention_heads|"
    r"(\w+_)?(attention_heads|num_heads|attn_heads|n_heads|num_attn_heads|nheads|n_head))"
)
_KV_HEADS = re.compile(
    r"((\w+_)?(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|num_key_heads|kv_heads)|"
    r"multi_query_group_num|num_query_groups|\w*num_global_key_value_heads)"
)
_HEAD_DIM = re.compile(
    r"(head_dim|d_kv|kv_channels|\w*headdim|attention_head_size|head_size|d_head|dim_head|"
    r"(\w+_)?(head_dim|head_size|d_head|kv_dim))"
)
_RANK = re.compile(
    r"(\w+_)?(lora_rank|rank|lora_dim|lora_r|time_step_rank|dt_rank)|lora_\w*rank\w*"
)
_VOCABULARY = re.compile(
    r"(\w+_)?(vocab_size|vocabulary_size|num_embeddings)(_\w+)?|n_vocab|num_hash_buckets"
)
_POSITIONS = re.compile(
    r"(\w*max_position_embeddings|n_positions|n_ctx|max_seq_len\w*|max_sequence_length|"
    r"seq_length|model_max_length|max_text_len\w*|max_\w*positions?|context_size|"
    r"max_length|block_size|max_pos_emb|original_max_position_embeddings|"
    r"max_text_tokens|max_speech_tokens|seq_len|max_encoded_\w+|left_max_\w+|right_max_\w+)"
)
_WINDOW = re.compile(
    r"(\w*sliding_window|attention_window\w*|local_attention|sliding_window_size|"
    r"attention_chunk_size|\w*window_size|window_len\w*|local_window|\w*chunk_size|"
    r"attention_context_\w+|local_radius|global_block_size|encoder_chunk_\w+|\w*_attn_chunk_length|"
    r"chunk_length|swa_window)"
)
_EXPERTS = re.compile(
    r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts|num_total_experts|"
    r"ffn_num_experts|\w*num_experts|\w*_n_experts|num_moe_experts)"
)
_ACTIVE = re.compile(
    r"(num_experts_per_tok\w*|moe_topk|moe_top_?k|moe_k|top_?k|num_selected_experts|"
    r"experts_per_token|num_experts_per_token|router_top_k|top_k_experts|\w*num_experts_per_tok)"
)
_SHARED = re.compile(r"(n_shared_experts|num_shared_experts|moe_num_shared_experts)")
_PERIOD = re.compile(
    r"(full_attention_interval|\w+_layer_period|sliding_window_pattern|decoder_sparse_step|"
    r"global_attn_every_n_layers|\w*_every_n_layers|\w+_layer_interval|\w*_interval|"
    r"moe_layer_freq|interleave_moe_layer_step|cross_attention_frequency|"
    r"\w*sparse_step|\w*_frequency|full_attn_every_n|attn_every\w*|hybrid_period)"
)
_OFFSET = re.compile(r"\w*_layer_offset")
_IMAGE = re.compile(
    r"(image_size|img_size|input_image_size|pretrain_image_size|spec_size|resolution|"
    r"force_image_size|crop_size|max_img_size|tile_size)"
)
_PATCH = re.compile(r"(patch_size|encoder_patch_size|vision_patch_size)")
_MEL = re.compile(r"(num_mel_bins|feature_size|n_mels|mel_bins|num_mels|mel_dim|n_mel_channels)")
_OFF = re.compile(r"\w*(drop|jitter|dropout|drop_path|layerdrop)\w*")
_STATE = re.compile(r"(state_size|ssm_state_size|mamba_d_state|d_state|ssm_d_state)")
_GROUPS = re.compile(r"(mamba_n_groups|n_groups|mamba_ngroups|ssm_n_groups)")
_FEW = re.compile(
    r"(num_queries|num_query_tokens|num_latents|n_latents|\w*_n_latents|num_detection_tokens|"
    r"num_memory_tokens|num_register_tokens|\w*num_buckets|relative_attention_max_distance|"
    r"\w*prompt_length|index_topk|linear_sparsity\w*|num_denoising|num_image_tokens|"
    r"position_buckets|num_proposals|two_stage_num_proposals|max_num_bins|mem_len|"
    r"image_seq_length|num_position_embeddings)"
)
_MIDDLE = re.compile(
    r"(bottleneck_dim|conv_dim|codebook_size|output_channels|conv_channels|"
    r"\w*conv_channels|auxiliary_channels|fpn_hidden_size|mask_feature_size|"
    r"bottleneck_features|decoder_channels|num_channels_latent|downsample_hidden_size|"
    r"upsample_initial_channel|speech_decoder_postnet_units|duration_predictor_channels)"
)
_WIDTHS = re.compile(
    r"(hidden_sizes|embed_dims?|\w*_channels|conv_dim|tdnn_dim|neck_hidden_sizes|encoder_hidden_sizes|"
    r"widths|dims|planes|channels|stage_dims|embed_dim_per_stage|"
    r"backbone_channel_list|fusion_\w+_channels|backbone_out_channels)"
)
_REPEATS = re.compile(
    r"(depths|num_block_repeats|stage_num_blocks|stage_numb_of_layers|encoder_depths|"
    r"num_layers|depth|block_sizes|num_blocks|layers|stage_depths|blocks|n_blocks)"
)

_NESTED = re.compile(
    r"(block_configs|resnet_head|resnet_configs|stage_configs|bridge_connector|out_point_positions2D)"
)


def shrink(part: Part, attribute: str, value: Any, size: Size) -> Any:
    """The value that `attribute` has in a model of `size`; `part` is its configuration, untouched.

    A name that says nothing, a value that is small already, None and booleans stay: then the very
    object `value` is returned.
    """
    if _OFF.fullmatch(attribute) and isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)(0)
    if attribute in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _rope(part, value, size)
    if isinstance(value, dict):
        return _inside_dict(part, value, size)
    if isinstance(value, list | tuple):
        if _NESTED.fullmatch(attribute):
            return _nested(value, size)
        return _list(attribute, value, size)
    if is_depth(attribute) or isinstance(value, bool | str) or not isinstance(value, int):
        return value
    return _number(part, attribute, value, size)


def _number(part: Part, attribute: str, value: int, size: Size) -> int:
    for pattern, rule in _RULES:
        if pattern.fullmatch(attribute):
            new = rule(part, value, size)
            return value if new == value else new
    return value


def _kv_heads(part: Part, value: int, size: Size) -> int:
    """As many as query heads if it was so, else half as many; one stays one."""
    if value == 1:
        return 1
    names = ("num_attention_heads", "n_heads", "num_heads", "n_head", "linear_num_value_heads")
    return size.heads if value in [part.get(name) for name in names] else max(1, size.heads // 2)


def _window(part: Part, value: int, size: Size) -> int:
    if part.get("depths"):  # no larger than the last stage
        return min(value, 2)
    if part.get("spatial_merge_size"):  # in pixels: two merged patches each way
        return min(value, 2 * min(part["patch_size"], size.patch) * part["spatial_merge_size"])
    return min(value, size.window)


def _image(part: Part, value: int, size: Size) -> int:
    return min(value, 2 * size.image if is_hierarchical(part) else size.image)


def is_hierarchical(part: Part) -> bool:
    """Whether a vision configuration has stages, each at half the resolution of the one before."""
    return any(
        isinstance(part.get(name), list | tuple) and len(part[name]) > 2
        for name in ("depths", "hidden_sizes", "num_block_repeats", "stage_num_blocks", "strides")
    )


def _at_most(limit: Callable[[Size], int]) -> Rule:
    return lambda part, value, size: min(value, limit(size))


def _exactly(limit: Callable[[Size], int]) -> Rule:
    return lambda part, value, size: limit(size) if value > 1 else value


_RULES: tuple[tuple[re.Pattern[str], Rule], ...] = (
    (_PERIOD, _at_most(lambda s: 2)),
    (_OFFSET, _at_most(lambda s: 1)),
    (_ACTIVE, _at_most(lambda s: 2)),
    (_SHARED, lambda part, value, size: value),
    (re.compile("mamba_d_ssm"), _exactly(lambda s: 2 * s.hidden)),
    (re.compile("zero_expert_num"), _at_most(lambda s: s.experts // 2)),
    (_EXPERTS, _at_most(lambda s: s.experts)),
    (_KV_HEADS, _kv_heads),
    (re.compile(r"(\w+_)?num_value_heads"), _exactly(lambda s: s.heads)),
    (_STATE, _at_most(lambda s: 8)),
    (_GROUPS, _at_most(lambda s: 2)),
    (re.compile(r"rotary_dim|rotary_emb_dim|rope_dim"), _at_most(lambda s: s.head // 2)),
    (_HEAD_DIM, _exactly(lambda s: s.head)),
    (_HEADS, _exactly(lambda s: s.heads)),
    (_RANK, _at_most(lambda s: s.head * 2)),
    (_VOCABULARY, lambda part, value, size: size.vocabulary if value > 32 else value),
    (_WINDOW, _window),
    (re.compile(r"mm_tokens_per_image"), _at_most(lambda s: 4)),
    (_POSITIONS, _at_most(lambda s: s.positions)),
    (_MEL, _at_most(lambda s: s.mel)),
    (_IMAGE, _image),
    (_PATCH, _at_most(lambda s: s.patch)),
    (_INSIDE, _exactly(lambda s: s.intermediate)),
    (_WIDTH, _exactly(lambda s: s.hidden)),
    (_FEW, _at_most(lambda s: 8)),
    (_MIDDLE, _at_most(lambda s: s.hidden)),
)
"""The first pattern that a name matches decides."""


def _list(attribute: str, value: Any, size: Size) -> Any:
    if attribute == "image_grid_pinpoints":
        return [[2 * size.image, 2 * size.image]]
    if not value or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return value
    if _REPEATS.fullmatch(attribute):
        return type(value)(min(v, size.layers) for v in value)
    if _WIDTHS.fullmatch(attribute):
        return type(value)(stage_width(v, size) for v in value)
    if _HEADS.fullmatch(attribute):
        return type(value)(stage_heads(v) for v in value)
    if _PERIOD.fullmatch(attribute) or _WINDOW.fullmatch(attribute):
        return type(value)(min(v, size.window) for v in value)
    if _IMAGE.fullmatch(attribute):
        return type(value)(min(v, size.image) for v in value)
    if _PATCH.fullmatch(attribute):
        return type(value)(min(v, size.patch) for v in value)
    return value


def _nested(value: Any, size: Size) -> Any:
    """Lists of what a stage's layers are made of, which say widths beside strides and kernels."""
    if isinstance(value, list | tuple):
        return type(value)(_nested(inner, size) for inner in value)
    is_width = isinstance(value, int) and value >= 32
    return stage_width(value, size) if is_width else value


def _inside_dict(part: Part, value: dict[Any, Any], size: Size) -> Any:
    """A dictionary that holds what others keep in attributes."""
    if not all(isinstance(k, str) for k in value):
        return value
    new = {
        k: shrink(part, k, v, size) if isinstance(v, int | list | tuple | dict) else v
        for k, v in value.items()
    }
    return value if all(new[k] is value[k] for k in value) else new


def _rope(part: Part, value: dict[str, Any], size: Size) -> dict[str, Any]:
    """Rotary positions turn pairs of channels: lists with one entry per pair must fit the head."""
    if any(isinstance(inner, dict) for inner in value.values()):  # one per kind of layer
        return {k: _rope(part, v, size) if isinstance(v, dict) else v for k, v in value.items()}
    share = value.get("partial_rotary_factor", part.get("partial_rotary_factor")) or 1.0
    width = size.head
    if part.get("qk_rope_head_dim"):
        share = 1.0
    pairs = max(1, int(width * share) // 2)
    if "mrope_section" in (part.get("ignore_keys_at_rope_validation") or ()):
        value = {"mrope_section": [2, 1, 1], **value}  # else they assume one for large heads
    new = dict(value)
    for key, entry in value.items():
        if key in ("short_factor", "long_factor") and isinstance(entry, list):
            new[key] = (entry * pairs)[:pairs]
        elif key == "mrope_section":
            new[key] = _sections(entry, pairs)
        elif key == "original_max_position_embeddings":
            new[key] = min(entry, size.positions // 2)
    return new


def _sections(old: list[int], total: int) -> list[int]:
    """Split `total` into as many parts as `old`, as equal as can be, first parts larger."""
    count = len(old)
    scale = total // sum(old) if sum(old) <= total else 0
    if scale and scale * sum(old) == total:
        return [scale * entry for entry in old]
    return [total // count + (index < total % count) for index in range(count)]
