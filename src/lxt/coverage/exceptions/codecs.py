"""Exceptions for codecs of sound, which quantise what they make of a wave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxt.coverage.exceptions import Tweak

if TYPE_CHECKING:
    from lxt.coverage.making import Making
    from lxt.coverage.size import Size

QUANTISED = "codes are indices, with no gradient to the wave; explains what the decoder reads"


def wave(making: Making, samples: int = 1920) -> tuple[int, int, int]:
    """Shape [batch, channel, sample] of a sound."""
    return (making.size.batch, 1, samples)


def _hidden(size: Size) -> int:
    return size.hidden


_ROUNDED = Tweak(
    "codes are rounded, some to 0, which has no relevance to hand on; explains what the "
    "decoder reads",
    kwargs={
        "input_values": lambda m: m.floats(*wave(m, 320 * 8)),
        "input_features": lambda m: m.floats(m.size.batch, 8, 160),
    },
    embedding="quantizer",
    config={"quantization_dim": lambda size: 2 * size.hidden},
)

TWEAKS: dict[str, Tweak] = {
    **dict.fromkeys(("xcodec2", "neucodec"), _ROUNDED),
    "xcodec": Tweak(
        QUANTISED,
        config={"codebook_dim": lambda size: 2 * size.hidden},
        embedding="acoustic_decoder.conv1",
        kwargs={"input_values": lambda m: m.floats(*wave(m, 3200))},
    ),
    "encodec": Tweak(
        QUANTISED,
        config={"hidden_size": _hidden, "codebook_dim": _hidden, "num_filters": 8},
        embedding="decoder.layers.0",
        kwargs={"input_values": lambda m: m.floats(*wave(m))},
    ),
    "vibevoice_acoustic_tokenizer": Tweak(
        "reduces the wave 3200 times, in seven stages that double the channels",
        config={"num_filters": 4, "depths": [1] * 7},
        leaves={"input_values": lambda m: wave(m, 6400)},
    ),
    "vibevoice_acoustic_tokenizer_encoder": Tweak(
        "takes the wave; seven stages double the channels",
        config={"num_filters": 4, "depths": [1] * 7},
        leaves={"hidden_states": lambda m: wave(m, 6400)},
    ),
    "vibevoice_acoustic_tokenizer_decoder": Tweak(
        "takes latents [batch, channel, frame]; seven stages halve the channels",
        config={"num_filters": 4, "depths": [1] * 7},
        leaves={"hidden_states": lambda m: (m.size.batch, m.config.hidden_size, 3)},
    ),
}
