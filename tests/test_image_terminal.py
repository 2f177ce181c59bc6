"""Explanations of pictures in a terminal: sums at their place, in any width, with colour or not."""

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console

from lxt.views import colour, image_terminal
from lxt.views.image_summary import block_sizes
from lxt.views.image_terminal import coarse
from pictured import TARGET, pictured, stored


class Output(io.StringIO):
    encoding = "utf-8"


def printed(e, width=80, colours=None, encoding="utf-8"):
    file = Output()
    file.encoding = encoding
    console = Console(
        file=file,
        width=width,
        color_system=colours,
        force_terminal=bool(colours),
        legacy_windows=False,
        no_color=False,
    )
    console.print(e)
    return file.getvalue()


def framed(text):
    return [line.strip()[1:-1] for line in text.splitlines() if line.startswith("│")]


def test_marks_lie_where_relevance_does():
    relevance = torch.zeros(4, 4)
    relevance[0, 1], relevance[2, 3], relevance[3, 0] = 4.0, -4.0, 1.0
    text = printed(pictured(relevance, box=(0, 0, 48, 48)))
    lines = framed(text)
    assert lines == [
        *["            ████████████            " + " " * 12] * 6,
        *[" " * 48] * 6,
        *[" " * 36 + "≡" * 12] * 6,
        *["░" * 12 + " " * 36] * 6,
    ]
    assert "relevance of 4 × 4 pixels of the model, where they lie" in text
    assert "-4.000 ≡=- ░▒█ +4.000" in text


def test_colours_lie_two_in_a_character():
    relevance = torch.tensor([[1.0, 0.0, 1.0], [0.0, -1.0, -1.0]])
    e = pictured(relevance, pixels=(2, 3), box=(0, 0, 2, 3), image=(2, 3))
    console = Console(
        file=Output(), width=5, color_system="truecolor", force_terminal=True, legacy_windows=False
    )
    lines = console.render_lines(image_terminal.render(e), pad=False)
    (line,) = [line for line in lines if line and line[0].text == "│"]
    palette = colour.TERMINAL
    red, blue = (Color.parse(end) for end in (palette.positive, palette.negative))
    found = [(s.text, s.style.color, s.style.bgcolor, s.style.dim) for s in line[1:-1] if s.style]
    assert found == [("▀", red, None, None), ("▄", blue, None, None), ("▀", red, blue, None)]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 30), st.integers(1, 70)),
    st.tuples(st.floats(1, 300), st.floats(1, 300)),
)
def test_blocks_keep_the_sum_and_stay_within_their_room(grid, cell, room, box):
    relevance = torch.randn(grid, generator=torch.Generator().manual_seed(0)).double()
    pixels = grid[0] * cell[0], grid[1] * cell[1]
    e = pictured(relevance, image=(5, 5), pixels=pixels, box=(0, 0, *box))
    sums, repeated, note = coarse(e, *room)
    assert sums.sum().item() == pytest.approx(e.total, abs=1e-9)
    for n, times, most, cells in zip(sums.shape, repeated, room, grid, strict=True):
        assert times >= 1
        assert n * times <= most
        assert n <= cells
    if tuple(sums.shape) == grid:
        assert torch.allclose(sums, relevance)
        assert note.startswith("relevance of")
    elif all(cells % n == 0 for n, cells in zip(sums.shape, grid, strict=True)):
        size = tuple(p // n for p, n in zip(pixels, sums.shape, strict=True))
        assert torch.allclose(sums, e.patches(size), atol=1e-12)
        assert note.startswith(f"sums of relevance of {size[0]} × {size[1]} pixels")


@pytest.mark.parametrize("colours", [None, "standard", "256", "truecolor"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp437"])
@pytest.mark.parametrize("width", [1, 2, 3, 10, 33, 80, 300])
def test_any_width_encoding_and_colour(width, encoding, colours):
    target = replace(TARGET, name="\x1b[31mcat\u202e 猫" * 3)
    for e in (
        pictured(target=target),
        pictured(torch.ones(1, 1), image=(2, 90), box=(0, 0, 2, 90)),
    ):
        text = printed(e, width, colours, encoding)
        text.encode(encoding)
        assert "\u202e" not in text
        assert "\x1b[31mcat" not in text
        if not colours:
            assert max(map(cell_len, text.splitlines())) <= max(width, 2)


def test_numbers_and_places_are_those_of_the_explanation():
    text = printed(stored(), 100)
    assert "the 5 of 6 patches of 2 × 2 pixels of the model with the largest |relevance|" in text
    (line,) = [line for line in text.splitlines() if line.lstrip().startswith("0, 1 ")]
    (patch,) = stored().top(1)
    assert (patch.row, patch.column) == (0, 1)
    assert "2…4 × 0…2" in line
    assert "-2.000" in line
    assert f"{2 / stored().relevance.abs().sum().item():.1%}" in line


def test_nothing_relevant():
    text = printed(pictured(torch.zeros(16, 16)))
    assert "all relevance is 0" in text
    assert "largest |relevance|" not in text


def test_pixels_are_read_by_patches():
    def sizes(height, width, grid=None):
        relevance = torch.ones(grid or (height, width))
        box = (0.0, 0.0, 48.0, 60.0)
        return block_sizes(pictured(relevance, pixels=(height, width), box=box))

    assert sizes(224, 224)[0] == (16, 16)
    assert sizes(518, 518)[0] == (14, 14)
    assert sizes(224, 224, (14, 14)) == [(16, 16), (32, 32)]
    assert sizes(16, 16) == [(1, 1), (2, 2), (4, 4)]
    assert sizes(97, 97) == [(1, 1)]
    assert sizes(48, 96)[0] == (3, 3)
    assert sizes(1, 1) == [(1, 1)]


def test_print_shows_the_same_as_a_console(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    text = printed(stored(), 70)
    assert str(stored()).split() == text.split()
