"""The torch function mode under which a model's forward runs: each operation goes to its rule."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lxt.composite import target_name
from lxt.engine.checkpoint import reenter_checkpoint
from lxt.engine.opaque import OpaqueOperations
from lxt.engine.unknown import unknown_node, unknown_operation
from lxt.errors import UnknownOperation
from lxt.rules.elementary import Unfolded
from lxt.rules.registry import Refusal

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["RuleMode", "in_force", "is_inside", "outside_rules"]

_FUNCTION_APPLY = torch.autograd.Function.apply.__func__.__code__


class _InForce(threading.local):
    """The rules in force in this thread: those of the innermost forward under a propagation."""

    mode: RuleMode | None = None

    def __init__(self) -> None:
        self.propagations: list[Propagation] = []  # those whose forward runs, units too


in_force = _InForce()


@contextmanager
def outside_rules() -> Iterator[None]:
    """Run operations as they are, within a forward that is under rules."""
    mode = in_force.mode
    with mode.suspended() if mode is not None else nullcontext():
        yield


def is_inside() -> bool:
    """Whether this thread is inside any forward under a propagation, in a unit of it too."""
    return bool(in_force.propagations)


class RuleMode(TorchFunctionMode):
    """Hands each torch function called in this thread to its rule."""

    def __init__(self, propagation: Propagation) -> None:
        super().__init__()
        self.propagation = propagation
        self._tolerant = propagation.on_unknown == "gradient"
        self._opaque = OpaqueOperations(propagation.composite.formulation)
        self._suspensions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._suspensions or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if sys._getframe(1).f_code is _FUNCTION_APPLY:
            # torch itself, at work on a Function's result under a lock that `grad_fn` would take
            return func(*args, **kwargs)
        reenter_checkpoint(self.propagation.reenter)
        self._look_at(args, kwargs)
        try:
            return self._apply(func, args, kwargs)
        finally:
            self._opaque.after()

    def _apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self.propagation.rule_of(func)
        if rule is None:
            result = func(*args, **kwargs)
            if self._opaque.carries(result):
                if not self._tolerant:
                    raise self._unknown(func)
                self._leave_plain(target_name(func))
            return result
        if rule is func:
            return func(*args, **kwargs)
        if not args and "input" in kwargs:  # what torch calls a function's first operand
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        try:
            if type(rule) is Unfolded:
                with self:
                    return rule(*args, **kwargs)
            return rule(*args, **kwargs)
        except Refusal as refusal:
            if not self._tolerant:
                raise self._unknown(func, str(refusal)) from None
            self._leave_plain(f"{target_name(func)} ({refusal})")
            return func(*args, **kwargs)

    def _leave_plain(self, what: str) -> None:
        """Tell whoever wants to know that an operation hands back its plain gradient."""
        if self.propagation.on_plain is not None:
            self.propagation.on_plain(what)

    def _unknown(self, func: Any, reason: str | None = None) -> UnknownOperation:
        propagation = self.propagation
        return unknown_operation(propagation.model, propagation.composite.name, func, reason)

    def _look_at(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise if one of the operands came out of an operation that was not seen."""
        node = self._opaque.before(args, kwargs)
        if node is None:
            return
        if not self._tolerant:
            raise unknown_node(self.propagation.model, self.propagation.composite.name, node)
        self._leave_plain(node.removesuffix("Backward"))

    def run_unit(
        self,
        module: nn.Module,
        rule: Callable[..., Any],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Run a module's rule as one operation: what happens inside is the rule's own affair."""
        reenter_checkpoint(self.propagation.reenter)
        self._look_at(args, kwargs)
        try:
            with self.suspended():
                try:
                    return rule(*args, **kwargs)
                except Refusal as refusal:
                    if not self._tolerant:
                        raise self._unknown(type(module), str(refusal)) from None
                    self._leave_plain(f"{type(module).__name__} ({refusal})")
                    return original(*args, **kwargs)
        finally:
            self._opaque.after()

    def check_output(self, output: Any) -> None:
        """Look at the end of the path too: no later operation will."""
        self._look_at((output,), {})

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let operations run as they are: inside a unit, or in another model's own propagation."""
        self._suspensions += 1
        in_force.mode = None
        try:
            yield
        finally:
            in_force.mode = self
            self._suspensions -= 1
            self._opaque.after()
