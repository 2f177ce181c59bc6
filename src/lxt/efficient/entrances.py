"""Class entrances: a class whose instances run under a composite whenever they are called."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lxt.composite import Composite, nothing_to_explain
from lxt.engine.callsite import enclosing_module, warn_caller
from lxt.engine.mode import is_inside
from lxt.engine.opaque import tensors_in
from lxt.errors import UnusedCompositeWarning
from lxt.propagation import Propagation

__all__ = ["ClassEntrance"]


class ClassEntrance:
    """What stands before `__call__` and `forward` of a class: the way in for each instance.

    Of nested calls only the outermost enters: the rules cover what is within. Its own hooks run
    outside of them, unless the instance has a `forward` of its own, such as accelerate's: then
    `__call__` is the way in.
    """

    def __init__(self, cls: type[nn.Module], composite: Composite, constants: bool) -> None:
        self._cls = cls
        self._composite = composite
        self._constants = constants
        self._is_on = True
        self._propagations: weakref.WeakKeyDictionary[nn.Module, Propagation] = (
            weakref.WeakKeyDictionary()
        )
        self._in_vain: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._methods: dict[str, tuple[Any, Any]] = {}
        for name in ("__call__", "forward"):
            earlier, method = vars(cls).get(name), self._entering(name)
            self._methods[name] = (earlier, method)
            setattr(cls, name, method)

    def remove(self) -> None:
        """Put the class's own methods back, unless somebody replaced ours since."""
        self._is_on = False  # for those who keep ours
        for name, (earlier, method) in self._methods.items():
            if vars(self._cls).get(name) is not method:
                continue
            if earlier is None:
                delattr(self._cls, name)
            else:
                setattr(self._cls, name, earlier)

    def _entering(self, name: str) -> Callable[..., Any]:
        entrance, original = self, getattr(self._cls, name)

        @functools.wraps(original)
        def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            is_call = name == "__call__"
            is_ours = entrance._is_on and torch.is_grad_enabled() and not is_inside()
            is_bypassed = is_call and "forward" not in vars(self)  # by `forward`, which is next
            if not is_ours or is_bypassed or _is_others(type(self), entrance._cls):
                return original(self, *args, **kwargs)
            return entrance._run(self, original.__get__(self), args, kwargs, is_call)

        vars(method)["_lxt_stands_before"] = original
        return method

    def _run(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_call: bool,
    ) -> Any:
        with self._lock:
            propagation = self._propagations.get(model)
            is_first = propagation is None
            if propagation is None:
                composite, constants = self._composite, self._constants
                propagation = Propagation(
                    model, composite, composite.on_unknown, registered=False, constants=constants
                )
                self._propagations[model] = propagation
        output = propagation.run(forward, args, kwargs, is_call=is_call)
        carries = any(tensor.requires_grad for tensor in tensors_in(output))
        if is_first or (not carries and model not in self._in_vain):
            self._warn(model, carries)
        return output

    def _warn(self, model: nn.Module, carries: bool) -> None:
        """Say, once for each model, what a call shows to be in vain, or in part."""
        problem = None
        outer = enclosing_module(model)
        if not carries:
            self._in_vain.add(model)
            if any(parameter.requires_grad for parameter in model.parameters()):
                problem = (
                    f"{nothing_to_explain(model, self._composite)}; to train the model, remove the "
                    "patch first: its parameters get no gradient"
                )
        elif outer is not None:
            problem = (
                f"{type(model).__name__} is patched, and {type(outer).__name__}, which it is a "
                "part of, is not: outside of it relevance is the plain gradient. Patch the Python "
                f"module of {type(outer).__name__} too, or the model: monkey_patch(model)"
            )
        if problem:
            warn_caller(problem, UnusedCompositeWarning)


def _is_others(cls: type, patched: type) -> bool:
    """Whether a subclass of a patched class is another library model, which is not to change."""
    libraries = ("transformers.", "torchvision.", "timm.")
    return cls.__module__ != patched.__module__ and cls.__module__.startswith(libraries)
