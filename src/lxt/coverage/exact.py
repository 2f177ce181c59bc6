"""Float64 that is float64 throughout, so that tests may ask for more digits than float32 has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ExactFloat64"]


class ExactFloat64(TorchFunctionMode):
    """While it is active, a float64 tensor stays float64 where a model asks for float32.

    Norms, eager softmax and routers of `transformers` compute in float32 whatever the dtype, so
    that a float64 model is exact to 1e-7 only, its eager and SDPA attention differ by as much,
    and eager attention is NaN where a row is wholly masked, as it is on the left of a causal one:
    the lowest float64 is -inf in float32. Enter it around the forward, outside of lxt's context.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)
