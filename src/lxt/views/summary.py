"""What every view shows of one explanation: the same words and numbers, made once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lxt.tokens import printable
from lxt.views import colour

if TYPE_CHECKING:
    from lxt.explained import ExplainedTarget
    from lxt.explanation import Explanation

_WORDS = {
    "prediction": "prediction {}",
    "logit": "logit of {}",
    "contrast": "logit difference {}",
    "label": "label {}",
    "sum": "sum of {}",
}


@dataclass(frozen=True)
class ShownToken:
    """One token as it is shown; its texts are inert, with nothing invisible left in them."""

    position: int
    running: str
    """As a part of the text: a newline is ``↵`` and then breaks the line."""
    alone: str
    """By itself: a space at its ends, which could be overlooked, is ``␣``."""
    relevance: float
    number: str
    share: float
    """Its part of the sum of all |relevance|, from 0 to 1."""
    level: int
    """Its step on the colour map."""


@dataclass(frozen=True)
class Summary:
    """One explanation, without padding, as it is shown."""

    headline: str
    facts: dict[str, str]
    tokens: list[ShownToken]
    strongest: list[ShownToken]
    """The tokens by falling |relevance|, of equals the earlier first."""
    scale: float
    """The largest |relevance|, at which colours and bars are full."""
    scale_number: str
    total_number: str
    value_number: str
    provenance: dict[str, str]


def summarise(row: "Explanation") -> Summary:
    """Put a single explanation, of layers the first, into words and numbers."""
    (row,) = row.rows()
    if row.is_traced:
        row = row[0]
    target = cast("ExplainedTarget", row.target)
    labels = cast("list[str]", row.tokens)
    relevance = row.relevance.double()
    scale = relevance.abs().max().item() if len(row) else 0.0
    absolute = relevance.abs().sum().item()
    total = relevance.sum().item()
    number = number_format(max(scale, abs(total), abs(target.value)))
    tokens = [
        ShownToken(
            position=position,
            running="↵\n".join(printable(part) for part in label.split("\n")),
            alone=_visible_ends(printable(label)),
            relevance=value,
            number=number(value),
            share=abs(value) / absolute if absolute else 0.0,
            level=colour.level_of(value, scale),
        )
        for position, (label, value) in enumerate(zip(labels, relevance.tolist(), strict=True))
    ]
    place = "" if target.position is None else f" at position {target.position}"
    facts = {
        "explained": _WORDS[target.kind].format(printable(target.name)) + place,
        "value": number(target.value).removeprefix("+"),
        "model predicts": printable(target.prediction),
    }
    provenance = {printable(key): printable(text) for key, text in row.provenance.items()}
    facts |= {name: provenance[name] for name in ("composite", "model") if name in provenance}
    return Summary(
        headline=f"Relevance for {printable(target.name)}",
        facts=facts,
        tokens=tokens,
        strongest=sorted(tokens, key=lambda token: -abs(token.relevance)),
        scale=scale,
        scale_number=number(scale).removeprefix("+"),
        total_number=number(total).removeprefix("+"),
        value_number=number(target.value).removeprefix("+"),
        provenance=provenance,
    )


def headings(explanation: "Explanation", *, counted: bool) -> list[str]:
    """Return a heading for each of ``explanation.rows()``; of a single one none is needed.

    With ``counted`` it says out of how many.
    """

    def named(what: str, count: int) -> list[str]:
        return [f"{what} {i} of {count}" if counted else f"{what} {i}" for i in range(count)]

    rows = named("row", len(explanation)) if explanation.is_batch else [""]
    if not explanation.is_many:
        return rows
    return [
        f"{row}, {target}" if row else target
        for row, part in zip(rows, explanation.inputs(), strict=True)
        for target in named("target", len(part))
    ]


def number_format(largest: float) -> Callable[[float], str]:
    """Return how to write numbers up to ``largest``: signed, equally long, four digits for it."""
    if largest and not 1e-3 <= largest < 1e6:
        return lambda value: f"{value:+.2e}"
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0
    return lambda value: f"{value:+.{decimals}f}"


def _visible_ends(text: str) -> str:
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(text) - before - len(inner))
