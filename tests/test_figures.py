"""Explanations as PDF, PNG and SVG: every view of every shape, honest about its scale."""

import io
import re

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pypdf import PdfReader

from drawn import (
    SVG,
    fills_of,
    generated,
    pages,
    pixels,
    said,
    svg_of,
    texts_of,
)
from explained import (
    OTHER,
    TARGET,
    batch,
    batch_of_many,
    explain,
    many,
    single,
    traced,
)
from lxt.errors import InvalidInput
from lxt.views import colour
from lxt.views.scale import scale_of

# Views and what they say


def test_the_view_goes_by_the_axes():
    for e, view in ((single(), "text"), (many(), "matrix"), (traced(), "trace")):
        assert e.to_image() == e.to_image(view=view)
        assert e.to_pdf() == e.to_pdf(view=view)
    assert batch().to_pdf() == batch().to_pdf(view="text")


@pytest.mark.parametrize("view", ["text", "bars"])
def test_a_caption_states_target_value_sum_composite_and_model(view):
    (text,) = pages(single().to_pdf(view=view))
    for fact in (
        'Relevance for " Paris"',
        'explained: prediction " Paris" at position 2',
        "value: 15.25",
        "sum of relevance: -1.25",
        "composite: attnlrp",
        "model: tiny",
    ):
        assert fact in text


def test_a_matrix_states_the_range_of_values_and_sums():
    (text,) = pages(many().to_pdf())
    assert "Relevance for 3 targets" in text
    assert "values: -0.50 to 15.25" in text.replace("+", "")
    assert "sums of relevance: -1.25 to 3.00" in text.replace("+", "")
    assert "composite: attnlrp" in text


def test_a_trace_states_the_sums_at_its_ends():
    (text,) = pages(traced().to_pdf())
    assert "sum of relevance: -1.250 at the first layer, 3.500 at the last" in text.replace("+", "")
    assert all(name in texts_of(svg_of(traced())) for name in ("embed_tokens", "layers.0"))


def test_the_legend_is_symmetric_and_ends_at_the_largest():
    texts = texts_of(svg_of(single()))
    assert texts[texts.index("-2.000") :][:4] == ["-2.000", "0", "+2.000", "relevance"]


def test_tokens_have_the_colours_of_the_scale():
    fills = [fill for fill, _ in fills_of(svg_of(single()))]
    levels = [5, -colour.LEVELS, round(0.125 * colour.LEVELS)]
    assert fills[1:4] == [colour.LIGHT.shade(level).background for level in levels]


def test_cells_have_the_colours_of_the_scale():
    png = generated(2, 3).to_image(dpi=100)
    values = generated(2, 3).relevance
    scale = values.abs().max().item()
    seen = {tuple(pixel) for pixel in pixels(png).reshape(-1, 3)}
    for value in values.flatten().tolist():
        shade = colour.LIGHT.shade(colour.level_of(value, scale)).background
        assert tuple(bytes.fromhex(shade[1:])) in seen


def test_a_title_of_ones_own_or_none():
    assert "My title" in pages(single().to_pdf(title="My title"))[0]
    assert "Relevance for" not in pages(single().to_pdf(title=""))[0]
    assert PdfReader(io.BytesIO(single().to_pdf(title="Mine"))).metadata.title == "Mine"


def test_bars_are_the_strongest_and_their_count_is_said():
    texts = texts_of(svg_of(single(), view="bars", top=2))
    assert [text for text in texts if text in ("The", "␣capital", "␣of")] == ["␣capital", "The"]
    assert "the 2 of 3 tokens with the largest |relevance|" in " ".join(texts)
    assert {"-2.00", "+0.50"} <= set(texts)
    assert "tokens with the largest" not in said(svg_of(single(), view="bars"))


def test_bars_are_as_long_as_the_relevance():
    e = explain(["a", "b", "c"], [1.0, -0.5, 0.25])
    lengths = []
    for path in svg_of(e, view="bars").iter(f"{SVG}path"):
        fill = re.search("fill: (#[0-9a-f]+)", path.get("style", ""))
        if fill and fill[1] in (colour.LIGHT.positive, colour.LIGHT.negative):
            xs = [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path.get("d"))]
            lengths.append((max(xs) - min(xs)) * (1 if fill[1] == colour.LIGHT.positive else -1))
    assert np.array(lengths) / lengths[0] == pytest.approx([1, -0.5, 0.25], abs=1e-3)


# Robust scale


def test_a_robust_scale_is_off_by_default_and_says_when_it_is_on():
    e = explain([str(i) for i in range(20)], [1000.0] + [1.0] * 19)
    plain, robust = (said(svg_of(e, robust=on)) for on in (False, True))
    assert "robust" not in plain
    assert "robust scale: colours end at the 95th percentile" in robust
    assert "1 of 20 lie beyond" in robust
    assert "≥ +1.000" in robust
    strongest = colour.LIGHT.shade(colour.LEVELS).background
    assert len([f for f, _ in fills_of(svg_of(e))[1:21] if f == strongest]) == 1
    assert len([f for f, _ in fills_of(svg_of(e, robust=True))[1:21] if f == strongest]) == 20


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30),
    st.none() | st.floats(0, 100, exclude_min=True),
)
def test_a_scale_clips_what_is_beyond_it_and_nothing_else(values, percentile):
    scale = scale_of(torch.tensor(values, dtype=torch.float64), percentile)
    sizes = sorted(abs(value) for value in values if value)
    assert scale.end in ({0.0} | set(sizes))
    assert bool(scale.end) == bool(sizes)
    beyond = [size for size in sizes if size > scale.end]
    assert scale.beyond == (len(beyond) if percentile else 0)
    if percentile is None:
        assert not beyond
    else:
        assert len(beyond) <= len(sizes) * (1 - percentile / 100) + 1e-9
    for value in values:
        assert scale.level(value) == -scale.level(-value)
        assert abs(scale.level(value)) <= colour.LEVELS
        assert abs(scale.part(value)) <= 1
        if abs(value) > scale.end:
            assert abs(scale.level(value)) == colour.LEVELS


def test_percentiles_are_named_as_they_are_read():
    notes = [scale_of(torch.ones(1), p).note("bars")[0] for p in (1, 2, 93, 11, 99.5, 100)]
    read = [re.search(r"at the (\S+) percentile", note)[1] for note in notes]
    assert read == ["1st", "2nd", "93rd", "11th", "99.5th", "100th"]


# Many pictures


def test_each_row_has_a_page():
    first, second = pages(batch().to_pdf())
    assert "row 0 of 2" in first
    assert "row 1 of 2" in second
    assert "capital" in first
    assert "In Rome" in second
    assert "pad" not in second


@pytest.mark.parametrize(
    ("make", "view", "headings"),
    [
        (many, "text", ["target 0 of 3", "target 1 of 3", "target 2 of 3"]),
        (traced, "bars", ["layer embed_tokens", "layer layers.0"]),
        (batch_of_many, "matrix", ["row 0 of 2", "row 1 of 2"]),
        (
            batch_of_many,
            "text",
            ["row 0 of 2, target 0 of 2", "row 0 of 2, target 1 of 2", "row 1 of 2, target 0 of 1"],
        ),
    ],
)
def test_axes_that_a_view_lacks_have_pages(make, view, headings):
    read = pages(make().to_pdf(view=view))
    assert len(read) == len(headings)
    assert all(heading in page for heading, page in zip(headings, read, strict=True))


def test_layers_of_targets_are_traces_or_matrices():
    relevance = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    e = single(relevance=relevance, target=[TARGET, OTHER], layers=["a", "b", "c"])
    assert len(pages(e.to_pdf())) == len(pages(e.to_pdf(view="trace"))) == 2
    assert [page.split("layer ")[1][0] for page in pages(e.to_pdf(view="matrix"))] == [
        "a",
        "b",
        "c",
    ]
    assert len(pages(e.to_pdf(view="text"))) == 6


@pytest.mark.parametrize("format", ["png", "svg"])
def test_one_image_holds_one_picture_and_the_error_says_what_to_do(format):
    with pytest.raises(InvalidInput, match=r"2 of batch 2 × tokens 3: take one of them, e\[i\]"):
        batch().to_image(format=format)
    assert batch()[1].to_image(format=format)
