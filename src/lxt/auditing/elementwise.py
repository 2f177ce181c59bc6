"""Whether an operation is element-wise, found by trying it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.opaque import tensors_in

__all__ = ["is_elementwise"]

_TRIES = 3
_NUDGES = (0.5, 8.0)  # the second for numbers of few digits


def is_elementwise(
    operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool | None:
    """Whether each element of the result depends on the one in its place of the one operand.

    It is tried in float64, in which no dependence is rounded away, or, if the operation does not
    take that, in the type of the operand; and on numbers of its own too, for at the given ones a
    softmax may be a step.

    Args:
        operation: a function, or the forward of a module, of which a copy is called.
        args: its arguments; of these and `kwargs` one requires grad, and is the operand.
        kwargs: further arguments by name.

    Returns:
        None if it can't be told: there is not one operand, or the operation is random or raises.

    """
    places, operands = _operands(args, kwargs)
    if len(operands) != 1 or not operands[0].is_floating_point():
        return None
    given = operands[0].detach().clone()
    for dtype in dict.fromkeys((torch.float64, given.dtype)):
        try:
            call = _partial(_in_type(operation, dtype), args, kwargs, places[0], dtype)
            answers = [_is_elementwise_at(call, x) for x in _values(given.to(dtype))]
        except Exception:  # an operation of which nothing is known may raise whatever it likes
            continue
        return None if None in answers else all(answers)
    return None


def _operands(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[int | str], list[Tensor]]:
    named = [*enumerate(args), *kwargs.items()]
    carriers = [
        (place, value)
        for place, value in named
        if isinstance(value, Tensor) and value.requires_grad
    ]
    return [place for place, _ in carriers], [value for _, value in carriers]


def _in_type(operation: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """The forward of a copy of its module in a type; any other function itself."""
    module = getattr(operation, "__self__", None)
    function = getattr(operation, "__func__", None)
    if not isinstance(module, nn.Module) or function is None:
        return operation
    copied = copy.deepcopy(module).to(dtype)
    return lambda *args, **kwargs: function(copied, *args, **kwargs)


def _partial(
    operation: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    place: int | str,
    dtype: torch.dtype,
) -> Callable[[Tensor], Tensor]:
    """The operation as a function of its operand, which it may write to."""

    def constant(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone()
        return value.to(dtype) if value.is_floating_point() else value

    def call(x: Tensor) -> Tensor:
        given: dict[int | str, Any] = {n: constant(v) for n, v in [*enumerate(args)]}
        given |= {name: constant(v) for name, v in kwargs.items()}
        given[place] = x.clone()
        named = {name: v for name, v in given.items() if isinstance(name, str)}
        with torch.no_grad():
            result = operation(*(given[n] for n in range(len(args))), **named)
        return next(tensors_in(result))

    return call


def _values(x: Tensor) -> Iterator[Tensor]:
    """The given numbers, and drawn ones, of both signs and of one."""
    yield x
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(x.shape, generator=generator).to(x)
    yield drawn
    yield drawn.abs() / (1 + drawn.abs())


def _is_elementwise_at(call: Callable[[Tensor], Tensor], x: Tensor) -> bool | None:
    at_x = call(x)
    if at_x.shape != x.shape:
        return False
    if _unequal(call(x), at_x).numel():
        return None  # it draws random numbers
    for place in torch.linspace(0, max(x.numel() - 1, 0), _TRIES).long().tolist():
        for size in _NUDGES:
            nudged = x.flatten().clone()
            nudged[place] += size
            if (_unequal(call(nudged.view(x.shape)), at_x) != place).any():
                return False
    return True


def _unequal(a: Tensor, b: Tensor) -> Tensor:
    """The numbers of the elements that differ, where NaN is equal to NaN."""
    return ((a != b) & ~((a != a) & (b != b))).flatten().nonzero()[:, 0]
