"""A unit of an atlas in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lxt.tokens import printable
from lxt.views import terminal
from lxt.views.atlas_words import context_tokens, facts, histogram, where
from lxt.views.running import RunningText

if TYPE_CHECKING:
    from lxt.atlas.describe import Description

_BAR = 30
_CONTEXTS = 5


def text(description: Description) -> str:
    """Return what ``print`` shows."""
    return terminal.printed(render(description))


def render(description: Description) -> RenderableType:
    """Put a unit into what a terminal shows."""
    parts: list[RenderableType] = [Text(f"Unit {printable(description.name)}", style="bold")]
    parts.append(_facts(facts(description)))
    for by, contexts in description.contexts.items():
        parts.append(Text(f"\nLargest by {by}" if by[0] != "-" else f"\nMost negative {by[1:]}"))
        parts.append(_facts(where(description, by)))
        for one in contexts[:_CONTEXTS]:
            tokens, words = context_tokens(one)
            parts.append(Text(f"\n{words}", style="dim"))
            parts.append(RunningText(tokens))
    lens = description.lens
    if lens is not None:
        parts.append(Text("\nVocabulary, by the logit lens"))
        parts.append(
            _facts({"promotes": _listed(lens.promoted), "suppresses": _listed(lens.suppressed)})
            if lens.promoted
            else Text("")
        )
        parts.append(Text(printable(lens.note), style="dim"))
    parts.append(Text("\nActivation, at one token of each row"))
    bins = histogram(description.statistics)
    most = max((count for _, count in bins), default=0)
    table = Table.grid(padding=(0, 2))
    for name, count in bins:
        table.add_row(Text(name), Text("█" * round(_BAR * count / (most or 1))), Text(str(count)))
    parts.append(table)
    return Group(*parts)


def _facts(items: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, words in items.items():
        table.add_row(Text(name, style="dim"), Text(words))
    return table


def _listed(tokens: list[tuple[str, float]]) -> str:
    return "  ".join(f"{printable(token)!r} {value:+.2f}" for token, value in tokens)
