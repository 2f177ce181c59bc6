"""A comparison as PDF, PNG or SVG: its explanations on one scale, or each on its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, cast, get_args

import torch
from torch import Tensor

from lxt.errors import InvalidInput
from lxt.tokens import printable
from lxt.views import colour
from lxt.views.barchart import Bar, Group, grouped_rows
from lxt.views.canvas import (
    DPI,
    GREY,
    INK,
    MARGIN,
    SIZE,
    WIDTH,
    Block,
    Format,
    Pen,
    Picture,
    render,
)
from lxt.views.caption import (
    Legend,
    caption_blocks,
    joined,
    legend_block,
    relevance_legend,
    shortened,
    swatch_blocks,
    title_blocks,
)
from lxt.views.compared import correlations, difference_of, facts_of
from lxt.views.fonts import Fonts
from lxt.views.heatmap import MOST_NUMBERS, Table, wrapped_map
from lxt.views.options import FIXED, check_dpi, check_title, count_of_bars, percentile_of
from lxt.views.page import running_text
from lxt.views.scale import Scale, scale_of
from lxt.views.summary import Summary, number_format, summarise

if TYPE_CHECKING:
    from lxt.comparison import Comparison
    from lxt.explained import ExplainedTarget

View = Literal["text", "bars", "matrix"]
VIEWS: tuple[View, ...] = get_args(View)
Scaling = Literal["shared", "each"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


class Drawing(TypedDict, total=False):
    """The options of ``Comparison.to_pdf``."""

    view: View | None
    scale: Scaling
    top: int | None
    robust: bool | float
    title: str | None


class DrawingOnce(Drawing, total=False):
    """The options of ``Comparison.to_image``."""

    format: Literal["png", "svg"] | None
    dpi: float


# Okabe and Ito's, which stay distinct in all forms of colour blindness, without yellow, which is
# too faint on paper. Not red and blue, which are signs elsewhere.
BAR_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00", "#0072B2")
_MOST = {"text": 200_000, "bars": 200_000, "matrix": 200_000}
"""So many relevances are drawn into one file at most."""
DIFFERENCE = "difference"
_NAME = 9.0
_ABOVE_NAME, _BELOW_NAME = 6.0, 4.0


@dataclass(frozen=True)
class _Shown:
    """One explanation, or the difference of two, with what its numbers and colours are by."""

    name: str
    tokens: list[str]
    values: Tensor
    """float64, ``[tokens]``."""
    scale: Scale


@dataclass(frozen=True)
class _Options:
    view: View
    shared: bool
    top: int
    percentile: float | None
    title: str | None


def draw(
    comparison: "Comparison",
    *,
    format: Format,
    view: View | None = None,
    scale: Scaling = "shared",
    top: int | None = None,
    robust: bool | float = False,
    title: str | None = None,
    dpi: float | None = None,
) -> bytes:
    """Draw a comparison; see ``Comparison.to_pdf`` and ``to_image``.

    Raises:
        InvalidInput: an option is none of those that there are, or does not fit the comparison, or
            it is too large; quotes what was given.

    """
    chosen = _view(comparison, view)
    if scale not in SCALINGS:
        raise InvalidInput(f"scale={scale!r} is none of {', '.join(map(repr, SCALINGS))}")
    check_title(title)
    check_dpi(dpi)
    bars = count_of_bars(top, chosen)
    options = _Options(chosen, scale == "shared", bars, percentile_of(robust), title)
    _check_size(comparison, options)
    return render(
        _characters(comparison, title),
        lambda fonts: [_picture(comparison, options, fonts)],
        format=format,
        dpi=DPI if dpi is None else dpi,
    )


def _view(comparison: "Comparison", view: str | None) -> View:
    if view is None:
        return "matrix" if comparison.same_tokens else "text"
    if view not in VIEWS:
        raise InvalidInput(f"view={view!r} is none of {', '.join(map(repr, VIEWS))}")
    if view != "text" and not comparison.same_tokens:
        raise InvalidInput(
            f"view={view!r} sets the same tokens side by side, and those of {comparison!r} differ: "
            "view='text' shows each by itself"
        )
    if view == "bars" and len(comparison) > len(BAR_COLOURS):
        raise InvalidInput(
            f"view='bars' has colours for {len(BAR_COLOURS)} explanations, not {len(comparison)}: "
            "take view='matrix'"
        )
    return cast("View", view)


def _check_size(comparison: "Comparison", options: _Options) -> None:
    sizes = [len(explanation.tokens) for explanation in comparison]
    if options.view == "bars":
        sizes = [min(size, options.top) for size in sizes]
    if sum(sizes) > _MOST[options.view]:
        raise InvalidInput(
            f"{options.view!r} of {len(sizes)} explanations is {sum(sizes):,} relevances, more "
            f"than one file takes ({_MOST[options.view]:,}): compare parts of them"
        )


def _picture(comparison: "Comparison", options: _Options, fonts: Fonts) -> Picture:
    summaries = [summarise(explanation) for explanation in comparison]
    names = [shortened(printable(name)) for name in comparison.names]
    shown = _shown(comparison, names, options)
    width = WIDTH
    if options.view == "matrix":
        width, body = wrapped_map(_table(comparison, shown), fonts)
        foot = [_legend(shown, options, fonts)]
    elif options.view == "text":
        body = [block for each in shown for block in _text(each, options, fonts)]
        foot = [_legend(shown, options, fonts)]
    else:
        groups, count = _groups(shown, summaries, options)
        body = grouped_rows(groups, fonts)
        foot = swatch_blocks(list(zip(names, BAR_COLOURS, strict=False)), fonts, width)
        foot += caption_blocks(_of_tokens(len(groups), count), fonts, width)
    headlines = {summary.headline for summary in summaries}
    title = options.title
    if title is None:
        title = shortened(headlines.pop()) if len(headlines) == 1 else "Relevance, compared"
    title = printable(title)
    less = [f"{DIFFERENCE}: {names[0]} − {names[1]}"] if len(shown) > len(names) else []
    texts = [
        *less,
        *_scales(shown, options),
        *_facts(comparison, summaries, names),
        *_correlations(comparison, names),
    ]
    return Picture(
        body,
        title_blocks(title, "", fonts, width),
        [*foot, *caption_blocks(texts, fonts, width)],
        width,
        title,
    )


def _shown(comparison: "Comparison", names: list[str], options: _Options) -> list[_Shown]:
    """Return all that is shown one below the other, each with its scale."""
    values = [explanation.relevance.double() for explanation in comparison]
    tokens = [cast("list[str]", explanation.tokens) for explanation in comparison]
    names = list(names)
    if len(values) == 2 and comparison.same_tokens and options.view != "bars":
        values.append(difference_of(comparison))
        tokens.append(tokens[0])
        names.append(DIFFERENCE)
    if options.shared:
        scales = [scale_of(torch.cat(values), options.percentile)] * len(values)
    else:
        scales = [scale_of(one, options.percentile) for one in values]
    return [_Shown(*each) for each in zip(names, tokens, values, scales, strict=True)]


def _table(comparison: "Comparison", shown: list[_Shown]) -> Table:
    rows = [each.values.tolist() for each in shown]
    levels = [[s.scale.level(value) for value in row] for s, row in zip(shown, rows, strict=True)]
    numbers: list[list[str]] = []
    if sum(map(len, rows)) <= MOST_NUMBERS:
        written = [number_format(_largest(each.values)) for each in shown]
        numbers = [[number(v) for v in row] for number, row in zip(written, rows, strict=True)]
    columns = [token.alone for token in summarise(comparison[0]).tokens]
    return Table(
        levels,
        numbers,
        [each.name for each in shown],
        columns,
        ("explanations ↓", "tokens →"),
        apart=len(shown) - len(comparison),
    )


def _text(shown: _Shown, options: _Options, fonts: Fonts) -> Iterator[Block]:
    """Go through the lines of a text, of which the first has its name above."""
    levels = (shown.scale.level(value) for value in shown.values.tolist())
    shades = [colour.LIGHT.shade(level).background for level in levels]
    lines = running_text(shown.tokens, shades, fonts)
    name = fonts.fitted(shown.name, (WIDTH - 2 * MARGIN) * 0.6 * SIZE / _NAME)
    note = "" if options.shared else f"colours up to {_end(shown)}"

    def paint(pen: Pen, top: float) -> None:
        base = top + _ABOVE_NAME + _NAME
        pen.write(MARGIN, base, name, INK, size=_NAME)
        if note:
            x = MARGIN + fonts.measure(name) * _NAME / SIZE + 10
            pen.write(x, base, note, GREY, size=SIZE * 0.7)
        if lines:
            lines[0].paint(pen, base + _BELOW_NAME)

    # In one block, as a name is of no use at the end of a page.
    first = lines[0].height if lines else 0.0
    yield Block(_ABOVE_NAME + _NAME + _BELOW_NAME + first, paint)
    yield from lines[1:]


def _groups(
    shown: list[_Shown], summaries: list[Summary], options: _Options
) -> tuple[list[Group], int]:
    """Return bars for the tokens that are strongest in any explanation, and of how many."""
    values = torch.stack([each.values for each in shown])
    if not options.shared:  # then no explanation may hide another
        largest = values.abs().amax(1, keepdim=True) if values.numel() else values
        values = values / largest.where(largest > 0, 1.0)
    strength = values.abs().amax(0)
    order = strength.argsort(descending=True, stable=True)[: options.top].tolist()
    if options.shared:
        numbers = [number_format(max((_largest(each.values) for each in shown), default=0.0))]
        numbers *= len(shown)
    else:
        numbers = [number_format(_largest(each.values)) for each in shown]
    groups = [
        Group(
            i,
            summaries[0].tokens[i].alone,
            [
                Bar(value, number(value), each.scale, shade)
                for value, number, each, shade in zip(
                    (each.values[i].item() for each in shown),
                    numbers,
                    shown,
                    BAR_COLOURS,
                    strict=False,
                )
            ],
        )
        for i in order
    ]
    return groups, len(strength)


def _of_tokens(shown: int, count: int) -> list[str]:
    if shown == count:
        return []
    return [f"the {shown} of {count} tokens with the largest |relevance| in any explanation"]


def _legend(shown: Sequence[_Shown], options: _Options, fonts: Fonts) -> Block:
    if options.shared:
        return legend_block(relevance_legend(shown[0].scale), fonts)
    least, most = "-1", "+1"
    if any(each.scale.beyond for each in shown):
        least, most = f"≤ {least}", f"≥ {most}"
    colours = relevance_legend(shown[0].scale).colours
    unit = "relevance, as a part of each explanation's own scale"
    return legend_block(Legend(colours, [least, "0", most], unit), fonts)


def _scales(shown: list[_Shown], options: _Options) -> list[str]:
    """Say whose scale is whose, and how far it goes."""
    what = "bars" if options.view == "bars" else "colours"
    if options.shared:
        note = f"one scale for all: {what} up to {_end(shown[0])}"
        return [note, *shown[0].scale.note(what)]
    ends = "; ".join(f"{each.name}: {_end(each)}" for each in shown)
    notes = [f"each has a scale of its own, with {what} up to {ends}"]
    notes += [f"{each.name}: {note}" for each in shown for note in each.scale.note(what)]
    return notes


def _end(shown: _Shown) -> str:
    return f"±{number_format(shown.scale.end)(shown.scale.end).removeprefix('+')}"


def _facts(comparison: "Comparison", summaries: list[Summary], names: list[str]) -> list[str]:
    """Return what is known of all, and of each its value, its sum and what else is its own."""
    alike, own = facts_of(summaries, list(comparison.names))
    lines = [joined(alike)] if alike else []
    for name, summary, more in zip(names, summaries, own, strict=True):
        sums = f"value {summary.value_number}, sum of relevance {summary.total_number}"
        lines.append(f"{name}: {sums}" + (f", {shortened(more)}" if more else ""))
    return lines


def _correlations(comparison: "Comparison", names: list[str]) -> list[str]:
    if not comparison.same_tokens:
        return ["tokens differ: no differences, no correlations"]
    pairs, more = correlations(comparison, names)
    lines = [f"{f'correlation {pair}'.rstrip()}: {words}" for pair, words in pairs]
    return lines + ([f"… and of {more} more pairs"] if more else [])


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


def _characters(comparison: "Comparison", title: str | None) -> str:
    """Return all that any text may hold."""
    targets = [cast("ExplainedTarget", explanation.target) for explanation in comparison]
    texts = [
        *(token for e in comparison for token in cast("list[str]", e.tokens)),
        *(text for target in targets for text in (target.name, target.prediction)),
        *(text for e in comparison for pair in e.provenance.items() for text in pair),
        *comparison.names,
        title or "",
    ]
    return FIXED + "±" + "".join(map(printable, texts))
