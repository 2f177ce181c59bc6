"""What an atlas tells of a unit: contexts and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Context", "UnitStatistics"]


@dataclass(frozen=True, eq=False)
class Context:
    """A place in the corpus where a unit is at its largest, and the tokens around it.

    Attributes:
        by: what it is ranked by.
        value: that, at the peak.
        activation: the unit's at the peak; of a head or a whole vector the Euclidean norm.
        relevance: the unit's at the peak, for the sum of the model's own predictions in the row;
            None if the atlas has none.
        tokens: as a person reads them, of the window.
        activations: of each of them, float32 to about three digits; exact at the peak.
        peak: which of them it is.
        text: the number of the text in the corpus.
        position: of the peak among the text's tokens.
        ids: token ids of the whole row that the model read, with what the tokenizer puts around.
        place: of the peak in it.

    """

    by: str
    value: float
    activation: float
    relevance: float | None
    tokens: list[str]
    activations: Tensor
    peak: int
    text: int
    position: int
    ids: list[int]
    place: int

    def __repr__(self) -> str:
        before, at = "".join(self.tokens[: self.peak]), self.tokens[self.peak]
        after = "".join(self.tokens[self.peak + 1 :])
        return f"<Context {self.by} {self.value:.4g}, text {self.text}: {before}«{at}»{after}>"


@dataclass(frozen=True)
class UnitStatistics:
    """Of a unit, over all tokens of the corpus that count.

    Attributes:
        tokens: how many.
        mean, deviation, least, most: of its activation.
        active: the share of tokens at which it is above 0.
        relevance: the mean of its relevance for the model's own predictions; None if there is none.
        absolute_relevance: the mean of its |relevance|.
        histogram: of its activation at one token of each row; bins as in
            `lxt.atlas.statistics.EDGES`.

    """

    tokens: int
    mean: float
    deviation: float
    least: float
    most: float
    active: float
    relevance: float | None
    absolute_relevance: float | None
    histogram: Sequence[int]
