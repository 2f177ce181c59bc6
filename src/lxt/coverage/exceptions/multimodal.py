"""Exceptions for model types of several kinds of input that are not image-to-text models.

Encoders side by side, documents, detection by text, speech with text, and parts of such models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lxt.coverage.exceptions import Tweak

if TYPE_CHECKING:
    from torch import Tensor

    from lxt.coverage.making import Making


def _picture(making: Making) -> tuple[int, int, int]:
    side = making.vision_config.image_size
    return 3, side, side


def _with_holes(making: Making, count: int, token: int) -> Tensor:
    """Text ids with `count` placeholders after the second token, [batch, tokens + count]."""
    ids = making.ids()
    holes = torch.full((making.size.batch, count), token)
    return torch.cat([ids[:, :2], holes, ids[:, 2:]], dim=1)


_GROUNDING: dict[str, Any] = {
    "reason": "channels fall into 32 groups; scores beyond the end of the text are minus infinity",
    "config": {
        "d_model": lambda size: -(-size.hidden // 32) * 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "output": "pred_boxes",
}

TWEAKS: dict[str, Tweak] = {
    "align": Tweak(
        "image features are as wide as the last stage, text features are projected to that",
        config={
            "vision_config.width_coefficient": 1.0,
            "vision_config.in_channels": [32, *[16] * 6],
            "vision_config.out_channels": lambda size: [*[16] * 6, size.hidden],
            "projection_dim": lambda size: size.hidden,
        },
    ),
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
    "blt_local_decoder": Tweak(
        "bytes come with the states of the patches",
        leaves={
            "inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size),
            "patch_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size_global),
        },
    ),
    "bridgetower": Tweak(
        "vision heads are counted as 64 channels each",
        config={
            "vision_config.hidden_size": 64,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "text_config.hidden_size": 64,
            "text_config.num_attention_heads": 4,
        },
    ),
    "bros": Tweak(
        "the width of box embeddings follows from the hidden size, and may not be smaller than 2",
        config={
            "dim_bbox_sinusoid_emb_2d": 16,
            "dim_bbox_sinusoid_emb_1d": 2,
            "dim_bbox_projection": lambda size: size.head,
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
    "colmodernvbert": Tweak(
        "several images in a row",
        leaves={"pixel_values": lambda m: (m.size.batch, 1, *_picture(m))},
    ),
    "colqwen2": Tweak(
        "patches, padded to the same number in each row",
        leaves={
            "pixel_values": lambda m: (m.size.batch, 16, 3 * 2 * m.vision_config.patch_size**2)
        },
    ),
    "deepseek_ocr2_text": Tweak(
        "its default does not say which layers are sparse",
        config={
            "mlp_layer_types": lambda size: ["dense", *["sparse"] * (size.layers - 1)],
            "num_experts_per_tok": 2,
        },
    ),
    "diffusion_gemma_text": Tweak(
        "its default has no number of experts",
        config={"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    ),
    "flava": Tweak(
        "without a loss, which would need a second image",
        kwargs={"return_loss": False},
        output="mmm_text_logits",
    ),
    "groupvit": Tweak(
        "groups without a patch are divided by 1e-12",
        config={
            "vision_config.num_group_tokens": [4, 2, 0],
            "vision_config.num_output_groups": [4, 2, 2],
        },
        without_explicit="its straight-through groups are exact zeros, by which it divides",
    ),
    **dict.fromkeys(
        ("granite_speech", "granite_speech_plus"),
        Tweak(
            "as many queries as a window has frames, downsampled; the mask is for queries",
            config={"window_size": 4, "downsample_rate": 2},
            kwargs={"input_features_mask": None},
        ),
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
    "glmasr": Tweak(
        "mel bins first, frames are stacked by four",
        config={"audio_config.intermediate_size": lambda size: 4 * size.hidden},
        leaves={"input_features": lambda m: (m.size.batch, m.audio_config.num_mel_bins, 32)},
    ),
    "grounding-dino": Tweak(**_GROUNDING),
    "idefics2_perceiver": Tweak(
        "resamples features of images",
        leaves={"context": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
        kwargs={"attention_mask": lambda m: m.ones(m.size.batch, m.size.tokens)},
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
    "lxmert": Tweak(
        "images come as features of regions with their boxes",
        leaves={"visual_feats": lambda m: (m.size.batch, 5, m.config.visual_feat_dim)},
        kwargs={
            "visual_pos": lambda m: torch.rand(
                m.size.batch, 5, 4, generator=torch.Generator().manual_seed(0)
            ).to(m.model.dtype)
        },
        output="question_answering_score",
    ),
    "mm-grounding-dino": Tweak(**_GROUNDING),
    "molmo2_adapter": Tweak(
        "pools features of an image",
        leaves={
            "image_features": lambda m: (
                1,
                16,
                m.config.hidden_size * len(m.config.vision_feature_layer),
            )
        },
        kwargs={"pooled_patches_idx": lambda m: torch.arange(16).view(4, 4)},
    ),
    "moss_transcribe_diarize": Tweak(
        "a mask that it does not use", kwargs={"padding_mask": lambda m: m.ones(m.size.batch, 1)}
    ),
    "muse_glimmer_assistant": Tweak(
        "drafts with the states of several layers of another model",
        leaves={
            "noise_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size),
            "context_hidden_states": lambda m: (
                m.size.batch,
                m.size.tokens,
                5 * m.config.hidden_size,
            ),
        },
        kwargs={"attention_mask": {"full_attention": None, "sliding_attention": None}},
    ),
    "musicflamingo": Tweak(
        "features are told where in the text they go",
        kwargs={
            "input_ids": lambda m: _with_holes(
                m, m.audio_config.max_source_positions // 2, m.config.audio_token_id
            )
        },
    ),
    "omdet-turbo": Tweak(
        "not timm's image encoder; classes wider than the decoder; embedded classes are cached",
        init={
            "use_timm_backbone": False,
            "backbone_config": {
                "model_type": "swin",
                "out_features": ["stage2", "stage3", "stage4"],
            },
        },
        config={
            "apply_layernorm_after_vision_backbone": False,
            "text_projection_in_dim": lambda size: 2 * size.hidden,
            "text_config.hidden_size": lambda size: 2 * size.hidden,
            "text_projection_out_dim": lambda size: 2 * size.hidden,
            "class_embed_dim": lambda size: 2 * size.hidden,
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
    "pe_audio": Tweak(
        "the codec in front runs without gradient; explains the projection of what it gives",
        kwargs={"input_values": lambda m: m.floats(m.size.batch, 1, 3840)},
        embedding="audio_encoder.embedder.data_proj",
        output="logits_audio_text",
    ),
    "pe_audio_video": Tweak(
        "its image encoder needs timm, which is not installed", unbuildable=True
    ),
    "pe_audio_video_encoder": Tweak(
        "its image encoder needs timm, which is not installed", unbuildable=True
    ),
    "pe_video": Tweak("its image encoder needs timm, which is not installed", unbuildable=True),
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
    "pix2struct_text_model": Tweak(
        "its default lacks what the whole model sets", init={"initializer_range": 0.02}
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
    "qwen2_5_omni": Tweak(
        "no forward of its own; its thinker, talker and token2wav are types themselves",
        unbuildable=True,
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
    "qwen3_asr": Tweak(
        "sound comes in windows of 13 features",
        leaves={
            "input_features": lambda m: (
                m.size.batch,
                m.audio_config.num_mel_bins,
                2 * m.audio_config.n_window,
            )
        },
    ),
    "qwen3_omni_moe": Tweak(
        "no forward of its own; its thinker and talker are types themselves", unbuildable=True
    ),
    "qwen3_omni_moe_talker_code_predictor": Tweak(
        "one token of each code book so far",
        leaves={"inputs_embeds": lambda m: (m.size.batch, 3, m.config.hidden_size)},
        kwargs={"input_ids": None},
    ),
    "qwen3_omni_moe_talker_text": Tweak(
        "its default has no shared expert", init={"shared_expert_intermediate_size": 48}
    ),
    "rag": Tweak(
        "documents and their scores come from a retriever",
        leaves={"doc_scores": lambda m: (m.size.batch, m.config.n_docs)},
        kwargs={
            "context_input_ids": lambda m: m.ids().repeat_interleave(m.config.n_docs, 0),
            "context_attention_mask": lambda m: m.ones(
                m.size.batch * m.config.n_docs, m.size.tokens
            ),
            "do_marginalize": True,
        },
        embedding="rag.generator.model.encoder.embed_tokens",
    ),
    "sam2_hiera_det_model": Tweak(
        "sizes of the stages are written out",
        config={
            "embed_dim_per_stage": lambda size: [size.hidden * 2**stage for stage in range(4)],
            "hidden_size": lambda size: size.hidden,
        },
    ),
    "step3p5": Tweak("its default has no window", config={"sliding_window": 4}),
    "t5gemma2_decoder": Tweak(
        "its default lacks what the whole model sets; reads an encoder's states",
        init={"dropout_rate": 0.0},
        leaves={
            "encoder_hidden_states": lambda m: (m.size.batch, 5, m.config.hidden_size),
        },
    ),
    "t5gemma2_text": Tweak(
        "its default lacks what the whole model sets", init={"dropout_rate": 0.0}
    ),
    "udop": Tweak(
        "boxes are relative; biases of the first layer are shared with those that follow",
        config={"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
        kwargs={
            "bbox": lambda m: torch.tensor([0.1, 0.2, 0.5, 0.7]).expand(
                m.size.batch, m.size.tokens, 4
            )
        },
        embedding="encoder.embed_tokens",
    ),
    "vibevoice": Tweak(
        "sound is encoded without gradient and with noise, so that only text is given",
        config={"*.num_filters": 2},
        kwargs={"input_values": None},
    ),
    "vibevoice_asr": Tweak(
        "sound is encoded without gradient and with noise, so that only text is given",
        config={"*.num_filters": 2},
        kwargs={"input_values": None},
    ),
    "voxtral": Tweak(
        "frames are stacked by four, and the default names no audio token",
        config={
            "audio_config.intermediate_size": lambda size: 4 * size.hidden,
            "audio_token_id": lambda size: size.vocabulary - 1,
        },
    ),
    "voxtral_realtime": Tweak(
        "mel bins first, as many frames as text tokens need, and the delay as a number of tokens",
        config={"audio_config.intermediate_size": lambda size: 4 * size.hidden},
        leaves={
            "input_features": lambda m: (
                m.size.batch,
                m.audio_config.num_mel_bins,
                8 * m.size.tokens,
            )
        },
        kwargs={"num_delay_tokens": 2},
    ),
    "voxtral_realtime_text": Tweak(
        "layers are told the delay",
        kwargs={"t_cond": lambda m: m.floats(m.size.batch, 1, m.config.hidden_size)},
    ),
    "xclip": Tweak(
        "frames",
        leaves={"pixel_values": lambda m: (m.size.batch, m.vision_config.num_frames, *_picture(m))},
    ),
}
