"""The streamed rankings and statistics against all values in lists, sorted."""

from __future__ import annotations

import itertools
import math
import statistics as plain

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lxt.atlas.ranking import EMPTY, Ranking, rows_in, values_in
from lxt.atlas.statistics import EDGES, Statistics

VALUES = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-30, 1.0, 1.0000001, 3.5, 1e15])


@st.composite
def corpora(draw):
    """Rows [tokens, units] of unequal length with few different values, in batches in any order."""
    units = draw(st.integers(1, 3))
    rows = draw(
        st.lists(
            st.lists(st.lists(VALUES, min_size=units, max_size=units), min_size=1, max_size=4),
            min_size=1,
            max_size=9,
        )
    )
    order = draw(st.permutations(range(len(rows))))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=4)) | {0, len(rows)})
    batches = [order[a:b] for a, b in itertools.pairwise(cuts)]
    return units, rows, batches


def padded(rows: list, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([len(rows[n]) for n in numbers])
    x = torch.full((len(numbers), int(lengths.max()), len(rows[0][0])), 77.0)
    for i, n in enumerate(numbers):
        x[i, : len(rows[n])] = torch.tensor(rows[n])
    counted = torch.arange(x.shape[1]) < lengths[:, None]
    return x, counted, torch.tensor(numbers)


@settings(max_examples=150, deadline=None)
@given(corpora(), st.integers(1, 12))
def test_the_largest_are_those_of_a_sorted_list(corpus, top: int) -> None:
    units, rows, batches = corpus
    ranking = Ranking(units, top, (1, 1))
    for numbers in batches:
        x, counted, n = padded(rows, numbers)
        values = x.masked_fill(~counted[..., None], -torch.inf)
        ranking.offer(values, x, -x, n)
    single = torch.tensor(rows[0]).new_tensor  # values as float32 has them
    for unit in range(units):
        best = []
        for number, row in enumerate(rows):
            column = [single(token[unit]).item() for token in row]
            place = max(range(len(column)), key=lambda t: (column[t], -t))
            best.append((-column[place], number, place))
        expected = sorted(best)[:top]
        keys = ranking.keys[unit][ranking.keys[unit] > EMPTY]
        found = list(
            zip(
                (-values_in(keys)).tolist(),
                rows_in(keys).tolist(),
                ranking.places[unit][: len(keys)].tolist(),
                strict=True,
            )
        )
        assert found == expected
        for slot, (_, number, place) in enumerate(expected):
            for offset, got in zip((-1, 0, 1), ranking.windows[unit, slot].tolist(), strict=True):
                if 0 <= place + offset < len(rows[number]):
                    wanted = rows[number][place + offset][unit]
                    assert got == pytest.approx(wanted, rel=2**-8)
            assert ranking.companions[unit, slot] == single(-rows[number][place][unit])


@settings(max_examples=100, deadline=None)
@given(corpora())
def test_statistics_are_those_of_all_tokens(corpus) -> None:
    units, rows, batches = corpus
    found = Statistics(units)
    for numbers in batches:
        x, counted, n = padded(rows, numbers)
        found.add(x, -2 * x, counted, n)
    for unit in range(units):
        column = [token[unit] for row in rows for token in row]
        scale = max(map(abs, column))
        assert int(found.tokens) == len(column)
        assert found.mean[unit].item() == pytest.approx(plain.fmean(column), abs=1e-6 * scale)
        deviation = plain.pstdev(column)
        tiny = max(1e-6 * scale, 1e-18)  # whose square float32 still has
        assert found.deviation[unit].item() == pytest.approx(deviation, rel=1e-3, abs=tiny)
        assert found.least[unit] == torch.tensor(min(column))
        assert found.most[unit] == torch.tensor(max(column))
        assert found.active[unit] == sum(value > 0 for value in column)
        absolute = 2 * math.fsum(map(abs, column))
        assert found.absolute[unit].item() == pytest.approx(absolute, rel=1e-6)
        signed = -2 * math.fsum(column)
        assert found.relevance[unit].item() == pytest.approx(signed, abs=1e-6 * absolute)
        bins = [0] * (2 * len(EDGES) + 1)
        for number, row in enumerate(rows):
            value = row[number * 7919 % len(row)][unit]
            bins[
                len(EDGES) + int(math.copysign(1, value)) * sum(abs(value) >= e for e in EDGES)
            ] += 1
        assert found.histogram[unit].tolist() == bins


def test_a_row_without_a_token_that_counts_is_in_no_ranking() -> None:
    ranking = Ranking(1, 2, (0, 0))
    x = torch.tensor([[[1.0]], [[-torch.inf]]])
    ranking.offer(x, x, None, torch.tensor([4, 5]))
    assert (ranking.keys[0] > EMPTY).tolist() == [True, False]
    assert rows_in(ranking.keys[0, :1]).tolist() == [4]
