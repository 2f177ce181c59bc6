"""Relevance as a map of coloured cells: input × output, or token × layer."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lxt.views import colour
from lxt.views.canvas import GREY, MARGIN, SIZE, TALLEST, WIDTH, Block, Pen, Rectangle
from lxt.views.fonts import Fonts

LABEL, _NUMBER = 7.0, 6.0
_PITCH = LABEL * 1.25
"""Labels that are closer than this are thinned out."""
_SMALLEST, _LARGEST = 1.2, 34.0
"""Of a cell's sides, in points; the page grows where the smallest don't fit."""
_SHALLOWEST, _TALLEST = 1.6, 13.0
"""Of a cell's height where it need not be square."""
_NARROWEST_WRAPPED, _TALLEST_WRAPPED = 11.5, 17.0
"""Of a cell's width where columns go on below, and of its height there."""
_RULE = 1.2
"""How thick the line is above rows that stand apart."""
_AROUND = 120.0
"""So much of a page's height is left for title, legend and caption."""
MOST_NUMBERS = 150
"""In a map of more cells they would be in each other's way."""
_LONGEST_ROW_LABEL, _LONGEST_COLUMN_LABEL = 120.0, 84.0
_TICK, _GAP = 3.0, 2.0
_ABOVE_ROWS = 6.0
"""Where the names of rows and columns stand: clear of the first row's label."""
_FRAME = "#999999"


@dataclass(frozen=True)
class Table:
    """What a map shows; numbers, where its cells have room for them."""

    levels: list[list[int]]
    """Steps on the colour map, ``[rows][columns]``."""
    numbers: list[list[str]]
    """Of the same shape; or empty."""
    rows: list[str]
    columns: list[str]
    names: tuple[str, str]
    """What rows and columns are."""
    columns_counted: bool = True
    """Whether columns are numbered where not all of their labels fit."""
    apart: int = 0
    """So many of the last rows stand apart from those above."""

    def part(self, begin: int, end: int) -> "Table":
        """Return some of the columns."""
        return replace(
            self,
            levels=[row[begin:end] for row in self.levels],
            numbers=[row[begin:end] for row in self.numbers],
            columns=self.columns[begin:end],
        )


def square_map(table: Table, fonts: Fonts) -> tuple[float, list[Block]]:
    """Draw square cells, all on one page; return its width and the map."""
    rows, columns = max(len(table.rows), 1), max(len(table.columns), 1)

    def sides(wide: float, tall: float) -> tuple[float, float]:
        side = max(_SMALLEST, min(_LARGEST, wide / columns, tall / rows))
        return side, side

    layout = _Layout(table, fonts, sides)
    return layout.page_width, [layout.map(0, rows)]


def banded_map(table: Table, fonts: Fonts) -> tuple[float, list[Block]]:
    """Draw cells as tall as lines of text, or less for all rows to be on one page.

    Where that is too little, rows go on in a second map below, and so on.
    """
    rows, columns = max(len(table.rows), 1), max(len(table.columns), 1)

    def sides(wide: float, tall: float) -> tuple[float, float]:
        width = max(_SMALLEST, min(_LARGEST, wide / columns))
        return width, max(_SHALLOWEST, min(_TALLEST, tall / rows))

    layout = _Layout(table, fonts, sides)
    bands = math.ceil(rows * layout.height / layout.room[1] - 1e-9)  # one, if they just fit
    each = math.ceil(rows / bands)
    return layout.page_width, [layout.map(i, i + each) for i in range(0, rows, each)]


def wrapped_map(table: Table, fonts: Fonts) -> tuple[float, list[Block]]:
    """Draw few rows of columns that are wide enough for all of their labels.

    Where columns are too many for the page, the map goes on below, as lines of text do.
    """
    rows, columns = max(len(table.rows), 1), max(len(table.columns), 1)

    def sides(width: float, tall: float) -> tuple[float, float]:
        return width, max(_SHALLOWEST, min(_TALLEST_WRAPPED, tall / rows))

    room = _Layout(table, fonts, lambda _, tall: sides(_NARROWEST_WRAPPED, tall)).room[0]
    most = max(int(room / _NARROWEST_WRAPPED), 1)
    each = math.ceil(columns / math.ceil(columns / most))
    width = min(_LARGEST, room / each)
    layouts = [
        _Layout(table.part(begin, begin + each), fonts, lambda _, tall: sides(width, tall))
        for begin in range(0, columns, each)
    ]
    page_width = max(layout.page_width for layout in layouts)
    return page_width, [layout.map(0, rows) for layout in layouts]


class _Layout:
    """How large cells are, which labels there is room for, and how wide these are."""

    def __init__(
        self, table: Table, fonts: Fonts, sides: Callable[[float, float], tuple[float, float]]
    ):
        self.table, self.fonts = table, fonts
        self.names = [fonts.shown(name) for name in table.names]
        # Which labels are shown depends on the cells, and what is left for these on the labels: it
        # is asked first for what is left if these are as long as they may be.
        self.left, self.top = _LONGEST_ROW_LABEL, _LONGEST_COLUMN_LABEL
        for _ in range(2):
            self.room = (WIDTH - 2 * MARGIN - self.left, TALLEST - _AROUND - self.top)
            self.width, self.height = sides(*self.room)
            self.rows = _thinned(table.rows, self.height, counted=True)
            self.columns = _thinned(table.columns, self.width, counted=table.columns_counted)
            left = self._longest(self.rows, _LONGEST_ROW_LABEL)
            self.left = max(left, *map(self._width, self.names)) + _TICK + _GAP
            top = self._longest(self.columns, _LONGEST_COLUMN_LABEL)
            self.top = max(top + _TICK + _GAP, _ABOVE_ROWS + _PITCH + LABEL)
        cells = self.width * len(table.columns)
        self.page_width = max(WIDTH / 2, 2 * MARGIN + self.left + cells + LABEL)

    def _longest(self, labels: Sequence[tuple[int, str]], most: float) -> float:
        # Measured are those with most characters, as ten thousand would take too long.
        longest = sorted((label for _, label in labels), key=len)[-50:]
        return max((self._width(self._fitted(label, most)) for label in longest), default=0.0)

    def _width(self, text: str) -> float:
        return self.fonts.measure(text) * LABEL / SIZE

    def _fitted(self, label: str, room: float) -> str:
        return self.fonts.fitted(label, room * SIZE / LABEL)

    def map(self, begin: int, end: int) -> Block:
        """Return the rows from ``begin`` to ``end`` below the columns' labels."""
        count = len(self.table.rows[begin:end])
        paint = partial(self._paint, begin, end)
        return Block(self.top + max(count, 1) * self.height + _GAP, paint)

    def _paint(self, begin: int, end: int, pen: Pen, above: float) -> None:
        left, top, width, height = MARGIN + self.left, above + self.top, self.width, self.height
        levels, numbers = self.table.levels[begin:end], self.table.numbers[begin:end]
        _paint_cells(pen, levels, left, top, width, height)
        _paint_frame(pen, left, top, width * len(self.table.columns), height * len(levels))
        apart = len(self.table.rows) - self.table.apart
        if begin < apart < end and self.table.apart:
            over = top + (apart - begin) * height - _RULE / 2
            pen.box(left, over, width * len(self.table.columns), _RULE, _FRAME)
        self._paint_numbers(pen, levels, numbers, left, top)
        for name, base in zip(
            self.names, (top - _ABOVE_ROWS, top - _ABOVE_ROWS - _PITCH), strict=True
        ):
            pen.write(left - _TICK - _GAP - self._width(name), base, name, GREY, size=LABEL)
        for i, label in self.rows:
            if begin <= i < end:
                label = self._fitted(label, self.left - _TICK - _GAP)
                middle = top + (i - begin + 0.5) * height
                pen.box(left - _TICK, middle - pen.line / 2, _TICK - 1, pen.line, _FRAME)
                x = left - _TICK - _GAP - self._width(label)
                pen.write(x, middle + LABEL * 0.36, label, size=LABEL)
        for i, label in self.columns:
            label = self._fitted(label, self.top - _TICK - _GAP)
            middle = left + (i + 0.5) * width
            pen.box(middle - pen.line / 2, top - _TICK, pen.line, _TICK - 1, _FRAME)
            pen.write(middle + LABEL * 0.36, top - _TICK - _GAP, label, size=LABEL, up=True)

    def _paint_numbers(
        self,
        pen: Pen,
        levels: list[list[int]],
        numbers: list[list[str]],
        left: float,
        top: float,
    ) -> None:
        part = _NUMBER / SIZE
        widths = [self.fonts.measure(number) for row in numbers for number in row]
        widest = max(widths, default=0.0) * part
        if widest > self.width - 3 or self.height < _NUMBER + 2:
            return
        for i, (row, steps) in enumerate(zip(numbers, levels, strict=False)):  # or no numbers
            for j, (number, step) in enumerate(zip(row, steps, strict=True)):
                x = left + (j + 0.5) * self.width - self.fonts.measure(number) * part / 2
                y = top + (i + 0.5) * self.height + _NUMBER * 0.36
                pen.write(x, y, number, colour.LIGHT.shade(step).foreground, size=_NUMBER)


def _paint_cells(
    pen: Pen, levels: list[list[int]], left: float, top: float, width: float, height: float
) -> None:
    """Fill the cells; equal ones beside each other are one rectangle.

    Where two rectangles meet, each covers a part of what is drawn there as one dot, and the paper
    would shine through. So each is first drawn larger, and then as it is.
    """
    runs: dict[int, list[Rectangle]] = defaultdict(list)
    for i, row in enumerate(levels):
        begin = 0
        for j in range(1, len(row) + 1):
            if j == len(row) or row[j] != row[begin]:
                x, y = left + begin * width, top + i * height
                runs[row[begin]].append((x, y, (j - begin) * width, height))
                begin = j
    right, bottom = left + max(map(len, levels), default=0) * width, top + len(levels) * height
    for spread in (min(1.0, width, height), 0.0):
        for level, rectangles in sorted(runs.items(), key=lambda item: abs(item[0])):
            larger = [
                (x, y, min(w + spread, right - x), min(h + spread, bottom - y))
                for x, y, w, h in rectangles
            ]
            if level or not spread:
                pen.boxes(larger, colour.LIGHT.shade(level).background)


def _paint_frame(pen: Pen, left: float, top: float, width: float, height: float) -> None:
    line = pen.line
    pen.boxes(
        [
            (left - line, top - line, width + 2 * line, line),
            (left - line, top + height, width + 2 * line, line),
            (left - line, top, line, height),
            (left + width, top, line, height),
        ],
        _FRAME,
    )


def _thinned(labels: Sequence[str], pitch: float, *, counted: bool) -> list[tuple[int, str]]:
    """Return which labels there is room for; with numbers if some are left out and they count."""
    steps = (step * ten for ten in (1, 10, 100, 1000, 10_000) for step in (1, 2, 5))
    step = next(step for step in steps if step * pitch >= _PITCH)
    chosen = range(0, len(labels), step)
    return [(i, f"{i} {labels[i]}" if counted and step > 1 else labels[i]) for i in chosen]
