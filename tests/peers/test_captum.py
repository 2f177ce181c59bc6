"""Records as Captum's own views take them."""

import pytest
from captum.attr import visualization

import lxt
from explained import batch, explain

BAD = "<img src=x onerror=alert(1)>"


def test_records_are_captums_with_every_field():
    records = lxt.exports.captum_records(batch())
    assert len(records) == 2
    for record, fields in zip(records, lxt.exports.captum_fields(batch()), strict=True):
        assert isinstance(record, visualization.VisualizationDataRecord)
        assert set(fields) == set(visualization.VisualizationDataRecord.__slots__)
        assert record.raw_input_ids == fields["raw_input_ids"]
        assert record.attr_score == fields["attr_score"]


def test_its_view_of_words_is_coloured_and_inert():
    (record,) = lxt.exports.captum_records(explain([" a", BAD, "<s>"], [1.0, -2.0, 0.5], name=BAD))
    shown = visualization.format_word_importances(record.raw_input_ids, record.word_attributions)
    assert "<img" not in shown
    assert "&lt;s&gt;" in shown
    assert "<img" not in visualization.format_classname(record.attr_class)
    most, least = visualization._get_color(-1), visualization._get_color(0.5)
    assert shown.count(most) == 1
    assert shown.count(least) == 1


def test_its_table_takes_them(monkeypatch):
    monkeypatch.setattr(visualization, "HAS_IPYTHON", True)
    monkeypatch.setattr(visualization, "HTML", str, raising=False)
    monkeypatch.setattr(visualization, "display", lambda page: None, raising=False)
    page = visualization.visualize_text(lxt.exports.captum_records(batch()))
    assert "-1.25" in page
    assert page.count("<mark") == 5
    assert pytest.approx(4.0) == lxt.exports.captum_records(batch())[1].attr_score
