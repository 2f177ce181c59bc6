"""The page when something is missing, ignored, merged, merely too large, printed or saved."""

import csv
import io
import json
import math
from typing import Any

import pytest
import torch

from explained import OTHER, TARGET, batch_of_many, explain, many, single, traced
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.views import colour, payload
from lxt.views.html import page_of
from lxt.views.summary import summarise

TOKENS = ["The", " capital", " of", " Fr", "ance", "."]
LABELS, CELL = (130, 84), 26  # of a map that has room
VALUES = [9.0, -2.0, 0.25, 1.0, 0.5, 0.001]


def role(page: Any, name: str) -> Any:
    return page.locator(f'[data-role="{name}"]')


def spans(page: Any, name: str = "tokens") -> Any:
    return role(page, name).locator("span")


def slide(page: Any, name: str, value: float) -> None:
    role(page, name).evaluate(
        "(control, value) => {control.value = value; control.dispatchEvent(new Event('input'))}",
        value,
    )


def reading(page: Any) -> list[str]:
    return role(page, "reading").locator("b").all_inner_texts()


def pixel(canvas: Any, row: int, column: int) -> str:
    """The colour in the middle of a cell of a map that fits."""
    middle = [LABELS[0] + (column + 0.5) * CELL, LABELS[1] + (row + 0.5) * CELL]
    channels = canvas.evaluate(
        "(from, [x, y]) => {"
        "const c = document.createElement('canvas'), density = devicePixelRatio;"
        "c.getContext('2d').drawImage(from, -x * density, -y * density);"
        "return Array.from(c.getContext('2d').getImageData(0, 0, 1, 1).data) }",
        middle,
    )
    return "#" + bytes(channels[:3]).hex()


def without_targets() -> Explanation:
    """Two rows of the same tokens, of which the second has no target."""
    relevance = batch_of_many().relevance.clone()
    relevance[1] = 0
    return batch_of_many(
        relevance=relevance,
        tokens=[["a", "b", "c"], ["a", "b", "c"]],
        mask=torch.ones(2, 3, dtype=torch.bool),
        target=[[TARGET, OTHER], []],
    )


def test_a_row_without_targets_shows_nothing_of_another(opened: Any) -> None:
    page = opened(without_targets().to_html())
    assert page.locator('[data-view="compare"]').is_hidden()
    role(page, "item").select_option("1")
    assert role(page, "headline").inner_text() == "No targets"
    for name in ("facts", "panel-text", "legend", "sums", "table", "copy", "tabs", "chips"):
        assert role(page, name).is_hidden()
    role(page, "item").select_option("0")
    assert role(page, "sums").is_visible()


def test_only_texts_of_the_same_tokens_are_side_by_side(opened: Any) -> None:
    entries = [(name, single(tokens=list("xyz"))) for name in ("c", "d")]
    page = opened(page_of([("a", single()), ("b", single()), *entries]))
    page.click('[data-view="compare"]')
    assert page.locator(".columns h2").all_inner_texts() == ["a", "b"]
    role(page, "item").select_option("2")
    assert page.locator(".columns h2").all_inner_texts() == ["c", "d"]


def test_a_token_that_is_ignored_keeps_its_relevance(opened: Any) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    page = opened(explain(TOKENS, VALUES).to_html(), permissions=permissions)
    role(page, "ignore-first").check()
    spans(page).nth(0).hover()
    assert reading(page) == ["0", "+9.00", "ignored", "ignored"]
    spans(page).nth(1).hover()
    share = f"{100 * 2 / sum(map(abs, VALUES[1:])):.1f} %"
    assert reading(page) == ["1", "-2.00", share, "1 of 5"]

    def copied(kind: str) -> str:
        page.click(f'[data-as="{kind}"]')
        role(page, "copied").get_by_text("copied 6 rows").wait_for()
        return page.evaluate("navigator.clipboard.readText()")

    content = json.loads(copied("json"))
    assert content["relevance"] == VALUES
    assert (content["unit"], content["first_token_ignored"]) == ("tokens", True)
    rows = list(csv.reader(io.StringIO(copied("csv"))))
    assert rows[1][2:] == ["9", "", ""]
    role(page, "unit").select_option("sentences")
    assert "ignored in sums of its unit" in role(page, "notes").inner_text()


def test_colours_of_a_map_are_those_its_legend_says(opened: Any) -> None:
    e = many()
    page = opened(e.to_html())
    page.click('[data-view="matrix"]')
    slide(page, "threshold", 40)
    slide(page, "full", 61)
    assert role(page, "notes").inner_text() == (
        "2 beyond the colours' end, at the 61st percentile of |relevance|, zeros left out; "
        "no colour below ±0.800"
    )
    assert role(page, "highest").inner_text() == "+1.000"
    page.evaluate("new Promise(requestAnimationFrame)")
    canvas = role(page, "matrix").locator("canvas")
    for row, values in enumerate(e.relevance.tolist()):
        for column, value in enumerate(values):
            level = 0 if abs(value) < 0.8 else round(max(-1.0, min(1.0, value)) * colour.LEVELS)
            assert pixel(canvas, row, column) == colour.LIGHT.shade(level).background


def test_nothing_relevant_is_said_to_be_so(opened: Any) -> None:
    zeros = explain(["a", "b"], [0.0, 0.0], value=0.0)
    page = opened(page_of([("one", zeros), ("two", zeros)]))
    slide(page, "threshold", 20)
    assert role(page, "notes").inner_text() == "no colour below ±0"
    page.click('[data-view="compare"]')
    assert page.locator(".columns .note").first.inner_text().endswith("colours full at ±0")
    assert "20 % of the largest" in role(page, "notes").inner_text()


@pytest.mark.parametrize("size", [1e308, 1e-300, 5e-324])
def test_shares_of_the_largest_and_smallest_numbers(opened: Any, size: float) -> None:
    e = explain(["a", " b", " c"], [size, -size, size], value=1.0)
    page = opened(e.to_html())
    spans(page).nth(0).hover()
    assert reading(page)[2] == "33.3 %"
    assert role(page, "total").inner_text() == summarise(e).total_number


def test_sums_are_not_those_of_rounded_numbers(opened: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(payload, "MOST_EXACT", 10)
    values = [1.0] + [1.4 / 32767] * 2000
    e = explain(["a"] * len(values), values, value=1.0)
    page = opened(e.to_html())
    assert role(page, "total").inner_text() == summarise(e).total_number == "1.085"
    assert "their sum is not" in role(page, "notes").inner_text()


def test_a_sum_beyond_all_numbers_is_shown(opened: Any) -> None:
    page = opened(explain(["a", "b"], [1e308, 1e308]).to_html())
    assert role(page, "total").inner_text() == "Infinity"


def test_a_far_token_is_clicked_and_the_page_stays(opened: Any) -> None:
    count = 2000
    e = single(
        relevance=torch.ones(20, count),
        tokens=[f" t{i}" for i in range(count)],
        token_ids=torch.arange(count),
        mask=torch.ones(count, dtype=torch.bool),
        target=[ExplainedTarget("logit", f'"t{i}"', 1.0, count - 21 + i, "x") for i in range(20)],
    )
    page = opened(e.to_html())
    token = spans(page).nth(count - 18)
    token.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    assert before > 500
    token.click()
    assert role(page, "target").input_value() == "2"
    assert page.evaluate("scrollY") == before
    chip = role(page, "chips").locator("button").nth(2).bounding_box()
    row = role(page, "chips").bounding_box()
    assert row["x"] - 1 <= chip["x"] <= row["x"] + row["width"] - chip["width"] + 1


def test_a_page_that_the_browser_saved_opens_again(opened: Any) -> None:
    page = opened(page_of([("a", single()), ("b", single())]))
    page.click('[data-view="compare"]')
    slide(page, "full", 60)
    role(page, "theme").select_option("dark")
    again = opened(page.content())
    assert role(again, "theme").input_value() == "dark"
    assert role(again, "full-shown").inner_text() == "100 %"
    again.click('[data-view="compare"]')
    assert again.locator(".columns h2").all_inner_texts() == ["a", "b"]


def test_endless_names_do_not_widen_the_page(opened: Any) -> None:
    e = explain(["x" * 5000, "y"], [1.0, 2.0], "Z" * 3000, provenance={"k" * 2000: "v" * 2000})
    html = page_of([("n" * 2000, e), ("o" * 1000, e)])
    page = opened(html, viewport={"width": 360, "height": 600})
    page.get_by_text("Provenance").click()
    for view in ("text", "compare"):
        page.click(f'[data-view="{view}"]')
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_all_of_a_map_is_printed_and_on_white(opened: Any) -> None:
    page = opened(traced().to_html(), color_scheme="dark")
    page.click('[data-view="layers"]')
    for _ in range(4):
        page.click('[data-zoom="1.25"]')
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    canvas = role(page, "layers").locator("canvas")
    assert pixel(canvas, 1, 2) == colour.LIGHT.positive
    assert math.isclose(canvas.bounding_box()["width"], LABELS[0] + 3 * CELL, abs_tol=1)
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_which_layer_is_shown_without_scripts_is_said(opened: Any) -> None:
    page = opened(traced().to_html(), java_script_enabled=False)
    heading = "At layer embed_tokens, the first of 2: Relevance for"
    assert page.locator("section h1").inner_text().startswith(heading)
