"""Texts as cells of a terminal: what can be shown in its encoding, how wide it is, cut to fit."""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from lxt.tokens import CONTINUATION, escaped

_MOST_MARKS = 30
"""Combining marks on one character, as in Unicode's Stream-Safe Text (UAX 15); more would be piled
up over the lines above and below, and are written by their numbers."""

# What lxt.tokens.printable and the labels make visible, for encodings without these pictures.
_WORDS = {"↵": "\\n", "⇥": "\\t", "␣": "_", "␡": "\\x7F", "…": "...", "−": "-", "–": "-"}
_WORDS |= {chr(0x2400 + code): f"\\x{code:02X}" for code in range(0x20)} | {CONTINUATION: "?"}
# What views draw with, for the same: each one column wide, as it is there.
_GLYPHS = dict(zip("░▒█≡│▐▉▊▋▌▍▎▏▕…⋯−–×Σ←→↑↓", "+*#%|#####::::..--xS<>^v", strict=True))


def shown(text: str, encoding: str) -> str:
    r"""Return a printable text for a terminal of that encoding, to be shown by itself.

    A character that would combine with what stands before the text gets a base of its own, and
    what the encoding lacks is written ``\uXXXX``.
    """
    if text.isascii():
        return text
    if cell_len(text[0]) == 0 or unicodedata.category(text[0]).startswith("M"):
        text = CONTINUATION + text
    text = "".join(cluster for cluster, _ in clusters(text))
    if _is_unicode(encoding):
        return text
    return "".join(_in_words(char, encoding) for char in text)


def clusters(text: str) -> Iterator[tuple[str, int]]:
    """Go through what takes cells of its own, with how many: a character and marks on it."""
    if text.isascii():
        for char in text:
            yield char, 1
        return
    cluster, marks = "", 0
    for char in text:
        if cluster and cell_len(char) == 0:
            if marks < _MOST_MARKS:
                cluster, marks = cluster + char, marks + 1
                continue
            char = escaped(char)
        if cluster:
            yield cluster, cell_len(cluster)
        cluster, marks = char, 0
    if cluster:
        yield cluster, cell_len(cluster)


def shorten(text: str, cells: int, *, keep_end: bool = False) -> str:
    """Return what fits into that many cells, with ``…`` for what is left out."""
    if cell_len(text) <= cells:
        return text
    kept, used = [], 1
    parts = list(clusters(text))
    for cluster, width in reversed(parts) if keep_end else parts:
        if used + width > cells:
            break
        kept.append(cluster)
        used += width
    return "…" + "".join(reversed(kept)) if keep_end else "".join(kept) + "…"


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """Return the text, shortened if need be, with spaces after it, or before it, up to a width."""
    text = shorten(text, cells)
    space = " " * (cells - cell_len(text))
    return space + text if right else text + space


class Fitted:
    """Something as the console can show it: no wider than it is, and nothing its encoding lacks."""

    def __init__(self, content: RenderableType):
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.content, options, pad=False):
            legible = [
                segment._replace(text=_drawn(segment.text, options.encoding)) for segment in line
            ]
            yield from Segment.adjust_line_length(legible, options.max_width, pad=False)
            yield Segment.line()


def _drawn(text: str, encoding: str) -> str:
    """Return the text with what the encoding lacks replaced by something as wide."""
    if text.isascii() or _is_unicode(encoding):
        return text
    return "".join(
        char if _has(encoding, char) else _GLYPHS.get(char, "?" * cell_len(char)) for char in text
    )


def _in_words(char: str, encoding: str) -> str:
    return char if _has(encoding, char) else _WORDS.get(char) or escaped(char)


def _is_unicode(encoding: str) -> bool:
    return encoding.lower().startswith("utf")


@lru_cache(maxsize=4096)
def _has(encoding: str, char: str) -> bool:
    try:
        char.encode(encoding)
    except (UnicodeEncodeError, LookupError):  # an encoding that Python lacks counts as ASCII
        return char.isascii()
    return True
