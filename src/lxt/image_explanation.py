"""The relevance of a picture's pixels, or patches, to what a model computed."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from lxt import image_json, image_storage, storage
from lxt.composite import Composite
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget
from lxt.geometry import Geometry
from lxt.image_inputs import (
    check_relevance,
    geometry_of,
    patch_size,
    provenance_of,
    relevance_of_pixels,
    target_of,
)
from lxt.pictures import read_picture

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from typing_extensions import Unpack

    from lxt.views.image import Drawing, DrawingOnce, ShownOptions, Sign, View

__all__ = ["ImageExplanation", "Patch"]


class Patch(NamedTuple):
    """A part of a picture, and its relevance."""

    row: int
    column: int
    relevance: float
    box: tuple[float, float, float, float]
    """Top, left, bottom, right, in pixels of the original picture; may reach beyond it."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageExplanation:
    """The relevance of each pixel that a model took, or each patch, and the picture they show.

    A notebook shows it by itself. See ``from_pixels`` for how one is made.

    Raises:
        InvalidInput: shapes, types or values do not fit together, or relevance is not finite.

    """

    relevance: Tensor
    """``[height, width]`` of the model's pixels, the sum over channels, or ``[rows, columns]`` of
    patches that divide them evenly; float32 or float64 on the CPU, in units of the target's
    value."""
    image: Tensor
    """The original picture, uint8 ``[height, width, 3]`` on the CPU."""
    geometry: Geometry
    """Where the model's pixels lie in it."""
    target: ExplainedTarget
    """What was explained."""
    provenance: dict[str, str]
    """Where it comes from: model, composite, dtype, versions."""

    def __post_init__(self) -> None:
        if not isinstance(self.geometry, Geometry):
            raise InvalidInput(f"geometry is a {type(self.geometry).__name__}, not an lxt.Geometry")
        check_relevance(self.relevance, self.geometry)
        shape = [*self.geometry.image, 3]
        image = self.image
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.is_cuda:
            raise InvalidInput("image is not a tensor of uint8 on the CPU: from_relevance makes it")
        if list(image.shape) != shape:
            raise InvalidInput(f"image has shape {list(image.shape)}, and geometry says {shape}")
        if not isinstance(self.target, ExplainedTarget):
            raise InvalidInput(f"target is a {type(self.target).__name__}, not an ExplainedTarget")
        items = self.provenance.items() if isinstance(self.provenance, dict) else [(None, None)]
        if not all(isinstance(text, str) for item in items for text in item):
            raise InvalidInput(f"provenance {self.provenance!r} is not a dict of strings")

    @classmethod
    def from_pixels(
        cls,
        image: Any,
        pixel_values: Tensor,
        geometry: Any,
        *,
        gradient: Tensor | None = None,
        target: ExplainedTarget | None = None,
        logits: Tensor | None = None,
        label: int | str | None = None,
        model: nn.Module | None = None,
        composite: Composite | str | None = None,
        provenance: dict[str, str] | None = None,
    ) -> "ImageExplanation":
        """Make an explanation of a run in a composite's context: pixel × gradient.

        ``x = processor(image, return_tensors="pt").pixel_values.requires_grad_()``, then a forward
        with it inside ``with lxt.attnlrp.context(model):``, then ``backward()`` from a logit.

        Args:
            image: the picture that was given to the processor: a PIL image, or an array or tensor
                of uint8 ``[height, width, 3]`` or ``[height, width]``; see
                ``lxt.pictures.read_picture``.
            pixel_values: what the model took, ``[1, channels, height, width]`` or without the 1.
            geometry: an ``lxt.Geometry``, or the image processor: what it does is measured (see
                ``Geometry.of``), and ``pixel_values`` must be what it makes of the picture.
            gradient: of the target by ``pixel_values``; by default ``pixel_values.grad``.
            target: what was explained. Where the logit of one class was, ``logits`` suffice.
            logits: the model's output, ``[classes]`` or ``[1, classes]``.
            label: the explained class, by index or by name if ``model`` has names; by default the
                one with the largest logit.
            model: whose names of classes, and name, are told.
            composite: whose name is told.
            provenance: more to be told.

        Raises:
            InvalidInput: these don't fit together, or there is no gradient.
            InvalidTarget: there is no such label.

        """
        relevance = relevance_of_pixels(pixel_values, gradient)
        picture = read_picture(image)
        if not isinstance(geometry, Geometry):
            geometry = geometry_of(geometry, picture, pixel_values)
        if target is None:
            target = target_of(logits, label, model)
        elif logits is not None or label is not None:
            raise InvalidInput("target is what was explained: logits and label are in its place")
        said = provenance_of(model, composite, pixel_values.dtype) | (provenance or {})
        return cls.from_relevance(picture, relevance, geometry, target=target, provenance=said)

    @classmethod
    def from_relevance(
        cls,
        image: Any,
        relevance: Tensor,
        geometry: Any,
        *,
        target: ExplainedTarget,
        provenance: dict[str, str] | None = None,
    ) -> "ImageExplanation":
        """Make an explanation of relevance that is there already.

        Args:
            image: as for ``from_pixels``.
            relevance: ``[height, width]`` or ``[rows, columns]`` of patches, any floating point
                type, on any device; with channels, ``[channels, height, width]``, they are summed.
                A first axis of 1 more is left out.
            geometry: an ``lxt.Geometry``, or the image processor.
            target: what was explained.
            provenance: where it comes from.

        Raises:
            InvalidInput: these don't fit together.

        """
        picture = read_picture(image)
        if not isinstance(geometry, Geometry):
            geometry = Geometry.of(geometry, picture.shape[:2])
        if not isinstance(relevance, Tensor) or not relevance.is_floating_point():
            raise InvalidInput("relevance is not a tensor of floating point numbers")
        values = relevance.detach().to("cpu")
        values = values if values.dtype == torch.float64 else values.to(torch.float32)
        if values.dim() == 4 and len(values) == 1:
            values = values[0]
        if values.dim() == 3 and values.shape[0] in (1, 3):
            values = values.sum(0, dtype=torch.float64).to(values.dtype)
        return cls(values.contiguous(), picture, geometry, target, provenance or {})

    @property
    def total(self) -> float:
        """The sum of relevance."""
        return self.relevance.sum(dtype=torch.float64).item()

    @property
    def cell(self) -> tuple[int, int]:
        """How many of the model's pixels a number of ``relevance`` stands for: height, width."""
        (height, width), (rows, columns) = self.geometry.pixels, self.relevance.shape
        return height // rows, width // columns

    @property
    def outside(self) -> float:
        """The sum of relevance beyond the picture, where pixels were added to it (padding)."""
        return self.total - self.relevance_in_image().sum().item()

    def relevance_in_image(self) -> Tensor:
        """Return relevance on the original picture's pixels, float64 ``[height, width]``.

        The relevance of one of the model's pixels, or patches, is spread evenly over the area of
        the picture that it stands for, parts of pixels included. So sums are kept: over the
        picture it is ``total``, less what lies ``outside`` of it; and what the model didn't see
        has 0.
        """
        vertical, horizontal = self.geometry.shares(self.relevance.shape)
        return vertical @ self.relevance.double() @ horizontal.T

    def patches(self, size: int | tuple[int, int]) -> Tensor:
        """Return the sums over patches of the model's pixels, float64 ``[rows, columns]``.

        Args:
            size: height and width of a patch in the model's pixels, one number for both.

        Raises:
            InvalidInput: the pixels can't be divided into such patches.

        """
        height, width = patch_size(size, self.geometry.pixels, self.cell)
        rows, columns = self.geometry.pixels[0] // height, self.geometry.pixels[1] // width
        return self.relevance.double().reshape(rows, -1, columns, width // self.cell[1]).sum((1, 3))

    def by_patches(self, size: int | tuple[int, int]) -> "ImageExplanation":
        """Return the same explanation with the relevance of patches; see ``patches``."""
        return replace(self, relevance=self.patches(size))

    def top(self, k: int, size: int | tuple[int, int] | None = None) -> list[Patch]:
        """List the ``k`` most relevant patches, strongest first, of equals the upper left one.

        Args:
            k: how many; fewer are listed where there are fewer.
            size: as for ``patches``; by default those that there are, pixels if it is these.

        Raises:
            InvalidInput: ``k`` is negative, or the pixels can't be divided into such patches.

        """
        if k < 0:
            raise InvalidInput(f"top takes a count of patches, not {k}")
        sums = self.patches(self.cell if size is None else size)
        columns = sums.shape[1]
        top, left, bottom, right = self.geometry.box
        high, wide = (bottom - top) / len(sums), (right - left) / columns
        found = []
        for index in sums.flatten().abs().argsort(descending=True, stable=True)[:k].tolist():
            row, column = divmod(index, columns)
            y, x = top + row * high, left + column * wide
            found.append(Patch(row, column, sums[row, column].item(), (y, x, y + high, x + wide)))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that ``load`` reads back, bit for bit, the picture included.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        storage.write(path, image_storage.to_safetensors(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "ImageExplanation":
        """Read a file that ``save`` or ``to_json`` wrote; nothing in it is executed.

        Raises:
            InvalidFile: the file can't be read, or holds something else; says what is wrong, and
                in JSON where.

        """
        return image_storage.read(path)

    @staticmethod
    def from_json(source: str | os.PathLike[str]) -> "ImageExplanation":
        """Read what ``to_json`` gave: the text itself, which begins with a brace, or a file of it.

        Raises:
            InvalidFile: the file can't be read, or it is something else; says what is wrong, and
                where: ``relevance[3][0]: …``.

        """
        return image_storage.read_json(source)

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return it as JSON, which ``from_json`` and ``load`` read back, or write it to ``path``.

        The picture is a PNG in it, so that no bit of it is lost, and numbers are written such that
        they read back as the same floats; see `lxt.image_json.schema`.

        Raises:
            InvalidInput: the picture has more than ``lxt.image_json.MOST_PIXELS`` pixels.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        return storage.written(image_json.to_json(self), path)

    @overload
    def to_image(self, path: None = None, **options: "Unpack[DrawingOnce]") -> bytes: ...
    @overload
    def to_image(self, path: str | os.PathLike[str], **options: "Unpack[DrawingOnce]") -> None: ...
    def to_image(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        format: Literal["png", "svg"] | None = None,
        view: "View" = "overlay",
        sign: "Sign" = "both",
        patch: int | tuple[int, int] | None = None,
        smooth: float | None = None,
        robust: bool | float = False,
        title: str | None = None,
        dpi: float = 200,
    ) -> bytes | None:
        """Return a picture as PNG or SVG, or write it to ``path``.

        Args:
            path: the file; a file of that name is replaced.
            format: by default what the path ends with, ``.png`` or ``.svg``; PNG without a path.
            view: ``"overlay"``, colours over the picture in grey, the stronger the less it shows
                through; ``"heatmap"``, the colours alone; ``"side by side"``, the picture, the
                overlay and the heat map.
            sign: ``"both"``, or ``"positive"`` to leave out negative relevance.
            patch: sums over patches of so many of the model's pixels are shown; see ``patches``.
            smooth: the standard deviation, in the model's pixels, of a Gaussian that relevance is
                spread with, its sum kept; none by default. The caption says so.
            robust: whether the strongest colour stands for the 95th percentile of |relevance|, or
                for the one that is given. The caption says so. By default it is the largest.
            title: what stands above instead of the target's name; nothing if it is empty.
            dpi: pixels of a PNG per inch.

        Raises:
            InvalidInput: an option is none of those that there are.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import figures

        chosen = figures.image_format(path, format)
        return self._drawn(path, chosen, view, sign, patch, smooth, robust, title, dpi)

    @overload
    def to_pdf(self, path: None = None, **options: "Unpack[Drawing]") -> bytes: ...
    @overload
    def to_pdf(self, path: str | os.PathLike[str], **options: "Unpack[Drawing]") -> None: ...
    def to_pdf(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        view: "View" = "overlay",
        sign: "Sign" = "both",
        patch: int | tuple[int, int] | None = None,
        smooth: float | None = None,
        robust: bool | float = False,
        title: str | None = None,
    ) -> bytes | None:
        """Return a page of PDF, or write it to ``path``; arguments as for ``to_image``.

        Raises:
            InvalidInput: an option is none of those that there are.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        return self._drawn(path, "pdf", view, sign, patch, smooth, robust, title, None)

    def _drawn(
        self, path: str | os.PathLike[str] | None, format: Any, *options: Any
    ) -> bytes | None:
        from lxt.views import image

        if path is not None:
            storage.check_writable(path)
        return storage.written(image.draw(self, format, *options), path)

    @overload
    def to_html(self, path: None = None, **options: "Unpack[ShownOptions]") -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str], **options: "Unpack[ShownOptions]") -> None: ...
    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        sign: "Sign" = "both",
        patch: int | tuple[int, int] | None = None,
        smooth: float | None = None,
        robust: bool | float = False,
    ) -> str | None:
        """Return one HTML page that needs nothing else, or write it to ``path``.

        It has all views, to choose from, and reads the patch under the pointer, or the one that
        arrow keys went to; its only script is its own. Arguments as for ``to_image``.

        Raises:
            InvalidInput: an option is none of those that there are.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import image_html

        text = image_html.page(self, sign=sign, patch=patch, smooth=smooth, robust=robust)
        return storage.written(text, path)

    def _repr_html_(self) -> str:
        from lxt.views import image_html

        return image_html.fragment(self)

    def _repr_png_(self) -> bytes:
        return self.to_image()

    def __str__(self) -> str:
        from lxt.views import image_terminal

        return image_terminal.text(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from lxt.views import image_terminal

        yield image_terminal.render(self)

    def __repr__(self) -> str:
        rows, columns = self.relevance.shape
        height, width = self.geometry.image
        what = "pixels" if self.cell == (1, 1) else "patches"
        return (
            f"<ImageExplanation of {self.target.name}: {rows} × {columns} {what} "
            f"of a picture of {height} × {width}>"
        )
