"""What ablation and patching are given: rows with their targets, and composites by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn

from lxt.composite import Composite
from lxt.composites import as_composite
from lxt.errors import InvalidComposite, InvalidInput, InvalidModel, InvalidTarget
from lxt.evaluate.runs import Row
from lxt.inputs import TokenBatch, encode, input_embeddings
from lxt.latent.units import Unit
from lxt.targets import Every
from lxt.text_case import TextCase

__all__ = ["Composites", "as_composites", "require_one_of", "require_pair", "rows_of"]

Composites = Composite | str | Sequence[Composite | str] | Mapping[str, Composite | str]


def rows_of(model: nn.Module, inputs: Any, tokenizer: Any, target: Any, argument: str) -> list[Row]:
    """Each row by itself, with its target.

    Raises:
        InvalidModel: in training mode, or none that `lxt.explain` takes.
        InvalidTarget: not one for each row, or of other kinds.
        LxtError: see `lxt.explain`.

    """
    input_embeddings(model)  # or raise
    if any(module.training for module in model.modules()):
        raise InvalidModel(
            f"{type(model).__name__} is in training mode, where dropout hides the effect of "
            "anything else: call model.eval()"
        )
    batch = encode(inputs, tokenizer, model)
    count = len(batch.ids)
    targets = list(target) if isinstance(target, list | tuple) else [target] * count
    if len(targets) != count:
        raise InvalidTarget(f"there are {len(targets)} targets for {count} rows of {argument}")
    for one in targets:
        if isinstance(one, Unit | Every | list | tuple):
            raise InvalidTarget(
                f"{one!r}: a row has one target here, a logit or a difference of logits: "
                "lxt.Logit(token), lxt.Contrast(a, b), lxt.Label(name)"
            )
    return [
        Row(TextCase(model, _alone(batch, row), tokenizer=tokenizer, target=one))
        for row, one in enumerate(targets)
    ]


def _alone(batch: TokenBatch, row: int) -> dict[str, Any]:
    one = batch.of_rows([row])
    return {
        "input_ids": one.right_padded(one.ids),
        "attention_mask": one.right_padded(one.mask.long()),
        **{name: one.right_padded(values) for name, values in one.per_token.items()},
        **one.other,
    }


def require_pair(clean: TokenBatch, corrupt: TokenBatch, number: int) -> None:
    """Make sure that two rows have the same positions, and differ.

    Raises:
        InvalidInput: they haven't, or don't.

    """
    lengths = clean.lengths()[0], corrupt.lengths()[0]
    if lengths[0] != lengths[1]:
        raise InvalidInput(
            f"pair {number}: the clean prompt has {lengths[0]} tokens and the corrupt one "
            f"{lengths[1]}; what is patched must have the same positions in both"
        )
    if torch.equal(clean.ids[clean.mask], corrupt.ids[corrupt.mask]):
        raise InvalidInput(f"pair {number}: the clean prompt and the corrupt one are the same")


def as_composites(composites: Any) -> dict[str, Composite]:
    """Composites by what they are called.

    Raises:
        InvalidComposite: one of them is none, or hands back relevance, or two have one name.

    """
    if isinstance(composites, str | Composite):
        composites = [composites]
    if isinstance(composites, Mapping):
        named = [(str(name), as_composite(one)) for name, one in composites.items()]
    else:
        if not isinstance(composites, Iterable):
            composites = [composites]
        found = [as_composite(one) for one in composites]
        named = [(one.name, one) for one in found]
    if not named:
        raise InvalidComposite("composites is empty: give one, such as 'attnlrp'")
    names = [name for name, _ in named]
    for name, one in named:
        if one.formulation != "gradient":
            raise InvalidComposite(
                f"{name!r} hands back relevance, and gradients are needed here: give the efficient "
                "one of its kind, such as lxt.attnlrp"
            )
        if names.count(name) > 1:
            raise InvalidComposite(
                f"two composites are called {name!r}: give a mapping, {{name: composite}}"
            )
    return dict(named)


def require_one_of(given: Any, kind: Any, argument: str) -> None:
    """Make sure that a value is one of a `Literal`.

    Raises:
        InvalidInput: it isn't.

    """
    if given not in get_args(kind):
        known = ", ".join(map(repr, get_args(kind)))
        raise InvalidInput(f"{argument}={given!r} is none of {known}")
