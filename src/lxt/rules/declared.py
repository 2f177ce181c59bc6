"""`lxt.rule`: what a rule of one's own says of itself, to be checked and to be accounted for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from lxt.errors import InvalidRule
from lxt.rules.registry import Absorbs, Entry, Family, Operation, Sample

__all__ = ["declarations_of", "rule"]

AnyRule = TypeVar("AnyRule", bound=Callable[..., Any] | Family)

_NAME = "__lxt_entries__"


def rule(
    *operations: Operation,
    source: str,
    samples: Iterable[Sample] = (),
    absorbs: Absorbs = "values at 0",
) -> Callable[[AnyRule], AnyRule]:
    """Declare a function (or a `Family`) to be the rule of operations.

    >>> @lxt.rule(my_gate, source="AttnLRP Eq. 9", samples=[lxt.sample(x)])
    ... def my_gate_rule(x): ...
    >>> lxt.testing.check_rule(my_gate_rule)
    >>> composite = lxt.attnlrp | {my_gate: my_gate_rule}

    Nothing in the process changes by it, no preset and not what is decorated.

    Args:
        operations: torch functions, functions written in Python that a module's forward calls, or
            classes of modules, whose rule gets the module first, like their `forward`.
        source: where the rule comes from, such as the equation of a paper.
        samples: calls to check it on, with tensors that require grad for the operands that carry
            relevance; the others are constants, as weights are.
        absorbs: what it may keep of the relevance that it receives: `"nothing"`, `"values at 0"`
            (what the operation puts out for operands 0, such as a bias) or `"anything"`.

    Returns:
        A decorator, which returns the rule.

    Raises:
        InvalidRule: there is no operation, or what is decorated can't be a rule.

    """
    samples = tuple(samples)
    for operation in operations:
        if not callable(operation):
            raise InvalidRule(
                f"{operation!r} is no operation: write @lxt.rule(my_gate, source=…) with a "
                "function or a class of modules"
            )
    if not operations:
        raise InvalidRule("a rule is one of an operation: write @lxt.rule(my_gate, source=…)")
    if absorbs not in ("nothing", "values at 0", "anything"):
        raise InvalidRule(f'absorbs is "nothing", "values at 0" or "anything", not {absorbs!r}')

    def declare(written: AnyRule) -> AnyRule:
        declared: Any = _twin(written)
        entries = tuple(
            Entry(operation, declared, source, samples, "", absorbs) for operation in operations
        )
        object.__setattr__(declared, _NAME, (*declarations_of(written), *entries))
        return declared

    return declare


def _twin(written: Any) -> Any:
    """The same rule as another object, so that what is noted of it is not noted of the first."""
    if isinstance(written, Family):
        twin = replace(written)
        object.__setattr__(twin, "__doc__", written.__doc__)
        return twin
    if not callable(written) or isinstance(written, type):
        raise InvalidRule(f"{written!r} is no rule: decorate a function")

    @functools.wraps(written)
    def same(*args: Any, **kwargs: Any) -> Any:
        return written(*args, **kwargs)

    return same


def declarations_of(written: Any) -> tuple[Entry, ...]:
    """What a rule says of itself; nothing if it was not declared."""
    return getattr(written, _NAME, ())
