"""Exceptions for model types that read images, in some also sound, among their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lxt.coverage.exceptions import Tweak

if TYPE_CHECKING:
    from torch import Tensor

    from lxt.coverage.making import Making

_CLIP_VISION = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}


def _frames(making: Making, *shape: int) -> tuple[int, ...]:
    return (making.size.batch, making.size.frames, *shape)


def _picture(making: Making) -> tuple[int, int, int]:
    side = making.vision_config.image_size
    return 3, side, side


def _with_holes(making: Making, count: int, token: int) -> Tensor:
    """Text ids with `count` placeholders after the second token, [batch, tokens + count]."""
    ids = making.ids()
    holes = torch.full((making.size.batch, count), token)
    return torch.cat([ids[:, :2], holes, ids[:, 2:]], dim=1)


def _high_resolution(making: Making) -> tuple[int, int, int]:
    side = making.config.high_res_vision_config.image_size
    return 3, side, side


_PACKED: dict[str, Any] = {
    "reason": "patches of all images side by side; its default names no image token",
    "config": {"image_token_id": lambda size: size.vocabulary - 1},
    "leaves": {
        "pixel_values": lambda m: (
            *(1, 3, m.vision_config.patch_size),
            16 * m.size.batch * m.vision_config.patch_size,
        )
    },
}


_IMAGE_TOKEN: dict[str, Any] = {
    "reason": "its default names no image token",
    "config": {"image_token_id": lambda size: size.vocabulary - 1},
}

_PATCHES = Tweak(
    "patches as small images",
    leaves={
        "pixel_values": lambda m: (
            16 * m.size.batch,
            3,
            m.vision_config.patch_size,
            m.vision_config.patch_size,
        )
    },
)

TWEAKS: dict[str, Tweak] = {
    "videoprism": Tweak(
        "its logits are probabilities, constants under CP-LRP",
        output="video_embeds",
    ),
    "aria": Tweak(
        "queries follow from the number of patches",
        config={"projector_patch_to_query_dict": lambda size: {(size.image // size.patch) ** 2: 4}},
    ),
    "blip-2": Tweak(**_IMAGE_TOKEN),
    "chameleon": Tweak(
        "its default maps no image codes to tokens; codes are discrete: pixels get no gradient",
        init={"vocabulary_map": {"<image>": 127}},
        config={"vq_config.base_channels": 32},
        kwargs={"pixel_values": None},
    ),
    "cohere_compass": Tweak(
        "its default has no rotary parameters for its kinds of layer",
        config={
            "text_config.rope_parameters": {
                "full_attention": None,
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                },
            },
            "text_config.layer_types": ["sliding_attention", "full_attention"],
            "text_config.num_hidden_layers": 2,
        },
    ),
    "deepseek_ocr2": Tweak(
        "its default does not say which layers are sparse; one encoder reads the other's features",
        config={
            "text_config.mlp_layer_types": lambda size: ["dense", *["sparse"] * (size.layers - 1)],
            "text_config.num_experts_per_tok": 2,
            "vision_config.sam_config.downsample_channels": lambda size: [size.hidden, size.hidden],
        },
    ),
    "deepseek_vl_hybrid": Tweak(
        "a second, larger image",
        leaves={"high_res_pixel_values": lambda m: (m.size.batch, *_high_resolution(m))},
    ),
    "diffusion_gemma": Tweak(
        "its default has no number of experts",
        config={
            "text_config.num_experts": 4,
            "text_config.top_k_experts": 2,
            "text_config.moe_intermediate_size": 16,
        },
    ),
    "dots3_note": Tweak(
        "adapters know the widths of the encoders and of the text; sound says how long it is",
        config={
            "vision_config.adapter_in_dim": lambda size: size.hidden,
            "vision_config.adapter_out_dim": lambda size: size.hidden,
            "audio_config.adapter_input_size": lambda size: size.hidden,
            "audio_config.adapter_out_dim": lambda size: size.hidden,
            "audio_config.conv_output_size": lambda size: size.hidden * (size.mel // 8),
        },
        leaves={"input_features": lambda m: (m.size.batch, m.audio_config.feature_size, 32)},
        kwargs={
            "chunk_sample_lengths": lambda m: torch.tensor(
                [32 * m.audio_config.hop_length] * m.size.batch
            )
        },
    ),
    "embedding_gemma2": Tweak(
        "its default has neither images nor sound; as many mel bins as channels",
        init={
            "vision_config": {"model_type": "gemma4_vision"},
            "audio_config": {"model_type": "gemma4_audio"},
        },
        config={"audio_config.subsampling_conv_channels": lambda size: [size.mel, 8]},
    ),
    "emu3": Tweak(
        "its default maps no image codes to tokens; codes are discrete: pixels get no gradient",
        init={"vocabulary_map": {"<image>": 127, "<|extra_200|>": 126}},
        config={"vq_config.base_channels": 32},
        kwargs={"pixel_values": None},
    ),
    "fast_vlm": Tweak(
        "the default image encoder is timm's; one of transformers in its place",
        init={"vision_config": {"model_type": "convnext", "hidden_size": 64}},
        config={"vision_config.hidden_sizes": lambda size: [8, 8, 16, size.hidden]},
    ),
    "fuyu": Tweak(
        "patches, flat",
        leaves={
            "pixel_values": lambda m: (
                m.size.batch,
                4,
                m.config.patch_size**2 * m.config.num_channels,
            )
        },
    ),
    "gemma3n": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
    "gemma4": Tweak(
        "its default has neither images nor sound; as many mel bins as channels",
        init={"vision_config": {}, "audio_config": {}},
        config={"audio_config.subsampling_conv_channels": lambda size: [size.mel, 8]},
    ),
    "gemma4_unified": Tweak(
        "its default has neither images nor sound; embeddings of patches are as wide as the text's",
        init={"vision_config": {}, "audio_config": {}},
        config={
            "vision_config.mm_embed_dim": lambda size: size.hidden,
            "vision_config.output_proj_dims": lambda size: size.hidden,
        },
        leaves={
            "input_features": lambda m: (
                m.size.batch,
                m.size.tokens,
                m.audio_config.audio_embed_dim,
            )
        },
        kwargs={"input_features_mask": lambda m: m.ones(m.size.batch, m.size.tokens).bool()},
    ),
    "glm_image": Tweak(
        "draws one more image; those given are quantised: pixels get no gradient",
        config={"vq_config.latent_channels": lambda size: size.hidden},
        kwargs={
            "images_per_sample": lambda m: torch.full((m.size.batch,), 2),
            "image_grid_thw": lambda m: torch.tensor([[1, 4, 4]] * (2 * m.size.batch)),
            "input_ids": lambda m: _with_holes(m, 16, m.config.image_token_id),
            "pixel_values": lambda m: m.floats(
                16 * m.size.batch, 3 * m.vision_config.patch_size**2
            ),
        },
        by_ids=True,
    ),
    "granite4_vision": Tweak(
        "its default does not say which layers of the image encoder go to which of the text's",
        config={
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [0, 1, 0, 1],
            "downsample_rate": "1/2",
            "qformer_config.num_attention_heads": lambda size: size.heads,
        },
        kwargs={"input_ids": lambda m: _with_holes(m, 4 + 4 * 5, m.config.image_token_id)},
    ),
    "granite_docling": Tweak(
        "the mask shows whole tiles",
        kwargs={"pixel_attention_mask": lambda m: m.ones(m.size.batch, 1).bool()},
    ),
    "idefics": Tweak(
        "images stand beside the text, which attends to them",
        leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))},
        kwargs={"image_attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens, 1)},
    ),
    "inkling2": Tweak(
        "pixels of all images, in the order of merged patches, channels last",
        leaves={
            "pixel_values": lambda m: (
                m.size.batch * 16,
                *(2 * [2 * m.vision_config.patch_size]),
                3,
            )
        },
    ),
    "inkling_mm_model": Tweak(
        "takes the frames of patches, colours last",
        leaves={
            "pixel_values": lambda m: (
                *(4 * m.size.batch, m.vision_config.temporal_patch_size),
                *(m.vision_config.patch_size, m.vision_config.patch_size, 3),
            )
        },
    ),
    "instructblip": Tweak(
        "the query transformer reads text too, and the default names no image token",
        config=_IMAGE_TOKEN["config"],
        kwargs={"qformer_input_ids": lambda m: m.ids()},
    ),
    "instructblipvideo": Tweak(
        "frames, the query transformer reads text too, and the default names no video token",
        config={"video_token_index": lambda size: size.vocabulary - 1},
        leaves={"pixel_values": lambda m: _frames(m, *_picture(m))},
        kwargs={
            "qformer_input_ids": lambda m: m.ids(),
            "qformer_attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens),
            "input_ids": lambda m: _with_holes(
                m, m.config.num_query_tokens * m.size.frames, m.config.video_token_index
            ),
        },
    ),
    "janus": Tweak("the decoder of images is wide", config={"vq_config.base_channels": 32}),
    "kimi_k25": _PATCHES,
    "kosmos-2": Tweak(
        "a mask says where the image's features go",
        kwargs={
            "image_embeds_position_mask": lambda m: (
                torch.arange(m.size.tokens) < m.config.latent_query_num
            ).expand(m.size.batch, -1)
        },
        config={"latent_query_num": 4},
    ),
    "llama4": Tweak(
        "the adapter's widths follow from the pixel shuffle",
        config={
            "vision_config.intermediate_size": lambda size: 4 * size.hidden,
            "vision_config.projector_input_dim": lambda size: size.hidden,
            "vision_config.projector_output_dim": lambda size: size.hidden,
            "vision_config.vision_output_dim": lambda size: size.hidden,
        },
    ),
    "llava": Tweak("images of one size", kwargs={"image_sizes": None}),
    "minicpm_ocr": Tweak(**_PACKED),
    "minicpmv4_6": Tweak(**_PACKED),
    "minicpmv4_7": Tweak(**_PACKED),
    "minimax_m3_vl": Tweak(
        "merged patches are as wide as four text tokens",
        config={"merged_hidden_size": lambda size: 4 * size.hidden},
    ),
    "mistral4": Tweak(
        "the rotary share of a head",
        config={
            "head_dim": lambda size: 2 * size.head,
            "rope_parameters.partial_rotary_factor": 0.5,
        },
    ),
    "mllama": Tweak(
        "images are cut into tiles, and features of several layers are put side by side",
        config={
            "vision_config.intermediate_layers_indices": [0],
            "vision_config.vision_output_dim": lambda size: 2 * size.hidden,
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 1, 4, *_picture(m))},
        kwargs={
            "aspect_ratio_ids": lambda m: torch.full((m.size.batch, 1), 6),
            "aspect_ratio_mask": lambda m: m.ones(m.size.batch, 1, 4),
        },
    ),
    "molmo2": Tweak(
        "patches, flat, and how they are pooled",
        config={
            "adapter_config.vision_feature_layer": [-1, -2],
            "image_patch_id": lambda size: size.vocabulary - 8,
        },
        leaves={
            "pixel_values": lambda m: (
                m.size.batch,
                m.vision_config.num_position_embeddings,
                3 * m.vision_config.patch_size**2,
            )
        },
        kwargs={
            "image_token_pooling": lambda m: torch.arange(
                m.vision_config.num_position_embeddings * m.size.batch
            ).view(-1, 4),
            "image_grids": lambda m: torch.tensor(
                [[1, m.vision_config.num_position_embeddings // 4, 0, 0]] * m.size.batch
            ),
        },
    ),
    "muse_glimmer": Tweak(
        "merged patches", config={"out_hidden_size": lambda size: 4 * size.hidden}
    ),
    "muse_spark": Tweak(
        "merged patches; sound comes in frames of 1920 samples",
        config={"out_hidden_size": lambda size: 4 * size.hidden},
        leaves={"input_values": lambda m: (m.size.batch, 2 * m.audio_config.samples_per_token)},
    ),
    "nemotron_h_omni": Tweak(
        "the volume of a patch is written out; its default names no placeholder tokens",
        config={
            "vision_config.patch_dim": lambda size: 3 * size.patch**2,
            "vision_config.video_patch_dim": lambda size: 2 * 3 * size.patch**2,
            "image_token_id": lambda size: size.vocabulary - 1,
            "video_token_id": lambda size: size.vocabulary - 2,
            "audio_token_id": lambda size: size.vocabulary - 3,
        },
        kwargs={"input_features": None},
    ),
    "paddleocr_vl": _PATCHES,
    "perception_lm": Tweak(
        "the default image encoder is timm's; one of transformers in its place",
        init={
            "vision_config": _CLIP_VISION | {"model_args": {"embed_dim": 768}},
            "vision_use_cls_token": True,
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))},
    ),
    "pi0": Tweak(
        "the states and actions of a robot",
        leaves={
            "state": lambda m: (m.size.batch, m.config.max_state_dim),
            "noise": lambda m: (m.size.batch, m.config.chunk_size, m.config.max_action_dim),
            "pixel_values": lambda m: (m.size.batch, 1, *_picture(m)),
        },
        kwargs={
            "timestep": lambda m: torch.full((m.size.batch,), 0.5),
            "pixel_attention_mask": lambda m: m.ones(m.size.batch, 1).bool(),
            "input_ids": lambda m: _with_holes(
                m,
                (m.vision_config.image_size // m.vision_config.patch_size) ** 2,
                m.inner_config.image_token_id,
            ),
        },
    ),
    "qwen4_exp": Tweak(
        "its default has no sizes for the indexer of sparse attention",
        config={
            "text_config.indexer_n_heads": 2,
            "text_config.indexer_kv_heads": 1,
            "text_config.indexer_head_dim": 8,
            "text_config.indexer_budget": 8,
            "text_config.indexer_compress_ratio": 2,
        },
    ),
    "step3p7": Tweak("its default has no window", config={"text_config.sliding_window": 4}),
    "unlimited_ocr": Tweak(
        "one encoder reads the other's features",
        config={
            "vision_config.sam_config.downsample_channels": lambda size: [size.hidden, size.hidden]
        },
    ),
    "video_llama_3": Tweak(
        "each image has a merge size of its own",
        kwargs={"image_merge_sizes": lambda m: torch.full((m.size.batch,), 2)},
    ),
    "vipllava": Tweak(
        "reads five layers of the image encoder",
        config={"vision_feature_layers": [-2, -1]},
    ),
}
