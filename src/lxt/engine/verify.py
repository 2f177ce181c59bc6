"""Verifies a rule that a user wrote when it first runs: it must return the operation's value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lxt.engine.opaque import tensors_in
from lxt.errors import InvalidComposite

__all__ = ["verified"]


def verified(
    rule: Callable[..., Any], operation: Callable[..., Any], name: str, seen: set[Any], key: Any
) -> Callable[..., Any]:
    """`rule`, compared with `operation` in its first call.

    Args:
        rule: the rule as the user gave it, which takes the arguments of the operation.
        operation: what it stands for.
        name: how the operation is called in messages.
        seen: the keys of rules that were compared.
        key: that of this one.

    """
    if name.endswith("_") or key in seen:  # an in-place operation can't be run twice
        return rule

    def run(*args: Any, **kwargs: Any) -> Any:
        if key in seen:
            return rule(*args, **kwargs)
        _require_signature(rule, args, kwargs, name)
        with torch.no_grad():
            expected = operation(*args, **kwargs)
        result = rule(*args, **kwargs)
        _require_value(result, expected, name)
        seen.add(key)
        return result

    return run


def _require_signature(rule: Any, args: tuple[Any, ...], kwargs: Any, name: str) -> None:
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # a builtin tells nothing
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        keywords = "".join(f", {key}=…" for key in kwargs)
        raise InvalidComposite(
            f"the rule of {name} takes {signature}, and is called with {len(args)} positional "
            f"arguments{keywords} ({error}): give it the signature of the operation"
        ) from None


def _require_value(result: Any, expected: Any, name: str) -> None:
    pairs = list(zip(tensors_in(result), tensors_in(expected), strict=False))
    same = type(result) is type(expected) or isinstance(result, Tensor)
    if not same or not all(_equal(a, b) for a, b in pairs):
        raise InvalidComposite(
            f"the rule of {name} returns another value than {name} itself: a rule may change the "
            "backward pass only"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, equal_nan=True)
