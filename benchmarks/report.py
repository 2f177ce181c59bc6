"""What was measured: tables for a person, the same in Markdown, and all of it as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lxt
from measure import Spread


@dataclass
class Table:
    """Rows of cells under a title, the first column of words and the others of numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(list(cells))

    def markdown(self) -> str:
        """The table as it goes into RESULTS.md."""
        lines = [self.columns, ["---"] + ["--:"] * (len(self.columns) - 1), *self.rows]
        body = "\n".join(f"| {' | '.join(c.replace('|', '¦') for c in line)} |" for line in lines)
        return f"### {self.title}\n\n{body}"


@dataclass
class Report:
    """Tables, notes, and where and how it was measured.

    Attributes:
        title: of the whole.
        tables: in their order.
        notes: what the reader has to know about the figures.
        machine: of the worker that measured first, as `measure.Machine` describes it.
        data: everything, for JSON.

    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)

    def measured_on(self, result: dict[str, Any]) -> None:
        """Take down the machine of a worker's result, unless there is one."""
        self.machine = self.machine or result["machine"]

    def finish(self, options: Namespace) -> None:
        """Print, and write what the options ask for."""
        if options.json:
            content = {
                "command": command(),
                "lxt": lxt.__version__,
                "machine": self.machine,
                "notes": self.notes,
                "results": self.data,
            }
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if options.markdown:
            print(self.markdown())
        else:
            self.show()

    def place(self) -> str:
        """The machine in a line."""
        m = self.machine
        if not m:
            return "nothing could be measured"
        where = m["accelerator"] or f"{m['processor']}, {m['threads']} threads"
        return (
            f"{where}, {m['memory_gib']:g} GiB, {m['system']}, lxt {lxt.__version__}, "
            f"torch {m['torch']}, transformers {m['transformers']}, Python {m['python']}, "
            f"{m['date']}"
        )

    def markdown(self) -> str:
        """All of it in Markdown."""
        parts = [f"## {self.title}", f"`{command()}`  \n{self.place()}"]
        parts += [table.markdown() for table in self.tables]
        parts += [f"- {note}" for note in self.notes]
        return "\n\n".join(parts[: 2 + len(self.tables)]) + (
            "\n\n" + "\n".join(parts[2 + len(self.tables) :]) if self.notes else ""
        )

    def show(self) -> None:
        """All of it in the terminal."""
        from rich.console import Console
        from rich.table import Table as Grid

        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(f"{self.title}\n{self.place()}", highlight=False)
        for table in self.tables:
            grid = Grid(title=table.title, title_justify="left")
            for index, column in enumerate(table.columns):
                grid.add_column(column, justify="right" if index else "left", overflow="fold")
            for row in table.rows:
                grid.add_row(*row)
            console.print(grid)
        for note in self.notes:
            console.print(f"- {note}", highlight=False)


def command() -> str:
    """The command that is running, without what only says where its output goes."""
    arguments = sys.argv[1:]
    kept: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--json":
            arguments[:1] = []
        elif argument != "--markdown" and not argument.startswith("--json="):
            kept.append(argument)
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return shlex.join(["python", script, *kept])


NOTHING = "–"


def megabytes(size: int | None) -> str:
    """10⁶ bytes."""
    return NOTHING if size is None else f"{size / 1e6:,.1f}"


def seconds(values: Iterable[float]) -> str:
    """The median of some times."""
    return short(Spread.of(values).median)


def short(number: float) -> str:
    """Three digits that count, or all that stand before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def spread(value: Spread) -> str:
    """A median and its quartiles."""
    return f"{value.median:.2f} ({value.low:.2f}–{value.high:.2f})"


def share(size: int | None, base: int | None) -> str:
    """A size as a multiple of another one."""
    return NOTHING if size is None or not base else f"{size / base:.2f}"
