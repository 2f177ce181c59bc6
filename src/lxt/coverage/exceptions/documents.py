"""Exceptions for model types that read pages and tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lxt.coverage.exceptions import Tweak
from lxt.coverage.stages import stage_width

if TYPE_CHECKING:
    from lxt.coverage.making import Making


def _numbered_patches(making: Making) -> torch.Tensor:
    """4 × 4 patches of each image, flat, with row and column before the pixels."""
    width = getattr(making.config, "patch_embed_hidden_size", making.size.hidden)
    patches = making.floats(making.size.batch, 16, 2 + width)
    patches[..., 0] = torch.arange(16) // 4 + 1
    patches[..., 1] = torch.arange(16) % 4 + 1
    return patches


_NECK = Tweak(
    "the neck's channels have names of their own",
    config={
        "*.post_conv_in_channels": lambda size: size.hidden,
        "*.post_conv_mid_channels": lambda size: size.hidden,
        "*.post_conv_out_channels": lambda size: size.hidden,
    },
)
_RATIOS = (("longratio", 7), ("midratio", 5), ("shortratio", 3))
_OCR_NECK = Tweak(
    "kernels of the neck have no default",
    config={
        "kernel_list": [3, 2, 2],
        "scale_factor_list": [1, 2, 4, 8],
        "intraclass_block_config": {
            "reduce_channel": [1, 1, 0],
            "return_channel": [1, 1, 0],
            **{
                f"vertical_long_to_small_conv_{name}": [[k, 1], 1, [k // 2, 0]]
                for name, k in _RATIOS
            },
            **{
                f"horizontal_small_to_long_conv_{name}": [[1, k], 1, [0, k // 2]]
                for name, k in _RATIOS
            },
            **{f"symmetric_conv_long_{name}": [k, 1, k // 2] for name, k in _RATIOS},
        },
    },
)


def _siblings(tweak: Tweak, *names: str) -> dict[str, Tweak]:
    return dict.fromkeys(names, tweak)


TWEAKS: dict[str, Tweak] = {
    **_siblings(
        Tweak("where a hard sigmoid is 0, so is explicit relevance, whatever x is", gain=0.3),
        *("pp_lcnet_v3", "pp_ocrv5_mobile_det"),
    ),
    "slanet": Tweak(
        "its output comes out of softmax, so is a constant under CP-LRP",
        kwargs={"output_hidden_states": True},
        output="head_hidden_states.0",
    ),
    "pp_formulanet_vision": _NECK,
    "slanext": replace(
        _NECK,
        reason=f"{_NECK.reason}; its output comes out of softmax, so is a constant under CP-LRP",
        kwargs={"output_hidden_states": True},
        output="head_hidden_states.0",
    ),
    "pp_doclayout_v2": Tweak(
        "thresholds and the order of classes have no default",
        config={"class_thresholds": [0.5] * 25, "class_order": list(range(25))},
    ),
    "pp_doclayout_v3": Tweak(
        "names the width of the backbone's first stage",
        config={"x4_feat_dim": lambda size: stage_width(128, size)},
    ),
    "textnet": Tweak(
        "the stem is as wide as the first stage, and strides are listed for each layer",
        config={
            "stem_out_channels": lambda size: stage_width(64, size),
        },
    ),
    "uvdoc": Tweak(
        "joins the features of all stages, though the default backbone returns one",
        config={
            "backbone_config._out_features": [f"stage{k}" for k in range(1, 7)],
            "backbone_config._out_indices": list(range(1, 7)),
        },
    ),
    **_siblings(
        Tweak(
            "pools three rows after five halvings; its output comes out of softmax, so is a "
            "constant under CP-LRP",
            leaves={"pixel_values": lambda m: (m.size.batch, 3, 96, 64)},
            kwargs={"output_hidden_states": True},
            output="head_hidden_states.0",
            gain=0.3,  # as of pp_lcnet_v3
        ),
        *("pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec", "pp_ocrv6_small_rec"),
    ),
    **dict.fromkeys(
        ("deepseek_ocr2_vision", "unlimited_ocr_vision"),
        Tweak(
            "one encoder reads the other's features",
            config={"sam_config.downsample_channels": lambda size: [size.hidden, size.hidden]},
        ),
    ),
    "pp_ocrv6_tiny_rec": Tweak(
        "pools three rows after four halvings; its output comes out of softmax, so is a constant "
        "under CP-LRP",
        leaves={"pixel_values": lambda m: (m.size.batch, 3, 48, 64)},
        kwargs={"output_hidden_states": True},
        output="hidden_states.3",
    ),
    **_siblings(
        Tweak(
            "patches carry their row and column in front",
            leaves={"flattened_patches": lambda m: _numbered_patches(m)},
        ),
        *("pix2struct_vision_model", "kosmos_2_5_vision_model"),
    ),
    **_siblings(_OCR_NECK, "pp_ocrv5_server_det", "pp_ocrv6_medium_det"),
    "pp_ocrv6_small_det": Tweak(
        "names the widths of the backbone's stages",
        config={
            "layer_list_out_channels": lambda size: [
                stage_width(w, size) for w in (96, 96, 192, 384)
            ]
        },
    ),
}
