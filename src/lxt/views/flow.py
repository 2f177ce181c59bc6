"""Tokens as running text: which piece of which token stands where. Knows nothing of fonts."""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lxt.tokens import printable
from lxt.views.grouping import direction

Measure = Callable[[str], float]
"""The width of a text, in the unit of the line's width."""

_PART = re.compile("[^\n]*\n|[^\n]+")
_CHUNK = re.compile(" *[^ ]+| +")
_LONGEST_UNBROKEN = 0.3
"""A word longer than this share of a line is broken between its tokens; one token, inside."""
_LONGEST_CUT = 512
"""So many characters of a token are considered for one line; the rest goes on the next."""


@dataclass(frozen=True)
class Piece:
    """What of one token stands on one line; lengths are in the unit of the line's width."""

    token: int
    text: str
    x: float
    width: float
    gap: float
    """How much of the width is the space before a word, which gets no background."""
    rtl: bool = False

    @property
    def box(self) -> tuple[float, float]:
        """Left end and width of the background."""
        return (self.x if self.rtl else self.x + self.gap), self.width - self.gap


@dataclass(frozen=True)
class _Chunk:
    token: int
    text: str
    begins_token: bool
    ends_line: bool

    @property
    def space_before_word(self) -> bool:
        return self.text[:1] == " " and self.text[1:2] not in ("", " ")


def flow(
    tokens: Sequence[str],
    width: float,
    measure: Measure,
    shown: Callable[[str], str] = printable,
) -> list[list[Piece]]:
    r"""Set tokens as running text, wrapped at spaces where a word fits on a line.

    The one space before a word is no part of its background, and is left out where the line wraps
    there. A newline is shown as its mark, and breaks the line after it. Words that are long for a
    line are broken between tokens, and long tokens between characters. East Asian text may wrap
    anywhere. Neighbouring pieces of text that is read from right to left stand in that order.

    Args:
        tokens: texts, that read one after the other are the text.
        width: of a line, in the unit that ``measure`` returns.
        measure: the width of a text that ``shown`` returned, or of a part of it.
        shown: turns a text, with a newline at its end at most, into what is drawn.

    Returns:
        The pieces of each line, in the order of the text.

    """
    lines = _Lines(width, measure)
    for word in _words(_chunks(tokens, shown)):
        lines.add(word)
    return [_right_to_left(line) for line in lines.lines if line]


def _chunks(tokens: Sequence[str], shown: Callable[[str], str]) -> Iterator[_Chunk]:
    for i, token in enumerate(tokens):
        begins = True
        for part in _PART.findall(token):
            chunks = _CHUNK.findall(shown(part))
            for j, text in enumerate(chunks):
                yield _Chunk(i, text, begins, part[-1] == "\n" and j == len(chunks) - 1)
                begins = False


def _words(chunks: Iterator[_Chunk]) -> Iterator[list[_Chunk]]:
    word: list[_Chunk] = []
    for chunk in chunks:
        if word and (word[-1].ends_line or _may_wrap(word[-1].text, chunk.text)):
            yield word
            word = []
        word.append(chunk)
    if word:
        yield word


def _may_wrap(before: str, after: str) -> bool:
    if " " in (before[-1], after[0]):
        return True
    return not _joins(after[0]) and "W" in map(unicodedata.east_asian_width, (before[-1], after[0]))


def _joins(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


class _Lines:
    def __init__(self, width: float, measure: Measure):
        self.width, self.measure = width, measure
        self.lines: list[list[Piece]] = [[]]
        self.x = 0.0
        self.wrapped = False  # whether the line began because the one before was full

    def add(self, word: list[_Chunk]) -> None:
        length = sum(self.measure(chunk.text) for chunk in word)
        if self.x + length <= self.width:
            self._place_all(word)
        elif length <= self.width * _LONGEST_UNBROKEN:
            self._wrap()
            self._place_all(word)
        else:
            for chunk in word:
                self._place_broken(chunk)
        if word[-1].ends_line:
            self._new_line(wrapped=False)

    def _place_all(self, word: list[_Chunk]) -> None:
        for chunk in word:
            self._place(chunk)

    def _place_broken(self, chunk: _Chunk) -> None:
        while True:
            length = self.measure(chunk.text[:_LONGEST_CUT])
            fits = len(chunk.text) <= _LONGEST_CUT and self.x + length <= self.width
            if not fits and self.x and length <= self.width * _LONGEST_UNBROKEN:
                self._wrap()
                fits = len(chunk.text) <= _LONGEST_CUT
            if fits:
                self._place(chunk)
                return
            cut = self._cut(chunk.text, self.width - self.x)
            if cut == 0:
                self._wrap()
                continue
            self._place(replace(chunk, text=chunk.text[:cut]))
            chunk = replace(chunk, text=chunk.text[cut:], begins_token=False)
            if not chunk.text:
                return
            self._wrap()

    def _cut(self, text: str, room: float) -> int:
        """Return how many characters fit; at the start of a line, one at least."""
        text = text[:_LONGEST_CUT]
        ends = [i for i in range(1, len(text)) if not _joins(text[i])] + [len(text)]
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high + 1) // 2
            if self.measure(text[: ends[middle - 1]]) <= room:
                low = middle
            else:
                high = middle - 1
        if low == 0:
            return 0 if self.x else ends[0]
        return ends[low - 1]

    def _place(self, chunk: _Chunk) -> None:
        text, gap = chunk.text, 0.0
        if chunk.space_before_word:
            if self.wrapped and not self.x:
                text = text[1:]
            elif chunk.begins_token:
                gap = self.measure(" ")
        width = self.measure(text)
        self.lines[-1].append(Piece(chunk.token, text, self.x, width, min(gap, width)))
        self.x += width

    def _wrap(self) -> None:
        if self.x:
            self._new_line(wrapped=True)

    def _new_line(self, *, wrapped: bool) -> None:
        self.lines.append([])
        self.x, self.wrapped = 0.0, wrapped


def _right_to_left(line: list[Piece]) -> list[Piece]:
    directions = [direction(piece.text, "") for piece in line]
    placed: list[Piece] = []
    for rtl, numbers in itertools.groupby(range(len(line)), key=lambda i: directions[i] == "rtl"):
        run = [line[i] for i in numbers]
        if rtl:
            first = run[0]
            if first.gap:  # the space before the first of them stays before all of them
                placed.append(replace(first, text=" ", width=first.gap))
                rest = {"x": first.x + first.gap, "width": first.width - first.gap}
                run[0] = replace(first, text=first.text[1:], gap=0.0, **rest)
            left, right = run[0].x, run[-1].x + run[-1].width
            run = [replace(p, x=left + right - p.x - p.width, rtl=True) for p in run]
        placed += run
    return placed
