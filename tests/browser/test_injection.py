"""Nothing that a model or a file says runs: in the page, in a notebook, with scripts or without."""

from typing import Any

from explained import explain, traced
from lxt.views.html import page_of

HOSTILE = [
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    '"><svg onload="window.hit=1">',
    "'); window.hit = 1; ('",
    "<!--<script>",
    "]]><![CDATA[<script>window.hit=1</script>",
    "{{ 7 * 7 }}{% raw %}",
    "</style><style>* { display: none }</style>",
    "</title><base href='https://example.org/'>",
    "javascript:window.hit=1",
    "\u2028window.hit=1\u2029",
    "\x00\x1b[31m\x07\x9b",
    "\u202eevil\u2066",
    "\ud800",
    "__proto__",
]
TRACES = (
    "({hit: window.hit, scripts: document.querySelectorAll('script').length,"
    "odd: document.querySelectorAll('img, svg, base, iframe, object, link').length,"
    "handlers: [...document.querySelectorAll('*')].some("
    "e => e.getAttributeNames().some(n => n.startsWith('on')))})"
)


def hostile() -> Any:
    pairs = {text: text for text in HOSTILE}
    return explain(HOSTILE, [1.0] * len(HOSTILE), name="".join(HOSTILE), provenance=pairs)


def assert_inert(frame: Any) -> None:
    assert frame.evaluate(TRACES) == {"hit": None, "scripts": 2, "odd": 0, "handlers": False}


def test_texts_of_a_page_are_inert(opened: Any) -> None:
    page = opened(page_of([(text, hostile()) for text in HOSTILE[:3]]))
    for view in ("text", "compare"):
        page.click(f'[data-view="{view}"]')
        assert_inert(page)
    page.locator('[data-role="table"] summary').click()
    page.get_by_text("Provenance").click()
    shown = page.locator('[data-role="tokens"] span').all_text_contents()
    assert shown[0] == HOSTILE[0]
    assert shown[-3] == "\\u202Eevil\\u2066" or "\u202e" not in shown[-3]
    assert_inert(page)


def test_names_of_layers_are_inert(opened: Any) -> None:
    page = opened(traced(layers=HOSTILE[:2]).to_html())
    page.click('[data-view="layers"]')
    page.locator("canvas >> visible=true").focus()
    page.keyboard.press("ArrowRight")
    assert_inert(page)


def test_texts_are_inert_without_scripts_too(opened: Any) -> None:
    page = opened(hostile().to_html(), java_script_enabled=False)
    assert page.locator("section img, section svg").count() == 0
    assert page.locator("section").get_by_text("Sum of relevance").is_visible()


def test_the_policy_stops_a_script_that_got_in(chromium: Any, tmp_path: Any) -> None:
    """Even if a text were not escaped: the policy of the page names its own script alone."""
    html = explain(["a"], [1.0]).to_html()
    parts = html.partition("<main>")
    (tmp_path / "page.html").write_text(
        parts[0] + parts[1] + "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
        "<style>main { display: none }</style>" + parts[2]
    )
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("window.hit") is None
    assert page.locator("main").is_visible()
    page.close()


def cells(*explanations: Any) -> str:
    outputs = "".join(f"<div class='output'>{e._repr_html_()}</div>" for e in explanations)
    return f"<!DOCTYPE html><meta charset=utf-8>{outputs}"


def test_a_notebook_shows_several_apart(opened: Any) -> None:
    """And a style sheet of its own reaches into no frame."""
    style = "<style>* { color: red !important; visibility: visible }</style>"
    page = opened(cells(explain(["one", " two"], [1.0, -1.0]), hostile()) + style)
    page.wait_for_function("document.querySelectorAll('iframe').length === 2")
    frames = [frame for frame in page.frames if frame is not page.main_frame]
    for frame in frames:
        frame.locator('[data-role="tokens"] span').first.wait_for()
        assert_inert(frame)
        assert frame.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 33)"
    frames[0].locator('[data-role="tokens"] span').nth(1).click()
    assert "two" in frames[0].locator('[data-role="reading"]').inner_text()
    assert frames[1].locator('[data-role="reading"]').is_hidden()
    assert page.evaluate("window.hit") is None


def test_a_notebook_without_scripts_shows_the_text(opened: Any) -> None:
    page = opened(
        cells(explain(["one", " two"], [1.0, -1.0]), hostile()), java_script_enabled=False
    )
    assert page.locator(".lxt-explanation .tokens").first.inner_text() == "one two"
    assert page.get_by_text("Sum of relevance").count() == 2
    assert page.locator(".output img, .output svg").count() == 0
