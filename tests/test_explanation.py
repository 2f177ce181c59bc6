"""Explanations: what they hold, and how they are taken apart."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from explained import (
    OTHER,
    TARGET,
    batch,
    batch_of_many,
    explain,
    explanations,
    many,
    same,
    single,
    traced,
)
from lxt.errors import InvalidInput
from lxt.explained import ExplainedTarget


@settings(deadline=None)
@given(explanations())
def test_every_text_view_of_any_explanation_is_made(explanation):
    assert "\x1b" not in str(explanation)
    explanation.to_html().encode()
    explanation._repr_html_().encode()
    assert repr(explanation).startswith("<Explanation of ")


def test_rows_of_a_batch_come_without_their_padding():
    rows = list(batch())
    assert [row.tokens for row in rows] == [["The", " capital", " of"], ["In", " Rome"]]
    assert rows[1].relevance.tolist() == [1.0, 3.0]
    assert rows[1].token_ids.tolist() == [8, 9]
    assert rows[1].mask.all()
    assert rows[1].target is OTHER
    same(batch()[-1], rows[1])
    assert len(batch()) == 2


@pytest.mark.parametrize("index", [2, -3])
def test_a_row_that_is_not_there(index):
    with pytest.raises(IndexError, match=f"row {index} of a batch of 2"):
        batch()[index]


def test_a_single_explanation_has_no_rows_to_index():
    with pytest.raises(TypeError, match=r"e\.tokens"):
        single()[0]
    with pytest.raises(TypeError, match=r"e\.tokens"):
        iter(single())
    with pytest.raises(TypeError, match="integer"):
        batch()[0:1]
    assert len(single()) == 3


def test_padding_of_a_single_explanation_is_left_out_of_its_row():
    padded = single(
        relevance=torch.tensor([0.0, -2.0, 0.25]), mask=torch.tensor([False, True, True])
    )
    (row,) = padded.rows()
    assert row.tokens == [" capital", " of"]
    assert padded.top(1) == [(0, " capital", -2.0)]


def test_total_is_summed_in_float64():
    assert single().total.item() == -1.25
    assert batch().total.tolist() == [-1.25, 4.0]
    many = single(
        relevance=torch.full((3,), 1 / 3), mask=torch.ones(3, dtype=torch.bool)
    ).total.item()
    assert many == 3 * torch.tensor(1 / 3).item()


def test_top_lists_the_strongest_first():
    assert single().top(2) == [(1, " capital", -2.0), (0, "The", 0.5)]
    assert len(single().top(99)) == 3
    tied = explain(["a"] * 100, [1.0, -1.0] * 50).top(100)
    assert [position for position, _, _ in tied] == list(range(100))
    with pytest.raises(TypeError, match="row"):
        batch().top(1)
    with pytest.raises(InvalidInput, match="-1"):
        single().top(-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevance": [0.5, 1.0, 2.0]}, "relevance is a list"),
        ({"relevance": torch.tensor([1, 2, 3])}, "torch.int64"),
        ({"relevance": torch.tensor([0.5, -2.0, 0.25]).half()}, "torch.float16"),
        ({"relevance": torch.tensor([0.5, math.nan, 0.25])}, "NaN"),
        ({"relevance": torch.tensor([0.5, math.inf, 0.25])}, "infinity"),
        ({"relevance": torch.ones(3, requires_grad=True)}, r"detach\(\)"),
        ({"relevance": torch.ones(3, device="meta")}, "meta"),
        ({"relevance": torch.ones(2)}, r"\[3\].*\[2\]"),
        ({"mask": torch.tensor([True, True, False])}, "padding"),
        ({"mask": torch.tensor([1, 1, 1])}, "mask is torch.int64"),
        ({"token_ids": torch.tensor([1, 2])}, r"token_ids has shape \[2\]"),
        ({"token_ids": torch.tensor([1, 2, 3], dtype=torch.int32)}, "torch.int32"),
        ({"tokens": ["a", "b"]}, "2 given where relevance has 3"),
        ({"tokens": ("a", "b", "c")}, "tuple"),
        ({"tokens": ["a", "b", 3]}, "number 2 is a int"),
        ({"tokens": [["a", "b", "c"]]}, "number 0 is a list"),
        ({"target": [TARGET]}, "list"),
        ({"provenance": {"model": None}}, "None"),
        ({"provenance": "tiny"}, "tiny"),
    ],
)
def test_parts_that_do_not_fit_together(changes, message):
    with pytest.raises(InvalidInput, match=message):
        single(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": TARGET}, "target is a ExplainedTarget, not a list"),
        ({"target": [TARGET]}, "1 given where relevance has 2"),
        ({"tokens": [["a", "b", "c"], ["a", "b"]]}, "2 given where relevance has 3"),
        ({"tokens": ["abc", "def"]}, "number 0 is a str"),
    ],
)
def test_parts_of_a_batch_that_do_not_fit_together(changes, message):
    with pytest.raises(InvalidInput, match=message):
        batch(**changes)


def test_axes_are_named_and_the_first_is_indexed():
    axes = [("tokens",), ("batch", "tokens"), ("targets", "tokens"), ("batch", "targets", "tokens")]
    each = [single(), batch(), many(), batch_of_many()]
    assert [e.axes for e in each] == axes
    assert [len(e) for e in each] == [3, 2, 3, 2]
    assert [list(e.total.shape) for e in each] == [[], [2], [3], [2, 2]]
    assert many()[1].relevance.tolist() == [1.0, 2.0, 0.0]
    assert many()[1].target is OTHER
    assert [one.axes for one in many()] == [("tokens",)] * 3
    with pytest.raises(IndexError, match="target 3 of a list of 3"):
        many()[3]


def test_a_row_of_a_batch_has_its_own_targets_and_no_padding():
    first, second = batch_of_many()
    assert first.axes == second.axes == ("targets", "tokens")
    assert second.relevance.tolist() == [[1.0, 3.0]]
    assert second.tokens == ["In", " Rome"]
    assert second.target == [OTHER]
    singles = batch_of_many().rows()
    assert [one.target for one in singles] == [TARGET, OTHER, OTHER]
    assert singles[0].relevance.tolist() == [0.5, -2.0, 0.25]
    with pytest.raises(TypeError, match="row, target or layer"):
        first.top(1)


def test_layers_are_the_last_axis_before_the_tokens():
    e = traced()
    assert e.axes == ("layers", "tokens")
    assert e.total.tolist() == [-1.25, 3.5]
    assert [one.axes for one in e] == [("tokens",)] * 2
    assert e[1].relevance.tolist() == [1.0, -0.5, 3.0]
    assert e[-1].target is TARGET
    assert repr(e) == '<Explanation of " Paris": layers 2, tokens 3>'
    with pytest.raises(IndexError, match="layer 2 of a trace of 2"):
        e[2]
    with pytest.raises(TypeError, match="row, target or layer"):
        e.top(1)
    relevance = torch.stack([batch_of_many().relevance] * 3, 2)
    whole = batch_of_many(relevance=relevance, layers=["a", "b", "c"])
    assert whole.axes == ("batch", "targets", "layers", "tokens")
    assert whole[1].axes == ("targets", "layers", "tokens")
    assert whole[1].relevance.tolist() == [[[1.0, 3.0]] * 3]
    assert [row.axes for row in whole.rows()] == [("layers", "tokens")] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["a"]}, r"\[2, 3\]: it should be \[1 layers, tokens\] or \[targets, 1 layers"),
        ({"layers": ["a", 2]}, "layers: number 1 is a int"),
        ({"layers": "ab"}, "layers is a str"),
        ({"layers": []}, "layers is an empty list"),
        ({"mask": torch.tensor([True, True, False])}, "padding"),
        ({"relevance": torch.ones(3)}, r"\[3\]: it should be \[2 layers"),
    ],
)
def test_layers_that_do_not_fit(changes, message):
    with pytest.raises(InvalidInput, match=message):
        traced(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": TARGET}, "target is a ExplainedTarget, not a list"),
        ({"target": [TARGET]}, "1 given where relevance has 3"),
        ({"relevance": torch.ones(3, 2)}, r"\[3\], and relevance \[3, 2\]"),
        ({"mask": torch.tensor([True, True, False])}, "padding"),
        ({"mask": torch.tensor([[True] * 3] * 3)}, r"mask \[3, 3\]"),
    ],
)
def test_parts_for_many_targets_that_do_not_fit_together(changes, message):
    with pytest.raises(InvalidInput, match=message):
        many(**changes)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([[TARGET], [OTHER]], "row 0 is not 0 beyond its targets"),
        ([[TARGET, OTHER], [OTHER] * 3], "row 1 has 3 targets where relevance has 2"),
        ([[TARGET, OTHER], [3]], "number 0 is a int"),
        ([TARGET, OTHER], "number 0 is a ExplainedTarget"),
    ],
)
def test_targets_of_rows_that_do_not_fit(target, message):
    with pytest.raises(InvalidInput, match=message):
        batch_of_many(target=target)


def test_relevance_has_one_to_three_dimensions():
    cube = torch.zeros(1, 1, 1)
    with pytest.raises(InvalidInput, match=r"\[1, 1, 1\]"):
        single(relevance=cube, token_ids=cube.long(), mask=cube.bool())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "guess"}, "'guess' is none of"),
        ({"name": 3}, "name 3"),
        ({"prediction": None}, "prediction None"),
        ({"value": math.nan}, "nan"),
        ({"value": 10**400}, "finite"),
        ({"value": "15"}, "'15'"),
        ({"value": True}, "True"),
        ({"position": -1}, "-1"),
        ({"position": True}, "True"),
        ({"position": 1.0}, "1.0"),
    ],
)
def test_targets_that_can_not_be(changes, message):
    fields = {"kind": "logit", "name": "a", "value": 1.0, "position": 0, "prediction": "b"}
    with pytest.raises(InvalidInput, match=message):
        ExplainedTarget(**fields | changes)


def test_views_are_imported_only_when_used():
    code = (
        "import sys, torch; before = set(sys.modules); import lxt.explanation; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new & {'rich', 'jinja2', 'matplotlib', 'transformers', 'lxt'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "['lxt']\n"
