"""The sweep outlives what model types do to it, and says so in its table."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lxt.coverage import Size, checks
from lxt.coverage.__main__ import app
from lxt.coverage.checks import Row
from lxt.coverage.sweep import Limits, sweep
from lxt.coverage.table import as_document, as_json, as_markdown


def misbehaving(name: str, size: Size) -> Row:
    """A type that crashes, hangs, eats memory, or does as it should."""
    if name == "crash":
        os._exit(3)
    if name == "hang":
        time.sleep(60)
    if name == "hog":
        torch.ones(3 * 2**28).sum()
    return Row(name, status="covered", operations=7)


@pytest.fixture
def _misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check", misbehaving)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the stand-in reaches forked workers only")
@pytest.mark.usefixtures("_misbehaving")
def test_what_crashes_hangs_or_eats_memory_is_a_row() -> None:
    names = ["good", "crash", "hang", "hog", "fine"]
    limits = Limits(seconds=4, gibibytes=1)
    rows = {row.name: row for row in sweep(names, Size(), jobs=2, limits=limits)}
    assert set(rows) == set(names)
    assert rows["good"].status == rows["fine"].status == "covered"
    assert rows["good"].operations == 7
    assert rows["crash"].status == "failed"
    assert "code 3" in rows["crash"].reason
    assert "more than 4 s" in rows["hang"].reason
    assert rows["hog"].status == "failed"
    assert "memory" in rows["hog"].reason


def test_the_table_says_what_was_found() -> None:
    rows = [
        Row("a", "A", "causal LM", "covered", operations=3, forward=["float32"], explicit=2e-11),
        Row("b|c", "B", "CTC", "failed", "it <b>breaks</b>", conservation=float("nan")),
        Row("d", "", "no model class of its own", "not built", "d: none"),
    ]
    document = as_document(rows, Size())
    assert json.loads(as_json(document)) == document
    assert document["counts"] == {"covered": 1, "failed": 1, "not built": 1}
    assert document["rows"][1]["conservation"] is None
    assert document["size"]["hidden"] == Size().hidden
    page = as_markdown(document, "the command")
    assert "1 of the 2 model types" in page
    assert "| a | A | 3 | f32 |" in page
    assert "b\\|c" in page
    assert "<b>" not in page
    assert "`the command`" in page


def test_the_command(tmp_path: Path) -> None:
    table, data = tmp_path / "coverage.md", tmp_path / "coverage.json"
    result = CliRunner().invoke(
        app, ["gpt2", "--jobs", "1", "--markdown", str(table), "--json", str(data)]
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads(data.read_text())["rows"]
    assert row["status"] == "covered"
    assert row["conservation"] < 1e-8
    assert "| gpt2 | GPT2LMHeadModel |" in table.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lama"], "'lama' is no model type"),
        (["llama", "--hidden", "30"], "hidden=30"),
        (["llama", "--hidden", "0"], "hidden=0"),
        (["llama", "--tokens", "0"], "tokens=0"),
        (["llama", "--layers", "-1"], "layers=-1"),
        (["llama", "--heads", "0"], "heads=0"),
        (["llama", "--batch", "0"], "batch=0"),
        (["llama", "--jobs", "0"], "--jobs"),
        (["llama", "--task", "cooking"], "there are causal LM"),
        (["llama", "--markdown", "/nowhere/at/all.md"], "/nowhere/at/all.md"),
    ],
)
def test_mistakes_are_found_before_anything_runs(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output + result.stderr


def test_a_named_type_that_is_not_built_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_built(names: list[str], size: Size, **options: object) -> list[Row]:
        return [Row(name, "", "none", "not built", "no model class of its own") for name in names]

    monkeypatch.setattr("lxt.coverage.__main__.sweep", nothing_built)
    assert CliRunner().invoke(app, ["gpt2"]).exit_code == 1
    assert CliRunner().invoke(app, ["--task", "causal LM"]).exit_code == 0
