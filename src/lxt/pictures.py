"""Pictures of any kind as 8 bits of red, green and blue."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lxt.errors import InvalidInput

__all__ = ["read_picture"]

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_NO_PICTURE = ("I", "F")  # of unknown range


def read_picture(image: Any) -> Tensor:
    """Return a picture's pixels as they are stored, which is what image processors read.

    A rotation that only EXIF data speak of isn't applied, as image processors don't either:
    ``PIL.ImageOps.exif_transpose`` makes an upright picture, for the processor and for this.

    Args:
        image: a PIL image of any mode but ``I`` and ``F`` (of an animation the current frame,
            without transparency), or an array or tensor of uint8, ``[height, width, 3]``,
            ``[height, width, 1]`` or ``[height, width]``.

    Returns:
        uint8 ``[height, width, 3]``, a copy.

    Raises:
        InvalidInput: it is something else, or has no pixels.

    """
    if isinstance(image, Image.Image):
        array = _of_pil(image)
    elif isinstance(image, np.ndarray | Tensor):
        array = _of_array(image)
    else:
        raise InvalidInput(
            f"image is a {type(image).__name__}, not a PIL image or an array of uint8 "
            "[height, width, 3]"
        )
    if not array.size:
        raise InvalidInput(f"image has no pixels: its height × width is {array.shape[:2]}")
    return torch.from_numpy(np.array(array))


def _of_pil(image: Image.Image) -> np.ndarray:
    if image.mode in _NO_PICTURE:
        raise InvalidInput(
            f"image has PIL's mode {image.mode!r}, whose numbers have no white: scale them to "
            "uint8 first"
        )
    try:
        if image.mode in _SIXTEEN_BITS:
            deep = np.asarray(image).astype(np.uint32)
            return _coloured(((deep * 255 + 32767) // 65535).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"image {image!r} can't be read as RGB: {error}") from error


def _of_array(image: np.ndarray | Tensor) -> np.ndarray:
    shape = list(image.shape)
    what = f"image is {str(image.dtype).removeprefix('torch.')} {shape}"
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise InvalidInput(
            f"{what}, not uint8: scale it to 0 … 255 first (this is the picture to be shown, not "
            "what the model takes)"
        )
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if len(shape) == 2:
        return _coloured(array)
    if len(shape) == 3 and shape[2] in (1, 3):
        return _coloured(array[..., 0]) if shape[2] == 1 else array
    hint = ""
    if len(shape) == 3 and shape[0] in (1, 3):
        turn = "permute(1, 2, 0)" if isinstance(image, Tensor) else "transpose(1, 2, 0)"
        hint = f": image.{turn} is that"
    raise InvalidInput(f"{what}, not [height, width, 3] or [height, width]{hint}")


def _coloured(grey: np.ndarray) -> np.ndarray:
    return cast("np.ndarray", np.repeat(grey[..., None], 3, axis=-1))
