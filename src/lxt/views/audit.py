"""The report of an audit in a terminal: the verdict, what was found, and the books."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lxt.tokens import printable
from lxt.views.summary import number_format
from lxt.views.terminal import printed

if TYPE_CHECKING:
    from lxt.auditing.report import Report

__all__ = ["as_text", "renderables"]

MOST_ROWS = 8
"""Of longer lists only so many are shown; the JSON has all."""

_BESIDE_NAMES = 28
"""With fewer columns beside the names of operations and rules these are wrapped, as all is."""

_STATUS = {
    "rule": "under a rule",
    "linear": "linear by proof",
    "constant": "constant",
    "unknown": "without a rule",
}


def as_text(report: Report) -> str:
    """What ``print`` shows."""
    return printed(Group(*renderables(report)))


def renderables(report: Report) -> Iterator[RenderableType]:
    """The parts of the report, one below the other."""
    yield _verdict(report)
    if report.findings:
        yield _findings(report)
    yield _coverage(report)
    yield _ledger(report)
    if report.layers:
        yield _layers(report)
    if report.additions:
        yield _additions(report)
    yield _facts(report)


def _verdict(report: Report) -> Text:
    if report.ok:
        return Text.assemble(("sound", "bold green"), f": {_subject(report)}")
    count = len(report.findings)
    word = "1 finding" if count == 1 else f"{count} findings"
    return Text.assemble((word, "bold red"), f": {_subject(report)}")


def _subject(report: Report) -> str:
    return f"{report.model} under {report.composite}, {report.dtype}"


def _findings(report: Report) -> Padding:
    lines: list[RenderableType] = []
    for number, finding in enumerate(report.findings, start=1):
        lines.append(
            Text.assemble(
                f"{number}. ", (finding.kind, "bold"), f": {_inert(finding.text)}", overflow="fold"
            )
        )
        if finding.line:
            lines.append(
                Padding(Text(f"write: {_inert(finding.line)}", style="cyan"), (0, 0, 0, 3))
            )
    return Padding(Group(*lines), (1, 0, 0, 0))


def _coverage(report: Report) -> RenderableType:
    counts = report.counts()
    title = "coverage: " + ", ".join(
        f"{count} {_STATUS[status]}" for status, count in counts.items() if count
    )
    calls: dict[tuple[str, str], int] = defaultdict(int)
    modules: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in report.coverage:
        if row.status != "linear":
            stops = ", constant" if row.status == "constant" and row.rule != "constant" else ""
            key = _short(row.operation), f"{row.rule or 'none'}{stops}"
            calls[key] += row.times
            modules[key].add(row.module_class)
    rows: list[tuple[str, str, str, str]] = []
    for (operation, rule), count in sorted(calls.items(), key=lambda item: -item[1]):
        names = sorted(modules[operation, rule])
        where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        rows.append((_inert(operation), _inert(rule), _inert(where), str(count)))
    return _titled(title, _Coverage(rows))


@dataclass(frozen=True)
class _Coverage:
    """Which rule each operation had; where there is room, their names are on one line."""

    rows: list[tuple[str, str, str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table("operation", "rule", "in", right=("calls",))
        names = [max(map(cell_len, column)) for column in [*zip(*self.rows, strict=True)][:2]]
        if sum(names) + _BESIDE_NAMES <= options.max_width:
            for column in table.columns[:2]:
                column.no_wrap = True
        for row in self.rows:
            table.add_row(*map(escape, row))
        yield table


def _ledger(report: Report) -> Group:
    table = _table("who", right=("relevance", "share of the target"))
    books = {"the input": report.relevance, **report.absorbed}
    number = _number_format(*books.values(), report.target)
    for name, value in books.items():
        if name == "the input" or abs(value) > 1e-6 * abs(report.target):
            label = name if name == "the input" else f"absorbed: {name}"
            table.add_row(label, number(value), _share(value, report.target))
    table.add_row("the target", number(report.target), _share(report.target, report.target))
    worst = _table("operation", "rule", right=("values at 0", "the rest"))
    rows = report.operations[:MOST_ROWS]
    number = _number_format(*(row.constant for row in rows), *(row.rest for row in rows))
    for row in rows:
        if max(abs(row.constant), abs(row.rest)) > 1e-6 * abs(report.target):
            names = _short(row.operation), row.rule or "none"
            worst.add_row(*map(escape, names), number(row.constant), number(row.rest))
    parts = {
        "ledger: where the relevance of the target went": table,
        "which operations absorbed most, as values at 0 (biases, shifts) or otherwise": worst,
    }
    return Group(*(_titled(title, part) for title, part in parts.items() if part.row_count))


def _layers(report: Report) -> RenderableType:
    table = _table("module", right=("R in", "R out", "Σ|R| in", "Σ|R| out"))
    layers = report.layers
    kept = layers if len(layers) <= 2 * MOST_ROWS else (*layers[:4], *layers[-4:])
    rows = [(b.received, b.passed, b.gross_received, b.gross_passed) for b in kept]
    number = _number_format(*itertools.chain.from_iterable(rows))
    for i, (bound, row) in enumerate(zip(kept, rows, strict=True)):
        if i == 4 and len(kept) < len(layers):
            table.add_row(f"… {len(layers) - len(kept)} more", style="dim")
        table.add_row(escape(_inert(bound.module)), *map(number, row))
    title = "layers in the model's order: relevance R that came in from above and went out below"
    return _titled(title, table)


def _additions(report: Report) -> RenderableType:
    worst = sorted(report.additions, key=lambda addition: -addition.amplification)
    worst = worst[: MOST_ROWS // 2]
    number = _number_format(*(addition.amplification for addition in worst))
    table = _table("module", "code", right=("Σ|R|",))
    for addition in worst:
        table.add_row(
            escape(_inert(addition.module or "the model")),
            escape(_inert(addition.code)),
            f"× {number(addition.amplification)}",
        )
    return _titled("where additions make the most of it: Σ|R| below over Σ|R| above", table)


def _facts(report: Report) -> Padding:
    growth = report.gross / abs(report.target) if report.target else float("inf")
    facts = [f"Σ|R| of the input is {growth:.3g} times the target"]
    if report.sinks is not None:
        sinks = report.sinks
        facts.append(f"on the first token: {sinks.first:.1%} of Σ|R|")
        if sinks.special is not None:
            facts.append(f"on special tokens: {sinks.special:.1%}")
        facts.append(f"on padding: {sinks.padding:.3g}")
    same = "to the bit" if report.forward_identical else "NO"
    facts.append(f"forward as by itself: {same}")
    if (fused := report.fused) is not None:
        units = ", ".join(f"{count} × {name}" for name, count in fused.units.items())
        facts.append(
            f"run as one operation each: {units}; relevance differs from that by the rules within "
            f"by {fused.agreement.relative_error:.2g}"
        )
        if fused.others:
            facts.append(f"by the rules within, for want of a proof: {', '.join(fused.others)}")
    if (check := report.attention) is not None:
        facts.append(
            f"{check.implementation} against {check.other} attention: relative difference "
            f"{check.agreement.relative_error:.2g}"
        )
    if (precise := report.float64) is not None:
        facts.append(
            f"{report.dtype} against float64: correlation {precise.correlation:.5f}, relative "
            f"error {precise.relative_error:.2g}"
        )
    facts += [f"not looked at: {reason}" for reason in report.skipped]
    return Padding(Group(*(Text(_inert(fact)) for fact in facts)), (1, 0, 0, 0))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", header_style="dim")
    for column in right:
        table.add_column(column, justify="right", header_style="dim", no_wrap=True)
    return table


def _titled(title: str, table: RenderableType) -> Padding:
    """A table under its title, which may be wider."""
    return Padding(Group(Text(_inert(title), style="bold"), table), (1, 0, 0, 0))


def _short(operation: str) -> str:
    return operation.replace("torch.nn.functional.", "F.").replace("torch.Tensor.", "Tensor.")


def _number_format(*values: float) -> Callable[[float], str]:
    """Return how to write the numbers of one table, all with the same decimals."""
    signed = number_format(max(map(abs, values), default=0.0))
    return lambda value: signed(value).removeprefix("+")


def _share(value: float, target: float) -> str:
    return f"{value / target:.1%}" if target else "–"


def _inert(text: str) -> str:
    """The text with nothing invisible in it: names and code come from the model."""
    return printable(text)
