"""Exceptions for model types whose input is images or videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lxt.coverage.exceptions import Tweak
from lxt.coverage.stages import stage_width

if TYPE_CHECKING:
    from lxt.coverage.making import Making
    from lxt.coverage.size import Size


def _patches(making: Making, *channels: int) -> tuple[int, ...]:
    """Shape of the patches, 4 × 4 of each image, one after the other."""
    patch = making.config.patch_size
    return (making.size.batch * 16, *(channels or (3,)), patch, patch)


def _images(making: Making, *more: int) -> tuple[int, ...]:
    """Shape [batch, …, 3, height, width] of square images."""
    return (making.size.batch, *more, 3, making.size.image, making.size.image)


def _features(making: Making) -> torch.Tensor:
    return making.floats(making.size.batch, making.size.hidden, 4, 4)


def _thirty_twos(size: Size) -> int:
    """The hidden size, rounded up to what a group norm of 32 groups divides."""
    return -(-size.hidden // 32) * 32


def _pyramid(side: int) -> Any:
    return lambda size: [[s, s] for s in (4 * side, 2 * side, side)]


_RESNET = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    },
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
_DETR = Tweak(
    "the default backbone is timm's; a ResNet of transformers takes its place", init=_RESNET
)
_HIERA = {
    "backbone_config.blocks_per_stage": [1, 1, 1, 1],
    "backbone_config.global_attention_blocks": [0],
    "backbone_config.hidden_size": lambda size: stage_width(96, size),
    "backbone_config.embed_dim_per_stage": lambda size: [
        stage_width(w, size) for w in (96, 192, 384, 768)
    ],
    "backbone_channel_list": lambda size: [stage_width(w, size) for w in (768, 384, 192, 96)],
    "backbone_feature_sizes": [[8, 8], [4, 4], [2, 2]],
    "backbone_config.image_size": [32, 32],
}
_SAM2 = Tweak(
    "sizes of the feature pyramid are written out; prompts have its smallest",
    config={
        **{f"vision_config.{path}": value for path, value in _HIERA.items()},
        "prompt_encoder_config.image_size": 32,
        "prompt_encoder_config.patch_size": 16,
    },
)
_SAM3 = Tweak(
    "sizes of the feature pyramid are written out",
    config={
        "vision_config.backbone_feature_sizes": _pyramid(4),
        "prompt_encoder_config.image_size": 32,
        "prompt_encoder_config.patch_size": 8,
    },
)


def _siblings(tweak: Tweak, *names: str) -> dict[str, Tweak]:
    return dict.fromkeys(names, tweak)


TWEAKS: dict[str, Tweak] = {
    **_siblings(_DETR, "conditional_detr", "dab-detr", "deformable_detr", "table-transformer"),
    "detr": Tweak(
        "the default backbone is timm's; the head for masks wants hidden size and heads to add up "
        "to a multiple of 8",
        init=_RESNET,
        model_class="DetrForObjectDetection",
    ),
    **_siblings(_SAM2, "sam2", "sam2_video", "edgetam_video"),
    "sam3_tracker": _SAM3,
    **_siblings(
        Tweak(
            "its forward takes no tensors but a session, which holds a video and what was found "
            "in earlier frames",
            unbuildable=True,
        ),
        *("sam3_video", "sam3_tracker_video"),
    ),
    "sam2_vision_model": Tweak("sizes of the feature pyramid are written out", config=_HIERA),
    "sam": Tweak(
        "positions fill the mask decoder's width with sines and cosines",
        config={"vision_config.num_pos_feats": lambda size: size.hidden // 2},
    ),
    "sam_hq": Tweak(
        "positions fill the mask decoder's width with sines and cosines; it knows the encoder's",
        config={
            "vision_config.num_pos_feats": lambda size: size.hidden // 2,
            "mask_decoder_config.vit_dim": lambda size: size.hidden,
        },
    ),
    "timm_wrapper": Tweak(
        "without timm there is no model; its smallest architecture",
        init={"architecture": "test_vit"},
    ),
    "timm_backbone": Tweak(
        "without timm there is no model; its smallest architecture",
        init={"backbone": "test_resnet", "use_pretrained_backbone": False},
        leaves={"pixel_values": lambda m: (m.size.batch, 3, 64, 64)},
    ),
    "bit": Tweak("channels must divide into groups", config={"num_groups": 4}),
    "bridgetower_vision_model": Tweak(
        "heads have 64 channels; its argument is called `image`",
        config={"hidden_size": lambda size: 64 * (1 + size.hidden // 64)},
        leaves={"image": lambda m: _images(m)},
    ),
    "cvt": Tweak(
        "a stage's layers are as many as its index, for upstream indexes layers by stage",
        config={"depth": (1, 2, 3)},
    ),
    "depth_pro": Tweak(
        "patches, scales and their overlap depend on each other",
        config={
            "patch_size": 16,
            "intermediate_hook_ids": (1, 0),
            "merge_padding_value": 1,
            "scaled_images_feature_dims": lambda size: (size.hidden,) * 3,
            "intermediate_feature_dims": lambda size: (size.hidden,) * 2,
            "*.image_size": 16,
            "image_model_config.patch_size": 2,
            "patch_model_config.patch_size": 2,
            "fov_model_config.patch_size": 2,
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 3, 64, 64)},
    ),
    "florence_vision": Tweak(
        "its argument `hidden_states` holds images",
        leaves={"hidden_states": lambda m: (m.size.batch, 3, 64, 64)},
    ),
    "kimi_k25_vision": Tweak(
        "patches keep their shape", leaves={"pixel_values": lambda m: _patches(m)}
    ),
    "paddleocr_vl_vision": Tweak(
        "patches keep their shape", leaves={"pixel_values": lambda m: (1, *_patches(m))}
    ),
    "instructblipvideo_vision_model": Tweak(
        "frames count as images", leaves={"pixel_values": lambda m: _images(m)}
    ),
    "xclip_vision_model": Tweak(
        "frames count as images",
        leaves={
            "pixel_values": lambda m: (
                m.size.batch * m.config.num_frames,
                *(3, m.config.image_size, m.config.image_size),
            )
        },
    ),
    "levit": Tweak(
        "attention biases know the resolution after four halvings",
        config={"image_size": 64, "patch_size": 16},
    ),
    "llama4_vision_model": Tweak(
        "four pixels are shuffled into the channels of one",
        config={
            "intermediate_size": lambda size: 4 * size.hidden,
            "projector_input_dim": lambda size: size.hidden,
            "projector_output_dim": lambda size: size.hidden,
        },
    ),
    "lw_detr": Tweak(
        "by default no feature level is projected", init={"projector_scale_factors": [1.0]}
    ),
    "mask2former": Tweak(
        "the model with a head makes a loss that needs scipy; group norms have 32 groups",
        model_class="Mask2FormerModel",
        config={
            "feature_size": _thirty_twos,
            "mask_feature_size": _thirty_twos,
            "hidden_dim": _thirty_twos,
            "num_attention_heads": 4,
        },
    ),
    "maskformer": Tweak(
        "the model with a head makes a loss that needs scipy; group norms have 32 groups",
        model_class="MaskFormerModel",
        config={
            "fpn_feature_size": _thirty_twos,
            "mask_feature_size": _thirty_twos,
        },
    ),
    **_siblings(
        Tweak(
            "position ids need the grid of patches",
            leaves={
                "pixel_values": lambda m: (
                    *(1, 3, m.config.patch_size),
                    m.config.patch_size * 16 * m.size.batch,
                )
            },
            kwargs={"target_sizes": lambda m: torch.tensor([[4, 4]] * m.size.batch)},
        ),
        *("minicpm_ocr_vision", "minicpmv4_6_vision", "minicpmv4_7_vision"),
    ),
    "mllama_vision_model": Tweak(
        "images come in tiles of a known aspect ratio",
        leaves={"pixel_values": lambda m: _images(m, 1, m.config.max_num_tiles)},
        kwargs={
            "aspect_ratio_ids": lambda m: m.ones(m.size.batch, 1) * 6,
            "aspect_ratio_mask": lambda m: m.ones(m.size.batch, 1, m.config.max_num_tiles),
        },
    ),
    "mobilevitv2": Tweak(
        "needs two pixels after five halvings", config={"image_size": lambda size: 4 * size.image}
    ),
    "molmo2_vision": Tweak(
        "takes as many flat patches as it has positions",
        leaves={
            "pixel_values": lambda m: (
                *(m.size.batch, m.config.num_position_embeddings),
                3 * m.config.patch_size**2,
            )
        },
    ),
    "radio": Tweak(
        "names the volume of a patch", config={"patch_dim": lambda size: 3 * size.patch**2}
    ),
    "seggpt": Tweak(
        "an image is segmented as its prompt is",
        leaves={
            "pixel_values": lambda m: _images(m),
            "prompt_pixel_values": lambda m: _images(m),
            "prompt_masks": lambda m: _images(m),
        },
        config={"image_size": lambda size: (2 * size.image, size.image)},
    ),
    "video_llama_3_vision": Tweak(
        "patches are merged by two",
        kwargs={"merge_sizes": lambda m: torch.tensor([2] * m.size.batch)},
    ),
    "dots3_note_vision_encoder": Tweak(
        "the adapter knows the width of the encoder",
        config={"adapter_in_dim": lambda size: size.hidden},
    ),
    "janus_vqgan": Tweak(
        "decodes as many codes as an image has after four halvings; codes are indices, with no "
        "gradient to the image: explains what the decoder reads",
        config={"num_patches": lambda size: size.image // 16},
        kwargs={"pixel_values": lambda m: m.floats(*_images(m))},
        embedding="decoder.conv_in",
    ),
    "glm_image_vqmodel": Tweak(
        'upstream: Module [GlmImageVQVAE] is missing the required "forward" function',
        unbuildable=True,
    ),
    "sapiens2": Tweak(
        "the head's channels have no default; key heads are counted layer by layer",
        model_class="Sapiens2Model",
        config={"num_key_value_heads_per_layer": lambda size: [size.heads, size.heads // 2]},
    ),
    "vitmatte": Tweak(
        "images have a fourth channel; upstream adds a list to a tuple",
        config={
            "backbone_config.num_channels": 4,
            "backbone_config.patch_size": 16,
            "fusion_hidden_sizes": [32, 16, 8, 8],
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 4, m.size.image, m.size.image)},
    ),
    "tvp": Tweak(
        "the prompt frames the video; upstream's positions of columns fit one video only",
        config={
            "visual_prompt_size": 4,
            "max_img_size": lambda size: 4 * size.image,
            "num_frames": 2,
        },
        leaves={"pixel_values": lambda m: (1, 2, 3, 4 * m.size.image, 4 * m.size.image)},
        kwargs={"input_ids": lambda m: m.ids()[:1]},
    ),
    "deepseek_ocr2_encoder": Tweak(
        "reads patches and then queries",
        leaves={"inputs_embeds": lambda m: (m.size.batch, 8, m.config.hidden_size)},
        kwargs={"num_patches": 4, "input_ids": None},
    ),
    "unlimited_ocr_vision_encoder": Tweak(
        "takes the features of another encoder as its patches",
        leaves={"patch_embeds": lambda m: (m.size.batch, m.config.hidden_size, 4, 4)},
    ),
    "inkling_vision": Tweak(
        "takes the frames of patches, colours last",
        leaves={
            "pixel_values": lambda m: (
                *(4 * m.size.batch, m.config.temporal_patch_size),
                *(m.config.patch_size, m.config.patch_size, 3),
            )
        },
    ),
    "inkling2_vision": Tweak(
        "takes blocks of two by two patches, colours last",
        leaves={
            "pixel_values": lambda m: (
                *(m.size.batch * 16, 2 * m.config.patch_size),
                *(2 * m.config.patch_size, 3),
            )
        },
    ),
    **_siblings(
        Tweak(
            "takes lists of feature maps; explains the first layer's output",
            embedding="layers.0",
            kwargs={
                "vision_features": lambda m: [_features(m)],
                "vision_pos_embeds": lambda m: [_features(m)],
                "text_features": lambda m: m.floats(m.size.batch, m.size.tokens, m.size.hidden),
            },
        ),
        *("sam3_detr_encoder", "sam3_lite_text_detr_encoder"),
    ),
    **_siblings(
        Tweak(
            "takes what encoders of image and text made",
            leaves={
                "vision_features": lambda m: (m.size.batch, 16, m.size.hidden),
                "text_features": lambda m: (m.size.batch, m.size.tokens, m.size.hidden),
            },
            kwargs={
                "vision_pos_encoding": lambda m: m.floats(m.size.batch, 16, m.size.hidden),
                "spatial_shapes": torch.tensor([[4, 4]]),
            },
        ),
        *("sam3_detr_decoder", "sam3_lite_text_detr_decoder"),
    ),
    **_siblings(
        Tweak(
            "takes what encoders and a decoder made",
            leaves={
                "decoder_queries": lambda m: (m.size.batch, 5, m.size.hidden),
                "encoder_hidden_states": lambda m: (m.size.batch, 16, m.size.hidden),
            },
            kwargs={
                "backbone_features": lambda m: [
                    m.floats(m.size.batch, m.size.hidden, side, side) for side in (16, 8, 4)
                ],
            },
        ),
        *("sam3_mask_decoder", "sam3_lite_text_mask_decoder"),
    ),
    "groupvit_vision_model": Tweak(
        "groups without a patch are divided by 1e-12",
        config={"num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]},
        without_explicit="its straight-through groups are exact zeros, by which it divides",
    ),
}
