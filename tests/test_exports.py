"""What pandas, Neuronpedia and Captum get: the same numbers, one explanation after another."""

import json
import math
import subprocess
import sys

import pandas
import pytest
import torch
from hypothesis import given, settings

import lxt
from explained import batch, batch_of_many, explain, explanations, many, single, traced
from lxt.errors import MissingPackage, UnwritableFile


def parts(explanation):
    """Every explanation of tokens alone, with where it is, by taking one axis after the other."""
    if len(explanation.axes) == 1:
        yield {}, explanation.inputs()[0]
        return
    name = {"batch": "row", "targets": "target", "layers": "layer"}[explanation.axes[0]]
    for i, part in enumerate(explanation):
        where = explanation.layers[i] if name == "layer" else i
        for rest, one in parts(part):
            yield {name: where} | rest, one


@settings(deadline=None)
@given(explanations())
def test_a_table_has_a_line_for_each_token(explanation):
    table = explanation.to_dataframe()
    names = {"batch": "row", "targets": "target", "layers": "layer"}
    present = [name for axis, name in names.items() if axis in explanation.axes]
    assert list(table.columns) == [
        *present, "position", "token", "token_id", "relevance", "share"
    ]  # fmt: skip
    lines = iter(table.to_dict("records"))
    for where, one in parts(explanation):
        total = sum(abs(value) / 1e10 for value in one.relevance.tolist())
        for position, token in enumerate(one.tokens):
            line = next(lines)
            assert {name: line[name] for name in where} == where
            assert line["position"] == position
            assert line["token"] == token
            assert line["token_id"] == one.token_ids[position]
            assert line["relevance"] == one.relevance[position]
            share = abs(line["relevance"]) / 1e10 / total if total else 0.0
            assert line["share"] == pytest.approx(share, rel=1e-9, abs=1e-300)
    assert next(lines, None) is None
    for name in ("position", "token_id", *(name for name in present if name != "layer")):
        assert table[name].dtype == "int64"
    assert str(explanation.relevance.dtype).endswith(str(table["relevance"].dtype))
    assert table["share"].dtype == "float64"


def test_a_table_is_one_that_pandas_works_on():
    table = batch().to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert table.groupby("row")["relevance"].sum().tolist() == [-1.25, 4.0]
    assert table.groupby("row")["share"].sum().tolist() == [1.0, 1.0]
    mapped = traced().to_dataframe().pivot(index="layer", columns="position", values="relevance")
    assert mapped.loc["layers.0"].tolist() == [1.0, -0.5, 3.0]
    assert batch_of_many().to_dataframe()[["row", "target"]].drop_duplicates().values.tolist() == [
        [0, 0], [0, 1], [1, 0]
    ]  # fmt: skip


def test_without_pandas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackage, match=r"pip install lxt\[pandas\]"):
        single().to_dataframe()


@settings(deadline=None)
@given(explanations())
def test_neuronpedia_gets_a_line_for_each(explanation):
    lines = lxt.exports.to_neuronpedia(explanation).splitlines()
    whole = list(parts(explanation))
    assert len(lines) == len(whole)
    for line, (where, one) in zip(lines, whole, strict=True):
        record = json.loads(line)
        values = one.relevance.tolist()
        assert record["tokens"] == one.tokens
        assert record["values"] == values
        assert record.get("layer") == where.get("layer")
        if values:
            assert record["values"][record["maxValueTokenIndex"]] == record["maxValue"]
            assert record["maxValue"] == max(values)
            assert record["minValue"] == min(values)


def test_neuronpedia_lines_are_written(tmp_path):
    text = lxt.exports.to_neuronpedia(many(), tmp_path / "lines.jsonl")
    assert (tmp_path / "lines.jsonl").read_text("utf-8") == text
    assert text.count("\n") == 3
    with pytest.raises(UnwritableFile):
        lxt.exports.to_neuronpedia(many(), tmp_path)


@settings(deadline=None)
@given(explanations())
def test_captum_gets_the_fields_of_a_record_for_each(explanation):
    whole = [one for _, one in parts(explanation)]
    records = lxt.exports.captum_fields(explanation)
    assert len(records) == len(whole)
    for record, one in zip(records, whole, strict=True):
        scale = max(map(abs, one.relevance.tolist()), default=0.0) or 1.0
        assert torch.equal(record["word_attributions"], one.relevance / scale)
        assert len(record["raw_input_ids"]) == len(one.tokens)
        assert math.isnan(record["pred_prob"])
        assert record["true_class"] == "unknown"


def test_captum_gets_sums_and_texts_that_a_page_can_hold():
    (record,) = lxt.exports.captum_fields(single())
    assert record["word_attributions"].tolist() == [0.25, -1.0, 0.125]
    assert (record["attr_score"], record["convergence_score"]) == (-1.25, 16.5)
    assert record["attr_class"] == record["pred_class"] == "&quot; Paris&quot;"
    bad = "<img src=x onerror=alert(1)>\u202e"
    (record,) = lxt.exports.captum_fields(explain([bad], [1.0], name=bad))
    for text in (record["raw_input_ids"][0], record["attr_class"]):
        assert text == "&lt;img src=x onerror=alert(1)&gt;\\u202E"


def test_neither_captum_nor_pandas_is_imported_unasked():
    code = (
        "import sys, lxt\n"
        f"e = lxt.Explanation.from_json({single().to_json()!r})\n"
        "lxt.exports.captum_fields(e), lxt.exports.to_neuronpedia(e)\n"
        "print({'captum', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_without_captum_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingPackage, match="pip install captum"):
        lxt.exports.captum_records(single())
