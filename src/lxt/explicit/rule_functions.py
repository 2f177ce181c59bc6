"""The autograd Functions behind `lxt.explicit.rules`, which says what each one computes.

They take their arguments by position, in LXT's order.
"""

# ruff: noqa: D102, N801 - the classes have LXT's names, and the two methods of any Function

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lxt.engine.mode import outside_rules
from lxt.errors import InvalidRule
from lxt.explicit.check import conservation_check_wrap
from lxt.explicit.functions import _stabilize, precision

Fn = Callable[..., Any]


def name_of(fn: Fn) -> str:
    """What to call a function or module in a message."""
    return getattr(fn, "__name__", None) or type(fn).__name__


def _tensor(fn: Fn, output: Any) -> Tensor:
    """`output`, if it is a tensor."""
    if not isinstance(output, Tensor):
        size = f" of {len(output)}" if isinstance(output, Sequence) else ""
        raise InvalidRule(
            f"a rule needs one tensor; {name_of(fn)} returned a {type(output).__name__}{size}: "
            "put the rule on a part of it that returns a tensor"
        )
    return output


def _with_graph(ctx: Any, fn: Fn, inputs: tuple[Any, ...], carried: Sequence[bool]) -> Tensor:
    """A copy of fn(*inputs), whose graph from fresh leaves is put on `ctx`."""
    # one leaf for each operand, also for a tensor that is two of them
    leaves = [x.detach().requires_grad_() for x in _chosen(inputs, carried)]
    with torch.set_grad_enabled(any(carried)), outside_rules():
        views = [leaf.view_as(leaf) for leaf in leaves]  # nodes that are older than any of `fn`
        starts = [view.grad_fn for view in views]
        output = _tensor(fn, fn(*_placed(views, inputs, carried)))
    if not any(carried) or not output.requires_grad:
        output = output.detach().clone()
        ctx.mark_non_differentiable(output)
        return output
    _refuse_rules_within(fn, output, starts)
    ctx.carried = carried
    ctx.leaves = leaves
    ctx.output = output
    # the inputs again, by a way that notices if they are written to
    ctx.save_for_backward(*_chosen(inputs, carried))
    return output.detach().clone()


def _chosen(operands: Sequence[Any], carried: Sequence[bool]) -> list[Any]:
    """The operands that carry relevance."""
    return [x for x, needed in zip(operands, carried, strict=True) if needed]


def _placed(parts: Iterable[Any], operands: Sequence[Any], carried: Sequence[bool]) -> list[Any]:
    """`operands`, with `parts` in the place of those that carry relevance."""
    iterator = iter(parts)
    return [next(iterator) if c else x for x, c in zip(operands, carried, strict=True)]


def _refuse_rules_within(fn: Fn, output: Tensor, starts: Sequence[Any]) -> None:
    """Raise if the way from the operands' nodes `starts` to `output` has an explicit rule.

    Such a rule hands back relevance where the rule of `fn` needs the gradient.
    """
    # What `fn` has from elsewhere may come out of rules, but is a constant; its graph, often that
    # of the model so far, is older.
    oldest = min(start._sequence_nr() for start in starts)
    waiting: list[Any] = [output.grad_fn]
    users: dict[Any, list[Any]] = {output.grad_fn: []}
    rules = []
    while waiting:
        node = waiting.pop()
        cls = getattr(type(node), "_forward_cls", None)
        if cls is not None and cls.__module__.startswith("lxt.explicit"):
            rules.append((node, cls))
        for source, _ in node.next_functions:
            if source is None or source._sequence_nr() < oldest:
                continue
            if source not in users:
                users[source] = []
                waiting.append(source)
            users[source].append(node)
    if not rules:
        return
    reached, waiting = set(), [start for start in starts if start in users]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += users[node]
    for node, cls in rules:
        if node in reached:
            raise InvalidRule(
                f"{name_of(fn)} holds a part with an explicit rule of its own, {cls.__name__}, and "
                "a rule on all of it would divide by the output twice: put rules on its parts "
                "only, or one rule on a function whose parts are plain torch"
            )


def _input_times_gradient(
    output: Tensor, leaves: Sequence[Tensor], inputs: Sequence[Tensor], ratio: Tensor
) -> list[Tensor]:
    """x ⊙ Jᵀ ratio for each leaf, J being that of `output` and x the input."""
    gradients = torch.autograd.grad(
        output, leaves, ratio.to(output.dtype), retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(x) if g is None else by_parts(_times, x, g)
        for x, g in zip(inputs, gradients, strict=True)
    ]


def _times(x: Tensor, gradient: Tensor) -> Tensor:
    relevance = x.to(precision(x)) * gradient
    # A score of -inf, hidden by a mask, hands on nothing.
    return relevance.masked_fill(x.isinf() & (gradient == 0), 0).to(x.dtype)


def by_parts(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """A function of elements, of the real and imaginary parts each where numbers are complex."""
    if not operands[0].is_complex():
        return function(*operands)
    parts = (torch.view_as_real(x.resolve_conj()) for x in operands)
    return torch.view_as_complex(function(*parts).contiguous())


def _scattered(relevances: Iterable[Any], carried: Sequence[bool]) -> list[Any]:
    """`relevances` at the places of the operands that carry some, None elsewhere."""
    return _placed(relevances, [None] * len(carried), carried)


class identity_fn(Function):
    """apply(fn, input), by the rule of `identity`."""

    @staticmethod
    def forward(ctx: Any, fn: Fn, input: Tensor) -> Tensor:
        output = _tensor(fn, fn(input))
        if output.shape != input.shape:
            raise InvalidRule(
                f"the identity rule needs an output of its input's shape; {name_of(fn)} made "
                f"{list(output.shape)} of {list(input.shape)}: use EpsilonRule"
            )
        return output.clone()

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        return None, *out_relevance


class stop_relevance_fn(Function):
    """apply(fn, *inputs), by the rule of `StopRelevanceRule`."""

    @staticmethod
    def forward(ctx: Any, fn: Fn, *inputs: Any) -> Tensor:
        output = _tensor(fn, fn(*inputs)).clone()
        ctx.mark_non_differentiable(output)
        return output


class epsilon_lrp_fn(Function):
    """apply(fn, epsilon, *inputs), by the rule of `EpsilonRule`."""

    @staticmethod
    def forward(ctx: Any, fn: Fn, epsilon: float, *inputs: Any) -> Tensor:
        ctx.epsilon = epsilon
        return _with_graph(ctx, fn, inputs, ctx.needs_input_grad[2:])

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        return None, None, *_epsilon_relevances(ctx, *out_relevance, share=1)


class uniform_epsilon_lrp_fn(epsilon_lrp_fn):
    """apply(fn, epsilon, *inputs), by the rule of `UniformEpsilonRule`."""

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        return None, None, *_epsilon_relevances(ctx, *out_relevance, share=len(ctx.leaves))


def _epsilon_relevances(ctx: Any, r: Tensor, share: int) -> list[Any]:
    def stabilized(r: Tensor, y: Tensor) -> Tensor:
        return r / _stabilize(y.to(precision(y, r)), ctx.epsilon) / share

    ratio = by_parts(stabilized, r, ctx.output.detach())
    relevances = _input_times_gradient(ctx.output, ctx.leaves, ctx.saved_tensors, ratio)
    return _scattered(relevances, ctx.carried)


class uniform_rule_fn(Function):
    """apply(fn, *inputs), by the rule of `UniformRule`."""

    is_product = True

    @staticmethod
    def forward(ctx: Any, fn: Fn, *inputs: Any) -> Tensor:
        output = _tensor(fn, fn(*inputs))
        ctx.carried = ctx.needs_input_grad[1:]
        ctx.shapes = [x.shape for x in _chosen(inputs, ctx.carried)]
        for shape in ctx.shapes:
            if not _expands(shape, output.shape):
                raise InvalidRule(
                    "the uniform rule needs operands that are broadcast to the output's shape; "
                    f"{name_of(fn)} made {list(output.shape)} of {list(shape)}: use "
                    "UniformEpsilonRule"
                )
        return output.clone()

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        r = r / len(ctx.shapes)
        return None, *_scattered((r.sum_to_size(shape) for shape in ctx.shapes), ctx.carried)


def _expands(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of `shape` can be broadcast to `target`."""
    tail = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape, tail, strict=True))


class taylor_decomposition_fn(Function):
    """apply(fn, ref, bias, distribute_bias, *inputs), by `TaylorDecompositionRule`."""

    @staticmethod
    def forward(
        ctx: Any, fn: Fn, ref: Any, bias: bool, distribute_bias: Any, *inputs: Any
    ) -> Tensor:
        carried = ctx.needs_input_grad[4:]
        value = _tensor(fn, fn(*inputs)).clone()
        references = _references(ref, inputs, carried)
        if not any(carried):
            return value
        _with_graph(ctx, fn, references, carried)
        if not hasattr(ctx, "output"):
            ctx.mark_non_differentiable(value)
            return value
        ctx.bias, ctx.distribute_bias = bias, distribute_bias
        ctx.save_for_backward(value if bias else None, *_chosen(inputs, carried))
        return value.clone() if bias else value

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        value, *inputs = ctx.saved_tensors
        y = value if ctx.bias else _jacobian_product(ctx.output, ctx.leaves, inputs)
        ratio = r / _stabilize(y.to(precision(y, r)))
        relevances = _input_times_gradient(ctx.output, ctx.leaves, inputs, ratio)
        if ctx.bias and ctx.distribute_bias is not None:
            relevances = _with_bias(ctx, inputs, relevances, value, ratio)
        return *[None] * 4, *_scattered(relevances, ctx.carried)


def _references(ref: Any, inputs: tuple[Any, ...], carried: Sequence[bool]) -> tuple[Any, ...]:
    """The point of expansion, as operands: the references, and the constants as they are."""
    if isinstance(ref, int | float):
        refs = (ref,) * len(inputs)
    else:
        refs = (ref,) if isinstance(ref, Tensor) else tuple(ref)
    if len(refs) != len(inputs):
        raise InvalidRule(
            f"ref has {len(refs)} reference points, and there are {len(inputs)} inputs: give one "
            "for each, or a number for all"
        )
    points = []
    for i, (x0, x, needed) in enumerate(zip(refs, inputs, carried, strict=True)):
        if not needed:
            points.append(x)
        elif isinstance(x0, int | float):
            points.append(torch.full_like(x, x0, requires_grad=False))
        elif isinstance(x0, Tensor) and _expands(x0.shape, x.shape):
            points.append(x0.detach().to(x.device, x.dtype).expand_as(x))
        else:
            given = list(x0.shape) if isinstance(x0, Tensor) else repr(x0)
            raise InvalidRule(
                f"the reference point {given} of input {i} must be a number, or a tensor of its "
                f"shape {list(x.shape)}"
            )
    return tuple(points)


def _jacobian_product(
    output: Tensor, leaves: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Tensor:
    """J · vectors, where J is the Jacobian of `output`: the derivative of Jᵀ u by u."""
    with torch.enable_grad():
        u = torch.zeros_like(output, requires_grad=True)
        gradients = torch.autograd.grad(
            output, leaves, u, create_graph=True, allow_unused=True, retain_graph=True
        )
        pairs = [
            (g, v)
            for g, v in zip(gradients, vectors, strict=True)
            if g is not None and g.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(output)
        products = torch.autograd.grad(
            [g for g, _ in pairs], u, [v for _, v in pairs], retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(output) if products[0] is None else products[0]


def _with_bias(
    ctx: Any, inputs: list[Tensor], relevances: list[Tensor], value: Tensor, ratio: Tensor
) -> list[Tensor]:
    """What `distribute_bias` makes of the relevances."""
    extra = {}
    if "bias_relevance" in inspect.signature(ctx.distribute_bias).parameters:
        bias = value - _jacobian_product(ctx.output, ctx.leaves, inputs)
        extra["bias_relevance"] = ratio * bias
    result = list(ctx.distribute_bias(tuple(inputs), tuple(relevances), **extra))
    shapes = [list(getattr(x, "shape", ())) for x in result]
    expected = [list(x.shape) for x in inputs]
    if shapes != expected:
        raise InvalidRule(
            f"distribute_bias returned relevances of shapes {shapes}; they must be {expected}"
        )
    return result
