"""What stands in for forwards under rules: the way into a model, and modules that are targets."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lxt.engine.compiled import as_written
from lxt.engine.mode import in_force
from lxt.engine.standins import StandIn
from lxt.engine.verify import verified
from lxt.entries import FunctionRule, Rule
from lxt.fusion.unit import FusedUnit
from lxt.rules.registry import Family
from lxt.structure import Within

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["Entrance", "Unit", "bound_rule"]


def bound_rule(
    rule: FunctionRule,
    operation: Callable[..., Any],
    first: tuple[Any, ...],
    name: str,
    seen: set[Any],
) -> Callable[..., Any]:
    """What runs in place of `operation`; a rule that is not this library's is verified once.

    A function gets `first` before the operation's arguments. `seen` is what was verified.
    """
    if isinstance(rule, Family):
        written, run = rule.function, rule.bind(operation)
    else:
        written, run = rule, functools.partial(rule, *first)
    if (getattr(written, "__module__", None) or "").partition(".")[0] == "lxt":
        return run
    return verified(run, operation, name, seen, (id(written), name, *map(id, first)))


class Entrance(StandIn):
    """The way into the model: the rules are in force from here until the forward returns."""

    def __init__(self, module: nn.Module, propagation: Propagation) -> None:
        super().__init__(module)
        self.propagation: Propagation | None = propagation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, under the rules unless they were taken off."""
        propagation = self.propagation
        if propagation is None:
            return self.original(*args, **kwargs)
        return as_written(propagation.run, self.original, args, kwargs)

    def remove(self) -> None:
        """Take it off; others who keep it in place need not keep the propagation."""
        self.propagation = None
        super().remove()


_units_lock = threading.Lock()


class Unit(StandIn):
    """A module that is a target: a rule runs in place of its forward.

    It serves every propagation that has the module for a target at the time: a model and a part of
    it may run in two threads at once.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.rules: dict[Propagation, tuple[Rule, Callable[..., Any]]] = {}

    @classmethod
    def install(cls, module: nn.Module, propagation: Propagation, rule: Rule) -> Unit:
        """Put the rule on the module for the forwards of one propagation."""
        with _units_lock:
            forward = module.__dict__.get("forward")
            unit = forward if isinstance(forward, cls) else cls(module)
            name = type(module).__name__
            try:
                seen = propagation.verified
                if isinstance(rule, Within):
                    bound = propagation.in_the_open(module, unit.original) or unit.original
                else:
                    bound = bound_rule(rule, unit.original, (module,), name, seen)
                unit.rules[propagation] = rule, bound
            except BaseException:
                if not unit.rules:
                    unit.remove()
                raise
            return unit

    def release(self, propagation: Propagation) -> None:
        """Take its rule off, and the unit with the last of them."""
        with _units_lock:
            del self.rules[propagation]
            if not self.rules:
                self.remove()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the rule that the propagation in force has for the module, or else its forward."""
        mode = in_force.mode
        rules = self.rules.get(mode.propagation) if mode is not None else None
        if mode is None or rules is None or not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        written, rule = rules
        if isinstance(written, FusedUnit) and not (
            written.takes(args, kwargs) and mode.is_in_the_open()
        ):
            return self.original(*args, **kwargs)
        if isinstance(written, Within):
            return mode.run_within(self.module, written, rule, args, kwargs)
        return mode.run_unit(self.module, written, rule, self.original, args, kwargs)
