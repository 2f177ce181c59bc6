"""What an image processor does with pictures of one size: measured, on pictures that tell.

Names and settings of processors are many, and what they mean differs between classes. So nothing
is read of them. A processor is shown black, white, and ramps from black to white along each axis:
black and white tell which of the model's pixels show something of the picture, and how brightness
is normalised there; a ramp's brightness is then the place where a pixel comes from. If these
places are the same straight line in all rows, and in all columns, the processor has resized,
cropped and padded. Anything else is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lxt.errors import InvalidInput
from lxt.geometry import Geometry

__all__ = ["measure", "pixels_of"]

# Eight bits are 256 places along an axis. Ramps that are shifted by a part of a step tell more.
_RAMPS = 4
_MOST_OFF = 0.55
"""Of the larger pixel, the model's or the picture's: the nearest pixel is half of one away."""


def measure(processor: Any, image: tuple[int, int]) -> Geometry:
    """Find where a processor's pixels come from, in pictures of one size.

    It is exact where pictures are resized to whole pixels and then cropped or padded by whole
    pixels; of other processors it is as exact as brightness of 8 bits tells, about a tenth of one
    of the model's pixels. Along an axis of one pixel, all of it counts as seen.

    Args:
        processor: see ``Geometry.of``.
        image: height and width.

    Raises:
        InvalidInput: the processor fails, or does something else than to resize, crop and pad;
            the message says how to give a ``Geometry`` by hand.

    """
    probe = _Probe(processor, image)
    black, white = (probe.grey(np.full(image, value)) for value in (0, 255))
    if black.shape != white.shape:
        probe.refuse("what it does depends on what a picture shows")
    light = white - black
    shown = light.abs() > 0.5 * light.abs().max()
    rows, columns = (_extent(shown.any(dim)) for dim in (1, 0))
    if not shown.any() or not shown[rows, columns].all():
        probe.refuse("it does not show the picture in one rectangle of its pixels")
    spans = []
    for axis, part in enumerate((rows, columns)):
        length = image[axis]
        places, levels = probe.places(axis, black, light, (0, length))[rows, columns], length
        part_of = _window(places, length)
        if part_of[1] - part_of[0] < 0.7 * length:
            # A ramp over less of the picture tells more of it.
            places = probe.places(axis, black, light, part_of)[rows, columns]
            levels = part_of[1] - part_of[0]
        off = (places - places.mean(1 - axis, keepdim=True)).abs().max()
        centres = torch.arange(part.start, part.stop, dtype=torch.float64) + 0.5
        square = max(image) / shown.shape[axis]
        start, step, error = _line(places.mean(1 - axis), centres, length, square)
        # A ramp has 256 steps, whatever its length.
        most = _MOST_OFF * max(1.0, step) + levels / 255
        if step <= 0 or off > most or error > most:
            probe.refuse("it does something else than to resize, crop and pad")
        ends = (start, start + step * shown.shape[axis])
        spans.append(tuple(round(end, 9) for end in ends))  # 15.0, not 14.999999999999998
    (top, bottom), (left, right) = spans
    height, width = shown.shape
    return Geometry(image, (height, width), (top, left, bottom, right))


def pixels_of(processor: Any, picture: Tensor) -> Tensor:
    """Return what a processor makes of a picture.

    Args:
        processor: see ``Geometry.of``.
        picture: uint8 ``[height, width, 3]``.

    Returns:
        float64 ``[channels, height, width]``, of the model's.

    Raises:
        InvalidInput: the processor fails, or gives something else.

    """
    height, width = picture.shape[:2]
    return _Probe(processor, (height, width)).run(picture.numpy())


@dataclass(frozen=True)
class _Probe:
    processor: Any
    image: tuple[int, int]

    def run(self, picture: np.ndarray) -> Tensor:
        # What takes texts too may take them first.
        processor = getattr(self.processor, "image_processor", None) or self.processor
        if not callable(processor):
            self.refuse("it can't be called with a picture")
        try:
            given: Any = processor(Image.fromarray(picture))
        except Exception as error:
            self.refuse(f"it fails on one: {type(error).__name__}: {error}", error)
        if isinstance(given, Mapping):
            if "pixel_values" not in given:
                self.refuse(f"it gives {', '.join(map(str, given)) or 'nothing'}, no pixel_values")
            given = given["pixel_values"]
        try:
            given = np.stack(given) if isinstance(given, list | tuple) else given
            if isinstance(given, np.ndarray):
                given = np.ascontiguousarray(given)  # torch knows no negative strides
            pixels = torch.as_tensor(given).detach().to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            self.refuse(f"its pixel_values are not one array of numbers: {error}", error)
        shape = list(pixels.shape)
        while pixels.dim() > 3 and len(pixels) == 1:
            pixels = pixels[0]
        if pixels.dim() != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
            self.refuse(
                f"its pixel_values have shape {shape}, not [1, 3, height, width]: it makes "
                "patches, or several pictures of one"
            )
        return pixels

    def grey(self, picture: np.ndarray) -> Tensor:
        """The mean over channels of what becomes of a grey picture, ``[height, width]``."""
        return self.run(np.repeat(picture.astype(np.uint8)[..., None], 3, axis=-1)).mean(0)

    def places(self, axis: int, black: Tensor, light: Tensor, window: tuple[int, int]) -> Tensor:
        """From which place along an axis of the picture each of the model's pixels comes.

        Where that lies in a window of the picture's pixels, which a ramp goes over.
        """
        first, last = window[0], window[1] - 1
        steps = (np.arange(self.image[axis]) - first) * (255 / max(last - first, 1))
        ramps = [np.floor(steps + (i + 0.5) / _RAMPS).clip(0, 255) for i in range(_RAMPS)]
        pixels = [
            self.grey(np.broadcast_to(ramp[:, None] if axis == 0 else ramp, self.image))
            for ramp in [*ramps, ramps[0]]
        ]
        if any(one.shape != black.shape for one in pixels) or not torch.equal(
            pixels[0], pixels.pop()
        ):
            self.refuse("what it does depends on what a picture shows, or on chance")
        brightness = (torch.stack(pixels).mean(0) - black) / light
        return brightness * (last - first) + first + 0.5

    def refuse(self, reason: str, error: Exception | None = None) -> NoReturn:
        height, width = self.image
        raise InvalidInput(
            f"can't tell where the pixels of {type(self.processor).__name__} lie in a picture of "
            f"{height} × {width} (height × width): {reason}. Where you know it, give in its place "
            f"lxt.Geometry(image=({height}, {width}), pixels=(height, width), "
            "box=(top, left, bottom, right)) with the box in the picture's pixels"
        ) from error


def _extent(shown: Tensor) -> slice:
    """From the first to the last that is true; empty if none is."""
    found = shown.nonzero().flatten().tolist()
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)


def _window(places: Tensor, length: int) -> tuple[int, int]:
    """The part of the picture that places are in, and some more."""
    more = 3 + 2 * max(1.0, length / max(places.shape))
    finite = places.nan_to_num(0).clamp(0, length)
    first, last = finite.min().item() - more, finite.max().item() + more
    return max(int(first), 0), min(int(last) + 1, length)


def _line(
    places: Tensor, centres: Tensor, length: int, square: float
) -> tuple[float, float, float]:
    """The line from the model's pixels to places in the picture: start, step, largest error.

    Of the lines that fit equally well, the simplest: not scaled, all of the picture seen, of a
    picture that had whole pixels when it was cropped or padded, before it was resized or after,
    or of one that was padded to a square before, whose ``square`` is the step.
    """
    whole = length / len(places)
    seen_whole = (-whole * (float(centres[0]) - 0.5), whole)
    inner, straight = _inner(places, length)

    def off(line: tuple[float, float]) -> Tensor:
        # The picture goes on beyond its outermost pixels' centres as it is there.
        return ((line[0] + line[1] * centres).clamp(0.5, length - 0.5) - places).abs()

    def error(line: tuple[float, float]) -> float:
        return float(off(line)[inner].square().mean().sqrt())

    def through(step: float) -> tuple[float, float]:
        # By whole pixels of the model's: the picture's edge is at one of their edges.
        return -step * round(at - middle / step), step

    best = seen_whole
    if inner.sum() >= 2:
        x, y = centres[inner], places[inner]
        middle, at = float(y.mean()), float(x.mean())
        step = float(((x - at) * (y - middle)).sum() / (x - at).square().sum())
        fitted = (middle - step * at, step)
        # How far a line may be from the fitted one, in the mean: what is left of chance where as
        # many pixels were fitted, but as much as they are off where that isn't chance.
        chance = error(fitted) * (6 / int(inner.sum()) ** 0.5 if straight else 1)
        near = (0.04 if straight else 0.12) * abs(step) + chance
        good = (error(fitted) ** 2 + near**2) ** 0.5
        snapped = length / max(round(length / step), 1) if step > 0 else whole
        ends = [
            round(fitted[0] + step * float(end)) for end in (centres[0] - 0.5, centres[-1] + 0.5)
        ]
        cut = (ends[1] - ends[0]) / len(places)
        likely = [
            through(snapped),
            through(square),
            (ends[0] - cut * (float(centres[0]) - 0.5), cut),
        ]
        lines = [through(1.0), seen_whole, min(likely, key=error), fitted]
        best = next(line for line in lines if error(line) <= good)
    return *best, float(off(best).max())


def _inner(places: Tensor, length: int) -> tuple[Tensor, bool]:
    """Which places are not near the picture's edges, where interpolation curves, if possible.

    And whether it was.
    """
    step = max(1.0, length / len(places))
    for margin in (3.0, 1.0):
        near = 0.5 + margin * step
        inner = (places > near) & (places < length - near)
        if inner.sum() >= 8:
            return inner, margin == 3.0
    return (places > 0.5 + 1e-9) & (places < length - 0.5 - 1e-9), False
