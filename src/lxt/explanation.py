"""The result of an explanation: how much each token contributed to what the model computed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor

from lxt import json_format, storage
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget, check
from lxt.latent.relevance import Latent

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult
    from typing_extensions import Unpack

    from lxt.views.figures import Drawing, DrawingOnce, View

__all__ = ["Explanation"]

# By the first axis: what an index takes, and of what.
_INDEXED = {"batch": ("row", "batch"), "targets": ("target", "list"), "layers": ("layer", "trace")}


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The relevance of each token of one input, or of each row of a batch, for one target or many.

    ``print`` shows it in a terminal, a notebook shows it by itself. It is indexed and iterated by
    its first axis, see ``axes``: of a batch ``e[0]`` is the explanation of row 0, without its
    padding; of many targets ``e[0]`` is that of target 0; of both ``e[0]`` is that of row 0 for
    all of its targets; and of layers ``e[0]`` is that of the first layer.

    Raises:
        InvalidInput: shapes, types or values do not fit together, or relevance is not finite.

    """

    relevance: Tensor
    """``[tokens]``, with an axis before it for each of batch, targets and layers that there is, in
    this order; float32 or float64 on the CPU, in units of the target's value; 0 at padding, and in
    rows with fewer targets than others for those that they lack."""
    tokens: list[str] | list[list[str]]
    """One label for each token, padding included; for a batch, a list for each row."""
    token_ids: Tensor
    """int64, ``[tokens]`` or ``[batch, tokens]``."""
    mask: Tensor
    """bool, of the shape of ``token_ids``; ``False`` at padding."""
    target: ExplainedTarget | list[ExplainedTarget] | list[list[ExplainedTarget]]
    """What was explained; for a batch, one for each row; for many targets, a list of them (for
    each row)."""
    provenance: dict[str, str]
    """Where it comes from: model, composite, task, dtype, versions of lxt, torch, transformers."""
    layers: list[str] | None = None
    """The names of the places in the model whose tokens' relevance it is, in the order in which
    they run; ``None`` for the input alone, and then there is no such axis."""
    latent: dict[str, Latent] = field(default_factory=dict)
    """What taps read within the model, by their names: ``"residual"``, ``"heads"``, a path."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def is_batch(self) -> bool:
        """Whether there are rows: the first axis is ``"batch"``."""
        return self.token_ids.dim() == 2

    @property
    def is_many(self) -> bool:
        """Whether there is an axis of targets."""
        return self.relevance.dim() > self.token_ids.dim() + self.is_traced

    @property
    def is_traced(self) -> bool:
        """Whether there is an axis of layers."""
        return self.layers is not None

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of ``relevance``, of batch, targets, layers and tokens."""
        present = (self.is_batch, self.is_many, self.is_traced, True)
        names = ("batch", "targets", "layers", "tokens")
        return tuple(name for name, there in zip(names, present, strict=True) if there)

    @property
    def total(self) -> Tensor:
        """The sum of relevance over tokens, of the shape of the other axes, in float64."""
        return self.relevance.sum(-1, dtype=torch.float64)

    def rows(self) -> list["Explanation"]:
        """Return all explanations of one row and one target each, without padding, in order.

        A single explanation is its own one. Each has all of its layers.
        """
        if self.is_batch or self.is_many:
            return [single for part in self for single in part.rows()]
        return self.inputs()

    def inputs(self) -> list["Explanation"]:
        """Return the explanation of each row of input, for all of its targets, without padding."""
        if self.is_batch:
            return list(self)
        return [self._part((), self.mask, self.tokens, self.token_ids, self.target)]

    def top(self, k: int) -> list[tuple[int, str, float]]:
        """List the ``k`` most relevant tokens as (position, token, relevance), strongest first.

        Strength is |relevance|, of equals the earlier token comes first. Positions count from 0
        without padding. Fewer are listed where there are fewer tokens.

        Raises:
            InvalidInput: ``k`` is negative.
            TypeError: this is a batch, or of many targets or layers.

        """
        if len(self.axes) > 1:
            raise TypeError(
                "top lists the tokens of one explanation: take a row, target or layer, e[i].top(k)"
            )
        if k < 0:
            raise InvalidInput(f"top takes a count of tokens, not {k}")
        (row,) = self.rows()
        tokens = cast("list[str]", row.tokens)
        relevance = row.relevance.tolist()
        order = row.relevance.abs().argsort(descending=True, stable=True)[:k]
        return [(i, tokens[i], relevance[i]) for i in order.tolist()]

    def __len__(self) -> int:
        return len(self.relevance)

    def __getitem__(self, index: int) -> "Explanation":
        if len(self.axes) == 1:
            raise TypeError(
                "a single explanation has no rows to index; its tokens are in e.tokens and their "
                "relevance in e.relevance"
            )
        what, whole = _INDEXED[self.axes[0]]
        if not isinstance(index, int):
            raise TypeError(f"{what}s are indexed by an integer, not {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"{what} {index} of a {whole} of {len(self)}")
        if not self.is_batch and not self.is_many:
            return replace(self, relevance=self.relevance[index], layers=None)
        target = cast("list[ExplainedTarget]", self.target)[index]
        if not self.is_batch:
            return self._part((index,), self.mask, self.tokens, self.token_ids, target)
        return self._part(
            (index,),
            self.mask[index],
            cast("list[list[str]]", self.tokens)[index],
            self.token_ids[index],
            target,
        )

    def __iter__(self) -> Iterator["Explanation"]:
        if len(self.axes) == 1:
            raise TypeError("a single explanation has no rows to go through; see e.tokens")
        return (self[i] for i in range(len(self)))

    def _part(
        self, index: tuple[int, ...], mask: Tensor, tokens: Any, ids: Tensor, target: Any
    ) -> "Explanation":
        """One row or target, without padding, and without targets that the row lacks."""
        relevance = self.relevance[index]
        count = len(target) if isinstance(target, list) else None
        if count is not None:
            relevance = relevance[:count]
        tokens = [token for token, real in zip(tokens, mask.tolist(), strict=True) if real]
        return replace(
            self,
            relevance=relevance[..., mask],
            tokens=tokens,
            token_ids=ids[mask],
            mask=mask[mask],
            target=target,
            latent={key: one.part(index, mask, count) for key, one in self.latent.items()},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that ``load`` reads back, bit for bit.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        storage.write(path, storage.to_safetensors(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Read a file that ``save`` or ``to_json`` wrote; nothing in it is executed.

        Raises:
            InvalidFile: the file can't be read, or holds something else.

        """
        return storage.read(path)

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the rows as JSON without their padding, or write it to ``path``.

        A row's relevance is a list of numbers, for many targets or layers a list of these for each.
        Numbers are written such that they read back as the same floats. A JSON Schema of it comes
        with the package, ``lxt.json_format.schema()``.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        return storage.written(json_format.to_json(self), path)

    @staticmethod
    def from_json(source: str | os.PathLike[str]) -> "Explanation":
        """Read what ``to_json`` wrote: the text itself, or the path of a file.

        A string that begins with a brace is the text. What was padding is left out, and rows of a
        batch that are shorter than others are padded behind.

        Raises:
            InvalidFile: the file can't be read, or it is something else; says what is wrong, and
                where: ``rows[0].relevance[3]: …``.

        """
        return storage.read_json(source)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table of pandas with one line for each token, of each row, target and layer.

        Columns: ``row``, ``target``, ``layer`` as far as there are such axes, ``position``,
        ``token``, ``token_id``, ``relevance``, ``share``; see `lxt.exports.to_dataframe`.

        Raises:
            MissingPackage: pandas can't be imported.

        """
        from lxt import exports

        return exports.to_dataframe(self)

    @overload
    def to_html(self, path: None = None) -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str]) -> None: ...
    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return one self-contained HTML page, or write it to ``path``.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import html

        return storage.written(html.page_of([("", self)]), path)

    @overload
    def to_pdf(self, path: None = None, **options: "Unpack[Drawing]") -> bytes: ...
    @overload
    def to_pdf(self, path: str | os.PathLike[str], **options: "Unpack[Drawing]") -> None: ...
    def to_pdf(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        view: "View | None" = None,
        top: int | None = None,
        robust: bool | float = False,
        title: str | None = None,
    ) -> bytes | None:
        """Return pages of PDF, or write them to ``path``.

        Rows of a batch, and targets or layers that the view has no axis for, have a page each.

        Args:
            path: the file; a file of that name is replaced.
            view: ``"text"``, tokens as running text on colours; ``"bars"``, the strongest tokens;
                ``"matrix"``, targets × tokens; or ``"trace"``, tokens × layers. By default what
                shows all axes: ``"trace"`` of layers, ``"matrix"`` of targets, else ``"text"``.
            top: how many bars there are, 20 by default.
            robust: whether the strongest colour stands for the 95th percentile of |relevance|, or
                for the one that is given, and all beyond it, so that a single token does not make
                all others pale. The picture says so. By default it is the largest |relevance|.
            title: what stands above instead of the target's name; nothing if it is empty.

        Raises:
            InvalidInput: an option doesn't fit the explanation, or it is too large for a picture.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        if path is not None:
            storage.check_writable(path)
        from lxt.views import figures

        options = {"view": view, "top": top, "robust": robust, "title": title}
        data = figures.draw(self, format="pdf", **options)
        return storage.written(data, path)

    @overload
    def to_image(self, path: None = None, **options: "Unpack[DrawingOnce]") -> bytes: ...
    @overload
    def to_image(self, path: str | os.PathLike[str], **options: "Unpack[DrawingOnce]") -> None: ...
    def to_image(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        format: Literal["png", "svg"] | None = None,
        view: "View | None" = None,
        top: int | None = None,
        robust: bool | float = False,
        title: str | None = None,
        dpi: float = 200,
    ) -> bytes | None:
        """Return one picture as PNG or SVG, or write it to ``path``.

        Args:
            path: the file; a file of that name is replaced.
            format: by default what the path ends with, ``.png`` or ``.svg``; PNG without a path.
            view: as for ``to_pdf``, and so are ``top``, ``robust`` and ``title``.
            top: how many bars there are.
            robust: whether the strongest colour stands for a percentile, and for which.
            title: what stands above.
            dpi: pixels of a PNG per inch; pictures of text are 200 mm wide.

        Raises:
            InvalidInput: an option doesn't fit the explanation, it is too large for a picture, it
                would take several, or the path ends with no format.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import figures

        chosen = figures.image_format(path, format)
        if path is not None:
            storage.check_writable(path)
        options = {"view": view, "top": top, "robust": robust, "title": title}
        data = figures.draw(self, format=chosen, dpi=dpi, **options)
        return storage.written(data, path)

    def _repr_html_(self) -> str:
        from lxt.views import notebook

        return notebook.output([("", self)])

    def __str__(self) -> str:
        from lxt.views import terminal

        return terminal.text(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from lxt.views import terminal

        yield terminal.render(self)

    def __repr__(self) -> str:
        targets: Any = self.target if isinstance(self.target, list) else [self.target]
        if self.is_batch and self.is_many:
            targets = [target for row in targets for target in row]
        names = ", ".join(target.name for target in targets[:3])
        more = ", …" if len(targets) > 3 else ""
        sizes = zip(self.axes, self.relevance.shape, strict=True)
        shape = ", ".join(f"{axis} {size}" for axis, size in sizes)
        return f"<Explanation of {names}{more}: {shape}>"
