"""Text as a heat map on a page, as PDF, SVG or PNG: the one way from tokens to a picture.

Drawn by matplotlib without ``pyplot`` and whatever its settings are: nothing is shown, no figure
stays open, and it works in any thread.
"""

import contextlib
import functools
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from lxt.tokens import printable
from lxt.views.colour import contrast
from lxt.views.flow import Piece, flow
from lxt.views.fonts import Fonts

Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)

# All in points, a 72nd of an inch.
WIDTH = 200 / 25.4 * 72
"""200 mm, as wide as the pages of LXT."""
TALLEST = 283 / 25.4 * 72
"""283 mm, which is to the width as A4 has it: such pages are printed without a change of scale."""
_MARGIN = 9.0
_SIZE = 10.0
_LINE = 15.5
_ASCENT, _DESCENT = 9.4, 3.1  # of the background, from the base line
_BETWEEN = 0.5  # so much white tells neighbouring backgrounds apart
_LEGEND = 22.0
_DPI = 200
_MOST_PIXELS = 60_000  # in one direction; matplotlib can't draw 2¹⁶

_INK = "#000000"


@dataclass(frozen=True)
class Legend:
    """A scale of colours from the lowest value to the highest, with labels at even distances."""

    colours: Sequence[str]
    labels: Sequence[str]


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
        format: ``"pdf"``, ``"svg"`` or ``"png"`` (200 dots per inch).
        legend: a scale below the text, none by default.

    Returns:
        The file's content.

    """
    with _LOCK:
        shown = "".join(printable(token) for token in tokens)
        labels = "".join(legend.labels) if legend else ""
        fonts = Fonts(shown + labels + " |", _SIZE)
        lines = flow(
            tokens,
            WIDTH - 2 * _MARGIN,
            fonts.measure,
            lambda text: fonts.shown(printable(text)),
        )
        sheet = functools.partial(_Sheet, fonts=fonts, colours=colours)
        # No PDF can hold PostScript outlines as a "Type 42" font; readers then show nothing.
        with _settings({"pdf.fonttype": 42 if fonts.hold_only_truetype else 3}):
            return _WRITERS[format](sheet, lines, legend)


@dataclass(eq=False)
class _Sheet(Artist):
    """What is on one page."""

    lines: list[list[Piece]]
    legend: Legend | None
    fonts: Fonts
    colours: Sequence[str]
    nonbreaking: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.content = max(len(self.lines), 1) * _LINE - (_LINE - _ASCENT - _DESCENT)
        self.height = 2 * _MARGIN + self.content + (_LEGEND if self.legend else 0)

    def figure_of(self, dpi: float) -> Figure:
        size = (WIDTH / 72, self.height / 72)
        figure = Figure(figsize=size, dpi=dpi, frameon=False)
        figure.set_layout_engine("none")
        figure.add_artist(self)
        return figure

    def draw(self, renderer: RendererBase) -> None:
        pen = _Pen(renderer, self.height, self.fonts, nonbreaking=self.nonbreaking)
        pen.box(0, 0, WIDTH, self.height, "#ffffff")
        for top, piece in self._placed():
            left, width = piece.box
            between = min(_BETWEEN, width / 4)
            height = _ASCENT + _DESCENT
            pen.box(_MARGIN + left, top, width - between, height, self.colours[piece.token])
        for top, piece in self._placed():
            ink = max(_INK, "#ffffff", key=lambda c: contrast(c, self.colours[piece.token]))
            pen.write(_MARGIN + piece.x, top + _ASCENT, piece.text, ink)
        if self.legend:
            self._draw_legend(pen, self.legend)
        pen.gc.restore()

    def _placed(self) -> Iterator[tuple[float, Piece]]:
        for i, line in enumerate(self.lines):
            for piece in line:
                yield _MARGIN + i * _LINE, piece

    def _draw_legend(self, pen: "_Pen", legend: Legend) -> None:
        length, left, top = 100.0, _MARGIN, _MARGIN + self.content + 7
        step = length / len(legend.colours)
        for i, colour in enumerate(legend.colours):
            # Each reaches to the end, under the next: seams would show otherwise.
            pen.box(left + i * step, top, length - i * step, 5, colour)
        for i, label in enumerate(legend.labels):
            width = self.fonts.measure(label) * 0.7
            x = left + length * i / max(len(legend.labels) - 1, 1)
            pen.write(x - width / 2, top + 13, label, _INK, size=_SIZE * 0.7)


class _Pen:
    """Draws in points from the upper left corner."""

    def __init__(self, renderer: RendererBase, height: float, fonts: Fonts, *, nonbreaking: bool):
        self.renderer, self.height, self.fonts = renderer, height, fonts
        self.nonbreaking = nonbreaking
        self.scale = float(cast("float", renderer.points_to_pixels(1)))
        self.gc: GraphicsContextBase = renderer.new_gc()
        self.gc.set_linewidth(0)

    def box(self, x: float, top: float, width: float, height: float, colour: str) -> None:
        if width <= 0:
            return
        place = Affine2D().scale(width, height).translate(x, self.height - top - height)
        rgb = to_rgb(colour)
        self.gc.set_foreground(rgb, isRGBA=False)
        outline = Outline.unit_rectangle()
        self.renderer.draw_path(self.gc, outline, place.scale(self.scale), rgb)

    def write(self, x: float, y: float, text: str, colour: str, *, size: float = _SIZE) -> None:
        # SVG has no other spaces that last.
        text = text.replace(" ", "\N{NO-BREAK SPACE}") if self.nonbreaking else text
        self.gc.set_foreground(colour)
        properties = self.fonts.properties.copy()
        properties.set_size(size)
        down = y if self.renderer.flipy() else self.height - y
        self.renderer.draw_text(self.gc, x * self.scale, down * self.scale, text, properties, 0)


_MakeSheet = functools.partial[_Sheet]


def _pdf(sheet: _MakeSheet, lines: list[list[Piece]], legend: Legend | None) -> bytes:
    room = TALLEST - 2 * _MARGIN - (_LEGEND if legend else 0)
    count = int((room + _LINE - _ASCENT - _DESCENT) // _LINE)
    file = io.BytesIO()
    with PdfPages(file, metadata={"Creator": "lxt", "CreationDate": None}) as pages:
        for i in range(0, max(len(lines), 1), count):
            part = lines[i : i + count]
            last = i + count >= len(lines)
            figure = sheet(part, legend if last else None).figure_of(72)
            FigureCanvasPdf(figure).print_pdf(pages)
    return file.getvalue()


def _svg(sheet: _MakeSheet, lines: list[list[Piece]], legend: Legend | None) -> bytes:
    file = io.StringIO()
    figure = sheet(lines, legend, nonbreaking=True).figure_of(72)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Creator": "lxt", "Date": None})
    return file.getvalue().encode()


def _png(sheet: _MakeSheet, lines: list[list[Piece]], legend: Legend | None) -> bytes:
    file = io.BytesIO()
    drawing = sheet(lines, legend)
    dpi = min(_DPI, _MOST_PIXELS * 72 / drawing.height)
    FigureCanvasAgg(drawing.figure_of(dpi)).print_png(file, metadata={"Software": "lxt"})
    return file.getvalue()


_WRITERS = {"pdf": _pdf, "svg": _svg, "png": _png}

_LOCK = threading.Lock()
_SETTINGS: dict[str, Any] = {
    "pdf.compression": 6,
    "pdf.use14corefonts": False,
    "pdf.inheritcolor": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lxt",
    "svg.id": None,
    "text.hinting": "no_hinting",
    "text.antialiased": True,
}


@contextlib.contextmanager
def _settings(more: dict[str, Any]) -> Iterator[None]:
    # Backends read these from nowhere else. `rc_context` would put back all settings, and so undo
    # what another thread changes meanwhile.
    current = cast("dict[str, Any]", mpl.rcParams)
    settings = {key: value for key, value in _SETTINGS.items() if key in current} | more
    before = {key: current[key] for key in settings}
    try:
        current.update(settings)
        yield
    finally:
        current.update(before)
