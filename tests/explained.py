"""Explanations to test with: two fixed ones, ones of given tokens, and any that can be."""

import math

import torch
from hypothesis import strategies as st

from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation

TARGET = ExplainedTarget("prediction", '" Paris"', 15.25, 2, '" Paris"')
OTHER = ExplainedTarget("contrast", '" Paris" − " London"', -0.5, 1, '" Rome"')
PROVENANCE = {"model": "tiny", "composite": "attnlrp", "lxt": "0.1.0"}


def single(**changes):
    fields = {
        "relevance": torch.tensor([0.5, -2.0, 0.25]),
        "tokens": ["The", " capital", " of"],
        "token_ids": torch.tensor([5, 6, 7]),
        "mask": torch.tensor([True, True, True]),
        "target": TARGET,
        "provenance": PROVENANCE,
    }
    return Explanation(**fields | changes)


def batch(**changes):
    fields = {
        "relevance": torch.tensor([[0.5, -2.0, 0.25], [0.0, 1.0, 3.0]], dtype=torch.float64),
        "tokens": [["The", " capital", " of"], ["<pad>", "In", " Rome"]],
        "token_ids": torch.tensor([[5, 6, 7], [0, 8, 9]]),
        "mask": torch.tensor([[True, True, True], [False, True, True]]),
        "target": [TARGET, OTHER],
        "provenance": PROVENANCE,
    }
    return Explanation(**fields | changes)


def same(one, other):
    assert one.relevance.dtype == other.relevance.dtype
    for name in ("relevance", "token_ids", "mask"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("tokens", "target", "provenance", "layers"):
        assert getattr(one, name) == getattr(other, name)


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
TARGETS = st.builds(
    ExplainedTarget,
    kind=st.sampled_from(["prediction", "logit", "contrast", "label", "unit", "sum"]),
    name=ANY_TEXT,
    value=st.floats(allow_nan=False, allow_infinity=False),
    position=st.none() | st.integers(0, 10**6),
    prediction=ANY_TEXT,
)


@st.composite
def explanations(draw):
    rows = draw(st.none() | st.integers(0, 3))
    targets = draw(st.none() | st.integers(1, 3))
    layers = draw(st.none() | st.lists(ANY_TEXT, min_size=1, max_size=3))
    tokens = draw(st.integers(0, 6))
    dtype, width = draw(st.sampled_from([(torch.float32, 32), (torch.float64, 64)]))
    shape = (tokens,) if rows is None else (rows, tokens)
    between = [*([] if targets is None else [targets]), *([] if layers is None else [len(layers)])]
    full = (*shape[:-1], *between, tokens)

    def values(strategy, shape):
        size = math.prod(shape)
        return draw(st.lists(strategy, min_size=size, max_size=size))

    def each(count):
        return draw(st.lists(TARGETS, min_size=count, max_size=count))

    numbers = st.floats(allow_nan=False, allow_infinity=False, width=width)
    mask = torch.tensor(values(st.booleans(), shape), dtype=torch.bool).reshape(shape)
    relevance = torch.tensor(values(numbers, full), dtype=dtype).reshape(full)
    relevance = relevance.where(mask.reshape(*shape[:-1], *(1 for _ in between), tokens), 0)
    labels = values(ANY_TEXT, shape)
    ids = values(st.integers(0, 2**63 - 1), shape)
    if rows is None:
        target = draw(TARGETS) if targets is None else each(targets)
    elif targets is None:
        target = each(rows)
    else:
        target = [each(draw(st.integers(0, targets))) for _ in range(rows)]
        for row, kept in enumerate(target):
            relevance[row, len(kept) :] = 0
    return Explanation(
        relevance=relevance,
        tokens=labels if rows is None else [labels[i::rows] for i in range(rows)],
        token_ids=torch.tensor(ids, dtype=torch.int64).reshape(shape),
        mask=mask,
        target=target,
        provenance=draw(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3)),
        layers=layers,
    )


def traced(**changes):
    """One input, one target, two layers."""
    fields = {
        "relevance": torch.tensor([[0.5, -2.0, 0.25], [1.0, -0.5, 3.0]]),
        "layers": ["embed_tokens", "layers.0"],
    }
    return single(**fields | changes)


def many(**changes):
    """One input, three targets."""
    fields = {
        "relevance": torch.tensor([[0.5, 0.0, 0.0], [1.0, 2.0, 0.0], [0.5, -2.0, 0.25]]),
        "target": [TARGET, OTHER, TARGET],
    }
    return single(**fields | changes)


def batch_of_many(**changes):
    """Two rows, of which the second, padded on the left, has but one target."""
    relevance = torch.zeros(2, 2, 3, dtype=torch.float64)
    relevance[0] = torch.tensor([[0.5, -2.0, 0.25], [1.0, 0.0, 0.0]])
    relevance[1, 0, 1:] = torch.tensor([1.0, 3.0])
    return batch(**{"relevance": relevance, "target": [[TARGET, OTHER], [OTHER]]} | changes)


def explain(tokens, relevance, name='" Paris"', kind="prediction", value=15.234, provenance=None):
    target = ExplainedTarget(kind, name, value, max(len(tokens) - 1, 0), '" Paris"')
    return Explanation(
        relevance=torch.tensor(relevance, dtype=torch.float64),
        tokens=list(tokens),
        token_ids=torch.arange(len(tokens)),
        mask=torch.ones(len(tokens), dtype=torch.bool),
        target=target,
        provenance={"model": "tiny", "composite": "attnlrp"} if provenance is None else provenance,
    )


def batch_of(*rows):
    return Explanation(
        relevance=torch.stack([row.relevance for row in rows]),
        tokens=[row.tokens for row in rows],
        token_ids=torch.stack([row.token_ids for row in rows]),
        mask=torch.stack([row.mask for row in rows]),
        target=[row.target for row in rows],
        provenance=rows[0].provenance,
    )
