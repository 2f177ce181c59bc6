"""Cutting a stack of layers to few, keeping one of every kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lxt.coverage.stages import is_stage_count

if TYPE_CHECKING:
    from lxt.coverage.size import Size

DEPTH = re.compile(
    r"(num_hidden_layers|num_layers|n_layers?|num_hidden_layer|layers|depth|num_blocks|"
    r"(\w+_)?(encoder|decoder|text|vision|transformer|codec|backbone|predictor|flow|wavenet|"
    r"resampler|perceiver|semantic|thinker)_(num_)?(hidden_)?(layers|blocks|depth)|"
    r"n_(en|de)coder_layers|num_(encoder|decoder|\w+)_layers|(en|de)coder_num_layers|"
    r"num_\w+_hidden_layers|num_\w+_blocks|\w+_num_hidden_layers|\w+_num_layers|\w+_depth)"
)
"""Attributes that count layers."""

_NOT_DEPTH = re.compile(
    r"(num_nextn_predict|num_kv_shared|num_dense|num_hash|num_feat_extract|num_pos|max_window|"
    r"num_empty|num_adapter|num_lstm|num_residual|num_conv|num_memory|first_k|num_extra|"
    r"num_random|num_mem|num_sub|aligner_num_add|num_upscale|.*predictor_layers|.*kernel|"
    r"iou_head|num_nope|num_fc|num_auxiliary)\w*"
)
_INDICES = re.compile(r"(.*_(indices|indexes|index|idxs?|ids|layers|layer|list)|layer_ids)")
_NOT_INDICES = re.compile(r".*(token|out_|feature|group|coef|label|bos|eos|deepstack_vis).*")


_FIRST_FEW = re.compile(
    r"(first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_hash_layers|n_dense_layers|"
    r"first_\w*dense\w*)"
)
_LAST_FEW = re.compile(r"num_kv_shared_layers")


def is_depth(attribute: str) -> bool:
    """Whether an attribute of this name counts layers."""
    return bool(DEPTH.fullmatch(attribute)) and not _NOT_DEPTH.fullmatch(attribute)


def cut_layers(part: Any, size: Size) -> dict[str, Any]:
    """New values for the number of layers and for all lists that describe layers.

    A list with one entry per layer (`layer_types`), a list of layers' indices
    (`full_attention_layers`), and the number of the first or last few that differ
    (`num_dense_layers`) say of what kind each layer is. The first layer of every kind stays,
    and others are added until there are `size.layers`.
    """
    have = {k: v for k, v in vars(part).items() if not k.startswith("_")}
    new: dict[str, Any] = {}
    for name, count in have.items():
        if not is_depth(name) or not isinstance(count, int) or isinstance(count, bool):
            continue
        if count <= 0 or is_stage_count(have, name, count):
            continue
        indices = {k: v for k, v in have.items() if _are_indices(k, v, count)}
        per_layer = {
            k: v
            for k, v in have.items()
            if isinstance(v, list | tuple)
            and k not in indices
            and len(v) == count
            and (count > 4 or "layer" in k)
            and _scalars(v)
        }
        few = {
            k: range(v) if _FIRST_FEW.fullmatch(k) else range(count - v, count)
            for k, v in have.items()
            if isinstance(v, int) and (_FIRST_FEW.fullmatch(k) or _LAST_FEW.fullmatch(k))
        }
        own = _own(part) if name == "num_hidden_layers" else {}
        if own:
            per_layer["per_layer_config"] = [repr(own.get(i)) for i in range(count)]
        keep = _choose(count, per_layer, indices | few, size.layers)
        new[name] = len(keep)
        for k, v in per_layer.items():
            new[k] = type(v)(v[i] for i in keep)
        for k, v in indices.items():
            new[k] = type(v)(keep.index(i) for i in v if i in keep)
        for k, v in few.items():
            new[k] = sum(i in v for i in keep)
        if own:
            new["per_layer_config"] = {keep.index(i): own[i] for i in keep if i in own}
    return new


def _own(part: Any) -> dict[int, dict[str, Any]]:
    """Attributes that single layers have to themselves, by the layer's index."""
    spec = vars(part).get("_heterogeneity_spec")
    return {} if spec is None else spec.per_layer_overrides


def _are_indices(name: str, values: Any, count: int) -> bool:
    """Whether an attribute lists some of `count` layers, in order."""
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and bool(_INDICES.fullmatch(name))
        and not _NOT_INDICES.fullmatch(name)
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < count for v in values)
        and list(values) == sorted(set(values))
    )


def _scalars(values: Any) -> bool:
    return all(isinstance(v, int | float | str | bool) or v is None for v in values)


def _choose(
    count: int, per_layer: dict[str, Any], indices: dict[str, Any], wanted: int
) -> list[int]:
    kinds: dict[Any, int] = {}
    for layer in range(count):
        kind = (
            *(v[layer] for v in per_layer.values()),
            *(layer in v for v in indices.values()),
        )
        kinds.setdefault(kind, layer)
    keep = set(kinds.values())
    if len(keep) > max(wanted, 6):  # a list of numbers that differ from layer to layer
        keep = set(sorted(keep)[: max(wanted, 6)])
    for layer in range(count):
        if len(keep) >= wanted:
            break
        keep.add(layer)
    return sorted(keep)
