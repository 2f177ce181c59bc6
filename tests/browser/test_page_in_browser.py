"""The page in a real browser: what it shows is what was computed, in every view and theme."""

import csv
import io
import json
from importlib import resources
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch

from explained import TARGET, batch, explain, many, single, traced
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.views import colour, payload
from lxt.views.grouping import sentence_starts, word_starts
from lxt.views.html import page_of
from lxt.views.scale import scale_of
from lxt.views.summary import number_format, summarise

TOKENS = ["The", " capital", " of", " Fr", "ance", ".", " It", " is", " Par", "is", ".\n", "Yes"]
VALUES = [9.0, -2.0, 0.25, 1.0, 0.5, 0.001, -0.5, 0.0, 2.5, 1.25, -0.125, 0.3]
SENTENCES = explain(TOKENS, VALUES)
READING = '[data-role="reading"]'


def of_each_next_token(count: int = 6) -> Explanation:
    relevance = torch.randn(count, count, generator=torch.Generator().manual_seed(0)).tril()
    targets = [ExplainedTarget("logit", f'"t{i + 1}"', 2.0 + i, i, "x") for i in range(count)]
    return single(
        relevance=relevance,
        tokens=[f" t{i}" for i in range(count)],
        token_ids=torch.arange(count),
        mask=torch.ones(count, dtype=torch.bool),
        target=targets,
    )


def role(page: Any, name: str) -> Any:
    return page.locator(f'[data-role="{name}"]')


def spans(page: Any, name: str = "tokens") -> Any:
    return role(page, name).locator("span")


def reading(page: Any) -> dict[str, str]:
    """What is said of the unit in focus."""
    fields = dict(
        text.rsplit(" ", 1) if not text.startswith("rank") else ("rank", text[5:])
        for text in page.locator(f"{READING} span").all_inner_texts()
    )
    return {"token": page.locator(f"{READING} bdi").inner_text(), **fields}


def slide(page: Any, name: str, value: float) -> None:
    role(page, name).evaluate(
        "(control, value) => {control.value = value; control.dispatchEvent(new Event('input'))}",
        value,
    )


def classes(page: Any, name: str = "tokens") -> list[str]:
    return spans(page, name).evaluate_all("all => all.map(span => span.className)")


def class_of(value: float, scale: float) -> str:
    level = colour.level_of(max(-scale, min(scale, value)), scale)
    return f"{'p' if level > 0 else 'n'}{abs(level)}"


@pytest.mark.parametrize("magnitude", [1e-12, 3e-5, 0.02, 1.0, 300.0, 1e7])
def test_numbers_are_those_of_the_other_views(opened: Any, magnitude: float) -> None:
    shown = explain(TOKENS, [magnitude * value for value in VALUES], value=magnitude * 3.25)
    page, summary = opened(shown.to_html()), summarise(shown)
    assert role(page, "total").inner_text() == summary.total_number
    assert role(page, "value").inner_text() == summary.value_number
    assert role(page, "highest").inner_text() == f"+{summary.scale_number}"
    assert role(page, "facts").inner_text().split("\n") == [
        text for fact in summary.facts.items() for text in fact
    ]
    sizes = [abs(token.relevance) for token in summary.tokens]
    page.locator('[data-role="table"] summary').click()
    rows = page.locator('[data-role="table"] tbody tr').all_inner_texts()
    for token, row in zip(summary.tokens, rows, strict=True):
        cells = [cell.strip("\n") for cell in row.split("\t")]
        assert cells == [
            str(token.position),
            token.alone.removesuffix("\n"),
            token.number,
            f"{100 * token.share:.1f} %",
            str(1 + sum(size > abs(token.relevance) for size in sizes)),
        ]
    assert classes(page) == [class_of(t.relevance, summary.scale) for t in summary.tokens]


def test_numbers_are_written_as_in_python(opened: Any) -> None:
    source = resources.files("lxt.views").joinpath("browser", "data.js").read_text()
    random = Random(0)
    pairs = [(0.0, 0.0), (1.0, -0.0), (1.0, 0.5), (2.0, -0.125), (5e5, 0.5), (5e5, 2.5)]
    for _ in range(3000):
        largest = 10 ** random.uniform(-14, 14)
        pairs.append((largest, largest * random.choice([1, -1]) * random.random() ** 4))
        pairs.append((9.0, random.randint(-72_000, 72_000) / 8000))
    script = f"pairs => {{ {source}; return pairs.map(([l, v]) => numberFormat(l)(v)); }}"
    written = opened("<!DOCTYPE html>").evaluate(script, pairs)
    assert written == [number_format(largest)(value) for largest, value in pairs]


def test_each_token_is_read_by_pointer_and_by_key(opened: Any) -> None:
    page, summary = opened(SENTENCES.to_html()), summarise(SENTENCES)
    assert role(page, "reading").is_hidden()
    spans(page).nth(3).hover()
    assert reading(page)["relevance"] == summary.tokens[3].number
    spans(page).nth(1).click()
    for key, i in (
        ("ArrowRight", 2),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("End", 11),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        token = summary.tokens[i]
        read = reading(page)
        assert (read["token"], read["position"]) == (token.alone, str(i))
        assert read["relevance"] == token.number
        assert spans(page).nth(i).evaluate("span => document.activeElement === span")
    assert reading(page)["rank"] == "1 of 12"
    in_order = spans(page).evaluate_all("all => all.filter(span => span.tabIndex === 0).length")
    assert in_order == 1


def test_full_colour_and_threshold_slide(opened: Any) -> None:
    page = opened(SENTENCES.to_html())
    slide(page, "full", 75)
    size = scale_of(torch.tensor(VALUES, dtype=torch.float64), 75).end
    assert role(page, "highest").inner_text() == f"+{size:.2f}"
    assert classes(page) == [class_of(value, size) for value in VALUES]
    assert "2 beyond the colours' end, at the 75th percentile" in role(page, "notes").inner_text()
    slide(page, "full", 100)
    slide(page, "threshold", 20)
    below = [i for i, name in enumerate(classes(page)) if name == "below"]
    assert below == [i for i, value in enumerate(VALUES) if abs(value) < 0.2 * 9]


def test_the_first_token_is_ignored_when_asked(opened: Any) -> None:
    page = opened(SENTENCES.to_html())
    box = role(page, "ignore-first")
    assert not box.is_checked()
    box.check()
    assert classes(page)[0] == "set-aside"
    assert classes(page)[1:] == [class_of(value, 2.5) for value in VALUES[1:]]
    assert role(page, "total").inner_text() == summarise(SENTENCES).total_number
    assert "first token is ignored" in role(page, "notes").inner_text()
    box.uncheck()
    assert classes(page) == [class_of(value, 9) for value in VALUES]


@pytest.mark.parametrize(
    ("unit", "starts"), [("words", word_starts), ("sentences", sentence_starts)]
)
def test_tokens_are_put_together_to_sums(opened: Any, unit: str, starts: Any) -> None:
    page = opened(SENTENCES.to_html())
    role(page, "unit").select_option(unit)
    bounds = [*starts(TOKENS), len(TOKENS)]
    sums = [sum(VALUES[a:b]) for a, b in pairwise(bounds)]
    texts = ["".join(TOKENS[a:b]) for a, b in pairwise(bounds)]
    shown = spans(page).all_text_contents()
    assert [text.replace("↵", "") for text in shown] == [text.removeprefix(" ") for text in texts]
    assert role(page, "tokens").text_content().replace("↵", "") == "".join(TOKENS)
    largest = max(map(abs, sums))
    assert classes(page) == [class_of(value, largest) for value in sums]
    spans(page).nth(0).hover()
    number = number_format(max(largest, abs(sum(sums)), SENTENCES.target.value))
    assert reading(page)["relevance"] == number(sums[0])


def test_a_token_shows_what_it_came_from(opened: Any) -> None:
    e = of_each_next_token()
    page = opened(e.to_html())
    for token in (1, 3, 5):
        spans(page).nth(token).click()
        target = e[token - 1]
        assert (
            role(page, "facts").inner_text().split("\n")[1] == summarise(target).facts["explained"]
        )
        scale = target.relevance.abs().max().item()
        found = [name.split()[0] for name in classes(page)]
        assert found == [class_of(value, scale) for value in target.relevance.tolist()]
        assert "explained" in classes(page)[token].split()
    page.keyboard.press("]")
    assert role(page, "target").input_value() == "5"
    page.keyboard.press("[")
    assert role(page, "target").input_value() == "4"
    role(page, "chips").locator("button").nth(2).click()
    assert role(page, "target").input_value() == "2"


@pytest.mark.parametrize(("make", "view"), [(of_each_next_token, "matrix"), (traced, "layers")])
def test_a_map_is_read_by_keys_and_chooses_its_row(opened: Any, make: Any, view: str) -> None:
    e = make()
    page = opened(e.to_html())
    page.click(f'[data-view="{view}"]')
    canvas = role(page, view).locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert reading(page)["relevance"] == summarise(e[1]).tokens[1].number
    names = e.layers or [target.name for target in e.target]
    assert page.locator(f"{READING} span b").first.inner_text() == names[1]
    page.keyboard.press("Enter")
    chosen = "layer" if view == "layers" else "target"
    assert role(page, chosen).input_value() == "1"
    for key in "++-0":
        page.keyboard.press(key)
    painted = canvas.evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const seen = new Set(); for (let i = 0; i < d.length; i += 4)"
        "seen.add([d[i], d[i + 1], d[i + 2], d[i + 3]].join()); return seen.size }"
    )
    assert painted > 4


def test_a_slider_goes_through_the_layers(opened: Any) -> None:
    e = traced()
    page = opened(e.to_html())
    for layer in (1, 0):
        slide(page, "layer", layer)
        assert role(page, "layer-name").inner_text() == e.layers[layer]
        scale = e.relevance[layer].abs().max().item()
        assert classes(page) == [class_of(v, scale) for v in e.relevance[layer].tolist()]


def test_explanations_are_compared(opened: Any) -> None:
    other = single(relevance=torch.tensor([1.0, -1.0, 0.5]))
    third = single(relevance=torch.tensor([0.0, 4.0, 0.5]))
    page = opened(page_of([("one", single()), ("two", other), ("three", third)]))
    page.click('[data-view="compare"]')
    texts = page.locator(".columns .tokens")
    found = [
        texts.nth(i).locator("span").evaluate_all("all => all.map(span => span.className)")
        for i in range(3)
    ]
    each = [e.relevance.tolist() for e in (single(), other, third)]
    assert found == [[class_of(value, 4.0) for value in values] for values in each]
    role(page, "shared").uncheck()
    own = texts.nth(1).locator("span").evaluate_all("all => all.map(span => span.className)")
    assert own == [class_of(value, 1.0) for value in each[1]]
    role(page, "minuend").select_option("2")
    difference = [a - b for a, b in zip(each[2], each[1], strict=True)]
    assert classes(page, "difference") == [class_of(value, 5.0) for value in difference]


def test_rows_and_other_texts_are_chosen_from_a_list(opened: Any) -> None:
    page = opened(batch().to_html())
    assert page.locator('[data-view="compare"]').is_hidden()
    role(page, "item").select_option("1")
    assert role(page, "tokens").text_content() == "In Rome"
    assert role(page, "headline").inner_text() == 'Relevance for " Paris" − " London"'


def test_what_is_shown_is_copied(opened: Any) -> None:
    tokens = ['say "a, b"', "=1+1", "-x", " y\n"]
    shown = explain(tokens, [0.1, -2.5, 1e-9, 3.0])
    page = opened(shown.to_html(), permissions=["clipboard-read", "clipboard-write"])

    def copied(kind: str) -> str:
        page.click(f'[data-as="{kind}"]')
        role(page, "copied").get_by_text("copied 4 rows").wait_for()
        return page.evaluate("navigator.clipboard.readText()")

    content = json.loads(copied("json"))
    assert content["relevance"] == shown.relevance.tolist()
    assert content["positions"] == [0, 1, 2, 3]
    assert content["target"]["value"] == shown.target.value
    rows = list(csv.reader(io.StringIO(copied("csv"), newline="")))
    assert [row[1] for row in rows[1:]] == ['say "a, b"', "'=1+1", "'-x", " y↵\n"]
    assert [float(row[2]) for row in rows[1:]] == shown.relevance.tolist()
    lines = copied("text").splitlines()
    assert lines[0] == "position\trelevance\ttoken"
    assert lines[2] == "1\t-2.50\t=1+1"


@pytest.mark.parametrize("width", [1280, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_narrow(opened: Any, width: int, scheme: Any) -> None:
    e = of_each_next_token()
    size = {"width": width, "height": 600}
    page = opened(e.to_html(), color_scheme=scheme, viewport=size)
    palette = {"light": colour.LIGHT, "dark": colour.DARK}
    body = "getComputedStyle(document.body).backgroundColor"

    def rgb(hexadecimal: str) -> str:
        return f"rgb({', '.join(str(byte) for byte in bytes.fromhex(hexadecimal[1:]))})"

    assert page.evaluate(body) == rgb(palette[scheme].neutral)
    for view in ("text", "matrix"):
        page.click(f'[data-view="{view}"]')
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    other = {"light": "dark", "dark": "light"}[scheme]
    role(page, "theme").select_option(other)
    assert page.evaluate(body) == rgb(palette[other].neutral)
    page.emulate_media(media="print")
    assert page.evaluate(body) == rgb("#ffffff")
    assert page.locator(".controls").is_hidden()


def test_without_scripts_it_can_still_be_read(opened: Any) -> None:
    page = opened(SENTENCES.to_html(), java_script_enabled=False)
    text = page.locator('[data-role="static"] .tokens').inner_text()
    assert "The capital of France. It is Paris.↵\nYes" in text
    assert page.locator("section").get_by_text("Sum of relevance").is_visible()
    assert page.locator(".controls").is_hidden()


def test_more_numbers_than_are_given_exactly(opened: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(payload, "MOST_EXACT", 10)
    e = of_each_next_token()
    page = opened(e.to_html())
    assert "rounded to 16 bits" in role(page, "notes").inner_text()
    for i, value in enumerate(e.relevance[5].tolist()):
        spans(page).nth(i).hover()
        assert float(reading(page)["relevance"]) == pytest.approx(value, abs=1e-3)


def test_nothing_to_show(opened: Any) -> None:
    empty = explain([], [])
    page = opened(empty.to_html())
    assert role(page, "total").inner_text() == summarise(empty).total_number
    opened(
        batch(
            relevance=torch.zeros(0, 3),
            tokens=[],
            token_ids=torch.zeros(0, 3, dtype=torch.int64),
            mask=torch.zeros(0, 3, dtype=torch.bool),
            target=[],
        ).to_html()
    )


def test_ten_thousand_tokens(opened: Any) -> None:
    count = 10_000
    generator = torch.Generator().manual_seed(0)
    relevance = torch.randn(count, generator=generator) ** 3
    tokens = [f" word{i % 97}" if i % 23 else ".\n" for i in range(count)]
    e = explain(tokens, relevance.tolist())
    html = e.to_html()
    assert len(html.encode()) < 5e6
    page = opened(html)
    assert spans(page).count() == count
    page.keyboard.press("End")
    spans(page).nth(count - 1).click()
    assert reading(page)["position"] == str(count - 1)
    many_numbers = summarise(e).tokens[count - 1].number
    assert reading(page)["relevance"] == many_numbers


def test_a_target_is_said_where_there_are_several(opened: Any) -> None:
    page = opened(many().to_html())
    assert role(page, "target").locator("option").count() == 3
    assert TARGET.name in role(page, "headline").inner_text()
