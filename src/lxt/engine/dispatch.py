"""Under which name a function mode sees the functions that people write."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.rules.registry import OPERATORS

__all__ = ["as_dispatched"]

# What functions of torch's call that never show themselves.
_CALLED: dict[Any, Any] = {
    F.sigmoid: Tensor.sigmoid,
    F.tanh: Tensor.tanh,
    F.upsample: F.interpolate,
    **({F.grouped_mm: torch._grouped_mm} if hasattr(F, "grouped_mm") else {}),  # pyright: ignore[reportPrivateImportUsage]
}

# The operators' methods that aren't seen by their own names, as that of `2 - a` is.
_OPERATOR_METHODS = {
    **{f"__{operator.__name__}__": getattr(Tensor, name) for operator, name in OPERATORS.items()},
    **{"__radd__": Tensor.add, "__rmul__": Tensor.mul, "__idiv__": Tensor.div_},
}


def as_dispatched(target: Any) -> Any:
    """The function that a mode sees where Python calls an operator's method of `Tensor`.

    And that which a function calls that no mode sees.
    """
    if isinstance(target, FunctionType):
        return _CALLED.get(target, target)
    name = getattr(target, "__name__", "")
    if getattr(Tensor, name, None) is not target or not name.startswith("__"):
        return target
    return _OPERATOR_METHODS.get(name, target)
