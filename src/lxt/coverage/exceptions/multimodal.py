"""Exceptions for model types whose input is of several kinds, and for the parts of such models."""

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

TWEAKS: dict[str, Tweak] = {
    "blip-2": Tweak(**_IMAGE_TOKEN),
    "blip_2_qformer": Tweak(
        "queries, not text",
        leaves={
            "query_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size),
            "encoder_hidden_states": lambda m: (m.size.batch, 5, m.config.encoder_hidden_size),
        },
    ),
    "blt_global_transformer": Tweak(
        "patches come embedded",
        leaves={"inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
    ),
    "bros": Tweak(
        "the width of box embeddings follows from the hidden size, and may not be smaller than 2",
        config={
            "dim_bbox_sinusoid_emb_2d": 16,
            "dim_bbox_sinusoid_emb_1d": 2,
            "dim_bbox_projection": lambda size: size.head,
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
    "diffusion_gemma_text": Tweak(
        "its default has no number of experts",
        config={"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "embedding_gemma2": Tweak(
        "its default has neither images nor sound",
        init={"vision_config": {"model_type": "gemma4_vision"}, "audio_config": {"model_type": "gemma4_audio"}},
    ),
    "fast_vlm": Tweak(
        "the default image encoder is timm's; one of transformers in its place",
        init={"vision_config": {"model_type": "convnext", "hidden_size": 64}},
        config={"vision_config.hidden_sizes": lambda size: [8, 8, 16, size.hidden]},
    ),
    "flava": Tweak(
        "without a loss, which would need a second image",
        kwargs={"return_loss": False},
        output="mmm_text_logits",
    ),
    "fuyu": Tweak(
        "patches, flat",
        leaves={"pixel_values": lambda m: (m.size.batch, 4, m.config.patch_size**2 * m.config.num_channels)},
    ),
    "gemma4": Tweak("its default has neither images nor sound", init={"vision_config": {}, "audio_config": {}}),
    "idefics": Tweak(
        "images stand beside the text, which attends to them",
        leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))},
        kwargs={"image_attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens, 1)},
    ),
    "idefics2_perceiver": Tweak(
        "resamples features of images",
        leaves={"context": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
        kwargs={"attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens)},
    ),
    "inkling2": Tweak(
        "pixels of all images, in the order of merged patches, channels last",
        leaves={"pixel_values": lambda m: (m.size.batch * 16, *(2 * [2 * m.vision_config.patch_size]), 3)},
    ),
    "inkling_mm_model": Tweak("needs scipy, which is not installed", unbuildable=True),
    "instructblip": Tweak(
        "the query transformer reads text too, and the default names no image token",
        config=_IMAGE_TOKEN["config"],
        kwargs={"qformer_input_ids": lambda m: m.ids()},
    ),
    "kimi_k25": Tweak(
        "patches as small images",
        leaves={
            "pixel_values": lambda m: (
                16 * m.size.batch,
                3,
                m.vision_config.patch_size,
                m.vision_config.patch_size,
            )
        },
    ),
    "kosmos-2": Tweak(
        "a mask says where the image's features go",
        kwargs={
            "image_embeds_position_mask": lambda m: (torch.arange(m.size.tokens) < m.config.latent_query_num)
            .expand(m.size.batch, -1)
        },
        config={"latent_query_num": 4},
    ),
    "layoutlmv2": Tweak("needs detectron2, which is not installed", unbuildable=True),
    "layoutlmv3": Tweak(
        "six box coordinates share the hidden width",
        config={
            "coordinate_size": lambda size: size.hidden // 8,
            "shape_size": lambda size: size.hidden // 4,
            "input_size": lambda size: size.image,
        },
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
    "lxmert": Tweak(
        "images come as features of regions with their boxes",
        leaves={"visual_feats": lambda m: (m.size.batch, 5, m.config.visual_feat_dim)},
        kwargs={"visual_pos": lambda m: torch.rand(m.size.batch, 5, 4, generator=torch.Generator().manual_seed(0)).to(m.model.dtype)},
        output="question_answering_score",
    ),
    "minimax_m3_vl": Tweak(
        "merged patches are as wide as four text tokens",
        config={"merged_hidden_size": lambda size: 4 * size.hidden},
    ),
    "mistral4": Tweak(
        "the rotary share of a head",
        config={"head_dim": lambda size: 2 * size.head, "rope_parameters.partial_rotary_factor": 0.5},
    ),
    "molmo2_adapter": Tweak(
        "pools features of an image",
        leaves={"image_features": lambda m: (1, 16, m.config.hidden_size * len(m.config.vision_feature_layer))},
        kwargs={"pooled_patches_idx": lambda m: torch.arange(16).view(4, 4)},
    ),
    "paddleocr_vl": Tweak(
        "patches as small images",
        leaves={
            "pixel_values": lambda m: (
                16 * m.size.batch,
                3,
                m.vision_config.patch_size,
                m.vision_config.patch_size,
            )
        },
    ),
    "perception_lm": Tweak(
        "the default image encoder is timm's; one of transformers in its place",
        init={"vision_config": _CLIP_VISION | {"model_args": {"embed_dim": 768}}, "vision_use_cls_token": True},
        leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))},
    ),
    "pix2struct": Tweak(
        "patches come flat, with their row and column in front",
        leaves={
            "flattened_patches": lambda m: torch.cat(
                [
                    torch.tensor([[row, column] for row in range(1, 4) for column in range(1, 4)])
                    .to(m.model.dtype)
                    .expand(m.size.batch, -1, -1),
                    m.floats(m.size.batch, 9, m.vision_config.patch_embed_hidden_size),
                ],
                dim=-1,
            )
        },
    ),
    "aria": Tweak(
        "queries follow from the number of patches",
        config={"projector_patch_to_query_dict": lambda size: {(size.image // size.patch) ** 2: 4}},
    ),
    "blt_local_decoder": Tweak(
        "bytes come with the states of the patches",
        leaves={
            "inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size),
            "patch_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size_global),
        },
    ),
    "bridgetower": Tweak(
        "vision heads are counted as 64 channels each",
        config={"vision_config.hidden_size": 64, "hidden_size": 64, "text_config.hidden_size": 64},
    ),
    "chameleon": Tweak(
        "its default has no map from image codes to tokens; codes are discrete, so that pixels get no gradient",
        init={"vocabulary_map": {"<image>": 127}},
        kwargs={"pixel_values": None},
    ),
    "emu3": Tweak(
        "its default has no map from image codes to tokens; codes are discrete, so that pixels get no gradient",
        init={"vocabulary_map": {"<image>": 127, "<|extra_200|>": 126}},
        kwargs={"pixel_values": None},
    ),
    "granite_docling": Tweak(
        "the mask shows whole tiles", kwargs={"pixel_attention_mask": lambda m: m.ones(m.size.batch, 1).bool()}
    ),
    "grounding-dino": Tweak("scores beyond the end of the text are minus infinity", output="pred_boxes"),
    "mm-grounding-dino": Tweak("scores beyond the end of the text are minus infinity", output="pred_boxes"),
    "pix2struct_text_model": Tweak(
        "its default lacks what the whole model sets", init={"initializer_range": 0.02}
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
    "step3p5": Tweak("its default has no window", config={"sliding_window": 4}),
    "step3p7": Tweak("its default has no window", config={"text_config.sliding_window": 4}),
    "t5gemma2_text": Tweak("its default lacks what the whole model sets", init={"dropout_rate": 0.0}),
    "vipllava": Tweak(
        "reads five layers of the image encoder",
        config={"vision_feature_layers": [-2, -1]},
    ),
    "voxtral_realtime": Tweak(
        "mel bins first, as many frames as text tokens need, and the delay as a number of tokens",
        config={"audio_config.intermediate_size": lambda size: 4 * size.hidden},
        leaves={"input_features": lambda m: (m.size.batch, m.audio_config.num_mel_bins, 8 * m.size.tokens)},
        kwargs={"num_delay_tokens": 2},
    ),
    "voxtral_realtime_text": Tweak(
        "layers are told the delay",
        kwargs={"t_cond": lambda m: m.floats(m.size.batch, 1, m.config.hidden_size)},
    ),
    "colmodernvbert": Tweak(
        "several images in a row", leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))}
    ),
    "colqwen2": Tweak(
        "patches, padded to the same number in each row",
        leaves={"pixel_values": lambda m: (m.size.batch, 16, 3 * 2 * m.vision_config.patch_size**2)},
    ),
    "qwen3_omni_moe_talker_text": Tweak(
        "its default has no shared expert", init={"shared_expert_intermediate_size": 48}
    ),
    "qwen3_omni_moe_talker_code_predictor": Tweak(
        "one token of each code book so far",
        leaves={"inputs_embeds": lambda m: (m.size.batch, 3, m.config.hidden_size)},
        kwargs={"input_ids": None},
    ),
    "video_llama_3": Tweak(
        "each image has a merge size of its own", kwargs={"image_merge_sizes": lambda m: torch.full((m.size.batch,), 2)}
    ),
    "muse_glimmer": Tweak(
        "merged patches", config={"out_hidden_size": lambda size: 4 * size.hidden}
    ),
    "cohere_compass": Tweak(
        "its default has no rotary parameters for its kinds of layer",
        config={
            "text_config.rope_parameters": {
                "full_attention": None,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
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
    "deepseek_ocr2_text": Tweak(
        "its default does not say which layers are sparse",
        config={
            "mlp_layer_types": lambda size: ["dense", *["sparse"] * (size.layers - 1)],
            "num_experts_per_tok": 2,
        },
    ),
    "unlimited_ocr": Tweak(
        "one encoder reads the other's features",
        config={"vision_config.sam_config.downsample_channels": lambda size: [size.hidden, size.hidden]},
    ),
    "fun_asr_nano": Tweak(
        "frames are stacked",
        leaves={
            "input_features": lambda m: (
                m.size.batch,
                m.size.tokens,
                m.audio_config.num_mel_bins * m.audio_config.num_stacked_frames,
            )
        },
        kwargs={"input_features_mask": lambda m: m.ones(m.size.batch, m.size.tokens).bool()},
    ),
    "gemma3n": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
    "pe_audio_video": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
    "pe_audio_video_encoder": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
    "pe_video": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
    "glmasr": Tweak(
        "mel bins first, frames are stacked by four",
        config={"audio_config.intermediate_size": lambda size: 4 * size.hidden},
        leaves={"input_features": lambda m: (m.size.batch, m.audio_config.num_mel_bins, 32)},
    ),
    "granite4_vision": Tweak(
        "its default does not say which layers of the image encoder go to which of the text's",
        config={
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [0, 1, 0, 1],
            "downsample_rate": "1/2",
            "qformer_config.num_attention_heads": lambda size: size.heads,
        },
        kwargs={
            "input_ids": lambda m: _with_holes(m, 4 + 4 * 5, m.config.image_token_id)
        },
    ),
    "instructblipvideo": Tweak(
        "frames, the query transformer reads text too, and the default names no video token",
        config={"video_token_index": lambda size: size.vocabulary - 1},
        leaves={"pixel_values": lambda m: _frames(m, *_picture(m))},
        kwargs={
            "qformer_input_ids": lambda m: m.ids(),
            "qformer_attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens),
            "input_ids": lambda m: _with_holes(m, m.config.num_query_tokens * m.size.frames, m.config.video_token_index),
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
    "musicflamingo": Tweak(
        "features are told where in the text they go",
        kwargs={
            "input_ids": lambda m: _with_holes(m, m.audio_config.max_source_positions // 2, m.config.audio_token_id)
        },
    ),
    "muse_spark": Tweak(
        "merged patches; sound comes in frames of 1920 samples",
        config={"out_hidden_size": lambda size: 4 * size.hidden},
        leaves={"input_values": lambda m: (m.size.batch, 2 * m.audio_config.samples_per_token)},
    ),
    "moss_transcribe_diarize": Tweak(
        "a mask that it does not use", kwargs={"padding_mask": lambda m: m.ones(m.size.batch, 1)}
    ),
    "pe_audio": Tweak(
        "the codec in front runs without gradient; explains the projection of what it gives",
        kwargs={"input_values": lambda m: m.floats(m.size.batch, 1, 3840)},
        embedding="audio_encoder.embedder.data_proj",
        output="logits_audio_text",
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
    "pp_formulanet": Tweak(
        "the neck of the image encoder has a width of its own, and reads text by the decoder",
        config={
            "vision_config.post_conv_in_channels": lambda size: size.hidden,
            "vision_config.post_conv_mid_channels": lambda size: size.hidden,
            "vision_config.post_conv_out_channels": lambda size: size.hidden,
        },
        kwargs={"input_ids": None, "decoder_input_ids": lambda m: m.ids()},
        embedding="model.decoder.embed_tokens",
    ),
    "qwen2_5_omni": Tweak("no forward of its own; its thinker, talker and token2wav are types themselves", unbuildable=True),
    "qwen3_omni_moe": Tweak("no forward of its own; its thinker and talker are types themselves", unbuildable=True),
    "qwen3_asr": Tweak(
        "sound comes in windows of 13 features",
        leaves={"input_features": lambda m: (m.size.batch, m.audio_config.num_mel_bins, 2 * m.audio_config.n_window)},
    ),
    "sam2_hiera_det_model": Tweak(
        "sizes of the stages are written out",
        config={"embed_dim_per_stage": lambda size: [size.hidden * 2**stage for stage in range(4)], "hidden_size": lambda size: size.hidden},
    ),
    "t5gemma2_decoder": Tweak(
        "its default lacks what the whole model sets; reads an encoder's states",
        init={"dropout_rate": 0.0},
        leaves={
            "encoder_hidden_states": lambda m: (m.size.batch, 5, m.config.hidden_size),
        },
    ),
    "vibevoice": Tweak(
        "sound is encoded without gradient and with noise, so that only text is given", kwargs={"input_values": None}
    ),
    "vibevoice_asr": Tweak(
        "sound is encoded without gradient and with noise, so that only text is given", kwargs={"input_values": None}
    ),
    "voxtral": Tweak(
        "frames are stacked by four, and the default names no audio token",
        config={
            "audio_config.intermediate_size": lambda size: 4 * size.hidden,
            "audio_token_id": lambda size: size.vocabulary - 1,
        },
    ),
    "xclip": Tweak(
        "frames", leaves={"pixel_values": lambda m: (m.size.batch, m.vision_config.num_frames, *_picture(m))}
    ),
    "align": Tweak(
        "image features are as wide as the last stage, text features are projected to that",
        config={
            "vision_config.width_coefficient": 1.0,
            "vision_config.in_channels": [32, *[16] * 6],
            "vision_config.out_channels": lambda size: [*[16] * 6, size.hidden],
            "projection_dim": lambda size: size.hidden,
        },
    ),
    "clap": Tweak(
        "a picture of the spectrogram is cut into patches; it is flagged as too long or not",
        config={
            "audio_config.spec_size": 64,
            "audio_config.num_mel_bins": 32,
            "audio_config.hidden_size": lambda size: 8 * size.hidden,
        },
        leaves={"input_features": lambda m: (m.size.batch, 1, 64, 32)},
        kwargs={"is_longer": lambda m: torch.zeros(m.size.batch, 1, dtype=torch.bool)},
    ),
    "gemma4_unified": Tweak(
        "its default has neither images nor sound; embeddings of patches are as wide as the text's",
        init={"vision_config": {}, "audio_config": {}},
        config={
            "vision_config.mm_embed_dim": lambda size: size.hidden,
            "vision_config.output_proj_dims": lambda size: size.hidden,
        },
        leaves={"input_features": lambda m: (m.size.batch, m.size.tokens, m.audio_config.audio_embed_dim)},
        kwargs={"input_features_mask": lambda m: m.ones(m.size.batch, m.size.tokens).bool()},
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
        kwargs={"chunk_sample_lengths": lambda m: torch.tensor([32 * m.audio_config.hop_length] * m.size.batch)},
    ),
    "glm_image": Tweak(
        "draws an image after those that it is given, which are quantised, so that pixels get no gradient",
        config={"vq_config.latent_channels": lambda size: size.hidden},
        kwargs={
            "images_per_sample": lambda m: torch.full((m.size.batch,), 2),
            "image_grid_thw": lambda m: torch.tensor([[1, 4, 4]] * (2 * m.size.batch)),
            "input_ids": lambda m: _with_holes(m, 16, m.config.image_token_id),
            "pixel_values": lambda m: m.floats(16 * m.size.batch, 3 * m.vision_config.patch_size**2),
        },
        by_ids=True,
    ),
    "minicpm_ocr": Tweak(**_PACKED),
    "minicpmv4_6": Tweak(**_PACKED),
    "minicpmv4_7": Tweak(**_PACKED),
    "muse_glimmer_assistant": Tweak(
        "drafts with the states of several layers of another model",
        leaves={
            "noise_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size),
            "context_hidden_states": lambda m: (m.size.batch, m.size.tokens, 5 * m.config.hidden_size),
        },
        kwargs={"attention_mask": {"full_attention": None, "sliding_attention": None}},
    ),
    "omdet-turbo": Tweak(
        "the default image encoder is timm's; one of transformers in its place",
        init={
            "use_timm_backbone": False,
            "backbone_config": {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]},
        },
        config={
            "apply_layernorm_after_vision_backbone": False,
            "text_projection_in_dim": lambda size: size.hidden,
            "text_projection_out_dim": lambda size: size.hidden,
            "encoder_in_channels": lambda size: [2 * size.hidden, 4 * size.hidden, 8 * size.hidden],
        },
        leaves={"pixel_values": lambda m: (m.size.batch, 3, 64, 64)},
        kwargs={
            "classes_input_ids": lambda m: m.ids().repeat(2, 1),
            "classes_attention_mask": lambda m: m.ones(2 * m.size.batch, m.size.tokens),
            "tasks_input_ids": lambda m: m.ids(),
            "tasks_attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens),
            "classes_structure": lambda m: torch.full((m.size.batch,), 2),
        },
    ),
    "qwen2_audio": Tweak(
        "without a mask of the text, one placeholder stands for each sound",
        config={"audio_seq_length": 1},
        kwargs={
            "input_ids": lambda m: _with_holes(
                m, m.audio_config.max_source_positions // 2, m.config.audio_token_id
            ),
            "attention_mask": lambda m: m.ones(
                m.size.batch, m.size.tokens + m.audio_config.max_source_positions // 2
            ),
        },
    ),
    "rag": Tweak(
        "documents and their scores come from a retriever",
        leaves={"doc_scores": lambda m: (m.size.batch, m.config.n_docs)},
        kwargs={
            "context_input_ids": lambda m: m.ids().repeat_interleave(m.config.n_docs, 0),
            "context_attention_mask": lambda m: m.ones(m.size.batch * m.config.n_docs, m.size.tokens),
            "do_marginalize": True,
        },
        embedding="rag.generator.model.encoder.embed_tokens",
    ),
    "udop": Tweak(
        "boxes are relative; biases of the first layer are shared with those that follow",
        config={"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        kwargs={"bbox": lambda m: torch.tensor([0.1, 0.2, 0.5, 0.7]).expand(m.size.batch, m.size.tokens, 4)},
        embedding="encoder.embed_tokens",
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
}
