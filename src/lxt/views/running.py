"""Tokens as running text in a terminal, wrapped at words, each marked by its relevance."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lxt.views import marks
from lxt.views.legible import clusters, shown
from lxt.views.summary import ShownToken, percentage

MOST_LINES = 48
"""Of longer texts only so many lines are shown: those with the strongest tokens, and around."""

_PART = re.compile("[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Piece:
    """What of a token stands on one line."""

    token: int
    text: str
    cells: int

    @property
    def gap(self) -> int:
        """1 if it begins with the space before a word, which gets no mark."""
        return int(self.text[:1] == " " != self.text[1:2] != "")


@dataclass(frozen=True)
class RunningText:
    """The tokens of one explanation; without colour, marks stand below each line."""

    tokens: Sequence[ShownToken]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = marks.is_coloured(console)
        texts = [_in_lines(token.running, options.encoding) for token in self.tokens]
        lines = wrap(texts, options.max_width)
        for part in _excerpt(lines, self.tokens):
            if isinstance(part, str):
                yield Text(part, style="dim")
                continue
            yield self._line(part, coloured=coloured)
            if not coloured and (below := self._marks(part)):
                yield Text(below, no_wrap=True)

    def _line(self, line: list[Piece], *, coloured: bool) -> Text:
        text = Text(no_wrap=True)
        for piece in line:
            level = self.tokens[piece.token].level
            text.append(piece.text, marks.text_style(level) if coloured else None)
        return text

    def _marks(self, line: list[Piece]) -> str:
        parts = [
            " " * piece.gap + marks.mark(self.tokens[piece.token].level) * (piece.cells - piece.gap)
            for piece in line
        ]
        return "".join(parts).rstrip()


def wrap(texts: Sequence[str], width: int) -> list[list[Piece]]:
    r"""Set texts one after the other on lines of that many cells.

    A line ends after ``\n``, before the space in front of a word, and on either side of a wide
    character. That space is left out where a line begins. What is longer than a line is broken
    between texts, and a text that is longer than a line, anywhere between characters.
    """
    lines = _Lines(width)
    word: list[Piece] = []
    for token, text in enumerate(texts):
        for part in _PART.findall(text):
            for piece, may_wrap in _chunks(token, part.removesuffix("\n")):
                if word and (may_wrap or _is_wide(word[-1])):
                    lines.add(word)
                    word = []
                word.append(piece)
            if part.endswith("\n"):
                lines.add(word)
                word = []
                lines.break_line()
    lines.add(word)
    return lines.lines if lines.lines[-1] else lines.lines[:-1]


def _chunks(token: int, text: str) -> Iterator[tuple[Piece, bool]]:
    """Go through words with the spaces before them, and wide characters one by one.

    With each it says whether a line may end before it.
    """
    chunk, cells, wraps = "", 0, False
    before, before_cells = "", 1
    for cluster, width in clusters(text):
        may_wrap = (cluster == " " != before) or width > 1
        if chunk and (may_wrap or before_cells > 1):
            yield Piece(token, chunk, cells), wraps
            chunk, cells = "", 0
        if not chunk:
            wraps = may_wrap
        chunk, cells = chunk + cluster, cells + width
        before, before_cells = cluster, width
    if chunk:
        yield Piece(token, chunk, cells), wraps


def _is_wide(piece: Piece) -> bool:
    return piece.cells == 2 and next(clusters(piece.text))[1] == 2


class _Lines:
    def __init__(self, width: int):
        self.width = width
        self.lines: list[list[Piece]] = [[]]
        self.room = width

    def add(self, word: list[Piece]) -> None:
        if sum(piece.cells for piece in word) <= self.room:
            for piece in word:
                self._place(piece)
            return
        if self.lines[-1] and word[0].gap:
            first = Piece(word[0].token, word[0].text[1:], word[0].cells - 1)
            word = [first, *word[1:]]
        if self.lines[-1]:
            self.break_line()
        for piece in word:
            self._place_broken(piece)

    def break_line(self) -> None:
        self.lines.append([])
        self.room = self.width

    def _place(self, piece: Piece) -> None:
        self.lines[-1].append(piece)
        self.room -= piece.cells

    def _place_broken(self, piece: Piece) -> None:
        if piece.cells > self.room and self.lines[-1]:
            self.break_line()
        text, cells = "", 0
        for cluster, width in clusters(piece.text):
            if text and cells + width > self.room:
                self._place(Piece(piece.token, text, cells))
                self.break_line()
                text, cells = "", 0
            text, cells = text + cluster, cells + width
        self._place(Piece(piece.token, text, cells))


def _in_lines(running: str, encoding: str) -> str:
    return "\n".join(shown(part, encoding) if part else "" for part in running.split("\n"))


def _excerpt(lines: list[list[Piece]], tokens: Sequence[ShownToken]) -> Iterator[list[Piece] | str]:
    """Go through the lines to show, with a note in place of those that are not."""
    kept = _kept(lines, tokens)
    seen = {piece.token for i in kept for piece in lines[i]}
    hidden: list[int] = []
    for i, line in enumerate(lines):
        if i not in kept:
            hidden.append(i)
        if hidden and (i in kept or i == len(lines) - 1):
            left_out = {piece.token for j in hidden for piece in lines[j]} - seen
            share = sum(tokens[token].share for token in left_out)
            count = len(left_out)
            named = f"{count} token{'s' * (count != 1)}"
            yield f"⋯ {named} with {percentage(share)} of all |relevance| ⋯"
            hidden = []
        if i in kept:
            yield line


def _kept(lines: list[list[Piece]], tokens: Sequence[ShownToken]) -> set[int]:
    if len(lines) <= MOST_LINES:
        return set(range(len(lines)))
    strength = [max((abs(tokens[p.token].relevance) for p in line), default=0.0) for line in lines]
    kept: set[int] = set()
    for i in sorted(range(len(lines)), key=lambda i: -strength[i]):
        around = {j for j in (i - 1, i, i + 1) if 0 <= j < len(lines)} - kept
        if len(kept) + len(around) > MOST_LINES:
            break
        kept |= around
    return kept
