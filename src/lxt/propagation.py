"""Propagation: one composite applied to the forward passes of one model instance.

While the instance's own forward runs, and only then, a torch function mode hands every operation to
its rule, modules that are targets run their rule instead of their forward, and parameters count as
constants. Before the forward returns, all of that is undone. The backward pass needs nothing to be
active, except where a checkpoint recomputes: it is made to enter again by itself.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lxt.checkpoint import reenter_checkpoint
from lxt.composite import Composite, OnUnknown, Rule
from lxt.errors import AlreadyRegistered, InvalidModel, UnknownOperation
from lxt.opaque import OpaqueOperations
from lxt.rules.elementary import passthrough
from lxt.rules.registry import Family, Refusal
from lxt.unknown import unknown_node, unknown_operation

__all__ = ["Propagation"]

# Every module of a registered model → its propagation. Weak on both sides: it keeps nothing alive.
_registered: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Propagation]] = (
    weakref.WeakKeyDictionary()
)


class _Active(threading.local):
    """The rules in force in this thread: those of the innermost forward under a propagation."""

    mode: _RuleMode | None = None


_active = _Active()


class Propagation:
    """A composite at work on one model instance; `.remove()` takes it off again.

    Made by `Composite.register` and `Composite.context`.
    """

    def __init__(self, model: nn.Module, composite: Composite, on_unknown: OnUnknown) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidModel(f"{model!r} is no torch.nn.Module: relevance can't flow through it")
        for name, module in model.named_modules():
            if (other := _propagation_of(module)) is not None:
                part = f"its module {name!r}" if name else "this model"
                raise AlreadyRegistered(
                    f"{part} ({type(module).__name__}) is under {other.composite.name!r} already: "
                    "call .remove() on that handle, or leave its context, first"
                )
        self.model = model
        self.composite = composite
        self.on_unknown: OnUnknown = on_unknown
        self._functions: dict[Any, Callable[..., Any] | None] = {}
        self._units = [
            (module, rule)
            for name, module in model.named_modules()
            if (rule := composite.module_rule(name, module)) is not None
        ]
        self._lock = threading.Lock()
        self._depth = 0
        self._undo: list[Callable[[], object]] = []
        for module in model.modules():
            _registered[module] = weakref.ref(self)
        self._entrance = _Entrance(model, self)

    def remove(self) -> None:
        """Take the composite off the model. Removing twice is harmless."""
        self._entrance.remove()
        for module in self.model.modules():
            if _propagation_of(module) is self:
                del _registered[module]

    @contextmanager
    def active(self) -> Iterator[_RuleMode]:
        """Put the rules in force in this thread, for a forward pass or a checkpoint's rerun."""
        outer = _active.mode
        mode = _RuleMode(self)
        self._hold()
        try:
            with outer.suspended() if outer else nullcontext(), mode:
                _active.mode = mode
                yield mode
        finally:
            _active.mode = outer
            self._release()

    def rule_of(self, function: Any) -> Callable[..., Any] | None:
        """What to call in place of a torch function: `function` itself, its rule, or None."""
        try:
            return self._functions[function]
        except KeyError:
            rule = self.composite.function_rule(function)
            if rule is passthrough:
                rule = function
            elif isinstance(rule, Family):
                rule = rule.bind(function)
            self._functions[function] = rule
            return rule

    def reenter(self) -> AbstractContextManager[Any]:
        """`active`, unless this thread is inside already."""
        return nullcontext() if self.is_active() else self.active()

    def is_active(self) -> bool:
        """Whether this thread is inside a forward pass of the model."""
        return _active.mode is not None and _active.mode.propagation is self

    def _hold(self) -> None:
        """Make parameters constants and put the module rules in place, for the first to enter."""
        with self._lock:
            self._depth += 1
            if self._depth > 1:
                return
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.is_leaf:
                    parameter.requires_grad_(False)
                    self._undo.append(functools.partial(parameter.requires_grad_, True))
            for module, rule in self._units:
                self._undo.append(_Unit(module, self, rule).remove)

    def _release(self) -> None:
        """Hand everything back as it was, by the last to leave."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                while self._undo:
                    self._undo.pop()()

    def __repr__(self) -> str:
        state = "removed from" if self._entrance.retired else "on"
        return f"Propagation({self.composite.name!r} {state} {type(self.model).__name__})"


def _propagation_of(module: nn.Module) -> Propagation | None:
    reference = _registered.get(module)
    return reference() if reference else None


class _RuleMode(TorchFunctionMode):
    """Hands each torch function called in this thread to its rule."""

    def __init__(self, propagation: Propagation) -> None:
        super().__init__()
        self.propagation = propagation
        self._tolerant = propagation.on_unknown == "gradient"
        self._opaque = OpaqueOperations(self._report_node)
        self._suspensions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._suspensions or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        reenter_checkpoint(self.propagation.reenter)
        self._opaque.before(args, kwargs)
        try:
            return self._apply(func, args, kwargs)
        finally:
            self._opaque.after()

    def _apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self.propagation.rule_of(func)
        if rule is None:
            result = func(*args, **kwargs)
            if not self._tolerant and self._opaque.carries(result):
                raise self._unknown(func)
            return result
        if rule is func:
            return func(*args, **kwargs)
        if not args and "input" in kwargs:  # what torch calls a function's first operand
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        try:
            return rule(*args, **kwargs)
        except Refusal as refusal:
            if self._tolerant:
                return func(*args, **kwargs)
            raise self._unknown(func, str(refusal)) from None

    def _unknown(self, func: Any, reason: str | None = None) -> UnknownOperation:
        propagation = self.propagation
        return unknown_operation(propagation.model, propagation.composite.name, func, reason)

    def _report_node(self, node: str) -> None:
        if not self._tolerant:
            raise unknown_node(self.propagation.model, self.propagation.composite.name, node)

    def run_unit(self, rule: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run a module's rule as one operation: what happens inside is the rule's own affair."""
        reenter_checkpoint(self.propagation.reenter)
        self._opaque.before(args, kwargs)
        try:
            with self.suspended():
                return rule(*args, **kwargs)
        finally:
            self._opaque.after()

    def check_output(self, output: Any) -> None:
        """Look at the end of the path too: no later operation will."""
        self._opaque.before((output,), {})

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let operations run as they are: inside a unit, or in another model's own propagation."""
        self._suspensions += 1
        _active.mode = None
        try:
            yield
        finally:
            _active.mode = self
            self._suspensions -= 1
            self._opaque.after()


class _StandIn:
    """An instance's `forward` attribute that stands before its forward until it is taken off."""

    def __init__(self, module: nn.Module, propagation: Propagation) -> None:
        self.module = module
        self.propagation = propagation
        self.earlier = module.__dict__.get("forward")
        self.original: Callable[..., Any] = module.forward
        self.retired = False
        functools.update_wrapper(cast("Any", self), self.original, updated=())
        module.__dict__["forward"] = self

    def remove(self) -> None:
        """Put back what was there, or step aside where others have put theirs on top since."""
        self.retired = True
        if self.module.__dict__.get("forward") is self:
            if self.earlier is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another instance, under no composite."""
        return MethodType(type(self.module).forward, memo[id(self.module)])

    def __reduce__(self) -> Any:
        raise AlreadyRegistered(
            f"{type(self.module).__name__} is under {self.propagation.composite.name!r}: "
            "call .remove() on its handle, or leave its context, before pickling it"
        )


class _Entrance(_StandIn):
    """The way into the model: the rules are in force from here until the forward returns."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.retired or not torch.is_grad_enabled() or self.propagation.is_active():
            return self.original(*args, **kwargs)
        with self.propagation.active() as mode:
            output = self.original(*args, **kwargs)
            mode.check_output(output)
            return output


class _Unit(_StandIn):
    """A module that is a target: its rule runs in place of its forward."""

    def __init__(self, module: nn.Module, propagation: Propagation, rule: Rule) -> None:
        super().__init__(module, propagation)
        self.rule = (
            rule.bind(self.original)
            if isinstance(rule, Family)
            else functools.partial(rule, module)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = _active.mode
        if mode is None or mode.propagation is not self.propagation or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return mode.run_unit(self.rule, args, kwargs)
