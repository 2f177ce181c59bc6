"""Pictures as files: formats, options, sizes, any explanation, fonts, processes and threads."""

import io
import os
import re
import subprocess
import sys
import threading
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pypdf import PdfReader

from drawn import HOSTILE, SVG, explain_matrix, named, pages, svg_of, texts_of
from explained import (
    batch,
    explain,
    explanations,
    many,
    single,
    traced,
)
from lxt.errors import InvalidInput, UnwritableFile
from lxt.explanation import Explanation
from lxt.views import canvas, figures

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
        "import hashlib, test_figure_files; "
        "[print(hashlib.sha256(data).hexdigest()) for data in test_figure_files.drawn()]"
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
