"""Relevance over a picture, in a real browser."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lxt.views import payload
from lxt.views.image_summary import place
from lxt.views.summary import number_format
from pictured import TARGET, pictured

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def shown(page):
    figures = {name: page.locator(f"figure.{name}") for name in ("overlay", "heatmap", "picture")}
    return [name for name, figure in figures.items() if figure.is_visible()]


def role(page, name):
    return page.locator(f'[data-role="{name}"]')


def read(page):
    """What is said of the patch that is read."""
    spans = role(page, "reading").locator("span").all_inner_texts()
    return {text.split(" ", 1)[0]: text.split(" ", 1)[1] for text in spans}


def point_at(page, e, y, x, layer="overlay"):
    """Move the pointer to a point of the picture, in its pixels."""
    stage = page.locator(f"figure.{layer} .stage")
    stage.scroll_into_view_if_needed()
    area = stage.bounding_box()
    height, width = e.geometry.image
    page.mouse.move(area["x"] + x / width * area["width"], area["y"] + y / height * area["height"])


def hover(page, e, row, column, layer="overlay"):
    (top, left, bottom, right) = box_of(e, row, column)
    point_at(page, e, (top + bottom) / 2, (left + right) / 2, layer)


def box_of(e, row, column):
    top, left, bottom, right = e.geometry.box
    rows, columns = e.relevance.shape
    high, wide = (bottom - top) / rows, (right - left) / columns
    return (
        top + row * high,
        left + column * wide,
        top + (row + 1) * high,
        left + (column + 1) * wide,
    )


def expected(e, row, column):
    """What is to be said of a patch, by the JSON of the explanation."""
    values = torch.tensor(json.loads(e.to_json())["relevance"], dtype=torch.float64)
    value, sizes = values[row, column].item(), values.abs()
    return {
        "row": str(row),
        "column": str(column),
        "relevance": number_format(sizes.max().item())(value),
        "share": f"{100 * abs(value) / (sizes.sum().item() or 1):.1f} %",
        "rank": f"{int((sizes > abs(value)).sum()) + 1} of {values.numel()}",
        "pixels": place(box_of(e, row, column)),
    }


@pytest.mark.parametrize("magnitude", [1e-9, 0.02, 1.0, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_patch_is_read_as_the_json_has_it(opened, magnitude, dtype):
    generator = torch.Generator().manual_seed(0)
    relevance = (torch.randn(4, 6, generator=generator) * magnitude).to(dtype)
    e = pictured(relevance, image=(48, 60), pixels=(8, 12), box=(-2.5, 4.25, 48, 70))
    page = opened(e.to_html(smooth=1, robust=True))
    assert role(page, "reading").is_hidden()
    for layer in ("overlay", "heatmap", "picture"):
        page.get_by_label(layer, exact=True).check()
        for row, column in ((0, 0), (3, 1), (2, 4), (1, 3)):
            hover(page, e, row, column, layer)
            assert read(page) == expected(e, row, column)
            frame = page.locator(f"figure.{layer} .cell").bounding_box()
            area = page.locator(f"figure.{layer} .stage").bounding_box()
            top, left, bottom, right = box_of(e, row, column)
            scale = area["width"] / 60
            assert frame["x"] - area["x"] == pytest.approx(left * scale, abs=0.1)
            assert frame["y"] - area["y"] == pytest.approx(top * scale, abs=0.1)
            assert frame["width"] == pytest.approx((right - left) * scale, abs=0.1)
            assert frame["height"] == pytest.approx((bottom - top) * scale, abs=0.1)


def test_keys_go_from_patch_to_patch_and_no_further(opened):
    e = pictured(torch.randn(3, 4), pixels=(3, 4), box=(0, 0, 48, 60))
    page = opened(e.to_html())
    page.locator("figure.overlay .stage").focus()
    scrolled = page.evaluate("scrollY")
    for pressed, place_ in (
        ("ArrowDown", (0, 0)),
        ("ArrowUp", (0, 0)),
        ("ArrowLeft", (0, 0)),
        ("ArrowRight", (0, 1)),
        ("ArrowDown", (1, 1)),
        ("End", (1, 3)),
        ("ArrowRight", (1, 3)),
        ("ArrowDown", (2, 3)),
        ("ArrowDown", (2, 3)),
        ("Home", (2, 0)),
        ("ArrowUp", (1, 0)),
    ):
        page.keyboard.press(pressed)
        assert read(page) == expected(e, *place_)
    assert page.evaluate("scrollY") == scrolled


def test_what_the_model_did_not_see_is_not_read(opened):
    e = pictured()
    page = opened(e.to_html())
    point_at(page, e, 20, 3)
    assert role(page, "reading").is_hidden()
    point_at(page, e, 20, 57)
    assert role(page, "reading").is_hidden()
    point_at(page, e, 20, 6.2)
    assert read(page)["column"] == "0"


def test_pixels_are_read_by_patches_that_can_be_chosen(opened):
    relevance = torch.randn(224, 224, generator=torch.Generator().manual_seed(0))
    e = pictured(relevance, pixels=(224, 224), image=(100, 100), box=(0, 0, 100, 100))
    page = opened(e.to_html())
    options = role(page, "size").locator("option").all_inner_texts()
    assert options[0] == "patches of 16 × 16 pixels of the model"
    assert "pixels of the model" in options
    hover(page, e, 100, 150)
    assert read(page) == expected(e.by_patches(16), 6, 9)
    role(page, "size").select_option(label="patches of 7 × 7 pixels of the model")
    # The middle of what was read stays under the same point.
    assert read(page) == expected(e.by_patches(7), 104 // 7, 152 // 7)
    role(page, "size").select_option(label="pixels of the model")
    hover(page, e, 100, 150)
    assert read(page) == expected(e, 100, 150)


def test_more_numbers_than_are_given_exactly(opened, monkeypatch):
    e = pictured(torch.randn(6, 6), pixels=(6, 6), box=(0, 0, 48, 60))
    assert role(opened(e.to_html()), "rounded").is_hidden()
    monkeypatch.setattr(payload, "MOST_EXACT", 30)
    page = opened(e.to_html())
    assert role(page, "rounded").is_visible()
    for row, column in ((0, 0), (5, 2), (3, 3)):
        hover(page, e, row, column)
        value = e.relevance[row, column].item()
        assert float(read(page)["relevance"]) == pytest.approx(value, abs=1e-3)


def test_no_relevance_at_all(opened):
    e = pictured(torch.zeros(2, 2))
    page = opened(e.to_html())
    hover(page, e, 1, 0)
    assert read(page) == expected(e, 1, 0)
    assert read(page)["share"] == "0.0 %"


def test_the_picture_shows_through_as_far_as_asked_for(opened):
    page = opened(pictured(torch.ones(16, 16)).to_html())

    def colours():
        shot = page.locator("figure.overlay .stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    before = colours()
    page.locator('[data-role="fading"]').evaluate(
        "control => { control.value = 100; control.dispatchEvent(new Event('input')) }"
    )
    after = colours()
    page.get_by_label("picture", exact=True).check()
    shot = page.locator("figure.picture .stage").screenshot()
    alone = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    assert np.abs(before - alone).mean() > 20
    assert np.abs(after - alone).mean() < 2


def test_without_scripts_it_is_pictures_words_and_numbers(opened):
    page = opened(pictured().to_html(patch=4), java_script_enabled=False)
    assert shown(page) == ["overlay"]
    page.get_by_label("heatmap", exact=True).check()
    assert shown(page) == ["heatmap"]
    assert page.locator("table").is_visible()
    for name in ("controls", "of-fading", "reading"):
        assert role(page, name).is_hidden()


def test_one_of_three_views_is_chosen_by_mouse_or_keyboard(opened):
    page = opened(pictured().to_html(patch=4))
    assert page.title() == "Relevance for tabby cat"
    assert shown(page) == ["overlay"]
    for name in ("overlay", "heatmap", "picture"):
        page.get_by_label(name, exact=True).check()
        assert shown(page) == [name]
        width = page.locator(f"figure.{name} img").first.evaluate("image => image.naturalWidth")
        assert width == 480
    page.keyboard.press("ArrowUp")
    assert shown(page) == ["heatmap"]
    bar = page.locator(".heatmap .bar div").evaluate("bar => getComputedStyle(bar).background")
    assert "linear-gradient" in bar


def test_names_are_inert(opened):
    e = pictured(target=replace(TARGET, name=HOSTILE), provenance={HOSTILE: HOSTILE})
    page = opened(e.to_html())
    assert page.title() == f"Relevance for {HOSTILE}"
    assert page.locator("h1").inner_text() == f"Relevance for {HOSTILE}"
    assert page.locator("script").count() == 2
    assert page.locator("img:not(.above)").count() == 3
    hover(page, e, 1, 1)
    assert read(page)["row"] == "1"


def test_a_notebooks_part_is_a_picture(opened):
    page = opened("<!DOCTYPE html><title>x</title>" + pictured()._repr_html_())
    assert page.locator("img").evaluate("image => image.naturalWidth") > 500


@pytest.mark.parametrize("width", [1280, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_narrow(opened, width, scheme):
    e = pictured(torch.randn(224, 224), pixels=(224, 224))
    page = opened(e.to_html(), color_scheme=scheme, viewport={"width": width, "height": 640})
    body = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert body == {"dark": "rgb(27, 29, 33)", "light": "rgb(255, 255, 255)"}[scheme]
    hover(page, e, 100, 100)
    assert role(page, "reading").bounding_box()["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure.overlay img").first.bounding_box()["width"] <= width
    page.emulate_media(media="print")
    assert role(page, "reading").is_hidden()
    assert role(page, "controls").is_hidden()
