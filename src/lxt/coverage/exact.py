"""Float64 that is float64 throughout, so that tests may ask for more digits than float32 has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ExactFloat64"]


class ExactFloat64(TorchFunctionMode):
    """While it is active, what a model asks for in float32 it gets in float64.

    Norms, eager softmax, routers and masks of `transformers` are computed in float32 whatever the
    dtype, so that a float64 model is exact to 1e-7 only, its eager and SDPA attention differ by as
    much, and attention is NaN where a row is wholly masked: the lowest float64 is -inf in float32.
    Enter it around the forward, outside of lxt's context.
    """

    def __enter__(self) -> ExactFloat64:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)
