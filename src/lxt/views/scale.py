"""How strong a colour a relevance has, or how long a bar: symmetric around 0."""

import math
from dataclasses import dataclass

from torch import Tensor

from lxt.views import colour


@dataclass(frozen=True)
class Scale:
    """Up to which |relevance| colours grow stronger, and how many relevances lie beyond."""

    end: float
    beyond: int = 0
    count: int = 0
    """Of relevances other than 0."""
    percentile: float | None = None

    def part(self, relevance: float) -> float:
        """Return a relevance as a part of the scale, from -1 to 1, where those beyond are, too."""
        return max(-1.0, min(1.0, relevance / self.end)) if self.end else 0.0

    def level(self, relevance: float) -> int:
        """Return the step on the colour map."""
        return colour.level_of(self.part(relevance), 1.0)

    def note(self, what: str) -> list[str]:
        """Say that ``what``, colours or bars, doesn't go up to the largest, where that is so."""
        if self.percentile is None:
            return []
        return [
            f"robust scale: {what} end at the {_ordinal(self.percentile)} percentile of "
            f"|relevance|, zeros left out; {self.beyond} of {self.count} lie beyond"
        ]


def scale_of(relevance: Tensor, percentile: float | None) -> Scale:
    """Return the scale that ends at the largest |relevance|, or at a percentile of it.

    Exact zeros don't count for the percentile: they are what a token can't have had any part in,
    and in a causal model's matrix they are the half.
    """
    sizes = relevance.double().abs().flatten()
    sizes = sizes[sizes > 0].sort().values
    if not len(sizes):
        return Scale(0.0, percentile=percentile)
    if percentile is None:
        return Scale(sizes[-1].item())
    end = sizes[math.ceil(percentile / 100 * len(sizes)) - 1].item()
    return Scale(end, int((sizes > end).sum()), len(sizes), percentile)


def _ordinal(percentile: float) -> str:
    text = f"{percentile:g}"
    teen = text[-2:] in ("11", "12", "13")
    return text + (
        "th" if teen or "." in text else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th")
    )
