"""Targets: what is explained, as the seed of the backward pass.

Every target here is a weighted sum of the logits at one position, or of a classifier's logits:
value = Σ w · z. Its weights w are what the backward pass starts from. `Every` stands for many.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt.errors import InvalidTarget
from lxt.explained import ExplainedTarget
from lxt.latent.units import Unit
from lxt.tokens import readable_tokens

__all__ = [
    "Contrast",
    "Every",
    "Label",
    "Logit",
    "Prediction",
    "Readout",
    "Seed",
    "Target",
    "Targets",
    "Task",
    "summed",
    "task_of",
]

Task = Literal["causal", "masked", "label", "unit"]


def task_of(model: nn.Module) -> Task:
    """What a model's logits are over, as the name of its class tells, or of a base of it.

    Wrappers, such as those of peft, are looked into.
    """
    names = " ".join(cls.__name__ for cls in type(_unwrapped(model)).__mro__)
    if "SequenceClassification" in names:
        return "label"
    return "masked" if "MaskedLM" in names else "causal"


def _unwrapped(model: nn.Module) -> nn.Module:
    if callable(inner := getattr(model, "get_base_model", None)):  # peft
        return _unwrapped(inner())  # pyright: ignore[reportArgumentType]
    inner = getattr(model, "module", None)  # torch.nn.DataParallel and its kin
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


@dataclass(frozen=True)
class Readout:
    """What the numbers of a model's output mean.

    Attributes:
        task: logits over the next token, over the token at a mask, or over labels; or units within
            the model.
        size: how many logits there are, as far as the model's configuration says.
        tokenizer: spells tokens; None if there is none.
        labels: a classifier's labels by index.

    """

    task: Task
    size: int | None
    tokenizer: Any
    labels: Mapping[int, str]

    def describe(self, index: int) -> str:
        """How a person reads one logit: a label, or a token in quotes."""
        if self.task == "label":
            return self.labels.get(index, str(index))
        if self.tokenizer is None:
            return f"token {index}"
        return f'"{readable_tokens(self.tokenizer, [index], continues=True)[0]}"'

    def token_index(self, token: str | int) -> int:
        """The index of a token's logit.

        Raises:
            InvalidTarget: the model has labels, no such token id, or the text is not one token.

        """
        if self.task == "label":
            raise InvalidTarget(
                f"token {token!r} can't be the target of a classifier: give lxt.Label(name), with "
                f"one of {self._label_names()}"
            )
        if not isinstance(token, str):
            return self._in_range(token, "token id")
        if self.tokenizer is None:
            raise InvalidTarget(
                f"the text {token!r} needs a tokenizer: give tokenizer=…, or the token's id"
            )
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return int(ids[0])
        vocabulary = self.tokenizer.get_vocab()
        for piece in (token, token.replace(" ", "▁")):
            if piece in vocabulary:
                return int(vocabulary[piece])
        pieces = readable_tokens(self.tokenizer, ids)
        split = " + ".join(f"{piece!r}" for piece in pieces) or "nothing"
        spaced = self.tokenizer(f" {token}", add_special_tokens=False)["input_ids"]
        hint = f"Did you mean {' ' + token!r}, which is one? " if len(spaced) == 1 else ""
        raise InvalidTarget(
            f"the target {token!r} is {len(ids)} tokens, not one: {split}. {hint}Give one of them "
            f"(a word inside a text begins with a space), or a token id"
        )

    def label_index(self, label: str | int) -> int:
        """The index of a label's logit.

        Raises:
            InvalidTarget: the model is no classifier, or has no such label.

        """
        if self.task != "label":
            raise InvalidTarget(
                f"label {label!r} can't be the target of a language model: give lxt.Logit(token)"
            )
        if not isinstance(label, str):
            return self._in_range(label, "label")
        names = {name: index for index, name in self.labels.items()}
        folded = {name.casefold(): index for name, index in names.items()}
        if label in names:
            return names[label]
        if label.casefold() in folded:
            return folded[label.casefold()]
        raise InvalidTarget(f"there is no label {label!r}: there are {self._label_names()}")

    def _in_range(self, given: Any, kind: str) -> int:
        try:
            index = -1 if isinstance(given, bool) else operator.index(given)
        except TypeError:
            raise InvalidTarget(f"{given!r} is no {kind}: give a text or an integer") from None
        if index < 0 or (self.size is not None and index >= self.size):
            limit = "" if self.size is None else f" to {self.size - 1}"
            labels = f": {self._label_names()}" if self.task == "label" else ""
            raise InvalidTarget(f"there is no {kind} {given!r}: they go from 0{limit}{labels}")
        return index

    def _label_names(self) -> str:
        return ", ".join(repr(name) for name in self.labels.values()) or "labels without a name"


@dataclass(frozen=True)
class Seed:
    """A target with its tokens looked up: which logit counts, and minus what.

    Attributes:
        kind: as in `ExplainedTarget`.
        plus: index of the logit; None for the model's own top one.
        minus: index of a logit to subtract, "others" for the mean of all others, or None.
        position: the token position asked for, or None for the readout's default.

    """

    kind: str
    plus: int | None
    minus: int | Literal["others"] | None
    position: int | None

    def weights(self, logits: Tensor) -> Tensor:
        """The weight of each logit, for logits [vocabulary] of one row; same shape and dtype.

        Raises:
            InvalidTarget: the logits don't reach as far as the target.

        """
        plus = int(logits.argmax()) if self.plus is None else self.plus
        size = logits.shape[-1]
        if plus == self.minus:
            raise InvalidTarget(
                f"logit {plus} is what the model predicts itself: nothing contrasts"
            )
        for index in (plus, self.minus):
            if isinstance(index, int) and index >= size:
                raise InvalidTarget(f"the model has {size} logits: there is no {index}")
        weights = torch.zeros_like(logits)
        if self.minus == "others":
            weights -= 1 / (size - 1)
        elif self.minus is not None:
            weights[self.minus] = -1
        weights[plus] = 1
        return weights

    def explained(self, logits: Tensor, readout: Readout, position: int | None) -> ExplainedTarget:
        """What was explained, for logits [vocabulary] of one row."""
        top = int(logits.argmax())
        name = readout.describe(top if self.plus is None else self.plus)
        if self.minus == "others":
            name += " − mean of all others"
        elif self.minus is not None:
            name += f" − {readout.describe(self.minus)}"
        return ExplainedTarget(
            kind=self.kind,
            name=name,
            value=float((self.weights(logits) * logits).sum()),
            position=position,
            prediction=readout.describe(top),
        )


@dataclass(frozen=True)
class Prediction:
    """The model's own prediction: its highest logit.

    Attributes:
        position: the token position whose logits count; negative counts from the end. By default
            the last one, for a masked language model the mask's; a classifier has none.

    """

    position: int | None = None

    def resolve(self, readout: Readout) -> Seed:
        """Look up what the target names; nothing here."""
        return Seed("prediction", None, None, self.position)


@dataclass(frozen=True)
class Logit:
    """The logit of one token.

    Attributes:
        token: its text, which must be one token, or its id.
        position: as in `Prediction`.

    """

    token: str | int
    position: int | None = None

    def resolve(self, readout: Readout) -> Seed:
        """Look up the token. Raises InvalidTarget."""
        return Seed("logit", readout.token_index(self.token), None, self.position)


@dataclass(frozen=True)
class Contrast:
    """The logit of `a` minus that of `b`: why this token, or label, rather than that one.

    Attributes:
        a: a token, as in `Logit`, or a label, as in `Label`, or None for the model's own
            prediction.
        b: another one, or None for the mean of all others.
        position: as in `Prediction`.

    """

    a: str | int | None
    b: str | int | None = None
    position: int | None = None

    def resolve(self, readout: Readout) -> Seed:
        """Look up both tokens. Raises InvalidTarget."""
        index = readout.label_index if readout.task == "label" else readout.token_index
        plus = None if self.a is None else index(self.a)
        minus = "others" if self.b is None else index(self.b)
        if plus == minus and plus is not None:
            raise InvalidTarget(f"{self.a!r} and {self.b!r} are the same token: nothing contrasts")
        return Seed("contrast", plus, minus, self.position)


@dataclass(frozen=True)
class Label:
    """The logit of one label of a classifier.

    Attributes:
        label: its name (in any case), or its index.

    """

    label: str | int

    def resolve(self, readout: Readout) -> Seed:
        """Look up the label. Raises InvalidTarget."""
        return Seed("label", readout.label_index(self.label), None, None)


@dataclass(frozen=True)
class Every:
    """Each position's own next token, as many targets: the matrix of inputs × outputs.

    For a causal language model the logit, at each position, of the token that follows it in the
    input as given, and at the last position of the model's own prediction. For a masked language
    model the own prediction at each position. A classifier has no positions.

    Attributes:
        positions: which, counted without padding: None for all, integers (negative ones count
            from the end) in the order in which they are wanted, a range, or a slice.

    Raises:
        InvalidTarget: the positions are none of these.

    """

    positions: Iterable[int] | slice | None = None

    def __post_init__(self) -> None:
        places = self.positions
        if places is None or isinstance(places, slice | range):
            return
        try:
            if isinstance(places, str | bytes):
                raise TypeError
            kept = tuple(_position(place) for place in places)
        except TypeError:
            raise InvalidTarget(
                f"positions {places!r} are no integers: give a list of them, a range, a slice, or "
                "None for all"
            ) from None
        object.__setattr__(self, "positions", kept)

    def seeds(self, ids: Sequence[int], readout: Readout, row: int) -> list[Seed]:
        """The targets in a row of tokens `ids`, without padding.

        Raises:
            InvalidTarget: a position that isn't there, or none at all.

        """
        if readout.task == "label":
            raise InvalidTarget(
                "a classifier has no positions: instead of lxt.Every give a list of lxt.Label"
            )
        places = self._places(len(ids), row)
        if readout.task == "masked":
            return [Seed("prediction", None, None, place) for place in places]
        last = len(ids) - 1
        return [
            Seed("prediction", None, None, place)
            if place == last
            else Seed("logit", readout.token_index(ids[place + 1]), None, place)
            for place in places
        ]

    def _places(self, length: int, row: int) -> list[int]:
        if self.positions is None:
            return list(range(length))
        if isinstance(self.positions, slice):
            places = list(range(*self.positions.indices(length)))
        else:
            places = list(self.positions)
        for place in places:
            if not -length <= place < length:
                raise InvalidTarget(
                    f"there is no position {place} in row {row}: it has {length} tokens"
                )
        if not places:
            raise InvalidTarget(f"{self} names no position of row {row}, which has {length} tokens")
        return [place % length for place in places]


def _position(place: Any) -> int:
    if isinstance(place, bool):
        raise TypeError
    return operator.index(place)


def summed(parts: Sequence[ExplainedTarget]) -> ExplainedTarget:
    """The sum of several targets of one row, as one; its prediction is that at the last of them."""
    if len(parts) <= _SPELT_OUT:
        name = " + ".join(part.name for part in parts)
    else:
        what = "labels" if parts[0].position is None else "tokens"
        name = f"{len(parts)} {what}: {parts[0].name} + …"
    last = max(parts, key=lambda part: part.position or 0)
    return ExplainedTarget(
        kind="sum",
        name=name,
        value=sum(part.value for part in parts),
        position=last.position if len({part.position for part in parts}) == 1 else None,
        prediction=last.prediction,
    )


_SPELT_OUT = 3
"""So many parts of a sum are named, each; of more only the first."""

Target = Prediction | Logit | Contrast | Label | Unit
"""One thing to explain."""

Targets = Target | Sequence[Target] | Every
"""One thing, or many."""
