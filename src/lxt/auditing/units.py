"""Activations written out in several operations, each with a rule, that are one function.

x · σ(1.702 x) taken apart is a product, which halves relevance between x and the gate; as the one
element-wise function that it is, it has the identity rule (Achtibat et al. 2024, Eq. 9). Both
conserve relevance, so no ledger tells them apart.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from lxt.auditing.advice import nature_of
from lxt.auditing.report import Finding
from lxt.engine.records import Call

__all__ = ["taken_apart"]

_LINEAR = ("passthrough", "linear")
_LINEAR_IN_ONE = ("product", "quotient")


def taken_apart(model: nn.Module, calls: list[Call]) -> list[Finding]:
    """The modules that are element-wise and were not taken for one function, a finding a class."""
    within: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.carriers and call.carries and call.function is not None:
            within[call.callsite.module].append(call)
    modules = dict(model.named_modules())
    found: dict[type, list[Call]] = {}
    for name, inside in within.items():
        module = modules.get(name)
        if not name or module is None or any(module.children()) or type(module) in found:
            continue
        if _is_composed(inside) and _is_elementwise(module, inside[0].operand):
            found[type(module)] = inside
    return [_finding(cls, inside) for cls, inside in found.items()]


def _is_composed(inside: list[Call]) -> bool:
    """Whether operations are several curves or products, or a curve of what was shifted."""
    shifted = False
    bent = set()  # by line, since what runs for each expert is not several
    for call in inside:
        if not _is_linear(call):
            bent.add((call.operation, call.callsite.line))
        elif not bent and call.family == "addition" and call.carriers == 1:
            shifted = True
    return len(bent) > 1 or (shifted and bool(bent))


def _is_linear(call: Call) -> bool:
    return call.rule in _LINEAR or (call.rule in _LINEAR_IN_ONE and call.carriers == 1)


def _is_elementwise(module: nn.Module, like: torch.Tensor) -> bool:
    """Whether a module is element-wise in operands of the shape, type and device of one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, generator=generator).to(like).requires_grad_()
    forward = type(module).forward
    return nature_of(lambda x: forward(module, x), (x,), {}) == "element-wise"


def _finding(cls: type, inside: list[Call]) -> Finding:
    site = inside[0].callsite
    names = list(dict.fromkeys(call.operation.rpartition(".")[2] for call in inside))
    return Finding(
        "activation taken apart",
        f"{cls.__name__} is element-wise as far as can be tried, and was taken for the operations "
        f"that it is written in ({', '.join(names)}): in {site.module or 'the model'}, at "
        f"{site.file}:{site.line}: {site.text}",
        f"composite | {{{cls.__name__}: lxt.rules.unit}}",
    )
