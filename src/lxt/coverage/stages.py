"""Widths, heads and outputs of models that work in stages, most of them vision backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lxt.coverage.size import Size


def stage_width(width: int, size: Size) -> int:
    """A multiple of 8 that depends on `width` alone, so that equal widths stay equal everywhere.

    256 becomes `size.hidden`, other widths in proportion. Up to 4 they are colours, and stay.
    """
    return width if width <= 4 else max(8, round(width * size.hidden / 256 / 8) * 8)


def stage_heads(heads: int) -> int:
    """A power of two, at most 4, that divides a stage's width whatever it is."""
    return 1 << min(2, heads.bit_length() - 1) if heads > 0 else heads


def is_stage_count(part: dict[str, Any], attribute: str, count: int) -> bool:
    """Whether `attribute` counts stages, not layers: other attributes list something for each."""
    names = ("num_encoder_blocks", "num_hidden_layers", "num_layers", "num_stages")
    return attribute in names and any(
        isinstance(part.get(name), list | tuple) and len(part[name]) == count
        for name in ("depths", "hidden_sizes")
    )


def last_width(part: dict[str, Any]) -> int | None:
    """Width of the last of several stages that double it, as in Swin."""
    first, depths = part.get("embed_dim"), part.get("depths")
    if isinstance(first, int) and isinstance(depths, list | tuple) and "hidden_sizes" not in part:
        return first * 2 ** (len(depths) - 1)
    return None


def outputs_within(layers: int, indices: Sequence[int], first: int) -> tuple[int, list[int]]:
    """Number of layers, and which of them a backbone returns, as many as before.

    Args:
        layers: number of layers that the model is cut to.
        indices: the layers returned by the uncut one.
        first: 1 where index 0 is the stem and the last layer has index `layers`, else 0.
    """
    layers = max(layers, len(indices))
    if all(-layers <= index < layers + first for index in indices):
        return layers, list(indices)
    return layers, [layers - len(indices) + first + k for k in range(len(indices))]
