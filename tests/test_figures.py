"""Explanations as PDF, PNG and SVG: every view of every shape, honest about its scale."""

import io
import itertools
import os
import re
import subprocess
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pypdf import PdfReader

from drawn import HOSTILE, SVG, fills_of, pages, pixels, said, svg_of, texts_at, texts_of
from explained import (
    OTHER,
    TARGET,
    batch,
    batch_of_many,
    explain,
    explanations,
    many,
    single,
    traced,
)
from lxt.errors import InvalidInput, UnwritableFile
from lxt.explanation import Explanation
from lxt.views import canvas, colour, figures
from lxt.views.fonts import Fonts
from lxt.views.heatmap import Table, banded_map, square_map
from lxt.views.scale import scale_of


def generated(count=4, tokens=6):
    """One input, many targets at its end, each of the tokens before it."""
    relevance = torch.randn(count, tokens, generator=torch.Generator().manual_seed(0))
    return single(
        relevance=relevance.tril(tokens - count),
        tokens=[f" word{i}" for i in range(tokens)],
        token_ids=torch.arange(tokens),
        mask=torch.ones(tokens, dtype=torch.bool),
        target=[TARGET] * count,
    )


def named(tokens, layers=None, targets=None):
    """An explanation of such tokens, and layers or targets of such names."""
    names = layers or targets
    shape = (len(names), len(tokens)) if names else (len(tokens),)
    target = [type(TARGET)("logit", name, 1.0, 0, name) for name in targets or ['" Paris"']]
    return single(
        relevance=torch.randn(*shape, generator=torch.Generator().manual_seed(1)),
        tokens=list(tokens),
        token_ids=torch.arange(len(tokens)),
        mask=torch.ones(len(tokens), dtype=torch.bool),
        target=target if targets else target[0],
        layers=layers,
    )


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


# Maps


@pytest.mark.parametrize("count", [1, 3, 30, 300])
@pytest.mark.parametrize("what", ["matrix", "trace"])
def test_labels_neither_meet_nor_leave_the_page(what, count):
    tokens = [" q" * (i % 20 + 1) for i in range(count)]
    names = [f"layer.{i}" for i in range(count)]
    e = named(tokens, layers=names) if what == "trace" else named(tokens, targets=tokens)
    svg = svg_of(e)
    _, _, width, height = map(float, svg.get("viewBox").split())
    fonts = Fonts("a", 10)
    placed = texts_at(svg)
    up = sorted((x, y, text) for text, x, y, is_up in placed if is_up)
    assert all(b[0] - a[0] >= 7.5 for a, b in itertools.pairwise(up))
    for x, y, text in up:
        assert 0 < y - fonts.measure(text) * 0.7 < y < height
        assert 0 < x < width
    across = [(x, y, text) for text, x, y, is_up in placed if not is_up]
    for x, y, text in across:
        assert x >= 0
        assert 0 < y < height
        assert x + fonts.measure(text) * 0.7 <= width + 1
    left = sorted(y for x, y, text in across if text.lstrip("0123456789 ").startswith(("␣q", "q")))
    assert all(b - a >= 7.5 for a, b in itertools.pairwise(left))
    assert 1 <= len(up) <= 80


def test_labels_that_are_thinned_out_are_counted_and_layers_are_not():
    texts = texts_of(svg_of(generated(100, 100)))
    assert "0 ␣word0" in texts
    assert "50 ␣word50" in texts
    assert "␣word50" not in texts
    names = texts_of(svg_of(named(["a"] * 3, layers=[f"layer.{i}" for i in range(200)])))
    assert "layer.0" in names
    assert "layer.1" not in names


def test_few_cells_have_their_numbers():
    assert {"+0.500", "-2.000"} <= set(texts_of(svg_of(many())))
    number = re.compile(r"[+-]\d\.\d+")
    texts = filter(number.fullmatch, texts_of(svg_of(generated(20, 20))))
    assert len(list(texts)) == 2  # the legend's


def test_cells_of_a_matrix_are_square_and_nothing_shows_between_them():
    svg = svg_of(explain_matrix(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])), title="")
    found = [d for fill, d in paths_of(svg) if fill == colour.LIGHT.positive]
    larger, exact = map(rectangles_of, found[:2])
    first, second = exact
    assert first[2] - first[0] == pytest.approx(first[3] - first[1])
    assert first[2:] == pytest.approx(second[:2])
    # Below what is drawn in the end, the upper left cell lies under the next ones, too.
    assert larger[0][:2] == pytest.approx(first[:2])
    assert larger[0][2:] == pytest.approx((first[2] + 1, first[3] + 1))
    assert larger[1] == pytest.approx(second)


def explain_matrix(relevance):
    rows, tokens = relevance.shape
    return single(
        relevance=relevance,
        tokens=["a"] * tokens,
        token_ids=torch.arange(tokens),
        mask=torch.ones(tokens, dtype=torch.bool),
        target=[TARGET] * rows,
    )


def paths_of(svg):
    for path in svg.iter(f"{SVG}path"):
        fill = re.search("fill: (#[0-9a-f]+)", path.get("style", ""))
        if fill:
            yield fill[1], path.get("d")


def rectangles_of(d):
    """Left, top, right and bottom of each."""
    found = []
    for part in d.split("M")[1:]:
        numbers = np.array([float(x) for x in re.findall(r"-?\d+\.?\d*", part)]).reshape(-1, 2)
        found.append((*numbers.min(0), *numbers.max(0)))
    return found


def test_no_paper_shows_between_cells():
    """Cells nearly as red as each other are one red area, whichever way pixels cut them."""
    ones = torch.ones(7, 11) * torch.tensor([1.0, 0.95]).repeat(6)[:11]  # two steps of colour
    for dpi in (72, 97, 131, 200):
        image = pixels(explain_matrix(ones).to_image(dpi=dpi, title=""))
        red = np.abs(image - [0xB2, 0x18, 0x2B]).sum(-1) < 60
        rows, columns = np.flatnonzero(red.sum(1) > 100), np.flatnonzero(red.sum(0) > 30)
        inner = red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        numbers = 0.25  # of each cell at most are its number's ink
        assert (inner.mean(0) > 1 - numbers).all()
        assert (inner.mean(1) > 0.4).all()


def test_cells_do_not_run_over_white_ones():
    values = torch.zeros(3, 3)
    values[1, 1] = 1.0
    image = pixels(explain_matrix(values).to_image(dpi=72, title=""))
    red = np.abs(image - [0xB2, 0x18, 0x2B]).sum(-1) < 30
    rows = [row.sum() for row in red[:150] if row.sum() > 15]
    assert len(rows) == 34
    assert max(rows) == 34


def test_long_traces_go_on_below_with_their_header():
    fonts = Fonts("a0123456789", 10)
    rows = 1000
    table = Table([[0] * 3] * rows, [], ["a"] * rows, ["x", "y", "z"], ("rows", "columns"))
    width, bands = banded_map(table, fonts)
    assert len(bands) > 1
    assert max(band.height for band in bands) < canvas.TALLEST
    assert max(band.height for band in bands) == pytest.approx(bands[0].height)
    assert width <= canvas.WIDTH + 1
    _, whole = square_map(table, fonts)
    assert len(whole) == 1


# Files


def test_the_path_decides_the_format(tmp_path):
    for name, head in {"a.png": b"\x89PNG", "b.svg": b"<?xml", "c.SVG": b"<?xml"}.items():
        assert single().to_image(tmp_path / name) is None  # a prompt would show what is returned
        assert (tmp_path / name).read_bytes().startswith(head)
    single().to_pdf(str(tmp_path / "d.pdf"))
    assert (tmp_path / "d.pdf").read_bytes().startswith(b"%PDF")
    single().to_image(tmp_path / "plain", format="svg")
    assert (tmp_path / "plain").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("path", "format"),
    [("a.pdf", None), ("a", None), ("a.jpeg", None), ("a.png", "svg"), (None, "gif")],
)
def test_other_formats_are_refused(path, format, tmp_path):
    with pytest.raises(InvalidInput, match=re.escape(repr(format)) if format else "neither"):
        single().to_image(path and tmp_path / path, format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["to_pdf", "to_image"])
def test_what_cannot_be_written_is_said_before_anything_is_drawn(method, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("drawn")

    monkeypatch.setattr(figures, "draw", never)
    name = "x.pdf" if method == "to_pdf" else "x.png"
    (tmp_path / "file").write_text("kept")
    (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / name, tmp_path / "none" / name, tmp_path / "file" / name):
        with pytest.raises(UnwritableFile, match=re.escape(repr(os.fspath(path)))):
            getattr(single(), method)(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_invalid_option_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.png"
    file.write_text("kept")
    with pytest.raises(InvalidInput):
        single().to_image(file, view="matrix")
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"view": "pie"}, "view='pie' is none of 'text', 'bars', 'matrix', 'trace'"),
        ({"view": "matrix"}, "no axis of targets, only tokens"),
        ({"view": "trace"}, "no axis of layers, only tokens"),
        ({"top": 3}, "top=3 .* view is 'text'"),
        ({"view": "bars", "top": 0}, "top=0"),
        ({"view": "bars", "top": True}, "top=True"),
        ({"view": "bars", "top": 2.0}, "top=2.0"),
        ({"robust": 0}, "robust=0 "),
        ({"robust": 101}, "robust=101"),
        ({"robust": float("nan")}, "robust=nan"),
        ({"robust": "yes"}, "robust='yes'"),
        ({"title": 3}, "title=3"),
        ({"title": "x" * 1001}, "up to 1000 characters"),
    ],
)
def test_options_that_do_not_fit_are_quoted(options, quoted):
    with pytest.raises(InvalidInput, match=quoted):
        single().to_pdf(**options)
    with pytest.raises(InvalidInput, match=quoted):
        single().to_image(**options)


@pytest.mark.parametrize("dpi", [0, -1, float("nan"), float("inf"), "200", 10_001])
def test_dots_per_inch_are_a_number(dpi):
    with pytest.raises(InvalidInput, match=f"dpi={dpi!r}"):
        single().to_image(dpi=dpi)


# Size


def test_ten_thousand_tokens_are_drawn():
    e = named([f" w{i}" for i in range(10_000)])
    assert len(pages(e.to_pdf())) > 10
    assert e.to_image(view="bars")
    assert "w9999" in "".join(texts_of(svg_of(e)))


def test_a_trace_of_ten_thousand_tokens_takes_pages():
    e = named(["a"] * 10_000, layers=["x", "y", "z"])
    read = PdfReader(io.BytesIO(e.to_pdf())).pages
    assert 10 < len(read) < 40
    assert all(page.mediabox.height <= canvas.TALLEST + 1 for page in read)


def test_too_much_is_refused_at_once():
    tokens = 1000
    e = explain_matrix(torch.ones(tokens, tokens))
    with pytest.raises(InvalidInput, match="1,000,000 relevances"):
        e.to_pdf()
    with pytest.raises(InvalidInput, match="14400.*take fewer tokens"):
        explain_matrix(torch.ones(2, 20_000)).to_pdf()
    with pytest.raises(InvalidInput, match="at most dpi="):
        explain_matrix(torch.ones(2, 20_000)).to_image(dpi=300)
    with pytest.raises(InvalidInput, match="2,001 pictures"):
        named(["a"], layers=["x"] * 2001).to_pdf(view="text")


def test_nothing_to_draw_is_an_error_and_no_tokens_are_not():
    empty = batch(
        relevance=torch.zeros(0, 3),
        tokens=[],
        token_ids=torch.zeros(0, 3, dtype=torch.int64),
        mask=torch.zeros(0, 3, dtype=torch.bool),
        target=[],
    )
    with pytest.raises(InvalidInput, match="nothing to draw: batch 0 × tokens 3"):
        empty.to_pdf()
    for view in ("text", "bars"):
        assert explain([], []).to_pdf(view=view)
        assert explain([], []).to_image(view=view)


# Any explanation at all


@pytest.mark.parametrize("view", figures.VIEWS)
@settings(deadline=None, max_examples=15)
@given(e=explanations(), robust=st.booleans(), title=st.none() | st.text(max_size=20))
def test_any_explanation_is_drawn_or_refused(view, e, robust, title):
    options = {"view": view, "robust": robust, "title": title}
    needed = {"matrix": "targets", "trace": "layers"}.get(view, "tokens")
    inputs = e.inputs() if view == "matrix" else e.rows()
    count = len(inputs) * (len(e.layers) if e.layers and view != "trace" else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if needed not in e.axes:
            with pytest.raises(InvalidInput, match=f"no axis of {needed}"):
                e.to_pdf(**options)
        elif not count:
            with pytest.raises(InvalidInput, match="nothing to draw"):
                e.to_pdf(**options)
        else:
            assert len(PdfReader(io.BytesIO(e.to_pdf(**options))).pages) == count
        if needed in e.axes and count == 1:
            ElementTree.fromstring(e.to_image(format="svg", **options))
            assert e.to_image(dpi=40, **options).startswith(b"\x89PNG")
        elif needed in e.axes and count:
            with pytest.raises(InvalidInput, match="holds one picture"):
                e.to_image(**options)


@pytest.mark.parametrize("view", figures.VIEWS)
def test_hostile_text_is_inert(view):
    e = named(
        HOSTILE,
        layers=HOSTILE if view == "trace" else None,
        targets=HOSTILE if view == "matrix" else None,
    )
    e = Explanation(**{**vars(e), "provenance": {"model": "".join(HOSTILE), "composite": "]]>"}})
    data = e.to_image(format="svg", view=view, title="</title><script>alert(1)</script>")
    svg = ElementTree.fromstring(data)
    tags = {element.tag.split("}")[-1] for element in svg.iter()}
    assert not tags & {"script", "image", "a", "foreignObject"}
    assert not [key for element in svg.iter() for key in element.attrib if key.startswith("on")]
    text = data.decode()
    assert not set("\x00\x1b\u202e") & set(text)
    assert any("</text><script>" in label for label in texts_of(svg))
    assert e.to_pdf(view=view)
    assert e.to_image(view=view, dpi=40)


def test_all_characters_that_a_view_shows_have_a_font_or_a_number():
    tokens = ["東京", "\U0010fffd", "שלום"]
    for view, e in {
        "bars": named(tokens),
        "matrix": named(tokens, targets=tokens),
        "trace": named(tokens, layers=tokens),
    }.items():
        texts = texts_of(svg_of(e, view=view))
        assert any("\\U0010FFFD" in text for text in texts)
        assert not any("\U0010fffd" in text for text in texts)


# Fonts, settings, processes, threads


@pytest.mark.parametrize("view", figures.VIEWS)
def test_text_is_text_in_fonts_that_are_embedded_as_truetype(view):
    e = named(["The", " Tower"], layers=["x"], targets=None) if view == "trace" else None
    e = e or (many() if view == "matrix" else single())
    pdf = e.to_pdf(view=view)
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf  # cells are vectors
    svg = svg_of(e, view=view)
    assert list(svg.iter(f"{SVG}text"))
    assert not list(svg.iter(f"{SVG}image"))


def drawn():
    return [
        *(e.to_pdf() for e in (single(), many(), traced(), batch())),
        *(e.to_image(format="svg") for e in (single(), many(), traced())),
        single().to_image(view="bars"),
        many().to_image(),
    ]


def test_same_input_same_bytes_in_another_process():
    code = (
        "import hashlib, test_figures; "
        "[print(hashlib.sha256(data).hexdigest()) for data in test_figures.drawn()]"
    )

    def digests(seed):
        paths = [str(Path(__file__).parent), *sys.path]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(paths)}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    one = digests("1")
    assert one == digests("2")
    assert len(one.split()) == len(drawn())


def test_settings_of_the_user_do_not_matter():
    expected = drawn()
    odd = {
        "text.usetex": True,
        "font.size": 40,
        "font.family": ["serif"],
        "pdf.fonttype": 3,
        "svg.fonttype": "path",
        "path.snap": False,
        "path.simplify": False,
        "savefig.dpi": 31,
        "lines.linewidth": 9,
        "axes.unicode_minus": False,
    }
    with mpl.rc_context(odd):
        assert drawn() == expected


def test_threads_draw_at_once():
    expected, found = drawn(), []
    threads = [threading.Thread(target=lambda: found.append(drawn())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_pyplot_is_not_imported_and_matplotlib_only_when_it_is_needed():
    code = (
        "import sys, lxt; from lxt.explanation import Explanation; "
        "assert 'matplotlib' not in sys.modules; "
        "import lxt.views.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
