"""Comparisons as PDF, PNG and SVG: on one scale or each on its own, which is said."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import lxt
from drawn import HOSTILE, SVG, fills_of, pages, pixels, said, svg_of, texts_at, texts_of
from explained import explain, explanations
from lxt.errors import InvalidInput, UnwritableFile
from lxt.explanation import Explanation
from lxt.views import colour, comparison_figures
from lxt.views.fonts import Fonts

VIEWS = comparison_figures.VIEWS


def of(values, tokens=None, **provenance):
    tokens = tokens or [f" t{i}" for i in range(len(values))]
    return explain(tokens, values, provenance=provenance)


def two(**changes):
    return lxt.compare(of([1.0, -0.5], composite="a"), of([0.25, 2.0], composite="b"), **changes)


def differing():
    return lxt.compare(of([1.0, -0.5]), of([2.0], [" alone"]), names=["long", "short"])


def shades(levels):
    return [colour.LIGHT.shade(level).background for level in levels]


def test_the_view_goes_by_the_tokens():
    assert two().to_image() == two().to_image(view="matrix")
    assert two().to_pdf() == two().to_pdf(view="matrix")
    assert differing().to_image() == differing().to_image(view="text")
    for view in ("matrix", "bars"):
        with pytest.raises(InvalidInput, match=f"view='{view}'.*'long', 'short'.*differ"):
            differing().to_pdf(view=view)


@pytest.mark.parametrize("view", VIEWS)
def test_the_caption_states_values_sums_and_correlations(view):
    text = said(svg_of(two(), view=view))
    assert 'Relevance for " Paris"' in text
    assert 'explained: prediction " Paris" at position 1' in text
    assert "a: value 15.23, sum of relevance 0.50" in text
    assert "b: value 15.23, sum of relevance 2.25" in text
    assert "correlation: Pearson -1.000, Spearman -1.000" in text
    assert ("difference: a − b" in text) == (view != "bars")


def test_three_have_no_difference_and_pairs_are_named():
    comparison = lxt.compare(of([1.0, 2.0]), of([2.0, 1.0]), of([1.0, 3.0]), names=["a", "b", "c"])
    for view in VIEWS:
        text = said(svg_of(comparison, view=view))
        assert "difference" not in text
        assert "correlation a and c: Pearson 1.000, Spearman 1.000" in text
    many = lxt.compare(*(of([1.0, i]) for i in range(6)))
    assert "… and of 5 more pairs" in said(svg_of(many))


def test_what_differs_is_said_of_each():
    one = explain([" x"], [1.0], name="here", provenance={"model": "m"})
    other = explain([" x"], [2.0], name="there", value=2.0, provenance={"model": "m"})
    text = said(svg_of(lxt.compare(one, other, names=["first", "second"])))
    assert "Relevance, compared" in text
    assert "model: m" in text
    assert "first: value 15.23, sum of relevance 1.00, explained prediction here" in text
    assert "second: value 2.000, sum of relevance 2.000, explained prediction there" in text


# Scales


@pytest.mark.parametrize("view", ["matrix", "text"])
def test_a_shared_scale_gives_equal_relevance_equal_colour(view):
    # The difference is 0.75 and -2.5, the largest, at which colours are full for all.
    svg = svg_of(two(), view=view)
    levels = [round(v / 2.5 * colour.LEVELS) for v in (1.0, -0.5, 0.25, 2.0, 0.75, -2.5)]
    fills = [fill for fill, _ in fills_of(svg)]
    assert set(shades(levels)) <= set(fills)
    if view == "text":
        assert fills[1:7] == shades(levels)
    assert "one scale for all: colours up to ±2.500" in said(svg)
    assert {"-2.500", "+2.500"} <= set(texts_of(svg))


def test_scales_of_their_own_are_full_for_each_and_said():
    full = [colour.LEVELS, -colour.LEVELS // 2, round(0.125 * colour.LEVELS), colour.LEVELS]
    full += [round(0.3 * colour.LEVELS), -colour.LEVELS]
    svg = svg_of(two(), view="text", scale="each")
    assert [fill for fill, _ in fills_of(svg)][1:7] == shades(full)
    text = said(svg)
    assert "scale of its own" in text
    assert "a: ±1.000; b: ±2.000; difference: ±2.500" in text
    assert "colours up to ±2.000" in text
    assert {"-1", "+1"} <= set(texts_of(svg))
    assert "one scale" not in text
    assert said(svg_of(two(), scale="each")).count("±") == 3


def test_a_matrix_has_a_row_for_each_from_top_to_bottom():
    found = pixels(two().to_image(dpi=72, title=""))
    svg = svg_of(two(), title="")
    rows = {text: (x, y) for text, x, y, up in texts_at(svg) if text in ("a", "b", "difference")}
    columns = [x for text, x, _, up in texts_at(svg) if up]
    expected = {"a": (1.0, -0.5), "b": (0.25, 2.0), "difference": (0.75, -2.5)}
    assert rows["a"][1] < rows["b"][1] < rows["difference"][1]
    for name, values in expected.items():
        for x, value in zip(columns, values, strict=True):
            # Beside the number: near the left end of the cell, at the height of the row's name.
            pixel = found[int(rows[name][1] - 2), int(x - 15)]
            level = round(value / 2.5 * colour.LEVELS)
            assert tuple(pixel) == tuple(bytes.fromhex(shades([level])[0][1:]))


@pytest.mark.parametrize("scale", ["shared", "each"])
def test_a_robust_scale_says_so_for_each_that_has_it(scale):
    comparison = lxt.compare(
        of([1000.0] + [1.0] * 19), of([2.0] * 20), of([3.0] * 20), names=["x", "y", "z"]
    )
    assert "robust" not in said(svg_of(comparison, scale=scale))
    text = said(svg_of(comparison, scale=scale, robust=True))
    assert "colours end at the 95th percentile" in text
    if scale == "shared":
        assert "1 of 60 lie beyond" in text
        assert "≥ +3.000" in text
    else:
        assert "x: robust scale" in text
        assert "1 of 20 lie beyond" in text
        assert "≥ +1" in text


# Bars


def bars_of(svg):
    """Signed lengths of bars by colour, in the order in which they are drawn."""
    names = {shade.lower(): i for i, shade in enumerate(comparison_figures.BAR_COLOURS)}
    zero = None
    found = []
    for path in svg.iter(f"{SVG}path"):
        fill = re.search("fill: (#[0-9a-f]+)", path.get("style", ""))
        xs = [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path.get("d", ""))]
        if fill and fill[1] == "#999999":
            zero = (min(xs) + max(xs)) / 2
        elif fill and fill[1] in names:
            found.append((names[fill[1]], min(xs), max(xs)))
    return [(i, high - low if (low + high) / 2 > zero else low - high) for i, low, high in found]


def test_bars_are_grouped_by_token_with_the_colour_of_their_explanation():
    comparison = lxt.compare(
        of([1.0, -0.5, 0.1]), of([0.25, 2.0, 0.2]), of([-0.5, 0.5, 0.3]), names=["x", "y", "z"]
    )
    svg = svg_of(comparison, view="bars", top=2)
    bars = bars_of(svg)[:6]
    assert [i for i, _ in bars] == [0, 1, 2] * 2
    expected = [-0.5, 2.0, 0.5, 1.0, 0.25, -0.5]
    assert [b / bars[1][1] for _, b in bars] == pytest.approx([v / 2 for v in expected], abs=1e-2)
    texts = texts_of(svg)
    assert [t for t in texts if t.startswith("␣")] == ["␣t1", "␣t0"]
    assert {"x", "y", "z", "+2.000", "-0.500"} <= set(texts)
    assert "the 2 of 3 tokens" in said(svg)
    assert len(bars_of(svg)) == 9  # and the legend


def test_bars_of_own_scales_are_as_long_as_their_part_and_chosen_by_it():
    comparison = lxt.compare(of([100.0, 50.0, 0.0]), of([0.0, 0.1, 1.0]), names=["x", "y"])
    svg = svg_of(comparison, view="bars", scale="each", top=2)
    assert [t for t in texts_of(svg) if t.startswith("␣")] == ["␣t0", "␣t2"]
    lengths = [length for _, length in bars_of(svg)][:2]  # those of 0 are not drawn
    assert lengths[0] == pytest.approx(lengths[1])
    assert "bars up to x: ±100.0; y: ±1.000" in said(svg)
    shared = svg_of(comparison, view="bars", top=2)
    assert [t for t in texts_of(shared) if t.startswith("␣")] == ["␣t0", "␣t1"]


def test_more_than_there_are_colours_are_refused_as_bars_alone():
    comparison = lxt.compare(*(of([float(i)]) for i in range(8)))
    with pytest.raises(InvalidInput, match="colours for 7 explanations, not 8: take view='matrix'"):
        comparison.to_image(view="bars")
    assert comparison.to_image(view="matrix", dpi=30)


# Sizes


@pytest.mark.parametrize("count", [1, 2, 35, 120])
def test_all_tokens_are_named_and_stand_in_the_page(count):
    tokens = [f" q{i}" for i in range(count)]
    comparison = lxt.compare(
        of([1.0] * count, tokens), of([2.0] * count, tokens), names=["x" * 80, "y"]
    )
    svg = svg_of(comparison)
    _, _, width, height = map(float, svg.get("viewBox").split())
    fonts = Fonts("a", 10)
    up = [(text, x, y) for text, x, y, is_up in texts_at(svg) if is_up]
    assert [text for text, *_ in up] == [f"␣q{i}" for i in range(count)]
    for text, x, y in up:
        assert 0 < x < width
        assert 0 < y - fonts.measure(text) * 0.7 < y < height
    lines = sorted({round(y) for *_, y in up})
    assert len(lines) == (1 if count <= 35 else 4)  # the long name takes its room
    for text, x, y, is_up in texts_at(svg):
        if not is_up:
            assert x >= 0
            assert x + fonts.measure(text) * 0.6 <= width
            assert 0 < y < height


def test_long_ones_go_on_over_pages_and_names_stay_with_their_text():
    tokens = [f" token{i}" for i in range(2500)]
    one, other = of([1.0] * 2500, tokens), of([2.0] * 2500, tokens)
    comparison = lxt.compare(one, other, of([3.0] * 2500, tokens), names=["first", "second", "x"])
    read = pages(comparison.to_pdf(view="text"))
    assert len(read) > 2
    for name in ("first", "second"):
        assert re.search(rf"{name} token0 token1", " ".join(read))
    assert not any(page.rstrip().endswith("second") for page in read)
    assert len(pages(comparison.to_pdf())) > 1


def test_too_much_is_refused():
    relevance = torch.zeros(100_001)
    big = Explanation(
        relevance=relevance,
        tokens=["x"] * len(relevance),
        token_ids=torch.zeros(len(relevance), dtype=torch.int64),
        mask=torch.ones(len(relevance), dtype=torch.bool),
        target=of([1.0]).target,
        provenance={},
    )
    with pytest.raises(InvalidInput, match="200,002 relevances, more than one file takes"):
        lxt.compare(big, big).to_pdf()
    assert lxt.compare(big, big).to_image(view="bars", dpi=30)


@pytest.mark.parametrize("view", VIEWS)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    e=explanations(),
    factor=st.sampled_from([0.0, -1.0, 0.5]),
    scale=st.sampled_from(["shared", "each"]),
    robust=st.sampled_from([False, True, 50.0]),
)
def test_any_explanations_are_drawn(view, e, factor, scale, robust):
    for part in e.rows()[:1]:
        one = part[0] if part.is_traced else part
        other = Explanation(**{**vars(one), "relevance": one.relevance * factor})
        comparison = lxt.compare(one, other)
        assert comparison.to_pdf(view=view, scale=scale, robust=robust).startswith(b"%PDF-")
        ElementTree.fromstring(comparison.to_image(format="svg", view=view, scale=scale))
        assert str(comparison)


# Files, options, texts


def test_it_is_returned_or_written(tmp_path):
    comparison = two()
    assert comparison.to_pdf(tmp_path / "c.pdf") is None
    assert (tmp_path / "c.pdf").read_bytes() == comparison.to_pdf()
    for format in ("png", "svg"):
        assert comparison.to_image(tmp_path / f"c.{format}") is None
        assert (tmp_path / f"c.{format}").read_bytes() == comparison.to_image(format=format)
    with pytest.raises(InvalidInput, match="neither PNG nor SVG"):
        comparison.to_image(tmp_path / "c.gif")
    for write in (comparison.to_pdf, comparison.to_image):
        with pytest.raises(UnwritableFile, match="no-folder"):
            write(tmp_path / "no-folder" / "c.png", view="wrong")


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"view": "trace"}, "view='trace' is none of 'text', 'bars', 'matrix'"),
        ({"scale": "own"}, "scale='own' is none of 'shared', 'each'"),
        ({"top": 3}, "top=3 is how many bars there are, and view is 'matrix'"),
        ({"top": 0, "view": "bars"}, "top=0 is no count"),
        ({"robust": 0}, "robust=0 is no percentile"),
        ({"title": 3}, "title=3 is no text"),
    ],
)
def test_options_that_do_not_fit_are_quoted(options, quoted):
    for draw in (two().to_pdf, two().to_image):
        with pytest.raises(InvalidInput, match=re.escape(quoted)):
            draw(**options)


def test_dots_per_inch_and_title():
    with pytest.raises(InvalidInput, match="dpi=0"):
        two().to_image(dpi=0)
    small, large = (pixels(two().to_image(dpi=dpi)).shape for dpi in (50, 100))
    assert abs(large[0] - 2 * small[0]) <= 2
    assert "Mine" in pages(two().to_pdf(title="Mine"))[0]
    assert "Relevance for" not in pages(two().to_pdf(title=""))[0]


@pytest.mark.parametrize("view", VIEWS)
def test_hostile_text_is_inert(view):
    provenance = {"model": "".join(HOSTILE), "composite": "]]>", "\x1b[31m": "\x00"}
    one = explain(HOSTILE, [1.0] * len(HOSTILE), name=HOSTILE[0], provenance=provenance)
    other = explain(HOSTILE, [-1.0] * len(HOSTILE), name=HOSTILE[1], provenance={})
    comparison = lxt.compare(one, other, names=["".join(HOSTILE), HOSTILE[0]])
    data = comparison.to_image(format="svg", view=view)
    svg = ElementTree.fromstring(data)
    tags = {element.tag.split("}")[-1] for element in svg.iter()}
    assert not tags & {"script", "image", "a", "foreignObject"}
    assert not set("\x00\x1b\u202e") & set(data.decode())
    assert any("</text><script>" in label for label in texts_of(svg))
    assert comparison.to_pdf(view=view)
    assert comparison.to_image(view=view, dpi=40)


@pytest.mark.parametrize("view", VIEWS)
def test_text_is_text_in_embedded_fonts_and_cells_are_vectors(view):
    pdf = two().to_pdf(view=view)
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf


def test_characters_without_a_font_are_numbers_in_names_too():
    texts = " ".join(texts_of(svg_of(two(names=["\U0010fffd", "b"]), view="bars")))
    assert "\\U0010FFFD" in texts
    assert "\U0010fffd" not in texts
