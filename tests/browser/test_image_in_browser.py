"""Relevance over a picture, in a real browser."""

from dataclasses import replace

from pictured import TARGET, pictured

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


def shown(page):
    figures = {name: page.locator(f"figure.{name}") for name in ("overlay", "heatmap", "picture")}
    return [name for name, figure in figures.items() if figure.is_visible()]


def test_one_of_three_views_is_chosen_by_mouse_or_keyboard(opened):
    page = opened(pictured().to_html(patch=4))
    assert page.title() == "Relevance for tabby cat"
    assert shown(page) == ["overlay"]
    for name in ("overlay", "heatmap", "picture"):
        page.get_by_label(name, exact=True).check()
        assert shown(page) == [name]
        width = page.locator(f"figure.{name} img").evaluate("image => image.naturalWidth")
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
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == 3


def test_a_notebooks_part_is_a_picture(opened):
    page = opened("<!DOCTYPE html><title>x</title>" + pictured()._repr_html_())
    assert page.locator("img").evaluate("image => image.naturalWidth") > 500


def test_dark_and_narrow(opened):
    page = opened(pictured().to_html(), color_scheme="dark", viewport={"width": 360, "height": 640})
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(27, 29, 33)"
    assert page.locator("figure.overlay img").bounding_box()["width"] <= 360
    assert page.evaluate("document.querySelector('figure').scrollWidth") <= 360
