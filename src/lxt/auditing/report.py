"""What an audit found out, as values: to print, to save, and to decide by."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lxt.auditing.identity import Agreement
from lxt.auditing.ledger import Boundary, Ledger
from lxt.auditing.sinks import Sinks
from lxt.storage import check_writable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Addition", "AttentionCheck", "Covered", "Finding", "Operation", "Report", "Status"]

SCHEMA = 1

Status = Literal["rule", "linear", "constant", "unknown"]
"""How an operation is covered: by a rule of its own; by autograd's gradient, under which it proved
linear; its result counts as a constant; or not at all."""


@dataclass(frozen=True)
class Covered:
    """An operation at one line of code, and what became of it.

    Attributes:
        operation: its name as one writes it for a target.
        status: how it is covered.
        rule: the name of its rule; None if it has none.
        module: the path of the module that called it; numbers of layers are written as *.
        module_class: its class.
        file: the file that the line is in.
        line: the number of the line.
        code: its text.
        times: how often it ran.
    """

    operation: str
    status: Status
    rule: str | None
    module: str
    module_class: str
    file: str
    line: int
    code: str
    times: int


@dataclass(frozen=True)
class Operation:
    """The accounts of all calls of one operation under one rule, added up."""

    operation: str
    rule: str | None
    received: float
    passed: float
    constant: float
    rest: float


@dataclass(frozen=True)
class Addition:
    """A sum of two branches: Σ|R| of both over Σ|R| of the sum (Berend et al. 2026).

    Above 1 its branches cancel, and relevance of both signs grows towards the input.
    """

    module: str
    code: str
    received: float
    passed: float

    @property
    def amplification(self) -> float:
        """Σ|R| in over Σ|R| out."""
        return self.passed / self.received if self.received else math.inf


@dataclass(frozen=True)
class AttentionCheck:
    """How near the relevance is to that of another implementation of attention."""

    implementation: str
    other: str
    agreement: Agreement


@dataclass(frozen=True)
class FusedCheck:
    """Modules that run as one operation each, and how near that is to the rules within.

    Attributes:
        units: how many there are, by what they run as.
        others: classes of modules of like structure that run by the rules of the operations within,
            since no unit was proven to be the same.
        agreement: of the relevance with and without them.
        forward_identical: whether the output is the same, to the bit.

    """

    units: dict[str, int]
    others: tuple[str, ...]
    agreement: Agreement
    forward_identical: bool


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: in a few words.
        text: what, where, and how much.
        line: the line to write, if one would mend it.
    """

    kind: str
    text: str
    line: str | None = None


@dataclass(frozen=True)
class Report:
    """The audit of one model and input; printing it shows it.

    Attributes:
        model: its class.
        composite: the rules.
        dtype: of its parameters.
        target: what was explained, as a number.
        relevance: Σ R of the input.
        gross: Σ|R| of the input.
        coverage: the operations on the path of relevance.
        absorbed: Σ R that each kind of absorber kept. With `relevance` they add up to `target`.
        operations: the accounts by operation, those that absorbed most first.
        layers: what entered and left each layer, in the order of the model's modules.
        additions: residual additions in the order in which they ran.
        sinks: where relevance lies, for tokens.
        forward_identical: whether the output was that of the model by itself, to the bit.
        fused: modules that run as one operation, if there are any; all else was measured without.
        attention: the comparison with the other implementation of attention, if there is one.
        float64: the comparison with the same weights in float64, if it was made.
        findings: what is wrong; empty if the model is sound.
        skipped: what was not looked at, and why.
        ledger: the accounts of every operation.
    """

    model: str
    composite: str
    dtype: str
    target: float
    relevance: float
    gross: float
    coverage: tuple[Covered, ...]
    absorbed: dict[str, float]
    operations: tuple[Operation, ...]
    layers: tuple[Boundary, ...]
    additions: tuple[Addition, ...]
    sinks: Sinks | None
    forward_identical: bool
    fused: FusedCheck | None
    attention: AttentionCheck | None
    float64: Agreement | None
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    ledger: Ledger = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def counts(self) -> dict[Status, int]:
        """How many calls are covered in which way."""
        counts: dict[Status, int] = {"rule": 0, "linear": 0, "constant": 0, "unknown": 0}
        for covered in self.coverage:
            counts[covered.status] += covered.times
        return counts

    def to_dict(self) -> dict[str, Any]:
        """All but the ledger, as JSON has it: numbers that are not finite are None."""
        document: dict[str, Any] = {"schema": SCHEMA, "ok": self.ok, "counts": self.counts()}
        for name in self.__dataclass_fields__:
            if name != "ledger":
                document[name] = _plain(getattr(self, name))
        for row, addition in zip(document["additions"], self.additions, strict=True):
            row["amplification"] = _plain(addition.amplification)
        return document

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON, written to a file if there is a path.

        Raises:
            UnwritableFile: the path can't be written.

        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        if path is not None:
            check_writable(path)
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def __str__(self) -> str:
        from lxt.views.audit import as_text

        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from lxt.views.audit import renderables

        yield from renderables(self)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    return value
