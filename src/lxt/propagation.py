"""Propagation: one composite applied to the forward passes of one model instance.

While the instance's own forward runs, and only then, a torch function mode hands every operation to
its rule, modules that are targets run their rule instead of their forward, and parameters count as
constants. Before the forward returns, all of that is undone. The backward pass needs nothing to be
active, except where a checkpoint recomputes: it is made to enter again by itself.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lxt.checkpoint import reenter_checkpoint
from lxt.composite import Composite, OnUnknown, Rule, target_name
from lxt.errors import AlreadyRegistered, InvalidModel, UnknownOperation
from lxt.opaque import OpaqueOperations, tensors_in
from lxt.parameters import ConstantParameters
from lxt.rules.elementary import Unfolded, composed, passthrough
from lxt.rules.registry import Family, Refusal
from lxt.unknown import unknown_node, unknown_operation
from lxt.verify import verified

__all__ = ["Propagation"]

# Every module of a registered model → its propagation. Weak on both sides: it keeps nothing alive.
_registered: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Propagation]] = (
    weakref.WeakKeyDictionary()
)


_FUNCTION_APPLY = torch.autograd.Function.apply.__func__.__code__


class _Active(threading.local):
    """The rules in force in this thread: those of the innermost forward under a propagation."""

    mode: _RuleMode | None = None
    depth = 0


_active = _Active()


def is_inside() -> bool:
    """Whether this thread is inside any forward under a propagation, in a unit of it too."""
    return _active.depth > 0


class Propagation:
    """A composite at work on one model instance; `.remove()` takes it off again.

    Made by `Composite.register` and `Composite.context`. One that isn't `registered` is in force
    only where somebody calls `run`; it leaves the instance free for others and doesn't keep it.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        on_unknown: OnUnknown,
        *,
        registered: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidModel(f"{model!r} is no torch.nn.Module: relevance can't flow through it")
        if registered:
            _require_free(model)
        _require_ready(model)
        composite.require_names_in(model)
        self._model: Callable[[], nn.Module | None] = (
            (lambda: model) if registered else weakref.ref(model)
        )
        self.composite = composite
        self.on_unknown: OnUnknown = on_unknown
        self._functions: dict[Any, Callable[..., Any] | None] = {}
        self._module_rules: dict[type, Rule | None] = {}
        self._lock = threading.Lock()
        self._depth = 0
        self._undo = ExitStack()
        self.was_called = False
        """Whether the model's forward has run since, with gradients or without."""
        self.carried_relevance: bool | None = None
        """Whether its output depended on a leaf; None until it has run with gradients."""
        self._entrance: _Entrance | None = None
        if registered:
            for module in model.modules():
                _registered[module] = weakref.ref(self)
            self._entrance = _Entrance(model, self)

    @property
    def model(self) -> nn.Module:
        """The instance."""
        model = self._model()
        assert model is not None, "it is its own forward that runs"
        return model

    def remove(self) -> None:
        """Take the composite off the model. Removing twice is harmless."""
        if self._entrance is not None:
            self._entrance.remove()
            self._entrance = None
        for module in self.model.modules():
            if _propagation_of(module) is self:
                del _registered[module]

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the model's own `forward` under the rules, but for calls without gradients."""
        self.was_called = True
        if not torch.is_grad_enabled() or self.is_active():
            return forward(*args, **kwargs)
        with self.active() as mode:
            unit = self.model.__dict__.get("forward")  # where the model is a target itself
            output = (unit if isinstance(unit, _Unit) else forward)(*args, **kwargs)
            mode.check_output(output)
            if any(tensor.requires_grad for tensor in tensors_in(output)):
                self.carried_relevance = True
            elif self.carried_relevance is None:
                self.carried_relevance = False
            return output

    @contextmanager
    def active(self) -> Iterator[_RuleMode]:
        """Put the rules in force in this thread, for a forward pass or a checkpoint's rerun."""
        outer = _active.mode
        mode = _RuleMode(self)
        with self._prepared(), outer.suspended() if outer else nullcontext(), mode:
            _active.mode = mode
            _active.depth += 1
            try:
                yield mode
            finally:
                _active.depth -= 1
                _active.mode = outer

    def rule_of(self, function: Any) -> Callable[..., Any] | None:
        """What to call in place of a torch function: `function` itself, its rule, or None."""
        try:
            return self._functions[function]
        except KeyError:
            rule = self.composite.function_rule(function)
            if rule is passthrough:
                rule = function
            elif rule is composed:
                rule = Unfolded(function)
            elif rule is not None:
                rule = _callable(rule, function, (), target_name(function))
            self._functions[function] = rule
            return rule

    def reenter(self) -> AbstractContextManager[Any]:
        """`active`, unless this thread is inside already."""
        return nullcontext() if self.is_active() else self.active()

    def is_active(self) -> bool:
        """Whether this thread is inside a forward pass of the model."""
        return _active.mode is not None and _active.mode.propagation is self

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Parameters are constants and module rules in place, from first entry to last exit."""
        with self._lock:
            if self._depth == 0:
                with ExitStack() as undo:
                    undo.callback(ConstantParameters(self.model).release)
                    for module, rule in self._module_targets():
                        undo.callback(_Unit(module, self, rule).remove)
                    self._undo = undo.pop_all()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._undo.close()

    def _module_targets(self) -> Iterator[tuple[nn.Module, Rule]]:
        """The modules that are targets now: a model may have changed since it was registered."""
        seen: set[nn.Module] = set()
        for name, module in self.model.named_modules(remove_duplicate=False):
            rule = self.composite.named_rule(name)
            if rule is None:
                cls = type(module)
                if cls not in self._module_rules:
                    self._module_rules[cls] = self.composite.class_rule(cls)
                rule = self._module_rules[cls]
            if rule is not None and module not in seen:
                seen.add(module)
                yield module, rule

    def __repr__(self) -> str:
        state = "removed from" if self._entrance is None else "on"
        return f"Propagation({self.composite.name!r} {state} {type(self.model).__name__})"


def _callable(
    rule: Rule, operation: Callable[..., Any], first: tuple[Any, ...], name: str
) -> Callable[..., Any]:
    """What runs in place of `operation`; a rule that is not this library's is verified.

    A function gets `first` before the operation's arguments.
    """
    if isinstance(rule, Family):
        written, run = rule.function, rule.bind(operation)
    else:
        written, run = rule, functools.partial(rule, *first)
    if getattr(written, "__module__", "").partition(".")[0] == "lxt":
        return run
    return verified(run, operation, name)


def _require_free(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if (other := _propagation_of(module)) is not None:
            part = f"its module {name!r}" if name else "this model"
            raise AlreadyRegistered(
                f"{part} ({type(module).__name__}) is under {other.composite.name!r} already: "
                "call .remove() on that handle, or leave its context, first"
            )


def _require_ready(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"its module {name!r}" if name else "this model"
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise InvalidModel(
                f"{where} is compiled, so nothing shows which operations it runs: give the model "
                "as it was before torch.compile"
            )
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise InvalidModel(
                f"{where} ({type(module).__name__}) has parameters without a shape yet: run the "
                "model once first"
            )


def _propagation_of(module: nn.Module) -> Propagation | None:
    reference = _registered.get(module)
    return reference() if reference else None


class _RuleMode(TorchFunctionMode):
    """Hands each torch function called in this thread to its rule."""

    def __init__(self, propagation: Propagation) -> None:
        super().__init__()
        self.propagation = propagation
        self._tolerant = propagation.on_unknown == "gradient"
        self._opaque = OpaqueOperations()
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
            if not self._tolerant and self._opaque.carries(result):
                raise self._unknown(func)
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
            if self._tolerant:
                return func(*args, **kwargs)
            raise self._unknown(func, str(refusal)) from None

    def _unknown(self, func: Any, reason: str | None = None) -> UnknownOperation:
        propagation = self.propagation
        return unknown_operation(propagation.model, propagation.composite.name, func, reason)

    def _look_at(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise if one of the operands came out of an operation that was not seen."""
        node = self._opaque.before(args, kwargs)
        if node is not None and not self._tolerant:
            raise unknown_node(self.propagation.model, self.propagation.composite.name, node)

    def run_unit(self, rule: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run a module's rule as one operation: what happens inside is the rule's own affair."""
        reenter_checkpoint(self.propagation.reenter)
        self._look_at(args, kwargs)
        try:
            with self.suspended():
                return rule(*args, **kwargs)
        finally:
            self._opaque.after()

    def check_output(self, output: Any) -> None:
        """Look at the end of the path too: no later operation will."""
        self._look_at((output,), {})

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
        self.propagation: Propagation | None = propagation
        self.earlier = module.__dict__.get("forward")
        forward = module.forward
        # Of a model that is a target itself, the entrance stands before its unit.
        self.original: Callable[..., Any] = (
            forward.original if isinstance(forward, _StandIn) else forward
        )
        functools.update_wrapper(cast("Any", self), self.original, updated=())
        module.__dict__["forward"] = self

    def remove(self) -> None:
        """Put back what was there, or step aside where others have put theirs on top since."""
        self.propagation = None  # which the module, if others keep this in place, need not keep
        if self.module.__dict__.get("forward") is self:
            if self.earlier is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = self.earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model is another instance, under no composite."""
        if self.earlier is not None:
            return copy.deepcopy(self.earlier, memo)
        return MethodType(type(self.module).forward, memo[id(self.module)])

    def __reduce__(self) -> Any:
        raise AlreadyRegistered(
            f"{type(self.module).__name__} is under a composite: "
            "call .remove() on its handle, or leave its context, before pickling it"
        )


class _Entrance(_StandIn):
    """The way into the model: the rules are in force from here until the forward returns."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        propagation = self.propagation
        if propagation is None:
            return self.original(*args, **kwargs)
        return propagation.run(self.original, args, kwargs)


class _Unit(_StandIn):
    """A module that is a target: its rule runs in place of its forward."""

    def __init__(self, module: nn.Module, propagation: Propagation, rule: Rule) -> None:
        super().__init__(module, propagation)
        self.rule = _callable(rule, self.original, (module,), type(module).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = _active.mode
        if mode is None or mode.propagation is not self.propagation or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return mode.run_unit(self.rule, args, kwargs)
