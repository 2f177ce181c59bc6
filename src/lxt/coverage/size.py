"""How large the models and inputs of the sweep are."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Size:
    """Sizes of a tiny model and of its input; all may be chosen.

    Attributes:
        hidden: width of the residual stream, a multiple of 8 times `heads`.
        layers: number of layers, at least; more where a type has more kinds of layer.
        heads: number of attention heads.
        vocabulary: number of tokens; the last quarter is kept for special tokens.
        tokens: length of an input sequence, in text tokens.
        batch: number of rows.
        image: height and width of an image, in pixels; models that halve it many times take
            twice as much.
        patch: height and width of a patch, at most.
        frames: number of frames of a video.
        mel: number of mel bins of a spectrogram.
        window: reach of sliding, chunked and local attention.
        experts: number of routed experts.
        seed: what weights and inputs follow from.
    """

    hidden: int = 32
    layers: int = 2
    heads: int = 4
    vocabulary: int = 128
    tokens: int = 10
    batch: int = 2
    image: int = 32
    patch: int = 8
    frames: int = 4
    mel: int = 16
    window: int = 4
    experts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{field.name}={value!r} must be a whole number of at least {least}"
                )
        if self.hidden % (8 * self.heads):
            raise ValueError(
                f"hidden={self.hidden} must be a multiple of 8 times heads={self.heads}, for "
                "rotary positions turn pairs of channels, and some types only a quarter of a head"
            )
        if self.vocabulary < 64:
            raise ValueError(f"vocabulary={self.vocabulary} must be at least 64")

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def intermediate(self) -> int:
        """Width of a feed-forward network's inside."""
        return self.hidden + self.hidden // 2

    @property
    def positions(self) -> int:
        """Number of positions that a position table has."""
        return max(64, 1 << (4 * self.tokens - 1).bit_length())
