"""A tiny configuration of any model type, by generic rules on the names of its attributes."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from lxt.coverage.catalogue import model_type
from lxt.coverage.exceptions import tweak_of
from lxt.coverage.layers import cut_layers
from lxt.coverage.names import shrink
from lxt.coverage.stages import last_width, outputs_within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxt.coverage.size import Size


def tiny_config(name: str, size: Size) -> Any:
    """The default configuration of the model type `name`, shrunk to `size`.

    Every kind of layer that the default has is kept: sliding and full attention, dense and sparse
    feed-forward, attention and state space. Sub-configurations are shrunk likewise. What the rules
    can't know is in `lxt.coverage.exceptions`.

    Raises:
        InvalidModel: the installed `transformers` has no such model type.
    """
    tweak = tweak_of(name)
    config = model_type(name).load_config_class()(**dict(tweak.init))
    ids = _TokenIds(size)
    layers = dict(_set_layers(config, size))
    for part in parts(config):
        before = dict(vars(part))
        for attribute, value in before.items():
            if attribute.startswith("_") or is_config(value):
                continue
            new = ids.renamed(attribute, value)
            if new is value:
                new = shrink(before, attribute, value, size)
            if new is not value:
                set_attribute(part, attribute, new)
        for attribute, value in layers.get(id(part), {}).items():
            if attribute == "per_layer_config":
                vars(part).pop("_heterogeneity_spec")
                part.per_layer_config = {
                    index: {k: shrink(before | own, k, v, size) for k, v in own.items()}
                    for index, own in value.items()
                }
                continue
            if isinstance(value, list | tuple):  # a number per layer
                value = type(value)(shrink(before, attribute, v, size) for v in value)
            set_attribute(part, attribute, value)
        _make_consistent(part, size)
    for path, value in tweak.config.items():
        _set_path(config, path, value(size) if callable(value) else value)
    return config


def is_config(value: Any) -> bool:
    """Whether `value` is a configuration of `transformers`."""
    from transformers import PreTrainedConfig

    return isinstance(value, PreTrainedConfig)


def parts(config: Any) -> Iterator[Any]:
    """`config` and all configurations inside of it, each once."""
    seen: set[int] = set()
    todo = [config]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for value in vars(part).values():
            values = value.values() if isinstance(value, dict) else [value]
            todo.extend(inner for inner in values if is_config(inner))


def set_attribute(part: Any, attribute: str, value: Any) -> None:
    """Set an attribute of a configuration past its checks, which see one value at a time."""
    part.__dict__[attribute] = value


def _set_layers(config: Any, size: Size) -> Iterator[tuple[int, dict[str, Any]]]:
    for part in parts(config):
        yield id(part), cut_layers(part, size)


def _set_path(config: Any, path: str, value: Any) -> None:
    *way, last = path.split(".")
    if way == ["*"]:
        for part in parts(config):
            if last in vars(part) or last in part.attribute_map:
                setattr_mapped(part, last, value)
        return
    for step in way:
        config = config[step] if isinstance(config, dict) else getattr(config, step)
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr_mapped(config, last, value)


def setattr_mapped(part: Any, attribute: str, value: Any) -> None:
    """Set an attribute under the name that the configuration stores it by."""
    set_attribute(part, part.attribute_map.get(attribute, attribute), value)


def _make_consistent(part: Any, size: Size) -> None:
    """Attributes that follow from others."""
    have = vars(part)
    nope, rope = have.get("qk_nope_head_dim"), have.get("qk_rope_head_dim")
    if nope is not None and rope is not None:
        if "qk_head_dim" in have:
            set_attribute(part, "qk_head_dim", nope + rope)
        if "head_dim" in have and "kv_lora_rank" in have:
            set_attribute(part, "head_dim", rope)
    if "head_dim" in have and not have["head_dim"]:
        set_attribute(part, "head_dim", size.head)
    if "num_key_value_heads" in have and not have["num_key_value_heads"]:
        set_attribute(part, "num_key_value_heads", size.heads)
    if have.get("window_size") and "fullatt_block_indexes" in have:  # a window in pixels
        merged = have["patch_size"] * have.get("spatial_merge_size", 1)
        set_attribute(part, "window_size", 2 * merged)
    _set_mamba_heads(part)
    if _MROPE.fullmatch(part.model_type):
        _set_mrope(part, size)
    for name in ("n_group", "num_expert_group"):
        if have.get(name):
            set_attribute(part, name, min(have[name], 2))
            set_attribute(part, "topk_group", 1)
    last = last_width(have)
    if last and "hidden_size" in have:
        set_attribute(part, "hidden_size", last)
    if "width_coefficient" in have and "hidden_dim" in have:  # the last of EfficientNet's layers
        set_attribute(part, "width_coefficient", 0.25)
        set_attribute(part, "hidden_dim", 320)
    if "divisor" in have and "block_configs" in have:  # widths are scaled, and rounded up to it
        set_attribute(part, "divisor", 8)
        set_attribute(part, "scale", 1.0)
    if "image_embedding_size" in have and "patch_size" in have:
        set_attribute(part, "image_embedding_size", have["image_size"] // have["patch_size"])
    _set_outputs(part)
    with contextlib.suppress(AttributeError):
        if part.pad_token_id is not None and part.pad_token_id >= size.vocabulary:
            part.pad_token_id = 0


def _set_outputs(part: Any) -> None:
    """A backbone returns some of its layers: it keeps as many of both as it returned."""
    have = vars(part)
    layers = have.get("num_hidden_layers") or have.get("num_layers")
    if not layers or have.get("depths"):
        return
    for attribute, first in (("_out_indices", 1), ("backbone_out_indices", 0)):
        if have.get(attribute):
            layers, indices = outputs_within(layers, have[attribute], first)
            set_attribute(part, attribute, type(have[attribute])(indices))
            key = "num_hidden_layers" if "num_hidden_layers" in have else "num_layers"
            set_attribute(part, key, layers)
    if have.get("stage_names"):
        names = ["stem", *(f"stage{k + 1}" for k in range(layers))]
        set_attribute(part, "stage_names", names)
        if have.get("_out_indices"):
            set_attribute(part, "_out_features", [names[k] for k in have["_out_indices"]])


_MROPE = re.compile(
    r"(glm4v|glm4v_moe|glm_image|glm_ocr|glm46v|glmga|paddleocr_vl|qwen2_vl|qwen2_5_vl|qwen2_5_omni|"
    r"qwen3_vl|qwen3_vl_moe|qwen3_omni_moe|qwen3_omni_moe_talker|qwen3_5|qwen3_5_moe|"
    r"cosmos3_edge|hunyuan_vl|ernie4_5_vl_moe)_text|qwen2_5_omni_talker"
)
"""Types that split the rotary channels among time, height and width."""


def _set_mrope(part: Any, size: Size) -> None:
    """Sections that fill the rotary channels: the models' own default is for their full size."""
    rope: dict[str, Any] = dict(part.rope_parameters or {"rope_type": "default", "rope_theta": 1e4})
    pairs = int(size.head * (rope.get("partial_rotary_factor") or 1.0)) // 2
    side = max(1, pairs // 3)
    time = pairs - 2 * side
    rope["mrope_section"] = [side, side, time] if "ernie" in part.model_type else [time, side, side]
    set_attribute(part, "rope_parameters", rope)


def _set_mamba_heads(part: Any) -> None:
    """Heads of a state space share its expanded width among them."""
    have = vars(part)
    expand = have.get("mamba_expand") or have.get("expand")
    for heads, head in (
        ("mamba_n_heads", "mamba_d_head"),
        ("n_mamba_heads", "mamba_headdim"),
        ("num_heads", "head_dim"),
        ("mamba_num_heads", "mamba_head_dim"),
    ):
        if expand and heads in have and isinstance(have.get(head), int):
            width = have.get("mamba_d_ssm") or int(expand * part.hidden_size)
            set_attribute(part, heads, max(1, width // have[head]))


class _TokenIds:
    """Special tokens get the last ids of the small vocabulary; equal ones stay equal."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.known: dict[int, int] = {}

    def renamed(self, attribute: str, value: Any) -> Any:
        """The new value of the attribute, or `value` itself if it isn't a token id."""
        if not attribute.endswith(
            ("_token_id", "_token_ids", "_token_index", "_ids", "token_id_list")
        ):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return self._small(value)
        if isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
            return type(value)(self._small(v) for v in value)
        return value

    def _small(self, token: int) -> int:
        if token < 8:
            return token
        return self.known.setdefault(token, self.size.vocabulary - 1 - len(self.known))
