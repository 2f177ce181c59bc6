"""Comparisons in a terminal: tokens one below the other, a column for each explanation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from lxt.tokens import printable
from lxt.views import colour, marks, terminal
from lxt.views.compared import correlations, difference_of, distinct, facts_of
from lxt.views.legible import Fitted, padded, shown
from lxt.views.summary import ShownToken, Summary, number_format, summarise

if TYPE_CHECKING:
    from lxt.comparison import Comparison

_SHORTEST_TOKEN, _LONGEST_NAME = 6, 16


def render(comparison: "Comparison") -> RenderableType:
    """Return a table; of explanations with different tokens, one view below the other."""
    names = [printable(name) for name in comparison.names]
    if comparison.same_tokens:
        return Fitted(_SideBySide(comparison, names))
    parts: list[RenderableType] = []
    for name, explanation in zip(names, comparison, strict=True):
        parts += [Text(name, style="bold reverse"), terminal.render(explanation), Text()]
    return Fitted(Group(*parts, _note("tokens differ: no differences, no correlations")))


@dataclass(frozen=True)
class _Column:
    """What stands below one name: a number and a level for each token; all texts are inert."""

    name: str
    numbers: Sequence[str]
    levels: Sequence[int]
    sums: Sequence[str] = ("", "")
    """The sum of relevance, and the explained value."""

    def width(self, most: int) -> int:
        """Return how wide it is: the name is cut to fit into so many cells, numbers are not."""
        numbers = max(map(len, [*self.numbers, *self.sums]), default=0)
        return max(numbers, min(cell_len(self.name), _LONGEST_NAME, most))


@dataclass(frozen=True)
class _SideBySide:
    comparison: "Comparison"
    names: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summaries = [summarise(explanation) for explanation in self.comparison]
        names = [shown(name, options.encoding) for name in self.names]
        shared, own = facts_of(summaries, self.names)
        if shared:
            yield terminal.Facts(shared)
        if any(own):
            yield terminal.Facts(dict(zip(distinct(names), own, strict=True)))
        yield Text()
        columns = [
            _Column(
                name,
                [token.number for token in summary.tokens],
                [token.level for token in summary.tokens],
                (summary.total_number, summary.value_number),
            )
            for name, summary in zip(names, summaries, strict=True)
        ]
        if len(columns) == 2:
            columns.append(self._difference(summaries))
        listed = _listed(summaries)
        if len(listed) < len(summaries[0].tokens):
            yield _note(
                f"the {len(listed)} of {len(summaries[0].tokens)} tokens with the largest share "
                "of |relevance| in any of them"
            )
        yield from _tables([summaries[0].tokens[i] for i in listed], columns, console, options)
        yield _note("each column is marked by its own largest |relevance|")
        yield Text()
        yield from self._correlations(names)

    def _difference(self, summaries: list[Summary]) -> _Column:
        values = difference_of(self.comparison).tolist()
        scale = max(map(abs, values), default=0.0)
        # With the decimals of the others, to compare at a glance, unless it would lose digits.
        beside = max(abs(float(n)) for s in summaries for n in (s.total_number, s.value_number))
        number = number_format(max(scale, beside) if 10 * scale >= beside else scale)
        levels = [colour.level_of(value, scale) for value in values]
        return _Column("difference", [number(value) for value in values], levels)

    def _correlations(self, names: list[str]) -> Iterator[Text]:
        pairs, more = correlations(self.comparison, names)
        for pair, words in pairs:
            pair = f"{pair}: " if pair else ""
            yield Text.assemble((f"correlation {pair}", "dim"), words, overflow="fold")
        if more:
            yield _note(f"… and of {more} more pairs: c.pearson(i, j)")


def _listed(summaries: list[Summary]) -> list[int]:
    """Return the positions to show: all of few, else the strongest in any explanation."""
    shares = [
        max(token.share for token in same)
        for same in zip(*(s.tokens for s in summaries), strict=True)
    ]
    if len(shares) <= terminal.MOST_IN_ORDER:
        return list(range(len(shares)))
    return sorted(range(len(shares)), key=lambda i: -shares[i])[: terminal.STRONGEST]


def _tables(
    tokens: list[ShownToken], columns: list[_Column], console: Console, options: ConsoleOptions
) -> Iterator[Text]:
    """Go through the lines of a table, or of several with as many columns as fit each."""
    coloured = marks.is_coloured(console)
    labels = [shown(token.alone, options.encoding) for token in tokens]
    lead = max((len(str(token.position)) for token in tokens), default=1)
    token = max(map(cell_len, ["token", "value", *labels]))
    token = min(token, max(_SHORTEST_TOKEN, options.max_width // 4))
    room = options.max_width - (lead + 1 + token)
    gap = 2 if coloured else 4  # without colour a mark stands behind each number
    widths = [column.width(room - gap) for column in columns]
    for number, part in enumerate(_fitting(widths, room, gap)):
        if number:
            yield Text()
        beside = [(columns[i], widths[i]) for i in part]
        head = Text(" " * lead + " " + padded("token", token), "dim", no_wrap=True)
        for column, width in beside:
            head.append(_cell(column.name, width, gap))
        yield head
        for shown_token, label in zip(tokens, labels, strict=True):
            i = shown_token.position
            line = Text(no_wrap=True)
            line.append(f"{i:>{lead}} ", "dim")
            line.append(padded(label, token))
            for column, width in beside:
                line.append(" " * (2 + width - len(column.numbers[i])))
                style = marks.style(column.levels[i]) if coloured else None
                line.append(column.numbers[i], style)
                if not coloured:
                    line.append(" " + marks.mark(column.levels[i]))
            yield line
        for name, which in (("sum", 0), ("value", 1)):
            line = Text(" " * lead + " " + padded(name, token), "dim", no_wrap=True)
            for column, width in beside:
                line.append(_cell(column.sums[which], width, gap))
            yield line


def _cell(text: str, width: int, gap: int) -> str:
    return "  " + padded(text, width, right=True) + " " * (gap - 2)


def _fitting(widths: list[int], room: int, gap: int) -> Iterator[list[int]]:
    """Go through groups of columns that fit beside each other; one always does."""
    part: list[int] = []
    for i, width in enumerate(widths):
        if part and sum(widths[j] + gap for j in part) + width + gap > room:
            yield part
            part = []
        part.append(i)
    yield part


def _note(note: str) -> Text:
    return Text(note, style="dim", overflow="fold")
