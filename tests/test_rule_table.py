"""The documentation's table of rules is that of the registry."""

from pathlib import Path

from lxt.rules.registry import REGISTRY, operation_name
from lxt.rules.table import BEGIN, END, as_markdown, update

PAGE = Path(__file__).parents[1] / "docs" / "rules.md"


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    """If it isn't: python -m lxt.rules.table docs/rules.md."""
    copy = tmp_path / "rules.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    update(copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_operation_is_in_it() -> None:
    table = as_markdown()
    for operation in REGISTRY:
        name = operation_name(operation).removesuffix(".__get__").rpartition(".")[2]
        assert f"`{name if name.endswith('__') else name.rstrip('_')}`" in table


def test_what_stands_around_it_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nwhat was here\n{END}\nafter\n", encoding="utf-8")
    update(page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "what was here" not in text
