"""Relevance over a picture, as PDF, SVG or PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

import numpy as np
from matplotlib.transforms import Affine2D
from PIL import Image

from lxt.errors import InvalidInput
from lxt.tokens import printable
from lxt.views import raster
from lxt.views.canvas import (
    DPI,
    GREY,
    INK,
    MARGIN,
    SIZE,
    WIDTH,
    Block,
    Format,
    Pen,
    Picture,
    Rectangle,
    render,
)
from lxt.views.caption import caption_blocks, shortened, title_blocks
from lxt.views.fonts import Fonts
from lxt.views.image_summary import Shown, Sign, shown
from lxt.views.options import check_dpi, check_title

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

__all__ = ["Sign", "View", "draw"]

View = Literal["overlay", "heatmap", "side by side"]


class ShownOptions(TypedDict, total=False):
    """The options of ``ImageExplanation.to_html``."""

    sign: Sign
    patch: int | tuple[int, int] | None
    smooth: float | None
    robust: bool | float


class Drawing(ShownOptions, total=False):
    """The options of ``ImageExplanation.to_pdf``."""

    view: View
    title: str | None


class DrawingOnce(Drawing, total=False):
    """The options of ``ImageExplanation.to_image``."""

    format: Literal["png", "svg"] | None
    dpi: float


# In points.
_LARGEST, _LEAST = 340.0, 1.0
"""Of the picture alone, and of its shorter side."""
_NARROWEST = 300.0
_GAP, _LABEL = 12.0, 14.0
_BAR, _BAR_WIDTH = 8.0, 160.0
_LINE, _EDGE = 0.5, "#bbbbbb"
_MOST_ACROSS = 2000
"""Pixels of what is composed; larger ones are enlarged from that."""
_FIXED = "".join(map(chr, range(0x20, 0x7F))) + "≤≥·−×…"


def draw(
    explanation: "ImageExplanation",
    format: Format,
    view: View = "overlay",
    sign: Sign = "both",
    patch: int | tuple[int, int] | None = None,
    smooth: float | None = None,
    robust: bool | float = False,
    title: str | None = None,
    dpi: float | None = None,
) -> bytes:
    """Draw an explanation of a picture; see ``ImageExplanation.to_image``.

    Raises:
        InvalidInput: an option is none of those that there are; quotes what was given.

    """
    if view not in get_args(View):
        raise InvalidInput(f"view={view!r} is none of {', '.join(map(repr, get_args(View)))}")
    check_title(title)
    check_dpi(dpi)
    what = shown(explanation, sign=sign, patch=patch, smooth=smooth, robust=robust)
    heading = what.headline if title is None else printable(title)
    texts = _texts(what)
    return render(
        "".join([_FIXED, heading, *texts]),
        lambda fonts: [_picture(what, view, shortened(heading), texts, fonts)],
        format=format,
        dpi=DPI if dpi is None else dpi,
    )


def _picture(what: Shown, view: View, title: str, texts: Sequence[str], fonts: Fonts) -> Picture:
    height, width = what.explanation.geometry.image
    layers: list[raster.Layer] = [cast("raster.Layer", view)]
    beside = False
    if view == "side by side":
        layers = ["picture", "overlay", "heatmap"]
        beside = width < 2.5 * height  # wide ones stand below each other
    room = WIDTH - 2 * MARGIN
    most = ((room - 2 * _GAP) / 3 if beside else room) if len(layers) > 1 else _LARGEST
    tallest = _LARGEST if beside or len(layers) == 1 else _LARGEST / 2
    scale = min(most / width, tallest / height)
    size = max(width * scale, _LEAST), max(height * scale, _LEAST)
    panels = [_Panel(what, which, size, fonts, named=len(layers) > 1) for which in layers]
    if beside:
        body = [Block(panels[0].height, partial(_beside, panels))]
    else:
        body = [Block(panel.height, partial(panel.paint, MARGIN)) for panel in panels]
    page = WIDTH if len(layers) > 1 else max(size[0] + 2 * MARGIN, _NARROWEST)
    foot = [_scale(what, view, fonts, page), *caption_blocks(texts, fonts, page)]
    head = title_blocks(title, "", fonts, page)
    return Picture(body, head=head, foot=foot, width=page, title=title)


@dataclass(frozen=True)
class _Panel:
    what: Shown
    which: raster.Layer
    size: tuple[float, float]
    """Width and height in points."""
    fonts: Fonts
    named: bool

    @property
    def height(self) -> float:
        return self.size[1] + (_LABEL if self.named else 0) + 4

    def paint(self, left: float, pen: Pen, top: float) -> None:
        width, height = self.size
        scaled = bool(pen.renderer.option_scale_image())
        per_point = DPI / 72 if scaled else pen.scale
        full = max(round(height * per_point), 1), max(round(width * per_point), 1)
        less = min(1.0, _MOST_ACROSS / max(full))
        size = max(round(full[0] * less), 1), max(round(full[1] * less), 1)
        drawn = raster.layer(self.which, self.what.explanation.image, self.what.field, size)
        if not scaled and size != full:
            larger = Image.fromarray(drawn).resize((full[1], full[0]), Image.Resampling.NEAREST)
            drawn = np.asarray(larger)
        opaque = np.full((*drawn.shape[:2], 1), 255, dtype=np.uint8)
        # Pictures are drawn from their lower left corner.
        pixels = np.ascontiguousarray(np.concatenate([drawn, opaque], axis=-1)[::-1])
        x, y = left * pen.scale, (pen.height - top - height) * pen.scale
        renderer: Any = pen.renderer
        if scaled:
            place = Affine2D().scale(width * pen.scale, height * pen.scale)
            renderer.draw_image(pen.gc, x, y, pixels, place)
        else:
            renderer.draw_image(pen.gc, round(x), round(y), pixels)
        high, wide = self.what.explanation.geometry.image
        if self.which == "heatmap":
            _frame(pen, (left, top, width, height), _EDGE)
        upper, near, lower, far = self.what.explanation.geometry.seen
        if self.which != "picture" and (upper, near, lower, far) != (0, 0, high, wide):
            x, y = left + near / wide * width, top + upper / high * height
            seen = (x, y, (far - near) / wide * width, (lower - upper) / high * height)
            _frame(pen, seen, GREY)
        if self.named:
            pen.write(left, top + height + 10, self.which, GREY, size=SIZE * 0.75)


def _frame(pen: Pen, inside: Rectangle, colour: str) -> None:
    left, top, width, height = inside
    line = min(_LINE, width / 4, height / 4)
    sides = [
        (left, top, width, line),
        (left, top + height - line, width, line),
        (left, top, line, height),
        (left + width - line, top, line, height),
    ]
    pen.boxes(sides, colour)


def _beside(panels: Sequence[_Panel], pen: Pen, top: float) -> None:
    for i, panel in enumerate(panels):
        panel.paint(MARGIN + i * (panel.size[0] + _GAP), pen, top)


def _scale(what: Shown, view: View, fonts: Fonts, page: float) -> Block:
    """A bar of the colours; over a picture, on its darkest and on its brightest grey."""
    darkest, brightest = raster.greys()
    rows = [raster.bar(brightest, positive=what.positive, opaque=view == "heatmap")]
    if view != "heatmap":
        rows.append(raster.bar(darkest, positive=what.positive, opaque=False))
    small = SIZE * 0.7
    labels = [what.ends[0], "0", what.ends[1]] if not what.positive else list(what.ends)
    beside = MARGIN + _BAR_WIDTH + 8 + fonts.measure(what.unit) * 0.7 <= page - MARGIN

    def paint(pen: Pen, top: float) -> None:
        each = _BAR / len(rows)
        for i, colours in enumerate(rows):
            step = _BAR_WIDTH / len(colours)
            for j, colour in enumerate(colours):
                # Each reaches to the end, under the next: seams would show otherwise.
                x = MARGIN + j * step
                pen.box(x, top + 4 + i * each, _BAR_WIDTH - j * step, each, colour)
        _frame(pen, (MARGIN, top + 4, _BAR_WIDTH, _BAR), _EDGE)
        for i, label in enumerate(labels):
            share = i / (len(labels) - 1)
            x = MARGIN + (_BAR_WIDTH - fonts.measure(label) * 0.7) * share
            pen.write(x, top + _BAR + 13, label, INK, size=small)
        x, y = (MARGIN + _BAR_WIDTH + 8, 4 + _BAR - 1) if beside else (MARGIN, _BAR + 23)
        pen.write(x, top + y, what.unit, GREY, size=small)

    return Block(_BAR + (20 if beside else 30), paint)


def _texts(what: Shown) -> list[str]:
    """The caption: what was explained and the sums, by what, and what was done."""
    items = [f"{name}: {shortened(fact)}" for name, fact in what.facts.items()]
    lines = [items[:3], items[3:-1], items[-1:]]
    return [*("  ·  ".join(line) for line in lines), *what.notes]
