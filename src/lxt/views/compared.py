"""What every view of a comparison says: which facts are whose, and correlations in words."""

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lxt.views.summary import Summary

if TYPE_CHECKING:
    from lxt.comparison import Comparison

MOST_PAIRS = 10
"""Of more pairs of explanations, the correlations of only so many are shown."""


def facts_of(summaries: list[Summary], names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return what is known of all alike, and of each what is not and its name leaves out."""
    known = [{k: f for k, f in summary.facts.items() if k != "value"} for summary in summaries]
    keys = dict.fromkeys(key for facts in known for key in facts)
    alike = [key for key in keys if len({facts.get(key) for facts in known}) == 1]
    named = [
        key
        for key in keys
        if all(facts.get(key, "") in name for name, facts in zip(names, known, strict=True))
    ]
    own = [
        ", ".join(f"{key} {fact}" for key, fact in facts.items() if key not in [*alike, *named])
        for facts in known
    ]
    return {key: known[0][key] for key in alike}, own


def distinct(names: list[str]) -> list[str]:
    """Return the names, numbered where two are the same."""
    if len(set(names)) == len(names):
        return names
    return [f"{i} {name}" for i, name in enumerate(names, start=1)]


def difference_of(comparison: "Comparison") -> Tensor:
    """Return the difference of the first two, as finite as all that views show."""
    return torch.nan_to_num(comparison.difference(0, 1))


def correlations(comparison: "Comparison", names: list[str]) -> tuple[list[tuple[str, str]], int]:
    """Return for pairs their names and correlations, and of how many more there would be some.

    Of a single pair the names are left out.
    """
    pairs = list(itertools.combinations(range(len(names)), 2))
    found: list[tuple[str, str]] = []
    for i, j in pairs[:MOST_PAIRS]:
        measures = {"Pearson": comparison.pearson(i, j), "Spearman": comparison.spearman(i, j)}
        words = [
            f"{measure} {'undefined' if math.isnan(value) else f'{value:.3f}'}"
            for measure, value in measures.items()
        ]
        found.append((f"{names[i]} and {names[j]}" if len(pairs) > 1 else "", ", ".join(words)))
    return found, max(len(pairs) - MOST_PAIRS, 0)
