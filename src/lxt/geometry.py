"""Where a model's pixels lie in the picture that they were made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt.errors import InvalidInput

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """The part of a picture that a model saw, after it was resized, cropped or padded.

    Lengths are in pixels of the original picture, from its upper left corner: its first pixel lies
    between 0 and 1. Both axes are straight and unturned, so that a box says all of it.

    Raises:
        InvalidInput: sizes are no positive integers, or the box is empty or not finite, or has
            nothing of the picture in it.

    """

    image: tuple[int, int]
    """Height and width of the original picture."""
    pixels: tuple[int, int]
    """Height and width of what the model takes."""
    box: tuple[float, float, float, float]
    """Top, left, bottom, right of the model's pixels. What was cropped away lies outside of the
    box; where pixels were added (padding), the box reaches beyond the picture."""

    def __post_init__(self) -> None:
        for name in ("image", "pixels"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        object.__setattr__(self, "box", _box(self.box))
        top, left, bottom, right = self.box
        height, width = self.image
        if not (top < height and left < width and bottom > 0 and right > 0):
            raise InvalidInput(
                f"box {self.box} holds nothing of a picture of {height} × {width} pixels "
                "(height × width): its order is top, left, bottom, right"
            )

    @classmethod
    def whole(cls, image: Sequence[int], pixels: Sequence[int]) -> "Geometry":
        """The geometry of a picture that was resized and neither cropped nor padded.

        Raises:
            InvalidInput: sizes are no positive integers.

        """
        height, width = _size("image", image)
        return cls((height, width), _size("pixels", pixels), (0, 0, height, width))

    @classmethod
    def of(cls, processor: Any, image: Sequence[int]) -> "Geometry":
        """Measure what an image processor does with pictures of one size.

        The processor runs on grey ramps, which tell where each of its pixels comes from; see
        ``lxt.probing.measure``.

        Args:
            processor: an image processor of ``transformers``, or a processor that has one, or any
                function from a PIL image to pixels ``[3, height, width]``.
            image: height and width of the picture.

        Raises:
            InvalidInput: it does something else than to resize, crop and pad.

        """
        from lxt.probing import measure

        return measure(processor, _size("image", image))

    @property
    def scale(self) -> tuple[float, float]:
        """How many of the original's pixels one of the model's is high and wide."""
        top, left, bottom, right = self.box
        return (bottom - top) / self.pixels[0], (right - left) / self.pixels[1]

    @property
    def scaled(self) -> tuple[bool, bool]:
        """Whether heights, and widths, were scaled."""
        vertical, horizontal = self.scale
        return vertical != 1, horizontal != 1

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """The box without what lies beyond the picture."""
        top, left, bottom, right = self.box
        height, width = self.image
        return max(top, 0.0), max(left, 0.0), min(bottom, height), min(right, width)

    def shares(
        self, grid: Sequence[int], size: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return how a grid over the model's pixels is spread over the picture, for each axis.

        Args:
            grid: rows and columns, that divide the model's pixels evenly.
            size: rows and columns of equal pixels over the picture; its own ones by default.

        Returns:
            Two tensors in float64, ``[height, rows]`` and ``[width, columns]``: which part of a
            row of the grid lies in a row of the picture. The sum over the picture is 1, or less
            for rows that reach beyond it.

        """
        top, left, bottom, right = self.box
        height, width = self.image if size is None else size
        return (
            _shares(top, bottom, grid[0], self.image[0], height),
            _shares(left, right, grid[1], self.image[1], width),
        )


def _shares(start: float, end: float, cells: int, length: int, pixels: int) -> Tensor:
    """``[pixels, cells]``: the part of each cell that lies in each pixel."""
    edges = torch.linspace(start, end, cells + 1, dtype=torch.float64)
    lines = torch.linspace(0, length, pixels + 1, dtype=torch.float64)
    # Where a line falls within each cell, from 0 to 1: the difference of two lines is a share.
    reached = (lines[:, None] - edges[:-1]) / (edges[1:] - edges[:-1])
    return reached.clamp(0, 1).diff(dim=0)


def _size(name: str, size: Any) -> tuple[int, int]:
    numbers = _numbers(size)
    if len(numbers) != 2 or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise InvalidInput(
            f"{name} {size!r} is not a height and a width in pixels, such as (480, 640)"
        )
    return numbers[0], numbers[1]


def _box(box: Any) -> tuple[float, float, float, float]:
    numbers = _numbers(box)
    if (
        len(numbers) != 4
        or not all(isinstance(n, int | float) and abs(n) < 1e9 for n in numbers)
        or not (numbers[0] < numbers[2] and numbers[1] < numbers[3])
        or not all(map(math.isfinite, numbers))
    ):
        raise InvalidInput(
            f"box {box!r} is not top, left, bottom and right, in pixels of the picture and in "
            "this order"
        )
    top, left, bottom, right = (float(number) + 0.0 for number in numbers)  # no -0.0
    return top, left, bottom, right


def _numbers(values: Any) -> list[Any]:
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    return [] if any(isinstance(number, bool) for number in numbers) else numbers
