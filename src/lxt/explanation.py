"""The result of an explanation: how much each token contributed to what the model computed."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lxt import storage
from lxt.errors import InvalidInput
from lxt.storage import check_writable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["ExplainedTarget", "Explanation", "check_writable"]

KINDS = ("prediction", "logit", "contrast", "label")


@dataclass(frozen=True)
class ExplainedTarget:
    """What was explained, in the model's own words.

    Raises:
        InvalidInput: the kind is none of the four, the value is not finite, or a field is of the
            wrong type.

    """

    kind: str
    """``"prediction"`` (the model's own top token), ``"logit"``, ``"contrast"`` (a difference of
    two logits) or ``"label"`` (of a classifier)."""
    name: str
    """What a person reads: ``'" Paris"'``, ``'" Paris" − " London"'``, ``'POSITIVE'``."""
    value: float
    """The explained quantity: a logit, or a difference of logits."""
    position: int | None
    """The token whose logits were explained, counted from 0 without padding; ``None`` for a
    classifier."""
    prediction: str
    """The model's own top token or label there, written as ``name`` is."""

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
    """The relevance of each token of one input, or of each row of a batch.

    ``print`` shows it in a terminal, a notebook shows it by itself. A batch is indexed and
    iterated by row: ``e[0]`` is the explanation of row 0, without its padding.

    Raises:
        InvalidInput: shapes, types or values do not fit together, or relevance is not finite.

    """

    relevance: Tensor
    """``[tokens]`` or ``[batch, tokens]``, float32 or float64 on the CPU, in units of the target's
    value; 0 at padding."""
    tokens: list[str] | list[list[str]]
    """One label for each token, padding included."""
    token_ids: Tensor
    """int64, of the shape of ``relevance``."""
    mask: Tensor
    """bool, of the shape of ``relevance``; ``False`` at padding."""
    target: ExplainedTarget | list[ExplainedTarget]
    """What was explained; for a batch, one for each row."""
    provenance: dict[str, str]
    """Where it comes from: model, composite, task, dtype, versions of lxt, torch, transformers."""

    def __post_init__(self) -> None:
        _check_tensors(self)
        if self.is_batch:
            _check_list("tokens", self.tokens, len(self.relevance), list)
            _check_list("target", self.target, len(self.relevance), ExplainedTarget)
            for row in self.tokens:
                _check_list("a row of tokens", row, self.relevance.shape[1], str)
        else:
            _check_list("tokens", self.tokens, len(self.relevance), str)
            if not isinstance(self.target, ExplainedTarget):
                raise InvalidInput(
                    f"target is a {type(self.target).__name__}, and one explanation takes one "
                    "ExplainedTarget"
                )
        items = self.provenance.items() if isinstance(self.provenance, dict) else [(None, None)]
        if not all(isinstance(text, str) for item in items for text in item):
            raise InvalidInput(f"provenance {self.provenance!r} is not a dict of strings")

    @property
    def is_batch(self) -> bool:
        """Whether there are rows: relevance is ``[batch, tokens]``."""
        return self.relevance.dim() == 2

    @property
    def total(self) -> Tensor:
        """The sum of relevance, ``[]`` or for a batch ``[batch]``, in float64."""
        return self.relevance.sum(-1, dtype=torch.float64)

    def rows(self) -> list["Explanation"]:
        """Return each row without its padding; a single explanation is its own one row."""
        if self.is_batch:
            return list(self)
        tokens = cast("list[str]", self.tokens)
        target = cast("ExplainedTarget", self.target)
        return [self._unpadded(self.relevance, tokens, self.token_ids, self.mask, target)]

    def top(self, k: int) -> list[tuple[int, str, float]]:
        """List the ``k`` most relevant tokens as (position, token, relevance), strongest first.

        Strength is |relevance|, of equals the earlier token comes first. Positions count from 0
        without padding. Fewer are listed where there are fewer tokens.

        Raises:
            InvalidInput: ``k`` is negative.
            TypeError: this is a batch.

        """
        if self.is_batch:
            raise TypeError("top lists the tokens of one explanation: take a row, e[i].top(k)")
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
        if not self.is_batch:
            raise TypeError(
                "a single explanation has no rows to index; its tokens are in e.tokens and their "
                "relevance in e.relevance"
            )
        if not isinstance(index, int):
            raise TypeError(f"rows are indexed by an integer, not {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a batch of {len(self)}")
        tokens = cast("list[list[str]]", self.tokens)[index]
        target = cast("list[ExplainedTarget]", self.target)[index]
        return self._unpadded(
            self.relevance[index], tokens, self.token_ids[index], self.mask[index], target
        )

    def __iter__(self) -> Iterator["Explanation"]:
        if not self.is_batch:
            raise TypeError("a single explanation has no rows to go through; see e.tokens")
        return (self[i] for i in range(len(self)))

    def _unpadded(
        self,
        relevance: Tensor,
        tokens: list[str],
        token_ids: Tensor,
        mask: Tensor,
        target: ExplainedTarget,
    ) -> "Explanation":
        tokens = [token for token, real in zip(tokens, mask.tolist(), strict=True) if real]
        return Explanation(
            relevance[mask], tokens, token_ids[mask], mask[mask], target, self.provenance
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
        targets = self.target if isinstance(self.target, list) else [self.target]
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
        if tensor.shape != relevance.shape:
            raise InvalidInput(
                f"{name} has shape {list(tensor.shape)}, and relevance {list(relevance.shape)}"
            )
    if relevance.dim() not in (1, 2):
        raise InvalidInput(
            f"relevance has shape {list(relevance.shape)}, not [tokens] or [batch, tokens]"
        )
    if relevance.requires_grad:
        raise InvalidInput("relevance is part of an autograd graph: give relevance.detach()")
    if not relevance.isfinite().all():
        raise InvalidInput("relevance holds NaN or infinity")
    if relevance[~explanation.mask].any():
        raise InvalidInput("relevance is not 0 at padding, where mask is False")


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
