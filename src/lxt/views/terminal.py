"""Explanations in a terminal, of any width, with colour or without."""

import io
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from lxt.views import summary
from lxt.views.bars import Entry, Listing
from lxt.views.blocks import Blocks
from lxt.views.legible import Fitted, shorten, shown
from lxt.views.marks import Scale
from lxt.views.running import RunningText

if TYPE_CHECKING:
    from lxt.explanation import Explanation

MOST_IN_ORDER = 24
"""Up to so many tokens are all listed, in their order."""
STRONGEST = 16
"""Of more tokens, only so many are listed, the strongest first."""
STRONGEST_CELLS = 8
"""So many of the strongest cells of a matrix are listed."""
MOST_IN_A_BATCH = 32
"""Of more rows of a batch, only so many are shown."""

_WIDEST = 100
"""Without a terminal's width, and for text: longer lines get no easier to read."""
_WIDEST_MATRIX = 300
_BESIDE = 40
"""With fewer columns, facts do not stand in a column of their own."""
_LONGEST_FACT = 400
"""Names and targets of more columns are shortened."""


def text(explanation: "Explanation") -> str:
    """Return what ``print`` shows."""
    return printed(render(explanation), widest=_WIDEST_MATRIX)


def printed(renderable: RenderableType, *, widest: int = _WIDEST) -> str:
    """Return what ``print`` shows, in up to ``widest`` columns.

    It is coloured only if standard output is a terminal, or the environment says that it counts
    as one, by the names and rules of rich, and never with ``NO_COLOR``. What standard output's
    encoding lacks is replaced by something as wide that it has.
    """
    columns = shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns
    console = Console(
        file=_LikeStandardOutput(),
        width=max(min(columns, widest), 1),
        force_jupyter=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(Fitted(renderable))
    lines = capture.get().split("\n")
    if console.color_system is None:
        lines = [line.rstrip(" ") for line in lines]
    return "\n".join(lines).rstrip("\n")


class _LikeStandardOutput(io.StringIO):
    """Keeps what is written, and looks as standard output does to who writes."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return bool(getattr(sys.stdout, "isatty", bool)())


def render(explanation: "Explanation") -> RenderableType:
    """Return the explanation, or those of the rows of a batch one below the other, for a console.

    Of many targets and of layers it shows the matrix.
    """
    if not explanation.is_batch:
        return Fitted(_input(explanation.inputs()[0], "e"))
    count = len(explanation)
    parts: list[RenderableType] = []
    for i in range(min(count, MOST_IN_A_BATCH)):
        heading = Text(f"row {i} of {count}", style="bold reverse")
        parts += [heading, _input(explanation[i], f"e[{i}]"), Text()]
    if count > MOST_IN_A_BATCH:
        parts += [Text(f"… and {count - MOST_IN_A_BATCH} more rows: e[i] has one", "dim"), Text()]
    return Fitted(Group(*parts[:-1]))


def _input(part: "Explanation", name: str) -> RenderableType:
    if part.is_many:
        return _Targets(summary.matrix_of_targets(part), name, part.layers)
    shown = summary.summarise(part)
    if part.is_traced:
        return _Layers(summary.matrix_of_layers(part), shown)
    return _Single(shown)


@dataclass(frozen=True)
class _Single:
    """One target of one input."""

    summary: summary.Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Facts(self.summary.facts)
        yield Text()
        yield from _tokens(self.summary)


@dataclass(frozen=True)
class _Targets:
    """Many targets of one input: a matrix, and its strongest cells."""

    matrix: summary.Matrix
    name: str
    """How one writes the explanation that this is."""
    layers: list[str] | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        matrix, count = self.matrix, len(self.matrix.rows)
        yield Facts(matrix.facts)
        yield Text()
        yield _note("relevance of each token (→) for each target (↓)" + self._where())
        yield Blocks(matrix, numbered=True)
        yield Scale(matrix.scale_number, matrix.scale)
        if cells := matrix.strongest(STRONGEST_CELLS):
            yield Text()
            yield _note(f"the {len(cells)} cells with the largest |relevance|")
            yield Listing([_cell(matrix, *c) for c in cells], matrix.scale, "target ← position")
        if count:
            yield Text()
            i = "0" if count == 1 else f"0] … {self.name}[{count - 1}"
            layers = ", at all layers" if self.layers else ""
            yield _note(f"one target with all of its tokens{layers}: {self.name}[{i}]")

    def _where(self) -> str:
        if not self.layers:
            return ""
        return ", at the first layer"


@dataclass(frozen=True)
class _Layers:
    """One target of one input at many layers: the first of them in full, and a map of all."""

    matrix: summary.Matrix
    first: summary.Summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Facts(self.matrix.facts)
        yield Text()
        yield _note("relevance of each token (→) at each layer (↑, the first at the bottom)")
        yield Blocks(self.matrix, upwards=True)
        yield Scale(self.matrix.scale_number, self.matrix.scale)
        yield Text()
        yield _note("at the first layer")
        yield from _tokens(self.first)


def _tokens(single: summary.Summary) -> RenderResult:
    """Show the running text, the list of tokens, and sums."""
    yield _Narrower(RunningText(single.tokens), _WIDEST)
    yield Scale(single.scale_number, single.scale, underlined=True)
    yield Text()
    count = len(single.tokens)
    in_order = count <= MOST_IN_ORDER
    if not in_order:
        yield _note(f"the {STRONGEST} of {count} tokens with the largest |relevance|")
    listed = single.tokens if in_order else single.strongest[:STRONGEST]
    entries = [
        Entry(str(t.position), t.alone, t.relevance, t.number, t.level, summary.percentage(t.share))
        for t in listed
    ]
    yield _Narrower(Listing(entries, single.scale), _WIDEST)
    yield Text()
    yield Text.assemble(
        ("sum of relevance ", "dim"),
        single.total_number,
        ("   explained value ", "dim"),
        single.value_number,
    )


def _cell(matrix: summary.Matrix, row: int, column: int) -> Entry:
    value = matrix.values[row, column].item()
    digits = len(str(len(matrix.columns) - 1))
    return Entry(
        f"{row} ← {column:>{digits}}",
        matrix.columns[column],
        value,
        matrix.number(value),
        summary.colour.level_of(value, matrix.scale),
    )


@dataclass(frozen=True)
class Facts:
    """What was explained, of which model: a name and a text on each line."""

    facts: dict[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        size = max(map(len, self.facts), default=0) + 2
        for name, fact in self.facts.items():
            fact = shorten(shown(fact, options.encoding), _LONGEST_FACT)
            value = Text(fact, style="bold" if name == "explained" else "", overflow="fold")
            if options.max_width < max(_BESIDE, 2 * size):
                yield Text.assemble((f"{name}: ", "dim"), value, overflow="fold")
                continue
            for i, line in enumerate(value.wrap(console, options.max_width - size)):
                yield Text.assemble((("" if i else name).ljust(size), "dim"), line)


def _note(note: str) -> Text:
    return Text(note, style="dim", overflow="fold")


@dataclass(frozen=True)
class _Narrower:
    """Something in so many columns at most."""

    content: RenderableType
    widest: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(
            self.content, options.update(width=min(options.max_width, self.widest))
        )
