"""Pictures as PDF, SVG or PNG: strips one below the other, on pages, painted in points.

Drawn by matplotlib without ``pyplot`` and whatever its settings are: nothing is shown, no figure
stays open, and it works in any thread.
"""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from lxt.errors import InvalidInput
from lxt.views.colour import contrast
from lxt.views.fonts import Fonts

Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)

# All in points, a 72nd of an inch.
WIDTH = 200 / 25.4 * 72
"""200 mm, as wide as the pages of LXT."""
TALLEST = 283 / 25.4 * 72
"""283 mm, which is to the width as A4 has it: such pages are printed without a change of scale."""
MARGIN = 9.0
SIZE = 10.0
"""Of the type; smaller text is given as a part of it."""
INK, GREY, PAPER = "#000000", "#555555", "#ffffff"

DPI = 200
_MOST_ACROSS = 60_000  # pixels in one direction; matplotlib can't draw 2¹⁶
_MOST_PIXELS = 200_000_000  # of four bytes
_LARGEST_PAGE = 14_400  # points; readers of PDF show no larger one

Rectangle = tuple[float, float, float, float]
"""Left, top, width and height."""


@dataclass(frozen=True)
class Block:
    """A strip of a picture: how tall it is, and what paints it below a given height."""

    height: float
    paint: Callable[["Pen", float], None]


@dataclass(frozen=True)
class Picture:
    """Blocks from top to bottom. In a PDF the body may go on over several pages."""

    body: Sequence[Block]
    head: Sequence[Block] = ()
    foot: Sequence[Block] = ()
    width: float = WIDTH
    title: str = ""
    """What the file says of itself to those who don't see it."""

    def on_one(self) -> "_Sheet":
        """Put all of it on one sheet."""
        return _Sheet([*self.head, *self.body, *self.foot], self.width)

    def on_pages(self) -> Iterator["_Sheet"]:
        """Fill pages up to ``TALLEST``, each with room for the foot, which the last one has."""
        room = TALLEST - 2 * MARGIN - _height(self.foot)
        page, begun = list(self.head), False
        for block in self.body:
            if begun and _height(page) + block.height > room:
                yield _Sheet(page, self.width)
                page = []
            page.append(block)
            begun = True
        yield _Sheet([*page, *self.foot], self.width)


def render(
    text: str,
    compose: Callable[[Fonts], Sequence[Picture]],
    *,
    format: Format,
    dpi: float | None = None,
) -> bytes:
    """Draw pictures into a file; SVG and PNG take exactly one, and a PDF at least one.

    Args:
        text: every character that is drawn, to choose the fonts for.
        compose: makes the pictures, given fonts to measure text with.
        format: of the file.
        dpi: pixels per inch of a PNG; by default 200, or fewer where matplotlib can't draw that.

    Raises:
        InvalidInput: a picture is larger than a page of PDF or matplotlib's pixels can be.

    """
    with _LOCK:
        fonts = Fonts(text + " |…", SIZE)
        # No PDF can hold PostScript outlines as a "Type 42" font; readers then show nothing.
        with _settings({"pdf.fonttype": 42 if fonts.hold_only_truetype else 3}):
            pictures = compose(fonts)
            if format == "pdf":
                return _pdf(pictures, fonts)
            (picture,) = pictures
            return _svg(picture, fonts) if format == "svg" else _png(picture, fonts, dpi)


class Pen:
    """Draws in points from the upper left corner."""

    def __init__(self, renderer: RendererBase, height: float, fonts: Fonts, *, nonbreaking: bool):
        self.renderer, self.height, self.fonts = renderer, height, fonts
        self.nonbreaking = nonbreaking
        self.scale = float(cast("float", renderer.points_to_pixels(1)))
        self.line = max(0.5, 1 / self.scale if isinstance(renderer, RendererAgg) else 0)
        """How wide a thin line is: a pixel at least, of which it would be none or one else."""
        self.gc: GraphicsContextBase = renderer.new_gc()
        self.gc.set_linewidth(0)
        self.gc.set_snap(True)  # edges lie between pixels, however many a path has of them

    def box(self, x: float, top: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle; nothing where it has no width."""
        if width > 0:
            self.boxes([(x, top, width, height)], colour)

    def boxes(self, rectangles: Sequence[Rectangle], colour: str) -> None:
        """Fill rectangles, all of one colour, as one path."""
        left, top, width, height = np.array(rectangles).T
        lower, upper = self.height - top - height, self.height - top
        corners = [(left, lower), (left + width, lower), (left + width, upper), (left, upper)]
        vertices = np.stack([np.stack(corner, -1) for corner in [*corners, corners[0]]], 1)
        codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(rectangles)
        rgb = to_rgb(colour)
        self.gc.set_foreground(rgb, isRGBA=False)
        place = Affine2D().scale(self.scale)
        self.renderer.draw_path(self.gc, Outline(vertices.reshape(-1, 2), codes), place, rgb)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = INK,
        *,
        size: float = SIZE,
        up: bool = False,
    ) -> None:
        """Write text from a point on its base line, to the right or upwards."""
        # SVG has no other spaces that last.
        text = text.replace(" ", "\N{NO-BREAK SPACE}") if self.nonbreaking else text
        self.gc.set_foreground(colour)
        font = self.fonts.properties.copy()
        font.set_size(size)
        down = y if self.renderer.flipy() else self.height - y
        angle = 90 if up else 0
        self.renderer.draw_text(self.gc, x * self.scale, down * self.scale, text, font, angle)


@dataclass(eq=False)
class _Sheet(Artist):
    """What is on one page."""

    blocks: list[Block]
    width: float

    def __post_init__(self) -> None:
        super().__init__()
        self.height = 2 * MARGIN + max(_height(self.blocks), SIZE)

    def in_figure(self, fonts: Fonts, *, dpi: float = 72, nonbreaking: bool = False) -> Figure:
        self.fonts, self.nonbreaking = fonts, nonbreaking
        size = (self.width / 72, self.height / 72)
        figure = Figure(figsize=size, dpi=dpi, frameon=False)
        figure.set_layout_engine("none")
        figure.add_artist(self)
        return figure

    def draw(self, renderer: RendererBase) -> None:
        pen = Pen(renderer, self.height, self.fonts, nonbreaking=self.nonbreaking)
        pen.box(0, 0, self.width, self.height, PAPER)
        top = MARGIN
        for block in self.blocks:
            block.paint(pen, top)
            top += block.height
        pen.gc.restore()


def readable_on(colour: str) -> str:
    """Return black or white, whichever can be read better on a colour."""
    return max(INK, PAPER, key=lambda ink: contrast(ink, colour))


def _height(blocks: Sequence[Block]) -> float:
    return sum(block.height for block in blocks)


def _pdf(pictures: Sequence[Picture], fonts: Fonts) -> bytes:
    file = io.BytesIO()
    metadata = {"Creator": "lxt", "CreationDate": None} | _title(pictures)
    with PdfPages(file, metadata=metadata) as pages:
        for sheet in (sheet for picture in pictures for sheet in picture.on_pages()):
            if max(sheet.width, sheet.height) > _LARGEST_PAGE:
                raise InvalidInput(
                    f"a page of {sheet.width:.0f} × {sheet.height:.0f} points is larger than PDF "
                    f"has them ({_LARGEST_PAGE}): take fewer tokens, targets or layers"
                )
            FigureCanvasPdf(sheet.in_figure(fonts)).print_pdf(pages)
    return file.getvalue()


def _svg(picture: Picture, fonts: Fonts) -> bytes:
    file = io.StringIO()
    figure = picture.on_one().in_figure(fonts, nonbreaking=True)
    metadata = {"Creator": "lxt", "Date": None} | _title([picture])
    FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
    return file.getvalue().encode()


def _png(picture: Picture, fonts: Fonts, dpi: float | None) -> bytes:
    sheet = picture.on_one()
    width, height = sheet.width / 72, sheet.height / 72
    most = min(_MOST_ACROSS / max(width, height), (_MOST_PIXELS / (width * height)) ** 0.5)
    if dpi is not None and dpi > most:
        raise InvalidInput(
            f"at dpi={dpi:g} this picture has {width * dpi:.0f} × {height * dpi:.0f} pixels, more "
            f"than can be drawn: at most dpi={most:.0f}, or write PDF or SVG"
        )
    file = io.BytesIO()
    figure = sheet.in_figure(fonts, dpi=min(DPI, most) if dpi is None else dpi)
    metadata = {"Software": "lxt"} | _title([picture])
    FigureCanvasAgg(figure).print_png(file, metadata=metadata)
    return file.getvalue()


def _title(pictures: Sequence[Picture]) -> dict[str, str]:
    return {"Title": pictures[0].title} if pictures[0].title else {}


_LOCK = threading.Lock()
_SETTINGS: dict[str, Any] = {
    "pdf.compression": 6,
    "pdf.use14corefonts": False,
    "pdf.inheritcolor": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lxt",
    "svg.id": None,
    "svg.image_inline": True,
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
