"""Text as a heat map on a page: all of it, in order, on its colours, whatever it holds."""

import io
import logging
import re
import subprocess
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from matplotlib.image import imread
from pypdf import PdfReader

from lxt.tokens import printable
from lxt.views import page
from lxt.views.flow import flow
from lxt.views.fonts import Fonts

LABEL = st.text(st.characters(exclude_categories=[]), max_size=20)
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ["$a_b$", "\\frac{a}{b}", "</text><script>", "&amp;", "\x1b[31m", "\x00", "\ud800", "]]>"]


def plain(tokens):
    return ["#ffffff"] * len(tokens)


def text_of(pdf):
    return [sheet.extract_text() for sheet in PdfReader(io.BytesIO(pdf)).pages]


def squeezed(text):
    return re.sub(r"\s", "", text)


def flowed(tokens, width=20):
    return [[piece.text for piece in line] for line in flow(tokens, width, len)]


# Flow, with a width of 1 for every character


def test_words_wrap_where_they_no_longer_fit():
    tokens = ["one", " two", " three", " four", " five", " six"]
    assert flowed(tokens) == [["one", " two", " three", " four"], ["five", " six"]]


def test_short_words_of_several_tokens_stay_together():
    tokens = ["one", " two", " three", " nine", " f", "our"]
    assert flowed(tokens) == [["one", " two", " three", " nine"], ["f", "our"]]


def test_long_words_break_between_tokens_and_long_tokens_inside():
    tokens = ["abcdef", "ghijkl", "mnop", "qrstuv", "w"]
    assert flowed(tokens) == [["abcdef", "ghijkl", "mnop"], ["qrstuv", "w"]]
    assert flowed(["x" * 43]) == [["x" * 20], ["x" * 20], ["xxx"]]
    assert flowed(["ab", " " + "x" * 40]) == [["ab", " " + "x" * 17], ["x" * 20], ["xxx"]]


def test_newlines_are_shown_and_break_the_line():
    assert flowed(["a", "\n", " b", "\n\n", "c\nd"]) == [
        ["a", "↵"],
        [" b", "↵"],
        ["↵"],
        ["c↵"],
        ["d"],
    ]


def test_east_asian_text_wraps_anywhere():
    tokens = ["ab" * 8, "東京", "タワー", "大阪", "です"]
    assert flowed(tokens) == [["ab" * 8, "東京"], ["タワー", "大阪", "です"]]


def test_characters_are_not_parted_from_their_marks():
    lines = flowed(["e\u0301" * 12], 5)
    assert all(line[0][0] == "e" for line in lines)
    assert flowed(["\u0301" * 2000])


def test_the_space_before_a_word_has_no_background():
    ((first, second, third),) = flow(["a", " b", "  "], 10, len)
    assert (first.box, second.box, third.box) == ((0, 1), (2, 1), (3, 2))


def test_what_is_read_from_right_to_left_stands_so():
    (line,) = flow(["ab", " של", "ום", " cd"], 20, len)
    assert {piece.text: piece.x for piece in line if piece.text.strip()} == {
        "ab": 0,
        "של": 5,
        "ום": 3,
        " cd": 7,
    }


@given(st.lists(LABEL), st.integers(1, 30))
def test_flow_loses_nothing(tokens, width):
    lines = flow(tokens, width, len)
    pieces = [piece for line in lines for piece in line]
    assert [piece.token for piece in pieces] == sorted(piece.token for piece in pieces)
    for i, token in enumerate(tokens):
        shown = "".join(piece.text for piece in pieces if piece.token == i)
        assert shown.replace(" ", "") == printable(token).replace(" ", "")
    assert all(piece.x >= 0 and piece.box[1] >= 0 for piece in pieces)
    assert all(piece.x + piece.width <= width or piece.x == 0 for piece in pieces)


# Fonts


def test_widths_add_up():
    fonts = Fonts("Hello  world", 10)
    assert fonts.measure("  ") == pytest.approx(2 * fonts.measure(" "), abs=0.05)
    assert fonts.measure(" world") > fonts.measure("world") > fonts.measure("worl") > 0
    assert fonts.measure("") == 0


def test_characters_without_glyph_are_written_by_number():
    fonts = Fonts("a\U0010fffd␛", 10)
    assert fonts.shown("a\U0010fffd") == "a\\U0010FFFD"
    assert fonts.shown("␛") in ("␛", "\\x1B")


# Files


def test_pdf_holds_the_words_in_their_order():
    tokens = [
        "The",
        " capital",
        " of",
        " Fr",
        "ance",
        " is",
        " naïve",
        ":",
        "\n",
        "    x",
        " $a_b$",
    ]
    (text,) = text_of(page.draw(tokens, plain(tokens)))
    assert text.split() == ["The", "capital", "of", "France", "is", "naïve:↵", "x", "$a_b$"]


def test_long_texts_take_several_pages():
    tokens = [f" word{i}" for i in range(1200)]
    pdf = page.draw(tokens, plain(tokens))
    sheets = PdfReader(io.BytesIO(pdf)).pages
    assert len(sheets) > 1
    assert all(sheet.mediabox.height <= page.TALLEST for sheet in sheets)
    assert {round(float(sheet.mediabox.width)) for sheet in sheets} == {round(page.WIDTH)}
    assert " ".join(text_of(pdf)).split() == [token.strip() for token in tokens]


def test_fonts_are_embedded_as_truetype():
    pdf = page.draw(["a"], ["#ffffff"])
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf


def test_each_token_has_its_colour():
    tokens, colours = ["HHHH", " HHHH", " HHHH"], ["#ff0000", "#ffffff", "#0000ff"]
    svg = ElementTree.fromstring(page.draw(tokens, colours, format="svg"))
    fills = [re.search("fill: (#[0-9a-f]+)", p.get("style", "")) for p in svg.iter(f"{SVG}path")]
    assert [fill[1] for fill in fills if fill][1:] == colours  # the first is the page
    texts = [(t.text, "fill: #ffffff" in t.get("style", "")) for t in svg.iter(f"{SVG}text")]
    assert texts == [("HHHH", False), ("\xa0HHHH", False), ("\xa0HHHH", True)]


def test_png_shows_the_colours():
    png = page.draw(["    ", "x"], ["#ff0000", "#0000ff"], format="png")
    pixels = imread(io.BytesIO(png))[..., :3].reshape(-1, 3)
    for colour in ([1, 0, 0], [0, 0, 1], [1, 1, 1]):
        assert (np.abs(pixels - colour).sum(-1) < 0.01).sum() > 100


@pytest.mark.parametrize("format", page.FORMATS)
def test_the_legend_is_there_on_demand(format):
    legend = page.Legend(["#0000ff", "#ffffff", "#ff0000"], ["−1", "0", "1"])
    with_legend = page.draw(["a"], ["#ffffff"], format=format, legend=legend)
    assert len(with_legend) > len(page.draw(["a"], ["#ffffff"], format=format))
    if format == "pdf":
        assert text_of(with_legend)[0].split() == ["a", "−1", "0", "1"]


@pytest.mark.parametrize("format", page.FORMATS)
def test_no_tokens_make_an_empty_page(format):
    assert page.draw([], [], format=format)


@pytest.mark.parametrize("format", page.FORMATS)
def test_hostile_tokens_are_shown_as_they_are(format, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        data = page.draw(HOSTILE, plain(HOSTILE), format=format)
    assert not caplog.records
    shown = ["$a_b$", "\\frac{a}{b}", "</text><script>", "&amp;", "[31m", "\\uD800", "]]>"]
    if format == "pdf":
        assert all(text in text_of(data)[0] for text in shown)
    if format == "svg":
        texts = "".join(t.text or "" for t in ElementTree.fromstring(data).iter(f"{SVG}text"))
        assert all(text in texts for text in shown)


@pytest.mark.parametrize("format", page.FORMATS)
@settings(deadline=None, max_examples=20)
@given(tokens=st.lists(LABEL, max_size=8))
def test_any_text_can_be_drawn(format, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = page.draw(tokens, plain(tokens), format=format)
    if format == "svg":
        ElementTree.fromstring(data)


def test_same_input_same_bytes_in_another_process():
    code = (
        "import sys, hashlib; from lxt.views import page; "
        "[print(hashlib.sha256(page.draw(['Größe', ' 東京'], ['#ff0000', '#0000ff'], format=f))"
        ".hexdigest()) for f in page.FORMATS]"
    )

    def digests(seed):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    one = digests("1")
    assert one == digests("2")
    assert len(one.split()) == 3


def test_settings_of_the_user_neither_matter_nor_change():
    tokens = ["a", " $b_c$", "-d"]
    expected = [page.draw(tokens, plain(tokens), format=f) for f in page.FORMATS]
    odd = {
        "text.usetex": True,
        "font.size": 40,
        "font.family": ["serif"],
        "font.weight": "bold",
        "pdf.fonttype": 3,
        "pdf.compression": 0,
        "svg.fonttype": "path",
        "svg.hashsalt": "other",
        "text.hinting": "force_autohint",
        "savefig.bbox": "tight",
        "savefig.facecolor": "black",
        "figure.facecolor": "black",
        "figure.constrained_layout.use": True,
        "figure.dpi": 30,
        "path.sketch": (1, 100, 2),
        "lines.linewidth": 9,
    }
    with mpl.rc_context(odd):
        # Merely to read the backend's setting chooses one.
        names = sorted(set(mpl.rcParams) - {"backend"})
        before = [mpl.rcParams[name] for name in names]
        assert [page.draw(tokens, plain(tokens), format=f) for f in page.FORMATS] == expected
        assert [mpl.rcParams[name] for name in names] == before


def test_threads_draw_at_once():
    tokens = ["a", " b"]
    expected = page.draw(tokens, plain(tokens))
    drawn = []
    threads = [
        threading.Thread(target=lambda: drawn.append(page.draw(tokens, plain(tokens))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 4


def test_pyplot_is_not_imported():
    code = "import sys, lxt.views.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
