"""Exceptions for model types whose input or output is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lxt.coverage.exceptions import Tweak
from lxt.coverage.exceptions.codecs import QUANTISED, wave

if TYPE_CHECKING:
    from lxt.coverage.making import Making
    from lxt.coverage.size import Size


def _mel_first(making: Making) -> tuple[int, int, int]:
    """Shape [batch, mel bin, frame]."""
    return (making.size.batch, making.config.num_mel_bins, 4 * making.size.tokens)


def _codes(making: Making, *shape: int) -> torch.Tensor:
    """Ids of audio codes."""
    return making.ids(*shape) % 8


def _hidden(size: Size) -> int:
    return size.hidden


def _same(tweak: Tweak, *names: str) -> dict[str, Tweak]:
    return dict.fromkeys(names, tweak)


def _rows_of_codes(making: Making) -> torch.Tensor:
    """Codes [batch · codebook, frame]."""
    books = making.config.decoder.num_codebooks
    return _codes(making, making.size.tokens * books).reshape(-1, making.size.tokens)


_MIMI = {
    "num_filters": 8,
    "hidden_size": _hidden,
    "upsample_groups": _hidden,
    "num_quantizers": 4,
    "vector_quantization_hidden_dimension": 16,
    "codebook_dim": 16,
    "codebook_size": 32,
}
"""Convolutions of the codec have one group for each channel."""


def _inside(part: str, config: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{path}": value for path, value in config.items()}


_VOCODER = Tweak(
    "takes a spectrogram",
    config={"upsample_initial_channel": 32},
    leaves={"spectrogram": lambda m: (m.size.batch, m.size.tokens, m.config.model_in_dim)},
)
_CHANNELS_FIRST = Tweak(
    "takes mel bins first, without a limit on their number",
    leaves={"input_features": _mel_first},
)
_VOCABULARY = Tweak("a head needs a vocabulary", init={"vocab_size": 64})
_CODEBOOKS = Tweak(
    "embeds the codes of several codebooks and adds them up",
    kwargs={"input_ids": None},
    leaves={"inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
)

TWEAKS: dict[str, Tweak] = {
    **_same(_VOCODER, "speecht5_hifigan", "fastspeech2_conformer_hifigan"),
    **_same(_CHANNELS_FIRST, "voxtral_realtime_encoder", "glmasr_encoder"),
    **_same(_VOCABULARY, "wav2vec2-bert", "wav2vec2-conformer"),
    "mimi": Tweak(
        f"{QUANTISED}, in place of the untrained codebooks' zeros",
        config=_MIMI,
        leaves={"embedding": lambda m: (m.size.batch, m.config.hidden_size, 4)},
        embedding="decoder.upsample.conv",
        kwargs={"input_values": lambda m: m.floats(*wave(m))},
    ),
    **_same(
        Tweak("convolutions have one group for each channel", config=_MIMI),
        *("mimi_encoder", "pocket_tts_audio_tokenizer", "pocket_tts_audio_tokenizer_encoder"),
    ),
    **_same(
        Tweak(
            "takes latents; convolutions have one group for each channel",
            config=_MIMI,
            leaves={"latents": lambda m: (m.size.batch, m.config.hidden_size, m.size.tokens)},
        ),
        *("mimi_decoder", "pocket_tts_audio_tokenizer_decoder"),
    ),
    "audioflamingo3_encoder": Tweak(
        "needs a mask",
        kwargs={
            "input_features_mask": lambda m: m.ones(m.size.batch, 2 * m.config.max_source_positions)
        },
    ),
    "bark": Tweak(
        'upstream: Module [BarkModel] is missing the required "forward" function; '
        "its three stages are no model types of their own",
        unbuildable=True,
    ),
    "clap_audio_model": Tweak(
        "a picture of the spectrogram is cut into patches",
        config={
            "spec_size": 64,
            "num_mel_bins": 32,
            "hidden_size": lambda size: 8 * size.hidden,
        },
        leaves={
            "input_features": lambda m: (m.size.batch, 1, m.config.spec_size, m.config.num_mel_bins)
        },
    ),
    **_same(
        Tweak(
            "the codec's convolutions have one group for each channel; the codes of several "
            "codebooks are added up",
            config=_inside("codec_config", _MIMI),
            kwargs={"input_ids": None, "input_values": None},
            leaves={"inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
        ),
        *("csm", "kyutai_speech_to_text"),
    ),
    "dots3_note_audio_encoder": Tweak(
        "convolutions need to know how long the sound is",
        leaves={"input_features": lambda m: (m.size.batch, m.config.feature_size, 32)},
        kwargs={
            "chunk_sample_lengths": lambda m: torch.tensor(
                [32 * m.config.hop_length] * m.size.batch
            )
        },
        config={
            "adapter_input_size": _hidden,
            "conv_output_size": lambda size: size.hidden * (size.mel // 8),
        },
    ),
    "gemma3n_audio": Tweak(
        "takes a spectrogram under a name of its own",
        leaves={"audio_mel": lambda m: (m.size.batch, 32, m.config.input_feat_size)},
        kwargs={"audio_mel_mask": lambda m: torch.zeros(m.size.batch, 32, dtype=torch.bool)},
    ),
    "gemma4_audio": Tweak(
        "the projection takes it that there are as many mel bins as channels",
        config={"subsampling_conv_channels": lambda size: [size.mel, 8]},
    ),
    **_same(
        Tweak(
            "takes mel bins, in an argument called hidden states",
            leaves={"hidden_states": lambda m: (m.size.batch, m.size.tokens, m.config.input_dim)},
        ),
        *("granite_speech_encoder", "granite_speech_plus_encoder"),
    ),
    **_same(
        Tweak(
            "takes four frames at a time",
            leaves={
                "input_features": lambda m: (
                    *(m.size.batch, m.size.tokens),
                    4 * m.audio_config.num_mel_bins,
                )
            },
        ),
        *("granite_speech5_encoder", "granite_speech5_ctc"),
    ),
    "inkling_audio": Tweak(
        "spectrograms are quantised to ids; explains their embedding",
        kwargs={
            "audio_input_ids": lambda m: _codes(m, m.size.tokens, m.config.n_mel_bins),
        },
        embedding="embed_audio_tokens",
    ),
    "jev": Tweak(
        "scores the options of two questions in one prompt",
        kwargs={
            "input_ids": lambda m: m.ids()[:1],
            "marks": lambda m: torch.tensor([[m.size.tokens // 2, m.size.tokens]]),
            "num_options": lambda m: torch.tensor([[2, 3]]),
            "question_type_ids": lambda m: torch.tensor([[0, 2]]),
        },
    ),
    "dia_decoder": Tweak(
        "several channels of codes at a time, with an encoder's output",
        leaves={
            "encoder_hidden_states": lambda m: (
                *(m.size.batch, m.size.tokens),
                m.config.cross_hidden_size,
            )
        },
        kwargs={"input_ids": lambda m: _codes(m, m.size.tokens, m.config.num_channels)},
        embedding="embeddings",
    ),
    "dia": Tweak(
        "several channels of codes at a time",
        kwargs={
            "decoder_input_ids": lambda m: _codes(
                m, m.size.tokens, m.config.decoder_config.num_channels
            )
        },
    ),
    "clvp_encoder": Tweak(
        "rotates 32 channels of a head", config={"hidden_size": lambda size: 32 * size.heads}
    ),
    "clvp": Tweak(
        "takes mel bins first; its encoders rotate 32 channels of a head",
        config={
            f"{part}.hidden_size": lambda size: 32 * size.heads
            for part in ("text_config", "speech_config")
        },
        leaves={
            "input_features": lambda m: (
                *(m.size.batch, m.config.decoder_config.feature_size),
                4 * m.size.tokens,
            )
        },
    ),
    "fastspeech2_conformer_with_hifigan": Tweak(
        "the vocoder takes as many mel bins as the model makes",
        config={
            "vocoder_config.model_in_dim": lambda size: size.mel,
            "vocoder_config.upsample_initial_channel": 32,
        },
    ),
    "moonshine": Tweak(
        "convolutions with strides 64, 3 and 2 take the wave itself; query heads are counted as "
        "key heads",
        config={
            "encoder_num_key_value_heads": lambda size: size.heads,
            "decoder_num_key_value_heads": lambda size: size.heads,
        },
        leaves={"input_values": lambda m: (m.size.batch, 384 * m.size.tokens + 1024)},
    ),
    "moshi_depth": Tweak(
        "predicts the codes of one frame from the frame's state",
        leaves={
            "last_hidden_state": lambda m: (m.size.batch, 1, m.config.input_size),
            "embedding": None,
        },
        kwargs={"input_ids": lambda m: _codes(m, m.config.num_codebooks)},
    ),
    "musicgen_decoder": _CODEBOOKS,
    "musicgen_melody_decoder": _CODEBOOKS,
    "musicgen": Tweak(
        "the auto table names the decoder's class for the whole's configuration; sound has no part "
        "where its codes are given; the embedding that it names is a twin of the one in use",
        model_class="MusicgenForConditionalGeneration",
        kwargs={"decoder_input_ids": _rows_of_codes, "input_values": None},
        embedding="text_encoder.encoder.embed_tokens",
    ),
    "musicgen_melody": Tweak(
        "the auto table names the decoder's class for the whole's configuration; the embedding "
        "that it names is a twin of the one in use",
        model_class="MusicgenMelodyForConditionalGeneration",
        kwargs={"decoder_input_ids": _rows_of_codes},
        embedding="text_encoder.encoder.embed_tokens",
        leaves={"input_features": lambda m: (m.size.batch, m.size.tokens, m.config.num_chroma)},
    ),
    "moonshine_streaming": Tweak(
        "asks for an attribute that the configuration lacks",
        config={"num_key_value_heads": lambda size: size.heads},
    ),
    "pop2piano": Tweak(
        "takes the sound as embeddings, beside no text",
        kwargs={"input_ids": None},
        leaves={"input_features": lambda m: (m.size.batch, m.size.tokens, m.config.d_model)},
    ),
    "qwen2_5_omni_bigvgan": Tweak(
        "channels are halved with each upsampling",
        config={"upsample_initial_channel": 128},
        leaves={"mel_spectrogram": lambda m: (m.size.batch, m.config.mel_dim, m.size.tokens)},
    ),
    "qwen2_5_omni_dit": Tweak(
        "removes noise from a spectrogram, given codes, a speaker, and a reference",
        leaves={
            "hidden_states": lambda m: (m.size.batch, 2 * m.size.tokens, m.config.mel_dim),
            "condition_vector": lambda m: (m.size.batch, 2 * m.size.tokens, m.config.mel_dim),
            "speaker_embedding": lambda m: (
                *(m.size.batch, 2 * m.size.tokens),
                m.config.enc_emb_dim,
            ),
        },
        kwargs={
            "quantized_code": lambda m: _codes(m, m.size.tokens),
            "time_step": lambda m: torch.tensor(0.5, dtype=m.model.dtype),
            "apply_cfg": False,
        },
    ),
    "qwen2_5_omni_token2wav": Tweak(
        "its forward integrates the diffusion under torch.no_grad: there is no gradient at all",
        unbuildable=True,
    ),
    "muse_spark_audio": Tweak(
        "takes the wave in whole tokens of samples",
        leaves={"input_values": lambda m: (m.size.batch, 2 * m.config.samples_per_token)},
    ),
    "nemotron3_5_transcribe_word_timestamp": Tweak(
        "takes the audio encoder's output",
        leaves={"inputs_embeds": lambda m: (m.size.batch, m.size.tokens, m.config.hidden_size)},
    ),
    "pe_audio_encoder": Tweak(
        "the codec in front runs without gradient; explains the projection of what it gives",
        kwargs={"input_values": lambda m: m.floats(*wave(m))},
        embedding="embedder.data_proj",
    ),
    "qwen3_asr_encoder": Tweak(
        "takes mel bins first, and whole windows of 100 frames",
        leaves={"input_features": lambda m: (m.size.batch, m.config.num_mel_bins, 100)},
        kwargs={"input_features_mask": lambda m: m.ones(m.size.batch, 100)},
    ),
    "phi4_multimodal_audio": Tweak(
        "takes a spectrogram under the name of hidden states; names a width of its own",
        config={"ext_pw_out_channel": _hidden, "depthwise_separable_out_channel": _hidden},
        leaves={"hidden_states": lambda m: (m.size.batch, 8 * m.size.tokens, m.config.input_size)},
        kwargs={"mask": None},
    ),
    **_same(
        Tweak(
            "takes all sounds one after the other",
            leaves={
                "input_features": lambda m: (
                    m.config.num_mel_bins,
                    m.size.batch * 2 * m.config.n_window,
                )
            },
            kwargs={
                "feature_lens": lambda m: torch.tensor([2 * m.config.n_window] * m.size.batch),
            },
        ),
        *("qwen2_5_omni_audio_encoder", "qwen3_omni_moe_audio_encoder"),
    ),
    "speech_to_text": Tweak(
        "takes frames first",
        leaves={
            "input_features": lambda m: (
                *(m.size.batch, 4 * m.size.tokens),
                m.config.input_feat_per_channel,
            )
        },
    ),
    **_same(
        Tweak(
            "frames come two at a time",
            leaves={
                "input_features": lambda m: (
                    *(m.size.batch, 2 * m.size.tokens),
                    m.config.feature_projection_input_dim,
                )
            },
        ),
        *("seamless_m4t", "seamless_m4t_v2"),
    ),
    "speech-encoder-decoder": Tweak(
        "has arguments for both kinds of encoder",
        leaves={"input_features": None, "input_values": lambda m: (m.size.batch, 1920)},
    ),
    "fun_asr_nano_encoder": Tweak(
        "frames are stacked",
        leaves={"input_features": lambda m: (m.size.batch, m.size.tokens, m.config.input_size)},
        kwargs={"input_features_mask": lambda m: m.ones(m.size.batch, m.size.tokens)},
    ),
    "univnet": Tweak(
        "predicts a wave from noise and a spectrogram",
        config={
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "kernel_predictor_hidden_channels": 8,
        },
        leaves={
            "input_features": lambda m: (m.size.batch, m.size.tokens, m.config.num_mel_bins),
            "noise_sequence": lambda m: (m.size.batch, m.size.tokens, m.config.model_in_channels),
        },
    ),
}
