"""The strongest tokens as bars: red to the right for positive relevance, blue to the left."""

from collections.abc import Sequence
from functools import partial

from lxt.views import colour
from lxt.views.canvas import GREY, INK, MARGIN, PAPER, SIZE, WIDTH, Block, Pen
from lxt.views.fonts import Fonts
from lxt.views.scale import Scale
from lxt.views.summary import ShownToken

_ROW, _BAR = 14.0, 9.0
_TEXT, _SMALL = 9.0, 7.5
_LONGEST_LABEL = 170.0
_GAP = 5.0
_CUT = 2.0
_AXIS = "#999999"


def bar_rows(tokens: Sequence[ShownToken], scale: Scale, fonts: Fonts) -> list[Block]:
    """Return a row for each token: its position and text, its bar, and its relevance."""
    chart = _Chart(tokens, scale, fonts)
    return [Block(_ROW, partial(chart.paint, i)) for i in range(len(tokens))]


class _Chart:
    """Where things stand: positions, labels, numbers of negative bars, bars, other numbers."""

    def __init__(self, tokens: Sequence[ShownToken], scale: Scale, fonts: Fonts):
        self.tokens, self.scale, self.fonts = tokens, scale, fonts
        self.labels = [fonts.fitted(token.alone, _LONGEST_LABEL * SIZE / _TEXT) for token in tokens]
        parts = [scale.part(token.relevance) for token in tokens]
        lowest, highest = min([0.0, *parts]), max([0.0, *parts])
        positions = [str(token.position) for token in tokens]
        self.positions_end = MARGIN + self._widest(positions, _SMALL)
        self.labels_end = self.positions_end + _GAP + self._widest(self.labels, _TEXT)
        number = self._widest([token.number for token in tokens], _SMALL) + _GAP
        left = self.labels_end + _GAP + (number if lowest else 0.0)
        right = WIDTH - MARGIN - (number if highest else 0.0)
        self.per_part = (right - left) / (highest - lowest or 1.0)
        self.zero = left - lowest * self.per_part

    def paint(self, i: int, pen: Pen, top: float) -> None:
        """Paint a row."""
        token, base = self.tokens[i], top + _ROW / 2 + _TEXT * 0.36
        self._write_before(pen, self.positions_end, base, str(token.position), GREY, _SMALL)
        self._write_before(pen, self.labels_end, base, self.labels[i], INK, _TEXT)
        length = self.scale.part(token.relevance) * self.per_part
        sign = -1 if token.relevance < 0 else 1
        shade = colour.LIGHT.negative if sign < 0 else colour.LIGHT.positive
        over = top + (_ROW - _BAR) / 2
        pen.box(self.zero + min(length, 0.0), over, abs(length), _BAR, shade)
        end = self.zero + length
        if abs(token.relevance) > self.scale.end:  # a gap shows that the bar is cut short
            pen.box(end - sign * 4 * _CUT - _CUT / 2, over, _CUT, _BAR, PAPER)
        pen.box(self.zero - pen.line / 2, top, pen.line, _ROW, _AXIS)
        if sign < 0:
            self._write_before(pen, end - _GAP + 1, base, token.number, INK, _SMALL)
        else:
            pen.write(end + _GAP - 1, base, token.number, size=_SMALL)

    def _write_before(
        self, pen: Pen, right: float, base: float, text: str, ink: str, size: float
    ) -> None:
        pen.write(right - self._widest([text], size), base, text, ink, size=size)

    def _widest(self, texts: Sequence[str], size: float) -> float:
        return max((self.fonts.measure(text) for text in texts), default=0.0) * size / SIZE
