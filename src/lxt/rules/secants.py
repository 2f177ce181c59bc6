"""The secant through the origin, which stands in for an element-wise function's derivative.

    R_x = x · s(x) · g,   s(x) = (f(x) − f(0)) / x,   s(0) = f′(0)     Achtibat et al. 2024, Eq. 9

With f(0) = 0 the operand gets exactly the relevance of the output; otherwise f(0) absorbs its
share.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.errors import InvalidComposite
from lxt.gradients import Curve, secant
from lxt.rules.registry import (
    Family,
    Operation,
    copied,
    require_constant,
    require_real,
    spelled,
)

__all__ = ["Elementwise", "elementwise", "numeric_slope", "unit"]

SOURCE = "AttnLRP Eq. 9"


def at_origin(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Where s(x) is its limit f′(0): at 0, and where numbers of `dtype` are too small to divide."""
    return x.abs() < torch.finfo(dtype or x.dtype).tiny


def numeric_slope(
    f: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The secant slope of any element-wise `f`, computed from its values.

    Near 0 the difference f(x) − f(0) cancels; there the derivative at the midpoint x/2 is used,
    which equals the secant up to x² · f‴/24. Where f(0) = 0 nothing cancels but at the origin.

    Args:
        f: the function, evaluated at tensors of the shape of `x`.
        x: where, of any shape.
        dtype: the precision of the values of `f`; that of `x` by default.

    """
    dtype = dtype or x.dtype
    offset = f(torch.zeros_like(x))
    if not offset.isfinite().all():
        raise InvalidComposite(
            "an element-wise unit needs a finite value at 0, from which its slope is taken: give "
            "the operation a rule that doesn't ask for it, such as lxt.rules.passthrough"
        )
    cancels = (offset != 0) & (x.abs() <= torch.finfo(dtype).eps ** (1 / 3))
    near = at_origin(x, dtype) | cancels
    slope = (f(x) - offset) / torch.where(near, 1.0, x)
    if not near.any():
        return slope
    with torch.enable_grad():
        middle = torch.where(near, torch.where(cancels, x / 2, x), 0.0).detach().requires_grad_()
        (derivative,) = torch.autograd.grad(f(middle).sum(), middle)
    return torch.where(near, derivative, slope)


def _inplace_positions() -> dict[Operation, int]:
    positions = {}
    for function in vars(F).values():
        if inspect.isfunction(function):
            parameters = list(inspect.signature(function).parameters)
            if "inplace" in parameters:
                positions[function] = parameters.index("inplace")
    return positions


INPLACE_POSITIONS = _inplace_positions()
"""Where `inplace` stands among the parameters of a torch function that has it."""


EXPONENTIALS: dict[Operation, float] = {
    **dict.fromkeys(spelled("exp"), 1.0),
    **dict.fromkeys(spelled("exp2"), math.log(2)),
}
"""Exponentials, with the logarithm of their base."""

_EXPONENTIALS_LESS_1 = frozenset(spelled("expm1"))
_CLAMPS = frozenset(spelled("clamp", "clip", "clamp_min", "clamp_max"))


def _curve(operation: Operation, args: Sequence[Any], gates: bool) -> Curve:
    if operation in EXPONENTIALS:
        return Curve("exponential", EXPONENTIALS[operation], gates)
    if operation is Tensor.__rpow__:
        return Curve("exponential", math.log(args[0]), gates)
    if operation in _EXPONENTIALS_LESS_1:
        return Curve("exponential less 1", gates=gates)
    return Curve("clamp" if operation in _CLAMPS else "", gates=gates)


def out_of_place(
    operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any], bool]:
    """The arguments of a call after its operand, less `inplace`, and whether that was asked for."""
    inplace = kwargs.get("inplace", False)
    position = INPLACE_POSITIONS.get(operation)
    if position is not None:
        kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
        if len(args) >= position:  # `args` lacks the first one
            inplace, args = args[position - 1], args[: position - 1]
    return args, kwargs, inplace


Slope = Callable[..., Tensor]
"""The secant slope of an operation, called with its arguments; the operand in float32 or more."""


def replaced(
    slope: Slope,
    operation: Operation,
    x: Tensor,
    args: Any,
    kwargs: Any,
    gates: bool = True,
    pointwise: bool = False,
) -> Tensor:
    """Call `operation` with the secant slope in the backward pass; in place if asked to.

    `pointwise` says that the slope is the same for a value wherever it stands, if all arguments
    are numbers.
    """
    args, kwargs, inplace = out_of_place(operation, args, kwargs)
    require_constant(**{f"{n}": value for n, value in enumerate(args, start=1)} | kwargs)
    if not x.requires_grad:
        y = operation(x, *args, **kwargs)
    else:
        require_real(x)
        y = secant(
            copied(x) if inplace else x,
            lambda v: operation(v, *args, **kwargs),
            lambda v: slope(v, *args, **kwargs),
            _curve(operation, args, gates),
            pointwise=pointwise and not any(isinstance(value, Tensor) for value in args),
        )
    return x.copy_(y) if inplace else y


SlopeOf = Callable[[Operation, torch.dtype], Slope]
"""The secant slope of an operation that computes in some precision."""


@dataclass(frozen=True)
class Elementwise(Family):
    """The rule of an element-wise operation; `gates` as for `elementwise`."""

    gates: bool = True
    slope_of: SlopeOf | None = None
    """None where the slope depends on more than the operand, such as what made it."""
    pointwise: bool = False
    """Whether the slope is the same for a value wherever it stands, if all arguments are numbers.

    An operation of a user's may have parameters for each channel.
    """


def _elementwise(name: str, slope_of: SlopeOf, gates: bool, pointwise: bool = False) -> Elementwise:
    def apply(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        slope = slope_of(operation, x.dtype)
        return replaced(slope, operation, x, args, kwargs, gates, pointwise)

    return Elementwise(apply, name, gates, slope_of, pointwise)


def elementwise(slope: Slope, gates: bool = True) -> Elementwise:
    """The rule of an element-wise operation whose secant slope is `slope(x, *arguments)`.

    `slope` takes the arguments of the operation, but for `inplace`. `gates` says whether CP-LRP
    takes the output for a gate where it multiplies something.
    """
    ours = (getattr(slope, "__module__", None) or "").partition(".")[0] == "lxt"
    return _elementwise("secant", lambda operation, dtype: slope, gates, pointwise=ours)


def _from_values(operation: Operation, dtype: torch.dtype) -> Slope:
    def slope(v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return numeric_slope(lambda u: operation(u, *args, **kwargs), v)

    return slope


ratio = _elementwise("ratio", _from_values, gates=True)
"""For activations without a closed form, which are gates where they multiply."""

curve = _elementwise("curve", _from_values, gates=False)
"""For other functions, which are not."""


def _of_the_whole(operation: Operation, dtype: torch.dtype) -> Slope:
    def slope(v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Parameters have the precision of the model, which may be less than the slope's.
        def f(u: Tensor) -> Tensor:
            return operation(u.to(dtype), *args, **kwargs).to(u.dtype)

        return numeric_slope(f, v, dtype)

    return slope


unit = _elementwise("unit", _of_the_whole, gates=True)
"""Any element-wise function of its first argument, made of whatever operations, as one unit.

For a module class or a function that is a composition: Eq. 9 for all of it, where rules for the
parts would split relevance between factors that are not two things.
"""
