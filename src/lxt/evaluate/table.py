"""The table of how far predictions and effects agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lxt.tokens import printable

if TYPE_CHECKING:
    from lxt.evaluate.interventions import Interventions

__all__ = ["render"]


def render(found: Interventions) -> RenderableType:
    """Correlations of each method, by component, with standard errors over rows."""
    facts = found.provenance
    rows = len(found.row.unique())
    head = f"{found.kind} · {facts.get('model', '')} · {rows} row{'s' * (rows != 1)}"
    if "reference" in facts:
        head += f" · reference: {facts['reference']}"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("component")
    table.add_column("interventions", justify="right")
    table.add_column("method")
    table.add_column("Pearson", justify="right")
    table.add_column("Spearman", justify="right")
    earlier = None
    for one in found.agreements():
        is_new = one.component != earlier
        earlier = one.component
        table.add_row(
            Text(printable(one.component) if is_new else ""),
            str(one.interventions) if is_new else "",
            Text(printable(one.method)),
            _number(one.pearson, one.pearson_error),
            _number(one.spearman, one.spearman_error),
        )
    return Group(Text(printable(head)), Text(), table)


def _number(value: float, error: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"
