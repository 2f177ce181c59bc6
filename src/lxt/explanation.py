"""The result of an explanation: how much each token contributed to what the model computed."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lxt import storage
from lxt.errors import InvalidInput
from lxt.storage import check_writable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["ExplainedTarget", "Explanation", "check_writable"]

KINDS = ("prediction", "logit", "contrast", "label", "sum")


@dataclass(frozen=True)
class ExplainedTarget:
    """What was explained, in the model's own words.

    Raises:
        InvalidInput: the kind is none of the five, the value is not finite, or a field is of the
            wrong type.

    """

    kind: str
    """``"prediction"`` (the model's own top token), ``"logit"``, ``"contrast"`` (a difference of
    two logits), ``"label"`` (of a classifier) or ``"sum"`` (of several of these)."""
    name: str
    """What a person reads: ``'" Paris"'``, ``'" Paris" − " London"'``, ``'POSITIVE'``,
    ``'5 tokens: " Paris" + …'``."""
    value: float
    """The explained quantity: a logit, or a difference or sum of logits."""
    position: int | None
    """The token whose logits were explained, counted from 0 without padding; ``None`` for a
    classifier, and for a sum over several positions."""
    prediction: str
    """The model's own top token or label there, written as ``name`` is; of a sum, at its last
    position."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"target kind {self.kind!r} is none of {', '.join(KINDS)}")
        for field in ("name", "prediction"):
            if not isinstance(getattr(self, field), str):
                raise InvalidInput(f"target {field} {getattr(self, field)!r} is not a string")
        # Compared, not converted: an integer may be too large for a float.
        largest = sys.float_info.max
        if not isinstance(self.value, int | float) or not -largest <= self.value <= largest:
            raise InvalidInput(f"target value {self.value!r} is not a finite number")
        position = self.position
        counts = isinstance(position, int) and not isinstance(position, bool) and position >= 0
        if position is not None and not counts:
            raise InvalidInput(f"target position {position!r} is not a token's, from 0, or None")


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The relevance of each token of one input, or of each row of a batch, for one target or many.

    ``print`` shows it in a terminal, a notebook shows it by itself. It is indexed and iterated by
    its first axis, see ``axes``: of a batch ``e[0]`` is the explanation of row 0, without its
    padding; of many targets ``e[0]`` is that of target 0; and of both ``e[0]`` is that of row 0
    for all of its targets.

    Raises:
        InvalidInput: shapes, types or values do not fit together, or relevance is not finite.

    """

    relevance: Tensor
    """``[tokens]``, ``[batch, tokens]``, ``[targets, tokens]`` or ``[batch, targets, tokens]``,
    float32 or float64 on the CPU, in units of the target's value; 0 at padding, and in rows with
    fewer targets than others for those that they lack."""
    tokens: list[str] | list[list[str]]
    """One label for each token, padding included; for a batch, a list for each row."""
    token_ids: Tensor
    """int64, ``[tokens]`` or ``[batch, tokens]``."""
    mask: Tensor
    """bool, of the shape of ``token_ids``; ``False`` at padding."""
    target: ExplainedTarget | list[ExplainedTarget] | list[list[ExplainedTarget]]
    """What was explained; for a batch, one for each row; for many targets, a list of them (for
    each row)."""
    provenance: dict[str, str]
    """Where it comes from: model, composite, task, dtype, versions of lxt, torch, transformers."""

    def __post_init__(self) -> None:
        _check_tensors(self)
        if self.is_batch:
            rows, width = self.mask.shape
            _check_list("tokens", self.tokens, rows, list)
            for row in self.tokens:
                _check_list("a row of tokens", row, width, str)
            _check_list("target", self.target, rows, list if self.is_many else ExplainedTarget)
            if self.is_many:
                _check_rows_of_targets(self.relevance, cast("list[list[object]]", self.target))
        else:
            _check_list("tokens", self.tokens, len(self.mask), str)
            if self.is_many:
                _check_list("target", self.target, len(self.relevance), ExplainedTarget)
            elif not isinstance(self.target, ExplainedTarget):
                raise InvalidInput(
                    f"target is a {type(self.target).__name__}, and one explanation takes one "
                    "ExplainedTarget"
                )
        items = self.provenance.items() if isinstance(self.provenance, dict) else [(None, None)]
        if not all(isinstance(text, str) for item in items for text in item):
            raise InvalidInput(f"provenance {self.provenance!r} is not a dict of strings")

    @property
    def is_batch(self) -> bool:
        """Whether there are rows: the first axis is ``"batch"``."""
        return self.token_ids.dim() == 2

    @property
    def is_many(self) -> bool:
        """Whether there is an axis of targets."""
        return self.relevance.dim() > self.token_ids.dim()

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes of ``relevance``, of ``("batch", "targets", "tokens")``."""
        return ("batch",) * self.is_batch + ("targets",) * self.is_many + ("tokens",)

    @property
    def total(self) -> Tensor:
        """The sum of relevance over tokens, of the shape of the other axes, in float64."""
        return self.relevance.sum(-1, dtype=torch.float64)

    def rows(self) -> list["Explanation"]:
        """Return all explanations of one row and one target each, without padding, in order.

        A single explanation is its own one.
        """
        if self.is_batch or self.is_many:
            return [single for part in self for single in part.rows()]
        return self.inputs()

    def inputs(self) -> list["Explanation"]:
        """Return the explanation of each row of input, for all of its targets, without padding."""
        if self.is_batch:
            return list(self)
        return [self._part((), self.mask, self.tokens, self.token_ids, self.target)]

    def top(self, k: int) -> list[tuple[int, str, float]]:
        """List the ``k`` most relevant tokens as (position, token, relevance), strongest first.

        Strength is |relevance|, of equals the earlier token comes first. Positions count from 0
        without padding. Fewer are listed where there are fewer tokens.

        Raises:
            InvalidInput: ``k`` is negative.
            TypeError: this is a batch, or of many targets.

        """
        if self.is_batch or self.is_many:
            raise TypeError(
                "top lists the tokens of one explanation: take a row or target, e[i].top(k)"
            )
        if k < 0:
            raise InvalidInput(f"top takes a count of tokens, not {k}")
        (row,) = self.rows()
        tokens = cast("list[str]", row.tokens)
        relevance = row.relevance.tolist()
        order = row.relevance.abs().argsort(descending=True, stable=True)[:k]
        return [(i, tokens[i], relevance[i]) for i in order.tolist()]

    def __len__(self) -> int:
        return len(self.relevance)

    def __getitem__(self, index: int) -> "Explanation":
        if not self.is_batch and not self.is_many:
            raise TypeError(
                "a single explanation has no rows to index; its tokens are in e.tokens and their "
                "relevance in e.relevance"
            )
        what, whole = ("row", "batch") if self.is_batch else ("target", "list")
        if not isinstance(index, int):
            raise TypeError(f"{what}s are indexed by an integer, not {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"{what} {index} of a {whole} of {len(self)}")
        target = cast("list[ExplainedTarget]", self.target)[index]
        if not self.is_batch:
            return self._part((index,), self.mask, self.tokens, self.token_ids, target)
        return self._part(
            (index,),
            self.mask[index],
            cast("list[list[str]]", self.tokens)[index],
            self.token_ids[index],
            target,
        )

    def __iter__(self) -> Iterator["Explanation"]:
        if not self.is_batch and not self.is_many:
            raise TypeError("a single explanation has no rows to go through; see e.tokens")
        return (self[i] for i in range(len(self)))

    def _part(
        self, index: tuple[int, ...], mask: Tensor, tokens: Any, ids: Tensor, target: Any
    ) -> "Explanation":
        """One row or target, without padding, and without targets that the row lacks."""
        relevance = self.relevance[index]
        if relevance.dim() == 2:
            relevance = relevance[: len(target)]
        tokens = [token for token, real in zip(tokens, mask.tolist(), strict=True) if real]
        return Explanation(
            relevance[..., mask], tokens, ids[mask], mask[mask], target, self.provenance
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that ``load`` reads back, bit for bit.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        storage.write(path, storage.to_safetensors(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Read a file that ``save`` wrote; nothing in it is executed.

        Raises:
            InvalidFile: the file can't be read, or holds something else.

        """
        return storage.read(path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows as JSON without their padding, and write it to ``path`` if given.

        A row's relevance is a list of numbers, for many targets a list of these for each.

        Numbers are written such that they read back as the same floats.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        text = storage.to_json(self)
        if path is not None:
            storage.write(path, text.encode())
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return one self-contained HTML page, and write it to ``path`` if given.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import html

        text = html.page(self)
        if path is not None:
            storage.write(path, text.encode())
        return text

    def _repr_html_(self) -> str:
        from lxt.views import html

        return html.fragment(self)

    def __str__(self) -> str:
        from lxt.views import terminal

        return terminal.text(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from lxt.views import terminal

        yield terminal.render(self)

    def __repr__(self) -> str:
        targets: Any = self.target if isinstance(self.target, list) else [self.target]
        if self.is_batch and self.is_many:
            targets = [target for row in targets for target in row]
        names = ", ".join(target.name for target in targets[:3])
        more = ", …" if len(targets) > 3 else ""
        return f"<Explanation of {names}{more}: relevance {list(self.relevance.shape)}>"


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
    if explanation.is_many:
        relevance = relevance.movedim(-2, -1)  # tokens, or batch and tokens, first
    if relevance[~explanation.mask].any():
        raise InvalidInput("relevance is not 0 at padding, where mask is False")


def _check_shapes(explanation: Explanation) -> None:
    relevance, ids, mask = explanation.relevance, explanation.token_ids, explanation.mask
    if mask.shape != ids.shape:
        raise InvalidInput(f"token_ids has shape {list(ids.shape)}, and mask {list(mask.shape)}")
    if ids.dim() not in (1, 2):
        raise InvalidInput(
            f"token_ids has shape {list(ids.shape)}, not [tokens] or [batch, tokens]"
        )
    targets = relevance.shape[ids.dim() - 1 : -1] if relevance.dim() == ids.dim() + 1 else ()
    if relevance.shape != (*ids.shape[:-1], *targets, ids.shape[-1]):
        rows = "batch, " if ids.dim() == 2 else ""
        raise InvalidInput(
            f"token_ids has shape {list(ids.shape)}, and relevance {list(relevance.shape)}: it "
            f"should be [{rows}tokens] or [{rows}targets, tokens]"
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


def _check_list(name: str, items: object, length: int, kind: type) -> None:
    if not isinstance(items, list):
        raise InvalidInput(f"{name} is a {type(items).__name__}, not a list of {kind.__name__}")
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise InvalidInput(
                f"{name}: number {i} is a {type(item).__name__}, not a {kind.__name__}"
            )
    if len(items) != length:
        raise InvalidInput(f"{name}: {len(items)} given where relevance has {length}")
