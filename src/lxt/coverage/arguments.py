"""How each argument of a model's forward is made, by its name.

`LEAVES` makes float inputs that are explained, `ARGUMENTS` the others. An entry gives None where
the argument, though in the signature, had better be left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lxt.coverage.names import is_hierarchical

if TYPE_CHECKING:
    from collections.abc import Callable

    from lxt.coverage.making import Making

    Leaves = dict[str, Tensor]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[-2], value[-1])


def image_shape(making: Making) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model takes."""
    config, size = making.vision_config, making.size
    pixels = next(
        (
            found
            for name in (
                "image_size",
                "img_size",
                "input_image_size",
                "pretrain_image_size",
                "resolution",
            )
            if isinstance(found := getattr(config, name, None), int | list | tuple)
        ),
        2 * size.image if is_hierarchical(vars(config)) else size.image,
    )
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", 3)
    return (channels if isinstance(channels, int) else 3, *_pair(pixels))


def _pixel_values(making: Making, leaves: Leaves) -> Tensor | None:
    config, size = making.vision_config, making.size
    if {
        "image_grid_thw",
        "image_grid_hw",
        "grid_thw",
    } & making.parameters.keys():  # patches of all images
        return making.floats(size.batch * 16, _patch_volume(config))
    if "spatial_shapes" in making.parameters:  # patches of each image
        return making.floats(size.batch, 16, _patch_volume(config))
    if {
        "image_position_ids",
        "pixel_position_ids",
    } & making.parameters.keys():  # patches too, of which k × k are pooled
        side = 2 * (getattr(config, "pooling_kernel_size", None) or 2)
        return making.floats(size.batch, side * side, _patch_volume(config))
    channels, height, width = image_shape(making)
    if "pixel_attention_mask" in making.parameters:  # several images in a row
        return making.floats(size.batch, 1, channels, height, width)
    if getattr(making.config, "image_grid_pinpoints", None):  # an image, and four crops of it
        return making.floats(size.batch, 5, channels, height, width)
    frames = getattr(config, "num_frames", None) or size.frames
    if (
        making.model.main_input_name == "pixel_values"
        and "video" in type(making.model).__name__.lower()
    ):
        return making.floats(size.batch, frames, channels, height, width)
    return making.floats(size.batch, channels, height, width)


def _patch_volume(config: Any) -> int:
    patch = getattr(config, "model_patch_size", config.patch_size)
    channels = getattr(config, "in_channels", None) or getattr(config, "num_channels", 3)
    frames = getattr(config, "temporal_patch_size", None) or getattr(config, "patch_temporal", 1)
    return channels * frames * patch * patch


def _pixel_values_videos(making: Making, leaves: Leaves) -> Tensor | None:
    if making.model.main_input_name != "pixel_values_videos":
        return None  # images are enough
    channels, height, width = image_shape(making)
    frames = getattr(making.vision_config, "num_frames", None) or making.size.frames
    frames = getattr(making.vision_config, "frames_per_clip", frames)
    return making.floats(making.size.batch, frames, channels, height, width)


def _input_features(making: Making, leaves: Leaves) -> Tensor | None:
    config, size = making.audio_config, making.size
    bins = next(
        (
            getattr(config, name)
            for name in (
                "num_mel_bins",
                "feature_size",
                "n_mels",
                "feature_projection_input_dim",
                "input_feat_per_channel",
                "input_size",
                "input_dim",
            )
            if isinstance(getattr(config, name, None), int)
        ),
        size.mel,
    )
    frames_first = hasattr(config, "feature_projection_input_dim")
    if (
        hasattr(config, "max_source_positions") and not frames_first
    ):  # as Whisper: two frames a position, always full
        return making.floats(size.batch, bins, 2 * config.max_source_positions)
    return making.floats(size.batch, 4 * size.tokens, bins)


def _input_values(making: Making, leaves: Leaves) -> Tensor | None:
    config, size = making.config, making.size
    if hasattr(config, "num_mel_bins") and not hasattr(config, "conv_dim"):
        length = getattr(config, "max_length", 4 * size.tokens)
        return making.floats(size.batch, length, config.num_mel_bins)
    samples = size.tokens
    for kernel, stride in zip(
        reversed(getattr(config, "conv_kernel", ())),
        reversed(getattr(config, "conv_stride", ())),
        strict=True,
    ):
        samples = (samples - 1) * stride + kernel
    if samples == size.tokens:
        return making.floats(size.batch, 1, 1920)
    return making.floats(size.batch, samples)


def _past_values(making: Making, leaves: Leaves) -> Tensor | None:
    config, size = making.config, making.size
    length = getattr(config, "context_length", None) or 4 * size.tokens
    lags = getattr(config, "lags_sequence", None)
    if lags:
        return making.floats(size.batch, length + max(lags))
    channels = getattr(config, "num_input_channels", None)
    return making.floats(size.batch, length, *([channels] if channels else []))


def _hidden_states(making: Making, leaves: Leaves) -> Tensor:
    size = making.size
    if "grid_thw" in making.parameters:  # patches of all images, one after the other
        return making.floats(size.batch * 16, _patch_volume(making.config))
    return making.floats(size.batch, size.tokens, making.hidden)


LEAVES: dict[str, Callable[[Making, Leaves], Tensor | None]] = {
    "pixel_values": _pixel_values,
    "pixel_values_videos": _pixel_values_videos,
    "input_features": _input_features,
    "input_values": _input_values,
    "past_values": _past_values,
    "hidden_states": _hidden_states,
}


def _input_ids(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    if making.model.main_input_name not in ("input_ids", "pixel_values") and _is_speech_to_text(
        making
    ):
        return None
    ids = making.ids()
    for leaf, method, tokens in _PLACEHOLDERS:
        if leaf in leaves and making.methods(f"get_{method}_features"):
            try:
                token = making.token(*tokens)
            except AttributeError:
                continue  # two encoders side by side, as CLIP: nothing is put into the text
            count = making.features(method, **kwargs, **leaves)
            holes = torch.full((making.size.batch, count), token)
            ids = torch.cat([ids[:, :2], holes, ids[:, 2:]], dim=1)
    return ids


_PLACEHOLDERS = (
    ("pixel_values", "image", ("image_token_id", "image_token_index")),
    ("pixel_values_videos", "video", ("video_token_id", "video_token_index")),
    ("input_features", "audio", ("audio_token_id", "audio_token_index")),
    ("input_values", "audio", ("audio_token_id", "audio_token_index")),
)


def _is_speech_to_text(making: Making) -> bool:
    return "decoder_input_ids" in making.parameters


def _grid(making: Making) -> Tensor:
    return torch.tensor([[1, 4, 4]] * making.size.batch)


def _decoder_input_ids(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor:
    return making.ids(max(2, making.size.tokens // 2))


def _bbox(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor:
    corners = torch.tensor([1, 2, 5, 7])
    tokens = torch.arange(making.size.tokens)[:, None] % 8
    return (corners + tokens).expand(making.size.batch, -1, -1)


def _mm_token_type_ids(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    ids = kwargs.get("input_ids")
    if ids is None or "pixel_values" not in leaves:
        return None
    return (ids == making.token("image_token_id", "image_token_index")).long()


def _plane_grid(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    """Rows and columns of patches of each image."""
    return _grid(making)[:, 1:] if "pixel_values" in leaves else None


def _pixel_mask(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    """Shows all pixels of images [batch, images, channel, height, width], or all patches."""
    pixels = leaves.get("pixel_values")
    if pixels is None:
        return None
    return making.ones(*pixels.shape[:2], *pixels.shape[3:])


def _patch_positions(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    """Column and row of each patch of square images, [batch, patch, 2]."""
    patches = leaves.get("pixel_values")
    if patches is None:
        return None
    side = round(patches.shape[1] ** 0.5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    positions = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    return positions.expand(making.size.batch, -1, -1)


def _image_sizes(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    pixels = leaves.get("pixel_values")
    if pixels is None:
        return None
    scale = 2 if pixels.ndim == 5 else 1  # four crops of an image twice as large
    return torch.tensor([[scale * pixels.shape[-2], scale * pixels.shape[-1]]] * making.size.batch)


def _sound_mask(making: Making, leaves: Leaves, kwargs: dict[str, Any]) -> Tensor | None:
    """Shows all frames of `input_features` [batch, mel, frame] or [batch, frame, mel]."""
    sound = leaves.get("input_features")
    if sound is None:
        return None
    return making.ones(sound.shape[0], max(sound.shape[1:])).bool()


ARGUMENTS: dict[str, Callable[[Making, Leaves, dict[str, Any]], Any]] = {
    "image_grid_thw": lambda m, leaves, kwargs: _grid(m) if "pixel_values" in leaves else None,
    "grid_thw": lambda m, leaves, kwargs: _grid(m),
    "image_grid_hw": _plane_grid,
    "target_sizes": _plane_grid,
    "spatial_shapes": _plane_grid,
    "pixel_attention_mask": _pixel_mask,
    "image_position_ids": _patch_positions,
    "pixel_position_ids": _patch_positions,
    "image_sizes": _image_sizes,
    "input_features_mask": _sound_mask,
    "feature_attention_mask": _sound_mask,
    "input_ids": _input_ids,
    "decoder_input_ids": _decoder_input_ids,
    "bbox": _bbox,
    "mm_token_type_ids": _mm_token_type_ids,
    "use_cache": lambda m, leaves, kwargs: False,
}
"""In this order; an entry sees the arguments made before it."""
