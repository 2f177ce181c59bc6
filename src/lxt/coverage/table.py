"""The result of a sweep: a JSON document, and a table to read."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lxt.coverage.size import Size

if TYPE_CHECKING:
    from lxt.coverage.checks import Row

__all__ = ["as_document", "as_json", "as_markdown"]

SCHEMA = 1

_MARKS = {"covered": "✓", "failed": "✗", "not built": "–"}


def as_document(rows: Sequence[Row], size: Size) -> dict[str, Any]:
    """All that was found, with the versions that it holds for."""
    import torch
    import transformers

    from lxt._version import __version__

    return {
        "schema": SCHEMA,
        "lxt": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "size": asdict(size),
        "counts": dict(Counter(row.status for row in rows)),
        "rows": [_plain(row.to_dict()) for row in sorted(rows, key=lambda row: row.name)],
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in which numbers that JSON lacks, NaN and infinity, are None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def as_json(document: dict[str, Any]) -> str:
    """The document with one row a line, so that a change of a row is a change of a line."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in document["rows"])
    head = json.dumps({**document, "rows": []}, indent=1, ensure_ascii=False, allow_nan=False)
    return head.removesuffix("[]\n}") + f"[\n{rows}\n]\n}}\n"


def as_markdown(document: dict[str, Any], command: str) -> str:
    """The table of a document, covered types by task, and what is not covered with its reason."""
    rows = document["rows"]
    built = [row for row in rows if row["status"] != "not built"]
    covered = [row for row in rows if row["status"] == "covered"]
    parts = [
        "# Coverage",
        f"{len(covered)} of the {len(built)} model types of transformers "
        f"{document['transformers']} that can be built as a tiny random model pass every check "
        f"(torch {document['torch']}). The other {len(rows) - len(built)} of its {len(rows)} types "
        "have no model of their own, or can't be built here; each says why. This page is written "
        f"by `{command}`.",
        _LEGEND,
    ]
    if failed := [row for row in rows if row["status"] == "failed"]:
        parts += ["## Not covered", _table(failed, ("type", "class", "why"), _reason)]
    if noted := [row for row in covered if row["note"]]:
        lines = [f"- {row['name']}: {_inert(row['note'])}" for row in noted]
        parts += ["## Covered, but for", "\n".join(lines)]
    for task in sorted({row["task"] for row in covered}):
        of_task = [row for row in covered if row["task"] == task]
        head = (
            "type",
            "class",
            "operations",
            "forward",
            "attention",
            "experts",
            "explicit",
            "conserved",
        )
        parts += [
            f"## {task[:1].upper()}{task[1:]} ({len(of_task)})",
            _table(of_task, head, _cells),
        ]
    if missing := [row for row in rows if row["status"] == "not built"]:
        parts += ["## Not built", _table(missing, ("type", "class", "why"), _reason)]
    return "\n\n".join(parts) + "\n"


_LEGEND = """\
Each row is one model type with random weights, biases and norms included, explained by the sum of
its outputs under random weights. *Forward*: in which types its output under the rules is that of
the model by itself to the bit, besides float64. The others are relative differences of relevance in
float64: between eager and SDPA *attention*, where it has both; between *experts* called one by one,
in a batch, and grouped (this one in float32); between the gradient rules and the *explicit* ones,
which are written separately; and *conserved*: under `cp_lrp`, between the target and the relevance
of the input with what biases, norm shifts, positions and other constants absorb."""


def _table(rows: Sequence[dict[str, Any]], head: tuple[str, ...], cells: Any) -> str:
    lines = [head, ("---",) * len(head), *(cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(map(_inert, line))} |" for line in lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["model_class"],
        str(row["operations"]),
        ", ".join(row["forward"]).replace("float", "f"),
        _number(row["attention"]),
        _number(row["experts"]),
        _number(row["explicit"]),
        _number(row["conservation"]),
    )


def _reason(row: dict[str, Any]) -> tuple[str, ...]:
    return row["name"], row["model_class"], row["reason"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _inert(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
