"""The pages of an atlas in a browser: nothing in a text runs, links lead on, the table sorts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_injection import HOSTILE, TRACES

import lxt
from planted import PlantedForCausalLM, Words

pytest.importorskip("pyarrow")
from lxt.atlas.atlas import Atlas


class Hostile(Words):
    def convert_ids_to_tokens(self, token: int) -> str:
        return "▁" + HOSTILE[token]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("atlas")
    model = PlantedForCausalLM()
    model.config.name_or_path = "".join(HOSTILE[:13])
    atlas = Atlas.build(
        model, ["a b c d e f g h", "h g f e d c b a"], tokenizer=Hostile(),
        taps=lxt.Tap("layers.*.mlp.act"), folder=place / "atlas",
    )  # fmt: skip
    atlas.to_html(place / "html", most=6, model=model, tokenizer=Hostile())
    return place / "html"


def test_a_unit_is_inert(opened: Any, folder: Path) -> None:
    pages = sorted((folder / "units").iterdir())
    assert len(pages) == 6
    page = opened(pages[0].read_text())
    for summary in page.locator("summary").all():
        summary.click()
    found = page.evaluate(TRACES)
    assert found == {"hit": None, "scripts": 0, "odd": 0, "handlers": False}
    assert page.locator(".peak").first.is_visible()
    assert page.get_by_text("promotes").is_visible()


def test_the_index_is_inert_and_sorts(opened: Any, folder: Path) -> None:
    page = opened((folder / "index.html").read_text())
    found = page.evaluate(TRACES)
    assert found == {"hit": None, "scripts": 2, "odd": 0, "handlers": False}
    rows = page.locator("tbody tr")
    assert rows.count() == 6
    page.get_by_label("only those with a page").uncheck()
    assert rows.count() == 8
    assert rows.first.locator("td").first.text_content() == "layers.0.mlp.act[7]"
    page.get_by_role("button", name="unit").click()
    assert rows.first.locator("td").first.text_content() == "layers.0.mlp.act[0]"
    page.get_by_role("button", name="unit").click()
    assert rows.first.locator("td").first.text_content() == "layers.0.mlp.act[7]"
    page.get_by_role("button", name="largest activation").click()
    sizes = [float(row.locator("td").nth(1).text_content()) for row in rows.all()]
    assert sizes == sorted(sizes, reverse=True)
    page.get_by_label("find").fill("ACT[3]")
    assert rows.count() == 1
    assert page.locator("output").text_content() == "1 units"
    assert page.evaluate(TRACES) == found


def test_the_index_without_a_script(opened: Any, folder: Path) -> None:
    page = opened((folder / "index.html").read_text(), java_script_enabled=False)
    assert page.locator("main > ul a").count() == 6


def test_links_lead_to_units_and_back(chromium: Any, folder: Path) -> None:
    page = chromium.new_page()
    page.goto((folder / "index.html").as_uri())
    page.locator("tbody a").first.click()
    assert page.locator("h1").text_content() == "Unit layers.0.mlp.act[7]"
    page.get_by_text("All units").click()
    assert page.locator("tbody tr").count() == 6
    page.close()
