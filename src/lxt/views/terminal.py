"""Explanations in a terminal, of any width, with colour or without."""

import io
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from lxt.views import colour
from lxt.views.summary import ShownToken, Summary, headings, summarise

if TYPE_CHECKING:
    from lxt.explanation import Explanation

MOST_IN_ORDER = 24
"""Up to so many tokens are all listed, in their order."""
MOST_TARGETS = 8
"""Of more explanations for many targets, only so many are shown."""
STRONGEST = 16
"""Of more tokens, only so many are listed, the strongest first."""

_WIDEST = 100
"""Columns beyond this many are left empty: bars and lines get no easier to read."""
_FAINTEST = 2
"""Levels of colour below this one are left out: grey on grey hides those that matter."""
_NARROW = 60
"""With fewer columns the share is left out, in favour of the bar."""


def text(explanation: "Explanation") -> str:
    """Return what ``print`` shows."""
    return printed(render(explanation))


def printed(renderable: RenderableType) -> str:
    """Return what ``print`` shows: with colour codes only if standard output is a terminal.

    Characters that standard output's encoding lacks become ``?``.
    """
    coloured = bool(getattr(sys.stdout, "isatty", bool)()) and not os.environ.get("NO_COLOR")
    console = Console(
        file=io.StringIO(),
        width=min(shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns, _WIDEST),
        force_terminal=coloured,
        force_jupyter=False,
        color_system="auto" if coloured else None,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    shown = capture.get()
    if not coloured:
        shown = "\n".join(line.rstrip() for line in shown.splitlines())
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return shown.rstrip("\n").encode(encoding, errors="replace").decode(encoding)


def render(explanation: "Explanation") -> RenderableType:
    """Return the explanation, or those of rows and targets one below the other, for a console.

    Of many targets only the first are shown.
    """
    rows = explanation.rows()
    if not explanation.is_batch and not explanation.is_many:
        return _Row(summarise(rows[0]))
    shown = rows[:MOST_TARGETS] if explanation.is_many else rows
    parts: list[RenderableType] = []
    for heading, row in zip(headings(explanation, counted=True), shown, strict=False):
        parts += [Text(heading, style="bold reverse"), _Row(summarise(row)), Text()]
    if len(rows) > len(shown):
        parts += [Text(f"… and {len(rows) - len(shown)} more: e[i] has one", style="dim"), Text()]
    return Group(*parts[:-1])


@dataclass(frozen=True)
class _Row:
    summary: Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _facts(self.summary)
        yield Text()
        yield _running_text(self.summary)
        yield Text()
        yield from _table(self.summary, options.max_width)
        yield Text()
        yield _sums(self.summary)


def _facts(summary: Summary) -> Table:
    table = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, fact in summary.facts.items():
        table.add_row(Text(name), Text(fact, style="bold" if name == "explained" else ""))
    return table


def _running_text(summary: Summary) -> Text:
    parts = [(token.running, _style(token)) for token in summary.tokens]
    return Text.assemble(*parts, overflow="fold")


def _table(summary: Summary, width: int) -> list[RenderableType]:
    count = len(summary.tokens)
    in_order = count <= MOST_IN_ORDER
    shown = summary.tokens if in_order else summary.strongest[:STRONGEST]
    wide = width >= _NARROW
    table = Table(
        Column("", justify="right", style="dim", no_wrap=True),
        Column("token", no_wrap=True, overflow="ellipsis", max_width=max(8, width // 4)),
        Column("relevance", justify="right", no_wrap=True),
        Column("", ratio=1),
        *([Column("share", justify="right", style="dim", no_wrap=True)] if wide else []),
        box=None,
        width=min(width, _WIDEST),
        pad_edge=False,
        header_style="dim",
    )
    lengths = [token.relevance / (summary.scale or 1) for token in shown]
    lowest, highest = min(lengths, default=0.0), max(lengths, default=0.0)
    for token, length in zip(shown, lengths, strict=True):
        table.add_row(
            str(token.position),
            Text.assemble((token.alone, _style(token))),
            token.number,
            _Bar(length, min(lowest, 0.0), max(highest, 0.0)),
            *([f"{token.share:.1%}"] if wide else []),
        )
    if in_order:
        return [table]
    note = f"the {STRONGEST} of {count} tokens with the largest |relevance|"
    return [Text(note, style="dim"), table]


@dataclass(frozen=True)
class _Bar:
    """A bar from zero to ``value``, on an axis from ``lowest`` <= 0 to ``highest`` >= 0.

    All three are in units of the largest |relevance|, and so from -1 to 1.
    """

    value: float
    lowest: float
    highest: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        axis = "│" if self.lowest else ""
        columns = options.max_width - len(axis)
        left = round(columns * self.lowest / (self.lowest - self.highest or 1))
        left = min(max(left, bool(self.lowest)), columns - bool(self.highest))
        right = columns - left
        per_column = max(-self.lowest / max(left, 1), self.highest / max(right, 1))
        length = self.value / per_column if per_column else 0.0
        yield Text.assemble(
            (_to_the_left(-length).rjust(left), colour.TERMINAL.negative),
            (axis, "dim"),
            (_to_the_right(length), colour.TERMINAL.positive),
            no_wrap=True,
        )

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)


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


def _sums(summary: Summary) -> Text:
    return Text.assemble(
        ("sum of relevance ", "dim"),
        summary.total_number,
        ("   explained value ", "dim"),
        summary.value_number,
    )


def _style(token: ShownToken) -> Style:
    if abs(token.level) < _FAINTEST:
        return Style.null()
    shade = colour.TERMINAL.shade(token.level)
    return Style(color=shade.foreground, bgcolor=shade.background)
