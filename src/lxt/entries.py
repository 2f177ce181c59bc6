"""What a composite's table may hold: targets and rules, and how they are spelled."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import torch
from torch import nn

from lxt.errors import InvalidComposite
from lxt.rules.registry import Family, operation_name
from lxt.structure import ClassPath, Having, OperatorName, Signature, Within

__all__ = [
    "FunctionRule",
    "OnUnknown",
    "Rule",
    "Target",
    "check",
    "checked_on_unknown",
    "is_pythons",
    "operator_name",
    "rule_name",
    "spelled",
    "target_name",
]

OnUnknown = Literal["error", "gradient"]


Target = Callable[..., Any] | type[nn.Module] | OperatorName | ClassPath | Having | Signature | str
"""A function or operator, a module class or its path, a structure, or a pattern of module names."""

FunctionRule = Family | Callable[..., Any]
Rule = FunctionRule | Within
"""A function with the signature of its target, or a `Family` that is bound to the target.

Of modules also `Within`: their own forward, with other rules for some functions within.

For a module class or name, a function gets the module itself first, like the class's `forward`.
"""


def rule_name(rule: Rule) -> str:
    """How a rule is called in tables."""
    if isinstance(rule, Within):
        return "within"
    return rule.name if isinstance(rule, Family) else getattr(rule, "__name__", repr(rule))


def target_name(function: Any) -> str:
    """A torch function or operator as one writes it as a target."""
    name = operator_name(function)
    return f'lxt.OperatorName("{name}")' if name else operation_name(function)


def operator_name(function: Any) -> str | None:
    """The qualified name of an operator, or None of what is none."""
    if isinstance(function, torch._ops.OpOverload):
        return function._schema.name
    if isinstance(function, torch._ops.HigherOrderOperator):
        return f"higher_order::{function.name()}"
    return getattr(function, "_qualified_op_name", None)


def spelled(target: Any) -> str:
    """A target as tables and messages have it."""
    if isinstance(target, str | ClassPath | OperatorName | Having | Signature):
        return str(target)
    if isinstance(target, type):
        return f"{target.__module__}.{target.__qualname__}"
    return operation_name(target)


def _may_be_a_module(target: Any) -> bool:
    return isinstance(target, str | type | ClassPath | Having)


def is_pythons(target: Any) -> bool:
    """Whether a target is a function written in Python, outside of torch."""
    module = getattr(target, "__module__", None) or ""
    return isinstance(target, FunctionType) and module.partition(".")[0] != "torch"


def checked_on_unknown(on_unknown: Any) -> OnUnknown:
    """A choice for operations without a rule, if it is one.

    Raises:
        InvalidComposite: it is not.
    """
    if on_unknown not in ("error", "gradient"):
        raise InvalidComposite(f'on_unknown is "error" or "gradient", not {on_unknown!r}')
    return on_unknown


def check(target: Any, rule: Any) -> None:
    """Make sure that a target and its rule are such.

    Raises:
        InvalidComposite: one of them is not.
    """
    if isinstance(target, type) and not issubclass(target, nn.Module):
        raise InvalidComposite(f"{target!r} is a class but no torch.nn.Module")
    if isinstance(target, nn.Module):
        raise InvalidComposite(
            f"{type(target).__name__}(…) is an instance: give its class, or its name as a string"
        )
    by_name = str | ClassPath | OperatorName | Having | Signature
    if not callable(target) and not isinstance(target, by_name):
        raise InvalidComposite(
            f"{target!r} is no target: give a torch function, a module class or a name pattern"
        )
    if isinstance(rule, type) and issubclass(rule, nn.Module):
        raise InvalidComposite(
            f"the rule of {spelled(target)} is {rule.__name__}, a class of modules: such rules go "
            "into lxt.explicit.core.Composite"
        )
    if isinstance(rule, Within) and not _may_be_a_module(target):
        raise InvalidComposite(f"the rule of {spelled(target)} is {rule!r}, which is for modules")
    if not callable(rule) and not isinstance(rule, Family | Within):
        raise InvalidComposite(
            f"the rule of {spelled(target)} is {rule!r}: give a function with the same signature, "
            "or a rule of lxt.rules"
        )
