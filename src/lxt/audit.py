"""`audit`: whether the rules hold for one model and input, shown instead of assumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lxt.auditing import checks, coverage
from lxt.auditing.identity import (
    agreement,
    attention_of,
    fits_in_float64,
    in_float64,
    other_attention,
    relevance_of,
    state_of,
)
from lxt.auditing.ledger import Boundary, Ledger
from lxt.auditing.recording import recorded
from lxt.auditing.report import (
    Addition,
    AttentionCheck,
    Finding,
    FusedCheck,
    Operation,
    Report,
)
from lxt.auditing.units import taken_apart, units_that_are_none
from lxt.composite import Composite
from lxt.composites import as_composite
from lxt.engine.compiled import as_written
from lxt.errors import InvalidModel
from lxt.passes import Case, Pass
from lxt.targets import Target
from lxt.tensor_case import TensorCase, TensorTarget
from lxt.text_case import TextCase

__all__ = ["audit", "audit_case"]

FLOAT64_LIMIT = 4 * 2**30
"""The bytes that a copy of the model in float64 may take."""

Progress = Callable[[str], None]


def audit(
    model: nn.Module,
    inputs: Any,
    target: Target | TensorTarget = None,
    composite: Composite | str | None = None,
    *,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Say whether relevance of this model can be trusted, and if not, what to write.

    The model runs a few times, forward and backward, with a ledger of every operation: which rule
    it had, what relevance it received and handed on, and who absorbed the rest. The forward must
    be that of the model by itself to the bit, and relevance that of the other implementation of
    attention; how far it is from that of the same weights in float64 is measured.

    Args:
        model: any module.
        inputs: what `lxt.explain` takes; or, for any other model, what its forward takes: a tensor,
            a tuple of arguments or a mapping, in which tensors of floating-point numbers are
            explained.
        target: what `lxt.explain` takes; or an index into the last axis of the output, or a
            function from the output to the tensor to explain. By default the model's prediction,
            or its largest output.
        composite: the rules, or the name of a preset; `lxt.attnlrp` by default.
        tokenizer: reads texts, and says which tokens are special.
        progress: called with a few words before each stage.

    Returns:
        The report: `report.ok`, `report.findings`, and all that was measured.

    Raises:
        InvalidModel, InvalidInput, InvalidTarget, InvalidComposite: as for `lxt.explain`.
        AlreadyRegistered: the model is under a composite.
        NonFiniteLogits: the explained numbers hold NaN or infinity.

    """
    case = _case(model, inputs, target, tokenizer)
    rules = as_composite("attnlrp" if composite is None else composite)
    return audit_case(case, rules, tokenizer=tokenizer, progress=progress)


def _case(model: nn.Module, inputs: Any, target: Any, tokenizer: Any) -> Case:
    is_text = isinstance(inputs, str) or (
        isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)
    )
    if isinstance(target, Target) or is_text:
        return TextCase(model, inputs, tokenizer=tokenizer, target=target)
    if target is None and _holds_only_ids(inputs):
        try:
            return TextCase(model, inputs, tokenizer=tokenizer)
        except InvalidModel:
            pass  # it puts out something else than logits of tokens or labels
    return TensorCase(model, inputs, target=target)


def _holds_only_ids(inputs: Any) -> bool:
    if hasattr(inputs, "keys"):
        others = {"input_ids", "attention_mask", "token_type_ids"}
        return "input_ids" in inputs and set(inputs) <= others
    return isinstance(inputs, list) or (
        isinstance(inputs, torch.Tensor)
        and not inputs.is_floating_point()
        and not inputs.is_complex()
    )


def audit_case(
    case: Case,
    composite: Composite,
    *,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Report:
    """`audit` for a case of one's own."""
    return as_written(_report, case, composite, tokenizer, progress)


@torch.inference_mode(False)  # and with gradients, whatever the caller has switched off
@torch.enable_grad()
def _report(case: Case, composite: Composite, tokenizer: Any, progress: Progress | None) -> Report:
    stage = progress or (lambda _: None)
    model = case.model
    findings: list[Finding] = []
    skipped: list[str] = []

    stage("the model by itself")
    before = state_of(model)
    buffers = checks.buffers_of(model)
    plain, again = checks.by_itself(case), checks.by_itself(case)
    repeatable, updated = checks.same(plain, again), checks.updated(model, buffers)

    stage(f"forward and backward under {composite.name}, with a ledger")
    record = recorded(case, composite)
    run = record.run
    ledger = Ledger(record.calls, record.settlement, epsilon=composite.formulation == "relevance")
    tolerance = checks.tolerance(run.output.dtype, model)
    covered = coverage.rows(ledger, tolerance)
    identical = checks.same(plain, run.output)
    findings += coverage.leaks(ledger, tolerance)
    if composite.on_unknown != "gradient":  # which is an author's choice, and none of this audit's
        findings += coverage.unknown(model, ledger)
    findings += checks.soundness(ledger, identical, repeatable, updated, state_of(model), before)

    stage("dependence that no operation shows")
    findings += taken_apart(model, ledger.calls)
    findings += units_that_are_none(ledger.calls)
    findings += checks.escapes(record.escaped)
    findings += checks.hidden(case, composite)

    stage("modules that run as one operation")
    relevance = _relevance(case, composite, run.seed)
    fused = _fused(case, composite, run, relevance)
    if fused is not None:
        findings += checks.fused(fused, tolerance)

    stage("other implementations of attention")
    attention = None
    if (now := attention_of(model)) is not None:
        with other_attention(model) as other:
            if other is None:
                skipped.append(f"attention: {type(model).__name__} has none but {now}")
            else:
                compared = agreement(_relevance(case, composite, run.seed), relevance)
                attention = AttentionCheck(now, other, compared)
                findings += checks.attention(attention, tolerance)

    stage("the same weights in float64")
    precise = None
    if checks.narrowest(model) is torch.float64:
        skipped.append("float64: the model is in float64")
    elif not any(p.is_floating_point() for p in model.parameters()):
        skipped.append("float64: the model has no weights")
    elif not fits_in_float64(model, FLOAT64_LIMIT):
        skipped.append(f"float64: a copy would take more than {FLOAT64_LIMIT // 2**30} GiB")
    else:
        try:
            precise = agreement(relevance, _relevance(in_float64(case), composite, run.seed))
        except Exception as error:  # a model's own code may insist on a dtype
            skipped.append(f"float64: {type(error).__name__}: {str(error).splitlines()[0]}")
        else:
            findings += checks.precision(precise)

    findings += checks.explosion(ledger, precise)
    sinks = checks.sinks(case, run, record.settlement.gradients, composite, tokenizer)
    if sinks is not None and sinks.padding:
        findings.append(
            Finding("relevance on padding", f"Σ|R| on padding is {sinks.padding:.3g}, not 0")
        )
    return Report(
        model=type(model).__name__,
        composite=composite.name,
        dtype=str(checks.narrowest(model)).removeprefix("torch."),
        target=ledger.target,
        relevance=ledger.relevance,
        gross=ledger.gross,
        coverage=tuple(covered),
        absorbed=ledger.absorbed(),
        operations=tuple(_operations(ledger)),
        layers=tuple(_layers(model, ledger)),
        additions=tuple(_additions(ledger)),
        sinks=sinks,
        forward_identical=identical,
        fused=fused,
        attention=attention,
        float64=precise,
        findings=tuple(findings),
        skipped=tuple(skipped),
        ledger=ledger,
    )


def _fused(
    case: Case, composite: Composite, run: Pass, relevance: torch.Tensor
) -> FusedCheck | None:
    """The modules that run as one operation, whose relevance is given, against the rules within."""
    with composite.context(case.model, on_unknown="gradient") as propagation:
        fast = case.forward()
        units = propagation.fused
        others = propagation.unproven
    if not units:
        return None
    by_rules = _relevance(case, composite, run.seed, fuse=False)
    return FusedCheck(
        dict(Counter(units.values())),
        tuple(sorted(others)),
        agreement(relevance, by_rules),
        checks.same(run.output, fast.output),
    )


def _relevance(
    case: Case, composite: Composite, seed: torch.Tensor, *, fuse: bool = True
) -> torch.Tensor:
    """The relevance of what `seed` weighs: another type or kernel may predict something else."""
    with composite.context(case.model, on_unknown="gradient", fuse=fuse):
        run = case.forward()
    return relevance_of(replace(run, seed=seed.to(run.output)), composite)


def _operations(ledger: Ledger) -> list[Operation]:
    totals = ledger.by(lambda account: f"{account.call.operation}\0{account.call.rule}")
    rows = [
        Operation(a.call.operation, a.call.rule, a.received, a.passed, a.constant, a.rest)
        for a in totals.values()
    ]
    return sorted(rows, key=lambda row: -abs(row.received - row.passed))


def _additions(ledger: Ledger) -> list[Addition]:
    return [
        Addition(
            account.call.callsite.module,
            account.call.callsite.text,
            account.gross_received,
            account.gross_passed,
        )
        for account in ledger.residual_additions()
        if account.gross_received
    ]


def _layers(model: nn.Module, ledger: Ledger) -> list[Boundary]:
    """The blocks of the model: what the outermost lists of modules hold."""
    chosen: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if not any(name.startswith(f"{layer}.") for layer in chosen):
            chosen += [f"{name}.{n}".lstrip(".") for n in range(len(module))]
    bounds = [ledger.boundary(name) for name in chosen]
    return [bound for bound in bounds if bound.gross_received or bound.gross_passed]
