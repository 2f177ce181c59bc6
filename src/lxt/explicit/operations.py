"""The explicit rules of torch's operations: what relevance, not what gradient, each operand gets.

Relevance of the output comes in, relevance of the operands goes out. Each rule here hands an
operation, whatever its arguments, to the functions of this package; the value stays the operation's
own. `composites` says which operation gets which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt.engine.opaque import tensors_in
from lxt.explicit import functional as lf
from lxt.explicit.check import is_checking
from lxt.explicit.rule_functions import uniform_epsilon_lrp_fn, uniform_rule_fn
from lxt.explicit.rules import epsilon_lrp
from lxt.gradients import carries_relevance
from lxt.rules.bilinear import (
    SECOND,
    listed,
    replace_operands,
    stop_gates,
)
from lxt.rules.registry import (
    Family,
    Operation,
    Refusal,
    as_family,
    family,
    require_own,
)
from lxt.rules.secants import replaced

__all__ = [
    "each_output",
    "epsilon",
    "gated",
    "gated_einsum",
    "identity",
    "linear",
    "linearised",
    "move",
    "on_a_copy",
    "refused",
    "softmax",
    "uniform",
    "uniform_epsilon",
]

Rule = Family | Callable[..., Any]


# --- calls ----------------------------------------------------------------------------------------


class Place:
    """Where a carrier of relevance stands among the arguments of a call."""

    def __init__(self, index: int) -> None:
        self.index = index


def _rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Arguments with `leaf` applied to what tuples, lists and dictionaries among them hold."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuilt(item, leaf) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_rebuilt(item, leaf) for item in value)
    if type(value) is dict:
        return {name: _rebuilt(item, leaf) for name, item in value.items()}
    return leaf(value)


def opened(
    operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], *, factors: bool = False
) -> tuple[Callable[..., Any], list[Tensor]]:
    """A call as a function of the operands that carry relevance, and copies of these operands.

    Most rules keep them, where autograd would not: so a model may write to its own in place.
    `factors` says that relevance is shared between them.

    Raises:
        Refusal: a factor is a parameter of another model, or a carrier stands where it is not seen.
    """
    carriers: list[Tensor] = []

    def take(value: Any) -> Any:
        if not carries_relevance(value):
            return value
        carriers.append(value)
        return Place(len(carriers) - 1)

    places, named = _rebuilt(tuple(args), take), _rebuilt(dict(kwargs), take)
    if len(carriers) != sum(map(carries_relevance, tensors_in((*args, kwargs)))):
        raise Refusal("an operand that carries relevance is inside another object")
    for carrier in carriers if factors and len(carriers) > 1 else ():
        require_own(carrier)

    def call(*operands: Any) -> Any:
        def fill(value: Any) -> Any:
            return operands[value.index] if isinstance(value, Place) else value

        return operation(*_rebuilt(places, fill), **_rebuilt(named, fill))

    call.__name__ = getattr(operation, "__name__", "operation")
    return call, [carrier.clone() for carrier in carriers]


# --- linear maps, and products --------------------------------------------------------------------


def epsilon(eps: float) -> Family:
    """The ε-rule for what is linear in each operand: R_i = x_i ⊙ Jᵢᵀ (R / (y + ε)) (Eq. 8)."""

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        call, carriers = opened(operation, args, kwargs)
        return epsilon_lrp(call, eps, *carriers) if carriers else operation(*args, **kwargs)

    return Family(apply, "epsilon")


def linearised(rule: Rule, eps: float) -> Rule:
    """The ε-rule for the linear map that a rule of gradients makes of an operation."""
    if not isinstance(rule, Family):
        linearised_rule = epsilon(eps).bind(rule)
        linearised_rule.__name__ = "linearised"  # pyright: ignore[reportAttributeAccessIssue]
        return linearised_rule

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        return epsilon(eps).function(rule.bind(operation), *args, **kwargs)

    return Family(apply, "linearised")


def each_output(rule: Rule, eps: float, outputs: int) -> Family:
    """As `linearised`, for an operation that returns so many tensors: one run for each."""

    def part(operation: Operation, n: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: as_family(rule).function(operation, *args, **kwargs)[n]

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        parts = (part(operation, n) for n in range(outputs))
        return tuple(epsilon(eps).function(each, *args, **kwargs) for each in parts)

    return Family(apply, "each_output")


def on_a_copy(rule: Rule) -> Family:
    """A rule that may write to its first operand, on a copy of that."""

    def apply(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return as_family(rule).function(operation, x.clone(), *args, **kwargs)

    return Family(apply, "on_a_copy")


def linear(rule: Family, eps: float) -> Family:
    """`F.linear`: a product, where the weight is a plain tensor, else as `rule` linearises it."""
    product, by_rule = uniform_epsilon(eps), as_family(linearised(rule, eps))

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        is_plain = type(weight) in (Tensor, torch.nn.Parameter)
        return (product if is_plain else by_rule).function(operation, *args, **kwargs)

    return Family(apply, "linear")


def uniform_epsilon(eps: float) -> Family:
    """The uniform and the ε-rule for a sum of products of N operands (Prop. 3.3)."""

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        call, carriers = opened(operation, args, kwargs, factors=True)
        if not carriers:
            return operation(*args, **kwargs)
        return uniform_epsilon_lrp_fn.apply(call, eps, *carriers)

    return Family(apply, "uniform_epsilon")


@family
def uniform(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """The uniform rule for an element-wise product of N operands: R / N to each (Prop. 3.2).

    With one operand it is the identity rule, for what only scales it: a norm (Prop. 3.4).
    """
    call, carriers = opened(operation, args, kwargs, factors=True)
    return uniform_rule_fn.apply(call, *carriers) if carriers else operation(*args, **kwargs)


def elementwise_product(eps: float) -> Family:
    """The uniform rule, but for complex numbers, whose parts mix: the uniform ε-rule."""
    mixed = uniform_epsilon(eps)

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        is_complex = any(x.is_complex() for x in tensors_in((*args, kwargs)))
        return (mixed if is_complex else uniform).function(operation, *args, **kwargs)

    return Family(apply, "elementwise_product")


def move(eps: float) -> Family:
    """For what moves values; a complex number's imaginary part changes its sign: the ε-rule."""
    conjugated = epsilon(eps)

    def apply(operation: Operation, x: Tensor, *args: Any) -> Any:
        if x.is_complex():
            return conjugated.function(operation, x, *args)
        return operation(x, *args)

    return Family(apply, "move")


def gated(rule: Rule, first: int = 0, names: Sequence[str] = SECOND) -> Family:
    """CP-LRP: `rule`, with a factor that a non-linearity put out as a constant.

    The factors are the two operands from position `first` on, or those of these names.
    """

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = replace_operands(args, kwargs, first, names, stop_gates)
        return as_family(rule).function(operation, *args, **kwargs)

    return Family(apply, "gated")


def gated_einsum(eps: float) -> Callable[..., Tensor]:
    """CP-LRP: as `gated`, for an Einstein sum."""
    product = uniform_epsilon(eps).bind(torch.einsum)

    def rule(equation: str, *operands: Any) -> Tensor:
        return product(equation, *stop_gates(listed(operands)))

    return rule


# --- non-linearities ------------------------------------------------------------------------------


def identity(eps: float, gates: bool = True) -> Family:
    """The identity rule for an element-wise function: R_x = R (Eq. 9).

    Where f(0) ≠ 0 that part of the value, which x has no hand in, absorbs:
    R_x = R · (f(x) − f(0)) / (f(x) + ε).
    """

    def apply(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = x.dtype  # and not x itself, which nothing but autograd may keep

        def share(v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def f(u: Tensor) -> Tensor:
                return operation(u.to(dtype), *args, **kwargs).to(u.dtype)

            offset = f(torch.zeros_like(v))
            if is_checking() or not offset.any():
                return torch.ones_like(v)
            y = f(v)
            return torch.where(offset == 0, 1.0, (y - offset) / (y + eps))

        return replaced(share, operation, x, args, kwargs, gates)

    return Family(apply, "identity")


@family
def softmax(
    operation: Operation, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Softmax by its Taylor expansion (Prop. 3.1); a cast before it moves values."""
    if not input.requires_grad:
        return operation(input, dim, *args, **kwargs)
    dim = kwargs.get("axis") if dim is None else dim
    if dim is None:
        raise Refusal("it doesn't say which dimension sums to one: give dim")
    # torch.softmax(x, dim, dtype), F.softmax(x, dim, stacklevel, dtype)
    dtypes = [given for given in (*args, kwargs.get("dtype")) if isinstance(given, torch.dtype)]
    return lf.softmax(input.clone().to(dtypes[0]) if dtypes else input.clone(), dim)


def refused(reason: str) -> Family:
    """For an operation that no explicit rule covers."""

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        if any(map(carries_relevance, (*args, *kwargs.values()))):
            raise Refusal(reason)
        return operation(*args, **kwargs)

    return Family(apply, "refused")
