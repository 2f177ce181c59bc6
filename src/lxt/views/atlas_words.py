"""What both views of an atlas show: the same words, numbers and levels of colour."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch

from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.tokens import printable
from lxt.views.summary import ShownToken, summarise

if TYPE_CHECKING:
    from lxt.atlas.contexts import UnitStatistics
    from lxt.atlas.describe import Described, Description

__all__ = ["activation_tokens", "context_tokens", "facts", "histogram", "where"]

_TOKENS = 12


def facts(description: Description) -> dict[str, str]:
    """What is counted of a unit."""
    s = description.statistics
    found = {
        "model": printable(description.provenance.get("model", "")),
        "corpus": description.provenance.get("corpus", ""),
        "activation": f"mean {s.mean:.4g}, deviation {s.deviation:.4g}, from {s.least:.4g} to "
        f"{s.most:.4g}",
        "above 0": f"{100 * s.active:.1f} % of {s.tokens} tokens",
    }
    if s.absolute_relevance is not None and s.relevance is not None:
        found["relevance"] = f"mean {s.relevance:.3g}, of |relevance| {s.absolute_relevance:.3g}"
    if description.note:
        found["attribution"] = description.note
    return found


def where(description: Description, by: str) -> dict[str, str]:
    """At what tokens and positions the peaks of a ranking are."""
    tokens, places = description.tokens[by], description.positions[by]
    if not places:
        return {"contexts": "none"}
    listed = [
        f"{printable(token)!r}" + (f" × {count}" if count > 1 else "")
        for token, count in tokens[:_TOKENS]
    ]
    more = len(tokens) - _TOKENS
    return {
        "at tokens": ", ".join(listed) + (f", and {more} others" if more > 0 else ""),
        "which are": ", ".join(f"{name} {share:.0%}" for name, share in description.classes[by]),
        "at positions": f"{places[0]} to {places[-1]} of a row, median {places[len(places) // 2]}",
    }


def context_tokens(one: Described) -> tuple[list[ShownToken], str]:
    """The tokens of a context with the colours of relevance for the unit, and words for it.

    Without an attribution, with those of the unit's activation.
    """
    context = one.context
    peak = printable(context.tokens[context.peak])
    words = f"{context.by} {context.value:.4g} at {peak!r}, text {context.text}, "
    words += f"token {context.position}"
    if one.attribution is None:
        return activation_tokens(one), f"{words}; colours: activation"
    return summarise(_going_on(one)).tokens, f"{words}; colours: relevance for the unit"


def _going_on(one: Described) -> Explanation:
    """The attribution, with the tokens after the peak, which in a causal model have no part."""
    e, context = one.attribution, one.context
    assert e is not None
    after = [] if len(e.token_ids) > context.place + 1 else context.tokens[context.peak + 1 :]
    count = len(after)
    return replace(
        e,
        relevance=torch.cat((e.relevance, e.relevance.new_zeros(count))),
        tokens=[*cast("list[str]", e.tokens), *after],
        token_ids=torch.cat((e.token_ids, e.token_ids.new_zeros(count))),
        mask=torch.cat((e.mask, e.mask.new_ones(count))),
    )


def activation_tokens(one: Described) -> list[ShownToken]:
    """The tokens of a context's window with the colours of the unit's activation."""
    context = one.context
    count = len(context.tokens)
    shown = Explanation(
        context.activations,
        context.tokens,
        torch.zeros(count, dtype=torch.int64),
        torch.ones(count, dtype=torch.bool),
        ExplainedTarget("unit", "", context.activation, context.peak, ""),
        {},
    )
    return summarise(shown).tokens


def histogram(statistics: UnitStatistics) -> list[tuple[str, int]]:
    """Bins with how many tokens are in them, from the first that is not empty to the last."""
    from lxt.atlas.statistics import EDGES

    positive = [f"from {_power(edge)}" for edge in EDGES]
    negative = [f"to −{_power(edge)}" for edge in reversed(EDGES)]
    names = [*negative, f"within ±{_power(EDGES[0])}", *positive]
    bins = list(zip(names, statistics.histogram, strict=True))
    filled = [i for i, (_, count) in enumerate(bins) if count]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def _power(edge: float) -> str:
    return f"{edge:g}" if edge >= 1 else f"1/{1 / edge:g}"
