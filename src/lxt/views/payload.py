"""What a page's script is given: the numbers as they were computed, and inert texts."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lxt.tokens import printable
from lxt.views.grouping import direction, sentence_starts, word_starts
from lxt.views.summary import in_words

if TYPE_CHECKING:
    from lxt.explained import ExplainedTarget
    from lxt.explanation import Explanation

__all__ = ["MOST_EXACT", "as_json", "item", "values"]

MOST_EXACT = 500_000
"""Up to so many relevances are given as they are; more as 16 bits, of each row's largest."""

# They end a script element or a line, wherever they stand in one.
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def item(name: str, explanation: Explanation) -> dict[str, Any]:
    """One input, without padding, for all of its targets and layers."""
    (one,) = explanation.inputs()
    tokens = cast("list[str]", one.tokens)
    targets = cast("list[ExplainedTarget]", one.target if one.is_many else [one.target])
    return {
        "name": printable(name),
        "tokens": [_running(token) for token in tokens],
        "direction": direction(tokens),
        "words": word_starts(tokens),
        "sentences": sentence_starts(tokens),
        "targets": [_target(target) for target in targets],
        "many": one.is_many,
        "layers": None if one.layers is None else [printable(layer) for layer in one.layers],
        "provenance": {printable(key): printable(text) for key, text in one.provenance.items()},
        **values(one.relevance),
        # As float64: it may be beyond the largest, which JSON has no number for.
        "totals": _base64(one.relevance.double().sum(-1)),
    }


def as_json(content: Any) -> str:
    """Write JSON that stands in a script element as it is, and ends none."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPED)


def _running(token: str) -> str:
    return "↵\n".join(printable(part) for part in token.split("\n"))


def _target(target: ExplainedTarget) -> dict[str, Any]:
    return {
        "name": printable(target.name),
        "words": in_words(target),
        "value": target.value,
        "position": target.position,
        "prediction": printable(target.prediction),
    }


def values(relevance: Tensor) -> dict[str, Any]:
    """The numbers in their order, outer axes first, little-endian; ``[…, tokens]`` of a text."""
    if relevance.numel() <= MOST_EXACT:
        return {
            "encoding": str(relevance.dtype).removeprefix("torch."),
            "base64": _base64(relevance),
        }
    largest = relevance.abs().amax(-1, keepdim=True).double()
    steps = (relevance / largest.clamp(min=torch.finfo(torch.float64).tiny) * 32767).round()
    return {
        "encoding": "int16",
        "base64": _base64(steps.to(torch.int16)),
        "largest": largest.flatten().tolist(),
    }


def _base64(values: Tensor) -> str:
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
