"""What a recorder writes down of one forward and backward pass, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt.engine.callsite import Callsite
from lxt.rules.registry import Absorbs

__all__ = [
    "HANDED_ON",
    "INPUT",
    "TARGET",
    "UNSEEN",
    "Call",
    "Escape",
    "Flow",
    "Settlement",
    "head_of",
    "kept",
]

INPUT, TARGET = -1, -2
"""Who hands relevance on or gets it where it is no call: what is explained, and by what."""

UNSEEN, HANDED_ON = "an operation that was not seen", "handed on"


@dataclass
class Call:
    """One operation of a forward pass: what ran, under which rule, and where.

    Attributes:
        operation: its name as one writes it for a target.
        rule: the name of its rule; None if it was left to autograd's plain gradient.
        family: the file of rules that it belongs to; "" if to none of this library's.
        callsite: module and line of code.
        function: the torch function itself, or the class of a module; None if it was not seen.
        carriers: how many of its operands carry relevance.
        carries: whether its result does.
        operand: the first that carries relevance, without its values.
        constants: the shapes of the floating-point operands that don't.
        arguments: what it was called with, kept where it has no rule, or `as_unit` is set.
        as_unit: what runs, where its rule is one for element-wise functions and it is the first
            call of its target; None otherwise.
        refusal: why its rule didn't take the call.
        absorbs: what its rule declares that it may keep; None if it declares nothing.
        rest: what its rule calls the relevance that it keeps; "" if it calls it nothing.
        shape: of its result, the first if there are several.
    """

    operation: str
    rule: str | None
    family: str
    callsite: Callsite
    function: Any = None
    carriers: int = 0
    carries: bool = False
    operand: Tensor = field(default_factory=lambda: torch.empty(0))
    constants: tuple[tuple[int, ...], ...] = ()
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    as_unit: Callable[..., Any] | None = None
    refusal: str | None = None
    absorbs: Absorbs | None = None
    rest: str = ""
    shape: tuple[int, ...] = ()
    numbers: range = range(0)


@dataclass(frozen=True)
class Escape:
    """A call that hands values to where no rule sees what becomes of them, and why."""

    operation: str
    reason: str
    callsite: Callsite


@dataclass
class Flow:
    """Relevance from one call (or `TARGET`) to an earlier one (or `INPUT`), by their numbers.

    `gross` is Σ|R| over the elements, `relevance` is Σ R.
    """

    sink: int
    source: int
    relevance: float
    gross: float


@dataclass
class Settlement:
    """What the backward pass of a recorded forward pass did, in the order of the calls.

    Attributes:
        gross: Σ|R| at what each call put out.
        constant: Σ R of what each call puts out for operands that are 0, which is no operand's.
        flows: what the calls handed to each other.
        joined: for each call the number of the one that it counts with, itself mostly: where the
            value between two calls is not known they are one.
        relevance: Σ R of the leaves.
        relevance_gross: Σ|R| of the leaves.
        gradients: of the leaves.
        target: what is explained, as a number.
    """

    gross: list[float]
    constant: list[float]
    flows: list[Flow]
    joined: list[int]
    relevance: float
    relevance_gross: float
    gradients: list[Tensor]
    target: float


def kept(value: Any) -> Any:
    """Arguments with copies of their tensors, which may be written to later."""
    if type(value) in (tuple, list):
        return type(value)(map(kept, value))
    if type(value) is dict:
        return {name: kept(item) for name, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def head_of(joined: list[int], number: int) -> int:
    """The number of the call that a call counts with, by `Settlement.joined`."""
    while joined[number] != number:
        number = joined[number]
    return number
