"""The ways in which a rule departs from autograd: scale, stop, or substitute the backward pass.

Every function here returns the forward value that the model would have computed, to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef

from lxt.engine.nodes import TRANSPARENT, hands_on, kind_of
from lxt.errors import NotDifferentiable
from lxt.pieces import in_pieces, is_batched

__all__ = [
    "TRANSPARENT",
    "Curve",
    "carries_relevance",
    "compute_dtype",
    "curve_of",
    "differentiable_once",
    "is_gate",
    "keep_operands",
    "multiply",
    "operand_of",
    "remember",
    "scale",
    "secant",
    "stop",
    "substitute",
    "surrogate",
]

Forward = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
Backward = Callable[..., Tensor]
Slope = Callable[[Tensor], Tensor]


def carries_relevance(value: Any) -> bool:
    """Whether `value` is a tensor that depends on the explained input (all else is a constant)."""
    return isinstance(value, Tensor) and value.requires_grad


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision for slopes, statistics and sums of `dtype`: float32 or more."""
    return torch.promote_types(dtype, torch.float32)


def stop(x: Tensor) -> Tensor:
    """`x` as a constant: its value, and no relevance to what it was computed from."""
    return x.detach()


def scale(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor` on the way back.

    The result is a view of `x`: hand it to an operation, never to the model, which may write to
    it in place.
    """
    return x if factor == 1 or not x.requires_grad else _Scale.apply(x, factor)  # pyright: ignore[reportReturnType]


def substitute(x: Tensor, forward: Forward, backward: Backward, rest: str = "") -> Tensor:
    """`forward(x)` with a backward pass of its own.

    Args:
        x: the explained operand, of any shape.
        forward: maps `x` to the output and the tensors that the backward pass needs; runs without
            a graph.
        backward: maps the incoming gradient (shape of the output) and those tensors to the
            gradient of `x` (shape of `x`).
        rest: what the relevance that it keeps is called in a ledger, if it does by right.

    """
    return _Substitute.apply(x, forward, backward, rest)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Curve:
    """What an element-wise function is to those who meet its output later on.

    Attributes:
        kind: "exponential", "exponential less 1", "clamp", or "" for all others.
        log_base: of an exponential, the logarithm of its base.
        gates: whether its output is a gate where it multiplies something; see `is_gate`.
    """

    kind: str = ""
    log_base: float = 1.0
    gates: bool = True


def secant(
    x: Tensor,
    operation: Callable[[Tensor], Tensor],
    slope: Slope,
    curve: Curve | None = None,
    *,
    pointwise: bool = False,
) -> Tensor:
    """`operation(x)`, element-wise, with the gradient g · slope(x) in place of g · operation′(x).

    Only `x` is kept for the backward pass; the slope is computed there, in float32 or more, in
    pieces if it is `pointwise`: the same for a value wherever it stands.
    """
    return _Secant.apply(x, operation, slope, curve or Curve(), pointwise)  # pyright: ignore[reportReturnType]


def curve_of(node: Any) -> Curve | None:
    """The element-wise function that made a node of the graph by `secant`, if one did."""
    return node.curve if isinstance(node, _Secant._backward_cls) else None  # pyright: ignore[reportAttributeAccessIssue]


def operand_of(node: Any) -> Tensor:
    """What `secant` made the output of a node of, as it was then."""
    if node.kept is not None:
        return node.kept
    if node.lent is not None:
        x, version = node.lent
        if x._version == version:
            return x
    return node.saved_tensors[0]  # which autograd refuses if it was written to


def multiply(a: Tensor, b: Tensor, shares: tuple[float, float]) -> Tensor:
    """`a * b`, of one shape, with each factor's gradient times its share.

    A factor that `secant` made is not kept, but computed again from its operand, which is.
    """
    return _Product.apply(a, b, shares)  # pyright: ignore[reportReturnType]


def keep_operands(x: Tensor) -> None:
    """Give the secants of what is in the memory of `x` a copy, for `x` is about to be written to.

    Autograd's own derivative may be one of the output, which stays as it is; a secant never is.
    """
    storage = x.untyped_storage()
    for node in _secants.pop(storage._cdata, None) or ():
        dtype, offset, shape, strides = node.layout
        here = torch.empty(0, dtype=dtype, device=x.device)
        node.kept = here.set_(storage, offset, shape, strides).clone()


def surrogate(
    value: Callable[..., Any], stand_in: Callable[..., Any], operands: Sequence[Tensor]
) -> Any:
    """`value(*operands)` with the gradient of `stand_in(*operands)`, which is its like.

    Args:
        value: what the model computes: a tensor, or a tuple of them; runs without a graph.
        stand_in: as many tensors of the same shapes, of operands in float32 or more; runs in the
            backward pass, with a graph of its own.
        operands: tensors, those that carry relevance among them.

    """
    return _Surrogate.apply(value, stand_in, *operands)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that raises where a graph of it is asked for.

    What is kept depends on the input by rules, and not by derivatives: so a second derivative would
    be that of nothing.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise NotDifferentiable(
                "create_graph=True asks for a graph of relevance itself, which rules have none of"
            )
        return backward(ctx, *gradients)

    return wrapper


class _Scale(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return g * ctx.factor, None


class _Substitute(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Forward, backward: Backward, rest: str) -> Tensor:
        output, saved = forward(x)
        ctx.save_for_backward(*saved)
        ctx.rule = backward
        ctx.rest = rest
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return ctx.rule(g, *ctx.saved_tensors), None, None, None


class _Surrogate(Function):
    @staticmethod
    def forward(ctx: Any, value: Any, stand_in: Any, *operands: Tensor) -> Any:
        ctx.save_for_backward(*operands)
        ctx.stand_in = stand_in
        return value(*operands)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        needed = ctx.needs_input_grad[2:]
        operands = [
            x.detach().to(compute_dtype(x.dtype)).requires_grad_(wanted)
            for x, wanted in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            results = ctx.stand_in(*operands)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [
            (y, g.to(y.dtype))
            for y, g in zip(results, gradients, strict=True)
            if g is not None and y.requires_grad
        ]
        received = torch.autograd.grad(
            [y for y, _ in pairs],
            [x for x in operands if x.requires_grad],
            [g for _, g in pairs],
            allow_unused=True,
        )
        each = iter(received)
        found = [next(each) if wanted else None for wanted in needed]
        return (
            None,
            None,
            *(
                None if g is None else g.to(x.dtype)
                for g, x in zip(found, ctx.saved_tensors, strict=True)
            ),
        )


# The secants that keep an operand, by its memory; each holds on to the set that it is in. The weak
# reference of each makes sure that no other memory gets the same name while it lives.
_secants: WeakValueDictionary[int, WeakSet[Any]] = WeakValueDictionary()


def remember(node: Any, x: Tensor) -> None:
    """Have `keep_operands` give a node of the graph, as its `kept`, a copy of `x` in time."""
    node.kept = None
    storage = x.untyped_storage()
    node.memory = StorageWeakRef(storage)
    node.layout = x.dtype, x.storage_offset(), x.shape, x.stride()
    node.neighbours = _secants.setdefault(storage._cdata, WeakSet())
    node.neighbours.add(node)


class _Secant(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        operation: Callable[[Tensor], Tensor],
        slope: Slope,
        curve: Curve,
        pointwise: bool,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        ctx.function = operation
        ctx.curve = curve
        ctx.pointwise = pointwise
        ctx.kept = ctx.lent = None
        version = x._version
        y = operation(x)
        if x._version != version:
            raise RuntimeError("an element-wise unit wrote to its own operand in place")
        remember(ctx, x)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x = operand_of(ctx)
        ctx.lent = None

        def slope(x: Tensor) -> Tensor:
            return ctx.slope(x.to(compute_dtype(x.dtype))).to(g.dtype)

        if not ctx.pointwise or is_batched(g):
            return g * slope(x), None, None, None, None
        found = torch.empty_like(g)
        in_pieces(lambda found, g, x: torch.mul(g, slope(x), out=found), found, g, x)
        return found, None, None, None, None


def _made_again(node: Any) -> Tensor:
    """The output of a secant, whose own backward pass comes later, and asks for its operand too.

    A checkpoint hands out what it has kept only once.
    """
    x = operand_of(node)
    node.lent = x, x._version
    return node.function(x)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, shares: tuple[float, float]) -> Tensor:
        ctx.shares = shares
        # What will be run before these in the backward pass, so that their operands are there yet.
        ctx.makers = [x.grad_fn if curve_of(x.grad_fn) else None for x in (a, b)]
        kept = (x if maker is None else None for x, maker in zip((a, b), ctx.makers, strict=True))
        ctx.save_for_backward(*kept)
        return a * b

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        a, b = (
            _made_again(maker) if x is None else x
            for x, maker in zip(ctx.saved_tensors, ctx.makers, strict=True)
        )
        to_a, to_b = ctx.shares
        return (g * b).mul_(to_a), (g * a).mul_(to_b), None


# Those that pick some of the values, as a router picks its experts'.
_PICKS = frozenset(("GatherBackward0", "TopkBackward0", "SortBackward0", "SortBackward1"))

# A gate and a constant make a gate; two operands that carry relevance don't.
_AFFINE = frozenset(
    f"{name}Backward{number}" for name in ("Mul", "Add", "Sub", "Rsub", "Neg") for number in (0, 1)
)
_QUOTIENT = "DivBackward0"


def is_gate(x: Tensor) -> bool:
    """Whether `x` came straight out of a non-linearity: moved, picked, masked, scaled at most.

    So is what a constant is added to, or what it is taken from, as in 1 - g.
    """
    node, output = x.grad_fn, x.output_nr
    while node is not None:
        sources = [source for source in node.next_functions if source[0] is not None]
        kind = kind_of(node)
        if hands_on(node):
            sources = [node.next_functions[output]]
        elif kind in _AFFINE:
            if len(sources) > 1:
                return False
        elif kind == _QUOTIENT:
            sources = sources[:1]  # a denominator is a constant
        elif kind not in TRANSPARENT and kind not in _PICKS:
            break
        elif len(sources) > 1 and node.name().endswith("CopyBackwards"):
            sources = sources[1:]  # what was copied, not what it was copied into
        node, output = sources[0] if sources else (None, 0)
    curve = curve_of(node)
    return curve is not None and curve.gates
