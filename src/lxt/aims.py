"""Aims: what was asked for, as seeds and positions, target by target in each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lxt.errors import InvalidInput, InvalidTarget
from lxt.inputs import TokenBatch
from lxt.latent.inside import Inside
from lxt.latent.seeds import UnitSeed
from lxt.latent.units import Unit
from lxt.targets import Every, Prediction, Readout, Seed, Target

__all__ = ["Aim", "Aims", "aims_of"]


@dataclass(frozen=True)
class Aim:
    """What is explained of one row.

    Attributes:
        seed: which logits count.
        position: whose logits, counted without padding; None for a classifier.

    """

    seed: Seed | UnitSeed
    position: int | None


Aims = list[list[Aim]]
"""By row and target. Rows may have different numbers of targets."""


def aims_of(
    targets: Any,
    readout: Readout,
    batch: TokenBatch,
    model: nn.Module,
    inside: Inside | None = None,
) -> Aims:
    """What is explained of each row, for one target, a list or tuple of them, or `Every`.

    Raises:
        InvalidTarget, InvalidInput: see `lxt.explain`; of a list the message says which.

    """
    if isinstance(targets, Every):
        return [
            [Aim(seed, seed.position) for seed in targets.seeds(ids[keep].tolist(), readout, row)]
            for row, (ids, keep) in enumerate(zip(batch.ids, batch.mask, strict=True))
        ]
    if not isinstance(targets, list | tuple):
        return [[aim] for aim in _column(targets, readout, batch, model, inside)]
    if not targets:
        raise InvalidTarget(f"there is nothing in {targets!r}: give at least one target")
    columns = [
        _numbered(index, lambda target=target: _column(target, readout, batch, model, inside))
        for index, target in enumerate(targets)
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _numbered(index: int, resolve: Callable[[], list[Aim]]) -> list[Aim]:
    try:
        return resolve()
    except (InvalidTarget, InvalidInput) as error:
        raise type(error)(f"target {index}: {error}") from None


def _column(
    target: Any, readout: Readout, batch: TokenBatch, model: nn.Module, inside: Inside | None
) -> list[Aim]:
    """One target, in each row."""
    seed = _seed(target, readout, inside)
    return [Aim(seed, position) for position in _positions(seed, readout, batch, model)]


def _seed(target: Any, readout: Readout, inside: Inside | None) -> Seed | UnitSeed:
    if target is None:
        target = Prediction()
    if not isinstance(target, Target):
        raise InvalidTarget(
            f"{target!r} is no target: give lxt.Logit(token), lxt.Contrast(a, b), lxt.Label(name), "
            "a list of them, lxt.Every(), or nothing for the model's own prediction"
        )
    if isinstance(target, Unit) != (readout.task == "unit"):
        raise InvalidTarget(
            f"{target!r} stands among units within the model: explain these and outputs apart"
        )
    if isinstance(target, Unit):
        assert inside is not None, "it was made for units"
        return UnitSeed(target, inside)
    return target.resolve(readout)


def _positions(
    seed: Seed | UnitSeed, readout: Readout, batch: TokenBatch, model: nn.Module
) -> list[int] | list[None]:
    """The explained position in each row, counted without padding; None for a classifier."""
    lengths = batch.lengths()
    if readout.task == "label":
        if seed.position is not None:
            raise InvalidTarget(
                f"a classifier has no positions, so position={seed.position} is void"
            )
        return [None] * len(lengths)
    if seed.position is not None:
        if not isinstance(seed.position, int):
            raise InvalidTarget(f"position {seed.position!r} is no integer")
        for row, length in enumerate(lengths):
            if not -length <= seed.position < length:
                raise InvalidTarget(
                    f"there is no position {seed.position} in row {row}: it has {length} tokens"
                )
        return [seed.position % length for length in lengths]
    if readout.task == "masked":
        return [_mask_position(row, batch, readout, model) for row in range(len(lengths))]
    return [length - 1 for length in lengths]


def _mask_position(row: int, batch: TokenBatch, readout: Readout, model: nn.Module) -> int:
    mask_id = getattr(readout.tokenizer, "mask_token_id", None)
    if mask_id is None:
        lack = "this tokenizer has no mask token" if readout.tokenizer else "there is no tokenizer"
        raise InvalidTarget(
            f"{type(model).__name__} predicts the token at a mask, and {lack} to say where that "
            "is: give another tokenizer=…, or position=…"
        )
    places = (batch.ids[row][batch.mask[row]] == mask_id).nonzero()[:, 0].tolist()
    if len(places) != 1:
        mask = readout.tokenizer.mask_token
        found = f"at positions {places}" if places else "not at all"
        raise InvalidInput(
            f"{type(model).__name__} predicts the token at {mask}, which stands {found} in row "
            f"{row}: write it once into the text, or give position=…"
        )
    return places[0]
