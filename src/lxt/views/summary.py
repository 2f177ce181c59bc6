"""What every view shows of one explanation: the same words and numbers, made once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

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
    "unit": "unit {}",
    "sum": "sum of {}",
}
_OF_INTEREST = ("composite", "model")


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
    scale = _largest(relevance)
    absolute = (relevance.abs() / (scale or 1)).sum().item()  # the sum itself may be too large
    total = relevance.sum().item()
    of_sums = number_format(max(scale, abs(total), abs(target.value)))
    # All alike, so that they compare at a glance, unless tokens would have too few digits.
    number = of_sums if 10 * scale >= max(abs(total), abs(target.value)) else number_format(scale)
    tokens = [
        ShownToken(
            position=position,
            running="↵\n".join(printable(part) for part in label.split("\n")),
            alone=_visible_ends(printable(label)),
            relevance=value,
            number=number(value),
            share=abs(value) / scale / absolute if absolute else 0.0,
            level=colour.level_of(value, scale),
        )
        for position, (label, value) in enumerate(zip(labels, relevance.tolist(), strict=True))
    ]
    facts = {
        "explained": in_words(target),
        "value": of_sums(target.value).removeprefix("+"),
    }
    if target.prediction:
        facts["model predicts"] = printable(target.prediction)
    provenance = _provenance(row)
    facts |= {name: provenance[name] for name in _OF_INTEREST if name in provenance}
    return Summary(
        headline=f"Relevance for {printable(target.name)}",
        facts=facts,
        tokens=tokens,
        strongest=sorted(tokens, key=lambda token: -abs(token.relevance)),
        scale=scale,
        scale_number=number(scale).removeprefix("+"),
        total_number=of_sums(total).removeprefix("+"),
        value_number=of_sums(target.value).removeprefix("+"),
        provenance=provenance,
    )


@dataclass(frozen=True)
class Matrix:
    """Relevance of the tokens of one input for many targets, or at many layers, as it is shown."""

    facts: dict[str, str]
    rows: list[str]
    """The name of each target or layer; inert, as all texts here."""
    columns: list[str]
    """The tokens, each by itself."""
    values: Tensor
    """float64, ``[rows, columns]``, on the CPU."""
    scale: float
    """The largest |relevance|, at which colours are full."""
    number: Callable[[float], str]
    sums: dict[str, list[str]]
    """Numbers of each row: the sum of its relevance, and of targets their value."""

    @property
    def scale_number(self) -> str:
        """The scale, without a sign."""
        return self.number(self.scale).removeprefix("+")

    def strongest(self, k: int) -> list[tuple[int, int]]:
        """List the row and column of the ``k`` largest |relevance| that are not 0, in order."""
        flat = self.values.abs().flatten()
        if not flat.numel() or not k:
            return []
        least = flat.topk(min(k, len(flat))).values[-1]  # to sort them all would take seconds
        some = ((flat >= least) & (flat > 0)).nonzero()[:, 0]
        order = some[flat[some].argsort(descending=True, stable=True)[:k]]
        return [divmod(i, len(self.columns)) for i in order.tolist()]


def matrix_of_targets(part: "Explanation") -> Matrix:
    """Put one input with many targets, of layers at the first, into words and numbers."""
    targets = cast("list[ExplainedTarget]", part.target)
    values = (part.relevance[:, 0] if part.is_traced else part.relevance).double()
    totals = values.sum(-1).tolist()
    kinds = ", ".join(dict.fromkeys(target.kind for target in targets))
    count = f"{len(targets)} target{'s' * (len(targets) != 1)}"
    facts = {"explained": f"{count}: {kinds}" if kinds else count}
    provenance = _provenance(part)
    facts |= {name: provenance[name] for name in _OF_INTEREST if name in provenance}
    facts |= _layers_fact(part)
    sums = {"sum": totals, "value": [target.value for target in targets]}
    return _matrix(part, facts, [printable(target.name) for target in targets], values, sums)


def matrix_of_layers(single: "Explanation") -> Matrix:
    """Put one input with one target, at all layers, into words and numbers."""
    values = single.relevance.double()
    rows = [printable(layer) for layer in single.layers or []]
    facts = summarise(single).facts | _layers_fact(single)
    return _matrix(single, facts, rows, values, {"sum": values.sum(-1).tolist()})


def _matrix(
    part: "Explanation",
    facts: dict[str, str],
    rows: list[str],
    values: Tensor,
    sums: dict[str, list[float]],
) -> Matrix:
    scale = _largest(values)
    of_sums = number_format(max((abs(n) for column in sums.values() for n in column), default=0))
    return Matrix(
        facts=facts,
        rows=rows,
        columns=[_visible_ends(printable(token)) for token in cast("list[str]", part.tokens)],
        values=values,
        scale=scale,
        number=number_format(scale),
        sums={name: [of_sums(n).removeprefix("+") for n in sums[name]] for name in sums},
    )


def _layers_fact(part: "Explanation") -> dict[str, str]:
    layers = part.layers
    if layers is None:
        return {}
    ends = printable(layers[0]) + (f" … {printable(layers[-1])}" if len(layers) > 1 else "")
    return {"layers": f"{len(layers)}: {ends}"}


def _provenance(part: "Explanation") -> dict[str, str]:
    return {printable(key): printable(text) for key, text in part.provenance.items()}


def in_words(target: "ExplainedTarget") -> str:
    """Say what was explained, and where: inert, as all texts here."""
    place = "" if target.position is None else f" at position {target.position}"
    return _WORDS[target.kind].format(printable(target.name)) + place


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


def percentage(share: float) -> str:
    """Write a share from 0 to 1; none that is not 0 is written as 0."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def number_format(largest: float) -> Callable[[float], str]:
    """Return how to write numbers up to ``largest``: signed, with the same decimals, four digits.

    It is ``largest`` that has four. Smaller ones have fewer, but none that is not 0 is written as
    0, and 0 has no sign. There are powers of ten where zeros would have to be counted.
    """
    if largest and not 1e-3 <= largest < 1e6:
        return lambda value: f"{value:+.2e}" if value else "0"
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0

    def written(value: float) -> str:
        text = f"{value or 0.0:+.{decimals}f}"  # -0.0 is 0
        if float(text):
            return text
        return f"{value:+.0e}" if value else text[1:]

    return written


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


def _visible_ends(text: str) -> str:
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    return "␣" * before + inner + "␣" * (len(text) - before - len(inner))
