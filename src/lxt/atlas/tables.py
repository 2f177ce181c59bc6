"""An atlas as parquet files, which any reader of these can take up; and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lxt.atlas.arrow import pyarrow_of
from lxt.atlas.ranking import EMPTY, Ranking, rows_in, values_in
from lxt.atlas.rows import Row
from lxt.atlas.state import State
from lxt.errors import InvalidFile
from lxt.tokens import readable_tokens

__all__ = ["FILES", "read", "read_group", "write_contexts", "write_rows", "write_units"]

FILES = ("units.parquet", "contexts.parquet", "rows.parquet")
_LABELS_AT_ONCE = 4096


def write_units(file: Path, state: State) -> None:
    """Write a row for each unit of each site, in their order: its statistics.

    Columns: site, unit, tokens (how many counted), mean, deviation, least, most, active (the share
    of tokens at which it is above 0), relevance and absolute_relevance (means over tokens),
    histogram (see `lxt.atlas.statistics.EDGES`).
    """
    pa = pyarrow_of()
    tables = []
    for site, s in zip(state.sites, state.statistics, strict=True):
        count = int(s.tokens)
        columns = {
            "site": _repeated(pa, site.name, site.units),
            "unit": torch.arange(site.units, dtype=torch.int32),
            "tokens": s.tokens.expand(site.units),
            "mean": s.mean,
            "deviation": s.deviation,
            "least": s.least,
            "most": s.most,
            "active": s.active / count,
        }
        if any(by.endswith("relevance") for by in state.by):
            columns |= {"relevance": s.relevance / count, "absolute_relevance": s.absolute / count}
        bins = s.histogram.shape[1]
        columns["histogram"] = _lists(pa, s.histogram.flatten(), torch.full((site.units,), bins))
        tables.append(_table(pa, columns))
    pa.parquet.write_table(pa.concat_tables(tables), file, compression="zstd")


def write_contexts(file: Path, state: State) -> None:
    """Write a row for each context of each unit, in groups by site and ranking.

    Columns: site, by, unit, rank, value (what it is ranked by), activation and relevance at the
    peak, row, position (of the peak in the row), begin (of the window), window (activations).
    """
    pa = pyarrow_of()
    writer = None
    try:
        for site, rankings in zip(state.sites, state.rankings, strict=True):
            for by, ranking in rankings.items():
                table = _of_ranking(pa, site.name, by, ranking, state)
                writer = writer or pa.parquet.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=max(1, len(table)))
    finally:
        if writer is not None:
            writer.close()


def _of_ranking(pa: Any, site: str, by: str, ranking: Ranking, state: State) -> Any:
    unit, rank = (ranking.keys > EMPTY).nonzero(as_tuple=True)
    keys = ranking.keys[unit, rank]
    value, rows = values_in(keys), rows_in(keys)
    own = -value if by.startswith("-") else value
    other = ranking.companions[unit, rank]
    place = ranking.places[unit, rank].long()
    before, after = state.window
    lengths = [len(state.rows[row].ids) for row in rows.tolist()]
    lengths = torch.tensor(lengths, dtype=torch.int64)
    begin = (place - before).clamp(min=0)
    end = torch.minimum(place + after + 1, lengths)
    offsets = torch.arange(-before, after + 1) + place[:, None]
    inside = (offsets >= begin[:, None]) & (offsets < end[:, None])
    window = ranking.windows[unit, rank].float()[inside]
    is_of_relevance = by.endswith("relevance")
    columns = {
        "site": _repeated(pa, site, len(keys)),
        "by": _repeated(pa, by, len(keys)),
        "unit": unit.int(),
        "rank": rank.short(),
        "value": own,
        "activation": other if is_of_relevance else own,
        "row": rows,
        "position": place.int(),
        "begin": begin.int(),
        "window": _lists(pa, window, end - begin),
    }
    if any(one.endswith("relevance") for one in state.by):
        columns["relevance"] = own if is_of_relevance else other
    return _table(pa, columns)


def write_rows(file: Path, rows: Iterable[Row], tokenizer: Any) -> None:
    """Write a row of tokens that contexts name a line.

    Columns: row, text (the text's number in the corpus), start (how many of the text's tokens come
    before), begin and end (the positions that count), ids, tokens (as a person reads them).
    """
    pa = pyarrow_of()
    with _writer(pa, file) as put:
        for part in _parts(list(rows)):
            labels = [readable_tokens(tokenizer, row.ids, continues=row.start > 0) for row in part]
            columns: dict[str, Any] = {
                name: torch.tensor([getattr(row, name) for row in part], dtype=dtype)
                for name, dtype in (("text", torch.int64), ("start", torch.int64),
                                    ("begin", torch.int32), ("end", torch.int32))
            }  # fmt: skip
            numbers = torch.tensor([row.number for row in part], dtype=torch.int64)
            columns = {"row": numbers, **columns}
            columns["ids"] = pa.array([list(row.ids) for row in part], pa.list_(pa.int32()))
            safe = [[label.encode("utf-8", "replace").decode() for label in row] for row in labels]
            columns["tokens"] = pa.array(safe, pa.list_(pa.string()))
            put(_table(pa, columns))


@contextmanager
def _writer(pa: Any, file: Path) -> Iterator[Any]:
    writer: list[Any] = []

    def put(table: Any) -> None:
        if not writer:
            writer.append(pa.parquet.ParquetWriter(file, table.schema, compression="zstd"))
        writer[0].write_table(table)

    try:
        yield put
    finally:
        for one in writer:
            one.close()


def read(file: Path) -> Any:
    """A whole table.

    Raises:
        InvalidFile: it is none.

    """
    pa = pyarrow_of()
    with _reading(pa, file):
        return pa.parquet.read_table(file)


def read_group(file: Path, group: int) -> Mapping[str, Any]:
    """One of the groups that `write_contexts` wrote, as arrays by column.

    Raises:
        InvalidFile: it is damaged.

    """
    pa = pyarrow_of()
    with _reading(pa, file), pa.parquet.ParquetFile(file) as opened:
        return {
            name: column.combine_chunks()
            for name, column in zip(
                opened.schema_arrow.names, opened.read_row_group(group).columns, strict=True
            )
        }


@contextmanager
def _reading(pa: Any, file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InvalidFile(f"{str(file)!r} is damaged: {error}") from error


def _parts(rows: list[Row]) -> Iterator[list[Row]]:
    for first in range(0, max(1, len(rows)), _LABELS_AT_ONCE):  # a file, if of no rows
        yield rows[first : first + _LABELS_AT_ONCE]


def _table(pa: Any, columns: Mapping[str, Any]) -> Any:
    arrays = {
        name: pa.array(x.contiguous().numpy()) if isinstance(x, Tensor) else x
        for name, x in columns.items()
    }
    return pa.table(arrays)


def _repeated(pa: Any, text: str, count: int) -> Any:
    index = pa.array(torch.zeros(count, dtype=torch.int32).numpy())
    return pa.DictionaryArray.from_arrays(index, pa.array([text])).cast(pa.string())


def _lists(pa: Any, values: Tensor, lengths: Tensor) -> Any:
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).int()
    return pa.ListArray.from_arrays(pa.array(offsets.numpy()), pa.array(values.numpy()))
