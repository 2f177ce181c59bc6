"""Does every operation on the path of relevance have a rule? A check by conservation.

Some rules lose relevance by intent: a bias, ε and the bias of a Taylor expansion absorb a part. So
a sum that shrank proves nothing. While the check is active, each explicit function spreads what it
receives evenly over its operands. The relevance of the input then sums to exactly what was put in
at the output, if and only if no operation on the way propagates a plain gradient.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt.errors import NonFiniteRelevance
from lxt.gradients import compute_dtype

__all__ = ["checked_relevance", "conservation_check", "conservation_check_wrap", "is_checking"]

Relevances = tuple[Any, ...]

# Of the process, not of a thread: an accelerator's backward pass runs in another one.
_lock = threading.Lock()
_active = 0


class conservation_check:  # noqa: N801 - LXT's name
    """While this context is active, backward passes test conservation instead of explaining.

        with conservation_check():
            y = model(x)
            y.backward(torch.ones_like(y))
        assert x.grad.sum() == y.numel()    # up to rounding

    It counts for the whole process, may be nested, and what matters is when `backward` runs.

    Raises:
        NonFiniteRelevance: in `backward`, by the first function that receives or makes a NaN.

    """

    def __enter__(self) -> None:
        global _active
        with _lock:
            _active += 1

    def __exit__(self, *exception: object) -> None:
        global _active
        with _lock:
            _active -= 1


def is_checking() -> bool:
    """Whether a `conservation_check` is active."""
    return _active > 0


def checked_relevance(
    name: str, received: Sequence[Tensor | None], relevances: Sequence[Any]
) -> Relevances:
    """What the function `name` is to hand on, having computed `relevances` of what it received.

    That is `relevances` itself unless a `conservation_check` is active. Then it is the sum of what
    was received, spread evenly over the elements of all of `relevances` that aren't None.

    Raises:
        NonFiniteRelevance: a check is active, and relevance is NaN.

    """
    if not _active:
        return tuple(relevances)
    for verb, tensors in (("received", received), ("returned", relevances)):
        if any(tensor is not None and bool(tensor.isnan().any()) for tensor in tensors):
            raise NonFiniteRelevance(f"{name} {verb} a relevance of NaN")
    elements = sum(r.numel() for r in relevances if r is not None)
    if elements == 0:
        return tuple(relevances)
    total = sum(r.to(compute_dtype(r.dtype)).sum() for r in received if r is not None)
    share = torch.as_tensor(total / elements)
    return tuple(
        None if r is None else share.to(r.device, r.dtype).expand(r.shape).clone()
        for r in relevances
    )


def conservation_check_wrap(func: Callable[..., Any]) -> Callable[..., Relevances]:
    """Decorate the `backward` of an autograd.Function, so that `conservation_check` reaches it."""
    name = func.__qualname__.removesuffix(".backward")

    @functools.wraps(func)
    def backward(ctx: Any, *out_relevance: Tensor | None) -> Relevances:
        relevances = func(ctx, *out_relevance)
        if not isinstance(relevances, tuple):
            relevances = (relevances,)
        return checked_relevance(name, out_relevance, relevances)

    return backward
