"""What stands around a picture: its title above, a scale of its colours and its facts below."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lxt.tokens import printable
from lxt.views import colour
from lxt.views.canvas import GREY, INK, MARGIN, SIZE, Block, Pen
from lxt.views.flow import Piece, flow
from lxt.views.fonts import Fonts
from lxt.views.summary import Matrix, Summary, number_format

if TYPE_CHECKING:
    from lxt.views.scale import Scale

_TITLE, _SMALL = 12.0, 7.5
_LONGEST = 200
"""So many characters of a name are shown; more are a mistake, or meant to do harm."""


@dataclass(frozen=True)
class Legend:
    """A scale of colours from the lowest value to the highest, with labels at even distances."""

    colours: Sequence[str]
    labels: Sequence[str]
    unit: str = ""
    """What stands beside it."""


def legend_block(legend: Legend, fonts: Fonts) -> Block:
    """Return the scale as a bar."""

    def paint(pen: Pen, top: float) -> None:
        length, left = 120.0, MARGIN
        step = length / len(legend.colours)
        for i, shade in enumerate(legend.colours):
            # Each reaches to the end, under the next: seams would show otherwise.
            pen.box(left + i * step, top + 4, length - i * step, 5, shade)
        for i, label in enumerate(legend.labels):
            share = i / max(len(legend.labels) - 1, 1)
            width = fonts.measure(label) * 0.7
            # The outer labels end where the bar does: long ones neither meet nor leave the page.
            x = left + length * share - width * share
            pen.write(x, top + 17, label, INK, size=SIZE * 0.7)
        pen.write(left + length + 6, top + 9, legend.unit, GREY, size=SIZE * 0.7)

    return Block(22.0, paint)


def swatch_blocks(swatches: Sequence[tuple[str, str]], fonts: Fonts, width: float) -> list[Block]:
    """Return what names the colours of several things, in lines: of each its name and colour."""
    part, room = _SMALL / SIZE, width - 2 * MARGIN
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for name, shade in swatches:
        name = fonts.fitted(name, (room - 11) / part)
        size = 11 + fonts.measure(name) * part
        if x and x + size > room:
            lines.append([])
            x = 0.0
        lines[-1].append((MARGIN + x, name, shade))
        x += size + 12

    def paint(line: list[tuple[float, str, str]], pen: Pen, top: float) -> None:
        for x, name, shade in line:
            pen.box(x, top + 3.5, 7, 7, shade)
            pen.write(x + 11, top + 10, name, INK, size=_SMALL)

    return [Block(13.0, partial(paint, line)) for line in lines]


def relevance_legend(scale: "Scale") -> Legend:
    """Return the library's own colours from the lowest relevance to the highest."""
    number = number_format(scale.end)
    least, most = number(-scale.end), number(scale.end)
    if scale.beyond:
        least, most = f"≤ {least}", f"≥ {most}"
    levels = range(-colour.LEVELS, colour.LEVELS + 1)
    shades = [colour.LIGHT.shade(level).background for level in levels]
    return Legend(shades, [least, "0", most], "relevance")


def title_blocks(title: str, heading: str, fonts: Fonts, width: float) -> list[Block]:
    """Return the title, and in smaller type which of several pictures this is; empty ones not."""
    blocks = _lines(title, fonts, width, _TITLE, INK) if title else []
    if heading:
        blocks += _lines(shortened(heading), fonts, width, 9.0, GREY)
    return [*blocks, Block(5.0, _nothing)] if blocks else []


def caption_blocks(texts: Sequence[str], fonts: Fonts, width: float) -> list[Block]:
    """Return paragraphs in small type."""
    blocks = [Block(3.0, _nothing)]
    for text in texts:
        blocks += _lines(text, fonts, width, _SMALL, GREY)
    return blocks


def facts(summary: Summary) -> list[str]:
    """Return what a picture of one target says below it: what was explained, and by what."""
    facts = summary.facts
    first = {
        "explained": facts["explained"],
        "value": facts["value"],
        "sum of relevance": summary.total_number,
    }
    second = {name: fact for name, fact in facts.items() if name not in first}
    return [joined(first), joined(second)]


def facts_of_targets(matrix: Matrix) -> list[str]:
    """Return what a picture of many targets says below it."""
    first = {"explained": matrix.facts["explained"]}
    if matrix.rows:
        names = {"value": "values", "sum": "sums of relevance"}
        first |= {name: _range(matrix.sums[key]) for key, name in names.items()}
    second = {name: fact for name, fact in matrix.facts.items() if name not in first}
    return [joined(first), joined(second)]


def facts_of_layers(matrix: Matrix) -> list[str]:
    """Return what a picture of layers says below it."""
    facts, sums = dict(matrix.facts), matrix.sums["sum"]
    first = {name: facts.pop(name) for name in ("explained", "value")}
    first["sum of relevance"] = f"{sums[0]} at the first layer, {sums[-1]} at the last"
    return [joined(first), joined(facts)]


def _range(numbers: Sequence[str]) -> str:
    return f"{min(numbers, key=float)} to {max(numbers, key=float)}"


def shortened(text: str) -> str:
    """Return the text, or the start of one that is far too long."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def joined(facts: dict[str, str]) -> str:
    """Return facts as one line."""
    return "  ·  ".join(f"{name}: {shortened(fact)}" for name, fact in facts.items())


def _lines(text: str, fonts: Fonts, width: float, size: float, ink: str) -> list[Block]:
    part = size / SIZE
    lines = flow(
        [text],
        width - 2 * MARGIN,
        lambda text: fonts.measure(text) * part,
        lambda text: fonts.shown(printable(text)),
    )
    return [Block(size * 1.35, partial(_write, line, size, ink)) for line in lines]


def _write(line: list[Piece], size: float, ink: str, pen: Pen, top: float) -> None:
    if any(piece.rtl for piece in line):
        for piece in line:
            pen.write(MARGIN + piece.x, top + size, piece.text, ink, size=size)
    else:
        pen.write(MARGIN, top + size, "".join(piece.text for piece in line), ink, size=size)


def _nothing(pen: Pen, top: float) -> None:
    """Leave space."""
