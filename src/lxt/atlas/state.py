"""All that a build has found so far: rankings and statistics by site, and the rows they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lxt.atlas.passes import Seen, SiteOfAtlas
from lxt.atlas.ranking import EMPTY, Ranking, rows_in
from lxt.atlas.rows import Batch, Row
from lxt.atlas.statistics import Statistics
from lxt.errors import InvalidFile, InvalidTap

__all__ = ["ORDERS", "State"]

ORDERS = ("activation", "relevance", "-activation", "-relevance")
"""What contexts can be ranked by: the largest, and the most negative."""


class State:
    """What is known after some batches.

    Args:
        by: the rankings, of `ORDERS`.
        top: how many contexts of each unit.
        window: how many tokens before and after a peak have their activation kept.

    """

    def __init__(self, by: Sequence[str], top: int, window: tuple[int, int]) -> None:
        self.by, self.top, self.window = tuple(by), top, window
        self.sites: list[SiteOfAtlas] = []
        self.rankings: list[dict[str, Ranking]] = []
        self.statistics: list[Statistics] = []
        self.rows: dict[int, Row] = {}

    def add(self, batch: Batch, seen: Sequence[Seen]) -> None:
        """Take a batch.

        Raises:
            InvalidTap: other sites passed than in the first one.

        """
        if not self.sites:
            self._begin([one.site for one in seen])
        if [one.site for one in seen] != self.sites:
            raise InvalidTap(
                "other sites, or units, passed than in the first batch: tap modules that run once "
                f"for each batch; {_difference([one.site for one in seen], self.sites)}"
            )
        for one, rankings, statistics in zip(seen, self.rankings, self.statistics, strict=True):
            statistics.add(one.activation, one.relevance, batch.counted, batch.numbers)
            left_out = ~batch.counted.to(one.activation.device)[..., None]
            if one.site.kind in ("features", "experts"):  # where they are 0, they did not take part
                left_out = left_out | (one.activation == 0)
            for by, ranking in rankings.items():
                of, other = one.activation, one.relevance
                if by.endswith("relevance"):
                    assert of is not None
                    of, other = other, of
                assert of is not None, "relevance was asked for"
                values = (-of if by.startswith("-") else of).float()
                values = values.masked_fill(left_out, -torch.inf)
                ranking.offer(values, one.activation, other, batch.numbers)
        self.rows |= {row.number: row for row in batch.rows}

    def drop_rows(self) -> None:
        """Forget the rows that no ranking names any more."""
        named: set[int] = set()
        for rankings in self.rankings:
            for ranking in rankings.values():
                keys = ranking.keys[ranking.keys > EMPTY]
                named.update(rows_in(keys).unique().tolist())
        self.rows = {number: self.rows[number] for number in sorted(named)}

    def tensors(self) -> dict[str, Tensor]:
        """All of it."""
        self.drop_rows()
        found = {f"rows.{name}": x for name, x in _of_rows(self.rows.values()).items()}
        for i, (rankings, statistics) in enumerate(
            zip(self.rankings, self.statistics, strict=True)
        ):
            found |= {f"{i}.{name}": x for name, x in statistics.tensors().items()}
            for by, ranking in rankings.items():
                found |= {f"{i}.{by}.{name}": x for name, x in ranking.tensors().items()}
        return found

    def load(self, sites: Any, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` gave; `sites` is what `described` gave.

        Raises:
            InvalidFile: it is something else.

        """
        try:
            self._begin([SiteOfAtlas(**site) for site in sites])
            for i, (rankings, statistics) in enumerate(
                zip(self.rankings, self.statistics, strict=True)
            ):
                statistics.load(_below(f"{i}.", tensors))
                for by, ranking in rankings.items():
                    ranking.load(_below(f"{i}.{by}.", tensors))
            self.rows = {row.number: row for row in _rows(_below("rows.", tensors))}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidFile(f"the state of the atlas is damaged: {error}") from error

    def described(self) -> list[dict[str, Any]]:
        """The sites, for a manifest."""
        return [asdict(site) for site in self.sites]

    def _begin(self, sites: list[SiteOfAtlas]) -> None:
        self.sites = sites
        self.statistics = [Statistics(site.units) for site in sites]
        self.rankings = [
            {by: Ranking(site.units, self.top, self.window) for by in self.by} for site in sites
        ]


def _difference(now: list[SiteOfAtlas], before: list[SiteOfAtlas]) -> str:
    changed = [site for site in now if site not in before] or [
        site for site in before if site not in now
    ]
    return f"{changed[0].name} with {changed[0].units} units, for instance" if changed else ""


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}


def _of_rows(rows: Iterable[Row]) -> dict[str, Tensor]:
    rows = list(rows)
    facts = [(row.number, row.text, row.start, row.begin, row.end, len(row.ids)) for row in rows]
    ids = [token for row in rows for token in row.ids]
    return {
        "facts": torch.tensor(facts, dtype=torch.int64).reshape(-1, 6),
        "ids": torch.tensor(ids, dtype=torch.int32),
    }


def _rows(tensors: Mapping[str, Tensor]) -> Iterable[Row]:
    facts = tensors["facts"].tolist()
    each = tensors["ids"].split([fact[-1] for fact in facts])
    for (number, text, start, begin, end, _), ids in zip(facts, each, strict=True):
        yield Row(number, text, start, ids.tolist(), begin, end)
