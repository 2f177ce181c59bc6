"""Compiled code under rules: `torch.compile` traces operations once, and rules act as they run.

So a forward under rules runs as it is written: a compiled model hands over to it at a graph break,
and what is compiled within runs uncompiled. The same relevance comes out, at the speed of the model
as it was before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["as_written"]


def as_written(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function with all within it uncompiled, should the compiler be in use at all."""
    if "torch._dynamo" not in sys.modules:
        return function(*args, **kwargs)
    uncompiled: Any = torch.compiler.disable(_eagerly)
    return uncompiled(function, args, kwargs)


def _eagerly(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with torch.compiler.set_stance("force_eager"):
        return function(*args, **kwargs)
