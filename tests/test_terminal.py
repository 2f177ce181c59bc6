"""Explanations of any shape in a terminal of any kind: in its width, inert, with visible signs."""

import io
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len
from rich.console import Console

from explained import batch_of_many, explain, explanations, many, single, traced
from lxt.views import blocks, running, terminal
from lxt.views.summary import matrix_of_targets

SGR = re.compile(r"\x1b\[[0-9;]*m")


def rendered(explanation, width, *, coloured=False, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file,
        width=width,
        force_terminal=coloured,
        color_system="truecolor" if coloured else None,
        force_jupyter=False,
        legacy_windows=False,
    )
    console.print(terminal.render(explanation))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


@settings(deadline=None, max_examples=150)
@given(
    explanations(),
    st.integers(1, 130),
    st.booleans(),
    st.sampled_from(["utf-8", "cp1252", "ascii"]),
)
def test_any_explanation_stays_within_the_width_and_is_inert(e, width, coloured, encoding):
    shown = rendered(e, width, coloured=coloured, encoding=encoding)
    plain = SGR.sub("", shown) if coloured else shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", plain)
    assert not re.search(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069]", plain)
    assert all(cell_len(line) <= width for line in plain.split("\n"))


# What acts on a terminal, has no width or an odd one, or is long.
ODD = st.sampled_from(
    [
        *("\x1b[31m\x1b]0;title\x07", "\x00\x7f\x9b31m", "\u202eevil\u2066", "\t\r\n\n", "\ud800"),
        *(
            "[red]",
            "\u2028\x85",
            "\u0301",
            "\ufe0f",
            "❤\ufe0f",
            "👩\u200d🚀",
            "🏽",
            "🇩",
            "e" + "\u0301" * 99,
        ),
        *(
            "\u1161",
            "क्",
            "षि",
            "東京",
            "ﷺ",
            "\u200b" * 30,
            "",
            " ",
            "   ",
            "a" * 5000,
            " 東" * 2500,
        ),
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(ODD, min_size=1, max_size=6),
    ODD,
    st.sampled_from([1, 2, 7, 20, 33, 60, 100, 300]),
    st.booleans(),
    st.sampled_from(["utf-8", "cp1252", "cp437", "ascii"]),
)
def test_odd_texts_stay_within_the_width_and_are_inert(texts, name, width, coloured, encoding):
    def shown_as(relevance, **changes):
        return single(
            relevance=relevance,
            tokens=texts,
            token_ids=torch.arange(count),
            mask=torch.ones(count, dtype=torch.bool),
            provenance={"model": name, name: name},
            **changes,
        )

    count, values = len(texts), torch.linspace(-1, 2, 2 * len(texts)).view(2, -1)
    target = replace(single().target, name=name, prediction=name)
    for e in (
        shown_as(values[0], target=target),
        shown_as(values, target=[target, target]),
        shown_as(values, layers=[name, name]),
    ):
        shown = rendered(e, width, coloured=coloured, encoding=encoding)
        plain = SGR.sub("", shown) if coloured else shown
        assert not re.search(
            r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", plain
        )
        assert all(cell_len(line) <= width for line in plain.split("\n"))
        assert width < 20 or len(plain.split("\n")) < 400


def test_words_are_kept_whole_where_they_fit():
    tokens = ["The", " cap", "ital", " of", " France", ",", " un", "believ", "able"]
    for width in (12, 20, 31):
        lines = running.wrap(tokens, width)
        words = " ".join("".join(piece.text for piece in line) for line in lines).split()
        assert words == ["The", "capital", "of", "France,", "unbelievable"]
        assert all(sum(piece.cells for piece in line) <= width for line in lines)


def test_long_words_break_between_tokens_and_long_tokens_anywhere():
    lines = running.wrap(["un", "believ", "able", " " + "東" * 5], 9)
    assert ["".join(piece.text for piece in line) for line in lines] == [
        "unbeliev",
        "able 東東",
        "東東東",
    ]
    (broken,) = {"".join(p.text for line in running.wrap(["a" * 50], 9) for p in line)}
    assert broken == "a" * 50


def test_an_encoding_without_blocks_has_marks_of_its_own():
    shown = rendered(of_shape(3, 30), 80, encoding="ascii")
    assert "relevance of each token (>) for each target (v)" in shown
    assert re.search(r"^ +\d < \d+ _t\d+ ", shown, re.MULTILINE)
    assert re.search(r" %=- \+\*# \+\d", shown)


def test_a_console_without_colour_has_marks(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=True, legacy_windows=False)
    console.print(terminal.render(explain(["up", " down"], [1.0, -1.0])))
    assert "\nup down\n██ ≡≡≡≡\n" in SGR.sub("", file.getvalue())


def test_equal_cells_are_listed_in_order():
    e = of_shape(2, 3)
    e.relevance.copy_(torch.tensor([[1.0, 0.0, -2.0], [2.0, 1.0, 2.0]]))
    assert matrix_of_targets(e).strongest(4) == [(0, 2), (1, 0), (1, 2), (0, 0)]
    assert matrix_of_targets(e).strongest(9)[4:] == [(1, 1)]


def of_shape(rows, columns):
    generator = torch.Generator().manual_seed(0)
    return many(
        relevance=torch.randn(rows, columns, generator=generator),
        tokens=[f" t{i}" for i in range(columns)],
        token_ids=torch.arange(columns),
        mask=torch.ones(columns, dtype=torch.bool),
        target=[single().target] * rows,
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(1, 7))
def test_a_block_shows_its_largest_magnitude_with_its_sign(rows, columns, high, wide):
    values = torch.randn(rows, columns, dtype=torch.float64)
    found = blocks.strongest_of(values, high, wide)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            block = values[i * high : (i + 1) * high, j * wide : (j + 1) * wide].flatten()
            assert found[i, j] == block[block.abs().argmax()]


def test_a_small_matrix_has_numbers_and_sums():
    shown = rendered(many(), 80)
    assert re.search(r'2 " Paris" +│ \+0\.500  -2\.000  \+0\.250 │ +-1\.25 +15\.25', shown)
    assert "each cell" not in shown
    assert "one target with all of its tokens: e[0] … e[2]" in shown


def test_a_matrix_without_colour_shows_signs():
    shown = rendered(of_shape(3, 30), 80)
    rows = [line for line in shown.splitlines() if "│" in line][:3]
    for row, values in zip(rows, of_shape(3, 30).relevance, strict=True):
        cells = row.split("│")[1]
        signs = cells[:: len(cells) // 30]
        for sign, value in zip(signs, values.tolist(), strict=True):
            assert sign in ("░▒█ " if value > 0 else "-=≡ ")


@pytest.mark.parametrize(("columns", "width"), [(500, 80), (60, 30), (2000, 300)])
def test_a_wide_matrix_says_what_a_cell_stands_for(columns, width):
    shown = rendered(of_shape(4, columns), width)
    note = r"each cell is the largest \|relevance\| of \d+ tokens, with its sign"
    assert re.search(note, " ".join(shown.split()))


def test_many_rows_are_put_together():
    shown = rendered(of_shape(1000, 40), 100)
    assert "10 rows" in shown
    assert len(shown.splitlines()) < 150


def test_layers_are_shown_upwards_with_their_sums():
    shown = rendered(traced(), 80)
    above, below = (shown.index(f"{layer} │") for layer in ("layers.0", "embed_tokens"))
    assert above < below
    assert "layers          2: embed_tokens … layers.0" in shown


def test_rows_of_a_batch_say_how_to_write_a_target():
    shown = rendered(batch_of_many(), 80)
    assert "e[0][0] … e[0][1]" in shown
    assert "e[1][0]" in shown


def test_ten_thousand_tokens_take_few_lines():
    e = explain([f" t{i}" for i in range(10_000)], torch.randn(10_000).tolist())
    shown = rendered(e, 100)
    assert len(shown.splitlines()) < 150
    assert re.search(r"⋯ \d+ tokens with [\d.]+% of all", shown)


def test_in_colour_negative_tokens_are_underlined():
    shown = rendered(explain(["up", " down"], [1.0, -1.0]), 60, coloured=True)
    for word, underlined in (("up", False), (" down", True)):
        styles = re.findall(rf"\x1b\[([0-9;]*)m{word}\x1b", shown)
        assert styles
        assert ("4" in styles[0].split(";")) is underlined
