"""Pages and fragments as they are written: complete, self-contained and inert, with or without
scripts. What a browser makes of them is in `browser/`.
"""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from explained import batch_of, explain, explanations, many
from lxt.tokens import printable
from lxt.views import colour, html, payload
from lxt.views.grouping import direction, sentence_starts, word_starts

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"><svg onload='x'>",
    "&lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31m\x1b]0;title\x07",
    "\x00\x7f\x9b31m",
    "\u202eevil\u2066",
    "\u2028\u2029",
    "\ud800",
]
LABEL = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=[]), max_size=12)
PARIS = explain(
    ["The", " capital", " of", " France", " is"], [0.3052, 4.1123, 0.0, 7.4331, -1.9024]
)


class Document(HTMLParser):
    """The elements of a page; the texts of each kind of them."""

    EMPTY = ("meta", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def of_class(self, name):
        return [attrs for _, attrs in self.elements if attrs.get("class") == name]


ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "main", "div", "section", "h1", "h2", "p"),
    *("span", "bdi", "b", "dl", "dt", "dd", "details", "summary", "table", "thead", "tbody", "tr"),
    *("th", "td", "script", "label", "select", "option", "input", "output", "button", "canvas"),
}


def shown(tokens, text):
    return explain(tokens, [1.0] * len(tokens), name=text, provenance={"model": text, text: text})


@settings(deadline=None)
@given(st.lists(LABEL, min_size=1, max_size=4), LABEL)
def test_any_label_is_inert(tokens, text):
    e = shown(tokens, text)
    expected = ["↵\n".join(printable(line) for line in token.split("\n")) for token in tokens]
    for document in (e.to_html(), html.fragment([(text, e)])):
        page = Document(document)
        assert page.open == []
        assert {tag for tag, _ in page.elements} <= ELEMENTS
        attributes = {name for _, attributes in page.elements for name in attributes}
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
        found = [shown for tag, shown in zip_texts(page) if tag == "token"]
        assert found == [without_space(text) for text in expected if text]
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", document)


def without_space(text):
    """The space before a word is none of its background."""
    return text[1:] if re.match(" [^ ]", text, re.DOTALL) else text


def zip_texts(page):
    """The texts of what carries a colour in the running text."""
    spans = [attributes for tag, attributes in page.elements if tag == "span"]
    for attributes, text in zip(spans, page.texts["span"], strict=True):
        coloured = "style" in attributes or re.fullmatch("[np][0-9]+", attributes.get("class", ""))
        yield ("token" if coloured and text else "other"), text


@settings(deadline=None)
@given(explanations())
def test_the_script_is_given_what_was_computed(explanation):
    document = explanation.to_html()
    assert document.count("</script>") == 2
    items = json.loads(Document(document).texts["script"][0])
    rows = explanation.inputs()
    assert len(items) == len(rows)
    for item, row in zip(items, rows, strict=True):
        kind = {"float32": "<f4", "float64": "<f8"}[item["encoding"]]
        values = np.frombuffer(base64.b64decode(item["base64"]), kind)
        assert values.tolist() == row.relevance.flatten().tolist()
        targets = row.target if row.is_many else [row.target]
        assert [target["value"] for target in item["targets"]] == [t.value for t in targets]
        assert item["layers"] == (row.layers and [printable(layer) for layer in row.layers])


def test_the_policy_names_the_style_and_the_script_of_the_page_alone():
    page = Document(PARIS.to_html())
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv"))

    def source(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (style,), (_, script) = page.texts["style"], page.texts["script"]
    assert policy == (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in attributes for _, attributes in page.elements)


def test_a_page_is_complete_and_asks_for_nothing():
    document = PARIS.to_html()
    assert document.startswith('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')
    assert document.endswith("</html>\n")
    assert "<title>Relevance for &#34; Paris&#34;</title>" in document
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=|innerHTML|eval\(", document)


def test_without_scripts_there_are_text_numbers_and_provenance():
    document = html.fragment([("", PARIS)])
    page = Document(document)
    words = [text for kind, text in zip_texts(page) if kind == "token"]
    assert words == ["The", "capital", "of", "France", "is"]
    assert page.texts["p"][1] == "    "
    titles = [attributes["title"] for _, attributes in page.elements if "title" in attributes]
    assert titles[4] == "position 4: relevance -1.90, 13.8 % of all |relevance|"
    assert "<b>9.95</b>" in document
    assert "<b>15.23</b>" in document
    assert "<span>-7.43</span>" in document
    assert "<span>+7.43</span>" in document
    assert "<dt>composite</dt><dd><bdi>attnlrp</bdi></dd>" in document
    strongest = colour.LIGHT.shade(colour.LEVELS)
    style = f"background-color:{strongest.background};color:{strongest.foreground}"
    styles = [a["style"] for tag, a in page.elements if tag == "span" and "title" in a]
    assert styles.index(style) == 3
    assert styles.count(style) == 1


def test_a_fragment_styles_nothing_but_itself():
    document = html.fragment([("", PARIS)])
    assert document.startswith('<div class="lxt-explanation">')
    assert not {"html", "head", "body", "h1"} & {tag for tag, _ in Document(document).elements}
    (style,) = re.findall(r"<style>(.*?)</style>", document, re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{[^}]*\}", style)
    assert selectors
    assert all(
        part.strip().startswith(".lxt-explanation")
        for text in selectors
        for part in text.split(",")
    )


def test_outputs_of_a_notebook_have_names_of_their_own():
    one, other = PARIS._repr_html_(), PARIS._repr_html_()
    names = [re.match(r'<div id="(lxt-[0-9a-f]{16})">', output) for output in (one, other)]
    assert all(names)
    assert names[0][1] != names[1][1]
    assert one.count("<script>") == one.count("</script>") == 1


def test_a_page_of_a_batch_has_a_section_for_each_row():
    document = batch_of(PARIS, PARIS).to_html()
    assert "<title>Relevance in a batch of 2</title>" in document
    assert ">Row 1: Relevance for" in document


def test_of_many_targets_and_long_texts_the_static_part_has_some(monkeypatch):
    monkeypatch.setattr(html, "MOST_TARGETS", 2)
    static = html.fragment([("a", many()), ("b", many())])
    assert static.count("<section>") == 4
    assert "… and 2 more" in static
    monkeypatch.setattr(html, "MOST_TOKENS", 3)
    static = html.fragment([("a", many()), ("b", many())])
    assert static.count("<section>") == 1
    assert "… and 5 more" in static
    monkeypatch.setattr(html, "MOST_IN_A_TABLE", 2)
    assert "<table>" in static
    assert "<table>" not in html.fragment([("a", many())])


def test_json_in_a_script_ends_nothing():
    text = payload.as_json(["</script>", "<!--", "&", "\u2028"])
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == ["</script>", "<!--", "&", "\u2028"]


@pytest.mark.parametrize(
    ("tokens", "words", "sentences"),
    [
        (["The", " Fr", "ance", ".", " It", " is"], [0, 1, 4, 5], [0, 4]),
        (["a", ".\n", "b", "\n\n", "c"], [0, 2, 4], [0, 2, 4]),
        (['He said "go', '!"', " And", " (then", ".)", " Off"], [0, 2, 3, 5], [0, 2, 5]),
        (["日本", "の", "首都", "。", "はい"], [0, 1, 2, 4], [0, 4]),
        (["日", "◌", "◌", "本"], [0, 3], [0]),
        (["", "a", "", "b"], [0], [0]),
        ([], [], []),
        ([" "], [0], [0]),
    ],
)
def test_tokens_make_words_and_sentences(tokens, words, sentences):
    assert word_starts(tokens) == words
    assert sentence_starts(tokens) == sentences


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["The"], "ltr"),
        (["1. ", "שלום"], "rtl"),
        (["(", "مرحبا", " x"], "rtl"),
        (["x", "مرحبا"], "ltr"),
        (["1", ""], "ltr"),
        ([], "ltr"),
    ],
)
def test_the_first_letter_tells_the_direction(tokens, expected):
    assert direction(tokens) == expected
    assert f'dir="{expected}"' in explain(tokens, [1.0] * len(tokens)).to_html()


@given(st.lists(LABEL, max_size=12))
def test_units_are_some_of_the_tokens_in_order(tokens):
    words, sentences = word_starts(tokens), sentence_starts(tokens)
    assert words[:1] == sentences[:1] == ([0] if tokens else [])
    assert words == sorted(set(words))
    assert set(sentences) <= set(words) <= set(range(len(tokens)))
