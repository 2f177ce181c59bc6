"""The explicit rules of quotients, exponentials and logarithms, which may write out a softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lxt.explicit.check import is_checking
from lxt.explicit.operations import Rule, identity, linearised
from lxt.gradients import substitute
from lxt.rules.elementary import constant
from lxt.rules.exponential import check_logarithm
from lxt.rules.registry import Family, Operation, as_family
from lxt.rules.secants import replaced
from lxt.rules.written import (
    exponential_over_slope,
    is_log_probability,
    is_probability,
    refuse_exponential_of_logsumexp,
    written_softmax,
)

__all__ = ["checked", "exponential", "logarithm", "quotient"]


def checked(check: Callable[..., None], rule: Rule) -> Family:
    """A rule, after `check` has looked at the arguments of the call and the graph behind them."""

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return as_family(rule).function(operation, *args, **kwargs)

    return Family(apply, "checked")


def exponential(eps: float, softmax_is_constant: bool = False) -> Family:
    """The identity rule for an exponential; for that of a log-probability, the rule of softmax."""
    plain = identity(eps, gates=False)

    def apply(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not x.requires_grad or not is_log_probability(x):
            refuse_exponential_of_logsumexp(x)
            return plain.function(operation, x, *args, **kwargs)
        if softmax_is_constant:
            return constant.function(operation, x, *args, **kwargs)

        def share(v: Tensor, *args: Any) -> Tensor:
            log_base = torch.log(operation(torch.ones_like(v), *args))
            return torch.ones_like(v) if is_checking() else v * log_base

        return replaced(share, operation, x, args, kwargs, gates=False)

    return Family(apply, "exponential")


def logarithm(eps: float) -> Family:
    """The identity rule for a logarithm; that of a probability is linearised at its operand."""

    def apply(operation: Operation, x: Tensor) -> Tensor:
        if x.requires_grad:
            check_logarithm(x)
        linear = x.requires_grad and is_probability(x) and not is_checking()

        def share(v: Tensor) -> Tensor:
            if not linear:
                return torch.ones_like(v)
            return operation(torch.full_like(v, math.e)) / (operation(v) + eps)

        return replaced(share, operation, x, (), {}, gates=False)

    return Family(apply, "logarithm")


def quotient(eps: float, rule: Family, softmax_is_constant: bool = False) -> Family:
    """The ε-rule for the numerator; for exponentials over their sum, the rule of softmax."""
    plain = as_family(linearised(rule, eps))

    def apply(operation: Operation, a: Any, *args: Any, **kwargs: Any) -> Any:
        other: Any = kwargs.get("other", args[0] if args else None)
        softmax = written_softmax(a, other)
        if softmax is None:
            return plain.function(operation, a, *args, **kwargs)
        if softmax_is_constant:
            return constant.function(operation, a, *args, **kwargs)
        log_base = softmax.log_base

        def backward(r: Tensor, x: Tensor, d: Tensor, logits: Tensor, *summed: Tensor) -> Tensor:
            total = r.sum_to_size(d.shape) * (x / d)
            for part in summed:
                total = total * part
            return exponential_over_slope(logits * log_base) * (r - total)

        return substitute(
            a,
            lambda x: (operation(x, other), (x, other.detach(), *softmax.tensors())),
            backward,
            rest="softmax",
        )

    return Family(apply, "quotient")
