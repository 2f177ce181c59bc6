"""What an audit asks of a model, each as the findings that it comes to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lxt.auditing.hidden import Origins, hidden_dependences, nudged
from lxt.auditing.identity import Agreement
from lxt.auditing.ledger import Ledger
from lxt.auditing.report import AttentionCheck, Finding, FusedCheck
from lxt.auditing.sinks import Sinks, sinks_of
from lxt.composite import Composite
from lxt.engine.callsite import Callsite
from lxt.engine.parameters import ConstantParameters
from lxt.engine.records import Escape
from lxt.passes import Case, Change, Pass
from lxt.text_case import TextCase

__all__ = [
    "attention",
    "buffers_of",
    "by_itself",
    "escapes",
    "explosion",
    "hidden",
    "narrowest",
    "precision",
    "same",
    "sinks",
    "soundness",
    "tolerance",
    "updated",
    "where",
]

# Rounding, as a share of Σ|R|. Models in float64 compute norms and softmax in float32 all the same.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}
_HALF = 5e-2

_LOST_TO_GROWTH = 0.1
"""The share of the target that rounding of relevance may come to, which cancels but for the target.
"""

_SMALL_ERROR = 0.2
"""The relative error under which relevance is that of float64, for those who look at it."""

_LEAST_CORRELATION = 0.95
"""Under it, rounding decides which parts of the input seem to matter."""


def narrowest(model: nn.Module) -> torch.dtype:
    """The floating-point type of the model's parameters with the fewest digits."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())


def tolerance(output: torch.dtype, model: nn.Module) -> float:
    """The share of Σ|R| that rounding may lose in one operation."""
    dtype = max(narrowest(model), output, key=lambda dtype: torch.finfo(dtype).eps)
    return _TOLERANCES.get(dtype, _HALF)


def by_itself(case: Case) -> Tensor:
    """What is explained, of the model by itself.

    Its parameters don't require grad, as under rules: torch computes attention by another kernel
    where a bias of it does.
    """
    constants = ConstantParameters(case.model.modules())
    try:
        return case.forward().output.detach()
    finally:
        constants.release()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit, where NaN is equal to NaN."""
    b = b.detach()
    return (
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all())
    )


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers of a model."""
    return {
        name: buffer.detach().clone()
        for name, buffer in model.named_buffers()
        if not buffer.is_meta and buffer.layout is torch.strided
    }


def updated(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """The buffers that have other values than before."""
    now = buffers_of(model)
    return [name for name, x in before.items() if name in now and not same(x, now[name])]


def soundness(
    ledger: Ledger,
    identical: bool,
    repeatable: bool,
    updated: list[str],
    after: dict[str, Any],
    before: dict[str, Any],
) -> list[Finding]:
    """Of the pass as a whole: its forward, its books, its size, and what it left behind."""
    found = []
    if not repeatable and updated:
        found.append(
            Finding(
                "state that changes",
                "two forward passes on the same input differ, so nothing can be compared, and each "
                f"updates these buffers: {', '.join(updated)}: call model.eval(), and make the "
                "forward leave them alone there",
            )
        )
    elif not repeatable:
        found.append(
            Finding(
                "random forward",
                "two forward passes on the same input differ, so nothing can be compared: call "
                "model.eval(), and switch off what draws random numbers",
            )
        )
    elif not identical:
        found.append(
            Finding("other forward", "the output under the rules is not that of the model itself")
        )
    if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        found.append(Finding("trace left", f"afterwards these have changed: {', '.join(changed)}"))
    numbers = torch.tensor([ledger.target, ledger.relevance, ledger.gross])
    if not numbers.isfinite().all():
        found.append(
            Finding("relevance not finite", f"the input's relevance is {ledger.relevance}")
        )
        return found
    scale = max(abs(ledger.target), ledger.gross)
    if ledger.imbalance() > 1e-3 * scale:
        found.append(
            Finding(
                "books that do not close",
                f"the target {ledger.target:.6g} differs by {ledger.imbalance():.3g} from the "
                "relevance of the input and all that was absorbed",
            )
        )
    return found


def explosion(ledger: Ledger, precise: Agreement | None) -> list[Finding]:
    """Whether relevance grows beyond its digits, unless float64 shows that it comes out right."""
    if not math.isfinite(ledger.gross) or not math.isfinite(ledger.target):
        return []
    if (
        precise is not None
        and precise.correlation >= _LEAST_CORRELATION
        and precise.relative_error <= _SMALL_ERROR
    ):
        return []
    growth = ledger.gross / abs(ledger.target) if ledger.target else 0.0
    if growth * ledger.epsilon_of_input <= _LOST_TO_GROWTH:
        return []
    return [
        Finding(
            "relevance explodes",
            f"Σ|R| of the input is {growth:.3g} times the target, beyond the digits of its "
            "type: run the model in a wider dtype",
        )
    ]


def escapes(escaped: list[Escape]) -> list[Finding]:
    """Calls that hand values to where no rule sees them, which is an error outside an audit."""
    places = {(e.operation, e.callsite.file, e.callsite.line): e for e in escaped}
    return [
        Finding(
            "values out of sight",
            f"{e.operation}: {e.reason}, {where(e.callsite)}",
            (
                "torch functions of x.detach() instead"
                if "memory" in e.reason
                else ".detach() before it"
            )
            + " if it is to be a constant; otherwise a module of its own with a rule: "
            "composite | {MyModule: my_rule}",
        )
        for e in places.values()
    ]


def where(site: Callsite) -> str:
    """A place in a model's code, for a message."""
    return (
        f"in {site.module or 'the model'} ({site.module_class}), at {site.file}:{site.line}: "
        f"{site.text}"
    )


def hidden(case: Case, composite: Composite) -> list[Finding]:
    """Constants that change with the input though no operation says how."""
    passes = []
    for change in (None, nudged):
        origins = Origins(case.model)
        _watched(case, composite, origins, change)
        passes.append(origins)
    reports = {
        (h.operation, h.callsite.file, h.callsite.line): h for h in hidden_dependences(*passes)
    }
    return [
        Finding(
            "hidden dependence",
            f"operand {h.operand + 1} of {h.operation} is {h.what}, and changes with the input, "
            f"so that relevance through it is lost {where(h.callsite)}",
            "write what makes it with torch functions, of x.detach() if it is to be a constant, or "
            "as a module with a rule: composite | {MyModule: my_rule}",
        )
        for h in reports.values()
    ]


def _watched(case: Case, composite: Composite, origins: Origins, change: Change | None) -> None:
    propagation = composite.register(case.model, on_unknown="gradient")
    propagation.observer = origins
    try:
        case.forward(change)
    finally:
        propagation.remove()


def attention(check: AttentionCheck, tolerance: float) -> list[Finding]:
    """Relevance must not depend on the kernel that computes attention."""
    if check.agreement.relative_error <= 10 * tolerance:
        return []
    return [
        Finding(
            "attention disagrees",
            f"relevance under {check.other} attention differs from that under "
            f"{check.implementation} by {check.agreement.relative_error:.3g}, relatively "
            f"(correlation {check.agreement.correlation:.4f})",
        )
    ]


def fused(check: FusedCheck, tolerance: float) -> list[Finding]:
    """A module that runs as one operation must be the same as the operations within."""
    if check.forward_identical and check.agreement.relative_error <= 10 * tolerance:
        return []
    names = ", ".join(check.units)
    differs = "the output" if not check.forward_identical else "relevance"
    return [
        Finding(
            "a fused unit disagrees",
            f"{differs} with modules as one operation ({names}) differs from that by the rules "
            f"within: relevance by {check.agreement.relative_error:.3g}, relatively",
            "composite.context(model, fuse=False)",
        )
    ]


def precision(agreement: Agreement) -> list[Finding]:
    """Relevance in this type must look like that in float64."""
    if agreement.correlation >= _LEAST_CORRELATION:
        return []
    return [
        Finding(
            "too few digits",
            f"relevance correlates with that of the same weights in float64 by "
            f"{agreement.correlation:.3f} only (relative error {agreement.relative_error:.3g}): "
            "run the model in a wider dtype",
        )
    ]


def sinks(
    case: Case, run: Pass, gradients: list[Tensor], composite: Composite, tokenizer: Any
) -> Sinks | None:
    """Where the relevance of tokens gathers; None for a case without tokens."""
    if not isinstance(case, TextCase):
        return None
    (leaf,), (gradient,) = run.leaves.values(), gradients
    explicit = composite.formulation == "relevance"
    wide = gradient.double()
    relevance = (wide if explicit else leaf.detach().double() * wide).sum(-1).cpu()
    batch = case.batch
    return sinks_of(
        relevance,
        batch.right_padded(batch.ids),
        batch.right_padded(batch.mask).bool(),
        tokenizer,
    )
