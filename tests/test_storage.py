"""What was stored is what is read back; anything else is refused, and no file is half written."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save

from explained import batch, batch_of_many, explanations, many, same, single, traced
from lxt.errors import InvalidFile, UnwritableFile
from lxt.explanation import Explanation
from lxt.storage import check_writable


@settings(deadline=None)
@given(explanations())
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path_factory, explanation):
    path = tmp_path_factory.mktemp("saved") / "explanation.safetensors"
    explanation.save(path)
    same(Explanation.load(path), explanation)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("explanation_v1", single()),
        ("explanation_v1_batch", batch()),
        ("explanation_v2_many", many()),
        ("explanation_v2_batch", batch_of_many()),
        ("explanation_v3_traced", traced()),
    ],
)
def test_files_of_every_version_are_read(name, expected):
    same(Explanation.load(Path(__file__).parent / "data" / f"{name}.safetensors"), expected)


def file_of(tmp_path, header=None, tensors=None, **content):
    """Write a file like ``save``'s, with the header, tensors or content given instead."""
    single().save(tmp_path / "good")
    with safe_open(tmp_path / "good", framework="pt") as good:
        metadata = dict(good.metadata())
        stored = {name: good.get_tensor(name) for name in good.keys()}  # noqa: SIM118
    metadata["content"] = json.dumps(json.loads(metadata["content"]) | content)
    path = tmp_path / "file"
    path.write_bytes(save(stored if tensors is None else tensors, metadata | (header or {})))
    return path


def refused(path, reason="is not a saved explanation"):
    with pytest.raises(InvalidFile, match=reason) as caught:
        Explanation.load(path)
    assert repr(str(path)) in str(caught.value)


def test_the_file_that_the_refused_ones_are_made_from_is_read(tmp_path):
    same(Explanation.load(file_of(tmp_path)), single())


@settings(deadline=None)
@given(st.data())
def test_a_truncated_or_damaged_file_is_refused_or_a_valid_explanation(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "file"
    single().save(path)
    good = path.read_bytes()
    path.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
    refused(path)
    damaged = bytearray(good)
    damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        loaded = Explanation.load(path)
    except InvalidFile:
        return
    assert loaded.relevance.isfinite().all()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_other_file_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("other") / "file"
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"format": "pt"}, "does not name the format lxt.explanation"),
        ({"version": "4"}, "version '4'.*reads 1, 2 and 3"),
        ({"version": ""}, "version ''"),
        ({"content": ""}, "not JSON"),
        ({"content": "[" * 100_000}, "is not a saved explanation"),
        ({"content": "[]"}, "provenance, target, tokens"),
        ({"content": '{"tokens": []}'}, "provenance, target, tokens"),
        ({"content": "1" * 5000}, "not JSON|provenance"),
    ],
)
def test_headers_that_are_refused(tmp_path, header, reason):
    refused(file_of(tmp_path, header=header), reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"tokens": "abc"}, "tokens is a str"),
        ({"tokens": ["a", "b"]}, "2 given"),
        ({"tokens": ["a", "b", None]}, "NoneType"),
        ({"target": {}}, "target does not hold"),
        ({"target": "x"}, "target does not hold"),
        ({"target": [3]}, "target does not hold"),
        ({"provenance": {"model": 3}}, "provenance"),
        ({"provenance": []}, "provenance"),
        ({"extra": 1}, "exactly"),
    ],
)
def test_contents_that_are_refused(tmp_path, content, reason):
    refused(file_of(tmp_path, **content), reason)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, None, "1", [[1.0]]])
def test_values_that_are_refused(tmp_path, value):
    target = {"kind": "logit", "name": "a", "value": value, "position": 0, "prediction": "b"}
    refused(file_of(tmp_path, target=target), "value")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": torch.zeros(3)}, "lacks mask, relevance, token_ids"),
        ({"relevance": torch.zeros(3)}, "lacks mask, token_ids"),
        (
            {
                "relevance": torch.zeros(3, 1, 1),
                "mask": torch.ones(3, 1, 1, dtype=torch.bool),
                "token_ids": torch.zeros(3, 1, 1, dtype=torch.int64),
            },
            r"\[3, 1, 1\]",
        ),
        (
            {
                "relevance": torch.full((3,), math.nan),
                "mask": torch.ones(3, dtype=torch.bool),
                "token_ids": torch.zeros(3, dtype=torch.int64),
            },
            "NaN",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path, tensors, reason):
    refused(file_of(tmp_path, tensors=tensors), reason)


def test_files_that_can_not_be_read(tmp_path):
    refused(tmp_path / "missing", "No such file")
    refused(tmp_path)


def test_an_explanation_outlives_its_file(tmp_path):
    path = tmp_path / "file"
    single().save(path)
    loaded = Explanation.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    same(loaded, single())


WRITERS = [Explanation.save, Explanation.to_json, Explanation.to_html]


@pytest.mark.parametrize("write", WRITERS)
def test_writing_replaces_a_file(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    written = write(single(), path)
    assert path.read_bytes() != b"old"
    assert written is None or path.read_text("utf-8") == written
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [*WRITERS, lambda _, path: check_writable(path)])
def test_paths_that_can_not_be_written(tmp_path, write):
    (tmp_path / "file").write_text("old")
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    before = sorted(tmp_path.iterdir())
    for path, reason in [
        (tmp_path, "Is a directory"),
        (tmp_path / "missing" / "file", "No such file"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "too long"),
        ("nul\0", "null"),
        (circle, "[Ll]oop|[Ss]ymbolic|[Ss]ymlink"),
    ]:
        with pytest.raises(UnwritableFile, match=reason) as caught:
            write(single(), path)
        assert repr(str(path)) in str(caught.value)
        assert caught.value.__cause__ is not None
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, write, step):
    path = tmp_path / "file"
    path.write_text("old")
    original = getattr(Path, step)

    def interrupted(self, argument):
        if step == "write_bytes":
            original(self, argument[: len(argument) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, interrupted)
    with pytest.raises(UnwritableFile, match="No space left on device"):
        write(single(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        single().to_json(pipe)
        assert pipe.is_fifo()
        assert os.read(reader, 2**16).decode() == single().to_json()
    finally:
        os.close(reader)


def test_a_link_stays_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    check_writable(link)
    assert not (tmp_path / "file").exists()
    single().save(link)
    assert link.is_symlink()
    same(Explanation.load(tmp_path / "file"), single())


def test_check_writable_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "file"
    check_writable(path)
    check_writable(str(path))
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    before = path.stat()
    check_writable(path)
    assert path.read_text() == "old"
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(tmp_path.iterdir()) == [path]


def test_a_field_given_twice_is_refused(tmp_path):
    text = single().to_json().replace('"rows"', '"dtype": "float64",\n "rows"')
    with pytest.raises(InvalidFile, match='an object has "dtype" twice'):
        Explanation.from_json(text)


@pytest.mark.parametrize("depth", [10, 500, 985, 990, 995, 10_000])
def test_nesting_is_refused_at_any_depth(depth):
    text = '{"format": %s, "version": 3}' % ("[" * depth + "]" * depth)
    with pytest.raises(InvalidFile):
        Explanation.from_json(text)


def test_a_small_file_takes_no_more_memory_than_it_holds():
    """Rows that are long, of many targets and of many layers, but none of them all of these."""
    empty = {"tokens": [], "token_ids": [], "relevance": [], "target": []}
    long = {**empty, "tokens": ["a"] * 3000, "token_ids": [0] * 3000}
    target = json.loads(single().to_json())["rows"][0]["target"]
    wide = {**empty, "relevance": [[]] * 1000, "target": [target] * 1000}
    document = json.loads(batch_of_many().to_json()) | {"rows": [long, wide, *[empty] * 1000]}
    with pytest.raises(InvalidFile, match=r"with padding they would be \[1002, 1000, 3000\]"):
        Explanation.from_json(json.dumps(document))


def test_a_batch_of_very_different_lengths_is_read():
    row = json.loads(single().to_json())["rows"][0]
    long = {name: row[name] * 3000 for name in ("tokens", "token_ids", "relevance")}
    document = json.loads(batch().to_json()) | {"rows": [row | long, *[row] * 500]}
    assert Explanation.from_json(json.dumps(document)).relevance.shape == (501, 9000)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no paths here")
def test_safetensors_from_a_pipe_are_refused_without_waiting(tmp_path):
    single().save(tmp_path / "file")
    end, other = os.pipe()
    try:
        os.write(other, (tmp_path / "file").read_bytes())
        with pytest.raises(InvalidFile, match="no regular file"):
            Explanation.load(f"/dev/fd/{end}")
    finally:
        os.close(end)
        os.close(other)
