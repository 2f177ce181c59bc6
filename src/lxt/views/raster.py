"""Relevance as colours on pixels: over a picture in grey, or alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from lxt.errors import InvalidInput
from lxt.views import colour
from lxt.views.scale import Scale, scale_of

if TYPE_CHECKING:
    from lxt.geometry import Geometry
    from lxt.image_explanation import ImageExplanation

Layer = Literal["picture", "overlay", "heatmap"]

_OPAQUE = 0.9
"""The strongest colour lets so much less than all of the picture through."""
_PALEST = 0.5
"""Black becomes so bright a grey, on which both colours can be told from it."""
_FRAME = 0x55
_UNSEEN = (0.89, 0.89, 0.89)
"""What the model did not see, where there is no picture to show it."""


@dataclass(frozen=True)
class Field:
    """What is coloured: relevance as parts of a scale."""

    values: Tensor
    """float64 ``[rows, columns]``, from -1 to 1."""
    scale: Scale
    geometry: "Geometry"


def field_of(
    explanation: "ImageExplanation",
    *,
    positive: bool = False,
    smooth: float | None = None,
    percentile: float | None = None,
) -> Field:
    """Smooth relevance, leave out what is negative if asked to, and scale it, in this order.

    Args:
        explanation: as it is shown, of patches where those are asked for.
        positive: whether negative relevance is left out.
        smooth: standard deviation of a Gaussian in the model's pixels.
        percentile: of |relevance|, where the scale ends; the largest by default.

    """
    values = explanation.relevance.double()
    if smooth:
        vertical, horizontal = (
            _gaussian(length, smooth / cell)
            for length, cell in zip(values.shape, explanation.cell, strict=True)
        )
        values = vertical @ values @ horizontal.T
    if positive:
        values = values.clamp(min=0)
    scale = scale_of(values, percentile)
    parts = (values / scale.end).clamp(-1, 1) if scale.end else torch.zeros_like(values)
    return Field(parts, scale, explanation.geometry)


def layer(which: Layer, picture: Tensor, field: Field, size: tuple[int, int]) -> np.ndarray:
    """Draw the whole picture, with what the model saw of it, at a size in pixels.

    Args:
        which: the picture itself; it in grey, with colours over it; or the colours alone.
        picture: uint8 ``[height, width, 3]``.
        field: what is coloured.
        size: height and width of what is drawn.

    Returns:
        uint8 ``[height, width, 3]``.

    """
    shown = _resized(picture, size)
    if which == "picture":
        return shown
    vertical, horizontal = field.geometry.shares(field.values.shape, size)
    parts = vertical @ field.values @ horizontal.T
    # How much of each pixel the model saw: all cells have the same area.
    covered = vertical.sum(1)[:, None] * horizontal.sum(1)
    largest = covered.max()
    parts = (parts / covered.clamp(min=1e-12)).where(covered > 0, 0).clamp(-1, 1).numpy()
    seen = (covered >= 0.5 * largest).numpy()[..., None]
    if which == "heatmap":
        return _eight_bits(np.where(seen, over((1.0, 1.0, 1.0), parts, 1.0), _UNSEEN))
    grey = (shown @ np.array([0.2126, 0.7152, 0.0722]) / 255)[..., None]
    grey = _PALEST + (1 - _PALEST) * np.repeat(grey, 3, axis=-1)
    return _eight_bits(np.where(seen, over(grey, parts, _OPAQUE), 0.5 + 0.5 * grey))


def greys() -> tuple[float, float]:
    """How dark and how bright the picture in grey is below the colours, from 0 to 1."""
    return _PALEST, 1.0


def over(base: np.ndarray | tuple[float, ...], parts: np.ndarray, opaque: float) -> np.ndarray:
    """Lay colours over others, ``[…, 3]`` from 0 to 1, the stronger the less these show."""
    ends = [np.array(to_rgb(end)) for end in (colour.LIGHT.negative, colour.LIGHT.positive)]
    end = np.where(parts[..., None] < 0, *ends)
    alpha = opaque * np.abs(parts)[..., None]
    return np.asarray(base) * (1 - alpha) + end * alpha


def bar(base: float, *, positive: bool, opaque: bool, steps: int = 41) -> list[str]:
    """The colours from the lowest relevance to the highest over a grey, as ``#rrggbb``."""
    parts = np.linspace(0 if positive else -1, 1, steps)
    colours = _eight_bits(over((base, base, base), parts, 1.0 if opaque else _OPAQUE))
    return ["#" + bytes(colour.tolist()).hex() for colour in colours]


def check_smooth(smooth: float | None) -> None:
    """Raise InvalidInput where that is no standard deviation."""
    valid = isinstance(smooth, int | float) and not isinstance(smooth, bool) and 0 <= smooth <= 1e4
    if smooth is not None and not valid:
        raise InvalidInput(
            f"smooth={smooth!r} is no standard deviation in pixels of the model's: give a number "
            "such as 4, or None"
        )


def _gaussian(length: int, deviation: float) -> Tensor:
    """``[length, length]``: how each cell is spread over all; columns add up to 1."""
    cells = torch.arange(length, dtype=torch.float64)
    weights = (-0.5 * ((cells[:, None] - cells) / deviation).square()).exp()
    return weights / weights.sum(0)


def _resized(picture: Tensor, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(picture.numpy())
    height, width = size
    smaller = height < picture.shape[0] or width < picture.shape[1]
    method = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
    return np.asarray(image.resize((width, height), method))


def _eight_bits(colours: np.ndarray) -> np.ndarray:
    return (colours * 255 + 0.5).clip(0, 255).astype(np.uint8)


def framed(drawn: np.ndarray, geometry: "Geometry") -> np.ndarray:
    """Return it with a line of a pixel around what the model saw, where that isn't all."""
    (height, width), (high, wide) = geometry.image, drawn.shape[:2]
    if geometry.seen == (0, 0, height, width):
        return drawn
    top, left, bottom, right = geometry.seen
    rows = _within(top / height * high, bottom / height * high, high)
    columns = _within(left / width * wide, right / width * wide, wide)
    inside = drawn.copy()
    part = inside[rows, columns]
    part[[0, -1]] = part[:, [0, -1]] = _FRAME
    return inside


def _within(start: float, end: float, length: int) -> slice:
    """The pixels from start to end, of which there is at least one."""
    first = min(round(start), length - 1)
    return slice(first, max(round(end), first + 1))
