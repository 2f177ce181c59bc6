"""Texts as rows of tokens, and rows in batches: the same each time for the same corpus."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt.errors import InvalidInput

__all__ = ["Batch", "Row", "Rows"]

_POOL = 16
"""So many batches of rows are sorted by length, so that like ones run together."""


@dataclass(frozen=True)
class Row:
    """Tokens that run through the model together.

    Attributes:
        number: from 0, in the order of the corpus.
        text: the text's number.
        start: how many tokens of the text come before.
        ids: token ids, with those that the tokenizer puts around a text.
        begin: the first position that counts.
        end: the one after the last that counts.

    """

    number: int
    text: int
    start: int
    ids: Sequence[int]
    begin: int
    end: int


@dataclass(frozen=True)
class Batch:
    """Rows that run at once, padded on the right.

    Attributes:
        rows: the rows.
        ids: token ids [rows, tokens].
        mask: bool [rows, tokens], false at padding.
        counted: bool [rows, tokens], whether a token counts.
        numbers: int64 [rows].

    """

    rows: Sequence[Row]
    ids: Tensor
    mask: Tensor
    counted: Tensor
    numbers: Tensor


@dataclass
class Rows:
    """The rows of a corpus, in batches.

    Attributes:
        texts: of the corpus.
        tokenizer: reads texts.
        context: the most tokens of a row.
        skip: so many first tokens of a row don't count.
        batch_size: rows of a batch.
        read: how many texts were read.
        tokens: how many tokens they had, without what the tokenizer adds.
        batches: how many batches were handed out.
        digest: a hash of all rows that were read.

    """

    texts: Iterable[str]
    tokenizer: Any
    context: int
    skip: int
    batch_size: int
    read: int = 0
    tokens: int = 0
    batches: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._before, self._after = _around(self.tokenizer)
        around = len(self._before) + len(self._after)
        if self.context <= around + self.skip:
            raise InvalidInput(
                f"context={self.context} leaves no room for a token: the tokenizer adds {around}, "
                f"and skip={self.skip}"
            )

    def __iter__(self) -> Iterator[Batch]:
        """Go through the batches, each of rows of about the same length."""
        pool: list[Row] = []
        for row in self._rows():
            pool.append(row)
            if len(pool) == _POOL * self.batch_size:
                yield from self._batches(pool)
                pool = []
        yield from self._batches(pool)

    @property
    def fingerprint(self) -> str:
        """Of all that was read so far."""
        return self.digest.hexdigest()

    def _rows(self) -> Iterator[Row]:
        number, quiet = 0, _quiet(self.tokenizer)
        before, after = self._before, self._after
        room = self.context - len(before) - len(after)
        for text_number, text in enumerate(self.texts):
            self.read = text_number + 1
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidInput(
                    f"text {text_number} of the corpus is no Unicode text ({text[:40]!r}): {error}"
                ) from None
            ids = self.tokenizer(text, add_special_tokens=False, **quiet)["input_ids"]
            self.tokens += len(ids)
            self.digest.update(array("q", [text_number, *ids]).tobytes())
            for start in range(0, len(ids), room):
                part = ids[start : start + room]
                if len(part) <= self.skip:
                    continue
                begin = len(before) + self.skip
                end = len(before) + len(part)
                yield Row(number, text_number, start, [*before, *part, *after], begin, end)
                number += 1

    def _batches(self, pool: list[Row]) -> Iterator[Batch]:
        pool = sorted(pool, key=lambda row: -len(row.ids))  # the largest first: memory shows early
        for first in range(0, len(pool), self.batch_size):
            rows = pool[first : first + self.batch_size]
            lengths = torch.tensor([len(row.ids) for row in rows])
            places = torch.arange(int(lengths.max()))
            ids = torch.zeros(len(rows), len(places), dtype=torch.long)
            for i, row in enumerate(rows):
                ids[i, : len(row.ids)] = torch.tensor(row.ids)
            begin = torch.tensor([row.begin for row in rows])[:, None]
            end = torch.tensor([row.end for row in rows])[:, None]
            counted = (places >= begin) & (places < end)
            numbers = torch.tensor([row.number for row in rows])
            self.batches += 1
            yield Batch(rows, ids, places < lengths[:, None], counted, numbers)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and after each text."""
    alone = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(alone) + 1):
        if whole[at : at + len(alone)] == alone:
            return whole[:at], whole[at + len(alone) :]
    return [], []


def _quiet(tokenizer: Any) -> dict[str, Any]:
    """What keeps a tokenizer from warning of long texts, which are cut here."""
    from transformers import PreTrainedTokenizerBase

    return {"verbose": False} if isinstance(tokenizer, PreTrainedTokenizerBase) else {}
