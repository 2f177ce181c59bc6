"""Maps of relevance: their labels, cells and bands."""

import itertools
import re

import numpy as np
import pytest
import torch

from drawn import SVG, explain_matrix, generated, named, pixels, svg_of, texts_at, texts_of
from explained import (
    many,
)
from lxt.views import canvas, colour
from lxt.views.fonts import Fonts
from lxt.views.heatmap import Table, banded_map, square_map


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
