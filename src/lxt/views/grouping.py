"""What the texts of tokens tell: which make a word or a sentence, and which way they are read."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

from lxt.tokens import CONTINUATION

__all__ = ["direction", "sentence_starts", "word_starts"]

_ENDS = frozenset(".!?…。！？؟।")
_CLOSES = "\"'”’»)]}」』"


def word_starts(tokens: Sequence[str]) -> list[int]:
    """Number the tokens that begin a word; the first token begins one.

    A word begins after white space, or with it, and where East Asian text, which has none, begins
    or ends. Punctuation, and white space alone, stay with the word that they follow.
    """
    inner = (i for i, pair in enumerate(itertools.pairwise(tokens), start=1) if _are_apart(*pair))
    return [0, *inner] if tokens else []


def sentence_starts(tokens: Sequence[str]) -> list[int]:
    """Number the tokens that begin a sentence: a word after its end, or after a line's."""
    starts = word_starts(tokens)
    return starts[:1] + [i for i in starts[1:] if _is_ended("".join(tokens[max(0, i - 4) : i]))]


def direction(tokens: Iterable[str], otherwise: str = "ltr") -> str:
    """Return ``"rtl"`` or ``"ltr"``, by the first letter that has one, as Unicode's rule P2 has it.

    A browser asked for ``dir="auto"`` would look through the text again for every token put in.
    """
    for char in itertools.chain.from_iterable(tokens):
        kind = unicodedata.bidirectional(char)
        if kind in ("R", "AL", "L"):
            return "ltr" if kind == "L" else "rtl"
    return otherwise


def _are_apart(before: str, after: str) -> bool:
    if not before or not after.strip() or after == CONTINUATION:
        return False
    first, last = after[0], before[-1]
    if first.isspace() or last.isspace():
        return True
    if unicodedata.category(first)[0] in "MP":
        return False
    return _is_wide(first) or (_is_wide(last) and not before.endswith(CONTINUATION))


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) == "W"


def _is_ended(text: str) -> bool:
    if text.rstrip(" ").endswith("\n"):
        return True
    return text.rstrip().rstrip(_CLOSES)[-1:] in _ENDS
