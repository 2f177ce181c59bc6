"""Several explanations side by side: of other composites, models or contrast targets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, overload

from torch import Tensor

from lxt import correlation, storage
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.image_explanation import ImageExplanation

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult
    from typing_extensions import Unpack

    from lxt.views.comparison_figures import Drawing, DrawingOnce, Scaling, View

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
            pictures = isinstance(explanation, ImageExplanation)
            why = ": those of pictures are not compared" if pictures else ""
            raise InvalidInput(
                f"compare takes explanations of text, and number {i} is {explanation!r}{why}"
            )
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
        return correlation.pearson(*self._pair(i, j))

    def spearman(self, i: int, j: int) -> float:
        """Return Spearman's correlation: Pearson's of ranks, of which equals share the mean.

        It compares in which order tokens are relevant, whatever the scale. NaN and errors are as
        for ``pearson``.
        """
        return correlation.spearman(*self._pair(i, j))

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

    @overload
    def to_pdf(self, path: None = None, **options: Unpack[Drawing]) -> bytes: ...
    @overload
    def to_pdf(self, path: str | os.PathLike[str], **options: Unpack[Drawing]) -> None: ...
    def to_pdf(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        view: View | None = None,
        scale: Scaling = "shared",
        top: int | None = None,
        robust: bool | float = False,
        title: str | None = None,
    ) -> bytes | None:
        """Return a picture of all, on as many pages of PDF as it takes, or write it to ``path``.

        The caption states the scales, what is known of each, and correlations. Of two with the
        same tokens ``"matrix"`` and ``"text"`` show the difference as well, as a third.

        Args:
            path: the file; a file of that name is replaced.
            view: ``"matrix"``, a row for each with its tokens from left to right, in several lines
                where they are too many for one; ``"text"``, each as running text below its name;
                or ``"bars"``, of the tokens that are strongest in any, a bar for each explanation.
                By default ``"matrix"``, or ``"text"`` where tokens differ, which is then the only
                one.
            scale: ``"shared"``, one scale for all and their difference: what looks the same is the
                same relevance. With ``"each"`` every one goes up to its own largest |relevance|:
                this compares patterns, not amounts.
            top: how many tokens have bars, 20 by default; with ``scale="each"`` the strongest are
                those with the largest part of their explanation's own scale.
            robust: whether the strongest colour stands for the 95th percentile of |relevance| on
                that scale, or for the one that is given; see ``Explanation.to_pdf``.
            title: what stands above instead of the target's name; nothing if it is empty.

        Raises:
            InvalidInput: an option doesn't fit the comparison, or it is too large for a picture.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        if path is not None:
            storage.check_writable(path)
        from lxt.views import comparison_figures

        data = comparison_figures.draw(
            self, format="pdf", view=view, scale=scale, top=top, robust=robust, title=title
        )
        return storage.written(data, path)

    @overload
    def to_image(self, path: None = None, **options: Unpack[DrawingOnce]) -> bytes: ...
    @overload
    def to_image(self, path: str | os.PathLike[str], **options: Unpack[DrawingOnce]) -> None: ...
    def to_image(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        format: Literal["png", "svg"] | None = None,
        view: View | None = None,
        scale: Scaling = "shared",
        top: int | None = None,
        robust: bool | float = False,
        title: str | None = None,
        dpi: float = 200,
    ) -> bytes | None:
        """Return a picture of all as PNG or SVG, or write it to ``path``.

        Args:
            path: the file; a file of that name is replaced.
            format: by default what the path ends with, ``.png`` or ``.svg``; PNG without a path.
            view: as for ``to_pdf``, and so are ``scale``, ``top``, ``robust`` and ``title``.
            scale: whether all have one scale, or each its own.
            top: how many tokens have bars.
            robust: whether the strongest colour stands for a percentile, and for which.
            title: what stands above.
            dpi: pixels of a PNG per inch; pictures of text are 200 mm wide.

        Raises:
            InvalidInput: an option doesn't fit the comparison, it is too large for a picture, or
                the path ends with no format.
            UnwritableFile: the file can't be written; one that was there is left as it was.

        """
        from lxt.views import comparison_figures, figures

        chosen = figures.image_format(path, format)
        if path is not None:
            storage.check_writable(path)
        data = comparison_figures.draw(
            self,
            format=chosen,
            view=view,
            scale=scale,
            top=top,
            robust=robust,
            title=title,
            dpi=dpi,
        )
        return storage.written(data, path)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a table of pandas with one line for each token of each explanation.

        Its columns are ``explanation`` (the name), and those of ``Explanation.to_dataframe``:
        ``position``, ``token``, ``token_id``, ``relevance``, ``share``. So it also holds
        explanations whose tokens differ, and is what seaborn and ``groupby`` take. Where tokens
        and ids are the same, and names differ, a column for each explanation is ::

            table.pivot(
                index=["position", "token"], columns="explanation", values="relevance"
            )

        Raises:
            MissingPackage: pandas can't be imported.

        """
        from lxt import exports

        tables = [exports.to_dataframe(explanation) for explanation in self.explanations]
        import pandas

        table = pandas.concat(tables, ignore_index=True)
        counts = map(len, tables)
        names = [name for name, count in zip(self.names, counts, strict=True) for _ in range(count)]
        table.insert(0, "explanation", pandas.Series(names, dtype="object"))
        return table

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
