"""Corpora: the same texts from lists, datasets and files of each kind; and what is none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lxt.atlas.corpus import Corpus
from lxt.errors import InvalidFile, InvalidInput

TEXTS = ["one line", 'two\nlines, "quoted"', "größer → 東京", "long " * 40_000 + "end"]


class Dataset:
    """As much of `datasets.Dataset` as there is to see: mappings, and a length."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __iter__(self) -> Any:
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self._columns, values, strict=True))


def write(file: Path, column: str = "text") -> Path:
    records = [{"number": i, column: text} for i, text in enumerate(TEXTS)]
    if file.suffix == ".txt":
        file.write_text("\n\n".join(TEXTS) + "\n\n\n", encoding="utf-8-sig")
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["number", column])
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file


SUFFIXES = [".txt", ".jsonl", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_hold_the_texts(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"corpus{suffix}")
    assert list(Corpus(file)) == TEXTS
    assert list(Corpus(str(file))) == TEXTS
    assert Corpus(file).size is None
    if suffix != ".txt":
        other = write(tmp_path / f"other{suffix}", "body")
        assert list(Corpus(other, "body")) == TEXTS
        with pytest.raises(InvalidFile, match="no column 'text', but 'number', 'body'"):
            list(Corpus(other))
        if suffix != ".csv":  # where all is text
            with pytest.raises(InvalidFile, match="(line 1|row 0) is 0, and no text"):
                list(Corpus(other, "number"))


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('"first"\n')
    (tmp_path / "readme.md").write_text("not a text")
    assert list(Corpus(tmp_path)) == ["first", "second"]


def test_datasets_columns_and_iterables() -> None:
    assert list(Corpus(Dataset(text=TEXTS, label=[1, 2, 3, 4]))) == TEXTS
    assert list(Corpus(Dataset(body=TEXTS))) == TEXTS
    assert list(Corpus(Dataset(body=TEXTS, label=TEXTS), "label")) == TEXTS
    assert Corpus(Dataset(text=TEXTS)).size == 4
    assert list(Corpus(iter(TEXTS))) == TEXTS
    assert Corpus(iter(TEXTS)).size is None
    with pytest.raises(InvalidInput, match="text 0 of the corpus: there is no column 'text', but"):
        list(Corpus(Dataset(a=TEXTS, b=TEXTS)))


def test_what_is_no_corpus(tmp_path: Path) -> None:
    for source, words in [
        ({"text": TEXTS}, "is no corpus"),
        (None, "is no corpus"),
        ("The capital of France", "for texts themselves give a list"),
        (tmp_path, "holds no .txt"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            Corpus(source)
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match="is none of .txt, .jsonl"):
        Corpus(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"\xff\xfe", "can't be read: .*decode"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: it is no JSON"),
        ("a.jsonl", b'{"text": 5}\n', "line 1 is 5, and no text"),
        ("a.csv", b"a,b\n1,2\n", "line 2: there is no column 'text', but 'a', 'b'"),
        ("a.csv", b"text,b\n,\n", "^$"),
        ("a.parquet", b"PAR1", "is no parquet file"),
    ],
)
def test_damaged_files(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    if words == "^$":
        assert list(Corpus(tmp_path / name)) == [""]
        return
    with pytest.raises(InvalidFile, match=words):
        list(Corpus(tmp_path / name))
