"""Which operation had which rule, and what to write for those that had none."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

from lxt.auditing.advice import line_for, module_behind, nature_of
from lxt.auditing.ledger import Account, Ledger
from lxt.auditing.report import Covered, Finding, Status
from lxt.engine.records import HANDED_ON, Call

__all__ = ["leaks", "rows", "unknown"]

_WRITTEN = "with my_rule written as docs/your-own-model.md shows"


def rows(ledger: Ledger, tolerance: float) -> list[Covered]:
    """The operations that carry relevance or stop it, those of the same line counted together."""
    unlinear = {id(account.call) for account in ledger.accounts if _leaks(account, tolerance)}
    grouped: dict[tuple[Any, ...], list[Call]] = defaultdict(list)
    for call in ledger.calls:
        if not call.carriers or call.rule == HANDED_ON:
            continue
        status = _status(call, id(call) in unlinear)
        grouped[status, call.operation, call.rule, _pattern(call), call.callsite.line].append(call)
    order: dict[Status, int] = {"unknown": 0, "rule": 1, "linear": 2, "constant": 3}
    found = [
        Covered(
            call.operation,
            status,
            call.rule,
            _pattern(call),
            call.callsite.module_class,
            call.callsite.file,
            call.callsite.line,
            call.callsite.text,
            len(calls),
        )
        for (status, *_), calls in grouped.items()
        for call in calls[:1]
    ]
    return sorted(found, key=lambda row: (order[row.status], -row.times))


def leaks(ledger: Ledger, tolerance: float) -> list[Finding]:
    """The operations that lose or make relevance under the rule that they have."""
    leaks: dict[tuple[str, str, int], list[Account]] = defaultdict(list)
    for account in ledger.accounts:
        if account.call.rule is not None and _leaks(account, tolerance):
            site = account.call.callsite
            leaks[account.call.operation, site.file, site.line].append(account)
    return [_leak(accounts) for accounts in leaks.values()]


def unknown(model: nn.Module, ledger: Ledger) -> list[Finding]:
    """The operations on the path of relevance that have no rule."""
    unknown: dict[tuple[str, str, int], list[Call]] = defaultdict(list)
    for call in ledger.calls:
        if call.rule is None and call.carries:
            unknown[call.operation, call.callsite.file, call.callsite.line].append(call)
    return [_unknown(model, calls) for calls in unknown.values()]


def _status(call: Call, leaks: bool) -> Status:
    if not call.carries:
        return "constant"
    if call.rule is None:
        return "unknown"
    return "linear" if call.rule == "passthrough" and not leaks else "rule"


def _pattern(call: Call) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", call.callsite.module)


def _leaks(account: Account, tolerance: float) -> bool:
    """Whether an operation lost or made relevance that nothing accounts for."""
    scale = max(account.gross_received, account.gross_passed)
    return account.is_unexplained and abs(account.rest) > tolerance * scale


def _where(call: Call, times: int) -> str:
    site = call.callsite
    often = f", {times} times" if times > 1 else ""
    return (
        f"in {_pattern(call) or 'the model'} ({site.module_class}){often}, at "
        f"{site.file}:{site.line}: {site.text}"
    )


def _unknown(model: nn.Module, calls: list[Call]) -> Finding:
    call = calls[0]
    where = _where(call, len(calls))
    if call.function is None and not call.refusal:
        node = call.operation.removesuffix("Backward")
        module = module_behind(model, node)
        target = "MyModule" if module is None else type(module).__name__
        hint = "call it in a module of its own" if module is None else f"{target} calls it"
        return Finding(
            "unknown operation",
            f"{node} is no torch function but an autograd Function, scripted code or an extension "
            f"({hint}); it ran before this {where}",
            f"composite | {{{target}: lxt.rules.unit}} if it is element-wise, "
            f"{{{target}: lxt.rules.passthrough}} if it is linear, or {{{target}: my_rule}}, "
            f"{_WRITTEN}",
        )
    if call.refusal:
        return Finding(
            "call that a rule refuses",
            f"{call.refusal} {where}",
            line_for(call.operation, None),
        )
    nature = nature_of(call.function, *call.arguments) if call.function else None
    is_what = f", {nature} as far as can be tried," if nature else ""
    return Finding(
        "unknown operation",
        f"{call.operation}{is_what} has no rule {where}",
        line_for(call.operation, nature),
    )


def _leak(accounts: list[Account]) -> Finding:
    worst = max(accounts, key=lambda account: abs(account.rest))
    return Finding(
        "relevance lost or made",
        f"{worst.call.operation} under the rule {worst.call.rule} received "
        f"{worst.received:.4g}, handed on {worst.passed:.4g} and absorbs {worst.constant:.4g} by "
        f"right: {worst.rest:.3g} is unexplained {_where(worst.call, len(accounts))}",
        "composite | "
        f"{{{worst.call.operation}: my_rule}} with a rule that conserves: lxt.testing.check_rule "
        "tells",
    )
