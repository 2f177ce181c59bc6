"""Explanations as JSON: written for other programs, and read back with every mistake named.

What the fields are is said by ``explanation.schema.json`` beside this file, and in
``docs/explanation-format.md``. ``parse`` refuses what the schema refuses, and what no schema can
say: lengths that do not fit together.
"""

import json
import math
import sys
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lxt import kinds
from lxt.errors import InvalidInput
from lxt.explained import KINDS, ExplainedTarget
from lxt.json_node import Node, document_of

if TYPE_CHECKING:
    from lxt.explanation import Explanation

FORMAT = kinds.TEXT
VERSION = 3
"""Of what is written, by every kind of file. Version 2 has no layers, and as JSON neither axes nor
dtype; version 1 has besides neither targets as an axis nor sums. All else is the same."""
READ = (1, 2, 3)

_FIELDS = ("format", "version", "rows", "provenance")
_FIELDS_SINCE_3 = (*_FIELDS, "axes", "dtype", "layers")
_FIELDS_OF_A_ROW = ("tokens", "token_ids", "relevance", "target")
_FIELDS_OF_A_TARGET = ("kind", "name", "value", "position", "prediction")
_AXES = tuple(
    [*batch, *targets, *layers, "tokens"]
    for batch in ([], ["batch"])
    for targets in ([], ["targets"])
    for layers in ([], ["layers"])
)
_ALWAYS_PADDED, _MOST_PADDING = 10_000_000, 100
"""A batch may have so many numbers, and so many more for each that its rows hold: a small file
whose longest rows differ in which of their sizes is large would take any amount of memory."""
_INT64 = torch.iinfo(torch.int64)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what ``to_json`` writes and ever wrote."""
    file = resources.files("lxt") / "explanation.schema.json"
    return json.loads(file.read_text("utf-8"))


def to_json(explanation: "Explanation") -> str:
    """Return the rows, without padding, as JSON of ASCII characters only."""
    rows = [
        {
            "tokens": row.tokens,
            "token_ids": row.token_ids.tolist(),
            "relevance": row.relevance.tolist(),
            "target": target_fields(row.target),
        }
        for row in explanation.inputs()
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "axes": explanation.axes,
        "dtype": str(explanation.relevance.dtype).removeprefix("torch."),
        "layers": explanation.layers,
        "rows": rows,
        "provenance": explanation.provenance,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def target_fields(target: Any) -> Any:
    """A target, or lists of them, as what JSON knows."""
    return [target_fields(one) for one in target] if isinstance(target, list) else asdict(target)


def parse(text: str) -> "Explanation":
    """Read what ``to_json`` wrote, in this version of the format or an earlier one.

    Rows of a batch that are shorter than others get padding behind: tokens ``""`` of id 0.

    Raises:
        InvalidInput: it is something else; says where, as ``rows[0].relevance[3]``.

    """
    return read(document_of(text))


def read(document: Node) -> "Explanation":
    """Read a document as ``parse`` does."""
    from lxt.explanation import Explanation

    kinds.check(document.fields(("format", "version"), others=True)["format"].value, FORMAT)
    document["format"].one_of((FORMAT,))
    version = document["version"].value
    if isinstance(version, bool) or version not in READ:
        known = f"{', '.join(map(str, READ[:-1]))} and {READ[-1]}"
        raise document["version"].is_not(f"one that this version of lxt reads, {known}")
    form = _form_3(document) if version == 3 else _form_before_3(document, version)
    rows = [_row(row, form) for row in document["rows"].items()]
    provenance = document["provenance"].strings()
    if form.is_batch:
        return Explanation(**_stacked(rows, form), provenance=provenance, layers=form.layers)
    if len(rows) != 1:
        raise document["rows"].wrong(f"{len(rows)} rows where axes has no batch: it takes 1")
    (row,) = rows
    mask = torch.ones_like(row.token_ids, dtype=torch.bool)
    relevance = row.relevance.to(form.dtype or _narrowest(rows))
    return Explanation(
        **row._replace(relevance=relevance)._asdict(),
        mask=mask,
        provenance=provenance,
        layers=form.layers,
    )


class _Form(NamedTuple):
    """What all rows have in common."""

    is_batch: bool
    is_many: bool
    layers: list[str] | None
    dtype: torch.dtype | None  # None: as narrow as the numbers allow


class _Row(NamedTuple):
    tokens: list[str]
    token_ids: Tensor
    relevance: Tensor
    target: Any


def _form_3(document: Node) -> _Form:
    document.fields(_FIELDS_SINCE_3)
    axes = document["axes"].one_of(_AXES)
    dtype = getattr(torch, document["dtype"].one_of(("float32", "float64")))
    layers = document["layers"]
    if "layers" not in axes:
        if layers.value is not None:
            raise layers.is_not("null, and axes has no layers")
        return _Form("batch" in axes, "targets" in axes, None, dtype)
    names = [name.string() for name in layers.items()]
    if not names:
        raise layers.is_not("a list of one name or more, and axes has layers")
    return _Form("batch" in axes, "targets" in axes, names, dtype)


def _form_before_3(document: Node, version: int) -> _Form:
    """These files do not tell a batch of one row from a single input, and mean the latter."""
    document.fields(_FIELDS)
    targets = [row.fields(_FIELDS_OF_A_ROW)["target"] for row in document["rows"].items()]
    is_many = version > 1 and bool(targets) and isinstance(targets[0].value, list)
    return _Form(len(targets) != 1, is_many, None, None)


def _row(row: Node, form: _Form) -> _Row:
    row.fields(_FIELDS_OF_A_ROW)
    tokens = [token.string() for token in row["tokens"].items()]
    ids = [token.integer(_INT64.min, _INT64.max) for token in row["token_ids"].items()]
    if len(ids) != len(tokens):
        raise row["token_ids"].wrong(f"{len(ids)} given where there are {len(tokens)} tokens")
    sizes = {"tokens": len(tokens)}
    if form.layers is not None:
        sizes = {"layers": len(form.layers)} | sizes
    if form.is_many:
        target = [target_of(one) for one in row["target"].items()]
        sizes = {"targets": len(target)} | sizes
    else:
        target = target_of(row["target"])
    largest = torch.finfo(form.dtype or torch.float64).max
    values = nested(row["relevance"], list(sizes.items()), largest)
    relevance = torch.tensor(values, dtype=torch.float64).reshape(tuple(sizes.values()))
    return _Row(tokens, torch.tensor(ids, dtype=torch.int64), relevance, target)


def nested(node: Node, sizes: list[tuple[str, int]], largest: float) -> list[Any]:
    """Return numbers in lists as deep as there are sizes, and as long."""
    (name, size), *inner = sizes
    if len(node.list()) != size:
        raise node.wrong(f"{len(node.value)} given where there are {size} {name}")
    if inner:
        return [nested(item, inner, largest) for item in node.items()]
    return [item.number(largest) for item in node.items()]


def target_of(target: Node) -> ExplainedTarget:
    """Read what ``target_fields`` makes of one target."""
    target.fields(_FIELDS_OF_A_TARGET)
    position = target["position"]
    return ExplainedTarget(
        kind=target["kind"].one_of(KINDS),
        name=target["name"].string(),
        value=target["value"].number(sys.float_info.max),
        position=None if position.value is None else position.integer(0),
        prediction=target["prediction"].string(),
    )


def _stacked(rows: list[_Row], form: _Form) -> dict[str, Any]:
    """Return the fields of a batch, each row padded behind, and of targets and tokens alike."""
    width = max((len(row.tokens) for row in rows), default=0)
    inner = [len(form.layers)] if form.layers is not None else []
    if form.is_many:
        inner = [max((len(row.target) for row in rows), default=0), *inner]
    dtype = form.dtype or _narrowest(rows)
    shape = (len(rows), *inner, width)
    needed = max(math.prod(shape), len(rows) * width)
    given = sum(row.relevance.numel() + len(row.tokens) for row in rows)
    if needed > _ALWAYS_PADDED + _MOST_PADDING * given:
        raise InvalidInput(
            f"rows: with padding they would be {list(shape)}, {needed} numbers, and they hold "
            f"{given}: their sizes differ too much for a batch"
        )
    relevance = torch.zeros(shape, dtype=dtype)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        relevance[i][tuple(slice(size) for size in row.relevance.shape)] = row.relevance
        ids[i, : len(row.tokens)] = row.token_ids
        mask[i, : len(row.tokens)] = True
    return {
        "relevance": relevance,
        "tokens": [row.tokens + [""] * (width - len(row.tokens)) for row in rows],
        "token_ids": ids,
        "mask": mask,
        "target": [row.target for row in rows],
    }


def _narrowest(rows: list[_Row]) -> torch.dtype:
    """Return float32 where it holds every number, to the bit; else float64."""
    fits = all(torch.equal(row.relevance.float().double(), row.relevance) for row in rows)
    return torch.float32 if fits else torch.float64
