"""The error for an operation without a rule: what it is, where it is, and the line to write."""

from __future__ import annotations

from typing import Any

from torch import nn

from lxt.engine.callsite import describe_callsite
from lxt.entries import target_name
from lxt.errors import UnknownOperation

__all__ = ["unknown_node", "unknown_operation"]


def unknown_operation(
    model: nn.Module, composite: str, operation: Any, reason: str | None = None
) -> UnknownOperation:
    """The error for a torch function that has no rule, or whose rule refuses a call."""
    name = target_name(operation)
    if reason:
        what = f"the rule of {name} in {composite!r} does not cover this call: {reason}"
        hint = f"  write one that does:  composite | {{{name}: my_rule}}\n"
    else:
        what = f"{name} has no rule in composite {composite!r}"
        hint = (
            f"  add one:  composite | {{{name}: lxt.rules.passthrough}}   if it is linear,\n"
            f"            composite | {{{name}: lxt.rules.unit}}          if it is element-wise,\n"
            f"            composite | {{{name}: lxt.rules.constant}}      if nothing is to flow\n"
        )
    return UnknownOperation(
        f"{what}\n{describe_callsite(model)}\n{hint}"
        f'  or take its plain gradient: on_unknown="gradient"'
    )


def unknown_node(model: nn.Module, composite: str, node: str) -> UnknownOperation:
    """The error for a graph node that was made by something else than a torch function."""
    return UnknownOperation(
        f"{node.removesuffix('Backward')} (an autograd Function, scripted code or an extension) is "
        f"no torch function, so no rule of composite {composite!r} covers it; its result is first "
        f"seen\n{describe_callsite(model)}\n"
        "  call it in a module of its own, say MyModule, and give that a rule:\n"
        "            composite | {MyModule: lxt.rules.unit}          if it is element-wise,\n"
        "            composite | {MyModule: lxt.rules.passthrough}   if its gradient is right\n"
        '  or take its plain gradient: on_unknown="gradient"'
    )
