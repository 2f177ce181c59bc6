"""Comparisons: names, differences, correlations, and the table."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import lxt
from explained import TARGET, batch, explain, many, single, traced
from lxt.errors import InvalidInput, UnwritableFile
from lxt.explained import ExplainedTarget


def of(values, **provenance):
    return explain([f" {i}" for i in range(len(values))], values, provenance=provenance)


def naive_pearson(one, other):
    n = len(one)
    mean_one, mean_other = sum(one) / n, sum(other) / n
    product = sum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    squares_one = sum((a - mean_one) ** 2 for a in one)
    squares_other = sum((b - mean_other) ** 2 for b in other)
    return product / math.sqrt(squares_one * squares_other)


def naive_ranks(values):
    """How many are smaller, and half of those that are equal."""
    return [sum((b < a) + (b == a) / 2 for b in values) for a in values]


VALUES = st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=8)


@settings(deadline=None)
@given(st.data())
def test_differences_and_correlations(data):
    one = data.draw(VALUES)
    other = data.draw(st.lists(st.integers(-9, 9).map(float), min_size=len(one), max_size=len(one)))
    comparison = lxt.compare(of(one), of(other))
    assert comparison.same_tokens
    expected = [a - b for a, b in zip(one, other, strict=True)]
    assert comparison.difference(0, 1).tolist() == expected
    assert comparison.difference(0, 1).dtype == torch.float64
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(comparison.pearson(0, 1))
        assert math.isnan(comparison.spearman(0, 1))
    else:
        assert comparison.pearson(0, 1) == pytest.approx(naive_pearson(one, other), abs=1e-12)
        ranks = naive_pearson(naive_ranks(one), naive_ranks(other))
        assert comparison.spearman(0, 1) == pytest.approx(ranks, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e308])
def test_correlations_of_any_scale(scale):
    comparison = lxt.compare(of([scale, -scale, scale / 2]), of([1.0, -1.0, 0.5]))
    assert comparison.pearson(0, 1) == pytest.approx(1.0, abs=1e-12)
    assert comparison.pearson(1, 1) <= 1.0
    assert comparison.spearman(0, 1) == pytest.approx(1.0, abs=1e-12)
    assert str(comparison)


def test_without_tokens_nothing_is_defined():
    comparison = lxt.compare(of([]), of([]))
    assert comparison.difference(0, 1).shape == (0,)
    assert math.isnan(comparison.pearson(0, 1))
    assert "undefined" in str(comparison)


def test_padding_is_left_out():
    padded = single(relevance=torch.tensor([0.0, 1.0, 2.0]), mask=torch.tensor([False, True, True]))
    comparison = lxt.compare(padded, batch()[1], names=["a", "b"])
    assert [e.relevance.shape for e in comparison] == [(2,), (2,)]


def test_it_is_a_sequence_of_explanations():
    one, other = of([1.0]), of([2.0])
    comparison = lxt.compare(one, other, names=("x", "y"))
    assert len(comparison) == 2
    assert [e.relevance.tolist() for e in comparison] == [[1.0], [2.0]]
    assert comparison[1].relevance.tolist() == [2.0]
    assert comparison.names == ("x", "y")
    assert repr(comparison) == "<Comparison of 'x', 'y'>"
    with pytest.raises(IndexError):
        comparison.difference(0, 2)


def targeted(name, position=0, **provenance):
    return single(target=ExplainedTarget("logit", name, 1.0, position, name), provenance=provenance)


@pytest.mark.parametrize(
    ("explanations", "names"),
    [
        ([of([1.0], composite="attnlrp"), of([1.0], composite="cp_lrp")], ["attnlrp", "cp_lrp"]),
        ([of([1.0], model="a", composite="c"), of([1.0], model="b", composite="c")], ["a", "b"]),
        ([of([1.0], model="a", composite="c"), of([1.0], model="b", composite="d")],
         ["c, a", "d, b"]),
        ([targeted("x"), targeted("y")], ["x", "y"]),
        ([targeted("x", 0), targeted("x", 1)], ["position 0", "position 1"]),
        ([targeted("x", dtype="float32"), targeted("x", dtype="bfloat16")],
         ["float32", "bfloat16"]),
        ([targeted("x", composite="c"), targeted("x")], ["c", "no composite"]),
        ([targeted("x", composite="c"), targeted("x", composite="d"),
          targeted("x", composite="d", dtype="float64")],
         ["c, no dtype", "d, no dtype", "d, float64"]),
        ([single(), single()], ["1", "2"]),
        ([single(), single(), targeted("x")], ["1", "2", "3"]),
    ],
)  # fmt: skip
def test_names_are_what_distinguishes(explanations, names):
    assert list(lxt.compare(*explanations).names) == names


@pytest.mark.parametrize(
    ("explanations", "names", "message"),
    [
        ([], None, "two explanations or more, not 0"),
        ([single()], None, "two explanations or more, not 1"),
        ([single(), 3], None, "number 1 is 3"),
        ([single(), batch()], None, r"explanation 1 has the axes batch, tokens.*e\[i\]"),
        ([many(), single()], None, "explanation 0 has the axes targets, tokens"),
        ([single(), traced()], None, "layers, tokens"),
        ([single(), single()], ["a"], r"1 names \['a'\] for 2 explanations"),
        ([single(), single()], "ab", "names 'ab' is not a list"),
        ([single(), single()], ["a", 3], "is not a list of strings"),
    ],
)
def test_what_can_not_be_compared(explanations, names, message):
    with pytest.raises(InvalidInput, match=message):
        lxt.compare(*explanations, names=names)


@pytest.mark.parametrize(
    ("tokens", "where"),
    [
        ([" 0", " x"], "at position 1 there is ' 1' and ' x'"),
        ([" 0"], "there are 2 and 1"),
    ],
)
def test_explanations_of_different_tokens(tokens, where):
    other = explain(tokens, [1.0] * len(tokens), provenance={"composite": "b"})
    comparison = lxt.compare(of([1.0, 2.0], composite="a"), other)
    assert not comparison.same_tokens
    for method in (comparison.difference, comparison.pearson, comparison.spearman):
        with pytest.raises(InvalidInput, match=f"'a' and 'b' differ in their tokens: {where}"):
            method(0, 1)
    shown = str(comparison)
    assert "tokens differ" in shown
    assert all(str(explanation) in shown for explanation in comparison)


def test_the_table_of_two():
    one = of([0.5, -2.0], composite="attnlrp", model="m")
    comparison = lxt.compare(one, of([1.0, 2.0], composite="cp_lrp", model="m"))
    lines = str(comparison).splitlines()
    assert lines[1:3] == ['model predicts  " Paris"', "model           m"]
    assert [line.split() for line in lines[4:9]] == [
        ["token", "attnlrp", "cp_lrp", "difference"],
        ["0", "␣0", "+0.50", "░", "+1.00", "▒", "-0.50", "-"],
        ["1", "␣1", "-2.00", "≡", "+2.00", "█", "-4.00", "≡"],
        ["sum", "-1.50", "3.00"],
        ["value", "15.23", "15.23"],
    ]
    assert lines[-1] == "correlation Pearson -1.000, Spearman -1.000"


def test_the_table_of_three_has_no_difference_and_names_pairs():
    shown = str(lxt.compare(of([1.0, 2.0]), of([2.0, 1.0]), of([1.0, 3.0]), names=["a", "b", "c"]))
    assert "difference" not in shown
    for pair, value in [("a and b", "-1.000"), ("a and c", "1.000"), ("b and c", "-1.000")]:
        assert f"correlation {pair}: Pearson {value}, Spearman {value}" in shown


def test_of_many_tokens_the_strongest_in_any_are_shown():
    one, other = [0.0] * 100, [0.0] * 100
    one[70], other[30] = 1.0, -5.0
    shown = str(lxt.compare(of(one), of(other)))
    assert "the 16 of 100 tokens" in shown
    assert {"30", "70"} <= {line.split()[0] for line in shown.splitlines() if line.strip()}


@pytest.mark.parametrize("width", [20, 30, 60, 100])
def test_narrow_terminals_show_every_number(width):
    from io import StringIO

    from rich.console import Console

    explanations = [of([1.25 + i, -2.5]) for i in range(5)]
    console = Console(file=StringIO(), width=width)
    console.print(lxt.compare(*explanations, names=[f"name number {i}" for i in range(5)]))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for i in range(5):
        assert f"{1.25 + i:+.2f}" in shown


def test_texts_are_inert():
    bad = "\x1b[31m\u202e\x07"
    other = explain([bad], [2.0], name=bad, provenance={"composite": bad, "model": bad})
    one = explain([bad], [1.0], provenance={"composite": "a", bad: bad})
    for comparison in (lxt.compare(one, other), lxt.compare(one, other, names=[bad, bad + "x"])):
        assert not set(bad) - set("[31m") & set(str(comparison))


def test_the_page(tmp_path):
    comparison = lxt.compare(of([1.0], composite="a"), of([2.0], composite="<b id=x>"))
    assert comparison.to_html(tmp_path / "page.html") is None
    text = comparison.to_html()
    assert (tmp_path / "page.html").read_text("utf-8") == text
    assert "<b id" not in text
    with pytest.raises(UnwritableFile):
        comparison.to_html(tmp_path / "no" / "page.html")


def test_more_pairs_than_are_shown():
    shown = str(lxt.compare(*(of([1.0, i]) for i in range(6))))
    assert shown.count("correlation") == 10
    assert "… and of 5 more pairs: c.pearson(i, j)" in shown
    assert TARGET.name in shown


def test_a_difference_has_the_decimals_of_the_others_unless_it_would_lose_digits():
    def numbers(difference):
        comparison = lxt.compare(of([1.0, 2.0]), of([1.0, 2.0 - difference]))
        return next(line.split() for line in str(comparison).splitlines() if "␣1" in line)

    assert "+2.00" in numbers(2.0)
    assert "+0.03125" in numbers(1 / 32)


def test_a_difference_that_is_too_large_for_a_float_is_shown_as_the_largest():
    comparison = lxt.compare(of([1e308, 1.0]), of([-1e308, 1.0]))
    assert comparison.difference(0, 1)[0] == math.inf
    assert "+1.80e+308" in str(comparison)
    assert comparison.to_pdf()


def test_the_dataframe_has_a_line_for_each_token_of_each():
    one, other = of([1.0, -3.0]), single()
    table = lxt.compare(one, other, names=["x", "y"]).to_dataframe()
    assert list(table) == ["explanation", *one.to_dataframe()]
    assert list(table.index) == list(range(5))
    assert list(table["explanation"]) == ["x", "x", "y", "y", "y"]
    for name, explanation in (("x", one), ("y", other)):
        part = table[table["explanation"] == name].drop(columns="explanation")
        expected = explanation.to_dataframe()
        for column in expected:
            assert part[column].tolist() == expected[column].tolist()
    assert not len(lxt.compare(of([]), of([])).to_dataframe())


def test_the_dataframe_pivots_to_a_column_for_each():
    table = lxt.compare(of([1.0, -3.0]), of([2.0, 0.5]), names=["x", "y"]).to_dataframe()
    wide = table.pivot(index=["position", "token"], columns="explanation", values="relevance")
    assert wide["x"].tolist() == [1.0, -3.0]
    assert wide["y"].tolist() == [2.0, 0.5]
