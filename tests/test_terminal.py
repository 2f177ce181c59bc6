"""Explanations of any shape in a terminal of any kind: in its width, inert, with visible signs."""

import io
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len
from rich.console import Console

from explained import batch_of_many, explain, explanations, many, single, traced
from lxt.views import blocks, terminal

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
