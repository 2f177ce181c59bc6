"""Fonts for any text, of those that are installed, and how wide text is in them."""

import functools
import re
from collections.abc import Iterable
from typing import cast

import numpy as np
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.ft2font import FT2Font, LoadFlags

from lxt.tokens import escaped

FIRST = "DejaVu Sans"
"""Comes with matplotlib: text looks the same on every machine as far as this font has it."""

_LONGEST_LABEL = 200
"""Of a longer text no more characters are looked at to cut it short."""

_LATER = re.compile(r"(Mono)|(Serif|Roman|Times)|(Math|STIX)", re.IGNORECASE)
# matplotlib's fonts for formulas have glyphs of their own at the code points of other characters,
# its last resort has a box for every one.
_NO_TEXT = re.compile(r"cm(b|ex|mi|r|ss|sy|tt)10|STIX(NonUnicode|Size).*|Last ?Resort.*")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")


class Fonts:
    """The fonts that a text takes, in the order in which they are tried for each character.

    Not for use in several threads at once: matplotlib shares its font objects.
    """

    def __init__(self, text: str, size: float):
        """Find fonts for all characters of ``text``, at ``size`` points."""
        needed = {ord(char) for char in text}
        self.families, self.missing = _families(needed, _region(text))
        self.properties = _properties(self.families, size)
        self.measure = functools.cache(self._measure)
        self._between = 0.0
        self._between = self._measure("")

    @property
    def hold_only_truetype(self) -> bool:
        """Whether all fonts have TrueType outlines, and none PostScript's."""
        return all(_is_truetype(_font(family)) for family in self.families)

    def shown(self, text: str) -> str:
        r"""Write the characters that no font has by their number: ``\U0001F680``."""
        return "".join(_by_number(c) if ord(c) in self.missing else c for c in text)

    def fitted(self, text: str, width: float) -> str:
        """Return a text as ``shown``, cut short with an ellipsis where it is wider than that."""
        shown = self.shown(text[:_LONGEST_LABEL])
        if len(text) <= _LONGEST_LABEL and self.measure(shown) <= width:
            return shown
        low, high = 0, len(shown)
        while low < high:
            middle = (low + high + 1) // 2
            if self.measure(shown[:middle] + "…") <= width:
                low = middle
            else:
                high = middle - 1
        return shown[:low] + "…"

    def _measure(self, text: str) -> float:
        """Return how far a text advances, in points, as matplotlib will set it."""
        paths = [_path(family) for family in self.families]
        font = get_font(cast("list[str]", paths))
        font.clear()
        font.set_size(self.properties.get_size_in_points(), 72)
        # The extent of ink does not tell the width of spaces, unless it is between two bars.
        font.set_text(f"|{text}|", flags=LoadFlags.NO_HINTING)
        return font.get_width_height()[0] / 64 - self._between


def _by_number(char: str) -> str:
    code = ord(char)
    if 0x2400 <= code <= 0x2421:  # the picture of a control character: name that one
        return f"\\x{code - 0x2400 if code < 0x2421 else 0x7F:02X}"
    return escaped(char)


def _families(needed: set[int], region: str) -> tuple[list[str], frozenset[int]]:
    chosen = [FIRST]
    missing = needed.difference(_characters(FIRST))
    candidates = sorted(_installed(), key=lambda name: (not name.endswith(region), _rank(name)))
    while missing and candidates:
        codes = np.fromiter(missing, dtype=np.int64)
        counts = [int(np.isin(codes, _characters(name)).sum()) for name in candidates]
        most = max(counts)
        if not most:
            break
        chosen.append(candidates.pop(counts.index(most)))
        missing = missing.difference(_characters(chosen[-1]))
    return chosen, frozenset(missing)


def _rank(name: str) -> tuple[int, str]:
    match = _LATER.search(name)
    return (match.lastindex or 0 if match else 0), name


def _region(text: str) -> str:
    """Return whose forms of Chinese characters the text is in, as fonts are named for it."""
    if _KANA.search(text):
        return " JP"
    return " KR" if _HANGUL.search(text) else " SC"


@functools.cache
def _installed() -> frozenset[str]:
    return frozenset(
        entry.name
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.stretch == "normal"
        and font_manager.weight_dict.get(str(entry.weight), entry.weight) == 400
        and not _NO_TEXT.fullmatch(entry.name)
    )


@functools.cache
def _characters(family: str) -> np.ndarray:
    try:
        font = _font(family)
        codes: Iterable[int] = font.get_charmap() if font.scalable else ()
    except (OSError, RuntimeError, ValueError):
        codes = ()  # a font file that is gone or broken
    return np.fromiter(codes, dtype=np.int64)


def _font(family: str) -> FT2Font:
    return get_font(_path(family))


def _path(family: str) -> str:
    return font_manager.findfont(_properties([family], 10), fallback_to_default=False)


def _is_truetype(font: FT2Font) -> bool:
    table = font.get_sfnt_table("maxp")
    return table is not None and table["version"] == (1, 0)  # 0.5 has PostScript outlines


def _properties(families: list[str], size: float) -> FontProperties:
    # Whatever is left out here is taken from the user's rcParams.
    return FontProperties(
        family=families,
        style="normal",
        variant="normal",
        weight="normal",
        stretch="normal",
        size=size,
        math_fontfamily="dejavusans",
    )
