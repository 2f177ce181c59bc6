"""Matrices in a terminal: input × output, and token × layer, as blocks that shrink to the width."""

import math
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import Tensor

from lxt.views import colour, marks
from lxt.views.legible import clusters, padded, shorten, shown
from lxt.views.summary import Matrix

MOST_ROWS = 100
"""More rows than this are put together in equal groups."""

_FRAME = len(" ││")
_TALLEST_LABEL = 8
_NARROW = 60
"""With fewer columns the numbers beside the rows are left out, in favour of the blocks."""


@dataclass(frozen=True)
class Blocks:
    """A matrix with its rows one below the other, tokens from left to right, and both named.

    Cells hold their numbers where there is room, and are one or two columns of colour, or of marks,
    where there is not. If even that is too wide, each stands for several tokens, and shows the one
    with the largest |relevance| among them.
    """

    matrix: Matrix
    upwards: bool = False
    """Whether the first row is at the bottom, next to the tokens."""
    numbered: bool = False
    """Whether rows are named by their number as well."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layout = _Layout(self, options.max_width, options.encoding)
        coloured = marks.is_coloured(console)
        yield from layout.notes()
        if layout.sums:
            yield layout.header()
        lines = [layout.line(row, coloured=coloured) for row in range(len(layout.values))]
        yield from reversed(lines) if self.upwards else lines
        yield from layout.axis()


def strongest_of(values: Tensor, rows: int, columns: int) -> Tensor:
    """Return of each block of so many rows and columns the value of the largest magnitude.

    Blocks at the end may be smaller; of equals the first counts.

    Args:
        values: ``[R, C]``.
        rows: of a block, at least 1.
        columns: of a block, at least 1.

    Returns:
        ``[ceil(R / rows), ceil(C / columns)]``.

    """
    high, wide = math.ceil(values.shape[0] / rows), math.ceil(values.shape[1] / columns)
    padded = values.new_zeros(high * rows, wide * columns)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.view(high, rows, wide, columns).transpose(1, 2)
    blocks = blocks.reshape(high, wide, rows * columns)
    if not blocks.numel():
        return padded.new_zeros(high, wide)
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]


class _Layout:
    """What goes where in a width."""

    def __init__(self, blocks: Blocks, width: int, encoding: str):
        matrix = self.matrix = blocks.matrix
        self.blocks, self.encoding = blocks, encoding
        rows, columns = matrix.values.shape
        self.rows_each = max(1, math.ceil(rows / MOST_ROWS))
        self.columns_each = 1
        labels = [shown(text, encoding) for text in matrix.rows]
        if blocks.numbered:
            digits = len(str(rows - 1))
            labels = [f"{i:>{digits}} {label}" for i, label in enumerate(labels)]
        self.labels = labels[:: self.rows_each]
        if self.rows_each > 1:
            more = [min(self.rows_each, rows - i) - 1 for i in range(0, rows, self.rows_each)]
            self.labels = [f"{a} +{n}" if n else a for a, n in zip(self.labels, more, strict=True)]
        self.tokens = [shown(text, encoding) for text in matrix.columns]

        # Sums and values of several targets or layers together would be no one's.
        self.sums = matrix.sums if width >= _NARROW and self.rows_each == 1 else {}
        self.sum_widths = [max(map(cell_len, [name, *s])) for name, s in self.sums.items()]
        right = sum(size + 2 for size in self.sum_widths)
        longest = max(map(cell_len, self.labels), default=0)
        self.label = min(longest, max(width // 4, 4))
        room = max(width - self.label - _FRAME - right, 1)
        self.numbers: list[list[str]] = []
        self.cell = self._cell_with_numbers(room) or 2
        if columns * self.cell > room:
            self.cell = 1
            self.columns_each = max(1, math.ceil(columns / room))
        self.values = strongest_of(matrix.values, self.rows_each, self.columns_each)
        if not self.numbers:  # what the numbers need not, the labels may have
            self.label = min(longest, width - _FRAME - right - self.values.shape[1] * self.cell)
        self.label = max(self.label, 0)

    def _cell_with_numbers(self, room: int) -> int:
        """Return how wide cells with numbers are; 0 if they are too wide."""
        columns = self.matrix.values.shape[1]
        if self.rows_each > 1 or columns * 5 > room:
            return 0
        self.numbers = [[self.matrix.number(v) for v in row] for row in self.matrix.values.tolist()]
        cell = max((len(number) for row in self.numbers for number in row), default=0) + 2
        if columns * cell > room:
            self.numbers = []
            return 0
        return cell

    def notes(self) -> list[Text]:
        """Say what one cell stands for, if not for one token and one row."""
        sizes = [f"{self.columns_each} tokens"] if self.columns_each > 1 else []
        sizes += [f"{self.rows_each} rows"] if self.rows_each > 1 else []
        if not sizes:
            return []
        note = f"each cell is the largest |relevance| of {' × '.join(sizes)}, with its sign"
        return [Text(note, style="dim", overflow="fold")]

    def header(self) -> Text:
        """Name the numbers at the end of the rows."""
        space = " " * (self.label + _FRAME + self.values.shape[1] * self.cell)
        names = zip(self.sums, self.sum_widths, strict=True)
        named = "".join("  " + padded(name, size, right=True) for name, size in names)
        return Text(space + named, style="dim", no_wrap=True)

    def line(self, row: int, *, coloured: bool) -> Text:
        numbered = self.blocks.numbered  # and else a path, which ends with what tells it apart
        label = shorten(self.labels[row], self.label, keep_end=not numbered)
        line = Text(padded(label, self.label, right=not numbered), no_wrap=True)
        line.append(" │", "dim")
        for column, value in enumerate(self.values[row].tolist()):
            level = colour.level_of(value, self.matrix.scale)
            if self.numbers:
                text = self.numbers[row][column].rjust(self.cell - 1) + " "
                line.append(text, marks.style(level) if coloured else None)
            else:
                line.append(*marks.cell(level, self.cell, coloured=coloured))
        line.append("│", "dim")
        for numbers, size in zip(self.sums.values(), self.sum_widths, strict=True):
            line.append("  " + padded(numbers[row], size, right=True))
        return line

    def axis(self) -> list[Text]:
        """Name the tokens: by their texts where they fit, upright or not; else by position."""
        before = " " * (self.label + len(" │"))
        lines = [before + self._positions()]
        if self.numbers:
            texts = [padded(token, self.cell - 1, right=True) + " " for token in self.tokens]
            lines.append(before + "".join(texts))
        elif self.cell == 2 and self.columns_each == 1:
            lines += [before + line for line in self._upright()]
        return [Text(line.rstrip(), style="dim", no_wrap=True) for line in lines if line.strip()]

    def _positions(self) -> str:
        count, last = self.values.shape[1], len(self.matrix.columns) - 1
        digits = len(str(max(last, 0)))
        steps = (base * 10**power for power in range(8) for base in (1, 2, 5))
        step = next(s for s in steps if s * self.cell > digits)
        if self.numbers:
            return "".join(str(i).rjust(self.cell - 1) + " " for i in range(count))
        size = step * self.cell
        texts = [str(i * self.columns_each).ljust(size) for i in range(0, count, step)]
        whole = [text for i, text in enumerate(texts) if i * size + digits <= count * self.cell]
        return "".join(whole or texts[:1])

    def _upright(self) -> list[str]:
        # The space before a word, with which most tokens begin, would be all of the first line.
        words = [shown(t.removeprefix("␣") or t, self.encoding) for t in self.matrix.columns]
        letters = [[*clusters(shorten(word, _TALLEST_LABEL))] for word in words]
        return [
            "".join(padded(text[i][0] if i < len(text) else "", 2) for text in letters)
            for i in range(max(map(len, letters), default=0))
        ]
