"""What was explained; and what the parts of an explanation must be to fit together."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lxt.errors import InvalidInput
from lxt.latent.relevance import Latent

if TYPE_CHECKING:
    from lxt.explanation import Explanation

__all__ = ["ExplainedTarget", "check"]

KINDS = ("prediction", "logit", "contrast", "label", "unit", "sum")


@dataclass(frozen=True)
class ExplainedTarget:
    """What was explained, in the model's own words.

    Raises:
        InvalidInput: the kind is none of those, the value is not finite, or a field is of the
            wrong type.

    """

    kind: str
    """``"prediction"`` (the model's own top token), ``"logit"``, ``"contrast"`` (a difference of
    two logits), ``"label"`` (of a classifier), ``"unit"`` (within the model) or ``"sum"`` (of
    several of these)."""
    name: str
    """What a person reads: ``'" Paris"'``, ``'" Paris" − " London"'``, ``'POSITIVE'``,
    ``'5 tokens: " Paris" + …'``."""
    value: float
    """The explained quantity: a logit, a difference or sum of logits, a unit's activation."""
    position: int | None
    """The token whose logits were explained, counted from 0 without padding; ``None`` for a
    classifier, and for a sum over several positions."""
    prediction: str
    """The model's own top token or label there, written as ``name`` is; of a sum, at its last
    position; empty for a unit."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"target kind {self.kind!r} is none of {', '.join(KINDS)}")
        for field in ("name", "prediction"):
            if not isinstance(getattr(self, field), str):
                raise InvalidInput(f"target {field} {getattr(self, field)!r} is not a string")
        # Compared, not converted: an integer may be too large for a float.
        largest = sys.float_info.max
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not -largest <= self.value <= largest:
            raise InvalidInput(f"target value {self.value!r} is not a finite number")
        position = self.position
        counts = isinstance(position, int) and not isinstance(position, bool) and position >= 0
        if position is not None and not counts:
            raise InvalidInput(f"target position {position!r} is not a token's, from 0, or None")


def check(explanation: Explanation) -> None:
    """Raise what is wrong with an explanation.

    Raises:
        InvalidInput: shapes, types or values do not fit together, or relevance is not finite.

    """
    if explanation.layers is not None:
        _check_list("layers", explanation.layers, None, str)
        if not explanation.layers:
            raise InvalidInput("layers is an empty list: give names, or None for no such axis")
    _check_tensors(explanation)
    tokens, target, is_many = explanation.tokens, explanation.target, explanation.is_many
    if explanation.is_batch:
        rows, width = explanation.mask.shape
        _check_list("tokens", tokens, rows, list)
        for row in tokens:
            _check_list("a row of tokens", row, width, str)
        _check_list("target", target, rows, list if is_many else ExplainedTarget)
        if is_many:
            _check_rows_of_targets(explanation.relevance, cast("list[list[object]]", target))
    else:
        _check_list("tokens", tokens, len(explanation.mask), str)
        if is_many:
            _check_list("target", target, len(explanation.relevance), ExplainedTarget)
        elif not isinstance(target, ExplainedTarget):
            raise InvalidInput(
                f"target is a {type(target).__name__}, and one explanation takes one "
                "ExplainedTarget"
            )
    _check_latent(explanation)
    provenance = explanation.provenance
    items = provenance.items() if isinstance(provenance, dict) else [(None, None)]
    if not all(isinstance(text, str) for item in items for text in item):
        raise InvalidInput(f"provenance {provenance!r} is not a dict of strings")


def _check_latent(explanation: Explanation) -> None:
    latent = explanation.latent
    if not isinstance(latent, dict) or not all(isinstance(name, str) for name in latent):
        raise InvalidInput("latent is no dict of what taps read, by name")
    sizes = dict(zip(explanation.axes, explanation.relevance.shape, strict=True))
    for name, one in latent.items():
        if not isinstance(one, Latent):
            raise InvalidInput(f"latent[{name!r}] is a {type(one).__name__}, not a Latent")
        theirs = dict(zip(one.axes, one.relevance.shape, strict=True))
        for axis in ("batch", "targets", "tokens"):
            if axis in theirs and theirs[axis] != sizes.get(axis):
                raise InvalidInput(
                    f"latent[{name!r}] has {theirs[axis]} on the axis {axis}, and relevance "
                    f"{sizes.get(axis, 'no such')}"
                )


def _check_tensors(explanation: Explanation) -> None:
    relevance = explanation.relevance
    expected = {
        "relevance": (torch.float32, torch.float64),
        "token_ids": (torch.int64,),
        "mask": (torch.bool,),
    }
    for name, dtypes in expected.items():
        tensor = getattr(explanation, name)
        if not isinstance(tensor, Tensor):
            raise InvalidInput(f"{name} is a {type(tensor).__name__}, not a Tensor")
        if tensor.dtype not in dtypes or tensor.device.type != "cpu":
            raise InvalidInput(
                f"{name} is {tensor.dtype} on {tensor.device}, "
                f"and should be {' or '.join(map(str, dtypes))} on the CPU"
            )
    _check_shapes(explanation)
    if relevance.requires_grad:
        raise InvalidInput("relevance is part of an autograd graph: give relevance.detach()")
    if not relevance.isfinite().all():
        raise InvalidInput("relevance holds NaN or infinity")
    if explanation.is_batch:
        relevance = relevance.movedim(0, -2)  # batch and tokens last
    if (relevance * ~explanation.mask).any():
        raise InvalidInput("relevance is not 0 at padding, where mask is False")


def _check_shapes(explanation: Explanation) -> None:
    relevance, ids, mask = explanation.relevance, explanation.token_ids, explanation.mask
    if mask.shape != ids.shape:
        raise InvalidInput(f"token_ids has shape {list(ids.shape)}, and mask {list(mask.shape)}")
    if ids.dim() not in (1, 2):
        raise InvalidInput(
            f"token_ids has shape {list(ids.shape)}, not [tokens] or [batch, tokens]"
        )
    layers = () if explanation.layers is None else (len(explanation.layers),)
    least = ids.dim() + len(layers)
    targets = relevance.shape[ids.dim() - 1 : ids.dim()] if relevance.dim() == least + 1 else ()
    if relevance.shape != (*ids.shape[:-1], *targets, *layers, ids.shape[-1]):
        rows = "batch, " if ids.dim() == 2 else ""
        rest = f"{layers[0]} layers, tokens" if layers else "tokens"
        raise InvalidInput(
            f"token_ids has shape {list(ids.shape)}, and relevance {list(relevance.shape)}: it "
            f"should be [{rows}{rest}] or [{rows}targets, {rest}]"
        )


def _check_rows_of_targets(relevance: Tensor, rows: list[list[object]]) -> None:
    for number, (values, targets) in enumerate(zip(relevance, rows, strict=True)):
        if len(targets) > len(values):
            raise InvalidInput(
                f"row {number} has {len(targets)} targets where relevance has {len(values)}"
            )
        _check_list("a row of targets", targets, len(targets), ExplainedTarget)
        if values[len(targets) :].any():
            raise InvalidInput(f"relevance of row {number} is not 0 beyond its targets")


def _check_list(name: str, items: object, length: int | None, kind: type) -> None:
    if not isinstance(items, list):
        raise InvalidInput(f"{name} is a {type(items).__name__}, not a list of {kind.__name__}")
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise InvalidInput(
                f"{name}: number {i} is a {type(item).__name__}, not a {kind.__name__}"
            )
    if length is not None and len(items) != length:
        raise InvalidInput(f"{name}: {len(items)} given where relevance has {length}")
