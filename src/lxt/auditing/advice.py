"""Which rule fits an operation that has none: found by trying it on the operands that it had."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt.auditing.elementwise import is_elementwise
from lxt.engine.opaque import tensors_in

__all__ = ["line_for", "module_behind", "nature_of"]


def line_for(target: str, nature: str | None) -> str:
    """The line to write for an operation of this nature.

    `target` is how one writes the operation, or a class of modules that wraps it.
    """
    if nature == "linear":
        return f"composite | {{{target}: lxt.rules.passthrough}}"
    if nature == "element-wise":
        return f"composite | {{{target}: lxt.rules.unit}}"
    if nature == "product":
        return f"composite | {{{target}: lxt.rules.product}}"
    return (
        f"composite | {{{target}: my_rule}}, with my_rule written as docs/your-own-model.md shows; "
        "or lxt.rules.constant if no relevance is to flow"
    )


def nature_of(
    operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """What kind of function an operation is of the operands that carry relevance.

    Returns:
        "linear", "element-wise", "product" (linear in each of several operands), or None.

    """
    places = [n for n, value in enumerate(args) if _carries(value)]
    if not places or any(_carries(value) for value in kwargs.values()):
        return None

    def call(*operands: Tensor) -> Tensor:
        given = list(args)
        for place, operand in zip(places, operands, strict=True):
            given[place] = operand
        with torch.no_grad():
            (result, *_) = tensors_in(operation(*given, **kwargs))
        return result.to(torch.float64)

    operands = [args[place].detach().clone() for place in places]
    try:
        if _is_linear(call, operands):
            return "linear"
        if len(operands) > 1 and all(
            _is_linear_in(call, operands, n) for n in range(len(operands))
        ):
            return "product"
        if (
            len(operands) == 1
            and call(torch.zeros_like(operands[0])).isfinite().all()
            and is_elementwise(operation, args, kwargs)
        ):
            return "element-wise"
    except Exception:  # an operation of which nothing is known may raise whatever it likes
        return None
    return None


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    tolerance = 1e-4 * scale.abs().max().clamp_min(1e-30)
    return bool(((a - b).abs() <= tolerance).all())


def _is_linear(call: Callable[..., Tensor], operands: list[Tensor]) -> bool:
    """Whether f(x) − f(0) doubles with x, and is the sum of its parts."""
    zeros = [torch.zeros_like(x) for x in operands]
    others = [_moved(x) for x in operands]
    offset, at_x, at_other = call(*zeros), call(*operands), call(*others)
    at_sum = call(*(x + other for x, other in zip(operands, others, strict=True)))
    at_double = call(*(-2 * x for x in operands))
    return _close(at_double - offset, -2 * (at_x - offset), at_x - offset) and _close(
        at_sum - offset, at_x + at_other - 2 * offset, at_sum - offset
    )


def _is_linear_in(call: Callable[..., Tensor], operands: list[Tensor], n: int) -> bool:
    def partial(x: Tensor) -> Tensor:
        return call(*operands[:n], x, *operands[n + 1 :])

    return _is_linear(partial, [operands[n]])


def _moved(x: Tensor) -> Tensor:
    """Other values of the same size."""
    flat = x.flatten().roll(1)
    return (flat * torch.where(torch.arange(len(flat), device=x.device) % 2 == 0, 1.5, -0.5)).view(
        x.shape
    )


def module_behind(model: nn.Module, node: str) -> nn.Module | None:
    """The module whose forward calls the autograd Function that is called `node`, if it shows."""
    seen: set[type] = set()
    for module in model.modules():
        cls = type(module)
        if cls in seen:
            continue
        seen.add(cls)
        forward = getattr(cls, "forward", None)
        if forward is None:  # a scripted module's class
            continue
        try:
            source = inspect.getsource(forward)
        except (OSError, TypeError):
            continue
        if f"{node}.apply" in source:
            return module
    return None
