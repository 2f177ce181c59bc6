"""What stands before a module's forward for a while, and steps aside without a trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from torch import nn

from lxt.errors import AlreadyRegistered

__all__ = ["StandIn"]


def _itself(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


class StandIn:
    """An instance's `forward` attribute that stands before its forward until it is taken off."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.is_on = True
        self.earlier = module.__dict__.get("forward")
        forward = module.forward
        # Of a model that is a target itself, the entrance stands before its unit.
        self.original: Callable[..., Any] = (
            forward.original if isinstance(forward, StandIn) else forward
        )
        functools.update_wrapper(cast("Any", self), self.original, updated=())
        module.__dict__["forward"] = self

    def remove(self) -> None:
        """Put back what was there, or step aside where others have put theirs on top since."""
        self.is_on = False
        if self.module.__dict__.get("forward") is self:
            if self.earlier is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.earlier
        elif self.module.__dict__.get("_old_forward") is self:  # accelerate's hook is on top
            self.module.__dict__["_old_forward"] = self.earlier or self.original

    def is_put_aside(self) -> bool:
        """Whether somebody else has put the class's own forward back in our place."""
        forward = self.module.__dict__.get("forward")
        return forward is None or getattr(forward, "__func__", None) is type(self.module).forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another instance, under no composite."""
        if self.earlier is not None:
            return copy.deepcopy(self.earlier, memo)
        return MethodType(type(self.module).forward, memo[id(self.module)])

    def __reduce__(self) -> Any:
        if not self.is_on:  # taken off, under what others have put on top
            return _itself, (self.original,)
        raise AlreadyRegistered(
            f"{type(self.module).__name__} is under a composite: "
            "call .remove() on its handle, or leave its context, before pickling it"
        )
