"""Text as a heat map on a page, as PDF, SVG or PNG."""

from collections.abc import Sequence
from functools import partial

from lxt.tokens import printable
from lxt.views.canvas import (
    FORMATS,
    MARGIN,
    TALLEST,
    WIDTH,
    Block,
    Format,
    Pen,
    Picture,
    readable_on,
    render,
)
from lxt.views.caption import Legend, legend_block
from lxt.views.flow import Piece, flow
from lxt.views.fonts import Fonts

__all__ = ["FORMATS", "TALLEST", "WIDTH", "Format", "Legend", "draw", "running_text"]

_LINE = 15.5
_ASCENT, _DESCENT = 9.4, 3.1  # of the background, from the base line
_BETWEEN = 0.5  # so much white tells neighbouring backgrounds apart


def draw(
    tokens: Sequence[str],
    colours: Sequence[str],
    *,
    format: Format = "pdf",
    legend: Legend | None = None,
) -> bytes:
    r"""Draw tokens as running text, each on its colour.

    The page is 200 mm wide and as tall as the text, to be put into a paper as it is. A PDF goes on
    to a second page beyond 283 mm, as a page without end can't be printed or leafed through; SVG
    and PNG have no pages and grow. The text in PDF and SVG is text: it can be searched and copied.

    Characters are taken from DejaVu Sans, which comes with matplotlib, and then from the installed
    fonts. One that no font has is written by its number, ``\U0001F680``; bitmap fonts, such as
    those of most colour emoji, don't count. What is invisible is shown as ``lxt.tokens.printable``
    has it. The same input gives the same bytes, with the same fonts and version of matplotlib.

    Args:
        tokens: texts, that read one after the other are the text.
        colours: of each token, as ``#rrggbb``; the text on it is black or white, by contrast.
        format: ``"pdf"``, ``"svg"`` or ``"png"`` (200 dots per inch, or fewer where the picture
            would have more pixels than can be drawn).
        legend: a scale below the text, none by default.

    Returns:
        The file's content.

    """
    shown = "".join(printable(token) for token in tokens)
    labels = "".join(legend.labels) if legend else ""

    def compose(fonts: Fonts) -> list[Picture]:
        foot = [legend_block(legend, fonts)] if legend else []
        return [Picture(running_text(tokens, colours, fonts), foot=foot)]

    return render(shown + labels, compose, format=format)


def running_text(tokens: Sequence[str], colours: Sequence[str], fonts: Fonts) -> list[Block]:
    """Return the lines of a text, each token on its colour."""
    width = WIDTH - 2 * MARGIN
    lines = flow(tokens, width, fonts.measure, lambda text: fonts.shown(printable(text)))
    return [Block(_LINE, partial(_paint, line, colours)) for line in lines]


def _paint(line: list[Piece], colours: Sequence[str], pen: Pen, top: float) -> None:
    for piece in line:
        left, width = piece.box
        between = min(_BETWEEN, width / 4)
        colour = colours[piece.token]
        pen.box(MARGIN + left, top, width - between, _ASCENT + _DESCENT, colour)
    for piece in line:
        ink = readable_on(colours[piece.token])
        pen.write(MARGIN + piece.x, top + _ASCENT, piece.text, ink)
