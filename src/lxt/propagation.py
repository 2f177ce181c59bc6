"""Propagation: one composite applied to the forward passes of one model instance.

While the instance's own forward runs, and only then, a torch function mode hands every operation to
its rule, modules that are targets run their rule instead of their forward, and parameters count as
constants. Before the forward returns, all of that is undone. The backward pass needs nothing to be
active, except where a checkpoint recomputes: it is made to enter again by itself.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lxt.composite import Composite
from lxt.engine.admission import claim, release, require_free, require_module, require_ready
from lxt.engine.calls import rewired
from lxt.engine.hooks import OutputGuard, changed_output
from lxt.engine.mode import Observer, RuleMode, in_force
from lxt.engine.opaque import refuse_transforms, tensors_in
from lxt.engine.parameters import ConstantParameters
from lxt.engine.passages import Probe, install, probed
from lxt.engine.segments import Checkpoint, Checkpointing, running
from lxt.engine.standins import StandIn
from lxt.engine.units import Entrance, Unit, bound_rule
from lxt.engine.walk import modules_in
from lxt.engine.zennit import require_zennit_speaks
from lxt.entries import OnUnknown, Rule, target_name
from lxt.errors import InvalidComposite
from lxt.fusion.norm import NAME as NORM
from lxt.fusion.unit import FusedUnit
from lxt.rules.elementary import Unfolded, composed, passthrough
from lxt.structure import InTheOpen, Within

__all__ = ["Propagation"]

# Nothing changes within but that calls of functions written in Python are seen.
_IN_THE_OPEN = Within({})

ModuleTargets = Sequence[tuple[nn.Module, Rule]]


class Propagation:
    """A composite at work on one model instance; `.remove()` takes it off again.

    Made by `Composite.register` and `Composite.context`. One that isn't `registered` is in force
    only where somebody calls `run`; it leaves the instance free for others and doesn't keep it.
    Without `constants` parameters are left alone, for rules that don't ask what is a constant.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        on_unknown: OnUnknown,
        *,
        registered: bool = True,
        constants: bool = True,
        fuse: bool = True,
        checkpoint: Checkpoint = None,
    ) -> None:
        require_module(model)
        if registered:
            require_free(model)
        require_ready(model)
        composite.require_names_in(model)
        self._checkpointing = Checkpointing.of(model, checkpoint)
        self.targets: ModuleTargets = []
        """The modules that were targets when the model last ran."""
        self._model: Callable[[], nn.Module | None] = (
            (lambda: model) if registered else weakref.ref(model)
        )
        self.composite = composite
        self.constants = constants
        self._fusions = composite.fusions if fuse and composite.formulation == "gradient" else None
        self.on_unknown: OnUnknown = on_unknown
        self.verified: set[Any] = set()
        """Which rules of a user's have been compared with their operation."""
        self._functions: dict[Any, Callable[..., Any] | None] = {}
        self._calls: dict[Any, tuple[Callable[..., Any] | None, bool]] = {}
        self._tables: dict[Within, dict[Any, Callable[..., Any]]] = {}
        self._module_rules: dict[type, Rule | None] = {}
        self._calling: dict[type, bool] = {}
        self._lock = threading.Lock()
        self._depth = 0
        self._undo = ExitStack()
        self.was_called = False
        """Whether the model's forward has run since, with gradients or without."""
        self.carried_relevance: bool | None = None
        """Whether its output depended on a leaf; None until it has run with gradients."""
        self.on_plain: Callable[[str], None] | None = None
        """Told of each operation that is left to autograd because `on_unknown` is "gradient"."""
        self.observer: Observer | None = None
        self.probes: Sequence[Probe] = ()
        """Those who see what passes some modules."""
        self._guard: OutputGuard | None = None
        self._entrance: Entrance | None = None
        if registered:
            claim(model, self)
            self._entrance = Entrance(model, self)

    @property
    def model(self) -> nn.Module:
        """The instance."""
        model = self._model()
        assert model is not None, "it is its own forward that runs"
        return model

    def is_put_aside(self) -> bool:
        """Whether the model's calls no longer come by here, since its forward was put back."""
        return self._entrance is not None and self._entrance.is_put_aside()

    def remove(self) -> None:
        """Take the composite off the model. Removing twice is harmless."""
        if self._entrance is not None:
            self._entrance.remove()
            self._entrance = None
        if self._guard is not None:
            self._guard.remove()
        # They hold the last graph, and where layers run twice that holds the propagation.
        self.probes = ()
        release(self.model, self)

    def run(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_call: bool = False,
    ) -> Any:
        """Run the model's own `forward` under the rules, but for calls without gradients.

        With `is_call`, `forward` is its `__call__`, which finds a unit by itself.
        """
        self.was_called = True
        if not torch.is_grad_enabled() or self in in_force.propagations:
            return forward(*args, **kwargs)
        refuse_transforms()
        require_zennit_speaks(self.model, self.composite.formulation)
        with self.active() as mode:
            if self.observer is not None:
                self.observer.starts()
            for probe in self.probes:
                probe.starts()
            unit = self.model.__dict__.get("forward")  # where the model is a target itself
            if isinstance(unit, Unit) and not is_call:
                forward = unit
            output = forward(*args, **kwargs)
            mode.check_output(output)
            if any(tensor.requires_grad for tensor in tensors_in(output)):
                self.carried_relevance = True
            elif self.carried_relevance is None:
                self.carried_relevance = False
            if self.model._forward_hooks and not is_call:
                self._guard = OutputGuard(self.model, output, self._output_changed)
            return output

    def _output_changed(self) -> None:
        """A hook of the model itself computed something of its output."""
        if self.on_unknown == "error":
            raise changed_output(self.model, self.composite.name)
        if self.on_plain is not None:
            self.on_plain(f"a forward hook of {type(self.model).__name__} itself")

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model as if it were under no composite."""
        entrance = self._entrance
        return (self.model if entrance is None else entrance.original)(*args, **kwargs)

    @contextmanager
    def active(
        self, targets: ModuleTargets | None = None, *, is_rerun: bool = False
    ) -> Iterator[RuleMode]:
        """Put the rules in force in this thread, for a forward pass or a checkpoint's rerun.

        `targets` are those of an earlier pass that is run again.
        """
        outer = in_force.mode
        around = in_force.propagations[-1].composite if in_force.propagations else self.composite
        if around.formulation != self.composite.formulation:
            raise InvalidComposite(
                f"{type(self.model).__name__} is under {self.composite.name!r}, whose rules hand "
                f"back {self.composite.formulation}, within a model under "
                f"{around.name!r}, whose rules hand back {around.formulation}"
            )
        mode = RuleMode(self, is_rerun=is_rerun)
        suspended = outer.suspended() if outer else nullcontext()
        with self._prepared(targets), suspended, running(self._checkpointing, self), mode:
            in_force.mode = mode
            in_force.propagations.append(self)
            try:
                yield mode
            finally:
                in_force.propagations.pop()
                in_force.mode = outer

    @property
    def fused(self) -> dict[str, str]:
        """The modules that run as one operation each, by path, and as what: {"layers.0.mlp": …}."""
        targets = dict(self._module_targets(modules_in(self.model)))
        return {
            name: unit.name
            for name, module in self.model.named_modules()
            if isinstance(unit := targets.get(module), FusedUnit)
        }

    @property
    def unproven(self) -> set[str]:
        """The classes of modules made like a unit that run by the rules of what is within."""
        fused = self.fused
        if self._fusions is None:
            return set()
        return {
            type(module).__name__
            for name, module in self.model.named_modules()
            if name not in fused and self._fusions.resembles(module)
        }

    def rule_of(self, function: Any) -> Callable[..., Any] | None:
        """What to call in place of a torch function: `function` itself, its rule, or None."""
        try:
            return self._functions[function]
        except KeyError:
            rule = self._bound(function, self.composite.function_rule(function))
            self._functions[function] = rule
            return rule

    def call_of(self, function: Any) -> tuple[Callable[..., Any] | None, bool]:
        """What to call in place of a function written in Python, if anything.

        And whether the operations within it have their rules.
        """
        try:
            return self._calls[function]
        except KeyError:
            rule = self.composite.call_rule(function)
            is_open = rule is composed or isinstance(rule, InTheOpen)
            bound = function if rule is composed else self._bound(function, rule)
            self._calls[function] = bound, is_open
            return bound, is_open

    def table_of(self, rule: Within) -> dict[Any, Callable[..., Any]]:
        """What to call in place of torch functions within a module that has this rule."""
        if rule not in self._tables:
            bound = {function: self._bound(function, r) for function, r in rule.table.items()}
            self._tables[rule] = {f: r for f, r in bound.items() if r is not None}
        return self._tables[rule]

    def _bound(self, function: Any, rule: Rule | None) -> Callable[..., Any] | None:
        if rule is passthrough:
            return function
        if rule is composed:
            return Unfolded(function)
        if rule is None:
            return None
        assert not isinstance(rule, Within), "that is for modules"
        return bound_rule(rule, function, (), target_name(function), self.verified)

    def reenter(self, targets: ModuleTargets | None = None) -> AbstractContextManager[Any]:
        """`active` for a part that a checkpoint runs again, unless this thread is inside."""
        return nullcontext() if self.is_active() else self.active(targets, is_rerun=True)

    def is_active(self) -> bool:
        """Whether this thread is inside a forward pass of the model."""
        return in_force.mode is not None and in_force.mode.propagation is self

    @contextmanager
    def _prepared(self, targets: ModuleTargets | None) -> Iterator[None]:
        """Parameters are constants and module rules in place, from first entry to last exit."""
        with self._lock:
            if self._depth == 0:
                with ExitStack() as undo:
                    modules = modules_in(self.model)
                    if self.constants:
                        undo.callback(ConstantParameters(modules).release)
                    if targets is None:
                        self.targets = list(self._module_targets(modules))
                    else:
                        self.targets = targets
                    for module, rule in self.targets:
                        undo.callback(Unit.install(module, self, rule).release, self)
                    undo.callback(install(self.probes, self))
                    if self._checkpointing is not None:  # over the units, whose rules run within
                        undo.callback(self._checkpointing.install(self, again=targets is not None))
                    self._undo = undo.pop_all()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._undo.close()

    def _module_targets(self, modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, Rule]]:
        """The modules that are targets now: a model may have changed since it was registered."""
        composite = self.composite
        named = composite.named_rules(self.model)
        mlps = 0
        for module in modules:
            rule = named.get(module)
            if rule is None:
                cls = type(module)
                if cls not in self._module_rules:
                    self._module_rules[cls] = composite.class_rule(cls)
                rule = self._module_rules[cls]
            rule = rule or composite.structure_rule(module)
            if rule is None and self._has_calls(module):
                rule = _IN_THE_OPEN
            if rule is None and (unit := self._fused(module, named)) is not None:
                # One of six, for a few percent of time; norms keep next to nothing anyway.
                mlps += unit.name != NORM
                rule = replace(unit, thrifty=unit.name != NORM and mlps % 6 == 1)
            if rule is not None:
                yield module, rule

    def _fused(self, module: nn.Module, named: Mapping[nn.Module, Rule]) -> FusedUnit | None:
        """The unit that a module may run as, if no part of it is a target by its name."""
        if self._fusions is None or self.observer is not None:
            return None
        unit = self._fusions.unit_for(module)
        if unit and named and any(part in named for part in module.children()):
            return None
        if unit and self.probes and not probed(self.probes).isdisjoint(module.children()):
            return None
        return unit

    def _has_calls(self, module: nn.Module) -> bool:
        """Whether a module's forward calls functions written in Python that have a rule."""
        if not self.composite.has_calls:
            return False
        forward, on_instance = module.forward, module.__dict__.get("forward")
        if isinstance(on_instance, StandIn):  # the registered model's own, or a unit's
            forward, on_instance = on_instance.original, on_instance.earlier
        if on_instance is not None:  # such as one with hooks
            return self.in_the_open(module, forward) is not None
        cls = type(module)
        if cls not in self._calling:
            self._calling[cls] = self.in_the_open(module, forward) is not None
        return self._calling[cls]

    def in_the_open(
        self, module: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any] | None:
        """A module's forward whose calls of functions with a rule are seen; None if it has none."""
        return rewired(module, forward, lambda f: self.composite.call_rule(f) is not None)

    def __repr__(self) -> str:
        state = "removed from" if self._entrance is None else "on"
        return f"Propagation({self.composite.name!r} {state} {type(self.model).__name__})"
