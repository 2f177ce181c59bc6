"""Corpora: texts from whatever holds some, one after the other."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lxt.atlas.arrow import pyarrow_of
from lxt.errors import InvalidFile, InvalidInput

__all__ = ["Corpus"]

SUFFIXES = (".txt", ".jsonl", ".parquet", ".csv")


class Corpus:
    """Texts, in an order that is the same each time.

    Args:
        source: texts in any iterable; a `datasets.Dataset`, or a column of one; mappings with a
            text in a column; or the path of a file or of a folder, whose files are read in the
            order of their names. In a .txt file texts are separated by empty lines; a line of a
            .jsonl file is an object, or a string; .parquet and .csv files have columns.
        column: where the text is; by default "text", or the only one that there is.

    Raises:
        InvalidInput: no texts can be in it; or there is no such file, or none of these kinds.

    """

    def __init__(self, source: Any, column: str | None = None) -> None:
        self._source = source
        self._column = column
        self._files: list[Path] | None = None
        if isinstance(source, str | os.PathLike):
            self._files = _files(Path(source))
        elif isinstance(source, Mapping) or not isinstance(source, Iterable):
            raise InvalidInput(
                f"{_short(source)} is no corpus: give an iterable of texts, a dataset, or the path "
                f"of a file or folder ({', '.join(SUFFIXES)})"
            )

    @property
    def size(self) -> int | None:
        """How many texts there are, if that can be told without reading them."""
        try:
            return None if self._files is not None else len(self._source)
        except TypeError:
            return None

    def __iter__(self) -> Iterator[str]:
        """Go through the texts.

        Raises:
            InvalidInput: one is no text, or lacks the column.
            InvalidFile: a file can't be read, or holds something else; quotes its place.

        """
        if self._files is None:
            for number, record in enumerate(self._source):
                yield _text(record, self._column, f"text {number} of the corpus", InvalidInput)
            return
        for file in self._files:
            read = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
            try:
                yield from read[file.suffix.lower()](file, self._column)
            except (OSError, UnicodeError, csv.Error) as error:
                raise InvalidFile(f"{str(file)!r} can't be read: {error}") from error


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not found:
            raise InvalidInput(f"the folder {str(path)!r} holds no {', '.join(SUFFIXES)} file")
        return found
    if not path.is_file():
        raise InvalidInput(
            f"there is no file or folder {_short(str(path))}: for texts themselves give a list"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"{str(path)!r} is none of {', '.join(SUFFIXES)}")
    return [path]


def _txt(file: Path, column: str | None) -> Iterator[str]:
    lines: list[str] = []
    with file.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).removesuffix("\n")
                lines = []
    if lines:
        yield "".join(lines).removesuffix("\n")


def _jsonl(file: Path, column: str | None) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{str(file)!r}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InvalidFile(f"{place}: it is no JSON: {error}") from error
            yield _text(record, column, place, InvalidFile)


def _csv(file: Path, column: str | None) -> Iterator[str]:
    # A text of more than 128 KiB, which is the module's limit, is no mistake here.
    before = csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for record in reader:
                place = f"{str(file)!r}, line {reader.line_num}"
                yield _text(record, column, place, InvalidFile)
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, column: str | None) -> Iterator[str]:
    pyarrow = pyarrow_of()
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise InvalidFile(f"{str(file)!r} is no parquet file: {error}") from error
    with table:
        names = table.schema_arrow.names
        name = _column(names, column, repr(str(file)), InvalidFile)
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[name]):
            for value in batch.column(0).to_pylist():
                yield _text(value, None, f"{str(file)!r}, row {number}", InvalidFile)
                number += 1


def _text(record: Any, column: str | None, place: str, error: type[Exception]) -> str:
    if isinstance(record, Mapping):
        record = record[_column(list(record), column, place, error)]
    if not isinstance(record, str):
        raise error(f"{place} is {_short(record)}, and no text")
    return record


def _column(names: list[Any], column: str | None, place: str, error: type[Exception]) -> Any:
    wanted = "text" if column is None else column
    if wanted in names:
        return wanted
    if column is None and len(names) == 1:
        return names[0]
    listed = ", ".join(repr(name) for name in names) or "none"
    raise error(f"{place}: there is no column {wanted!r}, but {listed}: give column=…")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
