"""Element-wise functions: those taken apart that are one, and those taken for one that are none.

x · σ(1.702 x) taken apart is a product, which halves relevance between x and the gate; as the one
element-wise function that it is, it has the identity rule (Achtibat et al. 2024, Eq. 9). Both
conserve relevance, so no ledger tells them apart. Nor does one tell that a softmax has the rule of
an element-wise function, which hands each element the relevance in its place.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from lxt.auditing.advice import line_for, nature_of
from lxt.auditing.elementwise import is_elementwise
from lxt.auditing.report import Finding
from lxt.engine.records import Call

__all__ = ["taken_apart", "units_that_are_none"]

_LINEAR = ("passthrough", "linear")
_LINEAR_IN_ONE = ("product", "gated_product", "quotient")


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
        if not name or module is None or type(module) in found:
            continue
        if any(module.children()) or isinstance(module, torch.jit.ScriptModule):
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


def units_that_are_none(calls: list[Call]) -> list[Finding]:
    """Operations under a rule for element-wise functions that are none, a finding each."""
    return [
        _none(call)
        for call in calls
        if call.as_unit is not None and is_elementwise(call.as_unit, *call.arguments) is False
    ]


def _none(call: Call) -> Finding:
    site = call.callsite
    assert call.as_unit is not None
    line = line_for(call.operation, nature_of(call.as_unit, *call.arguments))
    if isinstance(call.function, type):
        line += f"; or no rule for {call.operation}, so that the operations within have their own"
    return Finding(
        "unit that is not element-wise",
        f"{call.operation} has the rule {call.rule}, which is for element-wise functions, and "
        "mixes the elements of its operand, or gives the result another shape: in "
        f"{site.module or 'the model'} ({site.module_class}), at {site.file}:{site.line}: "
        f"{site.text}",
        line,
    )
