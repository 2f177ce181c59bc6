"""A list of relevances in a terminal, each with its number and a bar, on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lxt.views import colour, marks
from lxt.views.legible import padded, shown

_NARROW = 60
"""With fewer columns the share is left out, in favour of the bar."""
_SHORTEST_TOKEN, _SHORTEST_BAR = 6, 6


@dataclass(frozen=True)
class Entry:
    """A line of the list; all texts are inert."""

    lead: str
    """Which it is: a position, or a place in a matrix."""
    token: str
    relevance: float
    number: str
    level: int
    share: str = ""


@dataclass(frozen=True)
class Listing:
    """Entries one below the other: what, how much, a bar from zero, and the share.

    Of what does not fit, first the share goes, then the token is shortened, then the bar goes.
    The number stays whole in 20 columns.
    """

    entries: Sequence[Entry]
    scale: float
    """The |relevance| at which a bar is full."""
    lead: str = ""
    """What the first column is called."""
    named: str = "token"
    """What the second one is called."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, coloured = options.max_width, marks.is_coloured(console)
        tokens = [shown(entry.token, options.encoding) for entry in self.entries]
        title = self.lead if cell_len(self.lead) <= width // 4 else ""
        lead = max(map(cell_len, [title, *(entry.lead for entry in self.entries)]))
        number = max((len(entry.number) for entry in self.entries), default=1)
        name = "relevance" if width >= _NARROW or number >= len("relevance") else "R"
        number = max(number, len(name))
        shares = [entry.share for entry in self.entries] if width >= _NARROW else []
        share = max(map(len, ["share", *shares])) + 1 if any(shares) else 0
        token = max(map(cell_len, [self.named, *tokens]))
        token = min(token, max(_SHORTEST_TOKEN, width // 4))
        bar = width - (lead + 1 + token + 2 + number + 2 + share)
        if bar < _SHORTEST_BAR:
            bar = 0
            token = max(min(token, width - (lead + 1 + 1 + number)), 1)
        between = "  " if bar else " "
        head = f"{padded(title, lead)} {padded(self.named, token)}{between}{name:>{number}}"
        yield Text(head + ("share".rjust(width - cell_len(head)) if share else ""), "dim")
        axis = Axis.of([entry.relevance / (self.scale or 1) for entry in self.entries])
        for entry, text in zip(self.entries, tokens, strict=True):
            line = Text(no_wrap=True)
            line.append(padded(entry.lead, lead, right=True) + " ", "dim")
            text = padded(text, token)
            label = text.rstrip(" ")
            line.append(label, marks.text_style(entry.level) if coloured else None)
            line.append(" " * (len(text) - len(label)) + between)
            line.append(entry.number.rjust(number))
            if bar:
                line.append("  ")
                line.append(axis.bar(entry.relevance / (self.scale or 1), bar))
            if share:
                line.append(entry.share.rjust(share), "dim")
            yield line


@dataclass(frozen=True)
class Axis:
    """From ``lowest`` <= 0 to ``highest`` >= 0, in units of the largest |relevance|."""

    lowest: float
    highest: float

    @staticmethod
    def of(values: Sequence[float]) -> "Axis":
        """Return the axis that holds zero and all of these."""
        return Axis(min(0.0, *values, 0.0), max(0.0, *values, 0.0))

    def bar(self, value: float, width: int) -> Text:
        """Draw a bar from zero to ``value`` on an axis of so many columns, all of them filled."""
        axis = "│" if self.lowest else ""
        columns = width - len(axis)
        left = round(columns * self.lowest / (self.lowest - self.highest or 1))
        left = min(max(left, bool(self.lowest)), columns - bool(self.highest))
        right = columns - left
        per_column = max(-self.lowest / max(left, 1), self.highest / max(right, 1))
        length = value / per_column if per_column else 0.0
        return Text.assemble(
            (_to_the_left(-length).rjust(left), colour.TERMINAL.negative),
            (axis, "dim"),
            (_to_the_right(length).ljust(right), colour.TERMINAL.positive),
        )


def _to_the_right(columns: float) -> str:
    """Return a bar of that length in eighths of a column; of some length, however small it is."""
    if columns <= 0:
        return ""
    full, eighths = divmod(max(1, round(columns * 8)), 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[eighths].strip()


def _to_the_left(columns: float) -> str:
    """Return the same in halves: Unicode has no other blocks that grow to the left."""
    if columns <= 0:
        return ""
    if columns < 0.25:
        return "▕"
    full, half = divmod(round(columns * 2), 2)
    return "▐" * half + "█" * full
