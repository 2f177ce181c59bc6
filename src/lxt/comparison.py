"""Several explanations side by side: of other composites, models or contrast targets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, overload

import torch
from torch import Tensor

from lxt import storage
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Comparison", "compare"]

_TELLING = ("composite", "model", "target")
"""What names an explanation where it tells it from others; all else only where these do not."""


def compare(*explanations: Explanation, names: Sequence[str] | None = None) -> Comparison:
    """Put several explanations side by side, each of one row, one target and one layer.

    Args:
        explanations: two or more; what is padding is left out. Their tokens may differ, and then
            there are no differences and correlations.
        names: one for each. By default what distinguishes them: composite, model, target; where
            that leaves two alike, what else is known of them, or else their numbers, from 1.

    Raises:
        InvalidInput: there is but one, one of them has rows, targets or layers, or the names are
            not one string for each.

    """
    if len(explanations) < 2:
        raise InvalidInput(f"compare takes two explanations or more, not {len(explanations)}")
    for i, explanation in enumerate(explanations):
        if not isinstance(explanation, Explanation):
            raise InvalidInput(f"compare takes explanations, and number {i} is {explanation!r}")
        if len(explanation.axes) > 1:
            raise InvalidInput(
                f"explanation {i} has the axes {', '.join(explanation.axes)}: compare takes a part "
                "of it with tokens alone, e[i]"
            )
    parts = tuple(part for explanation in explanations for part in explanation.inputs())
    if names is None:
        return Comparison(parts, tuple(_telling_names(parts)))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"names {names!r} is not a list of strings")
    if len(names) != len(parts):
        raise InvalidInput(f"{len(names)} names {list(names)} for {len(parts)} explanations")
    return Comparison(parts, tuple(names))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several explanations and what they are called, as ``compare`` makes it.

    ``print`` shows a table. It is indexed and iterated by explanation.
    """

    explanations: tuple[Explanation, ...]
    """Two or more, each of relevance [tokens], without padding."""
    names: tuple[str, ...]
    """One for each."""

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, index: int) -> Explanation:
        return self.explanations[index]

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self.explanations)

    @property
    def same_tokens(self) -> bool:
        """Whether all have the same tokens, as a person reads them."""
        first = self.explanations[0].tokens
        return all(explanation.tokens == first for explanation in self.explanations)

    def difference(self, i: int, j: int) -> Tensor:
        """Return the relevance in ``i`` less that in ``j``: float64 [tokens].

        Both are in units of their targets' values, which are as they are: nothing is rescaled.

        Raises:
            IndexError: there is no such explanation.
            InvalidInput: their tokens differ; quotes where.

        """
        one, other = self._pair(i, j)
        return one - other

    def pearson(self, i: int, j: int) -> float:
        """Return Pearson's correlation of the relevance in ``i`` and ``j``, from -1 to 1.

        NaN where it is not defined: one of them is the same for all tokens.

        Raises:
            IndexError: there is no such explanation.
            InvalidInput: their tokens differ; quotes where.

        """
        return _correlation(*self._pair(i, j))

    def spearman(self, i: int, j: int) -> float:
        """Return Spearman's correlation: Pearson's of ranks, of which equals share the mean.

        It compares in which order tokens are relevant, whatever the scale. NaN and errors are as
        for ``pearson``.
        """
        one, other = self._pair(i, j)
        return _correlation(_ranks(one), _ranks(other))

    def _pair(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        one, other = self.explanations[i], self.explanations[j]
        if one.tokens != other.tokens:
            where = _first_difference(
                cast("list[str]", one.tokens), cast("list[str]", other.tokens)
            )
            raise InvalidInput(
                f"{self.names[i]!r} and {self.names[j]!r} differ in their tokens: {where}"
            )
        return one.relevance.double(), other.relevance.double()

    @overload
    def to_html(self, path: None = None) -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str]) -> None: ...
    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return one self-contained HTML page, or write it to ``path``.

        Raises:
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import html

        return storage.written(
            html.page_of(list(zip(self.names, self.explanations, strict=True))), path
        )

    def __str__(self) -> str:
        from lxt.views import comparison, terminal

        return terminal.printed(comparison.render(self))

    def _repr_html_(self) -> str:
        from lxt.views import notebook

        return notebook.output(list(zip(self.names, self.explanations, strict=True)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from lxt.views import comparison

        yield comparison.render(self)

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(map(repr, self.names))}>"


def _first_difference(one: list[str], other: list[str]) -> str:
    for position, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return f"at position {position} there is {left!r} and {right!r}"
    return f"there are {len(one)} and {len(other)}"


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = _centred(one), _centred(other)
    product = math.sqrt(one.square().sum().item() * other.square().sum().item())
    if not product:
        return math.nan
    return min(max((one * other).sum().item() / product, -1.0), 1.0)


def _centred(values: Tensor) -> Tensor:
    """Return deviations from the mean, with the largest as 1: no scale is too large to square."""
    if not len(values) or (values == values[0]).all():
        return torch.zeros_like(values)  # the mean, rounded, may differ from what all values are
    values = values / values.abs().max()
    values = values - values.mean()
    return values / values.abs().max()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def _telling_names(explanations: Sequence[Explanation]) -> list[str]:
    """Name each by what differs between them, as little of it as tells them all apart."""
    known = [_facts(explanation) for explanation in explanations]
    order = dict.fromkeys([*_TELLING, *(key for facts in known for key in facts)])
    keys = [key for key in order if len({facts.get(key) for facts in known}) > 1]
    for count in range(max(1, len({*keys} & {*_TELLING})), len(keys) + 1):
        names = [
            ", ".join(facts.get(key) or f"no {key}" for key in keys[:count]) for facts in known
        ]
        if len(set(names)) == len(names):
            return names
    return [str(i) for i in range(1, len(known) + 1)]


def _facts(explanation: Explanation) -> dict[str, str]:
    target = cast("ExplainedTarget", explanation.target)
    place = "no position" if target.position is None else f"position {target.position}"
    return {"position": place} | explanation.provenance | {"target": target.name}
