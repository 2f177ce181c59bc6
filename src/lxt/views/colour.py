"""The one colour map: red for positive relevance, blue for negative, told apart by every eye.

The ends are those of ColorBrewer's RdBu, which stay distinct in all forms of colour blindness.
Text on a colour is black or white, whichever contrasts more: on any colour that is at least 4.58:1
(WCAG 2), as the product of both contrasts is always 21.
"""

from dataclasses import dataclass

LEVELS = 20
"""How many steps of strength there are from no relevance to the strongest."""


@dataclass(frozen=True)
class Shade:
    """A background and the text colour to read on it, as ``#rrggbb``."""

    background: str
    foreground: str


@dataclass(frozen=True)
class Palette:
    """Colours from neutral to each end, for one kind of background around the text."""

    neutral: str
    positive: str
    negative: str

    def shade(self, level: int) -> Shade:
        """Return the colours of a level, from ``-LEVELS`` (negative) to ``LEVELS`` (positive)."""
        end = _rgb(self.positive if level > 0 else self.negative)
        strength = abs(level) / LEVELS
        neutral = _rgb(self.neutral)
        mixed = [round(n + (e - n) * strength) for n, e in zip(neutral, end, strict=True)]
        background = "#" + "".join(f"{channel:02x}" for channel in mixed)
        foreground = max("#000000", "#ffffff", key=lambda text: contrast(text, background))
        return Shade(background, foreground)


LIGHT = Palette(neutral="#ffffff", positive="#b2182b", negative="#2166ac")
DARK = Palette(neutral="#1b1d21", positive="#e0485a", negative="#4a90d9")
# A terminal does not tell whether it is dark or light. Here all levels are about equally bright
# and differ in how colourful they are, so that the strongest stands out on either.
TERMINAL = Palette(neutral="#6b6b6b", positive="#c61a30", negative="#1f63b5")


def level_of(relevance: float, scale: float) -> int:
    """Return the level of a relevance where ``scale`` is the largest |relevance|; 0 if that is."""
    return round(relevance / scale * LEVELS) if scale else 0


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, from 1 to 21, as WCAG 2 defines it."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in _rgb(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))
