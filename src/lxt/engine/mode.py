"""The torch function mode under which a model's forward runs: each operation goes to its rule."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lxt.engine.checkpoint import reenter_checkpoint
from lxt.engine.escapes import (
    DESCRIBES,
    FUNCTION_APPLY,
    Escapes,
    is_watched,
    unseen_values,
    written_by,
)
from lxt.engine.opaque import OpaqueOperations
from lxt.engine.unknown import unknown_node, unknown_operation
from lxt.entries import Rule, target_name
from lxt.errors import UnknownOperation
from lxt.gradients import keep_operands
from lxt.rules.elementary import Unfolded
from lxt.rules.registry import Refusal
from lxt.structure import Within

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["Observer", "RuleMode", "in_force", "is_inside", "outside_rules"]


_depth = torch._C._len_torch_function_stack  # pyright: ignore[reportAttributeAccessIssue]


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


class Observer(Protocol):
    """Somebody who watches each operation of a forward pass under rules."""

    def starts(self) -> None:
        """The model's forward begins."""

    def begins(
        self,
        target: Any,
        operation: Callable[..., Any],
        rule: Rule | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """An operation is about to run; `target` is what the composite knows it by."""

    def ends(self, result: Any) -> None:
        """It has run."""

    def escapes(self, function: Any, reason: str) -> None:
        """A torch function hands values to where no rule sees them."""

    def stopped(self, result: Any) -> None:
        """An operation has run where the model's code has switched gradients off."""


class RuleMode(TorchFunctionMode):
    """Hands each torch function called in this thread to its rule."""

    def __init__(self, propagation: Propagation, *, is_rerun: bool = False) -> None:
        """`is_rerun`: a checkpoint runs a part of the forward pass again."""
        super().__init__()
        self.propagation = propagation
        self.is_rerun = is_rerun
        self._tolerant = propagation.on_unknown == "gradient"
        self._opaque = OpaqueOperations(propagation.composite.formulation)
        self._escapes = Escapes()
        self._suspensions = 0
        self._depth = _depth() + 1
        self._within: list[Within] = []  # the rules of the modules that are running, that are so
        self._called: list[Callable[..., Any]] = []  # functions written in Python that have a rule

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._suspensions or func in DESCRIBES:
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._without_graph(func, args, kwargs)
        if sys._getframe(1).f_code is FUNCTION_APPLY:
            # torch itself, at work on a Function's result under a lock that `grad_fn` would take
            return func(*args, **kwargs)
        reenter_checkpoint(self.propagation.reenter)
        opaque = self._opaque
        if opaque.must_look():
            self._look_at(args, kwargs)
        # Most calls write to nothing, and hand values to nobody: they take the shorter way.
        watched = kwargs or is_watched(func)
        try:
            if watched:
                self._require_sight(func, self._escapes.before(func, args, kwargs))
                for x in written_by(func, args, kwargs):
                    if x.requires_grad:
                        keep_operands(x)
            result = self._apply(func, args, kwargs)
            if watched or self._escapes.must_look(args):
                self._require_sight(func, self._escapes.after(func, args, kwargs, result))
            return result
        finally:
            opaque.after()

    def _without_graph(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call where the model's code has switched gradients off."""
        self._require_sight(func, self._escapes.before_without_graph(func, args, kwargs))
        result = func(*args, **kwargs)
        self._escapes.after_without_graph(func, args, result)
        if self.propagation.observer is not None:
            self.propagation.observer.stopped(result)
        return result

    def _apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = self._rule_of(func)
        observer = self.propagation.observer
        if observer is None or type(rule) is Unfolded:
            return self._run(func, rule, args, kwargs)
        observer.begins(func, func, self._written_for(func), args, kwargs)
        result = self._run(func, rule, args, kwargs)
        observer.ends(result)
        return result

    def _written_for(self, func: Any) -> Rule | None:
        """The rule that `_rule_of` comes from, as the composite has it."""
        for written in reversed(self._within):
            if func in written.table:
                return written.table[func]
        return self.propagation.composite.function_rule(func)

    def _rule_of(self, func: Any) -> Callable[..., Any] | None:
        """What to call in place of a torch function: as the innermost module says, or anyone."""
        for written in reversed(self._within):
            if func in written.table:
                return self.propagation.table_of(written).get(func)
        return self.propagation.rule_of(func)

    def _run(self, func: Any, rule: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    def _require_sight(self, func: Any, reason: str | None) -> None:
        """Raise if a call takes values to where no rule sees them."""
        if reason is None:
            return
        if not self._tolerant:
            raise unseen_values(self.propagation.model, func, reason)
        if self.propagation.observer is not None:
            self.propagation.observer.escapes(func, reason)
        else:
            self._leave_plain(f"{target_name(func)} ({reason})")

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
        written: Rule,
        rule: Callable[..., Any],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Run a module's rule as one operation: what happens inside is the rule's own affair.

        `rule` is what to call, and `written` the composite's rule that it comes from.
        """
        reenter_checkpoint(self.propagation.reenter)
        self._look_at(args, kwargs)
        observer = self.propagation.observer
        if observer is not None:
            with self.suspended():
                observer.begins(type(module), original, written, args, kwargs)
        try:
            with self.suspended():
                try:
                    result = rule(*args, **kwargs)
                except Refusal as refusal:
                    if not self._tolerant:
                        raise self._unknown(type(module), str(refusal)) from None
                    self._leave_plain(f"{type(module).__name__} ({refusal})")
                    result = original(*args, **kwargs)
            if observer is not None:
                with self.suspended():
                    observer.ends(result)
            return result
        finally:
            self._opaque.after()

    def is_in_the_open(self) -> bool:
        """Whether no module that is running has rules of its own, nor is another mode on top."""
        return not self._within and _depth() == self._depth

    def run_within(
        self,
        module: nn.Module,
        rule: Within,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module's forward in the open, with the rules that it has within."""
        before = len(self._called)
        if not rule.table:
            result = forward(*args, **kwargs)
        else:
            self._within.append(rule)
            try:
                result = forward(*args, **kwargs)
            finally:
                self._within.pop()
        if not self._is_seen(rule, self._called[before:]) and self._opaque.carries(result):
            taken = " or ".join(f"({', '.join(one.names)})" for one in rule.recurrence)
            reason = (
                f"its recurrence runs in no function that takes {taken}, so nothing tells decays "
                "and gates from what they act on"
            )
            if not self._tolerant:
                raise self._unknown(type(module), reason)
            self._leave_plain(f"{type(module).__name__} ({reason})")
        return result

    def _is_seen(self, rule: Within, called: list[Callable[..., Any]]) -> bool:
        """Whether the recurrence that a module must have is among the functions it called."""
        if not rule.recurrence:
            return True
        composite = self.propagation.composite
        return any(f in composite or any(one.fits(f) for one in rule.recurrence) for f in called)

    def run_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the rule of a function written in Python, in the open or as one operation."""
        rule, is_open = self.propagation.call_of(function)
        if rule is None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        reenter_checkpoint(self.propagation.reenter)
        self._look_at(args, kwargs)
        self._called.append(function)
        observer = None if is_open else self.propagation.observer
        if observer is not None:
            written = self.propagation.composite.call_rule(function)
            with self.suspended():
                observer.begins(function, function, written, args, kwargs)
        try:
            with nullcontext() if is_open else self.suspended():
                result = rule(*args, **kwargs)
        except Refusal as refusal:
            if not self._tolerant:
                raise self._unknown(function, str(refusal)) from None
            self._leave_plain(f"{target_name(function)} ({refusal})")
            with self.suspended():
                result = function(*args, **kwargs)
        if observer is not None:
            with self.suspended():
                observer.ends(result)
        return result

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
