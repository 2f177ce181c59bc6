"""Relevance as a map of coloured cells: input × output, or token × layer."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lxt.views import colour
from lxt.views.canvas import GREY, MARGIN, SIZE, TALLEST, WIDTH, Block, Pen, Rectangle
from lxt.views.fonts import Fonts

LABEL, _NUMBER = 7.0, 6.0
_PITCH = LABEL * 1.25
"""Labels that are closer than this are thinned out."""
_SMALLEST = 1.2
"""A cell has so many points at least, and the page grows where they don't fit."""
_MOST_NUMBERS = 150
_LONGEST_ROW_LABEL, _LONGEST_COLUMN_LABEL = 120.0, 84.0
_TICK, _GAP = 3.0, 2.0
_FRAME = "#999999"


@dataclass(frozen=True)
class Table:
    """What a map shows. Numbers are written where cells have room for them."""

    levels: list[list[int]]
    """Steps on the colour map, ``[rows][columns]``."""
    numbers: list[list[str]]
    rows: list[str]
    columns: list[str]
    names: tuple[str, str]
    """What rows and columns are."""


def square_map(table: Table, fonts: Fonts) -> tuple[float, list[Block]]:
    """Draw square cells, all on one page; return its width and the map."""
    labels = _Labels(table, fonts)
    rows, columns = max(len(table.rows), 1), max(len(table.columns), 1)
    wide, tall = _room(labels)
    side = max(_SMALLEST, min(34.0, wide / columns, tall / rows))
    return _width(labels, side * columns), [labels.map(table, 0, rows, side, side)]


def banded_map(table: Table, fonts: Fonts) -> tuple[float, list[Block]]:
    """Draw cells as tall as lines of text, or less for all rows to be on one page.

    Where that is too little, rows go on in a second map below, and so on.
    """
    labels = _Labels(table, fonts)
    rows, columns = max(len(table.rows), 1), max(len(table.columns), 1)
    wide, tall = _room(labels)
    width = max(_SMALLEST, min(34.0, wide / columns))
    height = max(2.0, min(13.0, tall / rows))
    step = int(tall / height)
    bands = [labels.map(table, i, i + step, width, height) for i in range(0, rows, step)]
    return _width(labels, width * columns), bands


class _Labels:
    """The labels of a map's rows and columns, cut to what there is room for."""

    def __init__(self, table: Table, fonts: Fonts):
        self.fonts = fonts
        self.names = tuple(map(fonts.shown, table.names))
        self.left = self._longest(table.rows, _LONGEST_ROW_LABEL)
        self.left = max(self.left, *(self.width(name) for name in self.names)) + _TICK + _GAP
        self.top = self._longest(table.columns, _LONGEST_COLUMN_LABEL)
        self.top = max(self.top, 2 * _PITCH) + _TICK + _GAP

    def width(self, text: str) -> float:
        return self.fonts.measure(text) * LABEL / SIZE

    def fitted(self, label: str, room: float) -> str:
        return self.fonts.fitted(label, room * SIZE / LABEL)

    def _longest(self, labels: Sequence[str], most: float) -> float:
        # Measured are those with most characters, as all of ten thousand would take too long.
        longest = sorted(labels, key=len)[-50:]
        numbered = [f"{len(labels)} {label}" for label in longest]
        return max((self.width(self.fitted(label, most)) for label in numbered), default=0.0)

    def map(self, table: Table, begin: int, end: int, width: float, height: float) -> Block:
        """Return the rows from ``begin`` to ``end`` below the columns' labels."""
        count = len(table.rows[begin:end])
        paint = partial(self._paint, table, begin, end, width, height)
        return Block(self.top + max(count, 1) * height + _GAP, paint)

    def _paint(
        self,
        table: Table,
        begin: int,
        end: int,
        width: float,
        height: float,
        pen: Pen,
        above: float,
    ) -> None:
        left, top = MARGIN + self.left, above + self.top
        levels, numbers = table.levels[begin:end], table.numbers[begin:end]
        _paint_cells(pen, levels, left, top, width, height)
        _paint_frame(pen, left, top, width * len(table.columns), height * len(levels))
        self._paint_numbers(pen, levels, numbers, left, top, width, height)
        rows, columns = self.names
        pen.write(
            left - _TICK - _GAP - self.width(columns), top - _PITCH, columns, GREY, size=LABEL
        )
        pen.write(left - _TICK - _GAP - self.width(rows), top - _GAP, rows, GREY, size=LABEL)
        for i, label in _thinned(table.rows, height, begin, end):
            label = self.fitted(label, _LONGEST_ROW_LABEL)
            middle = top + (i - begin + 0.5) * height
            pen.box(left - _TICK, middle - 0.25, _TICK - 1, 0.5, _FRAME)
            x = left - _TICK - _GAP - self.width(label)
            pen.write(x, middle + LABEL * 0.36, label, size=LABEL)
        for i, label in _thinned(table.columns, width, 0, len(table.columns)):
            label = self.fitted(label, _LONGEST_COLUMN_LABEL)
            middle = left + (i + 0.5) * width
            pen.box(middle - 0.25, top - _TICK, 0.5, _TICK - 1, _FRAME)
            pen.write(middle + LABEL * 0.36, top - _TICK - _GAP, label, size=LABEL, up=True)

    def _paint_numbers(
        self,
        pen: Pen,
        levels: list[list[int]],
        numbers: list[list[str]],
        left: float,
        top: float,
        width: float,
        height: float,
    ) -> None:
        if not 0 < sum(map(len, numbers)) <= _MOST_NUMBERS:
            return
        part = _NUMBER / SIZE
        widest = max(self.fonts.measure(number) for row in numbers for number in row) * part
        if widest > width - 3 or height < _NUMBER + 2:
            return
        for i, (row, steps) in enumerate(zip(numbers, levels, strict=True)):
            for j, (number, step) in enumerate(zip(row, steps, strict=True)):
                x = left + (j + 0.5) * width - self.fonts.measure(number) * part / 2
                y = top + (i + 0.5) * height + _NUMBER * 0.36
                pen.write(x, y, number, colour.LIGHT.shade(step).foreground, size=_NUMBER)


def _room(labels: _Labels) -> tuple[float, float]:
    """Return what is left for cells on a page as high as A4, with title and caption."""
    return WIDTH - 2 * MARGIN - labels.left, TALLEST - 150 - labels.top


def _width(labels: _Labels, cells: float) -> float:
    return max(WIDTH / 2, 2 * MARGIN + labels.left + cells + LABEL)


def _paint_cells(
    pen: Pen, levels: list[list[int]], left: float, top: float, width: float, height: float
) -> None:
    """Fill the cells. White ones are the paper; equal ones beside each other are one rectangle.

    Where two rectangles meet, each covers a part of what is drawn there as one dot, and the paper
    would shine through. So each is first drawn larger, and then as it is.
    """
    runs: dict[int, list[Rectangle]] = defaultdict(list)
    for i, row in enumerate(levels):
        begin = 0
        for j in range(1, len(row) + 1):
            if j == len(row) or row[j] != row[begin]:
                if row[begin]:
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
            pen.boxes(larger, colour.LIGHT.shade(level).background)


def _paint_frame(pen: Pen, left: float, top: float, width: float, height: float) -> None:
    line = 0.5
    pen.boxes(
        [
            (left - line, top - line, width + 2 * line, line),
            (left - line, top + height, width + 2 * line, line),
            (left - line, top, line, height),
            (left + width, top, line, height),
        ],
        _FRAME,
    )


def _thinned(labels: Sequence[str], pitch: float, begin: int, end: int) -> list[tuple[int, str]]:
    """Return which labels there is room for; where some are left out, numbers count them."""
    step = next(
        step * ten
        for ten in (1, 10, 100, 1000, 10_000)
        for step in (1, 2, 5)
        if step * ten * pitch >= _PITCH
    )
    chosen = range(begin, min(end, len(labels)))
    if step == 1:
        return [(i, labels[i]) for i in chosen]
    return [(i, f"{i} {labels[i]}") for i in chosen if i % step == 0]
