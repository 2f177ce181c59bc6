"""The strongest tokens as bars, to the right for positive relevance, to the left for negative.

Of one explanation a bar is red or blue, by its sign; of several it has the colour of its
explanation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lxt.views import colour
from lxt.views.canvas import GREY, INK, MARGIN, PAPER, SIZE, WIDTH, Block, Pen
from lxt.views.fonts import Fonts
from lxt.views.scale import Scale
from lxt.views.summary import ShownToken

_ROW, _BAR = 14.0, 9.0
_GROUPED_PITCH, _GROUPED_BAR, _BETWEEN_GROUPS = 8.0, 7.0, 5.0
_TEXT, _SMALL, _SMALLEST = 9.0, 7.5, 6.5
_LONGEST_LABEL = 170.0
_GAP = 5.0
_CUT = 2.0
_AXIS = "#999999"


@dataclass(frozen=True)
class Bar:
    """One relevance; its number is written at its end."""

    relevance: float
    number: str
    scale: Scale
    colour: str


@dataclass(frozen=True)
class Group:
    """The bars of one token."""

    position: int
    label: str
    bars: Sequence[Bar]


def bar_rows(tokens: Sequence[ShownToken], scale: Scale, fonts: Fonts) -> list[Block]:
    """Return a row for each token: its position and text, its bar, and its relevance."""
    signs = colour.LIGHT.negative, colour.LIGHT.positive
    return grouped_rows(
        [
            Group(t.position, t.alone, [Bar(t.relevance, t.number, scale, signs[t.relevance >= 0])])
            for t in tokens
        ],
        fonts,
    )


def grouped_rows(groups: Sequence[Group], fonts: Fonts) -> list[Block]:
    """Return a row for each token, with its bars one below the other; all have as many."""
    chart = _Chart(groups, fonts)
    return [Block(chart.row, partial(chart.paint, group)) for group in groups]


class _Chart:
    """Where things stand: positions, labels, numbers of negative bars, bars, other numbers."""

    def __init__(self, groups: Sequence[Group], fonts: Fonts):
        self.fonts = fonts
        bars = [bar for group in groups for bar in group.bars]
        each = len(groups[0].bars) if groups else 1
        self.pitch, self.bar, self.small = _ROW, _BAR, _SMALL
        self.row = _ROW
        if each > 1:
            self.pitch, self.bar, self.small = _GROUPED_PITCH, _GROUPED_BAR, _SMALLEST
            self.row = each * _GROUPED_PITCH + _BETWEEN_GROUPS
        self.longest = _LONGEST_LABEL * SIZE / _TEXT
        labels = [fonts.fitted(group.label, self.longest) for group in groups]
        parts = [bar.scale.part(bar.relevance) for bar in bars]
        lowest, highest = min([0.0, *parts]), max([0.0, *parts])
        positions = [str(group.position) for group in groups]
        self.positions_end = MARGIN + self._widest(positions, _SMALL)
        self.labels_end = self.positions_end + _GAP + self._widest(labels, _TEXT)
        number = self._widest([bar.number for bar in bars], self.small) + _GAP
        left = self.labels_end + _GAP + (number if lowest else 0.0)
        right = WIDTH - MARGIN - (number if highest else 0.0)
        self.per_part = (right - left) / (highest - lowest or 1.0)
        self.zero = left - lowest * self.per_part

    def paint(self, group: Group, pen: Pen, top: float) -> None:
        """Paint a row."""
        base, label = (
            top + self.row / 2 + _TEXT * 0.36,
            self.fonts.fitted(group.label, self.longest),
        )
        self._write_before(pen, self.positions_end, base, str(group.position), GREY, _SMALL)
        self._write_before(pen, self.labels_end, base, label, INK, _TEXT)
        pitch = self.pitch
        first = top + (self.row - pitch * len(group.bars)) / 2
        for i, bar in enumerate(group.bars):
            self._paint_bar(bar, pen, first + i * pitch)
        pen.box(self.zero - pen.line / 2, top, pen.line, self.row, _AXIS)

    def _paint_bar(self, bar: Bar, pen: Pen, top: float) -> None:
        length = bar.scale.part(bar.relevance) * self.per_part
        sign = -1 if bar.relevance < 0 else 1
        over = top + (self.pitch - self.bar) / 2
        pen.box(self.zero + min(length, 0.0), over, abs(length), self.bar, bar.colour)
        end, base = self.zero + length, top + self.pitch / 2 + self.small * 0.36
        if abs(bar.relevance) > bar.scale.end:  # a gap shows that the bar is cut short
            pen.box(end - sign * 4 * _CUT - _CUT / 2, over, _CUT, self.bar, PAPER)
        if sign < 0:
            self._write_before(pen, end - _GAP + 1, base, bar.number, INK, self.small)
        else:
            pen.write(end + _GAP - 1, base, bar.number, size=self.small)

    def _write_before(
        self, pen: Pen, right: float, base: float, text: str, ink: str, size: float
    ) -> None:
        pen.write(right - self._widest([text], size), base, text, ink, size=size)

    def _widest(self, texts: Sequence[str], size: float) -> float:
        return max((self.fonts.measure(text) for text in texts), default=0.0) * size / SIZE
