"""The contracts, checked on the tiny model of one type: what a row of the coverage table says."""

from __future__ import annotations

import math
import re
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt.auditing.checks import same
from lxt.auditing.identity import state_of
from lxt.auditing.ledger import Account, Ledger
from lxt.composite import Composite
from lxt.composites import attnlrp, cp_lrp
from lxt.coverage.build import build
from lxt.coverage.catalogue import model_type
from lxt.coverage.exact import ExactFloat64
from lxt.coverage.exceptions import tweak_of
from lxt.coverage.inputs import Example, example
from lxt.coverage.size import Size
from lxt.engine.recorder import Recorder
from lxt.errors import UnknownOperation
from lxt.explicit.composites import explicit_form

__all__ = ["LIMIT", "Row", "Subject", "check", "examine"]

LIMIT = 1e-8
"""The largest relative error in float64 that passes."""

FLOAT32_LIMIT = 1e-3
"""The same in float32."""

EPSILON = 1e-30
"""Of the explicit rules: it absorbs nothing that would be seen, though some values are 1e-12."""

Status = Literal["covered", "failed", "not built"]

_COMPOSITES = (attnlrp, cp_lrp)


@dataclass
class Row:
    """What was found for one model type.

    Attributes:
        name: the type.
        model_class: the class that stands for it.
        task: what it does.
        status: "covered" if every check passed, "not built" if there is no tiny model to check.
        reason: what failed, or why it isn't built.
        operations: how many operations carried relevance.
        forward: "to the bit" in these dtypes.
        attention: the relative difference of relevance between eager and SDPA attention; None
            where the type has but one.
        experts: the largest relative difference of relevance between implementations of a
            mixture of experts, one by one, in a batch (float64) and grouped (float32); None where
            the type has but one.
        explicit: the largest relative difference between efficient and explicit relevance.
        conservation: what is missing or unexplained in the ledger under cp_lrp, relatively.
        note: what else is to be known.
        absorbed: how much of the target each kind of absorber took, as shares of it.
        seconds: that it took.
    """

    name: str
    model_class: str = ""
    task: str = ""
    status: Status = "not built"
    reason: str = ""
    operations: int = 0
    forward: list[str] = field(default_factory=list)
    attention: float | None = None
    experts: float | None = None
    explicit: float | None = None
    conservation: float | None = None
    note: str = ""
    absorbed: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return asdict(self)


def check(name: str, size: Size) -> Row:
    """Build the tiny model of a type and put it to every check; never raises for what it finds."""
    start = time.perf_counter()
    row = Row(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check(row, name, size)
        except Exception as error:  # whatever a model's code raises is what is to be reported
            _fail(row, error)
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def _fail(row: Row, error: Exception) -> None:
    lines = str(error).strip().splitlines() or [""]
    told = lines[: 3 if isinstance(error, UnknownOperation) else 1]
    reason = f"{type(error).__name__}: {' '.join(line.strip() for line in told)}"
    reason = re.sub(
        r"(?:/[^/\s]+)+/([^/\s]+\.py)", r"\1", reason
    )  # whose machine it was is no matter
    row.reason = f"{row.reason}; {reason}" if row.reason else reason


def _check(row: Row, name: str, size: Size) -> None:
    type_ = model_type(name)
    row.model_class, row.task = type_.model_class, type_.task
    with ExactFloat64():
        model = _frozen(build(name, size, torch.float64))
        sample = example(model, name, size)
    row.model_class = type(model).__name__
    subject, relevance = examine(row, model, sample)
    problems = [row.reason] if row.reason else []
    problems += _attention(row, subject, relevance, name, size)
    problems += _experts(row, subject, relevance, name, size)
    problems += _forward(row, name, size)
    row.reason = "; ".join(problems)
    row.status = "failed" if problems else "covered"


def examine(row: Row, model: nn.Module, sample: Example) -> tuple[Subject, list[Tensor]]:
    """Put one model in float64 to the checks that it takes no other model for.

    Args:
        row: what is found goes in here.
        model: any module, its parameters frozen.
        sample: an input of it.

    Returns:
        Model and input, and the relevance of its leaves under AttnLRP.

    """
    with ExactFloat64():
        plain = sample.run(model)
    row.status = "failed"
    subject = Subject(model, sample, plain.detach())
    problems: list[str] = []
    relevance: dict[str, list[Tensor]] = {}
    for composite in _COMPOSITES:
        relevance[composite.name] = found = subject.relevance(composite)
        if not all(r.isfinite().all() for r in found):
            problems.append(f"relevance under {composite.name} is not finite")
        elif not any(r.any() for r in found):
            problems.append(f"relevance under {composite.name} is 0 everywhere")
    problems += subject.traces
    ledger = subject.ledger(cp_lrp)
    row.operations = len(ledger.accounts)
    row.conservation = _conservation(ledger)
    row.absorbed = _shares(ledger)
    if not row.conservation <= LIMIT:
        problems.append(f"conservation under cp_lrp: {row.conservation:.1e}{_worst(ledger)}")
    row.explicit = 0.0
    row.note = tweak_of(row.name).without_explicit
    for composite in (cp_lrp,) if row.note else _COMPOSITES:
        error = _difference(
            subject.relevance(explicit_form(composite, EPSILON)), relevance[composite.name]
        )
        row.explicit = max(row.explicit, error)
        if not error <= LIMIT:
            problems.append(f"explicit {composite.name} differs by {error:.1e}")
    row.reason = "; ".join(problems)
    row.status = "failed" if problems else "covered"
    return subject, relevance["attnlrp"]


def _frozen(model: nn.Module) -> nn.Module:
    """The model, its parameters without gradients: torch has other kernels for a bias with one."""
    model.requires_grad_(False)
    is_double = any(p.dtype is torch.float64 for p in model.parameters())
    return model.double() if is_double else model  # its buffers too, and what is a FloatTensor


@dataclass
class Subject:
    """A model and an input, whose explained number is Σ seed · output."""

    model: nn.Module
    sample: Example
    plain: Tensor
    traces: list[str] = field(default_factory=list)

    def seed(self) -> Tensor:
        """Random weights, of the signs of the output, so that nothing of it cancels."""
        generator = torch.Generator().manual_seed(0)
        weights = torch.rand(self.plain.shape, dtype=torch.float64, generator=generator) + 0.5
        return self.plain.sign() * weights.to(self.plain.dtype)

    def relevance(self, composite: Composite) -> list[Tensor]:
        """The relevance of each leaf."""
        before = state_of(self.model)
        with self._exact(), composite.context(self.model):
            output = self.sample.run(self.model)
        self._compare(composite, output, before)
        explicit = composite.formulation == "relevance"
        seed = self.seed() * output.detach() if explicit else self.seed()
        leaves = list(self.sample.leaves.values())
        gradients = torch.autograd.grad(output, leaves, seed, materialize_grads=True)
        return [
            g if explicit else leaf.detach() * g for leaf, g in zip(leaves, gradients, strict=True)
        ]

    def _exact(self) -> AbstractContextManager[Any]:
        return ExactFloat64() if self.plain.dtype is torch.float64 else nullcontext()

    def _compare(self, composite: Composite, output: Tensor, before: dict[str, Any]) -> None:
        if not same(self.plain, output):
            self.traces.append(f"float64 forward under {composite.name} differs")
        after = state_of(self.model)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if changed:
            self.traces.append(f"{composite.name} left behind: {', '.join(changed[:3])}")

    def ledger(self, composite: Composite) -> Ledger:
        """The accounts of one pass."""
        recorder = Recorder(self.model, composite.formulation)
        with self._exact(), composite.context(self.model) as propagation:
            propagation.observer = recorder
            output = self.sample.run(self.model)
        settlement = recorder.settle(output, self.seed(), self.sample.leaves)
        return Ledger(recorder.calls, settlement)


def _conservation(ledger: Ledger) -> float:
    """What the ledger can't account for, relatively to the target: by operation, and in all."""
    unexplained = sum(abs(account.rest) for account in _unconserving(ledger))
    scale = max(abs(ledger.target), ledger.gross)
    return (unexplained + ledger.imbalance()) / scale if scale else math.nan


def _unconserving(ledger: Ledger) -> list[Account]:
    """The operations that must not absorb more than their constant part.

    Under cp_lrp softmax must not either, since its result is a constant; but its logarithm may.
    """
    return [
        account
        for account in ledger.accounts
        if account.is_unexplained
        or account.call.family in ("attention", "flex")
        or (account.call.family == "softmax" and "log" not in account.call.operation)
    ]


def _worst(ledger: Ledger) -> str:
    account = max(_unconserving(ledger), key=lambda account: abs(account.rest))
    site = account.call.callsite
    return f" (most by {account.call.operation} in {site.module_class}: {site.text})"


def _shares(ledger: Ledger) -> dict[str, float]:
    if not ledger.target:
        return {}
    shares = {name: value / ledger.target for name, value in ledger.absorbed().items()}
    return {name: round(share, 4) for name, share in shares.items() if abs(share) > 1e-6}


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    error = sum((a - b).norm() ** 2 for a, b in zip(found, expected, strict=True))
    size = sum(b.norm() ** 2 for b in expected)
    return float((error / size) ** 0.5)


def _attention(
    row: Row, subject: Subject, relevance: list[Tensor], name: str, size: Size
) -> list[str]:
    """Eager and SDPA attention must give the same, where the type has both."""
    if not getattr(type(subject.model), "_supports_sdpa", False):
        return []
    now = subject.model.config._attn_implementation  # pyright: ignore[reportAttributeAccessIssue]
    other = "eager" if now == "sdpa" else "sdpa"
    try:
        with ExactFloat64():
            model = _frozen(build(name, size, torch.float64, attention=other))
    except (ValueError, ImportError):
        return []
    with ExactFloat64():
        plain = subject.sample.run(model).detach()
    own = float((plain - subject.plain).norm() / subject.plain.norm())
    if not own <= LIMIT:
        row.note = f"eager and SDPA attention of transformers differ by {own:.1e}"
        return []
    other_relevance = Subject(model, subject.sample, plain).relevance(attnlrp)
    row.attention = _difference(other_relevance, relevance)
    if row.attention > LIMIT:
        return [f"relevance under {other} attention differs by {row.attention:.1e}"]
    return []


def _experts(
    row: Row, subject: Subject, relevance: list[Tensor], name: str, size: Size
) -> list[str]:
    """A mixture of experts must give the same however its experts are called."""
    model: Any = subject.model
    if not getattr(model, "_can_set_experts_implementation", bool)():
        return []
    model.set_experts_implementation("batched_mm")
    with ExactFloat64():
        plain = subject.sample.run(model).detach()
    batched = Subject(model, subject.sample, plain).relevance(attnlrp)
    row.experts = _difference(batched, relevance)
    problems = []
    if not row.experts <= LIMIT:
        problems.append(f"experts in a batch differ by {row.experts:.1e}")
    # Grouped products of matrices know no float64.
    model = _frozen(build(name, size, torch.float32))
    sample = example(model, name, size)
    found = []
    for implementation in ("eager", "grouped_mm"):
        model.set_experts_implementation(implementation)
        found.append(Subject(model, sample, sample.run(model).detach()).relevance(attnlrp))
    grouped = _difference(found[1], found[0])
    row.experts = max(row.experts, grouped)
    if not grouped <= FLOAT32_LIMIT:
        problems.append(f"grouped experts differ by {grouped:.1e} in float32")
    return problems


def _forward(row: Row, name: str, size: Size) -> list[str]:
    """The forward is that of the model by itself, to the bit, in every dtype that it runs in."""
    problems = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        label = str(dtype).removeprefix("torch.")
        try:
            model = _frozen(build(name, size, dtype))
            sample = example(model, name, size)
            plain = sample.run(model).detach()
        except Exception:  # the model itself doesn't run in this dtype
            continue
        if not same(plain, sample.run(model)):
            continue  # it draws random numbers
        for composite in _COMPOSITES:
            with composite.context(model):
                output = sample.run(model)
            if not same(plain, output):
                problems.append(f"{label} forward under {composite.name} differs")
        row.forward.append(label)
    return problems
