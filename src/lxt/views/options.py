"""Options that pictures of one explanation and of several have in common, and their limits."""

from lxt.errors import InvalidInput

BARS = 20
PERCENTILE = 95.0
"""Where a robust scale ends."""
FIXED = "".join(map(chr, range(0x20, 0x7F))) + "≤≥↵⇥␣…→↓·−"
"""Characters of the words that pictures have by themselves."""
_LONGEST_TITLE = 1_000


def count_of_bars(top: int | None, view: str) -> int:
    """Return how many tokens have bars.

    Raises:
        InvalidInput: it is no count, or is given for another view.

    """
    if top is None:
        return BARS
    if view != "bars":
        raise InvalidInput(f"top={top!r} is how many bars there are, and view is {view!r}")
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise InvalidInput(f"top={top!r} is no count of tokens, from 1")
    return top


def percentile_of(robust: bool | float) -> float | None:
    """Return the percentile at which a scale ends, ``None`` for the largest.

    Raises:
        InvalidInput: it is none.

    """
    if robust is False:
        return None
    percentile = PERCENTILE if robust is True else robust
    if not isinstance(percentile, int | float) or not 0 < percentile <= 100:
        raise InvalidInput(
            f"robust={robust!r} is no percentile of |relevance|, above 0 and up to 100: give "
            f"True for {PERCENTILE:g}, or False for a scale up to the largest"
        )
    return percentile


def check_title(title: str | None) -> None:
    """Raise `InvalidInput` for what is no title."""
    if title is not None and (not isinstance(title, str) or len(title) > _LONGEST_TITLE):
        raise InvalidInput(f"title={title!r:.80} is no text of up to {_LONGEST_TITLE} characters")


def check_dpi(dpi: float | None) -> None:
    """Raise `InvalidInput` for what is no number of pixels per inch."""
    if dpi is not None and (not isinstance(dpi, int | float) or not 1 <= dpi <= 10_000):
        raise InvalidInput(f"dpi={dpi!r} is no number of pixels per inch, from 1 to 10,000")
