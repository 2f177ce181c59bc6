"""From a run by hand to the parts of an explanation of a picture; and what these must be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.composite import Composite
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget
from lxt.geometry import Geometry
from lxt.probing import pixels_of
from lxt.targets import Readout

_MOST_DIFFERENT = 0.02
"""Of the range of values; bfloat16 keeps 8 bits of them."""


def relevance_of_pixels(pixel_values: Tensor, gradient: Tensor | None) -> Tensor:
    """Return pixel × gradient, summed over channels: ``[height, width]``.

    Raises:
        InvalidInput: shapes don't fit, it is more than one picture, or there is no gradient.

    """
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        raise InvalidInput("pixel_values is not a tensor of floating point numbers")
    shape = list(pixel_values.shape)
    if gradient is None:
        gradient = pixel_values.grad if pixel_values.is_leaf else None
        if gradient is None:
            raise InvalidInput(
                "pixel_values has no gradient: call pixel_values.requires_grad_() before the "
                "forward and backward() after it, or give gradient=…"
            )
    if not isinstance(gradient, Tensor) or list(gradient.shape) != shape:
        given = list(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
        raise InvalidInput(f"gradient is {given}, and pixel_values has shape {shape}")
    if len(shape) == 4 and shape[0] != 1:
        raise InvalidInput(
            f"pixel_values has shape {shape}, several pictures: give one, pixel_values[i], and its "
            "gradient, pixel_values.grad[i]"
        )
    if len(shape) not in (3, 4):
        raise InvalidInput(f"pixel_values has shape {shape}, not [1, channels, height, width]")
    product = pixel_values.detach().double() * gradient.detach().double()
    relevance = product.reshape(shape[-3:]).sum(0)
    return relevance if pixel_values.dtype == torch.float64 else relevance.float()


def geometry_of(processor: Any, picture: Tensor, pixel_values: Tensor) -> Geometry:
    """Measure what a processor does, if ``pixel_values`` are what it makes of the picture.

    Raises:
        InvalidInput: they are something else, or it can't be measured.

    """
    geometry = Geometry.of(processor, picture.shape[:2])
    made = pixels_of(processor, picture)
    given = pixel_values.detach().to("cpu", torch.float64)
    given = given[0] if given.dim() == 4 else given
    if made.shape != given.shape:
        raise InvalidInput(
            f"pixel_values has shape {list(given.shape)}, and the processor makes "
            f"{list(made.shape)} of this picture"
        )
    span = (made.max() - made.min()).item() or 1.0
    if not (made - given).abs().mean() <= _MOST_DIFFERENT * span:
        raise InvalidInput(
            "pixel_values are not what the processor makes of this picture: give the one that they "
            "were made of, as it was then (not rotated, cropped or resized), or an lxt.Geometry"
        )
    return geometry


def target_of(
    logits: Tensor | None, label: int | str | None, model: nn.Module | None
) -> ExplainedTarget:
    """Return what was explained, given a classifier's logits.

    Raises:
        InvalidInput: there are no logits, or not those of one picture.
        InvalidTarget: there is no such label.

    """
    if logits is None:
        raise InvalidInput(
            "what was explained? give logits=… (and label=… if it isn't the largest), or "
            "target=lxt.ExplainedTarget(kind, name, value, position, prediction)"
        )
    if not isinstance(logits, Tensor) or not logits.numel() or logits.numel() != logits.shape[-1]:
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput(f"logits are {given}, not a tensor [classes] or [1, classes]")
    values = logits.detach().to("cpu", torch.float64).flatten()
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = {int(index): str(name) for index, name in names.items()}
    readout = Readout("label", len(values), None, names)
    largest = int(values.argmax())
    index = largest if label is None else readout.label_index(label)
    kind = "prediction" if label is None else "label"
    name, prediction = readout.describe(index), readout.describe(largest)
    return ExplainedTarget(kind, name, values[index].item(), None, prediction)


def provenance_of(
    model: nn.Module | None, composite: Composite | str | None, dtype: torch.dtype
) -> dict[str, str]:
    """Say where an explanation comes from, as far as is known."""
    said = {}
    if model is not None:
        name = getattr(getattr(model, "config", None), "name_or_path", None)
        said |= {"model": str(name or type(model).__name__), "class": type(model).__name__}
    if composite is not None:
        said["composite"] = composite if isinstance(composite, str) else composite.name
    return said | {
        "dtype": str(dtype).removeprefix("torch."),
        "lxt": __version__,
        "torch": torch.__version__,
    }


def check_relevance(relevance: Any, geometry: Geometry) -> None:
    """Raise what is wrong with relevance on a grid over the model's pixels.

    Raises:
        InvalidInput: its type, shape or values.

    """
    if not isinstance(relevance, Tensor):
        raise InvalidInput(f"relevance is a {type(relevance).__name__}, not a Tensor")
    if relevance.dtype not in (torch.float32, torch.float64) or relevance.device.type != "cpu":
        raise InvalidInput(
            f"relevance is {relevance.dtype} on {relevance.device}, and should be torch.float32 "
            "or torch.float64 on the CPU"
        )
    height, width = geometry.pixels
    shape = list(relevance.shape)
    if len(shape) != 2 or not all(shape) or height % shape[0] or width % shape[1]:
        raise InvalidInput(
            f"relevance has shape {shape}, and geometry has {height} × {width} pixels: it should "
            f"be [{height}, {width}], or [rows, columns] that divide them"
        )
    if relevance.requires_grad:
        raise InvalidInput("relevance is part of an autograd graph: give relevance.detach()")
    if not relevance.isfinite().all():
        raise InvalidInput("relevance holds NaN or infinity")


def patch_size(size: Any, pixels: Sequence[int], cell: Sequence[int]) -> tuple[int, int]:
    """Return height and width of patches.

    Raises:
        InvalidInput: the pixels can't be divided into such patches of whole cells.

    """
    sizes = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(sizes, tuple | list)
        or len(sizes) != 2
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
        or any(whole % n or n % part for whole, n, part in zip(pixels, sizes, cell, strict=True))
    ):
        parts = "" if tuple(cell) == (1, 1) else f", of whole patches of {cell[0]} × {cell[1]}"
        raise InvalidInput(
            f"{pixels[0]} × {pixels[1]} pixels can't be divided into patches of {size!r}: give a "
            f"number, or a height and a width, that divide them{parts}"
        )
    return sizes[0], sizes[1]
