"""Explanations of pictures in a terminal: what the model saw, as coarse blocks of relevance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.text import Text
from torch import Tensor

from lxt.geometry import Geometry
from lxt.views import colour, marks
from lxt.views.bars import Entry, Listing
from lxt.views.image_summary import block_sizes, facts, patches_of, place
from lxt.views.legible import Fitted
from lxt.views.marks import Scale
from lxt.views.summary import number_format, percentage
from lxt.views.terminal import Facts, printed

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

STRONGEST = 8
"""So many of the strongest pixels or patches are listed."""

_WIDEST, _TALLEST = 72, 24
"""Columns and lines of the blocks: they are to be seen at once."""
_FRAME = len("││")
_UPPER, _LOWER = "▀", "▄"


def text(explanation: "ImageExplanation") -> str:
    """Return what ``print`` shows."""
    return printed(render(explanation))


def render(explanation: "ImageExplanation") -> RenderableType:
    """Return the explanation for a console."""
    return Fitted(_Picture(explanation))


@dataclass(frozen=True)
class _Picture:
    explanation: "ImageExplanation"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        explanation = self.explanation
        yield Facts(facts(explanation))
        yield Text()
        yield _Blocks(explanation)
        readable = explanation.by_patches(block_sizes(explanation)[0])
        patches = [patch for patch in readable.top(STRONGEST) if patch.relevance]
        if not patches:
            return
        note = f"the {len(patches)} of {readable.relevance.numel()} {patches_of(readable.cell)} "
        yield Text()
        yield Text(note + "with the largest |relevance|", style="dim", overflow="fold")
        largest = abs(patches[0].relevance)
        absolute = readable.relevance.double().abs().sum().item()
        number = number_format(largest)
        entries = [
            Entry(
                f"{patch.row}, {patch.column}",
                place(patch.box),
                patch.relevance,
                number(patch.relevance),
                colour.level_of(patch.relevance, largest),
                percentage(abs(patch.relevance) / absolute),
            )
            for patch in patches
        ]
        yield Listing(entries, largest, "row, column", named="x × y in the picture")


@dataclass(frozen=True)
class _Blocks:
    """Sums of relevance, as squares of colour, two in a character, or of marks."""

    explanation: "ImageExplanation"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = marks.is_coloured(console)
        halves = coloured and _has(options.encoding, _UPPER + _LOWER)
        room = max(min(options.max_width, _WIDEST) - _FRAME, 1)
        # A character is about twice as high as it is wide.
        wide, high = (room, 2 * _TALLEST) if halves else (max(room // 2, 1), _TALLEST)
        sums, repeated, note = coarse(self.explanation, high, wide)
        scale = sums.abs().max().item()
        yield Text(note, style="dim", overflow="fold")
        levels = [[colour.level_of(value, scale) for value in row] for row in sums.tolist()]
        down, across = repeated
        levels = [[level for level in row for _ in range(across)] for row in levels]
        levels = [row for row in levels for _ in range(down)]
        yield from _in_halves(levels) if halves else _in_marks(levels, room, coloured=coloured)
        yield Scale(number_format(scale)(scale).removeprefix("+"), scale)


def coarse(
    explanation: "ImageExplanation", high: int, wide: int
) -> tuple[Tensor, tuple[int, int], str]:
    """Return sums over blocks that are as wide and high in the picture, of so many at most.

    Args:
        explanation: of pixels or patches.
        high: how many squares there is room for below each other.
        wide: how many there is room for beside each other.

    Returns:
        float64 ``[rows, columns]``; how many squares each of them takes, down and across; and
        words for what each is.

    """
    top, left, bottom, right = explanation.geometry.box
    side = max((bottom - top) / high, (right - left) / wide)
    grid = rows, columns = tuple(explanation.relevance.shape)
    squares = [max(round((bottom - top) / side), 1), max(round((right - left) / side), 1)]
    size = [_blocks(cells, room) for cells, room in zip(grid, squares, strict=True)]
    whole = Geometry.whole(grid, grid)
    vertical, horizontal = whole.shares(grid, size)
    sums = vertical @ explanation.relevance.double() @ horizontal.T
    repeated = squares[0] // size[0], squares[1] // size[1]
    height, width = (
        pixels / n for pixels, n in zip(explanation.geometry.pixels, size, strict=True)
    )
    what = "relevance" if tuple(size) == (rows, columns) else "sums of relevance"
    return (
        sums,
        repeated,
        f"{what} of {height:.3g} × {width:.3g} pixels of the model, where they lie",
    )


def _blocks(cells: int, room: int) -> int:
    """How many blocks stand for cells: as many, or what divides them, or as there is room for."""
    if cells <= room:
        return cells
    dividing = next(n for n in range(room, 0, -1) if cells % n == 0)
    return dividing if dividing >= 0.6 * room else room


def _in_halves(levels: list[list[int]]) -> RenderResult:
    width = len(levels[0])
    for row in range(0, len(levels), 2):
        lower = levels[row + 1] if row + 1 < len(levels) else [0] * width
        line = Text(no_wrap=True).append("│", "dim")
        for above, below in zip(levels[row], lower, strict=True):
            line.append(*_half(above, below))
        line.append("│", "dim")
        yield line


def _half(above: int, below: int) -> tuple[str, Style]:
    over, under = marks.style(above).bgcolor, marks.style(below).bgcolor
    if over is None and under is None:
        return " ", Style.null()
    if over is None:
        return _LOWER, Style(color=under)
    return _UPPER, Style(color=over, bgcolor=under)


def _in_marks(levels: list[list[int]], room: int, *, coloured: bool) -> RenderResult:
    columns = 2 if room >= 2 * len(levels[0]) else 1
    for row in levels:
        line = Text(no_wrap=True).append("│", "dim")
        for level in row:
            line.append(*marks.cell(level, columns, coloured=coloured))
        line.append("│", "dim")
        yield line


def _has(encoding: str, glyphs: str) -> bool:
    try:
        glyphs.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
