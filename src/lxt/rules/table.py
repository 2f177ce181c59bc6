"""The table of all operations that have a rule, as documentation: `python -m lxt.rules.table FILE`.

It stands in FILE between two marks, and is written anew there.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from pathlib import Path

from lxt.entries import rule_name
from lxt.rules.registry import REGISTRY, operation_name

__all__ = ["as_markdown", "update"]

BEGIN, END = "<!-- operations: begin -->", "<!-- operations: end -->"


def as_markdown() -> str:
    """One section for each file of rules, with its rules, operations and sources."""
    families: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for operation, entry in REGISTRY.items():
        name = operation_name(operation).removesuffix(".__get__").rpartition(".")[2]
        base = name if name.endswith("__") else name.rstrip("_")
        families[entry.family][rule_name(entry.rule), entry.source].add(base)
    parts = []
    for family in sorted(families):
        module = importlib.import_module(f"lxt.rules.{family}")
        title = (module.__doc__ or family).partition("\n")[0].rstrip(".")
        rows = [
            f"| {rule} | {', '.join(f'`{name}`' for name in sorted(names))} | {source} |"
            for (rule, source), names in families[family].items()
        ]
        parts.append(f"### {title}\n\n| rule | operations | source |\n|---|---|---|")
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts)


def update(path: Path) -> None:
    """Write the table anew between the marks of a file."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    path.write_text(f"{head}{BEGIN}\n\n{as_markdown()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1]))
