"""An explanation as PDF, PNG or SVG: which picture of it, on how many pages, within what limits."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast, get_args

from lxt.errors import InvalidInput
from lxt.tokens import printable
from lxt.views import colour
from lxt.views.barchart import bar_rows
from lxt.views.canvas import DPI, WIDTH, Format, Picture, render
from lxt.views.caption import (
    caption_blocks,
    facts,
    facts_of_layers,
    facts_of_targets,
    legend_block,
    relevance_legend,
    shortened,
    title_blocks,
)
from lxt.views.fonts import Fonts
from lxt.views.heatmap import MOST_NUMBERS, Table, banded_map, square_map
from lxt.views.options import FIXED, check_dpi, check_title, count_of_bars, percentile_of
from lxt.views.page import running_text
from lxt.views.scale import Scale, scale_of
from lxt.views.summary import (
    Matrix,
    headings,
    matrix_of_layers,
    matrix_of_targets,
    summarise,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lxt.explained import ExplainedTarget
    from lxt.explanation import Explanation

View = Literal["text", "bars", "matrix", "trace"]
VIEWS: tuple[View, ...] = get_args(View)


class Drawing(TypedDict, total=False):
    """The options of ``Explanation.to_pdf``."""

    view: View | None
    top: int | None
    robust: bool | float
    title: str | None


class DrawingOnce(Drawing, total=False):
    """The options of ``Explanation.to_image``."""

    format: Literal["png", "svg"] | None
    dpi: float


_NEEDS = {"matrix": "targets", "trace": "layers"}
_MOST = {"text": 200_000, "bars": 200_000, "matrix": 500_000, "trace": 500_000}
"""So many relevances are drawn into one file at most."""
_MOST_PICTURES = 2_000


@dataclass(frozen=True)
class _Options:
    view: View
    top: int
    percentile: float | None
    title: str | None


@dataclass(frozen=True)
class _Part:
    """What one picture shows, and which of several it is."""

    heading: str
    explanation: "Explanation"
    """Its axes are tokens, and before these only the one that the view needs."""


def draw(
    explanation: "Explanation",
    *,
    format: Format,
    view: View | None = None,
    top: int | None = None,
    robust: bool | float = False,
    title: str | None = None,
    dpi: float | None = None,
) -> bytes:
    """Draw an explanation; see ``Explanation.to_pdf`` and ``to_image``.

    Raises:
        InvalidInput: an option is none of those that there are, or does not fit the explanation,
            or there is nothing to draw, or too much; quotes what was given.

    """
    options = _options(explanation, view, top, robust, title)
    check_dpi(dpi)
    parts = _parts(explanation, options.view)
    if not parts:
        raise InvalidInput(f"there is nothing to draw: {_shape(explanation)}")
    if format != "pdf" and len(parts) > 1:
        raise InvalidInput(
            f"{format.upper()} holds one picture, and {options.view!r} would make {len(parts)} of "
            f"{_shape(explanation)}: take one of them, e[i], or write a PDF, of a page for each"
        )
    _check_size(explanation, options, parts)
    return render(
        _characters(explanation, options.title),
        lambda fonts: [_picture(part, options, fonts) for part in parts],
        format=format,
        dpi=DPI if dpi is None else dpi,
    )


def image_format(path: str | os.PathLike[str] | None, format: str | None) -> Format:
    """Return the format of an image: the one given, or by the end of a path.

    Raises:
        InvalidInput: there is no such format, or path and format disagree.

    """
    suffix = "" if path is None else Path(os.fspath(path)).suffix.lower().removeprefix(".")
    chosen = format or suffix or (None if path is not None else "png")
    if chosen not in ("png", "svg"):
        what = f"format={format!r}" if format else f"path {os.fspath(path or '')!r}"
        raise InvalidInput(f"{what} is neither PNG nor SVG: end the path with .png or .svg")
    if suffix in ("pdf", "png", "svg") and suffix != chosen:
        raise InvalidInput(f"path {os.fspath(path or '')!r} ends otherwise than format={format!r}")
    return cast("Format", chosen)


def _options(
    explanation: "Explanation",
    view: str | None,
    top: int | None,
    robust: bool | float,
    title: str | None,
) -> _Options:
    chosen = _view(explanation, view)
    check_title(title)
    return _Options(chosen, count_of_bars(top, chosen), percentile_of(robust), title)


def _view(explanation: "Explanation", view: str | None) -> View:
    if view is None:
        if explanation.is_traced:
            return "trace"
        return "matrix" if explanation.is_many else "text"
    if view not in VIEWS:
        raise InvalidInput(f"view={view!r} is none of {', '.join(map(repr, VIEWS))}")
    needed = _NEEDS.get(view)
    if needed and needed not in explanation.axes:
        raise InvalidInput(
            f"view={view!r} shows {needed} × tokens, and this explanation has no axis of {needed}, "
            f"only {', '.join(explanation.axes)}"
        )
    return cast("View", view)


def _parts(explanation: "Explanation", view: View) -> list[_Part]:
    if view == "matrix":
        rows = explanation.inputs()
        names = [f"row {i} of {len(rows)}" for i in range(len(rows))]
        names = names if explanation.is_batch else [""]
    else:
        rows, names = explanation.rows(), headings(explanation, counted=True)
    parts = map(_Part, names, rows)
    if view == "trace" or not explanation.is_traced:
        return list(parts)
    return [layer for part in parts for layer in _layers(part)]


def _layers(part: _Part) -> Iterator[_Part]:
    """Each layer of a part, whose layers are the axis before the tokens."""
    explanation = part.explanation
    for i, name in enumerate(cast("list[str]", explanation.layers)):
        heading = f"{part.heading}, layer {printable(name)}".removeprefix(", ")
        relevance = explanation.relevance.select(-2, i)
        yield _Part(heading, replace(explanation, relevance=relevance, layers=None))


def _check_size(explanation: "Explanation", options: _Options, parts: Sequence[_Part]) -> None:
    sizes = [part.explanation.relevance.numel() for part in parts]
    if options.view == "bars":
        sizes = [min(size, options.top) for size in sizes]
    most = _MOST[options.view]
    if sum(sizes) > most or len(sizes) > _MOST_PICTURES:
        raise InvalidInput(
            f"{options.view!r} of {_shape(explanation)} is {sum(sizes):,} relevances in "
            f"{len(sizes):,} pictures, more than one file takes ({most:,} in {_MOST_PICTURES:,}): "
            "take a part, e[i], or another view"
        )


def _shape(explanation: "Explanation") -> str:
    sizes = zip(explanation.axes, explanation.relevance.shape, strict=True)
    return " × ".join(f"{axis} {size}" for axis, size in sizes)


def _picture(part: _Part, options: _Options, fonts: Fonts) -> Picture:
    explanation, view = part.explanation, options.view
    scale = scale_of(explanation.relevance, options.percentile)
    notes = scale.note("bars" if view == "bars" else "colours")
    width, foot = WIDTH, [legend_block(relevance_legend(scale), fonts)]
    if view == "matrix":
        count = len(explanation)
        headline = f"Relevance for {count} target{'s' * (count != 1)}"
        matrix = matrix_of_targets(explanation)
        cells = _cells(matrix.values, matrix, scale)
        table = Table(*cells, matrix.rows, matrix.columns, ("outputs ↓", "inputs →"))
        width, body = square_map(table, fonts)
        texts = facts_of_targets(matrix)
    else:
        summary = summarise(explanation)
        headline, texts = summary.headline, facts(summary)
        if view == "text":
            levels = (scale.level(token.relevance) for token in summary.tokens)
            shades = [colour.LIGHT.shade(level).background for level in levels]
            body = running_text(cast("list[str]", explanation.tokens), shades, fonts)
        elif view == "bars":
            shown, count = summary.strongest[: options.top], len(summary.tokens)
            body, foot = bar_rows(shown, scale, fonts), []
            if len(shown) < count:
                notes += [f"the {len(shown)} of {count} tokens with the largest |relevance|"]
        else:
            matrix = matrix_of_layers(explanation)
            cells = _cells(matrix.values.T, matrix, scale)
            names = ("tokens ↓", "layers →")
            table = Table(*cells, matrix.columns, matrix.rows, names, columns_counted=False)
            width, body = banded_map(table, fonts)
            texts = facts_of_layers(matrix)
    title = shortened(headline) if options.title is None else printable(options.title)
    head = title_blocks(title, part.heading, fonts, width)
    foot += caption_blocks([*notes, *texts], fonts, width)
    return Picture(body, head, foot, width, title)


def _cells(
    values: "Tensor", matrix: Matrix, scale: Scale
) -> tuple[list[list[int]], list[list[str]]]:
    """Return the steps on the colour map, and the numbers if they are few enough to be read."""
    listed = values.tolist()
    levels = [[scale.level(value) for value in row] for row in listed]
    if values.numel() > MOST_NUMBERS:
        return levels, []
    return levels, [[matrix.number(value) for value in row] for row in listed]


def _characters(explanation: "Explanation", title: str | None) -> str:
    """Return all that any text of any picture may hold."""
    targets = [cast("ExplainedTarget", row.target) for row in explanation.rows()]
    tokens = [token for row in explanation.inputs() for token in row.tokens]
    texts = [
        *cast("list[str]", tokens),
        *(text for target in targets for text in (target.name, target.prediction)),
        *explanation.provenance.values(),
        *(explanation.layers or []),
        title or "",
    ]
    return FIXED + "".join(map(printable, texts))
